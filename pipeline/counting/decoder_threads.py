"""Threads that decode images, each within a time limit.

>>> decoders = Decoders(threads=4)                                       # doctest: +SKIP
>>> decoders.result(decoders.after(fetched, decode, seconds=60))
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from math import inf
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar, cast

from pipeline.images.decoding import stopped_clock

T = TypeVar("T")

R = TypeVar("R")


class Decoders:
    """Threads that decode; one that takes too long is left to itself, as it cannot be stopped.

    Its time counts from when it began to decode, without the time that it waits for memory. Another
    thread takes its place. Being a daemon, it does not keep the process from ending.
    """

    def __init__(self, threads: int) -> None:
        self._tasks: SimpleQueue[Callable[[], bool]] = SimpleQueue()
        self._deadlines: dict[Future[Any], float] = {}
        self._lock = threading.Lock()
        self._threads = threads
        self._closed = False
        for _ in range(threads):
            self._start()

    def after(
        self, first: Future[T], function: Callable[[T], R], seconds: float = inf
    ) -> Future[R]:
        """Calls a function with what another future brings, once it is there.

        Args:
            first: The other future.
            function: What to call.
            seconds: The time limit of the call.

        Returns:
            The future of the function's result. It is cancelled if the threads have ended before
            the other one is there.
        """
        second: Future[R] = Future()

        def ask(_: Future[T]) -> None:
            self._tasks.put(lambda: self._run(second, first, function, seconds))
            if self._closed:  # looked at last: the task may lie behind the marks that end threads
                second.cancel()

        first.add_done_callback(ask)
        return second

    def result(self, future: Future[R]) -> R:
        """Waits for a future of `after`.

        Args:
            future: The future.

        Returns:
            What its function returned.

        Raises:
            TimeoutError: If the function took too long.
            CancelledError: If the future was cancelled.
        """
        while not future.done() and not wait([future], self._patience()).done:
            self._give_up()
        return future.result()

    def close(self) -> None:
        """Ends the threads, once what waits for them is done. What comes later is cancelled."""
        # Without a lock: the collector of garbage may call this in a thread that holds it.
        self._closed = True
        for _ in range(self._threads):
            self._tasks.put(lambda: False)

    def _start(self) -> None:
        threading.Thread(target=self._work, name="decode", daemon=True).start()

    def _work(self) -> None:
        while self._tasks.get()():
            pass

    def _run(
        self, second: Future[R], first: Future[T], function: Callable[[T], R], seconds: float
    ) -> bool:
        """Returns whether the thread still has its place."""
        if not second.set_running_or_notify_cancel():
            return True
        with self._lock:
            self._deadlines[second] = monotonic() + seconds
        result, error = None, None
        before = stopped_clock.set(lambda: self._stopped(second, seconds))
        try:
            result = function(first.result())
        except BaseException as raised:
            error = raised
        finally:
            stopped_clock.reset(before)
        with self._lock:
            if self._deadlines.pop(second, None) is None:
                return False
        if error is None:
            second.set_result(cast(R, result))
        else:
            second.set_exception(error)
        return True

    @contextmanager
    def _stopped(self, second: Future[Any], seconds: float) -> Iterator[None]:
        """Lets no time count while the block runs. Afterwards it counts from its beginning."""
        self._restart(second, inf)
        try:
            yield
        finally:
            self._restart(second, monotonic() + seconds)

    def _restart(self, second: Future[Any], deadline: float) -> None:
        with self._lock:
            if second in self._deadlines:  # else it was given up
                self._deadlines[second] = deadline

    def _patience(self) -> float:
        """Returns the seconds to wait before the next decoder may have to be given up."""
        with self._lock:
            nearest = min(self._deadlines.values(), default=inf)
        return min(max(nearest - monotonic(), 0.01), 1.0)

    def _give_up(self) -> None:
        with self._lock:
            now = monotonic()
            overdue = [future for future, end in self._deadlines.items() if end <= now]
            for future in overdue:
                del self._deadlines[future]
                self._start()
        for future in overdue:
            future.set_exception(TimeoutError())
