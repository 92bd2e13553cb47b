r"""How commands print: text, JSON, progress and errors.

>>> say("ok", "a name with a\nline break")                                  # doctest: +SKIP
ok
a name with a\nline break
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TextIO, cast

from pipeline.errors import (
    StorageError,
    UnexpectedError,
    VdnaError,
    known_error,
    printable,
)
from pipeline.events import Listener, LogFormat, heard_by, ignore

if TYPE_CHECKING:
    from pipeline.catalogue import Version
    from pipeline.dna import Lens


def say(*lines: str, to: TextIO | None = None) -> None:
    r"""Prints lines. All text for people goes through here, or through the listeners of progress.

    Args:
        lines: What to print. A name may hold what would command a terminal, or end the line; it is
            written out, as `\x1b` or `\n`.
        to: Where to; stdout if None.
    """
    for line in lines:
        print(printable(line), file=to, flush=True)


def print_notes(
    versions: Mapping[str, Version],
    *,
    apart: Sequence[str] = (),
    lenses: Sequence[Lens | None] = (),
    barred: bool = True,
    paired: Mapping[tuple[str, str], float] | None = None,
    as_json: bool,
) -> None:
    """Prints what a reader of these versions' distances should know."""
    from pipeline.comparing import notes_of

    notes = notes_of(versions, apart=apart, lenses=lenses, barred=barred, paired=paired)
    notes += [f"{name}: {note}" for name, version in versions.items() for note in version.notes]
    for note in notes:
        print_note(note, as_json=as_json)


def print_note(note: str, *, as_json: bool) -> None:
    """Prints a note beside a result: on stderr, if stdout has the result as JSON."""
    (tell if as_json else say)(f"note: {printable(note)}")


def print_json(data: object) -> None:
    """Prints data as JSON on stdout; it may hold `Rows`."""
    json.dump(data, sys.stdout, indent=1, sort_keys=True, default=str)
    say("")


def print_error(error: VdnaError) -> None:
    """Prints an error as JSON on stdout."""
    print_json({"error": type(error).__name__, "message": str(error)})


class Rows(list[object]):
    """A list for `print_json` whose items are made as they are written; all may be gigabytes."""

    def __init__(self, rows: Iterable[object]) -> None:
        super().__init__()
        self._rest = iter(rows)
        self._first = list(islice(self._rest, 1))

    def __bool__(self) -> bool:
        return bool(self._first)

    def __iter__(self) -> Iterator[object]:
        return chain(self._first, self._rest)


class _OutputError(StorageError):
    """Stdout does not take what a command prints."""


class _Output:
    """Stdout, as the commands and rich print to it.

    What its encoding lacks is written out, and an error of its disk or pipe is an `_OutputError`.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        encoding = self._out.encoding or "utf-8"
        with self._telling():
            return self._out.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        with self._telling():
            self._out.flush()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _OutputError(f"cannot write to stdout: {error.strerror}") from error


@contextmanager
def checked_output() -> Iterator[None]:
    """Lets the block print to an `_Output`.

    Where a shell has closed a stream, as `2>&-` does, Python has None in its place, for which
    `print` takes stdout. What would go there is dropped instead, as is what stderr does not take.
    """
    from pipeline.reporting import lossy

    with ExitStack() as stack:
        out, errors = (
            stream or stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            for stream in (sys.stdout, sys.stderr)
        )
        stack.enter_context(redirect_stderr(lossy(errors)))
        stack.enter_context(redirect_stdout(cast(TextIO, _Output(out))))
        yield


_log_format: ContextVar[LogFormat] = ContextVar("log_format", default="text")


@contextmanager
def shown_progress(command: str, log_format: LogFormat | None) -> Iterator[Listener]:
    """Shows events and log records on stderr, if the command has the option for it.

    Args:
        command: The name of the command, of which the job's name is made.
        log_format: The format, or None.

    Yields:
        The listener.
    """
    if log_format is None:
        yield ignore
        return
    from pipeline.engine import submission_id
    from pipeline.reporting import show_progress

    job = submission_id() or f"{command}-{secrets.token_hex(4)}"
    with show_progress(log_format, job=job) as listener, heard_by(listener):
        before = _log_format.set(log_format)
        try:
            yield listener
        finally:
            _log_format.reset(before)


def tell_error(error: VdnaError, *, as_json: bool) -> None:
    """Prints an error on stderr, for logs.

    If stdout has it as JSON already, and is a terminal, too, nothing is printed.
    """
    if not (as_json and sys.stdout.isatty()):
        tell(f"error: {error}", logging.ERROR)


def tell(text: str, level: int = logging.INFO) -> None:
    """Prints a message on stderr, in the format that the command was asked for.

    Args:
        text: The message.
        level: How bad it is, as a line of JSON says it.
    """
    if _log_format.get() == "json":
        logging.getLogger(__name__).log(level, "%s", text)
    else:
        say(*text.split("\n"), to=sys.stderr)


def end_badly(raised: Exception, *, as_json: bool) -> int:
    """Prints an error, and where its details are if nobody foresaw it; returns the exit code."""
    if isinstance(raised, _OutputError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more when it ends
        if not isinstance(
            raised.__cause__, BrokenPipeError
        ):  # else a reader such as `head` is done
            tell(f"error: {raised}", logging.ERROR)
        return raised.exit_code
    error = with_details_kept(known_error(raised))
    if as_json:
        print_error(error)
    tell_error(error, as_json=as_json)
    return error.exit_code


def with_details_kept(error: VdnaError) -> VdnaError:
    """Returns the error. If nobody foresaw it, its details are in a file that its message names."""
    if isinstance(error, UnexpectedError):
        return UnexpectedError(f"{error}{_details_place(error)}", error.details)
    return error


def _details_place(error: UnexpectedError) -> str:
    """Writes the traceback to a file; returns where it is, as the end of a message."""
    try:
        number, path = tempfile.mkstemp(prefix="vdna-error-", suffix=".txt")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(error.details)
    except OSError as problem:
        return f" (its details could not be written: {problem})"
    return f" ({path} has the details, for a report)"
