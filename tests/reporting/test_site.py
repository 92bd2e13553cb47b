"""Tests the folder of pages that a report and its explanations make."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.app import app
from pipeline import api, storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, Commit, Version
from pipeline.engine import InProcess
from pipeline.errors import SourceError, UsageError
from pipeline.explaining import RankRequest, rank, read_ranking
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
    links = data_of(index)["explained"]
    assert isinstance(links, dict)
    assert len(links) == 2
    written = {str(path.relative_to(index.parent)) for path in index.parent.rglob("*.html")}
    own = data_of(index)["dataset_pages"]
    assert isinstance(own, list)
    assert written == {"index.html", *links.values(), *own}
    names = made.matrices[0].names
    titles = [re.search(r"<h1>(.*?)</h1>", (index.parent / page).read_text()) for page in own]
    assert [found and found[1] for found in titles] == list(names)
    nearest = chosen_pairs(made.matrices[0])[:2]
    for (i, j), (key, link) in zip(sorted(nearest), sorted(links.items()), strict=True):
        assert key == f"{i}-{j}"
        assert data_of(index.parent / link)["names"] == [names[i], names[j]]
        assert data_of(index.parent / link)["dataset_pages"] == [f"../{own[i]}", f"../{own[j]}"]
    assert b'"explained":{}' in made.html
    assert b'"dataset_pages":[]' in made.html
    assert made.html == api.report(built, samples=1).html


def test_every_link_between_the_pages_of_a_site_leads_to_a_page_of_it(
    built: Catalogue, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    made = api.report(built, site=str(site), samples=1, explained=2)
    own = data_of(site / "index.html")["dataset_pages"]
    assert isinstance(own, list)
    names, seen = made.matrices[0].names, []
    for page in own:
        text = (site / page).read_text()
        assert text.count("<img") == 12  # more than on the report, and all that there are
        links = re.findall(r'href="([^"#]+\.html)(#[^"]*)?"', text)
        assert all((site / "datasets" / link).resolve().is_file() for link, _ in links)
        seen += [link for link, _ in links if "pairs/" in link]
        others = {link for link, _ in links if "/" not in link}
        assert others == {Path(of).name for of in own} - {Path(page).name}
    assert len(seen) == 4  # each of two explanations is linked from both of its datasets
    assert len(names) == len(own) == 3


def test_pages_of_datasets_that_are_gone_are_removed(built: Catalogue, tmp_path: Path) -> None:
    folder, site = Path(storage.local_path(built.root)).parent, tmp_path / "site"
    shutil.copytree(folder / "catalogue", tmp_path / "catalogue")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    api.report(catalogue, site=str(site), samples=0, explained=0)
    before = set((site / "datasets").iterdir())
    catalogue.append("remove", lambda head: replace(head, datasets=without(head, NAMES[1])))
    api.report(catalogue, site=str(site), samples=0, explained=0)
    left = set((site / "datasets").iterdir())
    assert (len(before), len(left)) == (3, 2)
    assert left < before
    assert {f"datasets/{path.name}" for path in left} == set(
        data_of(site / "index.html")["dataset_pages"]  # type: ignore[call-overload]
    )


def without(head: Commit, name: str) -> dict[str, Mapping[str, Version]]:
    return {of: versions for of, versions in head.datasets.items() if of != name}


def test_of_many_datasets_each_page_shows_fewer_images(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(samples: int) -> list[int]:
        api.report(built, site=str(tmp_path), samples=samples, explained=0)
        pages = sorted((tmp_path / "datasets").iterdir())
        return [path.read_text().count("<img") for path in pages]

    assert images(0) == [0, 0, 0]
    monkeypatch.setattr(sites, "ALL_PAGE_IMAGES", 14)
    assert images(6) == [4, 4, 4]
    monkeypatch.setattr(sites, "ALL_PAGE_IMAGES", 2)
    assert images(6) == [1, 1, 1]


def test_images_that_take_too_long_are_left_out_of_the_pages_of_datasets(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites, "SAMPLING_SECONDS", -1.0)
    api.report(built, site=str(tmp_path), samples=1, explained=0)
    for path in (tmp_path / "datasets").iterdir():
        assert "further samples are left out: reading took too long" in path.read_text()


def test_a_page_beside_a_site_has_no_links_to_files_that_are_not_there(
    built: Catalogue, tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    made = api.report(built, str(out), site=str(tmp_path / "site"), samples=0, explained=1)
    assert data_of(tmp_path / "site/index.html")["explained"]
    assert data_of(out)["explained"] == {}
    assert out.read_bytes() == made.html


def test_explanations_of_an_earlier_report_are_removed_and_no_other_file(
    built: Catalogue, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    api.report(built, site=str(site), samples=0, explained=3)
    first = {path.name for path in (site / "pairs").iterdir()}
    assert len(first) == 3
    others = ("pairs/0123456789abcdef.html", "pairs/notes.html", "mine.html")
    for name in others:
        (site / name).write_text("mine")
    api.report(built, site=str(site), samples=0, explained=1)
    links, own = (data_of(site / "index.html")[kind] for kind in ("explained", "dataset_pages"))
    assert isinstance(links, dict)
    assert isinstance(own, list)
    left = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert left == {"index.html", *links.values(), *own, *others}
    # A file of that name that is no report, or a forged one, has nothing removed.
    strange = {"0-1": "../mine.html", "0-2": "mine.html", "1-2": 7}
    data = json.dumps(
        {
            "explained": strange,
            "rankings": [{"href": "rankings/../mine.html"}],
            "dataset_pages": ["datasets/../mine.html", "pairs/notes.html", 7],
        }
    )
    for text in (f'<script id="data" type="application/json">{data}</script>', "no report"):
        (site / "index.html").write_text(text)
        api.report(built, site=str(site), samples=0, explained=1)
        assert {str(path.relative_to(site)) for path in site.rglob("*.html")} == left


@pytest.mark.parametrize("kind", ["file", "s3", "memory"])
def test_pages_of_an_interrupted_report_are_removed_and_no_other_file(
    built: Catalogue,
    ranked: str,
    tmp_path: Path,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Its index was not written, so that nothing names its pages but themselves."""
    places = {
        "file": str(tmp_path / "here [1]*"),
        "s3": root,
        "memory": f"memory://{tmp_path.name}",
    }
    site = storage.canonical(places[kind])

    def there() -> set[str]:
        return {item.uri.removeprefix(f"{site}/") for item in storage.walk(site)}

    def killed(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sites, "render_matrix_page", killed)
        with pytest.raises(KeyboardInterrupt):
            api.report(built, site=places[kind], samples=0, explained=3, rankings=[ranked])
    (ranking,) = {link for link in there() if link.startswith("rankings/")}
    page = storage.read(storage.join(site, ranking))
    others = {"pairs/0123456789abcdef.html": b"mine", "pairs/notes.html": page, "mine.html": page}
    others |= {f"pairs/deeper/{ranking.rpartition('/')[2]}": page, ranking[:-1]: page}
    for name, data in others.items():
        storage.replace(storage.join(site, name), data)
    assert len(there()) == 7 + len(others)
    api.report(built, site=places[kind], samples=0, explained=1)
    left = there() - others.keys()
    assert {name.partition("/")[0] for name in left} == {"index.html", "pairs", "datasets"}
    assert others.keys() <= there()
    assert len(left) == 5


def test_a_site_that_cannot_be_written_is_refused_before_anything_is_computed(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: object, **__: object) -> None:
        raise AssertionError("distances were computed")

    monkeypatch.setattr("pipeline.api.comparing.compare", computed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for site, why in (
        ("", "`site=''` names no folder"),
        (" ", "`site=' '` names no folder"),
        (str(tmp_path / "file"), "is a file; name the folder"),
        ("https://host/site", "takes no files"),
    ):
        with pytest.raises(UsageError, match=re.escape(why)):
            api.report(built, site=site)
    with pytest.raises(UsageError, match="`explained=2` needs `site`, the folder"):
        api.report(built, explained=2)
    for words, why in (
        (["--site", ""], "--site '' names no folder"),
        (["--explained", "2"], "--explained 2 needs --site, the folder"),
    ):
        done = CliRunner().invoke(app, ["report", "-c", built.root, *words])
        assert (done.exit_code, why in done.stderr) == (2, True), done.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
    assert done.output.endswith("MB), with pages of 3 datasets and 1 pair beside it\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
    assert len(list((tmp_path / "here/pairs").iterdir())) == 1
    done = CliRunner().invoke(app, [*words, "--out", "one.html"])
    where = "; it is also in here/index.html, with pages of 3 datasets and 1 pair beside it\n"
    assert "is in one.html (" in done.output
    assert done.output.endswith(f" MB){where}")


# Rankings.


@pytest.fixture(scope="module")
def ranked(built: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ranks the images of the second dataset by their distance to the first; gives the file."""
    folder = Path(storage.local_path(built.root)).parent
    weights = tiny.install(folder).weights
    out = str(tmp_path_factory.mktemp("ranked") / "near.parquet")
    request = RankRequest(str(folder / "1"), NAMES[0], weights=weights, top=2, out=out)
    rank(built, request, InProcess(), resources=Resources(workers=0, threads=2))
    return out


def test_a_site_has_the_rankings_that_are_named_and_all_pages_link_to_each_other(
    built: Catalogue, ranked: str, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    source = str(Path(storage.local_path(built.root)).parent / "1")
    api.report(built, site=str(site), samples=0, explained=3, rankings=[ranked])
    index = data_of(site / "index.html")
    (link,) = index["rankings"]  # type: ignore[misc]
    assert link["dataset"] == index["names"].index(NAMES[0])  # type: ignore[attr-defined]
    assert link["text"] == f"Images of {source} by distance to {NAMES[0]}"
    page = (site / link["href"]).read_text()
    assert page.count("<img") == 4
    assert '<span class="name" title="photo-0' in page  # its place in the source, which is named
    found = re.findall(r'<a href="([^"]*)">([^<]*)</a>', page)
    assert found == [
        ("../index.html", "All datasets"),
        ("../index.html#dataset=group%2Fa", "group/a among them"),
        ("../index.html#pair=group%252Fb+group%252Fa", "How group/b and group/a differ"),
    ]
    for explained in index["explained"].values():  # type: ignore[attr-defined]
        why = data_of(site / explained)
        own = [[link["text"], f"../{link['href']}"]] if NAMES[0] in why["names"] else []  # type: ignore[operator]
        assert why["links"][1:] == own  # type: ignore[index]
        assert why["links"][0][0] == "All datasets"  # type: ignore[index]
    api.report(built, site=str(site), samples=0, explained=0)
    assert [path.name for path in site.glob("*/*.html") if path.parent.name != "datasets"] == []


def test_rankings_of_one_title_have_a_page_each_and_say_in_what_they_differ(
    built: Catalogue, ranked: str, tmp_path: Path
) -> None:
    plain = replace(read_ranking(built, ranked), background={})
    background = {NAMES[1]: "1" * 32, NAMES[2]: "2" * 32}
    scored = [replace(plain, background=background, ranked=n) for n in (1, 2)]
    api.report(built, site=str(tmp_path), samples=0, explained=0, rankings=[plain, *scored])
    links = data_of(tmp_path / "index.html")["rankings"]
    title = links[0]["text"].partition(", by the ")[0]  # type: ignore[index]
    score = f"{title}, by the score against {NAMES[1]} and {NAMES[2]}"
    assert [link["text"] for link in links] == [  # type: ignore[attr-defined]
        f"{title}, by the distance alone",
        *(score, score),
    ]
    pages = [(tmp_path / link["href"]).read_text() for link in links]  # type: ignore[attr-defined]
    assert [len(list((tmp_path / "rankings").iterdir())), len(set(pages))] == [3, 3]
    assert ["less three quarters" in page for page in pages] == [False, True, True]


def test_a_ranking_that_cannot_be_shown_is_refused_before_anything_is_computed(
    built: Catalogue, ranked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: object, **__: object) -> None:
        raise AssertionError("distances were computed")

    monkeypatch.setattr("pipeline.api.comparing.compare", computed)
    site = str(tmp_path / "site")
    with pytest.raises(UsageError, match="a ranking needs `site`, the folder"):
        api.report(built, rankings=[ranked])
    with pytest.raises(SourceError, match=re.escape("none.parquet")):
        api.report(built, site=site, rankings=[str(tmp_path / "none.parquet")])
    words = ["report", "-c", built.root, "--ranking", ranked]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "a ranking needs --site" in done.stderr) == (2, True), done.output
    assert list(tmp_path.iterdir()) == []


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
    reader.driver.find_element("css selector", "#pair-body p:not(.side) a").click()
    titles = f"Why {names[i]} and {names[j]} differ", f"{names[i]} and {names[j]} compared"
    reader.wait(lambda: reader.text("title") in titles)
    reader.driver.find_element("css selector", "#back a").click()
    reader.wait(lambda: reader.text("pair-title") == title)
    assert reader.console_messages() == []


@browser.needed
def test_a_reader_goes_through_the_pages_of_datasets_and_back(
    reader: Reader, built: Catalogue, tmp_path: Path
) -> None:
    index = tmp_path / "site/index.html"
    api.report(built, site=str(index.parent), samples=1, explained=1)
    names, (pair,) = data_of(index)["names"], data_of(index)["explained"]  # type: ignore[misc]
    i, j = map(int, pair.split("-"))
    a, b = names[i], names[j]  # type: ignore[index]
    heading = "return document.querySelector('h1')?.textContent"

    def press(place: str, text: str) -> None:
        links = reader.driver.find_elements("css selector", f"{place} a")
        next(link for link in links if link.text == text).click()

    reader.open(index)
    press("#strips", f"More of {a}")
    reader.wait(lambda: reader.run(heading) == a)
    assert reader.run("return document.querySelectorAll('.wall img').length") == 12
    press(".distances", b)
    reader.wait(lambda: reader.run(heading) == b)
    row = f"//ol/li[a[1][text()='{a}']]/a[2]"
    reader.driver.find_element("xpath", row).click()
    pairs = f"{a} and {b}", f"{b} and {a}"
    reader.wait(lambda: reader.text("title").removesuffix(" compared") in pairs)
    press("#title", b)
    reader.wait(lambda: reader.run(heading) == b)
    press("#back", "All datasets")
    reader.wait(lambda: reader.text("chosen").startswith(f"{b} is chosen."))
    reader.run("show(arguments[0], arguments[1], false)", i, j)
    reader.wait(lambda: reader.text("pair-title") == f"{a} and {b}, all neurons")
    press("#pair-body .first-name", a)
    reader.wait(lambda: reader.run(heading) == a)
    assert reader.console_messages() == []
