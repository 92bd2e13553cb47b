"""Classifies the error of a shard: what has failed.

>>> fault_of(UnexpectedError("unexpected RuntimeError: CUDA error: launch failure"))
'device'
>>> fault_of(UnexpectedError("unexpected KeyError: 3"))
'bug'

A decoder that crashes is no error of a shard: the next receipt names the process that has died, and
an image whose decoder always crashes is a failure of the image.
"""

from __future__ import annotations

import re
from typing import Literal

from pipeline.errors import (
    ConservationError,
    SourceError,
    StorageError,
    UnexpectedError,
    VdnaError,
)

Fault = Literal[
    "device", "device memory", "memory", "source", "storage", "counts", "bug", "setup", "crash"
]
"""What failed: a GPU or its driver, its memory, that of the machine, the images (which have
changed), a store or a disk, the sums of the counts, code that nobody foresaw to fail, or what the
worker was given: a setting, a file, a package that it lacks. Or processes that took the shard have
crashed again and again."""

DEVICE_FAULTS = ("device", "device memory")
"""The faults that another device may not have."""

ENDS_PROCESSES = "the shard ends the processes that take it"
"""How the error begins of a shard that no other process takes."""

NO_GPU = "torch finds no GPU on this machine"
"""How the error begins of a worker that is to use a GPU, and has none or a broken driver."""

_OF_DEVICE = re.compile(
    r"\b(?:(?:CUDA|HIP|cuDNN|cuBLAS|cuFFT|NVML|AcceleratorError)\b|(?:CUDNN|CUBLAS|CUFFT)_)"
    r"|device-side assert"
)
"""What torch and its libraries write of errors of a device. Names such as `torch.cuda`
and `CUDAGraph` are none of these: the traceback of any error may hold them."""

_OF_MEMORY = re.compile(
    r"out of memory|memory is too small|\b(?:OutOf)?MemoryError\b|can(?:no|')t allocate memory",
    re.IGNORECASE,
)


_OF_IMPORT = re.compile(r"unexpected (?:ModuleNotFound|Import)Error\b")


def is_of_device(text: str) -> bool:
    """Tells from the text and the traceback of an error whether it is a device's own."""
    return _OF_DEVICE.search(text) is not None


def fault_of(error: VdnaError) -> Fault:
    """Tells of what kind an error is, from its class and what it says.

    Args:
        error: The error, as `known_error` returns it.

    Returns:
        The kind.
    """
    if isinstance(error, SourceError):
        return "source"
    if isinstance(error, StorageError):
        return "storage"
    if isinstance(error, ConservationError):
        return "counts"
    if not isinstance(error, UnexpectedError):
        return "device" if str(error).startswith(NO_GPU) else "setup"
    if str(error).startswith(ENDS_PROCESSES):
        return "crash"
    if _OF_IMPORT.match(str(error)):
        return "setup"
    full = _OF_MEMORY.search(str(error)) is not None
    if is_of_device(f"{error}\n{error.details}"):
        return "device memory" if full else "device"
    return "memory" if full else "bug"
