"""Makes the page of a refresh: what became of each dataset, of the gate, and what it cost.

    >>> Path("night.html").write_bytes(render_night(done.outcome))           # doctest: +SKIP

No script runs. What needs a reader comes first: what failed, broken bounds, alarms. Datasets that
have not changed come last, and folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import as_one_line
from pipeline.reporting.gate_words import measured_words, outcome_words, reason_lines
from pipeline.reporting.html.frame import asset, document, shown_text
from pipeline.reporting.night_words import (
    changes_told,
    moved_told,
    night_sentence,
    state_of,
    untold_error,
)
from pipeline.wording import in_bins, in_units

REFRESHED = ("images", "failed", "change", "moved (bins)", "read", "bytes")
"""What is told of a dataset that was refreshed."""

GATE = ("outcome", "measured", "limit", "false alarms")
"""What is told of a bound."""


def render_night(outcome: Mapping[str, Any]) -> bytes:
    """Renders the page.

    Args:
        outcome: What a refresh found, as `Refreshed.outcome` has it.

    Returns:
        The bytes of the HTML file.
    """
    rows = outcome["datasets"]
    refreshed = [row for row in rows if row["changed"]]
    alarmed = [row for row in rows if row["alarm"]]
    unchanged = [row for row in rows if not row["changed"]]
    failed = [(of["name"], [of["error"], of["message"]], False) for of in outcome["failed"]]
    moved = [(row["dataset"], _refreshed_cells(row), bool(row["alarm"])) for row in refreshed]
    moved.sort(key=lambda each: not each[2])
    unlisted = "In the catalogue, and not in the file"
    if outcome["pruned"] is not None:
        unlisted = "Taken out, as the file does not name them"
    sections = [
        _section("Not built", _table(("dataset", "error", "why"), failed)),
        _section("The gate", _gate(outcome["gate"])),
        _section("Refreshed", _table(("dataset", *REFRESHED), moved)),
        _section(unlisted, _names(outcome["unlisted"])),
        _folded(f"Unchanged: {len(unchanged):,}", _names(row["dataset"] for row in unchanged)),
    ]
    notes = [f"{row['dataset']} has drifted: {moved_told(row)}" for row in alarmed]
    notes += [error] if (error := untold_error(outcome)) else []
    parts = {
        "headline": _shown(f"{night_sentence(outcome)}."),
        "notes": "".join(f"<li>{_shown(note)}</li>" for note in notes),
        "sections": "\n".join(filter(None, sections)),
        "about": _shown(f"Catalogue {outcome['catalogue']}, file {outcome['config']}"),
    }
    style = f"{asset('page.css')}\n{asset('night.css')}"
    return document("night", f"Refresh: {state_of(outcome)}", style, parts)


def _refreshed_cells(row: Mapping[str, Any]) -> list[str]:
    moved = moved_told(row) or (row["unmeasured"] or "")
    return [
        *(f"{row['images']:,}", f"{row['failed']:,}", changes_told(row["image_changes"]), moved),
        *(f"{row['read']:,}", in_units(row["read_bytes"]) if row["read_bytes"] else ""),
    ]


def _gate(gate: Sequence[Mapping[str, Any]]) -> str:
    """Shows the bounds, those that need a reader first, and why bounds are broken."""
    first = {"broken": 0, "not judged": 1}
    ordered = sorted(gate, key=lambda row: first.get(row["outcome"], 2))
    cells = [(row["name"], _gate_cells(row), row["outcome"] in first) for row in ordered]
    reasons = [row for row in ordered if row["outcome"] == "not judged" or reason_lines(row)]
    told = "".join(
        f"<p>{_shown(row['text'])}</p><ul>"
        + "".join(f"<li>{_shown(line.strip())}</li>" for line in reason_lines(row))
        + "</ul>"
        for row in reasons
    )
    return _table(("bound", *GATE), cells) + told


def _gate_cells(row: Mapping[str, Any]) -> list[str]:
    limit, rate = row["limit"], row["false_alarm_rate"]
    chance = "" if rate is None else f"at most {rate:.1%}" if rate else "none"
    return [outcome_words(row), measured_words(row), _number(limit), chance]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else in_bins(value)


def _table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str], bool]]) -> str:
    """Returns a table; nothing without rows. Each has a name, cells, and whether it stands out."""
    body = "".join(
        f"<tr{' class=alarmed' if stands_out else ''}>"
        f'<th scope="row">{_shown(name)}</th>'
        + "".join(
            f"<td{' class=text' if len(cell) > 60 else ''}>{_shown(cell)}</td>" for cell in cells
        )
        + "</tr>"
        for name, cells, stands_out in rows
    )
    head = "".join(f'<th scope="col">{_shown(text)}</th>' for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def _names(names: Iterable[str]) -> str:
    items = "".join(f"<li>{_shown(name)}</li>" for name in names)
    return f"<ul>{items}</ul>" if items else ""


def _section(title: str, content: str) -> str:
    """Returns a section; nothing without content."""
    label = title.lower().replace(" ", "-").replace(",", "")
    return content and (
        f'<section aria-labelledby="{label}"><h2 id="{label}">{_shown(title)}</h2>'
        f'<div class="wide" tabindex="0" role="region" aria-label="{_shown(title)}">'
        f"{content}</div></section>"
    )


def _folded(title: str, content: str) -> str:
    summary = f"<summary><h2>{_shown(title)}</h2></summary>"
    return content and f"<section><details>{summary}{content}</details></section>"


def _shown(text: str) -> str:
    """Makes a text fit to stand in markup; a name may hold what no file can."""
    return shown_text(as_one_line(text))
