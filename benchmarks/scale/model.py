"""A model of a whole build, from measured parts: seconds, memory, requests, bytes and dollars.

>>> predict(parts, Case(images=10**9, gpus=64, gpu_images_per_second=2000)).limit  # doctest: +SKIP

The sizes of shards, the tree of sums and all limits are those of the product's own functions and
constants. `python -m benchmarks.scale` is the command.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil

from benchmarks.scale.case import Case, Parts, Prediction, Prices
from benchmarks.scale.shape import (
    by_logarithm,
    entries_files,
    footers_read,
    interpolated,
    passed_images,
    passed_of_a_shard,
    shards_of_folds,
    sums_of,
    whole_shards,
)
from pipeline.building.counted_way import MOST_HASHED
from pipeline.building.shard_time import MEASURED_IMAGES
from pipeline.catalogue.listed_once import HASH, SORTED_AT_ONCE
from pipeline.catalogue.partial_sums import READ_AHEAD
from pipeline.catalogue.verification import LARGE
from pipeline.counting import OVERLAP
from pipeline.counting.leases import RENEW_SECONDS
from pipeline.counting.micro_batch import MICRO_BATCH, bytes_per_image, of_memory
from pipeline.counting.preparing import FETCH_THREADS
from pipeline.counting.reduction import FAN_IN, HASHED_IN_MEMORY
from pipeline.counting.shard import encoding_threads
from pipeline.dna import HASH_ROW
from pipeline.networks import describe
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
from pipeline.sources.stretches import REPORT_ENTRIES, REPORT_PART_ENTRIES, STRETCH_KEYS
from pipeline.sources.task_listing import MOST_TASKS
from pipeline.spec import FOLDS, Resources

KINDS = ("LIST", "HEAD", "GET", "PUT", "DELETE")

PAGE = 1000
"""Objects of a page of S3's listings, and of one removal."""

INVENTORY_ROWS = 1_000_000
"""Rows of a file of a report of S3 Inventory; an assumption."""

PART_ROWS = STRETCH_KEYS // LISTERS
"""Images of a part that a task stores: it lists so many places at a time."""

HASH_BYTES = HASH_ROW.itemsize
"""What the hashes of an image take in a partial, in each sum, and in the file of a version."""


@cache
def image_in_a_pass() -> int:
    """Bytes of a GPU that an image takes in the embedded network, by which it is modelled."""
    return bytes_per_image(describe("efficientnet_lite0"))


@dataclass(frozen=True)
class Model:
    """The steps from parts and a case to a prediction, each a property."""

    parts: Parts
    case: Case

    @cached_property
    def micro_batch(self) -> int:
        """Images that the network sees at a time, as a worker chooses."""
        if not self.case.gpus:
            return MICRO_BATCH["cpu"]
        share = min(1.0, 1 / self.case.workers_per_gpu)
        return of_memory(int(self.case.gpu_bytes * share), image_in_a_pass())

    def passed_of(self, images: int) -> int:
        """Images that the network sees of a shard: empty ones fill each cell's last micro-batch."""
        return passed_of_a_shard(images, self.cell_images, self.micro_batch)

    @cached_property
    def passed(self) -> float:
        """Images that the network sees of all shards."""
        images, size = self.case.images, self.shard_images
        return passed_images(images, size, self.cell_images, self.micro_batch)

    def work_of_a_shard(self, images: float, passed: float | None = None) -> dict[str, float]:
        """Seconds that a shard takes of each resource of its worker; the most of them count.

        Args:
            images: How many it has.
            passed: How many the network sees, with empty ones. None for those of this very shard.
        """
        parts, case = self.parts, self.case
        passed = self.passed_of(ceil(images)) if passed is None else passed
        points = parts.decode_for_gpu if case.gpus else parts.decode_for_cpu
        each = parts.get_seconds + interpolated(points, case.megapixels)
        fetchers = FETCH_THREADS
        own = Resources().with_cpus(int(case.cores)).threads or 1
        if case.gpus:  # free cores decode ahead, in tasks that fetch for themselves
            fetchers *= 1 + max(0, int(case.cores) - own)
        else:
            each += parts.network_seconds
        encoding = self.cells_of(images) * parts.encode_seconds
        empty = 0 if case.gpus else max(0.0, passed - images) * parts.forward_seconds
        work = {
            "cores": (images * each + empty + parts.shard_seconds + encoding) / case.cores,
            "encoding": encoding / encoding_threads(own),
            "latency": images * case.request_seconds / fetchers,
        }
        if case.gpus:
            work["GPU"] = passed * case.workers_per_gpu / (case.gpu_images_per_second or 1)
        # A shard's own requests wait while the worker counts the other shard that it has.
        asked = sum(parts.requests["build"]["shard"].values()) * case.request_seconds
        work["latency"] = max(work["latency"], (max(work.values()) + asked) / OVERLAP)
        return work

    def size_of(self, images: float) -> float:
        """Bytes of a partial or a sum, by the logarithm of its images: a doubling adds bits."""
        return by_logarithm(self.parts.partial_bytes, images) + self.hashed * images * HASH_BYTES

    def size_of_dna(self, images: float) -> float:
        """Bytes of a DNA, without what partials have beside it."""
        return by_logarithm(self.parts.dna_bytes, images)

    @property
    def hashed(self) -> bool:
        """Whether hashes of the images are kept: of more, a build must be told to keep none."""
        return self.case.images <= MOST_HASHED

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
        cells = round(images / self.cell_images)
        return cells if cells > 1 else 0

    @cached_property
    def cell_images(self) -> int:
        """The size of a cell, as the planner chooses it."""
        bytes_of_one = int(self.size_of(USUAL_CELL_IMAGES))
        return default_cell_images(bytes_of_one, self.case.image_bytes)

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
        return self.work_of_a_shard(self.images, self.passed / self.shards)

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
        """The DNA, its folds, its exemplars, and the hashes of the images."""
        images = self.case.images
        folds = FOLDS * self.size_of_dna(images / FOLDS)
        return self.size_of_dna(images) + folds + self.parts.exemplar_bytes + self.hash_bytes

    @property
    def hash_bytes(self) -> float:
        """The hashes of all images."""
        return self.hashed * self.case.images * HASH_BYTES

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
        parts, case = self.parts, self.case
        if case.inventory:
            if not self.is_planned_by_tasks:
                return case.images * parts.inventory_seconds
            return parts.report_seconds * self.of_one_task(INVENTORY_ROWS)
        if case.images <= ALONE:
            waited = self.pages * case.page_seconds / LISTERS
            return max(self.rows * parts.list_seconds, waited)
        waited = case.page_seconds / LISTERS / PAGE
        alone = max(parts.list_seconds, waited)
        each = max(parts.list_seconds + parts.store_seconds, waited)
        rest, twice = case.images - ALONE, self.rows - case.images
        return alone * (twice + ALONE) + each * min(rest, STRETCH_KEYS + rest / self.tasks)

    @property
    def planning(self) -> float:
        """Seconds of planning: of the driver, or of tasks. Blocks are of very different sizes."""
        parts = self.parts
        if not self.is_planned_by_tasks:
            return self.case.images * parts.plan_seconds
        each = parts.block_seconds + self.reads_of_a_block * parts.part_seconds
        return each * self.of_one_task(4 * BLOCK_IMAGES)

    @property
    def is_planned_by_tasks(self) -> bool:
        """Whether tasks plan the source; then they read a report, too."""
        return self.case.images >= MANY and not self.case.driver_plans

    def of_one_task(self, largest: int) -> float:
        """Images that a task has if all tasks share them, and one has the largest piece last."""
        return min(self.case.images, largest + self.case.images / self.tasks)

    @property
    def reads_of_a_block(self) -> float:
        """Rows that tasks read to plan an image: of each sort, a block reads a part more.

        A prefix is sorted as a whole. A report has any order, so each sort has names of all blocks.
        """
        if not self.case.inventory:
            return 1 + PART_ROWS / BLOCK_IMAGES
        rows = min(REPORT_ENTRIES, INVENTORY_ROWS, self.case.images)
        of_a_sort = max(1.0, BLOCK_IMAGES * rows / self.case.images)
        return 1 + REPORT_PART_ENTRIES / of_a_sort

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
            planning = "planning" if self.is_planned_by_tasks else "driver"
            small = {"listing": "listing", "planning": planning, "summing": "driver"}
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
        if case.inventory:
            stored = ceil(case.images / REPORT_PART_ENTRIES) * self.is_planned_by_tasks
            read = stored * self.reads_of_a_block
        else:
            stored = alone // PART_ENTRIES
            if stored:
                stored += ceil((case.images - alone) / PART_ROWS)  # parts of tasks
            read = stored if case.images > alone else 0
        if stored:  # the listing's checkpoint, removed in the end
            found["PUT"] += stored
            found["GET"] += read
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
        """Peak memory of the process that verifies: it sorts hashes, and holds them three times.

        Those of the images are held as a file and as rows.
        """
        hashes = 3 * HASH.itemsize * min(self.case.images, SORTED_AT_ONCE) + 2 * self.hash_bytes
        return self.parts.driver_bytes + self.shards * self.parts.head_bytes + hashes

    @property
    def driver_bytes(self) -> dict[str, float]:
        """Peak memory of the driver in each stage."""
        parts = self.parts
        heads = parts.driver_bytes + self.shards * parts.head_bytes
        files = self.version_bytes - self.hash_bytes  # these are on disk
        summands = 0.0 if self.summed_on_disk else self.summand_bytes
        return {
            "planning": heads + (0 if self.is_planned_by_tasks else parts.plan_bytes),
            "counting": heads + self.shards * parts.dispatch_bytes,
            "summing": heads + summands + files + parts.compose_bytes,
        }

    @property
    def summand_bytes(self) -> float:
        """All objects that the driver adds up in the end."""
        left = self.tree[1]
        return left * self.size_of(self.case.images / left)

    @property
    def summed_on_disk(self) -> bool:
        """Whether these wait on the driver's disk."""
        return self.hashed and self.case.images > HASHED_IN_MEMORY

    @property
    def disk_bytes(self) -> float:
        """The driver's temporary disk: as it plans, or later as it adds up.

        It puts the hashes of the images in order there, and then makes the file of them.
        """
        planning = 0 if self.is_planned_by_tasks else self.case.images * self.parts.disk_bytes
        summands = self.summand_bytes if self.summed_on_disk else 0.0
        return max(planning, summands + 2 * self.hash_bytes)


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
        disk_bytes=model.disk_bytes,
        requests=requests,
        read_bytes=model.read_bytes,
        written_bytes=model.kept_bytes + case.images * parts.checkpoint_bytes,
        kept_bytes=model.kept_bytes,
        dollars=fixed + counted / 3600 * case.gpus * prices.gpu_hour,
        dollars_held=fixed + whole / 3600 * case.gpus * prices.gpu_hour,
    )
