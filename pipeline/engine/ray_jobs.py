"""Submits commands to the job server of a Ray cluster, by Ray's own client.

>>> server = RayJobServer("http://head:8265")                           # doctest: +SKIP
>>> submit_once(server, Submission(("build", "a", "s3://images")))           # doctest: +SKIP
'vdna-build-be7d33aa-1'
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import ClientError, WSServerHandshakeError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from pipeline.engine.job_server import (
    TIMEOUT,
    JobState,
    Submission,
    SubmittedJob,
    is_ours,
    no_such_job,
    shell_line,
)
from pipeline.engine.ray_start import require_answer
from pipeline.errors import TransientError, UsageError, redact

STATES: dict[JobStatus, JobState] = {
    JobStatus.PENDING: "waiting",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "cancelled",
}

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that name the cluster. In Ray's client they would win over an address that is given."""

UPLOAD_SECONDS = 3600.0
"""How long the copy of a working folder may take. A socket counts all of it as one step."""

TALKERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell of each connection that closes, and of each step of an upload."""


class _Client(JobSubmissionClient):
    """Ray's client, with a limit to how long it waits for an answer."""

    def _do_request(self, method: str, endpoint: str, **request: Any) -> Any:
        timeout = TIMEOUT if request.get("data") is None else UPLOAD_SECONDS
        return super()._do_request(method, endpoint, **request, timeout=timeout)


class RayJobServer:
    """The job server of a Ray cluster. It is a `JobServer`."""

    def __init__(self, address: str | None = None) -> None:
        """Connects to it.

        Args:
            address: Its url, such as `http://head:8265`. None takes `RAY_API_SERVER_ADDRESS` or
                `RAY_ADDRESS`.

        Raises:
            UsageError: No cluster is named, none answers there, or it does not let us in.
        """
        named = address or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)
        if named is None:
            raise UsageError(
                "no cluster is named; give --ray-address http://HEAD:8265, or set RAY_ADDRESS"
            )
        if not re.match("https?://[^/]", named):
            raise UsageError(
                f"the address of the cluster's job server is {named!r}; give its url, such as "
                "http://HEAD:8265, with --ray-address"
            )
        if redact(named) != named:
            raise UsageError(
                f"the address {named} holds a secret; leave it out. A token of Ray goes into a "
                "file that RAY_AUTH_TOKEN_PATH names"
            )
        self.address = named
        self.flags = f" --ray-address {shlex.quote(address)}" if address else ""
        self.submit_flags = self.flags
        self.template = None
        require_answer(named)
        for talker in TALKERS:
            logging.getLogger(talker).setLevel(logging.WARNING)
        with self._known_errors(), _without(ADDRESS_VARIABLES):
            self._client = _Client(named)

    def submit(self, id: str, submission: Submission) -> bool:
        """Starts a job, unless there was one of this id."""
        runtime: dict[str, object] = {}
        if submission.environment:
            runtime["env_vars"] = dict(submission.environment)
        if submission.working_dir is not None:
            runtime["working_dir"] = submission.working_dir
        try:
            with self._known_errors():
                self._client.submit_job(
                    entrypoint=shell_line(submission.words),
                    submission_id=id,
                    runtime_env=runtime,
                )
        except TransientError as error:
            if f"{id} already exists" in str(error):
                return False
            raise
        except ValueError as error:  # the working folder is none, or too large
            raise UsageError(f"working_dir is {submission.working_dir!r}: {error}") from error
        return True

    def jobs(self) -> list[SubmittedJob]:
        """Returns the jobs that this package submitted."""
        with self._known_errors():
            found = self._client.list_jobs()
        return [
            _described(job)
            for job in found
            if job.type is JobType.SUBMISSION and is_ours(job.submission_id or "")
        ]

    def job(self, id: str) -> SubmittedJob:
        """Returns one of them."""
        with self._known_errors(id):
            return _described(self._client.get_job_info(id))

    def log(self, id: str) -> str:
        """Returns what the job has printed so far."""
        with self._known_errors(id):
            return self._client.get_job_logs(id)

    def tail(self, id: str) -> tuple[str, Iterator[str]]:
        """Returns what the job prints from its beginning. It has one log, without a name."""
        return "", self._printed(id)

    def stop(self, id: str) -> None:
        """Asks a job to end."""
        with self._known_errors(id):
            self._client.stop_job(id)

    def _printed(self, id: str) -> Iterator[str]:
        with self._known_errors(id), asyncio.Runner() as runner:
            texts = self._client.tail_job_logs(id)

            async def following() -> str | None:
                with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                    async with asyncio.timeout(TIMEOUT[1]):
                        return await anext(texts, None)  # it gives aiohttp `ssl=None`

            while (text := runner.run(following())) is not None:
                yield text

    @contextmanager
    def _known_errors(self, id: str | None = None) -> Iterator[None]:
        """Raises errors of Ray's client as ours, and asks it nothing about a job of others."""
        if id is not None and not is_ours(id):
            raise no_such_job(self, id)
        try:
            yield
        except AuthenticationError as error:
            raise self._refusal() from error
        except (RuntimeError, OSError, ClientError) as error:
            status = _status(error)
            if status in (401, 403):
                raise self._refusal() from error
            if status == 404 and id is not None:
                raise no_such_job(self, id) from error
            said = f"answered {status}" if status else "did not answer"
            raise TransientError(
                f"{self.address} {said}: {_last_line(str(error) or type(error).__name__)}"
            ) from error

    def _refusal(self) -> UsageError:
        return UsageError(
            f"the cluster at {self.address} asks for a token; set RAY_AUTH_MODE=token, and put its "
            "token into ~/.ray/auth_token or a file that RAY_AUTH_TOKEN_PATH names"
        )


def _status(error: Exception) -> int | None:
    """Returns the status of the answer that was not what Ray's client expected."""
    if isinstance(error, WSServerHandshakeError):
        return error.status
    found = re.search(r"Request failed with status code (\d+):", str(error))
    return int(found[1]) if found else None


def _last_line(text: str) -> str:
    """Returns what a traceback ends with: the server sends one, in one of its own."""
    return next((line for line in reversed(text.splitlines()) if line.strip(" .")), text)


def _described(job: JobDetails) -> SubmittedJob:
    return SubmittedJob(
        id=job.submission_id or "",
        command=job.entrypoint,
        state=STATES[job.status],
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
        code=job.driver_exit_code,
        message=job.message or "",
    )


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Hides variables of the environment from the block."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
