"""Holds the plan of a build: every candidate of a dataset once, in shards and folds.

    >>> manifest.candidates, len(manifest.shards)                # doctest: +SKIP
    (9100000, 2240)
    >>> manifest.shards[7].members[0].uri                        # doctest: +SKIP

A manifest is a small file that describes each shard. The candidates are in entries files, which
several manifests may share, and are read a shard at a time. `pipeline.sources.sharding` makes a
manifest from a listing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dna import SealedFile, corrupt_if_unreadable
from pipeline.errors import CorruptFile
from pipeline.sources.entries_file import (
    ENTRY_SCHEMA,
    Entries,
    EntriesWriter,
    describe_shard,
    entries_of,
)
from pipeline.sources.entry import Entry, Shard, ShardHead
from pipeline.sources.manifest_file import (
    MANIFEST,
    encode_manifest,
    heads_in,
    manifest_digest,
)
from pipeline.sources.pair_names import Pairing
from pipeline.spec import PRODUCTS


@dataclass(frozen=True, eq=False)
class Manifest:
    """Every candidate of a dataset once, in shards.

    Attributes:
        heads: The description of each shard.
        entries: Where the candidates are.
        shard_images: How many images a new shard got, at most.
        source: Where the candidates were listed.
        ignored: How many files were ignored, by kind.
        duplicates: How many candidates were listed more than once and dropped.
        labels: The names of the user's columns.
        pairing: How images are named for pairing; None if that is not known. The manifest's file
            has it unless they are named by their whole uris.
    """

    heads: tuple[ShardHead, ...]
    entries: Entries
    shard_images: int
    source: str = ""
    ignored: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    labels: tuple[str, ...] = ()
    pairing: Pairing | None = None

    @cached_property
    def digest(self) -> str:
        """The digest of the candidates and the plan (see `manifest_digest`)."""
        return manifest_digest(self.labels, self.heads)

    @cached_property
    def data(self) -> bytes:
        """The manifest's own file."""
        notes: dict[str, Any] = {
            "digest": self.digest,
            "shard_images": self.shard_images,
            "source": self.source,
            "ignored": dict(sorted(self.ignored.items())),
            "duplicates": self.duplicates,
            "labels": list(self.labels),
        }
        if self.pairing is not None and self.pairing != Pairing():
            notes["pairing"] = asdict(self.pairing)
        return encode_manifest(self.heads, notes)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the entries files, each once."""
        return tuple(dict.fromkeys(head.address.file for head in self.heads))

    @property
    def in_files(self) -> list[ShardHead]:
        """The descriptions in the order of the shards' places: those of a file are together."""
        files = {name: at for at, name in enumerate(self.files)}
        return sorted(
            self.heads, key=lambda head: (files[head.address.file], head.address.row_group)
        )

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
        at = self.labels.index(label)
        for head in self.heads:
            value = head.values[at]
            if value is None:
                raise CorruptFile(f"shard {head.index} mixes values of {label}")
            if value:
                parts[value].append(head.index)
        return dict(sorted(parts.items()))

    def select(self, indices: Iterable[int]) -> Manifest:
        """Returns a manifest of some of the shards, which are numbered anew.

        Args:
            indices: The numbers of the shards, in the order that they are to have.
        """
        heads = (replace(self.heads[of], index=at) for at, of in enumerate(indices))
        return replace(self, heads=tuple(heads), ignored={}, duplicates=0)

    @classmethod
    def joined(cls, manifests: Sequence[Manifest]) -> Manifest:
        """Returns the shards of several manifests of one source, which are numbered anew.

        Args:
            manifests: At least one; the first one's other attributes are taken.
        """
        heads = [head for each in manifests for head in each.heads]
        return replace(
            manifests[0],
            heads=tuple(replace(head, index=at) for at, head in enumerate(heads)),
            duplicates=sum(each.duplicates for each in manifests),
        )

    def tables(self) -> Iterator[tuple[ShardHead, pa.Table]]:
        """Yields each shard with its rows, with all columns; those of a file one after the other.

        Raises:
            CorruptFile: An entries file is damaged, or is not what the manifest describes.
            SourceError: An entries file is missing.
        """
        yield from self.entries.read_shards(self.in_files)

    def find(
        self, wanted: Collection[tuple[str, str]], keep_going: Callable[[], bool] = lambda: True
    ) -> dict[tuple[str, str], Entry]:
        """Looks candidates up by their names, with one entries file in memory at a time.

        Args:
            wanted: The uri and member of each candidate.
            keep_going: Asked before each shard. The search ends when it returns False.

        Returns:
            The candidates that were found, by uri and member.

        Raises:
            CorruptFile: An entries file is damaged.
            SourceError: An entries file is missing.
        """
        uris = pa.array(sorted({uri for uri, _ in wanted}), pa.string())
        found: dict[tuple[str, str], Entry] = {}
        if not wanted or not keep_going():
            return found
        for _, table in self.tables():
            for entry in entries_of(table.filter(pc.is_in(table["uri"], uris))):
                if (entry.uri, entry.member) in wanted:
                    found[entry.uri, entry.member] = entry
            if len(found) == len(wanted) or not keep_going():
                break
        return found

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
        with ManifestWriter(Entries()) as writer:
            for shard in shards:
                columns = {n: [getattr(e, n) for e in shard.members] for n in ENTRY_SCHEMA.names}
                rows = pa.table(columns, ENTRY_SCHEMA)
                writer.add(shard.fold, rows, None, shard.cells, shard.origins, shard.runs)
        return writer.manifest(shard_images, source, ignored, duplicates)

    @classmethod
    def decode(cls, data: bytes, name: str, entries: Entries) -> Manifest:
        """Returns the manifest in a file. The candidates are checked when they are read.

        Args:
            data: The file.
            name: The file's name for error messages.
            entries: Where the candidates are.

        Raises:
            CorruptFile: The file is damaged, or is not what its digest says.
        """
        file = SealedFile(data, MANIFEST, name)
        metadata = file.metadata
        heads = [head for at in range(len(file.row_groups)) for head in heads_in(file, at)]
        with corrupt_if_unreadable(f"{name}: its metadata cannot be read"):
            manifest = cls(
                tuple(heads),
                entries,
                int(metadata["shard_images"]),
                str(metadata["source"]),
                dict(metadata["ignored"]),
                int(metadata["duplicates"]),
                tuple(map(str, metadata["labels"])),
                Pairing(**pairing) if (pairing := metadata.get("pairing")) else None,
            )
        if manifest.digest != metadata.get("digest"):
            raise CorruptFile(
                f"{name}: states digest {metadata.get('digest')}, its rows have {manifest.digest}"
            )
        if any(len(head.values) != len(manifest.labels) for head in heads):
            raise CorruptFile(f"{name}: a shard has other labels than {manifest.labels}")
        return manifest


class _ShardReader(Sequence[Shard]):
    """The shards of a manifest, each read from the file when it is asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._heads = manifest.heads
        self._entries = manifest.entries

    def __len__(self) -> int:
        return len(self._heads)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Shard]: ...
    def __getitem__(self, index: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._entries.shard(self._heads[index])


class ManifestWriter:
    """Writes the candidates of a manifest shard by shard, and describes each shard.

    Leaving the `with` block stores the last entries file.

    Args:
        entries: Where the candidates go.
        labels: The names of the user's columns.
    """

    def __init__(self, entries: Entries, labels: Sequence[str] = ()) -> None:
        self._entries = entries
        self._labels = tuple(labels)
        self._writer = EntriesWriter(entries, labels)
        self._count = 0
        self._heads: dict[int, ShardHead] = {}

    def add(
        self,
        fold: int,
        rows: pa.Table,
        kept: ShardHead | None = None,
        cells: tuple[int, ...] = (),
        origins: tuple[str, ...] = (),
        runs: tuple[int, ...] = (),
        cell_images: int = 0,
    ) -> None:
        """Adds the next shard.

        Args:
            fold: The shard's fold.
            rows: Its members in the order of counting, with the columns of `ENTRY_SCHEMA` and the
                labels.
            kept: The shard that it was in an earlier manifest with the same entries, or None. If
                nothing has changed, its rows are not written again.
            cells: How many members each cell has; empty if the shard is one cell.
            origins: See `ShardHead`.
            runs: How many members each run has; empty if each cell is one run.
            cell_images: See `ShardHead`.
        """
        rows = rows.select(self._writer.schema.names).cast(self._writer.schema)
        head = describe_shard(self._count, fold, rows, cells, runs)
        self._count += 1
        if kept is not None and replace(kept, index=head.index) == head:
            self._heads[head.index] = replace(kept, index=head.index)
        else:
            stated = replace(head, origins=origins, cell_images=cell_images)
            self._note(self._writer.add(stated, rows))

    def keep(self, kept: ShardHead) -> None:
        """Adds a shard whose members are in the entries already.

        Args:
            kept: The shard.
        """
        self._heads[self._count] = replace(kept, index=self._count)
        self._count += 1

    def _note(self, heads: Iterable[ShardHead]) -> None:
        self._heads |= {head.index: head for head in heads}

    def __enter__(self) -> ManifestWriter:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._note(self._writer.end_file())
        finally:
            self._writer.__exit__(kind, error, trace)

    def manifest(
        self,
        shard_images: int,
        source: str = "",
        ignored: Mapping[str, int] | None = None,
        duplicates: int = 0,
    ) -> Manifest:
        """Returns the manifest of the shards that were added (see its attributes)."""
        heads = tuple(self._heads[index] for index in range(self._count))
        notes = (shard_images, source, dict(ignored or {}), duplicates, self._labels)
        return Manifest(heads, self._entries, *notes)
