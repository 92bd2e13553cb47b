"""Makes a DNA of the arrays of a file of the reference package.

>>> dna, notes = to_dna(file, assume_spec(file))                 # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dna import DNA, SCALAR_COLUMNS, Floats, Ints, neuron_name
from pipeline.errors import CorruptFile, UsageError
from pipeline.interop.file_spec import FileSpec
from pipeline.interop.reading import ReferenceFile
from pipeline.spec import Spec, Tap
from pipeline.wording import option


def to_dna(file: ReferenceFile, file_spec: FileSpec) -> tuple[DNA, tuple[str, ...]]:
    """Makes a DNA of a file's arrays.

    Args:
        file: The file.
        file_spec: Its spec.

    Returns:
        The DNA, and notes on what is odd about its numbers. What the file does not tell is zero,
        and listed in the DNA's `unknown`.

    Raises:
        CorruptFile: If the numbers cannot be what they are said to be.
        UsageError: If the histograms hold more activations than the spec's positions allow.
    """
    notes: list[str] = []
    columns: dict[str, Any] = {}
    arrays = file.arrays
    spec, layers = file_spec.spec, file_spec.spec.layers
    if file.kind == "histogram":
        columns["counts"] = np.concatenate([_counts(file, tap, notes) for tap in spec.taps])
    elif file.kind == "activation-ranges":
        for end in ("min", "max"):
            joined = np.concatenate([arrays[f"{end}-{layer}"] for layer in layers])
            columns[end] = joined.astype(np.float32)
        _check_extremes(columns["min"], columns["max"], spec, file.name)
    else:
        degrees = file.images - 1
        columns["mean"] = _joined(arrays, "mu", layers)
        if file.kind == "gaussian":
            columns["m2"] = _scaled(_joined(arrays, "var", layers), degrees)
        else:
            sigmas = [_covariance(file, layer) for layer in layers]
            columns["m2"] = _scaled(np.concatenate([np.diagonal(s) for s in sigmas]), degrees)
            upper = [sigma[np.triu_indices(len(sigma))] for sigma in sigmas]
            columns["scatter"] = _scaled(np.concatenate(upper), degrees)
        _check_finite(columns["mean"], "mean", spec, file.name)
        _check_variances(columns["m2"], spec, file.name)
        notes += _batch_means(file)
    if file_spec.ranges is not None:
        columns |= {"low": file_spec.ranges.low, "high": file_spec.ranges.high}
    n = spec.neurons
    empty: dict[str, Any] = {
        "counts": np.zeros((n, spec.bins), np.int64),
        **{name: np.zeros(n, np.int64) for name in ("underflow", "overflow", "nonfinite")},
        **{name: np.zeros(n, np.float32) for name in ("min", "max")},
        **{name: np.zeros(n) for name in ("low", "high", "mean", "m2")},
    }
    unknown = {"counts", *SCALAR_COLUMNS, "numerics"} - columns.keys()
    dna = DNA(
        spec,
        layers,
        images=file.images,
        failed=0,
        **(empty | columns),
        unknown=tuple(sorted(unknown)),
    )
    dna.check(file.name)
    return dna, tuple(notes)


def _counts(file: ReferenceFile, tap: Tap, notes: list[str]) -> Ints:
    """Reads the counts of a layer and repairs those that wrapped at int32.

    Args:
        file: The file.
        tap: The layer.
        notes: Extended by what does not add up.

    Returns:
        The counts, (neurons, bins).

    Raises:
        CorruptFile: If counts have wrapped and cannot be repaired.
        UsageError: If there are far too many activations for the layer's positions.
    """
    rows, expected = file.arrays[tap.name], file.images * tap.positions
    counts = rows.astype(np.int64)
    where = f"{file.name}: layer {tap.name}"
    product = f"{file.images} images x {tap.positions} positions = {expected}"
    if (counts > 2 * expected).any() or (counts.sum(axis=1) > 2 * expected).any():
        raise UsageError(
            f"{where} holds more than twice {product}; the layer has more positions, or there "
            f"were more images: state the spec by {option('spec')}"
        )
    wrapped = np.zeros(len(rows), np.int64)
    if rows.dtype.itemsize == 4:
        wrapped = unwrap_int32(counts, expected)
    bad = np.flatnonzero((wrapped < 0) | (counts < 0).any(axis=1))
    if len(bad):
        at = int(bad[0])
        raise CorruptFile(
            f"{where}, neuron {at}: {int((counts[at] < 0).sum())} counts are negative and they sum "
            f"to {counts[at].sum()}, where there were {product}. The reference's int32 counts have "
            f"wrapped, and the file does not tell which; they cannot be repaired ({len(bad)} "
            "neurons)"
        )
    n, total = len(rows), counts.sum(axis=1)
    if times := int((wrapped > 0).sum()):
        notes.append(
            f"{tap.name}: counts of {times} of {n} neurons wrapped at int32, and were repaired"
        )
    if over := int((total > expected).sum()):
        notes.append(
            f"{tap.name}: {over} of {n} neurons hold up to {total.max() - expected} activations "
            f"more than {product}: in small batches the reference counts a value on the edge of "
            "two bins twice"
        )
    if under := int((total < expected).sum()):
        notes.append(
            f"{tap.name}: {under} of {n} neurons hold up to {expected - total.min()} activations "
            f"fewer than {product}: the reference drops NaN, or the positions are wrong"
        )
    if total.min() != total.max():
        notes.append(
            f"{tap.name}: its neurons hold different totals, {total.min()} to {total.max()} "
            "activations"
        )
    return counts


def unwrap_int32(counts: Ints, expected: int) -> Ints:
    """Repairs counts that the reference stored as int32 though they were larger.

    A count c is stored as c - 2^32 m, with the one m >= 0 that brings it into the range of int32.
    So a row's sum is short by 2^32 times the sum of its m, and a count that is stored as a negative
    number has m >= 1. If the row is short by exactly 2^32 times the number of its negative counts,
    each of them has m = 1 and no other count has wrapped. Otherwise no one can tell which have.

    A row without negative counts may be short because the reference drops NaN, or because a count
    of 2^32 or more has wrapped to a positive number. The sum need not be short by exactly 2^32
    then, as the reference counts some values on the edges of bins twice. A row that is short by
    2^31 or more is nearer to the second, and is not trusted.

    Args:
        counts: The stored counts, (neurons, bins), which are repaired in place.
        expected: The activations that each row must hold.

    Returns:
        For each neuron, (neurons,), how many of its counts were repaired; -1 if it cannot be
        repaired, and then its row is unchanged.
    """
    negative = (counts < 0).sum(axis=1)
    short = expected - counts.sum(axis=1)
    once = (negative > 0) & (short == negative * 2**32)
    counts[(counts < 0) & once[:, None]] += 2**32
    wrapped_to_positive = (short >= 2**31) & (expected >= 2**32)
    return np.where(once, negative, np.where((negative > 0) | wrapped_to_positive, -1, 0))


def _joined(arrays: Mapping[str, NDArray[Any]], what: str, layers: Sequence[str]) -> Floats:
    return np.concatenate([arrays[f"{what}-{layer}"] for layer in layers]).astype(np.float64)


def _scaled(values: Floats, degrees: int) -> Floats:
    """Turns (co)variances into sums of squares or products; zero for a single image."""
    with np.errstate(over="ignore"):
        return values * degrees if degrees else np.zeros_like(values)


def _covariance(file: ReferenceFile, layer: str) -> Floats:
    """Reads a layer's covariance matrix, which must be symmetric, and fit its variances."""
    sigma: Floats = file.arrays[f"sigma-{layer}"].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        deviation = np.sqrt(np.abs(np.diagonal(sigma)))
        most = np.outer(deviation, deviation)
        odd = np.abs(sigma - sigma.T) > 1e-6 * most
        # Float32 rounds, also the variance of a neuron that never moves.
        impossible = ~(np.abs(sigma) <= 1.001 * most + 1e-6 * np.nan_to_num(most).max())
    if file.images > 1 and odd.any():
        i, j = (int(k) for k in np.argwhere(odd)[0])
        raise CorruptFile(
            f"{file.name}: array sigma-{layer} is not symmetric: {sigma[i, j]} at ({i}, {j}), "
            f"{sigma[j, i]} at ({j}, {i})"
        )
    if file.images > 1 and impossible.any():
        i, j = (int(k) for k in np.argwhere(impossible)[0])
        raise CorruptFile(
            f"{file.name}: array sigma-{layer} at ({i}, {j}) is {sigma[i, j]}, which no variances "
            f"allow that are {sigma[i, i]} and {sigma[j, j]}"
        )
    return sigma


def _check_variances(m2: Floats, spec: Spec, name: str) -> None:
    bad = np.flatnonzero(m2 < 0)
    if len(bad):
        raise CorruptFile(f"{name}: neuron {_neuron(spec, bad[0])} has a negative variance")
    _check_finite(m2, "variance", spec, name)


def _check_finite(values: Floats, what: str, spec: Spec, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        at = int(bad[0])
        raise CorruptFile(f"{name}: neuron {_neuron(spec, at)} has the {what} {values[at]}")


def _check_extremes(
    low: NDArray[np.float32], high: NDArray[np.float32], spec: Spec, name: str
) -> None:
    bad = np.flatnonzero(~(low <= high))
    if len(bad):
        at = int(bad[0])
        raise CorruptFile(f"{name}: neuron {_neuron(spec, at)} ranges from {low[at]} to {high[at]}")


def _neuron(spec: Spec, at: int) -> str:
    return neuron_name(spec.shape, int(at))


def _batch_means(file: ReferenceFile) -> list[str]:
    """Notes that the reference's CLIP averages its last norm over a batch, by a transposed axis."""
    if not file.extractor.startswith("clip_im_vit") or "last_norm" not in file.neurons:
        return []
    if file.software != "vdna 0.1.1":
        return []
    batches = f"{-(-file.images // file.batch)} batches" if file.batch else "its batches"
    return [
        "last_norm: the reference averages this layer over each batch, so its Gaussian describes "
        f"the means of {batches}, not {file.images} images"
    ]
