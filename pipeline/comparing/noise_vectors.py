"""Adds draws of noise to sixteen points of a pair of curves at a time, in LLVM's own terms.

Numba would make a loop over points of it, with sums that are added up across a vector after each
draw. Here a sum stays a vector over all neurons of a block, and is added up once.

For each point, let x be the difference of two curves, s its standard error, and n one draw of its
noise. What is summed is odd in x and n together. So x and n are turned by the sign of x, and the
result for b against a is that for a against b to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from pipeline.comparing.emd_kernel import LANES
from pipeline.comparing.intervals import DRAWS, KNOTS, PATTERNS, REACH

MOVES = len(KNOTS) + 1
"""Sums of a draw: changes of clipped differences, and of plain ones."""

NEAR_A, NEAR_B, FAR_A, FAR_B = range(4)
LINES = 4
"""Sums of a pattern of folds: of the noise of a, and of b, with the sign of the difference, over
points near zero and over points that are far from it."""

PLAIN, ERRORS, BOTH, LEAN = range(len(KNOTS), len(KNOTS) + 4)
LEVELS = len(KNOTS) + 4
"""Sums of a pair without a draw: clipped differences, plain ones, standard errors, the larger of
difference and noise over all draws, and differences with their signs, which no weight multiplies.
"""

ROUNDING = 1e-12
"""Cumulative distributions, which are up to 1, differ by less if they are equal."""

FARTHEST = KNOTS[-1]
"""A point is far if no draw brings it so close to zero, in standard errors, that it is clipped."""


def _add_points(paired: bool) -> Any:
    """Returns an intrinsic that adds one vector of points of one neuron to the sums of a pair.

    Its arguments are the neuron's curves of a and of b (P,) float64; the variance of their noise,
    and how far it reaches, (P,) each; the draws of a and of b (15, P); which vector of points is
    meant; the weight of the neuron; and the sums `moves` (30 x `MOVES`, 16), `lines` (15 x `LINES`,
    16) and `levels` (`LEVELS`, 16). All but the curves are float32, and all are contiguous. If
    `paired`, only the draws with a minus are made, and the variance is theirs.
    """

    def typed(
        context: Any, curve_a: Any, curve_b: Any, variance_a: Any, variance_b: Any, reach_a: Any,
        reach_b: Any, rows_a: Any, rows_b: Any, at: Any, weight: Any, moves: Any, lines: Any,
        levels: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given = [
                None if n in (8, 9) else make_array(kind)(context, builder, value)
                for n, (kind, value) in enumerate(zip(signature.args, arguments, strict=True))
            ]
            _Points(builder, given, arguments[8], arguments[9], paired).add()
            return context.get_dummy_value()

        arrays = curve_a, curve_b, variance_a, variance_b, reach_a, reach_b, rows_a, rows_b
        return types.void(*arrays, types.intp, types.float32, moves, lines, levels), code

    return intrinsic(typed)


class _Points:
    """Writes the code of one vector of points."""

    def __init__(self, builder: Any, given: Sequence[Any], at: Any, weight: Any, paired: bool):
        self.builder = builder
        self.paired = paired
        self.word = ir.IntType(64)
        self.vector = ir.VectorType(ir.FloatType(), LANES)
        self.at = builder.mul(at, self.word(LANES))
        self.rows_a, self.rows_b = given[6:8]
        self.moves, self.lines, self.levels = given[10:]
        self.weight = self._everywhere(weight)
        self.apart = self._difference(*given[:2])
        variance = self._paired_variance() if paired else self._sum(*given[2:4])
        self.error = builder.call(self._function("sqrt", 1), [variance])
        self.reach = self._sum(*given[4:6])
        self.size = self._absolute(self.apart)
        below = builder.fcmp_ordered("<", self.apart, self._constant(0))
        self.sign = builder.select(below, self._constant(-1), self._constant(1))
        equal = builder.fcmp_ordered("==", self.apart, self._constant(0))
        self.weight_of_sign = builder.select(equal, self._constant(0), self.weight)
        self.knots = [builder.fmul(self.error, self._constant(knot)) for knot in KNOTS]

    def add(self) -> None:
        """Adds what needs no draw, and then the draws: the short way if all points are far."""
        builder = self.builder
        for level, knot in enumerate(self.knots):
            self._add(self.levels, self.word(level), self._least(self.size, knot))
        self._add(self.levels, self.word(PLAIN), self.size)
        self._add(self.levels, self.word(ERRORS), self.error)
        self._add(self.levels, self.word(LEAN), self.apart, self._constant(1))
        reached = builder.fmul(self.reach, self._constant(REACH))
        limit = builder.fadd(reached, builder.fmul(self.error, self._constant(FARTHEST)))
        near = builder.fcmp_ordered("<", self.size, limit)
        mask = builder.bitcast(near, ir.IntType(LANES))
        with builder.if_else(builder.icmp_unsigned("!=", mask, mask.type(0))) as (then, otherwise):
            with then:
                self._loop(self._near)
            with otherwise:
                self._loop(self._far)
                draws = PATTERNS if self.paired else DRAWS
                self._add(
                    self.levels, self.word(BOTH), builder.fmul(self.size, self._constant(draws))
                )

    def _difference(self, a: Any, b: Any) -> Any:
        """Returns a - b in float32, and zero where that may be rounding."""
        wide = ir.VectorType(ir.DoubleType(), LANES)
        curves = (self.builder.load(self._place(of, self.at, wide), align=8) for of in (a, b))
        apart = self.builder.fsub(*curves)
        absolute = ir.FunctionType(wide, [wide])
        size = self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, absolute, f"llvm.fabs.v{LANES}f64"),
            [apart],
        )
        apart = self.builder.fptrunc(apart, self.vector)
        large = self.builder.fcmp_ordered(">", size, ir.Constant(wide, [ROUNDING] * LANES))
        return self.builder.select(large, apart, self._constant(0))

    def _sum(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(self._load(a, self.at), self._load(b, self.at))

    def _paired_variance(self) -> Any:
        """Returns the mean square of what the draws of a and of b differ by."""
        total = cgutils.alloca_once_value(self.builder, self._constant(0))
        with cgutils.for_range(self.builder, self.word(PATTERNS)) as loop:
            one, other = self._draws(loop.index)
            noise = self.builder.fsub(one, other)
            square = self.builder.fmul(noise, noise)
            self.builder.store(self.builder.fadd(self.builder.load(total), square), total)
        return self.builder.fdiv(self.builder.load(total), self._constant(PATTERNS))

    def _loop(self, body: Any) -> None:
        """Calls `body` with the number of each pattern."""
        with cgutils.for_range(self.builder, self.word(PATTERNS)) as loop:
            body(loop.index)

    def _draws(self, pattern: Any) -> list[Any]:
        builder = self.builder
        found = []
        for rows in (self.rows_a, self.rows_b):
            width = cgutils.unpack_tuple(builder, rows.shape)[1]
            found.append(self._load(rows, builder.add(builder.mul(pattern, width), self.at)))
        return found

    def _turned(self, pattern: Any) -> list[Any]:
        """Returns the draws of both sides, turned by the sign of the difference."""
        return [self.builder.fmul(draw, self.sign) for draw in self._draws(pattern)]

    def _far(self, pattern: Any) -> None:
        for side, draw in zip((FAR_A, FAR_B), self._turned(pattern), strict=True):
            self._add(self.lines, self._line(pattern, side), draw, self.weight_of_sign)

    def _near(self, pattern: Any) -> None:
        builder = self.builder
        one, other = self._turned(pattern)
        for side, draw in ((NEAR_A, one), (NEAR_B, other)):
            self._add(self.lines, self._line(pattern, side), draw, self.weight_of_sign)
        largest = self._constant(0)
        for half in range(1 if self.paired else 0, 2):
            noise = builder.fsub(one, other) if half else builder.fadd(one, other)
            moved = builder.fmul(noise, self._constant(REACH))
            above = self._absolute(builder.fadd(self.size, moved))
            below = self._absolute(builder.fsub(self.size, moved))
            row = builder.add(builder.mul(pattern, self.word(2)), self.word(half))
            row = builder.mul(row, self.word(MOVES))
            for number, knot in enumerate(self.knots):
                change = builder.fsub(self._least(above, knot), self._least(below, knot))
                self._add(self.moves, builder.add(row, self.word(number)), change)
            plain = builder.add(row, self.word(len(KNOTS)))
            self._add(self.moves, plain, builder.fsub(above, below))
            size = self._absolute(moved)
            larger = builder.select(builder.fcmp_ordered(">", self.size, size), self.size, size)
            largest = builder.fadd(largest, larger)
        self._add(self.levels, self.word(BOTH), largest)

    def _line(self, pattern: Any, side: int) -> Any:
        return self.builder.add(self.builder.mul(pattern, self.word(LINES)), self.word(side))

    def _add(self, sums: Any, row: Any, values: Any, weight: Any = None) -> None:
        """Adds weighted values to a vector of sums."""
        place = self._place(sums, self.builder.mul(row, self.word(LANES)))
        multiply_add = self._function("fma", 3)
        sum_ = self.builder.load(place, align=4)
        weight = self.weight if weight is None else weight
        self.builder.store(self.builder.call(multiply_add, [weight, values, sum_]), place, align=4)

    def _place(self, array: Any, offset: Any, kind: Any = None) -> Any:
        start = self.builder.gep(array.data, [offset])
        return self.builder.bitcast(start, (kind or self.vector).as_pointer())

    def _load(self, array: Any, offset: Any) -> Any:
        return self.builder.load(self._place(array, offset), align=4)

    def _function(self, name: str, arguments: int) -> Any:
        kind = ir.FunctionType(self.vector, [self.vector] * arguments)
        return cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.v{LANES}f32")

    def _absolute(self, values: Any) -> Any:
        return self.builder.call(self._function("fabs", 1), [values])

    def _least(self, x: Any, y: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered("<", x, y), x, y)

    def _constant(self, value: float) -> Any:
        return ir.Constant(self.vector, [float(value)] * LANES)

    def _everywhere(self, value: Any) -> Any:
        builder, unknown = self.builder, ir.Constant(self.vector, ir.Undefined)
        first = builder.insert_element(unknown, value, ir.IntType(32)(0))
        places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(first, unknown, places)


add_points: Any = _add_points(paired=False)
"""Adds a vector of points of two independent datasets."""

add_paired_points: Any = _add_points(paired=True)
"""Adds a vector of points of two datasets whose images are in pairs."""
