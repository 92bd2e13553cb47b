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

import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from pipeline.comparing.comparable_dnas import comparable
from pipeline.comparing.fold_statistics import PAIR_ESTIMATES
from pipeline.comparing.gaussians import frechet, frechet_1d, root_covariance, variance
from pipeline.comparing.pair_estimates import PairEstimates, estimate_pair
from pipeline.dna import DNA, UNIFORM, Floats, Ints, Lens
from pipeline.errors import UsageError
from pipeline.notebook import bar_chart, data_frame, html_table, polars_frame
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

    An `emd` of two DNAs that hold their folds also has error bars: those that `compare` computes of
    datasets. They are computed when they are first asked for. NaN stands for what is not known.

    Attributes:
        measure: Name of the distance: `emd`, `nfd` or `fd`.
        layers: Distance in each layer. For `emd` and `nfd` it is the mean over the layer's neurons,
            weighted by the lens if there is one.
        neurons: (N,) float64 distance of each neuron, in the order of the layers. A lens does not
            change them. For `fd` they are the distances of the neurons' own Gaussians, as in `nfd`.
        lens: Name of the lens that weighs the neurons; `uniform` without one.
        estimates: Error bars of the distance and of each layer, and a test of no difference.
    """

    measure: Measure
    layers: Mapping[str, float]
    neurons: Floats
    lens: str
    _estimate: Callable[[], PairEstimates]

    def __new__(
        cls,
        value: float,
        measure: Measure,
        layers: Mapping[str, float],
        neurons: Floats,
        lens: str = UNIFORM,
        estimate: Callable[[], PairEstimates] = PairEstimates,
    ) -> Distance:
        """Makes a distance of `value`.

        Args:
            value: The distance.
            measure: The attribute `measure`, as are the next ones.
            layers: Distance in each layer.
            neurons: Distance of each neuron.
            lens: Name of the lens.
            estimate: Computes the attribute `estimates`.

        Returns:
            The distance.
        """
        self = super().__new__(cls, value)
        self.measure = measure
        self.layers = dict(layers)
        self.neurons = neurons
        self.lens = lens
        self._estimate = estimate
        return self

    @cached_property
    def estimates(self) -> PairEstimates:
        """Error bars of the distance and of each layer; empty if they are not known."""
        return self._estimate()

    @property
    def emd_corrected(self) -> float:
        """The distance that samples without end would show, in bins."""
        return self._estimated("emd_corrected")

    @property
    def se(self) -> float:
        """Standard error of the distance."""
        return self._estimated("se")

    @property
    def paired(self) -> float:
        """Share of the images that are in pairs with the other DNA's; NaN if it is not known."""
        return self._estimated("paired")

    @property
    def low(self) -> float:
        """Lower end of the 95% interval of the distance that samples without end would show."""
        return self._estimated("low")

    @property
    def high(self) -> float:
        """Upper end of that interval."""
        return self._estimated("high")

    @property
    def floor(self) -> float:
        """The distance that two samples of one distribution would show at these sizes."""
        return self._estimated("floor")

    @property
    def p(self) -> float:
        """How likely two samples of one distribution are to look this different."""
        return self._estimated("p")

    def _estimated(self, name: str) -> float:
        return self.estimates.whole.get(name, math.nan)

    @property
    def name(self) -> str:
        """The measure, with the lens if there is one."""
        return self.measure if self.lens == UNIFORM else f"{self.measure} through {self.lens}"

    @property
    def unit(self) -> str:
        """Unit of the value, of the layers and of the neurons."""
        return UNITS[self.measure]

    def __reduce__(self) -> tuple[Any, ...]:
        known = partial(PairEstimates, self.estimates.whole, self.estimates.layers)
        content = (float(self), self.measure, self.layers, self.neurons, self.lens, known)
        return Distance, content

    def __str__(self) -> str:
        return float.__repr__(self)

    def __repr__(self) -> str:
        text = f"{self.name} = {float(self):.6g} {self.unit}{self._bars}"
        known = {layer: value for layer, value in self.layers.items() if not np.isnan(value)}
        if len(known) < 2:
            of = f" in {next(iter(self.layers))}" if len(self.layers) == 1 else ""
            return f"<{text}{of}, {count_of(len(self.neurons), 'neuron')}>"
        far = max(known, key=known.__getitem__)
        return (
            f"<{text}, {count_of(len(self.neurons), 'neuron')} in {len(self.layers)} layers, "
            f"largest in {far}: {known[far]:.6g}>"
        )

    @property
    def _bars(self) -> str:
        """What is said of the error bars; nothing if they are not known."""
        if math.isnan(self.emd_corrected):
            return ""
        return f", corrected {self.emd_corrected:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def _repr_html_(self) -> str:
        columns, cells = self.cells
        rows = [
            (layer, *("" if np.isnan(value) else f"{value:.4g}" for value in values))
            for layer, *values in cells
        ]
        caption = f"{self.name}: {float(self):.4g} {self.unit}{self._bars}"
        return html_table(caption, ("layer", self.unit, *columns[2:]), rows)

    def to_pandas(self) -> pd.DataFrame:
        """Returns a table with one row a layer, and the columns `layer` and `distance`.

        If error bars are known, each of `PAIR_ESTIMATES` is another column.
        """
        return data_frame(*self.cells)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return polars_frame(*self.cells)

    @property
    def cells(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Columns and rows of the table of `to_pandas`."""
        known = PAIR_ESTIMATES if self.estimates.layers else ()
        return ("layer", "distance", *known), [
            (layer, value, *(self.estimates.layers[layer][name] for name in known))
            for layer, value in self.layers.items()
        ]

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
        The distance with its layers and neurons, and with error bars if both DNAs hold their folds;
        or with `per_neuron` an (N,) float64 array. A neuron without a finite activation in one of
        the DNAs has a distance of NaN.

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
    return _distance("emd", each, a, lens, partial(estimate_pair, a, b, lens))


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


def _distance(
    measure: Measure,
    each: Floats,
    dna: DNA,
    lens: Lens | None = None,
    estimate: Callable[[], PairEstimates] = PairEstimates,
) -> Distance:
    """Returns the mean over a DNA's neurons, with those of each layer."""
    slices = {name: dna.slice_of(name) for name in dna.layers}
    if lens is None:
        layers = {name: float(each[at].mean()) for name, at in slices.items()}
        return Distance(float(each.mean()), measure, layers, each, UNIFORM, estimate)
    lens.require_fit(dna.spec)
    weights = lens.weights_of_layers(dna.layers)
    layers = {name: _weighted_mean(each[at], weights[at]) for name, at in slices.items()}
    return Distance(_weighted_mean(each, weights), measure, layers, each, lens.name, estimate)


def _weighted_mean(each: Floats, weights: Floats) -> float:
    weighed = np.flatnonzero(weights)  # a neuron without weight may have a distance of NaN
    total = weights.sum()
    return float(each[weighed] @ weights[weighed] / total) if total > 0 else float("nan")
