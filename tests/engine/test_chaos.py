"""Tests builds on a cluster where all goes wrong that can: the counts are those of a quiet pass.

No step waits for a time. Each waits until something has been seen, so that a busy machine takes
longer and does the same. Nodes of the first cluster are replaced here, as the kind of a node stays
(see `gpu_nodes`). Those of the second one are replaced by Ray's own autoscaler.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, verify
from pipeline.counting import Extractor, worker
from pipeline.engine import InProcess
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.autoscaled_cluster import ScaledNodes, autoscaled_cluster
from tests.support.builders import same_counts_and_failures
from tests.support.gpu_nodes import BROKEN, DECLARED_GPU, WITHOUT_MEMORY, GpuNodes
from tests.support.ray_commands import Small, committed, ended, small

__all__ = ["small"]  # fixtures

SHARDS = 100
BAD = {5: "empty", 60: "not_an_image"}
SECONDS = 3.0
"""How long a GPU takes for a shard, at first."""

BETWEEN_DEATHS = 20.0
"""The mean time from the death of a node until the next one may die, in seconds."""

LONGEST = 600.0
"""A phase that has not ended by then will not end. On a quiet machine it takes one or two minutes.
"""

LOST, DIED, BROKE = "was lost", "a worker died", "times in a row"
MEMORY, HEAD = "where memory ran out", "does not answer"


def is_device_error(line: dict[str, Any]) -> bool:
    text = json.dumps(line)
    return line.get("event") == "StepFailed" and "CUDA error: an illegal memory access" in text


@dataclass
class Job:
    """A build in a process of its own, and what it has told so far.

    Attributes:
        process: The process.
        told_before: How many losses others had told of when it began. It tells of none of them.
        lines: What it has told.
        other: What else it has written to stderr.
        out: What it has written to stdout, once it has ended.
    """

    process: subprocess.Popen[str]
    told_before: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    out: str = ""

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.lines.append(json.loads(line))
            else:
                self.other.append(line)

    def told(self, words: str) -> list[str]:
        return [line["message"] for line in self.lines if words in line["message"]]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("event") == kind]

    @property
    def runs(self) -> bool:
        """Whether it has found out what is to do, and has not ended."""
        return bool(self.events("Started")) and self.process.poll() is None

    @property
    def present(self) -> int:
        """How many shards it found done."""
        return int(self.events("Started")[0]["present"])

    @property
    def device_errors(self) -> int:
        return sum(map(is_device_error, self.lines))

    def device_errors_after(self, words: str) -> int:
        """How many errors of devices it told after a line with these words; 0 without one."""
        told = [words in json.dumps(line) for line in self.lines]
        return sum(map(is_device_error, self.lines[told.index(True) :])) if any(told) else 0

    def wait(self) -> int:
        code = self.process.wait(timeout=LONGEST)
        self._reader.join()
        assert self.process.stdout is not None
        self.out = self.out or self.process.stdout.read()
        return code


@dataclass
class Loss:
    """A node that was lost.

    Attributes:
        killed: Whether it was killed here; else Ray took it for lost.
        of: The jobs that ran, which have to tell of it.
        at: When.
    """

    killed: bool
    of: list[Job]
    at: float = field(default_factory=time.monotonic)


class Nodes(Protocol):
    """The nodes of a cluster that are in a storm."""

    @property
    def alive(self) -> Sequence[Any]:
        """The nodes that live; each has its `node_id`."""

    @property
    def mortal(self) -> Collection[Any]:
        """Those of them that may be killed: their GPU works, and they do not die by themselves."""

    def dead(self) -> Sequence[Any]:
        """Returns the nodes that ended by themselves, as one does that Ray took for lost."""

    def replace(self, node: Any) -> object:
        """Kills a node, unless it is dead, and has another one take its place."""


class Storm:
    """Kills nodes at moments that a seed chooses, each in the midst of its work, and replaces them.

    Args:
        nodes: The nodes.
        chance: The seed.
        catalogue: Where jobs build, whose leases tell which nodes work.
        pace: A file that says how long a GPU takes for a shard.
    """

    def __init__(self, nodes: Nodes, chance: random.Random, catalogue: Path, pace: Path) -> None:
        self._nodes, self._chance, self._catalogue, self._pace = nodes, chance, catalogue, pace
        self._left = SHARDS - committed(catalogue)
        self._had: dict[Any, set[str]] = {}
        self.jobs: list[Job] = []
        self.losses: list[Loss] = []
        self.set_pace()
        self._plan()

    def begin(self, process: subprocess.Popen[str]) -> Job:
        """Takes a build that has just been started for one of its jobs."""
        told = min((len(job.told(LOST)) for job in self.jobs if job.runs), default=0)
        self.jobs.append(Job(process, told))
        return self.jobs[-1]

    def deaths(self, job: Job) -> int:
        """Returns how many nodes were killed while a job ran."""
        return sum(loss.killed and job in loss.of for loss in self.losses)

    def _plan(self) -> None:
        self._due = time.monotonic() + self._chance.expovariate(1 / BETWEEN_DEATHS)

    @property
    def settled(self) -> bool:
        """Whether each job that runs has told of each loss while it ran."""
        return all(
            len(job.told(LOST)) >= sum(job in loss.of for loss in self.losses)
            for job in self.jobs
            if job.runs
        )

    def set_pace(self, seconds: float | None = None) -> None:
        """Has a GPU take a time for a shard. By default it takes the longer the fewer are left."""
        left = max(1, SHARDS - committed(self._catalogue))
        new = self._pace.with_suffix(".new")
        new.write_text(str(SECONDS * (self._left / left) ** 2 if seconds is None else seconds))
        new.replace(self._pace)

    def blow(self, until: Callable[[], object]) -> None:
        """Goes on until something is true, while jobs run."""
        deadline = time.monotonic() + LONGEST
        while not until():
            assert time.monotonic() < deadline, self._state()
            assert any(job.process.poll() is None for job in self.jobs) or until(), self._state()
            time.sleep(0.1)
            self.set_pace()
            working = self._working()
            for node in self._nodes.dead():
                self._replace(node, killed=False)
            victims = [node for node in working if node in self._nodes.mortal]
            if time.monotonic() >= self._due and victims:
                self._replace(self._chance.choice(victims), killed=True)
                self._plan()

    def _replace(self, node: Any, *, killed: bool) -> None:
        self.losses.append(Loss(killed, [job for job in self.jobs if job.runs]))
        self._nodes.replace(node)

    def _state(self) -> str:
        told = [
            f"{job.lines[-5:]} {job.other} lost: {len(job.told(LOST))}, died: {job.told(DIED)}, "
            f"memory: {job.told(MEMORY)}, broke: {job.told(BROKE)}"
            for job in self.jobs
        ]
        lost = [(loss.killed, loss.at, len(loss.of)) for loss in self.losses]
        alive = [node.node_id for node in self._nodes.alive]
        there = f"{committed(self._catalogue)} shards, lost: {lost}, alive: {alive}"
        return "\n".join([there, *told])

    def figures(self) -> dict[str, int]:
        """Returns how many faults there were, by what was seen and told."""
        return {
            "nodes killed": sum(loss.killed for loss in self.losses),
            "nodes that Ray took for lost": sum(not loss.killed for loss in self.losses),
            "losses told": sum(len(job.told(LOST)) for job in self.jobs),
            "workers that died": sum(len(job.told(DIED)) for job in self.jobs),
            "jobs told of memory": sum(len(job.told(MEMORY)) for job in self.jobs),
            "errors of a device": sum(job.device_errors for job in self.jobs),
            "nodes left out": sum(len(job.told(BROKE)) for job in self.jobs),
        }

    def _working(self) -> list[Any]:
        """Returns the nodes that count a shard now, and have counted another before."""
        now: dict[str, set[str]] = {}
        for lease in self._catalogue.glob("_work/photos/*/attempts/*.json"):
            with contextlib.suppress(OSError, ValueError):
                key = lease.stem.rpartition("-")[0]
                now.setdefault(json.loads(lease.read_text())["node"], set()).add(key)
        done = {path.stem for path in self._catalogue.glob("_work/photos/*/partials/*.parquet")}
        found = []
        for node in self._nodes.alive:
            had, has = self._had.setdefault(node, set()), now.get(node.node_id, set())
            had |= has
            if has - done and (had - has) & done:
                found.append(node)
        return found


@pytest.mark.soak  # it starts two clusters of up to six nodes, and five builds
@pytest.mark.timeout(2400)  # a quiet machine takes four minutes
def test_a_build_in_a_storm_counts_as_a_quiet_one_and_tells_of_each_fault_once(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs share a dataset while faults come from a seeded schedule.

    Nodes die, a driver is killed and run again, Ray kills workers where memory ran out, a device
    fails at each micro-batch, and then the head and all nodes die at once. On the second cluster,
    Ray's autoscaler brings the nodes, and replaces those that die.
    """
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "30")  # a minute, by default
    source, catalogue, pace = tmp_path / "source", tmp_path / "c", tmp_path / "pace"
    write_pictures(source)
    chance = random.Random(7)
    environment = small.environment() | {"GPU_PACE": str(pace)}

    with ExitStack() as stack:

        def start(address: str, storm: Storm) -> Job:
            options = ("--gpus-per-worker", "1", "--decode", "here", "--log-format", "json")
            where = ("--ray-address", address)
            process = small.start(
                source, catalogue, *where, *options, patch="", workers=3, shard_images=1
            )
            stack.enter_context(ended(process))
            return storm.begin(process)

        with GpuNodes(SECONDS, environment) as nodes:
            nodes.add(WITHOUT_MEMORY)
            nodes.add(BROKEN)
            for _ in range(3):
                nodes.add()
            storm = Storm(nodes, chance, catalogue, pace)
            first, second = start(nodes.address, storm), start(nodes.address, storm)
            storm.blow(
                lambda: (
                    all(job.events("StepDone") for job in (first, second))
                    and committed(catalogue) >= SHARDS // 10
                )
            )
            there = committed(catalogue)
            os.kill(first.process.pid, signal.SIGKILL)
            assert first.wait() == -signal.SIGKILL
            again = start(nodes.address, storm)
            storm.blow(
                lambda: (
                    storm.deaths(again) >= 2
                    and storm.settled
                    and all(job.events("StepDone") and job.told(MEMORY) for job in (second, again))
                    and any(job.told(DIED) for job in storm.jobs)
                    and any(job.told(BROKE) for job in storm.jobs)
                )
            )
            assert committed(catalogue) < SHARDS, "nothing is left for the other cluster"
            nodes.lose_all()
        assert again.present >= there
        for job in (second, again):
            assert job.wait() != 0
            # Ray ends a process that waits for the head, and one that does not is told by an error.
            assert job.told(HEAD) or "rerun the same command" in job.out, (job.out, job.lines[-2:])
        require_told_once(storm)
        print(f"the first cluster: {storm.figures()}")
        there = committed(catalogue)
        with autoscaled_cluster(3, 2, 1, LONGEST, environment | DECLARED_GPU) as scaled:
            brought = ScaledNodes(scaled)
            storm = Storm(brought, chance, catalogue, pace)
            last = [start(scaled.address, storm), start(scaled.address, storm)]
            storm.blow(
                lambda: (
                    all(storm.deaths(job) for job in last)
                    and storm.settled
                    and len(brought.alive) >= 3  # those that were killed are replaced
                )
            )
            storm.set_pace(0)
            assert [job.wait() for job in last] == [0, 0], [job.lines[-5:] for job in last]
        assert min(job.present for job in last) >= there
        require_told_once(storm)
        print(f"the second cluster: {storm.figures()}")
    require_quiet(source, catalogue, tmp_path / "alone", small, monkeypatch)


def write_pictures(source: Path) -> None:
    """Writes a picture for each shard. Two of them cannot be read."""
    source.mkdir()
    for at in range(SHARDS):
        data = tiny.Picture(BAD.get(at, "good"), at).data
        (source / f"{at:04d}.png").write_bytes(data)


def require_told_once(storm: Storm) -> None:
    """Checks that no job told of a fault twice, or of one that was none.

    The storm has waited until each was told.
    """
    for job in storm.jobs:
        assert job.other == []
        lost = job.told(LOST)
        assert len(lost) <= len(storm.losses) - job.told_before, (lost, storm.losses)
        for words in (BROKE, MEMORY, HEAD):
            assert len(job.told(words)) <= 1
        died = Counter(job.told(DIED))
        assert max(died.values(), default=1) == 1
        # A node is left out once another has counted a shard, and has had two shards under way.
        assert 3 * len(job.told(BROKE)) <= job.device_errors
        assert job.device_errors_after(BROKE) <= 2


def require_quiet(
    source: Path, catalogue: Path, alone: Path, small: Small, patch: pytest.MonkeyPatch
) -> None:
    """Checks that all is committed as one undisturbed pass in this process commits it."""

    def on_device(*given: Any, **how: Any) -> Extractor:
        return Extractor(*given, on_device=True, **how)

    options = {"max_failures": 2, "shard_images": 1, **small.place.options}
    request = Request("photos", str(source), **options)  # type: ignore[arg-type]  # by name
    patch.setattr(worker, "Extractor", on_device)
    quiet, stormy = Catalogue(str(alone)), Catalogue(str(catalogue))
    with InProcess() as engine:
        build_datasets(quiet, [request], engine, Resources(threads=1, backend="torch"))
    one, other = quiet.find("photos"), stormy.find("photos")
    assert same_counts_and_failures(quiet.load("photos"), stormy.load("photos"))
    assert (one.images, one.failed) == (other.images, other.failed) == (SHARDS - 2, 2)
    assert quiet.failures("photos", one) == stormy.failures("photos", other)
    assert (one.dna, one.sha256) == (other.dna, other.sha256)
    assert stormy.head().number == 1
    assert committed(catalogue) == SHARDS
    assert [finding for finding in verify(stormy) if not finding.ok] == []
