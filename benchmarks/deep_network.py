"""A network of many layers with few neurons, for benchmarks of what grows with the layers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.dna import Ranges
from pipeline.networks import describe, encode_ranges
from pipeline.networks.registry import register_network
from pipeline.spec import Preprocess

LAYERS = "BENCHMARK_LAYERS"
"""The variable that tells the network, which is built without arguments, how deep it is."""


class Deep(torch.nn.Module):
    """A network of as many layers as `LAYERS` says, of three neurons each."""

    def __init__(self) -> None:
        super().__init__()
        depth = int(os.environ[LAYERS])
        self.layers = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(depth)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels)  # type: ignore[no-any-return]  # torch's


def register() -> None:
    """Makes the network known in this process."""
    half = (0.5, 0.5, 0.5)
    register_network("deep", Deep, preprocess=Preprocess(8, 8, half, half), taps="layers.*")


def write_network(folder: Path) -> dict[str, Any]:
    """Writes the network's weights and ranges; returns the options of a build with it."""
    register()
    weights, limits = folder / "deep.pt", folder / "deep.ranges.parquet"
    torch.manual_seed(1)
    torch.save(Deep().state_dict(), weights)
    network = describe("deep", str(weights))
    shape = tuple((tap.name, tap.neurons) for tap in network.taps)
    ends = np.ones(sum(neurons for _, neurons in shape))
    limits.write_bytes(encode_ranges(Ranges(shape, -ends, ends), network, origin="benchmark"))
    return {"extractor": "deep", "bins": 50, "weights": str(weights), "ranges": str(limits)}
