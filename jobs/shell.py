"""What every command shares: its options, how it prints, and how it exits."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from inspect import Parameter, Signature, signature
from itertools import chain, islice
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from pipeline.errors import VdnaError
from pipeline.events import Listener, ignore
from pipeline.options import Field, Options, options_of


class LogFormat(StrEnum):
    text = "text"
    json = "json"


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


def guarded(command: Callable[..., R]) -> Callable[..., R]:
    """Makes a function a command.

    A parameter that is annotated with an `Options` class becomes that class's options on the
    command line. An error of ours becomes one message and its exit code; others stay tracebacks.
    """
    hints = get_type_hints(command, include_extras=True)
    models = {name: hint for name, hint in hints.items() if _is_options(hint)}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if parameter.name in models:
            parameters += map(_on_the_command_line, options_of(models[parameter.name]))
        else:
            kind = Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[parameter.name]))

    @functools.wraps(command)
    def run(**given: Any) -> R:
        with _progress_shown(given.get("log_format")):
            try:
                made: dict[str, Any] = {}
                for name, model in models.items():
                    made[name] = model(**{o.name: given.pop(o.name) for o in options_of(model)})
                return command(**made, **given)
            except VdnaError as error:
                as_json = bool(given.get("as_json"))
                if as_json:
                    print_json({"error": type(error).__name__, "message": str(error)})
                tell_error(error, as_json=as_json)
                raise typer.Exit(error.exit_code) from error
            except KeyboardInterrupt as error:
                _tell("interrupted; the same command goes on from here")
                raise typer.Exit(130) from error

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _is_options(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Options)


def _on_the_command_line(field: Field) -> Parameter:
    """Returns an option as Typer takes it."""
    option, default = field.option, field.default
    kind: Any = field.kind
    if get_origin(kind) is Sequence:
        kind = list.__class_getitem__(get_args(kind))
        default = default if field.required else list(default)
    if option.argument:
        info = typer.Argument(help=option.help)
    else:
        name = option.flag or f"--{field.name.replace('_', '-')}"
        info = typer.Option(name, help=option.help, rich_help_panel=field.group)
    default = Parameter.empty if field.required else default
    annotation = Annotated[kind, info]
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


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
