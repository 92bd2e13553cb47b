"""What `submit`, `jobs`, `logs` and `cancel` share: the cluster, what may be submitted, the end."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.output import say, tell
from jobs.shell import only_checking

if TYPE_CHECKING:
    from pipeline.engine import JobServer, SubmittedJob

COMMANDS = ("build", "refresh", "compare", "calibrate", "rank", "verify", "gc")
"""The commands that a cluster can run: they use its workers, and write to stores."""

OUTPUTS = ("catalogue", "out", "html", "figure", "junit", "summary", "metrics")
"""Options that name what a command writes."""

INPUTS = ("source", "sources", "config", "changes", "weights", "ranges", "lens")
"""Options that name what a command reads."""

NOT_SENT = ("metrics_port",)
"""Options that are not taken from this machine's environment: they are about this machine."""

NAMES = {"ranges": r"[0-9a-f]{32}", "lens": r".*(?<!\.parquet)"}
"""How an input is written that names a thing in the catalogue, and no file."""

_SECRET_NAMES = re.compile(
    r"(?:\w+_)?(?:pass|passcode|pat|creds?|credentials?|webhook|key|dsn)(?:_(?:url|uri))?",
    re.IGNORECASE,
)
"""Names of variables whose values are secret, beside those that are secret everywhere."""

_SECRET_VALUES = re.compile(
    r"\bgh[oprsu]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}|\bxox[a-z]-[\w-]{8,}"
    r"|\bA[KS]IA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\bsk-[\w-]{20,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+"
    r"|\bhooks\.slack\.com/\S+|\bdiscord(?:app)?\.com/api/webhooks/\S+|PRIVATE KEY-----[\s\S]*"
)
"""Tokens of well-known services, and private keys. They show what they are."""

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Url of the cluster's job server, such as http://head:8265 (default: "
        "RAY_API_SERVER_ADDRESS, or RAY_ADDRESS).",
    ),
]
KubernetesOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMESPACE",
        help="Namespace of Kubernetes with KubeRay, on the cluster of kubectl, instead of a Ray "
        "cluster that runs already.",
    ),
]
IdArgument = Annotated[str, typer.Argument(help="The job, as `vdna jobs` lists it.")]


def server_at(
    ray_address: str | None, kubernetes: str | None, template: dict[str, Any] | None = None
) -> JobServer:
    """Returns the job server that the options name.

    Args:
        ray_address: The url of a Ray cluster's.
        kubernetes: A namespace of Kubernetes, if it is one.
        template: The RayJob that its jobs are made of.

    Returns:
        The server.

    Raises:
        UsageError: Both are named, or none that lets us in.
    """
    from pipeline.engine import KubeRayJobServer, RayJobServer
    from pipeline.errors import UsageError

    if kubernetes is None:
        return RayJobServer(ray_address)
    if ray_address is not None:
        raise UsageError("--ray-address and --kubernetes name two clusters; give one of them")
    return KubeRayJobServer(kubernetes, template)


def checked_words(
    words: Sequence[str], working_dir: str | None, there: Mapping[str, str] | None
) -> tuple[str, ...]:
    """Checks a command as it would check itself, and that it means the same on a cluster.

    Args:
        words: The command and its arguments, without `vdna`.
        working_dir: The folder that it will start in, or None.
        there: Variables that it will find where it runs, as the template of Kubernetes gives them;
            None for a cluster that runs already.

    Returns:
        The words, with those options that it takes from this machine's environment.

    Raises:
        UsageError: It is no command for a cluster, holds a secret, or names a file that the cluster
            does not see.
    """
    from pipeline.errors import UsageError

    name, *rest = words
    if name not in COMMANDS:
        raise UsageError(f"{name!r} cannot be submitted; these can: {', '.join(COMMANDS)}")
    with in_environment(there or {}):
        context = parsed_words(words)
        with only_checking():
            context.command.invoke(context)
    given = context.params
    if given["ray_address"] is not None:
        raise UsageError(
            f"give --ray-address before {name}, where it names the cluster to submit to; the "
            "command uses the cluster that it runs in"
        )
    if (device := given.get("device", "cpu")) != "cpu":
        raise UsageError(
            f"device is {device!r}, but the command uses Ray's workers there, which compare on the "
            "CPU only; leave --device out"
        )
    if working_dir is not None:
        _require_no_secret(working_dir, "")
    for place in (name for name in (*OUTPUTS, *INPUTS) if name in given):
        _require_seen(place, given[place], working_dir, takes_folder=there is None)
    if given.get("config") is not None:
        _require_config_seen(given["config"], given["catalogue"], working_dir)
    for word in rest:
        _require_no_secret(word, given.get("allow_query") or "")
    added = []
    for option in context.command.params:
        if option.name in NOT_SENT:
            continue
        source = context.get_parameter_source(option.name)
        if source is not None and source.name == "ENVIRONMENT" and option.envvar in os.environ:
            _require_no_secret(given[option.name], "")
            if option.name == "catalogue" and given.get("config") is not None:
                raise UsageError(
                    f"VDNA_CATALOGUE is {given[option.name]}, and {given['config']} may name "
                    f"another catalogue; give the one that is meant with --catalogue after {name}, "
                    "or unset VDNA_CATALOGUE"
                )
            added += [option.opts[0], given[option.name]]
    return (name, *added, *rest)


def parsed_words(words: Sequence[str]) -> Any:
    """Returns the context of Click in which a command of ours would run.

    Args:
        words: The command and its arguments, without `vdna`.
    """
    from typer.main import get_command

    from jobs.app import app

    name, *rest = words
    group: Any = get_command(app)
    return group.commands[name].make_context(f"vdna {name}", rest)


@contextmanager
def in_environment(there: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the block that are not set here.

    Args:
        there: The variables.

    Yields:
        Nothing.
    """
    added = {name: value for name, value in there.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def checked_environment(names: Iterable[str]) -> dict[str, str]:
    """Returns variables of this machine for a job, if everybody may read them.

    Args:
        names: Their names.

    Returns:
        Their values.

    Raises:
        UsageError: One is not set here, or is a secret.
    """
    from pipeline.errors import QUERY_VARIABLE, UsageError, looks_secret, redact

    found = {}
    for name in names:
        value = os.environ.get(name)
        if value is None:
            raise UsageError(
                f"--env {name} names no variable that is set on this machine"
                + ("; give its name only, without a value" if "=" in name else "")
            )
        secret = name.startswith(QUERY_VARIABLE) or looks_secret(name, value)
        secret = secret or _SECRET_NAMES.fullmatch(name) is not None
        if secret or redact(value) != value or _SECRET_VALUES.search(value):
            raise UsageError(
                f"--env {name} looks like a secret, and whoever sees the cluster's jobs can read "
                "their variables. Let the cluster's machines have it by themselves, by a role or a "
                "Secret of Kubernetes (infra/README.md)"
            )
        found[name] = value
    return found


def follow_to_end(server: JobServer, id: str) -> SubmittedJob:
    """Prints what a job prints, until it ends, and then how it did.

    Returns:
        The job as it ended.

    Raises:
        KeyboardInterrupt: Ctrl-C. The message says that the job goes on.
        TransientError: The cluster does not answer, or no longer lets us in. So does this one.
    """
    from pipeline.engine import followed

    return _to_end(server, id, followed(server, id, tell))


def wait_to_end(server: JobServer, id: str) -> SubmittedJob:
    """Does what `follow_to_end` does, without what the job prints."""
    job = _to_end(server, id, ())
    if job.exit_code:
        tell(f"`vdna logs {id}{server.flags}` shows what it printed")
    return job


def _to_end(server: JobServer, id: str, lines: Iterable[str]) -> SubmittedJob:
    from pipeline.engine import wait_for_end
    from pipeline.reporting import job_end_lines

    with told_how_to_come_back(server, id):
        for line in lines:
            say(line)
        job = wait_for_end(server, id)
    level = logging.ERROR if job.exit_code else logging.INFO
    tell("\n".join(job_end_lines(job, time.time())), level)
    return job


@contextmanager
def told_how_to_come_back(server: JobServer, id: str) -> Iterator[None]:
    """Adds to what interrupts the block that the job exists, and may go on."""
    from pipeline.errors import TransientError, UsageError

    back = (
        f"`vdna logs {id} --follow{server.flags}` comes back to it, and "
        f"`vdna cancel {id}{server.flags}` ends it"
    )
    try:
        yield
    except KeyboardInterrupt as error:
        raise type(error)(f"the job goes on; {back}") from error
    except (UsageError, TransientError) as error:
        raise TransientError(f"{str(error).rstrip('.')}. The job {id} may go on; {back}") from error


def names_in_catalogue(option: str, value: str | None) -> bool:
    """Tells whether the value of an option names a thing in the catalogue, and no file.

    Args:
        option: The name of the option.
        value: What it is.

    Returns:
        Whether it does.
    """
    return value is not None and re.fullmatch(NAMES.get(option, "(?!)"), value) is not None


def _require_seen(name: str, value: Any, working_dir: str | None, *, takes_folder: bool) -> None:
    """Refuses a place that is relative to this machine's folder."""
    from pipeline.errors import UsageError
    from pipeline.storage import local_path, protocol_of
    from pipeline.wording import option

    for place in [value] if isinstance(value, str) else value or ():
        if protocol_of(place) != "file" or names_in_catalogue(name, place):
            continue
        if Path(local_path(place) if "://" in place else place).is_absolute():
            continue
        if name in OUTPUTS:
            raise UsageError(
                f"{name} is {place!r}, which the cluster would write to a folder of its own that "
                "goes with the job; give a url, or an absolute path that all its machines share"
            )
        if working_dir is None:
            raise UsageError(
                f"{name} is {place!r}, a path of this machine, which the cluster does not see; "
                "give a url, or an absolute path that all its machines share"
                + (
                    f", or the folder that it starts from with {option('working_dir', '.')}"
                    if takes_folder
                    else ""
                )
            )


def _require_config_seen(config: str, catalogue: str | None, working_dir: str | None) -> None:
    """Refuses a configuration that the job would not find, or that names a catalogue of its folder.

    Args:
        config: The path or url of the file, which is read if this machine has it.
        catalogue: The catalogue that the command names, which comes before that of the file.
        working_dir: The folder that the job gets a copy of, or None.

    Raises:
        UsageError: It is such a file, or no configuration.
    """
    from pipeline.errors import UsageError
    from pipeline.refreshing import load_config
    from pipeline.storage import local_path, protocol_of

    if any(protocol_of(place) != "file" for place in (config, working_dir or "")):
        return
    file = Path(working_dir or "", local_path(config) if "://" in config else config)
    if not file.is_file():
        if working_dir is not None and file.is_relative_to(working_dir):
            raise UsageError(f"config is {config!r}, and {working_dir} has no such file")
        return
    own = load_config(str(file)).catalogue
    if catalogue is None and own is not None:
        _require_seen("catalogue", own, working_dir, takes_folder=False)


def _require_no_secret(word: str, queries: str) -> None:
    """Refuses an argument that everybody who sees the cluster's jobs would read."""
    from pipeline.errors import UsageError, redact
    from pipeline.storage import canonical

    text = word.partition("=")[2] if word.startswith("--") and "=" in word else word
    shown = _SECRET_VALUES.sub("…", text)
    if "://" in text and shown == text:
        canonical(text, queries={name.strip() for name in queries.split(",")})
    elif redact(shown) != text:
        raise UsageError(
            f"{redact(shown)} looks like a secret, which the job's description would show"
        )
