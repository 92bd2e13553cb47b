"""Tests the page in a browser: used by keyboard and mouse, it shows the matrix's numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from pipeline.comparing import Matrix, clusters
from pipeline.dna import Floats
from pipeline.explaining import PairNeuron
from pipeline.reporting import conclusions as report
from pipeline.reporting import headline as report_headline
from pipeline.reporting.html.gallery import Gallery, GalleryImage, Row, render_gallery
from pipeline.reporting.html.matrix_page import PAGE_COLUMNS, render_matrix_page
from pipeline.reporting.html.packing import pack
from pipeline.reporting.html.page_data import Page, Panel, Sample, Seen
from tests.reporting.test_report import matrix_of, with_estimates, with_single
from tests.support import browser
from tests.support.browser import Reader

pytestmark = browser.needed
PIXEL = "data:image/webp;base64,UklGRiQAAABXRUJQVlA4IBgAAAAwAQCdASoBAAEAAUAmJaQAA3AA/v02aAA="
HOSTILE = "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=1'>\"&\u2028é層"


def matrix_at(count: int, layers: int = 3, seed: int = 0) -> Matrix:
    """Makes points in five dimensions, which each layer sees differently."""
    rng = np.random.default_rng(seed)
    at = rng.normal(0, 10, (count, 5))
    planes = []
    for _ in range(layers + 1):
        seen = at * rng.random(5)
        planes.append(np.sqrt(((seen[:, None] - seen) ** 2).sum(axis=2)))
    emd = (np.stack(planes) + np.stack(planes).transpose(0, 2, 1)) / 2
    names = tuple(f"group/{i:03d}" for i in range(count))
    members = {name: f"{i:032x}" for i, name in enumerate(names)}
    taps = tuple(f"blocks.{k}" for k in range(layers))
    return Matrix(names, taps, emd, emd**2, np.full_like(emd, np.nan), 1000, members, "ab" * 16)


def panels(matrix: Matrix) -> list[Panel]:
    return [
        Panel(f"{7 + i} images", (("source", "s3://bucket"),)) for i in range(len(matrix.names))
    ]


def write(path: Path, matrix: Matrix, **more: Any) -> Path:
    page = Page([matrix], panels(matrix))
    path.write_bytes(render_matrix_page(replace(page, **more)))
    return path


def test_the_keyboard_walks_the_matrix_and_opens_a_pair(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(6), (0, 1))
    path = write(tmp_path / "page.html", matrix)
    reader.open(path)
    order = clusters(matrix.corrected()).order
    cursor = reader.find("cursor")
    cursor.send_keys(Keys.HOME, Keys.PAGE_UP, *[Keys.ARROW_DOWN] * 2, Keys.ARROW_RIGHT)
    i, j = order[2], order[1]
    assert f"{matrix.names[i]} and {matrix.names[j]}, all neurons" in reader.text("selected")
    corrected, low, high = (
        f"{matrix.of('all', column)[i, j]:#.4g}" for column in ("emd_corrected", "low", "high")
    )
    said = f"corrected distance, bins {corrected}, 95% interval {low} to {high}; they differ"
    assert said in reader.text("selected")
    assert reader.find("selected").get_attribute("aria-live") == "polite"
    cursor.send_keys(Keys.ENTER)
    reader.wait(lambda: matrix.names[i] in reader.text("pair-title"))
    assert reader.text("pair-title") == f"{matrix.names[i]} and {matrix.names[j]}, all neurons"
    assert f"95% interval {low} to {high}" in reader.text("pair-body")
    rows = "[...document.querySelectorAll('#pair-body .row')].map((row) => row.textContent)"
    barred = [text for text in reader.run(f"return {rows}") if "95% interval " in text]
    assert len(barred) == len(matrix.planes)
    assert reader.run("return document.activeElement.id") == "pair"
    for _ in range(30):
        cursor.send_keys(Keys.ARROW_UP)
    assert matrix.names[order[0]] in reader.text("selected")
    reader.assert_no_request_and_no_message(path)


def test_another_layer_shows_its_numbers_and_its_clusters(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(5, seed=3), (2, 3))
    reader.open(write(tmp_path / "page.html", matrix))
    reader.run("document.getElementById('numbers').open = true")
    for layer in ("blocks.1", "blocks.0"):
        reader.choose("layer", layer)
        order = clusters(matrix.corrected(layer)).order
        rows = reader.wait(
            lambda: reader.run(
                "return [...document.querySelectorAll('#numbers tbody tr')]"
                ".map((row) => [...row.children].map((cell) => cell.textContent))"
            )
        )
        assert [row[0] for row in rows] == [matrix.names[i] for i in order]
        values = matrix.corrected(layer)[np.ix_(order, order)]
        found = [[float(text.lstrip("~")) for text in row[1:]] for row in rows]
        assert np.array(found) == pytest.approx(values, rel=5e-4)
        assert sum(text.startswith("~") for row in rows for text in row) == 2
    reader.choose("quantity", "Fréchet distance of neurons")
    i, j = reader.run("return state.open")  # what the page began with
    nfd = f"Fréchet distance of neurons {matrix.of('blocks.0', 'nfd')[i, j]:#.4g}"
    assert nfd in reader.text("selected")
    assert "9 of 10 pairs differ" in reader.text("summary")
    reader.choose("order", "distance to …")
    reader.choose("origin", matrix.names[2])
    nearest = reader.run("return document.querySelectorAll('#numbers tbody th')[1].textContent")
    away = matrix.of("blocks.0", "nfd")[2]
    assert nearest == matrix.names[int(np.argsort(away)[1])]


def test_a_click_opens_a_pair_with_its_neurons(reader: Reader, tmp_path: Path) -> None:
    matrix = matrix_at(4)
    neuron = PairNeuron("blocks.2", 7, 12.5, -1.0, 2.0, (0, 999, 3), (999, 0, 1), 0.4)
    order = clusters(matrix.corrected()).order
    pair = (min(order[0], order[3]), max(order[0], order[3]))
    reader.open(write(tmp_path / "page.html", matrix, seen=[Seen({pair: [neuron]})]))
    reader.run("document.getElementById('cursor').scrollIntoView({ block: 'center' })")
    where = reader.run(
        "const box = document.getElementById('cursor').getBoundingClientRect();"
        "return [view.left + 3.5 * view.cell - box.width / 2,"
        " view.above + 0.5 * view.cell - box.height / 2]"
    )
    mouse = ActionChains(reader.driver).move_to_element_with_offset(reader.find("cursor"), *where)
    mouse.click().perform()
    reader.wait(lambda: "blocks.2, neuron 7: 12.50 bins" in reader.text("pair-body"))
    reader.wait(lambda: matrix.names[order[0]] in reader.text("tip"))
    assert f"not tested: {report.no_test(matrix)}" in reader.text("tip")
    assert reader.run("return document.querySelectorAll('#neurons path').length") == 2
    assert "There are no error bars." in reader.text("pair-body")
    assert f"is tested: {report.no_test(matrix)}" in reader.text("summary")


def test_the_page_opens_with_the_nearest_pair_that_differs(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(20), (0, 1))
    shown = matrix.corrected()
    pairs = [(i, j) for i in range(20) for j in range(i + 1, 20)]
    nearest = sorted(pairs, key=lambda pair: shown[pair])
    for near in nearest[:3]:  # not told apart
        matrix.estimates["q"][-1][near] = matrix.estimates["q"][-1][near[::-1]] = 0.6
    matrix.estimates["q"][-1][0, 1] = matrix.estimates["q"][-1][1, 0] = 0.6
    telling = [pair for pair in nearest if matrix.of("all", "q")[pair] < 0.05]

    def opened(neurons: dict[tuple[int, int], list[PairNeuron]]) -> str:
        reader.open(write(tmp_path / "page.html", matrix, seen=[Seen(neurons)]))
        return reader.text("pair-title")

    def title(pair: tuple[int, int]) -> str:
        return f"{matrix.names[pair[0]]} and {matrix.names[pair[1]]}, all neurons"

    assert opened({}) == title(telling[0])
    neuron = PairNeuron("blocks.0", 1, 2.0, 0.0, 1.0, (1,), (2,), 1.0)
    # A pair whose neurons are on the page is more useful than a nearer one.
    some = {pair: [neuron] for pair in (nearest[0], telling[7], telling[4])}
    assert opened(some) == title(telling[4])
    assert opened({nearest[0]: [neuron]}) == title(nearest[0])
    assert matrix.names[nearest[0][0]] in reader.text("selected")
    matrix.emd[:] = np.nan
    matrix.estimates.clear()
    assert opened({}).endswith(", all neurons")


def test_neurons_that_are_not_told_apart_are_marked(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(2), (0, 1))
    neurons = [
        replace(PairNeuron("blocks.0", k, 9.0, 0.0, 1.0, (1,), (2,), 1.0), corrected=interval, q=q)
        for k, (interval, q) in enumerate(
            [((8.5, 7.0, 9.75), 0.001), ((5.0, 0.0, 6.0), 0.07), (None, None)]
        )
    ]
    reader.open(write(tmp_path / "page.html", matrix, seen=[Seen({(0, 1): neurons})]))
    captions = (
        "return [...document.querySelectorAll('#neurons figure')].map((of) =>"
        " [of.querySelector('figcaption').textContent, of.classList.contains('alike')])"
    )
    assert reader.run(captions) == [
        ["blocks.0, neuron 0: 8.500 bins [7.0, 9.8], told apart", False],
        ["blocks.0, neuron 1: 5.000 bins [0, 6.0], not told apart", True],
        ["blocks.0, neuron 2: 9.000 bins", False],
    ]
    assert "tested over all neurons of the pair" in reader.text("pair-body")
    reader.choose("rate", "10%")
    assert [alike for _, alike in reader.run(captions)] == [False] * 3


def test_hostile_strings_are_shown_and_never_run(reader: Reader, tmp_path: Path) -> None:
    matrix = replace(matrix_of("a", "b", "c"), layers=(HOSTILE, "head"), lens=HOSTILE)
    panel = Panel(
        HOSTILE,
        ((HOSTILE, HOSTILE),),
        ((HOSTILE, 3),),
        (f"s3://bucket/{HOSTILE}.jpg: truncated: {HOSTILE}",),
        (Sample(HOSTILE, PIXEL),),
        (HOSTILE,),
    )
    neuron = PairNeuron(HOSTILE, 7, 12.5, -1.0, 2.0, (1,), (2,), 1.0)
    seen = Seen({(0, 1): [neuron]}, HOSTILE, (HOSTILE,))
    page = Page([matrix, matrix], [panel] * 3, [seen] * 2, HOSTILE, (HOSTILE,), HOSTILE)
    path = tmp_path / "page.html"
    path.write_bytes(render_matrix_page(page))
    reader.open(path)
    reader.choose("layer", HOSTILE)
    reader.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    strips = "return document.querySelectorAll('#strips .photos img').length"
    reader.wait(lambda: reader.run(strips) == 3)
    reader.find("cursor").send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ENTER)
    reader.wait(lambda: HOSTILE in reader.text("pair-title"))
    for shown in ("title", "about", "notes", "strips", "panels", "pair-body", "selected", "lens"):
        assert HOSTILE in reader.text(shown), shown
    assert reader.driver.title == HOSTILE
    assert reader.run("return window.hurt === undefined")
    assert reader.run("return document.querySelectorAll('script').length") == 2
    assert reader.run("return document.querySelectorAll('img:not(.photos img)').length") == 0
    reader.assert_no_request_and_no_message(path)


def test_the_content_policy_blocks_injected_scripts(reader: Reader, tmp_path: Path) -> None:
    """The policy protects where escaping does not."""
    path = write(tmp_path / "page.html", matrix_of("a", "b", "c"))
    added = (
        "<script>window.hurt=1</script><img src='https://example.com/x.png'>"
        "<p style='color:red' onclick='x'>"
    )
    path.write_text(path.read_text().replace("<header>", f"<header>{added}"))
    reader.open(path)
    assert reader.run("return window.hurt === undefined")
    refused = "\n".join(reader.console_messages())
    assert refused.count("Content Security Policy") >= 3
    assert reader.requests() == {path.as_uri()}


@pytest.mark.parametrize("count", [2, 11])
def test_the_page_fits_a_phone_in_dark_mode(reader: Reader, tmp_path: Path, count: int) -> None:
    matrix = with_estimates(matrix_at(count, layers=12), (0, 1))
    path = write(tmp_path / "page.html", matrix)
    background = "return getComputedStyle(document.body).backgroundColor"
    reader.open(path)
    light = reader.run(background)
    reader.set_window(400, scheme="dark")
    reader.open(path)
    reader.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    for width in (400, 1600):
        reader.set_window(width, scheme="dark")
        reader.wait(partial(reader.run, f"return innerWidth === {width}"))
        wide = "return document.documentElement.scrollWidth <= innerWidth"
        reader.wait(partial(reader.run, wide))
    dark = reader.run(background)
    assert light != dark
    assert (
        sum(map(int, dark.strip("rgb()").split(",")))
        < 150
        < sum(map(int, light.strip("rgb()").split(",")))
    )
    reader.assert_no_request_and_no_message(path)


def test_lenses_are_named_and_each_has_its_own_neurons(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(4), (0, 1))
    through = replace(matrix, lens="sharp", lens_digest="5a", emd=matrix.emd * 2)
    through.emd[0] = np.nan
    for values in through.estimates.values():
        values[0] = np.nan
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    shown = [
        Seen(
            {
                pair: [PairNeuron(layer, 5, 2.5, 0.0, 1.0, (1,), (2,), 1.0, weight)]
                for pair in pairs
            },
            "",
            no,
        )
        for layer, weight, no in (("blocks.1", 1.0, ()), ("blocks.2", -3.0, ("blocks.0",)))
    ]
    path = tmp_path / "page.html"
    path.write_bytes(render_matrix_page(Page([through], panels(matrix), shown[1:])))
    reader.open(path)
    reader.wait(lambda: "blocks.2, neuron 5" in reader.text("pair-body"))
    for identity in ("title", "matrix-title", "selected", "pair-title", "stress"):
        assert "through lens sharp" in reader.text(identity), identity
    assert reader.find("lens").is_displayed()
    assert "all neurons" not in reader.run("return document.body.innerText")
    reader.choose("layer", "blocks.1")
    assert reader.text("matrix-title").endswith(": blocks.1 through lens sharp")
    path.write_bytes(render_matrix_page(Page([matrix, through], panels(matrix), shown)))
    reader.open(path)
    reader.wait(lambda: "blocks.1, neuron 5: 2.500 bins" in reader.text("pair-body"))
    assert "weight" not in reader.text("pair-body")
    assert "all neurons" in reader.text("matrix-title")
    reader.choose("lens", "sharp")
    reader.wait(lambda: "blocks.2, neuron 5: 2.500 bins, weight -3.000" in reader.text("pair-body"))
    assert "blocks.1, neuron" not in reader.text("pair-body")
    assert "no distance that is defined" not in reader.text("notes")
    assert "blocks.0no weight" in reader.text("pair-body")
    reader.choose("layer", "blocks.0")
    none = "he lens gives this layer no weight"
    for identity in ("summary", "marks", "selected", "stress", "sentences", "pair-body"):
        assert none in reader.text(identity), identity
    reader.assert_no_request_and_no_message(path)


def test_each_layer_has_the_corrected_distance_where_it_is_known_as_the_panel_of_a_pair_has(
    reader: Reader, tmp_path: Path
) -> None:
    """Here no distance of all neurons together is corrected, and none of blocks.1."""
    matrix = with_estimates(matrix_at(4))
    matrix.estimates["emd_corrected"][[1, 3]] = np.nan
    path = write(tmp_path / "page.html", matrix)
    reader.open(path)
    plain, corrected = "Earth Mover's Distance, bins, plain", "corrected distance, bins"
    assert reader.text("matrix-title") == f"{plain}: all neurons"
    for layer, name in (("blocks.0", corrected), ("blocks.1", plain), ("blocks.2", corrected)):
        reader.choose("layer", layer)
        assert reader.text("matrix-title") == f"{name}: {layer}"
        i, j = reader.run("return state.open")
        value = f"{matrix.corrected(layer)[i, j]:#.4g}"
        assert f"{layer}: {name.removesuffix(', plain')} {value}" in reader.text("selected")
        row = reader.run("return document.querySelector('#pair-body g.row.here').textContent")
        assert row.startswith(f"{layer}: {value}{' plain' if name is plain else ''}")
        assert "quantity" not in reader.driver.current_url
    # What a reader chooses stays, and stands in the address.
    reader.choose("quantity", "Earth Mover's Distance, bins")
    reader.choose("layer", "blocks.0")
    assert reader.text("matrix-title") == f"{plain}: blocks.0"
    sent = reader.wait(lambda: "layer=blocks.0" in (url := reader.driver.current_url) and url)
    assert "quantity=emd" in sent
    reader.driver.get("about:blank")
    reader.driver.get(sent)
    reader.wait(lambda: reader.text("matrix-title") == f"{plain}: blocks.0")
    assert reader.console_messages() == []


def test_a_layer_without_room_for_its_corrections_shows_plain_distances_and_says_so(
    reader: Reader, tmp_path: Path
) -> None:
    matrix = with_estimates(matrix_at(40))
    held = [(column, -1) for column in PAGE_COLUMNS]
    held += [("emd", layer) for layer in range(3)] + [("q", layer) for layer in range(3)]
    held += [("emd_corrected", 0)]
    room = sum(len(pack(matrix.stacked(column)[plane])) for column, plane in held)
    path = tmp_path / "page.html"
    path.write_bytes(render_matrix_page(Page([matrix], panels(matrix)), room=room + 10))
    reader.open(path)
    left = reader.run("return DATA.matrices[0].left_out.emd_corrected")
    assert left == ["blocks.1", "blocks.2"]
    assert reader.text("matrix-title") == "corrected distance, bins: all neurons"
    reader.choose("layer", "blocks.2")
    assert reader.text("matrix-title") == "Earth Mover's Distance, bins, plain: blocks.2"
    i, j = reader.run("return state.open")
    value = f"{matrix.of('blocks.2')[i, j]:#.4g}"
    assert f"Earth Mover's Distance, bins {value}" in reader.text("selected")
    row = reader.run("return document.querySelector('#pair-body g.row.here').textContent")
    assert row.startswith(f"blocks.2: {value} plain")


def test_plain_and_corrected_numbers_are_labelled(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(4), (0, 1))
    matrix.estimates["emd_corrected"][1] = np.nan  # as where it is left out for size
    reader.open(write(tmp_path / "page.html", matrix))
    assert reader.text("matrix-title") == "corrected distance, bins: all neurons"
    assert "average linkage of the corrected distance" in reader.text("marks")
    reader.choose("quantity", "Earth Mover's Distance, bins")
    assert reader.text("matrix-title") == "Earth Mover's Distance, bins, plain: all neurons"
    reader.wait(lambda: "By layer" in reader.text("pair-body"))
    assert "By layer: Earth Mover's Distance, bins, corrected" in reader.text("pair-body")
    profile = (
        "return [...document.querySelectorAll('#pair-body g.row')].map((row) => row.textContent)"
    )
    plain = [" plain" in text for text in reader.run(profile)]
    assert plain == [False, True, False, False]
    assert "plain: not corrected" in reader.text("pair-body")
    assert ", corrected for the sizes of the samples [95% interval]" in reader.text("sentences")
    reader.choose("layer", "blocks.1")
    assert "plain: not corrected for the sizes of the samples" in reader.text("sentences")
    assert "average linkage of the Earth Mover's distance" in reader.text("marks")
    tiny = with_single(matrix_at(4), 3)
    reader.open(write(tmp_path / "page.html", tiny))
    assert reader.text("matrix-title") == "corrected distance, bins: all neurons"
    sentences = reader.text("sentences")
    assert ", corrected for the sizes of the samples [95% interval]" in sentences
    plain = " ".join(report.nearest_sentences(tiny)).count("(not corrected)")
    assert sentences.count("(not corrected)") == plain >= 2
    assert "are not corrected for the size of the sample" in reader.text("notes")
    assert "grey: not corrected" in reader.text("marks")
    reader.choose("quantity", "Earth Mover's Distance, bins")
    assert "grey: not corrected" not in reader.text("marks")
    reader.open(write(tmp_path / "page.html", matrix_at(2)))
    assert reader.text("matrix-title") == "Earth Mover's Distance, bins: all neurons"
    assert "plain:" not in reader.text("pair-body")
    reader.open(write(tmp_path / "page.html", with_estimates(matrix_at(2))))
    assert reader.text("summary").startswith("1 of 1 pair differs at")


# What a newcomer meets.


def pictured(matrix: Matrix, count: int = 3) -> list[Panel]:
    """Makes panels with images, each of a size of its own."""
    return [
        Panel(
            f"{7 + i} images",
            (),
            samples=tuple(Sample(f"{i}-{k}.jpg", PIXEL) for k in range(count)),
        )
        for i in range(len(matrix.names))
    ]


def test_the_page_begins_with_what_stands_out_in_the_layer_that_is_shown(
    reader: Reader, tmp_path: Path
) -> None:
    matrix = with_estimates(matrix_at(6), (0, 1))
    reader.open(write(tmp_path / "page.html", matrix))
    assert reader.text("headline") == report_headline(matrix) != ""
    reader.choose("layer", "blocks.1")
    assert reader.text("headline") == report_headline(matrix, "blocks.1")
    matrix.estimates["q"][:, 2, 3] = matrix.estimates["q"][:, 3, 2] = 0.03
    reader.open(write(tmp_path / "page.html", matrix))
    before = reader.text("headline")
    reader.choose("rate", "1%")
    assert reader.text("headline") == report_headline(matrix, rate=0.01) != before


def test_the_guide_shows_distances_by_images_and_is_folded_later(
    reader: Reader, tmp_path: Path
) -> None:
    matrix = with_estimates(matrix_at(6), (0, 1))
    path = write(tmp_path / "page.html", matrix, panels=pictured(matrix))
    reader.open(path)
    reader.run("localStorage.clear()")  # as for somebody who never saw a page
    reader.reload()
    assert reader.run("return document.getElementById('guide').open")
    shown = matrix.corrected()
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    far = max(pairs, key=lambda pair: shown[pair])
    captions = reader.run(
        "return [...document.querySelectorAll('#examples figcaption')].map((of) => of.textContent)"
    )
    assert captions[-1].startswith(f"The farthest pair: {shown[far]:.1f} bins [")
    assert "told apart; before the correction" in captions[-1]
    assert "chance alone makes 1.0 bins, the noise floor" in reader.text("floor")
    images = reader.run(
        "return document.querySelectorAll('#examples figure:last-child img').length"
    )
    assert images == 6
    reader.reload()
    assert not reader.run("return document.getElementById('guide').open")
    reader.driver.find_element("css selector", "#guide summary").click()
    reader.wait(lambda: "open=guide" in reader.driver.current_url)
    none = write(tmp_path / "none.html", matrix_at(3), panels=pictured(matrix_at(3)))
    reader.open(none)
    assert "nothing says how much of a distance is chance" in reader.text("floor")
    assert "told apart" not in reader.text("examples")
    matrix.emd[1] = np.nan
    for values in matrix.estimates.values():
        values[1] = np.nan
    reader.open(write(tmp_path / "undefined.html", matrix, panels=pictured(matrix)))
    assert "the noise floor" in reader.text("floor")
    reader.choose("layer", "blocks.1")
    reader.wait(lambda: "No other distance is defined here" in reader.text("floor"))
    assert "noise floor" not in reader.text("floor")
    assert reader.text("examples") == ""


def test_two_datasets_that_are_chosen_one_after_the_other_open_as_a_pair(
    reader: Reader, tmp_path: Path
) -> None:
    """This works with the strips of images and on the map, by mouse and by keyboard."""
    matrix = with_estimates(matrix_at(6), (0, 1))
    reader.open(write(tmp_path / "page.html", matrix, panels=pictured(matrix)))
    buttons = {of.text: of for of in reader.driver.find_elements("css selector", "#strips button")}
    buttons["group/004"].click()
    assert reader.text("chosen").startswith("group/004 is chosen.")
    buttons["group/002"].click()
    reader.wait(lambda: reader.text("pair-title") == "group/002 and group/004, all neurons")
    order = list(buttons)
    buttons["group/004"].send_keys(Keys.HOME, Keys.END, Keys.ARROW_LEFT)
    assert reader.run("return document.activeElement.textContent") == order[-2]
    stops = reader.run("return document.querySelectorAll('#strips [tabindex=\"0\"]').length")
    assert stops == 1
    held = "[...document.querySelectorAll('#strips [aria-pressed=true]')]"
    assert reader.run(f"return {held}.map((of) => of.textContent).sort()") == [
        "group/002",
        "group/004",
    ]
    images = "return [...document.querySelectorAll('#pair-body .photos img')].map((of) => of.alt)"
    assert reader.run(images) == [f"image {i}-{k}.jpg" for i in (2, 4) for k in range(3)]
    markers = {
        of.get_attribute("aria-label"): of
        for of in reader.driver.find_elements("css selector", "#map .marker")
    }
    assert len(reader.driver.find_elements("css selector", "#map image")) == 6
    assert [of.get_attribute("tabindex") for of in markers.values()].count("0") == 1
    markers["group/001"].find_element("css selector", "circle").click()
    assert reader.text("chosen").startswith("group/001 is chosen.")
    first = next(iter(markers.values()))
    reader.run("arguments[0].focus()", first)
    ActionChains(reader.driver).send_keys(Keys.END, Keys.HOME, Keys.ARROW_RIGHT).perform()
    name = reader.run("return document.activeElement.getAttribute('aria-label')")
    assert name == list(markers)[1]
    if name == "group/001":
        ActionChains(reader.driver).send_keys(Keys.ARROW_RIGHT).perform()
        name = list(markers)[2]
    ActionChains(reader.driver).send_keys(Keys.ENTER).perform()
    pair = sorted(["group/001", name])
    reader.wait(lambda: reader.text("pair-title") == f"{pair[0]} and {pair[1]}, all neurons")


def test_the_focus_stays_when_the_page_is_drawn_again(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(6), (0, 1))
    reader.open(write(tmp_path / "page.html", matrix, panels=pictured(matrix)))
    for focused in ("#strips .dataset:nth-child(3) button", "#map .marker:nth-of-type(4)"):
        name = reader.run(
            "const of = document.querySelector(arguments[0]);of.focus(); return of.textContent",
            focused,
        )
        reader.driver.execute_async_script("update().then(arguments[0])")
        assert reader.run("return document.activeElement.textContent") == name
        stops = "return document.activeElement.getAttribute('tabindex')"
        assert reader.run(stops) == "0"


def test_a_pair_says_in_words_what_its_interval_supports(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(4, layers=8), (0, 1))
    matrix.estimates["q"][4:, 2, 3] = matrix.estimates["q"][4:, 3, 2] = 0.6
    matrix.estimates["q"][-1, 2, 3] = matrix.estimates["q"][-1, 3, 2] = 0.001
    # Below the rate of 0.05, and not of 0.05 / 8: of eight layers one is so by chance.
    matrix.estimates["q"][:8, 1, 3] = matrix.estimates["q"][:8, 3, 1] = 0.007
    snapshot = ("--at", "3", "-c", "s3://b/it's here")
    page = Page([matrix], pictured(matrix), snapshot=snapshot, network=matrix.layers)
    path = tmp_path / "page.html"
    path.write_bytes(render_matrix_page(page))
    reader.open(path)

    def opened(a: int, b: int) -> str:
        reader.run("show(arguments[0], arguments[1], false)", a, b)
        names = f"{matrix.names[a]} and {matrix.names[b]}, all neurons"
        reader.wait(lambda: reader.text("pair-title") == names)
        return reader.text("pair-body")

    assert "A pair in detail" in path.read_text()  # while the first pair is drawn
    assert "They are told apart in no layer." in opened(1, 3)
    hollow = "return [...document.querySelectorAll('#pair-body .point')].slice(-9)"
    hollow += ".map((point) => point.classList.contains('alike'))"
    assert reader.run(hollow) == [True] * 8 + [False]  # layers, then all neurons together
    nearer = int(
        (matrix.corrected("all")[np.triu_indices(4, 1)] < matrix.corrected("all")[1, 3]).sum()
    )
    number = {0: "None", 1: "1"}.get(nearer, str(nearer))
    has = "have" if nearer > 1 else "has"
    assert f"{number} of the 6 pairs {has} a smaller distance." in reader.text("pair-body")
    alike, apart = opened(0, 1), opened(2, 3)
    value, high = (matrix.of("all", column)[0, 1] for column in ("emd_corrected", "high"))
    apart_by = "They cannot be told apart by all neurons together"
    assert f"{apart_by}: the distance of {value:.1f} bins may be chance" in alike
    assert f"It is at most {high:.1f} bins" in alike
    assert "They differ" not in alike
    low, high = (matrix.of("all", column)[2, 3] for column in ("low", "high"))
    assert f"with a 95% interval of {low:.1f} to {high:.1f}." in apart
    assert "They are told apart in colour and edges, and in texture" in apart
    stages = [np.r_[2 * k : 2 * k + 2] for k in range(4)]
    means = [matrix.estimates["emd_corrected"][rows, 2, 3].mean() for rows in stages]
    most = int(np.argmax(means[:2]))
    clear = all(means[most] - 0.5 > mean + 0.5 for k, mean in enumerate(means) if k != most)
    assert ("and most in" in apart) == clear
    command = reader.run("return document.querySelector('#pair-body code').textContent")
    assert command == (
        "vdna explain group/002 group/003 --at 3 -c 's3://b/it'\\''s here' --html why.html"
    )
    for column in ("q", "p"):
        matrix.estimates[column][:1] = np.nan  # the first layer is not tested
    reader.open(write(tmp_path / "untested.html", matrix, network=matrix.layers))
    opened(2, 3)
    rows = "[...document.querySelectorAll('#pair-body .row')].map((row) => row.textContent)"
    first = next(text for text in reader.run(f"return {rows}") if "colour and edges" in text)
    assert "1 of 1 layer" in first
    assert "in networks that were trained on ImageNet" in reader.text("pair-body")
    few = matrix_at(3, layers=3)
    reader.open(write(tmp_path / "few.html", few, network=few.layers))
    assert "by stage of the network" not in reader.text("pair-body")
    assert "Whether they differ is not tested" in reader.text("pair-body")


def test_a_view_stands_in_its_address_and_back_returns_to_the_one_before(
    reader: Reader, tmp_path: Path
) -> None:
    matrix = with_estimates(matrix_at(5), (0, 1))
    names = ("a b", "b&c=#", "100%", "d|e", HOSTILE)
    matrix = replace(matrix, names=names, members=dict(zip(names, "12345", strict=True)))
    path = write(tmp_path / "page.html", matrix)
    reader.open(path)
    first = reader.text("pair-title")
    assert reader.driver.current_url == path.as_uri()
    reader.choose("layer", "blocks.1")
    reader.choose("colours", "rank")
    reader.run("return show(1, 4, false)")
    title = f"{names[1]} and {names[4]}, blocks.1"
    reader.wait(lambda: reader.text("pair-title") == title)
    reader.find("filter").send_keys("a")
    sent = reader.wait(
        lambda: "filter=a" in reader.driver.current_url and reader.driver.current_url
    )
    reader.driver.get("about:blank")
    reader.driver.get(sent)
    reader.wait(lambda: reader.text("pair-title") == title)
    chosen = "return ['layer', 'colours', 'filter'].map((id) => document.getElementById(id).value)"
    assert reader.run(chosen) == ["1", "rank", "a"]
    reader.open(path)
    for layer in ("blocks.0", "blocks.2"):
        reader.choose("layer", layer)
    reader.driver.back()
    reader.wait(lambda: reader.text("pair-title").endswith("blocks.0"))
    assert (
        reader.run("return document.getElementById('layer').selectedOptions[0].text") == "blocks.0"
    )
    reader.driver.back()
    reader.wait(lambda: reader.text("pair-title") == first)
    reader.driver.forward()
    reader.wait(lambda: reader.text("pair-title").endswith("blocks.0"))
    for strange in (
        "pair=%FF+x&layer=none&rate=9&quantity=__proto__&lens=1",
        "open=a&origin=%",
        "&&=",
    ):
        reader.driver.get("about:blank")
        reader.driver.get(f"{path.as_uri()}#{strange}")
        reader.wait(lambda: reader.text("pair-title") == first)
    assert reader.console_messages() == []


def test_numbers_have_names_in_words_and_symbols_on_demand(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(3), (0, 1))
    reader.open(write(tmp_path / "page.html", matrix))
    body = reader.text("pair-body")
    for words in (
        "distance, corrected",
        "standard error",
        "noise floor",
        "q-value, over all pairs",
    ):
        assert words in body
    assert "(emd_corrected)" not in body
    reader.find("symbols").click()
    reader.wait(lambda: "distance, corrected (emd_corrected)" in reader.text("pair-body"))
    assert "standard error (se)" in reader.text("pair-body")
    reader.wait(lambda: "symbols=1" in reader.driver.current_url)
    assert "differs (q < 5%)" in reader.text("marks")


# The drawing.

INKS = """
const [row, column] = arguments;
const { left, above, cell } = view;
const context = document.getElementById("drawing").getContext("2d");
const [x, y] = [left + column * cell, above + row * cell];
const { data } = context.getImageData(x + 2, y + 2, cell - 3, cell - 3);
const wide = cell - 3;
const counts = new Map();
const places = new Map();
for (let k = 0; k < data.length; k += 4) {
  const of = data.slice(k, k + 3).join();
  counts.set(of, (counts.get(of) ?? 0) + 1);
  if (!places.has(of)) places.set(of, []);
  places.get(of).push([(k / 4) % wide, Math.floor(k / 4 / wide)]);
}
const [ground] = [...counts].sort((a, b) => b[1] - a[1])[0];
const other = [...places].filter(([of]) => of !== ground).flatMap(([, at]) => at);
return { ground: ground.split(",").map(Number), other, wide };
"""
"""A script that returns a cell's commonest colour, and the places that have another."""


def legend(reader: Reader) -> list[list[int]]:
    bar = "document.getElementById('bar').getContext('2d').getImageData(0, 6, 256, 1).data"
    flat = reader.run(f"return [...{bar}]")
    return [flat[k : k + 3] for k in range(0, len(flat), 4)]


def test_cells_have_the_colours_of_the_legend_and_their_marks(
    reader: Reader, tmp_path: Path
) -> None:
    """Cells of 18 pixels are too small for numbers, so they contain only marks."""
    alike = (2, 7)
    matrix = with_estimates(matrix_of(*[f"d{i:02d}" for i in range(12)]), alike)
    reader.open(write(tmp_path / "page.html", matrix))
    reader.run("state.cells = 18; return update()")
    order = clusters(matrix.corrected()).order
    scale = legend(reader)
    assert scale[0] == [254, 232, 56]
    assert scale[-1] == [0, 34, 78]
    values = matrix.corrected()
    most = np.nanmax(values)
    seen = {}
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            if i == j:
                continue
            inks = reader.run(INKS, row, column)
            at = np.array(inks["other"])
            near = np.abs(np.array(scale) - inks["ground"]).sum(axis=1).argmin()
            seen[i, j] = int(near)
            assert near == pytest.approx(255 * values[i, j] / most, abs=2), (i, j)
            corner = (at[:, 0] > 0.6 * inks["wide"]) & (at[:, 1] < 0.4 * inks["wide"])
            if {i, j} == set(alike):  # lines from end to end
                assert len(at) > 40
                assert np.ptp(at[:, 0]) > 12
                assert np.ptp(at[:, 1]) > 12
            else:  # only a dot in a corner
                assert 2 <= len(at) <= 16, (i, j)
                assert corner.all(), (i, j)
    assert seen[0, 1] < seen[0, 6] < seen[0, 11]
    none = matrix_of(*[f"d{i:02d}" for i in range(12)])
    reader.open(write(tmp_path / "page.html", none))
    reader.run("state.cells = 18; return update()")
    assert reader.run(INKS, 0, 5)["other"] == []


def test_small_cells_are_grey_where_a_pair_is_not_told_apart(
    reader: Reader, tmp_path: Path
) -> None:
    matrix = with_estimates(matrix_of(*[f"d{i:02d}" for i in range(12)]), (2, 7))
    reader.open(write(tmp_path / "page.html", matrix))
    reader.run("state.cells = 6; return update()")
    order = clusters(matrix.corrected()).order
    grey = [0xC9, 0xCE, 0xD4]
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            if i != j:
                ground = reader.run(INKS, row, column)["ground"]
                assert (ground == grey) == ({i, j} == {2, 7}), (i, j)


def test_of_a_large_matrix_the_part_in_sight_is_drawn_under_its_names(
    reader: Reader, tmp_path: Path
) -> None:
    """The canvases of the whole would be larger than browsers make them."""
    matrix = matrix_at(90, layers=1)
    reader.open(write(tmp_path / "page.html", matrix))
    order = clusters(matrix.corrected()).order
    reader.choose("cells", "32 pixels")
    drawing = "const of = document.getElementById('drawing'); return [of.width, of.height]"
    wide, tall = reader.run(drawing)
    assert wide < 1600
    assert tall < 900
    cursor = reader.find("cursor")
    cursor.send_keys(Keys.END, *[Keys.PAGE_DOWN] * 9)
    assert f"{matrix.names[order[-1]]} and itself" in reader.text("selected")
    reader.wait(lambda: reader.run("return view.sight.rows[1]") == 90)
    rows, columns = (reader.run(f"return view.sight.{of}") for of in ("rows", "columns"))
    assert columns[1] == 90
    assert rows[0] > 60
    cursor.send_keys(Keys.PAGE_UP, Keys.ARROW_LEFT)
    assert f"{matrix.names[order[-11]]} and {matrix.names[order[-2]]}" in reader.text("selected")
    # A cell is what is drawn there, and a name is no cell.
    reader.run("document.getElementById('matrix-section').scrollIntoView()")
    scale = legend(reader)
    row, column = order[rows[0] + 11], order[columns[0] + 8]
    middle = (
        "const { left, above, cell, sight } = view;"
        f" return [left + ({columns[0]} + 8.5) * cell - sight.x,"
        f" above + ({rows[0]} + 11.5) * cell - sight.y]"
    )
    x, y = reader.run(middle)
    ground = reader.run(
        "return [...document.getElementById('drawing').getContext('2d')"
        ".getImageData(arguments[0] - 12, arguments[1] - 12, 1, 1).data].slice(0, 3)",
        x,
        y,
    )
    near = np.abs(np.array(scale) - ground).sum(axis=1).argmin()
    assert near == pytest.approx(255 * matrix.of()[row, column] / matrix.of().max(), abs=2)
    mouse = ActionChains(reader.driver)
    for right, down, said in ((x, y, f"{matrix.names[row]} and"), (20, 300, ""), (300, 20, "")):
        offset = (right - wide / 2, down - tall / 2)
        mouse.move_to_element_with_offset(cursor, *offset).click().perform()
        reader.wait(lambda said=said: said in reader.text("selected"))  # type: ignore[misc]
        tip = "return document.getElementById('tip').classList.contains('on')"
        assert reader.run(tip) == bool(said)
    low, high = sorted((row, column))
    title = f"{matrix.names[low]} and {matrix.names[high]}, all neurons"
    reader.wait(lambda: reader.text("pair-title") == title)
    assert reader.console_messages() == []


def test_the_tree_joins_what_is_near_and_begins_beside_its_rows(
    reader: Reader, tmp_path: Path
) -> None:
    """The test looks at the lines that are drawn, and at pixels at their ends."""
    matrix = matrix_at(6)
    reader.open(write(tmp_path / "page.html", matrix))
    drawn = reader.run("""
        const lines = [];
        const context = document.getElementById("drawing").getContext("2d");
        const [move, line] = [context.moveTo, context.lineTo];
        context.moveTo = (...at) => { lines.push([at]); move.apply(context, at); };
        context.lineTo = (...at) => { lines.at(-1).push(at); line.apply(context, at); };
        context.clearRect(0, 0, view.width, view.height);
        drawTree(context);
        const ratio = context.getTransform().a;
        const ink = (x, y) => {
          const { data } = context.getImageData(x * ratio - 2, y * ratio - 2, 5, 5);
          return data.some((value, k) => k % 4 === 3 && value > 60);
        };
        const { left, side, above, cell, tree } = view;
        const inked = lines.map((line) => line.map(([x, y]) => ink(x, y)));
        return { lines, inked, start: left + side, above, cell, tree };
    """)
    merges = clusters(matrix.of()).merges
    assert len(drawn["lines"]) == len(merges) == 5
    assert all(all(inked) for inked in drawn["inked"])
    top = merges[:, 4].max()
    begin = min(x for line in drawn["lines"] for x, _ in line)
    assert begin >= drawn["start"]
    end = max(x for line in drawn["lines"] for x, _ in line)
    assert 0.7 * drawn["tree"] < end - begin <= drawn["tree"]
    for line, (a, b, low, high, joined) in zip(drawn["lines"], merges.tolist(), strict=True):
        across = [begin + height / top * (end - begin) for height in (low, joined, joined, high)]
        down = [drawn["above"] + (leaf + 0.5) * drawn["cell"] for leaf in (a, a, b, b)]
        assert np.array(line) == pytest.approx(np.column_stack([across, down]), abs=0.1)
    # And it is on the page as it opens, not only where this test draws it.
    reader.open(write(tmp_path / "page.html", matrix))
    inked = reader.run("""
        const context = document.getElementById("drawing").getContext("2d");
        const { left, side, above, tree } = view;
        const { data } = context.getImageData(left + side + 3, above, tree - 3, side);
        return data.filter((value, k) => k % 4 === 3 && value > 60).length;
    """)
    assert inked > 300


PATH = "return document.querySelector(`#neurons path.${arguments[0]}`).getAttribute('d')"
SIDES = {"first": "a", "second": "b"}


def test_histograms_are_those_of_a_and_of_b(reader: Reader, tmp_path: Path) -> None:
    matrix = matrix_at(3)
    neuron = PairNeuron("blocks.0", 1, 2.0, 0.0, 1.0, (0, 900, 225, 0), (100, 0, 0, 400), 0.6)
    every = {pair: [neuron] for pair in ((0, 1), (0, 2), (1, 2))}
    reader.open(write(tmp_path / "page.html", matrix, seen=[Seen(every)]))
    reader.wait(lambda: "neuron 1" in reader.text("pair-body"))
    for kind, side in SIDES.items():
        steps = re.findall(r"L([\d.]+) ([\d.]+)H([\d.]+)", reader.run(PATH, kind))
        begin, height, end = np.array(steps, float).T
        assert begin == pytest.approx(34 + 220 / 4 * np.arange(4))
        assert end == pytest.approx(34 + 220 / 4 * np.arange(1, 5))
        shares = np.sqrt(np.array(getattr(neuron, side)) / 900)
        assert height == pytest.approx(4 + 70 - 67 * shares), kind
    ticks = reader.run(
        "return [...document.querySelectorAll('#neurons svg text.tick')].map((of) =>"
        " [of.textContent, Number(of.getAttribute('y'))])"
    )
    shares = {text: y for text, y in ticks if "%" in text}
    assert {text for text, _ in ticks} - set(shares) == {"0", "1.0"}  # the ends of the axis
    assert "50%" in shares
    for text, y in shares.items():
        share = float(text.rstrip("%")) / 100
        assert y - 4 == pytest.approx(4 + 70 - 67 * np.sqrt(share / 0.6)), text
    # Blue is the first of the pair in the order of the datasets, whichever was pointed at.
    low, high = sorted(reader.run("return state.open"))
    named = "return document.querySelector(`#pair-body .${arguments[0]}-name`).textContent.trim()"
    assert reader.run(named, "first") == matrix.names[low]
    assert reader.run(named, "second") == matrix.names[high]
    fills = [
        reader.run(
            "return getComputedStyle(document.querySelector(`#neurons path.${arguments[0]}`)).fill",
            kind,
        )
        for kind in SIDES
    ]
    assert fills == ["rgb(0, 114, 178)", "rgb(213, 94, 0)"]


def test_the_map_places_datasets_as_far_apart_as_they_are(reader: Reader, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    at = rng.normal(0, 10, (7, 2))
    away = np.sqrt(((at[:, None] - at) ** 2).sum(axis=2))
    matrix = matrix_of(*"abcdefg")
    matrix.emd[:] = away + 1 - np.eye(7)  # the correction subtracts 1
    reader.open(write(tmp_path / "page.html", with_estimates(matrix, (1, 4))))
    spots = reader.run(
        "return [...document.querySelectorAll('#map circle')].map((spot) =>"
        " [spot.parentNode.querySelector('title').textContent,"
        " Number(spot.getAttribute('cx')), Number(spot.getAttribute('cy'))])"
    )
    places = {name: np.array(where) for name, *where in spots}
    names = list(places)
    assert sorted(names) == list("abcdefg")
    found = np.array([[np.hypot(*(places[a] - places[b])) for b in "abcdefg"] for a in "abcdefg"])
    scale = found.sum() / away.sum()
    assert scale > 1
    assert found == pytest.approx(scale * away, abs=0.01 * found.max())
    ((x, y, to_x, to_y),) = reader.run(
        "return [...document.querySelectorAll('#map .alike-line')].map((line) =>"
        " ['x1', 'y1', 'x2', 'y2'].map((of) => Number(line.getAttribute(of))))"
    )
    assert np.array([[x, y], [to_x, to_y]]) == pytest.approx(np.array([places["b"], places["e"]]))


@pytest.mark.parametrize("width", [1000, 1600])
def test_no_section_covers_another_wherever_the_page_is_scrolled(
    reader: Reader, tmp_path: Path, width: int
) -> None:
    matrix = with_estimates(matrix_at(12, layers=19), (0, 1))
    reader.set_window(width, 600)
    reader.open(write(tmp_path / "page.html", matrix))
    reader.wait(lambda: "neurons that differ most" in reader.text("pair-body").lower())
    height = reader.run("return document.documentElement.scrollHeight")
    assert height > 1200
    for top in range(0, height, 150):
        boxes = reader.run(
            "scrollTo(0, arguments[0]);"
            "return [...document.querySelectorAll('#datasets, .column, #neighbours')]"
            ".map((of) => of.getBoundingClientRect())"
            ".map((box) => [box.left, box.top, box.right, box.bottom])",
            top,
        )
        assert len(boxes) == 4
        for k, (left, above, right, below) in enumerate(boxes):
            for others in boxes[:k]:
                apart = right <= others[0] or left >= others[2]
                assert apart or below <= others[1] or above >= others[3], (top, boxes)


def measured(matrix: Matrix, seed: int) -> Matrix:
    """Makes a matrix with random estimates, which make the file as large as real ones do."""
    rng = np.random.default_rng(seed)

    def scattered(least: float, most: float) -> Floats:
        values = rng.uniform(least, most, matrix.emd.shape)
        return np.triu(values, 1) + np.triu(values, 1).transpose(0, 2, 1)

    p = scattered(0, 1) ** 8
    estimates = {column: matrix.emd * scattered(0.5, 1.5) for column in ("se", "floor")}
    estimates["emd_corrected"] = corrected = matrix.emd * scattered(0.8, 1)
    estimates |= {"low": corrected * scattered(0.7, 1), "high": corrected * scattered(1, 1.3)}
    return replace(matrix, estimates=estimates | {"p": p, "q": np.minimum(1, p * 1.5)})


@pytest.mark.soak
def test_a_page_of_three_hundred_datasets_is_usable(reader: Reader, tmp_path: Path) -> None:
    """The page has 18 layers, all estimates, the neurons of 300 pairs, samples and provenance."""
    rng = np.random.default_rng(1)
    matrix = measured(matrix_at(300, layers=18), 2)
    sample = Sample("photo.jpg", f"data:image/webp;base64,{'A' * 3000}")
    facts = tuple((f"fact {n}", "0123456789abcdef" * 4) for n in range(10))
    rows = rng.integers(0, 999, (300, 6, 2, 48)).tolist()
    neurons = {
        (i, i + 1): [
            PairNeuron("blocks.3", 7, 1.5, 0.0, 1.0, tuple(a), tuple(b), 1.0) for a, b in rows[i]
        ]
        for i in range(299)
    }
    page = Page([matrix], [Panel("7 images", facts, samples=(sample,) * 2)] * 300, [Seen(neurons)])
    path = tmp_path / "page.html"
    path.write_bytes(render_matrix_page(page))
    assert 9_000_000 < path.stat().st_size < 10_000_000
    reader.open(path)
    left = reader.text("notes").partition("Left out of this page for its size")[2]
    assert "low of" in left
    assert not any(f" {column} of" in left for column in ("emd", "q", "emd_corrected"))
    taken = "const begin = performance.now(); state.plane = 3; const done = arguments[0];"
    milliseconds = reader.driver.execute_async_script(
        f"{taken} update().then(() => done(performance.now() - begin))"
    )
    assert milliseconds < 5000  # a tenth of a second on a machine at rest
    i, j = clusters(matrix.corrected("blocks.3")).order[:2]
    reader.find("cursor").send_keys(Keys.HOME)
    reader.find("cursor").send_keys(*[Keys.PAGE_UP] * 30)
    reader.find("cursor").send_keys(Keys.ARROW_RIGHT)
    assert f"{matrix.names[i]} and {matrix.names[j]}" in reader.text("selected")
    shown = float(reader.text("selected").partition(" bins ")[2].split(",")[0].split(";")[0])
    assert shown == pytest.approx(matrix.corrected("blocks.3")[i, j], rel=1e-3)
    two = render_matrix_page(
        replace(page, matrices=[matrix, replace(matrix, lens="sharp")], seen=())
    )
    assert len(two) < 10_000_000
    assert b"emd of" not in two  # of every layer, through both
    reader.choose("cells", "32 pixels")  # of 92 million pixels, those in sight are drawn
    drawn = "const of = document.getElementById('drawing'); return of.width * of.height"
    assert reader.run(drawn) < 2_000_000
    for width, scheme in ((400, "dark"), (1600, "light")):
        reader.set_window(width, scheme=scheme)
        assert reader.barriers() == []
    buttons = reader.driver.find_elements("css selector", "#strips button")
    buttons[0].send_keys(Keys.END)
    assert reader.run("return document.activeElement.textContent") == buttons[-1].text
    reader.find("filter").send_keys("12")
    reader.wait(lambda: reader.run("return view.order.length") == 13)
    reader.assert_no_request_and_no_message(path)


def test_a_gallery_works_at_any_width_in_both_schemes_and_by_keyboard(
    reader: Reader, tmp_path: Path
) -> None:
    shown = [GalleryImage("p" * 300, ("#1: 7.77", HOSTILE), PIXEL)] * 11
    gone = GalleryImage(HOSTILE, ("#2: 7.78",), missing="cannot be read again: " + HOSTILE)
    gallery = Gallery(HOSTILE, [Row("Nearest", [*shown, gone]), Row(HOSTILE, shown)], HOSTILE)
    path = tmp_path / "gallery.html"
    path.write_bytes(render_gallery(gallery))
    for width in (400, 1600):
        papers = set()
        for scheme in ("light", "dark"):
            reader.set_window(width, scheme=scheme)
            reader.driver.get(path.as_uri())
            assert reader.run("return document.documentElement.scrollWidth") <= width
            papers.add(reader.run("return getComputedStyle(document.body).backgroundColor"))
            images = "[...document.images].every(i => i.complete && i.naturalWidth)"
            assert reader.run(f"return {images}")
        assert len(papers) == 2
    for expected in ("#1: 7.77", "#1: 7.77"):
        ActionChains(reader.driver).send_keys(Keys.TAB).perform()
        assert expected in reader.run("return document.activeElement.textContent")
    assert reader.run("return document.activeElement.tagName") == "FIGURE"
    assert reader.run("return window.hurt") is None
    reader.assert_no_request_and_no_message(path)
