"""The small network, loaded by a process whose machine lacks a package that counting takes."""

from __future__ import annotations

import numpy as np

from pipeline.counting.histogram import LayerCounts
from pipeline.networks.registry import register_network
from tests.support.tiny_network import NAME, RULE, Tiny


def lacks_package(counts: LayerCounts, x: np.ndarray) -> np.ndarray:
    raise ModuleNotFoundError("No module named 'fisheye'")


def failing() -> Tiny:
    """Builds the network. Every worker that counts calls this first."""
    LayerCounts.add = lacks_package  # type: ignore[method-assign]  # the fault
    return Tiny()


def register() -> None:
    register_network(NAME, failing, preprocess=RULE, taps="a,b")
