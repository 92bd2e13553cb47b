"""Tests a build on a Ray cluster whose nodes Ray's own autoscaler brings and removes."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
import ray

from pipeline.dna import DNA
from pipeline.engine import ray_nodes
from tests.engine.test_chaos import require_quiet, write_pictures
from tests.engine.test_ray_engine import clean, same_bits
from tests.support.autoscaled_cluster import autoscaled_cluster
from tests.support.gpu_nodes import DECLARED_GPU
from tests.support.ray_commands import (
    SHARDS,
    Small,
    committed,
    ended,
    finish,
    folder,
    running,
    small,
    truth,
    until,
)

__all__ = ["clean", "folder", "small", "truth"]  # fixtures

THREADS = 2
"""A worker does not fit on the head, which has one CPU. Other tasks do."""

WORKERS = 3

NODES = 2
"""What holds these workers, two on a node."""

IDLE_SECONDS = 3.0

HELD = """
import hashlib, os, time
import PIL.Image
opened = PIL.Image.open
every, one, waits = (
    os.path.join(os.environ["ELASTIC"], name) for name in ("all held", "one held", "waits")
)
def held(file, *args, **kwargs):
    while os.path.exists(every):
        time.sleep(0.1)
    image = hashlib.sha256(file.getvalue()).hexdigest()
    try:
        with open(waits, "x") as note:
            note.write(image)
    except FileExistsError:
        pass
    with open(waits) as note:
        first = note.read() == image
    while first and os.path.exists(one):
        time.sleep(0.1)
    return opened(file, *args, **kwargs)
PIL.Image.open = held
"""
"""Decoding waits as long as there is a file. Then one image goes on waiting, for another file: also
where it is tried again, as an image is that takes a minute."""


@pytest.mark.optional
@pytest.mark.soak
def test_an_autoscaler_brings_nodes_for_workers_and_removes_those_that_have_no_more_shards(
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It could bring one node more than the workers need, and is never asked for that.

    This Ray does not tell drivers what its autoscaler may bring. Once a Ray does, what is chosen
    by `_autoscaled` must be tested with it.
    """
    place, build = tmp_path / "elastic", tmp_path / "c"
    place.mkdir()
    every, one = place / "all held", place / "one held"
    every.touch()
    one.touch()
    environment = small.environment(HELD) | {"ELASTIC": str(place)}
    monkeypatch.setenv("RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS", "1")
    with autoscaled_cluster(NODES + 1, 2 * THREADS, 0, IDLE_SECONDS, environment) as scaled:
        options = ("--ray-address", scaled.address, "--threads", str(THREADS))
        assert scaled.brought == set()
        process = small.start(folder, build, *options, workers=WORKERS, patch="")
        with ended(process):
            until(process, lambda: len(running(build)) == WORKERS)
            brought = scaled.brought  # on a busy machine also one that did not come up
            assert nodes_with_shards(build) == scaled.alive
            assert len(scaled.alive) == NODES
            every.unlink()
            until(process, lambda: committed(build) == SHARDS - 1)
            assert (place / "waits").exists()
            until(process, lambda: len(scaled.alive) == 1)
            assert nodes_with_shards(build) == scaled.alive
            one.unlink()
            finish(process)
        ray.init(address=scaled.address, log_to_driver=False)
        try:
            assert ray_nodes._autoscaled() == []
        finally:
            ray.shutdown(wait_for_processes=True)
        deadline = time.monotonic() + 60
        while scaled.alive:
            assert time.monotonic() < deadline, "an idle node was not removed"
            time.sleep(0.1)
        assert scaled.brought == brought
    same_bits(build, clean, truth)


@pytest.mark.soak
def test_an_autoscaler_replaces_nodes_with_gpus_that_are_lost(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two nodes is lost while it counts, one after the other; the GPUs are declared."""
    source, build, pace = tmp_path / "source", tmp_path / "c", tmp_path / "pace"
    write_pictures(source)
    pace.write_text("2")
    environment = small.environment() | DECLARED_GPU | {"GPU_PACE": str(pace)}
    with autoscaled_cluster(NODES, 2, 1, IDLE_SECONDS, environment) as scaled:
        options = ("--ray-address", scaled.address, "--gpus-per-worker", "1", "--decode", "here")
        process = small.start(source, build, *options, workers=NODES, patch="", shard_images=1)
        with ended(process):
            lost: set[str] = set()

            def all_count() -> bool:  # also those that came for others
                alive = scaled.alive - lost
                return len(alive) == NODES and nodes_with_shards(build) >= alive

            for _ in range(NODES):
                until(process, lambda: committed(build) and all_count())
                lost.add(min(scaled.alive - lost))
                for node in lost:
                    scaled.lose(node)
            until(process, all_count)
            pace.write_text("0")
            _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert err.count("was lost") == NODES
        assert len(scaled.brought - lost) >= NODES
    require_quiet(source, build, tmp_path / "alone", small, monkeypatch)


def nodes_with_shards(build: Path) -> set[str]:
    """Returns the ids of the nodes that have shards under way, by their notes."""
    found = set()
    for note in build.glob("_work/photos/*/attempts/*.json"):
        with contextlib.suppress(OSError, ValueError):  # it is written, or removed, just now
            found.add(json.loads(note.read_text())["node"])
    return found
