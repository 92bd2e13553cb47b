"""The gate of a refresh: bounds on distances between datasets, judged after the matrix.

    >>> [str(of) for of in judge(place, config.gate, requests, results, matrices)]  # doctest: +SKIP
    ['day and night, all neurons: 6.7 bins [5.1, 8.4], at most 10: holds']

A bound is broken where the distance is surely above it: where `low` is, the lower end of the 95%
interval of the corrected distance. So noise alone breaks one that is just met in one run of forty.
Where no interval is known (fewer than two folds, an imported DNA, a lens with negative weights) or
none is valid (a dataset and its own part share images) the plain distance is judged, and where that
is not defined the bound is broken: a gate that cannot see says no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from pipeline import storage
from pipeline.building import Request, Result
from pipeline.catalogue import Catalogue, Commit, find_lens, newest_lenses
from pipeline.comparing import ALL, Effort, Matrix, compare, spec_of
from pipeline.dna import Lens
from pipeline.errors import GateError, NotFound, UsageError, VdnaError
from pipeline.networks import describe
from pipeline.refreshing.config import Bound


@dataclass(frozen=True)
class Judged:
    """A bound, and the distance as the matrix has it; NaN for what is not known.

    `nested`: one dataset is a part of the other. `error`: why the bound could not be judged.
    """

    bound: Bound
    emd: float = nan
    emd_corrected: float = nan
    low: float = nan
    high: float = nan
    nested: bool = False
    error: VdnaError | None = None

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
        error = str(self.error) if self.error else None
        return {**self.bound.model_dump(), **known, "holds": self.holds, "error": error}

    def __str__(self) -> str:
        bound = self.bound
        of = [] if bound.layer == ALL else [bound.layer]
        of += [f"through lens {bound.lens}"] if bound.lens else []
        what = " ".join(of) or "all neurons"
        if self.error:
            return f"{bound.a} and {bound.b}, {what}: not judged: {self.error}"
        if isfinite(self.low):
            told = f"{self.emd_corrected:.4g} bins [{self.low:.4g}, {self.high:.4g}]"
            said = "surely more" if not self.holds else "holds"
            if self.holds and self.emd_corrected > bound.max:
                said = "holds, as it is not surely more"
        elif isfinite(self.emd):
            told = f"{self.emd:.4g} bins, without an interval"
            told += ", as one is a part of the other" if self.nested else ""
            said = "holds" if self.holds else "more"
        else:
            told, said = "a distance that is not defined", "cannot hold"
        limit = f"at most {bound.max:.4g}"
        return f"{bound.a} and {bound.b}, {what}: {told}, {limit}: {said}"


def require_known(
    bounds: Sequence[Bound], catalogue: Catalogue, requests: Sequence[Request]
) -> None:
    """Before anything is built: raises `UsageError` naming the bound that asks for what is not.

    A layer is looked for in the networks that the two are built with. What may become a part of a
    dataset (`by`) is known after its build only.
    """
    lenses = newest_lenses(catalogue) if any(bound.lens for bound in bounds) else {}
    if not bounds:
        return
    head = catalogue.head()
    there = head.datasets.keys() | {request.name for request in requests}
    for bound in bounds:
        builds = [_build_of(name, requests, head) for name in (bound.a, bound.b)]
        for name, request in zip((bound.a, bound.b), builds, strict=True):
            if name not in there and request is None:
                raise UsageError(
                    f"{bound}: there is no dataset {name!r}; there are {', '.join(sorted(there))}"
                )
        if bound.lens and not _has_lens(bound.lens, lenses):
            has = ", ".join(sorted(lenses)) or "none"
            raise UsageError(
                f"{bound}: there is no lens {bound.lens!r}; {catalogue.root} has {has}, and a "
                "file's name ends in .parquet"
            )
        for request in filter(None, builds if bound.layer != ALL else ()):
            layers = _layers(request)
            if layers and bound.layer not in layers:
                raise UsageError(
                    f"{bound}: there is no layer {bound.layer!r}; there are {', '.join(layers)}"
                )


def _build_of(name: str, requests: Sequence[Request], head: Commit) -> Request | None:
    """The request that builds a dataset: as a whole, or as what is or may become a part of it."""
    for request in requests:
        if request.name == name:
            return request
    there = head.datasets.get(name, {}).values()
    for request in requests:
        if there and any(version.part_of == request.name for version in there):
            return request
        if not there and request.by and name.startswith(f"{request.name}/"):
            return request
    return None


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
    requests: Sequence[Request] = (),
    results: Sequence[Result] = (),
    matrices: Sequence[Matrix] = (),
    effort: Effort | None = None,
) -> list[Judged]:
    """Each bound, by the matrix of its two datasets; through lenses they are computed here.

    `results`: what became of `requests`; a dataset of one without is not judged as it was before.
    `matrices`: of all neurons alike, which are not computed again. Raises nothing of one bound, so
    that the others are judged: see `require_held`.
    """
    if not bounds:
        return []
    specs = {result.name: result.version.spec for result in results}
    specs |= {part: of.spec for result in results for part, of in result.parts.items()}
    head = catalogue.head()
    judged = []
    for bound in bounds:
        try:
            for name in (bound.a, bound.b):
                _require_built(name, specs, _build_of(name, requests, head))
            spec = _spec_of(catalogue, bound, specs)
            matrix = _at_hand(bound, spec, matrices) or _compared(catalogue, bound, spec, effort)
            judged.append(_judged(catalogue, bound, matrix))
        except VdnaError as error:
            judged.append(Judged(bound, error=error))
    return judged


def require_held(judged: Sequence[Judged], name: str) -> None:
    """Raises `GateError` where a bound of the gate `name` does not hold; what kept one from being
    judged, if anything did, naming the others too."""
    said = "; ".join(str(one) for one in judged if not one.error and not one.holds)
    broken = [f"the gate of {name} says no: {said}"] if said else []
    errors = [one for one in judged if one.error]
    if errors:
        first = next((one for one in errors if isinstance(one.error, UsageError)), errors[0])
        told = [f"{one.bound}: {one.error}" for one in errors]
        raise type(first.error or VdnaError())("\n".join([*told, *broken])) from first.error
    if broken:
        raise GateError(*broken)


def _require_built(name: str, specs: Mapping[str, str], request: Request | None) -> None:
    """Raises `NotFound` for what this refresh was to build, and has not."""
    if request is None or name in specs:
        return
    if request.name in specs:
        raise NotFound(f"{request.name} has no part {name} any more, or never had one")
    raise NotFound(f"{request.name} was not built, and what there may be of {name} is of before")


def _spec_of(catalogue: Catalogue, bound: Bound, specs: Mapping[str, str]) -> str | None:
    """The digest of the one under which both were built. Raises `SpecMismatch` for two."""
    a, b = specs.get(bound.a), specs.get(bound.b)
    if a and b and a != b:
        catalogue.spec(a).require_same(catalogue.spec(b), bound.a, bound.b)
    return a or b


def _at_hand(bound: Bound, spec: str | None, matrices: Sequence[Matrix]) -> Matrix | None:
    pair = {bound.a, bound.b}
    for matrix in matrices:
        if not bound.lens and matrix.spec_digest == spec and pair <= set(matrix.names):
            return matrix
    return None


def _compared(
    catalogue: Catalogue, bound: Bound, spec: str | None, effort: Effort | None
) -> Matrix:
    names = [bound.a, bound.b]
    lens: Lens | None = None
    if bound.lens:
        lens = find_lens(catalogue, bound.lens, spec_of(catalogue, names, spec=spec))
    return compare(catalogue, names, spec=spec, lens=lens, effort=effort)


def _judged(catalogue: Catalogue, bound: Bound, matrix: Matrix) -> Judged:
    at = matrix.names.index(bound.a), matrix.names.index(bound.b)
    emd, corrected, low, high = (
        float(matrix.of(bound.layer, column)[at])
        for column in ("emd", "emd_corrected", "low", "high")
    )
    a, b = (catalogue.find(name, spec=matrix.spec_digest) for name in (bound.a, bound.b))
    if a.part_of == bound.b or b.part_of == bound.a:  # estimates suppose independent samples
        return Judged(bound, emd, nested=True)
    return Judged(bound, emd, corrected, low, high)
