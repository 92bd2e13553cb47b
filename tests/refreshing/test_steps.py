"""Tests a refresh from Python: what it returns, and what it raises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from PIL import Image

from pipeline.building import rename_dataset
from pipeline.catalogue import Catalogue, remove
from pipeline.comparing import Effort, Matrix, compare
from pipeline.engine import Engine, InProcess
from pipeline.errors import CorruptFile, GateError, SourceError, UnexpectedError, UsageError
from pipeline.events import Event, Warned
from pipeline.refreshing import Refreshed, load_config, refresh
from pipeline.reporting import metrics_text, night_sentence, render_night
from pipeline.spec import Resources
from tests.refreshing.test_config import one, write
from tests.refreshing.test_gate import PARTS, parted
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos

RESOURCES = Resources(workers=0, threads=2)


def test_a_refresh_returns_what_it_did(tmp_path: Path) -> None:
    file = parted(tmp_path, {"day": 100}, PARTS)
    done = refresh(str(file), resources=RESOURCES)
    done.require_ok()
    (day,) = done.datasets
    assert (day.name, day.changed, sorted(day.parts)) == ("day", True, ["day/rain", "day/sun"])
    (matrix,) = done.matrices
    assert set(matrix.names) == {"day", "day/rain", "day/sun"}
    assert [verdict.holds for verdict in done.verdicts] == [True]
    for path in (tmp_path / "day" / "rain").iterdir():
        Image.open(path).point(lambda value: value // 8).save(path)
    refresh(str(file), resources=RESOURCES)
    broken = refresh(
        load_config(str(parted(tmp_path, {"day": 100}, "{a: day, b: day/rain, max: 0}"))),
        done.catalogue,
        resources=RESOURCES,
    )
    assert not broken.datasets[0].changed
    assert isinstance(broken.error, GateError)
    with pytest.raises(GateError, match="says no: day and day/rain"):
        broken.require_ok()


def test_a_build_that_fails_is_returned_as_an_error(tmp_path: Path) -> None:
    file = parted(tmp_path, {"day": 100, "night": 100}, PARTS)
    (tmp_path / "night").rename(tmp_path / "away")
    done = refresh(str(file), resources=RESOURCES)
    assert [result.name for result in done.datasets] == ["day"]
    assert [verdict.holds for verdict in done.verdicts] == [True]
    assert {name: type(error) for name, error in done.failed.items()} == {"night": SourceError}
    with pytest.raises(SourceError, match="night does not exist"):
        done.require_ok()


class Broken(InProcess):
    """An engine that breaks in a way that nobody foresaw, in its work or before it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def run_shards(self, _: object) -> NoReturn:
        raise self.error

    @contextmanager
    def broken_at_once(self) -> Iterator[Engine]:
        raise self.error
        yield self


@pytest.mark.parametrize("at_once", [False, True])
def test_an_engine_that_breaks_ends_no_refresh(tmp_path: Path, at_once: bool) -> None:
    broken = Broken(RuntimeError("Ray is of another version"))
    file = str(parted(tmp_path, {"day": 100}, PARTS))
    done = refresh(file, engine=broken.broken_at_once() if at_once else broken, resources=RESOURCES)
    assert (done.datasets, [verdict.holds for verdict in done.verdicts]) == ((), [False])
    assert isinstance(done.error, UnexpectedError)
    assert done.failed == {"day": done.error}
    assert "unexpected RuntimeError: Ray is of another version" in str(done.outcome["error"])
    assert "Traceback" in done.error.details
    broken = Broken(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        refresh(file, engine=broken.broken_at_once() if at_once else broken, resources=RESOURCES)


def test_an_engine_that_breaks_hides_no_error_of_another_dataset(tmp_path: Path) -> None:
    file = parted(tmp_path, {"day": 100, "night": 100}, PARTS)
    (tmp_path / "night").rename(tmp_path / "away")
    engine = Broken(RuntimeError("Ray is of another version"))
    done = refresh(str(file), engine=engine, resources=RESOURCES)
    assert isinstance(done.error, UnexpectedError)
    ended, missing = str(done.error).splitlines()
    assert "unexpected RuntimeError: Ray is of another version" in ended
    assert "night does not exist" in missing
    assert {name: str(error) for name, error in done.failed.items()} == {
        "day": ended,
        "night": missing,
    }
    assert done.other_error is None


@pytest.mark.parametrize("gated", [False, True])
def test_a_catalogue_that_cannot_be_read_is_told_with_a_gate_as_without(
    tmp_path: Path, gated: bool
) -> None:
    file = parted(tmp_path, {"day": 100}, PARTS)
    if not gated:
        file.write_text(file.read_text().partition("gate:")[0])
    first = refresh(str(file), resources=RESOURCES)
    head = tmp_path / "c" / "_log" / f"{first.catalogue.head().number:020}.json"
    head.write_bytes(head.read_bytes()[:50])
    done = refresh(str(file), resources=RESOURCES)
    assert (done.datasets, list(done.failed)) == ((), ["day"])
    assert isinstance(done.error, CorruptFile)
    assert len(str(done.error).splitlines()) == 1
    assert done.outcome["failed"][0]["error"] == "CorruptFile"


def test_the_matrix_and_the_gate_are_of_one_state_of_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = iter([lambda place: remove(place, ["night"]), lambda place: remove(place, ["day"])])

    def compared(place: Catalogue, *names: object, **options: Any) -> Matrix:
        next(others)(place)  # what another job does just before
        matrix = compare(place, *names, **options)
        next(others)(place)  # and just after
        return matrix

    monkeypatch.setattr("pipeline.refreshing.steps.compare", compared)
    bounds = PARTS, "{a: day, b: night, max: 99}", "{dataset: day, min_images: 24}"
    file = parted(tmp_path, {"day": 100, "night": 100}, *bounds)
    done = refresh(str(file), resources=RESOURCES)
    assert ([verdict.outcome for verdict in done.verdicts], done.error) == (["holds"] * 3, None)
    assert set(done.matrices[0].names) == {"day", "day/rain", "day/sun", "night"}


def test_an_alarm_that_a_refresh_has_not_told_is_told_by_the_next_ones_for_some_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "day", 60)
    text = f"catalogue: {tmp_path / 'c'}\n{one(name='day', source=str(tmp_path / 'day'))}"
    options = tiny.install(tmp_path).options
    file = write(tmp_path, f"{text}defaults: {json.dumps(options)}\n")
    assert refresh(file, resources=RESOURCES).outcome["summary"]["alarms"] == []
    assert refresh(file, resources=RESOURCES).outcome["datasets"][0]["moved"] is None
    for path in (tmp_path / "day").iterdir():
        Image.open(path).point(lambda value: value // 6).save(path)

    def dies(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    def unreadable(*_: object, **__: object) -> NoReturn:
        raise CorruptFile("the log is torn")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.refreshing.steps.with_movements", dies)
        with pytest.raises(KeyboardInterrupt):
            refresh(file, resources=RESOURCES)
    for _ in range(2):
        done = refresh(file, resources=RESOURCES)
        summary, (row,) = done.outcome["summary"], done.outcome["datasets"]
        assert (row["changed"], row["alarm"], row["moved"]["from"]) == (False, True, "day@1")
        assert (summary["alarms"], summary["moved"], summary["untested"]) == (["day"], 0, 0)
        assert "; 1 drift alarm: day; " in night_sentence(done.outcome)
        assert "day has drifted: " in render_night(done.outcome).decode()
        metrics = metrics_text(done.outcome).decode()
        assert re.search(r'vdna_dataset_drift_alarm{.*dataset="day".*} 1.0', metrics)
        assert done.datasets[0].replaced is None
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.comparing.version_movement.last_versions", unreadable)
        effort = Effort(progress=(told := list[Event]()).append)
        done = refresh(file, resources=RESOURCES, effort=effort)
        assert (done.error, done.outcome["summary"]["alarms"]) == (None, [])
        warned = [event.message for event in told if isinstance(event, Warned)]
        assert len(warned) == 1
        assert "changed is not measured again: the log is torn" in warned[0]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.comparing.version_movement.compare", unreadable)
        done = refresh(file, resources=RESOURCES)
        summary, (row,) = done.outcome["summary"], done.outcome["datasets"]
        assert (summary["alarms"], summary["untested"]) == ([], 1)
        assert (row["alarm"], row["unmeasured"]) == (None, "the log is torn")
        assert "; 0 drift alarms (1 version not tested); " in night_sentence(done.outcome)
    monkeypatch.setattr("pipeline.comparing.version_movement.TOLD_AGAIN", timedelta(0))
    done = refresh(file, resources=RESOURCES)
    assert (done.outcome["summary"]["alarms"], done.datasets[0].moved) == ([], None)


def test_an_alarm_is_told_again_of_a_dataset_that_was_renamed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alarms_of(*names: str) -> list[str]:
        config = {"catalogue": str(tmp_path / "c"), "defaults": options}
        config["datasets"] = [{"name": name, "source": sources[name]} for name in names]
        nonlocal done
        done = refresh(write(tmp_path, json.dumps(config)), resources=RESOURCES)
        assert done.outcome["summary"]["untested"] == 0
        return done.outcome["summary"]["alarms"]

    done: Refreshed
    options = tiny.install(tmp_path).options
    write_photos(tmp_path / "photos", 60)
    write_photos(tmp_path / "others", 60, 200)
    photos, others = str(tmp_path / "photos"), str(tmp_path / "others")
    sources = {"day": photos, "city": photos, "city/day": photos}
    assert alarms_of("day") == []
    for path in (tmp_path / "photos").iterdir():
        Image.open(path).point(lambda value: value // 6).save(path)
    assert alarms_of("day") == ["day"]
    rename_dataset(done.catalogue, "day", "city")
    assert alarms_of("city") == ["city"]
    rename_dataset(done.catalogue, "city", "city/day")
    sources["day"] = others
    for _ in range(2):  # what is `day` by now was no version of it, nor it one of what is
        assert alarms_of("city/day", "day") == ["city/day"]
        row, other = done.outcome["datasets"]
        assert (row["changed"], row["moved"]["from"], other["moved"]) == (False, "day@1", None)
        assert done.datasets[0].former_version == "day@1"
    metrics = metrics_text(done.outcome).decode()
    assert re.search(r'vdna_dataset_drift_alarm{.*dataset="city/day".*} 1.0', metrics)
    with monkeypatch.context() as patch:  # folds are counted under the name that each version has
        patch.setattr("pipeline.comparing.version_movement.LEAST_STEPPED", 17)
        row, _ = refresh(str(tmp_path / "datasets.yaml"), resources=RESOURCES).outcome["datasets"]
        assert row["unmeasured"] == "a drift alarm takes 17 groups of images, and there are 16"


def test_an_engine_that_breaks_as_it_closes_is_told_beside_what_was_built(tmp_path: Path) -> None:
    @contextmanager
    def closing() -> Iterator[Engine]:
        yield InProcess()
        raise RuntimeError("a worker does not end")

    file = parted(tmp_path, {"day": 100}, PARTS)
    done = refresh(str(file), engine=closing(), resources=RESOURCES)
    assert ([result.name for result in done.datasets], done.failed) == (["day"], {})
    assert done.other_error is done.error
    assert "a worker does not end" in done.outcome["other_error"]


def test_a_matrix_that_cannot_be_computed_is_told_beside_a_broken_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: object, **__: object) -> NoReturn:
        raise CorruptFile("a.parquet is torn")

    monkeypatch.setattr("pipeline.refreshing.steps.compare", torn)
    limit = "{dataset: day, min_images: 1000}"
    done = refresh(str(parted(tmp_path, {"day": 100}, limit)), resources=RESOURCES)
    assert [verdict.outcome for verdict in done.verdicts] == ["broken"]
    assert str(done.error) == str(done.other_error) == "a.parquet is torn"
    (tmp_path / "night").rename(tmp_path / "away")
    two = refresh(str(parted(tmp_path, {"day": 100, "night": 100}, limit)), resources=RESOURCES)
    assert list(two.failed) == ["night"]
    assert str(two.other_error) == "a.parquet is torn"
    assert str(two.error).splitlines()[-1] == "a.parquet is torn"


def test_a_refresh_needs_a_catalogue(tmp_path: Path) -> None:
    file = write(tmp_path, one())
    with pytest.raises(UsageError, match=f"{file} names no catalogue"):
        refresh(file)
