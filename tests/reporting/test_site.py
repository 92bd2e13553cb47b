"""Tests the folder of pages that a report and its explanations make."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.app import app
from pipeline import api
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.errors import SourceError
from pipeline.reporting.html import site as sites
from pipeline.reporting.html.site import chosen_pairs
from pipeline.spec import Resources
from tests.reporting.test_report import matrix_of, with_estimates, with_nan
from tests.support import browser
from tests.support import tiny_network as tiny
from tests.support.browser import Reader
from tests.support.builders import write_photos

NAMES = ("group/a", "group/b", "c.d_e-f")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds three datasets of which two are in a group."""
    folder = tmp_path_factory.mktemp("built")
    network = tiny.install(folder)
    catalogue = Catalogue(str(folder / "catalogue"))
    requests = []
    for number, name in enumerate(NAMES):
        write_photos(folder / str(number), 12, 100 * number)
        requests.append(
            Request(name, str(folder / str(number)), exemplars=3, **network.options)  # type: ignore[arg-type]
        )
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue


def data_of(path: Path) -> dict[str, object]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text())
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


def test_pairs_that_differ_come_first_and_the_nearest_of_them_before_others() -> None:
    matrix = with_estimates(with_nan(matrix_of("a", "b", "c", "d"), 3), (0, 1))
    assert chosen_pairs(matrix) == [(1, 2), (0, 2), (0, 1)]
    assert chosen_pairs(matrix_of("a", "b")) == [(0, 1)]
    assert chosen_pairs(with_nan(matrix_of("a", "b"), 1)) == []


def test_a_site_is_a_report_and_explanations_that_it_names(
    built: Catalogue, tmp_path: Path
) -> None:
    made = api.report(built, site=str(tmp_path / "site"), samples=1, explained=2)
    index = tmp_path / "site/index.html"
    assert index.read_bytes() == made.html
    links = data_of(index)["explained"]
    assert isinstance(links, dict)
    assert len(links) == 2
    written = {str(path.relative_to(index.parent)) for path in index.parent.rglob("*.html")}
    assert written == {"index.html", *links.values()}
    names = made.matrices[0].names
    nearest = chosen_pairs(made.matrices[0])[:2]
    for (i, j), (key, link) in zip(sorted(nearest), sorted(links.items()), strict=True):
        assert key == f"{i}-{j}"
        assert data_of(index.parent / link)["names"] == [names[i], names[j]]
    again = api.report(built, samples=0, explained=2)
    assert b'"explained":{}' in again.html


def test_a_pair_that_cannot_be_explained_has_a_note_and_no_page(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise SourceError("the file is gone")

    monkeypatch.setattr(sites, "explain", gone)
    made = api.report(built, site=str(tmp_path / "site"), samples=0, explained=1)
    assert data_of(tmp_path / "site/index.html")["explained"] == {}
    assert any("cannot be explained: the file is gone" in note for note in made.notes)


def test_the_command_writes_a_site_and_no_other_page(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["report", "-c", built.root, "--site", "here", "--samples", "0", "--explained", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "is in here/index.html" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
    assert len(list((tmp_path / "here/pairs").iterdir())) == 1


@browser.needed
def test_a_reader_goes_from_the_report_to_an_explanation_and_back(
    reader: Reader, built: Catalogue, tmp_path: Path
) -> None:
    made = api.report(built, site=str(tmp_path / "site"), samples=1, explained=3)
    index = tmp_path / "site/index.html"
    reader.open(index)
    names, upper = made.matrices[0].names, np.triu_indices(3, 1)
    far = int(np.argmax(made.matrices[0].corrected()[upper]))
    i, j = int(upper[0][far]), int(upper[1][far])
    reader.run("show(arguments[0], arguments[1], false)", i, j)
    title = f"{names[i]} and {names[j]}, all neurons"
    reader.wait(lambda: reader.text("pair-title") == title)
    reader.driver.find_element("css selector", "#pair-body a").click()
    reader.wait(lambda: reader.text("title") == f"Why {names[i]} and {names[j]} differ")
    reader.driver.find_element("css selector", "#back a").click()
    reader.wait(lambda: reader.text("pair-title") == title)
    assert reader.console_messages() == []
