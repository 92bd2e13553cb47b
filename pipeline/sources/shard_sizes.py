"""Chooses how many images new shards and their cells get.

>>> NewShardSizes().shard(candidates=100_000)
3128
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.spec import FOLDS

MAX_SHARD_IMAGES = 4096

MIN_SHARD_IMAGES = 64

SHARD_MULTIPLE = 8
"""New shards are multiples of this: whole micro-batches of a CPU."""

USUAL_CELL_IMAGES = 128
"""How many members a cell has, if their images are not small."""

CELL_SHARE = 0.25
"""About the most that the sums of cells may take, as a share of the images' bytes."""


@dataclass(frozen=True)
class NewShardSizes:
    """What decides the sizes of new shards and of their cells.

    Attributes:
        shard_images: The size of new shards. None takes `default_shard_images`.
        most_shard_images: Bounds the size of new shards where `shard_images` does not state it.
        cell_images: The size of their cells. None takes `default_cell_images`.
        cell_bytes: About how many bytes the sums of a cell take. None makes no cells, unless
            `cell_images` is stated.
    """

    shard_images: int | None = None
    most_shard_images: int | None = None
    cell_images: int | None = None
    cell_bytes: int | None = None

    def shard(self, candidates: int) -> int:
        """Returns the size of new shards, for a number of candidates of the whole source."""
        most = self.most_shard_images or MAX_SHARD_IMAGES
        return self.shard_images or min(most, default_shard_images(candidates))

    @property
    def makes_cells(self) -> bool:
        """Whether the sums of cells are kept at all."""
        return self.cell_images is not None or self.cell_bytes is not None

    def stated_cell(self, size: int) -> int:
        """Returns what a new shard states as the size of its cells; 0 if it has none.

        Args:
            size: What `cell` returned.
        """
        return size if self.makes_cells else 0

    def cell(self, shard: int, image_bytes: float) -> int:
        """Returns the size of cells.

        Args:
            shard: The size of the shards.
            image_bytes: The size of an image in bytes, on average.
        """
        if self.cell_images is not None:
            return self.cell_images
        if self.cell_bytes is None:
            return shard
        return default_cell_images(self.cell_bytes, image_bytes)


def default_shard_images(candidates: int) -> int:
    """Returns the size of shards for a number of candidates: two shards a fold, within bounds.

    Small shards waste work on half-empty micro-batches; large ones lose much work when a worker
    dies. With fewer than 1,000 candidates the 16 folds make shards smaller still.
    """
    even = -(-candidates // (2 * FOLDS * SHARD_MULTIPLE)) * SHARD_MULTIPLE
    return min(MAX_SHARD_IMAGES, max(MIN_SHARD_IMAGES, even))


def default_cell_images(cell_bytes: int, image_bytes: float) -> int:
    """Returns the size of cells whose sums take at most `CELL_SHARE` of their images' bytes.

    Args:
        cell_bytes: About how many bytes the sums of a cell take, however many images it has.
        image_bytes: The size of an image in bytes, on average.
    """
    images = USUAL_CELL_IMAGES
    while images < MAX_SHARD_IMAGES and cell_bytes > CELL_SHARE * images * image_bytes:
        images *= 2
    return images
