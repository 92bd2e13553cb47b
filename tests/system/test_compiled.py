"""Kernels work where numba can keep no machine code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import compiled as module
from pipeline.compiled import compiled

REPOSITORY = Path(__file__).parents[2]

ALL_KERNELS = """
import numpy as np
import pipeline.comparing.fold_statistics, pipeline.comparing.emd_kernel
import pipeline.counting.top_images, pipeline.counting.histogram
import pipeline.dna.moments, pipeline.explaining.image_emd, pipeline.sources.name_kernel
from pipeline.images.resize import prepare
from pipeline.spec import Preprocess
rule = Preprocess(4, 4, (0.0,) * 3, (1.0,) * 3)
print(prepare(np.full((9, 7, 3), 255, np.uint8), rule).mean())
"""


def test_a_disk_on_which_nothing_can_be_kept_does_not_stop_a_command() -> None:
    nowhere = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "IPythonCacheLocator"}
    done = subprocess.run(
        [sys.executable, "-c", ALL_KERNELS],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=nowhere,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


def test_kernels_work_in_a_locale_without_unicode() -> None:
    """What they are made of is read as UTF-8 there, too."""
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    done = subprocess.run(
        [sys.executable, "-c", ALL_KERNELS],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | ascii_only,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


ONE_KERNEL = """
from pipeline.comparing.pieces import doubled
print(doubled(4), sum(doubled.stats.cache_hits.values()))
"""


def test_machine_code_is_made_anew_if_a_module_that_the_kernel_imports_has_changed(
    tmp_path: Path,
) -> None:
    """Machine code contains the constants of other modules, which numba does not watch."""
    package = tmp_path / "pipeline"
    (package / "comparing").mkdir(parents=True)
    for folder in (package, package / "comparing"):
        (folder / "__init__.py").touch()
    shutil.copy(module.__file__, package)
    (package / "comparing" / "pieces.py").write_text(
        "from pipeline.compiled import compiled\n"
        "from pipeline.comparing.factors import FACTOR\n\n\n"
        "@compiled\ndef doubled(value):\n    return FACTOR * value\n"
    )
    # Python takes two sources of one size, written in one second, for the same.
    without_bytecode = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    found = []
    for factor in (2, 2, 3):
        (package / "comparing" / "factors.py").write_text(f"FACTOR = {factor}\n")
        done = subprocess.run(
            [sys.executable, "-c", ONE_KERNEL],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=without_bytecode,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found == [["8", "0"], ["8", "1"], ["12", "0"]]


def test_another_error_of_the_compiler_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> object:
        raise RuntimeError("numba is broken")

    monkeypatch.setattr(module, "njit", broken)
    with pytest.raises(RuntimeError, match="numba is broken"):
        compiled(lambda: 0)
