"""`vdna verify` and `vdna gc` of very many shards: requests, and the time on a cluster.

    python -m benchmarks.collecting [--shards 12200] [--names 1000000] [--workers 64]
        [--milliseconds 20] [--as-shards 244000] [--as-images 4096]

A store that is a dict stands in for S3, and counts requests as S3 would be asked: a page of a
listing has a thousand objects, and so has a removal. The dataset's partials are real, of a tiny
network, with the numbers of sixteen DNAs in turn. As many more lie there that no version needs.
Tasks run one after another in this process, and each is measured: its CPU time, and its requests. A
shard has one image there. Making 12,200 shards takes about 25 seconds of CPU. What the
names of full shards take is measured apart, and so are the reading and adding of partials as large
as those of the embedded network. What more shards would take on the workers of a cluster follows
from these: more tasks of each kind, the time that a request takes, and how many requests a task has
under way. Starting Ray is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, reduce
from itertools import chain, cycle
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.listing import etag, key
from pipeline import storage
from pipeline.buffers import Data
from pipeline.catalogue import Catalogue, collect, verification, verify
from pipeline.catalogue.garbage_collection import CHECKERS
from pipeline.catalogue.listed_once import (
    NamesTask,
    require_each_once,
    sorted_hashes,
)
from pipeline.catalogue.partial_sums import READ_AHEAD
from pipeline.counting import partial_uri, plan_folds
from pipeline.counting.reduction import FAN_IN
from pipeline.dna import DNA, Partial
from pipeline.errors import SourceError
from pipeline.mapper import SerialMapper
from pipeline.sources import Entries, Entry, Manifest, plan
from pipeline.sources.parallel_listing import LISTERS
from pipeline.spec import PRODUCTS, Tap, digest_of
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


@dataclass(frozen=True)
class Task:
    """What a task took: whether it read names of images, its CPU time, and its requests."""

    names: bool
    seconds: float
    requests: Counter[str]

    def on_worker(self, wait: float, more: float) -> float:
        """Returns the seconds that it takes where a request takes `wait`, and a partial `more`."""
        asked = self.requests
        if self.names:
            return self.seconds + asked["GET"] * wait
        waiting = asked["HEAD"] / CHECKERS + asked["GET"] / READ_AHEAD
        waiting += asked["LIST"] + asked["DELETE of 1,000"]
        return max(self.seconds + asked["GET"] * more, waiting * wait)


class Timed(SerialMapper):
    """Runs tasks one after another, and notes what each of them took."""

    def __init__(self, store: DictStore) -> None:
        self._store = store
        self.tasks: list[Task] = []

    def map(
        self, function: Callable[[T], R], items: Sequence[T], *, memory: int = 0
    ) -> Iterator[R]:
        for item in items:
            before, started = Counter(self._store.requests), time.process_time()
            result = function(item)
            took = time.process_time() - started
            names = isinstance(item, NamesTask)
            self.tasks.append(Task(names, took, self._store.requests - before))
            yield result

    @property
    def seconds(self) -> float:
        return sum(task.seconds for task in self.tasks)


@dataclass(frozen=True)
class Names:
    """What the names of full shards take: of its process, and of tasks that read them."""

    number: int
    sorting: float
    tasks: Sequence[Task]


def named(store: DictStore, number: int, shard_images: int) -> Names:
    """Measures how long the names of full shards are read, hashed and sorted."""
    found = (Entry(f"s3://fleet/{key(i)}", "", 1, etag(i)) for i in range(number))
    manifest = plan(found, shard_images=shard_images, entries=Entries("s3://names/entries"))
    mapper, started = Timed(store), time.process_time()
    require_each_once(manifest, sorted_hashes(manifest, mapper), mapper)
    return Names(number, time.process_time() - started - mapper.seconds, mapper.tasks)


def on_cluster(
    cpu: float, requests: Counter[str], tasks: Sequence[Task], names: Names,
    workers: int, wait: float, more: float, times: float, all_names: int,
) -> dict[str, float]:  # fmt: skip
    """Returns the minutes that a job takes on a cluster, in parts.

    Args:
        cpu: Seconds of the whole job, tasks included.
        requests: Those of the whole job.
        tasks: What each task took.
        names: What names take, in place of those of the job.
        workers: How many tasks run at a time.
        wait: Seconds of a request.
        more: Seconds of CPU for each partial that a task reads, on top of what was measured.
        times: How many times as many shards there are as in the job.
        all_names: How many names there are.
    """
    own = requests - sum((task.requests for task in tasks), Counter())
    alone = (cpu - sum(task.seconds for task in tasks)) * times
    pages = own["LIST"] / LISTERS * times
    others = [task.on_worker(wait, more) for task in tasks if not task.names]
    reading = sum(task.on_worker(wait, 0) for task in names.tasks) * all_names / names.number
    seconds = {
        "driver": alone + (pages + own.total() - own["LIST"]) * wait,
        "sorting names": names.sorting * all_names / names.number,
        "reading names": reading / workers,
        "partials and removals": sum(others) * times / workers,
    }
    return {kind: round(took / 60, 2) for kind, took in seconds.items()}


def encoder(dna: DNA) -> Callable[[str], bytes]:
    """Makes the function that encodes the partial of a shard with this DNA, given the shard's key.

    Such files differ in the key and in the checksum of the footer alone, so rows are encoded once.
    """
    name = "f" * 32
    data = Partial(dna, (name,), ()).encode()
    stated = json.loads(pq.read_metadata(pa.BufferReader(data)).metadata[b"vdna"])
    checksum = stated.pop("checksum")

    def encode(key: str) -> bytes:
        found = digest_of(stated | {"shards": [key]})
        return data.replace(name.encode(), key.encode()).replace(checksum.encode(), found.encode())

    return encode


def put_summed(manifest: Manifest, work: str) -> None:
    """Stores a partial for each shard, and their sums as a build does.

    The shards of a fold have a few DNAs in turn. So most sums are of the same DNAs in the same
    order, and each of these is added once. It is what adding the partials makes, to the last bit.
    """
    dnas = [random_dna(SPEC, RANGES, 1, number) for number in range(FAN_IN)]
    encoders = [encoder(dna) for dna in dnas]

    @cache
    def added(*some: DNA) -> DNA:
        return reduce(DNA.__add__, some)

    put = storage.store_of(work).put
    levels, folds = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    held: dict[str, DNA] = {}
    for fold in folds:
        keys = chain.from_iterable(its for _, its in fold.parts)
        for name, dna, encode in zip(keys, cycle(dnas), cycle(encoders), strict=False):
            uri = partial_uri(work, name)
            held[uri] = dna
            put(uri, encode(name), exclusive=True)
    for node in chain.from_iterable(levels):
        held[node.uri] = added(*(held[uri] for uri in node.children))
        partial = Partial(held[node.uri], tuple(sorted(node.shards)), ())
        put(node.uri, partial.encode(), exclusive=True)


def made(root: str, shards: int) -> Catalogue:
    """Makes a catalogue of one dataset, and as many partials that it does not need."""
    place = Catalogue(root)
    stored = Entries(place.entries_uri)
    manifest = plan(entries("fleet", shards), shard_images=1, entries=stored)
    work = place.work_uri("fleet", SPEC.digest)
    put_summed(manifest, work)
    # Names that pair images with those of other datasets are not sampled: nothing here reads them.
    commit_dataset(place, "fleet", replace(manifest, pairing=None))
    put = storage.store_of(root).put
    for number in range(shards):
        other = hashlib.sha256(str(number).encode()).hexdigest()[:32]
        put(partial_uri(work, other), b"not needed", exclusive=True)
    return place


def seconds_of_a_partial() -> dict[str, float]:
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
    parser.add_argument("--shards", type=int, default=12_200)
    parser.add_argument("--names", type=int, default=1_000_000, help="that are measured")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--milliseconds", type=float, default=20.0, help="that a request takes")
    parser.add_argument("--as-shards", type=int, default=244_000, help="that times are told for")
    parser.add_argument("--as-images", type=int, default=4096, help="of each of these shards")
    arguments = parser.parse_args()
    wait = arguments.milliseconds / 1e3
    store = DictStore()
    objects._STORES["s3"] = store
    place = made(f"s3://{secrets.token_hex(8)}/dnas", arguments.shards)
    verification.LARGE = 0
    partial = seconds_of_a_partial()
    names = named(store, arguments.names, arguments.as_images)
    result: dict[str, Any] = {
        "shards": arguments.shards,
        "cpu_ms_of_a_partial": {name: round(s * 1e3, 1) for name, s in partial.items()},
        "cpu_us_of_a_name": {
            "in a task": round(sum(task.seconds for task in names.tasks) / names.number * 1e6, 2),
            "in the driver": round(names.sorting / names.number * 1e6, 3),
        },
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
        minutes = on_cluster(
            *(cpu, store.requests, mapper.tasks, names, arguments.workers, wait),
            partial["embedded"] - partial["tiny"],
            arguments.as_shards / arguments.shards,
            arguments.as_shards * arguments.as_images,
        )
        result[name] = {
            "requests": dict(store.requests),
            "requests_a_shard": round(store.requests.total() / arguments.shards, 2),
            "tasks": len(mapper.tasks),
            "cpu_seconds": round(cpu, 1),
            "of_these_in_tasks": round(mapper.seconds, 1),
            "minutes_on_cluster": minutes,
        }
    told = ", ".join(
        f"{name} {sum(result[name]['minutes_on_cluster'].values()):.1f} minutes and "
        f"{result[name]['requests_a_shard']:g} requests a shard"
        for name in jobs
    )
    size = f"{arguments.as_shards:,} shards of {arguments.as_images:,} images"
    measure.emit(result, f"{size} on {arguments.workers} workers: {told}")


if __name__ == "__main__":
    main()
