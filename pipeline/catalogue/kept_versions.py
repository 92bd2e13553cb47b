"""Finds the versions that a catalogue keeps: those that its log names and `gc` has not removed.

>>> [(kept.name, kept.commit) for kept in kept_versions(catalogue.log(), keep=2)]  # doctest: +SKIP
[('photos', 9), ('photos', 4)]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.commit import Commit, Version
from pipeline.catalogue.name_changes import renamed_between
from pipeline.catalogue.names import VERSION_MARK
from pipeline.catalogue.version_history import history_key
from pipeline.errors import CorruptFile, SourceError


@dataclass(frozen=True)
class KeptVersion:
    """One version of a dataset, and where the log names it.

    Attributes:
        name: The dataset, or the part of one.
        version: The version.
        commit: Number of the newest commit that holds the version.
        made: Number of the commit that made it, by which `vdna log` names it; 0 if that was not
            looked for.
    """

    name: str
    version: Version
    commit: int
    made: int = 0

    @property
    def numbered_name(self) -> str:
        """The name that reads the version, such as `photos@7`: by the commit that made it."""
        return f"{self.name}{VERSION_MARK}{self.made or self.commit}"

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells the version from all others of the catalogue."""
        return self.name, self.version.spec, *self.version.stated


def kept_versions(
    commits: Iterable[Commit], keep: int | None = None, since: datetime | None = None
) -> Iterator[KeptVersion]:
    """Finds the versions of each dataset and spec in a log that are kept, with their parts.

    A version is found if one of the rules keeps it. Without rules, all are.

    Args:
        commits: The commits, the newest first.
        keep: How many versions to find of each dataset and spec that the newest commit has, and
            none of others. What the newest commit has a tag for is found anyway. The versions
            that a dataset had before it was renamed are counted with its later ones.
        since: Versions that were current after this moment are found, and those that are current.

    Yields:
        Each version once, as the newest commit that holds it states it; the newest first. All of
        the log is read before the first one.
    """
    keeper = VersionKeeper(keep, since)
    for commit in commits:
        keeper.add(commit)
    yield from keeper.kept()


class VersionKeeper:
    """Finds the versions that are kept, as `kept_versions` does, from one commit after the other.

    Several can so find versions by different rules while the log is read once.

    Args:
        keep: As in `kept_versions`.
        since: As in `kept_versions`.
    """

    def __init__(self, keep: int | None = None, since: datetime | None = None) -> None:
        self._keep = keep
        self._since = since
        self._found: defaultdict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
        self._counted: defaultdict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
        self._places: defaultdict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
        self._wanted: list[tuple[KeptVersion, _HeldInARow]] = []
        self._runs: dict[tuple[str, str], _HeldInARow] = {}
        self._names: dict[str, str] = {}
        self._current: Commit | None = None
        self._newer: Commit | None = None

    def add(self, commit: Commit) -> None:
        """Takes in the next commit; the newest one is the first."""
        found, names, keep, since = self._found, self._names, self._keep, self._since
        current = self._current = self._current or commit
        newer = self._newer
        newer_runs, self._runs = self._runs, {}
        for old, new in renamed_between(commit, newer or commit):
            names[old] = names.get(new, new)
        for name, version in _wholes_first(commit):
            key = name, version.spec
            versions, same = found[key], version.stated
            run = newer_runs.get(key)
            if run is None or run.identity != history_key(version):
                run = _HeldInARow(history_key(version))
            self._runs[key], run.first = run, commit.number
            if version.part_of:
                whole = commit.datasets.get(version.part_of, {}).get(version.spec)
                known = found[version.part_of, version.spec]
                wanted = whole is None or whole.stated in known
            else:
                now = names.get(name, name)
                all_names = self._counted[now, version.spec]
                # A rename puts a manifest back to its place that an erasure had stored elsewhere.
                counted = replace(version, manifest_file="").stated
                there = version.spec in current.datasets.get(now, {})
                tagged = commit.number in current.tags.get(name, {}).values()
                newest = keep is not None and there and len(all_names) < keep
                newest = newest and counted not in all_names
                # All its other files are a kept version's, so its manifest stays, too.
                newest = newest or counted in self._places[key]
                late = since and (newer is None or datetime.fromisoformat(newer.time) > since)
                wanted = (keep is None and since is None) or tagged or newest or bool(late)
                if wanted:
                    all_names.add(counted)
                    self._places[key].add(counted)
            if wanted and same not in versions:
                versions.add(same)
                self._wanted.append((KeptVersion(name, version, commit.number), run))
        self._newer = commit

    def kept(self) -> Iterator[KeptVersion]:
        """Yields the versions that the commits so far have, as `kept_versions` does."""
        for kept, run in self._wanted:
            yield replace(kept, made=run.first)


@dataclass
class _HeldInARow:
    """Commits in a row that hold a version, of which the first has made it."""

    identity: tuple[str, str]
    first: int = 0


def _wholes_first(commit: Commit) -> Iterator[tuple[str, Version]]:
    """Yields all versions of a commit with their names, whole datasets before parts."""
    versions = [(name, v) for name, specs in commit.datasets.items() for v in specs.values()]
    yield from sorted(versions, key=lambda entry: bool(entry[1].part_of))


def missing_files(catalogue: Catalogue, kept: KeptVersion) -> list[str]:
    """Finds which files of a version are not there, those of its candidates among them.

    Args:
        catalogue: The catalogue.
        kept: The version.

    Returns:
        The kinds of the missing files, in the order of their names; `entries` last.
    """
    version = kept.version
    files = sorted(catalogue.files(kept.name, version).items())
    missing = [kind for kind, uri in files if not storage.exists(uri)]
    if "manifests" in version.sha256 and "manifests" not in missing:
        try:
            manifest = catalogue.manifest(kept.name, version)
            missing += ["entries"] if manifest.entries.missing(manifest.files) else []
        except CorruptFile:
            pass  # its own check says so
        except SourceError:  # what lies there is another version's
            missing = sorted([*missing, "manifests"])
    return missing
