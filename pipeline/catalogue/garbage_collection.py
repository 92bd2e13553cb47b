"""Removes what no kept version needs, once it is older than a grace period.

    >>> [item.uri for item in garbage(catalogue, keep=1)]                # doctest: +SKIP

This is safe beside running jobs: what a job is about to use is named by its plan, or younger than
the grace period.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, takewhile

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.commit import EMPTY, VERSION_FILES
from pipeline.catalogue.kept_versions import KeptVersion, kept_versions
from pipeline.catalogue.matrix_header import MATRIX_READERS, find_matrix_metadata
from pipeline.catalogue.verification import require_undamaged
from pipeline.catalogue.version_options import RetentionOptions
from pipeline.counting import cells_uri, partial_uri
from pipeline.errors import CorruptFile, SourceError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import Mapper, SerialMapper
from pipeline.sources import Entries, Manifest, walk_widely
from pipeline.storage import Stored

GRACE = timedelta(days=7)

REMOVED_AT_ONCE = 1000
"""How many objects one task looks at once more and then removes together: as many as S3 removes
with one request. It takes about a second, in which a build may write one of them again. So the task
looks for new commits in the end, and builds look for their files after they have committed."""

CHECKERS = 32
"""Threads of a task that look at objects once more before they are removed."""


def garbage(
    catalogue: Catalogue,
    *,
    keep: int | None = None,
    days: float | None = None,
    grace: timedelta = GRACE,
    now: datetime | None = None,
    mapper: Mapper | None = None,
    young: list[Stored] | None = None,
) -> Iterator[Stored]:
    """Finds the objects that no kept version needs. The log, specs and ranges always stay.

    Args:
        catalogue: The catalogue.
        keep: How many versions of each dataset and spec to keep. With neither this nor `days`, all
            are kept.
        days: Versions that were current within so many days are kept, too.
        grace: Younger objects stay.
        now: The time that ages are counted from. None asks the store's own clock, by writing a
            small object there.
        mapper: Where manifests are read; None for this process.
        young: Gets the objects that stay only for now, as they are younger than `grace`, or a
            manifest is that names them.

    Yields:
        Each object to delete.

    Raises:
        UsageError: If `keep` is less than 1, or `days` less than 0.
        CorruptFile: If the log is not whole.
    """
    kept = _KeptVersions(catalogue, RetentionOptions(keep=keep, days=days), now).newest()
    yield from _old(catalogue, kept, grace, now, mapper or SerialMapper(), young)


def _old(
    catalogue: Catalogue,
    kept: Sequence[KeptVersion],
    grace: timedelta,
    now: datetime | None,
    mapper: Mapper,
    young: list[Stored] | None = None,
) -> Iterator[Stored]:
    """Yields the objects that are not needed, and are old enough to be removed.

    Entries may be older than a manifest that needs them. So those of a manifest that stays as it is
    young stay, too; manifests come before entries.
    """
    spared: set[str] = set()
    manifests = storage.join(catalogue.root, "manifests")
    for item in _unneeded(catalogue, kept, mapper):
        now = now or storage.clock(catalogue.root)
        is_old = item.modified is not None and now - item.modified > grace
        if is_old and item.uri not in spared:
            yield item
            continue
        if young is not None:
            young.append(item)
        if not is_old and item.uri.startswith(f"{manifests}/"):
            spared.update(_entries_of(catalogue, item.uri))


def _entries_of(catalogue: Catalogue, uri: str) -> list[str]:
    """Returns the urls of the entries of a manifest; none if it is damaged, or gone by now."""
    entries = Entries(catalogue.entries_uri)
    try:
        manifest = Manifest.decode(storage.read(uri), uri, entries)
    except (CorruptFile, SourceError):
        return []
    return [entries.uri(name) for name in manifest.files]


def collect(
    catalogue: Catalogue,
    *,
    keep: int | None = None,
    days: float | None = None,
    grace: timedelta = GRACE,
    mapper: Mapper | None = None,
    progress: Listener = ignore,
) -> tuple[int, int]:
    """Deletes the garbage, if there is any and all that stays is whole.

    What is garbage may be what a damaged version could be mended with. So every kept version is
    verified before anything is removed.

    Args:
        catalogue: The catalogue.
        keep: As in `garbage`.
        days: As in `garbage`.
        grace: As in `garbage`.
        mapper: Where versions are verified and objects are removed; None for this process.
        progress: Told what is verified and removed.

    Returns:
        The number of objects removed, and of their bytes.

    Raises:
        CorruptFile: If the log or a kept version is not whole. Nothing is removed then.
        UsageError: If `keep` is less than 1, or `days` less than 0.
    """
    mapper = mapper or SerialMapper()
    to_keep = _KeptVersions(catalogue, RetentionOptions(keep=keep, days=days))
    if next(_old(catalogue, to_keep.newest(), grace, None, mapper), None) is None:
        return 0, 0
    verified: set[tuple[str, ...]] = set()
    while new := [kept for kept in to_keep.newest() if kept.identity not in verified]:
        try:
            require_undamaged(catalogue, new, mapper, progress)
        except CorruptFile as error:
            raise CorruptFile(
                f"nothing was removed, because a version is damaged: {error}"
            ) from error
        verified.update(kept.identity for kept in new)
    # What is garbage is looked up once more: a build may have needed some of it meanwhile.
    items = list(_old(catalogue, to_keep.newest(), grace, None, mapper))
    batches = [
        (catalogue.root, to_keep.head, items[i : i + REMOVED_AT_ONCE])
        for i in range(0, len(items), REMOVED_AT_ONCE)
    ]
    removed, size = 0, 0
    with stage(progress, Started(len(items), len(batches), unit="objects", step="batches")):
        for batch in mapper.map(_remove, batches):
            removed += batch.removed
            size += batch.size
            progress(StepDone(batch.objects))
    return removed, size


@dataclass(frozen=True)
class _Batch:
    """What became of objects that were to be removed together.

    Attributes:
        objects: How many there were.
        removed: How many of them were removed.
        size: The bytes of these.
    """

    objects: int
    removed: int
    size: int


def _remove(task: tuple[str, int, Sequence[Stored]]) -> _Batch:
    """Removes objects, as one task.

    Those that were written again since the listing stay, and those that a version needs that was
    committed since.

    Args:
        task: The catalogue's url, the number of the commit that the objects were chosen by, and the
            objects.

    Returns:
        What became of them.
    """
    root, number, items = task
    with ThreadPoolExecutor(CHECKERS, "gc") as pool:
        changed = pool.map(_changed_since_listed, items)
        still = [item for item, other in zip(items, changed, strict=True) if not other]
    if needed := set(_needed_since(Catalogue(root), number)):
        still = [item for item in still if item.uri not in needed]
    storage.delete_all([item.uri for item in still])
    return _Batch(len(items), len(still), sum(item.size for item in still))


def _needed_since(catalogue: Catalogue, number: int) -> Iterator[str]:
    """Yields the urls of the files and partials of versions that were committed after a commit."""
    newest = catalogue.head()
    if newest.number == number:
        return
    before = catalogue.commit(number) if number else EMPTY
    known = {of.identity for of in kept_versions([before])}
    later = takewhile(lambda commit: commit.number > number, catalogue.log(newest))
    for of in kept_versions(later):
        if of.identity not in known:
            yield from needed_by_version((catalogue.root, of, False))  # cells only save time


class _KeptVersions:
    """The versions to keep, for which the whole log is read again only after a new commit.

    Attributes:
        head: Number of the commit that they were found by; -1 before that.
    """

    def __init__(
        self, catalogue: Catalogue, rules: RetentionOptions, now: datetime | None = None
    ) -> None:
        self._catalogue = catalogue
        self._keep, self._since = rules.keep, rules.since(now or datetime.now(UTC))
        self.head = -1
        self._kept: list[KeptVersion] = []

    def newest(self) -> list[KeptVersion]:
        """Finds the versions that are to be kept now."""
        head = self._catalogue.head().number
        if head != self.head:
            self._kept = list(kept_versions(self._catalogue.log(), self._keep, self._since))
            self._catalogue.require_end()
            self.head = head
        return self._kept


def _changed_since_listed(item: Stored) -> bool:
    """Tells whether a build has written the object again while the garbage was listed."""
    if item.uri.endswith(".tmp"):
        return False
    try:
        now = storage.info(item.uri).modified
    except SourceError:
        return True
    # Some stores list fractions of a second that they leave out elsewhere.
    return now is None or item.modified is None or abs(now - item.modified) >= timedelta(seconds=1)


def _unneeded(
    catalogue: Catalogue, kept: Sequence[KeptVersion], mapper: Mapper
) -> Iterator[Stored]:
    """Yields the objects that neither the kept versions nor running builds need, of any age."""
    # What is written after this is not looked at, and so stays.
    work = list(_objects_in(catalogue, "_work"))
    dnas = {(of.version.spec, of.version.dna) for of in kept}
    needed = {
        *_needed_by_versions(catalogue, kept, mapper),
        *_needed_by_builds(catalogue, (item.uri for item in work)),
        *(catalogue.fold_points_uri(spec, dna) for spec, dna in dnas),
        *(catalogue.coarse_curves_uri(spec, dna) for spec, dna in dnas),
        *(catalogue.outliers_uri(spec, dna) for spec, dna in dnas),
    }
    folders = (_objects_in(catalogue, folder) for folder in (*VERSION_FILES, "entries"))
    for item in chain(*folders, work):
        if item.uri not in needed:
            yield item
    yield from _needless_matrices(catalogue, dnas)
    yield from storage.leftovers(catalogue.root)


def _objects_in(catalogue: Catalogue, folder: str) -> Iterator[Stored]:
    """Yields the objects of a folder of the catalogue, if there is one."""
    with contextlib.suppress(SourceError):
        yield from walk_widely(storage.join(catalogue.root, folder))


def _needed_by_versions(
    catalogue: Catalogue, kept: Iterable[KeptVersion], mapper: Mapper
) -> Iterator[str]:
    """Yields the urls of the kept versions' files and partials."""
    current = catalogue.head().datasets
    tasks = [
        (catalogue.root, of, of.version == current.get(of.name, {}).get(of.version.spec))
        for of in kept
    ]
    for uris in mapper.map(needed_by_version, tasks):
        yield from uris


def needed_by_version(task: tuple[str, KeptVersion, bool]) -> list[str]:
    """Returns the urls of a version's files and partials, as one task.

    Args:
        task: The catalogue's url, the version, and whether it is a current one.

    Raises:
        SourceError: A current version has no manifest.
    """
    root, of, is_current = task
    catalogue, name, version = Catalogue(root), of.name, of.version
    uris = list(catalogue.files(name, version).values())
    if version.imported:
        return uris
    try:
        manifest = catalogue.manifest(name, version)
    except SourceError:
        if is_current:
            raise
        return uris  # an old version, removed by an earlier collection
    work = catalogue.partials_uri(name, version)
    keys = manifest.keys(version.spec, version.products)
    return [
        *uris,
        *map(manifest.entries.uri, manifest.files),
        *(partial_uri(work, key) for key in keys),
        # The next build looks for cells in those of the current version only.
        *(cells_uri(work, key) for key in keys if is_current),
    ]


def _needed_by_builds(catalogue: Catalogue, work_uris: Iterable[str]) -> Iterator[str]:
    """Yields what builds need that have begun and not committed: plans, manifests, partials.

    Args:
        catalogue: The catalogue.
        work_uris: The objects of all builds.

    Yields:
        The url of each object that is needed.
    """
    for plan in noted_plans(catalogue, work_uris):
        yield plan.uri
        yield from plan.needed(catalogue)


@dataclass(frozen=True)
class NotedPlan:
    """The plan that a build of a dataset has noted last.

    Attributes:
        uri: Where the note is.
        dataset: The dataset.
        spec: The digest of its spec.
        manifest: The manifest; None if it is gone. While a build lists its source and counts it,
            that is the plan before, and None if there is none.
        products: What the build keeps beside the histograms.
        ahead: Whether the build counts by plans of some shards, and still lists.
    """

    uri: str
    dataset: str
    spec: str
    manifest: Manifest | None
    products: tuple[str, ...]
    ahead: bool = False

    def needed(self, catalogue: Catalogue) -> Iterator[str]:
        """Yields the urls of what the build has stored so far, and of what it will store."""
        if self.manifest is None:
            return
        yield catalogue.uri("manifests", self.spec, self.dataset, self.manifest.digest)
        yield from map(self.manifest.entries.uri, self.manifest.files)
        work = self.uri.removesuffix("/_plan")
        for key in self.manifest.keys(self.spec, self.products):
            yield partial_uri(work, key)
            yield cells_uri(work, key)

    def counted_ahead(self, catalogue: Catalogue) -> Iterator[tuple[str, Manifest]]:
        """Finds the shards that a build has counted while it listed its source, or is about to.

        Such a build has noted that it counts ahead. It stores a manifest of some shards before it
        counts them. Manifests of versions lie beside these, and are not told apart.

        Args:
            catalogue: Where the build is.

        Yields:
            The url of each such manifest, and the manifest. None if the whole plan is noted.
        """
        if not self.ahead:
            return
        noted = "" if self.manifest is None else self.manifest.digest
        whole = catalogue.uri("manifests", self.spec, self.dataset, noted)
        folder = whole.rpartition("/")[0]
        with contextlib.suppress(SourceError):  # there is no such folder
            for item in storage.walk(folder):
                # Others are of a dataset below it.
                if item.uri.rpartition("/")[0] == folder and item.uri != whole:
                    entries = Entries(catalogue.entries_uri)
                    with contextlib.suppress(CorruptFile, SourceError):  # it was just removed
                        data = storage.read(item.uri)
                        yield item.uri, Manifest.decode(data, item.uri, entries)


def noted_plans(catalogue: Catalogue, work_uris: Iterable[str]) -> Iterator[NotedPlan]:
    """Finds the plans of all builds that have begun, committed or not.

    Args:
        catalogue: The catalogue.
        work_uris: The objects of all builds.

    Yields:
        The last plan of each dataset and spec.

    Raises:
        CorruptFile: A manifest is not the one that a plan names.
    """
    for uri in work_uris:
        if uri.endswith("/_plan"):
            work = uri.removesuffix("/_plan")
            dataset, _, spec = work.removeprefix(f"{catalogue.root}/_work/").rpartition("/")
            if (planned := catalogue.planned(dataset, spec)) is not None:
                ahead = catalogue.counts_ahead(dataset, spec)
                yield NotedPlan(uri, dataset, spec, *planned, ahead)
            else:
                products = catalogue.planned_products(dataset, spec) or ()
                yield NotedPlan(uri, dataset, spec, None, products, ahead=True)


def _needless_matrices(catalogue: Catalogue, kept: Set[tuple[str, str]]) -> Iterator[Stored]:
    """Finds the kept matrices that no comparison will take a number from any more.

    A matrix with DNAs that are gone stays as long as no other one of its kind has all pairs of
    its DNAs that are left, because the next comparison takes them from it.

    Args:
        catalogue: The catalogue.
        kept: The DNAs that stay, each as the digests of its spec and of itself.

    Yields:
        Each matrix to delete.
    """
    try:
        there = list(storage.walk(storage.join(catalogue.root, "matrix")))
    except SourceError:
        return
    there.sort(key=lambda item: (item.modified is None, item.modified), reverse=True)
    with ThreadPoolExecutor(MATRIX_READERS) as pool:
        stated = pool.map(find_matrix_metadata, (item.uri for item in there))
    found = []
    for item, metadata in zip(there, stated, strict=True):
        if metadata is None:  # torn: the next comparison of these datasets replaces it
            continue
        spec, members = metadata["spec_digest"], set(metadata["members"].values())
        live = {dna for dna in members if (spec, dna) in kept}
        name = item.uri.rpartition("/")[2]
        kind = (name, metadata["method"])
        found.append((live != members, live, kind, item))
    staying: dict[tuple[object, ...], list[set[str]]] = {}
    for outdated, live, kind, item in sorted(found, key=lambda of: (of[0], -len(of[1]))):
        others = staying.setdefault(kind, [])
        if outdated and (len(live) < 2 or any(live <= other for other in others)):
            yield item
        else:
            others.append(live)
