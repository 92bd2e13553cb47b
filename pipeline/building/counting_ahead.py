"""Counts the shards of a large source while it is still listed.

    >>> with CountingAhead(engine, progress) as ahead:               # doctest: +SKIP
    ...     ahead.add("photos", job, plan_of_some_shards)
    ...     ahead.finish()["photos"].shards
    128

What is counted here is stored under the same keys as later in the build, which then finds it. A
shard that fails is left: the build tries it again.
"""

from __future__ import annotations

import threading
from types import TracebackType

from pipeline.building.runner import Ran, run_missing
from pipeline.counting import ShardJob
from pipeline.engine import Engine
from pipeline.events import Event, Listener
from pipeline.mapper import Mapper
from pipeline.sources import Manifest


class _Stopped(Exception):
    """The build has ended meanwhile."""


class CountingAhead:
    """A thread that counts the shards it is given, all that wait at a time.

    Args:
        engine: Where the shards run.
        progress: Is told of each shard.
    """

    def __init__(self, engine: Engine, progress: Listener) -> None:
        self._engine = engine
        self._progress = progress
        self._changed = threading.Condition()
        self._waiting: list[tuple[str, ShardJob, Manifest]] = []
        self._ran: dict[str, Ran] = {}
        self._error: BaseException | None = None
        self._complete = self._stopped = False
        self._thread: threading.Thread | None = None

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

    def add(self, name: str, job: ShardJob, manifest: Manifest) -> None:
        """Adds shards.

        Args:
            name: The dataset that they belong to.
            job: What workers need to count them; its manifest is stored.
            manifest: The shards.
        """
        with self._changed:
            self._waiting.append((name, job, manifest))
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
            self._thread.start()

    def mapper(self) -> Mapper:
        """Returns where tasks run meanwhile."""
        return self._engine if self._thread is None else self._engine.beside_shards()

    def finish(self) -> dict[str, Ran]:
        """Waits for all shards.

        Returns:
            What was counted, by the name of the dataset.

        Raises:
            VdnaError: No shard could be run; see `Engine.run_shards`.
        """
        with self._changed:
            self._complete = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._ran

    def _run(self) -> None:
        try:
            while work := self._next():
                names, jobs = [name for name, *_ in work], [(job, plan) for _, job, plan in work]
                for name, ran in zip(
                    names, run_missing(jobs, self._engine, self._tell), strict=True
                ):
                    self._ran[name] = self._ran.get(name, Ran()).with_more(ran)
        except _Stopped:
            pass
        except BaseException as error:  # told where the shards are waited for
            self._error = error

    def _next(self) -> list[tuple[str, ShardJob, Manifest]]:
        """Waits for shards; returns nothing once there will be no more."""
        with self._changed:
            while not (self._waiting or self._complete or self._stopped):
                self._changed.wait()
            work, self._waiting = self._waiting, []
            return [] if self._stopped else work

    def _tell(self, event: Event) -> None:
        if self._stopped:
            raise _Stopped
        self._progress(event)
