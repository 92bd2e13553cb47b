"""Noise of distances by brute force in float64, from the histograms of the folds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.comparing import cumulative
from pipeline.comparing.fold_points import finest_step, grid
from pipeline.comparing.intervals import ABOVE, BELOW, KNOTS, REACH, patterns
from pipeline.dna import DNA, Floats


def at_points(dna: DNA, step: int | None = None) -> Floats:
    """(neurons, points) cumulative distribution at the points of the grid; 0 past the last bin."""
    bins = dna.spec.bins
    layers = [
        grid(bins, dna.spec.tap(layer).neurons, step or finest_step(bins)) for layer in dna.layers
    ]
    at, curve = np.concatenate(layers), cumulative(dna)
    inside = at < bins - 1
    return np.where(inside, np.take_along_axis(curve, np.where(inside, at, 0), axis=1), 0)


def draws(folds: Mapping[int, DNA]) -> tuple[Floats, Floats]:
    """(neurons, points) the whole cumulative distribution, and 15 draws of its noise."""
    parts = list(folds.values())
    counts = np.array(
        [dna.counts.sum(axis=1) + dna.underflow + dna.overflow for dna in parts], float
    )
    share = counts / counts.sum(axis=0)
    curves = np.array([at_points(dna) for dna in parts])
    whole = (share[..., None] * curves).sum(axis=0)
    deviations = share[..., None] * (curves - whole)
    return whole, np.tensordot(patterns(tuple(folds)), deviations, 1)


def functions(apart: Floats, error: Floats) -> Floats:
    """(6, ...) |difference|, and the functions whose means lie above and below the true one."""
    clipped = np.array([np.minimum(abs(apart), knot * error) for knot in KNOTS])
    factors = np.concatenate([ABOVE, BELOW])
    constants = factors @ np.array(KNOTS)
    more = np.tensordot(factors, clipped, 1) - np.multiply.outer(constants, error)
    return np.concatenate([abs(apart)[None], abs(apart) + more])


def brute_noise(
    a: Mapping[int, DNA], b: Mapping[int, DNA], weights: Floats, *, paired: bool = False
) -> tuple[Floats, Floats]:
    """(6,) what is added to a distance, and (30, 8) how it changes; sums over weighed neurons.

    With `paired` there are 15 draws, each twice: the noise of a less that of b.

    The last of these changes is unknown if rounding decides which side has the larger mean.
    """
    (whole_a, rows_a), (whole_b, rows_b) = draws(a), draws(b)
    apart = whole_a - whole_b
    apart[abs(apart) < 1e-12] = 0
    error = np.sqrt((rows_a**2).mean(axis=0) + (rows_b**2).mean(axis=0))
    if paired:
        error = np.sqrt(((rows_a - rows_b) ** 2).mean(axis=0))
    step = finest_step(next(iter(a.values())).spec.bins)
    used = np.flatnonzero(weights)

    def summed(values: Floats) -> Floats:
        return np.asarray(values[..., used, :].sum(axis=-1) @ weights[used] * step)

    plain = functions(apart, error)
    changes, noisier = [], []
    way = np.where(apart.sum(axis=1) > 0, 1.0, -1.0)[:, None]
    for row_a, row_b in zip(rows_a, rows_b, strict=True):
        for noise in (row_a - row_b if paired else row_a + row_b, row_a - row_b):
            above, below = (functions(apart + sign * REACH * noise, error) for sign in (1, -1))
            changed = summed(above - below) / (2 * REACH)
            signed = [summed(np.sign(apart) * noise), summed(way * noise)]
            changes.append(np.concatenate([changed, signed]))
            noisier.append(summed(above[0] + below[0]) / 2)
    more = summed(plain[1:] - plain[0])
    if (abs(apart.sum(axis=1)) < 1e-6)[used].any() and apart[used].any():
        for changed in changes:
            changed[-1] = np.nan
    return np.concatenate([[np.mean(noisier) - summed(plain[0])], more]), np.array(changes)
