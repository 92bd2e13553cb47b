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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline import storage
from pipeline.catalogue import Version
from pipeline.comparing.comparison_job import Job
from pipeline.spec import digest_of

TILES_FOLDER = "_tiles"
"""Folder below the catalogue's `_work`, whose leftovers `vdna gc` removes."""

STREAMED = 16
"""The most DNAs loaded at a time if those of a layer are not all held. The others are read from
memory once for so many."""

Member = tuple[str, Version]
"""A dataset's name and the version of it."""


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
        few = max(1, min(4, held // 4), min(STREAMED, held // 12))
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
