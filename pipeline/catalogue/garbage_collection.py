"""Removes what no kept version needs, once it is older than a grace period.

    >>> [item.uri for item in garbage(catalogue, keep=1)]                # doctest: +SKIP

Safe beside running jobs: what a job is about to use is either named by its plan, or younger than
the grace period.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.commit import KINDS, Commit, Version
from pipeline.catalogue.matrix_files import needless_matrices
from pipeline.counting import partial_uri
from pipeline.errors import SourceError, UsageError
from pipeline.spec import LAYER_GAUSSIAN, PRODUCTS
from pipeline.storage import Stored

GRACE = timedelta(days=7)


def garbage(
    catalogue: Catalogue,
    *,
    keep: int | None = None,
    grace: timedelta = GRACE,
    now: datetime | None = None,
) -> Iterator[Stored]:
    """Objects to delete. `keep`: versions of each (dataset, spec) to keep; all that were for None.

    The log, specs and ranges are never among them. Ages are by the clock of the store,
    which a small object is put there to ask (and `now` spares).
    """
    if keep is not None and keep < 1:
        raise UsageError(f"keep is {keep}; at least the newest version is kept")
    kept = _kept(catalogue, keep)
    for item in _unneeded(catalogue, kept):
        now = now or storage.clock(catalogue.root)
        if _older(item, grace, now):
            yield item


def _unneeded(catalogue: Catalogue, kept: Mapping[str, Sequence[Version]]) -> Iterator[Stored]:
    needed = _needed(catalogue, kept)
    for folder in (*KINDS, "_work"):
        with contextlib.suppress(SourceError):
            for item in storage.walk(storage.join(catalogue.root, folder)):
                if item.uri not in needed:
                    yield item
    dnas = {(version.spec, version.dna) for versions in kept.values() for version in versions}
    yield from needless_matrices(catalogue, dnas)
    yield from storage.leftovers(catalogue.root)


def _older(item: Stored, grace: timedelta, now: datetime) -> bool:
    return item.modified is not None and now - item.modified > grace


def _needed(catalogue: Catalogue, kept: Mapping[str, Sequence[Version]]) -> set[str]:
    needed: set[str] = set()
    current = catalogue.head().datasets
    for name, versions in kept.items():
        for version in versions:
            for kind in version.sha256:
                needed.add(catalogue.uri(kind, version.spec, name, version.digest_in(kind)))
            if version.imported:
                continue
            uri = catalogue.uri("manifests", version.spec, name, version.manifest)
            if version != current.get(name, {}).get(version.spec) and not storage.exists(uri):
                continue  # an old version, removed by an earlier collection
            manifest = catalogue.manifest(name, version)
            work = catalogue.partials_uri(name, version)
            keys = manifest.keys(version.spec, version.products)
            needed.update(partial_uri(work, key) for key in keys)
    return needed | set(_planned(catalogue))


def _kept(catalogue: Catalogue, keep: int | None) -> dict[str, list[Version]]:
    """The newest `keep` versions of each dataset and spec, over the whole log; with their parts."""
    seen: dict[tuple[str, str], list[Version]] = {}

    def known(name: str, version: Version) -> bool:
        there = seen.setdefault((name, version.spec), [])
        return (version.dna, version.by) in {(of.dna, of.by) for of in there}

    for commit in catalogue.log():
        for name, spec, version in _wholes_first(commit):
            versions = seen.setdefault((name, spec), [])
            if version.part_of:
                whole = commit.datasets.get(version.part_of, {}).get(spec)
                wanted = whole is None or known(version.part_of, whole)
            else:
                wanted = keep is None or len(versions) < keep
            if wanted and not known(name, version):
                versions.append(version)
    kept: dict[str, list[Version]] = {}
    for (name, _), versions in seen.items():
        kept.setdefault(name, []).extend(versions)
    return kept


def _wholes_first(commit: Commit) -> Iterator[tuple[str, str, Version]]:
    versions = [(n, s, v) for n, specs in commit.datasets.items() for s, v in specs.items()]
    yield from sorted(versions, key=lambda of: bool(of[2].part_of))


def _planned(catalogue: Catalogue) -> Iterator[str]:
    """What a build that has begun and not committed will use: its plan, and the partials of it."""
    try:
        hints = [
            item
            for item in storage.walk(storage.join(catalogue.root, "_work"))
            if item.uri.endswith("/_plan")
        ]
    except SourceError:
        return
    for hint in hints:
        work = hint.uri.removesuffix("/_plan")
        dataset, _, spec = work.removeprefix(f"{catalogue.root}/_work/").rpartition("/")
        yield hint.uri
        planned = catalogue.planned(dataset, spec)
        if planned is not None:
            manifest, stated = planned
            yield catalogue.uri("manifests", spec, dataset, manifest.digest)
            for products in [stated] if stated else (PRODUCTS, (*PRODUCTS, LAYER_GAUSSIAN)):
                yield from (partial_uri(work, key) for key in manifest.keys(spec, products))


def collect(
    catalogue: Catalogue, *, keep: int | None = None, grace: timedelta = GRACE
) -> tuple[int, int]:
    """Delete the garbage; (objects, bytes) removed."""
    count = size = 0
    for item in list(garbage(catalogue, keep=keep, grace=grace)):
        if _written_since(item):
            continue
        storage.delete(item.uri)
        count += 1
        size += item.size
    return count, size


def _written_since(item: Stored) -> bool:
    """Whether a build has taken the object up again while the garbage was listed."""
    if item.uri.endswith(".tmp"):
        return False
    try:
        now = storage.info(item.uri).modified
    except SourceError:
        return True
    # Some stores list fractions of a second that they leave out elsewhere.
    return now is None or item.modified is None or abs(now - item.modified) >= timedelta(seconds=1)
