"""Finds the neurons that differ most in the nearest pairs of matrices.

>>> (found,) = find_pair_neurons(catalogue, [matrix], [None], versions)  # doctest: +SKIP
>>> found.neurons[0, 1][0].layer                                         # doctest: +SKIP
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import (
    METHOD,
    FoldCurves,
    Matrix,
    adjusted,
    clusters,
    neighbours,
    neuron_estimates,
)
from pipeline.dna import DNA, Floats, Lens
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining.histogram_overlay import Overlay, overlay
from pipeline.explaining.kept_neurons import (
    NearestPairs,
    PairNeuron,
    find_kept_neurons,
    keep_neurons,
)
from pipeline.explaining.sensitivity import Side, furthest
from pipeline.spec import available_cpus, digest_of

PAIRS, MOST_PAIRS = 66, 300
"""How many pairs are looked into. 66 pairs are all pairs of 12 datasets.

Of more datasets, each dataset and its nearest one are a pair, up to `MOST_PAIRS` pairs, and then
the nearest other pairs are added, up to `PAIRS`.
"""

LENSES = 4
"""If there are more lenses than this, fewer pairs are looked into through each."""

TESTS = 1_000_000
"""How many neurons, counted for each pair, are tested at most; this takes minutes of a core."""

NEURONS_METHOD = 1
"""Version of what is found, beside that of the estimates. A change of a number is a new version."""

PAIR_NEURONS = 6
"""How many neurons of each pair are found."""

CACHED = 2**30
"""The most bytes of one layer's DNAs that are in memory at a time."""

COMPARED = 4
"""The most pairs that are compared at a time; a machine with fewer cores compares fewer."""

RANKED = ("emd", "emd_corrected")
"""The measures that neurons may be ranked by."""


def find_pair_neurons(
    catalogue: Catalogue,
    matrices: Sequence[Matrix],
    lenses: Sequence[Lens | None],
    versions: Mapping[str, Version],
    pairs: int = PAIRS,
    progress: Listener | None = None,
    *,
    keep: bool = True,
) -> list[NearestPairs]:
    """Finds the neurons that add most to the distances of the nearest pairs.

    They are ranked and tested as `explain` does, over all neurons of the pair. The work goes layer
    by layer. In memory is one layer of as many datasets as `CACHED` bytes hold. What is found is
    kept in the catalogue, so that the same pairs are not looked into again.

    Args:
        catalogue: The catalogue of the datasets.
        matrices: Matrices of the same datasets, through different lenses.
        lenses: One for each matrix; None counts all neurons alike.
        versions: The compared version of each dataset.
        pairs: How many pairs get their neurons.
        progress: Is told how far the work is.
        keep: Whether what is found is kept. If not, nothing is written.

    Returns:
        For each matrix, its nearest pairs with their neurons.
    """
    spec = catalogue.spec(matrices[0].spec_digest)
    room = MOST_PAIRS * LENSES // max(LENSES, len(matrices))
    most = max(pairs, min(room, TESTS // spec.neurons))
    views = [_View.of(*pair, pairs, most) for pair in zip(matrices, lenses, strict=True)]
    tested = any(view.tested for view in views)
    progress = progress or ignore
    places = [catalogue.pair_neurons_uri(view.digest(tested=tested)) for view in views]
    known = [find_kept_neurons(uri, discard=keep) for uri in places]
    missing = [view for view, kept in zip(views, known, strict=True) if kept is None]
    _look_into(catalogue, missing, versions, progress, tested=tested)
    found = []
    for view, uri, kept in zip(views, places, known, strict=True):
        if kept is None:
            kept = NearestPairs(view.with_q(), view.pairs)
            if keep:
                keep_neurons(uri, kept, progress)
        found.append(kept)
    return found


def _look_into(
    catalogue: Catalogue,
    views: Sequence[_View],
    versions: Mapping[str, Version],
    progress: Listener,
    *,
    tested: bool,
) -> None:
    """Fills the views, layer by layer."""
    wanted = list(dict.fromkeys(pair for view in views for pair in view.found))
    if not wanted:
        return
    layers = list(dict.fromkeys(layer for view in views for layer in view.matrix.layers))
    spec = catalogue.spec(views[0].matrix.spec_digest)
    total = sum(spec.tap(layer).neurons for layer in layers) * len(wanted)
    with stage(progress, Started(total, len(layers), unit="neurons", step="layers")):
        for layer in layers:
            ones = np.ones(spec.tap(layer).neurons)
            here = [
                (view, ones if view.lens is None else view.lens.weights_of(layer))
                for view in views
                if layer in view.matrix.layers
            ]
            here = [(view, weights) for view, weights in here if weights.any()]
            if here:
                cache = _LayerCache(catalogue, versions, layer, tested=tested)
                _add(here, wanted, cache, layer)
            progress(StepDone(spec.tap(layer).neurons * len(wanted), name=layer))


def _add(
    views: Sequence[tuple[_View, Floats]],
    wanted: Sequence[tuple[int, int]],
    cache: _LayerCache,
    layer: str,
) -> None:
    """Adds one layer of all chosen pairs. Several are compared at a time, each read once."""

    def compared(pair: tuple[int, int], a: _HeldLayer, b: _HeldLayer) -> None:
        columns = neuron_estimates(a.folds, b.folds)
        for view, weights in views:
            if pair in view.found:
                view.add(pair, layer, weights, columns, a.dna, b.dna)

    workers = min(COMPARED, available_cpus())
    with ThreadPoolExecutor(workers, "compare") as pool:
        running: deque[Future[None]] = deque()
        for pair in wanted:
            running.append(pool.submit(compared, pair, *(cache[i] for i in pair)))
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
        pairs: How many pairs have a distance.
    """

    matrix: Matrix
    lens: Lens | None
    found: dict[tuple[int, int], list[_FoundNeuron]]
    p: dict[tuple[int, int], list[Floats]]
    pairs: int

    @classmethod
    def of(cls, matrix: Matrix, lens: Lens | None, pairs: int, most: int) -> _View:
        overall = matrix.corrected(matrix.planes[-1])
        upper = np.argwhere(np.triu(np.isfinite(overall), 1))
        known = [(int(i), int(j)) for i, j in upper]
        chosen = _nearest(overall, known, pairs, most)
        found: dict[tuple[int, int], list[_FoundNeuron]] = {pair: [] for pair in chosen}
        return cls(matrix, lens, found, {pair: [] for pair in chosen}, len(known))

    @property
    def tested(self) -> bool:
        """Whether error bars were asked for. Neurons have them even through negative weights."""
        signed = self.lens is not None and self.lens.has_negative_weight(self.matrix.layers)
        return bool(self.matrix.estimates) or signed

    def digest(self, *, tested: bool) -> str:
        """Names what is found, by all that decides it.

        Args:
            tested: Whether the folds are read, for this view or for another.

        Returns:
            The digest, hex.
        """
        matrix = self.matrix
        return digest_of(
            "pair neurons",
            [NEURONS_METHOD, METHOD],
            matrix.spec_digest,
            [[name, matrix.members[name]] for name in matrix.names],
            matrix.lens_digest,
            list(matrix.layers),
            [list(pair) for pair in self.found],
            [self.pairs, tested, PAIR_NEURONS],
        )

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
            _FoundNeuron.of(layer, at, columns, float(weights[at]), a, b)
            for at in best[:PAIR_NEURONS].tolist()
            if np.isfinite(columns["emd"][at])
        ]
        both = self.found[pair] + rows
        ranked = {name: np.array([of.columns[name] for of in both]) for name in RANKED}
        order = furthest(ranked, np.array([of.weight for of in both])) if both else ()
        self.found[pair] = [both[at] for at in order[:PAIR_NEURONS]]

    def with_q(self) -> dict[tuple[int, int], list[PairNeuron]]:
        """Returns the neurons with q, once all layers were looked at."""
        neurons = {}
        for pair, found in self.found.items():
            p = np.concatenate(self.p[pair] or [np.empty(0)])
            q = dict(zip(p.tolist(), adjusted(p).tolist(), strict=True))  # alike for the same p
            neurons[pair] = [of.with_q(q.get(of.columns["p"])) for of in found]
        return neurons


def _nearest(
    overall: Floats, known: Sequence[tuple[int, int]], pairs: int, most: int
) -> list[tuple[int, int]]:
    """Chooses the pairs that are looked into.

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
class _HeldLayer:
    """A dataset's layer in memory."""

    dna: DNA
    folds: FoldCurves

    @property
    def nbytes(self) -> int:
        return self.folds.nbytes + self.dna.counts.nbytes


class _LayerCache:
    """Reads one layer of datasets, and keeps those used last."""

    def __init__(
        self, catalogue: Catalogue, versions: Mapping[str, Version], layer: str, *, tested: bool
    ) -> None:
        self._catalogue, self._versions = catalogue, list(versions.items())
        self._layer, self._tested = layer, tested
        self._kept: OrderedDict[int, _HeldLayer] = OrderedDict()

    def __getitem__(self, dataset: int) -> _HeldLayer:
        if dataset not in self._kept:
            side = Side.open(
                self._catalogue, *self._versions[dataset], [self._layer], tested=self._tested
            )
            found = self._kept[dataset] = _HeldLayer(*side.read(self._layer))
            while len(self._kept) > max(2, CACHED // found.nbytes):
                self._kept.popitem(last=False)
        self._kept.move_to_end(dataset)
        return self._kept[dataset]


@dataclass(frozen=True, eq=False)
class _FoundNeuron:
    """One of a pair's first neurons so far, with its columns and both histograms."""

    layer: str
    neuron: int
    columns: Mapping[str, float]
    weight: float
    histograms: Overlay

    @classmethod
    def of(
        cls, layer: str, at: int, columns: Mapping[str, Floats], weight: float, a: DNA, b: DNA
    ) -> _FoundNeuron:
        of_it = {name: float(values[at]) for name, values in columns.items()}
        return cls(layer, at, of_it, weight, overlay(a, b, at))

    def with_q(self, q: float | None) -> PairNeuron:
        seen, of = self.histograms, self.columns
        interval = of["emd_corrected"], of["low"], of["high"]
        return PairNeuron(
            self.layer,
            self.neuron,
            of["emd"],
            seen.low,
            seen.high,
            seen.a,
            seen.b,
            seen.peak,
            self.weight,
            interval if np.isfinite(interval).all() else None,
            q if q is not None and np.isfinite(q) else None,
        )
