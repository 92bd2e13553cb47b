"""Runs builds by the command, in their own processes, which a test may kill.

An entry point of an installed distribution makes a small network known to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.building import make_dna
from pipeline.catalogue import Catalogue, verify
from pipeline.dna import DNA
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos

__all__ = ["folder", "small", "truth"]  # fixtures

REPOSITORY = Path(__file__).parents[2]
IMAGES = 48
SHARD_IMAGES = 2
SHARDS = 32
"""A fold has 3 images, and so two shards."""

ENTRY_POINTS = """
[vdna.networks]
tiny = tests.support.{module}:register
"""

NO_DASHBOARD: dict[str, Any] = {"include_dashboard": False, "dashboard_port": None}
"""Options of a head. Ray leaves a socket open if it is given a port that another cluster has."""

SLOW = """
import time
import PIL.Image
opened = PIL.Image.open
def slowly(*args, **kwargs):
    time.sleep(0.25)
    return opened(*args, **kwargs)
PIL.Image.open = slowly
"""
"""Decoding takes a while and no CPU time, so that a killed process dies in the middle."""


def write_distribution(folder: Path, entry_points: str, name: str = "vdna_tests") -> None:
    """Makes a folder of the path look as if a distribution with entry points were installed."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(entry_points)


@dataclass(frozen=True)
class Small:
    """The files of the small network, and commands that use it."""

    place: tiny.Place
    folder: Path

    @property
    def options(self) -> list[str]:
        words = {"extractor": tiny.NAME, "bins": tiny.BINS}
        words |= {"weights": self.place.weights, "ranges": self.place.ranges}
        return [word for name, value in words.items() for word in (f"--{name}", str(value))]

    def environment(self, patch: str = "", network: str = "tiny_network") -> dict[str, str]:
        """Returns the environment of processes that know the network and first run the patch."""
        site = self.folder / hashlib.sha256(f"{network} {patch}".encode()).hexdigest()[:8]
        if not site.exists():  # otherwise a process that starts may read half of it
            site.mkdir()
            (site / "sitecustomize.py").write_text(patch)
            write_distribution(site, ENTRY_POINTS.format(module=network))
        paths = [str(site), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def start(
        self,
        folder: Path,
        catalogue: Path,
        *options: str,
        patch: str = SLOW,
        network: str = "tiny_network",
        **how: Any,
    ) -> subprocess.Popen[str]:
        env = self.environment(patch, network)
        return start(folder, catalogue, *self.options, *options, env=env, **how)

    def clean_pass(self, folder: Path, max_failures: float = 0) -> DNA:
        return make_dna(folder, max_failures=max_failures, threads=2, **self.place.options)  # type: ignore[arg-type]  # of any kind


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    return Small(tiny.install(folder), folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, IMAGES)
    for i in (7, 30):
        path = folder / f"photo-{i:04d}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path, small: Small) -> DNA:
    with pytest.warns(UserWarning, match="2 of 48"):
        return small.clean_pass(folder, max_failures=2)


def start(
    folder: Path,
    catalogue: Path,
    *options: str,
    workers: int | None = 2,
    env: dict[str, str] | None = None,
    shard_images: int = SHARD_IMAGES,
) -> subprocess.Popen[str]:
    """Starts the command in a session of its own, so that all its processes can be found."""
    command = [sys.executable, "-m", "jobs.build", "photos", str(folder), "-c", str(catalogue)]
    command += ["--shard-images", str(shard_images), "--max-failures", "2", "--json"]
    command += [] if workers is None else ["--workers", str(workers)]
    command += ["--threads", "1", *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
        cwd=REPOSITORY,
    )


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kills whatever a test leaves of a command and its Ray."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            children += psutil.Process(process.pid).children(recursive=True)
        for each in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert isinstance(result, dict)
    return result


def until(process: subprocess.Popen[str], true: Callable[[], object]) -> None:
    """Waits for something that a build does."""
    deadline = time.monotonic() + 240
    while not true():
        assert process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it never came true: {process.communicate()}")
        time.sleep(0.05)


def committed(catalogue: Path) -> int:
    return len(list(catalogue.glob("_work/photos/*/partials/*.parquet")))


def running(catalogue: Path) -> list[int]:
    """Returns the processes that have shards under way, by their notes."""
    pids = set()
    for note in catalogue.glob("_work/photos/*/attempts/*.json"):
        with contextlib.suppress(OSError, ValueError):
            pids.add(int(json.loads(note.read_text())["pid"]))
    return [pid for pid in pids if psutil.pid_exists(pid)]


def wait_for(catalogue: Path, shards: int, process: subprocess.Popen[str]) -> list[int]:
    """Waits until that many shards are committed; returns the processes that have others."""
    deadline = time.monotonic() + 240
    while not (pids := running(catalogue)) or committed(catalogue) < shards:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)
    return pids


def holds(catalogue: Path, truth: DNA) -> None:
    place = Catalogue(str(catalogue))
    dna = place.load("photos")
    assert (dna.images, dna.failed) == (truth.images, truth.failed)
    for name in ("counts", "underflow", "overflow", "nonfinite", "min", "max"):
        assert np.array_equal(getattr(dna, name), getattr(truth, name)), name
    assert [f for f in verify(place) if not f.ok] == []
