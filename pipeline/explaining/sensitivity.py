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
from typing import Any, Unpack

import numpy as np
import pyarrow as pa

from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import (
    ALL,
    FALSE_DISCOVERY_RATE,
    NEURON_COLUMNS,
    PAIR_ESTIMATES,
    FoldCurves,
    FoldSums,
    adjusted,
    estimates,
    fold_sums,
    neuron_estimates,
    resolve_versions,
)
from pipeline.dna import DNA, UNIFORM, DnaFile, Floats, Ints, Lens
from pipeline.errors import UsageError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining.explain_options import ExplainKeywords, ExplainOptions
from pipeline.explaining.explanation import LAYERS, NEURONS, Explanation, floats
from pipeline.explaining.histogram_overlay import Overlay, overlay
from pipeline.explaining.reactions import strongest_reactions


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
    differing = floats(neurons, "q") < FALSE_DISCOVERY_RATE
    share = np.nan_to_num(floats(neurons, "share"))
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
