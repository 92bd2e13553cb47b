"""How far apart two DNAs are.

    >>> emd(a, b); emd(a, b, layer="blocks.3.1"); emd(a, b, per_neuron=True)   # doctest: +SKIP

Earth Mover's Distance on histograms: sum over bins of the absolute difference of the cumulative
distributions, in bin widths (Ramtoula et al., CVPR 2023, section 3.3, and the reference's
`earth_movers_distance`); Fréchet distance on the neurons' Gaussians. A DNA's distance is the mean
over its neurons.
"""

from __future__ import annotations

from typing import Literal, overload

import numpy as np

from pipeline.dna import DNA, Floats
from pipeline.errors import UsageError


def cumulative(dna: DNA) -> Floats:
    """(N, bins) float64 cumulative distributions; the L1 distance of two of them is the EMD."""
    return np.cumsum(dna.distributions(), axis=1)


@overload
def emd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[False] = ...) -> float: ...
@overload
def emd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[True]) -> Floats: ...
def emd(a: DNA, b: DNA, *, layer: str | None = None, per_neuron: bool = False) -> float | Floats:
    """Earth Mover's Distance in bin widths: of one layer or all, as the mean or per neuron (N,).

    Raises `SpecMismatch` naming the fields that differ.
    """
    a, b = _comparable(a, b, layer)
    each = np.abs(cumulative(a) - cumulative(b)).sum(axis=1)
    return each if per_neuron else float(each.mean())


@overload
def nfd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[False] = ...) -> float: ...
@overload
def nfd(a: DNA, b: DNA, *, layer: str | None = ..., per_neuron: Literal[True]) -> Floats: ...
def nfd(a: DNA, b: DNA, *, layer: str | None = None, per_neuron: bool = False) -> float | Floats:
    """Fréchet distance of each neuron's Gaussian, squared units of activation; see `frechet_1d`.

    Raises `SpecMismatch`, and `UsageError` where a DNA has fewer than two images.
    """
    a, b = _comparable(a, b, layer)
    each = frechet_1d(a.mean, variance(a), b.mean, variance(b))
    return each if per_neuron else float(each.mean())


def frechet_1d(mean_a: Floats, var_a: Floats, mean_b: Floats, var_b: Floats) -> Floats:
    """(mean_a - mean_b)^2 + (sd_a - sd_b)^2: the Fréchet distance of two normal distributions.

    The reference's `frechet_distance_1d`, written so that it cannot come out below zero.
    """
    with np.errstate(invalid="ignore"):  # inf - inf, where a network overflowed: unknown
        squares: Floats = (mean_a - mean_b) ** 2 + (np.sqrt(var_a) - np.sqrt(var_b)) ** 2
    return squares


def variance(dna: DNA) -> Floats:
    """(N,) variance over images of the spatially averaged activation, ddof 1 as the reference's."""
    if dna.images < 2:
        raise UsageError(f"a Gaussian needs at least 2 images; this DNA has {dna.images}")
    return dna.m2 / (dna.images - 1)


def _comparable(a: DNA, b: DNA, layer: str | None) -> tuple[DNA, DNA]:
    a.spec.require_same(b.spec, "the first DNA", "the second DNA")
    for dna in (a, b):
        if dna.images == 0:
            raise UsageError("a DNA of no images is at no distance from anything")
    if layer is not None:
        return a.select([layer]), b.select([layer])
    if a.layers != b.layers:
        raise UsageError(f"layers {a.layers} are loaded of one DNA and {b.layers} of the other")
    return a, b
