"""Lists the versions that each dataset has had, from the log of a catalogue.

>>> version_histories(catalogue.log(), spec)["photos"][0].commit      # doctest: +SKIP
9
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.catalogue.commit import Commit, Version


@dataclass(frozen=True)
class PastVersion:
    """A version that a dataset has or had, and the commit that made it.

    Attributes:
        version: The version.
        commit: Number of the first commit in a row that holds the version.
        time: When that commit was made, as an ISO time in UTC.
        software: The name and version of the software that made the commit.
        last: Number of the last commit in that row.
    """

    version: Version
    commit: int
    time: str
    software: str
    last: int

    @property
    def identity(self) -> tuple[str, str]:
        """What tells the version from others of the dataset and the spec."""
        return history_key(self.version)


def version_histories(commits: Iterable[Commit], spec: str) -> dict[str, list[PastVersion]]:
    """Finds the versions of all datasets under one spec.

    Args:
        commits: The commits, the newest first. If older ones are left out, the oldest version of a
            dataset may be older than the commit that is named with it.
        spec: The whole digest of the spec.

    Returns:
        The versions of each dataset, the newest first. One that came back is named again.
    """
    histories: dict[str, list[PastVersion]] = {}
    here: dict[str, Version] = {}
    for commit in commits:
        newer, here = here, {}
        for name, versions in commit.datasets.items():
            if spec not in versions:
                continue
            version, found = versions[spec], histories.setdefault(name, [])
            here[name] = version
            last = commit.number
            if name in newer and history_key(newer[name]) == history_key(version):
                last = found.pop().last
            found.append(PastVersion(version, commit.number, commit.time, commit.software, last))
    return histories


def past_versions(commits: Iterable[Commit], name: str, spec: str) -> Iterator[PastVersion]:
    """Finds the versions of one dataset under one spec, and reads no more commits than it must.

    Args:
        commits: The commits, the newest first, as `version_histories` takes them.
        name: The dataset.
        spec: The whole digest of the spec.

    Yields:
        Each version as `version_histories` has it, the newest first.
    """
    held: PastVersion | None = None
    for commit in commits:
        version = commit.datasets.get(name, {}).get(spec)
        same = held is not None and version is not None and held.identity == history_key(version)
        if held is not None and not same:
            yield held
        if version is None:
            held = None
        else:
            last = held.last if held is not None and same else commit.number
            held = PastVersion(version, commit.number, commit.time, commit.software, last)
    if held is not None:
        yield held


@dataclass(frozen=True)
class LastVersions:
    """The last versions of a dataset under one spec.

    Attributes:
        commit: Number of the commit that made the current version.
        versions: The current version and those before it, the newest first, each with the number of
            the newest commit that holds it. One that came back without another one between is one.
    """

    commit: int
    versions: tuple[tuple[Version, int], ...]


def last_versions(
    commits: Iterable[Commit], wanted: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], LastVersions]:
    """Finds the last versions of many datasets, and reads the log once, and no more than it must.

    Args:
        commits: The commits, the newest first.
        wanted: How many versions to find before the current one, by the dataset and the whole
            digest of the spec.

    Returns:
        What was found of each: fewer versions if there are no more. A dataset that the newest
        commit does not have is left out.
    """
    found: dict[tuple[str, str], LastVersions] = {}
    left = dict(wanted)
    gone: set[tuple[str, str]] = set()
    for at, commit in enumerate(commits):
        for key, count in [*left.items()]:
            version = commit.datasets.get(key[0], {}).get(key[1])
            if at == 0:
                if version is None:
                    del left[key]
                    continue
                found[key] = LastVersions(commit.number, ((version, commit.number),))
            known = found[key]
            if version is None:
                gone.add(key)
            elif history_key(version) != history_key(known.versions[-1][0]):
                gone.add(key)
                more = (*known.versions, (version, commit.number))
                found[key] = LastVersions(known.commit, more)
            elif key not in gone:
                found[key] = LastVersions(commit.number, known.versions)
            if key in gone and len(found[key].versions) > count:
                del left[key]
        if not left:
            break
    return found


def history_key(version: Version) -> tuple[str, str]:
    """Returns what tells a version from others of its dataset and spec in a history."""
    return version.dna, version.by
