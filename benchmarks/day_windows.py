"""What days cost: the bytes of each day's part, and of a window that adds some of them up.

    python -m benchmarks.day_windows [--days 3] [--images 256]

Noise images stand for photographs; the network is the embedded one, in this process. Bytes beside
those of the images are compared with a build of the same images without parts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.spec import Resources

KINDS = ("dna", "folds", "exemplars", "image_hashes", "manifests", "failures")


def write_days(source: Path, days: int, images: int) -> int:
    """Writes the images of some days, and returns their bytes."""
    numbers = np.random.default_rng(0)
    for day in range(days):
        folder = source / f"day=2026-11-{day + 1:02}"
        folder.mkdir(parents=True)
        for image in range(images):
            pixels = numbers.integers(0, 256, (24, 32, 3)).astype(np.uint8)
            large = Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC)
            large.save(folder / f"{image:05}.jpg", quality=90)
    return sum(path.stat().st_size for path in source.rglob("*.jpg"))


def bytes_of(root: Path) -> Counter[str]:
    """Adds up the bytes of a catalogue: of the parts, windows, partials, and whole datasets."""
    found: Counter[str] = Counter()
    for path in root.rglob("*"):
        if not path.is_file():
            continue
        steps = path.relative_to(root).parts
        if steps[0] in KINDS:
            inside = steps[3] if len(steps) > 4 else "whole"
            kind = {"whole": "whole", "_windows": "windows"}.get(inside, "parts")
        else:
            kind = "partials" if "partials" in steps else "cells" if "cells" in steps else "rest"
        found[kind] += path.stat().st_size
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vdna-days-") as folder:
        source, base = Path(folder) / "source", Path(folder)
        of_images = write_days(source, asked.days, asked.images)
        found = {}
        for name, by in (("days", "1"), ("whole", "")):
            place = Catalogue(str(base / name))
            request = Request("cams", str(source), by=by)
            build_datasets(place, [request], InProcess(), Resources(workers=0))
            found[name] = bytes_of(base / name)
        Catalogue(str(base / "days")).find(f"cams@last:{asked.days - 1}d")
        window = bytes_of(base / "days")["windows"]
    days, whole = found["days"], found["whole"]
    print(
        f"{asked.days} days of {asked.images} images, {of_images / asked.days / 1e6:.1f} MB a day"
    )
    print(f"a day's part, beside its sums: {days['parts'] / asked.days / 1e6:.2f} MB")
    print(f"a day's sums: {(days['partials'] + days['cells']) / asked.days / 1e6:.2f} MB")
    print(f"a window of {asked.days - 1} days: {window / 1e6:.2f} MB, until gc")
    ratio = sum(days.values()) / sum(whole.values())
    print(f"the catalogue with days is {ratio:.2f} times as large as without")


if __name__ == "__main__":
    main()
