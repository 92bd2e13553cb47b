"""Predicts small builds, runs them, and puts what was measured beside what was predicted.

Requests, bytes, shards and memory are counted, and do not depend on what else a machine does. The
seconds that are compared are CPU time, but for those of whole builds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.scale.case import Case, Parts
from benchmarks.scale.model import PAGE, Model, predict

MODULE = "benchmarks.scale.checking"
IMAGES = 112
"""Folds of so few images are of one size."""
SHARD_IMAGES = 1
"""So small that the sums have a tree."""

PLANNED = 5_000_000
LISTED = 200_000
HANDED_OUT = 4000
SHARDS = 3000
BINS = max(2, measure.part_of(1000))
"""Fewer, if little is to be measured: then requests are as predicted, and bytes are not."""

REQUEST_SECONDS = 0.005
"""What a request takes through the proxy of this machine."""

Row = dict[str, Any]


def row(run: str, what: str, predicted: float, measured: float) -> Row:
    return {"run": run, "what": what, "predicted": predicted, "measured": measured}


def case_of(run: str) -> Case:
    """The case of a build of small images, in this process or on Ray."""
    from pipeline.spec import available_cpus
    from tests.support.builders import jpeg

    return Case(
        IMAGES,
        gpus=0,
        cpu_workers=1 if run == "in process" else available_cpus(),
        image_bytes=sum(len(jpeg(seed)) for seed in range(20)) / 20,
        megapixels=96 * 72 / 1e6,
        request_seconds=REQUEST_SECONDS,
        page_seconds=REQUEST_SECONDS,
        shard_images=SHARD_IMAGES,
    )


def build_alone(run: str) -> dict[str, float]:
    """Builds the images, in a process that does nothing else."""
    from benchmarks.s3_requests import BUCKET
    from benchmarks.scale.counting import cpu
    from pipeline import Request
    from pipeline.building import build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.engine import InProcess, RayEngine
    from pipeline.spec import Resources

    workers = case_of(run).cpu_workers
    resources = Resources(workers=0 if run == "in process" else workers, threads=1)
    url = f"s3://{BUCKET}/images/a"
    request = Request("a", url, shard_images=SHARD_IMAGES, bins=BINS)
    opened = InProcess() if run == "in process" else RayEngine(resources, "local")
    phase: dict[str, Any] = {}
    began, before = time.perf_counter(), cpu()
    with measure.phase(phase), opened as engine:
        build_datasets(Catalogue(f"s3://{BUCKET}/dnas"), [request], engine, resources)
    seconds = {"seconds": time.perf_counter() - began, "cpu": cpu() - before}
    return {"peak": phase["peak_mb"] * 1e6, **seconds}


def builds(parts: Parts, run: str) -> Iterator[Row]:
    """Builds small images of S3 through the proxy that counts."""
    from benchmarks.s3_requests import BUCKET, put_images
    from benchmarks.scale.counted_requests import by_kind, counted_server
    from pipeline import verify
    from pipeline.catalogue import Catalogue, collect

    model = Model(parts, case_of(run))
    found = predict(parts, model.case)
    made: dict[str, float] = {}
    with counted_server() as (proxy, client):
        put_images(client, "images/a", IMAGES, tar=False)
        place = Catalogue(f"s3://{BUCKET}/dnas")

        def build() -> None:
            made.update(measure.run(MODULE, {"which": f"alone {run}"}, tuned_malloc=False))

        counted = {"build": by_kind(proxy.of(build))}
        read, written = proxy.read, proxy.written
        manifest = place.manifest("a", place.find("a"))
        counted["verify"] = by_kind(proxy.of(lambda: verify(place)))
        counted["gc"] = by_kind(proxy.of(lambda: collect(place)))
    name = f"{IMAGES} images {run}"
    yield row(name, "shards", found.shards, len(manifest.heads))
    for job, kinds in counted.items():
        for kind, number in found.requests[job].items():
            if number or kinds.get(kind):
                yield row(name, f"{job}: {kind}", number, kinds.get(kind, 0))
    yield row(name, "bytes read", found.read_bytes, read)
    yield row(name, "bytes written", found.written_bytes, written)
    if run == "on Ray":
        yield row(name, "driver, bytes", max(found.driver_bytes.values()), made["peak"])
        yield row(name, "seconds", found.total_seconds, made["seconds"])
    else:  # the driver is the worker, too, and its CPU time is all that there is
        worked = found.shards * model.work["cores"] + model.adding + model.composing
        yield row(name, "seconds of CPU", worked + parts.load_seconds, made["cpu"])
        yield row(name, "seconds", found.total_seconds - parts.start_seconds, made["seconds"])


def planning(parts: Parts) -> Iterator[Row]:
    """Plans very many rows, and lists some by the product's client."""
    from benchmarks.scale.counting import cpu, resident
    from benchmarks.scale.measuring import planned_by_tasks, rows, watched_disk
    from benchmarks.scale.stand_in import BUCKET, PREFIX, serving
    from pipeline.sources import Entries, list_source, plan

    model = Model(parts, Case(PLANNED, gpus=0, driver_plans=True))
    name = f"plan of {PLANNED:,} rows"
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = f"{scratch}/tmp"
        Path(tempfile.tempdir).mkdir()
        found = rows(PLANNED)
        phase: dict[str, Any] = {}
        memory = resident()
        with watched_disk(tempfile.tempdir) as disk, measure.phase(phase):
            before = cpu()
            manifest = plan(found, entries=Entries(f"file://{scratch}/entries"))
            took = cpu() - before
        stored = [path.stat().st_size for path in Path(scratch, "entries").iterdir()]
        tempfile.tempdir = None
    yield row(name, "shards", model.shards, len(manifest.heads))
    yield row(name, "entries files", model.files, len(stored))
    entries = PLANNED * parts.entry_bytes + model.shards * parts.footer_bytes
    yield row(name, "bytes of entries", entries, sum(stored))
    yield row(name, "bytes of temporary disk", PLANNED * parts.disk_bytes, disk[0])
    used = phase["peak_mb"] * 1e6 - memory
    yield row(name, "driver, more bytes", parts.plan_bytes + model.shards * parts.head_bytes, used)
    yield row(name, "seconds of CPU", PLANNED * parts.plan_seconds, took)
    by_tasks = planned_by_tasks(PLANNED)
    took = sum(by_tasks[step] for step in ("store", "plan"))
    each = parts.block_seconds + model.reads_of_a_block * parts.part_seconds
    name = f"plan of {PLANNED:,} rows by tasks"
    yield row(name, "seconds of CPU", PLANNED * (parts.store_seconds + each), took)
    listed = Model(parts, Case(LISTED, gpus=0))
    with serving(LISTED) as variables:
        os.environ |= variables
        before = cpu()
        list_source(f"s3://{BUCKET}/{PREFIX}")
        took = cpu() - before
    name = f"listing of {LISTED:,} keys"
    yield row(name, "seconds of CPU", listed.rows * parts.list_seconds, took)


def driver(parts: Parts) -> Iterator[Row]:
    """Hands out more shards than were measured, on Ray."""
    from benchmarks.scale.measuring import handed_out

    base, ((took, peak),) = handed_out([HANDED_OUT])
    name = f"{HANDED_OUT:,} shards handed out by Ray"
    yield row(name, "seconds of CPU", HANDED_OUT * parts.dispatch_seconds, took)
    yield row(name, "driver, bytes", base + HANDED_OUT * parts.dispatch_bytes, peak)


def many_shards(parts: Parts) -> Iterator[Row]:
    """Verifies and collects a catalogue of many shards, on a store that is a dict and counts."""
    from benchmarks.collecting import DictStore, made
    from pipeline.catalogue import collect, verification, verify
    from pipeline.storage import objects

    store = DictStore()
    objects._STORES["s3"] = store
    place = made("s3://stand-in/dnas", SHARDS)
    verification.LARGE = 0
    model = Model(parts, Case(SHARDS, gpus=0, shard_images=1))
    name = f"catalogue of {SHARDS:,} shards"
    model.requests["gc"]["LIST"] += SHARDS // PAGE  # as many objects that nobody needs
    jobs = {"verify": lambda: list(verify(place)), "gc": lambda: collect(place)}
    for job, action in jobs.items():
        store.requests.clear()
        action()
        kinds = ("GET",) if job == "verify" else ("GET", "LIST")
        for kind in kinds:
            yield row(name, f"{job}: {kind}", model.requests[job][kind], store.requests[kind])


CHECKS = {
    "in process": lambda parts: builds(parts, "in process"),
    "on Ray": lambda parts: builds(parts, "on Ray"),
    "planning": planning,
    "driver": driver,
    "many shards": many_shards,
}


def _check(which: str, parts: dict[str, Any] | None = None) -> dict[str, Any]:
    if parts is None:
        return build_alone(which.removeprefix("alone "))
    return {"rows": list(CHECKS[which](Parts.of(parts)))}


def check(parts: Parts, which: tuple[str, ...] = tuple(CHECKS)) -> list[Row]:
    """Runs the checks, each in a fresh process, and says on standard error which has ended."""
    stated = json.loads(json.dumps(asdict(parts)))
    rows = []
    for name in which:
        settings = {"which": name, "parts": stated}
        found = measure.run(MODULE, settings, tuned_malloc=False)
        rows += found["rows"]
        print(f"checked: {name}", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    measure.answer(_check)
