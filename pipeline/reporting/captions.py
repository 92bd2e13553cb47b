"""Says in words what neurons and images tell of two datasets.

>>> caption(group, "sunny", "rainy")                         # doctest: +SKIP
"62% of the values of sunny lie above 1.8, and 20% of those of rainy."
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.dna import DEFAULT_EXEMPLARS
from pipeline.explaining import Explanation, NeuronGroup, Reaction, TellingImage
from pipeline.wording import option

SHOWN_NEURONS, SHOWN_EXEMPLARS = 5, 2
"""How many neurons have their images named, and how many images of each dataset."""


def shares_told(one: float, other: float) -> tuple[str, str]:
    """Formats two shares with as few decimals as tell them apart, up to two."""
    for decimals in range(3):
        told = f"{one:.{decimals}%}", f"{other:.{decimals}%}"
        if told[0] != told[1]:
            break
    return told


def caption(group: NeuronGroup, a: str, b: str) -> str:
    """Says where the histograms of a neuron part.

    Args:
        group: The neuron.
        a: Name of one dataset.
        b: Name of the other.

    Returns:
        A sentence. The dataset that has more of the higher values comes first.
    """
    above = group.parting.above
    more, less = (a, b) if above[0] >= above[1] else (b, a)
    most, least = shares_told(max(above), min(above))
    return (
        f"{most} of the values of {more} lie above {group.parting.value:.3g}, and {least} of those "
        f"of {less}."
    )


def lacking_exemplars(found: Explanation) -> dict[str, str]:
    """Says for each of the two datasets that names no images why it names none.

    Args:
        found: The explanation.

    Returns:
        A sentence for each dataset that names no images of the groups of neurons.
    """
    lacking = {}
    for side, (name, version) in enumerate(found.versions.items()):
        if found.groups and all(group.exemplars[side] is None for group in found.groups):
            why = f"which keeps none: build it with {option('exemplars', DEFAULT_EXEMPLARS)}"
            if version.imported:
                why = "which was imported"
            elif "exemplars" in version.sha256:
                why = f"which keeps those of other layers (its build had {option('exemplar_taps')})"
            lacking[name] = f"No images are named for {name}, {why}."
    return lacking


def first_of_stages(found: Explanation) -> list[NeuronGroup]:
    """Takes the first group of each stage; or the first groups, if the stages are not known."""
    firsts = {group.stage: group for group in reversed(found.groups) if group.stage}
    deep_first = [group for group in found.groups if firsts.get(group.stage) is group]
    return deep_first or list(found.groups[:SHOWN_NEURONS])


def group_lines(found: Explanation) -> list[str]:
    """Says of the first neuron of each stage where its histograms part, and in which images.

    These are images that carry the difference, if some were looked at again, and otherwise those
    that the neuron reacts to most.

    Args:
        found: The explanation.

    Returns:
        The lines.
    """
    a, b = found.versions
    lines = look_notes(found)
    for group in first_of_stages(found):
        named = f"{group.name} ({group.stage})" if group.stage else group.name
        named += f" and {len(group.others)} like it" if group.others else ""
        lines.append(f"{named}: {caption(group, a, b)}")
        lines += [f"  {group.description or group.failure}"] * bool(
            group.description or group.failure
        )
        sides = group.exemplars if group.images is None else group.images
        for name, images in zip((a, b), sides, strict=True):
            lines += [
                f"  of {name}: {image} ({number_of(image)})"
                for image in (images or ())[:SHOWN_EXEMPLARS]
            ]
    return lines


def number_of(image: Reaction | TellingImage) -> str:
    """Says how much of a neuron an image shows: a mean activation, or a share of activations."""
    if isinstance(image, Reaction):
        return f"among its strongest, mean activation {image.reaction:.3g}"
    return f"{image.above:.0%} of its values above"


def look_notes(found: Explanation) -> list[str]:
    """Says which images are named, and which could not be."""
    look = found.look
    notes = [] if look is None else list(look.notes)
    if look is None or not any(look.images):
        notes += lacking_exemplars(found).values()
    return notes


def group_rows(found: Explanation) -> list[dict[str, Any]]:
    """Returns the groups as JSON has them.

    Args:
        found: The explanation.

    Returns:
        A row for each group: its first neuron, the `others` that tell the same, its `histograms`,
        the `value` where they part with the shares `above` it, a `caption`, its `images` if some
        were looked at again, and a `description` or why there is none if a command was asked.
    """
    a, b = found.versions
    rows = []
    for group in found.groups:
        row: dict[str, Any] = {
            "stage": group.stage,
            "layer": group.layer,
            "neuron": group.neuron,
            "others": list(group.others),
            "value": group.parting.value,
            "above": dict(zip("ab", group.parting.above, strict=True)),
            "caption": caption(group, a, b),
            "histograms": asdict(group.histogram),
        }
        if group.images is not None:
            row["images"] = {
                side: [{"uri": of.uri, "member": of.member, "above": of.above} for of in images]
                for side, images in zip("ab", group.images, strict=True)
            }
        if group.description:
            row["description"] = group.description
        if group.failure:
            row["no_description"] = group.failure
        rows.append(row)
    return rows
