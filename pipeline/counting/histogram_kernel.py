"""Counts a layer's activations on a GPU, in one launch of a Triton kernel.

The counting rule is that of `histogram`; `device_counts` launches the kernel and keeps the tables.
With TRITON_INTERPRET=1 in the environment the same code runs on a CPU, slowly, as in the tests.
Importing this module needs Triton, which comes with PyTorch for CUDA.

One program counts one neuron over a few images. Half of a layer's activations may be the same zero,
so adding each one to the table in memory would make all programs wait for one address. A program
therefore counts its activations on the chip, with `tl.histogram`, and adds each bin to the table
once. Neighbouring programs read neighbouring neurons at the same time, so that memory that holds
neurons side by side is read through the cache once.
"""

from __future__ import annotations

import triton
import triton.language as tl


# Only these differ between the batches of a layer: the kernel is not compiled for each of them.
@triton.jit(do_not_specialize=["images", "group_images"])
def count_activations(
    activations,
    least,
    most,
    centre,
    half,
    table,
    minimum,
    maximum,
    means,
    images,
    positions,
    group_images,
    image_stride,
    position_stride,
    neuron_stride,
    group_stride,
    means_stride,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Counts one neuron's activations in a group of images.

    The grid is (neurons, groups of images, windows of the table's columns).

    A mean is the sum of `BLOCK` lanes over the number of positions. Lane i adds positions i,
    i + BLOCK, i + 2 BLOCK, ... in that order; then neighbouring lanes are added in pairs, until one
    is left. All of it is float64.

    Args:
        activations: (images, positions, neurons), of any floating type that float32 holds exactly.
        least: Lowest value in range, float64 (neurons,), as `histogram.scale_of` makes it.
        most: Highest value in range, float64 (neurons,).
        centre: Centre of the range, float64 (neurons,).
        half: Half of its width, float64 (neurons,).
        table: int64 (groups or 1, neurons, BINS + 3), added to.
        minimum: float32 (neurons,), lowered to the least finite activation.
        maximum: float32 (neurons,), raised to the greatest finite activation.
        means: float64 (images, neurons), written.
        images: How many images there are.
        positions: How many positions an image has.
        group_images: Images in a group. Times `positions`, they must be below 2^31.
        image_stride: Distance of two images in `activations`, in elements.
        position_stride: Distance of two positions.
        neuron_stride: Distance of two neurons.
        group_stride: Distance of the tables of two groups; 0 if all share one.
        means_stride: Distance of two images in `means`.
        BINS: Bins of a range.
        BLOCK: Positions that are read at a time, a power of two.
        WINDOW: Columns of the table that a program counts, a power of two.
    """
    neuron = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1).to(tl.int64)
    window = tl.program_id(2) * WINDOW
    lowest = tl.load(least + neuron)
    highest = tl.load(most + neuron)
    middle = tl.load(centre + neuron)
    width = tl.load(half + neuron)
    lane = tl.arange(0, BLOCK)
    counts = tl.zeros((WINDOW,), tl.int32)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    first = group * group_images
    for image in range(first, tl.minimum(first + group_images, images)):
        total = tl.zeros((BLOCK,), tl.float64)
        row = activations + image * image_stride + neuron * neuron_stride
        for start in range(0, positions, BLOCK):
            at = (start + lane).to(tl.int64)
            there = at < positions
            x = tl.load(row + at * position_stride, mask=there, other=0.0).to(tl.float32)
            wide = x.to(tl.float64)
            total += wide
            finite = (x - x) == 0.0
            low = tl.where(there & finite & (x < low), x, low)
            high = tl.where(there & finite & (x > high), x, high)
            v = (wide - middle) / width
            # NaN fails every comparison, and so becomes -1: never an undefined cast.
            v = tl.where(v > -1.0, v, -1.0)
            v = tl.where(v < 1.0, v, 1.0)
            column = tl.minimum(((v + 1.0) * BINS * 0.5).to(tl.int32), BINS - 1)
            column = tl.where(wide < lowest, BINS, column)
            column = tl.where(wide > highest, BINS + 1, column)
            column = tl.where(finite, column, BINS + 2) - window
            here = there & (column >= 0) & (column < WINDOW)
            counts += tl.histogram(column, WINDOW, mask=here)
        for _ in tl.static_range(31):
            if total.shape[0] > 1:  # the sum of two is rounded once, whatever their order
                total = tl.sum(tl.reshape(total, (total.shape[0] // 2, 2)), axis=1)
        if window == 0:
            tl.store(means + image * means_stride + neuron + tl.arange(0, 1), total / positions)
    columns = window + tl.arange(0, WINDOW)
    tl.atomic_add(
        table + group * group_stride + neuron * (BINS + 3) + columns,
        counts.to(tl.int64),
        mask=(columns < BINS + 3) & (counts > 0),
        sem="relaxed",
    )
    if window == 0:
        tl.atomic_min(minimum + neuron, tl.min(low, axis=0), sem="relaxed")
        tl.atomic_max(maximum + neuron, tl.max(high, axis=0), sem="relaxed")
