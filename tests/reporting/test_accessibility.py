"""Tests with axe-core that no page keeps people out: contrast, names of controls, roles, headings.

Each page is looked at on a phone and on a wide screen, in both schemes, with all of it unfolded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from pipeline.catalogue import PastVersion
from pipeline.explaining import PairNeuron
from pipeline.reporting import render_explanation, render_gallery
from pipeline.reporting.html.dataset_page import DatasetPage, render_dataset
from pipeline.reporting.html.explanation_page import ShownImage
from pipeline.reporting.html.gallery import Gallery, GalleryImage, Row
from pipeline.reporting.html.links import Addresses
from pipeline.reporting.html.page_data import Link, Panel, RankingLink, Sample, Seen
from tests.reporting.test_browser import PIXEL, matrix_at, pictured, write
from tests.reporting.test_explanation_page import hand_made, keys_of, why_of
from tests.reporting.test_repeat_pictures import repeats_of
from tests.reporting.test_report import with_estimates
from tests.support import browser
from tests.support.browser import Reader
from tests.support.builders import version_without_files

pytestmark = browser.needed
UNFOLD = "for (const closed of document.querySelectorAll('details')) closed.open = true"
LOOKS = pytest.mark.parametrize(("width", "scheme"), list(product((400, 1600), ("light", "dark"))))


def report_page(folder: Path) -> Path:
    matrix = with_estimates(matrix_at(8, layers=6), (0, 1))
    neuron = PairNeuron("blocks.2", 7, 12.5, -1.0, 2.0, (0, 999, 3), (999, 0, 1), 0.4)
    pairs = {(i, j): [neuron] * 2 for i in range(8) for j in range(i + 1, 8)}
    lens = replace(matrix, lens="sharp", lens_digest="5a")
    return write(
        folder / "report.html",
        matrix,
        matrices=[matrix, lens],
        panels=pictured(matrix),
        seen=[Seen(pairs), Seen(pairs)],
        notes=("A note.",),
        network=matrix.layers,
        snapshot=("--at", "3"),
        rankings=[RankingLink(matrix.names[0], "photos by distance", "ranking.html")],
        dataset_pages=[f"{i}.html" for i in range(8)],
    )


def explanation(folder: Path) -> Path:
    found = hand_made(3, 4, "some")
    shown = {
        key: ShownImage(
            "a.jpg", "s3://bucket/a.jpg", "" if k % 2 else PIXEL, "gone" if k % 2 else ""
        )
        for k, key in enumerate(keys_of(found))
    }
    path = folder / "why.html"
    path.write_bytes(
        render_explanation(
            why_of(found, shown, "some"),
            [Link("All datasets", "report.html")],
            ["0.html", "1.html"],
        )
    )
    return path


def ranking(folder: Path) -> Path:
    shown = [GalleryImage("photo.jpg", ("#1: 7.77", "blocks.2: 3.1"), PIXEL)] * 3
    gone = GalleryImage("gone.jpg", ("#2: 7.78",), missing="cannot be read again: it is gone")
    rows = [Row("Nearest", [*shown, gone]), Row("Farthest", shown, "Some words.")]
    links = [Link("All datasets", "report.html"), Link("a among them", "report.html#dataset=a")]
    path = folder / "ranking.html"
    gallery = Gallery(
        "photos by distance to a", rows, "In bins.", ("A note.",), (("lens", "no"),), links
    )
    path.write_bytes(render_gallery(gallery))
    return path


def dataset(folder: Path) -> Path:
    matrix = with_estimates(matrix_at(8), (0, 1))
    samples = tuple(Sample(f"{k}.jpg", PIXEL) for k in range(9))
    panel = Panel(
        "7 images",
        (("dna", "5a"),),
        (("truncated", 3),),
        ("a.jpg: truncated",),
        samples,
        ("A note.",),
    )
    version = replace(version_without_files("1", "s"), failed=3)
    path = folder / "dataset.html"
    page = DatasetPage(
        matrix.names[0],
        version,
        panel,
        matrix,
        ("It is divided into parts by weather.",),
        {matrix.names[1]: version},
        [PastVersion(version, 3, "2026-01-02T03:04:05", "vdna", 3)] * 2,
        (("spec", "ab"),),
        "Where it comes from.",
        repeats_of("a.jpg"),
    )
    own = [f"{i}.html" for i in range(8)]
    where = Addresses("report.html", own, lambda i, j: "" if j % 2 else "why.html")
    path.write_bytes(render_dataset(page, where))
    return path


@LOOKS
@pytest.mark.parametrize("make", [report_page, explanation, ranking, dataset])
def test_no_page_keeps_people_out(
    reader: Reader, tmp_path: Path, make: Callable[[Path], Path], width: int, scheme: str
) -> None:
    reader.set_window(width, scheme=scheme)
    reader.driver.get(make(tmp_path).as_uri())
    reader.run(UNFOLD)
    assert reader.barriers() == []


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_pages_keep_nobody_out_while_they_are_used(
    reader: Reader, tmp_path: Path, width: int, scheme: str
) -> None:
    reader.set_window(width, scheme=scheme)
    reader.open(report_page(tmp_path))
    reader.driver.find_elements("css selector", "#strips button")[2].click()
    assert "is chosen" in reader.text("chosen")
    reader.find("filter").send_keys("none is called so")
    reader.wait(lambda: "No dataset" in reader.text("selected"))
    assert reader.barriers() == []
    reader.open(explanation(tmp_path))
    button = reader.driver.find_element("css selector", ".strip button")
    reader.run("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    reader.wait(partial(reader.find("selected").is_displayed))
    assert reader.barriers() == []


def test_a_barrier_is_found(reader: Reader, tmp_path: Path) -> None:
    """A check that finds nothing in any page would be worth nothing."""
    reader.open(report_page(tmp_path))
    reader.run(
        "document.getElementById('layer').closest('label').replaceWith(document.getElementById('layer'));"
        "document.documentElement.style.setProperty('--quiet', '#999')"
    )
    found = " ".join(reader.barriers())
    assert "critical select-name" in found
    assert "serious color-contrast" in found
