"""Counts images that come in batches, each into the table of its fold.

    >>> counts = FoldCounts(extractor, spec, ranges, folds=16)       # doctest: +SKIP
    >>> means = counts.add(pixels, np.array([3, 7, 3]))              # doctest: +SKIP
    >>> table, minimum, maximum = counts.read(3)                     # doctest: +SKIP

The tables stay where the network runs. The rule is that of `histogram`, to the last count.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from pipeline.counting.device_counts import DeviceCounts, DeviceRanges
from pipeline.counting.extractor import Extractor
from pipeline.counting.feed import Prepared
from pipeline.counting.histogram import Counted, LayerCounts, sum_of_threads
from pipeline.dna import Floats, Ints, Ranges
from pipeline.spec import Spec

if TYPE_CHECKING:
    import torch


class FoldCounts:
    """Tables of each fold. On a CPU several threads may add at a time."""

    def __init__(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        folds: int,
    ) -> None:
        """Starts at zero.

        Args:
            extractor: The network.
            spec: What is counted.
            ranges: The ranges that the spec names.
            folds: Number of folds.
        """
        self._extractor = extractor
        self._spec = spec
        self._ranges = ranges
        self._folds = folds
        self._locks = [threading.Lock() for _ in spec.taps]
        self._on_device: DeviceRanges | None = None
        if extractor.on_device:
            self._on_device = DeviceRanges.on(extractor.device, ranges.low, ranges.high, spec.bins)
        self.reset()

    def reset(self) -> None:
        """Sets all counts to zero."""
        low, high, bins = self._ranges.low, self._ranges.high, self._spec.bins
        if self._on_device is not None:
            self._tensors = [DeviceCounts(self._on_device, bins) for _ in range(self._folds)]
            return
        self._layers = [
            [LayerCounts(low[layer], high[layer], bins) for layer in self._spec.slices]
            for _ in range(self._folds)
        ]

    def add(self, pixels: Prepared, folds: Ints) -> Floats:
        """Counts up to a micro-batch of images.

        Args:
            pixels: Normalised images.
            folds: (B,) the fold of each image.

        Returns:
            The spatial means, float64 (B, neurons).
        """
        rows = {int(fold): np.flatnonzero(folds == fold) for fold in np.unique(folds)}
        if self._on_device is not None:
            return self._add_on_device(pixels, rows)
        slices = self._spec.slices
        means = np.empty((len(pixels), self._spec.neurons))

        def visit(index: int, x: torch.Tensor) -> None:
            activations = x.numpy()
            with self._locks[index]:
                for fold, at in rows.items():
                    means[at, slices[index]] = self._layers[fold][index].add(activations[at])

        self._extractor.observe(pixels, visit)
        return means

    def _add_on_device(self, pixels: Prepared, rows: dict[int, Ints]) -> Floats:
        import torch

        device, slices = self._extractor.device, self._spec.slices
        means = {
            fold: torch.empty((len(at), self._spec.neurons), dtype=torch.float64, device=device)
            for fold, at in rows.items()
        }
        places = {fold: torch.from_numpy(at).to(device) for fold, at in rows.items()}

        def visit(index: int, x: torch.Tensor) -> None:
            for fold, at in places.items():
                its_means = means[fold][:, slices[index]]
                self._tensors[fold].add(x[at], slices[index], its_means)

        self._extractor.observe(pixels, visit)
        found = np.empty((len(pixels), self._spec.neurons))
        for fold, at in rows.items():
            found[at] = means[fold].cpu().numpy()
        return found

    def read(self, fold: int) -> Counted:
        """Returns what was counted in a fold; no thread may be counting meanwhile.

        Args:
            fold: The fold.

        Returns:
            Its table, minimum and maximum.
        """
        if self._on_device is not None:
            return self._tensors[fold].read()
        return sum_of_threads([self._layers[fold]])
