"""Resizes and normalises pixels to the input of a network."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.errors import UsageError
from pipeline.images.decoders import Pixels
from pipeline.images.decoding import Floats32
from pipeline.spec import Preprocess


def prepare(pixels: Pixels, rule: Preprocess) -> Floats32:
    """Crops, resizes and normalises pixels to the network's input.

    `clean` is the resize of clean-fid, which the reference uses: PIL's antialiased bicubic on float
    channels to the target size, whatever the proportions, clipped to [0, 255]. It is equal to PIL's
    to within 1e-4 grey levels. `fast` is torch's on uint8, which rounds in between. An image longer
    than `MAX_FAST`, for which torch takes memory without bound, gets `clean`, rounded.

    Args:
        pixels: RGB, uint8 (H, W, 3).
        rule: The size, the crop, the resize, mean and standard deviation. The crop "center" takes
            the largest square in the middle first, as the reference's `crop_to_square_pre_resize`.

    Returns:
        float32 (rule.height, rule.width, 3), normalised.

    Raises:
        UsageError: If the pixels have another type or shape.
    """
    pixels = cropped(pixels, rule)
    scale, shift = normalisation(rule)
    if rule.resize == "fast":
        levels = fast_levels(pixels, rule).astype(np.float32, order="C")
        return _normalised(levels, scale, shift)
    return _clean(pixels, rule, scale, shift)


def normalisation(rule: Preprocess) -> tuple[Floats32, Floats32]:
    """Returns what grey levels are multiplied by and what is then added, float32 (3,) each."""
    mean, std = np.array(rule.mean), np.array(rule.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def cropped(pixels: Pixels, rule: Preprocess) -> Pixels:
    """Checks pixels, and crops them as the rule says.

    Args:
        pixels: RGB, uint8 (H, W, 3).
        rule: The crop.

    Returns:
        The pixels that are resized, rows side by side in memory.

    Raises:
        UsageError: If the pixels have another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(
            f"pixels are {pixels.dtype} of shape {pixels.shape}; expected uint8 (H, W, 3)"
        )
    return np.ascontiguousarray(_square(pixels) if rule.crop == "center" else pixels)


def clean_levels(pixels: Pixels, rule: Preprocess) -> Floats32:
    """Resizes cropped pixels by `clean`, to grey levels: float32 (rule.height, rule.width, 3)."""
    return _clean(pixels, rule, np.ones(3, np.float32), np.zeros(3, np.float32))


def fast_levels(pixels: Pixels, rule: Preprocess) -> Pixels:
    """Resizes cropped pixels by `fast`, to grey levels: uint8 (rule.height, rule.width, 3)."""
    if max(pixels.shape) > MAX_FAST:
        return np.rint(_resize_extreme(pixels, rule.height, rule.width)).astype(np.uint8)
    return _resize_fast(pixels, rule.height, rule.width)


def is_extreme(height: int, width: int, rule: Preprocess) -> bool:
    """Whether an image of this size is resized by float64 sums."""
    return width > MAX_WIDTH or height > MAX_SHRINK * rule.height or width > MAX_SHRINK * rule.width


def resize_matrix(n_in: int, n_out: int) -> Floats32:
    """Returns the matrix (n_out, n_in) that resizes one axis by `clean`."""
    weights, first, count = _weights(n_in, n_out)
    matrix = np.zeros((n_out, n_in), np.float32)
    for row, own, start, many in zip(matrix, weights, first, count, strict=True):
        row[start : start + many] = own[:many]
    return matrix


def _clean(pixels: Pixels, rule: Preprocess, scale: Floats32, shift: Floats32) -> Floats32:
    height, width, _ = pixels.shape
    if is_extreme(height, width, rule):
        return _normalised(_resize_extreme(pixels, rule.height, rule.width), scale, shift)
    out = np.empty((rule.height, rule.width, 3), np.float32)
    flat = pixels.reshape(height, width * 3)
    flat.flags.writeable = False  # one compiled kernel for writable and read-only pixels
    _resize_clean(
        flat, *_weights(height, rule.height), *_weights(width, rule.width), out, scale, shift
    )
    return out


def _square(pixels: Pixels) -> Pixels:
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


# Resizing


MAX_SHRINK = 32
"""If a side shrinks by more than this factor, sums are in float64: float32 sums of so many weights
would not be exact enough."""

MAX_WIDTH = 1 << 15
"""Widest input of the fast kernel; rows of wider ones do not fit the cache."""

MAX_FAST = 1 << 17
"""Longest side of an input that torch resizes."""

OUTPUT_ROWS = 8
"""Output rows computed at a time: the lanes of a vector register."""

PIXEL = 3 * OUTPUT_ROWS
"""Numbers of a pixel in these rows, one colour after the other: they lie side by side."""


@lru_cache(maxsize=256)
def _weights(n_in: int, n_out: int) -> tuple[Floats32, NDArray[np.int32], NDArray[np.int32]]:
    """Computes the weights of PIL's antialiased bicubic (Resample.c, a = -0.5) along one axis.

    Returns:
        The weights (n_out, k), and for each output its first input and its number of inputs.
        Read-only, as they are shared.
    """
    # The algorithm is that of Pillow's Resample.c (MIT-CMU licence), written anew.
    step = n_in / n_out
    stretch = max(step, 1.0)
    centre = (np.arange(n_out) + 0.5) * step
    first = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), n_in) - first
    k = np.arange(count.max())
    x = np.abs((k + first[:, None] - centre[:, None] + 0.5) / stretch)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[k >= count[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    made = weights.astype(np.float32), first.astype(np.int32), count.astype(np.int32)
    for array in made:
        array.flags.writeable = False
    return made


# No reassociation: four products are added up before they meet the sum, which rounds less.
@compiled(fastmath={"contract", "nnan", "nsz"})
def _resize_clean(
    flat: Pixels,
    down: Floats32,
    down_first: NDArray[np.int32],
    down_count: NDArray[np.int32],
    across: Floats32,
    across_first: NDArray[np.int32],
    across_count: NDArray[np.int32],
    out: Floats32,
    scale: Floats32,
    shift: Floats32,
) -> None:
    """Writes clip(resized, 0, 255) * scale + shift of flat (H, W*3) into out (h, w, 3)."""
    height, width, _ = out.shape
    length = flat.shape[1]
    rows = np.empty((OUTPUT_ROWS, length), np.float32)
    columns = np.empty(length * OUTPUT_ROWS, np.float32)
    sums = np.empty(PIXEL, np.float32)
    # Sums about mid-grey stay small, and float32 rounds small ones more finely.
    grey = np.float32(128)
    black, white = np.float32(0) - grey, np.float32(255) - grey
    for top in range(0, height, OUTPUT_ROWS):
        lanes = min(OUTPUT_ROWS, height - top)
        for r in range(OUTPUT_ROWS):
            i = min(top + r, height - 1)  # spare lanes repeat the last row
            row, first, count = rows[r], down_first[i], down_count[i]
            w0, in0 = down[i, 0], flat[first]
            for x in range(length):
                row[x] = w0 * (np.float32(in0[x]) - grey)
            t = 1
            while t + 3 < count:  # four rows a pass: fewer trips over `row`
                w0, w1, w2, w3 = down[i, t], down[i, t + 1], down[i, t + 2], down[i, t + 3]
                in0, in1 = flat[first + t], flat[first + t + 1]
                in2, in3 = flat[first + t + 2], flat[first + t + 3]
                for x in range(length):
                    row[x] += (
                        w0 * (np.float32(in0[x]) - grey)
                        + w1 * (np.float32(in1[x]) - grey)
                        + w2 * (np.float32(in2[x]) - grey)
                        + w3 * (np.float32(in3[x]) - grey)
                    )
                t += 4
            while t + 1 < count:
                w0, w1 = down[i, t], down[i, t + 1]
                in0, in1 = flat[first + t], flat[first + t + 1]
                for x in range(length):
                    value = row[x] + w0 * (np.float32(in0[x]) - grey)
                    row[x] = value + w1 * (np.float32(in1[x]) - grey)
                t += 2
            if t < count:
                w0, in0 = down[i, t], flat[first + t]
                for x in range(length):
                    row[x] += w0 * (np.float32(in0[x]) - grey)
        for x in range(length):
            for r in range(OUTPUT_ROWS):
                columns[x * OUTPUT_ROWS + r] = rows[r, x]
        for j in range(width):
            sums[:] = 0
            x = across_first[j] * PIXEL
            count = across_count[j]
            t = 0
            while t + 3 < count:
                w0, w1, w2, w3 = across[j, t], across[j, t + 1], across[j, t + 2], across[j, t + 3]
                part = columns[x : x + 4 * PIXEL]
                for k in range(PIXEL):
                    sums[k] += (
                        w0 * part[k]
                        + w1 * part[k + PIXEL]
                        + w2 * part[k + 2 * PIXEL]
                        + w3 * part[k + 3 * PIXEL]
                    )
                x += 4 * PIXEL
                t += 4
            while t + 1 < count:
                w0, w1 = across[j, t], across[j, t + 1]
                part = columns[x : x + 2 * PIXEL]
                for k in range(PIXEL):
                    value = sums[k] + w0 * part[k]
                    sums[k] = value + w1 * part[k + PIXEL]
                x += 2 * PIXEL
                t += 2
            if t < count:
                w0, part = across[j, t], columns[x : x + PIXEL]
                for k in range(PIXEL):
                    sums[k] += w0 * part[k]
            for k in range(PIXEL):
                sums[k] = min(max(sums[k], black), white) + grey
            for r in range(lanes):
                for c in range(3):
                    out[top + r, j, c] = sums[c * OUTPUT_ROWS + r] * scale[c] + shift[c]


def _resize_extreme(pixels: Pixels, height: int, width: int) -> Floats32:
    """Returns an image of extreme size resized as `clean` is defined: as PIL computes it."""
    # PIL itself would take 32 bytes for each pixel of a side, and fail beyond 2 GB.
    rows, columns, _ = pixels.shape
    if columns * height < rows * width:  # whatever leaves less for the second pass
        resized = _resized_rows(_resized_rows(pixels, height, 0), width, 1)
    else:
        resized = _resized_rows(_resized_rows(pixels, width, 1), height, 0)
    return resized.clip(0, 255)


def _resized_rows(image: NDArray[Any], length: int, axis: int) -> Floats32:
    """Returns (H, W, 3) with one axis resized; the sums are float64, as PIL's."""
    shape = list(image.shape)
    if shape[axis] == length:
        return image.astype(np.float32)
    shape[axis] = length
    out = np.empty(shape, np.float32)
    image = image.view()
    image.flags.writeable = False  # one compiled kernel for writable and read-only pixels
    if axis == 0:
        _resize_axis(image.reshape(1, len(image), -1), out.reshape(1, length, -1))
    else:
        _resize_axis(image, out)
    return out


@compiled
def _resize_axis(image: NDArray[Any], out: Floats32) -> None:
    """Resizes (outer, n, inner) to (outer, m, inner), by the weights of `_weights`."""
    outer, n_out, inner = out.shape
    n_in = image.shape[1]
    step = n_in / n_out
    stretch = max(step, 1.0)
    weights = np.empty(min(n_in, int(4 * stretch) + 3))
    sums = np.empty(inner)
    for i in range(n_out):
        centre = (i + 0.5) * step
        first = max(int(centre - 2 * stretch + 0.5), 0)
        count = min(int(centre + 2 * stretch + 0.5), n_in) - first
        total = 0.0
        for t in range(count):
            x = abs((t + first - centre + 0.5) * (1.0 / stretch))
            weights[t] = 0.0
            if x < 1:
                weights[t] = (1.5 * x - 2.5) * x * x + 1
            elif x < 2:
                weights[t] = (((x - 5) * x + 8) * x - 4) * -0.5
            total += weights[t]
        for t in range(count):
            weights[t] /= total
        for o in range(outer):
            sums[:] = 0
            for t in range(count):
                w = weights[t]
                for k in range(inner):
                    sums[k] += image[o, first + t, k] * w
            for k in range(inner):
                out[o, i, k] = sums[k]


def _normalised(pixels: Floats32, scale: Floats32, shift: Floats32) -> Floats32:
    normalised: Floats32 = pixels * scale + shift
    return normalised


def _resize_fast(pixels: Pixels, height: int, width: int) -> Pixels:
    import torch
    from torch.nn.functional import interpolate

    planes = torch.tensor(pixels).permute(2, 0, 1)[None]
    resized = interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return cast(Pixels, resized[0].permute(1, 2, 0).numpy())
