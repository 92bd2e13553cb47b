"""Provides those who decode for a worker, in threads, with the faults that Ray's tasks may have."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.counting import DecodedRun, DecodeWork, LostRun, decode_run
from pipeline.errors import TransientError

Fate = Callable[[int], str]
"""What becomes of a run, by its number: `done`, `lost`, `fails` or `never` (ends)."""


class ThreadedPool:
    """Decodes runs in threads. What goes there and back is pickled, as Ray does it."""

    def __init__(self, fate: Fate = lambda number: "done", threads: int = 3) -> None:
        self.asked: list[DecodeWork] = []
        self.cancelled: list[DecodeWork] = []
        self.done = 0
        self._fate = fate
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(threads)

    def ask(self, work: DecodeWork) -> _InThread:
        with self._lock:
            self.asked.append(work)
            number = len(self.asked)
        return _InThread(self, work, self._fate(number))

    def free_cpus(self) -> int:
        return 64

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class _InThread:
    def __init__(self, pool: ThreadedPool, work: DecodeWork, fate: str) -> None:
        self._pool = pool
        self._work = work
        self._fate = fate
        self._cancelled = threading.Event()
        sent = pickle.dumps(work)
        self._answer: Future[bytes] = pool._threads.submit(self._decode, sent)

    def _decode(self, sent: bytes) -> bytes:
        if self._fate in ("lost", "never"):
            return b""
        if self._fate == "fails":
            raise TransientError("the task's node reads nothing")
        answer = pickle.dumps(decode_run(pickle.loads(sent)))
        self._pool.done += 1
        return answer

    def result(self) -> DecodedRun:
        if self._fate == "never":
            assert self._cancelled.wait(60)
        answer = self._answer.result()
        if not answer:
            raise LostRun("its process ended")
        done = pickle.loads(answer)
        assert isinstance(done, DecodedRun)
        return done

    def cancel(self) -> None:
        if not self._answer.done() or self._fate == "never":
            self._pool.cancelled.append(self._work)
        self._answer.cancel()
        self._cancelled.set()
