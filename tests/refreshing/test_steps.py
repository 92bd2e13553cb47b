"""Tests a refresh from Python: what it returns, and what it raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from pipeline.engine import Engine, InProcess
from pipeline.errors import CorruptFile, GateError, SourceError, UnexpectedError, UsageError
from pipeline.refreshing import load_config, refresh
from pipeline.spec import Resources
from tests.refreshing.test_config import one, write
from tests.refreshing.test_gate import PARTS, parted

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
