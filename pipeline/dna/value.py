"""A DNA: what every neuron's activations were like over an image set; and its Parquet file.

    >>> a, b = DNA.empty(spec, ranges), ...            # doctest: +SKIP
    >>> (a + b).images == a.images + b.images          # doctest: +SKIP

Everything the paper compares, of one pass over the images: a histogram, a Gaussian of the
spatially averaged activation, and the extremes of each neuron; where asked for, the Gaussian of
each layer with its full scatter matrix.

Laws: `empty` is neutral; `+` is associative and commutative to the last bit in everything that is
an integer, a minimum or a maximum. `mean`, `m2` and `scatter` are floats: equal to the last bit
when added in the same order, which `pipeline.reduce` fixes. There is no `-`: to retract images,
reduce again over the partials that are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dna.arrays import Floats, Ints
from pipeline.dna.moments import merge_moments
from pipeline.dna.ranges import Ranges, neuron_name
from pipeline.errors import ConservationError, CorruptFile, SpecMismatch, UsageError
from pipeline.spec import Numerics, Spec

INT_COLUMNS = ("underflow", "overflow", "nonfinite")

ARROW_TYPES = {
    **dict.fromkeys(INT_COLUMNS, pa.int64()),
    "low": pa.float64(),
    "high": pa.float64(),
    "min": pa.float32(),
    "max": pa.float32(),
    "mean": pa.float64(),
    "m2": pa.float64(),
}

SCALAR_COLUMNS = tuple(ARROW_TYPES)

SCATTER = ("scatter",)

FLOAT_SUMS = ("mean", "m2", "scatter")
"""Not finite where a network overflowed."""


@dataclass(frozen=True, eq=False)
class DNA:
    """Histograms of every neuron of `layers` over `images` images; N neurons in all.

    `counts` (N, bins) int64: activations inside [low, high]. `underflow`, `overflow`, `nonfinite`
    (N,) int64: those outside. `low`, `high` (N,) float64. `min`, `max` (N,) float32: finite
    values observed (+inf and -inf where there were none). `mean`, `m2` (N,) float64: mean and sum
    of squared deviations, over images, of the spatially averaged activation. `failed`: candidates
    that could not be read. `numerics`: how many images were counted under which.

    `scatter`, where it was asked for: the layers' sums of products of deviations from the mean, of
    the spatially averaged activation, float64; each layer's upper triangle row by row, one layer
    after the other. `unknown`: columns that an imported file does not tell; their arrays are zero.
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

    @classmethod
    def empty(cls, spec: Spec, ranges: Ranges, *, layer_gaussian: bool = False) -> DNA:
        if ranges.digest != spec.ranges_digest:
            raise SpecMismatch(f"ranges {ranges.digest} are not the spec's {spec.ranges_digest}")
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
            scatter=np.zeros(triangles(spec, spec.layers)) if layer_gaussian else None,
        )

    def __add__(self, other: DNA) -> DNA:
        """Raises `SpecMismatch` unless both were made the same way."""
        self.spec.require_same(other.spec, "the left DNA", "the right DNA")
        if self.layers != other.layers:
            raise SpecMismatch(f"layers {self.layers} cannot be added to {other.layers}")
        if (self.scatter is None) != (other.scatter is None):
            raise SpecMismatch("a DNA with layer Gaussians cannot be added to one without")
        images = self.images + other.images
        mean, m2 = merge_dna_moments(self, other)
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
        )

    def _merge_scatter(self, other: DNA) -> Floats | None:
        """The pairwise update again, with the outer product of the difference of the means."""
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
        """(N,) positions per image of each neuron."""
        taps = [self.spec.tap(layer) for layer in self.layers]
        return np.repeat(
            np.array([tap.positions for tap in taps], np.int64), [tap.neurons for tap in taps]
        )

    def slice_of(self, layer: str) -> slice:
        """Where the layer's neurons stand in the arrays."""
        start = 0
        for name in self.layers:
            neurons = self.spec.tap(name).neurons
            if name == layer:
                return slice(start, start + neurons)
            start += neurons
        self.spec.tap(layer)
        raise CorruptFile(f"layer {layer!r} was not loaded; only {', '.join(self.layers)} were")

    def select(self, layers: Sequence[str]) -> DNA:
        """The same DNA, of some layers only (views, no copy where one layer is asked for)."""
        slices = [self.slice_of(layer) for layer in layers]
        arrays: dict[str, Any] = {
            name: joined([getattr(self, name)[s] for s in slices])
            for name in ("counts", *SCALAR_COLUMNS)
        }
        if self.scatter is not None:
            arrays["scatter"] = joined([self._triangle(layer) for layer in layers])
        return replace(self, layers=tuple(layers), **arrays)

    def _triangle(self, layer: str) -> Floats:
        """The layer's part of `scatter`."""
        if self.scatter is None:
            raise UsageError(
                "this DNA has no layer Gaussians; build it with --layer-gaussian, and load it with "
                "layer_gaussian=True"
            )
        self.slice_of(layer)
        start = triangles(self.spec, self.layers[: self.layers.index(layer)])
        return self.scatter[start : start + triangles(self.spec, [layer])]

    def scatter_of(self, layer: str) -> Floats:
        """(C, C) scatter matrix of a layer. Raises `UsageError` where it was not asked for."""
        neurons = self.spec.tap(layer).neurons
        full = np.zeros((neurons, neurons))
        full[np.triu_indices(neurons)] = self._triangle(layer)
        return np.triu(full) + np.triu(full, 1).T

    def check(self, name: str = "this DNA") -> None:
        """Conservation: every activation of every image is in exactly one place.

        Raises `ConservationError` naming the first neuron where it does not hold. Of an imported
        DNA, which does not tell what fell outside, no count may be negative.
        """
        found = self.counts.sum(axis=1) + self.underflow + self.overflow + self.nonfinite
        expected = self.images * self.positions
        negative = np.asarray((self.counts < 0).any(axis=1))
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
        self._check_scatter(name)

    def _check_scatter(self, name: str) -> None:
        """The diagonal of the scatter matrices is `m2`, which is added up apart."""
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
        """Equal to the last bit, numerics apart (NaN equals NaN)."""
        return (
            self.spec == other.spec
            and (self.layers, self.images, self.failed)
            == (other.layers, other.images, other.failed)
            and self.unknown == other.unknown
            and (self.scatter is None) == (other.scatter is None)
            and all(
                np.array_equal(
                    getattr(self, name), getattr(other, name), equal_nan=name in FLOAT_SUMS
                )
                for name in ("counts", *SCALAR_COLUMNS, *(() if self.scatter is None else SCATTER))
            )
        )

    def distributions(self, neurons: slice | Ints = slice(None)) -> Floats:
        """(N, bins) float64, rows summing to one: underflow in the first bin, overflow in the last.

        That is the reference's clamp. A neuron without a finite activation has a row of NaN.
        """
        filled = self.counts[neurons].astype(np.float64)
        filled[:, 0] += self.underflow[neurons]
        filled[:, -1] += self.overflow[neurons]
        with np.errstate(invalid="ignore"):
            return cast(Floats, filled / filled.sum(axis=1, keepdims=True))

    def __repr__(self) -> str:
        return (
            f"DNA({self.spec.extractor}, {self.images} images, {len(self.low)} neurons x "
            f"{self.spec.bins} bins, spec {self.spec.digest[:12]})"
        )


def triangles(spec: Spec, layers: Sequence[str]) -> int:
    """Values that the upper triangles of these layers' scatter matrices hold."""
    return sum((n := spec.tap(layer).neurons) * (n + 1) // 2 for layer in layers)


def _diagonal(dna: DNA, layer: str) -> Ints:
    """Where the diagonal stands in a layer's packed triangle."""
    neurons = dna.spec.tap(layer).neurons
    return cast(Ints, np.cumsum([0, *range(neurons, 1, -1)]))


def joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def merge_dna_moments(a: DNA, b: DNA) -> tuple[Floats, Floats]:
    """Pairwise update of Chan, Golub and LeVeque (1979): sums of squares never cancel."""
    return merge_moments(a.images, a.mean, a.m2, b.images, b.mean, b.m2)


def hash_numbers(into: Any, dna: DNA) -> None:
    """Feed a hash with all numbers of the DNA's neurons, alike on every machine."""
    for name in ("counts", *SCALAR_COLUMNS, *(() if dna.scatter is None else SCATTER)):
        values = np.ascontiguousarray(getattr(dna, name))
        if name in FLOAT_SUMS:  # a NaN has a sign, which differs between processors
            values = np.where(np.isnan(values), np.nan, values)
        into.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
