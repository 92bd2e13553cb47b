"""Typed events that a long job sends to whoever listens: a progress bar, a log, a metric.

    >>> def listen(event: Event) -> None:
    ...     if isinstance(event, Said):
    ...         print(event.message)
    >>> listen(Said("listing photos"))
    listing photos

A job that has no listener sends its events to `ignore`. What a name leads to, such as a window of
days that has to be added up, is given no listener; it tells the one that listens around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import monotonic
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Said:
    """A message for people.

    Attributes:
        message: One line of text.
    """

    message: str


@dataclass(frozen=True)
class Started:
    """A stage of work begins, in steps that are known beforehand.

    Attributes:
        total: Units of work in all steps that are left.
        steps: Number of steps that are left.
        present: Number of steps that an earlier run has done already.
        unit: What is worked on, in the plural.
        step: What a step is, in the plural.
    """

    total: int
    steps: int
    present: int = 0
    unit: str = "images"
    step: str = "shards"


@dataclass(frozen=True)
class ShardWork:
    """What a worker did for a shard that this job counted.

    Attributes:
        images: How many images were counted now.
        reasons: How many images could not be read, by the reason.
        reused: How many images were not read, as an earlier build has kept their sums.
        bytes: Bytes of the images that were read now, where the source states their sizes.
        spent: Seconds that the worker's threads spent in each stage of the work, since its shard
            before: `fetch`, `decode` and `network`.
    """

    images: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0
    bytes: int = 0
    spent: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepDone:
    """A step of the stage is done.

    Attributes:
        units: Units of work in this step.
        failures: How many of them could not be read.
        seconds: How long the step took where it ran, or 0 if it was not measured.
        name: Which step it was, or "" if it has no name.
        ahead: How many images were decoded ahead, by tasks, for the worker that did the step, since
            the step before.
        dataset: The dataset that the step belongs to, or "" if that is not known.
        shard: The number of the shard, if the step is one.
        work: What was done for the shard; None if another job stored it, or the step is no shard.
    """

    units: int
    failures: int = 0
    seconds: float = 0.0
    name: str = ""
    ahead: int = 0
    dataset: str = ""
    shard: int | None = None
    work: ShardWork | None = None


@dataclass(frozen=True)
class StepFailed:
    """A step could not be done this time.

    Attributes:
        name: Which step it was.
        error: The kind of the error and its message.
        transient: Whether the same command may succeed later.
        dataset: The dataset that the step belongs to, or "" if that is not known.
        shard: The number of the shard, if the step is one.
        seconds: How long a worker had it.
        fault: What kind of thing failed, such as `device` or `storage`; "" if that is not known.
    """

    name: str
    error: str
    transient: bool = True
    dataset: str = ""
    shard: int | None = None
    seconds: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class Retried:
    """Steps that failed are tried again.

    Attributes:
        steps: How many of them.
        attempt: Number of the attempt that begins, from 2 up.
    """

    steps: int
    attempt: int


@dataclass(frozen=True)
class Held:
    """The stage waits for steps that another job has claimed.

    Attributes:
        steps: How many of them; 0 once it waits no longer, as it has work again or they are done.
    """

    steps: int


@dataclass(frozen=True)
class TakenOver:
    """Steps of another job are done here, as it has died.

    Attributes:
        steps: How many of them.
    """

    steps: int


@dataclass(frozen=True)
class ClusterJoined:
    """This process has become a driver of a Ray cluster."""


@dataclass(frozen=True)
class PoolFilled:
    """All workers of a new pool run, and none was waited for.

    Attributes:
        workers: How many they are.
    """

    workers: int


@dataclass(frozen=True)
class PoolChanged:
    """The number of workers that run has changed, as nodes came or went.

    If none runs, the stage waits for a node, and has not failed.

    Attributes:
        workers: How many workers run.
        most: How many may run, where there is room.
        wanted: What a worker takes, such as `4 CPUs and 1 GPU`.
        limit: How many seconds the stage waits while none runs.
    """

    workers: int
    most: int
    wanted: str
    limit: float


@dataclass(frozen=True)
class Warned:
    """Something went wrong around the job, which goes on. It is said once.

    Attributes:
        message: One line of text: what happened, and what may help.
    """

    message: str


@dataclass(frozen=True)
class Finished:
    """The stage has ended.

    Attributes:
        ok: Whether it ran to its end; False if an exception ended it.
    """

    ok: bool = True


@dataclass(frozen=True)
class DatasetBegun:
    """A build begins with a dataset. It may say so again, if it has to begin anew.

    Attributes:
        dataset: Its name.
    """

    dataset: str


Phase = Literal["planning", "merging", "committing"]
"""What is done for a dataset as a whole. Its shards are counted between planning and merging."""


@dataclass(frozen=True)
class PhaseEnded:
    """A phase of a dataset's build has ended, by an error or without.

    Attributes:
        dataset: The dataset.
        phase: Which phase it was.
        seconds: How long it took.
    """

    dataset: str
    phase: Phase
    seconds: float


DatasetOutcome = Literal["committed", "unchanged", "failed"]
"""What became of a dataset: it has a new version, or the one that it had, or there was an error."""


@dataclass(frozen=True)
class DatasetEnded:
    """A build is done with a dataset.

    Attributes:
        dataset: Its name.
        outcome: What became of it.
        images: How many images its version has; 0 if it failed.
        failures: How many images of its version could not be read; 0 if it failed.
        error: The kind of the error if it failed.
        message: The message of the error.
    """

    dataset: str
    outcome: DatasetOutcome
    images: int = 0
    failures: int = 0
    error: str = ""
    message: str = ""


@dataclass(frozen=True)
class Idle:
    """The job waits for a request, or for a job elsewhere. That it says nothing is no trouble."""


Event = (
    Said
    | Started
    | StepDone
    | StepFailed
    | Retried
    | Held
    | TakenOver
    | ClusterJoined
    | PoolFilled
    | PoolChanged
    | Warned
    | Finished
    | DatasetBegun
    | PhaseEnded
    | DatasetEnded
    | Idle
)

Listener = Callable[[Event], None]
"""Takes each event as it happens, in whichever thread. It must return quickly and not raise."""


LogFormat = Literal["text", "json"]
"""How events and log records are written: for people, or for machines."""


def ignore(event: Event) -> None:
    """Listens to nothing."""


def fanned_out(*listeners: Listener) -> Listener:
    """Returns a listener that tells each of these, in their order."""

    def tell_all(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell_all


_topic: ContextVar[Mapping[str, object]] = ContextVar("topic", default=MappingProxyType({}))


@contextmanager
def about(**topic: object) -> Iterator[None]:
    """Says what the block is about, for structured logs: its `dataset`, its `shard`.

    Args:
        **topic: What it is about. What is empty is left out.

    Yields:
        Nothing.
    """
    before = _topic.get()
    _topic.set({**before, **{name: value for name, value in topic.items() if value != ""}})
    try:
        yield
    finally:
        _topic.set(before)


def topic_here() -> Mapping[str, object]:
    """Returns what the work of this thread is about."""
    return _topic.get()


_around: ContextVar[Listener] = ContextVar("around", default=ignore)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Lets work of the block that is given no listener tell this one.

    Args:
        listener: Who is told. Threads that the block starts do not tell it.

    Yields:
        Nothing.
    """
    before = _around.get()
    _around.set(listener)
    try:
        yield
    finally:
        _around.set(before)  # and no reset, as a generator may end in another context


def listener_around() -> Listener:
    """Returns who listens here to work that is given no listener: nobody inside a stage."""
    return _around.get()


@contextmanager
def stage(listener: Listener, started: Started) -> Iterator[None]:
    """Sends `started` when the block begins, and `Finished` when it ends, however it ends.

    Args:
        listener: Who is told.
        started: The event that opens the stage.

    Yields:
        Nothing; the block sends a `StepDone` for each step.
    """
    listener(started)
    ok = False
    try:
        with heard_by(ignore):  # a listener knows one stage at a time
            yield
        ok = True
    finally:
        listener(Finished(ok))


@contextmanager
def phase(listener: Listener, dataset: str, name: Phase) -> Iterator[None]:
    """Sends a `PhaseEnded` when the block ends, however it ends.

    Args:
        listener: Who is told.
        dataset: The dataset.
        name: Which phase the block is.

    Yields:
        Nothing.
    """
    began = monotonic()
    try:
        yield
    finally:
        listener(PhaseEnded(dataset, name, monotonic() - began))
