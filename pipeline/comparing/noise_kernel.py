"""Adds and takes away the noise of pairs of DNAs, and sums how their distances change.

    >>> sums = noise_sums(a, b, weights)                                # doctest: +SKIP

For each of thirty draws of the noise, and each point of each neuron's curves, the difference is
clipped at several multiples of its standard error, once with the noise added and once with it taken
away (`pipeline.comparing.intervals`). Everything is in float32 within a neuron, and in float64 over
neurons. A pair's sums are the same whatever other pairs are computed beside it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.comparing.emd_kernel import LANES
from pipeline.comparing.intervals import (
    ABOVE,
    ADDED,
    BELOW,
    CHANGES,
    DRAWS,
    KNOTS,
    PATTERNS,
    REACH,
)
from pipeline.compiled import compiled
from pipeline.dna import Floats, Ints
from pipeline.spec import available_cpus

Draws = NDArray[np.float32]

Flags = NDArray[np.bool_]

_CLIPS = len(KNOTS)
_HALF, _ONE, _ONE_HALF, _TWO, _THREE, _FOUR = (np.float32(knot) for knot in KNOTS)
_NOISE = np.float32(REACH)
_PATTERNS = np.float32(PATTERNS)

LEVELS = _CLIPS + 2
"""Sums of a pair without added noise: clipped differences, plain ones, and standard errors."""

MOVES = _CLIPS + 4
"""Sums for each draw: changes of clipped and plain differences, the sum of both plain ones, and
changes with the signs of points and of neurons."""

_ROUNDING = 1e-12
"""Cumulative distributions, which are up to 1, differ by less if they are equal."""


def padded_points(points: int) -> int:
    """Rounds a number of points up to whole vectors.

    Args:
        points: Points of a curve.

    Returns:
        A multiple of `LANES`.
    """
    return -(-points // LANES) * LANES


@dataclass(frozen=True, eq=False)
class NoiseCurves:
    """Cumulative distributions of D DNAs in C neurons, and draws of their noise, at P points.

    Points of padding are 0.

    Attributes:
        whole: (D, C, P) float64 cumulative distributions.
        rows: (C, D, 15, P) float32 draws of their noise.
        variance: (C, D, P) float32 variance of their noise.
    """

    whole: Floats
    rows: Draws
    variance: Draws

    @classmethod
    def empty(cls, neurons: int, size: int, points: int) -> NoiseCurves:
        """Makes curves of zeros.

        Args:
            neurons: Number of neurons.
            size: Number of DNAs.
            points: Number of points, without padding.

        Returns:
            Curves to be filled.
        """
        width = padded_points(points)
        return cls(
            np.zeros((size, neurons, width)),
            np.zeros((neurons, size, PATTERNS, width), np.float32),
            np.zeros((neurons, size, width), np.float32),
        )

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return self.whole.nbytes + self.rows.nbytes + self.variance.nbytes


def noise_sums(
    a: NoiseCurves,
    b: NoiseCurves,
    weights: Floats,
    *,
    paired: Flags | None = None,
    threads: int | None = None,
) -> tuple[Floats, Floats]:
    """Sums over neurons what is added to distances, and how noise changes them.

    If `a is b`, half of the pairs are computed.

    Args:
        a: Curves of A DNAs.
        b: Curves of B DNAs.
        weights: (C,) weight of each neuron, times the bins that a point stands for.
        paired: (A, B) whether the noise of both sides is drawn with the same signs, as their images
            are in pairs. None for no pair of DNAs.
        threads: Threads to use; None for all cores.

    Returns:
        (A, B, 6) sums of `ADDED` and (A, B, 30, 8) sums of `CHANGES`, in bins. Paired DNAs have
        fifteen draws, each twice.
    """
    used = np.flatnonzero(weights)
    size_a, size_b = len(a.whole), len(b.whole)
    added = np.zeros((size_a, size_b, len(ADDED)))
    changes = np.zeros((size_a, size_b, DRAWS, len(CHANGES)))
    together = np.zeros((size_a, size_b), bool) if paired is None else paired

    def row(i: int) -> None:
        first = i if a is b else 0
        levels = np.zeros((size_b - first, LEVELS))
        moves = np.zeros((size_b - first, DRAWS, MOVES))
        _add_row(
            used, weights, i, first, a.whole, a.rows, a.variance, b.whole, b.rows, b.variance,
            together[i], levels, moves,
        )  # fmt: skip
        added[i, first:], changes[i, first:] = _combined(levels, moves)

    with ThreadPoolExecutor(max(1, min(size_a, threads or available_cpus()))) as pool:
        list(pool.map(row, range(size_a)))
    if a is b:
        below = np.tril_indices(size_a, -1)
        added[below] = added.transpose(1, 0, 2)[below]
        mirrored = changes.transpose(1, 0, 2, 3)[below]
        alone = ~together.T[below]
        mirrored[alone] = swapped(mirrored[alone])
        changes[below] = mirrored
    return added, changes


def swapped(changes: Floats) -> Floats:
    """Finds the changes of b against a from those of a against b.

    Args:
        changes: (..., 30, 8) changes of a against b.

    Returns:
        (..., 30, 8) changes of b against a: those with the sum of both noises have another sign.
    """
    turned = changes.copy()
    turned[..., 0::2, :] *= -1
    return turned


def neuron_noise(
    a: NoiseCurves, b: NoiseCurves, step: float, *, paired: bool = False
) -> tuple[Floats, Floats]:
    """Computes the same for each neuron alone, for one pair of DNAs.

    Args:
        a: Curves whose first DNA is taken.
        b: Curves whose first DNA is taken.
        step: Bins that a point stands for.
        paired: Whether the noise of both sides is drawn with the same signs.

    Returns:
        (C, 6) of `ADDED` and (C, 30, 8) of `CHANGES`, in bins.
    """
    neurons = len(a.rows)
    rows_a, variance_a, rows_b, variance_b = (
        np.ascontiguousarray(of[:, 0]) for side in (a, b) for of in (side.rows, side.variance)
    )
    levels, moves = np.zeros((neurons, LEVELS)), np.zeros((neurons, DRAWS, MOVES))
    _add_neurons(
        step, a.whole[0], rows_a, variance_a, b.whole[0], rows_b, variance_b, paired, levels, moves
    )
    return _combined(levels, moves)


_FACTORS = np.concatenate([np.zeros((1, _CLIPS)), ABOVE, BELOW])
"""Factors of the clipped differences, for `emd` and each function."""

_CONSTANTS = (_FACTORS[1:] * np.array(KNOTS)).sum(axis=1)


def _combined(levels: Floats, moves: Floats) -> tuple[Floats, Floats]:
    """Returns the sums of the functions from those of clipped differences."""
    plain, errors = levels[..., _CLIPS], levels[..., _CLIPS + 1]
    # Far from zero a function equals |x|, so a constant makes up for what the clipped ones add.
    functions = _weighed(levels)[..., 1:] - errors[..., None] * _CONSTANTS
    noisier = moves[..., _CLIPS + 1].mean(axis=-1) / 2 - plain
    changed = _weighed(moves) + moves[..., _CLIPS, None]
    signed = moves[..., _CLIPS + 2 :]
    return (
        np.concatenate([noisier[..., None], functions], axis=-1),
        np.concatenate([changed / (2 * REACH), signed], axis=-1),
    )


def _weighed(sums: Floats) -> Floats:
    """Returns the (..., 6) weighed sums of clipped differences.

    A matrix product would round otherwise for another number of pairs.
    """
    return np.asarray((sums[..., None, :_CLIPS] * _FACTORS).sum(axis=-1))


@compiled(fastmath={"reassoc", "nnan", "nsz", "contract"})
def _add(
    weight: float,
    curve_a: Floats,
    rows_a: Draws,
    variance_a: Draws,
    curve_b: Floats,
    rows_b: Draws,
    variance_b: Draws,
    paired: bool,
    room: Draws,
    levels: Floats,
    moves: Floats,
) -> None:
    """Adds the sums of one neuron of a pair; `room` (3, P) is to work in.

    Differences are turned so that their mean is above zero. So rounding is the same for b against a
    as for a against b, whose difference and whose draws with a minus have the other sign.
    """
    apart, error, draw = room[0], room[1], room[2]
    points = len(apart)
    zero = np.float32(0)
    if paired:
        draw[:] = zero
        for k in range(len(rows_a)):
            for i in range(points):
                draw[i] += (rows_a[k, i] - rows_b[k, i]) ** 2
    a, b, c, d, e, f, plain, errors, lean = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(points):
        difference = curve_a[i] - curve_b[i]
        apart[i] = np.float32(difference) if abs(difference) > _ROUNDING else zero
        variance = draw[i] / _PATTERNS if paired else variance_a[i] + variance_b[i]
        error[i] = np.sqrt(variance)
        x, s = abs(apart[i]), error[i]
        a += min(x, _HALF * s)
        b += min(x, s)
        c += min(x, _ONE_HALF * s)
        d += min(x, _TWO * s)
        e += min(x, _THREE * s)
        f += min(x, _FOUR * s)
        plain += x
        errors += s
        lean += apart[i]
    for at, value in enumerate((a, b, c, d, e, f, plain, errors)):
        levels[at] += weight * value
    for i in range(points):
        if lean != 0:
            break
        lean = apart[i]
    way = _ONE if lean > 0 else -_ONE
    for i in range(points):
        apart[i] *= way
    for k in range(len(rows_a)):
        for half in range(1 if paired else 0, 2):
            of_a, of_b, turn = (way, -way, _ONE) if half else (_ONE, _ONE, way)
            a, b, c, d, e, f, plain = zero, zero, zero, zero, zero, zero, zero
            both, pointwise, together = zero, zero, zero
            for i in range(points):
                draw[i] = of_a * rows_a[k, i] + of_b * rows_b[k, i]
            for i in range(points):
                noise, x, s = draw[i], apart[i], error[i]
                above, below = abs(x + _NOISE * noise), abs(x - _NOISE * noise)
                a += min(above, _HALF * s) - min(below, _HALF * s)
                b += min(above, s) - min(below, s)
                c += min(above, _ONE_HALF * s) - min(below, _ONE_HALF * s)
                d += min(above, _TWO * s) - min(below, _TWO * s)
                e += min(above, _THREE * s) - min(below, _THREE * s)
                f += min(above, _FOUR * s) - min(below, _FOUR * s)
                plain += above - below
                both += above + below
                pointwise += noise if x > 0 else (-noise if x < 0 else zero)
                together += noise
            out = moves[2 * k + half]
            for at, value in enumerate((a, b, c, d, e, f, plain, turn * both, pointwise, together)):
                out[at] += weight * turn * value
                if paired:
                    moves[2 * k, at] += weight * turn * value


@compiled
def _add_row(
    used: Ints,
    weights: Floats,
    row: int,
    first: int,
    whole_a: Floats,
    rows_a: NDArray[Any],
    variance_a: NDArray[Any],
    whole_b: Floats,
    rows_b: NDArray[Any],
    variance_b: NDArray[Any],
    paired: Flags,
    levels: Floats,
    moves: Floats,
) -> None:
    """Adds the sums of one DNA of a against those of b from `first` on."""
    room = np.empty((3, whole_a.shape[2]), np.float32)
    for n in used:
        for j in range(first, len(whole_b)):
            _add(
                weights[n], whole_a[row, n], rows_a[n, row], variance_a[n, row], whole_b[j, n],
                rows_b[n, j], variance_b[n, j], paired[j], room, levels[j - first],
                moves[j - first],
            )  # fmt: skip


@compiled
def _add_neurons(
    step: float,
    whole_a: Floats,
    rows_a: NDArray[Any],
    variance_a: NDArray[Any],
    whole_b: Floats,
    rows_b: NDArray[Any],
    variance_b: NDArray[Any],
    paired: bool,
    levels: Floats,
    moves: Floats,
) -> None:
    """Writes the sums of each neuron of one pair."""
    room = np.empty((3, whole_a.shape[1]), np.float32)
    for n in range(len(rows_a)):
        _add(
            step, whole_a[n], rows_a[n], variance_a[n], whole_b[n], rows_b[n], variance_b[n],
            paired, room, levels[n], moves[n],
        )  # fmt: skip
