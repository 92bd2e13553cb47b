"""Tests the documented example of a network of one's own, as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import Catalogue
from tests.support.builders import write_photos
from tests.support.ray_commands import REPOSITORY


@pytest.mark.soak
def test_the_example_network_builds_on_ray_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = shutil.copytree(REPOSITORY / "examples" / "own_network", tmp_path / "example")
    write_photos(tmp_path / "a", 12)
    write_photos(tmp_path / "b", 12, first_seed=100)
    done = subprocess.run(
        [sys.executable, str(example / "run.py"), "a", "b", "catalogue"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    printed = dict(re.findall(r"^(\w+): ([\d.]+) bins$", done.stdout, re.MULTILINE))
    assert printed.keys() == {"edges", "parts"}, done.stdout
    assert all(float(distance) > 0 for distance in printed.values())
    dna = Catalogue(str(tmp_path / "catalogue")).load("b")
    assert (dna.images, dna.spec.extractor) == (12, "small_convnet")
