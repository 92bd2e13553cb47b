"""Finds nodes whose devices are broken, by what becomes of the shards that are counted there.

>>> errors = DeviceErrors()
>>> errors.counted("a")
>>> [errors.failed("b", alive={"a", "b"}) for _ in range(3)], errors.left_out
([False, False, True], ('b',))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

MOST_ERRORS = 3
"""How many errors of devices in a row a node may meet."""


class DeviceErrors:
    """Judges nodes by their errors in a row.

    A node is only left out if another that lives has counted a shard. Where none has, the fault is
    hardly that of a device, or there would be no node left.
    """

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()
        self._sound: set[str] = set()
        self._left_out: dict[str, None] = {}

    @property
    def left_out(self) -> tuple[str, ...]:
        """The nodes that get no more shards, in the order in which they were left out."""
        return tuple(self._left_out)

    def counted(self, node: str) -> None:
        """Takes note that a node has counted a shard."""
        self._sound.add(node)
        self._in_a_row[node] = 0

    def failed(self, node: str, alive: Set[str]) -> bool:
        """Takes note of an error of a node's device.

        Args:
            node: The node.
            alive: All nodes that live now.

        Returns:
            Whether the node is left out from now on.
        """
        self._in_a_row[node] += 1
        others = (self._sound & alive) - {node} - self._left_out.keys()
        if node in self._left_out or self._in_a_row[node] < MOST_ERRORS or not others:
            return False
        self._left_out[node] = None
        return True
