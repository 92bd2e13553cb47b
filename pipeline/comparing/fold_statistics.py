"""Computes what the folds of two DNAs say of their distance: sums over neurons and layers.

    >>> a, b = (FoldCurves.of([whole], [folds]) for whole, folds in ...)        # doctest: +SKIP
    >>> fold_sums(a, b, weights).theta                                          # doctest: +SKIP

There are three kinds of sums. Each side with one fold left out, against the other side whole,
serves the jackknife. The halves of each DNA against each other serve the floor. The inner products
of all folds' cumulative distributions serve the test: from them any relabelling of the folds can be
judged without another look at the folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, cast

import numpy as np
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from pipeline.comparing.emd_kernel import ONE, Curves, Words, distances, pointer
from pipeline.comparing.significance import (
    curve_difference_gram,
    difference_gram,
    estimate,
    flip_test,
    floor,
    jackknife,
    splits,
)
from pipeline.compiled import compiled
from pipeline.dna import DNA, Floats, Ints
from pipeline.spec import FOLDS

SPLITS = FOLDS - 1
"""Balanced ways to cut that many folds in halves; see `significance.splits`."""

GRID = 128
"""The most points of a cumulative distribution that enter an inner product."""

FEW_NEURONS = 256
"""Inner products of up to so many neurons are computed in float64."""


@dataclass(frozen=True, eq=False)
class FoldSums:
    """Sums over neurons for A DNAs against B DNAs, in P planes (layers, and their mean).

    All are float64 and in bins, except the images. NaN stands for folds that a DNA does not have,
    and for everything but `theta` if a DNA has fewer than two folds, or a neuron without a finite
    activation in a fold.

    Attributes:
        theta: (P, A, B) distances.
        drop_a: (P, A, B, 16) distances without each fold of a.
        drop_b: (P, A, B, 16) distances without each fold of b.
        half_a: (P, A, 15) distances between the halves of a DNA, for each of its balanced splits.
        half_b: (P, B, 15) the same of b.
        gram_aa: (P, A, 16, 16) inner products of the folds' cumulative distributions.
        gram_bb: (P, B, 16, 16) the same of b.
        gram_ab: (P, A, B, 16, 16) inner products of a's folds with b's.
        images_a: (A, 16) int64 images of each fold of a.
        images_b: (B, 16) int64 images of each fold of b.
    """

    theta: Floats
    drop_a: Floats
    drop_b: Floats
    half_a: Floats
    half_b: Floats
    gram_aa: Floats
    gram_bb: Floats
    gram_ab: Floats
    images_a: Ints
    images_b: Ints

    @classmethod
    def stack(cls, layers: Sequence[FoldSums], totals: Sequence[float], *, whole: bool) -> FoldSums:
        """Divides the sums of single planes by their weights.

        Args:
            layers: Sums of one plane each.
            totals: The weight that each plane's sums are divided by. The result is NaN unless it is
                above 0.
            whole: Whether to add the mean over all planes as the last.

        Returns:
            The means, in one plane a layer.
        """
        scales = np.array([*totals, *([sum(totals)] if whole else [])])
        stacked: dict[str, Any] = {}
        for column in (field.name for field in fields(cls)):
            parts = [getattr(layer, column) for layer in layers]
            if column.startswith("images"):
                stacked[column] = parts[0]
                continue
            planes = np.concatenate([*parts, *([np.sum(parts, axis=0)] if whole else [])])
            with np.errstate(invalid="ignore", divide="ignore"):
                by = np.where(scales > 0, scales, np.nan).reshape(-1, *[1] * (planes.ndim - 1))
                stacked[column] = planes / by
        return cls(**stacked)

    @classmethod
    def empty(cls, a: int, b: int) -> FoldSums:
        """Makes sums of one plane in which all is unknown.

        Args:
            a: Number of DNAs A.
            b: Number of DNAs B.

        Returns:
            Arrays of NaN, and of no images.
        """

        def unknown(*shape: int) -> Floats:
            return np.full((1, *shape), np.nan)

        return cls(
            theta=unknown(a, b),
            drop_a=unknown(a, b, FOLDS),
            drop_b=unknown(a, b, FOLDS),
            half_a=unknown(a, SPLITS),
            half_b=unknown(b, SPLITS),
            gram_aa=unknown(a, FOLDS, FOLDS),
            gram_bb=unknown(b, FOLDS, FOLDS),
            gram_ab=unknown(a, b, FOLDS, FOLDS),
            images_a=np.zeros((a, FOLDS), np.int64),
            images_b=np.zeros((b, FOLDS), np.int64),
        )

    def fill(self, a: slice, b: slice, part: FoldSums) -> None:
        """Writes the sums of some of the DNAs into their place.

        Args:
            a: Which DNAs of side a.
            b: Which DNAs of side b.
            part: Their sums.
        """
        here = self.select(a, b)
        for field in fields(self):
            getattr(here, field.name)[...] = getattr(part, field.name)

    def select(self, a: slice, b: slice) -> FoldSums:
        """Takes some of the DNAs of either side.

        Args:
            a: Which DNAs of side a.
            b: Which DNAs of side b.

        Returns:
            Views of their sums.
        """
        return FoldSums(
            self.theta[:, a, b],
            self.drop_a[:, a, b],
            self.drop_b[:, a, b],
            self.half_a[:, a],
            self.half_b[:, b],
            self.gram_aa[:, a],
            self.gram_bb[:, b],
            self.gram_ab[:, a, b],
            self.images_a[a],
            self.images_b[b],
        )


@dataclass(frozen=True, eq=False)
class FoldCurves:
    """Cumulative distributions of D DNAs in one layer of C neurons, whole and by folds.

    Attributes:
        whole: Curves of D rows.
        dropped: Curves of 16 D rows: each DNA without each fold.
        offsets: (D, 16, C, G) float32: by how much the folds' cumulative distributions lie above
            the whole one's, at the points of `grid`.
        whole_curve: (D, C, G) float64: the whole cumulative distribution at these points.
        halves: (C, D, 15) float64 distances between halves.
        images: (D, 16) int64 images of each fold; 0 for folds that a DNA does not have.
        unknown: (C, D) whether the neuron has no finite activation in some fold.
        bins: Bins of a histogram.
    """

    whole: Curves
    dropped: Curves
    offsets: NDArray[np.float32]
    whole_curve: Floats
    halves: Floats
    images: Ints
    unknown: NDArray[np.bool_]
    bins: int

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(
            getattr(self, field.name).nbytes for field in fields(self) if field.name != "bins"
        )

    @property
    def lacks_folds(self) -> NDArray[np.bool_]:
        """(D,) whether a DNA has fewer than two folds."""
        return np.asarray((self.images > 0).sum(axis=1) < 2)

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
            Curves.empty(neurons, size * FOLDS, bins),
            np.zeros((size, FOLDS, neurons, points), np.float32),
            np.zeros((size, neurons, points)),
            np.full((neurons, size, SPLITS), np.nan),
            np.zeros((size, FOLDS), np.int64),
            np.zeros((neurons, size), bool),
            bins,
        )

    @classmethod
    def of(cls, dnas: Sequence[DNA], folds: Sequence[Mapping[int, DNA]]) -> FoldCurves:
        """Makes the curves of some DNAs.

        Args:
            dnas: DNAs of the same layer.
            folds: The folds of each DNA, by number; none if it has none.

        Returns:
            The curves, in the order of the DNAs.
        """
        neurons, bins = dnas[0].counts.shape
        curves = cls.empty(neurons, len(dnas), bins)
        for slot, (dna, parts) in enumerate(zip(dnas, folds, strict=True)):
            curves.fill(slot, dna, parts)
        return curves

    def fill(self, slot: int, dna: DNA, folds: Mapping[int, DNA]) -> None:
        """Writes the curves of one DNA into their place.

        Args:
            slot: Position of the DNA.
            dna: The DNA.
            folds: Its folds by number, 16 at most. They sum to the DNA; those without images are
                left out.
        """
        self.whole.fill(slot, [dna.counts], [dna.underflow], [dna.overflow])
        parts = [part for _, part in sorted(folds.items()) if part.images]
        self.images[slot, : len(parts)] = [part.images for part in parts]
        first = slot * FOLDS
        self.dropped.values[:, first : first + FOLDS] = 0
        if len(parts) < 2:
            return
        held = [np.ascontiguousarray(part.counts, np.int64) for part in parts]
        _fill_folds(
            np.array([array.ctypes.data for array in held], np.int64),
            held[0].shape,
            np.array([part.underflow for part in parts]),
            np.array([part.overflow for part in parts]),
            splits(len(parts)),
            grid(dna.spec.bins),
            first,
            self.dropped.values,
            self.dropped.sums,
            slot,
            self.offsets[slot],
            self.whole_curve[slot],
            self.halves,
            self.unknown,
        )


def grid(bins: int) -> Ints:
    """Chooses the bins at whose ends cumulative distributions enter inner products.

    Args:
        bins: Bins of a histogram.

    Returns:
        (G,) numbers of bins: every eighth of a thousand.
    """
    step = -(-bins // GRID)
    return np.arange(step - 1, bins - 1, step)


def fold_sums(
    a: FoldCurves,
    b: FoldCurves,
    weights: Floats,
    *,
    threads: int | None = None,
    device: str = "cpu",
) -> FoldSums:
    """Computes the sums of one layer for all DNAs of a against all of b.

    It takes 34 evaluations a pair, and half as many if `a` is `b`.

    Args:
        a: DNAs on one side.
        b: DNAs on the other side.
        weights: (C,) weights of the neurons.
        threads: Threads to use; None for all cores.
        device: The CPU, or a device of torch.

    Returns:
        Weighted sums over neurons, undivided, in a single plane.
    """
    used = np.flatnonzero(weights)

    def without(side: FoldCurves, other: FoldCurves) -> Floats:
        sums = distances(side.dropped, other.whole, weights, threads=threads, device=device)
        sums = sums.reshape(-1, FOLDS, sums.shape[1])
        sums[side.images == 0] = np.nan
        sums[_unknown(side, used)] = np.nan
        return cast(Floats, sums.transpose(0, 2, 1))

    theta = distances(a.whole, b.whole, weights, threads=threads, device=device)
    drop_a = without(a, b)
    drop_b = drop_a.transpose(1, 0, 2) if a is b else without(b, a).transpose(1, 0, 2)
    gram_aa, gram_bb, gram_ab = _grams(a, b, used, weights)
    half_a = _halves(a, used, weights)
    half_b = half_a if a is b else _halves(b, used, weights)
    return FoldSums(
        theta[None],
        drop_a[None],
        drop_b[None],
        half_a[None],
        half_b[None],
        gram_aa[None],
        gram_bb[None],
        gram_ab[None],
        a.images,
        b.images,
    )


PAIR_ESTIMATES = ("emd_corrected", "se", "low", "high", "floor", "p")
"""Estimates of a pair that do not depend on other pairs."""

NEURON_COLUMNS = ("emd", "shift", *PAIR_ESTIMATES)
"""What is known of a neuron's distance."""


def estimates(sums: FoldSums) -> dict[str, Floats]:
    """Computes all estimates of pairs from their sums.

    Args:
        sums: Means over neurons whose weights are not negative.

    Returns:
        (P, A, B) of each of `PAIR_ESTIMATES`; NaN if a DNA has fewer than two folds.
    """
    found = {name: np.full(sums.theta.shape, np.nan) for name in PAIR_ESTIMATES}
    folds_a, folds_b = ((images > 0).sum(axis=1) for images in (sums.images_a, sums.images_b))
    for k_a, k_b in product(np.unique(folds_a).tolist(), np.unique(folds_b).tolist()):
        if min(k_a, k_b) < 2:
            continue
        a, b = np.flatnonzero(folds_a == k_a), np.flatnonzero(folds_b == k_b)
        images_a, images_b = sums.images_a[a, None, :k_a], sums.images_b[None, b, :k_b]
        here = np.ix_(np.arange(len(sums.theta)), a, b)
        of_emd = estimate(
            sums.theta[here],
            sums.drop_a[here][..., :k_a],
            sums.drop_b[here][..., :k_b],
            images_a,
            images_b,
        )
        for name in ("emd_corrected", "se", "low", "high"):
            found[name][here] = getattr(of_emd, name)
        found["floor"][here] = floor(
            sums.half_a[:, a, None, : len(splits(k_a))],
            images_a,
            sums.half_b[:, None, b, : len(splits(k_b))],
            images_b,
        )
        apart = difference_gram(
            sums.gram_aa[:, a, None, :k_a, :k_a],
            sums.gram_bb[:, None, b, :k_b, :k_b],
            sums.gram_ab[here][..., :k_a, :k_b],
            images_a,
            images_b,
        )
        found["p"][here] = flip_test(apart)
    return found


def neuron_estimates(a: FoldCurves, b: FoldCurves, *, test: bool = True) -> dict[str, Floats]:
    """Computes the estimates of each neuron alone, for one pair of DNAs.

    Args:
        a: Curves whose first DNA is taken.
        b: Curves whose first DNA is taken.
        test: Whether to test, which takes most of the time. Without it `p` is NaN.

    Returns:
        (C,) of each of `NEURON_COLUMNS`, in bins. `shift` is by how much the mean of b's
        activations lies above a's; it is as large as `emd` if one distribution lies above the other
        everywhere. Estimates are NaN if a DNA has fewer than two folds.
    """
    rows = [side.whole.values[:, 0].astype(np.int64) for side in (a, b)]
    shifted = rows[0] - rows[1]
    undefined = a.whole.undefined[:, 0] | b.whole.undefined[:, 0]
    found = {name: np.full(len(shifted), np.nan) for name in NEURON_COLUMNS}
    found["emd"] = np.where(undefined, np.nan, np.abs(shifted).sum(axis=1) / ONE)
    found["shift"] = np.where(undefined, np.nan, shifted.sum(axis=1) / ONE)
    folds_a, folds_b = (int((side.images[0] > 0).sum()) for side in (a, b))
    if min(folds_a, folds_b) < 2:
        return found

    def without(side: FoldCurves, folds: int, other: Ints) -> Floats:
        each = [np.abs(side.dropped.values[:, k] - other).sum(axis=1) for k in range(folds)]
        return np.stack(each, axis=1) / ONE

    def curves(side: FoldCurves, folds: int) -> Floats:
        each = side.offsets[0, :folds].astype(np.float64) + side.whole_curve[0]
        return np.asarray(each.transpose(1, 0, 2))

    images_a, images_b = a.images[:, :folds_a], b.images[:, :folds_b]
    dropped_a, dropped_b = without(a, folds_a, rows[1]), without(b, folds_b, rows[0])
    of_emd = estimate(found["emd"], dropped_a, dropped_b, images_a, images_b)
    for name in ("emd_corrected", "se", "low", "high"):
        found[name] = getattr(of_emd, name)
    halves = [side.halves[:, 0, : len(splits(k))] for side, k in ((a, folds_a), (b, folds_b))]
    found["floor"] = floor(halves[0], images_a, halves[1], images_b)
    if test:
        apart = curve_difference_gram(curves(a, folds_a), curves(b, folds_b), images_a, images_b)
        found["p"] = flip_test(apart)
    unknown = undefined | a.unknown[:, 0] | b.unknown[:, 0]
    for name in PAIR_ESTIMATES:
        found[name][unknown] = np.nan
    return found


def paired_estimates(a: FoldCurves, b: FoldCurves) -> dict[str, Floats]:
    """Computes the distance of each neuron between the same images with a change and without.

    The folds of both DNAs have the same images. So each fold is left out on both sides at once.

    Args:
        a: Curves whose first DNA is taken, of two folds at least.
        b: Curves whose first DNA is taken, of the same folds.

    Returns:
        (C,) `emd` and its standard error `se`, in bins.
    """
    folds = int((a.images[0] > 0).sum())
    sides = [(side.whole.values[:, 0], side.dropped.values[:, :folds]) for side in (a, b)]
    whole, dropped = (
        np.asarray(np.abs(one.astype(np.int64) - other).sum(axis=-1) / ONE)
        for one, other in zip(*sides, strict=True)
    )
    _, se = jackknife(whole, dropped, a.images[0, :folds])
    unknown = a.unknown[:, 0] | b.unknown[:, 0]
    return {name: np.where(unknown, np.nan, of) for name, of in (("emd", whole), ("se", se))}


def _unknown(side: FoldCurves, used: Ints) -> NDArray[np.bool_]:
    """Returns (D,) whether a DNA's sums over these neurons are unknown."""
    return np.asarray(side.unknown[used].any(axis=0) | side.lacks_folds)


def _halves(side: FoldCurves, used: Ints, weights: Floats) -> Floats:
    """Returns the (D, 15) weighted sums of the distances between halves."""
    sums = np.einsum("n,nds->ds", weights[used], side.halves[used])
    sums[_unknown(side, used)] = np.nan
    return cast(Floats, sums)


def _grams(
    a: FoldCurves, b: FoldCurves, used: Ints, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """Returns the inner products of all folds: a with a, b with b, and a with b.

    The curve of a fold is the whole curve in float64 plus its offset in float32. So differences of
    folds keep their digits, which inner products of values near 1 would lose. For few neurons all
    is in float64: folds in which these hardly fire would differ by rounding.
    """
    bins_a_point = weights[used] * _step(a)
    size_a, size_b = len(a.images), len(b.images)
    even = np.all(bins_a_point == bins_a_point[0]) if len(used) else True

    kind: Any = np.float64 if len(used) <= FEW_NEURONS else np.float32

    def offsets(side: FoldCurves) -> NDArray[Any]:
        seen = side.offsets if len(used) == side.offsets.shape[2] else side.offsets[:, :, used]
        return seen.astype(kind, copy=False).reshape(len(side.images) * FOLDS, -1)

    def whole_curve(side: FoldCurves) -> Floats:
        return side.whole_curve[:, used].reshape(len(side.images), -1)

    scale = np.repeat(bins_a_point, a.offsets.shape[3])
    by = scale[0] if even and len(scale) else scale
    offsets_a, whole_curve_a = offsets(a), whole_curve(a)
    offsets_b, whole_curve_b = (
        (offsets_a, whole_curve_a) if a is b else (offsets(b), whole_curve(b))
    )

    def inner(x: Any, y: Any) -> Floats:
        if not len(used):
            return np.zeros((len(x), len(y)))
        if even:
            return np.asarray((x @ y.T) * by, np.float64)
        return np.asarray((x * by.astype(x.dtype)) @ y.T, np.float64)

    between_wholes = inner(
        np.concatenate([whole_curve_a, whole_curve_b]),
        np.concatenate([whole_curve_a, whole_curve_b]),
    )
    flat = np.concatenate([whole_curve_a, whole_curve_b]).astype(kind)
    tilt_a = inner(offsets_a, flat).reshape(size_a, FOLDS, -1)
    tilt_b = tilt_a if a is b else inner(offsets_b, flat).reshape(size_b, FOLDS, -1)
    cross = inner(offsets_a, offsets_b).reshape(size_a, FOLDS, size_b, FOLDS).transpose(0, 2, 1, 3)
    ab = (
        cross
        + tilt_a[:, :, size_a:].transpose(0, 2, 1)[:, :, :, None]
        + tilt_b[:, :, :size_a].transpose(2, 0, 1)[:, :, None, :]
        + between_wholes[:size_a, size_a:, None, None]
    )
    own = []
    for side, flow, tilt, at in ((a, offsets_a, tilt_a, 0), (b, offsets_b, tilt_b, size_a)):
        each = flow.reshape(len(side.images), FOLDS, -1)
        self_tilt = np.stack([tilt[d, :, at + d] for d in range(len(each))])
        squares = np.stack([inner(rows, rows) for rows in each])
        base = np.diagonal(between_wholes)[at : at + len(each)]
        own.append(squares + self_tilt[:, :, None] + self_tilt[:, None, :] + base[:, None, None])
    lacking = [(side.images == 0) | _unknown(side, used)[:, None] for side in (a, b)]
    ab[lacking[0][:, None, :, None] | lacking[1][None, :, None, :]] = np.nan
    for gram, missing in zip(own, lacking, strict=True):
        gram[missing[:, :, None] | missing[:, None, :]] = np.nan
    return own[0], own[1], ab


def _step(side: FoldCurves) -> int:
    return -(-side.bins // GRID)


@compiled
def _fill_folds(
    counts: Ints,
    shape: tuple[int, int],
    underflow: Ints,
    overflow: Ints,
    signs: Ints,
    at: Ints,
    row: int,
    dropped: Words,
    sums: Ints,
    slot: int,
    offsets: NDArray[np.float32],
    whole_curve: Floats,
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
            left_over = max(total - totals[k], 1)
            fixed = ONE / left_over
            area = 0
            out = dropped[neuron, row + k]
            for i in range(bins - 1):
                out[i] = np.uint32((whole[i] - below[k, i]) * fixed + 0.5)
                area += out[i]
            sums[neuron, row + k] = area
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
