"""Jobs that share a store, in a world whose time, order of events and deaths chance decides.

Each job is a thread, and one thread runs at a time: before each request to the store, and while it
counts or sleeps, it hands over to the world. So minutes pass in milliseconds, and a seed repeats a
run. What runs is the code of the product, but for the counting of a shard, which takes time and
writes a few bytes.
"""

from __future__ import annotations

import json
import random
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import storage
from pipeline.buffers import Data
from pipeline.building import runner
from pipeline.building.runner import Ran, run_missing
from pipeline.counting import ShardJob, ShardReceipt, Worker, leases, partial_uri, worker
from pipeline.counting.leases import RENEW_SECONDS, Holder, Lease
from pipeline.counting.stream import Made
from pipeline.errors import SourceError
from pipeline.events import Event
from pipeline.sources import Manifest, Shard
from pipeline.storage import Stored, objects
from pipeline.storage.store import Answer

WHILE_IT_COUNTS = -1.0
"""In place of the number of a step: the job dies while it counts its first shard."""

FOLDERS = (leases.FOLDER, "partials", "manifest", "entries")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Died(BaseException):
    """Ends a job as a SIGKILL does."""


@dataclass
class Job:
    """A job of the simulation.

    Attributes:
        name: Its name, which is also that of its machine.
        wakes: When it goes on.
        dies_at: The number of the step at which it dies, or `WHILE_IT_COUNTS`.
    """

    name: str
    wakes: float
    dies_at: float
    steps: int = 0
    counts: str = ""
    is_dead: bool = False
    is_done: bool = False
    ran: list[Ran] | None = None
    error: BaseException | None = None
    lease: Lease | None = None
    events: list[Event] = field(default_factory=list)
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class World:
    """The store, the time, and the jobs.

    Args:
        chance: Decides all that is not given.
        skew: How far the times that the store notes may be off, in seconds.
        tells_times: Whether the store notes times.
    """

    def __init__(self, chance: random.Random, skew: float = 0.0, *, tells_times: bool = True):
        self.chance = chance
        self.skew, self.tells_times = skew, tells_times
        self.now = 0.0
        self.objects: dict[str, tuple[bytes, datetime | None]] = {}
        self.counted: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.jobs: list[Job] = []
        self._world = threading.Semaphore(0)
        self._here = threading.local()

    @property
    def job(self) -> Job | None:
        """The job whose thread this is."""
        return getattr(self._here, "job", None)

    def pause(self, seconds: float) -> None:
        """Lets other jobs run until the time has passed; the job may die instead."""
        job = self.job
        if job is None:
            return
        job.steps += 1
        dies = job.counts if job.dies_at == WHILE_IT_COUNTS else job.steps >= job.dies_at
        if dies or job.is_dead:
            job.is_dead = True
            if job.counts:
                self.lost[job.counts] += 1
                job.counts = ""
            raise Died
        job.wakes = self.now + seconds
        self._world.release()
        job.turn.acquire()

    def request(self, kind: str, uri: str) -> None:
        folder = next((each for each in FOLDERS if f"/{each}" in uri), "others")
        self.requests[f"{kind} {folder}"] += 1
        self.pause(self.chance.uniform(0.01, 0.3))

    def modified(self) -> datetime | None:
        off = self.chance.uniform(-self.skew, self.skew)
        moment = EPOCH + timedelta(seconds=int(self.now + off))  # as S3 tells it
        return moment if self.tells_times else None

    def start(
        self, name: str, work: Sequence[tuple[ShardJob, Manifest]], at: float, dies_at: float
    ) -> None:
        job = Job(name, at, dies_at)
        self.jobs.append(job)

        def body() -> None:
            self._here.job = job
            job.turn.acquire()
            try:
                engine: Any = Serial(SimulatedWorker(self))
                job.ran = run_missing(work, engine, job.events.append)
            except BaseException as error:
                job.error = error
            job.is_done = True
            self._world.release()

        threading.Thread(target=body, daemon=True).start()

    def run(self, longest: float) -> None:
        """Runs all jobs to their ends; an error if they take longer than the time given."""
        while waiting := [job for job in self.jobs if not job.is_done]:
            self.now = max(self.now, min(job.wakes for job in waiting))
            assert self.now < longest, "the jobs do not end"
            self.chance.choice([job for job in waiting if job.wakes <= self.now]).turn.release()
            self._world.acquire()


class Serial:
    """An engine of one worker."""

    shard_workers = 1

    def __init__(self, one: Worker) -> None:
        self._worker = one

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        for shard in work:
            yield self._worker.run(*shard)


class SimulatedWorker(Worker):
    """A worker whose shards take up to some minutes, and hold nothing but their key."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._makers: Any = SimpleNamespace(make=self._make)

    def _make(self, recipe: object, shard: Shard, key: str, **_: object) -> Made:
        world = self._world
        job = world.job
        assert job is not None
        assert job.lease is not None
        assert job.lease.key == key
        world.counted[key] += 1
        job.counts = key
        for renewals in range(world.chance.choice((0, 0, 1, 2, 12))):
            world.pause(RENEW_SECONDS)
            job.lease.renew(renewals)
        world.pause(world.chance.uniform(0, RENEW_SECONDS))
        return Made(content_of(key), len(shard.members), 0)


def content_of(key: str) -> bytes:
    return f"the partial of {key}".encode()


class SimulatedStore:
    """The store `sim://` of a world. A listing has what is there at its last moment."""

    is_local = False
    is_shared = True
    lists_in_key_order = False
    answers_ranges = True
    loses_answers = True

    def __init__(self, world: World) -> None:
        self._world = world

    def _stored(self, uri: str) -> Stored:
        if uri not in self._world.objects:
            raise SourceError(f"{uri} does not exist")
        data, modified = self._world.objects[uri]
        return Stored(uri, len(data), str(hash(data)), modified)

    def info(self, uri: str) -> Stored:
        self._world.request("info", uri)
        return self._stored(uri)

    def exists(self, uri: str) -> bool:
        self._world.request("exists", uri)
        return uri in self._world.objects

    def get(self, uri: str, start: int, length: int | None, most: int | None = None) -> Answer:
        self._world.request("get", uri)
        stored = self._stored(uri)
        data = self._world.objects[uri][0]
        end = len(data) if length is None else start + length
        return Answer(data[start:end], stored.identity, len(data))

    def put(self, uri: str, data: Data, *, exclusive: bool) -> bool:
        self._world.request("put", uri)
        if exclusive and uri in self._world.objects:
            return False
        self._world.objects[uri] = bytes(data), self._world.modified()
        job = self._world.job
        if job is not None and "/partials/" in uri:
            job.counts = ""
        return True

    def delete(self, uri: str) -> None:
        self._world.request("delete", uri)
        self._world.objects.pop(uri, None)

    def walk(self, uri: str) -> Iterator[Stored]:
        self._world.request("list", uri)
        found = [self._stored(name) for name in sorted(self._world.objects) if f"{uri}/" in name]
        if not found:
            raise SourceError(f"{uri} does not exist")
        yield from found


def simulated(patch: pytest.MonkeyPatch, world: World) -> None:
    """Puts a world in place of the stores and clocks of this process."""

    def here(job: str) -> Holder:
        own = world.job
        return Holder(job, own.name if own else "", nonce=f"{world.chance.getrandbits(64):x}")

    claim = worker.claim

    def claim_and_note(*of: Any) -> Lease | Holder:
        found = claim(*of)
        if world.job is not None and isinstance(found, Lease):
            world.job.lease = found
        return found

    store: Any = SimulatedStore(world)
    patch.setitem(objects._STORES, "sim", store)
    patch.setattr(Holder, "here", here)
    patch.setattr(Lease, "_renew", lambda lease, seconds: None)  # the simulated worker does it
    patch.setattr(worker, "claim", claim_and_note)
    patch.setattr(runner, "sleep", world.pause)
    patch.setattr(runner, "monotonic", lambda: world.now)

    def token(size: int) -> str:
        return f"{world.chance.getrandbits(8 * size):0{2 * size}x}"

    patch.setattr(secrets, "token_hex", token)


def require_all_stored(world: World, work: Sequence[tuple[ShardJob, Manifest]]) -> None:
    """Checks that each shard has its partial, and that no lease of a job that lives is left."""
    for job, manifest in work:
        for key in manifest.keys(job.recipe.spec.digest, job.recipe.products):
            assert storage.read(partial_uri(job.work_uri, key)) == content_of(key)
    dead = {job.name for job in world.jobs if isinstance(job.error, Died)}
    for uri, (data, _) in world.objects.items():
        if f"/{leases.FOLDER}/" in uri:
            assert json.loads(data)["host"] in dead, uri
