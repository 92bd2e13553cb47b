"""`verify` and `gc` as many tasks: the same findings and removals, whatever the order of tasks."""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline import storage
from pipeline.catalogue import Catalogue, Finding, collect, garbage, verify
from pipeline.catalogue import garbage_collection as gc_module
from pipeline.catalogue import verification as verify_module
from pipeline.catalogue.partial_sums import read_partials, sum_of_partials
from pipeline.counting import partial_uri
from pipeline.counting import reduction as reduce_module
from pipeline.engine import RayEngine
from pipeline.errors import CorruptFile, TransientError
from pipeline.events import Event, Finished, Started, StepDone
from pipeline.mapper import Mapper, SerialMapper
from pipeline.sources import plan
from pipeline.spec import Resources
from tests.golden.handmade import commit_dataset, entries, hand_made
from tests.support.builders import all_shards

T = TypeVar("T")

R = TypeVar("R")

NOW = timedelta(seconds=-60)


class Shuffled(SerialMapper):
    """Runs tasks as a cluster does: they and their results are pickled, and end in any order."""

    workers = 4

    def __init__(self, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.tasks = 0

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        waiting = list(items)
        while waiting:
            item = waiting.pop(self.chance.randrange(min(len(waiting), 2 * self.workers)))
            call, given = pickle.loads(pickle.dumps((function, item)))
            self.tasks += 1
            yield pickle.loads(pickle.dumps(call(given)))


def put(catalogue: Catalogue, name: str, images: int, shard_images: int = 1) -> None:
    manifest = plan(entries(name, images), shard_images=shard_images)
    commit_dataset(catalogue, name, manifest, [hand_made(s) for s in all_shards(manifest)])


@pytest.fixture(scope="module", autouse=True)
def trees() -> Iterator[None]:
    """Makes small datasets have trees of sums, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduce_module, "FAN_IN", 2)
        patch.setattr(reduce_module, "LAST_SUMMANDS", 2)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, trees: None) -> Path:
    """Four datasets, of which one has 34 shards, three in some folds, and an older version."""
    folder = tmp_path_factory.mktemp("built") / "catalogue"
    for images in (33, 34):
        put(Catalogue(str(folder)), "large", images)
    for name in ("a", "b", "c"):
        put(Catalogue(str(folder)), name, 2)
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Catalogue:
    shutil.copytree(built, tmp_path / "copy")
    return Catalogue(str(tmp_path / "copy"))


def damage(uri: str) -> str:
    data = bytearray(storage.read(uri))
    data[len(data) // 4] ^= 1
    storage.replace(uri, bytes(data))
    return uri


def damaged_partial(place: Catalogue, name: str) -> str:
    version = place.find(name)
    key = place.manifest(name, version).keys(version.spec, version.products)[-1]
    return damage(partial_uri(place.partials_uri(name, version), key))


def all_of(place: Catalogue, mapper: Mapper | None = None) -> list[Finding]:
    return list(verify(place, all_versions=True, mapper=mapper))


@pytest.mark.parametrize(
    ("large", "spoil"),
    [(10**6, "a"), (10**6, "large"), (30, None), (30, "a"), (30, "large"), (0, "a")],
)
def test_many_tasks_find_what_one_process_finds(
    place: Catalogue, large: int, spoil: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spoil:
        damaged_partial(place, spoil)
    alone = all_of(place)
    wrong = {(finding.dataset, finding.check) for finding in alone if not finding.ok}
    assert wrong == ({(spoil, "partials")} if spoil else set())
    monkeypatch.setattr(verify_module, "LARGE", large)
    first, second = (all_of(place, Shuffled(seed)) for seed in (1, 2))
    assert first == second  # the order of tasks is not seen
    assert sorted(map(str, first)) == sorted(map(str, alone))
    names = [finding.dataset for finding in first]
    assert large or names == [finding.dataset for finding in alone]


def test_a_large_version_is_read_by_many_tasks_that_tell_how_far_they_are(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "LARGE", 30)
    mapper, told = Shuffled(), list[Event]()
    findings = list(verify(place, ["large"], mapper=mapper, progress=told.append))
    assert [finding.check for finding in findings if not finding.ok] == []
    read, *added = told[:3], *told[3:]
    assert read == [Started(34, 1, unit="candidates", step="tasks"), StepDone(34), Finished()]
    assert added[0] == Started(34, mapper.tasks - 1, unit="partials", step="sums")
    assert sum(event.units for event in added if isinstance(event, StepDone)) == 34
    assert len(added) == mapper.tasks - 1 + 2
    assert mapper.tasks > 17  # some for each fold
    assert added[-1] == Finished()


def test_each_small_version_is_one_task(place: Catalogue) -> None:
    mapper, told = Shuffled(), list[Event]()
    findings = list(verify(place, mapper=mapper, progress=told.append))
    assert mapper.tasks == 4
    assert told[0] == Started(len(findings), 4, unit="checks", step="versions")
    names = [event.name for event in told if isinstance(event, StepDone)]
    assert names == ["a", "b", "c", "large"]


def test_partials_are_added_in_one_order_whatever_the_order_of_tasks(place: Catalogue) -> None:
    """Their float sums are those of the build, to the last bit."""
    version = place.find("large")
    manifest, work = place.manifest("large", version), place.partials_uri("large", version)
    alone = sum_of_partials(manifest, work, version)
    for seed in range(3):
        told: list[Event] = []
        again = sum_of_partials(manifest, work, version, Shuffled(seed), told.append)
        assert again.dna.identical(alone.dna)
        assert again.shards == alone.shards
        assert again.failures == alone.failures
    assert alone.dna.identical(place.load("large"))


def test_partials_of_which_some_are_gone_are_each_read(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "LARGE", 30)
    monkeypatch.setattr("pipeline.catalogue.partial_sums.READ_IN_A_TASK", 12)
    version = place.find("large")
    keys = place.manifest("large", version).keys(version.spec, version.products)
    work = place.partials_uri("large", version)
    for key in keys[:3]:
        storage.delete(partial_uri(work, key))
    mapper, told = Shuffled(), list[Event]()
    (found,) = (
        finding
        for finding in verify(place, ["large"], mapper=mapper, progress=told.append)
        if finding.check == "partials"
    )
    assert found.ok
    assert found.detail == "31 of 34 are kept; each is whole"
    assert told[3] == Started(31, 3, unit="partials", step="tasks")
    assert sorted(event.units for event in told[4:] if isinstance(event, StepDone)) == [7, 12, 12]
    uri = damaged_partial(place, "large")
    with pytest.raises(CorruptFile, match=uri.rpartition("/")[2]):
        read_partials([partial_uri(work, key) for key in keys[3:]], mapper)


def test_a_collection_by_tasks_removes_the_same(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc_module, "REMOVED_AT_ONCE", 10)
    mapper, told = Shuffled(), list[Event]()
    alone = {item.uri for item in garbage(place, keep=1, grace=NOW)}
    assert {item.uri for item in garbage(place, keep=1, grace=NOW, mapper=mapper)} == alone
    assert len(alone) > 4
    sizes = sum(storage.info(uri).size for uri in alone)
    before = {item.uri for item in storage.walk(place.root)}
    assert collect(place, keep=1, grace=NOW, mapper=mapper, progress=told.append) == (
        len(alone),
        sizes,
    )
    assert {item.uri for item in storage.walk(place.root)} == before - alone
    assert [finding for finding in all_of(place) if not finding.ok] == []
    batches = -(-len(alone) // 10)
    started = Started(len(alone), batches, unit="objects", step="batches")
    assert told[-batches - 2] == started
    assert sum(step.units for step in told[-batches - 1 : -1] if isinstance(step, StepDone)) == len(
        alone
    )


@pytest.mark.parametrize("large", [10**6, 30])
def test_a_damaged_version_stops_a_collection_by_tasks(
    place: Catalogue, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "LARGE", large)
    uri = damaged_partial(place, "large")
    before = {item.uri for item in storage.walk(place.root)}
    with pytest.raises(
        CorruptFile, match=rf"nothing was removed.*large, commit 2, partials: {uri}"
    ):
        collect(place, keep=1, grace=NOW, mapper=Shuffled())
    assert {item.uri for item in storage.walk(place.root)} == before


def test_a_store_that_does_not_answer_a_task_is_not_damage(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(uri: str) -> bytes:
        raise TransientError(f"{uri}: no answer")

    monkeypatch.setattr("pipeline.catalogue.partial_sums.load_partial", silent)
    with pytest.raises(TransientError, match="partials: not checked, because the store did"):
        all_of(place, Shuffled())
    with pytest.raises(TransientError, match="no answer"):
        collect(place, keep=1, grace=NOW, mapper=Shuffled())


@pytest.mark.soak
def test_tasks_of_a_real_ray_do_the_same(place: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes seconds to start."""
    monkeypatch.setattr(verify_module, "LARGE", 30)
    alone = all_of(place)
    lost = {item.uri for item in garbage(place, keep=1, grace=NOW)}
    with RayEngine(Resources(workers=2), "local") as engine:
        assert all_of(place, engine) == alone
        assert collect(place, keep=1, grace=NOW, mapper=engine)[0] == len(lost)
    assert not lost & {item.uri for item in storage.walk(place.root)}
