"""Counts one shard: its images become its partial.

>>> Counter(extractor, spec, ranges).count(shard, key).dna.images        # doctest: +SKIP
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.counting.extractor import Extractor
from pipeline.counting.histogram import NONFINITE, OVERFLOW, UNDERFLOW, LayerCounts, count_torch
from pipeline.counting.stream import Fetch, Made, Prepared, Stream
from pipeline.counting.top_images import TopImages
from pipeline.dna import DNA, ExemplarSettings, Failure, Floats, Ints, Moments, Partial, Ranges
from pipeline.errors import ConservationError
from pipeline.sources import Shard
from pipeline.spec import LAYER_GAUSSIAN, PRODUCTS, Numerics, Resources, Spec

if TYPE_CHECKING:
    import torch


class Counter:
    """Holds an extractor, ranges and threads; several shards may be counted at a time."""

    def __init__(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        resources: Resources | None = None,
        products: Sequence[str] = PRODUCTS,
    ):
        self._extractor = extractor
        self._spec = spec
        self._ranges = ranges
        self._products = products
        self._stream = Stream(extractor, spec.preprocess, resources)

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
        tally = _Tally(self._spec, self._ranges, layerwise=LAYER_GAUSSIAN in self._products)
        names = [(entry.uri, entry.member) for entry in shard.members]
        settings = ExemplarSettings.from_products(self._products)
        reactions = TopImages(settings, self._spec, _order(names)) if settings else None
        failures: list[Failure] = []

        def observe(pixels: Prepared) -> Floats:
            return self._observe(pixels, tally)

        with closing(self._stream.observed(shard, observe, fetch, isolated=isolated)) as observed:
            for found in observed:
                if isinstance(found, Failure):
                    failures.append(found)
                    continue
                images, means = found
                tally.moments.add(means)
                if reactions:
                    reactions.add(means, np.array(images))
        dna = tally.dna(self._extractor.numerics, len(failures))
        exemplars = reactions.named(settings, self._spec, names) if settings and reactions else None
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

    def _observe(self, pixels: NDArray[np.float32], tally: _Tally) -> Floats:
        """Returns the spatial means (B, neurons) of a micro-batch, and counts its activations."""
        means = np.empty((len(pixels), self._spec.neurons))
        counts = tally.of_this_thread()

        def visit(index: int, x: torch.Tensor) -> None:
            means[:, tally.slices[index]] = counts[index].add(x)

        self._extractor.observe(pixels, visit)
        return means


def _order(names: Sequence[tuple[str, str]]) -> Ints:
    """Returns the place of each name among all names sorted."""
    order = np.empty(len(names), np.int64)
    order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return order


class _Tally:
    """What one shard has counted: integers for each thread, means in the order of the images."""

    def __init__(self, spec: Spec, ranges: Ranges, *, layerwise: bool) -> None:
        self._spec = spec
        self._ranges = ranges
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[list[_LayerTally]] = []
        self.moments = Moments([tap.neurons for tap in spec.taps], layerwise=layerwise)
        self.slices = spec.slices

    def of_this_thread(self) -> list[_LayerTally]:
        mine: list[_LayerTally] | None = getattr(self._local, "counts", None)
        if mine is None:
            mine = self._local.counts = self._new()
            with self._lock:
                self._all.append(mine)
        return mine

    def _new(self) -> list[_LayerTally]:
        return [
            _LayerTally(self._ranges.low[s], self._ranges.high[s], self._spec.bins)
            for s in self.slices
        ]

    def dna(self, numerics: Numerics, failed: int) -> DNA:
        first, *others = self._all or [self._new()]
        for mine in others:
            for layer, other in zip(first, mine, strict=True):
                layer.counts.merge(other.counts)
        layers = [layer.counts for layer in first]
        table = np.concatenate([layer.table for layer in layers])
        bins = self._spec.bins
        outside = {"underflow": UNDERFLOW, "overflow": OVERFLOW, "nonfinite": NONFINITE}
        ints: dict[str, Any] = {name: table[:, bins + at].copy() for name, at in outside.items()}
        return replace(
            DNA.empty(self._spec, self._ranges),
            images=self.moments.images,
            failed=failed,
            counts=np.ascontiguousarray(table[:, :bins]),
            **ints,
            # Adding zero makes -0.0 into 0.0: which a minimum keeps is a matter of order.
            min=np.concatenate([layer.minimum for layer in layers]) + np.float32(0),
            max=np.concatenate([layer.maximum for layer in layers]) + np.float32(0),
            mean=self.moments.mean,
            m2=self.moments.m2,
            scatter=self.moments.scatter,
            numerics=((numerics, self.moments.images),) if self.moments.images else (),
        )


class _LayerTally:
    """Counts one layer for one thread, by the kernel of the device that holds the activations."""

    def __init__(self, low: Floats, high: Floats, bins: int) -> None:
        self.counts = LayerCounts(low, high, bins)

    def add(self, x: torch.Tensor) -> Floats:
        if x.device.type == "cpu":
            return self.counts.add(x.numpy())
        table, low, high, means = count_torch(
            x, self.counts.low, self.counts.high, self.counts.bins
        )
        self.counts.add_counted(table.cpu().numpy(), low.cpu().numpy(), high.cpu().numpy())
        return means.cpu().numpy()
