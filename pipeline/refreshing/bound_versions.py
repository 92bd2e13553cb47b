"""Checks, before anything is built, that the versions that bounds name are there or may come.

>>> require_versions(bound, catalogue, catalogue.head(), 3)                  # doctest: +SKIP
UsageError: gate {…'against': '@relase'…}: there is no day@relase; its tags are release, …

A refresh makes one version of a dataset at most, and no tag. So a tag, a time and the number of an
earlier commit are there before it or never. What the version that it is about to make may fulfil is
left to the judgement after the builds, and so are windows of days. No move is judged against it.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pipeline.catalogue import Catalogue, Commit, VersionName, last_versions, renames
from pipeline.errors import NotFound, UsageError
from pipeline.refreshing.bound_kinds import AnyBound, MoveBound
from pipeline.refreshing.former_versions import former_version, names_before


def require_versions(bound: AnyBound, catalogue: Catalogue, head: Commit, builds: int) -> None:
    """Checks the names of versions that a bound has.

    Args:
        bound: The bound.
        catalogue: The catalogue.
        head: Its newest commit.
        builds: How many datasets are about to be built.

    Raises:
        UsageError: A name means no version, and none that the builds make can change that; the
            message has the bound, and the tags and versions that there are. Or its time is to come,
            or the commit that a move is judged by.
    """
    newest = head.number + builds + 1  # one commit more may take datasets out
    for name in bound.names:
        named = VersionName.parse(name)
        if isinstance(named.which, datetime) and named.which > datetime.now(UTC):
            raise UsageError(
                f"{bound}: {name} is the version of a time that has not passed, which is the one "
                "that is judged. Name a month, a day or a time that is over, a commit or a tag"
            )
        if named.which is None or named.is_window or named.dataset not in head.datasets:
            continue
        which = named.which if isinstance(named.which, int) else None
        if which is not None and head.number < which <= newest:
            if isinstance(bound, MoveBound):
                raise UsageError(
                    f"{bound}: {name} is the version of a commit to come, which may be the one "
                    "that is judged. Name an earlier commit, or a tag"
                )
            continue
        if which is not None and which < 0:
            if isinstance(bound, MoveBound):
                continue  # it is not judged until there are as many versions
            if _has_version(catalogue, head, named.dataset, which + 1):
                continue  # the build may add the one that is lacking
        try:
            catalogue.look_up(name, head)
        except NotFound as error:
            tag = named.which if isinstance(named.which, str) else ""
            problem = _problem(bound, catalogue, head, named.dataset, tag)
            if problem is not None:
                raise UsageError(f"{bound}: {error}{problem}") from error


def _problem(
    bound: AnyBound, catalogue: Catalogue, head: Commit, dataset: str, tag: str
) -> str | None:
    """Tells whether a name that means no version is a mistake, and where else the version is.

    A move is not judged before there are several versions, and that is no mistake. But no refresh
    makes a tag: if the dataset is there and the tag is not, it would be missed after the builds.

    Returns:
        What to add to the error; None if it is no mistake.
    """
    known = _has_history(catalogue, head, dataset)
    if not isinstance(bound, MoveBound):
        return ""
    found = list(renames(catalogue.log(head)))
    former = former_version(catalogue, head, found, bound, "", 1)
    if former is not None:
        return f"; {former.advice}" if known else None
    for old, rename in names_before(found, dataset, head):
        if known or _has_history(catalogue, catalogue.commit(rename.commit - 1), old):
            return (
                f"; commit {rename.commit} renamed {rename.old} to {rename.new}, and there is no "
                f"{old}{bound.against} either"
            )
    if tag and not known:
        versions = head.datasets.get(dataset, {}).values()
        whole = next((version.part_of for version in versions if version.part_of), dataset)
        return f"; if that is the tag you mean, vdna tag {whole} {tag} gives it"
    return "" if known else None


def _has_version(catalogue: Catalogue, head: Commit, dataset: str, back: int) -> bool:
    """Tells whether a dataset has a version so many before the current one, as a number below 0."""
    try:
        catalogue.look_up(f"{dataset}@{back}" if back else dataset, head)
    except NotFound:
        return False
    return True


def _has_history(catalogue: Catalogue, head: Commit, dataset: str) -> bool:
    """Tells whether a dataset has had several versions under a spec, or has tags."""
    if catalogue.tagged_as(dataset, head):
        return True
    wanted = {(dataset, spec): 1 for spec in head.datasets.get(dataset, {})}
    found = last_versions(catalogue.log(head), wanted).values()
    return any(len(of.versions) > 1 for of in found)
