"""Writes and reads the file of a manifest: a table of its shards.

    >>> file = SealedFile(data, MANIFEST, "s3://bucket/m.parquet")          # doctest: +SKIP
    >>> head_at(file, 7).candidates                                         # doctest: +SKIP
    4096

One row is one shard, with its place in an entries file. A manifest of 100 million images takes
about a megabyte.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from pipeline.dna import FileKind, SealedFile, SealedWriter, corrupt_if_unreadable
from pipeline.errors import CorruptFile
from pipeline.sources.entry import Address, ShardHead
from pipeline.spec import digest_of

MANIFEST = FileKind("manifest", 2)

MANIFEST_SCHEMA = pa.schema(
    [
        ("fold", pa.int32()),
        ("candidates", pa.int64()),
        ("digest", pa.string()),
        ("belongs", pa.string()),
        ("values", pa.list_(pa.string())),
        ("cells", pa.list_(pa.int32())),
        ("origins", pa.list_(pa.string())),
        ("file", pa.string()),
        ("footer", pa.int64()),
        ("size", pa.int64()),
        ("row_group", pa.int32()),
        ("runs", pa.list_(pa.int32())),
        ("cell_images", pa.int32()),
    ]
)
"""The columns of a manifest: the fields of `ShardHead` and of its `Address`. A file has no `runs`
unless a cell has several, and no `cell_images` unless the sums of cells are kept."""

HEADS_A_GROUP = 1024
"""How many shards a row group describes."""


def manifest_digest(labels: Sequence[str], heads: Sequence[ShardHead]) -> str:
    """Returns the digest of the candidates and the plan.

    It does not cover where the candidates were listed, what was ignored, in which files the shards
    are, what they were before, and with which size their cells were cut.

    Args:
        labels: The names of the labels.
        heads: The descriptions of all shards, in their order.
    """
    shards = [[head.fold, head.candidates, head.content, head.belongs] for head in heads]
    return digest_of("manifest", list(labels), shards)


def encode_manifest(heads: Sequence[ShardHead], notes: Mapping[str, Any]) -> bytes:
    """Makes the file of a manifest.

    Args:
        heads: The descriptions of all shards, with their addresses.
        notes: What the file states besides (see `Manifest`).

    Returns:
        The bytes of the file.
    """
    sink = io.BytesIO()
    schema = MANIFEST_SCHEMA
    for name in ("runs", "cell_images"):
        if not any(getattr(head, name) for head in heads):
            schema = schema.remove(schema.get_field_index(name))
    with SealedWriter(sink, MANIFEST, schema, write_statistics=False) as writer:
        for first in range(0, len(heads), HEADS_A_GROUP):
            some = heads[first : first + HEADS_A_GROUP]
            columns: dict[str, list[Any]] = {
                name: [
                    getattr(head if hasattr(head, name) else head.address, name) for head in some
                ]
                for name in schema.names
            }
            writer.write(pa.table(columns, schema))
        writer.seal(notes)
    return sink.getvalue()


def heads_in(file: SealedFile, row_group: int) -> Iterator[ShardHead]:
    """Yields the descriptions of the shards in one row group of a manifest.

    Args:
        file: The open manifest; all its bytes are in memory.
        row_group: The number of the row group.

    Raises:
        CorruptFile: The rows cannot be read.
    """
    about = f"row group {row_group}"
    with corrupt_if_unreadable(f"{file.name}: {about} cannot be read"):
        file.check({row_group: about})
        table = file.parquet.read_row_group(row_group)
        if "runs" not in table.column_names:
            none = pa.array([[]] * table.num_rows, MANIFEST_SCHEMA.field("runs").type)
            table = table.append_column("runs", none)
        if "cell_images" not in table.column_names:
            table = table.append_column("cell_images", pa.array([0] * table.num_rows, pa.int32()))
        table = table.select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)
        table.validate(full=True)
        if any(column.null_count for column in table.columns):
            raise CorruptFile(f"{file.name}: {about} lacks a value")
        columns = [table[name].to_pylist() for name in MANIFEST_SCHEMA.names]
    first = row_group * HEADS_A_GROUP
    for at, row in enumerate(zip(*columns, strict=True), first):
        fold, candidates, digest, belongs, values, cells, origins, *address, runs, size = row
        head = ShardHead(
            at,
            fold,
            candidates,
            digest,
            belongs,
            tuple(values),
            tuple(cells),
            tuple(origins),
            Address(*address),
            tuple(runs),
            size,
        )
        if cells and (sum(cells) != head.candidates or min(cells) < 1):
            raise CorruptFile(
                f"{file.name}: shard {at} has {head.candidates} members, and cells of {cells}"
            )
        ends = set(accumulate(cells or [head.candidates]))
        if runs and (min(runs) < 1 or max(ends) < sum(runs) or not ends <= {*accumulate(runs)}):
            raise CorruptFile(
                f"{file.name}: shard {at} has {head.candidates} members in cells of {cells}, and "
                f"runs of {runs}"
            )
        yield head


def head_at(file: SealedFile, index: int) -> ShardHead:
    """Returns the description of one shard.

    Args:
        file: The open manifest; all its bytes are in memory.
        index: The number of the shard.

    Raises:
        CorruptFile: There is no such shard, or the rows cannot be read.
    """
    if not 0 <= index < file.rows:
        raise CorruptFile(f"{file.name}: there is no shard {index}, but {file.rows}")
    row_group, at = divmod(index, HEADS_A_GROUP)
    return list(heads_in(file, row_group))[at]
