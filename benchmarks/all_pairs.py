"""All pairs of many DNAs: the kernel against the adders' floor, and a catalogue of a thousand.

    python -m benchmarks.all_pairs kernel [--dnas 40,100,400] [--neurons 64]
    python -m benchmarks.all_pairs catalogue [--dnas 1000] [--network efficientnet_lite0]
        [--folds 16] [--folder FOLDER]

`kernel` measures how many values one core compares per second of its CPU time, with cumulative
distributions that are made already and with those that are made on the way. Each is a share of the
floor: two float32 additions for each value, measured in the same run on rows that lie in the first
cache. A share above 1 is no error, because integers need one addition.

`catalogue` writes random DNAs to disk, in groups of similar ones, and compares all pairs: first of
a third of them, then of all from nothing, and once more when one has changed. The CPU time of a
thousand is extrapolated from the first two, as so much for each DNA and so much for each pair. A
thousand DNAs of the embedded network with their folds take 11 GB of disk, and
what comparisons keep of them takes 4 GB more.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks import measure
from benchmarks.random_catalogue import BINS

REPEATS = 9
TIMES = 100_000
GROUPS = 50
"""Groups of similar DNAs."""
THOUSAND = 1000


@njit(nogil=True, fastmath=True, error_model="numpy")
def _additions(x: NDArray[np.float32], times: int) -> float:
    """Eight rows of `x` (6, n): two additions a value and nothing else, `times` over."""
    a0, a1, b0, b1, b2, b3 = x[0], x[1], x[2], x[3], x[4], x[5]
    total = np.float32(0)
    for _ in range(times):
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = np.float32(0)
        for k in range(x.shape[1]):
            u, v = a0[k], a1[k]
            s0 += u - b0[k]
            s1 += u - b1[k]
            s2 += u - b2[k]
            s3 += u - b3[k]
            t0 += v - b0[k]
            t1 += v - b1[k]
            t2 += v - b2[k]
            t3 += v - b3[k]
        total += (s0 + s1 + s2 + s3) * (t0 + t1 + t2 + t3)
        a0[0] += np.float32(1e-3)  # else the loop is done once
    return float(total)


def _best(work: Callable[[], object]) -> float:
    """Least CPU seconds of some runs: the machine may have other things to do."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def kernel(dnas: list[int], neurons: int) -> dict[str, Any]:
    """In one thread, so that CPU time is the core's."""
    from pipeline.comparing import Curves, distances

    rows = np.random.default_rng(0).random((6, BINS), np.float32)
    _additions(rows, 1)

    def at(size: int) -> dict[str, Any]:
        count = max(1, neurons * max(dnas) // size)  # the same counts, in fewer DNAs
        counts = [
            np.random.default_rng(n).integers(0, 1000, (count, BINS)).astype(np.int64)
            for n in range(size)
        ]
        nothing = [np.zeros(count, np.int64)] * size
        weights = np.ones(count)
        curves = Curves.empty(count, size, BINS)

        def fill() -> None:
            curves.fill(0, counts, nothing, nothing)

        def compare() -> None:
            distances(curves, curves, weights, threads=1)

        fill()
        compare()
        values = size * (size - 1) // 2 * count * BINS
        floor = 8 * BINS * TIMES / _best(lambda: _additions(rows, TIMES))
        filling, comparing = _best(fill), _best(compare)
        return {
            "dnas": size,
            "neurons": count,
            "floor_values_per_second": floor,
            "values_per_second": values / comparing,
            "share_of_floor": round(values / comparing / floor, 3),
            "with_cumulation": round(values / (comparing + filling) / floor, 3),
        }

    return {"bins": BINS, "sizes": [at(size) for size in dnas]}


def catalogue(dnas: int, network: str, folds: int, folder: str) -> dict[str, Any]:
    if folder:
        return _catalogue(folder, dnas, network, folds)
    with tempfile.TemporaryDirectory() as made:
        return _catalogue(made, dnas, network, folds)


def _catalogue(folder: str, dnas: int, network: str, folds: int) -> dict[str, Any]:
    from benchmarks.random_catalogue import RandomCatalogue, widths_of
    from pipeline.catalogue import Catalogue
    from pipeline.comparing import compare
    from pipeline.spec import available_cpus

    place = Catalogue(folder)
    random = RandomCatalogue(place, widths_of(network), folds, GROUPS)
    names = [f"set/{n:04d}" for n in range(dnas)]
    random.add({name: seed for seed, name in enumerate(names)} | {"warm/0": 0, "warm/1": 1})
    compare(place, ["warm/0", "warm/1"], error_bars=bool(folds))  # compiles

    def run(chosen: list[str]) -> dict[str, Any]:
        spent: dict[str, Any] = {"dnas": len(chosen), "pairs": len(chosen) * (len(chosen) - 1) // 2}
        cpu = time.process_time()
        with measure.phase(spent):
            compare(place, chosen, error_bars=bool(folds))
        return spent | {"cpu": time.process_time() - cpu}

    third = run(names[: dnas // 3])
    forget(place, random.spec.digest)
    whole = run(names)
    random.add({names[7]: dnas + 1})
    changed = run(names)
    return {
        "network": network,
        "neurons": random.spec.neurons,
        "bins": BINS,
        "folds": folds,
        "groups": GROUPS,
        "cpus": available_cpus(),
        "third": third,
        "whole": whole,
        "changed": changed,
        "of_a_thousand": _extrapolated(third, whole),
    }


def forget(place: Any, spec: str) -> None:
    """Removes what comparisons have kept."""
    from pipeline import storage
    from pipeline.errors import SourceError

    for folder in (place.matrices_uri(spec), place.fold_points_uri(spec, "").rpartition("/")[0]):
        with contextlib.suppress(SourceError):  # nothing is kept
            for item in list(storage.walk(folder)):
                storage.delete(item.uri)


def _extrapolated(third: dict[str, Any], whole: dict[str, Any]) -> float | None:
    """Returns the CPU seconds of a thousand DNAs: some for each DNA, and some for each pair.

    None if the runs were too short to tell.
    """
    rows = [[run["dnas"], run["pairs"]] for run in (third, whole)]
    each = np.linalg.solve(np.array(rows, float), [run["cpu"] for run in (third, whole)])
    if (each < 0).any():
        return None
    return float(each @ [THOUSAND, THOUSAND * (THOUSAND - 1) / 2])


def _child(which: str, **settings: Any) -> dict[str, Any]:
    return kernel(**settings) if which == "kernel" else catalogue(**settings)


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_child)
    parser = argparse.ArgumentParser(description="time all pairs of many DNAs")
    parser.add_argument("which", choices=("kernel", "catalogue"))
    parser.add_argument("--dnas")
    parser.add_argument("--neurons", type=int, default=64, help="of the kernel's DNAs")
    parser.add_argument("--network", default="efficientnet_lite0", help="or ViT-B, three_layers")
    parser.add_argument("--folds", type=int, default=16, help="of each DNA; 0 for no error bars")
    parser.add_argument("--folder", default="", help="where the catalogue is written, and stays")
    chosen = parser.parse_args()
    if chosen.which == "kernel":
        sizes = [int(size) for size in (chosen.dnas or "40,100,400").split(",")]
        settings: dict[str, Any] = {"dnas": sizes, "neurons": chosen.neurons}
    else:
        settings = {name: getattr(chosen, name) for name in ("network", "folds", "folder")}
        settings["dnas"] = int(chosen.dnas or THOUSAND)
    result = measure.run(
        "benchmarks.all_pairs", {"which": chosen.which, **settings}, tuned_malloc=True
    )
    measure.emit(result, _line(chosen.which, result))


def _line(which: str, result: dict[str, Any]) -> str:
    if which == "kernel":
        return "share of the adders' floor, of one core: " + "; ".join(
            f"{size['dnas']} DNAs {size['share_of_floor']:.2f} "
            f"({size['with_cumulation']:.2f} with the cumulative sums)"
            for size in result["sizes"]
        )
    whole, changed, more = (result[name] for name in ("whole", "changed", "of_a_thousand"))
    return (
        f"{whole['dnas']} DNAs of {result['neurons']} x {result['bins']}, {result['folds']} folds: "
        f"{whole['pairs']:,} pairs in {whole['seconds']:.0f} s, {whole['cpu'] / 60:.1f} core "
        f"minutes and {whole['peak_mb']} MB; one changed: {changed['seconds']:.0f} s, "
        f"{changed['cpu'] / 60:.1f} core minutes"
        + (f"; a thousand, extrapolated: {more / 60:.1f} core minutes" if more else "")
    )


if __name__ == "__main__":
    main()
