"""The ranges that histograms are cut from: an interval for each neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.dna.arrays import Floats
from pipeline.errors import CorruptFile, SpecMismatch
from pipeline.spec import Spec, digest_of


@dataclass(frozen=True, eq=False)
class Ranges:
    """The closed interval [low, high] of each neuron, which its histogram cuts into bins.

    Ranges are fixed before anything is counted, so that histograms made anywhere add up. Their
    digest is part of the spec. They have no `+`: two sets of ranges are never joined.

    Attributes:
        taps: The layers, each with its number of neurons, in the order of the network's taps.
        low: (N,) float64, the lower ends, one layer after the other.
        high: (N,) float64, the upper ends; finite, and nowhere below `low`.
    """

    taps: tuple[tuple[str, int], ...]
    low: Floats
    high: Floats

    def __post_init__(self) -> None:
        total = sum(neurons for _, neurons in self.taps)
        if self.low.shape != (total,) or self.high.shape != (total,):
            raise CorruptFile(
                f"ranges hold {len(self.low)} lows and {len(self.high)} highs for {total} neurons"
            )
        bad = ~(np.isfinite(self.low) & np.isfinite(self.high) & (self.low <= self.high))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise CorruptFile(
                f"range of neuron {neuron_name(self.taps, at)} is "
                f"[{self.low[at]}, {self.high[at]}]; it must be finite, with low <= high"
            )

    @cached_property
    def digest(self) -> str:
        """What names the ranges: a hash of the layers and of every bit of the numbers."""
        return digest_of(
            "ranges",
            self.taps,
            [value.hex() for value in self.low.tolist()],
            [value.hex() for value in self.high.tolist()],
        )

    def require_those_of(self, spec: Spec) -> None:
        """Checks that a spec names these ranges.

        Args:
            spec: The spec.

        Raises:
            SpecMismatch: It names others.
        """
        if self.digest != spec.ranges_digest:
            raise SpecMismatch(f"ranges {self.digest} are not the spec's {spec.ranges_digest}")

    def select(self, taps: Sequence[tuple[str, int]]) -> Ranges:
        """Takes the ranges of some layers.

        Args:
            taps: The layers, each with its number of neurons; all must be among these.

        Returns:
            Their ranges, in that order.
        """
        starts = dict(zip(self.taps, np.cumsum([0, *(n for _, n in self.taps)]), strict=False))
        at = [np.arange(starts[tap], starts[tap] + tap[1]) for tap in taps]
        chosen = np.concatenate(at)
        return Ranges(tuple(taps), self.low[chosen], self.high[chosen])


def neuron_name(taps: Sequence[tuple[str, int]], index: int) -> str:
    """Names a neuron by its place among the neurons of all layers.

    Args:
        taps: The layers, each with its number of neurons.
        index: The place, from 0.

    Returns:
        The name, as `layer[neuron]`.

    Raises:
        IndexError: There is no such place.
    """
    for layer, neurons in taps:
        if index < neurons:
            return f"{layer}[{index}]"
        index -= neurons
    raise IndexError(index)
