"""Sets the switches of torch that change how float32 is rounded, as counting needs them.

>>> with exact_switches():
...     torch.backends.cuda.matmul.fp32_precision
'ieee'
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


def set_exact_switches() -> None:
    """Has torch compute products of float32 in float32, by kernels that repeat bit for bit."""
    import torch

    # The older switches first: they change the newer ones, and code that reads them raises if the
    # two do not agree.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for each in _products():
        each.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


@contextmanager
def exact_switches() -> Iterator[None]:
    """Sets torch's switches as counting needs them, and afterwards as they were.

    Training goes on with TF32, quick kernels and as many threads as it had. A precision that a
    product had from a switch for all products is its own afterwards.

    Yields:
        Nothing.
    """
    import torch

    cudnn, products = torch.backends.cudnn, _products()
    precisions = [each.fp32_precision for each in products]
    older: dict[str, Any] = {}
    with suppress(RuntimeError):  # it was set by the newer switches, and cannot be read
        older["matmul"] = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        older["cudnn"] = cudnn.allow_tf32
    kernels = cudnn.benchmark, cudnn.deterministic
    threads = torch.get_num_threads()
    set_exact_switches()
    try:
        yield
    finally:
        if "matmul" in older:
            torch.set_float32_matmul_precision(older["matmul"])
        if "cudnn" in older:
            cudnn.allow_tf32 = older["cudnn"]
        for each, precision in zip(products, precisions, strict=True):
            each.fp32_precision = precision
        cudnn.benchmark, cudnn.deterministic = kernels
        torch.set_num_threads(threads)


def _products() -> list[Any]:
    """Returns what has a precision of its own: each kind of product, of each library."""
    import torch

    libraries: Any = torch.backends  # the types of torch lack some of these
    on_cpu = libraries.mkldnn
    return [
        *(libraries.cuda.matmul, libraries.cudnn.conv, libraries.cudnn.rnn),
        *(on_cpu.matmul, on_cpu.conv, on_cpu.rnn),
    ]
