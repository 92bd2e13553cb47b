"""One shard -> one committed partial: fetch, decode, extract, count, put.

    >>> Counter(extractor, spec, ranges).count(shard, key).dna.images        # doctest: +SKIP

Three pools of threads, each ahead of the next and bounded: fetching waits for storage, decoding
and the network for cores. Whatever the threads do, images are taken in the order of the shard, so
that every number comes out the same to the last bit.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pipeline import images, storage
from pipeline.archive import Members
from pipeline.dna import DNA, Floats, Ints, Ranges
from pipeline.errors import (
    BadImage,
    ConservationError,
    CorruptFile,
    SourceError,
    SpecMismatch,
    TransientError,
    VdnaError,
)
from pipeline.exemplars import Keep
from pipeline.extractor import Extractor
from pipeline.gaussian import Moments
from pipeline.histogram import NONFINITE, OVERFLOW, UNDERFLOW, LayerCounts, count_torch
from pipeline.manifest import Entry, Shard, read_shard
from pipeline.networks import Network
from pipeline.partial import Failure, Partial
from pipeline.ranges import decode as decode_ranges
from pipeline.reactions import Reactions
from pipeline.spec import LAYER_GAUSSIAN, PRODUCTS, Numerics, Resources, Spec

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

FETCH_THREADS = 16
AHEAD_BYTES = 256 * 2**20
"""Of a shard, in memory ahead of the network; a single image may be as large by itself."""
OVERLAP = 2
"""Shards a worker has under way: the second fills the network while the first one ends."""
ISOLATE_FROM_ATTEMPT = 3
"""A shard whose worker died twice is read with its images decoded in a process apart."""

Content = bytes | NDArray[np.uint8]
Fetch = Callable[[Entry], Content]
Prepared = NDArray[np.float32]


class Decoders:
    """Threads that decode. One that takes too long is left to itself: it cannot be stopped.

    The time counts from when it began, not from when it was asked for or waited for. Another
    thread takes its place; being a daemon, it does not keep the process from ending.
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
        """`function` of what `first` brings, once it is there."""
        second: Future[R] = Future()
        first.add_done_callback(
            lambda _: self._tasks.put(lambda: self._run(second, first, function, seconds))
        )
        return second

    def result(self, future: Future[R]) -> R:
        """What it brings. Raises `TimeoutError` where it was given up."""
        while not future.done() and not wait([future], self._patience()).done:
            self._give_up()
        return future.result()

    def close(self) -> None:
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
        """Whether the thread still has its place."""
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
        """Seconds until the next decoder under way is to be given up, or to look again."""
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


class Counter:
    """An extractor, its ranges and its threads; several shards may be counted at a time."""

    def __init__(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        resources: Resources | None = None,
        products: Sequence[str] = PRODUCTS,
    ):
        resources = (resources or Resources()).with_cpus(1)
        self._extractor = extractor
        self._spec = spec
        self._ranges = ranges
        self._products = products
        self._resources = resources
        self._threads = resources.threads or 1
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, "fetch")
        self._decoders = Decoders(self._threads + 1)
        weakref.finalize(self, self._decoders.close)  # as the other pools' threads end, unclosed
        self._networks = ThreadPoolExecutor(self._threads, "network")

    def count(
        self, shard: Shard, key: str, fetch: Fetch | None = None, *, isolated: bool = False
    ) -> Partial:
        """The shard's partial, checked. `isolated`: images decoded in a process apart.

        Raises `TransientError` or `SourceError` where an image could not be read through no fault
        of its own; nothing is skipped for that.
        """
        with closing(self._members(shard)) as members:
            return self._count(shard, key, fetch or members.fetch, isolated)

    def _members(self, shard: Shard) -> Members:
        rule = self._spec.preprocess
        return Members(shard.members, rule.max_bytes, self._resources.fetch_ahead)

    def _count(self, shard: Shard, key: str, fetch: Fetch, isolated: bool) -> Partial:
        tally = _Tally(self._spec, self._ranges, layerwise=LAYER_GAUSSIAN in self._products)
        names = [(entry.uri, entry.member) for entry in shard.members]
        keep = Keep.of(self._products)
        reactions = Reactions(keep, self._spec, _order(names)) if keep else None
        failures: list[Failure] = []
        batch: list[tuple[int, Prepared]] = []
        running: deque[tuple[list[int], Future[Floats]]] = deque()

        def start() -> None:
            pixels = np.stack([image for _, image in batch])
            future = self._networks.submit(self._observe, pixels, tally)
            running.append(([at for at, _ in batch], future))
            batch.clear()

        def flush(left: int) -> None:
            while len(running) > left:
                images, future = running.popleft()
                tally.moments.add(means := future.result())
                if reactions:
                    reactions.add(means, np.array(images))

        for at, outcome in enumerate(self._prepared(shard, fetch, isolated)):
            if isinstance(outcome, Failure):
                failures.append(outcome)
                continue
            batch.append((at, outcome))
            if len(batch) == self._extractor.micro_batch:
                start()
                flush(left=self._threads + 1)
        if batch:
            start()
        flush(left=0)
        dna = tally.dna(self._extractor.numerics, len(failures))
        exemplars = reactions.named(keep, self._spec, names) if keep and reactions else None
        partial = Partial(dna, (key,), tuple(sorted(failures)), exemplars)
        partial.dna.check(f"shard {shard.index}")
        if partial.candidates != len(shard.members):
            raise ConservationError(
                f"shard {shard.index}: {partial.dna.images} counted and {len(failures)} failed of "
                f"{len(shard.members)} candidates"
            )
        return partial

    def close(self) -> None:
        for pool in (self._fetchers, self._networks):
            pool.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def _prepared(self, shard: Shard, fetch: Fetch, isolated: bool) -> Iterator[Prepared | Failure]:
        """Members in order, as the network takes them.

        At most `fetch_ahead` are under way, and `AHEAD_BYTES`, or else one.
        """
        ahead: deque[tuple[Entry, Future[Content], Future[Prepared]]] = deque()
        members = deque(shard.members)
        size = 0
        try:
            while members or ahead:
                while members and (not ahead or self._has_room(len(ahead), size + members[0].size)):
                    entry = members.popleft()
                    size += entry.size
                    ahead.append((entry, *self._start(entry, fetch, isolated)))
                first = ahead.popleft()
                yield self._finish(*first)
                size -= first[0].size
        finally:
            for _, fetched, prepared in ahead:
                fetched.cancel()
                prepared.cancel()

    def _has_room(self, images: int, size: int) -> bool:
        return images < self._resources.fetch_ahead and size <= AHEAD_BYTES

    def _start(
        self, entry: Entry, fetch: Fetch, isolated: bool
    ) -> tuple[Future[Content], Future[Prepared]]:
        rule = self._spec.preprocess

        def guarded() -> Content:
            if entry.size > rule.max_bytes:
                raise BadImage(
                    "too_many_bytes", f"{entry.size} bytes; the limit is {rule.max_bytes}"
                )
            return fetch(entry)

        def prepare(content: Content) -> Prepared:
            if isinstance(content, np.ndarray):
                return images.prepare(content, rule)
            if isolated:
                return images.load_isolated(content, rule, self._resources.decode_seconds)
            return images.load(content, rule)

        fetched = self._fetchers.submit(guarded)
        limit = inf if isolated else self._resources.decode_seconds
        return fetched, self._decoders.after(fetched, prepare, limit)

    def _finish(
        self, entry: Entry, fetched: Future[Content], prepared: Future[Prepared]
    ) -> Prepared | Failure:
        try:
            content = fetched.result()
            try:
                return self._decoders.result(prepared)
            except (TimeoutError, MemoryError):
                if isinstance(content, np.ndarray):
                    raise
                limit = self._resources.decode_seconds
                return images.load_isolated(content, self._spec.preprocess, limit)
        except BadImage as bad:
            crashed = bad.reason in images.NONDETERMINISTIC
            return Failure(entry.uri, entry.member, bad.reason, _printable(bad.detail), crashed)

    def _observe(self, pixels: NDArray[np.float32], tally: _Tally) -> Floats:
        """(B, neurons) spatial means of a micro-batch, its activations counted on the way."""
        means = np.empty((len(pixels), self._spec.neurons))
        counts = tally.of_this_thread()

        def visit(index: int, x: torch.Tensor) -> None:
            means[:, tally.slices[index]] = counts[index].add(x)

        self._extractor.observe(pixels, visit)
        return means


def _order(names: Sequence[tuple[str, str]]) -> Ints:
    """Of each its place among all of them sorted."""
    order = np.empty(len(names), np.int64)
    order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return order


class _Tally:
    """What one shard has counted: integers by thread, means in the order of the images."""

    def __init__(self, spec: Spec, ranges: Ranges, *, layerwise: bool) -> None:
        self._spec = spec
        self._ranges = ranges
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[list[_LayerTally]] = []
        self.moments = Moments([tap.neurons for tap in spec.taps], layerwise=layerwise)
        ends = np.cumsum([tap.neurons for tap in spec.taps]).tolist()
        self.slices = [
            slice(end - tap.neurons, end) for tap, end in zip(spec.taps, ends, strict=True)
        ]

    def of_this_thread(self) -> list[_LayerTally]:
        mine: list[_LayerTally] | None = getattr(self._local, "counts", None)
        if mine is None:
            mine = self._local.counts = self._new()
            with self._lock:
                self._all.append(mine)
        return mine

    def _new(self) -> list[_LayerTally]:
        return [
            _LayerTally(self._ranges.low[s], self._ranges.high[s], self._spec.bins)
            for s in self.slices
        ]

    def dna(self, numerics: Numerics, failed: int) -> DNA:
        first, *others = self._all or [self._new()]
        for mine in others:
            for layer, other in zip(first, mine, strict=True):
                layer.counts.merge(other.counts)
        layers = [layer.counts for layer in first]
        table = np.concatenate([layer.table for layer in layers])
        bins = self._spec.bins
        outside = {"underflow": UNDERFLOW, "overflow": OVERFLOW, "nonfinite": NONFINITE}
        ints: dict[str, Any] = {name: table[:, bins + at].copy() for name, at in outside.items()}
        return replace(
            DNA.empty(self._spec, self._ranges),
            images=self.moments.images,
            failed=failed,
            counts=np.ascontiguousarray(table[:, :bins]),
            **ints,
            # Adding zero makes -0.0 into 0.0: which a minimum keeps is a matter of order.
            min=np.concatenate([layer.minimum for layer in layers]) + np.float32(0),
            max=np.concatenate([layer.maximum for layer in layers]) + np.float32(0),
            mean=self.moments.mean,
            m2=self.moments.m2,
            scatter=self.moments.scatter,
            numerics=((numerics, self.moments.images),) if self.moments.images else (),
        )


class _LayerTally:
    """One layer's counts of one thread, by the kernel of the device the activations are on."""

    def __init__(self, low: Floats, high: Floats, bins: int) -> None:
        self.counts = LayerCounts(low, high, bins)

    def add(self, x: torch.Tensor) -> Floats:
        if x.device.type == "cpu":
            return self.counts.add(x.numpy())
        table, low, high, means = count_torch(
            x, self.counts.low, self.counts.high, self.counts.bins
        )
        self.counts.add_counted(table.cpu().numpy(), low.cpu().numpy(), high.cpu().numpy())
        return means.cpu().numpy()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


# One shard, as a worker is given it.


@dataclass(frozen=True)
class Recipe:
    """What a worker loads before it can count. No secrets.

    Jobs of equal recipes share it, wherever the ranges lie.
    """

    spec: Spec
    network: Network
    ranges_uri: str
    resources: Resources
    products: tuple[str, ...] = PRODUCTS

    @property
    def device(self) -> str:
        return device_kind(self.resources)


@dataclass(frozen=True)
class ShardJob:
    """Where a dataset's shards are listed, and where their partials go."""

    recipe: Recipe
    manifest_uri: str
    work_uri: str


def device_kind(resources: Resources) -> str:
    return "cuda" if resources.gpus_per_worker > 0 else "cpu"


@dataclass(frozen=True)
class Receipt:
    """What became of a shard. `error`: why it could not be counted this time, else empty.

    `transient`: whether the same command may succeed later. `changed`: the source did, since it was
    listed.
    """

    manifest_uri: str
    index: int
    images: int = 0
    failures: int = 0
    seconds: float = 0.0
    error: str = ""
    transient: bool = False
    changed: bool = False


def partial_uri(work_uri: str, key: str) -> str:
    return storage.join(work_uri, "partials", f"{key}.parquet")


class Worker:
    """Counts shards of any job, each extractor loaded once; several shards at a time if asked."""

    def __init__(self) -> None:
        self._counters: dict[Recipe, Counter] = {}
        self._lock = threading.Lock()

    def run(self, job: ShardJob, index: int) -> Receipt:
        """Count the shard and commit its partial, unless it is committed already.

        What only concerns this attempt (storage that does not answer, a source that changed) is
        returned in the receipt, so that other shards go on; a defect of ours raises.
        """
        started = monotonic()
        try:
            with storage.open_random(job.manifest_uri) as file:
                shard = read_shard(file, index, job.manifest_uri)
            key = shard.key(job.recipe.spec.digest, job.recipe.products)
            uri = partial_uri(job.work_uri, key)
            if storage.exists(uri):
                return Receipt(job.manifest_uri, index)
            attempt = _begin_attempt(job.work_uri, key)
            try:
                isolated = attempt >= ISOLATE_FROM_ATTEMPT
                partial = self._counter(job.recipe).count(shard, key, isolated=isolated)
                storage.create(uri, partial.encode())
            finally:
                storage.delete(_note_uri(job.work_uri, key, attempt))
            for dead in range(1, attempt):
                storage.delete(_note_uri(job.work_uri, key, dead))
        except ConservationError:
            raise
        except VdnaError as error:
            message = f"{type(error).__name__}: {error}"
            return Receipt(
                job.manifest_uri,
                index,
                seconds=monotonic() - started,
                error=message,
                transient=isinstance(error, TransientError | SourceError),
                changed=isinstance(error, SourceError),
            )
        return Receipt(
            job.manifest_uri,
            index,
            partial.dna.images,
            len(partial.failures),
            monotonic() - started,
        )

    def _counter(self, recipe: Recipe) -> Counter:
        one = replace(recipe, ranges_uri="")  # wherever they lie, they are those of the spec
        with self._lock:
            if one not in self._counters:
                extractor = Extractor(recipe.network, recipe.spec.precision, recipe.device)
                stated = recipe.spec.bf16_numerics
                if stated not in (None, extractor.numerics):
                    raise SpecMismatch(
                        f"in bf16 the numerics are part of the spec: it states {stated}, this "
                        f"worker has {extractor.numerics}"
                    )
                ranges, _ = decode_ranges(storage.read(recipe.ranges_uri), recipe.ranges_uri)
                if ranges.digest != recipe.spec.ranges_digest:
                    raise CorruptFile(f"{recipe.ranges_uri} holds ranges {ranges.digest}")
                self._counters[one] = Counter(
                    extractor, recipe.spec, ranges, recipe.resources, recipe.products
                )
            return self._counters[one]

    def close(self) -> None:
        for counter in self._counters.values():
            counter.close()


def _begin_attempt(work_uri: str, key: str) -> int:
    """1 plus the workers that took the shard and neither finished nor gave it up; it is noted.

    A worker that dies leaves its note behind, and no other trace; without it, one that a bad image
    kills would be restarted for ever. The notes go when the shard is committed.
    """
    own = {"host": socket.gethostname(), "pid": os.getpid(), "nonce": secrets.token_hex(8)}
    text = json.dumps(own).encode()
    attempt = 1
    while not storage.create(_note_uri(work_uri, key, attempt), text):
        attempt += 1
    return attempt


def _note_uri(work_uri: str, key: str, attempt: int) -> str:
    return storage.join(work_uri, "attempts", f"{key}-{attempt}.json")
