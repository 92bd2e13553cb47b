"""Tiles: rectangles of pairs, each computed by one task and committed as one object.

    >>> tiles = cut(job, members, missing)                              # doctest: +SKIP
    >>> for receipt in map(run, tiles): ...                             # doctest: +SKIP
    >>> blocks = [read_tile(tile) for tile in tiles]                    # doctest: +SKIP

A tile is named by a hash of what goes into it (the digests of its DNAs, the lens, the layers, the
products), and is created exclusively. So a comparison that died goes on from the tiles that are
there. Two that run at once share them, if both have the same number of workers and the same memory,
which decide how pairs are cut. A tile holds numbers of pairs only, and none that depend on the
whole matrix. Datasets of the same images have one DNA: the pair of them is in a rectangle, and not
on a diagonal.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalogue import Catalogue, Version
from pipeline.comparing.compare_options import MemoryLimit
from pipeline.comparing.emd_kernel import Curves, distances, width_of
from pipeline.comparing.fold_curves import FoldCurves
from pipeline.comparing.fold_points import points_of, step_for
from pipeline.comparing.fold_statistics import (
    METHOD,
    PAIR_ESTIMATES,
    FoldSums,
    estimates,
    fold_sums,
)
from pipeline.comparing.gaussians import frechet, frechet_1d, root_covariance, variance
from pipeline.comparing.intervals import CHANGES, DRAWS
from pipeline.comparing.kept_points import Counting, KeptPoints, find_points
from pipeline.comparing.noise_kernel import NoiseCurves
from pipeline.counting import keep_memory
from pipeline.dna import (
    DnaFile,
    FileKind,
    Floats,
    Lens,
    SealedFile,
    corrupt_if_unreadable,
    encode_sealed,
)
from pipeline.errors import CorruptFile, SourceError
from pipeline.spec import FOLDS, LAYER_GAUSSIAN, Spec, available_cpus, digest_of

TILE = FileKind("tile")

TILES_FOLDER = "_tiles"
"""Folder below the catalogue's `_work`, whose leftovers `vdna gc` removes."""

TILE_WORK = 4 * 10**12
"""The most values that a tile compares. One tile is a few minutes' work of a core, and a killed
process loses no more than that."""

NOISE_WORK = 20
"""The error bars of a pair take about as long as so many comparisons of its curves."""

OVER = 1.25
"""A tile takes up to so many times the memory that it may use."""

PROCESS_BYTES = 400 * 2**20
"""What a worker's process takes by its libraries alone."""

STREAMED = 4
"""DNAs loaded at a time if those of a layer are not all held; the kernel takes as many rows."""

Member = tuple[str, Version]
"""A dataset's name and the version of it."""


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
        barred = FOLDS**2 + DRAWS * len(CHANGES) + 4 * FOLDS
        held = 4 * (barred if self.error_bars else 4) + self.planes * len(self.columns)
        return max(1, int(min(TILE_WORK / self.values, self.memory / 4 / (8 * held)) ** 0.5))

    def held(self, layer: str) -> int:
        """Computes how many DNAs of a layer are held at a time.

        Args:
            layer: Name of the layer.

        Returns:
            The number of DNAs whose curves take half of the memory.
        """
        bins = self.spec.bins
        row = width_of(bins) * 4
        each = row
        if self.error_bars:
            points = points_of(bins, self.step(layer))
            each += NoiseCurves.nbytes_of(points) + points * 4 * FOLDS + 8 * FOLDS
        neurons = self.spec.tap(layer).neurons
        each += 8 * neurons if self.fd else 0  # the root of its covariance
        return self.memory // (2 * neurons * each)

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


@dataclass(frozen=True)
class Tile:
    """All pairs of some DNAs with others.

    Attributes:
        job: What is computed.
        a: The DNAs of the rows.
        b: The DNAs of the columns. If they are the same as `a`, the diagonal is included.
    """

    job: Job
    a: tuple[Member, ...]
    b: tuple[Member, ...]

    @property
    def square(self) -> bool:
        """Whether the DNAs are compared with each other."""
        return self.a == self.b

    @property
    def pairs(self) -> int:
        """Number of pairs of different DNAs."""
        return len(self.a) * (len(self.a) - 1) // 2 if self.square else len(self.a) * len(self.b)

    def steps(self, layer: str) -> list[Step]:
        """Splits a layer of this tile into steps that fit the memory.

        Args:
            layer: Name of the layer.

        Returns:
            One step if there is room for all DNAs of this layer and of the next. Otherwise each
            step has as many of `a` as there is room for, and a few of `b`.
        """
        a, b = len(self.a), len(self.b)
        held = self.job.held(layer)
        if 2 * (a if self.square else a + b) <= held:
            return [Step(layer, range(a), range(b), beside=True)]
        few = max(1, min(STREAMED, held // 4))
        most = max(1, held - 2 * few)
        steps = []
        for rows in _runs(0, a, most):
            if self.square:
                steps.append(Step(layer, rows, rows, beside=False))
            columns = _runs(rows.stop if self.square else 0, b, few)
            steps += [Step(layer, rows, some, beside=some.start > 0) for some in columns]
        return steps

    @cached_property
    def digest(self) -> str:
        """Hash of all that goes into the tile; its name."""
        sides = [[version.dna for _, version in side] for side in (self.a, self.b)]
        return digest_of("tile", self.job.key, *sides, self.square)

    @property
    def uri(self) -> str:
        """Where the tile is committed."""
        return storage.join(folder_of(self.job.root), f"{self.digest}.parquet")


@dataclass(frozen=True)
class Step:
    """Pairs of some DNAs of a tile, in one layer.

    Attributes:
        layer: Name of the layer.
        a: Positions of DNAs among those of the tile's rows.
        b: Positions of DNAs among those of its columns; the same as `a` for pairs among each other.
        beside: Whether the DNAs may be loaded while the step before is computed.
    """

    layer: str
    a: range
    b: range
    beside: bool


def _runs(start: int, stop: int, most: int) -> list[range]:
    return [range(at, min(at + most, stop)) for at in range(start, stop, most)]


def folder_of(root: str) -> str:
    """Names the folder of a catalogue's tiles.

    Args:
        root: Root of the catalogue.

    Returns:
        The uri of the folder.
    """
    return storage.join(root, "_work", TILES_FOLDER)


@dataclass(frozen=True)
class TileReceipt:
    """A tile that is committed.

    Attributes:
        digest: Digest of the tile.
        pairs: Number of its pairs.
    """

    digest: str
    pairs: int


Block = dict[str, Floats]
"""Columns of a tile by name, each (planes, A, B) float64."""


def cut(job: Job, old: Sequence[Member], new: Sequence[Member], workers: int = 1) -> list[Tile]:
    """Cuts pairs into tiles of about equal sides: all pairs with at least one new dataset.

    Args:
        job: What is computed.
        old: Datasets whose pairs with each other are known.
        new: Datasets that are compared with each other and with each of `old`.
        workers: Number of workers; several get at least three tiles each.

    Returns:
        The tiles.
    """
    pairs = len(new) * (len(new) - 1) / 2 + len(new) * len(old)
    side = job.side
    if workers > 1:
        side = max(1, min(side, int((pairs / (3 * workers)) ** 0.5)))
    fresh, kept = _even(new, side), _even(old, side)
    tiles = []
    for i, block in enumerate(fresh):
        tiles.append(Tile(job, block, block))
        tiles += [Tile(job, block, other) for other in (*fresh[i + 1 :], *kept)]
    return tiles


def _even(members: Sequence[Member], side: int) -> list[tuple[Member, ...]]:
    """Returns the members in as few blocks as this side allows, of about equal size."""
    blocks = -(-len(members) // side)
    edges = [len(members) * i // max(1, blocks) for i in range(blocks + 1)]
    return [tuple(members[a:b]) for a, b in itertools.pairwise(edges)]


def present(root: str) -> set[str]:
    """Lists the tiles that are committed.

    Args:
        root: Root of the catalogue.

    Returns:
        Their uris.
    """
    try:
        return {item.uri for item in storage.walk(folder_of(root))}
    except SourceError:
        return set()


def run(tile: Tile) -> TileReceipt:
    """Computes and commits a tile, unless it is there.

    Args:
        tile: The tile.

    Returns:
        The receipt of the committed tile.
    """
    if not storage.exists(tile.uri):
        storage.create(tile.uri, encode_tile(tile, compute(tile, keeps=True)))
    return TileReceipt(tile.digest, tile.pairs)


def read_tile(tile: Tile) -> Block | None:
    """Reads a committed tile. A damaged one is removed.

    Args:
        tile: The tile.

    Returns:
        Its numbers, or None if it is gone or was damaged.
    """
    try:
        return decode_tile(storage.read(tile.uri), tile)
    except SourceError:
        return None
    except CorruptFile:
        storage.discard(tile.uri)
        return None


def encode_tile(tile: Tile, block: Block) -> bytes:
    """Makes the file of a tile's numbers in memory.

    Args:
        tile: The tile.
        block: Its numbers.

    Returns:
        The bytes of the file.
    """
    table = pa.table({name: pa.array(block[name].ravel()) for name in tile.job.columns})
    shape = [tile.job.planes, len(tile.a), len(tile.b)]
    return encode_sealed(TILE, {"digest": tile.digest, "shape": shape}, [table])


def decode_tile(data: bytes, tile: Tile) -> Block:
    """Reads the file of a tile.

    Args:
        data: The bytes of the file.
        tile: The tile that it should be.

    Returns:
        The numbers of the tile.

    Raises:
        CorruptFile: The file is torn, not what was written, or another tile's.
    """
    shape = (tile.job.planes, len(tile.a), len(tile.b))
    file = SealedFile(data, TILE, tile.uri)
    with corrupt_if_unreadable(f"{tile.uri}: torn, or not a tile"):
        stated = file.metadata["digest"], tuple(file.metadata["shape"])
        if stated != (tile.digest, shape):
            raise CorruptFile(f"{tile.uri} is tile {stated}, not the one that it is named for")
        table = file.read()
        return {
            name: cast(Floats, table[name].to_numpy().reshape(shape)) for name in tile.job.columns
        }


# Computing one tile.


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
    _cache.keep_only(tile)
    _cache.keeps = keeps
    shape = len(tile.a), len(tile.b)
    block: Block = {name: np.full((job.planes, *shape), np.nan) for name in job.columns}
    whole = _TileLayer.zeros(tile) if job.whole else None
    steps = [step for layer in job.layers for step in tile.steps(layer)]
    part = _TileLayer.empty(tile)
    with ThreadPoolExecutor(1, "next-step") as ahead:
        waiting = None
        for step, following in itertools.zip_longest(steps, steps[1:]):
            a, b = waiting.result() if waiting else _load(tile, step)
            waiting = None
            if following is not None and following.beside:
                waiting = ahead.submit(_load, tile, following)
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


def _load(tile: Tile, step: Step) -> tuple[_LayerData, _LayerData]:
    a = _cache.layer_data(tile.job, tile.a[step.a.start : step.a.stop], step.layer)
    if tile.square and step.a == step.b:
        return a, a
    return a, _cache.layer_data(tile.job, tile.b[step.b.start : step.b.stop], step.layer)


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

    def fill(self, job: Job, step: Step, a: _LayerData, b: _LayerData, *, square: bool) -> None:
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

    They are computed row by row, which bounds memory. A square has each pair once, and NaN on the
    diagonal.
    """
    _, rows, columns = sums.theta.shape
    block = {name: np.full((rows, columns), np.nan) for name in PAIR_ESTIMATES}
    for row in range(rows):
        first = row + 1 if square else 0
        if first == columns:
            continue
        some = sums.select(slice(row, row + 1), slice(first, None))
        found = estimates(some.divided(scale))
        for name in PAIR_ESTIMATES:
            block[name][row, first:] = found[name][0, 0]
            if square:
                block[name][first:, row] = found[name][0, 0]
    return block


def _nfd(a: _LayerData, b: _LayerData, weights: Floats) -> Floats:
    """Returns (A, B) sums over neurons of the Fréchet distance; NaN for a DNA without Gaussians."""
    used = np.flatnonzero(weights)
    sums = np.empty((len(a.means), len(b.means)))
    means, variances, weights = b.means[:, used], b.variances[:, used], weights[used]
    for row in range(len(sums)):
        apart = frechet_1d(a.means[row, used], a.variances[row, used], means, variances)
        sums[row] = apart @ weights
    return sums


def _fd(a: _LayerData, b: _LayerData, job: Job) -> Floats:
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


@dataclass(frozen=True, eq=False)
class _LayerData:
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
class _Cache:
    """Open files of the tile at hand, and the layers of DNAs that still fit into memory.

    There is one in each process. The layers of a file that the job needs are read once, and lie on
    disk from then on.
    """

    files: dict[tuple[str, str, str, str, tuple[str, ...] | None], DnaFile] = field(
        default_factory=dict
    )
    points: dict[tuple[str, str, str], KeptPoints | None] = field(default_factory=dict)
    keeps: bool = False
    loaded: dict[tuple[object, ...], _LayerData] = field(default_factory=dict)

    def keep_only(self, tile: Tile) -> None:
        """Closes the files of DNAs that are not in this tile."""
        held = {(tile.job.root, name, version.dna) for name, version in (*tile.a, *tile.b)}
        self.files = {key: file for key, file in self.files.items() if key[:3] in held}
        self.points = {key: kept for key, kept in self.points.items() if key in held}

    def layer_data(self, job: Job, members: tuple[Member, ...], layer: str) -> _LayerData:
        """Returns a layer of some DNAs, from memory if it is there."""
        digests = tuple((name, version.dna) for name, version in members)
        key = (job.root, job.spec.digest, digests, layer, job.step(layer), job.fd, job.error_bars)
        if key in self.loaded:
            self.loaded[key] = self.loaded.pop(key)  # the newest is last
            return self.loaded[key]
        made = self._load(job, members, layer)
        self.loaded[key] = made
        room = job.memory // 2
        while sum(data.nbytes for data in self.loaded.values()) > room and len(self.loaded) > 1:
            self.loaded.pop(next(iter(self.loaded)))
        return made

    def _load(self, job: Job, members: tuple[Member, ...], layer: str) -> _LayerData:
        neurons, size = job.spec.tap(layer).neurons, len(members)
        bins, step = job.spec.bins, job.step(layer)
        folds = FoldCurves.empty(neurons, size, bins, step) if job.error_bars else None
        curves = folds.whole if folds else Curves.empty(neurons, size, bins)
        means = np.full((size, neurons), np.nan)
        variances, roots = means.copy(), {}

        def load(slot: int) -> None:
            name, version = members[slot]
            dna = self._open(job, "dna", name, version).read([layer])
            if folds is None:
                curves.fill(slot, [dna.counts], [dna.underflow], [dna.overflow])
            elif "folds" in version.sha256:
                kept = self._points(job, name, version)
                points = kept.read(layer, step) if kept else None
                if kept is not None and points is not None:
                    folds.fill_points(slot, dna, points, kept.pairs)
                else:
                    file = self._open(job, "folds", name, version)
                    folds.fill(slot, dna, file.read_folds(layer), file.pairs)
            else:
                folds.fill(slot, dna, {})
            if dna.images >= 2 and "mean" not in dna.unknown:
                means[slot], variances[slot] = dna.mean, variance(dna)
            if job.fd and LAYER_GAUSSIAN in version.products and dna.images >= 2:
                file = self._open(job, "layer_gaussians", name, version)
                roots[slot] = root_covariance(file.read_gaussians(dna), layer)

        with ThreadPoolExecutor(job.loaders(layer), "load") as pool:
            list(pool.map(load, range(size)))
        pa.default_memory_pool().release_unused()
        return _LayerData(curves, folds, means, variances, dict(sorted(roots.items())))

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


_cache = _Cache()


def clear_cache() -> None:
    """Drops what this process holds of DNAs between tiles."""
    _cache.clear()
