"""Submits commands to Kubernetes as RayJobs of KubeRay, by the official client.

>>> server = KubeRayJobServer("vdna", read_template("rayjob-build.yaml"))   # doctest: +SKIP
>>> submit_once(server, Submission(("build", "a", "s3://images")))          # doctest: +SKIP
'vdna-build-5f0c1d2e-1'
"""

from __future__ import annotations

import codecs
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from urllib3.exceptions import HTTPError

from pipeline.engine.job_server import (
    TIMEOUT,
    JobState,
    Submission,
    SubmittedJob,
    is_ours,
    no_such_job,
)
from pipeline.engine.rayjob_template import LABELS, Rayjob, made_rayjob
from pipeline.errors import NotFound, TransientError, UsageError

RAYJOBS = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}

SUBMITTER = "ray-job-submitter"
"""The container that prints what the command prints. A mesh may put others beside it."""

NOT_BEGUN = re.compile("waiting to start|ContainerCreating")
"""What the API says instead of a log that will come."""


class KubeRayJobServer:
    """The RayJobs of one namespace of Kubernetes. It is a `JobServer`."""

    def __init__(self, namespace: str, template: Rayjob | None = None) -> None:
        """Connects to the cluster that kubectl would use: by `KUBECONFIG`, or from inside a pod.

        Args:
            namespace: The namespace.
            template: What jobs are made of. Needed to submit.

        Raises:
            UsageError: The client is not installed, or finds no cluster.
        """
        try:
            client: Any = import_module("kubernetes.client")
            config: Any = import_module("kubernetes.config")
        except ImportError as error:
            raise UsageError(
                "--kubernetes needs the Kubernetes client; pip install 'vdna-pipeline[kubernetes]'"
            ) from error
        self.address = f"namespace {namespace} of Kubernetes"
        self.flags = f" --kubernetes {shlex.quote(namespace)}"
        self.submit_flags = f"{self.flags} --template FILE"
        self._namespace, self.template = namespace, template
        self._at = {**RAYJOBS, "namespace": namespace}
        self._seen: dict[str, SubmittedJob] = {}
        file = os.environ.get("KUBECONFIG")
        try:
            if file or Path("~/.kube/config").expanduser().exists():
                config.load_kube_config(file)
            else:
                config.load_incluster_config()
        except (config.ConfigException, OSError) as error:
            raise UsageError(f"no Kubernetes cluster is configured: {error}") from error
        self._failure = client.ApiException
        self._rayjobs, self._pods = client.CustomObjectsApi(), client.CoreV1Api()

    def submit(self, id: str, submission: Submission) -> bool:
        """Starts a job, unless there was one of this id."""
        if self.template is None:
            raise UsageError("no template is given; name a RayJob's file with --template")
        if submission.working_dir is not None:
            raise UsageError(
                f"working_dir is {submission.working_dir!r}, which goes to a Ray cluster that runs "
                "already; for Kubernetes give a url, or mount the files in the template"
            )
        body = made_rayjob(self.template, id, self._namespace, submission)
        try:
            self._rayjobs.create_namespaced_custom_object(
                **self._at, body=body, field_validation="Strict", _request_timeout=TIMEOUT
            )
        except self._failure as error:
            if error.status == 409:
                return False
            raise self._told(error, id) from error
        except HTTPError as error:
            raise TransientError(f"Kubernetes did not answer: {error}") from error
        return True

    def jobs(self) -> list[SubmittedJob]:
        """Returns the jobs that this package submitted and nobody deleted."""
        label = ",".join(f"{name}={value}" for name, value in LABELS.items())
        with self._known_errors():
            found = self._rayjobs.list_namespaced_custom_object(
                **self._at, label_selector=label, _request_timeout=TIMEOUT
            )
        return [_described(job) for job in found["items"] if is_ours(job["metadata"]["name"])]

    def job(self, id: str) -> SubmittedJob:
        """Returns one of them. One that is deleted before its end is cancelled."""
        try:
            with self._known_errors(id):
                found = self._rayjobs.get_namespaced_custom_object(
                    **self._at, name=id, _request_timeout=TIMEOUT
                )
        except NotFound:
            if id not in self._seen:
                raise
            if not self._seen[id].has_ended:
                return replace(self._seen[id], state="cancelled", message="it was deleted")
            return self._seen[id]
        if not LABELS.items() <= (found["metadata"].get("labels") or {}).items():
            raise no_such_job(self, id)
        self._seen[id] = _described(found)
        return self._seen[id]

    def log(self, id: str) -> str:
        """Returns what the job has printed so far, in its newest attempt at a cluster."""
        self.job(id)
        _, texts = self._printed(id, follow=False)
        return "".join(texts)

    def tail(self, id: str) -> tuple[str, Iterator[str]]:
        """Returns what the job's newest pod prints from its beginning, and the pod's uid."""
        return self._printed(id, follow=True)

    def stop(self, id: str) -> None:
        """Deletes the RayJob, and with it its cluster and its log, unless it has ended."""
        if self.job(id).has_ended:
            return
        with self._known_errors(id):
            self._rayjobs.delete_namespaced_custom_object(
                **self._at, name=id, propagation_policy="Foreground", _request_timeout=TIMEOUT
            )

    def _printed(self, id: str, *, follow: bool) -> tuple[str, Iterator[str]]:
        """Returns the log of the newest pod that submits the command to its Ray cluster."""
        with self._known_errors(id):
            pods = self._pods.list_namespaced_pod(
                self._namespace, label_selector=f"job-name={id}", _request_timeout=TIMEOUT
            ).items
        if not pods:
            return "", iter(())
        newest = max(pods, key=lambda pod: pod.metadata.creation_timestamp)
        return newest.metadata.uid, self._log_of(newest, id, follow)

    def _log_of(self, pod: Any, id: str, follow: bool) -> Iterator[str]:
        names = [container.name for container in pod.spec.containers]
        with self._known_errors(id):
            try:
                answer = self._pods.read_namespaced_pod_log(
                    pod.metadata.name,
                    self._namespace,
                    container=SUBMITTER if SUBMITTER in names else names[0],
                    follow=follow,
                    _preload_content=False,
                    _request_timeout=TIMEOUT,
                )
            except self._failure as error:
                is_gone = error.status == 404
                if is_gone or (error.status == 400 and NOT_BEGUN.search(_message(error.body))):
                    return
                raise
            text = codecs.getincrementaldecoder("utf-8")("replace")
            for part in answer.stream(2**16):
                yield text.decode(part)

    @contextmanager
    def _known_errors(self, id: str | None = None) -> Iterator[None]:
        """Raises errors of the Kubernetes client as ours, and asks nothing about jobs of others."""
        if id is not None and not is_ours(id):
            raise no_such_job(self, id)
        try:
            yield
        except self._failure as error:
            raise self._told(error, id) from error
        except HTTPError as error:
            raise TransientError(f"Kubernetes did not answer: {error}") from error

    def _told(self, error: Any, id: str | None) -> Exception:
        """Returns the error that says what an answer of Kubernetes means."""
        said = _message(error.body) or error.reason
        if error.status in (401, 403):
            return UsageError(f"Kubernetes refuses this: {said}")
        known = "could not find the requested resource" not in said
        if error.status == 404 and id is not None and known:
            return no_such_job(self, id)
        if error.status in (400, 404, 422):
            return UsageError(f"Kubernetes does not take this ({error.status}): {said}")
        return TransientError(f"Kubernetes did not answer ({error.status}): {said}")


def _message(body: str | None) -> str:
    """Returns what the API says in words."""
    try:
        return str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return (body or "").strip()


def _described(rayjob: Mapping[str, Any]) -> SubmittedJob:
    status, metadata = rayjob.get("status") or {}, rayjob["metadata"]
    state = _state(status.get("jobDeploymentStatus", ""), status.get("jobStatus", ""))
    message = status.get("message", "") or status.get("reason", "")
    if state == "waiting":
        message = message or status.get("jobDeploymentStatus", "") or "KubeRay has not seen it yet"
    code = re.search(r"failed with exit code (-?\d+)", message) if state == "failed" else None
    return SubmittedJob(
        id=metadata["name"],
        command=rayjob["spec"].get("entrypoint", ""),
        state=state,
        started=_seconds(metadata.get("creationTimestamp")),
        ended=_seconds(status.get("endTime")),
        code=int(code[1]) if code else None,
        message=message,
        cluster=status.get("rayClusterName", ""),
    )


def _state(deployment: str, job: str) -> JobState:
    """Returns the state that KubeRay's two words mean."""
    if deployment == "ValidationFailed" or (deployment, job) == ("Complete", "FAILED"):
        return "failed"
    if deployment == "Complete":
        return "cancelled" if job == "STOPPED" else "succeeded"
    if deployment == "Failed":
        return "failed"
    return "running" if deployment == "Running" else "waiting"


def _seconds(time: str | None) -> float | None:
    return datetime.fromisoformat(time).timestamp() if time else None
