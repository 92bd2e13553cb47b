"""Tests builds on Ray, in real processes that are killed: they count as one clean pass does."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from PIL import Image, PngImagePlugin
from ray.data._internal.block_batching import iter_batches
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from typer.testing import CliRunner

from jobs.app import app
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.counting import Recipe, ShardJob, ShardReceipt, Worker
from pipeline.counting.allocator import NEW_OBJECTS
from pipeline.counting.faults import ENDS_PROCESSES, NO_GPU, Fault
from pipeline.counting.leases import RENEW_SECONDS
from pipeline.dna import DNA, Partial
from pipeline.engine import InProcess, ray_engine, ray_nodes, ray_pool, ray_start, shard_actor
from pipeline.engine.ray_decoding import loss_words
from pipeline.engine.ray_nodes import RayHome
from pipeline.engine.ray_start import (
    MAX_STARTS,
    is_worth_logs,
    remove_session,
    session_folder,
    start_with_retries,
)
from pipeline.engine.shard_actor import ShardActor, _Notices, receipt_of
from pipeline.errors import GateError, TransientError, UnexpectedError, UsageError
from pipeline.events import Event, Said, StepDone, Warned, about
from pipeline.explaining import RankRequest, rank
from pipeline.spec import Resources
from tests.golden.handmade import NETWORK, SPEC
from tests.support.builders import photo, write_photos
from tests.support.ray_commands import (
    REPOSITORY,
    SHARDS,
    SLOW,
    Small,
    committed,
    ended,
    finish,
    folder,
    holds,
    running,
    small,
    start,
    truth,
    wait_for,
)

__all__ = ["folder", "small", "truth"]  # fixtures

RAY_SESSIONS = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"


def sessions_of(process: subprocess.Popen[str]) -> set[Path]:
    """Returns the folders of Rays that a process of this id started, maybe another long ago."""
    return set(RAY_SESSIONS.glob(f"session_*_{process.pid}"))


@pytest.mark.soak
def test_a_build_on_ray_equals_the_build_in_process(folder: Path, tmp_path: Path) -> None:
    """The default network is used."""
    process = start(
        *(folder, tmp_path / "ray", "--layer-gaussian", "--limit", "20", "--bins", "100"),
        *("--backend", "torch"),
        shard_images=1,
    )
    with ended(process):
        on_ray = finish(process)
    alone = Catalogue(str(tmp_path / "alone"))
    options = {"layer_gaussian": True, "limit": 20, "bins": 100}
    options |= {"shard_images": 1, "max_failures": 2}
    request = Request("photos", str(folder), **options)
    with contextlib.closing(InProcess()) as engine:
        (in_process,) = build_datasets(alone, [request], engine, Resources(workers=0, threads=1))
    assert on_ray["counted_shards"] == 20  # in 16 folds
    assert on_ray["dna"] == in_process.version.dna
    assert on_ray["sha256"] == in_process.version.sha256
    assert "layer_gaussians" in in_process.version.sha256  # floats, to the last bit
    holds(tmp_path / "ray", alone.load("photos"))


@pytest.mark.optional
@pytest.mark.soak
def test_workers_that_ran_openvino_end_without_a_word(folder: Path, tmp_path: Path) -> None:
    """A thread that Ray made, and in which OpenVINO was called, crashed as it ended."""
    process = start(folder, tmp_path / "c", "--limit", "20", "--backend", "openvino")
    with ended(process):
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "died" not in err
    assert "openvino" in json.dumps(json.loads(out)["numerics"])


@pytest.mark.soak
def test_a_killed_worker_is_replaced_and_told_of_and_nothing_counts_twice(
    folder: Path, truth: DNA, small: Small, tmp_path: Path
) -> None:
    process = small.start(folder, tmp_path)
    with ended(process):
        killed = random.Random(6).choice(sorted(wait_for(tmp_path, 6, process)))
        os.kill(killed, signal.SIGKILL)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert (result["images"], result["failed"]) == (46, 2)
    assert err.count(f"a worker died: process {killed} on ") == err.count("a worker died") == 1
    assert committed(tmp_path) == SHARDS
    holds(tmp_path, truth)


@pytest.mark.soak
def test_a_killed_driver_is_rerun_at_once_and_only_the_rest_is_counted(
    folder: Path, truth: DNA, small: Small, tmp_path: Path
) -> None:
    first = small.start(folder, tmp_path)
    with ended(first):
        wait_for(tmp_path, 5, first)
        os.kill(first.pid, signal.SIGKILL)
        second = small.start(folder, tmp_path)
        with ended(second):
            result = finish(second)
    assert isinstance(result["counted_shards"], int)
    assert result["counted_shards"] <= SHARDS - 5
    assert committed(tmp_path) == SHARDS
    holds(tmp_path, truth)
    third = small.start(folder, tmp_path, workers=0)
    with ended(third):
        again = finish(third)
    assert (again["changed"], again["counted_shards"]) == (False, 0)


@pytest.mark.soak
def test_two_jobs_at_once_share_the_work_and_commit_one_version(
    folder: Path, truth: DNA, small: Small, tmp_path: Path
) -> None:
    a, b = small.start(folder, tmp_path, workers=1), small.start(folder, tmp_path, workers=1)
    with ended(a), ended(b):
        results = [finish(a), finish(b)]
    assert results[0]["dna"] == results[1]["dna"]
    counted = [result["counted_shards"] for result in results]
    assert SHARDS <= sum(counted) <= 1.05 * SHARDS, counted
    assert Catalogue(str(tmp_path)).head().number == 1
    assert committed(tmp_path) == SHARDS
    holds(tmp_path, truth)


SLOW_TO_START = """
import os, sys, time
if any(word.endswith(os.path.join("dashboard", "agent.py")) for word in sys.orig_argv):
    for name in os.listdir(os.environ["SLOW_STARTS"]):
        try:
            os.unlink(os.path.join(os.environ["SLOW_STARTS"], name))
        except FileNotFoundError:
            continue
        time.sleep(25)
        break
"""
"""Ray's raylet waits 15 s for this process, and then ends itself."""

FAST_CLOCK = """
if "jobs.build" in sys.orig_argv:
    real = time.monotonic
    time.monotonic = lambda: 3 * real()
"""
"""Ray itself waits 30 s for the raylet, for which it has no setting. A third will do."""


@pytest.fixture
def slow_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns a function that sets how many of the next starts of Ray are too slow."""
    folder = tmp_path / "slow"
    folder.mkdir()
    monkeypatch.setenv("SLOW_STARTS", str(folder))

    def set_(starts: int) -> None:
        for number in range(starts):
            (folder / str(number)).touch()

    return set_


@pytest.mark.optional
@pytest.mark.soak
def test_ray_is_started_again_if_it_is_slow_to_start(
    folder: Path,
    truth: DNA,
    small: Small,
    tmp_path: Path,
    slow_starts: Callable[[int], None],
) -> None:
    slow_starts(1)
    process = small.start(folder, tmp_path / "c", patch=SLOW + SLOW_TO_START)
    with ended(process):
        wait_for(tmp_path / "c", 3, process)
        names = [child.name() for child in psutil.Process(process.pid).children()]
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "starting it again" in err
    assert names.count("gcs_server") == 1  # nothing of the first is left
    assert json.loads(out)["images"] == 46
    holds(tmp_path / "c", truth)


@pytest.mark.optional
@pytest.mark.soak
def test_a_ray_that_never_starts_is_an_error_and_leaves_no_process(
    folder: Path,
    small: Small,
    tmp_path: Path,
    slow_starts: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "3000")
    slow_starts(MAX_STARTS)
    process = small.start(folder, tmp_path / "c", patch=SLOW_TO_START + FAST_CLOCK)
    with ended(process):
        out, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert json.loads(out)["error"] == "TransientError"
    assert f"{MAX_STARTS} times" in err
    assert "--workers 0" in err
    assert "Traceback" not in err
    logs = re.findall(r"\((\S+) has its logs\)", err)
    assert len(set(logs)) == MAX_STARTS
    last_words = [(Path(log) / "raylet.err").read_text() for log in logs]
    assert any("Timed out waiting for file" in words for words in last_words)
    commands = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands for log in logs if str(Path(log).parent) in command]
    assert committed(tmp_path / "c") == 0


def test_an_error_that_a_second_start_would_not_fix_is_raised_at_once() -> None:
    starts = []

    def start() -> None:
        starts.append(1)
        raise ValueError("of an argument")

    with pytest.raises(ValueError, match="of an argument"):
        start_with_retries(start)
    assert len(starts) == 1


DEADLY = """
import os, signal
import PIL.Image as module
real = module.open
def deadly(file, *args, **kwargs):
    data = file.getvalue() if hasattr(file, "getvalue") else b""
    if b"decoder is killed" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"decoder aborts" in data:
        os.abort()
    if b"decoder faults once" in data:
        try:
            os.close(os.open(os.environ["FAULTED_ONCE"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGSEGV)
    return real(file, *args, **kwargs)
module.open = deadly
"""
"""Runs first in every process of a build: some files make PIL die, as its next bug might."""


@pytest.mark.optional
@pytest.mark.soak
def test_every_worker_has_the_environment_it_needs_and_the_driver_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of a Ray of our own inherit it; elsewhere Ray is told of it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    names = list(ray_engine.WORKER_ENVIRONMENT)
    before = dict(os.environ)
    with ray_engine.RayEngine(Resources(workers=1)) as own:
        with ray_engine.RayEngine(Resources(workers=1)) as connected:
            assert (own._runtime_env(), connected._runtime_env() != {}) == ({}, True)
            seen = [dict(engine.map(_variable, names)) for engine in (own, connected)]
            thresholds = set(own.map(_new_objects, range(2)))
        assert {name: os.environ.get(name) for name in names} == {n: before.get(n) for n in names}
        _require_that_memory_limits_tasks(own, tmp_path)
    assert seen == [ray_engine.WORKER_ENVIRONMENT] * 2
    assert thresholds == {NEW_OBJECTS}  # that Python waits for before it looks for garbage


def _require_that_memory_limits_tasks(engine: ray_engine.RayEngine, folder: Path) -> None:
    """Two tasks that take more than half of the node's memory do not run at the same time."""
    (offered,) = (node["Resources"]["memory"] for node in ray_engine.list_nodes())
    engine.resources = replace(engine.resources, workers=2)
    # Those that fit come first, so that both workers have started when the others follow.
    for share, seconds, meet in ((0.1, 120.0, True), (0.6, 2.0, False)):
        place = folder / str(share)
        place.mkdir()
        tasks = [(place, number, seconds) for number in range(2)]
        assert list(engine.map(_meets_another, tasks, memory=int(share * offered))) == [meet] * 2


def _meets_another(task: tuple[Path, int, float]) -> bool:
    """Returns whether another task runs in the same seconds."""
    place, number, seconds = task
    (place / f"{number} runs").touch()
    end = time.monotonic() + seconds
    try:
        while not (met := len(list(place.glob("*runs"))) > 1) and time.monotonic() < end:
            time.sleep(0.05)
        while met and not (place / "met").exists():  # the other has not seen this one yet
            (place / f"{number} saw").touch()
            if len(list(place.glob("*saw"))) > 1:
                (place / "met").touch()
            time.sleep(0.05)
        return met
    finally:
        (place / f"{number} runs").unlink()


def _new_objects(_: int) -> int:
    return gc.get_threshold()[0]


def _variable(name: str) -> tuple[str, str | None]:
    return name, os.environ.get(name)


@pytest.mark.optional
@pytest.mark.soak
def test_a_job_that_takes_hours_over_a_shard_has_not_stalled(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's thread watches on meanwhile. The clock jumps, and then there is time for a look."""
    resources = Resources(workers=1, threads=1)
    jumps = 0
    limit = resources.stall_seconds + resources.capacity_seconds
    monkeypatch.setattr(ray_pool, "monotonic", lambda: time.monotonic() + jumps * limit)

    def listen(event: Event) -> None:
        nonlocal jumps
        if isinstance(event, StepDone) and jumps < 2:
            jumps += 1
            time.sleep(3 * ray_pool.POOL_SECONDS)

    for name, value in small.environment().items():
        monkeypatch.setenv(name, value)
    write_photos(tmp_path / "source", 8)
    request = Request("photos", str(tmp_path / "source"), shard_images=1, **small.place.options)  # type: ignore[arg-type]  # by name
    with ray_engine.RayEngine(resources) as engine:
        place = Catalogue(str(tmp_path / "c"))
        (built,) = build_datasets(place, [request], engine, resources, progress=listen)
    assert (built.version.images, jumps) == (8, 2)


@pytest.mark.optional
@pytest.mark.soak
def test_a_worker_that_takes_long_over_a_shard_and_gets_on_has_not_stalled(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is one shard, and takes longer than a pool may go on without one that ends."""
    slow = SLOW.replace("0.25", "6")
    for name, value in small.environment(slow).items():
        monkeypatch.setenv(name, value)
    group = tmp_path / "source" / "group"
    write_photos(group, 12)
    source = str(tmp_path / "source")
    request = Request("photos", source, group_by="1", **small.place.options)  # type: ignore[arg-type]  # by name
    resources = Resources(workers=1, threads=1, stall_seconds=RENEW_SECONDS + 25)
    with ray_engine.RayEngine(resources) as engine:
        place = Catalogue(str(tmp_path / "c"))
        (built,) = build_datasets(place, [request], engine, resources)
    assert (built.version.images, built.counted_shards) == (12, 1)


class NeverStarts:
    def __init__(self, **_: Any) -> None:
        raise ModuleNotFoundError("No module named 'fisheye'")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


@pytest.mark.soak
def test_a_worker_that_cannot_start_ends_the_build_with_the_reason(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in small.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray_engine, "ShardActor", NeverStarts)
    resources = Resources(workers=1, threads=1)
    write_photos(tmp_path / "source", 2)
    request = Request("photos", str(tmp_path / "source"), **small.place.options)  # type: ignore[arg-type]  # by name
    reason = "a worker could not start: ModuleNotFoundError: No module named 'fisheye'. Every "
    with (
        ray_engine.RayEngine(resources) as engine,
        pytest.raises(TransientError, match=reason),
    ):
        build_datasets(Catalogue(str(tmp_path / "c")), [request], engine, resources)


@pytest.mark.soak
def test_no_thread_of_ray_data_reads_on_when_ray_shuts_down(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's core would end this process with code 1, before the error is told."""
    reads_on: list[bool] = []
    shutdown, threaded = ray.shutdown, iter_batches.iter_threaded

    def ends_late(*args: Any, fn: Any, **options: Any) -> Iterator[Any]:
        def late(items: Iterator[Any]) -> Iterator[Any]:
            try:
                yield from fn(items)
            finally:
                time.sleep(1)

        return threaded(*args, fn=late, **options)

    def spy(**options: Any) -> None:
        reads_on.append(any(thread.name == ray_pool.READER for thread in threading.enumerate()))
        shutdown(**options)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            raise ZeroDivisionError

    for name, value in small.environment().items():
        monkeypatch.setenv(name, value)
    write_photos(tmp_path / "source", 16)
    request = Request("photos", str(tmp_path / "source"), shard_images=1, **small.place.options)  # type: ignore[arg-type]  # by name
    resources = Resources(workers=1, threads=1)
    place = Catalogue(str(tmp_path / "c"))
    monkeypatch.setattr(ray, "shutdown", spy)
    monkeypatch.setattr(iter_batches, "iter_threaded", ends_late)
    with ray_engine.RayEngine(resources) as engine, pytest.raises(ZeroDivisionError):
        build_datasets(place, [request], engine, resources, progress=listen)
    assert reads_on == [False]


def test_lost_workers_are_told_without_the_traces_and_colours_of_ray() -> None:
    of_task = RayTaskError("__init__", "\x1b[36mray::Pool\x1b[39m\nValueError: bad\n", None)
    (start, lost) = (loss_words(ActorDiedError(cause)) for cause in (of_task, None))
    assert start.startswith("a worker could not start: ValueError: bad. Every machine of ")
    assert lost.startswith("a worker was lost, and others after it; rerun the same command to go ")
    memory = OutOfMemoryError("node 7 ran\nout")
    assert loss_words(memory).endswith(": node 7 ran out")


@pytest.mark.soak
def test_object_stores_that_spill_to_disk_are_told_of_once(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's own results are small. Something else fills the store meanwhile."""
    resources = Resources(workers=1, threads=1)
    monkeypatch.setattr(ray_engine, "OBJECT_STORE_BYTES", 80 * 2**20)
    kept: list[object] = []
    warned: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            kept.append(ray.put(np.zeros(30 * 2**20, np.uint8)))
        if isinstance(event, Warned):
            warned.append(event.message)

    for name, value in small.environment().items():
        monkeypatch.setenv(name, value)
    write_photos(tmp_path / "source", 8)
    request = Request("photos", str(tmp_path / "source"), shard_images=1, **small.place.options)  # type: ignore[arg-type]  # by name
    with ray_engine.RayEngine(resources, progress=listen) as engine:
        place = Catalogue(str(tmp_path / "c"))
        (built,) = build_datasets(place, [request], engine, resources, progress=listen)
    assert (built.version.images, len(kept)) == (8, 8)
    assert len(warned) == 1
    assert "Ray's object stores ran full" in warned[0]


@pytest.mark.optional
@pytest.mark.soak
def test_a_reduction_of_several_levels_runs_on_ray(small: Small, tmp_path: Path) -> None:
    """A fold has more shards than one sum takes, so tasks of Ray make nodes."""
    source = tmp_path / "source"
    write_photos(source, 80)
    process = small.start(source, tmp_path / "c", patch="", shard_images=1)
    with ended(process):
        finish(process)
    assert len(list((tmp_path / "c").glob("_work/photos/*/nodes/*.parquet"))) == 16
    holds(tmp_path / "c", small.clean_pass(source))


def test_an_actor_ends_its_process_after_an_unexpected_error_of_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CUDA error stays with its process. Ray starts a new one, and gives the shard to it.

    Any unexpected error may have broken the device, but only the device's own count against it.
    """

    class Ended(Exception):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(shard_actor, "ROW_SECONDS", 0)
    monkeypatch.setattr(RayHome, "node", "n")
    columns = {"manifest": "m", "work": "w", "entries": "e", "claimant": "c"}
    columns |= {"keeps_cells": False, "dataset": "d"}
    batch = {"recipe": [0], "index": [1]} | {name: [value] for name, value in columns.items()}
    cuda, bug = "unexpected RuntimeError: CUDA error: launch failure", "unexpected KeyError: 3"
    faults: tuple[tuple[float, str, str, Fault, bool, bool], ...] = (
        (1.0, "UnexpectedError", cuda, "device", True, True),
        (1.0, "UnexpectedError", cuda, "device memory", True, True),
        (1.0, "UsageError", NO_GPU, "device", True, True),
        (1.0, "UnexpectedError", bug, "bug", True, False),
        (0.0, "UnexpectedError", cuda, "device", False, False),
        (1.0, "TransientError", cuda, "storage", False, False),
        (1.0, "UsageError", "there is no such module", "setup", False, False),
        (1.0, "UnexpectedError", ENDS_PROCESSES, "crash", False, False),
    )
    for gpus, kind, error, fault, ends, failed in faults:
        receipt = ShardReceipt("m", 1, error=error, kind=kind, fault=fault)

        recipe = Recipe(SPEC, NETWORK, "ranges", Resources(gpus_per_worker=gpus))
        jobs: list[ShardJob] = []
        monkeypatch.setattr(
            Worker, "run", lambda _, job, index, r=receipt, told=jobs: told.append(job) or r
        )
        actor = ShardActor([recipe], 0, {}, "pool")
        row = actor(batch)
        assert (row["kind"], row["device_failed"]) == ([kind], [failed])
        assert receipt_of({name: value[0] for name, value in row.items()}) == receipt
        assert jobs == [ShardJob(recipe, "m", "w", "e", "c", keeps_cells=False, dataset="d")]
        with pytest.raises(Ended) if ends else contextlib.nullcontext():
            assert actor(batch)["index"] == [1]


def test_an_actor_returns_what_is_warned_of_while_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody reads what a worker logs, and a damaged file would never be told of."""

    def run(*_: object) -> ShardReceipt:
        with about(dataset="photos", shard=3):
            for module in ("cells", "leases", "makers"):
                logging.getLogger(f"pipeline.counting.{module}").warning("of %s", module)
        logging.getLogger("pipeline.counting.merged_shards").warning("of merged_shards")
        logging.getLogger("pipeline.counting.openvino_forward").info("a network is converted")
        logging.getLogger("pipeline.storage.retry").warning("the next try begins in 1 s")
        return ShardReceipt("m", 1)

    monkeypatch.setattr(RayHome, "node", "n")
    monkeypatch.setattr(Worker, "run", run)
    batch = {name: [0] for name in ("recipe", "index", "keeps_cells")}
    batch |= {name: ["x"] for name in ("manifest", "work", "entries", "claimant", "dataset")}
    counts = logging.getLogger("pipeline.counting")
    before = [*counts.handlers]
    try:
        actor = ShardActor([Recipe(SPEC, NETWORK, "ranges", Resources())], 0, {}, "pool")
        notices = [json.loads(actor(batch)["notices"][0]) for _ in range(2)]
    finally:
        counts.handlers[:] = before
    of_shard = [f"photos, shard 3: of {module}" for module in ("cells", "leases", "makers")]
    assert notices == [[*of_shard, "of merged_shards"]] * 2


def test_shards_that_end_together_share_what_was_warned_of() -> None:
    class Emptied(deque[str]):
        """Another thread has taken the last notice, after this one has looked how many are left."""

        def __len__(self) -> int:
            return super().__len__() + 1

    notices = _Notices()
    notices._kept = Emptied(["slow"])
    assert notices.drained() == ["slow"]
    assert notices.drained() == []


@pytest.mark.soak
def test_counts_that_do_not_add_up_end_the_job_by_their_name(
    folder: Path, small: Small, tmp_path: Path
) -> None:
    """One activation is lost in a worker: a defect of our code, which no retry repairs."""
    process = small.start(folder, tmp_path / "c", patch="", network="losing_network")
    before = sessions_of(process)
    with ended(process):
        out, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    assert out, err
    told = json.loads(out)
    assert told["error"] == "ConservationError"
    assert "a[0]" in told["message"]
    assert "Traceback" not in err
    assert Catalogue(str(tmp_path / "c")).head().number == 0
    # A shard whose only image cannot be read has lost nothing.
    assert [partial.dna.images for partial in _partials(tmp_path / "c") if partial.dna.images] == []
    assert running(tmp_path / "c") == []
    # A stream that went on while Ray went down would have started another Ray.
    assert sessions_of(process) <= before


@pytest.mark.optional
@pytest.mark.soak
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_build_on_ray_without_words_or_files_of_ray(
    folder: Path, small: Small, tmp_path: Path, number: int, code: int
) -> None:
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # children do not ignore it then
    try:
        process = small.start(folder, tmp_path)
    finally:
        signal.signal(signal.SIGINT, handler)
    before = sessions_of(process)
    with ended(process):
        while not committed(tmp_path) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), err
    assert "starting Ray on this machine" in err.splitlines()
    assert err.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "raylet" not in err
    assert sessions_of(process) <= before


def test_the_folder_of_an_ended_ray_is_removed_unless_its_logs_may_tell_why_a_job_failed(
    tmp_path: Path,
) -> None:
    session = tmp_path / "session_1"
    (session / "logs").mkdir(parents=True)
    (session / "logs" / "raylet.out").write_text("…")
    (tmp_path / "session_latest").symlink_to(session)
    remove_session(session)
    assert [*tmp_path.iterdir()] == []
    for error in (None, KeyboardInterrupt(), UsageError("x"), GateError("x")):
        assert not is_worth_logs(error)
    for error in (TransientError("a worker was lost"), UnexpectedError("x"), ValueError("x")):
        assert is_worth_logs(error)


def test_a_ray_that_keeps_its_node_elsewhere_ends_without_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Moved:
        def is_head(self) -> bool:
            return True

    monkeypatch.setattr(ray_start.worker, "_global_node", Moved())
    assert session_folder() is None
    monkeypatch.delattr(ray_start.worker, "_global_node")
    assert session_folder() is None


def _partials(catalogue: Path) -> list[Partial]:
    paths = catalogue.glob("_work/photos/*/partials/*.parquet")
    return [Partial.decode(path.read_bytes(), path.name) for path in paths]


@pytest.mark.soak
@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.optional)])
def test_images_that_always_crash_are_listed_and_one_that_crashes_once_counts(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    source, good, catalogue = tmp_path / "source", tmp_path / "good", tmp_path / "c"
    write_photos(source, 20)
    for name in ("is killed", "aborts", "faults once"):
        marked = PngImagePlugin.PngInfo()
        marked.add_text("comment", f"decoder {name}")
        photo(len(name) + 100).save(source / f"{name}.png", pnginfo=marked)
    good.mkdir()
    for path in source.iterdir():
        if path.name not in ("is killed.png", "aborts.png"):
            (good / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("FAULTED_ONCE", str(tmp_path / "once"))
    runs = 0
    while True:  # without Ray the process itself dies, and is started again by hand
        process = small.start(
            source, catalogue, "--max-failures", "1", patch=DEADLY, workers=workers
        )
        runs += 1
        with ended(process):
            _, err = process.communicate(timeout=240)
        if workers or process.returncode >= 0 or runs == 9:
            break
    assert process.returncode == 3, err
    assert "is killed.png: decoder_crashed" in err
    assert (tmp_path / "once").exists()
    again = small.start(source, catalogue, patch=DEADLY, workers=0)
    with ended(again):
        result = finish(again)
    assert (result["images"], result["failed"], result["counted_shards"]) == (21, 2, 0)
    failures = Catalogue(str(catalogue)).failures(
        "photos", Catalogue(str(catalogue)).find("photos")
    )
    assert {f.uri.rpartition("/")[2]: f.reason for f in failures} == {
        "is%20killed.png": "decoder_crashed",
        "aborts.png": "decoder_crashed",
    }
    assert all(f.nondeterministic for f in failures)
    holds(catalogue, replace(small.clean_pass(good), failed=2))
    assert runs == 1 if workers else runs <= 6


@pytest.mark.soak
def test_a_shard_that_always_ends_its_worker_is_named_and_the_others_are_counted(
    small: Small, tmp_path: Path
) -> None:
    """The network ends the process at one image, and not its decoder."""
    source, catalogue = tmp_path / "source", tmp_path / "c"
    write_photos(source, 20)
    Image.new("RGB", (96, 72), (200, 200, 200)).save(source / "photo-0007.png")
    process = small.start(source, catalogue, patch="", network="crashing_network")
    with ended(process):
        out, err = process.communicate(timeout=400)
    assert process.returncode == 1, err
    message = json.loads(out)["message"]
    shards = committed(catalogue)
    assert f"photos: 1 of {shards + 1} shards could not be counted (" in message
    assert "(crash): UnexpectedError: the shard ends the processes that take it: 5 took" in message
    assert running(catalogue) == []
    process = small.start(source, catalogue, patch="")
    with ended(process):
        result = finish(process)
    assert (result["images"], result["counted_shards"]) == (21, 1)
    holds(catalogue, small.clean_pass(source))


@pytest.fixture(scope="module")
def clean(
    folder: Path, small: Small, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """Returns what an undisturbed build without Ray commits."""
    place = tmp_path_factory.mktemp("clean")
    process = small.start(folder, place, patch="", workers=0)
    with ended(process):
        return finish(process)


def same_bits(catalogue: Path, clean: dict[str, object], truth: DNA) -> None:
    version = Catalogue(str(catalogue)).find("photos")
    assert (version.dna, version.sha256) == (clean["dna"], clean["sha256"])
    assert committed(catalogue) == SHARDS
    holds(catalogue, truth)


@pytest.mark.soak
def test_a_fault_that_every_shard_meets_ends_a_build_early_and_a_rerun_counts_exactly(
    folder: Path, small: Small, truth: DNA, clean: dict[str, object], tmp_path: Path
) -> None:
    """A package is missing where the workers run. Eight shards of 32 must fail for good.

    A shard whose only image cannot be read is stored nevertheless.
    """
    build = tmp_path / "c"
    process = small.start(folder, build, patch="", network="failing_network")
    with ended(process):
        out, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    told = json.loads(out)
    assert told["error"] == "UnexpectedError"
    assert "No module named 'fisheye'" in told["message"]
    numbers = re.search(
        r": (\d+) of 32 shards .* (\d+) failed with the same error, so the other (\d+) were not",
        told["message"],
    )
    assert numbers is not None, told["message"]
    failed, alike, untried = map(int, numbers.groups())
    # A shard that was under way when the build ended may be stored, and no one waited for it.
    assert 8 <= failed == alike <= SHARDS - untried
    assert failed >= SHARDS - untried - committed(build)
    assert untried > 0
    assert 3 * failed <= err.count("not counted (setup)") <= 3 * SHARDS - untried
    assert running(build) == []
    process = small.start(folder, build, patch="")
    with ended(process):
        finish(process)
    same_bits(build, clean, truth)


@pytest.mark.optional
@pytest.mark.soak
def test_a_ranking_by_workers_equals_that_of_one_process(
    folder: Path, small: Small, tmp_path: Path
) -> None:
    """The same command is run again after its driver was killed."""
    source = tmp_path / "source"
    write_photos(source, 16, first_seed=300)
    path = source / "photo-0303.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    built, place = tmp_path / "built", tmp_path / "place"
    options = ["--to", "near", "--max-failures", "1", "--layer", "b"]
    with contextlib.closing(InProcess()) as engine:
        request = Request(
            "near", str(folder), max_failures=2, limit=8, exemplars=0, **small.place.options
        )
        build_datasets(Catalogue(str(built)), [request], engine, Resources(threads=2))
        shutil.copytree(built, place)
        alone = tmp_path / "alone.parquet"
        rank(
            Catalogue(str(built)),
            RankRequest(
                str(source),
                "near",
                layers=["b"],
                max_failures=1,
                out=str(alone),
                weights=small.place.weights,
            ),
            engine,
            resources=Resources(threads=2),
        )
    spread = tmp_path / "spread.parquet"
    command = [sys.executable, "-m", "jobs.rank", str(source), *options, "-c", str(place)]
    command += ["--workers", "2", "--threads", "1", "--json", "--out", str(spread)]
    command += ["--shard-images", "1", "--weights", small.place.weights]
    env = os.environ | small.environment(SLOW)

    def ranking() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            cwd=REPOSITORY,
        )

    def done() -> int:
        return len(list(place.glob("_work/_ranks/*/partials/*.parquet")))

    first = ranking()
    with ended(first):
        deadline = time.monotonic() + 120
        while not done():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.kill()
    assert not spread.exists()
    there = done()
    second = ranking()
    with ended(second):
        found = finish(second)
    assert (found["ranked"], found["failed"]) == (15, 1)
    assert found["counted_shards"] <= 16 - there  # its workers may have gone on for a while
    assert spread.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize(
    ("address", "sends"),
    [
        (None, False),
        ("local", False),
        ("10.0.0.1:6379", True),
        ("auto", True),
    ],
)
def test_logs_of_nodes_are_taken_where_ray_tells_there_that_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, address: str | None, sends: bool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_engine.RayEngine(Resources(), address)._has_logs == sends


@pytest.mark.parametrize("address", [None, "local", "10.0.0.1:6379"])
@pytest.mark.parametrize("started_here", [True, False])
def test_a_ray_that_was_connected_before_is_this_machine_only_if_it_was_started_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started_here: bool, address: str | None
) -> None:
    """Its autoscaler may bring more CPUs and GPUs than its nodes have now."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_engine.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_engine, "session_folder", lambda: tmp_path if started_here else None)
    monkeypatch.setattr(ray_engine, "watched_cluster", lambda warnings: contextlib.nullcontext())
    monkeypatch.setattr(ray_engine, "available_cpus", lambda: 2)
    monkeypatch.setattr(ray_engine, "_cluster", lambda: {"CPU": 64.0})
    monkeypatch.setattr(ray_nodes, "_autoscaled", list)
    head = {"Alive": True, "Resources": {"CPU": 64}}
    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: [head])
    engine = ray_engine.RayEngine(Resources(threads=8), address)
    with engine:
        assert engine.workers == (2 if started_here else 64)
        if started_here:
            with pytest.raises(UsageError, match="threads is 8; this machine has 2 CPUs"):
                engine._room()
        else:
            assert engine._room().most > engine.shard_workers == 7
        engine.resources = Resources(gpus_per_worker=1)
        wrong = pytest.raises(UsageError, match="Ray sees 0 GPUs on this machine")
        with wrong if started_here else contextlib.nullcontext():
            engine._require_gpus()


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "127.0.0.1:9", "127.0.0.1:sixty"])
def test_an_address_at_which_nothing_answers_is_refused_at_once(address: str) -> None:
    started, told = time.monotonic(), list[object]()
    with pytest.raises(UsageError, match=re.escape(address)):
        ray_engine.RayEngine(Resources(), address, told.append).__enter__()
    assert told == [Said(f"connecting to Ray at {address}")]
    assert time.monotonic() - started < 60


def test_an_address_for_the_client_of_ray_is_refused_before_anything_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data cannot run there: it asks for a core of Ray in this process."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = ["build", "photos", str(tmp_path), "-c", str(tmp_path / "c")]
    by_option = CliRunner().invoke(app, [*given, "--ray-address", "ray://head:10001"])
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    by_variable = CliRunner().invoke(app, given)
    assert [by_option.exit_code, by_variable.exit_code] == [2, 2]
    assert by_option.stderr == by_variable.stderr
    assert "ray-address is 'ray://head:10001'" in by_option.stderr
    assert "vdna submit" in by_option.stderr
    assert not (tmp_path / "c").exists()
    with pytest.raises(UsageError, match="does not work through Ray's client"):
        ray_engine.RayEngine(Resources())
    in_process = CliRunner().invoke(app, [*given, "--workers", "0"])
    assert "ray-address" not in in_process.stderr
    assert str(tmp_path) in in_process.stderr
