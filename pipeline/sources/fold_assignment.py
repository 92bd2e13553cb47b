"""Chooses the fold of each group of candidates, and holds a fold's rows on disk.

A group's number is the hash of its name, the same in all datasets (see `pair_names`). From
`HASHED_GROUPS` groups on, its fold is that number modulo 16. So images that two datasets share, or
an image and its altered copy, are in the same fold. The folds' sizes then differ by chance, which
costs error bars next to nothing. In a smaller dataset some folds could be empty, so folds are of
equal size there, and most groups are in the fold that their number says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.spec import FOLDS

HASHED_GROUPS = 8 * FOLDS
"""From this number of groups on, their folds are taken from a hash alone. A single image is a group
of its own."""


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

    def nearest(self, number: int, value: str, candidates: int, share: int, left: int) -> int:
        """Returns the fold of a group in a small dataset, where folds are of equal size.

        It is the first one with room, from the fold that the group's number says, in steps that its
        number says, too. If none has room, it is the smallest one.

        Args:
            number: The group's number.
            value: The group's value of a label; empty for none.
            candidates: How many candidates the group has.
            share: How many candidates of the value a fold may have. A group may go beyond that by
                half of its size.
            left: How many groups of the value have no fold yet, this one among them. If there are
                no more than empty folds, each gets an empty one: with more folds, error bars are
                narrower.
        """
        sizes = self._by_value[value] if value else self._all
        step = number // FOLDS % FOLDS | 1  # odd, so that it comes to all folds
        most = 0 if left <= sizes.count(0) else 2 * share - candidates
        for at in range(FOLDS):
            fold = (number + at * step) % FOLDS
            if not sizes[fold] or 2 * sizes[fold] <= most:
                return fold
        return self.smallest(value)


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
