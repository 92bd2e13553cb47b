"""All pairs: the distances of a snapshot, by layer.

    >>> compare(Catalogue("dnas"), ["a", "b"]).table.to_pandas()      # doctest: +SKIP

A whole matrix is kept, and the next one takes from it the pairs of DNAs that have not changed. What
is left to compute is cut into tiles, each a task that commits its numbers: see `pipeline.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast, get_args

import numpy as np

from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.comparing import tiles
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
from pipeline.comparing.matrix import Estimate, Matrix
from pipeline.comparing.selection import Selection
from pipeline.comparing.significance import false_discovery
from pipeline.comparing.tiles import MEMORY, TILE_WORK, Job, Tile
from pipeline.dna import UNIFORM, Floats, Lens
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import Mapper, SerialMapper

ROUNDS = 3
"""Times that tiles are spread, those again that are gone by then; the rest is computed here."""


@dataclass(frozen=True)
class Effort:
    """How pairs are computed; never what.

    `open_engine`: opens the engine for so many values of pairs; by default this process, with all
    its cores. An engine elsewhere gives each tile one thread.
    `memory`: bytes for each process. `device`: of its torch (`cuda`), or the CPU.
    """

    open_engine: Callable[[int], AbstractContextManager[Mapper]] = lambda values: nullcontext(
        SerialMapper()
    )
    memory: int = MEMORY
    device: str = "cpu"
    progress: Listener = ignore


def compare(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    layers: Sequence[str] | None = None,
    at: int | str | None = None,
    spec: str | None = None,
    fd: bool = False,
    lens: Lens | None = None,
    error_bars: bool = True,
    effort: Effort | None = None,
) -> Matrix:
    """All pairs of the datasets named, or of a whole snapshot; kept where the store lets us write.

    `fd`: the Fréchet distance of layers too, for datasets built with layer Gaussians: seconds a
    pair for wide layers. `lens`: weighs the neurons. `error_bars`: what the folds say of a
    distance, for some 30 times its arithmetic; through a lens with negative weights there are none.
    Raises `NotFound` for unknown names, `SpecMismatch` naming the fields where one is known under
    other specs only, `UsageError` for fewer than two, unknown layers, a lens on other neurons or
    beside `fd`, and a device that is not there.
    """
    effort = effort or Effort()
    require_device(effort.device)
    wanted = Selection.of(catalogue, names, at, spec)
    job = wanted.job(catalogue, layers, fd=fd, lens=lens, error_bars=error_bars)
    return _compare(catalogue, wanted, job, effort)


def _compare(catalogue: Catalogue, wanted: Selection, job: Job, effort: Effort) -> Matrix:
    # What is kept of all layers, one by one, has a choice of them, too.
    full = replace(job, layers=tuple(job.spec.layers), whole=True)
    kinds = [full] if job.whole else [job, full]
    uri = matrix_uri(catalogue, wanted, job)

    def finished() -> Matrix | None:
        found = (find_kept(matrix_uri(catalogue, wanted, kind), wanted, kind) for kind in kinds)
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
    old = [member for member in wanted.versions.items() if member[0] in rows]
    new = [member for member in wanted.versions.items() if member[0] not in rows]
    if not new:  # nothing to keep: all of it is
        return grid.matrix()
    pairs = len(new) * (len(new) - 1) // 2 + len(new) * len(old)
    try:
        with effort.open_engine(pairs * job.values) as engine:
            threads = None if engine.in_process else 1
            job = replace(job, memory=effort.memory, threads=threads, device=effort.device)
            made = tiles.cut(job, old, new, engine.workers)
            # What this process computes in the time of one tile is not worth an object.
            alone = engine.in_process and (len(made) < 2 or pairs * job.values <= TILE_WORK)
            if alone:
                for tile in made:
                    grid.put(tile, tiles.compute(tile))
            else:
                kept = _shared(grid, made, engine, effort.progress, finished)
    finally:
        tiles.let_go()
    matrix = grid.matrix() if kept is None else kept
    if kept is None and not keep_matrix(uri, matrix, effort.progress):
        return matrix  # the tiles stay, for the next time
    for tile in () if alone else made:
        storage.discard(tile.uri)
    return matrix


def _shared(
    grid: _Grid,
    made: Sequence[Tile],
    engine: Mapper,
    progress: Listener,
    finished: Callable[[], Matrix | None],
) -> Matrix | None:
    """Fills the grid by way of committed tiles, which other comparisons of these DNAs share.

    The first to finish removes them; the others return its matrix, instead of doing it all again.
    Where there is none, what was removed is spread once more.
    """
    for _ in range(ROUNDS):
        there = tiles.present(made[0].job.root)
        missing = [tile for tile in made if tile.uri not in there]
        pairs, present = sum(tile.pairs for tile in missing), len(made) - len(missing)
        with stage(progress, Started(pairs, len(missing), present, unit="pairs", step="tiles")):
            for receipt in engine.map(tiles.run, missing):
                progress(StepDone(receipt.pairs))
                if (kept := finished()) is not None:
                    return kept
        made = [tile for tile in made if not grid.fetch(tile)]
        if not made or (kept := finished()) is not None:
            return kept if made else None
    for tile in made:
        grid.put(tile, tiles.compute(tile))
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
        """Pairs of the datasets of these rows."""
        mine, theirs = [self._place[name] for name in rows], list(rows.values())
        for name, values in self.columns.items():
            stacked = known.stacked(cast(Any, name))
            values[:, np.array(mine)[:, None], mine] = stacked[:, np.array(theirs)[:, None], theirs]

    def put(self, tile: Tile, block: tiles.Block) -> None:
        """In its place, and the one opposite."""
        rows, others = ([self._place[name] for name, _ in side] for side in (tile.a, tile.b))
        for name, values in self.columns.items():
            values[np.ix_(range(self.job.planes), rows, others)] = block[name]
            if not tile.square:
                opposite = block[name].transpose(0, 2, 1)
                values[np.ix_(range(self.job.planes), others, rows)] = opposite

    def fetch(self, tile: Tile) -> bool:
        """Whether the tile was there, and is in its place."""
        block = tiles.fetch(tile)
        if block is not None:
            self.put(tile, block)
        return block is not None

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.wanted.versions)}

    def matrix(self) -> Matrix:
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
