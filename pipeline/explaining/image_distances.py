"""Adds up how far images are from a dataset, over the neurons of all layers.

    >>> found = distances.begin(len(pixels))                              # doctest: +SKIP
    >>> extractor.observe(pixels, lambda at, x: distances.add(found, at, x))  # doctest: +SKIP
    >>> [distances.mean(sums) for sums in found]                          # doctest: +SKIP

The distance of an image is the `emd` of its own DNA, which is never made (see `image_emd`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.catalogue import Catalogue, Version
from pipeline.dna import Floats, Ints, Ranges
from pipeline.errors import CorruptFile, UsageError
from pipeline.explaining.image_emd import LayerEmd
from pipeline.spec import Spec

if TYPE_CHECKING:
    import torch


def layer_counts(
    place: Catalogue, name: str, version: Version, weights: Floats, ranges: Ranges
) -> list[Ints | None]:
    """Reads the histograms of a dataset, to measure the distance of images to it.

    Raises as `Catalogue.load_version` too.

    Args:
        place: The catalogue.
        name: The dataset.
        version: Its version.
        weights: (N,) weights of all neurons.
        ranges: Its ranges.

    Returns:
        (C, bins) counts of each layer, with underflow and overflow in the end bins. None for a
        layer without weight, which is not even read.

    Raises:
        CorruptFile: If the DNA was counted in other ranges.
        UsageError: If the dataset has no histograms.
    """
    spec = place.spec(version.spec)
    slices = dict(zip(spec.layers, spec.slices, strict=True))
    layers = [layer for layer, at in slices.items() if weights[at].any()]
    dna = place.load_version(name, version, layers)
    if "counts" in dna.unknown:
        raise UsageError(f"{name} has no histograms to rank images by")
    found: dict[str, Ints] = {}
    for layer in layers:
        at, own = slices[layer], dna.select([layer])
        if not all(
            np.array_equal(mine, theirs[at])
            for mine, theirs in ((own.low, ranges.low), (own.high, ranges.high))
        ):
            uri = place.uri("dna", spec.digest, name, version.dna)
            raise CorruptFile(f"{uri}: {layer} was counted in other ranges than {ranges.digest}")
        found[layer] = counts = own.counts.copy()
        counts[:, 0] += own.underflow
        counts[:, -1] += own.overflow
    return [found.get(layer) for layer in spec.layers]


def require_finite(counts: Sequence[Ints | None], spec: Spec, weights: Floats, name: str) -> None:
    """Checks that images can be measured to these histograms.

    Args:
        counts: What `layer_counts` returned.
        spec: Their spec.
        weights: (N,) weights of all neurons.
        name: What messages call the dataset.

    Raises:
        UsageError: If a weighed neuron has no finite activation.
    """
    for layer, at, own in zip(spec.layers, spec.slices, counts, strict=True):
        if own is None:
            continue
        nothing = np.flatnonzero((weights[at] != 0) & (own.sum(axis=1) == 0))
        if len(nothing):
            raise UsageError(
                f"{name} has no finite activation of {layer}[{nothing[0]}], so that nothing "
                "is at a distance from it; look through a lens that leaves it out"
            )


BACKGROUND_SHARE = 0.75
"""How much of an image's distance to the background is taken from its distance to the dataset.

On seven kinds of pictures, shares from 0.5 to 1 find the dataset's own kind about as well. With the
whole distance, a background that is the dataset itself would leave no order; with this share, it
leaves the order of the plain distance (docs/experiments.md, "Finding the images of a dataset").
"""


@dataclass(eq=False)
class ImageSums:
    """What is kept of one image.

    Attributes:
        sums: Weighted sum of the distances of each layer.
        background: The same of the distances to the background.
        undefined: The first neuron without a distance; -1 if there is none.
    """

    sums: Floats
    background: Floats
    undefined: int = -1


class ImageDistances:
    """Measures how far images are from a dataset, layer by layer.

    Args:
        spec: Spec of the dataset.
        ranges: Ranges of the dataset.
        counts: What `layer_counts` read of the dataset.
        weights: (N,) weights of all neurons.
        background: Histograms of a background, in the same form; None for no background.
    """

    def __init__(
        self,
        spec: Spec,
        ranges: Ranges,
        counts: Sequence[Ints | None],
        weights: Floats,
        background: Sequence[Ints | None] | None = None,
    ) -> None:
        self._layers = spec.layers
        self._slices = spec.slices
        self._weights = weights

        self._near: list[LayerEmd | None] = []
        sides = [counts] if background is None else [counts, background]
        for tap, at, *own in zip(spec.taps, self._slices, *sides, strict=True):
            held = [each for each in own if each is not None]
            low, high, seen = ranges.low[at], ranges.high[at], weights[at] != 0
            self._near.append(
                LayerEmd(low, high, np.stack(held), tap.positions, seen) if held else None
            )

    def begin(self, images: int) -> list[ImageSums]:
        """Makes the sums of images, which are empty."""
        layers = len(self._near)
        return [ImageSums(np.zeros(layers), np.zeros(layers)) for _ in range(images)]

    def add(self, found: Sequence[ImageSums], index: int, x: torch.Tensor) -> None:
        """Adds the distances of images in one layer.

        Args:
            found: The sums of the images.
            index: The index of the layer.
            x: The layer's activations, as `Extractor.observe` shows them.
        """
        near = self._near[index]
        if near is None:
            return
        weights = self._weights[self._slices[index]]
        seen = np.flatnonzero(weights)
        on_cpu = x.device.type == "cpu"
        each = near.distances(x.numpy()) if on_cpu else near.distances_torch(x)
        for image, (own, *background) in zip(found, each[:, :, seen], strict=True):
            undefined = seen[np.isnan(own)]
            if len(undefined) and image.undefined < 0:
                image.undefined = self._slices[index].start + int(undefined[0])
            # Each row is summed alone, as the order of a joint sum depends on the rows.
            image.sums[index] = (own * weights[seen]).sum()
            for other in background:
                image.background[index] = (other * weights[seen]).sum()

    def mean(self, found: ImageSums, layer: str | None = None) -> float:
        """Returns the distance of an image: the weighted mean over neurons, in bins.

        Args:
            found: The sums of the image.
            layer: The layer that is meant; None for all.

        Returns:
            The distance; NaN if the image has no finite activation of some neuron.
        """
        if layer is None:
            return float(found.sums.sum() / self._weights.sum())
        at = self._layers.index(layer)
        return float(found.sums[at] / self._weights[self._slices[at]].sum())

    def score(self, found: ImageSums) -> float:
        """Returns what images are ordered by: the distance, less a share of that to the background.

        Args:
            found: The sums of the image.

        Returns:
            The score, in bins; the distance itself if there is no background.
        """
        background = float(found.background.sum() / self._weights.sum())
        return self.mean(found) - BACKGROUND_SHARE * background
