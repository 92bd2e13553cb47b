"""Counts the activations of images where the network runs: in tables on the CPU, or on a GPU.

>>> one, other = CpuCounts(spec, ranges), CpuCounts(spec, ranges)             # doctest: +SKIP
>>> parts = [(one, slice(0, 3)), (other, slice(3, 8))]
>>> means = count_batch(extractor, spec, pixels, parts)()              # (images, neurons)
>>> table, minimum, maximum = one.sent()()
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pipeline.counting.device_counts import DeviceCounts, DeviceRanges
from pipeline.counting.device_order import Order, order_of
from pipeline.counting.extractor import Extractor
from pipeline.counting.feed import Prepared
from pipeline.counting.histogram import Counted, LayerCounts, sum_of_threads
from pipeline.dna import Floats, Ranges
from pipeline.spec import Spec

if TYPE_CHECKING:
    import torch

Means = Callable[[], Floats]
"""Gives the spatial means of a micro-batch, and waits for them if they are on their way."""

Adder: TypeAlias = "Callable[[int, torch.Tensor, Any], None]"
"""Is given the index of a tap, its activations of some images, (B, positions, neurons), and float64
(B, neurons) that their spatial means are written to, where the network runs."""

Counts: TypeAlias = "CpuCounts | GpuCounts"


def count_batch(
    extractor: Extractor, spec: Spec, pixels: Prepared, parts: Sequence[tuple[Counts, slice]]
) -> Means:
    """Counts the activations of a micro-batch. A GPU is sent it, and is not waited for.

    Args:
        extractor: The network.
        spec: What is counted.
        pixels: Normalised images.
        parts: Which of the images are counted where: each image is in one part.

    Returns:
        Gives the spatial means, float64 (B, neurons).
    """
    slices, shape = spec.slices, (len(pixels), spec.neurons)
    means: Any
    if extractor.on_device:
        import torch

        means = torch.empty(shape, dtype=torch.float64, device=extractor.device)
    else:
        means = np.empty(shape)
    adders = [(counts.adder(), images) for counts, images in parts]

    def visit(index: int, x: torch.Tensor) -> None:
        for add, images in adders:
            add(index, x[images], means[images, slices[index]])

    extractor.observe(pixels, visit)
    return _on_the_way_to_the_host(means) if extractor.on_device else lambda: means


class CpuCounts:
    """Counts activations on a CPU, each thread in tables of its own."""

    def __init__(self, spec: Spec, ranges: Ranges) -> None:
        self._spec = spec
        self._ranges = ranges
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[list[LayerCounts]] = []

    def adder(self) -> Adder:
        """Returns what counts in the tables of this thread; another one may call it."""
        layers = self._of_this_thread()

        def add(index: int, x: torch.Tensor, means: Floats) -> None:
            means[:] = layers[index].add(x.numpy())

        return add

    def sent(self) -> Callable[[], Counted]:
        """Returns what adds up the tables of all threads; none may be counting any more."""
        return self.read

    def read(self) -> Counted:
        """Returns what all threads have counted; none may be counting any more."""
        return sum_of_threads(self._all or [self._new()])

    def _of_this_thread(self) -> list[LayerCounts]:
        """Returns the counts of each layer, in this thread's tables."""
        layers: list[LayerCounts] | None = getattr(self._local, "layers", None)
        if layers is None:
            layers = self._local.layers = self._new()
            with self._lock:
                self._all.append(layers)
        return layers

    def _new(self) -> list[LayerCounts]:
        low, high, bins = self._ranges.low, self._ranges.high, self._spec.bins
        return [LayerCounts(low[layer], high[layer], bins) for layer in self._spec.slices]


class GpuCounts:
    """Counts activations on the GPU that computes them; see `DeviceCounts`."""

    def __init__(self, spec: Spec, ranges: DeviceRanges, order: Order | None = None) -> None:
        """Starts at zero.

        Args:
            spec: What is counted.
            ranges: The ranges that the spec names, on the device.
            order: How tables are copied to the host; None makes an order.
        """
        self._slices = spec.slices
        self._counts = DeviceCounts(ranges, spec.bins)
        self._order = order or order_of(ranges.least.device)

    def adder(self) -> Adder:
        """Returns what sends activations to be counted, and does not wait until they are."""

        def add(index: int, x: torch.Tensor, means: torch.Tensor) -> None:
            self._counts.add(x, self._slices[index], means)

        return add

    def sent(self) -> Callable[[], Counted]:
        """Starts to copy what the GPU has counted, while it goes on; see `DeviceCounts.sent`."""
        return self._counts.sent(self._order)


def _on_the_way_to_the_host(means: torch.Tensor) -> Means:
    """Starts a copy of a GPU's tensor; returns what waits for it."""
    import torch

    if means.device.type == "cpu":
        return means.numpy
    host = torch.empty(means.shape, dtype=means.dtype, pin_memory=True)
    host.copy_(means, non_blocking=True)
    # While a thread waits, others have its core.
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no type
    copied.record()

    def wait() -> Floats:
        copied.synchronize()
        return host.numpy()

    return wait
