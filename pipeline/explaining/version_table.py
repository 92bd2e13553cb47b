"""Lists the versions of a dataset: what changed from one to the next, and how far that moved it.

>>> for row in list_versions(catalogue, "photos"):                   # doctest: +SKIP
...     print(row.commit, row.changes, row.movement)
9 +21 -3 ~2 =118 0.031
4 None None
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite

from pipeline import storage
from pipeline.catalogue import (
    Catalogue,
    PastVersion,
    dataset_of,
    past_versions,
    require_no_window,
)
from pipeline.comparing import Effort, Matrix, compare
from pipeline.errors import NotFound, SourceError
from pipeline.sources import ImageChanges, ManifestDifference

VERSIONS_LISTED = 10
"""How many versions are listed by default."""


@dataclass(frozen=True)
class VersionRow:
    """One version of a dataset, and how it differs from others. None stands for what is not known.

    Attributes:
        commit: Number of the commit that made it.
        time: When that was, as an ISO time in UTC.
        dna: Digest of its DNA.
        images: Number of images that were counted.
        failed: Number of images that could not be read.
        changes: How its images differ from those of the version before.
        movement: Its Earth Mover's Distance from the version before, in bins: the mean over all
            neurons. It is not corrected for the sizes of the samples.
        drift: The same from the oldest version that is listed and has its files.
        tags: Its tags.
        kept: Whether its files are there, as far as `gc` has not removed them.
    """

    commit: int
    time: str
    dna: str
    images: int
    failed: int
    changes: ImageChanges | None
    movement: float | None
    drift: float | None
    tags: tuple[str, ...]
    kept: bool


def list_versions(
    catalogue: Catalogue,
    name: str,
    *,
    spec: str | None = None,
    limit: int = VERSIONS_LISTED,
    effort: Effort | None = None,
) -> list[VersionRow]:
    """Lists versions of a dataset, the newest first.

    The distances are those of `compare`, which keeps them in the catalogue.

    Args:
        catalogue: The catalogue.
        name: The dataset; or the name of a version, to begin with that one.
        spec: The beginning of the spec's digest, as `Catalogue.find` takes it.
        limit: How many versions to list.
        effort: How to compare.

    Returns:
        The versions. One that came back is listed again.

    Raises:
        NotFound: If there is no such dataset or version.
        CorruptFile: If a file is damaged.
    """
    named = catalogue.resolve(require_no_window(name), spec=spec)
    dataset, digest = dataset_of(name), named.version.spec
    commits = catalogue.log(catalogue.commit(named.commit))
    past = list(islice(past_versions(commits, dataset, digest), limit + 1))
    kept = [is_kept(catalogue, dataset, of) for of in past]
    tags = tags_of(catalogue, dataset, past)
    present = [f"{dataset}@{of.commit}" for of, there in zip(past, kept, strict=True) if there]
    matrix = None
    if len(present) > 1:
        matrix = compare(catalogue, present, spec=digest, error_bars=False, effort=effort)
    listed = list(zip(past, kept, strict=True))[:limit]
    oldest = next((of for of, there in reversed(listed) if there), None)
    rows = []
    for at, of in enumerate(past[:limit]):
        before = past[at + 1] if at + 1 < len(past) else None
        rows.append(
            VersionRow(
                of.commit,
                of.time,
                of.version.dna,
                of.version.images,
                of.version.failed,
                image_changes(catalogue, dataset, before, of),
                _distance(matrix, dataset, before, of),
                _distance(matrix, dataset, oldest, of),
                tags[at],
                kept[at],
            )
        )
    return rows


def is_kept(catalogue: Catalogue, dataset: str, of: PastVersion) -> bool:
    """Tells whether the DNA of a version is there, as far as `gc` has not removed it."""
    version = of.version
    return storage.exists(catalogue.uri("dna", version.spec, dataset, version.dna))


def tags_of(
    catalogue: Catalogue, dataset: str, past: Sequence[PastVersion]
) -> list[tuple[str, ...]]:
    """Finds the tags of versions. A part has the tags of the dataset that it was a part of.

    Args:
        catalogue: The catalogue.
        dataset: The dataset, or the part.
        past: Versions of it.

    Returns:
        The tags of each version, sorted.
    """
    known = catalogue.head().tags
    found = []
    for of in past:
        tags = {**known.get(of.version.part_of, {}), **known.get(dataset, {})}
        found.append(tuple(sorted(tag for tag, at in tags.items() if of.commit <= at <= of.last)))
    return found


def image_changes(
    catalogue: Catalogue, dataset: str, before: PastVersion | None, of: PastVersion
) -> ImageChanges | None:
    """Counts the images that differ; None if a version was imported, or its files are gone."""
    if before is None:
        return None
    try:
        pair = [catalogue.manifest(dataset, each.version) for each in (before, of)]
        with ManifestDifference(*pair) as found:
            return found.counts
    except (NotFound, SourceError):
        return None


def _distance(
    matrix: Matrix | None, dataset: str, a: PastVersion | None, b: PastVersion
) -> float | None:
    """Takes the distance of two versions from the matrix; None if it does not have both."""
    if matrix is None or a is None:
        return None
    names = [f"{dataset}@{of.commit}" for of in (a, b)]
    if not set(names) <= set(matrix.names):
        return None
    distance = float(matrix.of()[matrix.names.index(names[0]), matrix.names.index(names[1])])
    return distance if isfinite(distance) else None
