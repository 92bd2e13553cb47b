r"""Says in which order candidates suit a target, and how far that order was found to hold.

>>> print(*suggestion_lines(suggest("dnas", "harbour")), sep="\n")        # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

from pipeline.comparing import ALL, FALSE_DISCOVERY_RATE
from pipeline.explaining import Candidate, Suggestion
from pipeline.reporting.conclusions import (
    UNDEFINED_WHY,
    WHY_PLAIN,
    format_number,
    with_interval,
)
from pipeline.wording import count_of, option, some_of

MAY_BE_NEAREST = "~"

UNLIKE_SIZES = 2
"""Samples whose sizes differ by this factor or more are noted."""

_MEASURED_NETWORK = "efficientnet_lite0"

_MEASURED = (
    "How far this order holds was measured once (docs/experiments.md), with a linear classifier on "
    f"the last layer of {_MEASURED_NETWORK}, and the plain distance. For 18 targets, the order of "
    "17 candidates had a rank correlation of 0.66 with accuracy (95% interval 0.56 to 0.74). The "
    "nearest candidate lost 2.1 points of accuracy to the best one, and one at random 8.2. This "
    "correlation was ahead of the Fréchet distance's by 0.04 (0.01 to 0.08), and was not told "
    "apart from that of the cosine of mean features."
)

_LIMITS = (
    "These were 266 cut-out photographs under changes of background, light, colour and sharpness, "
    "in samples of one size. Datasets of different origin, other labels, and training of the whole "
    "network were not tried. Some candidates were bad for every target, and any distance that "
    "finds them far away gets them right. For one of the targets no distance told anything."
)

_LABELS = (
    "No label was looked at: whether a candidate has the classes that you need, and whether they "
    "are right, is for you to see."
)


def suggestion_lines(found: Suggestion) -> list[str]:
    """Lists the candidates, the nearest first, and then what to know about this order.

    Args:
        found: What was found.

    Returns:
        The lines.
    """
    what = "all neurons" if found.layer == ALL else found.layer
    lines = [f"To train for {found.target}, by the distance of {what} in bins, the nearest first:"]
    told = [_distance(one) for one in found.candidates]
    width = max((len(one.name) for one in found.candidates), default=0)
    for one, distance in zip(found.candidates, told, strict=True):
        mark = MAY_BE_NEAREST if one.unclear else " "
        size = count_of(one.images, "image")
        distance = distance.ljust(max(map(len, told)))
        lines.append(f"{mark} {one.rank:>3}. {one.name:{width}}  {distance}  {size}")
    if any(one.unclear for one in found.candidates):
        lines.append(
            f"{MAY_BE_NEAREST} may be the nearest, too: its interval overlaps that of the first, "
            "or one of them is not known"
        )
    return [*lines, *(f"note: {note}" for note in suggestion_notes(found))]


def _distance(one: Candidate) -> str:
    if not one.is_corrected:
        return f"{format_number(one.emd)} (not corrected)"
    return with_interval(one.emd_corrected, one.low, one.high)


def suggestion_notes(found: Suggestion) -> list[str]:
    """Lists what to know about the order: what was measured of it, and what is odd here.

    Args:
        found: What was found.

    Returns:
        The sentences.
    """
    notes = [_MEASURED, _LIMITS, _LABELS]
    if not found.is_measured:
        notes.append(
            f"These distances are of {found.extractor}, {found.layer}, under spec "
            f"{found.spec[:12]}. The figures above were not measured with this network, layer or "
            "preprocessing."
        )
    plain = [one.name for one in found.candidates if not one.is_corrected]
    if plain:
        notes.append(
            f"Not corrected for the sizes of the samples: {some_of(plain)} ({WHY_PLAIN}). Such "
            "distances are too large, and are not comparable with corrected ones, so they come "
            "last in the order."
        )
    sizes = [one.images for one in found.candidates]
    if sizes and max(*sizes, found.images) >= UNLIKE_SIZES * min(*sizes, found.images):
        notes.append(
            f"The target has {count_of(found.images, 'image')} and the candidates {min(sizes):,} "
            f"to {max(sizes):,}. A correction takes these sizes out of the distances, but not out "
            "of how well one learns: more images teach more."
        )
    if found.same:
        notes.append(
            f"The same dataset as the target, or a version of it: {some_of(found.same)}. You would "
            "train on the images that you test on."
        )
    alike = [one.name for one in found.candidates if one.q >= FALSE_DISCOVERY_RATE]
    if alike:
        notes.append(
            f"Not told apart from the target: {some_of(alike)}. Make sure that no image of the "
            "target, on which you test, is among those that you train on."
        )
    if found.apart:
        notes.append(
            f"Not compared, as built under other specs ({option('spec')}): {some_of(found.apart)}."
        )
    if found.undefined:
        notes.append(f"Without a distance, because {UNDEFINED_WHY}: {some_of(found.undefined)}.")
    return notes


def suggestion_json(found: Suggestion) -> dict[str, Any]:
    """Returns what was found, for JSON."""
    return {
        "target": found.target,
        "images": found.images,
        "extractor": found.extractor,
        "layer": found.layer,
        "measured": found.is_measured,
        "candidates": [
            {name: _known(value) for name, value in asdict(one).items()} for one in found.candidates
        ],
        "undefined": found.undefined,
        "notes": suggestion_notes(found),
    }


def _known(value: Any) -> Any:
    """Returns None in place of NaN, which JSON does not have."""
    return None if isinstance(value, float) and not isfinite(value) else value
