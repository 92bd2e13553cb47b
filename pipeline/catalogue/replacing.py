"""Puts other versions in the place of those that an erasure replaced, without any I/O.

>>> as_replaced(commit, newest).datasets["photos"]                             # doctest: +SKIP

The log is only ever added to, so earlier commits go on naming the versions that they had. The
newest commit states what stands in the place of each, and every commit is read by that. A version
that is built again after the erasure, from a source that still held the image, is not replaced.
Where nothing stands in the place of a dataset, its parts are gone, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Self

from pipeline.catalogue.commit import Commit, Version

Replacements = Mapping[str, Mapping[str, Version | None]]
"""For each dataset, its versions that are replaced, by their keys, and what stands in the place of
each, if anything does."""


@dataclass(frozen=True, order=True)
class ReplacedKey:
    """What a commit states a replaced version by.

    Attributes:
        before: Number of the commit that replaced it. In those before, the version is replaced.
        spec: The digest of its spec.
        dna: The digest of its DNA.
        by: By what its dataset is divided into parts.
    """

    before: int
    spec: str
    dna: str
    by: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what `str` writes."""
        before, spec, dna, by = text.split(" ", 3)
        return cls(int(before), spec, dna, by)

    def __str__(self) -> str:
        return f"{self.before} {self.spec} {self.dna} {self.by}"


def as_replaced(commit: Commit, newest: Commit) -> Commit:
    """Returns a commit with other versions in the place of those that were erased since.

    Args:
        commit: The commit, as its file has it.
        newest: The newest commit, which states what was replaced.
    """
    return Replacer(newest.replaced).apply(commit, commit.number)


class Replacer:
    """Puts other versions in the place of those that were replaced, in one commit after another.

    What is replaced is read and sorted once, however many commits there are.

    Args:
        replaced: What the newest commit states.
    """

    def __init__(self, replaced: Replacements) -> None:
        self._erased: dict[str, dict[str, list[tuple[int, Version | None]]]] = {}
        for name, of in replaced.items():
            its = self._erased.setdefault(name, {})
            for key, now in sorted(
                ((ReplacedKey.parse(text), now) for text, now in of.items()), key=itemgetter(0)
            ):
                version = f"{key.spec} {key.dna} {key.by}"
                its.setdefault(version, []).append((key.before, now))

    def apply(self, commit: Commit, number: int) -> Commit:
        """Returns a commit with what stands in the place of its versions.

        Args:
            commit: The commit.
            number: Its number. A commit that is being made takes that of the one before it.
        """
        if not self._erased.keys() & commit.datasets.keys():
            return commit
        now = {
            (name, spec): self._standing(name, version, number)
            for name, specs in commit.datasets.items()
            for spec, version in specs.items()
        }
        datasets: dict[str, dict[str, Version]] = {}
        for (name, spec), version in now.items():
            # A part goes with its whole. The same part of another version stays there.
            if version and now.get((version.part_of, spec), version):
                datasets.setdefault(name, {})[spec] = version
        return commit if datasets == commit.datasets else replace(commit, datasets=datasets)

    def _standing(self, name: str, version: Version, number: int) -> Version | None:
        """Returns what stands in the place of a version in a commit of that number."""
        for before, now in self._erased.get(name, {}).get(version.key, ()):
            if before > number:  # the first erasure after the commit counts
                return now
        return version


def with_replaced(head: Commit, new: Replacements) -> Commit:
    """Replaces versions of all commits up to the newest.

    Args:
        head: The newest commit.
        new: What is replaced by the commit after it.

    Returns:
        The changed state. What was put in the place of others before is replaced there, too.
    """
    number = head.number + 1
    replaced: dict[str, dict[str, Version | None]] = {}
    for name in sorted(head.replaced.keys() | new.keys()):
        now = new.get(name, {})
        replaced[name] = {
            key: version if version is None else now.get(version.key, version)
            for key, version in head.replaced.get(name, {}).items()
        }
        replaced[name] |= {f"{number} {key}": version for key, version in now.items()}
    return Replacer(replaced).apply(replace(head, replaced=replaced), head.number)
