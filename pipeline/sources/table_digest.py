"""Hashes the rows of a table, whatever pieces they are held in.

>>> table_digest("pets", pa.table({"name": ["cat", "dog"]}))          # doctest: +SKIP
'9f2c...'
"""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.text_columns import text_bytes


def table_digest(kind: str, table: pa.Table) -> str:
    """Returns a digest of a table's rows, in their order.

    The sha256 covers the kind, the names of the columns, the number of rows, and for each column
    its values: of integers 8 bytes each, and of texts the length of each and then their bytes, all
    little-endian. The length of a missing text is -1.

    Args:
        kind: What the rows are, so that equal rows of two kinds differ.
        table: Columns of int64, or of text. Numbers have no missing values.

    Returns:
        128 bits as hex.
    """
    found = hashlib.sha256(f"{kind}\0{len(table.column_names)}\0{table.num_rows}\0".encode())
    for name in table.column_names:
        found.update(f"{name}\0".encode())
        values = table[name].combine_chunks()
        if pa.types.is_int64(values.type):
            found.update(values.to_numpy().astype("<i8").tobytes())
            continue
        lengths = pc.binary_length(values)
        if values.null_count:
            lengths = pc.fill_null(lengths, -1)
        lengths = lengths.to_numpy()
        found.update(lengths.astype("<i4").tobytes())
        found.update(_text(values))
    return found.hexdigest()[:32]


def _text(texts: pa.StringArray) -> memoryview:
    """Returns the bytes of all texts, one after the other."""
    if texts.null_count:
        texts = pc.fill_null(texts, "")
    data, bounds = text_bytes(texts)
    return data[bounds[0] : bounds[-1]].data
