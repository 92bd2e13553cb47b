"""Makes the RayJobs of KubeRay that run commands, of a template in a file.

>>> template = read_template("rayjob-build.yaml")                            # doctest: +SKIP
>>> made_rayjob(template, "vdna-gc-00000000-1", "vdna", Submission(("gc",)))  # doctest: +SKIP
{'apiVersion': 'ray.io/v1', 'kind': 'RayJob', …}
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import yaml

from pipeline import storage
from pipeline.engine.job_server import Submission, shell_line
from pipeline.errors import UsageError, shortened

LABELS = {"app.kubernetes.io/managed-by": "vdna"}
"""What a RayJob of ours has, and by which they are listed."""

MAX_TEMPLATE = 2**20

Rayjob = dict[str, Any]

T = TypeVar("T")


def read_template(place: str) -> Rayjob:
    """Reads the RayJob that jobs are made of: the image, the machines, the identity.

    Args:
        place: Path or url of a YAML file with one RayJob.

    Returns:
        The RayJob.

    Raises:
        UsageError: The file holds something else.
    """
    try:
        found = yaml.safe_load(storage.read_range(storage.canonical(place), 0, MAX_TEMPLATE))
        _require_usable(found)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(
            f"{place} is not a RayJob of ray.io/v1 that jobs can be made of: {error}"
        ) from error
    return dict(found)


def _require_usable(found: Any) -> None:
    """Raises `ValueError`, with the part of a template that no job can be made of."""
    if _part(found, "apiVersion", str) != "ray.io/v1" or _part(found, "kind", str) != "RayJob":
        raise ValueError("its apiVersion or its kind is another")
    mode = _part(found, "spec", dict).get("submissionMode") or "K8sJobMode"
    if mode != "K8sJobMode":
        raise ValueError(
            f"spec.submissionMode is {mode!r}, in which no pod prints what the command prints; "
            "leave it out"
        )
    if found.get("metadata") is not None:
        _part(found, "metadata", dict)
    for where, group in _groups(found):
        try:
            containers = _part(group, "template.spec.containers", list)
            if not containers:
                raise ValueError("template.spec.containers is empty")
            variables = _part(containers[0], "env", list, missing=[])
            for variable in variables:
                name = _part(variable, "name", str)
                if not isinstance(variable.get("value", ""), str):
                    value = variable["value"]
                    raise ValueError(f"env {name} is {value!r}; write it in quotes, as a text")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _groups(template: Rayjob) -> list[tuple[str, Any]]:
    """Returns the groups of machines of the cluster, each with where it stands."""
    cluster = _part(template, "spec.rayClusterSpec", dict)
    workers = _part(cluster, "workerGroupSpecs", list, missing=[])
    places = [f"workerGroupSpecs[{n}]" for n in range(len(workers))]
    return [("headGroupSpec", cluster.get("headGroupSpec")), *zip(places, workers, strict=True)]


def _part(value: Any, path: str, kind: type[T], missing: T | None = None) -> T:
    """Returns what is at a path, such as `spec.rayClusterSpec`, if it is of the right kind."""
    for key in path.split("."):
        if not isinstance(value, dict):
            raise ValueError(f"{path} is missing")
        value = value.get(key)
    if value is None and missing is not None:
        return missing
    if not isinstance(value, kind):
        words: dict[type, str] = {dict: "a mapping", list: "a list", str: "a text"}
        raise ValueError(f"{path} is {shortened(value)}; it must be {words[kind]}")
    return value


def template_environment(template: Rayjob) -> dict[str, str]:
    """Returns the variables that the template gives to the command, as far as it states them."""
    _, head = _groups(template)[0]
    listed = head["template"]["spec"]["containers"][0].get("env") or []
    return {entry["name"]: entry["value"] for entry in listed if "value" in entry}


def made_rayjob(template: Rayjob, id: str, namespace: str, submission: Submission) -> Rayjob:
    """Returns the RayJob that runs a command.

    Args:
        template: As `read_template` returns it. It is not changed.
        id: The name of the job.
        namespace: Where it is to run.
        submission: The command.

    Returns:
        The template with another name and command, and more variables.
    """
    made = copy.deepcopy(template)
    metadata = made.get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), **LABELS}
    made["metadata"] = metadata | {"name": id, "namespace": namespace, "labels": labels}
    made["spec"]["entrypoint"] = shell_line(submission.words)
    for _, group in _groups(made):
        container = group["template"]["spec"]["containers"][0]
        kept = [e for e in container.get("env") or [] if e["name"] not in submission.environment]
        added = [{"name": n, "value": v} for n, v in sorted(submission.environment.items())]
        container["env"] = [*kept, *added]
    return made
