"""Lenses fitted to attributes: the few neurons that see one, or weights that do not see it.

    >>> fitted = fit_ignoring(place, "no-fog", ["foggy:clear"], ["dark:clear"])  # doctest: +SKIP
    >>> fitted.lens, fitted.suppression, fitted.change                           # doctest: +SKIP

An attribute is a pair of datasets, with it and without. What neurons see of it is their distance
between the two, corrected for the sizes of the samples, as noise is no signal to be cancelled. Of
the very same images with a change and without (WITH=WITHOUT) it is their distance as it stands, as
chance drew them once; how differently images take the change adds to it, less with more of them.

To ignore some attributes and keep others (Ramtoula et al., CVPR 2023, section 5.3), weights x of
mean 1 minimise

    10 mean over ignored (r x)^2 + mean over kept (r x - 1)^2 + ridge sum v (x - 1)^2

where r is an attribute's row of distances, divided by their sum: r x is its distance through the
lens over that of all neurons alike. What is left of an attribute is looked at first, hence the 10.
v, of sum 1, is how much a neuron's distances vary from image to image, by the jackknife over folds,
nine parts of ten, and one part the same for all: a weight on a neuron that varies does on other
images what it did not do on these. It is convex: solved in closed form where weights may be
negative, else by its dual, with scipy's trust region method. The ridge is the one that does best,
fitted on half of the folds of every dataset and scored on the other half; those are also the scores
that are told, and which a lens carries.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue, Version, check_name, software
from pipeline.comparing import (
    FALSE_DISCOVERY_RATE,
    LEAST_FOLDS,
    FoldCurves,
    adjusted,
    neuron_estimates,
    paired_estimates,
    resolve,
)
from pipeline.dna import DNA, DnaFile, Floats, Lens
from pipeline.errors import UsageError, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.spec import Spec

RIDGES = tuple(float(value) for value in np.logspace(1, -5, 19))
"""The first that does best is taken: where nothing is seen, the one that hardly moves a weight."""

IGNORED_WEIGHT = 10.0
"""What an ignored attribute counts, of a kept one's 1."""

EVEN_SHARE = 0.1
"""The part of the ridge that is the same for all neurons."""

FOCUS_NEURONS = 20
"""The poster's "wearing hat" took as many."""

NEEDED_FOLDS = 2 * LEAST_FOLDS
"""Of a dataset: halves of them are fitted on and scored on."""

Role = Literal["focus", "ignored", "kept"]


@dataclass(frozen=True)
class Attribute:
    """Two datasets: with it, and without. `paired`: they are the same images but for it."""

    with_it: str
    without: str
    paired: bool = False

    @classmethod
    def parse(cls, text: str) -> Attribute:
        """Of WITH:WITHOUT, or of WITH=WITHOUT, which are paired."""
        found = re.fullmatch("([^:=]+)([:=])(.+)", text)
        if found is None:
            raise UsageError(
                f"attribute is {text!r}; name two datasets, with it and without: foggy:clear, or "
                "foggy=clear where they are the same images"
            )
        with_it, sign, without = found.groups()
        if with_it == without:
            raise UsageError(f"attribute is {text!r}: the same dataset with it and without")
        return cls(check_name(with_it), check_name(without), sign == "=")

    def __str__(self) -> str:
        return f"{self.with_it}{'=' if self.paired else ':'}{self.without}"


@dataclass(frozen=True)
class Score:
    """An attribute, held out: fitted on half of the folds, told of the other half; the mean of all
    such halves.

    `plain`: its distance, of all neurons alike, in bins; `through`: what the lens makes
    of it, as a share of that. `seen`: whether it is told from noise at all.
    """

    attribute: str
    role: Role
    plain: float
    through: float
    seen: bool


@dataclass(frozen=True, eq=False)
class FittedLens:
    """A lens, and how it does on images that it was not fitted on. `ridge`: 0 for chosen ones."""

    lens: Lens
    scores: tuple[Score, ...]
    ridge: float = 0.0

    @property
    def suppression(self) -> float:
        """Mean over the ignored attributes that are seen; 1 where nothing is left of them."""
        return _mean([1 - abs(s.through) for s in self.scores if s.role == "ignored" and s.seen])

    @property
    def change(self) -> float:
        """Mean over the kept attributes that are seen; 0 where they are what they were."""
        return _mean([abs(s.through - 1) for s in self.scores if s.role == "kept" and s.seen])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def fit_ignoring(
    catalogue: Catalogue,
    name: str,
    ignored: Sequence[str],
    kept: Sequence[str],
    *,
    non_negative: bool = False,
    by_layer: bool = False,
    spec: str | None = None,
    at: int | str | None = None,
    progress: Listener | None = None,
) -> FittedLens:
    """Weights that take distances of the `ignored` attributes to zero, and leave the `kept` ones.

    `non_negative`: of a lens that stays a metric. `by_layer`: the same for all neurons of a layer.
    Raises `UsageError` where nothing is ignored, a dataset has fewer than 12 folds, or what is said
    to be the same images is not, and as `compare` does.
    """
    if not ignored or not kept:
        raise UsageError("a lens that ignores takes an attribute to ignore, and others to keep")
    seen = AttributeDistances.of(catalogue, [*ignored, *kept], spec, at, progress or ignore)
    roles: list[Role] = ["ignored" if text in ignored else "kept" for text in seen.attributes]
    return seen.fit(name, roles, non_negative=non_negative, by_layer=by_layer)


def fit_focus(
    catalogue: Catalogue,
    name: str,
    attribute: str,
    *,
    top: int = FOCUS_NEURONS,
    layers: Sequence[str] | None = None,
    spec: str | None = None,
    at: int | str | None = None,
    progress: Listener | None = None,
) -> FittedLens:
    """The `top` neurons that are most sensitive to an attribute, alike.

    Only such that differ at a false discovery rate of 5%: a `UsageError` says where none does.
    `layers`: of these only.
    """
    if top < 1:
        raise UsageError(f"top is {top}; a lens takes at least one neuron")
    seen = AttributeDistances.of(catalogue, [attribute], spec, at, progress or ignore)
    for layer in layers or ():
        seen.spec.tap(layer)
    among = [seen.spec.layers.index(layer) for layer in layers or seen.spec.layers]
    allowed = np.isin(seen.layers, among)
    q = np.where(allowed, adjusted(np.where(allowed, seen.p[0], np.nan)), np.nan)
    differ = q < FALSE_DISCOVERY_RATE
    if not differ.any():
        raise UsageError(
            f"{attribute}: no neuron differs at a false discovery rate of "
            f"{FALSE_DISCOVERY_RATE:.0%}; its signal is under the floor of so few images"
        )
    places = _first(np.where(differ, seen.whole.distances[0], -1.0), top)
    if not len(places):
        raise UsageError(
            f"{attribute}: corrected for the sizes of the samples, nothing is left of the distance "
            f"of the {np.count_nonzero(differ)} neurons that differ; give more images"
        )
    weights = np.zeros(seen.spec.neurons)
    weights[places] = 1.0
    through = []
    for fitted_on, told_of in zip(seen.halves, _swapped(seen.halves), strict=True):
        chosen = _first(np.where(allowed, fitted_on.distances[0], -1.0), len(places))
        told = told_of.distances[0]
        if len(chosen) and told.mean() > 0:
            through.append(told[chosen].mean() / told.mean())
    (score,) = seen.scores(["focus"], np.array([_mean(through)]))
    scores = (replace(score, seen=True),)  # by these layers' neurons, of which some differ
    how = {"kind": "focus", "top": top, "layers": list(layers or ())}
    return FittedLens(Lens(name, seen.taps, weights, seen.provenance(how, scores)), scores)


def _first(values: Floats, count: int) -> NDArray[np.intp]:
    """Places of the largest that are above zero."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[values[order] > 0]


def _swapped(halves: Sequence[Any]) -> list[Any]:
    """For each half of the folds, the other."""
    return [halves[at ^ 1] for at in range(len(halves))]


@dataclass(frozen=True, eq=False)
class NeuronDistances:
    """What neurons see of attributes, (A, N): distances, and their variances."""

    distances: Floats
    variances: Floats


@dataclass(frozen=True, eq=False)
class _FitProblem:
    """Attributes' distances by neuron (A, N), each row divided by its sum."""

    view: NeuronDistances
    roles: Sequence[Role]

    @cached_property
    def _total(self) -> Floats:
        total = self.view.distances.sum(axis=1, keepdims=True)
        return np.where(total > 0, total, np.inf)

    @cached_property
    def rows(self) -> Floats:
        return self.view.distances / self._total

    @cached_property
    def _shares(self) -> Floats:
        """What each attribute counts: those of a role are as one."""
        roles = np.array(self.roles)
        counts = {"ignored": IGNORED_WEIGHT, "kept": 1.0}
        return np.array([counts[role] / np.count_nonzero(roles == role) for role in roles])

    @cached_property
    def ridge_shares(self) -> Floats:
        """(N,) of sum 1: what the ridge makes of each neuron."""
        varies = self._shares @ (self.view.variances / self._total**2)
        even = np.full(len(varies), 1 / len(varies))
        return (
            EVEN_SHARE * even + (1 - EVEN_SHARE) * varies / varies.sum()
            if varies.sum() > 0
            else even
        )

    @cached_property
    def _wanted(self) -> Floats:
        return np.array([0.0 if role == "ignored" else 1.0 for role in self.roles])

    def fit(self, ridge: float, groups: NDArray[Any], *, non_negative: bool) -> Floats:
        """(N,) weights of mean 1. `groups` (N,): neurons of one number have one weight."""
        _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        summed = np.array([np.bincount(place, row) for row in self.rows], np.float64)
        scale = np.sqrt(self._shares)[:, None]
        rows, wanted = summed * scale, self._wanted * scale[:, 0]
        share = sizes / sizes.sum()  # of the mean that each group is
        stiff = np.asarray(np.bincount(place, self.ridge_shares), np.float64)
        if non_negative:
            return _non_negative(rows, wanted, ridge * stiff, share)[place]
        # In d = x - 1, of mean 0, with the ridge on sqrt(stiff) d: least squares of least norm.
        root = np.sqrt(stiff)
        fixed = share / root / np.linalg.norm(share / root)
        free = rows / root
        free = free - (free @ fixed)[:, None] * fixed
        gram = free @ free.T + ridge * np.eye(len(free))
        d = free.T @ np.linalg.solve(gram, wanted - rows.sum(axis=1))
        x: Floats = 1 + d / root
        return x[place]

    def loss(self, x: Floats, told: NDArray[np.bool_]) -> float:
        """What is left of the ignored attributes and lost of the kept, of those that are seen."""
        off = (self.rows @ x - self._wanted) ** 2
        shares = np.where(told, self._shares, 0.0)
        return float(off @ shares)


def _non_negative(rows: Floats, wanted: Floats, ridge: Floats, share: Floats) -> Floats:
    """x >= 0 of mean 1 that minimises |rows x - wanted|^2 + sum ridge (x - 1)^2, by its dual.

    Of the multipliers (v, e) of `rows x - wanted` and of the mean, x is max(0, 1 - (rows' v + e
    share) / (2 ridge)): as few unknowns as there are attributes, and one more.
    """
    from scipy.optimize import minimize  # half a second, for who fits

    by = np.vstack([rows, share])
    told = np.append(wanted, 1.0)
    soft = np.append(np.full(len(rows), 0.5), 0.0)

    def weights(v: Floats) -> Floats:
        return np.maximum(0.0, 1 - (by.T @ v) / (2 * ridge))

    def loss(v: Floats) -> tuple[float, Floats]:
        x, pulled = weights(v), by.T @ v
        value = v @ (soft * v) / 2 + v @ told - ridge @ (x - 1) ** 2 - x @ pulled
        return float(value), soft * v + told - by @ x

    def curvature(v: Floats) -> Floats:
        above = weights(v) > 0
        inner = (by[:, above] / ridge[above]) @ by[:, above].T / 2
        return np.asarray(np.diag(soft) + inner)

    start = np.zeros(len(by))
    how: dict[str, Any] = {"gtol": 1e-9, "maxiter": 2000}
    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options=how)
    x = weights(found.x)
    total = share @ x
    if not abs(total - 1) < 1e-3:
        raise VdnaError(f"the weights were not found: {found.message}, of mean {total:g}")
    return np.asarray(x / total)


@dataclass(frozen=True, eq=False)
class AttributeDistances:
    """What neurons see of attributes, which lenses are fitted to without another look.

    `whole`: of all folds; `halves`: of half of them, each followed by its other half. `p` (A, N):
    of each neuron. `told` (A,): whether any neuron differs at the false discovery rate. `layers`
    (N,): by their number.
    """

    attributes: tuple[str, ...]
    spec: Spec
    members: Mapping[str, str]
    images: Mapping[str, int]
    whole: NeuronDistances
    halves: tuple[NeuronDistances, ...]
    p: Floats

    @property
    def layers(self) -> NDArray[np.intp]:
        return np.repeat(np.arange(len(self.spec.taps)), [tap.neurons for tap in self.spec.taps])

    @cached_property
    def detected(self) -> NDArray[np.bool_]:
        return np.array([bool((adjusted(row) < FALSE_DISCOVERY_RATE).any()) for row in self.p])

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        attributes: Sequence[str],
        spec: str | None,
        at: int | str | None,
        progress: Listener,
    ) -> AttributeDistances:
        parsed = [Attribute.parse(text) for text in attributes]
        if len({frozenset((of.with_it, of.without)) for of in parsed}) != len(parsed):
            raise UsageError(f"an attribute is named twice among {', '.join(attributes)}")
        names = dict.fromkeys(name for of in parsed for name in (of.with_it, of.without))
        digest, versions = resolve(catalogue, list(names), at=at, spec=spec)
        network = catalogue.spec(digest)
        files = {name: _folds(catalogue, name, version) for name, version in versions.items()}
        _require_pairs(catalogue, parsed, versions)
        total, layers = len(parsed) * network.neurons, len(network.taps)
        parts: list[list[list[Floats]]] = []
        with stage(progress, Started(total, layers, unit="neurons", step="layers")):
            for tap in network.taps:
                parts.append(list(_layer(files, parsed, tap.name)))
                progress(StepDone(len(parsed) * tap.neurons, name=tap.name))
        of_attributes = [
            [np.concatenate(columns) for columns in zip(*layers, strict=True)]
            for layers in zip(*parts, strict=True)
        ]
        p, *columns = (np.array(rows) for rows in zip(*of_attributes, strict=True))
        whole, *halves = map(NeuronDistances, columns[::2], columns[1::2])
        return cls(
            tuple(map(str, parsed)),
            network,
            {name: version.dna for name, version in versions.items()},
            {name: version.images for name, version in versions.items()},
            whole,
            tuple(halves),
            p,
        )

    def fit(
        self,
        name: str,
        roles: Sequence[Role],
        *,
        non_negative: bool = False,
        by_layer: bool = False,
    ) -> FittedLens:
        """A lens that ignores and keeps these attributes, each by its role."""
        groups = self.layers if by_layer else np.arange(self.spec.neurons)
        whole, *halves = (_FitProblem(of, roles) for of in (self.whole, *self.halves))

        def fitted(ridge: float) -> list[tuple[Floats, _FitProblem]]:
            """Weights of each half, and the other half."""
            weights = (of.fit(ridge, groups, non_negative=non_negative) for of in halves)
            return list(zip(weights, _swapped(halves), strict=True))

        def lost(ridge: float) -> float:
            return _mean([of.loss(x, self.detected) for x, of in fitted(ridge)])

        ridge = min(RIDGES, key=lost)
        weights = whole.fit(ridge, groups, non_negative=non_negative) / self.spec.neurons
        through = np.mean([of.rows @ x for x, of in fitted(ridge)], axis=0)
        scores = self.scores(roles, through)
        how = {
            "kind": "ignore",
            "non_negative": non_negative,
            "by": "layer" if by_layer else "neuron",
            "ridge": ridge,
        }
        return FittedLens(
            Lens(name, self.taps, weights, self.provenance(how, scores)), scores, ridge
        )

    @property
    def taps(self) -> tuple[tuple[str, int], ...]:
        return tuple((tap.name, tap.neurons) for tap in self.spec.taps)

    def scores(self, roles: Sequence[Role], through: Floats) -> tuple[Score, ...]:
        plain = np.mean([half.distances.mean(axis=1) for half in self.halves], axis=0)
        columns = (self.attributes, roles, plain.tolist(), through.tolist(), self.detected.tolist())
        return tuple(Score(*row) for row in zip(*columns, strict=True))

    def provenance(self, how: Mapping[str, Any], scores: Sequence[Score]) -> dict[str, Any]:
        """Of what it was fitted, how, and how it did where it was not."""
        return {
            **how,
            "members": dict(self.members),
            "images": dict(self.images),
            "spec": self.spec.digest,
            "weights_sha256": self.spec.weights_sha256,
            "held_out": [asdict(score) for score in scores],
            "software": software(),
        }


def _require_pairs(
    catalogue: Catalogue, attributes: Sequence[Attribute], versions: Mapping[str, Version]
) -> None:
    """That each fold of one has images of the same names as that fold of the other.

    Raises `UsageError` with the first name of which that is not so.
    """
    held: dict[str, pa.Table] = {}
    for attribute in (of for of in attributes if of.paired):
        both = attribute.with_it, attribute.without
        held = {
            name: held[name] if name in held else _pictures(catalogue, name, versions[name])
            for name in both  # the one without is most attributes'
        }
        with_it, without = (held[name] for name in both)
        if with_it.equals(without):
            continue
        rows = [Counter(zip(*of.to_pydict().values(), strict=True)) for of in (with_it, without)]
        picture, fold = min((rows[0] - rows[1]) + (rows[1] - rows[0]))
        here, there = both if rows[0][picture, fold] > rows[1][picture, fold] else both[::-1]
        raise UsageError(
            f"{attribute} is not of the same images: {picture} is in fold {fold} of {here} and not "
            f"in that of {there}. Images are paired by their file's name, its suffix aside, and by "
            "their fold: build both anew, of tables with a column of what makes a pair (--group-by "
            "COLUMN), without a limit; or write a colon, for other images"
        )


def _pictures(catalogue: Catalogue, name: str, version: Version) -> pa.Table:
    """Name and fold of each image that was counted, in order."""
    tables = catalogue.manifest(name, version).tables()
    columns = ["uri", "member", "fold"]
    rows = pa.concat_tables(table.select(columns) for table in tables)
    if version.failed:
        failures = catalogue.failures(name, version)
        bad = {key: [getattr(of, key) for of in failures] for key in columns[:2]}
        rows = rows.join(pa.table(bad), columns[:2], join_type="left anti")
    file = pc.if_else(pc.equal(rows["member"], ""), rows["uri"], rows["member"])
    for pattern in ("^.*/", r"\.[^.]*$"):
        file = pc.replace_substring_regex(file, pattern, "")
    pictures = pa.table({"picture": file, "fold": rows["fold"]})
    return pictures.sort_by([("picture", "ascending"), ("fold", "ascending")])


def _folds(catalogue: Catalogue, name: str, version: Version) -> DnaFile:
    """Raises `UsageError` where there are too few."""
    if "folds" not in version.sha256:
        raise UsageError(f"{name} has no folds, of which a lens is fitted: it was imported")
    file = catalogue.open_file("folds", name, version, on_disk=True)
    if len(file.folds) < NEEDED_FOLDS:
        raise UsageError(
            f"{name} has {len(file.folds)} folds; to fit a lens on half of them and to score it on "
            f"the others takes {NEEDED_FOLDS}, which is as many images or more"
        )
    return file


def _layer(
    files: Mapping[str, DnaFile], attributes: Sequence[Attribute], layer: str
) -> Iterator[list[Floats]]:
    """Of each attribute, by neuron: p; distance and variance, of all folds and of each half."""
    held: dict[str, list[FoldCurves]] = {}

    def curves(name: str) -> list[FoldCurves]:
        if name not in held:
            while len(held) > 1:  # attributes mostly share what they are without
                last = attributes[-1].without
                held.pop(next(of for of in held if of != last or len(held) == 1))
            folds = list(files[name].read_folds(layer).values())
            held[name] = [_curves(some) for some in (folds, *_halves(folds))]
        return held[name]

    for attribute in attributes:
        pairs = list(zip(curves(attribute.without), curves(attribute.with_it), strict=True))
        columns = [neuron_estimates(*pairs[0])["p"]]
        for a, b in pairs:
            if attribute.paired:
                of, distance = paired_estimates(a, b), "emd"
            else:
                of, distance = neuron_estimates(a, b, test=False), "emd_corrected"
            columns += [np.nan_to_num(of[distance]), np.nan_to_num(of["se"] ** 2)]
        yield columns


def _halves(folds: Sequence[DNA]) -> list[Sequence[DNA]]:
    """Two ways to halve them: every other one, and every other two."""
    pairs = [[fold for k, fold in enumerate(folds) if k // 2 % 2 == side] for side in (0, 1)]
    return [folds[::2], folds[1::2], *pairs]


def _curves(folds: Sequence[DNA]) -> FoldCurves:
    return FoldCurves.of([reduce(DNA.__add__, folds)], [dict(enumerate(folds))])
