"""Samples the names by which the images of a plan are paired with those of other datasets.

>>> pairs_of(manifest).shared(pairs_of(other))                   # doctest: +SKIP
Shared(of_smaller=0.9, of_larger=0.45)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.dna import Pairs
from pipeline.sources.database import connect
from pipeline.sources.manifest import Manifest
from pipeline.sources.pair_names import name_number

PIECE_ROWS = 100_000
"""About how many images are looked at a time."""

_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("member", pa.string()),
        ("label", pa.string()),
        ("fold", pa.int32()),
    ]
)


def pairs_of(manifest: Manifest) -> Pairs | None:
    """Samples the names of a manifest's images. It reads all of them once.

    Args:
        manifest: The manifest.

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
    found: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="vdna-pairs-") as folder, connect(folder) as database:
        number = name_number(manifest.pairing.name("label"))
        for rows in _pieces(manifest, manifest.pairing.label):
            database.register("rows", rows)
            query = f"select number, fold from (select {number} as number, fold from rows)"
            chosen = database.execute(f"{query} where number < {limit}").fetchall()
            for of_name, fold in chosen:
                found[of_name] = min(fold, found.get(of_name, fold))
            database.unregister("rows")
    return Pairs.of(found, manifest.candidates)


def _pieces(manifest: Manifest, label: str | None) -> Iterator[pa.Table]:
    """Yields the images of a manifest with their folds and a label, many at a time."""
    held: list[pa.Table] = []
    for head, rows in manifest.tables():
        folds = np.full(rows.num_rows, head.fold, np.int32)
        labels = pa.nulls(rows.num_rows, pa.string()) if label is None else rows[label]
        held.append(pa.table([rows["uri"], rows["member"], labels, folds], schema=_SCHEMA))
        if sum(piece.num_rows for piece in held) >= PIECE_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
