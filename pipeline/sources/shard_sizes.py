"""Chooses how many images new shards and their cells get.

>>> NewShardSizes().shard(candidates=100_000, image_bytes=110_000)
3128
>>> NewShardSizes().shard(candidates=100_000, image_bytes=4_000_000)
128

A shard that is lost with its node is counted again from its beginning. So a shard should not take
long, whatever the network and however large the images are. Earlier builds tell what a worker takes
for an image. Before there is any, the bytes of the images bound a shard.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.spec import FOLDS

MAX_SHARD_IMAGES = 4096

MIN_SHARD_IMAGES = 64

SMALL_SHARD_IMAGES = 128
"""The size of shards if folds have up to so many images, unless such a shard takes too long. So a
fold is one shard: each shard costs requests, and tables of counts that are added."""

SHARD_MULTIPLE = 8
"""New shards are multiples of this: whole micro-batches of a CPU."""

SHARD_SECONDS = 60.0
"""How long a worker should have a shard."""

FIRST_SHARD_BYTES = 2**29
"""How many bytes the images of a shard have at most, about, if nothing was measured before. One
core reads and decodes so many in about a minute, of JPEGs with 110 kB that take 15 ms each."""

USUAL_CELL_IMAGES = 128
"""How many members a cell has, if their images are not small."""

CELL_SHARE = 0.25
"""About the most that the sums of cells may take, as a share of the images' bytes."""


@dataclass(frozen=True)
class ImageSeconds:
    """What a worker takes for an image, in two parts.

    Attributes:
        each: The seconds that are the same for small and large images: the network and the counts.
        per_byte: The seconds for each byte of an image: reading, decoding and resizing.
        usual_bytes: How many bytes the measured images had, on average; 0 if that is not known.
    """

    each: float
    per_byte: float = 0.0
    usual_bytes: float = 0.0

    def of(self, image_bytes: float) -> float:
        """Returns the seconds for an image.

        Args:
            image_bytes: Its size in bytes. 0 if it is not known: then it is taken for one of those
                that were measured.
        """
        return self.each + self.per_byte * self.bytes_of(image_bytes)

    def bytes_of(self, image_bytes: float) -> float:
        """Returns the size of an image in bytes; that of the measured ones if it is not known."""
        return image_bytes if image_bytes > 0 else self.usual_bytes


@dataclass(frozen=True)
class NewShardSizes:
    """What decides the sizes of new shards and of their cells.

    Attributes:
        shard_images: The size of new shards. None takes `default_shard_images`, or less if such a
            shard would take too long.
        image_seconds: What a worker takes for an image. None if it was never measured.
        cell_images: The size of their cells. None takes `default_cell_images`.
        cell_bytes: About how many bytes the sums of a cell take. None makes no cells, unless
            `cell_images` is stated.
    """

    shard_images: int | None = None
    image_seconds: ImageSeconds | None = None
    cell_images: int | None = None
    cell_bytes: int | None = None

    def shard(self, candidates: int, image_bytes: float) -> int:
        """Returns the size of new shards.

        Args:
            candidates: How many candidates the whole source has.
            image_bytes: The size of an image in bytes, on average; 0 if it is not known.
        """
        if self.shard_images is not None:
            return self.shard_images
        usual = default_shard_images(candidates)
        if self.image_seconds is not None:
            return min(usual, images_in(SHARD_SECONDS, self.image_seconds.of(image_bytes)))
        # So many bytes in the place of so many seconds.
        return min(usual, images_in(FIRST_SHARD_BYTES, image_bytes)) if image_bytes > 0 else usual

    def archive_run(self, candidates: int) -> int:
        """Returns how many neighbours of an archive have one fold, at most.

        Neither a speed nor the bytes of the images change it. So a set and its altered copy have
        the same folds, whichever release planned them.

        Args:
            candidates: How many candidates the whole source has.
        """
        return self.shard_images or two_shards_a_fold(candidates)

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

    def cell(self, shard: int, image_bytes: float, former: int = 0) -> int:
        """Returns the size of cells.

        Args:
            shard: The size of the shards.
            image_bytes: The size of an image in bytes, on average; 0 if it is not known. Then the
                images are taken for those that were measured.
            former: The size of the cells of an earlier plan, for images of which nothing is known;
                0 if there is none.
        """
        if self.cell_images is not None:
            return self.cell_images
        if self.cell_bytes is None:
            return shard
        if self.image_seconds is not None:
            image_bytes = self.image_seconds.bytes_of(image_bytes)
        if image_bytes <= 0 and former:
            return former
        return default_cell_images(self.cell_bytes, image_bytes, shard)


def images_in(most: float, each: float) -> int:
    """Returns the size of shards that take no more than some seconds or bytes.

    Args:
        most: The seconds or bytes.
        each: What an image takes of them.

    Returns:
        The size, in whole micro-batches and within the bounds of sizes.
    """
    images = min(MAX_SHARD_IMAGES, most / each) if each > 0 else MAX_SHARD_IMAGES
    return max(MIN_SHARD_IMAGES, int(images) // SHARD_MULTIPLE * SHARD_MULTIPLE)


def default_shard_images(candidates: int) -> int:
    """Returns the size of shards: two shards a fold, or one where the dataset is small.

    Small shards waste work on half-empty micro-batches; large ones lose much work when a worker
    dies. Of up to 2,048 candidates, each of the 16 folds is one shard, unless large groups make a
    fold larger than others.

    Args:
        candidates: How many candidates the whole source has.
    """
    if candidates <= FOLDS * SMALL_SHARD_IMAGES:
        return SMALL_SHARD_IMAGES
    return two_shards_a_fold(candidates)


def two_shards_a_fold(candidates: int) -> int:
    """Returns half the size of a fold, in whole micro-batches and within the bounds of sizes.

    Args:
        candidates: How many candidates the whole source has.
    """
    even = -(-candidates // (2 * FOLDS * SHARD_MULTIPLE)) * SHARD_MULTIPLE
    return min(MAX_SHARD_IMAGES, max(MIN_SHARD_IMAGES, even))


def default_cell_images(cell_bytes: int, image_bytes: float, shard: int = MAX_SHARD_IMAGES) -> int:
    """Returns the size of cells whose sums take at most `CELL_SHARE` of their images' bytes.

    Args:
        cell_bytes: About how many bytes the sums of a cell take, however many images it has.
        image_bytes: The size of an image in bytes, on average; 0 if it is not known.
        shard: The size of the shards, which a user may choose larger than the planner does. A
            shard of one cell has no sums beside its own.
    """
    images, most = USUAL_CELL_IMAGES, max(shard if image_bytes else 0, MAX_SHARD_IMAGES)
    while images < most and cell_bytes > CELL_SHARE * images * image_bytes:
        images *= 2
    return images
