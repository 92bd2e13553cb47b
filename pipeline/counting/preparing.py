"""Fetches and decodes the members of a shard, in order, by threads that work ahead within bounds.

>>> preparer = Preparer(rule, on_device=False, resources=Resources(), threads=4)  # doctest: +SKIP
>>> outcomes = list(preparer.prepared([MemberRun(shard.members)], waiting=lambda: 0))

A worker does so, and so do those to whom it gives runs (`decode_ahead`): so that an image comes out
the same wherever it is decoded.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from math import inf
from time import monotonic

from pipeline import images
from pipeline.counting.decode_ahead import Ahead, DecodedRun, DecodeWork, Given, MemberRun
from pipeline.counting.decoder_threads import Decoders
from pipeline.counting.stage_clock import Spending, StageMeter
from pipeline.dna import Failure
from pipeline.errors import BadImage
from pipeline.sources import Entry, Members
from pipeline.spec import Preprocess, Resources

FETCH_THREADS = 16

AHEAD_BYTES = 256 * 2**20
"""The most bytes of a shard that are held ahead of the network, as files and as what is made of
them, beside the room of two micro-batches. A single image may be larger. What is given away is
bounded by itself (`decode_ahead`)."""

UNKNOWN_BYTES = AHEAD_BYTES // 5
"""What an image of unknown size is taken for until it is read: few of them are read at a time."""

Content = bytes | images.Decoded

Fetch = Callable[[Entry], Content]

Outcomes = Generator[images.Loaded | Failure, None, None]


@dataclass
class _Begun:
    """A member that is under way in this process.

    Attributes:
        entry: The member.
        fetched: Its bytes.
        made: What is made of them.
        last_of: What read it, if it is the last one read by that.
    """

    entry: Entry
    fetched: Future[Content]
    made: Future[images.Loaded]
    last_of: Members | None = None


class Preparer:
    """Holds threads that fetch and decode; several shards may be under way at a time."""

    def __init__(
        self,
        rule: Preprocess,
        on_device: bool,
        resources: Resources,
        threads: int,
        micro_batch: int = 0,
        hashed: bool = False,
    ) -> None:
        """Starts the threads.

        Args:
            rule: How images become the network's input.
            on_device: Whether a GPU makes it.
            resources: How many images are fetched ahead, and the time limit of each.
            threads: How many threads decode.
            micro_batch: How many images the network takes at a time.
            hashed: Whether images are hashed, too.
        """
        self.most_made = images.most_bytes(rule, on_device)
        self.most_held = AHEAD_BYTES + 2 * micro_batch * self.most_made
        self.rule = rule
        self.on_device = on_device
        self.hashed = hashed
        self.resources = resources
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, "fetch")
        self._decoders = Decoders(threads)
        weakref.finalize(self, self._decoders.close)  # as the other pools' threads end, unclosed

    def prepared(
        self,
        runs: Iterable[MemberRun],
        waiting: Callable[[], int],
        fetch: Fetch | None = None,
        *,
        isolated: bool = False,
        ahead: Ahead | None = None,
    ) -> Outcomes:
        """Returns what becomes of each member, in order.

        At most `fetch_ahead` members are under way here, or else one member. They and what is
        `waiting` for the network take at most `AHEAD_BYTES` and two micro-batches.

        Args:
            runs: The members.
            waiting: Returns how many bytes wait for the network.
            fetch: Reads a member; None reads it from its store.
            isolated: Whether images are decoded in a process apart.
            ahead: Those who may be given runs.

        Returns:
            A generator of images as the network takes them, and of failures. It raises
            TransientError if an image could not be read through no fault of its own, and
            SourceError if an image changed since it was listed. When it is closed, all work on the
            members ends.
        """
        return _Line(self, runs, waiting, fetch, isolated, ahead).outcomes()

    def begin(self, entry: Entry, fetch: Fetch, isolated: bool) -> _Begun:
        """Begins to fetch and decode a member."""
        rule, on_device, hashed = self.rule, self.on_device, self.hashed

        def read(entry: Entry) -> Content:
            with Spending("fetch"):
                return fetch(entry)

        def make(content: Content) -> images.Loaded:
            if not isinstance(content, images.Decoded) and isolated:
                return self._apart(content)
            with Spending("decode"):
                if isinstance(content, images.Decoded):
                    return images.loaded(content, rule, on_device)
                return images.load(content, rule, on_device, hashed)

        # In this thread's context, so that what a fetch logs names the shard.
        fetched = self._fetchers.submit(copy_context().run, read, entry)
        limit = inf if isolated else self.resources.decode_seconds
        return _Begun(entry, fetched, self._decoders.after(fetched, make, limit))

    def finish(self, begun: _Begun) -> images.Loaded | Failure:
        """Waits for what becomes of a member."""
        entry = begun.entry
        try:
            content = begun.fetched.result()
            try:
                return self._decoders.result(begun.made)
            except (TimeoutError, MemoryError):
                if isinstance(content, images.Decoded):
                    raise
                return self._apart(content)
        except BadImage as bad:
            crashed = bad.reason in images.NONDETERMINISTIC
            return Failure(entry.uri, entry.member, bad.reason, _printable(bad.detail), crashed)

    def held(self, begun: _Begun) -> int:
        """Returns how many bytes a member takes, as a file and as what is made of it."""
        return _size(begun) + self._made(begun.made)

    def close(self) -> None:
        """Ends the threads."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def _apart(self, content: bytes) -> images.Loaded:
        with Spending("decode"):
            return images.load_isolated(
                content,
                self.rule,
                self.resources.decode_seconds,
                on_device=self.on_device,
                hashed=self.hashed,
            )

    def _made(self, made: Future[images.Loaded]) -> int:
        """Returns how many bytes an image takes as the network takes it, or may take."""
        if not made.done():
            return self.most_made
        failed = made.cancelled() or made.exception() is not None
        return 0 if failed else made.result().values.nbytes


class _Line:
    """The members of a shard that are under way, here and elsewhere, in the shard's order."""

    def __init__(
        self,
        preparer: Preparer,
        runs: Iterable[MemberRun],
        waiting: Callable[[], int],
        fetch: Fetch | None,
        isolated: bool,
        ahead: Ahead | None,
    ) -> None:
        self._preparer = preparer
        self._runs = deque(runs)
        self._waiting = waiting
        self._fetch = fetch
        self._isolated = isolated
        self._ahead = ahead
        self._line: deque[_Begun | Given] = deque()
        self._members: deque[Entry] = deque()
        """What is left of the run that is under way here."""
        self._reader = Members((), 0, 0)

    def outcomes(self) -> Outcomes:
        try:
            while self._fill():
                first = self._line.popleft()
                if isinstance(first, Given):
                    yield from self._taken(first)
                    continue
                try:
                    yield self._preparer.finish(first)
                finally:
                    if first.last_of is not None:
                        first.last_of.close()
        finally:
            self._give_up()

    def _fill(self) -> bool:
        """Begins, or gives away, what there is room for; returns whether anything is under way."""
        while self._members or self._runs:
            if not self._members:
                if self._ahead is not None:
                    given = self._ahead.give(self._work(self._runs[0]))
                    if given is not None:
                        self._line.append(given)
                        self._runs.popleft()
                        continue
                    if self._line and not self._ahead.here:
                        break
                self._open(self._runs.popleft())
            elif not self._has_room(self._members[0]):
                break
            else:
                self._begin()
        return bool(self._line)

    def _open(self, run: MemberRun) -> None:
        self._members.extend(run.members)
        rule, ahead = self._preparer.rule, self._preparer.resources.fetch_ahead
        self._reader = Members(run.members, rule.max_bytes, ahead)

    def _begin(self) -> None:
        fetch = self._fetch or self._reader.fetch
        begun = self._preparer.begin(self._members.popleft(), fetch, self._isolated)
        if not self._members:
            begun.last_of = self._reader
        self._line.append(begun)

    def _has_room(self, entry: Entry) -> bool:
        here = sum(isinstance(each, _Begun) for each in self._line)
        new = (entry.size or UNKNOWN_BYTES) + self._preparer.most_made
        fits = self._held() + new <= self._preparer.most_held
        return not here or (here < self._preparer.resources.fetch_ahead and fits)

    def _held(self) -> int:
        begun = (each for each in self._line if isinstance(each, _Begun))
        return self._waiting() + sum(map(self._preparer.held, begun))

    def _taken(self, given: Given) -> Iterator[images.Loaded | Failure]:
        """Yields what became of a run that was given away, and does here what is left of it."""
        done = 0
        try:
            outcomes, lost = given.outcomes()
            yield from outcomes
            done = len(outcomes)
            del outcomes
        finally:
            given.end(done)
        if done < len(given.members):
            left = MemberRun(given.members[done:])
            yield from self._preparer.prepared([left], self._held, isolated=lost)

    def _work(self, run: MemberRun) -> DecodeWork:
        preparer = self._preparer
        stated = preparer.rule.decoder
        decoder = images.decoder_function(stated) if stated else ""
        return DecodeWork(
            run, preparer.rule, preparer.on_device, preparer.resources, decoder, preparer.hashed
        )

    def _give_up(self) -> None:
        for each in self._line:
            if isinstance(each, Given):
                each.end()
                continue
            each.fetched.cancel()
            each.made.cancel()
            if each.last_of is not None:
                each.last_of.close()
        self._reader.close()


def decode_run(work: DecodeWork) -> DecodedRun:
    """Does what a worker gives away.

    Args:
        work: The run.

    Returns:
        What became of its members, or of as many of the first as have room.

    Raises:
        SpecMismatch: If this process decodes by other libraries than the worker.
        TransientError: If an image could not be read through no fault of its own.
        SourceError: If an image changed since it was listed.
    """
    started, stages = monotonic(), StageMeter()
    work.require_versions()
    if work.rule.decoder:
        images.use_decoder(work.rule.decoder, work.decoder)
    outcomes: list[images.Loaded | Failure] = []
    room = work.run.room
    preparer = Preparer(work.rule, work.on_device, work.resources, 1, hashed=work.hashed)
    with (
        closing(preparer),
        closing(preparer.prepared([work.run], waiting=lambda: 0)) as prepared,
    ):
        for outcome in prepared:
            room -= 0 if isinstance(outcome, Failure) else outcome.values.nbytes
            if room < 0:
                break
            outcomes.append(outcome)
    return DecodedRun(tuple(outcomes), monotonic() - started, stages.read())


def _size(begun: _Begun) -> int:
    """Returns how many bytes an image takes, as it was listed or else as it was read."""
    entry, fetched = begun.entry, begun.fetched
    if entry.size or not fetched.done():
        return entry.size or UNKNOWN_BYTES
    if fetched.cancelled() or fetched.exception() is not None:
        return 0
    content = fetched.result()
    return content.pixels.nbytes if isinstance(content, images.Decoded) else len(content)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
