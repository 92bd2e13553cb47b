"""What Ray knows of its nodes: how many workers they hold, which are lost, and what they spill."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
import ray
from ray._private.internal_api import get_memory_info_reply
from ray._private.state import state

from pipeline.counting import Note, has_ended_here
from pipeline.engine.broken_nodes import MOST_ERRORS
from pipeline.spec import Resources
from pipeline.wording import count_of, in_units, option

GROWTH = 4
"""How many times the workers that fit today a pool may have, if nobody knows how many nodes will
come."""

SPARE_CPUS = 0.0004
"""What a worker takes beyond its threads, if a pool may grow. A node whose CPUs its workers would
take to the last one holds one worker less, and has a CPU for other tasks."""

TASK_CPUS = 0.9
"""What such a task takes."""


ANSWER_SECONDS = 5.0
"""How long the head has to take a connection, and a node to tell what was spilled."""


def list_nodes() -> list[dict[str, Any]]:
    """Returns all nodes that the cluster ever had, as Ray describes them."""
    return cast(list[dict[str, Any]], ray.nodes())  # type: ignore[no-untyped-call]  # Ray's


def alive_nodes() -> frozenset[str]:
    """Returns the ids of the nodes that live."""
    return frozenset(node["NodeID"] for node in list_nodes() if node["Alive"])


def spilled_bytes(node: Mapping[str, Any]) -> int | None:
    """Asks how many bytes the object stores of a cluster have written to disk, as they were full.

    Args:
        node: Who is asked, as `ray.nodes` describes it. It asks all nodes that live.

    Returns:
        The bytes since each of these nodes started. None if the node does not answer.
    """
    place = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        told = get_memory_info_reply(  # type: ignore[no-untyped-call]  # Ray's
            None, *place, timeout_seconds=ANSWER_SECONDS
        )
    except grpc.RpcError:  # the node is lost, or hangs, or does not take calls from here
        return None
    return int(told.store_stats.spilled_bytes_total)


def head_address() -> str:
    """Returns where the cluster's head listens."""
    return str(ray.get_runtime_context().gcs_address)


def head_answers(address: str) -> bool:
    """Tells whether a cluster's head takes connections. Ray's own calls wait for a lost head."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


class RayHome:
    """The home of an actor: its node, and the pool that it belongs to.

    Ray starts an actor again only when it knows whether the node is lost, so an actor that takes
    the shard of a dead one is told the truth. An actor whose pool has ended ends after its shard,
    without a crash; so nothing is told of those of another pool.
    """

    def __init__(self, pool: str) -> None:
        """Looks for nothing yet.

        Args:
            pool: A text that no other pool has.
        """
        self._pool = pool

    @property
    def node(self) -> str:
        """The id of the node that this process runs on."""
        return str(ray.get_runtime_context().get_node_id())

    @property
    def label(self) -> dict[str, str]:
        """The pool and the node."""
        return {"node": self.node, "pool": self._pool}

    def saw_crash(self, note: Note) -> bool:
        """Tells whether a process of this pool has ended, and its node has not."""
        # Ray gives a shard to its actor again if the connection to it was lost, though the actor
        # still counts it. Of another machine, nobody can tell that here.
        if note.get("pool") != self._pool or has_ended_here(note) is False:
            return False
        return note.get("node") in alive_nodes()


@dataclass(frozen=True)
class Room:
    """What workers the nodes of a cluster have room for.

    Attributes:
        threads: The CPUs of a worker.
        now: How many workers fit.
        most: How many may fit, with the nodes that may yet come.
        spare: What each of them takes beyond its CPUs, once more wait than fit.
    """

    threads: int
    now: int
    most: int
    spare: float = 0.0

    def has_outgrown(self, former: Room) -> bool:
        """Tells whether workers take more CPUs now than all that there may be in another room."""
        return self.now * self.threads > former.most * former.threads


def room_of(resources: Resources, local: bool) -> Room:
    """Finds out how many workers a cluster has room for.

    Each node keeps a CPU for what is no worker, unless a worker takes all that it has. If nobody
    says how many threads a worker has, it has one fewer than the smallest node has CPUs, and from
    one to four. If workers take GPUs, it has so few that they can take all GPUs of each node; and
    on this machine alone, so few that as many workers fit as are asked for.

    Args:
        resources: What is asked for; what is None is chosen.
        local: Whether the cluster is this machine alone, which does not grow.

    Returns:
        The room, of one worker at least.
    """
    present = [node["Resources"] for node in list_nodes() if node["Alive"]]
    coming = [] if local else _autoscaled()
    sizes = [int(node.get("CPU", 0)) for node in present]
    sizes = [cpus for cpus in sizes if cpus] or [int(node.get("CPU", 0)) for node, _ in coming]
    kinds = [*present, *(node for node, _ in coming)]
    others = min(filter(None, sizes), default=2) - 1  # CPUs of the smallest node but one
    by_workers = others // (resources.workers or 1) if local else others
    threads = resources.threads or max(1, min(4, by_workers, *_threads_by_gpus(kinds, resources)))
    now = workers_held(present, threads, resources.gpus_per_worker)
    if resources.workers:
        return Room(threads, min(now, resources.workers), resources.workers)
    if local:
        return Room(threads, now, now)
    cpus = [int(node.get("CPU", 0)) for node in kinds]
    # With the spare, a worker does not fit on a node that has its CPUs exactly.
    spare = SPARE_CPUS if max(cpus, default=0) > threads and threads not in cpus else 0.0
    most = sum(
        workers_held([node], threads, resources.gpus_per_worker) * count for node, count in coming
    )
    return Room(threads, now, max(now, most) if coming else GROWTH * now, spare)


def _threads_by_gpus(nodes: Iterable[Mapping[str, float]], resources: Resources) -> Iterator[int]:
    """Yields for each node the most threads of a worker with which workers can take all its GPUs.

    Args:
        nodes: The resources of each node. One without CPUs or GPUs has no say.
        resources: How many GPUs a worker takes, and how many workers there may be.

    Yields:
        The threads, which leave the node a CPU for other tasks. 0 if it has too few CPUs.
    """
    gpus = resources.gpus_per_worker
    for node in nodes if gpus else ():
        cpus, fit = int(node.get("CPU", 0)), sharing_gpus(node, gpus)
        fit = min(fit, resources.workers or fit)
        if cpus and fit:
            yield (cpus - 1) // fit


def workers_held(nodes: Iterable[Mapping[str, float]], threads: int, gpus: float) -> int:
    """Returns how many workers the nodes hold, by their CPUs and GPUs; one at least.

    Args:
        nodes: The resources of each node.
        threads: The CPUs that a worker takes. A node keeps one, or has them exactly.
        gpus: The GPUs that it takes.

    Returns:
        The workers.
    """
    return max(1, sum(_held(node, threads, gpus) for node in nodes))


def _held(node: Mapping[str, float], threads: int, gpus: float) -> int:
    cpus = int(node.get("CPU", 0))
    held = 1 if cpus == threads else max(0, cpus - 1) // threads
    return min(held, sharing_gpus(node, gpus)) if gpus else held


def sharing_gpus(node: Mapping[str, float], gpus: float) -> int:
    """Returns how many workers the GPUs of a node are enough for.

    Args:
        node: The node's resources.
        gpus: The GPUs of a worker, above 0. A part of a GPU is of one GPU: two that take 0.6 of
            one cannot share it, whatever is left of others.
    """
    there = int(node.get("GPU", 0))
    # Ray counts in ten-thousandths.
    return there // round(gpus) if gpus >= 1 else there * (10_000 // round(gpus * 10_000))


@dataclass(frozen=True)
class TaskMemory:
    """How the memory of the nodes is shared among tasks, as Ray counts it.

    Attributes:
        wanted: Bytes that a task takes.
        reserved: Bytes that a task reserves: those, or all that the largest node offers.
        at_once: How many tasks the nodes that are there have memory for.
    """

    wanted: int
    reserved: int
    at_once: int

    @classmethod
    def of(cls, wanted: int, local: bool, left_out: Collection[str] = ()) -> TaskMemory:
        """Looks at the nodes.

        Args:
            wanted: Bytes that a task takes.
            local: Whether the cluster is this machine alone, which does not grow.
            left_out: The ids of nodes that get no tasks.

        Returns:
            How they share their memory. A task that no node has room for, and none that may come,
            gets the largest node for itself.
        """
        present = [
            int(node["Resources"].get("memory", 0))
            for node in _nodes_with_cpus()
            if node["NodeID"] not in left_out
        ]
        coming = [] if local else [int(node.get("memory", wanted)) for node, _ in _autoscaled()]
        reserved = min(wanted, max([*present, *coming], default=wanted))
        return cls(wanted, reserved, sum(held // max(reserved, 1) for held in present))

    def words(self, workers: int) -> str:
        """Says what a smaller limit would change for so many workers; empty if nothing.

        Args:
            workers: How many tasks would run at a time.

        Returns:
            A sentence for the user.
        """
        advice = f"a smaller {option('memory')}"
        if self.reserved < self.wanted:
            return (
                f"a task may take {in_units(self.wanted)} of memory, and the largest node offers "
                f"Ray {in_units(self.reserved)}. One task runs on a node at a time, and Ray ends "
                f"it if memory runs out; {advice} prevents that"
            )
        if self.at_once < workers:
            return (
                f"the nodes have memory for {count_of(self.at_once, 'task')} of "
                f"{in_units(self.wanted)} at a time, and CPUs for {workers:,}; {advice} lets more "
                "of them run"
            )
        return ""


def task_cpus(memory: int, left_out: Sequence[str]) -> int:
    """Returns how many CPUs the nodes have together that offer a task so much memory.

    Args:
        memory: Bytes that a task reserves.
        left_out: The ids of nodes that get no tasks.
    """
    able = (
        node["Resources"]
        for node in _nodes_with_cpus()
        if node["NodeID"] not in left_out and node["Resources"].get("memory", 0) >= memory
    )
    return sum(int(node["CPU"]) for node in able)


def task_wants(memory: int) -> str:
    """Says what a task takes, such as `1 CPU and 6 GB of memory`."""
    return f"1 CPU and {in_units(memory)} of memory" if memory else "1 CPU"


def nodes_without_cpus() -> list[str]:
    """Returns the ids of the nodes that live and have no CPU for Ray."""
    able = {node["NodeID"] for node in _nodes_with_cpus()}
    return sorted(alive_nodes() - able)


def _nodes_with_cpus() -> list[dict[str, Any]]:
    return [n for n in list_nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]


def without(nodes: Sequence[str]) -> dict[str, str] | None:
    """Returns the label selector of all nodes but these; None if there are none of these."""
    return {"ray.io/node-id": f"!in({','.join(nodes)})"} if nodes else None


def address_of(node: str) -> str:
    """Returns the address of a node, or its id if Ray has forgotten it."""
    return next((n["NodeManagerAddress"] for n in list_nodes() if n["NodeID"] == node), node)


def able_nodes(cpus: float, gpus: float) -> frozenset[str]:
    """Returns the ids of the nodes that live and are large enough for a worker.

    Args:
        cpus: The CPUs that a worker takes.
        gpus: The GPUs that it takes.

    Returns:
        The ids, also of nodes that have no room for it now.
    """
    return frozenset(
        node["NodeID"]
        for node in list_nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= cpus
        and node["Resources"].get("GPU", 0) >= gpus
    )


def node_of_actor(actor: str | None) -> str | None:
    """Returns the id of the node that an actor ran on last.

    Args:
        actor: The id of the actor, if Ray has told it.

    Returns:
        The id; None if Ray does not know it.
    """
    if not actor:
        return None
    return state.actor_table(actor).get("Address", {}).get("NodeID") or None


def left_out_words(node: str, error: str) -> str:
    """Says that a node gets no more shards, and with which error of its device."""
    return (
        f"the device of node {address_of(node)} has failed {MOST_ERRORS} times in a row, and "
        f"another node has counted shards. The failing node gets no more. The last error: {error}"
    )


def wants(threads: int, gpus: float) -> str:
    """Says what a worker takes, such as `4 CPUs and 1 GPU`."""
    cpus = count_of(threads, "CPU")
    return f"{cpus} and {gpus:g} GPU{'' if gpus == 1 else 's'}" if gpus else cpus


def _autoscaled() -> list[tuple[dict[str, float], int]]:
    """Returns the kinds of nodes that the cluster's autoscaler may start, and how many of each.

    It is empty if there is no autoscaler, or one that does not say. Kinds without a limit are left
    out.
    """
    config = state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return [(dict(group.resources), group.max_count) for group in groups if group.max_count > 0]
