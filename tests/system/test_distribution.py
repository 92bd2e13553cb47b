"""A run of tests goes on after a worker has died, names failures, and leaves out what it may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repeated_tests import COME_LAST, SECONDS

ROOT = Path(__file__).parents[2]
CONFTEST = """
from tests.support import repeated_tests
from tests.support.distribution import FilesOrClusters
from tests.support.failures import FailuresAtOnce

def pytest_configure(config):
    config.pluginmanager.register(FailuresAtOnce(config))
    config.pluginmanager.register(repeated_tests)
    config.addinivalue_line("markers", "soak:")
    config.addinivalue_line("markers", "essential:")
    config.addinivalue_line("markers", "optional:")

def pytest_xdist_make_scheduler(config, log):
    return FilesOrClusters(config, log)
"""
DIES = "import os\ndef test_{name}(): os._exit(1)\n"
PASSES = "def test_{name}(): pass\n"


def run(folder: Path, workers: int) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    options = ["-q", "-p", "no:cacheprovider", f"-n{workers}", "--dist=loadfile"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--max-worker-restart=9", "--rootdir", ".", "."],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.getenv("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("files", "workers"),
    [
        (["pdp"], 1),
        (["p", "d", "p", "p", "p", "p"], 1),
        (["dd", "pd", "p", "d"], 2),
        (["pp", "pp", "ppd", "p", "pp", "p"], 2),
    ],
)
def test_each_other_test_runs_once_after_workers_have_died(
    tmp_path: Path, files: list[str], workers: int
) -> None:
    """Letters are tests: `d` ends its process, `p` passes."""
    for at, letters in enumerate(files):
        tests = [(DIES if letter == "d" else PASSES) for letter in letters]
        code = "".join(test.format(name=number) for number, test in enumerate(tests))
        (tmp_path / f"test_file{at}.py").write_text(code)
    done = run(tmp_path, workers)
    letters = "".join(files)
    said = f"{letters.count('d')} failed, {letters.count('p')} passed in "
    assert done.stdout.splitlines()[-1:], done.stderr
    assert done.stdout.splitlines()[-1].startswith(said), done.stdout


def test_a_file_that_was_edited_meanwhile_ends_the_run(tmp_path: Path) -> None:
    """The worker that takes the place of a dead one then finds other tests."""
    (tmp_path / "test_file.py").write_text(
        "import os, pathlib\n"
        "edited = pathlib.Path('edited')\n"
        "if edited.exists():\n"
        "    def test_new(): pass\n"
        "def test_dies():\n"
        "    edited.touch()\n"
        "    os._exit(1)\n"
        "def test_after(): pass\n"
    )
    done = run(tmp_path, 1)
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert "gw1 found other tests than the workers before it" in done.stdout


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "5 passed"),
        ({SECONDS: "0"}, "3 passed, 2 skipped"),
        ({SECONDS: "9999999"}, "5 passed"),
        ({SECONDS: "0", "VDNA_TEST_HISTORIES": "all"}, "5 passed"),
    ],
)
def test_repeated_tests_begin_in_their_time_or_are_skipped(
    settings: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (SECONDS, "VDNA_TEST_HISTORIES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    soak, essential = "@pytest.mark.soak\n", "@pytest.mark.essential\n"
    tests = "import pytest\n{soak}def test_long(): pass\n"
    optional = "@pytest.mark.optional\n" + soak + "def test_spare(): pass\n"
    (tmp_path / "test_any.py").write_text(tests.format(soak=soak) + optional)
    (tmp_path / COME_LAST[-1]).write_text(
        tests.format(soak=soak)
        + "def test_quick(): pass\n"
        + soak
        + essential
        + "def test_promise(): pass\n"
    )
    assert run(tmp_path, 1).stdout.splitlines()[-1].startswith(said)


def test_a_test_that_fails_is_named_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "test_file.py").write_text("def test_fails(): assert 1 == 2, 'never'\n")
    told = run(tmp_path, 1).stdout.partition("= FAILURES =")[0]
    assert "FAILED test_file.py::test_fails (call): AssertionError: never" in told
