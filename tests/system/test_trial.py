"""Tests what can be known of the trials without Docker: their files, and their scripts."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from infra.render import helm_words
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.system.test_chart import HELM, documents_of, of_kind, said
from tests.system.test_infra import (  # fmt: skip
    INFRA,
    Document,
    broken_rules,
    core_error,
    docker_args,
    dockerfile,
    parse,
    schema_errors,
    unavailable,
)

TRIAL = INFRA / "trial"


def program(*names: str) -> str:
    """Returns the first of some programs that is installed, maybe beside the interpreter."""
    for name in names:
        beside = Path(sys.executable).parent / name
        if found := str(beside) if beside.exists() else shutil.which(name):
            return found
    unavailable(f"{' or '.join(names)} is not installed; .ci/run says where it comes from")
    return ""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"trial_{name}", TRIAL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The cluster of kind


def test_shellcheck_finds_nothing_and_a_planted_error(tmp_path: Path) -> None:
    shellcheck = program("shellcheck")
    assert said([shellcheck, str(INFRA / "trial.sh")]) == (0, "")
    wrong = tmp_path / "trial.sh"
    wrong.write_text((INFRA / "trial.sh").read_text() + "rm -r $1\n")
    code, text = said([shellcheck, str(wrong)])
    assert code == 1
    assert "SC2086" in text


def test_objects_of_the_trial_fit_their_schemas() -> None:
    objects = documents_of((TRIAL / "store.yaml").read_text())
    assert {d["kind"]: core_error(d) for d in objects if core_error(d)} == {}
    jobs = {d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in of_kind("Job", objects)}
    [made] = re.findall(r"create configmap (\S+) (.*)", (INFRA / "trial.sh").read_text())
    for name, pod in jobs.items():
        [container] = pod["containers"]
        path = container["command"][1]
        assert path == f"/trial/{name}.py"
        assert f"--from-file infra{path}" in made[1]
        assert pod["volumes"][0]["configMap"]["name"] == made[0]
        assert container["volumeMounts"][0]["mountPath"] == "/trial"


def test_the_script_renders_sound_jobs() -> None:
    """With the very values of the script, whose shell makes the JSON."""
    text = (INFRA / "trial.sh").read_text()
    [line] = re.findall(r"jobs=\"\$\{jobs:\+\$jobs, \}(.*)\"\n", text)
    jobs = json.loads("{" + line.replace('\\"', '"').replace("$1", "killed") + "}")
    if not shutil.which("helm"):
        unavailable(HELM)
    words = helm_words(INFRA / "values" / "trial.yaml")
    code, out = said([*words, "--set-json", f"jobs={json.dumps(jobs)}"])
    assert code == 0, out
    made = documents_of(out)
    [job] = of_kind("RayJob", made)
    assert schema_errors(job) == []
    assert broken_rules(job) == []
    parse(job["spec"]["entrypoint"] + " --catalogue s3://trial/vdna")
    name = job["metadata"]["name"].removeprefix("vdna-")
    command = yaml.safe_load((TRIAL / "store.yaml").read_text().split("---\n")[-1])
    [container] = command["spec"]["template"]["spec"]["containers"]
    assert name in container["command"]
    [account] = of_kind("ServiceAccount", made)
    assert "annotations" not in account["metadata"]  # there is no role of a cloud


@pytest.mark.usefixtures("s3_server")
def test_scripts_fill_a_store_and_tell_equal_counts_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill, check = script("fill"), script("check")
    bucket = f"s3://trial-{os.urandom(4).hex()}"
    for _ in range(2):  # a job that is started again fills the same bucket
        fill.fill(f"{bucket}/images", 3)
    assert "3 pictures" in capsys.readouterr().out
    options: Any = tiny.install(tmp_path).options

    def build(name: str, **changed: Any) -> None:
        request = Request(name, f"{bucket}/images", **(options | changed))
        place = Catalogue(f"{bucket}/vdna")
        build_datasets(place, [request], InProcess(), Resources(workers=0, threads=1))

    build("calm")
    build("killed")
    assert check.differences(f"{bucket}/vdna", 3, ["calm", "killed"]) == []
    build("less", limit=2)
    assert check.differences(f"{bucket}/vdna", 3, ["calm", "less"]) == [
        "less counted 2 of 3 pictures",
        "less has other counts than calm",
    ]


# docker compose


COMPOSE = yaml.safe_load((TRIAL / "compose.yaml").read_text())


def compose_errors(document: Document) -> list[str]:
    """Applies the schema of the Compose specification, which check-jsonschema brings."""
    place = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    errors = Draft202012Validator(json.loads(place.read_text())).iter_errors(document)
    return [e.message for e in errors]


def test_compose_file_fits_its_schema_and_the_real_program(tmp_path: Path) -> None:
    assert compose_errors(COMPOSE) == []
    wrong = copy.deepcopy(COMPOSE)
    wrong["services"]["head"]["port"] = []
    assert any("'port'" in error for error in compose_errors(wrong))
    found = program("docker-compose", "docker")
    words = [found] if found.endswith("compose") else [found, "compose"]

    def checked(file: Path) -> tuple[int, str]:
        return said([*words, "--file", str(file), "config", "--quiet"])

    assert checked(TRIAL / "compose.yaml") == (0, "")
    planted = tmp_path / "compose.yaml"
    planted.write_text((TRIAL / "compose.yaml").read_text().replace("[head]", "[haed]"))
    code, text = checked(planted)
    assert code != 0
    assert "haed" in text


def test_what_compose_mounts_is_there() -> None:
    mounted = {
        volume.split(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", ())
    }
    assert {"./fill.py", "./prometheus.yaml", "../monitoring/alerts.yaml"} <= mounted
    assert [path for path in sorted(mounted) if not (TRIAL / path).exists()] == []
    build = COMPOSE["services"]["fill"]["build"]
    assert (TRIAL / build["context"] / build["dockerfile"]).samefile(INFRA / "Dockerfile")


def test_ports_of_the_trial_are_of_this_machine() -> None:
    ports = [port for s in COMPOSE["services"].values() for port in s.get("ports", ())]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_takes_its_file_and_refuses_a_planted_error(tmp_path: Path) -> None:
    promtool = program("promtool")
    code, text = said(
        [promtool, "check", "config", "--syntax-only", str(TRIAL / "prometheus.yaml")]
    )
    assert code == 0, text
    wrong = tmp_path / "prometheus.yaml"
    wrong.write_text((TRIAL / "prometheus.yaml").read_text().replace("names:", "name:"))
    code, text = said([promtool, "check", "config", "--syntax-only", str(wrong)])
    assert code != 0
    assert "field name not found" in text


def test_metrics_are_where_prometheus_looks() -> None:
    [job] = yaml.safe_load((TRIAL / "prometheus.yaml").read_text())["scrape_configs"]
    [found] = job["dns_sd_configs"]
    for name in found["names"]:
        assert f"--metrics-export-port={found['port']}" in COMPOSE["services"][name]["command"]


# `ray up`


def ray_up_error(cluster: Document) -> str:
    """Applies Ray's own schema and rules, and returns the first error."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(cluster)))
    except Exception as error:  # jsonschema's, and ValueError
        return str(error)
    return ""


def test_ray_up_takes_its_file_and_refuses_planted_errors() -> None:
    cluster = yaml.safe_load((INFRA / "ray-up-aws.yaml").read_text())
    assert ray_up_error(cluster) == ""
    assert "'max_worker' was unexpected" in ray_up_error(cluster | {"max_worker": 1})
    wrong = ray_up_error(cluster | {"head_node_type": "haed"})
    assert "must be one of `available_node_types`" in wrong
    kinds = cluster["available_node_types"]
    markets = {n: k["node_config"].get("InstanceMarketOptions") for n, k in kinds.items()}
    spot = {"MarketType": "spot"}
    assert markets == {"head": None, "cpu": spot, "gpu": spot}
    assert kinds["head"]["resources"] == {"CPU": 0}
    for kind in kinds.values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) == cluster["max_workers"]


def test_ray_up_can_start_the_image() -> None:
    """Ray runs `bash` in it, copies files by rsync, and starts other machines by ssh and boto3."""
    from ray.autoscaler._private.docker import docker_start_cmds

    docker = yaml.safe_load((INFRA / "ray-up-aws.yaml").read_text())["docker"]
    options = docker["run_options"]
    run = docker_start_cmds("ubuntu", docker["image"], {}, "vdna", options, "c", "/root", "docker")
    *given, image, command = shlex.split(run)
    assert (image, command) == (docker["image"], "bash")
    instructions = dockerfile()
    entrypoints = [line for line in instructions if line.startswith("ENTRYPOINT ")]
    assert ("--entrypoint=" in given) == bool(entrypoints)
    installed = {
        re.split(r"[=<>\[]", word)[0]
        for line in instructions
        if line.startswith("RUN ")
        for step in line.split("&&")
        if "install" in step.split()
        for word in shlex.split(step)
    }
    assert {"boto3", "openssh-client", "ray", "rsync"} <= installed
    assert f"pip install 'ray[default]=={docker_args()['RAY_VERSION']}' boto3" in (
        (INFRA / "README.md").read_text()
    )


def test_the_page_states_the_driver_of_the_images_cuda() -> None:
    page = (INFRA / "README.md").read_text()
    [index] = set(re.findall(r"whl/(cu\d+)", page))
    assert index in (INFRA / "Dockerfile").read_text()
    assert docker_args()["TORCH_INDEX"].endswith("/cpu")
    assert f"`{index}`" in page
