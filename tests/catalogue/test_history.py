"""Older versions and the log: what `verify` finds with all of them, and what stops a collection."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.catalogue import (
    Catalogue,
    Finding,
    Verification,
    Version,
    collect,
    garbage,
    remove,
    verify,
)
from pipeline.catalogue.verification import raise_if_unanswered
from pipeline.counting import partial_uri
from pipeline.errors import CorruptFile, NotFound, TooManyBytes, TransientError, UsageError
from pipeline.events import Event, Finished, Started, StepDone
from pipeline.sources import plan
from tests.golden.handmade import SPEC, commit_dataset, entries, hand_made
from tests.support.builders import all_shards, sealed, tiny_spec

NAME = "photos"
NOW = timedelta(seconds=-60)
"""A grace period that makes all that is there old."""


def put(catalogue: Catalogue, count: int, name: str = NAME) -> Version:
    manifest = plan(entries(name, count))
    return commit_dataset(catalogue, name, manifest, [hand_made(s) for s in all_shards(manifest)])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of one dataset, then one of another."""
    folder = tmp_path_factory.mktemp("built") / "catalogue"
    for count in (2, 3, 4):
        put(Catalogue(str(folder)), count)
    put(Catalogue(str(folder)), 2, "others")
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Catalogue:
    shutil.copytree(built, tmp_path / "copy")
    return Catalogue(str(tmp_path / "copy"))


def all_findings(place: Catalogue) -> list[Finding]:
    return list(verify(place, all_versions=True))


def wrong(place: Catalogue) -> list[tuple[str, str, int | None]]:
    return [(f.dataset, f.check, f.at) for f in all_findings(place) if not f.ok]


def version_at(place: Catalogue, number: int) -> Version:
    return place.commit(number).datasets[NAME][SPEC.digest]


def uri_of(place: Catalogue, kind: str, number: int) -> str:
    version = version_at(place, number)
    if kind == "partial":
        (key, *_) = place.manifest(NAME, version).keys(version.spec, version.products)
        return partial_uri(place.partials_uri(NAME, version), key)
    return place.uri(kind, version.spec, NAME, version.digest_in(kind))


def flip(uri: str) -> None:
    data = bytearray(storage.read(uri))
    data[len(data) // 4] ^= 1
    storage.replace(uri, bytes(data))


def edit_commit(place: Catalogue, number: int) -> None:
    uri = place.log_uri(number)
    storage.replace(uri, sealed(json.loads(storage.read(uri)) | {"action": "build something"}))


def orphan(place: Catalogue) -> str:
    uri = storage.join(place.root, "_work", "probe-0123")
    storage.create(uri, b"orphan")
    return uri


# All is well.


def test_every_version_and_the_log_are_checked(place: Catalogue) -> None:
    findings = all_findings(place)
    assert all(finding.ok for finding in findings)
    assert {(f.dataset, f.at) for f in findings} == {
        ("", None), (NAME, None), ("others", None), (NAME, 1), (NAME, 2),
    }  # fmt: skip
    newest = list(verify(place))
    assert [f for f in findings if f.dataset and f.at is None] == newest
    assert {f.check for f in findings if f.at == 1} == {f.check for f in newest}
    log = findings[0]
    last = hashlib.sha256(storage.read(place.log_uri(4))).hexdigest()
    assert (log.check, log.detail) == (
        "log", f"4 commits, each made upon the one before; the last has sha256 {last}",
    )  # fmt: skip


def test_the_log_is_read_from_its_last_commit_though_that_has_no_version(
    place: Catalogue,
) -> None:
    remove(place, [NAME, "others"])
    log, *_ = all_findings(place)
    last = hashlib.sha256(storage.read(place.log_uri(5))).hexdigest()
    assert (log.ok, log.detail) == (
        True, f"5 commits, each made upon the one before; the last has sha256 {last}",
    )  # fmt: skip


def test_names_choose_among_older_versions_too(place: Catalogue) -> None:
    named = list(verify(place, ["others"], all_versions=True))
    assert {(f.dataset, f.at) for f in named} == {("", None), ("others", None)}
    of_spec = list(verify(place, [NAME], SPEC.digest[:6], all_versions=True))
    assert {f.at for f in of_spec} == {None, 1, 2}
    with pytest.raises(NotFound):
        list(verify(place, ["x"], all_versions=True))


def test_a_version_that_is_named_is_checked_alone(place: Catalogue) -> None:
    everything = all_findings(place)

    def of(*numbers: int | None) -> list[Finding]:
        versions = ([f for f in everything if (f.dataset, f.at) == (NAME, at)] for at in numbers)
        return [finding for found in versions for finding in found]

    assert list(verify(place, [f"{NAME}@-1"])) == of(2)
    assert list(verify(place, [f"{NAME}@1", NAME, f"{NAME}@4", f"{NAME}@1"])) == of(1, None)
    assert list(verify(place, [f"{NAME}@1"], all_versions=True)) == [everything[0], *of(1)]
    assert list(verify(place, [f"{NAME}@1", NAME], all_versions=True)) == [
        everything[0], *of(1, None, 2),
    ]  # fmt: skip
    flip(uri_of(place, "dna", 1))
    for name, state in (("@1", False), ("@-1", True), ("", True)):
        assert all(f.ok for f in verify(place, [f"{NAME}{name}"])) == state, name
    remove(place, [NAME])
    assert {(f.dataset, f.at) for f in verify(place, [f"{NAME}@2"], SPEC.digest[:6])} == {(NAME, 2)}
    with pytest.raises(NotFound, match="there is no photos@9; its versions are photos@3"):
        list(verify(place, [f"{NAME}@9"]))
    with pytest.raises(UsageError, match="photos@last:7d is a window of days"):
        list(verify(place, [f"{NAME}@last:7d"]))
    older, newest = Verification(tuple(of(1))), Verification(tuple(of(None)))
    assert older.note.startswith("only the versions that were named were checked")
    assert newest.note.startswith("only the newest version of each dataset was checked")
    assert "<Verification of the versions that were named in" in repr(older)


def test_a_spec_chooses_among_older_versions_too(place: Catalogue) -> None:
    spec, ranges = tiny_spec(bins=9)
    for count in (3, 4):
        manifest = plan(entries(NAME, count))
        partials = [hand_made(shard, spec, ranges) for shard in manifest.shards]
        commit_dataset(place, NAME, manifest, partials, spec, ranges)

    def versions(chosen: str | None) -> set[int | None]:
        return {f.at for f in verify(place, [NAME], chosen, all_versions=True) if f.dataset}

    assert versions(SPEC.digest) == {None, 1, 2}
    assert versions(spec.digest) == {None, 5}
    assert versions(None) == {None, 1, 2, 5}


def test_an_object_that_is_too_long_is_a_finding_and_an_unanswered_request_is_not() -> None:
    raise_if_unanswered(TooManyBytes("longer than 9 bytes"), "photos, counts")
    raise_if_unanswered(CorruptFile("torn"), "photos, counts")
    with pytest.raises(TransientError, match=r"photos, counts: not checked, .*: no answer"):
        raise_if_unanswered(TransientError("no answer"), "photos, counts")


def test_an_empty_catalogue_has_an_empty_log(tmp_path: Path) -> None:
    (finding,) = all_findings(Catalogue(str(tmp_path)))
    assert finding.ok
    assert finding.detail.startswith("0 commits")


def test_a_catalogue_of_one_version_has_a_log_of_one_commit(tmp_path: Path) -> None:
    place = Catalogue(str(tmp_path))
    put(place, 2)
    log, *_ = all_findings(place)
    assert log.ok
    assert log.detail.startswith("1 commit,")


def test_the_listener_is_told_of_each_version(place: Catalogue) -> None:
    told: list[Event] = []
    findings = list(verify(place, all_versions=True, progress=told.append))
    checks = [f for f in findings if f.dataset]
    assert told[0] == Started(len(checks), 4, unit="checks", step="versions")
    done = [(e.name, e.units) for e in told if isinstance(e, StepDone)]
    assert done == [(name, len(checks) // 4) for name in ("others", NAME, NAME, NAME)]
    assert told[-1] == Finished(ok=True)


# What is wrong is found, with all versions alone.

DAMAGES: dict[str, tuple[Callable[[Catalogue], object], tuple[str, str, int | None]]] = {
    **{
        f"a flipped bit in the {kind} of version {number}": (
            lambda place, kind=kind, number=number: flip(uri_of(place, kind, number)),
            (NAME, check, number),
        )
        for number, kind, check in (
            (1, "dna", "counts"),
            (2, "folds", "folds"),
            (2, "failures", "failures"),
            (1, "manifests", "manifest"),
        )
    },
    "an old commit edited": (
        lambda place: edit_commit(place, 2),
        ("", "log", None),
    ),
    "an old commit deleted": (
        lambda place: storage.delete(place.log_uri(2)),
        ("", "log", None),
    ),
    "the first commit deleted": (
        lambda place: storage.delete(place.log_uri(1)),
        ("", "log", None),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_history_is_found_and_stops_a_collection(place: Catalogue, damage: str) -> None:
    spoil, expected = DAMAGES[damage]
    lost = orphan(place)
    spoil(place)
    assert [f for f in verify(place) if not f.ok] == []
    assert expected in wrong(place)
    says = "is missing, though later" if "deleted" in damage else "sha256|its rows|torn"
    with pytest.raises(CorruptFile, match=says):
        collect(place, grace=NOW)
    assert storage.exists(lost)


def test_the_last_commit_deleted_is_found_by_the_hint(place: Catalogue) -> None:
    """Its versions would be garbage."""
    storage.delete(place.log_uri(4))
    assert wrong(place) == [("", "log", None)]
    for act in (collect, lambda place, grace: list(garbage(place, grace=grace))):
        with pytest.raises(CorruptFile, match="the last commits were removed"):
            act(place, grace=NOW)


def test_versions_behind_a_sound_piece_of_the_log_are_still_checked(place: Catalogue) -> None:
    flip(uri_of(place, "dna", 2))
    storage.delete(place.log_uri(1))
    assert ("", "log", None) in wrong(place)
    assert (NAME, "counts", 2) in wrong(place)


def test_the_version_is_named_where_a_collection_stops(place: Catalogue) -> None:
    orphan(place)
    flip(uri_of(place, "dna", 1))
    named = f"nothing was removed.*{NAME}, commit 1, counts: .*{uri_of(place, 'dna', 1)}.*--all"
    with pytest.raises(CorruptFile, match=named):
        collect(place, grace=NOW)
    assert collect(place, keep=2, grace=NOW)[0] > 0  # the damaged one is not among the kept
    assert wrong(place) == []


def test_a_damaged_newest_version_keeps_the_older_ones(place: Catalogue) -> None:
    flip(uri_of(place, "folds", 3))
    before = {item.uri for item in storage.walk(place.root)}
    with pytest.raises(CorruptFile, match="commit 3, folds"):
        collect(place, keep=1, grace=NOW)
    assert {item.uri for item in storage.walk(place.root)} == before


def test_without_garbage_nothing_is_read_again(place: Catalogue) -> None:
    flip(uri_of(place, "dna", 1))
    assert collect(place, grace=NOW) == (0, 0)


def test_a_store_that_does_not_answer_is_not_damage(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = orphan(place)

    def silent(uri: str) -> bytes:
        raise TransientError(f"{uri}: no answer")

    monkeypatch.setattr("pipeline.catalogue.partial_sums.load_partial", silent)
    with pytest.raises(TransientError, match="no answer"):
        collect(place, grace=NOW)
    assert storage.exists(lost)
    with pytest.raises(TransientError, match="partials: not checked, because the store did"):
        list(verify(place))


def test_a_log_that_the_store_does_not_give_is_no_finding(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(catalogue: Catalogue) -> None:
        raise TransientError("no answer")

    monkeypatch.setattr(Catalogue, "require_end", refuse)
    with pytest.raises(TransientError, match="log: not checked, because the store did"):
        all_findings(place)


# What a collection removed.


def test_a_manifest_that_another_version_needs_may_be_all_that_is_left(place: Catalogue) -> None:
    version = version_at(place, 1)
    for kind in version.sha256:
        if kind != "manifests":
            storage.delete(uri_of(place, kind, 1))
    findings = all_findings(place)
    assert [f.detail[:19] for f in findings if f.check == "history"] == ["1 older version has"]
    assert all(finding.ok for finding in findings)


@pytest.mark.parametrize(
    ("keep", "removed"), [(1, "2 older versions have"), (2, "1 older version has")]
)
def test_versions_that_a_collection_removed_are_no_fault(
    place: Catalogue, keep: int, removed: str
) -> None:
    assert collect(place, keep=keep, grace=NOW)[0] > 0
    findings = all_findings(place)
    assert all(finding.ok for finding in findings)
    assert len({f.at for f in findings}) == keep
    (history,) = [f for f in findings if f.check == "history"]
    assert history.dataset == NAME
    assert history.detail.startswith(f"{removed} no files left")
    orphan(place)
    assert collect(place, grace=NOW) == (1, 6)


@pytest.mark.parametrize("kind", ["dna", "folds", "failures", "manifests"])
def test_an_older_version_that_lacks_a_file_is_wrong_and_stops_no_collection(
    place: Catalogue, kind: str
) -> None:
    """A collection that was interrupted leaves it so, and is run again."""
    storage.delete(uri_of(place, kind, 1))
    (finding,) = [f for f in all_findings(place) if not f.ok]
    assert (finding.dataset, finding.check, finding.at) == (NAME, "files", 1)
    assert finding.detail.startswith(f"{kind} missing, ")
    orphan(place)
    left = {item.uri for item in storage.walk(place.root) if "/dna/" in item.uri}
    assert collect(place, grace=NOW)[0] >= 1
    assert left <= {item.uri for item in storage.walk(place.root)}
    collect(place, keep=2, grace=NOW)
    assert wrong(place) == []


def test_a_version_that_is_committed_during_the_checks_is_checked_too(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.catalogue import garbage_collection

    orphan(place)
    real = garbage_collection.require_undamaged
    seen = []

    def meanwhile(catalogue: Catalogue, versions: list, *_: object) -> None:
        seen.append([kept.commit for kept in versions])
        real(catalogue, versions)
        if len(seen) == 1:
            put(catalogue, 6)

    monkeypatch.setattr(garbage_collection, "require_undamaged", meanwhile)
    collect(place, grace=NOW)
    assert [sorted(commits) for commits in seen] == [[1, 2, 4, 4], [5]]


def test_a_collection_reads_the_log_once_unless_there_is_a_new_commit(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log of years has many thousand commits."""
    orphan(place)
    real, read = Catalogue.log, []
    monkeypatch.setattr(Catalogue, "log", lambda self: read.append(1) or real(self))
    assert collect(place, grace=NOW)[0] > 0
    assert len(read) == 1
