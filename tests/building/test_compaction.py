"""Small shards that are put together, and small cells that are joined, survive any death.

No count changes, and no image is read for it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter as Tally
from collections.abc import Sequence
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
from pipeline.sources import ShardHead, shard_merging
from pipeline.spec import Resources
from pipeline.wording import count_of
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


def grow(place: Catalogue, source: Path, steps: int, **more: Any) -> None:
    """Adds images to one group, a few at a time, and builds after each step."""
    for step in range(steps):
        write_photos(source / "a", step % 2 + 1, first_seed=100 * step)
        build(place, source, **more)


def thin(source: Path, *left: int) -> None:
    """Leaves these images of a group of 12, which is three cells of four."""
    if not (source / "b").exists():
        write_photos(source / "b", 12)
    for at in set(range(12)) - set(left):
        (source / "b" / f"photo-{at:04}.jpg").unlink(missing_ok=True)


def merged_in(place: Catalogue) -> int:
    """Returns how many shards of the current version were put together."""
    return sum(len(head.cells) > 1 or len(head.runs) > 1 for head in heads_of(place))


def heads_of(place: Catalogue) -> Sequence[ShardHead]:
    return place.manifest("photos", place.find("photos")).heads


def holds(place: Catalogue, source: Path) -> None:
    """Compares the dataset with one clean pass over its images, and verifies its files."""
    dna, clean = place.load("photos"), make_dna(source, max_failures=0.9, threads=2, **NETWORK)
    assert same_counts_and_failures(dna, clean)
    np.testing.assert_allclose(dna.mean, clean.mean, rtol=1e-9, atol=1e-12)
    assert [finding for finding in verify(place) if not finding.ok] == []


STEPS = ["add", "add", "change", "remove", "remove", "remove"]


@pytest.mark.soak
@settings(max_examples=3)
@given(st.lists(st.sampled_from(STEPS), min_size=4, max_size=7), st.sampled_from([2, 4, 8, None]))
def test_random_histories_equal_a_clean_pass(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], cell: int | None
) -> None:
    base = tmp_path_factory.mktemp("history")
    place, source = Catalogue(str(base / "catalogue")), base / "source"
    thin(source, *range(12))
    grow(place, source, 3, cell_images=cell)
    for number, step in enumerate(steps, 10):
        images = sorted(source.glob("?/*.jpg"))
        if step == "remove" and len(images) > 4:
            for image in {images[7 * number % len(images)], images[-number % len(images)]}:
                image.unlink()
        elif step == "change":
            photo(7 * number).save(images[number % len(images)])
        else:
            write_photos(source / "a", 1, first_seed=100 * number)
        build(place, source, cell_images=cell)
    holds(place, source)
    counts_again_to_the_bit(place)


def counts_again_to_the_bit(place: Catalogue) -> None:
    weights = NETWORK["weights"]
    findings = list(recount(place, ["photos"], engine=InProcess(), sample=None, weights=weights))
    assert all(finding.ok for finding in findings), findings
    assert not any("moved" in finding.detail for finding in findings), findings


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
    assert any("about 1 image of 4 to read" in line for line in said)
    assert merged_in(place) == 1
    counts_again_to_the_bit(place)
    holds(place, source)


def test_a_wrong_count_that_was_put_together_is_repaired_as_a_verification_advises(
    place: Catalogue, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    grow(place, source, 3)
    assert merged_in(place) == 1
    image = source / "a" / "photo-0000.jpg"
    status = image.stat()
    photo(999).save(image, quality=5)
    image.write_bytes(image.read_bytes().ljust(status.st_size, b"\0"))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    version, weights = place.find("photos"), NETWORK["weights"]
    found = recount(place, ["photos"], engine=InProcess(), sample=None, weights=weights)
    wrong = next(finding for finding in found if not finding.ok)
    named = re.findall(r"file://\S+/partials/\w+\.parquet", wrong.detail)
    assert len(named) == 3  # and of the two that it was put together of
    for uri in [*named, place.uri("dna", version.spec, "photos", version.dna)]:
        storage.delete(uri)
    for folder in ("cells", "nodes"):
        storage.delete_tree(storage.join(place.work_uri("photos", version.spec), folder))
    build(place, source)
    counts_again_to_the_bit(place)
    holds(place, source)


def test_small_cells_are_joined_without_an_image_and_counted_again_to_the_bit(
    place: Catalogue, tmp_path: Path
) -> None:
    """The cell that is joined is of a sum that is kept and of an image that is read in any case."""
    source = tmp_path / "source"
    thin(source, *range(12))
    build(place, source, cell_images=4)
    (head,) = heads_of(place)
    assert (head.cells, head.runs) == ((4, 4, 4), ())
    for left, read, cells, runs in (
        ([0, *range(4, 12)], 1, (1, 4, 4), ()),
        ([0, 4, *range(8, 12)], 1, (2, 4), (1, 1, 4)),
        ([0, 4, *range(9, 12)], 3, (2, 3), (1, 1, 3)),
    ):
        thin(source, *left)
        said: list[str] = []
        assert build(place, source, said, cell_images=4).read == read
        about = f"about {count_of(read, 'image')} of {len(left)} to read"
        assert any(about in line for line in said)
        (head,) = heads_of(place)
        assert (head.cells, head.runs) == (cells, runs)
    counts_again_to_the_bit(place)
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
    grow(place, source, 3, cell_images=2)
    collect(place, keep=1, grace=timedelta(0))
    write_photos(source / "a", 1, first_seed=900)
    assert build(place, source, cell_images=2).read == 1
    image = sorted((source / "a").glob("*.jpg"))[0]
    photo(901).save(image)
    os.utime(image, (1, 1))
    assert build(place, source, cell_images=2).read <= 2  # the other cells of its shard are kept
    holds(place, source)


@pytest.mark.soak
def test_a_build_that_puts_shards_together_joins_cells_and_dies_at_any_write_is_completed(
    tmp_path: Path, killer: Killer
) -> None:
    first, source = tmp_path / "first", tmp_path / "source"
    thin(source, *range(12))
    build(Catalogue(str(first)), source, cell_images=4)
    thin(source, 0, *range(4, 12))
    grow(Catalogue(str(first)), source, 2, cell_images=4)
    write_photos(source / "a", 1, first_seed=900)
    thin(source, 0, 4, *range(8, 12))
    shutil.copytree(first, tmp_path / "clean")
    writes = killer(None, False)
    clean = Catalogue(str(tmp_path / "clean"))
    build(clean, source, cell_images=4)
    truth, total = clean.load("photos"), len(writes)
    for at in range(1, total + 1):
        place = Catalogue(str(shutil.copytree(first, tmp_path / f"at-{at}")))
        killer(at, at % 2 == 0)
        with pytest.raises(Killed):
            build(place, source, cell_images=4)
        killer(None, False)
        build(place, source, cell_images=4)
        assert place.load("photos").identical(truth)
        assert merged_in(place) == 2
        assert any(len(head.runs) > len(head.cells) > 1 for head in heads_of(place))
        assert [finding for finding in verify(place) if not finding.ok] == []
        if at == 1:
            counts_again_to_the_bit(place)
        shutil.rmtree(tmp_path / f"at-{at}")
