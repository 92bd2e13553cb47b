"""Small shards that are put together change no count, read no image, and survive any death."""

from __future__ import annotations

import os
import shutil
from collections import Counter as Tally
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.building import Request, Result, build_datasets, make_dna
from pipeline.catalogue import Catalogue, collect, recount, verify
from pipeline.counting import Counter
from pipeline.engine import InProcess
from pipeline.sources import shard_merging
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import photo, same_counts_and_failures, write_photos
from tests.support.killer import Killed, Killer, killer

__all__ = ["killer"]  # a fixture

NETWORK: dict[str, Any] = {}
"""Fields of a request that say how images are counted here; the fixture `network` fills it."""


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory: pytest.TempPathFactory) -> None:
    NETWORK.update(tiny.install(tmp_path_factory.mktemp("tiny")).options)


@pytest.fixture(autouse=True)
def by_twos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_merging, "TOGETHER", 2)


@pytest.fixture
def place(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path / "catalogue"))


def build(place: Catalogue, source: Path, said: list[str] | None = None, **more: Any) -> Result:
    request = Request("photos", str(source), max_failures=1.0, group_by="1", **NETWORK | more)
    listener = (lambda event: said.append(str(event))) if said is not None else None
    resources = Resources(workers=0, threads=2)
    (result,) = build_datasets(place, [request], InProcess(), resources, listener)
    return result


def grow(place: Catalogue, source: Path, steps: int, first: int = 0) -> None:
    """Adds images to one group, a few at a time, and builds after each step."""
    for step in range(first, first + steps):
        write_photos(source / "a", step % 2 + 1, first_seed=100 * step)
        build(place, source)


def merged_in(place: Catalogue) -> int:
    """Returns how many shards of the current version were put together."""
    heads = place.manifest("photos", place.find("photos")).heads
    return sum(len(head.cells) > 1 for head in heads)


def holds(place: Catalogue, source: Path) -> None:
    """Compares the dataset with one clean pass over its images, and verifies its files."""
    dna, clean = place.load("photos"), make_dna(source, max_failures=0.9, threads=2, **NETWORK)
    assert same_counts_and_failures(dna, clean)
    np.testing.assert_allclose(dna.mean, clean.mean, rtol=1e-9, atol=1e-12)
    assert [finding for finding in verify(place) if not finding.ok] == []


@settings(max_examples=4)
@given(st.lists(st.sampled_from(["add", "add", "change", "remove"]), min_size=4, max_size=7))
def test_random_histories_equal_a_clean_pass(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    base = tmp_path_factory.mktemp("history")
    place, source = Catalogue(str(base / "catalogue")), base / "source"
    grow(place, source, 3)
    assert merged_in(place) == 1
    for number, step in enumerate(steps, 10):
        images = sorted((source / "a").glob("*.jpg"))
        if step == "remove" and len(images) > 2:
            images[number % len(images)].unlink()
        elif step == "change":
            photo(7 * number).save(images[number % len(images)])
        else:
            write_photos(source / "a", 1, first_seed=100 * number)
        build(place, source)
    holds(place, source)


def test_shards_are_put_together_without_an_image_and_counted_again_to_the_bit(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    grow(place, source, 2)
    read: Tally[str] = Tally()
    made: list[int] = []
    make, real = Counter.make, storage.read

    def spy(self: Counter, shard: Any, key: str, **options: Any) -> Any:
        made.append(len(shard.members))
        return make(self, shard, key, **options)

    def reading(uri: str, *args: Any, **kwargs: Any) -> bytes:
        read[Path(uri).name] += uri.endswith(".jpg")
        return real(uri, *args, **kwargs)

    monkeypatch.setattr(Counter, "make", spy)
    monkeypatch.setattr(storage, "read", reading)
    said: list[str] = []
    write_photos(source / "a", 1, first_seed=900)
    result = build(place, source, said)
    monkeypatch.undo()
    assert (made, sum(read.values())) == ([1], 1)
    assert (result.read, result.reused) == (1, 3)
    assert any("photos: 2 small shards become 1, by adding up" in line for line in said)
    assert any("up to 1 image of 4 to read" in line for line in said)
    assert merged_in(place) == 1
    findings = list(
        recount(place, ["photos"], engine=InProcess(), sample=None, weights=NETWORK["weights"])
    )
    assert all(finding.ok for finding in findings), findings
    holds(place, source)


def test_a_lost_sum_is_counted_from_its_images(place: Catalogue, tmp_path: Path) -> None:
    source = tmp_path / "source"
    grow(place, source, 2)
    work = tmp_path / "catalogue" / "_work" / "photos"
    lost = sorted(work.rglob("partials/*.parquet"))
    lost[0].unlink()
    lost[1].write_bytes(b"torn")
    write_photos(source / "a", 1, first_seed=900)
    assert build(place, source).read == 4
    holds(place, source)


def test_gc_keeps_what_is_put_together_later(place: Catalogue, tmp_path: Path) -> None:
    source = tmp_path / "source"
    grow(place, source, 3)
    collect(place, keep=1, grace=timedelta(0))
    write_photos(source / "a", 1, first_seed=900)
    assert build(place, source).read == 1
    image = sorted((source / "a").glob("*.jpg"))[0]
    photo(901).save(image)
    os.utime(image, (1, 1))
    assert build(place, source).read <= 2  # the other cells of its shard are kept
    holds(place, source)


@pytest.mark.soak
def test_a_build_that_puts_shards_together_and_dies_at_any_write_is_completed(
    tmp_path: Path, killer: Killer
) -> None:
    first, source = tmp_path / "first", tmp_path / "source"
    grow(Catalogue(str(first)), source, 2)
    write_photos(source / "a", 1, first_seed=900)
    shutil.copytree(first, tmp_path / "clean")
    writes = killer(None, False)
    clean = Catalogue(str(tmp_path / "clean"))
    build(clean, source)
    truth, total = clean.load("photos"), len(writes)
    for at in range(1, total + 1):
        place = Catalogue(str(shutil.copytree(first, tmp_path / f"at-{at}")))
        killer(at, at % 2 == 0)
        with pytest.raises(Killed):
            build(place, source)
        killer(None, False)
        build(place, source)
        assert place.load("photos").identical(truth)
        assert merged_in(place) == 1
        assert [finding for finding in verify(place) if not finding.ok] == []
        shutil.rmtree(tmp_path / f"at-{at}")
