"""Finds what an erasure has to change: which versions have the images, and what names them.

>>> plan = plan_erasure(catalogue, ["s3://bucket/photos/a.jpg"])               # doctest: +SKIP
>>> [affected.kept.name for affected in plan.affected]                         # doctest: +SKIP
['photos', 'photos']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.building.erasure_copies import copies_of
from pipeline.catalogue import Catalogue, Commit, KeptVersion, ObjectSearch, every_version
from pipeline.counting import cells_uri, partial_uri
from pipeline.errors import SourceError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import map_in_order
from pipeline.sources import (
    Entries,
    ImageNames,
    Manifest,
    RewrittenEntries,
    ShardHead,
    listed_rows,
    without_images,
)

LIST_READERS = 4
"""Threads that read lists of images. Each has one of about 100,000 rows in memory."""


@dataclass(frozen=True)
class AffectedVersion:
    """A version that an erasure changes.

    Attributes:
        kept: The version.
        before: Its manifest.
        after: Its manifest without the images.
        lost: Its shards that lose images, as they were.
    """

    kept: KeptVersion
    before: Manifest
    after: Manifest
    lost: tuple[ShardHead, ...]

    @property
    def counted_again(self) -> bool:
        """Whether it has an erased image; otherwise it only shares a list with one."""
        return bool(self.lost)

    @property
    def contents(self) -> set[str]:
        """The contents of the shards that lose images."""
        return {head.content for head in self.lost}

    def holding(self, catalogue: Catalogue) -> Iterator[str]:
        """Yields the urls of the version's objects that hold an erased image, or its sums."""
        version, name = self.kept.version, self.kept.name
        files = catalogue.files(name, version)
        yield from files.values() if self.counted_again else [files["manifests"]]
        work = catalogue.partials_uri(name, version)
        for head in self.lost:
            key = head.key(version.spec, version.products)
            yield from (partial_uri(work, key), cells_uri(work, key))


@dataclass(frozen=True)
class ErasurePlan:
    """What an erasure has to change.

    Attributes:
        head: The newest commit that was looked at.
        names: The images that were named.
        unknown: The names that no list of images has.
        images: The uri and member of each image that was found.
        identities: What tells the contents of these images, where no other image has the same.
        alike: Other images with the identity of one of these.
        copies: Other images whose files are equal to that of one of these, as image hashes tell.
        lists: The entries files that have one of these images.
        looked_at: All entries files that were searched for them.
        versions: The identities of all kept versions.
        affected: Those that have an image, or share a list with one.
        stated: The versions of which the log states that one of the images is their source.
    """

    head: Commit
    names: ImageNames
    unknown: tuple[str, ...]
    images: frozenset[tuple[str, str]]
    identities: frozenset[str]
    alike: tuple[str, ...]
    copies: tuple[str, ...]
    lists: tuple[str, ...]
    looked_at: frozenset[str]
    versions: frozenset[tuple[str, ...]]
    affected: tuple[AffectedVersion, ...]
    stated: tuple[str, ...]

    def still_whole(self, catalogue: Catalogue, newest: Commit) -> bool:
        """Tells whether no version that came meanwhile needs to be changed, too.

        Args:
            catalogue: The catalogue.
            newest: The newest commit.

        Returns:
            Whether the plan holds for that commit, too.
        """
        if newest.number == self.head.number:
            return True
        if newest.erasure != self.head.erasure:
            return False
        files = {
            file
            for kept in every_version(catalogue, newest)
            if kept.identity not in self.versions and not kept.version.imported
            for file in catalogue.manifest(kept.name, kept.version).files
        }
        if files & set(self.lists):
            return False
        entries = Entries(catalogue.entries_uri)
        return not any(
            self.names.among(listed_rows(entries, file)).any()
            for file in sorted(files - self.looked_at)
        )


def begun_state(catalogue: Catalogue) -> Commit:
    """Reads the newest state of a catalogue, in which the first build may still have to commit.

    Args:
        catalogue: The catalogue.

    Returns:
        The newest commit; the empty one if a build has begun and none has committed.

    Raises:
        NotFound: There is no catalogue.
    """
    head = catalogue.head()
    if not head.number:
        try:
            begun = any(True for _ in storage.walk(storage.join(catalogue.root, "_work")))
        except SourceError:
            begun = False
        if not begun:
            return catalogue.at()  # says that there is none
    return head


def plan_erasure(
    catalogue: Catalogue,
    texts: Sequence[str],
    into: Entries | None = None,
    progress: Listener = ignore,
) -> ErasurePlan:
    """Finds the images in the lists of all kept versions, and writes these lists anew.

    Args:
        catalogue: The catalogue.
        texts: The names of the images.
        into: Where the new lists go; None for the catalogue, where nothing refers to them yet.
        progress: Told what is read.

    Returns:
        The plan.

    Raises:
        NotFound: There is no catalogue.
        CorruptFile: A list or a manifest is damaged.
        SourceError: The list of images of a current version is gone.
    """
    head = begun_state(catalogue)
    names, entries = ImageNames.of(texts), Entries(catalogue.entries_uri)
    files = _list_files(catalogue)
    found = _matching(entries, files, names, progress)
    rows = pa.concat_tables(found.values()).to_pylist() if found else []
    images = frozenset((row["uri"], row["member"]) for row in rows)
    own = frozenset(row["identity"] for row in rows if not row["member"] and row["identity"])
    alike = _with_identities(entries, files, own, images) if own else {}
    shared = {identity for identities in alike.values() for identity in identities}
    rewritten = without_images(entries, found, names, into)
    kept = every_version(catalogue, head)
    affected = tuple(_affected(catalogue, head, kept, rewritten, progress))
    holders = [(each.kept, each.before, each.lost) for each in affected if each.counted_again]
    copies = copies_of(catalogue, names, holders, kept, progress)
    return ErasurePlan(
        head,
        names,
        tuple(_unmatched(texts, images)),
        images,
        own - shared,
        tuple(sorted(alike.keys() - {*copies})),
        copies,
        tuple(found),
        frozenset(files),
        frozenset(each.identity for each in kept),
        affected,
        tuple(_of_source(kept, ObjectSearch(names))),
    )


def _of_source(kept: Iterable[KeptVersion], search: ObjectSearch) -> Iterator[str]:
    """Yields the versions whose source is searched for, such as an archive: the log states it."""
    sources: dict[str, bool] = {}
    for each in kept:
        source = each.version.source
        if source not in sources:
            sources[source] = search.is_in(source.encode(), source)
        if sources[source]:
            yield each.numbered_name


def _list_files(catalogue: Catalogue) -> list[str]:
    names = []
    with suppress(SourceError):
        for item in storage.walk(catalogue.entries_uri):
            names.append(item.uri.rpartition("/")[2].removesuffix(".parquet"))
    return [name for name in sorted(names) if len(name) == 64]


def _matching(
    entries: Entries, files: Sequence[str], names: ImageNames, progress: Listener
) -> dict[str, pa.Table]:
    """Returns the rows of the images in each file that has some."""

    def matching(name: str) -> pa.Table:
        rows = _rows_of(entries, name)
        return rows.filter(pa.array(names.among(rows)))

    found = {}
    with stage(progress, Started(len(files), len(files), unit="lists", step="lists")):
        results = map_in_order(matching, files, LIST_READERS)
        for name, rows in zip(files, results, strict=True):
            if rows.num_rows:
                found[name] = rows
            progress(StepDone(1))
    return found


def _rows_of(entries: Entries, name: str) -> pa.Table:
    """Reads a list; none if another erasure or a collection of garbage has just removed it."""
    try:
        return listed_rows(entries, name)
    except SourceError:
        none = pa.array([], pa.string())
        return pa.table({"uri": none, "member": none, "identity": none})


def _with_identities(
    entries: Entries,
    files: Sequence[str],
    identities: frozenset[str],
    images: frozenset[tuple[str, str]],
) -> dict[str, set[str]]:
    """Finds other images that have one of the identities; returns theirs, by their names."""
    wanted = pa.array(sorted(identities), pa.string())
    alike: dict[str, set[str]] = {}

    def same(name: str) -> pa.Table:
        rows = _rows_of(entries, name)
        return rows.filter(pc.is_in(rows["identity"], wanted))

    for rows in map_in_order(same, files, LIST_READERS):
        for row in rows.to_pylist():
            if (row["uri"], row["member"]) not in images:
                place = storage.spelled(row["uri"], row["member"])
                alike.setdefault(place, set()).add(row["identity"])
    return alike


def _unmatched(texts: Sequence[str], images: Set[tuple[str, str]]) -> Iterator[str]:
    """Yields the names that are of none of the images."""
    uris = {uri for uri, _ in images}
    for text in texts:
        names = ImageNames.of([text])
        if uris.isdisjoint(names.objects) and images.isdisjoint(names.members):
            yield text


def _affected(
    catalogue: Catalogue,
    head: Commit,
    kept: Sequence[KeptVersion],
    rewritten: RewrittenEntries,
    progress: Listener,
) -> Iterator[AffectedVersion]:
    """Yields the versions whose manifests point into lists that were written anew."""
    if not rewritten.shards:
        return

    def manifest_of(each: KeptVersion) -> Manifest | None:
        if each.version.imported:
            return None
        try:
            return catalogue.manifest(each.name, each.version)
        except SourceError:
            if each.version == head.datasets.get(each.name, {}).get(each.version.spec):
                raise
            return None  # a collection of garbage has removed the version

    with stage(progress, Started(len(kept), len(kept), unit="versions", step="versions")):
        for each, manifest in zip(kept, map_in_order(manifest_of, kept), strict=True):
            progress(StepDone(1))
            if manifest is not None and rewritten.touches(manifest):
                lost = tuple(rewritten.changed(manifest))
                yield AffectedVersion(each, manifest, rewritten.manifest(manifest), lost)


def still_held(images: Iterable[tuple[str, str]]) -> list[str]:
    """Finds the images that are still where they were. An archive may hold what it once held.

    Args:
        images: The uri and member of each.

    Returns:
        Their names.
    """
    found = sorted(images)
    uris = list(dict.fromkeys(uri for uri, _ in found))  # an archive may have a million of them
    held = dict(zip(uris, map_in_order(storage.exists, uris), strict=True))
    return [storage.spelled(uri, member) for uri, member in found if held[uri]]


def by_shard(after: Manifest, spec: str, products: Sequence[str]) -> Mapping[str, ShardHead]:
    """Returns the shards of a manifest by the keys of their partials."""
    return {head.key(spec, products): head for head in after.heads}


def manifest_of_shards(heads: Iterable[ShardHead], like: Manifest) -> Manifest:
    """Returns a manifest of shards of several versions, to count them together.

    Args:
        heads: The shards.
        like: The manifest of one of the versions.
    """
    numbered = tuple(replace(head, index=at) for at, head in enumerate(heads))
    return replace(like, heads=numbered)
