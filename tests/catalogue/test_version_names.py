"""Names of versions: `NAME@7`, `NAME@-1`, `NAME@2026-10` and `NAME@TAG` mean what a log holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.catalogue import (
    Catalogue,
    Commit,
    Version,
    VersionName,
    check_name,
    collect,
    garbage_collection,
    past_versions,
    remove,
    remove_tag,
    roll_back,
    tag_version,
    tagging,
    verify,
    version_histories,
    version_lookup,
)
from pipeline.catalogue.commit_log import _ReadCommit
from pipeline.catalogue.kept_versions import kept_versions
from pipeline.catalogue.version_names import check_tag, last_moment
from pipeline.catalogue.version_options import RetentionOptions
from pipeline.comparing import compare, resolve_versions
from pipeline.errors import (
    Conflict,
    CorruptFile,
    NotFound,
    SourceError,
    SpecMismatch,
    UsageError,
)
from pipeline.explaining.version_table import tags_of
from pipeline.mapper import SerialMapper
from pipeline.sources import plan
from tests.catalogue.test_kept_versions import log, version
from tests.catalogue.test_undoing import collect_old, make_old
from tests.golden.handmade import (
    NETWORK,
    Place,
    catalogue_of,
    commit_dataset,
    contents,
    empty_catalogue,
    entries,
    hand_made,
)
from tests.support.builders import tiny_spec, version_without_files


class Past(Catalogue):
    """A catalogue of commits that are given, the newest first."""

    def __init__(self, commits: list[Commit]) -> None:
        super().__init__("memory://past")
        self._commits = commits

    def head(self) -> Commit:
        return self._commits[0]

    def commit(self, number: int) -> Commit:
        for commit in self._commits:
            if commit.number == number:
                return commit
        raise NotFound(f"no commit {number}")

    def _read(self, number: int) -> _ReadCommit:
        return _ReadCommit(self.commit(number))

    def log(self, newest: Commit | None = None) -> Iterator[Commit]:
        last = (newest or self.head()).number
        return (commit for commit in self._commits if commit.number <= last)


# What stands after the @.


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("a", None),
        ("a@7", 7),
        ("a@0007", 7),
        ("a@2026", 2026),
        ("a@-1", -1),
        ("a@v1.2", "v1.2"),
        ("a@2026-02", datetime(2026, 2, 28, 23, 59, 59, 999999, UTC)),
        ("a@2024-02", datetime(2024, 2, 29, 23, 59, 59, 999999, UTC)),
        ("a@2026-12", datetime(2026, 12, 31, 23, 59, 59, 999999, UTC)),
        ("a@2026-12-31", datetime(2026, 12, 31, 23, 59, 59, 999999, UTC)),
        ("a@9999-12", datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
        ("a@9999-12-31", datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
        ("a@2026-12-31T10:00", datetime(2026, 12, 31, 10, tzinfo=UTC)),
        ("a@2026-12-31T10:00+02:00", datetime(2026, 12, 31, 8, tzinfo=UTC)),
    ],
)
def test_a_name_says_which_version_is_meant(name: str, which: object) -> None:
    assert VersionName.parse(name) == VersionName("a", which)  # type: ignore[arg-type]
    assert VersionName.parse(f"b/{name}").dataset == "b/a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "--1",
        "7x",
        "2026-13",
        "2026-02-30",
        "2026-W40",
        "@",
        "a@b",
        "v 1",
        "+1",
        "é",
        "9" * 5000,
    ],
)
def test_what_is_no_version_is_refused_with_what_may_stand_there(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"a@.*: after the @ stands .*how many versions back \(@-1"
    ):
        VersionName.parse(f"a@{text}")


@given(st.dates(datetime(1970, 1, 1).date(), datetime(9998, 12, 31).date()))
def test_a_day_or_a_month_ends_where_the_next_one_begins(day: Any) -> None:
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    assert last_moment(day.isoformat()) + timedelta(microseconds=1) == begin + timedelta(days=1)
    after = last_moment(day.isoformat()[:7]) + timedelta(microseconds=1)
    assert after.day == 1
    assert begin < after <= begin + timedelta(days=31)


def test_no_dataset_is_named_as_a_version() -> None:
    with pytest.raises(UsageError, match=r"'a@1': .* name the dataset, and no version of it"):
        check_name("a@1")


@pytest.mark.parametrize("tag", ["7", "-1", "2026-10", "", "a b", "a/b", "a@b", "_a", "é"])
def test_a_tag_is_no_number_and_no_time(tag: str) -> None:
    with pytest.raises(UsageError, match="begin with a letter"):
        check_tag(tag)


# Which version of a log it is.

STATES = st.lists(st.sampled_from(["", "1", "2", "3"]), min_size=1, max_size=8)
"""What a dataset is at each commit, one an hour; nothing where it is taken out."""


def past(states: list[str]) -> Past:
    commits = log(*({"a": [version(dna)]} if dna else {} for dna in states))
    hours = [replace(c, time=f"2026-01-01T{c.number:02d}:30:00+00:00") for c in commits]
    return Past(hours)


def dna_of(place: Catalogue, name: str) -> str:
    try:
        return place.find(name).dna
    except NotFound:
        return ""


@given(STATES, st.integers(0, 9))
def test_a_number_means_the_version_of_that_commit(states: list[str], number: int) -> None:
    there = states[number - 1] if 1 <= number <= len(states) else ""
    assert dna_of(past(states), f"a@{number}") == there


@given(STATES, st.integers(0, 9))
def test_a_time_means_the_version_of_the_last_commit_until_then(
    states: list[str], hour: int
) -> None:
    there = states[:hour][-1] if hour else ""
    assert dna_of(past(states), f"a@2026-01-01T{hour:02d}:30") == there
    assert dna_of(past(states), f"a@2026-01-01T{hour:02d}:31") == there


@given(STATES, st.integers(1, 4))
def test_a_negative_number_counts_other_versions_back(states: list[str], back: int) -> None:
    present = [dna for dna in states if dna]
    distinct = [dna for i, dna in enumerate(present) if i == 0 or dna != present[i - 1]][::-1]
    there = distinct[back] if states[-1] and back < len(distinct) else ""
    place = past(states)
    assert dna_of(place, f"a@-{back}") == there
    if there:  # the commit that is named holds it
        assert place.commit(place.resolve(f"a@-{back}").commit).datasets["a"]["s"].dna == there


@given(STATES)
def test_the_versions_of_one_dataset_are_those_of_all_histories(states: list[str]) -> None:
    commits = past(states)._commits
    one = list(past_versions(commits, "a", "s"))
    assert one == version_histories(commits, "s").get("a", [])
    for each in one:
        assert {states[n - 1] for n in range(each.commit, each.last + 1)} == {each.version.dna}


@given(STATES)
def test_a_version_is_named_by_the_commit_that_made_it(states: list[str]) -> None:
    place = past(states)
    versions = list(past_versions(place._commits, "a", "s"))
    for each in versions:
        times = [of.commit for of in versions if of.identity == each.identity]
        for number in range(each.commit, each.last + 1):
            made = place.commit_that_made("a", each.version, number)
            assert made in [at for at in times if at <= number]
            assert len(times) > 1 or made == each.commit
    newest = {each.version.dna: each.commit for each in reversed(versions)}
    kept = kept_versions(place._commits)
    assert {of.version.dna: of.made for of in kept} == newest


def test_an_error_names_the_versions_that_there_are() -> None:
    place = past(["1", "2", "2", "3"])
    with pytest.raises(NotFound, match="there is no a@9; its versions are a@4, a@2 and a@1"):
        place.find("a@9")
    said = r"there is no a@-3; its versions are a@4.*; @-1 is the one before the newest"
    with pytest.raises(NotFound, match=said):
        place.find("a@-3")
    with pytest.raises(NotFound, match="there is no a@1999; its versions"):
        place.find("a@1999")
    with pytest.raises(NotFound, match="there is no a@1999-01; its versions"):
        place.find("a@1999-01")
    with pytest.raises(NotFound, match="there is no a@v1; it has no tag, its versions are a@4"):
        place.find("a@v1")
    with pytest.raises(NotFound, match=r"there is no b@1: .* never had a dataset 'b'"):
        place.find("b@1")


def test_an_error_looks_at_no_more_than_the_last_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_lookup, "LOOKED_BACK", 3)
    place, read = past(["1", "2", "2", "2", "1", "3"]), list[int]()

    def log(newest: Commit | None = None) -> Iterator[Commit]:
        for commit in Past.log(place, newest):
            read.append(commit.number)
            yield commit

    monkeypatch.setattr(place, "log", log)
    said = "there is no a@v1; it has no tag, its versions among the last 3 commits are a@6, a@5 and"
    with pytest.raises(NotFound, match=f"{said} a@4$"):
        place.find("a@v1")
    assert read == [6, 5, 4]
    with pytest.raises(NotFound, match=r"b@1: the last 3 commits of .* have no dataset 'b'"):
        place.find("b@1")


def test_versions_are_counted_back_from_the_commit_that_is_looked_at() -> None:
    place = past(["1", "2", "3"])
    assert place.find("a@-1", at=2).dna == "1"
    assert place.find("a@2026-02", at=2).dna == "2"  # no later commit is looked at
    assert place.find_all(["a@-2", "a@2", "a"]).keys() == {"a@-2", "a@2", "a"}
    assert [v.dna for v in place.find_all(["a@-2", "a@2", "a"]).values()] == ["1", "2", "3"]


def test_each_spec_has_its_own_version_before() -> None:
    one, two = {"a": [version("1", "s")]}, {"a": [version("2", "s"), version("7", "t")]}
    three = {"a": [version("2", "s"), version("8", "t")]}
    place = Past(log(one, two, three))
    assert place.find("a@-1", spec="s").dna == "1"
    assert place.find("a@-1", spec="t").dna == "7"
    with pytest.raises(NotFound, match="a@-2;"):
        place.find("a@-2", spec="t")


def test_a_part_has_versions_too() -> None:
    whole = version("1", by="l")
    states = [{"a": [whole], "a/x": [version(dna, part_of="a")]} for dna in "23"]
    place = Past(log(*states))
    assert place.find("a/x@-1").dna == "2"
    tagged = replace(place.head(), tags={"a": {"v": 1}})
    place = Past([tagged, place.commit(1)])
    assert (place.find("a/x@v").dna, place.find("a@v").dna) == ("2", "1")
    assert listed_tags(place, "a/x") == {"2": ("v",), "3": ()}


def listed_tags(place: Past, name: str) -> dict[str, tuple[str, ...]]:
    versions = list(past_versions(place.log(), name, "s"))
    tags = tags_of(place, name, versions)
    return {each.version.dna: of for each, of in zip(versions, tags, strict=True)}


def test_a_dataset_in_a_folder_has_not_the_tags_of_a_dataset_of_that_name() -> None:
    place = Past(log({"a": [version("1")], "a/x": [version("2")]}, {"a/x": [version("3")]}))
    place = Past([replace(place.head(), tags={"a": {"v": 1}}), place.commit(1)])
    with pytest.raises(NotFound, match="there is no a/x@v"):
        place.find("a/x@v")
    assert listed_tags(place, "a/x") == {"2": (), "3": ()}
    part = replace(version("4"), part_of="a")  # it is one by now
    later = replace(place.head(), number=3, datasets={"a/x": {"s": part}})
    assert listed_tags(Past([later, *place.log()]), "a/x") == {"2": (), "3": (), "4": ()}


# In a real catalogue.


def put(place: Catalogue, name: str, images: int, bins: int = 5) -> Version:
    manifest = plan(entries(name, images))
    spec, ranges = tiny_spec(bins)
    partials = [hand_made(shard, spec, ranges) for shard in manifest.shards]
    return commit_dataset(place, name, manifest, partials, spec, ranges)


@pytest.fixture(scope="module")
def built() -> dict[str, bytes]:
    """Makes a dataset of three versions, and another one."""
    catalogue = empty_catalogue()
    for images in (4, 5, 6):
        put(catalogue, "a", images)
    put(catalogue, "b", 3)
    return contents(catalogue)


@pytest.fixture
def place(built: dict[str, bytes]) -> Catalogue:
    return catalogue_of(built)


def test_versions_of_one_dataset_are_compared(place: Catalogue) -> None:
    matrix = compare(place, ["a@-1", "a", "a@1", "b"])
    assert matrix.names == ("a@-1", "a", "a@1", "b")
    digests = [place.find("a", at=number).dna for number in (2, 3, 1)]
    assert [*matrix.members.values()][:3] == digests
    off = matrix.of()[~np.eye(4, dtype=bool)]
    assert (off > 0).all()


def test_a_kept_matrix_is_not_taken_for_other_versions_of_the_same_names(place: Catalogue) -> None:
    first = compare(place, ["a@-1", "a"])
    assert compare(place, ["a@-1", "a"]).members == first.members
    put(place, "a", 7)
    second = compare(place, ["a@-1", "a"])
    assert second.members["a@-1"] == first.members["a"]
    fresh = compare(place, ["a@-1", "a"], error_bars=False)
    assert second.of().tolist() == fresh.of().tolist() != first.of().tolist()


def test_the_files_of_a_version_are_read_by_its_name(place: Catalogue) -> None:
    former = place.find("a", at=1)
    assert place.find("a@-2") == former
    assert place.load("a@-2", folds=True).images == 4
    assert place.load("a@-2", layers=["stem"]).images == 4
    assert place.manifest("a@-2", former).candidates == 4
    assert place.partials_uri("a@-2", former) == place.partials_uri("a", former)


def test_versions_of_two_specs_are_refused_by_their_names(place: Catalogue) -> None:
    remove(place, ["a"])
    put(place, "a", 4, bins=7)
    with pytest.raises(SpecMismatch, match=r"a@1 .*bins"):
        resolve_versions(place, ["a", "a@1"])
    assert resolve_versions(place, ["a@1", "a@2"])[1]["a@2"].images == 5


def test_an_older_version_whose_files_are_gone_says_so(place: Catalogue) -> None:
    former = place.find("a@1")
    storage.delete(place.uri("dna", former.spec, "a", former.dna))
    for work in (
        lambda: place.load("a@1"),
        lambda: place.load("a@1", layers=["stem"]),
        lambda: compare(place, ["a@1", "a"]),
    ):
        with pytest.raises(SourceError, match=r"a@1: .* is missing. `vdna gc` has removed the fi"):
            work()


# Tags.


def test_a_tag_names_a_version_until_it_is_taken_away(place: Catalogue) -> None:
    commit = tag_version(place, "a@-1", "v1")
    assert (commit.number, commit.action) == (5, "tag a, commit 2, as v1")
    assert commit.datasets == place.commit(4).datasets
    assert commit.tags == {"a": {"v1": 2}}
    put(place, "a", 9)
    put(place, "c", 2)
    assert place.find("a@v1").images == 5
    assert place.head().tags == {"a": {"v1": 2}}
    assert remove_tag(place, "a", "v1").tags == {}
    said = "there is no a@v1; it has no tag, its versions are a@6, a@3, a@2 and a@1"
    with pytest.raises(NotFound, match=said):
        place.find("a@v1")
    assert place.find("a@v1", at=7).images == 5  # as it was then


def test_a_tag_is_given_once(place: Catalogue) -> None:
    tag_version(place, "a", "v1")
    assert tag_version(place, "a@3", "v1").number == 5  # the same version
    put(place, "a", 9)
    with pytest.raises(Conflict, match="a@v1 is the version of commit 3 already"):
        tag_version(place, "a", "v1")
    assert tag_version(place, "a", "v2").tags == {"a": {"v1": 3, "v2": 6}}
    assert remove_tag(place, "a", "v1").tags == {"a": {"v2": 6}}
    with pytest.raises(NotFound, match="a has no tag 'v1'; it has: v2"):
        remove_tag(place, "a", "v1")
    with pytest.raises(NotFound, match=r"there is no a@v1; its tags are v2, its versions are a@6"):
        place.find("a@v1")
    with pytest.raises(UsageError, match="name the dataset, and no version"):
        remove_tag(place, "a@v2", "v2")


def test_a_version_that_has_a_tag_keeps_it_when_another_spec_has_begun(place: Catalogue) -> None:
    tag_version(place, "a", "v1")
    under = place.find("a").spec
    later = put(place, "a", 6, bins=7)
    again = tag_version(place, "a", "v1", spec=under)
    assert again.tags == {"a": {"v1": 3}}
    with pytest.raises(Conflict, match="a@v1 is the version of commit 3 already"):
        tag_version(place, "a", "v1", spec=later.spec)


def test_tags_outlive_the_dataset_and_lead_it_back(place: Catalogue) -> None:
    tag_version(place, "a@1", "first")
    remove(place, ["a"])
    assert place.find("a@first").images == 4
    with pytest.raises(NotFound, match="no dataset 'a'"):
        place.find("a@-1")
    roll_back(place, "a", "first")
    assert place.find("a").images == 4
    roll_back(place, "a", "@-1")
    assert place.find("a").images == 6
    with pytest.raises(UsageError, match="a@@-1: after the @ stands '@-1'"):
        roll_back(place, "a", "@@-1")


def test_a_part_is_tagged_with_its_whole(place: Catalogue) -> None:
    whole = replace(place.find("b"), by="l")
    part = replace(whole, part_of="b", value="x")
    place.put_version("b", whole, place.find("b"), parts={"b/x": part})
    with pytest.raises(UsageError, match="b/x is a part of b; tag b"):
        tag_version(place, "b/x", "v")


def test_a_name_that_a_dataset_had_says_its_new_one() -> None:
    place = empty_catalogue()
    whole = version_without_files("d1", "s")
    part = replace(whole, part_of="b", value="x")
    place.put_version("b", whole, None, parts={"b/x": part})
    now = {"c": {"s": whole}, "c/x": {"s": replace(part, part_of="c")}}
    place.append("rename b to c", lambda head: replace(head, datasets=now))
    place.put_version("d", whole, None)
    for name in ("b", "b/x"):
        with pytest.raises(NotFound, match=r"\. Commit 2 renamed b to c$"):
            place.find(name)
    remove(place, ["d"])
    with pytest.raises(NotFound, match=r"\. Commit 4 took it out; `vdna rollback d --to 3` brings"):
        place.find("d")


def test_a_part_that_was_taken_out_names_the_dataset_to_bring_back() -> None:
    place = empty_catalogue()
    whole = version_without_files("d1", "s")
    part = replace(whole, part_of="b", value="x")
    place.put_version("b", whole, None, parts={"b/x": part})
    remove(place, ["b"])
    for name in ("b", "b/x"):
        with pytest.raises(NotFound, match="2 took it out; `vdna rollback b --to 1` brings it"):
            place.find(name)


def test_a_part_that_came_after_a_tag_has_no_version_of_it() -> None:
    place = empty_catalogue()
    place.put_version("b", version_without_files("d1", "s"), None)
    place.append("tag", lambda head: replace(head, tags={"b": {"v": 1, "w": 1}}))
    whole = version_without_files("d2", "s")
    part = replace(whole, part_of="b", value="x")
    place.put_version("b", whole, place.find("b"), parts={"b/x": part})
    assert place.find("b@v").dna == "d1"
    said = "there is no b/x@v; its tags are w, its versions are b/x@3"
    with pytest.raises(NotFound, match=said):
        place.find("b/x@v")
    with pytest.raises(NotFound, match=r"there is no b/y@v: .*never had a dataset 'b/y'"):
        place.find("b/y@v")


def test_only_datasets_are_removed_and_rolled_back(place: Catalogue) -> None:
    before = place.head()
    for refused in (
        lambda: remove(place, ["b", "a@1"]),
        lambda: roll_back(place, "a@2", 1),
    ):
        with pytest.raises(UsageError, match="name the dataset, and no version of it"):
            refused()
    assert place.head() == before


def test_gc_keeps_what_has_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
    )
    made = Place(tmp_path)
    for images in (1, 2, 3, 4):
        made.photos("a", images)
        made.build("a")
    catalogue = made.catalogue
    tag_version(catalogue, "a@2", "v")
    assert collect_old(catalogue, keep=1)[0] > 0
    assert [catalogue.load(name).images for name in ("a@v", "a")] == [2, 4]
    assert all(finding.ok for finding in verify(catalogue, all_versions=True))
    for gone in ("a@1", "a@-1"):
        with pytest.raises(SourceError, match="`vdna gc` has removed the files"):
            catalogue.load(gone)
    with pytest.raises(CorruptFile, match="a cannot be tagged w: `vdna gc` has removed its"):
        tag_version(catalogue, "a@1", "w")
    remove(catalogue, ["a"])
    collect_old(catalogue, keep=1)
    assert catalogue.load("a@v").images == 2
    remove_tag(catalogue, "a", "v")
    collect_old(catalogue, keep=1)
    with pytest.raises(SourceError, match="`vdna gc` has removed the files"):
        catalogue.load("a@2")


def test_a_version_that_is_replaced_while_it_is_tagged_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection that began before the tag may remove what is old after it."""
    monkeypatch.setattr(
        "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
    )
    made = Place(tmp_path)
    made.photos("a", 1)
    made.build("a")
    make_old(made.catalogue)
    real, listed = Catalogue.append, list[Any]()

    def replace_first(self: Catalogue, *given: Any) -> Any:
        monkeypatch.setattr(Catalogue, "append", real)
        made.photos("a", 2)
        made.build("a")
        kept = garbage_collection._KeptVersions(self, RetentionOptions(keep=1))
        grace = timedelta(days=1)
        listed.extend(garbage_collection._old(self, kept.newest(), grace, None, SerialMapper()))
        return real(self, *given)

    monkeypatch.setattr(Catalogue, "append", replace_first)
    tag_version(made.catalogue, "a", "v")
    assert listed
    garbage_collection._remove((made.catalogue.root, 2, listed))
    assert made.catalogue.load("a@v", folds=True).images == 1


def test_a_collection_beside_a_tag_leaves_the_files_or_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
    )
    made = Place(tmp_path)
    for images in (1, 2):
        made.photos("a", images)
        made.build("a")
    real = Catalogue.append

    def collect_first(self: Catalogue, *given: Any) -> Any:
        monkeypatch.setattr(Catalogue, "append", real)
        collect(self, keep=1, grace=timedelta(days=1))  # what was written again is young
        return real(self, *given)

    make_old(made.catalogue)
    monkeypatch.setattr(Catalogue, "append", collect_first)
    tag_version(made.catalogue, "a@1", "v")
    assert made.catalogue.load("a@v", folds=True).images == 1
    remove_tag(made.catalogue, "a", "v")
    monkeypatch.setattr(tagging, "renew_files", lambda *_: None)
    make_old(made.catalogue)
    monkeypatch.setattr(Catalogue, "append", collect_first)
    with pytest.raises(
        CorruptFile, match=r"a cannot be tagged w: .* take the tag w away, and build"
    ):
        tag_version(made.catalogue, "a@1", "w")
