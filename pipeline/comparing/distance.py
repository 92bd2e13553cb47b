"""How far apart two DNAs are: in all, by layer, by neuron, or for one neuron.

    >>> emd(a, b); emd(a, b, layer="blocks.3.1", neuron=7)                     # doctest: +SKIP
    >>> fd(a, b, per_layer=True)["block_3"]                                    # doctest: +SKIP

`emd`, Earth Mover's Distance on histograms: the sum over bins of the absolute difference of the
cumulative distributions, in bin widths (Ramtoula et al., CVPR 2023, section 3.3, and the
reference's `earth_movers_distance`). `nfd`, neuron-wise Fréchet distance, on the Gaussian of each
neuron's spatially averaged activation. `fd`, Fréchet distance, on the Gaussian of a whole layer:
FID on the right network and layer. All are the reference's, and symmetric.

In all, `emd` and `nfd` are means over neurons, `fd` is the mean over layers.
"""

from __future__ import annotations

from typing import Literal, overload

import numpy as np

from pipeline.dna import DNA, Floats, Ints, Lens
from pipeline.errors import UsageError


def cumulative(dna: DNA, neurons: slice | Ints = slice(None)) -> Floats:
    """(N, bins) float64 cumulative distributions; the L1 distance of two of them is the EMD."""
    return np.cumsum(dna.distributions(neurons), axis=1)


@overload
def emd(
    a: DNA,
    b: DNA,
    *,
    layer: str | None = ...,
    neuron: int | None = ...,
    per_neuron: Literal[False] = ...,
    per_layer: Literal[False] = ...,
    lens: Lens | None = ...,
) -> float: ...


@overload
def emd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[True]) -> Floats: ...


@overload
def emd(
    a: DNA, b: DNA, *, per_layer: Literal[True], lens: Lens | None = ...
) -> dict[str, float]: ...


def emd(
    a: DNA,
    b: DNA,
    *,
    layer: str | None = None,
    neuron: int | None = None,
    per_neuron: bool = False,
    per_layer: bool = False,
    lens: Lens | None = None,
) -> float | Floats | dict[str, float]:
    """Earth Mover's Distance in bin widths: the mean, or per neuron (N,), or per layer.

    `layer`: of its neurons only; `neuron`: of that one of the layer. `lens`: weighs the neurons of
    a mean; NaN where those of a layer do not weigh more than nothing. Raises `SpecMismatch` naming
    the fields that differ, and `UsageError` where a DNA has no histograms.
    """
    a, b = comparable(a, b, layer, "counts")
    each = np.abs(cumulative(a) - cumulative(b)).sum(axis=1)
    if lens is None:
        return _as_asked(each, a, layer, neuron, per_neuron=per_neuron, per_layer=per_layer)
    if neuron is not None or per_neuron:
        raise UsageError(f"lens {lens.name} weighs neurons against each other; ask for a mean")
    _require_one_form(layer, neuron, per_neuron=per_neuron, per_layer=per_layer)
    lens.require_fit(a.spec)
    weights = lens.of_layers(a.layers)
    if per_layer:
        slices = {name: a.slice_of(name) for name in a.layers}
        return {name: _weighted(each[at], weights[at]) for name, at in slices.items()}
    return _weighted(each, weights)


def _weighted(each: Floats, weights: Floats) -> float:
    seen = np.flatnonzero(weights)  # what weighs nothing may be undefined
    total = weights.sum()
    return float(each[seen] @ weights[seen] / total) if total > 0 else float("nan")


@overload
def nfd(
    a: DNA,
    b: DNA,
    *,
    layer: str | None = ...,
    neuron: int | None = ...,
    per_neuron: Literal[False] = ...,
    per_layer: Literal[False] = ...,
) -> float: ...


@overload
def nfd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[True]) -> Floats: ...


@overload
def nfd(a: DNA, b: DNA, *, per_layer: Literal[True]) -> dict[str, float]: ...


def nfd(
    a: DNA,
    b: DNA,
    *,
    layer: str | None = None,
    neuron: int | None = None,
    per_neuron: bool = False,
    per_layer: bool = False,
) -> float | Floats | dict[str, float]:
    """Fréchet distance of each neuron's Gaussian, squared units of activation; see `frechet_1d`.

    Arguments and errors as those of `emd`; `UsageError` also for fewer than two images.
    """
    a, b = comparable(a, b, layer, "mean")
    each = frechet_1d(a.mean, variance(a), b.mean, variance(b))
    return _as_asked(each, a, layer, neuron, per_neuron=per_neuron, per_layer=per_layer)


@overload
def fd(
    a: DNA,
    b: DNA,
    *,
    layer: str | None = ...,
    neuron: int | None = ...,
    per_neuron: Literal[False] = ...,
    per_layer: Literal[False] = ...,
) -> float: ...


@overload
def fd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[True]) -> Floats: ...


@overload
def fd(a: DNA, b: DNA, *, per_layer: Literal[True]) -> dict[str, float]: ...


def fd(
    a: DNA,
    b: DNA,
    *,
    layer: str | None = None,
    neuron: int | None = None,
    per_neuron: bool = False,
    per_layer: bool = False,
) -> float | Floats | dict[str, float]:
    """Fréchet distance of each layer's Gaussian, squared units of activation; see `frechet`.

    Of a single neuron it is the distance of its own two Gaussians, that of `nfd`. Arguments as
    those of `emd`. Raises `SpecMismatch`, and `UsageError` where a DNA has no layer Gaussians or
    fewer than two images.
    """
    if neuron is not None or per_neuron:
        a, b = comparable(a, b, layer, "scatter")
        each = frechet_1d(a.mean, variance(a), b.mean, variance(b))
        return _as_asked(each, a, layer, neuron, per_neuron=per_neuron, per_layer=per_layer)
    _require_one_form(layer, neuron, per_neuron=per_neuron, per_layer=per_layer)
    a, b = comparable(a, b, layer, "scatter")
    of_layer = {
        name: frechet(
            a.mean[a.slice_of(name)],
            root_covariance(a, name),
            b.mean[b.slice_of(name)],
            root_covariance(b, name),
        )
        for name in a.layers
    }
    return of_layer if per_layer else float(np.mean(list(of_layer.values())))


def frechet_1d(mean_a: Floats, var_a: Floats, mean_b: Floats, var_b: Floats) -> Floats:
    """(mean_a - mean_b)^2 + (sd_a - sd_b)^2: the Fréchet distance of two normal distributions.

    The reference's `frechet_distance_1d`, written so that it cannot come out below zero.
    """
    with np.errstate(invalid="ignore"):  # inf - inf, where a network overflowed: unknown
        squares: Floats = (mean_a - mean_b) ** 2 + (np.sqrt(var_a) - np.sqrt(var_b)) ** 2
    return squares


def frechet(mean_a: Floats, root_a: Floats, mean_b: Floats, root_b: Floats) -> float:
    """Fréchet distance of two multivariate normal distributions (Dowson and Landau, 1982).

    |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2), for covariances A = root_a root_a^T of
    means (C,) and roots (C, r). The last trace is the sum of the square roots of the eigenvalues of
    the symmetric product root_a^T B root_a, and so of the singular values of root_a^T root_b: real
    and not negative even where the product is singular, as it is for fewer images than neurons. A
    general matrix square root of A B is complex there, and loses half the digits. NaN where a mean
    or covariance is not finite.
    """
    if not all(np.isfinite(values).all() for values in (mean_a, root_a, mean_b, root_b)):
        return float("nan")
    shared = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum() if root_a.size else 0.0
    difference = mean_a - mean_b
    traces = (root_a**2).sum() + (root_b**2).sum()
    return max(0.0, float(difference @ difference + traces - 2 * shared))


def root_covariance(dna: DNA, layer: str) -> Floats:
    """(C, r) R with R R^T the layer's covariance, ddof 1; r, its rank, is below the images.

    Eigenvalues within rounding of zero (C x 2e-16 of the largest) are dropped: of the noise in a
    singular covariance nothing is left, nor of a true variance that is smaller still. NaN where the
    covariance is not finite.
    """
    if dna.images < 2:
        raise UsageError(f"a Gaussian needs at least 2 images; this DNA has {dna.images}")
    covariance = dna.scatter_of(layer) / (dna.images - 1)
    if not np.isfinite(covariance).all():
        return np.full((len(covariance), 1), np.nan)
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return np.ascontiguousarray(vectors[:, kept] * np.sqrt(values[kept]))


def variance(dna: DNA) -> Floats:
    """(N,) variance over images of the spatially averaged activation, ddof 1 as the reference's."""
    if dna.images < 2:
        raise UsageError(f"a Gaussian needs at least 2 images; this DNA has {dna.images}")
    return dna.m2 / (dna.images - 1)


_MISSING = {
    "counts": "has no histograms",
    "mean": "has no Gaussians",
    "scatter": "has no layer Gaussians: build it with --layer-gaussian, and load it with "
    "layer_gaussian=True",
}


def comparable(
    a: DNA,
    b: DNA,
    layer: str | None,
    column: str,
    names: tuple[str, str] = ("the first DNA", "the second DNA"),
) -> tuple[DNA, DNA]:
    """The two, of that layer only where one is given. Raises as the distances do."""
    a.spec.require_same(b.spec, *names)
    for name, dna in zip(names, (a, b), strict=True):
        if dna.images == 0:
            raise UsageError("a DNA of no images is at no distance from anything")
        if column in dna.unknown or (column == "scatter" and dna.scatter is None):
            raise UsageError(f"{name} {_MISSING[column]}")
    if layer is not None:
        return a.select([layer]), b.select([layer])
    if a.layers != b.layers:
        raise UsageError(f"layers {a.layers} are loaded of one DNA and {b.layers} of the other")
    return a, b


def _as_asked(
    each: Floats,
    dna: DNA,
    layer: str | None,
    neuron: int | None,
    *,
    per_neuron: bool,
    per_layer: bool,
) -> float | Floats | dict[str, float]:
    """Distances of all neurons -> the form that was asked for."""
    _require_one_form(layer, neuron, per_neuron=per_neuron, per_layer=per_layer)
    if neuron is not None:
        if not 0 <= neuron < len(each):
            raise UsageError(f"no neuron {neuron} in {layer}; it has {len(each)}, from 0 on")
        return float(each[neuron])
    if per_layer:
        return {name: float(each[dna.slice_of(name)].mean()) for name in dna.layers}
    return each if per_neuron else float(each.mean())


def _require_one_form(
    layer: str | None, neuron: int | None, *, per_neuron: bool, per_layer: bool
) -> None:
    if (neuron is not None) + per_neuron + per_layer > 1:
        raise UsageError("ask for one of neuron, per_neuron and per_layer")
    if neuron is not None and layer is None:
        raise UsageError(f"neuron is {neuron}; say of which layer, too")
    if per_layer and layer is not None:
        raise UsageError(f"per_layer asks for every layer, and layer for {layer} only")
