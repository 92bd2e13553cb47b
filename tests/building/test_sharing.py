"""Tests that jobs on one dataset share its shards, and that counts are exact whoever dies."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.building.waiting import LONGEST_PAUSE, MARGIN_SECONDS
from pipeline.catalogue import Catalogue, verify
from pipeline.counting import (
    EXPIRY_SECONDS,
    OVERLAP,
    Holder,
    ShardJob,
    order_of_claims,
    partial_uri,
)
from pipeline.counting.leases import RENEW_SECONDS, lease_uri
from pipeline.events import Held, ShardWork, Started, StepDone, TakenOver
from pipeline.reporting.progress import text_of
from pipeline.sources import Entries, Manifest, plan
from pipeline.spec import PRODUCTS, Resources
from tests.golden.handmade import entries
from tests.support import tiny_network as tiny
from tests.support.simulated_jobs import (
    WHILE_IT_COUNTS,
    Died,
    SimulatedWorker,
    World,
    content_of,
    require_all_stored,
    simulated,
)

LONGEST_SHARD = 13 * RENEW_SECONDS + 10
NEVER = float("inf")

Work = Sequence[tuple[ShardJob, Manifest]]


@cache
def planned(source: str, shards: int) -> Manifest:
    """Plans so many shards once; their entries are in this process."""
    return plan(entries(source, shards), shard_images=1)


def works(shards: Sequence[int]) -> Work:
    """Makes a job for each dataset of so many shards, and puts their manifests into the store."""
    spec, work = SimpleNamespace(digest="s"), []
    recipe: Any = SimpleNamespace(spec=spec, products=PRODUCTS, resources=Resources(), task=None)
    for at, number in enumerate(shards):
        uri, listed = f"sim://bucket/manifest-{at}", f"sim://bucket/entries-{at}"
        plain = planned(f"photos-{at}", number)
        manifest = replace(plain, entries=Entries(listed))
        for name, data in plain.entries._held.items():
            manifest.entries.store(name, bytes(data))
        storage.create(uri, manifest.data)
        work.append((ShardJob(recipe, uri, f"sim://bucket/_work/{at}", listed), manifest))
    return work


def number_of(work: Work) -> int:
    return sum(len(manifest.heads) for _, manifest in work)


def run_jobs(world: World, work: Work, starts: Sequence[float], deaths: Sequence[float]) -> None:
    for at, (start, dies_at) in enumerate(zip(starts, deaths, strict=True)):
        world.start(f"host-{at}", work, start, dies_at)
    total = number_of(work)
    world.run(longest=max(starts) + (LONGEST_SHARD + 2 * EXPIRY_SECONDS) * (total + len(starts)))
    for job in world.jobs:
        assert isinstance(job.error, Died | None), repr(job.error)
        assert [ran.errors for ran in job.ran or () if ran.errors] == []


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(random.Random(1))
    simulated(monkeypatch, made)
    return made


DEATHS = st.one_of(st.just(NEVER), st.just(WHILE_IT_COUNTS), st.integers(1, 150))
STARTS = st.one_of(st.just(0.0), st.floats(0, 600))


JOBS = dict(
    seed=st.integers(0, 2**32),
    shards=st.lists(st.integers(1, 8), min_size=1, max_size=2),
    jobs=st.lists(st.tuples(STARTS, DEATHS), min_size=1, max_size=4),
)


@settings(max_examples=8)
@given(**JOBS)
@example(0, [1], [(0.0, WHILE_IT_COUNTS), (0.0, WHILE_IT_COUNTS), (0.0, NEVER), (0.0, NEVER)])
def test_jobs_count_each_shard_once_whoever_dies_when(
    seed: int, shards: list[int], jobs: list[tuple[float, float]]
) -> None:
    count_together(seed, shards, jobs)


@pytest.mark.soak
@settings(max_examples=120)
@given(**JOBS)
def test_jobs_count_each_shard_once_in_many_runs(
    seed: int, shards: list[int], jobs: list[tuple[float, float]]
) -> None:
    count_together(seed, shards, jobs)


def count_together(seed: int, shards: list[int], jobs: list[tuple[float, float]]) -> None:
    """A last job, which lives, finds all done or does it. Only what died is counted again."""
    world = World(random.Random(seed))
    with pytest.MonkeyPatch.context() as patch:
        simulated(patch, world)
        work = works(shards)
        run_jobs(world, work, [*(s for s, _ in jobs), 300.0], [*(d for _, d in jobs), NEVER])
        require_all_stored(world, work)
    kept = {key: world.counted[key] - world.lost[key] for key in world.counted}
    assert set(kept.values()) == {1}
    assert len(kept) == number_of(work)
    by_the_living = sum(ran.shards for job in world.jobs for ran in job.ran or ())
    assert by_the_living <= number_of(work)
    if all(job.ran is not None for job in world.jobs):
        assert by_the_living == number_of(work)


@settings(max_examples=8)
@given(
    st.integers(0, 2**32),
    st.integers(1, 8),
    st.lists(st.tuples(STARTS, DEATHS), min_size=1, max_size=3),
    st.sampled_from([(0.0, False), (40.0, True), (86_400.0, True)]),
)
def test_counts_are_exact_and_jobs_end_whatever_the_store_says_of_times(
    seed: int, shards: int, jobs: list[tuple[float, float]], clock: tuple[float, bool]
) -> None:
    skew, tells_times = clock
    world = World(random.Random(seed), skew, tells_times=tells_times)
    with pytest.MonkeyPatch.context() as patch:
        simulated(patch, world)
        work = works([shards])
        run_jobs(world, work, [*(s for s, _ in jobs), 300.0], [*(d for _, d in jobs), NEVER])
        require_all_stored(world, work)


@pytest.mark.parametrize("seed", range(3))
def test_jobs_of_one_folder_get_their_own_shards_back(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """As an erasure has them. Two of these jobs have the same shards."""
    world = World(random.Random(seed))
    simulated(monkeypatch, world)
    (first, small), (second, large) = works([2, 6])
    twin = replace(first, manifest_uri="sim://bucket/manifest-twin")
    storage.create(twin.manifest_uri, small.data)
    work = [(first, small), (replace(second, work_uri=first.work_uri), large), (twin, small)]
    work = [(replace(job, dataset=str(at)), its) for at, (job, its) in enumerate(work)]
    run_jobs(world, work, [0, 0, 30], [WHILE_IT_COUNTS, NEVER, NEVER])
    require_all_stored(world, work)
    assert {world.counted[key] - world.lost[key] for key in world.counted} == {1}
    every = {(job.dataset, head.index) for job, its in work for head in its.heads}
    for job in world.jobs[1:]:
        (begun,) = (event for event in job.events if isinstance(event, Started))
        done = [(of.dataset, of.shard) for of in job.events if isinstance(of, StepDone)]
        assert len(done) == len(every & set(done)) == begun.steps


def test_a_store_without_times_has_shards_counted_once_as_long_as_nobody_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(random.Random(4), tells_times=False)
    simulated(monkeypatch, world)
    work = works([12])
    run_jobs(world, work, [0, 0, 30], [NEVER] * 3)
    assert set(world.counted.values()) == {1}


def test_a_job_takes_over_from_a_dead_one_as_soon_as_its_lease_is_over(world: World) -> None:
    work = works([1])
    world.start("dies", work, 0, dies_at=WHILE_IT_COUNTS)
    world.start("goes on", work, 1, dies_at=NEVER)
    world.run(longest=1000)
    dead, alive = world.jobs
    assert isinstance(dead.error, Died)
    assert alive.ran is not None
    assert alive.ran[0].shards == 1
    assert [event.steps for event in alive.events if isinstance(event, Held | TakenOver)] == [
        1,
        1,
        0,
    ]
    said = list(filter(None, map(text_of, alive.events)))
    assert said == [
        "waiting for 1 shard that another job counts",
        "taking over 1 shard of another job",
    ]
    assert world.now > EXPIRY_SECONDS
    longest = EXPIRY_SECONDS + MARGIN_SECONDS + LONGEST_PAUSE + LONGEST_SHARD
    assert world.now < RENEW_SECONDS + longest


def test_a_job_says_that_it_waits_when_it_begins_to_and_not_while_it_works(world: World) -> None:
    """Two jobs die one after the other, so that it takes over one shard and waits for the next."""
    work = works([2])
    world.start("dies", work, 0, dies_at=WHILE_IT_COUNTS)
    world.start("dies later", work, 40, dies_at=WHILE_IT_COUNTS)
    world.start("goes on", work, 41, dies_at=NEVER)
    world.chance.choice = lambda several: several[0]  # type: ignore[method-assign,assignment]  # a shard that takes seconds
    world.run(longest=1000)
    events = world.jobs[2].events
    told = [(type(event), event.steps) for event in events if isinstance(event, Held | TakenOver)]
    assert told == [
        *((Held, 2), (TakenOver, 1), (Held, 0)),
        *((Held, 1), (TakenOver, 1), (Held, 0)),
    ]
    assert list(filter(None, map(text_of, events))) == [
        "waiting for 2 shards that another job counts",
        "taking over 1 shard of another job",
        "waiting for 1 shard that another job counts",
        "taking over 1 shard of another job",
    ]


def test_a_lease_that_is_long_over_is_not_waited_for(world: World) -> None:
    work = works([1])
    world.start("dies", work, 0, dies_at=WHILE_IT_COUNTS)
    world.start("comes late", work, 3600, dies_at=NEVER)
    world.run(longest=7200)
    assert world.now < 3600 + LONGEST_SHARD
    assert list(filter(None, map(text_of, world.jobs[1].events))) == []


def test_while_it_waits_a_job_lists_and_asks_for_no_single_shard(world: World) -> None:
    """The other job holds the only shard for minutes. A look is one listing of the leases."""
    work = works([1])
    world.chance.choice = lambda several: several[-1]  # type: ignore[method-assign,assignment]  # the longest shard
    world.start("counts", work, 0, NEVER)
    world.start("waits", work, 5, NEVER)
    world.run(longest=1000)
    assert world.counted.total() == 1
    looks = world.requests["list attempts"]
    assert LONGEST_SHARD / LONGEST_PAUSE / 2 < looks < LONGEST_SHARD / LONGEST_PAUSE + 15
    assert world.requests["list partials"] == 3, "each job at first, and who waits at its end"
    others = sum(asked for name, asked in world.requests.items() if not name.startswith("list"))
    assert others < 45
    said = list(filter(None, map(text_of, world.jobs[1].events)))
    assert said == [
        "waiting for 1 shard that another job counts",
        "stored by another process meanwhile: 1 shard",
    ]
    counts, waits = (
        [event.work for event in job.events if isinstance(event, StepDone)] for job in world.jobs
    )
    assert counts == [ShardWork(images=1)]
    assert waits == [None], "it is no work of who waits"


def test_of_those_that_wait_for_a_dead_job_one_takes_its_shard(world: World) -> None:
    work = works([1])
    run_jobs(world, work, [0, *[1] * 12], [WHILE_IT_COUNTS, *[NEVER] * 12])
    assert world.counted.total() == 2
    assert world.lost.total() == 1


def test_the_time_that_a_lease_was_over_before_is_not_waited_for_again(world: World) -> None:
    work = works([1])
    world.start("dies", work, 0, dies_at=WHILE_IT_COUNTS)
    world.start("goes on", work, 50, dies_at=NEVER)
    world.chance.choice = lambda several: several[0]  # type: ignore[method-assign,assignment]  # a shard that takes seconds
    world.run(longest=1000)
    assert EXPIRY_SECONDS < world.now < EXPIRY_SECONDS + 35


@pytest.mark.parametrize("written", [-86_400, 86_400, None])
def test_a_dead_job_is_waited_for_no_longer_whatever_its_lease_says_of_the_time(
    monkeypatch: pytest.MonkeyPatch, written: float | None
) -> None:
    """The lease is of a server of the store whose clock is a day ahead, or behind, or absent."""
    world = World(random.Random(3), tells_times=written is not None)
    simulated(monkeypatch, world)
    modified = world.modified
    shift = timedelta(seconds=written or 0)

    def shifted() -> datetime | None:
        found, job = modified(), world.job
        return found + shift if found and job and job.name == "dies" else found

    monkeypatch.setattr(world, "modified", shifted)
    work = works([1])
    world.start("dies", work, 0, dies_at=WHILE_IT_COUNTS)
    world.start("goes on", work, 1, dies_at=NEVER)
    world.run(longest=15 + 2 * (EXPIRY_SECONDS + LONGEST_SHARD))
    require_all_stored(world, work)


def test_a_shard_that_is_stored_is_not_held_by_a_lease_that_was_left(world: World) -> None:
    """Its holder died between the commit and the removal of the lease."""
    work = works([2])
    ((job, manifest),) = work
    key = manifest.keys("s")[0]
    storage.create(
        lease_uri(job.work_uri, key, 1), json.dumps(asdict(Holder("other", "dead"))).encode()
    )
    storage.create(partial_uri(job.work_uri, key), content_of(key))
    receipt = SimulatedWorker(world).run(replace(job, claimant="mine"), 0)
    assert (receipt.held_by, receipt.error, receipt.counted) == ("", "", False)


def test_a_job_alone_asks_for_nothing_more_than_its_note(world: World) -> None:
    work = works([30])
    world.requests.clear()
    world.chance.choice = lambda several: several[0]  # type: ignore[method-assign,assignment]  # shards that take seconds
    run_jobs(world, work, [0], [NEVER])
    assert {name: asked for name, asked in world.requests.items() if asked >= 30} == {
        "get entries": 30 + 1,  # the footer of their file
        "put attempts": 30,
        "exists partials": 30,
        "put partials": 30,
        "delete attempts": 30,
    }
    assert world.requests.total() < 30 * 5 + 10


def test_the_order_of_claims_is_the_job_s_own(world: World) -> None:
    shards = list(range(100))
    first, second = order_of_claims("a", shards), order_of_claims("b", shards)
    assert first == order_of_claims("a", shards) != second
    assert sorted(first) == sorted(second) == shards
    close = sum(abs(first.index(at) - second.index(at)) < 5 for at in shards)
    assert close < 25


# Real processes.

Sources = Callable[[int], tuple[Path, Path, Path]]
"""For a number of datasets: where the network's files are, their images, and what one job built."""


SHARDS = 60


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Gives folders of pictures, which one job alone has built at most once each."""
    folder = tmp_path_factory.mktemp("sources")
    tiny.install(folder)

    @cache
    def with_sets(sets: int) -> tuple[Path, Path]:
        images, clean = folder / f"images-{sets}", folder / f"clean-{sets}"
        for name in range(sets):
            (images / f"set-{name}").mkdir(parents=True)
            for at in range(SHARDS // sets):
                kind = "empty" if at == 3 else "good"
                data = tiny.Picture(kind, 1000 * name + at).data
                (images / f"set-{name}" / f"{at:03d}.png").write_bytes(data)
        return images, clean

    return lambda sets: (folder, *with_sets(sets))


def at_once(sources: Sources, folder: Path, jobs: int, what: str, sets: int = 1) -> dict[str, Any]:
    """Runs jobs at once (see `shared_builds`), and checks that all is as one job has it."""
    installed, images, alone = sources(sets)
    command = [sys.executable, "-m", "tests.support.shared_builds", str(installed)]
    done = subprocess.run(
        [*command, str(images), str(alone), str(folder), str(jobs), what],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    clean, shared = Catalogue(str(alone)), Catalogue(str(folder / "shared"))
    assert sorted(clean.names()) == sorted(shared.names())
    for name in clean.names():
        one, other = clean.find(name), shared.find(name)
        assert (one.dna, one.sha256) == (other.dna, other.sha256)
    assert [finding for finding in verify(shared) if not finding.ok] == []
    # A job may be killed between storing a shard and giving back its lease, which nobody asks for.
    # Or while it writes the lease, of which a hidden file stays until `vdna gc`.
    notes = [*folder.glob("shared/_work/**/attempts/[!.]*")]
    left = [note.stem.rpartition("-")[0] for note in notes]
    assert len(left) <= (OVERLAP if what == "kill" else 0)
    assert all([*folder.glob(f"shared/_work/**/partials/{key}.parquet")] for key in left)
    told: dict[str, Any] = json.loads(done.stdout)
    counted = [set(keys) for keys in told["counted"]]
    assert len(set().union(*counted)) == SHARDS
    assert min(map(len, counted)) > 0, "each job has a share"
    told["twice"] = sum(map(len, told["counted"])) - SHARDS
    return told


@pytest.mark.soak  # each process builds for seconds
@pytest.mark.parametrize("jobs", [2, 4])
def test_jobs_at_once_count_at_most_5_percent_of_the_shards_twice(
    sources: Sources, tmp_path: Path, jobs: int
) -> None:
    told = at_once(sources, tmp_path, jobs, "build")
    assert told["codes"] == [0] * jobs
    assert told["twice"] <= 0.05 * SHARDS


@pytest.mark.soak  # each process builds for seconds
@pytest.mark.parametrize("jobs", [2, 4])
def test_if_a_job_is_killed_the_others_count_only_what_it_had_begun_again(
    sources: Sources, tmp_path: Path, jobs: int
) -> None:
    told = at_once(sources, tmp_path, jobs, "kill")
    assert told["codes"] == [-signal.SIGKILL] + [0] * (jobs - 1)
    assert told["twice"] <= OVERLAP


@pytest.mark.soak  # each process builds for seconds
def test_refreshes_at_once_share_their_shards(sources: Sources, tmp_path: Path) -> None:
    told = at_once(sources, tmp_path, 2, "refresh", 3)
    assert told["codes"] == [0, 0]
    assert told["twice"] <= 0.05 * SHARDS
