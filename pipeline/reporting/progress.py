"""Shows a long job's progress on a terminal, as a bar, or in a log, as plain lines.

>>> make_dna("photos/", progress=Bar())  # doctest: +SKIP
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 720/720 images  15.7/s  96/96 shards  0 failed  in 0:00:46
"""

from __future__ import annotations

import sys
from threading import RLock
from time import monotonic
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.errors import printable, redact
from pipeline.events import (
    Event,
    Finished,
    Held,
    Idle,
    PoolChanged,
    PoolFilled,
    Retried,
    Said,
    Started,
    StepDone,
    StepFailed,
    TakenOver,
    Warned,
)
from pipeline.reporting.lossy_output import lossy
from pipeline.wording import count_of

LINE_SECONDS = 5.0
"""How long nothing is printed at most, if something calls `tick` every second."""

REFRESHES_PER_SECOND = 5

SHORTEST_BAR, LONGEST_BAR = 8, 40
"""How many characters a bar has. Where a terminal has no room for the shortest, it has no bar."""

WAITS = "  waits for workers"
"""What the state of a stage ends with while no worker runs."""

ESTIMATED_STEPS = 3
"""No time left is estimated before so many steps are done; the first ones load the network."""


def text_of(event: Event) -> str:
    """Puts an event into words for people.

    Args:
        event: Any event.

    Returns:
        One line of text without secrets, or "" for the events that only move the numbers of a bar.
        What would command a terminal is written out, as a name may hold it.
    """
    return printable(redact(_words(event)))


def _words(event: Event) -> str:
    match event:
        case Said(message):
            return message
        case Warned(message):
            return f"warning: {message}"
        case PoolChanged(workers=0, wanted=wanted, limit=limit):
            return (
                f"no worker runs: one takes {wanted}, and starts when a node has that free; the "
                f"job waits for one, {duration(limit)} at most"
            )
        case PoolChanged(workers, most):
            return f"{count_of(workers, 'worker')} of up to {most:,} {_run(workers)}"
        case Started(steps=steps, present=present, unit=unit, step=step) if present and steps:
            done = "counted" if unit == "images" else "computed"
            are, left = ("is" if number == 1 else "are" for number in (present, steps))
            there = f"{present:,} {_noun(step, present)}"
            return f"{there} {are} {done} already, {steps:,} {left} left"
        case StepFailed(name, error, fault=fault):
            return f"{name} not counted{f' ({fault})' if fault else ''}: {error}"
        case Held(steps) if steps:
            return f"waiting for {count_of(steps, 'shard')} that another job counts"
        case TakenOver(steps):
            return f"taking over {count_of(steps, 'shard')} of another job"
        case Retried(steps, attempt):
            are = "is" if steps == 1 else "are"
            return f"{steps:,} that failed {are} tried again, attempt {attempt}"
        case _:
            return ""


def _run(workers: int) -> str:
    return "runs" if workers == 1 else "run"


def _noun(plural: str, number: int) -> str:
    """Returns the noun of a stage's units or steps for this number of them."""
    ending = "es" if plural.endswith("ches") else "s"
    return plural.removesuffix(ending) if number == 1 else plural


class Tally:
    """A listener that adds up what is done of the stage that runs."""

    def __init__(self) -> None:
        self.stage = Started(0, 0)
        self._units = self._steps = self._failures = 0
        self._began, self._first = monotonic(), (0, 0.0)

    def __call__(self, event: Event) -> None:
        """Adds a step, or begins a stage.

        Args:
            event: What happened.
        """
        match event:
            case Started():
                self.stage = event
                self._units = self._steps = self._failures = 0
                self._began, self._first = monotonic(), (0, 0.0)
            case StepDone(units, failures):
                self._units += units
                self._steps += 1
                self._failures += failures
                if self._steps == 1:
                    self._first = units, monotonic() - self._began

    @property
    def line(self) -> str:
        """The state of the stage in one line, as `line_of` writes it."""
        elapsed = monotonic() - self._began
        done = self._units, self._steps, self._failures
        return line_of(self.stage, *done, elapsed, self._first)


class Silence:
    """How long nothing was printed, and what was printed last.

    Attributes:
        allowed: Whether nothing is to be said between two stages.
    """

    def __init__(self) -> None:
        self._since = self._begun = monotonic()
        self._last = ""
        self.allowed = False

    def ends(self, line: str) -> None:
        """Takes note of a line that is printed now."""
        self._since = self._begun = monotonic()
        self._last = line

    @property
    def is_long(self) -> bool:
        """Whether it is time to print something."""
        return monotonic() - self._since >= LINE_SECONDS

    def excuse(self) -> str:
        """Returns a line to print when no stage says how far it is; what it repeats stays last."""
        self._since = monotonic()
        last = f"; the last line was: {self._last}" if self._last else ""
        return f"still at work for {duration(self._since - self._begun)}{last}"


class Lines:
    """A listener that prints a line every five seconds and at the end of each stage.

    Args:
        out: Where lines go; stderr if None.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = lossy(out or sys.stderr)
        self._stage: Started | None = None
        self._units = self._steps = self._failures = 0
        self._stated: tuple[int, int] | None = None
        self._first = (0, 0.0)
        self._began = monotonic()
        self._silence = Silence()
        self._waits = ""
        self._lock = RLock()

    def __call__(self, event: Event) -> None:
        """Prints what the event says, or the state of its stage if that is due.

        Args:
            event: What happened.
        """
        with self._lock:
            if text := text_of(event):
                self._print(text)
            match event:
                case Started():
                    self._stage, self._stated, self._waits = event, None, ""
                    self._units = self._steps = self._failures = 0
                    self._began, self._first = monotonic(), (0, 0.0)
                case StepDone(units, failures):
                    self._units += units
                    self._steps += 1
                    self._failures += failures
                    if self._steps == 1:
                        self._first = units, monotonic() - self._began
                    if self._stage and self._units < self._stage.total and self._silence.is_long:
                        self._print_state(self._stage)
                case PoolChanged(workers) | PoolFilled(workers):
                    self._waits = "" if workers else WAITS
                case Finished(ok):
                    if ok and self._stage and self._steps and self._stated != self._state:
                        self._print_state(self._stage)
                    self._stage = None
                case Idle():
                    self._silence.allowed = True

    def tick(self) -> None:
        """Prints how far the job is if nothing was printed for a while; to be called often."""
        with self._lock:
            if not self._silence.is_long:
                return
            if self._stage:
                self._print_state(self._stage)
            elif not self._silence.allowed:
                self._write(self._silence.excuse())

    @property
    def _state(self) -> tuple[int, int]:
        return self._units, self._steps

    def _print_state(self, stage: Started) -> None:
        elapsed = monotonic() - self._began
        self._stated = self._state
        done = self._units, self._steps, self._failures
        self._print(line_of(stage, *done, elapsed, self._first) + self._waits)

    def _print(self, line: str) -> None:
        self._silence.ends(line)
        self._write(line)

    def _write(self, line: str) -> None:
        self._out.write(f"{line}\n")
        self._out.flush()


class Bar:
    """A listener that draws a bar for each stage, and prints messages above it.

    Args:
        console: The terminal; that of stderr if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=lossy(sys.stderr))
        self._bar: Progress | None = None
        self._tally = Tally()
        self._silence = Silence()
        self._is_over = False
        self._lock = RLock()

    def __call__(self, event: Event) -> None:
        """Prints what the event says, or moves the bar.

        Args:
            event: What happened.
        """
        with self._lock:
            if not self._is_over:
                self._show(event)

    def close(self) -> None:
        """Ends the bar, also of a stage that goes on. Nothing is shown from then on."""
        with self._lock:
            self._show(Finished(ok=False))
            self._is_over = True

    def _show(self, event: Event) -> None:
        if text := text_of(event):
            self._silence.ends(text)
            self._print(text)
        self._tally(event)
        match event:
            case Started() if event.steps:
                self._start(event)
            case StepDone(units) if self._bar is not None:
                self._bar.update(
                    self._bar.task_ids[0],
                    advance=units,
                )
            case PoolChanged(workers) | PoolFilled(workers) if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], waits="" if workers else WAITS)
            case Finished() if self._bar is not None:
                self._bar.stop()
                self._bar = None
                self._silence.ends("")
            case Idle():
                self._silence.allowed = True

    def tick(self) -> None:
        """Prints that the job is at work if there is no bar, and was no line for a while."""
        if self._bar is None and self._silence.is_long and not self._silence.allowed:
            self._print(self._silence.excuse())

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _start(self, stage: Started) -> None:
        self._bar = Progress(
            _StateColumn(self._tally, self._console),
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stdout=False,  # it is the command's own, and may be JSON
        )
        self._bar.add_task("", total=stage.total, waits="")
        self._bar.start()


class _StateColumn(ProgressColumn):
    """The state of a stage in words, after a bar if the terminal has room for one.

    Args:
        tally: What is done of the stage. Rich would only look at the last seconds for an estimate,
            in which no step may have ended.
        console: The terminal.
    """

    def __init__(self, tally: Tally, console: Console) -> None:
        super().__init__()
        self._tally, self._console = tally, console

    def render(self, task: Task) -> RenderableType:
        state = Text(self._tally.line + task.fields["waits"])
        room = min(self._console.width - state.cell_len - 1, LONGEST_BAR)
        if room < SHORTEST_BAR:
            return state
        both = Table.grid(padding=(0, 1))
        both.add_row(ProgressBar(task.total, task.completed, width=room), state)
        return both


def line_of(
    stage: Started,
    units: int,
    steps: int,
    failures: int,
    elapsed: float,
    first: tuple[int, float] = (0, 0.0),
) -> str:
    """Writes the state of a stage in one line.

    `1,200/4,000 images  75.0/s  10/32 shards  1 failed  0:00:37 left`; only images can fail.
    If each step is a unit, steps are left out.

    Args:
        stage: What is to be done.
        units: Units of work that are done.
        steps: Steps that are done.
        failures: Units that could not be read.
        elapsed: Seconds since the stage began.
        first: The units of the first step, and the seconds after which it was done. The time left
            is estimated without it, since it loads the network.

    Returns:
        The line, without its end.
    """
    rate = units / elapsed if elapsed > 0 else 0.0
    left = "time left not known yet"
    since, pause = units - first[0], elapsed - first[1]
    if since > 0 and steps >= ESTIMATED_STEPS:
        left = f"{duration((stage.total - units) * pause / since)} left"
    if units >= stage.total:
        left = f"in {duration(elapsed)}"
    failed = f"{failures:,} failed  " if stage.unit == "images" else ""
    done = f"{units:,}/{stage.total:,} {_noun(stage.unit, stage.total)}  {rate:.1f}/s"
    if stage.step != stage.unit:
        done += f"  {steps:,}/{stage.steps:,} {_noun(stage.step, stage.steps)}"
    return f"{done}  {failed}{left}"


def duration(seconds: float) -> str:
    """Writes a duration as hours, minutes and seconds.

    Args:
        seconds: Its length.

    Returns:
        Text such as `1:02:03`.
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
