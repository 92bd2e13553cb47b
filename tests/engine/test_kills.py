"""Tests builds on Ray whose workers and drivers are killed at random, until one is done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

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
@pytest.mark.parametrize("seed", range(10))
def test_builds_with_random_kills_end_with_exact_counts(
    folder: Path, truth: DNA, small: Small, tmp_path: Path, seed: int
) -> None:
    """Workers and drivers die at random moments, several times during each build."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        process = small.start(folder, tmp_path)
        with ended(process):
            deadline = time.monotonic() + chance.uniform(2, 14)
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.1)
                if chance.random() < 0.05 and (pids := running(tmp_path)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(sorted(pids)), signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            # Workers go on for a moment after their driver's death: let the next one meet them.
            last = small.start(folder, tmp_path)
            with ended(last):
                finish(last)
        if chance.random() < 0.5:
            break
    assert committed(tmp_path) == SHARDS
    holds(tmp_path, truth)
