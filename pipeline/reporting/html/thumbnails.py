"""Reads images again and makes small ones of them for pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Set
from contextlib import closing
from dataclasses import replace
from threading import Lock
from time import monotonic

import numpy as np
from PIL import Image

from pipeline import images, storage
from pipeline.catalogue import Catalogue, Version
from pipeline.errors import BadImage, TransientError, VdnaError
from pipeline.explaining import is_far
from pipeline.sources import Entry, Members
from pipeline.spec import Preprocess

SIDE = 96
"""The longer side of a small image, in pixels."""

MAX_SHOWN_BYTES, MAX_SHOWN_PIXELS = 32 * 2**20, 50_000_000
"""The limits of an image that a page shows. An image may count and yet be too large to show."""

THUMBNAIL = Preprocess(SIDE, SIDE, (0.0,) * 3, (1.0,) * 3)
"""How an image is read where no rule is given."""

DECODE_SECONDS = 10.0

_ONE_DECODER = Lock()
"""Held while an image is decoded. A second decoding process would start longer than it works."""

SAMPLING_SECONDS = 120.0
"""The time limit for all images of a page, in case a store does not answer."""


Key = tuple[str, str]
"""An image's uri and member."""


def rule_of(catalogue: Catalogue, version: Version) -> Preprocess:
    """Returns the rule by which a version's images are read: that of the network's input.

    No page needs a GPU.
    """
    return images.without_nvjpeg(catalogue.spec(version.spec).preprocess)


def short_name(uri: str, member: str) -> str:
    """Returns the last part of an image's name."""
    return (member or storage.readable(uri)).rpartition("/")[2]


def entries_named(
    catalogue: Catalogue, name: str, version: Version, wanted: Set[Key], deadline: float
) -> tuple[dict[Key, Entry], dict[Key, str]]:
    """Looks up the candidates of images that a page names, so that they can be read again.

    Args:
        catalogue: The catalogue of the dataset.
        name: The dataset.
        version: Its version.
        wanted: The images.
        deadline: When to stop looking, by the monotonic clock.

    Returns:
        The candidates that were found, and why each other image is missing.
    """
    try:
        manifest = catalogue.manifest(name, version)
        found = manifest.find(wanted, lambda: monotonic() < deadline)
        why = "reading took too long" if monotonic() > deadline else "its manifest lacks it"
    except (VdnaError, OSError) as error:
        found, why = {}, f"the manifest cannot be read: {error}"
    return found, dict.fromkeys(wanted - found.keys(), why)


def small_pixels(entry: Entry, rule: Preprocess = THUMBNAIL) -> images.Pixels:
    """Reads a candidate and returns its `shrunk` pixels.

    Args:
        entry: The candidate.
        rule: The rule by which it is read.

    Returns:
        RGB pixels, uint8 (height, width, 3).

    Raises:
        BadImage: It is too large, or cannot be decoded.
    """
    with closing(Members([entry], min(rule.max_bytes, MAX_SHOWN_BYTES), 1)) as members:
        return shrunk(members.fetch(entry), rule)


class SmallImages:
    """Reads images again, from several threads, until a store does not answer or it takes too long.

    Args:
        deadline: When to stop, by the monotonic clock.
        rule: The rule by which the images are read.
    """

    def __init__(self, deadline: float, rule: Preprocess = THUMBNAIL) -> None:
        self._deadline = deadline
        self._rule = rule
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
            return encoded(small_pixels(entry, self._rule)), ""
        except BadImage as bad:
            return "", f"cannot be shown: {bad}"
        except (VdnaError, OSError, MemoryError) as error:
            why = f"cannot be read again: {str(error) or type(error).__name__}"
            if isinstance(error, TransientError):
                self._away = f"its store was asked before: {why}"
            return "", why


def thumbnail(data: bytes, rule: Preprocess = THUMBNAIL) -> str:
    """Makes a small image of the bytes of an image's file.

    Args:
        data: The bytes of the file.
        rule: The rule by which it is read.

    Returns:
        The `data:` URI of the small image.
    """
    return encoded(shrunk(data, rule))


def shrunk(data: bytes, rule: Preprocess = THUMBNAIL) -> images.Pixels:
    """Decodes an image and makes it small: the whole image, in its own proportions.

    Colours, transparency and orientation are as the network sees them, by the same rule. The image
    is decoded in a process of its own, within limits of bytes, pixels and seconds.

    Args:
        data: The bytes of the image's file.
        rule: The rule by which it is read.

    Returns:
        RGB pixels, uint8 (height, width, 3), the longer side `SIDE` pixels long.

    Raises:
        BadImage: The image cannot be decoded.
    """
    shown = replace(
        rule,
        mean=THUMBNAIL.mean,
        std=THUMBNAIL.std,
        resize=THUMBNAIL.resize,
        crop=THUMBNAIL.crop,
        max_bytes=min(rule.max_bytes, MAX_SHOWN_BYTES),
        max_pixels=min(rule.max_pixels, MAX_SHOWN_PIXELS),
    )
    with _ONE_DECODER:
        pixels = images.decode_isolated(data, shown, DECODE_SECONDS, attempts=1).pixels
    tall, wide, _ = pixels.shape
    height, width = (max(1, round(SIDE * side / max(tall, wide))) for side in (tall, wide))
    small = images.prepare(pixels, replace(shown, height=height, width=width))
    return np.rint(small * 255).astype(np.uint8)


def encoded(pixels: images.Pixels) -> str:
    """Returns pixels as the `data:` URI of an image."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
