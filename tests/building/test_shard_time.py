"""Tests that new shards take about a minute where earlier builds have measured the speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.building import Request, Result, build_datasets, shard_time
from pipeline.building.shard_time import images_in, most_shard_images, note_speed
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.sources import Entry, plan
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path))


@pytest.mark.parametrize(
    ("seconds", "images"), [(0.25, 240), (0.01, 6000), (0.7, 80), (5.0, 64), (1e9, 64)]
)
def test_a_shard_is_as_large_as_its_time_allows(seconds: float, images: int) -> None:
    assert images_in(60.0, seconds) == images


def test_a_speed_is_known_of_its_spec_and_device_alone(catalogue: Catalogue) -> None:
    assert most_shard_images(catalogue, "spec", "cpu") is None
    note_speed(catalogue, "spec", "cpu", 1_000, 500.0)
    assert most_shard_images(catalogue, "spec", "cpu") == 120
    assert most_shard_images(catalogue, "spec", "cuda") is None
    assert most_shard_images(catalogue, "other", "cpu") is None
    note_speed(catalogue, "spec", "cpu", 1_000, 250.0)  # the newest counts
    assert most_shard_images(catalogue, "spec", "cpu") == 240


def test_few_images_tell_nothing(catalogue: Catalogue) -> None:
    note_speed(catalogue, "spec", "cpu", shard_time.MEASURED_IMAGES - 1, 500.0)
    note_speed(catalogue, "spec", "cpu", 1_000, 0.0)
    assert most_shard_images(catalogue, "spec", "cpu") is None


@pytest.mark.parametrize(
    "noted", [b"", b"[]", b"{}", b'{"seconds_per_image": null}', b'{"seconds_per_image": -1}']
)
def test_a_note_that_is_not_sound_is_no_note(catalogue: Catalogue, noted: bytes) -> None:
    storage.create(catalogue.speed_uri("spec", "cpu"), noted)
    assert most_shard_images(catalogue, "spec", "cpu") is None


def test_the_bound_holds_for_new_shards_unless_a_size_is_asked_for() -> None:
    found = [Entry(f"s3://b/{i}", "", 1, "e") for i in range(10_000)]
    first = plan(found)
    assert first.shard_images == 320
    bounded = plan(found, most_shard_images=80)
    assert (bounded.shard_images, max(h.candidates for h in bounded.heads)) == (80, 80)
    assert plan(found, most_shard_images=5_000).digest == first.digest
    assert plan(found, shard_images=200, most_shard_images=80).shard_images == 200
    # A later plan keeps its shards, whatever the speed is by now.
    assert plan(found, previous=first, most_shard_images=80).digest == first.digest


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
    build("b")  # of too few images to tell
    assert json.loads(storage.read(uri)) == noted
    # As of a network that takes ten seconds an image.
    storage.replace(uri, b'{"images": 24, "seconds_per_image": 10}')
    monkeypatch.setattr(shard_time, "MIN_SHARD_IMAGES", 1)
    monkeypatch.setattr(shard_time, "SHARD_MULTIPLE", 1)
    write_photos(tmp_path / "c", 200, 3)
    manifest = catalogue.manifest("c", build("c").version)
    assert manifest.shard_images == 6
    assert max(head.candidates for head in manifest.heads) == 6
