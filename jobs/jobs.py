"""List the jobs that were submitted to a cluster."""

from __future__ import annotations

import time

from jobs.output import print_json, say
from jobs.shell import JsonOption, guarded, run_alone
from jobs.submission import KubernetesOption, ServerOption, server_at


@guarded
def jobs(
    ray_address: ServerOption = None,
    kubernetes: KubernetesOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs of a cluster that `vdna submit` started, the newest first."""
    from pipeline.reporting import job_json, job_lines

    found = sorted(
        server_at(ray_address, kubernetes).jobs(), key=lambda job: job.started or 0, reverse=True
    )
    if as_json:
        print_json([job_json(job) for job in found])
    else:
        say(*job_lines(found, time.time()))


if __name__ == "__main__":
    run_alone(jobs)
