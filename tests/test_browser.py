"""The page in a browser: acted upon by keyboard and mouse, it shows the matrix's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from pipeline.arrange import clusters
from pipeline.matrix import Matrix
from pipeline.page import Neuron, Page, Panel, Sample, Seen, render
from tests import browser
from tests.browser import Reader
from tests.test_report import matrix_of, with_estimates

pytestmark = browser.needed
PIXEL = "data:image/webp;base64,UklGRiQAAABXRUJQVlA4IBgAAAAwAQCdASoBAAEAAUAmJaQAA3AA/v02aAA="
HOSTILE = "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=1'>\"&\u2028é層"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with browser.reader(tmp_path / "profile") as opened:
        opened.look(1600)
        yield opened


def matrix_at(count: int, layers: int = 3, seed: int = 0) -> Matrix:
    """Points in five dimensions, seen by each layer in its own way."""
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


def write(path: Path, matrix: Matrix, **more: object) -> Path:
    page = Page([matrix], panels(matrix))
    path.write_bytes(render(replace(page, **more)))  # type: ignore[arg-type]
    return path


def test_the_keyboard_walks_the_matrix_and_opens_a_pair(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(6), (0, 1))
    path = write(tmp_path / "page.html", matrix)
    reader.open(path)
    order = clusters(matrix.of()).order
    cursor = reader.find("cursor")
    cursor.send_keys(Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    i, j = order[2], order[1]
    assert f"{matrix.names[i]} and {matrix.names[j]}, all neurons" in reader.text("selected")
    assert f"emd {matrix.of()[i, j]:#.4g} bins" in reader.text("selected")
    assert reader.find("selected").get_attribute("aria-live") == "polite"
    cursor.send_keys(Keys.ENTER)
    reader.wait(lambda: matrix.names[i] in reader.text("pair-title"))
    assert reader.text("pair-title") == f"{matrix.names[i]} and {matrix.names[j]}, all neurons"
    low, high = (matrix.of("all", column)[i, j] for column in ("low", "high"))
    assert f"95% interval {low:#.4g} to {high:#.4g}" in reader.text("pair-body")
    assert reader.text("pair-body").count("95% interval ") == 1 + len(matrix.planes)
    assert reader.run("return document.activeElement.id") == "pair"
    for _ in range(30):
        cursor.send_keys(Keys.ARROW_UP)
    assert matrix.names[order[0]] in reader.text("selected")
    reader.kept_to_itself(path)


def test_another_layer_shows_its_numbers_and_its_clusters(reader: Reader, tmp_path: Path) -> None:
    matrix = with_estimates(matrix_at(5, seed=3), (2, 3))
    reader.open(write(tmp_path / "page.html", matrix))
    reader.run("document.getElementById('numbers').open = true")
    for layer in ("blocks.1", "blocks.0"):
        reader.choose("layer", layer)
        order = clusters(matrix.of(layer)).order
        rows = reader.wait(
            lambda: reader.run(
                "return [...document.querySelectorAll('#numbers tbody tr')]"
                ".map((row) => [...row.children].map((cell) => cell.textContent))"
            )
        )
        assert [row[0] for row in rows] == [matrix.names[i] for i in order]
        values = matrix.of(layer)[np.ix_(order, order)]
        found = [[float(text.lstrip("~")) for text in row[1:]] for row in rows]
        assert np.array(found) == pytest.approx(values, rel=5e-4)
        assert sum(text.startswith("~") for row in rows for text in row) == 2
    reader.choose("quantity", "Fréchet distance of neurons")
    i, j = clusters(matrix.of()).order[:2]  # what the page began with
    assert f"nfd {matrix.of('blocks.0', 'nfd')[i, j]:#.4g}" in reader.text("selected")
    assert "9 of 10 pairs differ" in reader.text("summary")
    reader.choose("order", "distance to …")
    reader.choose("origin", matrix.names[2])
    nearest = reader.run("return document.querySelectorAll('#numbers tbody th')[1].textContent")
    away = matrix.of("blocks.0", "nfd")[2]
    assert nearest == matrix.names[int(np.argsort(away)[1])]


def test_a_click_opens_a_pair_with_its_neurons(reader: Reader, tmp_path: Path) -> None:
    matrix = matrix_at(4)
    neuron = Neuron("blocks.2", 7, 12.5, -1.0, 2.0, (0, 999, 3), (999, 0, 1))
    order = clusters(matrix.of()).order
    pair = (min(order[0], order[3]), max(order[0], order[3]))
    reader.open(write(tmp_path / "page.html", matrix, seen=[Seen({pair: [neuron]})]))
    where = reader.run(
        "const box = document.getElementById('cursor').getBoundingClientRect();"
        "return [view.left + 3.5 * view.cell - box.width / 2,"
        " view.above + 0.5 * view.cell - box.height / 2]"
    )
    mouse = ActionChains(reader.driver).move_to_element_with_offset(reader.find("cursor"), *where)
    mouse.click().perform()
    reader.wait(lambda: "blocks.2, neuron 7: 12.50 bins" in reader.text("pair-body"))
    assert matrix.names[order[0]] in reader.text("tip")
    assert "not tested: no error bars are known" in reader.text("tip")
    assert reader.run("return document.querySelectorAll('#neurons path').length") == 2
    assert "There are no error bars." in reader.text("pair-body")
    assert reader.text("summary").startswith("No error bars are known")


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
    neuron = Neuron(HOSTILE, 7, 12.5, -1.0, 2.0, (1,), (2,))
    seen = Seen({(0, 1): [neuron]}, HOSTILE, (HOSTILE,))
    page = Page([matrix, matrix], [panel] * 3, [seen] * 2, HOSTILE, (HOSTILE,), HOSTILE)
    path = tmp_path / "page.html"
    path.write_bytes(render(page))
    reader.open(path)
    reader.choose("layer", HOSTILE)
    reader.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    reader.wait(lambda: reader.run("return document.querySelectorAll('.samples img').length") == 3)
    reader.find("cursor").send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ENTER)
    reader.wait(lambda: HOSTILE in reader.text("pair-title"))
    for shown in ("title", "about", "notes", "panels", "pair-body", "selected", "lens"):
        assert HOSTILE in reader.text(shown), shown
    assert reader.driver.title == HOSTILE
    assert reader.run("return window.hurt === undefined")
    assert reader.run("return document.querySelectorAll('script').length") == 2
    assert reader.run("return document.querySelectorAll('img:not(.samples img)').length") == 0
    reader.kept_to_itself(path)


def test_what_runs_in_the_page_is_what_was_written_alone(reader: Reader, tmp_path: Path) -> None:
    """The policy holds where the escaping does not."""
    path = write(tmp_path / "page.html", matrix_of("a", "b", "c"))
    added = (
        "<script>window.hurt=1</script><img src='https://example.com/x.png'>"
        "<p style='color:red' onclick='x'>"
    )
    path.write_text(path.read_text().replace("<header>", f"<header>{added}"))
    reader.open(path)
    assert reader.run("return window.hurt === undefined")
    refused = "\n".join(reader.complaints())
    assert refused.count("Content Security Policy") >= 3
    assert reader.requests() == {path.as_uri()}


@pytest.mark.parametrize("count", [2, 11])
def test_on_a_telephone_in_the_dark(reader: Reader, tmp_path: Path, count: int) -> None:
    matrix = with_estimates(matrix_at(count, layers=12), (0, 1))
    path = write(tmp_path / "page.html", matrix)
    background = "return getComputedStyle(document.body).backgroundColor"
    reader.open(path)
    light = reader.run(background)
    reader.look(400, scheme="dark")
    reader.open(path)
    reader.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    for width in (400, 1600):
        reader.look(width, scheme="dark")
        reader.wait(partial(reader.run, f"return innerWidth === {width}"))
        wide = "return document.documentElement.scrollWidth <= innerWidth"
        reader.wait(partial(reader.run, wide), seconds=5)
    dark = reader.run(background)
    assert light != dark
    assert (
        sum(map(int, dark.strip("rgb()").split(",")))
        < 150
        < sum(map(int, light.strip("rgb()").split(",")))
    )
    reader.kept_to_itself(path)


@pytest.mark.parametrize("width", [1000, 1600])
def test_no_section_covers_another_wherever_the_page_is_scrolled(
    reader: Reader, tmp_path: Path, width: int
) -> None:
    matrix = with_estimates(matrix_at(12, layers=19), (0, 1))
    reader.look(width, 600)
    reader.open(write(tmp_path / "page.html", matrix))
    reader.wait(lambda: "neurons that differ most" in reader.text("pair-body").lower())
    height = reader.run("return document.documentElement.scrollHeight")
    assert height > 1200
    for top in range(0, height, 150):
        boxes = reader.run(
            "scrollTo(0, arguments[0]);"
            "return [...document.querySelectorAll('.column, #neighbours, #datasets')]"
            ".map((of) => of.getBoundingClientRect())"
            ".map((box) => [box.left, box.top, box.right, box.bottom])",
            top,
        )
        assert len(boxes) == 4
        for k, (left, above, right, below) in enumerate(boxes):
            for others in boxes[:k]:
                apart = right <= others[0] or left >= others[2]
                assert apart or below <= others[1] or above >= others[3], (top, boxes)


def test_three_hundred_datasets_take_a_page_that_can_be_used(
    reader: Reader, tmp_path: Path
) -> None:
    matrix = with_estimates(matrix_at(300, layers=8), (0, 1))
    path = write(tmp_path / "page.html", matrix)
    assert path.stat().st_size < 10_000_000
    reader.open(path)
    assert "Left out of this page for its size" in reader.text("notes")
    taken = "const begin = performance.now(); state.plane = 3; const done = arguments[0];"
    milliseconds = reader.driver.execute_async_script(
        f"{taken} update().then(() => done(performance.now() - begin))"
    )
    assert milliseconds < 5000  # a tenth of a second on a machine at rest
    i, j = clusters(matrix.of("blocks.3")).order[:2]
    reader.find("cursor").send_keys(Keys.HOME)
    reader.find("cursor").send_keys(*[Keys.PAGE_UP] * 30)
    reader.find("cursor").send_keys(Keys.ARROW_RIGHT)
    assert f"{matrix.names[i]} and {matrix.names[j]}" in reader.text("selected")
    shown = float(reader.text("selected").partition(" emd ")[2].partition(" ")[0])
    assert shown == pytest.approx(matrix.of("blocks.3")[i, j], rel=1e-3)
    reader.find("filter").send_keys("12")
    reader.wait(lambda: reader.run("return view.order.length") == 13)
    reader.kept_to_itself(path)
