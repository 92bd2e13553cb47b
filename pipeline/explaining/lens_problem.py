"""Finds the weights of a lens that ignores some attributes and keeps others.

    >>> problem = FitProblem(seen.whole, ["ignored", "kept"])            # doctest: +SKIP
    >>> problem.fit(0.01, np.arange(3120), non_negative=False)           # doctest: +SKIP

Weights x of mean 1 (Ramtoula et al., CVPR 2023, section 5.3) minimise

    10 mean over ignored (r x)^2 + mean over kept (r x - 1)^2 + ridge sum v (x - 1)^2

where r is an attribute's row of distances, divided by their sum: r x is its distance through the
lens over that of all neurons alike. What is ignored is fitted to as plain distances, and what is
kept to as corrected ones. The correction leaves nothing of a neuron whose distance chance alone
could make. The attribute may move that neuron, too, and a lens does not cancel what it is not shown
(docs/experiments.md, "Fitted to other images"). The factor 10 says that ignoring is more urgent
than keeping. v, of sum 1, is by how much a neuron's distances vary from image to image, by the
jackknife over folds, nine parts of ten, and one part the same for all: a weight on a neuron that
varies does something else on other images. The problem is convex. It is solved in closed form if
weights may be negative, and by its dual otherwise, with SciPy's trust region method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dna import Floats
from pipeline.errors import VdnaError
from pipeline.explaining.fitted_lens import Role
from pipeline.wording import option

IGNORED_WEIGHT = 10.0
"""The weight of an ignored attribute in the fit; a kept one has weight 1."""

EVEN_SHARE = 0.1
"""The part of the ridge that is the same for all neurons."""


@dataclass(frozen=True, eq=False)
class NeuronDistances:
    """What neurons see of A attributes.

    Attributes:
        distances: (A, N) distances, in bins; corrected, unless both sides are the same images.
        variances: (A, N) variances of these.
        plain: (A, N) the same distances, not corrected; None if they are equal.
    """

    distances: Floats
    variances: Floats
    plain: Floats | None = None


@dataclass(frozen=True, eq=False)
class FitProblem:
    """The least-squares problem of a lens that ignores and keeps attributes.

    Attributes:
        view: What neurons see of the attributes.
        roles: What the lens should do with each attribute.
    """

    view: NeuronDistances
    roles: Sequence[Role]

    @cached_property
    def _distances(self) -> Floats:
        """(A, N) what is fitted to: plain distances where one is ignored, and corrected ones."""
        if self.view.plain is None:
            return self.view.distances
        ignored = np.array(self.roles)[:, None] == "ignored"
        return np.where(ignored, self.view.plain, self.view.distances)

    @cached_property
    def _total(self) -> Floats:
        return _sums(self._distances)

    @cached_property
    def rows(self) -> Floats:
        """(A, N) distances that are fitted to, each row divided by its sum."""
        return self._distances / self._total

    def through(self, x: Floats) -> Floats:
        """Computes the distances through weights, corrected on whatever the weights were fitted to.

        Args:
            x: (N,) weights of mean 1.

        Returns:
            (A,) distances, as shares of those of all neurons alike.
        """
        return np.asarray(self.view.distances / _sums(self.view.distances) @ x)

    @cached_property
    def _shares(self) -> Floats:
        """(A,) how much each attribute counts; those of a role are averaged."""
        roles = np.array(self.roles)
        counts = {"ignored": IGNORED_WEIGHT, "kept": 1.0}
        return np.array([counts[role] / np.count_nonzero(roles == role) for role in roles])

    @cached_property
    def ridge_shares(self) -> Floats:
        """(N,) of sum 1: how strongly the ridge holds each neuron's weight."""
        varies = self._shares @ (self.view.variances / self._total**2)
        even = np.full(len(varies), 1 / len(varies))
        return (
            EVEN_SHARE * even + (1 - EVEN_SHARE) * varies / varies.sum()
            if varies.sum() > 0
            else even
        )

    @cached_property
    def _wanted(self) -> Floats:
        return np.array([0.0 if role == "ignored" else 1.0 for role in self.roles])

    def fit(self, ridge: float, groups: NDArray[Any], *, non_negative: bool) -> Floats:
        """Solves the problem.

        Args:
            ridge: Strength of the ridge.
            groups: (N,) numbers; neurons of one number have one weight.
            non_negative: Whether weights may not be negative.

        Returns:
            (N,) weights of mean 1.
        """
        _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        summed = np.array([np.bincount(place, row) for row in self.rows], np.float64)
        scale = np.sqrt(self._shares)[:, None]
        rows, wanted = summed * scale, self._wanted * scale[:, 0]
        share = sizes / sizes.sum()  # of each group in the mean
        stiff = np.asarray(np.bincount(place, self.ridge_shares), np.float64)
        if non_negative:
            return _non_negative(rows, wanted, ridge * stiff, share)[place]
        # In terms of d = x - 1, of mean 0, with the ridge on sqrt(stiff) d, this is a least-squares
        # problem of least norm.
        root = np.sqrt(stiff)
        fixed = share / root / np.linalg.norm(share / root)
        free = rows / root
        free = free - (free @ fixed)[:, None] * fixed
        gram = free @ free.T + ridge * np.eye(len(free))
        d = free.T @ np.linalg.solve(gram, wanted - rows.sum(axis=1))
        x: Floats = 1 + d / root
        return x[place]

    def loss(self, x: Floats, told: NDArray[np.bool_]) -> float:
        """Computes what is left of the ignored attributes and lost of the kept ones.

        Args:
            x: (N,) weights of mean 1.
            told: (A,) which attributes count.

        Returns:
            The loss without the ridge.
        """
        off = (self.rows @ x - self._wanted) ** 2
        shares = np.where(told, self._shares, 0.0)
        return float(off @ shares)


def _sums(distances: Floats) -> Floats:
    """Returns the (A, 1) sums of rows; infinity where nothing is left of a row."""
    total = distances.sum(axis=1, keepdims=True)
    return np.where(total > 0, total, np.inf)


def _non_negative(rows: Floats, wanted: Floats, ridge: Floats, share: Floats) -> Floats:
    """Finds the x >= 0 of mean 1 that minimises |rows x - wanted|^2 + sum ridge (x - 1)^2.

    It is found by its dual. With the multipliers (v, e) of `rows x - wanted` and of the mean, x is
    max(0, 1 - (rows' v + e share) / (2 ridge)). So there is one unknown for each attribute, and one
    more.

    Returns:
        (N,) weights.

    Raises:
        VdnaError: If the search does not end.
    """
    from scipy.optimize import minimize  # slow to import

    by = np.vstack([rows, share])
    told = np.append(wanted, 1.0)
    soft = np.append(np.full(len(rows), 0.5), 0.0)

    def weights(v: Floats) -> Floats:
        return np.maximum(0.0, 1 - (by.T @ v) / (2 * ridge))

    def loss(v: Floats) -> tuple[float, Floats]:
        x, pulled = weights(v), by.T @ v
        value = v @ (soft * v) / 2 + v @ told - ridge @ (x - 1) ** 2 - x @ pulled
        return float(value), soft * v + told - by @ x

    def curvature(v: Floats) -> Floats:
        above = weights(v) > 0
        inner = (by[:, above] / ridge[above]) @ by[:, above].T / 2
        return np.asarray(np.diag(soft) + inner)

    start = np.zeros(len(by))
    how: dict[str, Any] = {"gtol": 1e-9, "maxiter": 2000}
    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options=how)
    x = weights(found.x)
    total = share @ x
    if not abs(total - 1) < 1e-3:
        raise VdnaError(
            f"no weights were found for this lens ({found.message}; their mean is {total:g}, "
            f"not 1); fit it without {option('non_negative')}"
        )
    return np.asarray(x / total)
