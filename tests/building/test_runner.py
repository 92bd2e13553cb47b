"""Tests what a job tells of its shards while they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.building.runner import run_missing
from pipeline.counting import ShardReceipt
from pipeline.events import Event, Said, StepDone


def told(folder: Path, receipts: Sequence[ShardReceipt]) -> list[Event]:
    """Returns the events of a job of shards of ten images."""
    recipe = SimpleNamespace(spec=SimpleNamespace(digest="s"), products=())
    job: Any = SimpleNamespace(manifest_uri="m", work_uri=folder.as_uri(), recipe=recipe)
    heads = [SimpleNamespace(index=at, candidates=10) for at in range(len(receipts))]
    manifest: Any = SimpleNamespace(heads=heads, keys=lambda *_: [f"k{h.index}" for h in heads])

    def run_shards(work: Sequence[tuple[Any, int]]) -> Iterator[ShardReceipt]:
        yield from receipts

    events: list[Event] = []
    run_missing([(job, manifest)], SimpleNamespace(run_shards=run_shards), events.append)  # type: ignore[arg-type]  # in its place
    return events


def test_it_is_told_what_tasks_have_decoded_and_why_they_have_not(tmp_path: Path) -> None:
    receipts = [
        ShardReceipt("m", 0, 10, ahead=4, missed="LostRun: a node died"),
        ShardReceipt("m", 1, 10, ahead=12),
        ShardReceipt("m", 2, 10, ahead=0, missed="not decoded in 60 s"),
    ]
    events = told(tmp_path, receipts)
    assert [event.ahead for event in events if isinstance(event, StepDone)] == [4, 12, 0]
    assert [event.message for event in events if isinstance(event, Said)] == [
        "shard 0: its worker decoded for a task: LostRun: a node died",
        "tasks decoded 16 images of 30 for the workers",
    ]


def test_nothing_is_told_of_tasks_that_nobody_asked(tmp_path: Path) -> None:
    events = told(tmp_path, [ShardReceipt("m", 0, 10)])
    assert [event for event in events if isinstance(event, Said)] == []
