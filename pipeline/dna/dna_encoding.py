"""Encodes files of DNAs, folds, layer Gaussians and partials.

A file has one row per neuron and one row group per layer. `pipeline.dna.dna_file` reads it.

>>> data = encode_dna(dna)                                       # doctest: +SKIP
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.dna.neuron_rows import to_table
from pipeline.dna.sealed import FileKind, SealedWriter
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


LONG_COLUMN = 1 << 30
"""The most bytes of a column of long values that are written in pages of many values."""


class LayersWriter:
    """Makes a file of a DNA's layers in memory; it holds the rows of one layer at a time.

    The same input gives the same bytes.
    """

    def __init__(self, kind: str) -> None:
        """Begins a file.

        Args:
            kind: `dna`, `folds`, `layer_gaussians` or `partial`.
        """
        self._kind = kind
        self._sink = io.BytesIO()
        self._writer: SealedWriter | None = None

    def add(self, rows: pa.Table) -> None:
        """Adds the rows of the next layer in the order of the spec."""
        if self._writer is None:
            self._writer = SealedWriter(
                self._sink,
                FileKind(self._kind),
                rows.schema,
                compression_level=1,
                use_dictionary=False,
                column_encoding=_encodings(rows),
                data_page_size=4 * 2**20,
                **_batches(rows),
            )
        self._writer.write(rows)

    def finish(self, metadata: Mapping[str, Any]) -> bytes:
        """Ends the file.

        Args:
            metadata: What `dna_metadata` made.

        Returns:
            The bytes of the file.

        Raises:
            ValueError: There are no layers.
        """
        if self._writer is None:
            raise ValueError(f"a {self._kind} file needs at least one layer")
        self._writer.seal(metadata)
        self._writer.close()
        return self._sink.getvalue()


def encode_layers(kind: str, metadata: Mapping[str, Any], layers: Iterable[pa.Table]) -> bytes:
    """Makes a file of a DNA's layers in memory; see `LayersWriter`.

    Args:
        kind: The kind of file.
        metadata: What `dna_metadata` made.
        layers: The rows of each layer, in the order of the spec.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: There are no layers.
    """
    writer = LayersWriter(kind)
    for rows in layers:
        writer.add(rows)
    return writer.finish(metadata)


def _batches(table: pa.Table) -> dict[str, int]:
    """Returns how many values are written before a page ends: one if some may be very long."""
    long = (c for c in table.itercolumns() if pa.types.is_large_binary(c.type))
    return {"write_batch_size": 1} if any(c.nbytes > LONG_COLUMN for c in long) else {}


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
