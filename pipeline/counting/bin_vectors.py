"""Writes the code that places the activations of eight neurons at a time, in LLVM's own terms.

Numba's code for the same loop is half as fast: it keeps the sums, minima and maxima of neurons in
memory, where this code keeps them in registers while it goes from position to position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

NEURONS_AT_ONCE = 8
"""Neurons in a vector: eight float64 are one register of AVX-512, and two of AVX2."""

UNDERFLOW, OVERFLOW, NONFINITE = 0, 1, 2
"""Columns of a table, counted from the end of its bins."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest finite activation."""


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
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        single, double = ir.FloatType(), ir.DoubleType()
        word, long = ir.IntType(32), ir.IntType(64)
        given = [
            make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        x, at, rows, *scale, bins, neuron, index, lane, width, total, minimum, maximum = given
        size = builder.extract_value(x.shape, 1)

        def vector(kind: Any) -> Any:
            return ir.VectorType(kind, NEURONS_AT_ONCE)

        def every(kind: Any, value: float) -> Any:
            return ir.Constant(vector(kind), [value] * NEURONS_AT_ONCE)

        def spread(value: Any) -> Any:
            """Returns a vector with one value in all lanes."""
            one = builder.insert_element(ir.Constant(vector(value.type), None), value, word(0))
            return builder.shuffle_vector(one, one, every(word, 0))

        def address(array: Any, offset: Any, kind: Any) -> Any:
            start = builder.gep(array.data, [offset])
            return builder.bitcast(start, vector(kind).as_pointer())

        def load(array: Any, offset: Any, kind: Any) -> Any:
            return builder.load(address(array, offset, kind), align=4)

        least, most, centre, half = (load(array, neuron, double) for array in scale)
        columns = builder.trunc(builder.add(bins, long(3)), word)
        numbers = ir.Constant(vector(word), list(range(NEURONS_AT_ONCE)))
        numbers = builder.add(numbers, spread(builder.trunc(lane, word)))
        first = builder.mul(numbers, spread(columns))

        def column(of: int) -> Any:
            """Returns the number of a column, counted from the end of the bins."""
            return spread(builder.sitofp(builder.add(bins, long(of)), double))

        last, under, over, bad = (column(of) for of in (-1, UNDERFLOW, OVERFLOW, NONFINITE))
        count = column(0)
        kept = [(total, double), (minimum, single), (maximum, single)]
        before = [load(array, neuron, kind) for array, kind in kept]
        entry = builder.block
        loop, done = (builder.append_basic_block(name) for name in ("positions", "placed"))
        builder.branch(loop)
        builder.position_at_end(loop)
        row = builder.phi(long)
        running = [builder.phi(vector(kind)) for _, kind in kept]
        place = builder.add(builder.mul(builder.add(at, row), size), neuron)
        value = load(x, place, single)
        v = builder.fpext(value, vector(double))

        def compared(how: str, a: Any, b: Any) -> Any:
            return builder.fcmp_ordered(how, a, b)  # false for NaN

        def chosen(condition: Any, a: Any, b: Any) -> Any:
            return builder.select(condition, a, b)

        above = compared(">=", value, every(single, -LARGEST))
        below = compared("<=", value, every(single, LARGEST))
        lower = builder.and_(compared("<", value, running[1]), above)
        higher = builder.and_(compared(">", value, running[2]), below)
        after = [
            builder.fadd(running[0], v),
            chosen(lower, value, running[1]),
            chosen(higher, value, running[2]),
        ]
        one = every(double, 1.0)
        scaled = builder.fdiv(builder.fsub(v, centre), half)
        # NaN fails every comparison, and so becomes -1: never an undefined cast.
        scaled = chosen(compared(">", scaled, every(double, -1.0)), scaled, every(double, -1.0))
        scaled = chosen(compared("<", scaled, one), scaled, one)
        spot = builder.fmul(builder.fadd(scaled, one), count)
        spot = builder.fmul(spot, every(double, 0.5))
        spot = chosen(compared("<", spot, last), spot, last)
        spot = chosen(compared("<", v, least), under, spot)
        spot = chosen(compared(">", v, most), over, spot)
        spot = chosen(builder.and_(above, below), spot, bad)
        found = builder.add(builder.fptosi(spot, vector(word)), first)
        target = address(index, builder.add(lane, builder.mul(row, width)), word)
        builder.store(found, target, align=4)
        following = builder.add(row, long(1))
        row.add_incoming(long(0), entry)
        row.add_incoming(following, loop)
        for phi, start, end in zip(running, before, after, strict=True):
            phi.add_incoming(start, entry)
            phi.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", following, rows), loop, done)
        builder.position_at_end(done)
        for (array, kind), end in zip(kept, after, strict=True):
            builder.store(end, address(array, neuron, kind), align=4)
        return context.get_dummy_value()

    whole = types.intp
    scale = (least, most, centre, half)
    sums = (total, minimum, maximum)
    return types.void(x, whole, whole, *scale, whole, whole, index, whole, whole, *sums), code


place_rows: Any = intrinsic(_place_rows)
