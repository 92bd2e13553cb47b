"""The gate of a refresh: bounds on datasets and their distances, judged after the matrix.

    >>> [str(verdict) for verdict in judge(catalogue, config.gate)]            # doctest: +SKIP
    ['day and night, all neurons: 6.7 bins [5.1, 8.4], at most 10: holds']

A bound is broken if the distance is surely larger: if `low`, the lower end of the 95% interval of
the true distance, is above the bound. So noise alone breaks a bound that is just met in one run of
forty, or more rarely.

The plain distance is judged where there is no interval (fewer than two folds, an imported DNA, a
lens with negative weights), or no valid one (a dataset and its own part or version share images,
and it is not known which). A distance that is not defined breaks the bound: a gate that cannot
measure says no. Numbers of images are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite, isnan

from pipeline.building import Request, Result
from pipeline.catalogue import (
    Catalogue,
    Commit,
    LastVersions,
    Rename,
    Version,
    VersionName,
    dataset_of,
    find_lens,
    last_versions,
    renames,
)
from pipeline.comparing import ALL, LEAST_PAIRED, Effort, Matrix, are_apart, compare, spec_of
from pipeline.dna import Lens
from pipeline.errors import GateError, NotFound, UsageError, VdnaError, known_error
from pipeline.networks import Network, describe
from pipeline.refreshing.bound_kinds import AnyBound, DistanceBound, MoveBound
from pipeline.refreshing.bound_lenses import BoundLenses
from pipeline.refreshing.bound_versions import require_versions
from pipeline.refreshing.break_reasons import find_reasons
from pipeline.refreshing.former_versions import FormerVersion, former_version, is_there
from pipeline.refreshing.verdict import AnyVerdict, CountVerdict, Judged, Verdict, unjudged
from pipeline.wording import did_you_mean


def require_known(
    bounds: Sequence[AnyBound], catalogue: Catalogue, requests: Sequence[Request]
) -> None:
    """Checks, before anything is built, that the bounds name what there is or will be.

    A layer is looked for in the networks that the datasets are built with. A name that may
    become a part of a dataset (`by`) is accepted, as its parts are known only after its build.

    Args:
        bounds: The bounds.
        catalogue: The catalogue.
        requests: The datasets that will be built.

    Raises:
        UsageError: If a bound names an unknown dataset, version, lens or layer, or its lens has no
            weight there or is of another network.
    """
    if not bounds:
        return
    lenses = BoundLenses(catalogue)
    head = catalogue.head()
    known = head.datasets.keys() | {request.name for request in requests}
    for bound in bounds:
        named = [VersionName.parse(name).dataset for name in bound.names]
        builds = [_request_for(name, requests, head) for name in named]
        for name, request, version in zip(named, builds, bound.names, strict=True):
            if name not in known and request is None and not _is_past(catalogue, version, head):
                raise UsageError(
                    f"{bound}: there is no dataset {name!r}; there are {', '.join(sorted(known))}"
                    + did_you_mean(name, known)
                )
        if not isinstance(bound, DistanceBound):
            continue
        require_versions(bound, catalogue, head, len(requests))
        through = bound.lens is not None or bound.layer != ALL
        networks = [*filter(None, map(_network_of, filter(None, builds if through else ())))]
        for network in networks if bound.layer != ALL else ():
            layers = [tap.name for tap in network.taps]
            if bound.layer not in layers:
                raise UsageError(
                    f"{bound}: there is no layer {bound.layer!r}; there are {', '.join(layers)}"
                )
        lenses.require(bound, networks)


def _is_past(catalogue: Catalogue, name: str, head: Commit) -> bool:
    """Tells whether a name means a version of a dataset that was renamed, or taken out."""
    named = VersionName.parse(name)
    return named.which is not None and not named.follows and is_there(catalogue, name, head)


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


def _network_of(request: Request) -> Network | None:
    """Describes a network; None if it cannot be described, which its build will explain."""
    try:
        return describe(request.extractor, request.weights, request.taps)
    except VdnaError:
        return None


def judge(
    catalogue: Catalogue,
    bounds: Sequence[AnyBound],
    requests: Sequence[Request] = (),
    results: Sequence[Result] = (),
    matrices: Sequence[Matrix] = (),
    effort: Effort | None = None,
    *,
    moves: Mapping[str, tuple[Version, Version, Matrix]] | None = None,
    since: int = 0,
    head: Commit | None = None,
) -> list[AnyVerdict]:
    """Judges every bound, by what this refresh built.

    Args:
        catalogue: The catalogue.
        bounds: The bounds.
        requests: What was to be built. A dataset or a part that comes of these is judged only if
            it was built now, and in the spec that it was built in; others are judged as they are
            in the catalogue. So is a version of a commit, a time or a tag: such a name means the
            same version, whatever is built.
        results: What was built.
        matrices: Matrices without a lens that were computed already. Others are computed here.
        effort: How to compute.
        moves: The version before the current one, the current one, and their matrix, by the name of
            the dataset. They are not compared again.
        since: Number of the newest commit before this refresh. A version that a later commit made
            is a new one.
        head: The commit whose state is judged, which `matrices` are of; None for the newest.

    Returns:
        A verdict for each bound. An error of one bound is kept in its verdict, so that the others
        are judged too: see `require_kept`.
    """
    if not bounds:
        return []
    specs = {result.name: result.version.spec for result in results}
    specs |= {part: v.spec for result in results for part, v in result.parts.items()}
    judging = _Judging(
        *(catalogue, head or catalogue.head(), requests, specs, matrices, effort, since),
        moves or {},
    )
    judging.look_back(bounds)
    verdicts = []
    for bound in bounds:
        try:
            verdicts.append(judging.verdict(bound))
        except Exception as error:
            verdicts.append(unjudged(bound, known_error(error)))
    return verdicts


def require_kept(verdicts: Sequence[AnyVerdict], name: str) -> None:
    """Checks that every bound was judged and is kept.

    Args:
        verdicts: The verdicts.
        name: How errors name the gate's file.

    Raises:
        GateError: If bounds are broken.
        VdnaError: If bounds could not be judged: an error of the kind that kept the first of them,
            which names them all and the broken ones.
    """
    broken = "; ".join(str(one) for one in verdicts if one.outcome == "broken")
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


@dataclass(frozen=True, eq=False)
class _Judging:
    """What bounds are judged by: one state of the catalogue, and what this refresh has made.

    Attributes:
        head: The state that all names of versions are looked up in.
        specs: The digest of the spec of each dataset and part that this refresh has built.
        moves: The version before the current one, that one, and their matrix, by the dataset.
        past: The last versions of the datasets that move bounds are about, by dataset and spec.
    """

    catalogue: Catalogue
    head: Commit
    requests: Sequence[Request]
    specs: Mapping[str, str]
    matrices: Sequence[Matrix]
    effort: Effort | None
    since: int
    moves: Mapping[str, tuple[Version, Version, Matrix]]
    past: dict[tuple[str, str], LastVersions] = field(default_factory=dict)

    def look_back(self, bounds: Sequence[AnyBound]) -> None:
        """Reads the log once for all bounds on moves."""
        wanted: dict[tuple[str, str], int] = {}
        for bound in bounds:
            if isinstance(bound, MoveBound):
                with suppress(VdnaError):  # its verdict will say so
                    key = bound.dataset, self._find(bound.dataset, self._spec_of(bound)).spec
                    wanted[key] = max(bound.back, wanted.get(key, 0))
        with suppress(VdnaError):  # so will the verdicts
            self.past.update(last_versions(self.catalogue.log(self.head), wanted))

    def verdict(self, bound: AnyBound) -> AnyVerdict:
        """Judges a bound."""
        for name in map(VersionName.parse, bound.names):
            if name.follows:
                request = _request_for(name.dataset, self.requests, self.head)
                _require_built(name.dataset, self.specs, request)
        spec = self._spec_of(bound)
        if not isinstance(bound, DistanceBound):
            version = self._find(bound.dataset, spec)
            return CountVerdict(bound, version.images, version.failed)
        if isinstance(bound, MoveBound):
            return self._moved(bound, self._find(bound.dataset, spec))
        lens = self._lens(bound, spec)
        matrix = self._find_matrix(bound, spec) or self._compared(bound.names, spec, lens)
        at = matrix.names.index(bound.a), matrix.names.index(bound.b)
        sides = [self._find(name, matrix.spec_digest) for name in bound.names]
        return self._explained(_distance(bound, matrix, at, sides), matrix.spec_digest, lens)

    def _moved(self, bound: MoveBound, version: Version) -> Verdict:
        """Judges how far a dataset is from an earlier version."""
        spec, key = version.spec, (bound.dataset, version.spec)
        past = self.past.get(key)
        if past is None:
            past = last_versions(self.catalogue.log(self.head), {key: bound.back})[key]
        new = past.commit > self.since
        if len(past.versions) <= bound.back:
            former = self._former(bound, spec, len(past.versions))
            return Verdict(bound, judged=Judged(past.commit, None, new, former))
        if bound.counts_back:
            earlier, against = past.versions[bound.back]
        else:
            found = self.catalogue.resolve_in(self.head, bound.earlier, spec)
            earlier, against = found.version, found.commit
            if bound.is_number and against >= past.commit:  # it is the version that is judged
                return Verdict(bound, judged=Judged(past.commit, None, new))
        lens = self._lens(bound, spec)
        replaced, made, matrix = self.moves.get(bound.dataset, (None, None, None))
        if matrix is None or lens is not None or (replaced, made) != (earlier, version):
            other = bound.earlier if bound.is_window else f"{bound.dataset}@{against}"
            names = other, bound.dataset
            matrix = self._compared(names, spec, lens)
        verdict = self._explained(_distance(bound, matrix, (0, 1), (earlier, version)), spec, lens)
        return replace(verdict, judged=Judged(past.commit, against, new))

    def _former(self, bound: MoveBound, spec: str, versions: int) -> FormerVersion | None:
        """Finds the earlier version of a bound under a former name of its dataset.

        Returns:
            That version; None if there is none, or if it is the one that is judged.

        Raises:
            NotFound: The earlier version is there under its present name, but of other specs.
        """
        if not bound.counts_back and is_there(self.catalogue, bound.earlier, self.head):
            self._find(bound.earlier, spec)
            return None
        place, head = self.catalogue, self.head
        return former_version(place, head, self._renames, bound, spec, versions)

    @cached_property
    def _renames(self) -> list[Rename]:
        return list(renames(self.catalogue.log(self.head)))

    def _find(self, name: str, spec: str | None) -> Version:
        return self.catalogue.resolve_in(self.head, name, spec).version

    def _spec_of(self, bound: AnyBound) -> str | None:
        """Returns the digest of the spec that its datasets share; None if none was built."""
        datasets = [dataset_of(name) for name in bound.names]
        built = [self.specs[of] for of in datasets if of in self.specs]
        if len(set(built)) > 1:
            first, second = (self.catalogue.spec(digest) for digest in built)
            first.require_same(second, *bound.names)
        return built[0] if built else None

    def _find_matrix(self, bound: DistanceBound, spec: str | None) -> Matrix | None:
        """Finds the matrix without a lens that has both datasets of a bound."""
        for matrix in self.matrices:
            there = matrix.spec_digest == spec and set(bound.names) <= set(matrix.names)
            if there and not bound.lens:
                return matrix
        return None

    def _lens(self, bound: DistanceBound, spec: str | None) -> Lens | None:
        if bound.lens is None:
            return None
        shared = spec_of(self.catalogue, bound.names, at=self.head.number, spec=spec)
        return find_lens(self.catalogue, bound.lens, shared)

    def _compared(self, names: Sequence[str], spec: str | None, lens: Lens | None) -> Matrix:
        at = self.head.number
        return compare(self.catalogue, names, at=at, spec=spec, lens=lens, effort=self.effort)

    def _explained(self, found: Verdict, spec: str, lens: Lens | None) -> Verdict:
        """Adds the reasons to a verdict, if a distance was judged and its bound is broken."""
        if found.outcome != "broken" or isnan(found.value):
            return found
        at, progress = self.head.number, self.effort.progress if self.effort else None
        try:
            reasons = find_reasons(self.catalogue, found.bound, at, spec, lens, progress)
        except VdnaError as error:  # the bound is broken all the same
            return replace(found, unexplained=str(error))
        return replace(found, reasons=reasons)


def _distance(
    bound: DistanceBound, matrix: Matrix, at: tuple[int, int], sides: Sequence[Version]
) -> Verdict:
    """Judges the distance of two versions.

    Args:
        bound: The bound.
        matrix: A matrix that has both.
        at: Their row and column.
        sides: The versions.

    Returns:
        The verdict.
    """
    emd, corrected, low, high, paired = (
        float(matrix.of(bound.layer, column)[at])
        for column in ("emd", "emd_corrected", "low", "high", "paired")
    )
    first, second = map(dataset_of, bound.names)
    a, b = sides
    # Intervals suppose independent samples, or that it is known which images are shared.
    nested = (a.part_of == second or b.part_of == first) and not are_apart(a, b)
    if nested and not paired >= LEAST_PAIRED:
        what = (
            "they have days in common" if a.part_of == b.part_of else "one is a part of the other"
        )
        return Verdict(bound, emd, shared=what)
    same = isinstance(bound, MoveBound) or (first == second and not are_apart(a, b))
    if same and isnan(paired) and isfinite(low):
        return Verdict(bound, emd, shared="it is not known which images both versions have")
    return Verdict(bound, emd, corrected, low, high)
