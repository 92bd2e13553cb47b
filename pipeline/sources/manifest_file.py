"""Reads and checks the row groups of a manifest's Parquet file.

    >>> file = SealedFile(binary_file, MANIFEST, "s3://bucket/m.parquet")   # doctest: +SKIP
    >>> fold, rows = read_row_group(file, 7)                                # doctest: +SKIP

One row is one candidate, one row group is one shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dna import FileKind, SealedFile, corrupt_if_unreadable
from pipeline.errors import CorruptFile
from pipeline.sources.entry import IDENTITY_COLUMNS, Entry, ShardHead, members_digest

MANIFEST = FileKind("manifest")

MANIFEST_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("member", pa.string()),
        ("size", pa.int64()),
        ("identity", pa.string()),
        ("shard", pa.int32()),
        ("fold", pa.int32()),
        ("group", pa.string()),
        ("position", pa.int64()),
        ("access", pa.string()),
    ]
)
"""The columns of a manifest. The user's label columns follow them, as text."""

ENTRY_SCHEMA = pa.schema(
    [field for field in MANIFEST_SCHEMA if field.name not in ("shard", "fold")]
)
"""What is known of a candidate before it is planned."""

ENTRY_COLUMNS: tuple[str, ...] = tuple(ENTRY_SCHEMA.names)


class ManifestDigest:
    """Hashes the candidates and the plan, but not where they were listed or what was ignored.

    The result is `digest_of("manifest", [[fold, digest of the members, groups], ...])`, each with
    its labels if there are any. It is computed shard by shard, in bounded memory.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b'["manifest",[')
        self._first = True

    def add(self, head: ShardHead, table: pa.Table) -> None:
        """Adds the next shard.

        Args:
            head: The shard's description.
            table: Its rows.
        """
        groups = table["group"].to_pylist()
        labels = {name: table[name].to_pylist() for name in label_names(table.column_names)}
        shard = [head.fold, head.digest, groups, *([labels] if labels else [])]
        text = json.dumps(shard, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        self._hash.update((text if self._first else f",{text}").encode())
        self._first = False

    def hexdigest(self) -> str:
        """Returns the digest of the shards added so far."""
        ended = self._hash.copy()
        ended.update(b"]]")
        return ended.hexdigest()[:32]


def read_row_group(file: SealedFile, index: int) -> tuple[int, pa.Table]:
    """Reads and checks the rows of one shard.

    Args:
        file: An open manifest.
        index: The number of the shard.

    Returns:
        The shard's fold, and its rows with all columns.

    Raises:
        CorruptFile: The rows cannot be read, or are not one whole shard of one fold.
    """
    name = file.name
    with corrupt_if_unreadable(f"{name}: shard {index} cannot be read"):
        table = file.parquet.read_row_group(index)
        checked = table.select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)
        checked.validate(full=True)  # finds text that is not UTF-8 now and not when it is used
        for field in MANIFEST_SCHEMA:
            at = table.column_names.index(field.name)
            table = table.set_column(at, field, checked[field.name])
    if any(column.null_count for column in checked.columns):
        raise CorruptFile(f"{name}: shard {index} lacks a value")
    folds = set(table["fold"].to_pylist())
    if len(folds) != 1 or set(table["shard"].to_pylist()) != {index}:
        raise CorruptFile(f"{name}: row group {index} is not one whole shard of one fold")
    return int(folds.pop()), table


def head_of(index: int, fold: int, table: pa.Table) -> ShardHead:
    """Returns the description of the shard whose rows these are."""
    columns = (table[name].to_pylist() for name in IDENTITY_COLUMNS)
    digest = members_digest(zip(*columns, strict=True))
    return ShardHead(index, fold, table.num_rows, digest)


def entries_of(table: pa.Table) -> Iterator[Entry]:
    """Yields the candidates in the rows of a shard."""
    columns = [table[name].to_pylist() for name in Entry.__dataclass_fields__]
    for row in zip(*columns, strict=True):
        yield Entry(*row)


def label_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of columns that are the user's labels."""
    return tuple(name for name in names if name not in MANIFEST_SCHEMA.names)


def label_value(table: pa.Table, label: str, index: int) -> str:
    """Returns the value of a label that all rows of a shard share; empty if they have none.

    Args:
        table: The rows of the shard.
        label: The name of the label's column.
        index: The number of the shard for error messages.

    Raises:
        CorruptFile: The rows have different values.
    """
    values = {value or "" for value in pc.unique(table[label]).to_pylist()}
    if len(values) > 1:
        raise CorruptFile(f"shard {index} mixes values of {label}: {sorted(values)[:5]}")
    return str(values.pop())
