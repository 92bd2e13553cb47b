"""Computes what the folds of two DNAs say of their distance: sums over neurons, and estimates.

    >>> a, b = (FoldCurves.of([whole], [folds]) for whole, folds in ...)        # doctest: +SKIP
    >>> fold_sums(a, b, weights).theta                                          # doctest: +SKIP

There are three kinds of sums. How distances change as noise is added and taken away serves the
interval. The halves of each DNA against each other serve the floor. The inner products of all
folds' cumulative distributions serve the test: from them any relabelling of the folds can be judged
without another look at the folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.comparing.emd_kernel import ONE, distances
from pipeline.comparing.fold_curves import FoldCurves
from pipeline.comparing.fold_points import SPLITS
from pipeline.comparing.intervals import (
    ADDED,
    CHANGES,
    DRAWS,
    Estimates,
    estimate,
    floor,
    floor_square,
    splits,
)
from pipeline.comparing.noise_kernel import neuron_noise, noise_sums
from pipeline.comparing.significance import (
    curve_difference_gram,
    difference_gram,
    difference_grams,
    flip_test,
    fold_shares,
    paired_shares,
)
from pipeline.dna import UNKNOWN, Floats, Ints, Pairs, Shared
from pipeline.spec import FOLDS

LEAST_PAIRED = 0.01
"""From this share of images in pairs on, noise is estimated for pairs. Of less it would be as good
as the same, but have half of the degrees of freedom."""

LEAST_COPIED = 0.95
"""From this share of both datasets' images in pairs on, one is taken for a copy of the other."""

PAIRS_AT_ONCE = 256
"""Pairs of DNAs that are estimated together. What is computed of them fits into caches."""

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
        added: (P, A, B, 6) what the sums `ADDED` are larger by than the distances.
        changes: (P, A, B, 30, 8) changes of the sums `CHANGES`, for each draw of noise.
        half_a: (P, A, 15) distances between the halves of a DNA, for each of its balanced splits.
        half_b: (P, B, 15) the same of b.
        gram_aa: (P, A, 16, 16) inner products of the folds' cumulative distributions.
        gram_bb: (P, B, 16, 16) the same of b.
        gram_ab: (P, A, B, 16, 16) inner products of a's folds with b's.
        images_a: (A, 16) int64 images of each fold of a.
        images_b: (B, 16) int64 images of each fold of b.
        numbers_a: (A, 16) int64 numbers of a's folds; -1 for those it does not have.
        numbers_b: (B, 16) int64 numbers of b's folds.
        paired: (A, B) share of the smaller dataset's images that are in pairs with the other's, and
            both in folds of one number; NaN if that is not known.
        copied: (A, B) the same, as a share of the larger dataset's images.
    """

    theta: Floats
    added: Floats
    changes: Floats
    half_a: Floats
    half_b: Floats
    gram_aa: Floats
    gram_bb: Floats
    gram_ab: Floats
    images_a: Ints
    images_b: Ints
    numbers_a: Ints
    numbers_b: Ints
    paired: Floats
    copied: Floats

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
            if column in _OF_ALL_LAYERS:
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
            added=unknown(a, b, len(ADDED)),
            changes=unknown(a, b, DRAWS, len(CHANGES)),
            half_a=unknown(a, SPLITS),
            half_b=unknown(b, SPLITS),
            gram_aa=unknown(a, FOLDS, FOLDS),
            gram_bb=unknown(b, FOLDS, FOLDS),
            gram_ab=unknown(a, b, FOLDS, FOLDS),
            images_a=np.zeros((a, FOLDS), np.int64),
            images_b=np.zeros((b, FOLDS), np.int64),
            numbers_a=np.full((a, FOLDS), -1, np.int64),
            numbers_b=np.full((b, FOLDS), -1, np.int64),
            paired=np.full((a, b), np.nan),
            copied=np.full((a, b), np.nan),
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

    def clear(self) -> None:
        """Sets all sums to zero."""
        for column in _sums_over_neurons():
            getattr(self, column)[:] = 0

    def add(self, layer: FoldSums) -> None:
        """Adds the sums of another layer, of the same DNAs.

        Args:
            layer: The sums, of one plane.
        """
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(layer, field.name)
            if field.name in _OF_ALL_LAYERS:
                mine[:] = theirs
            else:
                mine += theirs

    def divided(self, by: float) -> FoldSums:
        """Divides all sums.

        Args:
            by: The weight of all neurons, or NaN.

        Returns:
            Means over neurons.
        """
        return replace(
            self, **{column: getattr(self, column) / by for column in _sums_over_neurons()}
        )

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
            self.added[:, a, b],
            self.changes[:, a, b],
            self.half_a[:, a],
            self.half_b[:, b],
            self.gram_aa[:, a],
            self.gram_bb[:, b],
            self.gram_ab[:, a, b],
            self.images_a[a],
            self.images_b[b],
            self.numbers_a[a],
            self.numbers_b[b],
            self.paired[a, b],
            self.copied[a, b],
        )


_OF_ALL_LAYERS = ("images_a", "images_b", "numbers_a", "numbers_b", "paired", "copied")
"""Fields of `FoldSums` that are no sums over neurons."""


def _sums_over_neurons() -> list[str]:
    return [field.name for field in fields(FoldSums) if field.name not in _OF_ALL_LAYERS]


def fold_sums(
    a: FoldCurves,
    b: FoldCurves,
    weights: Floats,
    *,
    threads: int | None = None,
    device: str = "cpu",
) -> FoldSums:
    """Computes the sums of one layer for all DNAs of a against all of b.

    If `a` is `b`, half of the pairs are computed.

    Args:
        a: DNAs on one side.
        b: DNAs on the other side.
        weights: (C,) weights of the neurons.
        threads: Threads to use; None for all cores.
        device: Where the distances are computed: the CPU, or a device of torch.

    Returns:
        Weighted sums over neurons, undivided, in a single plane.
    """
    used = np.flatnonzero(weights)

    theta = distances(a.whole, b.whole, weights, threads=threads, device=device)
    paired, copied = _paired_images(a, b)
    added, changes = noise_sums(
        a.noise, b.noise, weights * a.step, paired=paired >= LEAST_PAIRED, threads=threads
    )
    unknown = _unknown(a, used)[:, None] | _unknown(b, used)
    added[unknown], changes[unknown] = np.nan, np.nan
    gram_ab = _grams_between(a, b, weights)
    half_a = _halves(a, used, weights)
    half_b = half_a if a is b else _halves(b, used, weights)
    return FoldSums(
        theta[None],
        added[None],
        changes[None],
        half_a[None],
        half_b[None],
        _own_grams(a, weights)[None],
        _own_grams(b, weights)[None],
        gram_ab[None],
        a.images,
        b.images,
        a.numbers,
        b.numbers,
        paired,
        copied,
    )


METHOD = "5"
"""Version of the estimates. Raise it with any change of how one is computed, here, in `intervals`,
`fold_points`, `fold_curves`, `noise_kernel`, `noise_vectors` or `significance`: kept matrices,
tiles and counts of folds of another version are made anew."""

PAIR_ESTIMATES = ("emd_corrected", "se", "low", "high", "floor", "p", "paired")
"""Estimates of a pair that do not depend on other pairs. The last is the share of its images that
are in pairs. From `LEAST_PAIRED` on, the estimates before are those for pairs."""

INTERVAL = tuple(field.name for field in fields(Estimates))
"""Those that `intervals.estimate` makes."""

NEURON_COLUMNS = ("emd", "shift", *PAIR_ESTIMATES)
"""What is known of a neuron's distance."""


def estimates(sums: FoldSums, weight: float = 1.0, *, upper: bool = False) -> dict[str, Floats]:
    """Computes all estimates of pairs from their sums.

    Args:
        sums: Sums over neurons whose weights are not negative.
        weight: What to divide them by: the weight of all neurons, or NaN.
        upper: Whether only pairs above the diagonal are wanted.

    Returns:
        (P, A, B) of each of `PAIR_ESTIMATES`; NaN if a DNA has fewer than two folds, and for pairs
        that are not wanted.
    """
    found = {name: np.full(sums.theta.shape, np.nan) for name in PAIR_ESTIMATES}
    folds_a, folds_b = ((images > 0).sum(axis=1) for images in (sums.images_a, sums.images_b))
    estimated = (folds_a >= 2)[:, None] & (folds_b >= 2)
    if upper:
        estimated = np.triu(estimated, 1)
    found["paired"][:] = np.where(estimated, sums.paired, np.nan)
    for k_a, k_b in product(np.unique(folds_a).tolist(), np.unique(folds_b).tolist()):
        if min(k_a, k_b) < 2:
            continue
        alike = _OfAlike.of(sums, weight, k_a, k_b)
        pairs = np.argwhere(estimated & (folds_a == k_a)[:, None] & (folds_b == k_b))
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            rows, columns = pairs[start : start + PAIRS_AT_ONCE].T
            for name, values in alike.estimates(rows, columns).items():
                found[name][:, rows, columns] = values
    for i, j in np.argwhere((sums.paired >= LEAST_PAIRED) & estimated):
        one = sums.select(slice(i, i + 1), slice(j, j + 1))
        found["p"][:, i, j] = _paired_test(one.divided(weight))
    return found


@dataclass(frozen=True, eq=False)
class _OfAlike:
    """Estimates of pairs whose DNAs have so many folds.

    Attributes:
        sums: Sums over neurons.
        weight: What to divide them by.
        folds: Folds of a, and of b.
        squares: What each DNA of a, and of b, adds to the square of a floor.
        grams: Means of the inner products of the folds of each DNA of a, and of b.
    """

    sums: FoldSums
    weight: float
    folds: tuple[int, int]
    squares: tuple[Floats, Floats]
    grams: tuple[Floats, Floats]

    @classmethod
    def of(cls, sums: FoldSums, weight: float, k_a: int, k_b: int) -> _OfAlike:
        sides = (
            (k_a, sums.half_a, sums.images_a, sums.gram_aa),
            (k_b, sums.half_b, sums.images_b, sums.gram_bb),
        )
        with np.errstate(invalid="ignore", divide="ignore"):  # of DNAs without folds
            squares = [
                floor_square(halves[..., : len(splits(k))] / weight, images[:, :k])
                for k, halves, images, _ in sides
            ]
        grams = [gram[..., :k, :k] / weight for k, _, _, gram in sides]
        return cls(sums, weight, (k_a, k_b), (squares[0], squares[1]), (grams[0], grams[1]))

    def estimates(self, rows: Ints, columns: Ints) -> dict[str, Floats]:
        """Returns the (P, N) estimates of N pairs."""
        sums, (k_a, k_b) = self.sums, self.folds
        emd, added, changes = (
            of[:, rows, columns] / self.weight for of in (sums.theta, sums.added, sums.changes)
        )
        together = sums.paired[rows, columns] >= LEAST_PAIRED
        copied = sums.copied[rows, columns] >= LEAST_COPIED
        of_emd = estimate(emd, added, changes, k_a, k_b, together, copied)
        found = {name: getattr(of_emd, name) for name in INTERVAL}
        found["floor"] = np.sqrt(self.squares[0][:, rows] + self.squares[1][:, columns])
        found["p"] = np.full(emd.shape, np.nan)
        found["p"][:, ~together] = self._test(rows[~together], columns[~together])
        return found

    def _test(self, rows: Ints, columns: Ints) -> Floats:
        """Returns the (P, N) p of N pairs of independent datasets."""
        (k_a, k_b), (own_a, own_b) = self.folds, self.grams
        across = self.sums.gram_ab[:, rows, columns, :k_a, :k_b] / self.weight
        if k_a == k_b:
            return flip_test(difference_grams(own_a, own_b, across, rows, columns))
        shares = fold_shares(self.sums.images_a[rows, :k_a], self.sums.images_b[columns, :k_b])
        return flip_test(difference_gram(own_a[:, rows], own_b[:, columns], across, *shares))


def _paired_test(sums: FoldSums) -> Floats:
    """Returns the (P,) p of a pair of DNAs whose images are in pairs."""
    one, other = (slice(0, (images > 0).sum()) for images in (sums.images_a[0], sums.images_b[0]))
    shares = paired_shares(
        sums.images_a[0, one],
        sums.numbers_a[0, one],
        sums.images_b[0, other],
        sums.numbers_b[0, other],
    )
    return flip_test(
        difference_gram(
            sums.gram_aa[:, 0, one, one],
            sums.gram_bb[:, 0, other, other],
            sums.gram_ab[:, 0, 0, one, other],
            *shares,
        )
    )


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
    folds_a, folds_b = (int(side.folds[0]) for side in (a, b))
    if min(folds_a, folds_b) < 2:
        return found
    images_a, images_b = a.images[:, :folds_a], b.images[:, :folds_b]
    share = _paired_share(a.pairs[0], b.pairs[0])
    found["paired"][:] = share.of_smaller
    paired, copied = share.of_smaller >= LEAST_PAIRED, share.of_larger >= LEAST_COPIED
    noise = neuron_noise(a.noise, b.noise, a.step, paired=paired)
    of_emd = estimate(found["emd"], *noise, folds_a, folds_b, paired, copied)
    for name in INTERVAL:
        found[name] = getattr(of_emd, name)
    halves = [side.halves[:, 0, : len(splits(k))] for side, k in ((a, folds_a), (b, folds_b))]
    found["floor"] = floor(halves[0], images_a, halves[1], images_b)
    if test:
        found["p"] = _neuron_test(a, b, paired=paired)
    unknown = undefined | a.unknown[:, 0] | b.unknown[:, 0]
    for name in PAIR_ESTIMATES:
        found[name][unknown] = np.nan
    return found


def _neuron_test(a: FoldCurves, b: FoldCurves, *, paired: bool) -> Floats:
    """Returns the (C,) p of each neuron, for the first DNAs of a and b.

    Args:
        a: Curves of two folds at least.
        b: Curves of two folds at least.
        paired: Whether folds of one number have the same images, or those in pairs.
    """
    images, numbers, curves = [], [], []
    for side in (a, b):
        folds = int(side.folds[0])
        images.append(side.images[0, :folds])
        numbers.append(side.numbers[0, :folds])
        each = side.offsets[0, :folds].astype(np.float64) + side.whole_curve()[0]
        curves.append(each.transpose(1, 0, 2))
    shares = (
        paired_shares(images[0], numbers[0], images[1], numbers[1])
        if paired
        else fold_shares(images[0], images[1])
    )
    return flip_test(curve_difference_gram(curves[0], curves[1], *shares))


def paired_estimates(a: FoldCurves, b: FoldCurves, *, test: bool = False) -> dict[str, Floats]:
    """Computes the distance of each neuron between the same images with a change and without.

    The folds of both DNAs have the same images. Nothing is corrected for noise: only the change is
    between the two.

    Args:
        a: Curves whose first DNA is taken, of two folds at least.
        b: Curves whose first DNA is taken, of the same folds.
        test: Whether to test if the change moves a neuron.

    Returns:
        (C,) `emd` and its standard error `se`, in bins; with `test` also `p`.
    """
    one, other = (side.whole.values[:, 0].astype(np.int64) for side in (a, b))
    whole = np.asarray(np.abs(one - other).sum(axis=-1) / ONE)
    _, changes = neuron_noise(a.noise, b.noise, a.step, paired=True)
    se = np.sqrt((changes[:, :, 0] ** 2).mean(axis=1))
    unknown = a.unknown[:, 0] | b.unknown[:, 0]
    found = {"emd": whole, "se": se}
    if test:
        found["p"] = _neuron_test(a, b, paired=True)
    return {name: np.where(unknown, np.nan, of) for name, of in found.items()}


def _paired_images(a: FoldCurves, b: FoldCurves) -> tuple[Floats, Floats]:
    """Returns (A, B) shares of the smaller DNAs' images that are in pairs, and of the larger's."""
    shares = np.array([[_paired_share(one, other) for other in b.pairs] for one in a.pairs], float)
    return shares[..., 0], shares[..., 1]


@lru_cache(maxsize=2**20)  # each layer asks again; a tile has fewer pairs
def _paired_share(a: Pairs | None, b: Pairs | None) -> Shared:
    return UNKNOWN if a is None or b is None else a.shared(b)


def _unknown(side: FoldCurves, used: Ints) -> NDArray[np.bool_]:
    """Returns (D,) whether a DNA's sums over these neurons are unknown."""
    return np.asarray(side.unknown[used].any(axis=0) | side.lacks_folds)


def _halves(side: FoldCurves, used: Ints, weights: Floats) -> Floats:
    """Returns the (D, 15) weighted sums of the distances between halves."""
    sums = np.einsum("n,nds->ds", weights[used], side.halves[used])
    sums[_unknown(side, used)] = np.nan
    return cast(Floats, sums)


@dataclass(frozen=True)
class _Products:
    """Weighted inner products of curves of folds, over the points of all neurons that are used.

    The curve of a fold is the whole curve in float64 plus its offset in float32. So differences of
    folds keep their digits, which inner products of values near 1 would lose. Products of offsets
    with offsets are added up in float32. If there are few neurons, they are added up in float64, as
    folds in which these hardly fire would differ by rounding. Products of offsets with whole curves
    always are, as they are larger, and those of near copies cancel.

    Attributes:
        used: (U,) numbers of the neurons whose weight is not 0.
        scale: (U G,) bins that each point stands for, times the neuron's weight.
    """

    used: Ints
    scale: Floats

    @classmethod
    def of(cls, side: FoldCurves, weights: Floats) -> _Products:
        """Weighs the neurons; all curves of a layer have the same points."""
        used = np.flatnonzero(weights)
        return cls(used, np.repeat(weights[used] * side.step, side.offsets.shape[3]))

    def inner(self, x: NDArray[Any], y: NDArray[Any]) -> Floats:
        """Returns the (X, Y) products of rows with rows."""
        if not len(self.scale):
            return np.zeros((len(x), len(y)))
        if self.even:
            return np.asarray((x @ y.T) * self.scale[0], np.float64)
        return np.asarray((x * self.scale.astype(x.dtype)) @ y.T, np.float64)

    def tilts(self, offsets: NDArray[Any], wholes: Floats) -> Floats:
        """Returns the (D 16, W) products of the offsets of D DNAs with W whole curves."""
        found = np.empty((len(offsets), len(wholes)))
        for start in range(0, len(offsets), FOLDS):  # in float64, they take much memory
            rows = slice(start, start + FOLDS)
            found[rows] = self.inner(offsets[rows].astype(np.float64, copy=False), wholes)
        return found

    @cached_property
    def even(self) -> bool:
        """Whether all neurons that are used weigh the same."""
        return bool((self.scale == self.scale[:1]).all())

    def offsets(self, side: FoldCurves) -> NDArray[Any]:
        """Returns the (D 16, U G) offsets of all folds."""
        kind = np.float64 if len(self.used) <= FEW_NEURONS else np.float32
        everything = len(self.used) == side.offsets.shape[2]
        seen = side.offsets if everything else side.offsets[:, :, self.used]
        return seen.astype(kind, copy=False).reshape(len(side.images) * FOLDS, -1)

    def whole_curve(self, side: FoldCurves) -> Floats:
        """Returns the (D, U G) whole curves."""
        return side.whole_curve()[:, self.used].reshape(len(side.images), -1)

    def lacking(self, side: FoldCurves) -> NDArray[np.bool_]:
        """Returns (D, 16) whether a DNA does not have a fold, or it is unknown."""
        return np.asarray((side.images == 0) | _unknown(side, self.used)[:, None])


def _grams_between(a: FoldCurves, b: FoldCurves, weights: Floats) -> Floats:
    """Returns the (A, B, 16, 16) inner products of a's folds with b's; NaN for those that lack."""
    products = _Products.of(a, weights)
    sides = [(products.offsets(side), products.whole_curve(side)) for side in (a, b)]
    (offsets_a, whole_a), (offsets_b, whole_b) = sides if a is not b else sides[:1] * 2
    shape = len(whole_a), FOLDS, len(whole_b), FOLDS
    tilt_a = products.tilts(offsets_a, whole_b).reshape(shape[:3])
    tilt_b = products.tilts(offsets_b, whole_a) if a is not b else tilt_a
    tilt_b = tilt_b.reshape(shape[2], FOLDS, shape[0])
    found = products.inner(offsets_a, offsets_b).reshape(shape).transpose(0, 2, 1, 3)
    found = found + products.inner(whole_a, whole_b)[:, :, None, None]
    found += tilt_a.transpose(0, 2, 1)[:, :, :, None]
    found += tilt_b.transpose(2, 0, 1)[:, :, None, :]
    lacks_a, lacks_b = products.lacking(a), products.lacking(b)
    found[lacks_a[:, None, :, None] | lacks_b[None, :, None, :]] = np.nan
    return found


def _own_grams(side: FoldCurves, weights: Floats) -> Floats:
    """Returns the (D, 16, 16) inner products of each DNA's own folds; NaN for those that lack.

    They are kept with the curves, as the same DNAs are compared with others step by step.
    """
    key = weights.tobytes()
    if key not in side.own_grams:
        products = _Products.of(side, weights)
        rows, wholes = products.offsets(side), products.whole_curve(side)
        found = np.empty((len(wholes), FOLDS, FOLDS))
        for slot, whole in enumerate(wholes):
            own = rows[slot * FOLDS : (slot + 1) * FOLDS]
            tilt = products.tilts(own, whole[None])
            square = products.inner(whole[None], whole[None])
            found[slot] = products.inner(own, own) + tilt + tilt.T + square
        lacks = products.lacking(side)
        found[lacks[:, :, None] | lacks[:, None, :]] = np.nan
        side.own_grams.clear()  # one lens after the other
        side.own_grams[key] = found
    return side.own_grams[key]
