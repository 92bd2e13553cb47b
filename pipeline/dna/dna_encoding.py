"""Encodes files of DNAs, folds, layer Gaussians and partials.

A file has one row per neuron and one row group per layer. `pipeline.dna.dna_file` reads it.

>>> data = encode_dna(dna)                                       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import pyarrow as pa

from pipeline.dna.neuron_rows import to_table
from pipeline.dna.sealed import FileKind, encode_sealed
from pipeline.dna.value import DNA, NOTED


def to_gaussian_table(dna: DNA) -> pa.Table:
    """Makes the rows of a file of layer Gaussians.

    Args:
        dna: A DNA with scatter matrices.

    Returns:
        For each neuron its mean, and its row of the upper triangle of the layer's scatter matrix.
    """
    table = to_table(dna)
    return table.select(["layer", "neuron", "mean", "scatter"])


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
        **{field: noted for field in NOTED if (noted := getattr(dna, field)) is not None},
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
