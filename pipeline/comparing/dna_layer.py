"""Holds what is compared of one DNA in one layer.

>>> layer = DnaLayer.of(dna.select(["blocks.3"]), points)              # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.comparing.fold_points import FoldPoints
from pipeline.comparing.gaussians import variance
from pipeline.dna import DNA, Floats, Ints


@dataclass(frozen=True, eq=False)
class DnaLayer:
    """What is compared of a DNA in one layer of C neurons.

    Attributes:
        counts: (C, B) activations in each bin.
        underflow: (C,) activations below the first bin.
        overflow: (C,) activations above the last bin.
        means: (C,) means of spatially averaged activations; NaN if they are not known.
        variances: (C,) variances of them, or NaN.
        points: Counts of its folds.
    """

    ARRAYS: ClassVar = ("counts", "underflow", "overflow", "means", "variances")

    counts: Ints
    underflow: Ints
    overflow: Ints
    means: Floats
    variances: Floats
    points: FoldPoints

    @classmethod
    def of(cls, dna: DNA, points: FoldPoints) -> DnaLayer:
        """Takes from a DNA what is compared.

        Args:
            dna: A DNA of one layer.
            points: Counts of its folds.

        Returns:
            The layer.
        """
        known = dna.images >= 2 and "mean" not in dna.unknown
        unknown = np.full(len(dna.counts), np.nan)
        means, variances = (dna.mean, variance(dna)) if known else (unknown, unknown)
        return cls(dna.counts, dna.underflow, dna.overflow, means, variances, points)
