"""How many shards, entries files and requests a dataset takes that grows a little every day.

    python -m benchmarks.daily_additions [--days 365] [--images 32] [--built 0]

Plans alone are made, without images. They are compared with plans that never put small shards
together. `verify` reads a partial of each shard, and each plan reads all entries files.

With `--built 48`, a dataset is also built, on as many days, with the tiny network of the tests. A
store that is a dict stands in for S3, and counts requests as S3 would be asked, but for those that
read images. Those of the first, the middle and the last ten days are told.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import mean

from benchmarks.collecting import DictStore
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.sources import Entries, Entry, Manifest, plan, shard_merging
from pipeline.spec import Resources
from pipeline.storage import objects
from pipeline.storage.store import Answer, Stored
from tests.support import tiny_network as tiny

NEVER = 10**9
"""More small shards than there are."""

SOME_DAYS = 10
"""So many days are told of together."""


def grown(days: int, images: int, together: int) -> Manifest:
    """Returns the plan of a dataset after so many days."""
    shard_merging.TOGETHER = together
    found: list[Entry] = []
    entries, before = Entries(), None
    for day in range(days + 1):
        found += [Entry(f"s3://b/day={day:04}/{at:04}.jpg", "", 10**5, "1") for at in range(images)]
        before = plan(found, previous=before, entries=entries)
    assert before is not None
    return before


class Bucket(DictStore):
    """A store whose objects have ETags, and which counts no requests for images."""

    def get(self, uri: str, start: int, length: int | None, most: int | None = None) -> Answer:
        answer = super().get(uri, start, length, most)
        self.requests["GET"] -= uri.startswith("s3://source/")
        return replace(answer, identity=self._etag(uri))

    def _stored(self, uri: str) -> Stored:
        return super()._stored(uri)._replace(identity=self._etag(uri))

    def _etag(self, uri: str) -> str:
        return hashlib.md5(self.objects.get(uri, b""), usedforsecurity=False).hexdigest()


def requests_by_day(days: int, images: int, together: int) -> list[Counter[str]]:
    """Builds a dataset every day, and returns the requests of each day's build by their kind."""
    shard_merging.TOGETHER = together
    objects._STORES["s3"] = store = Bucket()
    found = []
    with tempfile.TemporaryDirectory() as folder, InProcess() as engine:
        options = tiny.install(Path(folder)).options
        request = Request("photos", "s3://source/photos", **options)
        for day in range(days + 1):
            for at in range(images):
                uri = f"s3://source/photos/day={day:04}/{at:04}.png"
                store.objects[uri] = tiny.Picture("good", images * day + at).data
            before = Counter(store.requests)
            (result,) = build_datasets(
                Catalogue("s3://dnas/c"), [request], engine, Resources(workers=0, threads=2)
            )
            assert result.version.images == images * (day + 1)
            found.append(store.requests - before)
    return found[1:]


def told(days: list[Counter[str]]) -> str:
    """Words the mean requests of some days."""
    kinds = sorted({kind for day in days for kind in day})
    each = ", ".join(f"{mean(day[kind] for day in days):.0f} {kind}" for kind in kinds)
    return f"{mean(day.total() for day in days):.0f} a day ({each})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--built", type=int, default=0)
    asked = parser.parse_args()
    for together in (shard_merging.TOGETHER, NEVER):
        how = "never" if together == NEVER else f"{together} at a time"
        if asked.days:
            made = grown(asked.days, asked.images, together)
            print(
                f"{asked.days} additions of {asked.images} images, put together {how}: "
                f"{len(made.heads):,} shards, {len(made.files):,} entries files",
                flush=True,
            )
        if asked.built:
            days = requests_by_day(asked.built, asked.images, together)
            middle = max(len(days) // 2 - SOME_DAYS // 2, 0)
            whole = sum(day.total() for day in days)
            print(f"{asked.built} builds, put together {how}: {whole:,} requests")
            for name, first in (("first", 0), ("middle", middle), ("last", -SOME_DAYS)):
                some = days[first:][:SOME_DAYS]
                print(f"  the {name} {len(some)} days: {told(some)}", flush=True)


if __name__ == "__main__":
    main()
