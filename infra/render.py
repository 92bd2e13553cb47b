"""Renders the plain manifests from the chart, for those who do without Helm.

    python infra/render.py    # writes infra/kuberay/*.yaml; Helm must be on the PATH

`values/NAME.yaml` makes `kuberay/NAME.yaml`. A test renders them again and compares.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

INFRA = Path(__file__).parent
PLAIN = ("namespace", "guards", "monitoring", "rayjob-build", "rayjob-build-gpu", "refresh-cronjob")
"""The files of `kuberay/`, each with the name of its values."""


def helm_words(values: Path) -> list[str]:
    """Returns the command that renders the chart with the values of a file."""
    datasets = f"refresh.datasets={INFRA / 'datasets.yaml'}"
    chart = ["helm", "template", "vdna", str(INFRA / "chart"), "--namespace", "vdna"]
    return [*chart, "--values", str(values), "--set-file", datasets]


def rendered(name: str) -> str:
    """Returns what the chart makes of the values of a name, under a line that says so."""
    values = INFRA / "values" / f"{name}.yaml"
    done = subprocess.run(helm_words(values), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{values}: {done.stderr.strip()}")
    about = re.match(r"(#.*\n)+", values.read_text())
    body = re.sub(r"^# Source: .*\n", "", done.stdout, flags=re.M).removeprefix("---\n")
    origin = f"# Made of infra/chart with infra/values/{name}.yaml; to change it: infra/render.py\n"
    return (about[0] if about else "") + origin + body


if __name__ == "__main__":
    for name in PLAIN:
        (INFRA / "kuberay" / f"{name}.yaml").write_text(rendered(name))
    golden = INFRA.parent / "tests" / "system" / "rendered_production.yaml"
    golden.write_text(rendered("production"))
