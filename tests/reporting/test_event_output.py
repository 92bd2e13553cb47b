"""Tests stderr as JSON lines for machines or as text for people: events and log records."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.events import (
    Finished,
    LogFormat,
    PoolChanged,
    Retried,
    Said,
    ShardWork,
    Started,
    StepDone,
    StepFailed,
    Warned,
    about,
    stage,
)
from pipeline.reporting import event_output, show_progress
from pipeline.reporting import progress as progress_module
from tests.support.builders import write_photos
from tests.support.ray_commands import Small, ended, small, start

__all__ = ["small"]  # a fixture


def lines_of(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_text_goes_on_while_no_event_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real time, but little of it; what is printed when is tested with a clock of its own."""
    monkeypatch.setattr(event_output, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    out, enough = io.StringIO(), threading.Event()

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if "still at work" in text:
                enough.set()
            return out.write(text)

    with show_progress("text", Watched()) as progress:
        progress(Said("a: listing photos"))
        assert enough.wait(20)
    said = out.getvalue()
    assert "a: listing photos\n" in said  # on a busy machine, the first tick comes before it
    assert "tick" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_closed_output_does_not_end_the_job(
    log_format: LogFormat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(event_output, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    out = io.StringIO()
    with show_progress(log_format, out) as progress:
        out.close()
        progress(Said("listing"))
        logging.getLogger("pipeline.storage").warning("no answer")
        time.sleep(0.05)  # it ticks
    assert capsys.readouterr() == ("", "")


class DumbTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_terminal_that_cannot_redraw_gets_lines(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    out = DumbTerminal()
    with show_progress("text", out) as progress, stage(progress, Started(total=2, steps=1)):
        progress(StepDone(2))
    assert out.getvalue().startswith("2/2 images ") == (term == "dumb")
    assert ("\x1b" in out.getvalue()) == (term == "xterm")


WHILE_RAY_IS_SILENCED = """
import os, sys
from pipeline.engine.ray_start import without_stderr
from pipeline.events import Said
from pipeline.reporting import show_progress

with show_progress(sys.argv[1]) as progress:
    with without_stderr():
        progress(Said("of the job"))
        os.write(2, b"of Ray")
print("the end")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_job_says_comes_out_while_what_ray_writes_is_discarded(log_format: str) -> None:
    command = [sys.executable, "-c", WHILE_RAY_IS_SILENCED, log_format]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("of the job") == 1
    assert "of Ray" not in done.stderr


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_process_without_stderr_says_nothing_and_does_its_work(log_format: str) -> None:
    command = [sys.executable, "-c", WHILE_RAY_IS_SILENCED, log_format]
    closed = ["sh", "-c", '"$@" 2>&-', "sh", *command]
    done = subprocess.run(closed, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("the end\n", "")


def test_an_event_is_a_line_of_json_with_its_fields() -> None:
    out = io.StringIO()
    with show_progress("json", out) as progress:
        progress(Said("a: listing photos"))
        progress(Started(total=6, steps=2, present=14))
        work = ShardWork(2, {"corrupt": 1})
        progress(StepDone(3, 1, 0.5, "shard 0", 2, "cats", shard=0, work=work))
        progress(Finished())
    said, started, done, finished = lines_of(out)
    assert not {"job", "dataset", "shard"} & {*said, *started, *finished}
    for line in (said, started, done, finished):
        assert (line["level"], line["logger"]) == ("INFO", "pipeline.events")
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
    assert (said["event"], said["message"]) == ("Said", "a: listing photos")
    assert started["message"] == "14 shards are counted already, 2 are left"
    assert (started["event"], started["total"], started["unit"]) == ("Started", 6, "images")
    done = {name: value for name, value in done.items() if name not in ("time", "level", "logger")}
    assert done == {
        "event": "StepDone",
        "message": "StepDone",
        "units": 3,
        "failures": 1,
        "seconds": 0.5,
        "name": "shard 0",
        "ahead": 2,
        "dataset": "cats",
        "shard": 0,
        "work": {"images": 2, "reasons": {"corrupt": 1}, "reused": 0, "bytes": 0, "spent": {}},
    }
    assert (finished["event"], finished["ok"]) == ("Finished", True)


def test_each_line_of_json_says_what_it_is_about() -> None:
    """Events and log records of a thread alike, by the innermost block."""
    out = io.StringIO()
    with show_progress("json", out, job="build-1") as progress, about(dataset="cats"):
        progress(Said("listing"))
        with about(shard=0, dataset=""):
            logging.getLogger("pipeline.storage.retry").info("retrying")
        progress(StepFailed("shard 3", "no answer", dataset="dogs", shard=3))
    said, retried, failed = lines_of(out)
    assert {line["job"] for line in (said, retried, failed)} == {"build-1"}
    assert (said["dataset"], "shard" in said) == ("cats", False)
    assert (retried["dataset"], retried["shard"]) == ("cats", 0)
    assert (failed["dataset"], failed["shard"]) == ("dogs", 3)


def test_a_step_that_fails_is_a_warning_in_json() -> None:
    out = io.StringIO()
    with show_progress("json", out) as progress:
        progress(StepFailed("shard 3", "TransientError: no answer"))
        progress(Retried(1, 2))
        progress(Warned("a node was lost"))
        progress(PoolChanged(0, 8, "4 CPUs", 3600))
    failed, retried, warned, waits = lines_of(out)
    assert failed["level"] == retried["level"] == warned["level"] == "WARNING"
    assert (waits["event"], waits["level"], waits["workers"]) == ("PoolChanged", "INFO", 0)
    assert warned["message"] == "a node was lost"
    assert (failed["name"], failed["error"]) == ("shard 3", "TransientError: no answer")
    assert (retried["steps"], retried["attempt"]) == (1, 2)


@dataclass(frozen=True)
class Refused:
    """An event of texts at any depth, and of a value that is none."""

    urls: list[str]
    places: dict[str, str]
    why: OSError


def test_log_records_and_warnings_are_lines_of_json() -> None:
    out = io.StringIO()
    with warnings.catch_warnings(action="always"), show_progress("json", out):
        logging.getLogger("pipeline.storage.retry").info("retrying %s", "s3://b/k")
        logging.getLogger("another").info("too much")
        logging.getLogger("another").warning("enough")
        try:
            raise ValueError("broken\nin two lines")
        except ValueError:
            logging.getLogger("pipeline.engine").exception("not done")
        warnings.warn("of Python's own kind", stacklevel=1)
    retried, enough, broken, warning = lines_of(out)
    assert retried["message"] == "retrying s3://b/k"
    assert (retried["level"], retried["logger"]) == ("INFO", "pipeline.storage.retry")
    assert (enough["level"], enough["message"]) == ("WARNING", "enough")
    assert broken["exception"].endswith("ValueError: broken\nin two lines")
    assert "of Python's own kind" in warning["message"]


def test_no_line_of_json_has_a_secret() -> None:
    out, url = io.StringIO(), "https://me:hunter2@host/a.jpg?X-Amz-Signature=hunter2"
    log = logging.getLogger("pipeline.storage")
    with show_progress("json", out) as progress:
        progress(StepFailed("shard 3", f"TransientError: {url}"))
        progress(Warned(f"a node was lost: {url}"))
        log.warning("no answer of %s", url)
        log.warning("no answer", extra={"event": Refused([url], {"at": url}, OSError(url))})
        try:
            raise ValueError(url)
        except ValueError:
            log.exception("not done")
    assert "hunter2" not in out.getvalue()
    failed, _, _, refused, broken = lines_of(out)
    assert failed["error"] == "TransientError: https://…@host/a.jpg?X-Amz-Signature=…"
    assert refused["urls"] == ["https://…@host/a.jpg?X-Amz-Signature=…"]
    assert broken["exception"].endswith("ValueError: https://…@host/a.jpg?X-Amz-Signature=…")


def test_as_text_warnings_are_plain_lines_among_the_progress() -> None:
    out = io.StringIO()
    with show_progress("text", out) as progress:
        progress(Said("a: listing photos"))
        logging.getLogger("pipeline.storage.retry").info("retrying")
        logging.getLogger("pipeline.storage.retry").warning("retrying s3://b/k")
    assert out.getvalue().splitlines() == ["a: listing photos", "retrying s3://b/k"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_stays_when_the_block_ends(log_format: Any) -> None:
    out = io.StringIO()
    before = logging.getLogger("pipeline").level, list(logging.getLogger().handlers)
    with pytest.raises(ValueError, match="broken"), show_progress(log_format, out):
        raise ValueError("broken")
    logging.getLogger("pipeline").warning("later")
    assert (logging.getLogger("pipeline").level, list(logging.getLogger().handlers)) == before
    assert out.getvalue() == ""


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_a_build_tells_its_shards_in_json(small: Small, tmp_path: Path, workers: int) -> None:
    """The build runs in this process and on Ray, whose workers keep their own logs."""
    photos = tmp_path / "photos"
    write_photos(photos, 6)
    options = (*small.options, "--log-format", "json")
    env = small.environment()
    process = start(photos, tmp_path / "c", *options, workers=workers, shard_images=1, env=env)
    with ended(process):
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out)["images"] == 6
    lines = [json.loads(line) for line in err.splitlines()]
    (started,) = [line for line in lines if line.get("event") == "Started"]
    done = [line for line in lines if line.get("event") == "StepDone"]
    assert (started["total"], started["steps"], started["present"]) == (6, len(done), 0)
    assert sum(line["units"] for line in done) == 6
    assert all(line["seconds"] > 0 for line in done)
    assert {(line["dataset"], line["shard"]) for line in done} == {
        ("photos", at) for at in range(len(done))
    }
    assert len({line["job"] for line in lines}) == 1
    assert lines[0]["job"].startswith("build-")
    ended_as = [line["event"] for line in lines if line.get("event") in {"Finished", "PhaseEnded"}]
    assert ended_as == ["PhaseEnded", "Finished", "PhaseEnded", "PhaseEnded"]
    last = lines[-1]
    assert (last["event"], last["dataset"]) == ("DatasetEnded", "photos")
    assert (last["outcome"], last["images"], last["failures"]) == ("committed", 6, 0)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_build_goes_on_if_nobody_reads_its_messages(
    small: Small, tmp_path: Path, log_format: str
) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, 2)
    options = (*small.options, "--log-format", log_format)
    process = start(photos, tmp_path / "c", *options, workers=0, env=small.environment())
    with ended(process):
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert json.loads(out)["images"] == 2


def test_an_error_of_a_command_is_a_line_of_json(tmp_path: Path) -> None:
    process = start(tmp_path / "nowhere", tmp_path / "c", "--log-format", "json", workers=0)
    with ended(process):
        _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    *_, last = [json.loads(line) for line in err.splitlines()]
    assert last["level"] == "ERROR"
    assert "nowhere" in last["message"]
