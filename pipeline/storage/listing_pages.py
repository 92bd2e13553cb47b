"""Reads the objects in a page of an S3 listing, which botocore takes many times as long for.

    >>> client.meta.events.register(BEFORE_PARSE, take_objects)      # doctest: +SKIP

A driver lists every image of a dataset, so what a key costs there decides how long it takes until
the first image is read. botocore walks through its model of the answer for each key. Here the
objects are taken out of the page first, and botocore parses the rest: errors, tokens and prefixes.

A page that looks as those of S3 do is cut at its objects by a regular expression, which is several
times as fast as an XML parser. It matches only what every parser reads alike: printable ASCII
without entities, in elements that are known, below the root. botocore asks for
`encoding-type=url`, so S3 writes other characters of a key as `%C3`. Any other page is left to an
XML parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

BEFORE_PARSE = "before-parse.*.ListObjectsV2"
"""The event of botocore that comes with the bytes of a page. The name has a star, so that botocore
calls us before it parses the whole page to see whether it is an error."""

_ROOT = "ListBucketResult"

_FIELDS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("Key", str),
    ("Size", int),
    ("ETag", str),
    ("LastModified", datetime.fromisoformat),
)
"""What is taken of an object, and how its text is read, as botocore does."""

_TEXT = "[ -%'-;=?-~]*+"
"""Printable ASCII but `&`, `<` and `>`."""

_OTHERS = "|".join(
    f"<{name}>{_TEXT}</{name}>"
    for name in ("StorageClass", "ChecksumAlgorithm", "ChecksumType", "Type")
)
_OWNER = f"<Owner>(?:<ID>{_TEXT}</ID>|<DisplayName>{_TEXT}</DisplayName>)*+</Owner>"
_SKIPPED = f"(?:{_OTHERS}|{_OWNER})*+"
_QUOTE = "(?:&quot;|&#34;)"

_OBJECT = re.compile(
    f"<Contents>{_SKIPPED}<Key>({_TEXT})</Key>"
    rf"{_SKIPPED}<LastModified>([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}"
    rf"(?:\.[0-9]{{1,6}})?Z)</LastModified>{_SKIPPED}<ETag>{_QUOTE}({_TEXT}){_QUOTE}</ETag>"
    f"{_SKIPPED}<Size>([0-9]{{1,18}})</Size>{_SKIPPED}</Contents>"
)
"""An object as S3 and servers like it write it: its key, time, ETag without quotes, and size."""

_PLAIN = r"<(\w+)>[^<]*</\1>|<\w+/>"
_DECLARED = r"""<\?xml version=["']1\.0["'](?: encoding=["'](?:UTF|utf)-8["'])?\?>\s*"""
_BEFORE = re.compile(
    rf"""(?:{_DECLARED})?<{_ROOT}(?: xmlns=(?:"[^"<&]*"|'[^'<&]*'))?>(?:{_PLAIN})*+"""
)
_BEHIND = re.compile(
    rf"(?:{_PLAIN}|<CommonPrefixes><Prefix>[^<]*</Prefix></CommonPrefixes>)*+</{_ROOT}>\s*"
)
"""What a page has before its objects, and behind them: elements without others in them."""


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
    body = response_dict["body"]
    try:
        objects, rest = _cut_out(body) or _parsed(body)
    except (ElementTree.ParseError, ValueError):
        return
    if objects:
        response_dict["body"] = rest
        customized_response_dict["Contents"] = objects


def _cut_out(body: bytes) -> tuple[list[dict[str, Any]], bytes] | None:
    """Cuts the objects out of a page that looks as those of S3 do.

    Returns:
        The objects, and the rest of the page; None if the page looks otherwise.

    Raises:
        ValueError: A time does not exist.
    """
    if not body.isascii():
        return None
    pieces = _OBJECT.split(body.decode("ascii"))
    before, behind = pieces[0], pieces[-1]
    if (
        len(pieces) == 1
        or any(pieces[5:-1:5])  # something is between two objects
        or "<Contents" in before
        or "<Contents" in behind
        or not _BEFORE.fullmatch(before)
        or not _BEHIND.fullmatch(behind)
    ):
        return None
    keys, times, etags, sizes = (pieces[at::5] for at in range(1, 5))
    read = {text: datetime.fromisoformat(text) for text in set(times)}
    objects = [
        {"Key": key, "Size": int(size), "ETag": f'"{etag}"', "LastModified": read[text]}
        for key, text, etag, size in zip(keys, times, etags, sizes, strict=True)
    ]
    return objects, (before + behind).encode()


def _parsed(body: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Takes the objects out of a page with an XML parser.

    Returns:
        The objects, and the rest of the page. No objects if it is no page, or has none.

    Raises:
        ParseError: It is no XML.
        ValueError: An object cannot be read.
    """
    root = ElementTree.fromstring(body)
    space = root.tag.removesuffix(_ROOT)
    objects = [] if root.tag == space else root.findall(f"{space}Contents")
    if not objects:
        return [], body
    columns = [
        [read(_text(of_object, f"{space}{name}")) for of_object in objects]
        for name, read in _FIELDS
    ]
    root[:] = [child for child in root if child.tag != f"{space}Contents"]
    names = [name for name, _ in _FIELDS]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows, ElementTree.tostring(root)


def _text(of_object: ElementTree.Element, tag: str) -> str:
    """Returns the text of a field.

    Raises:
        ValueError: The object has no such field, or several.
    """
    found = of_object.findall(tag)
    if len(found) != 1:
        raise ValueError(f"an object with {len(found)} of {tag}")
    return found[0].text or ""
