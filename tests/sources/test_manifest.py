"""Tests that plans are deterministic, keep earlier shards, and spread images fairly."""

from __future__ import annotations

import hashlib
import io
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CorruptFile, SourceError, UsageError
from pipeline.sources import (
    Entry,
    Manifest,
    Shard,
    find_entries,
    plan,
    read_shard,
)
from pipeline.sources.sharding import default_shard_images
from pipeline.spec import FOLDS
from tests.support.builders import with_digest


def entries(count: int, first: int = 0, groups: int = 0) -> list[Entry]:
    return [
        Entry(f"s3://b/{i:05d}.jpg", "", 100 + i, f"etag{i}", f"g{i % groups}" if groups else "")
        for i in range(first, first + count)
    ]


def plan_in_memory(
    found: list[Entry], size: int | None = None, previous: list[tuple[int, list[Entry]]] = ()
) -> list[tuple[int, list[Entry]]]:
    """Is a second implementation of the rules: it returns fold and members of every shard."""
    size = size or default_shard_images(len(found))
    left = {(e.uri, e.member): e for e in found}
    shards, loads, known = [], [0] * FOLDS, {}
    for fold, old in previous:
        known |= {e.group: fold for e in old if e.group}
        stay = [left.pop(key) for e in old if (key := (e.uri, e.member)) in left]
        if stay:
            shards.append((fold, stay))
            loads[fold] += len(stay)
    groups: dict[str, list[Entry]] = {}
    for entry in left.values():
        groups.setdefault(entry.group or entry.uri, []).append(entry)
    folds: list[list[Entry]] = [[] for _ in range(FOLDS)]
    for name in sorted(groups, key=lambda n: (hashlib.sha256(n.encode()).hexdigest(), n)):
        fold = known.get(name, loads.index(min(loads)))
        folds[fold] += sorted(groups[name], key=lambda e: e.sort_key)
        loads[fold] += len(groups[name])
    for fold, of_fold in enumerate(folds):
        for start in range(0, len(of_fold), size):
            shards.append((fold, sorted(of_fold[start : start + size], key=lambda e: e.sort_key)))
    return shards


def shards_of(manifest: Manifest) -> list[tuple[int, list[Entry]]]:
    return [(shard.fold, list(shard.members)) for shard in manifest.shards]


def members(manifest: Manifest) -> list[Entry]:
    return [entry for shard in manifest.shards for entry in shard.members]


@settings(max_examples=15)
@given(st.integers(1, 400), st.one_of(st.none(), st.integers(1, 50)), st.integers(0, 5))
def test_every_entry_is_in_exactly_one_shard(count: int, size: int | None, groups: int) -> None:
    found = entries(count, groups=groups)
    manifest = plan(found, shard_images=size)
    assert sorted(members(manifest), key=lambda e: e.sort_key) == found
    assert manifest.candidates == count
    assert all(len(shard.members) <= manifest.shard_images for shard in manifest.shards)
    assert [shard.index for shard in manifest.shards] == list(range(len(manifest.shards)))


@settings(max_examples=15)
@given(st.integers(1, 300), st.randoms())
def test_the_order_of_listing_does_not_matter(count: int, rng: random.Random) -> None:
    found = entries(count)
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert plan(found).digest == plan(shuffled).digest


@settings(max_examples=15)
@given(st.integers(16, 2000))
def test_folds_are_of_nearly_equal_size(count: int) -> None:
    manifest = plan(entries(count))
    sizes = Counter()
    for shard in manifest.shards:
        sizes[shard.fold] += len(shard.members)
    assert len(sizes) == FOLDS
    assert max(sizes.values()) - min(sizes.values()) <= 1


@settings(max_examples=15)
@given(st.integers(1, 300), st.integers(1, 40))
def test_a_group_is_never_split_over_folds(count: int, groups: int) -> None:
    manifest = plan(entries(count, groups=groups), shard_images=3)
    folds: dict[str, set[int]] = {}
    for shard in manifest.shards:
        for entry in shard.members:
            folds.setdefault(entry.group, set()).add(shard.fold)
    assert all(len(of) == 1 for of in folds.values())


@settings(max_examples=15)
@given(st.integers(1, 200), st.integers(0, 100), st.integers(0, 50), st.integers(0, 50))
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


def test_planning_the_same_candidates_again_changes_nothing() -> None:
    first = plan(entries(100))
    assert plan(entries(100), previous=first).digest == first.digest


@settings(max_examples=15)
@given(
    st.integers(1, 300), st.one_of(st.none(), st.integers(1, 50)), st.integers(0, 40), st.randoms()
)
@pytest.mark.soak
def test_a_plan_equals_that_of_a_second_implementation(
    count: int, size: int | None, groups: int, rng: random.Random
) -> None:
    found = entries(count, groups=groups)
    rng.shuffle(found)
    first = plan(found, shard_images=size)
    assert shards_of(first) == plan_in_memory(found, size)
    later = rng.sample(found, max(1, count // 2)) + entries(count, first=1000, groups=groups)
    later[0] = replace(later[0], identity="another")
    second = plan(later, shard_images=size, previous=first)
    assert shards_of(second) == plan_in_memory(later, size, plan_in_memory(found, size))


def in_archives(sizes: list[int]) -> list[Entry]:
    return [
        Entry(f"s3://b/{a}.tar", f"{i:05d}.jpg", 9, "etag", "", 1000 - i, "tar")
        for a, size in enumerate(sizes)
        for i in range(size)
    ]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(0, 30))
def test_members_of_an_archive_are_split_into_contiguous_runs(
    sizes: list[int], single: int
) -> None:
    found = in_archives(sizes) + entries(single)
    manifest = plan(found)
    assert {e.sort_key: e for e in members(manifest)} == {e.sort_key: e for e in found}
    assert len(members(manifest)) == len(found)
    for shard in manifest.shards:
        assert list(shard.members) == sorted(shard.members, key=lambda e: e.sort_key)
    loads = Counter()
    for shard in manifest.shards:
        loads[shard.fold] += len(shard.members)
    if len(found) >= 512:
        assert len(loads) == FOLDS
    runs = sum(
        1
        for shard in manifest.shards
        for one, other in pairwise([None, *shard.members])
        if other.access and (one is None or other.position - one.position != 1)
    )
    if single == 0:  # a run is cut by the end of a shard at most
        length = max(1, -(-len(found) // (2 * FOLDS)))
        assert runs <= sum(-(-size // length) for size in sizes) + len(manifest.shards)


def test_one_archive_runs_in_parallel_and_has_folds() -> None:
    manifest = plan(in_archives([10_000]))
    assert len({shard.fold for shard in manifest.shards}) == FOLDS
    sizes = [len(shard.members) for shard in manifest.shards]
    assert len(sizes) == 32
    assert max(sizes) - min(sizes) <= 320
    again = plan([replace(e, identity="new") for e in in_archives([10_300])], previous=manifest)
    assert [s.fold for s in again.shards[:32]] == [s.fold for s in manifest.shards]


def test_a_candidate_with_two_groups_is_refused_by_name() -> None:
    one = Entry("s3://b/x.jpg", "", 1, "e", "left")
    with pytest.raises(SourceError, match=r"x\.jpg is listed twice, with group 'left' and 'right'"):
        plan([one, replace(one, group="right")])
    assert plan([one, one]).duplicates == 1


def test_no_candidates_and_options_out_of_range_are_refused() -> None:
    with pytest.raises(SourceError):
        plan([])
    with pytest.raises(UsageError, match="shard_images is 0"):
        plan(entries(3), shard_images=0)
    with pytest.raises(UsageError, match="limit is 0"):
        plan(entries(3), limit=0)


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


def test_a_sample_is_the_same_in_any_order_and_grows_by_adding() -> None:
    found = entries(100)
    few, more = (set(members(plan(of, limit=n))) for of, n in ((found, 10), (found[::-1], 20)))
    assert len(few) == 10
    assert few < more
    assert few != set(found[:10])


def test_a_plan_and_a_single_shard_are_read_from_the_file() -> None:
    manifest = plan(entries(50, groups=3), shard_images=4)
    data = bytes(manifest.data)
    again = Manifest.decode(data, "m")
    assert (again.heads, again.digest) == (manifest.heads, manifest.digest)
    assert list(again.shards) == list(manifest.shards)
    assert read_shard(io.BytesIO(data), 2, "m") == manifest.shards[2]
    with pytest.raises(CorruptFile, match="shard 99"):
        read_shard(io.BytesIO(data), 99, "m")
    with pytest.raises(CorruptFile, match="some/manifest"):
        Manifest.decode(data[:-10], "some/manifest")


def test_candidates_are_found_by_name_a_shard_at_a_time() -> None:
    packed = [Entry("s3://b/x.tar", f"m{k}", 9, "e", "", k, "tar") for k in range(6)]
    found = [*entries(40), *packed]
    manifest = plan(found, shard_images=4)
    data = io.BytesIO(bytes(manifest.data))
    by_name = {(e.uri, e.member): e for shard in manifest.shards for e in shard.members}
    asked: list[int] = []

    def going() -> bool:
        asked.append(1)
        return True

    wanted = {(e.uri, e.member) for e in (found[3], found[39], packed[4])}
    told = find_entries(data, {*wanted, ("s3://b/x.tar", "none"), ("no", "")}, "m", going)
    assert told == {key: by_name[key] for key in wanted}
    assert len(asked) == len(manifest.shards)
    asked.clear()
    first = manifest.shards[0].members[0]
    only = {(first.uri, first.member)}
    assert find_entries(data, only, "m", going).keys() == only
    assert len(asked) == 1
    assert find_entries(data, only, "m", lambda: False) == {}
    with pytest.raises(CorruptFile, match="some/manifest"):
        find_entries(io.BytesIO(b"none"), only, "some/manifest", going)


def test_a_manifest_whose_rows_were_changed_is_refused() -> None:
    manifest = plan(entries(20))
    first = manifest.shards[0]
    fewer = Shard(first.index, first.fold, first.members[:-1])
    lying = Manifest.of((fewer, *manifest.shards[1:]), manifest.shard_images)
    with pytest.raises(CorruptFile, match=manifest.digest):
        Manifest.decode(with_digest(lying, manifest.digest), "m")
