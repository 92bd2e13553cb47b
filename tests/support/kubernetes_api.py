"""A Kubernetes API that knows RayJobs and the logs of their submitters, and checks what it gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Document = dict[str, Any]
TOKEN = "of-the-user"


@dataclass
class KubernetesApi:
    """Its objects, which a test may change as KubeRay's operator would."""

    namespace: str
    problems: Callable[[Document], list[str]]
    rayjobs: dict[str, Document] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    """What the pods of a job printed, the oldest pod first."""
    containers: tuple[str, ...] = ("istio-proxy", "ray-job-submitter")
    """Those of each pod. The last one prints."""
    refusal: tuple[int, str] | None = None
    requests: list[str] = field(default_factory=list)

    def set_status(self, name: str, deployment: str, job: str = "", **more: str) -> None:
        self.rayjobs[name]["status"] = {"jobDeploymentStatus": deployment, "jobStatus": job, **more}

    def answer(self, method: str, url: str, body: Document) -> tuple[int, Any]:
        place = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(place.query).items()}
        self.requests.append(f"{method} {place.path}")
        if self.refusal:
            return self.refusal[0], {"message": self.refusal[1]}
        folder = f"/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs"
        if place.path == folder and method == "POST":
            assert query["fieldValidation"] == "Strict"
            return self.create(body)
        if place.path == folder:
            name, value = query["labelSelector"].split("=")
            found = [j for j in self.rayjobs.values() if j["metadata"]["labels"].get(name) == value]
            return 200, {"items": found}
        if place.path.startswith(f"{folder}/"):
            return self.one(method, place.path.rpartition("/")[2])
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        if place.path == pods:
            job = query["labelSelector"].removeprefix("job-name=")
            return 200, {"items": [self.pod(job, n) for n in range(len(self.logs.get(job, ())))]}
        if place.path.startswith(f"{pods}/") and place.path.endswith("/log"):
            job, _, number = place.path.split("/")[-2].rpartition("-pod")
            text = self.logs[job][int(number)]
            if query.get("container") not in self.containers[-1:]:
                return 400, {"message": "a container name must be specified"}
            return (200, text) if text else (400, {"message": "is waiting to start"})
        return 404, {"message": "the server could not find the requested resource"}

    def create(self, rayjob: Document) -> tuple[int, Any]:
        name = rayjob["metadata"]["name"]
        if problems := self.problems(rayjob):
            return 422, {"message": "; ".join(problems)}
        if name in self.rayjobs:
            return 409, {"message": f'rayjobs.ray.io "{name}" already exists'}
        rayjob["metadata"]["creationTimestamp"] = "2026-11-24T03:00:00Z"
        self.rayjobs[name] = rayjob
        return 201, rayjob

    def one(self, method: str, name: str) -> tuple[int, Any]:
        if name not in self.rayjobs:
            return 404, {"message": f'rayjobs.ray.io "{name}" not found'}
        if method == "DELETE":
            self.rayjobs[name]["metadata"]["deletionTimestamp"] = "2026-11-24T04:00:00Z"
        elif "deletionTimestamp" in self.rayjobs[name]["metadata"]:  # looked at once more, and gone
            return 200, self.rayjobs.pop(name)
        return 200, self.rayjobs[name]

    def pod(self, job: str, number: int) -> Document:
        created = f"2026-11-24T03:{number:02d}:00Z"
        name = f"{job}-pod{number}"
        return {
            "metadata": {"name": name, "uid": f"uid-{number}", "creationTimestamp": created},
            "spec": {"containers": [{"name": name} for name in self.containers]},
        }


@contextmanager
def served(api: KubernetesApi, folder: Path) -> Iterator[Path]:
    """Serves it; yields the file with which kubectl would find it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            code, answer = 401, {"message": "Unauthorized"}
            if self.headers["Authorization"] == f"Bearer {TOKEN}":
                code, answer = api.answer(self.command, self.path, body)
            text = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(code)
            kind = "text/plain" if isinstance(answer, str) else "application/json"
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_DELETE = do_GET  # noqa: N815 (http.server looks them up by these names)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield kubeconfig(folder / "config", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kubeconfig(file: Path, address: str, token: str = TOKEN) -> Path:
    config = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
    }
    file.write_text(yaml.safe_dump(config))
    return file
