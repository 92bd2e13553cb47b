"""One folder of images to one DNA: the product beside the reference, and whether they agree.

    python -m benchmarks.end_to_end FOLDER [--ranges FILE] [--precision bf16] [--threads 2]

Same images, network, taps, ranges, bins and resizing. Both run in a fresh process, after one image
to warm up. The product's time includes building its network, the reference's doesn't.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, reference

EMBEDDED = measure.ROOT / "pipeline" / "assets" / "efficientnet_lite0.ranges.parquet"


def _product(
    folder: str, ranges: str, threads: int, precision: str, histograms: str
) -> dict[str, Any]:
    """The product's in-process build. The only place that knows its interface."""
    from pipeline.build import make_dna

    def make(limit: int | None) -> Any:
        return make_dna(folder, ranges=ranges, threads=threads, precision=precision, limit=limit)  # type: ignore[arg-type]

    make(1)
    start = time.perf_counter()
    dna = make(None)
    seconds = time.perf_counter() - start
    counts = dna.counts.copy()
    counts[:, 0] += dna.underflow
    counts[:, -1] += dna.overflow
    np.savez_compressed(histograms, **{layer: counts[dna.slice_of(layer)] for layer in dna.layers})
    return {
        "images": dna.images,
        "seconds": round(seconds, 3),
        "images_per_second": round(dna.images / seconds, 2),
        "threads": threads,
    }


def run_product(
    folder: Path,
    ranges: Path,
    histograms: Path,
    threads: int,
    precision: str = "fp32",
    tuned_malloc: bool = True,
) -> dict[str, Any]:
    """One DNA of a folder, by the product, in a fresh process; see `reference.run_reference`.

    `histograms`: where to save the counts, clamped into the end bins as the reference does.
    """
    settings = {
        "folder": str(folder.resolve()),
        "ranges": str(ranges.resolve()),
        "threads": threads,
        "precision": precision,
        "histograms": str(histograms.resolve()),
    }
    return measure.run("benchmarks.end_to_end", settings, tuned_malloc=tuned_malloc)


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_product)
    parser = argparse.ArgumentParser(description="the product beside the reference, vdna 0.1.1")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranges", type=Path, default=EMBEDDED)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=1, help="take turns; the best of each counts")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has vdna")
    arguments = parser.parse_args()
    folder, ranges = arguments.folder.resolve(strict=True), arguments.ranges
    threads, precision = arguments.threads, arguments.precision
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = Path(scratch, "product.npz"), Path(scratch, "reference.npz")
        for _ in range(arguments.rounds):
            found = {"product": run_product(folder, ranges, ours, threads, precision)}
            for name, tuned in (("reference", False), ("reference_tuned_malloc", True)):
                found[name] = reference.run_reference(
                    folder,
                    ranges,
                    num_workers=threads,
                    tuned_malloc=tuned,
                    histograms=theirs,
                    python=arguments.python,
                )
            for name, row in found.items():
                rows[name] = min(rows.get(name, row), row, key=lambda each: each["seconds"])
        with np.load(ours) as a, np.load(theirs) as b:
            agreement = reference.agreement(a, b)
    rates = {name: row["images_per_second"] for name, row in rows.items()}
    ratios = {name: round(rates["product"] / rates[name], 2) for name in rates if name != "product"}
    measure.emit(
        {**rows, "precision": precision, "ratio": ratios, "agreement": agreement},
        f"{rows['product']['images']} images, {precision}: {rates['product']} images/s; "
        f"vdna 0.1.1 {rates['reference']} ({ratios['reference']}x), with tuned malloc "
        f"{rates['reference_tuned_malloc']} ({ratios['reference_tuned_malloc']}x); "
        f"{agreement['moved']:.1e} of activations in another bin, "
        f"EMD {agreement['emd_mean']:.1e} bins",
    )


if __name__ == "__main__":
    main()
