"""Tests that a large prefix that tasks list and plan is planned as one process would plan it."""

from __future__ import annotations

import bisect
import pickle
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import ConservationError, CorruptFile, StorageError, TransientError
from pipeline.events import Said
from pipeline.mapper import SerialMapper
from pipeline.sources import (
    Entries,
    ImageSeconds,
    Listing,
    ListingCheckpoint,
    Manifest,
    NewShardSizes,
    PlanAhead,
    Rules,
    block_plan,
    blocks,
    list_source,
    listing,
    parallel_listing,
    plan,
    shard_sizes,
    source_lister,
    stretches,
    task_listing,
)
from pipeline.sources.entries_file import ENTRY_SCHEMA
from pipeline.sources.listing_checkpoint import RESUMED
from pipeline.sources.parallel_listing import KeyRange
from pipeline.storage import Stored
from tests.sources.test_listing import FakeStore, patched_storage
from tests.support.builders import all_shards
from tests.support.small_sources import shrink

T = TypeVar("T")
R = TypeVar("R")

ROOT = "s3://b/p"

SIZES = NewShardSizes(shard_images=8, cell_images=4)


class Tasks(SerialMapper):
    """Calls functions as a cluster does: what goes there and comes back is pickled."""

    in_process = False
    workers = 3

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.rounds = 0
        self.items: list[Any] = []
        self.results: list[Any] = []

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        self.rounds += 1
        order = self._random.sample(items, len(items))
        self.items += order
        for item in pickle.loads(pickle.dumps(order)):
            self.results.append(pickle.loads(pickle.dumps(function(item))))
            yield self.results[-1]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, block=100, many=140, keys=150, alone=60)


def frames(count: int) -> list[str]:
    return [f"video{i % 7}/frame-{i:06d}.{'jpg' if i % 10 else 'txt'}" for i in range(count)]


class Run:
    """One listing by tasks, kept in a folder, with the plans of blocks as they come."""

    def __init__(
        self,
        folder: Path,
        store: FakeStore,
        seed: int = 0,
        sizes: NewShardSizes = SIZES,
        **options: Any,
    ) -> None:
        self.store = store
        self.tasks = Tasks(seed)
        self.blocks: list[Manifest] = []
        self.listed_at: list[int] = []
        self.entries = Entries((folder / "entries").as_uri())
        self.checkpoint = ListingCheckpoint((folder / "kept").as_uri(), datetime.now(UTC))
        self.ahead = PlanAhead(lambda: sizes, self.entries, self._planned)
        self._options = options

    def _planned(self, some: Manifest) -> None:
        self.blocks.append(some)
        self.listed_at.append(len(self.store.answered))

    def list(self, ahead: bool = True) -> Listing:
        patch = patched_storage(self.store)
        try:
            return list_source(
                ROOT,
                checkpoint=self.checkpoint,
                mapper=self.tasks,
                ahead=self.ahead if ahead else None,
                **self._options,
            )
        finally:
            patch.undo()


def alone(keys: list[str], rules: Rules | None = None, store: FakeStore | None = None) -> Listing:
    patch = patched_storage(store or FakeStore(keys, 20))
    try:
        return list_source(ROOT, rules)
    finally:
        patch.undo()


def planned_alone(keys: list[str]) -> Manifest:
    return plan(alone(keys), shard_images=8, cell_images=4)


@cache
def digest_alone(count: int) -> str:
    """The digest of `planned_alone` for so many frames."""
    return planned_alone(frames(count)).digest


KEYS = st.lists(
    st.text("ab/%'é0", min_size=1, max_size=5).map(lambda text: f"{text}.jpg"),
    min_size=200,
    max_size=500,
    unique=True,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(KEYS, st.integers(5, 40), st.integers(0, 999))
def test_tasks_make_the_plan_of_one_process(keys: list[str], page: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), FakeStore(keys, page), seed)
        found = run.list()
        assert found.planned is not None
        assert found.parts == ()
        whole = planned_alone(keys)
        assert found.planned.digest == whole.digest
        assert all_shards(found.planned) == all_shards(whole)
        assert (found.source, found.ignored) == (whole.source, whole.ignored)
        shards = [shard.digest for some in run.blocks for shard in all_shards(some)]
        assert sorted(shards) == sorted(head.digest for head in whole.heads)


class UnevenStore(FakeStore):
    """Its images have ever more bytes, in the order of their names."""

    def list_page(self, uri: str, after: str) -> tuple[list[Stored], str, bool]:
        items, last, more = super().list_page(uri, after)
        return [item._replace(size=1 + self._place(item, uri)) for item in items], last, more

    def _place(self, item: Stored, uri: str) -> int:
        return bisect.bisect_left(self.keys, item.uri.removeprefix(f"{uri}/"))


@pytest.mark.parametrize("at", [20, None])
def test_a_known_speed_gives_tasks_and_one_process_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int | None
) -> None:
    """Also if the listing was interrupted. Blocks of larger images have smaller shards."""
    monkeypatch.setattr(shard_sizes, "MIN_SHARD_IMAGES", 1)
    monkeypatch.setattr(shard_sizes, "SHARD_MULTIPLE", 1)
    monkeypatch.setattr(shard_sizes, "default_shard_images", lambda _: 9)
    speed = ImageSeconds(5.0, 0.06, 3.0)
    keys = [f"{i:06d}.jpg" for i in range(500)]

    def fail(asked: int) -> None:
        if at is not None and asked >= at:
            raise StorageError("the machine is gone")

    sizes = NewShardSizes(image_seconds=speed, cell_images=4)
    if at is not None:
        with pytest.raises(StorageError, match="the machine is gone"):
            Run(tmp_path, UnevenStore(keys, 20, fail), sizes=sizes).list()
    found = Run(tmp_path, UnevenStore(keys, 20), sizes=sizes).list()
    whole = plan(alone(keys, store=UnevenStore(keys, 20)), image_seconds=speed, cell_images=4)
    assert found.planned is not None
    assert found.planned.heads == whole.heads
    assert found.planned.shard_images == whole.shard_images
    shards = sorted(all_shards(whole), key=lambda shard: shard.members[0].uri)
    small, large = (max(len(each.members) for each in of) for of in (shards[:20], shards[-20:]))
    assert small > large


def test_blocks_are_planned_while_the_listing_runs(tmp_path: Path) -> None:
    keys = frames(3_000)
    run = Run(tmp_path, FakeStore(keys, 20))
    found = run.list()
    assert found.planned is not None
    assert found.planned.candidates == 2_700
    assert found.ignored == {".txt": 300}
    early = [listed for listed in run.listed_at if listed < len(keys)]
    assert len(early) > len(run.blocks) / 4
    assert min(early) < len(keys) / 2
    assert run.tasks.rounds > 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(KEYS, st.integers(5, 40), st.integers(0, 999))
def test_no_part_has_names_between_those_of_another(keys: list[str], page: int, seed: int) -> None:
    """So a block is planned from few parts, however many ranges of keys were listed at a time."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), FakeStore(keys, page), seed)
        run.list()
    require_apart(run)


def require_apart(run: Run) -> None:
    """Checks that of all parts that blocks are planned from, each ends before the next begins."""
    its = [part for block in run.tasks.items for part in getattr(block, "parts", ())]
    parts = sorted({part.uri: part for part in its}.values(), key=lambda part: part.first)
    assert len(parts) > 1
    assert all(one.last < other.first for one, other in pairwise(parts))


@pytest.mark.parametrize("at", [40, 90, 120])
def test_parts_have_no_names_in_common_after_a_listing_was_interrupted(
    tmp_path: Path, at: int
) -> None:
    def before(asked: int) -> None:
        if asked >= at:
            raise StorageError("the machine is gone")

    with pytest.raises(StorageError, match="the machine is gone"):
        Run(tmp_path, FakeStore(frames(3_000), 20, before)).list()
    again = Run(tmp_path, FakeStore(frames(3_000), 20))
    again.list()
    require_apart(again)


def test_tasks_take_memory_from_glibc_and_leave_the_process_as_it_was(tmp_path: Path) -> None:
    before = pa.default_memory_pool().backend_name
    seen: set[str] = set()
    run = Run(tmp_path, FakeStore(frames(1_000), 20, lambda _: None))
    real = stretches.sort_pages

    def spy(rows: pa.Table) -> pa.Table:
        seen.add(pa.default_memory_pool().backend_name)
        return real(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "sort_pages", spy)
        run.list()
    assert "system" in seen
    assert pa.default_memory_pool().backend_name == before


def test_ranges_that_were_read_to_their_ends_share_a_part(tmp_path: Path) -> None:
    """A part ends where keys are left that no task has listed yet, and nowhere else."""
    keys = [f"{i:04d}.jpg" for i in range(400)]
    ranges = [KeyRange("", "0100"), KeyRange("0100", "0200"), KeyRange("0300")]
    patch = patched_storage(FakeStore(keys, 20))
    try:
        stretch = stretches.Stretch(ROOT, Rules(), tuple(ranges), tmp_path.as_uri(), 10_000, 100)
        found = stretch.run()
    finally:
        patch.undo()
    assert found.left == ()
    assert [(part.rows, part.first) for part in found.parts] == [
        (200, f"{ROOT}/0000.jpg"),
        (100, f"{ROOT}/0300.jpg"),
    ]
    for path in tmp_path.glob("*.parquet"):
        assert pq.read_schema(path).names == ["uri", "size", "identity"]


@pytest.mark.parametrize("at", [3, 9, 40, 120])
def test_an_interrupted_listing_goes_on(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it ends, nothing is lost, also if another version has written its parts."""
    keys = frames(3_000)
    layout, columns = stretches.PART_LAYOUT, stretches.object_schema
    if at == 40:
        monkeypatch.setattr(stretches, "PART_LAYOUT", {"compression": "zstd"})
        monkeypatch.setattr(stretches, "object_schema", lambda **_: ENTRY_SCHEMA)

    def before(asked: int) -> None:
        if asked >= at:
            raise StorageError("the machine is gone")

    first = Run(tmp_path, FakeStore(keys, 20, before))
    with pytest.raises(StorageError, match="the machine is gone"):
        first.list()
    monkeypatch.setattr(stretches, "PART_LAYOUT", layout)
    monkeypatch.setattr(stretches, "object_schema", columns)
    again = Run(tmp_path, FakeStore(keys, 20))
    found = again.list()
    assert found.planned is not None
    assert found.planned.digest == digest_alone(3_000)
    assert found.ignored == {".txt": 300}
    again.checkpoint.remove()
    left = {path.parent.as_uri() for path in tmp_path.rglob("kept*/**/*") if path.is_file()}
    assert left <= {first.checkpoint.parts_folder}  # for a garbage collection


def test_what_tasks_have_stored_is_not_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread lists for each task, so that the same keys are stored each time."""
    monkeypatch.setattr(parallel_listing, "LISTERS", 1)
    keys = frames(3_000)

    def before(asked: int) -> None:
        if asked >= 120:
            raise StorageError("the machine is gone")

    with pytest.raises(StorageError, match="the machine is gone"):
        Run(tmp_path, FakeStore(keys, 20, before)).list()
    store = FakeStore(keys, 20)
    assert Run(tmp_path, store).list().planned is not None
    assert len(store.answered) < len(keys) - 1_000


@pytest.mark.parametrize("at", [40, 120])
def test_one_process_goes_on_with_what_tasks_have_listed(tmp_path: Path, at: int) -> None:
    keys = frames(3_000)

    def before(asked: int) -> None:
        if asked >= at:
            raise StorageError("the machine is gone")

    with pytest.raises(StorageError, match="the machine is gone"):
        Run(tmp_path, FakeStore(keys, 20, before)).list()
    again = Run(tmp_path, FakeStore(keys, 20))
    again.tasks.in_process = True
    found = again.list()
    assert again.tasks.rounds == 0
    assert plan(found, shard_images=8, cell_images=4).digest == digest_alone(3_000)
    assert found.ignored == {".txt": 300}


@pytest.mark.parametrize("own", [1, 8])
def test_tasks_go_on_with_what_one_process_has_listed(
    tmp_path: Path, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_listing, "OWN_FILES", own)
    keys = frames(3_000)

    def before(asked: int) -> None:
        if asked >= 90:
            raise StorageError("the machine is gone")

    alone = Run(tmp_path, FakeStore(keys, 20, before))
    alone.tasks.in_process = True
    with pytest.raises(StorageError, match="the machine is gone"):
        alone.list()
    found = Run(tmp_path, FakeStore(keys, 20)).list()
    assert found.planned is not None
    assert found.planned.digest == digest_alone(3_000)


def test_a_listing_that_lost_candidates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing.ListingWriter, "take_stored", lambda writer, data: None)
    with pytest.raises(ConservationError, match="candidates were listed, and"):
        Run(tmp_path, FakeStore(frames(1_000), 20)).list(ahead=False)


def test_two_listings_of_one_source_at_once_keep_their_parts(tmp_path: Path) -> None:
    keys = frames(1_000)
    first, second = (Run(tmp_path, FakeStore(keys, 20)) for _ in range(2))
    assert first.list().planned is not None
    real = second.tasks.map

    def end_of_the_first(function: Any, items: Any) -> Any:
        first.checkpoint.remove()
        return real(function, items)

    second.tasks.map = end_of_the_first  # type: ignore[method-assign]  # the other ends meanwhile
    found = second.list()
    assert found.planned is not None
    assert found.planned.digest == digest_alone(1_000)


def test_a_prefix_with_few_images_among_many_files_is_listed_by_tasks_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted are the files that are looked at, as these take the time."""
    monkeypatch.setattr(parallel_listing, "LISTERS", 1)
    monkeypatch.setattr(listing, "PART_KEYS", 100)
    keys = [f"a/{i:05d}.{'txt' if i % 500 else 'jpg'}" for i in range(3_000)]

    def before(asked: int) -> None:
        if asked > 100:
            raise StorageError("the machine is gone")

    with pytest.raises(StorageError, match="the machine is gone"):
        Run(tmp_path, FakeStore(keys, 20, before)).list()
    store = FakeStore(keys, 20)
    run = Run(tmp_path, store)
    found = run.list()
    assert sorted(entry.uri for entry in found.entries) == [f"{ROOT}/{k}" for k in keys[::500]]
    assert found.ignored == {".txt": 2_994}
    assert run.tasks.rounds > 2
    assert len(store.answered) < len(keys) - 1_000


@pytest.mark.parametrize("which_ends_first", ["the first", "the second", "relist"])
def test_a_job_that_goes_on_with_the_listing_of_a_running_one_disturbs_neither(
    tmp_path: Path, which_ends_first: str
) -> None:
    keys = frames(3_000)
    others: list[Run] = []

    def before(asked: int) -> None:
        if asked != 100:
            return
        if which_ends_first == "relist":
            ListingCheckpoint((tmp_path / "kept").as_uri(), datetime.now(UTC), relist=True)
            return
        others.append(Run(tmp_path, FakeStore(keys, 20)))
        if which_ends_first == "the second":
            assert end(others[0]) == digest_alone(3_000)

    def end(run: Run) -> str:
        planned = run.list().planned
        run.checkpoint.remove()
        assert planned is not None
        return planned.digest

    assert end(Run(tmp_path, FakeStore(keys, 20, before))) == digest_alone(3_000)
    if which_ends_first == "the first":
        (other,) = others
        assert end(other) == digest_alone(3_000)
        assert len(other.store.answered) < len(keys) - 500  # it went on with what was stored


def test_a_job_does_not_go_on_with_parts_that_are_being_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other job looks for the note of this one just before it is there."""
    keys = frames(1_000)
    first = Run(tmp_path, FakeStore(keys, 20))
    assert first.list().planned is not None
    real, notes = storage.create, []

    def create(uri: str, data: bytes) -> bool:
        if uri.endswith(RESUMED) and not notes:
            notes.append(uri)
            first.checkpoint.remove()
        return real(uri, data)

    monkeypatch.setattr(storage, "create", create)
    second = Run(tmp_path, FakeStore(keys, 20))
    assert len(notes) == 1
    planned = second.list().planned
    assert planned is not None
    assert planned.digest == digest_alone(1_000)


def test_a_listing_that_was_complete_is_not_listed_again(tmp_path: Path) -> None:
    keys = frames(1_000)
    first = Run(tmp_path, FakeStore(keys, 20)).list()
    store = FakeStore(keys, 20)
    again = Run(tmp_path, store).list()
    assert store.asked == 0
    assert first.planned is not None
    assert again.planned is not None
    assert again.planned.digest == first.planned.digest


def test_a_source_with_few_images_is_planned_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MANY", 5_000)
    run = Run(tmp_path, FakeStore(frames(1_000), 20))
    found = run.list()
    assert (found.planned, run.blocks) == (None, [])
    assert plan(found).digest == plan(alone(frames(1_000))).digest


def test_without_a_plan_all_candidates_are_brought_here(tmp_path: Path) -> None:
    found = Run(tmp_path, FakeStore(frames(1_000), 20)).list(ahead=False)
    assert found.planned is None
    assert plan(found).digest == plan(alone(frames(1_000))).digest


@pytest.mark.parametrize(
    "rules", [Rules(group_by="1"), Rules(by="1"), Rules(exclude="video3/*")], ids=str
)
def test_rules_hold_in_tasks(tmp_path: Path, rules: Rules) -> None:
    run = Run(tmp_path, FakeStore(frames(1_000), 20), rules=rules)
    found, expected = run.list(), alone(frames(1_000), rules)
    assert found.filtered == expected.filtered
    assert (found.planned is None) == (rules.exclude is None)
    made = found.planned or plan(found, by=rules.label, shard_images=8, cell_images=4)
    whole = plan(expected, by=rules.label, shard_images=8, cell_images=4)
    assert made.digest == whole.digest


def test_archives_that_tasks_find_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is planned anew then: the members of an archive are bound to each other."""
    looked = []
    monkeypatch.setattr(
        source_lister,
        "encoded_index",
        lambda item, **_: (looked.append(item.uri), (item.uri, None))[1],
    )
    monkeypatch.setattr(Tasks, "__reduce__", lambda self: (Tasks, ()))
    monkeypatch.setattr(pickle, "dumps", lambda item: item)
    monkeypatch.setattr(pickle, "loads", lambda item: item)
    keys = [*frames(1_000), "video6/z.tar"]
    run = Run(tmp_path, FakeStore(keys, 20))
    found = run.list()
    assert looked == [f"{ROOT}/video6/z.tar"]
    assert found.planned is None
    assert plan(found).digest == plan(alone(keys)).digest
    assert plan(found).candidates == 900


def test_folders_that_look_like_classes_are_found_across_tasks(tmp_path: Path) -> None:
    said: list[str] = []

    def listen(event: Any) -> None:
        if isinstance(event, Said):
            said.append(event.message)

    Run(tmp_path, FakeStore(frames(1_000), 20), progress=listen).list()
    assert any("the images lie in 7 folders" in message for message in said)


def test_a_part_that_was_removed_or_damaged_ends_the_listing(tmp_path: Path) -> None:
    keys = frames(1_000)
    run = Run(tmp_path, FakeStore(keys, 20))
    run.list()
    parts = sorted((tmp_path / "kept-parts").rglob("*.parquet"))
    whole = parts[0].read_bytes()
    parts[0].write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(CorruptFile, match="or rerun the same command with"):
        Run(tmp_path, FakeStore(keys, 20)).list()
    for part in parts:
        part.unlink()
    with pytest.raises(TransientError, match="was removed while the source was listed; rerun"):
        Run(tmp_path, FakeStore(keys, 20)).list(ahead=False)


def lose_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the plan of each block lack its first shard."""
    real = block_plan.plan_block

    def lose(*arguments: Any, **options: Any) -> Manifest:
        made = real(*arguments, **options)
        return replace(made, heads=made.heads[1:])

    monkeypatch.setattr(block_plan, "plan_block", lose)


def test_a_plan_that_lacks_a_candidate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_shards(monkeypatch)
    with pytest.raises(ConservationError, match="candidates were listed, and"):
        Run(tmp_path, FakeStore(frames(1_000), 20)).list()
