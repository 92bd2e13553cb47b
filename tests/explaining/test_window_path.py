"""A dataset of days is followed from each window of days to the next."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.app import app
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.comparing import compare, movement_between
from pipeline.engine import InProcess
from pipeline.errors import NotFound, UsageError
from pipeline.explaining import Drift, difference, drift
from pipeline.spec import Resources
from tests.support import tiny_network as tiny

MONDAY = date(2026, 11, 2)
DAYS = (0, 1, 2, 4, 5, 6, 7, 8)
LAST = 8
TORN = 4
"""No image of this day can be read."""
BRIGHT = 7
"""From this day on, images are brighter."""


def day(number: int) -> str:
    return str(MONDAY + timedelta(number))


def named(first: int, last: int, count: int = 0) -> str:
    return f"cams@{day(first)}..{day(last)}" + f":{count}" * bool(count)


def fill(source: Path, number: int, images: int = 30) -> None:
    folder = source / f"day={day(number)}"
    folder.mkdir(parents=True)
    for at in range(images):
        chance = np.random.default_rng([number, at])
        pixels = chance.integers(0, 160, (tiny.SIDE, tiny.SIDE, 3)) + 90 * (number >= BRIGHT)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{at:02}.png")
        if number == TORN:
            (folder / f"{at:02}.png").write_bytes(b"torn")


def build(place: Catalogue, source: Path, options: dict[str, Any]) -> None:
    request = Request("cams", str(source), max_failures=0.5, by="1", **options)
    build_datasets(place, [request], InProcess(), Resources(workers=0, threads=2))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """A dataset of eight days in one commit, and in a later one it has lost the last day."""
    base = tmp_path_factory.mktemp("windows")
    catalogue, source = Catalogue(str(base / "catalogue")), base / "source"
    options = tiny.install(base).options
    for number in DAYS:
        fill(source, number)
    build(catalogue, source, options)
    for path in (source / f"day={day(LAST)}").iterdir():
        path.unlink()
    build(catalogue, source, options)
    return catalogue


@pytest.fixture(scope="module")
def by_twos(place: Catalogue) -> Drift:
    return drift(place, "cams@1", window="2")


@pytest.mark.soak
def test_windows_go_end_to_end_back_from_the_newest_day(place: Catalogue, by_twos: Drift) -> None:
    names = [named(0, 1), named(2, 4, 2), named(5, 6), named(7, 8)]
    assert [row.name for row in by_twos.rows] == names
    assert (by_twos.reference, by_twos.left_out) == (names[0], ())
    assert [row.images for row in by_twos.rows] == [60, 30, 60, 60]
    assert [row.failed for row in by_twos.rows] == [0, 30, 0, 0]
    assert [row.time for row in by_twos.rows] == [day(n) for n in (1, 4, 6, 8)]
    assert {row.commit for row in by_twos.rows} == {1}
    assert {row.changes for row in by_twos.rows} == {None}


def test_distances_are_those_of_compare(place: Catalogue, by_twos: Drift) -> None:
    for before, row in zip(by_twos.rows, by_twos.rows[1:], strict=False):
        for other, move in ((by_twos.reference, row.reference), (before.name, row.step)):
            matrix = compare(place, [other, row.name], at=1)
            assert move == movement_between(matrix, other, row.name)
            assert move.low <= move.emd_corrected <= move.high
            assert move.paired == 0


def test_the_window_that_differs_raises_an_alarm_and_is_explained(
    place: Catalogue, by_twos: Drift
) -> None:
    raised = {row.name: row.alarms for row in by_twos.alarmed}
    assert raised == {named(7, 8): ("step", "reference")}
    assert by_twos.moved == (named(5, 6), named(7, 8))
    changed = difference(place, *by_twos.moved, at=1)
    assert by_twos.difference is not None
    assert by_twos.difference.changes == changed.changes
    assert by_twos.explanation is not None
    assert by_twos.explanation.layers.equals(changed.explanation.layers)
    assert "<Drift of cams over 4 windows from" in repr(by_twos)


def test_a_window_of_the_calendar_that_lacks_a_day_is_told_and_left_out(place: Catalogue) -> None:
    found = drift(place, "cams@1", window="3d")
    assert [row.name for row in found.rows] == [named(0, 2), named(6, 8)]
    ((name, why),) = [(of.name, of.why) for of in found.left_out]
    assert name == named(3, 5)
    assert (
        why == f"there are no images of {day(3)} ({named(3, 5, 2)} takes the days that have some)"
    )
    other = place.find(named(3, 5, 2), at=1)
    assert (other.images, other.failed) == (30, 30)


def test_a_path_of_the_newest_version_ends_with_its_newest_day(place: Catalogue) -> None:
    found = drift(place, "cams", window="3")
    assert [row.name for row in found.rows] == [named(1, 4, 3), named(5, 7)]


def test_a_window_without_an_image_that_can_be_read_is_told_and_left_out(place: Catalogue) -> None:
    found = drift(place, "cams@1", window="1")
    assert len(found.rows) == 7
    (torn,) = found.left_out
    assert torn.name == named(TORN, TORN)
    assert torn.why.startswith("none of 30 candidates is an image that can be read")


def test_fewer_windows_keep_their_reference_and_know_the_one_before(
    place: Catalogue, by_twos: Drift
) -> None:
    found = drift(place, "cams@1", window="2", limit=2)
    assert found.rows == by_twos.rows[-2:]
    assert found.reference == by_twos.reference


def test_another_window_may_be_the_reference(place: Catalogue, by_twos: Drift) -> None:
    same = drift(place, "cams@1", window="2", reference=f"{day(5)}..{day(6)}")
    assert same.reference == named(5, 6)
    assert [row.reference is None for row in same.rows] == [of == 2 for of in range(4)]
    assert [row.step for row in same.rows] == [row.step for row in by_twos.rows]
    other = drift(place, "cams@1", window="2", reference=f"@{day(6)}..{day(8)}")
    assert other.reference == named(6, 8)
    assert other.rows[3].reference is not None
    assert other.rows[3].reference.paired == 1  # all of its images are in the reference
    with pytest.raises(UsageError, match="the reference is '-1', and that of a path over windows"):
        drift(place, "cams@1", window="2", reference="-1")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("cams", {"window": "7w"}, UsageError, "the window is '7w'; give a number of days"),
        ("cams", {"window": "0d"}, UsageError, "the window is '0d'"),
        ("cams", {"window": ""}, UsageError, "the window is ''"),
        ("cams", {"window": "-d"}, UsageError, "the window is '-d'"),
        ("cams", {"window": "5"}, UsageError, "cams has 1 of '5', where two are needed; give a sh"),
        (
            "cams@1",
            {"window": "4d"},
            UsageError,
            "of '4d', .*; left out: .*, as there are no im",
        ),
        ("cams/day-2026-11-02", {"window": "1"}, NotFound, "has no parts, so it keeps no days"),
        ("cams@last:7d", {}, UsageError, "no history; vdna drift cams with .*window.*7d"),
        ("cams@last:7d", {"window": "7d"}, UsageError, "no history"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    place: Catalogue, name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        drift(place, name, **options)


def test_it_is_said_for_people_and_as_json(
    place: Catalogue, by_twos: Drift, tmp_path: Path
) -> None:
    page, command = tmp_path / "drift.html", ["drift", "cams@1", "--window", "2", "-c", place.root]
    told = CliRunner().invoke(app, [*command, "--html", str(page)])
    assert told.exit_code == 0, told.output
    heads, *_ = told.stdout.splitlines()
    assert heads.split()[:3] == ["window", "images", "from"]
    assert "1 of 4 windows of cams raises an alarm" in told.stdout
    assert "At most 5% of histories of 30 windows have a false alarm, if no day" in told.stdout
    assert "version" not in told.stdout.partition("layer")[0].partition("differs from")[0]
    as_json = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert as_json["window"] == "2"
    assert [row["name"] for row in as_json["versions"]] == [row.name for row in by_twos.rows]
    shown = page.read_text()
    assert "cams over its windows" in shown
    assert f">{day(LAST)[5:]}<" in shown  # in the chart, by its last day
    assert "Its windows" in shown
