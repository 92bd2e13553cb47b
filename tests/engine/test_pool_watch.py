"""Tests how long a pool waits for workers and for shards, and what is told of it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext
from ray.data._internal.block_batching.util import iter_threaded
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

from pipeline.engine import RayEngine, ray_engine, ray_nodes, ray_watch
from pipeline.engine.pool_watch import SETTLE_SECONDS, CapacityWatch, Limits, PoolWatch
from pipeline.engine.ray_nodes import (
    GROWTH,
    SPARE_CPUS,
    Room,
    TaskMemory,
    nodes_without_cpus,
    room_of,
    sharing_gpus,
    task_cpus,
    task_wants,
    wants,
    workers_held,
)
from pipeline.engine.ray_pool import READER, joined_readers, watched
from pipeline.engine.ray_watch import RayWarnings, reading_messages, watched_cluster
from pipeline.errors import TransientError, UsageError
from pipeline.events import Event, PoolChanged, PoolFilled, Warned
from pipeline.spec import Resources

LIMITS = Limits(stall=60, capacity=100)


def watch(
    most: int = 3, gets_on: Callable[[], bool] = lambda: False
) -> tuple[PoolWatch, list[Event]]:
    events: list[Event] = []
    return PoolWatch(most, "1 CPU", LIMITS, gets_on, events.append, 0.0), events


STEPS = st.lists(
    st.tuples(st.floats(0.1, 30), st.integers(0, 3), st.booleans()), min_size=1, max_size=40
)


@given(STEPS)
def test_a_pool_ends_by_the_time_with_workers_or_without_since_the_last_shard(
    steps: list[tuple[float, int, bool]],
) -> None:
    """Each step lasts a while, after which so many workers run and perhaps a shard has ended."""
    pool, _ = watch()
    now, before = 0.0, 0
    spent = {True: 0.0, False: 0.0}
    for seconds, workers, shard in steps:
        now += seconds
        spent[before > 0] += seconds
        before = workers
        stalled, starved = spent[True] >= LIMITS.stall, spent[False] >= LIMITS.capacity
        if stalled or starved:
            with pytest.raises(
                TransientError, match="no shard ended" if stalled else "no worker ran"
            ):
                pool.look(now, workers)
            return
        pool.look(now, workers)
        if shard:
            pool.ended()
            spent = {True: 0.0, False: 0.0}


def test_a_pool_goes_on_while_a_worker_gets_on_with_a_shard_and_ends_when_none_does() -> None:
    """A shard of a slow network may take longer than the limit. It is looked at once a limit."""
    answers = [True, True, False]
    pool, _ = watch(gets_on=lambda: answers.pop(0))
    pool.look(0, workers=1)
    for now in range(1, 3 * LIMITS.stall):
        pool.look(now, workers=1)
    assert len(answers) == 1
    with pytest.raises(TransientError, match="no shard ended for 60 s, and no worker gets on"):
        pool.look(3 * LIMITS.stall, workers=1)


def test_a_stall_is_no_matter_of_the_time_without_workers() -> None:
    pool, _ = watch()
    pool.look(LIMITS.stall + 1, workers=0)
    pool.look(LIMITS.stall + 2, workers=1)
    pool.look(LIMITS.stall + 3, workers=0)
    with pytest.raises(TransientError, match=r"no worker ran for 159 s; one takes 1 CPU\. .*rerun"):
        pool.look(LIMITS.stall + LIMITS.capacity, workers=0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("looks", [0, 5])
def test_the_clock_stops_while_the_job_has_a_shard_and_then_goes_on(
    workers: int, looks: int
) -> None:
    """Ray's thread may look meanwhile, or not."""
    pool, _ = watch()
    limit = LIMITS.stall if workers else LIMITS.capacity
    pool.look(0, workers)
    pool.ended()
    with pool.paused():
        for at in range(1, looks + 1):
            pool.look(at * limit, workers)
    now = (looks + 1) * limit
    pool.look(now, workers)
    pool.look(now + limit - 1, workers)
    with pytest.raises(TransientError):
        pool.look(now + limit, workers)


def test_a_number_of_workers_is_told_once_when_it_has_lasted() -> None:
    pool, events = watch()
    for now, workers in ((1, 1), (2, 2), (5, 3), (5 + SETTLE_SECONDS, 3)):
        pool.look(now, workers)
    assert events == [PoolFilled(3)], "all run that may run"
    pool.look(18, 3)
    pool.look(20, 1)
    pool.look(20 + SETTLE_SECONDS / 2, 2)
    pool.look(20 + SETTLE_SECONDS, 2)
    assert events == [PoolFilled(3)], "it has changed too lately"
    events.clear()
    for later in (2, 3, 4):
        pool.look(20 + later * SETTLE_SECONDS, 2)
    assert events == [PoolChanged(2, 3, "1 CPU", LIMITS.capacity)]
    pool.ended()
    pool.look(80, 0)
    pool.look(80 + SETTLE_SECONDS, 0)
    assert events[1:] == [PoolChanged(0, 3, "1 CPU", LIMITS.capacity)]


def test_a_pool_without_any_worker_from_the_start_says_so() -> None:
    pool, events = watch()
    pool.look(SETTLE_SECONDS - 1, 0)
    assert events == []
    pool.look(SETTLE_SECONDS, 0)
    assert events == [PoolChanged(0, 3, "1 CPU", LIMITS.capacity)]


# Tasks


def test_tasks_that_wait_for_a_node_say_so_and_give_up_in_the_end() -> None:
    events: list[object] = []
    watch = CapacityWatch(60, events.append)
    for cpus in (4, 0, 0, 4, 0):
        watch.look(SETTLE_SECONDS / 2, cpus, "1 CPU")
    assert events == [PoolChanged(0, 1, "1 CPU", 60), PoolChanged(4, 4, "1 CPU", 60)]
    watch.look(SETTLE_SECONDS / 2, 0, "1 CPU")
    assert events[2:] == [PoolChanged(0, 1, "1 CPU", 60)]
    watch.look(49, 0, "1 CPU")
    with pytest.raises(TransientError, match="no node had 1 CPU for 60 s"):
        watch.look(1, 0, "1 CPU")
    assert len(events) == 3


# What Ray warns of


def node(name: str, alive: bool = True, reason: int = 0, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerAddress": f"address of {name}",
        "Alive": alive,
        "DeathReason": reason,
        "DeathReasonMessage": "its health check failed" if reason else "",
        "Resources": resources,
    }


def test_a_lost_node_is_told_once_and_one_that_was_stopped_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Event] = []
    warnings = RayWarnings(events.append)
    nodes = [node("a"), node("b"), node("c"), node("long gone", False, 2)]
    monkeypatch.setattr(ray_watch, "list_nodes", lambda: nodes)
    warnings.look()
    assert events == []
    nodes[:3] = [node("a", False, 2), node("b", False, 4), node("c", False, 1)]
    for _ in range(3):
        warnings.look()
    assert events == [
        Warned(
            "the node address of a was lost: its health check failed. Other workers count what its "
            "workers had under way"
        )
    ]
    nodes[:3] = [node("a", False, 2), node("d", False, 3), node("c", False, 1)]
    for _ in range(2):
        warnings.look()
    assert len(events) == 2, "one that came and went between two looks may have had a shard"
    assert "address of d" in str(events[1])


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_node_that_is_lost_at_the_end_of_a_pool_is_told(
    monkeypatch: pytest.MonkeyPatch, ends_well: bool
) -> None:
    """Where a pool ends by an error, Ray may not answer."""
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context = DataContext()
    nodes = [node("a")]
    events: list[Event] = []
    warnings = RayWarnings(events.append)
    monkeypatch.setattr(ray_watch, "list_nodes", lambda: nodes)
    warnings.look()
    with (
        contextlib.nullcontext() if ends_well else pytest.raises(ZeroDivisionError),
        watched("pool", watch()[0], warnings, context, lambda *_: None),
    ):
        nodes[0] = node("a", False, 2)
        if not ends_well:
            raise ZeroDivisionError
    assert ["address of a was lost" in str(event) for event in events] == [True] * ends_well


def test_threads_that_fetch_rows_end_before_ray_does() -> None:
    """One that ends after Ray would end this process, before any error is told."""
    before = threading.enumerate()

    def readers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread not in before]

    def slow(numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            time.sleep(0.3)
            yield number

    with joined_readers():
        rows = iter_threaded(itertools.count(), slow)
        assert next(rows) == 0
        rows.close()
        assert readers() == [READER], "what Ray Data calls such a thread"
    assert readers() == []


def test_spilling_is_told_once_and_only_what_was_spilled_since_the_job_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sum falls when a node is lost. A node that does not answer has told nothing."""
    events: list[Event] = []
    warnings = RayWarnings(events.append)
    answers = [7_000_000, 7_000_000, None, 2_000_000]
    monkeypatch.setattr(ray_watch, "list_nodes", lambda: [node("a", False), node("b")])
    monkeypatch.setattr(ray_watch, "spilled_bytes", lambda asked: answers.pop(0))
    warnings.look()
    while answers:
        warnings.look_at_stores()
    assert events == []
    asked = []

    def spilled(node: dict[str, Any]) -> int:
        asked.append(node["NodeID"])
        return 2_000_000 + 31_000_000 * len(asked)

    monkeypatch.setattr(ray_watch, "spilled_bytes", spilled)
    for _ in range(3):
        warnings.look_at_stores()
    (event,) = events
    assert isinstance(event, Warned)
    assert "stores ran full, and wrote 31 MB to disk" in event.message
    assert asked == ["b"] * 3
    monkeypatch.setattr(ray_watch, "list_nodes", lambda: [node("b", False)])
    warnings.look()
    warnings.look_at_stores()
    assert len(asked) == 3, "nobody can be asked"


def test_a_node_that_does_not_answer_has_spilled_nobody_knows_what() -> None:
    place = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": 9}
    assert ray_nodes.spilled_bytes(place) is None


def test_a_head_that_was_there_and_is_lost_is_told_once() -> None:
    events: list[Event] = []
    warnings = RayWarnings(events.append)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        for _ in range(2):
            warnings.look_for_head(address)
    assert events == []
    RayWarnings(events.append).look_for_head(address)
    assert events == [], "it never answered here"
    for _ in range(2):
        warnings.look_for_head(address)
    (event,) = events
    assert isinstance(event, Warned)
    assert f"the head of the Ray cluster at {address} does not answer" in event.message


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_cluster_is_watched_beside_the_job_and_its_stores_once_more_at_a_good_end(
    monkeypatch: pytest.MonkeyPatch, ends_well: bool
) -> None:
    """Each look finds that more was spilled, and the head is gone from the second look on."""
    events: list[Event] = []
    looks = {"head": 0, "stores": 0}

    def answers(address: str) -> bool:
        looks["head"] += 1
        return looks["head"] == 1

    def spilled(node: dict[str, Any]) -> int:
        looks["stores"] += 1
        return 5_000_000 * looks["stores"]

    monkeypatch.setattr(ray_watch, "HEAD_SECONDS", 0.01)
    monkeypatch.setattr(ray_watch, "list_nodes", lambda: [node("a")])
    monkeypatch.setattr(ray_watch, "head_address", lambda: "head:1")
    monkeypatch.setattr(ray_watch, "head_answers", answers)
    monkeypatch.setattr(ray_watch, "spilled_bytes", spilled)
    with (
        contextlib.nullcontext() if ends_well else pytest.raises(ZeroDivisionError),
        watched_cluster(RayWarnings(events.append)),
    ):
        while not events:
            time.sleep(0.01)
        if not ends_well:
            raise ZeroDivisionError
    told = [event.message for event in events if isinstance(event, Warned)]
    assert ["head:1 does not answer" in each for each in told] == [True, False][: 1 + ends_well]
    assert looks["stores"] == 1 + ends_well


def test_a_job_that_a_lost_head_ends_between_two_looks_tells_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Event] = []
    looked = threading.Event()

    def answers(address: str) -> bool:
        was_there, _ = not looked.is_set(), looked.set()
        return was_there

    monkeypatch.setattr(ray_watch, "list_nodes", list)
    monkeypatch.setattr(ray_watch, "head_address", lambda: "head:1")
    monkeypatch.setattr(ray_watch, "head_answers", answers)
    with (
        contextlib.suppress(ZeroDivisionError),
        watched_cluster(RayWarnings(events.append)),
    ):
        looked.wait(10)
        raise ZeroDivisionError
    (event,) = events
    assert isinstance(event, Warned)
    assert "head:1 does not answer" in event.message


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(
    ("error", "waits"), [(WorkerCrashedError(), False), (RayTaskError("f", "", KeyError()), True)]
)
def test_no_engine_waits_for_lost_workers_of_a_cluster_before_its_error_is_told(
    monkeypatch: pytest.MonkeyPatch, error: RayError, waits: bool, anew: bool
) -> None:
    """A node that dies may be this process's own, and Ray then ends it without a word."""
    ended: list[bool] = []

    def get(references: object) -> None:
        raise error

    remote = SimpleNamespace(remote=lambda item: item)
    remote.options = lambda **_: remote
    monkeypatch.setattr(ray_engine.ray, "remote", lambda **_: lambda function: remote)
    monkeypatch.setattr(ray_engine.ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(ray_engine.ray, "get", get)
    monkeypatch.setattr(ray_engine.ray, "shutdown", lambda **_: ended.append(True))
    monkeypatch.setattr(ray_engine, "head_address", lambda: "head:1")
    monkeypatch.setattr(ray_engine, "head_answers", lambda address: True)
    monkeypatch.setattr(RayEngine, "_for_tasks", lambda self: None)
    connected = SimpleNamespace(get_job_id=lambda: "1", get_node_id=lambda: "a")
    monkeypatch.setattr(ray_engine.ray, "get_runtime_context", lambda: connected)
    monkeypatch.setattr(ray_engine, "_left_behind", [])
    engine = RayEngine(Resources(workers=1), address="head:1")
    monkeypatch.setattr(engine, "_cpus", lambda: 1)
    engine._ours = True
    with pytest.raises((TransientError, KeyError)) as raised:
        list(engine.map(str, [1]))
    engine.__exit__(raised.type, raised.value, None)
    assert ended == [True] * waits
    # The next engine may be for another cluster.
    monkeypatch.setattr(ray_engine.ray, "is_initialized", lambda: True)
    other_ray = SimpleNamespace(get_job_id=lambda: "1", get_node_id=lambda: "b")
    if anew:  # the user has connected another Ray, whose first job has the same number
        monkeypatch.setattr(ray_engine.ray, "get_runtime_context", lambda: other_ray)
    for _ in range(2):
        ray_engine._end_what_was_left()
        assert ended == [True] * (waits or not anew)


@pytest.mark.parametrize("is_there", [True, False])
def test_no_engine_waits_for_a_lost_head_before_its_error_is_told(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(ray_engine, "head_address", lambda: "head:1")
    monkeypatch.setattr(ray_engine, "head_answers", lambda address: is_there)
    monkeypatch.setattr(ray_engine.ray, "shutdown", lambda **_: ended.append(True))
    connected = SimpleNamespace(get_job_id=lambda: "1", get_node_id=lambda: "a")
    monkeypatch.setattr(ray_engine.ray, "get_runtime_context", lambda: connected)
    monkeypatch.setattr(ray_engine, "_left_behind", [])
    engine = RayEngine(address="head:1")
    engine._ours = True
    engine.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert ended == [True] * is_there
    engine._ours = True
    engine.__exit__(None, None, None)
    assert len(ended) == 1 + is_there


def test_each_worker_that_died_is_told_once() -> None:
    events: list[Event] = []
    warnings = RayWarnings(events.append)
    for workers in ("", "process 1 on a", "process 1 on a; process 2 on a", "process 1 on b"):
        warnings.died(workers)
    told = [event.message for event in events if isinstance(event, Warned)]
    assert len(told) == len(events) == 3
    assert ["process 1 on a" in told[0], "process 2 on a" in told[1]] == [True, True]
    assert "process 1 on b" in told[2]


OUT_OF_MEMORY = (
    "1 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed due to "
    "other reasons at node (ID: 7f3a, IP: 10.0.0.7) over the last time period. To see more …"
)


def test_of_what_ray_prints_memory_is_told_once_a_node_and_the_rest_is_dropped() -> None:
    events: list[Event] = []
    warnings = RayWarnings(events.append)
    for message in (
        OUT_OF_MEMORY,
        "Raylet is terminated. Termination is unexpected.\n    [state-dump] 1",
        OUT_OF_MEMORY.replace("1 Workers", "2 Workers"),
        OUT_OF_MEMORY.replace("10.0.0.7", "10.0.0.8"),
    ):
        warnings.read(message)
    told = [event.message for event in events if isinstance(event, Warned)]
    assert len(told) == len(events) == 2
    assert "workers of 10.0.0.7, where memory ran out" in told[0]
    assert "workers of 10.0.0.8" in told[1]


def test_what_ray_prints_is_read_instead_and_only_so_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    read: list[str] = []
    message = {"lines": [OUT_OF_MEMORY], "pid": "raylet", "is_err": False}
    logged = message | {"ip": "10.0.0.7", "is_err": True}
    with reading_messages(read.append):
        ray_watch.worker.print_to_stdstream(message, ignore_prefix=False)
        ray_watch.worker.print_to_stdstream(logged, ignore_prefix=False)
        for pid in (813, "autoscaler"):
            ray_watch.worker.print_to_stdstream(logged | {"pid": pid}, ignore_prefix=False)
    assert read == [OUT_OF_MEMORY] * 2
    assert capsys.readouterr() == ("", "")
    ray_watch.worker.print_to_stdstream(message, ignore_prefix=False)
    assert "memory pressure" in capsys.readouterr().out
    assert len(read) == 2


# How many workers there is room for


def room(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, Any]],
    coming: list[tuple[dict[str, float], int]],
    *,
    local: bool = False,
    **asked: Any,
) -> Room:
    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: nodes)
    monkeypatch.setattr(ray_nodes, "_autoscaled", lambda: coming)
    return room_of(Resources(**asked), local)


HEAD, SMALL, LARGE = node("head", CPU=0), node("small", CPU=4), node("large", CPU=16, GPU=4)
EXACT = node("exact", CPU=4, GPU=1)


@pytest.mark.parametrize(
    ("nodes", "coming", "asked", "expected"),
    [
        ([HEAD, LARGE], [], {}, Room(4, 3, 3 * GROWTH)),
        ([HEAD, LARGE, SMALL], [], {}, Room(3, 6, 6 * GROWTH)),
        ([HEAD, LARGE], [], {"local": True}, Room(4, 3, 3)),
        ([HEAD, LARGE], [], {"workers": 2}, Room(4, 2, 2)),
        ([HEAD, LARGE], [], {"workers": 9}, Room(4, 3, 9)),
        ([HEAD, LARGE], [({"CPU": 16.0}, 10)], {}, Room(4, 3, 30)),
        ([HEAD], [({"CPU": 16.0}, 10), ({"CPU": 8.0}, 2)], {}, Room(4, 1, 32)),
        ([HEAD, LARGE, LARGE], [({"CPU": 16.0}, 1)], {}, Room(4, 6, 6)),
        ([HEAD, LARGE], [], {"gpus_per_worker": 0.5}, Room(1, 8, 8 * GROWTH)),
        ([HEAD, LARGE], [], {"gpus_per_worker": 1}, Room(3, 4, 4 * GROWTH)),
        ([HEAD, LARGE], [], {"gpus_per_worker": 1, "threads": 4}, Room(4, 3, 3 * GROWTH)),
        ([HEAD, LARGE], [], {"gpus_per_worker": 1, "workers": 2}, Room(4, 2, 2)),
        ([HEAD, LARGE], [], {"gpus_per_worker": 4}, Room(4, 1, GROWTH)),
        ([node("here", CPU=9, GPU=4)], [], {"gpus_per_worker": 1, "local": True}, Room(2, 4, 4)),
        ([node("few", CPU=4, GPU=4)], [], {"gpus_per_worker": 1}, Room(1, 3, 3 * GROWTH)),
        ([EXACT] * 5, [], {"gpus_per_worker": 1, "threads": 4}, Room(4, 5, 5 * GROWTH)),
        ([node("GPUs alone", GPU=4), LARGE], [], {"gpus_per_worker": 1}, Room(3, 4, 4 * GROWTH)),
        ([HEAD, SMALL], [({"CPU": 8.0, "GPU": 4.0}, 9)], {"gpus_per_worker": 1}, Room(1, 1, 36)),
        (
            [HEAD, LARGE],
            [({"CPU": 8.0, "GPU": 1.0}, 20)],
            {"gpus_per_worker": 1},
            Room(3, 4, 20),
        ),
        ([HEAD], [], {}, Room(1, 1, GROWTH)),
        ([HEAD, LARGE | {"Alive": False}], [], {"threads": 5}, Room(5, 1, GROWTH)),
    ],
)
def test_there_is_room_for_the_workers_of_nodes_that_are_there_and_of_those_to_come(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, Any]],
    coming: list[tuple[dict[str, float], int]],
    asked: dict[str, Any],
    expected: Room,
) -> None:
    assert replace(room(monkeypatch, nodes, coming, **asked), spare=0) == expected


SIZES = st.lists(st.integers(0, 32), min_size=1, max_size=4)


@given(
    present=SIZES,
    coming=SIZES,
    asked=st.none() | st.integers(1, 8),
    gpus=st.sampled_from([0, 0.5, 1]),
)
def test_nodes_that_more_workers_wait_for_hold_them_and_keep_a_cpu_for_tasks(
    present: list[int], coming: list[int], asked: int | None, gpus: float
) -> None:
    """A node that a worker fills exactly has none to keep, and holds that worker."""
    with pytest.MonkeyPatch.context() as patch:
        there = [node(str(number), CPU=cpus, GPU=4) for number, cpus in enumerate(present)]
        come = [({"CPU": float(cpus), "GPU": 4.0}, 2) for cpus in coming]
        found = room(patch, there, come, threads=asked, gpus_per_worker=gpus)
    threads = found.threads
    takes = threads + found.spare
    for cpus in (*present, *coming):
        fit = int(cpus // takes)
        on_gpus = int(4 / gpus) if gpus else fit
        assert (fit > 0) == (cpus >= threads)
        if asked is None and gpus and cpus > on_gpus:
            assert fit >= on_gpus, "some GPU would have no worker"
        if found.spare and fit:
            held = workers_held([{"CPU": cpus, "GPU": 4}], threads, gpus)
            assert held == min(fit, on_gpus)
            assert cpus - fit * takes >= ray_nodes.TASK_CPUS
    if threads not in (*present, *coming) and max(*present, *coming) > threads:
        assert found.spare == SPARE_CPUS


def test_a_worker_that_fills_the_nodes_that_nobody_knows_of_yet_fits_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert room(monkeypatch, [HEAD], [], threads=4).spare == 0
    assert room(monkeypatch, [HEAD, SMALL], [], workers=9, threads=3).spare == 0
    assert room(monkeypatch, [HEAD, SMALL], [], threads=3).spare == SPARE_CPUS


def test_what_a_worker_takes_is_put_into_words() -> None:
    assert wants(1, 0) == "1 CPU"
    assert wants(4, 1) == "4 CPUs and 1 GPU"
    assert wants(4, 0.5) == "4 CPUs and 0.5 GPUs"


# How the memory of nodes is shared among tasks

GB = 10**9


@pytest.mark.parametrize(
    ("held", "coming", "local", "reserved", "at_once"),
    [
        ([0, 24], [], False, 5, 4),
        ([9, 11], [], False, 5, 3),
        ([2, 3], [], False, 3, 1),
        ([2, 3], [{"memory": 16.0 * GB}], False, 5, 0),
        ([2, 3], [{"CPU": 8.0}], False, 5, 0),
        ([2, 3], [{"memory": 16.0 * GB}], True, 3, 1),
    ],
)
def test_tasks_reserve_memory_that_some_node_has(
    monkeypatch: pytest.MonkeyPatch,
    held: list[int],
    coming: list[dict[str, float]],
    local: bool,
    reserved: int,
    at_once: int,
) -> None:
    """A kind of node that does not say how much memory it has may have enough."""
    nodes = [node(str(number), memory=of * GB, CPU=2) for number, of in enumerate(held)]
    nodes.append(node("head", memory=99 * GB, CPU=0))  # takes no tasks
    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: nodes)
    monkeypatch.setattr(ray_nodes, "_autoscaled", lambda: [(kind, 3) for kind in coming])
    assert nodes_without_cpus() == ["head"]
    assert task_cpus(0, []) == 2 * len(held)
    assert task_cpus(3 * GB, ["0"]) == 2 * sum(of >= 3 for of in held[1:])
    assert task_wants(0) == "1 CPU"
    assert task_wants(6 * GB) == "1 CPU and 6.0 GB of memory"
    found = TaskMemory.of(5 * GB, local)
    assert found == TaskMemory(5 * GB, reserved * GB, at_once)
    assert (found.words(at_once) == "") == (reserved == 5)
    assert "a smaller `memory`" in found.words(at_once + 1)
    nodes.append(node("broken", memory=99 * GB, CPU=2))
    assert TaskMemory.of(5 * GB, local, ["broken"]) == found
    assert TaskMemory.of(5 * GB, local).reserved == 5 * GB


def test_tasks_take_no_memory_that_only_a_node_that_is_left_out_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = RayEngine(Resources(workers=1), address="head:1")
    monkeypatch.setattr(ray_nodes, "_autoscaled", list)
    nodes = [node("a", memory=12 * GB, CPU=2), node("b", memory=8 * GB, CPU=2)]
    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: nodes)
    assert engine._task_memory(16 * GB).reserved == 12 * GB
    monkeypatch.setattr(type(engine._broken), "left_out", ["a"])
    assert engine._task_memory(16 * GB).reserved == 8 * GB


def test_a_part_of_a_gpu_is_of_one_gpu() -> None:
    fit = {gpus: sharing_gpus({"GPU": 2.0}, gpus) for gpus in (0.1, 0.2, 0.5, 0.6, 1, 2, 3)}
    assert fit == {0.1: 20, 0.2: 10, 0.5: 4, 0.6: 2, 1: 2, 2: 1, 3: 0}
    assert sharing_gpus({"GPU": 8.0}, 0.7) == 8
    assert workers_held([{"CPU": 9.0, "GPU": 2.0}], 1, 0.6) == 2
    for wrong in (1.5, 0.00001, 0.33333):
        with pytest.raises(UsageError, match=f"gpus_per_worker is {wrong:g}; Ray gives a worker"):
            Resources(gpus_per_worker=wrong)
    Resources(gpus_per_worker=0.0001)


def test_as_many_workers_fit_on_this_machine_as_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = [node("here", CPU=9)]
    for asked, threads, fit in ((None, 4, 2), (2, 4, 2), (3, 2, 3), (8, 1, 8), (20, 1, 8)):
        found = room(monkeypatch, here, [], local=True, workers=asked)
        assert (found.threads, found.now) == (threads, fit)
    assert room(monkeypatch, here, [], workers=3).threads == 4  # other nodes may come
