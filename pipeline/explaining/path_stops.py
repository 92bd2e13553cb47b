"""Finds what a path goes over: the kept versions of a dataset, or its windows of days.

>>> [stop.name for stop in find_stops(catalogue, "cams", DriftOptions(window="7d")).stops]
... # doctest: +SKIP
['cams@2026-11-11..2026-11-17', 'cams@2026-11-18..2026-11-24']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

from pipeline.catalogue import (
    Catalogue,
    Commit,
    PastVersion,
    Version,
    VersionName,
    WindowName,
    consecutive_windows,
    dataset_of,
    days_between,
    name_of_version,
    past_versions,
)
from pipeline.errors import NotFound, UsageError
from pipeline.explaining.drift_path import LeftOut
from pipeline.explaining.explain_options import DriftOptions
from pipeline.explaining.version_table import is_kept
from pipeline.wording import option, some_of

_LOOKERS = 8


@dataclass(frozen=True)
class Stop:
    """A version or a window of days, before it is compared.

    Attributes:
        name: Its name.
        time: When it was committed, as an ISO time in UTC; of a window, its last day.
        commit: Number of the commit that made it; of a window, of the one that has its days.
        version: The version.
        past: What the log has of it; None of a window.
    """

    name: str
    time: str
    commit: int
    version: Version
    past: PastVersion | None = None


@dataclass(frozen=True)
class Stops:
    """What a path goes over.

    Attributes:
        dataset: The dataset.
        spec: The digest of the spec.
        at: Number of the commit that the path ends with.
        stops: The versions, or windows, the oldest first.
        left_out: Others, which cannot be compared.
        reference: What all others are compared with; None if there are fewer than two.
        window: How many days each window has, as it was asked; empty if these are versions.
    """

    dataset: str
    spec: str
    at: int
    stops: Sequence[Stop]
    left_out: tuple[LeftOut, ...]
    reference: Stop | None
    window: str = ""

    @property
    def too_few(self) -> UsageError:
        """The error of a path that has fewer than two stops."""
        others = some_of([f"{of.name}, as {of.why}" for of in self.left_out])
        left_out = f"; left out: {others}" if others else ""
        count = len(self.stops)
        if self.window:
            return UsageError(
                f"drift compares windows of days, and {self.dataset} has {count or 'none'} of "
                f"{self.window!r}, where two are needed; give a shorter window{left_out}"
            )
        kept = f"only {self.stops[0].name} is kept" if count else "none is kept"
        return UsageError(
            f"drift compares versions of {self.dataset}, and {kept} of spec {self.spec[:12]}; "
            f"build it again when its images have changed{left_out}"
        )


def find_stops(catalogue: Catalogue, name: str, asked: DriftOptions) -> Stops:
    """Finds the versions of a dataset that are kept, or its windows.

    Args:
        catalogue: The catalogue.
        name: The dataset; or the name of a version, to end with that one.
        asked: What is asked of the path.

    Returns:
        What the path goes over.

    Raises:
        NotFound: There is no such dataset or version; or it keeps no days, for windows.
        UsageError: The name is that of a window, or the reference is not one of them.
    """
    if VersionName.parse(name).is_window:
        raise UsageError(
            f"{name} is a window of days, which has no history; vdna drift {dataset_of(name)} "
            f"with {option('window', '7d')} goes from each window of seven days to the next"
        )
    named = catalogue.resolve(name, spec=asked.spec)
    of_windows = asked.window is not None
    find = _windows if of_windows else _versions
    return find(catalogue, dataset_of(name), named.commit, named.version, asked)


def _versions(
    catalogue: Catalogue, dataset: str, at: int, last: Version, asked: DriftOptions
) -> Stops:
    newest, spec = catalogue.commit(at), last.spec
    others: dict[str, int] = {}
    watched = _watched(catalogue.log(newest), dataset, spec, others)
    past = list(_distinct(watched, dataset, spec))
    with ThreadPoolExecutor(_LOOKERS, "look") as pool:
        there = list(pool.map(lambda of: is_kept(catalogue, dataset, of), past))
    kept = [
        Stop(f"{dataset}@{of.commit}", of.time, of.commit, of.version, of)
        for of, is_there in zip(past, there, strict=True)
        if is_there
    ][::-1]
    gone = [of for of, is_there in zip(past, there, strict=True) if not is_there]
    left_out = (
        *(LeftOut(f"{dataset}@{of.commit}", "its files were removed by vdna gc") for of in gone),
        *(
            LeftOut(f"{dataset}@{commit}", f"its spec is another one ({option('spec', of[:12])})")
            for of, commit in others.items()
        ),
    )
    reference = None
    if asked.reference is not None:
        # says so if there is none
        catalogue.find(name_of_version(dataset, asked.reference), at, spec)
    if len(kept) > 1:
        reference = _reference_version(catalogue, dataset, asked.reference, at, spec, kept)
    return Stops(dataset, spec, at, kept, left_out, reference)


def _watched(
    commits: Iterator[Commit], dataset: str, spec: str, others: dict[str, int]
) -> Iterator[Commit]:
    """Passes commits on, and notes the newest of each other spec that the dataset has."""
    for commit in commits:
        for of in commit.datasets.get(dataset, {}):
            if of != spec:
                others.setdefault(of, commit.number)
        yield commit


def _distinct(commits: Iterator[Commit], dataset: str, spec: str) -> Iterator[PastVersion]:
    """Yields the versions, the newest first. One that came back has its oldest commit."""
    past = past_versions(commits, dataset, spec)
    for _, same in groupby(past, key=lambda of: of.identity):
        newest, *older = same
        yield replace(older[-1], last=newest.last) if older else newest


def _reference_version(
    catalogue: Catalogue, dataset: str, which: str | None, at: int, spec: str, kept: Sequence[Stop]
) -> Stop:
    if which is None:
        return kept[0]
    name = name_of_version(dataset, which)
    version = catalogue.find(name, at, spec)
    found = [of for of in kept if of.version.dna == version.dna]
    if not found:
        raise UsageError(
            f"the reference {name} is not among the versions of {dataset} that are kept "
            f"and no newer than commit {at}: {', '.join(str(of.commit) for of in kept)}"
        )
    return found[-1]


def _windows(
    catalogue: Catalogue, dataset: str, at: int, whole: Version, asked: DriftOptions
) -> Stops:
    """Adds up the windows that are looked at, as the files of each take place in the catalogue."""
    length, which = asked.window or "", asked.reference
    named = consecutive_windows(catalogue, dataset, whole, length)
    ready = [of for of in named if not of.why]
    looked = ready[-asked.limit - 1 :]
    since = looked[0].first if len(looked) < len(ready) else ""
    left_out = {of.name: of.why for of in named if of.why and of.first > since}

    def added_up(windows: Sequence[WindowName]) -> Iterator[Stop]:
        for of in windows:
            try:
                yield Stop(of.name, of.last, at, catalogue.find(of.name, at, whole.spec))
            except NotFound as error:  # none of its images can be read
                left_out[of.name] = str(error).removeprefix(f"{of.name}: ")

    stops = list(added_up(looked))
    reference = None
    if len(stops) > 1:
        reference = (
            next(added_up(ready))
            if which is None
            else _reference_window(catalogue, dataset, which, at, stops)
        )
    others = tuple(LeftOut(name, left_out[name]) for name in sorted(left_out))
    return Stops(dataset, whole.spec, at, stops, others, reference, length)


def _reference_window(
    catalogue: Catalogue, dataset: str, which: str, at: int, stops: Sequence[Stop]
) -> Stop:
    """Returns the window that a text means: one of those on the path, or another one."""
    name = name_of_version(dataset, which)
    if not VersionName.parse(name).is_window:
        raise UsageError(
            f"the reference is {which!r}, and that of a path over windows is a window, too: give "
            "its days, such as 2026-11-01..2026-11-07"
        )
    version = catalogue.find(name, at, stops[0].version.spec)
    same = (of for of in stops if of.version.dna == version.dna)
    days = days_between(version.value)
    return next(same, Stop(name, str(days[1]) if days else "", at, version))
