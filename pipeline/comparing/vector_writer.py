"""Writes code with vectors of sixteen numbers in LLVM's terms, where numba's own is slow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from pipeline.comparing.emd_kernel import LANES
from pipeline.dna import Ints

_LINE = 64
"""Bytes of a line of a cache."""


def aligned_zeros(shape: tuple[int, ...], kind: Any = np.float32) -> NDArray[Any]:
    """Makes an array of zeros whose vectors lie in one line of a cache each.

    Args:
        shape: Its shape.
        kind: Type of its numbers.

    Returns:
        The array.
    """
    size = math.prod(shape) * np.dtype(kind).itemsize
    room = np.zeros(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    values: NDArray[Any] = room[start : start + size].view(kind).reshape(shape)
    return values


def neuron_blocks(used: Ints, most: int) -> list[tuple[int, int]]:
    """Cuts neurons into blocks of neighbours, of at most so many.

    Args:
        used: Numbers of the neurons, in order.
        most: The largest block.

    Returns:
        The first neuron of each block, and the one behind its last.
    """
    runs = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)
    ends = [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
    return [(at, min(at + most, stop)) for first, stop in ends for at in range(first, stop, most)]


class VectorWriter:
    """Writes code with vectors of `LANES` float32.

    Args:
        context: Numba's.
        builder: Where the code goes.
        kinds: The types of an intrinsic's arguments.
        arguments: The arguments.
    """

    def __init__(self, context: Any, builder: Any, kinds: Any, arguments: Any) -> None:
        self.builder = builder
        self.word, self.float = ir.IntType(64), ir.FloatType()
        self.vector = ir.VectorType(self.float, LANES)
        self.given = [
            make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(kinds, arguments, strict=True)
        ]

    def vector_at(self, array: Any, offset: Any) -> Any:
        """Returns the address of the vector that begins at some number of an array."""
        start = self.builder.gep(array.data, [offset])
        return self.builder.bitcast(start, self.vector.as_pointer())

    def load(self, array: Any, offset: Any) -> Any:
        """Returns the vector that begins at some number of an array."""
        return self.builder.load(self.vector_at(array, offset), align=4)

    def call(self, name: str, *arguments: Any) -> Any:
        """Returns what an intrinsic of LLVM makes of vectors."""
        kind = ir.FunctionType(self.vector, [self.vector] * len(arguments))
        function = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.{name}.v{LANES}f32"
        )
        return self.builder.call(function, arguments)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """Returns x y + z."""
        return self.call("fma", x, y, z)

    def absolute(self, values: Any) -> Any:
        """Returns |x|."""
        return self.call("fabs", values)

    def least(self, x: Any, y: Any) -> Any:
        """Returns the lesser of x and y."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, y), x, y)

    def constant(self, *values: float) -> Any:
        """Returns a vector whose first lanes have these values, and whose others are zero."""
        lanes = [*map(float, values), *[0.0] * (LANES - len(values))]
        return ir.Constant(self.vector, lanes)

    def all(self, value: float) -> Any:
        """Returns a vector with one number in all lanes."""
        return self.constant(*[value] * LANES)

    def everywhere(self, value: Any, kind: Any = None) -> Any:
        """Returns a vector with one value in all lanes."""
        builder, unknown = self.builder, ir.Constant(kind or self.vector, ir.Undefined)
        first = builder.insert_element(unknown, value, ir.IntType(32)(0))
        lanes = unknown.type.count
        places = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return builder.shuffle_vector(first, unknown, places)

    def turned(self, values: Any, by: int) -> Any:
        """Returns a vector whose lane k has the number of lane k + `by`, counted round."""
        lanes = [(lane + by) % LANES for lane in range(LANES)]
        places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
        return self.builder.shuffle_vector(values, values, places)
