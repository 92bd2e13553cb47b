"""Holds the counts of all folds of a DNA in one layer, for sums over folds.

>>> file.read_counts_by_fold("blocks.3.1").counts.shape                     # doctest: +SKIP
(16, 320, 1000)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.compiled import compiled
from pipeline.dna.arrays import Ints
from pipeline.dna.neuron_rows import ARROW_TYPES
from pipeline.dna.sealed import SealedFile, corrupt_if_unreadable
from pipeline.dna.value import DNA, INT_COLUMNS
from pipeline.spec import Tap

_TYPES = {
    "fold": pa.int32(),
    "layer": pa.string(),
    "neuron": pa.int32(),
    "counts": pa.list_(pa.int64()),
    **ARROW_TYPES,
}
"""The columns of a file of folds."""


@dataclass(frozen=True, eq=False)
class CountsByFold:
    """What K folds counted in a layer of C neurons.

    Attributes:
        numbers: The numbers of the folds, in order.
        images: (K,) images of each.
        counts: (C, B) activations in each bin, of each of the K folds; none is negative.
        underflow: (K, C) activations below the first bin.
        overflow: (K, C) activations above the last bin.
    """

    numbers: tuple[int, ...]
    images: Ints
    counts: tuple[Ints, ...]
    underflow: Ints
    overflow: Ints

    @classmethod
    def read(
        cls, file: SealedFile, index: int, tap: Tap, bins: int, totals: Mapping[int, DNA]
    ) -> CountsByFold | None:
        """Reads a row group of a file of folds, and checks all that `DnaFile.read_folds` checks.

        Args:
            file: The file.
            index: The number of the row group.
            tap: Its layer.
            bins: Bins of a histogram.
            totals: What the file states of each fold, by number in order.

        Returns:
            The counts. None if anything is not as `LayersWriter` writes it, or if a check fails;
            `DnaFile.read_folds` reads the folds, or says what is wrong.

        Raises:
            CorruptFile: The layer cannot be read.
        """
        schema = file.parquet.schema_arrow
        types = dict(zip(schema.names, schema.types, strict=True))
        if len(schema) != len(types) or types != _TYPES:
            return None
        with corrupt_if_unreadable(f"{file.name}: layer {tap.name} cannot be read"):
            batches = list(file.parquet.iter_batches(tap.neurons, [index], use_threads=False))
        rows = pa.Table.from_batches(batches, schema)
        numbers, neurons = tuple(totals), tap.neurons
        images = np.array([of.images for of in totals.values()], np.int64)
        if any(column.null_count for column in rows.itercolumns()):
            return None
        in_order = (
            np.array_equal(rows["fold"], np.repeat(numbers, neurons))
            and np.array_equal(rows["neuron"], np.tile(np.arange(neurons), len(numbers)))
            and pc.unique(rows["layer"]).to_pylist() == [tap.name]
        )
        if not in_order or [batch.num_rows for batch in batches] != [neurons] * len(numbers):
            return None
        counts = []
        for batch in batches:
            part = _counts_of(batch["counts"], bins)
            if part is None:
                return None
            counts.append(part)
        outside = {name: rows[name].to_numpy().reshape(-1, neurons) for name in INT_COLUMNS}
        sums = np.empty((len(numbers), neurons), np.int64)
        if not all(_add_bins(part, to) for part, to in zip(counts, sums, strict=True)):
            return None
        for of in outside.values():
            if (of < 0).any():
                return None
            sums += of
        if (sums != images[:, None] * tap.positions).any():
            return None
        return cls(numbers, images, tuple(counts), outside["underflow"], outside["overflow"])


def _counts_of(lists: pa.ListArray, bins: int) -> Ints | None:
    """Returns counts (C, B) as they lie in memory, or None if there are others or nulls."""
    values = lists.flatten()
    if values.null_count or (np.diff(lists.offsets) != bins).any():
        return None
    return np.asarray(values, np.int64).reshape(len(lists), bins)


@compiled
def _add_bins(counts: Ints, sums: Ints) -> bool:
    """Sums rows of counts, and returns whether none is negative."""
    bits = 0  # those that are set in any: the highest only in a negative number
    for row in range(len(counts)):
        total = 0
        for i in range(counts.shape[1]):
            total += counts[row, i]
            bits |= counts[row, i]
        sums[row] = total
    return bits >= 0
