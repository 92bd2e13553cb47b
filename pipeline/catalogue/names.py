"""catalogue.names: TODO-DOC"""

from __future__ import annotations

import re

from pipeline.errors import UsageError

LONGEST = 200
"""Characters between slashes of a part's name: a file's may have 255."""

_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


def part_name(dataset: str, value: str) -> str:
    """The name of a part: what no name may hold is a dash in it.

    Raises `UsageError` where nothing of the value is left, or more than a file may be named.
    """
    segments = [re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") for text in value.split("/")]
    longest = max(map(len, segments))
    if longest > LONGEST:
        raise UsageError(
            f"the value {value[:40]!r}… makes a name of {longest} characters; a part's has "
            f"{LONGEST} at most, so give the images another label"
        )
    try:
        return check_name("/".join([dataset, *segments]))
    except UsageError as error:
        raise UsageError(
            f"the value {value!r} makes no name of a part of {dataset}; give the images another "
            "label"
        ) from error


def check_name(name: str, of: str = "dataset") -> str:
    """A dataset's, or a lens's, name: letters, digits, `.`, `_`, `-`, and `/` for grouping.

    Raises `UsageError` otherwise, with the name.
    """
    segments = name.split("/")
    if all(_SEGMENT.fullmatch(s) and s.strip(".") for s in segments):
        return name
    raise UsageError(
        f"{of} name {name!r}: use letters, digits, '.', '_', '-', and '/' between groups; no "
        "part may be empty or made of dots"
    )
