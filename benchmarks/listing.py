"""Listing and planning a prefix of many million images, beside holding them in memory.

    python -m benchmarks.listing [--entries 10000000] [--out FILE]
    python -m benchmarks.listing --entries 100000000 --only tasks [--group-by 1]

A store that answers listings from a formula stands in for S3, so only the driver is measured: its
memory and its time, from the first page to the plan of the shards. Then a second build is planned
that finds a thousandth of the images changed. For comparison, on a tenth of the entries, a driver
asks fsspec for all objects (`find`), sorts them and cuts them into shards. Each runs in a fresh
process. `tasks` lists and plans the same prefix as a cluster does, with two processes in place of
its tasks: their time is CPU time, without that of the store's formula. It does so again for builds
that find images of a thousandth of the folders changed, or a thousandth of the images anywhere.
With `--group-by`, the images are in groups of folders there. If one fails, or loses its folder on
the way, only that process ends, and the results of the others are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import measure

PAGE = 1000
DRIVE = 5000
"""The number of images in a folder."""
BUILDS = ("first", "second")
FOLDERS, SCATTERED = "folders", "scattered"
"""Which images a later build finds changed: those of a thousandth of the folders, or a thousandth
of the images anywhere, so that nearly every shard has some."""
PHASES = ("list", "plan", "store", "read")
"""The phases of a build. `store` puts the plan where a later build finds it; `read` reads it."""


def key(index: int) -> str:
    return f"drive-{index // DRIVE:06d}/camera-front/frame-{index:010d}.jpg"


def etag(index: int, changed: str = "") -> str:
    number = index // DRIVE if changed == FOLDERS else index
    return hashlib.md5(f"{index}{bool(changed) and number % 1000 == 0}".encode()).hexdigest()


def first_above(after: str, entries: int) -> int:
    low, high = 0, entries
    while low < high:
        middle = (low + high) // 2
        if key(middle) > after:
            high = middle
        else:
            low = middle + 1
    return low


def list_page(entries: int, changed: str, uri: str, after: str) -> tuple[list[Any], str, bool]:
    """The next page of a prefix of `entries` images, as `storage.list_page` returns it."""
    from pipeline.storage import Stored

    first = first_above(after, entries) if after else 0
    last = min(first + PAGE, entries)
    items = [
        Stored(f"{uri}/{key(i)}", 100_000 + i % 1000, etag(i, changed), None)
        for i in range(first, last)
    ]
    return items, key(last - 1) if last > first else after, last < entries


STORE_SECONDS = [0.0]
"""CPU time that this process's store has taken, in seconds."""

ONE_PAGE = threading.Lock()
"""The formula makes one page at a time. A store would not compete for Python with its client, whose
time would be too long otherwise."""


def _serve(entries: int, changed: str = "") -> None:
    """Puts the formula in the place of S3, in a process of the pool; it notes its time.

    The process looks for garbage as rarely as commands and tasks do.
    """
    from pipeline import storage
    from pipeline.counting import collect_rarely

    collect_rarely()

    def timed(uri: str, after: str) -> tuple[list[Any], str, bool]:
        with ONE_PAGE:
            started = time.thread_time()
            page = list_page(entries, changed, uri, after)
            STORE_SECONDS[0] += time.thread_time() - started
        return page

    storage.list_page = timed


def _timed(function: Callable[[Any], Any], item: Any) -> tuple[Any, str, float, float]:
    """Runs a task; returns its result, kind and CPU time, and the CPU time of the store."""
    store, started = STORE_SECONDS[0], time.process_time()
    result = function(item)
    used, of_store = time.process_time() - started, STORE_SECONDS[0] - store
    return result, type(item).__name__, used - of_store, of_store


class Processes:
    """Runs tasks in processes of their own, as a cluster would, and adds up their CPU time.

    The processes have the environment of a cluster's.
    """

    in_process = False

    def __init__(self, entries: int, workers: int, changed: str) -> None:
        from pipeline.engine.ray_engine import WORKER_ENVIRONMENT

        self.workers = workers
        os.environ.update(WORKER_ENVIRONMENT)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, _serve, (entries, changed))
        self.cpu: Counter[str] = Counter()
        self.rounds = 0

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, memory: int = 0
    ) -> Iterator[Any]:
        self.rounds += 1
        for done in as_completed([self._pool.submit(_timed, function, item) for item in items]):
            result, kind, used, store = done.result()
            self.cpu[kind] += used
            self.cpu["store"] += store
            yield result

    def close(self) -> None:
        self._pool.shutdown()


def _by_tasks(entries: int, group_by: str | None) -> dict[str, Any]:
    import pipeline.engine.ray_engine  # noqa: F401 - what a driver has loaded: Ray above all
    import pipeline.engine.ray_pool  # noqa: F401 - and Ray Data
    from pipeline.sources import Manifest, Rules, source_lister

    source_lister.SAY_SECONDS = 0  # each round says how many are listed
    planned: list[tuple[int, int]] = []  # images listed, and images of the block, as it is planned
    listed = [0]

    def note(event: Any) -> None:
        if event.message.endswith("a second"):
            listed[0] = int(event.message.split(" ")[0].replace(",", ""))

    def take(some: Manifest) -> None:
        planned.append((listed[0], some.candidates))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder).as_uri()
        rules = Rules(group_by=group_by)
        first, found = _listed_by_tasks(entries, rules, root, "", None, note, take)
        size = len(first.data)
        later: dict[str, Any] = {}
        for changed in (FOLDERS, SCATTERED):
            again, of_build = _listed_by_tasks(entries, rules, root, changed, first, note, take)
            shards = {head.digest for head in again.heads} - {head.digest for head in first.heads}
            cpu = of_build["cpu"]
            seconds = sum(cpu.values()) - cpu["Stretch"] - cpu["store"]
            later[changed] = {
                "changed_shards": len(shards),
                "driver": of_build["driver"],
                "cpu_seconds": {name: round(taken, 1) for name, taken in cpu.items()},
                "plan_rows_per_cpu_second": round(
                    entries / (seconds + of_build["driver"]["cpu_seconds"])
                ),
            }
    cpu = found["cpu"]
    return {
        "entries": entries,
        "digest": first.digest,
        "shards": len(first.heads),
        "manifest_mb": round(size / 1e6, 1),
        "rounds": found["rounds"],
        "driver": found["driver"],
        "list_rows_per_cpu_second": round(entries / cpu["Stretch"]),
        "plan_rows_per_cpu_second": round(entries / cpu["NameBlock"]),
        "rows_per_cpu_second": round(
            entries / (cpu["Stretch"] + cpu["NameBlock"] + found["driver"]["cpu_seconds"])
        ),
        "store_alone_cpu_seconds": round(cpu["store"], 1),
        "planned_while_listing": round(
            sum(images for at, images in planned if at < entries) / entries, 3
        ),
        "first_planned_at": round(planned[0][0] / entries, 3),
        "later": later,
    }


def _listed_by_tasks(
    entries: int,
    rules: Any,
    root: str,
    changed: str,
    previous: Any,
    progress: Callable[[Any], None],
    take: Callable[[Any], None],
) -> tuple[Any, dict[str, Any]]:
    """Lists and plans a prefix by tasks; returns the plan, and what it took."""
    from pipeline.sources import Entries, ListingCheckpoint, NewShardSizes, PlanAhead, list_source

    _serve(entries, changed)
    processes = Processes(entries, workers=2, changed=changed)
    phase: dict[str, Any] = {}
    checkpoint = ListingCheckpoint(f"{root}/kept", datetime.now(UTC))
    sizes = NewShardSizes(cell_bytes=1_500_000)
    before = None if previous is None else lambda: previous
    ahead = PlanAhead(lambda: sizes, Entries(f"{root}/entries"), take, before)
    own, store = time.process_time(), STORE_SECONDS[0]
    with measure.phase(phase):
        found = list_source(
            "s3://bucket/images",
            rules,
            checkpoint=checkpoint,
            mapper=processes,
            ahead=ahead,
            progress=progress,
        )
    own = time.process_time() - own - (STORE_SECONDS[0] - store)
    processes.close()
    checkpoint.remove()
    if found.planned is None or found.planned.candidates != entries:
        raise ValueError(f"not all of {entries} images are planned")
    driver = phase | {"cpu_seconds": round(own, 1)}
    return found.planned, {"driver": driver, "cpu": processes.cpu, "rounds": processes.rounds}


def _product(entries: int) -> dict[str, Any]:
    import pipeline.engine.ray_engine  # noqa: F401 - what a driver has loaded: Ray above all
    import pipeline.engine.ray_pool  # noqa: F401 - and Ray Data
    from pipeline import storage
    from pipeline.networks import describe
    from pipeline.sources import Entries, Manifest, list_pages, list_source, plan

    changed = ""
    storage.list_page = lambda uri, after: list_page(entries, changed, uri, after)
    started = time.perf_counter()
    for _ in list_pages("s3://bucket/images"):
        pass
    store = time.perf_counter() - started
    describe("efficientnet_lite0")
    result: dict[str, Any] = {"entries": entries, "store_alone_seconds": round(store, 1)}
    previous: Manifest | None = None
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            entries_files = Entries(f"{Path(folder).as_uri()}/entries")
            for build in BUILDS:
                phases = {name: {} for name in PHASES}
                result[build] = {"phases": phases}
                with measure.phase(phases["list"]):
                    listing = list_source("s3://bucket/images")
                with measure.phase(phases["plan"]):
                    manifest = plan(listing, previous=previous, entries=entries_files)
                if manifest.candidates != entries:
                    raise ValueError(f"{manifest.candidates} of {entries} images are planned")
                result[build] |= {
                    "digest": manifest.digest,
                    "shards": len(manifest.heads),
                    "manifest_mb": round(len(manifest.data) / 1e6, 1),
                }
                uri = f"{Path(folder).as_uri()}/{build}.parquet"
                with measure.phase(phases["store"]):
                    storage.create(uri, manifest.data)
                del manifest, listing
                # As a later build finds it in the catalogue.
                with measure.phase(phases["read"]):
                    previous = Manifest.decode(storage.read(uri), uri, entries_files)
                changed = SCATTERED
    except Exception as error:
        result["error"] = repr(error)
    return result


def _in_memory(entries: int) -> dict[str, Any]:
    """What fsspec's `find` returns of S3, as Python objects, sorted and cut."""
    now = datetime.now(UTC)
    started = time.perf_counter()
    found = {
        f"bucket/images/{key(i)}": {
            "Key": f"bucket/images/{key(i)}",
            "LastModified": now,
            "ETag": f'"{etag(i)}"',
            "Size": 100_000 + i % 1000,
            "StorageClass": "STANDARD",
            "type": "file",
            "size": 100_000 + i % 1000,
            "name": f"bucket/images/{key(i)}",
        }
        for i in range(entries)
    }
    ranked = sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest())
    shards = [ranked[start : start + 4096] for start in range(0, entries, 4096)]
    seconds = time.perf_counter() - started
    return {"entries": entries, "shards": len(shards), "seconds": round(seconds, 1)}


def _work(which: str, entries: int, group_by: str | None = None) -> dict[str, Any]:
    if which == "tasks":
        return _by_tasks(entries, group_by)
    return _product(entries) if which == "product" else _in_memory(entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, help="kept up to date from run to run")
    parser.add_argument("--only", choices=["tasks"], help="measure nothing else")
    parser.add_argument("--group-by", metavar="N", help="folders that name a group, in tasks")
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        measure.answer(_work)
        return
    few = max(1, arguments.entries // 10)
    groups = {"group_by": arguments.group_by} if arguments.group_by else {}
    tasks = {"tasks": {"which": "tasks", "entries": arguments.entries} | groups}
    runs = (
        tasks
        if arguments.only
        else {
            "product": {"which": "product", "entries": arguments.entries},
            "product, a tenth": {"which": "product", "entries": few},
            "in memory, a tenth": {"which": "in memory", "entries": few},
            **tasks,
        }
    )
    results: dict[str, Any] = {}
    for name, settings in runs.items():
        try:
            results[name] = measure.run("benchmarks.listing", settings, tuned_malloc=False)
        except RuntimeError as error:
            results[name] = {"error": str(error)}
        if arguments.out is not None:
            measure.keep(arguments.out, results)
    lines = [_line_of_tasks(results["tasks"])]
    if not arguments.only:
        lines.insert(0, _line(arguments.entries, results))
    measure.emit(results, "; ".join(lines))
    if any("error" in result for result in results.values()):
        sys.exit(1)


def _line(entries: int, results: dict[str, Any]) -> str:
    """The driver's own peaks, phase by phase; then beside those of a tenth, and of a list."""
    whole, tenth, memory = (results[name] for name in list(results)[:3])
    told = [
        f"{build} {name} {phase['peak_mb']:,} MB ({phase['anonymous_mb']:,} anonymous, "
        f"{phase['file_mb']:,} of files)"
        for build, name, phase in _phases(whole)
    ]
    line = f"{entries:,} images: {', '.join(told)}"
    peak, few = (max((p["peak_mb"] for *_, p in _phases(r)), default=0) for r in (whole, tenth))
    line += f"; at most {peak:,} MB, and {few:,} for a tenth of them"
    if "peak_mb" in memory:
        each = (memory["peak_mb"] - 100) * 1e6 / memory["entries"]
        times = each * entries / 1e6 / max(peak, 1)
        line += f"; in memory they take {each:,.0f} bytes each, {times:.1f} times that"
    errors = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    return "; ".join([line, *errors])


def _line_of_tasks(result: dict[str, Any]) -> str:
    """What tasks took, and when the first block was planned."""
    if "error" in result:
        return f"tasks: {result['error']}"
    later = "; ".join(
        f"with a thousandth changed ({changed}), a core plans {its['plan_rows_per_cpu_second']:,} "
        f"rows/s again, and the process that builds takes {its['driver']['cpu_seconds']} s of CPU "
        f"and at most {its['driver']['peak_mb']:,} MB"
        for changed, its in result["later"].items()
    )
    return (
        f"{result['entries']:,} images by tasks: a core lists "
        f"{result['list_rows_per_cpu_second']:,} rows/s without the store's time, plans "
        f"{result['plan_rows_per_cpu_second']:,} rows/s, and does both at "
        f"{result['rows_per_cpu_second']:,} rows/s; the process that builds takes at most "
        f"{result['driver']['peak_mb']:,} MB; the first block is planned after "
        f"{result['first_planned_at']:.0%} of the listing, and "
        f"{result['planned_while_listing']:.0%} of the images before it ends; {later}"
    )


def _phases(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    builds = {build: result[build]["phases"] for build in BUILDS if build in result}
    return [(build, name, its) for build in builds for name, its in builds[build].items() if its]


if __name__ == "__main__":
    main()
