"""Takes images out of the lists of manifests, for an erasure.

    >>> names = ImageNames.of(["s3://bucket/photos/a.jpg", "s3://bucket/b.tar::c.jpg"])
    >>> rewritten = without_images(entries, files, names)                      # doctest: +SKIP
    >>> rewritten.manifest(manifest).candidates                                # doctest: +SKIP

Several versions share the files that list their images. So a file with an erased image is written
anew once, and the manifests of all versions that point into it are, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dna import SealedFile, corrupt_if_unreadable
from pipeline.errors import UsageError
from pipeline.sources.cell_joining import cells_left, cut_size, origins_of, stated
from pipeline.sources.entries_file import (
    ENTRIES,
    Entries,
    EntriesWriter,
    describe_shard,
    label_names,
)
from pipeline.sources.entry import MERGED, ShardHead
from pipeline.sources.manifest import Manifest

MEMBER_MARK = "::"
"""What stands between the name of an archive and that of an image in it."""


@dataclass(frozen=True)
class ImageNames:
    """The names of images.

    Attributes:
        objects: Uris of images; or of archives, for all that is in them.
        members: The uri of an archive and the name of an image in it, each.
    """

    objects: frozenset[str]
    members: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """Reads names as people write them.

        Args:
            names: Paths or urls of images; `ARCHIVE::MEMBER` for an image in an archive.

        Returns:
            The images that they name.
        """
        objects, members = set(), set()
        for name in names:
            objects.add(_uri(name))
            at = name.find(MEMBER_MARK)
            while at > 0:  # a name may hold the mark itself
                members.add((_uri(name[:at]), name[at + len(MEMBER_MARK) :]))
                at = name.find(MEMBER_MARK, at + 1)
        return cls(frozenset(objects), frozenset(members))

    def among(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Tells which candidates are named.

        Args:
            rows: The candidates, with the columns `uri` and `member`.

        Returns:
            (N,) whether each one is.
        """
        found: NDArray[np.bool_] = pc.is_in(
            rows["uri"], pa.array(sorted(self.objects), pa.string())
        ).to_numpy()
        if self.members:
            archives = pa.array(sorted({uri for uri, _ in self.members}), pa.string())
            inside = np.flatnonzero(pc.is_in(rows["uri"], archives).to_numpy())
            some = rows.select(["uri", "member"]).take(inside).to_pylist()
            named = [(row["uri"], row["member"]) in self.members for row in some]
            found = found.copy()
            found[inside] |= np.array(named, bool)
        return found


def _uri(name: str) -> str:
    try:
        return storage.canonical(name)
    except UsageError:  # the name of an image may have a query that was allowed
        return name


def listed_rows(entries: Entries, name: str) -> pa.Table:
    """Reads all candidates of a file, with the columns that name them.

    Args:
        entries: Where the files are.
        name: The name of the file.

    Returns:
        The rows, with the columns `uri`, `member` and `identity`.

    Raises:
        CorruptFile: The file is damaged.
    """
    return _open(entries, name).read().select(["uri", "member", "identity"])


def _open(entries: Entries, name: str) -> SealedFile:
    return SealedFile(entries.read(name), ENTRIES, entries.uri(name))


@dataclass(frozen=True)
class _Rewritten:
    """One shard of a file that was written anew.

    Attributes:
        head: Describes what is left of it, with its new place; None if nothing is left.
        places: (N,) where its members were that are left.
        whole: Whether all are left.
    """

    head: ShardHead | None
    places: NDArray[np.int32]
    whole: bool


@dataclass(frozen=True)
class RewrittenEntries:
    """Files that list images, written anew without the erased ones.

    Attributes:
        shards: What became of each shard, by the name of its file and the number of its row group.
    """

    shards: Mapping[tuple[str, int], _Rewritten]

    def touches(self, manifest: Manifest) -> bool:
        """Tells whether a manifest points into a file that was written anew."""
        return any(self._of(head) is not None for head in manifest.heads)

    def changed(self, manifest: Manifest) -> list[ShardHead]:
        """Returns the shards of a manifest that have lost members, as they were."""
        return [
            head
            for head in manifest.heads
            if (found := self._of(head)) is not None and not found.whole
        ]

    def manifest(self, manifest: Manifest) -> Manifest:
        """Returns a manifest without the erased images, in files that do not name them.

        Args:
            manifest: The manifest as it was.

        Returns:
            The new one. Each shard that has lost members states what it was, so that its worker
            finds the sums of its other cells.
        """
        heads: list[ShardHead] = []
        for head in manifest.heads:
            found, now = self._of(head), head
            if found is not None:
                if found.head is None:
                    continue
                now = replace(head, address=found.head.address)
                if not found.whole:
                    cells, runs = stated(cells_left(head, found.places))
                    now = replace(
                        found.head,
                        fold=head.fold,
                        cells=cells,
                        origins=origins_of(head),
                        runs=runs,
                        cell_images=cut_size(head),
                    )
            heads.append(replace(now, index=len(heads)))
        return replace(manifest, heads=tuple(heads))

    def _of(self, head: ShardHead) -> _Rewritten | None:
        return self.shards.get((head.address.file, head.address.row_group))


def without_images(
    entries: Entries, files: Iterable[str], names: ImageNames, into: Entries | None = None
) -> RewrittenEntries:
    """Writes files that list images anew, without some images.

    Args:
        entries: Where the files are. The old ones stay.
        files: The names of the files.
        names: The images.
        into: Where the new files go; None for where the old ones are.

    Returns:
        What became of the shards of these files.

    Raises:
        CorruptFile: A file is damaged.
    """
    shards: dict[tuple[str, int], _Rewritten] = {}
    for name in files:
        file = _open(entries, name)
        file.check()
        with corrupt_if_unreadable(f"{file.name}: cannot be read"):
            labels = label_names(file.parquet.schema_arrow.names)
        placed: list[ShardHead] = []
        with EntriesWriter(into or entries, labels) as writer:
            for at in range(len(file.row_groups)):
                rows = file.parquet.read_row_group(at).select(writer.schema.names)
                left = np.flatnonzero(~names.among(rows)).astype(np.int32)
                shards[name, at] = _Rewritten(None, left, len(left) == rows.num_rows)
                if len(left):
                    rows = rows.take(left).cast(writer.schema)
                    placed += writer.add(describe_shard(at, 0, rows), rows)
            placed += writer.end_file()
        for head in placed:
            shards[name, head.index] = replace(shards[name, head.index], head=head)
    return RewrittenEntries(shards)


def without_origins(manifest: Manifest, contents: Collection[str]) -> Manifest:
    """Returns a manifest whose shards do not state that they were once some other shards.

    Args:
        manifest: The manifest.
        contents: The contents of the other shards.
    """
    heads = [replace(head, origins=_left(head.origins, contents)) for head in manifest.heads]
    return replace(manifest, heads=tuple(heads))


def _left(origins: tuple[str, ...], contents: Collection[str]) -> tuple[str, ...]:
    """Leaves out origins. One that was put together and has changed must not look as before."""
    left = tuple(origin for origin in origins if origin not in contents)
    return left if left == origins or left[:1] != (MERGED,) else ()
