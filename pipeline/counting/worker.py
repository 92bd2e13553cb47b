"""Runs a worker: takes shards one after the other, and commits the partial of each."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from time import monotonic
from typing import Literal, Protocol

from pipeline import images, storage
from pipeline.counting.cells import cells_uri, find_cells
from pipeline.counting.deaths import (
    Home,
    ThisMachine,
    crashed,
    die_of_images,
    ends_processes,
    name_of,
)
from pipeline.counting.decode_ahead import Ahead
from pipeline.counting.extractor import Extractor
from pipeline.counting.faults import ENDS_PROCESSES, Fault, fault_of
from pipeline.counting.leases import Holder, claim
from pipeline.counting.makers import Makers, ShardMaker
from pipeline.counting.merged_shards import merged_shard
from pipeline.counting.micro_batch import MICRO_BATCH, bytes_per_image, of_memory
from pipeline.counting.shard import Counter
from pipeline.counting.stage_clock import StageMeter
from pipeline.counting.stream import Made
from pipeline.counting.turns import Turns
from pipeline.dna import Ranges, SealedFile
from pipeline.errors import (
    ConservationError,
    CorruptFile,
    SourceError,
    TransientError,
    UnexpectedError,
    known_error,
)
from pipeline.events import ShardWork, about
from pipeline.networks import Network, decode_ranges
from pipeline.sources import MANIFEST, Entries, Shard, head_at
from pipeline.spec import PRODUCTS, Backend, Resources, Spec

OVERLAP = 2
"""How many shards a worker has under way: the second fills the network while the first ends."""

MANIFESTS_KEPT = 8
"""How many manifests a worker keeps for the next shard. One of many shards takes megabytes, and a
worker may count hundreds of datasets."""


# One shard, as a worker is given it.


class ShardTask(Protocol):
    """What a worker does with a shard instead of counting it. Must be hashable, and pickle."""

    def maker(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        resources: Resources,
        ahead: Ahead | None,
    ) -> ShardMaker:
        """Returns the maker of objects for such a task."""


@dataclass(frozen=True)
class Recipe:
    """What a worker loads before it can count, or do a task. It holds no secrets.

    Jobs of equal recipes share what is loaded, wherever the ranges are.

    Attributes:
        spec: What is counted.
        network: The network.
        ranges_uri: Where the ranges are. Wherever they lie, they are those of the spec.
        resources: How fast.
        products: What is kept beside the histograms.
        task: What to do instead of counting, or None.
        decoder: `module:function` of the decoder that the spec states, if it is a user's own. It is
            found where the recipe is first made.
        backend: What runs the network, as the job's driver has chosen.
    """

    spec: Spec
    network: Network
    ranges_uri: str = field(compare=False)
    resources: Resources
    products: tuple[str, ...] = PRODUCTS
    task: ShardTask | None = None
    decoder: str = ""
    backend: Backend = "torch"

    def __post_init__(self) -> None:
        stated = self.spec.preprocess.decoder
        if stated and not self.decoder:  # found where it is registered, and then shipped
            object.__setattr__(self, "decoder", images.decoder_function(stated))

    @property
    def device(self) -> str:
        """The kind of device that computes, `cpu` or `cuda`."""
        return device_kind(self.resources)


@dataclass(frozen=True)
class ShardJob:
    """The shards of a dataset that are to be counted.

    Attributes:
        recipe: How to count them.
        manifest_uri: The uri of the manifest that lists them.
        work_uri: The uri of the folder that their partials are written to.
        entries_uri: The uri of the folder of the manifest's entries files.
        claimant: The id by which workers claim shards, so that another job leaves them alone; empty
            if a shard is to be counted whoever else counts it.
        keeps_cells: Whether the sums of the shards' cells are kept for later builds.
        dataset: The dataset, for those who are told of the shards; "" if there is none.
    """

    recipe: Recipe
    manifest_uri: str
    work_uri: str
    entries_uri: str
    claimant: str = ""
    keeps_cells: bool = True
    dataset: str = ""


def device_kind(resources: Resources) -> str:
    """Returns the kind of device that computes, `cpu` or `cuda`."""
    return "cuda" if resources.gpus_per_worker > 0 else "cpu"


@dataclass(frozen=True)
class ShardReceipt:
    """What became of a shard.

    Attributes:
        manifest_uri: The manifest that lists it.
        index: Its number there.
        images: How many images were counted now.
        failures: How many images could not be read, of those that were read now.
        reused: How many images were not read, as an earlier build has kept the sums of their cells.
        ahead: How many images were decoded elsewhere for the worker, since its last receipt of a
            shard that it made.
        missed: Why the worker had to decode some that were to be decoded elsewhere, or nothing.
        seconds: How long it took.
        error: Why it could not be counted this time, or nothing.
        kind: The name of the error's class, or nothing.
        fault: Of what kind the error is, or nothing.
        details: The traceback of an error that was not foreseen, or nothing.
        transient: Whether the same command may succeed later.
        held_by: The machine on which another job counts the shard, so that it was left alone; or
            nothing.
        died: The processes that had the shard before and crashed, joined by semicolons; or nothing.
        read_bytes: Bytes of the images that were read now, where the source states their sizes.
        reasons: How many images could not be read, of those that were read now, by the reason.
        spent: Seconds that the worker's threads spent in each stage of the work, since its last
            receipt of a shard that it made (see `stage_clock`). So those of a shard that failed are
            in the receipt of the next one.
        counted_bytes: Bytes of the images that were counted now, as they were read.
        had_before: Whether workers of this job had the shard before, and its receipt was lost when
            the engine ended them. If it is stored, they may have stored it.
    """

    manifest_uri: str
    index: int
    images: int = 0
    failures: int = 0
    reused: int = 0
    ahead: int = 0
    missed: str = ""
    seconds: float = 0.0
    error: str = ""
    kind: str = ""
    fault: Fault | Literal[""] = ""
    details: str = ""
    transient: bool = False
    held_by: str = ""
    died: str = ""
    read_bytes: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    counted_bytes: int = 0
    had_before: bool = False

    @property
    def work(self) -> ShardWork | None:
        """What was done for the shard, if it was made now."""
        if not self.counted:
            return None
        return ShardWork(self.images, self.reasons, self.reused, self.read_bytes, self.spent)

    @property
    def counted(self) -> bool:
        """Whether the shard was made now; else it failed, was there already, or is held."""
        return self.images + self.failures + self.reused > 0

    @property
    def changed(self) -> bool:
        """Whether the source has changed since it was listed."""
        return self.kind == SourceError.__name__

    @property
    def unexpected(self) -> bool:
        """Whether nobody foresaw the error; another worker may do better."""
        return self.kind == UnexpectedError.__name__

    @property
    def unsound(self) -> bool:
        """Whether counts did not add up."""
        return self.kind == ConservationError.__name__


class _MustBeAlone(Exception):
    """Processes have crashed with a shard, so it is to run in one of its own."""


def partial_uri(work_uri: str, key: str) -> str:
    """Returns where the partial of a shard of that key belongs."""
    return storage.join(work_uri, "partials", f"{key}.parquet")


class Worker:
    """Counts or ranks shards of any job, several at a time if asked; loads each extractor once.

    Args:
        ahead: Those who may fetch and decode images for this worker; None for nobody.
        home: Where it runs; None for a process without Ray.
    """

    def __init__(self, ahead: Ahead | None = None, home: Home | None = None) -> None:
        self._ahead = ahead
        self._home = home or ThisMachine()
        self._makers: Makers[Recipe] = Makers(self._load, _batch_of)
        self._lock = threading.Lock()
        self._manifest = lru_cache(MANIFESTS_KEPT)(_read_manifest)
        self._entries = lru_cache(MANIFESTS_KEPT)(Entries)
        self._turns = Turns()
        self._stages = StageMeter()

    def run(self, job: ShardJob, index: int) -> ShardReceipt:
        """Commits the shard's partial, or its ranks, unless that is done, or another job does it.

        Args:
            job: The job.
            index: The number of the shard in the manifest.

        Returns:
            A receipt. Whatever was raised is in it, so that other shards go on. After an error that
            was not foreseen, the next shard loads its network again.
        """
        with about(dataset=job.dataset, shard=index):
            try:
                with self._turns.beside():
                    return self._run(job, index, alone=False)
            except _MustBeAlone:  # it is not claimed while it waits for that
                with self._turns.alone():
                    return self._run(job, index, alone=True)

    def _run(self, job: ShardJob, index: int, *, alone: bool) -> ShardReceipt:
        started, died = monotonic(), ""
        try:
            shard = self._shard(job, index)
            key = shard.key(job.recipe.spec.digest, job.recipe.products)
            uri = partial_uri(job.work_uri, key)
            lease = claim(job.work_uri, key, job.claimant, self._home.label)
            if isinstance(lease, Holder):
                held_by = "" if storage.exists(uri) else lease.host or "an unknown machine"
                return ShardReceipt(job.manifest_uri, index, held_by=held_by)
            with lease.renewed(job.recipe.resources.stall_seconds):
                crashes = crashed(lease.before, self._home)
                died = "; ".join(map(name_of, crashes))
                # Looked for once the shard is claimed: its last holder has committed it before.
                if storage.exists(uri):
                    lease.forget_dead()
                    return ShardReceipt(job.manifest_uri, index, died=died)
                deaths = len(crashes), len(lease.before)
                isolated = die_of_images(*deaths)
                if isolated and not alone:
                    raise _MustBeAlone
                if ends_processes(*deaths):
                    lease.forget_dead()  # the next try begins anew
                    raise UnexpectedError(
                        f"{ENDS_PROCESSES}: {deaths[1]} took it and died, {deaths[0]} of them "
                        "without their machine; in the last ones no other shard ran, and images "
                        f"were decoded in processes apart ({died or 'no process is known'})"
                    )
                made = _merged(job, shard, key)
                if made is None:
                    kept = _kept_cells(job, shard)
                    made = self._makers.make(job.recipe, shard, key, isolated=isolated, kept=kept)
                if made.cells and job.keeps_cells:
                    storage.replace(cells_uri(job.work_uri, key), made.cells)
                storage.create(uri, made.data)
            lease.forget_dead()
        except _MustBeAlone:
            raise
        except Exception as raised:
            error = known_error(raised)
            fault = fault_of(error)
            if isinstance(error, UnexpectedError) and fault != "crash":
                self._makers.give_up(job.recipe)
            return ShardReceipt(
                job.manifest_uri,
                index,
                seconds=monotonic() - started,
                error=f"{type(error).__name__}: {error}",
                kind=type(error).__name__,
                fault=fault,
                details=error.details if isinstance(error, UnexpectedError) else "",
                transient=isinstance(error, TransientError | SourceError | UnexpectedError),
                died=died,
            )
        ahead, missed = self._ahead.news() if self._ahead is not None else (0, "")
        return ShardReceipt(
            job.manifest_uri,
            index,
            made.images,
            made.failures,
            made.reused,
            ahead,
            missed,
            monotonic() - started,
            died=died,
            read_bytes=made.read_bytes,
            reasons=made.reasons,
            spent=self._stages.read(),
            counted_bytes=made.counted_bytes,
        )

    def _shard(self, job: ShardJob, index: int) -> Shard:
        """Returns a shard. The manifest and the footers of its entries files are kept a while."""
        with self._lock:  # so that two shards that begin together read it once
            head = head_at(self._manifest(job.manifest_uri), index)
            entries = self._entries(job.entries_uri)
        return entries.shard(head)

    def stop(self) -> None:
        """Ends the shards under way, by an error. What they need is loaded again for later ones."""
        self._makers.close()

    def close(self) -> None:
        """Ends the threads of all that was loaded."""
        self._makers.close()
        if self._ahead is not None:
            self._ahead.close()

    def _load(self, recipe: Recipe, micro_batch: int) -> ShardMaker:
        # A thread that Ray made, and in which OpenVINO was called, crashes as it ends.
        with ThreadPoolExecutor(1, "load") as pool:
            return pool.submit(_load, recipe, self._ahead, micro_batch).result()


def _read_manifest(uri: str) -> SealedFile:
    return SealedFile(storage.read(uri), MANIFEST, uri)


def _merged(job: ShardJob, shard: Shard, key: str) -> Made | None:
    """Makes a shard that was put together of others, if it is to be counted and can be so made."""
    recipe = job.recipe
    if recipe.task is not None:
        return None
    return merged_shard(job.work_uri, shard, key, recipe.spec.digest, recipe.products)


def _kept_cells(job: ShardJob, shard: Shard) -> dict[str, bytes]:
    if not shard.origins or job.recipe.task is not None:
        return {}
    return find_cells(job.work_uri, shard, job.recipe.spec.digest, job.recipe.products)


def _load(recipe: Recipe, ahead: Ahead | None, micro_batch: int) -> ShardMaker:
    spec = recipe.spec
    if spec.preprocess.decoder:
        images.use_decoder(spec.preprocess.decoder, recipe.decoder)
    resources = recipe.resources.with_cpus(1)
    extractor = Extractor(
        recipe.network,
        spec.precision,
        recipe.device,
        recipe.backend,
        resources.threads or 1,
        micro_batch=micro_batch,
        graphs=resources.cuda_graphs,
    )
    if spec.bf16_numerics is not None:
        spec.bf16_numerics.require_here(extractor.numerics)
    ranges, _ = decode_ranges(storage.read(recipe.ranges_uri), recipe.ranges_uri)
    if ranges.digest != spec.ranges_digest:
        raise CorruptFile(
            f"{recipe.ranges_uri} should hold ranges {spec.ranges_digest}, but holds "
            f"{ranges.digest}"
        )
    if recipe.task is not None:
        return recipe.task.maker(extractor, spec, ranges, recipe.resources, ahead)
    return Counter(extractor, spec, ranges, recipe.resources, recipe.products, ahead)


def _batch_of(recipe: Recipe) -> tuple[int, bool]:
    """Returns how many images the network sees at a time, and whether they may be fewer.

    What the spec states, all workers must have; and a ranking mixes no numerics. So only the
    histograms of float32 are counted by the memory of each GPU.
    """
    stated, resources = recipe.spec.bf16_numerics, recipe.resources
    adapts = stated is None and recipe.task is None and recipe.device != "cpu"
    if resources.micro_batch is not None:
        return resources.micro_batch, adapts
    if stated is not None:
        return stated.micro_batch, adapts
    if recipe.device == "cpu":
        return MICRO_BATCH["cpu"], adapts
    import torch

    if not torch.cuda.is_available():  # of which the extractor tells
        return MICRO_BATCH["cpu"], adapts
    if not adapts:
        return MICRO_BATCH["cuda"], adapts
    memory = torch.cuda.get_device_properties(0).total_memory
    share = min(1.0, resources.gpus_per_worker)
    return of_memory(int(memory * share), bytes_per_image(recipe.network)), adapts
