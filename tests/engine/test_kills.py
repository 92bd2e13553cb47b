"""Tests builds on Ray whose workers and drivers are killed at random, until one is done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pipeline.dna import DNA
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
)

__all__ = ["folder", "small", "truth"]  # fixtures


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
