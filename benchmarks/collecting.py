"""`vdna verify` and `vdna gc` of very many shards: requests, and the time on a cluster.

    python -m benchmarks.collecting [--shards 24400] [--workers 64] [--milliseconds 20]

A store that is a dict stands in for S3, and counts requests as S3 would be asked: a page of a
listing has a thousand objects, and so has a removal. The dataset's partials are real, of a tiny
network, and as many more lie there that no version needs. Tasks run one after another in this
process, and each is measured: its CPU time, and its requests. What they would take on the workers
of a cluster follows from these, from the time that a request takes, and from how many requests a
task has under way. It is told for the tiny network, and for partials as large as those of the
embedded one, whose reading and adding is measured apart. Starting Ray is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import secrets
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from benchmarks import measure
from pipeline import storage
from pipeline.buffers import Data
from pipeline.catalogue import Catalogue, collect, verification, verify
from pipeline.catalogue.garbage_collection import CHECKERS
from pipeline.catalogue.partial_sums import READ_AHEAD
from pipeline.counting import partial_uri
from pipeline.dna import Partial
from pipeline.errors import SourceError
from pipeline.mapper import SerialMapper
from pipeline.sources import plan
from pipeline.spec import PRODUCTS, Tap
from pipeline.storage import objects
from pipeline.storage.other import FsspecStore
from pipeline.storage.store import Answer, Stored
from tests.golden.handmade import RANGES, SPEC, commit_dataset, entries
from tests.support.builders import random_dna, tiny_spec

T = TypeVar("T")

R = TypeVar("R")

PAGE = 1000
"""Objects of a page of a listing, and of one removal."""

EMBEDDED = (Tap("all", 3120, 49),)
"""As many neurons as the embedded network has."""


class DictStore(FsspecStore):
    """Keeps objects in a dict, and counts the requests that S3 would have been asked."""

    is_shared = True
    lists_in_key_order = True
    answers_ranges = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self._now = datetime.now(UTC)
        self._sorted: list[str] = []
        self._lock = threading.Lock()

    def info(self, uri: str) -> Stored:
        self.requests["HEAD"] += 1
        return self._stored(uri)

    def exists(self, uri: str) -> bool:
        self.requests["HEAD"] += 1
        return uri in self.objects

    def get(self, uri: str, start: int, length: int | None, most: int | None = None) -> Answer:
        self.requests["GET"] += 1
        whole = self.objects.get(uri)
        if whole is None:
            raise FileNotFoundError(uri)
        stop = len(whole) if length is None else start + length
        return Answer(whole[start:stop], "", len(whole))

    def put(self, uri: str, data: Data, *, exclusive: bool) -> bool:
        self.requests["PUT"] += 1
        if exclusive and uri in self.objects:
            return False
        self.objects[uri] = bytes(data)
        return True

    def delete(self, uri: str) -> None:
        self.requests["DELETE"] += 1
        del self.objects[uri]

    def delete_all(self, uris: Sequence[str]) -> None:
        self.requests["DELETE of 1,000"] += -(-len(uris) // PAGE)
        for uri in uris:
            self.objects.pop(uri, None)

    def walk(self, uri: str) -> Iterator[Stored]:
        after, more = "", True
        while more:
            page, after, more = self.list_page(uri, after)
            yield from page or self.alone(uri)

    def list_page(self, uri: str, after: str) -> tuple[list[Stored], str, bool]:
        self.requests["LIST"] += 1
        names = self._names()
        first = bisect_right(names, f"{uri}/{after}")
        last = bisect_left(names, f"{uri}0")  # 0 follows /
        some = names[first : min(last, first + PAGE)]
        end = some[-1].removeprefix(f"{uri}/") if some else after
        return [self._stored(name) for name in some], end, first + PAGE < last

    def alone(self, uri: str) -> list[Stored]:
        raise SourceError(uri)

    def _names(self) -> list[str]:
        with self._lock:
            if len(self._sorted) != len(self.objects):
                self._sorted = sorted(self.objects)
            return self._sorted

    def _stored(self, uri: str) -> Stored:
        if uri not in self.objects:
            raise FileNotFoundError(uri)
        return Stored(uri, len(self.objects[uri]), "", self._now)


class Timed(SerialMapper):
    """Runs tasks one after another, and notes what each of them took."""

    def __init__(self, store: DictStore) -> None:
        self._store = store
        self.tasks: list[tuple[float, Counter[str]]] = []

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        for item in items:
            before, started = Counter(self._store.requests), time.process_time()
            result = function(item)
            self.tasks.append((time.process_time() - started, self._store.requests - before))
            yield result


def on_cluster(
    cpu: float, requests: Counter[str], tasks: list[tuple[float, Counter[str]]],
    workers: int, wait: float, more: float,
) -> float:  # fmt: skip
    """Returns the seconds that a job takes on a cluster.

    Args:
        cpu: Seconds of the whole job, tasks included.
        requests: Those of the whole job.
        tasks: What each task took.
        workers: How many tasks run at a time.
        wait: Seconds of a request.
        more: Seconds of CPU for each partial that a task reads, on top of what was measured.
    """
    alone = cpu - sum(seconds for seconds, _ in tasks)
    asked = requests.total() - sum(of_task.total() for _, of_task in tasks)
    free = [0.0] * workers
    for seconds, of_task in tasks:
        waiting = of_task["HEAD"] / CHECKERS + of_task["GET"] / READ_AHEAD
        waiting += of_task["LIST"] + of_task["DELETE of 1,000"]
        took = max(seconds + of_task["GET"] * more, waiting * wait)
        heapq.heapreplace(free, free[0] + took)
    return alone + asked * wait + max(free)


def made(root: str, shards: int) -> Catalogue:
    """Makes a catalogue of one dataset, and as many partials that it does not need."""
    place = Catalogue(root)
    manifest = plan(entries("fleet", shards), shard_images=1)
    partials = [
        Partial(random_dna(SPEC, RANGES, 1, number), (key,), ())
        for number, key in enumerate(manifest.keys(SPEC.digest, PRODUCTS))
    ]
    commit_dataset(place, "fleet", manifest, partials)
    for number in range(shards):
        key = hashlib.sha256(str(number).encode()).hexdigest()[:32]
        storage.create(partial_uri(place.work_uri("fleet", SPEC.digest), key), b"not needed")
    return place


def cpu_of_a_partial() -> dict[str, float]:
    """Measures reading and adding one partial, of the tiny network and of the embedded one."""
    found = {}
    for name, (spec, ranges) in {
        "tiny": tiny_spec(),
        "embedded": tiny_spec(1000, EMBEDDED),
    }.items():
        one, other = (Partial(random_dna(spec, ranges, 8, i), (f"{i:032x}",), ()) for i in (1, 2))
        data = one.encode()
        started = time.process_time()
        for _ in range(10):
            Partial.decode(data, "x") + other
        found[name] = (time.process_time() - started) / 10
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=24_400)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--milliseconds", type=float, default=20.0, help="that a request takes")
    arguments = parser.parse_args()
    wait = arguments.milliseconds / 1e3
    store = DictStore()
    objects._STORES["s3"] = store
    place = made(f"s3://{secrets.token_hex(8)}/dnas", arguments.shards)
    verification.LARGE = 0  # a shard here has one image, and thousands in earnest
    partial = cpu_of_a_partial()
    result: dict[str, Any] = {
        "shards": arguments.shards,
        "cpu_ms_of_a_partial": {name: round(s * 1e3, 1) for name, s in partial.items()},
    }

    def checked(mapper: Timed) -> None:
        wrong = [finding for finding in verify(place, mapper=mapper) if not finding.ok]
        if wrong:
            raise ValueError(str(wrong[0]))

    def collected(mapper: Timed) -> None:
        removed, _ = collect(place, grace=timedelta(seconds=-60), mapper=mapper)
        if removed < arguments.shards:
            raise ValueError(f"{removed} objects were removed")

    jobs: dict[str, Callable[[Timed], None]] = {"verify": checked, "gc": collected}
    for name, job in jobs.items():
        store.requests.clear()
        mapper, started = Timed(store), time.process_time()
        job(mapper)
        cpu = time.process_time() - started
        seconds = {
            network: on_cluster(
                *(cpu, store.requests, mapper.tasks, arguments.workers, wait),
                own - partial["tiny"],
            )
            for network, own in partial.items()
        }
        result[name] = {
            "requests": dict(store.requests),
            "requests_a_shard": round(store.requests.total() / arguments.shards, 2),
            "tasks": len(mapper.tasks),
            "cpu_seconds": round(cpu, 1),
            "of_these_in_tasks": round(sum(seconds for seconds, _ in mapper.tasks), 1),
            "minutes_on_cluster": {net: round(s / 60, 1) for net, s in seconds.items()},
        }
    told = ", ".join(
        f"{name} {result[name]['minutes_on_cluster']['embedded']:g} minutes and "
        f"{result[name]['requests_a_shard']:g} requests a shard"
        for name in jobs
    )
    measure.emit(result, f"{arguments.shards:,} shards on {arguments.workers} workers: {told}")


if __name__ == "__main__":
    main()
