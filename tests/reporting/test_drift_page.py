"""Tests of the page of a dataset's path over its versions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.building import Movement
from pipeline.explaining import Drift, DriftRow
from pipeline.reporting.html.drift_page import DriftPage, _tick, render_drift
from pipeline.reporting.html.explanation_page import ShownImage
from pipeline.sources import ImageChanges
from tests.reporting.test_browser import PIXEL
from tests.reporting.test_explanation_page import hand_made, keys_of
from tests.support import browser
from tests.support.browser import Reader
from tests.support.builders import version_without_files

HOSTILE = "</text></svg><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>"


def moved(value: float, reach: float = 0.5) -> Movement:
    low, high = max(value - reach, 0.0), value + reach
    return Movement(value + 0.2, value, low, high, reach / 2, 0.3, 0.01, 0.9)


def row(number: int, reference: Movement | None, step: Movement | None, *of: str) -> DriftRow:
    changes = None if step is None else ImageChanges(3, 2, 1, 1000)
    time = f"2026-10-{number:02d}T04:00:00+00:00"
    return DriftRow(
        f"a/b@{number}", number, time, "5a", 1200, 3, 16, (), changes, reference, step, of
    )


def path_of(rows: tuple[DriftRow, ...]) -> Drift:
    why = hand_made(3, 4, "some")
    a, b = why.versions
    versions = {of.name: version_without_files(of.name, "s") for of in rows}
    return Drift("a/b", "53", rows[0].name, rows, (), (a, b), why, None, versions)


ROWS = (
    row(1, None, None),
    row(2, moved(0.5), moved(0.5)),
    row(4, moved(4.0), moved(3.8), "step", "reference"),
    row(9, moved(4.5), moved(0.6), "reference"),
)


def page_of(found: Drift, notes: tuple[str, ...] = ("A note.",)) -> DriftPage:
    keys = keys_of(found.explanation) if found.explanation else []
    shown = {
        key: ShownImage("a.jpg", "s3://b/a.jpg", "" if k % 2 else PIXEL, "gone" if k % 2 else "")
        for k, key in enumerate(keys)
    }
    return DriftPage(found, shown, notes, (("spec", "ab"),), "Where it comes from.")


def test_the_chart_has_every_distance_on_one_scale_and_marks_alarms() -> None:
    page = render_drift(page_of(path_of(ROWS))).decode()
    for at, kind in enumerate(("reference", "step")):
        drawn = page.split('<g transform="translate(0 ')[at + 1]
        moves = [getattr(of, kind) for of in ROWS]
        ticks = [
            (float(y), float(text))
            for y, text in re.findall(r'class="tick" x="\d+" y="([\d.]+)" dy="4">([\d.]+)<', drawn)
        ]
        (zero, nothing), *_, (top, most) = ticks
        assert nothing == 0
        assert most >= max(of.high for of in moves if of)
        bars = re.findall(r'class="bar" d="M(\d+) ([\d.]+)V([\d.]+)"', drawn)
        points = re.findall(
            r'class="(point|alarm)" (?:cx="|d="M)(\d+)(?:" cy="| )([\d.]+)[m"]', drawn
        )
        known = [(of, move) for of, move in zip(ROWS, moves, strict=True) if move]
        for (of, move), bar, point in zip(known, bars, points, strict=True):
            assert (point[0] == "alarm") == (kind in of.alarms)
            assert bar[0] == point[1]
            ends = [(zero - float(y)) / (zero - top) * most for y in (*bar[1:], point[2])]
            assert ends == pytest.approx([move.low, move.high, move.emd_corrected], abs=0.05)
        assert drawn.count('class="path"') == len(known) - 1
        assert re.findall(r'class="name"[^>]*>(@\d+)<', drawn) == ["@1", "@2", "@4", "@9"]


@pytest.mark.parametrize("most", [1e-4, 0.02, 0.21, 1.0, 4.99, 5.0, 37.0, 1000.0])
def test_an_axis_has_two_to_five_steps_of_round_numbers(most: float) -> None:
    step = _tick(most)
    assert 1.9 < most / step <= 5
    assert f"{step:.0e}"[0] in "125"


def test_the_page_says_first_which_versions_raise_an_alarm() -> None:
    page = render_drift(page_of(path_of(ROWS))).decode()
    headline = re.search(r'<p id="headline">(.*?)</p>', page)
    assert headline
    assert headline[1].startswith("2 of 4 versions of a/b raise an alarm: a/b@4 (differs from the")
    assert "<li>A note.</li>" in page
    assert page.count("<tr class=alarmed>") == 2
    assert "4.0 [3.5, 4.5]" in page
    assert "<td>the reference</td>" in page
    assert "neurons differ" in page
    assert page.count('<img src="data:') > 0
    assert "(gone)" in page


def test_distances_without_error_bars_and_paths_that_never_move_are_drawn() -> None:
    plain = Movement(2.0, None, None, None, None, None, None, None)
    still = moved(0.0, 0.0)
    page = render_drift(
        page_of(path_of((row(1, None, None), row(2, plain, plain), row(3, still, still))))
    ).decode()
    assert page.count('class="bar"') == 2
    assert page.count('class="point"') == 4
    assert "2.0 (not corrected)" in page
    unmoved = replace(path_of((row(1, None, None), row(2, still, still))), explanation=None)
    assert 'class="point"' in render_drift(page_of(unmoved)).decode()


@browser.needed
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_the_page_fits_keeps_nobody_out_and_runs_nothing(
    reader: Reader, tmp_path: Path, width: int, scheme: str
) -> None:
    rows = tuple(replace(of, tags=(HOSTILE,)) for of in ROWS) + tuple(
        row(10 + k, moved(4.0), moved(0.1)) for k in range(26)
    )
    path = tmp_path / "drift.html"
    path.write_bytes(render_drift(page_of(path_of(rows), (HOSTILE,))))
    reader.set_window(width, scheme=scheme)
    reader.driver.get(path.as_uri())
    reader.run("document.querySelector('details').open = true")
    assert reader.run("return document.documentElement.scrollWidth <= innerWidth")
    assert reader.run("return document.body.textContent").count(HOSTILE) == 5
    assert reader.run("return window.hurt === undefined")
    assert reader.barriers() == []
    reader.assert_no_request_and_no_message(path)
