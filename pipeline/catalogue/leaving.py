"""Tells which versions go with the garbage, and why.

>>> [str(leaving) for leaving in leaving_versions(catalogue, items, rules)]  # doctest: +SKIP
["photos@3: 1,204 images, replaced on 2026-10-04; it is not among the newest 10"]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.kept_versions import kept_versions
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
    items: Iterable[Stored],
    rules: RetentionOptions,
    now: datetime | None = None,
) -> list[LeavingVersion]:
    """Finds the versions whose DNA is garbage by these rules. Their parts go with them.

    Args:
        catalogue: The catalogue.
        items: The garbage, as `garbage` finds it by the same rules.
        rules: The rules.
        now: The time that days are counted back from; None for the present.

    Returns:
        The versions, the newest first.
    """
    commits = list(catalogue.log())
    since = rules.since(now or datetime.now(UTC))
    kept = {each.identity for each in kept_versions(commits, rules.keep, since)}
    uris, times = {item.uri for item in items}, {commit.number: commit.time for commit in commits}
    found = []
    for each in kept_versions(commits):
        version = each.version
        uri = catalogue.uri("dna", version.spec, each.name, version.dna)
        if each.identity not in kept and not version.part_of and uri in uris:
            there = version.spec in commits[0].datasets.get(each.name, {})
            why = [f"it is not among the newest {rules.keep}"] if there and rules.keep else []
            why += [] if there else [f"{each.name} is not in the catalogue any more"]
            why += [f"that is more than {rules.days:g} days ago"] if rules.days is not None else []
            until = times[each.commit + 1]  # the newest commit's versions are kept
            found.append(
                LeavingVersion(each.name, each.made, version.images, until, ", and ".join(why))
            )
    return found
