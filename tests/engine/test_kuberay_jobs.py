"""Tests commands as RayJobs, with an API that takes what KubeRay's definitions and rules take."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest
import yaml
from typer.testing import CliRunner

from jobs.app import app
from pipeline.engine import job_server
from pipeline.engine.job_server import Submission, followed, submit_once, wait_for_end
from pipeline.engine.kuberay_jobs import KubeRayJobServer
from pipeline.engine.rayjob_template import made_rayjob, read_template
from pipeline.errors import NotFound, TransientError, UsageError, VdnaError
from pipeline.reporting import job_end_lines
from tests.support.kubernetes_api import KubernetesApi, kubeconfig, served
from tests.system.test_infra import (
    INFRA,
    broken_rules,
    kuberay_schema,
    schema_errors,
)

TEMPLATE = INFRA / "kuberay" / "rayjob-build.yaml"
ID = "vdna-build-00000000-1"
AT = ("--kubernetes", "vdna")
BUILD = ("build", "a", "s3://images", "--include", "*.png", "--workers", "30")
SUBMISSION = Submission((*BUILD, "-c", "s3://dnas"))


def problems(rayjob: dict[str, Any]) -> list[str]:
    return schema_errors(rayjob) + broken_rules(rayjob)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    monkeypatch.setattr(job_server, "POLL_SECONDS", 0.0)
    monkeypatch.delenv("VDNA_CATALOGUE", raising=False)
    kuberay_schema()  # skips here where there is none
    api = KubernetesApi("vdna", problems)
    with served(api, tmp_path) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        yield api


@pytest.fixture
def server(api: KubernetesApi) -> KubeRayJobServer:
    return KubeRayJobServer("vdna", read_template(str(TEMPLATE)))


def vdna(*words: object, exits: int = 0) -> click.testing.Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == exits, done.output
    return done


# What is created


def test_a_template_that_kuberay_refuses_creates_nothing(
    api: KubernetesApi, tmp_path: Path
) -> None:
    template = yaml.safe_load(TEMPLATE.read_text())
    template["spec"]["backofLimit"] = 3
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(template))
    done = vdna("submit", *AT, "--template", file, *BUILD, exits=2)
    assert "'backofLimit' was unexpected" in done.stderr
    assert api.rayjobs == {}


def test_the_catalogue_of_the_pods_is_the_command_s(
    api: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is required, and the template states it; this machine's own wins, as it is nearer."""
    submit = ("submit", "--no-follow", *AT, "--template", TEMPLATE, *BUILD)
    vdna(*submit)
    [job] = api.rayjobs.values()
    assert "--catalogue" not in job["spec"]["entrypoint"]
    monkeypatch.setenv("VDNA_CATALOGUE", "s3://mine")
    id = vdna(*submit).stdout.strip()
    assert (
        "build --ray-address auto --catalogue s3://mine a" in api.rayjobs[id]["spec"]["entrypoint"]
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (AT, "--kubernetes NAMESPACE and --template FILE go together"),
        (("--template", TEMPLATE), "--kubernetes NAMESPACE and --template FILE go together"),
        ((*AT, "--template", TEMPLATE, "--ray-address", "http://h:1"), "name two clusters"),
        ((*AT, "--template", TEMPLATE, "--working-dir", "."), "working_dir is '.'"),
        ((*AT, "--template", "none.yaml"), "none.yaml"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    api: KubernetesApi, words: tuple[object, ...], told: str
) -> None:
    done = CliRunner().invoke(app, ["submit", *map(str, words), *BUILD, "-c", "s3://dnas"])
    assert done.exit_code in (1, 2)
    assert told in done.stderr
    assert api.rayjobs == {}


def test_a_file_of_this_machine_is_refused_without_a_folder_that_kubernetes_does_not_take(
    api: KubernetesApi,
) -> None:
    build = ("build", "a", "photos", "-c", "s3://dnas")
    told = vdna("submit", *AT, "--template", TEMPLATE, *build, exits=2).stderr
    assert "source is 'photos', a path of this machine" in told
    assert "--working-dir" not in told
    assert api.rayjobs == {}


# How it goes on


def test_a_job_is_followed_through_its_clusters_to_the_command_s_exit_code(
    api: KubernetesApi, server: KubeRayJobServer
) -> None:
    """A cluster whose head dies is followed by another, whose log begins anew."""
    id = submit_once(server, SUBMISSION)
    job = server.job(id)
    assert (job.state, job.started) == ("waiting", 1795489200.0)
    assert job.message == "KubeRay has not seen it yet"
    assert [*server.tail(id)[1]] == []
    api.logs[id] = [""]
    assert [*server.tail(id)[1]] == []
    told: list[str] = []
    lines = followed(server, id, told.append)
    api.set_status(id, "Running", "RUNNING", rayClusterName="first")
    api.logs[id] = ["of the first\n12 images\nnearly"]
    assert [next(lines), next(lines)] == ["of the first", "12 images"]
    api.logs[id] = ["", "of the second\n24 images\ndone"]
    api.set_status(
        *(id, "Failed", "FAILED"),
        rayClusterName="second",
        endTime="2026-11-24T03:02:05Z",
        message="Job entrypoint command failed with exit code 3, last available logs: …",
    )
    assert list(lines) == ["nearly", "of the second", "24 images", "done"]
    assert told == [f"{id} goes on in the cluster second, whose log begins anew"]
    job = wait_for_end(server, id)
    assert (job.state, job.exit_code, job.ended) == ("failed", 3, 1795489325.0)
    assert submit_once(server, SUBMISSION) == f"{id[:-1]}2"


def test_the_log_of_another_pod_in_the_same_cluster_comes_whole(
    api: KubernetesApi, server: KubeRayJobServer
) -> None:
    """Its first lines are those that the first pod printed, without the one of the submission."""
    id = submit_once(server, SUBMISSION)
    api.set_status(id, "Running", "RUNNING", rayClusterName="one")
    api.logs[id] = ["Job submitted\nline 1\nline 2\n"]
    told: list[str] = []
    lines = followed(server, id, told.append)
    assert [next(lines) for _ in range(3)] == ["Job submitted", "line 1", "line 2"]
    all_lines = [*(f"line {n}" for n in range(1, 6)), "error: last"]
    api.logs[id].append("\n".join([*all_lines, ""]))
    api.set_status(id, "Complete", "FAILED", rayClusterName="one")
    assert list(lines) == all_lines
    assert told == [f"{id} goes on in another pod, whose log begins anew"]


def test_a_log_that_is_refused_is_told(api: KubernetesApi, server: KubeRayJobServer) -> None:
    id = submit_once(server, SUBMISSION)
    api.logs[id] = ["12 images\n"]
    api.containers = ("of-the-template",)
    assert server.log(id) == "12 images\n"
    api.containers = ("of-the-template", "another")  # the first is taken, which prints nothing
    with pytest.raises(UsageError, match="a container name must be specified"):
        server.log(id)


def test_without_the_client_of_kubernetes_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    assert "pip install 'vdna-pipeline[kubernetes]'" in vdna("jobs", *AT, exits=2).stderr


@pytest.mark.parametrize(
    ("deployment", "job", "state"),
    [
        ("", "", "waiting"),
        ("Initializing", "", "waiting"),
        ("Suspended", "", "waiting"),
        ("Retrying", "FAILED", "waiting"),
        ("Running", "PENDING", "running"),
        ("Running", "RUNNING", "running"),
        ("Complete", "SUCCEEDED", "succeeded"),
        ("Complete", "FAILED", "failed"),
        ("Complete", "STOPPED", "cancelled"),
        ("Failed", "FAILED", "failed"),
        ("Failed", "RUNNING", "failed"),
        ("ValidationFailed", "", "failed"),
    ],
)
def test_what_kuberay_says_is_a_state(
    api: KubernetesApi, server: KubeRayJobServer, deployment: str, job: str, state: str
) -> None:
    id = submit_once(server, SUBMISSION)
    api.set_status(id, deployment, job)
    assert server.job(id).state == state
    assert [job.state for job in server.jobs()] == [state]


def test_a_cancelled_job_is_deleted_and_its_command_may_run_again(api: KubernetesApi) -> None:
    submit = ("submit", "--no-follow", *AT, "--template", TEMPLATE, *BUILD)
    id = vdna(*submit).stdout.strip()
    api.set_status(id, "Running", "RUNNING")
    assert f"{id} is running and does just this" in vdna(*submit, exits=1).stderr
    assert json.loads(vdna("jobs", *AT, "--json").stdout)[0]["state"] == "running"
    kept, again = vdna("cancel", id, *AT).stdout.splitlines()
    assert f"{id} is cancelled. What it counted is kept" in kept
    assert api.rayjobs == {}
    assert "has no job" in vdna("logs", id, *AT, exits=1).stderr
    _, submitted, *rest = shlex.split(again.replace("FILE", str(TEMPLATE)))
    vdna(submitted, "--no-follow", *rest)
    assert list(api.rayjobs) == [id]
    api.logs[id] = ["12 images\n"]
    assert vdna("logs", id, *AT).stdout == "12 images\n"


def test_jobs_of_others_are_neither_listed_nor_counted(
    api: KubernetesApi, server: KubeRayJobServer
) -> None:
    other = made_rayjob(read_template(str(TEMPLATE)), "vdna-night", "vdna", SUBMISSION)
    api.create(other)
    assert server.jobs() == []


@pytest.mark.parametrize("id", ["", "vdna-night", "vdna-build", ID])
def test_jobs_of_others_are_neither_shown_nor_ended(
    api: KubernetesApi, server: KubeRayJobServer, id: str
) -> None:
    """They have no id of ours, or an id of ours without our label."""
    other = made_rayjob(read_template(str(TEMPLATE)), "x", "vdna", SUBMISSION)
    other["metadata"] |= {"name": id, "labels": {} if id == ID else other["metadata"]["labels"]}
    other["spec"]["entrypoint"] = "echo 'open"
    api.rayjobs[id] = other
    for ask in (server.job, server.log, server.stop):
        with pytest.raises(NotFound, match=f"has no job {id!r} of `vdna submit`"):
            ask(id)
    assert f"has no job {id!r}" in vdna("cancel", id, *AT, exits=1).stderr
    assert not [request for request in api.requests if request.startswith("DELETE")]


def test_a_job_that_ended_and_is_deleted_keeps_its_end(
    api: KubernetesApi, server: KubeRayJobServer
) -> None:
    id = submit_once(server, SUBMISSION)
    api.set_status(id, "Complete", "SUCCEEDED")
    server.stop(id)
    assert not [request for request in api.requests if request.startswith("DELETE")]
    del api.rayjobs[id]
    assert (server.job(id).state, server.job(id).exit_code) == ("succeeded", 0)
    running = submit_once(server, SUBMISSION)
    api.set_status(running, "Running", "RUNNING")
    server.job(running)
    del api.rayjobs[running]
    [line] = job_end_lines(server.job(running), 0.0)
    assert line.endswith("cancelled: it was deleted")


@pytest.mark.parametrize(
    ("refusal", "kind", "told"),
    [
        ((401, "Unauthorized"), UsageError, "Kubernetes refuses this: Unauthorized"),
        ((403, "cannot list rayjobs"), UsageError, "refuses this: cannot list rayjobs"),
        ((404, "the server could not find the requested resource"), UsageError, "requested"),
        ((500, "etcd is away"), TransientError, r"did not answer \(500\): etcd is away"),
        ((429, "slower"), TransientError, r"did not answer \(429\): slower"),
    ],
)
def test_a_refusal_is_told_in_its_words(
    api: KubernetesApi,
    server: KubeRayJobServer,
    refusal: tuple[int, str],
    kind: type[VdnaError],
    told: str,
) -> None:
    api.refusal = refusal
    for ask in (server.jobs, lambda: server.submit(ID, SUBMISSION), lambda: server.job(ID)):
        with pytest.raises(kind, match=told):
            ask()


def test_a_cluster_must_be_configured_answer_and_know_the_job(
    api: KubernetesApi,
    server: KubeRayJobServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        NotFound, match=f"has no job '{ID}' .*; `vdna jobs --kubernetes vdna` lists"
    ):
        server.stop(ID)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no Kubernetes cluster is configured"):
        KubeRayJobServer("vdna")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "away", "http://127.0.0.1:1")))
    with pytest.raises(TransientError, match="Kubernetes did not answer"):
        KubeRayJobServer("vdna").jobs()
