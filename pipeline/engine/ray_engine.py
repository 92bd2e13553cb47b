"""The only module that imports Ray: spreads shards and reductions over a cluster. No logic.

    >>> with RayEngine(Resources()) as engine:                  # doctest: +SKIP
    ...     build_datasets(catalogue, requests, engine)

One row of a Ray dataset is one shard: (recipe, manifest, work folder, number). An actor of the
pool counts it and commits its partial; what comes back is a receipt. Ray runs a row at least once;
that it counts once is the affair of the commit, not of Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar, cast

import numpy as np
import ray
from ray._private.node import Node
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError, RayTaskError

from pipeline.counting import MALLOC_ENVIRONMENT, OVERLAP, Receipt, Recipe, ShardJob, Worker
from pipeline.errors import ConservationError, TransientError, UsageError
from pipeline.spec import Resources, available_cpus
from pipeline.storage import retry

logger = logging.getLogger(__name__)

T = TypeVar("T")

R = TypeVar("R")

WORKER_ENVIRONMENT = MALLOC_ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
"""What every worker's process is started with."""

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
    *retry.VARIABLES,
)
"""Settings of the driver that workers get too; no secrets, which the dashboard would show."""

OBJECT_STORE_BYTES = 256 * 2**20
"""On a laptop; only receipts pass through it."""

STARTS = 3
"""Of Ray on this machine, before it is said that it does not start."""


class RayEngine:
    """A cluster by address, that of RAY_ADDRESS, or one on this machine, ended with the context."""

    in_process = False

    def __init__(self, resources: Resources, address: str | None = None) -> None:
        self._resources = resources
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._ours = False

    def __enter__(self) -> RayEngine:
        os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
        # Ray's core tells on stderr of restarts and lost objects that it mends by itself.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if ray.is_initialized():
            return self
        self._ours = True
        if self._address and self._address != "local":
            try:
                with _without_stderr():
                    ray.init(address=self._address, **quiet)
            except ConnectionError as error:
                raise UsageError(f"no Ray cluster answers at {self._address}: {error}") from error
        else:
            # One more than there are: a pool that fills a machine's CPUs exactly can stall it.
            started(
                lambda: ray.init(
                    address="local",
                    num_cpus=available_cpus() + 1,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    **quiet,
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            ray.shutdown()
            self._ours = False

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[Receipt]:
        """Receipts as shards end. Raises `TransientError` where nothing ended for too long, and the
        `ConservationError` of a worker.
        """
        resources = self._sized()
        recipes: dict[Recipe, int] = {}
        for job, _ in work:
            recipes.setdefault(job.recipe, len(recipes))
        shipped = [replace(recipe, resources=resources) for recipe in recipes]
        rows = [
            {
                "recipe": recipes[job.recipe],
                "manifest": job.manifest_uri,
                "work": job.work_uri,
                "index": index,
            }
            for job, index in work
        ]
        self._require_gpus()
        actors = self._actors(resources, len(rows))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray's own, of its own settings
            context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = resources.stall_seconds
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _ShardActor,
            fn_constructor_kwargs={"recipes": shipped},
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=actors,
                max_size=actors,
                max_tasks_in_flight_per_actor=OVERLAP + 1,
                max_concurrent_calls_per_actor=OVERLAP,
                enable_true_multi_threading=True,
            ),
            num_cpus=resources.threads,
            num_gpus=resources.gpus_per_worker or None,
            runtime_env={"env_vars": _environment()},
        )
        rows_of_all = iter(dataset.iter_rows())
        try:
            for row in rows_of_all:
                if row.pop("unsound"):
                    raise ConservationError(row["error"])
                yield Receipt(**row)
        except RayTaskError as error:
            raise _cause(error) from error
        except TimeoutError as error:
            raise TransientError(
                f"no shard ended for {resources.stall_seconds:g} s; rerun the same command to go "
                f"on from what is committed: {error}"
            ) from error
        finally:  # what still runs ends now, and not while Ray goes down
            rows_of_all.close()  # type: ignore[attr-defined]  # a generator

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """One task an item, at most two for each worker under way."""

        def call(item: T) -> R:  # Ray takes functions, and no other callables
            return function(item)

        remote = ray.remote(num_cpus=1, runtime_env={"env_vars": _environment()})(call)
        waiting = list(reversed(items))
        running: list[Any] = []
        limit = 2 * self.workers
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    running.append(remote.remote(waiting.pop()))
                done, running = ray.wait(running)
                yield from ray.get(done)
        except RayTaskError as error:
            raise _cause(error) from error
        except RayError as error:
            raise TransientError(
                f"a worker was lost, and others after it; rerun the same command to go on: {error}"
            ) from error

    @property
    def workers(self) -> int:
        """Tasks of one CPU that can run at a time."""
        cpus = self._cpus()
        return min(cpus, self._resources.workers or cpus)

    @property
    def _local(self) -> bool:
        return not self._address or self._address == "local"

    def _sized(self) -> Resources:
        """Threads that a node has CPUs for, and as many workers as leave each node one CPU.

        Raises `UsageError` where this machine cannot give a worker its threads; a cluster may yet
        add a node that can, so there an explicit number is taken as it is.
        """
        nodes = [int(n["Resources"].get("CPU", 0)) for n in _nodes() if n["Alive"]]
        nodes = [cpus for cpus in nodes if cpus > 0] or [2]
        threads = self._resources.threads or max(1, min(4, min(nodes) - 1))
        if self._local and threads > available_cpus():
            raise UsageError(f"threads is {threads}; this machine has {available_cpus()} CPUs")
        workers = self._resources.workers
        if workers is None:
            workers = max(1, sum((cpus - 1) // threads for cpus in nodes))
        return replace(self._resources, threads=threads, workers=workers)

    def _require_gpus(self) -> None:
        """On this machine what is not there will not come; a cluster may add a node."""
        if self._local and _cluster().get("GPU", 0) < self._resources.gpus_per_worker:
            raise UsageError(
                f"gpus_per_worker is {self._resources.gpus_per_worker:g}; Ray sees "
                f"{_cluster().get('GPU', 0):g} GPUs on this machine"
            )

    def _cpus(self) -> int:
        if self._address and self._address != "local":
            return max(1, int(_cluster().get("CPU", 1)))
        return available_cpus()

    def _actors(self, resources: Resources, shards: int) -> int:
        wanted = resources.workers or 1
        if self._resources.workers is None and resources.gpus_per_worker:
            gpus = _cluster().get("GPU", 0)
            wanted = max(1, int(gpus / resources.gpus_per_worker))
        return max(1, min(wanted, shards))


class _ShardActor:
    """One actor of the pool: a worker, kept between rows with its extractor loaded."""

    def __init__(self, recipes: list[Recipe]) -> None:
        self._recipes = recipes
        self._worker = Worker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        job = ShardJob(
            self._recipes[int(batch["recipe"][0])],
            str(batch["manifest"][0]),
            str(batch["work"][0]),
        )
        index, unsound = int(batch["index"][0]), False
        try:
            receipt = self._worker.run(job, index)
        except ConservationError as error:  # raised here, it would reach the driver as Ray's own
            receipt, unsound = Receipt(job.manifest_uri, index, error=str(error)), True
        row = asdict(receipt) | {"unsound": unsound}
        return {name: np.array([value]) for name, value in row.items()}


def started(start: Callable[[], T]) -> T:
    """What `start` returns, tried again where a node that it starts does not come up.

    A raylet ends itself where its agents take above 15 s to start, as they may on a busy machine,
    and Ray tells after 30 s (github.com/ray-project/ray/issues/65983). Raises `TransientError`
    after `STARTS` times; nothing of a node that failed is left running.
    """
    starts = 0
    while True:
        starts += 1
        try:
            with _without_stderr():
                return start()
        except Exception as error:  # Ray raises no kind of its own
            node = _node_of(error)
            if node is None:
                raise
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            problem = f"Ray did not start on this machine ({node.get_logs_dir_path()} has its logs)"
            if starts == STARTS:
                raise TransientError(
                    f"{problem}, {starts} times: {error} Rerun the same command when the machine "
                    "is less busy, or with --workers 0, without Ray"
                ) from error
            logger.warning("%s; starting it again", problem)


def _node_of(error: Exception) -> Any:
    """The node that raised while its processes started; Ray keeps no other way to it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node) and getattr(node, "all_processes", None):
            return node
    return None


# Ray leaves these two without types.


def _nodes() -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], ray.nodes())  # type: ignore[no-untyped-call]  # Ray's


def _cluster() -> dict[str, float]:
    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]  # Ray's


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's core writes past Python that it took its log level; errors are raised all the same."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _environment() -> dict[str, str]:
    return WORKER_ENVIRONMENT | {k: os.environ[k] for k in FORWARDED if k in os.environ}


def _cause(error: RayTaskError) -> BaseException:
    """What the worker raised, as its own kind."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
