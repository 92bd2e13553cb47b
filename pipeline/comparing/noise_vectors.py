"""Adds draws of noise to the points of a neuron's curves, fifteen draws at a time, in LLVM's terms.

A vector has a lane for each pattern of folds, and one that is always zero. What is summed over the
points of a neuron stays in registers. Numba would write it back to memory after each point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.comparing.emd_kernel import LANES
from pipeline.comparing.intervals import KNOTS, REACH
from pipeline.comparing.vector_writer import VectorWriter

MOVES = len(KNOTS) + 1
"""Sums of a draw: changes of clipped differences, and of plain ones."""

MINUS, PLUS = 0, MOVES
"""The first rows of the sums of both kinds of draws: the noise of a less that of b, and with it."""

NEAR_A, NEAR_B, EXCESS, LEVELS, TURNED_A, TURNED_B, LEAN_A, LEAN_B = range(2 * MOVES, 2 * MOVES + 8)
"""Rows of other sums.

Over points near zero: the noise of a, and of b, with the sign of the difference; what noise is
larger by than the difference, where it is; and without a draw, one a lane, clipped differences and
standard errors. Over all points: the noise of a, and of b, with the sign of the difference; and
with the sign of each neuron's mean difference, which the caller adds.
"""

ROWS = LEAN_B + 1
"""Rows of sums."""

SIZE, WEIGHT, LINE, BESIDE, TURNED_REACH, ERROR, FIRST_KNOT = range(7)
"""Rows of what is known of each point: the size of its difference; the weight of its neuron; the
same with the sign of the difference, or 0 if there is none; that less the weight with the neuron's
own sign; the share of the noise that is added, with the sign of the difference, but never 0; the
standard error; and that times each of the knots."""

VALUES = FIRST_KNOT + len(KNOTS)
"""Rows of what is known of each point."""

ERRORS = len(KNOTS)
"""Lane of `LEVELS` behind those of the clipped differences."""

ROUNDING = 1e-12
"""Cumulative distributions, which are up to 1, differ by less if they are equal."""

SET_BITS = np.array(
    [sorted(range(8), key=lambda bit: (not byte >> bit & 1, bit)) for byte in range(256)], np.int32
)
"""(256, 8): which bits of a byte are set, in order; the others follow."""

_HUGE = 1e30
"""Larger than any difference."""


class _Points(VectorWriter):
    """Writes the code of a loop over some points of a neuron; see `_adding`.

    Args:
        rows: The rows of the sums.
        code: See `VectorWriter`.
    """

    def __init__(self, rows: Sequence[int], *code: Any) -> None:
        super().__init__(*code)
        self.draws, self.starts, self.count = self.given[:2], self.given[2:4], self.given[4]
        self.places, self.values, self.sums = self.given[5:]
        self.held = {row: cgutils.alloca_once(self.builder, self.vector) for row in rows}

    def sum_up(self, add: Callable[[list[Any], list[Any]], None]) -> None:
        """Adds the points to sums in registers, and these to those in memory.

        Args:
            add: Is called with a point's draws of a and of b; and with its values, each in all
                lanes.
        """
        builder, word = self.builder, self.word
        size = cgutils.unpack_tuple(builder, self.values.shape)[1]
        for place in self.held.values():
            builder.store(self.constant(), place)
        with cgutils.for_range(builder, self.count) as loop:
            point = builder.sext(builder.load(builder.gep(self.places.data, [loop.index])), word)
            draws = [
                self.load(of, builder.mul(builder.add(start, point), word(LANES)))
                for of, start in zip(self.draws, self.starts, strict=True)
            ]
            at = [builder.add(point, builder.mul(size, word(row))) for row in range(VALUES)]
            values = [builder.load(builder.gep(self.values.data, [place])) for place in at]
            add(draws, [self.everywhere(value) for value in values])
        for row, place in self.held.items():
            first = word(row * LANES)
            total = builder.fadd(self.load(self.sums, first), builder.load(place))
            builder.store(total, self.vector_at(self.sums, first), align=4)

    def add(self, row: int, values: Any, weights: Any) -> None:
        """Adds weighted values to a row."""
        place = self.held[row]
        self.builder.store(self.fma(values, weights, self.builder.load(place)), place)


class _Sorter(VectorWriter):
    """Writes the code that finds the points to be added one by one; see `sort_points`."""

    def __init__(self, paired: bool, *code: Any) -> None:
        super().__init__(*code)
        self.paired = paired
        self.curves, self.starts = self.given[:2], self.given[2:4]
        self.variances, self.reaches = self.given[4:6], self.given[6:8]
        weight, side, self.first, self.points, self.values = self.given[8:13]
        self.near, self.beside, self.counts, self.numbers = self.given[13:]
        self.weights, self.sides = self.everywhere(weight), self.everywhere(side)
        self.size = cgutils.unpack_tuple(self.builder, self.values.shape)[1]

    def sort(self) -> None:
        """Sorts the points."""
        builder = self.builder
        counts = [builder.gep(self.counts.data, [self.word(number)]) for number in range(2)]
        with cgutils.for_range(builder, builder.udiv(self.points, self.word(LANES))) as loop:
            of_neuron = builder.mul(loop.index, self.word(LANES))
            first = builder.add(self.first, of_neuron)
            at = [builder.add(start, of_neuron) for start in self.starts]
            apart = self._difference(at)
            error, square = self._error(at, first)
            reach = builder.fadd(*map(self.load, self.reaches, at))
            masks = [
                self._mask(flags)
                for flags in (self._is_near(apart, reach, square), self._is_beside(apart, reach))
            ]
            with builder.if_then(builder.icmp_unsigned("!=", builder.or_(*masks), self.word(0))):
                self._tell(first, apart, error or self.call("sqrt", square))
                for mask, places, count in zip(
                    masks, (self.near, self.beside), counts, strict=True
                ):
                    self._keep(mask, first, places, count)

    def _error(self, at: Sequence[Any], first: Any) -> tuple[Any, Any]:
        """Returns standard errors if they are there already, and their squares."""
        if self.paired:
            error = self.load(self.values, self._row(ERROR, first))
            return error, self.builder.fmul(error, error)
        return None, self.builder.fadd(*map(self.load, self.variances, at))

    def _is_near(self, apart: Any, reach: Any, square: Any) -> Any:
        """Returns whether some draw brings a point nearer to zero than the last knot."""
        builder = self.builder
        left = self.fma(reach, self.all(-REACH), self.absolute(apart))
        within = builder.fmul(square, self.all(KNOTS[-1] ** 2))
        is_less = builder.fcmp_ordered("<", builder.fmul(left, left), within)
        return builder.or_(builder.fcmp_ordered("<", left, self.constant()), is_less)

    def _is_beside(self, apart: Any, reach: Any) -> Any:
        """Returns whether a point has noise, and not the sign of its neuron."""
        builder = self.builder
        another = builder.fcmp_ordered("<=", builder.fmul(apart, self.sides), self.constant())
        return builder.and_(another, builder.fcmp_ordered(">", reach, self.constant()))

    def _tell(self, first: Any, apart: Any, error: Any) -> None:
        """Writes what is known of a vector of points."""
        builder = self.builder
        below = builder.fcmp_ordered("<", apart, self.constant())
        equal = builder.fcmp_ordered("==", apart, self.constant())
        sign = builder.select(below, self.all(-1), self.all(1))
        line = builder.select(equal, self.constant(), builder.fmul(sign, self.weights))
        self._write(ERROR, first, error)
        self._write(SIZE, first, self.absolute(apart))
        self._write(WEIGHT, first, self.weights)
        self._write(LINE, first, line)
        self._write(BESIDE, first, builder.fsub(line, builder.fmul(self.sides, self.weights)))
        self._write(TURNED_REACH, first, builder.fmul(sign, self.all(REACH)))
        for row, factor in enumerate(KNOTS, FIRST_KNOT):
            self._write(row, first, builder.fmul(error, self.all(factor)))

    def _difference(self, at: Sequence[Any]) -> Any:
        """Returns a - b in float32, and zero where that may be rounding."""
        builder = self.builder
        wide = ir.VectorType(ir.DoubleType(), LANES)
        curves = [
            builder.load(builder.bitcast(builder.gep(of.data, [place]), wide.as_pointer()), align=8)
            for of, place in zip(self.curves, at, strict=True)
        ]
        apart = builder.fsub(*curves)
        size = self.absolute(builder.fptrunc(apart, self.vector))
        large = builder.fcmp_ordered(">", size, self.all(ROUNDING))
        return builder.select(large, builder.fptrunc(apart, self.vector), self.constant())

    def _mask(self, flags: Any) -> Any:
        """Returns a number with a bit for each flag."""
        return self.builder.zext(self.builder.bitcast(flags, ir.IntType(LANES)), self.word)

    def _keep(self, mask: Any, first: Any, places: Any, count: Any) -> None:
        """Appends the numbers of those points that have a bit, eight points at a time."""
        builder, short = self.builder, ir.IntType(32)
        eight = ir.VectorType(short, 8)
        for start in range(0, LANES, 8):
            half = builder.and_(builder.lshr(mask, self.word(start)), self.word(255))
            listed = builder.gep(self.numbers.data, [builder.mul(half, self.word(8))])
            lanes = builder.load(builder.bitcast(listed, eight.as_pointer()), align=4)
            from_first = builder.trunc(builder.add(first, self.word(start)), short)
            held = builder.load(count)
            place = builder.bitcast(builder.gep(places.data, [held]), eight.as_pointer())
            builder.store(builder.add(lanes, self.everywhere(from_first, eight)), place, align=4)
            builder.store(builder.add(held, builder.ctpop(half)), count)

    def _row(self, row: int, first: Any) -> Any:
        return self.builder.add(self.builder.mul(self.size, self.word(row)), first)

    def _write(self, row: int, first: Any, values: Any) -> None:
        place = self.vector_at(self.values, self._row(row, first))
        self.builder.store(values, place, align=4)


def _add_beside(points: _Points, draws: list[Any], values: list[Any]) -> None:
    """Adds what a point's noise adds less than if the point had the sign of its neuron."""
    for row, draw in zip((TURNED_A, TURNED_B), draws, strict=True):
        points.add(row, draw, values[BESIDE])


def _add_less(points: _Points, draws: list[Any], values: list[Any]) -> None:
    """Adds a point that some draw brings near zero, or that is there: the noise of a less b's."""
    builder = points.builder
    for row, draw in zip((NEAR_A, NEAR_B), draws, strict=True):
        points.add(row, draw, values[LINE])
    behind = points.constant(*(0 for _ in KNOTS), _HUGE)
    most = builder.fmul(values[ERROR], points.constant(*KNOTS, 1))
    points.add(LEVELS, points.least(builder.fadd(values[SIZE], behind), most), values[WEIGHT])
    _add_moves(points, MINUS, builder.fsub(*draws), values)


def _add_more(points: _Points, draws: list[Any], values: list[Any]) -> None:
    """Adds the same point once more: the noise of a and b's."""
    _add_moves(points, PLUS, points.builder.fadd(*draws), values)


def _add_moves(points: _Points, first: int, draws: Any, values: list[Any]) -> None:
    """Adds how sums change as draws of noise are added, and as they are taken away."""
    builder, size, weights = points.builder, values[SIZE], values[WEIGHT]
    noise = builder.fmul(draws, values[TURNED_REACH])
    above = points.absolute(builder.fadd(size, noise))
    below = points.absolute(builder.fsub(size, noise))
    for number, knot in enumerate(values[FIRST_KNOT:]):
        change = builder.fsub(points.least(above, knot), points.least(below, knot))
        points.add(first + number, change, weights)
    points.add(first + len(KNOTS), builder.fsub(above, below), weights)
    excess, zero = builder.fsub(points.absolute(noise), size), points.constant()
    is_more = builder.fcmp_ordered(">", excess, zero)
    points.add(EXCESS, builder.select(is_more, excess, zero), weights)


def _adding(add: Callable[[_Points, list[Any], list[Any]], None], rows: Sequence[int]) -> Any:
    """Returns an intrinsic that adds some points of a neuron to the sums of a pair.

    Its arguments are the draws of a and of b (..., `LANES`), and the numbers of the first point
    among all of each; how many points are added, and which of P, int32; what is known of all P
    (`VALUES`, P); and the sums (`ROWS`, `LANES`). All but the numbers are float32, and all are
    contiguous.
    """

    def typed(
        context: Any, rows_a: Any, rows_b: Any, first_a: Any, first_b: Any, count: Any, places: Any,
        values: Any, sums: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            points = _Points(rows, context, builder, signature.args, arguments)
            points.sum_up(lambda draws, values: add(points, draws, values))
            return context.get_dummy_value()

        whole = (types.intp,) * 3
        return types.void(rows_a, rows_b, *whole, places, values, sums), code

    return intrinsic(typed)


def _sorting(paired: bool) -> Any:
    """Returns an intrinsic that writes what is known of a neuron's points, and sorts them.

    Its arguments are the curves of a and of b float64, and the numbers of the neuron's first point
    among all of each; the variance of their noise, and how far it reaches; the weight of the
    neuron, and its sign, 0 if it has none; the number of its first point among P, and how many it
    has, a multiple of `LANES`; what is known of the P points (`VALUES`, P), to which it writes for
    those that it lists; which points are near zero, and which do not have the sign of the neuron
    (P + `LANES`,) int32, and how many so far (2,) int64, to which it adds; and `SET_BITS`. All
    others are float32, and all are contiguous. A point is near if it is so close to zero that some
    draw of the noise is clipped. If `paired`, the standard errors are there already.
    """

    def typed(
        context: Any, curve_a: Any, curve_b: Any, first_a: Any, first_b: Any, variance_a: Any,
        variance_b: Any, reach_a: Any, reach_b: Any, weight: Any, side: Any, first: Any,
        points: Any, values: Any, near: Any, beside: Any, counts: Any, numbers: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _Sorter(paired, context, builder, signature.args, arguments).sort()
            return context.get_dummy_value()

        noise = variance_a, variance_b, reach_a, reach_b, *(types.float32,) * 2
        whole = (types.intp,) * 2
        lists = near, beside, counts, numbers
        return types.void(curve_a, curve_b, *whole, *noise, *whole, values, *lists), code

    return intrinsic(typed)


sort_points: Any = _sorting(paired=False)
"""Sorts the points of two independent datasets."""

sort_paired_points: Any = _sorting(paired=True)
"""Sorts the points of two datasets whose images are in pairs."""

add_beside: Any = _adding(_add_beside, (TURNED_A, TURNED_B))
"""Adds points that do not have the sign of their neuron."""

# More sums than these would not stay in registers.
add_less: Any = _adding(_add_less, (*range(MINUS, MINUS + MOVES), NEAR_A, NEAR_B, EXCESS, LEVELS))
"""Adds points near zero, with all draws that have a minus."""

add_more: Any = _adding(_add_more, (*range(PLUS, PLUS + MOVES), EXCESS))
"""Adds the draws of the same points that have a plus. Datasets whose images are in pairs have none.
"""
