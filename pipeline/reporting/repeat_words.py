"""Says which images a dataset has more than once, and which are of one colour: as lines.

>>> for line in repeat_lines(find_repeats(catalogue, "photos")):     # doctest: +SKIP
...     print(line)
copies     31 of 480 images are in 12 groups of equal files: 19 are spare
  5 x photos/a.jpg, photos/b.jpg, photos/c.jpg and 2 more
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.catalogue import Version
from pipeline.explaining import ImageGroup, ImageGroups, NamedImage, Repeats
from pipeline.spec import IMAGE_HASHES
from pipeline.wording import count_of, in_units, option

NAMED_IN_A_LINE = 3

UNASKED_IMAGES = 20_000_000
"""A version of more images is not looked through for repeated ones unless somebody asks."""

BYTES_EACH = 200
"""How much memory it takes for each image, at most."""

_ASKED = "`vdna show --repeats 5`"


@dataclass(frozen=True)
class RepeatGroup:
    """What is said of images that repeat each other, of those of one colour, or of an outlier.

    Attributes:
        text: How many there are, and the names of the first of them.
        shown: Those that a page shows: the ones that are named, but only one of equal files.
    """

    text: str
    shown: tuple[NamedImage, ...]


@dataclass(frozen=True)
class RepeatKind:
    """What is said of one kind of images, such as copies.

    Attributes:
        word: The kind.
        text: How many there are.
        groups: The groups that are listed.
        more: How many groups are not listed or what their order is, or an empty text.
    """

    word: str
    text: str
    groups: tuple[RepeatGroup, ...] = ()
    more: str = ""


def repeat_lines(found: Repeats) -> list[str]:
    """Says what was found, and lists the largest groups.

    Args:
        found: What a dataset has more than once, and its images of one colour.

    Returns:
        A line for each kind of image, each followed by a line for each group that is listed.
    """
    return [line for kind in repeat_kinds(found) for line in kind_lines(kind)]


def kind_lines(kind: RepeatKind) -> list[str]:
    """Returns what is said of one kind of images, with a line for each group that is listed."""
    lines = [f"{kind.word:10} {kind.text}", *(f"  {group.text}" for group in kind.groups)]
    return [*lines, f"  {kind.more}"] if kind.more else lines


def repeat_kinds(found: Repeats) -> Sequence[RepeatKind]:
    """Says what was found, kind by kind, as `repeat_lines` and the page of a dataset do.

    Args:
        found: What a dataset has more than once, and its images of one colour.

    Returns:
        What is said of each kind of image.
    """
    return [*_kinds(found)]


def _kinds(found: Repeats) -> Iterator[RepeatKind]:
    images = count_of(found.images, "image")
    if not found.copies.groups:
        yield RepeatKind("copies", f"none of {images}: no two files are equal")
    else:
        groups = count_of(found.copies.groups, "group")
        spare = f"{found.copies.spare:,} {_are(found.copies.spare)} spare"
        among = f"{found.copies.images:,} of {images} are in {groups} of equal files"
        yield _grouped("copies", f"{among}: {spare}", found.copies, shown=1)
    if found.alike is None:
        text = f"not looked for: that takes long here; {_ASKED} does it"
        yield RepeatKind("look-alike", text)
    elif not found.alike.groups:
        yield RepeatKind("look-alike", f"none of {images}, beside copies")
    else:
        groups = count_of(found.alike.groups, "group")
        among = f"{found.alike.images:,} of {images} are in {groups} that look the same"
        yield _grouped("look-alike", among, found.alike)
    if found.plain:
        are = _are(found.plain)
        text = f"{found.plain:,} of {images} {are} too plain to say what looks alike"
        yield RepeatKind("plain", text)
    for what, group in (("one colour", found.single_colour), ("black", found.black)):
        if group.size:
            named = (_named(group),) if group.images else ()
            yield RepeatKind(what, f"{group.size:,} of {images}", named)


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


def _grouped(word: str, text: str, found: ImageGroups, shown: int = NAMED_IN_A_LINE) -> RepeatKind:
    groups = tuple(_named(group, f"{group.size:,} x ", shown) for group in found.listed)
    left = found.groups - len(groups)
    return RepeatKind(word, text, groups, f"… and {count_of(left, 'more group')}" if left else "")


def _named(group: ImageGroup, first: str = "", shown: int = NAMED_IN_A_LINE) -> RepeatGroup:
    images = group.images[:NAMED_IN_A_LINE]
    text, left = first + ", ".join(map(str, images)), group.size - len(images)
    return RepeatGroup(f"{text} and {left:,} more" if left else text, images[:shown])


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
