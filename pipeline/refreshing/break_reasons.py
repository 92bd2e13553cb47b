"""Why a bound on a distance is broken: the neurons that differ most, and the images that show it.

>>> [str(reason) for reason in find_reasons(catalogue, bound, 9, spec, None)]  # doctest: +SKIP
['blocks.5.3[112]: 41.2 bins, 3% of the distance']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from pipeline.catalogue import Catalogue
from pipeline.comparing import ALL
from pipeline.dna import Lens
from pipeline.events import Listener
from pipeline.explaining import Reaction, explain
from pipeline.refreshing.bound_kinds import DistanceBound

BREAK_NEURONS = 5
"""How many neurons are named."""

BREAK_IMAGES = 3
"""How many images of each side are named for a neuron."""


@dataclass(frozen=True)
class ReasonImage:
    """An image that a neuron reacts to most.

    Attributes:
        uri: Where it is.
        member: Its name inside an archive, or empty.
    """

    uri: str
    member: str


@dataclass(frozen=True)
class BreakReason:
    """A neuron that adds much to a distance. What is not known is None.

    Attributes:
        layer: Its layer.
        neuron: Its number in the layer.
        emd: Its distance, in bins.
        emd_corrected: The distance without what two samples of one distribution would show.
        q: The share of false alarms if all neurons with this q or less are called different.
        share: Its share of the sum of all distances.
        a: The images of the first dataset that it reacts to most; of a `MoveBound`, of the earlier
            version. None if the dataset keeps none.
        b: The images of the other.
    """

    layer: str
    neuron: int
    emd: float | None
    emd_corrected: float | None
    q: float | None
    share: float | None
    a: tuple[ReasonImage, ...] | None
    b: tuple[ReasonImage, ...] | None

    @property
    def row(self) -> dict[str, Any]:
        """The neuron for JSON, with its images as `vdna explain --json` has them."""
        row = asdict(self)
        return row | {"exemplars": {side: row.pop(side) for side in "ab"}}


def find_reasons(
    catalogue: Catalogue,
    bound: DistanceBound,
    at: int,
    spec: str,
    lens: Lens | None,
    progress: Listener | None = None,
) -> tuple[BreakReason, ...]:
    """Finds the neurons that differ most, and the images of both sides that they react to most.

    Args:
        catalogue: Where the datasets are.
        bound: The bound.
        at: Number of the commit in which the bound's names are looked up.
        spec: The digest of the spec of both sides.
        lens: The lens of the bound.
        progress: Is told of each layer.

    Returns:
        The neurons, the one that differs most first. Of a bound on a layer, neurons of that layer.
    """
    first, second = bound.names
    found = explain(
        catalogue,
        first,
        second,
        lens=lens,
        progress=progress,
        at=at,
        spec=spec,
        top=BREAK_NEURONS,
        layers=None if bound.layer == ALL else [bound.layer],
    )
    columns = ("layer", "neuron", "emd", "emd_corrected", "q", "share")
    rows = found.neurons.select(columns).slice(0, BREAK_NEURONS).to_pylist()
    return tuple(
        BreakReason(**row, a=_named(a), b=_named(b))
        for row, (a, b) in zip(rows, found.reactions, strict=True)
    )


def _named(images: Sequence[Reaction] | None) -> tuple[ReasonImage, ...] | None:
    if images is None:
        return None
    return tuple(ReasonImage(image.uri, image.member) for image in islice(images, BREAK_IMAGES))
