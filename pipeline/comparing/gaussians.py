"""Computes Fréchet distances of normal distributions, and the distributions that a DNA holds.

>>> frechet_1d(a.mean, variance(a), b.mean, variance(b))                   # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np

from pipeline.dna import DNA, Floats
from pipeline.errors import UsageError


def frechet_1d(mean_a: Floats, var_a: Floats, mean_b: Floats, var_b: Floats) -> Floats:
    """Computes the Fréchet distance of normal distributions in one dimension.

    It is (mean_a - mean_b)^2 + (sd_a - sd_b)^2: the reference's `frechet_distance_1d`, written so
    that rounding cannot take it below zero.

    Args:
        mean_a: (N,) means.
        var_a: (N,) variances.
        mean_b: Means of the other distributions, of a shape that broadcasts to `mean_a`.
        var_b: Variances of the other distributions.

    Returns:
        Squared distances, one for each pair of distributions. NaN if both means are infinite.
    """
    with np.errstate(invalid="ignore"):  # inf - inf, if a network overflowed
        squares: Floats = (mean_a - mean_b) ** 2 + (np.sqrt(var_a) - np.sqrt(var_b)) ** 2
    return squares


def frechet(mean_a: Floats, root_a: Floats, mean_b: Floats, root_b: Floats) -> float:
    """Computes the Fréchet distance of two multivariate normal distributions.

    It is |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2) (Dowson and Landau, 1982), for
    covariances A = root_a root_a^T and B alike. The last trace is the sum of the square roots of
    the eigenvalues of the symmetric product root_a^T B root_a, which is the sum of the singular
    values of root_a^T root_b. That is real and not negative even if the product A B is singular, as
    it is for fewer images than neurons. A general matrix square root of A B is complex there, and
    loses half of the digits.

    Args:
        mean_a: (C,) mean.
        root_a: (C, r) root of the covariance; see `root_covariance`.
        mean_b: (C,) mean of the other distribution.
        root_b: (C, s) root of its covariance.

    Returns:
        The squared distance; NaN if a mean or covariance is not finite.
    """
    if not all(np.isfinite(values).all() for values in (mean_a, root_a, mean_b, root_b)):
        return float("nan")
    shared = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum() if root_a.size else 0.0
    difference = mean_a - mean_b
    traces = (root_a**2).sum() + (root_b**2).sum()
    return max(0.0, float(difference @ difference + traces - 2 * shared))


def root_covariance(dna: DNA, layer: str) -> Floats:
    """Computes a root of a layer's covariance matrix.

    Eigenvalues that rounding alone could make (below C x 2e-16 of the largest) are dropped. That
    removes the noise of a singular covariance, and also a true variance that is smaller still.

    Args:
        dna: A DNA with layer Gaussians.
        layer: One of its layers, of C neurons.

    Returns:
        (C, r) matrix R with R R^T the covariance, which has one degree of freedom less than images.
        Its rank r is below the number of images. A single column of NaN if the covariance is not
        finite.

    Raises:
        UsageError: If the DNA has fewer than two images.
    """
    _require_two_images(dna)
    covariance = dna.scatter_of(layer) / (dna.images - 1)
    if not np.isfinite(covariance).all():
        return np.full((len(covariance), 1), np.nan)
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return np.ascontiguousarray(vectors[:, kept] * np.sqrt(values[kept]))


def variance(dna: DNA) -> Floats:
    """Computes each neuron's variance over images of its spatially averaged activation.

    Args:
        dna: A DNA with Gaussians.

    Returns:
        (N,) variances, with one degree of freedom less than images, as the reference has them.

    Raises:
        UsageError: If the DNA has fewer than two images.
    """
    _require_two_images(dna)
    return dna.m2 / (dna.images - 1)


def _require_two_images(dna: DNA) -> None:
    if dna.images < 2:
        raise UsageError(f"a Gaussian needs at least 2 images; this DNA has {dna.images}")
