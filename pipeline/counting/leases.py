"""Leases: a worker that begins a shard notes it, and other jobs leave that shard alone meanwhile.

    >>> lease = claim("s3://bucket/dnas/_work/a/0f", key, claimant)              # doctest: +SKIP

A lease is an object `attempts/<shard key>-<number>.json`, created exclusively. It saves work and
nothing else: counts are exact because a partial is committed once, whoever computes it.

The holder renews its lease while it gets on with its work. One that was not renewed for
`EXPIRY_SECONDS` is over, by the store's clock alone: its time is compared with that of an object
that was just written. So is one of a process of this machine that is gone. Who takes such a shard
creates the lease of the next number.
Each lease below it is of a worker that died (see `deaths.py`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import chain

from pipeline import storage
from pipeline.counting.deaths import Note
from pipeline.counting.processes import beginning_of, has_ended, this_machine
from pipeline.counting.stage_clock import spent_so_far
from pipeline.errors import SourceError, VdnaError
from pipeline.storage import Stored

RENEW_SECONDS = 30.0
"""How often a holder renews its lease. Shards that take less cost no request for it."""

EXPIRY_SECONDS = 120.0
"""How long a lease holds without being renewed."""

VANISHED = 3
"""How often a lease may be gone when it is looked at, although it kept another from being made."""

FOLDER = "attempts"

SPENT = "spent"
"""The field of a lease that says how many seconds of work its holder has done since the claim."""

logger = logging.getLogger(__name__)

_held: set[str] = set()
"""The nonces of the leases that this process holds."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        job: The id of the job.
        host: The name of the machine.
        machine: What tells its processes from others with the same numbers: since when it runs, and
            the namespace of its processes.
        pid: The number of the process.
        began: When the process began, in the machine's own terms.
        nonce: A text that no other lease has.
    """

    job: str
    host: str = ""
    machine: str = ""
    pid: int = 0
    began: str = ""
    nonce: str = ""

    @classmethod
    def here(cls, job: str) -> Holder:
        """Describes this process as the holder of a new lease."""
        pid = os.getpid()
        return cls(job, *this_machine(), pid, beginning_of(pid), secrets.token_hex(8))

    @classmethod
    def of(cls, note: Note) -> Holder:
        """Reads who holds a lease from its note. It is nobody if the note is of another kind."""
        try:
            texts = {name: str(note[name]) for name in ("job", "host", "machine", "began", "nonce")}
            return cls(**texts, pid=int(str(note["pid"])))
        except (ValueError, KeyError):
            return cls("")

    @property
    def is_gone(self) -> bool:
        """Whether it surely holds nothing any more. False where this machine cannot tell."""
        if not self.pid or not self.machine or (self.host, self.machine) != this_machine():
            return False
        if (self.pid, self.began) == (own := os.getpid(), beginning_of(own)):
            return self.nonce not in _held
        return has_ended(self.pid, self.began)

    def is_over(self, job: str, age: float | None) -> bool:
        """Tells whether its lease keeps a job from the shard no more.

        Args:
            job: The id of the job that asks. No job waits for itself: Ray begins a shard again if a
                worker died.
            age: For how many seconds the lease was not renewed. None if that is not known.

        Returns:
            Whether the job may take the shard.
        """
        return self.job == job or self.is_gone or (age is not None and age >= EXPIRY_SECONDS)


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds.

    Attributes:
        folder: Where the leases are.
        key: The key of the shard.
        number: Its number, from 1 up.
        note: What it says of this process.
        before: The notes of the leases below it, which are of workers that died; empty where one
            cannot be read.
    """

    folder: str
    key: str
    number: int
    note: dict[str, object]
    before: tuple[Note, ...] = ()
    _ended: threading.Event = field(default_factory=threading.Event, compare=False)

    @contextmanager
    def renewed(self, seconds: float) -> Iterator[None]:
        """Renews the lease while the block runs, and removes it when the block ends.

        Args:
            seconds: How long it is renewed while this process gets on with no shard. A worker that
                hangs keeps no shard for ever.
        """
        nonce = str(self.note["nonce"])
        thread = threading.Thread(target=self._renew, args=(seconds,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            _held.discard(nonce)
            self._ended.set()
            thread.join()  # else it might write the lease once more
            self._remove(self.number)

    def _remove(self, number: int) -> None:
        """Removes a lease. What is left of it does not matter: it is over soon."""
        uri = lease_uri(self.folder, self.key, number)
        try:
            storage.delete(uri)
        except VdnaError as error:
            logger.warning("the lease %s could not be removed: %s", uri, error)

    def _renew(self, seconds: float) -> None:
        began = spent = spent_so_far()
        idle, renewals = 0.0, 0
        while not self._ended.wait(RENEW_SECONDS):
            before, spent = spent, spent_so_far()
            idle = 0.0 if spent > before else idle + RENEW_SECONDS
            if idle <= seconds:
                renewals += 1
                self.renew(renewals, spent - began)

    def renew(self, renewals: int, spent: float = 0.0) -> None:
        """Writes the lease once more, so that the store notes a new time.

        Its content changes with each renewal, so that those see it, too, who have no clock.

        Args:
            renewals: The number of this renewal.
            spent: How many seconds of work the threads of this process have done since the claim.
        """
        uri = lease_uri(self.folder, self.key, self.number)
        try:
            storage.replace(uri, _encode(self.note | {"renewals": renewals, SPENT: spent}))
        except VdnaError as error:
            logger.warning("the lease %s could not be renewed: %s", uri, error)

    def forget_dead(self) -> None:
        """Removes the leases of the workers that died on the shard, once it is committed."""
        for number in range(1, self.number):
            self._remove(number)


def claim(
    work_uri: str, key: str, claimant: str, label: Mapping[str, str] | None = None
) -> Lease | Holder:
    """Claims a shard for this process.

    Args:
        work_uri: The folder that the shard's partial is written to.
        key: The key of the shard.
        claimant: The id of the job that asks; empty to take the shard whoever else counts it.
        label: What else the note is to say (see `pipeline.counting.deaths.Home`).

    Returns:
        The lease; or who holds the shard, if another job does.
    """
    mine = Holder.here(claimant)
    _held.add(mine.nonce)  # from now on, as other threads may see the lease before we do
    try:
        found = _claim(work_uri, key, mine, {**(label or {}), **asdict(mine)})
    except BaseException:
        _held.discard(mine.nonce)
        raise
    if isinstance(found, Holder):
        _held.discard(mine.nonce)
    return found


def _claim(work_uri: str, key: str, mine: Holder, note: dict[str, object]) -> Lease | Holder:
    number, vanished = 1, 0
    before: list[Note] = []
    while not storage.create(uri := lease_uri(work_uri, key, number), _encode(note)):
        other: Note = {}
        try:
            other = read_note(uri)
            holder = Holder.of(other)
            if mine.job and not holder.is_over(mine.job, None) and not _is_expired(work_uri, uri):
                return holder
        except SourceError:  # it was removed meanwhile, so that its number may be free
            vanished += 1
            if vanished < VANISHED:
                continue
        before.append(other)
        number += 1
    return Lease(work_uri, key, number, note, tuple(before))


def _encode(note: Note) -> bytes:
    return json.dumps(note).encode()


def read_note(uri: str) -> Note:
    """Reads what a lease says.

    Returns:
        Its note; nothing if it is of another kind.

    Raises:
        SourceError: It was removed.
    """
    try:
        found = json.loads(storage.read(uri))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_expired(work_uri: str, uri: str) -> bool:
    """Tells by the store's clock whether a lease was not renewed in time; False if it has none."""
    modified = storage.info(uri).modified
    return modified is not None and age_of(modified, storage.clock(work_uri)) >= EXPIRY_SECONDS


def age_of(modified: datetime, now: datetime) -> float:
    """Returns the seconds between two times of one store."""
    return (now - modified).total_seconds()


def lease_uri(work_uri: str, key: str, number: int) -> str:
    """Returns where the lease of that number of a shard is."""
    return storage.join(work_uri, FOLDER, f"{key}-{number}.json")


def list_leases(work_uri: str) -> dict[str, list[Stored]]:
    """Lists all leases of a dataset, by the keys of their shards, with one listing."""
    found: dict[str, list[Stored]] = {}
    with suppress(SourceError):  # there is none
        for item in storage.walk(storage.join(work_uri, FOLDER)):
            key = item.uri.rpartition("/")[2].rpartition("-")[0]
            found.setdefault(key, []).append(item)
    return found


def is_counted_now(work_uri: str) -> bool:
    """Tells whether a worker counts a shard of a dataset now, as far as leases tell.

    Args:
        work_uri: The work folder of the dataset.

    Returns:
        Whether there is a lease that is renewed in time, and whose holder is not known to be gone.
    """
    return any(True for _ in _notes_held(work_uri))


def gets_on(work_uri: str, job: str) -> bool:
    """Tells whether a worker of a job has got on with a shard lately, as far as leases tell.

    Args:
        work_uri: The work folder of the dataset.
        job: The id of the job.

    Returns:
        Whether a lease of the job is renewed in time, and its holder has done work since it claimed
        the shard. Workers that crash as they load a network do none.
    """
    return any(
        Holder.of(note).job == job and bool(note.get(SPENT)) for note in _notes_held(work_uri)
    )


def _notes_held(work_uri: str) -> Iterator[Note]:
    """Yields the notes of leases that are renewed in time and whose holder may be there."""
    now = None
    for item in chain.from_iterable(list_leases(work_uri).values()):
        with suppress(SourceError):  # it was removed meanwhile
            note = read_note(item.uri)
            if Holder.of(note).is_gone:
                continue
            now = now or storage.clock(work_uri)
            if item.modified is None or age_of(item.modified, now) < EXPIRY_SECONDS:
                yield note


def order_of_claims(claimant: str, shards: Sequence[int]) -> list[int]:
    """Shuffles shards as the job's id decides, so that two jobs seldom come to the same one."""
    return random.Random(claimant).sample(shards, len(shards))
