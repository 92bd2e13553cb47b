"""Writes a report as a folder, with pages of datasets, of pairs that it explains, and of rankings.

    >>> page = write_site(Catalogue("dnas"), page, "site", at=5)             # doctest: +SKIP

The report and these pages are files of one folder that link to each other, so that the folder can
be sent or served as it is. Each opens offline, and asks for nothing else.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from glob import escape
from hashlib import sha256
from time import monotonic

import numpy as np

from pipeline import storage
from pipeline.catalogue import Catalogue, Commit
from pipeline.comparing import Matrix
from pipeline.errors import SourceError, StorageError, TransientError, UsageError, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining import LOOK, Ranking, explain
from pipeline.reporting.conclusions import DIFFERENT, verdicts
from pipeline.reporting.html.dataset_page import (
    PAGE_IMAGES,
    gather_dataset,
    histories_at,
    only_last_plane,
    render_dataset,
)
from pipeline.reporting.html.explanation_page import gather_explanation, render_explanation
from pipeline.reporting.html.frame import MOST, is_page, save_page
from pipeline.reporting.html.gallery import render_gallery
from pipeline.reporting.html.links import (
    Addresses,
    from_pair,
    from_ranking,
    ranking_title,
    titles_told_apart,
)
from pipeline.reporting.html.matrix_page import render_matrix_page
from pipeline.reporting.html.page_data import Page, RankingLink
from pipeline.reporting.html.ranking_gallery import gallery_of
from pipeline.reporting.html.thumbnails import SAMPLING_SECONDS
from pipeline.reporting.report_options import EXPLAINED_PAIRS, SHOWN_IMAGES
from pipeline.wording import option

SITE_INDEX = "index.html"
"""The file of the report in its folder."""

ALL_PAGE_IMAGES = 3000
"""The most images on the pages of all datasets together, which take about a minute to read."""

PAGE_WRITERS = 8
"""How many pages of datasets are made at once; each waits for a store most of the time."""

_DATA = re.compile(rb'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)
_FOLDERS = ("datasets", "pairs", "rankings")
_LINK = re.compile(rf"({'|'.join(_FOLDERS)})/[0-9a-f]{{16}}\.html")


def require_site(folder: str) -> None:
    """Checks the folder of a report before anything is computed.

    Args:
        folder: The folder or url.

    Raises:
        UsageError: It is empty, is a file, or is a url that cannot be written.
    """
    named = option("site", folder)
    if not folder.strip():
        raise UsageError(f"{named} names no folder; name the one to write the pages to")
    root = storage.canonical(folder)
    if storage.protocol_of(root) in storage.WEB_PROTOCOLS:
        raise UsageError(f"{named} is a url of a web server, which takes no files; name a folder")
    if storage.protocol_of(root) == "file" and os.path.isfile(storage.local_path(root)):
        raise UsageError(f"{named} is a file; name the folder to write the pages to")


def write_site(
    catalogue: Catalogue,
    page: Page,
    folder: str,
    most: int = EXPLAINED_PAIRS,
    *,
    at: int | str | None = None,
    samples: int = SHOWN_IMAGES,
    rankings: Sequence[Ranking] = (),
    progress: Listener | None = None,
) -> Page:
    """Writes a report as `SITE_INDEX` of a folder, and datasets, pairs and rankings on a page each.

    Every dataset has a page; of many datasets each shows fewer images (`ALL_PAGE_IMAGES`). The
    pairs are those of `chosen_pairs`. Pages of an earlier report in that folder, or of one that was
    interrupted there, are removed unless this one has them.

    Args:
        catalogue: The catalogue of the datasets.
        page: The report. Its first matrix decides which pairs are explained.
        folder: The folder or url that the pages are written below.
        most: How many pairs are explained.
        at: The commit that was compared.
        samples: Images per dataset on the report and on explanations; if 0, no page shows any.
        rankings: Rankings of images by their distance to datasets of the catalogue.
        progress: Is told how far the work is.

    Returns:
        The report with its links as it was written, and a note on each pair that could not be
        explained.
    """
    matrix, root = page.matrices[0], storage.canonical(folder)
    there = set(_pages_there(root))  # without those of a report that is written at the same time
    ranked = _links_to(rankings)
    commit = catalogue.at(at)
    versions = catalogue.find_all(matrix.names, commit.number, matrix.spec_digest)
    for ranking, of in zip(rankings, ranked, strict=True):
        links_up = from_ranking(f"../{SITE_INDEX}", ranking, versions)
        gallery = gallery_of(catalogue, ranking, links_up)
        save_page(render_gallery(gallery), storage.join(root, of.href))
    beside = [replace(of, href=f"../{of.href}") for of in ranked]
    own = [_page_of("datasets", name) for name in matrix.names]
    links: dict[tuple[int, int], str] = {}
    notes = []
    pairs = chosen_pairs(matrix)[:most]
    progress = progress or ignore
    with stage(progress, Started(len(pairs), len(pairs), unit="pairs", step="pairs")):
        for i, j in pairs:
            a, b = matrix.names[i], matrix.names[j]
            link = _page_of("pairs", a, b)
            try:
                found = explain(
                    catalogue, a, b, at=commit.number, spec=matrix.spec_digest, look=LOOK
                )
                why = gather_explanation(catalogue, found, samples=samples)
            except VdnaError as error:
                notes.append(f"{a} and {b} cannot be explained: {error}")
            else:
                up = from_pair(f"../{SITE_INDEX}", a, b, beside)
                sides = [f"../{own[i]}", f"../{own[j]}"]
                save_page(render_explanation(why, up, sides), storage.join(root, link))
                links[i, j] = link
            progress(StepDone(1, name=f"{a} and {b}"))
    _write_datasets(catalogue, matrix, commit, root, own, links, beside, samples, progress)
    written, index = (
        replace(
            page,
            explained=links,
            rankings=ranked,
            dataset_pages=own,
            notes=(*page.notes, *notes),
        ),
        storage.join(root, SITE_INDEX),
    )
    before = set(_links_of(index))
    save_page(render_matrix_page(written), index)
    for link in (before | there).difference(links.values(), own, (of.href for of in ranked)):
        uri = storage.join(root, link)
        if link in before or _is_ours(uri):
            storage.discard(uri)
    return written


def _write_datasets(
    catalogue: Catalogue,
    matrix: Matrix,
    commit: Commit,
    root: str,
    own: Sequence[str],
    explained: Mapping[tuple[int, int], str],
    rankings: Sequence[RankingLink],
    samples: int,
    progress: Listener,
) -> None:
    """Writes the page of each dataset; all of them read images for `SAMPLING_SECONDS` at most."""
    beside = [link.rpartition("/")[2] for link in own]
    up = {pair: f"../{link}" for pair, link in explained.items()}
    where = Addresses(f"../{SITE_INDEX}", beside, lambda i, j: up.get((i, j), ""), rankings)
    slim, total = only_last_plane(matrix), len(own)
    histories = histories_at(catalogue, commit.number, matrix.spec_digest)
    shown = min(PAGE_IMAGES, max(1, ALL_PAGE_IMAGES // total)) if samples else 0
    deadline = monotonic() + SAMPLING_SECONDS

    def write(at: int) -> None:
        page = gather_dataset(
            catalogue,
            slim.names[at],
            slim,
            commit,
            samples=shown,
            histories=histories,
            deadline=deadline,
        )
        save_page(render_dataset(page, where), storage.join(root, own[at]))

    with (
        stage(progress, Started(total, total, unit="pages", step="datasets")),
        ThreadPoolExecutor(PAGE_WRITERS, "dataset") as pool,
    ):
        for name, _ in zip(slim.names, pool.map(write, range(total)), strict=True):
            progress(StepDone(1, name=name))


def _page_of(folder: str, *named: str) -> str:
    """Names the page of what has these names."""
    return f"{folder}/{sha256(repr(named).encode()).hexdigest()[:16]}.html"


def _links_to(rankings: Sequence[Ranking]) -> list[RankingLink]:
    """Gives each ranking a page of its own, those too that have the same title."""
    links: list[RankingLink] = []
    times: Counter[tuple[str, ...]] = Counter()
    for ranking, text in zip(rankings, titles_told_apart(rankings), strict=True):
        named = ranking_title(ranking), ranking.version.dna
        again = [str(times[named])] if times[named] else []
        times[named] += 1
        links.append(RankingLink(ranking.name, text, _page_of("rankings", *named, *again)))
    return links


def _pages_there(root: str) -> Iterator[str]:
    """Finds files that are named like pages: no index names those of an interrupted report.

    Args:
        root: The folder of the site.

    Yields:
        Their links, without those of a folder that cannot be listed.

    Raises:
        TransientError: The store does not answer.
    """
    path = storage.local_path(root) if storage.protocol_of(root) == "file" else root
    for folder in _FOLDERS:
        try:
            for item in storage.glob(f"{escape(path.rstrip('/'))}/{folder}/*.html"):
                link = f"{folder}/{item.uri.rpartition('/')[2]}"
                if _LINK.fullmatch(link):
                    yield link
        except TransientError:
            raise
        except (SourceError, StorageError):
            pass


def _is_ours(uri: str) -> bool:
    """Tells whether a file that is named like a page is one. What cannot be read is none."""
    try:
        return is_page(uri)
    except TransientError:
        raise
    except (SourceError, StorageError):
        return False


def _links_of(index: str) -> Iterator[str]:
    """Reads which pages a report links to. A file that is no report links to none."""
    try:
        found = _DATA.search(storage.read(index, most=2 * MOST))
        data = json.loads(found[1]) if found else {}
        links = [
            *data["explained"].values(),
            *(of["href"] for of in data["rankings"]),
            *data.get("dataset_pages", ()),
        ]
    except (SourceError, ValueError, LookupError, TypeError, AttributeError):
        return
    yield from (link for link in links if isinstance(link, str) and _LINK.fullmatch(link))


def chosen_pairs(matrix: Matrix) -> Sequence[tuple[int, int]]:
    """Lists the pairs by which of them is explained first.

    Args:
        matrix: Their distances.

    Returns:
        The pairs (i < j) that differ, the nearest first, and then all others that have a distance.
    """
    layer = matrix.planes[-1]
    values, verdict = matrix.corrected(layer), verdicts(matrix, layer)
    upper = np.argwhere(np.triu(np.isfinite(values), 1)).tolist()
    order = sorted(upper, key=lambda at: (verdict[*at] != DIFFERENT, values[*at], at))
    return [(i, j) for i, j in order]
