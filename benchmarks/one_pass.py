"""Every distribution of a folder: the product's one pass beside the reference's pass for each.

    python -m benchmarks.one_pass FOLDER [--threads 2]

The product keeps histograms, neuron Gaussians, extremes and layer Gaussians in one pass. The
reference makes one kind in each pass. Its histograms and its layer Gaussians (which hold the
neurons') are timed one after the other, under a tuned allocator. For the second it keeps every
image's features until the end. Each runs in a fresh process, on the whole folder and on a quarter
of it, which shows how much memory grows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure, reference
from benchmarks.end_to_end import EMBEDDED


def _product(folder: str, threads: int, layer_gaussian: bool) -> dict[str, Any]:
    from pipeline.building import make_dna

    make_dna(folder, threads=threads, limit=1, backend="torch")
    start = time.perf_counter()
    dna = make_dna(folder, threads=threads, layer_gaussian=layer_gaussian, backend="torch")
    seconds = time.perf_counter() - start
    return {
        "images": dna.images,
        "seconds": round(seconds, 3),
        "images_per_second": round(dna.images / seconds, 2),
    }


def run_product(folder: Path, threads: int, *, layer_gaussian: bool) -> dict[str, Any]:
    """One DNA of a folder, in process, in a fresh one."""
    settings = {"folder": str(folder), "threads": threads, "layer_gaussian": layer_gaussian}
    return measure.run("benchmarks.one_pass", settings, tuned_malloc=False)


def run_reference(folder: Path, threads: int) -> dict[str, Any]:
    """Its two passes, one after the other; the larger of their peaks."""
    histogram, gaussian = (
        reference.run_reference(folder, EMBEDDED, num_workers=threads, tuned_malloc=True, mode=mode)
        for mode in ("histogram-1000", "layer-gaussian")
    )
    seconds = histogram["seconds"] + gaussian["seconds"]
    return {
        "images": gaussian["images"],
        "seconds": round(seconds, 3),
        "images_per_second": round(gaussian["images"] / seconds, 2),
        "peak_mb": max(histogram["peak_mb"], gaussian["peak_mb"]),
        "layer_gaussian_peak_mb": gaussian["peak_mb"],
    }


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_product)
    parser = argparse.ArgumentParser(description="one pass beside the reference's several")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    folder, threads = arguments.folder.resolve(strict=True), arguments.threads
    files = sorted(path for path in folder.iterdir() if path.is_file())
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        quarter = Path(scratch, "quarter")
        quarter.mkdir()
        for path in files[::4]:
            (quarter / path.name).symlink_to(path)
        for name, place in (("quarter", quarter), ("whole", folder)):
            for kept in (False, True):
                row = run_product(place, threads, layer_gaussian=kept)
                rows[f"{name}/{'all' if kept else 'without layer Gaussians'}"] = row
            rows[f"{name}/reference"] = run_reference(place, threads)
    ours, without, theirs = (
        rows[f"whole/{name}"] for name in ("all", "without layer Gaussians", "reference")
    )
    growth = {
        name: rows[f"whole/{name}"]["peak_mb"] - rows[f"quarter/{name}"]["peak_mb"]
        for name in ("all", "reference")
    }
    ratio = ours["images_per_second"] / theirs["images_per_second"]
    cost = 1 - ours["images_per_second"] / without["images_per_second"]
    measure.emit(
        {**rows, "ratio": round(ratio, 2), "layer_gaussian_cost": round(cost, 3), "growth": growth},
        f"{ours['images']} images, every distribution, images/s: {ours['images_per_second']} in "
        f"one pass, {theirs['images_per_second']} in the reference's two ({ratio:.2f}x); layer "
        f"Gaussians take {cost:.1%} of a build; from a quarter of the images to all, memory grew "
        f"by {growth['all']} MB, the reference's by {growth['reference']} MB",
    )


if __name__ == "__main__":
    main()
