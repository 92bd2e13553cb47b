"""What every command shares: its options, how it prints, and how it exits."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from itertools import chain, islice
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from pipeline.errors import VdnaError
from pipeline.events import Listener, ignore


class LogFormat(StrEnum):
    text = "text"
    json = "json"


P = ParamSpec("P")
R = TypeVar("R")

CatalogueOption = Annotated[
    str,
    typer.Option(
        "--catalogue",
        "-c",
        envvar="VDNA_CATALOGUE",
        help="Folder or url of the catalogue (s3://bucket/dnas).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
SpecOption = Annotated[
    str | None,
    typer.Option("--spec", help="Digest of a spec, or its beginning (default: the catalogue's)."),
]
AtOption = Annotated[
    str | None,
    typer.Option("--at", help="A commit's number, or an ISO time (default: the newest)."),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address", help="A Ray cluster (default: RAY_ADDRESS, or one on this machine)."
    ),
]
LensOption = Annotated[
    str | None,
    typer.Option(
        "--lens", help="Weights of neurons: a Parquet file, or one of the catalogue's by name."
    ),
]
NeuronsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--neurons", help="Only these, all of one weight: 'blocks.3.1:4,17,20-30'. Can be repeated."
    ),
]
MemoryOption = Annotated[
    float,
    typer.Option(
        "--memory",
        min=0.01,
        help="Gigabytes for each process's DNAs, when comparing; allocators may keep some more.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", help="Ray actors; 0 works in this process, without Ray (default: all cores)."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Network threads a worker (default: up to 4).")
]
GpusOption = Annotated[
    float, typer.Option("--gpus-per-worker", help="GPUs a worker takes; fractions share one.")
]
RelistOption = Annotated[
    bool, typer.Option("--relist", help="List anew, and again where the source changes.")
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        help="What stderr gets: text, for people, or a line of JSON for each event and log record.",
    ),
]
ImageColumnOption = Annotated[
    str | None,
    typer.Option("--image-column", help="Of Parquet and Arrow files that have several."),
]


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Errors of ours become one message and their exit code; others stay tracebacks."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _progress_shown(kwargs.get("log_format")):
            try:
                return command(*args, **kwargs)
            except VdnaError as error:
                as_json = bool(kwargs.get("as_json"))
                if as_json:
                    print_json({"error": type(error).__name__, "message": str(error)})
                tell_error(error, as_json=as_json)
                raise typer.Exit(error.exit_code) from error
            except KeyboardInterrupt as error:
                _tell("interrupted; the same command goes on from here")
                raise typer.Exit(130) from error

    return run


_shown: ContextVar[tuple[Listener, LogFormat]] = ContextVar("shown")


def progress() -> Listener:
    """Returns the listener that shows the progress of the command that runs."""
    listener, _ = _shown.get((ignore, LogFormat.text))
    return listener


@contextmanager
def _progress_shown(log_format: object) -> Iterator[None]:
    """Shows progress and log records on stderr, if the command has the option for it."""
    if not isinstance(log_format, LogFormat):
        yield
        return
    from pipeline.reporting import show_progress

    with show_progress(log_format.value) as listener:
        before = _shown.set((listener, log_format))
        try:
            yield
        finally:
            _shown.reset(before)


def tell_error(error: VdnaError, *, as_json: bool) -> None:
    """Prints an error on stderr, for logs.

    If stdout has it as JSON already, and is a terminal, too, nothing is printed.
    """
    if not (as_json and sys.stdout.isatty()):
        _tell(f"error: {error}")


def _tell(line: str) -> None:
    _, log_format = _shown.get((ignore, LogFormat.text))
    if log_format is LogFormat.json:
        logging.getLogger(__name__).error(line)
    else:
        print(line, file=sys.stderr)


class Rows(list[object]):
    """Of JSON, each made as it is written: all of them may be gigabytes."""

    def __init__(self, rows: Iterable[object]) -> None:
        super().__init__()
        self._rest = iter(rows)
        self._first = list(islice(self._rest, 1))

    def __bool__(self) -> bool:
        return bool(self._first)

    def __iter__(self) -> Iterator[object]:
        return chain(self._first, self._rest)


def print_json(data: object) -> None:
    """`data` may hold `Rows`."""
    json.dump(data, sys.stdout, indent=1, sort_keys=True, default=str)
    print()


def run_alone(command: Callable[..., Any]) -> None:
    """`python -m jobs.NAME`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()
