"""Tests the commit log: commits are numbered, exclusive and complete; forged ones are refused."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.catalogue import Catalogue, Version, check_name
from pipeline.catalogue.commit import FILES, Footer
from pipeline.errors import Conflict, CorruptFile, NoBucket, NotFound, UsageError
from tests.support.builders import sealed
from tests.support.builders import version_without_files as version


@pytest.fixture
def place() -> Catalogue:
    return Catalogue(f"memory://{uuid.uuid4().hex}")


def test_commits_are_numbered_and_each_holds_everything(place: Catalogue) -> None:
    assert place.head().number == 0
    place.put_version("a", version("1"), None)
    place.put_version("b/c", version("2"), None)
    place.put_version("a", version("3"), version("1"))
    head = place.head()
    assert head.number == 3
    assert {n: v["s1"].dna for n, v in head.datasets.items()} == {"a": "3", "b/c": "2"}
    assert [c.action for c in place.log()] == ["build a", "build b/c", "build a"]
    assert place.find("a", at=1).dna == "1"
    assert place.names(at=1) == ["a"]
    assert place.names() == ["a", "b/c"]


def test_committing_the_same_version_again_makes_no_commit(place: Catalogue) -> None:
    place.put_version("a", version("1"), None)
    place.put_version("a", version("1"), None)
    assert place.head().number == 1


def test_a_version_based_on_an_outdated_one_is_refused(place: Catalogue) -> None:
    place.put_version("a", version("1"), None)
    place.put_version("a", version("2"), version("1"))
    with pytest.raises(Conflict, match="another job committed 2 while this one built upon 1"):
        place.put_version("a", version("3"), version("1"))
    assert place.find("a").dna == "2"


def test_versions_of_two_specs_exist_side_by_side(place: Catalogue) -> None:
    place.put_version("a", version("1", "aa11"), None)
    place.put_version("a", version("2", "bb22"), None)
    assert place.find("a").dna == "1"
    assert place.find("a", spec="bb").dna == "2"
    with pytest.raises(NotFound, match=r"0 specs .* begin with 'zz'; there are: aa11, bb22"):
        place.find("a", spec="zz")
    place.put_version("b", version("3", "bb22"), None)
    assert place.find("b").dna == "3"  # its only one
    with pytest.raises(NotFound, match="b has no version under spec aa11; it has one under: bb22"):
        place.find("b", spec="aa")
    with pytest.raises(NotFound, match="no dataset 'x'; it has: a, b"):
        place.find("x")


@pytest.mark.parametrize("kind", ["file", "memory", "s3"])
def test_many_writers_at_once_lose_nothing(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        root = f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    else:
        root = tmp_path.as_uri() if kind == "file" else f"memory://{uuid.uuid4().hex}"
    barrier = threading.Barrier(8)

    def write(i: int) -> None:
        barrier.wait()
        Catalogue(root).put_version(f"d{i}", version(str(i)), None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    head = Catalogue(root).head()
    assert head.number == 8
    assert sorted(head.datasets) == [f"d{i}" for i in range(8)]
    assert [len(c.datasets) for c in Catalogue(root).log()] == list(range(8, 0, -1))


@pytest.mark.parametrize("hint", [b"1", b"7", b"garbage", b"", b"-3", None])
def test_the_latest_commit_is_found_whatever_the_hint_says(
    place: Catalogue, hint: bytes | None
) -> None:
    for i in range(3):
        place.put_version(f"d{i}", version(str(i)), None)
    uri = storage.join(place.root, "_log", "_latest")
    if hint is None:
        storage.delete(uri)
    else:
        storage.replace(uri, hint)
    assert place.head().number == 3


def test_a_state_is_found_by_its_time_or_number(place: Catalogue) -> None:
    place.put_version("a", version("1"), None)
    assert place.at("2999-01-01").number == place.at("1").number == place.at(1).number == 1
    assert place.at(place.head().time).number == 1
    with pytest.raises(NotFound, match="as old as 1999"):
        place.at("1999-01-01")
    with pytest.raises(UsageError, match="at is 'yesterday'"):
        place.at("yesterday")
    with pytest.raises(NotFound, match="no commit 9"):
        place.at(9)
    with pytest.raises(UsageError, match=r"at is '9{199}…; give a commit's number"):
        place.at("9" * 5000)


def test_forged_commits_are_refused(place: Catalogue) -> None:
    place.put_version("a", version("1"), None)
    uri = place.log_uri(1)
    body = json.loads(storage.read(uri))
    forgeries = [
        sealed(body | change)
        for change in (
            {"format": 99},
            {"number": 5},
            {"number": 5, "previous": "0" * 64},
            {"datasets": {"a": {"s1": {}}}},
            {"x": 1},
        )
    ]
    unsealed = {name: value for name, value in body.items() if name != "checksum"}
    forgeries += [
        json.dumps(unsealed).encode(),
        json.dumps(body | {"action": "x"}).encode(),
        b"{torn",
    ]
    for forged in forgeries:
        storage.replace(uri, forged)
        with pytest.raises(CorruptFile, match="_log"):
            place.head()


def test_each_commit_names_the_one_before_it(place: Catalogue) -> None:
    for i in range(3):
        place.put_version(f"d{i}", version(str(i)), None)
    bodies = [storage.read(place.log_uri(number)) for number in (1, 2, 3)]
    digests = [hashlib.sha256(body).hexdigest() for body in bodies]
    assert [commit.previous for commit in place.log()] == [digests[1], digests[0], None]


def test_each_commit_states_its_time_and_its_own_software(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("1", "2"):
        monkeypatch.setattr("pipeline.catalogue.commit_log.software", lambda r=release: r)
        place.put_version(f"d{release}", version(release), None)
    assert [commit.software for commit in place.log()] == ["2", "1"]
    for commit in place.log():
        moment = datetime.fromisoformat(commit.time)
        assert abs(datetime.now(UTC) - moment) < timedelta(hours=1)
        assert commit.time == moment.isoformat(timespec="seconds")


def changed(place: Catalogue, number: int, **change: object) -> str:
    uri = place.log_uri(number)
    storage.replace(uri, sealed(json.loads(storage.read(uri)) | change))
    return uri


@pytest.mark.parametrize("number", [1, 2])
def test_an_old_commit_that_was_edited_is_named(place: Catalogue, number: int) -> None:
    """Its own checksum is right, but the commit after it states another one."""
    for i in range(3):
        place.put_version(f"d{i}", version(str(i)), None)
    uri = changed(place, number, action="nothing")
    assert place.head().number == 3
    with pytest.raises(CorruptFile, match=f"{uri} has sha256 .* commit {number + 1} was made upon"):
        list(place.log())
    with pytest.raises(CorruptFile, match=uri):
        place.at("1999-01-01")


@pytest.mark.parametrize(("number", "previous"), [(1, "0" * 64), (2, None)])
def test_the_first_commit_alone_has_none_before_it(
    place: Catalogue, number: int, previous: str | None
) -> None:
    """Otherwise a log that was cut in two would look complete."""
    for i in range(number):
        place.put_version(f"d{i}", version(str(i)), None)
    changed(place, number, previous=previous)
    with pytest.raises(CorruptFile, match="the first commit alone names none"):
        place.head()


def test_a_writer_who_was_late_builds_upon_the_commit_that_won(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.create

    def late(uri: str, data: bytes) -> bool:
        monkeypatch.setattr(storage, "create", real)
        place.put_version("winner", version("1"), None)
        return real(uri, data)

    monkeypatch.setattr(storage, "create", late)
    place.put_version("late", version("2"), None)
    assert [sorted(commit.datasets) for commit in place.log()] == [["late", "winner"], ["winner"]]


def test_a_missing_bucket_is_not_an_empty_catalogue(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_bucket(uri: str) -> bytes:
        raise NoBucket(f"{uri}: there is no bucket")

    monkeypatch.setattr(storage, "read", no_bucket)
    with pytest.raises(NoBucket):
        place.head()


def test_a_gap_is_found_without_the_hint(place: Catalogue) -> None:
    """Whoever took the missing number would hide all later commits."""
    for i in range(3):
        place.put_version(f"d{i}", version(str(i)), None)
    storage.delete(place.hint_uri)
    assert place.head().number == 3
    storage.delete(place.log_uri(2))
    for action in (place.head, lambda: place.put_version("x", version("x"), None)):
        with pytest.raises(CorruptFile, match=f"{place.log_uri(2)} is missing.*has a gap"):
            action()


def test_the_last_commits_are_missed_where_the_hint_names_them(place: Catalogue) -> None:
    for i in range(3):
        place.put_version(f"d{i}", version(str(i)), None)
    place.require_end()
    storage.delete(place.log_uri(3))
    assert place.head().number == 2
    with pytest.raises(CorruptFile, match=f"names commit 3, and {place.log_uri(3)} is missing"):
        place.require_end()
    storage.delete(place.hint_uri)
    place.require_end()


@pytest.mark.parametrize("hint", [b"1", b"garbage", b"", b"-3"])
def test_a_hint_that_names_no_later_commit_says_nothing(place: Catalogue, hint: bytes) -> None:
    place.put_version("a", version("1"), None)
    storage.replace(place.hint_uri, hint)
    place.require_end()
    assert place.head().number == 1


def test_commits_read_back_as_written(place: Catalogue) -> None:
    written = place.put_version("a", replace(version("1"), failed=2), None)
    assert place.head() == written


@pytest.mark.parametrize("name", ["a", "a-b_c.d", "x/y/z", "1", "a..b", "a/_b"])
def test_valid_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a b", "ä", "a\n", "a:b", "<script>", "_tiles"],
)
def test_bad_names_are_refused_with_the_name(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("at", [None, 1, "1", "2026-01-01"])
def test_a_place_without_a_catalogue_is_named_whatever_is_asked_of_it(
    at: int | str | None, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match=r"there is no catalogue at .*/none yet"):
        Catalogue(str(tmp_path / "none")).at(at)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match="/file is a file; a catalogue is a folder"):
        Catalogue(str(tmp_path / "file")).at(at)


def version_of(spec: str, name: str, *, imported: bool) -> Version:
    return Version(
        dna=name * 32,
        manifest="" if imported else "m" * 32,
        spec=spec * 32,
        images=1,
        failed=0,
        products=("histogram",),
        sha256={kind: "00" for kind in (("dna",) if imported else FILES)},
        footers={kind: Footer(0, 1, "00") for kind in (("dna",) if imported else ("dna", "folds"))},
        source="s",
        built="2026-01-01T00:00:00+00:00",
        software="x",
        numerics=(),
        origin={"software": "vdna 0.1.1", "assumed": True} if imported else {},
    )


def test_an_imported_spec_is_the_default_only_until_the_first_build() -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    place.put_version("old", version_of("a", "1", imported=True), None)
    assert place.head().default_spec == "a" * 32
    place.put_version("other", version_of("b", "2", imported=True), None)
    assert place.head().default_spec == "a" * 32
    place.put_version("new", version_of("c", "3", imported=False), None)
    assert place.head().default_spec == "c" * 32
    place.put_version("newer", version_of("d", "4", imported=False), None)
    place.put_version("late", version_of("a", "5", imported=True), None)
    assert place.head().default_spec == "c" * 32


def test_a_dataset_of_one_spec_is_found_without_saying_which() -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    place.put_version("new", version_of("c", "3", imported=False), None)
    old = version_of("a", "1", imported=True)
    place.put_version("old", old, None)
    assert place.find("old") == old
    place.put_version("old", version_of("b", "2", imported=True), None)
    with pytest.raises(NotFound, match="choose with `spec`"):
        place.find("old")
