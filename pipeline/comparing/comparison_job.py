"""Says what is computed of every pair of a comparison, and what that takes.

>>> job = Job(root, spec, spec.layers, whole=True)                          # doctest: +SKIP
>>> job.side                                            # DNAs on a side of a tile  # doctest: +SKIP
200
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.comparing.compare_options import MemoryLimit
from pipeline.comparing.emd_kernel import width_of
from pipeline.comparing.fold_differences import TURNS
from pipeline.comparing.fold_points import points_of, step_for
from pipeline.comparing.fold_statistics import METHOD, PAIR_ESTIMATES
from pipeline.comparing.intervals import CHANGES, DRAWS
from pipeline.comparing.noise_kernel import NoiseCurves
from pipeline.dna import FileKind, Floats, Lens
from pipeline.spec import FOLDS, Spec, available_cpus

TILE = FileKind("tile")

TILE_WORK = 4 * 10**12
"""The most values that a tile compares. One tile is a few minutes' work of a core, and a killed
process loses no more than that."""

NOISE_WORK = 12
"""The error bars of a pair take about as long as so many comparisons of its curves."""

OVER = 1.25
"""A tile takes up to so many times the memory that it may use."""

PROCESS_BYTES = 400 * 2**20
"""What a worker's process takes by its libraries alone."""


@dataclass(frozen=True)
class Job:
    """What is computed of every pair, and with what.

    Only the fields up to `error_bars` decide numbers.

    Attributes:
        root: Root of the catalogue.
        spec: Spec of the DNAs.
        layers: Layers that are compared.
        whole: Whether these are all layers; then their mean makes another plane.
        fd: Whether the Fréchet distance of layers is computed.
        lens: Weighs the neurons.
        error_bars: Whether estimates from folds are computed.
        memory: Bytes that a process may hold of DNAs; it takes at least what three DNAs need.
        threads: Threads of a process; None for all cores.
        device: Where EMDs are computed: `cpu`, or a CUDA device.
    """

    root: str
    spec: Spec
    layers: tuple[str, ...]
    whole: bool
    fd: bool = False
    lens: Lens | None = None
    error_bars: bool = True
    memory: int = MemoryLimit().bytes
    threads: int | None = None
    device: str = "cpu"

    @cached_property
    def key(self) -> tuple[object, ...]:
        """All that decides what is computed of a pair."""
        lens = self.lens.digest if self.lens else ""
        return (TILE.format, self.spec.digest, self.layers, self.whole, self.fd, lens, self.method)

    @property
    def method(self) -> str:
        """Version of the estimates; empty without error bars."""
        return METHOD if self.error_bars else ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what is computed of a pair."""
        return ("emd", "nfd", "fd", *(PAIR_ESTIMATES if self.error_bars else ()))

    @property
    def planes(self) -> int:
        """Number of planes: the layers, and their mean if they are all layers."""
        return len(self.layers) + self.whole

    def weights(self, layer: str) -> Floats:
        """Finds the weights of a layer's neurons.

        Args:
            layer: Name of the layer.

        Returns:
            (C,) weights; ones without a lens.
        """
        if self.lens is None:
            return np.ones(self.spec.tap(layer).neurons)
        return self.lens.weights_of(layer)

    def step(self, layer: str) -> int:
        """Chooses the bins between points of a layer's curves; see `fold_points.step_for`.

        Args:
            layer: Name of the layer.

        Returns:
            The number of bins.
        """
        weights = self.weights(layer)
        squares = float((weights**2).sum())
        alike = float(weights.sum()) ** 2 / squares if squares else 0.0
        return step_for(self.spec.bins, alike)

    @property
    def values(self) -> int:
        """Number of values that are compared for a pair."""
        neurons = sum(int(np.count_nonzero(self.weights(layer))) for layer in self.layers)
        return max(1, neurons) * self.spec.bins * (1 + NOISE_WORK if self.error_bars else 1)

    @property
    def side(self) -> int:
        """Number of DNAs on a side of a tile.

        Results then take a quarter of the memory: the sums of one layer and of all layers, as much
        again while they are computed, and what is estimated from them. The DNAs need not be in
        memory together; see `Tile.steps`.
        """
        barred = (TURNS + 4) * FOLDS + DRAWS * len(CHANGES)
        held = 4 * (barred if self.error_bars else 4) + self.planes * len(self.columns)
        return max(1, int(min(TILE_WORK / self.values, self.memory / 4 / (8 * held)) ** 0.5))

    def held(self, layer: str) -> int:
        """Computes how many DNAs of a layer are held at a time.

        Args:
            layer: Name of the layer.

        Returns:
            The number of DNAs whose curves take half of the memory.
        """
        return self.memory // (2 * self.layer_bytes(layer))

    def layer_bytes(self, layer: str) -> int:
        """Computes what the curves of a layer of one DNA take.

        Args:
            layer: Name of the layer.

        Returns:
            The number of bytes.
        """
        bins, neurons = self.spec.bins, self.spec.tap(layer).neurons
        each = width_of(bins) * 4
        if self.error_bars:
            points = points_of(bins, self.step(layer))
            each += NoiseCurves.nbytes_of(points) + points * 4 * FOLDS + 8 * FOLDS
        each += 8 * neurons if self.fd else 0  # the root of its covariance
        return neurons * each

    def loaders(self, layer: str) -> int:
        """Computes how many DNAs of a layer are read at a time.

        Args:
            layer: Name of the layer.

        Returns:
            The number of DNAs that a quarter of the memory takes, or one.
        """
        most = max(4, available_cpus()) if self.threads is None else self.threads
        return max(1, min(most, self.memory // 4 // self._loading(layer)))

    def _loading(self, layer: str) -> int:
        """Computes the bytes that the reading of one DNA's layer takes."""
        neurons = self.spec.tap(layer).neurons
        counts = neurons * self.spec.bins * 8 * 2  # the reader holds as much again
        each = counts * (1 + FOLDS if self.error_bars else 1)
        each += 4 * 8 * neurons**2 if self.fd else 0  # a covariance, its eigenvectors and room
        return each

    @property
    def task_bytes(self) -> int:
        """Bytes that a process takes which computes a tile: those it may use, and some more."""
        return int(OVER * self.memory) + PROCESS_BYTES

    @property
    def reader_bytes(self) -> int:
        """Bytes that a process takes which reads the layers of one DNA, one after the other."""
        return max(map(self._loading, self.layers)) + PROCESS_BYTES
