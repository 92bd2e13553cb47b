"""Tells which versions go with the garbage, and why.

>>> [str(leaving) for leaving in leaving_versions(catalogue, [items], rules)[0]]  # doctest: +SKIP
["photos@3: 1,204 images, replaced on 2026-10-04; it is not among the newest 10"]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.kept_versions import VersionKeeper
from pipeline.catalogue.version_options import RetentionOptions
from pipeline.storage import Stored
from pipeline.wording import count_of


@dataclass(frozen=True)
class LeavingVersion:
    """A version that no rule keeps.

    Attributes:
        name: The dataset.
        commit: Number of the commit that made the version.
        images: Number of its images.
        until: When another version took its place, or the dataset was taken out, as an ISO time.
        why: Why no rule keeps it.
    """

    name: str
    commit: int
    images: int
    until: str
    why: str

    def __str__(self) -> str:
        images, day = count_of(self.images, "image"), self.until[:10]
        return f"{self.name}@{self.commit}: {images}, current until {day}; {self.why}"


def leaving_versions(
    catalogue: Catalogue,
    lists: Sequence[Iterable[Stored]],
    rules: RetentionOptions,
    now: datetime | None = None,
) -> list[list[LeavingVersion]]:
    """Finds the versions whose DNA is garbage by these rules. Their parts go with them.

    The log is read once for all lists, and not held in memory.

    Args:
        catalogue: The catalogue.
        lists: Lists of garbage, as `garbage` finds it by the same rules.
        rules: The rules.
        now: The time that days are counted back from; None for the present.

    Returns:
        The versions of each list, the newest first.
    """
    uris = [{item.uri for item in items} for items in lists]
    found: list[list[LeavingVersion]] = [[] for _ in uris]
    if not any(uris):
        return found
    by_rules = VersionKeeper(rules.keep, rules.since(now or datetime.now(UTC)))
    all_of_them, times = VersionKeeper(), dict[int, str]()
    there: set[tuple[str, str]] = set()
    for commit in catalogue.log():
        if not times:
            there = {(name, spec) for name, specs in commit.datasets.items() for spec in specs}
        times[commit.number] = commit.time
        by_rules.add(commit)
        all_of_them.add(commit)
    kept = {each.identity for each in by_rules.kept()}
    for each in all_of_them.kept():
        version = each.version
        if each.identity in kept or version.part_of:
            continue
        uri = catalogue.uri("dna", version.spec, each.name, version.dna)
        holding = [of_list for of_list, its in zip(found, uris, strict=True) if uri in its]
        if not holding:
            continue
        if (each.name, version.spec) in there:
            why = [f"it is not among the newest {rules.keep}"] if rules.keep else []
        else:
            why = [f"{each.name} is not in the catalogue any more"]
        why += [f"that is more than {rules.days:g} days ago"] if rules.days is not None else []
        until = times[each.commit + 1]  # the newest commit's versions are kept
        told = LeavingVersion(each.name, each.made, version.images, until, ", and ".join(why))
        for of_list in holding:
            of_list.append(told)
    return found
