"""Keeps the network of the last DNA that was made in this process loaded, for the next one.

    >>> with lent_extractor(network, "fp32", "cpu", "openvino", 2) as extractor:   # doctest: +SKIP
    ...     extractor.observe(pixels, visit)

Loading takes a third of a second for the embedded network, and compares OpenVINO with torch anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.counting.extractor import Extractor
from pipeline.networks import Network
from pipeline.spec import Backend, Precision

KEPT_BYTES = 400 * 2**20
"""The largest weights that are kept: those of a ViT-B in float32. They stay in memory."""

_kept: dict[tuple[object, ...], Extractor] = {}
_LOCK = threading.Lock()


@contextmanager
def lent_extractor(
    network: Network,
    precision: Precision,
    device: str,
    backend: Backend,
    threads: int,
    micro_batch: int | None = None,
    graphs: bool = True,
) -> Iterator[Extractor]:
    """Lends an extractor to one borrower at a time: the one that is kept, if it is the same.

    One is kept. Never that of a GPU, whose memory others may need; nor one of a network that was
    registered, as its code may change while the process runs; nor one that saw an error. A process
    that was forked has none of its parent's.

    Args:
        network: The network.
        precision: The numbers that it computes with.
        device: The kind of device, `cpu` or `cuda`.
        backend: What runs the network.
        threads: How many threads will observe at once.
        micro_batch: Images per forward pass; None for the device's own number.
        graphs: Whether a GPU records the forward pass.

    Yields:
        The extractor.

    Raises:
        VdnaError: What `Extractor` raises.
    """
    key = os.getpid(), network, precision, backend, threads, micro_batch
    with _LOCK:
        extractor = _kept.pop(key, None) if device == "cpu" else None
    if extractor is None:
        # A network is made with random weights at first. The borrower draws numbers of its own.
        with torch.random.fork_rng(devices=()):
            extractor = Extractor(
                network, precision, device, backend, threads, micro_batch=micro_batch, graphs=graphs
            )
    yield extractor
    if device == "cpu" and not network.built_by and extractor.weight_bytes <= KEPT_BYTES:
        with _LOCK:
            _kept.clear()
            _kept[key] = extractor
