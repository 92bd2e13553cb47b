"""Listing and planning a prefix of many million images, beside holding them in memory.

    python -m benchmarks.listing [--entries 10000000] [--out FILE]

A store that answers listings from a formula stands in for S3, so only the driver is measured: its
memory and its time, from the first page to the plan of the shards. Then a second build is planned
that finds a thousandth of the images changed. For comparison, on a tenth of the entries, a driver
asks fsspec for all objects (`find`), sorts them and cuts them into shards. Each runs in a fresh
process. If one fails, or loses its folder on the way, only that process ends, and the results of
the others are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import measure

PAGE = 1000
DRIVE = 5000
"""The number of images in a folder."""
BUILDS = ("first", "second")
PHASES = ("list", "plan", "store", "read")
"""The phases of a build. `store` puts the plan where a later build finds it; `read` reads it."""


def key(index: int) -> str:
    return f"drive-{index // DRIVE:06d}/camera-front/frame-{index:010d}.jpg"


def etag(index: int, changed: bool) -> str:
    return hashlib.md5(f"{index}{changed and index % 1000 == 0}".encode()).hexdigest()


def first_above(after: str, entries: int) -> int:
    low, high = 0, entries
    while low < high:
        middle = (low + high) // 2
        if key(middle) > after:
            high = middle
        else:
            low = middle + 1
    return low


def _product(entries: int) -> dict[str, Any]:
    import pipeline.engine.ray_engine  # noqa: F401 - what a driver has loaded: Ray above all
    from pipeline import storage
    from pipeline.networks import describe
    from pipeline.sources import Entries, Manifest, list_pages, list_source, plan

    changed = False
    now = datetime.now(UTC)

    def list_page(uri: str, after: str) -> tuple[list[storage.Stored], str, bool]:
        first = first_above(after, entries) if after else 0
        last = min(first + PAGE, entries)
        items = [
            storage.Stored(f"{uri}/{key(i)}", 100_000 + i % 1000, etag(i, changed), now)
            for i in range(first, last)
        ]
        return items, key(last - 1) if last > first else after, last < entries

    storage.list_page = list_page
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
                changed = True
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
            "ETag": f'"{etag(i, False)}"',
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


def _work(which: str, entries: int) -> dict[str, Any]:
    return _product(entries) if which == "product" else _in_memory(entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, help="kept up to date from run to run")
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        measure.answer(_work)
        return
    few = max(1, arguments.entries // 10)
    runs = {
        "product": {"which": "product", "entries": arguments.entries},
        "product, a tenth": {"which": "product", "entries": few},
        "in memory, a tenth": {"which": "in memory", "entries": few},
    }
    results: dict[str, Any] = {}
    for name, settings in runs.items():
        try:
            results[name] = measure.run("benchmarks.listing", settings, tuned_malloc=False)
        except RuntimeError as error:
            results[name] = {"error": str(error)}
        if arguments.out is not None:
            measure.keep(arguments.out, results)
    measure.emit(results, _line(arguments.entries, results))
    if any("error" in result for result in results.values()):
        sys.exit(1)


def _line(entries: int, results: dict[str, Any]) -> str:
    """The driver's own peaks, phase by phase; then beside those of a tenth, and of a list."""
    whole, tenth, memory = results.values()
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


def _phases(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    builds = {build: result[build]["phases"] for build in BUILDS if build in result}
    return [(build, name, its) for build in builds for name, its in builds[build].items() if its]


if __name__ == "__main__":
    main()
