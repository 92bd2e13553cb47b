"""Tests builds on a cluster where all goes wrong that can: the counts are those of a quiet pass.

Ray's own `AutoscalingCluster` is not used (see `gpu_nodes`). Nodes that are lost are replaced here.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, verify
from pipeline.counting import Extractor, worker
from pipeline.engine import InProcess
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import same_counts_and_failures
from tests.support.gpu_nodes import BROKEN, WITHOUT_MEMORY, GpuNodes
from tests.support.ray_commands import Small, committed, ended, small

__all__ = ["small"]  # fixtures

SHARDS = 100
BAD = {5: "empty", 60: "not_an_image"}
SECONDS = 3.0
"""How long a GPU takes for a shard."""

BETWEEN_DEATHS = 20.0
"""The mean time from the loss of a node to the next, in seconds."""

TO_BE_SEEN = 20.0
"""How long a node or a job must be there to know of each other, and a loss to be told."""

MOST_DEATHS = 3
"""How many nodes of a cluster die one by one. On a busy machine a worker may take longer to start
than a node lives, and no build would end."""

LONGEST = 300.0
"""A phase that has not ended by then will not end. On a quiet machine it takes a minute."""

LOST, DIED, BROKE = "was lost", "a worker died", "times in a row"
MEMORY, HEAD = "where memory ran out", "does not answer"


@dataclass
class Job:
    """A build in a process of its own, and what it has told so far."""

    process: subprocess.Popen[str]
    began: float = field(default_factory=time.monotonic)
    lines: list[dict[str, Any]] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    out: str = ""
    ended_at: float = float("inf")

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                told = json.loads(line)
                if told.get("event") == "Started":
                    self.began = time.monotonic()
                self.lines.append(told)
            else:
                self.other.append(line)
        self.ended_at = time.monotonic()

    def told(self, words: str) -> list[str]:
        return [line["message"] for line in self.lines if words in line["message"]]

    @property
    def has_begun(self) -> bool:
        return any(line.get("event") == "Started" for line in self.lines)

    def present(self) -> int:
        """Returns how many shards it found done."""
        return next(int(line["present"]) for line in self.lines if line.get("event") == "Started")

    def wait(self) -> int:
        code = self.process.wait(timeout=LONGEST)
        self._reader.join()
        assert self.process.stdout is not None
        self.out = self.out or self.process.stdout.read()
        return code


@dataclass
class Loss:
    """A node that was lost: when it had come, when it went, and whether it was killed."""

    came: float
    went: float
    killed: bool


class Storm:
    """Kills nodes at moments that a seed chooses, and replaces them."""

    def __init__(self, nodes: GpuNodes, chance: random.Random, losses: list[Loss]) -> None:
        self._nodes = nodes
        self._left = MOST_DEATHS
        self._chance = chance
        self._losses = losses
        self._came: dict[Any, float] = {node: time.monotonic() for node in nodes.alive}
        self._sound = [self._new(), self._new()]
        self._due = self._next()

    def _new(self) -> Any:
        node = self._nodes.add()
        self._came[node] = time.monotonic()
        return node

    def _lose(self, node: Any, *, killed: bool) -> None:
        self._nodes.lose(node)
        self._losses.append(Loss(self._came.pop(node), time.monotonic(), killed))

    def _next(self) -> float:
        return time.monotonic() + self._chance.expovariate(1 / BETWEEN_DEATHS)

    def blow(self, until: Callable[[], object], jobs: list[Job]) -> None:
        """Goes on until something is true, while jobs run."""
        deadline = time.monotonic() + LONGEST
        while not until():
            assert time.monotonic() < deadline, [job.lines[-5:] + job.other for job in jobs]
            assert any(job.process.poll() is None for job in jobs) or until(), "all jobs have ended"
            time.sleep(0.1)
            for node in self._nodes.dead():
                self._lose(node, killed=False)
            if time.monotonic() >= self._due and self._left > 0:
                self._left -= 1
                at = self._chance.randrange(2)
                if self._sound[at] in self._nodes.alive:
                    self._lose(self._sound[at], killed=True)
                self._sound[at] = self._new()
                self._due = self._next()


@pytest.mark.soak  # it starts two clusters of up to six nodes, and five builds
@pytest.mark.skipif(
    not os.environ.get("VDNA_TEST_CHAOS"),
    reason="needs a machine to itself for minutes: make chaos",
)
def test_a_build_in_a_storm_counts_as_a_quiet_one_and_tells_of_each_fault_once(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs share a dataset while faults come from a seeded schedule.

    Nodes die, a driver is killed and run again, Ray kills workers where memory ran out, a device
    fails at each micro-batch, and then the head and all nodes die at once.
    """
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "15")  # a minute, by default
    source, catalogue = tmp_path / "source", tmp_path / "c"
    source.mkdir()
    for at in range(SHARDS):
        data = tiny.Picture(BAD.get(at, "good"), at).data
        (source / f"{at:04d}.png").write_bytes(data)
    chance = random.Random(7)
    losses: list[Loss] = []
    jobs: list[Job] = []
    environment = small.environment()

    with ExitStack() as stack:

        def start(nodes: GpuNodes) -> Job:
            options = ("--gpus-per-worker", "1", "--decode", "here", "--log-format", "json")
            where = ("--ray-address", nodes.address)
            process = small.start(
                source, catalogue, *where, *options, patch="", workers=2, shard_images=1
            )
            stack.enter_context(ended(process))
            jobs.append(Job(process))
            return jobs[-1]

        with GpuNodes(SECONDS, environment) as nodes:
            nodes.add(WITHOUT_MEMORY)
            nodes.add(BROKEN)
            storm = Storm(nodes, chance, losses)
            first, second = start(nodes), start(nodes)
            storm.blow(lambda: committed(catalogue) >= SHARDS // 10, jobs)
            there = committed(catalogue)
            os.kill(first.process.pid, signal.SIGKILL)
            assert first.wait() == -signal.SIGKILL
            again = start(nodes)
            storm.blow(
                lambda: (
                    sum(loss.killed for loss in losses) >= 2
                    and again.has_begun
                    and time.monotonic() - again.began > TO_BE_SEEN / 2
                    and all(any(job.told(words) for job in jobs) for words in (DIED, BROKE, MEMORY))
                ),
                jobs,
            )
            assert committed(catalogue) < SHARDS, "nothing is left for the other cluster"
            alive = [job for job in (second, again) if job.process.poll() is None]
            end = time.monotonic()
            nodes.lose_all()
        assert again.present() >= there
        for job in alive:
            assert job.wait() != 0
            # Ray ends a process that waits for the head, and one that does not is told by an error.
            assert job.told(HEAD) or "rerun the same command" in job.out, (job.out, job.lines[-2:])
            job.ended_at = end  # from then on it could ask nobody for nodes
        there = committed(catalogue)
        with GpuNodes(SECONDS, environment) as nodes:
            nodes.add()
            storm = Storm(nodes, chance, losses)
            last = [start(nodes), start(nodes)]
            storm.blow(lambda: all(job.process.poll() is not None for job in last), last)
            assert [job.wait() for job in last] == [0, 0], [job.lines[-5:] for job in last]
        assert min(job.present() for job in last) >= there
    require_told_once(jobs, losses)
    require_quiet(source, catalogue, tmp_path / "alone", small, monkeypatch)


def require_told_once(jobs: list[Job], losses: list[Loss]) -> None:
    """Checks that each job told of each fault around it, and of none twice."""
    for job in jobs:
        assert job.other == []
        # Ray takes a while to find out, so a job may hear of what was before it.
        lost = [loss for loss in losses if job.began - TO_BE_SEEN < loss.went < job.ended_at]
        sure = [
            loss
            for loss in lost
            if loss.killed
            and loss.went - max(job.began, loss.came) > TO_BE_SEEN
            and job.ended_at - loss.went > TO_BE_SEEN
        ]
        assert len(sure) <= len(job.told(LOST)) <= len(lost), (job.told(LOST), losses)
        for words in (BROKE, MEMORY, HEAD):
            assert len(job.told(words)) <= 1
        died = Counter(job.told(DIED))
        assert max(died.values(), default=1) == 1
        if job.told(BROKE):
            failed = [line for line in job.lines if line.get("event") == "StepFailed"]
            assert len([line for line in failed if "CUDA error" in json.dumps(line)]) >= 3


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
