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

_FIELDS: dict[str, Callable[[str], Any]] = {
    "Key": str,
    "Size": int,
    "ETag": str,
    "LastModified": datetime.fromisoformat,
    "StorageClass": str,
}
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
        readers = {f"{space}{name}": (name, read) for name, read in _FIELDS.items()}
        mine = f"{space}Contents"
        objects = [
            {
                of[0]: of[1](field.text or "")
                for field in child
                if (of := readers.get(field.tag)) is not None
            }
            for child in root
            if child.tag == mine
        ]
    except (ElementTree.ParseError, ValueError):
        return
    if objects:
        root[:] = [child for child in root if child.tag != mine]
        response_dict["body"] = ElementTree.tostring(root)
        customized_response_dict["Contents"] = objects
