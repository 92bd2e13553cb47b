"""Tests that tasks list and plan a large source in groups of folders as one process does."""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.sources import (
    Manifest,
    NewShardSizes,
    PlanAhead,
    Rules,
    list_changed,
    list_source,
    plan,
)
from pipeline.sources.block_plan import NameBlock
from pipeline.sources.named_members import NamedMembers
from pipeline.sources.sharding import ShardPlanner
from pipeline.spec import FOLDS
from tests.sources.test_change_list import write_changes
from tests.sources.test_change_planning import (
    SIZES,
    Contents,
    Place,
    changed,
    content_of,
    day,
    first_days,
    never,
    require_difference,
    require_same,
    small_plans,
)
from tests.sources.test_listing import FakeStore
from tests.sources.test_named_members import Lists, gone, night, rows_of
from tests.sources.test_report_tasks import Reading, Report, planned_here
from tests.sources.test_report_tasks import frames as rows_of_a_report
from tests.sources.test_task_listing import Run, alone
from tests.support.builders import all_shards
from tests.support.repeated_tests import quick_seeds
from tests.support.small_sources import shrink, shrink_groups

BY_FOLDER = Rules(group_by="1")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, block=100, many=140, keys=150, alone=60)
    shrink_groups(monkeypatch, 5)


def scenes(number: int, each: int) -> list[str]:
    """The keys of images in scenes, each of which has two cameras."""
    return [
        f"scene{scene:03d}/{camera}/{at:05d}.jpg"
        for scene in range(number)
        for camera in ("left", "right")
        for at in range(each)
    ]


def folds_of(manifest: Manifest) -> dict[str, set[int]]:
    """The folds of each group."""
    folds = defaultdict(set)
    for shard in all_shards(manifest):
        for entry in shard.members:
            folds[entry.group].add(shard.fold)
    return folds


def planned_alone(keys: list[str], rules: Rules) -> Manifest:
    return plan(alone(keys, rules), shard_images=8, cell_images=4)


KEYS = st.lists(
    st.tuples(st.text("ab/%'é0.", min_size=1, max_size=4), st.text("ab0", min_size=1, max_size=4)),
    min_size=200,
    max_size=400,
    unique=True,
).map(lambda names: sorted({f"{folder}/{name}.jpg".lstrip("/") for folder, name in names}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(KEYS, st.integers(5, 40), st.integers(0, 999), st.sampled_from(["1", "2"]))
def test_tasks_make_the_plan_of_one_process(
    keys: list[str], page: int, seed: int, depth: str
) -> None:
    rules = Rules(group_by=depth)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), FakeStore(keys, page), seed, rules=rules)
        found, whole = run.list(), planned_alone(keys, rules)
        assert found.planned is not None
        assert found.planned.digest == whole.digest
        assert all_shards(found.planned) == all_shards(whole)
        shards = [shard.digest for some in run.blocks for shard in all_shards(some)]
        assert sorted(shards) == sorted(head.digest for head in whole.heads)


@pytest.mark.parametrize("depth", ["1", "2"])
def test_no_group_is_split_over_folds_and_blocks_are_planned_early(
    tmp_path: Path, depth: str
) -> None:
    """Each camera of a scene is a group, or each scene. Blocks end within them."""
    keys = scenes(30, 50)
    run = Run(tmp_path, FakeStore(keys, 20), rules=Rules(group_by=depth))
    found = run.list()
    assert found.planned is not None
    folds = folds_of(found.planned)
    assert len(folds) == (30 if depth == "1" else 60)
    assert all(len(its) == 1 for its in folds.values())
    assert len({fold for its in folds.values() for fold in its}) > FOLDS / 2
    assert min(run.listed_at) < len(keys) / 2
    assert len([task for task in run.tasks.items if isinstance(task, NameBlock)]) > 10


def test_images_with_and_without_a_pattern_have_the_same_groups(tmp_path: Path) -> None:
    """Without one, the groups of a page are found together."""
    keys = [*scenes(20, 10), "top.jpg", "scene001/one.jpg", "scene 7//odd.jpg", "scene.png/a.jpg"]
    for depth, expected in {"1": 23, "2": 44, "3": 44}.items():
        whole = planned_alone(keys, Rules(group_by=depth))
        assert whole.digest == planned_alone(keys, Rules(group_by=depth, include="*")).digest
        groups = folds_of(whole)
        assert len(groups) == expected
        assert {"s3://b/p/", "s3://b/p/scene001", "s3://b/p/scene.png"} <= groups.keys()


@pytest.mark.parametrize("groups", [FOLDS, FOLDS + 1])
def test_a_source_of_few_groups_is_planned_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    """Its folds have to be of equal size, which nobody knows before all is listed."""
    shrink_groups(monkeypatch, FOLDS + 1)
    keys = scenes(groups, 10)
    run = Run(tmp_path, FakeStore(keys, 20), rules=BY_FOLDER)
    found = run.list()
    assert (found.planned is None) == (groups == FOLDS)
    assert bool(run.blocks) == (groups > FOLDS)
    made = found.planned or plan(found, shard_images=8, cell_images=4)
    assert made.digest == planned_alone(keys, BY_FOLDER).digest
    assert ({head.fold for head in made.heads} == {*range(FOLDS)}) == (groups == FOLDS)


@pytest.mark.parametrize("at", [9, 40])
@pytest.mark.parametrize("goes_on", ["tasks", "one process"])
def test_an_interrupted_listing_goes_on(tmp_path: Path, at: int, goes_on: str) -> None:
    """It knows the groups of what was listed before."""
    keys = scenes(30, 40)

    def before(asked: int) -> None:
        if asked >= at:
            raise StorageError("the machine is gone")

    with pytest.raises(StorageError, match="the machine is gone"):
        Run(tmp_path, FakeStore(keys, 20, before), rules=BY_FOLDER).list()
    again = Run(tmp_path, FakeStore(keys, 20), rules=BY_FOLDER)
    again.tasks.in_process = goes_on == "one process"
    found = again.list()
    made = found.planned or plan(found, shard_images=8, cell_images=4)
    assert (found.planned is None) == (goes_on == "one process")
    assert made.digest == planned_alone(keys, BY_FOLDER).digest


def test_the_groups_of_a_complete_listing_are_known(tmp_path: Path) -> None:
    """Nothing is listed again, and tasks plan it."""
    keys = scenes(30, 20)
    first = Run(tmp_path, FakeStore(keys, 20), rules=BY_FOLDER).list()
    store = FakeStore(keys, 20)
    again = Run(tmp_path, store, rules=BY_FOLDER).list()
    assert store.asked == 0
    assert first.planned is not None
    assert again.planned is not None
    assert again.planned.digest == first.planned.digest


def test_a_report_in_groups_is_planned_by_tasks(tmp_path: Path) -> None:
    report = Report(rows_of_a_report(400))
    reading = Reading(tmp_path)
    planned = reading.list(report, BY_FOLDER).planned
    assert planned is not None
    assert len(folds_of(planned)) == 7
    assert planned.digest == planned_here(report.list(BY_FOLDER)).digest


@pytest.mark.parametrize("seed", quick_seeds(range(6), (1,)))
def test_tasks_make_the_later_plans_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Over several nights, each of which goes on with the plan of the night before."""
    small_plans(monkeypatch)
    chance = random.Random(seed)
    sizes = [SIZES, NewShardSizes(shard_images=16), NewShardSizes(cell_bytes=90_000)][seed % 3]
    content, place = first_days(), Place(tmp_path, sizes, rules=BY_FOLDER)
    before = place.alone(Contents(content))
    for number in range(4):
        content = changed(content, chance, 10 + number)
        store = Contents(content, chance.randrange(15, 60), twice=chance.random() < 0.5)
        whole = place.alone(store, before)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ShardPlanner, "load_previous", never)
            found = place.by_tasks(store, before)
        require_same(found, whole)
        require_difference(found, before, whole)
        assert all(len(its) == 1 for its in folds_of(whole).values())
        before = whole


@pytest.mark.parametrize("seed", quick_seeds(range(4), (1,)))
def test_tasks_apply_change_lists_as_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    small_plans(monkeypatch)
    chance, content = random.Random(seed), first_days()
    rules = Rules(group_by="1", exclude="skipped/*")
    place = Lists(tmp_path, [SIZES, NewShardSizes(cell_bytes=90_000)][seed % 2], rules)
    before = place.first(content)
    for number in range(3):
        rows = night(content, before, chance, 10 + number)
        before, _ = place.require_law(rows, before)
        assert all(len(its) == 1 for its in folds_of(before).values())


@pytest.mark.parametrize("left", [4, 5])
def test_a_list_that_leaves_few_groups_is_applied_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Folds of new groups have to be of equal size then."""
    small_plans(monkeypatch)
    place, content = Lists(tmp_path, rules=BY_FOLDER), first_days(7, 60)
    before = place.first(content)
    new = content_of(day(50, 9))
    whole_days = [name for number in range(left - 1, 7) for name in day(number, 60)]
    changes = place.write([*gone(whole_days), *rows_of(new, new)])
    listing, counts = place.alone(changes, before)
    whole = place.planned(listing, before)
    found, told = place.by_tasks(changes, before)
    assert (found.planned is None) == (left < 5)
    assert any(isinstance(task, NamedMembers) for task in place.tasks.items)
    assert (found.planned or place.planned(found, before)).digest == whole.digest
    assert told == counts


def test_a_list_of_a_table_whose_column_names_groups_is_applied_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks know groups of folders alone. No image was in a group before."""
    small_plans(monkeypatch)
    rules, table, place = Rules(group_by="group"), tmp_path / "table.csv", Lists(tmp_path)
    first = first_days(4, 60)
    rows = [row | {"group": ""} for row in rows_of(first, first)]
    for row in rows:
        del row["change"]
    write_changes(table, rows)
    before = plan(list_source(table, rules), entries=place.entries)
    new = content_of(day(50, 9))
    rows = [row | {"group": "s3://b/video"} for row in rows_of(new, new)]
    changes = write_changes(tmp_path / "changes.csv", rows)
    ahead = PlanAhead(lambda: SIZES, place.entries, never, lambda: before)
    folder = (tmp_path / "parts").as_uri()
    found, _ = list_changed(
        str(table), changes, before, rules, mapper=place.tasks, ahead=ahead, folder=folder
    )
    assert found.planned is None
    assert len(folds_of(plan(found, previous=before))["s3://b/video"]) == 1


@pytest.mark.parametrize(
    "kind", ["other depth", "no groups now", "no groups before", "other folds", "one other fold"]
)
def test_what_tasks_cannot_compare_is_planned_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Groups are never split over folds, however many images they get later."""
    small_plans(monkeypatch)
    images = [f"{name[:7]}{name[6]}/{name[7:]}" for name in first_days(9, 40)]
    content = content_of(images)
    rules = {"other depth": Rules(group_by="2"), "no groups before": None}.get(kind, BY_FOLDER)
    if kind == "other folds":
        shrink_groups(monkeypatch, 100)
    before = Place(tmp_path, rules=rules).alone(Contents(content))
    shrink_groups(monkeypatch, 5)
    if kind == "one other fold":
        before = _with_another_fold(before)
    place = Place(tmp_path, rules=None if kind == "no groups now" else BY_FOLDER)
    place.entries = before.entries
    left = Contents(content | content_of([name.replace("frame", "later") for name in images]))
    found = place.by_tasks(left, before)
    assert found.planned is None
    made = plan(found, previous=before, entries=place.entries, **vars(SIZES))
    assert made.digest == place.alone(left, before).digest
    if kind != "no groups now":
        assert all(len(its) == 1 for its in folds_of(made).values())


def _with_another_fold(before: Manifest) -> Manifest:
    """Returns a plan of which one fold has another number."""
    fold = before.heads[-1].fold
    moved = [
        replace(head, fold=(fold + 1) % FOLDS) if head.fold == fold else head
        for head in before.heads
    ]
    return replace(before, heads=tuple(moved))
