"""Entries files, which versions share, stay as long as something needs them, whatever their age."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.catalogue import Catalogue, collect, remove, roll_back, verify
from pipeline.catalogue.commit import Version
from pipeline.counting import ShardJob, ShardReceipt
from pipeline.errors import CorruptFile, TransientError
from pipeline.sources import entries_file
from tests.golden.handmade import NETWORK, HandMade, Original, Place

DAY = 86_400.0


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
        )
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, network: None) -> Original:
    def fill(place: Place) -> None:
        place.photos("a", 3)
        place.build("a")

    return Original(tmp_path_factory.mktemp("original"), fill)


@pytest.fixture
def place(original: Original) -> Place:
    """Returns a place whose dataset is built: building it again finds the same version."""
    return original.again()


def make_old(uris: Iterable[str], days: float = 30) -> None:
    then = time.time() - days * DAY
    for uri in uris:
        os.utime(storage.local_path(uri), (then, then))


def age_all(place: Place) -> None:
    make_old(item.uri for item in storage.walk(place.catalogue.root) if "/_log/" not in item.uri)


def entries_of(place: Place, version: Version) -> set[str]:
    manifest = place.catalogue.manifest("a", version)
    return set(map(manifest.entries.uri, manifest.files))


def there(uris: Iterable[str]) -> bool:
    return all(map(storage.exists, uris))


def replaced(place: Place) -> Version:
    """Builds other images in the place of all."""
    for path in (place.folder / "a").iterdir():
        path.write_bytes(b"other " + path.name.encode())
    return place.build("a").version


def test_entries_stay_with_a_manifest_that_is_too_young_to_go(place: Place) -> None:
    first = place.build("a").version
    make_old(entries_of(place, first), 22)
    place.photos("a", 5)
    second = place.build("a").version
    assert entries_of(place, first) < entries_of(place, second)
    make_old(entries_of(place, first), 22)
    third = replaced(place)
    assert entries_of(place, third).isdisjoint(entries_of(place, second))
    collect(place.catalogue, keep=1)
    assert there(entries_of(place, second))
    roll_back(place.catalogue, "a", 2)
    assert all(finding.ok for finding in verify(place.catalogue, ["a"]))
    age_all(place)
    last = replaced(place)
    shared = entries_of(place, second)
    age_all(place)
    collect(place.catalogue, keep=1)
    assert there(entries_of(place, last))
    assert not any(map(storage.exists, shared))


def test_a_version_that_comes_back_has_young_entries(place: Place) -> None:
    first = place.build("a").version
    entries = entries_of(place, first)
    replaced(place)
    age_all(place)
    roll_back(place.catalogue, "a", 1)
    ages = [time.time() - os.stat(storage.local_path(uri)).st_mtime for uri in entries]
    assert max(ages) < DAY


def test_a_version_without_its_entries_does_not_come_back(place: Place) -> None:
    first = place.build("a").version
    (lost,) = entries_of(place, first)
    replaced(place)
    storage.delete(lost)
    with pytest.raises(CorruptFile, match="has removed its entries"):
        roll_back(place.catalogue, "a", 1)


def test_a_dataset_that_is_built_again_keeps_its_old_entries(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection runs just before the plan is noted, when nothing names them."""
    first = place.build("a").version
    remove(place.catalogue, ["a"])
    age_all(place)
    real = Catalogue.note_plan

    def collect_first(catalogue: Catalogue, *arguments: Any) -> None:
        collect(catalogue, keep=1)
        real(catalogue, *arguments)

    monkeypatch.setattr(Catalogue, "note_plan", collect_first)
    again = place.build("a").version
    assert again.manifest == first.manifest
    assert there(entries_of(place, again))
    assert all(finding.ok for finding in verify(place.catalogue, ["a"]))


class Removing(HandMade):
    """Counts shards, and removes the entries then."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        yield from super().run_shards(work)
        storage.delete_tree(self._folder)


def test_a_version_whose_entries_are_gone_is_not_committed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.photos("a", 3)
    with pytest.raises(TransientError, match="was removed while the build ran"):
        place.build("a", Removing(place.catalogue.entries_uri))
    assert place.catalogue.head().number == 0
    assert place.build("a").counted_shards == 0
    assert all(finding.ok for finding in verify(place.catalogue, ["a"]))


@pytest.mark.parametrize("rows", [entries_file.FILE_ROWS, 2])
def test_damaged_entries_are_named_and_made_again_once_they_are_deleted(
    place: Place, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Though another release may write them in other bytes, under another name."""
    version = place.build("a").version
    (uri,) = entries_of(place, version)
    storage.replace(uri, storage.read(uri)[:-20])
    with pytest.raises(CorruptFile, match="sha256"):
        place.build("a")
    storage.delete(uri)
    monkeypatch.setattr(entries_file, "FILE_ROWS", rows)
    assert place.build("a").counted_shards == 0
    assert all(finding.ok for finding in verify(place.catalogue, ["a"]))
    assert there(entries_of(place, place.catalogue.find("a")))


def test_a_store_that_does_not_answer_is_not_an_unforeseen_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB would keep the text of it alone."""
    place.build("a")
    place.photos("a", 4)

    def away(self: object, name: str) -> bytes:
        raise TransientError("the store did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(entries_file.Entries, "read", away)
        with pytest.raises(TransientError, match="did not answer"):
            place.build("a")
    assert place.build("a").version.images + place.build("a").version.failed == 4


def test_shards_whose_entries_are_lost_are_planned_anew_and_the_others_stay(place: Place) -> None:
    first = place.build("a").version
    place.photos("a", 5)
    second = place.build("a").version
    (lost,) = entries_of(place, second) - entries_of(place, first)
    storage.delete(lost)
    third = place.build("a").version
    assert third.images + third.failed == 5
    kept = {head.digest for head in place.catalogue.manifest("a", first).heads}
    assert kept <= {head.digest for head in place.catalogue.manifest("a", third).heads}
    assert all(finding.ok for finding in verify(place.catalogue, ["a"]))
