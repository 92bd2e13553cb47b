"""Estimates the distance of two DNAs in memory from their folds, as `compare` does of datasets.

>>> estimate_pair(a, b).whole["low"]                                       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.comparing.fold_curves import FoldCurves
from pipeline.comparing.fold_statistics import PAIR_ESTIMATES, FoldSums, estimates, fold_sums
from pipeline.dna import DNA, Lens


@dataclass(frozen=True)
class PairEstimates:
    """What the folds of two DNAs say of their distance; empty if that is not known.

    Attributes:
        whole: Each of `PAIR_ESTIMATES` for all neurons that were compared.
        layers: The same for each layer.
    """

    whole: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def estimate_pair(a: DNA, b: DNA, lens: Lens | None = None) -> PairEstimates:
    """Computes the error bars of the `emd` of two DNAs, and the test of no difference.

    Args:
        a: One DNA.
        b: The other DNA, of the same spec and layers.
        lens: Weighs the neurons.

    Returns:
        The estimates. They are empty if a DNA holds no folds, or if the lens has weights below
        zero in these layers, and NaN if a DNA has fewer than two folds with images.
    """
    if a.folds is None or b.folds is None or (lens and lens.has_negative_weight(a.layers)):
        return PairEstimates()
    sums, totals = [], []
    for layer in a.layers:
        neurons = a.spec.tap(layer).neurons
        weights = np.ones(neurons) if lens is None else lens.weights_of(layer)
        sides = [
            FoldCurves.of([dna.select([layer])], [folds.read(layer)], [folds.pairs])
            for dna, folds in ((a, a.folds), (b, b.folds))
        ]
        sums.append(fold_sums(sides[0], sides[1], weights))
        totals.append(float(weights.sum()))
    found = estimates(FoldSums.stack(sums, totals, whole=True))
    planes = [
        {name: float(found[name][plane, 0, 0]) for name in PAIR_ESTIMATES}
        for plane in range(len(a.layers) + 1)
    ]
    return PairEstimates(planes[-1], dict(zip(a.layers, planes, strict=False)))
