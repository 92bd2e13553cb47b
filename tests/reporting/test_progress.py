"""Tests the progress of a long job: one line that is rewritten, or plain lines for a log."""

from __future__ import annotations

import errno
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.events import (
    Event,
    Finished,
    Idle,
    PoolChanged,
    PoolFilled,
    Retried,
    Said,
    Started,
    StepDone,
    StepFailed,
    Warned,
    ignore,
    stage,
)
from pipeline.reporting import show_progress
from pipeline.reporting.progress import (
    ESTIMATED_STEPS,
    LINE_SECONDS,
    Bar,
    Lines,
    duration,
    line_of,
    text_of,
)

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"

STAGE = Started(total=4000, steps=32)


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock that progress looks at."""
    now = 1000.0

    def forward(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("pipeline.reporting.progress.monotonic", lambda: now)
    return forward


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (37.2, "0:00:37"),
        (59.6, "0:01:00"),
        (3599.5, "1:00:00"),
        (3600, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_durations_are_written_in_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_tells_rate_shards_failures_and_time_left() -> None:
    line = line_of(STAGE, 1200, 10, 1, 16.0)
    assert line == "1,200/4,000 images  75.0/s  10/32 shards  1 failed  0:00:37 left"


def test_the_last_line_tells_how_long_the_stage_took() -> None:
    line = line_of(STAGE, 4000, 32, 0, 61.0)
    assert line == "4,000/4,000 images  65.6/s  32/32 shards  0 failed  in 0:01:01"


def test_a_step_that_is_a_unit_is_counted_once(terminal: Console) -> None:
    stage = Started(total=3, steps=3, unit="pairs", step="pairs")
    assert line_of(stage, 1, 1, 0, 2.0) == "1/3 pairs  0.5/s  time left not known yet"
    bar = Bar(terminal)
    bar(stage)
    for _ in range(3):
        bar(StepDone(1))
    bar(Finished())
    last = plain(written(terminal)).rstrip("\n").splitlines()[-1]
    assert last.count("3/3 pairs") == 1


@pytest.mark.parametrize(("images", "elapsed"), [(0, 0.0), (0, 5.0), (3, 0.0)])
def test_no_images_or_no_time_does_not_divide_by_zero(images: int, elapsed: float) -> None:
    line = line_of(Started(total=10, steps=2), images, 0, 0, elapsed)
    assert "time left not known yet" in line
    assert "0.0/s" in line


def test_no_time_left_is_estimated_before_a_few_steps_are_done(
    terminal: Console, sleep: Callable[[float], None]
) -> None:
    stage = Started(total=4000, steps=32)
    assert line_of(stage, 1, 2, 0, 10.0).endswith("time left not known yet")
    assert line_of(stage, 1, ESTIMATED_STEPS, 0, 10.0).endswith("11:06:30 left")
    bar = Bar(terminal)
    bar(stage)
    for _ in range(ESTIMATED_STEPS - 1):
        sleep(10)
        bar(StepDone(1))
    assert drawn(bar).endswith("time left not known yet")
    bar(StepDone(1))
    assert drawn(bar).endswith(" left")
    bar(Finished())


def test_a_bar_tells_rate_and_time_left_as_a_log_does(
    terminal: Console, sleep: Callable[[float], None]
) -> None:
    """Also of steps that are longer than what rich looks back, 30 seconds."""
    out = io.StringIO()
    bar, lines = Bar(terminal), Lines(out)
    for event in (Started(total=64 * 4096, steps=64), *[StepDone(4096)] * 32):
        for progress in (bar, lines):
            progress(event)
        sleep(68 if isinstance(event, Started) else 40)
    lines.tick()
    state = out.getvalue().splitlines()[-1]
    assert state == "131,072/262,144 images  97.2/s  32/64 shards  0 failed  0:22:01 left"
    assert drawn(bar).endswith(state)
    bar(Finished())


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_terminal_shows_no_bar_rather_than_no_time_left(
    width: int, sleep: Callable[[float], None]
) -> None:
    bar = Bar(Console(file=io.StringIO(), force_terminal=True, width=width))
    bar(Started(total=14_197_122, steps=3466))
    for _ in range(1500):
        sleep(2.7)
        bar(StepDone(4096, 1))
    state = drawn(bar)
    assert state.endswith(
        "6,144,000/14,197,122 images 1517.0/s 1,500/3,466 shards 1,500 failed 1:28:28 left"
        if width < 100
        else "  1,500/3,466 shards  1,500 failed  1:28:28 left"
    )
    assert ("━" in state) == (width >= 100)
    bar(Finished())


def test_the_time_left_does_not_count_the_load_of_the_network(
    sleep: Callable[[float], None],
) -> None:
    """Else a build of two minutes begins with an estimate of an hour."""
    out = io.StringIO()
    progress = Lines(out)
    progress(Started(total=100, steps=100))
    sleep(60)
    for _ in range(11):
        progress(StepDone(1))
        sleep(1)
    progress.tick()
    last = out.getvalue().splitlines()[-1]
    assert last.startswith("11/100 images  0.2/s")
    assert last.endswith("0:01:29 left")  # 89 images, a second each


def test_one_thing_is_in_the_singular() -> None:
    one = Started(total=1, steps=1, present=1)
    assert line_of(one, 1, 1, 0, 1.0) == "1/1 image  1.0/s  1/1 shard  0 failed  in 0:00:01"
    assert text_of(one) == "1 shard is counted already, 1 is left"
    batch = Started(total=2, steps=1, unit="objects", step="batches")
    assert "  1/1 batch  " in line_of(batch, 2, 1, 0, 1.0)


def test_a_log_gets_a_plain_line_every_five_seconds_and_one_at_the_end(
    sleep: Callable[[float], None],
) -> None:
    out = io.StringIO()
    progress = Lines(out)
    progress(Said("a: listing photos"))
    progress(Started(total=13, steps=13))
    for _ in range(13):
        sleep(1)
        progress(StepDone(1))
    sleep(1)
    progress(Finished())
    assert out.getvalue().splitlines() == [
        "a: listing photos",
        "5/13 images  1.0/s  5/13 shards  0 failed  0:00:08 left",
        "10/13 images  1.0/s  10/13 shards  0 failed  0:00:03 left",
        "13/13 images  0.9/s  13/13 shards  0 failed  in 0:00:14",
    ]
    assert LINE_SECONDS == 5
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()


LONG_JOB: list[tuple[float, Event | None]] = [
    (2, Said("a: listing photos")),
    (17, Started(total=100, steps=4)),
    (31, StepDone(25)),  # the first step loads the network
    (1, StepDone(25)),
    (12, StepDone(25)),
    (1, StepDone(25)),
    (22, Finished()),  # the last of many parts is added up
    (14, Started(total=3, steps=3, unit="datasets", step="commits")),
    (9, StepDone(1)),
    (3, StepDone(1)),
    (3, StepDone(1)),
    (0, Finished()),
    (21, None),
]
"""A job's events, each after so many seconds."""


def test_a_log_is_never_silent_for_long(sleep: Callable[[float], None]) -> None:
    out, silent, printed = io.StringIO(), 0.0, ""
    progress = Lines(out)
    for seconds, event in LONG_JOB:
        for _ in range(round(seconds)):
            sleep(1)
            progress.tick()
            silent, printed = (silent + 1 if out.getvalue() == printed else 0), out.getvalue()
            assert silent < LINE_SECONDS, printed
        if event is not None:
            progress(event)
    lines = out.getvalue().splitlines()
    assert "0/100 images  0.0/s  0/4 shards  0 failed  time left not known yet" in lines
    assert sum(line.startswith("100/100 images") for line in lines) >= 3  # while it ends
    assert "still at work for 0:00:05; the last line was: a: listing photos" in lines
    assert sum(line.startswith("3/3 datasets") for line in lines) == 1
    assert lines[-1].startswith("still at work for 0:00:20; the last line was: 3/3 datasets")


def test_a_stage_has_its_last_line_once(sleep: Callable[[float], None]) -> None:
    out = io.StringIO()
    progress = Lines(out)
    progress(Started(total=2, steps=2))
    sleep(7)
    progress(StepDone(1))
    sleep(7)
    progress(StepDone(1))
    progress.tick()
    progress(Finished())
    lines = out.getvalue().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["1/2", "2/2"]


def test_a_terminal_is_never_silent_for_long_between_bars(
    terminal: Console, sleep: Callable[[float], None]
) -> None:
    bar = Bar(terminal)
    bar(Said("a: listing photos"))
    for _ in range(11):
        sleep(1)
        bar.tick()
    assert plain(written(terminal)).splitlines() == [
        "a: listing photos",
        "still at work for 0:00:05; the last line was: a: listing photos",
        "still at work for 0:00:10; the last line was: a: listing photos",
    ]
    bar(Started(total=4, steps=4))
    sleep(60)
    bar.tick()  # the bar is redrawn without it
    bar(Finished())
    assert "after: 0" not in written(terminal)
    assert written(terminal).count("still at work") == 2


@pytest.mark.parametrize("kind", [Lines, Bar])
def test_a_job_that_waits_may_be_silent(
    kind: type[Lines] | type[Bar], terminal: Console, sleep: Callable[[float], None]
) -> None:
    progress = Bar(terminal) if kind is Bar else Lines(terminal.file)  # type: ignore[arg-type]
    progress(Said("ready"))
    progress(Idle())
    sleep(60)
    progress.tick()
    assert plain(written(terminal)).splitlines() == ["ready"]
    progress(Started(total=4, steps=4))
    sleep(60)
    progress.tick()
    assert (kind is Bar) or "0/4 images" in written(terminal)
    progress(Finished())


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def written(terminal: Console) -> str:
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def drawn(bar: Bar) -> str:
    """Returns what the bar shows now; lines that are too long for the terminal as one."""
    assert bar._bar is not None
    out = bar._console.file
    assert isinstance(out, io.StringIO)
    before = len(out.getvalue())
    bar._bar.refresh()
    lines = plain(out.getvalue()[before:]).strip().splitlines()
    return lines[0] if len(lines) == 1 else " ".join(" ".join(lines).split())


def plain(text: str) -> str:
    """Returns the text without codes for colours and the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_has_a_bar_that_is_redrawn_and_stays_when_it_is_done(terminal: Console) -> None:
    bar = Bar(terminal)
    bar(Started(total=4, steps=4))
    for failures in (0, 0, 2, 0):
        bar(StepDone(1, failures))
    bar(Finished())
    last = plain(written(terminal)).rstrip("\n").splitlines()[-1]
    assert "4/4 images" in last
    assert "4/4 shards" in last
    assert "2 failed" in last
    assert re.search(r"[\d.]+/s", last)
    assert last.rstrip().endswith("0:00:00")  # how long it took
    assert written(terminal).count(SHOW_CURSOR) == written(terminal).count(HIDE_CURSOR) == 1


@pytest.mark.parametrize(("unit", "step"), [("pairs", "tiles"), ("neurons", "layers")])
def test_a_bar_counts_what_the_stage_counts(terminal: Console, unit: str, step: str) -> None:
    bar = Bar(terminal)
    bar(Started(1200, 2, unit=unit, step=step))
    bar(StepDone(1000))
    bar(StepDone(200))
    bar(Finished())
    last = plain(written(terminal)).rstrip("\n").splitlines()[-1]
    assert f"1,200/1,200 {unit}" in last
    assert f"2/2 {step}" in last
    assert "failed" not in last


def test_a_terminal_is_not_drawn_on_with_every_event(terminal: Console) -> None:
    bar = Bar(terminal)
    bar(Started(total=1000, steps=1000))
    for _ in range(1000):
        bar(StepDone(1))
    bar(Finished())
    assert plain(written(terminal)).count(" images") < 50


def test_a_message_on_a_terminal_stands_above_the_bar(terminal: Console) -> None:
    bar = Bar(terminal)
    bar(Started(total=4, steps=4))
    bar(StepFailed("shard 3", "TransientError: [s3] does not answer"))
    bar(Finished())
    lines = [line.strip() for line in plain(written(terminal)).replace("\r", "\n").splitlines()]
    at = lines.index("shard 3 not counted: TransientError: [s3] does not answer")
    assert "0/4 images" in lines[-1]
    assert at < len(lines) - 1


def test_an_exception_ends_the_bar_and_gives_the_cursor_back(terminal: Console) -> None:
    bar = Bar(terminal)
    with pytest.raises(KeyboardInterrupt), stage(bar, Started(total=4, steps=4)):
        raise KeyboardInterrupt
    assert written(terminal).count(SHOW_CURSOR) == 1


def test_resuming_says_what_exists_and_counts_only_the_rest(
    sleep: Callable[[float], None],
) -> None:
    out = io.StringIO()
    progress = Lines(out)
    progress(Started(total=6, steps=2, present=14))
    sleep(2)
    progress(StepDone(6))
    progress(Finished())
    first, last = out.getvalue().splitlines()
    assert first == "14 shards are counted already, 2 are left"
    assert last.startswith("6/6 images  3.0/s  1/2 shards")


def test_nothing_to_do_says_nothing() -> None:
    out = io.StringIO()
    progress = Lines(out)
    progress(Started(total=0, steps=0, present=16))
    progress(Finished())
    assert out.getvalue() == ""


def test_a_second_start_counts_from_zero(sleep: Callable[[float], None]) -> None:
    out = io.StringIO()
    progress = Lines(out)
    for images in (5, 3):
        progress(Started(total=images, steps=1))
        sleep(1)
        progress(StepDone(images, 1))
        progress(Finished())
    assert out.getvalue().splitlines() == [
        "5/5 images  5.0/s  1/1 shard  1 failed  in 0:00:01",
        "3/3 images  3.0/s  1/1 shard  1 failed  in 0:00:01",
    ]


def test_steps_that_fail_and_are_tried_again_are_reported() -> None:
    out = io.StringIO()
    progress = Lines(out)
    progress(Started(total=6, steps=2))
    progress(StepFailed("shard 1", "TransientError: no answer"))
    progress(Retried(1, 2))
    assert out.getvalue().splitlines() == [
        "shard 1 not counted: TransientError: no answer",
        "1 that failed is tried again, attempt 2",
    ]


WAITING = PoolChanged(workers=0, most=8, wanted="4 CPUs and 1 GPU", limit=3600)


def test_that_no_worker_runs_is_a_state_of_the_stage(sleep: Callable[[float], None]) -> None:
    out = io.StringIO()
    progress = Lines(out)
    progress(Started(total=6, steps=2))
    for event in (WAITING, replace(WAITING, workers=1), replace(WAITING, workers=3)):
        progress(event)
        sleep(LINE_SECONDS)
        progress.tick()
    state = "0/6 images  0.0/s  0/2 shards  0 failed  time left not known yet"
    assert out.getvalue().splitlines() == [
        "no worker runs: one takes 4 CPUs and 1 GPU, and starts when a node has that free; the job "
        "waits for one, 1:00:00 at most",
        f"{state}  waits for workers",
        "1 worker of up to 8 runs",
        state,
        "3 workers of up to 8 run",
        state,
    ]


def test_the_next_stage_waits_for_no_node_of_the_last(sleep: Callable[[float], None]) -> None:
    out = io.StringIO()
    progress = Lines(out)
    for event in (Started(total=6, steps=2), WAITING, Finished(ok=False), Started(6, 2)):
        progress(event)
    sleep(LINE_SECONDS)
    progress.tick()
    assert not out.getvalue().endswith("waits for workers\n")


def test_workers_of_another_pool_end_the_wait(sleep: Callable[[float], None]) -> None:
    """A pool whose workers all run says only that it is filled."""
    out = io.StringIO()
    progress = Lines(out)
    for event in (Started(total=6, steps=2), WAITING, PoolFilled(8)):
        progress(event)
    sleep(LINE_SECONDS)
    progress.tick()
    assert not out.getvalue().endswith("waits for workers\n")


def test_a_bar_shows_that_no_worker_runs(terminal: Console) -> None:
    bar = Bar(terminal)
    bar(Started(total=4, steps=4))
    assert bar._bar is not None
    ended = replace(WAITING, workers=1), PoolFilled(8)
    for event, shown in ((WAITING, True), (ended[0], False), (WAITING, True), (ended[1], False)):
        bar(event)
        assert bool(bar._bar.tasks[0].fields["waits"]) == shown
        bar._bar.refresh()
    bar(Finished())
    drawn = plain(written(terminal))
    assert "waits for workers" in drawn
    assert "waits for workers" not in drawn.splitlines()[-1]


def test_a_warning_is_told_as_one() -> None:
    assert text_of(Warned("a node was lost")) == "warning: a node was lost"


def test_a_stage_that_an_exception_ends_has_no_last_line() -> None:
    out = io.StringIO()
    progress = Lines(out)

    def work() -> None:
        with stage(progress, Started(total=6, steps=2)):
            progress(StepDone(3))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert out.getvalue() == ""


def test_a_stage_is_announced_at_its_start_and_at_its_end() -> None:
    events: list[Event] = []
    with stage(events.append, Started(total=6, steps=1)):
        events.append(StepDone(6))
    assert events == [Started(total=6, steps=1), StepDone(6), Finished()]
    with pytest.raises(ValueError, match="broken"), stage(events.append, Started(0, 0)):
        raise ValueError("broken")
    assert events[-1] == Finished(ok=False)


def test_the_ignoring_listener_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ignore
    progress(Said("anything"))
    progress(Started(total=1, steps=1, present=1))
    progress(StepDone(1, 1))
    progress(Finished())
    assert capsys.readouterr() == ("", "")


def test_a_stage_that_nobody_ends_leaves_the_cursor_when_all_else_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a page does that is made in a thread, when its server is stopped."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    with show_progress("text", out) as progress:
        progress(Started(total=4, steps=4))
    progress(StepDone(1))
    progress(Started(total=3, steps=3))
    progress(Said("too late"))
    assert out.getvalue().count(HIDE_CURSOR) == out.getvalue().count(SHOW_CURSOR) == 1
    assert "too late" not in out.getvalue()


class Unread(io.StringIO):
    """A pipe that nobody reads any more, or a full disk."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "nobody reads")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")


def test_a_job_goes_on_if_nothing_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Unread())
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes it for a terminal
    for progress in (Lines(), Bar()):
        with stage(progress, Started(total=2, steps=1)):
            progress(Said("anything"))
            progress(StepDone(2))
        progress.tick()


def test_progress_goes_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Lines()(Said("hello"))
    assert capsys.readouterr() == ("", "hello\n")


def test_a_bar_works_where_stderr_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has None there, as in a program of Windows without a console."""
    monkeypatch.setattr(sys, "stderr", None)
    bar = Bar()
    for event in (Started(2, 2, unit="images", step="count"), StepDone(2), Finished()):
        bar(event)


def test_lines_are_written_whole_where_the_encoding_lacks_a_character(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with open(path, "w", encoding="ascii") as out:
        Lines(out)(Said("hölzern"))
        Lines(out)(Said("plain"))
    assert path.read_text() == "h\\xf6lzern\nplain\n"
