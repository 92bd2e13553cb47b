"""Every candidate of a dataset once, in deterministic shards and folds: the plan of a build.

    >>> manifest.candidates, len(manifest.shards)                # doctest: +SKIP
    (9100000, 2240)
    >>> manifest.shards[7].members[0].uri                        # doctest: +SKIP

A manifest is a Parquet file, one row a candidate, one row group a shard. In memory it is that file
(bytes, or a map of a temporary one) and a line about each shard; members are read a shard at a
time. `pipeline.plan` makes one of a listing.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.buffers import let_go
from pipeline.errors import CorruptFile
from pipeline.spec import PRODUCTS, digest_of

FORMAT = 2

READS = (1, 2)
"""Format 1 had neither `position` nor `access`: it knew no archives."""

FOLDS = 16

MAX_SHARD_IMAGES = 4096

MIN_SHARD_IMAGES = 64

SHARD_MULTIPLE = 8

SCHEMA = pa.schema(
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
"""The columns of a manifest; label columns of the user's follow, as text."""

FOLDERS = "folder"
"""The label of a source that is no table: the leading folders of an image, where asked for."""

ENTRY_COLUMNS = tuple(name for name in SCHEMA.names if name not in ("shard", "fold"))
"""The columns of a listing: what is known of a candidate before it is planned."""


@dataclass(frozen=True)
class Entry:
    """One candidate. `uri` is canonical; `member` is its name inside an archive, else empty.

    `identity` changes when the content does (etag, generation, or size and mtime of a file); of a
    member it is the archive's. `position`, `access`: where in an archive it is, and how it is read
    (see `pipeline.archive`); 0 and empty for an object of its own.
    """

    uri: str
    member: str
    size: int
    identity: str
    group: str = ""
    position: int = 0
    access: str = ""

    @property
    def place(self) -> tuple[str, int, str]:
        """Sorts entries as they lie in storage."""
        return self.uri, self.position, self.member


@dataclass(frozen=True)
class ShardHead:
    """What a shard is without its members: their digest stands for them."""

    index: int
    fold: int
    candidates: int
    digest: str

    def key(self, spec_digest: str, products: Sequence[str] = PRODUCTS) -> str:
        """Names the shard's partial: what is counted, what is kept, and of which images."""
        return digest_of("shard", spec_digest, list(products), self.digest)


@dataclass(frozen=True)
class Shard:
    """One unit of work: its members in the order in which they are counted."""

    index: int
    fold: int
    members: tuple[Entry, ...]

    @cached_property
    def digest(self) -> str:
        return _members_digest(
            [e.uri for e in self.members],
            [e.member for e in self.members],
            [e.size for e in self.members],
            [e.identity for e in self.members],
            [e.position for e in self.members],
            [e.access for e in self.members],
        )

    @property
    def head(self) -> ShardHead:
        return ShardHead(self.index, self.fold, len(self.members), self.digest)

    def key(self, spec_digest: str, products: Sequence[str] = PRODUCTS) -> str:
        return self.head.key(spec_digest, products)


@dataclass(frozen=True, eq=False)
class Manifest:
    """Every candidate once, in shards. `shard_images`: the size that new shards are cut to.

    `data`: the file. `labels`: the names of its columns beyond our own.
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
        return sum(head.candidates for head in self.heads)

    @property
    def shards(self) -> Sequence[Shard]:
        """Each read from the file when it is asked for."""
        return _Shards(self)

    def keys(self, spec_digest: str, products: Sequence[str] = PRODUCTS) -> tuple[str, ...]:
        return tuple(head.key(spec_digest, products) for head in self.heads)

    def folds(self) -> dict[int, list[ShardHead]]:
        by_fold: defaultdict[int, list[ShardHead]] = defaultdict(list)
        for head in self.heads:
            by_fold[head.fold].append(head)
        return dict(sorted(by_fold.items()))

    def parts(self, label: str) -> dict[str, list[int]]:
        """The shards of each value of a label, by their indices; those without a value left out.

        Raises `CorruptFile` where a shard mixes values.
        """
        parts: defaultdict[str, list[int]] = defaultdict(list)
        file = pq.ParquetFile(pa.BufferReader(self.data))
        for head in self.heads:
            if value := _value_of(file.read_row_group(head.index, [label]), label, head.index):
                parts[value].append(head.index)
        return dict(sorted(parts.items()))

    def tables(self) -> Iterator[pa.Table]:
        """The rows of each shard in turn, with all columns."""
        file = pq.ParquetFile(pa.BufferReader(self.data))
        for index in range(file.num_row_groups):
            yield _whole(file.read_row_group(index))
            let_go(self.data)

    @classmethod
    def of(
        cls,
        shards: Iterable[Shard],
        shard_images: int,
        source: str = "",
        ignored: Mapping[str, int] | None = None,
        duplicates: int = 0,
    ) -> Manifest:
        """Of shards that are at hand."""
        sink = pa.BufferOutputStream()
        with ManifestWriter(sink) as writer:
            for shard in shards:
                columns = {n: [getattr(e, n) for e in shard.members] for n in ENTRY_COLUMNS}
                writer.add(shard.fold, pa.table(columns, schema=_entry_schema()))
            writer.note(shard_images, source, ignored or {}, duplicates)
        return cls.decode(sink.getvalue().to_pybytes(), "a manifest in memory")

    @classmethod
    def decode(cls, data: Any, name: str) -> Manifest:
        """Of a file in memory or mapped, which is read through once, a shard at a time.

        Raises `CorruptFile` where the content is not what its own digest states.
        """
        file, metadata = _open(pa.BufferReader(data), name)
        heads = []
        digest = ManifestDigest()
        for index in range(file.num_row_groups):
            table = _read_rows(file, index, name)
            fold = _fold_of(table, index, name)
            heads.append(_head(index, fold, table))
            digest.add(heads[-1], table)
            let_go(data)
        try:
            manifest = cls(
                data,
                tuple(heads),
                digest.hexdigest(),
                int(metadata["shard_images"]),
                str(metadata["source"]),
                dict(metadata["ignored"]),
                int(metadata["duplicates"]),
                _labels(file.schema_arrow.names),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{name}: its notes cannot be read: {error!r}") from error
        if manifest.digest != metadata.get("digest"):
            raise CorruptFile(
                f"{name}: states digest {metadata.get('digest')}, its rows have {manifest.digest}"
            )
        return manifest


class _Shards(Sequence[Shard]):
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
        if not -len(self) <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        head = self._heads[index]
        table = _whole(self._file.read_row_group(head.index))
        let_go(self._data)
        return Shard(head.index, head.fold, tuple(_entries(table)))


class ManifestWriter:
    """Writes a manifest's file shard by shard; in memory is one shard, and a line about each."""

    def __init__(self, sink: Any, labels: Sequence[str] = ()) -> None:
        self._labels = tuple(labels)
        self._schema = pa.schema([*SCHEMA, *((name, pa.string()) for name in labels)])
        self._writer = pq.ParquetWriter(
            sink,
            self._schema,
            compression="zstd",
            store_schema=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        self._heads: list[ShardHead] = []
        self._digest = ManifestDigest()

    def add(self, fold: int, entries: pa.Table) -> None:
        """The next shard: rows with the columns of a listing, in the order of counting."""
        index, rows = len(self._heads), entries.num_rows
        names = [name for name in self._schema.names if name not in ("shard", "fold")]
        table = entries.select(names)
        table = table.append_column("shard", pa.array([index] * rows, pa.int32()))
        table = table.append_column("fold", pa.array([fold] * rows, pa.int32()))
        table = table.select(self._schema.names).cast(self._schema).combine_chunks()
        self._heads.append(_head(index, fold, table))
        self._digest.add(self._heads[-1], table)
        self._writer.write_table(table, row_group_size=rows)

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def note(
        self, shard_images: int, source: str, ignored: Mapping[str, int], duplicates: int
    ) -> None:
        """What the file states beside its rows, once all shards are in it."""
        metadata = {
            "format": FORMAT,
            "kind": "manifest",
            "digest": self._digest.hexdigest(),
            "source": source,
            "ignored": dict(sorted(ignored.items())),
            "duplicates": duplicates,
            "shard_images": shard_images,
            "shards": len(self._heads),
        }
        self._writer.add_key_value_metadata({"vdna": json.dumps(metadata, sort_keys=True)})

    def manifest(
        self,
        data: Any,
        shard_images: int,
        source: str,
        ignored: Mapping[str, int],
        duplicates: int,
    ) -> Manifest:
        """What was written, its file being `data`."""
        return Manifest(
            data,
            tuple(self._heads),
            self._digest.hexdigest(),
            shard_images,
            source,
            dict(ignored),
            duplicates,
            self._labels,
        )


class ManifestDigest:
    """Of the candidates and the plan; not of where they were listed or what was ignored.

    `digest_of("manifest", [[fold, digest of the members, groups], …])`, each with its labels where
    there are any, without the whole of it in memory.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b'["manifest",[')
        self._first = True

    def add(self, head: ShardHead, table: pa.Table) -> None:
        groups = table["group"].to_pylist()
        labels = {name: table[name].to_pylist() for name in _labels(table.column_names)}
        shard = [head.fold, head.digest, groups, *([labels] if labels else [])]
        text = json.dumps(shard, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        self._hash.update((text if self._first else f",{text}").encode())
        self._first = False

    def hexdigest(self) -> str:
        ended = self._hash.copy()
        ended.update(b"]]")
        return ended.hexdigest()[:32]


def read_shard(source: Any, index: int, name: str) -> Shard:
    """One shard out of an open manifest file (a seekable binary file), reading its rows only."""
    file, _ = _open(source, name)
    table = _read_rows(file, index, name)
    return Shard(index, _fold_of(table, index, name), tuple(_entries(table)))


def count_shards(source: Any, name: str) -> int:
    """How many there are in an open manifest file. Raises `CorruptFile`."""
    file, _ = _open(source, name)
    return int(file.num_row_groups)


def read_part(source: Any, indices: Iterable[int], label: str, value: str, name: str) -> Manifest:
    """The manifest of a part, of these shards of an open manifest file and no others.

    Raises `CorruptFile` where one of them is not of the value.
    """
    file, metadata = _open(source, name)
    labels = _labels(file.schema_arrow.names)
    notes: tuple[int, str, dict[str, int], int]
    notes = (metadata["shard_images"], metadata["source"], {}, 0)
    sink = pa.BufferOutputStream()
    with ManifestWriter(sink, labels) as writer:
        for index in indices:
            table = _read_rows(file, index, name)
            if (found := _value_of(table, label, index)) != value:
                raise CorruptFile(f"{name}: shard {index} is of {label} {found!r}, not {value!r}")
            writer.add(_fold_of(table, index, name), table)
        writer.note(*notes)
    return writer.manifest(sink.getvalue().to_pybytes(), *notes)


def _value_of(table: pa.Table, label: str, index: int) -> str:
    values = {value or "" for value in pc.unique(table[label]).to_pylist()}
    if len(values) > 1:
        raise CorruptFile(f"shard {index} mixes values of {label}: {sorted(values)[:5]}")
    return str(values.pop())


def label_of(by: str) -> str:
    """The label that parts are made by: the one named, or the folders, where these are counted."""
    return FOLDERS if by.isascii() and by.isdecimal() else by


def find_entries(
    source: Any, wanted: Collection[tuple[str, str]], name: str, going: Callable[[], bool]
) -> dict[tuple[str, str], Entry]:
    """The candidates of these (uri, member) in an open manifest file, a shard in memory at a time.

    `going`: asked before each shard; where it says no, the others are not looked through.
    """
    file, _ = _open(source, name)
    uris = pa.array(sorted({uri for uri, _ in wanted}), pa.string())
    found: dict[tuple[str, str], Entry] = {}
    for index in range(file.num_row_groups):
        if len(found) == len(wanted) or not going():
            break
        table = _read_rows(file, index, name)
        for entry in _entries(table.filter(pc.is_in(table["uri"], uris))):
            if (entry.uri, entry.member) in wanted:
                found[entry.uri, entry.member] = entry
    return found


def default_shard_images(candidates: int) -> int:
    """Two shards a fold, within bounds, and whole micro-batches of a CPU.

    Below 1,000 images the folds, 16 of them, make shards smaller still. Small shards waste work on
    half-empty micro-batches; large ones lose much when a worker dies.
    """
    even = -(-candidates // (2 * FOLDS * SHARD_MULTIPLE)) * SHARD_MULTIPLE
    return min(MAX_SHARD_IMAGES, max(MIN_SHARD_IMAGES, even))


def _members_digest(
    uris: Sequence[str],
    members: Sequence[str],
    sizes: Sequence[int],
    identities: Sequence[str],
    positions: Sequence[int],
    accesses: Sequence[str],
) -> str:
    lines = [
        [uri, member, size, identity, *([position, access] if access else [])]
        for uri, member, size, identity, position, access in zip(
            uris, members, sizes, identities, positions, accesses, strict=True
        )
    ]
    return digest_of("members", lines)


def _head(index: int, fold: int, table: pa.Table) -> ShardHead:
    columns = ("uri", "member", "size", "identity", "position", "access")
    digest = _members_digest(*(table[name].to_pylist() for name in columns))
    return ShardHead(index, fold, table.num_rows, digest)


def _labels(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in SCHEMA.names)


def _entry_schema() -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in ENTRY_COLUMNS])


def _open(source: Any, name: str) -> tuple[pq.ParquetFile, dict[str, Any]]:
    try:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        metadata = json.loads(file.metadata.metadata[b"vdna"])
        kind, version, shards = metadata["kind"], metadata["format"], metadata["shards"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{name}: torn, or not a manifest: {error}") from error
    if kind != "manifest" or version not in READS:
        raise CorruptFile(
            f"{name}: {kind!r} of format {version}; this version of vdna reads manifests "
            f"{', '.join(map(str, READS))}"
        )
    if shards != file.num_row_groups:
        raise CorruptFile(f"{name}: states {shards} shards, holds {file.num_row_groups}")
    return file, metadata


def _read_rows(file: pq.ParquetFile, index: int, name: str) -> pa.Table:
    try:
        table = _whole(file.read_row_group(index))
        held = table.select(SCHEMA.names).cast(SCHEMA)
        held.validate(full=True)  # text that is none would only be found when it is used
        for field in SCHEMA:
            at = table.column_names.index(field.name)
            table = table.set_column(at, field, held[field.name])
    except (pa.ArrowException, OSError, IndexError, KeyError) as error:
        raise CorruptFile(f"{name}: shard {index} cannot be read: {error}") from error
    if any(column.null_count for column in held.columns):
        raise CorruptFile(f"{name}: shard {index} lacks a value")
    return table


def _whole(table: pa.Table) -> pa.Table:
    """With the columns that an older format lacks."""
    for name, value in (("position", 0), ("access", "")):
        if name not in table.column_names:
            values = pa.array([value] * table.num_rows, SCHEMA.field(name).type)
            table = table.append_column(name, values)
    return table


def _fold_of(table: pa.Table, index: int, name: str) -> int:
    folds = set(table["fold"].to_pylist())
    if len(folds) != 1 or set(table["shard"].to_pylist()) != {index}:
        raise CorruptFile(f"{name}: row group {index} is not one whole shard of one fold")
    return int(folds.pop())


def _entries(table: pa.Table) -> Iterator[Entry]:
    columns = [table[name].to_pylist() for name in ENTRY_COLUMNS]
    names = dict(zip(ENTRY_COLUMNS, columns, strict=True))
    for row in zip(*(names[name] for name in Entry.__dataclass_fields__), strict=True):
        yield Entry(*row)
