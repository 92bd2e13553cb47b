"""Looks at a pool of actors while Ray Data runs it.

    >>> with watched(name, watch, warnings, context, place):                 # doctest: +SKIP
    ...     rows = dataset.iter_rows()

Ray Data calls back at each step of its loop. What the callback raises ends the run.

Ray Data takes half a second to import. So only what runs a pool imports this module.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler
from ray.data._internal.cluster_autoscaler.resource_utilization_gauge import ClusterUtil
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from pipeline.engine.pool_watch import PoolWatch
from pipeline.engine.ray_watch import RayWarnings
from pipeline.errors import StorageError

logger = logging.getLogger(__name__)

POOL_SECONDS = 1.0
"""How often the pool is looked at."""

NODES_SECONDS = 5.0
"""How often Ray is asked for its nodes."""

READER = "iter_threaded"
"""What Ray Data calls its threads that fetch rows."""

READER_SECONDS = 30.0
"""How long such a thread may take to end. It looks ten times a second whether it is to."""

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
def joined_readers() -> Iterator[None]:
    """Waits at the end for the threads of Ray Data that fetch the rows which the block reads.

    To close the rows only asks them to end. Their last act lets go of objects of Ray. If Ray has
    shut down by then, its core ends this process with code 1, and no error is told.

    Yields:
        Nothing.
    """
    others = threading.enumerate()
    try:
        yield
    finally:
        readers = [t for t in threading.enumerate() if t.name == READER and t not in others]
        for reader in readers:
            reader.join(READER_SECONDS)
        if any(reader.is_alive() for reader in readers):
            logger.warning(
                "a thread of Ray Data has not ended after %.0f s; if this process ends with "
                "code 1 and no error is told, that is why",
                READER_SECONDS,
            )
