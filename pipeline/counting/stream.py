"""Sends the images of a shard through a network, in order: fetch, decode, extract.

    >>> for places, seen in Stream(extractor, rule).observed(shard, observe):   # doctest: +SKIP
    ...     print(places, seen)

Three pools of threads work ahead of each other, within bounds: fetching waits for storage, decoding
and the network wait for cores. Whatever the threads do, images are taken in the order of the shard,
so that every number comes out the same to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from time import monotonic
from typing import Any, TypeVar

from numpy.typing import NDArray

from pipeline import images
from pipeline.counting.decode_ahead import Ahead, MemberRun, runs_of
from pipeline.counting.device_order import make_current
from pipeline.counting.extractor import Extractor
from pipeline.counting.feed import Prepared
from pipeline.counting.preparing import Fetch, Outcomes, Preparer
from pipeline.counting.stage_clock import Spending
from pipeline.dna import Failure
from pipeline.sources import Shard
from pipeline.spec import Preprocess, Resources

R = TypeVar("R")

CELLS_TOGETHER = 2
"""How many cells the images of a micro-batch may be of. Each has tables, so they are few; and a
batch that goes on into the next cell leaves no place of it empty."""


@dataclass(frozen=True)
class Made:
    """What a shard came to.

    Attributes:
        data: The object to commit.
        images: How many images are in it.
        failures: How many images could not be read.
        reused: How many images are in it, or failed, that an earlier build has looked at.
        cells: The object with the sums of its cells; nothing if it is one cell.
        read_bytes: Bytes of the images that were read, where the source states their sizes.
        reasons: How many images could not be read, by the reason.
        counted_bytes: Bytes of the images that were counted now, as they were read.
    """

    data: bytes
    images: int
    failures: int
    reused: int = 0
    cells: bytes = b""
    read_bytes: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    counted_bytes: int = 0


class Stream:
    """Holds an extractor and its threads; several shards may be under way at a time."""

    def __init__(
        self,
        extractor: Extractor,
        rule: Preprocess,
        resources: Resources | None = None,
        ahead: Ahead | None = None,
        hashed: bool = False,
    ) -> None:
        """Starts the threads.

        Args:
            extractor: The network.
            rule: How images become its input.
            resources: How much may be used; None for the defaults.
            ahead: Those who may fetch and decode instead of this process; None for nobody.
            hashed: Whether images are hashed, too.
        """
        resources = (resources or Resources()).with_cpus(1)
        self.extractor = extractor
        self._threads = resources.threads or 1
        self._preparer = Preparer(
            rule, extractor.on_device, resources, self._threads + 1, extractor.micro_batch, hashed
        )
        suited = ahead is not None and ahead.suits(rule, extractor.on_device)
        self._ahead = ahead if suited else None
        # A GPU takes its work in one queue, which one thread fills without waiting for it.
        passes = 1 if extractor.on_device else self._threads
        self._batch = extractor.batches(rule)
        self._networks = ThreadPoolExecutor(passes, "network", make_current, (extractor.device,))

    def observed(
        self,
        shard: Shard,
        observe: Callable[[Sequence[int], Prepared], R],
        fetch: Fetch | None = None,
        note: Callable[[int, images.Loaded], None] | None = None,
        *,
        isolated: bool = False,
    ) -> Generator[tuple[list[int], R | Failure], None, None]:
        """Observes a shard's images in order, in micro-batches of at most `CELLS_TOGETHER` cells.

        Args:
            shard: The shard.
            observe: Called in one of the threads with each micro-batch, and its images' places in
                the shard.
            fetch: Reads a member; None reads it from its store.
            note: Called in this thread with each image that can be read, and its place, in order,
                before it is observed.
            isolated: Whether images are decoded in a process apart.

        Yields:
            The places of a micro-batch in the shard, with what `observe` returned. And the place of
                each image that cannot be read through its own fault, with its failure; it may come
                before micro-batches of lower places.

        Raises:
            TransientError: If an image could not be read through no fault of its own. None is
                skipped.
            SourceError: If an image changed since it was listed.
        """
        ahead = None if isolated or fetch is not None else self._ahead
        batch: list[tuple[int, NDArray[Any]]] = []
        running: deque[tuple[list[int], int, Future[R]]] = deque()

        def run_network(places: list[int], values: list[NDArray[Any]]) -> R:
            with Spending("network"):
                return observe(places, self._batch(values))

        def start() -> None:
            places, values = [at for at, _ in batch], [image for _, image in batch]
            future = self._networks.submit(run_network, places, values)
            running.append((places, _bytes_of(values), future))
            batch.clear()

        def waiting() -> int:
            queued = sum(held for _, held, future in running if not future.done())
            return queued + _bytes_of(image for _, image in batch)

        rule, on_device = self._preparer.rule, self._preparer.on_device
        members, ends, cells_ended = shard.members, set(accumulate(shard.cells)), 0
        runs = [MemberRun(members)] if ahead is None else runs_of(members, rule, on_device)
        prepared = self._preparer.prepared(runs, waiting, fetch, isolated=isolated, ahead=ahead)
        watch = _Watch(ahead)
        with closing(prepared):
            for at, outcome in enumerate(watch.timed(prepared)):
                if isinstance(outcome, Failure):
                    yield [at], outcome
                else:
                    if note is not None:
                        note(at, outcome)
                    batch.append((at, outcome.values))
                cells_ended += bool(batch) and at + 1 in ends
                if len(batch) == self.extractor.micro_batch or cells_ended == CELLS_TOGETHER:
                    watch.tell(len(batch))
                    start()
                    cells_ended = 0
                    while len(running) > self._threads + 1:
                        places, _, future = running.popleft()
                        yield places, future.result()
            if batch:
                start()
            for places, _, future in running:
                yield places, future.result()

    def close(self) -> None:
        """Ends the threads."""
        self._preparer.close()
        self._networks.shutdown(wait=False, cancel_futures=True)


class _Watch:
    """Measures how long a shard waits for its images, for those who choose where to decode."""

    def __init__(self, ahead: Ahead | None) -> None:
        self._ahead = ahead
        self._began = monotonic()
        self._waited = 0.0

    def timed(self, outcomes: Outcomes) -> Outcomes:
        while True:
            asked = monotonic()
            outcome = next(outcomes, None)
            self._waited += monotonic() - asked
            if outcome is None:
                return
            yield outcome

    def tell(self, images: int) -> None:
        """Tells what it took to fill a micro-batch."""
        if self._ahead is None:
            return
        now = monotonic()
        self._ahead.measured(images, now - self._began, self._waited)
        self._began, self._waited = now, 0.0


def _bytes_of(arrays: Iterable[NDArray[Any]]) -> int:
    return sum(array.nbytes for array in arrays)
