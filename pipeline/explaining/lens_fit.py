"""Fits lenses to attributes: the few neurons that see one, or weights that do not see it.

    >>> fitted = fit_lens(catalogue, "no-fog", ignore=["foggy:clear"], keep=["dark:clear"])
    ... # doctest: +SKIP
    >>> fitted.lens, fitted.suppression, fitted.change                  # doctest: +SKIP
    >>> fit_lens(catalogue, "dim-light", ignore=["brightness"])         # doctest: +SKIP

`attribute_distances` measures what neurons see of attributes. `lens_problem` says what the weights
of a lens that ignores minimise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline.altered_pictures import PICTURE_CHANGES
from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import FALSE_DISCOVERY_RATE, adjusted, spec_of
from pipeline.dna import Floats, Lens
from pipeline.errors import UsageError
from pipeline.events import Listener
from pipeline.events import ignore as silent
from pipeline.explaining.altered_sample import AlteredSample, count_altered
from pipeline.explaining.attribute import Attribute, attributes_of
from pipeline.explaining.attribute_distances import (
    NEEDED_FOLDS,
    AttributeDistances,
    other_halves,
)
from pipeline.explaining.explain_options import FitKeywords, FitOptions
from pipeline.explaining.fitted_lens import FittedLens, Role, mean_of
from pipeline.explaining.sample_draw import sampled_versions
from pipeline.wording import count_of, option, some_of

_EXAMPLE = ["brightness"]

KEPT_DATASETS = 5
"""A lens that is not told what to keep keeps the distances between so many datasets at most."""

FOCUS_NEURONS = 20
"""Neurons of a focus, as many as in the paper's example "wearing hat"."""


def fit_lens(
    catalogue: Catalogue,
    name: str,
    *,
    progress: Listener | None = None,
    **options: Unpack[FitKeywords],
) -> FittedLens:
    """Fits a lens that focuses on one attribute, or that ignores some and keeps others.

    An attribute is a pair of datasets: WITH:WITHOUT, or WITH=WITHOUT for the same images with a
    change and without. Or it is the word of a change, which is made here to images of the datasets
    (see `altered_sample`). The lens is not kept; `pipeline.catalogue.keep_lens` does that. Raises
    as `compare` and `count_altered` do, too.

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
        raise UsageError(
            f"give either {option('focus')}, or {option('ignore')} and {option('keep')}; such as "
            f"{option('ignore', _EXAMPLE)}"
        )
    if focus is not None:
        if how.keep or how.non_negative or how.by_layer:
            raise UsageError(
                "keep, non_negative and by_layer are for a lens that ignores; give ignore, too, "
                f"such as {option('ignore', _EXAMPLE)}"
            )
        if focus in PICTURE_CHANGES:
            raise UsageError(
                f"focus is {focus!r}, a change that is made here; a lens can ignore or keep it, as "
                f"by {option('ignore', [focus])}, and focus on what two datasets differ in"
            )
        _require_no_sample(how)
        seen = AttributeDistances.of(catalogue, [focus], how.spec, how.at, progress)
        return _fit_focus(name, seen, how.top or FOCUS_NEURONS, how.layers)
    if how.layers or how.top is not None:
        raise UsageError(
            "layers and top are for a lens that focuses; give focus, or leave them out"
        )
    sample, keep = None, how.keep
    asked = attributes_of([*how.ignore, *how.keep])
    if any(each.is_change for each in asked):
        how = replace(how, at=catalogue.at(how.at).number)  # all is read from one commit
        sample, keep = _sampled(catalogue, how, asked, progress or silent)
    else:
        _require_no_sample(how)
    if not keep:
        raise UsageError(
            "to ignore an attribute, name others to keep, such as "
            f"{option('keep', ['night:day'])} or {option('keep', ['contrast'])}"
        )
    seen = AttributeDistances.of(
        catalogue, [*how.ignore, *keep], how.spec, how.at, progress, sample
    )
    ignored = set(map(str, attributes_of(how.ignore)))
    roles: list[Role] = ["ignored" if text in ignored else "kept" for text in seen.attributes]
    return seen.fit(name, roles, non_negative=how.non_negative, by_layer=how.by_layer)


def _require_no_sample(how: FitOptions) -> None:
    """Refuses what only a change that is made here has a use for."""
    given = [name for name in ("sample", "sample_of", "weights") if getattr(how, name)]
    given += ["group_by"] * (how.group_by != "build")
    if given:
        raise UsageError(
            f"{option(given[0])} is for a change that is made here; give one, such as "
            f"{option('ignore', _EXAMPLE)}, or leave it out"
        )


def _sampled(
    catalogue: Catalogue, how: FitOptions, asked: Sequence[Attribute], progress: Listener
) -> tuple[AlteredSample, Sequence[str]]:
    """Makes the changes that have words.

    Returns:
        The sample, and what is to be kept: the distances between datasets if nothing was named.

    Raises:
        UsageError: If whole datasets are named beside a sample that is dealt by stems.
    """
    words = [text for text in (*how.ignore, *how.keep) if text in PICTURE_CHANGES]
    names = [name for of in asked if not of.is_change for name in (of.with_it, of.without)]
    named = list(dict.fromkeys([*names, *how.sample_of]))
    commit = catalogue.at(how.at)
    if len(named) > 1:
        digest = spec_of(catalogue, named, at=how.at, spec=how.spec).digest
    elif named:
        digest = catalogue.find(named[0], how.at, how.spec).spec
    else:
        digest = catalogue.spec_digest(commit, how.spec)
    versions = sampled_versions(catalogue, digest, commit.number, how.sample_of)
    if how.group_by == "stem" and (names or not how.keep):
        raise UsageError(
            f"{option('group_by', 'stem')} deals the sample's images anew, and not those of "
            f"{some_of(names) if names else 'whole datasets'}: give words of changes alone, such "
            f"as {option('keep', ['contrast'])}"
        )
    keep = how.keep or _distances_between(catalogue, versions, asked)
    sample = count_altered(
        catalogue,
        versions,
        words,
        progress,
        count=how.sample,
        group_by=how.group_by,
        weights=how.weights,
        least_folds=NEEDED_FOLDS,
    )
    return sample, keep


def _has_folds(catalogue: Catalogue, name: str, version: Version) -> bool:
    """Tells whether a dataset has as many folds as a fit takes."""
    if "folds" not in version.sha256 or version.images < NEEDED_FOLDS:
        return False
    file = catalogue.open_file("folds", name, version, layers=())
    images = [int(fold["images"]) for fold in file.metadata["folds"].values()]
    return sum(count > 0 for count in images) >= NEEDED_FOLDS


def _distances_between(
    catalogue: Catalogue, versions: Mapping[str, Version], asked: Sequence[Attribute]
) -> list[str]:
    """Chooses what a lens keeps if it is not told.

    Args:
        catalogue: Where the datasets are.
        versions: The versions that images are drawn from.
        asked: What the lens should ignore.

    Returns:
        The pairs of `KEPT_DATASETS` datasets at most, as attributes.

    Raises:
        UsageError: If there are no two datasets of enough images, or all are to be ignored.
    """
    able = [name for name, version in versions.items() if _has_folds(catalogue, name, version)]
    if len(able) < 2:
        raise UsageError(
            "a lens that ignores a change keeps the distances between the datasets that images are "
            f"drawn from, if these have {NEEDED_FOLDS} images or more, in as many folds; of "
            f"{some_of(list(versions))} "
            f"it is {count_of(len(able), 'dataset')}. Name what to keep, such as "
            f"{option('keep', ['contrast'])}"
        )
    gone = [{of.with_it, of.without} for of in asked]
    pairs = combinations(able[:KEPT_DATASETS], 2)
    kept = [f"{a}:{b}" for a, b in pairs if {a, b} not in gone]
    if not kept:
        raise UsageError(
            f"every distance between {some_of(able)} is to be ignored, so that none is left to "
            f"keep; name what to keep, such as {option('keep', ['contrast'])}"
        )
    return kept


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
    for fitted_on, told_of in zip(seen.halves, other_halves(seen.halves), strict=True):
        chosen = _first(np.where(allowed, fitted_on.distances[0], -1.0), len(places))
        told = told_of.distances[0]
        if len(chosen) and told.mean() > 0:
            through.append(told[chosen].mean() / told.mean())
    (score,) = seen.scores(["focus"], np.array([mean_of(through)]))
    scores = (replace(score, seen=True),)  # some neurons of these layers differ
    how = {"kind": "focus", "top": top, "layers": list(layers or ())}
    return FittedLens(Lens(name, seen.spec.shape, weights, seen.provenance(how, scores)), scores)


def _first(values: Floats, count: int) -> NDArray[np.intp]:
    """Returns the positions of the largest values that are above zero."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[values[order] > 0]
