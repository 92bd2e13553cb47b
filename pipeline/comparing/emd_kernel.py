"""Computes the EMD of all pairs: cumulative distributions in fixed point, rows against rows.

    >>> pairwise_emd([a, b, c])[0, 1]                                   # doctest: +SKIP
    >>> curves = Curves.of([a, b]); distances(curves, curves, weights)  # doctest: +SKIP

The Earth Mover's Distance of two histograms is the L1 distance of their cumulative distributions,
and sum |x - y| = 2 sum max(x, y) - sum x - sum y. The last two sums are known once per row, so a
pair costs one maximum and one addition a bin. In fixed point neither of them rounds. Sums of
integers have no order: a distance is the same to the last bit in whatever block, tile, thread or
device it is computed, as long as its weight is an integer.

Only the conversion to fixed point rounds: a neuron's distance is within (bins - 1) x 2^-26 bins of
the exact one, 1.5e-5 for a thousand bins, and so is any mean over neurons. That bound is absolute:
for DNAs that are nearly the same, a hundredth of a bin apart or less, the error may be more than a
millionth of the distance.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import iadd
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from pipeline.comparing.comparable_dnas import comparable
from pipeline.compiled import compiled
from pipeline.dna import DNA, Floats, Ints, Lens
from pipeline.errors import UsageError
from pipeline.spec import available_cpus

ONE = 2**26
"""Fixed-point value of 1. Values are off by 2^-27 at most, which is less than float32's error."""

HELD = 2**20
"""Values that a thread makes at a time, for DNAs in memory: 4 MB, which its caches hold."""

RESULTS_AT_ONCE = 2**22
"""Distances that a thread computes at a time: 32 MB, as each thread has sums of its own."""

COUNTED = ("counts", "underflow", "overflow")
"""Fields of a DNA that enter the EMD."""

LANES = 16
"""Values in a vector, as in AVX-512. Other processors take several smaller ones."""

KERNEL_ROWS = 4
"""Rows that are compared with as many at once: their 16 sums fill half of AVX-512's registers."""

_SPAN = 63
"""Vectors that can be added before a lane's 32 bits overflow: 63 x 2^26 < 2^32."""

Words = NDArray[np.uint32]


def width_of(bins: int) -> int:
    """Computes the length of a row of curves.

    The last cumulative value is 1 for all, and is left out.

    Args:
        bins: Bins of a histogram.

    Returns:
        The number of values, in whole vectors.
    """
    return -(-(bins - 1) // LANES) * LANES


def padded(rows: int) -> int:
    """Rounds a number of rows up to what the kernel takes at a time.

    Args:
        rows: Number of rows.

    Returns:
        A multiple of `KERNEL_ROWS`.
    """
    return -(-rows // KERNEL_ROWS) * KERNEL_ROWS


@dataclass(frozen=True, eq=False)
class Curves:
    """Cumulative distributions of the same neurons, one row per DNA (or whatever else has counts).

    Attributes:
        values: (neurons, padded rows, width) uint32, in which `ONE` stands for 1. The content of
            padding does not matter.
        sums: (neurons, padded rows) int64 sum of each row.
        undefined: (neurons, rows) whether there is no finite activation.
    """

    values: Words
    sums: Ints
    undefined: NDArray[np.bool_]

    @classmethod
    def empty(cls, neurons: int, rows: int, bins: int) -> Curves:
        """Makes room for rows.

        Args:
            neurons: Number of neurons.
            rows: Number of rows.
            bins: Bins of a histogram.

        Returns:
            Curves to be filled.
        """
        shape = (neurons, padded(rows), width_of(bins))
        values = np.empty(shape, np.uint32)
        values[:, rows:] = 0
        sums = np.zeros(shape[:2], np.int64)
        return cls(values, sums, np.zeros((neurons, rows), bool))

    @classmethod
    def of(cls, dnas: Sequence[DNA]) -> Curves:
        """Makes one row a DNA, each filled by one thread.

        Args:
            dnas: DNAs of the same neurons.

        Returns:
            Their curves.
        """
        neurons, bins = dnas[0].counts.shape
        curves = cls.empty(neurons, len(dnas), bins)

        def fill(row: int) -> None:
            dna = dnas[row]
            curves.fill(row, [dna.counts], [dna.underflow], [dna.overflow])

        with ThreadPoolExecutor(available_cpus()) as pool:
            list(pool.map(fill, range(len(dnas))))
        return curves

    @property
    def rows(self) -> int:
        """Number of rows without padding."""
        return int(self.undefined.shape[1])

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return self.values.nbytes + self.sums.nbytes + self.undefined.nbytes

    def any_undefined(self, neurons: Ints) -> NDArray[np.bool_]:
        """Tells in which rows a neuron has no finite activation.

        Args:
            neurons: Numbers of the neurons to look at.

        Returns:
            (rows,) True if any of these neurons has none.
        """
        return np.asarray(self.undefined[neurons].any(axis=0))

    def part(self, rows: slice) -> Curves:
        """Takes some of the rows.

        Args:
            rows: Which; it begins and ends at multiples of `KERNEL_ROWS`, or at an end.

        Returns:
            Views of their curves.
        """
        return Curves(self.values[:, rows], self.sums[:, rows], self.undefined[:, rows])

    def fill(
        self,
        first: int,
        counts: Sequence[Ints],
        underflow: Sequence[Ints],
        overflow: Sequence[Ints],
    ) -> None:
        """Writes rows from histograms.

        Args:
            first: Number of the first row.
            counts: A (neurons, bins) histogram for each row.
            underflow: (neurons,) activations below the first bin, for each row.
            overflow: (neurons,) activations above the last bin, for each row.
        """
        held = [np.ascontiguousarray(array, np.int64) for array in counts]
        at = np.array([array.ctypes.data for array in held], np.int64)
        below, above = np.array(underflow), np.array(overflow)
        values, sums, undefined = self.values, self.sums, self.undefined
        shape = held[0].shape
        _fill(0, len(values), at, shape, below, above, first, values, sums, undefined)


def pairwise_emd(dnas: Sequence[DNA], lens: Lens | None = None) -> Floats:
    """Computes the EMD of every pair of DNAs in memory, as `emd` does.

    Curves are made of so few neurons at a time that caches hold them. Raises as `emd` does.

    Args:
        dnas: DNAs under one spec.
        lens: Weighs the neurons.

    Returns:
        (D, D) float64 means over neurons, in bins.
    """
    if not dnas:
        return np.empty((0, 0))
    first, size = dnas[0], len(dnas)
    for number, dna in enumerate(dnas, 1):
        comparable(first, dna, None, "counts", ("DNA 1", f"DNA {number}"))
    if lens is not None:
        lens.require_fit(first.spec)
    weights = np.ones(len(first.low)) if lens is None else lens.weights_of_layers(first.layers)
    if not weights.any():
        return np.full((size, size), np.nan)  # as `emd`: the lens weighs other layers alone

    step = max(1, HELD // (padded(size) * width_of(first.spec.bins)))
    found: list[NDArray[np.bool_]] = []

    def part(used: Ints) -> Floats:
        total, undefined = np.zeros((padded(size), padded(size))), np.zeros(size, bool)
        for some in np.split(used, range(step, len(used), step)):
            together = some[-1] - some[0] < len(some)  # then nothing is copied
            rows = slice(some[0], some[-1] + 1) if together else some
            curves = Curves.empty(len(some), size, first.spec.bins)
            curves.fill(0, *([getattr(dna, name)[rows] for dna in dnas] for name in COUNTED))
            x, sums, at = curves.values, curves.sums, np.arange(len(some))
            _distances(at, x, sums, x, sums, weights[some], True, total)
            undefined |= curves.any_undefined(at)
        found.append(undefined)
        return total

    total = _in_parts(part, np.flatnonzero(weights), padded(size) ** 2)
    undefined = np.any(found, axis=0)
    sums = _whole(total, undefined, undefined, upper=True)
    weight = weights.sum()
    return sums / weight if weight > 0 else np.full_like(sums, np.nan)


def distances(
    a: Curves, b: Curves, weights: Floats, *, threads: int | None = None, device: str = "cpu"
) -> Floats:
    """Computes weighted sums over neurons of the EMD of rows.

    If `a is b`, half of the pairs are computed. Beside the result, threads hold
    `RESULTS_AT_ONCE` sums each.

    Args:
        a: Curves of A rows.
        b: Curves of B rows, of the same neurons and bins.
        weights: (neurons,) weights.
        threads: Threads to use; None for all cores.
        device: The CPU's own kernel, or torch on a CUDA device.

    Returns:
        (A, B) float64 sums, in bins; NaN if a weighed neuron has no finite activation.

    Raises:
        UsageError: If the shapes do not fit.
    """
    if a.values.shape[0::2] != b.values.shape[0::2] or len(weights) != len(a.values):
        raise UsageError(
            f"histograms of (neurons, bins) {a.values.shape[0::2]} and {b.values.shape[0::2]} with "
            f"{len(weights)} weights do not fit together"
        )
    used = np.flatnonzero(weights)
    above, beside = a.any_undefined(used), b.any_undefined(used)
    if device != "cpu":
        return _whole(_on_device(a, b, used, weights, device), above, beside, upper=a is b)
    shape = a.values.shape[1], b.values.shape[1]
    step = max(KERNEL_ROWS, RESULTS_AT_ONCE // max(shape[1], 1) // KERNEL_ROWS * KERNEL_ROWS)

    def sums_of(a: Curves, b: Curves, *, upper: bool) -> Floats:
        def part(used: Ints) -> Floats:
            total = np.zeros((a.values.shape[1], b.values.shape[1]))
            _distances(used, a.values, a.sums, b.values, b.sums, weights, upper, total)
            return total

        return _in_parts(part, used, shape[0] * shape[1], threads)[: a.rows, : b.rows]

    if step >= shape[0]:
        return _whole(sums_of(a, b, upper=a is b), above, beside, upper=a is b)
    found = np.empty((a.rows, b.rows))
    for start in range(0, a.rows, step):
        rows, columns = slice(start, start + step), slice(start if a is b else 0, None)
        found[rows, columns] = sums_of(a.part(rows), b.part(columns), upper=a is b)
        if a is b:
            square = np.triu(found[rows, rows])
            found[rows, rows] = square + np.triu(square, 1).T
            found[columns, rows] = found[rows, columns].T
    found[above, :] = np.nan
    found[:, beside] = np.nan
    return found


def _in_parts(
    work: Callable[[Ints], Floats], used: Ints, results: int, threads: int | None = None
) -> Floats:
    """Returns the sum of the results of `work` on shares of the neurons, added in their order.

    The shares are the same whatever the number of threads, so that sums with float weights repeat.
    The threads are our own, since those of a parallel loop wait spinning for each other, on a busy
    machine for longer than they work. `results` is how many distances are computed in all. The more
    there are, the fewer shares are made. At most `threads` + 2 results are in memory.
    """
    parts = max(1, min(len(used), 32, max(8, 2**25 // results)))
    workers = min(parts, threads or available_cpus())

    def arriving() -> Iterator[Floats]:
        waiting: deque[Future[Floats]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for share in np.array_split(used, parts):
                if len(waiting) > workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, share))
            while waiting:
                yield waiting.popleft().result()

    return reduce(iadd, arriving())


def _whole(
    sums: Floats, above: NDArray[np.bool_], beside: NDArray[np.bool_], *, upper: bool
) -> Floats:
    """Returns the kernel's sums without padding, in both triangles, with NaN if undefined."""
    sums = sums[: len(above), : len(beside)]
    sums = np.triu(sums) + np.triu(sums, 1).T if upper else sums.copy()
    sums[above, :] = np.nan
    sums[:, beside] = np.nan
    return sums


def _on_device(a: Curves, b: Curves, used: Ints, weights: Floats, device: str) -> Floats:
    """Returns the same integers as the kernel, by torch, a row of `a` at a time.

    It is tested on the CPU, where it agrees to the last bit; no GPU has run it yet.
    """
    import torch

    total = torch.zeros((a.rows, b.rows), dtype=torch.float64, device=device)
    step = max(1, DEVICE_BYTES // (4 * b.values[0].size))
    for start in range(0, len(used), step):
        at = used[start : start + step]
        mine, theirs = (
            torch.from_numpy(x.values[at, : x.rows].view(np.int32)).to(device) for x in (a, b)
        )
        scale = torch.from_numpy(weights[at] / ONE).to(device)
        for row in range(a.rows):
            apart = (theirs - mine[:, row : row + 1]).abs_().sum(dim=2, dtype=torch.int64)
            total[row] += scale @ apart.double()
    return np.asarray(total.cpu().numpy())


DEVICE_BYTES = 2**28
"""The most bytes of differences that are on a device at a time."""


def require_device(device: str) -> None:
    """Checks that a device can be used.

    Args:
        device: `cpu`, `cuda`, or one of several: `cuda:1`.

    Raises:
        UsageError: Unless it is the CPU, or a CUDA device that torch has here.
    """
    if device == "cpu":
        return
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise UsageError(
            f"device is {device!r}; it must be cpu, cuda, or one of several GPUs, such as cuda:1"
        )
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= there:
        raise UsageError(f"device is {device!r}; torch has {there or 'no'} CUDA devices here")


# The kernels.


def _to_pointer(context: Any, address: Any) -> Any:
    """Returns code that makes an int64 pointer of an address; numba takes no list of arrays."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(types.int64), code


pointer: Any = intrinsic(_to_pointer)


def _block_of(features: str) -> tuple[int, int]:
    """Chooses what is added up in registers at a time.

    Args:
        features: Those of the processor, as LLVM names them.

    Returns:
        How many of the `KERNEL_ROWS` rows of `a`, and how many lanes of a vector. AVX-512 has 32
        registers of sixteen lanes, which hold all sums. AVX2 has 16 of eight lanes, which hold
        those of half of the rows and half of the lanes.
    """
    if "+avx512f" in features:
        return KERNEL_ROWS, LANES
    return KERNEL_ROWS // 2, LANES // 2


def _add_maxima(
    context: Any, a: Any, i: Any, b: Any, j: Any, start: Any, stop: Any, out: Any
) -> Any:
    """Returns code that adds maxima: to out[4 r + c] the sum of max(a[i + r], b[j + c]).

    The sum is over vectors `start` to `stop`, `_SPAN` at most. `a` and `b` are (rows, width) uint32
    and `out` is (16,) int64, all contiguous. It is written in LLVM's own terms, since numba widens
    every sum of 32-bit integers to 64 bits.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, long = ir.IntType(32), ir.IntType(64)
        height, lanes = _block_of(context.codegen().magic_tuple()[2])
        vector, wide = ir.VectorType(word, lanes), ir.VectorType(long, lanes)
        arrays = [make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 2, 6)]
        sums_of = arrays[2].data
        start, stop = arguments[4], arguments[5]
        kind = ir.FunctionType(long, [wide])
        add_up = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.vector.reduce.add.v{lanes}i64"
        )

        def rows(array: Any, row: Any, number: int) -> list[Any]:
            stride = cgutils.unpack_tuple(builder, array.shape)[1]
            ats = [builder.add(row, long(r)) for r in range(number)]
            return [builder.gep(array.data, [builder.mul(at, stride)]) for at in ats]

        def add_block(mine: list[Any], theirs: list[Any], lane: int, first_sum: int) -> None:
            before = builder.block
            loop, done = (builder.append_basic_block(name) for name in ("vectors", "summed"))
            builder.branch(loop)
            builder.position_at_end(loop)
            at = builder.phi(long)
            at.add_incoming(start, before)
            sums = [builder.phi(vector) for _ in range(len(mine) * len(theirs))]
            offset = builder.add(builder.mul(at, long(LANES)), long(lane))

            def load(row: Any) -> Any:
                place = builder.bitcast(builder.gep(row, [offset]), vector.as_pointer())
                return builder.load(place, align=4)

            left, right = [load(row) for row in mine], [load(row) for row in theirs]
            following = []
            for x, running in zip([(u, v) for u in left for v in right], sums, strict=True):
                greater = builder.select(builder.icmp_unsigned(">", *x), *x)
                following.append(builder.add(running, greater))
            after = builder.add(at, long(1))
            at.add_incoming(after, loop)
            for running, added in zip(sums, following, strict=True):
                running.add_incoming(vector(None), before)
                running.add_incoming(added, loop)
            builder.cbranch(builder.icmp_unsigned("<", after, stop), loop, done)
            builder.position_at_end(done)
            for n, found in enumerate(following, first_sum):
                place = builder.gep(sums_of, [long(n)])
                total = builder.call(add_up, [builder.zext(found, wide)])
                builder.store(builder.add(builder.load(place), total), place)

        mine = rows(arrays[0], arguments[1], KERNEL_ROWS)
        theirs = rows(arrays[1], arguments[3], KERNEL_ROWS)
        for first in range(0, KERNEL_ROWS, height):
            for lane in range(0, LANES, lanes):
                add_block(mine[first : first + height], theirs, lane, first * KERNEL_ROWS)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(a, whole, b, whole, whole, whole, out), code


_maxima: Any = intrinsic(_add_maxima)


@compiled
def _accumulate(counts: Ints, below: int, above: int, running: Ints, out: Words) -> tuple[int, int]:
    """Returns the sum of a curve and the number of activations, and writes the curve.

    counts (bins,) become out (width,); sums are exact until the end. Underflow belongs to the first
    bin, and overflow to the last, whose cumulative value is 1.
    """
    last = len(counts) - 1
    for k in range(last):
        below += counts[k]
        running[k] = below
    total = below + counts[last] + above
    scale = ONE / max(total, 1)
    area = 0
    for k in range(last):
        out[k] = np.uint32(running[k] * scale + 0.5)
        area += out[k]
    out[last:] = 0
    return area, total


@compiled
def _add(
    a: Words, a_sums: Ints, b: Words, b_sums: Ints, scale: float, upper: bool, to: Floats
) -> None:
    """Adds one neuron's distances of a (A, width) from b (B, width), times `scale`, to (A, B)."""
    vectors = a.shape[1] // LANES
    greater = np.zeros(KERNEL_ROWS * KERNEL_ROWS, np.int64)
    for i in range(0, a.shape[0], KERNEL_ROWS):
        for j in range(i if upper else 0, b.shape[0], KERNEL_ROWS):
            greater[:] = 0
            for start in range(0, vectors, _SPAN):
                _maxima(a, i, b, j, start, min(start + _SPAN, vectors), greater)
            for r in range(KERNEL_ROWS):
                for c in range(KERNEL_ROWS):
                    apart = 2 * greater[KERNEL_ROWS * r + c] - a_sums[i + r] - b_sums[j + c]
                    to[i + r, j + c] += scale * apart


@compiled
def _fill(
    first: int,
    end: int,
    counts: Ints,
    shape: tuple[int, int],
    underflow: Ints,
    overflow: Ints,
    row: int,
    values: Words,
    sums: Ints,
    undefined: NDArray[np.bool_],
) -> None:
    """Writes rows of curves.

    `counts` holds the addresses (rows,) of int64 arrays of that shape; the flows are (rows,
    neurons).
    """
    running = np.zeros(shape[1], np.int64)
    for n in range(len(counts)):
        table = carray(pointer(counts[n]), shape)
        for neuron in range(first, end):
            area, total = _accumulate(
                table[neuron],
                underflow[n, neuron],
                overflow[n, neuron],
                running,
                values[neuron, row + n],
            )
            sums[neuron, row + n] = area
            undefined[neuron, row + n] = total == 0


@compiled
def _distances(
    used: Ints,
    a: Words,
    a_sums: Ints,
    b: Words,
    b_sums: Ints,
    weights: Floats,
    upper: bool,
    total: Floats,
) -> None:
    """Adds distances of a (neurons, A, width) from b (neurons, B, width) to `total` (A, B).

    A and B are multiples of `KERNEL_ROWS`. With `upper` only the upper triangle is computed, and
    what of the lower one shares its blocks.
    """
    for at in used:
        scale = weights[at] / ONE
        _add(a[at], a_sums[at], b[at], b_sums[at], scale, upper, total)
