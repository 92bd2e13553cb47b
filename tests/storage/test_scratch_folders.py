"""Temporary folders of processes that were killed are removed, and those of others are not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import ScratchFolder, temporary

KILLED = """
import os, signal
from pipeline.storage import ScratchFolder
folder = ScratchFolder("listing")
open(os.path.join(folder.path, "part"), "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, in which this process has not looked yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    temporary._remove_abandoned.cache_clear()
    yield tmp_path
    temporary._remove_abandoned.cache_clear()


def age(folder: Path) -> None:
    before = folder.stat().st_mtime - 2 * temporary.ABANDONED_SECONDS
    os.utime(folder, (before, before))


def test_a_folder_goes_with_its_block_or_its_object(place: Path) -> None:
    with ScratchFolder("plan") as path:
        Path(path, "rows").touch()
    folder = ScratchFolder("plan")
    assert [str(each) for each in place.iterdir()] == [folder.path]
    del folder
    assert list(place.iterdir()) == []


def test_what_a_killed_process_has_left_is_removed_and_no_other_folder(place: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(place)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    young, old = sorted(place.iterdir())
    age(old)
    other = place / "vdna-error-1"
    other.mkdir()
    age(other)
    mine = ScratchFolder("plan")  # finds the old one, and not yet itself
    age(Path(mine.path))
    temporary._remove_abandoned.cache_clear()
    with ScratchFolder("diff") as last:  # as another process would, while mine is in use
        assert {str(each) for each in place.iterdir()} == {str(young), str(other), mine.path, last}
