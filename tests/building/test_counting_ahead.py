"""Tests that shards of a large source are counted while it is listed, each image once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from threading import Event as Signal
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import storage
from pipeline.building import Erased, EraseOptions, Request, build_datasets, datasets, erase_images
from pipeline.building.counting_ahead import CountingAhead
from pipeline.building.plan_counting import count_shards
from pipeline.building.runner import require_counted
from pipeline.catalogue import Catalogue, verify
from pipeline.catalogue.garbage_collection import noted_plans
from pipeline.counting import Counter, ShardJob, ShardReceipt, partial_uri
from pipeline.counting.leases import Lease, claim
from pipeline.engine import InProcess
from pipeline.errors import (
    ConservationError,
    GateError,
    NotFound,
    SourceError,
    StorageError,
    TransientError,
    UsageError,
)
from pipeline.events import Event, Finished, Said, Started, StepDone, StepFailed
from pipeline.mapper import SerialMapper
from pipeline.sources import (
    ChangeCounts,
    Entries,
    Entry,
    ImageChanges,
    Manifest,
    Shard,
    blocks,
    task_listing,
)
from pipeline.spec import Resources
from tests.sources.test_inventory import report, rows_of
from tests.support import tiny_network as tiny
from tests.support.builders import jpeg, same_counts_and_failures
from tests.support.killer import Killed
from tests.support.s3 import put
from tests.support.small_sources import shrink, shrink_plans

IMAGES = 60
GROWN = 140
RESOURCES = Resources(workers=0, threads=1)
COUNTING: dict[str, Any] = {}


class TaskEngine(InProcess):
    """An engine whose functions run elsewhere, as far as its callers know."""

    in_process = False
    workers = 2


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory: pytest.TempPathFactory) -> None:
    options = tiny.install(tmp_path_factory.mktemp("tiny")).options
    COUNTING.update(options, shard_images=4, max_failures=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, block=10, many=20, keys=10, alone=10)
    real = storage.list_page

    def list_page(uri: str, after: str) -> tuple[list[Any], str, bool]:
        items, last, more = real(uri, after)
        if len(items) <= 5:
            return items, last, more
        return items[:5], items[4].uri.removeprefix(f"{uri}/"), True

    monkeypatch.setattr(storage, "list_page", list_page)


@pytest.fixture(scope="module")
def images(bucket: str) -> str:
    source = f"{bucket}/counting-ahead/images"
    for i in range(IMAGES):
        data = b"no image" if i == 37 else jpeg(i, 24, 16)
        put(f"{source}/day{i % 5}/{i:03}.jpg", data)
    return source


def build(
    root: str, images: str, engine: InProcess, listen: Any = None, changes: str | None = None
) -> Any:
    request = Request("photos", images, changes=changes, **COUNTING)
    (result,) = build_datasets(Catalogue(root), [request], engine, RESOURCES, listen)
    return result


@pytest.fixture(scope="module")
def alone(bucket: str, images: str) -> Iterator[Any]:
    """The same dataset, listed and counted by one process, and planned in the same blocks."""
    with pytest.MonkeyPatch.context() as patch:
        shrink_plans(patch, block=10, many=20)
        root = f"{bucket}/counting-ahead/alone"
        result = build(root, images, InProcess())
        yield Catalogue(root), result


def test_a_build_counts_while_it_lists(root: str, images: str, alone: Any) -> None:
    events: list[Event] = []
    with TaskEngine() as engine:
        result = build(root, images, engine, events.append)
    catalogue, expected = alone
    place = Catalogue(root)
    assert (result.version.images, result.version.failed) == (IMAGES - 1, 1)
    assert result.version.manifest == expected.version.manifest
    assert same_counts_and_failures(place.load("photos"), catalogue.load("photos"))
    assert result.counted_shards == expected.counted_shards
    assert [finding for finding in verify(place) if not finding.ok] == []
    stages = [event for event in events if isinstance(event, Started) and event.unit == "images"]
    assert len(stages) > 1
    assert stages[-1].steps == 0  # everything was counted while it was listed
    assert sum(event.units for event in events if isinstance(event, StepDone)) == IMAGES


def test_listeners_know_one_stage_at_a_time(root: str, images: str) -> None:
    """The plans of several datasets are a stage until shards are counted beside them."""
    told: list[Event] = []
    names = ("photos", "again")
    requests = [Request(name, images, **COUNTING) for name in names]
    with TaskEngine() as engine:
        build_datasets(Catalogue(root), requests, engine, RESOURCES, told.append)
    here: Started | None = None
    seen: dict[str, list[int]] = {"plans": [], "shards": []}
    for event in told:
        if isinstance(event, Started):
            assert here is None
            here = event
            seen.setdefault(event.step, []).append(0)
        elif isinstance(event, Finished):
            assert event.ok
            here = None
        elif isinstance(event, StepDone):
            assert here is not None
            assert (here.unit == "datasets") == (event.name in names)
            seen[here.step][-1] += event.units
    assert here is None
    assert len(seen["plans"]) == 1
    assert seen["plans"][0] < len(names), "shards were counted before all were planned"
    assert sum(seen["shards"]) == 2 * IMAGES


def test_shards_of_a_report_are_counted_while_its_blocks_are_planned(
    root: str, images: str
) -> None:
    uri = report(images, rows_of(images))
    events: list[Event] = []
    with TaskEngine() as engine:
        result = build(f"{root}/tasks", uri, engine, events.append)
    expected = build(f"{root}/alone", uri, InProcess())
    places = [Catalogue(f"{root}/{name}") for name in ("tasks", "alone")]
    assert (result.version.images, result.version.failed) == (IMAGES - 1, 1)
    assert result.version.manifest == expected.version.manifest
    assert same_counts_and_failures(*(place.load("photos") for place in places))
    stages = [event for event in events if isinstance(event, Started) and event.unit == "images"]
    assert len(stages) > 1
    assert stages[-1].steps == 0  # everything was counted while it was planned
    with pytest.raises(SourceError, match="does not exist"):
        list(storage.walk(f"{root}/tasks/_work/_listings"))


@pytest.mark.parametrize("at", [2, 5, 8])
def test_a_build_that_ends_while_it_lists_is_gone_on_with(
    root: str, images: str, alone: Any, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = task_listing.Stretch.run
    runs = 0

    def run(stretch: task_listing.Stretch) -> Any:
        nonlocal runs
        runs += 1
        if runs == at:
            raise StorageError("out of power")
        return real(stretch)

    with monkeypatch.context() as patch, TaskEngine() as engine:
        patch.setattr(task_listing.Stretch, "run", run)
        with pytest.raises(StorageError, match="out of power"):
            build(root, images, engine)
    counted: list[int] = []
    make = Counter.make
    monkeypatch.setattr(
        Counter,
        "make",
        lambda counter, shard, *a, **k: (
            counted.append(len(shard.members)),
            make(counter, shard, *a, **k),
        )[1],
    )
    with TaskEngine() as engine:
        result = build(root, images, engine)
    catalogue, expected = alone
    assert result.version.manifest == expected.version.manifest
    assert same_counts_and_failures(Catalogue(root).load("photos"), catalogue.load("photos"))
    if at == 8:
        assert sum(counted) < IMAGES


def partials(root: str) -> list[str]:
    """Lists the sums of shards that are stored."""
    try:
        return [of.uri for of in storage.walk(f"{root}/_work") if "/partials/" in of.uri]
    except SourceError:
        return []


@pytest.mark.soak  # test_erasing.py has what such a build leaves, made at less cost
def test_images_are_erased_from_what_a_build_has_counted_that_died_while_it_listed(
    root: str, images: str, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums name no image, so that no search finds them. Those of other blocks are kept."""
    real, planned = task_listing.NameBlock.run, list[int]()
    place = Catalogue(root)

    def run(block: task_listing.NameBlock) -> Any:
        if len(planned) == 2:
            while len(partials(root)) < sum(planned):
                sleep(0.01)
            raise Killed
        found = real(block)
        planned.append(len(found.heads))
        return found

    with monkeypatch.context() as patch, TaskEngine() as engine:
        patch.setattr(task_listing.NameBlock, "run", run)
        with pytest.raises(Killed):
            build(root, images, engine)
    (plan,) = noted_plans(place, [item.uri for item in storage.walk(f"{root}/_work")])
    work = place.work_uri("photos", plan.spec)
    held = {
        partial_uri(work, key): manifest.entries.read_shard(head)["uri"].to_pylist()
        for _, manifest in plan.counted_ahead(place)
        for head, key in zip(manifest.heads, manifest.keys(plan.spec, plan.products), strict=True)
    }
    assert set(partials(root)) == set(held)
    image = min(held.values())[0]
    lease = claim(work, "0" * 32, "another job")
    assert isinstance(lease, Lease)

    def erase() -> Erased:
        options = EraseOptions(reason="asked for", source_keeps=True)
        with InProcess() as engine:
            return erase_images(place, [image], options, engine)

    with lease.renewed(60):
        assert erase().running == ("photos",)
    left = partials(root)
    assert 0 < len(left) < len(held)
    assert [uri for uri in left if image in held[uri]] == []
    with pytest.raises(NotFound, match="none names it"):
        erase()
    assert partials(root) == left
    with TaskEngine() as engine:
        result = build(root, images, engine)
    catalogue, expected = alone
    assert result.version.manifest == expected.version.manifest
    assert result.counted_shards == expected.counted_shards - len(left)
    assert same_counts_and_failures(place.load("photos"), catalogue.load("photos"))
    assert [finding for finding in verify(place) if not finding.ok] == []


def test_the_first_whole_build_after_a_trial_counts_while_it_lists(
    root: str, images: str, alone: Any
) -> None:
    request, place = Request("photos", images, limit=8, **COUNTING), Catalogue(root)
    (trial,) = build_datasets(place, [request], InProcess(), RESOURCES)
    assert trial.version.images == 8
    events: list[Event] = []
    with TaskEngine() as engine:
        result = build(root, images, engine, events.append)
    assert (result.version.images, result.version.failed) == (IMAGES - 1, 1)
    assert same_counts_and_failures(place.load("photos"), alone[0].load("photos"))
    assert len(images_of_stages(events)) > 1
    assert sum(event.units for event in events if isinstance(event, StepDone)) == IMAGES - 8
    assert [finding for finding in verify(place) if not finding.ok] == []


def test_a_refresh_lists_by_tasks_and_counts_what_is_new(root: str, images: str) -> None:
    with TaskEngine() as engine:
        build(root, images, engine)
        put(f"{images}/day9/new.jpg", jpeg(999, 24, 16))
        again = build(root, images, engine)
    assert (again.version.images, again.version.failed) == (IMAGES, 1)
    assert again.read == 1  # whatever small shards are put together


def grown(source: str, images: int = GROWN) -> Iterator[None]:
    """Makes a source, and then more than doubles it, in its folders and in new ones."""
    for i in range(IMAGES):
        put(f"{source}/day{i % 5}/{i:03}.jpg", jpeg(i, 24, 16))
    yield
    for i in range(IMAGES, images):
        put(f"{source}/day{i % 9}/{i:03}.jpg", jpeg(i, 24, 16))
    put(f"{source}/day3/003.jpg", jpeg(998, 24, 16))
    yield


def images_of_stages(events: Sequence[Event]) -> list[int]:
    """Returns how many images each stage of counting was to count."""
    return [each.total for each in events if isinstance(each, Started) and each.unit == "images"]


def die_while_listing(root: str, source: str, most: int = 1) -> int:
    """Has a build die once it has planned some blocks of new images and counted them.

    Returns:
        How many shards it has counted.
    """
    real, planned, before = task_listing._run, list[int](), len(partials(root))

    def run(task: Any) -> Any:
        if len(planned) == most:
            while len(partials(root)) < before + sum(planned):
                sleep(0.01)
            raise StorageError("out of power")
        done = real(task)
        if isinstance(task, task_listing.NameBlock):
            planned.append(len(done.heads))
        return done

    with pytest.MonkeyPatch.context() as patch, TaskEngine() as engine:
        patch.setattr(task_listing, "_run", run)
        with pytest.raises(StorageError, match="out of power"):
            build(root, source, engine)
    return len(partials(root)) - before


@pytest.mark.soak
def test_a_later_build_counts_new_images_while_it_lists(root: str) -> None:
    """If it dies meanwhile, none of them is counted again."""
    source, events = f"{root}-source", list[Event]()
    made = grown(source)
    next(made)
    for name, engine_of in {"alone": InProcess, "tasks": TaskEngine}.items():
        with engine_of() as engine:
            build(f"{root}/{name}", source, engine)
    next(made)
    differ = ImageChanges(GROWN - IMAGES, 0, 1, IMAGES - 1)
    alone = build(f"{root}/alone", source, InProcess())
    counted = die_while_listing(f"{root}/tasks", source)
    assert 0 < counted < alone.counted_shards
    with TaskEngine() as engine:
        spread = build(f"{root}/tasks", source, engine, events.append)
    assert spread.version.manifest == alone.version.manifest
    assert spread.version.dna == alone.version.dna
    assert spread.image_changes == alone.image_changes == differ
    assert spread.counted_shards == alone.counted_shards - counted
    assert len(images_of_stages(events)) > 1
    assert images_of_stages(events)[-1] < IMAGES / 2  # shards that have changed, and small ones
    assert [finding for finding in verify(Catalogue(f"{root}/tasks")) if not finding.ok] == []


@pytest.mark.soak
def test_images_are_erased_from_what_a_later_build_has_counted_that_died(root: str) -> None:
    """Only lists name them, and no plan that is noted has these."""
    source = f"{root}-source"
    made = grown(source, 200)
    next(made)
    with TaskEngine() as engine:
        build(root, source, engine)
    next(made)
    place, known = Catalogue(root), set(partials(root))
    assert die_while_listing(root, source, 2) > 0
    version = place.find("photos")
    work, held = place.work_uri("photos", version.spec), {}
    for item in storage.walk(f"{root}/manifests"):
        some = Manifest.decode(storage.read(item.uri), item.uri, Entries(place.entries_uri))
        for head, key in zip(some.heads, some.keys(version.spec, version.products), strict=True):
            held[partial_uri(work, key)] = some.entries.read_shard(head)["uri"].to_pylist()
    new = set(partials(root)) - known
    assert new <= held.keys()
    image = held[min(new)][0]
    options = EraseOptions(reason="asked for", source_keeps=True)
    lease = claim(work, "0" * 32, "a job that still runs")
    assert isinstance(lease, Lease)
    with InProcess() as engine, lease.renewed(60):
        done = erase_images(place, [image], options, engine)
    assert done.running == ("photos",)
    assert [uri for uri in partials(root) if image in held[uri]] == []
    assert new & set(partials(root))  # those of the other list
    assert [finding for finding in verify(place) if not finding.ok] == []
    with TaskEngine() as engine:
        result = build(root, source, engine)
    assert result.version.images == 200
    assert [finding for finding in verify(place) if not finding.ok] == []


@pytest.mark.soak
def test_nothing_is_counted_early_of_another_source(root: str) -> None:
    """It is refused in the end, unless it is asked for."""
    source, other = f"{root}-source", f"{root}-other"
    for folder in (source, other):
        made = grown(folder)
        next(made)
    with TaskEngine() as engine:
        build(root, source, engine)
    next(made)
    before, events = partials(root), list[Event]()
    with TaskEngine() as engine, pytest.raises(UsageError, match=f"its source was {source}, and"):
        build(root, other, engine, events.append)
    assert sum(images_of_stages(events)) == 0
    assert partials(root) == before
    request = Request("photos", other, replace=True, **COUNTING)
    with TaskEngine() as engine:
        (result,) = build_datasets(Catalogue(root), [request], engine, RESOURCES, events.append)
    assert result.version.images == GROWN
    assert len(images_of_stages(events)) > 1


def changed_twice(source: str) -> Iterator[None]:
    """Makes a source, and changes it: images are new, gone and other ones, and then none is."""
    for i in range(IMAGES):
        put(f"{source}/day{i % 5}/{i:03}.jpg", jpeg(i, 24, 16))
    yield
    put(f"{source}/day9/new.jpg", jpeg(999, 24, 16))
    put(f"{source}/day3/003.jpg", jpeg(998, 24, 16))
    storage.delete_tree(f"{source}/day2")
    yield
    yield


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes each join of two plans, which tells what has changed if tasks have not."""
    found: list[int] = []
    real = datasets.ManifestDifference

    def join(*plans: Manifest) -> Any:
        found.append(len(plans))
        return real(*plans)

    monkeypatch.setattr(datasets, "ManifestDifference", join)
    return found


def test_refreshes_by_tasks_have_the_plans_and_counts_of_one_process(
    root: str, joins: list[int]
) -> None:
    read, differ = [], []
    for _ in changed_twice(f"{root}-source"):
        alone = build(f"{root}/alone", f"{root}-source", InProcess())
        events: list[Event] = []
        joins.clear()
        with TaskEngine() as engine:
            spread = build(f"{root}/tasks", f"{root}-source", engine, events.append)
        assert joins == []
        assert spread.version.manifest == alone.version.manifest
        assert spread.version.dna == alone.version.dna
        assert (spread.changed, spread.read) == (alone.changed, alone.read)
        assert spread.image_changes == alone.image_changes
        read.append(spread.read)
        differ.append(spread.image_changes)
    assert differ == [None, ImageChanges(1, 12, 1, 47), None]
    said = [event.message for event in events if isinstance(event, Said)]
    assert "comparing the listing with 49 of the plan before" in said
    assert read[0] == IMAGES > read[1] > 0 == read[2]
    assert [finding for finding in verify(Catalogue(f"{root}/tasks")) if not finding.ok] == []


@pytest.mark.soak
def test_what_changed_since_a_version_is_joined_if_another_plan_was_compared(
    root: str, joins: list[int]
) -> None:
    """A build that was planned has failed since."""
    source = f"{root}-source"
    changed = changed_twice(source)
    next(changed)
    with TaskEngine() as engine:
        build(f"{root}/tasks", source, engine)
        next(changed)
        for name in ("bad1", "bad2"):
            put(f"{source}/{name}.jpg", b"no image")
        with pytest.raises(GateError):
            build(f"{root}/tasks", source, engine)
        put(f"{source}/bad1.jpg", jpeg(997, 24, 16))
        again = build(f"{root}/tasks", source, engine)
    assert again.image_changes == ImageChanges(3, 12, 1, 47)
    assert joins == [2]


@pytest.mark.soak
def test_lists_applied_by_tasks_have_the_plans_and_counts_of_one_process(
    root: str, joins: list[int]
) -> None:
    source, engines = f"{root}-source", {"alone": InProcess, "tasks": TaskEngine}
    changed = changed_twice(source)
    next(changed)
    for name, engine_of in engines.items():
        with engine_of() as engine:
            build(f"{root}/{name}", source, engine)
    next(changed)
    lost = [f"day2/{i:03}.jpg,removed" for i in range(2, IMAGES, 5)]
    rows = ["uri,change", "day9/new.jpg,added", "day3/003.jpg,changed", "day3/008.jpg,added", *lost]
    put(f"{source}.csv", "\n".join(rows).encode())
    built, events = {}, list[Event]()
    for name, engine_of in engines.items():
        with engine_of() as engine:
            built[name] = build(f"{root}/{name}", source, engine, events.append, f"{source}.csv")
    assert joins == [2]  # of the one process
    alone, spread = built["alone"], built["tasks"]
    assert spread.version.manifest == alone.version.manifest
    assert spread.version.dna == alone.version.dna
    assert spread.changes == alone.changes == ChangeCounts(1, 12, 1, 1, 0)
    assert spread.image_changes == alone.image_changes == ImageChanges(1, 12, 1, 47)
    assert (spread.changed, spread.read) == (alone.changed, alone.read)
    said = [event.message for event in events if isinstance(event, Said)]
    assert "looking for 15 images of the list among 60 of the plan before" in said
    with pytest.raises(SourceError, match="does not exist"):
        list(storage.walk(f"{root}/tasks/_work/_listings"))
    assert [finding for finding in verify(Catalogue(f"{root}/tasks")) if not finding.ok] == []
    with TaskEngine() as engine:
        assert not build(f"{root}/tasks", source, engine).changed


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own warning
def test_ray_lists_plans_and_counts_at_once(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks run in processes of their own. Then it refreshes what it has built."""
    from pipeline.engine import RayEngine

    monkeypatch.setattr(blocks, "MANY", 10)
    request = Request("photos", f"{root}-source", **COUNTING)
    place, resources = Catalogue(f"{root}/ray"), Resources(workers=1, threads=1)
    present, said = [], []
    with RayEngine(resources) as engine:
        for _ in changed_twice(f"{root}-source"):
            (alone,) = build_datasets(Catalogue(f"{root}/alone"), [request], InProcess(), RESOURCES)
            events: list[Event] = []
            (spread,) = build_datasets(place, [request], engine, resources, events.append)
            assert spread.version.manifest == alone.version.manifest
            assert spread.version.dna == alone.version.dna
            stages = [
                each for each in events if isinstance(each, Started) and each.unit == "images"
            ]
            present.append(stages[-1].present if stages else 0)
            said += [event.message for event in events if isinstance(event, Said)]
    assert present[0] > 0
    assert "comparing the listing with 60 of the plan before" in said
    assert [finding for finding in verify(place) if not finding.ok] == []


class Shards:
    """An engine that waits before it counts, and keeps what it was asked for."""

    in_process = False
    workers = 7

    def __init__(
        self, error: Exception | None = None, receipt: dict[str, Any] | None = None
    ) -> None:
        self.may_go = Signal()
        self.asked: list[list[tuple[str, int]]] = []
        self._error, self._receipt = error, receipt or {}

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        self.asked.append([(job.manifest_uri, index) for job, index in work])
        assert self.may_go.wait(10)
        if self._error is not None:
            if self._receipt:
                job, index = work[0]
                yield ShardReceipt(job.manifest_uri, index, **self._receipt)
            raise self._error
        for job, index in work:
            yield ShardReceipt(job.manifest_uri, index, images=3, seconds=2.0, **self._receipt)

    def beside_shards(self) -> SerialMapper:
        return SerialMapper()


def job_in(folder: Path, name: str) -> Callable[[Manifest], ShardJob]:
    recipe = SimpleNamespace(spec=SimpleNamespace(digest="s"), products=())
    numbers = count()

    def job_of(plan: Manifest) -> ShardJob:
        return ShardJob(recipe, f"{name}{next(numbers)}", (folder / name).as_uri(), "e")  # type: ignore[arg-type]  # in its place

    return job_of


def shards(first: int, number: int) -> Manifest:
    found = [[Entry(f"s3://b/{i}", "", 9, "e")] for i in range(first, first + number)]
    return Manifest.of([Shard(at, 0, tuple(members)) for at, members in enumerate(found)], 8)


def test_shards_that_come_while_others_are_counted_wait_together(tmp_path: Path) -> None:
    """Those of one dataset are one job: jobs that others count are known by their folder."""
    engine: Any = Shards()
    a, b = job_in(tmp_path, "a"), job_in(tmp_path, "b")
    with CountingAhead(engine, lambda event: None) as ahead:
        assert (ahead.workers, ahead.in_process) == (7, False)
        ahead.add("a", a, shards(0, 2))
        while not engine.asked:
            pass
        assert (ahead.workers, ahead.in_process) == (1, False)
        ahead.add("b", b, shards(0, 1))
        ahead.add("a", a, shards(2, 1))
        ahead.add("a", a, shards(3, 3))
        engine.may_go.set()
        counted = ahead.finish()
        assert (ahead.workers, ahead.in_process) == (7, False)
    assert {name: (its.ran.shards, its.ran.images) for name, its in counted.items()} == {
        "a": (6, 18),
        "b": (1, 3),
    }
    assert sorted(engine.asked[0]) == [("a0", 0), ("a0", 1)]
    assert sorted(engine.asked[1]) == [("a1", at) for at in range(4)] + [("b0", 0)]


def test_an_error_ends_what_is_counted_ahead_and_is_told(tmp_path: Path) -> None:
    engine: Any = Shards(TransientError("no node came"))
    engine.may_go.set()
    told: list[Event] = []
    with CountingAhead(engine, told.append) as ahead:
        ahead.add("a", job_in(tmp_path, "a"), shards(0, 2))
        assert ahead.finish()["a"].ran.shards == 0
    assert Said("nothing more is counted ahead: no node came") in told


def test_after_an_error_nothing_more_is_kept_for_the_thread_that_has_ended(tmp_path: Path) -> None:
    engine: Any = Shards(TransientError("no node came"))
    engine.may_go.set()
    ended = Signal()

    def told(event: Event) -> None:
        if isinstance(event, Said):
            ended.set()

    with CountingAhead(engine, told) as ahead:
        ahead.add("a", job_in(tmp_path, "a"), shards(0, 2))
        assert ended.wait(10)
        ahead.add("a", job_in(tmp_path, "a"), shards(2, 2))
        assert not ahead._waiting
        ahead.finish()
    assert len(engine.asked) == 1


def test_shards_of_another_job_are_waited_for_later(tmp_path: Path) -> None:
    """Else its workers would be idle meanwhile, and the thread might outlive the build."""
    engine: Any = Shards(receipt={"held_by": "another"})
    engine.may_go.set()
    with CountingAhead(engine, lambda event: None) as ahead:
        ahead.add("a", job_in(tmp_path, "a"), shards(0, 2))
        while not engine.asked:
            pass
        ahead.add("a", job_in(tmp_path, "a"), shards(2, 3))
        (counted,) = ahead.finish().values()
    assert (counted.ran.shards, counted.ran.errors, counted.failed) == (0, (), {})
    assert sum(map(len, engine.asked)) == 5


def test_shards_of_a_plan_that_was_given_up_are_not_begun(tmp_path: Path) -> None:
    engine: Any = Shards()
    with CountingAhead(engine, lambda event: None) as ahead:
        ahead.add("a", job_in(tmp_path, "a"), shards(0, 2))
        while not engine.asked:
            pass
        ahead.add("a", job_in(tmp_path, "a"), shards(2, 2))
        ahead.add("b", job_in(tmp_path, "b"), shards(0, 1))
        ahead.drop("a")
        engine.may_go.set()
        assert {name: its.ran.shards for name, its in ahead.finish().items()} == {"a": 2, "b": 1}


@pytest.mark.parametrize("error", [None, TransientError("no shard ended")], ids=["ends", "fails"])
def test_a_shard_whose_counts_do_not_add_up_fails_its_dataset(
    tmp_path: Path, error: Exception | None
) -> None:
    """Even if they add up when the shard is counted again, and the first run ended early."""
    wrong = {"error": "ConservationError: 3 and 4", "kind": "ConservationError"}
    engine: Any = Shards(error, receipt=wrong)
    engine.may_go.set()
    manifest = shards(5, 2)
    with CountingAhead(engine, lambda event: None) as ahead:
        ahead.add("a", job_in(tmp_path, "a"), manifest)
        counted = ahead.finish()
    unsound = 2 if error is None else 1
    assert len(counted["a"].failed) == unsound
    whole = Manifest.joined([shards(0, 5), manifest])
    job = job_in(tmp_path, "later")(whole)
    request = SimpleNamespace(name="a")
    plan: Any = SimpleNamespace(request=request, up_to_date=False, job=job, manifest=whole)
    sound: Any = Shards()
    sound.may_go.set()
    found = count_shards(
        [plan], sound, lambda event: None, print, counted, lambda plan, left: None, print
    )
    assert len(found["a"].ran.errors) == unsound
    assert {receipt.index for receipt in found["a"].ran.errors} <= {5, 6}
    with pytest.raises(ConservationError, match="nothing was committed"):
        require_counted("a", 7, found["a"].ran.errors)


class Failing(Shards):
    """An engine in which the shard of one content fails so many times."""

    def __init__(self, times: int, content: str, plans: dict[str, Manifest]) -> None:
        super().__init__()
        self.tries, self._times, self._content, self._plans = 0, times, content, plans

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        for job, index in work:
            uri = job.manifest_uri
            if self._plans[uri].heads[index].content != self._content:
                yield ShardReceipt(uri, index, images=3, seconds=2.0)
                continue
            self.tries += 1
            if self.tries > self._times:
                yield ShardReceipt(uri, index, images=3, seconds=2.0)
            else:
                error, kind = f"TransientError: no {self.tries}", "TransientError"
                yield ShardReceipt(uri, index, error=error, kind=kind, transient=True)


@pytest.mark.parametrize(("times", "ahead_of"), [(2, 0), (2, 1), (2, 2), (3, 0), (3, 2), (3, 3)])
def test_a_shard_is_tried_thrice_in_a_build_however_many_of_them_are_ahead(
    tmp_path: Path, times: int, ahead_of: int
) -> None:
    """What is counted ahead may end early, and then the rest of the tries is left."""
    some = shards(4, 3)
    plans = {"a0": some}
    engine: Any = Failing(times, some.heads[1].content, plans)

    def stop(event: Event) -> None:
        if isinstance(event, StepFailed) and engine.tries == ahead_of:
            raise TransientError("no node came")

    with CountingAhead(engine, stop) as ahead:
        if ahead_of:
            ahead.add("a", job_in(tmp_path, "a"), some)
        counted = ahead.finish()
    assert engine.tries == ahead_of
    whole = Manifest.joined([shards(0, 4), some])
    plans["later0"] = whole
    request = SimpleNamespace(name="a")
    job = job_in(tmp_path, "later")(whole)
    plan: Any = SimpleNamespace(request=request, up_to_date=False, job=job, manifest=whole)
    found = count_shards(
        [plan], engine, lambda event: None, print, counted, lambda plan, left: None, print
    )
    assert engine.tries == 3
    errors = found["a"].ran.errors
    assert [(receipt.index, receipt.error) for receipt in errors] == (
        [(5, "TransientError: no 3")] if times == 3 else []
    )


def test_a_build_that_ends_does_not_go_on_counting(tmp_path: Path) -> None:
    engine: Any = Shards()
    told: list[Event] = []
    ahead = CountingAhead(engine, told.append)

    def interrupted() -> None:
        with ahead:
            ahead.add("a", job_in(tmp_path, "a"), shards(0, 200))
            while not engine.asked:
                pass
            thread: Any = ahead._thread
            join = thread.join
            # It goes on once the block is left, and not before.
            thread.join = lambda *given: (engine.may_go.set(), join(*given))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ahead._thread is not None
    assert not ahead._thread.is_alive()
    assert not [event for event in told if isinstance(event, StepDone | Said)]
