"""Tests one shard: every candidate is counted by a rule or listed with its reason.

Counts are the same whatever the threads, batches, shards and order.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import images, storage
from pipeline.building import Request, make_dna, make_spec
from pipeline.counting import (
    Counter,
    DeviceRanges,
    Extractor,
    Recipe,
    ShardJob,
    Worker,
    partial_uri,
)
from pipeline.counting.deaths import ThisMachine
from pipeline.counting.leases import Holder
from pipeline.counting.processes import beginning_of
from pipeline.counting.stream import Made
from pipeline.counting.worker import MANIFESTS_KEPT
from pipeline.dna import Partial
from pipeline.engine import InProcess
from pipeline.errors import BadImage, SourceError, TransientError, UsageError
from pipeline.images.decoding import REASONS
from pipeline.networks import describe
from pipeline.networks.ranges_file import embedded_ranges
from pipeline.sources import Entries, Entry, Manifest, Shard, list_source, plan
from pipeline.spec import Resources, Spec
from tests.support import tiny_network as tiny
from tests.support.builders import photo, same_counts, write_photos
from tests.support.hostile_files import encoded

BINS = 100
NETWORK = describe("efficientnet_lite0")
RANGES, _ = embedded_ranges("efficientnet_lite0")
SPEC = make_spec(Request("x", "x", bins=BINS), NETWORK, RANGES.digest, "cpu")


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor(NETWORK)


@pytest.fixture(scope="module")
def counter(extractor: Extractor) -> Iterator[Counter]:
    counter = Counter(extractor, SPEC, RANGES, Resources(threads=2))
    yield counter
    counter.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 21)
    return folder


def one_shard(folder: Path) -> Shard:
    return Shard(0, 0, tuple(list_source(folder).entries))


@pytest.fixture(scope="module")
def truth(counter: Counter, folder: Path) -> Partial:
    return counter.count(one_shard(folder), "key")


# Invariance.


def test_counts_are_conserved_and_of_real_activations(truth: Partial) -> None:
    truth.dna.check()
    assert truth.dna.images == 21
    assert truth.shards == ("key",)
    assert (truth.dna.counts > 0).sum() > 20 * len(truth.dna.counts)
    assert truth.dna.nonfinite.sum() == 0


def test_repeated_counting_is_identical(counter: Counter, folder: Path, truth: Partial) -> None:
    assert counter.count(one_shard(folder), "key").identical(truth)


@pytest.mark.parametrize(("threads", "ahead"), [(1, 64), (3, 1)])
def test_threads_and_reading_ahead_change_nothing(
    extractor: Extractor, folder: Path, truth: Partial, threads: int, ahead: int
) -> None:
    other = Counter(extractor, SPEC, RANGES, Resources(threads=threads, fetch_ahead=ahead))
    assert other.count(one_shard(folder), "key").identical(truth)
    other.close()


def test_shard_size_changes_no_count(counter: Counter, folder: Path, truth: Partial) -> None:
    """Shards of one image, of less than a micro-batch, of just one, and of more than one."""
    members, ends = one_shard(folder).members, (0, 1, 4, 12, 21)
    shards = [Shard(at, 0, members[a:b]) for at, (a, b) in enumerate(pairwise(ends))]
    parts = [counter.count(shard, str(shard.index)) for shard in shards]
    total = reduce(Partial.__add__, parts)
    assert same_counts(total.dna, truth.dna)
    assert np.allclose(total.dna.mean, truth.dna.mean, rtol=1e-12, atol=1e-12)
    assert np.allclose(total.dna.m2, truth.dna.m2, rtol=1e-9, atol=1e-12)


def test_a_shard_that_is_counted_as_on_a_gpu_has_the_same_counts(
    extractor: Extractor, folder: Path, truth: Partial, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(extractor, SPEC, RANGES, Resources(threads=1))
    monkeypatch.setattr(extractor, "on_device", True)
    counter._on_gpu = DeviceRanges.on("cpu", RANGES.low, RANGES.high, BINS)
    found = counter.count(one_shard(folder), "key")
    counter.close()
    assert same_counts(found.dna, truth.dna)
    assert np.allclose(found.dna.mean, truth.dna.mean, rtol=1e-12, atol=1e-12)
    assert np.allclose(found.dna.m2, truth.dna.m2, rtol=1e-9, atol=1e-12)


def test_order_changes_no_count(counter: Counter, folder: Path, truth: Partial) -> None:
    shard = one_shard(folder)
    backwards = Shard(0, 0, tuple(reversed(shard.members)))
    assert same_counts(counter.count(backwards, "key").dna, truth.dna)


def test_the_moments_are_those_of_the_images(
    extractor: Extractor, folder: Path, truth: Partial
) -> None:
    entries = list_source(folder).entries
    pixels = [images.load(storage.read(entry.uri), SPEC.preprocess).values for entry in entries]
    rows = []
    for at in range(0, len(pixels), 7):
        taps: list[np.ndarray] = []
        extractor.observe(
            np.stack(pixels[at : at + 7]),
            lambda i, x, taps=taps: taps.append(x.double().numpy().mean(axis=1)),
        )
        rows += [*np.concatenate(taps, axis=1)]
    stacked = np.array(rows)
    assert np.allclose(truth.dna.mean, stacked.mean(axis=0), rtol=1e-9, atol=1e-9)
    assert np.allclose(truth.dna.m2, stacked.var(axis=0) * len(rows), rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small network, for what is about images and not about activations."""
    return tiny.install(tmp_path_factory.mktemp("tiny")).options


def test_images_in_memory_count_as_their_files(folder: Path, small: dict[str, Any]) -> None:
    paths = sorted(folder.iterdir())
    as_files = make_dna(folder, threads=2, **small)
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(image.convert("RGB")) for image in opened]
    assert same_counts(make_dna(opened, threads=2, **small), as_files)
    assert same_counts(make_dna(arrays, threads=1, **small), as_files)


# Every image counted by a rule, or listed.


def bomb(width: int, height: int) -> bytes:
    """Makes a PNG of a few bytes that states absurd dimensions."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


PHOTO = photo(5)
GREY = PHOTO.convert("L")
SIXTEEN = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
ALPHA = PHOTO.convert("RGBA")
ALPHA.putalpha(GREY)
PALETTE = PHOTO.quantize(64)

# Files, and the pictures that they must count as.
COUNTED: dict[str, tuple[bytes, Image.Image]] = {
    "cmyk.jpg": (
        encoded(PHOTO.convert("CMYK"), "JPEG", quality=95),
        Image.open(io.BytesIO(encoded(PHOTO.convert("CMYK"), "JPEG", quality=95))),
    ),
    "sixteen.png": (encoded(SIXTEEN, "PNG"), GREY),
    "palette-transparent.png": (encoded(PALETTE, "PNG", transparency=3), PALETTE),
    "grey.png": (encoded(GREY, "PNG"), GREY),
    "alpha.png": (encoded(ALPHA, "PNG"), PHOTO),
    "animated.gif": (
        encoded(PALETTE, "GIF", save_all=True, append_images=[photo(6).quantize(64)]),
        PALETTE,
    ),
    "gif-named.jpg": (encoded(PALETTE, "GIF"), PALETTE),
    "turned.png": (turned(PHOTO), PHOTO),
    "no-extension": (encoded(PHOTO, "BMP"), PHOTO),
    "UPPER.PNG": (encoded(PHOTO, "PNG"), PHOTO),
}
LISTED: dict[str, tuple[bytes, str]] = {
    "text.jpg": (b"this is no image at all, it only says so", "not_an_image"),
    "truncated.jpg": (encoded(PHOTO, "JPEG")[:-200], "truncated"),
    "zero.jpg": (b"", "empty"),
    "bomb.png": (bomb(50_000, 50_000), "too_many_pixels"),
    "zip.png": (b"PK\x03\x04" + b"\0" * 60, "not_an_image"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_file_an_opened_image_and_its_pixels_count_the_same(
    name: str, small: dict[str, Any], tmp_path: Path
) -> None:
    data, shown = COUNTED[name]
    (tmp_path / name).write_bytes(data)
    of_file = make_dna(tmp_path, threads=1, **small)
    for image in (shown, Image.open(io.BytesIO(data))):
        assert same_counts(of_file, make_dna([image], threads=1, **small))


def test_unsupported_images_in_memory_are_refused(small: dict[str, Any]) -> None:
    floats = Image.fromarray(np.zeros((8, 8), np.float32))
    with pytest.raises(UsageError, match="image 0 cannot be counted: unsupported"):
        make_dna([floats], **small)
    with pytest.raises(UsageError, match="image 1 has type Image, and others are paths"):
        make_dna(["a.jpg", floats], **small)
    with pytest.raises(UsageError, match="image 0 has type bytes; give arrays"):
        make_dna([b"a.jpg"], **small)


def test_a_process_with_load_truncated_images_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        make_dna(folder, bins=BINS, threads=1)


def test_bad_images_are_listed_each_with_its_reason(counter: Counter, tmp_path: Path) -> None:
    for name, (data, _) in (LISTED | COUNTED).items():
        (tmp_path / name).write_bytes(data)
    partial = counter.count(one_shard(tmp_path), "key")
    assert partial.dna.images == len(COUNTED)
    found = {Path(storage.local_path(f.uri)).name: f.reason for f in partial.failures}
    assert found == {name: reason for name, (_, reason) in LISTED.items()}
    assert all(f.detail and not f.nondeterministic for f in partial.failures)
    assert set(found.values()) <= set(REASONS)


def test_bad_images_do_not_change_the_counts_of_good_ones(
    counter: Counter, folder: Path, truth: Partial, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for i, (data, _) in enumerate(LISTED.values()):
        (tmp_path / f"photo-{i * 4:04d}-bad.jpg").write_bytes(data)
    partial = counter.count(one_shard(tmp_path), "key")
    assert same_counts(partial.dna, truth.dna)
    assert len(partial.failures) == len(LISTED)


def test_a_shard_of_bad_images_only_counts_none(counter: Counter, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    partial = counter.count(one_shard(tmp_path), "key")
    assert (partial.dna.images, len(partial.failures), partial.dna.counts.sum()) == (0, 1, 0)


def test_an_image_of_too_many_bytes_is_not_read(counter: Counter) -> None:
    huge = Entry("s3://nowhere/huge.jpg", "", SPEC.preprocess.max_bytes + 1, "etag")
    partial = counter.count(Shard(0, 0, (huge,)), "key")
    assert [f.reason for f in partial.failures] == ["too_many_bytes"]


def test_errors_that_are_not_the_image_s_fault_are_raised(counter: Counter, folder: Path) -> None:
    shard = one_shard(folder)
    for error in (TransientError("no answer"), SourceError("changed"), RuntimeError("ours")):

        def fetch(entry: Entry, error: BaseException = error) -> bytes:
            if entry == shard.members[13]:
                raise error
            return storage.read(entry.uri)

        with pytest.raises(type(error)):
            counter.count(shard, "key", fetch)


def test_a_slow_image_is_decoded_again_in_isolation_and_then_listed(
    extractor: Extractor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    load, release = images.load, threading.Event()

    def hang(data: bytes, *how: object) -> object:
        if data == slow:
            release.wait(20)
        return load(data, *how)

    apart: list[int] = []

    def isolated(data: bytes, rule: object, seconds: float, **how: bool) -> object:
        apart.append(len(data))
        raise BadImage("timeout", "three times")

    shard = Shard(0, 0, one_shard(folder).members[:8])
    slow = storage.read(shard.members[3].uri)
    monkeypatch.setattr(images, "load", hang)
    monkeypatch.setattr(images, "load_isolated", isolated)
    counter = Counter(extractor, SPEC, RANGES, Resources(threads=1, decode_seconds=2))
    partial = counter.count(shard, "key")
    release.set()
    counter.close()
    assert apart == [len(slow)]
    (failure,) = partial.failures
    assert (failure.uri, failure.reason, failure.nondeterministic) == (
        shard.members[3].uri,
        "timeout",
        True,
    )
    assert partial.dna.images == 7


def test_isolated_decoding_counts_the_same(counter: Counter, tmp_path: Path) -> None:
    write_photos(tmp_path, 3)
    shard = one_shard(tmp_path)
    isolated = counter.count(shard, "key", isolated=True)
    assert isolated.identical(counter.count(shard, "key"))


# The worker and its commit.


@pytest.fixture
def job(tmp_path: Path, folder: Path) -> Callable[[], tuple[ShardJob, Manifest]]:
    from pipeline.networks import encode_ranges

    entries = Entries((tmp_path / "entries").as_uri())
    manifest = plan(list_source(folder), shard_images=2, entries=entries)
    places = {name: (tmp_path / name).as_uri() for name in ("manifest", "ranges", "work")}
    storage.create(places["manifest"], manifest.data)
    storage.create(places["ranges"], encode_ranges(RANGES, NETWORK))
    recipe = Recipe(SPEC, NETWORK, places["ranges"], Resources(threads=1))
    job = ShardJob(recipe, places["manifest"], places["work"], entries.folder or "")
    return lambda: (job, manifest)


def test_a_worker_commits_once(job: Callable[[], tuple[ShardJob, Manifest]]) -> None:
    task, manifest = job()
    worker = Worker()
    first = worker.run(task, 0)
    assert (first.images, first.failures, first.error) == (len(manifest.shards[0].members), 0, "")
    uri = partial_uri(task.work_uri, manifest.shards[0].key(SPEC.digest))
    data = storage.read(uri)
    assert Partial.decode(data, uri).shards == (manifest.shards[0].key(SPEC.digest),)
    again = worker.run(task, 0)
    assert (again.images, again.error) == (0, "")
    assert storage.read(uri) == data
    assert list_names(task.work_uri) == ["partials"]
    worker.close()


def test_a_worker_keeps_the_manifests_of_its_latest_jobs_only(
    job: Callable[[], tuple[ShardJob, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may count hundreds of datasets, and be in memory all the time."""
    task, manifest = job()
    jobs = [dataclasses.replace(task, manifest_uri=f"{task.manifest_uri}-{at}") for at in range(20)]
    for each in jobs:
        storage.create(each.manifest_uri, manifest.data)
    asked: list[str] = []
    read = storage.read

    def noted(uri: str, *listed: Any) -> bytes:
        asked.append(uri)
        return read(uri, *listed)

    monkeypatch.setattr(storage, "read", noted)
    worker = Worker()
    for each in [*jobs, *jobs[-MANIFESTS_KEPT:], jobs[0]]:
        assert worker._shard(each, 0).key(SPEC.digest) == manifest.shards[0].key(SPEC.digest)
    assert [uri for uri in asked if "manifest" in uri] == [
        each.manifest_uri for each in [*jobs, jobs[0]]
    ]


def test_a_second_shard_begins_while_the_first_one_is_under_way(
    job: Callable[[], tuple[ShardJob, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the network has images while the first shard ends. Neither goes on without the other."""
    task, _ = job()
    both, make = threading.Barrier(2, timeout=30), Counter.make

    def together(self: Counter, shard: Shard, key: str, **rest: Any) -> Made:
        both.wait()
        return make(self, shard, key, **rest)

    monkeypatch.setattr(Counter, "make", together)
    with InProcess() as engine:
        receipts = list(engine.run_shards([(task, 0), (task, 1)]))
    assert [(receipt.error, receipt.images > 0) for receipt in receipts] == [("", True)] * 2


def list_names(uri: str) -> list[str]:
    root = Path(storage.local_path(uri))
    return sorted(p.name for p in root.iterdir() if any(p.iterdir()))


def test_a_worker_raises_read_errors_and_leaves_no_notes(
    job: Callable[[], tuple[ShardJob, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = job()

    def gone(uri: str, *listed: Any) -> bytes:
        if uri.endswith(".jpg"):
            raise TransientError(f"{uri}: no answer")
        return read(uri, *listed)

    read = storage.read
    monkeypatch.setattr(storage, "read", gone)
    worker = Worker()
    receipt = worker.run(task, 1)
    worker.close()
    assert "TransientError" in receipt.error
    assert ".jpg: no answer" in receipt.error
    assert list_names(task.work_uri) == []


def note_of_a_crash() -> bytes:
    """Returns the note of a process of this machine that is gone."""
    ended = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    here = Holder.here("another job")
    holder = dataclasses.replace(here, pid=ended.pid, began=beginning_of(ended.pid))
    ended.communicate()
    return json.dumps(ThisMachine().label | dataclasses.asdict(holder)).encode()


def test_a_shard_that_killed_two_workers_is_decoded_in_isolation(
    job: Callable[[], tuple[ShardJob, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, manifest = job()
    key = manifest.shards[0].key(SPEC.digest)
    for attempt in (1, 2):
        note = storage.join(task.work_uri, "attempts", f"{key}-{attempt}.json")
        storage.create(note, note_of_a_crash())
    seen: list[bool] = []
    make = Counter.make

    def spy(self: Counter, shard: Shard, key: str, *, isolated: bool, **rest: Any) -> Made:
        seen.append(isolated)
        return make(self, shard, key, isolated=False, **rest)

    monkeypatch.setattr(Counter, "make", spy)
    worker = Worker()
    worker.run(task, 0)
    worker.run(task, 1)
    worker.close()
    assert seen == [True, False]


def leave_crashes(task: ShardJob, key: str, count: int) -> None:
    """Leaves the notes of processes that took a shard and crashed."""
    for attempt in range(1, count + 1):
        note = storage.join(task.work_uri, "attempts", f"{key}-{attempt}.json")
        storage.create(note, note_of_a_crash())


def test_a_shard_that_ends_processes_is_given_up_and_tried_again_by_the_next_build(
    job: Callable[[], tuple[ShardJob, Manifest]],
) -> None:
    task, manifest = job()
    leave_crashes(task, manifest.shards[0].key(SPEC.digest), 5)
    worker = Worker()
    given_up = worker.run(task, 0)
    assert given_up.fault == "crash"
    assert given_up.error.startswith(
        "UnexpectedError: the shard ends the processes that take it: 5 took it and died, 5 of them "
    )
    assert given_up.error.count("process ") == 5
    assert given_up.transient
    assert list_names(task.work_uri) == []
    assert worker.run(task, 1).images > 0
    assert worker.run(task, 0).images > 0
    worker.close()


def test_a_shard_that_may_end_processes_runs_alone(
    job: Callable[[], tuple[ShardJob, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not claimed while it waits, or it would seem to crash with another one."""
    task, manifest = job()
    suspect = manifest.shards[0].key(SPEC.digest)
    leave_crashes(task, suspect, 2)
    begun, may_end = threading.Event(), threading.Event()
    make, order = Counter.make, []

    def slow(self: Counter, shard: Shard, key: str, **rest: Any) -> Made:
        order.append(shard.index)
        if shard.index == 1:
            begun.set()
            assert may_end.wait(30)
        return make(self, shard, key, **(rest | {"isolated": False}))

    monkeypatch.setattr(Counter, "make", slow)
    worker = Worker()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(worker.run, task, 1)
        assert begun.wait(30)
        second = pool.submit(worker.run, task, 0)
        while not worker._turns._want_alone:
            time.sleep(0.001)
        notes = Path(storage.local_path(task.work_uri), "attempts").iterdir()
        assert sorted(note.name for note in notes if suspect in note.name) == [
            f"{suspect}-1.json",
            f"{suspect}-2.json",
        ]
        assert order == [1]
        may_end.set()
        assert [each.result().error for each in (first, second)] == ["", ""]
    worker.close()
    assert order == [1, 0]
    assert list_names(task.work_uri) == ["partials"]


def test_notes_of_workers_that_died_earlier_do_not_change_counts(
    job: Callable[[], tuple[ShardJob, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who kills workers by hand leaves the same notes as a bad image.

    So each image is decoded in its own process, to the same bits, and the notes are removed once
    the shard is committed.
    """
    task, manifest = job()
    key = manifest.shards[0].key(SPEC.digest)
    uri = partial_uri(task.work_uri, key)
    worker = Worker()
    worker.run(task, 0)
    data = storage.read(uri)
    storage.delete(uri)
    for attempt in (1, 2):
        note = storage.join(task.work_uri, "attempts", f"{key}-{attempt}.json")
        storage.create(note, note_of_a_crash())
    apart: list[int] = []
    isolated = images.load_isolated

    def spy(*args: Any, **kwargs: Any) -> object:
        apart.append(1)
        return isolated(*args, **kwargs)

    monkeypatch.setattr(images, "load_isolated", spy)
    receipt = worker.run(task, 0)
    assert (receipt.error, len(apart)) == ("", len(manifest.shards[0].members))
    assert storage.read(uri) == data
    assert list_names(task.work_uri) == ["partials"]
    leave_crashes(task, key, 1)  # by a worker that had committed it
    assert not worker.run(task, 0).counted
    worker.close()
    assert list_names(task.work_uri) == ["partials"]


def test_counts_that_are_not_conserved_are_not_committed(
    job: Callable[[], tuple[ShardJob, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.counting import histogram

    task, _ = job()
    add = histogram.LayerCounts.add

    def lose_one(self: histogram.LayerCounts, x: np.ndarray) -> np.ndarray:
        means = add(self, x)
        self._recent[0, int(self._recent[0].argmax())] -= 1
        return means

    monkeypatch.setattr(histogram.LayerCounts, "add", lose_one)
    worker = Worker()
    receipt = worker.run(task, 0)
    worker.close()
    assert (receipt.kind, receipt.transient) == ("ConservationError", False)
    assert "bn1[0]" in receipt.error
    assert list_names(task.work_uri) == []


def test_a_spec_survives_json() -> None:
    assert isinstance(SPEC, Spec)
    assert SPEC.neurons == 3120
    assert Spec.from_json(SPEC.to_json()) == SPEC


def test_the_ground_of_transparent_images_is_part_of_the_spec() -> None:
    def spec(**options: Any) -> Spec:
        request = Request("x", "x", bins=BINS, **options)
        return make_spec(request, NETWORK, RANGES.digest, "cpu")

    assert spec(alpha="drop").digest == SPEC.digest
    assert "alpha" not in SPEC.to_json()["preprocess"]
    white = spec(alpha="white")
    assert white.digest not in (SPEC.digest, spec(alpha="black").digest)
    assert Spec.from_json(white.to_json()) == white
    assert white.differences(SPEC) == {"preprocess.alpha": ("white", "drop")}


def test_transparent_images_in_memory_count_as_their_files(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 4), np.uint8)
    opened = [Image.fromarray(image) for image in rgba]
    for at, image in enumerate(opened):
        image.save(tmp_path / f"{at}.png")
    by_ground = {}
    for alpha in ("drop", "white", "checker"):
        as_files = by_ground[alpha] = make_dna(tmp_path, alpha=alpha, **small)
        assert same_counts(make_dna(opened, alpha=alpha, **small), as_files)
    assert not np.array_equal(by_ground["drop"].counts, by_ground["white"].counts)
    assert not np.array_equal(by_ground["white"].counts, by_ground["checker"].counts)
