"""Tests that the memory of a driver does not grow with the images that it lists and counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.building import make_dna, without_catalogue
from pipeline.counting import Counter
from pipeline.sources import Shard, manifest
from tests.support import tiny_network as tiny

FEW, MANY = 4_000, 24_000

CHILD = """
import bisect, json, random, sys, tempfile
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pyarrow as pa

from benchmarks.measure import phase
from pipeline import buffers, storage
from pipeline.sources import Entries, Manifest, entries_file, list_source, listing
from pipeline.sources.manifest import ManifestWriter
from pipeline.sources.fold_assignment import FoldFile

count, most, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
listing.PART_ENTRIES = 1_000  # held, and so few that few images fill it too
entries_file.FILE_BYTES = 2**20  # likewise
every = [f"drive/frame-{i:08d}.jpg" for i in range(5 * most)]  # as much to hold for few
names = every[:5 * count]

def list_page(uri, after):
    first = bisect.bisect_right(names, after)
    page = names[first:first + 100]
    items = [storage.Stored(f"{uri}/{name}", 1, f"etag {name}", None) for name in page]
    return items, page[-1] if page else after, first + 100 < len(names)

def tables():
    # A label of 2 kB, for that the file grows as with many more images.
    rng = random.Random(0)
    for first in range(0, count, 200):
        its = names[first:first + 200]
        columns = {name: pa.array([""] * 200) for name in ("member", "group", "access")}
        columns |= {name: pa.array([1] * 200) for name in ("size", "position")}
        columns |= {"uri": pa.array(its), "identity": pa.array(its)}
        yield pa.table(columns | {"note": pa.array([rng.randbytes(2_000).hex() for _ in its])})

def write():
    with ManifestWriter(Entries(f"{Path(folder).as_uri()}/entries"), ["note"]) as writer:
        for table in tables():
            writer.add(0, table)
    return writer.manifest(200)

def spill():
    spilled = FoldFile(f"{folder}/spill")
    for table in tables():
        spilled.write(table.to_batches()[0])
    return sum(rows.num_rows for rows in spilled.batches())

def look_through(manifest):
    return sum(len(shard.members) for shard in manifest.shards)

def whole_file(manifest):
    # Puts the candidates together, as a large file that is mapped.
    pieces, size = [], 0
    for name in manifest.files:
        pieces.append((size, name))
        size += storage.info(manifest.entries.uri(name)).size
    read = ((start, manifest.entries.read(name)) for start, name in pieces)
    return storage.sparse(size, read)

def send(data):
    with buffers.Mapped(data) as file:
        return sum(len(piece) for piece in iter(lambda: file.read(2**16), b""))

storage.list_page = list_page
uri = f"{Path(folder).as_uri()}/manifest.parquet"
steps = {
    "list": lambda: list_source("s3://bucket/images"),
    "write": write,
    "spill": spill,
    "decode": lambda: Manifest.decode(done["write"].data, "m", done["write"].entries),
    "look through": lambda: look_through(done["decode"]),
    "tables": lambda: sum(table.num_rows for _, table in done["decode"].tables()),
    "join": lambda: whole_file(done["write"]),
    "store": lambda: storage.create(uri, done["join"]),
    "send": lambda: send(done["join"]),
    "hash": lambda: buffers.sha256(done["join"]),
    "read": lambda: storage.read_on_disk(uri),
}
done, peaks = {}, {}
for name, step in steps.items():
    with phase(noted := {}):
        done[name] = step()
    peaks[name] = noted["peak_mb"]
assert done["spill"] == done["look through"] == done["tables"] == count
print(json.dumps({"mb": len(done["join"]) / 1e6, "peaks": peaks}))
"""


ALLOCATORS = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
"""Other allocators keep what is freed, sometimes tens of MB of it."""


def child(code: str, *arguments: object) -> str:
    """Runs code in a child process, and returns what it prints."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=240, env=os.environ | ALLOCATORS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def peaks(count: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return json.loads(child(CHILD, count, MANY, folder))


@pytest.mark.soak
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    few, many = (peaks(count, tmp_path / str(count)) for count in (FEW, MANY))
    more = many["mb"] - few["mb"]
    assert more > 35
    grown = {name: peak - few["peaks"][name] for name, peak in many["peaks"].items()}
    assert {name: mb for name, mb in grown.items() if mb > 0.6 * more} == {}


WRITE = """
import sys
from benchmarks.random_catalogue import RandomCatalogue
from pipeline.catalogue import Catalogue

place = Catalogue(sys.argv[1])
RandomCatalogue(place, (200, 200, 400), 16).add({f"set/{n}": n for n in range(9)})
"""

COMPARE = """
import sys
from benchmarks.measure import phase
from pipeline.catalogue import Catalogue
from pipeline.comparing import Effort, compare, layer_cache

place = Catalogue(sys.argv[1])
compare(place, ["set/0", "set/1"], effort=Effort(memory=1))  # compiles
layer_cache.clear_cache()
with phase(idle := {}):
    pass
with phase(after := {}):
    compare(place, sys.argv[3:], effort=Effort(memory=int(sys.argv[2])))
print(after["peak_mb"] - idle["peak_mb"])
"""


@pytest.mark.soak
def test_a_comparison_s_memory_is_bounded_by_its_setting(tmp_path: Path) -> None:
    """The DNAs with their folds have 870 MB."""
    place = tmp_path / "catalogue"
    child(WRITE, place)
    bounded = float(child(COMPARE, place, 256 * 2**20, *(f"set/{n}" for n in range(2, 9))))
    assert bounded < 1.25 * 268
    free = float(child(COMPARE, place, 4096 * 2**20, *(f"set/{n}" for n in range(1, 9))))
    assert free > 1.5 * bounded


def test_the_members_of_a_shard_are_read_when_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset in memory may have millions, and those of all shards would stay in memory."""
    begun: list[int] = []
    given: list[int] = []
    read, count_each = manifest._ShardReader.__getitem__, Counter.count_each

    def noted(self: Any, index: Any) -> Any:
        begun.append(index)
        return read(self, index)

    def counted(self: Counter, shards: Sequence[tuple[Shard, str]], *more: Any) -> Any:
        given.append(len(shards))
        assert len(begun) == sum(given), "no others were read"
        assert sum(len(shard.members) for shard, _ in shards[:-1]) <= 8
        return count_each(self, shards, *more)

    monkeypatch.setattr(without_catalogue, "JOINED_IMAGES", 8)
    monkeypatch.setattr(manifest._ShardReader, "__getitem__", noted)
    monkeypatch.setattr(Counter, "count_each", counted)
    images = [np.full((8, 8, 3), value, np.uint8) for value in range(64)]
    dna = make_dna(images, threads=1, **tiny.install(tmp_path).options)  # type: ignore[arg-type]
    assert dna.images == 64
    assert len(begun) == sum(given) > len(given) > 4
