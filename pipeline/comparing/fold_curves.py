"""Holds cumulative distributions of DNAs and of their folds, as all sums over folds need them.

>>> curves = FoldCurves.of([whole], [folds])                                # doctest: +SKIP
>>> curves.noise.rows.shape                  # DNAs, neurons, points, draws    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pipeline.comparing.dna_layer import DnaLayer
from pipeline.comparing.emd_kernel import Curves
from pipeline.comparing.fold_points import SPLITS, FoldPoints, finest_step, grid, points_of
from pipeline.comparing.intervals import patterns
from pipeline.comparing.noise_kernel import Draws, NoiseCurves
from pipeline.comparing.vector_writer import aligned_zeros
from pipeline.compiled import compiled
from pipeline.dna import DNA, Floats, Ints, Pairs
from pipeline.spec import FOLDS


@dataclass(frozen=True, eq=False)
class FoldCurves:
    """Cumulative distributions of D DNAs in one layer of C neurons, whole and by folds.

    Attributes:
        whole: Curves of D rows.
        noise: The whole cumulative distributions at the points of `grid`, and draws of their noise.
            Where a neuron has fewer points than others, all is 0 at the others' last.
        offsets: (D, C, G, 16) float32: by how much the folds' cumulative distributions lie above
            the whole one's, at these points.
        spread: (C, D) float64 sum of the squares of all offsets.
        halves: (C, D, 15) float64 distances between halves.
        images: (D, 16) int64 images of each fold; 0 for folds that a DNA does not have.
        numbers: (D, 16) int64 numbers of these folds, in their order; -1 for the others.
        unknown: (C, D) whether the neuron has no finite activation in some fold.
        bins: Bins of a histogram.
        step: Bins from one point of `grid` to the next.
        pairs: By which names the images of each DNA are paired with others'; None where that is not
            known.
    """

    whole: Curves
    noise: NoiseCurves
    offsets: NDArray[np.float32]
    spread: Floats
    halves: Floats
    images: Ints
    numbers: Ints
    unknown: NDArray[np.bool_]
    bins: int
    step: int
    pairs: list[Pairs | None]

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        plain = ("bins", "step", "pairs")
        return sum(
            getattr(self, column.name).nbytes for column in fields(self) if column.name not in plain
        )

    @property
    def lacks_folds(self) -> NDArray[np.bool_]:
        """(D,) whether a DNA has fewer than two folds."""
        return np.asarray(self.folds < 2)

    @property
    def folds(self) -> Ints:
        """(D,) number of folds with images."""
        return np.asarray((self.images > 0).sum(axis=1))

    def whole_curve(self) -> Floats:
        """Returns the (D, C, G) cumulative distributions at the points of `grid`."""
        return self.noise.whole[:, :, : self.offsets.shape[2]]

    @classmethod
    def empty(cls, neurons: int, size: int, bins: int, step: int) -> FoldCurves:
        """Makes room for some DNAs.

        Args:
            neurons: Neurons of the layer.
            size: Number of DNAs.
            bins: Bins of a histogram.
            step: Bins from one point of `grid` to the next.

        Returns:
            Curves to be filled.
        """
        points = points_of(bins, step)
        return cls(
            Curves.empty(neurons, size, bins),
            NoiseCurves.empty(neurons, size, points),
            aligned_zeros((size, neurons, points, FOLDS)),
            np.zeros((neurons, size)),
            np.full((neurons, size, SPLITS), np.nan),
            np.zeros((size, FOLDS), np.int64),
            np.full((size, FOLDS), -1, np.int64),
            np.zeros((neurons, size), bool),
            bins,
            step,
            [None] * size,
        )

    @classmethod
    def of(
        cls,
        dnas: Sequence[DNA],
        folds: Sequence[Mapping[int, DNA]],
        pairs: Sequence[Pairs | None] | None = None,
        *,
        step: int | None = None,
    ) -> FoldCurves:
        """Makes the curves of some DNAs.

        Args:
            dnas: DNAs of the same layer.
            folds: The folds of each DNA, by number; none if it has none.
            pairs: By which names the images of each DNA are paired with others'. None if that is
                not known of any.
            step: Bins from one point of `grid` to the next; None for the finest.

        Returns:
            The curves, in the order of the DNAs.
        """
        neurons, bins = dnas[0].counts.shape
        curves = cls.empty(neurons, len(dnas), bins, step or finest_step(bins))
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
        self.fill_layer(slot, DnaLayer.of(dna, FoldPoints.of(folds, self.step)), pairs)

    def fill_layer(self, slot: int, layer: DnaLayer, pairs: Pairs | None = None) -> None:
        """Writes the curves of one DNA whose folds are counted already.

        Args:
            slot: Position of the DNA.
            layer: The DNA in this layer, its folds counted at points as far apart as these curves'.
            pairs: By which names its images are paired with others'.
        """
        points = layer.points
        self.pairs[slot] = pairs
        self.whole.fill(slot, [layer.counts], [layer.underflow], [layer.overflow])
        folds = len(points.numbers)
        self.images[slot, :folds] = points.images
        self.numbers[slot, :folds] = points.numbers
        if folds < 2:
            return
        self.halves[:, slot, : points.halves.shape[1]] = points.halves
        self.unknown[:, slot] = (points.totals == 0).any(axis=0)
        self.spread[:, slot] = _fill(
            np.ascontiguousarray(points.below.transpose(1, 2, 0)),  # as they are kept
            points.totals,
            np.ascontiguousarray(patterns(points.numbers).T),
            grid(self.bins, len(self.unknown), self.step),
            self.bins,
            self.noise.whole[slot],
            self.noise.rows[slot],
            self.offsets[slot],
        )
        self.noise.finish(slot)


@compiled
def _fill(
    below: Ints,
    totals: Ints,
    signs: Floats,
    at: Ints,
    bins: int,
    whole_curve: Floats,
    rows: Draws,
    offsets: NDArray[np.float32],
) -> Floats:
    """Fills the curves of one DNA from the counts of its folds at the bins `at`.

    `below` is (C, points, K). `signs` (K, 15) are factors of the folds for each draw.

    Returns:
        (C,) sums of the squares of the offsets.
    """
    folds, draws = signs.shape
    spread, squares = np.zeros(len(at)), np.zeros(folds)
    own, deviation, noise = np.zeros(folds), np.zeros(folds), np.zeros(draws)
    for neuron in range(len(at)):
        total = totals[:, neuron]
        scale = 1.0 / max(float(total.sum()), 1.0)
        for k in range(folds):
            own[k] = 1.0 / max(total[k], 1)
        squares[:] = 0
        for g in range(at.shape[1]):
            if at[neuron, g] >= bins - 1:
                break
            counts = below[neuron, g]
            whole = counts.sum() * scale
            whole_curve[neuron, g] = whole
            for k in range(folds):
                offset = counts[k] * own[k] - whole
                offsets[neuron, g, k] = offset
                squares[k] += offset * offset
                deviation[k] = (counts[k] - total[k] * whole) * scale
            noise[:] = 0
            for k in range(folds):
                for draw in range(draws):
                    noise[draw] += signs[k, draw] * deviation[k]
            rows[neuron, g, :draws] = noise
        spread[neuron] = squares.sum()
    return spread
