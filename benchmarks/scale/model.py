"""A model of a whole build, from measured parts: seconds, memory, requests, bytes and dollars.

>>> predict(parts, Case(images=10**9, gpus=64, gpu_images_per_second=2000)).limit  # doctest: +SKIP

The sizes of shards, the tree of sums and all limits are those of the product's own functions and
constants. `python -m benchmarks.scale` is the command.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

from benchmarks.scale.case import Case, Parts, Prediction, Prices
from benchmarks.scale.shape import (
    by_logarithm,
    entries_files,
    footers_read,
    interpolated,
    shards_of_folds,
    sums_of,
    whole_shards,
)
from pipeline.building.shard_time import MEASURED_IMAGES
from pipeline.catalogue.listed_once import HASH, SORTED_AT_ONCE
from pipeline.catalogue.partial_sums import READ_AHEAD
from pipeline.catalogue.verification import LARGE
from pipeline.counting import OVERLAP
from pipeline.counting.leases import RENEW_SECONDS
from pipeline.counting.preparing import FETCH_THREADS
from pipeline.counting.reduction import FAN_IN
from pipeline.counting.shard import encoding_threads
from pipeline.sources.blocks import BLOCK_IMAGES, MANY
from pipeline.sources.entries_file import FILE_BYTES, FILE_ROWS
from pipeline.sources.listing import PART_ENTRIES
from pipeline.sources.pair_sample import TASK_FILES
from pipeline.sources.parallel_listing import LISTERS
from pipeline.sources.shard_sizes import (
    USUAL_CELL_IMAGES,
    ImageSeconds,
    NewShardSizes,
    default_cell_images,
    default_shard_images,
)
from pipeline.sources.source import ALONE
from pipeline.sources.stretches import STRETCH_KEYS
from pipeline.sources.task_listing import MOST_TASKS
from pipeline.spec import FOLDS, Resources

KINDS = ("LIST", "HEAD", "GET", "PUT", "DELETE")

PAGE = 1000
"""Objects of a page of S3's listings, and of one removal."""

INVENTORY_ROWS = 1_000_000
"""Rows of a file of a report of S3 Inventory; an assumption."""


@dataclass(frozen=True)
class Model:
    """The steps from parts and a case to a prediction, each a property."""

    parts: Parts
    case: Case

    def work_of_a_shard(self, images: float) -> dict[str, float]:
        """Seconds that a shard takes of each resource of its worker; the most of them count."""
        parts, case = self.parts, self.case
        points = parts.decode_for_gpu if case.gpus else parts.decode_for_cpu
        each = parts.get_seconds + interpolated(points, case.megapixels)
        fetchers = FETCH_THREADS
        own = Resources().with_cpus(int(case.cores)).threads or 1
        if case.gpus:  # free cores decode ahead, in tasks that fetch for themselves
            fetchers *= 1 + max(0, int(case.cores) - own)
        else:
            each += parts.network_seconds
        encoding = self.cells_of(images) * parts.encode_seconds
        work = {
            "cores": (images * each + parts.shard_seconds + encoding) / case.cores,
            "encoding": encoding / encoding_threads(own),
            "latency": images * case.request_seconds / fetchers,
        }
        if case.gpus:
            work["GPU"] = images * case.workers_per_gpu / (case.gpu_images_per_second or 1)
        # A shard's own requests wait while the worker counts the other shard that it has.
        asked = sum(parts.requests["build"]["shard"].values()) * case.request_seconds
        work["latency"] = max(work["latency"], (max(work.values()) + asked) / OVERLAP)
        return work

    def size_of(self, images: float) -> float:
        """Bytes of a partial or a sum, by the logarithm of its images: a doubling adds bits."""
        return by_logarithm(self.parts.partial_bytes, images)

    @cached_property
    def shard_images(self) -> int:
        """The size of a shard, as the planner chooses it."""
        if self.case.shard_images:
            return self.case.shard_images
        known = None
        if self.case.speed_known:
            size = default_shard_images(self.case.images)
            known = ImageSeconds(OVERLAP * max(self.work_of_a_shard(size).values()) / size)
        sizes = NewShardSizes(image_seconds=known)
        return sizes.shard(self.case.images, self.case.image_bytes)

    @cached_property
    def pages(self) -> float:
        """Pages of the source's listing."""
        images = self.case.images
        extra = by_logarithm(self.parts.list_pages, images) if images > PAGE else 0
        return ceil(images / PAGE) + extra

    @cached_property
    def rows(self) -> float:
        """Keys of these pages."""
        images = self.case.images
        return images + (by_logarithm(self.parts.list_rows, images) if images > PAGE else 0)

    def cells_of(self, images: float) -> int:
        """How many cells a shard keeps beside its partial; 0 if it is small, or its images are."""
        bytes_of_one = int(self.size_of(USUAL_CELL_IMAGES))
        cells = round(images / default_cell_images(bytes_of_one, self.case.image_bytes))
        return cells if cells > 1 else 0

    @cached_property
    def cells_bytes(self) -> float:
        """All cells of all shards."""
        cells = self.cells_of(self.images)
        return self.shards * cells * self.size_of(self.images / cells) if cells else 0.0

    @cached_property
    def folds(self) -> list[int]:
        return shards_of_folds(self.case.images, self.shard_images)

    @cached_property
    def shards(self) -> int:
        return sum(self.folds)

    @property
    def busy(self) -> int:
        """Workers that get a shard."""
        return min(self.case.workers, self.shards)

    @cached_property
    def images(self) -> float:
        """Images of the mean shard."""
        return self.case.images / self.shards

    @cached_property
    def tree(self) -> tuple[tuple[int, ...], int]:
        return sums_of(self.folds)

    @cached_property
    def files(self) -> int:
        rows = min(FILE_ROWS, FILE_BYTES / self.parts.row_bytes)
        return entries_files(self.case.images, self.shard_images, rows)

    @cached_property
    def footers(self) -> float:
        return footers_read(self.shards, self.busy, self.files)

    @cached_property
    def work(self) -> dict[str, float]:
        """What the mean shard takes of its worker."""
        return self.work_of_a_shard(self.images)

    @property
    def slowest(self) -> str:
        return max(self.work, key=self.work.__getitem__)

    @cached_property
    def longest(self) -> float:
        """Seconds of a whole shard."""
        images, _ = whole_shards(self.case.images, self.shard_images)
        return max(self.work_of_a_shard(images).values())

    @property
    def manifest_bytes(self) -> float:
        return self.shards * self.parts.manifest_bytes

    @property
    def version_bytes(self) -> float:
        """The DNA, and its folds."""
        return self.size_of(self.case.images) + FOLDS * self.size_of(self.case.images / FOLDS)

    # Seconds

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds of counting that each of several things takes at least.

        The workers share all work. But whole shards come in waves, the last of which may leave some
        workers idle.
        """
        case = self.case
        _, whole = whole_shards(case.images, self.shard_images)
        waves = ceil(whole / case.workers) * self.longest
        shared = self.shards * self.work[self.slowest] / case.workers
        slowest = "few shards" if self.shards < case.workers else self.slowest
        moved = case.images * case.image_bytes + self.shards * self.size_of(self.images)
        moved += self.cells_bytes
        return {
            slowest: max(waves, shared),
            "network": moved / case.node_bytes_per_second / case.nodes,
            "store": case.images / case.store_requests_per_second,
            "driver": self.shards * self.parts.dispatch_seconds,
        }

    @property
    def counting(self) -> float:
        """Seconds of counting, with what is lost by nodes that die.

        A node loses half of each shard that its workers have, and does nothing until another one is
        in its place.
        """
        rate = self.case.deaths_per_node_hour
        lost = OVERLAP * self.longest / 2 + self.case.replace_seconds
        share = rate / 3600 * lost
        if share >= 1:
            raise ValueError(
                f"deaths_per_node_hour is {rate}, and each costs a node {lost:,.0f} s, so that it "
                "never gets on; state fewer deaths, or smaller shards"
            )
        return max(self.bounds.values()) / (1 - share)

    @property
    def listing(self) -> float:
        """Seconds of listing: of the driver and the tasks, or of the store if it is slower.

        The last round of tasks may be one task alone.
        """
        if self.case.inventory:
            return self.case.images * self.parts.inventory_seconds
        if self.case.images <= ALONE:
            waited = self.pages * self.case.page_seconds / LISTERS
            return max(self.rows * self.parts.list_seconds, waited)
        each = max(self.parts.list_seconds, self.case.page_seconds / LISTERS / PAGE)
        rest, twice = self.case.images - ALONE, self.rows - self.case.images
        return each * (twice + ALONE + min(rest, STRETCH_KEYS + rest / self.tasks))

    @property
    def planning(self) -> float:
        """Seconds of planning: of the driver, or of tasks. Blocks are of very different sizes."""
        alone = self.case.images * self.parts.plan_seconds
        if self.case.images < MANY or self.case.inventory:
            return alone
        blocks = 4 * BLOCK_IMAGES * self.parts.plan_seconds
        return min(alone, blocks + alone / self.tasks)

    @property
    def tasks(self) -> int:
        """How many tasks list and plan at a time."""
        return min(self.slots, MOST_TASKS)

    @property
    def slots(self) -> int:
        """How many tasks of one CPU run at a time."""
        return max(1, int(self.case.workers * self.case.cores))

    @property
    def adding(self) -> float:
        """Seconds of all levels of the tree of sums, one level after the other."""
        parts, case = self.parts, self.case
        below, took = self.shards, 0.0
        for level in self.tree[0]:
            children = min(FAN_IN, ceil(below / level))
            moved = children * self.size_of(case.images / below) + self.size_of(case.images / level)
            on_node = min(self.slots, level) / case.nodes
            node = children * (parts.add_seconds + case.request_seconds) + parts.encode_seconds
            node += 3 * case.request_seconds + moved * on_node / case.node_bytes_per_second
            took += ceil(level / self.slots) * node
            below = level
        return took

    @property
    def composing(self) -> float:
        """Seconds in which the driver adds up what the trees end in."""
        left = self.tree[1]
        fetched = self.size_of(self.case.images / left) / self.case.node_bytes_per_second
        each = self.parts.summand_seconds + self.case.request_seconds + fetched
        return self.parts.compose_seconds + left * each

    @property
    def pairing(self) -> float:
        """Seconds in which the names of all images are read and sampled: of the driver or tasks."""
        alone = self.case.images * self.parts.pair_seconds
        tasks = ceil(self.files / TASK_FILES)
        return alone / tasks * ceil(tasks / self.slots)

    @property
    def seconds(self) -> dict[str, float]:
        parts, case = self.parts, self.case
        bandwidth = case.node_bytes_per_second
        asked = sum(parts.requests["build"]["build"].values())
        manifests = self.manifest_bytes * case.workers_of_a_node
        return {
            "start": parts.start_seconds,
            "listing": self.listing,
            "planning": self.planning,
            "loading": parts.load_seconds + manifests / bandwidth,
            "counting": self.counting,
            "summing": self.adding + self.composing + self.pairing,
            "commit": parts.end_seconds
            + asked * case.request_seconds
            + self.version_bytes / bandwidth,
        }

    @property
    def seconds_after(self) -> dict[str, float]:
        """Seconds of `verify`, whose tasks read names and add up partials; and of `gc`."""
        parts, case, left = self.parts, self.case, self.tree[1]
        slots = self.slots if case.images > LARGE else 1
        names = case.images * (parts.hash_seconds / slots + parts.sort_seconds)
        waves = ceil(left / slots)
        fetched = case.request_seconds + self.size_of(self.images) / case.node_bytes_per_second
        each = max(parts.add_seconds, fetched / READ_AHEAD)
        pages = self.requests["gc"]["LIST"] * case.page_seconds
        others = sum(n for kind, n in self.requests["gc"].items() if kind != "LIST")
        return {
            "verify": names + waves * self.shards / left * each,
            "gc": pages + others * case.request_seconds,
        }

    @property
    def limit(self) -> str:
        """What takes most of the build."""
        seconds = self.seconds
        longest = max(seconds, key=seconds.__getitem__)
        if longest != "counting":
            small = {"listing": "listing", "planning": "driver", "summing": "driver"}
            return small.get(longest, "start")
        return max(self.bounds, key=self.bounds.__getitem__)

    # Requests and bytes

    def linear(self, job: str) -> dict[str, float]:
        """Requests of a job, so far as they are linear in shards and images."""
        each = self.parts.requests[job]
        counts = {"build": 1, "shard": self.shards, "image": self.case.images}
        return {
            kind: sum(each[unit].get(kind, 0) * count for unit, count in counts.items())
            for kind in KINDS
        }

    @cached_property
    def requests(self) -> dict[str, dict[str, float]]:
        """Requests of each kind. What was measured had one page, file of entries, and worker."""
        verify, gc = self.linear("verify"), self.linear("gc")
        verify["GET"] += self.files - 1
        verify["LIST"] += self.shards // PAGE
        # What nobody needs is removed: sums, if they are old by the store's own clock.
        sums = sum(self.tree[0])
        cells = self.shards * (self.cells_of(self.images) > 0)
        gc["LIST"] += (self.shards + sums + cells) // PAGE
        for kind in ("PUT", "HEAD", "DELETE"):
            gc[kind] += bool(sums)
        return {"build": self.requests_of_build, "verify": verify, "gc": gc}

    @property
    def requests_of_build(self) -> dict[str, float]:
        case, found = self.case, self.linear("build")
        found["LIST"] += -1 if case.inventory else self.pages - 1
        found["GET"] += 1 + ceil(case.images / INVENTORY_ROWS) if case.inventory else 0
        alone = min(case.images, ALONE)
        stored = 0 if case.inventory else alone // PART_ENTRIES
        if stored:  # the listing's checkpoint, removed in the end
            stored += ceil((case.images - alone) * LISTERS / STRETCH_KEYS)  # parts of tasks
            found["PUT"] += stored
            found["GET"] += stored if case.images > alone else 0
            found["LIST"] += 1
            found["DELETE"] += ceil(stored / PAGE)
        found["PUT"] += case.images >= MEASURED_IMAGES  # the note of the speed
        found["PUT"] += self.shards * int(OVERLAP * self.work[self.slowest] / RENEW_SECONDS)
        found["PUT"] += self.shards * (self.cells_of(self.images) > 0)
        found["PUT"] += self.files - 1
        found["HEAD"] += self.files - 1
        found["GET"] += self.footers - 1
        found["GET"] += self.files - 1  # the names of all images
        found["GET"] += 2 * (self.busy - 1)  # the manifest and the ranges
        for kind in ("HEAD", "GET", "PUT"):
            found[kind] += sum(self.tree[0])
        found["LIST"] += bool(self.tree[0])  # for sums of earlier builds
        return found

    @property
    def objects_bytes(self) -> float:
        """All partials and sums."""
        counts = (self.shards, *self.tree[0])
        return sum(count * self.size_of(self.case.images / count) for count in counts)

    @property
    def kept_bytes(self) -> float:
        entries = self.case.images * self.parts.entry_bytes
        stored = self.objects_bytes + self.cells_bytes + self.version_bytes
        return stored + entries + self.manifest_bytes

    @property
    def read_bytes(self) -> float:
        case, parts = self.case, self.parts
        footers = self.footers * parts.footer_bytes * self.shards / self.files
        manifests = self.busy * self.manifest_bytes
        images = case.images * (case.image_bytes + 2 * parts.entry_bytes)  # workers, and for pairs
        return images + footers + manifests + self.objects_bytes

    @property
    def verify_bytes(self) -> float:
        """Peak memory of the process that verifies: it sorts hashes, and holds them three times."""
        hashes = 3 * HASH.itemsize * min(self.case.images, SORTED_AT_ONCE)
        return self.parts.driver_bytes + self.shards * self.parts.head_bytes + hashes

    @property
    def driver_bytes(self) -> dict[str, float]:
        """Peak memory of the driver in each stage."""
        parts, left = self.parts, self.tree[1]
        heads = parts.driver_bytes + self.shards * parts.head_bytes
        summands = left * self.size_of(self.case.images / left)
        return {
            "planning": heads + parts.plan_bytes,
            "counting": heads + self.shards * parts.dispatch_bytes,
            "summing": heads + summands + self.version_bytes + parts.compose_bytes,
        }


def predict(parts: Parts, case: Case, prices: Prices | None = None) -> Prediction:
    """What a first build of a case takes, and `verify` and `gc` after it."""
    prices, model = prices or Prices(), Model(parts, case)
    seconds, requests = model.seconds, model.requests
    build = requests["build"]
    counted, whole = seconds["loading"] + seconds["counting"], sum(seconds.values())
    fixed = (
        (build["PUT"] + build["LIST"]) * prices.put_or_list
        + (build["GET"] + build["HEAD"]) * prices.get_or_head
        + model.read_bytes / 1e9 * prices.gigabyte_read
        + whole / 3600 * prices.driver_hour
    )
    return Prediction(
        case=case,
        shard_images=model.shard_images,
        shards=model.shards,
        sums=model.tree[0],
        summands=model.tree[1],
        seconds=seconds,
        seconds_after=model.seconds_after,
        worker_seconds=model.work,
        limit=model.limit,
        driver_bytes=model.driver_bytes,
        verify_bytes=model.verify_bytes,
        disk_bytes=case.images * parts.disk_bytes,
        requests=requests,
        read_bytes=model.read_bytes,
        written_bytes=model.kept_bytes + case.images * parts.checkpoint_bytes,
        kept_bytes=model.kept_bytes,
        dollars=fixed + counted / 3600 * case.gpus * prices.gpu_hour,
        dollars_held=fixed + whole / 3600 * case.gpus * prices.gpu_hour,
    )
