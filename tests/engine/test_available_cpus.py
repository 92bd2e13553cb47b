"""Tests how many cores a process takes for its own, where a container has a limit."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from pipeline import spec
from pipeline.spec import available_cpus


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu.max": "of another form\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_limit_of_a_container_is_read(
    tmp_path: Path, files: dict[str, str], limit: float
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert spec._cpu_limit(tmp_path) == limit


@pytest.mark.parametrize(("limit", "cpus"), [(math.inf, 64), (1.5, 2), (0.5, 1), (100.0, 64)])
def test_no_more_cores_are_used_than_the_limit_allows(
    monkeypatch: pytest.MonkeyPatch, limit: float, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(spec, "_cpu_limit", lambda: limit)
    assert available_cpus() == cpus
