"""Has images fetched and decoded by others, who have cores to spare.

    >>> ahead = Ahead(pool, DecodeChoice(most=16), room=2**30)               # doctest: +SKIP
    >>> given = ahead.give(work)
    >>> outcomes, lost = given.outcomes()

A *run* is some consecutive members of a shard. Others may take a run, fetch and decode it by the
functions that a worker uses, and send back what the network takes. The worker stays the only one
who counts and commits. A run that is lost, late or done in part is no error: the worker does the
rest itself. So whatever becomes of those others, each image is taken once, in the shard's order.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from time import monotonic
from typing import Protocol

from pipeline import images
from pipeline.counting.decode_choice import (
    REVIEW_BATCHES,
    REVIEW_SECONDS,
    DecodeChoice,
    Measured,
)
from pipeline.counting.stage_clock import add_spent
from pipeline.dna import Failure
from pipeline.errors import SpecMismatch, redact
from pipeline.sources import Entry, is_read_alone
from pipeline.spec import Preprocess, Resources

RUN_BYTES = 96 * 2**20
"""How many bytes a run may take as the network takes it. It is that of 32 images of the most
pixels that a GPU resizes, which take a core 0.2 seconds: much more than giving a run away."""

RUN_IMAGES = 128
"""The most images of a run, so that a shard of small ones has many runs, too."""

RUN_FILE_BYTES = 64 * 2**20
"""How many bytes the files of a run have at most, unless it is a single one."""

DECODERS = ("numba", "numpy", "pillow", "simplejpeg", "torch", "torchvision", "vdna-pipeline")
"""The libraries that decide pixels, and this package."""

MOST_RUNS = 64
"""The most runs of a worker that are away at a time; for each of them, a thread waits."""


class LostRun(Exception):
    """Those who had a run ended without an answer, perhaps because of one of its images."""


@dataclass(frozen=True)
class MemberRun:
    """Consecutive members of a shard.

    Attributes:
        members: The members.
        room: How many bytes they may take as the network takes them, or 0 if they must be read by
            the worker.
    """

    members: tuple[Entry, ...]
    room: int = 0


@functools.cache
def decoding_versions() -> tuple[tuple[str, str], ...]:
    """Returns `DECODERS` with the versions that they have here."""
    return tuple((library, version(library)) for library in DECODERS)


@dataclass(frozen=True)
class DecodeWork:
    """What others need to know to fetch and decode a run. It holds no secrets.

    Attributes:
        run: The run.
        rule: How its images become the network's input.
        on_device: Whether a GPU makes the network's input.
        resources: How many images are fetched ahead, and the time limit of each.
        decoder: `module:function` of the decoder that the rule states, if it is a user's own.
        hashed: Whether images are hashed, too.
        versions: What decodes where the run is given away: each library with its version.
    """

    run: MemberRun
    rule: Preprocess
    on_device: bool
    resources: Resources
    decoder: str = ""
    hashed: bool = False
    versions: tuple[tuple[str, str], ...] = field(
        default_factory=lambda: decoding_versions()
    )  # it is below

    def require_versions(self) -> None:
        """Checks that what decodes here is what decodes where the run was given away.

        Otherwise pixels would depend on where an image happened to be decoded.

        Raises:
            SpecMismatch: If a library has another version.
        """
        here = dict(decoding_versions())
        differing = [
            f"{library} is {theirs} there and {here.get(library)} here"
            for library, theirs in self.versions
            if here.get(library) != theirs
        ]
        if differing:
            raise SpecMismatch(
                f"{socket.gethostname()} must not decode for another node: {', '.join(differing)}; "
                "install the same versions"
            )


@dataclass(frozen=True, eq=False)
class DecodedRun:
    """What became of a run.

    Attributes:
        outcomes: What became of its first members, in order. The others did not fit in its room.
        seconds: How long it took.
        spent: Seconds in each stage of the work (see `stage_clock`).
    """

    outcomes: tuple[images.Loaded | Failure, ...]
    seconds: float
    spent: Mapping[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """How many bytes the images take."""
        return sum(o.values.nbytes for o in self.outcomes if not isinstance(o, Failure))


class PendingRun(Protocol):
    """A run that others have."""

    def result(self) -> DecodedRun:
        """Waits until it is done.

        Raises:
            LostRun: If it will not be.
            Exception: If it could not be done, for any other reason.
        """

    def cancel(self) -> None:
        """Ends the work; what it made is dropped. `result` then raises."""


class DecodePool(Protocol):
    """Those who fetch and decode runs for others."""

    def ask(self, work: DecodeWork) -> PendingRun:
        """Gives a run away, and does not wait."""

    def free_cpus(self) -> int:
        """Returns how many CPUs nobody has."""


def runs_of(members: Sequence[Entry], rule: Preprocess, on_device: bool) -> Iterator[MemberRun]:
    """Cuts a shard into runs.

    A packed tar or a table is read in one pass from its start, so its members stay in one run that
    the worker reads. What a run takes when it is decoded is reckoned from the sizes of its files.

    Args:
        members: The members of the shard, in order.
        rule: How they become the network's input.
        on_device: Whether a GPU makes it.

    Yields:
        Runs, which hold each member once, in order.
    """
    for alone, group in groupby(members, is_read_alone):
        if not alone:
            yield MemberRun(tuple(group))
            continue
        taken: list[Entry] = []
        made = read = 0
        for entry in group:
            more = images.likely_bytes(entry.size, rule, on_device)
            full = made + more > RUN_BYTES or read + entry.size > RUN_FILE_BYTES
            if taken and (full or len(taken) == RUN_IMAGES):
                yield _run_of(taken, made, rule, on_device)
                taken, made, read = [], 0, 0
            taken.append(entry)
            made, read = made + more, read + entry.size
        yield _run_of(taken, made, rule, on_device)


def _run_of(members: list[Entry], likely: int, rule: Preprocess, on_device: bool) -> MemberRun:
    """Returns a run that has room for any first image at least."""
    return MemberRun(tuple(members), max(likely, images.most_bytes(rule, on_device)))


class Ahead:
    """What a worker has given away, within bounds, and what it learns from that.

    All shards and networks of a worker share it.
    """

    def __init__(self, pool: DecodePool, room: int, *, always: bool = False) -> None:
        """Gives nothing away yet.

        Args:
            pool: Those who take runs.
            room: How many bytes of decoded images may be there, or on their way, at a time.
            always: Whether as much as possible is given away; see `DecodeChoice`.
        """
        most = max(1, min(MOST_RUNS, room // RUN_BYTES))
        self._pool = pool
        self._room = room
        self._always = always
        self._waiters = ThreadPoolExecutor(most, "ahead")
        self._lock = threading.Lock()
        self._choice = DecodeChoice(most, always=always)
        self._away = 0
        self._held = 0
        self._taken = 0
        self._missed = ""
        self._batches = 0
        self._measured = Measured()

    def suits(self, rule: Preprocess, on_device: bool) -> bool:
        """Returns whether runs may be given away.

        Where a CPU computes, the network lacks the same cores as the decoder, and gains nothing.
        A decoder that runs on the worker's GPU stays there.

        Args:
            rule: How images become the network's input.
            on_device: Whether a GPU makes it.
        """
        return (self._always or on_device) and not images.is_nvjpeg(rule.decoder)

    def give(self, work: DecodeWork) -> Given | None:
        """Gives a run away, if it may be and if there is room for what it becomes.

        Args:
            work: The run.

        Returns:
            The run that is given away, or None.
        """
        room = work.run.room
        with self._lock:
            if not room or self._away >= self._choice.runs or self._held + room > self._room:
                return None
            self._away += 1
            self._held += room
        try:
            return Given(self, work, self._pool.ask(work), self._waiters)
        except Exception as error:  # nobody has it, so the worker does it
            self.over(room, 0)
            self.missed(_first_line(error), late=False)
            return None

    @property
    def here(self) -> bool:
        """Whether the worker decodes beside the others."""
        return self._choice.here

    def measured(self, images: int, seconds: float, waited: float) -> None:
        """Takes in what it took to fill a micro-batch, and chooses again from time to time.

        Args:
            images: How many images it has.
            seconds: How long it took since the one before.
            waited: For how much of it the next image was waited for.
        """
        with self._lock:
            self._measured += Measured(images, seconds, waited)
            self._batches += 1
            if self._batches < REVIEW_BATCHES or self._measured.seconds < REVIEW_SECONDS:
                return
            measured, self._measured, self._batches = self._measured, Measured(), 0
        try:
            free = self._pool.free_cpus()
        except Exception:  # a cluster that does not answer has none to give
            free = 0
        with self._lock:
            self._choice.review(measured, free)

    def news(self) -> tuple[int, str]:
        """Returns what became of runs since this was last called.

        Returns:
            How many images that others decoded were taken, and why a run was not done, or nothing.
        """
        with self._lock:
            news = self._taken, self._missed
            self._taken, self._missed = 0, ""
        return news

    def close(self) -> None:
        """Ends the threads that wait."""
        self._waiters.shutdown(wait=False, cancel_futures=True)

    def came(self, room: int, done: DecodedRun, away: float) -> None:
        """Takes in that a run is there: from now on it takes what it has."""
        with self._lock:
            self._held += done.nbytes - room
            self._measured += Measured(away=away, worked=done.seconds)
            self._choice.came()

    def missed(self, why: str, *, late: bool) -> None:
        """Takes in that a run was late, or could not be done."""
        with self._lock:
            self._missed = why
            if late:
                self._choice.late()
            else:
                self._choice.lost()

    def over(self, held: int, taken: int) -> None:
        """Takes in that a run is over, with the bytes that it held and the images taken of it."""
        with self._lock:
            self._away -= 1
            self._held -= held
            self._taken += taken


class Given:
    """A run that was given away.

    Attributes:
        members: Its members.
    """

    def __init__(
        self, ahead: Ahead, work: DecodeWork, pending: PendingRun, waiters: ThreadPoolExecutor
    ) -> None:
        self.members = work.run.members
        self._ahead = ahead
        self._room = work.run.room
        self._pending = pending
        self._began = monotonic()
        self._seconds = work.resources.decode_seconds
        self._lock = threading.Lock()
        self._held = work.run.room
        self._over = False
        self._coming: Future[DecodedRun] = waiters.submit(self._wait)

    def outcomes(self) -> tuple[Sequence[images.Loaded | Failure], bool]:
        """Waits for the run, for no longer than one image may take since it was given away.

        It is asked for once: what it returns is not kept.

        Returns:
            What became of its first members, and whether those who had it ended without an answer,
            so that the others had better be decoded in a process apart.
        """
        coming, self._coming = self._coming, Future()
        patience = max(0.0, self._began + self._seconds - monotonic())
        try:
            done = coming.result(patience)
        except Exception as error:
            # An error of the run itself is met again here, or else it was not the images' fault.
            late = not coming.done()
            why = f"not decoded in {self._seconds:g} s" if late else _first_line(error)
            self._ahead.missed(why, late=late)
            return (), isinstance(error, LostRun)
        add_spent(done.spent)
        return done.outcomes, False

    def end(self, taken: int = 0) -> None:
        """Ends the work, if it still goes on, and gives up its room.

        Args:
            taken: How many images were taken.
        """
        self._pending.cancel()
        with self._lock:
            if self._over:
                return
            self._over, held = True, self._held
        self._ahead.over(held, taken)

    def _wait(self) -> DecodedRun:
        done = self._pending.result()
        away = monotonic() - self._began
        with self._lock:
            if not self._over:
                self._held = done.nbytes
                self._ahead.came(self._room, done, away)
        return done


def _first_line(error: Exception) -> str:
    """Returns what a message says of an error that may be Ray's, with pages of advice."""
    return redact(f"{type(error).__name__}: {error}".partition("\n")[0])
