"""What a command prints: no name commands the terminal, and no error is a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs import output
from jobs.app import app
from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.events import Said, StepFailed
from pipeline.reporting.progress import Lines, text_of
from tests.support.builders import write_photos
from tests.support.tiny_network import install

REPOSITORY = Path(__file__).parents[2]
EVIL = "evil\x1b]0;owned\x07\nok     all is well\r\x9b2J"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, from folders and with an image whose names command a terminal."""
    folder = tmp_path_factory.mktemp("terminal")
    options = [w for k, v in install(folder).options.items() for w in (f"--{k}", v)]
    for name in "ab":
        source = folder / f"größe {name} {EVIL}"
        write_photos(source, 2, ord(name))
        (source / f"{EVIL}.jpg").write_bytes(b"no image")
        words = ["build", name, source, "-c", folder / "c", "--workers", 0, "--max-failures", 2]
        done = CliRunner().invoke(app, [*map(str, [*words, *options])])
        assert done.exit_code == 0, done.output
        assert "not counted: " in done.output
        harmless(done.output)
    return folder / "c"


def harmless(text: str) -> None:
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "\nok     all is well" not in text


@pytest.mark.parametrize("words", [["ls"], ["show", "a"], ["log"], ["verify"], ["gc"]])
def test_names_cannot_command_the_terminal_nor_forge_a_line(
    catalogue: Path, words: list[str]
) -> None:
    for options in ([], ["--json"]):
        done = CliRunner().invoke(app, [*words, "-c", str(catalogue), *options])
        assert done.exit_code == 0, done.output
        harmless(done.output)
    for missing in (EVIL, f"{catalogue}/{EVIL}/x"):
        for command in (["show", missing], ["build", "b", missing, "--workers", "0"]):
            done = CliRunner().invoke(app, [*command, "-c", str(catalogue)])
            assert done.exit_code in (1, 2)
            harmless(done.output)


def test_columns_cannot_command_the_terminal_nor_forge_a_line(tmp_path: Path) -> None:
    table = tmp_path / "table.parquet"
    for columns, options in (
        ([EVIL], []),
        (["path", EVIL], ["--by", "sun"]),
        (["path", EVIL], ["--by", "1"]),
    ):
        pq.write_table(pa.table({column: ["x.jpg"] for column in columns}), table)
        words = ["build", "b", str(table), *options, "-c", str(tmp_path / "c"), "--workers", "0"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (1, 2)
        assert "owned" in done.output
        harmless(done.output)


def test_names_in_messages_of_progress_cannot_command_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for event in (Said(f"listing {EVIL}"), StepFailed(EVIL, EVIL, transient=True)):
        harmless(text_of(event))
        Lines()(event)
        harmless(capsys.readouterr().err)


def vdna(*words: object, stdout: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command, and leaves out that it is still at work, as it says on a busy machine."""
    command = [sys.executable, "-m", "jobs.app", *map(str, words)]
    done = subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environment,
        check=False,
    )
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if not line.startswith("still at work"))
    return done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("words", [["ls"], ["ls", "--json"], ["compare", "--no-error-bars"]])
def test_a_full_disk_behind_stdout_is_one_message(catalogue: Path, words: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = vdna(*words, "-c", catalogue, stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to stdout: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["ls", "--help"], []])
def test_a_full_disk_behind_help_is_one_message(words: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = vdna(*words, stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to stdout: No space left on device\n"


def test_a_reader_that_is_done_ends_a_command_quietly(catalogue: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = vdna("ls", "-c", catalogue, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    "words",
    [
        ["compare"],
        ["compare", "--top", 1],
        ["explain", "a", "b"],
        ["diff", "a", "b"],
        ["suggest", "a"],
        ["report"],
    ],
)
def test_notes_beside_json_are_lines_of_json_if_a_log_is_to_be(
    catalogue: Path, words: list[object], tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "report.html"] if words == ["report"] else []
    for log_format in ("text", "json"):
        options = ["-c", catalogue, "--json", "--log-format", log_format]
        done = CliRunner().invoke(app, [*map(str, [*words, *out, *options])])
        assert done.exit_code == 0, done.output
        json.loads(done.stdout)
        lines = done.stderr.splitlines()
        if log_format == "json":
            told = [json.loads(line) for line in lines]
            lines = [line["message"] for line in told if line["logger"] == "jobs.output"]
            assert {line["level"] for line in told} == {"INFO"}
        assert any(line.startswith("note: ") for line in lines)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_error_that_nobody_reads_has_its_exit_code(catalogue: Path, log_format: str) -> None:
    """A shell's `2> >(head -1)` may end before the command."""
    words = ["compare", "-c", catalogue, "--near", "a", "--fd", "--log-format", log_format]
    command = [sys.executable, "-m", "jobs.app", *map(str, words)]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stderr=writing, cwd=REPOSITORY, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 2


@pytest.mark.parametrize("name", ["c", "none"])
def test_what_would_go_to_a_closed_stderr_is_not_in_the_json(catalogue: Path, name: str) -> None:
    """With `2>&-` Python has no stderr, and `print` would take stdout for it."""
    words = ["compare", "--no-error-bars", "-c", catalogue.parent / name, "--json"]
    done = with_closed_stream("2>&-", *words)
    assert done.returncode == (name == "none")
    assert (name == "none") == ("error" in json.loads(done.stdout))
    done = with_closed_stream(">&-", *words)
    assert done.returncode == (name == "none")
    assert "unexpected" not in done.stderr


def with_closed_stream(stream: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs a command from a shell that has closed one of its streams."""
    line = ["sh", "-c", f'exec "$@" {stream}', "sh", sys.executable, "-m", "jobs.app"]
    return subprocess.run(
        [*line, *map(str, words)], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )


def test_a_terminal_without_unicode_gets_escapes(catalogue: Path, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        done = vdna("ls", "-c", catalogue, stdout=out.fileno(), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert rb"gr\xf6\xdfe" in (tmp_path / "out").read_bytes()


@pytest.mark.parametrize(("encoding", "is_drawn"), [("utf-8", True), ("ascii", False)])
def test_histograms_are_drawn_only_with_characters_that_the_terminal_has(
    catalogue: Path, tmp_path: Path, encoding: str, is_drawn: bool
) -> None:
    """Else each of them would be an escape of six characters, in a table made for one."""
    with open(tmp_path / "out", "wb") as out:
        words = ["explain", "a", "b", "-c", catalogue]
        wide = {"PYTHONIOENCODING": encoding, "COLUMNS": "120"}
        done = vdna(*words, stdout=out.fileno(), **wide)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "out").read_bytes()
    assert ("█".encode() in said) == is_drawn
    assert rb"\u25" not in said


def test_an_error_that_nobody_foresaw_is_a_message_and_its_details_are_in_a_file(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug, with password='topsecret'")

    monkeypatch.setattr(Catalogue, "at", fail)
    monkeypatch.setattr(Catalogue, "head", fail)
    done = CliRunner().invoke(app, ["ls", "-c", str(catalogue), "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["error"] == "UnexpectedError"
    assert told["message"].startswith("unexpected ZeroDivisionError: a bug")
    path = Path(told["message"].rpartition("(")[2].split()[0])
    text = path.read_text()
    path.unlink()
    assert "Traceback" in text
    assert "topsecret" not in text + done.output
    assert "Traceback" not in done.output


def test_details_that_cannot_be_written_do_not_hide_the_error(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(output.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(storage, "exists", lambda uri: 1 / 0)
    monkeypatch.setattr(Catalogue, "head", lambda place: 1 / 0)
    done = CliRunner().invoke(app, ["ls", "-c", str(catalogue)])
    assert done.exit_code == 1
    assert "unexpected ZeroDivisionError: division by zero" in done.stderr
    assert "could not be written: read-only" in done.stderr


def test_messages_of_progress_hold_no_secret() -> None:
    told = text_of(Said("listing https://host/a.png?key=topsecret&id=7"))
    assert told == "listing https://host/a.png?key=…&id=7"
