"""Explains why two datasets differ: their layers and neurons, those that are furthest apart first.

    >>> found = explain(Catalogue("dnas"), "sunny", "rainy")              # doctest: +SKIP
    >>> found.to_pandas().query("q < 0.05").head(20)                      # doctest: +SKIP

The sensitivity of a neuron is its Earth Mover's Distance between the two (Ramtoula et al., CVPR
2023, section 4). Among thousands of neurons some lie far apart by chance. So each has an interval
and a test of its own from the folds, and `q` bounds the share of false alarms among those that are
called different (Benjamini and Hochberg, 1995).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    cumulative,
    estimates,
    fold_sums,
    neuron_estimates,
    resolve_versions,
)
from pipeline.dna import DNA, UNIFORM, DnaFile, Floats, Ints, Lens
from pipeline.errors import UsageError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining.description import command_words, describe_groups
from pipeline.explaining.explain_options import LOOK, ExplainKeywords, ExplainOptions
from pipeline.explaining.explanation import LAYERS, NEURONS, Explanation, floats
from pipeline.explaining.histogram_overlay import Overlay, overlay
from pipeline.explaining.image_look import look_again
from pipeline.explaining.network_stages import network_layers, stages_of
from pipeline.explaining.neuron_groups import Moves, NeuronGroup, choose_groups, numbered
from pipeline.explaining.parting import part
from pipeline.explaining.reactions import (
    Reactions,
    kept_exemplars,
    reader_of,
    strongest_reactions,
)
from pipeline.wording import option


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
        UsageError: If both datasets are the same, one of them has no histograms, or weights are
            given and no image is looked at.
    """
    if a == b:
        raise UsageError(f"explaining takes two datasets, and {a!r} is given twice")
    asked = ExplainOptions(**options)
    if asked.weights and asked.look is None and not asked.describe:
        raise UsageError(
            f"{option('weights')} is for looking at images again; give {option('look', LOOK)}, "
            "too, or leave it out"
        )
    if asked.describe:
        command_words(asked.describe)  # a wrong one is refused before the work begins
    layers = None if ALL in (asked.layers or ()) else asked.layers
    digest, versions = resolve_versions(catalogue, [a, b], at=asked.at, spec=asked.spec)
    for name, version in versions.items():
        if not version.has_histograms:
            raise UsageError(
                f"{name} has no histograms to explain a distance by, as it was "
                f"{version.provenance}; build it of its images, or import a file of histograms"
            )
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
    names = list(zip(*(table[name].to_pylist() for name in ("layer", "neuron")), strict=True))
    kept = [
        (kept_exemplars(catalogue, *version), reader_of(catalogue, *version))
        for version in versions.items()
    ]
    of_a, of_b = (strongest_reactions(*of, names[: asked.top]) for of in kept)
    stages = dict(zip(chosen, stages_of(chosen, network_layers(network.extractor)), strict=True))
    moves = np.concatenate([part.moves[np.flatnonzero(part.weights)] for part in parts])[order]
    numbers = [
        numbered(exemplars, names, version.images)
        for (exemplars, _), version in zip(kept, versions.values(), strict=True)
    ]
    groups = choose_groups(table, stages, moves, numbers, asked.top)
    firsts = [names[place] for place, _ in groups]
    found = Explanation(
        versions,
        UNIFORM if lens is None else lens.name,
        _layer_table(parts, table, network.bins, whole=layers is None),
        table,
        tuple(overlay for overlay in shown if overlay is not None),
        tuple(zip(of_a, of_b, strict=True)),
        stages,
        tuple(
            _groups(groups, names, stages, sides, [strongest_reactions(*of, firsts) for of in kept])
        ),
    )
    if asked.looked:
        found = look_again(
            catalogue,
            found,
            lens=lens,
            images=asked.looked,
            weights=asked.weights,
            progress=progress,
        )
    if asked.describe:
        found = describe_groups(found, asked.describe, progress)
    return found


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
        if self.folds is None:
            return dna, FoldCurves.of([dna], [{}])
        return dna, FoldCurves.of([dna], [self.folds.read_folds(layer)], [self.folds.pairs])


@dataclass(frozen=True, eq=False)
class _ComparedLayer:
    """What is known of a layer.

    Attributes:
        name: Name of the layer.
        weights: (C,) weights of its neurons.
        sums: Sums over its neurons.
        columns: Estimates of each of its neurons.
        overlays: Histograms of the neurons that are furthest apart, by position.
        moves: How each of its neurons moves over the folds of both datasets (see `Moves`).
    """

    name: str
    weights: Floats
    sums: FoldSums
    columns: Mapping[str, Floats]
    overlays: Mapping[int, Overlay]
    moves: Moves

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
        moves = np.concatenate([side.offsets[0].sum(axis=1) for side in (a, b)], axis=1)
        return cls(name, weights, sums, columns, overlays, moves)


def _groups(
    chosen: Sequence[tuple[int, list[int]]],
    names: Sequence[tuple[str, int]],
    stages: Mapping[str, str],
    sides: Sequence[Side],
    reactions: Sequence[Sequence[Reactions]],
) -> Iterator[NeuronGroup]:
    """Yields groups with the histograms of their first neurons. Each layer is read once."""
    held: dict[str, list[DNA]] = {}
    for (place, others), exemplars in zip(chosen, zip(*reactions, strict=True), strict=True):
        layer, neuron = names[place]
        if layer not in held:
            held[layer] = [side.dna.read([layer]) for side in sides]
        a, b = held[layer]
        of_a, of_b = (cumulative(dna, np.array([neuron]))[0] for dna in (a, b))
        yield NeuronGroup(
            stages[layer],
            place,
            layer,
            neuron,
            tuple("{}[{}]".format(*names[other]) for other in others),
            overlay(a, b, neuron),
            part(of_a, of_b, float(a.low[neuron]), float(a.high[neuron])),
            exemplars,
        )


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
