"""Tells whether two images are one photograph, resized or recoded.

>>> is_one_photograph(fingerprint(pixels), fingerprint(smaller))     # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.images.decoders import Pixels

ALIKE_BITS = 6
"""Images are taken for one photograph if at most so many bits of their `fingerprint` differ."""


def fingerprint(pixels: Pixels) -> int:
    """Returns 64 bits that change little if an image is resized or recoded (a difference hash).

    Each bit tells whether the image becomes brighter from one place to the next on its right.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8)), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def is_one_photograph(one: int, other: int) -> bool:
    """Tells whether two fingerprints are most likely of one photograph."""
    return (one ^ other).bit_count() <= ALIKE_BITS
