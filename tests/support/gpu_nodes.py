"""A Ray cluster on this machine whose nodes declare a GPU each, and may be lost at any time.

    with GpuNodes(seconds=2) as nodes:
        lost = nodes.add()
        ... build with --ray-address nodes.address --gpus-per-worker 1 ...
        nodes.lose(lost)

The test that adds nodes also says when they are lost, and of what kind the next one is. So no
autoscaler brings them; `autoscaled_cluster` has one.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psutil
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from pipeline.engine.ray_start import start_with_retries
from tests.support.ray_commands import NO_DASHBOARD

FAST_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
"""Ray finds out in seconds that a node is lost."""

PATIENT_CHECKS = FAST_CHECKS | {"health_check_period_ms": 1000, "health_check_failure_threshold": 8}
"""With six nodes on two cores, one that lives may take seconds to answer."""

SMALL_STORE = 100 * 2**20

SOUND: dict[str, str] = {}
BROKEN = {"BROKEN_GPU": "1"}
WITHOUT_MEMORY = {
    "RAY_memory_usage_threshold": "0.0",
    "RAY_memory_monitor_refresh_ms": "30000",
    "RAY_event_stats_print_interval_ms": "1000",
}
"""Whenever Ray's own monitor looks, it finds that such a node has no memory left, and kills its
worker. Between two looks a worker can start and begin a shard. Ray tells of it each second instead
of each minute."""


DECLARED_GPU = {
    "SLOW_GPU": "as the test says",
    ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR: "tests.support.fake_gpu.install",
}
"""What a node has in its environment whose GPU is only declared."""


class GpuNodes:
    """A head that takes no worker, and nodes with one GPU that is only declared.

    Args:
        seconds: How long a GPU takes for a micro-batch.
        environment: What the nodes' processes have in their environment, too.
    """

    def __init__(self, seconds: float, environment: dict[str, str]) -> None:
        self._environment = environment | DECLARED_GPU | {"SLOW_GPU": str(seconds)}
        self._cluster = Cluster()
        self._kinds: dict[Any, dict[str, str]] = {}

    def __enter__(self) -> GpuNodes:
        self._add(num_cpus=0, _system_config=PATIENT_CHECKS, **NO_DASHBOARD)
        return self

    def __exit__(self, *_: object) -> None:
        self.lose_all()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def alive(self) -> list[Any]:
        """The nodes that were added and not lost, the oldest first."""
        return list(self._kinds)

    @property
    def mortal(self) -> list[Any]:
        """Those whose GPU works."""
        return [node for node, kind in self._kinds.items() if kind == SOUND]

    def add(self, kind: dict[str, str] = SOUND) -> Any:
        """Adds a node. To be called in the main thread, as Ray wants it."""
        node = self._add(num_cpus=2, num_gpus=1, env_vars=self._environment | kind)
        self._kinds[node] = kind
        return node

    def replace(self, node: Any) -> Any:
        """Adds a node of the kind of one that is lost now."""
        kind = self._kinds[node]
        self.lose(node)
        return self.add(kind)

    def _add(self, **what: Any) -> Any:
        what = {"object_store_memory": SMALL_STORE} | what
        return start_with_retries(lambda: self._cluster.add_node(**what))

    def dead(self) -> list[Any]:
        """Returns the nodes that ended by themselves, as one does that Ray took for lost."""
        return [node for node in self.alive if not _runs(node)]

    def lose(self, node: Any) -> None:
        """Kills all processes of a node, and at once those that Ray lets end by themselves."""
        del self._kinds[node]
        workers: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # the node was dead
            workers = psutil.Process(_raylet(node).pid).children(recursive=True)
        self._cluster.remove_node(node, allow_graceful=False)
        for each in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()

    def lose_all(self) -> None:
        """Kills the head and all nodes."""
        for node in [self._cluster.head_node, *self.alive]:
            if node is not None:
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self._kinds.clear()


def _runs(node: Any) -> bool:
    return _raylet(node).poll() is None


def _raylet(node: Any) -> Any:
    (raylet,) = node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    return raylet.process
