"""Makes the workers of a Ray that declares GPUs compute on the CPU, as they would on a GPU.

Ray calls `install` in each of its processes that starts.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any


def seconds() -> float:
    """Returns how long a micro-batch takes. A file may say so, which a test writes anew."""
    if pace := os.environ.get("GPU_PACE"):
        return float(Path(pace).read_text())
    return float(os.environ["SLOW_GPU"])


def install() -> None:
    """Replaces the GPU, and has a worker look after each micro-batch, always hungry."""
    from pipeline.counting import decode_ahead, decode_choice, worker
    from pipeline.counting.extractor import Extractor
    from pipeline.counting.faults import NO_GPU
    from pipeline.counting.shard import Counter
    from pipeline.engine.ray_nodes import RayHome
    from pipeline.errors import UsageError
    from tests.support import tiny_network
    from tests.support.gpu_clock import GpuClock

    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    real, make = Extractor.observe, Counter.make
    has_shard = threading.Event()
    place = os.environ.get("GPU_CLOCK")  # of a test that says how the time passes
    clock = GpuClock(Path(place)) if place else None

    def wait(began: float) -> None:
        while time.monotonic() - began < seconds():
            time.sleep(0.05)

    def slow(*given: Any) -> None:
        # A worker that loads its network shows it an empty image first: that takes a GPU no time.
        if has_shard.is_set() and clock:
            clock.work(RayHome("").node, seconds())
        elif has_shard.is_set():
            wait(time.monotonic())
        real(*given)

    def noted(counter: Counter, shard: Any, key: str, **how: Any) -> Any:
        has_shard.set()
        if clock:
            clock.begin(RayHome("").node)
        if log := os.environ.get("SHARD_LOG"):
            with open(log, "a") as begun:  # which shards a worker begins
                begun.write(f"{key}\n")
        return make(counter, shard, key, **how)

    Counter.make = noted  # type: ignore[method-assign]  # to see that a shard begins
    if os.environ.get("BROKEN_GPU"):  # of this node
        Extractor.observe = broken  # type: ignore[method-assign]  # the fault
    elif os.environ.get("SLOW_GPU"):
        Extractor.observe = slow  # type: ignore[method-assign]  # leaves shards for the other

    def on_the_cpu(network: Any, precision: Any, device: str, *rest: Any, **how: Any) -> Extractor:
        assert device == "cuda"
        if os.environ.get("NO_GPU"):  # the driver of this node is broken
            raise UsageError(NO_GPU)
        return Extractor(network, precision, "cpu", *rest, on_device=True, **how)

    worker.Extractor = on_the_cpu  # type: ignore[assignment,misc]  # a function in its place
    decode_ahead.REVIEW_SECONDS = 0
    decode_ahead.REVIEW_BATCHES = 1
    decode_choice.HUNGRY = -1
    tiny_network.register()
