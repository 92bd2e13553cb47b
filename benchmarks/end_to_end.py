"""One folder of images to one DNA: the product beside the reference, and whether they agree.

    python -m benchmarks.end_to_end FOLDER [--ranges FILE] [--precision bf16] [--threads 2]
                                           [--micro-batch 8]
    python -m benchmarks.end_to_end FOLDER --extractor timm:vit_base_patch16_224

Another network than the embedded one has random weights, unless `--weights` names a folder of
safetensors, and its ranges are those of some of the images. All use the same images, network, taps,
ranges, bins and resizing, each in a fresh process. Rows:

    forward     the network's forward pass alone, on random pixels: the ceiling
    make_dna    in process, after one image to warm up, which leaves the network loaded
    forward_openvino, make_dna_openvino
                the same two with OpenVINO in place of torch, in float32
    build       the whole command `vdna build` on Ray, by torch, from start to exit, with catalogue
    build_openvino
                the same with OpenVINO, in float32
    reference   vdna 0.1.1's make_vdna, after one image to warm up; without building the network,
                under glibc's default allocator and under a tuned one
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, reference
from benchmarks.forward_only import MICRO_BATCH, forward_only

EXTRACTOR = "efficientnet_lite0"

RANGED = 64
"""How many images give another network its ranges."""

EMBEDDED = measure.ROOT / "pipeline/networks/assets/efficientnet_lite0.ranges.parquet"


def _product(
    folder: str,
    ranges: str,
    threads: int,
    precision: str,
    histograms: str,
    backend: str,
    micro_batch: int,
    network: dict[str, Any],
) -> dict[str, Any]:
    """The product's in-process build. The only place that knows its interface."""
    from pipeline.building import make_dna

    def make(limit: int | None) -> Any:
        return make_dna(
            folder,
            ranges=ranges,
            threads=threads,
            precision=precision,
            limit=limit,
            backend=backend,
            micro_batch=micro_batch,
            **network,
        )

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
    backend: str = "torch",
    network: Mapping[str, Any] | None = None,
    micro_batch: int = MICRO_BATCH,
) -> dict[str, Any]:
    """One DNA of a folder, in process, in a fresh one; see `reference.run_reference`.

    `histograms`: where to save the counts, clamped into the end bins as the reference does.
    """
    settings = {
        "folder": str(folder.resolve()),
        "ranges": str(ranges.resolve()),
        "threads": threads,
        "precision": precision,
        "histograms": str(histograms.resolve()),
        "backend": backend,
        "micro_batch": micro_batch,
        "network": dict(network or {}),
    }
    return measure.run("benchmarks.end_to_end", settings, tuned_malloc=False)


def run_build(
    folder: Path,
    ranges: Path,
    catalogue: Path,
    precision: str,
    network: Mapping[str, Any] | None = None,
    backend: str = "torch",
    micro_batch: int = MICRO_BATCH,
) -> dict[str, Any]:
    """The command, timed from start to exit."""
    command = [sys.executable, "-m", "jobs.build", "images", str(folder), "-c", str(catalogue)]
    command += ["--ranges", str(ranges), "--precision", precision, "--json", "--backend", backend]
    command += ["--micro-batch", str(micro_batch)]
    command += [word for name, value in (network or {}).items() for word in (f"--{name}", value)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    images = json.loads(done.stdout)["images"]
    return {
        "images": images,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 2),
    }


def other_network(
    name: str, folder: Path | None, scratch: Path, files: Sequence[Path]
) -> tuple[dict[str, str], dict[str, Any], Path]:
    """Prepares another network than the embedded one.

    Returns its options for the product, what the reference needs of it, and its file of ranges.
    """
    from benchmarks.backends import batches, described, measured_ranges
    from pipeline.counting import Extractor
    from pipeline.networks import encode_ranges
    from pipeline.spec import Preprocess

    network, _ = described(name, folder, scratch, files)
    rule = Preprocess(network.height, network.width, network.mean, network.std)
    extractor = Extractor(network)
    shape = [(tap.name, tap.neurons) for tap in network.taps]
    found = measured_ranges(extractor, batches(files[:RANGED], rule, 8), shape)
    ranges = scratch / "ranges.parquet"
    ranges.write_bytes(encode_ranges(found, network, images=RANGED))
    weights = str(Path((network.weights_uri or "").removeprefix("file://")))
    tapped = {
        "timm": name.removeprefix("timm:"),
        "weights": weights,
        "taps": list(network.observed),
        "mean": network.mean,
        "std": network.std,
    }
    return {"extractor": name, "weights": weights}, tapped, ranges


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_product)
    parser = argparse.ArgumentParser(description="the product beside the reference, vdna 0.1.1")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranges", type=Path, default=EMBEDDED)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--seconds", type=float, default=10, help="of the forward pass alone")
    parser.add_argument("--rounds", type=int, default=1, help="take turns; the best of each counts")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has vdna")
    parser.add_argument("--extractor", default=EXTRACTOR)
    parser.add_argument("--weights", type=Path, help="a folder with files of safetensors")
    parser.add_argument("--micro-batch", type=int, default=MICRO_BATCH)
    arguments = parser.parse_args()
    many = arguments.micro_batch
    folder, ranges = arguments.folder.resolve(strict=True), arguments.ranges
    threads, precision, seconds = arguments.threads, arguments.precision, arguments.seconds
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        network: dict[str, str] = {}
        tapped: dict[str, Any] | None = None
        if arguments.extractor != EXTRACTOR:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            network, tapped, ranges = other_network(
                arguments.extractor, arguments.weights, Path(scratch), files
            )
        ours = {name: Path(scratch, f"{name}.npz") for name in ("torch", "openvino")}
        theirs = Path(scratch, "reference.npz")
        for turn in range(arguments.rounds):
            place = Path(scratch, f"catalogue-{turn}")
            found: dict[str, dict[str, Any]] = {}
            for backend, end in (("torch", ""), ("openvino", "_openvino")):
                if backend == "openvino" and precision != "fp32":
                    continue
                found |= {
                    f"forward{end}": forward_only(
                        threads, seconds, precision, backend=backend, micro_batch=many, **network
                    ),
                    f"make_dna{end}": run_product(
                        *(folder, ranges, ours[backend], threads, precision, backend),
                        network=network,
                        micro_batch=many,
                    ),
                    f"build{end}": run_build(
                        *(folder, ranges, place / backend, precision, network),
                        backend=backend,
                        micro_batch=many,
                    ),
                }
            for name, tuned in (("reference", False), ("reference_tuned_malloc", True)):
                found[name] = reference.run_reference(
                    folder,
                    ranges,
                    num_workers=threads,
                    tuned_malloc=tuned,
                    histograms=theirs,
                    python=arguments.python,
                    network=tapped,
                )
            for name, row in found.items():
                rows[name] = max(rows.get(name, row), row, key=lambda e: e["images_per_second"])
        with np.load(ours["torch"]) as a, np.load(theirs) as b:
            agreement = reference.agreement(a, b)
            if precision == "fp32":
                with np.load(ours["openvino"]) as other:
                    rows["make_dna_openvino"]["agreement"] = reference.agreement(other, a)
    rates = {name: row["images_per_second"] for name, row in rows.items()}
    ratios = {
        f"{mine}/{other}": round(rates[mine] / rates[other], 2)
        for mine in ("build", "build_openvino", "make_dna", "make_dna_openvino")
        for other in ("forward", "reference", "reference_tuned_malloc")
        if mine in rates
    }
    if "make_dna_openvino" in rates:
        share = rates["make_dna_openvino"] / rates["forward_openvino"]
        ratios["make_dna_openvino/forward_openvino"] = round(share, 2)
    measure.emit(
        {**rows, "precision": precision, "ratio": ratios, "agreement": agreement},
        f"{rows['build']['images']} images, {precision}, images/s: "
        + ", ".join(f"{name} {rate}" for name, rate in rates.items())
        + "; "
        + ", ".join(f"{name} {ratio}x" for name, ratio in ratios.items())
        + f"; {agreement['moved']:.1e} of activations in another bin, "
        f"EMD {agreement['emd_mean']:.1e} bins",
    )


if __name__ == "__main__":
    main()
