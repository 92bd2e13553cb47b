"""reporting.progress: TODO-DOC"""

from __future__ import annotations

import sys
from time import monotonic
from typing import TextIO

from pipeline.events import Event, Finished, Retried, Said, Started, StepDone, StepFailed

LINE_SECONDS = 10.0

BAR_SECONDS = 0.2


class Lines:
    """On a terminal one line, rewritten; elsewhere a line every ten seconds and at the end."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._units = ("images", "shards")
        self._out = out or sys.stderr
        self._terminal = self._out.isatty()
        self._images = self._shards = self._failures = 0
        self._all_images = self._all_shards = 0
        self._began = self._shown = monotonic()

    def __call__(self, event: Event) -> None:
        match event:
            case Said(message):
                self._say(message)
            case Started():
                self._start(event)
            case StepDone():
                self._advance(event)
            case StepFailed(name, error):
                self._say(f"{name} not counted: {error}")
            case Retried(steps):
                self._say(f"{steps} {self._units[1]} are tried again")
            case Finished(ok=True):
                self._finish()

    def _say(self, message: str) -> None:
        self._clear()
        print(message, file=self._out, flush=True)

    def _start(self, event: Started) -> None:
        self._units = (event.unit, event.step)
        self._images = self._shards = self._failures = 0
        self._all_images, self._all_shards = event.total, event.steps
        self._began = self._shown = monotonic()
        if event.present and event.steps:
            done = "counted" if event.unit == "images" else "computed"
            self._say(f"{event.present} {event.step} are {done} already, {event.steps} are left")

    def _advance(self, event: StepDone) -> None:
        self._images += event.units
        self._shards += 1
        self._failures += event.failures
        now = monotonic()
        if now - self._shown >= (BAR_SECONDS if self._terminal else LINE_SECONDS):
            self._shown = now
            self._show(now)

    def _finish(self) -> None:
        if self._shards:
            self._show(monotonic())
            if self._terminal:
                print(file=self._out, flush=True)

    def _show(self, now: float) -> None:
        elapsed = now - self._began
        line = line_of(
            self._images,
            self._all_images,
            self._shards,
            self._all_shards,
            self._failures,
            elapsed,
            self._units,
        )
        self._clear()
        print(line, end="" if self._terminal else "\n", file=self._out, flush=True)

    def _clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=self._out)


def line_of(
    images: int,
    all_images: int,
    shards: int,
    all_shards: int,
    failures: int,
    elapsed: float,
    units: tuple[str, str] = ("images", "shards"),
) -> str:
    """`1,200/4,000 images  75.0/s  10/32 shards  1 failed  0:00:37 left`; only images can fail."""
    rate = images / elapsed if elapsed > 0 else 0.0
    left = f"{duration((all_images - images) / rate)} left" if rate else "time left unknown"
    if images >= all_images:
        left = f"in {duration(elapsed)}"
    failed = f"{failures:,} failed  " if units[0] == "images" else ""
    done = f"{images:,}/{all_images:,} {units[0]}  {rate:.1f}/s"
    return f"{done}  {shards:,}/{all_shards:,} {units[1]}  {failed}{left}"


def duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
