"""The names that datasets, their parts and lenses may have.

>>> part_name("photos", "heavy rain")
'photos/heavy-rain'
"""

from __future__ import annotations

import re

from pipeline.errors import UsageError

LONGEST_SEGMENT = 200
"""The most characters between two slashes of a part's name; a file's name may have 255."""

VERSION_MARK = "@"
"""What stands between a dataset's name and the version that is meant."""

_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


def part_name(dataset: str, value: str) -> str:
    """Makes the name of a part of a dataset. A dash stands for what no name may hold.

    Args:
        dataset: The dataset.
        value: The value of the label that the part's images share.

    Returns:
        The name: the dataset's, a slash, and the value.

    Raises:
        UsageError: If nothing is left of the value, or if the name is too long for a file.
    """
    segments = [re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") for text in value.split("/")]
    longest = max(map(len, segments))
    if longest > LONGEST_SEGMENT:
        raise UsageError(
            f"the value {value[:40]!r}… makes a name of {longest} characters; a part's name has "
            f"{LONGEST_SEGMENT} at most, so give the images a shorter label"
        )
    try:
        return check_name("/".join([dataset, *segments]))
    except UsageError as error:
        raise UsageError(
            f"the value {value!r} cannot be made into the name of a part of {dataset}; give the "
            "images another label"
        ) from error


def check_name(name: str, of: str = "dataset") -> str:
    """Checks a name: letters, digits, `.`, `_`, `-`, and `/` between groups.

    Args:
        name: The name.
        of: What it is the name of, for the error.

    Returns:
        The name.

    Raises:
        UsageError: If it has another character, or a group that is empty or made of dots, or if it
            begins with `_`.
    """
    segments = name.split("/")
    if all(_SEGMENT.fullmatch(s) and s.strip(".") for s in segments):
        if name.startswith("_"):
            raise UsageError(
                f"{of} name {name!r} begins with _, as the catalogue's own folders do; choose "
                "another"
            )
        return name
    hint = "; name the dataset, and no version of it" if VERSION_MARK in name else ""
    raise UsageError(
        f"{of} name {name!r}: use letters, digits, '.', '_', '-', and '/' between groups; no "
        f"group may be empty or made of dots{hint}"
    )
