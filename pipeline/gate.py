"""The gate of a refresh: bounds on distances between datasets, judged after the matrix.

    >>> [str(judged) for judged in judge(place, config.gate, specs, matrices)]     # doctest: +SKIP
    ['day and night, all neurons: 6.7 bins [5.1, 8.4], at most 10: holds']

A bound is broken where the distance is surely above it: where `low` is, the lower end of the 95%
interval of the corrected distance. So noise alone breaks one that is just met in one run of forty.
Where no interval is known (fewer than two folds, an imported DNA, a lens with negative weights) the
plain distance is judged, and where that is not defined the bound is broken: a gate that cannot see
says no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pipeline import storage
from pipeline.build import Request
from pipeline.catalogue import Catalogue
from pipeline.config import Bound
from pipeline.errors import UsageError, VdnaError
from pipeline.lens import Lens
from pipeline.matrix import ALL, Effort, Matrix, compare, find_lens, newest_lenses, spec_of
from pipeline.networks import describe


@dataclass(frozen=True)
class Judged:
    """A bound, and the distance as the matrix has it; NaN for what is not known."""

    bound: Bound
    emd: float
    emd_corrected: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """What is judged."""
        return self.low if isfinite(self.low) else self.emd

    @property
    def holds(self) -> bool:
        return self.value <= self.bound.max

    @property
    def row(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        numbers = ("emd", "emd_corrected", "low", "high", "value")
        told = {name: float(getattr(self, name)) for name in numbers}
        known = {name: value if isfinite(value) else None for name, value in told.items()}
        return {**self.bound.model_dump(), **known, "holds": self.holds}

    def __str__(self) -> str:
        bound = self.bound
        of = [] if bound.layer == ALL else [bound.layer]
        of += [f"through lens {bound.lens}"] if bound.lens else []
        what = " ".join(of) or "all neurons"
        if isfinite(self.low):
            told = f"{self.emd_corrected:.4g} bins [{self.low:.4g}, {self.high:.4g}]"
            said = "surely more" if not self.holds else "holds"
            if self.holds and self.emd_corrected > bound.max:
                said = "holds, as it is not surely more"
        elif isfinite(self.emd):
            told = f"{self.emd:.4g} bins, without an interval"
            said = "holds" if self.holds else "more"
        else:
            told, said = "a distance that is not defined", "cannot hold"
        limit = f"at most {bound.max:.4g}"
        return f"{bound.a} and {bound.b}, {what}: {told}, {limit}: {said}"


def require_known(
    bounds: Sequence[Bound], catalogue: Catalogue, requests: Sequence[Request]
) -> None:
    """Before anything is built: raises `UsageError` naming the bound that asks for what is not.

    A layer is looked for in the network that its first dataset is built with. What may become a
    part of a dataset (`by`) is known after its build only.
    """
    wanted = {request.name: request for request in requests}
    lenses = newest_lenses(catalogue) if any(bound.lens for bound in bounds) else {}
    there = catalogue.head().datasets.keys() | wanted.keys() if bounds else set()
    for bound in bounds:
        for name in (bound.a, bound.b):
            part = any(one.by and name.startswith(f"{one.name}/") for one in requests)
            if name not in there and not part:
                raise UsageError(
                    f"{bound}: there is no dataset {name!r}; there are {', '.join(sorted(there))}"
                )
        if bound.lens and not _has_lens(bound.lens, lenses):
            has = ", ".join(sorted(lenses)) or "none"
            raise UsageError(
                f"{bound}: there is no lens {bound.lens!r}; {catalogue.root} has {has}, and a "
                "file's name ends in .parquet"
            )
        if bound.layer != ALL and bound.a in wanted:
            layers = _layers(wanted[bound.a])
            if layers and bound.layer not in layers:
                raise UsageError(
                    f"{bound}: there is no layer {bound.layer!r}; there are {', '.join(layers)}"
                )


def _has_lens(name: str, lenses: Mapping[str, object]) -> bool:
    if name.endswith(".parquet"):
        return storage.exists(storage.canonical(name))
    return name in lenses


def _layers(request: Request) -> list[str]:
    """Empty where the network cannot be described: the build tells why."""
    try:
        taps = describe(request.extractor, request.weights, request.taps).taps
    except VdnaError:
        return []
    return [tap.name for tap in taps]


def judge(
    catalogue: Catalogue,
    bounds: Sequence[Bound],
    specs: Mapping[str, str],
    matrices: Sequence[Matrix],
    effort: Effort | None = None,
) -> list[Judged]:
    """Each bound, by the matrix of its two datasets; through lenses they are computed here.

    `specs`: dataset -> the digest of the spec that it was built under. `matrices`: of all
    neurons alike, which are not computed again. Raises as `compare`, naming the bound.
    """
    judged = []
    for bound in bounds:
        spec = specs.get(bound.a) or specs.get(bound.b)
        pair = {bound.a, bound.b}
        try:
            matrix = next(
                (
                    one
                    for one in matrices
                    if not bound.lens and one.spec_digest == spec and pair <= set(one.names)
                ),
                None,
            )
            judged.append(_judged(bound, matrix or _compared(catalogue, bound, spec, effort)))
        except VdnaError as error:
            raise type(error)(f"{bound}: {error}") from error
    return judged


def _compared(
    catalogue: Catalogue, bound: Bound, spec: str | None, effort: Effort | None
) -> Matrix:
    names = [bound.a, bound.b]
    lens: Lens | None = None
    if bound.lens:
        lens = find_lens(catalogue, bound.lens, spec_of(catalogue, names, spec=spec))
    return compare(catalogue, names, spec=spec, lens=lens, effort=effort)


def _judged(bound: Bound, matrix: Matrix) -> Judged:
    at = matrix.names.index(bound.a), matrix.names.index(bound.b)
    emd, corrected, low, high = (
        float(matrix.of(bound.layer, column)[at])
        for column in ("emd", "emd_corrected", "low", "high")
    )
    return Judged(bound, emd, corrected, low, high)
