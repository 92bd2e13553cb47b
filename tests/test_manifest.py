"""Plans: deterministic, additive, fair, and true to their digest."""

from __future__ import annotations

import io
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CorruptFile, SourceError, UsageError
from pipeline.manifest import FOLDS, Entry, Manifest, Shard, grouping, plan, read_shard, sample


def entries(count: int, first: int = 0, groups: int = 0) -> list[Entry]:
    return [
        Entry(f"s3://b/{i:05d}.jpg", "", 100 + i, f"etag{i}", f"g{i % groups}" if groups else "")
        for i in range(first, first + count)
    ]


def members(manifest: Manifest) -> list[Entry]:
    return [entry for shard in manifest.shards for entry in shard.members]


@settings(deadline=None)
@given(st.integers(1, 400), st.one_of(st.none(), st.integers(1, 50)), st.integers(0, 5))
def test_every_entry_is_in_exactly_one_shard(count: int, size: int | None, groups: int) -> None:
    found = entries(count, groups=groups)
    manifest = plan(found, shard_images=size)
    assert sorted(members(manifest), key=lambda e: e.place) == found
    assert manifest.candidates == count
    assert all(len(shard.members) <= manifest.shard_images for shard in manifest.shards)
    assert [shard.index for shard in manifest.shards] == list(range(len(manifest.shards)))


@given(st.integers(1, 300), st.randoms())
def test_the_order_of_listing_does_not_matter(count: int, rng: random.Random) -> None:
    found = entries(count)
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert plan(found).digest == plan(shuffled).digest


@given(st.integers(16, 2000))
@settings(deadline=None, max_examples=25)
def test_folds_are_of_nearly_equal_size(count: int) -> None:
    manifest = plan(entries(count))
    sizes = Counter()
    for shard in manifest.shards:
        sizes[shard.fold] += len(shard.members)
    assert len(sizes) == FOLDS
    assert max(sizes.values()) - min(sizes.values()) <= 1


@given(st.integers(1, 300), st.integers(1, 40))
@settings(deadline=None)
def test_a_group_is_never_split_over_folds(count: int, groups: int) -> None:
    manifest = plan(entries(count, groups=groups), shard_images=3)
    folds: dict[str, set[int]] = {}
    for shard in manifest.shards:
        for entry in shard.members:
            folds.setdefault(entry.group, set()).add(shard.fold)
    assert all(len(of) == 1 for of in folds.values())


@given(st.integers(1, 200), st.integers(0, 100), st.integers(0, 50), st.integers(0, 50))
@settings(deadline=None)
def test_a_later_listing_keeps_what_did_not_change(
    count: int, added: int, removed: int, changed: int
) -> None:
    before = entries(count, groups=7)
    first = plan(before, shard_images=5)
    rng = random.Random(count)
    gone = set(rng.sample(range(count), min(removed, count)))
    new_identity = set(rng.sample(range(count), min(changed, count))) - gone
    after = [
        Entry(e.uri, e.member, e.size, e.identity + "'" * (i in new_identity), e.group)
        for i, e in enumerate(before)
        if i not in gone
    ] + entries(added, first=count, groups=7)
    if not after:
        with pytest.raises(SourceError):
            plan(after, previous=first)
        return
    second = plan(after, shard_images=5, previous=first)
    assert {*members(second)} == {*after}
    touched = {before[i].uri for i in gone | new_identity}
    kept = {s.digest for s in first.shards if not any(e.uri in touched for e in s.members)}
    assert kept <= {shard.digest for shard in second.shards}
    fold_of = {entry.group: shard.fold for shard in first.shards for entry in shard.members}
    for shard in second.shards:
        for entry in shard.members:
            assert fold_of.get(entry.group, shard.fold) == shard.fold


def test_planning_again_from_one_s_own_plan_changes_nothing() -> None:
    first = plan(entries(100))
    assert plan(entries(100), previous=first).digest == first.digest


def test_nothing_and_nonsense_are_refused() -> None:
    with pytest.raises(SourceError):
        plan([])
    with pytest.raises(UsageError, match="shard_images is 0"):
        plan(entries(3), shard_images=0)
    with pytest.raises(UsageError, match="limit is 0"):
        sample(entries(3), 0)
    with pytest.raises(UsageError, match="'video'"):
        grouping("video", "s3://b")


def test_keys_depend_on_everything_that_decides_a_partial() -> None:
    shard = plan(entries(3)).shards[0]
    other = plan([Entry("s3://b/00000.jpg", "", 100, "changed")]).shards[0]
    keys = {
        shard.key("spec"),
        shard.key("other spec"),
        shard.key("spec", ("histogram",)),
        other.key("spec"),
        plan(entries(1)).shards[0].key("spec"),
    }
    assert len(keys) == 5


def test_groups_are_leading_folders() -> None:
    of = grouping("1", "s3://b/top")
    assert of("s3://b/top/video1/a/frame.jpg") == of("s3://b/top/video1/frame.jpg")
    assert of("s3://b/top/video1/a.jpg") != of("s3://b/top/video2/a.jpg")


def test_a_sample_is_the_same_in_any_order_and_grows_by_adding() -> None:
    found = entries(100)
    few, more = sample(found, 10), sample(reversed(found), 20)
    assert set(few) < set(more)
    assert [e.uri for e in few] != [e.uri for e in found[:10]]


def test_the_file_gives_back_the_plan_and_one_shard_alone() -> None:
    manifest = plan(entries(50, groups=3), shard_images=4)
    data = manifest.encode()
    again = Manifest.decode(data, "m")
    assert (again.shards, again.digest) == (manifest.shards, manifest.digest)
    assert read_shard(io.BytesIO(data), 2, "m") == manifest.shards[2]
    with pytest.raises(CorruptFile, match="shard 99"):
        read_shard(io.BytesIO(data), 99, "m")
    with pytest.raises(CorruptFile, match="some/manifest"):
        Manifest.decode(data[:-10], "some/manifest")


def test_a_manifest_whose_rows_were_changed_is_refused() -> None:
    manifest = plan(entries(20))
    first = manifest.shards[0]
    fewer = Shard(first.index, first.fold, first.members[:-1])
    lying = Manifest((fewer, *manifest.shards[1:]), manifest.shard_images)
    lying.__dict__["digest"] = manifest.digest
    with pytest.raises(CorruptFile, match=manifest.digest):
        Manifest.decode(lying.encode(), "m")
