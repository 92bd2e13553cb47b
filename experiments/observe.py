"""Observes images one by one: each image's own DNA, on a coarser grid, and its pooled features.

    seen = Observer().see([lambda: pixels, ...])
    seen.curves, seen.means                # (images, neurons, POINTS), (images, neurons)

Experiments draw many sets from the same images. The DNA of a set is the mean of its images' curves,
and its pooled features are the mean of theirs, so no image goes through the network twice. The
distance of two sets is that of `vdna compare`, except that the cumulative distributions are read
at every tenth of 1,000 bins. Pixels, network, ranges and the counting rule are the pipeline's.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTS = 100
BINS = 1000

Array = NDArray[Any]
Picture = Callable[[], Array]
"""Gives RGB pixels (height, width, 3) uint8 where and when they are needed."""


@dataclass(frozen=True)
class Seen:
    """`curves` (images, neurons, POINTS) float32: each image's cumulative distribution of every
    neuron. `means` (images, neurons) float64: the activations, averaged over positions.
    """

    curves: Array
    means: Array


@dataclass(frozen=True)
class Layers:
    """`names` and `widths`, in neurons, of a network's layers."""

    names: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def slices(self) -> dict[str, slice]:
        ends = itertools.accumulate(self.widths)
        return {
            name: slice(end - width, end)
            for name, width, end in zip(self.names, self.widths, ends, strict=True)
        }

    def mean(self, each: Array) -> Array:
        """(..., neurons) -> (..., layers + 1): the mean of each layer's neurons, and of all."""
        starts = np.cumsum((0, *self.widths[:-1]))
        sums = np.add.reduceat(each, starts, axis=-1)
        of_all = each.mean(axis=-1, keepdims=True)
        return np.concatenate([sums / np.array(self.widths), of_all], axis=-1)


def emd(difference: Array) -> Array:
    """(..., neurons, POINTS) of cumulative distributions -> (..., neurons): EMD in bins."""
    return np.abs(difference).sum(axis=-1) * (BINS / POINTS)


def spread(features: Array) -> Array:
    """(C,) standard deviations of (images, C), to divide by: none is under a tenth of the median.

    A feature that these images hardly show, after a ReLU often none does, would else be a thousand
    times as loud as any other in images that do show it. 1 where most features show none.
    """
    each = features.std(axis=0)
    least = np.maximum(each, 0.1 * np.median(each))
    return np.where(least > 0, least, 1.0)


class Observer:
    """A network on the CPU, with the pipeline's own rule, for pictures in memory."""

    def __init__(self, name: str = "efficientnet_lite0") -> None:
        from threadpoolctl import threadpool_limits

        from pipeline.counting import Extractor
        from pipeline.networks import describe, find_ranges
        from pipeline.spec import Preprocess

        # On busy cores, BLAS's threads wait for each other: 40 times the CPU time, measured.
        threadpool_limits(1, "blas")
        network = describe(name)
        self._extractor = Extractor(network)
        self._ranges, _ = find_ranges(network, None, {})
        self._rule = Preprocess(network.height, network.width, network.mean, network.std)
        self.layers = Layers(
            tuple(tap.name for tap in network.taps), tuple(tap.neurons for tap in network.taps)
        )
        self.positions = np.repeat(
            [tap.positions for tap in network.taps], [tap.neurons for tap in network.taps]
        )

    def see(self, pictures: Sequence[Picture], about: str = "") -> Seen:
        parts = list(self.stream(pictures, about))
        return Seen(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def stream(self, pictures: Sequence[Picture], about: str = "") -> Iterator[tuple[Array, Array]]:
        """Curves and means of a micro-batch of pictures at a time, in their order."""
        from pipeline.spec import available_cpus

        batch = self._extractor.micro_batch
        batches = [pictures[at : at + batch] for at in range(0, len(pictures), batch)]
        waiting: deque[Future[tuple[Array, Array]]] = deque()
        threads, started, done = available_cpus(), time.monotonic(), 0
        with ThreadPoolExecutor(threads, "observe") as pool:
            for following in (*batches, *[None] * (2 * threads)):
                if following:
                    waiting.append(pool.submit(self._observe, following))
                if waiting and (following is None or len(waiting) > 2 * threads):
                    found = waiting.popleft().result()
                    done += len(found[0])
                    yield found
        if about:
            rate = done / (time.monotonic() - started)
            print(f"{about}: {done} images, {rate:.0f} a second", file=sys.stderr)

    def _observe(self, pictures: Sequence[Picture]) -> tuple[Array, Array]:
        from pipeline.counting import LayerCounts
        from pipeline.images import prepare

        neurons = sum(self.layers.widths)
        curves = np.empty((len(pictures), neurons, POINTS), np.float32)
        means = np.empty((len(pictures), neurons))
        slices = list(self.layers.slices.values())

        def visit(index: int, x: Any) -> None:
            mine = slices[index]
            low, high = self._ranges.low[mine], self._ranges.high[mine]
            activations = x.numpy()
            for at in range(len(activations)):
                counts = LayerCounts(low, high, POINTS)
                means[at, mine] = counts.add(activations[at : at + 1])[0]
                table = counts.table[:, :POINTS].astype(np.float64)
                table[:, 0] += counts.table[:, POINTS]
                table[:, -1] += counts.table[:, POINTS + 1]
                curves[at, mine] = np.cumsum(table, axis=1) / activations.shape[1]

        pixels = np.stack([prepare(picture(), self._rule) for picture in pictures])
        self._extractor.observe(pixels, visit)
        return curves, means
