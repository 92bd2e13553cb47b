"""Watches a pool of workers: tells how many run, and ends the wait for workers or for shards.

    >>> watch = PoolWatch(8, "4 CPUs", Limits(1800, 3600), lambda: False, print, now=0.0)
    >>> watch.look(12.0, workers=3)
    >>> watch.look(24.0, workers=3)
    PoolChanged(workers=3, most=8, wanted='4 CPUs', limit=3600)

That no worker runs is no failure: one starts, or no node has room for one. The job waits, and says
so. A pool has stalled only if workers run, no shard ends, and no worker gets on with one: a slow
network may take long over a shard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import TransientError
from pipeline.events import Listener, PoolChanged, PoolFilled

SETTLE_SECONDS = 10.0
"""How long a number of workers must last before it is told. Workers start one after the other."""


@dataclass(frozen=True)
class Limits:
    """How long a job goes on without a shard that ends, in seconds.

    Attributes:
        stall: While workers run. Then it is asked whether they get on.
        capacity: While none runs.
    """

    stall: float
    capacity: float


class PoolWatch:
    """Judges by what it is told: the time, the number of workers, and that shards end.

    Ray's thread looks, while the thread of the job takes the shards that end.
    """

    def __init__(
        self,
        most: int,
        wanted: str,
        limits: Limits,
        gets_on: Callable[[], bool],
        listener: Listener,
        now: float,
    ) -> None:
        """Begins to watch.

        Args:
            most: How many workers there may be, where there is room.
            wanted: What a worker takes, such as `4 CPUs and 1 GPU`.
            limits: When to give up.
            gets_on: Tells whether a worker gets on with its shard.
            listener: Is told when the number of workers has changed.
            now: The time, in seconds of any clock that only goes on.
        """
        self._most = most
        self._wanted = wanted
        self._limits = limits
        self._gets_on = gets_on
        self._listener = listener
        self._last = now
        self._workers, self._since = 0, now
        self._told = most
        self._filled = False
        self._stalled = self._waited = 0.0
        self._paused = self._resumed = False
        self._lock = threading.Lock()

    def ended(self) -> None:
        """Takes note that a shard has ended."""
        with self._lock:
            self._stalled = self._waited = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock while the block runs, as the job takes no shard meanwhile.

        The clock goes on with the first look after the block.

        Yields:
            Nothing.
        """
        with self._lock:
            self._paused = True
        try:
            yield
        finally:
            with self._lock:
                self._paused, self._resumed = False, True

    def look(self, now: float, workers: int) -> None:
        """Takes note of the workers; to be called often.

        Time with workers and time without add up apart from each other until a shard ends. So
        workers that come and go, and end no shard, end the job, too.

        Args:
            now: The time.
            workers: How many workers run.

        Raises:
            TransientError: If the job has waited too long.
        """
        with self._lock:
            passed = 0.0 if self._paused or self._resumed else now - self._last
            self._resumed = False
            self._last = now
            if self._workers:
                self._stalled += passed
            else:
                self._waited += passed
            stalled, waited = self._stalled, self._waited
        if workers != self._workers:
            self._workers, self._since = workers, now
        elif not self._filled and workers == self._told == self._most:
            if now - self._since >= SETTLE_SECONDS:
                self._filled = True
                self._listener(PoolFilled(workers))
        elif workers != self._told and now - self._since >= SETTLE_SECONDS:
            self._told, self._filled = workers, True
            limit = self._limits.capacity
            self._listener(PoolChanged(workers, self._most, self._wanted, limit))
        again = "rerun the same command to go on from what is committed"
        if stalled >= self._limits.stall:
            if not self._gets_on():
                raise TransientError(
                    f"no shard ended for {stalled:.0f} s, and no worker gets on with one; {again}"
                )
            with self._lock:
                self._stalled = 0.0
        if waited >= self._limits.capacity:
            raise TransientError(
                f"no worker ran for {waited:.0f} s; one takes {self._wanted}. When a node has that "
                f"free, {again}"
            )


class CapacityWatch:
    """Tells while tasks wait because no node has what one takes, and ends the wait in the end.

    Attributes:
        waits: Whether it was told that they wait.
    """

    def __init__(self, limit: float, listener: Listener) -> None:
        """Begins to watch.

        Args:
            limit: How many seconds tasks may wait.
            listener: Is told when tasks wait, and when they no longer do.
        """
        self._limit = limit
        self._listener = listener
        self._waited = 0.0
        self.waits = False

    def look(self, passed: float, cpus: int, wanted: str) -> None:
        """Takes note of the CPUs; to be called often while no task ends.

        Args:
            passed: For how many seconds no task has ended, since the last look.
            cpus: How many CPUs the nodes have together that are large enough for a task.
            wanted: What a task takes, such as `1 CPU`.

        Raises:
            TransientError: If tasks have waited too long.
        """
        if cpus:
            self._waited = 0.0
            if self.waits:
                self.waits = False
                self._listener(PoolChanged(cpus, cpus, wanted, self._limit))
            return
        self._waited += passed
        if self._waited >= self._limit:
            raise TransientError(
                f"no node had {wanted} for {self._waited:.0f} s, and tasks wait for that; when a "
                "node has it, rerun the same command to go on from what is committed"
            )
        if self._waited >= SETTLE_SECONDS and not self.waits:
            self.waits = True
            self._listener(PoolChanged(0, 1, wanted, self._limit))
