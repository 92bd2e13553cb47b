"""Adds and takes away the noise of pairs of DNAs, and sums how their distances change.

    >>> sums = noise_sums(a, b, weights)                                # doctest: +SKIP

For each of thirty draws of the noise, and each point of each neuron's curves, the difference is
clipped at several multiples of its standard error, once with the noise added and once with it
taken away (`pipeline.comparing.intervals`). Where a difference is so large that no draw comes near
zero, nothing is clipped; of such points that all lie on one side, only the sum of the draws counts,
which is known. Sums are in float32 over a few neurons, and
in float64 beyond. A pair's sums are the same whatever other pairs are computed beside it.
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
from pipeline.comparing.noise_vectors import (
    ERROR,
    ERRORS,
    EXCESS,
    LEAN_A,
    LEAN_B,
    LEVELS,
    MINUS,
    NEAR_A,
    NEAR_B,
    PLUS,
    ROUNDING,
    ROWS,
    SET_BITS,
    TURNED_A,
    TURNED_B,
    VALUES,
    add_beside,
    add_less,
    add_more,
    sort_paired_points,
    sort_points,
)
from pipeline.comparing.vector_writer import aligned_zeros, neuron_blocks
from pipeline.compiled import compiled
from pipeline.dna import Floats, Ints
from pipeline.spec import available_cpus

Draws = NDArray[np.float32]

Flags = NDArray[np.bool_]

Places = NDArray[np.int32]

_CLIPS = len(KNOTS)
_PATTERNS = np.float32(PATTERNS)

_BLOCK = 512
"""About how many points are added up in float32. Those of several DNAs fit into a core's cache."""

_GROUP = 8
"""How many DNAs of a are compared at most with one of b while its points are in the cache."""


def _room(points: int) -> tuple[Draws, Places, Places, Ints, Draws]:
    """Returns room for the points of some neurons of a pair.

    Returns:
        (VALUES, P) what is known of points (see `noise_vectors`), (P + LANES,) which of them are
        near zero, (P + LANES,) which are not on their neuron's side, (2,) how many are, and (ROWS,
        LANES) sums.
    """
    near, beside = np.empty((2, points + LANES), np.int32)
    values = np.zeros((VALUES, points), np.float32)
    return values, near, beside, np.empty(2, np.int64), aligned_zeros((ROWS, LANES))


@dataclass(frozen=True, eq=False)
class NoiseCurves:
    """Cumulative distributions of D DNAs in C neurons, and draws of their noise, at P points.

    P is rounded up to whole vectors. All is 0 at what is added.

    Attributes:
        whole: (D, C, P) float64 cumulative distributions.
        rows: (D, C, P, 16) float32 fifteen draws of their noise, and a zero.
        variance: (D, C, P) float32 variance of their noise.
        reach: (D, C, P) float32 the largest draw, plus or minus.
        sums: (D, C, 16) float32 sum of each draw over all points.
        areas: (D, C) float64 sum of the cumulative distribution over all points.
    """

    whole: Floats
    rows: Draws
    variance: Draws
    reach: Draws
    sums: Draws
    areas: Floats

    @classmethod
    def empty(cls, neurons: int, size: int, points: int) -> NoiseCurves:
        """Makes curves of zeros.

        Args:
            neurons: Number of neurons.
            size: Number of DNAs.
            points: Number of points.

        Returns:
            Curves to be filled: `whole` and `rows` first, then the rest by `finish`.
        """
        shape = size, neurons, -(-points // LANES) * LANES
        return cls(
            np.zeros(shape),
            aligned_zeros((*shape, LANES)),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float32),
            aligned_zeros((size, neurons, LANES)),
            np.zeros((size, neurons)),
        )

    @staticmethod
    def nbytes_of(points: int) -> int:
        """Computes what a neuron of a DNA takes.

        Args:
            points: Number of points.

        Returns:
            The number of bytes.
        """
        return -(-points // LANES) * LANES * (8 + 4 * (LANES + 2)) + 4 * LANES + 8

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        draws = self.rows.nbytes + self.sums.nbytes + self.areas.nbytes
        return self.whole.nbytes + draws + self.variance.nbytes + self.reach.nbytes

    def finish(self, slot: int) -> None:
        """Computes what follows from the draws of one DNA.

        Args:
            slot: Position of the DNA.
        """
        _finish(self.rows[slot], self.variance[slot], self.reach[slot], self.sums[slot])
        self.whole[slot].sum(axis=1, out=self.areas[slot])


@compiled
def _finish(rows: Draws, variance: Draws, reach: Draws, sums: Draws) -> None:
    for n in range(len(rows)):
        sums[n] = 0
        for i in range(rows.shape[1]):
            square = largest = np.float32(0)
            for k in range(PATTERNS):
                draw = rows[n, i, k]
                square += draw * draw
                largest = max(largest, abs(draw))
                sums[n, k] += draw
            variance[n, i] = square / _PATTERNS
            reach[n, i] = largest


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
    size_a, size_b, points = len(a.whole), len(b.whole), a.whole.shape[2]
    added = np.zeros((size_a, size_b, len(ADDED)))
    changes = np.zeros((size_a, size_b, DRAWS, len(CHANGES)))
    together = np.zeros((size_a, size_b), bool) if paired is None else paired
    workers = max(1, min(size_a, threads or available_cpus()))
    most = max(1, min(_GROUP, size_a // (2 * workers)))
    blocks = neuron_blocks(used, max(1, _BLOCK // max(1, points)))

    def group(first: int) -> None:
        """Computes some rows, and of pairs that are there twice only one."""
        rows = slice(first, min(first + most, size_a))
        start = first if a is b else 0
        sums = np.zeros((rows.stop - first, size_b - start, ROWS, LANES))
        room = _room(max(_BLOCK, points))
        for at, stop in blocks:
            _add_block(
                at, stop, weights, a is b, together[rows, start:], a.whole[rows],
                a.rows[rows], a.variance[rows], a.reach[rows], a.sums[rows], a.areas[rows],
                b.whole[start:], b.rows[start:], b.variance[start:], b.reach[start:],
                b.sums[start:], b.areas[start:], *room, sums,
            )  # fmt: skip
        _combine(
            sums, together[rows, start:], _FACTORS, _CONSTANTS, added[rows, start:],
            changes[rows, start:],
        )  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(group, range(0, size_a, most)))
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
    neurons = a.whole.shape[1]
    sums = np.zeros((neurons, 1, ROWS, LANES))
    flags = np.full((neurons, 1), paired)
    _add_each(
        np.full(neurons, step), paired, a.whole, a.rows, a.variance, a.reach, a.sums, a.areas,
        b.whole, b.rows, b.variance, b.reach, b.sums, b.areas, *_room(a.whole.shape[2]), sums[:, 0],
    )  # fmt: skip
    added = np.empty((neurons, 1, len(ADDED)))
    changes = np.empty((neurons, 1, DRAWS, len(CHANGES)))
    _combine(sums, flags, _FACTORS, _CONSTANTS, added, changes)
    return added[:, 0], changes[:, 0]


_FACTORS = np.concatenate([ABOVE, BELOW])
"""Factors of the clipped differences, for each function."""

_CONSTANTS = (_FACTORS * np.array(KNOTS)).sum(axis=1)
"""Far from zero a function equals |x|, so a constant makes up for what the clipped ones add."""


@compiled
def _combine(
    sums: Floats, paired: Flags, factors: Floats, constants: Floats, added: Floats, changes: Floats
) -> None:
    """Writes the (A, B, 6) sums of `ADDED` and (A, B, 30, 8) of `CHANGES`.

    `sums` (A, B, ROWS, LANES) are over points and neurons, with the rows of `noise_vectors`. A
    paired pair has only the draws with a minus.
    """
    functions = len(factors)
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            rows, more = sums[i, j], added[i, j]
            level = rows[LEVELS]
            draws = PATTERNS if paired[i, j] else DRAWS
            more[0] = rows[EXCESS, :PATTERNS].sum() / draws
            for f in range(functions):
                more[1 + f] = -level[ERRORS] * constants[f]
                for knot in range(_CLIPS):
                    more[1 + f] += factors[f, knot] * level[knot]
            for draw in range(DRAWS):
                k = draw // 2
                minus = paired[i, j] or draw % 2 == 1
                first = MINUS if minus else PLUS
                sign = -1.0 if minus else 1.0
                near = rows[NEAR_A, k] + sign * rows[NEAR_B, k]
                turned = rows[TURNED_A, k] + sign * rows[TURNED_B, k]
                change = changes[i, j, draw]
                plain = rows[first + _CLIPS, k] + 2 * REACH * (turned - near)
                change[0] = plain / (2 * REACH)
                for f in range(functions):
                    moved = plain
                    for knot in range(_CLIPS):
                        moved += factors[f, knot] * rows[first + knot, k]
                    change[1 + f] = moved / (2 * REACH)
                change[1 + functions] = turned
                change[2 + functions] = rows[LEAN_A, k] + sign * rows[LEAN_B, k]


@compiled
def _add_neurons(
    first: int, stop: int, weights: Floats, paired: bool, i: int, j: int,
    whole_a: Floats, rows_a: NDArray[Any], variance_a: Draws, reach_a: Draws, sums_a: Draws,
    areas_a: Floats,
    whole_b: Floats, rows_b: NDArray[Any], variance_b: Draws, reach_b: Draws, sums_b: Draws,
    areas_b: Floats,
    values: Draws, near: Places, beside: Places, counts: Ints, sums: Draws,
) -> None:  # fmt: skip
    """Adds the sums of some neurons, of DNA i of a and j of b.

    What is summed is odd in the difference x and its noise together. So both are turned by the sign
    of x, and the result for b against a is that for a against b to the last bit.
    """
    neurons, points = whole_a.shape[1:]
    counts[:] = 0
    for n in range(first, stop):
        by, at = np.float32(weights[n]), (n - first) * points
        first_a, first_b = (i * neurons + n) * points, (j * neurons + n) * points
        side = areas_a[i, n] - areas_b[j, n]
        side = np.sign(side) if abs(side) > ROUNDING * points else 0.0
        if paired:
            for k in range(points):
                square = np.float32(0)
                for draw in range(PATTERNS):
                    noise = rows_a[i, n, k, draw] - rows_b[j, n, k, draw]
                    square += noise * noise
                values[ERROR, at + k] = np.sqrt(square / _PATTERNS)
            sort_paired_points(
                whole_a, whole_b, first_a, first_b, variance_a, variance_b, reach_a, reach_b, by,
                np.float32(side), at, points, values, near, beside, counts, SET_BITS,
            )  # fmt: skip
        else:
            sort_points(
                whole_a, whole_b, first_a, first_b, variance_a, variance_b, reach_a, reach_b, by,
                np.float32(side), at, points, values, near, beside, counts, SET_BITS,
            )  # fmt: skip
        turned = by * np.float32(side)
        k = 0
        while abs(side) <= ROUNDING and k < points:
            side = whole_a[i, n, k] - whole_b[j, n, k]
            k += 1
        way = by if side > ROUNDING else -by
        for draw in range(LANES):
            sums[TURNED_A, draw] += turned * sums_a[i, n, draw]
            sums[TURNED_B, draw] += turned * sums_b[j, n, draw]
            sums[LEAN_A, draw] += way * sums_a[i, n, draw]
            sums[LEAN_B, draw] += way * sums_b[j, n, draw]
    first_a, first_b = (i * neurons + first) * points, (j * neurons + first) * points
    add_less(rows_a, rows_b, first_a, first_b, counts[0], near, values, sums)
    if not paired:
        add_more(rows_a, rows_b, first_a, first_b, counts[0], near, values, sums)
    add_beside(rows_a, rows_b, first_a, first_b, counts[1], beside, values, sums)


@compiled
def _add_up(sums: Draws, to: Floats) -> None:
    """Adds sums of some neurons to those of all, and clears them."""
    for row in range(ROWS):
        for k in range(LANES):
            to[row, k] += sums[row, k]
            sums[row, k] = 0


@compiled
def _add_block(
    first: int, stop: int, weights: Floats, mirrored: bool, paired: Flags,
    whole_a: Floats, rows_a: NDArray[Any], variance_a: Draws, reach_a: Draws, sums_a: Draws,
    areas_a: Floats,
    whole_b: Floats, rows_b: NDArray[Any], variance_b: Draws, reach_b: Draws, sums_b: Draws,
    areas_b: Floats,
    values: Draws, near: Places, beside: Places, counts: Ints, few: Draws, sums: Floats,
) -> None:  # fmt: skip
    """Adds the neurons from `first` to `stop` of some DNAs of a against those of b.

    If `mirrored`, the first of b are those of a, and a DNA is not compared with those before it.
    """
    for j in range(len(whole_b)):
        for i in range(min(j + 1, len(whole_a)) if mirrored else len(whole_a)):
            _add_neurons(
                first, stop, weights, paired[i, j], i, j, whole_a, rows_a, variance_a, reach_a,
                sums_a, areas_a, whole_b, rows_b, variance_b, reach_b, sums_b, areas_b, values,
                near, beside, counts, few,
            )  # fmt: skip
            _add_up(few, sums[i, j])


@compiled
def _add_each(
    weights: Floats, paired: bool,
    whole_a: Floats, rows_a: NDArray[Any], variance_a: Draws, reach_a: Draws, sums_a: Draws,
    areas_a: Floats,
    whole_b: Floats, rows_b: NDArray[Any], variance_b: Draws, reach_b: Draws, sums_b: Draws,
    areas_b: Floats,
    values: Draws, near: Places, beside: Places, counts: Ints, few: Draws, sums: Floats,
) -> None:  # fmt: skip
    """Writes the (C, ROWS, LANES) sums of each neuron of the first DNAs."""
    for n in range(whole_a.shape[1]):
        _add_neurons(
            n, n + 1, weights, paired, 0, 0, whole_a, rows_a, variance_a, reach_a, sums_a, areas_a,
            whole_b, rows_b, variance_b, reach_b, sums_b, areas_b, values, near, beside, counts,
            few,
        )  # fmt: skip
        _add_up(few, sums[n])
