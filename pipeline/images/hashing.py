"""Hashes an image by its content and by what it looks like, so that repeated ones are found.

>>> content, look, flags = hash_image(data, pixels, single_colour=False)     # doctest: +SKIP
>>> f"{content:016x}" == hashlib.sha256(data).hexdigest()[:16]               # doctest: +SKIP
True
"""

from __future__ import annotations

from hashlib import sha256 as new_sha256

import numpy as np

from pipeline.dna import BLACK, READ, SINGLE_COLOUR
from pipeline.images.decoders import Pixels
from pipeline.images.photographs import fingerprint

SAMPLED_SIDE = 128
"""About how many rows and columns of pixels are looked at. A side of a larger image has this many
to twice as many, at equal steps, so that the hash of a large photograph costs no more."""

BLACK_LEVEL = 8
"""An image is black if no channel of any pixel is above this, of 255."""

HashedImage = tuple[int, int, int]
"""The values of a row of hashes: content, look and flags."""


def hash_image(data: bytes, pixels: Pixels, *, single_colour: bool) -> HashedImage:
    """Hashes an image.

    Args:
        data: The bytes of its file.
        pixels: Its pixels, uint8 (height, width, 3), before they are resized.
        single_colour: Whether all pixels are equal.

    Returns:
        The first 64 bits of the sha256 of the file; the `fingerprint` of the pixels; and the flags.
    """
    content = int.from_bytes(new_sha256(data).digest()[:8], "big")
    down, across = (max(1, side // SAMPLED_SIDE) for side in pixels.shape[:2])
    small = np.ascontiguousarray(pixels[down // 2 :: down, across // 2 :: across])
    black = small.max() <= BLACK_LEVEL and pixels.max() <= BLACK_LEVEL
    flags = READ | (SINGLE_COLOUR if single_colour else 0) | (BLACK if black else 0)
    return content, fingerprint(small), flags
