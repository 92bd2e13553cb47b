"""Finds the version that a bound means among those that a dataset had before it was renamed.

>>> former_version(catalogue, catalogue.head(), bound, spec, 1).name          # doctest: +SKIP
'photos@7'

Versions and tags stay under the old name when a dataset is renamed. A bound on a dataset's own past
looks under its present name only, so it says where the rest is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.catalogue import Catalogue, Commit, Rename, former_names, last_versions
from pipeline.errors import NotFound
from pipeline.refreshing.bound_kinds import MoveBound


@dataclass(frozen=True)
class FormerVersion:
    """A version that a dataset had under a former name.

    Attributes:
        name: The name that reads it, such as `photos@7`.
        rename: How the dataset lost that name.
        advice: How to write a bound by it.
    """

    name: str
    rename: Rename
    advice: str


def names_before(found: Sequence[Rename], dataset: str, head: Commit) -> list[tuple[str, Rename]]:
    """Lists the names that a dataset, or a part of one, had before.

    Args:
        found: The renames of the log, the newest first.
        dataset: The dataset, or the part.
        head: The newest commit.

    Returns:
        Each former name with the rename that ended it, the newest first.
    """
    versions = head.datasets.get(dataset, {}).values()
    whole = next((version.part_of for version in versions if version.part_of), dataset)
    part = dataset.removeprefix(whole)
    return [(f"{each.old}{part}", each) for each in former_names(found, whole)]


def former_version(
    catalogue: Catalogue,
    head: Commit,
    found: Sequence[Rename],
    bound: MoveBound,
    spec: str,
    versions: int,
) -> FormerVersion | None:
    """Finds the earlier version that a bound means, under a former name of its dataset.

    Args:
        catalogue: The catalogue.
        head: Its newest commit.
        found: The renames of its log, the newest first.
        bound: The bound.
        spec: The digest of the dataset's spec.
        versions: How many versions of that spec it has under its present name.

    Returns:
        The version; None if there is none either.
    """
    back = bound.back - (versions - 1)  # a rename makes no other version
    for old, rename in names_before(found, bound.dataset, head):
        if bound.counts_back:
            state, key = catalogue.commit(rename.commit - 1), (old, spec)
            past = last_versions(catalogue.log(state), {key: back}).get(key)
            there = () if past is None else past.versions
            if len(there) > back:
                version, held = there[back]
                number = catalogue.commit_that_made(old, version, held)
                return _told(f"{old}@{number}", rename, bound)
            back -= max(0, len(there) - 1)
        elif is_there(catalogue, f"{old}{bound.against}", head):
            return _told(f"{old}{bound.against}", rename, bound)
    return None


def is_there(catalogue: Catalogue, name: str, head: Commit) -> bool:
    """Tells whether a name means a version."""
    try:
        catalogue.look_up(name, head)
    except NotFound:
        return False
    return True


def _told(name: str, rename: Rename, bound: MoveBound) -> FormerVersion:
    advice = (
        f"commit {rename.commit} renamed {rename.old} to {rename.new}, and its earlier versions "
        f"and tags stay under the old name. To judge by {name}, write `a: {name}`, "
        f"`b: {bound.dataset}` and `max: {bound.most:g}` in the place of `dataset`, `against` and "
        "`max_move`"
    )
    return FormerVersion(name, rename, advice)
