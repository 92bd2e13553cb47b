"""Sends events and log records to stderr: as text for people, or as JSON lines for machines.

>>> with show_progress("json") as progress:                               # doctest: +SKIP
...     build_datasets(catalogue, requests, engine, progress=progress)
{"time": "2026-01-31T12:00:00.000+00:00", "level": "INFO", "logger": "pipeline.events", …}
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TextIO

from rich.console import Console

from pipeline.errors import redact, redact_all
from pipeline.events import (
    Event,
    Listener,
    LogFormat,
    Retried,
    Said,
    StepFailed,
    Warned,
    topic_here,
)
from pipeline.reporting.lossy_output import lossy
from pipeline.reporting.progress import Bar, Lines, text_of

LOGGER = "pipeline.events"
"""The name of the logger that events have in JSON lines."""

OWN_LOGGERS = ("pipeline", "jobs")
"""The names of our own loggers; those of modules are below them."""

STDERR = 2
"""The number of stderr among the files of a process."""


class JsonLines(logging.StreamHandler[TextIO]):
    """Writes each event and each log record as one line of JSON.

    A line has `time` (ISO 8601, UTC), `level`, `logger` and `message`. The line of an event has its
    kind in `event` and its fields beside it; that of an exception has its traceback in `exception`.
    `job`, `dataset` and `shard` say what a line is about, where that is known. No text of a line
    has secrets.

    Args:
        out: Where lines go; stderr if None.
        job: The name of the job, or "" if it has none.
    """

    def __init__(self, out: TextIO | None = None, job: str = "") -> None:
        super().__init__(out)
        self._job = {"job": job} if job else {}

    def __call__(self, event: Event) -> None:
        """Writes an event.

        Args:
            event: What happened.
        """
        warns = isinstance(event, StepFailed | Retried | Warned)
        level = logging.WARNING if warns else logging.INFO
        message = text_of(event) or type(event).__name__
        record = logging.LogRecord(LOGGER, level, "", 0, message, None, None)
        record.event = event
        self.handle(record)

    def format(self, record: logging.LogRecord) -> str:
        """Puts a record into a line of JSON.

        Args:
            record: A record of any logger, or of an event.

        Returns:
            The line, without its end.
        """
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {**self._job, **topic_here()}
        if (event := getattr(record, "event", None)) is not None:
            told = {name: value for name, value in asdict(event).items() if value not in ("", None)}
            line |= {"event": type(event).__name__} | told
        if record.exc_info:
            line["exception"] = logging.Formatter().formatException(record.exc_info)
        return json.dumps(redact_all(line), default=lambda value: redact(str(value)))


class _ToListener(logging.Handler):
    """Shows log records among the messages of a job, so that they do not cut through its bar."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(logging.WARNING)
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        self._listener(Said(self.format(record)))


@contextmanager
def _own_stderr() -> Iterator[TextIO]:
    """Opens stderr once more: what Ray writes to the first one is discarded at times.

    Yields:
        The file. Where Python's stderr is none of the process's, as in a notebook, that one.
    """
    try:
        stderr = sys.stderr
        is_first = stderr.fileno() == STDERR
    except (AttributeError, OSError, ValueError):  # there is none, or it is no file
        is_first = False
    if not is_first:
        with ExitStack() as stack:
            yield sys.stderr or stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        return
    own = os.fdopen(os.dup(STDERR), "w", encoding=stderr.encoding, errors=stderr.errors)
    try:
        yield own
    finally:
        with suppress(OSError):  # nobody reads any more
            own.close()


TICK_SECONDS = 1.0
"""How often it is looked whether something should be said."""


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Calls a function every second, in a thread of its own, until the block ends."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(TICK_SECONDS):
            tick()

    thread = threading.Thread(target=beat, name="tick", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def show_progress(
    log_format: LogFormat = "text", out: TextIO | None = None, job: str = ""
) -> Iterator[Listener]:
    """Shows what a job says until the block ends: its events, and the records of all loggers.

    As text, a terminal has a bar and a log has plain lines; something is said every few seconds,
    and log records from WARNING up are lines of their own. If nobody reads it any more, it is lost,
    and the job goes on. As JSON, every event and record is a
    line: records of our own loggers from INFO up, others from WARNING up.

    Args:
        log_format: `text` or `json`.
        out: Where it is shown; stderr if None.
        job: What JSON lines call the job; "" for nothing.

    Yields:
        The listener to hand to the job.
    """
    root = logging.getLogger()
    ours = {logger: logger.level for logger in map(logging.getLogger, OWN_LOGGERS)}
    listener: Listener
    handler: logging.Handler
    with ExitStack() as stack:
        out = lossy(out or stack.enter_context(_own_stderr()))
        if log_format == "json":
            listener = handler = JsonLines(out, job)
        else:
            console = Console(file=out)
            shown: Bar | Lines = Lines(out)
            if out.isatty() and not console.is_dumb_terminal:
                shown = Bar(console)
                stack.callback(shown.close)  # a thread that cannot be stopped may be in a stage
            stack.enter_context(_ticking(shown.tick))
            listener, handler = shown, _ToListener(shown)
        for logger in ours:
            logger.setLevel(logging.INFO if log_format == "json" else logging.WARNING)
        root.addHandler(handler)
        logging.captureWarnings(log_format == "json")
        try:
            yield listener
        finally:
            logging.captureWarnings(False)
            root.removeHandler(handler)
            for logger, level in ours.items():
                logger.setLevel(level)
