"""A job server in memory: jobs end when a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.engine.job_server import JobState, Submission, SubmittedJob, shell_line
from pipeline.errors import NotFound


class MemoryJobs:
    """Keeps what was submitted. It is a `JobServer`."""

    address = "http://head:8265"
    flags = " --ray-address http://head:8265"
    submit_flags = flags
    template: dict[str, object] | None = None

    def __init__(self) -> None:
        self.submitted: dict[str, Submission] = {}
        self.known: dict[str, SubmittedJob] = {}
        self.printed: dict[str, str] = {}
        self.ends: tuple[JobState, int | None] | None = ("succeeded", 0)
        """How a job ends as soon as it is submitted; None if it goes on."""

    def submit(self, id: str, submission: Submission) -> bool:
        if id in self.known:
            return False
        self.submitted[id] = submission
        line = shell_line(submission.words)
        self.known[id] = SubmittedJob(id, line, "running", started=1000.0)
        self.printed[id] = f"Running {line}\n12 images\nnearly "
        if self.ends is not None:
            self.end(id, *self.ends)
        return True

    def end(self, id: str, state: JobState, code: int | None) -> None:
        self.known[id] = replace(self.known[id], state=state, code=code, ended=1062.0)
        self.printed[id] += "done"

    def jobs(self) -> list[SubmittedJob]:
        return list(self.known.values())

    def job(self, id: str) -> SubmittedJob:
        if id not in self.known:
            raise NotFound(f"no job {id!r}")
        return self.known[id]

    def log(self, id: str) -> str:
        self.job(id)
        return self.printed[id]

    def tail(self, id: str) -> tuple[str, Iterator[str]]:
        return "", iter([self.log(id)])

    def stop(self, id: str) -> None:
        self.end(id, "cancelled", None)
