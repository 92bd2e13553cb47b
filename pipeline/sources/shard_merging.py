"""Puts small shards together, so that a dataset that grows a little every day has few of them.

>>> [[head.index for head in group] for group in merge_groups(heads, 64, value)] # doctest: +SKIP
[[3, 8, 11, 17]]

Each refresh that adds images adds a shard to each fold that gets some. A shard that is one cell,
and at most half as large as a new one, waits until `TOGETHER` of its fold and value are there, or
as many as make a new shard. They become one shard, in which each is a cell, or a run of a cell if
they are very small (see `cell_joining`). So every image is counted as before, and the new partial
is a sum of those that are kept. A shard is merged once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from pipeline.sources.entry import ShardHead

TOGETHER = 16
"""How many small shards become one."""

MOST_MERGES = 64
"""How many shards a plan puts together at most, so that no refresh has much to add up: the rest is
left for later ones. With one for each fold and `TOGETHER` plans, it is enough."""


def merge_groups(
    heads: Iterable[ShardHead], size: int, value_of: Callable[[ShardHead], str]
) -> list[list[ShardHead]]:
    """Finds the shards of a plan that are to be put together.

    Args:
        heads: The shards, in their order.
        size: How many members a new shard has.
        value_of: Gives the value of the label by which parts are made.

    Returns:
        The shards of each new one, in their order: two at least, of one fold and value.
    """
    waiting: defaultdict[tuple[int, str], list[ShardHead]] = defaultdict(list)
    groups: list[list[ShardHead]] = []
    for head in heads:
        if len(groups) == MOST_MERGES:
            break
        if head.cells or head.runs or 2 * head.candidates > size:
            continue
        of = head.fold, value_of(head)
        if sum(each.candidates for each in waiting[of]) + head.candidates > size:
            groups.append(waiting.pop(of))
        waiting[of].append(head)
        if len(waiting[of]) == TOGETHER:
            groups.append(waiting.pop(of))
    return groups
