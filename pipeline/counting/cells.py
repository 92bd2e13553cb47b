"""Keeps the sums of a shard's cells, so that a later build counts only cells that have changed.

    >>> kept = find_cells(work_uri, shard, spec.digest, products)            # doctest: +SKIP
    >>> kept[cell_key(spec.digest, products, cell)]                          # a partial's file

A shard of several cells has an object `cells/<shard key>.parquet` beside its partial, with the
partial of each cell. Nothing is added up from it but the shards that come after: when members of a
shard change, the new shard states what it was, and its worker takes the cells that are the same.
It saves work and nothing else. A cell is named by all that is counted in it, in which order, and is
taken only if it was counted under the worker's own numerics, so what is taken is what would be
counted. For a cell that was joined of others, their sums are taken and added.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline import storage
from pipeline.dna import (
    FileKind,
    Partial,
    SealedFile,
    corrupt_if_unreadable,
    encode_sealed,
    packed_scatter_size,
)
from pipeline.errors import ConservationError, CorruptFile, SourceError
from pipeline.sources import MERGED, Shard, shard_key
from pipeline.spec import LAYER_GAUSSIAN, Numerics, Spec, digest_of

CELLS = FileKind("cells")

CELLS_SCHEMA = pa.schema([("key", pa.string()), ("partial", pa.binary())])
"""The columns of a file of cells: the key of each cell, and its partial's file."""

BYTES_A_BIN = 0.6
"""About what a bin of a cell's histogram takes in its file: 1.7 MB for 3.1 million bins. It grows
slowly with the images: twice as many take a seventh more."""

logger = logging.getLogger(__name__)


def cell_key(spec_digest: str, products: Sequence[str], cell: Shard) -> str:
    """Returns the name of a cell's partial, which says what is counted in it.

    Args:
        spec_digest: Digest of the spec.
        products: What is kept beside the histograms.
        cell: The members of the cell, with its runs, as a shard of their own.
    """
    return digest_of("cell", spec_digest, list(products), cell.head.content)


def cells_uri(work_uri: str, key: str) -> str:
    """Returns where the cells of the shard of that key belong."""
    return storage.join(work_uri, "cells", f"{key}.parquet")


def expected_bytes(spec: Spec, products: Sequence[str]) -> int:
    """Returns about how many bytes the sums of a cell take.

    Args:
        spec: What is counted.
        products: What is kept beside the histograms.
    """
    scatter = packed_scatter_size(spec, spec.layers) if LAYER_GAUSSIAN in products else 0
    return int(BYTES_A_BIN * spec.neurons * spec.bins) + 8 * scatter


def encode_cells(cells: Mapping[str, bytes]) -> bytes:
    """Makes the file of a shard's cells.

    Args:
        cells: The file of each cell's partial, by the cell's key.

    Returns:
        The bytes of the file.
    """
    columns = {"key": list(cells), "partial": list(cells.values())}
    table = pa.table(columns, CELLS_SCHEMA)
    return encode_sealed(CELLS, {}, [table], compression="none", write_statistics=False)


def decode_cells(data: bytes, name: str) -> dict[str, bytes]:
    """Reads the file of a shard's cells.

    Args:
        data: The bytes of the file.
        name: The name of the file in errors.

    Returns:
        The file of each cell's partial, by the cell's key. They are not checked yet.

    Raises:
        CorruptFile: The file is torn, or not what was written.
    """
    table = SealedFile(data, CELLS, name).read(CELLS_SCHEMA)
    with corrupt_if_unreadable(f"{name}: its cells cannot be read"):
        columns = (table[column].to_pylist() for column in CELLS_SCHEMA.names)
        return dict(zip(*columns, strict=True))


def find_cells(
    work_uri: str, shard: Shard, spec_digest: str, products: Sequence[str]
) -> dict[str, bytes]:
    """Looks for the cells of a shard in what is kept of the shards that it was before.

    What is missing or damaged is counted again; the log tells of damage.

    Args:
        work_uri: The folder that partials are written to.
        shard: The shard.
        spec_digest: Digest of the spec.
        products: What is kept beside the histograms.

    Returns:
        The file of each kept cell's partial, by the cell's key. There are also cells that the
        shard's own were joined of.
    """
    wanted = {
        cell_key(spec_digest, products, piece)
        for cell in shard.cell_runs()
        for piece in _pieces_of(cell)
    }
    for origin in shard.origins:
        if origin == MERGED:
            return _former_shards(work_uri, shard, spec_digest, products)
        uri = cells_uri(work_uri, shard_key(origin, spec_digest, products))
        try:
            kept = decode_cells(bytes(storage.read(uri)), uri)
        except SourceError:
            continue
        except CorruptFile as error:
            logger.warning("its images are counted again: %s", error)
            continue
        # It has all cells of its shard. Older ones add only what has changed back.
        return {key: kept[key] for key in wanted & kept.keys()}
    return {}


def runs_to_count(
    work_uri: str, shard: Shard, spec_digest: str, products: Sequence[str]
) -> list[Shard]:
    """Finds the runs of a shard whose sums are not kept; reads which are kept, but no sums.

    A worker counts others, too, if their sums are damaged or were counted under other numerics.

    Args:
        work_uri: The folder that partials are written to.
        shard: The shard.
        spec_digest: Digest of the spec.
        products: What is kept beside the histograms.

    Returns:
        The members of each of these runs as a shard of their own, in order.
    """
    kept = _kept_keys(work_uri, shard, spec_digest, products)

    def is_kept(piece: Shard) -> bool:
        return cell_key(spec_digest, products, piece) in kept

    left: list[Shard] = []
    for cell in shard.cell_runs():
        runs = list(cell.each_run())
        several = range(len(runs), 1, -1)
        first = next((count for count in several if is_kept(cell.first_runs(count))), 0)
        left += [run for run in runs[first:] if not is_kept(run)]
    return left


def _kept_keys(
    work_uri: str, shard: Shard, spec_digest: str, products: Sequence[str]
) -> frozenset[str]:
    """Returns the keys of cells whose sums `find_cells` would read, and of others beside them."""
    for origin in shard.origins:
        if origin == MERGED:
            runs = (run for cell in shard.cell_runs() for run in cell.each_run())
            return frozenset(
                cell_key(spec_digest, products, run)
                for run in runs
                if storage.exists(_former_uri(work_uri, run, spec_digest, products))
            )
        uri = cells_uri(work_uri, shard_key(origin, spec_digest, products))
        try:
            with storage.open_random(uri) as file:
                parquet = SealedFile(file, CELLS, uri).parquet
                with corrupt_if_unreadable(f"{uri}: its keys cannot be read"):
                    return frozenset(parquet.read(columns=["key"])["key"].to_pylist())
        except (SourceError, CorruptFile):
            continue
    return frozenset()


def _pieces_of(cell: Shard) -> Iterator[Shard]:
    """Yields what may be kept of a cell: its first runs, from all to two, and each run."""
    for count in range(len(cell.runs), 1, -1):
        yield cell.first_runs(count)
    yield from cell.each_run()


def former_partial(
    work_uri: str, cell: Shard, spec_digest: str, products: Sequence[str]
) -> Partial:
    """Reads the partial that a cell had when it was a shard of its own.

    Args:
        work_uri: The folder that partials are written to.
        cell: The cell.
        spec_digest: Digest of the spec.
        products: What is kept beside the histograms.

    Returns:
        The partial, under the key of the cell.

    Raises:
        SourceError: It is not there.
        CorruptFile: It is damaged, or another shard's.
    """
    key = shard_key(cell.digest, spec_digest, products)
    uri = _former_uri(work_uri, cell, spec_digest, products)
    partial = Partial.decode(bytes(storage.read(uri)), uri)
    if partial.shards != (key,) or partial.candidates != len(cell.members):
        raise CorruptFile(
            f"{uri} holds {partial.candidates} images of shards {partial.shards}, not "
            f"{len(cell.members)} of the one that it is named for"
        )
    return partial.as_shard(cell_key(spec_digest, products, cell))


def _former_uri(work_uri: str, cell: Shard, spec_digest: str, products: Sequence[str]) -> str:
    """Returns where the partial is that a cell had when it was a shard of its own."""
    key = shard_key(cell.digest, spec_digest, products)
    return storage.join(work_uri, "partials", f"{key}.parquet")


def _former_shards(
    work_uri: str, shard: Shard, spec_digest: str, products: Sequence[str]
) -> dict[str, bytes]:
    """Finds the runs of a shard that were shards of their own; see `find_cells`."""
    found = {}
    for run in (run for cell in shard.cell_runs() for run in cell.each_run()):
        try:
            partial = former_partial(work_uri, run, spec_digest, products)
        except SourceError:
            continue
        except CorruptFile as error:
            logger.warning("its images are counted again: %s", error)
            continue
        found[cell_key(spec_digest, products, run)] = partial.encode()
    return found


def is_cell(data: bytes, key: str, candidates: int, numerics: Numerics) -> bool:
    """Tells whether the partial of a kept cell is what would be counted here.

    Args:
        data: The file of the partial.
        key: The key of the cell.
        candidates: How many members the cell has.
        numerics: The numerics of this worker.

    Returns:
        Whether it is. It is not if it was counted under other numerics, such as by another version
        of a library; or if it is not what its key says, which is logged.
    """
    try:
        partial = Partial.decode(data, f"cell {key}")
    except (CorruptFile, ConservationError) as error:
        why = str(error)
    else:
        if (partial.shards, partial.candidates) == ((key,), candidates):
            return all(its == numerics for its, _ in partial.dna.numerics)
        why = f"cell {key} holds {partial.candidates} images of {partial.shards}, not {candidates}"
    logger.warning("its images are counted again: %s", why)
    return False
