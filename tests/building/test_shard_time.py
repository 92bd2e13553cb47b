"""Tests that new shards take about a minute: of time where it was measured, of bytes before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.building import Request, Result, build_datasets, shard_time
from pipeline.building.shard_time import in_parts, note_speed, noted_seconds
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.sources import Entry, ImageSeconds, NewShardSizes, plan, shard_sizes
from pipeline.sources.shard_sizes import (
    FIRST_SHARD_BYTES,
    MAX_SHARD_IMAGES,
    MIN_SHARD_IMAGES,
    SHARD_SECONDS,
    images_in,
)
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path))


@pytest.mark.parametrize(
    ("seconds", "images"),
    [(0.25, 240), (0.02, 3000), (0.7, 80), (5.0, 64), (1e9, 64), (0.01, 4096), (0.0, 4096)],
)
def test_a_shard_is_as_large_as_its_time_allows(seconds: float, images: int) -> None:
    assert images_in(60.0, seconds) == images


MANY = 10**6

SPEEDS = st.builds(ImageSeconds, st.floats(0, 1), st.floats(0, 1e-5), st.floats(0, 1e7))

BYTES = st.floats(0, 1e7)


def entries(count: int, size: int) -> list[Entry]:
    return [Entry(f"s3://b/{i}", "", size, "e") for i in range(count)]


def test_a_speed_is_known_of_its_spec_and_device_alone(catalogue: Catalogue) -> None:
    assert noted_seconds(catalogue, "spec", "cpu") is None
    note_speed(catalogue, "spec", "cpu", 1_000, 500.0)
    assert noted_seconds(catalogue, "spec", "cpu") == ImageSeconds(0.5)
    assert noted_seconds(catalogue, "spec", "cuda") is None
    assert noted_seconds(catalogue, "other", "cpu") is None
    note_speed(catalogue, "spec", "cpu", 1_000, 250.0)  # the newest counts
    assert noted_seconds(catalogue, "spec", "cpu") == ImageSeconds(0.25)


def test_few_images_tell_nothing(catalogue: Catalogue) -> None:
    note_speed(catalogue, "spec", "cpu", shard_time.MEASURED_IMAGES - 1, 500.0)
    note_speed(catalogue, "spec", "cpu", 1_000, 0.0)
    assert noted_seconds(catalogue, "spec", "cpu") is None


@pytest.mark.parametrize(
    "noted",
    [
        b"",
        b"[]",
        b"{}",
        b'{"seconds_per_image": null}',
        b'{"seconds_per_image": -1}',
        b'{"seconds_per_image": 0}',
        b'{"seconds_per_image": 1, "bytes_per_image": 9, "seconds_per_byte": -1}',
        b'{"seconds_per_image": 1, "bytes_per_image": 1e999, "seconds_per_byte": 1}',
        b'{"seconds_per_image": 1, "bytes_per_image": [], "seconds_per_byte": 1}',
    ],
)
def test_a_note_that_is_not_sound_is_no_note(catalogue: Catalogue, noted: bytes) -> None:
    storage.create(catalogue.speed_uri("spec", "cpu"), noted)
    assert noted_seconds(catalogue, "spec", "cpu") is None


def test_a_note_without_bytes_goes_by_images_alone(catalogue: Catalogue) -> None:
    """Earlier versions have written such notes."""
    storage.create(catalogue.speed_uri("spec", "cpu"), b'{"images":300,"seconds_per_image":0.5}')
    known = noted_seconds(catalogue, "spec", "cpu")
    for size in (0.0, 5e3, 4e6):
        assert NewShardSizes(image_seconds=known).shard(MANY, size) == 120


def test_thumbnails_do_not_decide_the_shards_of_photos(catalogue: Catalogue) -> None:
    """A photo takes longer to decode, and as long for the network."""
    spent = {"fetch": 0.1, "decode": 2.0, "network": 18.0}
    note_speed(catalogue, "spec", "cpu", 1_000, 20.0, 5_000_000, spent)
    known = noted_seconds(catalogue, "spec", "cpu")
    assert known is not None
    assert known.of(5_000) == known.of(0) == pytest.approx(0.02)
    assert known.of(500_000) == pytest.approx(0.018 + 0.2, rel=0.01)
    sizes = NewShardSizes(image_seconds=known)
    assert (sizes.shard(MANY, 5_000), sizes.shard(MANY, 500_000)) == (3_000, 272)
    noted = json.loads(storage.read(catalogue.speed_uri("spec", "cpu")))
    assert noted["seconds_per_image"] == 0.02  # as earlier versions read it


@given(
    st.integers(1, 10**6),
    st.floats(0.01, 1e6),
    st.integers(0, 10**13),
    st.dictionaries(st.sampled_from(["fetch", "decode", "network"]), st.floats(0, 1e6)),
)
def test_the_parts_of_an_image_are_its_time(
    images: int, seconds: float, size: int, spent: dict[str, float]
) -> None:
    found = in_parts(images, seconds, size, spent)
    assert found.each >= 0
    assert found.per_byte >= 0
    assert found.of(size / images) == pytest.approx(seconds / images)


def test_time_in_which_threads_waited_goes_by_images() -> None:
    """A GPU is waited for by threads that spend nothing."""
    found = in_parts(100, 400.0, 10**6, {"decode": 10.0})
    assert found == ImageSeconds(3.8, 20 / 10**6, 10**4)


@pytest.mark.parametrize(
    ("count", "shard", "run"), [(1, 128, 64), (2048, 128, 64), (2049, 72, 72), (10_000, 320, 320)]
)
def test_a_small_fold_is_one_shard_and_archives_keep_their_folds(
    count: int, shard: int, run: int
) -> None:
    sizes = NewShardSizes()
    assert (sizes.shard(count, 0), sizes.archive_run(count)) == (shard, run)


def test_reads_that_wait_together_weigh_little() -> None:
    found = in_parts(100, 100.0, 10**6, {"fetch": 160.0, "network": 90.0})
    assert found.each == pytest.approx(0.9)


@given(SPEEDS | st.none(), BYTES, BYTES, st.integers(1))
def test_larger_images_never_make_larger_shards(
    known: ImageSeconds | None, size: float, more: float, count: int
) -> None:
    sizes = NewShardSizes(image_seconds=known)
    small, large = (sizes.shard(count, each) for each in (1 + size, 1 + size + more))
    assert MIN_SHARD_IMAGES <= large <= small <= MAX_SHARD_IMAGES


@given(SPEEDS, BYTES)
def test_no_shard_takes_more_than_its_time_unless_it_is_the_smallest(
    known: ImageSeconds, size: float
) -> None:
    images = NewShardSizes(image_seconds=known).shard(MANY, size)
    assert images == MIN_SHARD_IMAGES or images * known.of(size) <= SHARD_SECONDS * (1 + 1e-9)


@given(st.integers(1, 10**9), BYTES)
def test_before_anything_is_measured_the_bytes_bound_a_shard(count: int, size: float) -> None:
    images = NewShardSizes().shard(count, size)
    assert images == MIN_SHARD_IMAGES or images * size <= FIRST_SHARD_BYTES
    assert NewShardSizes().shard(count, 0) == shard_sizes.default_shard_images(count)
    assert NewShardSizes(shard_images=7).shard(count, size) == 7


def test_a_first_build_of_huge_images_has_small_shards() -> None:
    usual, photos = (plan(entries(10_000, size)) for size in (110_000, 4_000_000))
    assert usual.shard_images == 320
    assert photos.shard_images == max(head.candidates for head in photos.heads) == 128
    # Images whose size is not known say nothing of the others.
    mixed = plan(
        [*entries(10_000, 4_000_000), *(Entry(f"s3://c/{i}", "", 0, "") for i in range(9))]
    )
    assert mixed.shard_images == 128


def test_the_bound_holds_for_new_shards_unless_a_size_is_asked_for() -> None:
    found, slow = entries(10_000, 1), ImageSeconds(0.75)
    first = plan(found)
    assert first.shard_images == 320
    bounded = plan(found, image_seconds=slow)
    assert (bounded.shard_images, max(h.candidates for h in bounded.heads)) == (80, 80)
    assert plan(found, image_seconds=ImageSeconds(0.01)).digest == first.digest
    assert plan(found, shard_images=200, image_seconds=slow).shard_images == 200
    # A later plan keeps its shards, whatever the speed is by now, and new images get new sizes.
    assert plan(found, previous=first, image_seconds=slow).digest == first.digest
    more = plan(
        [*found, *(Entry(f"s3://c/{i}", "", 1, "e") for i in range(9_000))],
        previous=first,
        image_seconds=slow,
    )
    assert {head.content for head in first.heads} < {head.content for head in more.heads}
    assert {head.candidates for head in more.heads[len(first.heads) :]} >= {80}


def test_the_folds_of_an_archive_do_not_go_by_the_bytes_of_its_images() -> None:
    """So a set and its altered copy have the same folds."""

    def folds(size: int, known: ImageSeconds | None) -> dict[str, int]:
        rows = [Entry("s3://b/a.tar", f"{i:05}.jpg", size, "e", "", i, "tar") for i in range(6_000)]
        made = plan(rows, image_seconds=known)
        return {each.member: shard.fold for shard in made.shards for each in shard.members}

    assert folds(1_000, None) == folds(9_000_000, None) == folds(1_000, ImageSeconds(1.0))


def test_a_build_notes_its_speed_and_the_next_plan_goes_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_time, "MEASURED_IMAGES", 20)
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    options = tiny.install(tmp_path).options
    write_photos(tmp_path / "a", 24, 1)
    write_photos(tmp_path / "b", 5, 2)
    resources = Resources(workers=0, threads=1)

    def build(name: str) -> Result:
        request = Request(name, str(tmp_path / name), **options)  # type: ignore[arg-type]
        (built,) = build_datasets(catalogue, [request], InProcess(), resources)
        return built

    spec = build("a").version.spec
    uri = catalogue.speed_uri(spec, "cpu")
    noted = json.loads(storage.read(uri))
    assert noted["images"] == 24
    assert 0 < noted["seconds_per_image"] < 60
    sizes = [path.stat().st_size for path in (tmp_path / "a").iterdir()]
    assert noted["bytes_per_image"] == sum(sizes) / 24
    assert 0 < noted["seconds_per_byte"] * noted["bytes_per_image"] <= noted["seconds_per_image"]
    build("b")  # of too few images to tell
    assert json.loads(storage.read(uri)) == noted
    # As of a network that takes ten seconds an image.
    storage.replace(uri, b'{"images": 24, "seconds_per_image": 10}')
    monkeypatch.setattr(shard_sizes, "MIN_SHARD_IMAGES", 1)
    monkeypatch.setattr(shard_sizes, "SHARD_MULTIPLE", 1)
    write_photos(tmp_path / "c", 200, 3)
    manifest = catalogue.manifest("c", build("c").version)
    assert manifest.shard_images == 6
    assert max(head.candidates for head in manifest.heads) == 6
