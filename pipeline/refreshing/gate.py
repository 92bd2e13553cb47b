"""The gate of a refresh: bounds on distances between datasets, judged after the matrix.

    >>> [str(verdict) for verdict in judge(catalogue, config.gate)]            # doctest: +SKIP
    ['day and night, all neurons: 6.7 bins [5.1, 8.4], at most 10: holds']

A bound is broken if the distance is surely larger: if `low`, the lower end of the 95% interval of
the true distance, is above the bound. So noise alone breaks a bound that is just met in one run of
forty, or more rarely.

The plain distance is judged where there is no interval (fewer than two folds, an imported DNA, a
lens with negative weights), or no valid one (a dataset and its own part share images). A distance
that is not defined breaks the bound: a gate that cannot measure says no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from pipeline import storage
from pipeline.building import Request, Result
from pipeline.catalogue import Catalogue, Commit, VersionName, dataset_of, find_lens, newest_lenses
from pipeline.comparing import ALL, LEAST_PAIRED, Effort, Matrix, compare, spec_of
from pipeline.dna import Lens
from pipeline.errors import GateError, NotFound, UsageError, VdnaError
from pipeline.networks import describe
from pipeline.refreshing.config import Bound


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one bound. Numbers that are not known are NaN.

    Attributes:
        bound: The bound.
        emd: The distance, in bins.
        emd_corrected: The distance without what two samples of one distribution would show.
        low: The lower end of its 95% interval.
        high: The upper end.
        nested: Whether one dataset is a part of the other.
        error: Why the bound could not be judged; None if it was.
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
        """The distance that is judged: `low` if it is known, else `emd`."""
        return self.low if isfinite(self.low) else self.emd

    @property
    def holds(self) -> bool:
        """Whether the bound is kept."""
        return self.value <= self.bound.max

    @property
    def row(self) -> dict[str, Any]:
        """The verdict for JSON, with None for NaN."""
        numbers = ("emd", "emd_corrected", "low", "high", "value")
        values = {name: float(getattr(self, name)) for name in numbers}
        known = {name: value if isfinite(value) else None for name, value in values.items()}
        error = str(self.error) if self.error else None
        return {**self.bound.model_dump(), **known, "holds": self.holds, "error": error}

    def __str__(self) -> str:
        bound = self.bound
        words = [] if bound.layer == ALL else [bound.layer]
        words += [f"through lens {bound.lens}"] if bound.lens else []
        what = " ".join(words) or "all neurons"
        if self.error:
            return f"{bound.a} and {bound.b}, {what}: not judged: {self.error}"
        if isfinite(self.low):
            distance = f"{self.emd_corrected:.4g} bins [{self.low:.4g}, {self.high:.4g}]"
            outcome = "surely more" if not self.holds else "holds"
            if self.holds and self.emd_corrected > bound.max:
                outcome = "holds, as it is not surely more"
        elif isfinite(self.emd):
            distance = f"{self.emd:.4g} bins, without an interval"
            distance += ", as one is a part of the other" if self.nested else ""
            outcome = "holds" if self.holds else "more"
        else:
            distance, outcome = "a distance that is not defined", "cannot hold"
        limit = f"at most {bound.max:.4g}"
        return f"{bound.a} and {bound.b}, {what}: {distance}, {limit}: {outcome}"


def require_known(
    bounds: Sequence[Bound], catalogue: Catalogue, requests: Sequence[Request]
) -> None:
    """Checks, before anything is built, that the bounds name what there is or will be.

    A layer is looked for in the networks that the two datasets are built with. A name that may
    become a part of a dataset (`by`) is accepted, as its parts are known only after its build.

    Args:
        bounds: The bounds.
        catalogue: The catalogue.
        requests: The datasets that will be built.

    Raises:
        UsageError: If a bound names an unknown dataset, lens or layer.
    """
    lenses = newest_lenses(catalogue) if any(bound.lens for bound in bounds) else {}
    if not bounds:
        return
    head = catalogue.head()
    known = head.datasets.keys() | {request.name for request in requests}
    for bound in bounds:
        named = [VersionName.parse(name).dataset for name in (bound.a, bound.b)]
        builds = [_request_for(name, requests, head) for name in named]
        for name, request in zip(named, builds, strict=True):
            if name not in known and request is None:
                raise UsageError(
                    f"{bound}: there is no dataset {name!r}; there are {', '.join(sorted(known))}"
                )
        if bound.lens and not _has_lens(bound.lens, lenses):
            present = ", ".join(sorted(lenses)) or "none"
            raise UsageError(
                f"{bound}: there is no lens {bound.lens!r}; {catalogue.root} has {present}. The "
                "name of a file must end in .parquet"
            )
        for request in filter(None, builds if bound.layer != ALL else ()):
            layers = _layers(request)
            if layers and bound.layer not in layers:
                raise UsageError(
                    f"{bound}: there is no layer {bound.layer!r}; there are {', '.join(layers)}"
                )


def _request_for(name: str, requests: Sequence[Request], head: Commit) -> Request | None:
    """Finds the request that builds a dataset, be it whole or a part; None if there is none."""
    for request in requests:
        if request.name == name:
            return request
    versions = head.datasets.get(name, {}).values()
    for request in requests:
        if any(version.part_of == request.name for version in versions):
            return request
        if not versions and request.by and name.startswith(f"{request.name}/"):
            return request
    return None


def _has_lens(name: str, lenses: Mapping[str, object]) -> bool:
    if name.endswith(".parquet"):
        return storage.exists(storage.canonical(name))
    return name in lenses


def _layers(request: Request) -> list[str]:
    """Lists a network's layers; none if it cannot be described, which its build will explain."""
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
) -> list[Verdict]:
    """Judges each bound by the matrix of its two datasets.

    Args:
        catalogue: The catalogue.
        bounds: The bounds.
        requests: The datasets that were to be built. A bound on one that was not is not judged, as
            its old version would be misleading, unless the bound names a version that stays the
            same whatever is built.
        results: What was built.
        matrices: Matrices without a lens that were computed already. Others are computed here.
        effort: How to compute.

    Returns:
        A verdict for each bound. An error of one bound is kept in its verdict, so that the others
        are judged too: see `require_kept`.
    """
    if not bounds:
        return []
    specs = {result.name: result.version.spec for result in results}
    specs |= {part: v.spec for result in results for part, v in result.parts.items()}
    head = catalogue.head()
    verdicts = []
    for bound in bounds:
        try:
            for name in map(VersionName.parse, (bound.a, bound.b)):
                if name.follows:
                    request = _request_for(name.dataset, requests, head)
                    _require_built(name.dataset, specs, request)
            spec = _spec_of(catalogue, bound, specs)
            matrix = _find_matrix(bound, spec, matrices)
            if matrix is None:
                matrix = _compare_pair(catalogue, bound, spec, effort)
            verdicts.append(_verdict(catalogue, bound, matrix))
        except VdnaError as error:
            verdicts.append(Verdict(bound, error=error))
    return verdicts


def require_kept(verdicts: Sequence[Verdict], name: str) -> None:
    """Checks that every bound was judged and is kept.

    Args:
        verdicts: The verdicts.
        name: How errors name the gate's file.

    Raises:
        GateError: If bounds are broken.
        VdnaError: If bounds could not be judged: an error of the kind that kept the first of them,
            which names them all and the broken ones.
    """
    broken = "; ".join(str(one) for one in verdicts if not one.error and not one.holds)
    lines = [f"the gate of {name} says no: {broken}"] if broken else []
    errors = [(one.bound, one.error) for one in verdicts if one.error]
    if errors:
        kinds = [error for _, error in errors]
        first = next((error for error in kinds if isinstance(error, UsageError)), kinds[0])
        raise type(first)("\n".join([*(f"{b}: {e}" for b, e in errors), *lines])) from first
    if lines:
        raise GateError(*lines)


def _require_built(name: str, specs: Mapping[str, str], request: Request | None) -> None:
    """Refuses a dataset that this refresh was to build, and has not."""
    if request is None or name in specs:
        return
    if request.name in specs:
        raise NotFound(f"{request.name} has no part {name} any more, or never had one")
    raise NotFound(
        f"{request.name} was not built by this refresh, and an older version of {name} is not "
        "judged; see why its build failed"
    )


def _spec_of(catalogue: Catalogue, bound: Bound, specs: Mapping[str, str]) -> str | None:
    """Returns the digest of the spec of both datasets, which must be one; None if not built."""
    a, b = (specs.get(dataset_of(name)) for name in (bound.a, bound.b))
    if a and b and a != b:
        catalogue.spec(a).require_same(catalogue.spec(b), bound.a, bound.b)
    return a or b


def _find_matrix(bound: Bound, spec: str | None, matrices: Sequence[Matrix]) -> Matrix | None:
    """Finds the matrix without a lens that has both datasets of a bound."""
    pair = {bound.a, bound.b}
    for matrix in matrices:
        if not bound.lens and matrix.spec_digest == spec and pair <= set(matrix.names):
            return matrix
    return None


def _compare_pair(
    catalogue: Catalogue, bound: Bound, spec: str | None, effort: Effort | None
) -> Matrix:
    names = [bound.a, bound.b]
    lens: Lens | None = None
    if bound.lens:
        lens = find_lens(catalogue, bound.lens, spec_of(catalogue, names, spec=spec))
    return compare(catalogue, names, spec=spec, lens=lens, effort=effort)


def _verdict(catalogue: Catalogue, bound: Bound, matrix: Matrix) -> Verdict:
    at = matrix.names.index(bound.a), matrix.names.index(bound.b)
    emd, corrected, low, high = (
        float(matrix.of(bound.layer, column)[at])
        for column in ("emd", "emd_corrected", "low", "high")
    )
    paired = matrix.of(bound.layer, "paired")[at] >= LEAST_PAIRED
    a, b = (catalogue.find(name, spec=matrix.spec_digest) for name in (bound.a, bound.b))
    # Intervals suppose independent samples, or that it is known which images are shared.
    nested = a.part_of == dataset_of(bound.b) or b.part_of == dataset_of(bound.a)
    if nested and not paired:
        return Verdict(bound, emd, nested=True)
    return Verdict(bound, emd, corrected, low, high)
