"""Tests how commands become jobs: their ids, their shell lines, what they print, how they end."""

from __future__ import annotations

import doctest
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import job_server
from pipeline.engine.job_server import (
    JobState,
    Submission,
    SubmittedJob,
    followed,
    is_ours,
    named_job,
    shell_line,
    submit_once,
    wait_for_end,
)
from pipeline.errors import Conflict, TransientError
from tests.support.memory_jobs import MemoryJobs

BUILD = Submission(("build", "a", "s3://images"))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "POLL_SECONDS", 0.0)


def test_the_examples_of_the_docstring_hold() -> None:
    assert doctest.testmod(job_server).failed == 0


def test_each_attempt_has_the_next_number_and_another_command_its_own() -> None:
    server = MemoryJobs()
    ids = [submit_once(server, BUILD) for _ in range(11)]
    name = named_job(BUILD)
    assert ids == [f"{name}-{n}" for n in range(1, 12)]
    assert all(map(is_ours, ids))
    assert submit_once(server, Submission(("build", "b", "s3://images"))).endswith("-1")
    del server.known[ids[3]]  # a cluster forgets
    assert submit_once(server, BUILD) == f"{name}-12"


def test_another_folder_variable_or_template_is_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MemoryJobs()
    server.ends = None
    monkeypatch.chdir(tmp_path)
    ids = [submit_once(server, BUILD)]
    others: tuple[dict[str, Any], ...] = (
        {"working_dir": "."},
        {"working_dir": "s3://folder"},
        {"environment": {"A": "1", "B": "2"}},
        {"environment": {"A": "1"}, "working_dir": "."},
        {"environment": {"A": "2"}},
    )
    ids += [submit_once(server, replace(BUILD, **more)) for more in others]
    server.template = {"spec": {"image": 1}, "metadata": {}}
    ids.append(submit_once(server, BUILD))
    assert len({id.removesuffix("-1") for id in ids}) == 7
    server.template = {"metadata": {}, "spec": {"image": 1}}
    with pytest.raises(Conflict, match="does just this"):
        submit_once(server, BUILD)
    server.template = None
    again: tuple[dict[str, Any], ...] = (
        {"working_dir": str(tmp_path)},
        {"environment": {"B": "2", "A": "1"}},
    )
    for same in again:
        with pytest.raises(Conflict, match="does just this"):
            submit_once(server, replace(BUILD, **same))


@pytest.mark.parametrize("id", ["raysubmit_4LamXR", "vdna-build-1", "my-vdna-build-00000000-1"])
def test_jobs_of_others_are_not_ours(id: str) -> None:
    assert not is_ours(id)


def test_a_command_that_runs_is_not_submitted_again() -> None:
    server = MemoryJobs()
    server.ends = None
    first = submit_once(server, BUILD)
    with pytest.raises(Conflict, match=f"{first} is running and does just this; .vdna logs"):
        submit_once(server, BUILD)
    server.end(first, "failed", 1)
    assert submit_once(server, BUILD) == f"{first[:-1]}2"


def test_of_two_who_submit_at_once_one_is_refused() -> None:
    """The other takes the id between the look at the jobs and the submission."""
    server = MemoryJobs()
    server.ends = None
    looks = server.jobs

    def late() -> list[SubmittedJob]:
        seen = looks()
        if not seen:
            server.submit(f"{named_job(BUILD)}-1", BUILD)
        return seen

    server.jobs = late  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="-1 is running"):
        submit_once(server, BUILD)
    assert len(server.known) == 1


# The shell line

WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=6)
ECHO = f"{shlex.quote(sys.executable)} -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))'"


@settings(max_examples=25)
@given(WORDS)
def test_words_survive_the_shells_of_ray_and_of_kuberay(words: list[str]) -> None:
    """Ray's head runs the line by sh. KubeRay's submitter gives it to `ray job submit` by bash,
    which quotes the words again."""
    line = shell_line(["build", *words])
    shown = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert shown.stdout.decode().split("\0")[:-1] == ["vdna", *shlex.split(line)[1:]]
    assert shlex.split(line) == ["vdna", "build", "--ray-address", "auto", *words]
    again = subprocess.run(["bash", "-c", f"{ECHO} {line} ;"], capture_output=True, check=True)
    assert shlex.split(again.stdout.decode()) == shlex.split(line)


# What a job prints


class Breaking(MemoryJobs):
    """Its connections break after so many characters each, and then it ends."""

    def __init__(self, text: str, breaks: list[int]) -> None:
        super().__init__()
        self.ends = None
        self.id = submit_once(self, BUILD)
        self.printed[self.id] = text
        self.breaks = breaks

    def tail(self, id: str) -> tuple[str, Iterator[str]]:
        return "", self._texts(id)

    def _texts(self, id: str) -> Iterator[str]:
        text = self.log(id)
        if not self.breaks:
            yield from text
            if not self.job(id).has_ended:
                self.end(id, "succeeded", 0)
                self.printed[id] = f"{text}\nat last"
            return
        end = self.breaks.pop()
        yield from (text[at : min(at + 7, end)] for at in range(0, end, 7))
        raise TransientError("broken")


@given(st.text("ab\n", max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_each_line_comes_once_however_often_the_connection_breaks(
    text: str, breaks: list[int]
) -> None:
    server = Breaking(text, breaks)
    assert list(followed(server, server.id)) == f"{text}\nat last".split("\n")


def test_a_server_that_stays_silent_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "SILENT_SECONDS", 0.05)
    server = Breaking("a", [1] * 10**6)
    server.end(server.id, "succeeded", 0)
    told: list[str] = []
    assert list(followed(server, server.id, told.append)) == ["a"]  # it has ended: all may be known
    assert told == [
        f"{server.id} has ended, and the rest of what it printed cannot be read: broken"
    ]
    server.job = lambda id: (_ for _ in ()).throw(TransientError("gone"))  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="gone"):
        wait_for_end(server, server.id)
    with pytest.raises(TransientError, match="gone"):
        list(followed(server, server.id))


def test_a_server_that_answers_again_is_waited_for() -> None:
    server = MemoryJobs()
    id = submit_once(server, BUILD)
    answers = iter([TransientError("busy"), server.job(id)])

    def job(id: str) -> SubmittedJob:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server.job = job  # type: ignore[method-assign]
    assert wait_for_end(server, id).state == "succeeded"


def test_a_job_that_waits_says_why_once_for_each_reason() -> None:
    server = MemoryJobs()
    server.ends = None
    id = submit_once(server, BUILD)
    reasons = ["", *["no node"] * 3, "no quota", "no quota", "an image", ""]
    looks = iter([*(("waiting", reason) for reason in reasons), ("running", ""), ("succeeded", "")])

    def job(id: str) -> SubmittedJob:
        state, message = next(looks)
        return SubmittedJob(id, "vdna", cast(JobState, state), message=message)

    server.job = job  # type: ignore[method-assign]
    server.tail = lambda id: ("", iter(["12 images"]))  # type: ignore[method-assign]
    told: list[str] = []
    assert [*followed(server, id, told.append)] == ["12 images"]
    assert told == [f"{id} waits: no node", f"{id} waits: no quota"]


@pytest.mark.parametrize(
    ("state", "code", "exits"),
    [
        ("succeeded", 0, 0),
        *(("failed", code, code) for code in (1, 2, 3, 4)),
        ("failed", -9, 137),
        ("failed", None, 1),  # it never began
        ("failed", 0, 1),
        ("cancelled", None, 143),
        ("cancelled", -15, 143),
    ],
)
def test_the_exit_code_is_the_command_s_own(state: JobState, code: int | None, exits: int) -> None:
    assert SubmittedJob("x", "vdna", state, code=code).exit_code == exits
