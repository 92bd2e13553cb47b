"""Turns the bytes of a file into the network's input, or what a GPU makes it of, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pipeline.images.decoders import Pixels
from pipeline.images.decoding import Decoded, decode
from pipeline.images.hashing import HashedImage, hash_image
from pipeline.images.isolated import decode_isolated
from pipeline.images.resize import prepare
from pipeline.images.sending import sent
from pipeline.spec import Preprocess

PIXELS_AT_ONCE = 1 << 16
"""How many pixels are compared with the first one at a time."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image as the network takes it, and what is noted of it.

    Attributes:
        values: The network's input, float32 (rule.height, rule.width, 3), normalised. Or what
            travels to the GPU that makes it; see `sent`.
        transparent: Whether any pixel of its file is less than opaque.
        single_colour: Whether all its pixels are of one colour, before it is resized.
        hashes: Its hashes; None if they were not asked for.
        file_bytes: How many bytes its file has; 0 if it came without one.
    """

    values: NDArray[Any]
    transparent: bool
    single_colour: bool
    hashes: HashedImage | None = None
    file_bytes: int = 0


def load(data: bytes, rule: Preprocess, on_device: bool = False, hashed: bool = False) -> Loaded:
    """Decodes an image and prepares it for the network; see `decode` and `prepare`.

    Args:
        data: The bytes of the file.
        rule: How it becomes the network's input.
        on_device: Whether a GPU makes the network's input.
        hashed: Whether to hash the image, too.

    Returns:
        The network's input, or what it is made of, and what is noted of the image.

    Raises:
        BadImage: If the image cannot be decoded through its own fault.
    """
    return loaded(decode(data, rule), rule, on_device, data, hashed)


def load_isolated(
    data: bytes,
    rule: Preprocess,
    seconds: float,
    attempts: int = 3,
    on_device: bool = False,
    hashed: bool = False,
) -> Loaded:
    """Does what `load` does, bit for bit, with the decoder in another process.

    The resize stays in this process: only the decoder is foreign code that trusts the bytes.

    Args:
        data: The bytes of the file.
        rule: How it becomes the network's input.
        seconds: The time limit of one attempt, including the start of the process.
        attempts: How many processes may be tried.
        on_device: Whether a GPU makes the network's input.
        hashed: Whether to hash the image, too.

    Returns:
        The network's input, or what it is made of, and what is noted of the image.

    Raises:
        BadImage: As `decode_isolated` raises it.
        VdnaError: Likewise.
    """
    image = decode_isolated(data, rule, seconds, attempts)
    return loaded(image, rule, on_device, data, hashed)


def loaded(
    image: Decoded,
    rule: Preprocess,
    on_device: bool = False,
    data: bytes = b"",
    hashed: bool = False,
) -> Loaded:
    """Prepares a decoded image for the network, and notes whether it is of one colour.

    Args:
        image: The decoded image.
        rule: How it becomes the network's input.
        on_device: Whether a GPU makes the network's input.
        data: The bytes of its file; empty if it came without one.
        hashed: Whether to hash the image, too.

    Returns:
        The network's input, or what it is made of, and what is noted of the image.
    """
    values = sent(image.pixels, rule) if on_device else prepare(image.pixels, rule)
    plain = _is_of_one_colour(image.pixels)
    hashes = hash_image(data, image.pixels, single_colour=plain) if hashed else None
    return Loaded(values, image.transparent, plain, hashes, len(data))


def _is_of_one_colour(pixels: Pixels) -> bool:
    """Compares all pixels with the first. Most images end this in their first row."""
    first, rows = pixels[0, 0], max(1, PIXELS_AT_ONCE // pixels.shape[1])
    return bool((pixels[0] == first).all()) and all(
        (pixels[top : top + rows] == first).all() for top in range(0, len(pixels), rows)
    )
