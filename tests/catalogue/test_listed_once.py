"""Tests that names are hashed, sorted and compared group by group as they would be all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.catalogue import listed_once
from pipeline.catalogue.listed_once import (
    are_among,
    hashes_of,
    require_each_once,
    sorted_hashes,
)
from pipeline.errors import ConservationError, CorruptFile
from pipeline.events import Event, Finished, Started, StepDone
from pipeline.sources import Entries, Entry, Manifest, Shard, entries_file
from tests.catalogue.test_tasks import Shuffled

NAMES = st.lists(
    st.tuples(st.text("ab/", max_size=4), st.text("ab", max_size=2)), min_size=1, max_size=60
)


def listing(names: Sequence[tuple[str, str]], shard_images: int, folder: str) -> Manifest:
    """Makes shards of names in the order that they are given in, each in a file of its own."""
    members = [Entry(f"s3://b/{uri}", member, 1, "e") for uri, member in names]
    with patch.object(entries_file, "FILE_ROWS", 1):
        starts = range(0, len(members), shard_images)
        shards = [Shard(0, 0, tuple(members[at : at + shard_images])) for at in starts]
        manifest = Manifest.of(shards, shard_images)
    for name in manifest.files:
        Entries(folder).store(name, bytes(manifest.entries.read(name)))
    return Manifest(manifest.heads, Entries(folder), shard_images)


def all_hashes(manifest: Manifest) -> NDArray[np.uint64]:
    rows = pa.concat_tables(rows for _, rows in manifest.tables())
    return hashes_of(rows["uri"], rows["member"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file://{tmp_path_factory.mktemp('entries')}"


@given(
    names=NAMES,
    shard_images=st.integers(1, 9),
    files=st.integers(1, 3),
    at_once=st.integers(1, 40),
    bits=st.sampled_from([2, 64]),
    seed=st.integers(0, 9),
)
def test_a_manifest_is_refused_if_and_only_if_a_name_is_there_twice(
    folder: str,
    names: list[tuple[str, str]],
    shard_images: int,
    files: int,
    at_once: int,
    bits: int,
    seed: int,
) -> None:
    """That is so whatever the tasks, their order and the groups, and if many names share a hash."""

    def few(uris: pa.ChunkedArray, members: pa.ChunkedArray) -> NDArray[np.uint64]:
        return hashes_of(uris, members) >> np.uint64(64 - bits) << np.uint64(64 - bits)

    manifest = listing(names, shard_images, folder)
    twice = {f"s3://b/{u}{'::' + m if m else ''}" for u, m in names if names.count((u, m)) > 1}
    with (
        patch.object(listed_once, "FILES_IN_A_TASK", files),
        patch.object(listed_once, "SORTED_AT_ONCE", at_once),
        patch.object(listed_once, "hashes_of", few),
    ):
        hashes = sorted_hashes(manifest, Shuffled(seed))
        shift = np.uint64(64 - bits)
        assert np.array_equal(hashes, np.sort(all_hashes(manifest) >> shift << shift))
        if not twice:
            require_each_once(manifest, hashes, Shuffled(seed))
            return
        with pytest.raises(ConservationError, match="lists a candidate twice") as refused:
            require_each_once(manifest, hashes, Shuffled(seed))
        assert str(refused.value).rpartition("twice: ")[2] == min(twice)


@given(some=st.sets(st.integers(0, 50)), others=st.lists(st.integers(0, 50)))
def test_hashes_are_found_among_sorted_ones(some: set[int], others: list[int]) -> None:
    found = are_among(np.array(others, np.uint64), np.array(sorted(some), np.uint64))
    assert found.tolist() == [number in some for number in others]


def test_a_name_is_its_uri_and_its_member() -> None:
    pairs = [("a", "b"), ("ab", ""), ("", "ab"), ("a", "")]
    uris, members = (pa.chunked_array([list(column)]) for column in zip(*pairs, strict=True))
    assert len(set(hashes_of(uris, members).tolist())) == 4
    empty = pa.chunked_array([pa.array([], pa.string())])
    assert len(hashes_of(empty, empty)) == 0


def test_tasks_tell_how_many_candidates_they_have_read(folder: str) -> None:
    manifest = listing([(str(number), "") for number in range(100)], 5, folder)
    mapper, told = Shuffled(), list[Event]()
    sorted_hashes(manifest, mapper, told.append)
    assert mapper.tasks == 3  # 20 files, 8 in a task
    assert told[0] == Started(100, 3, unit="candidates", step="tasks")
    assert sorted(e.units for e in told if isinstance(e, StepDone)) == [20, 40, 40]
    assert told[-1] == Finished()


def test_the_rows_of_each_shard_are_compared_with_the_manifest(folder: str) -> None:
    one, other = listing([("a", ""), ("b", "")], 1, folder).heads
    heads = (one, replace(other, digest="0" * 32))
    with pytest.raises(CorruptFile, match="shard 1 is not what its manifest describes"):
        sorted_hashes(Manifest(heads, Entries(folder), 1), Shuffled())
