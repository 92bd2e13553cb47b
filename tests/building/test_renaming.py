"""A renamed dataset is, to the byte, what a build under the new name would have made."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pipeline.sources.manifest
from pipeline import storage
from pipeline.building import Request, Result, build_datasets, rename_dataset
from pipeline.catalogue import (
    Catalogue,
    Commit,
    collect,
    remove,
    roll_back,
    tag_version,
    verify,
)
from pipeline.counting import ShardJob, ShardReceipt
from pipeline.engine import InProcess
from pipeline.errors import Conflict, CorruptFile, NotFound, UsageError
from pipeline.events import Event, Started, StepDone
from pipeline.spec import Resources
from tests.golden.handmade import NETWORK, SPEC, HandMade, Place, commit_dataset, hand_made
from tests.support import tiny_network as tiny
from tests.support.builders import tiny_spec, write_photos
from tests.support.killer import Killed, Killer, killer

__all__ = ["killer"]  # a fixture


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(
        "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
    )
    made = Place(tmp_path)
    made.photos("a", 6, bad=1)
    made.build("a", shard_images=2)
    return made


def files_of(catalogue: Catalogue, name: str) -> dict[str, bytes]:
    """Returns the objects of a dataset by their places, the name written as a dash."""
    found = {}
    for item in storage.walk(catalogue.root):
        place = item.uri.removeprefix(f"{catalogue.root}/")
        if f"/{name}/" in place and "/attempts/" not in place:
            found[place.replace(f"/{name}/", "/-/")] = bytes(storage.read(item.uri))
    return found


def of_the(head: Commit, name: str, to: str) -> dict[str, object]:
    """Returns the versions of a dataset and its parts as if it were called `to`."""
    return {
        to + each.removeprefix(name): [
            replace(v, built="", part_of=to if v.part_of else "") for v in specs.values()
        ]
        for each, specs in head.datasets.items()
        if each == name or each.startswith(f"{name}/")
    }


def sound(catalogue: Catalogue) -> bool:
    return all(finding.ok for finding in verify(catalogue, all_versions=True))


def test_a_renamed_dataset_is_to_the_byte_what_a_build_under_that_name_makes(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    write_photos(source / "rain", 3)
    write_photos(source / "sun", 2, first_seed=10)
    options: dict[str, Any] = {"by": "1", "shard_images": 2, "layer_gaussian": True}
    options |= tiny.install(tmp_path).options
    renamed, direct = (Catalogue(str(tmp_path / each)) for each in ("renamed", "direct"))
    for catalogue, name in ((renamed, "photos"), (direct, "city/all")):
        request = Request(name, str(source), **options)
        build_datasets(catalogue, [request], InProcess(), Resources(workers=0, threads=1))
    told: list[Event] = []
    commit = rename_dataset(renamed, "photos", "city/all", told.append)
    assert (commit.number, commit.action) == (2, "rename photos to city/all")
    assert sorted(commit.datasets) == ["city/all", "city/all/rain", "city/all/sun"]
    assert of_the(commit, "city/all", "x") == of_the(direct.head(), "city/all", "x")
    ours, theirs = files_of(renamed, "city/all"), files_of(direct, "city/all")
    assert ours.keys() == theirs.keys()
    kinds = {place.partition("/")[0] for place in ours}
    assert kinds >= {"dna", "folds", "layer_gaussians", "exemplars", "failures", "manifests"}
    assert [place for place in ours if ours[place] != theirs[place]] == []
    assert sound(renamed)
    steps = [event for event in told if isinstance(event, StepDone)]
    assert [event.steps for event in told if isinstance(event, Started)] == [len(steps)]


def test_the_next_build_under_the_new_name_counts_what_changed_only(place: Place) -> None:
    before = place.catalogue.find("a")
    rename_dataset(place.catalogue, "a", "b")
    again = build(place, "b")
    assert (again.changed, again.counted_shards) == (False, 0)
    assert (again.version.dna, again.version.images) == (before.dna, 5)
    place.photos("a", 7, bad=1)
    more = build(place, "b")
    assert (more.counted_shards, more.version.images) == (1, 6)
    assert sound(place.catalogue)


def test_former_versions_and_tags_are_found_under_the_old_name(place: Place) -> None:
    catalogue, first = place.catalogue, place.catalogue.find("a")
    tag_version(catalogue, "a", "release")
    place.photos("a", 8, bad=1)
    second = build(place, "a").version
    rename_dataset(catalogue, "a", "b")
    assert catalogue.find("a@release") == catalogue.find("a@1") == first
    for name, version in (("a@1", first), ("a@3", second), ("b", catalogue.find("b"))):
        assert catalogue.load(name, folds=True).images == version.images
    with pytest.raises(NotFound, match=r"has no dataset 'a'; it has: b\. Commit 4 renamed a to b$"):
        catalogue.find("a")
    with pytest.raises(NotFound, match="there is no b@1; its versions are b@4"):
        catalogue.find("b@1")
    back = roll_back(catalogue, "a", "release")
    assert {name: [v.dna for v in of.values()] for name, of in back.datasets.items()} == {
        "a": [first.dna],
        "b": [second.dna],
    }
    assert sound(catalogue)


def test_a_collection_keeps_what_is_renamed_and_drops_the_files_of_the_old_name(
    place: Place,
) -> None:
    rename_dataset(place.catalogue, "a", "b")
    whole = files_of(place.catalogue, "b")
    collect(place.catalogue, grace=timedelta(0))
    assert any("/-/" in each and each.startswith("dna/") for each in files_of(place.catalogue, "a"))
    collect(place.catalogue, keep=1, grace=timedelta(0))
    assert files_of(place.catalogue, "a") == {}
    assert files_of(place.catalogue, "b") == whole
    assert sound(place.catalogue)
    assert build(place, "b").counted_shards == 0


def test_the_name_may_be_used_again(place: Place) -> None:
    catalogue, first = place.catalogue, place.catalogue.find("a")
    rename_dataset(catalogue, "a", "b")
    assert build(place, "a").version.dna == first.dna
    remove(catalogue, ["b"])
    rename_dataset(catalogue, "a", "b")
    assert catalogue.find("b").dna == first.dna
    rename_dataset(catalogue, "b", "a")
    assert sound(catalogue)
    assert [*catalogue.head().datasets] == ["a"]


def test_every_spec_follows(place: Place) -> None:
    catalogue = place.catalogue
    (own,) = catalogue.head().datasets["a"].values()
    rename_dataset(catalogue, "a", "b")
    spec, ranges = tiny_spec(bins=7)
    manifest = catalogue.manifest("b", catalogue.find("b"))
    partials = [hand_made(shard, spec, ranges) for shard in manifest.shards]
    commit_dataset(catalogue, "b", manifest, partials, spec, ranges)
    commit = rename_dataset(catalogue, "b", "c")
    assert commit.datasets["c"].keys() == {own.spec, spec.digest}
    assert commit.datasets.keys() == {"c"}
    assert catalogue.load("c", spec=spec.digest).spec.bins == 7
    assert sound(catalogue)


def refusals(place: Place) -> Iterator[tuple[type[Exception], str, str, str]]:
    place.photos("x", 3)
    place.build("x")
    own = place.catalogue.find("a")
    part = replace(own, part_of="d", by="1", value="sun")
    place.catalogue.put_version("d", replace(own, by="1"), None, parts={"d/sun": part})
    place.catalogue.put_version("e/sun", own, None)
    yield NotFound, "none", "b", "has no dataset 'none'; it has"
    yield NotFound, "no", "x", "has no dataset 'no'"
    yield Conflict, "a", "x", "there is a dataset x already; choose another name"
    yield Conflict, "a", "a", "there is a dataset a already"
    yield Conflict, "d", "e", "there is a dataset e/sun already"
    yield UsageError, "d/sun", "f", "d/sun is the part 'sun' of d; rename d, and its parts follow"
    yield UsageError, "a", "b@1", "dataset name 'b@1': use letters"
    yield UsageError, "a@1", "b", "name the dataset, and no version of it"


def test_what_cannot_be_renamed_is_refused_and_nothing_changes(place: Place) -> None:
    wrong = list(refusals(place))
    before = {item.uri for item in storage.walk(place.catalogue.root)}
    for kind, old, new, message in wrong:
        with pytest.raises(kind, match=message):
            rename_dataset(place.catalogue, old, new)
    assert {item.uri for item in storage.walk(place.catalogue.root)} == before


Act = Callable[[Place], object]


def first_does(monkeypatch: pytest.MonkeyPatch, place: Place, act: Act) -> None:
    """Has something else committed just before the next commit."""
    real = Catalogue.append

    def append(self: Catalogue, *given: Any) -> Any:
        monkeypatch.setattr(Catalogue, "append", real)
        act(place)
        return real(self, *given)

    monkeypatch.setattr(Catalogue, "append", append)


def grow(place: Place) -> Result:
    place.photos("a", 8, bad=1)
    return build(place, "a")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (grow, "a: another job has changed it while it was renamed. Nothing was renamed, so run"),
        (lambda place: remove(place.catalogue, ["a"]), "a: another job has changed it while"),
        (lambda place: build(place, "b"), "there is a dataset b already"),
        (lambda place: rename_dataset(place.catalogue, "a", "c"), "a: another job has changed it"),
    ],
)
def test_a_rename_never_replaces_what_another_job_commits_meanwhile(
    place: Place, monkeypatch: pytest.MonkeyPatch, act: Act, message: str
) -> None:
    first_does(monkeypatch, place, act)
    with pytest.raises(Conflict, match=message):
        rename_dataset(place.catalogue, "a", "b")
    assert place.catalogue.head().number == 2
    assert sound(place.catalogue)


def test_an_unrelated_commit_meanwhile_does_not_matter(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.photos("x", 3)
    first_does(monkeypatch, place, lambda its: its.build("x"))
    commit = rename_dataset(place.catalogue, "a", "b")
    assert sorted(commit.datasets) == ["b", "x"]


class Renaming(HandMade):
    """An engine during whose work the dataset is renamed."""

    def __init__(self, catalogue: Catalogue, old: str, new: str) -> None:
        super().__init__()
        self._rename = (catalogue, old, new)

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        yield from super().run_shards(work)
        rename_dataset(*self._rename)


def test_a_build_that_runs_while_its_dataset_is_renamed_ends_with_an_error_and_loses_nothing(
    place: Place,
) -> None:
    catalogue = place.catalogue
    place.photos("a", 8, bad=1)
    with pytest.raises(Conflict, match="a: it was taken out of the catalogue, or renamed, while"):
        build(place, "a", Renaming(catalogue, "a", "b"))
    assert [*catalogue.head().datasets] == ["b"]
    assert catalogue.find("b").images == 5
    more = build(place, "b")
    assert (more.version.images, more.counted_shards) == (7, 0)  # what it counted is kept
    assert sound(catalogue)


def test_a_build_of_the_new_name_that_runs_meanwhile_ends_with_an_error(place: Place) -> None:
    place.photos("a", 8, bad=1)
    with pytest.raises(Conflict, match="b: another job committed"):
        build(place, "b", Renaming(place.catalogue, "a", "b"))
    assert build(place, "b").version.images == 7


def test_a_rename_that_dies_at_any_write_changes_nothing_and_a_rerun_completes_it(
    place: Place, killer: Killer
) -> None:
    catalogue, before = place.catalogue, place.catalogue.head()
    at = 0
    while catalogue.head() == before:
        at += 1
        killer(at, at % 2 == 0)
        with contextlib.suppress(Killed):
            rename_dataset(catalogue, "a", "b")
    assert at > 8
    killer(None, False)
    assert [*catalogue.head().datasets] == ["b"]
    assert build(place, "b").counted_shards == 0
    assert sound(catalogue)


def test_files_that_a_collection_took_meanwhile_are_noticed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = place.catalogue.find("a")
    lost = place.catalogue.uri("folds", own.spec, "b", own.dna)
    first_does(monkeypatch, place, lambda _: storage.delete(lost))
    with pytest.raises(
        CorruptFile, match=r"b was renamed by commit 2: .*its folds; bring a back by"
    ):
        rename_dataset(place.catalogue, "a", "b")


def test_a_damaged_file_is_not_renamed(place: Place) -> None:
    own = place.catalogue.find("a")
    storage.replace(place.catalogue.uri("failures", own.spec, "a", own.dna), b"x")
    with pytest.raises(CorruptFile, match="was committed"):
        rename_dataset(place.catalogue, "a", "b")
    assert place.catalogue.head().number == 1


def build(place: Place, name: str, engine: HandMade | None = None) -> Result:
    """Builds a dataset of that name from the images of `a`."""
    request = Request(
        name,
        str(place.folder / "a"),
        extractor=NETWORK.name,
        bins=SPEC.bins,
        ranges=str(place.folder / "tiny.ranges.parquet"),
        max_failures=100,
        shard_images=2,
        exemplars=0,
        image_hashes=False,
    )
    (result,) = build_datasets(place.catalogue, [request], engine or HandMade())
    return result


def test_a_rename_after_an_upgrade_keeps_the_manifest_that_it_commits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release of a library may write the same plan in other bytes."""
    real = pipeline.sources.manifest.encode_manifest

    def encode(*given: Any) -> bytes:
        data = bytes(real(*given))
        name = re.search(rb"parquet-cpp-arrow version \d", data)
        assert name is not None
        return data.replace(name[0], name[0][:-1] + (b"1" if name[0][-1:] != b"1" else b"2"))

    monkeypatch.setattr("pipeline.sources.manifest.encode_manifest", encode)
    rename_dataset(place.catalogue, "a", "b")
    assert [found for found in verify(place.catalogue) if not found.ok] == []
    collect(place.catalogue, grace=timedelta(0))
