"""Tests that cells stay in a catalogue while the next build may take them, and that it does."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.building import Request, Result, build_datasets
from pipeline.catalogue import Catalogue, collect, roll_back, verify
from pipeline.engine import InProcess
from pipeline.events import Event, Said
from pipeline.spec import Resources
from tests.support import tiny_network as tiny


@pytest.fixture(scope="module")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


class Growing:
    """A dataset of one group, whose images change."""

    def __init__(self, place: tiny.Place, folder: Path) -> None:
        self.images = folder / "images" / "group"
        self.images.mkdir(parents=True)
        self.catalogue = Catalogue(str(folder / "catalogue"))
        self.engine = InProcess()
        self.said: list[str] = []
        self.request = Request(
            "a",
            str(self.images.parent),
            group_by="1",
            shard_images=30,
            cell_images=4,
            replace=True,
            **place.options,  # type: ignore[arg-type]  # fields by name
        )

    def write(self, at: int, seed: int) -> None:
        path = self.images / f"{at:02d}.png"
        path.write_bytes(tiny.Picture("good", seed).data)
        os.utime(path, ns=(0, 1_700_000_000_000_000_000 + seed))

    def build(self) -> Result:
        def listen(event: Event) -> None:
            if isinstance(event, Said):
                self.said.append(event.message)

        self.said.clear()
        resources = Resources(workers=0, threads=2)
        (result,) = build_datasets(
            self.catalogue, [self.request], self.engine, resources, progress=listen
        )
        return result

    @property
    def reused(self) -> int:
        """How many images the last build has not read, as it told."""
        told = [line for line in self.said if line.startswith("not read again")]
        return int(told[0].split()[-2]) if told else 0

    @property
    def cells(self) -> set[str]:
        work = storage.join(self.catalogue.root, "_work")
        return {item.uri for item in storage.walk(work) if "/cells/" in item.uri}


@pytest.fixture
def growing(tiny_place: tiny.Place, tmp_path: Path) -> Iterator[Growing]:
    made = Growing(tiny_place, tmp_path)
    for at in range(20):
        made.write(at, at)
    yield made
    made.engine._worker.close()


def age_all(catalogue: Catalogue) -> None:
    then = time.time() - 30 * 86_400
    for item in storage.walk(catalogue.root):
        if "/_log/" not in item.uri:
            os.utime(storage.local_path(item.uri), (then, then))


def test_a_refresh_says_how_many_images_it_did_not_read(growing: Growing) -> None:
    first = growing.build()
    assert growing.reused == 0
    assert first.read_bytes == sum(path.stat().st_size for path in growing.images.iterdir())
    growing.write(5, 105)
    result = growing.build()
    assert (result.version.images, growing.reused, result.counted_shards) == (20, 16, 1)
    shard = Catalogue(growing.catalogue.root).manifest("a", result.version).shards[0]
    (cell,) = (run for run in shard.cell_runs() if any("/05.png" in e.uri for e in run.members))
    assert (result.read, result.read_bytes) == (4, sum(entry.size for entry in cell.members))
    assert growing.build().read_bytes == 0


def test_gc_keeps_the_cells_of_the_newest_version_alone(growing: Growing) -> None:
    growing.build()
    old = growing.cells
    growing.write(5, 105)
    growing.build()
    new = growing.cells - old
    assert len(old) == len(new) == 1
    age_all(growing.catalogue)
    collect(growing.catalogue)
    assert growing.cells == new
    growing.write(9, 109)
    growing.build()
    assert growing.reused == 16
    assert all(finding.ok for finding in verify(growing.catalogue))


def test_gc_keeps_the_cells_of_a_version_and_of_a_plan_that_was_not_counted(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing.build()
    old = growing.cells
    growing.write(5, 105)
    with monkeypatch.context() as patch:
        patch.setattr(InProcess, "run_shards", lambda self, work: iter(()))
        with pytest.raises(Exception):  # noqa: B017, PT011  # whatever a build says of it
            growing.build()
    age_all(growing.catalogue)
    collect(growing.catalogue)
    assert growing.cells == old
    growing.write(9, 109)
    growing.build()
    assert growing.reused == 12


def test_a_version_that_is_rolled_back_to_without_cells_counts_all_that_changed(
    growing: Growing,
) -> None:
    first = growing.build().version
    growing.write(5, 105)
    growing.build()
    collect(growing.catalogue, grace=timedelta(0))
    roll_back(growing.catalogue, "a", 1)
    growing.write(5, 5)
    growing.write(9, 109)
    version = growing.build().version
    assert version.dna != first.dna
    clean = Catalogue(f"memory://{random.getrandbits(64):x}")
    (other,) = build_datasets(clean, [growing.request], growing.engine, Resources(workers=0))
    assert other.version.images == version.images == 20
    a, b = (c.load("a") for c in (growing.catalogue, clean))
    assert (a.counts == b.counts).all()
    storage.delete_tree(clean.root)
