"""States the rule by which activations are counted, and counts by it on a CPU.

    >>> import numpy as np
    >>> counts = LayerCounts(low=np.array([0.0]), high=np.array([4.0]), bins=4)
    >>> counts.add(np.array([[[0.0], [1.5], [4.0], [9.0]]], np.float32))     # the image's mean
    array([[3.625]])
    >>> counts.table                       # 4 bins, then underflow, overflow, non-finite
    array([[1, 1, 0, 1, 0, 1, 0]])

The rule (`spec.COUNTING_RULE`), for a neuron with range [low, high] and an activation x, which is
float32 and widened exactly; all arithmetic is IEEE float64, each operation rounded once:

    centre = (low + high) / 2
    half   = (high - low) / 2, or 1e-8 where that is zero; the range is then centre ± 1e-8
    x is NaN or ±inf    -> non-finite
    x < low             -> underflow
    x > high            -> overflow
    otherwise           -> bin min(int((v + 1) * bins * 0.5), bins - 1), v = (x - centre) / half
                           clamped to [-1, 1]

Bins are closed below, the last one on both sides. In the range these are the counts of
`torch.histc(v, bins, -1, 1)` in float64, as in the large path of vdna 0.1.1. A value exactly on an
edge may land one bin low where v is rounded down; it does so in every kernel alike. The kernels
for other devices are in `device_counts`.

Every value is counted on its own, so counts depend on neither batch nor order. `LayerCounts` also
sums each image's activations in the order of positions: its means are bit-equal in whatever
batch the image stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.counting.bin_vectors import (
    LARGEST,
    NEURONS_AT_ONCE,
    NONFINITE,
    OVERFLOW,
    UNDERFLOW,
    place_rows,
)
from pipeline.dna import Floats
from pipeline.errors import UsageError
from pipeline.spec import BINS

DEGENERATE_HALF_WIDTH = 1e-8

BLOCK = 64
"""Neurons counted at a time, so that their part of the table stays in the cache."""

INDEX_TILE = 4096
"""Indices computed ahead of the increments: 16 KiB. No more of one neuron than `MOST_RECENT`."""

MOST_RECENT = int(np.iinfo(np.uint16).max)
"""How many activations of a neuron are counted in 16 bits before they are added to the others."""

Counted = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]
"""A table (neurons, bins + 3) as `LayerCounts` has it, minimum and maximum (neurons,)."""


class LayerCounts:
    """Counts of a layer's neurons, for one thread to add to.

    The latest counts are kept in 16 bits, so that four times as many are in the cache. They are
    added to a table of int64 before one of them could wrap. Most layers of a cell have so few
    positions that they never need this table, and so it is made when it is needed.

    Attributes:
        low: The lower end of each neuron's range, float64 (C,).
        high: The upper end of each neuron's range, float64 (C,).
        bins: How many bins a range is divided into.
        minimum: float32 (C,), of the finite activations; +inf if there were none.
        maximum: float32 (C,), of the finite activations; -inf if there were none.
    """

    def __init__(self, low: Floats, high: Floats, bins: int) -> None:
        self.low, self.high = checked_ranges(low, high, bins)
        self.bins = bins
        neurons = len(self.low)
        self.minimum = np.full(neurons, np.inf, np.float32)
        self.maximum = np.full(neurons, -np.inf, np.float32)
        self._scale = scale_of(self.low, self.high)
        self._recent: NDArray[np.uint16] = np.zeros((neurons, bins + 3), np.uint16)
        self._recent_of_each = np.zeros(-(-neurons // BLOCK), np.int64)  # of each block
        self._earlier: NDArray[np.int64] = np.zeros((0, bins + 3), np.int64)

    @property
    def table(self) -> NDArray[np.int64]:
        """What was counted, int64 (C, bins + 3): bins, then underflow, overflow and non-finite."""
        table = np.zeros(self._recent.shape, np.int64)
        self.add_to(table)
        return table

    def add_to(self, table: NDArray[np.int64]) -> None:
        """Adds what was counted to a table.

        Args:
            table: int64 (C, bins + 3).
        """
        if len(self._earlier):
            table += self._earlier
        _add_recent(self._recent, table)

    def add(self, x: NDArray[np.float32]) -> Floats:
        """Counts activations.

        Args:
            x: C-contiguous float32 (images, positions, C).

        Returns:
            The mean over positions, float64 (images, C). If any activation is not finite, neither
                is its mean.

        Raises:
            UsageError: If the activations have another shape, type or order.
        """
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != len(self.low):
            raise UsageError(
                f"activations have shape {x.shape}; expected (images, positions, {len(self.low)})"
            )
        if x.dtype != np.float32 or not x.flags.c_contiguous:
            raise UsageError(f"activations must be C-contiguous float32; they are {x.dtype}")
        if self._recent_of_each[0] + x.shape[0] * x.shape[1] > MOST_RECENT and not len(
            self._earlier
        ):
            self._earlier = np.zeros(self._recent.shape, np.int64)
        means = np.empty((x.shape[0], x.shape[2]))
        x = x.view()
        x.flags.writeable = False  # one compiled kernel for writable and read-only arrays
        counts = self._recent, self._recent_of_each, self._earlier
        _count(x, *self._scale, self.bins, *counts, self.minimum, self.maximum, means)
        return means


def sum_of_threads(threads: Sequence[Sequence[LayerCounts]]) -> Counted:
    """Adds up what several threads have counted; none may be counting any more.

    Args:
        threads: The layers of each thread, of one network and in one order.

    Returns:
        The table of all layers' neurons, minimum and maximum.
    """
    layers = threads[0]
    neurons = sum(len(layer.low) for layer in layers)
    table = np.zeros((neurons, layers[0].bins + 3), np.int64)
    start = 0
    for of_layer in zip(*threads, strict=True):
        stop = start + len(of_layer[0].low)
        for counts in of_layer:
            counts.add_to(table[start:stop])
        start = stop
    minima, maxima = (
        [np.concatenate([getattr(layer, name) for layer in layers]) for layers in threads]
        for name in ("minimum", "maximum")
    )
    return table, np.minimum.reduce(minima), np.maximum.reduce(maxima)


def bins_of(
    x: NDArray[np.float32], scale: tuple[Floats, Floats, Floats, Floats], bins: int
) -> NDArray[np.int32]:
    """Finds the bin of each activation of an image.

    Args:
        x: float32 (positions, C).
        scale: As `scale_of` makes it.
        bins: How many bins a range is divided into.

    Returns:
        int32 (C, positions). Underflow is in the first bin, overflow in the last; `bins` stands for
            an activation that is not finite.
    """
    out = np.empty(x.shape[::-1], np.int32)
    x = np.ascontiguousarray(x).view()
    x.flags.writeable = False
    _bins_of(x, *scale, bins, out)
    return out


def checked_ranges(low: Floats, high: Floats, bins: int) -> tuple[Floats, Floats]:
    """Checks ranges and the number of bins.

    Args:
        low: The lower end of each neuron's range (C,).
        high: The upper end of each neuron's range (C,).
        bins: How many bins a range is divided into.

    Returns:
        Copies of low and high in float64.

    Raises:
        UsageError: If a range is not finite or ends below its start, or bins are too few or too
            many.
    """
    low, high = np.array(low, np.float64), np.array(high, np.float64)
    BINS.require("bins", bins)
    if low.ndim != 1 or low.shape != high.shape:
        raise UsageError(f"ranges have shapes {low.shape} and {high.shape}; expected (C,) twice")
    with np.errstate(over="ignore", invalid="ignore"):
        good = (low <= high) & np.isfinite(low + high) & np.isfinite(high - low)
    if not good.all():
        at = int(np.argmin(good))
        raise UsageError(
            f"neuron {at} has the range [{low[at]}, {high[at]}]; "
            "it must be finite and not end below its start"
        )
    return low, high


def scale_of(low: Floats, high: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Computes what the rule needs of each range.

    Args:
        low: The lower end of each neuron's range, float64 (C,).
        high: The upper end of each neuron's range, float64 (C,).

    Returns:
        The lowest and the highest value in range, the centre and the half-width; (C,) each.
    """
    centre = (low + high) / 2
    half = (high - low) / 2
    point = half == 0
    half[point] = DEGENERATE_HALF_WIDTH
    least = np.where(point, centre - DEGENERATE_HALF_WIDTH, low)
    most = np.where(point, centre + DEGENERATE_HALF_WIDTH, high)
    return least, most, centre, half


@compiled
def _place(
    v: float,
    finite: bool,
    low: float,
    high: float,
    centre: float,
    half: float,
    n: float,
    last: float,
    under: float,
    over: float,
    bad: float,
) -> float:
    """Returns the bin of a value (of `n` bins, the last is `last`), or the column if outside."""
    at = (v - centre) / half
    # NaN fails every comparison, and so becomes -1: never an undefined cast.
    at = at if at > -1.0 else -1.0
    at = at if at < 1.0 else 1.0
    at = (at + 1.0) * n * 0.5
    at = at if at < last else last
    at = under if v < low else at
    at = over if v > high else at
    at = at if finite else bad
    return at


@compiled
def _bins_of(
    x: NDArray[np.float32],
    least: Floats,
    most: Floats,
    centre: Floats,
    half: Floats,
    bins: int,
    out: NDArray[np.int32],
) -> None:
    positions, neurons = x.shape
    n, last = np.float64(bins), np.float64(bins - 1)
    tile = np.empty((INDEX_TILE // BLOCK, BLOCK), np.int32)
    for start in range(0, neurons, BLOCK):
        width = min(BLOCK, neurons - start)
        stop = start + width
        lo, hi, mid, wide = (
            least[start:stop],
            most[start:stop],
            centre[start:stop],
            half[start:stop],
        )
        for top in range(0, positions, len(tile)):
            m = min(len(tile), positions - top)
            for i in range(m):
                row, placed = x[top + i, start:stop], tile[i]
                for j in range(width):
                    value = row[j]
                    v, finite = np.float64(value), value - value == 0
                    placed[j] = np.int32(
                        _place(v, finite, lo[j], hi[j], mid[j], wide[j], n, last, 0.0, last, n)
                    )
            for j in range(width):
                for i in range(m):
                    out[start + j, top + i] = tile[i, j]


@compiled
def _add_recent(recent: NDArray[np.uint16], table: NDArray[np.int64]) -> None:
    counts, total = recent.reshape(-1), table.reshape(-1)
    for i in range(len(total)):
        total[i] += counts[i]


@compiled
def _count(
    x: NDArray[np.float32],
    least: Floats,
    most: Floats,
    centre: Floats,
    half: Floats,
    bins: int,
    recent: NDArray[np.uint16],
    recent_of_each: NDArray[np.int64],
    earlier: NDArray[np.int64],
    minimum: NDArray[np.float32],
    maximum: NDArray[np.float32],
    means: Floats,
) -> None:
    """Counts activations, as `LayerCounts` keeps them.

    `recent_of_each` says how many activations of each neuron are in `recent`, of each block. If
    there may be more than `MOST_RECENT`, `earlier` must have room for them.
    """
    images, positions, neurons = x.shape
    columns = bins + 3
    rows_of_all, flat = x.reshape(images * positions, neurons), recent.reshape(-1)
    index = np.empty(INDEX_TILE, np.uint32)
    means[:] = 0.0
    for start in range(0, neurons, BLOCK):
        width = min(BLOCK, neurons - start)
        whole = width - width % NEURONS_AT_ONCE
        part = flat[start * columns : (start + width) * columns]
        rows = INDEX_TILE // width
        for image in range(images):
            sums = means[image]
            for top in range(0, positions, rows):
                m, at = min(rows, positions - top), image * positions + top
                if recent_of_each[start // BLOCK] + m > MOST_RECENT:
                    block = slice(start, start + width)
                    _add_recent(recent[block], earlier[block])
                    recent[block] = 0
                    recent_of_each[start // BLOCK] = 0
                recent_of_each[start // BLOCK] += m
                j = 0
                while j < width:
                    work = (
                        *(rows_of_all, at, m, least, most, centre, half, bins, start + j),
                        *(index, j, width, sums, minimum, maximum),
                    )
                    if j < whole:
                        place_rows(*work)
                        j += NEURONS_AT_ONCE
                    else:
                        _place_column(*work)
                        j += 1
                # An unsigned index: numba's wrap-around of negative ones costs threefold.
                for i in range(m * width):
                    part[index[i]] += 1
    means /= positions


@compiled
def _place_column(
    x: NDArray[np.float32],
    at: int,
    rows: int,
    least: Floats,
    most: Floats,
    centre: Floats,
    half: Floats,
    bins: int,
    neuron: int,
    index: NDArray[np.uint32],
    lane: int,
    width: int,
    total: Floats,
    minimum: NDArray[np.float32],
    maximum: NDArray[np.float32],
) -> None:
    """Places one neuron's activations, as `place_rows` does those of several."""
    lo, hi, mid, wide = least[neuron], most[neuron], centre[neuron], half[neuron]
    under, over = np.float64(bins + UNDERFLOW), np.float64(bins + OVERFLOW)
    bad, n, last = np.float64(bins + NONFINITE), np.float64(bins), np.float64(bins - 1)
    low, high, added = minimum[neuron], maximum[neuron], total[neuron]
    first = lane * (bins + 3)
    for row in range(rows):
        value = x[at + row, neuron]
        v = np.float64(value)
        added += v
        above, below = value >= -LARGEST, value <= LARGEST
        low = value if above & (value < low) else low
        high = value if below & (value > high) else high
        place = _place(v, above & below, lo, hi, mid, wide, n, last, under, over, bad)
        index[row * width + lane] = np.uint32(np.int32(place) + first)
    minimum[neuron], maximum[neuron], total[neuron] = low, high, added
