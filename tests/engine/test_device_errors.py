"""Tests which nodes are left out because their devices fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.counting import ShardReceipt
from pipeline.counting.faults import is_of_device
from pipeline.engine import RayEngine, ray_engine, ray_nodes
from pipeline.engine.device_errors import MOST_ERRORS, DeviceErrors
from pipeline.engine.ray_nodes import without
from pipeline.engine.shard_actor import row_of
from pipeline.errors import UnexpectedError, known_error
from pipeline.events import Event, Warned

STORIES = st.lists(
    st.tuples(st.sampled_from("abc"), st.booleans(), st.sets(st.sampled_from("abc"))), max_size=60
)


@given(STORIES)
def test_a_node_is_left_out_by_errors_in_a_row_while_another_that_counted_lives(
    story: list[tuple[str, bool, set[str]]],
) -> None:
    """Each step is a shard of a node, whether it was counted, and which nodes live."""
    errors = DeviceErrors()
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
    errors = DeviceErrors()
    assert not any(errors.failed(node, {"a", "b"}) for node in "ab" * 10)
    assert errors.left_out == ()


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
    row |= {"node": "a", "device_failed": True, "notice": "it decodes slowly", "requests": 0}
    events: list[Event] = []
    engine = RayEngine(progress=events.append)
    monkeypatch.setattr(engine, "_pool", lambda work: (row for _ in work))
    monkeypatch.setattr(ray_engine, "alive_nodes", lambda: {"a", "b"})
    monkeypatch.setattr(ray_nodes, "list_nodes", list)
    engine._devices.counted("b")
    for _ in range(MOST_ERRORS - 1):
        engine._devices.failed("a", {"a", "b"})
    job: Any = SimpleNamespace(manifest_uri="m")
    receipts = engine.run_shards([(job, 0)])
    assert next(receipts) == receipt
    told = [event.message for event in events if isinstance(event, Warned)]
    for words in ("process 7 of a", "it decodes slowly", "launch failure"):
        assert [words in message for message in told].count(True) == 1, (words, told)
