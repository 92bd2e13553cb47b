"""Tests the RayJobs that are made of a template, and what a template must have."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.engine.job_server import Submission
from pipeline.engine.rayjob_template import made_rayjob, read_template, template_environment
from pipeline.errors import UsageError
from tests.system.test_infra import INFRA, RAYJOBS, broken_rules, each, schema_errors

TEMPLATE = INFRA / "kuberay" / "rayjob-build.yaml"
ID = "vdna-build-00000000-1"
BUILD = ("build", "a", "s3://images", "--include", "*.png", "--workers", "30")
SUBMISSION = Submission((*BUILD, "-c", "s3://dnas"))


@each(RAYJOBS)
def test_a_job_of_each_template_is_the_template_with_another_command(
    document: dict[str, Any],
) -> None:
    before = copy.deepcopy(document)
    submission = Submission(SUBMISSION.words, {"AWS_REGION": "eu-west-1", "B": "$x `y`"})
    made = made_rayjob(document, ID, "night", submission)
    assert document == before
    assert schema_errors(made) + broken_rules(made) == []
    assert made["metadata"]["namespace"] == "night"
    assert made["spec"]["entrypoint"] == (
        "vdna build --ray-address auto a s3://images --include '*.png' --workers 30 -c s3://dnas"
    )
    cluster = made["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        env = {e["name"]: e["value"] for e in group["template"]["spec"]["containers"][0]["env"]}
        assert (env["AWS_REGION"], env["B"]) == ("eu-west-1", "$x `y`")
        assert env["VDNA_CATALOGUE"] == "s3://my-bucket/vdna"
    del made["spec"]["entrypoint"], made["metadata"]
    for key in ("metadata", "spec"):
        before[key].pop("entrypoint", None)
    again = made_rayjob(document, "x", "y", Submission(SUBMISSION.words))["spec"]
    del again["entrypoint"]
    assert again == before["spec"]


@pytest.mark.parametrize(
    "text", ["", "a: [", "kind: RayJob", "[1]", "kind: Job\nspec: {}", "a: 1\n---\nb: 2"]
)
def test_a_template_that_is_no_rayjob_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"job\.yaml is not a RayJob"):
        read_template(str(file))


HEAD = "spec.rayClusterSpec.headGroupSpec.template.spec.containers"
WORKERS = "spec.rayClusterSpec.workerGroupSpecs"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("apiVersion", "ray.io/v1alpha1", "its apiVersion or its kind is another"),
        ("metadata", "vdna", "metadata is 'vdna'; it must be a mapping"),
        ("spec.rayClusterSpec", None, "spec.rayClusterSpec is None; it must be a mapping"),
        (HEAD, [], "headGroupSpec: template.spec.containers is empty"),
        (HEAD, None, "headGroupSpec: template.spec.containers is None; it must be a list"),
        (f"{HEAD}.0.env", [{"name": "A", "value": 4}], "headGroupSpec: env A is 4; write it in qu"),
        (f"{HEAD}.0.env", [{"value": "4"}], "headGroupSpec: name is None; it must be a text"),
        (f"{HEAD}.0.env", {"A": "4"}, "headGroupSpec: env is {'A': '4'}; it must be a list"),
        (WORKERS, {}, "workerGroupSpecs is {}; it must be a list"),
        (WORKERS, [{"groupName": "cpu"}], "workerGroupSpecs[0]: template.spec.containers is miss"),
        ("spec.submissionMode", "HTTPMode", "spec.submissionMode is 'HTTPMode', in which no pod"),
        ("spec.submissionMode", "InteractiveMode", "spec.submissionMode is 'InteractiveMode'"),
    ],
)
def test_the_part_of_a_template_that_no_job_can_be_made_of_is_named(
    tmp_path: Path, path: str, value: object, told: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(UsageError, match=re.escape(told)):
        read_template(str(file))


@pytest.mark.parametrize(
    ("path", "value"),
    [("metadata", None), ("metadata.labels", None), (WORKERS, None), (f"{HEAD}.0.env", None)],
)
def test_what_a_template_may_leave_out_is_made(tmp_path: Path, path: str, value: object) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    template = read_template(str(file))
    assert isinstance(template_environment(template), dict)
    made = made_rayjob(template, ID, "night", SUBMISSION)
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == (ID, "night")


def changed(path: str, value: object) -> dict[str, Any]:
    """Returns the template with another value at a path."""
    template = yaml.safe_load(TEMPLATE.read_text())
    *folders, name = path.split(".")
    at = template
    for folder in folders:
        at = at[int(folder) if folder.isdigit() else folder]
    at[name] = value
    return dict(template)
