"""Holds cumulative distributions of DNAs and of their folds, as all sums over folds need them.

>>> curves = FoldCurves.of([whole], [folds])                                # doctest: +SKIP
>>> curves.noise.rows.shape                  # neurons, DNAs, draws, points    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from pipeline.comparing.emd_kernel import Curves, pointer
from pipeline.comparing.intervals import patterns, splits
from pipeline.comparing.noise_kernel import Draws, NoiseCurves
from pipeline.compiled import compiled
from pipeline.dna import DNA, Floats, Ints, Pairs
from pipeline.spec import FOLDS

SPLITS = FOLDS - 1
"""Balanced ways to cut that many folds in halves; see `intervals.splits`."""

GRID = 128
"""The most points of a cumulative distribution that sums over folds look at."""


@dataclass(frozen=True, eq=False)
class FoldCurves:
    """Cumulative distributions of D DNAs in one layer of C neurons, whole and by folds.

    Attributes:
        whole: Curves of D rows.
        noise: The whole cumulative distributions at the points of `grid`, and draws of their noise.
        offsets: (D, 16, C, G) float32: by how much the folds' cumulative distributions lie above
            the whole one's, at these points.
        halves: (C, D, 15) float64 distances between halves.
        images: (D, 16) int64 images of each fold; 0 for folds that a DNA does not have.
        numbers: (D, 16) int64 numbers of these folds, in their order; -1 for the others.
        unknown: (C, D) whether the neuron has no finite activation in some fold.
        bins: Bins of a histogram.
        pairs: By which names the images of each DNA are paired with others'; None where that is not
            known.
    """

    whole: Curves
    noise: NoiseCurves
    offsets: NDArray[np.float32]
    halves: Floats
    images: Ints
    numbers: Ints
    unknown: NDArray[np.bool_]
    bins: int
    pairs: list[Pairs | None]

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        plain = ("bins", "pairs")
        return sum(
            getattr(self, field.name).nbytes for field in fields(self) if field.name not in plain
        )

    @property
    def lacks_folds(self) -> NDArray[np.bool_]:
        """(D,) whether a DNA has fewer than two folds."""
        return np.asarray(self.folds < 2)

    @property
    def folds(self) -> Ints:
        """(D,) number of folds with images."""
        return np.asarray((self.images > 0).sum(axis=1))

    @property
    def step(self) -> int:
        """Bins from a point of `grid` to the next."""
        return step(self.bins)

    def whole_curve(self) -> Floats:
        """Returns the (D, C, G) cumulative distributions at the points of `grid`."""
        return self.noise.whole[:, :, : len(grid(self.bins))]

    @classmethod
    def empty(cls, neurons: int, size: int, bins: int) -> FoldCurves:
        """Makes room for some DNAs.

        Args:
            neurons: Neurons of the layer.
            size: Number of DNAs.
            bins: Bins of a histogram.

        Returns:
            Curves to be filled.
        """
        points = len(grid(bins))
        return cls(
            Curves.empty(neurons, size, bins),
            NoiseCurves.empty(neurons, size, points),
            np.zeros((size, FOLDS, neurons, points), np.float32),
            np.full((neurons, size, SPLITS), np.nan),
            np.zeros((size, FOLDS), np.int64),
            np.full((size, FOLDS), -1, np.int64),
            np.zeros((neurons, size), bool),
            bins,
            [None] * size,
        )

    @classmethod
    def of(
        cls,
        dnas: Sequence[DNA],
        folds: Sequence[Mapping[int, DNA]],
        pairs: Sequence[Pairs | None] | None = None,
    ) -> FoldCurves:
        """Makes the curves of some DNAs.

        Args:
            dnas: DNAs of the same layer.
            folds: The folds of each DNA, by number; none if it has none.
            pairs: By which names the images of each DNA are paired with others'. None if that is
                not known of any.

        Returns:
            The curves, in the order of the DNAs.
        """
        neurons, bins = dnas[0].counts.shape
        curves = cls.empty(neurons, len(dnas), bins)
        named = [None] * len(dnas) if pairs is None else pairs
        for slot, (dna, parts, names) in enumerate(zip(dnas, folds, named, strict=True)):
            curves.fill(slot, dna, parts, names)
        return curves

    def fill(
        self, slot: int, dna: DNA, folds: Mapping[int, DNA], pairs: Pairs | None = None
    ) -> None:
        """Writes the curves of one DNA into their place.

        Args:
            slot: Position of the DNA.
            dna: The DNA.
            folds: Its folds by number, 16 at most. They sum to the DNA; those without images are
                left out.
            pairs: By which names its images are paired with others'.
        """
        self.pairs[slot] = pairs
        self.whole.fill(slot, [dna.counts], [dna.underflow], [dna.overflow])
        numbers = tuple(number for number, part in sorted(folds.items()) if part.images)
        parts = [folds[number] for number in numbers]
        self.images[slot, : len(parts)] = [part.images for part in parts]
        self.numbers[slot, : len(parts)] = numbers
        if len(parts) < 2:
            return
        held = [np.ascontiguousarray(part.counts, np.int64) for part in parts]
        _fill_folds(
            np.array([array.ctypes.data for array in held], np.int64),
            held[0].shape,
            np.array([part.underflow for part in parts]),
            np.array([part.overflow for part in parts]),
            splits(len(parts)),
            patterns(numbers),
            grid(dna.spec.bins),
            slot,
            self.noise.whole[slot],
            self.noise.rows,
            self.noise.variance,
            self.offsets[slot],
            self.halves,
            self.unknown,
        )


def grid(bins: int) -> Ints:
    """Chooses the bins at whose ends cumulative distributions enter sums over folds.

    Args:
        bins: Bins of a histogram.

    Returns:
        (G,) numbers of bins: every eighth of a thousand.
    """
    return np.arange(step(bins) - 1, bins - 1, step(bins))


def step(bins: int) -> int:
    """Returns how many bins of a histogram each point of `grid` stands for."""
    return -(-bins // GRID)


@compiled
def _fill_folds(
    counts: Ints,
    shape: tuple[int, int],
    underflow: Ints,
    overflow: Ints,
    signs: Ints,
    patterns: Floats,
    at: Ints,
    slot: int,
    whole_curve: Floats,
    rows: Draws,
    variance: Draws,
    offsets: NDArray[np.float32],
    halves: Floats,
    unknown: NDArray[np.bool_],
) -> None:
    """Fills the arrays of one DNA. Sums are exact until the end.

    `counts` holds the addresses (K,) of arrays (neurons, bins); the flows are (K, neurons).
    """
    folds, bins = len(counts), shape[1]
    below = np.zeros((folds, bins), np.int64)
    whole = np.zeros(bins, np.int64)
    left = np.zeros(bins, np.int64)
    totals = np.zeros(folds, np.int64)
    deviation = np.zeros(folds)
    for neuron in range(shape[0]):
        whole[:] = 0
        for k in range(folds):
            part = carray(pointer(counts[k]), shape)[neuron]
            total = underflow[k, neuron]
            for i in range(bins):
                total += part[i]
                below[k, i] = total
                whole[i] += total
            totals[k] = total + overflow[k, neuron]
            unknown[neuron, slot] |= totals[k] == 0
        total = totals.sum()
        scale = 1.0 / max(total, 1)
        for g in range(len(at)):
            whole_curve[neuron, g] = whole[at[g]] * scale
        for k in range(folds):
            own = 1.0 / max(totals[k], 1)
            for g in range(len(at)):
                offsets[k, neuron, g] = below[k, at[g]] * own - whole_curve[neuron, g]
        for g in range(len(at)):
            for k in range(folds):
                deviation[k] = (below[k, at[g]] - totals[k] * whole_curve[neuron, g]) * scale
            squares = 0.0
            for row in range(len(patterns)):
                draw = 0.0
                for k in range(folds):
                    draw += patterns[row, k] * deviation[k]
                rows[neuron, slot, row, g] = draw
                squares += draw * draw
            variance[neuron, slot, g] = squares / len(patterns)
        for s in range(len(signs)):
            left[:] = 0
            count = 0
            for k in range(folds):
                if signs[s, k] > 0:
                    count += totals[k]
                    for i in range(bins):
                        left[i] += below[k, i]
            mine, theirs = 1.0 / max(count, 1), 1.0 / max(total - count, 1)
            apart = 0.0
            for i in range(bins - 1):
                apart += abs(left[i] * mine - (whole[i] - left[i]) * theirs)
            halves[neuron, slot, s] = apart
