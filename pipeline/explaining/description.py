"""Asks a command of the user's own what the images of an explanation have in common.

    >>> describe_groups(found, "python say.py", ignore)       # doctest: +SKIP

No model that describes images comes with this package. A user who has one names a command, which
runs once for each group of neurons. It reads one JSON object from its standard input:

    {"a": "sunny", "b": "rainy", "stage": "objects", "layer": "blocks.6.0", "neuron": 12,
     "value": 1.8, "above": {"a": 0.62, "b": 0.2},
     "images": {"a": ["/tmp/…/0-a-0.jpg", …], "b": ["/tmp/…/0-b-0.jpg", …]}}

The images are JPEG files of at most `SIDE_SHOWN` pixels, which are removed when the last command
has ended. What the command writes on its standard output, UTF-8, is the description. It is run
without a shell, in a process group of its own, which is killed after `DESCRIBE_SECONDS`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer

from pipeline.errors import UsageError, VdnaError, printable
from pipeline.events import Listener, Said, Started, StepDone, stage
from pipeline.explaining.explanation import Explanation
from pipeline.explaining.neuron_groups import NeuronGroup
from pipeline.explaining.reactions import NamedImage
from pipeline.wording import option

DESCRIBE_SECONDS = 120.0
"""The time limit of a command."""

MOST_DESCRIBED = 600
"""The most characters of a description; what comes after them is cut off."""

MOST_WRITTEN = 100_000
"""The most bytes that a command may write. One that writes more is ended."""

SIDE_SHOWN = 512
"""The longer side of the images that a command is given, in pixels."""

MOST_FAILED = 3
"""After so many failures, one after another, the command is not asked about further neurons."""


def describe_groups(found: Explanation, command: str, progress: Listener) -> Explanation:
    """Adds a description to each group that has images.

    That a command fails, or takes too long, is noted with the group; nothing is raised for it.

    Args:
        found: The explanation.
        command: The command and its arguments, split as a POSIX shell splits words.
        progress: Is told of each group.

    Returns:
        The explanation with descriptions.

    Raises:
        UsageError: The command cannot be split, or there is no such program.
    """
    words = command_words(command)
    groups, failed = list(found.groups), 0
    with (
        tempfile.TemporaryDirectory(prefix="vdna-describe-") as folder,
        stage(progress, Started(len(groups), len(groups), unit="neurons", step="neurons")),
    ):
        for at, group in enumerate(groups):
            if failed >= MOST_FAILED:
                said = f"not asked: the command failed {MOST_FAILED} times before"
                groups[at] = replace(group, failure=said)
                continue
            images = {
                side: _written(of, Path(folder), f"{at}-{side}")
                for side, of in zip("ab", _images(group), strict=True)
            }
            if any(images.values()):
                groups[at] = _described(words, group, _question(found, group, images))
                failed = failed + 1 if groups[at].failure else 0
                if groups[at].failure:
                    progress(Said(f"{group.name} has no description: {groups[at].failure}"))
            progress(StepDone(1, name=group.name))
    return replace(found, groups=tuple(groups))


def command_words(command: str) -> list[str]:
    """Splits a command into words, and checks that its program exists.

    Args:
        command: The command.

    Returns:
        The program's path, and its arguments.

    Raises:
        UsageError: It cannot be split, or there is no such program.
    """
    named = option("describe", command)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{named} cannot be split into words: {error}") from error
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise UsageError(f"{named} names no program that can be run here")
    return [program, *words[1:]]


def _images(group: NeuronGroup) -> tuple[Sequence[NamedImage], Sequence[NamedImage]]:
    if group.images is not None:
        return group.images
    a, b = group.exemplars
    return a or (), b or ()


def _written(images: Sequence[NamedImage], folder: Path, name: str) -> list[str]:
    """Writes images as files, and returns their paths. One that cannot be read is left out."""
    paths = []
    for at, of in enumerate(images):
        try:
            image = of.image()
        except (VdnaError, OSError):
            continue
        image.thumbnail((SIDE_SHOWN, SIDE_SHOWN))
        path = folder / f"{name}-{at}.jpg"
        image.save(path, quality=90)
        paths.append(str(path))
    return paths


def _question(found: Explanation, group: NeuronGroup, images: dict[str, list[str]]) -> bytes:
    a, b = found.versions
    question = {
        "a": a,
        "b": b,
        "stage": group.stage,
        "layer": group.layer,
        "neuron": group.neuron,
        "value": group.parting.value,
        "above": dict(zip("ab", group.parting.above, strict=True)),
        "images": images,
    }
    return json.dumps(question).encode()


def _described(words: Sequence[str], group: NeuronGroup, question: bytes) -> NeuronGroup:
    try:
        said = answer_of(words, question)
    except (OSError, ValueError) as error:
        return replace(group, failure=str(error))
    return replace(group, description=said) if said else replace(group, failure="it wrote nothing")


def answer_of(words: Sequence[str], question: bytes, seconds: float = DESCRIBE_SECONDS) -> str:
    """Runs a command, and returns what it says.

    Args:
        words: The program and its arguments.
        question: What the command reads.
        seconds: The time limit.

    Returns:
        At most `MOST_DESCRIBED` characters, without those that command a terminal.

    Raises:
        ValueError: The command failed, took too long or wrote too much.
        OSError: It cannot be run.
    """
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as complaints:
        asked.write(question)
        asked.seek(0)
        with subprocess.Popen(
            words, stdin=asked, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
        ) as process:
            late = Event()

            def end_late() -> None:
                late.set()
                _end(process)

            timer = Timer(seconds, end_late)
            timer.start()
            try:
                written = process.stdout.read(MOST_WRITTEN + 1) if process.stdout else b""
                if len(written) > MOST_WRITTEN:
                    raise ValueError(f"it wrote more than {MOST_WRITTEN:,} bytes")
                status = process.wait()
            except BaseException:
                _end(process)
                raise
            finally:
                timer.cancel()
        if late.is_set():
            raise ValueError(f"it took longer than {seconds:g} seconds")
        if status:
            complaints.seek(0)
            lines = _text(complaints.read(MOST_WRITTEN)).splitlines()
            why = f": {lines[-1]}" if lines else ""
            raise ValueError(f"it ended with status {status}{why}"[:MOST_DESCRIBED])
    said = " ".join(_text(written).split())
    return said if len(said) <= MOST_DESCRIBED else f"{said[: MOST_DESCRIBED - 1]}…"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills a command with all processes that it has started, if any of them still runs."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _text(data: bytes) -> str:
    """Decodes what a command wrote, line by line without what would command a terminal."""
    lines = data.decode("utf-8", "replace").splitlines()
    return "\n".join(line for line in map(printable, map(str.strip, lines)) if line)
