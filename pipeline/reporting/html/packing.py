"""Packs distances into short texts for a page."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.dna import Floats

EXACT_DATASETS = 60
"""Distances of up to so many datasets are packed as they are; those of more are rounded."""

BITS = 12
"""The significant bits that rounding keeps, which are more than three decimal digits."""

BITS_OF_A_TEST = 7
"""The significant bits that rounding keeps of p and q."""


def pack(distances: Floats, bits: int = BITS, borders: Sequence[float] = ()) -> str:
    """Packs the upper triangle of a matrix into base64.

    The values are float32, little-endian. All first bytes stand together, then all second bytes,
    and so on, because bytes of equal weight compress well; then zlib. The page's script undoes it
    in `unpack`.

    Args:
        distances: (D, D), symmetric.
        bits: How many significant bits are kept if there are more than `EXACT_DATASETS` datasets.
        borders: Values that rounding must not cross.

    Returns:
        The text. It is empty if no distance is known.
    """
    exact = distances[np.triu_indices(len(distances), 1)]
    if not np.isfinite(exact).any():
        return ""
    upper = exact.astype("<f4")
    if len(distances) > EXACT_DATASETS:
        upper = _cut(upper, bits)
    for border in borders:
        wide = upper.astype(np.float64)
        upper = np.where((exact >= border) & (wide < border), _least_from(border), upper)
        upper = np.where((exact < border) & (wide >= border), _most_below(border), upper)
    planes = upper.view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)).decode()


def _least_from(border: float) -> np.float32:
    """Returns the smallest float32 that is not below the border."""
    near = np.float32(border)
    return near if float(near) >= border else np.nextafter(near, np.float32(np.inf))


def _most_below(border: float) -> np.float32:
    """Returns the largest float32 that is below the border."""
    near = np.float32(border)
    return near if float(near) < border else np.nextafter(near, np.float32(-np.inf))


def _cut(values: Any, bits: int) -> Any:
    """Rounds values to a number of significant bits. NaN stays NaN."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(fraction * 2**bits) / 2**bits, exponent).astype("<f4")
