"""Shows a DNA as tables and pictures: a row for each neuron, or for each layer.

>>> to_table(dna).column_names[:3]                               # doctest: +SKIP
['layer', 'neuron', 'counts']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.dna.arrays import Floats, Ints
from pipeline.errors import UsageError
from pipeline.notebook import new_axes
from pipeline.spec import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARROW_TYPES = {
    "underflow": pa.int64(),
    "overflow": pa.int64(),
    "nonfinite": pa.int64(),
    "low": pa.float64(),
    "high": pa.float64(),
    "min": pa.float32(),
    "max": pa.float32(),
    "mean": pa.float64(),
    "m2": pa.float64(),
}

LAYER_COLUMNS = ("layer", "neurons", "positions", "below the range", "above it", "not finite")


class NeuronValues(Protocol):
    """What a DNA knows of its neurons; see `DNA`."""

    @property
    def spec(self) -> Spec:
        """The spec."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that were loaded."""

    @property
    def counts(self) -> Ints:
        """(N, bins) counts."""

    @property
    def scatter(self) -> Floats | None:
        """The scatter matrices."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """The columns that are not known."""

    def slice_of(self, layer: str) -> slice:
        """Finds a layer's neurons."""

    def distributions(self, neurons: slice | Ints) -> Floats:
        """Returns histograms normalised to sum to 1."""


def to_table(dna: NeuronValues, fold: int | None = None) -> pa.Table:
    """Makes the rows of a file, one for each neuron of the DNA.

    Args:
        dna: The DNA.
        fold: The value of a column `fold`, for files that hold several folds. None adds none.

    Returns:
        The rows, in the order of the DNA's layers.
    """
    names = [layer for layer in dna.layers for _ in range(dna.spec.tap(layer).neurons)]
    index = [i for layer in dna.layers for i in range(dna.spec.tap(layer).neurons)]
    rows, bins = dna.counts.shape
    offsets = np.arange(0, (rows + 1) * bins, bins, dtype=np.int32)
    columns: dict[str, pa.Array] = {}
    if fold is not None:
        columns["fold"] = pa.array(np.full(rows, fold, np.int32))
    columns["layer"] = pa.array(names, pa.string())
    columns["neuron"] = pa.array(index, pa.int32())
    columns["counts"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(dna.counts.ravel()))
    for name, kind in ARROW_TYPES.items():
        columns[name] = pa.array(getattr(dna, name), kind)
    for name in set(dna.unknown) & columns.keys():
        columns[name] = pa.nulls(rows, columns[name].type)
    if dna.scatter is not None:
        columns["scatter"] = _scatter_column(dna)
    return pa.table(columns)


def _scatter_column(dna: NeuronValues) -> pa.Array:
    lengths = [i for layer in dna.layers for i in range(dna.spec.tap(layer).neurons, 0, -1)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(dna.scatter))


def layer_rows(dna: NeuronValues) -> list[tuple[str, ...]]:
    """Says of each layer how many neurons it has, and which share of activations is in no bin.

    Args:
        dna: The DNA.

    Returns:
        Cells of the columns `LAYER_COLUMNS`; empty where the DNA does not know.
    """
    rows = []
    for layer in dna.layers:
        tap, at = dna.spec.tap(layer), dna.slice_of(layer)
        outside: dict[str, Any] = {
            name: getattr(dna, name)[at].sum() for name in ("underflow", "overflow", "nonfinite")
        }
        total = dna.counts[at].sum() + sum(outside.values())
        shares = [
            "" if name in dna.unknown or not total else f"{number / total:.2%}"
            for name, number in outside.items()
        ]
        rows.append((layer, f"{tap.neurons:,}", f"{tap.positions:,}", *shares))
    return rows


def plot_distributions(
    dna: NeuronValues, layer: str | None, neuron: int | None, ax: Axes | None
) -> Axes:
    """Draws the distributions of all layers, of a layer's neurons, or of one neuron.

    Args:
        dna: The DNA.
        layer: The layer; None draws the mean distribution of each layer.
        neuron: The number of a neuron in the layer; None draws all of them.
        ax: Axes to draw on. None makes a new figure.

    Returns:
        The axes that were drawn on.

    Raises:
        UsageError: There is no such neuron, a neuron is asked for without its layer, or the DNA has
            no histograms.
    """
    if "counts" in dna.unknown:
        raise UsageError("this DNA has no histograms to draw")
    if layer is None:
        if neuron is not None:
            raise UsageError(f"neuron {neuron} of which layer? Name the layer, too")
        means = [_mean_row(dna.distributions(dna.slice_of(name))) for name in dna.layers]
        ax = _heat_map(np.stack(means), ax)
        ax.set_yticks(range(len(means)), dna.layers)
        return ax
    at, neurons = dna.slice_of(layer), dna.spec.tap(layer).neurons
    if neuron is None:
        ax = _heat_map(dna.distributions(at), ax)
        ax.set_ylabel(f"neuron of {layer}")
        return ax
    if not 0 <= neuron < neurons:
        raise UsageError(f"layer {layer} has no neuron {neuron}; it has 0 to {neurons - 1}")
    place = at.start + neuron
    ends: dict[str, float] = {name: getattr(dna, name)[place] for name in ("low", "high")}
    edges = np.linspace(ends["low"], ends["high"], dna.spec.bins + 1)
    ax = new_axes(6, 3) if ax is None else ax
    ax.stairs(dna.distributions(slice(place, place + 1))[0], edges, fill=True)
    ax.set_xlabel(f"activation of neuron {neuron} of {layer}")
    ax.set_ylabel("share of activations")
    return ax


def _mean_row(rows: Floats) -> Floats:
    """Returns the mean of the rows that are known; NaN if none is."""
    known = rows[~np.isnan(rows).any(axis=1)]
    return np.asarray(known.mean(axis=0)) if len(known) else np.full(rows.shape[1], np.nan)


def _heat_map(shares: Floats, ax: Axes | None) -> Axes:
    """Draws one row for each distribution, on a scale of colours that is not linear."""
    ax = new_axes(7, 1.5 + min(5.0, 0.25 * len(shares))) if ax is None else ax
    # A bin or two hold most activations of some neurons: a linear scale would hide the others.
    ax.imshow(np.sqrt(shares), cmap="viridis", aspect="auto", interpolation="nearest")
    ax.set_xlabel("bin of the range")
    return ax
