"""Puts small shards together, so that a dataset that grows a little every day has few of them.

>>> merger.take(kept, rows, "")                                  # doctest: +SKIP
[(kept, rows)]

Each refresh that adds images adds a shard to each fold that gets some. A shard that is one cell,
and at most half as large as a new one, waits until `TOGETHER` of its fold and value are there, or
as many as make a new shard. They become one shard, in which each is a cell. So every image is
counted as before, and the new partial is a sum of those that are kept. A shard is merged once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.sources.entry import ShardHead

TOGETHER = 16
"""How many small shards become one."""

MOST_MERGES = 64
"""How many shards a plan puts together at most, so that no refresh has much to add up: the rest is
left for later ones. With one for each fold and `TOGETHER` plans, it is enough."""

KeptShard = tuple[ShardHead, pa.Table]
"""A shard as it was, and its members."""


@dataclass
class ShardMerger:
    """Holds small shards back until enough of a fold and value are there.

    Attributes:
        size: How many members a new shard has.
        left: How many more shards it puts together.
    """

    size: int
    left: int = MOST_MERGES
    _held: defaultdict[tuple[int, str], list[KeptShard]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def takes(self, kept: ShardHead) -> bool:
        """Tells whether a shard is to be put together with others, if it has not changed."""
        return self.left > 0 and not kept.cells and 2 * kept.candidates <= self.size

    def take(self, kept: ShardHead, rows: pa.Table, value: str) -> list[KeptShard]:
        """Holds a small shard back.

        Args:
            kept: The shard.
            rows: Its members.
            value: Their value of the label by which parts are made.

        Returns:
            Shards that are to become one, in their order; none if there are not enough yet.
        """
        held = self._held[kept.fold, value]
        full: list[KeptShard] = []
        if sum(head.candidates for head, _ in held) + kept.candidates > self.size:
            full, self._held[kept.fold, value] = held, [(kept, rows)]
        else:
            held.append((kept, rows))
            if len(held) == TOGETHER:
                full = self._held.pop((kept.fold, value))
        self.left -= bool(full)
        return full

    def rest(self) -> list[KeptShard]:
        """Returns the shards that are held back, in the order of their numbers."""
        rest = [each for held in self._held.values() for each in held]
        return sorted(rest, key=lambda each: each[0].index)
