"""A Ray cluster on this machine to which Ray's own autoscaler brings nodes, and removes them.

    with autoscaled_cluster(most=3, cpus=2, gpus=0, idle_seconds=3, environment={}) as scaled:
        ... build with --ray-address scaled.address --workers 3 --threads 2 ...

Its nodes are processes of this machine, which Ray's fake provider of nodes starts. Ray's own
`AutoscalingCluster` does the same. But it begins and ends with `ray stop --force`, which kills
every Ray of the machine, and so those of tests that run beside it. The package of Ray 2.60 also
lacks a file that it reads. Here only processes end that this cluster has started.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from ray.cluster_utils import Cluster

from pipeline.engine.ray_start import start_with_retries
from pipeline.engine.ray_watch import PLANNED_DEATHS
from tests.support.ceph import free_port
from tests.support.gpu_nodes import SMALL_STORE
from tests.support.ray_commands import NO_DASHBOARD

HEAD = FAKE_HEAD_NODE_ID
"""The id of the head. The nodes that the autoscaler brings are numbered after it."""

NODE_ID = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
"""Names the node in the environment of each of its processes."""

SCALER = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",  # the one that KubeRay runs beside the head
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    NODE_ID: HEAD,
}
"""What the head's processes have in their environment, as those of `AutoscalingCluster` do."""

SETUPS = ("initialization", "setup", "head_setup", "worker_setup")
STARTS = ("head_start_ray", "worker_start_ray")
"""When commands are run on a node. The autoscaler wants a list for each; fake nodes run none."""


class Autoscaled:
    """The cluster, and what its head knows of the nodes that the autoscaler has brought."""

    def __init__(self, cluster: Cluster) -> None:
        self._state = cluster.global_state
        self.address = str(cluster.address)

    @property
    def brought(self) -> set[str]:
        """The ids of all nodes that the autoscaler ever brought."""
        return {node["NodeID"] for node in self._state.node_table()} - {HEAD}

    @property
    def alive(self) -> set[str]:
        """The ids of those that live."""
        return {node["NodeID"] for node in self._state.node_table() if node["Alive"]} - {HEAD}

    @property
    def dead(self) -> set[str]:
        """The ids of those that died, and were not ended by the autoscaler."""
        return {
            node["NodeID"]
            for node in self._state.node_table()
            if not node["Alive"] and node["DeathReason"] not in PLANNED_DEATHS
        }

    def lose(self, node: str) -> None:
        """Kills all processes of a node that was brought, as if its machine was taken away."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(NODE_ID) == node:
                    process.kill()


@dataclass(frozen=True)
class ScaledNode:
    """A node that the autoscaler has brought."""

    node_id: str


class ScaledNodes:
    """The nodes of such a cluster, for whoever kills some of them."""

    def __init__(self, cluster: Autoscaled) -> None:
        self._cluster = cluster
        self._seen: set[str] = set()
        self._lost: set[str] = set()

    @property
    def alive(self) -> list[ScaledNode]:
        """The nodes that live. The head may not know yet that one was killed."""
        alive = self._cluster.alive - self._lost
        self._seen |= alive
        return [ScaledNode(node) for node in sorted(alive)]

    @property
    def mortal(self) -> list[ScaledNode]:
        """All that live."""
        return self.alive

    def dead(self) -> list[ScaledNode]:
        """Returns the nodes that were seen alive, are dead, and were not killed here."""
        dead = (self._seen - self._lost) & self._cluster.dead
        return [ScaledNode(node) for node in sorted(dead)]

    def replace(self, node: ScaledNode) -> None:
        """Kills a node, unless it is dead; the autoscaler is to bring another."""
        self._cluster.lose(node.node_id)
        self._lost.add(node.node_id)


@contextlib.contextmanager
def autoscaled_cluster(
    most: int, cpus: int, gpus: int, idle_seconds: float, environment: Mapping[str, str]
) -> Iterator[Autoscaled]:
    """Starts a head with one CPU, and an autoscaler that has started no node yet.

    Args:
        most: How many nodes the autoscaler may bring.
        cpus: How many CPUs each of them has.
        gpus: How many GPUs each of them declares.
        idle_seconds: How long a node has no work until the autoscaler removes it.
        environment: What the nodes' processes have in their environment, too.

    Yields:
        The cluster.
    """
    cluster = Cluster()
    resources = {"CPU": cpus, "GPU": gpus, "object_store_memory": SMALL_STORE}
    with (
        pytest.MonkeyPatch.context() as patch,
        # A short path: Ray's sockets lie in it, and theirs may have 107 bytes.
        TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as own,
    ):
        for name, value in (SCALER | environment).items():
            patch.setenv(name, value)
        enable_token_auth_by_default()  # so that drivers and all nodes do the same
        ensure_token_if_auth_enabled()

        def start() -> None:
            port = free_port()  # nodes are told of it before the head has one
            config = Path(own, "autoscaler.json")
            config.write_text(json.dumps(_config(port, most, resources, idle_seconds)))
            cluster.add_node(
                num_cpus=1,
                **NO_DASHBOARD,
                object_store_memory=SMALL_STORE,
                gcs_server_port=port,
                autoscaling_config=str(config),
                temp_dir=own,
            )

        try:
            start_with_retries(start)
            for name in SCALER:
                patch.delenv(name)  # it is none of the driver's
            yield Autoscaled(cluster)
        finally:
            _end(cluster)


def _config(
    port: int, most: int, resources: Mapping[str, int], idle_seconds: float
) -> dict[str, Any]:
    """Returns what the autoscaler reads."""
    return {
        "cluster_name": "tests",
        "provider": {
            "type": "external",  # its own name, `fake_multinode`, needs the file that is missing
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": f"{get_node_ip_address()}:{port}",
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": dict(resources), "node_config": {}, "max_workers": most},
        },
        "max_workers": most,
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 1.0,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{when}_commands": [] for when in (*SETUPS, *STARTS)},
    }


def _end(cluster: Cluster) -> None:
    """Kills the autoscaler, so that it starts no more nodes, then all nodes, then the head."""
    head = cluster.head_node
    if head is None:
        return
    processes: list[psutil.Process] = []
    for monitor in head.all_processes.get(ray_constants.PROCESS_TYPE_MONITOR, []):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(monitor.process.pid)
            process.suspend()
            processes += [process, *process.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
