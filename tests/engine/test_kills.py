"""Tests builds on Ray whose workers and drivers are killed at random, until one is done.

And one whose nodes die every minute: how much of its work is left.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pipeline.dna import DNA
from tests.support.builders import write_photos
from tests.support.gpu_clock import START_SECONDS, GpuClock
from tests.support.gpu_nodes import GpuNodes
from tests.support.ray_commands import (
    SHARDS,
    Small,
    committed,
    ended,
    finish,
    folder,
    holds,
    running,
    small,
    truth,
    until,
)

__all__ = ["folder", "small", "truth"]  # fixtures

GOODPUT = 0.8
"""How much of the undisturbed work is done in a time in which a node dies every minute."""

NODES, DEATHS = 3, 3

MINUTE = 60.0
"""The time from one death to the next, in seconds of the clock of the GPUs."""

GPU_SECONDS = 5.0
"""How long a GPU works for a shard."""

FIRST_DEATH = 2 * GPU_SECONDS - 1
"""A second later the GPU of that node would have ended its shard: nearly all of it is lost."""

UNSEEN_SECONDS = 10.0
"""How long Ray takes to find out that a node is lost. The other nodes have to go on meanwhile."""


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 7])  # one driver and two, whose workers die too
def test_builds_with_random_kills_end_with_exact_counts(
    folder: Path, truth: DNA, small: Small, tmp_path: Path, seed: int
) -> None:
    """Workers die at random moments, and each driver but the last after some shards."""
    chance = random.Random(seed)
    with ExitStack() as stack:
        for _ in range(chance.randint(1, 3)):
            process = small.start(folder, tmp_path)
            stack.enter_context(ended(process))
            more, kills, limit = chance.randint(0, 8), chance.randint(0, 3), SHARDS
            while committed(tmp_path) < limit and process.poll() is None:
                time.sleep(0.1)
                if not (pids := at_work(process, tmp_path)):
                    continue
                limit = min(limit, committed(tmp_path) + more)
                if kills and chance.random() < 0.05:
                    kills -= 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(pids), signal.SIGKILL)
            process.kill()
        # Workers go on for a moment after their driver's death: the next one meets them.
        last = small.start(folder, tmp_path)
        stack.enter_context(ended(last))
        finish(last)
    assert committed(tmp_path) == SHARDS
    holds(tmp_path, truth)


def at_work(process: subprocess.Popen[str], catalogue: Path) -> list[int]:
    """Returns the workers of a driver that have shards under way."""
    own = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    return sorted(own.intersection(running(catalogue)))


@pytest.mark.soak
@pytest.mark.timeout(900)  # it takes two to three minutes; a wait that ends in vain takes four
def test_four_fifths_of_the_work_are_done_while_a_node_dies_every_minute(
    small: Small, tmp_path: Path
) -> None:
    """The time is that of a clock that waits for the machine, so it measures work alone.

    The clock stands still until each GPU works that should: a shard must be at hand for it. A node
    that takes the place of a lost one has to work once Ray knows of the loss; its process then
    takes some time of the clock to start, as does any that is started anew. Each death is that of
    the oldest node.
    """
    source, build, clock = tmp_path / "source", tmp_path / "c", GpuClock(tmp_path / "clock")
    undisturbed = int(NODES * DEATHS * MINUTE / GPU_SECONDS)
    shards = undisturbed + 3 * NODES  # at the end of the time some are under way
    write_photos(source, shards)
    clock.set(-START_SECONDS)  # the first workers are ready at 0
    environment = small.environment() | {"GPU_CLOCK": str(clock.place)}
    with GpuNodes(GPU_SECONDS, environment) as nodes:
        due = {nodes.add().node_id: clock.now for _ in range(NODES)}
        options = ("--gpus-per-worker", "1", "--decode", "here", "--ray-address", nodes.address)
        process = small.start(source, build, *options, patch="", workers=NODES, shard_images=1)
        with ended(process):

            def wait(true: Callable[[], object]) -> None:
                def seen() -> object:
                    assert not nodes.dead(), "a node ended by itself"
                    return true()

                until(process, seen)

            for death in (FIRST_DEATH + MINUTE * at for at in range(DEATHS)):
                clock.go_on(death, due, wait)
                oldest = nodes.alive[0]
                del due[oldest.node_id]
                due[nodes.replace(oldest).node_id] = death + UNSEEN_SECONDS
            clock.go_on(DEATHS * MINUTE, due, wait)
            done = committed(build)
            clock.set(math.inf)
            finish(process)
    print(f"goodput {done / undisturbed:.2f}: {done} of {undisturbed} shards, {DEATHS} deaths")
    assert committed(build) == shards
    assert done >= GOODPUT * undisturbed, f"{done} shards of {undisturbed}"
