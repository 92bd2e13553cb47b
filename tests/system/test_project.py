"""Tests that the project's own files agree with the code, and with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from docs import pictures

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py"))


def test_the_ci_workflow_is_valid() -> None:
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.github-workflows", str(workflow)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pythons = yaml.safe_load(workflow.read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    named = [c.rpartition(" ")[2] for c in classifiers if re.search(r"Python :: 3\.\d+$", c)]
    assert pythons == named


def test_pre_commit_runs_the_ruff_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (wanted,) = {text for hook in hooks for text in hook["additional_dependencies"]}
    assert wanted in extras["lint"]


def test_the_licence_file_is_that_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert all((ROOT / name).is_file() for name in project["license-files"])


def test_every_page_of_the_docs_is_on_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/.-]+\.md", text[text.index("nav:") :]))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert listed == pages


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("0*.md")}


def test_every_room_says_what_it_takes_gives_and_imports() -> None:
    for room in ROOMS:
        lines = (ROOT / "pipeline" / room / "__init__.py").read_text().splitlines()
        starts = [line.split(":")[0] for line in lines[2:5]]
        assert starts == ["In", "Out", "May import"], room


def test_every_room_is_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture = (ROOT / "docs" / "rooms.svg").read_text()
    for room in [*ROOMS, "api.py"]:
        assert f"`{room}`" in page, room
        assert f">{room}<" in picture, room


def test_the_doors_export_what_exists_and_no_module_hides_a_name() -> None:
    asked = []
    for stub in (ROOT / "pipeline").rglob("__init__.pyi"):
        modules = {path.stem for path in stub.parent.glob("*.py")} | {
            path.name for path in stub.parent.iterdir() if path.is_dir()
        }
        package = ".".join(stub.parent.relative_to(ROOT).parts)
        names = re.findall(r"import \w+ as (\w+)", stub.read_text())
        assert not set(names) & modules, stub
        asked.append(f"import {package} as p; [getattr(p, name) for name in {names}]")
    subprocess.run([sys.executable, "-c", "\n".join(asked)], check=True)


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    names = re.findall(r"import \w+ as (\w+)", (ROOT / "pipeline" / "__init__.pyi").read_text())
    told = re.findall(r"^::: pipeline\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert sorted(told) == sorted(names)


def test_no_docstring_opens_with_of() -> None:
    """Such a docstring cannot be read without the code."""
    for folder in ("pipeline", "jobs", "tests", "benchmarks", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search('"{3}Of ', path.read_text()), path


def test_the_readme_is_short_and_has_its_pictures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 900
    shown = re.findall(r"!\[[^\]]+\]\(docs/(\w+)\.png\)", text)
    assert shown == list(pictures.PAGES)
    for name in shown:
        picture = ROOT / "docs" / f"{name}.png"
        assert picture.stat().st_size < 200_000
        with Image.open(picture) as image:
            assert image.size == pictures.PAGES[name][0]


def test_pictures_are_of_what_the_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command, but for how many workers there are."""
    asked: list[list[str]] = []
    monkeypatch.setattr(pictures.subprocess, "run", lambda words, **_: asked.append(words[3:]))
    for name in ("explanation", "ranking"):
        assert pictures.write_page(name, Path("vdna-demo")) == Path(f"vdna-demo/{name}.html")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in asked:
        kept = " ".join(command).replace("--workers 0 ", "")
        assert f"vdna {kept.replace('--catalogue', '-c')}" in text


def test_without_a_browser_no_picture_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="install one of chromium"):
        pictures.browser()
