"""Tests a refresh of many datasets: they go on beside each other, and no failure stops another."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import storage
from pipeline.building import datasets
from pipeline.building.planner import Planner
from pipeline.catalogue import Catalogue, dataset_of
from pipeline.comparing import Matrix, compare
from pipeline.errors import CorruptFile, GateError, SourceError, StorageError, UnexpectedError
from pipeline.events import Event, StepDone
from pipeline.refreshing import Refreshed, refresh
from pipeline.spec import Resources
from tests.support import tiny_network as tiny

COUNT = 30

RESOURCES = Resources(workers=0, threads=1)


class Night:
    """Datasets of an image each, and the file that names them."""

    def __init__(self, folder: Path, count: int = COUNT) -> None:
        self.folder = folder
        self.place = tiny.install(folder)
        self.names = [f"fleet/{at:02d}" for at in range(count)]
        self.file = folder / "datasets.yaml"
        for name in self.names:
            self.put(name, 1)
        self.write()
        self.catalogue = Catalogue(str(folder / "dnas"))

    def put(self, name: str, count: int, kind: str = "good") -> None:
        source = self.folder / "photos" / name
        source.mkdir(parents=True, exist_ok=True)
        for at in range(count):
            picture = tiny.Picture(kind, 100 * int(name[-2:]) + at)
            (source / f"{at}.png").write_bytes(picture.data)

    def write(self, gate: Iterable[dict[str, Any]] = (), **more: Any) -> None:
        sources = self.folder / "photos"
        content = {
            "catalogue": str(self.folder / "dnas"),
            "defaults": {**self.place.options, "max_failures": 0},
            "datasets": [{"name": name, "source": str(sources / name)} for name in self.names],
            "gate": list(gate),
        }
        self.file.write_text(yaml.safe_dump(content | more))

    def refresh(self, progress: Callable[[Event], None] | None = None) -> Refreshed:
        return refresh(str(self.file), resources=RESOURCES, progress=progress)

    def file_of(self, kind: str, name: str) -> Path:
        """Returns the path of a file of a dataset's current version."""
        version = self.catalogue.find(name)
        return Path(storage.local_path(self.catalogue.uri(kind, version.spec, name, version.dna)))

    def commits(self) -> Counter[str]:
        """Returns how many commits were made of each dataset."""
        return Counter(commit.action for commit in self.catalogue.log())


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path)


def failing(real: Callable[..., Any], name: str, error: Exception) -> Callable[..., Any]:
    """Returns a function that fails for one dataset: the name is in its second argument."""

    def call(first: Any, second: Any, *rest: Any, **more: Any) -> Any:
        if name in (getattr(second, "name", ""), getattr(second, "source", "")):
            raise error
        if getattr(getattr(second, "request", None), "name", "") == name:
            raise error
        return real(first, second, *rest, **more)

    return call


def test_a_failure_of_any_step_of_one_dataset_stops_no_other(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, odd, bad, lost, late = night.names[3:8]
    (night.folder / "photos" / away).rename(night.folder / "away")
    night.put(bad, 1, "not_an_image")
    plan, finish = Planner._plan, datasets.finish_dataset
    monkeypatch.setattr(Planner, "_plan", failing(plan, odd, ValueError("odd")))
    monkeypatch.setattr(
        "pipeline.building.runner._missing", _unlisted(lost, StorageError("not listed"))
    )
    monkeypatch.setattr(datasets, "finish_dataset", failing(finish, late, CorruptFile("damaged")))
    done = night.refresh()
    assert {name: type(error) for name, error in done.failed.items()} == {
        away: SourceError,
        odd: UnexpectedError,
        bad: SourceError,
        lost: StorageError,
        late: CorruptFile,
    }
    assert [result.name for result in done.datasets] == [
        name for name in night.names if name not in done.failed
    ]
    assert sorted(night.catalogue.names()) == sorted(result.name for result in done.datasets)
    assert all(str(error).startswith(f"{name}: ") for name, error in done.failed.items())
    assert done.error is not None
    assert done.error.exit_code == 1
    (matrix,) = done.matrices
    assert len(matrix.names) == COUNT - 5
    monkeypatch.undo()
    (night.folder / "away").rename(night.folder / "photos" / away)
    night.put(bad, 1)
    again = night.refresh()
    assert again.error is None
    assert {result.name for result in again.datasets if result.changed} == set(done.failed)
    assert set(night.commits().values()) == {1}


def _unlisted(name: str, error: Exception) -> Callable[[tuple[Any, Any]], list[int]]:
    from pipeline.building.runner import _missing as real

    def missing(one: tuple[Any, Any]) -> list[int]:
        if f"/{name}/" in one[0].work_uri:
            raise error
        return real(one)

    return missing


def test_only_broken_gates_exit_with_three(tmp_path: Path) -> None:
    night = Night(tmp_path, 3)
    first, second = night.names[:2]
    night.put(first, 2, "empty")
    (night.folder / "photos" / first / "0.png").write_bytes(tiny.Picture("good", 1).data)
    night.write([{"dataset": second, "min_images": 5}])
    done = night.refresh()
    assert isinstance(done.error, GateError)
    assert done.error.exit_code == 3
    assert set(done.failed) == {first}
    assert [verdict.outcome for verdict in done.verdicts] == ["broken"]


def test_a_killed_refresh_goes_on_where_it_was(night: Night) -> None:
    done: list[str] = []

    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.name.startswith("shard"):
            done.append(event.name)
            if len(done) == 12:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        night.refresh(kill)
    before = set(night.catalogue.names())
    assert 0 < len(before) < COUNT
    again = night.refresh()
    assert again.error is None
    assert {result.name for result in again.datasets if not result.changed} == before
    assert [result.name for result in again.datasets] == night.names
    assert sum(result.read for result in again.datasets) <= COUNT - 12
    assert night.commits() == {f"build {name}": 1 for name in night.names}


def test_two_refreshes_at_once_share_the_work(tmp_path: Path) -> None:
    night = Night(tmp_path, 10)
    ends: list[Refreshed] = []
    threads = [threading.Thread(target=lambda: ends.append(night.refresh())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, other = ends
    assert (one.error, other.error) == (None, None)
    assert night.commits() == {f"build {name}": 1 for name in night.names}
    for first, second in zip(one.datasets, other.datasets, strict=True):
        assert first.version == second.version
    read = sum(result.read for each in ends for result in each.datasets)
    assert read == len(night.names)


def test_the_gate_does_not_compare_again_what_the_outcome_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night(tmp_path, 3)
    night.refresh()
    compared: list[str] = []

    def noting(catalogue: Catalogue, names: Sequence[str] = (), **options: Any) -> Matrix:
        compared.append(dataset_of(names[0]))
        return compare(catalogue, names, **options)

    monkeypatch.setattr("pipeline.refreshing.gate.compare", noting)
    monkeypatch.setattr("pipeline.comparing.version_movement.compare", noting)
    for name in night.names[:2]:
        night.write([{"dataset": name, "against": "@-1", "max_move": 50, "layer": "a"}])
        night.put(name, 3)
        compared.clear()
        done = night.refresh()
        (verdict,) = done.verdicts
        assert (verdict.outcome, compared.count(name)) == ("holds", 1)
        again = night.refresh()  # nothing is new, and the last change is told again
        assert compared.count(name) == 2
        assert again.verdicts[0].row["value"] == verdict.row["value"]


def test_a_matrix_that_cannot_be_computed_keeps_no_bound_from_being_judged(tmp_path: Path) -> None:
    night = Night(tmp_path, 4)
    night.refresh()
    one, other, away, damaged = night.names
    (night.folder / "photos" / away).rename(night.folder / "away")
    night.file_of("dna", damaged).write_bytes(b"torn")
    night.put(one, 2)
    night.write([{"dataset": one, "min_images": 5}, {"a": one, "b": other, "max": 1000}])
    done = night.refresh()
    assert [verdict.outcome for verdict in done.verdicts] == ["broken", "holds"]
    assert (done.matrices, list(done.failed)) == ((), [away])
    assert type(done.error) is SourceError
    for told in (f"{away}: ", night.file_of("dna", damaged).name):
        assert told in str(done.error)


def test_only_a_dataset_without_an_earlier_version_is_new(tmp_path: Path) -> None:
    night = Night(tmp_path, 2)
    found = night.refresh().outcome
    assert [row["is_new"] for row in found["datasets"]] == [True, True]
    assert found["summary"]["images"]["added"] == 2
    night.file_of("failures", night.names[0]).unlink()  # it is written again
    found = night.refresh().outcome
    states = [(row["changed"], row["is_new"]) for row in found["datasets"]]
    assert states == [(True, False), (False, False)]
    assert found["summary"]["images"]["added"] == 0


def test_the_outcome_counts_the_whole_night(tmp_path: Path) -> None:
    night = Night(tmp_path, 4)
    night.refresh()
    grown, broken = night.names[1:3]
    night.put(grown, 2)
    night.put(broken, 1, "not_an_image")
    found = night.refresh().outcome["summary"]
    assert found["datasets"] == {
        "asked": 4,
        "unchanged": 2,
        "refreshed": 1,
        "failed": 1,
        "dropped": 0,
    }
    images = {"counted": 4, "failed": 0, "added": 1, "removed": 0, "changed": 1}
    images["datasets_of_unknown_changes"] = 0
    assert found["images"] == images  # a file that is written again counts as changed
    assert (found["moved"], found["cost"]["images_read"]) == (1, 2)
    assert found["cost"]["requests"] == 0  # files take none
    assert found["cost"]["seconds"] > 0
