"""Tests parts by a label: one pass gives each part the DNA of a pass over that part alone."""

from __future__ import annotations

import csv
import json
import random
import shutil
import tarfile
from collections import Counter as Tally
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.building import Request, Result, build_datasets, committer, make_dna, planner
from pipeline.catalogue import Catalogue, collect, part_name, parts_of, recount, verify
from pipeline.comparing.notes import shared_source_notes
from pipeline.counting import Counter
from pipeline.engine import InProcess
from pipeline.errors import Conflict, CorruptFile, GateError, UsageError, VdnaError
from pipeline.reporting import build_lines
from pipeline.sources import Listing, Manifest, Rules, list_source, plan
from pipeline.sources.listing import ListingWriter
from pipeline.spec import FOLDS, Resources
from tests.support import tiny_network as tiny
from tests.support.builders import all_shards, photo, same_counts_and_failures, write_photos
from tests.support.killer import Killed, Killer, killer

__all__ = ["killer"]  # a fixture

ENGINE = InProcess()
RESOURCES = Resources(workers=0, threads=2)


NETWORK: dict[str, Any] = {}
"""Fields of a request that say how images are counted here; the fixture `network` fills it."""


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory: pytest.TempPathFactory) -> None:
    NETWORK.update(tiny.install(tmp_path_factory.mktemp("tiny")).options)


def run(place: Catalogue, source: Path, **options: Any) -> Result:
    settings = {"max_failures": 1.0, "shard_images": 2, "by": "1", **NETWORK} | options
    request = Request("photos", str(source), **settings)
    (result,) = build_datasets(place, [request], ENGINE, RESOURCES)
    return result


@pytest.fixture
def place(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path / "catalogue"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Makes images of rain and of sun, one of neither, and one of rain that cannot be read."""
    source = tmp_path / "source"
    write_photos(source / "rain", 4)
    write_photos(source / "sun", 3, first_seed=10)
    photo(20).save(source / "neither.jpg")
    (source / "rain" / "cut.jpg").write_bytes(
        (source / "sun" / "photo-0010.jpg").read_bytes()[:200]
    )
    return source


def table(source: Path, **labels: dict[str, str]) -> Path:
    """Writes a table of all images of a folder: some have labels, by name, and the others none."""
    path = source / "images.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["uri", *labels])
        for image in sorted(source.rglob("*.jpg")):
            rows.writerow([str(image), *(its.get(image.name, "") for its in labels.values())])
    return path


def holds(place: Catalogue, source: Path, *, failed: bool = True) -> None:
    """Checks the whole and its parts against one clean pass over each."""
    warned = pytest.warns(UserWarning, match="could not be read") if failed else nullcontext()
    with warned:
        whole = make_dna(source, max_failures=100, threads=2, **NETWORK)
    assert same_counts_and_failures(place.load("photos"), whole)
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    parts = parts_of(place.head(), "photos", place.find("photos").spec)
    assert sorted(parts) == [f"photos/{folder.name}" for folder in folders]
    for folder in folders:
        dna = make_dna(folder, max_failures=0.9, threads=2, **NETWORK)
        assert same_counts_and_failures(place.load(f"photos/{folder.name}"), dna)
    findings = list(verify(place))
    assert [finding for finding in findings if not finding.ok] == []
    assert [f.dataset for f in findings if f.check == "parts"] == ["photos"]


@pytest.mark.filterwarnings("ignore:1 of 5 images could not be read")
def test_each_part_equals_a_pass_over_it_alone_and_each_image_is_read_once(
    place: Catalogue, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Tally[str] = Tally()
    real = storage.read

    def spy(uri: str, *args: Any, **kwargs: Any) -> bytes:
        read[uri] += uri.endswith(".jpg")
        return real(uri, *args, **kwargs)

    monkeypatch.setattr(storage, "read", spy)
    result = run(place, source)
    monkeypatch.undo()
    assert {count for uri, count in read.items() if uri.endswith(".jpg")} == {1}
    assert {name: part.images for name, part in result.parts.items()} == {
        "photos/rain": 4,
        "photos/sun": 3,
    }
    assert (result.version.images, result.version.failed) == (8, 1)
    assert [(f.uri[-12:]) for f in place.failures("photos/rain", result.parts["photos/rain"])] == [
        "rain/cut.jpg"
    ]
    assert place.head().number == 1  # whole and parts at once
    holds(place, source)
    monkeypatch.setattr(Counter, "make", lambda *_, **__: pytest.fail("counted again"))
    again = run(place, source, by=None)
    assert not again.changed
    assert again.parts == result.parts


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_labels_in_archives_make_the_parts_that_folders_make(
    kind: str, place: Catalogue, source: Path, tmp_path: Path
) -> None:
    (source / "rain" / "cut.jpg").unlink()
    (source / "neither.jpg").unlink()
    images = {path: path.parent.name for path in sorted(source.rglob("*.jpg"))}
    archive = tmp_path / f"photos.{kind}"
    if kind == "parquet":
        columns = {"image": [path.read_bytes() for path in images], "label": [*images.values()]}
        pq.write_table(pa.table(columns), archive, row_group_size=3)
    else:
        with tarfile.open(archive, "w") as tar:
            for path, label in images.items():
                fields = path.with_suffix(".json")
                fields.write_text(json.dumps({"label": label}))
                tar.add(path, path.name)
                tar.add(fields, fields.name)
                fields.unlink()
    result = run(place, archive, by="label")
    assert {name: part.images for name, part in result.parts.items()} == {
        "photos/rain": 4,
        "photos/sun": 3,
    }
    holds(place, source, failed=False)
    assert not run(place, archive, by=None).changed


@pytest.mark.filterwarnings("ignore:1 of 5 images could not be read")
def test_a_column_of_a_table_makes_parts_too(place: Catalogue, source: Path) -> None:
    names = [image.name for image in source.rglob("photo-*.jpg")]
    shutil.move(source / "sun" / "photo-0010.jpg", source / "sun" / "other.jpg")
    weather = dict.fromkeys(names, "heavy rain") | {"other.jpg": "sun/low", "cut.jpg": "night"}
    path = table(source, weather=weather, camera={"other.jpg": "left"})
    result = run(place, path, by="weather")
    # No image of the night could be read, so there is nothing to compare.
    assert {name: part.images for name, part in result.parts.items()} == {
        "photos/heavy-rain": 6,
        "photos/sun/low": 1,
    }
    assert result.parts["photos/heavy-rain"].value == "heavy rain"
    (line,) = (line for line in build_lines(result, "drop") if "photos/heavy-rain" in line)
    assert line.endswith("of 'heavy rain'; a dash stands for what a name cannot hold")
    assert sum("a dash stands" in line for line in build_lines(result, "drop")) == 1
    assert [finding for finding in verify(place) if not finding.ok] == []
    run(place, path, by="camera")
    assert sorted(place.head().datasets) == ["photos", "photos/left"]
    assert same_counts_and_failures(place.load("photos"), place.load("photos", at=1))
    run(place, path, by="")
    assert sorted(place.head().datasets) == ["photos"]
    assert [finding for finding in verify(place) if not finding.ok] == []


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of images of each shard that is counted from now on."""
    counted: list[int] = []
    make = Counter.make

    def spy(self: Counter, shard: Any, key: str, **kwargs: bool) -> object:
        counted.append(len(shard.members))
        return make(self, shard, key, **kwargs)

    monkeypatch.setattr(Counter, "make", spy)
    return counted


@pytest.mark.filterwarnings("ignore:1 of . images could not be read")
def test_only_images_that_moved_to_another_part_are_counted_again(
    place: Catalogue, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, source)
    counted = spied(monkeypatch)
    shutil.move(source / "rain" / "photo-0001.jpg", source / "sun" / "new.jpg")
    run(place, source)
    assert sum(counted) == 1
    holds(place, source)
    shutil.rmtree(source / "sun")
    run(place, source)
    assert "photos/sun" not in place.head().datasets
    assert place.load("photos/sun", at=2).images == 4
    holds(place, source)


def test_a_new_label_splits_only_the_shards_with_mixed_values(
    place: Catalogue, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are two groups, and so two folds, each with a shard of four images."""
    (source / "rain" / "cut.jpg").unlink()
    for number, image in enumerate(sorted(source.rglob("*.jpg"))):
        image.rename(image.with_name(f"{number}.jpg"))
    group = {f"{n}.jpg": f"g{n // 4}" for n in range(8)}
    weather = {f"{n}.jpg": "sun" if n < 4 else "rain" for n in range(8)}
    options = {"by": "weather", "group_by": "drive", "shard_images": 4}
    run(place, table(source, drive=group, weather=weather), **options)
    counted = spied(monkeypatch)
    weather["0.jpg"] = "rain"
    run(place, table(source, drive=group, weather=weather), **options)
    assert sorted(counted) == [1, 3]
    for value in ("rain", "sun"):
        images = list_of(source, [n for n in weather if weather[n] == value])
        dna = make_dna(images, threads=2, **NETWORK)
        assert same_counts_and_failures(place.load(f"photos/{value}"), dna)
    assert [finding for finding in verify(place) if not finding.ok] == []


def list_of(source: Path, names: list[str]) -> Path:
    path = source / "list.txt"
    path.write_text("".join(f"{i}\n" for i in sorted(source.rglob("*.jpg")) if i.name in names))
    return path


@pytest.mark.soak
def test_a_build_with_parts_killed_at_any_write_is_completed_by_a_rerun(
    tmp_path: Path, killer: Killer
) -> None:
    source = tmp_path / "source"
    write_photos(source / "rain", 2)
    write_photos(source / "sun", 1, first_seed=10)
    clean = Catalogue(str(tmp_path / "clean"))
    writes = killer(None, False)
    run(clean, source)
    holds(clean, source, failed=False)
    truth = {name: clean.load(name) for name in clean.names()}
    total = len(writes)
    assert sum("/dna/" in uri for uri in writes) == 3
    for at in range(1, total + 1):
        place = Catalogue(str(tmp_path / f"at-{at}"))
        killer(at, at % 2 == 0)
        with pytest.raises(Killed):
            run(place, source)
        killer(None, False)
        run(place, source)
        assert place.head().number == 1
        assert place.names() == sorted(truth)
        assert all(same_counts_and_failures(place.load(name), truth[name]) for name in truth)
        shutil.rmtree(tmp_path / f"at-{at}")


@pytest.mark.filterwarnings("ignore:1 of . images could not be read")
def test_a_lost_file_of_a_part_is_made_again_and_gc_keeps_the_partials(
    place: Catalogue, source: Path
) -> None:
    result = run(place, source)
    part = result.parts["photos/sun"]
    storage.delete(place.uri("folds", part.spec, "photos/sun", part.dna))
    again = run(place, source)
    assert again.counted_shards == 0
    collect(place, keep=1, grace=timedelta(0))
    assert run(place, source).counted_shards == 0
    holds(place, source)
    findings = list(
        recount(place, ["photos/sun"], engine=ENGINE, sample=None, weights=NETWORK["weights"])
    )
    assert findings[-1].ok, findings


def test_verify_finds_a_wrong_part(place: Catalogue, source: Path) -> None:
    result = run(place, source)
    sun, rain = (result.parts[f"photos/{name}"] for name in ("sun", "rain"))
    whole = place.head().datasets["photos"][sun.spec]
    of_rain = place.uri("manifests", rain.spec, "photos/rain", rain.manifest)
    storage.create(
        place.uri("manifests", sun.spec, "photos/sun", rain.manifest), storage.read(of_rain)
    )
    files = {**sun.sha256, "manifests": rain.sha256["manifests"]}
    with_shards_of_rain = replace(sun, manifest=rain.manifest, sha256=files)
    right = {"photos/rain": rain, "photos/sun": sun}
    for by, parts, why in (
        (whole.by, {**right, "photos/sun": replace(sun, value="rain")},
         "photos/sun: its shards are not those where folder is 'sun'"),
        (whole.by, {**right, "photos/sun": with_shards_of_rain},
         "photos/sun: its shards are not those where folder is 'sun'"),
        (whole.by, {"photos/rain": rain},
         "photos/sun: there is no such part, though images have folder 'sun'"),
        (whole.by, {**right, "photos/snow": replace(sun, value="snow")},
         "photos/snow: the manifest has no image of this part"),
        ("drive", right, "the manifest has no label drive, by which the parts are made"),
    ):  # fmt: skip
        place.put_version("photos", replace(whole, by=by), place.find("photos"), parts=parts)
        (detail,) = [f.detail for f in verify(place, ["photos"]) if f.check == "parts"]
        assert detail == why
    place.put_version("photos", whole, place.find("photos"), parts=right)
    storage.replace(place.uri("failures", whole.spec, "photos", whole.dna), b"torn")
    findings = {f.check: f.ok for f in verify(place, ["photos"])}
    assert (findings["failures"], findings["parts"]) == (False, True)


def test_part_names_that_are_taken_or_invalid_are_refused(place: Catalogue, source: Path) -> None:
    photos = Request("photos/sun", str(source / "sun"), **NETWORK)
    build_datasets(place, [photos], ENGINE, RESOURCES)
    with pytest.raises(Conflict, match="photos/sun is already a dataset of its own, so it cannot"):
        run(place, source)
    assert list(place.head().datasets) == ["photos/sun"]
    other = Catalogue(f"{place.root}-2")
    run(other, source)
    for options in ({}, {"bins": 5}):  # under any spec
        with pytest.raises(Conflict, match="photos/sun is the part 'sun' of photos; build photos"):
            build_datasets(other, [replace(photos, **options)], ENGINE, RESOURCES)
    assert len(other.head().datasets["photos/sun"]) == 1
    (source / "...").mkdir()
    photo(30).save(source / "..." / "a.jpg")
    with pytest.raises(UsageError, match=r"'\.\.\.' cannot be made into the name of a part"):
        run(other, source)
    (source / "...").rename(source / "sun ")
    assert part_name("photos", "sun ") == "photos/sun"
    with pytest.raises(UsageError, match=r"and .sun . of folder both make the name photos/sun"):
        run(other, source)


@pytest.mark.filterwarnings("ignore:1 of . images could not be read")
def test_a_concurrent_build_neither_removes_parts_nor_takes_their_names(
    place: Catalogue, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other build plans before the parts are committed, and commits the same images later."""
    reduce = committer.compose
    for late in ("photos", "photos/sun"):
        root = Catalogue(f"{place.root}-{late.replace('/', '-')}")
        folder = source if late == "photos" else source / "sun"
        request = Request(late, str(folder), max_failures=1.0, shard_images=2, **NETWORK)
        others: list[Result] = []

        def quicker(*args: Any, root: Catalogue = root, others: list[Result] = others) -> Any:
            if not others:
                others.append(None)  # type: ignore[arg-type]
                others[0] = run(root, source)
            return reduce(*args)

        monkeypatch.setattr(committer, "compose", quicker)
        with pytest.raises(Conflict, match=f"{late}"):
            build_datasets(root, [request], ENGINE, RESOURCES)
        monkeypatch.setattr(committer, "compose", reduce)
        assert sorted(root.head().datasets) == ["photos", "photos/rain", "photos/sun"]
        holds(root, source)
        assert not run(root, source, by=None).changed


def test_a_version_without_parts_differs_from_the_same_numbers_with_parts(
    place: Catalogue, source: Path
) -> None:
    """A refresh that was planned before the parts existed must not remove them unnoticed."""
    run(place, source, max_failures=100)
    head = place.head()
    whole = place.find("photos")
    with pytest.raises(Conflict, match="photos: another job committed"):
        place.put_version("photos", replace(whole, by=""), None)
    assert place.head().number == head.number
    place.put_version("photos", replace(whole, by=""), whole)
    assert sorted(place.head().datasets) == ["photos"]


def test_a_table_without_the_label_of_the_existing_parts_is_refused(
    place: Catalogue, source: Path
) -> None:
    run(place, source)
    with pytest.raises(UsageError, match=r"is a table; .*the dataset has parts by '1'; `by=''`"):
        run(place, table(source, weather={}), by=None)


def test_a_label_value_too_long_for_a_file_name_is_refused(place: Catalogue, source: Path) -> None:
    path = table(source, weather={"photo-0000.jpg": "r" * 201})
    with pytest.raises(UsageError, match=r"'rrr.*makes a name of 201 characters"):
        run(place, path, by="weather")
    assert not storage.is_folder(storage.join(place.root, "_work", "photos"))


@pytest.mark.filterwarnings("ignore:1 of . images could not be read")
def test_gc_removes_parts_that_no_kept_version_has(place: Catalogue, source: Path) -> None:
    gone = run(place, source).parts["photos/sun"]
    shutil.rmtree(source / "sun")
    run(place, source)
    uri = place.uri("dna", gone.spec, "photos/sun", gone.dna)
    collect(place, keep=2, grace=timedelta(0))
    assert storage.exists(uri)
    findings = list(verify(place, all_versions=True))
    assert all(finding.ok for finding in findings)
    assert ("photos", "parts", 1) in {(f.dataset, f.check, f.at) for f in findings}
    assert ("photos/sun", "counts", 1) in {(f.dataset, f.check, f.at) for f in findings}
    collect(place, keep=1, grace=timedelta(0))
    assert not storage.exists(uri)
    holds(place, source)


def test_too_many_values_are_refused_before_anything_is_counted(
    place: Catalogue, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MAX_PARTS", 1)
    with pytest.raises(UsageError, match=r"folder has 2 values \(rain, sun, …\); .* at most 1"):
        run(place, source)
    assert place.head().number == 0


def test_a_label_that_no_image_has_is_refused(place: Catalogue, source: Path) -> None:
    run(place, source)
    with pytest.raises(UsageError, match="no image has a value of folder"):
        run(place, source, by="7")
    assert len(place.head().datasets) == 3


def test_too_many_failures_commit_neither_whole_nor_parts(place: Catalogue, source: Path) -> None:
    with pytest.raises(GateError):
        run(place, source, max_failures=0)
    assert place.head().number == 0


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("0", "by is '0'; give the number"),
        ("weather", "by is 'weather', and .* is not a table"),
    ],
)
def test_a_by_option_that_makes_no_parts_is_refused(source: Path, by: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list_source(source, Rules(by=by))


def test_a_label_that_a_table_lacks_is_refused(source: Path) -> None:
    path = table(source, weather={})
    with pytest.raises(UsageError, match=r"by is '1', a number of folders, and .* is a table"):
        list_source(path, Rules(by="1"))
    for by in ("wether", "group", "uri", "--1"):
        with pytest.raises(UsageError, match=f"by is '{by}'; the labels of .* are: weather"):
            list_source(path, Rules(by=by))


def test_parts_share_no_images_with_each_other_but_with_the_whole(
    place: Catalogue, source: Path
) -> None:
    parts = run(place, source).parts
    assert shared_source_notes(parts) == []
    assert len(shared_source_notes({**parts, "photos": place.find("photos")})) == 1


# Plans.

labelled = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(0, 6), st.booleans()),
    min_size=1,
    max_size=60,
)


def listing_of(rows: list[tuple[int, str, str, bool]]) -> Listing:
    """Makes a listing of rows (number, value, group, whether it is a member of an archive)."""
    parts = ListingWriter(["weather", "other"])
    for number, value, group, member in rows:
        uri, name = ("s3://b/a.tar", f"{number:04d}") if member else (f"s3://b/{number:04d}", "")
        access = "range" if member else ""
        parts.add(uri, name, 10, "etag", group, number, access, (value or None, "x"))
    return parts.listing("s3://b")


def by_value(manifest: Manifest) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for _, rows in manifest.tables():
        for uri, member, value in zip(
            *(rows[c].to_pylist() for c in ("uri", "member", "weather")), strict=True
        ):
            names[value or ""].append(f"{uri}::{member}")
    return names


@settings(max_examples=10)
@given(labelled, st.booleans(), st.integers(1, 9), st.randoms())
def test_each_shard_has_one_label_value_and_no_group_is_split_over_folds(
    images: list[tuple[str, int, bool]], grouped: bool, size: int, rng: random.Random
) -> None:
    rows = [
        (n, value, f"g{group}" if grouped else "", member)
        for n, (value, group, member) in enumerate(images)
    ]
    manifest = plan(listing_of(rows), shard_images=size, by="weather")
    rng.shuffle(rows)
    assert plan(listing_of(rows), shard_images=size, by="weather").digest == manifest.digest
    parts = manifest.parts("weather")
    wanted = Tally(value for _, value, _, _ in rows)
    found = {v: sum(manifest.heads[i].candidates for i in its) for v, its in parts.items()}
    assert found == {value: count for value, count in wanted.items() if value}
    assert sorted(i for its in parts.values() for i in its) == sorted(set().union(*parts.values()))
    assert sum(map(len, by_value(manifest).values())) == len(rows) == manifest.candidates
    folds: dict[str, set[int]] = defaultdict(set)
    sizes: dict[str, Tally[int]] = defaultdict(Tally)
    for shard in all_shards(manifest):
        assert len(shard.members) <= size
        for entry in shard.members:
            folds[entry.group].add(shard.fold)
            number = int(entry.member or entry.uri[-4:])
            sizes[images[number][0]][shard.fold] += 1
    if grouped:
        assert all(len(its) == 1 for its in folds.values())
    elif not any(member for *_, member in rows):
        for value in parts:
            counts = [sizes[value][fold] for fold in range(FOLDS)]
            assert max(counts) - min(counts) <= 1


@settings(max_examples=8)
@given(labelled, st.lists(st.integers(0, 59), max_size=8), st.integers(1, 5))
def test_a_later_plan_keeps_every_shard_that_is_still_of_one_value(
    images: list[tuple[str, int, bool]], relabelled: list[int], size: int
) -> None:
    rows = [(n, value, "", member) for n, (value, _, member) in enumerate(images)]
    first = plan(listing_of(rows), shard_images=size, by="weather")
    moved = {n for n in relabelled if n < len(rows)}
    changed = [(n, "d" if n in moved else v, g, m) for n, v, g, m in rows]
    second = plan(listing_of(changed), shard_images=size, by="weather", previous=first)
    kept = {head.digest for head in second.heads}
    for shard in all_shards(first):
        numbers = {int(entry.member or entry.uri[-4:]) for entry in shard.members}
        if numbers.isdisjoint(moved) or numbers <= moved:
            assert shard.digest in kept
    found = by_value(second)
    assert len(found.get("d", [])) == len(moved)
    assert sum(map(len, second.parts("weather").values())) <= len(second.heads)  # none is mixed
    assert second.candidates == len(rows)
    again = plan(listing_of(changed), shard_images=size, by="weather", previous=second)
    assert again.digest == second.digest


def test_a_plan_whose_shards_mix_values_has_no_parts() -> None:
    mixed = plan(listing_of([(0, "a", "g", False), (1, "b", "g", False)]))
    with pytest.raises(CorruptFile, match="mixes values of weather"):
        mixed.parts("weather")


def test_an_unknown_label_is_a_vdna_error() -> None:
    with pytest.raises(VdnaError, match="by is 'x'; the candidates' labels are: weather, other"):
        plan(listing_of([(0, "a", "", False)]), by="x")
