"""Print what a job on a cluster has printed."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.output import say
from jobs.shell import guarded, run_alone
from jobs.submission import IdArgument, KubernetesOption, ServerOption, follow_to_end, server_at


@guarded
def logs(
    id: IdArgument,
    ray_address: ServerOption = None,
    kubernetes: KubernetesOption = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Go on until the job ends, and exit with its exit code."
        ),
    ] = False,
) -> None:
    """Print what a job has printed, from its beginning."""
    server = server_at(ray_address, kubernetes)
    if follow:
        raise typer.Exit(follow_to_end(server, id).exit_code)
    say(*server.log(id).splitlines())


if __name__ == "__main__":
    run_alone(logs)
