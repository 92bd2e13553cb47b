"""Decoding and resizing JPEGs in full and scaled by their decoder, and how far that moves a DNA.

    python -m benchmarks.decoding [FOLDER...] [--megapixels 0.2,1.2,3,12] [--images 24]

The images are made of those in the folders (by default two corpora of `benchmarks.corpora`) that
are large enough: scaled down to each size, and saved as JPEGs of quality 90. One core does all of
it, with the allocator's settings of a worker.
Rows, as images a second and as multiples of what `full` decodes:

    pil            Pillow alone, in full
    simplejpeg     libjpeg-turbo alone, as the package simplejpeg brings it
    torchvision    torchvision's decoder alone
    full           decoded in full, and resized as the reference does (the default)
    fast           decoded in full, with --resize fast
    scaled         --jpeg scaled
    scaled_fast    both

With `--dna`, the rows' DNAs of the same images are compared with that of `full`, by the embedded
network, beside the distance of the two halves of `full`: what the choice of images alone makes.

`apart` has the most grey levels by which any pixel of the other decoders differs from Pillow's.
`resize_ns` is what the resize takes of a core for each pixel of the input, in nanoseconds. Pixels
of small images are still in the cache when they are resized, and those of large ones are not: so
the difference of the two is the most that a resize could save which begins while strips of the
image are still decoded.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks import corpora
from pipeline.counting.allocator import keep_memory
from pipeline.images import load, prepare
from pipeline.networks import Network, describe
from pipeline.spec import Preprocess

QUALITY = 90
RULES: dict[str, dict[str, Any]] = {
    "full": {},
    "fast": {"resize": "fast"},
    "scaled": {"jpeg": "scaled"},
    "scaled_fast": {"jpeg": "scaled", "resize": "fast"},
}


def jpegs(files: Sequence[Path], megapixels: float, count: int) -> Iterator[bytes]:
    """JPEGs of a size, each of another file that is as large."""
    made = 0
    for file in files:
        with Image.open(file) as image:
            smaller = (1e6 * megapixels / (image.width * image.height)) ** 0.5
            if smaller > 1 or made == count:
                continue
            size = round(image.width * smaller), round(image.height * smaller)
            sink = io.BytesIO()
            resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            resized.save(sink, "JPEG", quality=QUALITY)
        made += 1
        yield sink.getvalue()


def rate(data: Sequence[bytes], work: Callable[[bytes], object], seconds: float) -> float:
    """Images a second of one core, over whole rounds of all images."""
    work(data[0])
    start, images = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        for each in data:
            work(each)
        images += len(data)
    return images / spent


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """What Pillow does of a JPEG by itself."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def by_simplejpeg(data: bytes) -> NDArray[np.uint8]:
    """What libjpeg-turbo does."""
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    return pixels


def by_torchvision(data: bytes) -> NDArray[np.uint8]:
    """What torchvision's decoder does, rows side by side in memory."""
    # It warns of memory that cannot be written.
    planes = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    pixels: NDArray[np.uint8] = planes.permute(1, 2, 0).contiguous().numpy()
    return pixels


DECODERS = {"pil": by_pillow, "simplejpeg": by_simplejpeg, "torchvision": by_torchvision}


def apart(data: Sequence[bytes]) -> dict[str, int]:
    """The most grey levels between a pixel of each other decoder and Pillow's."""
    most = dict.fromkeys(DECODERS.keys() - {"pil"}, 0)
    for each in data:
        expected = by_pillow(each).astype(np.int16)
        for name in most:
            most[name] = max(most[name], int(np.abs(DECODERS[name](each) - expected).max()))
    return most


def rates(data: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Images a second of each row, and how many times those of `pil`."""
    keep_memory()
    torch.set_num_threads(1)
    network = describe("efficientnet_lite0")
    found = {name: rate(data, decoder, seconds) for name, decoder in DECODERS.items()}
    for name, options in RULES.items():
        found[name] = rate(data, partial(load, rule=network_rule(network, **options)), seconds)
    return {
        "images_per_second": {name: round(value, 1) for name, value in found.items()},
        "ratio": {name: round(value / found["full"], 2) for name, value in found.items()},
        "apart": apart(data),
        "resize_ns": round(resize_time(data, network_rule(network), seconds), 2),
    }


def resize_time(data: Sequence[bytes], rule: Preprocess, seconds: float) -> float:
    """Nanoseconds of a core for each pixel that is resized right after it was decoded."""
    spent, pixels = 0.0, 0
    while spent < seconds:
        for each in data:
            decoded = by_pillow(each)
            began = time.process_time()
            prepare(decoded, rule)
            spent += time.process_time() - began
            pixels += decoded.shape[0] * decoded.shape[1]
    return 1e9 * spent / pixels


def network_rule(network: Network, **options: Any) -> Preprocess:
    """How images become the network's input."""
    return Preprocess(network.height, network.width, network.mean, network.std, **options)


def distances(data: Sequence[bytes]) -> dict[str, float]:
    """EMD in bins of each row's DNA to that of `full`, and of the halves of `full`."""
    from pipeline import emd, make_dna

    with tempfile.TemporaryDirectory() as folder:
        halves = [Path(folder, name) for name in "ab"]
        for half in halves:
            half.mkdir()
        for number, each in enumerate(data):
            (halves[number % 2] / f"{number:04d}.jpg").write_bytes(each)
        dnas = {name: make_dna(folder, **options) for name, options in RULES.items()}
        first, second = (make_dna(half) for half in halves)
    full = dnas.pop("full")
    # A comparison refuses specs that differ. Here their difference is what is measured.
    moved = {name: emd(full, replace(dna, spec=full.spec)) for name, dna in dnas.items()}
    found = {"halves": emd(first, second), **moved}
    return {name: round(float(distance), 5) for name, distance in found.items()}


def main() -> None:
    """Measures each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--megapixels", default="0.2,1.2,3,12")
    parser.add_argument("--images", type=int, default=24, help="at most so many of each size")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row")
    parser.add_argument("--dna", action="store_true", help="compare DNAs too")
    arguments = parser.parse_args()
    folders = arguments.folders or [corpora.corpus(name) for name in ("photos", "wallpapers")]
    files = [file for folder in folders for file in corpora.files(folder)]
    result: dict[str, Any] = {}
    for size in map(float, arguments.megapixels.split(",")):
        data = list(jpegs(files, size, arguments.images))
        if len(data) < 2:
            print(f"{size:g} megapixels: fewer than two images are so large", file=sys.stderr)
            continue
        row = {"images": len(data), **rates(data, arguments.seconds)}
        if arguments.dna:
            row["emd"] = distances(data)
        result[f"{size:g}"] = row
        times = ", ".join(f"{name} {ratio}" for name, ratio in row["ratio"].items())
        print(f"{size:g} megapixels, times full: {times}", file=sys.stderr)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
