"""Reads images again and makes small squares of them for pages."""

from __future__ import annotations

import base64
import io
from contextlib import closing
from dataclasses import replace
from threading import Lock
from time import monotonic

import numpy as np
from PIL import Image

from pipeline import images, storage
from pipeline.catalogue import Catalogue, Version
from pipeline.errors import BadImage, TransientError, VdnaError
from pipeline.sources import Entry, Members
from pipeline.spec import Preprocess

SIDE = 96

THUMBNAIL = Preprocess(
    SIDE, SIDE, (0.0,) * 3, (1.0,) * 3, crop="center", max_bytes=32 * 2**20, max_pixels=50_000_000
)
"""How an image becomes a thumbnail: by the same rules and decoders as all other images."""

DECODE_SECONDS = 10.0

_ONE_DECODER = Lock()
"""Held while an image is decoded. A second decoding process would start longer than it works."""

SAMPLING_SECONDS = 120.0
"""The time limit for all images of a page, in case a store does not answer."""

NEAR = 64 * 2**20
"""The most bytes of a compressed tar that are unpacked for a sample."""


def decoder_of(catalogue: Catalogue, version: Version) -> str | None:
    """Returns the user's own decoder that a version's images need, or None."""
    try:
        return catalogue.spec(version.spec).preprocess.decoder
    except VdnaError:  # a page can do without its images
        return None


def is_far(entry: Entry) -> bool:
    """Tells whether an image lies deep in a compressed tar, which must be read from its start."""
    return entry.access.startswith("tar ") and entry.position > NEAR


def short_name(uri: str, member: str) -> str:
    """Returns the last part of an image's name."""
    return (member or storage.readable(uri)).rpartition("/")[2]


def small_image(entry: Entry, decoder: str | None = None) -> str:
    """Reads a candidate and returns its `thumbnail`.

    Args:
        entry: The candidate.
        decoder: The user's own decoder, as the spec states it, or None.

    Returns:
        The `data:` URI of the small image.

    Raises:
        BadImage: It is too large, or cannot be decoded.
    """
    with closing(Members([entry], THUMBNAIL.max_bytes, 1)) as members:
        return thumbnail(members.fetch(entry), decoder)


class SmallImages:
    """Reads images again, from several threads, until a store does not answer or it takes too long.

    Args:
        deadline: When to stop, by the monotonic clock.
        decoder: The user's own decoder, as the spec states it, or None.
    """

    def __init__(self, deadline: float, decoder: str | None = None) -> None:
        self._deadline = deadline
        self._decoder = decoder
        self._away = ""

    def read(self, entry: Entry) -> tuple[str, str]:
        """Returns the image's `data:` URI and an empty text, or an empty text and the reason."""
        if self._away:
            return "", self._away
        if monotonic() > self._deadline:
            return "", "not read: reading took too long"
        if is_far(entry):
            return "", "not read: it lies deep in a compressed archive"
        try:
            return small_image(entry, self._decoder), ""
        except BadImage as bad:
            return "", f"cannot be shown: {bad}"
        except (VdnaError, OSError, MemoryError) as error:
            why = f"cannot be read again: {str(error) or type(error).__name__}"
            if isinstance(error, TransientError):
                self._away = f"its store was asked before: {why}"
            return "", why


def thumbnail(data: bytes, decoder: str | None = None) -> str:
    """Makes a small square of an image.

    The image is decoded in a process of its own, within limits of bytes, pixels and seconds.

    Args:
        data: The bytes of the image's file.
        decoder: The user's own decoder, as the spec states it, or None.

    Returns:
        The `data:` URI of the square.

    Raises:
        BadImage: The image cannot be decoded.
    """
    rule = replace(THUMBNAIL, decoder=decoder)
    with _ONE_DECODER:
        pixels = images.load_isolated(data, rule, DECODE_SECONDS, attempts=1)
    out = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(out, "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
