"""The shape of a build's plan: folds, shards, sums and files, as the product makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import ceil, expm1, log, log2

import numpy as np
import pyarrow as pa

from benchmarks.scale.case import Points
from pipeline.counting.reduction import tree
from pipeline.sources.blocks import BLOCK_IMAGES, MANY, even_pieces
from pipeline.sources.cell_cuts import new_cells
from pipeline.sources.entries_file import FOOTERS_KEPT
from pipeline.spec import FOLDS


def interpolated(points: Points, at: float) -> float:
    """A value between measured points, and in the line of the nearest two outside of them."""
    x, y = np.array(points, float).T
    right = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return float(max(0.0, y[right] + (at - x[right]) * slope))


def by_logarithm(points: Points, images: float) -> float:
    """The same, in the logarithm of the number of images."""
    return interpolated([(log2(at), value) for at, value in points], log2(max(1.0, images)))


def sizes_of_folds(images: int) -> list[int]:
    """The images of each fold. From 128 on, folds of real names differ a little by chance."""
    sizes = (images // FOLDS + (fold < images % FOLDS) for fold in range(FOLDS))
    return [size for size in sizes if size]


def shards_of_folds(images: int, shard_images: int) -> list[int]:
    """How many shards each fold has.

    Each block of a large source has shards of its own. The sizes of blocks are as if each image
    ended one by chance, so a fold of a block has m images on average, and 1 / (1 - exp(-s / m))
    shards of s.
    """
    if images < MANY:
        return [ceil(size / shard_images) for size in sizes_of_folds(images)]
    of_block = BLOCK_IMAGES / FOLDS
    each = 1 / -expm1(-shard_images / of_block)
    return [ceil(size / of_block * each) for size in sizes_of_folds(images)]


def whole_shards(images: int, shard_images: int) -> tuple[int, int]:
    """The images of the largest shards, and how many are as large, but for an image."""
    size = min(shard_images, ceil(images / FOLDS))
    return size, sum((of_fold + (size > 1)) // size for of_fold in sizes_of_folds(images))


@cache
def passed_of_a_shard(images: int, cell: int, micro_batch: int) -> int:
    """The images of a shard that a network sees, with the empty ones that fill its micro-batches.

    Each cell ends a micro-batch. The images lie in one folder, so no cell ends earlier.
    """
    cells = new_cells(np.zeros(images, np.int32), cell) or (images,)
    return sum(ceil(one / micro_batch) for one in cells) * micro_batch


DRAWN_FOLDS = 2048
"""How many sizes stand for those of the folds of blocks."""


@cache
def passed_of_blocks(shard_images: int, cell: int, micro_batch: int) -> float:
    """The same for each image of a source that is planned by blocks, which is 1 or more.

    The folds of blocks have any size; see `shards_of_folds`.
    """
    images = passed = 0
    for number in range(DRAWN_FOLDS):
        size = ceil(-log(1 - (number + 0.5) / DRAWN_FOLDS) * BLOCK_IMAGES / FOLDS)
        each = next(even_pieces(pa.table({"": pa.nulls(size)}), shard_images)).num_rows
        whole, rest = divmod(size, each)
        images += size
        passed += whole * passed_of_a_shard(each, cell, micro_batch)
        passed += passed_of_a_shard(rest, cell, micro_batch)
    return passed / images


def passed_images(images: int, shard_images: int, cell: int, micro_batch: int) -> float:
    """The images that a network sees of all shards, with the empty ones."""
    if images >= MANY:
        return images * passed_of_blocks(shard_images, cell, micro_batch)
    total = 0
    for size in sizes_of_folds(images):
        whole, rest = divmod(size, shard_images)
        total += whole * passed_of_a_shard(shard_images, cell, micro_batch)
        total += passed_of_a_shard(rest, cell, micro_batch)
    return total


def entries_files(images: int, shard_images: int, rows: float) -> int:
    """How many files hold the candidates: one ends with the shard that makes it long enough."""
    files = held = 0
    for size in sizes_of_folds(images):
        left = size
        while left:
            taken = min(left, shard_images * ceil((rows - held) / shard_images))
            left, held = left - taken, held + taken
            if held >= rows:
                files, held = files + 1, 0
    return files + (held > 0)


@cache
def sums_of_a_fold(shards: int) -> tuple[tuple[int, ...], int]:
    """The sums of each level of the product's tree, and the objects that it ends in."""
    levels, left = tree("", [(str(number), ()) for number in range(shards)])
    return tuple(map(len, levels)), len(left)


def sums_of(shards: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The sums of each level, of all folds side by side, and how many objects are left."""
    total: Counter[int] = Counter()
    left = 0
    for count in shards:
        levels, remaining = sums_of_a_fold(count)
        total.update(dict(enumerate(levels)))
        left += remaining
    return tuple(total[level] for level in sorted(total)), left


def footers_read(shards: int, workers: int, files: int) -> float:
    """How many footers of entries files are read, as each worker comes to shards at random.

    Up to `FOOTERS_KEPT` files, a worker reads each file's footer once at most. Of more files, the
    footer of the next shard is one of those that are kept by chance.
    """
    kept = min(files, FOOTERS_KEPT)
    first = workers * kept * (1 - (1 - 1 / kept) ** (shards / workers))
    return min(shards, first + shards * (1 - kept / files))
