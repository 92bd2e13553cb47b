"""Finds which images two manifests have that the other one has not, or has with another content.

    >>> with ManifestDifference(before, after) as found:               # doctest: +SKIP
    ...     print(found.counts)
    +21 -3 ~2 =118

Shards with the same members are not read. The members of the others are joined in bounded memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.sources.database import connect
from pipeline.sources.entry import ShardHead
from pipeline.sources.manifest import Manifest

TOLD_APART_BY = ("uri", "member", "size", "identity")
"""What is compared of an image: its name, and what tells its content."""

DIFFERENCE_SCHEMA = pa.schema(
    [("change", pa.string()), ("uri", pa.string()), ("member", pa.string())]
)
"""The columns of a difference: `added`, `removed` or `changed`, and the image's name."""

DIFFERENCE_ROWS = 65_536

_JOIN = """
create table difference as
select case when b.uri is null then 'added' when a.uri is null then 'removed'
            when a.identity <> b.identity or a.size <> b.size then 'changed' else 'equal'
       end change, coalesce(a.uri, b.uri) uri, coalesce(a.member, b.member) member
from before_rows b full join after_rows a on a.uri = b.uri and a.member = b.member
"""


@dataclass(frozen=True)
class ImageChanges:
    """How the images of a version differ from those of another one, the former.

    Attributes:
        added: Images that the former has not.
        removed: Images that only the former has.
        changed: Images of one name whose content differs, as its identity or size tells.
        equal: Images that both have.
    """

    added: int
    removed: int
    changed: int
    equal: int

    def __str__(self) -> str:
        return f"+{self.added:,} -{self.removed:,} ~{self.changed:,} ={self.equal:,}"

    @property
    def some(self) -> bool:
        """Whether an image was added, removed or changed."""
        return self.added + self.removed + self.changed > 0


@dataclass(frozen=True)
class KnownDifference:
    """How a plan differs from an earlier one, as is known from the making of it.

    Attributes:
        former: The digest of the earlier plan.
        images: How their images differ.
    """

    former: str
    images: ImageChanges


class ManifestDifference:
    """The images in which two manifests differ, in a database of temporary files.

    Entering the `with` block joins the manifests; leaving it removes the database.

    Attributes:
        counts: How many images differ, and how many do not.
    """

    counts: ImageChanges

    def __init__(self, before: Manifest, after: Manifest) -> None:
        self._before = before
        self._after = after
        self._stack = ExitStack()
        self._db: duckdb.DuckDBPyConnection

    def __enter__(self) -> ManifestDifference:
        """Joins the manifests.

        Returns:
            Itself.

        Raises:
            CorruptFile: An entries file is damaged.
            SourceError: An entries file is missing.
            StorageError: The disk for temporary files has no room.
        """
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(storage.ScratchFolder("diff"))
                self._db = stack.enter_context(connect(folder))
                self.counts = self._joined()
            except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
                raise StorageError(
                    f"two manifests cannot be joined in {tempfile.gettempdir()}: {error}; set "
                    "TMPDIR to a disk with more room"
                ) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def first(self, change: str, most: int) -> list[tuple[str, str]]:
        """Returns the first images that differ in one way.

        Args:
            change: `added`, `removed` or `changed`.
            most: The most images to return.

        Returns:
            The uri and member of each, in the order of their names.
        """
        query = "select uri, member from difference where change = ? order by uri, member limit ?"
        return [
            (str(uri), str(member))
            for uri, member in self._db.execute(query, [change, most]).fetchall()
        ]

    def removed_of(self, images: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Finds which of some images only the manifest before has.

        Args:
            images: The uri and member of each.

        Returns:
            Those that were removed.
        """
        uris, members = ([image[at] for image in images] for at in (0, 1))
        named = pa.table({"uri": uris, "member": members}, DIFFERENCE_SCHEMA.remove(0))
        self._db.register("named", named)
        found = self._db.execute(
            "select n.uri, n.member from named n join difference d using (uri, member) "
            "where d.change = 'removed'"
        ).fetchall()
        self._db.unregister("named")
        return {(str(uri), str(member)) for uri, member in found}

    def tables(self) -> Iterator[pa.Table]:
        """Yields all images that differ, with the columns `DIFFERENCE_SCHEMA`, sorted by them."""
        query = "select * from difference order by change, uri, member"
        for batch in self._db.sql(query).to_arrow_reader(DIFFERENCE_ROWS):
            yield pa.Table.from_batches([batch]).cast(DIFFERENCE_SCHEMA)

    def _joined(self) -> ImageChanges:
        """Fills the table `difference`."""
        before = {head.digest: head for head in self._before.heads}
        after = {head.digest: head for head in self._after.heads}
        equal = sum(after[digest].candidates for digest in after.keys() & before.keys())
        self._load("before_rows", self._before, [before[d] for d in before.keys() - after.keys()])
        self._load("after_rows", self._after, [after[d] for d in after.keys() - before.keys()])
        self._db.execute(_JOIN)
        count = "select change, count(*) from difference group by change"
        found = dict(self._db.execute(count).fetchall())
        self._db.execute("delete from difference where change = 'equal'")
        added, removed, changed = (found.get(of, 0) for of in ("added", "removed", "changed"))
        return ImageChanges(added, removed, changed, equal + found.get("equal", 0))

    def _load(self, name: str, manifest: Manifest, heads: list[ShardHead]) -> None:
        """Fills a table with the members of some shards."""
        self._db.execute(
            f"create table {name} (uri varchar, member varchar, size bigint, identity varchar)"
        )
        for _, rows in manifest.select(head.index for head in heads).tables():
            self._db.register("some_rows", rows.select(TOLD_APART_BY))
            self._db.execute(f"insert into {name} select * from some_rows")
            self._db.unregister("some_rows")
