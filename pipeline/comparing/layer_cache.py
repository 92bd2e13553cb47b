"""Loads layers of DNAs as a comparison needs them, and keeps those that fit into memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.catalogue import Catalogue, Version
from pipeline.comparing.comparison_job import Job
from pipeline.comparing.dna_layer import DnaLayer
from pipeline.comparing.emd_kernel import Curves
from pipeline.comparing.fold_curves import FoldCurves
from pipeline.comparing.fold_points import FoldPoints
from pipeline.comparing.gaussians import root_covariance
from pipeline.comparing.kept_points import Counting, KeptPoints, find_points
from pipeline.comparing.tiles import Member, Tile
from pipeline.dna import DnaFile, Floats, Pairs
from pipeline.spec import LAYER_GAUSSIAN


@dataclass(frozen=True, eq=False)
class LayerData:
    """What is compared of some DNAs in one layer of C neurons.

    Attributes:
        curves: Their cumulative distributions.
        folds: The same with their folds; None without error bars.
        means: (D, C) means of spatially averaged activations.
        variances: (D, C) variances of them.
        roots: Roots of the layer's covariance, by position of the DNA.
    """

    curves: Curves
    folds: FoldCurves | None
    means: Floats
    variances: Floats
    roots: Mapping[int, Floats]

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        roots = sum(root.nbytes for root in self.roots.values())
        return self.means.nbytes * 2 + roots + (self.folds or self.curves).nbytes


@dataclass
class TileCache:
    """Open files of the tile at hand, and the layers of DNAs that still fit into memory.

    There is one in each thread that compares, as no two threads may read an open file at once. The
    layers of a file that the job needs are read once, and lie on disk from then on.
    """

    files: dict[tuple[str, str, str, str, tuple[str, ...] | None], DnaFile] = field(
        default_factory=dict
    )
    points: dict[tuple[str, str, str], KeptPoints | None] = field(default_factory=dict)
    keeps: bool = False
    loaded: dict[tuple[object, ...], LayerData] = field(default_factory=dict)

    def keep_only(self, tile: Tile) -> None:
        """Closes the files of DNAs that are not in this tile."""
        held = {(tile.job.root, name, version.dna) for name, version in (*tile.a, *tile.b)}
        self.files = {key: file for key, file in self.files.items() if key[:3] in held}
        self.points = {key: kept for key, kept in self.points.items() if key in held}

    def layer_data(self, job: Job, members: tuple[Member, ...], layer: str) -> LayerData:
        """Returns a layer of some DNAs, from memory if it is there."""
        digests = tuple((name, version.dna) for name, version in members)
        key = (job.root, job.spec.digest, digests, layer, job.step(layer), job.fd, job.error_bars)
        if key in self.loaded:
            self.loaded[key] = self.loaded.pop(key)  # the newest is last
            return self.loaded[key]
        room = job.memory // 2
        self._make_room(room - len(members) * job.layer_bytes(layer))
        made = self._load(job, members, layer)
        self._make_room(room - made.nbytes)
        self.loaded[key] = made
        return made

    def _make_room(self, most: int) -> None:
        """Drops what has not been used for longest, so that no more bytes are held."""
        while self.loaded and sum(data.nbytes for data in self.loaded.values()) > most:
            self.loaded.pop(next(iter(self.loaded)))

    def _load(self, job: Job, members: tuple[Member, ...], layer: str) -> LayerData:
        neurons, size = job.spec.tap(layer).neurons, len(members)
        bins, step = job.spec.bins, job.step(layer)
        folds = FoldCurves.empty(neurons, size, bins, step) if job.error_bars else None
        curves = folds.whole if folds else Curves.empty(neurons, size, bins)
        means = np.full((size, neurons), np.nan)
        variances, roots = means.copy(), {}

        def load(slot: int) -> None:
            name, version = members[slot]
            of, pairs = self._layer(job, name, version, layer)
            if folds is None:
                curves.fill(slot, [of.counts], [of.underflow], [of.overflow])
            else:
                folds.fill_layer(slot, of, pairs)
            means[slot], variances[slot] = of.means, of.variances
            if job.fd and LAYER_GAUSSIAN in version.products:
                dna = self._open(job, "dna", name, version).read([layer])
                if dna.images >= 2:
                    file = self._open(job, "layer_gaussians", name, version)
                    roots[slot] = root_covariance(file.read_gaussians(dna), layer)

        with ThreadPoolExecutor(job.loaders(layer), "load") as pool:
            list(pool.map(load, range(size)))
        pa.default_memory_pool().release_unused()
        return LayerData(curves, folds, means, variances, dict(sorted(roots.items())))

    def _layer(
        self, job: Job, name: str, version: Version, layer: str
    ) -> tuple[DnaLayer, Pairs | None]:
        """Returns what is compared of a DNA, and by which names its images are in pairs."""
        with_folds = job.error_bars and "folds" in version.sha256
        kept = self._points(job, name, version) if with_folds else None
        found = kept.read(layer, job.step(layer)) if kept else None
        if kept is not None and found is not None:
            return found, kept.pairs
        dna = self._open(job, "dna", name, version).read([layer])
        if not with_folds:
            return DnaLayer.of(dna, FoldPoints.of({}, job.step(layer))), None
        file = self._open(job, "folds", name, version)
        points = FoldPoints.read(file, layer, job.step(layer))
        return DnaLayer.of(dna, points), file.pairs

    def _points(self, job: Job, name: str, version: Version) -> KeptPoints | None:
        key = (job.root, name, version.dna)
        if key not in self.points:
            counting = Counting(job.root, job.spec, name, version)
            self.points[key] = find_points(counting, discard=self.keeps)
        return self.points[key]

    def _open(self, job: Job, kind: str, name: str, version: Version) -> DnaFile:
        layers = None if set(job.layers) >= set(job.spec.layers) else job.layers
        key = (job.root, name, version.dna, kind, layers)
        if key not in self.files:
            file = Catalogue(job.root).open_file(kind, name, version, layers, on_disk=True)
            self.files[key] = file
        return self.files[key]

    def clear(self) -> None:
        """Drops everything."""
        self.files.clear()
        self.points.clear()
        self.loaded.clear()


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.cache = TileCache()


_of_thread = _OfThread()


def cache_here() -> TileCache:
    """Returns the cache of the thread that asks."""
    return _of_thread.cache


def clear_cache() -> None:
    """Drops what this thread holds of DNAs between tiles."""
    cache_here().clear()
