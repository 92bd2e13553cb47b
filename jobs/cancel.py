"""End a job on a cluster."""

from __future__ import annotations

from jobs.output import print_json, say
from jobs.shell import JsonOption, guarded, run_alone
from jobs.submission import IdArgument, KubernetesOption, ServerOption, server_at


@guarded
def cancel(
    id: IdArgument,
    ray_address: ServerOption = None,
    kubernetes: KubernetesOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a job, and wait until it has ended. What it counted is kept."""
    from pipeline.engine import wait_for_end
    from pipeline.reporting import job_cancel_lines, job_json

    server = server_at(ray_address, kubernetes)
    before = server.job(id)
    if not before.has_ended:
        server.stop(id)
    job = wait_for_end(server, id)
    if as_json:
        print_json(job_json(job))
    else:
        say(*job_cancel_lines(job, server.submit_flags, in_time=not before.has_ended))


if __name__ == "__main__":
    run_alone(cancel)
