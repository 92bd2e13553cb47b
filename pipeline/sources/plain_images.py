"""Finds the objects of a listing that are single images by their names alone.

>>> images, others = part_plain_images(objects)                  # doctest: +SKIP
"""

from __future__ import annotations

import re
from posixpath import splitext

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.text_columns import text_bytes

_SUFFIXES = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jp2", "ppm", "ico"]

IMAGE_SUFFIX = rf"\.(?i:{'|'.join(_SUFFIXES)})$"
"""What the name of a file ends with that is an image, if its content does not say otherwise."""

PLAIN_IMAGE = rf"/[^/.][^/]*{IMAGE_SUFFIX}"
"""What the uri of a file ends with that is a candidate and no archive."""

_HIDDEN = re.compile(rb"/\.")
"""What the uri of a hidden file has, or that of a file in a hidden folder."""


def part_plain_images(objects: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Parts objects into those whose uris `PLAIN_IMAGE` matches, and the others.

    Args:
        objects: A table with a column `uri`.

    Returns:
        The rows of the images, and the other rows, in their order.
    """
    uris = objects["uri"]
    if _are_alike(uris):
        return objects, objects.slice(0, 0)
    plain = pc.match_substring_regex(uris, PLAIN_IMAGE)
    return objects.filter(plain), objects.filter(pc.invert(plain))


def _are_alike(uris: pa.ChunkedArray) -> bool:
    """Tells whether all are images with the suffix of the first one, which takes little time."""
    suffix = splitext(uris[0].as_py())[1] if len(uris) else ""
    if suffix[1:].lower() not in _SUFFIXES:
        return False
    data, bounds = text_bytes(uris)
    if _HIDDEN.search(data[bounds[0] : bounds[-1]].data):
        return False
    return bool(pc.all(pc.ends_with(uris, suffix)).as_py())
