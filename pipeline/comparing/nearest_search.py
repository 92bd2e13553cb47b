"""Finds the nearest datasets of a catalogue without comparing all pairs.

    >>> nearest(Catalogue("dnas"), near="photos", top=20).to_pandas()       # doctest: +SKIP
    >>> nearest(Catalogue("dnas"), top=3).near_duplicates()                 # doctest: +SKIP

Coarse curves of every DNA, which are kept, say how far apart each pair is at least. DNAs are read,
and distances are computed, in the order of these bounds, until no other pair can be among the
nearest. Error bars are computed of the pairs that are found.

In memory are the bounds of all pairs of the rows, 8 bytes each, and their order, 4 bytes. While the
bounds are computed, those of one layer are there too, and some 32 MB for each thread. So are the
coarse curves of one layer of all DNAs, and the distance of each pair that was computed. Without
error bars, all columns of such a pair are, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Unpack

import numpy as np

from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.comparing import layer_cache, tile_sums
from pipeline.comparing.all_pairs import Effort, count_folds_if_kept
from pipeline.comparing.coarse_curves import least_distances, together
from pipeline.comparing.compare_options import NearestKeywords, NearestOptions
from pipeline.comparing.comparison_job import Job
from pipeline.comparing.emd_kernel import require_device
from pipeline.comparing.kept_coarse import KeptCoarse, encode_coarse, find_coarse
from pipeline.comparing.kept_points import Counting
from pipeline.comparing.nearest_rows import Edge, pair_of, search
from pipeline.comparing.neighbour_graph import Neighbours
from pipeline.comparing.pair_tiles import cut_pairs
from pipeline.comparing.selection import Selection, with_near
from pipeline.comparing.significance import adjusted
from pipeline.comparing.tiles import Member, Tile
from pipeline.dna import UNIFORM, Floats, Lens
from pipeline.errors import StorageError, TransientError, UsageError
from pipeline.events import Said, Started, StepDone, stage
from pipeline.mapper import Mapper
from pipeline.wording import option

COARSE_READERS = 16
"""How many files of coarse curves are read at a time."""


def nearest(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    lens: Lens | None = None,
    effort: Effort | None = None,
    **options: Unpack[NearestKeywords],
) -> Neighbours:
    """Finds the nearest datasets of one dataset, or of each, by their EMD.

    The result is exactly that of computing all distances, and then sorting them. Equal distances
    are in the order of `names`. With weights below zero there are no bounds, so that all distances
    are computed.

    Args:
        catalogue: Where the datasets are.
        names: The datasets to look among; none for the whole snapshot, to which `near` is added if
            it is an earlier version or a window of days.
        lens: Weighs the neurons. With negative weights there are no error bars.
        effort: How to compute; None for this process with all its cores.
        **options: The options of `NearestOptions`. Without `spec` it is the one that the names
            share, or the default.

    Returns:
        The nearest, with what `compare` knows of each pair. `q` is adjusted for these pairs alone.

    Raises:
        NotFound: If a name is unknown.
        SpecMismatch: If a dataset is only known under other specs; the message names the fields.
        UsageError: If names are given and `near` is none of them, or neither it nor `top` is given.
            For fewer than two datasets, an unknown layer, a lens on other neurons, and a device
            that is not there.
    """
    effort = effort or Effort()
    require_device(effort.device)
    chosen = NearestOptions(**options)
    names = with_near(catalogue, names, chosen.near, at=chosen.at, spec=chosen.spec)
    wanted = Selection.of(catalogue, names, chosen.at, chosen.spec)
    if chosen.near is None and chosen.top is None:
        raise UsageError(
            f"give {option('near')}, a dataset whose neighbours are looked for, or "
            f"{option('top')}, how many to look for; compare compares all pairs"
        )
    layers = None if chosen.layer is None else (chosen.layer,)
    job = wanted.job(catalogue, layers, fd=False, lens=lens, error_bars=chosen.error_bars)
    of = tuple(wanted.versions) if chosen.near is None else (chosen.near,)
    pairs = len(of) * (len(wanted.versions) - 1) // (1 if chosen.near else 2)
    try:
        with effort.open_engine(pairs * job.values) as engine:
            threads = None if engine.in_process else 1
            job = replace(job, memory=effort.memory, threads=threads, device=effort.device)
            return _Search(wanted, job, effort, engine).run(of, chosen.top, pairs)
    finally:
        layer_cache.clear_cache()


@dataclass(frozen=True, eq=False)
class _Search:
    """One search: what is compared, with what, and where."""

    wanted: Selection
    job: Job
    effort: Effort
    engine: Mapper

    @cached_property
    def members(self) -> tuple[Member, ...]:
        return tuple(self.wanted.versions.items())

    def run(self, of: Sequence[str], top: int | None, pairs: int) -> Neighbours:
        names = tuple(self.wanted.versions)
        own = [names.index(name) for name in of]
        plain, blocks = replace(self.job, error_bars=False), dict[Edge, Mapping[str, Floats]]()
        keeps = not self.job.error_bars  # else the columns of what is found are computed later
        most = len(names) - 1 if top is None else top
        bounded = most < len(names) - 1 and not self._has_signed_lens
        least = self._least(own) if bounded else np.zeros((len(own), len(names)))

        def compute(asked: Sequence[Edge]) -> Mapping[Edge, float]:
            fresh = {}
            for pair, block in self._compared(plain, asked):
                fresh[pair] = float(block["emd"][-1])
                if keeps:  # a copy, since a view would keep the whole tile
                    blocks[pair] = {name: values.copy() for name, values in block.items()}
            return fresh

        found = search(least, own, most if bounded else len(names), compute)
        near = zip(own, found.nearest, strict=True)
        edges = tuple((i, j) for i, others in near for j in others[:most])
        shown = list(dict.fromkeys(pair_of(i, j) for i, j in edges))
        known = {pair: blocks[pair] for pair in shown} if keeps else self._barred(shown)
        computed, undefined = _counted(least, own, found.exact)
        lens = self.job.lens
        return Neighbours(
            names,
            tuple(of),
            edges,
            self._columns(edges, known),
            self.job.layers,
            self.job.spec.bins,
            self.wanted.members,
            self.wanted.spec_digest,
            pairs,
            computed,
            undefined,
            UNIFORM if lens is None else lens.name,
            lens.digest if lens else "",
            self.job.method,
        )

    @property
    def _has_signed_lens(self) -> bool:
        job = self.job
        return job.lens is not None and job.lens.has_negative_weight(job.layers)

    def _barred(self, pairs: Sequence[Edge]) -> dict[Edge, Mapping[str, Floats]]:
        """Computes pairs with error bars. What that needs of folds is kept if it can be."""
        progress = self.effort.progress
        if self.effort.keep:
            shown = sorted({number for pair in pairs for number in pair})
            versions = dict(self.members[number] for number in shown)
            count_folds_if_kept(versions, self.job, self.engine, progress)
        known = dict(self._compared(self.job, pairs))
        return {pair: known[pair] for pair in pairs}

    def _columns(
        self, edges: Sequence[Edge], known: Mapping[Edge, Mapping[str, Floats]]
    ) -> dict[str, Floats]:
        """Returns the columns of edges from those of pairs; q is over the pairs, each once."""
        at = {pair: number for number, pair in enumerate(known)}
        rows = [at[pair_of(i, j)] for i, j in edges]
        columns = {
            name: np.array([block[name] for block in known.values()])
            .reshape(len(known), self.job.planes)
            .T
            for name in self.job.columns
        }
        if self.job.error_bars:
            columns["q"] = np.array([adjusted(p) for p in columns["p"]])
        return {name: values[:, rows] for name, values in columns.items()}

    def _least(self, own: Sequence[int]) -> Floats:
        """Returns how far the rows are from all datasets at least, by the last plane."""
        job, size = self.job, len(self.members)
        kept = self._coarse()
        sums, total = np.zeros((len(own), size)), 0.0
        for layer in job.layers:
            weights = job.weights(layer)
            total += float(weights.sum())
            if not weights.any():
                continue
            every = together([of.read(layer) for of in kept])
            mine = every if len(own) == size else together([kept[i].read(layer) for i in own])
            sums += least_distances(mine, every, weights, job.spec.bins, threads=job.threads)
        if not total > 0:
            return np.full_like(sums, np.nan)
        sums /= total  # in place: of all pairs it is large
        return sums

    def _coarse(self) -> list[KeptCoarse]:
        """Returns the coarse curves of all datasets. Those that are not kept yet are made."""
        spec, root = self.job.spec, self.job.root
        countings = [Counting(root, spec, name, version) for name, version in self.members]
        with ThreadPoolExecutor(COARSE_READERS, "coarse") as pool:
            found = list(
                pool.map(lambda each: find_coarse(each, discard=self.effort.keep), countings)
            )
        missing = {
            each.version.dna: each
            for each, kept in zip(countings, found, strict=True)
            if kept is None
        }
        made = dict(self._made(list(missing.values())))
        return [
            KeptCoarse(made[each.version.dna], each) if kept is None else kept
            for each, kept in zip(countings, found, strict=True)
        ]

    def _made(self, missing: Sequence[Counting]) -> Iterator[tuple[str, bytes]]:
        """Makes coarse curves, and keeps them if the catalogue is to be written and can be."""
        if not missing:
            return
        keep = self.effort.keep
        started = Started(len(missing), len(missing), unit="DNAs", step="coarse curves")
        with (
            stage(self.effort.progress, started),
            ThreadPoolExecutor(min(map(self.job.loaders, self.job.layers)), "coarse") as pool,
        ):
            if self.engine.in_process:
                encoded = pool.map(_encoded, missing)
            else:
                encoded = self.engine.map(_encoded, missing, memory=self.job.reader_bytes)
            for counting, data in encoded:
                try:
                    if keep:
                        storage.create(counting.coarse_uri, data)
                except TransientError:
                    raise
                except StorageError as error:
                    keep = False
                    self.effort.progress(
                        Said(f"coarse curves are not kept for the next time: {error}")
                    )
                yield counting.version.dna, data
                self.effort.progress(StepDone(1))

    def _compared(
        self, job: Job, pairs: Sequence[Edge]
    ) -> Iterator[tuple[Edge, Mapping[str, Floats]]]:
        """Computes pairs, and others in their tiles; yields (planes,) of each column of each."""
        made = cut_pairs(job, self.members, pairs)
        place = {name: number for number, (name, _) in enumerate(self.members)}
        started = Started(sum(tile.pairs for tile in made), len(made), unit="pairs", step="tiles")
        with stage(self.effort.progress, started):
            for tile, block in self.engine.map(_computed, made, memory=job.task_bytes):
                sides = ([place[name] for name, _ in side] for side in (tile.a, tile.b))
                for (row, i), (column, j) in product(*map(enumerate, sides)):
                    if i < j or (i > j and not tile.square):  # a square has each pair twice
                        known = {of: values[:, row, column] for of, values in block.items()}
                        yield pair_of(i, j), known
                self.effort.progress(StepDone(tile.pairs))


def _counted(least: Floats, own: Sequence[int], exact: Mapping[Edge, float]) -> tuple[int, int]:
    """Counts the pairs of the rows that have a computed distance, and those that have none."""
    row = np.full(least.shape[1], -1)
    row[list(own)] = range(len(own))
    pairs = np.array(list(exact), int).reshape(-1, 2)
    nan = np.isnan(np.fromiter(exact.values(), float, len(exact)))
    computed = ~nan & (row[pairs] >= 0).any(axis=1)
    lost = np.isnan(least)
    for i, j in (pairs[nan].T, pairs[nan, ::-1].T):
        lost[row[i[row[i] >= 0]], j[row[i] >= 0]] = True
    lost[range(len(own)), own] = False
    twice = lost[:, list(own)].sum() // 2  # a pair of two rows is in both
    return int(computed.sum()), int(lost.sum() - twice)


def _encoded(counting: Counting) -> tuple[Counting, bytes]:
    return counting, encode_coarse(counting)


def _computed(tile: Tile) -> tuple[Tile, tile_sums.Block]:
    return tile, tile_sums.compute(tile)
