"""Reads the objects in a page of an S3 listing, which botocore takes ten times as long for.

    >>> client.meta.events.register(BEFORE_PARSE, take_objects)      # doctest: +SKIP

A driver lists every image of a dataset, so what a key costs there decides how long it takes until
the first image is read. botocore walks through its model of the answer for each key. Here the
objects are taken out of the page first, and botocore parses the rest: errors, tokens and prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

BEFORE_PARSE = "before-parse.s3.ListObjectsV2"
"""The event of botocore that comes with the bytes of a page."""

_ROOT = "ListBucketResult"

_FIELDS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("Key", str),
    ("Size", int),
    ("ETag", str),
    ("LastModified", datetime.fromisoformat),
)
"""What is taken of an object, and how its text is read, as botocore does."""


def take_objects(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """Takes the objects out of a page before botocore parses it.

    What is no page, or has an object that cannot be read, is left to botocore as it is.

    Args:
        response_dict: The answer: its `status_code`, and its `body`, which loses the objects.
        customized_response_dict: Gets `Contents`, as botocore's own answer has it.
    """
    if response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])
        space = root.tag.removesuffix(_ROOT)
        if root.tag == space:
            return
        objects = root.findall(f"{space}Contents")
        columns = [
            [read(_text(of_object, f"{space}{name}")) for of_object in objects]
            for name, read in _FIELDS
        ]
    except (ElementTree.ParseError, ValueError):
        return
    if objects:
        root[:] = [child for child in root if child.tag != f"{space}Contents"]
        response_dict["body"] = ElementTree.tostring(root)
        names = [name for name, _ in _FIELDS]
        rows = zip(*columns, strict=True)
        customized_response_dict["Contents"] = [dict(zip(names, row, strict=True)) for row in rows]


def _text(of_object: ElementTree.Element, tag: str) -> str:
    """Returns the text of a field.

    Raises:
        ValueError: The object has no such field.
    """
    text = of_object.findtext(tag)
    if text is None:
        raise ValueError(f"an object without {tag}")
    return text
