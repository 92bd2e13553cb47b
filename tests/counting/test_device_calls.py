"""Tests how many calls a micro-batch takes where a GPU computes: so many may be started a second.

Python takes some microseconds to start each kernel and copy, and a large GPU takes a micro-batch of
64 images in as little as ten milliseconds. No GPU runs here: the calls that torch is given are
counted on a CPU, and those of the Triton kernel by a stand-in. Those of the network are replayed by
one call (`test_forward_graph`), and are left out.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.building import Request, make_spec
from pipeline.counting import DeviceRanges, Extractor, device_counts, histogram_kernel
from pipeline.counting.activation_counts import GpuCounts, count_batch
from pipeline.counting.forward_graph import Taps
from pipeline.images.sending import sent
from pipeline.networks import describe

RESIZING = 8
"""Calls for an image that the GPU resizes: to float32, less mid-grey, two products, the clamp, plus
mid-grey, a copy in rows of columns, and its place in the micro-batch."""

EACH = 6
"""Calls for a micro-batch: it travels, is scaled and shifted, and is copied into the graph's batch,
whose rest is set to zero; then the graph is replayed. On a GPU its means travel back, too."""


class Calls(TorchDispatchMode):
    """Counts what torch is given to do, but for memory and views of it: no device hears of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tally[str] = Tally()
        self.replaying = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        aliases = [each.alias_info for each in func._schema.returns if each.alias_info is not None]
        is_view = any(not alias.is_write for alias in aliases)
        name = func.overloadpacket.__name__
        if not self.replaying and not is_view and name not in ("empty", "_unsafe_view"):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))

    def record(self, work: Callable[[], Taps]) -> tuple[Taps, Callable[[], None]]:
        """Records as `Recorder` says; a replay is one call."""
        taps = work()

        def replay() -> None:
            self.seen["replay"] += 1
            self.replaying = True
            for static, found in zip(taps, work(), strict=True):
                static.copy_(found)
            self.replaying = False

        return taps, replay

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """Stands in for the kernel: `count_activations[grid](...)` launches it."""
        self.seen["launch"] += 1
        return lambda *_, **__: None


def test_a_micro_batch_takes_one_launch_a_tap_and_a_few_calls_an_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, network = Calls(), describe("efficientnet_lite0")
    monkeypatch.setattr(histogram_kernel, "count_activations", calls)
    monkeypatch.setattr(device_counts, "default_kernel", lambda device: "triton")
    extractor = Extractor(network, on_device=True, micro_batch=4, recorder=calls)
    spec = make_spec(Request("x", "x", bins=1000), network, "0" * 32, "cuda")
    ranges = DeviceRanges.on("cpu", np.zeros(spec.neurons), np.ones(spec.neurons), 1000)
    counts, feed = GpuCounts(spec, ranges), extractor.batches(spec.preprocess)

    def taken(*sizes: tuple[int, int]) -> Tally[str]:
        levels = [sent(np.zeros((*size, 3), np.uint8), spec.preprocess) for size in sizes]
        feed(levels)  # makes matrices and memory, which are kept
        calls.seen.clear()
        with calls:
            count_batch(extractor, spec, feed(levels), [(counts, slice(None))])
        assert calls.seen.pop("launch") == len(spec.taps)
        return calls.seen.copy()

    whole = (network.height, network.width)
    of_one, of_three = taken(whole), taken(whole, whole, whole)
    assert of_one.total() == EACH + 1
    assert of_three.total() == EACH + 3  # each is put in its place
    resized = taken((400, 500), (300, 500), whole)
    assert resized.total() == EACH + 2 * RESIZING + 1
    assert "_local_scalar_dense" not in of_one + of_three + resized  # reads a value of the device
