"""Spreads shards and functions over a Ray cluster; it wires Ray and computes nothing.

    >>> with RayEngine(Resources()) as engine:                  # doctest: +SKIP
    ...     build_datasets(catalogue, requests, engine)

One row of a Ray dataset is one shard: (recipe, manifest, work folder, number). An actor of the
pool counts the shard, commits its partial and returns a receipt. Ray runs a row at least once; the
commit sees to it that the shard counts once.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.counting import (
    HUGE_PAGES,
    MEMORY_ENVIRONMENT,
    OVERLAP,
    Recipe,
    ShardJob,
    ShardReceipt,
    collect_rarely,
    gets_on,
)
from pipeline.engine.broken_nodes import BrokenNodes
from pipeline.engine.pool_watch import CapacityWatch, Limits, PoolWatch
from pipeline.engine.ray_address import cluster_address
from pipeline.engine.ray_decoding import (
    cannot_start,
    cause_of,
    loss_words,
    may_decode_ahead,
    room_ahead,
    start_words,
)
from pipeline.engine.ray_nodes import (
    TASK_CPUS,
    Room,
    TaskMemory,
    able_nodes,
    address_of,
    alive_nodes,
    head_address,
    head_answers,
    left_out_words,
    list_nodes,
    node_of_actor,
    nodes_without_cpus,
    room_of,
    task_cpus,
    task_wants,
    wants,
    without,
)
from pipeline.engine.ray_start import (
    environment,
    importing,
    is_worth_logs,
    kept_sigterm,
    remove_session,
    require_answer,
    session_folder,
    start_with_retries,
    without_stderr,
)
from pipeline.engine.ray_watch import (
    RayWarnings,
    reading_messages,
    watched_cluster,
)
from pipeline.engine.shard_actor import ShardActor, receipt_of
from pipeline.errors import TransientError, UsageError
from pipeline.events import ClusterJoined, Listener, Said, Warned, ignore
from pipeline.mapper import Mapper
from pipeline.spec import Resources, available_cpus
from pipeline.storage import RequestMeter, count_requests, retry
from pipeline.wording import count_of

T = TypeVar("T")

R = TypeVar("R")

WORKER_ENVIRONMENT = MEMORY_ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
"""The environment variables that every worker's process is started with."""

FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_CA_BUNDLE",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    HUGE_PAGES,
    *retry.VARIABLES,
)
"""Settings of the driver that workers get, too. None is a secret: Ray's dashboard shows them."""

OBJECT_STORE_BYTES = 256 * 2**20
"""Size of Ray's object store on this machine, if only receipts and small results pass through it.
If decoded images may, it has the size that Ray takes by default, nearly a third of the memory."""

TASK_LOOK_SECONDS = 2.0
"""How often it is looked whether tasks wait for a node, while none ends."""

ROOM_LOOK_SECONDS = 30.0
"""How often it is looked whether nodes have come that hold more workers than there may be."""


_left_behind: list[tuple[str, str]] = []
"""The connections that an engine has left open after an error, as `_connection` gives them."""


class RayEngine:
    """Runs work on a Ray cluster, or on a Ray of its own on this machine.

    It is a context manager: Ray is connected or started when the context begins, and disconnected
    or ended with it. A Ray that this process had connected before is used as it is, whatever the
    address: as this machine if this process has started it, and else as a cluster.

    Args:
        resources: How many workers, and what each of them gets.
        address: A cluster's address, or `local`. None takes `RAY_ADDRESS`, or else this machine.
        progress: Is told that Ray starts, which takes seconds.

    Raises:
        UsageError: The address is that of a server for Ray's client (see `cluster_address`).
    """

    in_process = False

    def __init__(
        self,
        resources: Resources | None = None,
        address: str | None = None,
        progress: Listener | None = None,
    ) -> None:
        self.resources = resources or Resources()
        self._address = cluster_address(address)
        self._progress = progress or ignore
        self._warnings = RayWarnings(self._progress)
        self._broken = BrokenNodes()
        self._messages, self._watch = ExitStack(), ExitStack()
        self._ours = self._lost = False
        self._looked = 0.0
        self._local = self._starts_here

    def __enter__(self) -> RayEngine:
        os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
        # Ray's core tells on stderr of restarts and lost objects that it mends by itself.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        _end_what_was_left()
        self._ours = not ray.is_initialized()
        # A process that has joined a cluster has no session of its own.
        self._local = self._starts_here if self._ours else session_folder() is not None
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": self._has_logs}
        with ExitStack() as stack:
            stack.enter_context(reading_messages(self._warnings.read))
            if self._ours:
                with kept_sigterm():
                    self._start(quiet)
            self._watch.enter_context(watched_cluster(self._warnings))
            self._messages = stack.pop_all()
        return self

    def _start(self, quiet: dict[str, Any]) -> None:
        if not self._local:
            self._progress(Said(f"connecting to Ray at {self._address}"))
            require_answer(str(self._address))
            try:
                with without_stderr():
                    ray.init(address=self._address, **quiet)
            except ConnectionError as error:
                raise UsageError(f"no Ray cluster answers at {self._address}: {error}") from error
            self._progress(ClusterJoined())
            return
        self._progress(Said("starting Ray on this machine"))
        # One CPU more than there is: a pool that takes all CPUs exactly can stall.
        # Meanwhile what takes longest of Ray Data, which imports nothing of Ray.
        with environment(_environment()), importing("pandas"):
            start_with_retries(
                lambda: ray.init(
                    address="local",
                    num_cpus=available_cpus() + 1,
                    include_dashboard=False,
                    object_store_memory=self._object_store_bytes,
                    **quiet,
                )
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._messages:
            self._watch.__exit__(kind, error, trace)
            if not self._ours:
                return
            self._ours = False
            if error is not None and not self._local and (self._lost or not self._head_is_there):
                # Ray would wait for what is lost, and may end this process before it tells.
                _left_behind.append(_connection())
                return
            session = session_folder() if self._local else None
            # Else Ray forgets a process that a busy machine takes over a second to end.
            with without_stderr():
                ray.shutdown(wait_for_processes=True)
        # The logs of workers may tell why the job failed; else nobody reads them.
        if session and not is_worth_logs(error):
            remove_session(session)

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        """Runs shards on a pool of actors, each of which keeps its networks loaded.

        Args:
            work: For each shard its job, and its index in the job's manifest.

        Yields:
            A receipt for each shard, as they end.

        Raises:
            TransientError: If workers ran for `stall_seconds` and no shard ended, and none got on,
                or none ran for `capacity_seconds`, or none could start.
            UsageError: If this machine lacks the CPUs or GPUs that a worker takes, or Ray's object
                store has no room for the images that are to be decoded ahead.
        """
        left = {(job.manifest_uri, index): (job, index) for job, index in work}
        had_before: set[tuple[str, int]] = set()
        while left:
            with self._known_errors():
                room = self._room()
            self._looked = monotonic()
            try:
                with closing(self._pool(list(left.values()), room)) as rows:
                    for row in rows:
                        receipt = receipt_of(row)
                        count_requests(row["requests"])
                        key = receipt.manifest_uri, receipt.index
                        del left[key]
                        self._warnings.died(receipt.died)
                        for notice in json.loads(row["notices"]):
                            self._warnings.tell(notice)
                        leaves_out = self._leaves_out(row, receipt)
                        yield replace(receipt, had_before=key in had_before)
                        # A running pool can neither give up a node nor get more workers.
                        if leaves_out or self._has_outgrown(room, len(left)):
                            break
            except TransientError as error:
                if not self._goes_on_without(error, room):
                    raise
            had_before |= left.keys()
            # Workers finish what they had begun. It goes last, when most is stored.
            for each in [*left][: (OVERLAP + 1) * room.now]:
                left[each] = left.pop(each)

    def _has_outgrown(self, room: Room, left: int) -> bool:
        """Tells whether nodes have come that hold more workers than a pool may ever have.

        Where nobody says how many nodes may come, a pool is made for some times as many as there
        are. If there are none yet, that is for few and small workers.

        Args:
            room: The room that the pool was made for.
            left: How many shards are left. A few are not worth another pool.

        Returns:
            Whether there is room for more.
        """
        workers, now = self.resources.workers, monotonic()
        if workers or self._local or left <= room.most or now - self._looked < ROOM_LOOK_SECONDS:
            return False
        self._looked = now
        with self._known_errors():
            room_now = self._room()
        if not room_now.has_outgrown(room):
            return False
        fit = count_of(room_now.now, "worker")
        self._progress(Said(f"more nodes have come: there is room for {fit}, which start anew"))
        return True

    def _goes_on_without(self, error: TransientError, room: Room) -> bool:
        """Leaves out a node on which Ray could not start a worker again that was lost elsewhere.

        Args:
            error: What ended the pool.
            room: The room that the pool was made for.

        Returns:
            Whether another pool may do better without the node. False if it was another error.
        """
        cause = error.__cause__
        if not isinstance(cause, RayError) or not cannot_start(cause):
            return False
        try:
            self._place(cause, 0, cpus=room.threads, at_once=room.now)
        except RayError:
            return False
        return True

    def _leaves_out(self, row: Mapping[str, Any], receipt: ShardReceipt) -> bool:
        """Takes note of what a node's device did; returns whether the node is now left out."""
        if receipt.images:
            self._broken.counted(row["node"])
            return False
        if not (row["device_failed"] and self._broken.failed(row["node"], alive_nodes())):
            return False
        self._progress(Warned(left_out_words(row["node"], receipt.error)))
        return True

    def _pool(
        self, work: Sequence[tuple[ShardJob, int]], room: Room
    ) -> Generator[dict[str, Any], None, None]:
        """Runs shards on a new pool of actors, on all nodes but those that are left out.

        Args:
            work: The shards, with their jobs.
            room: How many workers there may be.

        Yields:
            What the actors return.

        Raises:
            TransientError: See `run_shards`.
        """
        # Not at the top: it takes half a second, and Ray need not wait for it.
        from ray.data import ActorPoolStrategy, DataContext, from_items
        from ray.data.exceptions import ExecutionTimeoutError

        from pipeline.engine.ray_pool import joined_readers, watched

        resources = replace(self.resources, threads=room.threads, workers=room.most)
        recipes: dict[Recipe, int] = {}
        for job, _ in work:
            recipes.setdefault(job.recipe, len(recipes))
        shipped = [replace(recipe, resources=resources) for recipe in recipes]
        todo = [
            {
                "recipe": recipes[job.recipe],
                "manifest": job.manifest_uri,
                "work": job.work_uri,
                "entries": job.entries_uri,
                "claimant": job.claimant,
                "keeps_cells": job.keeps_cells,
                "dataset": job.dataset,
                "index": index,
            }
            for job, index in work
        ]
        self._require_gpus()
        most, now = min(room.most, len(todo)), min(room.now, len(todo))
        spare = room.spare if most > now else 0
        pool = secrets.token_hex(8)
        watch = PoolWatch(
            most,
            wants(room.threads, resources.gpus_per_worker),
            Limits(resources.stall_seconds, resources.capacity_seconds),
            partial(_any_gets_on, {(job.work_uri, job.claimant) for job, _ in work}),
            self._progress,
            monotonic(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray warns of its own settings
            context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = -1  # the watch judges, who knows of capacity
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        place = partial(self._place, cpus=room.threads + spare, at_once=now)
        with watched(pool, watch, self._warnings, context, place), joined_readers():
            dataset = from_items(todo, override_num_blocks=len(todo)).map_batches(
                ShardActor,
                fn_constructor_kwargs={
                    "recipes": shipped,
                    "room": room_ahead(list_nodes(), now, shipped),
                    "runtime_env": self._runtime_env(),
                    "pool": pool,
                },
                batch_size=1,
                # Actors without a node wait for one. Ray Data starts no more for nodes that come.
                compute=ActorPoolStrategy(
                    min_size=most,
                    max_size=most,
                    max_tasks_in_flight_per_actor=OVERLAP + 1,
                    max_concurrent_calls_per_actor=OVERLAP,
                    enable_true_multi_threading=True,
                ),
                num_cpus=room.threads + spare,
                num_gpus=resources.gpus_per_worker or None,
                label_selector=without(self._broken.left_out),
                runtime_env=self._runtime_env(),
            )
            rows = iter(dataset.iter_rows())
            try:
                with self._known_errors():
                    for row in rows:
                        watch.ended()
                        with watch.paused():  # the job may now commit a dataset, which takes long
                            yield row
            except ExecutionTimeoutError as error:  # by the watch
                raise TransientError(str(error)) from error
            finally:  # no other shard begins; while Ray shuts down it would be too late
                with without_stderr():  # Ray tells there that it will run them again
                    rows.close()  # type: ignore[attr-defined]  # a generator

    def _place(
        self, error: RayError, running: int, *, cpus: float, at_once: int
    ) -> dict[str, str] | None:
        """Leaves out the node of a worker that could not start, and tells of it once.

        Args:
            error: Why it could not.
            running: How many workers run.
            cpus: The CPUs that a worker takes.
            at_once: How many workers start at the same time.

        Returns:
            The label selector of the nodes on which workers may start.

        Raises:
            RayError: The error, if it is another, or the node is not known, or no other node may do
                better.
        """
        node = node_of_actor(error.actor_id) if cannot_start(error) else None
        able = able_nodes(cpus, self.resources.gpus_per_worker)
        if node is None or not self._broken.could_not_start(node, able, running, at_once):
            raise error
        self._warnings.tell(
            f"a worker could not start on node {address_of(node)}, which gets no more workers. The "
            f"others go on. The error: {start_words(error)}",
            *("start", node),
        )
        return without(self._broken.left_out)

    def map(
        self, function: Callable[[T], R], items: Sequence[T], *, memory: int = 0
    ) -> Iterator[R]:
        """Calls a function on each item, as one Ray task; at most two tasks a worker are under way.

        An error of the function is raised here, as its own kind.

        Args:
            function: What is called. It and its results must pickle.
            items: Its arguments, which must pickle, too.
            memory: Bytes that a task takes. Ray puts no more tasks on a node than it has memory
                for.

        Yields:
            The results, as they come.

        Raises:
            TransientError: If workers were lost so often that Ray gave up, or no node had a CPU for
                `capacity_seconds`.
        """
        if memory and items:
            shared = self._task_memory(memory)
            if words := shared.words(min(self.workers, len(items))):
                self._progress(Said(words))
        yield from self._map(function, items, lambda: 2 * self.workers, memory, num_cpus=TASK_CPUS)

    def _map(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        most: Callable[[], int],
        memory: int = 0,
        **options: Any,
    ) -> Iterator[R]:
        """Calls a function on each item, as Ray tasks with these options (see `map`).

        Args:
            function: What is called.
            items: Its arguments.
            most: Returns how many tasks may be under way, on the nodes that are there now.
            memory: Bytes that a task takes; see `TaskMemory`.
            **options: What else a task takes, and how tasks are spread.

        Yields:
            The results, as they come.

        Raises:
            TransientError: See `map`.
        """

        def call(item: T) -> tuple[R, int]:  # Ray takes functions, and no other callables
            collect_rarely()
            meter = RequestMeter()
            return function(item), meter.read()

        remote = ray.remote(runtime_env=self._runtime_env(), **options)(call)
        waiting = list(reversed(items))
        running: list[Any] = []
        reserved = 0
        watch = CapacityWatch(self.resources.capacity_seconds, self._progress)
        with self._known_errors():
            while waiting or running:
                limit = most()
                if waiting and len(running) < limit:  # nodes may have come or gone
                    reserved = self._task_memory(memory).reserved if memory else 0
                    sent = remote.options(memory=reserved or None, label_selector=self._for_tasks())
                    while waiting and len(running) < limit:
                        running.append(sent.remote(waiting.pop()))
                began = monotonic()
                done, running = ray.wait(running, timeout=TASK_LOOK_SECONDS)
                if watch.waits or not done:
                    cpus = task_cpus(reserved, self._broken.left_out)
                    watch.look(monotonic() - began, cpus, task_wants(reserved))
                for result, requests in ray.get(done):
                    count_requests(requests)
                    yield result

    def _task_memory(self, wanted: int) -> TaskMemory:
        return TaskMemory.of(wanted, self._local, self._broken.left_out)

    def _for_tasks(self) -> dict[str, str] | None:
        """Returns the label selector of the nodes that tasks run on.

        A task that asks for no CPU would also run on a node without any, such as a head that is to
        do no work.
        """
        return without([*self._broken.left_out, *nodes_without_cpus()])

    @contextmanager
    def _known_errors(self) -> Iterator[None]:
        """Raises what a worker raised in the block, and says it if Ray has lost the workers.

        Yields:
            Nothing.

        Raises:
            TransientError: Workers were lost for good, or none could start.
            BaseException: A worker raised it.
        """
        try:
            yield
        except RayTaskError as error:
            cause = cause_of(error)
            raise cause from error
        except RayError as error:
            self._lost |= not cannot_start(error)
            raise TransientError(loss_words(error)) from error

    def beside_shards(self) -> Mapper:
        """Returns this engine, or one that asks for no CPU if shards take all of the cluster's.

        A task that asks for a CPU would then wait until the last shard has ended.
        """
        return self if _free().get("CPU", 0) >= TASK_CPUS else _BetweenShards(self)

    @property
    def shard_workers(self) -> int:
        """How many workers can have shards at a time, on the nodes that are there."""
        with self._known_errors():
            return self._room().now

    @property
    def workers(self) -> int:
        """How many tasks of one CPU can run at a time."""
        cpus = self._cpus()
        return min(cpus, self.resources.workers or cpus)

    @property
    def _object_store_bytes(self) -> int | None:
        return None if may_decode_ahead(self.resources) else OBJECT_STORE_BYTES

    @property
    def _has_logs(self) -> bool:
        """Whether Ray sends its nodes' logs, the only place where it tells that memory ran out.

        A Ray of our own logs nothing of that.
        """
        return not self._local

    @property
    def _head_is_there(self) -> bool:
        return head_answers(head_address())

    @property
    def _starts_here(self) -> bool:
        """Whether the address asks for a Ray of our own on this machine."""
        return not self._address or self._address == "local"

    def _room(self) -> Room:
        """Finds out how many workers there may be.

        An explicit number of threads is checked on this machine alone: a cluster may yet add a node
        that is large enough.

        Returns:
            The room.

        Raises:
            UsageError: If this machine has too few CPUs for a worker's threads.
        """
        threads = self.resources.threads
        if self._local and threads and threads > available_cpus():
            raise UsageError(f"threads is {threads}; this machine has {available_cpus()} CPUs")
        return room_of(self.resources, self._local)

    def _runtime_env(self) -> dict[str, Any]:
        """Returns what Ray must start workers with.

        A Ray of our own was started with the environment that workers need. They inherit it, so
        those that Ray has started ahead can be used at once.
        """
        return {} if self._ours and self._local else {"env_vars": _environment()}

    def _require_gpus(self) -> None:
        """Checks this machine's GPUs; a cluster may yet add a node that has some.

        Raises:
            UsageError: If a worker takes more GPUs than there are.
        """
        if self._local and _cluster().get("GPU", 0) < self.resources.gpus_per_worker:
            raise UsageError(
                f"gpus_per_worker is {self.resources.gpus_per_worker:g}; Ray sees "
                f"{_cluster().get('GPU', 0):g} GPUs on this machine"
            )

    def _cpus(self) -> int:
        return max(1, self._node_cpus())

    def _node_cpus(self) -> int:
        """Returns how many CPUs the nodes have that are there; an autoscaler may yet bring some."""
        return available_cpus() if self._local else int(_cluster().get("CPU", 0))


class _BetweenShards:
    """Maps functions where shards take all CPUs: by a task for each node, which asks for none."""

    in_process = False

    def __init__(self, engine: RayEngine) -> None:
        self._engine = engine

    @property
    def workers(self) -> int:
        """How many tasks run at a time: as many as nodes have CPUs."""
        return max(1, sum(bool(n["Alive"] and n["Resources"].get("CPU")) for n in list_nodes()))

    def map(
        self, function: Callable[[T], R], items: Sequence[T], *, memory: int = 0
    ) -> Iterator[R]:
        """Calls a function on each item (see `RayEngine.map`); shards have all the memory, too."""
        return self._engine._map(
            function, items, lambda: self.workers, num_cpus=0, scheduling_strategy="SPREAD"
        )


def _connection() -> tuple[str, str]:
    """Returns what no other connection of this process has: its node, and its number there.

    Each cluster numbers its connections from one on.
    """
    here = ray.get_runtime_context()
    return str(here.get_node_id()), str(here.get_job_id())


def _end_what_was_left() -> None:
    """Ends the connection that an earlier engine has left open; its error is told by now."""
    left = [*_left_behind]
    _left_behind.clear()
    if left and ray.is_initialized() and _connection() in left:
        with without_stderr():
            ray.shutdown(wait_for_processes=True)


def _any_gets_on(work: Iterable[tuple[str, str]]) -> bool:
    """Tells whether a worker gets on with a shard.

    Args:
        work: The work folder of each dataset, and the id of the job that counts it.

    Returns:
        Whether one does, in any of the datasets.

    Raises:
        StorageError: The store does not answer.
    """
    return any(gets_on(folder, job) for folder, job in work)


# Ray leaves these two without types.


def _cluster() -> dict[str, float]:
    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]  # Ray's


def _free() -> dict[str, float]:
    return cast(dict[str, float], ray.available_resources())  # type: ignore[no-untyped-call]  # Ray's


def _environment() -> dict[str, str]:
    return WORKER_ENVIRONMENT | {k: os.environ[k] for k in FORWARDED if k in os.environ}
