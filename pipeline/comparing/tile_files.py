"""Commits tiles, each as one object, and reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pyarrow as pa

from pipeline import storage
from pipeline.comparing import tile_sums
from pipeline.comparing.comparison_job import TILE
from pipeline.comparing.tile_sums import Block
from pipeline.comparing.tiles import Tile, folder_of
from pipeline.dna import Floats, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, SourceError


@dataclass(frozen=True)
class TileReceipt:
    """A tile that is committed.

    Attributes:
        digest: Digest of the tile.
        pairs: Number of its pairs.
    """

    digest: str
    pairs: int


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
        storage.create(tile.uri, encode_tile(tile, tile_sums.compute(tile, keeps=True)))
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
