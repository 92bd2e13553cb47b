"""Reads `.raw16`, a format of a laboratory camera: 12 bytes of header, then 16-bit grey values.

The header is `RAW1`, the width and the height; all numbers are little-endian.
"""

import struct

import numpy as np

from pipeline import register_decoder

WHITE = 4095  # the camera has 12 bits


def decode(data: bytes) -> np.ndarray:
    """Returns RGB pixels, uint8 (height, width, 3); what it raises makes the file a failure."""
    magic, width, height = struct.unpack_from("<4sII", data)
    if magic != b"RAW1":
        raise ValueError(f"a .raw16 file begins with RAW1, this one with {magic!r}")
    grey = np.frombuffer(data, "<u2", width * height, offset=12).reshape(height, width)
    scaled = np.minimum(grey.astype(np.uint32) * 255 // WHITE, 255).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def register() -> None:
    """Makes it known; a new version is due whenever `decode` returns other pixels."""
    register_decoder("raw16", decode, version="1")
