"""Measures the parts that `benchmarks.scale.model` is made of, each group in a fresh process.

Times are CPU time, because other work on a machine does not change it. Only Ray's start and the
loading of a network are what a clock shows.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import measure
from benchmarks.listing import PAGE, etag, first_above, key
from benchmarks.scale.case import Parts
from benchmarks.scale.counted_requests import coefficients
from benchmarks.scale.counting import counting, cpu, photographs, resident
from benchmarks.scale.stand_in import BUCKET, PREFIX, serving
from pipeline.sources import Entries, Listing, Manifest, NewShardSizes, Pairing, plan
from pipeline.sources.block_plan import NameBlock
from pipeline.sources.blocks import BLOCK_IMAGES
from pipeline.sources.entries_file import OBJECTS_SCHEMA
from pipeline.sources.listing import ListingWriter
from pipeline.sources.parallel_listing import LISTERS
from pipeline.sources.sorted_rows import rows_within
from pipeline.sources.stretches import (
    STRETCH_KEYS,
    parts_of_blocks,
    read_stored,
    run_in_task,
    store_sorted,
)

LISTED = measure.part_of(30_000)
FORMULA = (LISTED, measure.part_of(1_000_000))
PLANNED = measure.part_of(2_500_000)
"""More than are planned in memory, without the disk."""

PLANNED_BY_TASKS = measure.part_of(2**21)
WARMED = 2**14
"""So many images are planned before, as the first ones have libraries loaded."""

HASHED = measure.part_of(1_000_000)

HEADS = measure.part_of(20_000)
HANDED_OUT = (measure.part_of(300), measure.part_of(1500))
REPORTED = (measure.part_of(300_000), measure.part_of(2**20))
"""Rows of a report that the driver reads, and of one that a task does."""

READS = measure.part_of(300)
OBJECT_BYTES = 110_000


def listing() -> dict[str, Any]:
    """Lists by the product's client of S3, and reads objects."""
    from pipeline import storage
    from pipeline.sources import list_source

    with serving(LISTED, OBJECT_BYTES) as variables:
        os.environ |= variables
        uri = f"s3://{BUCKET}/{PREFIX}{key(0)}"
        storage.read(uri)
        before = cpu()
        for _ in range(READS):
            storage.read(uri)
        reading = cpu() - before
        before, asked = cpu(), Asked(storage.list_page)
        storage.list_page = asked
        found = list_source(f"s3://{BUCKET}/{PREFIX}")
        took = cpu() - before
    size = sum(os.path.getsize(part) for part in found.parts)
    return {
        "get_seconds": reading / READS,
        "list_seconds": took / asked.rows,
        "checkpoint_bytes": size / LISTED,
        **pages_asked(),
    }


def inventory() -> dict[str, float]:
    """Reads reports of S3 Inventory: as the driver does a small one, and as a task does."""
    import pyarrow.parquet as pq

    from pipeline.sources import Rules, list_source
    from pipeline.sources.inventory import find_inventory
    from pipeline.sources.stretches import ReportFiles

    few, many = REPORTED
    list_source(reported(range(WARMED)))
    uri = reported(range(few))
    before = cpu()
    listed = list_source(uri)
    took = cpu() - before
    if sum(pq.read_metadata(part).num_rows for part in listed.parts) != few:
        raise ValueError("the report was not read whole")
    spent = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in (WARMED, many):
            # No order is stated for the rows of a report.
            uri = reported(np.random.default_rng(0).permutation(count).tolist())
            report = find_inventory(uri)
            if report is None:
                raise ValueError("the report was not found")
            folder = f"file://{scratch}/parts"
            task = ReportFiles(uri, Rules(), report, (0,), None, folder, BLOCK_IMAGES)
            before = cpu()
            found = run_in_task(task)
            spent.append(cpu() - before)
            if sum(part.rows for part in found.parts) != count:
                raise ValueError("the report was not read whole")
    return {"inventory_seconds": took / few, "report_seconds": spent[-1] / many}


def reported(numbers: Sequence[int]) -> str:
    """Puts a report into a store that is a dict, and returns where it is.

    Args:
        numbers: Of the keys that it lists, in this order.
    """
    import pyarrow.parquet as pq

    from benchmarks.collecting import DictStore
    from pipeline import storage
    from pipeline.storage import objects

    names = ("bucket", "key", "size", "e_tag")
    columns = [
        [BUCKET] * len(numbers),
        [f"{PREFIX}{key(i)}" for i in numbers],
        [100_000] * len(numbers),
        [etag(i) for i in numbers],
    ]
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), sink)
    data = sink.getvalue()
    stated = {
        "sourceBucket": BUCKET,
        "destinationBucket": f"arn:aws:s3:::{BUCKET}",
        "fileFormat": "Parquet",
        "fileSchema": ", ".join(names),
        "files": [{"key": "report.parquet", "MD5checksum": hashlib.md5(data).hexdigest()}],
    }
    objects._STORES["s3"] = DictStore()
    storage.create(f"s3://{BUCKET}/report.parquet", data)
    storage.create(f"s3://{BUCKET}/manifest.json", json.dumps(stated).encode())
    return f"s3://{BUCKET}/manifest.json"


class Asked:
    """Asks for pages of a listing, and counts them."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.pages = self.rows = 0

    def __call__(self, uri: str, after: str) -> Any:
        found = self._real(uri, after)
        self.pages += 1
        self.rows += len(found[0])
        return found


def formula(entries: int) -> Any:
    """What lists so many keys, and takes no time."""
    from pipeline.storage import Stored

    def list_page(uri: str, after: str) -> tuple[list[Stored], str, bool]:
        first = first_above(after, entries) if after else 0
        last = min(first + PAGE, entries)
        items = [Stored(f"{uri}/{key(i)}", 1, "", None) for i in range(first, last)]
        return items, key(last - 1) if items else after, last < entries

    return list_page


def pages_asked() -> dict[str, Any]:
    """Pages that a listing in parallel asks for beside those that are full, and rows read twice."""
    from pipeline import storage
    from pipeline.sources import list_pages

    pages, rows = [], []
    for entries in FORMULA:
        storage.list_page = asked = Asked(formula(entries))
        if sum(map(len, list_pages("s3://bucket/images"))) != entries:
            raise ValueError(f"not {entries} images were listed")
        pages.append((entries, asked.pages - entries / PAGE))
        rows.append((entries, asked.rows - entries))
    return {"list_pages": pages, "list_rows": rows}


def columns_of(numbers: Sequence[int]) -> dict[str, list[Any]]:
    """What is listed of these images."""
    return {
        "uri": [f"s3://{BUCKET}/{PREFIX}{key(i)}" for i in numbers],
        "size": [100_000 + i % 1000 for i in numbers],
        "identity": [etag(i) for i in numbers],
    }


def rows(count: int) -> Listing:
    """A listing of so many images, as one of S3 is."""
    writer = ListingWriter()
    for first in range(0, count, 100_000):
        numbers = range(first, min(count, first + 100_000))
        writer.add_objects(pa.table(columns_of(numbers)))
        writer.end_page(len(numbers))
    return writer.listing(f"s3://{BUCKET}/{PREFIX}")


@contextmanager
def watched_disk(folder: str) -> Iterator[list[int]]:
    """Notes the most bytes that a folder had, ten times a second."""
    most, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            sizes = (path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            try:
                most[0] = max(most[0], sum(sizes))
            except FileNotFoundError:  # it was removed meanwhile
                continue

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield most
    finally:
        done.set()
        watch.join()


def planning() -> dict[str, float]:
    """Plans a listing, and holds the descriptions of very many shards."""
    from pipeline.buffers import footer_start
    from pipeline.counting import plan_folds
    from pipeline.sources import pairs_of
    from pipeline.spec import PRODUCTS

    with tempfile.TemporaryDirectory() as scratch:
        plan(rows(WARMED))
        tempfile.tempdir = f"{scratch}/tmp"
        Path(tempfile.tempdir).mkdir()
        found = rows(PLANNED)
        entries = Entries(f"file://{scratch}/entries")
        phase: dict[str, Any] = {}
        before, memory = cpu(), resident()
        with watched_disk(tempfile.tempdir) as disk, measure.phase(phase):
            manifest = plan(found, entries=entries, cell_images=1024)
        took = cpu() - before
        stored = list(Path(scratch, "entries").iterdir())
        footers = [len(data) - footer_start(data) for data in (p.read_bytes() for p in stored)]
        first, table = next(manifest.tables())
        before = cpu()
        if pairs_of(manifest) is None:
            raise ValueError("the images have no names for pairs")
        named = cpu() - before
        tempfile.tempdir = None
    heads = [
        replace(
            first,
            index=number,
            fold=number % 16,
            digest=secrets.token_hex(16),
            address=replace(first.address, file=f"{number // 25:064x}", row_group=number % 25),
        )
        for number in range(HEADS)
    ]
    data = replace(manifest, heads=tuple(heads)).data
    del heads
    tracemalloc.start()
    many = Manifest.decode(data, "many", entries)
    planned = plan_folds(many, "s3://bucket/dnas/_work/fleet/" + "0" * 32, "0" * 32, PRODUCTS)
    held, _ = tracemalloc.get_traced_memory()
    del planned
    return {
        "plan_seconds": took / PLANNED,
        "pair_seconds": named / PLANNED,
        "plan_bytes": max(0, phase["peak_mb"] * 1e6 - memory),
        "disk_bytes": disk[0] / PLANNED,
        "entry_bytes": (sum(p_size for p_size in _sizes(manifest)) - sum(footers)) / PLANNED,
        "row_bytes": table.nbytes / table.num_rows,
        "footer_bytes": sum(footers) / len(manifest.heads),
        "manifest_bytes": len(data) / HEADS,
        "head_bytes": held / HEADS,
    }


def _sizes(manifest: Manifest) -> Iterator[int]:
    """Yields the size of each entries file once."""
    yield from {head.address.file: head.address.size for head in manifest.heads}.values()


def planned_by_tasks(count: int) -> dict[str, float]:
    """Seconds of tasks that sort and store so many images, read the parts, and plan the blocks.

    The images are those of a prefix: a task has listed some names that follow each other.
    """
    import pyarrow.parquet as pq

    spent = dict.fromkeys(("store", "read", "plan"), 0.0)
    read = planned = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder, entries = f"file://{scratch}/parts", Entries(f"file://{scratch}/entries")
        parts = []
        for first in range(0, count, STRETCH_KEYS):
            numbers = range(first, min(count, first + STRETCH_KEYS))
            listed = pa.table(columns_of(numbers), OBJECTS_SCHEMA)
            before = cpu()
            parts += store_sorted(listed, folder, BLOCK_IMAGES, (), STRETCH_KEYS // LISTERS)
            spent["store"] += cpu() - before
        ends = sorted({end for part in parts for end in part.ends})
        bounds = list(pairwise(["", *ends, None]))
        sizes = NewShardSizes(cell_bytes=1_500_000)
        for at, its in parts_of_blocks(ends, parts).items():
            after, until = bounds[at]
            of_block = after or "", until
            before = cpu()
            for data in read_stored(its):
                file = pq.ParquetFile(pa.BufferReader(data))
                some = file.read(OBJECTS_SCHEMA.names, use_threads=False)
                read += some.num_rows
                rows_within(some, *of_block)
            between = cpu()
            block = NameBlock(of_block, tuple(its), sizes, entries, Pairing())
            heads = run_in_task(block).heads
            after_all = cpu()
            spent["read"] += between - before
            spent["plan"] += after_all - between
            planned += sum(head.candidates for head in heads)
    if planned != count:
        raise ValueError(f"{planned} of {count} images are planned")
    return spent | {"read_rows": read}


def planning_by_tasks() -> dict[str, float]:
    """Plans as tasks do, without the first images, for which libraries are loaded."""
    planned_by_tasks(WARMED)
    found = planned_by_tasks(PLANNED_BY_TASKS)
    return {
        "store_seconds": found["store"] / PLANNED_BY_TASKS,
        "part_seconds": found["read"] / found["read_rows"],
        "block_seconds": max(0.0, found["plan"] - found["read"]) / PLANNED_BY_TASKS,
    }


def verifying() -> dict[str, float]:
    """Looks for images that a manifest lists twice, as `verify` does."""
    from pipeline.catalogue.listed_once import require_each_once, sorted_hashes
    from pipeline.mapper import SerialMapper

    in_tasks = 0.0

    class Timed(SerialMapper):
        def map(self, function: Any, items: Sequence[Any], *, memory: int = 0) -> Iterator[Any]:
            nonlocal in_tasks
            for item in items:
                before = cpu()
                found = function(item)
                in_tasks += cpu() - before
                yield found

    with tempfile.TemporaryDirectory() as scratch:
        manifest = plan(rows(HASHED), entries=Entries(f"file://{scratch}/entries"))
        before = cpu()
        require_each_once(manifest, sorted_hashes(manifest, Timed()))
        took = cpu() - before
    return {"hash_seconds": in_tasks / HASHED, "sort_seconds": (took - in_tasks) / HASHED}


def handed_out(counts: Sequence[int]) -> tuple[int, list[tuple[float, float]]]:
    """Hands shards out whose manifest is missing, so that workers have nothing to do.

    Some images are listed by the client of S3 and planned before, as their libraries take memory.
    Returns the driver's memory before, and its seconds and peak of memory for each count.
    """
    from pipeline.building import Request, make_spec
    from pipeline.counting import Recipe, ShardJob
    from pipeline.engine import RayEngine
    from pipeline.networks import describe, find_ranges
    from pipeline.sources import list_source
    from pipeline.spec import Resources

    network = describe("efficientnet_lite0")
    ranges, _ = find_ranges(network, None, {})
    spec = make_spec(Request("x", "x"), network, ranges.digest, "cpu")
    resources = Resources(workers=1, threads=1)
    found = []
    with tempfile.TemporaryDirectory() as scratch, RayEngine(resources, "local") as engine:
        recipe = Recipe(spec, network, f"{scratch}/ranges", resources)
        job = ShardJob(recipe, f"{scratch}/manifest", f"{scratch}/work", f"{scratch}/entries")
        for _ in engine.run_shards([(job, 0)]):
            pass
        with serving(PAGE) as variables:
            os.environ |= variables
            plan(list_source(f"s3://{BUCKET}/{PREFIX}"))
        base = resident()
        for count in counts:
            phase: dict[str, Any] = {}
            before = cpu()
            with measure.phase(phase):
                receipts = sum(1 for _ in engine.run_shards([(job, i) for i in range(count)]))
            if receipts != count:
                raise ValueError(f"{receipts} of {count} shards came back")
            found.append((cpu() - before, phase["peak_mb"] * 1e6))
    return base, found


def ray_driver() -> dict[str, float]:
    """What a shard more takes of the driver."""
    base, ((few, low), (many, high)) = handed_out(HANDED_OUT)
    more = HANDED_OUT[1] - HANDED_OUT[0]
    return {
        "driver_bytes": base,
        "dispatch_seconds": (many - few) / more,
        "dispatch_bytes": max(0.0, (high - low) / more),
    }


def starting(folder: str) -> dict[str, float]:
    """Builds a few images on Ray by the command, from the shell."""
    from benchmarks.start_up import seconds_of

    with tempfile.TemporaryDirectory() as scratch:
        images = folder or str(photographs(Path(scratch), 32))
        found = seconds_of(images, 32, ())
    return {
        "start_seconds": found["start"],
        "load_seconds": found["load"],
        "end_seconds": found["commit"],
    }


GROUPS = {
    "listing": listing,
    "inventory": inventory,
    "planning": planning,
    "planning by tasks": planning_by_tasks,
    "verifying": verifying,
    "ray": ray_driver,
    "counting": counting,
    "starting": starting,
    "requests": coefficients,
}


def _group(which: str, folder: str) -> dict[str, Any]:
    function = GROUPS[which]
    return function(folder) if which in ("counting", "starting") else function()


def measure_parts(folder: str = "", groups: tuple[str, ...] = tuple(GROUPS)) -> dict[str, Any]:
    """Measures groups of parts, and says on standard error what each took."""
    found: dict[str, Any] = {}
    for which in groups:
        began = time.perf_counter()
        settings = {"which": which, "folder": folder}
        measured = measure.run("benchmarks.scale.measuring", settings, tuned_malloc=False)
        known = Parts.__dataclass_fields__
        found |= {name: value for name, value in measured.items() if name in known}
        print(f"{which}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    measure.answer(_group)
