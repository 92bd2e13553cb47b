"""Chooses the fold of each group of candidates, and holds a fold's rows on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.spec import FOLDS


class FoldSizes:
    """Counts the candidates of each fold: in all, and of each value of a label."""

    def __init__(self) -> None:
        self._all = [0] * FOLDS
        self._by_value: defaultdict[str, list[int]] = defaultdict(lambda: [0] * FOLDS)

    def add(self, fold: int, value: str, candidates: int = 1) -> None:
        """Adds candidates of one value to a fold. An empty value stands for none."""
        self._all[fold] += candidates
        if value:
            self._by_value[value][fold] += candidates

    def smallest(self, value: str) -> int:
        """Returns the fold with the fewest candidates of a value, and among equals in all."""
        if not value:
            return self._all.index(min(self._all))
        of_value = self._by_value[value]
        return min(range(FOLDS), key=lambda fold: (of_value[fold], self._all[fold]))


class FoldFile:
    """Keeps the rows of one fold in a temporary file, in the order in which they come."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: Any = None

    def write(self, rows: pa.RecordBatch) -> None:
        """Appends rows."""
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._path, rows.schema)
        self._writer.write_batch(rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows. No more can be written then."""
        if self._writer is None:
            return
        self._writer.close()
        # Given a path, Arrow would map the file and keep what it mapped in memory.
        with pa.OSFile(self._path) as file, pa.ipc.open_stream(file) as reader:
            yield from reader
