"""Decodes most JPEGs by libjpeg-turbo itself: to the pixels that PIL makes, in less time.

PIL decodes by another build of the same library, but copies the pixels twice: into four bytes each,
and out of them. PIL still decodes what is not a plain JPEG, and what libjpeg-turbo refuses or warns
of. So a file has the pixels, or the reason, that it has by PIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.images.file_damage import jpeg_segments

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile

YCBCR = (1, 2, 3)
"""The component ids of a YCbCr JPEG; other ids may mean another colour space."""

HUFFMAN = (0xC0, 0xC1, 0xC2)
"""The markers of baseline, extended and progressive frames with Huffman codes. PIL cannot read
arithmetic codes that come in more than one of its pieces of 64 KiB; libjpeg-turbo could."""

MOST_SCANS = 64
"""How many scans a progressive JPEG may have here. Usual ones have ten."""

MOST_PIXELS_A_BYTE = 256
"""How many pixels a byte may stand for here; in a picture of one colour it stands for some 60. This
and `MOST_SCANS` leave to PIL what takes much time for few bytes, and is often decoded twice: once
here, with a warning, and once by PIL."""


def is_plain(image: JpegImageFile) -> bool:
    """Whether a JPEG is grey or of YCbCr, by its component ids and by what Adobe's marker says."""
    if image.mode == "L":
        return True
    names = tuple(component[0] for component in image.layer)
    return image.mode == "RGB" and names == YCBCR and image.info.get("adobe_transform") != 0


def suits(image: JpegImageFile, data: bytes) -> bool:
    """Tells of a plain JPEG whether it may be decoded here.

    Args:
        image: What PIL has read of its header.
        data: The bytes of the file.

    Returns:
        Whether it has Huffman codes, and takes no more time than its bytes are worth.
    """
    if image.width * image.height > MOST_PIXELS_A_BYTE * len(data):
        return False
    frames = [marker for marker, _ in jpeg_segments(data) if marker in HUFFMAN]
    return len(frames) == 1 and data.count(b"\xff\xda") <= MOST_SCANS


def pixels_by_turbo(data: bytes) -> NDArray[np.uint8] | None:
    """Decodes a JPEG as it is stored, whatever its EXIF says of its orientation.

    Args:
        data: The bytes of the file.

    Returns:
        RGB pixels, uint8 (height, width, 3), or None if libjpeg-turbo refuses the file or warns of
            it.

    Raises:
        MemoryError: If memory runs out. PIL would say that the image is damaged.
    """
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except (ValueError, RuntimeError) as error:
        if "memory" in str(error):
            raise MemoryError(str(error)) from error
        return None
    return pixels
