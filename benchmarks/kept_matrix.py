"""The kept matrix of all pairs, which each refresh reads: its bytes, CPU time and memory.

    python -m benchmarks.kept_matrix [--datasets 1000] [--layers 18]

All numbers of a matrix with error bars are drawn at random, so that they compress as badly as real
ones. Writing and reading are by the product's own code, in processes of their own. Beside it stands
the reading of the same numbers by `numpy.load`, which checks nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

FILE, PLAIN = "matrix.parquet", "matrix.npz"


def drawn(datasets: int, layers: int) -> Any:
    """Makes a matrix of random numbers, as one of a catalogue without layer Gaussians has them."""
    from pipeline.comparing import ESTIMATES, Matrix

    chance = np.random.default_rng(0)
    shape = layers + 1, datasets, datasets
    names = tuple(f"fleet/dataset-{at:05d}" for at in range(datasets))
    return Matrix(
        names,
        tuple(f"blocks.{at}" for at in range(layers)),
        chance.random(shape),
        chance.random(shape),
        np.full(shape, np.nan),
        1000,
        {name: f"{at:032x}" for at, name in enumerate(names)},
        "0" * 32,
        estimates={column: chance.random(shape) for column in ESTIMATES},
    )


def fill(catalogue: str) -> float:
    """Replaces the numbers of a catalogue's largest kept matrix by random ones, error bars too.

    Args:
        catalogue: Where the catalogue is.

    Returns:
        How many MB the matrix takes.
    """
    from pipeline import storage
    from pipeline.catalogue import Catalogue
    from pipeline.comparing import Matrix

    place = Catalogue(catalogue)
    spec = place.at().default_spec
    kept = max(storage.walk(place.matrices_uri(str(spec))), key=lambda matrix: matrix.size)
    matrix = Matrix.decode(storage.read(kept.uri), kept.uri)
    chance = np.random.default_rng(0)
    data = matrix.mapped(lambda values: chance.random(values.shape)).encode()
    storage.replace(kept.uri, data)
    return len(data) / 1e6


def _work(which: str, folder: str, datasets: int, layers: int) -> dict[str, Any]:
    from pipeline.comparing import Matrix

    file, plain = Path(folder, FILE), Path(folder, PLAIN)
    if which == "write":
        matrix = drawn(datasets, layers)
        began = time.process_time()
        data = matrix.encode()
        took = time.process_time() - began
        file.write_bytes(data)
        np.savez(plain, emd=matrix.emd, nfd=matrix.nfd, fd=matrix.fd, **matrix.estimates)
        return {"cpu_seconds": took, "mb": len(data) / 1e6}
    began = time.process_time()
    if which == "read":
        found = len(Matrix.decode(file.read_bytes(), FILE).names)
    else:
        with np.load(plain) as columns:
            found = min(len(columns[name][0]) for name in columns.files)
    took = time.process_time() - began
    if found != datasets:
        raise ValueError(f"{found} of {datasets} datasets were read")
    return {"cpu_seconds": took}


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        measure.answer(_work)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=18)
    given = parser.parse_args()
    result: dict[str, Any] = dict(vars(given))
    with tempfile.TemporaryDirectory() as folder:
        for which in ("write", "read", "numpy"):
            settings = {"which": which, "folder": folder, **vars(given)}
            result[which] = measure.run("benchmarks.kept_matrix", settings, tuned_malloc=False)
    read, plain = result["read"], result["numpy"]
    result["ratio"] = read["cpu_seconds"] / plain["cpu_seconds"]
    measure.emit(
        result,
        f"{given.datasets:,} datasets, {given.layers} layers: {result['write']['mb']:,.0f} MB; "
        f"{result['write']['cpu_seconds']:.1f} s of CPU to write, {read['cpu_seconds']:.1f} s, "
        f"{result['ratio']:.1f} times as long as NumPy, and {read['peak_mb']:,.0f} MB to read",
    )


if __name__ == "__main__":
    main()
