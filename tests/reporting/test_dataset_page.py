"""Tests the page of one dataset: what it says is what the catalogue and the distances have."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, PastVersion
from pipeline.comparing import Matrix, compare
from pipeline.engine import InProcess
from pipeline.errors import CorruptFile
from pipeline.reporting.dataset_words import place_among
from pipeline.reporting.html import dataset_page
from pipeline.reporting.html.dataset_page import (
    PAGE_IMAGES,
    DatasetPage,
    gather_dataset,
    only_last_plane,
    render_dataset,
)
from pipeline.reporting.html.frame import MOST
from pipeline.reporting.html.links import Addresses
from pipeline.reporting.html.page_data import Panel, RankingLink, Sample
from pipeline.spec import Resources
from tests.reporting.test_browser import HOSTILE, PIXEL, matrix_at
from tests.reporting.test_repeat_pictures import repeats_of
from tests.reporting.test_report import matrix_of, with_estimates, with_nan
from tests.support import browser
from tests.support import tiny_network as tiny
from tests.support.browser import Reader
from tests.support.builders import version_without_files, write_photos


def where_of(matrix: Matrix, **pairs: str) -> Addresses:
    """Addresses of pages of which some pairs have one: `p0_2="…"`."""
    return Addresses(
        "../index.html",
        [f"{i}.html" for i in range(len(matrix.names))],
        lambda i, j: pairs.get(f"p{i}_{j}", ""),
        [RankingLink(matrix.names[0], "photos by distance", "../rankings/r.html")],
    )


def page_of(matrix: Matrix, name: str, **more: object) -> DatasetPage:
    panel = Panel("7 images", (("dna", "ab"),), samples=(Sample("a.jpg", PIXEL),) * 3)
    version = replace(version_without_files("1", "s"), source="s3://bucket", images=1200)
    return replace(DatasetPage(name, version, panel, matrix), **more)  # type: ignore[arg-type]


def listed(page: bytes) -> list[tuple[list[str], list[str]]]:
    """Returns of each row of the distances its links, and its texts."""
    (rows,) = re.findall(r'<ol class="distances">(.*?)</ol>', page.decode(), re.DOTALL)
    return [
        (
            [unescape(link) for link in re.findall(r'href="([^"]*)"', row)],
            [unescape(text) for text in re.split(r"(?:<svg.*?</svg>|<[^>]*>)+", row) if text],
        )
        for row in re.findall(r"<li>(.*?)</li>", rows, re.DOTALL)
    ]


# Where it lies.


def test_the_nearest_and_the_farthest_that_are_told_apart_are_named() -> None:
    matrix = with_estimates(matrix_of("a", "b", "c", "d", scale=30.0), (1, 2))
    assert place_among(matrix, "b") == (
        "b cannot be told apart from c. Of the other 2 the nearest is a (9.0 bins, 95% interval "
        "8.5 to 9.5), the farthest d (19.0 bins, 95% interval 18.5 to 19.5)."
    )


@pytest.mark.parametrize(
    ("alike", "said"),
    [
        ([(0, 1), (0, 2)], "a cannot be told apart from any other dataset, such as b and c."),
        (
            [(0, 1)],
            "a cannot be told apart from b. Only c (29.0 bins, 95% interval 28.5 to 29.5) is told "
            "apart.",
        ),
    ],
)
def test_what_cannot_be_told_apart_is_never_called_near(
    alike: list[tuple[int, int]], said: str
) -> None:
    assert place_among(with_estimates(matrix_of("a", "b", "c", scale=30.0), *alike), "a") == said


def test_what_is_not_tested_or_not_defined_is_said() -> None:
    plain = matrix_of("a", "b", "c", scale=30.0)
    assert place_among(plain, "a") == (
        "Of 2 other datasets the nearest is b (15.0 bins), the farthest c (30.0 bins). Whether "
        "they differ is not tested."
    )
    lone = with_nan(matrix_of("a", "b", "c", scale=30.0), 2)
    assert place_among(lone, "c") == "c is at no distance that is defined from any other dataset."
    assert place_among(lone, "a") == (
        "The one distance that is known is that to b (15.0 bins). Whether they differ is not "
        "tested."
    )
    two = with_estimates(matrix_of("a", "b", scale=30.0))
    assert place_among(two, "a") == (
        "The one distance that is known is that to b (29.0 bins, 95% interval 28.5 to 29.5)."
    )
    untested = with_estimates(matrix_of("a", "b", "c", scale=30.0), (0, 1))
    untested.estimates["q"][:, 0, 2] = np.nan
    assert "apart from b. All but c (29.0 bins, " in place_among(untested, "a")


# The list of distances.


def test_all_others_are_listed_by_distance_with_links_to_their_pages_and_pairs() -> None:
    matrix = with_estimates(matrix_of("a", "b", "c/é", "d", scale=30.0), (1, 2))
    page = render_dataset(page_of(matrix, "c/é"), where_of(matrix, p0_2="../pairs/x.html"))
    up, c = "../index.html#pair=c%252F%25C3%25A9", "9.0 [8.5, 9.5]"
    assert listed(page) == [
        (["1.html", f"{up}+b"], ["b", f"{c}, not told apart", "both in the report"]),
        (["3.html", f"{up}+d"], ["d", c, "both in the report"]),
        (["0.html", "../pairs/x.html"], ["a", "19.0 [18.5, 19.5]", "why they differ"]),
    ]
    assert b"corrected for the sizes of the samples, with 95% intervals." in page


@pytest.mark.parametrize("seed", range(3))
def test_the_list_has_every_other_dataset_in_the_order_of_the_corrected_distances(
    seed: int,
) -> None:
    matrix = with_nan(with_estimates(matrix_at(12, seed=seed)), 5)
    for column in ("emd_corrected", "low", "high", "q"):
        matrix.estimates[column][:, 5] = matrix.estimates[column][:, :, 5] = np.nan  # type: ignore[index]
    name = matrix.names[seed]
    page = render_dataset(page_of(only_last_plane(matrix), name), where_of(matrix))
    own = matrix.corrected()[seed]
    order = [int(j) for j in np.argsort(own) if j != seed and np.isfinite(own[j])]
    assert [links[0] for links, _ in listed(page)] == [f"{j}.html" for j in order]
    assert b"1 at no distance that is defined." in page


def test_intervals_are_drawn_to_one_scale() -> None:
    matrix = with_estimates(matrix_of("a", "b", "c", scale=30.0), (0, 1))
    page = render_dataset(page_of(matrix, "a"), where_of(matrix)).decode()
    drawn = re.findall(r'd="M([\d.]+) 7H([\d.]+)"/><circle class="[^"]*" cx="([\d.]+)"', page)
    bars = [tuple(map(float, found)) for found in drawn]
    assert len(bars) == 2
    scale = (bars[1][2] - bars[0][2]) / (29 - 14)
    for (low, high, at), value in zip(bars, (14, 29), strict=True):
        assert (low, high) == pytest.approx((at - scale / 2, at + scale / 2), abs=0.11)
        assert at == pytest.approx(4 + scale * value, abs=0.11)
    assert page.count('class="point alike"') == page.count("not told apart<") == 1
    plain = render_dataset(page_of(matrix_of("a", "b", "c"), "a"), where_of(matrix)).decode()
    assert '<path class="bar"' not in plain
    assert "Not tested: there are no error bars" in plain


def test_a_page_of_hundreds_of_datasets_is_far_below_the_limit() -> None:
    matrix = with_estimates(matrix_of(*(f"group/{'x' * 40}{k}" for k in range(600))))
    images = [Sample("name.jpg", f"data:image/webp;base64,{'A' * 12_000}")] * PAGE_IMAGES
    panel = Panel("7 images", samples=tuple(images))
    page = render_dataset(page_of(matrix, matrix.names[0], panel=panel), where_of(matrix))
    assert page.count(b"<li>") > 599 + PAGE_IMAGES
    assert len(page) < MOST // 5


# The rest of the page.


def test_the_page_says_first_how_many_images_of_where_and_links_back() -> None:
    matrix = with_estimates(matrix_of("a/b", "c", "d"))
    page = render_dataset(page_of(matrix, "a/b"), where_of(matrix)).decode()
    headline = re.search(r'<p id="headline">(.*?)</p>', page)
    assert headline
    assert headline[1].startswith("1,200 images of s3://bucket. Of 2 other datasets the nearest")
    nav = re.search(r'<nav id="back"[^>]*>(.*?)</nav>', page)
    assert nav
    assert re.findall(r'href="([^"]*)">([^<]*)', nav[1]) == [
        ("../index.html#dataset=a%2Fb", "All datasets"),
        ("../rankings/r.html", "photos by distance"),
    ]
    assert page.count("<img") == 3
    other = render_dataset(page_of(matrix, "c"), where_of(matrix)).decode()
    assert "../rankings/r.html" not in other
    assert "Nothing is out of the ordinary" in other


def test_its_parts_lead_to_their_pages_and_its_versions_are_a_table() -> None:
    matrix = with_estimates(matrix_of("all", "all/rain", "all/sun"))
    part = version_without_files("2", "s")
    history = [PastVersion(replace(part, images=7), 12, "2026-01-02T03:04:05+00:00", "vdna 9", 12)]
    page = render_dataset(
        page_of(
            matrix,
            "all",
            known=("It is divided into parts by weather.",),
            parts={"all/sun": part, "all/rain": part, "gone": part},
            history=history,
        ),
        where_of(matrix),
    ).decode()
    parts = [
        f"{named} ({part.images} images)"
        for named in ('<a href="1.html">all/rain</a>', '<a href="2.html">all/sun</a>', "gone")
    ]
    assert f"Its parts: {', '.join(parts)}." in page
    row = re.search(r"<tbody><tr>(.*?)</tr></tbody>", page)
    assert row
    cells = re.sub(r"<[^>]*>", "|", row[1])
    assert cells.startswith("|12||2026-01-02 03:04||7|")
    assert cells.endswith("|vdna 9|")


@browser.needed
def test_hostile_texts_are_shown_and_never_run(reader: Reader, tmp_path: Path) -> None:
    matrix = replace(matrix_of("a", "b"), names=(HOSTILE, f"{HOSTILE}2"))
    panel = Panel(
        HOSTILE,
        ((HOSTILE, HOSTILE),),
        ((HOSTILE, 3),),
        (HOSTILE,),
        (Sample(HOSTILE, PIXEL),),
        (HOSTILE,),
    )
    version = replace(version_without_files("1", "s"), source=HOSTILE, failed=30)
    page = page_of(
        matrix,
        HOSTILE,
        panel=panel,
        version=version,
        known=(HOSTILE,),
        parts={HOSTILE: version},
        history=[PastVersion(version, 1, HOSTILE, HOSTILE, 1)],
        shared=((HOSTILE, HOSTILE),),
        about=HOSTILE,
        repeats=repeats_of(HOSTILE),
    )
    path = tmp_path / "page.html"
    path.write_bytes(render_dataset(page, where_of(matrix)))
    reader.driver.get(path.as_uri())
    reader.run("document.querySelector('details').open = true")
    assert reader.driver.title == HOSTILE
    text = "return document.body.textContent"
    assert reader.run(text).count(HOSTILE) >= 15
    assert reader.run("return window.hurt === undefined")
    assert reader.run("return document.querySelectorAll('script, img:not(.wall img)').length") == 0
    reader.assert_no_request_and_no_message(path)


@browser.needed
@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_fits_a_phone_and_a_wide_screen(
    reader: Reader, tmp_path: Path, width: int
) -> None:
    matrix = with_estimates(matrix_of(*(f"group/{'long-name-' * 9}{k}" for k in range(30))))
    path = tmp_path / "page.html"
    page = page_of(matrix, matrix.names[3], repeats=repeats_of("long-name-" * 30))
    path.write_bytes(render_dataset(page, where_of(matrix)))
    reader.set_window(width)
    reader.driver.get(path.as_uri())
    assert reader.run("return document.documentElement.scrollWidth <= innerWidth")
    whole = "return [...document.querySelectorAll('.wall img')].map((of) => of.clientWidth)"
    assert set(reader.run(whole)) == {72 if width == 400 else 96}


# Gathering.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds a dataset with labels, groups, parts and a failure, and another one, twice."""
    folder = tmp_path_factory.mktemp("built")
    network = tiny.install(folder)
    catalogue = Catalogue(str(folder / "catalogue"))
    photos = write_photos(folder / "photos", 24)
    photos[5].write_bytes(b"no image")
    lines = [
        f"photos/{path.name},{'rain' if k % 2 else 'sun'},drive{k // 4},cam{k % 3}"
        for k, path in enumerate(photos)
    ]
    table = folder / "table.csv"
    table.write_text("\n".join(["path,weather,drive,camera", *lines]))
    write_photos(folder / "other", 12, 100)
    resources = Resources(workers=0, threads=2)

    def build(request: Request) -> None:
        build_datasets(catalogue, [request], InProcess(), resources)

    options: dict[str, object] = {**network.options, "exemplars": 0}
    build(Request("other", str(folder / "other"), limit=8, **options))  # type: ignore[arg-type]
    build(
        Request("all", str(table), by="weather", group_by="drive", max_failures=2, **options)  # type: ignore[arg-type]
    )
    build(Request("other", str(folder / "other"), **options))  # type: ignore[arg-type]
    return catalogue


def gathered(built: Catalogue, name: str, **more: object) -> DatasetPage:
    return gather_dataset(built, name, compare(built), built.at(), **more)  # type: ignore[arg-type]


def test_all_that_the_catalogue_knows_is_gathered(built: Catalogue) -> None:
    page = gathered(built, "all")
    assert len(page.panel.samples) == 23
    assert page.known == (
        "It is divided into parts by weather.",
        "Its images have labels weather, drive and camera.",
        "Its images are in groups, which error bars keep together.",
    )
    assert sorted(page.parts or ()) == ["all/rain", "all/sun"]
    text = render_dataset(page, where_of(page.matrix)).decode()
    assert "23 images of " in text
    assert "1 more could not be read." in text
    assert re.search(r"23 images: .*backend torch, .*torch 2", text)
    assert re.search(r"Not counted: 1 &times; [\w ]+<ul class=\"quiet\"><li>[^<]*photo-0005", text)
    part = gathered(built, "all/rain")
    assert part.known[0] == "It is the part of all where weather is rain."


def test_images_are_those_of_the_strip_and_more(built: Catalogue) -> None:
    few, many = (gathered(built, "other", samples=count).panel.samples for count in (3, 12))
    assert many[:3] == few
    assert len(set(many)) == 12
    assert gathered(built, "other", samples=0).panel.samples == ()
    assert PAGE_IMAGES == 60


def test_versions_are_those_of_the_log_up_to_the_commit_that_was_compared(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def versions(name: str, number: int) -> list[tuple[int, int]]:
        at = built.at(number)
        page = gather_dataset(built, name, compare(built), at, samples=0)
        return [(past.commit, past.version.images) for past in page.history]

    assert versions("other", 3) == [(3, 12), (1, 8)]
    assert versions("other", 2) == [(1, 8)]
    assert versions("all", 3) == [(2, 23)]
    monkeypatch.setattr(dataset_page, "READ_COMMITS", 2)
    assert versions("other", 3) == [(3, 12), (2, 8)]
    assert any("newest 2 of 3 commits" in note for note in gathered(built, "other").panel.notes)


def test_what_cannot_be_read_becomes_a_note(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: object) -> None:
        raise CorruptFile("the file is torn")

    monkeypatch.setattr(Catalogue, "manifest", torn)
    monkeypatch.setattr(dataset_page, "version_histories", torn)
    page = gathered(built, "other", samples=0)
    assert page.known == ("The list of its images cannot be read: the file is torn",)
    assert "the versions cannot be read: the file is torn" in page.panel.notes
    assert "None is known." in render_dataset(page, where_of(page.matrix)).decode()


def test_what_is_held_of_a_matrix_is_its_last_plane_alone(built: Catalogue) -> None:
    whole = compare(built)
    slim = only_last_plane(whole)
    assert slim.planes == whole.planes[-1:]
    for column in ("emd_corrected", "low", "high", "q"):
        np.testing.assert_array_equal(slim.of(column=column), whole.of(column=column))  # type: ignore[arg-type]
    assert slim.emd.base is None
