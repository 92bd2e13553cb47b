"""Tests how the death of a process by an image is told from one with its machine."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.counting import Note, processes
from pipeline.counting.deaths import (
    MOST_CRASHES,
    MOST_DEATHS,
    ThisMachine,
    crashed,
    die_of_images,
    ends_processes,
    name_of,
)
from pipeline.counting.processes import beginning_of, has_ended, this_machine
from pipeline.engine import ray_nodes
from pipeline.engine.ray_nodes import RayHome


class Told:
    """A home that knows what the notes say."""

    label: ClassVar = {"home": "told"}

    def saw_crash(self, note: Note) -> bool:
        return note == {"died": "alone"}


@given(st.lists(st.sampled_from([{"died": "alone"}, {"died": "with its machine"}, {}])))
def test_crashes_count_at_once_and_lost_machines_only_when_there_are_many(
    notes: list[Note],
) -> None:
    crashes = notes.count({"died": "alone"})
    suspected = crashes >= MOST_CRASHES or len(notes) >= MOST_DEATHS
    assert crashed(notes, Told()) == [{"died": "alone"}] * crashes
    assert die_of_images(crashes, len(notes)) == suspected
    if ends_processes(crashes, len(notes)):
        assert suspected


def test_a_shard_is_given_up_after_some_crashes_or_very_many_deaths() -> None:
    """Nodes that are taken away end the same shard now and then."""
    assert [ends_processes(n, n) for n in range(7)] == [False] * 5 + [True] * 2
    assert not ends_processes(0, 3 * MOST_DEATHS)
    assert ends_processes(0, 16)


def note_of(pid: int, began: str = "") -> dict[str, object]:
    """Returns what a note of a process of this machine says."""
    host, machine = this_machine()
    return {"host": host, "machine": machine, "pid": pid, "began": began or beginning_of(pid)}


def test_a_machine_knows_of_its_own_processes_since_its_boot_alone() -> None:
    home = ThisMachine()
    process = subprocess.Popen(["sleep", "60"])
    note = note_of(process.pid)
    assert not home.saw_crash(note)
    assert home.saw_crash(note | {"began": "earlier"}), "another process has its number"
    process.kill()
    process.wait()
    assert home.saw_crash(note)
    assert name_of(note) == f"process {process.pid} on {this_machine()[0]}"
    assert not home.saw_crash(note_of(os.getpid()))
    assert not home.saw_crash(note | {"machine": "another boot"})
    assert not home.saw_crash(note | {"host": "elsewhere"})
    assert not home.saw_crash(note | {"pid": "?"})
    assert not home.saw_crash({})


def test_a_process_that_has_ended_and_is_not_reaped_has_ended() -> None:
    process = subprocess.Popen(["true"])
    began = beginning_of(process.pid)
    while (found := processes._state_of(process.pid)) and found[0] != "Z":
        time.sleep(0.01)
    assert has_ended(process.pid, began)
    process.wait()


@pytest.mark.parametrize("answer", [PermissionError, None])
def test_a_process_that_is_hidden_lives_unless_there_is_none(
    monkeypatch: pytest.MonkeyPatch, answer: type[OSError] | None
) -> None:
    """As /proc hides the processes of other users on some machines."""

    def kill(pid: int, number: int) -> None:
        if answer is not None:
            raise answer

    note = note_of(os.getpid())
    monkeypatch.setattr(processes, "_state_of", lambda pid: None)
    with monkeypatch.context() as patch:
        patch.setattr(processes.os, "kill", kill)
        assert not has_ended(1, "then")
        assert not ThisMachine().saw_crash(note)
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert has_ended(gone.pid, "then")


def test_an_actor_of_the_same_pool_crashed_only_if_its_node_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def node(name: str, alive: bool) -> dict[str, Any]:
        return {"NodeID": name, "Alive": alive}

    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: [node("a", True), node("b", False)])
    home = RayHome("mine")
    assert home.saw_crash({"pool": "mine", "node": "a"})
    assert not home.saw_crash({"pool": "mine", "node": "b"}), "its node was lost"
    assert not home.saw_crash({"pool": "mine", "node": "c"}), "nobody knows the node"
    assert not home.saw_crash({"pool": "other", "node": "a"}), "its pool may have ended it"
    note = note_of(os.getpid()) | {"pool": "mine", "node": "a"}
    assert not home.saw_crash(note), "Ray gave the shard to a process again that has it"
    assert home.saw_crash(note | {"began": "earlier"}), "another process has its number"
    assert home.saw_crash(note | {"machine": "another boot"}), "nobody can tell here"
    assert not home.saw_crash({})
