"""Counts the shards of a large source while it is still listed.

    >>> with CountingAhead(engine, progress) as ahead:               # doctest: +SKIP
    ...     ahead.add("photos", job_of, plan_of_some_shards)
    ...     ahead.finish()["photos"].ran.shards
    128

What is counted here is stored under the same keys as later in the build, which then finds it. A
shard that fails is tried as often as one that is counted later, and no more often in both together.
If its counts do not add up, its dataset is not built, as when it is counted later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from pipeline.building.runner import FailedShard, Ran, run_missing
from pipeline.counting import ShardJob
from pipeline.engine import Engine
from pipeline.errors import known_error
from pipeline.events import Event, Finished, Listener, Said, Started, heard_by, ignore
from pipeline.mapper import Mapper
from pipeline.sources import Manifest

T = TypeVar("T")
R = TypeVar("R")

STOP_SECONDS = 5.0
"""How long a build that ends waits for its thread, which stops at the next shard that ends."""


class _Stopped(Exception):
    """The build has ended meanwhile."""


@dataclass
class CountedAhead:
    """What was counted of a dataset while it was listed.

    Attributes:
        ran: How much was counted.
        failed: The shards that have failed, by their contents.
    """

    ran: Ran = field(default_factory=Ran)
    failed: dict[str, FailedShard] = field(default_factory=dict)


class CountingAhead:
    """A thread that counts the shards it is given, all that wait at a time.

    It is also a mapper: functions run where shards that are counted leave room for them.

    Args:
        engine: Where the shards run.
        progress: Is told of each shard.
    """

    def __init__(self, engine: Engine, progress: Listener) -> None:
        self._engine = engine
        self._progress = progress
        self._changed = threading.Condition()
        self._waiting: dict[str, list[Manifest]] = {}
        self._job_of: dict[str, Callable[[Manifest], ShardJob]] = {}
        self._counted: dict[str, CountedAhead] = {}
        self._complete = self._stopped = self._failed = False
        self._thread: threading.Thread | None = None
        self._telling = threading.Lock()
        self._is_planning = False

    def __enter__(self) -> CountingAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    @property
    def in_process(self) -> bool:
        """Whether functions can run in this process alone."""
        return self._engine.in_process

    @property
    def workers(self) -> int:
        """How many functions run at a time."""
        return self._mapper.workers

    def map(
        self, function: Callable[[T], R], items: Sequence[T], *, memory: int = 0
    ) -> Iterator[R]:
        """Calls a function on each item (see `Mapper`)."""
        return self._mapper.map(function, items, memory=memory)

    @property
    def _mapper(self) -> Mapper:
        thread = self._thread
        counts = thread is not None and thread.is_alive()
        return self._engine.beside_shards() if counts else self._engine

    def add(self, name: str, job_of: Callable[[Manifest], ShardJob], manifest: Manifest) -> None:
        """Adds shards.

        Args:
            name: The dataset that they belong to.
            job_of: Stores a plan of some shards, and returns what workers need to count them. It is
                called in the thread.
            manifest: The shards. After an error they are left for later in the build.
        """
        with self._changed:
            if self._failed:
                return
            self._job_of[name] = job_of
            self._waiting.setdefault(name, []).append(manifest)
            self._changed.notify()
            if self._thread is None:  # datasets are planned by several threads
                self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
                self._thread.start()

    @contextmanager
    def planning(self, started: Started) -> Iterator[Listener]:
        """Shows the stage of the plans, until shards are counted: listeners know one at a time.

        Args:
            started: The event that opens it.

        Yields:
            Is told of each step. Once shards are counted, it tells nobody.
        """
        self._progress(started)
        self._is_planning, ok = True, False
        try:
            with heard_by(ignore):
                yield self._tell_step
            ok = True
        finally:
            self._end_planning(ok=ok)

    def drop(self, name: str) -> None:
        """Forgets the shards of a dataset that nobody has begun to count: it has another plan."""
        with self._changed:
            self._waiting.pop(name, None)

    def finish(self) -> dict[str, CountedAhead]:
        """Waits for all shards.

        Returns:
            What was counted, by the name of the dataset.
        """
        with self._changed:
            self._complete = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        return self._counted

    def _run(self) -> None:
        try:
            while waiting := self._next():
                self._count({name: Manifest.joined(some) for name, some in waiting.items()})
        except _Stopped:
            pass
        except Exception as error:  # the build counts what is left, and meets it again if it lasts
            with self._changed:
                self._failed = True
                self._waiting.clear()
            self._progress(Said(f"nothing more is counted ahead: {known_error(error)}"))

    def _count(self, plans: dict[str, Manifest]) -> None:
        self._end_planning(ok=True)
        work = [(self._job_of[name](plan), plan) for name, plan in plans.items()]
        counted = [self._counted.setdefault(name, CountedAhead()) for name in plans]
        failed = [its.failed for its in counted]
        # What another job counts is waited for later, while nothing else is left to count.
        ran = run_missing(work, self._engine, self._tell, failed=failed, waits=False)
        for its, more in zip(counted, ran, strict=True):
            its.ran = its.ran.with_more(more)

    def _next(self) -> dict[str, list[Manifest]]:
        """Waits for shards; returns nothing once there will be no more."""
        with self._changed:
            while not (self._waiting or self._complete or self._stopped):
                self._changed.wait()
            waiting, self._waiting = self._waiting, {}
            return {} if self._stopped else waiting

    def _tell_step(self, done: Event) -> None:
        with self._telling:
            if self._is_planning:
                self._progress(done)

    def _end_planning(self, *, ok: bool) -> None:
        with self._telling:
            was_planning, self._is_planning = self._is_planning, False
            if was_planning:
                self._progress(Finished(ok))

    def _tell(self, event: Event) -> None:
        if self._stopped:
            raise _Stopped
        self._progress(event)
