"""Finds which names a dataset had before it was renamed.

>>> former_names(renames(catalogue.log()), "city/photos")                # doctest: +SKIP
[Rename(old='photos', new='city/photos', commit=15)]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from pipeline.catalogue.commit import Commit


@dataclass(frozen=True)
class Rename:
    """A dataset's change of name, or its first one.

    Attributes:
        old: The name that it had; empty if it was new.
        new: The name that it got.
        commit: Number of the commit that gave it.
    """

    old: str
    new: str
    commit: int


def renames(commits: Iterable[Commit]) -> Iterator[Rename]:
    """Finds all renames in a log, and where names were new. Parts follow their datasets.

    Args:
        commits: The commits, the newest first.

    Yields:
        The renames, and the first names of new datasets, the newest first. Parts are new.
    """
    for after, before in pairwise(commits):
        came = after.datasets.keys() - before.datasets.keys()
        for old, new in renamed_between(before, after):
            came.discard(new)
            yield Rename(old, new, after.number)
        for new in sorted(came):
            yield Rename("", new, after.number)


def renamed_between(before: Commit, after: Commit) -> Iterator[tuple[str, str]]:
    """Finds the datasets that a commit renamed.

    A rename alone takes one name away and gives another one the same version.

    Args:
        before: The commit before it.
        after: The commit.

    Yields:
        Each old name with the new one.
    """
    came = after.datasets.keys() - before.datasets.keys()
    new_names = {
        (v.spec, v.dna, v.by): name
        for name in came
        for v in after.datasets[name].values()
        if not v.part_of  # an only part has the DNA of its dataset
    }
    for name in before.datasets.keys() - after.datasets.keys():
        for v in before.datasets[name].values():
            if not v.part_of and (v.spec, v.dna, v.by) in new_names:
                yield name, new_names[v.spec, v.dna, v.by]


def former_names(found: Iterable[Rename], dataset: str) -> list[Rename]:
    """Follows a dataset through its renames.

    Args:
        found: The renames of a log, the newest first.
        dataset: The name that the dataset has now.

    Returns:
        The renames that it went through, the newest first. Another dataset that once had its name,
        and was removed, is not it.
    """
    name, passed = dataset, dict[int, Rename]()
    for each in found:
        if each.new == name and each.commit not in passed:
            if not each.old:
                break
            passed[each.commit] = each
            name = each.old
    return [*passed.values()]
