"""Finds nodes that are broken, by what becomes of the shards and of the workers there.

>>> nodes = BrokenNodes()
>>> nodes.counted("a")
>>> [nodes.failed("b", alive={"a", "b"}) for _ in range(3)], nodes.left_out
([False, False, True], ('b',))
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Set

MOST_ERRORS = 3
"""How many errors of devices in a row a node may meet."""

MOST_IDLE_NODES = 8
"""How many nodes may fail to start a worker, one after the other, while no worker runs. If more
workers than that start at the same time, as many nodes as these may fail."""


class BrokenNodes:
    """Judges nodes by their errors in a row, and by workers that cannot start there.

    A node whose device fails is only left out if another that lives has counted a shard. Where none
    has, the fault is hardly that of a device, or there would be no node left.

    It may be told by several threads: Ray's own tells of workers that could not start.
    """

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()
        self._sound: set[str] = set()
        self._left_out: dict[str, None] = {}
        self._idle: set[str] = set()
        self._lock = threading.Lock()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The nodes that get no more shards, in the order in which they were left out."""
        with self._lock:
            return tuple(self._left_out)

    def counted(self, node: str) -> None:
        """Takes note that a node has counted a shard."""
        self._sound.add(node)
        self._in_a_row[node] = 0
        with self._lock:
            self._idle.clear()

    def failed(self, node: str, alive: Set[str]) -> bool:
        """Takes note of an error of a node's device.

        Args:
            node: The node.
            alive: All nodes that live now.

        Returns:
            Whether the node is left out from now on.
        """
        self._in_a_row[node] += 1
        with self._lock:
            others = (self._sound & alive) - {node} - self._left_out.keys()
            if node in self._left_out or self._in_a_row[node] < MOST_ERRORS or not others:
                return False
            self._left_out[node] = None
        return True

    def could_not_start(self, node: str, able: Set[str], running: int, at_once: int) -> bool:
        """Takes note that a worker could not start on a node.

        The last node that may start one is never left out: the next pool would wait for another in
        vain. Where no worker runs, and one node after the other starts none, the fault is hardly
        theirs. A cluster that grows would start a node after the other for nothing.

        Args:
            node: The node.
            able: All nodes that live now and are large enough for a worker.
            running: How many workers run now.
            at_once: How many workers start at the same time, on as many nodes at most. All of these
                may fail before the first worker runs.

        Returns:
            Whether the node is left out, from now on or since it was told of before.
        """
        with self._lock:
            if node in self._left_out:
                return True
            if running:
                self._idle.clear()
            self._idle.add(node)
            others = able - {node} - self._left_out.keys()
            if not others or len(self._idle) >= max(MOST_IDLE_NODES, at_once):
                return False
            self._left_out[node] = None
        return True
