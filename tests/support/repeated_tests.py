"""Chooses which long tests run of those that can be left out, as they repeat one thing often.

A plugin of pytest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from typing import Any

import pytest

COME_LAST = tuple(
    f"test_{name}.py"
    for name in (
        *("histories", "table_histories", "change_list", "intervals"),
        *("agreement", "networks", "moments", "tiles", "ranking", "calibration", "browser"),
        *("images_metric", "run_logs", "lake_tables", "own_network_example", "sample_photos"),
        *("scale", "benchmarks", "notebooks", "experiments", "drift_experiment"),
    )
)
"""The files whose long tests repeat one thing very often, or try one network, table or tool after
another, or run what is beside the product: its model, benchmarks, notebooks and studies. None of
them tests what becomes of an image where something dies. Where time is short, they come last, in
this order."""

SECONDS = "VDNA_TEST_SECONDS"
"""Names how many seconds after the start of a run such tests may begin."""

_BEGAN = time.monotonic()


def chosen(seeds: Sequence[int]) -> Sequence[int]:
    """Returns every second seed, or all if `VDNA_TEST_HISTORIES=all` asks for them.

    So each run of the soak stays short. Run all after a change to counting, planning or committing.
    """
    return seeds if all_are_asked_for() else seeds[::2]


def quick_seeds(seeds: Sequence[int], quick: Collection[int]) -> list[Any]:
    """Returns all seeds, of which `make test` runs the quick ones, and `make soak` the others."""
    unknown = set(quick).difference(seeds)
    if unknown:
        raise ValueError(f"the quick seeds {sorted(unknown)} are none of the seeds")
    soak = pytest.mark.soak
    return [seed if seed in quick else pytest.param(seed, marks=soak) for seed in seeds]


def all_are_asked_for() -> bool:
    """Tells whether all are to run, however long that takes."""
    return os.environ.get("VDNA_TEST_HISTORIES") == "all"


def time_is_short() -> bool:
    """Tells whether only as many of these tests run as some time allows."""
    return SECONDS in os.environ and not all_are_asked_for()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves a test out if it can be left out, and the time for such tests is over."""
    if not time_is_short() or not can_be_left_out(item):
        return
    seconds = float(os.environ[SECONDS])
    if item.path.name not in COME_LAST:
        seconds /= 2  # other files, whose tests always run, may wait for the end of this one
    if time.monotonic() - _BEGAN > seconds:
        pytest.skip(f"the {seconds:g} s for tests like this one are over")


def can_be_left_out(item: pytest.Item) -> bool:
    """Tells by a test's marks and its file whether it is left out where there is no time for it."""
    marks = {mark.name for mark in item.iter_markers()}
    if "soak" not in marks or "essential" in marks:
        return False
    return "optional" in marks or item.path.name in COME_LAST
