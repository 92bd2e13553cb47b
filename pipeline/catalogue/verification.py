"""Recomputes every promise that can be recomputed from what is stored.

>>> [finding for finding in verify(catalogue, ["photos"]) if not finding.ok]   # doctest: +SKIP
[]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.findings import Finding
from pipeline.catalogue.kept_versions import KeptVersion, kept_versions, missing_files
from pipeline.catalogue.version_checks import VersionChecks
from pipeline.errors import CorruptFile, NotFound, StorageError, TooManyBytes, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.wording import count_of


def verify(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    spec: str | None = None,
    *,
    all_versions: bool = False,
    progress: Listener = ignore,
) -> Iterator[Finding]:
    """Checks versions of datasets against all that is stored of them.

    Args:
        catalogue: The catalogue.
        names: The datasets; none for all.
        spec: The beginning of a spec's digest; None for all specs.
        all_versions: Whether to check every version that is kept, and the log. The newest versions
            alone are checked otherwise.
        progress: Told what is done.

    Yields:
        A finding for each check, good or bad, when the check ends.

    Raises:
        NotFound: If there is no such dataset or spec.
        StorageError: If the store does not answer. That says nothing of what it holds.
    """
    newest = list(newest_versions(catalogue, names, spec))
    head = newest[0].commit if newest else 0
    older: list[KeptVersion] = []
    if all_versions:
        known, of_log = _read_log(catalogue)
        specs, checked = {kept.version.spec for kept in newest}, {kept.identity for kept in newest}
        older, of_files = _with_files(
            catalogue,
            [
                kept
                for kept in known
                if kept.identity not in checked
                and (not names or kept.name in names)
                and (spec is None or kept.version.spec in specs)
            ],
        )
        yield from (of_log, *of_files)
    for kept, check, run in _checks(catalogue, [*newest, *older], progress):
        at = None if kept.commit == head else kept.commit
        try:
            yield Finding(kept.name, check, True, run(), at)
        except VdnaError as error:
            raise_if_unanswered(error, f"{kept.name}, {check}")
            yield Finding(kept.name, check, False, str(error), at)


def raise_if_unanswered(error: VdnaError, what: str) -> None:
    """Raises the error of a check if the store did not answer; returns if it found something.

    Args:
        error: What the check raised.
        what: What was checked.

    Raises:
        StorageError: The store did not answer, or refused.
    """
    if isinstance(error, StorageError) and not isinstance(error, TooManyBytes):
        raise type(error)(f"{what}: not checked, because the store did not answer: {error}") from (
            error
        )


def require_undamaged(
    catalogue: Catalogue, versions: Iterable[KeptVersion], progress: Listener = ignore
) -> None:
    """Refuses a catalogue in which something is wrong with one of these versions.

    Older versions that lack a file are left out: a collection has removed them, or had begun to.

    Args:
        catalogue: The catalogue.
        versions: The versions to check.
        progress: Told what is done.

    Raises:
        CorruptFile: If a check of a version fails.
        StorageError: If the store does not answer.
    """
    head = catalogue.head().datasets
    there = [
        kept
        for kept in versions
        if kept.version == head.get(kept.name, {}).get(kept.version.spec)
        or not missing_files(catalogue, kept)
    ]
    for kept, check, run in _checks(catalogue, there, progress):
        try:
            run()
        except StorageError:
            raise
        except VdnaError as error:
            raise CorruptFile(
                f"{kept.name}, commit {kept.commit}, {check}: {error}. `vdna verify --all` lists "
                "all that is wrong"
            ) from error


def newest_versions(
    catalogue: Catalogue, names: Sequence[str], spec: str | None
) -> Iterator[KeptVersion]:
    """Finds the newest versions of datasets.

    Args:
        catalogue: The catalogue.
        names: The datasets; none for all.
        spec: The beginning of a spec's digest; None for all specs.

    Yields:
        Each version.

    Raises:
        NotFound: If there is no such dataset or spec.
    """
    commit = catalogue.head()
    chosen = catalogue.spec_digest(commit, spec) if spec else None
    for name in names or sorted(commit.datasets):
        if name not in commit.datasets:
            catalogue.find(name)  # raises
        versions = commit.datasets[name]
        if chosen is not None and chosen not in versions:
            raise NotFound(f"{name} has no version under spec {chosen}")
        for digest, version in sorted(versions.items()):
            if chosen in (None, digest):
                yield KeptVersion(name, version, commit.number)


def _read_log(catalogue: Catalogue) -> tuple[list[KeptVersion], Finding]:
    """Reads the whole log, or as much of it as can be trusted, and finds its versions."""
    known: list[KeptVersion] = []
    try:
        for kept in kept_versions(catalogue.log()):
            known.append(kept)
        catalogue.require_end()
    except VdnaError as error:
        raise_if_unanswered(error, "log")
        return known, Finding("", "log", False, str(error))
    number = known[0].commit if known else 0
    digest = sha256(storage.read(catalogue.log_uri(number))) if number else "none"
    commits = count_of(number, "commit")
    detail = f"{commits}, each made upon the one before; the last has sha256 {digest}"
    return known, Finding("", "log", True, detail)


def _with_files(
    catalogue: Catalogue, older: Iterable[KeptVersion]
) -> tuple[list[KeptVersion], list[Finding]]:
    """Returns the older versions that have all their files, and findings on the others."""
    there, findings, removed = [], [], Counter[str]()
    for kept in older:
        files, missing = set(kept.version.sha256), set(missing_files(catalogue, kept))
        if not missing:
            there.append(kept)
        elif missing >= files - {"manifests"}:  # a manifest may be another version's too
            removed[kept.name] += 1
        else:
            detail = (
                f"{', '.join(sorted(missing))} missing, {', '.join(sorted(files - missing))} left. "
                "If a `vdna gc --keep` or a build was interrupted, run it again; else restore them"
            )
            findings.append(Finding(kept.name, "files", False, detail, kept.commit))
    for name, count in sorted(removed.items()):
        have = "has" if count == 1 else "have"
        versions = count_of(count, "older version")
        detail = f"{versions} {have} no files left, as after `vdna gc --keep`"
        findings.append(Finding(name, "history", True, detail))
    return there, findings


def _checks(
    catalogue: Catalogue, versions: Sequence[KeptVersion], progress: Listener
) -> Iterator[tuple[KeptVersion, str, Callable[[], str]]]:
    """Yields the checks of all versions, and tells the listener of each version that is done."""
    total = sum(len(VersionChecks(catalogue, kept).checks) for kept in versions)
    started = Started(total, len(versions), unit="checks", step="versions")
    with stage(progress, started):
        for kept in versions:
            checks = VersionChecks(catalogue, kept).checks
            for check, run in checks.items():
                yield kept, check, run
            progress(StepDone(len(checks), name=kept.name))
