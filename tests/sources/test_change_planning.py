"""Tests that a large source that was planned before is planned by tasks as one process plans it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pytest

from pipeline.errors import ConservationError, CorruptFile, StorageError
from pipeline.events import Event, Said
from pipeline.sources import (
    Entries,
    Entry,
    ImageSeconds,
    Listing,
    ListingCheckpoint,
    Manifest,
    ManifestDifference,
    NewShardSizes,
    PlanAhead,
    Rules,
    ShardHead,
    blocks,
    entries_file,
    list_source,
    plan,
    plan_comparison,
    shard_merging,
    shard_sizes,
    sharding,
    stretches,
)
from pipeline.sources.block_plan import NameBlock, PlannedBlock
from pipeline.sources.changed_shards import ChangedShards
from pipeline.sources.entry import Address
from pipeline.sources.manifest_difference import KnownDifference
from pipeline.sources.plan_comparison import FormerShards, NameRange
from pipeline.sources.sharding import ShardPlanner
from pipeline.storage import Stored
from tests.sources.test_listing import FakeStore, patched_storage
from tests.sources.test_task_listing import Tasks
from tests.support.builders import all_shards
from tests.support.repeated_tests import quick_seeds
from tests.support.small_sources import shrink

ROOT = "s3://b/p"

SIZES = NewShardSizes(shard_images=8, cell_images=4)

NOWHERE = Address("", 0, 0, 0)

Content = dict[str, tuple[int, str]]
"""The size and the identity of each image, by its key."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_plans(monkeypatch)


def small_plans(patch: pytest.MonkeyPatch) -> None:
    """Has tasks plan some hundred images, in small shards."""
    shrink(patch, block=70, many=140, keys=90, alone=60)
    patch.setattr(shard_merging, "TOGETHER", 3)
    patch.setattr(sharding, "ROW_GROUP_BYTES", 1_200)  # so few may be put together
    for module in (shard_sizes, sharding, blocks):
        patch.setattr(module, "SHARD_MULTIPLE", 1)
    patch.setattr(shard_sizes, "MIN_SHARD_IMAGES", 1)
    patch.setattr(shard_sizes, "USUAL_CELL_IMAGES", 2)
    patch.setattr(shard_sizes, "default_shard_images", lambda candidates: 24)


class Contents(FakeStore):
    """A store of images with sizes and identities.

    Every seventeenth may be listed twice, as one that changes while it is listed.
    """

    def __init__(self, content: Content, page: int = 30, *, twice: bool = False) -> None:
        super().__init__(list(content), page)
        self.content = content
        self.twice = twice

    def list_page(self, uri: str, after: str) -> tuple[list[Stored], str, bool]:
        items, last, more = super().list_page(uri, after)
        found = []
        for item in items:
            key = item.uri.removeprefix(f"{uri}/")
            size, identity = self.content[key]
            found.append(Stored(item.uri, size, identity, None))
            if self.twice and crc32(key.encode()) % 17 == 0:
                found.append(Stored(item.uri, size, f"a later {identity}", None))
        return found, last, more


@contextmanager
def stored(store: FakeStore) -> Iterator[None]:
    patch = patched_storage(store)
    try:
        yield
    finally:
        patch.undo()


class Place:
    """A folder with the entries of plans, in which one process plans, and tasks."""

    def __init__(self, folder: Path, sizes: NewShardSizes = SIZES, **options: Any) -> None:
        self.folder = folder
        self.entries = Entries((folder / "entries").as_uri())
        self.sizes = sizes
        self.options = options
        self.tasks = Tasks()
        self.said: list[str] = []
        self.blocks: list[Manifest] = []
        self.listed_at: list[int] = []

    def alone(self, store: FakeStore, previous: Manifest | None = None) -> Manifest:
        with stored(store):
            found = list_source(ROOT, self.options.get("rules"))
        return plan(found, previous=previous, entries=self.entries, **vars(self.sizes))

    def by_tasks(self, store: FakeStore, previous: Manifest) -> Listing:
        self.tasks = Tasks(len(store.keys))
        self.blocks, self.listed_at = [], []
        kept = ListingCheckpoint((self.folder / "kept").as_uri(), datetime.now(UTC))

        def planned(some: Manifest) -> None:
            self.blocks.append(some)
            self.listed_at.append(len(store.answered))

        ahead = PlanAhead(lambda: self.sizes, self.entries, planned, lambda: previous)
        with stored(store):
            found = list_source(
                ROOT,
                checkpoint=kept,
                mapper=self.tasks,
                ahead=ahead,
                progress=self.said_by,
                **self.options,
            )
        kept.remove()
        return found

    def said_by(self, event: Event) -> None:
        if isinstance(event, Said):
            self.said.append(event.message)


def never(*_: Any) -> None:
    raise AssertionError("the process that builds reads the members of the plan before")


def content_of(names: list[str]) -> Content:
    """Gives the images of a day sizes of its own. The size of every third is not known."""
    sizes = {
        name: crc32(name[:6].encode()) % 9000 * bool(crc32(name.encode()) % 3) for name in names
    }
    return {name: (size, f"etag of {name}") for name, size in sizes.items()}


def day(number: int, count: int) -> list[str]:
    return [f"day{number:03d}/frame-{at:05d}.jpg" for at in range(count)]


def first_days(count: int = 6, each: int = 50) -> Content:
    return content_of([name for number in range(count) for name in day(number, each)])


def changed(content: Content, chance: random.Random, number: int) -> Content:
    """Changes a source as one night may: days come and go, images come, go and change."""
    left = dict(content)
    kinds = chance.sample(
        ["none", "day", "many", "gone day", "some", "gone", "other", "formats"], 3
    )
    if "day" in kinds:
        left |= content_of(day(number, chance.randrange(1, 40)))
    if "many" in kinds:
        left |= content_of(day(number + 500, 180))
    if "gone day" in kinds and len(left) > 400:
        folder = chance.choice(sorted({name.partition("/")[0] for name in left}))
        left = {name: its for name, its in left.items() if not name.startswith(f"{folder}/")}
    if "some" in kinds:
        places = [chance.randrange(number) for _ in range(chance.randrange(1, 8))]
        left |= content_of([f"day{at:03d}/new-{number}-{at}.jpg" for at in places])
    if "gone" in kinds and len(left) > 250:
        for name in chance.sample(sorted(left), chance.randrange(1, 12)):
            del left[name]
    if "formats" in kinds:  # an image and its copy in another format have one name for pairing
        left |= content_of([name.replace(".jpg", ".png") for name in day(number % 5, 9)])
    if "other" in kinds:
        for name in chance.sample(sorted(left), chance.randrange(1, 6)):
            size, identity = left[name]
            left[name] = (size + chance.randrange(2), f"{identity}'")
    return left


def require_same(found: Listing, whole: Manifest) -> None:
    made = found.planned
    assert made is not None
    assert found.parts == ()
    assert list(map(_stated, made.heads)) == list(map(_stated, whole.heads))
    assert (made.shard_images, made.source, made.ignored, made.duplicates, made.pairing) == (
        whole.shard_images,
        whole.source,
        whole.ignored,
        whole.duplicates,
        whole.pairing,
    )
    assert made.digest == whole.digest
    assert all_shards(made) == all_shards(whole)


def require_difference(found: Listing, before: Manifest, whole: Manifest) -> None:
    """Requires that tasks know what a join of both plans finds."""
    with ManifestDifference(before, whole) as join:
        assert found.difference == KnownDifference(before.digest, join.counts)


def require_counted_early(place: Place, before: Manifest, whole: Manifest) -> None:
    """Requires that the shards that were counted early are those of new images in the plan.

    All of them are, if so many images are new that tasks plan them.
    """
    known = {head.content for head in before.heads}
    early = [head for some in place.blocks for head in some.heads]
    content = [head.content for head in early]
    assert len(set(content)) == len(content)
    fresh = [head.content for head in whole.heads[len(whole.heads) - len(early) :]]
    assert sorted(content) == sorted(fresh)
    assert known.isdisjoint(content)
    there = {entry.uri for shard in all_shards(before) for entry in shard.members}
    new = sum(entry.uri not in there for shard in all_shards(whole) for entry in shard.members)
    assert sum(head.candidates for head in early) == (new if new >= blocks.MANY else 0)


def _stated(head: ShardHead) -> tuple[Any, ...]:
    """Returns all that a plan states of a shard but the file, with what `==` leaves out."""
    return astuple(replace(head, address=NOWHERE))


@pytest.mark.parametrize("seed", quick_seeds(range(14), (3, 10)))
def test_tasks_make_the_later_plans_of_one_process(tmp_path: Path, seed: int) -> None:
    """Over several nights, each of which goes on with the plan of the night before."""
    chance = random.Random(seed)
    sizes = [
        SIZES,
        NewShardSizes(shard_images=16),
        NewShardSizes(cell_bytes=90_000),
        NewShardSizes(image_seconds=ImageSeconds(2.0, 0.001, 3_000.0), cell_bytes=40_000),
        NewShardSizes(16, cell_images=5, cell_bytes=100),
    ][seed % 5]
    content, first = first_days(), sizes
    if seed >= 10:  # no size is known
        sizes, first = NewShardSizes(cell_bytes=90_000), NewShardSizes(cell_images=8)
        content = {name: (0, identity) for name, (_, identity) in content.items()}
    if seed >= 12:  # as after a trial with few images
        content = first_days(1, 40)
    before = Place(tmp_path, first).alone(Contents(content))
    place = Place(tmp_path, sizes)
    place.entries = before.entries
    for night in range(4):
        content = changed(content, chance, 10 + night)
        if seed >= 12 and night == 0:
            content |= content_of(day(900, 150))
        if seed >= 10:
            content = {name: (0, identity) for name, (_, identity) in content.items()}
        store = Contents(content, chance.randrange(15, 60), twice=chance.random() < 0.5)
        whole = place.alone(store, before)
        found = place.by_tasks(store, before)
        require_same(found, whole)
        require_difference(found, before, whole)
        require_counted_early(place, before, whole)
        before = whole


@pytest.mark.parametrize("what", ["nothing", "a day", "one image", "new images"])
def test_only_shards_that_have_changed_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    place, content = Place(tmp_path), first_days(8)
    before = place.alone(Contents(content))
    left = dict(content)
    if what == "a day":
        left = {name: its for name, its in content.items() if not name.startswith("day003/")}
    elif what == "one image":
        left["day003/frame-00007.jpg"] = (100, "another etag")
    elif what == "new images":
        left |= content_of(day(9, 20))
    whole = place.alone(Contents(left), before)
    # The process that builds brings no member of the plan here.
    monkeypatch.setattr(ShardPlanner, "load_previous", never)
    require_same(place.by_tasks(Contents(left), before), whole)
    written = [head for task in place.tasks.items for head in _written(task)]
    there = {entry for shard in all_shards(whole) for entry in shard.members}
    touched = {shard.index for shard in all_shards(before) if not there.issuperset(shard.members)}
    assert {head.index for head in written} == touched
    most = {"nothing": 0, "new images": 0, "one image": 1}.get(what, len(before.heads) / 2)
    assert len(written) <= most
    assert bool(written) == (what in ("a day", "one image"))
    assert len([task for task in place.tasks.items if isinstance(task, NameRange)]) > 2
    assert "comparing the listing with 400 of the plan before" in place.said


def _written(task: Any) -> tuple[ShardHead, ...]:
    return task.heads if isinstance(task, ChangedShards) else ()


@pytest.mark.parametrize("grows", [False, True])
def test_no_task_has_much_of_a_source_that_has_become_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    """Also if it has far fewer images now, or far more."""
    monkeypatch.setattr(entries_file, "FILE_ROWS", 100)
    place = Place(tmp_path)
    few, many = content_of([*day(500, 120), *day(3, 50), *day(4, 20)]), first_days(20)
    before = place.alone(Contents(few if grows else many))
    left = many if grows else few
    require_same(place.by_tasks(Contents(left), before), place.alone(Contents(left), before))
    compared = [task for task in place.tasks.items if isinstance(task, NameRange)]
    for parts in ("listed", "former"):
        rows = [sum(part.rows for part in getattr(task, parts)) for task in compared]
        assert max(rows) < len(many) / 2
    sorts = [task for task in place.tasks.items if isinstance(task, FormerShards)]
    members = [sum(head.candidates for head in task.heads) for task in sorts]
    assert len(members) > 1
    assert max(members) < 2 * 100


@pytest.mark.parametrize("lists", [1, 6])
def test_many_new_images_are_planned_while_the_listing_runs(tmp_path: Path, lists: int) -> None:
    """Also those of ranges in which the earlier plan has none, or the listing has none any more."""
    place, content = Place(tmp_path), first_days(8)
    before = place.alone(Contents(content))
    left = {name: its for name, its in content.items() if name[:6] not in ("day000", "day007")}
    left |= content_of([name for number in range(20) for name in day(2 * number, 60 + number)])
    left |= content_of(day(100, 300))
    store = Contents(left, page=30 // lists)
    whole = place.alone(Contents(left), before)
    found = place.by_tasks(store, before)
    require_same(found, whole)
    require_difference(found, before, whole)
    require_counted_early(place, before, whole)
    assert place.listed_at[0] < len(left) * 0.75
    assert len([at for at in place.listed_at if at < len(left)]) > len(place.listed_at) / 4


def test_nothing_is_planned_early_while_few_new_images_are_known(tmp_path: Path) -> None:
    place, content = Place(tmp_path), first_days(12)
    before = place.alone(Contents(content))
    left = content | content_of(day(500, blocks.MANY - 1))
    whole = place.alone(Contents(left), before)
    require_same(place.by_tasks(Contents(left), before), whole)
    assert place.blocks == []
    left |= content_of(day(501, 1))
    whole = place.alone(Contents(left), before)
    require_same(place.by_tasks(Contents(left), before), whole)
    require_counted_early(place, before, whole)
    assert place.blocks != []


def test_a_task_holds_changes_of_its_own_shards_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries_file, "FILE_ROWS", 60)
    monkeypatch.setattr(stretches, "REPORT_ENTRIES", 60)
    place, content = Place(tmp_path), first_days()
    before = place.alone(Contents(content))
    left = {name: (1, f"{identity}'") for name, (_, identity) in content.items()}
    whole = place.alone(Contents(left), before)
    held: list[tuple[int, int]] = []
    real = ChangedShards._read

    def read(task: ChangedShards, parts: Any) -> pa.Table:
        rows = real(task, parts)
        if parts == task.changed:
            held.append((rows.num_rows, sum(head.candidates for head in task.heads)))
        return rows

    monkeypatch.setattr(ChangedShards, "_read", read)
    require_same(place.by_tasks(Contents(left), before), whole)
    assert [rows for rows, _ in held] == [members for _, members in held]
    assert max(rows for rows, _ in held) < len(content) / 2
    tasks = [task for task in place.tasks.items if isinstance(task, ChangedShards)]
    read_rows = [sum(part.rows for part in task.changed) for task in tasks]
    assert min(read_rows) < len(content)  # of few ranges of names


def test_a_plan_that_loses_an_added_block_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, content = Place(tmp_path), first_days()
    before = place.alone(Contents(content))
    real = NameBlock.run

    def lose(task: NameBlock) -> PlannedBlock:
        made = real(task)
        return replace(made, heads=made.heads[1:])

    monkeypatch.setattr(NameBlock, "run", lose)
    with pytest.raises(ConservationError, match="500 candidates were listed, and 4"):
        place.by_tasks(Contents(content | content_of(day(700, 200))), before)


@pytest.mark.parametrize("kind", ["group", "label", "stem", "elsewhere", "archive", "late group"])
def test_what_tasks_cannot_compare_is_planned_by_one_process(tmp_path: Path, kind: str) -> None:
    content = first_days()
    rules = {"group": Rules(group_by="1"), "label": Rules(by="1")}.get(kind)
    first = Place(tmp_path, rules=rules) if rules else Place(tmp_path)
    before = first.alone(Contents(content))
    if kind in ("archive", "late group"):  # the first shards show nothing of it
        member = Entry(f"{ROOT}/z.tar", "a.jpg", 9, "etag", position=512, access="tar")
        if kind == "late group":
            member = Entry(f"{ROOT}/z.jpg", "", 9, "etag", group="z")
        entries = [entry for shard in all_shards(before) for entry in shard.members]
        before = plan([*entries, member], previous=before, **vars(SIZES))
    assert bool(before.labels) == (kind == "label")
    place = Place(tmp_path)
    if kind == "stem":
        place = Place(tmp_path, rules=Rules(pair_by="stem"))
    if kind == "elsewhere":
        place.entries = Entries((tmp_path / "other").as_uri())
    found = place.by_tasks(Contents(content), before)
    assert found.planned is None
    assert len(list(found.entries)) == len(content)
    sorts = [task for task in place.tasks.items if isinstance(task, FormerShards)]
    assert bool(sorts) == (kind in ("archive", "late group"))


def test_candidates_that_are_mostly_repeats_are_planned_by_one_process(tmp_path: Path) -> None:
    """Many were listed, and few are there."""
    place, content = Place(tmp_path), content_of(day(0, 130))
    before = place.alone(Contents(content))
    found = place.by_tasks(Contents(content, twice=True), before)
    assert found.planned is None
    assert len(list(found.entries)) > 135


def test_a_plan_whose_entries_are_lost_is_planned_from_what_is_left(tmp_path: Path) -> None:
    place, content = Place(tmp_path), first_days()
    before = place.alone(Contents(content))
    for left in (before.select(range(0, 40)), before.select(())):
        store = Contents(content | content_of(day(7, 12)))
        require_same(place.by_tasks(store, left), place.alone(store, left))


def test_an_interrupted_listing_goes_on_and_is_compared(tmp_path: Path) -> None:
    place, content = Place(tmp_path), first_days(12)
    before = place.alone(Contents(content))
    left = content | content_of(day(20, 30))
    del left["day002/frame-00003.jpg"]

    def fail(asked: int) -> None:
        if asked >= 20:
            raise StorageError("the machine is gone")

    store = Contents(left)
    store._before = fail
    with pytest.raises(StorageError, match="the machine is gone"):
        place.by_tasks(store, before)
    again = Contents(left)
    require_same(place.by_tasks(again, before), place.alone(Contents(left), before))
    assert len(again.answered) < len(left)


@pytest.mark.parametrize("lost", ["removed", "changed"])
def test_a_change_that_reaches_no_shard_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Else a shard would keep the counts of an image that is another one now."""
    place, content = Place(tmp_path), first_days()
    before = place.alone(Contents(content))
    left = dict(content)
    for day_number in (1, 4):
        del left[f"day{day_number:03d}/frame-00003.jpg"]
        left[f"day{day_number:03d}/frame-00007.jpg"] = (1, "another etag")
    real = ChangedShards.run

    def run(task: ChangedShards) -> Any:
        return real(replace(task, **{lost: getattr(task, lost)[1:]}))

    monkeypatch.setattr(ChangedShards, "run", run)
    with pytest.raises(ConservationError, match="2 images are gone and 2 have changed; the new"):
        place.by_tasks(Contents(left), before)


@pytest.mark.parametrize("loses", ["candidate", "member"])
def test_a_comparison_that_loses_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loses: str
) -> None:
    place, content = Place(tmp_path), first_days()
    before = place.alone(Contents(content))
    real = plan_comparison.parts_of_blocks

    def lose(ends: Any, parts: Any) -> Any:
        its = real(ends, parts)
        if {part.rows for part in parts} and lost[0] == 0:
            its[2] = its[2][1:]
        lost[0] -= 1
        return its

    lost = [0 if loses == "candidate" else 1]
    monkeypatch.setattr(plan_comparison, "parts_of_blocks", lose)
    with pytest.raises(ConservationError, match="300 candidates were listed and 300 planned"):
        place.by_tasks(Contents(content), before)


def test_damaged_entries_of_the_plan_end_the_comparison(tmp_path: Path) -> None:
    place, content = Place(tmp_path), first_days()
    before = place.alone(Contents(content))
    name = before.files[0]
    path = tmp_path / "entries" / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptFile, match=name):
        place.by_tasks(Contents(content), before)
