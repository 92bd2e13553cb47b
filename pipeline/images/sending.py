"""Says what of an image travels to a GPU, and so what is left to do there."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pipeline.images.decoders import Pixels
from pipeline.images.resize import clean_levels, cropped, fast_levels, is_extreme
from pipeline.spec import Preprocess

DEVICE_RULE = "device-1"
"""Version of the rule of `sent` and of what the GPU does then. It is part of the numerics, so any
change of a bit needs a new one."""

DEVICE_PIXELS = 1 << 20
"""The most pixels of an image that a GPU resizes. The larger an image, the smaller is the share of
its decoder's time that a CPU takes to resize it, and a micro-batch would take more than 192 MiB."""

UNPACKED = 40
"""How many bytes of pixels a byte of a file rarely exceeds. JPEGs and WebPs of photographs have 8
to 30."""


def sent(pixels: Pixels, rule: Preprocess) -> NDArray[Any]:
    """Crops an image, and resizes it unless the GPU does.

    A GPU resizes by `clean` only, and no image of more than `DEVICE_PIXELS` or of extreme size.
    What is chosen depends on the image and the rule alone, so that a rerun gives the same bits.

    Args:
        pixels: RGB, uint8 (H, W, 3).
        rule: The size, the crop and the resize.

    Returns:
        Grey levels from 0 to 255. If they are not of the rule's size, the GPU resizes them, and
        they are uint8. If they are, they are uint8 or float32.

    Raises:
        UsageError: If the pixels have another type or shape.
    """
    pixels = cropped(pixels, rule)
    height, width, _ = pixels.shape
    if rule.resize == "fast":
        return fast_levels(pixels, rule)
    if height * width > DEVICE_PIXELS or is_extreme(height, width, rule):
        return clean_levels(pixels, rule)
    return pixels


def most_bytes(rule: Preprocess, on_device: bool) -> int:
    """Returns how many bytes `Loaded.values` may take."""
    resized = 4 * 3 * rule.height * rule.width
    return max(resized, 3 * DEVICE_PIXELS) if on_device and rule.resize == "clean" else resized


def likely_bytes(size: int, rule: Preprocess, on_device: bool) -> int:
    """Returns how many bytes `Loaded.values` takes for nearly every file of a size.

    Args:
        size: The bytes of the file, or 0 if they are not known.
        rule: The size and the resize.
        on_device: Whether a GPU makes the network's input.
    """
    most = most_bytes(rule, on_device)
    if not on_device or rule.resize != "clean" or not size:
        return most
    return min(most, UNPACKED * size)
