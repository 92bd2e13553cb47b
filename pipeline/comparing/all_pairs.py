"""Compares all pairs of datasets of a snapshot, by layer.

    >>> compare(Catalogue("dnas"), ["a", "b"]).to_pandas()            # doctest: +SKIP

A finished matrix is kept, and the next one takes from it the pairs of DNAs that have not changed.
The pairs that are left are cut into tiles, each a task that commits its numbers; see
`pipeline.comparing.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Unpack, cast, get_args

import numpy as np

from pipeline import storage
from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import layer_cache, tile_files, tile_sums, tiles
from pipeline.comparing.compare_options import CompareKeywords, CompareOptions, MemoryLimit
from pipeline.comparing.comparison_job import TILE_WORK, Job
from pipeline.comparing.distance import Measure
from pipeline.comparing.emd_kernel import require_device
from pipeline.comparing.kept_matrices import (
    find_kept,
    keep_matrix,
    matrix_uri,
    most_shared,
    nearest_kept,
    slice_matrix,
)
from pipeline.comparing.kept_points import keep_points, plain_step, without_points
from pipeline.comparing.matrix import ALL, Estimate, Matrix
from pipeline.comparing.selection import Selection
from pipeline.comparing.significance import false_discovery
from pipeline.comparing.tiles import Tile
from pipeline.dna import UNIFORM, Floats, Lens
from pipeline.errors import StorageError, TransientError
from pipeline.events import Listener, Said, Started, StepDone, ignore, stage
from pipeline.mapper import Mapper, SerialMapper

ROUNDS = 3
"""How often missing tiles are spread over workers, before the rest is computed here."""


REREAD = 8
"""From so many DNAs on, what their folds show is kept however short the comparison is: when one of
them changes, the others' folds need not be read again."""


@dataclass(frozen=True)
class Effort:
    """How pairs are computed, but not what.

    Attributes:
        open_engine: Opens what computes so many values of pairs.
        memory: Bytes that each process may use.
        device: Where EMDs are computed: `cpu`, or a CUDA device.
        progress: Is told of each tile.
        keep: Whether the matrix and its tiles are kept in the catalogue. If not, nothing is
            written.
    """

    open_engine: Callable[[int], AbstractContextManager[Mapper]] = lambda values: nullcontext(
        SerialMapper()
    )
    memory: int = MemoryLimit().bytes
    device: str = "cpu"
    progress: Listener = ignore
    keep: bool = True


def compare(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    lens: Lens | None = None,
    effort: Effort | None = None,
    **options: Unpack[CompareKeywords],
) -> Matrix:
    """Computes the distances of all pairs of datasets, by layer.

    The matrix is kept in the catalogue if the store can be written and `effort` does not say
    otherwise, so that the same comparison later only reads it.

    Args:
        catalogue: Where the datasets are.
        names: The datasets to compare; none for the whole snapshot.
        lens: Weighs the neurons. With negative weights there are no error bars.
        effort: How to compute; None for this process with all its cores.
        **options: The options of `CompareOptions`. Without `spec` it is the one that the names
            share, or the default. `fd` takes seconds a pair for wide layers, and datasets that
            were built with layer Gaussians.

    Returns:
        The matrix.

    Raises:
        NotFound: If a name is unknown.
        SpecMismatch: If a dataset is only known under other specs; the message names the fields.
        UsageError: For fewer than two datasets, an unknown layer, a lens on other neurons or beside
            `fd`, and a device that is not there.
    """
    effort = effort or Effort()
    require_device(effort.device)
    chosen = CompareOptions(**options)
    wanted = Selection.of(catalogue, names, chosen.at, chosen.spec)
    layers = None if ALL in (chosen.layers or ()) else chosen.layers
    job = wanted.job(catalogue, layers, fd=chosen.fd, lens=lens, error_bars=chosen.error_bars)
    return _compare(catalogue, wanted, job, effort)


def _compare(catalogue: Catalogue, wanted: Selection, job: Job, effort: Effort) -> Matrix:
    # A matrix of all layers has those of any choice of layers, too.
    full = replace(job, layers=tuple(job.spec.layers), whole=True)
    kinds = [full] if job.whole else [job, full]
    uri = matrix_uri(catalogue, wanted, job)

    def finished() -> Matrix | None:
        uris = [matrix_uri(catalogue, wanted, kind) for kind in kinds]
        found = (
            find_kept(uri, wanted, kind, discard=effort.keep)
            for uri, kind in zip(uris, kinds, strict=True)
        )
        kept = next((matrix for matrix in found if matrix is not None), None)
        return kept if kept is None or job.whole else slice_matrix(kept, job)

    if (kept := finished()) is not None:
        return kept
    known, rows = most_shared(
        wanted, [matrix for kind in kinds if (matrix := nearest_kept(catalogue, wanted, kind))]
    )
    grid = _Grid.of(wanted, job)
    if known is not None:
        grid.take(known if job.whole else slice_matrix(known, job), rows)
        known = None  # it may be as large as the new one
    old = [member for member in wanted.versions.items() if member[0] in rows]
    new = [member for member in wanted.versions.items() if member[0] not in rows]
    if not new:  # all pairs are in a kept matrix already
        return grid.matrix()
    pairs = len(new) * (len(new) - 1) // 2 + len(new) * len(old)
    try:
        with effort.open_engine(pairs * job.values) as engine:
            threads = None if engine.in_process else 1
            job = replace(job, memory=effort.memory, threads=threads, device=effort.device)
            made = tiles.cut(job, old, new, engine.workers)
            # A comparison that is as short as one tile is not worth the objects of tiles.
            alone = engine.in_process and (len(made) < 2 or pairs * job.values <= TILE_WORK)
            if alone:
                if effort.keep and len(wanted.versions) >= REREAD:
                    count_folds_if_kept(wanted.versions, job, engine, effort.progress)
                for tile in made:
                    grid.put(tile, tile_sums.compute(tile))
            elif not effort.keep:
                _fill(grid, made, engine, effort.progress)
            else:
                try:
                    count_folds(wanted.versions, job, engine, effort.progress)
                    kept = _shared(grid, made, engine, effort.progress, finished)
                except TransientError:
                    raise
                except StorageError as error:
                    effort.progress(Said(f"nothing is kept for the next time: {error}"))
                    _fill(grid, made, engine, effort.progress)
                    return grid.matrix()
    finally:
        layer_cache.clear_cache()
    matrix = grid.matrix() if kept is None else kept
    if not effort.keep:
        return matrix
    if kept is None and not keep_matrix(uri, matrix, effort.progress):
        return matrix  # the tiles stay, for the next time
    for tile in () if alone else made:
        storage.discard(tile.uri)
    return matrix


def count_folds(
    versions: Mapping[str, Version], job: Job, engine: Mapper, progress: Listener
) -> None:
    """Counts the folds of DNAs for which that is not done, and keeps the counts.

    Nothing is done for a job that has no use for the counts that are kept.

    Args:
        versions: The version of each dataset.
        job: What is computed of them.
        engine: Where folds are counted.
        progress: Is told of each DNA.
    """
    plain = all(job.step(layer) == plain_step(job.spec, layer) for layer in job.layers)
    if not (job.error_bars and job.whole and plain):
        return
    missing = without_points(job.root, job.spec, versions.items())
    if not missing:
        return
    threads = min(map(job.loaders, job.layers)) if engine.in_process else 1
    with (
        stage(progress, Started(len(missing), len(missing), unit="DNAs", step="folds")),
        ThreadPoolExecutor(threads, "folds") as pool,
    ):
        if engine.in_process:
            counted = pool.map(keep_points, missing)
        else:
            counted = engine.map(keep_points, missing, memory=job.reader_bytes)
        for _ in counted:
            progress(StepDone(1))


def count_folds_if_kept(
    versions: Mapping[str, Version], job: Job, engine: Mapper, progress: Listener
) -> None:
    """Counts folds as `count_folds` does, or says that the catalogue cannot keep the counts.

    Args:
        versions: The version of each dataset.
        job: What is computed of them.
        engine: Where folds are counted.
        progress: Is told of each DNA.

    Raises:
        TransientError: The store does not answer.
    """
    try:
        count_folds(versions, job, engine, progress)
    except TransientError:
        raise
    except StorageError as error:
        progress(Said(f"what folds show is not kept for the next time: {error}"))


def _fill(grid: _Grid, made: Sequence[Tile], engine: Mapper, progress: Listener) -> None:
    """Fills the grid with tiles that nobody keeps."""
    pairs = sum(tile.pairs for tile in made)
    with stage(progress, Started(pairs, len(made), unit="pairs", step="tiles")):
        for tile, block in engine.map(_computed, made, memory=made[0].job.task_bytes):
            grid.put(tile, block)
            progress(StepDone(tile.pairs))


def _computed(tile: Tile) -> tuple[Tile, tile_sums.Block]:
    return tile, tile_sums.compute(tile)


def _shared(
    grid: _Grid,
    made: Sequence[Tile],
    engine: Mapper,
    progress: Listener,
    finished: Callable[[], Matrix | None],
) -> Matrix | None:
    """Returns a matrix that another comparison finished, or fills the grid and returns None.

    It works by way of committed tiles, which other comparisons of these DNAs share. The first
    comparison to finish removes the tiles, and the others return its matrix. If there is no matrix,
    tiles that were removed are computed once more.
    """
    for _ in range(ROUNDS):
        there = tile_files.present(made[0].job.root)
        missing = [tile for tile in made if tile.uri not in there]
        pairs, present = sum(tile.pairs for tile in missing), len(made) - len(missing)
        with stage(progress, Started(pairs, len(missing), present, unit="pairs", step="tiles")):
            for receipt in engine.map(tile_files.run, missing, memory=made[0].job.task_bytes):
                progress(StepDone(receipt.pairs))
                if (kept := finished()) is not None:
                    return kept
        made = [tile for tile in made if not grid.fetch(tile)]
        if not made or (kept := finished()) is not None:
            return kept if made else None
    for tile in made:
        grid.put(tile, tile_sums.compute(tile))
    return None


@dataclass(frozen=True, eq=False)
class _Grid:
    """The columns of a matrix that is being filled."""

    wanted: Selection
    job: Job
    columns: Mapping[str, Floats]

    @classmethod
    def of(cls, wanted: Selection, job: Job) -> _Grid:
        shape = (job.planes, len(wanted.versions), len(wanted.versions))
        return cls(wanted, job, {name: np.full(shape, np.nan) for name in job.columns})

    def take(self, known: Matrix, rows: Mapping[str, int]) -> None:
        """Copies the pairs of some datasets from a known matrix, where they have these rows."""
        mine, theirs = [self._place[name] for name in rows], list(rows.values())
        for name, values in self.columns.items():
            stacked = known.stacked(cast(Any, name))
            values[:, np.array(mine)[:, None], mine] = stacked[:, np.array(theirs)[:, None], theirs]

    def put(self, tile: Tile, block: tile_sums.Block) -> None:
        """Puts a tile's numbers in their place, and in the place opposite the diagonal."""
        rows, others = ([self._place[name] for name, _ in side] for side in (tile.a, tile.b))
        for name, values in self.columns.items():
            values[np.ix_(range(self.job.planes), rows, others)] = block[name]
            if not tile.square:
                opposite = block[name].transpose(0, 2, 1)
                values[np.ix_(range(self.job.planes), others, rows)] = opposite

    def fetch(self, tile: Tile) -> bool:
        """Returns whether the tile was committed, and puts it in its place if so."""
        block = tile_files.read_tile(tile)
        if block is not None:
            self.put(tile, block)
        return block is not None

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.wanted.versions)}

    def matrix(self) -> Matrix:
        """Returns the finished matrix, with q over its pairs."""
        job, columns = self.job, dict(self.columns)
        emd, nfd, fd = (columns.pop(name) for name in get_args(Measure))
        if job.error_bars:
            columns["q"] = false_discovery(columns["p"])
        return Matrix(
            tuple(self.wanted.versions),
            job.layers,
            emd,
            nfd,
            fd,
            job.spec.bins,
            self.wanted.members,
            self.wanted.spec_digest,
            UNIFORM if job.lens is None else job.lens.name,
            cast(Mapping[Estimate, Floats], columns),
            job.lens.digest if job.lens else "",
            job.method,
        )
