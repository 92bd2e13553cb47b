"""Tests that a large report of S3 Inventory that tasks read is planned as one process plans it."""

from __future__ import annotations

import hashlib
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import ConservationError, CorruptFile, SourceError, StorageError, UsageError
from pipeline.mapper import SerialMapper
from pipeline.sources import (
    Entries,
    Listing,
    ListingCheckpoint,
    Manifest,
    NewShardSizes,
    PlanAhead,
    Rules,
    inventory,
    list_source,
    plan,
    source_lister,
    stretches,
    task_listing,
)
from pipeline.sources.block_plan import NameBlock, PlannedBlock
from pipeline.sources.stretches import FoundStretch, ReportFiles
from pipeline.storage import Stored
from tests.sources.test_inventory import ORDER, Rows, encoded
from tests.sources.test_task_listing import Tasks, lose_shards
from tests.support.builders import all_shards
from tests.support.small_sources import shrink

OUTSIDE = "s3://b/results"

MANIFEST = "s3://reports/daily/manifest.json"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, block=70, many=100, keys=120, alone=60)
    monkeypatch.setattr(task_listing, "TASK_BYTES", 1)  # each task reads one file


def row(key: str, size: int = 1, e_tag: str | None = None, **flags: Any) -> dict[str, Any]:
    e_tag = e_tag or hashlib.md5(key.encode()).hexdigest()
    states = {"version_id": None, "is_latest": True, "is_delete_marker": False} | flags
    return {"bucket": "b", "key": key, "size": size, "e_tag": e_tag, **states}


def frames(count: int) -> Rows:
    """Rows in no order, of which a tenth are no images."""
    rows = [
        row(f"video{i % 7}/frame-{i:06d}.{'jpg' if i % 10 else 'txt'}", 1 + i) for i in range(count)
    ]
    return random.Random(count).sample(rows, count)


class Report:
    """A report in a store that is a dict.

    Args:
        rows: The rows, spread over files as they come.
        files: How many files there are.
        layout: Their format.
        change: Changes what the manifest states.
    """

    def __init__(
        self,
        rows: Rows,
        files: int = 9,
        layout: str = "Parquet",
        change: Callable[[dict[str, Any]], object] = lambda stated: None,
    ) -> None:
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fails_at: int | None = None
        each, described = max(1, -(-len(rows) // files)), []
        for at in range(0, len(rows), each):
            data = encoded(rows[at : at + each], layout, ORDER)
            md5 = hashlib.md5(data).hexdigest()
            self.stored[f"s3://reports/{md5}-{at}"] = data
            described.append({"key": f"{md5}-{at}", "size": len(data), "MD5checksum": md5})
        stated = {
            "sourceBucket": "b",
            "destinationBucket": "arn:aws:s3:::reports",
            "fileFormat": layout,
            "fileSchema": ", ".join(ORDER),
            "files": described,
        }
        change(stated)
        self.manifest = json.dumps(stated).encode()

    def read_on_disk(self, uri: str) -> bytes:
        self.asked.append(uri)
        if self.fails_at is not None and len(self.asked) > self.fails_at:
            raise StorageError("the machine is gone")
        if uri not in self.stored:
            raise SourceError(f"{uri} does not exist")
        return self.stored[uri]

    def list(self, rules: Rules | None = None, **options: Any) -> Listing:
        with pytest.MonkeyPatch.context() as patch:
            read, exists = storage.read, storage.exists
            patch.setattr(storage, "read_on_disk", self.read_on_disk)
            patch.setattr(
                storage, "read", lambda uri: self.manifest if uri == MANIFEST else read(uri)
            )
            patch.setattr(storage, "exists", lambda uri: uri == MANIFEST or exists(uri))
            return list_source(MANIFEST, rules, outside=OUTSIDE, **options)

    def planned_alone(self, rules: Rules | None = None) -> Manifest:
        return planned_here(self.list(rules), rules)


def planned_here(listing: Listing, rules: Rules | None = None) -> Manifest:
    by = rules.label if rules else None
    return plan(listing, by=by, shard_images=8, cell_images=4)


@cache
def digest_alone(count: int) -> str:
    """The digest of the plan of one process for so many frames."""
    return Report(frames(count)).planned_alone().digest


class Reading:
    """One reading of reports by tasks, kept in a folder, with the plans of blocks as they come."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.tasks = Tasks(seed)
        self.blocks: list[Manifest] = []
        entries = Entries((folder / "entries").as_uri())
        self.checkpoint = ListingCheckpoint((folder / "kept").as_uri(), datetime.now(UTC))
        sizes = NewShardSizes(shard_images=8, cell_images=4)
        self.ahead: PlanAhead | None = PlanAhead(lambda: sizes, entries, self.blocks.append)

    def list(self, report: Report, rules: Rules | None = None, **options: Any) -> Listing:
        return report.list(
            rules, checkpoint=self.checkpoint, mapper=self.tasks, ahead=self.ahead, **options
        )

    def plan(self, report: Report) -> Manifest:
        planned = self.list(report).planned
        assert planned is not None
        return planned

    @property
    def given(self) -> list[int]:
        """The numbers of the files that tasks were given, in their order."""
        tasks = (task for task in self.tasks.items if isinstance(task, ReportFiles))
        return sorted(number for task in tasks for number in task.files)


KEYS = st.lists(
    st.text("ab/%'é0 +,", min_size=1, max_size=5).map(lambda text: f"{text}.jpg"),
    min_size=130,
    max_size=250,
    unique=True,
)


def histories(keys: Sequence[str], seed: int) -> Rows:
    """Rows of a bucket with versions, in no order.

    Some keys have older versions or are deleted, some are no images or lie in the folder of
    results, and some are reported twice, also in two states.
    """
    chance = random.Random(seed)
    rows = [row("results/dnas/1.parquet"), row("results/2.jpg"), row("results.jpg"), row("a/", 0)]
    for key in keys:
        rows.append(row(key, chance.randrange(1, 999)))
        dice = chance.randrange(20)
        if dice < 2:
            rows.append(row(key, e_tag="0ld", version_id="1", is_latest=False))
        elif dice == 2:
            rows.append(rows[-1])
        elif dice == 3:
            rows.append(row(key, chance.randrange(1, 999), chance.choice("afz") * 32))
        elif dice == 4:
            gone = {"version_id": "2", "is_delete_marker": True, "size": None, "e_tag": None}
            rows.append(row(f"gone/{key}") | gone)
        elif dice == 5:
            rows.append(row(f"{key}.txt"))
    return chance.sample(rows, len(rows))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=3)
@given(
    KEYS,
    st.integers(1, 12),
    st.sampled_from(["Parquet", "CSV", "ORC"]),
    st.sampled_from([1, 2_000, 2**26]),
    st.integers(0, 999),
)
def test_tasks_make_the_plan_of_one_process(
    keys: list[str], files: int, layout: str, most: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_listing, "TASK_BYTES", most)
        patch.setattr(stretches, "REPORT_ENTRIES", 50)
        report = Report(histories(keys, seed), files, layout)
        reading = Reading(Path(folder), seed)
        found, alone = reading.list(report), report.list()
        assert found.planned is not None
        assert found.parts == ()
        whole = planned_here(alone)
        assert found.planned.digest == whole.digest
        assert all_shards(found.planned) == all_shards(whole)
        assert found.planned.duplicates == whole.duplicates
        assert (found.source, found.ignored) == (alone.source, alone.ignored)
        assert (found.filtered, found.pairing) == (alone.filtered, alone.pairing)
        shards = [shard.digest for some in reading.blocks for shard in all_shards(some)]
        assert sorted(shards) == sorted(head.digest for head in whole.heads)
        assert reading.given == list(range(len(report.stored)))


def test_a_later_report_is_compared_with_the_plan_before(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    reading.tasks = Twice()
    ahead = reading.ahead
    assert ahead is not None
    cut = {"shard_images": 8, "cell_images": 4, "entries": ahead.entries}
    before = plan(Report(frames(300)).list(), **cut)
    rows = [each for each in frames(340) if "0000" not in each["key"].partition("-")[2][2:]]
    rows += [row(rows[3]["key"], 77, "f" * 32), row(rows[4]["key"], 78, "0" * 32), rows[5]]
    later = Report(rows, layout="ORC")
    whole = plan(later.list(), previous=before, **cut)
    reading.ahead = replace(ahead, previous=lambda: before)
    made = reading.plan(later)
    assert made.digest == whole.digest != before.digest
    assert all_shards(made) == all_shards(whole)
    assert (made.duplicates, made.ignored) == (whole.duplicates, whole.ignored)
    assert reading.blocks == []
    assert made.duplicates > 0


def test_blocks_are_planned_when_every_file_is_read(tmp_path: Path) -> None:
    report, reading = Report(frames(200)), Reading(tmp_path)
    assert reading.plan(report).digest == digest_alone(200)
    kinds = [type(result) for result in reading.tasks.results]
    assert sorted(kinds, key=[FoundStretch, PlannedBlock].index) == kinds
    assert len(reading.blocks) == kinds.count(PlannedBlock) > 2
    assert reading.tasks.rounds > 2


def test_a_block_is_planned_from_few_of_the_candidates(tmp_path: Path) -> None:
    report, reading = Report(frames(1_000), 3), Reading(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "REPORT_PART_ENTRIES", 10)
        patch.setattr(stretches, "REPORT_ENTRIES", 500)
        planned = reading.plan(report)
    planned_from = [item.parts for item in reading.tasks.items if isinstance(item, NameBlock)]
    read = sum(part.rows for parts in planned_from for part in parts)
    # The parts of each of three tasks that are at the ends of a block have others' candidates, too.
    assert planned.candidates <= read <= planned.candidates + len(planned_from) * 3 * 2 * 10


@pytest.mark.parametrize("at", [0, 7])
def test_an_interrupted_reading_goes_on(tmp_path: Path, at: int) -> None:
    """Files of rounds that have ended are not read again, and count once."""
    report = Report(frames(200))
    report.fails_at = at
    with pytest.raises(StorageError, match="the machine is gone"):
        Reading(tmp_path).list(report)
    report.fails_at, report.asked = None, []
    again = Reading(tmp_path)
    found = again.list(report)
    assert found.planned is not None
    assert found.planned.digest == digest_alone(200)
    assert found.ignored == {".txt": 20}
    assert again.given == list(range(at // 3 * 3, 9))  # three tasks a round, one file each
    again.checkpoint.remove()
    assert not list((tmp_path / "kept").rglob("*.parquet"))


def test_a_reading_that_was_complete_is_not_repeated(tmp_path: Path) -> None:
    report = Report(frames(200))
    first = Reading(tmp_path).plan(report)
    report.asked = []
    assert Reading(tmp_path).plan(report).digest == first.digest
    assert report.asked == []


def test_a_newer_report_is_never_mixed_with_an_older_one(tmp_path: Path) -> None:
    """Also if the newer one has files of the older one, and takes its place."""
    rows = frames(200)
    older = Report(rows)
    older.fails_at = 4
    with pytest.raises(StorageError, match="the machine is gone"):
        Reading(tmp_path).list(older)
    rows[5]["e_tag"], rows[6]["key"] = "f" * 32, "new.jpg"
    newer, reading = Report(rows), Reading(tmp_path)
    assert reading.plan(newer).digest == newer.planned_alone().digest
    assert reading.given == list(range(9))


@pytest.mark.parametrize("at", [7, None])
@pytest.mark.parametrize("in_process", [True, False])
def test_a_folder_never_goes_on_with_a_report_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int | None, in_process: bool
) -> None:
    """As if the report was removed, and what was read of it still lies there."""
    report = Report(frames(200))
    report.fails_at = at
    with pytest.raises(StorageError) if at is not None else nullcontext():
        Reading(tmp_path).list(report)
    key, exists = f"{MANIFEST}/photo.jpg", storage.exists

    def missing(uri: str) -> Stored:
        raise SourceError(f"{uri} does not exist")

    page = [Stored(key, 1, "e", None)], "photo.jpg", False
    monkeypatch.setattr(storage, "exists", lambda uri: uri != MANIFEST and exists(uri))
    monkeypatch.setattr(storage, "info", missing)
    monkeypatch.setattr(
        storage, "list_page", lambda uri, after="": ([], "", False) if after else page
    )
    reading = Reading(tmp_path)
    reading.tasks.in_process = in_process
    found = list_source(MANIFEST, checkpoint=reading.checkpoint, mapper=reading.tasks)
    assert [entry.uri for entry in found.entries] == [key]


def test_stored_parts_are_put_together_before_they_are_planned_here(tmp_path: Path) -> None:
    """Each file takes DuckDB time, and a report's parts are small."""
    report, reading = Report(frames(200)), Reading(tmp_path)
    reading.ahead, rules = None, Rules(exclude="video1/*")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "REPORT_PART_ENTRIES", 3)
        found = reading.list(report, rules)
    stored = sum(len(result.parts) for result in reading.tasks.results)
    assert stored > 50
    assert len(found.parts) <= 4
    assert planned_here(found).digest == report.planned_alone(rules).digest


def test_one_process_reads_a_report_anew_that_tasks_have_begun(tmp_path: Path) -> None:
    report = Report(frames(200))
    report.fails_at = 4
    with pytest.raises(StorageError, match="the machine is gone"):
        Reading(tmp_path).list(report)
    report.fails_at = None
    again = Reading(tmp_path)
    again.tasks.in_process = True
    found = again.list(report)
    assert (again.tasks.rounds, found.planned, found.ignored) == (0, None, {".txt": 20})
    assert planned_here(found).digest == digest_alone(200)


def test_a_small_report_is_read_by_one_process(tmp_path: Path) -> None:
    report, reading = Report(frames(200)), Reading(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inventory, "ALONE_BYTES", sum(map(len, report.stored.values())))
        found = reading.list(report)
    assert reading.tasks.rounds == 0
    assert planned_here(found).digest == digest_alone(200)


class Twice(Tasks):
    """Runs each task twice, as Ray does when it loses the first answer."""

    def map(self, function: Any, items: Any) -> Iterator[Any]:
        def run(item: Any) -> Any:
            first, again = function(item), function(item)
            assert first == again
            return again

        return super().map(run, items)


def test_a_task_that_runs_twice_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_listing, "TASK_BYTES", 2**26)
    monkeypatch.setattr(stretches, "REPORT_ENTRIES", 20)
    report, reading = Report(frames(200)), Reading(tmp_path)
    reading.tasks = Twice()
    assert reading.plan(report).digest == digest_alone(200)
    assert reading.given == list(range(9))
    assert sum(isinstance(task, ReportFiles) for task in reading.tasks.items) < 9


def error_of(call: Callable[[], object]) -> tuple[type[Exception], str]:
    with pytest.raises((SourceError, CorruptFile, UsageError)) as raised:
        call()
    return raised.type, str(raised.value)


@pytest.mark.parametrize(
    ("change", "rules", "words"),
    [
        (lambda s: s["files"][4].update(MD5checksum="0" * 32), Rules(), "its report states 0{32};"),
        (lambda s: s["files"][4].update(key="nowhere"), Rules(), "nowhere does not exist"),
        (lambda s: None, Rules(by="cls"), "by is 'cls', and .* is not a table or an archive"),
    ],
)
def test_a_task_raises_the_error_of_one_process(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], rules: Rules, words: str
) -> None:
    report = Report([row("a/1.jpg")] * 30, change=change)
    reading = Reading(tmp_path)
    kind, message = error_of(lambda: reading.list(report, rules))
    assert re.search(words, message)
    assert (kind, message) == error_of(lambda: report.list(rules))
    assert reading.tasks.rounds > 0


@pytest.mark.parametrize(
    "rules",
    [Rules(by="1"), Rules(exclude="video3/*")],
    ids=str,
)
def test_rules_hold_in_tasks(tmp_path: Path, rules: Rules) -> None:
    report = Report([*frames(200), row("results/1.jpg")])
    reading = Reading(tmp_path)
    found, expected = reading.list(report, rules), report.list(rules)
    assert (found.filtered, found.ignored) == (expected.filtered, expected.ignored)
    assert (found.planned is None) == bool(rules.by)
    made = found.planned or planned_here(found, rules)
    assert made.digest == planned_here(expected, rules).digest


class LastFirst(Tasks):
    """The last task of each round ends first."""

    def map(self, function: Any, items: Any) -> Iterator[Any]:
        return reversed(list(SerialMapper.map(self, self._noting(function), items)))

    def _noting(self, function: Any) -> Any:
        def run(item: Any) -> Any:
            self.items.append(item)
            return function(item)

        return run


def no_images(item: Stored, **_: Any) -> tuple[str, None]:
    return item.uri, None


def test_archives_that_tasks_find_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is named twice is that of the first row, whichever task ends first."""
    monkeypatch.setattr(source_lister, "encoded_index", no_images)
    rows = frames(200)
    for place, e_tag in ((10, "b"), (27, "a"), (28, "c"), (190, "d")):
        rows[place:place] = [row("video6/z.tar", e_tag=e_tag)]
    report = Report(rows)
    report.fails_at = 6
    reading = Reading(tmp_path)
    reading.tasks = LastFirst()
    with pytest.raises(StorageError, match="the machine is gone"):
        reading.list(report)
    report.fails_at, reading = None, Reading(tmp_path)
    reading.tasks = LastFirst()
    found, expected = reading.list(report), report.list()
    (archive,) = (item for item in reading.tasks.items if isinstance(item, Stored))
    assert archive.identity == "b"
    assert found.planned is None
    assert (found.duplicates, found.ignored) == (expected.duplicates, expected.ignored)
    assert planned_here(found).digest == planned_here(expected).digest


def test_without_a_plan_all_candidates_are_brought_here(tmp_path: Path) -> None:
    report, reading = Report(frames(200)), Reading(tmp_path)
    reading.ahead, rules = None, Rules(exclude="video1/*")
    found = reading.list(report, rules)
    assert reading.tasks.rounds > 0
    assert found.planned is None
    assert planned_here(found).digest == report.planned_alone(rules).digest


def test_without_a_plan_or_a_pattern_tasks_would_save_nothing(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    reading.ahead = None
    assert len(list(reading.list(Report(frames(200))).entries)) == 180
    assert reading.tasks.rounds == 0


def test_images_that_are_few_without_their_repetitions_are_planned_here(tmp_path: Path) -> None:
    rows = frames(105)
    report, reading = Report(rows + rows), Reading(tmp_path)
    found = reading.list(report)
    assert found.planned is None
    assert planned_here(found).digest == report.planned_alone().digest


def test_a_report_without_images_is_refused(tmp_path: Path) -> None:
    report = Report([row(f"{i}.txt") for i in range(300)])
    for _ in range(2):  # also if it was recorded that all files are read
        with pytest.raises(SourceError, match=r"holds no image \(300 files of other kinds"):
            Reading(tmp_path).list(report)


def test_a_task_that_stores_too_few_candidates_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stretches.sort_pages

    def lose(rows: pa.Table) -> pa.Table:
        return real(rows)[1:]

    monkeypatch.setattr(stretches, "sort_pages", lose)
    with pytest.raises(ConservationError, match=r"by a task, and [0-9]+ were stored; nothing was"):
        Reading(tmp_path).list(Report(frames(200)))


def test_a_block_that_lacks_a_candidate_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_shards(monkeypatch)
    with pytest.raises(ConservationError, match="candidates were listed, and"):
        Reading(tmp_path).list(Report(frames(200)))
