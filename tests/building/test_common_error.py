"""Tests that a fault which every shard of a dataset meets ends it early, and no other dataset."""

from __future__ import annotations

from collections import Counter as Numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import storage
from pipeline.building import Request, build_datasets
from pipeline.building.common_error import FIRST_SHARDS, SHARDS_OF_WORKER, CommonError, alike
from pipeline.building.counting_ahead import CountingAhead
from pipeline.building.runner import TRIES, FailedShard, Ran, require_counted, run_missing
from pipeline.catalogue import Catalogue
from pipeline.counting import Counter, ShardJob, ShardReceipt, partial_uri
from pipeline.dna import Failure, Partial
from pipeline.engine import InProcess
from pipeline.errors import (
    ConservationError,
    NotFound,
    TransientError,
    UnexpectedError,
    VdnaError,
)
from pipeline.events import Event, Held, Said, Started, StepFailed
from pipeline.mapper import SerialMapper
from pipeline.sources import Entry, Manifest, Shard
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import (
    random_dna,
    same_counts_and_failures,
    tiny_spec,
    write_photos,
)

MANY = 60

BUG = "UnexpectedError: unexpected KeyError: {} (in decoder.py:7)"

Fails = Callable[[str, int, int], str | None]
"""Returns the error of a shard by its dataset, its number and the number of the try, or nothing.
None stands for a shard that is stored, and of which no image could be read."""


class Scripted(SerialMapper):
    """An engine whose shards fail as a function says. It counts the tries of each."""

    resources = Resources()

    def __init__(self, fails: Fails, shard_workers: int = 1) -> None:
        self._fails, self.shard_workers = fails, shard_workers
        self.tries: Numbers[tuple[str, int]] = Numbers()
        self.passes = 0

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        self.passes += 1
        for job, index in work:
            self.tries[job.dataset, index] += 1
            error = self._fails(job.dataset, index, self.tries[job.dataset, index])
            kind = (error or "").partition(":")[0]
            images, failures = (0, 1) if error is None else (0 if error else 3, 0)
            receipt = ShardReceipt(job.manifest_uri, index, images, failures, kind=kind)
            fault = ("crash" if "ends the processes" in (error or "") else "bug") if error else ""
            yield replace(receipt, error=error or "", transient=True, fault=fault)

    def beside_shards(self) -> SerialMapper:
        return self

    def tried(self, dataset: str) -> dict[int, int]:
        return {index: tries for (name, index), tries in self.tries.items() if name == dataset}


def work_of(folder: Path, *names: str, first: int = 0) -> list[tuple[ShardJob, Manifest]]:
    recipe: Any = SimpleNamespace(spec=SimpleNamespace(digest="s"), products=())
    members = [[Entry(f"s3://b/{first + at}", "", 9, "e")] for at in range(MANY)]
    plan = Manifest.of([Shard(at, 0, tuple(its)) for at, its in enumerate(members)], 8)
    return [
        (ShardJob(recipe, f"m-{name}", (folder / name).as_uri(), "e", dataset=name), plan)
        for name in names
    ]


def ran(folder: Path, engine: Any, *names: str, told: Any = None) -> list[Ran]:
    return run_missing(work_of(folder, *names), engine, told or (lambda event: None))


def test_a_dataset_whose_first_shards_all_fail_alike_ends_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    engine = Scripted(lambda name, at, tries: BUG.format(at) if name == "bad" else "")
    events: list[Event] = []
    bad, good = ran(tmp_path, engine, "bad", "good", told=events.append)
    assert engine.tried("bad") == dict.fromkeys(engine.tried("bad"), TRIES)
    assert len(engine.tried("bad")) == FIRST_SHARDS
    assert engine.tried("good") == dict.fromkeys(range(MANY), 1)
    assert (bad.shards, len(bad.errors), bad.untried) == (0, FIRST_SHARDS, MANY - FIRST_SHARDS)
    assert (good.shards, good.errors, good.untried) == (MANY, (), 0)
    (said,) = [event.message for event in events if isinstance(event, Said)]
    assert said == (
        "bad: no shard is counted, and the first ones failed with the same error; they are tried "
        "again before the other 52 shards"
    )
    with pytest.raises(UnexpectedError) as caught:
        require_counted("bad", MANY, bad.errors, bad.untried)
    assert str(caught.value).startswith("bad: 8 of 60 shards could not be counted (")
    assert (
        "). 8 failed with the same error, so the other 52 were not tried; nothing was committed. "
        "Mend what the error names, and rerun the same command to go on. The last error of shard "
    ) in str(caught.value)
    assert " (bug): UnexpectedError: unexpected KeyError" in str(caught.value)
    assert str(caught.value).endswith(" (in decoder.py:7)")


def test_crashes_on_several_machines_are_alike() -> None:
    """Their errors name the processes and the machines."""
    receipts = [
        ShardReceipt("m", at, fault="crash", error=f"it ends processes: {at} on pod-{at:c}")
        for at in range(ord("a"), ord("a") + FIRST_SHARDS)
    ]
    common = CommonError(has_landed=False, workers=lambda: 1)
    found = [common.is_suspected_after(str(one.index), one, given_up=True) for one in receipts]
    assert found == [False] * (FIRST_SHARDS - 1) + [True]
    assert alike(receipts) == receipts


def test_each_worker_gets_some_of_the_shards_that_decide(tmp_path: Path) -> None:
    engine = Scripted(lambda name, at, tries: BUG, shard_workers=4)
    (found,) = ran(tmp_path, engine, "bad")
    assert len(found.errors) == len(engine.tries) == SHARDS_OF_WORKER * 4 > FIRST_SHARDS


@pytest.mark.parametrize("lands", [1, 2, 3])
def test_one_shard_that_lands_has_all_others_tried(tmp_path: Path, lands: int) -> None:
    """It lands at this try, after the first shards have failed alike."""
    sound: list[int] = []

    def fails(name: str, at: int, tries: int) -> str:
        if len(engine.tries) < FIRST_SHARDS:
            return BUG
        sound[:] = sound or [at]
        return "" if at == sound[0] and tries >= lands else BUG

    engine = Scripted(fails)
    (found,) = ran(tmp_path, engine, "poison")
    assert (found.shards, len(found.errors), found.untried) == (1, MANY - 1, 0)
    assert engine.tried("poison") == {at: lands if at == sound[0] else TRIES for at in range(MANY)}


def test_a_shard_without_an_image_that_could_be_read_shows_nothing(tmp_path: Path) -> None:
    """It meets no network. It is stored like the others."""
    ((job, plan),) = work_of(tmp_path, "a")
    empty: list[int] = []

    def fails(name: str, at: int, tries: int) -> str | None:
        empty[:] = empty or [at]
        if at != empty[0]:
            return BUG
        storage.create(partial_uri(job.work_uri, plan.heads[at].key("s", ())), b"partial")
        return None

    (found,) = ran(tmp_path, Scripted(fails), "a")
    assert (len(found.errors), found.untried) == (FIRST_SHARDS, MANY - FIRST_SHARDS - 1)


def test_a_shard_that_ends_processes_is_tried_once_in_a_build(tmp_path: Path) -> None:
    """Some have ended by then. If all shards do that, few of them are tried."""
    poison = "UnexpectedError: the shard ends the processes that take it: 5 took it"
    engine = Scripted(lambda name, at, tries: poison if name == "bad" or at == 7 else "")
    bad, good = ran(tmp_path, engine, "bad", "good")
    assert engine.tried("good") == dict.fromkeys(range(MANY), 1)
    assert (good.shards, [receipt.index for receipt in good.errors]) == (MANY - 1, [7])
    assert set(engine.tried("bad").values()) == {1}
    assert (len(bad.errors), bad.untried) == (FIRST_SHARDS, MANY - FIRST_SHARDS)


def test_a_fault_that_passes_leaves_out_no_shard(tmp_path: Path) -> None:
    engine = Scripted(lambda name, at, tries: BUG if tries < TRIES else "")
    (found,) = ran(tmp_path, engine, "a")
    assert (found.shards, found.errors, found.untried) == (MANY, (), 0)


@pytest.mark.parametrize("by", ["words", "change"])
def test_errors_that_differ_end_no_dataset_early(tmp_path: Path, by: str) -> None:
    """Nor does a source that has changed: which of its images have is told in full."""
    letters = "abcdefghijklmnopqrstuvwxyz"

    def fails(name: str, at: int, tries: int) -> str:
        word = letters[at % 26] + letters[at // 26]
        return f"UnexpectedError: no {word}" if by == "words" else "SourceError: it has changed"

    engine = Scripted(fails)
    (found,) = ran(tmp_path, engine, "a")
    assert (len(found.errors), found.untried) == (MANY, 0)
    assert engine.tried("a") == dict.fromkeys(range(MANY), TRIES)


def test_a_dataset_of_which_a_shard_is_stored_goes_on(tmp_path: Path) -> None:
    """Whoever has stored it, and of whatever plan it is."""
    storage.create(partial_uri((tmp_path / "a").as_uri(), "earlier"), b"partial")
    engine = Scripted(lambda name, at, tries: BUG)
    (found,) = ran(tmp_path, engine, "a")
    assert (len(found.errors), found.untried, engine.passes) == (MANY, 0, TRIES)


def test_a_shard_that_was_stored_without_a_receipt_counts_as_landed(tmp_path: Path) -> None:
    """It was under way when the pass ended, or another job has stored it."""

    def fails(name: str, at: int, tries: int) -> str:
        if engine.tries.total() == TRIES * FIRST_SHARDS:
            storage.create(partial_uri((tmp_path / "a").as_uri(), "meanwhile"), b"partial")
        return BUG

    engine = Scripted(fails)
    (found,) = ran(tmp_path, engine, "a")
    assert (len(found.errors), found.untried) == (MANY, 0)


@pytest.mark.parametrize("images", [0, 1])
def test_a_shard_without_images_that_was_stored_without_a_receipt_shows_nothing(
    tmp_path: Path, images: int
) -> None:
    """It was under way when the pass ended, and met no network."""
    ((job, plan),) = work_of(tmp_path, "a")

    def fails(name: str, at: int, tries: int) -> str:
        if engine.tries.total() == TRIES * FIRST_SHARDS:
            key = plan.heads[-1].key("s", ())
            failures = tuple(Failure(f"s3://b/{n}", "", "empty", "") for n in range(2 - images))
            dna = replace(random_dna(*tiny_spec(), images, seed=1), failed=len(failures))
            storage.create(partial_uri(job.work_uri, key), Partial(dna, (key,), failures).encode())
        return BUG

    engine = Scripted(fails)
    (found,) = ran(tmp_path, engine, "a")
    assert (len(found.errors) == MANY) == (found.untried == 0) == bool(images)


def test_what_failed_while_the_source_was_listed_is_not_tried_again(tmp_path: Path) -> None:
    engine = Scripted(lambda name, at, tries: BUG.format(at))
    ((job, plan),) = work_of(tmp_path, "a")
    with CountingAhead(engine, lambda event: None) as ahead:
        ahead.add("a", lambda manifest: job, plan)
        counted = ahead.finish()["a"]
    tried = engine.tries.copy()
    assert (len(tried), len(counted.failed)) == (FIRST_SHARDS, FIRST_SHARDS)
    whole = Manifest.joined([plan, work_of(tmp_path, "a", first=MANY)[0][1]])
    (found,) = run_missing([(job, whole)], engine, lambda event: None, failed=[counted.failed])
    assert engine.tries == tried
    assert (len(found.errors), found.untried) == (FIRST_SHARDS, 2 * MANY - FIRST_SHARDS)
    # The shards of another plan are tried.
    other_work = work_of(tmp_path, "a", first=MANY)
    (other,) = run_missing(other_work, engine, lambda event: None, failed=[counted.failed])
    assert engine.tries.total() == 2 * tried.total()
    assert (len(other.errors), other.untried) == (FIRST_SHARDS, MANY - FIRST_SHARDS)


def test_the_error_of_most_is_named_and_decides_whether_a_rerun_helps(tmp_path: Path) -> None:
    """One shard fails otherwise, and for good."""

    def fails(name: str, at: int, tries: int) -> str:
        odd[:] = odd or [at]
        return "CorruptFile: torn" if at == odd[0] else BUG.format(at)

    odd: list[int] = []
    (found,) = ran(tmp_path, Scripted(fails), "a")
    assert (len(found.errors), found.untried) == (FIRST_SHARDS + 1, MANY - FIRST_SHARDS - 1)
    errors = [replace(each, transient="torn" not in each.error) for each in found.errors]
    with pytest.raises(UnexpectedError, match=r"unexpected KeyError") as caught:
        require_counted("a", MANY, errors, found.untried)
    unsound = replace(errors[1], kind="ConservationError", error="ConservationError: 3 and 4")
    with pytest.raises(ConservationError, match="the other 51 were not tried; nothing was commi"):
        require_counted("a", MANY, [*errors, unsound], found.untried)
    outage = [replace(each, kind="TransientError", error="no answer") for each in errors] * 2
    with pytest.raises(UnexpectedError, match=r"unexpected KeyError"):
        require_counted("a", MANY, [*outage, *errors], found.untried)
    lasting = [replace(each, transient=False, error="StorageError: denied") for each in errors]
    with pytest.raises(VdnaError, match=r"9 failed with the same .* names\. The last error"):
        require_counted("a", MANY, lasting, found.untried)
    assert "9 of 60 shards could not be counted" in str(caught.value)
    assert "8 failed with the same error, so the other 51 were not tried" in str(caught.value)


def test_nothing_that_was_not_tried_is_taken_for_counted() -> None:
    with pytest.raises(ValueError, match="empty"):
        require_counted("a", MANY, (), 1)


def test_workers_of_nodes_that_came_meanwhile_get_some_of_the_shards_too(tmp_path: Path) -> None:
    """The first node is broken, and the others start later."""

    def fails(name: str, at: int, tries: int) -> str:
        engine.shard_workers = 10 if engine.passes > 1 else 1
        return BUG if len(engine.tries) <= FIRST_SHARDS else ""

    engine = Scripted(fails)
    (found,) = ran(tmp_path, engine, "a")
    assert (found.shards, len(found.errors), found.untried) == (MANY - 8, 8, 0)


def test_a_store_that_does_not_answer_for_a_while_ends_no_dataset_early(tmp_path: Path) -> None:
    engine = Scripted(lambda name, at, tries: "TransientError: no answer" if at % 2 else "")
    always = Scripted(lambda name, at, tries: "TransientError: no answer")
    assert [each.untried for each in ran(tmp_path / "1", engine, "a")] == [0]
    assert [each.untried for each in ran(tmp_path / "2", always, "a")] == [0]


def test_an_engine_that_forgets_a_shard_is_an_error(tmp_path: Path) -> None:
    engine = Scripted(lambda name, at, tries: "")
    real = engine.run_shards
    engine.run_shards = lambda work: real(work[1:])  # type: ignore[method-assign]  # the fault
    with pytest.raises(RuntimeError, match="no receipt for 1 shard"):
        ran(tmp_path, engine, "a")


def test_two_broken_datasets_end_and_a_sound_one_is_counted_once(tmp_path: Path) -> None:
    """Shards that were waiting when the run was cut come in another order, and none is lost."""
    engine = Scripted(lambda name, at, tries: "" if name == "good" else f"KeyError: {name}")
    bad, good, worse = ran(tmp_path, engine, "bad", "good", "worse")
    assert engine.tried("good") == dict.fromkeys(range(MANY), 1)
    assert (good.shards, good.errors, good.untried) == (MANY, (), 0)
    for found in (bad, worse):
        assert (found.shards, len(found.errors), found.untried) == (0, 8, MANY - 8)


def test_a_shard_that_a_worker_of_an_earlier_pool_stored_is_no_other_process_own(
    tmp_path: Path,
) -> None:
    """The engine itself has ended that pool, and its receipt was lost."""

    class Renewed(Scripted):
        def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
            for receipt in super().run_shards(work):
                yield replace(receipt, images=0, had_before=receipt.index % 2 == 0)

    events: list[Event] = []
    (found,) = ran(tmp_path, Renewed(lambda name, at, tries: ""), "a", told=events.append)
    assert (found.shards, found.read) == (0, MANY // 2)
    (said,) = [event.message for event in events if isinstance(event, Said)]
    assert "another process" in said
    assert f"{MANY // 2} shards" in said


def test_a_shard_that_a_worker_finished_after_the_cut_is_no_other_process_own(
    tmp_path: Path,
) -> None:
    """Its receipt was lost with the run. Its images were read by this job nevertheless."""

    class Finishing(Scripted):
        def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
            for receipt in super().run_shards(work):
                yield replace(receipt, images=0) if self.passes > 1 else receipt

    events: list[Event] = []
    engine = Finishing(lambda name, at, tries: BUG if name == "bad" else "")
    _, good = ran(tmp_path, engine, "bad", "good", told=events.append)
    assert (good.shards, good.read) == (0, MANY)
    assert not any("another" in event.message for event in events if isinstance(event, Said))


@pytest.mark.parametrize(
    ("one", "other", "are_alike"),
    [
        ("<Foo object at 0x7f3c2ab01d30>", "<Foo object at 0x7f00deadbe00>", True),
        ("id 6F1B2C3D4E5F6071", "id 0A1B2C3D4E5F6072", True),
        ("1b4e28ba-2fa1-11d2-883f-0016d3cca427", "6fa459ea-ee8a-3ca4-894e-db77e160355e", True),
        ("shard 3 of 60", "shard 14 of 60", True),
        ("no module fisheye", "no module bigeye", False),
    ],
)
def test_errors_that_differ_in_numbers_and_ids_are_alike(
    one: str, other: str, are_alike: bool
) -> None:
    receipts = [ShardReceipt("m", at, error=words) for at, words in enumerate((one, other))]
    assert (len(alike(receipts)) == 2) == are_alike


def test_a_dataset_that_had_ended_goes_on_once_another_job_stores_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other job had the shard all the time, and this one waits for it."""
    monkeypatch.setattr("pipeline.building.runner.sleep", lambda seconds: None)
    ((job, plan),) = work = work_of(tmp_path, "a")
    others = 0
    key = plan.heads[others].key("s", ())

    class Beside(Scripted):
        def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
            for receipt in super().run_shards(work):
                held = receipt.index == others
                yield ShardReceipt(job.manifest_uri, others, held_by="it") if held else receipt

    engine = Beside(lambda name, at, tries: BUG if not stored else "")
    stored: list[str] = []

    def waits(event: Event) -> None:
        if isinstance(event, Held) and event.steps and not stored:
            storage.create(partial_uri(job.work_uri, key), b"partial")
            stored.append(key)

    order = [others, *range(1, MANY)]
    monkeypatch.setattr("pipeline.building.runner.order_of_claims", lambda name, shards: order)
    (found,) = run_missing(work, engine, waits)
    assert stored
    assert (len(found.errors), found.untried) == (FIRST_SHARDS, 0)
    assert found.shards == MANY - 1 - FIRST_SHARDS


def test_nothing_is_said_of_reading_for_a_dataset_that_has_ended(tmp_path: Path) -> None:
    ((job, plan),) = work_of(tmp_path, "a")
    failed = {
        plan.heads[at].content: FailedShard(TRIES, ShardReceipt("m-a", at, error=BUG))
        for at in range(FIRST_SHARDS)
    }
    begun: list[int] = []
    engine = Scripted(lambda name, at, tries: "")
    (found,) = run_missing(
        [(job, plan)],
        engine,
        lambda event: None,
        begins=lambda at, missing: begun.append(at),
        failed=[failed],
    )
    assert (begun, engine.passes, found.untried) == ([], 0, MANY - FIRST_SHARDS)


def test_counts_that_never_add_up_end_a_dataset_at_their_first_try(tmp_path: Path) -> None:
    engine = Scripted(lambda name, at, tries: "ConservationError: 3 and 4")
    (found,) = ran(tmp_path, engine, "a")
    assert (engine.passes, len(found.errors), found.untried) == (1, 8, MANY - 8)


def test_a_shard_that_fails_otherwise_at_its_next_try_is_no_longer_alike() -> None:
    common = CommonError(has_landed=False, workers=lambda: 1)
    for at in range(FIRST_SHARDS):
        receipt = ShardReceipt("m", at, error="KeyError: 1")
        suspected = common.is_suspected_after(str(at), receipt, given_up=at > 0)
    assert (suspected, common.is_certain) == (True, False)
    common.is_suspected_after("0", ShardReceipt("m", 0, error="OSError: no"), given_up=True)
    assert not common.is_certain
    common.is_suspected_after("8", ShardReceipt("m", 8, error="KeyError: 8"), given_up=True)
    assert common.is_certain
    common.landed()
    assert not common.is_certain


def test_a_broken_dependency_ends_a_build_early_and_a_rerun_counts_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    options: dict[str, Any] = dict(tiny.install(tmp_path / "tiny").options)
    write_photos(tmp_path / "many", 40)
    write_photos(tmp_path / "few", 3)
    many = Request("many", str(tmp_path / "many"), shard_images=1, **options)
    few = Request("few", str(tmp_path / "few"), shard_images=1, **options)
    place, events = Catalogue(str(tmp_path / "c")), list[Event]()
    real = Counter.make

    def make(counter: Counter, shard: Shard, *given: Any, **how: Any) -> Any:
        if "/many/" in shard.members[0].uri:
            raise ModuleNotFoundError("No module named 'fisheye'")
        return real(counter, shard, *given, **how)

    with monkeypatch.context() as patch, InProcess() as engine:
        patch.setattr(Counter, "make", make)
        with pytest.raises(VdnaError, match="the other 32 were not tried") as caught:
            build_datasets(place, [many, few], engine, Resources(workers=0), events.append)
    assert "No module named 'fisheye'" in str(caught.value)
    assert place.load("few").images == 3
    with pytest.raises(NotFound):
        place.load("many")
    failed = [event for event in events if isinstance(event, StepFailed)]
    assert len(failed) == TRIES * FIRST_SHARDS
    assert {event.fault for event in failed} == {"setup"}
    alone = Catalogue(str(tmp_path / "alone"))
    with InProcess() as engine:
        build_datasets(place, [many, few], engine, Resources(workers=0))
        build_datasets(alone, [many], engine, Resources(workers=0))
    assert same_counts_and_failures(place.load("many"), alone.load("many"))


def test_a_shard_given_up_before_counts_among_those_that_failed(tmp_path: Path) -> None:
    """A run that ended early by an error leaves some; the next run needs only the others."""
    ((job, plan),) = work_of(tmp_path, "a")
    failed = {
        plan.heads[at].content: FailedShard(TRIES, ShardReceipt("m-a", at, error=BUG))
        for at in range(FIRST_SHARDS - 1)
    }
    engine = Scripted(lambda name, at, tries: BUG)
    (found,) = run_missing([(job, plan)], engine, lambda event: None, failed=[failed])
    assert len(engine.tries) == 1
    assert (len(found.errors), found.untried) == (FIRST_SHARDS, MANY - FIRST_SHARDS)


def test_a_store_that_does_not_tell_of_held_shards_fails_their_dataset_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job holds a shard of each dataset. That of `b` ends; of `a` nothing is known."""
    monkeypatch.setattr("pipeline.building.runner.sleep", lambda seconds: None)

    class Beside(Scripted):
        def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
            for receipt in super().run_shards(work):
                name = receipt.manifest_uri.removeprefix("m-")
                first = receipt.index == 7 and self.tries[name, 7] == 1
                yield (
                    ShardReceipt(receipt.manifest_uri, 7, held_by="another") if first else receipt
                )

    asked: Numbers[str] = Numbers()

    def leases(work_uri: str) -> dict[str, list[Any]]:
        name = work_uri[-1]
        asked[name] += 1
        if name == "a" or asked[name] < TRIES:
            raise TransientError(f"GET s3://b/_work/{name}: 503")
        return {}

    monkeypatch.setattr("pipeline.building.waiting.list_leases", leases)
    engine = Beside(lambda name, at, tries: "")
    events: list[Event] = []
    a, b = ran(tmp_path, engine, "a", "b", told=events.append)
    assert (b.shards, b.errors) == (MANY, ())
    assert (a.shards, [receipt.index for receipt in a.errors]) == (MANY - 1, [7])
    with pytest.raises(TransientError, match=r"1 of 60 shards could not be counted .*503"):
        require_counted("a", MANY, a.errors, a.untried)
    assert asked == {"a": TRIES, "b": TRIES}
    (failed,) = [event for event in events if isinstance(event, StepFailed)]
    assert (failed.dataset, failed.shard, failed.transient) == ("a", 7, True)


def test_shards_that_cannot_be_listed_are_not_said_to_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored(work_uri: str) -> set[str]:
        if work_uri.endswith("/a"):
            raise TransientError("LIST s3://b/_work/a: 503")
        return set()

    monkeypatch.setattr("pipeline.building.runner._stored_keys", stored)
    events: list[Event] = []
    run_missing(
        work_of(tmp_path, "a", "b"),
        Scripted(lambda name, at, tries: ""),  # type: ignore[arg-type]  # in its place
        events.append,
        unlisted=lambda at, error: None,
    )
    (started,) = [event for event in events if isinstance(event, Started)]
    assert (started.present, started.steps) == (0, MANY)
