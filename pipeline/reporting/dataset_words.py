"""Says how a dataset lies among the others of a matrix, and what is known of its images.

>>> print(place_among(matrix, "blurred"))                    # doctest: +SKIP
Of 10 other datasets the nearest is darker (14.2 bins, 95% interval 12.0 to 15.6), the farthest
retina (33.1 bins, 95% interval 30.2 to 35.0).
"""

from __future__ import annotations

import numpy as np

from pipeline.catalogue import Version
from pipeline.comparing import Matrix, neighbours
from pipeline.reporting.conclusions import (
    ALIKE,
    DIFFERENT,
    format_number,
    numbers_alike,
    verdicts,
)
from pipeline.reporting.window_words import window_days
from pipeline.sources import label_of
from pipeline.wording import some_of


def place_among(matrix: Matrix, name: str) -> str:
    """Says which datasets are nearest to one and farthest from it, and which look the same.

    What cannot be told apart is named first; the nearest and the farthest are those of the rest.

    Args:
        matrix: The matrix. Its last plane is looked at.
        name: The dataset.

    Returns:
        One to three sentences.
    """
    layer, i = matrix.planes[-1], matrix.names.index(name)
    values, verdict = matrix.corrected(layer), verdicts(matrix, layer)[i]
    others = neighbours(values, i)
    if not others:
        return f"{name} is at no distance that is defined from any other dataset."
    alike = [matrix.names[j] for j in others if verdict[j] == ALIKE]
    apart = [j for j in others if verdict[j] != ALIKE]
    sentences = []
    if alike:
        all_of = "any other dataset, such as " if not apart and len(alike) > 1 else ""
        sentences.append(f"{name} cannot be told apart from {all_of}{some_of(alike)}.")
    if len(others) == 1 and apart:
        sentences.append(f"The one distance that is known is that to {_away(matrix, i, apart[0])}.")
    elif len(apart) == 1 and verdict[apart[0]] == DIFFERENT:
        sentences.append(f"Only {_away(matrix, i, apart[0])} is told apart.")
    elif len(apart) == 1:
        sentences.append(f"All but {_away(matrix, i, apart[0])} are tested.")
    elif apart:
        near, far = _away(matrix, i, apart[0]), _away(matrix, i, apart[-1])
        of = f"Of the other {len(apart):,}" if alike else f"Of {len(others):,} other datasets"
        sentences.append(f"{of} the nearest is {near}, the farthest {far}.")
    if len(apart) > 1 - (len(others) == 1) and not (verdict[apart] == DIFFERENT).any():
        sentences.append("Whether they differ is not tested.")
    return " ".join(sentences)


def _away(matrix: Matrix, i: int, j: int) -> str:
    """Names a dataset and its distance, with the 95% interval if that is known."""
    layer = matrix.planes[-1]
    value = float(matrix.corrected(layer)[i, j])
    low, high = (float(matrix.of(layer, column)[i, j]) for column in ("low", "high"))
    told = f"{format_number(value)} bins"
    if matrix.is_corrected(layer)[i, j] and np.isfinite(low) and np.isfinite(high):
        distance, least, most = numbers_alike(value, low, high)
        told = f"{distance} bins, 95% interval {least} to {most}"
    return f"{matrix.names[j]} ({told})"


def division_of(version: Version) -> str:
    """Says what a version is a part of, or by what it is divided into parts; or nothing."""
    if days := window_days(version):
        return f"It is a window of {version.part_of}: {days}."
    if version.part_of:
        return (
            f"It is the part of {version.part_of} where {label_of(version.by)} is {version.value}."
        )
    if version.by:
        return f"It is divided into parts by {label_of(version.by)}."
    return ""
