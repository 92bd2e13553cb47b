"""Tests what a job tells of its shards while they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.building.runner import Ran, require_counted, run_missing
from pipeline.counting import ShardJob, ShardReceipt, order_of_claims
from pipeline.errors import TransientError, UnexpectedError, VdnaError
from pipeline.events import Event, Said, StepDone

handed_out: list[int] = []


def told(folder: Path, receipts: Sequence[ShardReceipt]) -> list[Event]:
    """Returns the events of a job of shards of ten images."""
    recipe = SimpleNamespace(spec=SimpleNamespace(digest="s"), products=())
    job = ShardJob(recipe, "m", folder.as_uri(), "e")  # type: ignore[arg-type]  # in its place
    heads = [
        SimpleNamespace(index=at, candidates=10, content=f"c{at}") for at in range(len(receipts))
    ]
    keys = [f"k{head.index}" for head in heads]
    manifest: Any = SimpleNamespace(heads=heads, keys=lambda *_: keys, folds=dict)

    def run_shards(work: Sequence[tuple[Any, int]]) -> Iterator[ShardReceipt]:
        handed_out.extend(index for _, index in work)
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
        "tasks decoded 16 images for the workers, which had 30 to count",
    ]


def test_images_that_failed_while_the_source_was_listed_are_of_the_whole_run() -> None:
    """Else the limit on failures would be judged by too few of the images that were read."""
    ahead, rest = Ran(2, read=20, failed=5), Ran(1, read=10, failed=1)
    whole = ahead.with_more(rest)
    assert (whole.shards, whole.read, whole.failed) == (3, 30, 6)


def test_two_jobs_of_one_manifest_are_refused() -> None:
    job: Any = ShardJob(None, "m", "w", "e")  # type: ignore[arg-type]  # none is run
    manifest: Any = SimpleNamespace(heads=[])
    engine: Any = None
    with pytest.raises(ValueError, match="two jobs have the same manifest"):
        run_missing([(job, manifest), (job, manifest)], engine, lambda _: None)


def test_nothing_is_told_of_tasks_that_nobody_asked(tmp_path: Path) -> None:
    events = told(tmp_path, [ShardReceipt("m", 0, 10)])
    assert [event for event in events if isinstance(event, Said)] == []


def test_a_job_s_shards_are_handed_out_in_an_order_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []
    for claimant in ("a", "b"):
        monkeypatch.setattr("secrets.token_hex", lambda size, own=claimant: own)
        events = told(tmp_path, [ShardReceipt("m", at, 10) for at in range(20)])
        assert len([event for event in events if isinstance(event, StepDone)]) == 20
        orders.append(handed_out[-20:])
    assert orders == [order_of_claims(own, range(20)) for own in ("a", "b")]
    assert orders[0] != orders[1]


def test_the_shards_that_could_not_be_counted_are_named_with_the_last_error_of_one() -> None:
    failed = [
        ShardReceipt("m", at, error=f"{kind}: no {at}", kind=kind, transient=True)
        for at, kind in ((3, "TransientError"), (7, "UnexpectedError"), (9, "TransientError"))
    ]
    with pytest.raises(UnexpectedError) as unexpected:
        require_counted("a", 1200, failed)
    assert str(unexpected.value) == (
        "a: 3 of 1,200 shards could not be counted (3, 7 and 9); nothing was skipped: rerun "
        "the same command to go on. The last error of shard 7: UnexpectedError: no 7"
    )
    with pytest.raises(TransientError, match=r"\(3 and 9\); .* of shard 3: TransientError: no 3$"):
        require_counted("a", 1200, [failed[0], failed[2]])
    lasting = replace(failed[0], transient=False)
    with pytest.raises(VdnaError, match=r"\(9 and 3\); nothing was committed\. .* of shard 3: "):
        require_counted("a", 1200, [failed[2], lasting])
