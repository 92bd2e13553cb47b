"""Run a command on a cluster, as a job of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.budget import require_budget
from jobs.output import print_json, say, tell
from jobs.shell import JsonOption, guarded, run_alone
from jobs.submission import (
    COMMANDS,
    KubernetesOption,
    ServerOption,
    checked_environment,
    checked_words,
    follow_to_end,
    in_environment,
    parsed_words,
    server_at,
    told_how_to_come_back,
    wait_to_end,
)
from pipeline.events import Idle, Listener

SETTINGS = {"allow_interspersed_args": False}
"""What comes after the name of the command belongs to that command."""


@guarded
def submit(
    progress: Listener,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help=f"Command with its arguments: one of {', '.join(COMMANDS)}.",
        ),
    ],
    ray_address: ServerOption = None,
    kubernetes: KubernetesOption = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="RayJob that jobs on Kubernetes are made of, with image and sizes (.yaml)."
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(help="Print what the job prints, until it ends; or only submit it."),
    ] = True,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the job ends, without what it prints.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Variable of this machine that the job gets, too. Whoever sees the cluster's jobs "
            "can read it. Can be repeated.",
        ),
    ] = None,
    working_dir: Annotated[
        str | None,
        typer.Option(help="Folder of this machine that the job gets a copy of and starts in."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="Refuse a build that may cost more, as `vdna plan` forecasts it."),
    ] = None,
    price: Annotated[
        str | None, typer.Option(help="Prices to forecast the cost by (.yaml).")
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(
            help="What `vdna plan --json` printed on a machine of the cluster (.json), to forecast "
            "by; without it the speed is measured here."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a command on a cluster, and exit with its exit code. Ctrl-C leaves the job running."""
    from pipeline.engine import Submission, read_template, submit_once, template_environment
    from pipeline.errors import UsageError
    from pipeline.reporting import job_json

    if (kubernetes is None) != (template is None):
        raise UsageError(
            "--kubernetes NAMESPACE and --template FILE go together: the RayJob of the file says "
            "which image and machines its jobs get"
        )
    rayjob = read_template(template) if template else None
    there = template_environment(rayjob) if rayjob else None
    if budget is None and (unused := price or measured):
        raise UsageError(f"--budget says what a build may cost; without it {unused} is not read")
    checked = checked_words(words, working_dir, there)
    submission = Submission(checked, checked_environment(env or ()), working_dir)
    server = server_at(ray_address, kubernetes, rayjob)
    if budget is not None:
        with in_environment(there or {}):
            options = parsed_words(checked).params
        options |= {"price": price, "measured": measured}
        require_budget(checked[0], options, budget, working_dir, progress)
    id = submit_once(server, submission)
    progress(Idle())  # the job speaks for itself from here on
    tell(f"{id}: submitted to {server.address}")
    if follow and not wait and not as_json:
        raise typer.Exit(follow_to_end(server, id).exit_code)
    code = 0
    if follow or wait:
        job = wait_to_end(server, id)
        code = job.exit_code
    elif as_json:
        with told_how_to_come_back(server, id):
            job = server.job(id)
    else:
        say(id)
        return
    if as_json:
        print_json(job_json(job))
    raise typer.Exit(code)


if __name__ == "__main__":
    run_alone(submit, SETTINGS)
