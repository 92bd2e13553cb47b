"""Computes the numbers of a tile, layer by layer. What is compared next is loaded meanwhile."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.comparing import layer_cache
from pipeline.comparing.comparison_job import Job
from pipeline.comparing.emd_kernel import distances
from pipeline.comparing.fold_statistics import FoldSums, estimates, fold_sums
from pipeline.comparing.gaussians import frechet, frechet_1d
from pipeline.comparing.layer_cache import LayerData, TileCache
from pipeline.comparing.tiles import Step, Tile
from pipeline.counting import keep_memory
from pipeline.dna import Floats

Block = dict[str, Floats]
"""Columns of a tile by name, each (planes, A, B) float64."""


def compute(tile: Tile, *, keeps: bool = False) -> Block:
    """Computes all numbers of a tile. What is compared next is loaded meanwhile.

    Args:
        tile: The tile.
        keeps: Whether the comparison writes to the catalogue: then damaged counts are removed.

    Returns:
        Its numbers.
    """
    job = tile.job
    keep_memory()
    cache = layer_cache.cache_here()
    cache.keep_only(tile)
    cache.keeps = keeps
    shape = len(tile.a), len(tile.b)
    block: Block = {name: np.full((job.planes, *shape), np.nan) for name in job.columns}
    whole = _TileLayer.zeros(tile) if job.whole else None
    steps = [step for layer in job.layers for step in tile.steps(layer)]
    part = _TileLayer.empty(tile)
    with ThreadPoolExecutor(1, "next-step") as ahead:
        waiting = None
        for step, following in itertools.zip_longest(steps, steps[1:]):
            a, b = waiting.result() if waiting else _load(cache, tile, step)
            waiting = None
            if following is not None and following.beside:
                waiting = ahead.submit(_load, cache, tile, following)
            part.fill(job, step, a, b, square=tile.square)
            del a, b
            if following is None or following.layer != step.layer:
                plane = job.layers.index(step.layer)
                part.write(block, plane, float(job.weights(step.layer).sum()), tile.square)
                if whole is not None:
                    whole.add(part)
                part = _TileLayer.empty(tile)
    if whole is not None:
        total = sum(float(job.weights(layer).sum()) for layer in job.layers)
        whole.write(block, job.planes - 1, total, tile.square)
        # A layer has one Fréchet distance, whatever its width.
        block["fd"][-1] = block["fd"][:-1].mean(axis=0)
    return block


def _load(cache: TileCache, tile: Tile, step: Step) -> tuple[LayerData, LayerData]:
    a = cache.layer_data(tile.job, tile.a[step.a.start : step.a.stop], step.layer)
    if tile.square and step.a == step.b:
        return a, a
    return a, cache.layer_data(tile.job, tile.b[step.b.start : step.b.stop], step.layer)


@dataclass(frozen=True, eq=False)
class _TileLayer:
    """What a tile knows of one layer: (A, B) sums over neurons, filled step by step.

    Attributes:
        emd: Sums of the EMD, in bins.
        nfd: Sums of the Fréchet distance of neurons.
        fd: Fréchet distance of the layer.
        sums: What error bars are computed from, above the diagonal of a square tile. None without
            error bars.
    """

    emd: Floats
    nfd: Floats
    fd: Floats
    sums: FoldSums | None

    @classmethod
    def empty(cls, tile: Tile) -> _TileLayer:
        """Makes a layer of which nothing is known."""
        shape = len(tile.a), len(tile.b)
        emd, nfd, fd = (np.full(shape, np.nan) for _ in range(3))
        return cls(emd, nfd, fd, FoldSums.empty(*shape) if tile.job.error_bars else None)

    @classmethod
    def zeros(cls, tile: Tile) -> _TileLayer:
        """Makes the sum of no layers."""
        made = cls.empty(tile)
        for values in (made.emd, made.nfd, made.fd):
            values[:] = 0
        if made.sums is not None:
            made.sums.clear()
        return made

    def add(self, layer: _TileLayer) -> None:
        """Adds the sums over a layer's neurons."""
        for mine, theirs in zip(
            (self.emd, self.nfd, self.fd), (layer.emd, layer.nfd, layer.fd), strict=True
        ):
            mine += theirs
        if self.sums is not None and layer.sums is not None:
            self.sums.add(layer.sums)

    def write(self, block: Block, plane: int, weight: float, square: bool) -> None:
        """Writes the means of the sums to a plane; NaN without any positive weight."""
        scale = weight if weight > 0 else np.nan
        block["emd"][plane] = self.emd / scale
        block["nfd"][plane] = self.nfd / scale
        block["fd"][plane] = self.fd
        if self.sums is not None:
            found = _estimates(self.sums, scale, square=square)
            for name, values in found.items():
                block[name][plane] = values

    def fill(self, job: Job, step: Step, a: LayerData, b: LayerData, *, square: bool) -> None:
        weights = job.weights(step.layer)
        distance: dict[str, Any] = {"threads": job.threads, "device": job.device}
        rows, columns = (slice(side.start, side.stop) for side in (step.a, step.b))
        if self.sums is not None and a.folds is not None and b.folds is not None:
            found = fold_sums(a.folds, b.folds, weights, **distance)
            self.sums.fill(rows, columns, found)
            emd = found.theta[0]
        else:
            emd = distances(a.curves, b.curves, weights, **distance)
        parts = {"emd": emd, "nfd": _nfd(a, b, weights), "fd": _fd(a, b, job)}
        for column, part in parts.items():
            getattr(self, column)[rows, columns] = part
            if square:
                getattr(self, column)[columns, rows] = part.T


def _estimates(sums: FoldSums, scale: float, *, square: bool) -> Block:
    """Returns the (A, B) estimates of all pairs from sums of one plane.

    A square has each pair once, and NaN on the diagonal.
    """
    found = {name: of[0] for name, of in estimates(sums, scale, upper=square).items()}
    if square:
        for values in found.values():
            below = np.tril_indices(len(values), -1)
            values[below] = values.T[below]
    return found


def _nfd(a: LayerData, b: LayerData, weights: Floats) -> Floats:
    """Returns (A, B) sums over neurons of the Fréchet distance; NaN for a DNA without Gaussians."""
    used = np.flatnonzero(weights)
    sums = np.empty((len(a.means), len(b.means)))
    means, variances, weights = b.means[:, used], b.variances[:, used], weights[used]
    for row in range(len(sums)):
        apart = frechet_1d(a.means[row, used], a.variances[row, used], means, variances)
        sums[row] = apart @ weights
    return sums


def _fd(a: LayerData, b: LayerData, job: Job) -> Floats:
    """Returns (A, B) Fréchet distances of a layer; NaN for a DNA without layer Gaussians."""
    found = np.full((len(a.means), len(b.means)), np.nan)
    for i, root in a.roots.items():
        for j, other in b.roots.items():
            if a is not b or i < j:
                found[i, j] = frechet(a.means[i], root, b.means[j], other)
            if a is b and i < j:
                found[j, i] = found[i, j]
        if a is b:
            found[i, i] = 0.0 if np.isfinite(root).all() else np.nan
    return found
