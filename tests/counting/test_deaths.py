"""Tests how the death of a process by an image is told from one with its machine."""

from __future__ import annotations

import os
import subprocess
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.counting import Note, deaths
from pipeline.counting.deaths import MOST_CRASHES, MOST_DEATHS, ThisMachine, die_of_images
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
    assert die_of_images(iter(notes), Told()) == suspected


def test_a_machine_knows_of_its_own_processes_since_its_boot_alone() -> None:
    home = ThisMachine()
    ended = subprocess.Popen(["true"])
    ended.wait()
    note = home.label | {"pid": ended.pid}
    assert home.saw_crash(note)
    assert not home.saw_crash(note | {"pid": os.getpid()})
    assert not home.saw_crash(note | {"boot": "another"})
    assert not home.saw_crash(note | {"host": "elsewhere"})
    assert not home.saw_crash({})


def test_the_process_of_another_user_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(deaths.os, "kill", refused)
    assert not ThisMachine().saw_crash(ThisMachine().label | {"pid": 1})


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
    assert not home.saw_crash({})
