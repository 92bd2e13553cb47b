"""Says how a dataset has moved over its versions, and what raised an alarm: as lines, and as JSON.

>>> for line in drift_sentences(found):                                  # doctest: +SKIP
...     print(line)
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.building import Movement
from pipeline.comparing import CONFIDENCE, FALSE_ALARM_RATE, LEAST_ALARMED, RATED_VERSIONS
from pipeline.explaining import REFERENCE, STEP, Drift, DriftRow
from pipeline.reporting.conclusions import FROM_ZERO_TEXT, format_number, with_interval
from pipeline.reporting.version_words import aligned_lines, difference_json
from pipeline.wording import count_of, some_of

_BEFORE = "from the one before"


def drift_lines(found: Drift) -> list[str]:
    """Returns the table of the versions or windows, the oldest first, and what its columns are.

    Args:
        found: The path.

    Returns:
        The lines.
    """
    lines = aligned_lines(
        [_heads(found), *(_cells(found, row) for row in found.rows)],
        left=set(range(8)) - {_heads(found).index("images")},
    )
    return [*lines, columns_told(found)]


def _heads(found: Drift) -> tuple[str, ...]:
    """Returns the headings of the table of a path."""
    about = ("images",) if found.window else ("time", "images", "change")
    tags = () if found.window else ("tags",)
    return (found.stop_kind, *about, f"from {found.reference}", _BEFORE, "alarm", *tags)


def _cells(found: Drift, row: DriftRow) -> tuple[str, ...]:
    """Returns what the table of a path says of a version or a window, below each heading."""
    images = f"{row.images:,}"
    changes = "" if row.changes is None else str(row.changes)
    return (
        row.name,
        *((images,) if found.window else (row.time[:19], images, changes)),
        "the reference" if row.name == found.reference else move_told(row.reference),
        move_told(row.step),
        alarm_told(row, found.reference),
        *(() if found.window else (", ".join(row.tags),)),
    )


def columns_told(found: Drift) -> str:
    """Says what the columns of the table are."""
    distances = (
        "istances are in bins, corrected for the sizes of the samples, with "
        f"{CONFIDENCE:.0%} intervals"
    )
    changes = "change: images added, removed, changed and equal since the version before. "
    lines = f"{'' if found.window else changes}D{distances}"
    moves = (move for row in found.alarmed for move in (row.reference, row.step))
    from_zero = any(move is not None and move.low is not None and move.low <= 0 for move in moves)
    return f"{lines}. {FROM_ZERO_TEXT}" if from_zero else lines


def drift_sentences(found: Drift) -> list[str]:
    """Says what raises an alarm, how often there are false ones, and what is left out.

    Args:
        found: The path.

    Returns:
        The sentences, the most important first.
    """
    raised = [f"{row.name} ({alarm_told(row, found.reference)})" for row in found.alarmed]
    path = f"{count_of(len(found.rows), found.stop_kind)} of {found.dataset}"
    if raised:
        verb = "raises" if len(raised) == 1 else "raise"
        sentences = [f"{len(raised)} of {path} {verb} an alarm: {', '.join(raised)}."]
    else:
        sentences = [
            f"No alarm: none of {path} is far enough from the one before, or from "
            f"{found.reference}, to raise one."
        ]
    rate = f"At most {FALSE_ALARM_RATE:.0%} of histories of {RATED_VERSIONS} {found.stop_kind}s"
    sentences.append(
        f"{rate} have a false alarm, if no day differs from others: weekdays or weather are a "
        "difference, too."
        if found.window
        else f"{rate} have a false alarm."
    )
    if not raised and found.explanation is not None:
        sentences.append(
            f"A small q below is no alarm: it is of {' and '.join(found.moved)} alone, and the "
            "alarm rule keeps that rate over the whole path."
        )
    if untested := [row.name for row in found.rows if not row.folds]:
        sentences.append(f"Not tested: {some_of(untested)}, as imported DNAs have no folds.")
    if few := [
        f"{row.name} ({row.folds})" for row in found.rows if row.folds and not row.can_alarm
    ]:
        sentences.append(
            f"Fewer than {LEAST_ALARMED} folds cannot raise every alarm: those of {some_of(few)}."
        )
    return sentences + [f"{of.name} is left out: {of.why}." for of in found.left_out]


def move_told(move: Movement | None) -> str:
    """Formats a distance with its interval; empty if there is none.

    Args:
        move: The distance, or None.

    Returns:
        The text. A distance that is not corrected says so.
    """
    if move is None or move.emd is None:
        return ""
    if move.emd_corrected is None or move.low is None or move.high is None:
        return f"{format_number(move.emd)} (not corrected)"
    return with_interval(move.emd_corrected, move.low, move.high)


def alarm_told(row: DriftRow, reference: str) -> str:
    """Says what a version differs from, if it raises an alarm.

    Args:
        row: The version.
        reference: The name of the reference.

    Returns:
        The words, or an empty text.
    """
    other = {STEP: "the one before", REFERENCE: reference}
    told = " and from ".join(other[kind] for kind in row.alarms)
    return f"differs from {told}" if told else ""


def drift_json(found: Drift, top: int) -> dict[str, Any]:
    """Returns the path for JSON, with so many neurons of what moved.

    Args:
        found: The path.
        top: How many neurons.

    Returns:
        `dataset`, `spec`, `reference`, `window` (how many days each has; empty for versions),
        `false_alarms` (the rate, and for how many versions it
        holds), `versions` (a row for each), `left_out`, and `moved`: what differs between the two
        versions `a` and `b`, with `layers` and `neurons`, as `vdna diff` has it.
    """
    a, b = found.moved
    moved: dict[str, Any] = {"a": a, "b": b, "layers": [], "neurons": []}
    if found.difference is not None:
        moved = difference_json(found.difference, top)
    elif found.explanation is not None:
        moved["layers"] = found.explanation.layers.to_pylist()
        moved["neurons"] = found.explanation.neurons.slice(0, top).to_pylist()
    return {
        "dataset": found.dataset,
        "spec": found.spec,
        "reference": found.reference,
        "window": found.window,
        "false_alarms": {"rate": FALSE_ALARM_RATE, "versions": RATED_VERSIONS},
        "versions": [asdict(row) for row in found.rows],
        "left_out": [asdict(of) for of in found.left_out],
        "moved": moved,
    }
