"""Counts one shard: its images become its partial.

>>> Counter(extractor, spec, ranges).count(shard, key).dna.images        # doctest: +SKIP
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.counting.decode_ahead import Ahead
from pipeline.counting.device_counts import DeviceCounts, DeviceRanges
from pipeline.counting.extractor import Extractor
from pipeline.counting.feed import Prepared
from pipeline.counting.histogram import NONFINITE, OVERFLOW, UNDERFLOW, LayerCounts
from pipeline.counting.preparing import Fetch
from pipeline.counting.stream import Made, Stream
from pipeline.counting.top_images import TopImages
from pipeline.dna import DNA, ExemplarSettings, Failure, Floats, Ints, Moments, Partial, Ranges
from pipeline.errors import ConservationError
from pipeline.images import Loaded
from pipeline.sources import Shard
from pipeline.spec import LAYER_GAUSSIAN, PRODUCTS, Numerics, Resources, Spec

if TYPE_CHECKING:
    import torch

Means = Callable[[], Floats]
"""Gives the spatial means of a micro-batch, and waits for them if they are on their way."""

Counted = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]
"""A table (neurons, bins + 3) as `LayerCounts` has it, minimum and maximum (neurons,)."""


class Counter:
    """Holds an extractor, ranges and threads; several shards may be counted at a time."""

    def __init__(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        resources: Resources | None = None,
        products: Sequence[str] = PRODUCTS,
        ahead: Ahead | None = None,
    ):
        self._extractor = extractor
        self._spec = spec
        self._ranges = ranges
        self._products = products
        self._stream = Stream(extractor, spec.preprocess, resources, ahead)
        self._on_gpu: DeviceRanges | None = None
        if extractor.on_device:
            low, high = ranges.low, ranges.high
            self._on_gpu = DeviceRanges.on(extractor.device, low, high, spec.bins)

    def count(
        self, shard: Shard, key: str, fetch: Fetch | None = None, *, isolated: bool = False
    ) -> Partial:
        """Counts a shard, and checks the sum.

        Args:
            shard: The shard.
            key: The shard's key, which the partial states.
            fetch: Reads a member; None reads it from its store.
            isolated: Whether images are decoded in a process apart.

        Returns:
            The shard's partial.

        Raises:
            ConservationError: If counted and failed images are not the shard's candidates.
            TransientError: If an image could not be read through no fault of its own.
            SourceError: If an image changed since it was listed.
        """
        counts = self._new_counts()
        layerwise = LAYER_GAUSSIAN in self._products
        moments = Moments([tap.neurons for tap in self._spec.taps], layerwise=layerwise)
        names = [(entry.uri, entry.member) for entry in shard.members]
        settings = ExemplarSettings.from_products(self._products)
        reactions = TopImages(settings, self._spec, _order(names)) if settings else None
        failures: list[Failure] = []

        noted = Noted()

        def observe(pixels: Prepared) -> Means:
            return counts.count(self._extractor, pixels)

        stream = self._stream.observed(shard, observe, fetch, noted.add, isolated=isolated)
        with closing(stream) as observed:
            for found in observed:
                if isinstance(found, Failure):
                    failures.append(found)
                    continue
                images, computed = found
                means = computed()
                moments.add(means)
                if reactions:
                    reactions.add(means, np.array(images))
        dna = dna_of_counts(
            self._spec,
            self._ranges,
            self._extractor.numerics,
            counts.read(),
            moments,
            noted,
            len(failures),
        )
        exemplars = reactions.named(names) if reactions else None
        partial = Partial(dna, (key,), tuple(sorted(failures)), exemplars)
        partial.dna.check(f"shard {shard.index}")
        if partial.candidates != len(shard.members):
            raise ConservationError(
                f"shard {shard.index}: {partial.dna.images} counted and {len(failures)} failed of "
                f"{len(shard.members)} candidates"
            )
        return partial

    def make(self, shard: Shard, key: str, *, isolated: bool) -> Made:
        """Counts a shard and encodes its partial, for a worker to commit; see `count`.

        Returns:
            The file, and how many images are in it.
        """
        partial = self.count(shard, key, isolated=isolated)
        return Made(partial.encode(), partial.dna.images, len(partial.failures))

    def close(self) -> None:
        """Ends the threads."""
        self._stream.close()

    def _new_counts(self) -> CpuCounts | GpuCounts:
        if self._on_gpu is None:
            return CpuCounts(self._spec, self._ranges)
        return GpuCounts(self._spec, self._on_gpu)


def dna_of_counts(
    spec: Spec,
    ranges: Ranges,
    numerics: Numerics,
    counted: Counted,
    moments: Moments,
    noted: Noted,
    failed: int,
) -> DNA:
    """Makes the DNA of what was counted.

    Args:
        spec: What was counted.
        ranges: The ranges that the spec names.
        numerics: How the network was computed.
        counted: The table, minima and maxima.
        moments: The Gaussians of the same images.
        noted: What was noted of them.
        failed: How many images could not be read.

    Returns:
        The DNA.
    """
    table, minimum, maximum = counted
    bins = spec.bins
    outside = {"underflow": UNDERFLOW, "overflow": OVERFLOW, "nonfinite": NONFINITE}
    ints: dict[str, Any] = {name: table[:, bins + at].copy() for name, at in outside.items()}
    return replace(
        DNA.empty(spec, ranges),
        images=moments.images,
        failed=failed,
        transparent=noted.transparent,
        single_colour=noted.single_colour,
        counts=np.ascontiguousarray(table[:, :bins]),
        **ints,
        # Adding zero makes -0.0 into 0.0: which a minimum keeps is a matter of order.
        min=minimum + np.float32(0),
        max=maximum + np.float32(0),
        mean=moments.mean,
        m2=moments.m2,
        scatter=moments.scatter,
        numerics=((numerics, moments.images),) if moments.images else (),
    )


def _order(names: Sequence[tuple[str, str]]) -> Ints:
    """Returns the place of each name among all names sorted."""
    order = np.empty(len(names), np.int64)
    order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return order


@dataclass
class Noted:
    """How many of the images that were read are transparent, and how many of one colour."""

    transparent: int = 0
    single_colour: int = 0

    def add(self, image: Loaded) -> None:
        """Takes in an image."""
        self.transparent += image.transparent
        self.single_colour += image.single_colour


class CpuCounts:
    """Counts the activations of a shard on a CPU, each thread in tables of its own."""

    def __init__(self, spec: Spec, ranges: Ranges) -> None:
        self._spec = spec
        self._ranges = ranges
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[list[LayerCounts]] = []

    def count(self, extractor: Extractor, pixels: Prepared) -> Means:
        """Counts the activations of a micro-batch.

        Args:
            extractor: The network.
            pixels: Normalised images.

        Returns:
            Gives the spatial means, float64 (B, neurons).
        """
        slices = self._spec.slices
        means = np.empty((len(pixels), self._spec.neurons))
        layers = self._of_this_thread()

        def visit(index: int, x: torch.Tensor) -> None:
            means[:, slices[index]] = layers[index].add(x.numpy())

        extractor.observe(pixels, visit)
        return lambda: means

    def read(self) -> Counted:
        """Returns what all threads have counted; none may be counting any more."""
        first, *others = self._all or [self._new()]
        for mine in others:
            for layer, other in zip(first, mine, strict=True):
                layer.merge(other)
        return (
            np.concatenate([layer.table for layer in first]),
            np.concatenate([layer.minimum for layer in first]),
            np.concatenate([layer.maximum for layer in first]),
        )

    def _of_this_thread(self) -> list[LayerCounts]:
        mine: list[LayerCounts] | None = getattr(self._local, "counts", None)
        if mine is None:
            mine = self._local.counts = self._new()
            with self._lock:
                self._all.append(mine)
        return mine

    def _new(self) -> list[LayerCounts]:
        low, high, bins = self._ranges.low, self._ranges.high, self._spec.bins
        return [LayerCounts(low[s], high[s], bins) for s in self._spec.slices]


class GpuCounts:
    """Counts the activations of a shard on the GPU that computes them; see `DeviceCounts`."""

    def __init__(self, spec: Spec, ranges: DeviceRanges) -> None:
        self._spec = spec
        self._counts = DeviceCounts(ranges, spec.bins)

    def count(self, extractor: Extractor, pixels: Prepared) -> Means:
        """Sends a micro-batch to the GPU, and does not wait until it is counted.

        Args:
            extractor: The network.
            pixels: Normalised images.

        Returns:
            Waits for the spatial means, float64 (B, neurons), and gives them.
        """
        import torch

        slices = self._spec.slices
        shape = (len(pixels), self._spec.neurons)
        means = torch.empty(shape, dtype=torch.float64, device=extractor.device)

        def visit(index: int, x: torch.Tensor) -> None:
            self._counts.add(x, slices[index], means[:, slices[index]])

        extractor.observe(pixels, visit)
        return _on_the_way_to_the_host(means)

    def read(self) -> Counted:
        """Waits for the GPU, and returns what it has counted."""
        return self._counts.read()


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
