"""Tests that an unchanged source is known without a plan, and that a changed one never is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources import Entries, Entry, Listing, Manifest, Rules, list_source, plan, same_plan

CHANGES = ("identity", "size", "group", "name", "member", "position", "access", "remove", "add")


def entries(count: int, seed: int = 0) -> list[Entry]:
    """Returns images, some of a group, some members of an archive, in some order."""
    made = [
        Entry(f"s3://b/{n:03d}.jpg", "", 10 + n, f"e{n}", f"g{n % 3}" if n % 2 else "")
        for n in range(count)
    ]
    made += [Entry("s3://b/x.tar", f"{n}.png", 9, "t", "", n, "tar") for n in range(count // 4)]
    random.Random(seed).shuffle(made)
    return made


def changed(before: Sequence[Entry], kind: str, at: int) -> list[Entry]:
    one, rest = before[at % len(before)], list(before)
    del rest[at % len(before)]
    if kind == "remove":
        return rest
    other = {
        "identity": {"identity": "other"},
        "size": {"size": one.size + 1},
        "group": {"group": "other"},
        "name": {"uri": f"{one.uri}x"},
        "member": {"member": f"{one.member}x"},
        "position": {"position": 77},
        "access": {"access": "zip"},
        "add": {"uri": "s3://b/more.jpg"},
    }[kind]
    return [*(before if kind == "add" else rest), replace(one, **other)]


@cache
def as_planned(count: int) -> Manifest:
    return plan(entries(count))


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(0, 99), st.sampled_from([1, 3, 64]))
def test_an_unchanged_source_has_the_plan_that_planning_it_again_gives(
    count: int, seed: int, shard: int
) -> None:
    earlier = plan(entries(count), shard_images=shard)
    listing = Listing.of(entries(count, seed), "s3://b", {".txt": seed})
    found = same_plan(listing, earlier)
    again = plan(listing, previous=earlier, shard_images=shard)
    assert found is not None
    assert (found.digest, found.heads) == (again.digest, again.heads)
    assert (found.source, found.ignored) == (again.source, again.ignored)
    assert found.duplicates == again.duplicates


@settings(max_examples=30)
@given(st.sampled_from([2, 9, 40]), st.sampled_from(CHANGES), st.integers(0, 99))
def test_no_change_of_a_source_is_overlooked(count: int, kind: str, at: int) -> None:
    earlier = as_planned(count)
    assert same_plan(Listing.of(changed(entries(count), kind, at)), earlier) is None


def test_a_candidate_that_is_listed_twice_is_planned_again() -> None:
    earlier = plan(entries(8))
    twice = [*entries(8)[1:], entries(8)[1]]  # as many as before
    assert same_plan(Listing.of(twice), earlier) is None


def folders(root: Path) -> Listing:
    for number in range(60):
        folder = root / ("b" if number % 2 else "a")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(b"x")
    return list_source(root, Rules(by="1"))


def test_labels_are_compared_and_parts_need_shards_of_one_value(tmp_path: Path) -> None:
    listing = folders(tmp_path / "one")
    (label,) = listing.labels
    apart = plan(listing, by=label)
    assert same_plan(listing, apart, label) is not None
    assert same_plan(replace(listing, labels=()), apart) is None
    mixed = plan(listing, shard_images=64)
    assert any(head.values[0] is None for head in mixed.heads)
    assert same_plan(listing, mixed) is not None
    assert same_plan(listing, mixed, label) is None


def test_a_plan_whose_entries_are_gone_is_made_again(tmp_path: Path) -> None:
    kept = Entries((tmp_path / "entries").as_uri())
    earlier: Manifest = plan(entries(8), entries=kept)
    assert same_plan(Listing.of(entries(8)), earlier) is not None
    for file in (tmp_path / "entries").iterdir():
        file.unlink()
    assert same_plan(Listing.of(entries(8)), earlier) is None


def test_a_large_source_is_left_to_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = plan(entries(8))
    monkeypatch.setattr("pipeline.sources.unchanged_source.PART_ENTRIES", 9)
    assert same_plan(Listing.of(entries(8)), earlier) is None
