"""Pixels of every mode become RGB: by which rule `pipeline.images.decoding` says.

>>> rgb_of(Image.open("cat.png")).shape                          # doctest: +SKIP
(300, 451, 3)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin

from pipeline.errors import BadImage
from pipeline.images.decoders import Pixels
from pipeline.spec import Alpha

MODES: tuple[str, ...] = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "LA",
    "PA",
    "RGBX",
    "CMYK",
    "YCbCr",
)
"""Modes of PIL with 8 bits or less a channel; PIL converts them."""

MODES_16: tuple[str, ...] = ("I;16", "I;16L", "I;16B", "I;16N")

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of TIFF."""

GROUNDS: Mapping[Alpha, tuple[int, int]] = {
    "white": (255, 255),
    "black": (0, 0),
    "checker": (204, 153),
}
"""The greys of the squares that a transparent image is laid upon, by the rule's `alpha`."""

KEY_SCALES: Mapping[str, int] = {"L;2": 85, "L;4": 17}
"""By what PIL multiplies grey values of 2 and 4 bits, by its name of their layout."""

SQUARE = 8
"""The side of a square, in pixels of the stored image."""

OPAQUE = 255


def check_mode(image: Image.Image) -> None:
    """Checks that something says which of an image's values is white.

    Raises:
        BadImage: If nothing does.
    """
    if _is_16_bit(image):
        _check_plain_16_bit(image)
    elif image.mode not in MODES:
        raise BadImage(
            "unsupported",
            f"{image.format} images of mode {image.mode} do not say which value is white",
        )


def _is_16_bit(image: Image.Image) -> bool:
    # PIL has scaled a PPM's values to 16 bits, whatever its maximum.
    return image.mode in MODES_16 or (image.mode == "I" and image.format == "PPM")


def rgb_of(image: Image.Image) -> Pixels:
    """Returns RGB of an image whose mode was checked; a strip no longer knows its format."""
    if image.mode in MODES_16 or image.mode == "I":
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def states_transparency(image: Image.Image) -> bool:
    """Tells whether an image states how opaque its pixels are. A palette may be missing."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return True
    palette = image.palette if image.mode == "P" else None
    return palette is not None and palette.mode.endswith("A")


def has_transparent_pixels(image: Image.Image) -> bool:
    """Tells whether a pixel of an image, which states transparency, is less than opaque."""
    if image.mode in ("LA", "PA", "RGBA"):
        return bool((np.asarray(image.getchannel("A")) < OPAQUE).any())
    key: Any = image.info.get("transparency")
    if image.mode == "P":
        return bool((_palette_alpha(image, key)[np.array(image.histogram()) > 0] < OPAQUE).any())
    pixels = np.asarray(image)
    if image.mode == "1":
        pixels = pixels * np.uint8(255)  # as PIL scales the key
    of_colour = pixels.ndim == 3
    if np.shape(key) != ((pixels.shape[2],) if of_colour else ()):
        return False
    found = pixels == np.array(key)
    return bool((found.all(axis=2) if of_colour else found).any())


def _palette_alpha(image: Image.Image, key: object) -> NDArray[np.uint8]:
    """Returns how opaque each of 256 colours is, by the palette and by the file's key."""
    alpha = np.full(256, OPAQUE, np.uint8)
    own = (image.getpalette("RGBA") or [])[3::4]
    alpha[: len(own)] = own
    if isinstance(key, bytes):
        stated = np.frombuffer(key[:256], np.uint8)  # a file may state more than there can be
        alpha[: len(stated)] = np.minimum(alpha[: len(stated)], stated)
    elif isinstance(key, int):
        alpha[key : key + 1] = 0
    return alpha


def scale_colour_key(image: Image.Image, alpha: Alpha) -> None:
    """Scales the transparent colour of a PNG as PIL scales its pixels, before they are loaded.

    Of 16-bit colour PIL keeps the high bytes, which do not tell a transparent pixel from one nearly
    of its colour. Where transparency is dropped anyway, both are taken for transparent.

    Raises:
        BadImage: If that decides what counts.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile) or not image.tile:
        return
    stored: Any = image.tile[0].args  # a name, or a tuple that begins with one
    layout = stored if isinstance(stored, str) else stored[0]
    if "transparency" not in image.info:
        return
    if layout == "RGB;16B":
        if alpha != "drop":
            raise BadImage(
                "unsupported",
                "a PNG of 16-bit colour with one transparent colour; its pixels keep 8 bits, which "
                "do not tell the colour from others",
            )
        image.info["transparency"] = tuple(part >> 8 for part in image.info["transparency"])
    elif layout in KEY_SCALES:
        image.info["transparency"] *= KEY_SCALES[layout]


def laid_upon(ground: tuple[int, int], image: Image.Image, top: int) -> Pixels:
    """Returns RGB of an image laid upon squares of two greys.

    `top` is the row at which a strip begins.
    """
    if image.mode in MODES_16 or image.mode == "I":
        colour = rgb_of(image).astype(np.uint16)
        key = np.asarray(image) == image.info["transparency"]
        opaque = np.where(key, np.uint16(0), np.uint16(255))[:, :, None]
    else:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        colour, opaque = rgba[:, :, :3], rgba[:, :, 3:]
    row, column = np.ogrid[top : top + image.height, : image.width]
    even, odd = ground
    under = np.where((row // SQUARE + column // SQUARE) % 2 == 0, np.uint16(even), np.uint16(odd))
    # Each sum is at most 255 x 255, and 16 bits hold 510 more.
    blended: NDArray[np.uint16] = colour * opaque + under[:, :, None] * (255 - opaque)
    return ((blended + 127) // 255).astype(np.uint8)


def _check_plain_16_bit(image: Image.Image) -> None:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    bits, photometric = image.tag_v2.get(BITS_PER_SAMPLE), image.tag_v2.get(PHOTOMETRIC)
    if bits != (16,) or photometric != 1:
        raise BadImage(
            "unsupported",
            f"a grey TIFF of {bits} bits, photometric {photometric}; "
            "only 16 bits with black at zero are scaled",
        )
