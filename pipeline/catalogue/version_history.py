"""Lists the versions that each dataset has had, from the log of a catalogue.

>>> version_histories(catalogue.log(), spec)["photos"][0].commit      # doctest: +SKIP
9
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        return _identity(self.version)


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
            if name in newer and _identity(newer[name]) == _identity(version):
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
        same = held is not None and version is not None and held.identity == _identity(version)
        if held is not None and not same:
            yield held
        if version is None:
            held = None
        else:
            last = held.last if held is not None and same else commit.number
            held = PastVersion(version, commit.number, commit.time, commit.software, last)
    if held is not None:
        yield held


def _identity(version: Version) -> tuple[str, str]:
    return version.dna, version.by
