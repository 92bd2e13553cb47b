"""Adds up the shards of a dataset that are of some days: the version that a window of days names.

>>> window_version(catalogue, "cams@last:7d", spec, commit).images             # doctest: +SKIP
7000

A dataset whose parts are made by days keeps the sums of each day's shards. A window adds these up
and reads no image. What it makes is a version like others, whose files lie in a folder of their
own. No commit names them: a collection of garbage removes them, and they are made again when the
window is named again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta

from pydantic import ValidationError

from pipeline import storage
from pipeline.catalogue.changes import require_no_erasure
from pipeline.catalogue.commit import Commit, Version, canonical_json
from pipeline.catalogue.composed_version import version_of
from pipeline.catalogue.day_windows import BETWEEN, DayWindow, WrongWindowError, day_of
from pipeline.catalogue.replacing import as_replaced
from pipeline.catalogue.version_files import VersionFiles
from pipeline.catalogue.version_names import VersionName, dataset_of
from pipeline.counting import Composed, add_up, compose, plan_folds
from pipeline.dna import encode_failures
from pipeline.errors import NotFound, SourceError, UsageError, VdnaError
from pipeline.events import Said, Started, StepDone, listener_around, stage
from pipeline.mapper import map_in_order
from pipeline.sources import Manifest, label_of
from pipeline.spec import available_cpus, digest_of
from pipeline.wording import count_of, option, some_of

MADE_AGAIN = timedelta(days=3)
"""A window is made again after this time, so that no collection of garbage takes its files while
they are read."""


def window_version(catalogue: VersionFiles, name: str, spec: str, commit: Commit) -> Version:
    """Adds up the sums of a window's days, unless that was done before.

    Args:
        catalogue: The catalogue.
        name: The name of the window, such as `cams@last:7d`.
        spec: The digest of the dataset's spec.
        commit: The state whose version of the dataset has the days.

    Returns:
        The version. It is a pure function of the days' shards.

    Raises:
        NotFound: The dataset keeps no days, or not all of the window's, or none of their images
            can be read.
        SourceError: Some of the sums are gone.
        CorruptFile: Some are damaged.
        Conflict: Images were erased meanwhile, which the sums may have. Nothing is kept then.
        VdnaError: Storage fails.
    """
    dataset = VersionName.parse(name).dataset
    whole = commit.datasets[dataset][spec]
    values, manifest = _chosen(catalogue, name, whole)
    stated = [manifest.digest, list(whole.products)]
    noted = catalogue.window_uri(dataset, spec, digest_of("window", stated))
    if kept := _kept(catalogue, name, noted):
        return kept
    head = catalogue.head()
    if as_replaced(commit, head).datasets.get(dataset, {}).get(spec) != whole:
        require_no_erasure(head, name, commit.erasure)
    places = [noted]
    try:
        made = replace(
            _made(catalogue, name, whole, manifest, places),
            by=whole.by,
            part_of=dataset,
            value=BETWEEN.join(dict.fromkeys((values[0], values[-1]))),
        )
        storage.replace(noted, canonical_json(asdict(made)))
    except VdnaError:
        _remove_if_erased(catalogue, name, head, places)
        raise
    _remove_if_erased(catalogue, name, head, places)
    return made


def _remove_if_erased(
    catalogue: VersionFiles, name: str, before: Commit, places: Sequence[str]
) -> None:
    """Removes what was written for a window if images were erased meanwhile.

    An erasure commits before it searches. So it finds these objects, or this finds its commit.

    Args:
        catalogue: Where they are.
        name: The window.
        before: The newest commit when the window was begun.
        places: What may name the window's images.

    Raises:
        Conflict: Images were erased.
    """
    now = catalogue.head()
    if now.erasure != before.erasure:
        storage.delete_all(places)
        require_no_erasure(now, name, before.erasure)


def consecutive_windows(
    catalogue: VersionFiles, dataset: str, whole: Version, length: str
) -> list[WindowName]:
    """Names the windows of a dataset that are of one length, end to end back from its newest day.

    Args:
        catalogue: The catalogue.
        dataset: The dataset.
        whole: Its version that has the days.
        length: How many days: `7d` of the calendar, or `7` that have images.

    Returns:
        The windows, the first one first. None is added up yet.

    Raises:
        NotFound: The dataset keeps no days.
        UsageError: The length is none.
    """
    window = None
    with suppress(WrongWindowError):
        window = DayWindow.parse(f"last:{length}")
    if window is None:
        raise UsageError(
            f"the window is {length!r}; give a number of days, such as 7d for days of the "
            "calendar, or 7 for days that have images"
        )
    there = sorted(_kept_days(catalogue, f"{dataset}@{window.text}", whole).values)
    return [
        WindowName(
            f"{dataset}@{of.text}", str(of.first), str(of.last), _lacking(dataset, of, there)
        )
        for of in window.with_earlier(there)
    ]


@dataclass(frozen=True)
class WindowName:
    """The name of a window of days.

    Attributes:
        name: The name.
        first: Its first day, as an ISO date.
        last: Its last day.
        why: Which of its days have no images; empty if it can be added up.
    """

    name: str
    first: str
    last: str
    why: str


@dataclass(frozen=True)
class _KeptDays:
    """The days of a dataset.

    Attributes:
        manifest: The manifest of the whole dataset.
        shards: The shards of each part, by the value of its label.
        values: The values of each day, by the day.
    """

    manifest: Manifest
    shards: Mapping[str, Sequence[int]]
    values: Mapping[date, Sequence[str]]


def _kept_days(catalogue: VersionFiles, name: str, whole: Version) -> _KeptDays:
    """Finds the days of a dataset in the manifest of the whole.

    The parts would not do: a part of which no image can be read is not committed, but its failures
    are those of its day.

    Args:
        catalogue: The catalogue.
        name: The name of a window, for errors.
        whole: The version that has the days.

    Returns:
        The days, one at least.

    Raises:
        NotFound: The dataset keeps no days.
    """
    dataset = dataset_of(name)
    by = option("by", 1)
    how = f"build it with {by}, or by as many folders as name a day (day=2026-11-24/)"
    if not whole.by or whole.part_of:
        raise NotFound(f"{name}: {dataset} has no parts, so it keeps no days; {how}")
    manifest = catalogue.manifest(dataset, whole)
    shards = manifest.parts(label_of(whole.by))
    by_day: defaultdict[date, list[str]] = defaultdict(list)
    for value in shards:
        if day := day_of(value):
            by_day[day].append(value)
    if not by_day:
        raise NotFound(
            f"{name}: no part of {dataset} is of a day, but {some_of(list(shards))}; {how}"
        )
    return _KeptDays(manifest, shards, by_day)


def _chosen(catalogue: VersionFiles, name: str, whole: Version) -> tuple[list[str], Manifest]:
    """Finds the shards of a window's days.

    Returns:
        The values of their label, sorted by day, and the shards.

    Raises:
        NotFound: The dataset keeps no days, or not all of the window's.
        TypeError: The name is not that of a window.
    """
    named = VersionName.parse(name)
    window = named.which
    if not isinstance(window, DayWindow):
        raise TypeError(f"{name} names no window")
    kept = _kept_days(catalogue, name, whole)
    there = sorted(kept.values)
    if why := _lacking(named.dataset, window, there):
        raise NotFound(
            f"{name}: {why}; {named.dataset} has days from {there[0]} to {there[-1]}, and "
            f"{named.dataset}@last:{len(there)} takes all of them"
        )
    days = window.days_of(there)
    values = [value for day in days for value in kept.values[day]]
    shards = (index for value in values for index in kept.shards[value])
    return values, kept.manifest.select(shards)


def _lacking(dataset: str, window: DayWindow, there: Sequence[date]) -> str:
    """Says which days of a window have no images, and how those that have some are named."""
    try:
        window.days_of(there)
    except ValueError as error:
        rest = window.with_gaps(there)
        return f"{error}{f' ({dataset}@{rest} takes the days that have some)' if rest else ''}"
    return ""


def _kept(catalogue: VersionFiles, name: str, noted: str) -> Version | None:
    """Returns a window that was made a short time ago, if all its files are there."""
    try:
        version = Version.from_json(json.loads(storage.read(noted)))
        age = datetime.now(UTC) - datetime.fromisoformat(version.built)
    except (SourceError, ValueError, TypeError, ValidationError):  # it is damaged
        return None
    if age > MADE_AGAIN:
        return None
    uris = catalogue.files(name, version).values()
    return version if all(map_in_order(storage.exists, uris)) else None


def _made(
    catalogue: VersionFiles, name: str, whole: Version, manifest: Manifest, places: list[str]
) -> Version:
    """Adds up shards of a dataset, and stores the files of the sum.

    Args:
        catalogue: Where the shards are.
        name: The window.
        whole: The version of the dataset.
        manifest: The shards.
        places: Gets the url of each object that may name their images, before it is written.

    Returns:
        The version.

    Raises:
        NotFound: None of the images can be read.
        SourceError: Some of the sums are gone.
    """
    dataset, spec, products = VersionName.parse(name).dataset, whole.spec, whole.products
    work = catalogue.partials_uri(dataset, whole)
    levels, folds = plan_folds(manifest, work, spec, products)
    places += [node.uri for level in levels for node in level]
    sums, progress = sum(map(len, levels)) + len(catalogue.spec(spec).layers), listener_around()
    progress(Said(f"{name}: adding up {count_of(len(manifest.heads), 'shard')}"))

    def add_all() -> Composed:
        with stage(progress, Started(sums, sums, unit="sums", step="sums")):
            for level in levels:
                for _ in map_in_order(add_up, level, available_cpus()):
                    progress(StepDone(1))
            return compose(folds, manifest, products, dataset, progress=progress)

    try:
        try:
            composed = add_all()
        except SourceError:
            composed = add_all()  # a build may have removed sums (see `building.runner`)
    except SourceError as error:
        raise SourceError(
            f"{name}: some sums of its days are gone ({error}); a build of {dataset} counts them "
            "again when its source has changed"
        ) from error
    if not composed.images:
        raise NotFound(
            f"{name}: none of {count_of(len(composed.failures), 'candidate')} is an image that "
            f"can be read. First: {composed.failures[0]}"
        )
    files = {
        **composed.files,
        "failures": encode_failures(composed.failures),
        "manifests": manifest.data,
    }
    version = version_of(composed, manifest, spec, products, files)
    for kind, data in files.items():
        places.append(catalogue.uri(kind, spec, name, version.digest_in(kind)))
        storage.replace(places[-1], data)
    return version
