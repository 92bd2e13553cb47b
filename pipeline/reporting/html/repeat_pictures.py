"""Gathers the images that a dataset has more than once, odd ones and outliers, with small pictures.

    >>> shown = gather_repeats(catalogue, "sunny", version, commit, 20, until)   # doctest: +SKIP
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

from pipeline.catalogue import Catalogue, Commit, Version, find_outliers
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
from pipeline.reporting.outlier_words import OUTLIERS_LISTED, outlier_kind
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
    """What a page says of repeated images and outliers, and shows of them.

    Attributes:
        kinds: What is said of each kind of image that was looked for, and of outliers.
        pictures: The small images, by uri and member.
        notes: What is missing, and why.
    """

    kinds: Sequence[RepeatKind] = ()
    pictures: Mapping[Key, Sample] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def gather_repeats(
    catalogue: Catalogue,
    name: str,
    version: Version,
    commit: Commit,
    most: int,
    deadline: float,
    chosen: str = "",
) -> ShownRepeats | None:
    """Gathers the repeated images of a dataset, those of one colour, and its outliers.

    Args:
        catalogue: The catalogue of the dataset.
        name: The dataset.
        version: Its version.
        commit: The commit that is looked at.
        most: The most images to read.
        deadline: When to stop reading images, by the monotonic clock.
        chosen: Options that `vdna show` needs to find the same version, with a space before them.

    Returns:
        What the page shows; None if the version keeps no hashes, and nobody has looked for its
        outliers.
    """
    kinds, notes = _repeats(catalogue, name, version, deadline, f"{name}{chosen}")
    is_known = not unknown_repeats(version)
    try:
        outliers = find_outliers(catalogue, version)
        if outliers is not None or is_known:
            listed = None if outliers is None else outliers.first(OUTLIERS_LISTED)
            kinds = [*kinds, outlier_kind(listed, name, chosen, commit)]
    except (VdnaError, OSError) as error:
        notes = (*notes, f"Outliers cannot be shown: {error}")
    if not kinds and not notes:
        return None
    pictures, missing = _read(catalogue, name, version, _in_turns(kinds)[:most], deadline)
    return ShownRepeats(kinds, pictures, (*notes, *missing))


def _repeats(
    catalogue: Catalogue, name: str, version: Version, deadline: float, asked: str
) -> tuple[Sequence[RepeatKind], tuple[str, ...]]:
    """Returns what is said of repeated images, or why that is not known, and how to ask for it."""
    if unknown_repeats(version):
        return (), ()
    if version.images > MOST_SEARCHED:
        return _not_searched(asked, f"a page does so among {MOST_SEARCHED:,} images at most")
    try:
        with _ONE_SEARCH:
            if monotonic() > deadline:
                return _not_searched(asked, "reading took too long")
            return repeat_kinds(find_repeats(catalogue, name, version, limit=PAGE_SEARCH)), ()
    except (VdnaError, OSError, MemoryError) as error:
        why = str(error) or type(error).__name__
        return (), (f"Repeated images cannot be found: {why}",)


def _not_searched(asked: str, why: str) -> tuple[Sequence[RepeatKind], tuple[str, ...]]:
    told = (
        f"Repeated images were not looked for: {why}. `vdna show {asked} --repeats 5` lists them."
    )
    return (), (told,)


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
