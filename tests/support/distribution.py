"""Hands whole files of tests to the workers of xdist, and goes on after a worker has died."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

CLUSTERS = {"nodes": ("elastic", "autoscaler", "chaos", "kills", "ray_decoding")}
"""Files whose long tests start clusters of many nodes: those of a group run one after another, so
that no more than one such cluster runs at a time."""

GROUPS = {f"test_{name}.py": group for group, names in CLUSTERS.items() for name in names}


class FilesOrClusters(LoadFileScheduling):
    """Gives a worker a whole file, or a whole group of files that start clusters.

    After a worker has died, xdist 3.8 hands out its finished files again, as work of no tests, and
    gives its replacement too little to begin with, so that workers wait for ever. The release after
    it mends both. It also runs the test again that the worker died in, which may kill the next.
    """

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """Takes the tests that a worker has found.

        Args:
            node: The worker.
            collection: Their names.

        Raises:
            RuntimeError: They are not those of the others, as a file was edited meanwhile.
        """
        super().add_node_collection(node, collection)
        if node not in self.registered_collections:
            raise RuntimeError(f"{node.gateway.id} found other tests than the workers before it")

    def remove_node(self, node: WorkerController) -> str | None:
        """Hands out what a worker that has ended leaves.

        Args:
            node: The worker.

        Returns:
            The test that it died in, which is not run again; nothing if none was left.
        """
        work = self.assigned_work.pop(node)
        left = [(file, test) for file in work for test, done in work[file].items() if not done]
        if not left:
            return None
        file, died_in = left[0]
        work[file][died_in] = True
        self.workqueue |= {name: tests for name, tests in work.items() if not all(tests.values())}
        for other in self.nodes:
            self._reschedule(other)
        return died_in

    def _reschedule(self, node: WorkerController) -> None:
        """Gives a worker work until it can begin: it needs two tests, or word that no more come."""
        while node in self.registered_collections and not node.shutting_down:
            super()._reschedule(node)
            if self._pending_of(self.assigned_work[node]) >= 2:
                break

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return GROUPS.get(Path(file).name, file)
