"""Datasets are taken out of the catalogue and brought back, by commits that lose no file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.catalogue import (
    Catalogue,
    collect,
    garbage_collection,
    remove,
    roll_back,
    undoing,
    verify,
)
from pipeline.catalogue.changes import without_datasets
from pipeline.catalogue.kept_versions import KeptVersion
from pipeline.errors import Conflict, CorruptFile, NotFound, UsageError
from pipeline.sources import Entries
from tests.catalogue.test_kept_versions import found, log, version
from tests.catalogue.test_version_history import found as history
from tests.golden.handmade import NETWORK, Original, Place


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
        )
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, network: None) -> Original:
    def fill(place: Place) -> None:
        for name in ("a", "b"):
            place.photos(name, 3)
            place.build(name)

    return Original(tmp_path_factory.mktemp("original"), fill)


@pytest.fixture
def place(original: Original) -> Place:
    return original.again()


def everything(catalogue: Catalogue) -> set[str]:
    return {item.uri for item in storage.walk(catalogue.root) if "/_log/" not in item.uri}


def make_old(catalogue: Catalogue) -> None:
    """Makes all files look as if they were written a month ago."""
    then = time.time() - timedelta(days=30).total_seconds()
    for uri in everything(catalogue):
        os.utime(storage.local_path(uri), (then, then))


def collect_old(catalogue: Catalogue, **options: Any) -> tuple[int, int]:
    make_old(catalogue)
    return collect(catalogue, **options)


def test_what_was_taken_out_comes_back_as_it_was(place: Place) -> None:
    before, files = place.catalogue.head(), everything(place.catalogue)
    commit = remove(place.catalogue, ["a"])
    assert (commit.number, commit.action) == (3, "remove a")
    assert commit.datasets == {"b": before.datasets["b"]}
    assert files - everything(place.catalogue) == {
        place.catalogue.plan_uri("a", spec) for spec in before.datasets["a"]
    }
    back = roll_back(place.catalogue, "a", before.number)
    assert (back.number, back.action) == (4, "roll back a to commit 2")
    assert back.datasets == before.datasets
    assert all(finding.ok for finding in verify(place.catalogue))
    assert roll_back(place.catalogue, "a", before.number).number == 4  # it is there


def test_a_former_version_comes_back_and_the_source_is_looked_at_again(place: Place) -> None:
    first = place.catalogue.head()
    place.photos("a", 4)
    second = place.build("a").version
    back = roll_back(place.catalogue, "a", first.number)
    assert back.datasets == first.datasets
    again = place.build("a")
    assert again.version.dna == second.dna
    assert again.counted_shards == 0


def test_a_dataset_that_was_taken_out_can_be_built_again(place: Place) -> None:
    former = place.catalogue.find("a").dna
    remove(place.catalogue, ["a"])
    again = place.build("a")
    assert again.version.dna == former
    assert again.replaced is None


def test_a_build_upon_a_version_that_was_taken_out_meanwhile_is_refused(place: Place) -> None:
    base = place.catalogue.find("a")
    remove(place.catalogue, ["a"])
    other = version("0123", base.spec)
    with pytest.raises(Conflict, match="a: it was taken out of the catalogue, or renamed, while"):
        place.catalogue.put_version("a", other, base)


def test_names_that_are_not_there_change_nothing(place: Place) -> None:
    before = place.catalogue.head()
    with pytest.raises(NotFound, match="no dataset 'c'"):
        remove(place.catalogue, ["a", "c"])
    with pytest.raises(NotFound, match="0 specs of"):
        remove(place.catalogue, ["a"], "ffff")
    with pytest.raises(NotFound, match="there is no a@7; its versions are a@1"):
        roll_back(place.catalogue, "a", 7)
    with pytest.raises(NotFound, match="there is no b@1; its versions are b@2"):
        roll_back(place.catalogue, "b", 1)
    assert place.catalogue.head() == before


def test_gc_removes_what_was_taken_out_only_where_it_keeps_a_number(place: Place) -> None:
    before = place.catalogue.head()
    remove(place.catalogue, ["a"])
    assert collect_old(place.catalogue) == (0, 0)
    assert roll_back(place.catalogue, "a", before.number).datasets == before.datasets
    remove(place.catalogue, ["a"])
    assert collect_old(place.catalogue, keep=1)[0] > 4
    left = everything(place.catalogue)
    assert not [uri for uri in left if "/a/" in uri.removeprefix(place.catalogue.root)]
    last = place.catalogue.head()
    with pytest.raises(CorruptFile, match="a cannot go back to commit 2: `vdna gc` has"):
        roll_back(place.catalogue, "a", before.number)
    assert place.catalogue.head() == last
    assert all(finding.ok for finding in verify(place.catalogue))


def test_a_collection_beside_a_roll_back_is_noticed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = place.catalogue.head()
    remove(place.catalogue, ["a"])
    real = Catalogue.append

    def collect_first(self: Catalogue, *given: Any) -> Any:
        monkeypatch.setattr(Catalogue, "append", real)
        collect_old(self, keep=1)
        return real(self, *given)

    monkeypatch.setattr(Catalogue, "append", collect_first)
    with pytest.raises(CorruptFile, match="take it out of commit 4 by `vdna rm a`, and build it"):
        roll_back(place.catalogue, "a", before.number)


def test_a_collection_that_has_listed_the_files_of_a_version_leaves_them_once_it_came_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = place.catalogue.head()
    remove(place.catalogue, ["a"])
    real, calls = garbage_collection._old, []

    def and_then_it_comes_back(*given: Any, **options: Any) -> Iterator[storage.Stored]:
        found = list(real(*given, **options))
        calls.append(len(found))
        if len(calls) == 2:  # the last, before anything is removed
            roll_back(place.catalogue, "a", before.number)
        return iter(found)

    make_old(place.catalogue)
    monkeypatch.setattr(garbage_collection, "_old", and_then_it_comes_back)
    collect(place.catalogue, keep=1)
    monkeypatch.undo()
    assert calls[1] > 4
    assert place.catalogue.head().datasets == before.datasets
    place.catalogue.load("a", folds=True)
    place.catalogue.manifest("a", place.catalogue.find("a"))


@pytest.mark.parametrize("differs", ["manifest", "products"])
def test_the_plan_of_a_build_that_runs_stays(place: Place, differs: str) -> None:
    (spec,) = place.catalogue.head().datasets["a"]
    version, other = place.catalogue.find("a"), place.catalogue.find("b")
    manifest = other.manifest if differs == "manifest" else version.manifest
    products = (*version.products, *(["more"] if differs == "products" else []))
    place.catalogue.note_plan("a", spec, manifest, products, "torch")
    remove(place.catalogue, ["a"])
    assert storage.exists(place.catalogue.plan_uri("a", spec))


def test_a_part_does_not_come_back_alone(place: Place) -> None:
    catalogue = place.catalogue
    catalogue.put_version("c", version("1", by="l"), None, parts={"c/x": version("2", part_of="c")})
    divided = catalogue.head()
    remove(catalogue, ["c"])
    with pytest.raises(UsageError, match="c/x was a part of c at commit 3; roll back c"):
        roll_back(catalogue, "c/x", divided.number)


def test_the_default_spec_is_one_that_datasets_have() -> None:
    (head,) = log({"a": [version("1", "s")], "b": [version("1", "t")], "c": [version("1", "u")]})
    head = replace(head, default_spec="s")
    assert without_datasets(head, ["b"]).default_spec == "s"
    assert without_datasets(head, ["a"]).default_spec == "t"
    more = replace(head, datasets=head.datasets | {"d": head.datasets["c"]})
    assert without_datasets(more, ["a"]).default_spec == "u"
    assert without_datasets(head, ["a", "b", "c"]).default_spec == "s"


PARTS = {
    "a": [version("1", by="l"), version("9", "t")],
    "a/x": [version("x1", part_of="a"), version("x9", "t", part_of="a")],
    "a/y": [version("2")],
    "b": [version("3")],
}


def test_parts_go_with_their_dataset_and_no_other_of_that_folder() -> None:
    (head,) = log(PARTS)
    assert without_datasets(head, ["a"]).datasets.keys() == {"a/y", "b"}
    of_one_spec = without_datasets(head, ["a"], "s").datasets
    assert {name: [*of_one_spec[name]] for name in ("a", "a/x")} == {"a": ["t"], "a/x": ["t"]}
    assert without_datasets(head, ["a"], "u") is head
    with pytest.raises(UsageError, match=r"a/x is the part '' of a; remove a, or build it without"):
        without_datasets(head, ["b", "a/x"])


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["a", "a/y", "b", "none"]), max_size=4))
def test_whatever_is_taken_out_nothing_else_changes(names: Sequence[str]) -> None:
    (head,) = log(PARTS)
    left = without_datasets(head, names)
    gone = {*names} | ({"a/x"} if "a" in names else set())
    assert left.datasets == {n: v for n, v in head.datasets.items() if n not in gone}
    assert without_datasets(left, names) is left


def test_a_dataset_that_the_newest_commit_lacks_is_not_among_the_newest_versions() -> None:
    commits = log(PARTS, {"b": [version("3")]})
    assert found(commits, 1) == found(commits, 5) == [("b", "3", 2)]
    assert ("a", "1", 1) in found(commits)
    assert ("a/x", "x1", 1) in found(commits)


def test_a_dataset_that_was_taken_out_and_came_back_is_named_twice() -> None:
    commits = log({"a": [version("1")]}, {"b": [version("1")]}, {"a": [version("1")]})
    assert history(commits)["a"] == [("1", 3), ("1", 1)]


def test_the_parts_of_a_former_version_come_back_with_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = place.catalogue
    monkeypatch.setattr(undoing, "missing_files", lambda *_: [])
    monkeypatch.setattr(storage, "read_on_disk", lambda uri: b"x")
    none = SimpleNamespace(entries=Entries(), files=())
    monkeypatch.setattr(Catalogue, "manifest", lambda *_: none)
    catalogue.put_version("c", version("1", by="l"), None, parts={"c/x": version("2", part_of="c")})
    divided = catalogue.head()
    catalogue.put_version("c", version("3"), divided.datasets["c"]["s"])
    assert "c/x" not in catalogue.head().datasets
    assert roll_back(catalogue, "c", divided.number).datasets == divided.datasets
    remove(catalogue, ["c"])
    assert "c/x" not in catalogue.head().datasets
    catalogue.put_version("c/x", version("5"), None)
    with pytest.raises(Conflict, match="c/x is already a dataset of its own"):
        roll_back(catalogue, "c", divided.number)


def test_of_several_specs_one_or_all_are_taken_out(place: Place) -> None:
    catalogue = place.catalogue
    (own,) = catalogue.head().datasets["a"]
    for spec in ("1111", "2222"):
        catalogue.put_version("c", version("3", spec), None)
    with pytest.raises(NotFound, match="c has no version under spec"):
        remove(catalogue, ["c"], own[:8])
    assert remove(catalogue, ["c"], "11").datasets["c"].keys() == {"2222"}
    catalogue.put_version("c", version("3", "1111"), None)
    assert "c" not in remove(catalogue, ["c"]).datasets  # neither is the default
    assert "a" not in remove(catalogue, ["a"], own[:8]).datasets
    assert not storage.exists(catalogue.plan_uri("a", own))


def test_a_former_version_whose_parts_lack_files_does_not_come_back(place: Place) -> None:
    catalogue = place.catalogue
    whole = next(iter(catalogue.head().datasets["a"].values()))
    part = replace(version("2", whole.spec), part_of="a", by="l")
    catalogue.put_version("a", replace(whole, by="l"), whole, parts={"a/x": part})
    divided = catalogue.head()
    catalogue.put_version("a", whole, divided.datasets["a"][whole.spec])
    with pytest.raises(CorruptFile, match="a/x cannot go back to commit 3: `vdna gc` has removed"):
        roll_back(catalogue, "a", divided.number)


def test_the_former_version_is_that_of_the_spec(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = place.catalogue
    monkeypatch.setattr(undoing, "require_files", lambda *_: None)
    monkeypatch.setattr(undoing, "renew_files", lambda *_: None)
    for dna in ("1", "2"):
        for spec in ("aaaa", "bbbb"):
            base = catalogue.head().datasets.get("c", {}).get(spec)
            catalogue.put_version("c", version(dna, spec), base)
    back = roll_back(catalogue, "c", 4, "bb").datasets["c"]
    assert {spec: of.dna for spec, of in back.items()} == {"aaaa": "2", "bbbb": "1"}


def test_imported_versions_and_parts_have_no_candidates_of_their_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(storage, "read_on_disk", lambda uri: uri)
    monkeypatch.setattr(storage, "replace", lambda uri, data: written.append(uri))
    one = version("1")
    for of in (replace(one, origin={"file": "x"}), replace(one, part_of="c")):
        undoing.renew_files(place.catalogue, [KeptVersion("c", of, 1)])
    assert len(written) == 2 * len(one.sha256) > 0
