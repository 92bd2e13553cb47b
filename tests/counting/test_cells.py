"""Tests that a shard's cells are kept, and that a changed shard counts only those that changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import reduce
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.building import Request, make_spec
from pipeline.counting import (
    Counter,
    DeviceRanges,
    Extractor,
    Recipe,
    ShardJob,
    Worker,
    cells_uri,
    expected_bytes,
    partial_uri,
)
from pipeline.counting.activation_counts import CpuCounts
from pipeline.counting.cells import BYTES_A_BIN, cell_key, decode_cells, encode_cells
from pipeline.counting.shard import encoding_threads
from pipeline.counting.stream import Stream
from pipeline.dna import ExemplarSettings, Failure, Partial
from pipeline.errors import ConservationError, CorruptFile, OverlapError
from pipeline.networks import find_ranges
from pipeline.sources import Entries, Entry, Manifest, Shard, ShardHead, list_source, plan
from pipeline.spec import IMAGE_HASHES, LAYER_GAUSSIAN, PRODUCTS, Resources
from tests.support import tiny_network as tiny
from tests.support.builders import same_counts

PRODUCTS_OF_TESTS = (*PRODUCTS, LAYER_GAUSSIAN, ExemplarSettings(3).product, IMAGE_HASHES)
SIZES = (5, 8, 1, 6)
"""The cells of a shard of 20 images: smaller than a micro-batch of 8, as large, and of one."""


BAD = {2: "empty", 13: "not_an_image", 19: "truncated"}
"""Those of the 20 pictures that cannot be read."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def new_counter(place: tiny.Place) -> Iterator[Callable[[], Counter]]:
    made: list[Counter] = []

    def new(threads: int = 2) -> Counter:
        recipe = recipe_of(place)
        extractor, resources = Extractor(place.network), Resources(threads=threads)
        ranges, _ = find_ranges(place.network, place.ranges, {})
        made.append(Counter(extractor, recipe.spec, ranges, resources, recipe.products))
        return made[-1]

    yield new
    for counter in made:
        counter.close()


def recipe_of(place: tiny.Place) -> Recipe:
    ranges, _ = find_ranges(place.network, place.ranges, {})
    request = Request("x", "x", **place.options)  # type: ignore[arg-type]  # fields by name
    spec = make_spec(request, place.network, ranges.digest, "cpu")
    uri = Path(place.ranges).as_uri()
    return Recipe(spec, place.network, uri, Resources(threads=2), PRODUCTS_OF_TESTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures, of which three cannot be read: one is a cell of its own."""
    (tmp_path / "images").mkdir()
    for at in range(20):
        write(tmp_path / "images", at, tiny.Picture(BAD.get(at, "good"), at))
    return tmp_path / "images"


def write(folder: Path, at: int, picture: tiny.Picture) -> None:
    (folder / f"{at:02d}.png").write_bytes(picture.data)


def shard_of(folder: Path, cells: Sequence[int] = SIZES) -> Shard:
    return Shard(0, 0, tuple(list_source(folder).entries), tuple(cells))


def test_the_sum_of_cells_is_that_of_the_shard(
    new_counter: Callable[..., Counter], folder: Path, place: tiny.Place
) -> None:
    """Counts are equal to the last bit; each cell is what its members alone would be."""
    counter = new_counter()
    whole = counter.count(shard_of(folder, ()), "key")
    shard = shard_of(folder)
    made = counter.make(shard, "key", isolated=False)
    total = Partial.decode(made.data, "partial")
    assert (made.images, made.failures, made.reused) == (17, 3, 0)
    assert same_counts(total.dna, whole.dna)
    for kept in ("failures", "exemplars", "image_hashes"):
        assert getattr(total, kept) == getattr(whole, kept)
    assert total.image_hashes is not None
    for name in ("mean", "m2", "scatter"):
        one, other = getattr(total.dna, name), getattr(whole.dna, name)
        assert np.allclose(one, other, rtol=1e-9, atol=1e-12)
    cells = decode_cells(made.cells, "cells")
    spec = recipe_of(place).spec.digest
    runs = list(shard.cell_runs())
    keys = [cell_key(spec, PRODUCTS_OF_TESTS, run) for run in runs]
    assert list(cells) == keys
    parts = [Partial.decode(cells[key], key) for key in keys]
    for run, key, part in zip(runs, keys, parts, strict=True):
        assert part.identical(counter.count(run, key))
    assert reduce(Partial.__add__, parts).as_shard("key").identical(total)
    assert total.identical(counter.count(shard, "key"))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    bad=st.sets(st.integers(0, 99), max_size=8),
    data=st.data(),
)
def test_shards_that_are_counted_together_are_those_that_are_counted_alone(
    sizes: list[int], bad: set[int], data: st.DataObject, new_counter: Callable[..., Counter]
) -> None:
    """To the last bit, though a micro-batch goes on from one cell or shard into the next."""
    counter, taken = new_counter(), []
    observe = counter._extractor.observe

    def spy(pixels: Any, visit: Any) -> None:
        taken.append(len(pixels))
        observe(pixels, visit)

    def fetch(entry: Entry) -> bytes:
        at = int(Path(entry.uri).stem)
        return tiny.Picture("empty" if at in bad else "good", at).data

    ends = list(accumulate(sizes, initial=0))
    entries = [Entry(f"memory://many/{at:02d}.png", "", 1, "") for at in range(ends[-1])]
    shards = []
    for at, (start, stop) in enumerate(pairwise(ends)):
        cut = data.draw(st.integers(0, stop - start - 1))
        cells = (cut, stop - start - cut) if cut else ()
        shards.append((Shard(at, at, tuple(entries[start:stop]), cells), f"key-{at}"))
    alone = [counter.count(shard, key, fetch) for shard, key in shards]
    counter._extractor.observe = spy  # type: ignore[method-assign]  # a spy
    together = list(counter.count_each(shards, fetch))
    assert [a.identical(b) for a, b in zip(alone, together, strict=True)] == [True] * len(sizes)
    read = ends[-1] - len([at for at in bad if at < ends[-1]])
    assert sum(taken) == read
    cells = [size for shard, _ in shards for size in shard.cells or (len(shard.members),)]
    if min(cells) >= 8 and not bad:  # no batch is of more than two cells
        assert len(taken) == -(-read // 8)
        assert sorted(taken)[1:] == [8] * (len(taken) - 1)


def test_a_micro_batch_is_of_two_cells_at_most(
    new_counter: Callable[..., Counter], folder: Path
) -> None:
    """Each cell has its tables."""
    stream = new_counter()._stream
    shard = shard_of(folder, (1, 1, 2, 6, 8, 1, 1))
    with closing(stream.observed(shard, lambda places, _: places)) as observed:
        taken = [at for at, found in observed if not isinstance(found, Failure)]
    assert sorted(taken) == [[0, 1], [3, 4, 5, 6, 7, 8, 9], [10, 11, 12, 14, 15, 16, 17, 18]]


@pytest.mark.parametrize("failures_first", [False, True])
def test_it_does_not_matter_when_a_failure_is_told(
    new_counter: Callable[..., Counter],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    failures_first: bool,
) -> None:
    counter, observed = new_counter(), Stream.observed
    clean = counter.count(shard_of(folder), "key")

    def reordered(self: Stream, *rest: Any, **options: Any) -> Iterator[Any]:
        told = list(observed(self, *rest, **options))
        yield from sorted(told, key=lambda of: isinstance(of[1], Failure) != failures_first)

    monkeypatch.setattr(Stream, "observed", reordered)
    assert counter.count(shard_of(folder), "key").identical(clean)


def test_cells_have_the_same_bits_on_any_number_of_threads(
    new_counter: Callable[..., Counter], folder: Path
) -> None:
    shard = shard_of(folder)
    one, four = (new_counter(n).make(shard, "key", isolated=False) for n in (1, 4))
    assert (one.data, one.cells) == (four.data, four.cells)


def test_cells_that_are_counted_as_on_a_gpu_have_the_same_counts(
    new_counter: Callable[..., Counter], folder: Path
) -> None:
    """Each cell has tables of its own on the device."""
    shard = shard_of(folder)
    whole = new_counter().count(shard, "key")
    for threads in (1, 4):
        counter = new_counter(threads)
        counter._stream._networks = ThreadPoolExecutor(1)  # a GPU takes its work in one queue
        ranges = counter._ranges
        counter._extractor.on_device = True
        counter._on_gpu = DeviceRanges.on("cpu", ranges.low, ranges.high, tiny.BINS)
        assert same_counts(counter.count(shard, "key").dna, whole.dna)


def seen_by(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """Returns the members that are read from now on."""
    seen: list[Entry] = []
    observed = Stream.observed

    def spy(self: Stream, shard: Shard, *rest: Any, **options: Any) -> Iterator[Any]:
        seen.extend(shard.members)
        return observed(self, shard, *rest, **options)

    monkeypatch.setattr(Stream, "observed", spy)
    return seen


@pytest.mark.parametrize("changed", [(), (0,), (6, 7), (13,), (19, 0, 5, 13)], ids=str)
def test_only_cells_that_changed_are_read_again(
    new_counter: Callable[..., Counter],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: Sequence[int],
) -> None:
    counter = new_counter()
    before = shard_of(folder)
    kept = decode_cells(counter.make(before, "before", isolated=False).cells, "cells")
    for at in changed:
        write(folder, at, tiny.Picture("good", 100 + at))
    after = replace(shard_of(folder), origins=("before",))
    runs = zip(before.cell_runs(), after.cell_runs(), strict=True)
    expected = [e for was, run in runs if was != run for e in run.members]
    seen = seen_by(monkeypatch)
    made = counter.make(after, "after", isolated=False, kept=kept)
    assert seen == expected
    assert made.images + made.failures == len(expected)
    assert made.reused == 20 - len(expected)
    assert made.read_bytes == sum(entry.size for entry in expected)
    clean = counter.make(after, "after", isolated=False)
    assert (made.data, made.cells) == (clean.data, clean.cells)


JOINED = (((13, 1, 6), SIZES), ((5, 15), (5, 8, 1, 6)), ((), SIZES))
"""Cells that are joined of those of `SIZES`, and their runs."""


@pytest.mark.parametrize(("cells", "runs"), JOINED, ids=str)
def test_a_joined_cell_is_the_sum_of_its_runs_whether_they_are_kept_or_counted(
    new_counter: Callable[..., Counter],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    cells: Sequence[int],
    runs: Sequence[int],
) -> None:
    counter = new_counter()
    before = shard_of(folder)
    kept = decode_cells(counter.make(before, "before", isolated=False).cells, "cells")
    joined = replace(before, cells=tuple(cells), runs=tuple(runs))
    assert len({before.key("s"), joined.key("s"), replace(joined, runs=()).key("s")}) == 3
    clean = counter.make(joined, "after", isolated=False)
    seen = seen_by(monkeypatch)
    made = counter.make(joined, "after", isolated=False, kept=kept)
    assert (seen, made.images, made.failures, made.reused) == ([], 0, 0, 20)
    assert (made.data, made.cells) == (clean.data, clean.cells)
    whole = counter.count(shard_of(folder, ()), "after")
    total = Partial.decode(made.data, "partial")
    assert same_counts(total.dna, whole.dna)
    for kept_beside in ("failures", "exemplars", "image_hashes"):
        assert getattr(total, kept_beside) == getattr(whole, kept_beside)
    assert total.identical(counter.count(joined, "after"))


@pytest.mark.parametrize("lost", [(), (0,), (1,), (2, 3)], ids=str)
def test_a_joined_cell_that_is_joined_again_is_added_to_as_it_is(
    new_counter: Callable[..., Counter],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lost: Sequence[int],
) -> None:
    """Only the images of what is lost are read again. The first two runs are kept as one."""
    counter = new_counter()
    before = shard_of(folder, (13, 1, 6))
    before = replace(before, runs=SIZES)
    kept = decode_cells(counter.make(before, "before", isolated=False).cells, "cells")
    torn = [list(kept)[at] for at in (0, 0, 1, 2)]
    kept |= {torn[at]: kept[torn[at]][:-1] for at in lost}
    after = replace(before, cells=(14, 6))
    clean = counter.make(after, "after", isolated=False)
    ends = {0: (0, 13), 1: (0, 13), 2: (13, 14), 3: (14, 20)}
    expected = [e for at in lost for e in after.members[slice(*ends[at])]]
    seen = seen_by(monkeypatch)
    made = counter.make(after, "after", isolated=False, kept=kept)
    assert (seen, made.reused) == (expected, 20 - len(expected))
    assert (made.data, made.cells) == (clean.data, clean.cells)
    assert ("its images are counted again" in caplog.text) == bool(lost)


def test_bytes_are_those_of_images_whose_size_is_known(
    new_counter: Callable[..., Counter], folder: Path
) -> None:
    shard = shard_of(folder)
    members = tuple(
        replace(entry, size=0) if at in (0, 7) else entry for at, entry in enumerate(shard.members)
    )
    known = sum(entry.size for at, entry in enumerate(members) if at not in {0, 7})
    made = new_counter().make(replace(shard, members=members), "key", isolated=False)
    assert made.read_bytes == known
    whole = [entry.size for entry in shard.members]
    assert made.counted_bytes == sum(size for at, size in enumerate(whole) if at not in BAD)


def test_a_kept_cell_of_other_members_or_damaged_is_counted_again(
    new_counter: Callable[..., Counter], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = new_counter()
    shard = shard_of(folder)
    clean = counter.make(shard, "key", isolated=False)
    cells = decode_cells(clean.cells, "cells")
    first, second, third, fourth = cells
    torn = cells[third][:50] + b"?" + cells[third][51:]
    kept = {first: cells[second], second: cells[first], third: torn, fourth: cells[fourth]}
    with caplog.at_level(logging.WARNING):
        made = counter.make(shard, "key", isolated=False, kept=kept)
    assert (made.data, made.cells, made.reused) == (clean.data, clean.cells, SIZES[3])
    again = [r for r in caplog.records if r.message.startswith("its images are counted again: ")]
    assert len(again) == 3


def test_the_file_of_cells_is_checked() -> None:
    data = encode_cells({"a": b"1", "b": b"2"})
    assert decode_cells(data, "cells") == {"a": b"1", "b": b"2"}
    for at in range(0, len(data), 7):
        with pytest.raises(CorruptFile):
            decode_cells(data[:at], "cells")


def test_what_a_cell_takes_is_estimated_with_its_scatter(place: tiny.Place) -> None:
    spec = recipe_of(place).spec
    plain, scatter = (expected_bytes(spec, p) for p in (PRODUCTS, (*PRODUCTS, LAYER_GAUSSIAN)))
    assert plain == int(BYTES_A_BIN * sum(tiny.WIDTHS) * tiny.BINS)
    assert scatter - plain == 8 * (4 * 5 // 2 + 3 * 4 // 2)


def test_a_worker_has_half_as_many_threads_that_encode_as_others() -> None:
    assert [encoding_threads(threads) for threads in (1, 2, 3, 4, 9)] == [1, 1, 1, 2, 4]


@pytest.mark.parametrize("threads", [1, 4])
def test_few_cells_wait_to_be_encoded(
    new_counter: Callable[..., Counter],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    """Each has its tables. While none is encoded, no more are counted."""
    counter, sent, may_go = new_counter(threads), [], threading.Event()
    real, send = Counter._partial_of, CpuCounts.sent

    def partial_of(self: Counter, *args: Any) -> Partial:
        assert may_go.wait(60)
        return real(self, *args)

    def spy(self: CpuCounts) -> Any:
        sent.append(self)
        return send(self)

    monkeypatch.setattr(Counter, "_partial_of", partial_of)
    monkeypatch.setattr(CpuCounts, "sent", spy)
    most = encoding_threads(threads) + 2
    shard = shard_of(folder, [1] * 20)
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(counter.make, shard, "key", isolated=False)
        until = time.monotonic() + 60
        while len(sent) < most and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        stopped = len(sent)
        may_go.set()
        assert made.result().images == 17
    assert (stopped, len(sent)) == (most, 20)


# A worker finds the cells of what a shard was.


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


class Job:
    """A folder of images of one group, planned and counted as it changes."""

    def __init__(self, place: tiny.Place, images: Path, work: Path) -> None:
        self.images = images
        self.work = work.as_uri()
        self.entries = Entries(storage.join(self.work, "entries"))
        self.recipe = recipe_of(place)
        self.manifest: Manifest | None = None
        self._plans = 0

    def plan(self) -> Manifest:
        grouped = [replace(entry, group="g") for entry in list_source(self.images).entries]
        sizes = {"shard_images": 100, "cell_images": 5}
        self.manifest = plan(grouped, previous=self.manifest, entries=self.entries, **sizes)  # type: ignore[arg-type]  # by name
        return self.manifest

    def count(self, worker: Worker) -> tuple[int, int]:
        """Returns how many images were read, and how many were not."""
        manifest = self.plan()
        self._plans += 1
        uri = storage.join(self.work, f"manifest{self._plans}.parquet")
        storage.create(uri, manifest.data)
        job = ShardJob(self.recipe, uri, self.work, storage.join(self.work, "entries"))
        receipt = worker.run(job, 0)
        assert receipt.error == ""
        assert receipt.counted
        return receipt.images + receipt.failures, receipt.reused

    def key(self, manifest: Manifest | None = None) -> str:
        (key,) = (manifest or self.manifest).keys(self.recipe.spec.digest, self.recipe.products)  # type: ignore[union-attr]  # planned
        return key

    @property
    def head(self) -> ShardHead:
        (head,) = self.manifest.heads  # type: ignore[union-attr]  # planned
        return head

    def clean(self, counter: Counter) -> bytes:
        (shard,) = self.manifest.shards  # type: ignore[union-attr]  # planned
        return counter.make(shard, self.key(), isolated=False).data

    @property
    def partial(self) -> bytes:
        return bytes(storage.read(partial_uri(self.work, self.key())))


@pytest.fixture
def job(place: tiny.Place, folder: Path, tmp_path: Path) -> Job:
    return Job(place, folder, tmp_path / "work")


def test_a_worker_reads_only_the_cells_that_changed(
    job: Job, folder: Path, worker: Worker, new_counter: Callable[..., Counter]
) -> None:
    counter = new_counter()
    assert job.count(worker) == (20, 0)
    write(folder, 0, tiny.Picture("good", 100))
    assert job.count(worker) == (5, 15)
    (folder / "07.png").unlink()
    (folder / "08.png").unlink()
    assert job.count(worker) == (3, 15)
    for at in range(10, 15):  # a whole cell
        (folder / f"{at}.png").unlink()
    assert job.count(worker) == (0, 13)
    assert job.partial == job.clean(counter)
    for at in (*range(5), 5, 6, 9):
        (folder / f"{at:02d}.png").unlink()
    assert job.count(worker) == (0, 5), "what is left is one cell"
    assert job.partial == job.clean(counter)
    assert not storage.exists(cells_uri(job.work, job.key()))


def test_a_worker_joins_what_is_kept_of_small_cells_and_reads_none_of_their_images(
    job: Job, folder: Path, worker: Worker, new_counter: Callable[..., Counter]
) -> None:
    """Cells of 5 are joined while they have less than 4 images together."""
    counter = new_counter()
    assert job.count(worker) == (20, 0)
    for at in (0, 1, 2, 3, 5, 6, 7):
        (folder / f"{at:02d}.png").unlink()
    assert job.count(worker) == (3, 10), "what is left of two cells is one that is counted"
    assert (job.head.cells, job.head.runs) == ((3, 5, 5), ())
    for at in (10, 11, 12, 13):
        (folder / f"{at:02d}.png").unlink()
    write(folder, 19, tiny.Picture("good", 119))
    assert job.count(worker) == (1 + 5, 3)
    assert job.head.cells == (3, 1, 5), "together they have no less than a cell has at least"
    (folder / "04.png").unlink()
    (folder / "18.png").unlink()
    assert job.count(worker) == (2 + 4, 1)
    assert (job.head.cells, job.head.runs) == ((3, 4), (2, 1, 4)), "one of two runs is kept"
    assert job.partial == job.clean(counter)
    write(folder, 17, tiny.Picture("good", 117))
    assert job.count(worker) == (4, 3)
    assert job.partial == job.clean(counter)


def test_a_plan_that_was_never_counted_loses_no_cell(
    job: Job, folder: Path, worker: Worker, new_counter: Callable[..., Counter]
) -> None:
    assert job.count(worker) == (20, 0)
    write(folder, 0, tiny.Picture("good", 100))
    job.plan()
    write(folder, 19, tiny.Picture("good", 119))
    assert job.count(worker) == (10, 10)
    assert job.partial == job.clean(new_counter())


@pytest.mark.parametrize("damage", ["gone", "torn", "another file"])
def test_cells_that_are_lost_are_counted_again(
    job: Job,
    folder: Path,
    worker: Worker,
    new_counter: Callable[..., Counter],
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job.count(worker)
    uri = cells_uri(job.work, job.key())
    data = bytes(storage.read(uri))
    if damage == "gone":
        storage.delete(uri)
    else:
        storage.replace(uri, data[:-9] if damage == "torn" else job.partial)
    write(folder, 0, tiny.Picture("good", 100))
    with caplog.at_level(logging.WARNING):
        assert job.count(worker) == (20, 0)
    assert ("its images are counted again" in caplog.text) == (damage != "gone")
    assert job.partial == job.clean(new_counter())


def test_a_worker_that_dies_before_the_partial_leaves_cells_that_harm_nobody(
    job: Job, worker: Worker, new_counter: Callable[..., Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = storage.create

    def refused(uri: str, data: bytes) -> bool:
        if "/partials/" in uri:
            raise KeyboardInterrupt
        return create(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", refused)
        with pytest.raises(KeyboardInterrupt):
            job.count(worker)
    assert storage.exists(cells_uri(job.work, job.key()))
    assert job.count(worker) == (20, 0)
    assert job.partial == job.clean(new_counter())


def test_cells_of_other_numerics_are_counted_again(
    job: Job, folder: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade of a library: the images of a shard have one numerics."""
    assert job.count(worker) == (20, 0)
    write(folder, 0, tiny.Picture("good", 100))
    real = Extractor.numerics.fget
    assert real is not None
    monkeypatch.setattr(Extractor, "numerics", property(lambda of: replace(real(of), threads=7)))
    assert job.count(worker) == (20, 0)


def test_a_job_that_keeps_no_cells_writes_none(job: Job, worker: Worker) -> None:
    manifest = job.plan()
    uri = storage.join(job.work, "manifest.parquet")
    storage.create(uri, manifest.data)
    entries = storage.join(job.work, "entries")
    receipt = worker.run(ShardJob(job.recipe, uri, job.work, entries, keeps_cells=False), 0)
    assert receipt.counted
    assert not storage.exists(cells_uri(job.work, job.key()))


# What must not happen, is refused.


def test_a_sum_that_is_not_of_all_members_is_refused(
    new_counter: Callable[..., Counter], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = new_counter()
    shard = shard_of(folder)
    cells = decode_cells(counter.make(shard, "key", isolated=False).cells, "cells")
    small = cells[list(cells)[2]]
    monkeypatch.setattr("pipeline.counting.shard.is_cell", lambda *_: True)
    cells = dict.fromkeys(cells, small)
    with pytest.raises(OverlapError, match="would count twice"):
        counter.make(shard, "key", isolated=False, kept=cells)
    one = replace(shard, members=shard.members[:5], cells=())
    ((first, _),) = counter._cells(one, {})
    with pytest.raises(ConservationError, match="shard 0: 0 counted and 1 failed of 5 candidates"):
        counter.make(one, "key", isolated=False, kept={first: small})


def test_an_image_that_comes_twice_is_named_in_any_cell(
    new_counter: Callable[..., Counter], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = Stream.observed

    def lying(self: Stream, *rest: Any, **options: Any) -> Iterator[Any]:
        yield [7], Failure("file:///x.jpg", "", "empty", "")
        yield from observed(self, *rest, **options)

    monkeypatch.setattr(Stream, "observed", lying)
    with pytest.raises(ConservationError, match=r"shard 0: .*07\.png came twice"):
        new_counter().count(shard_of(folder), "key")
