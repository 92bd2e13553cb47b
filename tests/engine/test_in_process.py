"""Tests the engine of one process: shards come as they end, and it ends before the last one."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.building import Request, make_spec
from pipeline.counting import Extractor, Recipe, ShardJob, Worker, partial_uri
from pipeline.engine import InProcess
from pipeline.networks import find_ranges
from pipeline.sources import Entries, list_source, plan
from pipeline.spec import PRODUCTS, Resources
from tests.support import tiny_network as tiny

GROUPS, IMAGES = 4, 80
"""Each group is a shard, and takes ten forward passes."""


class Planned:
    """A folder of images, planned, and where its shards are stored."""

    def __init__(self, folder: Path) -> None:
        place = tiny.install(folder)
        images = folder / "images"
        images.mkdir()
        for at in range(GROUPS * IMAGES):
            (images / f"{at:03d}.png").write_bytes(tiny.Picture("good", at).data)
        found = list_source(images).entries
        grouped = [replace(entry, group=f"g{at % GROUPS}") for at, entry in enumerate(found)]
        self.place = (folder / "work").as_uri()
        entries = storage.join(self.place, "entries")
        manifest = plan(grouped, shard_images=IMAGES, entries=Entries(entries))
        uri = storage.join(self.place, "manifest.parquet")
        storage.create(uri, manifest.data)
        ranges, _ = find_ranges(place.network, place.ranges, {})
        request = Request("x", "x", **place.options)  # type: ignore[arg-type]  # fields by name
        spec = make_spec(request, place.network, ranges.digest, "cpu")
        where = Path(place.ranges).as_uri()
        recipe = Recipe(spec, place.network, where, Resources(threads=1), PRODUCTS)
        job = ShardJob(recipe, uri, self.place, entries)
        assert len(manifest.heads) == GROUPS
        self.work = [(job, head.index) for head in manifest.heads]
        self._keys = manifest.keys(spec.digest, PRODUCTS)

    @property
    def stored(self) -> set[int]:
        uris = (partial_uri(self.place, key) for key in self._keys)
        return {at for at, uri in enumerate(uris) if storage.exists(uri)}


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    return Planned(tmp_path)


def test_shards_come_as_they_end(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits until all others were yielded."""
    run, others = Worker.run, threading.Event()

    def slow(self: Worker, job: ShardJob, index: int) -> Any:
        assert index or others.wait(60)
        return run(self, job, index)

    monkeypatch.setattr(Worker, "run", slow)
    with InProcess() as engine:
        receipts = engine.run_shards(planned.work)
        early = {next(receipts).index for _ in range(GROUPS - 1)}
        others.set()
        assert [receipt.index for receipt in receipts] == [0]
    assert early == set(range(1, GROUPS))
    assert planned.stored == set(range(GROUPS))


def test_shards_under_way_end_when_nobody_wants_them_any_more(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one interrupt would wait for whole shards, which may take a quarter of an hour."""
    observe = Extractor.observe

    def slow(self: Extractor, pixels: Any, visit: Any) -> None:
        time.sleep(0.05)
        observe(self, pixels, visit)

    monkeypatch.setattr(Extractor, "observe", slow)
    with InProcess() as engine:
        receipts = engine.run_shards(planned.work)
        first = next(receipts)
        receipts.close()  # type: ignore[attr-defined]  # a generator
        # Two are under way at a time. The second may have been at its end, and the third was not.
        assert first.index in planned.stored
        assert len(planned.stored) <= 2
        again = list(engine.run_shards(planned.work))
    assert all(receipt.error == "" for receipt in again)
    assert planned.stored == set(range(GROUPS))
