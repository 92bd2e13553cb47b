"""A listing of images, frozen into deterministic shards and folds: the plan of a build.

    >>> m = plan(entries)                                       # doctest: +SKIP
    >>> plan(entries, previous=m).digest == m.digest            # doctest: +SKIP

The same entries give the same plan on any machine, in any order of listing. A later listing keeps
every old shard whose members are unchanged, so that only what changed is computed again. Single
images are spread over folds and shards by a hash of their group, so that every fold is a fair
sample; a group (a video, a drive, a patient) never straddles folds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CorruptFile, SourceError, UsageError
from pipeline.spec import PRODUCTS, digest_of

FORMAT = 2
READS = (1, 2)
"""Format 1 had neither `position` nor `access`: it knew no archives."""
FOLDS = 16
MAX_SHARD_IMAGES = 4096
MIN_SHARD_IMAGES = 64
SHARD_MULTIPLE = 8

_SCHEMA = pa.schema(
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
class Shard:
    """One unit of work: its members in the order in which they are counted."""

    index: int
    fold: int
    members: tuple[Entry, ...]

    @cached_property
    def digest(self) -> str:
        lines = [
            [e.uri, e.member, e.size, e.identity, *([e.position, e.access] if e.access else [])]
            for e in self.members
        ]
        return digest_of("members", lines)

    def key(self, spec_digest: str, products: Sequence[str] = PRODUCTS) -> str:
        """Names the shard's partial: what is counted, what is kept, and of which images."""
        return digest_of("shard", spec_digest, list(products), self.digest)


@dataclass(frozen=True)
class Listing:
    """What a source held: candidates, and what was left out on purpose, by kind."""

    source: str
    entries: tuple[Entry, ...]
    ignored: Mapping[str, int]
    duplicates: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """Every candidate once, in shards. `shard_images`: the size that new shards are cut to."""

    shards: tuple[Shard, ...]
    shard_images: int
    source: str = ""
    ignored: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0

    @property
    def candidates(self) -> int:
        return sum(len(shard.members) for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """Of the candidates and the plan; not of where they were listed or what was ignored."""
        shards = [[s.fold, s.digest, [e.group for e in s.members]] for s in self.shards]
        return digest_of("manifest", shards)

    def keys(self, spec_digest: str, products: Sequence[str] = PRODUCTS) -> tuple[str, ...]:
        return tuple(shard.key(spec_digest, products) for shard in self.shards)

    def folds(self) -> dict[int, list[Shard]]:
        by_fold: defaultdict[int, list[Shard]] = defaultdict(list)
        for shard in self.shards:
            by_fold[shard.fold].append(shard)
        return dict(sorted(by_fold.items()))

    def encode(self) -> bytes:
        """One row per candidate, one row group per shard."""
        sink = pa.BufferOutputStream()
        metadata = {
            "format": FORMAT,
            "kind": "manifest",
            "digest": self.digest,
            "source": self.source,
            "ignored": dict(sorted(self.ignored.items())),
            "duplicates": self.duplicates,
            "shard_images": self.shard_images,
            "shards": len(self.shards),
        }
        with pq.ParquetWriter(
            sink, _SCHEMA, compression="zstd", store_schema=False, write_statistics=False
        ) as writer:
            for shard in self.shards:
                writer.write_table(_shard_table(shard), row_group_size=len(shard.members))
            writer.add_key_value_metadata({"vdna": json.dumps(metadata, sort_keys=True)})
        return cast(bytes, sink.getvalue().to_pybytes())

    @classmethod
    def decode(cls, data: bytes, name: str) -> Manifest:
        """Raises `CorruptFile` where the content is not what its own digest states."""
        file, metadata = _open(pa.BufferReader(data), name)
        shards = tuple(_read_shard(file, i, name) for i in range(file.num_row_groups))
        manifest = cls(
            shards,
            int(metadata["shard_images"]),
            str(metadata["source"]),
            metadata["ignored"],
            int(metadata["duplicates"]),
        )
        if manifest.digest != metadata["digest"]:
            raise CorruptFile(
                f"{name}: states digest {metadata['digest']}, its rows have {manifest.digest}"
            )
        return manifest


def read_shard(source: Any, index: int, name: str) -> Shard:
    """One shard out of an open manifest file (a seekable binary file), reading its rows only."""
    file, _ = _open(source, name)
    return _read_shard(file, index, name)


def plan(
    entries: Iterable[Entry],
    *,
    shard_images: int | None = None,
    previous: Manifest | None = None,
    listing: Listing | None = None,
) -> Manifest:
    """Cut entries into shards; keep the shards of `previous` as far as their members still stand.

    A shard that lost or changed a member is kept without it, or with its new identity, and so is
    computed again; entries not seen before go to new shards. Where entries are grouped otherwise
    than before, all is planned anew, for folds must not split a group.

    Raises `SourceError` on no entries.
    """
    found = {(entry.uri, entry.member): entry for entry in entries}
    if not found:
        raise SourceError("there is no image to plan for")
    size = default_shard_images(len(found)) if shard_images is None else shard_images
    if size < 1:
        raise UsageError(f"shard_images is {size}; it must be at least 1")
    if previous and _regrouped(previous, found):
        previous = None
    kept: list[tuple[int, tuple[Entry, ...]]] = []
    fold_of: dict[str, int] = {}
    load: Counter[int] = Counter()
    for shard in previous.shards if previous else ():
        members = []
        for old in shard.members:
            fold_of[old.group or old.uri] = shard.fold
            current = found.pop((old.uri, old.member), None)
            if current is not None:
                members.append(current)
        if members:
            kept.append((shard.fold, tuple(members)))
            load[shard.fold] += len(members)
    new = _spread(found.values(), fold_of, load)
    for fold in range(FOLDS):
        members = new.get(fold, [])
        for start in range(0, len(members), size):
            kept.append((fold, tuple(sorted(members[start : start + size], key=_place))))
    shards = tuple(Shard(i, fold, members) for i, (fold, members) in enumerate(kept))
    if listing is None:
        return Manifest(shards, size)
    return Manifest(shards, size, listing.source, listing.ignored, listing.duplicates)


def _regrouped(previous: Manifest, found: Mapping[tuple[str, str], Entry]) -> bool:
    return any(
        (entry := found.get((old.uri, old.member))) is not None and entry.group != old.group
        for shard in previous.shards
        for old in shard.members
    )


def default_shard_images(candidates: int) -> int:
    """Two shards a fold, within bounds, and whole micro-batches of a CPU.

    Below 1,000 images the folds, 16 of them, make shards smaller still. Small shards waste work on
    half-empty micro-batches; large ones lose much when a worker dies.
    """
    even = -(-candidates // (2 * FOLDS * SHARD_MULTIPLE)) * SHARD_MULTIPLE
    return min(MAX_SHARD_IMAGES, max(MIN_SHARD_IMAGES, even))


def _spread(
    entries: Iterable[Entry], fold_of: dict[str, int], load: Counter[int]
) -> dict[int, list[Entry]]:
    """Groups in order of their hash, each to the fold that has least; known groups to theirs."""
    groups: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.group or entry.uri].append(entry)
    by_fold: defaultdict[int, list[Entry]] = defaultdict(list)
    for group in sorted(groups, key=lambda name: (_hash(name), name)):
        fold = fold_of.get(group)
        if fold is None:
            fold = min(range(FOLDS), key=lambda candidate: (load[candidate], candidate))
        by_fold[fold].extend(sorted(groups[group], key=_place))
        load[fold] += len(groups[group])
    return by_fold


def sample(entries: Iterable[Entry], limit: int) -> list[Entry]:
    """`limit` entries, chosen by a hash of their names: the same ones on every run."""
    if limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    ranked = sorted(entries, key=lambda e: (_hash(f"{e.uri}\0{e.member}"), e.place))
    return ranked[:limit]


def grouping(rule: str | None, root: str) -> Callable[[str], str]:
    """`--group-by`: the first N folders below the source are the group of an image.

    Raises `UsageError` for anything but a positive number.
    """
    if rule is None:
        return lambda uri: ""
    if not rule.isdecimal() or int(rule) < 1:
        raise UsageError(
            f"group-by is {rule!r}; give the number of leading folders below the source that name "
            "a group (1 for source/video17/frame.jpg)"
        )
    depth, prefix = int(rule), root.rstrip("/") + "/"

    def group_of(uri: str) -> str:
        folders = uri.removeprefix(prefix).split("/")[:-1]
        return prefix + "/".join(folders[:depth])

    return group_of


def _place(entry: Entry) -> tuple[str, int, str]:
    return entry.place


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _shard_table(shard: Shard) -> pa.Table:
    columns: dict[str, list[object]] = {
        name: [getattr(entry, name) for entry in shard.members]
        for name in ("uri", "member", "size", "identity", "group", "position", "access")
    }
    columns["shard"] = [shard.index] * len(shard.members)
    columns["fold"] = [shard.fold] * len(shard.members)
    return pa.table({name: columns[name] for name in _SCHEMA.names}, schema=_SCHEMA)


def _open(source: Any, name: str) -> tuple[pq.ParquetFile, dict[str, Any]]:
    try:
        file = pq.ParquetFile(source)
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


def _read_shard(file: pq.ParquetFile, index: int, name: str) -> Shard:
    try:
        rows = file.read_row_group(index).to_pylist()
    except (pa.ArrowException, OSError, IndexError) as error:
        raise CorruptFile(f"{name}: shard {index} cannot be read: {error}") from error
    folds = {row["fold"] for row in rows}
    if len(folds) != 1 or any(row["shard"] != index for row in rows):
        raise CorruptFile(f"{name}: row group {index} is not one whole shard of one fold")
    return Shard(index, folds.pop(), tuple(_entries(rows)))


def _entries(rows: Iterable[dict[str, Any]]) -> Iterator[Entry]:
    for row in rows:
        yield Entry(
            row["uri"],
            row["member"],
            row["size"],
            row["identity"],
            row["group"],
            row.get("position", 0),
            row.get("access", ""),
        )
