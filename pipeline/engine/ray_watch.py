"""Looks at a pool while Ray Data runs it, and passes on what Ray warns of.

    >>> with watched(watch, warnings, context):                              # doctest: +SKIP
    ...     rows = dataset.iter_rows()

Ray Data calls back at each step of its loop. What the callback raises ends the run.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from ray._private import worker
from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler
from ray.data._internal.cluster_autoscaler.resource_utilization_gauge import ClusterUtil
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from pipeline.engine.pool_watch import PoolWatch
from pipeline.engine.ray_nodes import (
    ANSWER_SECONDS,
    head_address,
    head_answers,
    list_nodes,
    spilled_bytes,
)
from pipeline.errors import StorageError
from pipeline.events import Listener, Warned
from pipeline.wording import option

POOL_SECONDS = 1.0
"""How often the pool is looked at."""

NODES_SECONDS = 5.0
"""How often Ray is asked for its nodes."""

HEAD_SECONDS = 5.0
"""How often the head is looked for."""

STORES_SECONDS = 60.0
"""How often a node is asked what the object stores have spilled."""

PLANNED_DEATHS = (1, 4)
"""Ray's numbers of the ends of a node that somebody planned: it was stopped, or was idle."""

_KILLED = re.compile(
    r"killed due to (?:memory pressure|the node running low on memory).*?IP: ([\w.:\[\]-]+)", re.S
)

_AUTOSCALER = re.compile(r"autoscal", re.IGNORECASE)

Placing = Callable[[RayError, int], Mapping[str, str] | None]
"""Says where Ray may start workers from now on, as one could not start with this error while so
many run. It returns a selector of labels. It raises the error if the pool must end."""


class _Watcher(NamedTuple):
    """What the callback of a pool calls.

    Attributes:
        look: Is told how many workers run, at each step.
        place: Is asked where the next workers may start.
    """

    look: Callable[[int], None]
    place: Placing


_WATCHES: dict[str, _Watcher] = {}
"""Who looks at the pools that run, by their names. Ray Data makes callbacks of a class alone."""

_NAME = "vdna_pool"


_NEVER = ClusterUtil(*[sys.float_info.max] * 4)


class PoolCallback(ExecutionCallback):
    """Looks at the pool of the execution that calls it."""

    def before_execution_starts(self, executor: Any) -> None:
        """Keeps Ray Data from asking for nodes, and from ending a pool for a single node.

        Workers that wait for a node make Ray's core ask for it. Ray Data would ask for nodes for
        all workers, too, and until the last shard has ended: no node would go while it has none.

        A worker that cannot start would end the pool. Ray Data can be told to replace so many, but
        would do that on the same node.

        Args:
            executor: Ray Data's executor.
        """
        autoscaler = executor._cluster_autoscaler
        if isinstance(autoscaler, RateBasedClusterAutoscaler):
            autoscaler._cluster_scaling_up_util_threshold = _NEVER
        if watcher := _watcher_of(executor):
            for pool in _pools_of(executor):
                pool._on_actor_init_death = partial(_replaced, pool, watcher.place)

    def on_execution_step(self, executor: Any) -> None:
        """Counts the workers that run.

        Args:
            executor: Ray Data's executor.

        Raises:
            ExecutionTimeoutError: If the pool has waited too long, or the store cannot tell whether
                it gets on. Ray Data prints the trace of any other error.
        """
        watcher = _watcher_of(executor)
        if watcher is None:
            return
        try:
            watcher.look(sum(_running(pool._actor_pool) for pool in _pools_of(executor)))
        except StorageError as error:
            raise ExecutionTimeoutError(str(error)) from error


def _watcher_of(executor: Any) -> _Watcher | None:
    return _WATCHES.get(executor._data_context.get_config(_NAME, ""))


def _pools_of(executor: Any) -> list[Any]:
    return [op for op in executor._topology if isinstance(op, ActorPoolMapOperator)]


def _replaced(pool: Any, place: Placing, error: RayError) -> None:
    """Has Ray Data replace a worker that could not start, which it does for a pool with too few.

    Workers that wait for a node keep their selector. Those that then get the same node fail, too,
    and are replaced in their turn.

    Args:
        pool: The operator of the pool.
        place: Says where workers may start.
        error: Why the worker could not.

    Raises:
        RayError: The error, if the pool must end.
    """
    selector = place(error, _running(pool._actor_pool))
    pool._ray_remote_args = pool._ray_remote_args | {"label_selector": selector}


def _running(pool: Any) -> int:
    """Counts the actors that run. Those that start again keep their shards, and Ray counts them."""
    running: int = pool.num_running_actors() - pool.num_restarting_actors()
    return running


@contextmanager
def watched(
    name: str, watch: PoolWatch, warnings: RayWarnings, context: DataContext, place: Placing
) -> Iterator[None]:
    """Has a pool watched while the block runs.

    Args:
        name: A text that no other pool has.
        watch: Judges the number of workers.
        warnings: Looks at Ray.
        context: That of the dataset which the block makes and runs.
        place: Says where workers may start after one that could not.

    Yields:
        Nothing.
    """
    due = {"pool": 0.0, "nodes": 0.0}

    def look(workers: int) -> None:
        now = monotonic()
        if now >= due["pool"]:
            due["pool"] = now + POOL_SECONDS
            watch.look(now, workers)
        if now >= due["nodes"]:
            due["nodes"] = now + NODES_SECONDS
            warnings.look()

    context.custom_execution_callback_classes = [PoolCallback]
    context.set_config(_NAME, name)
    _WATCHES[name] = _Watcher(look, place)
    try:
        yield
        warnings.look()  # a node may have been lost since the last look
    finally:
        del _WATCHES[name]
        context.custom_execution_callback_classes = []


@contextmanager
def watched_cluster(warnings: RayWarnings) -> Iterator[None]:
    """Looks for the head while the block runs, and at the object stores, also when it ends well.

    A thread looks, as nodes take their time to answer, and Ray's own calls wait for a lost head.

    Args:
        warnings: Looks at Ray, and tells.

    Yields:
        Nothing.
    """
    warnings.look()
    head = head_address()
    ended, failed = threading.Event(), threading.Event()

    def watch() -> None:
        goes_on, due = True, 0.0
        while goes_on:
            warnings.look_for_head(head)
            if (now := monotonic()) >= due:
                due = now + STORES_SECONDS
                warnings.look_at_stores()
            goes_on = not ended.wait(HEAD_SECONDS)
        if not failed.is_set():
            warnings.look_at_stores()

    thread = threading.Thread(target=watch, name="cluster", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:  # a reader who has enough, too: Ray may end now
        failed.set()
        warnings.look_for_head(head)  # what follows may wait for it until Ray ends this process
        raise
    finally:
        ended.set()
        thread.join(2 * ANSWER_SECONDS)


class RayWarnings:
    """Turns what Ray warns of into events, each of which is told once."""

    def __init__(self, listener: Listener) -> None:
        """Looks at nothing yet.

        Args:
            listener: Is told.
        """
        self._listener = listener
        self._told: set[tuple[str, ...]] = set()
        self._telling = threading.Lock()
        self._gone_before: set[str] | None = None
        self._asked: dict[str, Any] | None = None
        self._spilled: int | None = None
        self._head_answered = False

    def look(self) -> None:
        """Asks Ray for nodes that were lost since the first look, which tells nothing."""
        nodes = list_nodes()
        self._asked = next((node for node in nodes if node["Alive"]), None)
        lost = [node for node in nodes if not node["Alive"]]
        if self._gone_before is None:
            self._gone_before = {node["NodeID"] for node in lost}
        for node in lost:
            if node["NodeID"] in self._gone_before or node["DeathReason"] in PLANNED_DEATHS:
                continue
            why = node["DeathReasonMessage"] or "Ray does not know why"
            self.tell(
                f"the node {node['NodeManagerAddress']} was lost: {why}. Other workers count what "
                "its workers had under way",
                *("node", node["NodeID"]),
            )

    def look_for_head(self, address: str) -> None:
        """Tells that the head is lost. Ray waits for it, and then ends this process without a word.

        Args:
            address: Where it listens. If it never answered there, nothing is told.
        """
        answers = head_answers(address)
        if self._head_answered and not answers:
            self.tell(
                f"the head of the Ray cluster at {address} does not answer. If it stays away for a "
                "minute, Ray ends this process: when a cluster runs again, rerun the same command "
                "to go on from what is committed",
                *("head", address),
            )
        self._head_answered |= answers

    def look_at_stores(self) -> None:
        """Asks a node that lives what all object stores have spilled since the last look.

        The first look tells nothing. What lost nodes had spilled is forgotten with them.
        """
        spilled = spilled_bytes(self._asked) if self._asked else None
        if spilled is None:
            return
        before, self._spilled = self._spilled, spilled
        if before is not None and spilled > before:
            self.tell(
                f"Ray's object stores ran full, and wrote {(spilled - before) / 1e6:,.0f} MB to "
                "disk, which takes time. Give Ray more object_store_memory, or use fewer workers, "
                f"or {option('decode', 'here')}",
                "spilled",
            )

    def died(self, workers: str) -> None:
        """Tells of workers that died while they had a shard, whose nodes live on.

        Args:
            workers: Who they were, as a `ShardReceipt` names them.
        """
        for each in filter(None, workers.split("; ")):
            self.tell(f"a worker died: {each}. The shards that it had are counted again")

    def read(self, message: str) -> None:
        """Takes what Ray would print: all that matters of it is how memory ran out."""
        if found := _KILLED.search(message):
            self.tell(
                f"Ray has killed workers of {found[1]}, where memory ran out. Their shards are "
                f"counted again; use fewer workers, or {option('threads', 1)}, if it goes on",
                *("memory", found[1]),
            )
        elif _AUTOSCALER.search(message):
            self.tell(f"Ray's autoscaler: {message.strip()[:300]}")

    def tell(self, message: str, *what: str) -> None:
        """Tells a message, unless one of the same kind was told.

        Args:
            message: The message.
            what: What tells its kind from others; nothing if that is the message.
        """
        what = what or (message,)
        with self._telling:  # of several threads
            is_new = what not in self._told
            self._told.add(what)
        if is_new:
            self._listener(Warned(message))


@contextmanager
def reading_messages(read: Callable[[str], None]) -> Iterator[None]:
    """Has what Ray prints on its own read instead, while the block runs.

    Ray prints long logs of nodes and processes that it replaces by itself, and offers no setting.

    Args:
        read: Is called with each message, and with what nodes log of errors. What workers log is
            dropped.

    Yields:
        Nothing.
    """
    real = worker.print_to_stdstream

    def instead(data: dict[str, Any], ignore_prefix: bool) -> None:
        if "ip" not in data or data["pid"] == "raylet":  # what is logged has its machine's address
            read("\n".join(data["lines"]))

    worker.print_to_stdstream = instead
    try:
        yield
    finally:
        worker.print_to_stdstream = real
