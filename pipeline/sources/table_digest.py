"""Hashes the rows of a table, whatever pieces they are held in.

>>> table_digest("pets", pa.table({"name": ["cat", "dog"]}))          # doctest: +SKIP
'9f2c...'
"""

from __future__ import annotations

import hashlib

import numpy as np
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
        values = table[name]
        if pa.types.is_int64(values.type):
            found.update(values.to_numpy().astype("<i8", copy=False).data)
            continue
        missing = values.is_null().to_numpy() if values.null_count else None
        data, bounds = text_bytes(values if missing is None else pc.fill_null(values, ""))
        lengths = np.diff(bounds)
        if missing is not None:
            lengths[missing] = -1
        found.update(lengths.astype("<i4", copy=False).data)
        found.update(data[bounds[0] : bounds[-1]].data)
    return found.hexdigest()[:32]
