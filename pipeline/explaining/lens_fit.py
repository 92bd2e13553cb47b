"""Fits lenses to attributes: the few neurons that see one, or weights that do not see it.

    >>> fitted = fit_lens(catalogue, "no-fog", ignore=["foggy:clear"], keep=["dark:clear"])
    ... # doctest: +SKIP
    >>> fitted.lens, fitted.suppression, fitted.change                  # doctest: +SKIP

`attribute_distances` measures what neurons see of attributes. `lens_problem` says what the weights
of a lens that ignores minimise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue
from pipeline.comparing import FALSE_DISCOVERY_RATE, adjusted
from pipeline.dna import Floats, Lens
from pipeline.errors import UsageError
from pipeline.events import Listener
from pipeline.explaining.attribute_distances import AttributeDistances, other_halves
from pipeline.explaining.explain_options import FitKeywords, FitOptions
from pipeline.explaining.fitted_lens import FittedLens, Role, mean_of
from pipeline.wording import count_of

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
