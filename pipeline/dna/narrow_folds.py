"""Holds the counts of all folds of a DNA in one layer, as narrow numbers, for sums over folds.

>>> file.read_narrow_folds("blocks.3.1").counts.shape                     # doctest: +SKIP
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
from pipeline.dna.count_pages import Counts, counts_in_pages
from pipeline.dna.neuron_rows import ARROW_TYPES
from pipeline.dna.sealed import SealedFile, corrupt_if_unreadable
from pipeline.dna.value import DNA, INT_COLUMNS
from pipeline.spec import Tap

_TYPES = {"fold": pa.int32(), "layer": pa.string(), "neuron": pa.int32(), **ARROW_TYPES}
"""The columns beside the counts."""


@dataclass(frozen=True, eq=False)
class NarrowFolds:
    """What K folds counted in a layer of C neurons.

    Attributes:
        numbers: The numbers of the folds, in order.
        images: (K,) images of each.
        counts: (K, C, B) int32 activations in each bin; none is negative.
        underflow: (K, C) activations below the first bin.
        overflow: (K, C) activations above the last bin.
    """

    numbers: tuple[int, ...]
    images: Ints
    counts: Counts
    underflow: Ints
    overflow: Ints

    @classmethod
    def read(
        cls, file: SealedFile, index: int, tap: Tap, bins: int, totals: Mapping[int, DNA]
    ) -> NarrowFolds | None:
        """Reads a row group of a file of folds, and checks all that `DnaFile.read_folds` checks.

        Args:
            file: The file.
            index: The number of the row group.
            tap: Its layer.
            bins: Bins of a histogram.
            totals: What the file states of each fold, by number in order.

        Returns:
            The counts. None if anything is not as `LayersWriter` writes it, if a count is above
            2**31 - 1, or if a check fails; `DnaFile.read_folds` reads the folds, or says what is
            wrong.

        Raises:
            CorruptFile: The columns beside the counts cannot be read.
        """
        schema = file.parquet.schema_arrow
        types = dict(zip(schema.names, schema.types, strict=True))
        if len(schema) != len(types) or types != _TYPES | {"counts": types.get("counts")}:
            return None
        with corrupt_if_unreadable(f"{file.name}: layer {tap.name} cannot be read"):
            rows = file.parquet.read_row_group(index, list(_TYPES), use_threads=False)
        numbers, neurons = tuple(totals), tap.neurons
        images = np.array([of.images for of in totals.values()], np.int64)
        if any(column.null_count for column in rows.itercolumns()):
            return None
        in_order = (
            np.array_equal(rows["fold"], np.repeat(numbers, neurons))
            and np.array_equal(rows["neuron"], np.tile(np.arange(neurons), len(numbers)))
            and pc.unique(rows["layer"]).to_pylist() == [tap.name]
        )
        counts = counts_in_pages(file, index, bins) if in_order else None
        if counts is None:
            return None
        outside = {name: rows[name].to_numpy().reshape(-1, neurons) for name in INT_COLUMNS}
        sums = np.empty((len(numbers), neurons), np.int64)
        _add_bins(counts, sums.ravel())
        for of in outside.values():
            if (of < 0).any():
                return None
            sums += of
        if (sums != images[:, None] * tap.positions).any():
            return None
        return cls(
            numbers,
            images,
            counts.reshape(*sums.shape, bins),
            outside["underflow"],
            outside["overflow"],
        )


@compiled
def _add_bins(counts: Counts, sums: Ints) -> None:
    """Sums rows of counts."""
    for row in range(len(counts)):
        total = 0
        for i in range(counts.shape[1]):
            total += counts[row, i]
        sums[row] = total
