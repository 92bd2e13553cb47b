"""Tests when a lease keeps another job from a shard, and when it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.counting import leases
from pipeline.counting.leases import (
    EXPIRY_SECONDS,
    RENEW_SECONDS,
    VANISHED,
    Holder,
    Lease,
    claim,
    gets_on,
    lease_uri,
    list_leases,
)
from pipeline.counting.processes import beginning_of
from pipeline.counting.stage_clock import add_spent
from pipeline.errors import SourceError, StorageError
from pipeline.storage import Stored, store_checks


@pytest.fixture
def work() -> str:
    return f"memory://{uuid.uuid4().hex}/_work/photos/spec"


ELSEWHERE = Holder("other", "elsewhere", "another machine", 1, "2", "3")


def put(work: str, holder: Holder | bytes, number: int = 1) -> None:
    data = json.dumps(asdict(holder)).encode() if isinstance(holder, Holder) else holder
    assert storage.create(lease_uri(work, "key", number), data)


def claimed(work: str, job: str = "mine") -> Lease:
    found = claim(work, "key", job)
    assert isinstance(found, Lease)
    return found


def is_held(work: str, job: str = "mine") -> bool:
    return isinstance(claim(work, "key", job), Holder)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Lets a test set how far the store's clock is ahead of this machine's, by its one item."""
    info, ahead = storage.info, [0.0]

    def shifted(uri: str) -> Stored:
        found = info(uri)
        assert found.modified is not None
        shift = ahead[0] if "probe" in uri else 0.0
        return found._replace(modified=found.modified + timedelta(seconds=shift))

    monkeypatch.setattr(store_checks, "info", shifted)
    return ahead


def test_a_shard_is_another_job_s_until_its_lease_is_released(work: str) -> None:
    first = claimed(work)
    assert first.number == 1
    with first.renewed(1800):
        assert is_held(work, "other")
        assert list(list_leases(work)) == ["key"]
    assert claimed(work, "other").number == 1


def test_a_lease_is_released_whatever_ends_the_shard(work: str) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(work).renewed(1800):
        raise KeyboardInterrupt
    assert list_leases(work) == {}


def test_a_job_does_not_wait_for_itself(work: str) -> None:
    """Ray gives a shard to another worker if the first has died, perhaps on another machine."""
    put(work, replace(ELSEWHERE, job="mine"))
    assert claimed(work).number == 2


def test_a_lease_holds_until_it_is_over_by_the_store_s_clock(
    work: str, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(work, ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # that of this machine decides nothing
    clock[0] = EXPIRY_SECONDS - 5
    assert is_held(work)
    clock[0] = EXPIRY_SECONDS + 1
    assert claimed(work).number == 2
    clock[0] = 0
    assert is_held(work, "third")


def test_who_takes_over_learns_what_those_before_have_noted(work: str) -> None:
    put(work, replace(ELSEWHERE, job="mine"))
    put(work, b"no note", 2)
    found = claim(work, "key", "", {"node": "n"})
    assert isinstance(found, Lease)
    assert found.before == (asdict(replace(ELSEWHERE, job="mine")), {})
    assert found.note["node"] == "n"
    found.forget_dead()
    assert [item.uri for item in list_leases(work)["key"]] == [lease_uri(work, "key", 3)]


def test_a_renewal_is_seen_in_a_listing_of_a_real_store(root: str) -> None:
    """By the content of the lease, and by the store's time, which has whole seconds at least."""
    lease = claimed(root)
    (first,) = list_leases(root)["key"]
    time.sleep(1.1)
    lease.renew(1)
    (second,) = list_leases(root)["key"]
    assert first.modified is not None
    assert second.modified is not None
    assert second.modified > first.modified
    assert second.identity != first.identity
    assert is_held(root, "other")
    ahead = storage.clock(root) - second.modified  # in whole seconds, and by the listing not
    assert timedelta(seconds=-1) < ahead < timedelta(seconds=30)


def test_whoever_takes_a_shard_without_a_claim_asks_nobody(work: str) -> None:
    put(work, ELSEWHERE)
    assert claimed(work, "").number == 2


def test_a_store_that_tells_no_time_leaves_the_shard_to_its_holder(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(work, ELSEWHERE)
    info = storage.info
    monkeypatch.setattr(storage, "info", lambda uri: info(uri)._replace(modified=None))
    assert is_held(work)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"job": "a", "pid": "x"}', b"\xff"])
def test_a_lease_of_another_kind_holds_as_long_as_any(
    work: str, clock: list[float], data: bytes
) -> None:
    put(work, data)
    assert is_held(work)
    clock[0] = EXPIRY_SECONDS + 1
    assert claimed(work).number == 2


def test_a_lease_that_is_removed_at_that_moment_is_claimed_by_its_number(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two jobs could count the shard, one by each number."""
    read = storage.read
    put(work, ELSEWHERE)

    def too_late(uri: str) -> bytes:
        storage.delete(uri)
        return read(uri)

    monkeypatch.setattr(storage, "read", too_late)
    assert claimed(work).number == 1


def test_a_store_in_which_a_lease_is_and_is_not_keeps_nobody_for_ever(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(work, ELSEWHERE)
    tries: list[str] = []

    def gone(uri: str) -> bytes:
        tries.append(uri)
        raise SourceError(f"{uri} does not exist")

    monkeypatch.setattr(storage, "read", gone)
    assert claimed(work).number == 2
    assert len(tries) == VANISHED


# Processes of this machine.


def process(*argv: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from pipeline.counting.leases import claim;"
        "print(claim(sys.argv[1], 'key', 'other').number, flush=True); sys.stdin.read()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="only Linux tells of processes")
def test_a_process_of_this_machine_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    work = tmp_path.as_uri()
    with process(work) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert is_held(work)
        other.kill()
        deadline = time.monotonic() + 30
        while is_held(work) and time.monotonic() < deadline:  # a zombie until it is waited for
            time.sleep(0.01)
        assert time.monotonic() < deadline


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="only Linux tells of processes")
def test_only_a_process_of_this_machine_with_that_number_and_age_counts_as_gone() -> None:
    here = Holder.here("other")
    gone = replace(here, pid=2**22 + 1)  # above the greatest number that Linux gives
    assert gone.is_gone
    assert not replace(gone, host="elsewhere").is_gone
    assert not replace(gone, machine="another container").is_gone
    assert not replace(gone, machine="").is_gone
    assert not replace(gone, pid=0).is_gone
    parent = replace(here, pid=os.getppid(), began=beginning_of(os.getppid()))
    assert not parent.is_gone
    assert replace(parent, began="1").is_gone, "its number was given to another process"


def test_this_process_holds_what_it_has_not_released(work: str) -> None:
    """As after an interrupted build of a notebook, whose lease could not be removed."""
    lease = claimed(work, "other")
    assert is_held(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "delete", lambda uri: None)
        with lease.renewed(1800):
            assert is_held(work)
    assert list_leases(work) != {}
    assert claimed(work).number == 2


def test_a_claim_that_fails_holds_nothing(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, data: bytes) -> bool:
        raise StorageError("no")

    before = set(leases._held)
    put(work, ELSEWHERE)
    assert is_held(work)
    monkeypatch.setattr(storage, "create", refuse)
    with pytest.raises(StorageError):
        claim(work, "key", "mine")
    assert leases._held == before


# Renewal.


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)


def wait_for_renewals(written: list[bytes], number: int) -> None:
    deadline = time.monotonic() + 30
    while len(written) < number and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.usefixtures("hasty")
def test_a_lease_is_renewed_with_other_bytes_until_it_is_released(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    replace_object = storage.replace

    def spy(uri: str, data: bytes) -> None:
        replace_object(uri, data)
        written.append(data)

    monkeypatch.setattr(storage, "replace", spy)
    lease = claimed(work)
    with lease.renewed(1800):
        wait_for_renewals(written, 3)
    number = len(written)
    assert number >= 3
    assert len(set(written)) == number
    notes = [json.loads(data) for data in written]
    assert [note.pop("renewals") for note in notes] == list(range(1, number + 1))
    assert [note.pop("spent") for note in notes] == [0] * number
    assert all(note == lease.note for note in notes)
    assert "lease" not in [thread.name for thread in threading.enumerate()]
    assert list_leases(work) == {}


@pytest.mark.usefixtures("hasty")
def test_a_worker_that_hangs_renews_its_lease_no_longer_than_it_may(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(storage, "replace", lambda uri, data: written.append(data))
    with claimed(work).renewed(0.05):
        wait_for_renewals(written, 5)
        time.sleep(0.05)
    assert len(written) == 5


@pytest.mark.usefixtures("hasty")
def test_a_worker_that_gets_on_renews_its_lease_as_long_as_it_does(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(storage, "replace", lambda uri, data: written.append(data))
    with claimed(work).renewed(0.03):
        for at in range(1, 21):
            add_spent({"network": 1.0})
            wait_for_renewals(written, at)
        wait_for_renewals(written, len(written) + 1)  # it may have begun before the last work
        wait_for_renewals(written, len(written) + 1)
    assert len(written) >= 20
    assert json.loads(written[-1])["spent"] >= 20 - 1e-6


def test_a_job_gets_on_if_a_lease_of_its_own_is_renewed_and_work_was_done(
    work: str, clock: list[float]
) -> None:
    lease = claimed(work)
    assert not gets_on(work, "mine"), "no work was done yet"
    lease.renew(1)
    assert not gets_on(work, "mine"), "a worker that loads a network may be about to crash"
    lease.renew(2, 0.5)
    assert gets_on(work, "mine")
    assert not gets_on(work, "other")
    clock[0] = EXPIRY_SECONDS + 1
    assert not gets_on(work, "mine")


@pytest.mark.usefixtures("hasty")
def test_a_renewal_that_fails_is_told_and_does_not_end_the_shard(
    work: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[bytes] = []

    def refuse(uri: str, data: bytes) -> None:
        tried.append(data)
        raise StorageError("access denied")

    monkeypatch.setattr(storage, "replace", refuse)
    with claimed(work).renewed(1800):
        wait_for_renewals(tried, 2)
    assert "could not be renewed: access denied" in caplog.text


def test_a_lease_outlasts_some_lost_renewals() -> None:
    assert EXPIRY_SECONDS >= 4 * RENEW_SECONDS
