"""Why two datasets differ: their layers and neurons, those that are furthest apart first.

    >>> found = explain(Catalogue("dnas"), "sunny", "rainy")              # doctest: +SKIP
    >>> found.neurons.to_pandas().query("q < 0.05").head(20)              # doctest: +SKIP

The sensitivity of a neuron is its Earth Mover's Distance between the two (Ramtoula et al., CVPR
2023, section 4). Thousands are looked at, so that some lie far apart by chance: each has an
interval and a test of its own from the folds, and `q` bounds the share of false alarms among those
that are called different (Benjamini and Hochberg).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import (
    ALL,
    ESTIMATES,
    FALSE_DISCOVERY_RATE,
    NEURON_COLUMNS,
    PAIR_ESTIMATES,
    FoldCurves,
    FoldSums,
    adjusted,
    cumulative,
    estimates,
    fold_sums,
    neuron_estimates,
    resolve,
)
from pipeline.dna import DNA, UNIFORM, DnaFile, Floats, Ints, Lens, encode_tables
from pipeline.errors import UsageError
from pipeline.events import Listener, Started, StepDone, ignore, stage

FORMAT = 1

TOP = 20

PARTS = 48
"""Of a histogram that is shown."""

TAIL = 5e-4
"""Share of the activations, at either end, that a shown histogram may leave out."""

_MEASURES = [(name, pa.float64()) for name in ("emd", "emd_range", *ESTIMATES)]

LAYERS = pa.schema(
    [
        ("layer", pa.string()),
        ("neurons", pa.int64()),
        ("differing", pa.int64()),
        *_MEASURES,
        ("share", pa.float64()),
    ]
)

NEURONS = pa.schema(
    [
        ("layer", pa.string()),
        ("neuron", pa.int32()),
        *_MEASURES,
        ("shift", pa.float64()),
        ("weight", pa.float64()),
        ("share", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Overlay:
    """Two histograms on one axis from `low` to `high` in activations; heights of 999 at most."""

    low: float
    high: float
    a: tuple[int, ...]
    b: tuple[int, ...]


@dataclass(frozen=True)
class Reaction:
    """An image, and the mean of a neuron's activations over it."""

    uri: str
    member: str
    reaction: float

    def __str__(self) -> str:
        return storage.spelled(self.uri, self.member)


Reactions = tuple[Reaction, ...] | None
"""The largest first."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What two `versions`, a and b, differ in; both tables begin with what is furthest apart.

    `layers`: a row per layer, and `all` first where they are all there: distances as a matrix has
    them, `q` over the layers, and how many of its `neurons` are `differing` at a false discovery
    rate of 5%. `neurons`: a row per neuron that weighs anything, `q` over all of them; `shift` is
    the mean of `b` less that of `a`, in bins. `share`: of the sum of distances, each times its
    weight's size. Null where it is not known. `shown`: histograms of the first neurons, in their
    order; `reactions`: the images that those react to most in a and in b, or None where a dataset
    keeps none of them.
    """

    versions: Mapping[str, Version]
    lens: str
    layers: pa.Table
    neurons: pa.Table
    shown: tuple[Overlay, ...]
    reactions: tuple[tuple[Reactions, Reactions], ...] = ()

    @cached_property
    def signed(self) -> bool:
        """Whether the lens has weights below zero, through which nothing is a distance."""
        return bool((_floats(self.neurons, "weight") < 0).any())

    @cached_property
    def differing(self) -> int:
        """Neurons that differ at the false discovery rate."""
        return int((_floats(self.neurons, "q") < FALSE_DISCOVERY_RATE).sum())

    def encode(self) -> bytes:
        """The neurons, in their order, as Parquet, with what was compared and through what."""
        metadata = {
            "format": FORMAT,
            "kind": "explanation",
            "members": {name: version.dna for name, version in self.versions.items()},
            "lens": self.lens,
        }
        return encode_tables(metadata, NEURONS, [self.neurons])

    @cached_property
    def half(self) -> int:
        """The least number of neurons that make up half of the distance; 0 where there is none."""
        shares = np.sort(np.nan_to_num(_floats(self.neurons, "share")))[::-1].cumsum()
        return int(np.searchsorted(shares, 0.5 - 1e-12) + 1) if (shares > 0).any() else 0


def explain(
    catalogue: Catalogue,
    a: str,
    b: str,
    *,
    layers: Sequence[str] | None = None,
    at: int | str | None = None,
    spec: str | None = None,
    lens: Lens | None = None,
    top: int = TOP,
    progress: Listener | None = None,
) -> Explanation:
    """The layers and neurons of two datasets' distance. `lens`: weighs the neurons.

    A layer of both is in memory at a time. Raises as `compare` does.
    """
    if a == b:
        raise UsageError(f"explaining takes two datasets, and {a!r} is given twice")
    digest, versions = resolve(catalogue, [a, b], at=at, spec=spec)
    network = catalogue.spec(digest)
    chosen = tuple(dict.fromkeys(layers or network.layers))
    sizes = [network.tap(layer).neurons for layer in chosen]
    if lens is not None:
        lens.require_fit(network)
    sides = [Side.open(catalogue, name, version, chosen) for name, version in versions.items()]
    progress = progress or ignore
    parts = []
    with stage(progress, Started(sum(sizes), len(chosen), unit="neurons", step="layers")):
        for layer, neurons in zip(chosen, sizes, strict=True):
            weights = np.ones(neurons) if lens is None else lens.of_layer(layer)
            parts.append(_Layer.of(layer, weights, sides, top))
            progress(StepDone(neurons, name=layer))
    table, order = _neuron_table(parts, network.bins)
    of_neuron = [
        part.overlays.get(at) for part in parts for at in np.flatnonzero(part.weights).tolist()
    ]
    shown = (of_neuron[at] for at in order[:top])
    first = list(zip(*(table[name].to_pylist()[:top] for name in ("layer", "neuron")), strict=True))
    of_a, of_b = (_reactions(catalogue, *version, first) for version in versions.items())
    return Explanation(
        versions,
        UNIFORM if lens is None else lens.name,
        _layer_table(parts, table, network.bins, whole=layers is None),
        table,
        tuple(overlay for overlay in shown if overlay is not None),
        tuple(zip(of_a, of_b, strict=True)),
    )


def _reactions(
    catalogue: Catalogue, name: str, version: Version, neurons: Sequence[tuple[str, int]]
) -> list[Reactions]:
    """The exemplars that a dataset keeps of each neuron; None of those that it keeps none of."""
    if "exemplars" not in version.sha256:
        return [None] * len(neurons)
    kept = catalogue.exemplars(name, version)
    return [
        tuple(Reaction(row["uri"], row["member"], row["reaction"]) for row in kept.of(*neuron))
        if not kept.keep.layers or neuron[0] in kept.keep.layers
        else None
        for neuron in neurons
    ]


def overlay(a: DNA, b: DNA, neuron: int) -> Overlay:
    """Of a neuron of two DNAs, by its place in them."""
    sums = [cumulative(dna, np.array([neuron]))[0] for dna in (a, b)]
    return overlaid(sums[0], sums[1], float(a.low[neuron]), float(a.high[neuron]))


def overlaid(a: Floats, b: Floats, low: float, high: float, parts: int = PARTS) -> Overlay:
    """Of a neuron's cumulative distributions (bins,) over [low, high], in equal parts."""
    both, bins = (a + b) / 2, len(a)
    first = int(np.searchsorted(both, TAIL))
    last = min(bins, int(np.searchsorted(both, 1 - TAIL)) + 1)
    edges = np.unique(np.linspace(first, last, parts + 1).round().astype(int))
    shares = [np.diff(np.concatenate([[0.0], sums])[edges]) / np.diff(edges) for sums in (a, b)]
    most = max(float(share.max()) for share in shares) or 1.0
    heights = [tuple(int(v) for v in np.rint(share / most * 999)) for share in shares]
    width = (high - low) / bins
    return Overlay(low + first * width, low + last * width, *heights)


@dataclass(frozen=True, eq=False)
class Side:
    """A dataset's files, open. `folds`: None where it has none, or they are not `tested`."""

    dna: DnaFile
    folds: DnaFile | None

    @classmethod
    def open(
        cls,
        catalogue: Catalogue,
        name: str,
        version: Version,
        layers: Sequence[str],
        *,
        tested: bool = True,
    ) -> Side:
        def opened(kind: str) -> DnaFile:
            return catalogue.open_file(kind, name, version, on_disk=True, layers=layers)

        tested = tested and "folds" in version.sha256
        return cls(opened("dna"), opened("folds") if tested else None)

    def read(self, layer: str) -> tuple[DNA, FoldCurves]:
        dna = self.dna.read([layer])
        folds = {} if self.folds is None else self.folds.read_folds(layer)
        return dna, FoldCurves.of([dna], [folds])


@dataclass(frozen=True, eq=False)
class _Layer:
    """What is known of a layer. `columns`: of its neurons; `overlays`: of those furthest apart."""

    name: str
    weights: Floats
    sums: FoldSums
    columns: Mapping[str, Floats]
    overlays: Mapping[int, Overlay]

    @classmethod
    def of(cls, name: str, weights: Floats, sides: Sequence[Side], top: int) -> _Layer:
        with ThreadPoolExecutor(2, "read") as pool:
            (dna_a, a), (dna_b, b) = pool.map(lambda side: side.read(name), sides)
        columns = neuron_estimates(a, b)
        sums = fold_sums(a, b, weights)
        known = np.isfinite(columns["emd"]) & (weights != 0)
        order = furthest(columns, weights)
        first = order[known[order]][:top].tolist()
        overlays = {at: overlay(dna_a, dna_b, at) for at in first}
        return cls(name, weights, sums, columns, overlays)


def furthest(columns: Mapping[str, Floats], weights: Floats) -> Ints:
    """Places of neurons by what they add to the distance, the corrected one where it is known.

    `columns`: `emd` and `emd_corrected` (N,). Those whose distance is not defined come last.
    """
    emd = np.nan_to_num(columns["emd"] * np.abs(weights), nan=-1.0)
    corrected = columns["emd_corrected"] * np.abs(weights)
    return np.lexsort((-emd, -np.where(np.isfinite(corrected), corrected, emd)))


def _neuron_table(parts: Sequence[_Layer], bins: int) -> tuple[pa.Table, Ints]:
    """The neurons that weigh anything, and the order in which they stand in the table."""
    seen = [np.flatnonzero(part.weights) for part in parts]
    joined = {
        name: np.concatenate([part.columns[name][at] for part, at in zip(parts, seen, strict=True)])
        for name in NEURON_COLUMNS
    }
    weights = np.concatenate([part.weights[at] for part, at in zip(parts, seen, strict=True)])
    order = furthest(joined, weights)
    owed = np.abs(weights) * joined["emd"]
    columns: dict[str, Any] = {
        **joined,
        "layer": np.repeat([part.name for part in parts], [len(at) for at in seen]),
        "neuron": np.concatenate(seen).astype(np.int32),
        "emd_range": joined["emd"] / bins,
        "q": adjusted(joined["p"]),
        "weight": weights,
        "share": _shares(owed),
    }
    return _table(NEURONS, {name: values[order] for name, values in columns.items()}), order


def _layer_table(parts: Sequence[_Layer], neurons: pa.Table, bins: int, *, whole: bool) -> pa.Table:
    """Layers, the furthest first, below `all`."""
    totals = [float(part.weights.sum()) for part in parts]
    sums = FoldSums.stack([part.sums for part in parts], totals, whole=whole)
    signed = any((part.weights < 0).any() for part in parts)
    known = {} if signed else estimates(sums)
    unknown = np.full(len(sums.theta), np.nan)
    columns: dict[str, Any] = {"emd": sums.theta[:, 0, 0]}
    columns |= {name: known[name][:, 0, 0] if known else unknown for name in PAIR_ESTIMATES}
    columns["emd_range"] = columns["emd"] / bins
    layers = len(parts)
    columns["q"] = np.concatenate([adjusted(columns["p"][:layers]), columns["p"][layers:]])
    of = np.array(neurons["layer"].to_pylist(), object)
    differing = _floats(neurons, "q") < FALSE_DISCOVERY_RATE
    share = np.nan_to_num(_floats(neurons, "share"))
    names = [part.name for part in parts]
    rows = [
        (int((of == name).sum()), int(differing[of == name].sum()), float(share[of == name].sum()))
        for name in names
    ]
    if whole:
        names.append(ALL)
        rows.append((len(of), int(differing.sum()), float(share.sum())))
    for at, name in enumerate(("neurons", "differing", "share")):
        columns[name] = np.array([row[at] for row in rows])
    columns["layer"] = np.array(names, object)
    order = furthest(
        {name: np.abs(columns[name][:layers]) for name in NEURON_COLUMNS if name != "shift"},
        np.ones(layers),
    )
    order = np.concatenate([np.arange(layers, len(names)), order])
    return _table(LAYERS, {name: values[order] for name, values in columns.items()})


def _shares(owed: Floats) -> Floats:
    total = np.nansum(owed)
    return owed / total if total else np.where(np.isnan(owed), np.nan, 0.0)


def _table(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    return pa.table(
        {
            field.name: pa.array(columns[field.name], field.type, from_pandas=True)
            for field in schema
        },
        schema=schema,
    )


def _floats(table: pa.Table, column: str) -> Floats:
    return cast(Floats, table[column].to_numpy())
