"""A build by a change list commits what a build by a full listing commits."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.building import Request, Result, build_datasets, planner
from pipeline.building.planner import Planner
from pipeline.catalogue import Catalogue, Version, roll_back, verify
from pipeline.catalogue.undoing import remove
from pipeline.engine import InProcess
from pipeline.errors import Conflict, GateError, SourceError, TransientError, UsageError
from pipeline.events import Said
from pipeline.refreshing import load_config
from pipeline.reporting import build_json, build_sentence
from pipeline.sources import ChangeCounts, Listing, Manifest, Rules, list_source, plan
from pipeline.spec import Resources
from tests.sources.test_change_list import Row, write_changes
from tests.support import tiny_network as tiny
from tests.support.builders import same_counts

clock = itertools.count(1)


class Place:
    """A folder of pictures, and a catalogue."""

    def __init__(self, there: Path, network: tiny.Place) -> None:
        self.there = there
        self.images = there / "images"
        self.catalogue = Catalogue(str(there / "catalogue"))
        self.network = network
        self.said: list[str] = []
        for number in range(6):
            self.write(f"{'ab'[number % 2]}/{number}.png", number)

    def write(self, name: str, seed: int) -> None:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny.Picture("good", seed).data)
        at = next(clock) * 10**9
        os.utime(path, ns=(at, at))

    def remove(self, name: str) -> None:
        (self.images / name).unlink()

    def changes(self, **words: str | Sequence[str]) -> str:
        """Writes a list of names for each word."""
        rows: list[Row] = [
            {"uri": name, "change": word}
            for word, names in words.items()
            for name in ([names] if isinstance(names, str) else names)
        ]
        return write_changes(self.there / f"{next(clock)}.csv", rows, ("uri", "change"))

    def build(
        self, changes: str | None = None, catalogue: Catalogue | None = None, **options: Any
    ) -> Result:
        request = Request(
            "x", str(self.images), changes=changes, **(self.network.options | options)
        )
        (result,) = build_datasets(
            catalogue or self.catalogue,
            [request],
            InProcess(),
            Resources(workers=0, threads=1),
            lambda event: self.said.append(event.message) if isinstance(event, Said) else None,
        )
        return result

    def require_whole(self, result: Result, **options: Any) -> None:
        """Requires that a full listing finds nothing to do, and counts the same elsewhere."""
        assert all(finding.ok for finding in verify(self.catalogue))
        again = self.build(**options)
        assert not again.changed
        assert again.version.manifest == result.version.manifest
        fresh = Catalogue(str(self.there / f"fresh-{next(clock)}"))
        self.build(catalogue=fresh, **options)
        assert same_counts(self.catalogue.load("x"), fresh.load("x"))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("network"))


@pytest.fixture
def place(tmp_path: Path, network: tiny.Place) -> Place:
    return Place(tmp_path, network)


def test_a_build_by_a_list_is_that_of_a_full_listing(place: Place) -> None:
    first = place.build()
    assert first.changes is None
    place.write("b/new.png", 7)
    place.write("a/0.png", 8)
    place.remove("b/1.png")
    changes = place.changes(added="b/new.png", changed="a/0.png", removed="b/1.png")
    result = place.build(changes)
    assert result.changes == ChangeCounts(1, 1, 1, 0, 0)
    assert result.changed
    assert result.version.images == 6
    told = "of the change list: 1 added, 1 removed, 1 changed, 0 already so"
    assert told in build_sentence(result)
    assert build_json(result)["changes"] == {
        "added": 1,
        "removed": 1,
        "changed": 1,
        "unchanged": 0,
        "filtered": 0,
    }
    assert f"x: of {changes}: 1 added, 1 removed, 1 changed, 0 already so" in place.said
    assert f"x: listing {place.images}" in place.said[0]
    assert not any("listing" in said for said in place.said[1:])
    again = place.build(changes)
    assert again.changes == ChangeCounts(0, 0, 0, 3, 0)
    assert not again.changed
    assert "nothing to do, the images are the same" in build_sentence(again)
    place.require_whole(result)


def test_an_object_store_is_changed_alike(place: Place, root: str) -> None:
    for number in range(3):
        storage.create(f"{root}/images/{number}.png", tiny.Picture("good", number).data)
    options: dict[str, Any] = {"source": f"{root}/images", **place.network.options}
    catalogue, resources = Catalogue(f"{root}/dnas"), Resources(workers=0, threads=1)

    def build(changes: str | None = None) -> Result:
        request = Request("x", changes=changes, **options)
        return build_datasets(catalogue, [request], InProcess(), resources)[0]

    build()
    storage.create(f"{root}/images/new.png", tiny.Picture("good", 7).data)
    storage.replace(f"{root}/images/0.png", tiny.Picture("good", 8).data)
    storage.delete(f"{root}/images/1.png")
    rows = f"{root}/images/0.png,changed\n1.png,removed\nnew.png,added\n"
    storage.create(f"{root}/night.csv", f"uri,change\n{rows}".encode())
    result = build(f"{root}/night.csv")
    assert result.changes == ChangeCounts(1, 1, 1, 0, 0)
    assert result.version.images == 3
    assert not build().changed


def test_parts_follow_a_list(place: Place) -> None:
    place.build(by="1")
    place.write("c/new.png", 7)
    place.remove("a/0.png")
    result = place.build(place.changes(added="c/new.png", removed="a/0.png"))
    found = {name: version.images for name, version in result.parts.items()}
    assert found == {"x/a": 2, "x/b": 3, "x/c": 1}
    place.require_whole(result)


@pytest.mark.parametrize("removed", [False, True])
def test_a_dataset_without_an_earlier_version_has_no_changes(place: Place, removed: bool) -> None:
    if removed:
        place.build()
        remove(place.catalogue, ["x"])
    with pytest.raises(UsageError, match=r"x has no earlier version under spec .* build it once"):
        place.build(place.changes(added="a/0.png"))
    assert place.catalogue.head().datasets.get("x") is None


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"include": "a/*"}, {}, "listed with include 'a/*', and include is None now"),
        ({}, {"exclude": "a/*"}, "listed with exclude None, and exclude is 'a/*' now"),
        ({}, {"group_by": "1"}, "listed with group_by None, and group_by is '1' now"),
        ({}, {"by": "1"}, "listed with by None, and by is '1' now"),
        ({"by": "1"}, {"by": ""}, "listed with by '1', and by is None now"),
        ({}, {"pair_by": "stem"}, "its images are paired by their paths below the source"),
        ({}, {"pair_by": "stem", "replace": True}, "listed with pair_by None, and pair_by is 'ste"),
        ({"limit": 3}, {}, "listed with limit 3, and limit is None now"),
    ],
)
def test_a_list_goes_with_the_options_of_the_listing(
    place: Place, before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    place.build(**before)
    with pytest.raises(UsageError) as caught:
        place.build(place.changes(added="a/0.png"), **now)
    assert said in str(caught.value)


def pairing(place: Place, version: Version | None = None) -> str | None:
    manifest = place.catalogue.manifest("x", version or place.catalogue.find("x"))
    assert manifest.pairing is not None
    return manifest.pairing.by


def test_what_pairs_the_images_stays_with_a_dataset(place: Place) -> None:
    """It has decided their folds: images that are dealt in another way would be in none."""
    first = place.build(pair_by="stem")
    assert pairing(place) == "stem"
    assert not place.build().changed  # as before, without the option
    assert not place.build(pair_by="stem").changed
    place.write("a/new.png", 7)
    assert place.build(place.changes(added="a/new.png")).version.images == 7
    assert pairing(place) == "stem"
    place.require_whole(place.build(), pair_by="stem")
    with pytest.raises(UsageError, match=r"paired by 'stem', which .*`replace=True`"):
        place.build(pair_by="label")
    # A newer version that was imported has no images here, and so says nothing of them.
    foreign = replace(first.version, spec="f" * 32, built="9999-01-01", origin={"file": "x.npz"})
    place.catalogue.put_version("x", foreign, None, "import")
    other = place.build(spec="new", bins=16).version
    assert other.spec != first.version.spec
    assert pairing(place, other) == "stem"


def test_images_that_are_paired_in_another_way_are_counted_again(place: Place) -> None:
    place.build()
    refused = r"paired by their paths .*pair_by is 'stem' now; leave `pair_by` out .*`replace=Tr"
    with pytest.raises(UsageError, match=refused):
        place.build(pair_by="stem")
    assert pairing(place, place.build(pair_by="stem", spec="new", bins=16).version) == "stem"
    place.write("a/new.png", 7)
    (place.images / "a" / "torn.png").write_bytes(b"torn")
    with pytest.raises(GateError):
        place.build(pair_by="stem", replace=True, max_failures=0)
    with pytest.raises(UsageError, match=refused):  # what is planned alone decides nothing
        place.build(pair_by="stem", max_failures=1)
    (place.images / "a" / "torn.png").unlink()
    again = place.build(pair_by="stem", replace=True)
    clean = Catalogue(str(place.there / "clean"))
    other = place.build(catalogue=clean, pair_by="stem").version
    assert (again.version.images, again.version.dna) == (7, other.dna)
    place.require_whole(again, pair_by="stem")


@pytest.mark.parametrize("replaces", [False, True])
def test_where_all_names_stay_another_pair_by_holds_from_now_on(
    place: Place, replaces: bool
) -> None:
    """A file in no folder has the same path and stem, and so it is in the same fold."""
    flat(place)
    place.build()
    assert not place.build(pair_by="stem", replace=replaces).changed
    place.write("c/new.png", 7)
    (place.images / "c" / "torn.png").write_bytes(b"torn")
    with pytest.raises(GateError):
        place.build(pair_by="stem", max_failures=0)
    again = place.build(pair_by="stem", max_failures=1)
    assert pairing(place, again.version) == "stem"
    with pytest.raises(UsageError, match="paired by 'stem'"):
        place.build(pair_by="label")


def test_where_all_names_stay_another_pair_by_need_not_be_repeated(place: Place) -> None:
    flat(place)
    place.build()
    place.build(pair_by="stem")
    assert not place.build().changed
    place.write("c/new.png", 7)
    again = place.build()
    assert pairing(place, again.version) == "stem"
    place.require_whole(again, pair_by="stem")


def flat(place: Place) -> None:
    """Moves all images to the source itself."""
    for image in place.images.glob("*/*.png"):
        image.rename(place.images / image.name)


def test_names_that_no_version_can_state_are_refused(place: Place) -> None:
    """An image has another name by its stem, and is in the same fold by chance."""
    flat(place)
    for number in range(1000):
        image = place.images / "c" / f"{number}.png"
        place.write(f"c/{number}.png", 7)
        found = [list_source(str(place.images), Rules(pair_by=by)) for by in (None, "stem")]
        if len({plan(listing).digest for listing in found}) == 1:
            break
        image.unlink()
    place.build()
    with pytest.raises(UsageError, match="give `replace=True` to count all"):
        place.build(pair_by="stem")
    for _ in range(2):
        with pytest.raises(UsageError, match="no new version can state their new names"):
            place.build(pair_by="stem", replace=True)
    assert not place.build().changed


def test_a_plan_without_a_version_does_not_decide_what_pairs_the_images(place: Place) -> None:
    (place.images / "a" / "torn.png").write_bytes(b"torn")
    with pytest.raises(GateError):
        place.build(max_failures=0)
    result = place.build(pair_by="stem", max_failures=1)
    assert pairing(place, result.version) == "stem"


def test_a_listing_with_other_options_counts_even_if_it_finds_the_same(place: Place) -> None:
    """What is noted is how the images were listed last, not how the version was."""
    place.build(include="*.png")
    assert not place.build().changed
    place.write("a/new.jpg", 7)
    result = place.build(place.changes(added="a/new.jpg"))
    assert result.version.images == 7
    place.require_whole(result)


def test_a_sample_has_no_changes() -> None:
    with pytest.raises(UsageError, match=r"limit is 3 and changes is 'c\.csv'"):
        Request("x", "images", changes="c.csv", limit=3)


def test_what_a_failed_build_has_planned_is_not_forgotten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of the second night does not repeat that of the first."""
    place.build()
    place.write("a/first.png", 7)
    with monkeypatch.context() as patch:

        def fail(*arguments: object) -> None:
            raise TransientError("out of power")

        patch.setattr("pipeline.building.datasets.count_shards", fail)
        with pytest.raises(TransientError, match="out of power"):
            place.build(place.changes(added="a/first.png"))
    place.write("a/second.png", 8)
    result = place.build(place.changes(added="a/second.png"))
    assert result.changes == ChangeCounts(1, 0, 0, 0, 0)
    assert result.version.images == 8
    place.require_whole(result)


def test_a_plan_that_was_given_up_is_not_changed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source came back to what is committed: the list applies to that."""
    place.build()
    place.write("a/passing.png", 7)
    with monkeypatch.context() as patch:

        def fail(*arguments: object) -> None:
            raise TransientError("out of power")

        patch.setattr("pipeline.building.datasets.count_shards", fail)
        with pytest.raises(TransientError, match="out of power"):
            place.build()
    place.remove("a/passing.png")
    assert not place.build().changed
    place.write("a/new.png", 8)
    result = place.build(place.changes(added="a/new.png"))
    assert result.changes == ChangeCounts(1, 0, 0, 0, 0)
    assert result.version.images == 7
    place.require_whole(result)


def test_a_list_that_is_refused_has_changed_nothing(place: Place) -> None:
    place.build()
    names = ["a/0.png", "a/2.png", "a/4.png", "b/1.png"]
    for name in names:
        place.remove(name)
    changes = place.changes(removed=names)
    with pytest.raises(UsageError, match=r"it had 6 images of .*, and has 2 now"):
        place.build(changes)
    result = place.build(changes, replace=True)
    assert result.changes == ChangeCounts(0, 4, 0, 0, 0)
    place.require_whole(result)


def test_after_a_rollback_a_list_still_applies_to_the_newest_listing(place: Place) -> None:
    """Which is what a full listing would show."""
    place.build()
    first = place.catalogue.at().number
    place.write("a/new.png", 7)
    place.build(place.changes(added="a/new.png"))
    roll_back(place.catalogue, "x", first)
    place.write("a/newer.png", 8)
    result = place.build(place.changes(added="a/newer.png"))
    assert result.version.images == 8
    place.require_whole(result)


def test_two_lists_at_once_lose_no_image(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One build reads the plan before the other notes its own, and notes its own after it."""
    place.build()
    place.write("a/one.png", 7)
    one = place.changes(added="a/one.png")
    place.write("a/two.png", 8)
    two = place.changes(added="a/two.png")
    real = planner.plan_to_change

    def meanwhile(*args: Any) -> Manifest:
        found = real(*args)
        monkeypatch.setattr(planner, "plan_to_change", real)
        place.build(one)
        return found

    monkeypatch.setattr(planner, "plan_to_change", meanwhile)
    with pytest.raises(Conflict):
        place.build(two)
    with pytest.raises(
        UsageError, match=r"^x: another build or a rollback .*build it once without"
    ):
        place.build(two)
    place.require_whole(place.build())


def test_a_listing_that_a_list_overtook_is_not_built_upon(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.build()
    real = Planner._list

    def overtaken(self: Planner, *args: Any) -> Listing:
        found = real(self, *args)
        monkeypatch.setattr(Planner, "_list", real)
        place.write("a/one.png", 7)
        place.build(place.changes(added="a/one.png"))
        return found

    place.write("b/new.png", 9)
    monkeypatch.setattr(Planner, "_list", overtaken)
    with pytest.raises(Conflict):
        place.build()
    with pytest.raises(UsageError, match="another build or a rollback"):
        place.build(place.changes(removed="a/0.png"))
    place.require_whole(place.build())


def test_candidates_that_are_lost_are_not_dropped(place: Place) -> None:
    version = place.build().version
    manifest = place.catalogue.manifest("x", version)
    storage.delete(manifest.entries.uri(manifest.files[0]))
    place.write("a/new.png", 7)
    with pytest.raises(SourceError, match=r"is missing, one of 1 file that list its images"):
        place.build(place.changes(added="a/new.png"))
    assert place.build().version.images == 7


def test_a_note_that_is_lost_is_an_error(place: Place) -> None:
    version = place.build().version
    storage.delete(place.catalogue.plan_uri("x", version.spec))
    with pytest.raises(UsageError, match="it is not known how its images were listed last"):
        place.build(place.changes(added="a/0.png"))
    assert not place.build().changed
    assert not place.build(place.changes(added="a/0.png")).changed


@pytest.mark.parametrize("word", ["removed", "added"])
def test_a_folder_in_a_list_is_an_error(place: Place, word: str) -> None:
    """Its images would stay, and nobody would notice."""
    place.build()
    with pytest.raises(SourceError, match=r"row 1: .*/a (is a folder|does not exist|is no file)"):
        place.build(place.changes(**{word: "a"}))


def test_a_folder_that_is_named_like_an_archive_is_an_error(place: Place) -> None:
    place.write("c/day.parquet/0.png", 7)
    place.build()
    place.remove("c/day.parquet/0.png")
    with pytest.raises(SourceError, match=r"row 1: .*/c/day\.parquet is a folder of images"):
        place.build(place.changes(removed="c/day.parquet"))


@pytest.mark.parametrize("word", ["removed", "added", "changed"])
def test_an_image_and_a_folder_of_an_object_store_may_have_one_name(
    place: Place, root: str, word: str
) -> None:
    names = ["cat", "cat/1.png", "dog/1.png"]
    for number, name in enumerate(names):
        if (word, name) != ("added", "cat"):
            storage.create(f"{root}/images/{name}", tiny.Picture("good", number).data)
    catalogue, resources = Catalogue(f"{root}/dnas"), Resources(workers=0, threads=1)
    request = Request("x", f"{root}/images", **place.network.options)  # type: ignore[arg-type]  # by name

    def build(changes: str | None = None) -> Result:
        return build_datasets(
            catalogue, [replace(request, changes=changes)], InProcess(), resources
        )[0]

    build()
    if word == "removed":
        storage.delete(f"{root}/images/cat")
    else:
        storage.replace(f"{root}/images/cat", tiny.Picture("good", 9).data)
    storage.create(f"{root}/night.csv", f"uri,change\ncat,{word}\n".encode())
    storage.create(f"{root}/wrong.csv", f"uri,change\ndog,{word}\n".encode())
    with pytest.raises(SourceError, match=r"row 1: .*/dog (is a folder|does not exist)"):
        build(f"{root}/wrong.csv")
    result = build(f"{root}/night.csv")
    assert result.version.images == 2 + (word != "removed")
    assert not build().changed


def test_an_image_that_is_named_through_a_link_is_refused(place: Place) -> None:
    """The listing has it by its own folder already."""
    place.build()
    (place.images / "link").symlink_to(place.images / "a")
    with pytest.raises(SourceError, match=r"link/0\.png is reached through a link"):
        place.build(place.changes(added="link/0.png"))


def test_an_image_that_is_gone_again_is_an_error_that_names_it(place: Place) -> None:
    place.build()
    with pytest.raises(SourceError, match=r"^x: .*row 1: .*a/gone\.png does not exist"):
        place.build(place.changes(added="a/gone.png"))


def test_a_wrong_identity_is_found_when_the_image_is_read(place: Place) -> None:
    place.build()
    place.write("a/new.png", 7)
    rows = [{"uri": "a/new.png", "change": "added", "size": 9, "identity": "of another"}]
    changes = write_changes(place.there / "c.csv", rows)
    with pytest.raises(TransientError, match=r"a/new\.png changed between listing and reading"):
        place.build(changes)


def test_datasets_yaml_names_a_list(place: Place) -> None:
    path = place.there / "datasets.yaml"
    path.write_text("datasets:\n- {name: x, source: images, changes: s3://bucket/night.csv}\n")
    assert load_config(str(path)).requests()[0].changes == "s3://bucket/night.csv"
