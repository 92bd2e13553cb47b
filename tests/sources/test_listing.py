"""Tests that a listing has every object once, runs in parallel, and can be resumed."""

from __future__ import annotations

import bisect
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.errors import SourceError, StorageError
from pipeline.sources import (
    Entry,
    Listing,
    ListingCheckpoint,
    list_pages,
    list_source,
    listing,
    parallel_listing,
    plan,
    source_lister,
)
from pipeline.sources.archives.index import INDEX_SCHEMA, ArchiveIndex
from pipeline.sources.listing import ListingWriter
from pipeline.sources.parallel_listing import KeyRange, midpoint, walk_widely
from pipeline.sources.rules import Rules
from pipeline.sources.source_lister import SourceLister
from pipeline.storage import Stored, s3

ROOT = "s3://bucket/some/prefix"
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
KEYS = st.lists(st.text(LETTERS, min_size=1, max_size=6), unique=True, max_size=60)


class FakeStore:
    """A store that answers listings of keys, a number of keys a page."""

    def __init__(self, keys: list[str], page: int, before: Callable[[int], None] = bool) -> None:
        self.keys = sorted(keys)
        self.page = page
        self.asked = 0
        self.answered: set[str] = set()
        self._before = before
        self._lock = threading.Lock()

    def list_page(self, uri: str, after: str) -> tuple[list[Stored], str, bool]:
        with self._lock:
            self.asked += 1
            asked = self.asked
        self._before(asked)
        first = bisect.bisect_right(self.keys, after) if after else 0
        taken = self.keys[first : first + self.page]
        self.answered.update(taken)
        items = [Stored(f"{uri}/{key}", 1, "etag", None) for key in taken]
        return items, taken[-1] if taken else after, first + self.page < len(self.keys)

    def alone(self, uri: str) -> list[Stored]:
        raise SourceError(f"{uri} does not exist")


@pytest.fixture
def serve() -> Iterator[Callable[[FakeStore], FakeStore]]:
    with pytest.MonkeyPatch.context() as patch:

        def put(store: FakeStore) -> FakeStore:
            patch.setattr(storage, "list_page", store.list_page)
            patch.setattr(storage, "alone", store.alone)
            return store

        yield put


def patched_storage(store: FakeStore) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(storage, "list_page", store.list_page)
    patch.setattr(storage, "alone", store.alone)
    return patch


# Midpoints.


@given(st.text(max_size=12), st.one_of(st.none(), st.text(max_size=12)))
def test_a_midpoint_is_between_its_two_keys(after: str, until: str | None) -> None:
    middle = midpoint(after, until)
    assert middle is None or (after < middle and (until is None or middle < until))


def test_repeated_midpoints_reach_the_numbers_of_a_folder() -> None:
    """Starting at the first key of a folder, cuts soon fall between its numbered files."""
    after, until = "images/frame-000000001.jpg", None
    cuts = 0
    while until is None or until > "images/frame-1":
        until = midpoint(after, until)
        assert until is not None
        cuts += 1
    assert cuts < 7 * len("images/frame-0")


# Every object once.


@settings(max_examples=40)
@given(KEYS, st.integers(1, 9))
def test_every_key_is_listed_once(keys: list[str], page: int) -> None:
    patch = patched_storage(FakeStore(keys, page))
    try:
        if keys:
            found = [item.uri for items in list_pages(ROOT) for item in items]
            assert sorted(found) == sorted(f"{ROOT}/{key}" for key in keys)
        else:
            with pytest.raises(SourceError, match="prefix does not exist"):
                list(list_pages(ROOT))
    finally:
        patch.undo()


@settings(max_examples=40)
@given(KEYS.filter(bool), st.integers(1, 5), st.integers(0, 30))
def test_an_interrupted_listing_goes_on_from_any_page(
    keys: list[str], page: int, taken: int
) -> None:
    patch = patched_storage(FakeStore(keys, page))
    try:
        spans: dict[int, KeyRange] = {}
        found: list[str] = []
        first = list_pages(ROOT, spans)
        for _, items in zip(range(taken), first, strict=False):
            found += [item.uri for item in items]
        kept = dict(spans) if taken else {}
        first.close()
        found += [item.uri for items in list_pages(ROOT, kept) for item in items]
        assert sorted(found) == sorted(f"{ROOT}/{key}" for key in keys)
    finally:
        patch.undo()


def test_a_flat_folder_is_listed_from_many_places_at_once(serve: Any) -> None:
    under_way = most = 0
    lock = threading.Lock()

    def before(_: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1

    store = serve(FakeStore([f"frame-{i:09d}.jpg" for i in range(20_000)], 100, before))
    assert sum(len(items) for items in list_pages(ROOT)) == 20_000
    assert most >= parallel_listing.LISTERS // 2
    assert store.asked < 2 * 200 + 10 * parallel_listing.LISTERS


def test_a_store_that_refuses_in_the_middle_ends_the_listing(serve: Any) -> None:
    def before(asked: int) -> None:
        if asked > 20:
            raise StorageError("access denied")

    serve(FakeStore([f"{i:05d}" for i in range(5000)], 10, before))
    with pytest.raises(StorageError, match="access denied"):
        list(list_pages(ROOT))
    assert not [t for t in threading.enumerate() if t.name.startswith("list_") and t.is_alive()]


# Parts.


def test_parts_hold_what_was_added() -> None:
    entries = [Entry(f"s3://b/{i}", "", i, "e", "g", i, "tar") for i in range(25)]
    found = Listing.of(entries, "s3://b", {".txt": 2})
    assert list(found.entries) == entries
    assert (found.source, found.ignored) == ("s3://b", {".txt": 2})


def test_parts_are_written_while_listing_and_removed_with_the_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "PART_ENTRIES", 10)
    parts = ListingWriter(labels=["weather"])
    for i in range(34):
        parts.add(f"s3://b/{i}", "", i, "e", labels=["rain"])
        parts.end_page(1)
    found = parts.listing("s3://b")
    assert [pq.read_metadata(path).num_rows for path in found.parts] == [10, 10, 10, 4]
    assert pq.read_table(found.parts[0])["label_0"].to_pylist() == ["rain"] * 10
    path = found.parts[0]
    del found, parts
    with pytest.raises(FileNotFoundError):
        pq.read_metadata(path)


# Checkpoints of an interrupted listing.


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PART_ENTRIES", 200)
    monkeypatch.setattr(source_lister, "PAGES_TOGETHER", 1)


NOW = datetime.now(UTC)


def checkpoint_in(folder: str, now: datetime | None = None, **options: Any) -> ListingCheckpoint:
    return ListingCheckpoint(folder, now or datetime.now(UTC), **options)


def interrupt_listing(serve: Any, folder: str, at: int, keys: list[str]) -> None:
    def before(asked: int) -> None:
        if asked >= at:
            raise StorageError("the machine is gone")

    serve(FakeStore(keys, 20, before))
    with pytest.raises(StorageError, match="the machine is gone"):
        list_source(ROOT, checkpoint=checkpoint_in(folder))


FRAMES = [f"video{i % 7}/frame-{i:06d}.{'jpg' if i % 10 else 'txt'}" for i in range(3000)]


def test_an_interrupted_listing_goes_on(serve: Any, small_parts: None, tmp_path: Any) -> None:
    folder = (tmp_path / "kept").as_uri()
    interrupt_listing(serve, folder, 200, FRAMES)
    kept = len(list(storage.walk(folder)))
    assert kept >= 3
    whole = serve(FakeStore(FRAMES, 20))
    again, said = checkpoint_in(folder), []
    found = list_source(ROOT, checkpoint=again, progress=said.append)
    # In how many folders the images lie is not known: those listed before are not looked at again.
    assert [event.message.partition(" at ")[0] for event in said] == [
        "going on with the listing that was interrupted"
    ]
    assert len(whole.answered) < len(FRAMES) - 2 * 200
    manifest = plan(found)
    assert (manifest.candidates, manifest.duplicates) == (2700, 0)
    assert dict(found.ignored) == {".txt": 300}
    again.remove()
    with pytest.raises(SourceError):
        list(storage.walk(folder))


@pytest.mark.parametrize("why", ["old", "asked for", "torn", "a part is gone"])
def test_a_checkpoint_that_cannot_be_used_is_deleted(
    serve: Any, small_parts: None, tmp_path: Any, why: str
) -> None:
    folder = (tmp_path / "kept").as_uri()
    interrupt_listing(serve, folder, 200, FRAMES)
    first, second, *_ = sorted(storage.walk(folder), key=lambda item: item.uri)
    if why == "torn":
        storage.replace(second.uri, storage.read(second.uri)[:-30])
    if why == "a part is gone":
        storage.delete(first.uri)
    store = serve(FakeStore(FRAMES[:1000], 20))
    later = datetime.now(UTC) + timedelta(hours=2) if why == "old" else None
    found = list_source(ROOT, checkpoint=checkpoint_in(folder, later, relist=why == "asked for"))
    assert plan(found).candidates == 900
    assert store.asked >= 50


@pytest.mark.soak
def test_two_listings_of_one_source_do_not_harm_each_other(
    serve: Any, small_parts: None, tmp_path: Any
) -> None:
    folder = (tmp_path / "kept").as_uri()
    serve(FakeStore(FRAMES, 20))
    first, second = checkpoint_in(folder), checkpoint_in(folder)
    assert plan(list_source(ROOT, checkpoint=first)).candidates == 2700
    assert plan(list_source(ROOT, checkpoint=second)).candidates == 2700
    first.remove()
    second.remove()
    assert plan(list_source(ROOT, checkpoint=checkpoint_in(folder))).candidates == 2700


def test_parts_of_two_listings_are_never_mixed(
    serve: Any, small_parts: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One starts, another lists anew in the same place and dies, and the first goes on."""
    folder = (tmp_path / "kept").as_uri()
    interrupt_listing(serve, folder, 200, FRAMES[::-1])
    items = sorted(storage.walk(folder), key=lambda item: item.uri)
    others = [storage.read(item.uri) for item in items]
    storage.delete_tree(folder)
    real = storage.create

    def create(uri: str, data: bytes) -> bool:
        if uri.endswith("/000002.parquet"):
            storage.delete_tree(folder)
            for number in (0, 1):
                real(f"{folder}/{number:06d}.parquet", others[number])
        return real(uri, data)

    monkeypatch.setattr(storage, "create", create)
    interrupt_listing(serve, folder, 200, FRAMES)
    first, *_, last = sorted(storage.walk(folder), key=lambda item: item.uri)
    assert storage.read(first.uri) == others[0]
    assert storage.read(last.uri) not in others, "the first has gone on after the other"
    serve(FakeStore(FRAMES, 20))
    assert plan(list_source(ROOT, checkpoint=checkpoint_in(folder))).candidates == 2700


def test_a_listing_goes_on_if_its_parts_cannot_be_stored(
    serve: Any, small_parts: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise StorageError("no room")

    serve(FakeStore(FRAMES, 20))
    monkeypatch.setattr(storage, "create", refuse)
    listed = list_source(ROOT, checkpoint=checkpoint_in((tmp_path / "kept").as_uri()))
    assert plan(listed).candidates == 2700


def test_a_full_disk_is_reported(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", full)
    serve(FakeStore(FRAMES, 20))
    with pytest.raises(StorageError, match=r"the listing cannot be written to .*; set TMPDIR"):
        list_source(ROOT)


def test_a_page_with_only_the_folder_marker_does_not_end_the_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same page is not asked for again, either."""
    answers = [
        {"Contents": [row("some/prefix/", 0)], "IsTruncated": True, "NextContinuationToken": "a"},
        {"Contents": [], "IsTruncated": True, "NextContinuationToken": "b"},
        {"Contents": [row("some/prefix/x.jpg", 1)], "IsTruncated": False},
    ]
    monkeypatch.setattr(s3, "_call", lambda *_, **__: answers.pop(0))
    assert [item.uri for items in list_pages(ROOT) for item in items] == [f"{ROOT}/x.jpg"]
    assert answers == []


def row(key: str, size: int) -> dict[str, Any]:
    return {"Key": key, "Size": size, "ETag": '"e"', "LastModified": NOW}


def test_archives_found_before_the_interruption_are_indexed_after_it(
    serve: Any, small_parts: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (tmp_path / "kept").as_uri()
    names = [*FRAMES, *(f"video{i}/more.tar" for i in range(7))]
    looked: list[str] = []
    monkeypatch.setattr(
        source_lister,
        "encoded_index",
        lambda item, **_: (looked.append(item.uri), (item.uri, None))[1],
    )
    interrupt_listing(serve, folder, 200, names)
    assert looked == []
    serve(FakeStore(names, 20))
    list_source(ROOT, checkpoint=checkpoint_in(folder))
    assert sorted(looked) == [f"{ROOT}/video{i}/more.tar" for i in range(7)]


def test_an_archive_that_has_changed_since_an_interrupted_listing_is_listed_anew(
    serve: Any, small_parts: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every rerun would meet the archive as it was, and fail."""
    folder = (tmp_path / "kept").as_uri()
    names = [*FRAMES, "video0/more.tar"]

    def changed(item: storage.Stored, **_: object) -> None:
        raise SourceError(f"{item.uri} changed between listing and reading")

    interrupt_listing(serve, folder, 200, names)
    monkeypatch.setattr(source_lister, "encoded_index", changed)
    serve(FakeStore(names, 20))
    with pytest.raises(SourceError, match=r"more\.tar changed"):
        list_source(ROOT, checkpoint=checkpoint_in(folder))
    monkeypatch.setattr(source_lister, "encoded_index", lambda item, **_: (item.uri, None))
    store = serve(FakeStore(names, 20))
    list_source(ROOT, checkpoint=checkpoint_in(folder))
    assert len(store.answered) >= len(names)


def test_parts_that_are_found_wait_on_the_disk(
    serve: Any, small_parts: None, tmp_path: Any
) -> None:
    folder = (tmp_path / "kept").as_uri()
    interrupt_listing(serve, folder, 200, FRAMES)
    stored = [bytes(storage.read(item.uri)) for item in storage.walk(folder)]
    checkpoint = checkpoint_in(folder)
    assert len(checkpoint._parts) == len(stored)
    assert all(isinstance(part, Path) for part in checkpoint._parts)
    assert sorted(checkpoint.take_parts()) == sorted(stored)
    assert [*checkpoint.take_parts()] == []


def test_a_full_disk_does_not_cost_an_interrupted_listing(
    serve: Any, small_parts: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = (tmp_path / "kept").as_uri()
    interrupt_listing(serve, folder, 200, FRAMES)
    kept = {item.uri for item in storage.walk(folder)}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match=r"interrupted listing cannot be written .* TMPDIR"):
            checkpoint_in(folder)
    assert {item.uri for item in storage.walk(folder)} == kept


def test_tables_found_before_the_interruption_say_how_large_their_images_are(
    serve: Any, small_parts: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (tmp_path / "kept").as_uri()
    names = [*FRAMES, *(f"video{i}/more.parquet" for i in range(7))]
    rows = pa.table(
        {"member": ["0", "1"], "size": [0, 0], "position": [0, 1], "access": ["parquet 0 a"] * 2},
        INDEX_SCHEMA,
    )
    index = ArchiveIndex(rows, {}, 0, image_bytes=500).encode()
    monkeypatch.setattr(source_lister, "encoded_index", lambda item, **_: (item.uri, index))
    interrupt_listing(serve, folder, 200, names)
    serve(FakeStore(names, 20))
    found = list_source(ROOT, checkpoint=checkpoint_in(folder))
    assert (found.unsized, found.unsized_bytes) == (14, 3_500)


def test_a_build_resumes_its_listing_and_leaves_nothing_of_it(
    bucket: str, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server is used, whose pages are made small."""
    root = f"{bucket}/{random.randbytes(8).hex()}"
    for i in range(12):
        storage.create(f"{root}/images/{i:02d}.jpg", b"no image")
    monkeypatch.setattr(listing, "PART_ENTRIES", 2)
    real = storage.list_page
    asked = 0

    def list_page(uri: str, after: str) -> tuple[list[Stored], str, bool]:
        nonlocal asked
        if not uri.endswith("/images"):
            return real(uri, after)
        asked += 1
        if asked > 4:
            raise StorageError("gone")
        page = real(uri, after)
        if not (items := page[0][:2]):  # a range is split where a guess lies, beyond all names too
            return page
        return items, items[-1].uri.removeprefix(f"{uri}/"), True

    monkeypatch.setattr(storage, "list_page", list_page)
    place = Catalogue(f"{root}/catalogue")
    request = Request("x", f"{root}/images", bins=8)
    with pytest.raises(StorageError, match="gone"):
        build_datasets(place, [request], InProcess())
    kept = [i.uri for i in storage.walk(f"{root}/catalogue/_work/_listings")]
    assert kept
    monkeypatch.setattr(storage, "list_page", real)
    with pytest.raises(SourceError, match="none of 12 candidates"):
        build_datasets(place, [request], InProcess())
    with pytest.raises(SourceError):
        list(storage.walk(f"{root}/catalogue/_work/_listings"))


@settings(max_examples=40)
@given(KEYS, st.integers(1, 4), st.integers(0, 5))
def test_a_wide_walk_yields_every_object_once(keys: list[str], page: int, alone: int) -> None:
    """Whether it ends in the pages that are read one after the other, or after them."""
    store = FakeStore(keys, page)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "list_page", store.list_page)
        patch.setattr(storage, "alone", store.alone)
        patch.setattr(parallel_listing, "ALONE_PAGES", alone)
        if not keys:
            with pytest.raises(SourceError, match="prefix does not exist"):
                list(walk_widely(ROOT))
            return
        assert sorted(i.uri for i in walk_widely(ROOT)) == sorted(f"{ROOT}/{k}" for k in keys)
        if len(keys) <= page * alone:
            assert store.asked == -(-len(keys) // page)


PATHS = st.lists(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "cat/", "dog/", "owl/", "/", "cat/2/", "cat//"]),
        st.integers(0, 99),
        st.sampled_from([".jpg", ".PNG", ".txt", ".tar", "", "/.jpg", ".jpg/a.jpg"]),
    ),
    unique=True,
    min_size=1,
)


def test_pages_that_are_taken_together_stay_chunks() -> None:
    """Only then are sorted pages sorted without a look at each row."""
    pages = [[Stored(f"{ROOT}/{i}", i, "é", None)] * i for i in (2, 0, 3)]
    objects = source_lister._objects_of(pages)
    assert [len(chunk) for chunk in objects["uri"].chunks if len(chunk)] == [2, 3]
    assert objects.to_pylist() == [
        {"uri": item.uri, "size": item.size, "identity": item.identity}
        for page in pages
        for item in page
    ]


@settings(max_examples=100)
@given(PATHS, st.integers(1, 9), st.integers(1, 4))
def test_a_page_is_added_as_a_whole_as_it_is_row_by_row(
    paths: list[str], page: int, most: int
) -> None:
    """The folders that may be classes are the same, too."""
    found = []
    for row_by_row in (True, False):
        store = FakeStore(paths, page)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "list_page", store.list_page)
            patch.setattr(source_lister, "MOST_CLASSES", most)
            lister = SourceLister(ROOT, Rules(), None, lambda event: None)
            if row_by_row:
                lister._is_plain = False
            lister.list_objects(None)
        candidates = lister.candidates
        rows = candidates.take_table().to_pylist() if candidates.total else []
        found.append(
            (
                sorted(map(str, rows)),
                None if lister.classes is None else sorted(lister.classes),
                dict(candidates.ignored),
                sorted(item.uri for item in candidates.archives),
            )
        )
    assert found[0] == found[1]
