"""Recomputes every promise that can be recomputed from what is stored.

>>> [finding for finding in verify(catalogue, ["photos"]) if not finding.ok]   # doctest: +SKIP
[]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.commit import Commit
from pipeline.catalogue.findings import HISTORY, Finding
from pipeline.catalogue.kept_versions import KeptVersion, kept_versions, missing_files
from pipeline.catalogue.version_checks import VersionChecks
from pipeline.catalogue.version_lookup import NamedVersion
from pipeline.catalogue.version_names import dataset_of, require_no_window
from pipeline.errors import CorruptFile, NotFound, StorageError, TooManyBytes, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import Mapper, SerialMapper, in_order, map_in_order
from pipeline.wording import count_of

LARGE = 1_000_000
"""A version of more images is checked by many tasks, and not by one."""


def verify(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    spec: str | None = None,
    *,
    all_versions: bool = False,
    mapper: Mapper | None = None,
    progress: Listener = ignore,
) -> Iterator[Finding]:
    """Checks versions of datasets against all that is stored of them.

    Args:
        catalogue: The catalogue.
        names: The datasets, or names of versions; none for all datasets.
        spec: The beginning of a spec's digest; None for all specs.
        all_versions: Whether to check every version that is kept of the datasets, and the log. Of
            a dataset the newest version alone is checked otherwise. The name of a version means
            that version alone, either way.
        mapper: Where versions are checked, one in a task; None for this process.
        progress: Told what is done.

    Yields:
        A finding for each check, good or bad, when the version's checks have ended. The versions of
        more than `LARGE` images come last. Each of their findings comes when its check ends.

    Raises:
        NotFound: If there is no such dataset, version or spec.
        UsageError: If a name means a window of days.
        StorageError: If the store does not answer. That says nothing of what it holds.
    """
    head = catalogue.head()
    newest = list(chosen_versions(catalogue, head, names, spec))
    older: list[KeptVersion] = []
    if all_versions:
        known, of_log = _read_log(catalogue)
        specs, checked = {kept.version.spec for kept in newest}, {kept.identity for kept in newest}
        older, of_files = _with_files(
            catalogue,
            newest,
            [
                kept
                for kept in known
                if kept.identity not in checked
                and (not names or kept.name in names)
                and (spec is None or kept.version.spec in specs)
            ],
        )
        yield from (of_log, *of_files)
    for _, finding in _findings(catalogue, [*newest, *older], head.number, mapper, progress):
        yield finding


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
    catalogue: Catalogue,
    versions: Iterable[KeptVersion],
    mapper: Mapper | None = None,
    progress: Listener = ignore,
) -> None:
    """Refuses a catalogue in which something is wrong with one of these versions.

    Older versions that lack a file are left out: a collection has removed them, or had begun to.

    Args:
        catalogue: The catalogue.
        versions: The versions to check.
        mapper: As in `verify`.
        progress: Told what is done.

    Raises:
        CorruptFile: If a check of a version fails.
        StorageError: If the store does not answer.
    """
    head = catalogue.head()

    def is_there(kept: KeptVersion) -> bool:
        current = head.datasets.get(kept.name, {}).get(kept.version.spec)
        return kept.version == current or not missing_files(catalogue, kept)

    versions = list(versions)
    found = zip(versions, map_in_order(is_there, versions), strict=True)
    there = [kept for kept, whole in found if whole]
    for kept, finding in _findings(catalogue, there, head.number, mapper, progress):
        if not finding.ok:
            raise CorruptFile(
                f"{kept.name}, commit {kept.made or kept.commit}, {finding.check}: "
                f"{finding.detail}. `vdna verify --all` lists all that is wrong"
            )


def chosen_versions(
    catalogue: Catalogue, head: Commit, names: Sequence[str], spec: str | None
) -> Iterator[KeptVersion]:
    """Finds the newest versions of datasets, and the versions that names mean.

    Args:
        catalogue: The catalogue.
        head: The newest commit.
        names: The datasets, or names of versions; none for all datasets.
        spec: The beginning of a spec's digest; None for all specs.

    Yields:
        Each version once. One that is its dataset's current one has the newest commit.

    Raises:
        NotFound: If there is no such dataset, version or spec.
        UsageError: If a name means a window of days.
    """
    if spec and not names:
        catalogue.spec_digest(head, spec)  # says so if there is none
    seen = set()
    for name in names or sorted(head.datasets):
        versions = catalogue.look_up(require_no_window(name), head)
        chosen = catalogue.spec_digest(head, spec, versions) if spec else None
        if chosen is not None and chosen not in versions:
            raise NotFound(f"{name} has no version under spec {chosen}")
        for digest, named in sorted(versions.items()):
            kept = _kept(catalogue, head, dataset_of(name), named)
            if chosen in (None, digest) and kept.identity not in seen:
                seen.add(kept.identity)
                yield kept


def _kept(catalogue: Catalogue, head: Commit, dataset: str, named: NamedVersion) -> KeptVersion:
    """Returns a version that was named with the commit that made it, if it is an older one."""
    version = named.version
    if version == head.datasets.get(dataset, {}).get(version.spec):
        return KeptVersion(dataset, version, head.number)
    made = catalogue.commit_that_made(dataset, version, named.commit)
    return KeptVersion(dataset, version, named.commit, made)


def made_earlier(kept: KeptVersion, head: int) -> int | None:
    """Returns what a finding on a version states as `Finding.at`.

    Args:
        kept: The version.
        head: Number of the newest commit.

    Returns:
        Number of the commit that made it; None if the newest commit holds it.
    """
    return None if kept.commit == head else kept.made


def _read_log(catalogue: Catalogue) -> tuple[list[KeptVersion], Finding]:
    """Reads the whole log, or as much of it as can be trusted, and finds its versions."""
    problem: VdnaError | None = None
    number = 0

    def commits() -> Iterator[Commit]:
        nonlocal number, problem
        try:
            for commit in catalogue.log():
                number = max(number, commit.number)
                yield commit
        except VdnaError as error:
            problem = error

    known = list(kept_versions(commits()))
    try:
        if problem is not None:
            raise problem
        catalogue.require_end()
    except VdnaError as error:
        raise_if_unanswered(error, "log")
        return known, Finding("", "log", False, str(error))
    digest = sha256(storage.read(catalogue.log_uri(number))) if number else "none"
    detail = (
        f"{count_of(number, 'commit')}, each made upon the one before; the last has sha256 {digest}"
    )
    return known, Finding("", "log", True, detail)


def _with_files(
    catalogue: Catalogue, newest: Iterable[KeptVersion], older: Iterable[KeptVersion]
) -> tuple[list[KeptVersion], list[Finding]]:
    """Finds the older versions that have all their files.

    Args:
        catalogue: The catalogue.
        newest: The newest versions.
        older: The others.

    Returns:
        The older versions that have all their files, and findings on those that do not.
    """
    there, findings, removed = [], [], Counter[str]()
    older = list(older)
    missing_of = list(map_in_order(lambda kept: set(missing_files(catalogue, kept)), older))
    whole = [kept for kept, missing in zip(older, missing_of, strict=True) if not missing]
    held = {
        uri
        for kept in [*newest, *whole]
        for uri in catalogue.files(kept.name, kept.version).values()
    }
    for kept, missing in zip(older, missing_of, strict=True):
        of = catalogue.files(kept.name, kept.version)
        files = set(of)
        if not missing:
            there.append(kept)
        elif held.issuperset(of[kind] for kind in files - missing - {"manifests"}):
            removed[kept.name] += 1  # what is left of it is another version's, too
        else:
            detail = (
                f"{', '.join(sorted(missing))} missing, {', '.join(sorted(files - missing))} left. "
                "If a `vdna gc --keep` or a build was interrupted, run it again; else restore them"
            )
            findings.append(Finding(kept.name, "files", False, detail, kept.made))
    for name, count in sorted(removed.items()):
        have = "has" if count == 1 else "have"
        versions = count_of(count, "older version")
        detail = f"{versions} {have} no files left, as after `vdna gc --keep`"
        findings.append(Finding(name, HISTORY, True, detail))
    return there, findings


@dataclass(frozen=True)
class VersionTask:
    """The checks of one version, to be run as one task.

    Attributes:
        number: Its place among the tasks.
        root: The catalogue's url.
        kept: The version.
        at: What its findings state as `Finding.at`.
    """

    number: int
    root: str
    kept: KeptVersion
    at: int | None

    def run(self) -> tuple[int, list[Finding]]:
        """Runs the checks, and returns their findings with the task's number."""
        checks = VersionChecks(Catalogue(self.root), self.kept)
        return self.number, list(_run(checks, self.kept, self.at))


def _run(checks: VersionChecks, kept: KeptVersion, at: int | None) -> Iterator[Finding]:
    """Runs the checks of a version, and yields the finding of each when it ends."""
    for check, run in checks.checks.items():
        try:
            yield Finding(kept.name, check, True, run(), at)
        except VdnaError as error:
            raise_if_unanswered(error, f"{kept.name}, {check}")
            yield Finding(kept.name, check, False, str(error), at)


def _findings(
    catalogue: Catalogue,
    versions: Sequence[KeptVersion],
    head: int,
    mapper: Mapper | None,
    progress: Listener,
) -> Iterator[tuple[KeptVersion, Finding]]:
    """Checks all versions, and tells the listener of each version that is done.

    A version of many images is not one task: this process checks it, and its partials are read by
    many tasks.

    Yields:
        Each finding, with its version.
    """
    mapper = mapper or SerialMapper()
    of_tasks = [kept for kept in versions if not _is_large(kept)]
    tasks = [
        VersionTask(number, catalogue.root, kept, made_earlier(kept, head))
        for number, kept in enumerate(of_tasks)
    ]
    if tasks:
        total = sum(len(VersionChecks(catalogue, kept).checks) for kept in of_tasks)
        with stage(progress, Started(total, len(tasks), unit="checks", step="versions")):
            found = in_order(mapper.map(VersionTask.run, tasks))
            for task, findings in zip(tasks, found, strict=True):
                yield from ((task.kept, finding) for finding in findings)
                progress(StepDone(len(findings), name=task.kept.name))
    for kept in filter(_is_large, versions):
        checks = VersionChecks(catalogue, kept, mapper, progress)
        for finding in _run(checks, kept, made_earlier(kept, head)):
            yield kept, finding


def _is_large(kept: KeptVersion) -> bool:
    return kept.version.images + kept.version.failed > LARGE
