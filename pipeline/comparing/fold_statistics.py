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
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.comparing.emd_kernel import ONE, distances
from pipeline.comparing.fold_curves import FoldCurves
from pipeline.comparing.fold_differences import (
    TURNS,
    FoldedCurves,
    fold_products,
    products_gram,
)
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
from pipeline.comparing.noise_kernel import Flags, neuron_noise, noise_sums
from pipeline.comparing.significance import (
    curve_difference_gram,
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

ROUNDED_OFFSETS, ROUNDED_CURVES = 1e-12, 1e-20
"""The difference of two folds may be rounding if its square is no more than so many times the mean
square of what folds of one dataset differ by, which is in float32; or than so many times the bins
that are compared, as curves in float64 are up to 1. A test would make something of its sign."""


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
        products: (P, A, B, 9, 16) inner products of the differences of paired folds, arranged as
            `fold_products` does; zero where the differences may be rounding.
        images_a: (A, 16) int64 images of each fold of a.
        images_b: (B, 16) int64 images of each fold of b.
        tested: (A, B) int64 number of pairs of folds.
        paired: (A, B) share of the smaller dataset's images that are in pairs with the other's, and
            both in folds of one number; NaN if that is not known.
        copied: (A, B) the same, as a share of the larger dataset's images.
    """

    theta: Floats
    added: Floats
    changes: Floats
    half_a: Floats
    half_b: Floats
    products: Floats
    images_a: Ints
    images_b: Ints
    tested: Ints
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
            products=unknown(a, b, TURNS, FOLDS),
            images_a=np.zeros((a, FOLDS), np.int64),
            images_b=np.zeros((b, FOLDS), np.int64),
            tested=np.zeros((a, b), np.int64),
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
            self.products[:, a, b],
            self.images_a[a],
            self.images_b[b],
            self.tested[a, b],
            self.paired[a, b],
            self.copied[a, b],
        )


_OF_ALL_LAYERS = ("images_a", "images_b", "tested", "paired", "copied")
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
    together = paired >= LEAST_PAIRED
    added, changes = noise_sums(
        a.noise, b.noise, weights * a.step, paired=together, threads=threads
    )
    products, tested = _products(a, b, weights * a.step, together, threads)
    unknown = _unknown(a, used)[:, None] | _unknown(b, used)
    for of_folds in (added, changes, products):
        of_folds[unknown] = np.nan
    half_a = _halves(a, used, weights)
    half_b = half_a if a is b else _halves(b, used, weights)
    return FoldSums(
        theta[None],
        added[None],
        changes[None],
        half_a[None],
        half_b[None],
        products[None],
        a.images,
        b.images,
        tested,
        paired,
        copied,
    )


METHOD = "6"
"""Version of the estimates. Raise it with any change of how one is computed, here, in `intervals`,
`fold_points`, `fold_curves`, `fold_differences`, `noise_kernel`, `noise_vectors` or `significance`:
kept matrices, tiles and counts of folds of another version are made anew."""

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
    return found


@dataclass(frozen=True, eq=False)
class _OfAlike:
    """Estimates of pairs whose DNAs have so many folds.

    Attributes:
        sums: Sums over neurons.
        weight: What to divide them by.
        folds: Folds of a, and of b.
        squares: What each DNA of a, and of b, adds to the square of a floor.
    """

    sums: FoldSums
    weight: float
    folds: tuple[int, int]
    squares: tuple[Floats, Floats]

    @classmethod
    def of(cls, sums: FoldSums, weight: float, k_a: int, k_b: int) -> _OfAlike:
        sides = (k_a, sums.half_a, sums.images_a), (k_b, sums.half_b, sums.images_b)
        with np.errstate(invalid="ignore", divide="ignore"):  # of DNAs without folds
            squares = [
                floor_square(halves[..., : len(splits(k))] / weight, images[:, :k])
                for k, halves, images in sides
            ]
        return cls(sums, weight, (k_a, k_b), (squares[0], squares[1]))

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
        tested = sums.tested[rows, columns]
        for folds in np.unique(tested).tolist():
            of = tested == folds
            products = sums.products[:, rows[of], columns[of]] / self.weight
            found["p"][:, of] = flip_test(products_gram(products, folds))
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
        offsets = side.offsets[0, ..., :folds].astype(np.float64)
        curves.append((offsets + side.whole_curve()[0, ..., None]).transpose(0, 2, 1))
    shares = (
        paired_shares(images[0], numbers[0], images[1], numbers[1])
        if paired
        else fold_shares(images[0], images[1])
    )
    gram = curve_difference_gram(curves[0], curves[1], *shares)
    limit = ROUNDED_OFFSETS * (a.spread[:, :1] + b.spread[:, :1]) / max(gram.shape[-1], 1)
    rounded = np.einsum("...kk->...k", gram) <= limit
    gram[rounded[:, :, None] | rounded[:, None, :]] = 0
    return flip_test(gram)


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


def _products(
    a: FoldCurves, b: FoldCurves, weights: Floats, together: Flags, threads: int | None
) -> tuple[Floats, Ints]:
    """Sums products of the differences of paired folds; zero where these may be rounding.

    Args:
        a: DNAs on one side.
        b: DNAs on the other side.
        weights: (C,) weight of each neuron, times the bins that a point stands for.
        together: (A, B) whether the folds of one number are paired, as their images are in pairs.
            If not, those of one place are.
        threads: Threads to use; None for all cores.

    Returns:
        (A, B, 9, 16) products, see `fold_products`, and (A, B) how many folds are paired.
    """
    plain = FoldedCurves(a.noise.whole, a.offsets)
    other = plain if a is b else FoldedCurves(b.noise.whole, b.offsets)
    sums = fold_products(plain, other, weights, threads=threads)
    tested = np.minimum(a.folds[:, None], b.folds)
    for k_a, k_b in product(np.unique(a.folds).tolist(), np.unique(b.folds).tolist()):
        if k_a == k_b or min(k_a, k_b) < 2:
            continue
        rows, columns = np.flatnonzero(a.folds == k_a), np.flatnonzero(b.folds == k_b)
        shares = fold_shares(a.images[rows, :k_a], b.images[columns, :k_b])
        merged = plain.merged(rows, shares[0]), other.merged(columns, shares[1])
        sums[np.ix_(rows, columns)] = fold_products(*merged, weights, threads=threads)
    for i, j in np.argwhere(together & ~a.lacks_folds[:, None] & ~b.lacks_folds):
        if (a.numbers[i] != b.numbers[j]).any():
            one, another = (
                (side.images[at, : side.folds[at]], side.numbers[at, : side.folds[at]])
                for side, at in ((a, i), (b, j))
            )
            shares = paired_shares(*one, *another)
            tested[i, j] = len(shares[0])
            sums[i, j] = fold_products(
                plain.merged(np.array([i]), shares[0][None]),
                other.merged(np.array([j]), shares[1][None]),
                weights,
            )[0, 0]
    size = np.abs(weights)
    spread = (size @ a.spread)[:, None] + size @ b.spread
    limit = (ROUNDED_OFFSETS * spread + ROUNDED_CURVES * size.sum()) / np.maximum(tested, 1)
    rounded = np.abs(sums[:, :, 0]) <= limit[..., None]
    some = rounded.any(axis=-1)
    left, rounded = sums[some], rounded[some]
    for turn in range(TURNS):
        left[:, turn][rounded | np.roll(rounded, -turn, axis=1)] = 0
    sums[some] = left
    return sums, tested
