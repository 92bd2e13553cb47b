"""Tests which nodes are left out because their devices fail, or start no worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.exceptions import ActorDiedError, RayError, RayTaskError, WorkerCrashedError

from pipeline.counting import ShardReceipt
from pipeline.counting.faults import is_of_device
from pipeline.engine import RayEngine, ray_engine, ray_nodes, ray_watch
from pipeline.engine.broken_nodes import MOST_ERRORS, MOST_IDLE_NODES, BrokenNodes
from pipeline.engine.pool_watch import Limits, PoolWatch
from pipeline.engine.ray_nodes import Room, able_nodes, node_of_actor, without
from pipeline.engine.ray_pool import PoolCallback, watched
from pipeline.engine.ray_watch import RayWarnings
from pipeline.engine.shard_actor import row_of
from pipeline.errors import UnexpectedError, known_error
from pipeline.events import Event, Said, Warned, ignore
from pipeline.spec import Resources

STORIES = st.lists(
    st.tuples(st.sampled_from("abc"), st.booleans(), st.sets(st.sampled_from("abc"))), max_size=60
)


@given(STORIES)
def test_a_node_is_left_out_by_errors_in_a_row_while_another_that_counted_lives(
    story: list[tuple[str, bool, set[str]]],
) -> None:
    """Each step is a shard of a node, whether it was counted, and which nodes live."""
    errors = BrokenNodes()
    out: list[str] = []
    for at, (node, good, alive) in enumerate(story):
        if good:
            errors.counted(node)
            continue
        own = [ok for who, ok, _ in story[: at + 1] if who == node]
        in_a_row = len(own) >= MOST_ERRORS and not any(own[-MOST_ERRORS:])
        counted = {who for who, ok, _ in story[:at] if ok and who != node and who not in out}
        expected = in_a_row and bool(counted & alive) and node not in out
        assert errors.failed(node, alive) == expected
        out += [node] if expected else []
        assert errors.left_out == tuple(out)


def test_an_error_that_every_node_meets_leaves_out_none() -> None:
    errors = BrokenNodes()
    assert not any(errors.failed(node, {"a", "b"}) for node in "ab" * 10)
    assert errors.left_out == ()


def test_a_node_that_starts_no_worker_is_left_out_if_another_may_start_one() -> None:
    errors = BrokenNodes()
    assert not errors.could_not_start("a", {"a"}, 0, 1)
    assert errors.left_out == ()
    assert errors.could_not_start("a", {"a", "b"}, 0, 1)
    assert not errors.could_not_start("b", {"a", "b"}, 0, 1)
    assert errors.could_not_start("a", {"a"}, 0, 1), "a worker that had waited for a node got it"
    assert errors.left_out == ("a",)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=20))
def test_a_node_is_left_to_the_next_pool_wherever_workers_could_not_start(
    starts: list[tuple[str, int]],
) -> None:
    """A later pool gets none of those that are left out, and would wait for an hour."""
    errors = BrokenNodes()
    for node, running in starts:
        errors.could_not_start(node, {"a", "b", "c"}, running, 1)
        assert set(errors.left_out) < {"a", "b", "c"}


def test_nodes_that_start_no_worker_between_shards_that_are_counted_prove_no_common_fault() -> None:
    errors = BrokenNodes()
    for at in range(3 * MOST_IDLE_NODES):
        errors.counted("sound")
        assert errors.could_not_start(f"{at}", {"sound"}, 0, 1)


def test_nodes_whose_devices_failed_are_no_others_that_may_start_a_worker() -> None:
    errors = BrokenNodes()
    errors.counted("b")
    assert [errors.failed("a", {"a", "b"}) for _ in range(MOST_ERRORS)][-1]
    assert not errors.could_not_start("b", {"a", "b"}, 0, 1)


@pytest.mark.parametrize("at_once", [1, MOST_IDLE_NODES, MOST_IDLE_NODES + 5])
def test_where_one_node_after_the_other_starts_no_worker_the_fault_is_not_theirs(
    at_once: int,
) -> None:
    """A cluster that grows always has a node more. Workers that run elsewhere prove the fault."""
    most = max(MOST_IDLE_NODES, at_once)
    errors = BrokenNodes()
    told = [errors.could_not_start(f"{at}", {f"{at}", "new"}, 0, at_once) for at in range(most)]
    assert told == [True] * (most - 1) + [False]
    errors = BrokenNodes()
    assert all(errors.could_not_start(f"{at}", {"new"}, 1, at_once) for at in range(3 * most))
    again = [errors.could_not_start(f"old {at}", {"new"}, 0, at_once) for at in range(most)]
    assert again == [True] * (most - 2) + [False] * 2, "no worker runs any more"
    errors = BrokenNodes()
    for at in range(2 * most):  # the same node, on which workers start that had waited
        assert errors.could_not_start(f"{at % (most - 1)}", {"new"}, 0, at_once)


def unstarted(actor: str = "a1") -> ActorDiedError:
    cause = RayTaskError("__init__", "\x1b[36mray::Pool\x1b[39m\nValueError: bad\n", None)
    cause._actor_id = actor
    return ActorDiedError(cause)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> tuple[RayEngine, list[Event]]:
    """Returns an engine on a cluster of three nodes, of which one is too small for a worker."""
    size = {"a": 2, "b": 2, "c": 1}
    nodes = [
        {"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": True}
        | {"Resources": {"CPU": cpus}}
        for name, cpus in size.items()
    ]
    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: nodes)
    table = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}
    monkeypatch.setattr(
        ray_nodes.state,
        "actor_table",
        lambda actor: {"Address": {"NodeID": table[actor]}} if actor in table else {},
    )
    events: list[Event] = []
    return RayEngine(Resources(), progress=events.append), events


def test_the_warning_names_the_node_that_starts_no_worker_and_the_error_once(
    placed: tuple[RayEngine, list[Event]],
) -> None:
    engine, events = placed
    for actor in ("a1", "a2"):
        assert engine._place(unstarted(actor), 0, cpus=2, at_once=2) == without(["a"])
    error = unstarted("b1")
    with pytest.raises(ActorDiedError) as raised:
        engine._place(error, 0, cpus=2, at_once=2)  # node c is too small
    assert raised.value is error
    assert events == [
        Warned(
            "a worker could not start on node 10.0.0.a, which gets no more workers. The others go "
            "on. The error: ValueError: bad. Every machine of the cluster needs the same "
            "vdna-pipeline, and the packages of your own networks and decoders"
        )
    ]


@pytest.mark.parametrize(
    "error", [unstarted("x"), WorkerCrashedError(), ActorDiedError()], ids=["x", "crash", "lost"]
)
def test_an_error_without_a_node_ends_the_pool(
    placed: tuple[RayEngine, list[Event]], error: RayError
) -> None:
    engine, events = placed
    with pytest.raises(type(error)) as raised:
        engine._place(error, 0, cpus=1, at_once=2)
    assert raised.value is error
    assert (engine._broken.left_out, events) == ((), [])


def test_the_node_of_an_actor_is_asked_of_ray(placed: tuple[RayEngine, list[Event]]) -> None:
    assert node_of_actor("a1") == "a"
    assert node_of_actor("nobody") is None
    assert node_of_actor(None) is None


def test_a_node_is_large_enough_for_a_worker_by_its_cpus_and_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [
        {"NodeID": name, "Alive": alive, "Resources": resources}
        for name, alive, resources in (
            ("a", True, {"CPU": 2.0, "GPU": 1.0}),
            ("b", False, {"CPU": 2.0, "GPU": 1.0}),
            ("c", True, {"CPU": 2.0}),
            ("head", True, {}),
        )
    ]
    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: nodes)
    assert able_nodes(2, 0) == {"a", "c"}
    assert able_nodes(1, 1) == {"a"}
    assert able_nodes(2.0004, 0) == set()


def test_a_pool_that_is_watched_replaces_a_worker_where_it_may_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray Data itself would end the pool. What it calls is its own, and may change."""
    assert callable(ActorPoolMapOperator._on_actor_init_death)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context = DataContext()
    pool: Any = object.__new__(ActorPoolMapOperator)
    pool._ray_remote_args = {"num_cpus": 2}
    pool._actor_pool = SimpleNamespace(
        num_running_actors=lambda: 3, num_restarting_actors=lambda: 1
    )
    executor: Any = SimpleNamespace(
        _cluster_autoscaler=None, _data_context=context, _topology=[pool, object()]
    )
    asked: list[tuple[RayError, int]] = []

    def place(error: RayError, running: int) -> dict[str, str]:
        asked.append((error, running))
        if len(asked) > 1:
            raise error
        return {"label": "here"}

    monkeypatch.setattr(ray_watch, "list_nodes", list)
    watch = PoolWatch(1, "1 CPU", Limits(1, 1), lambda: True, ignore, 0.0)
    error = unstarted()
    with watched("pool", watch, RayWarnings(ignore), context, place):
        PoolCallback().before_execution_starts(executor)
        pool._on_actor_init_death(error)
        assert asked == [(error, 2)]
        assert pool._ray_remote_args == {"num_cpus": 2, "label_selector": {"label": "here"}}
        with pytest.raises(ActorDiedError):
            pool._on_actor_init_death(error)


@pytest.mark.parametrize(
    "text",
    [
        "unexpected RuntimeError: CUDA error: an illegal memory access was encountered",
        "unexpected AcceleratorError: unspecified launch failure",
        "torch.AcceleratorError: uncorrectable ECC error encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "Assertion `index < size` failed: device-side assert triggered",
        "HIP error: invalid device function",
    ],
)
def test_the_errors_of_a_device_name_its_software(text: str) -> None:
    assert is_of_device(text)


def test_a_bug_in_a_decoder_is_no_error_of_a_device_whatever_is_on_the_stack() -> None:
    def decode() -> None:
        {torch.cuda.CUDAGraph: 1}["SHIP"]  # type: ignore[index]  # the bug

    with pytest.raises(KeyError) as caught:
        decode()
    error = known_error(caught.value)
    assert isinstance(error, UnexpectedError)
    assert "torch.cuda.CUDAGraph" in error.details
    assert not is_of_device(f"{error}\n{error.details}")


def test_a_selector_names_the_nodes_that_are_left_out() -> None:
    assert without(()) is None
    assert without(("a", "b")) == {"ray.io/node-id": "!in(a,b)"}


def test_what_a_worker_tells_is_told_though_the_job_takes_no_other_receipt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job ends a run at a receipt, or Python ends the generator."""
    receipt = ShardReceipt("m", 0, error="CUDA error: launch failure", died="process 7 of a")
    row = {name: value[0] for name, value in row_of(receipt).items()}
    row |= {"node": "a", "device_failed": True, "notices": '["it decodes slowly"]', "requests": 0}
    events: list[Event] = []
    engine = RayEngine(progress=events.append)
    monkeypatch.setattr(engine, "_pool", lambda work, room: (row for _ in work))
    monkeypatch.setattr(ray_engine, "alive_nodes", lambda: {"a", "b"})
    monkeypatch.setattr(ray_nodes, "list_nodes", list)
    engine._broken.counted("b")
    for _ in range(MOST_ERRORS - 1):
        engine._broken.failed("a", {"a", "b"})
    job: Any = SimpleNamespace(manifest_uri="m")
    receipts = engine.run_shards([(job, 0)])
    assert next(receipts) == receipt
    told = [event.message for event in events if isinstance(event, Warned)]
    for words in ("process 7 of a", "it decodes slowly", "launch failure"):
        assert [words in message for message in told].count(True) == 1, (words, told)


@pytest.mark.parametrize(("shards", "pools"), [(9, 2), (4, 1)])
def test_a_pool_makes_way_for_a_larger_one_if_that_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, shards: int, pools: int
) -> None:
    """Each shard has one receipt, whichever pool counts it."""
    events: list[Event] = []
    engine = RayEngine(progress=events.append)
    rooms: list[Room] = []

    def run_pool(work: Sequence[tuple[Any, int]], room: Room) -> Iterator[dict[str, Any]]:
        rooms.append(room)
        for _, index in work:
            receipt = ShardReceipt("m", index, images=3)
            row = {name: value[0] for name, value in row_of(receipt).items()}
            yield row | {"node": "a", "device_failed": False, "notices": "[]", "requests": 0}

    monkeypatch.setattr(engine, "_local", False)
    monkeypatch.setattr(engine, "_pool", run_pool)
    monkeypatch.setattr(engine, "_room", lambda: Room(4, 2, 8) if rooms else Room(1, 1, 4))
    monkeypatch.setattr(ray_engine, "ROOM_LOOK_SECONDS", 0.0)
    job: Any = SimpleNamespace(manifest_uri="m")
    receipts = list(engine.run_shards([(job, index) for index in range(shards)]))
    assert sorted(receipt.index for receipt in receipts) == list(range(shards))
    # Workers of the first pool may have stored what it had not told of.
    assert [receipt.had_before for receipt in receipts] == [False] + [pools > 1] * (shards - 1)
    assert rooms == [Room(1, 1, 4), Room(4, 2, 8)][:pools]
    said = [event.message for event in events if isinstance(event, Said)]
    assert len(said) == pools - 1
