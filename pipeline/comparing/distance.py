"""Measures how far apart two DNAs are.

    >>> distance = emd(a, b)                                                   # doctest: +SKIP
    >>> distance < 1, distance.layers["blocks.3.1"], distance.neurons[7]       # doctest: +SKIP

- `emd`, the Earth Mover's Distance, compares histograms. For each neuron it is the sum over bins of
  the absolute difference of the two cumulative distributions, in bin widths (Ramtoula et al., CVPR
  2023, section 3.3).
- `nfd`, the neuron-wise Fréchet distance, compares the Gaussians of each neuron's spatially
  averaged activation.
- `fd`, the Fréchet distance, compares the Gaussians of whole layers. On the right network and layer
  it is the FID.

All three are symmetric, and equal those of the authors' reference package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from pipeline.comparing.gaussians import frechet, frechet_1d, root_covariance, variance
from pipeline.dna import DNA, UNIFORM, Floats, Ints, Lens
from pipeline.errors import UsageError
from pipeline.notebook import Cells, bar_chart, data_frame, html_table, polars_frame
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

Measure = Literal["emd", "nfd", "fd"]

UNITS: dict[Measure, str] = {
    "emd": "bins",
    "nfd": "squared activation",
    "fd": "squared activation",
}


class Distance(float):
    """A distance between two DNAs: a number that also knows its layers and neurons.

    It compares, adds, formats and prints as the float that it is.

    Attributes:
        measure: Name of the distance: `emd`, `nfd` or `fd`.
        layers: Distance in each layer. For `emd` and `nfd` it is the mean over the layer's neurons,
            weighted by the lens if there is one.
        neurons: (N,) float64 distance of each neuron, in the order of the layers. A lens does not
            change them. For `fd` they are the distances of the neurons' own Gaussians, as in `nfd`.
        lens: Name of the lens that weighs the neurons; `uniform` without one.
    """

    measure: Measure
    layers: Mapping[str, float]
    neurons: Floats
    lens: str

    def __new__(
        cls,
        value: float,
        measure: Measure,
        layers: Mapping[str, float],
        neurons: Floats,
        lens: str = UNIFORM,
    ) -> Distance:
        """Makes a distance of `value`; the other arguments are the attributes."""
        self = super().__new__(cls, value)
        self.measure = measure
        self.layers = dict(layers)
        self.neurons = neurons
        self.lens = lens
        return self

    @property
    def name(self) -> str:
        """The measure, with the lens if there is one."""
        return self.measure if self.lens == UNIFORM else f"{self.measure} through {self.lens}"

    @property
    def unit(self) -> str:
        """Unit of the value, of the layers and of the neurons."""
        return UNITS[self.measure]

    def __reduce__(self) -> tuple[Any, ...]:
        content = (float(self), self.measure, self.layers, self.neurons, self.lens)
        return Distance, content

    def __str__(self) -> str:
        return float.__repr__(self)

    def __repr__(self) -> str:
        text = f"{self.name} = {float(self):.6g} {self.unit}"
        known = {layer: value for layer, value in self.layers.items() if not np.isnan(value)}
        if len(known) < 2:
            of = f" in {next(iter(self.layers))}" if len(self.layers) == 1 else ""
            return f"<{text}{of}, {count_of(len(self.neurons), 'neuron')}>"
        far = max(known, key=known.__getitem__)
        return (
            f"<{text}, {count_of(len(self.neurons), 'neuron')} in {len(self.layers)} layers, "
            f"largest in {far}: {known[far]:.6g}>"
        )

    def _repr_html_(self) -> str:
        rows = [(layer, f"{value:.4g}") for layer, value in self.layers.items()]
        caption = f"{self.name}: {float(self):.4g} {self.unit}"
        return html_table(caption, ("layer", self.unit), rows)

    def to_pandas(self) -> pd.DataFrame:
        """Returns a table with one row a layer, and the columns `layer` and `distance`."""
        return data_frame(*self._cells)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return polars_frame(*self._cells)

    @property
    def _cells(self) -> Cells:
        return ("layer", "distance"), self.layers.items()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws one bar a layer, in the order of the network.

        Args:
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        unit = f"{self.name} ({self.unit})"
        return bar_chart([*self.layers], [*self.layers.values()], unit, ax)


def cumulative(dna: DNA, neurons: slice | Ints = slice(None)) -> Floats:
    """Returns the (N, bins) float64 cumulative distributions of neurons.

    The sum of absolute differences (L1) between two of them is their EMD.
    """
    return np.cumsum(dna.distributions(neurons), axis=1)


@overload
def emd(
    a: DNA,
    b: DNA,
    *,
    layer: str | None = ...,
    per_neuron: Literal[False] = ...,
    lens: Lens | None = ...,
) -> Distance: ...


@overload
def emd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[True]) -> Floats: ...


def emd(
    a: DNA,
    b: DNA,
    *,
    layer: str | None = None,
    per_neuron: bool = False,
    lens: Lens | None = None,
) -> Distance | Floats:
    """Computes the Earth Mover's Distance: the mean over neurons, in bin widths.

    Args:
        a: One DNA.
        b: The other DNA, counted under the same spec.
        layer: Compares the neurons of this layer only.
        per_neuron: Returns the plain array of the neurons' distances.
        lens: Weighs the neurons in the means. A mean is NaN if its weights do not sum to more than
            zero.

    Returns:
        The distance with its layers and neurons, or with `per_neuron` an (N,) float64 array. A
        neuron without a finite activation in one of the DNAs has a distance of NaN.

    Raises:
        SpecMismatch: If the specs differ; the message names the fields.
        UsageError: If a DNA has no histograms or no images, if different layers are loaded, or for
            a lens on other neurons or beside `per_neuron`.
    """
    a, b = comparable(a, b, layer, "counts")
    each = np.abs(cumulative(a) - cumulative(b)).sum(axis=1)
    if per_neuron:
        if lens is not None:
            raise UsageError(
                f"lens {lens.name} weighs neurons against each other, and per_neuron asks for each "
                "alone; leave one of them out"
            )
        return cast(Floats, each)
    return _distance("emd", each, a, lens)


@overload
def nfd(
    a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[False] = ...
) -> Distance: ...


@overload
def nfd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[True]) -> Floats: ...


def nfd(a: DNA, b: DNA, *, layer: str | None = None, per_neuron: bool = False) -> Distance | Floats:
    """Computes the neuron-wise Fréchet distance: the mean over neurons, in squared activation.

    Args:
        a: One DNA.
        b: The other DNA, counted under the same spec.
        layer: Compares the neurons of this layer only.
        per_neuron: Returns the plain array of the neurons' distances.

    Returns:
        The distance with its layers and neurons, or with `per_neuron` an (N,) float64 array.

    Raises:
        SpecMismatch: If the specs differ; the message names the fields.
        UsageError: If a DNA has no Gaussians or fewer than two images, or if different layers are
            loaded.
    """
    a, b = comparable(a, b, layer, "mean")
    each = frechet_1d(a.mean, variance(a), b.mean, variance(b))
    return each if per_neuron else _distance("nfd", each, a)


@overload
def fd(
    a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[False] = ...
) -> Distance: ...


@overload
def fd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[True]) -> Floats: ...


def fd(a: DNA, b: DNA, *, layer: str | None = None, per_neuron: bool = False) -> Distance | Floats:
    """Computes the Fréchet distance of whole layers: the mean over layers, in squared activation.

    Args:
        a: One DNA, with layer Gaussians.
        b: The other DNA, counted under the same spec, with layer Gaussians.
        layer: Compares this layer only.
        per_neuron: Returns the plain array of the neurons' distances. Those of single neurons are
            the distances of their own two Gaussians, as in `nfd`.

    Returns:
        The distance with its layers and neurons, or with `per_neuron` an (N,) float64 array.

    Raises:
        SpecMismatch: If the specs differ; the message names the fields.
        UsageError: If a DNA has no layer Gaussians or fewer than two images, or if different layers
            are loaded.
    """
    a, b = comparable(a, b, layer, "scatter")
    each = frechet_1d(a.mean, variance(a), b.mean, variance(b))
    if per_neuron:
        return each
    layers = {
        name: frechet(
            a.mean[a.slice_of(name)],
            root_covariance(a, name),
            b.mean[b.slice_of(name)],
            root_covariance(b, name),
        )
        for name in a.layers
    }
    return Distance(float(np.mean(list(layers.values()))), "fd", layers, each)


def _distance(measure: Measure, each: Floats, dna: DNA, lens: Lens | None = None) -> Distance:
    """Returns the mean over a DNA's neurons, with those of each layer."""
    slices = {name: dna.slice_of(name) for name in dna.layers}
    if lens is None:
        layers = {name: float(each[at].mean()) for name, at in slices.items()}
        return Distance(float(each.mean()), measure, layers, each)
    lens.require_fit(dna.spec)
    weights = lens.weights_of_layers(dna.layers)
    layers = {name: _weighted_mean(each[at], weights[at]) for name, at in slices.items()}
    return Distance(_weighted_mean(each, weights), measure, layers, each, lens.name)


def _weighted_mean(each: Floats, weights: Floats) -> float:
    weighed = np.flatnonzero(weights)  # a neuron without weight may have a distance of NaN
    total = weights.sum()
    return float(each[weighed] @ weights[weighed] / total) if total > 0 else float("nan")


_MISSING = {
    "counts": "has no histograms",
    "mean": "has no Gaussians",
    "scatter": "has no layer Gaussians: build it, and load it, with layer_gaussian=True",
}


def comparable(
    a: DNA,
    b: DNA,
    layer: str | None,
    column: str,
    names: tuple[str, str] = ("the first DNA", "the second DNA"),
) -> tuple[DNA, DNA]:
    """Checks that two DNAs can be compared, and takes a layer of each.

    Args:
        a: One DNA.
        b: The other DNA.
        layer: The layer to take, or None for all.
        column: What both must have: `counts`, `mean` or `scatter`.
        names: What messages call the two.

    Returns:
        Both DNAs, reduced to the layer if one is given.

    Raises:
        SpecMismatch: If the specs differ; the message names the fields.
        UsageError: If a DNA has no images or lacks the column, or if different layers are loaded.
    """
    a.spec.require_same(b.spec, *names)
    for name, dna in zip(names, (a, b), strict=True):
        if dna.images == 0:
            raise UsageError(f"{name} has no images, so there is no distance from it")
        if column in dna.unknown or (column == "scatter" and dna.scatter is None):
            raise UsageError(f"{name} {_MISSING[column]}")
    if layer is not None:
        return a.select([layer]), b.select([layer])
    if a.layers != b.layers:
        raise UsageError(
            f"layers {a.layers} are loaded of {names[0]} and {b.layers} of {names[1]}; load the "
            "same of both, or choose one with layer="
        )
    return a, b
