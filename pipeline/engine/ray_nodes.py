"""What Ray knows of its nodes: who died with one, and who died on one that lives on."""

from __future__ import annotations

from typing import Any, cast

import ray

from pipeline.counting import Note


def list_nodes() -> list[dict[str, Any]]:
    """Returns all nodes that the cluster ever had, as Ray describes them."""
    return cast(list[dict[str, Any]], ray.nodes())  # type: ignore[no-untyped-call]  # Ray's


class RayHome:
    """The home of an actor: its node, and the pool that it belongs to.

    Ray starts an actor again only when it knows whether the node is lost, so an actor that takes
    the shard of a dead one is told the truth. A pool that ends kills its actors; so nothing is told
    of those of another pool.
    """

    def __init__(self, pool: str) -> None:
        """Looks for nothing yet.

        Args:
            pool: A text that no other pool has.
        """
        self._pool = pool

    @property
    def label(self) -> dict[str, str]:
        """The pool, and the node that this process runs on."""
        return {"node": ray.get_runtime_context().get_node_id(), "pool": self._pool}

    def saw_crash(self, note: Note) -> bool:
        """Tells whether the process of a note was of this pool, and its node lives on."""
        if note.get("pool") != self._pool:
            return False
        return any(node["Alive"] and node["NodeID"] == note.get("node") for node in list_nodes())
