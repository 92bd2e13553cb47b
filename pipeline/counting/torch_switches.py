"""Sets the switches of torch that change how float32 is rounded, as counting needs them.

>>> with exact_switches():
...     torch.backends.cuda.matmul.fp32_precision
'ieee'
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def set_exact_switches() -> None:
    """Has torch compute products of float32 in float32, by kernels that repeat bit for bit."""
    import torch

    for each in _products():
        each.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


@contextmanager
def exact_switches() -> Iterator[None]:
    """Sets torch's switches as counting needs them, and afterwards as they were.

    Training goes on with TF32, quick kernels and as many threads as it had.

    Yields:
        Nothing.
    """
    import torch

    cudnn, products = torch.backends.cudnn, _products()
    precisions = [each.fp32_precision for each in products]
    kernels = cudnn.benchmark, cudnn.deterministic
    threads = torch.get_num_threads()
    set_exact_switches()
    try:
        yield
    finally:
        for each, precision in zip(products, precisions, strict=True):
            each.fp32_precision = precision
        cudnn.benchmark, cudnn.deterministic = kernels
        torch.set_num_threads(threads)


def _products() -> list[Any]:
    """Returns what has a precision of its own: each kind of product, of each library.

    The older `allow_tf32` is not used: torch raises if both ways were used in one process.
    """
    import torch

    libraries: Any = torch.backends  # the types of torch lack some of these
    on_cpu = libraries.mkldnn
    return [
        *(libraries.cuda.matmul, libraries.cudnn.conv, libraries.cudnn.rnn),
        *(on_cpu.matmul, on_cpu.conv, on_cpu.rnn),
    ]
