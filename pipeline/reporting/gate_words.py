"""Says what the verdicts of a gate say, from their rows, as `vdna refresh --json` has them.

>>> reason_lines({"unexplained": "the exemplars are gone"})
['  not explained: the exemplars are gone']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.wording import in_bins


def measured_words(row: Mapping[str, Any]) -> str:
    """Says what was measured for a bound: a distance with its interval, if it has one, or a number.

    Args:
        row: The row of a verdict.

    Returns:
        The words; empty if nothing was measured.
    """
    value = row["value"]
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    distance, low, high = (row.get(name) for name in ("emd_corrected", "low", "high"))
    if distance is None or low is None or high is None:
        return in_bins(value)
    return f"{distance:.4g} [{low:.4g}, {high:.4g}] bins"


def outcome_words(row: Mapping[str, Any]) -> str:
    """Says what became of a bound, and if it holds only because the distance is not sure.

    Args:
        row: The row of a verdict.

    Returns:
        The words.
    """
    distance, outcome = row.get("emd_corrected"), str(row["outcome"])
    if outcome == "holds" and distance is not None and distance > row["limit"]:
        outcome += ", as it is not surely more"
    return outcome


def reason_lines(row: Mapping[str, Any]) -> list[str]:
    """Says why a bound is broken: by which neurons, and in which images.

    Args:
        row: The row of a verdict.

    Returns:
        A line for each neuron, and one for its images of each side; nothing if there are none.
    """
    lines = []
    for reason in row.get("reasons", ()):
        words = f"  {reason['layer']}[{reason['neuron']}]: {in_bins(reason['emd'])}"
        if reason["share"] is not None:
            words += f", {reason['share']:.1%} of the distance"
        lines.append(words)
        for name, images in zip(row["sides"], reason["exemplars"].values(), strict=True):
            places = [storage.spelled(image["uri"], image["member"]) for image in images or ()]
            lines += [f"    in {name}: {', '.join(places)}"] if places else []
    if row.get("unexplained"):
        lines.append(f"  not explained: {row['unexplained']}")
    return lines
