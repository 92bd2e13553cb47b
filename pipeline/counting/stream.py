"""Sends the images of a shard through a network, in order: fetch, decode, extract.

    >>> for found in Stream(extractor, rule).observed(shard, observe):       # doctest: +SKIP
    ...     places, seen = found

Three pools of threads work ahead of each other, within bounds: fetching waits for storage, decoding
and the network wait for cores. Whatever the threads do, images are taken in the order of the shard,
so that every number comes out the same to the last bit.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from math import inf
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar, cast

from numpy.typing import NDArray

from pipeline import images
from pipeline.counting.extractor import Extractor
from pipeline.counting.feed import Prepared
from pipeline.dna import Failure
from pipeline.errors import BadImage
from pipeline.sources import Entry, Members, Shard
from pipeline.spec import Preprocess, Resources

T = TypeVar("T")

R = TypeVar("R")

FETCH_THREADS = 16

AHEAD_BYTES = 256 * 2**20
"""The most bytes of a shard that are held ahead of the network, as files and as what is made of
them, beside the room of two micro-batches. A single image may be larger."""

UNKNOWN_BYTES = AHEAD_BYTES // 5
"""What an image of unknown size is taken for until it is read: few of them are read at a time."""

Content = bytes | images.Decoded

Fetch = Callable[[Entry], Content]


@dataclass(frozen=True)
class Made:
    """What a shard came to.

    Attributes:
        data: The object to commit.
        images: How many images are in it.
        failures: How many images could not be read.
    """

    data: bytes
    images: int
    failures: int


class Decoders:
    """Threads that decode; one that takes too long is left to itself, as it cannot be stopped.

    Its time counts from when it began to decode. Another thread takes its place. Being a daemon, it
    does not keep the process from ending.
    """

    def __init__(self, threads: int) -> None:
        self._tasks: SimpleQueue[Callable[[], bool]] = SimpleQueue()
        self._deadlines: dict[Future[Any], float] = {}
        self._lock = threading.Lock()
        self._threads = threads
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
            The future of the function's result.
        """
        second: Future[R] = Future()
        first.add_done_callback(
            lambda _: self._tasks.put(lambda: self._run(second, first, function, seconds))
        )
        return second

    def result(self, future: Future[R]) -> R:
        """Waits for a future of `after`.

        Args:
            future: The future.

        Returns:
            What its function returned.

        Raises:
            TimeoutError: If the function took too long.
        """
        while not future.done() and not wait([future], self._patience()).done:
            self._give_up()
        return future.result()

    def close(self) -> None:
        """Ends the threads, once what was asked of them is done."""
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
        try:
            result = function(first.result())
        except BaseException as raised:
            error = raised
        with self._lock:
            if self._deadlines.pop(second, None) is None:
                return False
        if error is None:
            second.set_result(cast(R, result))
        else:
            second.set_exception(error)
        return True

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


class Stream:
    """Holds an extractor and its threads; several shards may be under way at a time."""

    def __init__(
        self, extractor: Extractor, rule: Preprocess, resources: Resources | None = None
    ) -> None:
        resources = (resources or Resources()).with_cpus(1)
        self.extractor = extractor
        self._rule = rule
        self._resources = resources
        self._threads = resources.threads or 1
        self._most_made = images.most_bytes(rule, extractor.on_device)
        self._most_held = AHEAD_BYTES + 2 * extractor.micro_batch * self._most_made
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, "fetch")
        self._decoders = Decoders(self._threads + 1)
        weakref.finalize(self, self._decoders.close)  # as the other pools' threads end, unclosed
        # A GPU takes its work in one queue, which one thread fills without waiting for it.
        passes = 1 if extractor.on_device else self._threads
        self._batch = extractor.batches(rule)
        self._networks = ThreadPoolExecutor(passes, "network")

    def observed(
        self,
        shard: Shard,
        observe: Callable[[Prepared], R],
        fetch: Fetch | None = None,
        note: Callable[[images.Loaded], None] | None = None,
        *,
        isolated: bool = False,
    ) -> Generator[tuple[list[int], R] | Failure, None, None]:
        """Observes a shard's images, in micro-batches and in order.

        Args:
            shard: The shard.
            observe: Called in one of the threads with each micro-batch.
            fetch: Reads a member; None reads it from its store.
            note: Called in this thread with each image that can be read, in order.
            isolated: Whether images are decoded in a process apart.

        Yields:
            The places of a micro-batch in the shard, with what `observe` returned; and a failure
                for each image that cannot be read through its own fault.

        Raises:
            TransientError: If an image could not be read through no fault of its own. None is
                skipped.
            SourceError: If an image changed since it was listed.
        """
        ahead = self._resources.fetch_ahead
        batch: list[tuple[int, NDArray[Any]]] = []
        running: deque[tuple[list[int], int, Future[R]]] = deque()

        def start() -> None:
            places, values = [at for at, _ in batch], [image for _, image in batch]
            future = self._networks.submit(lambda: observe(self._batch(values)))
            running.append((places, _bytes_of(values), future))
            batch.clear()

        def waiting() -> int:
            queued = sum(held for _, held, future in running if not future.done())
            return queued + _bytes_of(image for _, image in batch)

        with closing(Members(shard.members, self._rule.max_bytes, ahead)) as members:
            prepared = self._prepared(shard, fetch or members.fetch, isolated, waiting)
            for at, outcome in enumerate(prepared):
                if isinstance(outcome, Failure):
                    yield outcome
                    continue
                if note is not None:
                    note(outcome)
                batch.append((at, outcome.values))
                if len(batch) == self.extractor.micro_batch:
                    start()
                    while len(running) > self._threads + 1:
                        places, _, future = running.popleft()
                        yield places, future.result()
            if batch:
                start()
            for places, _, future in running:
                yield places, future.result()

    def close(self) -> None:
        """Ends the threads."""
        for pool in (self._fetchers, self._networks):
            pool.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def _prepared(
        self, shard: Shard, fetch: Fetch, isolated: bool, waiting: Callable[[], int]
    ) -> Iterator[images.Loaded | Failure]:
        """Yields the members in order, as the network takes them, or as failures.

        At most `fetch_ahead` members are under way, or else one member. They and what is `waiting`
        for the network take at most `AHEAD_BYTES` and two micro-batches.

        Yields:
            Images as the network takes them, or failures.
        """
        ahead: deque[tuple[Entry, Future[Content], Future[images.Loaded]]] = deque()
        members = deque(shard.members)

        def has_room(entry: Entry) -> bool:
            held = waiting() + sum(_size(*each[:2]) + self._made(each[2]) for each in ahead)
            new = (entry.size or UNKNOWN_BYTES) + self._most_made
            return len(ahead) < self._resources.fetch_ahead and held + new <= self._most_held

        try:
            while members or ahead:
                while members and (not ahead or has_room(members[0])):
                    entry = members.popleft()
                    ahead.append((entry, *self._start(entry, fetch, isolated)))
                yield self._finish(*ahead.popleft())
        finally:
            for _, fetched, prepared in ahead:
                fetched.cancel()
                prepared.cancel()

    def _start(
        self, entry: Entry, fetch: Fetch, isolated: bool
    ) -> tuple[Future[Content], Future[images.Loaded]]:
        rule, on_device = self._rule, self.extractor.on_device

        def prepare(content: Content) -> images.Loaded:
            if isinstance(content, images.Decoded):
                return images.loaded(content, rule, on_device)
            if isolated:
                return self._apart(content)
            return images.load(content, rule, on_device)

        fetched = self._fetchers.submit(fetch, entry)
        limit = inf if isolated else self._resources.decode_seconds
        return fetched, self._decoders.after(fetched, prepare, limit)

    def _finish(
        self, entry: Entry, fetched: Future[Content], prepared: Future[images.Loaded]
    ) -> images.Loaded | Failure:
        try:
            content = fetched.result()
            try:
                return self._decoders.result(prepared)
            except (TimeoutError, MemoryError):
                if isinstance(content, images.Decoded):
                    raise
                return self._apart(content)
        except BadImage as bad:
            crashed = bad.reason in images.NONDETERMINISTIC
            return Failure(entry.uri, entry.member, bad.reason, _printable(bad.detail), crashed)

    def _apart(self, content: bytes) -> images.Loaded:
        seconds, on_device = self._resources.decode_seconds, self.extractor.on_device
        return images.load_isolated(content, self._rule, seconds, on_device=on_device)

    def _made(self, prepared: Future[images.Loaded]) -> int:
        """Returns how many bytes an image takes as the network takes it, or may take."""
        if not prepared.done():
            return self._most_made
        failed = prepared.cancelled() or prepared.exception() is not None
        return 0 if failed else prepared.result().values.nbytes


def _bytes_of(arrays: Iterable[NDArray[Any]]) -> int:
    return sum(array.nbytes for array in arrays)


def _size(entry: Entry, fetched: Future[Content]) -> int:
    """Returns how many bytes an image takes, as it was listed or else as it was read."""
    if entry.size or not fetched.done():
        return entry.size or UNKNOWN_BYTES
    if fetched.exception() is not None:
        return 0
    content = fetched.result()
    return content.pixels.nbytes if isinstance(content, images.Decoded) else len(content)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
