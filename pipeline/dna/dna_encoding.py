"""Encodes files of DNAs, folds, layer Gaussians and partials.

A file has one row per neuron and one row group per layer. `pipeline.dna.dna_file` reads it.

>>> data = encode_dna(dna)                                       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dna.sealed import FileKind, encode_sealed
from pipeline.dna.value import ARROW_TYPES, DNA


def to_table(dna: DNA, fold: int | None = None) -> pa.Table:
    """Makes the rows of a file, one for each neuron of the DNA.

    Args:
        dna: The DNA.
        fold: The value of a column `fold`, for files that hold several folds. None adds none.

    Returns:
        The rows, in the order of the DNA's layers.
    """
    names = [layer for layer in dna.layers for _ in range(dna.spec.tap(layer).neurons)]
    index = [i for layer in dna.layers for i in range(dna.spec.tap(layer).neurons)]
    rows, bins = dna.counts.shape
    offsets = np.arange(0, (rows + 1) * bins, bins, dtype=np.int32)
    columns: dict[str, pa.Array] = {}
    if fold is not None:
        columns["fold"] = pa.array(np.full(rows, fold, np.int32))
    columns["layer"] = pa.array(names, pa.string())
    columns["neuron"] = pa.array(index, pa.int32())
    columns["counts"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(dna.counts.ravel()))
    for name, kind in ARROW_TYPES.items():
        columns[name] = pa.array(getattr(dna, name), kind)
    for name in set(dna.unknown) & columns.keys():
        columns[name] = pa.nulls(rows, columns[name].type)
    if dna.scatter is not None:
        columns["scatter"] = _scatter_column(dna)
    return pa.table(columns)


def to_gaussian_table(dna: DNA) -> pa.Table:
    """Makes the rows of a file of layer Gaussians.

    Args:
        dna: A DNA with scatter matrices.

    Returns:
        For each neuron its mean, and its row of the upper triangle of the layer's scatter matrix.
    """
    table = to_table(dna)
    return table.select(["layer", "neuron", "mean", "scatter"])


def _scatter_column(dna: DNA) -> pa.Array:
    lengths = [i for layer in dna.layers for i in range(dna.spec.tap(layer).neurons, 0, -1)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(dna.scatter))


def dna_metadata(dna: DNA, **extra: object) -> dict[str, Any]:
    """Makes the metadata of a file of this DNA.

    Args:
        dna: The DNA, of which the metadata states the spec and the totals.
        **extra: Whatever else the file states.

    Returns:
        The metadata, of JSON's types.
    """
    return {
        "spec": dna.spec.to_json(),
        "spec_digest": dna.spec.digest,
        "images": dna.images,
        "failed": dna.failed,
        "positions": {tap.name: tap.positions for tap in dna.spec.taps},
        "numerics": [
            {"numerics": numerics.to_json(), "images": count} for numerics, count in dna.numerics
        ],
        **({"unknown": list(dna.unknown)} if dna.unknown else {}),
        **extra,
    }


def encode_layers(kind: str, metadata: Mapping[str, Any], layers: Iterable[pa.Table]) -> bytes:
    """Makes a file of a DNA's layers in memory; the same input gives the same bytes.

    Args:
        kind: `dna`, `folds`, `layer_gaussians` or `partial`.
        metadata: What `dna_metadata` made.
        layers: The rows of each layer, in the order of the spec.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: There are no layers.
    """
    rest = iter(layers)
    first = next(rest, None)
    if first is None:
        raise ValueError(f"a {kind} file needs at least one layer")
    return encode_sealed(
        FileKind(kind),
        metadata,
        chain([first], rest),
        first.schema,
        compression_level=1,
        use_dictionary=False,
        column_encoding=_encodings(first),
        data_page_size=4 * 2**20,
    )


def _encodings(table: pa.Table) -> dict[str, str]:
    """Returns the encodings of list columns: differences for counts, byte planes for floats."""
    wanted = {"counts": "DELTA_BINARY_PACKED", "scatter": "BYTE_STREAM_SPLIT"}
    return {f"{c}.list.element": wanted[c] for c in table.column_names if c in wanted}


def encode_dna(dna: DNA, kind: str = "dna", **extra: object) -> bytes:
    """Makes the file of a DNA in memory.

    Args:
        dna: The DNA.
        kind: The kind of file.
        **extra: What its metadata states beside the DNA's own.

    Returns:
        The bytes of the file.
    """
    tables = (to_table(dna.select([layer])) for layer in dna.layers)
    return encode_layers(kind, dna_metadata(dna, **extra), tables)
