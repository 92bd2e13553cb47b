"""Says which images a dataset has more than once, and which are of one colour: as lines.

>>> for line in repeat_lines(find_repeats(catalogue, "photos")):     # doctest: +SKIP
...     print(line)
copies     31 of 480 images are in 12 groups of equal files: 19 are spare
  5 x photos/a.jpg, photos/b.jpg, photos/c.jpg and 2 more
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.catalogue import Version
from pipeline.explaining import ImageGroup, ImageGroups, Repeats
from pipeline.spec import IMAGE_HASHES
from pipeline.wording import count_of, in_units, option

NAMED_IN_A_LINE = 3

UNASKED_IMAGES = 20_000_000
"""A version of more images is not looked through for repeated ones unless somebody asks."""

BYTES_EACH = 200
"""How much memory it takes for each image, at most."""

_ASKED = "`vdna show --repeats 5`"


def repeat_lines(found: Repeats) -> list[str]:
    """Says what was found, and lists the largest groups.

    Args:
        found: What a dataset has more than once, and its images of one colour.

    Returns:
        A line for each kind of image, each followed by a line for each group that is listed.
    """
    return [*_lines(found)]


def _lines(found: Repeats) -> Iterator[str]:
    images = count_of(found.images, "image")
    if not found.copies.groups:
        yield f"copies     none of {images}: no two files are equal"
    else:
        groups = count_of(found.copies.groups, "group")
        spare = f"{found.copies.spare:,} {_are(found.copies.spare)} spare"
        among = f"{found.copies.images:,} of {images} are in {groups} of equal files"
        yield f"copies     {among}: {spare}"
        yield from _groups_of(found.copies)
    if found.alike is None:
        yield f"look-alike not looked for: that takes long here; {_ASKED} does it"
    elif not found.alike.groups:
        yield f"look-alike none of {images}, beside copies"
    else:
        groups = count_of(found.alike.groups, "group")
        yield f"look-alike {found.alike.images:,} of {images} are in {groups} that look the same"
        yield from _groups_of(found.alike)
    if found.plain:
        are = _are(found.plain)
        yield f"plain      {found.plain:,} of {images} {are} too plain to say what looks alike"
    for what, group in (("one colour", found.single_colour), ("black", found.black)):
        if group.size:
            yield f"{what:10} {group.size:,} of {images}"
            if group.images:
                yield f"  {_named(group)}"


def unknown_repeats(version: Version, *, asked: bool = True) -> str:
    """Says why it is not known which images a version has more than once; empty if it is known.

    Args:
        version: The version.
        asked: Whether somebody has asked for it, so that it may take much memory.

    Returns:
        A clause.
    """
    if version.imported:
        return "it is not known which images it has more than once: it was imported"
    if IMAGE_HASHES in version.sha256:
        if asked or version.images <= UNASKED_IMAGES:
            return ""
        return (
            "it was not looked for images that it has more than once: that takes about "
            f"{in_units(version.images * BYTES_EACH)} of memory. {_ASKED} does it"
        )
    return (
        "it is not known which images it has more than once: its build has kept no hashes of them. "
        f"Build it with {option(IMAGE_HASHES, True)}, which counts its images again"
    )


def _groups_of(found: ImageGroups) -> Iterator[str]:
    for group in found.listed:
        yield f"  {group.size:,} x {_named(group)}"
    if left := found.groups - len(found.listed):
        yield f"  … and {count_of(left, 'more group')}"


def _named(group: ImageGroup) -> str:
    shown = ", ".join(map(str, group.images[:NAMED_IN_A_LINE]))
    left = group.size - min(NAMED_IN_A_LINE, len(group.images))
    return f"{shown} and {left:,} more" if left else shown


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
