"""What the commands share: options, engines and lenses, and how they end."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import replace
from inspect import Parameter, Signature, cleandoc, signature
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    TypeVar,
    cast,
    get_type_hints,
)

import typer

from jobs.option_parameters import is_options, on_the_command_line
from jobs.output import checked_output, end_badly, print_error, shown_progress, tell
from pipeline.counting import collect_rarely
from pipeline.errors import UsageError, VdnaError
from pipeline.events import Listener, LogFormat, fanned_out, heard_by
from pipeline.options import options_of
from pipeline.wording import options_as_flags

if TYPE_CHECKING:
    from pipeline.catalogue import Catalogue, SnapshotOptions
    from pipeline.comparing import Effort, MemoryLimit
    from pipeline.dna import Lens
    from pipeline.engine import Engine
    from pipeline.mapper import Mapper
    from pipeline.refreshing import Config
    from pipeline.spec import Resources, Spec


R = TypeVar("R")
S = TypeVar("S", bound="SnapshotOptions")

FEW_VALUES = 10**13
"""How many values of pairs this process can compare in minutes."""

WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""What Typer raises for a wrong command line: it has no public name."""

_only_checking: ContextVar[bool] = ContextVar("only_checking", default=False)

CatalogueOption = Annotated[
    str,
    typer.Option(
        "--catalogue",
        "-c",
        envvar="VDNA_CATALOGUE",
        help="Folder or url of the catalogue (s3://bucket/dnas).",
    ),
]


class FromEnvironment(str):
    """A value that a variable of the environment gave, and not the command line."""

    __slots__ = ()


def _with_its_source(
    context: typer.Context, option: typer.CallbackParam, value: str | None
) -> str | None:
    source = context.get_parameter_source(str(option.name))
    given = value is not None and source is not None and source.name == "ENVIRONMENT"
    return FromEnvironment(value) if given else value


ConfiguredCatalogueOption = Annotated[
    str | None,
    typer.Option(
        "--catalogue",
        "-c",
        envvar="VDNA_CATALOGUE",
        callback=_with_its_source,
        help="Folder or url of the catalogue (default: the one that the file names).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Address of a Ray cluster (default: RAY_ADDRESS, or Ray on this machine).",
    ),
]
LensOption = Annotated[
    str | None,
    typer.Option(
        "--lens", help="Lens that weighs the neurons: its name in the catalogue, or a Parquet file."
    ),
]
RankingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ranking",
        help="Also show this ranking: a file that vdna rank --out wrote. Can be repeated.",
    ),
]
NeuronsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--neurons",
        help="Look at these neurons only, such as 'blocks.3.1:4,17,20-30'. Can be repeated.",
    ),
]
RelistOption = Annotated[
    bool,
    typer.Option(
        "--relist",
        help="Begin an interrupted listing anew, and list again if the source changes meanwhile.",
    ),
]
_LOG_FORMAT = Parameter(
    "log_format",
    Parameter.KEYWORD_ONLY,
    default="text",
    annotation=Annotated[
        LogFormat,
        typer.Option(
            "--log-format",
            help="Format of messages on stderr: text for people, or a line of JSON for "
            "each event and log record.",
        ),
    ],
)
"""The option of commands that show progress."""

_METRICS_PORT = Parameter(
    "metrics_port",
    Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            "--metrics-port",
            metavar="[ADDRESS:]PORT",
            envvar="VDNA_METRICS_PORT",
            help="Port at which Prometheus finds metrics of this command (default: none, or Ray's "
            "own if it runs on a cluster). Without an address only this machine can ask.",
        ),
    ],
)
"""The option of those of them that may run on Ray, so that they may take long."""


def guarded(command: Callable[..., R]) -> Callable[..., R | None]:
    """Makes a function a command.

    A parameter that is annotated with an `Options` class becomes that class's options on the
    command line. One that is annotated with `Listener` becomes `--log-format`, and is given what
    shows events in that format. If the command has `--ray-address`, it becomes `--metrics-port`,
    too, and what it is given also makes metrics of them, and a trace if the environment asks for
    one. An error becomes one message and an exit code; if nobody foresaw it, the message names a
    file with the details.

    Args:
        command: The function. Its docstring is the command's help.

    Returns:
        A function that takes every option as a keyword, for Typer.
    """
    hints = get_type_hints(command, include_extras=True)
    models = {name: hint for name, hint in hints.items() if is_options(hint)}
    listeners = [name for name, hint in hints.items() if hint == Listener]
    measures = RayOption in hints.values()
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if parameter.name in models:
            parameters += map(on_the_command_line, options_of(models[parameter.name]))
        elif parameter.name in listeners:
            parameters.append(_LOG_FORMAT)
            if measures:
                parameters.append(_METRICS_PORT)
        else:
            kind = Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[parameter.name]))

    @functools.wraps(command)
    def run(**given: Any) -> R | None:
        collect_rarely()
        with (
            options_as_flags(),
            _ended_by_sigterm(),
            checked_output(),
            shown_progress(command.__name__, given.pop(_LOG_FORMAT.name, None)) as shown,
            ExitStack() as stack,
        ):
            try:
                listener = shown
                if listeners and measures:
                    place = given.pop(_METRICS_PORT.name)
                    name = command.__name__.strip("_").replace("_", "-")
                    listener = stack.enter_context(_measured(shown, place, name))
                made: dict[str, Any] = dict.fromkeys(listeners, listener)
                for name, model in models.items():
                    made[name] = model(**{o.name: given.pop(o.name) for o in options_of(model)})
                if _only_checking.get():
                    return None
                result = command(**made, **given)
                sys.stdout.flush()
                return result
            except (typer.Exit, typer.Abort, WRONG_USAGE):
                raise
            except KeyboardInterrupt as error:
                told = str(error) or "interrupted; the same command goes on from here"
                tell(told, logging.WARNING)
                raise typer.Exit(143 if isinstance(error, Terminated) else 130) from error
            except Exception as raised:
                if _only_checking.get():
                    raise  # the command that checks this one says it in its own format
                raise typer.Exit(end_badly(raised, as_json=bool(given.get("as_json")))) from raised

    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    run.__doc__ = "\n\n".join(" ".join(of.split()) for of in paragraphs)  # Typer breaks the lines
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@contextmanager
def _measured(shown: Listener, place: str | None, name: str) -> Iterator[Listener]:
    """Makes metrics and a trace of what is shown, unless the command's options are only checked."""
    if _only_checking.get():
        yield shown
        return
    from pipeline.reporting import served_metrics, traced_job

    with (
        traced_job(name) as trace,
        served_metrics(place) as metrics,
        heard_by(listener := fanned_out(shown, metrics, trace)),
    ):
        yield listener


@contextmanager
def only_checking() -> Iterator[None]:
    """Lets commands check their options in the block, and end before they do anything."""
    before = _only_checking.set(True)
    try:
        yield
    finally:
        _only_checking.reset(before)


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as it does before a node is taken away."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Ends the block by SIGTERM as by Ctrl-C, so that no temporary folder is left."""

    def end(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def engine_for(
    resources: Resources, ray_address: str | None, progress: Listener
) -> Iterator[Engine]:
    """Opens the engine that these resources ask for. Ray is started when there is work for it.

    Args:
        resources: How many workers.
        ray_address: The cluster, or None.
        progress: Is told that Ray starts, which takes seconds.

    Yields:
        Ray, or this process if the number of workers is 0.

    Raises:
        UsageError: The address cannot be used (see `cluster_address`), or the work is to be done in
            this process.
    """
    _require_one_place(resources.workers, ray_address)
    if resources.workers == 0:
        from pipeline.engine import InProcess

        with InProcess() as engine:
            yield engine
        return
    from pipeline.engine import OnDemand, cluster_address

    address = cluster_address(ray_address)

    def open_ray() -> AbstractContextManager[Engine]:
        from pipeline.engine import RayEngine

        return RayEngine(resources, address, progress)

    # Ray prints on stdout that a worker died, but stdout is the command's own, and may be JSON.
    with redirect_stdout(sys.stderr), OnDemand(open_ray, resources) as opened:
        yield opened


def configured_catalogue(settings: Config, chosen: str | None) -> str:
    """Returns the url of the catalogue that a command with a configuration works on.

    Args:
        settings: The configuration.
        chosen: The command's option, or None.

    Returns:
        The one that the command line names, else that of the configuration.

    Raises:
        UsageError: The environment names another one than the file: what the file says of pruning
            and retention is meant for its own. Or none is named.
    """
    from pipeline import storage

    url, own = settings.catalogue_url(chosen), settings.catalogue
    if (
        own
        and isinstance(url, FromEnvironment)
        and storage.canonical(url) != storage.canonical(own)
    ):
        raise UsageError(
            f"VDNA_CATALOGUE is {url}, and {settings.path} names the catalogue {own}; give the one "
            "that is meant with --catalogue, or unset VDNA_CATALOGUE"
        )
    return url


def _require_one_place(workers: int | None, ray_address: str | None) -> None:
    """Refuses a cluster for work that is to be done in this process.

    `auto` names no cluster, and every command that is submitted to one has it.

    Raises:
        UsageError: A cluster is named beside no workers.
    """
    if workers == 0 and ray_address not in (None, "auto"):
        raise UsageError(
            f"workers is 0, which works in this process, and --ray-address names {ray_address}; "
            "leave one of them out"
        )


def asked_workers(workers: int | None, ray_address: str | None) -> int | None:
    """Returns the workers of a command that uses Ray only if it is asked to.

    Args:
        workers: What is asked for, or None.
        ray_address: The cluster, or None.

    Returns:
        The number; None for as many as the cluster has room for, and 0 for this process.
    """
    _require_one_place(workers, ray_address)
    return 0 if workers is None and ray_address is None else workers


@contextmanager
def mapper_for(
    catalogue: str, workers: int | None, ray_address: str | None, progress: Listener
) -> Iterator[Mapper]:
    """Opens what calls functions on many items of a catalogue.

    Args:
        catalogue: The catalogue, which every worker must be able to read.
        workers: Ray tasks at a time; 0 for this process, None for as many as there are CPUs.
        ray_address: The cluster, or None.
        progress: Is told that Ray starts.

    Yields:
        Ray, or this process if the number of workers is 0.
    """
    from pipeline.mapper import SerialMapper
    from pipeline.spec import Resources

    if workers == 0:
        yield SerialMapper()
        return
    from pipeline.building import require_shared

    require_shared(catalogue)
    with engine_for(Resources(workers=workers), ray_address, progress) as engine:
        yield engine


def effort_for(
    catalogue: str,
    workers: int | None,
    ray_address: str | None,
    memory: MemoryLimit,
    progress: Listener,
    device: str = "cpu",
) -> Effort:
    """Returns how distances are computed: where, with how much memory, and on which device.

    A cluster is used only if one is named and the work would take this process more than minutes.
    Ray's tasks reserve no device, and would crowd one, so a device is used by this process only.

    Args:
        catalogue: The catalogue, which every worker must be able to read.
        workers: Ray tasks at a time; 0 for this process, None to choose.
        ray_address: The cluster, or None.
        memory: What each process may use.
        progress: Is told of each tile.
        device: `cpu`, or torch's name of a device.

    Raises:
        UsageError: A device is named, and Ray's workers too; or a cluster for this process.
    """
    from pipeline.comparing import Effort

    if device != "cpu":
        if workers or ray_address:
            raise UsageError(
                f"device is {device!r}, but Ray's workers compare on the CPU only; "
                "leave --workers and --ray-address out"
            )
        workers = 0
    _require_one_place(workers, ray_address)

    @contextmanager
    def open_engine(values: int) -> Iterator[Mapper]:
        named = ray_address or os.environ.get("RAY_ADDRESS")
        alone = workers is None and (not named or values < FEW_VALUES)
        with mapper_for(catalogue, 0 if alone else workers, ray_address, progress) as mapper:
            yield mapper

    return Effort(open_engine, memory.bytes, device, progress)


def pinned(place: Catalogue, options: S) -> S:
    """Returns the options with the number of the commit that `at` means now.

    So all is read from one commit.
    """
    return replace(options, at=place.at(options.at).number)


def left_out(place: Catalogue, names: Sequence[str], options: SnapshotOptions) -> list[str]:
    """Returns the datasets that a comparison of all leaves out because they have other specs."""
    if names:
        return []
    compared = place.names(options.at, options.spec)
    return sorted(place.at(options.at).datasets.keys() - set(compared))


def lens_for(
    place: Catalogue,
    names: Sequence[str],
    lens: str | None,
    neurons: Sequence[str],
    options: SnapshotOptions,
) -> Lens | None:
    """Returns the lens that is named or chosen, for the spec that the datasets share."""
    from pipeline.comparing import spec_of

    if lens is None and not neurons:
        return None
    spec = spec_of(place, names, at=options.at, spec=options.spec)
    return chosen_lens(place, lens, neurons, spec)


def chosen_lens(
    place: Catalogue, lens: str | None, neurons: Sequence[str], spec: Spec
) -> Lens | None:
    """Returns the lens that is named, or one of the chosen neurons; None for neither."""
    from pipeline.catalogue import find_lens
    from pipeline.dna import Lens

    if lens is not None and neurons:
        raise UsageError(
            f"lens is {lens!r}, and neurons are chosen, too; give --lens or --neurons, not both"
        )
    if lens is not None:
        return find_lens(place, lens, spec)
    return Lens.chosen(spec, neurons) if neurons else None


@contextmanager
def _refusals_as_json(words: Sequence[str]) -> Iterator[None]:
    """Prints what the parser refuses on stdout as other errors, too, if the words ask for JSON."""
    try:
        yield
    except SystemExit as ended:
        refused = ended.__context__  # Typer has printed it, and ends the process
        options = words[: words.index("--")] if "--" in words else words
        if isinstance(refused, WRONG_USAGE) and "--json" in options:
            print_error(UsageError(cast(typer.BadParameter, refused).format_message()))
        raise


class Application(typer.Typer):
    """Commands, whose help and version fail as they do if stdout does not take them."""

    def __call__(self, args: Sequence[str] | None = None, **settings: Any) -> Any:
        """Runs the command that the command line names, and ends the process."""
        words = sys.argv[1:] if args is None else list(args)
        with checked_output():
            try:
                with _refusals_as_json(words):
                    return super().__call__(words, **settings)
            except VdnaError as error:
                sys.exit(end_badly(error, as_json=False))


def run_alone(command: Callable[..., Any], settings: dict[str, Any] | None = None) -> None:
    """Runs one command, for `python -m jobs.NAME`.

    Args:
        command: The command.
        settings: Those of its command line, if it has its own.
    """
    app = Application(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=settings)(command)
    app()
