"""Tests which objects garbage collection removes, and which it keeps."""

from __future__ import annotations

import os
import shutil
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.catalogue import (
    Catalogue,
    Commit,
    RetentionOptions,
    Version,
    collect,
    garbage,
    garbage_collection,
    leaving_versions,
    remove,
    roll_back,
    tag_version,
    verify,
)
from pipeline.catalogue.garbage_collection import NotedPlan
from pipeline.comparing import compare
from pipeline.counting import partial_uri, reduction
from pipeline.errors import SourceError, TransientError, UsageError
from pipeline.events import Event, Finished, Started, StepDone
from pipeline.sources import plan
from pipeline.storage import local
from tests.golden.handmade import (
    NETWORK,
    SPEC,
    HandMade,
    Place,
    commit_dataset,
    entries,
    hand_made,
)
from tests.support.builders import tiny_spec, version_without_files

FILES = ("dna", "folds", "failures", "manifests")
DAY = 24 * 3600.0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(
        "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
    )
    return Place(tmp_path)


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets two shards of a fold make a node of a tree; 18 shards in 16 folds have some."""
    monkeypatch.setattr(reduction, "FAN_IN", 2)
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)


def age(uris: Iterable[str], days: float) -> None:
    then = time.time() - days * DAY
    for uri in uris:
        os.utime(storage.local_path(uri), (then, then))


def everything(place: Place) -> set[str]:
    return {item.uri for item in storage.walk(place.catalogue.root)}


def age_all(place: Place, days: float = 30) -> None:
    age(everything(place), days)


def files_of(place: Place, name: str, version: Version) -> set[str]:
    """Returns the files that a version needs, partials included."""
    c = place.catalogue
    uris = {
        c.uri(kind, version.spec, name, version.manifest if kind == "manifests" else version.dna)
        for kind in FILES
    }
    manifest = c.manifest(name, version)
    uris |= set(map(manifest.entries.uri, manifest.files))
    keys = manifest.keys(version.spec, version.products)
    return uris | {partial_uri(c.work_uri(name, version.spec), key) for key in keys}


def old_garbage(place: Place, **options: Any) -> set[str]:
    return {item.uri for item in garbage(place.catalogue, **options)}


def put(place: Place, *parts: str, data: bytes = b"orphan") -> str:
    uri = storage.join(place.catalogue.root, *parts)
    storage.create(uri, data)
    return uri


def orphans(place: Place) -> set[str]:
    spec = SPEC.digest
    return {
        put(place, "dna", spec, "a", "0123.parquet"),
        put(place, "folds", spec, "a", "0123.parquet"),
        put(place, "failures", spec, "a", "0123.parquet"),
        put(place, "manifests", spec, "a", "0123.parquet"),
        put(place, "entries", "0123.parquet"),
        put(place, "dna", "another-spec", "b", "0123.parquet"),
        put(place, "_work", "a", spec, "partials", "0123.parquet"),
        put(place, "_work", "a", spec, "attempts", "0123-1.json"),
        put(place, "_work", "never/built", spec, "partials", "0123.parquet"),
        put(place, "_work", "probe-0123"),
    }


def test_nothing_young_is_removed(place: Place, trees: None) -> None:
    place.photos("a", 18)
    place.build("a", shard_images=1)
    place.photos("a", 20)
    place.build("a", shard_images=1)
    orphans(place)
    before = everything(place)
    assert old_garbage(place) == old_garbage(place, keep=1) == set()
    age_all(place, days=6.9)
    assert old_garbage(place, keep=1) == set()
    assert collect(place.catalogue, keep=1) == (0, 0)
    assert everything(place) == before


def test_an_empty_catalogue_has_no_garbage(place: Place) -> None:
    assert old_garbage(place) == set()
    assert collect(place.catalogue) == (0, 0)


def test_orphans_are_removed_only_when_they_are_old(place: Place) -> None:
    place.photos("a", 3)
    place.build("a")
    lost = orphans(place)
    age_all(place)
    young = sorted(lost)[::2]
    age(young, 1)
    assert old_garbage(place) == lost - set(young)
    assert old_garbage(place, grace=timedelta(hours=12)) == lost
    assert old_garbage(place, now=datetime.now(UTC) + timedelta(days=7)) == lost
    kept = everything(place) - lost
    count, size = collect(place.catalogue)
    assert (count, size) == (len(lost) - len(young), 6 * (len(lost) - len(young)))
    assert everything(place) == kept | set(young)


@pytest.mark.parametrize("days", [-30, 30])
def test_ages_are_measured_by_the_clock_of_the_store(
    days: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the store may be far behind or far ahead of this machine's."""
    place.photos("a", 3)
    place.build("a")
    lost = orphans(place)
    real = local.entry_of

    def skewed(path: str) -> storage.Stored | None:
        entry = real(path)
        if entry is None or entry.modified is None:
            return entry
        return entry._replace(modified=entry.modified + timedelta(days=days))

    monkeypatch.setattr(local, "entry_of", skewed)
    assert collect(place.catalogue) == (0, 0)
    assert lost <= everything(place)
    age(lost, 8)
    assert old_garbage(place) == lost


def test_a_store_that_lists_fractions_of_seconds_is_collected(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ceph lists fractions, but states whole seconds of a single object: that is no change."""
    lost = orphans(place)
    age_all(place)
    real = storage.info

    def whole_seconds(uri: str) -> storage.Stored:
        entry = real(uri)
        assert entry.modified is not None
        return entry._replace(modified=entry.modified.replace(microsecond=0))

    monkeypatch.setattr(storage, "info", whole_seconds)
    assert collect(place.catalogue) == (len(lost), 6 * len(lost))


def test_the_grace_period_is_exact_to_the_second(place: Place) -> None:
    place.photos("a", 2)
    place.build("a")
    uri = put(place, "_work", "probe-0123")
    made = storage.info(uri).modified
    assert made is not None
    week = timedelta(days=7)
    assert old_garbage(place, now=made + week) == set()
    assert uri in old_garbage(place, now=made + week + timedelta(seconds=1))


def test_gc_removes_exactly_what_it_lists(place: Place, trees: None) -> None:
    place.photos("a", 18)
    place.build("a", shard_images=1)
    place.photos("a", 20)
    place.build("a", shard_images=1)
    orphans(place)
    age_all(place)
    for keep in (None, 1):
        listed = list(garbage(place.catalogue, keep=keep))
        before = everything(place)
        assert {item.uri for item in listed} <= before
        assert collect(place.catalogue, keep=keep) == (
            len(listed),
            sum(item.size for item in listed),
        )
        assert before - everything(place) == {item.uri for item in listed}
        assert len(listed) > 0
    assert collect(place.catalogue, keep=1) == (0, 0)


def test_all_versions_are_kept_unless_told_otherwise(place: Place) -> None:
    place.photos("a", 3)
    first = place.build("a").version
    place.photos("a", 5, bad=1)
    second = place.build("a").version
    age_all(place)
    assert old_garbage(place) == set()
    assert old_garbage(place, keep=2) == set()
    assert files_of(place, "a", first) | files_of(place, "a", second) <= everything(place)


def test_keep_one_removes_what_only_older_versions_need(place: Place) -> None:
    place.photos("a", 6)
    first = place.build("a", shard_images=1)
    for path in (place.folder / "a").glob("photo-00[01].jpg"):
        path.unlink()
    place.photos("b/c", 2)
    other = place.build("b/c")
    second = place.build("a", shard_images=1)
    assert (first.version.images, second.version.images) == (6, 4)
    old, new = (files_of(place, "a", r.version) for r in (first, second))
    assert old & new
    assert len(old - new) == 4 + 2
    age_all(place)
    expected = old - new
    assert old_garbage(place) == set()  # an older version that is kept keeps its partials too
    assert old_garbage(place, keep=1) == expected
    collect(place.catalogue, keep=1)
    left = everything(place)
    assert new <= left
    assert files_of(place, "b/c", other.version) <= left
    assert not expected & left
    assert all(finding.ok for finding in verify(place.catalogue))


def test_a_later_run_without_keep_still_works(place: Place) -> None:
    """The log names versions whose files were removed; that must not make a run fail."""
    place.photos("a", 3)
    place.build("a")
    place.photos("a", 4)
    newest = place.build("a").version
    age_all(place)
    collect(place.catalogue, keep=1)
    lost = put(place, "_work", "probe-0123")
    age([lost], 30)
    for keep in (None, 2, 1):
        assert old_garbage(place, keep=keep) == {lost}
    assert files_of(place, "a", newest) <= everything(place)


def test_going_back_to_an_older_version_makes_it_the_newest(place: Place) -> None:
    place.photos("a", 3)
    first = place.build("a").version
    place.photos("a", 4)
    second = place.build("a").version
    (place.folder / "a" / "photo-003.jpg").unlink()
    third = place.build("a").version
    assert third.dna == first.dna
    assert place.catalogue.head().number == 3
    age_all(place)
    removed = old_garbage(place, keep=1)
    assert removed == files_of(place, "a", second) - files_of(place, "a", first)
    assert removed


def test_a_version_that_is_committed_again_is_safe_from_a_concurrent_gc(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files exist, are old, and belong to no kept version.

    Storing them again does not make them younger, and a collection just before the commit removes
    them.
    """
    place.photos("a", 3)
    place.build("a")
    place.photos("a", 4)
    place.build("a")
    (place.folder / "a" / "photo-003.jpg").unlink()
    age_all(place)
    real = Catalogue.put_version

    def collect_first(catalogue: Catalogue, *arguments: Any, **options: Any) -> Commit:
        collect(catalogue, keep=1)
        return real(catalogue, *arguments, **options)

    monkeypatch.setattr(Catalogue, "put_version", collect_first)
    assert place.build("a").version.images == 3
    assert [finding for finding in verify(place.catalogue) if not finding.ok] == []


def test_an_object_that_was_written_again_since_it_was_listed_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build needs it, and has made it young."""
    lost = [put(place, "_work", f"probe-{number}") for number in range(3)]
    age_all(place)
    real = storage.delete_all
    removed: list[str] = []

    def and_another_is_written(uris: Sequence[str]) -> None:
        removed.extend(uris)
        for other in set(lost) - set(removed):
            storage.replace(other, b"orphan")
        real(uris)

    monkeypatch.setattr(garbage_collection, "REMOVED_AT_ONCE", 1)
    monkeypatch.setattr(storage, "delete_all", and_another_is_written)
    assert collect(place.catalogue) == (1, 6)
    assert everything(place) == set(lost) - set(removed)


@pytest.mark.parametrize("returns_to", ["build", "rollback"])
def test_a_version_that_is_committed_after_its_files_were_looked_at_keeps_them(
    place: Place, monkeypatch: pytest.MonkeyPatch, returns_to: str
) -> None:
    """They were old when they were looked at, and are about to be removed."""
    place.photos("a/x", 3)
    place.build("a", by="1")
    place.photos("a/x", 4)
    place.build("a", by="1")
    age_all(place)
    real = garbage_collection._changed_since_listed
    looked: list[storage.Stored] = []

    def look_and_commit(item: storage.Stored) -> bool:
        changed = real(item)
        looked.append(item)
        if len(looked) == 1:
            if returns_to == "rollback":
                roll_back(place.catalogue, "a", 1)
            else:
                (place.folder / "a" / "x" / "photo-003.jpg").unlink()
                place.build("a", by="1")
        return changed

    monkeypatch.setattr(garbage_collection, "CHECKERS", 1)
    monkeypatch.setattr(garbage_collection, "_changed_since_listed", look_and_commit)
    unneeded = put(place, "_work", "probe-0123")
    age([unneeded], 30)
    monkeypatch.setattr(storage, "replace", lambda uri, data: None)  # they stay as old
    assert collect(place.catalogue, keep=1)[0] == 1
    assert unneeded not in everything(place)
    monkeypatch.undo()
    assert place.catalogue.head().number == 3
    assert place.catalogue.find("a").images == 3
    assert [finding for finding in verify(place.catalogue) if not finding.ok] == []


@pytest.mark.parametrize("kind", [*FILES, "part", "entries"])
def test_a_build_whose_file_is_removed_as_it_commits_says_so_and_is_run_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place.photos("a/x", 3)
    real = Catalogue.put_version

    def remove_then_commit(
        catalogue: Catalogue, name: str, version: Version, *more: Any, **options: Any
    ) -> Commit:
        uris = catalogue.files(name, version)
        of, part = next(iter(options["parts"].items()))
        uris["part"] = catalogue.files(of, part)["dna"]
        manifest = catalogue.manifest(name, version)
        uris["entries"] = manifest.entries.uri(manifest.files[0])
        storage.delete(uris[kind])
        return real(catalogue, name, version, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "put_version", remove_then_commit)
        with pytest.raises(TransientError, match=r"a: .*parquet was removed while the build "):
            place.build("a", by="1")
    place.build("a", by="1")
    assert [finding for finding in verify(place.catalogue) if not finding.ok] == []


def test_an_object_that_is_gone_since_it_was_listed_is_not_counted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (put(place, "_work", f"probe-{number}") for number in range(2))
    age_all(place)
    real = storage.delete_all
    monkeypatch.setattr(garbage_collection, "REMOVED_AT_ONCE", 1)
    monkeypatch.setattr(storage, "delete_all", lambda uris: real([first, second]))
    assert collect(place.catalogue) == (1, 6)


def test_garbage_is_removed_in_batches_and_progress_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage_collection, "REMOVED_AT_ONCE", 20)
    lost = {put(place, "_work", f"probe-{number}") for number in range(23)}
    age_all(place)
    asked: list[list[str]] = []
    real = storage.delete_all
    monkeypatch.setattr(storage, "delete_all", lambda uris: [asked.append(uris), real(uris)])
    told: list[Event] = []
    assert collect(place.catalogue, progress=told.append) == (len(lost), 6 * len(lost))
    assert {uri for batch in asked for uri in batch} == lost
    assert [len(batch) for batch in asked] == [20, 3]
    assert told[-4:] == [
        Started(len(lost), 2, unit="objects", step="batches"),
        *(StepDone(20), StepDone(3), Finished()),
    ]
    assert everything(place) == set()


@pytest.mark.parametrize("moved", [None, timedelta(seconds=1), timedelta(seconds=-1)])
def test_an_object_of_another_age_than_it_was_listed_with_stays(
    moved: timedelta | None, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = put(place, "_work", "probe-0123")
    age_all(place)
    real = storage.info

    def moved_info(uri: str) -> storage.Stored:
        entry = real(uri)
        assert entry.modified is not None
        return entry._replace(modified=moved and entry.modified + moved)

    monkeypatch.setattr(storage, "info", moved_info)
    assert collect(place.catalogue) == (0, 0)
    assert lost in everything(place)


def without_age(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """Makes the store not know when an object was written."""
    real = local.entry_of

    def entry_of(path: str) -> storage.Stored | None:
        entry = real(path)
        return entry._replace(modified=None) if entry and entry.uri == uri else entry

    monkeypatch.setattr(local, "entry_of", entry_of)


def test_an_object_of_unknown_age_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old, unknown = (put(place, "_work", f"probe-{number}") for number in range(2))
    age_all(place)
    without_age(monkeypatch, unknown)
    assert old_garbage(place) == {old}


def test_what_a_writer_left_when_it_died_is_removed(place: Place) -> None:
    name = ".0123.parquet.0123456789abcdef.tmp"
    left = Path(storage.local_path(place.catalogue.root), "dna", SPEC.digest, "a", name)
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert collect(place.catalogue) == (0, 0)
    age([left.as_uri()], 30)
    assert collect(place.catalogue) == (1, 4)
    assert not left.exists()


def test_an_imported_version_keeps_its_file_and_has_no_manifest(place: Place) -> None:
    c, spec = place.catalogue, SPEC.digest
    uri = put(place, "dna", spec, "a", "0123.parquet")
    made = version_without_files("0123", spec)
    sha256, footers = {"dna": "x"}, {"dna": made.footers["dna"]}
    imported = replace(made, sha256=sha256, footers=footers, manifest="", origin={"software": "v"})
    assert imported.imported
    c.put_version("a", imported, None)
    lost = put(place, "dna", spec, "a", "4567.parquet")
    age_all(place)
    assert old_garbage(place) == {lost}
    assert uri in everything(place)


def test_the_newest_version_of_each_spec_is_kept(place: Place) -> None:
    place.photos("a", 3)
    mine = place.build("a").version
    spec, ranges = tiny_spec(bins=9)
    manifest = plan(entries("a", 2))
    partials = [hand_made(shard, spec, ranges) for shard in manifest.shards]
    other = commit_dataset(place.catalogue, "a", manifest, partials, spec, ranges)
    age_all(place)
    assert old_garbage(place, keep=1) == set()
    assert files_of(place, "a", mine) | files_of(place, "a", other) <= everything(place)


def test_tree_nodes_and_notes_of_attempts_are_removed(place: Place, trees: None) -> None:
    place.photos("a", 20)
    version = place.build("a", shard_images=1).version
    work = place.catalogue.work_uri("a", version.spec)
    nodes = {item.uri for item in storage.walk(storage.join(work, "nodes"))}
    assert len(nodes) == 4
    note = put(place, "_work", "a", version.spec, "attempts", "0123-1.json")
    age_all(place)
    assert old_garbage(place) == nodes | {note}


def test_a_plan_that_has_begun_is_protected(place: Place) -> None:
    """A build that died after days is rerun days later, and counts nothing again."""
    place.photos("a", 5)
    with pytest.raises(InterruptedError):
        place.build("a", HandMade(stop_after=2), shard_images=1)
    assert place.catalogue.head().number == 0
    age_all(place)
    assert old_garbage(place, keep=1) == set()
    collect(place.catalogue, keep=1)
    assert place.build("a", shard_images=1).counted_shards == 3


def test_a_manifest_that_goes_while_others_are_read_hides_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = place.catalogue
    for images in (1, 2, 3):
        place.photos("a", images)
        place.build("a")
    folder = catalogue.uri("manifests", SPEC.digest, "a", "").rpartition("/")[0]
    gone, *others = [item.uri for item in storage.walk(folder)]
    real = storage.read

    def read(uri: str) -> bytes:
        if uri == gone:
            storage.delete(uri)  # as a collection does
        return real(uri)

    monkeypatch.setattr(storage, "read", read)
    begun = NotedPlan(catalogue.plan_uri("a", SPEC.digest), "a", SPEC.digest, None, (), True)
    assert [uri for uri, _ in begun.counted_ahead(catalogue)] == others


def test_a_plan_that_follows_a_version_is_protected_beside_it(place: Place) -> None:
    place.photos("group/a", 4)
    first = place.build("group/a", shard_images=1).version
    place.photos("group/a", 7)
    with pytest.raises(InterruptedError):
        place.build("group/a", HandMade(stop_after=2), shard_images=1)
    age_all(place)
    assert old_garbage(place, keep=1) == set()
    collect(place.catalogue, keep=1)
    assert files_of(place, "group/a", first) <= everything(place)
    result = place.build("group/a", shard_images=1)
    assert (result.counted_shards, result.version.images) == (1, 7)


def test_a_plan_that_was_replaced_by_another_is_garbage(place: Place) -> None:
    place.photos("a", 5)
    with pytest.raises(InterruptedError):
        place.build("a", HandMade(stop_after=3), shard_images=1)
    for i in range(5):
        (place.folder / "a" / f"photo-{i:03d}.jpg").write_bytes(b"another photo")
    version = place.build("a", shard_images=1).version
    age_all(place)
    removed = old_garbage(place)
    assert len(removed) == 3 + 2  # partials, and the manifest with its entries
    assert not removed & files_of(place, "a", version)


@pytest.mark.parametrize("hint", [b"", b"0123456789abcdef", b"../../x", b"\xff\xfe"])
def test_a_plan_hint_that_names_no_plan_does_not_stop_gc(place: Place, hint: bytes) -> None:
    place.photos("a", 2)
    version = place.build("a").version
    storage.replace(storage.join(place.catalogue.work_uri("a", version.spec), "_plan"), hint)
    lost = put(place, "_work", "probe-0123")
    age_all(place)
    assert old_garbage(place) == {lost}


def test_a_catalogue_passes_verify_after_gc(place: Place, trees: None) -> None:
    place.photos("a", 18, bad=2)
    place.build("a", shard_images=1)
    place.photos("b", 3)
    place.build("b")
    place.photos("a", 20, bad=2)
    place.build("a", shard_images=1)
    compare(place.catalogue)
    age_all(place)
    kept = {u for u in everything(place) if "/_log/" in u or "/specs/" in u or "/ranges/" in u}
    kept |= {u for u in everything(place) if "/matrix/" in u}
    collect(place.catalogue, keep=1)
    assert kept <= everything(place)
    findings = list(verify(place.catalogue))
    assert len(findings) == 12
    assert [finding for finding in findings if not finding.ok] == []
    before = everything(place)
    head = place.catalogue.head()
    for name in "ab":
        result = place.build(name, HandMade(stop_after=0), shard_images=1)
        assert (result.changed, result.counted_shards) == (False, 0)
    assert place.catalogue.head() == head
    assert everything(place) == before
    place.photos("a", 21, bad=2)
    assert place.build("a", shard_images=1).counted_shards == 1


def test_matrices_are_removed_once_no_kept_version_uses_their_pairs(place: Place) -> None:
    c = place.catalogue
    for count, name in enumerate("abc"):
        place.photos(name, 2 + count)
        place.build(name)

    def matrices() -> set[str]:
        return {u for u in everything(place) if "/matrix/" in u}

    compare(c)
    (first,) = matrices()
    place.photos("a", 6)
    place.build("a")
    age_all(place)
    assert first not in old_garbage(place, keep=1)  # b and c are compared there, and nowhere else
    compare(c, ["a", "b"])
    (small,) = matrices() - {first}
    age_all(place)
    assert old_garbage(place, keep=1) & matrices() == set()
    compare(c)
    (second,) = matrices() - {first, small}
    assert old_garbage(place) & matrices() == set()  # all versions are kept
    assert old_garbage(place, keep=1) & matrices() == {first}
    age([first], 1)
    assert first not in old_garbage(place, keep=1)
    age_all(place)
    storage.replace(second, storage.read(second)[:-20])  # torn: it has no pairs to give
    age_all(place)
    assert old_garbage(place, keep=1) & matrices() == set()
    for name in "bc":
        place.photos(name, 7)
        place.build(name)
    age_all(place)
    assert old_garbage(place, keep=1) & matrices() == {first, small}


MATRICES: dict[str, tuple[dict[str, tuple[str, str, str]], str]] = {
    "the newer of two with the same pairs": ({"1": ("abc", "u", "m"), "2": ("abc", "u", "m")}, "1"),
    "the newer, by whatever name": ({"2": ("abc", "u", "m"), "1": ("abc", "u", "m")}, "2"),
    "the one with more pairs": ({"1": ("abcd", "u", "m"), "2": ("abc", "u", "m")}, "2"),
    "the one of kept versions alone": ({"1": ("bc", "u", "m"), "2": ("abc", "u", "m")}, "2"),
    "one with other pairs": ({"1": ("abc", "u", "m"), "2": ("acd", "u", "m")}, ""),
    "one with pairs, not one without": ({"1": ("ab", "u", "m"), "2": ("abc", "u", "m")}, "1"),
    "whatever kept versions alone have": ({"1": ("bc", "u", "m"), "2": ("bcd", "u", "m")}, ""),
    "each kind": ({"1": ("abc", "u", "m"), "2": ("abc", "v", "m")}, ""),
    "each method": ({"1": ("abc", "u", "m"), "2": ("abc", "u", "n")}, ""),
}
"""What stays of two matrices, the older one first: their datasets, of which `a` is no more, their
kinds and methods; and what is removed."""


@pytest.fixture(scope="module")
def three_datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "catalogue"
    for name in "bcd":
        manifest = plan(entries(name, 2))
        partials = [hand_made(shard) for shard in manifest.shards]
        commit_dataset(Catalogue(str(folder)), name, manifest, partials)
    return folder


def put_matrices(
    place: Place,
    three_datasets: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, tuple[str, str, str]],
) -> dict[str, str]:
    shutil.copytree(three_datasets, storage.local_path(place.catalogue.root))
    versions = {"a": "of a version that is no more"}
    versions |= {name: place.catalogue.find(name).dna for name in "bcd"}
    age_all(place)
    stated, uris = {}, {}
    for older, (number, (names, kind, method)) in enumerate(told.items()):
        uris[number] = uri = put(place, "matrix", SPEC.digest, number, f"{kind}.parquet")
        members = {name: versions[name] for name in names}
        stated[uri] = {"spec_digest": SPEC.digest, "members": members, "method": method}
        age([uri], 40 - older)
    finder = "pipeline.catalogue.garbage_collection.find_matrix_metadata"
    monkeypatch.setattr(finder, stated.__getitem__)
    return uris


@pytest.mark.parametrize("law", MATRICES)
def test_of_two_matrices_there_stays(
    law: str, place: Place, three_datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, removed = MATRICES[law]
    uris = put_matrices(place, three_datasets, monkeypatch, told)
    assert old_garbage(place) == {uris[number] for number in removed}


@pytest.mark.parametrize("unknown", ["1", "2"])
def test_of_two_matrices_there_stays_the_one_of_unknown_age(
    unknown: str, place: Place, three_datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = put_matrices(place, three_datasets, monkeypatch, dict.fromkeys("12", ("abc", "u", "m")))
    without_age(monkeypatch, uris[unknown])
    assert old_garbage(place) == {*uris.values()} - {uris[unknown]}


def test_versions_stay_for_so_many_days_after_another_took_their_place(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.photos("a", 3)
    first = place.build("a").version
    place.photos("a", 4)
    second = place.build("a").version
    remove(place.catalogue, ["a"])
    place.photos("b", 1)
    place.build("b")
    age_all(place)
    both = files_of(place, "a", first) | files_of(place, "a", second)
    now = datetime.now(UTC)
    assert old_garbage(place, keep=1, days=1) == old_garbage(place, days=1) == set()
    assert old_garbage(place, days=1, now=now + timedelta(days=2)) >= both
    assert old_garbage(place, keep=1, days=3, now=now + timedelta(days=2)) == set()
    rules = RetentionOptions(keep=1, days=2)
    then = now + timedelta(days=3)
    items = list(garbage(place.catalogue, keep=1, days=2, now=then))
    (told,) = leaving_versions(place.catalogue, [items], rules, then)
    why = "a is not in the catalogue any more, and that is more than 2 days ago"
    assert [(v.name, v.commit, v.images, v.why) for v in told] == [
        ("a", 2, 4, why),
        ("a", 1, 3, why),
    ]
    assert [v.until for v in told] == [place.catalogue.commit(n).time for n in (3, 2)]
    day = place.catalogue.commit(3).time[:10]
    assert str(told[0]) == f"a@2: 4 images, current until {day}; {why}"
    assert collect(place.catalogue, keep=1, days=1) == (0, 0)
    assert collect(place.catalogue, keep=1)[0] == len(items)
    of_keep = garbage(place.catalogue, keep=1)
    assert leaving_versions(place.catalogue, [of_keep], rules, then) == [[]]


def test_the_log_is_read_once_for_all_that_leaves_and_is_not_held(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (2, 3):
        place.photos("a", count)
        place.build("a")
    for number in range(10):
        tag_version(place.catalogue, "a", f"v{number}")
    dna = [item for item in storage.walk(place.catalogue.root) if "/dna/" in item.uri]
    real, commits, most = place.catalogue.log, list[weakref.ref[Commit]](), [0]

    def log() -> Iterator[Commit]:
        assert not commits
        for commit in real():
            commits.append(weakref.ref(commit))
            most.append(sum(of() is not None for of in commits))
            yield commit

    monkeypatch.setattr(place.catalogue, "log", log)
    told = leaving_versions(place.catalogue, [dna, [], dna], RetentionOptions(keep=1))
    assert [[version.commit for version in of] for of in told] == [[1], [], [1]]
    assert len(commits) == 12
    assert max(most) < 6


def test_the_parts_of_a_version_that_leaves_are_not_told(place: Place) -> None:
    place.photos("a", 2)
    first = place.build("a").version
    part = replace(first, by="1", part_of="a", value="x")
    place.catalogue.put_version("a", replace(first, by="1"), first, parts={"a/x": part})
    uri = put(place, "dna", first.spec, "a/x", f"{first.dna}.parquet")
    remove(place.catalogue, ["a"])
    age_all(place)
    items = list(garbage(place.catalogue, keep=1))
    assert uri in {item.uri for item in items}
    (told,) = leaving_versions(place.catalogue, [items], RetentionOptions(keep=1))
    why = "a is not in the catalogue any more"
    assert [(v.name, v.commit, v.why) for v in told] == [("a", 2, why), ("a", 1, why)]


@pytest.mark.parametrize("days", [-1, float("nan")])
def test_a_negative_number_of_days_is_refused(place: Place, days: float) -> None:
    with pytest.raises(UsageError, match=f"days is {days}; it must be at least 0"):
        collect(place.catalogue, days=days)


def test_any_number_of_days_may_be_kept(place: Place) -> None:
    place.photos("a", 2)
    place.build("a")
    assert old_garbage(place, days=float("inf")) == set()


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_nothing_is_refused(place: Place, keep: int) -> None:
    with pytest.raises(UsageError, match=f"keep is {keep}"):
        collect(place.catalogue, keep=keep)


def test_gc_removes_nothing_if_a_kept_version_lacks_its_manifest(place: Place) -> None:
    """What the newest version needs is unknown then, so nothing is removed."""
    place.photos("a", 2)
    version = place.build("a").version
    storage.delete(place.catalogue.uri("manifests", version.spec, "a", version.manifest))
    storage.delete(storage.join(place.catalogue.work_uri("a", version.spec), "_plan"))
    age_all(place)
    before = everything(place)
    with pytest.raises(SourceError, match=version.manifest):
        collect(place.catalogue)
    assert everything(place) == before
