"""Create a RayJob and wait for its end: what the pod of the CronJob runs.

    NAMESPACE=vdna JOB_NAME=vdna-refresh-29 JOB_UID=... python run_rayjob.py rayjob.yaml

The RayJob takes the name of the Kubernetes Job, so that a retry after a lost answer or an eviction
finds it instead of starting a second one, and that Job owns it, so that both are removed together.
A RayJob of that name that another Job owns, or that is being deleted, is awaited until it is gone.
Exits 0 when the RayJob succeeded, 10 when it failed or is gone; anything else means that the
cluster's API could not be used, and trying again makes sense.
Needs only PyYAML, which Ray brings, and the rights to create and get rayjobs.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

API = "https://kubernetes.default.svc"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
FAILED = 10
POLL_SECONDS = 15.0
TRIES = 20
"""How often to try to create a RayJob while another one has its name."""


class Rayjobs:
    """The rayjobs of one namespace, with the pod's own credentials."""

    def __init__(self, namespace: str, api: str = API, account: Path = SERVICE_ACCOUNT) -> None:
        self.url = f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self.account = account

    def create(self, rayjob: dict[str, Any]) -> None:
        self._call(self.url, json.dumps(rayjob).encode())

    def get(self, name: str) -> dict[str, Any]:
        return self._call(f"{self.url}/{name}")

    def _call(self, url: str, body: bytes | None = None) -> dict[str, Any]:
        # Read anew each time: the kubelet replaces the token about every hour.
        token = (self.account / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        trust = ssl.create_default_context(cafile=self.account / "ca.crt")
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=30, context=trust) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def owned(rayjob: dict[str, Any], job_name: str, job_uid: str) -> dict[str, Any]:
    """The RayJob under the name of its Job, and removed with it."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job_name, "uid": job_uid}
    metadata = {**rayjob["metadata"], "name": job_name, "ownerReferences": [owner]}
    return {**rayjob, "metadata": metadata}


def is_own(found: dict[str, Any], rayjob: dict[str, Any]) -> bool:
    """Whether a RayJob has the owner of ours, and stays."""
    [owner] = rayjob["metadata"]["ownerReferences"]
    owners = [each["uid"] for each in found["metadata"].get("ownerReferences", ())]
    return owner["uid"] in owners and "deletionTimestamp" not in found["metadata"]


def create_once(rayjobs: Rayjobs, rayjob: dict[str, Any], poll: float) -> None:
    """Creates the RayJob, unless an earlier try of the same Job did."""
    name = rayjob["metadata"]["name"]
    for tried in range(TRIES):
        try:
            rayjobs.create(rayjob)
            print(f"{name}: created", flush=True)
            return
        except urllib.error.HTTPError as error:
            if error.code != 409:
                print(f"{name}: not created: {error} {error.read().decode()}", flush=True)
                raise
        try:
            if is_own(rayjobs.get(name), rayjob):
                print(f"{name}: exists, from an earlier try", flush=True)
                return
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        if not tried:
            waits = "exists, of another Job or being deleted; waiting until it is gone"
            print(f"{name}: {waits}", flush=True)
        time.sleep(poll)
    raise TimeoutError(f"{name} exists, of another Job or being deleted, and stays; delete it")


def run(rayjobs: Rayjobs, rayjob: dict[str, Any], poll: float = POLL_SECONDS) -> int:
    """The exit code. Raises where the RayJob could be neither created nor found."""
    name = rayjob["metadata"]["name"]
    create_once(rayjobs, rayjob, poll)
    seen = None
    while True:
        try:
            status = rayjobs.get(name).get("status", {})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                print(f"{name}: deleted before its end", flush=True)
                return FAILED
            if error.code in (401, 403):
                raise
            status = {"message": f"asking again after: {error}"}
        except OSError as error:
            # An API server that restarts is no reason to give up on a job of hours.
            status = {"message": f"asking again after: {error}"}
        stage = status.get("jobDeploymentStatus", "")
        now = " ".join(filter(None, (stage, status.get("jobStatus"), status.get("message"))))
        if now != seen:
            print(f"{name}: {now or 'waiting for the operator'}", flush=True)
            seen = now
        if stage in ("Complete", "Failed", "ValidationFailed"):
            return 0 if (stage, status.get("jobStatus")) == ("Complete", "SUCCEEDED") else FAILED
        time.sleep(poll)


if __name__ == "__main__":
    manifest = yaml.safe_load(Path(sys.argv[1]).read_text())
    job = owned(manifest, os.environ["JOB_NAME"], os.environ["JOB_UID"])
    sys.exit(run(Rayjobs(os.environ["NAMESPACE"]), job))
