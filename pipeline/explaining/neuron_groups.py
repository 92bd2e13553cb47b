"""Chooses the neurons that an explanation begins with: of each stage the first, without repeats.

    >>> [(group.stage, len(group.others)) for group in found.groups]     # doctest: +SKIP
    [('objects', 0), ('objects', 3), ('shape', 12), …]

Many neurons tell the same: a channel of one block lives on in the next, and a first layer has
dozens of filters for one edge. A neuron joins the group of an earlier one of its stage if their
means move together over the folds of both datasets, or if the images that they react to most are
the same ones. The deep stages come first, because they tell more of what the images show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.comparing import FALSE_DISCOVERY_RATE
from pipeline.dna import Exemplars, Ints
from pipeline.explaining.histogram_overlay import Overlay
from pipeline.explaining.network_stages import STAGES
from pipeline.explaining.parting import Parting
from pipeline.explaining.reactions import Reactions, TellingImage

CORRELATED = 0.8
"""Neurons tell the same if the correlation of their means over folds has at least this size.

It may be negative: then one falls where the other rises.
"""

SAME_IMAGES = 0.75
"""Neurons tell the same if in both datasets at least this share of their exemplars are the same."""

LEAST_EXEMPLARS = 4
"""How many exemplars a neuron must have to be compared by them."""

LEAST_CHOICE = 4
"""How many times as many images a dataset must have. Of fewer, most neurons share exemplars."""

Moves = NDArray[np.float32]
"""(neurons, folds of both datasets) by how much the neuron's mean in each fold is above its mean.

The unit of a row does not matter.
"""


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons of a stage that tell the same of two datasets, with the one that differs most.

    Attributes:
        stage: The stage of the network; empty if it is not known.
        place: The row of the neuron that differs most, in the table of neurons.
        layer: The layer of that neuron.
        neuron: Its number in the layer.
        others: The other neurons, as `layer[neuron]`, in the order of the table.
        histogram: The neuron's histograms in both datasets.
        parting: Where these part.
        exemplars: The images that it reacts to most in either dataset, as the builds kept them.
        images: Images of either dataset that carry the difference; None if none were looked at.
        description: What a command said of these images; empty if none was asked.
        failure: Why the command said nothing, or empty.
    """

    stage: str
    place: int
    layer: str
    neuron: int
    others: tuple[str, ...]
    histogram: Overlay
    parting: Parting
    exemplars: tuple[Reactions, Reactions] = (None, None)
    images: tuple[tuple[TellingImage, ...], tuple[TellingImage, ...]] | None = None
    description: str = ""
    failure: str = ""

    @property
    def name(self) -> str:
        """The neuron that differs most, as `layer[neuron]`."""
        return f"{self.layer}[{self.neuron}]"


def choose_groups(
    neurons: pa.Table,
    stages: Mapping[str, str],
    moves: Moves,
    kept: Sequence[Ints | None],
    top: int,
) -> list[tuple[int, list[int]]]:
    """Chooses groups of neurons, as many of each stage as there are, up to `top` in all.

    Only neurons that are told apart at a false discovery rate of 5% are chosen, or that could not
    be tested. If no neuron differs, those of the largest distances are chosen, each for itself.

    Args:
        neurons: The table of an explanation: `layer` and `q` of each neuron, the furthest first.
        stages: The stage of each layer.
        moves: How each of these neurons moves over the folds.
        kept: The exemplars of each of them in either dataset, by `numbered`.
        top: The most groups.

    Returns:
        For each group the row of its first neuron, and those of its other neurons. Deep stages
        come first.
    """
    q = neurons["q"].to_numpy()
    known = np.isfinite(neurons["emd"].to_numpy())
    differs = known & ~(q >= FALSE_DISCOVERY_RATE)
    merged = bool(differs.any())
    wanted = np.flatnonzero(differs if merged else known)
    layers = np.array(neurons["layer"].to_pylist(), object)[wanted]
    of = np.array([stages.get(layer, "") for layer in layers], object)
    # Of the few folds that are too few for a test, most correlations are chance.
    seen = moves if np.isfinite(q).any() else np.zeros_like(moves)
    alike = _Likeness(seen, kept) if merged else None
    deep = [stage for stage in (*reversed(STAGES), "") if (of == stage).any()]
    sources = {stage: _groups(wanted[of == stage], alike) for stage in deep}
    found: dict[str, list[tuple[int, list[int]]]] = {stage: [] for stage in deep}
    while sources and sum(map(len, found.values())) < top:
        for stage in list(sources):
            if sum(map(len, found.values())) == top:
                break
            group = next(sources[stage], None)
            if group is None:
                del sources[stage]
            else:
                found[stage].append(group)
    return [group for stage in deep for group in found[stage]]


def _groups(rows: Ints, alike: _Likeness | None) -> Iterator[tuple[int, list[int]]]:
    """Yields the first of the rows with all later ones that are like it, then the next group."""
    while len(rows):
        first, rows = int(rows[0]), rows[1:]
        joins = np.zeros(len(rows), bool) if alike is None else alike.to(first, rows)
        yield first, rows[joins].tolist()
        rows = rows[~joins]


class _Likeness:
    """Tells which neurons tell the same as another one."""

    def __init__(self, moves: Moves, kept: Sequence[Ints | None]) -> None:
        lengths = np.sqrt((moves.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            self._moves = np.nan_to_num(np.where(lengths > 0, moves / lengths, 0.0))
        self._kept = kept

    def to(self, one: int, others: Ints) -> NDArray[np.bool_]:
        joins = np.abs(self._moves[others] @ self._moves[one]) >= CORRELATED
        sides = [self._same_images(side, one, others) for side in self._kept]
        return np.asarray(joins | np.logical_and.reduce(sides)) if sides else np.asarray(joins)

    @staticmethod
    def _same_images(side: Ints | None, one: int, others: Ints) -> NDArray[np.bool_]:
        if side is None or not (side[one] >= 0).any():
            return np.zeros(len(others), bool)
        own = side[one][side[one] >= 0]
        shared = np.isin(side[others], own).sum(axis=1)
        return np.asarray(shared >= SAME_IMAGES * len(own))


def numbered(
    exemplars: Exemplars | None, neurons: Sequence[tuple[str, int]], images: int
) -> Ints | None:
    """Numbers the images that neurons react to most, so that they can be compared.

    Reactions that are all equal are left out. At the upper end of a clipped layer they say no more
    than that many images reach it, and the names decide which are kept.

    Args:
        exemplars: The exemplars of a dataset; None if it keeps none.
        neurons: The layer and the number of each neuron.
        images: How many images the dataset has.

    Returns:
        (neurons, exemplars) a number for each image, and -1 where there is none; None if the
        exemplars, or the images that they were chosen from, are too few.
    """
    number = 0 if exemplars is None else exemplars.settings.number
    if exemplars is None or number < LEAST_EXEMPLARS or images < LEAST_CHOICE * number:
        return None
    table = exemplars.rows
    starts = {
        layer: at.start
        for layer, at in zip(exemplars.spec.layers, exemplars.spec.slices, strict=True)
    }
    names = pc.binary_join_element_wise(table["uri"], table["member"], "\0")
    image_numbers = names.combine_chunks().dictionary_encode().indices.to_numpy()
    held, reactions = table["neuron"].to_numpy(), table["reaction"].to_numpy()
    found = np.full((len(neurons), number), -1, np.int64)
    places = np.array([starts[layer] + neuron for layer, neuron in neurons], np.int64)
    first = np.searchsorted(held, places)
    last = np.searchsorted(held, places, side="right")
    for row, begin, end in zip(found, first.tolist(), last.tolist(), strict=True):
        own = reactions[begin:end]
        if len(own) >= LEAST_EXEMPLARS and own[0] > own[-1]:
            row[: end - begin] = image_numbers[begin:end]
    return found
