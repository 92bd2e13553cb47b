"""Adds up the parts of a dataset that are of some days: the version that a window of days names.

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
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta

from pydantic import ValidationError

from pipeline import storage
from pipeline.catalogue.changes import parts_of
from pipeline.catalogue.commit import Commit, Version, canonical_json
from pipeline.catalogue.composed_version import version_of
from pipeline.catalogue.day_windows import DayWindow, day_of
from pipeline.catalogue.version_files import VersionFiles
from pipeline.catalogue.version_names import VersionName
from pipeline.counting import add_up, compose, plan_folds
from pipeline.dna import encode_failures
from pipeline.errors import NotFound, SourceError
from pipeline.mapper import map_in_order
from pipeline.sources import Manifest
from pipeline.spec import available_cpus, digest_of
from pipeline.wording import option, some_of

MADE_AGAIN = timedelta(days=3)
"""A window is made again after this time, so that no collection of garbage takes its files while
they are read."""

Part = tuple[str, Version]
"""The name of a part, and its version."""


def window_version(catalogue: VersionFiles, name: str, spec: str, commit: Commit) -> Version:
    """Adds up the parts of a window's days, unless that was done before.

    Args:
        catalogue: The catalogue.
        name: The name of the window, such as `cams@last:7d`.
        spec: The digest of the dataset's spec.
        commit: The state whose parts are taken.

    Returns:
        The version. It is a pure function of the parts.

    Raises:
        NotFound: The dataset keeps no days, or not all of the window's.
        SourceError: Some of the sums are gone.
        CorruptFile: Some are damaged.
    """
    parts = _chosen(name, spec, commit)
    stated = [[version.manifest, list(version.products)] for _, version in parts]
    dataset = VersionName.parse(name).dataset
    noted = catalogue.window_uri(dataset, spec, digest_of("window", stated))
    if kept := _kept(catalogue, name, noted):
        return kept
    made = _made(catalogue, name, parts)
    storage.replace(noted, canonical_json(asdict(made)))
    return made


def _chosen(name: str, spec: str, commit: Commit) -> list[Part]:
    """Finds the parts of a window's days, sorted by day and name."""
    named = VersionName.parse(name)
    if not isinstance(named.which, DayWindow):
        raise TypeError(f"{name} names no window")
    parts = parts_of(commit, named.dataset, spec)
    by = option("by", 1)
    how = f"build it with {by}, or by as many folders as name a day (day=2026-11-24/)"
    if not parts:
        raise NotFound(f"{name}: {named.dataset} has no parts, so it keeps no days; {how}")
    by_day: defaultdict[date, list[Part]] = defaultdict(list)
    for part in sorted(parts.items()):
        if day := day_of(part[1].value):
            by_day[day].append(part)
    if not by_day:
        values = some_of(sorted(part.value for part in parts.values()))
        raise NotFound(f"{name}: no part of {named.dataset} is of a day, but {values}; {how}")
    there = sorted(by_day)
    try:
        days = named.which.days_of(there)
    except ValueError as error:
        raise NotFound(
            f"{name}: {error}; {named.dataset} has days from {there[0]} to {there[-1]}, and "
            f"{named.dataset}@last:{len(there)} takes the newest {len(there)} that have images"
        ) from error
    return [part for day in days for part in by_day[day]]


def _kept(catalogue: VersionFiles, name: str, noted: str) -> Version | None:
    """Returns a window that was made a short time ago, if all its files are there."""
    try:
        version = Version.from_json(json.loads(storage.read(noted)))
    except (SourceError, ValueError, ValidationError):
        return None
    if datetime.now(UTC) - datetime.fromisoformat(version.built) > MADE_AGAIN:
        return None
    uris = (
        catalogue.uri(kind, version.spec, name, version.digest_in(kind)) for kind in version.sha256
    )
    return version if all(map_in_order(storage.exists, uris)) else None


def _made(catalogue: VersionFiles, name: str, parts: list[Part]) -> Version:
    """Adds up parts, and stores the files of the sum."""
    dataset, (first_name, first) = VersionName.parse(name).dataset, parts[0]
    spec, products = first.spec, first.products
    manifest = Manifest.joined(list(map_in_order(lambda of: catalogue.manifest(*of), parts)))
    work = catalogue.partials_uri(first_name, first)
    levels, folds = plan_folds(manifest, work, spec, products)
    try:
        for level in levels:
            for _ in map_in_order(add_up, level, available_cpus()):
                pass
        composed = compose(folds, manifest, products, dataset)
    except SourceError as error:
        raise SourceError(
            f"{name}: some sums of its days are gone ({error}); a build of {dataset} counts them "
            "again when its source has changed"
        ) from error
    files = {
        **composed.files,
        "failures": encode_failures(composed.failures),
        "manifests": manifest.data,
    }
    version = version_of(composed, manifest, spec, products, files)
    for kind, data in files.items():
        storage.replace(catalogue.uri(kind, spec, name, version.digest_in(kind)), data)
    values = [parts[0][1].value, parts[-1][1].value]
    value = " … ".join(dict.fromkeys(values))
    return replace(version, by=first.by, part_of=dataset, value=value)
