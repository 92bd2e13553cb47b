"""Writes what a refresh found as a summary in Markdown, for the page of a CI job.

>>> print(summary_markdown(outcome).decode())                                  # doctest: +SKIP
## Refresh: all is well
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import as_one_line
from pipeline.reporting.gate_words import measured_words, outcome_words, reason_lines
from pipeline.reporting.night_words import (
    changes_told,
    moved_told,
    night_sentence,
    state_of,
    untold_error,
)

SHOWN_UNCHANGED = 100
"""If there are more datasets, only those that changed are listed: a CI job has a short page."""

_SIGNS = {"holds": "✅ ", "broken": "❌ "}
"""The marks of outcomes that need one."""


def summary_markdown(outcome: Mapping[str, Any]) -> bytes:
    """Writes the outcome as Markdown.

    Args:
        outcome: What a refresh found, as `Refreshed.outcome` has it.

    Returns:
        The bytes of the file.
    """
    gate, failed, state = outcome["gate"], outcome["failed"], state_of(outcome)
    lines = [f"## Refresh: {state}", "", _plain(night_sentence(outcome)), ""]
    lines += _table(("bound", "measured", "outcome", "false alarms"), map(_bound_cells, gate))
    for row in gate:
        if row["outcome"] == "not judged" or row.get("reasons") or row.get("unexplained"):
            lines += [f"**{_plain(row['text'])}**", ""]
            lines += [f"- {_plain(line.strip())}" for line in reason_lines(row)] + [""]
    columns = ("dataset", "images", "failed", "changed", "moved (bins)")
    rows = outcome["datasets"]
    shown = rows if len(rows) <= SHOWN_UNCHANGED else [row for row in rows if row["changed"]]
    lines += _table(columns, map(_dataset_cells, shown))
    lines += [f"- **{_plain(of['name'])}** was not built: {_plain(of['message'])}" for of in failed]
    lines += ["", _plain(error)] if (error := untold_error(outcome)) else []
    return ("\n".join(lines).rstrip() + "\n").encode()


def _bound_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    rate = row["false_alarm_rate"]
    chance = f"at most {rate:.1%}" if rate else "none"
    return (
        row["name"],
        measured_words(row) or "unknown",
        f"{_SIGNS.get(row['outcome'], '')}{outcome_words(row)}",
        "unknown" if rate is None else chance,
    )


def _dataset_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    changed = changes_told(row["image_changes"]) or ("yes" if row["changed"] else "no")
    numbers = f"{row['images']:,}", f"{row['failed']:,}"
    return row["dataset"], *numbers, changed, moved_told(row)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table, with an empty one at its end; nothing without rows."""
    cells = [[_plain(cell) for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return [f"| {' | '.join(line)} |" for line in lines] + [""] if cells else []


def _plain(text: str) -> str:
    """Returns the text in one line, with what Markdown and HTML would read as theirs escaped."""
    return re.sub(r"([\\`*_\[\]<>|~#&!])", r"\\\1", as_one_line(text))
