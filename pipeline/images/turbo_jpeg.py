"""Decodes most JPEGs by libjpeg-turbo itself: to the pixels that PIL makes, in less time.

PIL decodes by the same library, but copies the pixels twice: into four bytes each, and out of
them. PIL still decodes what is no plain JPEG, and what libjpeg-turbo refuses or warns of. So it is
PIL that says what is wrong with a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile

YCBCR = (1, 2, 3)
"""What the components of a JPEG are called that are not of another colour space."""


def is_plain(image: JpegImageFile) -> bool:
    """Whether a JPEG is grey or of YCbCr, so that all decoders compute its colours alike."""
    if image.mode == "L":
        return True
    names = tuple(component[0] for component in image.layer)
    return image.mode == "RGB" and names == YCBCR and image.info.get("adobe_transform") != 0


def pixels_by_turbo(data: bytes) -> NDArray[np.uint8] | None:
    """Decodes a JPEG as it is stored, whatever its EXIF says of its orientation.

    Args:
        data: The bytes of the file.

    Returns:
        RGB pixels, uint8 (height, width, 3), or None if anything about the file is odd.
    """
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    return pixels
