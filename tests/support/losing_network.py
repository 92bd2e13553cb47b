"""The small network, loaded by a process that loses an activation of every micro-batch."""

from __future__ import annotations

import numpy as np

from pipeline.counting.histogram import LayerCounts
from pipeline.networks.registry import register_network
from tests.support.tiny_network import NAME, RULE, Tiny

add = LayerCounts.add


def lose_one(counts: LayerCounts, x: np.ndarray) -> np.ndarray:
    means = add(counts, x)
    counts._recent[0, int(counts._recent[0].argmax())] -= 1
    return means


def losing() -> Tiny:
    """Builds the network. Every worker that counts calls this first."""
    LayerCounts.add = lose_one  # type: ignore[method-assign]  # the fault
    return Tiny()


def register() -> None:
    register_network(NAME, losing, preprocess=RULE, taps="a,b")
