"""Writes the code that places the activations of eight neurons at a time, in LLVM's own terms.

Numba would keep the sums, minima and maxima of neurons in memory. This code keeps them in registers
while it goes from position to position.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

NEURONS_AT_ONCE = 8
"""Neurons in a vector: eight float64 are one register of AVX-512, and two of AVX2."""

UNDERFLOW, OVERFLOW, NONFINITE = 0, 1, 2
"""Columns of a table, counted from the end of its bins."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest finite activation."""

LEAST_DIVISOR, MOST_DIVISOR = 2.0**-200, 2.0**200
"""The half-widths of ranges that `_Divisor` can divide by. Quotients below 2^-54 need not be exact,
as 1 is added to them. For the others, up to 1, it calculates with numbers of 2^-560 to 2^201."""

LEAST_PLACE = -1 - 2.0**-21
"""Where the lower end of a range may lie, from its centre in half-widths: of up to 2^20 bins it is
then less than half a bin below the first."""

_SINGLE, _DOUBLE = ir.FloatType(), ir.DoubleType()
_WORD, _LONG = ir.IntType(32), ir.IntType(64)


class _Vectors:
    """Writes operations on vectors of `NEURONS_AT_ONCE` numbers."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def kind(self, number: Any) -> Any:
        return ir.VectorType(number, NEURONS_AT_ONCE)

    def constant(self, number: Any, value: float) -> Any:
        """Returns a vector with one known value in all lanes."""
        return ir.Constant(self.kind(number), [value] * NEURONS_AT_ONCE)

    def spread(self, value: Any) -> Any:
        """Returns a vector with one computed value in all lanes."""
        nothing = ir.Constant(self.kind(value.type), ir.Undefined)
        one = self.builder.insert_element(nothing, value, _WORD(0))
        return self.builder.shuffle_vector(one, nothing, self.constant(_WORD, 0))

    def load(self, array: Any, offset: Any, number: Any) -> Any:
        return self.builder.load(self._address(array, offset, number), align=4)

    def store(self, values: Any, array: Any, offset: Any) -> None:
        place = self._address(array, offset, values.type.element)
        self.builder.store(values, place, align=4)

    def is_(self, how: str, a: Any, b: Any) -> Any:
        """Compares lanes; whatever is compared with NaN is false."""
        return self.builder.fcmp_ordered(how, a, b)

    def smaller(self, a: Any, b: Any) -> Any:
        """Returns the smaller number of each lane; of NaN and another, `b`."""
        return self.builder.select(self.is_("<", a, b), a, b)

    def larger(self, a: Any, b: Any) -> Any:
        """Returns the larger number of each lane; of NaN and another, `b`."""
        return self.builder.select(self.is_(">", a, b), a, b)

    def all(self, lanes: Any) -> Any:
        """Returns whether a comparison holds in all lanes."""
        mask = ir.IntType(NEURONS_AT_ONCE)
        return self.builder.icmp_signed("==", self.builder.bitcast(lanes, mask), mask(-1))

    def fused(self, a: Any, b: Any, c: Any) -> Any:
        """Returns a b + c in float64, rounded once; slowly on x86 from before 2013."""
        kind = self.kind(_DOUBLE)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(kind, [kind] * 3),
            f"llvm.fma.v{NEURONS_AT_ONCE}f64",
        )
        return self.builder.call(function, [a, b, c])

    def _address(self, array: Any, offset: Any, number: Any) -> Any:
        start = self.builder.gep(array.data, [offset])
        return self.builder.bitcast(start, self.kind(number).as_pointer())


def _columns_of(vectors: _Vectors, v: Any, finite: Any, scale: Sequence[Any], bins: Any) -> Any:
    """Writes what finds the columns of eight activations, as `histogram._place` does for one.

    Args:
        vectors: Writes it.
        v: The activations, in float64.
        finite: Which of them are finite.
        scale: The lowest and highest value in range, the centre and the half-width.
        bins: How many bins a range is divided into.

    Returns:
        The columns, in float64.
    """
    builder, (least, most, centre, half) = vectors.builder, scale
    last, count, under, over, bad = (
        vectors.spread(builder.sitofp(builder.add(bins, _LONG(column)), _DOUBLE))
        for column in (-1, 0, UNDERFLOW, OVERFLOW, NONFINITE)
    )
    one, minus_one = vectors.constant(_DOUBLE, 1.0), vectors.constant(_DOUBLE, -1.0)
    at = builder.fdiv(builder.fsub(v, centre), half)
    # NaN fails every comparison, and so becomes -1: never an undefined cast.
    at = vectors.smaller(vectors.larger(at, minus_one), one)
    at = builder.fmul(builder.fmul(builder.fadd(at, one), count), vectors.constant(_DOUBLE, 0.5))
    at = vectors.smaller(at, last)
    at = builder.select(vectors.is_("<", v, least), under, at)
    at = builder.select(vectors.is_(">", v, most), over, at)
    return builder.select(finite, at, bad)


def _columns_in_range(vectors: _Vectors, v: Any, scale: Sequence[Any], bins: Any) -> Any:
    """Writes what `_columns_of` does for activations that all lie in their ranges.

    Args:
        vectors: Writes it.
        v: The activations, in float64.
        scale: The centre of each neuron's range, and what divides by its half-width.
        bins: How many bins a range is divided into.

    Returns:
        The columns, in float64. A value at the lower end may come to a little below 0, which is
        truncated to 0.
    """
    builder, (centre, half) = vectors.builder, scale
    count, last = (
        vectors.spread(builder.sitofp(builder.add(bins, _LONG(column)), _DOUBLE))
        for column in (0, -1)
    )
    halves = builder.fmul(count, vectors.constant(_DOUBLE, 0.5))
    at = half.divides(builder.fsub(v, centre))
    at = builder.fmul(builder.fadd(at, vectors.constant(_DOUBLE, 1.0)), halves)
    return vectors.smaller(at, last)


class _Divisor:
    """Divides by a number that is known before: to the last bit as a division does, but faster.

    Let y be 1 / b rounded, and e = (1 - b y) y its error. Then q = a y + a e is less than one unit
    in the last place from a / b. So q + (a - b q) y is a / b correctly rounded, if this sum and the
    one in brackets are rounded once each. Source: Markstein, "Computation of elementary functions
    on the IBM RISC System/6000 processor", 1990. It holds where nothing overflows or underflows
    (see `LEAST_DIVISOR`).
    """

    def __init__(self, vectors: _Vectors, b: Any) -> None:
        one = vectors.constant(_DOUBLE, 1.0)
        self._vectors = vectors
        self._minus = vectors.builder.fneg(b)
        self._inverse = vectors.builder.fdiv(one, b)
        left = vectors.fused(self._minus, self._inverse, one)
        self._error = vectors.builder.fmul(left, self._inverse)

    def divides(self, a: Any) -> Any:
        vectors = self._vectors
        q = vectors.fused(a, self._inverse, vectors.builder.fmul(a, self._error))
        return vectors.fused(vectors.fused(self._minus, q, a), self._inverse, q)


def _place_rows(
    context: Any,
    x: Any,
    at: Any,
    rows: Any,
    least: Any,
    most: Any,
    centre: Any,
    half: Any,
    bins: Any,
    neuron: Any,
    index: Any,
    lane: Any,
    width: Any,
    total: Any,
    minimum: Any,
    maximum: Any,
) -> Any:
    """Returns code that places `rows` positions of eight neurons by the counting rule.

    `x` has the activations of all images, (positions, neurons) float32, and `at` is the first
    position. Then come the scale of all neurons, as `scale_of` makes it, the number of bins, and
    the first of the eight neurons.

    The code writes each activation's place in a table of bins + 3 columns a neuron to `index`,
    uint32, which has `width` places for each position; those of the eight neurons begin at `lane`.
    It adds the activations to `total`, float64, in the order of positions, and takes the finite
    ones into `minimum` and `maximum`, float32. These three have a number for each neuron of `x`.

    Nearly always, all activations are finite and in their ranges. So they are placed as if they
    were, and once more by the whole rule if it turns out that some were not.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder)
        x, at, rows, *scale, bins, neuron, index, lane, width, total, minimum, maximum = (
            make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        neurons = builder.extract_value(x.shape, 1)
        ranges = [vectors.load(array, neuron, _DOUBLE) for array in scale]
        least, most, centre, half = ranges
        columns = builder.trunc(builder.add(bins, _LONG(3)), _WORD)
        lanes = ir.Constant(vectors.kind(_WORD), list(range(NEURONS_AT_ONCE)))
        lanes = builder.add(lanes, vectors.spread(builder.trunc(lane, _WORD)))
        first_columns = builder.mul(lanes, vectors.spread(columns))
        kept = [(total, _DOUBLE), (minimum, _SINGLE), (maximum, _SINGLE)]
        before = [vectors.load(array, neuron, number) for array, number in kept]
        divisor = _Divisor(vectors, half)

        def each_row(name: str, before: Sequence[Any], body: Callable[..., Any]) -> list[Any]:
            """Writes a loop over the rows; returns what `body` makes of `before` at its end."""
            entry = builder.block
            loop, done = (builder.append_basic_block(f"{name}{end}") for end in ("", "_done"))
            builder.branch(loop)
            builder.position_at_end(loop)
            row = builder.phi(_LONG)
            running = [builder.phi(vectors.kind(number)) for _, number in kept]
            value = vectors.load(
                x, builder.add(builder.mul(builder.add(at, row), neurons), neuron), _SINGLE
            )
            v = builder.fpext(value, vectors.kind(_DOUBLE))
            after: list[Any]
            found, after = body(value, v, *running)
            places = builder.add(builder.fptosi(found, vectors.kind(_WORD)), first_columns)
            vectors.store(places, index, builder.add(lane, builder.mul(row, width)))
            following = builder.add(row, _LONG(1))
            row.add_incoming(_LONG(0), entry)
            row.add_incoming(following, loop)
            for phi, start, end in zip(running, before, after, strict=True):
                phi.add_incoming(start, entry)
                phi.add_incoming(end, loop)
            builder.cbranch(builder.icmp_signed("<", following, rows), loop, done)
            builder.position_at_end(done)
            return after

        def keep(after: Sequence[Any]) -> None:
            for (array, _), end in zip(kept, after, strict=True):
                vectors.store(end, array, neuron)

        def as_if_in_range(value: Any, v: Any, added: Any, low: Any, high: Any) -> Any:
            after = [
                builder.fadd(added, v),
                vectors.smaller(value, low),
                vectors.larger(value, high),
            ]
            return _columns_in_range(vectors, v, (centre, divisor), bins), after

        def by_the_rule(value: Any, v: Any, added: Any, low: Any, high: Any) -> Any:
            above = vectors.is_(">=", value, vectors.constant(_SINGLE, -LARGEST))
            below = vectors.is_("<=", value, vectors.constant(_SINGLE, LARGEST))
            lower = builder.and_(above, vectors.is_("<", value, low))
            higher = builder.and_(below, vectors.is_(">", value, high))
            after = [
                builder.fadd(added, v),
                builder.select(lower, value, low),
                builder.select(higher, value, high),
            ]
            return _columns_of(vectors, v, builder.and_(above, below), ranges, bins), after

        infinite = [vectors.constant(_SINGLE, sign * np.inf) for sign in (1, -1)]
        added, low, high = each_row("in_range", [before[0], *infinite], as_if_in_range)
        tests = [
            # A sum of finite activations is finite, and infinity less itself is NaN.
            vectors.is_("==", builder.fsub(added, added), vectors.constant(_DOUBLE, 0.0)),
            vectors.is_(">=", builder.fpext(low, vectors.kind(_DOUBLE)), least),
            vectors.is_("<=", builder.fpext(high, vectors.kind(_DOUBLE)), most),
            # A range that is narrow beside its centre may lie off it, as the centre is rounded.
            vectors.is_(
                ">=",
                builder.fdiv(builder.fsub(least, centre), half),
                vectors.constant(_DOUBLE, LEAST_PLACE),
            ),
            vectors.is_(">=", half, vectors.constant(_DOUBLE, LEAST_DIVISOR)),
            vectors.is_("<=", half, vectors.constant(_DOUBLE, MOST_DIVISOR)),
        ]
        held = vectors.all(functools.reduce(builder.and_, tests))
        with builder.if_else(held) as (then, otherwise):
            with then:
                keep([added, vectors.smaller(low, before[1]), vectors.larger(high, before[2])])
            with otherwise:
                keep(each_row("by_the_rule", before, by_the_rule))
        return context.get_dummy_value()

    whole = types.intp
    scale = (least, most, centre, half)
    sums = (total, minimum, maximum)
    return types.void(x, whole, whole, *scale, whole, whole, index, whole, whole, *sums), code


place_rows: Any = intrinsic(_place_rows)
