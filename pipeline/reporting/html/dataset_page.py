"""Makes the page of one dataset: its images, how far it is from all others, and its versions.

    >>> page = gather_dataset(catalogue, "sunny", matrix, 5, samples=60)     # doctest: +SKIP
    >>> Path("sunny.html").write_bytes(render_dataset(page, addresses))      # doctest: +SKIP

No script runs, as on the page of a ranking (see `gallery`). What cannot be read becomes a note on
the page; a page never fails for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import islice
from time import monotonic

import numpy as np

from pipeline.catalogue import (
    Catalogue,
    Commit,
    PastVersion,
    Version,
    parts_of,
    version_histories,
)
from pipeline.comparing import Matrix, neighbours
from pipeline.errors import VdnaError
from pipeline.reporting.conclusions import ALIKE, correction, distances_told, no_test, verdicts
from pipeline.reporting.dataset_words import division_of, place_among
from pipeline.reporting.html.dataset_panels import panel_of, spec_facts
from pipeline.reporting.html.frame import asset, document, shown_text
from pipeline.reporting.html.links import Addresses, from_dataset
from pipeline.reporting.html.page_data import Panel, Sample
from pipeline.reporting.html.repeat_pictures import ShownRepeats, gather_repeats
from pipeline.reporting.html.thumbnails import SAMPLING_SECONDS, Key
from pipeline.reporting.repeat_words import RepeatGroup, unknown_repeats
from pipeline.wording import count_of, some_of

PAGE_IMAGES = 60
"""The most images on the page of a dataset, which take half a megabyte."""

REPEATS_SHARE = 3
"""One in so many of a page's images, at most, is repeated, odd or an outlier; others are drawn."""

PAGE_FAILURES = 20

READ_COMMITS = 200
"""How many commits are read for the versions of a dataset: the newest ones."""

BAR_WIDTH = 200
"""The width of the drawing of an interval, in its own units."""


@dataclass(frozen=True, eq=False)
class DatasetPage:
    """All that the page of a dataset shows.

    Attributes:
        name: The dataset.
        version: The version that is shown.
        panel: What the report says of it, with more images and failures.
        matrix: The distances of all datasets; the last plane is shown.
        known: What is known of its images, a sentence each.
        parts: The parts that it is divided into, with their versions.
        history: Its versions, the newest first.
        shared: Facts that are the same for every dataset of the report.
        about: Where all of it comes from.
        repeats: Its repeated and odd images and its outliers; None if neither is known.
    """

    name: str
    version: Version
    panel: Panel
    matrix: Matrix
    known: Sequence[str] = ()
    parts: Mapping[str, Version] | None = None
    history: Sequence[PastVersion] = ()
    shared: Sequence[tuple[str, str]] = ()
    about: str = ""
    repeats: ShownRepeats | None = None


def only_last_plane(matrix: Matrix) -> Matrix:
    """Takes what the pages of datasets show of a matrix, which is far smaller than all of it."""
    return matrix.mapped(lambda values: values[-1:].copy(), layers=matrix.planes[-1:])


def histories_at(
    catalogue: Catalogue, number: int, spec: str
) -> tuple[dict[str, list[PastVersion]], str]:
    """Reads the versions of all datasets up to a commit.

    Args:
        catalogue: The catalogue.
        number: The number of the commit.
        spec: The digest of the spec.

    Returns:
        The versions of each dataset, the newest first, and why older ones are missing, or an
        empty text.
    """
    commits = (commit for commit in catalogue.log() if commit.number <= number)
    try:
        found = version_histories(islice(commits, READ_COMMITS), spec)
    except VdnaError as error:
        return {}, f"the versions cannot be read: {error}"
    if number <= READ_COMMITS:
        return found, ""
    return found, (
        f"The newest {READ_COMMITS} of {number:,} commits were read, so the oldest version here "
        "may be older than its commit, and others may have been before it."
    )


def gather_dataset(
    catalogue: Catalogue,
    name: str,
    matrix: Matrix,
    commit: Commit,
    *,
    samples: int = PAGE_IMAGES,
    histories: tuple[Mapping[str, Sequence[PastVersion]], str] | None = None,
    deadline: float | None = None,
) -> DatasetPage:
    """Gathers all that the page of a dataset shows.

    Args:
        catalogue: The catalogue of the dataset.
        name: The dataset.
        matrix: The distances of all datasets.
        commit: The commit that was compared.
        samples: How many of its images to show, the repeated ones among them.
        histories: What `histories_at` returns; None to read it.
        deadline: When to stop reading images, by the monotonic clock; None for a time limit of
            this page's own.

    Returns:
        The page's data.
    """
    version = commit.datasets[name][matrix.spec_digest]
    if histories is None:
        histories = histories_at(catalogue, commit.number, matrix.spec_digest)
    spec = catalogue.spec(version.spec)
    until = monotonic() + SAMPLING_SECONDS if deadline is None else deadline
    chosen = "" if version.spec == commit.default_spec else f" --spec {version.spec}"
    share = samples // REPEATS_SHARE
    repeats = gather_repeats(catalogue, name, version, commit, share, until, chosen)
    drawn = samples - len(repeats.pictures) if repeats else samples
    panel = panel_of(catalogue, name, version, drawn, until, failures=PAGE_FAILURES)
    versions, missing = histories
    notes = (*panel.notes, missing) if missing else panel.notes
    return DatasetPage(
        name,
        version,
        replace(panel, notes=notes),
        matrix,
        tuple(_known(catalogue, name, version)),
        parts_of(commit, name, version.spec),
        versions.get(name, ()),
        tuple(spec_facts(spec)),
        f"Catalogue {catalogue.root}, commit {commit.number} of {commit.time}; {commit.software}",
        repeats,
    )


def _known(catalogue: Catalogue, name: str, version: Version) -> Iterator[str]:
    """Yields what is known of a dataset's images, beside the notes of its panel."""
    if division := division_of(version):
        yield division
    if unknown := unknown_repeats(version):
        yield f"{unknown[0].upper()}{unknown[1:]}."
    if version.imported:
        return
    try:
        manifest = catalogue.manifest(name, version)
        labels = manifest.labels
        grouped = any(entry.group for entry in manifest.shards[0].members)
    except (VdnaError, OSError) as error:
        yield f"The list of its images cannot be read: {error}"
        return
    if labels:
        yield f"Its images have {'the label' if len(labels) == 1 else 'labels'} {some_of(labels)}."
    if grouped:
        yield "Its images are in groups, which error bars keep together."


# The file.


def render_dataset(page: DatasetPage, where: Addresses) -> bytes:
    """Renders the page.

    Args:
        page: What to show.
        where: Where the other pages of the report are.

    Returns:
        The bytes of the HTML file, far fewer than `frame.MOST`.
    """
    panel, version = page.panel, page.version
    links = "".join(
        f'<a href="{escape(of.href)}">{shown_text(of.text)}</a>'
        for of in from_dataset(page.name, where)
    )
    failed = f"{version.failed:,} more could not be read. " if version.failed else ""
    first = f"{count_of(version.images, 'image')} of {version.source}. {failed}"
    parts = {
        "back": links,
        "headline": shown_text(first + place_among(page.matrix, page.name)),
        "which": "Its images" if len(panel.samples) == version.images else "Some of its images",
        "images": _wall(panel.samples) or '<p class="quiet">None is shown.</p>',
        "repeats": _repeats(page.repeats) if page.repeats else "",
        "known": _known_section(page, where),
        "heading": shown_text(_heading(page.matrix)),
        "distances": _distances(page, where),
        "versions": _versions(page.history),
        "about": shown_text(page.about),
        "facts": "".join(
            f"<dt>{shown_text(name)}</dt><dd>{shown_text(value)}</dd>"
            for name, value in (*panel.facts, *page.shared)
        ),
    }
    style = f"{asset('page.css')}\n{asset('dataset.css')}"
    return document("dataset", page.name, style, parts)


def _wall(samples: Iterable[Sample]) -> str:
    shown = "".join(
        f'<li><img src="{escape(of.image)}" alt="image {shown_text(of.name)}" '
        f'title="{shown_text(of.name)}" width="96" height="96"></li>'
        for of in samples
    )
    return f'<ul class="wall">{shown}</ul>' if shown else ""


def _repeats(repeats: ShownRepeats) -> str:
    """Says which images repeat or are odd, and which are outliers, each group with its pictures."""
    lines = []
    for kind in repeats.kinds:
        groups = [
            f'<li><span class="quiet">{shown_text(group.text)}</span>'
            f"{_wall(_pictures(group, repeats.pictures))}</li>"
            for group in kind.groups
        ]
        groups += [f'<li class="quiet">{shown_text(kind.more)}</li>'] if kind.more else []
        listed = f'<ul class="groups">{"".join(groups)}</ul>' if groups else ""
        lines.append(f"<li><strong>{kind.word}:</strong> {shown_text(kind.text)}{listed}</li>")
    notes = "".join(f'<p class="quiet">{shown_text(note)}</p>' for note in repeats.notes)
    told = f"<ul>{''.join(lines)}</ul>" if lines else ""
    return (
        '<section aria-labelledby="repeats-title">\n'
        f'<h2 id="repeats-title">Repeated and odd images</h2>\n{told}{notes}\n</section>\n'
    )


def _pictures(group: RepeatGroup, pictures: Mapping[Key, Sample]) -> list[Sample]:
    keys = ((of.uri, of.member) for of in group.shown)
    return [pictures[key] for key in keys if key in pictures]


def _known_section(page: DatasetPage, where: Addresses) -> str:
    panel, names = page.panel, page.matrix.names
    lines = [shown_text(text) for text in (*page.known, *panel.notes)]
    parts = [
        f"{_linked(name, where.datasets[names.index(name)] if name in names else '')} "
        f"({count_of(version.images, 'image')})"
        for name, version in sorted((page.parts or {}).items())
    ]
    lines += [f"Its parts: {', '.join(parts)}."] if parts else []
    if panel.reasons:
        reasons = (f"{count:,} &times; {shown_text(reason)}" for reason, count in panel.reasons)
        told = "".join(f"<li>{shown_text(failure)}</li>" for failure in panel.failures)
        left = page.version.failed - len(panel.failures)
        told += f"<li>… and {left:,} more</li>" if left > 0 else ""
        lines.append(f'Not counted: {", ".join(reasons)}<ul class="quiet">{told}</ul>')
    lines = lines or ["Nothing is out of the ordinary: all of them were counted."]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _linked(name: str, href: str) -> str:
    text = shown_text(name)
    # An address is made of digests and names. To look for secrets in all of them would take long.
    return f'<a href="{escape(href)}">{text}</a>' if href else text


def _heading(matrix: Matrix) -> str:
    layer = matrix.planes[-1]
    barred = ", with 95% intervals" if np.isfinite(matrix.of(layer, "low")).any() else ""
    untested = (
        "" if np.isfinite(matrix.of(layer, "q")).any() else f". Not tested: {no_test(matrix)}"
    )
    return f"In bins, the nearest first; {correction(matrix, layer)}{barred}{untested}."


def _distances(page: DatasetPage, where: Addresses) -> str:
    """Lists all other datasets, the nearest first, with a drawing of each interval."""
    matrix, layer = page.matrix, page.matrix.planes[-1]
    i, values = matrix.names.index(page.name), matrix.corrected(layer)
    verdict, told = verdicts(matrix, layer)[i], distances_told(matrix, layer)
    low, high = matrix.of(layer, "low")[i], matrix.of(layer, "high")[i]
    barred = np.isfinite(low) & np.isfinite(high) & matrix.is_corrected(layer)[i]
    others = neighbours(values, i)
    ends = np.concatenate([values[i, others], low[list(others)], high[list(others)]])
    least, most = min(0.0, np.nanmin(ends, initial=0)), max(1e-12, np.nanmax(ends, initial=0))

    def place(value: float) -> str:
        return f"{4 + (BAR_WIDTH - 8) * (value - least) / (most - least):.1f}"

    rows = []
    for j in others:
        bar = f'<path class="bar" d="M{place(low[j])} 7H{place(high[j])}"/>' if barred[j] else ""
        alike = verdict[j] == ALIKE
        kind = "point alike" if alike else "point"
        point = f'<circle class="{kind}" cx="{place(values[i, j])}" cy="7" r="4"/>'
        pair = where.pair(*sorted((i, j)))
        why = pair or where.open_pair(page.name, matrix.names[j])
        closer = "look closer" if alike else "why they differ"
        text = closer if pair else "both in the report"
        rows.append(
            f"<li>{_linked(matrix.names[j], where.datasets[j])}"
            f'<svg viewBox="0 0 {BAR_WIDTH} 14" aria-hidden="true">{bar}{point}</svg>'
            f"<span>{told(i, j)}{', not told apart' * bool(alike)}</span>"
            f'<a href="{escape(why)}">{text}</a></li>'
        )
    lost = len(matrix.names) - 1 - len(others)
    more = f'<p class="quiet">{lost:,} at no distance that is defined.</p>' if lost else ""
    return f'<ol class="distances">{"".join(rows)}</ol>{more}'


def _versions(history: Sequence[PastVersion]) -> str:
    if not history:
        return '<p class="quiet">None is known.</p>'
    rows = "".join(
        f'<tr><th scope="row">{past.commit}</th>'
        f"<td>{shown_text(past.time[:16].replace('T', ' '))}</td>"
        f'<td class="number">{past.version.images:,}</td>'
        f'<td class="number">{past.version.failed:,}</td>'
        f"<td>{shown_text(past.version.source)}</td><td>{shown_text(past.software)}</td></tr>"
        for past in history
    )
    heads = ("commit", "made", "images", "failed", "source", "software")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
