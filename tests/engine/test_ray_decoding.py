"""Tests builds whose images are decoded by tasks of Ray, some of which are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from PIL import PngImagePlugin
from ray.cluster_utils import Cluster

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, verify
from pipeline.counting import RUN_BYTES, Extractor, Recipe, worker
from pipeline.dna import DNA
from pipeline.engine import InProcess, RayEngine
from pipeline.engine.ray_decoding import ROOM_BYTES, room_ahead, room_for_each
from pipeline.engine.ray_engine import OBJECT_STORE_BYTES
from pipeline.engine.ray_start import start_with_retries
from pipeline.errors import UsageError
from pipeline.events import Event, StepDone
from pipeline.explaining import RankRequest, rank
from pipeline.spec import Resources
from tests.engine.test_ray_engine import DEADLY, clean, same_bits
from tests.golden.handmade import NETWORK, SPEC
from tests.support import tiny_network as tiny
from tests.support.builders import photo, write_photos
from tests.support.ray_commands import (
    IMAGES,
    NO_DASHBOARD,
    REPOSITORY,
    SHARD_IMAGES,
    SHARDS,
    SLOW,
    Small,
    committed,
    ended,
    folder,
    holds,
    running,
    small,
    truth,
    wait_for,
)

__all__ = ["clean", "folder", "small", "truth"]  # fixtures

SLOW_TO_DECODE = """
import time
import PIL.Image
opened = PIL.Image.open
def slowly(*args, **kwargs):
    time.sleep(0.3)
    return opened(*args, **kwargs)
PIL.Image.open = slowly
"""

HELD = """
import os, time
import PIL.Image
opened = PIL.Image.open
def held(*args, **kwargs):
    while os.path.exists(os.environ["HELD"]):
        time.sleep(0.1)
    return opened(*args, **kwargs)
PIL.Image.open = held
"""
"""Decoding waits as long as there is a file."""


def decoding(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Returns the processes that decode ahead right now; Ray names them after their task."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ray::decode_run" in " ".join(child.cmdline()):
                    found.append(child)
    return found


def wait_until_decoding(process: subprocess.Popen[str]) -> list[psutil.Process]:
    deadline = time.monotonic() + 120
    while not (found := decoding(process)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def told(process: subprocess.Popen[str]) -> tuple[dict[str, Any], int, list[str]]:
    """Returns what a build tells: its result, how many images were decoded ahead, messages."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    ahead = sum(line.get("ahead", 0) for line in lines)
    return json.loads(out), ahead, [line["message"] for line in lines]


AHEAD = ("--decode", "ahead", "--log-format", "json")


@pytest.mark.optional
@pytest.mark.soak
def test_a_build_whose_images_are_decoded_ahead_counts_the_same(
    folder: Path, truth: DNA, small: Small, tmp_path: Path
) -> None:
    process = small.start(folder, tmp_path, *AHEAD, patch="", workers=1)
    with ended(process):
        result, ahead, messages = told(process)
    assert (result["images"], result["failed"]) == (46, 2)
    # Where a machine is so busy that Ray loses a task, it is said.
    missed = [message for message in messages if "its worker decoded for a task" in message]
    assert ahead == IMAGES or (0 < ahead < IMAGES and missed), messages
    assert f"tasks decoded {ahead} images for the workers, which had {IMAGES} to count" in messages
    assert committed(tmp_path) == SHARDS
    holds(tmp_path, truth)


@pytest.mark.soak
def test_a_killed_decoding_task_costs_no_image(
    folder: Path, truth: DNA, small: Small, tmp_path: Path
) -> None:
    process = small.start(folder, tmp_path, *AHEAD, patch=SLOW_TO_DECODE, workers=1)
    with ended(process):
        killed = set()
        while len(killed) < 4:
            (first, *_) = wait_until_decoding(process)
            if first.pid not in killed:
                first.kill()
                killed.add(first.pid)
        result, ahead, _ = told(process)
    assert (result["images"], result["failed"]) == (46, 2)
    assert 0 < ahead <= IMAGES
    assert committed(tmp_path) == SHARDS
    holds(tmp_path, truth)


@pytest.mark.soak
def test_the_tasks_of_a_killed_worker_end_and_nothing_counts_twice(
    folder: Path, truth: DNA, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (held := tmp_path / "held").touch()
    monkeypatch.setenv("HELD", str(held))
    catalogue = tmp_path / "c"
    process = small.start(folder, catalogue, *AHEAD, patch=HELD, workers=1)
    with ended(process):
        tasks = wait_until_decoding(process)
        (pid,) = running(catalogue)
        os.kill(pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(tasks, timeout=30)
        assert alive == []
        held.unlink()
        result, *_ = told(process)
    assert (result["images"], result["failed"]) == (46, 2)
    assert committed(catalogue) == SHARDS
    holds(catalogue, truth)


@pytest.mark.soak
def test_an_image_that_kills_its_decoding_task_is_listed_and_the_rest_is_counted(
    small: Small, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    write_photos(source, 12)
    marked = PngImagePlugin.PngInfo()
    marked.add_text("comment", "decoder is killed")
    photo(99).save(source / "poison.png", pnginfo=marked)
    catalogue = tmp_path / "c"
    process = small.start(source, catalogue, *AHEAD, patch=DEADLY, workers=1, shard_images=4)
    with ended(process):
        result, *_ = told(process)
    assert (result["images"], result["failed"]) == (12, 1)
    place = Catalogue(str(catalogue))
    (failure,) = place.failures("photos", place.find("photos"))
    assert failure.uri.endswith("poison.png")
    assert (failure.reason, failure.nondeterministic) == ("decoder_crashed", True)
    # The worker did not die of it.
    assert [*catalogue.glob("_work/photos/*/attempts/*.json")] == []


@pytest.fixture
def cluster(small: Small, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in small.environment(SLOW).items():
        monkeypatch.setenv(name, value)  # a node's workers have it of their node
    head = {"num_cpus": 2, "object_store_memory": 500 * 2**20, **NO_DASHBOARD}
    cluster = Cluster()
    try:
        start_with_retries(lambda: cluster.add_node(**head))
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.soak
def test_the_loss_of_a_node_that_decodes_costs_no_image(
    cluster: Cluster, folder: Path, truth: DNA, small: Small, clean: Any, tmp_path: Path
) -> None:
    how = {"num_cpus": 4, "object_store_memory": 500 * 2**20}
    node = start_with_retries(lambda: cluster.add_node(**how))
    catalogue = tmp_path / "c"
    address = ("--ray-address", cluster.address)
    process = small.start(folder, catalogue, *AHEAD, *address, workers=1)
    with ended(process):
        for shards in (3, 12):
            wait_for(catalogue, shards, process)
            cluster.remove_node(node, allow_graceful=False)
            node = start_with_retries(lambda: cluster.add_node(**how))
        result, ahead, _ = told(process)
    assert (result["images"], result["failed"]) == (46, 2)
    # A worker may be lost in the middle of a shard whose images are told with the shard before it.
    assert 0 < ahead <= IMAGES + 2 * SHARD_IMAGES
    same_bits(catalogue, clean, truth)


# GPUs that are only declared.


@pytest.fixture(scope="module")
def fake_gpus() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        ray.init(
            address="local",  # else it may connect to a cluster of a test beside it
            num_cpus=8,
            num_gpus=2,
            include_dashboard=False,
            object_store_memory=4 * 2**30,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": "tests.support.fake_gpu.install"},
        )
    try:
        yield
    finally:
        ray.shutdown(wait_for_processes=True)


@pytest.mark.soak
@pytest.mark.parametrize("decode", ["auto", "ahead", "here"])
def test_hungry_gpus_have_their_images_decoded_ahead_and_count_the_same(
    fake_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: Any
) -> None:
    (tmp_path / "tiny").mkdir()
    place = tiny.install(tmp_path / "tiny")
    source = tmp_path / "photos"
    for path in write_photos(source, 300)[::50]:
        path.write_bytes(path.read_bytes()[:-200])
    options = {"shard_images": 100, "max_failures": 10, **place.options}
    request = Request("photos", str(source), **options)  # type: ignore[arg-type]  # fields by name
    ahead = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            ahead.append(event.ahead)

    resources = Resources(gpus_per_worker=1, threads=1, decode=decode)
    on_ray, alone = (Catalogue(str(tmp_path / name)) for name in ("ray", "alone"))
    with RayEngine(resources) as engine:
        build_datasets(on_ray, [request], engine, resources, progress=listen)
    with pytest.MonkeyPatch.context() as patch, InProcess() as engine:
        patch.setattr(
            worker, "Extractor", lambda *given, **how: Extractor(*given, on_device=True, **how)
        )
        build_datasets(alone, [request], engine, Resources(threads=1, backend="torch"))
    assert sum(ahead) in {"auto": range(20, 280), "ahead": [300], "here": [0]}[decode]
    there, here = (each.find("photos") for each in (on_ray, alone))
    assert (there.dna, there.sha256) == (here.dna, here.sha256)
    assert [f for f in verify(on_ray) if not f.ok] == []


# Sizes.


def node(cpus: int, gpus: int = 0, store: float = 0, alive: bool = True) -> dict[str, Any]:
    sizes = {"CPU": cpus, "GPU": gpus, "object_store_memory": store}
    return {"Alive": alive, "Resources": {name: size for name, size in sizes.items() if size}}


def test_images_that_are_ahead_fit_the_object_stores_of_their_nodes() -> None:
    gpu = Resources(gpus_per_worker=1, threads=4)
    large, gib = 200 * 2**30, 2**30
    assert room_for_each([node(192, 8, large)], 8, gpu) == ROOM_BYTES
    assert room_for_each([node(192, 8, 16 * gib)], 8, gpu) == gib
    shared = replace(gpu, gpus_per_worker=0.2)
    assert room_for_each([node(192, 1, 10 * gib)], 5, shared) == gib
    assert room_for_each([node(192, 8, 16 * gib)], 2, gpu) == ROOM_BYTES  # there are two actors
    assert room_for_each([node(192, 8, 16 * gib), node(64, 0, large)], 8, gpu) == gib
    assert room_for_each([node(192, 8, large), node(64, 0, gib)], 8, gpu) == ROOM_BYTES
    assert room_for_each([node(64, 0, 4 * gib)], 2, gpu) == gib  # GPUs may yet come
    assert room_for_each([node(8, 8, 8 * gib)], 8, gpu) == gib // 2  # for all of them, once
    assert room_for_each([node(16, 0, 8 * gib)], 4, Resources(threads=4)) == gib
    assert room_for_each([node(16, 0, 8 * gib, alive=False)], 4, gpu) == 0
    assert room_for_each([node(192, 8, 8 * (2 * RUN_BYTES))], 8, gpu) == RUN_BYTES
    assert room_for_each([node(192, 8, 8 * (2 * RUN_BYTES) - 1)], 8, gpu) == 0


def recipe(decode: Any, gpus: float, decoder: str | None = None) -> Recipe:
    resources = Resources(gpus_per_worker=gpus, threads=4, decode=decode)
    spec = replace(SPEC, preprocess=replace(SPEC.preprocess, decoder=decoder))
    return Recipe(spec, NETWORK, "ranges", resources, decoder="a:b" if decoder else "")


@pytest.mark.parametrize(
    ("decode", "gpus", "expected"),
    [
        ("ahead", 0, True),
        ("ahead", 1, True),
        ("auto", 0, False),
        ("auto", 1, True),
        ("here", 0, False),
        ("here", 1, False),
    ],
)
def test_there_is_room_if_images_may_be_decoded_ahead(
    decode: str, gpus: float, expected: bool
) -> None:
    given = [recipe(decode, gpus)]
    assert bool(room_ahead([node(16, 1, 2**30)], 1, given)) == expected
    engine = RayEngine(given[0].resources)
    assert engine._object_store_bytes == (None if expected else OBJECT_STORE_BYTES)
    little = [node(16, 1, 100 * 2**20)]
    if decode == "ahead":
        with pytest.raises(UsageError, match=r"192 MiB for each of 3 workers.*decode='here'"):
            room_ahead(little, 3, given)
    else:
        assert room_ahead(little, 3, given) == 0


def test_a_decoder_of_the_workers_gpus_is_not_asked_of_tasks() -> None:
    nodes = [node(16, 1, 2**30)]
    with pytest.raises(UsageError, match=r"decoder nvjpeg@1\.0 needs one.*decode='here'"):
        room_ahead(nodes, 1, [recipe("ahead", 1), recipe("ahead", 1, "nvjpeg@1.0")])
    assert room_ahead(nodes, 1, [recipe("auto", 1, "nvjpeg@1.0")])  # for other networks
    assert room_ahead(nodes, 1, [recipe("ahead", 1, "raw16@1")])


def test_decoding_ahead_takes_ray() -> None:
    with pytest.raises(UsageError, match=r"decode is 'ahead'.*workers is 0"):
        Resources(workers=0, decode="ahead")
    for decode in ("auto", "here"):
        Resources(workers=0, decode=decode)  # type: ignore[arg-type]
    place, ahead = Catalogue("memory://none"), Resources(decode="ahead")
    told = r"decode is 'ahead'.*this process works without it.*`decode='here'`"
    with InProcess() as engine:
        with pytest.raises(UsageError, match=told):
            build_datasets(place, [Request("a", "memory://images")], engine, ahead)
        with pytest.raises(UsageError, match=told):
            rank(place, RankRequest("memory://images", to="a"), engine, resources=ahead)
    with pytest.raises(UsageError, match="choose auto or here or ahead"):
        Resources(decode="there")  # type: ignore[arg-type]
