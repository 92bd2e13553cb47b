"""Tests builds through a failing network and store: exact counts, or a clean error.

A row is a fault and where it strikes. Either the build repairs it by itself, or the build ends
with an error that names the object and commits nothing. The same call without the fault then
commits exactly what a build without faults commits. What a build repairs strikes many places of
one build: each must be struck as often as its row says. Totals are printed at the end:
`pytest -m soak tests/building/test_faults.py`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import boto3
import fsspec
import numpy as np
import pytest

from pipeline import storage
from pipeline.building import Request, Result, build_datasets
from pipeline.catalogue import Catalogue, verify
from pipeline.comparing import (
    Effort,
    Matrix,
    all_pairs,
    compare,
    tile_files,
)
from pipeline.dna import DNA
from pipeline.engine import InProcess
from pipeline.errors import Conflict, SourceError, StorageError, TransientError, VdnaError
from pipeline.sources import plan
from pipeline.spec import Resources
from tests.golden.handmade import commit_dataset, entries, hand_made
from tests.support import tiny_network as tiny
from tests.support.builders import jpeg, same_counts_and_failures
from tests.support.chaos import (
    Action,
    Chaos,
    after,
    answer_lost,
    answers,
    black_hole,
    cut,
    late,
    reset,
    short,
    trickle,
)
from tests.support.s3 import fill

IMAGES = 4
RESOURCES = Resources(workers=0, threads=2)
SETTINGS = {
    "ATTEMPTS": 4,
    "WAIT_SECONDS": 0.01,
    "CONNECT_SECONDS": 0.5,
    "READ_SECONDS": 1,
    "BYTES_PER_SECOND": 100_000,
}
"""Three faults in a row are repaired, four are not."""

COUNTING: dict[str, Any] = {}
"""Fields of a request that say how images are counted here; the fixture `network` fills it."""

PATIENT = 30
"""Seconds without an answer that are allowed if the fault is another: a machine may be busy."""

trickles = trickle(20)
slow_down = answers(503, "SlowDown", "Please reduce your request rate.")
internal = answers(500, "InternalError")
too_many = answers(429, "TooManyRequests")
conflict = answers(409, "ConditionalRequestConflict")
denied = answers(403, "AccessDenied", "Access Denied")


@dataclass
class Totals:
    """Sums up what happened in all rows together."""

    clean: list[float] = field(default_factory=list)
    faulty: list[float] = field(default_factory=list)
    reruns: list[float] = field(default_factory=list)
    faults: int = 0
    images: int = 0
    wrong: int = 0
    failures: int = 0

    def __str__(self) -> str:
        builds = len(self.faulty) + len(self.reruns)
        return (
            f"{self.faults} faults in {len(self.faulty)} builds: {len(self.reruns)} ended with a "
            f"clean error and were run again, {builds} runs, {self.images} images counted, "
            f"{self.wrong} wrong counts, {self.failures} images listed as failures; "
            f"{median(self.clean):.2f} s without faults, median {median(self.faulty):.2f} s and at "
            f"most {max(self.faulty):.2f} s with them"
            + (f", at most {max(self.reruns):.2f} s to run again" if self.reruns else "")
        )


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory: pytest.TempPathFactory) -> None:
    COUNTING.update(tiny.install(tmp_path_factory.mktemp("tiny")).options)


@pytest.fixture(scope="module")
def totals(request: pytest.FixtureRequest) -> Iterator[Totals]:
    totals = Totals()
    yield totals
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter and totals.faulty:
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\nfaults: {totals}")


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[Chaos]:
    with Chaos(s3_server) as chaos:
        yield chaos


@pytest.fixture
def chaos(proxy: Chaos, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chaos]:
    """Returns the proxy, through which our own storage goes, and so does boto3's default client."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"VDNA_STORAGE_{name}", str(value))
    fsspec.filesystem("s3").clear_instance_cache()
    proxy.calm()
    yield proxy
    proxy.calm()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def images(bucket: str) -> str:
    return fill(f"{bucket}/{uuid.uuid4().hex}/images", IMAGES)


@pytest.fixture(scope="module")
def clean(bucket: str, images: str, network: None, totals: Totals) -> DNA:
    """Returns what a build without faults counts."""
    place = Catalogue(f"{bucket}/{uuid.uuid4().hex}/catalogue")
    timed(totals.clean, lambda: build(place, images))
    return place.load("photos")


@pytest.fixture
def place(root: str) -> Catalogue:
    return Catalogue(f"{root}/catalogue")


def build(place: Catalogue, source: str) -> Result:
    """Builds with a new worker, since one that has read the ranges does not read them again."""
    request = Request("photos", source, **COUNTING)
    with contextlib.closing(InProcess()) as engine:
        (result,) = build_datasets(place, [request], engine, RESOURCES)
    return result


def timed(seconds: list[float], function: Callable[[], Result]) -> Result:
    began = time.monotonic()
    try:
        return function()
    finally:
        seconds.append(time.monotonic() - began)


def check(place: Catalogue, result: Result, clean: DNA, totals: Totals) -> None:
    exact = same_counts_and_failures(place.load("photos"), clean)
    totals.images += result.version.images
    totals.failures += len(result.failures)
    totals.wrong += not exact
    assert exact
    assert result.failures == ()
    assert place.head().number == 1


@dataclass(frozen=True)
class Row:
    """A fault and the requests that it strikes.

    `ends` is the pattern of the error that the build ends with, or empty if the build repairs it.
    """

    fault: Action
    method: str
    path: str
    times: int | None = 1
    ends: str = ""


IMAGE = r"photo-\d+\.jpg"
PARTIAL = r"/partials/\w+\.parquet"
LISTING = r"list-type=2.*images"
COMMIT = r"/_log/0+1\.json"

QUICK_REPAIRED = {
    "broken": {
        "image-reset": Row(reset, "GET", r"photo-0000\.jpg", 3),
        "image-cut": Row(cut(500), "GET", r"photo-0001\.jpg", 3),
        "image-ends-early": Row(short(100), "GET", r"photo-0002\.jpg", 3),
        "image-slow-down": Row(slow_down, "GET", r"photo-0003\.jpg", 3),
        "listing-fails": Row(internal, "GET", LISTING, 3),
        "partial-answer-lost": Row(answer_lost, "PUT", PARTIAL, 2),
        "commit-conflict": Row(conflict, "PUT", COMMIT, 3),
    },
    "never-ends": {
        "image-trickles": Row(trickles, "GET", r"photo-0000\.jpg"),
        "image-black-hole": Row(black_hole, "GET", r"photo-0001\.jpg"),
        "commit-answer-lost": Row(answer_lost, "PUT", COMMIT),
    },
}
QUICK_LASTING = {
    "image-denied": Row(denied, "GET", r"photo-0002\.jpg", None, r"photo-0002\.jpg: access denied"),
    "image-never-comes": Row(
        *(reset, "GET", r"photo-0001\.jpg", None, r"photo-0001\.jpg: no answer after 4 tries")
    ),
}

PLACES = {
    "image": ("GET", IMAGE),
    "listing": ("GET", LISTING),
    "partials-listing": ("GET", r"list-type=2.*/partials/"),
    "manifest-read": ("GET", r"/manifests/"),
    "ranges-read": ("GET", r"/ranges/\w+\.parquet"),
    "partial-read": ("GET", PARTIAL),
    "head-of-log": ("GET", r"/_log/0"),
    "head-of-partial": ("HEAD", PARTIAL),
    "manifest-write": ("PUT", r"/manifests/"),
    "plan-write": ("PUT", r"/_plan"),
    "attempt-write": ("PUT", r"/attempts/"),
    "attempt-delete": ("DELETE", r"/attempts/"),
    "probe": ("PUT|DELETE", r"/probe-"),
    "partial-write": ("PUT", PARTIAL),
    "dna-write": ("PUT", r"/catalogue/dna/"),
    "folds-write": ("PUT", r"/catalogue/folds/"),
    "commit-write": ("PUT", COMMIT),
    "hint-write": ("PUT", r"/_log/_latest"),
}
ANYWHERE = {"reset": (reset, 3), "slow-down": (slow_down, 3)}
READS = {"cut": (cut(40), 3), "ends-early": (short(10), 3), "trickles": (trickles, 1)}
WRITES = {"answer-lost": (answer_lost, 3), "conflict": (conflict, 3)}
MORE = {
    "internal": (internal, 2),
    "too-many": (too_many, 2),
    "black-hole": (black_hole, 1),
    "late": (late(0.3), 1),
}
WITH_MORE = {"image", "listing", "partial-write", "commit-write"}
READ_IN_PART = {"image", "listing", "manifest-read", "partial-read"}
WRITTEN_ONCE = {"manifest-write", "partial-write", "dna-write", "commit-write"}


def rows() -> Iterator[tuple[str, str, Row]]:
    """Yields each fault, the place that it strikes, and its row."""
    for where, (method, path) in PLACES.items():
        faults = ANYWHERE | (MORE if where in WITH_MORE else {})
        faults |= READS if where in READ_IN_PART else {}
        faults |= WRITES if where in WRITTEN_ONCE else {}
        for fault, (action, times) in faults.items():
            yield fault, where, Row(action, method, path, times)
        # What is left of an attempt does not matter once the shard is counted.
        ends = "" if where == "attempt-delete" else "no answer after 4 tries"
        yield "gone", where, Row(reset, method, path, None, ends)
        if where in WITH_MORE:
            yield "denied", where, Row(denied, method, path, None, "access denied")


REPAIRED = {
    fault: {where: row for of, where, row in rows() if of == fault}
    for fault in ANYWHERE | READS | WRITES | MORE
}
"""The places that each fault strikes which a build repairs."""

LASTING = {f"{where}-{fault}": row for fault, where, row in rows() if row.times is None}


def run(
    all_rows: Mapping[str, Row],
    chaos: Chaos,
    place: Catalogue,
    images: str,
    clean: DNA,
    totals: Totals,
) -> None:
    """Builds under faults that are all repaired, or under one that is not."""
    if not {row.fault for row in all_rows.values()} & {black_hole, trickles}:
        os.environ["VDNA_STORAGE_READ_SECONDS"] = str(PATIENT)  # until the end of this test
    rules = {
        name: chaos.on(row.fault, row.method, row.path, times=row.times)
        for name, row in all_rows.items()
    }
    (ends,) = {row.ends for row in all_rows.values()}
    if ends:
        with pytest.raises(VdnaError, match=ends) as caught:
            timed(totals.faulty, lambda: build(place, images))
        assert "s3://" in str(caught.value)
        assert isinstance(caught.value, StorageError) or "StorageError" in str(caught.value)
        result = None
    else:
        result = timed(totals.faulty, lambda: build(place, images))
    struck = {name: rule.struck for name, rule in rules.items()}
    assert struck == {name: row.times or struck[name] for name, row in all_rows.items()}
    assert 0 not in struck.values()
    totals.faults += sum(struck.values())
    chaos.calm()
    result = result or timed(totals.reruns, lambda: build(place, images))
    check(place, result, clean, totals)


@pytest.mark.parametrize("kind", QUICK_REPAIRED)
def test_faults_that_pass_leave_the_counts_exact(
    kind: str, chaos: Chaos, place: Catalogue, images: str, clean: DNA, totals: Totals
) -> None:
    run(QUICK_REPAIRED[kind], chaos, place, images, clean, totals)


@pytest.mark.parametrize("name", QUICK_LASTING)
def test_a_fault_that_stays_ends_the_build_with_a_clean_error(
    name: str, chaos: Chaos, place: Catalogue, images: str, clean: DNA, totals: Totals
) -> None:
    run({name: QUICK_LASTING[name]}, chaos, place, images, clean, totals)


@pytest.mark.parametrize("fault", [reset, slow_down, internal, cut(10)])
def test_only_one_layer_of_the_code_retries(fault: Action, chaos: Chaos, images: str) -> None:
    """Retries of the layers below would multiply: 24 connections with their defaults."""
    chaos.on(fault, "GET", IMAGE, times=None)
    with pytest.raises(TransientError, match="no answer after 4 tries"):
        storage.read(f"{images}/photo-0001.jpg")
    # aiohttp asks once more, on another connection, where one that was kept turns out to be closed.
    assert SETTINGS["ATTEMPTS"] <= chaos.injected <= 2 * SETTINGS["ATTEMPTS"]


@pytest.mark.soak
@pytest.mark.parametrize("fault", [black_hole, trickles])
def test_an_answer_that_never_ends_is_given_up_in_time(
    fault: Action, chaos: Chaos, images: str
) -> None:
    chaos.on(fault, "GET", IMAGE, times=None)
    began = time.monotonic()
    with pytest.raises(TransientError, match="no answer after 4 tries"):
        storage.read(f"{images}/photo-0001.jpg")
    assert 4 <= time.monotonic() - began < 60


@pytest.mark.soak
@pytest.mark.parametrize("fault", REPAIRED)
def test_a_fault_that_passes_leaves_the_counts_exact_at_all_places_at_once(
    fault: str, chaos: Chaos, place: Catalogue, images: str, clean: DNA, totals: Totals
) -> None:
    run(REPAIRED[fault], chaos, place, images, clean, totals)


@pytest.mark.soak
@pytest.mark.parametrize("name", LASTING)
def test_a_fault_that_stays_ends_the_build_with_a_clean_error_at_every_place(
    name: str, chaos: Chaos, place: Catalogue, images: str, clean: DNA, totals: Totals
) -> None:
    run({name: LASTING[name]}, chaos, place, images, clean, totals)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_a_build_succeeds_though_a_quarter_of_all_requests_fail(
    seed: int, chaos: Chaos, place: Catalogue, images: str, clean: DNA, totals: Totals
) -> None:
    """Requests fail at random, in several ways, for as many runs as the build needs."""
    chaos.calm(seed)
    for action in (reset, slow_down, internal, cut(20), answer_lost):
        chaos.on(action, ".*", "", times=None, share=0.06)
    for _ in range(20):
        with contextlib.suppress(TransientError):
            result = timed(totals.faulty, lambda: build(place, images))
            break
    assert chaos.injected > 10
    totals.faults += chaos.injected
    chaos.calm()
    check(place, result, clean, totals)
    assert [finding for finding in verify(place) if not finding.ok] == []


@pytest.mark.soak
@pytest.mark.parametrize("change", ["overwritten", "deleted"])
def test_an_object_that_changes_after_the_listing_is_not_counted(
    change: str, chaos: Chaos, place: Catalogue, root: str, s3_server: str, totals: Totals
) -> None:
    """The object changes just before it is read. Neither the old nor the new bytes are counted."""
    source = fill(f"{root}/images", IMAGES)
    bucket, _, key = f"{source}/photo-0001.jpg".removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=s3_server)

    def event() -> None:
        if change == "overwritten":
            client.put_object(Bucket=bucket, Key=key, Body=jpeg(99))
        else:
            client.delete_object(Bucket=bucket, Key=key)

    chaos.on(after(event), "GET", r"photo-0001\.jpg")
    with pytest.raises(TransientError, match=r"1 of 4 shards .*photo-0001\.jpg"):
        timed(totals.faulty, lambda: build(place, source))
    totals.faults += chaos.injected
    assert place.head().number == 0
    result = timed(totals.reruns, lambda: build(place, source))
    other = Catalogue(f"{root}/other")
    build(other, source)
    check(place, result, other.load("photos"), totals)
    assert result.version.images == (IMAGES if change == "overwritten" else IMAGES - 1)


@pytest.mark.soak
@pytest.mark.parametrize("faults", [False, True], ids=["slow", "slow-and-failing"])
def test_two_jobs_at_once_on_one_dataset_both_end_cleanly(
    faults: bool,
    chaos: Chaos,
    place: Catalogue,
    images: str,
    clean: DNA,
    totals: Totals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both end well, or one of them reports the other in its error."""
    monkeypatch.setenv("VDNA_STORAGE_READ_SECONDS", str(PATIENT))
    if faults:
        chaos.on(answer_lost, "PUT", "", times=None, share=0.2)
        chaos.on(reset, ".*", "", times=None, share=0.1)
    chaos.on(late(0.05), ".*", "", times=None)
    barrier = threading.Barrier(2)

    def job(_: int) -> Result | VdnaError:
        barrier.wait()
        try:
            return build(place, images)
        except (Conflict, TransientError) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(job, range(2)))
    totals.faults += chaos.injected
    chaos.calm()
    assert faults or not [end for end in ends if isinstance(end, TransientError)]
    check(place, timed(totals.reruns, lambda: build(place, images)), clean, totals)
    assert [finding for finding in verify(place) if not finding.ok] == []


# All pairs.


@pytest.fixture(scope="module")
def compared(bucket: str) -> str:
    """Makes a catalogue of four datasets, each with shards of two images and several folds."""
    root = f"{bucket}/{uuid.uuid4().hex}/compared"
    for n in range(4):
        manifest = plan(entries(f"set/{n}", 20 + n), shard_images=2)
        partials = [hand_made(shard) for shard in manifest.shards]
        commit_dataset(Catalogue(root), f"set/{n}", manifest, partials)
    return root


@pytest.fixture(scope="module")
def distances(compared: str) -> Matrix:
    found = compare(Catalogue(compared))
    storage.delete_tree(storage.join(compared, "matrix"))
    return found


TILE, MATRIX = r"/_tiles/\w+\.parquet", r"/matrix/.*\.parquet"
POINTS = r"/_fold_points/.*\.parquet"
COMPARING = {
    "dna-read": ("GET", r"/compared/dna/"),
    "folds-read": ("GET", r"/compared/folds/"),
    "points-write": ("PUT", POINTS),
    "points-read": ("GET", POINTS),
    "tiles-listing": ("GET", r"list-type=2.*_tiles"),
    "tile-write": ("PUT", TILE),
    "tile-read": ("GET", TILE),
    "tile-delete": ("DELETE", TILE),
    "matrix-write": ("PUT", MATRIX),
}


REPAIRED_COMPARISONS = {
    "reset": (reset, COMPARING),
    "slow-down": (slow_down, COMPARING),
    "cut": (cut(40), ("dna-read", "folds-read", "points-read", "tile-read")),
    "ends-early": (short(10), ("dna-read", "folds-read", "points-read", "tile-read")),
    "answer-lost": (answer_lost, ("points-write", "tile-write", "matrix-write")),
    "conflict": (conflict, ("points-write", "tile-write", "matrix-write")),
}
COMPARISONS = {
    "mixed": {
        "dna-read": Row(cut(40), *COMPARING["dna-read"], 3),
        "folds-read": Row(reset, *COMPARING["folds-read"], 3),
        "tile-write": Row(answer_lost, *COMPARING["tile-write"], 3),
    },
    **{
        fault: {where: Row(action, *COMPARING[where], 3) for where in places}
        for fault, (action, places) in REPAIRED_COMPARISONS.items()
    },
    **{
        f"{where}-gone": {where: Row(reset, *struck, None, "no answer after 4 tries")}
        for where, struck in COMPARING.items()
    },
}
QUICKEST = {"matrix-write-gone"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICKEST else pytest.mark.soak) for n in COMPARISONS],
)
def test_a_comparison_is_exact_or_its_error_is_clean(
    name: str,
    chaos: Chaos,
    compared: str,
    distances: Matrix,
    totals: Totals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tiles that were committed before an error are not computed again."""
    monkeypatch.setenv("VDNA_STORAGE_READ_SECONDS", str(PATIENT))
    monkeypatch.setattr(all_pairs, "TILE_WORK", -1)
    rows, place = COMPARISONS[name], Catalogue(compared)
    for left in ("matrix", "_work/_tiles", "_work/_fold_points"):
        storage.delete_tree(storage.join(compared, left))
    rules = {
        where: chaos.on(row.fault, row.method, row.path, times=row.times)
        for where, row in rows.items()
    }
    (ends,) = {row.ends for row in rows.values()}

    def compare_all() -> Matrix:
        return compare(place, effort=Effort(memory=1))

    if ends:
        with pytest.raises(TransientError, match=ends) as caught:
            compare_all()
        assert "s3://" in str(caught.value)
    else:
        found = compare_all()
    struck = {where: rule.struck for where, rule in rules.items()}
    assert struck == {where: row.times or struck[where] for where, row in rows.items()}
    assert 0 not in struck.values()
    totals.faults += sum(struck.values())
    chaos.calm()
    if ends:
        with contextlib.suppress(SourceError):
            for item in storage.walk(storage.join(compared, "matrix")):
                Matrix.decode(storage.read(item.uri), item.uri)
        found = compare_all()
    for column in ("emd", "nfd", *found.estimates):
        assert np.array_equal(found.stacked(column), distances.stacked(column), equal_nan=True)
    # Garbage collection removes what could not be removed here.
    assert tile_files.present(compared) == set() or name == "tile-delete-gone"
