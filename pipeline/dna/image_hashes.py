"""Hashes of images, by their content and by what they look like: one row for each candidate.

    >>> a + b == b + a, (a + b).images == a.images + b.images    # doctest: +SKIP

The rows of a shard are in the order of its members, so the manifest has their names. A candidate
that could not be read has a row, too. The hashes change no count. They are a product of a build,
whose name is part of every shard's key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.buffers import Data
from pipeline.dna.arrays import Ints
from pipeline.dna.sealed import (
    ROWS_PER_GROUP,
    FileKind,
    SealedFile,
    SealedWriter,
    corrupt_if_unreadable,
)
from pipeline.errors import CorruptFile, OverlapError
from pipeline.spec import IMAGE_HASHES

if TYPE_CHECKING:  # it compiles kernels, which a command that only reads these does not need
    from pipeline.dna.dna_file import DnaFile

HASH_ROW = np.dtype([("content", "<u8"), ("look", "<u8"), ("flags", "u1")])
"""What is kept of a candidate, 17 bytes. `content` is a hash of its file, `look` one of its pixels.
Both are 0 if it could not be read."""

HashRows = NDArray[np.void]
"""(N,) rows of the type `HASH_ROW`."""

READ, SINGLE_COLOUR, BLACK = 1, 2, 4
"""The flags of a row: the image could be read, all its pixels are equal, or all are black."""

HASH_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("content", pa.uint64()),
        ("look", pa.uint64()),
        ("single_colour", pa.bool_()),
        ("black", pa.bool_()),
    ]
)
"""The columns of the file of a version's hashes. `shard` is the number of the shard in the
manifest, and a shard's rows are in the order of its members. The others are null if the candidate
could not be read."""

LONGEST_CELL = 1 << 29
"""The most bytes of hashes in a cell of a partial's file: Parquet has no page of 2 GB."""

_KIND = FileKind(IMAGE_HASHES)


@dataclass(frozen=True, eq=False)
class ImageHashes:
    """The hashes of the images of some shards.

    Laws: `+` is associative and commutative, and refuses hashes that share a shard. `joined` makes
    one shard of all, in the order in which they were added.

    Attributes:
        by_shard: The rows of each shard, by its key.
    """

    by_shard: Mapping[str, HashRows]

    @property
    def candidates(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.by_shard.values()))

    @property
    def images(self) -> int:
        """How many of the candidates could be read."""
        return sum(int(np.count_nonzero(of["flags"] & READ)) for of in self.by_shard.values())

    def __add__(self, other: ImageHashes) -> ImageHashes:
        """Adds the hashes of other shards.

        Args:
            other: The hashes of shards that are not among these.

        Returns:
            The hashes of all these shards.

        Raises:
            OverlapError: Both hold a shard.
        """
        if both := self.by_shard.keys() & other.by_shard.keys():
            raise OverlapError(f"the image hashes of shard {min(both)} would be kept twice")
        return ImageHashes({**self.by_shard, **other.by_shard})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageHashes) or self.by_shard.keys() != other.by_shard.keys():
            return False
        return all(np.array_equal(of, other.by_shard[key]) for key, of in self.by_shard.items())

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    @classmethod
    def cut(cls, rows: HashRows, keys: Sequence[str], sizes: Sequence[int]) -> ImageHashes:
        """Cuts rows into those of shards.

        Args:
            rows: The rows of all shards, one shard after the other.
            keys: The key of each shard.
            sizes: How many rows each shard has.

        Returns:
            The hashes.

        Raises:
            ValueError: There are more rows, or fewer.
        """
        if sum(sizes) != len(rows):
            raise ValueError(f"{len(rows)} rows where {sum(sizes)} should be")
        parts = np.split(rows, np.cumsum(sizes)[:-1])
        return cls(dict(zip(keys, parts, strict=True)))

    def joined(self, key: str) -> ImageHashes:
        """Makes one shard of all, in the order in which they were added.

        Args:
            key: The key of that shard.

        Returns:
            Its hashes.
        """
        return ImageHashes({key: np.concatenate(list(self.by_shard.values()))})

    # The file of a partial has a column of hashes. They begin in the first row; what is longer than
    # a cell goes on in the next one. The others have none.

    @property
    def sizes(self) -> list[int]:
        """How many rows each shard has, in the order of the shards' keys."""
        return [len(self.by_shard[key]) for key in sorted(self.by_shard)]

    def column(self, rows: int, *, first: bool) -> pa.Array:
        """Makes the column of hashes of one layer in a partial's file.

        Args:
            rows: How many rows the layer has.
            first: Whether it is the first layer of the file.

        Returns:
            The column.
        """
        ordered = (self.by_shard[key].tobytes() for key in sorted(self.by_shard))
        whole = b"".join(ordered) if first else b""
        longest = max(LONGEST_CELL, -(-len(whole) // rows))
        ends = np.minimum(np.arange(rows + 1) * longest, len(whole))
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(whole)]
        return pa.Array.from_buffers(pa.large_binary(), rows, buffers)

    @classmethod
    def from_partial(cls, file: DnaFile) -> ImageHashes | None:
        """Reads the hashes in a partial's file.

        Args:
            file: The open file of a partial.

        Returns:
            The hashes, or None if the build keeps none.

        Raises:
            CorruptFile: They cannot be read.
        """
        sizes = file.metadata.get(IMAGE_HASHES)
        if sizes is None:
            return None
        cells = file.column(IMAGE_HASHES)
        with corrupt_if_unreadable(f"{file.name}: its image hashes cannot be read"):
            held = cells.filter(pc.greater(pc.binary_length(cells), 0))
            rows = np.frombuffer(b"".join(held.to_pylist()), HASH_ROW)
            return cls.cut(rows, file.metadata["shards"], sizes)


def write_image_hashes(sink: Any, rows: HashRows, sizes: Sequence[int], manifest: str) -> None:
    """Writes the file of the hashes of a version. It holds a million rows in memory at a time.

    Args:
        sink: A binary file to write to. About 17 bytes are written for each candidate.
        rows: The rows of all candidates, in the order of the manifest.
        sizes: How many candidates each shard has.
        manifest: The digest of the manifest.
    """
    ends = np.cumsum(sizes)
    with SealedWriter(sink, _KIND, HASH_SCHEMA, use_dictionary=False) as writer:
        for start in range(0, max(1, len(rows)), ROWS_PER_GROUP):
            some = rows[start : start + ROWS_PER_GROUP]
            places = np.arange(start, start + len(some))
            writer.write(_table_of(some, np.searchsorted(ends, places, side="right")))
        writer.seal({"manifest": manifest})


def _table_of(rows: HashRows, shards: Ints) -> pa.Table:
    failed = (rows["flags"] & READ) == 0
    columns = {
        "shard": pa.array(shards, pa.int32()),
        "content": pa.array(np.ascontiguousarray(rows["content"]), mask=failed),
        "look": pa.array(np.ascontiguousarray(rows["look"]), mask=failed),
        "single_colour": pa.array((rows["flags"] & SINGLE_COLOUR) > 0, mask=failed),
        "black": pa.array((rows["flags"] & BLACK) > 0, mask=failed),
    }
    return pa.table(columns, schema=HASH_SCHEMA)


def decode_image_hashes(data: Data, name: str, manifest: str) -> HashRows:
    """Reads the file of the hashes of a version, a million rows at a time.

    Args:
        data: The bytes of the file, or a map of it.
        name: The name of the file in errors.
        manifest: The digest of the version's manifest.

    Returns:
        The rows of all candidates, in the order of the manifest.

    Raises:
        CorruptFile: The file is torn, not what was written, or of another manifest.
    """
    file = SealedFile(data, _KIND, name)
    if (stated := file.metadata.get("manifest")) != manifest:
        raise CorruptFile(f"{name} is of manifest {stated}; the version has {manifest}")
    file.check()
    rows = np.zeros(file.rows, HASH_ROW)
    start = 0
    with corrupt_if_unreadable(f"{name}: its rows cannot be read"):
        for index, group in enumerate(file.row_groups):
            table = file.parquet.read_row_group(index).cast(HASH_SCHEMA)
            _fill(rows[start : start + group.rows], table)
            start += group.rows
    return rows


def _fill(rows: HashRows, table: pa.Table) -> None:
    """Puts the rows of a table into an array."""
    for column in ("content", "look"):
        rows[column] = pc.fill_null(table[column], 0).to_numpy()
    rows["flags"] = table["content"].is_valid().to_numpy() * READ
    for flag, column in ((SINGLE_COLOUR, "single_colour"), (BLACK, "black")):
        rows["flags"] |= pc.fill_null(table[column], False).to_numpy() * np.uint8(flag)
