"""The forward pass alone, on random pixels: a build cannot be faster than this.

    python -m benchmarks.forward_only [--threads 2] [--seconds 10] [--micro-batch 8]

There are four rows, three of them in bf16. The first is the product's extractor: T threads pass
micro-batches, each with one intra-op thread, under the tuned allocator that its workers run
with. The second is the same under glibc's default allocator. The third is what one would write
without the product: timm's network, batch 32, T intra-op threads, default allocator. The last, in
float32, is the product's by OpenVINO (`--backend openvino` of a build).
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import measure

MICRO_BATCH = 8
PLAIN_BATCH = 32

Forward = Callable[[], object]


def _product(
    precision: str,
    backend: str,
    threads: int,
    extractor: str,
    weights: str | None,
    micro_batch: int,
) -> Forward:
    """One micro-batch through the product's extractor. The only place that knows its interface."""
    from pipeline.counting import Extractor
    from pipeline.networks import describe

    network = describe(extractor, weights)
    loaded = Extractor(
        network, precision, backend=backend, threads=threads, micro_batch=micro_batch
    )
    shape = (micro_batch, network.height, network.width, 3)
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    return lambda: loaded.observe(pixels, lambda index, activations: None)


def _plain(threads: int) -> Forward:
    """One batch through timm's network as it is, on all threads."""
    import torch

    from benchmarks.reference import lite0

    torch.set_num_threads(threads)
    model, _ = lite0()
    pixels = torch.randn(PLAIN_BATCH, 3, 224, 224)

    def forward() -> object:
        with torch.no_grad():
            return model.forward_features(pixels)

    return forward


def _rate(forward: Forward, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Images per second of `threads` callers at once, after one call each to warm up."""
    ready = threading.Barrier(threads + 1)
    calls = [0] * threads
    ends = [0.0] * threads

    def caller(number: int) -> None:
        forward()
        ready.wait()
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            forward()
            calls[number] += 1
        ends[number] = time.perf_counter()

    pool = [threading.Thread(target=caller, args=(number,)) for number in range(threads)]
    for thread in pool:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in pool:
        thread.join()
    images = sum(calls) * batch
    elapsed = max(ends) - start
    return {
        "images": images,
        "seconds": round(elapsed, 3),
        "images_per_second": round(images / elapsed, 1),
    }


def _child(
    which: str,
    threads: int,
    seconds: float,
    precision: str = "fp32",
    backend: str = "torch",
    extractor: str = "efficientnet_lite0",
    weights: str | None = None,
    micro_batch: int = MICRO_BATCH,
) -> dict[str, Any]:
    if which == "plain":
        return _rate(_plain(threads), PLAIN_BATCH, 1, seconds)
    forward = _product(precision, backend, threads, extractor, weights, micro_batch)
    return _rate(forward, micro_batch, threads, seconds)


def forward_only(
    threads: int,
    seconds: float = 10,
    precision: str = "fp32",
    tuned_malloc: bool = True,
    backend: str = "torch",
    extractor: str = "efficientnet_lite0",
    weights: str | None = None,
    micro_batch: int = MICRO_BATCH,
) -> dict[str, Any]:
    """The product's forward pass in a fresh process: images_per_second, peak_mb, ..."""
    settings = {"which": "product", "threads": threads, "seconds": seconds, "precision": precision}
    settings |= {"backend": backend, "extractor": extractor, "weights": weights}
    settings |= {"micro_batch": micro_batch}
    return measure.run("benchmarks.forward_only", settings, tuned_malloc=tuned_malloc)


def plain_timm(threads: int, seconds: float = 10) -> dict[str, Any]:
    """The same network straight from timm, in a fresh process, default allocator."""
    settings = {"which": "plain", "threads": threads, "seconds": seconds}
    return measure.run("benchmarks.forward_only", settings, tuned_malloc=False)


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_child)
    parser = argparse.ArgumentParser(description="time the forward pass alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--micro-batch", type=int, default=MICRO_BATCH)
    arguments = parser.parse_args()
    threads, seconds, precision = arguments.threads, arguments.seconds, arguments.precision
    many = arguments.micro_batch
    rows = {
        "product": forward_only(threads, seconds, precision, micro_batch=many),
        "product_default_malloc": forward_only(
            threads, seconds, precision, tuned_malloc=False, micro_batch=many
        ),
        "plain_timm": plain_timm(threads, seconds),
    }
    if precision == "fp32":
        rows["product_openvino"] = forward_only(
            threads, seconds, backend="openvino", micro_batch=many
        )
    rates = {name: row["images_per_second"] for name, row in rows.items()}
    ratios = {
        name: round(rate / rates["plain_timm"], 2)
        for name, rate in rates.items()
        if name != "plain_timm"
    }
    measure.emit(
        {**rows, "threads": threads, "precision": precision, "ratio": ratios},
        f"forward, {threads} threads, {precision}, images/s: plain timm {rates['plain_timm']}; "
        + ", ".join(f"{name} {rates[name]} ({ratio}x)" for name, ratio in ratios.items()),
    )


if __name__ == "__main__":
    main()
