"""Tests how a job that waits for another's shards tells which of them it may take over."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Set
from dataclasses import asdict

import pytest

from pipeline import storage
from pipeline.building.waiting import MARGIN_SECONDS, Found, SharedShards
from pipeline.counting import EXPIRY_SECONDS, Holder
from pipeline.counting.leases import lease_uri
from pipeline.counting.processes import beginning_of, this_machine

OVER = EXPIRY_SECONDS + 2 * MARGIN_SECONDS


@pytest.fixture
def work() -> str:
    return f"memory://{uuid.uuid4().hex}/_work/photos/spec"


def put(work: str, number: int, job: str) -> None:
    write(work, number, Holder(job, "elsewhere", "another machine", 1, "2", "3"))


def write(work: str, number: int, holder: Holder) -> None:
    storage.replace(lease_uri(work, "key", number), json.dumps(asdict(holder)).encode())


def none() -> Set[str]:
    return set()


def looks(shared: SharedShards, work: str, now: float) -> Found:
    """Looks at the only shard, and holds it again if it was handed out."""
    found = shared.look(work, none, now)
    if found != Found():
        shared.hold(work, "key", (0, 0))
    return found


def test_a_shard_that_a_worker_refused_is_taken_without_a_claim(work: str) -> None:
    """The worker judges by the store's clock, which may be wrong."""
    put(work, 1, "dead")
    shared = SharedShards("mine")
    shared.hold(work, "key", (0, 0))
    assert looks(shared, work, 0.0) == Found()
    assert looks(shared, work, OVER) == Found(free=((0, 0),))
    assert looks(shared, work, OVER + 1) == Found(unclaimed=((0, 0),))


def test_a_shard_that_another_job_had_meanwhile_was_refused_by_nobody(work: str) -> None:
    put(work, 1, "dead")
    shared = SharedShards("mine")
    shared.hold(work, "key", (0, 0))
    looks(shared, work, 0.0)
    assert looks(shared, work, OVER) == Found(free=((0, 0),))
    put(work, 2, "quicker")
    assert looks(shared, work, OVER + 1) == Found()
    storage.delete(lease_uri(work, "key", 2))  # it failed
    assert looks(shared, work, OVER + 2) == Found(free=((0, 0),))


def test_a_lease_that_another_process_holds_by_now_is_not_over_with_the_first_one(
    work: str,
) -> None:
    """Both are of this machine. The first one gave the shard up between two looks, and ended."""
    process = subprocess.Popen(["sleep", "60"])
    first = Holder("theirs", *this_machine(), process.pid, beginning_of(process.pid), "a")
    write(work, 1, first)
    shared = SharedShards("mine")
    shared.hold(work, "key", (0, 0))
    assert looks(shared, work, 0.0) == Found()
    process.kill()
    process.wait()
    parent = os.getppid()
    write(work, 1, Holder("theirs", *this_machine(), parent, beginning_of(parent), "b"))
    assert looks(shared, work, 1.0) == Found()
    write(work, 1, first)
    assert looks(shared, work, 2.0) == Found(), "the new holder is alive, and is not asked again"
    assert looks(shared, work, 2.0 + OVER) == Found(free=((0, 0),))


def test_a_shard_that_is_stored_is_not_handed_out(work: str) -> None:
    shared = SharedShards("mine")
    shared.hold(work, "key", (0, 7))
    assert shared.look(work, lambda: {"key"}, 0.0) == Found(stored=((0, 7),))
    assert shared.held == {}


def test_a_shard_of_several_jobs_is_told_to_each(work: str) -> None:
    """An erasure has several jobs of one work folder."""
    shared = SharedShards("mine")
    shared.hold(work, "key", (0, 7))
    shared.hold(work, "key", (1, 2))
    shared.hold(work, "other", (1, 3))
    found = shared.look(work, lambda: {"key"}, 0.0)
    assert found == Found(stored=((0, 7), (1, 2)), free=((1, 3),))
