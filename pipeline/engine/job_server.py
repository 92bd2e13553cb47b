"""Gives commands to a cluster, where each runs as a job: its name, its shell line, and its end.

>>> named_job(Submission(("build", "a", "s3://images")))
'vdna-build-be7d33aa'
>>> shell_line(["build", "a", "s3://my images/*"])
"vdna build --ray-address auto a 's3://my images/*'"
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Literal, Protocol, TypeVar

from pipeline.errors import Conflict, NotFound, TransientError

T = TypeVar("T")

JobState = Literal["waiting", "running", "succeeded", "failed", "cancelled"]

ENDED: tuple[JobState, ...] = ("succeeded", "failed", "cancelled")

POLL_SECONDS = 1.0
"""How long is waited between two looks at a job."""

SILENT_SECONDS = 120.0
"""How long a job server may not answer before whoever waits for a job gives up."""

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and to wait for bytes. A log that is silent for longer is asked for again."""

CANCELLED = 143
"""The exit code of a job that was cancelled: that of a command which SIGTERM ends."""

_ID = re.compile(r"(vdna-[a-z-]+-[0-9a-f]{8})-(\d+)")


def submission_id() -> str:
    """Returns the id that a Ray cluster has started this process by, as a job; "" for none."""
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return ""
    return str(config.get("metadata", {}).get("job_submission_id", ""))


@dataclass(frozen=True)
class Submission:
    """A command that a cluster is to run.

    Attributes:
        words: The command's name and its arguments, without `vdna`.
        environment: Variables that it gets beside those of the cluster's machines. Whoever may look
            at jobs can read them.
        working_dir: A folder of this machine that it gets a copy of and starts in, or its url.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None


@dataclass(frozen=True)
class SubmittedJob:
    """What a cluster knows of a job.

    Attributes:
        id: Its id; the number at its end counts the attempts at one command.
        command: The shell line that it runs.
        state: Whether it waits, runs, or how it ended.
        started: When it was submitted, in seconds since 1970; None if the cluster does not say.
        ended: When it ended; None if it has not, or the cluster does not say.
        code: The exit code of the command, or minus the signal that ended it; None if it has not
            ended, or never began.
        message: What the cluster says about its state.
        cluster: The Ray cluster that was made for it, if one was. Another one begins it anew.
    """

    id: str
    command: str
    state: JobState
    started: float | None = None
    ended: float | None = None
    code: int | None = None
    message: str = ""
    cluster: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    @property
    def exit_code(self) -> int:
        """The exit code for whoever waited for it: the command's own, as far as it has one."""
        if self.state == "cancelled":
            return CANCELLED
        if self.state == "succeeded":
            return 0
        if not self.code:
            return 1
        return self.code if self.code > 0 else 128 - self.code


class JobServer(Protocol):
    """Where jobs are submitted to.

    All methods raise `UsageError` if the server is not there or lets nobody in, `TransientError` if
    it does not answer properly, and `NotFound` if it has no job of the id that this package
    submitted. Jobs of others are neither shown nor ended.
    """

    @property
    def address(self) -> str:
        """Where it is, for people."""

    @property
    def flags(self) -> str:
        """The options that name it on the command line, if any must, with a space before."""

    @property
    def submit_flags(self) -> str:
        """The options that `vdna submit` needs for it, with a space before."""

    @property
    def template(self) -> Mapping[str, object] | None:
        """What it makes jobs of, beside the command; None for a cluster that runs already."""

    def submit(self, id: str, submission: Submission) -> bool:
        """Starts a job; returns False, and starts none, if there was one of this id."""

    def jobs(self) -> list[SubmittedJob]:
        """Returns the jobs that this package submitted, in any order."""

    def job(self, id: str) -> SubmittedJob:
        """Returns one of them."""

    def log(self, id: str) -> str:
        """Returns what the job has printed so far."""

    def tail(self, id: str) -> tuple[str, Iterator[str]]:
        """Returns what the job prints from the beginning of a log, and which log this is.

        The text may stop before the job ends. Another log may follow, which begins anew: that of
        another pod. The name of the log is empty if there is only one, or none yet.
        """

    def stop(self, id: str) -> None:
        """Asks a job to end, and does not wait for it. One that has ended is left as it is."""


def named_job(submission: Submission, template: Mapping[str, object] | None = None) -> str:
    """Returns the name of the jobs that do the same, without the number of the attempt.

    Args:
        submission: The command, with its variables and its folder.
        template: What the server makes its jobs of.

    Returns:
        The name. It is made of the command alone if there is nothing else.
    """
    words, folder = list(submission.words), submission.working_dir
    if folder is not None and "://" not in folder:
        folder = os.path.abspath(folder)
    others = [sorted(submission.environment.items()), folder, template]
    same = [words, *others] if any(others) else words
    text = json.dumps(same, sort_keys=True, default=str)  # YAML has dates, too
    return f"vdna-{words[0]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_ours(id: str) -> bool:
    """Tells whether a job was submitted by this package, by its id."""
    return _ID.fullmatch(id) is not None


def no_such_job(server: JobServer, id: str) -> NotFound:
    """Returns the error for a job that is not there, or that this package did not submit."""
    return NotFound(
        f"{server.address} has no job {id!r} of `vdna submit`; `vdna jobs{server.flags}` lists them"
    )


def shell_line(words: Sequence[str]) -> str:
    """Returns the line that a cluster's shell runs as exactly these words.

    Args:
        words: The command's name and its arguments, without `vdna` and without an address.

    Returns:
        The line. The command uses the cluster that it runs in.
    """
    return shlex.join(["vdna", words[0], "--ray-address", "auto", *words[1:]])


def submit_once(server: JobServer, submission: Submission) -> str:
    """Has a cluster run a command, unless it is running it already.

    Args:
        server: The cluster's job server.
        submission: The command.

    Returns:
        The id of the job: the command's name and the number of the attempt.

    Raises:
        Conflict: The same command is running, with the same variables, folder and template; or
            others submit it at the same moment.
    """
    name = named_job(submission, server.template)
    for _ in range(3):
        attempts = {}
        for job in server.jobs():
            found = _ID.fullmatch(job.id)
            if found and found[1] == name:
                attempts[int(found[2])] = job
                if not job.has_ended:
                    raise Conflict(
                        f"{job.id} is {job.state} and does just this; "
                        f"`vdna logs {job.id} --follow{server.flags}` shows what it prints, "
                        f"and `vdna cancel {job.id}{server.flags}` ends it"
                    )
        id = f"{name}-{max(attempts, default=0) + 1}"
        if server.submit(id, submission):
            return id
    raise Conflict(f"others submit {name} at this moment; look at them with `vdna jobs`")


def followed(
    server: JobServer, id: str, tell: Callable[[str], None] = lambda said: None
) -> Iterator[str]:
    """Yields the lines that a job prints, from its beginning until it has ended.

    A connection that breaks is opened again, and no line of a log comes twice. A job that begins
    anew has another log, which comes from its beginning.

    Args:
        server: The cluster's job server.
        id: The job.
        tell: Is told in words what else there is to know: why a job waits that waits at two looks,
            that another log follows, and that the log of an ended job cannot be had.

    Yields:
        Lines, without their ends.

    Raises:
        TransientError: The server does not answer for minutes, and the job may go on.
    """
    printed, rest, log, cluster = 0, "", "", ""
    seen = told = ""
    ended = False
    answered = monotonic()
    while True:
        try:
            job = server.job(id)  # asked first: if it has ended, all that it printed is there
            ended = job.has_ended
            answered = answered if ended else monotonic()
            if job.state == "waiting" and job.message == seen != told:
                tell(f"{id} waits: {job.message}")
                told = seen
            seen = job.message if job.state == "waiting" else ""
            name, texts = server.tail(id)
            if name and name != log:
                yield from [rest] if rest else []
                if log:
                    where = (
                        f"the cluster {job.cluster}" if job.cluster != cluster else "another pod"
                    )
                    tell(f"{id} goes on in {where}, whose log begins anew")
                printed, rest, log, cluster = 0, "", name, job.cluster
            passed = 0
            for text in texts:
                new = text[max(0, printed - passed) :]
                passed += len(text)
                printed = max(printed, passed)
                *lines, rest = (rest + new).split("\n")
                yield from lines
                answered = monotonic() if new else answered
            if ended:
                break
        except TransientError as error:
            if monotonic() > answered + SILENT_SECONDS:
                if not ended:
                    raise
                tell(f"{id} has ended, and the rest of what it printed cannot be read: {error}")
                break
        sleep(POLL_SECONDS)
    if rest:
        yield rest


def wait_for_end(server: JobServer, id: str) -> SubmittedJob:
    """Waits until a job has ended.

    Args:
        server: The cluster's job server.
        id: The job.

    Returns:
        The job as it ended.
    """
    while not (job := _patiently(lambda: server.job(id))).has_ended:
        sleep(POLL_SECONDS)
    return job


def _patiently(ask: Callable[[], T]) -> T:
    """Asks again, for a while, if a server does not answer."""
    end = monotonic() + SILENT_SECONDS
    while True:
        try:
            return ask()
        except TransientError:
            if monotonic() > end:
                raise
        sleep(POLL_SECONDS)
