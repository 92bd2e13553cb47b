"""Gives the bytes of many texts at once, without a Python object for each.

>>> data, bounds = text_bytes(pa.array(["cat", "", "dog"]))
>>> data.tobytes(), bounds.tolist()
(b'catdog', [0, 3, 3, 6])
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def text_bytes(
    texts: pa.StringArray | pa.ChunkedArray,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Returns the bytes of texts and where each begins. Several chunks are copied into one.

    Args:
        texts: N texts, none of them missing.

    Returns:
        The bytes of a buffer that has all texts one after the other, and (N + 1,) the place in it
        where each text begins, and where the last one ends. Both are read-only.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.chunk(0) if texts.num_chunks == 1 else texts.combine_chunks()
    _, offsets, held = texts.buffers()
    data = np.frombuffer(b"" if held is None else held, np.uint8)
    if offsets is None or not len(texts):
        bounds = np.zeros(len(texts) + 1, np.int32)
    else:
        bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data.flags.writeable = bounds.flags.writeable = False
    return data, bounds
