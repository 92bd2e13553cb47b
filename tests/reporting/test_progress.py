"""What a long job says of itself: one line that is rewritten, or plain lines for a log."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from pipeline.events import Finished, Said, Started, StepDone, ignore
from pipeline.reporting import BAR_SECONDS, LINE_SECONDS, Lines, duration, line_of

CLEAR = "\r\x1b[K"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_tells_rate_shards_failures_and_time_left() -> None:
    line = line_of(1200, 4000, 10, 32, 1, 16.0)
    assert line == "1,200/4,000 images  75.0/s  10/32 shards  1 failed  0:00:37 left"


def test_a_line_that_is_done_tells_how_long_it_took() -> None:
    line = line_of(4000, 4000, 32, 32, 0, 61.0)
    assert line == "4,000/4,000 images  65.6/s  32/32 shards  0 failed  in 0:01:01"


@pytest.mark.parametrize(("images", "elapsed"), [(0, 0.0), (0, 5.0), (3, 0.0)])
def test_nothing_yet_or_no_time_divides_by_nothing(images: int, elapsed: float) -> None:
    line = line_of(images, 10, 0, 2, 0, elapsed)
    assert "time left unknown" in line
    assert "0.0/s" in line


def test_a_log_gets_a_plain_line_every_ten_seconds_and_one_at_the_end(
    sleep: Callable[[float], None],
) -> None:
    out = io.StringIO()
    progress = Lines(out)
    progress(Said("a: listing photos"))
    progress(Started(total=30, steps=30))
    for _ in range(30):
        sleep(1)
        progress(StepDone(1))
    sleep(1)
    progress(Finished())
    assert out.getvalue().splitlines() == [
        "a: listing photos",
        "10/30 images  1.0/s  10/30 shards  0 failed  0:00:20 left",
        "20/30 images  1.0/s  20/30 shards  0 failed  0:00:10 left",
        "30/30 images  1.0/s  30/30 shards  0 failed  in 0:00:30",
        "30/30 images  1.0/s  30/30 shards  0 failed  in 0:00:31",
    ]
    assert LINE_SECONDS == 10
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_terminal_has_one_line_rewritten_and_ended_once(sleep: Callable[[float], None]) -> None:
    out = Terminal()
    progress = Lines(out)
    progress(Started(total=4, steps=4))
    for failures in (0, 0, 2, 0):
        sleep(BAR_SECONDS)
        progress(StepDone(1, failures))
    progress(Finished())
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().endswith("\n")
    before, *shown = out.getvalue().rstrip("\n").split(CLEAR)
    assert before == ""
    assert [line.split("  ")[0] for line in shown] == [
        "1/4 images", "2/4 images", "3/4 images", "4/4 images", "4/4 images",
    ]  # fmt: skip
    assert "2 failed" in shown[-1]


def test_a_terminal_is_not_written_to_more_than_five_times_a_second(
    sleep: Callable[[float], None],
) -> None:
    out = Terminal()
    progress = Lines(out)
    progress(Started(total=1000, steps=1000))
    for _ in range(1000):
        sleep(0.001)
        progress(StepDone(1))
    assert 4 <= out.getvalue().count(CLEAR) <= 5


def test_a_message_on_a_terminal_clears_the_line_it_interrupts(
    sleep: Callable[[float], None],
) -> None:
    out = Terminal()
    progress = Lines(out)
    progress(Started(total=4, steps=4))
    sleep(1)
    progress(StepDone(1))
    progress(Said("shard 3 not counted"))
    assert out.getvalue().endswith(f"{CLEAR}shard 3 not counted\n")


def test_resuming_says_what_is_there_and_counts_only_the_rest(
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
        "5/5 images  5.0/s  1/1 shards  1 failed  in 0:00:01",
        "3/3 images  3.0/s  1/1 shards  1 failed  in 0:00:01",
    ]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ignore
    progress(Said("anything"))
    progress(Started(total=1, steps=1, present=1))
    progress(StepDone(1, 1))
    progress(Finished())
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_stderr_where_machines_do_not_look(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Lines()(Said("hello"))
    assert capsys.readouterr() == ("", "hello\n")
