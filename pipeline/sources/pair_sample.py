"""Samples the names by which the images of a plan are paired with those of other datasets.

>>> pairs_of(manifest).shared(pairs_of(other))                   # doctest: +SKIP
Shared(of_smaller=0.9, of_larger=0.45)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.dna import Pairs
from pipeline.mapper import Mapper, SerialMapper
from pipeline.sources.database import connect
from pipeline.sources.manifest import Manifest
from pipeline.sources.pair_names import Pairing, name_number

PIECE_ROWS = 100_000
"""About how many images are looked at a time."""

TASK_FILES = 16
"""How many entries files one task reads: some 1.6 million images."""

_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("member", pa.string()),
        ("label", pa.string()),
        ("fold", pa.int32()),
    ]
)


@dataclass(frozen=True)
class _SampledShards:
    """Some shards of a manifest for one task, and below which number their names are sampled."""

    manifest: Manifest
    limit: int


def pairs_of(manifest: Manifest, mapper: Mapper | None = None) -> Pairs | None:
    """Samples the names of a manifest's images. All of them are read once.

    Args:
        manifest: The manifest.
        mapper: Where they are read, if there are many. None reads them in this process.

    Returns:
        The sample; None if the manifest does not say how images are named.

    Raises:
        CorruptFile: Some entries are damaged.
        SourceError: Some entries are missing.
        StorageError: The disk for temporary files has no room.
    """
    if manifest.pairing is None:
        return None
    limit = Pairs.limit_of(manifest.candidates)
    shards_of: dict[str, list[int]] = {}
    for head in manifest.heads:
        shards_of.setdefault(head.address.file, []).append(head.index)
    files = list(shards_of.values())
    tasks = [
        _SampledShards(manifest.select(chain(*files[first : first + TASK_FILES])), limit)
        for first in range(0, len(files), TASK_FILES)
    ]
    many = SerialMapper() if mapper is None or len(tasks) == 1 else mapper
    found: dict[int, int] = {}
    for sampled in many.map(_sample, tasks):
        for number, fold in sampled.items():
            found[number] = min(fold, found.get(number, fold))
    return Pairs.of(found, manifest.candidates)


def has_names_of(manifest: Manifest, pairing: Pairing) -> bool:
    """Tells whether images keep their names if they are named in another way. All are read.

    Args:
        manifest: The images, and how they are named.
        pairing: The other way.

    Returns:
        Whether all names are the same. False if a label has the names in one of the two ways.

    Raises:
        CorruptFile: Some entries are damaged.
        SourceError: Some entries are missing.
        StorageError: The disk for temporary files has no room.
    """
    now = manifest.pairing
    if now is None or now.label is not None or pairing.label is not None:
        return False
    query = f"select 1 from rows where {now.name()} <> {pairing.name()} limit 1"
    with storage.ScratchFolder("pairs") as folder, connect(folder) as database:
        for rows in _pieces(manifest, None):
            database.register("rows", rows)
            if database.execute(query).fetchone() is not None:
                return False
            database.unregister("rows")
    return True


def _sample(some: _SampledShards) -> dict[int, int]:
    """Returns the fold of each number below the limit; the lowest, if several images have it."""
    manifest, found = some.manifest, dict[int, int]()
    pairing = manifest.pairing or Pairing()
    number = name_number(pairing.name("label"))
    query = (
        f"select number, min(fold) from (select {number} as number, fold from rows) "
        f"where number < {some.limit} group by number"
    )
    with storage.ScratchFolder("pairs") as folder, connect(folder) as database:
        for rows in _pieces(manifest, pairing.label):
            database.register("rows", rows)
            for of_name, fold in database.execute(query).fetchall():
                found[of_name] = min(fold, found.get(of_name, fold))
            database.unregister("rows")
    return found


def _pieces(manifest: Manifest, label: str | None) -> Iterator[pa.Table]:
    """Yields the images of a manifest with their folds and a label, many at a time."""
    held: list[pa.Table] = []
    count = 0
    for head, rows in manifest.tables():
        folds = np.full(rows.num_rows, head.fold, np.int32)
        labels = pa.nulls(rows.num_rows, pa.string()) if label is None else rows[label]
        held.append(pa.table([rows["uri"], rows["member"], labels, folds], schema=_SCHEMA))
        count += rows.num_rows  # shards may be of a few images, and very many
        if count >= PIECE_ROWS:
            yield pa.concat_tables(held)
            held, count = [], 0
    if held:
        yield pa.concat_tables(held)
