"""Makes the commit of an erasure: which versions stand in the place of which, and the receipt.

>>> state_without(catalogue, head, plan, outcome, "asked for", "ada", [])       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pipeline import storage
from pipeline.building.erasure_plan import AffectedVersion, ErasurePlan
from pipeline.catalogue import (
    Catalogue,
    Commit,
    Receipt,
    Version,
    every_version,
    with_replaced,
    with_used_default,
)
from pipeline.errors import CorruptFile


@dataclass
class NewVersions:
    """What is to stand in the place of each version.

    Attributes:
        new: The versions by dataset and key; None for one that is dropped.
        dropped: Why versions are dropped, by dataset.
    """

    new: dict[str, dict[str, Version | None]] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def put(self, each: AffectedVersion, version: Version) -> None:
        """Puts a version in the place of another."""
        self.new.setdefault(each.kept.name, {})[each.kept.version.key] = version

    def drop(self, each: AffectedVersion, why: str) -> None:
        """Puts nothing in the place of a version, and says why."""
        name = each.kept.name
        self.new.setdefault(name, {})[each.kept.version.key] = None
        self.dropped.setdefault(name, []).append(f"{each.kept.numbered_name}: {why}")


def state_without(
    catalogue: Catalogue,
    head: Commit,
    plan: ErasurePlan,
    outcome: NewVersions,
    reason: str,
    by: str,
    lost_tags: list[str],
) -> Commit:
    """Makes the state in which the new versions stand in the place of the old ones.

    Args:
        catalogue: The catalogue, whose earlier commits are read for tags.
        head: The newest commit.
        plan: What is erased.
        outcome: The new versions.
        reason: Why.
        by: Who erases.
        lost_tags: Gets the tags whose versions are dropped.

    Returns:
        The state, with the receipt.
    """
    new = outcome.new
    changed = with_used_default(with_replaced(head, new))
    tags, lost = tags_without(catalogue, head, new)
    lost_tags += lost
    receipt = _receipt(plan, new, reason, by)
    return replace(changed, tags=tags, receipt=receipt)


def tags_without(
    catalogue: Catalogue, head: Commit, new: Mapping[str, Mapping[str, Version | None]]
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Parts the tags into those that stay and those of which no version is left.

    Args:
        catalogue: The catalogue, whose earlier commits are read.
        head: The newest commit.
        new: What stands in the place of versions, as `NewVersions.new` has it.

    Returns:
        The tags that stay, as a commit has them; and the others, as `photos@release`.
    """
    tags: dict[str, dict[str, int]] = {}
    lost = []
    for name, of in head.tags.items():
        gone = any(version is None for version in new.get(name, {}).values())
        for tag, number in of.items():
            if not gone or _has_kept(catalogue.commit(number), name, new[name]):
                tags.setdefault(name, {})[tag] = number
            else:
                lost.append(f"{name}@{tag}")
    return tags, lost


def commit_remains(catalogue: Catalogue, reason: str, by: str) -> Commit:
    """Commits the receipt of an erasure that finds no list with an image, and removes remains.

    Args:
        catalogue: The catalogue.
        reason: Why.
        by: Who erases.

    Returns:
        The commit.
    """
    receipt = Receipt(0, reason, by)
    return catalogue.append(
        "erase what was left of images", lambda head: replace(head, receipt=receipt)
    )


def _has_kept(commit: Commit, name: str, new: Mapping[str, Version | None]) -> bool:
    versions = commit.datasets.get(name, {}).values()
    return any(new.get(version.key, version) is not None for version in versions)


def _receipt(
    plan: ErasurePlan, new: Mapping[str, Mapping[str, Version | None]], reason: str, by: str
) -> Receipt:
    recounted: dict[str, dict[str, str]] = {}
    restated: dict[str, list[str]] = {}
    dropped: dict[str, list[str]] = {}
    for name, of in sorted(new.items()):
        for key, version in of.items():
            dna = key.split(" ")[1]
            if version is None:
                dropped.setdefault(name, []).append(dna)
            elif version.dna == dna:
                restated.setdefault(name, []).append(dna)
            else:
                recounted.setdefault(name, {})[dna] = version.dna
    return Receipt(len(plan.images), reason, by, recounted, restated, dropped)


def note_plans(catalogue: Catalogue, affected: Sequence[AffectedVersion], commit: Commit) -> None:
    """Notes the plans of current versions anew, as change lists go by them.

    Args:
        catalogue: The catalogue.
        affected: The versions that were replaced.
        commit: The commit that has replaced them.
    """
    stated = {
        (kept.name, kept.version.spec, kept.version.digest_in("manifests"))
        for kept in every_version(catalogue, commit)
        if "manifests" in kept.version.sha256
    }
    for each in affected:
        name, old = each.kept.name, each.kept.version
        current = commit.datasets.get(name, {}).get(old.spec)
        if current is None or old.part_of:
            continue
        with suppress(CorruptFile):
            manifest = catalogue.manifest(name, current)
            noted = catalogue.noted_plan(name, old.spec)
            if manifest.digest != each.after.digest or noted != (old.manifest, old.products):
                continue
            selection, _ = catalogue.planned_selection(name, old.spec) or ({}, "")
            # An older version may have the same images: its file stays as its commit states it.
            if (name, old.spec, manifest.digest) not in stated:
                uri = catalogue.uri("manifests", old.spec, name, manifest.digest)
                storage.replace(uri, manifest.data)
            backend = catalogue.planned_backend(name, old.spec) or "torch"
            catalogue.note_plan(
                name, old.spec, manifest.digest, old.products, backend, selection, current.manifest
            )
