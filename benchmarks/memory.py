"""Peak memory of a DNA and of a build by the number of images, with a network that costs nothing.

    python -m benchmarks.memory [--images 1000 10000 100000] [--planned 100000 1000000 3000000]
                                [--shard-images 31]

Each row is a process of its own. `make_dna` takes a dataset in memory that makes each image when it
is asked for. `build` counts, reduces and commits the same images out of Parquet files of 10,000
rows. Their networks have seven neurons, and their images 32 x 32 pixels, so that only what is kept
for each image can grow. `plan` lists and plans such files, without images, as a build does first.
A dataset of more images has larger shards, and a shard under way takes memory for each of its
images. `--shard-images` keeps the shards of builds alike, so that only their number grows.
The peak is the process's resident memory, shared pages once.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import measure
from pipeline import Preprocess, Ranges, Request, make_dna, register_network
from pipeline.building import build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.networks import describe, encode_ranges
from pipeline.sources import Entries, list_source, plan
from pipeline.spec import Resources

NAME = "seven_neurons"
SIDE = 32
HALF = (0.5, 0.5, 0.5)
ROW_GROUP = 1000
FILE_ROWS = 10_000


class SevenNeurons(torch.nn.Module):
    """Two small convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(3, 4, 3, stride=4)
        self.b = torch.nn.Conv2d(4, 3, 3, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def pixels_of(number: int) -> NDArray[np.uint8]:
    """The image of that number."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


class Images:
    """A dataset that holds none of its images."""

    def __init__(self, images: int) -> None:
        self._images = images

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return pixels_of(index)


def png_of(number: int) -> bytes:
    """The image of that number as a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(pixels_of(number)).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def write_tables(folder: Path, images: int, content: Callable[[int], bytes]) -> None:
    """Writes Parquet files whose rows have the content of each number, some at a time."""
    folder.mkdir()
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
    for start in range(0, images, FILE_ROWS):
        end = min(images, start + FILE_ROWS)
        with pq.ParquetWriter(folder / f"{start:08}.parquet", schema) as writer:
            for first in range(start, end, ROW_GROUP):
                numbers = range(first, min(end, first + ROW_GROUP))
                rows = [{"bytes": content(n), "path": f"{n}.png"} for n in numbers]
                writer.write_table(pa.table({"image": rows}, schema))


def options_in(folder: Path) -> dict[str, Any]:
    """Makes the network known, and writes its weights and ranges."""
    from benchmarks.memory import SevenNeurons as Importable  # not as of the program that runs

    rule = Preprocess(SIDE, SIDE, HALF, HALF)
    register_network(NAME, Importable, preprocess=rule, taps="a,b")
    torch.manual_seed(0)
    weights, ranges = folder / "weights.pt", folder / "ranges.parquet"
    torch.save(SevenNeurons().state_dict(), weights)
    network = describe(NAME, str(weights))
    shape = tuple((tap.name, tap.neurons) for tap in network.taps)
    neurons = sum(count for _, count in shape)
    found = Ranges(shape, np.full(neurons, -2.0), np.full(neurons, 2.0))
    ranges.write_bytes(encode_ranges(found, network))
    return {"extractor": NAME, "weights": str(weights), "ranges": str(ranges)}


def _child(which: str, images: int, source: str, shard_images: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        options = options_in(Path(scratch))
        began = time.perf_counter()
        if which == "make_dna":
            counted = make_dna(Images(images), threads=1, **options).images
        elif which == "plan":
            entries = Entries(Path(scratch, "entries").as_uri())
            counted = plan(list_source(source), entries=entries).candidates
        else:
            request = Request("a", source, shard_images=shard_images, **options)
            resources = Resources(workers=0, threads=1)
            (result,) = build_datasets(
                Catalogue(str(Path(scratch, "dnas"))), [request], InProcess(), resources
            )
            counted = result.version.images
    if counted != images:
        raise ValueError(f"{counted} of {images} images were counted")
    return {"images": images, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_child)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--planned", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000])
    parser.add_argument("--shard-images", type=int, help="images of a shard of builds, at most")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {"make_dna": [], "build": [], "plan": []}
    with tempfile.TemporaryDirectory() as scratch:

        def add(which: str, images: int, source: Path) -> None:
            settings = {"which": which, "images": images, "source": str(source)}
            settings["shard_images"] = arguments.shard_images
            rows[which].append(measure.run("benchmarks.memory", settings, tuned_malloc=True))
            print(f"{which}: {rows[which][-1]}", file=sys.stderr, flush=True)

        for images in sorted(arguments.images):
            write_tables(source := Path(scratch, f"{images}"), images, png_of)
            for which in ("make_dna", "build"):
                add(which, images, source)
        for images in sorted(arguments.planned):
            write_tables(source := Path(scratch, f"{images}-rows"), images, lambda _: b"no image")
            add("plan", images, source)
    grown = {
        which: round(found[-1]["peak_mb"] / found[0]["peak_mb"], 2) for which, found in rows.items()
    }
    measure.emit(
        {**rows, "ratio": grown},
        f"peak memory of the most images, as a multiple of that of the fewest: {grown}",
    )


if __name__ == "__main__":
    main()
