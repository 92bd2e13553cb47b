"""Fits lenses to attributes: the few neurons that see one, or weights that do not see it.

    >>> fitted = fit_lens(catalogue, "no-fog", ignore=["foggy:clear"], keep=["dark:clear"])
    ... # doctest: +SKIP
    >>> fitted.lens, fitted.suppression, fitted.change                  # doctest: +SKIP

An attribute is a pair of datasets, with it and without. What neurons see of it is their distance
between the two, corrected for the sizes of the samples, as noise is no signal to be cancelled. If
the two are the very same images with a change and without (WITH=WITHOUT), it is their plain
distance. How differently images take the change adds to that, the less the more images there are.

To ignore some attributes and keep others (Ramtoula et al., CVPR 2023, section 5.3), weights x of
mean 1 minimise

    10 mean over ignored (r x)^2 + mean over kept (r x - 1)^2 + ridge sum v (x - 1)^2

where r is an attribute's row of distances, divided by their sum: r x is its distance through the
lens over that of all neurons alike. The factor 10 says that ignoring is more urgent than keeping.
v, of sum 1, is by how much a neuron's distances vary from image to image, by the jackknife over
folds, nine parts of ten, and one part the same for all: a weight on a neuron that varies does
something else on other images. The problem is convex. It is solved in closed form if weights may be
negative, and by its dual otherwise, with SciPy's trust region method. The ridge is the one that
does best if fitted on half of the folds of every dataset and scored on the other half. These scores
are also the ones that are reported, and that a lens carries.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue, Version, check_version_name, software
from pipeline.comparing import (
    FALSE_DISCOVERY_RATE,
    LEAST_FOLDS,
    FoldCurves,
    adjusted,
    neuron_estimates,
    paired_estimates,
    resolve_versions,
)
from pipeline.dna import DNA, DnaFile, Floats, Lens
from pipeline.errors import UsageError, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining.explain_options import FitKeywords, FitOptions
from pipeline.notebook import Cells, bar_chart, data_frame, html_table, polars_frame
from pipeline.spec import Spec
from pipeline.wording import count_of, option

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

RIDGES = tuple(float(value) for value in np.logspace(1, -5, 19))
"""The ridges that are tried. The strongest comes first, so it wins a tie."""

IGNORED_WEIGHT = 10.0
"""The weight of an ignored attribute in the fit; a kept one has weight 1."""

EVEN_SHARE = 0.1
"""The part of the ridge that is the same for all neurons."""

FOCUS_NEURONS = 20
"""Neurons of a focus, as many as in the paper's example "wearing hat"."""

NEEDED_FOLDS = 2 * LEAST_FOLDS
"""The fewest folds of a dataset. A lens is fitted on half of them and scored on the other half."""

Role = Literal["focus", "ignored", "kept"]
"""What a lens should do with an attribute."""


@dataclass(frozen=True)
class Attribute:
    """Two datasets that differ in an attribute.

    Attributes:
        with_it: Name of the dataset, or of the version, with the attribute.
        without: Name of the one without it.
        paired: Whether they are the same images but for the attribute.
    """

    with_it: str
    without: str
    paired: bool = False

    @classmethod
    def parse(cls, text: str) -> Attribute:
        """Reads an attribute.

        Args:
            text: WITH:WITHOUT, or WITH=WITHOUT for the same images.

        Returns:
            The attribute.

        Raises:
            UsageError: If the text is none of these, or names one dataset twice.
        """
        signs = [found.start() for found in re.finditer("[:=]", text)]
        if not signs or signs[0] == 0 or signs[-1] == len(text) - 1:
            raise UsageError(
                f"attribute is {text!r}; name the dataset that shows it, a colon, and the dataset "
                "that does not, such as foggy:clear. Write foggy=clear where they are the same "
                "images"
            )
        # A name may have colons after its @. One sign alone has names on both of its sides.
        splits = [at for at in signs if _is_name(text[:at])] or signs[:1]
        at = next((at for at in splits if _is_name(text[at + 1 :])), splits[-1])
        with_it, without = text[:at], text[at + 1 :]
        if with_it == without:
            raise UsageError(f"attribute is {text!r}; name two different datasets")
        return cls(check_version_name(with_it), check_version_name(without), text[at] == "=")

    def __str__(self) -> str:
        return f"{self.with_it}{'=' if self.paired else ':'}{self.without}"


def _is_name(text: str) -> bool:
    try:
        check_version_name(text)
    except UsageError:
        return False
    return True


@dataclass(frozen=True)
class Score:
    """How a lens does on an attribute: fitted on half of the folds, scored on the others.

    Numbers are means over all such halves.

    Attributes:
        attribute: The attribute as text.
        role: What the lens should do with it.
        plain: Distance over all neurons alike, in bins.
        through: Distance through the lens, as a share of `plain`.
        seen: Whether the attribute is told from noise at all.
    """

    attribute: str
    role: Role
    plain: float
    through: float
    seen: bool


@dataclass(frozen=True, eq=False)
class FittedLens:
    """A lens, and how it does on images that it was not fitted on.

    Attributes:
        lens: The lens.
        scores: One score for each attribute.
        ridge: The ridge that did best; 0 for a focus.
    """

    lens: Lens
    scores: tuple[Score, ...]
    ridge: float = 0.0

    def __repr__(self) -> str:
        neurons = np.count_nonzero(self.lens.weights)
        scores = ", ".join(
            f"{score.role} {score.attribute}: {score.plain:.4g} bins without it, "
            f"{score.plain * score.through:.4g} through it"
            for score in self.scores
        )
        of = count_of(int(neurons), "neuron")
        return f"<FittedLens {self.lens.name} of {of}, {scores}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                s.attribute,
                s.role,
                *(f"{bins:.4g}" for bins in (s.plain, s.plain * s.through)),
                "yes" if s.seen else "no",
            )
            for s in self.scores
        ]
        columns = ("attribute", "role", "bins without the lens", "bins through it", "seen")
        return html_table(f"lens {self.lens.name}, on images held out", columns, rows)

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each attribute, with the fields of `Score` as columns."""
        return data_frame(*self._cells)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return polars_frame(*self._cells)

    @property
    def _cells(self) -> Cells:
        return [column.name for column in fields(Score)], map(astuple, self.scores)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws what the lens leaves of each attribute's distance, beside the line of no change.

        Args:
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        labels = [f"{score.attribute} ({score.role})" for score in self.scores]
        unit = f"share of the distance left through {self.lens.name}"
        ax = bar_chart(labels, [score.through for score in self.scores], unit, ax)
        ax.axvline(1, color="grey", linewidth=1)
        return ax

    @property
    def suppression(self) -> float:
        """Mean share that is gone of the ignored attributes that are seen; 1 if nothing is left."""
        return _mean([1 - abs(s.through) for s in self.scores if s.role == "ignored" and s.seen])

    @property
    def change(self) -> float:
        """Mean change of the kept attributes that are seen; 0 if they are as before."""
        return _mean([abs(s.through - 1) for s in self.scores if s.role == "kept" and s.seen])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _fit_focus(
    name: str, seen: AttributeDistances, top: int, layers: Sequence[str] | None
) -> FittedLens:
    """Chooses the neurons that are most sensitive to an attribute, all of one weight.

    Only neurons that differ at a false discovery rate of 5% are taken.

    Returns:
        The lens with its score.

    Raises:
        UsageError: If no neuron differs.
    """
    for layer in layers or ():
        seen.spec.tap(layer)
    (attribute,) = seen.attributes
    among = [seen.spec.layers.index(layer) for layer in layers or seen.spec.layers]
    allowed = np.isin(seen.layers, among)
    q = np.where(allowed, adjusted(np.where(allowed, seen.p[0], np.nan)), np.nan)
    differ = q < FALSE_DISCOVERY_RATE
    if not differ.any():
        raise UsageError(
            f"{attribute}: no neuron differs at a false discovery rate of "
            f"{FALSE_DISCOVERY_RATE:.0%}; give more images"
        )
    places = _first(np.where(differ, seen.whole.distances[0], -1.0), top)
    if not len(places):
        number = int(np.count_nonzero(differ))
        different = count_of(number, "neuron that differs", "neurons that differ")
        raise UsageError(
            f"{attribute}: corrected for the sizes of the samples, nothing is left of the distance "
            f"of {different}; give more images"
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
    scores = (replace(score, seen=True),)  # some neurons of these layers differ
    how = {"kind": "focus", "top": top, "layers": list(layers or ())}
    return FittedLens(Lens(name, seen.spec.shape, weights, seen.provenance(how, scores)), scores)


def _first(values: Floats, count: int) -> NDArray[np.intp]:
    """Returns the positions of the largest values that are above zero."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[values[order] > 0]


def _swapped(halves: Sequence[Any]) -> list[Any]:
    """Returns the other half of the folds for each half."""
    return [halves[at ^ 1] for at in range(len(halves))]


def fit_lens(
    catalogue: Catalogue,
    name: str,
    *,
    progress: Listener | None = None,
    **options: Unpack[FitKeywords],
) -> FittedLens:
    """Fits a lens that focuses on one attribute, or that ignores some and keeps others.

    An attribute is a pair of datasets: WITH:WITHOUT, or WITH=WITHOUT for the same images with a
    change and without. The lens is not kept; `pipeline.catalogue.keep_lens` does that. Raises as
    `compare` does, too.

    Args:
        catalogue: Where the datasets are.
        name: Name of the lens.
        progress: Is told of each layer.
        **options: The options of `FitOptions`.

    Returns:
        The lens with its scores.

    Raises:
        UsageError: Unless there is either a focus or attributes to ignore, with the options that
            belong to it.
    """
    how = FitOptions(**options)
    focus = how.focus
    if (focus is None) == (not how.ignore):
        raise UsageError("give either focus, or ignore and keep")
    if focus is not None:
        if how.keep or how.non_negative or how.by_layer:
            raise UsageError(
                "keep, non_negative and by_layer are for a lens that ignores; give ignore, too"
            )
        seen = AttributeDistances.of(catalogue, [focus], how.spec, how.at, progress)
        return _fit_focus(name, seen, how.top or FOCUS_NEURONS, how.layers)
    if how.layers or how.top is not None:
        raise UsageError(
            "layers and top are for a lens that focuses; give focus, or leave them out"
        )
    if not how.keep:
        raise UsageError("to ignore an attribute, name others to keep")
    attributes = [*how.ignore, *how.keep]
    seen = AttributeDistances.of(catalogue, attributes, how.spec, how.at, progress)
    roles: list[Role] = ["ignored" if text in how.ignore else "kept" for text in seen.attributes]
    return seen.fit(name, roles, non_negative=how.non_negative, by_layer=how.by_layer)


@dataclass(frozen=True, eq=False)
class NeuronDistances:
    """What neurons see of A attributes.

    Attributes:
        distances: (A, N) distances, in bins.
        variances: (A, N) variances of these.
    """

    distances: Floats
    variances: Floats


@dataclass(frozen=True, eq=False)
class _FitProblem:
    """The least-squares problem of a lens that ignores and keeps attributes.

    Attributes:
        view: What neurons see of the attributes.
        roles: What the lens should do with each attribute.
    """

    view: NeuronDistances
    roles: Sequence[Role]

    @cached_property
    def _total(self) -> Floats:
        total = self.view.distances.sum(axis=1, keepdims=True)
        return np.where(total > 0, total, np.inf)

    @cached_property
    def rows(self) -> Floats:
        """(A, N) distances, each row divided by its sum."""
        return self.view.distances / self._total

    @cached_property
    def _shares(self) -> Floats:
        """(A,) how much each attribute counts; those of a role are averaged."""
        roles = np.array(self.roles)
        counts = {"ignored": IGNORED_WEIGHT, "kept": 1.0}
        return np.array([counts[role] / np.count_nonzero(roles == role) for role in roles])

    @cached_property
    def ridge_shares(self) -> Floats:
        """(N,) of sum 1: how strongly the ridge holds each neuron's weight."""
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
        """Solves the problem.

        Args:
            ridge: Strength of the ridge.
            groups: (N,) numbers; neurons of one number have one weight.
            non_negative: Whether weights may not be negative.

        Returns:
            (N,) weights of mean 1.
        """
        _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        summed = np.array([np.bincount(place, row) for row in self.rows], np.float64)
        scale = np.sqrt(self._shares)[:, None]
        rows, wanted = summed * scale, self._wanted * scale[:, 0]
        share = sizes / sizes.sum()  # of each group in the mean
        stiff = np.asarray(np.bincount(place, self.ridge_shares), np.float64)
        if non_negative:
            return _non_negative(rows, wanted, ridge * stiff, share)[place]
        # In terms of d = x - 1, of mean 0, with the ridge on sqrt(stiff) d, this is a least-squares
        # problem of least norm.
        root = np.sqrt(stiff)
        fixed = share / root / np.linalg.norm(share / root)
        free = rows / root
        free = free - (free @ fixed)[:, None] * fixed
        gram = free @ free.T + ridge * np.eye(len(free))
        d = free.T @ np.linalg.solve(gram, wanted - rows.sum(axis=1))
        x: Floats = 1 + d / root
        return x[place]

    def loss(self, x: Floats, told: NDArray[np.bool_]) -> float:
        """Computes what is left of the ignored attributes and lost of the kept ones.

        Args:
            x: (N,) weights of mean 1.
            told: (A,) which attributes count.

        Returns:
            The loss without the ridge.
        """
        off = (self.rows @ x - self._wanted) ** 2
        shares = np.where(told, self._shares, 0.0)
        return float(off @ shares)


def _non_negative(rows: Floats, wanted: Floats, ridge: Floats, share: Floats) -> Floats:
    """Finds the x >= 0 of mean 1 that minimises |rows x - wanted|^2 + sum ridge (x - 1)^2.

    It is found by its dual. With the multipliers (v, e) of `rows x - wanted` and of the mean, x is
    max(0, 1 - (rows' v + e share) / (2 ridge)). So there is one unknown for each attribute, and one
    more.

    Returns:
        (N,) weights.

    Raises:
        VdnaError: If the search does not end.
    """
    from scipy.optimize import minimize  # slow to import

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
        raise VdnaError(
            f"no weights were found for this lens ({found.message}; their mean is {total:g}, "
            f"not 1); fit it without {option('non_negative')}"
        )
    return np.asarray(x / total)


@dataclass(frozen=True, eq=False)
class AttributeDistances:
    """What neurons see of attributes. Lenses are fitted to it without another look at the datasets.

    Attributes:
        attributes: The A attributes as text.
        spec: Spec of the datasets.
        members: Digest of each dataset's DNA.
        images: Images of each dataset.
        whole: Distances of all folds.
        halves: Distances of half of the folds, each followed by those of its other half.
        p: (A, N) p of each neuron.
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
        """(N,) number of each neuron's layer."""
        return np.repeat(np.arange(len(self.spec.taps)), [tap.neurons for tap in self.spec.taps])

    @cached_property
    def detected(self) -> NDArray[np.bool_]:
        """(A,) whether any neuron differs at a false discovery rate of 5%."""
        return np.array([bool((adjusted(row) < FALSE_DISCOVERY_RATE).any()) for row in self.p])

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        attributes: Sequence[str],
        spec: str | None,
        at: int | str | None,
        progress: Listener | None = None,
    ) -> AttributeDistances:
        """Measures attributes. Raises as `compare` does, too.

        Args:
            catalogue: Where the datasets are.
            attributes: The attributes, as WITH:WITHOUT or WITH=WITHOUT.
            spec: Digest of the spec; None to choose it as `compare` does.
            at: The commit or time to look at; None for the newest.
            progress: Is told of each layer.

        Returns:
            What neurons see of them.

        Raises:
            UsageError: If an attribute is named twice, a dataset has too few folds, or images that
                should be the same are not.
        """
        progress = progress or ignore
        parsed = [Attribute.parse(text) for text in attributes]
        if len({frozenset((of.with_it, of.without)) for of in parsed}) != len(parsed):
            raise UsageError(f"an attribute is named twice among {', '.join(attributes)}")
        names = dict.fromkeys(name for of in parsed for name in (of.with_it, of.without))
        digest, versions = resolve_versions(catalogue, list(names), at=at, spec=spec)
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
        """Fits a lens that ignores and keeps these attributes.

        Args:
            name: Name of the lens.
            roles: What the lens should do with each attribute.
            non_negative: Whether weights may not be negative.
            by_layer: Whether all neurons of a layer have the same weight.

        Returns:
            The lens with its scores.
        """
        groups = self.layers if by_layer else np.arange(self.spec.neurons)
        whole, *halves = (_FitProblem(of, roles) for of in (self.whole, *self.halves))

        def fitted(ridge: float) -> list[tuple[Floats, _FitProblem]]:
            """Returns weights of each half, with the other half."""
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
            Lens(name, self.spec.shape, weights, self.provenance(how, scores)), scores, ridge
        )

    def scores(self, roles: Sequence[Role], through: Floats) -> tuple[Score, ...]:
        """Scores a lens.

        Args:
            roles: What the lens should do with each attribute.
            through: (A,) distances through the lens, as shares of the plain ones.

        Returns:
            A score for each attribute.
        """
        plain = np.mean([half.distances.mean(axis=1) for half in self.halves], axis=0)
        columns = (self.attributes, roles, plain.tolist(), through.tolist(), self.detected.tolist())
        return tuple(Score(*row) for row in zip(*columns, strict=True))

    def provenance(self, how: Mapping[str, Any], scores: Sequence[Score]) -> dict[str, Any]:
        """States what a lens was fitted on, how, and how it does.

        Args:
            how: The options of the fit.
            scores: Its scores.

        Returns:
            What the lens carries.
        """
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
    """Checks that each fold of a dataset has images of the same names as that fold of the other.

    Raises:
        UsageError: If not; the message has the first name that is missing.
    """
    held: dict[str, pa.Table] = {}
    for attribute in (of for of in attributes if of.paired):
        both = attribute.with_it, attribute.without
        held = {
            name: held[name] if name in held else _pictures(catalogue, name, versions[name])
            for name in both  # most attributes share the dataset without
        }
        with_it, without = (held[name] for name in both)
        if with_it.equals(without):
            continue
        rows = [Counter(zip(*of.to_pydict().values(), strict=True)) for of in (with_it, without)]
        picture, fold = min((rows[0] - rows[1]) + (rows[1] - rows[0]))
        here, there = both if rows[0][picture, fold] > rows[1][picture, fold] else both[::-1]
        raise UsageError(
            f"{attribute}: the two datasets do not hold the same images: {picture} is in "
            f"fold {fold} "
            f"of {here}, but not of {there}. Images are paired by the name of their file, without "
            "its suffix, and by their fold. Build both again under other names, of the same paths "
            f"below their sources or with {option('pair_by', 'stem')}, without a limit; or write a "
            "colon, for datasets of different images"
        )


def _pictures(catalogue: Catalogue, name: str, version: Version) -> pa.Table:
    """Returns name and fold of each image that was counted, in order."""
    columns = ["uri", "member", "fold"]
    rows = pa.concat_tables(
        table.select(columns[:2]).append_column("fold", pa.repeat(head.fold, table.num_rows))
        for head, table in catalogue.manifest(name, version).tables()
    )
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
    """Opens the folds of a dataset.

    Returns:
        The open file.

    Raises:
        UsageError: If there are too few folds.
    """
    if "folds" not in version.sha256:
        raise UsageError(f"{name} was imported without folds, which fitting a lens needs")
    file = catalogue.open_file("folds", name, version, on_disk=True)
    if len(file.folds) < NEEDED_FOLDS:
        raise UsageError(
            f"{name} has {count_of(len(file.folds), 'fold')}; fitting a lens on half of its folds "
            f"and scoring it on the others takes {NEEDED_FOLDS}, and so at least as many images"
        )
    return file


def _layer(
    files: Mapping[str, DnaFile], attributes: Sequence[Attribute], layer: str
) -> Iterator[list[Floats]]:
    """Measures the attributes in one layer.

    Yields:
        For each attribute, by neuron: p, then distance and variance of all folds and of each half.
    """
    held: dict[str, list[FoldCurves]] = {}

    def curves(name: str) -> list[FoldCurves]:
        if name not in held:
            while len(held) > 1:  # most attributes share the dataset without
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
    """Returns two ways to halve folds: every other one, and every other two; each half in turn."""
    pairs = [[fold for k, fold in enumerate(folds) if k // 2 % 2 == side] for side in (0, 1)]
    return [folds[::2], folds[1::2], *pairs]


def _curves(folds: Sequence[DNA]) -> FoldCurves:
    return FoldCurves.of([reduce(DNA.__add__, folds)], [dict(enumerate(folds))])
