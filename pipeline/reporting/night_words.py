"""Says what a refresh did, from its outcome, as `Refreshed.outcome` has it.

>>> night_sentence(outcome)                                              # doctest: +SKIP
'1,000 datasets: 997 unchanged, 2 refreshed, 1 failed; images +21 -3 ~2; 1 drift alarm: b; …'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.building import Movement
from pipeline.reporting.drift_words import move_told
from pipeline.wording import count_of, in_units, some_of


def state_of(outcome: Mapping[str, Any]) -> str:
    """Says in a few words whether a refresh went well, or what did not.

    Args:
        outcome: What it found.

    Returns:
        The words.
    """
    told = _wrong(outcome)
    if untold_error(outcome):
        told.append("failed")
    if outcome["undelivered"]:
        told.append("not delivered")
    return ", ".join(told) or "all is well"


def untold_error(outcome: Mapping[str, Any]) -> str:
    """Returns what went wrong, but for datasets that were not built and for bounds; or nothing."""
    if outcome["other_error"]:
        return str(outcome["other_error"])
    return str(outcome["error"]) if outcome["error"] and not _wrong(outcome) else ""


def _wrong(outcome: Mapping[str, Any]) -> list[str]:
    counts = Counter(row["outcome"] for row in outcome["gate"])
    wrong = [(counts["broken"], "broken"), (counts["not judged"], "not judged")]
    wrong.append((len(outcome["failed"]), "not built"))
    return [f"{count} {what}" for count, what in wrong if count]


def night_sentence(outcome: Mapping[str, Any]) -> str:
    """Says how many datasets and images a refresh has changed, and what it cost.

    Args:
        outcome: What it found.

    Returns:
        One line.
    """
    found = outcome["summary"]
    datasets = found["datasets"]
    states = {state: state for state in ("unchanged", "refreshed", "failed")}
    states["dropped"] = "not in the file" if outcome["pruned"] is None else "taken out"
    told = [f"{datasets[state]:,} {words}" for state, words in states.items() if datasets[state]]
    parts = [f"{count_of(datasets['asked'], 'dataset')}: {', '.join(told)}"]
    if datasets["refreshed"]:
        unknown = found["images"]["datasets_of_unknown_changes"]
        aside = f" (not known for {count_of(unknown, 'dataset')})" if unknown else ""
        parts.append(f"images {changes_told(found['images'])}{aside}")
    if datasets["refreshed"] or found["alarms"] or found["untested"]:
        untested = count_of(found["untested"], "version")
        aside = f" ({untested} not tested)" if found["untested"] else ""
        named = f": {some_of(found['alarms'])}" if found["alarms"] else ""
        parts.append(f"{count_of(len(found['alarms']), 'drift alarm')}{named}{aside}")
    return "; ".join([*parts, cost_told(found["cost"])])


def changes_told(changes: Mapping[str, int] | None) -> str:
    """Says how many images were added, removed and changed; nothing if that is not known."""
    if changes is None:
        return ""
    return f"+{changes['added']:,} -{changes['removed']:,} ~{changes['changed']:,}"


def moved_told(row: Mapping[str, Any]) -> str:
    """Says how far a dataset has moved since its version before, in bins; nothing if unknown.

    Args:
        row: The row of the dataset.

    Returns:
        The distance with its interval, and whether it is an alarm.
    """
    if row["moved"] is None:
        return ""
    numbers = {name: row["moved"][name] for name in Movement.__dataclass_fields__}
    return f"{move_told(Movement(**numbers))}{', an alarm' if row['alarm'] else ''}"


def cost_told(cost: Mapping[str, float]) -> str:
    """Says what a refresh has read, asked for and taken."""
    read = f"{count_of(int(cost['images_read']), 'image')} read"
    read += f" ({in_units(int(cost['bytes_read']))})" if cost["bytes_read"] else ""
    return (
        f"{read}, {cost['requests']:,} requests, {cost['seconds']:,.1f} s, "
        f"{cost['worker_seconds']:,.1f} s of workers"
    )
