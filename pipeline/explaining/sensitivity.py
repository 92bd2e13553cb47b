"""Explains why two datasets differ: their layers and neurons, those that are furthest apart first.

    >>> found = explain(Catalogue("dnas"), "sunny", "rainy")              # doctest: +SKIP
    >>> found.to_pandas().query("q < 0.05").head(20)                      # doctest: +SKIP

The sensitivity of a neuron is its Earth Mover's Distance between the two (Ramtoula et al., CVPR
2023, section 4). Among thousands of neurons some lie far apart by chance. So each has an interval
and a test of its own from the folds, and `q` bounds the share of false alarms among those that are
called different (Benjamini and Hochberg, 1995).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

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
    resolve_versions,
)
from pipeline.dna import DNA, UNIFORM, DnaFile, FileKind, Floats, Ints, Lens, encode_sealed
from pipeline.errors import UsageError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining.explain_options import ExplainKeywords, ExplainOptions
from pipeline.explaining.reactions import Reactions, strongest_reactions
from pipeline.notebook import arrow_data_frame, bar_chart, html_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_EXPLANATION = FileKind("explanation")

PARTS = 48
"""The number of bars in a histogram that is shown."""

TAIL = 5e-4
"""Share of the activations that a shown histogram may leave out at either end."""

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
    """Two histograms of a neuron on one axis.

    Attributes:
        low: Left end of the axis, as an activation.
        high: Right end of the axis.
        a: Heights of the bars of one dataset; the highest of both is 999.
        b: Heights of the bars of the other.
    """

    low: float
    high: float
    a: tuple[int, ...]
    b: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What two datasets, a and b, differ in. Both tables begin with what is furthest apart.

    Unknown values are null.

    Attributes:
        versions: The version of each dataset.
        lens: Name of the lens; `uniform` without one.
        layers: A row per layer, and `all` first if they are all layers. Distances are as in a
            matrix, with `q` over the layers; `differing` is how many of its `neurons` differ at a
            false discovery rate of 5%.
        neurons: A row per neuron that has a weight, with `q` over all of them. `shift` is the mean
            of b less that of a, in bins. `share` is of the sum of distances, each times the size of
            its weight.
        shown: Histograms of the first neurons, in their order.
        reactions: The images that these neurons react to most in a and in b; None for a dataset
            that keeps none of them.
    """

    versions: Mapping[str, Version]
    lens: str
    layers: pa.Table
    neurons: pa.Table
    shown: tuple[Overlay, ...]
    reactions: tuple[tuple[Reactions, Reactions], ...] = ()

    def __repr__(self) -> str:
        a, b = self.versions
        through = "" if self.lens == UNIFORM else f" through {self.lens}"
        tested = f", {self.differing} of them differ" if self.differing else ""
        first = self.layers.slice(0, 1).to_pylist()
        far = f"; {first[0]['layer']}: {first[0]['emd']:.4g} bins" if first else ""
        return (
            f"<Explanation of {a} and {b}{through}: {self.neurons.num_rows} neurons{tested}{far}>"
        )

    def _repr_html_(self) -> str:
        columns = ("layer", "emd", "emd_corrected", "q", "differing", "neurons", "share")
        rows = [
            ["" if row[name] is None else _shown(row[name]) for name in columns]
            for row in self.layers.to_pylist()
        ]
        return html_table(" and ".join(self.versions), columns, rows)

    def to_pandas(self, table: Literal["neurons", "layers"] = "neurons") -> pd.DataFrame:
        """Copies a table to pandas.

        Args:
            table: Which of the two tables.

        Returns:
            The neurons or the layers, those that are furthest apart first.
        """
        return arrow_data_frame(getattr(self, table))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the distance of each layer, the largest first.

        Args:
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        values = self.layers["emd"].to_numpy().tolist()
        return bar_chart(self.layers["layer"].to_pylist(), values, "emd (bins)", ax)

    @cached_property
    def signed(self) -> bool:
        """Whether the lens has weights below zero, so that nothing is a distance."""
        return bool((_floats(self.neurons, "weight") < 0).any())

    @cached_property
    def differing(self) -> int:
        """Number of neurons that differ at a false discovery rate of 5%."""
        return int((_floats(self.neurons, "q") < FALSE_DISCOVERY_RATE).sum())

    def encode(self) -> bytes:
        """Encodes the neurons as Parquet, in their order, with what was compared.

        Returns:
            The bytes of the file.
        """
        metadata = {
            "members": {name: version.dna for name, version in self.versions.items()},
            "lens": self.lens,
        }
        return encode_sealed(_EXPLANATION, metadata, [self.neurons], NEURONS)

    def save(self, out: str) -> None:
        """Writes all neurons as Parquet, the most different first.

        Args:
            out: The path or url to write (.parquet).

        Raises:
            UsageError: The name does not end in .parquet.
        """
        storage.replace(storage.parquet_uri(out, "the neurons are"), self.encode())

    @cached_property
    def half(self) -> int:
        """Least number of neurons that make up half of the distance; 0 if there is none."""
        shares = np.sort(np.nan_to_num(_floats(self.neurons, "share")))[::-1].cumsum()
        return int(np.searchsorted(shares, 0.5 - 1e-12) + 1) if (shares > 0).any() else 0


def explain(
    catalogue: Catalogue,
    a: str,
    b: str,
    *,
    lens: Lens | None = None,
    progress: Listener | None = None,
    **options: Unpack[ExplainKeywords],
) -> Explanation:
    """Finds the layers and neurons that make up the distance of two datasets.

    One layer of both is in memory at a time. Raises as `compare` does, too.

    Args:
        catalogue: Where the datasets are.
        a: Name of one dataset.
        b: Name of the other.
        lens: Weighs the neurons.
        progress: Is told of each layer.
        **options: The options of `ExplainOptions`.

    Returns:
        The explanation.

    Raises:
        UsageError: If both datasets are the same.
    """
    if a == b:
        raise UsageError(f"explaining takes two datasets, and {a!r} is given twice")
    asked = ExplainOptions(**options)
    layers = None if ALL in (asked.layers or ()) else asked.layers
    digest, versions = resolve_versions(catalogue, [a, b], at=asked.at, spec=asked.spec)
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
            weights = np.ones(neurons) if lens is None else lens.weights_of(layer)
            parts.append(_ComparedLayer.of(layer, weights, sides, asked.top))
            progress(StepDone(neurons, name=layer))
    table, order = _neuron_table(parts, network.bins)
    of_neuron = [
        part.overlays.get(at) for part in parts for at in np.flatnonzero(part.weights).tolist()
    ]
    shown = (of_neuron[at] for at in order[: asked.top])
    named = (table[name].to_pylist()[: asked.top] for name in ("layer", "neuron"))
    first = list(zip(*named, strict=True))
    of_a, of_b = (strongest_reactions(catalogue, *version, first) for version in versions.items())
    return Explanation(
        versions,
        UNIFORM if lens is None else lens.name,
        _layer_table(parts, table, network.bins, whole=layers is None),
        table,
        tuple(overlay for overlay in shown if overlay is not None),
        tuple(zip(of_a, of_b, strict=True)),
    )


def overlay(a: DNA, b: DNA, neuron: int) -> Overlay:
    """Makes the histograms of a neuron of two DNAs.

    Args:
        a: One DNA.
        b: The other DNA, under the same spec.
        neuron: Position of the neuron in both.

    Returns:
        Both histograms on one axis.
    """
    sums = [cumulative(dna, np.array([neuron]))[0] for dna in (a, b)]
    return overlaid(sums[0], sums[1], float(a.low[neuron]), float(a.high[neuron]))


def overlaid(a: Floats, b: Floats, low: float, high: float, parts: int = PARTS) -> Overlay:
    """Makes the histograms of a neuron from its cumulative distributions.

    Args:
        a: (bins,) cumulative distribution in one dataset.
        b: (bins,) cumulative distribution in the other.
        low: Lower end of the neuron's range.
        high: Upper end of the range.
        parts: Most bars to make, of equal width.

    Returns:
        Both histograms on one axis, without the empty ends.
    """
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
    """The open files of a dataset.

    Attributes:
        dna: The DNA.
        folds: The folds. None if there are none, or if they are not needed.
    """

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
        """Opens the files of a dataset.

        Args:
            catalogue: Where it is.
            name: Its name.
            version: Its version.
            layers: The layers that will be read.
            tested: Whether the folds are needed.

        Returns:
            The open files.
        """

        def opened(kind: str) -> DnaFile:
            return catalogue.open_file(kind, name, version, on_disk=True, layers=layers)

        tested = tested and "folds" in version.sha256
        return cls(opened("dna"), opened("folds") if tested else None)

    def read(self, layer: str) -> tuple[DNA, FoldCurves]:
        """Reads a layer.

        Args:
            layer: Name of the layer.

        Returns:
            The DNA of that layer, and its curves with those of the folds.
        """
        dna = self.dna.read([layer])
        folds = {} if self.folds is None else self.folds.read_folds(layer)
        return dna, FoldCurves.of([dna], [folds])


@dataclass(frozen=True, eq=False)
class _ComparedLayer:
    """What is known of a layer.

    Attributes:
        name: Name of the layer.
        weights: (C,) weights of its neurons.
        sums: Sums over its neurons.
        columns: Estimates of each of its neurons.
        overlays: Histograms of the neurons that are furthest apart, by position.
    """

    name: str
    weights: Floats
    sums: FoldSums
    columns: Mapping[str, Floats]
    overlays: Mapping[int, Overlay]

    @classmethod
    def of(cls, name: str, weights: Floats, sides: Sequence[Side], top: int) -> _ComparedLayer:
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
    """Orders neurons by what they add to the distance, the corrected one if it is known.

    Args:
        columns: `emd` and `emd_corrected`, (N,) each.
        weights: (N,) weights of the neurons.

    Returns:
        (N,) positions, the largest first. Those without a distance come last.
    """
    emd = np.nan_to_num(columns["emd"] * np.abs(weights), nan=-1.0)
    corrected = columns["emd_corrected"] * np.abs(weights)
    return np.lexsort((-emd, -np.where(np.isfinite(corrected), corrected, emd)))


def _neuron_table(parts: Sequence[_ComparedLayer], bins: int) -> tuple[pa.Table, Ints]:
    """Returns the neurons that have a weight, and the order in which they stand in the table."""
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


def _layer_table(
    parts: Sequence[_ComparedLayer], neurons: pa.Table, bins: int, *, whole: bool
) -> pa.Table:
    """Returns the layers, the furthest first, below `all`."""
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


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
