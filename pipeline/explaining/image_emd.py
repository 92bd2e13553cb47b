"""Measures how far one image's activations are from datasets, for each neuron of a layer.

    >>> near = LayerEmd(low, high, counts, positions=49)                  # doctest: +SKIP
    >>> near.distances(activations)                            # (images, datasets, neurons) EMD

The result is the `emd` of the DNA of the one image and that of the dataset, without making the
former. Bins are those of `pipeline.counting.histogram`: underflow is in the first, overflow in the
last, and non-finite values in none. A neuron without a finite activation has no distance (NaN).

The image's cumulative distribution is a staircase with at most as many steps as there are
positions, and the dataset's, F, only rises. So between two steps, at bins from s to e, where the
image's is k/n,

    sum |k/n - F| = (k/n)(j - s) - (S[j] - S[s]) + (S[e] - S[j]) - (k/n)(e - j)

with S the sums of F up to each bin, and j the bin where F passes k/n, of which there is one for
each k. So few positions are summed in as many steps, and exactly, in integers. If there are many
positions, all bins are walked instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.counting import (
    OVERFLOW,
    UNDERFLOW,
    DeviceRanges,
    bins_of,
    checked_ranges,
    scale_of,
    tables_of_images,
)
from pipeline.dna import Floats, Ints
from pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch

FEW = 15
"""Bins for each position from which on steps are faster than walking all bins."""

MOST_SUM = 2**62
"""Bound on sums of integers; if they could reach it, all bins are walked."""

WORD = 64
"""Bins in a word of the bit set of bins that are hit."""

TABLE_CELLS = 2**24
"""How many bins of images and neurons are counted at a time on a GPU: 128 MiB of int64."""

Indices = NDArray[np.int32]
"""An array of bins' indices."""


class LayerEmd:
    """One layer of some datasets, to compare images with."""

    def __init__(
        self,
        low: Floats,
        high: Floats,
        counts: Ints,
        positions: int,
        seen: NDArray[np.bool_] | None = None,
    ) -> None:
        """Prepares the tables that all images share.

        Args:
            low: (C,) lower ends of the neurons' ranges.
            high: (C,) upper ends.
            counts: (datasets, C, bins) int64 of all finite activations of each dataset, with
                underflow and overflow in the end bins.
            positions: Positions of an image in this layer.
            seen: (C,) which neurons are asked for; None for all. Others cost no work, and their
                distances are NaN.
        """
        self._bins = counts.shape[2]
        self._low, self._high = checked_ranges(low, high, self._bins)
        self._scale = scale_of(self._low, self._high)
        self._positions = positions
        self._seen = np.ones(len(low), bool) if seen is None else seen
        sums = np.cumsum(counts, axis=2)
        self._total = sums[:, :, -1].copy()
        most = int(self._total.max(initial=0)) * positions * self._bins
        self._few = positions * FEW <= self._bins and most < MOST_SUM
        # Each way of summing needs a table of this size, so only the one in use is made.
        if self._few:
            of_each = zip(sums, self._total, strict=True)
            self._crossings = np.stack([_crossings(*of, positions) for of in of_each])
            self._areas = np.zeros((len(counts), len(low), self._bins + 1), np.int64)
            np.cumsum(sums, axis=2, out=self._areas[:, :, 1:])
        else:
            with np.errstate(invalid="ignore"):
                self._shares = sums / self._total[:, :, None]
        self._on_device: tuple[torch.Tensor, DeviceRanges] | None = None

    def distances(self, x: NDArray[np.float32]) -> Floats:
        """Computes the distances of images.

        Args:
            x: (images, positions, C) float32 activations.

        Returns:
            (images, datasets, C) distances, in bin widths.

        Raises:
            UsageError: If the activations have another type or shape.
        """
        if x.shape[1:] != (self._positions, len(self._low)) or x.dtype != np.float32:
            raise UsageError(
                f"activations are {x.dtype} of shape {x.shape}; expected float32 (images, "
                f"{self._positions}, {len(self._low)})"
            )
        out = np.full((x.shape[0], *self._total.shape), np.nan)
        for image, own in zip(x, out, strict=True):
            bins = bins_of(image, self._scale, self._bins)
            if self._few:
                _step(bins, self._seen, self._total, self._areas, self._crossings, own)
            else:
                _walk(bins, self._seen, self._shares, own)
        return out

    def distances_torch(self, x: torch.Tensor) -> Floats:
        """Computes the same on the device of `x`, equal up to the order of float64 additions.

        Args:
            x: (images, positions, C) activations, float32 or narrower, in any layout.

        Returns:
            (images, datasets, C) distances, in bin widths.
        """
        import torch

        if self._on_device is None:
            shares = self._shares_of_steps() if self._few else self._shares
            ranges = DeviceRanges.on(x.device, self._low, self._high, self._bins)
            self._on_device = torch.from_numpy(shares).to(x.device), ranges
        datasets, ranges = self._on_device
        size = (x.shape[0], *self._total.shape)
        out = torch.empty(size, dtype=torch.float64, device=x.device)
        step = max(1, TABLE_CELLS // datasets.numel())
        for start in range(0, len(x), step):
            table = tables_of_images(x[start : start + step], ranges, self._bins)
            table[:, :, 0] += table[:, :, self._bins + UNDERFLOW]
            table[:, :, self._bins - 1] += table[:, :, self._bins + OVERFLOW]
            sums = table[:, :, : self._bins].cumsum(dim=2).double()
            own = (sums / sums[:, :, -1:])[:, None]
            out[start : start + step] = (own - datasets).abs().sum(dim=3)
        return np.where(self._seen, out.cpu().numpy(), np.nan)

    def _shares_of_steps(self) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.diff(self._areas, axis=2) / self._total[:, :, None]


def _crossings(sums: Ints, total: Ints, positions: int) -> Indices:
    """Returns (C, positions + 1) bins where the dataset passes each share that an image may have.

    Entry k is the number of bins whose cumulative share is at most k / positions.
    """
    found = np.empty((len(sums), positions + 1), np.int32)
    levels = np.arange(positions + 1)
    for row, of, most in zip(found, sums, total, strict=True):
        row[:] = np.searchsorted(of, levels * most // positions, side="right")
    return found


@compiled
def _walk(bins: Indices, seen: NDArray[np.bool_], shares: Floats, out: Floats) -> None:
    """Adds up the distances over all bins of each neuron.

    `bins` is (C, positions); the number of bins stands for no bin. `out` is (datasets, C).
    """
    neurons, positions = bins.shape
    datasets, _, last = shares.shape
    counts = np.zeros(last + 1, np.int64)
    for neuron in range(neurons):
        if not seen[neuron]:
            continue
        for i in range(positions):
            counts[np.uint32(bins[neuron, i])] += 1
        finite = np.float64(positions - counts[last])
        for dataset in range(datasets):
            share = shares[dataset, neuron]
            below, total = 0, 0.0
            for at in range(last):
                below += counts[at]
                total += abs(below / finite - share[at])
            out[dataset, neuron] = total
        counts[:] = 0


_LOWEST = np.uint64(0x03F79D71B4CB0A89)
"""De Bruijn sequence: its product with a power of two has the exponent in its first six bits."""

_BITS = np.zeros(WORD, np.int64)

for _power in range(WORD):
    _BITS[(int(_LOWEST) << _power) % 2**WORD >> 58] = _power


@compiled
def _step(
    bins: Indices,
    seen: NDArray[np.bool_],
    totals: Ints,
    areas: Ints,
    crossings: Indices,
    out: Floats,
) -> None:
    """Adds up the distances from each bin that is hit to the next, in order.

    All is in integers, which are `finite` x `total` times what they stand for. `out` is
    (datasets, C).
    """
    neurons, positions = bins.shape
    datasets, last = len(areas), areas.shape[2] - 1
    counts = np.zeros(last, np.int64)
    hit = np.zeros(-(-last // WORD), np.uint64)
    ends = np.empty(positions, np.int64)
    none, one = np.uint64(0), np.uint64(1)
    for neuron in range(neurons):
        if not seen[neuron]:
            continue
        finite = 0
        for i in range(positions):
            at = np.uint32(bins[neuron, i])
            if at < last:
                finite += 1
                counts[at] += 1
                hit[at >> np.uint32(6)] |= one << np.uint64(at & np.uint32(WORD - 1))
        if finite == 0:
            continue
        hits = 0
        for word in range(len(hit)):
            left = hit[word]
            hit[word] = none
            while left != none:
                lowest = left & (~left + one)
                left ^= lowest
                ends[hits] = word * WORD + _BITS[(lowest * _LOWEST) >> np.uint64(58)]
                hits += 1
        knows = positions + 1 if finite == positions else 0
        for dataset in range(datasets):
            total, area = totals[dataset, neuron], areas[dataset, neuron]
            if total == 0:
                continue
            known = crossings[dataset, neuron, :knows]
            distance, below, start = 0, 0, 0
            for i in range(hits):
                end = ends[i]
                distance += _between(area, start, end, below, finite, total, known)
                below += counts[end]
                start = end
            distance += _between(area, start, last, below, finite, total, known)
            out[dataset, neuron] = distance / (finite * total)
        for i in range(hits):
            counts[ends[i]] = 0


@compiled
def _between(
    area: Ints, start: int, end: int, below: int, finite: int, total: int, known: Indices
) -> int:
    """Returns the sum over bins from start to end of |below x total - finite x so_far|.

    `so_far` is the dataset's count up to the bin. `known` tells where the dataset's share passes
    that of each `below`; if it is empty, the bin is searched.
    """
    if len(known):
        cross = min(max(known[below], start), end)
    else:
        cross, beyond = start, end
        while cross < beyond:
            middle = (cross + beyond) // 2
            if (area[middle + 1] - area[middle]) * finite <= below * total:
                cross = middle + 1
            else:
                beyond = middle
    rest = (area[end] - area[cross]) - (area[cross] - area[start])
    return int(below * total * ((cross - start) - (end - cross)) + finite * rest)
