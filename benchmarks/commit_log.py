"""The commit log under many datasets that change every night: bytes and requests.

    python -m benchmarks.commit_log [--datasets 1000] [--nights 1]

Each dataset's build commits by itself, as a process that knows nothing of the log beforehand. The
commits are made in memory by the product's own code, and what passes through the storage room is
counted. The first hundred commits of a log, which this leaves out, build upon none. The others are
alike hundred by hundred, so a year is 365 times the mean of the nights. Beside it stands what the
same commits would take if each held all datasets, in the same JSON. A build also finds which commit
made the version that it replaces: `search` is what that takes in a process that builds many.
"""

from __future__ import annotations

import argparse
import secrets
import threading
import time
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

from benchmarks import measure
from pipeline import storage
from pipeline.catalogue import Catalogue, Version, commit_log
from pipeline.catalogue.commit import FILES, IN_PART, SPANS, Footer, StoredCommit

NIGHTS = 365

COUNTED: Counter[str] = Counter()

SPEC = secrets.token_hex(16)

LIBRARIES = ("Pillow", "numpy", "openvino", "pillow-heif", "simplejpeg", "torch", "torchvision")


def version_of(name: str) -> Version:
    """Makes a version with all that a built one has, and random digests."""
    numerics = {
        "device": "cpu",
        "compiled": False,
        "folded": True,
        "micro_batch": 8,
        "threads": 1,
        "versions": dict.fromkeys(LIBRARIES, "2.10.1"),
    }
    return Version(
        dna=secrets.token_hex(16),
        manifest=secrets.token_hex(16),
        spec=SPEC,
        images=100_000,
        failed=12,
        products=("histogram", "neuron_gaussian"),
        sha256={kind: secrets.token_hex(32) for kind in FILES},
        source=f"s3://bucket-of-images/{name}",
        built="2026-01-01T00:00:00+00:00",
        software="vdna-pipeline 0.1.0",
        numerics=({"images": 100_000, "numerics": numerics},),
        footers={
            kind: Footer(30_000_000, 50_000, secrets.token_hex(32))
            for kind in IN_PART
            if kind in FILES
        },
        transparent=0,
        single_colour=3,
    )


def count_requests() -> None:
    """Counts what passes through the functions of the storage room that the log uses."""
    real_read, real_create, real_replace = storage.read, storage.create, storage.replace
    lock = threading.Lock()  # several threads read at once

    def read(uri: str) -> bytes:
        with lock:
            COUNTED["GET"] += 1
        data = real_read(uri)
        with lock:
            COUNTED["bytes read"] += len(data)
        return data

    def create(uri: str, data: bytes) -> bool:
        COUNTED["PUT"] += 1
        COUNTED["bytes written"] += len(data)
        return real_create(uri, data)

    def replace_object(uri: str, data: bytes) -> None:
        COUNTED["PUT"] += 1
        COUNTED["bytes written"] += len(data)
        real_replace(uri, data)

    storage.read, storage.create, storage.replace = read, create, replace_object


def forget() -> None:
    """Makes this process know nothing of the log, and counts anew."""
    commit_log._kept_base.cache_clear()
    COUNTED.clear()


def night(place: Catalogue, names: list[str]) -> dict[str, Any]:
    """Commits a new version of each dataset, in some order, and counts."""
    total: Counter[str] = Counter()
    whole = 0
    started = time.process_time()
    for name in names:
        forget()
        base = place.head().datasets.get(name, {}).get(SPEC)
        forget()
        commit = place.put_version(name, version_of(name), base)
        total += COUNTED
        if commit.number % 10 == 0:
            whole += 10 * len(StoredCommit.of(commit).encode())
    return {
        **{name: round(count / len(names), 1) for name, count in sorted(total.items())},
        "written_mb": round(total["bytes written"] / 1e6, 1),
        "read_mb": round(total["bytes read"] / 1e6, 1),
        "written_mb_if_each_held_all": round(whole / 1e6, 1),
        "cpu_ms_a_commit": round((time.process_time() - started) / len(names) * 1e3, 1),
    }


def reader(place: Catalogue) -> dict[str, Any]:
    """What reading the newest commit takes: in a new process, and again in the same one."""
    found: dict[str, Any] = {}
    forget()
    for kind in ("first", "again"):
        COUNTED.clear()
        started = time.process_time()
        place.head()
        milliseconds = (time.process_time() - started) * 1e3
        found[kind] = {**COUNTED, "cpu_ms": round(milliseconds, 1)}
    return found


def searches(place: Catalogue, names: list[str]) -> dict[str, Any]:
    """Commits new versions in one process, as a refresh does, and finds what made the former ones.

    Returns:
        What finding one takes on average: requests, megabytes read, and CPU time.
    """
    total: Counter[str] = Counter()
    seconds = 0.0
    for name in names:
        former = place.find(name)
        commit = place.put_version(name, version_of(name), former)
        COUNTED.clear()
        started = time.process_time()
        place.commit_that_made(name, former, commit.number - 1)
        seconds += time.process_time() - started
        total += COUNTED
    return {
        "GET": round(total["GET"] / len(names), 1),
        "read_mb": round(total["bytes read"] / len(names) / 1e6, 1),
        "cpu_ms": round(seconds / len(names) * 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--nights", type=int, default=1)
    arguments = parser.parse_args()
    names = [f"fleet/drive-{i:05d}" for i in range(arguments.datasets)]
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    while place.head().number < SPANS[-1] - 1:
        place.append("nothing", replace)
    place.append(
        "all",
        lambda head: replace(head, datasets={name: {SPEC: version_of(name)} for name in names}),
    )
    count_requests()
    nights = [night(place, names) for _ in range(arguments.nights)]
    forget()
    searched = searches(place, names[:25])  # a reader mostly meets a commit that builds upon others
    mean = {
        name: sum(each[name] for each in nights) / len(nights)
        for name in ("written_mb", "written_mb_if_each_held_all")
    }
    result = {
        "datasets": arguments.datasets,
        "nights": nights,
        "search": searched,
        "reader": reader(place),
        "year_gb": round(mean["written_mb"] * NIGHTS / 1e3, 1),
        "year_gb_if_each_held_all": round(mean["written_mb_if_each_held_all"] * NIGHTS / 1e3, 1),
        "ratio": round(mean["written_mb_if_each_held_all"] / mean["written_mb"], 1),
    }
    measure.emit(
        result,
        f"{arguments.datasets:,} datasets: {mean['written_mb']:.1f} MB a night; "
        f"{result['ratio']:g} times that if each commit held all",
    )


if __name__ == "__main__":
    main()
