"""Defines the units of a plan: a candidate image (`Entry`) and a group of them (`Shard`).

    >>> Entry("s3://bucket/a.tar", "cat.jpg", 4096, "etag", position=512, access="tar").member
    'cat.jpg'

A shard is counted as a whole, and its result is stored under the shard's key. A large shard is cut
into cells, runs of neighbours whose sums are kept apart: when some members change later, only their
cells are counted again. Cells that have become small are joined. A joined cell states its runs:
each is counted by itself, and their sums are added in order. So its sum is the same, whether those
of the former cells are added up or its images are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from pipeline.sources.table_digest import table_digest
from pipeline.spec import PRODUCTS, digest_of

IDENTITY_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("member", pa.string()),
        ("size", pa.int64()),
        ("identity", pa.string()),
        ("position", pa.int64()),
        ("access", pa.string()),
    ]
)
"""The fields of an entry that decide what bytes are read: a shard's digest covers them."""


@dataclass(frozen=True)
class Entry:
    """One candidate image.

    Attributes:
        uri: The canonical uri of the object: an image, or the archive that holds it.
        member: The image's name inside the archive; empty if the object is an image.
        size: Size of the image in bytes; 0 if it is not known before reading (rows of a table).
        identity: Changes when the object's content does: an ETag, a generation, or the size and
            modification time of a local file. For a member it is the identity of its archive.
        group: Images of one group stay in one fold; empty if the image is its own group.
        position: Where in the archive the member starts, in bytes or rows; 0 outside archives.
        access: How the member is read (see `pipeline.sources.archives.access`); empty outside
            archives.
    """

    uri: str
    member: str
    size: int
    identity: str
    group: str = ""
    position: int = 0
    access: str = ""

    @property
    def sort_key(self) -> tuple[str, int, str]:
        """Sorts entries in the order in which they lie in storage."""
        return self.uri, self.position, self.member


MERGED = "merged"
"""Stands among the origins of a shard each of whose cells was a shard of its own."""


@dataclass(frozen=True)
class Address:
    """Where the members of a shard are.

    Attributes:
        file: The name of the entries file: the sha256 of its bytes.
        footer: Where the file's footer begins, in bytes.
        size: The size of the file in bytes.
        row_group: The number of the shard's row group in the file.
    """

    file: str
    footer: int
    size: int
    row_group: int


@dataclass(frozen=True)
class ShardHead:
    """Describes a shard without its members.

    Attributes:
        index: The number of the shard in its manifest, from 0.
        fold: The fold that the shard belongs to.
        candidates: How many members the shard has.
        digest: The digest of the members (see `members_digest`).
        belongs: The digest of the members' groups and labels.
        values: The value of each label, in the order of the manifest's labels; None for a label of
            which the members have several. Empty for members without a value.
        cells: How many members each cell has; empty if the shard is one cell.
        origins: Where its cells may be kept, the latest first: the contents of the shards that this
            one was before its members changed, and `MERGED` for the partials of shards that were
            put together.
        address: Where the members are.
        runs: How many members each run has; empty if each cell is one run.
        cell_images: The size that its cells were cut with, beyond which they are never joined; 0 if
            that is not known.
    """

    index: int
    fold: int
    candidates: int
    digest: str
    belongs: str = ""
    values: tuple[str | None, ...] = ()
    cells: tuple[int, ...] = ()
    origins: tuple[str, ...] = field(default=(), compare=False)
    address: Address = field(default=Address("", 0, 0, 0), compare=False)
    runs: tuple[int, ...] = ()
    cell_images: int = field(default=0, compare=False)

    @property
    def content(self) -> str:
        """The digest of what is counted, and in which cells and runs.

        Float sums depend on the order in which they are added.
        """
        if self.runs:
            return digest_of("runs", self.digest, list(self.cells), list(self.runs))
        return digest_of("cells", self.digest, list(self.cells)) if self.cells else self.digest

    @property
    def is_merged(self) -> bool:
        """Whether it was put together of shards that have not changed since."""
        return self.origins[:1] == (MERGED,)

    def key(self, spec_digest: str, products: Sequence[str] = PRODUCTS) -> str:
        """Returns the name of the shard's partial result.

        Args:
            spec_digest: Digest of the spec, which says what is counted.
            products: What is kept beside the histograms.
        """
        return shard_key(self.content, spec_digest, products)


@dataclass(frozen=True)
class Shard:
    """One unit of work.

    Attributes:
        index: The number of the shard in its manifest, from 0.
        fold: The fold that the shard belongs to.
        members: The candidates, in the order in which they are counted.
        cells: How many members each cell has; empty if the shard is one cell.
        origins: See `ShardHead`.
        runs: How many members each run has; empty if each cell is one run.
    """

    index: int
    fold: int
    members: tuple[Entry, ...]
    cells: tuple[int, ...] = ()
    origins: tuple[str, ...] = field(default=(), compare=False)
    runs: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The digest of the members."""
        columns = {n: [getattr(e, n) for e in self.members] for n in IDENTITY_SCHEMA.names}
        return members_digest(pa.table(columns, IDENTITY_SCHEMA))

    @property
    def head(self) -> ShardHead:
        """The description of the shard without its members."""
        return ShardHead(
            self.index,
            self.fold,
            len(self.members),
            self.digest,
            cells=self.cells,
            origins=self.origins,
            runs=self.runs,
        )

    def cell_runs(self) -> Iterator[Shard]:
        """Yields the members of each cell, with its runs, as a shard of their own."""
        start = 0
        for runs in runs_by_cell(self.cells or (len(self.members),), self.runs):
            yield self._stretch(start, runs)
            start += sum(runs)

    def first_runs(self, count: int) -> Shard:
        """Returns the members of the first runs of a cell as a cell of their own.

        Args:
            count: How many runs; at most as many as the cell has.
        """
        return self._stretch(0, (self.runs or (len(self.members),))[:count])

    def each_run(self) -> Iterator[Shard]:
        """Yields the members of each run of a cell as a cell of their own."""
        start = 0
        for run in self.runs or (len(self.members),):
            yield self._stretch(start, (run,))
            start += run

    def _stretch(self, start: int, runs: tuple[int, ...]) -> Shard:
        members = self.members[start : start + sum(runs)]
        return Shard(self.index, self.fold, members, runs=runs if len(runs) > 1 else ())

    def key(self, spec_digest: str, products: Sequence[str] = PRODUCTS) -> str:
        """Returns the name of the shard's partial result (see `ShardHead.key`)."""
        return self.head.key(spec_digest, products)


def runs_by_cell(cells: Sequence[int], runs: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns how many members each run of each cell has.

    Args:
        cells: How many members each cell has.
        runs: How many members each run has; nothing if each cell is one run.
    """
    its: list[list[int]] = []
    rest = iter(runs or cells)
    for size in cells:
        its.append([])
        while sum(its[-1]) < size:
            its[-1].append(next(rest))
    return [tuple(of_cell) for of_cell in its]


def shard_key(content: str, spec_digest: str, products: Sequence[str] = PRODUCTS) -> str:
    """Returns the name of a shard's partial result (see `ShardHead.key`).

    Args:
        content: The content of the shard.
        spec_digest: Digest of the spec.
        products: What is kept beside the histograms.
    """
    return digest_of("shard", spec_digest, list(products), content)


def members_digest(rows: pa.Table) -> str:
    """Returns one digest for the members of a shard.

    Args:
        rows: The members, in the order of counting, with the columns of `IDENTITY_SCHEMA` and any
            others.
    """
    return table_digest("members", rows.select(IDENTITY_SCHEMA.names).cast(IDENTITY_SCHEMA))
