"""Tests builds on a Ray cluster whose nodes come and go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.exceptions import ActorDiedError

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.counting import Extractor, worker
from pipeline.dna import DNA
from pipeline.engine import InProcess, RayEngine, broken_nodes, ray_engine
from pipeline.engine.ray_nodes import GROWTH, Room
from pipeline.engine.ray_start import start_with_retries
from pipeline.errors import TransientError
from pipeline.events import Event, PoolChanged, Said, StepDone, StepFailed, Warned
from pipeline.spec import Resources
from tests.engine.test_ray_engine import clean, same_bits
from tests.support.faulty_start import FAILS, LACKS_A_MODULE, WAITS, StartsElsewhere
from tests.support.gpu_nodes import FAST_CHECKS, PATIENT_CHECKS
from tests.support.ray_commands import (
    NO_DASHBOARD,
    REPOSITORY,
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

HELD = """
import os, sys, time
if "LACKS" in os.environ:
    sys.modules[os.environ["LACKS"]] = None
if "pipeline.images.isolated" in sys.orig_argv:
    open(os.path.join(os.environ["ELASTIC"], "apart"), "w").close()
import PIL.Image
opened = PIL.Image.open
def held(*args, **kwargs):
    while os.path.exists(os.path.join(os.environ["ELASTIC"], "held")):
        time.sleep(0.1)
    return opened(*args, **kwargs)
PIL.Image.open = held
"""
"""Decoding waits as long as there is a file; another file tells of processes that decode apart.
A node may lack a module."""

ONE_HELD = """
import os, time
import PIL.Image
opened = PIL.Image.open
place = os.environ["ELASTIC"]
def one_held(*args, **kwargs):
    try:
        open(os.path.join(place, "waits"), "x").close()
    except FileExistsError:
        time.sleep(0.5)
        return opened(*args, **kwargs)
    while os.path.exists(os.path.join(place, "held")):
        time.sleep(0.1)
    return opened(*args, **kwargs)
PIL.Image.open = one_held
"""
"""The image that is decoded first waits as long as there is a file."""


class Nodes:
    """A cluster whose head takes no worker, and the nodes that are added to it."""

    def __init__(self, place: Path, cluster: Cluster) -> None:
        self._place = place
        self._cluster = cluster
        self._added: list[Any] = []
        self.address = cluster.address

    def hold(self) -> None:
        (self._place / "held").touch()

    def let_go(self) -> None:
        (self._place / "held").unlink()

    @property
    def a_worker_waits(self) -> bool:
        return (self._place / "starts").exists()

    @property
    def decoded_apart(self) -> bool:
        return (self._place / "apart").exists()

    def add(self, **what: Any) -> Any:
        node = start_with_retries(lambda: self._cluster.add_node(**what))
        self._added.append(node)
        return node

    def lose(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)
        self._added.remove(node)

    def lose_all(self) -> None:
        for node in [*self._added]:
            self.lose(node)


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A cluster of one node that takes no worker; the tests add others and lose them."""
    node = {"num_cpus": 0, "object_store_memory": 200 * 2**20, **NO_DASHBOARD}
    node["_system_config"] = FAST_CHECKS
    cluster = Cluster()
    try:
        start_with_retries(lambda: cluster.add_node(**node))
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def nodes(
    head: Cluster, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Nodes]:
    place = tmp_path / "elastic"
    place.mkdir()
    monkeypatch.setenv("ELASTIC", str(place))
    for name, value in small.environment(HELD).items():
        monkeypatch.setenv(name, value)  # a node's workers have it of their node
    nodes = Nodes(place, head)
    try:
        yield nodes
    finally:
        nodes.lose_all()


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


DEVICE_FAULTS = {
    "BROKEN_GPU": "CUDA error: an illegal memory access",
    "NO_GPU": "torch finds no GPU on this machine",
}


@pytest.mark.soak
def test_nodes_whose_device_fails_are_left_out_and_the_others_count_all(
    small: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs are only declared. One fails at each micro-batch, and one as the network is loaded."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    cluster = Cluster()
    events: list[Event] = []
    # A process that starts anew after each error takes long: the sound node must not be done.
    pace, quick = tmp_path / "pace", tmp_path / "quick"
    pace.write_text("4")
    quick.write_text("0")

    def listen(event: Event) -> None:
        events.append(event)
        if quick.exists() and sum(isinstance(each, Warned) for each in events) == 2:
            quick.replace(pace)

    try:
        head = {"num_cpus": 0, "_system_config": PATIENT_CHECKS, **NO_DASHBOARD}
        kinds = [{"SLOW_GPU": "4", "GPU_PACE": str(pace)}, *({n: "1"} for n in DEVICE_FAULTS)]
        devices = [{"num_gpus": 1, "env_vars": kind} for kind in kinds]
        for node in (head, *devices):
            size = {"num_cpus": 3, "object_store_memory": 200 * 2**20} | node
            start_with_retries(lambda size=size: cluster.add_node(**size))
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": "tests.support.fake_gpu.install"},
        )
        place = Catalogue(str(tmp_path / "c"))
        options = {"max_failures": 2, "shard_images": 2, **small.place.options}
        request = Request("photos", str(folder), **options)  # type: ignore[arg-type]  # by name
        resources = Resources(gpus_per_worker=1, threads=1, decode="here")
        with RayEngine(resources, cluster.address, listen) as engine:
            (built,) = build_datasets(place, [request], engine, resources, progress=listen)
    finally:
        ray.shutdown(wait_for_processes=True)
        cluster.shutdown()
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert len(warned) == 2
    for told in DEVICE_FAULTS.values():
        (of_it,) = [message for message in warned if told in message]
        assert "has failed 3 times in a row" in of_it
    failed = [event for event in events if isinstance(event, StepFailed)]
    assert len(failed) >= 6
    assert len(failed) <= 10, "a node that is left out has had shards under way"
    assert {event.fault for event in failed} == {"device"}
    alone = Catalogue(str(tmp_path / "alone"))
    with InProcess() as engine:
        monkeypatch.setattr(
            worker, "Extractor", lambda *given, **how: Extractor(*given, on_device=True, **how)
        )
        resources = Resources(threads=1, backend="torch")
        (undisturbed,) = build_datasets(alone, [request], engine, resources)
    assert built.version.sha256 == undisturbed.version.sha256


def told_of(events: list[Event], words: str) -> list[str]:
    warned = [event.message for event in events if isinstance(event, Warned)]
    return [message for message in warned if words in message]


NO_START = "a worker could not start on node "


@pytest.mark.soak
def test_nodes_that_start_no_worker_are_left_out_and_the_others_count_all(
    nodes: Nodes,
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On one node the worker raises an error, and one lacks a module of the worker.

    A third is lost while its worker starts, which says nothing about it. A pool goes on meanwhile.
    """
    monkeypatch.setattr(ray_engine, "ShardActor", StartsElsewhere)
    pools: list[object] = []
    run_pool = RayEngine._pool
    monkeypatch.setattr(RayEngine, "_pool", lambda *of: pools.append(of) or run_pool(*of))
    nodes.add(num_cpus=2)
    fails, lacks = (nodes.add(num_cpus=2, env_vars=fault) for fault in (FAILS, LACKS_A_MODULE))
    waits = nodes.add(num_cpus=2, env_vars=WAITS)
    nodes.hold()  # the sound node must not be done before the others have failed
    events: list[Event] = []
    over = threading.Event()

    def are_left_out() -> bool:
        return over.is_set() or (len(told_of(events, NO_START)) == 2 and nodes.a_worker_waits)

    def lose_one_and_let_go() -> None:
        try:
            eventually(are_left_out)
            nodes.lose(waits)
            eventually(lambda: over.is_set() or told_of(events, "was lost"))
        finally:
            nodes.let_go()

    place = Catalogue(str(tmp_path / "c"))
    options = {"max_failures": 2, "shard_images": 2, **small.place.options}
    request = Request("photos", str(folder), **options)  # type: ignore[arg-type]  # by name
    resources = Resources(threads=1)
    with ThreadPoolExecutor(1) as aside:
        changes = aside.submit(lose_one_and_let_go)
        try:
            with RayEngine(resources, nodes.address, events.append) as engine:
                build_datasets(place, [request], engine, resources, progress=events.append)
                addresses = {each["NodeID"]: each["NodeManagerAddress"] for each in ray.nodes()}
        finally:
            over.set()
            ray.shutdown(wait_for_processes=True)
        changes.result()
    assert len(pools) == 1
    assert set(engine._broken.left_out) == {fails.node_id, lacks.node_id}
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert len(warned) == 3, warned
    of_node = dict(zip(engine._broken.left_out, told_of(events, NO_START), strict=True))
    for node, error in (
        (fails, "ModuleNotFoundError: No module named 'fisheye'"),
        (lacks, f"import of {LACKS_A_MODULE['LACKS']} halted"),
    ):
        words = of_node[node.node_id]
        assert words.startswith(f"{NO_START}{addresses[node.node_id]}, which gets no more workers")
        assert error in words
    same_bits(tmp_path / "c", clean, truth)


@pytest.mark.soak
def test_a_worker_that_is_started_again_where_none_can_start_ends_no_build(
    nodes: Nodes,
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
) -> None:
    """Its node was lost. Ray starts it again on another one, and tells its shards of the error."""
    nodes.add(num_cpus=1)  # for what is no worker
    _, lost = nodes.add(num_cpus=2), nodes.add(num_cpus=2)
    nodes.hold()
    build = tmp_path / "c"
    options = ("--ray-address", nodes.address, "--threads", "2")
    process = small.start(folder, build, *options, workers=2)
    with ended(process):
        until(process, lambda: len(running(build)) >= 2)
        nodes.add(num_cpus=2, env_vars=LACKS_A_MODULE)
        nodes.lose(lost)
        nodes.let_go()
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert err.count(NO_START) == 1
    same_bits(build, clean, truth)


@pytest.mark.soak
def test_a_pool_that_was_made_before_its_nodes_came_makes_way_for_a_larger_one(
    nodes: Nodes,
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody says how many will come."""
    events: list[Event] = []
    real = ray_engine.room_of

    def room_of(*given: Any) -> Room:
        began = any(isinstance(event, StepDone) and event.units for event in events)
        return real(*given) if began else Room(threads=1, now=1, most=1)

    rooms: list[Room] = []
    run_pool = RayEngine._pool
    monkeypatch.setattr(RayEngine, "_pool", lambda *of: rooms.append(of[-1]) or run_pool(*of))
    monkeypatch.setattr(ray_engine, "room_of", room_of)
    monkeypatch.setattr(ray_engine, "ROOM_LOOK_SECONDS", 0.0)
    nodes.add(num_cpus=10)
    options = {"max_failures": 2, "shard_images": 2, **small.place.options}
    request = Request("photos", str(folder), **options)  # type: ignore[arg-type]  # by name
    try:
        with RayEngine(Resources(), nodes.address, events.append) as engine:
            place = Catalogue(str(tmp_path / "c"))
            build_datasets(place, [request], engine, Resources(), progress=events.append)
    finally:
        ray.shutdown(wait_for_processes=True)
    said = [event.message for event in events if isinstance(event, Said)]
    assert said.count("more nodes have come: there is room for 2 workers, which start anew") == 1
    assert [(room.now, room.most) for room in rooms] == [(1, 1), (2, 2 * GROWTH)]
    same_bits(tmp_path / "c", clean, truth)


@pytest.mark.optional
@pytest.mark.soak
def test_a_fault_that_keeps_workers_from_starting_on_every_node_ends_a_build_soon(
    nodes: Nodes, small: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more nodes than may fail, not all are tried. Then all of them are."""
    monkeypatch.setattr(ray_engine, "ShardActor", StartsElsewhere)
    added = {nodes.add(num_cpus=2, env_vars=FAILS).node_id for _ in range(3)}
    request = Request("photos", str(folder), **small.place.options)  # type: ignore[arg-type]  # by name
    for workers, most, left_out in ((1, 2, 1), (None, 8, 2)):
        monkeypatch.setattr(broken_nodes, "MOST_IDLE_NODES", most)
        resources = Resources(workers=workers, threads=1)
        events: list[Event] = []
        began = time.monotonic()
        try:
            with (
                RayEngine(resources, nodes.address, events.append) as engine,
                pytest.raises(TransientError, match="a worker could not start: ModuleNotFoundErro"),
            ):
                build_datasets(Catalogue(str(tmp_path / "c")), [request], engine, resources)
        finally:
            ray.shutdown(wait_for_processes=True)
        assert time.monotonic() - began < 200
        assert len(engine._broken.left_out) == len(told_of(events, NO_START)) == left_out
        assert set(engine._broken.left_out) < added


@pytest.mark.soak
@pytest.mark.parametrize("dies", ["node", "process"])
def test_lost_nodes_are_no_poison_and_processes_that_die_twice_are(
    nodes: Nodes,
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
    dies: str,
) -> None:
    """Workers die until one of the three shards that Ray has given them is tried thrice.

    After two crashes a shard runs alone, and for that it waits until no other one runs.
    """
    node = nodes.add(num_cpus=2)
    nodes.hold()
    build = tmp_path / "c"
    process = small.start(folder, build, "--ray-address", nodes.address, workers=1)
    with ended(process):
        while not tried_thrice(process, build):
            if dies == "node":
                nodes.lose(node)
                node = nodes.add(num_cpus=2)
                continue
            (pid,) = running(build)
            os.kill(pid, signal.SIGKILL)
        nodes.let_go()
        finish(process)
    assert nodes.decoded_apart == (dies == "process")
    same_bits(build, clean, truth)


@pytest.mark.soak
def test_a_build_waits_for_its_first_node_and_says_so(
    nodes: Nodes,
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
) -> None:
    build = tmp_path / "c"
    address = ("--ray-address", nodes.address)
    limited = small.start(folder, build, *address, "--capacity-seconds", "13", patch="")
    with ended(limited):
        out, err = limited.communicate(timeout=240)
    assert limited.returncode == 1, err
    assert json.loads(out)["error"] == "TransientError"
    assert "no worker runs: one takes 1 CPU, and starts when a node has that free" in err
    assert "waits for one, 0:00:13 at most" in err
    assert "no worker ran for 1" in err
    assert "Traceback" not in err
    process = small.start(folder, build, *address, patch="")
    with ended(process):
        words = said(process, "no worker runs")
        assert process.poll() is None
        nodes.add(num_cpus=2)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, words + err
    same_bits(build, clean, truth)


@pytest.mark.soak
def test_a_build_that_loses_its_only_node_says_so_and_goes_on_with_the_next(
    nodes: Nodes,
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
) -> None:
    """It takes 10 s until that is told, and as long until Ray knows of the loss."""
    first = nodes.add(num_cpus=2)
    nodes.hold()
    build = tmp_path / "c"
    process = small.start(folder, build, "--ray-address", nodes.address, workers=1)
    with ended(process):
        until(process, lambda: len(running(build)) == 1)
        nodes.lose(first)
        words = said(process, "was lost", "no worker runs")
        assert process.poll() is None
        nodes.let_go()
        nodes.add(num_cpus=2)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, words + err
    same_bits(build, clean, truth)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [pytest.param(3, marks=pytest.mark.optional), None])
def test_a_pool_grows_when_nodes_come_and_goes_on_when_they_go(
    nodes: Nodes,
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
    workers: int | None,
) -> None:
    """If nobody says how many workers there are, each node keeps a CPU."""
    first, each = nodes.add(num_cpus=2), 1 if workers is None else 2
    nodes.hold()
    build = tmp_path / "c"
    process = small.start(folder, build, "--ray-address", nodes.address, workers=workers, patch="")
    with ended(process):
        until(process, lambda: len(running(build)) == each)
        second = nodes.add(num_cpus=2)
        until(process, lambda: len(running(build)) == (workers or 2 * each))
        nodes.lose(first)
        until(process, lambda: len(running(build)) == min(each, (workers or 2) - each))
        words = said(process, "was lost")
        nodes.let_go()
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert (words + err).count("was lost") == 1
    assert "(raylet)" not in words + err
    same_bits(build, clean, truth)
    assert second.all_processes


@pytest.mark.optional
@pytest.mark.soak
def test_workers_without_shards_give_their_nodes_back_while_the_last_shard_runs(
    nodes: Nodes,
    small: Small,
    folder: Path,
    truth: DNA,
    clean: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One image waits. Nobody asks for two of the nodes, which stay: there is no autoscaler here.

    `test_autoscaler` has one, which removes them.
    """
    place = Path(os.environ["ELASTIC"])
    for name, value in small.environment(ONE_HELD).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS", "1")
    for _ in range(3):
        nodes.add(num_cpus=1)
    nodes.hold()
    build = tmp_path / "c"
    process = small.start(folder, build, "--ray-address", nodes.address, workers=3, patch="")
    with ended(process):
        until(process, lambda: committed(build) == SHARDS - 1)
        assert (place / "waits").exists()
        try:
            ray.init(address=nodes.address, log_to_driver=False)
            until(process, lambda: ray.available_resources().get("CPU", 0) >= 2)
            time.sleep(3)
            head = GcsClient(address=ray.get_runtime_context().gcs_address)
            asked = head.internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL, None)
        finally:
            ray.shutdown(wait_for_processes=True)
        nodes.let_go()
        finish(process)
    assert b"CPU" not in (asked or b"")
    same_bits(build, clean, truth)


@pytest.mark.optional
@pytest.mark.soak
def test_functions_run_on_nodes_whose_cpus_are_all_taken(nodes: Nodes) -> None:
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        node, taken, pid = node_with_an_actor(nodes)
        with RayEngine(Resources(workers=1, threads=1), nodes.address) as engine:
            beside = engine.beside_shards()
            assert (beside is engine, beside.in_process, beside.workers) == (False, False, 1)
            found = list(beside.map(process_and, range(3)))
            assert set(beside.map(node_of, range(6))) == {node.node_id}, "not the head"
            del taken
            until_free = time.monotonic() + 60
            while engine.beside_shards() is not engine:
                assert time.monotonic() < until_free
                time.sleep(0.1)
    finally:
        ray.shutdown(wait_for_processes=True)
    assert {number for number, _ in found} == {0, 1, 2}
    assert not {process for _, process in found} & {pid, os.getpid()}


@pytest.mark.soak
def test_tasks_wait_for_their_first_node_and_say_so(nodes: Nodes) -> None:
    """Such as those that list a source, which come before any worker."""
    events: list[Event] = []
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        hasty = Resources(threads=999, capacity_seconds=5)
        # This process has connected the cluster, so the engine needs no address.
        with RayEngine(hasty, progress=events.append) as engine:
            assert engine.shard_workers == 1, "a node of so many CPUs may come"
            with pytest.raises(TransientError, match="no node had 1 CPU for"):
                list(engine.map(process_and, range(3)))
        assert events == []
        with (
            RayEngine(Resources(threads=1), nodes.address, events.append) as engine,
            ThreadPoolExecutor(1) as pool,
        ):
            waits = pool.submit(lambda: list(engine.map(process_and, range(9))))
            eventually(lambda: any(isinstance(event, PoolChanged) for event in events))
            nodes.add(num_cpus=2)
            assert {number for number, _ in waits.result(120)} == set(range(9))
        waited, went_on = (event for event in events if isinstance(event, PoolChanged))
        assert waited == PoolChanged(0, 1, "1 CPU", Resources().capacity_seconds)
        assert went_on.workers == 2
    finally:
        ray.shutdown(wait_for_processes=True)


class Taken:
    """Takes what its actor asks for."""

    def __call__(self) -> int:
        return os.getpid()


def node_with_an_actor(nodes: Nodes) -> tuple[Any, Any, int]:
    """Adds a node, all of whose CPUs an actor takes.

    On a busy machine a node may start and end itself later: after 15 s if its agents took longer
    (see `start_with_retries`), or when the head took it for lost. Then another is added.

    Returns:
        The node, the actor, and the id of the actor's process.

    Raises:
        TimeoutExpired: The actor died, and its node lives.
    """
    while True:
        node = nodes.add(num_cpus=1)
        taken = ray.remote(num_cpus=1)(Taken).remote()
        try:
            return node, taken, ray.get(taken.__call__.remote())
        except ActorDiedError:
            (raylet,) = node.all_processes["raylet"]
            raylet.process.wait(30)
            nodes.lose(node)


@pytest.mark.soak
def test_tasks_go_to_no_node_that_is_left_out_and_wait_for_one_with_their_memory(
    nodes: Nodes,
) -> None:
    events: list[Event] = []
    large = nodes.add(num_cpus=1, memory=4 * 10**9)
    out = nodes.add(num_cpus=1, memory=2 * 10**9)
    kept = nodes.add(num_cpus=1, memory=2 * 10**9)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        eventually(lambda: ray.cluster_resources().get("CPU") == 3)
        with RayEngine(Resources(threads=1, capacity_seconds=4), progress=events.append) as engine:
            engine._broken._left_out[out.node_id] = None
            able = {large.node_id, kept.node_id}
            assert set(engine.map(node_of, range(12))) <= able
            assert set(engine.map(node_of, range(3), memory=3 * 10**9)) == {large.node_id}
            waits = engine.map(node_of_late, range(3), memory=3 * 10**9)
            assert next(waits) == large.node_id
            nodes.lose(large)
            with pytest.raises(
                TransientError, match=r"no node had 1 CPU and 3\.0 GB of memory for"
            ):
                list(waits)
            # A task that no node has room for has the largest for itself.
            assert set(engine.map(node_of, range(3), memory=3 * 10**9)) == {kept.node_id}
    finally:
        ray.shutdown(wait_for_processes=True)


def node_of(number: int) -> str:
    time.sleep(0.2)
    return str(ray.get_runtime_context().get_node_id())


def node_of_late(number: int) -> str:
    """Returns the node of item 0 at once; the others are still under way when a test goes on."""
    time.sleep(600 if number else 0)
    return node_of(number)


def process_and(number: int) -> tuple[int, int]:
    return number, os.getpid()


def said(process: subprocess.Popen[str], *words: str) -> str:
    """Reads what a build says, until all of these words were said, in any order."""
    assert process.stderr is not None
    lines, missing = [], set(words)
    for line in process.stderr:
        lines.append(line)
        missing = {each for each in missing if each not in line}
        if not missing:
            return "".join(lines)
    pytest.fail(f"{missing} was not said: {''.join(lines)}")


def tried_thrice(process: subprocess.Popen[str], build: Path) -> bool:
    """Waits until the only worker has begun what it will; returns whether that is a third try."""
    before = set(notes(build))
    # A shard that crashed twice may wait, without a note, until the other one has ended.
    begun = 1 if notes(build, 2) else 2
    thrice: list[Path] = []

    def has_begun() -> bool:
        thrice.extend(notes(build, 3))  # such a note may be gone again
        return bool(thrice) or len({*notes(build)} - before) >= begun

    until(process, has_begun)
    return bool(thrice)


def notes(build: Path, attempt: int | str = "*") -> list[Path]:
    return list(build.glob(f"_work/photos/*/attempts/*-{attempt}.json"))
