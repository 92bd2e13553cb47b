"""Gathers the images that a dataset has more than once, and its odd ones, with small pictures.

    >>> shown = gather_repeats(catalogue, "sunny", version, 20, deadline)    # doctest: +SKIP
    >>> shown.kinds[0].text                                                  # doctest: +SKIP
    '31 of 480 images are in 12 groups of equal files: 19 are spare'

What cannot be read becomes a note; the words stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from threading import Lock
from time import monotonic

from pipeline.catalogue import Catalogue, Version
from pipeline.errors import VdnaError
from pipeline.explaining import QUICK_SEARCH, find_repeats
from pipeline.reporting.html.page_data import Sample
from pipeline.reporting.html.thumbnails import (
    Key,
    SmallImages,
    entries_named,
    rule_of,
    short_name,
)
from pipeline.reporting.repeat_words import RepeatKind, repeat_kinds, unknown_repeats
from pipeline.wording import count_of

MOST_SEARCHED = 2_000_000
"""The most images of a dataset among which a page looks for repeated ones, which takes seconds."""

PAGE_SEARCH = QUICK_SEARCH // 10
"""How many looks are sorted and compared for a page, which takes seconds."""

_ONE_SEARCH = Lock()
"""Held while repeated images are looked for, so that pages made at once take the memory of one."""


@dataclass(frozen=True)
class ShownRepeats:
    """What a page says of repeated images, and shows of them.

    Attributes:
        kinds: What is said of each kind of image; nothing if they were not looked for.
        pictures: The small images, by uri and member.
        notes: What is missing, and why.
    """

    kinds: Sequence[RepeatKind] = ()
    pictures: Mapping[Key, Sample] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def gather_repeats(
    catalogue: Catalogue, name: str, version: Version, most: int, deadline: float
) -> ShownRepeats | None:
    """Gathers the repeated images of a dataset, and those of one colour.

    Args:
        catalogue: The catalogue of the dataset.
        name: The dataset.
        version: Its version.
        most: The most images to read.
        deadline: When to stop reading images, by the monotonic clock.

    Returns:
        What the page shows; None if the version keeps no hashes.
    """
    if unknown_repeats(version):
        return None
    if version.images > MOST_SEARCHED:
        return _not_searched(name, f"a page does so among {MOST_SEARCHED:,} images at most")
    try:
        with _ONE_SEARCH:
            if monotonic() > deadline:
                return _not_searched(name, "reading took too long")
            kinds = repeat_kinds(find_repeats(catalogue, name, version, limit=PAGE_SEARCH))
    except (VdnaError, OSError, MemoryError) as error:
        why = str(error) or type(error).__name__
        return ShownRepeats(notes=(f"Repeated images cannot be found: {why}",))
    pictures, notes = _read(catalogue, name, version, _in_turns(kinds)[:most], deadline)
    return ShownRepeats(kinds, pictures, notes)


def _not_searched(name: str, why: str) -> ShownRepeats:
    told = f"Repeated images were not looked for: {why}. `vdna show {name} --repeats 5` lists them."
    return ShownRepeats(notes=(told,))


def _in_turns(kinds: Sequence[RepeatKind]) -> list[Key]:
    """Lists each image to show once: the first of each group, then the second of each, …."""
    groups = (group.shown for kind in kinds for group in kind.groups)
    turns = (of for turn in zip_longest(*groups) for of in turn if of is not None)
    return list(dict.fromkeys((of.uri, of.member) for of in turns))


def _read(
    catalogue: Catalogue, name: str, version: Version, chosen: Sequence[Key], deadline: float
) -> tuple[dict[Key, Sample], tuple[str, ...]]:
    if not chosen:
        return {}, ()
    entries, lost = entries_named(catalogue, name, version, set(chosen), deadline)
    reader = SmallImages(deadline, rule_of(catalogue, version))
    pictures: dict[Key, Sample] = {}
    for key in chosen:
        image, why = reader.read(entries[key]) if key in entries else ("", lost[key])
        if image:
            pictures[key] = Sample(short_name(*key), image)
        else:
            lost[key] = why
    if not lost:
        return pictures, ()
    first = next(key for key in chosen if key in lost)
    are, such = ("is", "") if len(lost) == 1 else ("are", "such as ")
    missing = f"{count_of(len(lost), 'picture')} {are} missing, {such}{short_name(*first)}"
    return pictures, (f"{missing}: {lost[first]}",)
