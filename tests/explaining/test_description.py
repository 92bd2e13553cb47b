"""Tests the command that is asked what images have in common: its protocol, and how it fails."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest
from PIL import Image

from pipeline.errors import NotFound, UsageError
from pipeline.events import Event, Said, ignore
from pipeline.explaining import Explanation, NeuronGroup, TellingImage, description
from pipeline.explaining.description import (
    MOST_DESCRIBED,
    MOST_FAILED,
    SIDE_SHOWN,
    answer_of,
    command_words,
    describe_groups,
)
from pipeline.explaining.histogram_overlay import Overlay
from pipeline.explaining.parting import Parting

PYTHON = [sys.executable, "-c"]


class Reader:
    """Stands for a reader of images: each is of one colour, and one is gone."""

    def read(self, uri: str, member: str) -> Image.Image:
        if "gone" in uri:
            raise NotFound("it is gone")
        return Image.new("RGB", (1200, 600), "red")


def image(uri: str) -> TellingImage:
    return TellingImage(uri, "", 0.5, 0.5, reader=Reader())  # type: ignore[arg-type]


def explanation(
    groups: int, uris: Sequence[str] = ("s3://b/one.jpg", "s3://b/gone.jpg")
) -> Explanation:
    of = NeuronGroup(
        "objects",
        0,
        "thing",
        7,
        (),
        Overlay(0.0, 1.0, (999,), (999,), 1.0),
        Parting(1.5, (0.25, 0.75)),
        images=((image("s3://b/one.jpg"), image("s3://b/gone.jpg")), (image("s3://b/two.jpg"),)),
    )
    return Explanation(
        {"a": None, "b; rm -rf $HOME": None}, "uniform", None, None, (), groups=(of,) * groups
    )  # type: ignore[dict-item, arg-type]


def command(code: str) -> str:
    return shlex.join([*PYTHON, code])


def test_the_command_reads_json_and_image_files_and_says_something(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    code = f"""if True:
        import json, sys
        from PIL import Image
        question = json.load(sys.stdin)
        paths = [path for side in "ab" for path in question["images"][side]]
        question["sizes"] = [Image.open(path).size for path in paths]
        open({str(told)!r}, "w").write(json.dumps(question))
        print("red", "and   <b>bold</b>", chr(27) + "[2J")
    """
    found = describe_groups(explanation(1), command(code), ignore)
    assert found.groups[0].description == "red and <b>bold</b> \\x1b[2J"
    assert found.groups[0].failure == ""
    question = json.loads(told.read_text())
    paths = [path for side in "ab" for path in question["images"].pop(side)]
    assert question.pop("sizes") == [[SIDE_SHOWN, SIDE_SHOWN // 2]] * 2  # one image is gone
    assert not any(map(os.path.exists, paths))
    assert question == {
        "a": "a",
        "b": "b; rm -rf $HOME",
        "stage": "objects",
        "layer": "thing",
        "neuron": 7,
        "value": 1.5,
        "above": {"a": 0.25, "b": 0.75},
        "images": {},
    }


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    """What a shell would obey is an argument like others."""
    evil = (
        f"; touch {tmp_path / 'hurt'} && $(touch {tmp_path / 'hurt'}) | cat > {tmp_path / 'hurt'}"
    )
    words = command_words(f"{command('import sys; print(sys.argv[1:])')} {evil}")
    said = answer_of(words, b"{}")
    assert ";" in said
    assert "&&" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "import sys; sys.stderr.write('early\\nno model is here\\n'); sys.exit(3)",
            "it ended with status 3: no model is here",
        ),
        ("import os; os.kill(os.getpid(), 9)", "it ended with status -9"),
        ("pass", "it wrote nothing"),
        ("print('x' * 200_000)", "it wrote more than 100,000 bytes"),
    ],
)
def test_a_command_that_fails_is_named_with_the_group(code: str, why: str) -> None:
    events: list[Event] = []
    found = describe_groups(explanation(1), command(code), events.append)
    assert (found.groups[0].description, found.groups[0].failure) == ("", why)
    assert Said(f"thing[7] has no description: {why}") in events


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    """The child holds the output open, so that waiting for its end would never end."""
    child = tmp_path / "child"
    code = f"""if True:
        import subprocess, sys, time
        inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(child)!r}, "w").write(str(inner.pid))
        time.sleep(600)
    """
    with pytest.raises(ValueError, match=r"it took longer than 3 seconds"):
        answer_of([*PYTHON, code], b"{}", seconds=3)
    until = monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):  # it may be gone, or still about to go
        while psutil.Process(int(child.read_text())).status() != psutil.STATUS_ZOMBIE:
            assert monotonic() < until
            sleep(0.05)


def test_a_long_description_is_cut() -> None:
    said = answer_of([*PYTHON, "print('é' * 5000)"], b"{}")
    assert said == "é" * (MOST_DESCRIBED - 1) + "…"


def test_after_some_failures_no_further_group_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def answer(words: Sequence[str], question: bytes) -> str:
        asked.append(question)
        raise ValueError("it is away")

    monkeypatch.setattr(description, "answer_of", answer)
    found = describe_groups(explanation(MOST_FAILED + 2), command("pass"), ignore)
    assert len(asked) == MOST_FAILED
    said = [group.failure for group in found.groups]
    assert said[:MOST_FAILED] == ["it is away"] * MOST_FAILED
    assert said[MOST_FAILED:] == [f"not asked: the command failed {MOST_FAILED} times before"] * 2


def test_a_group_without_images_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "answer_of", lambda *_: pytest.fail("it was asked"))
    bare = explanation(1)
    bare = replace(bare, groups=(replace(bare.groups[0], images=((), ())),))
    assert describe_groups(bare, command("pass"), ignore).groups == bare.groups


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no-such-program-is-here --x", "names no program that can be run here"),
        ("", "names no program"),
        ("say 'it", "cannot be split into words: No closing quotation"),
    ],
)
def test_a_wrong_command_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        command_words(text)
