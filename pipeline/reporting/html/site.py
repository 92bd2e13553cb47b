"""Writes a report as a folder, with pages that say why pairs of its datasets differ.

    >>> page = write_site(Catalogue("dnas"), page, "site", at=5)             # doctest: +SKIP

The report and these pages are files of one folder that link to each other, so that the folder can
be sent or served as it is. Each opens offline, and asks for nothing else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from urllib.parse import quote, urlencode

import numpy as np

from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.comparing import Matrix
from pipeline.errors import SourceError, UsageError, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining import explain
from pipeline.reporting.conclusions import DIFFERENT, verdicts
from pipeline.reporting.html.explanation_page import gather_explanation, render_explanation
from pipeline.reporting.html.frame import MOST, save_page
from pipeline.reporting.html.matrix_page import render_matrix_page
from pipeline.reporting.html.page_data import Page
from pipeline.reporting.report_options import EXPLAINED_PAIRS, SHOWN_IMAGES
from pipeline.wording import option

SITE_INDEX = "index.html"
"""The file of the report in its folder."""


_DATA = re.compile(rb'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)
_LINK = re.compile(r"pairs/[0-9a-f]{16}\.html")


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
    if storage.protocol_of(root) in ("http", "https"):
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
    progress: Listener | None = None,
) -> Page:
    """Writes a report as `SITE_INDEX` of a folder, and pairs explained on a page each.

    The pairs are those of `chosen_pairs`. Explanations that an earlier report in that folder links
    to, and this one does not, are removed.

    Args:
        catalogue: The catalogue of the datasets.
        page: The report. Its first matrix decides which pairs are explained.
        folder: The folder or url that the pages are written below.
        most: How many pairs are explained.
        at: The commit that was compared.
        samples: Images per dataset.
        progress: Is told how far the work is.

    Returns:
        The report with its links as it was written, and a note on each pair that could not be
        explained.
    """
    matrix, root = page.matrices[0], storage.canonical(folder)
    links: dict[tuple[int, int], str] = {}
    notes = []
    pairs = chosen_pairs(matrix)[:most]
    progress = progress or ignore
    with stage(progress, Started(len(pairs), len(pairs), unit="pairs", step="pairs")):
        for i, j in pairs:
            a, b = matrix.names[i], matrix.names[j]
            link = f"pairs/{sha256(repr((a, b)).encode()).hexdigest()[:16]}.html"
            try:
                found = explain(catalogue, a, b, at=at, spec=matrix.spec_digest)
                why = gather_explanation(catalogue, found, samples=samples)
            except VdnaError as error:
                notes.append(f"{a} and {b} cannot be explained: {error}")
            else:
                save_page(
                    render_explanation(why, back=way_back(f"../{SITE_INDEX}", a, b)),
                    storage.join(root, link),
                )
                links[i, j] = link
            progress(StepDone(1, name=f"{a} and {b}"))
    written, index = (
        replace(page, explained=links, notes=(*page.notes, *notes)),
        storage.join(root, SITE_INDEX),
    )
    before = set(_links_of(index))
    save_page(render_matrix_page(written), index)
    for link in before.difference(links.values()):
        storage.discard(storage.join(root, link))
    return written


def _links_of(index: str) -> Iterator[str]:
    """Reads which explanations a report links to. A file that is no report links to none."""
    try:
        found = _DATA.search(storage.read(index, most=2 * MOST))
        links = json.loads(found[1])["explained"].values() if found else ()
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


def way_back(up: str, a: str, b: str) -> str:
    """Gives the address of the report with a pair open, as `matrix/address.js` reads it.

    Args:
        up: The address of the report, seen from the page of the pair.
        a: One dataset.
        b: The other.

    Returns:
        The address.
    """
    pair = " ".join(quote(name, safe="") for name in (a, b))
    return f"{up}#{urlencode({'pair': pair})}"
