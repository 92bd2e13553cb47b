"""Says in words and in JSON what a cluster knows of the jobs that were submitted to it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from pipeline.engine import SubmittedJob
from pipeline.reporting.progress import duration


def job_json(job: SubmittedJob) -> dict[str, object]:
    """Returns a job for `--json`.

    Args:
        job: The job.

    Returns:
        Its fields. Times are in seconds since 1970, and `exit_code` is None until it ends.
    """
    fields = asdict(job)
    del fields["code"]
    return fields | {"exit_code": job.exit_code if job.has_ended else None}


def job_lines(jobs: Sequence[SubmittedJob], now: float) -> list[str]:
    """Returns a table of jobs.

    Args:
        jobs: The jobs, in their order.
        now: The time, in seconds since 1970.

    Returns:
        Its lines.
    """
    width = max(len(id) for id in ("job", *(job.id for job in jobs)))
    lines = [f"{'job':{width}}  {'state':12}  {'started':19}  {'took':>9}  command"]
    for job in jobs:
        state = f"failed ({job.exit_code})" if job.state == "failed" else job.state
        begun = "" if job.started is None else f"{datetime.fromtimestamp(job.started, UTC):%F %T}"
        lines.append(
            f"{job.id:{width}}  {state:12}  {begun:19}  {_took(job, now):>9}  {job.command}"
        )
    return lines


def job_end_lines(job: SubmittedJob, now: float) -> list[str]:
    """Says how a job ended.

    Args:
        job: The job.
        now: The time, in seconds since 1970.

    Returns:
        A line; more if the command has no exit code of its own that would say why.
    """
    took = _took(job, now)
    after = f" after {took}" if took else ""
    if job.state == "cancelled" and job.message:
        return [f"{job.id}: cancelled{after}: {job.message}"]
    if job.state != "failed":
        return [f"{job.id}: {job.state}{after}"]
    if job.code is not None:
        return [f"{job.id}: failed with exit code {job.exit_code}{after}"]
    return [f"{job.id}: failed{after}: {job.message or 'the cluster does not say why'}"]


def job_cancel_lines(job: SubmittedJob, flags: str, *, in_time: bool) -> list[str]:
    """Says what became of a job that was to be cancelled.

    Args:
        job: The job as it ended.
        flags: The options that `vdna submit` needs for the cluster.
        in_time: Whether it had not ended before.

    Returns:
        Lines, with how to go on from what the job has done.
    """
    if not in_time:
        return [f"{job.id} had ended before: {job.state}"]
    if job.state != "cancelled":
        return [f"{job.id} ended by itself meanwhile: {job.state}"]
    return [
        f"{job.id} is cancelled. What it counted is kept, and the same command goes on from there; "
        "give it --working-dir and --env again if it had them:",
        f"  vdna submit{flags} {_words_of(job.command)}",
    ]


def _words_of(line: str) -> str:
    """Returns the words that were submitted, from the line that the cluster's shell ran."""
    _, name, _, _, *rest = shlex.split(line)
    return shlex.join([name, *rest])


def _took(job: SubmittedJob, now: float) -> str:
    if job.started is None or (job.has_ended and job.ended is None):
        return ""
    return duration(max(0.0, (job.ended or now) - job.started))  # the cluster has its own clock
