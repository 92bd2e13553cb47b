"""Tests that plans are deterministic, keep earlier shards, and spread images fairly."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from cProfile import Profile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.dna import SealedFile
from pipeline.errors import ConservationError, CorruptFile, SourceError, UsageError
from pipeline.sources import (
    MANIFEST,
    Entries,
    Entry,
    Listing,
    Manifest,
    Shard,
    blocks,
    entries_file,
    head_at,
    pairs_of,
    plan,
    shard_merging,
    sharding,
)
from pipeline.sources.entries_file import ENTRIES
from pipeline.sources.entry import ShardHead
from pipeline.sources.fold_assignment import HASHED_GROUPS
from pipeline.sources.listing import ListingWriter
from pipeline.sources.manifest_file import HEADS_A_GROUP
from pipeline.sources.pair_names import BY_STEM, Pairing
from pipeline.sources.shard_sizes import SHARD_MULTIPLE, default_shard_images
from pipeline.sources.table_digest import table_digest
from pipeline.spec import FOLDS
from tests.support.builders import all_shards, with_digest


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
        groups.setdefault(named(entry), []).append(entry)
    folds: list[list[Entry]] = [[] for _ in range(FOLDS)]
    many = len({named(entry) for entry in found}) >= HASHED_GROUPS
    to_deal = len(groups.keys() - known.keys())
    for name in sorted(groups, key=lambda n: (hashlib.sha256(n.encode()).hexdigest(), n)):
        fold = known.get(name)
        if fold is None:
            number = number_of(name)
            order = [(number + at * (number // 16 % 16 | 1)) % FOLDS for at in range(FOLDS)]
            most = len(found) // FOLDS - len(groups[name]) / 2
            if to_deal <= loads.count(0):
                most = 0
            to_deal -= 1
            room = [f for f in order if not loads[f] or loads[f] <= most]
            fold = order[0] if many else (*room, loads.index(min(loads)))[0]
        folds[fold] += sorted(groups[name], key=lambda e: e.sort_key)
        loads[fold] += len(groups[name])
    for fold, of_fold in enumerate(folds):
        of_fold.sort(key=lambda e: e.sort_key)  # shards are cut in the order of names
        shards += [(fold, of_fold[at : at + size]) for at in range(0, len(of_fold), size)]
    return shards


def named(entry: Entry) -> str:
    """What is not to be split: a group, or an image by its uri without a suffix."""
    return entry.group or re.sub(r"\.jpg$", "", entry.uri)


def number_of(name: str) -> int:
    """The number that md5_number_lower makes of a name."""
    return int.from_bytes(hashlib.md5(name.encode()).digest()[8:], "little")


def shards_of(manifest: Manifest) -> list[tuple[int, list[Entry]]]:
    return [(shard.fold, list(shard.members)) for shard in all_shards(manifest)]


def members(manifest: Manifest) -> list[Entry]:
    return [entry for shard in all_shards(manifest) for entry in shard.members]


@settings(max_examples=10)
@given(st.integers(1, 400), st.one_of(st.none(), st.integers(1, 50)), st.integers(0, 5))
def test_every_entry_is_in_exactly_one_shard(count: int, size: int | None, groups: int) -> None:
    found = entries(count, groups=groups)
    manifest = plan(found, shard_images=size)
    shards = all_shards(manifest)
    held = [entry for shard in shards for entry in shard.members]
    assert sorted(held, key=lambda e: e.sort_key) == found
    assert manifest.candidates == count
    assert all(len(shard.members) <= manifest.shard_images for shard in shards)
    assert [shard.index for shard in shards] == list(range(len(manifest.shards)))


@settings(max_examples=6)
@given(st.integers(1, 300), st.randoms())
def test_the_order_of_listing_does_not_matter(count: int, rng: random.Random) -> None:
    found = entries(count)
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert plan(found).digest == plan(shuffled).digest


@settings(max_examples=10)
@given(st.integers(16, 1000))
def test_folds_are_of_nearly_equal_size(count: int) -> None:
    sizes = Counter(fold_of(plan(entries(count))).values())
    assert len(sizes) == FOLDS
    differ = max(sizes.values()) - min(sizes.values())
    assert differ <= (1 if count < HASHED_GROUPS else 8 * (count / FOLDS) ** 0.5)


def fold_of(manifest: Manifest, root: str = "s3://b") -> dict[str, int]:
    """The fold of each image, by its path below a root, without a suffix."""
    return {
        re.sub(r"\.(jpg|png)$", "", entry.uri.removeprefix(root) + entry.member): shard.fold
        for shard in all_shards(manifest)
        for entry in shard.members
    }


def copies(found: list[Entry], root: str, suffix: str = ".jpg") -> Listing:
    """Altered copies of the images of s3://b, below another root."""
    moved = (
        replace(
            entry,
            uri=entry.uri.replace("s3://b", root).replace(".jpg", suffix),
            group=entry.group.replace("s3://b", root),
            identity="altered",
        )
        for entry in found
    )
    return replace(Listing.of(moved, root), pairing=Pairing(root))


@pytest.mark.parametrize("count", [1, 100, 500])
@pytest.mark.parametrize("kind", ["single", "group", "folder", "tar"])
@pytest.mark.parametrize("many", [2**20, 200])
def test_an_image_and_its_altered_copy_are_in_the_same_fold(
    count: int, kind: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MANY", many)
    found = entries(count, groups=37 if kind == "group" else 0)
    if kind == "folder":
        found = [replace(e, group=f"s3://b/{i % 41}") for i, e in enumerate(found)]
    if kind == "tar":
        found = [
            replace(e, uri=f"s3://b/{i % 2}.tar", member=f"{i:04}.jpg", position=i, access="tar")
            for i, e in enumerate(found)
        ]
    first = plan(copies(found, "s3://b"))
    second = plan(copies(found[::-1], "s3://other/it's/dark", ".png"))
    assert fold_of(second, "s3://other/it's/dark") == fold_of(first)


@pytest.mark.parametrize(("count", "least"), [(40, 0.6), (100, 0.75), (HASHED_GROUPS, 1), (600, 1)])
def test_images_that_two_datasets_share_are_in_the_same_fold(count: int, least: float) -> None:
    """In small datasets some are not, as folds are of equal size there."""
    one, other = entries(count), entries(count, first=count // 10)
    found = fold_of(plan(copies(one, "s3://b"))), fold_of(plan(copies(other, "s3://c")), "s3://c")
    shared = found[0].keys() & found[1].keys()
    assert len(shared) == count - count // 10
    assert sum(found[0][name] == found[1][name] for name in shared) >= least * len(shared)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 20))
@example([*[9] * 6, *[1] * 10], 54)
def test_few_groups_have_as_many_folds_as_can_be(sizes: list[int], first: int) -> None:
    """So have those that are added to others."""
    found = [
        Entry(f"s3://b/{group}/{i}.jpg", "", 1, "e", group=f"s3://b/{group}")
        for group, size in enumerate(sizes)
        for i in range(size)
    ]
    before = plan(found[:first])
    most = min(FOLDS, len(sizes))
    assert len(plan(found).folds()) == most
    if len(sizes) - len({entry.group for entry in found[:first]}) <= FOLDS - len(before.folds()):
        assert len(plan(found, previous=before).folds()) == most


@pytest.mark.parametrize("count", [60, 400])
def test_images_are_paired_by_the_names_of_their_files(count: int) -> None:
    """They may lie in a folder and in one within it, or in an archive."""
    found = entries(count)
    deep = [
        replace(e, uri=e.uri.replace("s3://b/", f"s3://b/{i % 7}/")) for i, e in enumerate(found)
    ]
    packed = [
        replace(e, uri="s3://t/x.tar", member=f"some/{e.uri[7:]}", position=i, access="tar")
        for i, e in enumerate(found)
    ]
    plans = [
        plan(replace(Listing.of(of), pairing=Pairing(root, BY_STEM)))
        for of, root in ((found, "s3://b"), (deep, "s3://b"), (packed, "s3://t"))
    ]
    folds = [
        {e.size: shard.fold for shard in all_shards(made) for e in shard.members} for made in plans
    ]
    assert folds[0] == folds[1] == folds[2]
    first, *others = (pairs_of(made) for made in plans)
    assert first is not None
    assert all(other is not None and first.shared(other) == (1, 1) for other in others)
    by_path = plan(replace(Listing.of(deep), pairing=Pairing("s3://b")))
    assert first.shared(pairs_of(by_path) or first) == (0, 0)


def test_images_are_paired_by_a_column_and_those_without_a_value_by_their_path() -> None:
    def planned(root: str, shift: int) -> Manifest:
        writer = ListingWriter(["scene"])
        for i in range(300):
            scene = f"scene {i}" if i < 200 else ("" if i < 250 else None)
            writer.add(f"{root}/{i + shift * (i < 200)}.jpg", "", 1, "e", labels=[scene])
        return plan(replace(writer.listing(root), pairing=Pairing(root, "scene")))

    one, other = pairs_of(planned("s3://b", 0)), pairs_of(planned("s3://c", 1000))
    assert one is not None
    assert other is not None
    assert one.shared(other) == (1, 1)


@pytest.mark.parametrize("by", [None, "place"])
def test_few_images_of_a_fold_are_sorted_as_many_are(
    by: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB sorts them where they are too many to be sorted in memory."""
    writer = ListingWriter(["place"])
    for i in range(150):
        member = (f"{i % 7}/{i}.jpg", "", 200 - i, "tar") if i % 3 else ("", "", 0, "")
        name, group, position, access = member
        uri = f"s3://b/{'é' if i % 2 else 'Z'}{i if not access else i % 2}"
        labels = [("", None, "here", "Über")[i % 4]]
        writer.add(uri, name, i, "e", group, position, access, labels=labels)
    listing = writer.listing("s3://b")
    few = plan(listing, shard_images=3, by=by)
    monkeypatch.setattr(sharding, "BATCH_ROWS", 1)
    many = plan(listing, shard_images=3, by=by)
    assert shards_of(many) == shards_of(few)
    assert many.data == few.data


def test_a_manifest_of_a_file_says_how_its_images_are_named(folder: Entries) -> None:
    made = plan(replace(Listing.of(entries(20)), pairing=Pairing("s3://b")), entries=folder)
    read = Manifest.decode(made.data, "m", folder)
    assert read.pairing == Pairing("s3://b")
    one, other = pairs_of(made), pairs_of(read)
    assert one is not None
    assert other is not None
    assert one.to_json() == other.to_json()


def test_a_manifest_that_does_not_say_it_has_no_pairs(folder: Entries) -> None:
    made = replace(plan(entries(20), entries=folder), pairing=None)
    assert pairs_of(Manifest.decode(made.data, "m", folder)) is None


def test_the_versions_of_a_dataset_have_the_images_that_they_share_in_one_fold() -> None:
    first = plan(entries(500))
    later = plan(entries(400, first=100), previous=first)
    one, other = pairs_of(first), pairs_of(later)
    assert one is not None
    assert other is not None
    assert one.shared(other) == (1, 0.8)
    parts = [pairs_of(later.select(range(at, len(later.heads), 2))) for at in (0, 1)]
    assert sum(len(part.numbers) for part in parts if part) == len(other.numbers)


def test_sampling_names_takes_no_longer_for_each_of_more_shards() -> None:
    def calls(shards: int) -> int:
        manifest = plan(entries(shards), shard_images=1)
        with Profile() as profile:
            pairs_of(manifest)
        return sum(each.callcount for each in profile.getstats())

    calls(1)  # imports
    assert calls(400) < 4.4 * calls(100)


def test_a_suffix_that_may_be_a_number_names_another_image() -> None:
    frames = [Entry(f"s3://b/frame.{i:04}", "", 1, "e") for i in range(500)]
    assert set(plan(frames).folds()) == set(range(FOLDS))


def test_later_images_of_a_small_dataset_fill_its_smaller_folds() -> None:
    first = plan(entries(40))
    sizes = Counter(fold_of(plan(entries(100), previous=first)).values())
    assert max(sizes.values()) - min(sizes.values()) <= 1


@settings(max_examples=6)
@given(st.integers(1, 300), st.integers(1, 40))
def test_a_group_is_never_split_over_folds(count: int, groups: int) -> None:
    manifest = plan(entries(count, groups=groups), shard_images=3)
    folds: dict[str, set[int]] = {}
    for shard in all_shards(manifest):
        for entry in shard.members:
            folds.setdefault(entry.group, set()).add(shard.fold)
    assert all(len(of) == 1 for of in folds.values())


@settings(max_examples=10)
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
    touched = {before[i].uri for i in gone | new_identity}
    earlier, later = all_shards(first), all_shards(second)
    assert {entry for shard in later for entry in shard.members} == {*after}
    kept = {s.digest for s in earlier if not any(e.uri in touched for e in s.members)}
    assert kept <= {shard.digest for shard in later}
    fold_of = {entry.group: shard.fold for shard in earlier for entry in shard.members}
    for shard in later:
        for entry in shard.members:
            assert fold_of.get(entry.group, shard.fold) == shard.fold


def test_planning_the_same_candidates_again_changes_nothing() -> None:
    first = plan(entries(100))
    assert plan(entries(100), previous=first).digest == first.digest


@settings(max_examples=10)
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


@settings(max_examples=10)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(0, 30))
def test_members_of_an_archive_are_split_into_contiguous_runs(
    sizes: list[int], single: int
) -> None:
    found = in_archives(sizes) + entries(single)
    manifest = plan(found)
    shards = all_shards(manifest)
    held = [entry for shard in shards for entry in shard.members]
    assert {e.sort_key: e for e in held} == {e.sort_key: e for e in found}
    assert len(held) == len(found)
    for shard in shards:
        assert list(shard.members) == sorted(shard.members, key=lambda e: e.sort_key)
    loads = Counter()
    for shard in shards:
        loads[shard.fold] += len(shard.members)
    if len(found) >= 512:
        assert len(loads) == FOLDS
    runs = sum(
        1
        for shard in shards
        for one, other in pairwise([None, *shard.members])
        if other.access and (one is None or other.position - one.position != 1)
    )
    if single == 0:  # a run is cut by the end of a shard at most
        length = max(1, -(-len(found) // (2 * FOLDS)))
        assert runs <= sum(-(-size // length) for size in sizes) + len(manifest.shards)


def test_one_archive_runs_in_parallel_and_has_folds() -> None:
    manifest = plan(in_archives([10_000]))
    assert len(manifest.folds()) == FOLDS
    sizes = [head.candidates for head in manifest.heads]
    assert len(sizes) == 32
    assert max(sizes) - min(sizes) <= 320
    again = plan([replace(e, identity="new") for e in in_archives([10_300])], previous=manifest)
    assert [head.fold for head in again.heads[:32]] == [head.fold for head in manifest.heads]


def test_a_candidate_with_two_groups_is_refused_by_name() -> None:
    one = Entry("s3://b/x.jpg", "", 1, "e", "left")
    with pytest.raises(SourceError, match=r"x\.jpg is listed twice, with group 'left' and 'right'"):
        plan([one, replace(one, group="right")])
    assert plan([one, one]).duplicates == 1


@pytest.mark.parametrize(("was", "is_now"), [("", "g"), ("g", ""), ("g", "h")])
def test_everything_is_planned_anew_if_a_group_is_another(was: str, is_now: str) -> None:
    """Even if it is the first or the last group that there is."""
    plain = entries(40)
    before, after = ([*plain[:-1], replace(plain[-1], group=name)] for name in (was, is_now))
    first = plan(before, shard_images=5)
    gone = after[1:]
    assert plan(gone, shard_images=5, previous=first).digest == plan(gone, shard_images=5).digest
    same = before[1:]
    assert plan(same, shard_images=5, previous=first).digest != plan(same, shard_images=5).digest


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
        plan(entries(1, first=7)).shards[0].key("spec"),
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
    again = Manifest.decode(manifest.data, "m", manifest.entries)
    assert (again.heads, again.digest) == (manifest.heads, manifest.digest)
    assert [head.address for head in again.heads] == [head.address for head in manifest.heads]
    assert list(again.shards) == list(manifest.shards)
    assert [len(table) for _, table in again.tables()] == [h.candidates for h in manifest.heads]
    file = SealedFile(manifest.data, MANIFEST, "m")
    assert manifest.entries.shard(head_at(file, 2)) == manifest.shards[2]
    for index in (-1, 99):
        with pytest.raises(CorruptFile, match=f"no shard {index}"):
            head_at(file, index)
    with pytest.raises(CorruptFile, match="some/manifest"):
        Manifest.decode(manifest.data[:-10], "some/manifest", manifest.entries)


def test_more_shards_than_a_row_group_describes_are_read() -> None:
    manifest = plan(entries(HEADS_A_GROUP + 30), shard_images=1)
    assert len(manifest.heads) == HEADS_A_GROUP + 30
    again = Manifest.decode(manifest.data, "m", manifest.entries)
    assert (again.heads, again.digest) == (manifest.heads, manifest.digest)
    file = SealedFile(manifest.data, MANIFEST, "m")
    for index in (0, HEADS_A_GROUP - 1, HEADS_A_GROUP, HEADS_A_GROUP + 29):
        assert head_at(file, index) == manifest.heads[index]


def test_candidates_are_found_by_name() -> None:
    packed = [Entry("s3://b/x.tar", f"m{k}", 9, "e", "", k, "tar") for k in range(6)]
    found = [*entries(40), *packed]
    manifest = plan(found, shard_images=4)
    by_name = {(e.uri, e.member): e for shard in all_shards(manifest) for e in shard.members}
    asked: list[int] = []

    def going() -> bool:
        asked.append(1)
        return True

    wanted = {(e.uri, e.member) for e in (found[3], found[39], packed[4])}
    told = manifest.find({*wanted, ("s3://b/x.tar", "none"), ("no", "")}, going)
    assert told == {key: by_name[key] for key in wanted}
    assert len(asked) == len(manifest.shards) + 1
    asked.clear()
    first = manifest.shards[0].members[0]
    only = {(first.uri, first.member)}
    assert manifest.find(only, going).keys() == only
    assert len(asked) == 1
    assert manifest.find(only, lambda: False) == {}


@pytest.fixture
def folder(tmp_path: Path) -> Entries:
    return Entries(tmp_path.as_uri())


def test_a_later_plan_writes_only_the_candidates_of_shards_that_are_new(
    folder: Entries, tmp_path: Path
) -> None:
    found = entries(200)
    first = plan(found, shard_images=8, entries=folder)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == sorted(f"{name}.parquet" for name in first.files)
    gone, changed = first.shards[3].members[0], first.shards[5].members[0]
    now = [replace(e, identity="new") if e == changed else e for e in found if e != gone]
    second = plan([*now, *entries(9, first=200)], previous=first, entries=folder)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.items() < after.items()
    stays = {head.digest: head.address for head in first.heads}
    fresh = [head for head in second.heads if head.digest not in stays]
    assert all(head.address == stays.get(head.digest, head.address) for head in second.heads)
    assert {head.address.file for head in fresh}.isdisjoint(first.files)
    written = second.entries.read_shards(fresh)
    sizes = [len(first.shards[at].members) for at in (3, 5)]
    assert sum(table.num_rows for _, table in written) == sizes[0] - 1 + sizes[1] + 9
    assert sorted(members(second), key=lambda e: e.uri) == sorted(
        [*now, *entries(9, first=200)], key=lambda e: e.uri
    )
    again = plan([*now, *entries(9, first=200)], previous=second, entries=folder)
    assert (again.digest, again.data) == (second.digest, second.data)
    assert {path.name for path in tmp_path.iterdir()} == set(after)


def test_each_file_is_read_once_wherever_its_shards_stand(
    folder: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed shards keep their places in the manifest, and lie in other files than neighbours."""
    found = entries(200)
    manifest = plan(found, shard_images=8, entries=folder)
    for shard in all_shards(manifest)[::6]:
        found = [replace(e, identity="new") if e == shard.members[0] else e for e in found]
    manifest = plan(found, shard_images=8, previous=manifest, entries=folder)
    assert len(manifest.files) == 2
    reads: list[str] = []
    read = Entries.read
    monkeypatch.setattr(Entries, "read", lambda self, n: (reads.append(n), read(self, n))[1])
    tables = list(manifest.tables())
    assert sorted(reads) == sorted(manifest.files)
    assert sorted(head.index for head, _ in tables) == list(range(len(manifest.heads)))


def test_shards_are_not_kept_in_entries_that_the_new_plan_does_not_have(folder: Entries) -> None:
    first = plan(entries(40), shard_images=8)
    second = plan(entries(40), previous=first, entries=folder)
    assert second.digest == first.digest
    assert list(second.shards) == list(first.shards)
    assert folder.missing(second.files) == []


def test_many_images_get_their_folds_from_a_hash_and_shards_have_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else hundreds of millions would have to be sorted by their hash, and dealt one by one."""
    monkeypatch.setattr(blocks, "MANY", 2_000)
    found = [Entry(f"s3://b/day={i // 100:03}/{i % 100:03}.jpg", "", 1, "e") for i in range(4_000)]
    manifest = plan(found, shard_images=40)
    for order in (found[::-1], [*found[1_000:], *found[:1_000], found[7]]):
        assert plan(order, shard_images=40).digest == manifest.digest
    assert sorted(members(manifest), key=lambda e: e.uri) == found
    sizes = Counter[int]()
    shards = all_shards(manifest)
    for shard in shards:
        names = [entry.uri for entry in shard.members]
        assert {number_of(named(entry)) % FOLDS for entry in shard.members} == {shard.fold}
        assert names == sorted(names)
        sizes[shard.fold] += len(names)
    assert all(abs(size - 250) < 5 * 250**0.5 for size in sizes.values())
    for earlier, later in pairwise(shards):
        if earlier.fold == later.fold:
            assert len(earlier.members) in (32, 40)  # in as few shards as may be, of equal size
            assert earlier.members[-1].uri < later.members[0].uri
    # A day that is deleted touches its own shards only: at most two of each fold.
    rest = [entry for entry in found if not entry.uri.startswith("s3://b/day=011/")]
    again = plan(rest, shard_images=40, previous=manifest)
    assert len({h.digest for h in again.heads} - {h.digest for h in manifest.heads}) <= 2 * FOLDS
    # Images that come later get their folds in the same way, if there are many of them.
    more = [Entry(f"s3://b/day=900/{i:04}.jpg", "", 1, "e") for i in range(2_100)]
    longer = plan([*found, *more], shard_images=40, previous=manifest)
    assert longer.heads[: len(manifest.heads)] == manifest.heads
    for shard in all_shards(longer)[len(manifest.heads) :]:
        assert {number_of(named(entry)) % FOLDS for entry in shard.members} == {shard.fold}


@pytest.mark.parametrize("bound", [{"group": "drive"}, {"access": "tar", "member": "m"}])
def test_many_images_with_one_that_is_bound_to_others_are_dealt(
    bound: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        *entries(300),
        Entry(**{"uri": "s3://b/x", "member": "", "size": 1, "identity": "e"} | bound),
    ]
    dealt = plan(found, shard_images=8)
    monkeypatch.setattr(blocks, "MANY", 100)
    assert plan(found, shard_images=8).digest == dealt.digest
    assert plan(found[:-1], shard_images=8).digest != plan(found, shard_images=8).digest


@pytest.mark.parametrize("label", [0, 4000])
def test_what_a_worker_reads_of_a_shard_stays_small_however_long_names_are(
    label: int, folder: Entries
) -> None:
    """All names are of one group, which is in one fold, and are random, so that none packs well."""
    rng = random.Random(7)
    writer = ListingWriter(["note"])
    for number in range(3000):
        name = rng.randbytes(490 if number % 3 == 0 else 20).hex()
        labels = [rng.randbytes(label // 2).hex()]
        writer.add(f"s3://b/{name}.jpg", "", 9, f"etag{number}", "g", labels=labels)
    planned = plan(writer.listing("s3://b"), shard_images=4096, entries=folder)
    assert planned.candidates == 3000
    sizes = [head.candidates for head in planned.heads]
    assert all(size % SHARD_MULTIPLE == 0 for size in sizes[:-1])
    read = []
    for head in planned.heads:
        name = folder.uri(head.address.file)
        data = storage.read(name)
        place = SealedFile(data, ENTRIES, name).row_groups[head.address.row_group]
        read.append(place.stop - place.start)
    assert max(read) <= 2**20
    assert max(read) > 2**18, "shards are not cut smaller than they must be"


def test_a_plan_that_loses_a_candidate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "cut_row_groups", lambda rows: iter([rows.slice(1)]))
    with pytest.raises(ConservationError, match="40 candidates were to be planned, and 24 are in"):
        plan(entries(40), shard_images=40)


def test_shards_of_long_names_are_put_together_up_to_what_a_row_group_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_merging, "TOGETHER", 4)
    monkeypatch.setattr(sharding, "ROW_GROUP_BYTES", 24 * 1060)
    images: list[Entry] = []
    planned = None
    for day in range(9):
        images += [
            Entry(f"s3://b/{day}-{number:01000d}.jpg", "", 9, "e", "g") for number in range(10)
        ]
        planned = plan(images, previous=planned)
    merged = [head.candidates for head in planned.heads if head.is_merged]
    assert merged
    assert set(merged) == {20}


def test_files_end_at_their_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries_file, "FILE_ROWS", 20)
    manifest = plan(entries(200), shard_images=8)
    rows = Counter[str]()
    for head in manifest.heads:
        rows[head.address.file] += head.candidates
    assert len(rows) > 5
    assert max(rows.values()) < 20 + 8
    assert members(Manifest.decode(manifest.data, "m", manifest.entries)) == members(manifest)


def test_a_shard_takes_one_request_once_the_footer_of_its_file_is_known(
    folder: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = plan(entries(200), shard_images=8, entries=folder)
    asked: list[int] = []
    read = storage.read_range

    def noted(uri: str, start: int, length: int) -> bytes:
        asked.append(length)
        return read(uri, start, length)

    monkeypatch.setattr(storage, "read_range", noted)
    fresh = Entries(folder.folder)
    assert [fresh.shard(head) for head in manifest.heads] == list(manifest.shards)
    assert len(manifest.files) == 1
    assert len(asked) == len(manifest.heads) + 1 + len(manifest.heads) + 1


def test_threads_that_begin_shards_of_a_file_read_its_footer_once(
    folder: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = plan(entries(40), shard_images=8, entries=folder)
    (at,) = {head.address.footer for head in manifest.heads}
    together = threading.Barrier(len(manifest.heads))
    footers: list[int] = []
    read = storage.read_range

    def slow(uri: str, start: int, length: int) -> bytes:
        if start == at:
            footers.append(start)
            time.sleep(0.1)  # the others come meanwhile
        return read(uri, start, length)

    def begun(head: ShardHead) -> Shard:
        together.wait()
        return fresh.shard(head)

    monkeypatch.setattr(storage, "read_range", slow)
    fresh = Entries(folder.folder)
    with ThreadPoolExecutor(len(manifest.heads)) as pool:
        assert list(pool.map(begun, manifest.heads)) == list(manifest.shards)
    assert len(footers) == 2, "once by the threads, and once by the manifest's own entries"


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("where", ["rows", "footer", "torn", "gone"])
def test_damaged_entries_are_refused_by_name(folder: Entries, where: str) -> None:
    manifest = plan(entries(50), shard_images=8, entries=folder)
    head = manifest.heads[2]
    uri = folder.uri(head.address.file)
    data = storage.read(uri)
    if where == "gone":
        storage.delete(uri)
        assert folder.missing(manifest.files) == [head.address.file]
    else:
        place = SealedFile(data, ENTRIES, "e").row_groups[head.address.row_group]
        bad = {
            "rows": flip(data, place.start + 9),
            "footer": flip(data, data.rindex(b'"sha256"') + 12),
            "torn": data[:-9],
        }[where]
        storage.replace(uri, bad)
    for use in (
        lambda: Entries(folder.folder).shard(head),
        lambda: list(Entries(folder.folder).read_shards([head])),
    ):
        with pytest.raises(SourceError if where == "gone" else CorruptFile, match=re.escape(uri)):
            use()


@pytest.mark.parametrize("field", ["digest", "belongs", "candidates", "values"])
def test_rows_that_are_not_what_the_manifest_describes_are_refused(field: str) -> None:
    manifest = plan(entries(50, groups=3), shard_images=8)
    lie = {"digest": "0" * 32, "belongs": "0" * 32, "candidates": 9, "values": ("rain",)}[field]
    head = replace(manifest.heads[0], **{field: lie})  # type: ignore[arg-type]
    for read in (manifest.entries.shard, lambda h: list(manifest.entries.read_shards([h]))):
        with pytest.raises(CorruptFile, match="is not what its manifest describes"):
            read(head)


@given(
    st.lists(
        st.tuples(st.text(max_size=5), st.one_of(st.none(), st.text(max_size=5)), st.integers(0, 9))
    ),
    st.integers(1, 5),
)
def test_a_digest_of_rows_depends_on_each_value_and_not_on_how_they_are_held(
    rows: list[tuple[str, str | None, int]], cut: int
) -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.string()), ("n", pa.int64())])

    def table(of: list[tuple[str, str | None, int]]) -> pa.Table:
        return pa.Table.from_pylist([dict(zip("abn", row, strict=True)) for row in of], schema)

    whole = table(rows)
    pieces = [table(rows[at : at + cut]) for at in range(0, len(rows), cut)]
    digest = table_digest("rows", whole)
    if pieces:
        assert table_digest("rows", pa.concat_tables(pieces)) == digest
    assert table_digest("rows", pa.concat_tables([table(rows), whole]).slice(len(rows))) == digest
    assert table_digest("others", whole) != digest
    for at, (a, b, n) in enumerate(rows):
        for other in ((a + "x", b, n), (a, None if b is not None else "", n), (a, b, n + 1)):
            assert table_digest("rows", table([*rows[:at], other, *rows[at + 1 :]])) != digest
    assert table_digest("rows", table([*rows, ("", None, 0)])) != digest


def test_a_manifest_whose_rows_were_changed_is_refused() -> None:
    manifest = plan(entries(20))
    first = manifest.shards[0]
    fewer = Shard(first.index, first.fold, first.members[:-1])
    lying = Manifest.of((fewer, *manifest.shards[1:]), manifest.shard_images)
    with pytest.raises(CorruptFile, match=manifest.digest):
        Manifest.decode(with_digest(lying, manifest.digest), "m", lying.entries)
