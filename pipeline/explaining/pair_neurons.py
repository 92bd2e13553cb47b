"""Finds the neurons that differ most in the nearest pairs of a page."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import FoldCurves, Matrix, adjusted, clusters, neighbours, neuron_estimates
from pipeline.dna import DNA, Floats, Lens
from pipeline.errors import VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining import Overlay, Side, furthest, overlay
from pipeline.reporting.conclusions import shown
from pipeline.reporting.html.page_data import Neuron, Seen
from pipeline.spec import available_cpus

PAIRS, MOST_PAIRS = 66, 300
"""How many pairs are shown with their neurons. 66 pairs are all pairs of 12 datasets.

With more datasets, each dataset and its nearest one are shown, up to `MOST_PAIRS`, and then the
nearest other pairs, up to `PAIRS`.
"""

LENSES = 4
"""If a page has more lenses than this, fewer pairs are shown through each."""

TESTS = 1_000_000
"""How many neurons, counted for each pair, are tested for a page; this takes minutes of a core."""

NEURONS = 6

CACHED = 2**30
"""The most bytes of one layer's DNAs that are in memory at a time."""

COMPARED = 4
"""The most pairs that are compared at a time; a machine with fewer cores compares fewer."""

RANKED = ("emd", "emd_corrected")
"""The measures that neurons may be ranked by."""


# Neurons.


def neurons(
    catalogue: Catalogue,
    matrices: Sequence[Matrix],
    lenses: Sequence[Lens | None],
    versions: Mapping[str, Version],
    pairs: int = PAIRS,
    progress: Listener | None = None,
) -> list[Seen]:
    """Finds the neurons that add most to the distances of the nearest pairs.

    They are ranked and tested as `explain` does, over all neurons of the pair. The work goes layer
    by layer. In memory is one layer of as many datasets as `CACHED` bytes hold.

    Args:
        catalogue: The catalogue of the datasets.
        matrices: Matrices of the same datasets, through different lenses.
        lenses: One for each matrix; None counts all neurons alike.
        versions: The compared version of each dataset.
        pairs: How many pairs get their neurons.
        progress: Is told how far the work is.

    Returns:
        What each matrix shows: the neurons of each chosen pair (i < j), and what is said of the
        others.
    """
    spec = catalogue.spec(matrices[0].spec_digest)
    room = MOST_PAIRS * LENSES // max(LENSES, len(matrices))
    most = max(pairs, min(room, TESTS // spec.neurons))
    views = [_View.of(*pair, pairs, most) for pair in zip(matrices, lenses, strict=True)]
    wanted = list(dict.fromkeys(pair for view in views for pair in view.found))
    tested = any(view.tested for view in views)
    layers = list(dict.fromkeys(layer for matrix in matrices for layer in matrix.layers))
    progress = progress or ignore
    total = sum(spec.tap(layer).neurons for layer in layers) * len(wanted)
    steps = len(layers) if wanted else 0
    try:
        with stage(progress, Started(total, steps, unit="neurons", step="layers")):
            for layer in layers if wanted else ():
                ones = np.ones(spec.tap(layer).neurons)
                here = [
                    (view, ones if view.lens is None else view.lens.weights_of(layer))
                    for view in views
                    if layer in view.matrix.layers
                ]
                here = [(view, weights) for view, weights in here if weights.any()]
                if here:
                    read = _Reads(catalogue, versions, layer, tested=tested)
                    _add(here, wanted, read, layer)
                progress(StepDone(spec.tap(layer).neurons * len(wanted), name=layer))
    except VdnaError as error:
        return [Seen({}, f"Histograms cannot be read: {error}", v.weightless) for v in views]
    return [Seen(view.told, view.note, view.weightless) for view in views]


def _add(
    views: Sequence[tuple[_View, Floats]],
    wanted: Sequence[tuple[int, int]],
    read: _Reads,
    layer: str,
) -> None:
    """Adds one layer of all chosen pairs. Several are compared at a time, each read once."""

    def compared(pair: tuple[int, int], a: _Read, b: _Read) -> None:
        columns = neuron_estimates(a.folds, b.folds)
        for view, weights in views:
            if pair in view.found:
                view.add(pair, layer, weights, columns, a.dna, b.dna)

    workers = min(COMPARED, available_cpus())
    with ThreadPoolExecutor(workers, "compare") as pool:
        running: deque[Future[None]] = deque()
        for pair in wanted:
            running.append(pool.submit(compared, pair, *(read[i] for i in pair)))
            if len(running) > workers:  # what is read waits for what is compared
                running.popleft().result()
        for one in running:
            one.result()


@dataclass(frozen=True, eq=False)
class _View:
    """A matrix and its lens, with what was found so far.

    Attributes:
        matrix: The matrix.
        lens: Its lens, or None.
        found: For each pair, the first neurons so far.
        p: For each pair, the p-values of all neurons that have a weight.
        note: What is said for the other pairs.
    """

    matrix: Matrix
    lens: Lens | None
    found: dict[tuple[int, int], list[_Neuron]]
    p: dict[tuple[int, int], list[Floats]]
    note: str

    @classmethod
    def of(cls, matrix: Matrix, lens: Lens | None, pairs: int, most: int) -> _View:
        overall = shown(matrix, matrix.planes[-1])
        upper = np.argwhere(np.triu(np.isfinite(overall), 1))
        known = [(int(i), int(j)) for i, j in upper]
        chosen = _nearest(overall, known, pairs, most)
        note = "A distance that is not defined has no neurons that differ most."
        if len(chosen) < len(known):
            note = (
                f"For its size, this page has the neurons of {len(chosen)} of {len(known):,} "
                "pairs, the nearest."
            )
        return cls(matrix, lens, {pair: [] for pair in chosen}, {pair: [] for pair in chosen}, note)

    @property
    def weightless(self) -> tuple[str, ...]:
        if self.lens is None:
            return ()
        return tuple(
            layer for layer in self.matrix.layers if not self.lens.has_positive_weight(layer)
        )

    @property
    def tested(self) -> bool:
        """Whether error bars were asked for. Neurons have them even through negative weights."""
        signed = self.lens is not None and bool((self.lens.weights < 0).any())
        return bool(self.matrix.estimates) or signed

    def add(
        self,
        pair: tuple[int, int],
        layer: str,
        weights: Floats,
        columns: Mapping[str, Floats],
        a: DNA,
        b: DNA,
    ) -> None:
        """Adds the neurons of a layer that have a weight."""
        seen = np.flatnonzero(weights)
        self.p[pair].append(columns["p"][seen])
        best = seen[furthest({name: columns[name][seen] for name in RANKED}, weights[seen])]
        rows = [
            _Neuron.of(layer, at, columns, float(weights[at]), a, b)
            for at in best[:NEURONS].tolist()
            if np.isfinite(columns["emd"][at])
        ]
        both = self.found[pair] + rows
        ranked = {name: np.array([of.columns[name] for of in both]) for name in RANKED}
        order = furthest(ranked, np.array([of.weight for of in both])) if both else ()
        self.found[pair] = [both[at] for at in order[:NEURONS]]

    @property
    def told(self) -> dict[tuple[int, int], list[Neuron]]:
        """The neurons with q, once all layers were looked at."""
        told = {}
        for pair, found in self.found.items():
            p = np.concatenate(self.p[pair] or [np.empty(0)])
            q = dict(zip(p.tolist(), adjusted(p).tolist(), strict=True))  # alike for the same p
            told[pair] = [of.told(q.get(of.columns["p"])) for of in found]
        return told


def _nearest(
    overall: Floats, known: Sequence[tuple[int, int]], pairs: int, most: int
) -> list[tuple[int, int]]:
    """Chooses the pairs whose neurons are shown.

    If there are few pairs, these are all. Otherwise they are each dataset's nearest, up to `most`,
    and then the nearest of the others, up to `pairs`.

    Returns:
        The pairs. Neighbours in cluster order follow each other, so that a dataset is read once or
        twice.
    """
    chosen = set(known)
    if len(known) > pairs:
        firsts = (neighbours(overall, i)[:1] for i in range(len(overall)))
        near = {(min(i, j), max(i, j)) for i, first in enumerate(firsts) for j in first}
        chosen = set(sorted(near, key=lambda pair: overall[pair])[:most])
        rest = sorted(set(known) - near, key=lambda pair: overall[pair])
        chosen |= set(rest[: max(0, min(pairs, most) - len(chosen))])
    place = {dataset: at for at, dataset in enumerate(clusters(overall).order)}
    return sorted(chosen, key=lambda pair: sorted(place[i] for i in pair))


@dataclass(frozen=True, eq=False)
class _Read:
    """A dataset's layer in memory."""

    dna: DNA
    folds: FoldCurves

    @property
    def nbytes(self) -> int:
        return self.folds.nbytes + self.dna.counts.nbytes


class _Reads:
    """Reads one layer of datasets, and keeps those used last."""

    def __init__(
        self, catalogue: Catalogue, versions: Mapping[str, Version], layer: str, *, tested: bool
    ) -> None:
        self._catalogue, self._versions = catalogue, list(versions.items())
        self._layer, self._tested = layer, tested
        self._kept: OrderedDict[int, _Read] = OrderedDict()

    def __getitem__(self, dataset: int) -> _Read:
        if dataset not in self._kept:
            side = Side.open(
                self._catalogue, *self._versions[dataset], [self._layer], tested=self._tested
            )
            found = self._kept[dataset] = _Read(*side.read(self._layer))
            while len(self._kept) > max(2, CACHED // found.nbytes):
                self._kept.popitem(last=False)
        self._kept.move_to_end(dataset)
        return self._kept[dataset]


@dataclass(frozen=True, eq=False)
class _Neuron:
    """One of a pair's first neurons so far, with its columns and both histograms."""

    layer: str
    neuron: int
    columns: Mapping[str, float]
    weight: float
    histograms: Overlay

    @classmethod
    def of(
        cls, layer: str, at: int, columns: Mapping[str, Floats], weight: float, a: DNA, b: DNA
    ) -> _Neuron:
        of_it = {name: float(values[at]) for name, values in columns.items()}
        return cls(layer, at, of_it, weight, overlay(a, b, at))

    def told(self, q: float | None) -> Neuron:
        seen, of = self.histograms, self.columns
        interval = of["emd_corrected"], of["low"], of["high"]
        return Neuron(
            self.layer,
            self.neuron,
            of["emd"],
            seen.low,
            seen.high,
            seen.a,
            seen.b,
            self.weight,
            interval if np.isfinite(interval).all() else None,
            q if q is not None and np.isfinite(q) else None,
        )
