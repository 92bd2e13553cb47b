"""Which versions a log names: each once, the newest of each dataset and spec, with their parts."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.catalogue import Catalogue, Commit, Version
from pipeline.catalogue.commit import FILES
from pipeline.catalogue.kept_versions import KeptVersion, kept_versions, missing_files
from tests.support.builders import version_without_files


def version(dna: str, spec: str = "s", by: str = "", part_of: str = "") -> Version:
    return replace(version_without_files(dna, spec), manifest=f"m{dna}", by=by, part_of=part_of)


def log(*states: dict[str, list[Version]]) -> list[Commit]:
    """Returns the commits of these states, the newest first as a log gives them."""
    commits = [
        Commit(n, "", "", None, {name: {v.spec: v for v in of} for name, of in state.items()}, None)
        for n, state in enumerate(states, 1)
    ]
    return commits[::-1]


def found(commits: list[Commit], keep: int | None = None) -> list[tuple[str, str, int]]:
    return [(kept.name, kept.version.dna, kept.commit) for kept in kept_versions(commits, keep)]


THREE = log(
    {"a": [version("1")]},
    {"a": [version("2")], "b": [version("1")]},
    {"a": [version("3")], "b": [version("1")]},
)


def test_each_version_is_found_once_with_the_newest_commit_that_holds_it() -> None:
    assert found(THREE) == [("a", "3", 3), ("b", "1", 3), ("a", "2", 2), ("a", "1", 1)]


def test_so_many_versions_of_each_dataset_are_kept() -> None:
    assert found(THREE, 1) == [("a", "3", 3), ("b", "1", 3)]
    assert found(THREE, 2) == [("a", "3", 3), ("b", "1", 3), ("a", "2", 2)]
    assert found(THREE, 3) == found(THREE)


def test_a_version_that_came_back_is_the_newest_and_counts_once() -> None:
    commits = log({"a": [version("1")]}, {"a": [version("2")]}, {"a": [version("1")]})
    assert found(commits) == [("a", "1", 3), ("a", "2", 2)]
    assert found(commits, 1) == [("a", "1", 3)]


def test_each_spec_has_its_own_versions() -> None:
    commits = log({"a": [version("1", "s")]}, {"a": [version("1", "s"), version("2", "t")]})
    assert found(commits, 1) == [("a", "1", 2), ("a", "2", 2)]
    identities = {kept.identity for kept in kept_versions(commits)}
    assert identities == {("a", "s", "1", "", ""), ("a", "t", "2", "", "")}


def day(number: int) -> datetime:
    return datetime(2026, 1, number, tzinfo=UTC)


def dated(commits: list[Commit]) -> list[Commit]:
    """Returns the commits as if each were made on the day of its number."""
    return [replace(commit, time=day(commit.number).isoformat()) for commit in commits]


def test_what_was_current_after_a_moment_is_kept_with_what_is_current() -> None:
    commits = dated(THREE)  # the versions of a were replaced on the days 2 and 3
    newest = [("a", "3", 3), ("b", "1", 3)]
    kept = {n: [(k.name, k.version.dna, k.commit) for k in kept_versions(commits, None, day(n))]
            for n in (1, 2, 3, 9)}  # fmt: skip
    assert kept[1] == found(THREE)
    assert kept[2] == [*newest, ("a", "2", 2)]
    assert kept[3] == kept[9] == newest


STATES = st.lists(
    st.dictionaries(st.sampled_from("ab"), st.sampled_from("123")), min_size=1, max_size=7
)


@settings(max_examples=100)
@given(STATES, st.integers(1, 3), st.integers(1, 8))
def test_a_version_is_kept_if_any_rule_keeps_it(
    states: list[dict[str, str]], keep: int, since: int
) -> None:
    commits = dated(log(*({name: [version(dna)] for name, dna in s.items()} for s in states)))

    def kept(*rules: Any) -> set[tuple[str, ...]]:
        return {each.identity for each in kept_versions(commits, *rules)}

    held = [{(n, v.spec, v.dna, "", "") for n, of in c.datasets.items() for v in of.values()}
            for c in commits]  # fmt: skip
    after = [True, *(day(c.number) > day(since) for c in commits)]
    by_day = set().union(*(state for state, late in zip(held, after, strict=False) if late))
    assert kept(None, day(since)) == by_day
    assert kept(keep, day(since)) == by_day | kept(keep)


def test_days_keep_what_was_taken_out_and_what_was_renamed() -> None:
    commits = dated(log({"a": [version("1")], "b": [version("2")]}, {"c": [version("2")]}))
    names = [kept.name for kept in kept_versions(commits, 1, day(1))]
    assert sorted(names) == ["a", "b", "c"]
    assert [kept.name for kept in kept_versions(commits, 1, day(2))] == ["c"]


RENAMED = log(
    {"a": [version("1")]},
    {"a": [version("2")]},
    {"a": [version("3", by="l")], "a/x": [version("x3", part_of="a")]},
    {"b": [version("3", by="l")], "b/x": [version("x3", part_of="b")]},
    {"b": [version("4")]},
)


def test_versions_before_a_rename_are_counted_with_those_after_it() -> None:
    assert found(RENAMED, 1) == [("b", "4", 5)]
    assert found(RENAMED, 2) == [*found(RENAMED, 1), ("b", "3", 4), ("b/x", "x3", 4)]
    assert found(RENAMED, 3) == [*found(RENAMED, 2), ("a", "2", 2)]
    assert found(RENAMED, 4) == [*found(RENAMED, 3), ("a", "1", 1)]
    old = [("a", "3", 3), ("a/x", "x3", 3)]
    assert sorted(found(RENAMED)) == sorted([*found(RENAMED, 4), *old])


def test_the_former_versions_of_a_dataset_that_was_renamed_and_taken_out_are_not_kept() -> None:
    assert found(log(*[c_states(c) for c in RENAMED[::-1]], {"c": [version("9")]}), 5) == [
        ("c", "9", 6)
    ]


def c_states(commit: Commit) -> dict[str, list[Version]]:
    return {name: [*specs.values()] for name, specs in commit.datasets.items()}


def test_a_tag_of_the_old_name_keeps_what_it_names_under_that_name() -> None:
    newest = replace(RENAMED[0], tags={"a": {"release": 3}})
    assert found([newest, *RENAMED[1:]], 1) == [*(("b", "4", 5), ("a", "3", 3), ("a/x", "x3", 3))]


def test_a_dataset_that_was_renamed_twice_has_one_history() -> None:
    commits = log(
        {"a": [version("1")]},
        {"a": [version("2")]},
        {"b": [version("2")]},
        {"c": [version("2")]},
        {"c": [version("3")]},
    )
    assert found(commits, 2) == [("c", "3", 5), ("c", "2", 4)]
    assert found(commits, 3) == [*found(commits, 2), ("a", "1", 1)]


def test_a_new_dataset_of_the_old_name_has_a_history_of_its_own() -> None:
    commits = log(
        {"a": [version("1")]},
        {"b": [version("1")]},
        {"b": [version("1")], "a": [version("5")]},
        {"b": [version("1")], "a": [version("6")]},
    )
    assert found(commits, 1) == [("b", "1", 4), ("a", "6", 4)]
    assert found(commits, 2) == [*found(commits, 1), ("a", "5", 3)]


def test_a_dataset_that_had_the_name_of_a_part_is_not_renamed_with_it() -> None:
    commits = log(
        {"a/x": [version("9")]},
        {"a": [version("3", by="l")], "a/x": [version("x", part_of="a")]},
        {"b": [version("3", by="l")], "b/x": [version("x", part_of="b")]},
    )
    assert found(commits, 5) == [("b", "3", 3), ("b/x", "x", 3)]


def test_what_is_taken_out_beside_a_build_or_under_another_spec_is_no_rename() -> None:
    gone = [version("1")]
    for came in ([version("2")], [version("1", "t")], [version("1", by="l")]):
        assert found(log({"a": gone}, {"b": came}), 3) == [("b", came[0].dna, 2)]
    parts = {"w": [version("8", by="l")], "w/x": [version("1", part_of="w")]}
    assert found(log({**parts, "q": [version("7")]}, {"b": [version("1")]}), 3) == [("b", "1", 2)]


def test_parts_stay_with_the_dataset_that_they_belong_to() -> None:
    """However many versions a part has; and it may stand before its dataset in the commit."""
    commits = log(
        {"a/x": [version("x1", part_of="b")], "b": [version("1", by="l")]},
        {"a/x": [version("x2", part_of="b")], "b": [version("2", by="l")]},
    )
    newest = [("b", "2", 2), ("a/x", "x2", 2)]
    assert found(commits, 1) == newest
    assert found(commits, 2) == found(commits) == [*newest, ("b", "1", 1), ("a/x", "x1", 1)]


def test_a_part_that_changed_beside_a_kept_dataset_is_kept() -> None:
    commits = log(
        {"a": [version("1", by="l")], "a/x": [version("x1", part_of="a")]},
        {"a": [version("1", by="l")], "a/x": [version("x2", part_of="a")]},
    )
    assert ("a/x", "x1", 1) in found(commits, 1)


def test_another_division_into_parts_is_another_version() -> None:
    commits = log({"a": [version("1", by="l")]}, {"a": [version("1", by="")]})
    assert found(commits) == [("a", "1", 2), ("a", "1", 1)]
    assert found(commits, 1) == [("a", "1", 2)]


def test_a_part_whose_dataset_is_not_in_the_commit_is_kept() -> None:
    assert found(log({"a/x": [version("x1", part_of="a")]}), 1) == [("a/x", "x1", 1)]


def test_missing_files_are_named_in_order() -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    kept = KeptVersion("a", version("1"), 1)
    assert missing_files(place, kept) == sorted(FILES)
    for kind in FILES:
        storage.create(place.uri(kind, "s", "a", "m1" if kind == "manifests" else "1"), b"x")
    assert missing_files(place, kept) == []
    storage.delete(place.uri("manifests", "s", "a", "m1"))
    assert missing_files(place, kept) == ["manifests"]


def test_an_imported_version_needs_no_candidates() -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    imported = replace(version("1"), sha256={"dna": "x"}, origin={"file": "a.npz"})
    assert missing_files(place, KeptVersion("a", imported, 1)) == ["dna"]
    storage.create(place.uri("dna", "s", "a", "1"), b"x")
    assert missing_files(place, KeptVersion("a", imported, 1)) == []


OF_ONE = log({"a": [version("1")]}, {"a": [version("2")]}, {"a": [version("3")]})


def test_a_tagged_version_is_found_beyond_the_number_to_keep() -> None:
    newest = replace(OF_ONE[0], tags={"a": {"v": 1}})
    commits = [newest, *OF_ONE[1:]]
    assert found(commits, 1) == [("a", "3", 3), ("a", "1", 1)]
    assert found(OF_ONE, 1) == [("a", "3", 3)]
    moved = [OF_ONE[0], replace(OF_ONE[1], tags={"a": {"v": 1}}), OF_ONE[2]]
    assert found(moved, 1) == [("a", "3", 3)]  # the newest commit has the tag no more
    other = [replace(OF_ONE[0], tags={"b": {"v": 1}}), *OF_ONE[1:]]
    assert found(other, 1) == [("a", "3", 3)]


def test_a_version_counts_once_though_an_erasure_stored_its_manifest_elsewhere() -> None:
    """And a rename put it back to its place, so that two commits state it in two ways."""
    erased = replace(version("2"), manifest_file="elsewhere")
    commits = log({"a": [version("1")]}, {"a": [erased]}, {"b": [version("2")]})
    plain = log({"a": [version("1")]}, {"a": [version("2")]}, {"b": [version("2")]})
    assert found(commits, 2) == found(plain, 2) == [("b", "2", 3), ("a", "1", 1)]
