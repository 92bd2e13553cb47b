"""Holds the plan of a build: every candidate of a dataset once, in shards and folds.

    >>> manifest.candidates, len(manifest.shards)                # doctest: +SKIP
    (9100000, 2240)
    >>> manifest.shards[7].members[0].uri                        # doctest: +SKIP

In memory a manifest is its Parquet file (bytes, or a map of a temporary file) and a short
description of each shard. Members are read one shard at a time. `pipeline.sources.plan` makes a
manifest from a listing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.buffers import release_pages
from pipeline.dna import SealedFile, SealedWriter, corrupt_if_unreadable
from pipeline.errors import CorruptFile
from pipeline.sources.entry import Entry, Shard, ShardHead
from pipeline.sources.manifest_file import (
    ENTRY_COLUMNS,
    ENTRY_SCHEMA,
    MANIFEST,
    MANIFEST_SCHEMA,
    ManifestDigest,
    entries_of,
    head_of,
    label_names,
    label_value,
    read_row_group,
)
from pipeline.spec import PRODUCTS


@dataclass(frozen=True, eq=False)
class Manifest:
    """Every candidate of a dataset once, in shards.

    Attributes:
        data: The Parquet file: bytes, or a memory map.
        heads: The description of each shard, in the order of the file.
        digest: The digest of the candidates and the plan (see `ManifestDigest`).
        shard_images: How many images a new shard gets.
        source: Where the candidates were listed.
        ignored: How many files were ignored, by kind.
        duplicates: How many candidates were listed more than once and dropped.
        labels: The names of the user's columns.
    """

    data: Any
    heads: tuple[ShardHead, ...]
    digest: str
    shard_images: int
    source: str = ""
    ignored: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    labels: tuple[str, ...] = ()

    @property
    def candidates(self) -> int:
        """How many candidates all shards have together."""
        return sum(head.candidates for head in self.heads)

    @property
    def shards(self) -> Sequence[Shard]:
        """The shards with their members; each is read from the file when it is asked for."""
        return _ShardReader(self)

    def keys(self, spec_digest: str, products: Sequence[str] = PRODUCTS) -> tuple[str, ...]:
        """Returns the key of each shard (see `ShardHead.key`)."""
        return tuple(head.key(spec_digest, products) for head in self.heads)

    def folds(self) -> dict[int, list[ShardHead]]:
        """Returns the shards of each fold."""
        by_fold: defaultdict[int, list[ShardHead]] = defaultdict(list)
        for head in self.heads:
            by_fold[head.fold].append(head)
        return dict(sorted(by_fold.items()))

    def parts(self, label: str) -> dict[str, list[int]]:
        """Finds the shards of each value of a label.

        Args:
            label: The name of the label.

        Returns:
            The indices of the shards for each value. Shards without a value are left out.

        Raises:
            CorruptFile: A shard has members with different values.
        """
        parts: defaultdict[str, list[int]] = defaultdict(list)
        file = pq.ParquetFile(pa.BufferReader(self.data))
        for head in self.heads:
            if value := label_value(file.read_row_group(head.index, [label]), label, head.index):
                parts[value].append(head.index)
        return dict(sorted(parts.items()))

    def tables(self) -> Iterator[pa.Table]:
        """Yields the rows of each shard in turn, with all columns."""
        file = pq.ParquetFile(pa.BufferReader(self.data))
        for index in range(file.num_row_groups):
            yield file.read_row_group(index)
            release_pages(self.data)

    @classmethod
    def of(
        cls,
        shards: Iterable[Shard],
        shard_images: int,
        source: str = "",
        ignored: Mapping[str, int] | None = None,
        duplicates: int = 0,
    ) -> Manifest:
        """Returns a manifest of shards in memory, which are numbered anew (see the attributes)."""
        sink = pa.BufferOutputStream()
        with ManifestWriter(sink, shard_images, source, ignored, duplicates) as writer:
            for shard in shards:
                columns = {n: [getattr(e, n) for e in shard.members] for n in ENTRY_COLUMNS}
                writer.add(shard.fold, pa.table(columns, schema=ENTRY_SCHEMA))
        return writer.manifest(sink.getvalue().to_pybytes())

    @classmethod
    def decode(cls, data: Any, name: str) -> Manifest:
        """Returns the manifest in a file, after reading all of it, one shard at a time.

        Args:
            data: The file: bytes, or a memory map.
            name: The file's name for error messages.

        Raises:
            CorruptFile: The content does not match the digest that the file states.
        """
        file = SealedFile(data, MANIFEST, name)
        metadata = file.metadata
        heads = []
        digest = ManifestDigest()
        for index in range(len(file.row_groups)):
            fold, table = read_row_group(file, index)
            heads.append(head_of(index, fold, table))
            digest.add(heads[-1], table)
            release_pages(data)
        with corrupt_if_unreadable(f"{name}: its metadata cannot be read"):
            manifest = cls(
                data,
                tuple(heads),
                digest.hexdigest(),
                int(metadata["shard_images"]),
                str(metadata["source"]),
                dict(metadata["ignored"]),
                int(metadata["duplicates"]),
                label_names(file.parquet.schema_arrow.names),
            )
        if manifest.digest != metadata.get("digest"):
            raise CorruptFile(
                f"{name}: states digest {metadata.get('digest')}, its rows have {manifest.digest}"
            )
        return manifest


class _ShardReader(Sequence[Shard]):
    """The shards of a manifest, each read from the file when it is asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._heads = manifest.heads
        self._data = manifest.data
        self._file = pq.ParquetFile(pa.BufferReader(manifest.data))

    def __len__(self) -> int:
        return len(self._heads)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Shard]: ...
    def __getitem__(self, index: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        head = self._heads[index]
        table = self._file.read_row_group(head.index)
        release_pages(self._data)
        return Shard(head.index, head.fold, tuple(entries_of(table)))


class ManifestWriter:
    """Writes the file of a manifest shard by shard; only one shard is in memory.

    Leaving the `with` block completes the file.

    Args:
        sink: A path, or a file to write to.
        shard_images: See `Manifest`, as for the next three.
        source: Where the candidates were listed.
        ignored: How many files were ignored, by kind.
        duplicates: How many candidates were dropped as duplicates.
        labels: The names of the user's columns.
    """

    def __init__(
        self,
        sink: Any,
        shard_images: int,
        source: str = "",
        ignored: Mapping[str, int] | None = None,
        duplicates: int = 0,
        labels: Sequence[str] = (),
    ) -> None:
        self._notes: dict[str, Any] = {
            "shard_images": shard_images,
            "source": source,
            "ignored": dict(sorted((ignored or {}).items())),
            "duplicates": duplicates,
        }
        self._labels = tuple(labels)
        self._schema = pa.schema([*MANIFEST_SCHEMA, *((name, pa.string()) for name in labels)])
        self._writer = SealedWriter(sink, MANIFEST, self._schema, write_statistics=False)
        self._heads: list[ShardHead] = []
        self._digest = ManifestDigest()

    def add(self, fold: int, entries: pa.Table) -> None:
        """Writes the next shard.

        Args:
            fold: The shard's fold.
            entries: Rows with the columns of `ENTRY_SCHEMA` and the labels, in the order of
                counting.
        """
        index, rows = len(self._heads), entries.num_rows
        table = entries.append_column("shard", pa.array([index] * rows, pa.int32()))
        table = table.append_column("fold", pa.array([fold] * rows, pa.int32()))
        table = table.select(self._schema.names).cast(self._schema).combine_chunks()
        self._heads.append(head_of(index, fold, table))
        self._digest.add(self._heads[-1], table)
        self._writer.write(table)

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self._writer.seal({"digest": self._digest.hexdigest(), **self._notes})
        self._writer.close()

    def manifest(self, data: Any) -> Manifest:
        """Returns the manifest that was written.

        Args:
            data: The content of the completed file: bytes, or a memory map.
        """
        heads, digest = tuple(self._heads), self._digest.hexdigest()
        return Manifest(data, heads, digest, labels=self._labels, **self._notes)


def read_shard(source: Any, index: int, name: str) -> Shard:
    """Returns one shard of a manifest, and reads none of the other rows.

    Args:
        source: A seekable binary file.
        index: The number of the shard.
        name: The file's name for error messages.

    Raises:
        CorruptFile: The file or the shard is damaged.
    """
    fold, table = read_row_group(SealedFile(source, MANIFEST, name), index)
    return Shard(index, fold, tuple(entries_of(table)))


def number_of_shards(source: Any, name: str) -> int:
    """Returns how many shards a manifest has.

    Args:
        source: A seekable binary file.
        name: The file's name for error messages.

    Raises:
        CorruptFile: The file is damaged.
    """
    return len(SealedFile(source, MANIFEST, name).row_groups)


def manifest_labels(source: Any, name: str) -> tuple[str, ...]:
    """Returns the names of the labels that the images of a manifest have.

    Args:
        source: A seekable binary file.
        name: The file's name for error messages.

    Raises:
        CorruptFile: The file is damaged.
    """
    return label_names(SealedFile(source, MANIFEST, name).parquet.schema_arrow.names)


def read_part(source: Any, indices: Iterable[int], label: str, value: str, name: str) -> Manifest:
    """Returns a manifest of those shards that have one value of a label.

    Args:
        source: A manifest: a seekable binary file.
        indices: The numbers of the shards.
        label: The name of the label.
        value: The value that the shards have.
        name: The file's name for error messages.

    Raises:
        CorruptFile: The file is damaged, or one of the shards has another value.
    """
    file = SealedFile(source, MANIFEST, name)
    sink = pa.BufferOutputStream()
    labels = label_names(file.parquet.schema_arrow.names)
    shard_images, origin = file.metadata["shard_images"], file.metadata["source"]
    with ManifestWriter(sink, shard_images, origin, labels=labels) as writer:
        for index in indices:
            fold, table = read_row_group(file, index)
            if (found := label_value(table, label, index)) != value:
                raise CorruptFile(f"{name}: shard {index} is of {label} {found!r}, not {value!r}")
            writer.add(fold, table.select([*ENTRY_COLUMNS, *labels]))
    return writer.manifest(sink.getvalue().to_pybytes())


def find_entries(
    source: Any, wanted: Collection[tuple[str, str]], name: str, keep_going: Callable[[], bool]
) -> dict[tuple[str, str], Entry]:
    """Looks candidates up by their names, with one shard in memory at a time.

    Args:
        source: A manifest: a seekable binary file.
        wanted: The uri and member of each candidate.
        name: The file's name for error messages.
        keep_going: Asked before each shard. The search ends when it returns False.

    Returns:
        The candidates that were found, by uri and member.

    Raises:
        CorruptFile: The file is damaged.
    """
    file = SealedFile(source, MANIFEST, name)
    uris = pa.array(sorted({uri for uri, _ in wanted}), pa.string())
    found: dict[tuple[str, str], Entry] = {}
    for index in range(len(file.row_groups)):
        if len(found) == len(wanted) or not keep_going():
            break
        _, table = read_row_group(file, index)
        for entry in entries_of(table.filter(pc.is_in(table["uri"], uris))):
            if (entry.uri, entry.member) in wanted:
                found[entry.uri, entry.member] = entry
    return found
