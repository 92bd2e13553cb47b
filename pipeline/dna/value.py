"""A DNA: how every neuron of a network reacted to a set of images.

>>> a, b = DNA.empty(spec, ranges), ...            # doctest: +SKIP
>>> (a + b).images == a.images + b.images          # doctest: +SKIP
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.dna.arrays import Floats, Ints
from pipeline.dna.moments import merge_moments
from pipeline.dna.neuron_rows import (
    ARROW_TYPES,
    LAYER_COLUMNS,
    layer_rows,
    plot_distributions,
    to_table,
)
from pipeline.dna.pairs import Pairs
from pipeline.dna.ranges import Ranges, neuron_name
from pipeline.errors import ConservationError, CorruptFile, SpecMismatch, UsageError
from pipeline.notebook import arrow_data_frame, arrow_polars, html_table
from pipeline.spec import Numerics, Spec
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

INT_COLUMNS = ("underflow", "overflow", "nonfinite")

SCALAR_COLUMNS = tuple(ARROW_TYPES)

SCATTER = ("scatter",)

NOTED = ("transparent", "single_colour")
"""The numbers of images that are noted beside the counts. They are in no digest."""

FLOAT_SUMS = ("mean", "m2", "scatter")
"""The columns that may be NaN or infinite, since a network may overflow."""


class FoldSource(Protocol):
    """The folds of a DNA, which `HeldFolds` holds."""

    @property
    def pairs(self) -> Pairs | None:
        """By which names the images are paired with others'; None if that is not known."""

    def read(self, layer: str) -> Mapping[int, DNA]:
        """Reads the DNA of one layer, of each fold."""

    def __add__(self, other: Any) -> FoldSource:
        """Adds the folds of other images."""


@dataclass(frozen=True, eq=False)
class DNA:
    """The histograms, Gaussians and extremes of every neuron over a set of images.

    One pass over the images gives everything that the paper (Ramtoula et al., CVPR 2023) compares.

    Laws:

    - `empty` is neutral for `+`.
    - `+` is associative and commutative. For integers, minima and maxima this holds to the last
      bit. `mean`, `m2` and `scatter` are floats: they are equal to the last bit if the DNAs are
      added in the same order, which `pipeline.counting.reduction` fixes, and else up to rounding.
    - `+` refuses DNAs with different specs or layers, and a DNA with layer Gaussians and one
      without.
    - There is no `-`. To remove images, add up the kept partials without them.

    N is the number of neurons in all layers.

    Attributes:
        spec: The spec that the images were counted under.
        layers: The layers that were loaded, in the order of the arrays.
        images: How many images were counted.
        failed: How many images could not be read.
        counts: (N, bins) int64, the activations in each bin of [low, high].
        underflow: (N,) int64, the activations below `low`.
        overflow: (N,) int64, the activations above `high`.
        nonfinite: (N,) int64, the activations that are NaN or infinite.
        low: (N,) float64, the lower ends of the ranges.
        high: (N,) float64, the upper ends of the ranges.
        min: (N,) float32, the smallest finite activation; +inf if there is none.
        max: (N,) float32, the largest finite activation; -inf if there is none.
        mean: (N,) float64, the mean over images of the spatially averaged activation. Like `m2`
            and `scatter`, it is not finite if the network overflowed.
        m2: (N,) float64, the sum of squared deviations from `mean` over images.
        numerics: How many images were counted under each numerics.
        scatter: float64, the sums of products of deviations from `mean` over images, for each pair
            of neurons in a layer. The upper triangles are stored row by row, one layer after the
            other. None unless the build kept layer Gaussians.
        unknown: The columns that an imported file does not hold; their arrays are zero.
        folds: The folds that the images were counted in, for error bars; None if they are not held.
            They sum to the DNA. A sum holds them if both summands do.
        transparent: How many of the images have a pixel that is less than opaque. None if it was
            not noted, as in an import.
        single_colour: How many of the images are of one colour; None likewise.
    """

    spec: Spec
    layers: tuple[str, ...]
    images: int
    failed: int
    counts: Ints
    underflow: Ints
    overflow: Ints
    nonfinite: Ints
    low: Floats
    high: Floats
    min: NDArray[np.float32]
    max: NDArray[np.float32]
    mean: Floats
    m2: Floats
    numerics: tuple[tuple[Numerics, int], ...] = ()
    scatter: Floats | None = None
    unknown: tuple[str, ...] = ()
    folds: FoldSource | None = None
    transparent: int | None = None
    single_colour: int | None = None

    @classmethod
    def empty(cls, spec: Spec, ranges: Ranges, *, layer_gaussian: bool = False) -> DNA:
        """Makes the DNA of no images.

        Args:
            spec: What will be counted.
            ranges: The ranges that the spec names.
            layer_gaussian: Whether to keep the scatter matrix of each layer.

        Returns:
            The neutral element of `+`.

        Raises:
            SpecMismatch: The spec names other ranges.
        """
        ranges.require_those_of(spec)
        n = spec.neurons
        zeros: dict[str, Any] = {name: np.zeros(n, np.int64) for name in INT_COLUMNS}
        return cls(
            spec,
            spec.layers,
            images=0,
            failed=0,
            counts=np.zeros((n, spec.bins), np.int64),
            **zeros,
            low=ranges.low,
            high=ranges.high,
            min=np.full(n, np.inf, np.float32),
            max=np.full(n, -np.inf, np.float32),
            mean=np.zeros(n),
            m2=np.zeros(n),
            scatter=np.zeros(packed_scatter_size(spec, spec.layers)) if layer_gaussian else None,
            transparent=0,
            single_colour=0,
        )

    def __add__(self, other: DNA) -> DNA:
        """Adds the DNA of other images.

        Args:
            other: The DNA of images that this one does not hold.

        Returns:
            The DNA of all the images together.

        Raises:
            SpecMismatch: They were not made the same way.
        """
        self.spec.require_same(other.spec, "the left DNA", "the right DNA")
        if self.layers != other.layers:
            raise SpecMismatch(f"layers {self.layers} cannot be added to {other.layers}")
        if (self.scatter is None) != (other.scatter is None):
            raise SpecMismatch("a DNA with layer Gaussians cannot be added to one without")
        images = self.images + other.images
        mean, m2 = _merge_dna_moments(self, other)
        used: defaultdict[Numerics, int] = defaultdict(int)
        for numerics, count in self.numerics + other.numerics:
            used[numerics] += count
        return replace(
            self,
            images=images,
            failed=self.failed + other.failed,
            counts=self.counts + other.counts,
            underflow=self.underflow + other.underflow,
            overflow=self.overflow + other.overflow,
            nonfinite=self.nonfinite + other.nonfinite,
            min=np.minimum(self.min, other.min),
            max=np.maximum(self.max, other.max),
            mean=mean,
            m2=m2,
            numerics=tuple(sorted(used.items(), key=lambda item: repr(item[0]))),
            scatter=self._merge_scatter(other),
            unknown=tuple(sorted({*self.unknown, *other.unknown})),
            folds=self._merge_folds(other),
            transparent=sum_noted(self.transparent, other.transparent),
            single_colour=sum_noted(self.single_colour, other.single_colour),
        )

    def _merge_folds(self, other: DNA) -> FoldSource | None:
        if self.images == 0 or other.images == 0:
            return self.folds if other.images == 0 else other.folds
        return None if self.folds is None or other.folds is None else self.folds + other.folds

    def _merge_scatter(self, other: DNA) -> Floats | None:
        """Adds the scatter matrices: `merge_moments` for pairs of neurons."""
        if self.scatter is None or other.scatter is None:
            return None
        if self.images == 0 or other.images == 0:
            return self.scatter if other.images == 0 else other.scatter
        weight = self.images * (other.images / (self.images + other.images))
        with np.errstate(invalid="ignore"):  # inf - inf, where a network overflowed
            merged = self.scatter + other.scatter
            delta = other.mean - self.mean
            start = 0
            for layer in self.layers:
                of_layer = delta[self.slice_of(layer)]
                for i in range(len(of_layer)):
                    stop = start + len(of_layer) - i
                    merged[start:stop] += of_layer[i] * of_layer[i:] * weight
                    start = stop
        return merged

    @property
    def positions(self) -> Ints:
        """(N,) int64, how many spatial positions each neuron has per image."""
        taps = [self.spec.tap(layer) for layer in self.layers]
        return np.repeat(
            np.array([tap.positions for tap in taps], np.int64), [tap.neurons for tap in taps]
        )

    def slice_of(self, layer: str) -> slice:
        """Finds a layer's neurons in the arrays.

        Args:
            layer: The layer.

        Returns:
            The slice of its neurons.

        Raises:
            UsageError: The network has no such layer.
            CorruptFile: The layer was not loaded.
        """
        start = 0
        for name in self.layers:
            neurons = self.spec.tap(name).neurons
            if name == layer:
                return slice(start, start + neurons)
            start += neurons
        self.spec.tap(layer)
        raise CorruptFile(f"layer {layer!r} was not loaded; only {', '.join(self.layers)} were")

    def select(self, layers: Sequence[str]) -> DNA:
        """Takes some layers of the DNA.

        Args:
            layers: The layers, in the order wanted.

        Returns:
            The DNA of those layers. For a single layer its arrays are views, not copies.
        """
        slices = [self.slice_of(layer) for layer in layers]
        arrays: dict[str, Any] = {
            name: concatenate_arrays([getattr(self, name)[s] for s in slices])
            for name in ("counts", *SCALAR_COLUMNS)
        }
        if self.scatter is not None:
            arrays["scatter"] = concatenate_arrays([self._triangle(layer) for layer in layers])
        return replace(self, layers=tuple(layers), **arrays)

    def _triangle(self, layer: str) -> Floats:
        """Returns the part of `scatter` that belongs to one layer."""
        if self.scatter is None:
            raise UsageError(
                "this DNA has no layer Gaussians; build it, and load it, with layer_gaussian=True"
            )
        self.slice_of(layer)
        start = packed_scatter_size(self.spec, self.layers[: self.layers.index(layer)])
        return self.scatter[start : start + packed_scatter_size(self.spec, [layer])]

    def scatter_of(self, layer: str) -> Floats:
        """Returns the scatter matrix of a layer.

        Args:
            layer: The layer, with C neurons.

        Returns:
            (C, C) float64, symmetric.

        Raises:
            UsageError: The DNA was built or loaded without layer Gaussians.
        """
        neurons = self.spec.tap(layer).neurons
        full = np.zeros((neurons, neurons))
        full[np.triu_indices(neurons)] = self._triangle(layer)
        return np.triu(full) + np.triu(full, 1).T

    def check(self, name: str = "this DNA") -> None:
        """Checks that every activation of every image was counted exactly once.

        An imported DNA does not hold the activations outside the ranges. There the check is only
        that no count is negative.

        Args:
            name: What errors call this DNA.

        Raises:
            ConservationError: A neuron holds too many or too few activations, or a sum does not
                agree with another that must be equal. The message names the first such neuron.
        """
        found = self.counts.sum(axis=1) + self.underflow + self.overflow + self.nonfinite
        expected = self.images * self.positions
        negative = np.asarray(self.counts.min(axis=1, initial=0) < 0)
        for column in INT_COLUMNS:
            negative |= getattr(self, column) < 0
        wrong = np.flatnonzero(negative if self.unknown else (found != expected) | negative)
        if len(wrong):
            at = int(wrong[0])
            taps = [(layer, self.spec.tap(layer).neurons) for layer in self.layers]
            raise ConservationError(
                f"{name}: neuron {neuron_name(taps, at)} holds {found[at]} activations"
                f"{', some counts negative' if negative[at] else ''}; {self.images} images x "
                f"{self.positions[at]} positions = {expected[at]} ({len(wrong)} neurons are wrong)"
            )
        counted = sum(count for _, count in self.numerics)
        if counted != self.images and not self.unknown:
            raise ConservationError(
                f"{name}: numerics account for {counted} of {self.images} images"
            )
        for field in NOTED:
            noted = getattr(self, field)
            if noted is not None and not 0 <= noted <= self.images:
                raise ConservationError(f"{name}: {field} is {noted} of {self.images} images")
        self._check_scatter(name)

    def _check_scatter(self, name: str) -> None:
        """Checks that the scatter matrices have `m2`, which is summed separately, as diagonals."""
        if self.scatter is None:
            return
        diagonal = np.concatenate([self._triangle(la)[_diagonal(self, la)] for la in self.layers])
        with np.errstate(invalid="ignore"):  # inf - inf, where a network overflowed
            scale = self.m2 + self.images * self.mean**2
            wrong = np.flatnonzero(np.abs(diagonal - self.m2) > 1e-9 * scale)
        if len(wrong):
            at = int(wrong[0])
            taps = [(layer, self.spec.tap(layer).neurons) for layer in self.layers]
            raise ConservationError(
                f"{name}: neuron {neuron_name(taps, at)} has the sum of squares {self.m2[at]}, and "
                f"{diagonal[at]} in its layer's scatter matrix"
            )

    def identical(self, other: DNA) -> bool:
        """Compares two DNAs.

        Args:
            other: Another DNA.

        Returns:
            Whether they are equal to the last bit, apart from the numerics and the folds. NaN
            equals NaN.
        """
        return (
            self.spec == other.spec
            and (self.layers, self.images, self.failed)
            == (other.layers, other.images, other.failed)
            and self.unknown == other.unknown
            and all(getattr(self, field) == getattr(other, field) for field in NOTED)
            and (self.scatter is None) == (other.scatter is None)
            and all(
                np.array_equal(
                    getattr(self, name), getattr(other, name), equal_nan=name in FLOAT_SUMS
                )
                for name in ("counts", *SCALAR_COLUMNS, *(() if self.scatter is None else SCATTER))
            )
        )

    def distributions(self, neurons: slice | Ints = slice(None)) -> Floats:
        """Returns histograms normalised to sum to 1.

        The first bin includes the underflow and the last bin the overflow, as if activations were
        clamped to the range. The reference implementation does the same.

        Args:
            neurons: The neurons to return, as a slice or as indices. The default is all.

        Returns:
            (N, bins) float64. A neuron without a finite activation has a row of NaN.
        """
        filled = self.counts[neurons].astype(np.float64)
        filled[:, 0] += self.underflow[neurons]
        filled[:, -1] += self.overflow[neurons]
        with np.errstate(invalid="ignore"):
            shares: Floats = filled / filled.sum(axis=1, keepdims=True)
        return shares

    def __repr__(self) -> str:
        return (
            f"DNA({self.spec.extractor}, {count_of(self.images, 'image')}, "
            f"{count_of(len(self.low), 'neuron')} x {self.spec.bins} bins, "
            f"spec {self.spec.digest[:12]})"
        )

    def _repr_html_(self) -> str:
        return html_table(repr(self), *self.layer_cells)

    @property
    def layer_cells(self) -> tuple[Sequence[str], list[tuple[str, ...]]]:
        """Columns and rows of a table of the layers, as a notebook shows it."""
        return LAYER_COLUMNS, layer_rows(self)

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each neuron, with the columns of the DNA's file.

        `counts` holds each neuron's histogram.
        """
        return arrow_data_frame(to_table(replace(self, scatter=None)))

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return arrow_polars(to_table(replace(self, scatter=None)))

    def plot(
        self, layer: str | None = None, neuron: int | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draws distributions: of all layers, of a layer's neurons, or of one neuron.

        Args:
            layer: The layer; None draws the mean distribution of each layer, over bins.
            neuron: The number of a neuron in the layer, whose histogram is drawn.
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        return plot_distributions(self, layer, neuron, ax)


def sum_noted(one: int | None, other: int | None) -> int | None:
    """Adds numbers that were noted of images; None, if either was not noted."""
    return None if one is None or other is None else one + other


def packed_scatter_size(spec: Spec, layers: Sequence[str]) -> int:
    """Returns how many numbers the upper triangles of scatter matrices hold.

    Args:
        spec: The spec that has the layers.
        layers: The layers.

    Returns:
        The total over the layers.
    """
    return sum((n := spec.tap(layer).neurons) * (n + 1) // 2 for layer in layers)


def _diagonal(dna: DNA, layer: str) -> Ints:
    """Returns the indices of the diagonal in a layer's packed upper triangle."""
    neurons = dna.spec.tap(layer).neurons
    return cast(Ints, np.cumsum([0, *range(neurons, 1, -1)]))


def concatenate_arrays(parts: Sequence[Any]) -> Any:
    """Concatenates arrays; a single one is returned without a copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _merge_dna_moments(a: DNA, b: DNA) -> tuple[Floats, Floats]:
    return merge_moments(a.images, a.mean, a.m2, b.images, b.mean, b.m2)


def hash_numbers(into: Any, dna: DNA) -> None:
    """Feeds a hash with all numbers of a DNA, in the same way on every machine.

    Args:
        into: A hash of `hashlib`.
        dna: The DNA.
    """
    for name in ("counts", *SCALAR_COLUMNS, *(() if dna.scatter is None else SCATTER)):
        values = np.ascontiguousarray(getattr(dna, name))
        if name in FLOAT_SUMS:  # a NaN has a sign, which differs between processors
            values = np.where(np.isnan(values), np.nan, values)
        into.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
