"""reporting.html.thumbnails: TODO-DOC"""

from __future__ import annotations

import base64
import io
from contextlib import closing
from threading import Lock
from time import monotonic

import numpy as np
from PIL import Image

from pipeline import images, storage
from pipeline.errors import BadImage, TransientError, VdnaError
from pipeline.sources import Entry, Members
from pipeline.spec import Preprocess

SIDE = 96

THUMBNAIL = Preprocess(
    SIDE, SIDE, (0.0,) * 3, (1.0,) * 3, crop="center", max_bytes=32 * 2**20, max_pixels=50_000_000
)
"""From an image to its small square, by the rules and the decoder of every other image."""

DECODE_SECONDS = 10.0

_ONE_DECODER = Lock()
"""Each more would be a process that takes a second to start, for images of milliseconds."""

SAMPLING_SECONDS = 120.0
"""For all samples together; a store that does not answer must not hold up the page."""

NEAR = 64 * 2**20
"""Bytes of a compressed tar that are unpacked for a sample, at most."""


def is_far(entry: Entry) -> bool:
    """In a compressed tar, which is read from its start up to the member."""
    return entry.access.startswith("tar ") and entry.position > NEAR


def short_name(uri: str, member: str) -> str:
    return (member or storage.readable(uri)).rpartition("/")[2]


def small_image(entry: Entry) -> str:
    """A candidate's `thumbnail`. Raises `BadImage`, and as reading its store does."""
    if entry.size > THUMBNAIL.max_bytes:
        raise BadImage("too_many_bytes", f"{entry.size} bytes")
    with closing(Members([entry], THUMBNAIL.max_bytes, 1)) as members:
        return thumbnail(members.fetch(entry))


class SmallImages:
    """Reads images once more, from several threads, until a store does not answer or it takes too
    long (`deadline`, of the monotonic clock).
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._away = ""

    def read(self, entry: Entry) -> tuple[str, str]:
        """Its `data:` URI; or none, and why."""
        if self._away:
            return "", self._away
        if monotonic() > self._deadline:
            return "", "not read: reading took too long"
        if is_far(entry):
            return "", "not read: it lies deep in a compressed archive"
        try:
            return small_image(entry), ""
        except BadImage as bad:
            return "", f"cannot be shown: {bad}"
        except (VdnaError, OSError, MemoryError) as error:
            why = f"cannot be read again: {str(error) or type(error).__name__}"
            if isinstance(error, TransientError):
                self._away = f"its store was asked before: {why}"
            return "", why


def thumbnail(data: bytes) -> str:
    """The `data:` URI of an image as a small square. Raises `BadImage`.

    Decoded in a process of its own, within limits of bytes, pixels and seconds.
    """
    with _ONE_DECODER:
        pixels = images.load_isolated(data, THUMBNAIL, DECODE_SECONDS, attempts=1)
    out = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(out, "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
