"""Keeps, for each neuron, the images with the largest spatial means.

>>> top = TopImages(ExemplarSettings(8), spec, order)          # doctest: +SKIP
>>> top.add(means, np.arange(8))                               # (8, neurons) float64
>>> top.named(names).table                                     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.dna import EXEMPLAR_ROWS_SCHEMA, Exemplars, ExemplarSettings, Floats, Ints
from pipeline.spec import Spec


class TopImages:
    """The largest reactions to a growing number of images, which are known by number.

    Args:
        settings: How many images of which neurons to keep.
        spec: The spec that is counted by.
        order: (images,) The place of each image in the order of their names, which settles ties.
    """

    def __init__(self, settings: ExemplarSettings, spec: Spec, order: Ints) -> None:
        self._settings = settings
        self._spec = spec
        self._neurons = settings.neurons(spec)
        shape = len(self._neurons), settings.number
        self._reactions = np.full(shape, -np.inf, np.float32)
        self._images = np.full(shape, -1, np.int64)
        self._order = order

    def add(self, means: Floats, images: Ints) -> None:
        """Looks at more images.

        Args:
            means: Spatial means (B, N); those that are not finite are left out.
            images: The numbers of the images (B,).
        """
        with np.errstate(over="ignore"):
            seen = means[:, self._neurons].astype(np.float32) + np.float32(0)  # no -0.0
        _insert(seen, images, self._order, self._reactions, self._images)

    def named(self, names: Sequence[tuple[str, str]]) -> Exemplars:
        """Returns what is kept, with the images' names.

        Args:
            names: The uri and member of each image, by its number.

        Returns:
            The exemplars.
        """
        filled = self._images >= 0
        images = self._images[filled]
        neurons = np.broadcast_to(self._neurons[:, None], filled.shape)[filled]
        columns: dict[str, Any] = {
            "neuron": neurons.astype(np.int32),
            "reaction": self._reactions[filled],
            "uri": [names[image][0] for image in images],
            "member": [names[image][1] for image in images],
        }
        return Exemplars(self._settings, self._spec, pa.table(columns, schema=EXEMPLAR_ROWS_SCHEMA))


def name_order(names: Sequence[tuple[str, str]]) -> Ints:
    """Returns the place of each name among all names sorted."""
    order = np.empty(len(names), np.int64)
    order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return order


@compiled
def _insert(
    seen: NDArray[np.float32],
    images: Ints,
    order: Ints,
    reactions: NDArray[np.float32],
    kept: Ints,
) -> None:
    """Inserts into sorted rows: few images are among the first of any neuron."""
    last = reactions.shape[1] - 1
    for i in range(len(images)):
        for neuron in range(len(reactions)):
            value = seen[i, neuron]
            row, ids = reactions[neuron], kept[neuron]
            if not value >= row[last] or value - value != 0:  # smaller, or not finite
                continue
            at = last + 1
            while at and (
                ids[at - 1] < 0
                or value > row[at - 1]
                or (value == row[at - 1] and order[images[i]] < order[ids[at - 1]])
            ):
                at -= 1
            for move in range(last, at, -1):
                row[move], ids[move] = row[move - 1], ids[move - 1]
            if at <= last:
                row[at], ids[at] = value, images[i]
