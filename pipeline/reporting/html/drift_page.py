"""Makes the page of a dataset's path over its versions: how far each has moved, and what moved.

    >>> page = gather_drift(catalogue, drift(catalogue, "photos"))           # doctest: +SKIP
    >>> Path("drift.html").write_bytes(render_drift(page))                   # doctest: +SKIP

No script runs, as on the page of a dataset (see `dataset_page`). An image that cannot be read again
is named with the reason; a page never fails for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from time import monotonic
from typing import Any

from pipeline.building import Movement
from pipeline.catalogue import Catalogue
from pipeline.explaining import (
    REFERENCE,
    STEP,
    Drift,
    DriftRow,
    Explanation,
    NeuronGroup,
    Reaction,
    TellingImage,
)
from pipeline.reporting.captions import caption, first_of_stages, look_notes, number_of
from pipeline.reporting.conclusions import explanation_sentence, format_number
from pipeline.reporting.drift_words import alarm_told, columns_told, drift_sentences, move_told
from pipeline.reporting.html.dataset_panels import spec_facts
from pipeline.reporting.html.explanation_page import ShownImage, pictures_of
from pipeline.reporting.html.frame import asset, document, shown_text
from pipeline.reporting.html.thumbnails import SAMPLING_SECONDS
from pipeline.reporting.version_words import difference_lines
from pipeline.wording import count_of

GROUP_IMAGES = 4
"""How many images of either version are shown for a neuron."""

_LEFT, _HIGH, _TOP, _BOTTOM = 56, 150, 26, 22
"""Room for the numbers, for the distances, for the heading, for the names."""

_NARROW, _BROAD, _WIDE = 46, 120, 900
"""The least and the most room for a version, and the room for all of a few."""


@dataclass(frozen=True, eq=False)
class DriftPage:
    """All that the page of a path shows.

    Attributes:
        found: The path.
        pictures: The images of the groups of neurons that moved most, by uri and member.
        notes: What a reader should know, a sentence each.
        facts: What decides what was counted, the same for all versions.
        about: Where all of it comes from.
    """

    found: Drift
    pictures: Mapping[tuple[str, str], ShownImage]
    notes: Sequence[str]
    facts: Sequence[tuple[str, str]]
    about: str


def gather_drift(catalogue: Catalogue, found: Drift) -> DriftPage:
    """Gathers the images of the neurons that moved most.

    Args:
        catalogue: The catalogue of the dataset.
        found: The path.

    Returns:
        The page's data.
    """
    why, deadline = found.explanation, monotonic() + SAMPLING_SECONDS
    return DriftPage(
        found,
        {} if why is None else pictures_of(catalogue, why, deadline),
        found.notes(),
        tuple(spec_facts(catalogue.spec(found.spec))),
        f"Catalogue {catalogue.root}, dataset {found.dataset}, spec {found.spec}",
    )


def render_drift(page: DriftPage) -> bytes:
    """Renders the page.

    Args:
        page: What to show.

    Returns:
        The bytes of the HTML file.
    """
    found = page.found
    headline, *others = drift_sentences(found)
    a, b = found.moved
    parts = {
        "headline": shown_text(headline),
        "notes": _items([*others, *page.notes]),
        "chart": _chart(found),
        "kind": found.stop_kind,
        "versions": _stops(found),
        "columns": shown_text(columns_told(found)),
        "moved": shown_text(f"What moved from {a} to {b}"),
        "images": "" if found.difference is None else _lines(difference_lines(found.difference)),
        "why": "" if found.explanation is None else _why(found.explanation, page.pictures),
        "about": shown_text(page.about),
        "facts": "".join(
            f"<dt>{shown_text(name)}</dt><dd>{shown_text(value)}</dd>" for name, value in page.facts
        ),
    }
    style = f"{asset('page.css')}\n{asset('drift.css')}"
    return document("drift", f"{found.dataset} over its {found.stop_kind}s", style, parts)


# The chart.


def _chart(found: Drift) -> str:
    """Draws the distance from the reference, and below it the one from the version before."""
    room = min(max(_NARROW, _WIDE // len(found.rows)), _BROAD)
    wide, high = _LEFT + room * len(found.rows) + 12, _TOP + _HIGH + _BOTTOM
    shown = (
        (REFERENCE, f"From {found.reference}, in bins"),
        (STEP, f"From the {found.stop_kind} before, in bins"),
    )
    drawn = "".join(
        f'<g transform="translate(0 {at * high})">{_curve(found.rows, kind, heading, room)}</g>'
        for at, (kind, heading) in enumerate(shown)
    )
    return (
        '<svg id="chart" role="img" aria-label="The distances of the table below, with their '
        f'intervals" viewBox="0 0 {wide} {2 * high}" width="{wide}" height="{2 * high}">'
        f"{drawn}</svg>"
    )


def _curve(rows: Sequence[DriftRow], kind: str, heading: str, room: int) -> str:
    """Draws one distance of each version, on a scale that begins at zero."""
    right = _LEFT + room * len(rows)
    moves: list[Movement | None] = [getattr(row, kind) for row in rows]
    ends = [
        value for of in moves if of for value in (_value(of), of.high, of.low) if value is not None
    ]
    step = _tick(max(ends, default=0) or 1.0)
    most = step * max(1, ceil(max(ends, default=0) / step - 1e-9))

    def y(value: float) -> str:
        return f"{_TOP + _HIGH * (1 - value / most):.1f}"

    parts = [f'<text class="heading" x="4" y="15">{shown_text(heading)}</text>']
    for at in range(round(most / step) + 1):
        parts.append(f'<path class="line" d="M{_LEFT} {y(at * step)}H{right}"/>')
        text = f"{at * step:.3g}"
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y(at * step)}" dy="4">{text}</text>')
    points: list[tuple[int, str]] = []
    for at, (row, move) in enumerate(zip(rows, moves, strict=True)):
        x = _LEFT + room * at + room // 2
        name = f"@{row.commit}" if "T" in row.time else row.time[5:]  # the last day of a window
        parts.append(f'<text class="name" x="{x}" y="{_TOP + _HIGH + 16}">{name}</text>')
        value = None if move is None else _value(move)
        if move is None or value is None:
            continue
        if points:
            (before, from_y) = points[-1]
            parts.append(f'<path class="path" d="M{before} {from_y}L{x} {y(value)}"/>')
        points.append((x, y(value)))
        if move.low is not None and move.high is not None:
            parts.append(f'<path class="bar" d="M{x} {y(move.low)}V{y(move.high)}"/>')
        told = f"{row.name}: {move_told(move)}"
        if kind in row.alarms:
            parts.append(
                f'<path class="alarm" d="M{x} {y(value)}m0 -8l8 8l-8 8l-8 -8z"><title>'
                f"{shown_text(told)}, an alarm</title></path>"
            )
        else:
            parts.append(
                f'<circle class="point" cx="{x}" cy="{y(value)}" r="4"><title>'
                f"{shown_text(told)}</title></circle>"
            )
    return "".join(parts)


def _value(move: Movement) -> float | None:
    return move.emd if move.emd_corrected is None else move.emd_corrected


def _tick(most: float) -> float:
    """Returns the step of an axis that has two to five of them: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(most))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if most / (power * part) <= 5)


# The tables.


def _stops(found: Drift) -> str:
    heads = (
        (found.stop_kind, "images", "failed")
        if found.window
        else ("version", "made", "images", "failed", "change")
    )
    rows = "".join(
        f'<tr{" class=alarmed" * bool(row.alarms)}><th scope="row">{shown_text(row.name)}</th>'
        + ("" if found.window else f"<td>{shown_text(row.time[:16].replace('T', ' '))}</td>")
        + f'<td class="number">{row.images:,}</td><td class="number">{row.failed:,}</td>'
        + "".join(
            f"<td>{shown_text(text)}</td>"
            for text in (
                *(() if found.window else ("" if row.changes is None else str(row.changes),)),
                "the reference" if row.name == found.reference else move_told(row.reference),
                move_told(row.step),
                alarm_told(row, found.reference),
                *(() if found.window else (", ".join(row.tags),)),
            )
        )
        + "</tr>"
        for row in found.rows
    )
    last = ("alarm",) if found.window else ("alarm", "tags")
    heads = (*heads, f"from {found.reference}", "from the one before", *last)
    return _table(heads, rows)


def _layers(found: Explanation) -> str:
    rows = "".join(
        f'<tr><th scope="row">{shown_text(row["layer"])}</th>'
        + "".join(f'<td class="number">{shown_text(text)}</td>' for text in _layer_cells(row))
        + "</tr>"
        for row in found.layers.to_pylist()
    )
    return _table(["layer", "distance (bins)", "q", "neurons differ", "share"], rows)


def _layer_cells(row: Mapping[str, Any]) -> Iterator[str]:
    value = row["emd"] if row["emd_corrected"] is None else row["emd_corrected"]
    yield "" if value is None else format_number(value)
    yield "" if row["q"] is None else f"{row['q']:.2g}"
    yield f"{row['differing']:,} of {row['neurons']:,}"
    yield f"{row['share']:.0%}"


def _table(heads: Iterable[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{shown_text(text)}</th>' for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


# What moved.


def _why(found: Explanation, pictures: Mapping[tuple[str, str], ShownImage]) -> str:
    notes = f'<ul class="quiet">{_items(look_notes(found))}</ul>'
    groups = "".join(_group(found, group, pictures) for group in first_of_stages(found))
    return (
        f"<p>{shown_text(explanation_sentence(found))}</p>{notes}"
        '<div class="wide" tabindex="0" role="region" aria-label="The layers as a table">'
        f"{_layers(found)}</div>{groups}"
    )


def _group(
    found: Explanation, group: NeuronGroup, pictures: Mapping[tuple[str, str], ShownImage]
) -> str:
    """Shows a neuron: where its histograms part, and images of either version that it reacts to."""
    like = f", and {count_of(len(group.others), 'other')} like it" if group.others else ""
    title = f"{group.name}{f' ({group.stage})' if group.stage else ''}{like}"
    a, b = found.versions
    strips = []
    sides = group.exemplars if group.images is None else group.images
    for name, images in zip((a, b), sides, strict=True):
        shown = [
            _picture(image, pictures.get((image.uri, image.member)))
            for image in (images or ())[:GROUP_IMAGES]
        ]
        if shown:
            strips.append(
                f'<p class="side">of {shown_text(name)}</p><ul class="strong">{"".join(shown)}</ul>'
            )
    return f"<h3>{shown_text(title)}</h3><p>{shown_text(caption(group, a, b))}</p>{''.join(strips)}"


def _picture(image: Reaction | TellingImage, picture: ShownImage | None) -> str:
    if picture is None or not picture.image:
        text = str(image) if picture is None else f"{picture.place} ({picture.why})"
        return f"<li>{shown_text(text)}</li>"
    name = shown_text(picture.place)
    return (
        f'<li><img src="{escape(picture.image)}" alt="{name}" '
        f'title="{name}, {shown_text(number_of(image))}" width="96" height="96"></li>'
    )


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{shown_text(text)}</li>" for text in texts)


def _lines(texts: Sequence[str]) -> str:
    first, *others = texts
    return f'<p>{shown_text(first)}</p><ul class="quiet">{_items(map(str.strip, others))}</ul>'
