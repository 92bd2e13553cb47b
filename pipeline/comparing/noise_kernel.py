"""Adds and takes away the noise of pairs of DNAs, and sums how their distances change.

    >>> sums = noise_sums(a, b, weights)                                # doctest: +SKIP

For each of thirty draws of the noise, and each point of each neuron's curves, the difference is
clipped at several multiples of its standard error, once with the noise added and once with it
taken away (`pipeline.comparing.intervals`). Where a difference is so large that no draw comes near
zero, nothing is clipped, and draws are only added up. Sums are in float32 over a few neurons, and
in float64 beyond. A pair's sums are the same whatever other pairs are computed beside it.
"""

from __future__ import annotations

import math
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
    BOTH,
    ERRORS,
    FAR_A,
    FAR_B,
    LEAN,
    LEVELS,
    LINES,
    MOVES,
    NEAR_A,
    NEAR_B,
    PLAIN,
    ROUNDING,
    add_paired_points,
    add_points,
)
from pipeline.compiled import compiled
from pipeline.dna import Floats, Ints
from pipeline.spec import available_cpus

Draws = NDArray[np.float32]

Flags = NDArray[np.bool_]

_CLIPS = len(KNOTS)
_PATTERNS = np.float32(PATTERNS)

_LINE = 64
"""Bytes of a line of a cache."""

_BLOCK = 64
"""Neurons whose sums are in float32."""


def padded_points(points: int) -> int:
    """Rounds a number of points up to whole vectors.

    Args:
        points: Points of a curve.

    Returns:
        A multiple of `LANES`.
    """
    return -(-points // LANES) * LANES


def _zeros(shape: tuple[int, ...], kind: Any = np.float32) -> NDArray[Any]:
    """Returns an array of zeros whose vectors lie in one line of a cache each."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    room = np.zeros(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    values: NDArray[Any] = room[start : start + size].view(kind).reshape(shape)
    return values


@dataclass(frozen=True, eq=False)
class NoiseCurves:
    """Cumulative distributions of D DNAs in C neurons, and draws of their noise, at P points.

    Points of padding are 0.

    Attributes:
        whole: (D, C, P) float64 cumulative distributions.
        rows: (D, C, 15, P) float32 draws of their noise.
        variance: (D, C, P) float32 variance of their noise.
        reach: (D, C, P) float32 the largest draw, plus or minus.
        sums: (D, C, 15) float32 sum of each draw over all points.
    """

    whole: Floats
    rows: Draws
    variance: Draws
    reach: Draws
    sums: Draws

    @classmethod
    def empty(cls, neurons: int, size: int, points: int) -> NoiseCurves:
        """Makes curves of zeros.

        Args:
            neurons: Number of neurons.
            size: Number of DNAs.
            points: Number of points, without padding.

        Returns:
            Curves to be filled: `whole` and `rows` first, then the rest by `finish`.
        """
        shape = size, neurons, padded_points(points)
        return cls(
            _zeros(shape, np.float64),
            _zeros((size, neurons, PATTERNS, shape[2])),
            _zeros(shape),
            _zeros(shape),
            _zeros((size, neurons, PATTERNS)),
        )

    @staticmethod
    def nbytes_of(points: int) -> int:
        """Computes what a neuron of a DNA takes.

        Args:
            points: Number of points, without padding.

        Returns:
            The number of bytes.
        """
        return padded_points(points) * (8 + 4 * (PATTERNS + 2)) + 4 * PATTERNS

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        draws = self.rows.nbytes + self.sums.nbytes
        return self.whole.nbytes + draws + self.variance.nbytes + self.reach.nbytes

    def finish(self, slot: int) -> None:
        """Computes what follows from the draws of one DNA.

        Args:
            slot: Position of the DNA.
        """
        _finish(self.rows[slot], self.variance[slot], self.reach[slot], self.sums[slot])


@compiled
def _finish(rows: Draws, variance: Draws, reach: Draws, sums: Draws) -> None:
    for n in range(len(rows)):
        variance[n] = 0
        reach[n] = 0
        for k in range(rows.shape[1]):
            total = np.float32(0)
            for i in range(rows.shape[2]):
                draw = rows[n, k, i]
                variance[n, i] += draw * draw
                reach[n, i] = max(reach[n, i], abs(draw))
                total += draw
            sums[n, k] = total
        for i in range(rows.shape[2]):
            variance[n, i] /= _PATTERNS


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
        lanes, sums = _lanes(), _Sums.zeros(size_b - first)
        for at in range(0, len(used), _BLOCK):
            some = used[at : at + _BLOCK]
            _add_row(
                some, weights, i, first, together[i], a.whole, a.rows, a.variance, a.reach, a.sums,
                b.whole, b.rows, b.variance, b.reach, b.sums, *lanes, *sums.arrays,
            )  # fmt: skip
        added[i, first:], changes[i, first:] = sums.combined(together[i, first:])

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
    neurons = a.whole.shape[1]
    lanes, sums = _lanes(), _Sums.zeros(neurons)
    _add_neurons(
        step, paired, a.whole[0], a.rows[0], a.variance[0], a.reach[0], a.sums[0],
        b.whole[0], b.rows[0], b.variance[0], b.reach[0], b.sums[0], *lanes, *sums.arrays,
    )  # fmt: skip
    return sums.combined(np.full(neurons, paired))


def _lanes() -> tuple[Draws, Draws, Draws]:
    """Returns room for the sums of one pair, whose vectors are not added up yet."""
    return tuple(_zeros((n, LANES)) for n in (LEVELS, DRAWS * MOVES, PATTERNS * LINES))  # type: ignore[return-value]  # three


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over points and neurons of N pairs; see `noise_vectors`.

    Attributes:
        levels: (N, 9) sums without a draw.
        moves: (N, 30, 7) changes of clipped and plain differences near zero.
        lines: (N, 15, 4) the noise of each side, with the sign of the difference at each point.
        leans: (N, 15, 2) the noise of each side, with the sign of each neuron's mean difference.
    """

    levels: Floats
    moves: Floats
    lines: Floats
    leans: Floats

    @classmethod
    def zeros(cls, pairs: int) -> _Sums:
        shapes = (LEVELS,), (DRAWS, MOVES), (PATTERNS, LINES), (PATTERNS, 2)
        return cls(*(np.zeros((pairs, *shape)) for shape in shapes))

    @property
    def arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.levels, self.moves, self.lines, self.leans

    def combined(self, paired: Flags) -> tuple[Floats, Floats]:
        """Returns the (N, 6) sums of `ADDED` and (N, 30, 8) of `CHANGES`.

        Args:
            paired: (N,) whether a pair has only the draws with a minus.
        """
        added = np.empty((len(paired), len(ADDED)))
        changes = np.empty((len(paired), DRAWS, len(CHANGES)))
        _combine(*self.arrays, paired, _FACTORS, _CONSTANTS, added, changes)
        return added, changes


_FACTORS = np.concatenate([ABOVE, BELOW])
"""Factors of the clipped differences, for each function."""

_CONSTANTS = (_FACTORS * np.array(KNOTS)).sum(axis=1)
"""Far from zero a function equals |x|, so a constant makes up for what the clipped ones add."""


@compiled
def _combine(
    levels: Floats, moves: Floats, lines: Floats, leans: Floats, paired: Flags, factors: Floats,
    constants: Floats, added: Floats, changes: Floats,
) -> None:  # fmt: skip
    functions = len(factors)
    for pair in range(len(levels)):
        level = levels[pair]
        draws = PATTERNS if paired[pair] else DRAWS
        added[pair, 0] = level[BOTH] / draws - level[PLAIN]
        for f in range(functions):
            added[pair, 1 + f] = -level[ERRORS] * constants[f]
            for knot in range(_CLIPS):
                added[pair, 1 + f] += factors[f, knot] * level[knot]
        for draw in range(DRAWS):
            minus = paired[pair] or draw % 2 == 1
            sign = -1.0 if minus else 1.0
            line, lean = lines[pair, draw // 2], leans[pair, draw // 2]
            far = line[FAR_A] + sign * line[FAR_B]
            move = moves[pair, draw | 1 if minus else draw]
            change = changes[pair, draw]
            plain = move[_CLIPS] + 2 * REACH * far
            change[0] = plain / (2 * REACH)
            for f in range(functions):
                moved = plain
                for knot in range(_CLIPS):
                    moved += factors[f, knot] * move[knot]
                change[1 + f] = moved / (2 * REACH)
            change[1 + functions] = line[NEAR_A] + sign * line[NEAR_B] + far
            change[2 + functions] = lean[0] + sign * lean[1]


@compiled
def _add_neuron(
    weight: float, paired: bool, curve_a: Floats, rows_a: Draws, variance_a: Draws, reach_a: Draws,
    sums_a: Draws, curve_b: Floats, rows_b: Draws, variance_b: Draws, reach_b: Draws, sums_b: Draws,
    levels: Draws, moves: Draws, lines: Draws, leans: Floats,
) -> None:  # fmt: skip
    """Adds the sums of one neuron of a pair.

    `levels`, `moves` and `lines` have a last axis of lanes; `leans` is (15, 2).
    """
    by = np.float32(weight)
    for at in range(len(curve_a) // LANES):
        if paired:
            add_paired_points(
                curve_a, curve_b, variance_a, variance_b, reach_a, reach_b, rows_a, rows_b, at, by,
                moves, lines, levels,
            )  # fmt: skip
        else:
            add_points(
                curve_a, curve_b, variance_a, variance_b, reach_a, reach_b, rows_a, rows_b, at, by,
                moves, lines, levels,
            )  # fmt: skip
    lean = np.float32(0)
    for i in range(LANES):
        lean += levels[LEAN, i]
        levels[LEAN, i] = 0
    i = 0
    while lean == 0 and i < len(curve_a):
        difference = curve_a[i] - curve_b[i]
        if abs(difference) > ROUNDING:
            lean = np.float32(difference)
        i += 1
    way = weight if lean > 0 else -weight
    for k in range(len(rows_a)):
        leans[k, 0] += way * sums_a[k]
        leans[k, 1] += way * sums_b[k]


@compiled
def _add_up(lanes: NDArray[Any], to: NDArray[Any]) -> None:
    """Adds (N, lanes) up to (N,), and clears them."""
    for n in range(len(lanes)):
        total = 0.0
        for i in range(LANES):
            total += lanes[n, i]
        to[n] += total
        lanes[n] = 0


@compiled
def _add_row(
    used: Ints, weights: Floats, row: int, first: int, paired: Flags,
    whole_a: Floats, rows_a: NDArray[Any], variance_a: Draws, reach_a: Draws, sums_a: Draws,
    whole_b: Floats, rows_b: NDArray[Any], variance_b: Draws, reach_b: Draws, sums_b: Draws,
    of_levels: Draws, of_moves: Draws, of_lines: Draws,
    levels: Floats, moves: Floats, lines: Floats, leans: Floats,
) -> None:  # fmt: skip
    """Adds some neurons of one DNA of a against those of b from `first` on."""
    for j in range(first, len(whole_b)):
        at = j - first
        for n in used:
            _add_neuron(
                weights[n], paired[j], whole_a[row, n], rows_a[row, n], variance_a[row, n],
                reach_a[row, n], sums_a[row, n], whole_b[j, n], rows_b[j, n], variance_b[j, n],
                reach_b[j, n], sums_b[j, n], of_levels, of_moves, of_lines, leans[at],
            )  # fmt: skip
        _add_up(of_levels, levels[at])
        _add_up(of_moves, moves[at].reshape(-1))
        _add_up(of_lines, lines[at].reshape(-1))


@compiled
def _add_neurons(
    step: float, paired: bool, whole_a: Floats, rows_a: NDArray[Any], variance_a: Draws,
    reach_a: Draws, sums_a: Draws, whole_b: Floats, rows_b: NDArray[Any], variance_b: Draws,
    reach_b: Draws, sums_b: Draws, of_levels: Draws, of_moves: Draws, of_lines: Draws,
    levels: Floats, moves: Floats, lines: Floats, leans: Floats,
) -> None:  # fmt: skip
    """Writes the sums of each neuron of one pair."""
    for n in range(len(whole_a)):
        _add_neuron(
            step, paired, whole_a[n], rows_a[n], variance_a[n], reach_a[n], sums_a[n], whole_b[n],
            rows_b[n], variance_b[n], reach_b[n], sums_b[n], of_levels, of_moves, of_lines,
            leans[n],
        )  # fmt: skip
        _add_up(of_levels, levels[n])
        _add_up(of_moves, moves[n].reshape(-1))
        _add_up(of_lines, lines[n].reshape(-1))
