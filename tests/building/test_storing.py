"""Files of a version: bytes that a commit states are kept, and whatever is stored is young."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.building.storing import store_manifest, store_version
from pipeline.catalogue import Catalogue
from pipeline.sources import Entries, entries_file, plan
from pipeline.storage.local import LocalStore
from tests.golden.handmade import SPEC, commit_dataset, entries, hand_made


@pytest.fixture
def place(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path))


def make_old(uri: str) -> None:
    then = (datetime.now(UTC) - timedelta(days=30)).timestamp()
    os.utime(storage.local_path(uri), (then, then))


def is_young(uri: str) -> bool:
    modified = storage.info(uri).modified
    assert modified is not None
    return datetime.now(UTC) - modified < timedelta(days=1)


@pytest.mark.parametrize("loses_answers", [False, True])
def test_a_file_that_is_stored_again_is_young(
    place: Catalogue, loses_answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection that listed it when it was old leaves it then.

    Where answers may be lost, as on S3, equal bytes that are there count as written now.
    """
    monkeypatch.setattr(LocalStore, "loses_answers", loses_answers)
    uri = place.uri("dna", "s", "a", "d")
    for data in (b"first", b"first", b"other"):
        assert store_version(place, "a", "s", "d", {"dna": data}) == {"dna": data}
        assert (storage.read(uri), is_young(uri)) == (data, True)
        make_old(uri)
        assert not is_young(uri)


def committed(place: Catalogue, count: int) -> tuple[str, bytes]:
    """Commits a version, and returns the digest of its DNA and the bytes of that file."""
    manifest = plan(entries("a", count))
    version = commit_dataset(place, "a", manifest, [hand_made(s) for s in manifest.shards])
    return version.dna, storage.read(place.uri("dna", SPEC.digest, "a", version.dna))


def test_bytes_that_a_commit_states_are_kept_and_are_young(place: Catalogue) -> None:
    """Another release of a library wrote the same numbers in other bytes."""
    versions = [committed(place, count) for count in (3, 4)]
    for dna, data in versions:
        uri = place.uri("dna", SPEC.digest, "a", dna)
        make_old(uri)
        stored = store_version(place, "a", SPEC.digest, dna, {"dna": b"the same numbers"})
        assert bytes(stored["dna"]) == storage.read(uri) == data
        assert is_young(uri)


def test_bytes_that_no_commit_states_are_replaced(place: Catalogue) -> None:
    dna, data = committed(place, 3)
    for name, there in (("a", b"damaged"), ("unknown", data)):
        uri = place.uri("dna", SPEC.digest, name, dna)
        storage.replace(uri, there)
        store_version(place, name, SPEC.digest, dna, {"dna": b"the same numbers"})
        assert storage.read(uri) == b"the same numbers"


def test_a_sound_manifest_is_kept_and_is_young_and_another_is_replaced(place: Catalogue) -> None:
    folder = Entries(place.entries_uri)
    manifest, other = (plan(entries("a", count), entries=folder) for count in (3, 4))
    uri = place.uri("manifests", "s", "a", manifest.digest)
    data = bytes(manifest.data)
    for there in (data, data[:-9], other.data):
        storage.replace(uri, there)
        make_old(uri)
        assert bytes(store_manifest(uri, manifest)) == data
        assert (storage.read(uri), is_young(uri)) == (data, True)


@pytest.mark.parametrize("whole", [True, False])
def test_a_manifest_of_other_files_is_kept_with_them_if_all_are_there(
    place: Catalogue, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release of a library wrote the same candidates in other bytes."""
    candidates = entries("a", 9)
    folder = Entries(place.entries_uri)
    with monkeypatch.context() as patch:
        patch.setattr(entries_file, "FILE_ROWS", 2)
        theirs = plan(candidates, entries=folder)
    ours = plan(candidates, entries=folder)
    assert ours.digest == theirs.digest
    assert set(ours.files).isdisjoint(theirs.files)
    uri = place.uri("manifests", "s", "a", ours.digest)
    storage.create(uri, theirs.data)
    if not whole:
        storage.delete(folder.uri(theirs.files[1]))
    for name in theirs.files[2:]:
        make_old(folder.uri(name))
    stored = bytes(store_manifest(uri, ours))
    assert stored == storage.read(uri) == (theirs.data if whole else ours.data)
    assert all(is_young(folder.uri(name)) for name in theirs.files[2:]) == whole
