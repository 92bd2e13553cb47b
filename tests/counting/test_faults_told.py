"""Tests that an error of a shard says what failed."""

from __future__ import annotations

import pytest

from pipeline.counting.extractor import Extractor
from pipeline.counting.faults import Fault, fault_of
from pipeline.errors import (
    ConservationError,
    CorruptFile,
    SourceError,
    StorageError,
    TransientError,
    UsageError,
    VdnaError,
    known_error,
)
from pipeline.networks import describe


@pytest.mark.parametrize(
    ("raised", "fault"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "device memory"),
        (MemoryError("cannot allocate 3 GiB"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (OSError(12, "Cannot allocate memory"), "memory"),
        (KeyError(3), "bug"),
        (ModuleNotFoundError("No module named 'fisheye'"), "setup"),
        (ImportError("libGL.so.1: cannot open shared object file"), "setup"),
        (SourceError("s3://b/CUDA.jpg has changed"), "source"),
        (TransientError("no answer after 8 tries"), "storage"),
        (StorageError("access denied"), "storage"),
        (ConservationError("3 and 4"), "counts"),
        (CorruptFile("torn"), "setup"),
        (UsageError("lite0 cannot be recorded as a CUDA graph: out of memory"), "setup"),
        (VdnaError("the decoding process cannot start: ImportError"), "setup"),
    ],
)
def test_an_error_tells_what_failed(raised: Exception, fault: Fault) -> None:
    assert fault_of(known_error(raised)) == fault


def test_a_machine_without_a_gpu_that_works_has_a_fault_of_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError) as caught:
        Extractor(describe("efficientnet_lite0"), device="cuda")
    assert fault_of(caught.value) == "device"
