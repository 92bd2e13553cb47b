"""Measures how fast this machine counts images of a source. What is counted is thrown away.

    >>> measure_speed(request, listing, Resources(threads=4)).seconds_per_image   # doctest: +SKIP
    0.0106

A worker of this process counts a sample in rounds, two at a time, as workers always do. The first
round loads the network and is not measured. Small rounds follow the large ones: from both it is
known what a shard takes, however few images it has. In the end all rounds are merged.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from resource import RUSAGE_SELF, getrusage
from time import monotonic, thread_time
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from pipeline import images, storage
from pipeline.building.committer import sum_shards
from pipeline.building.counted_way import make_spec, products_of
from pipeline.building.request import Request
from pipeline.building.storing import store_manifest
from pipeline.catalogue import Catalogue
from pipeline.counting import (
    Recipe,
    ShardJob,
    ShardReceipt,
    choose_backend,
    device_kind,
    expected_bytes,
)
from pipeline.engine import InProcess, shards_run
from pipeline.errors import BadImage, SourceError, TransientError, UnexpectedError
from pipeline.events import Listener, Said, Started, StepDone, stage
from pipeline.mapper import SerialMapper
from pipeline.networks import describe, encode_ranges, find_ranges
from pipeline.sources import Entries, Entry, Listing, Members, Shard, plan
from pipeline.sources.manifest import ManifestWriter
from pipeline.spec import FOLDS, IMAGE_HASHES, Preprocess, Resources, available_cpus, digest_of

SPEED_ROUNDS = 4
"""About how many large rounds are measured."""

SMALL_ROUNDS = FOLDS - 1 - SPEED_ROUNDS
"""How many small rounds follow, so that as many are merged as a dataset has folds."""

SMALL_SHARE = 16
"""How many times as many images a large round has as a small one."""

DECODED = 32
"""Images that are decoded once more, by one thread, to see what decoding takes of a core."""


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a worker counts.

    Attributes:
        way: Digest of how images were counted; see `way_digest`.
        device: The kind of device that computed.
        machine: What the device or the machine is called.
        threads: The threads that ran the network; on a GPU, those that fed it.
        images: How many images were measured.
        failures: How many of them could not be read.
        rounds: In how many rounds they were measured.
        seconds_per_image: What a worker takes for an image.
        fastest: The same in the fastest large round.
        slowest: The same in the slowest large round.
        shard_seconds: What a worker takes for a shard beside its images; 0 if the sample was so
            small that this cannot be told.
        merge_seconds: What it takes to merge the shards of a dataset.
        decode_seconds: What one core takes to decode an image.
        start_seconds: What it took to load the network.
        bytes_per_image: The mean size of the images that were counted, as they were read.
        cell_bytes: About how many bytes the sums of some images take.
        memory_bytes: The most memory that this process has had, with all that it did before.
    """

    way: str
    device: Literal["cpu", "cuda"]
    machine: str
    threads: int
    images: int
    failures: int
    rounds: int
    seconds_per_image: Positive
    fastest: Positive
    slowest: Positive
    shard_seconds: NotNegative
    merge_seconds: NotNegative
    decode_seconds: NotNegative
    start_seconds: NotNegative
    bytes_per_image: NotNegative
    cell_bytes: int
    memory_bytes: int


def way_digest(request: Request) -> str:
    """Returns a digest of all that decides how fast images are counted, but the machine.

    Args:
        request: How they are counted.
    """
    network = describe(request.extractor, request.weights, request.taps)
    ranges, _ = find_ranges(network, request.ranges, {})
    # A spec of bf16 or nvJPEG states the device, which the digest is to leave out.
    portable = replace(request, precision="fp32", decoder=None)
    spec = make_spec(portable, network, ranges.digest, "cpu")
    products = products_of(request, network, None)
    return digest_of("speed", spec.digest, request.precision, request.decoder or "", list(products))


def measure_speed(
    request: Request, listing: Listing, resources: Resources, sample: int, progress: Listener
) -> Speed:
    """Counts a sample of a source's images in this process, and measures how long it takes.

    Args:
        request: How images are counted.
        listing: The candidates.
        resources: What computes.
        sample: How many images to take at most, those of the first round among them.
        progress: Is told of each round.

    Returns:
        The speed.

    Raises:
        TransientError: The images could not be read for now.
        SourceError: An image changed while it was read.
        UnexpectedError: A round failed for a reason that nobody foresaw.
        VdnaError: The network or the ranges cannot be used.
    """
    resources = replace(resources.with_cpus(available_cpus()), workers=0)
    drawn = plan(listing, limit=sample)
    every = pa.concat_tables(table for _, table in drawn.tables())
    large, small = _rounds_of(every.num_rows)
    sizes = large + small
    with (
        tempfile.TemporaryDirectory(prefix="vdna-plan-") as folder,
        InProcess() as engine,
        stage(progress, Started(every.num_rows, len(sizes), step="rounds")),
    ):
        place = Catalogue(folder)
        with ManifestWriter(Entries(place.entries_uri)) as writer:
            for number, size in enumerate(sizes):
                fold = number * FOLDS // len(sizes)
                writer.add(fold, every.slice(sum(sizes[:number]), size))
        manifest = writer.manifest(every.num_rows)
        recipe = _recipe(request, resources, place.root, progress)
        uri = place.uri("manifests", recipe.spec.digest, "sample", manifest.digest)
        store_manifest(uri, manifest)
        job = ShardJob(recipe, uri, place.work_uri("sample", recipe.spec.digest), place.entries_uri)

        def run(indices: Sequence[int]) -> tuple[list[ShardReceipt], float]:
            receipts, began = [], monotonic()
            with shards_run(engine, [(job, index) for index in indices]) as found:
                for receipt in found:
                    _require_done(receipt)
                    progress(StepDone(receipt.images + receipt.failures, receipt.failures))
                    receipts.append(receipt)
            return receipts, monotonic() - began

        rounds = range(len(sizes))
        of_first, seconds = run(rounds[:1])
        of_large = run(rounds[1 : len(large)]) if len(large) > 1 else (of_first, seconds)
        of_small = run(rounds[len(large) :])
        began = monotonic()
        sum_shards(manifest, job.work_uri, recipe, "sample", SerialMapper())
        merging = monotonic() - began
        decode_seconds = _decode_seconds(manifest.shards[len(large) - 1], recipe)
    receipts = of_large[0] + of_small[0]
    mean, shard = _seconds_of_each(of_large, of_small)
    single = [receipt.seconds / _images_of([receipt]) for receipt in of_large[0]]
    usual = sum(single) / len(single)
    return Speed(
        way=way_digest(request),
        device="cuda" if recipe.device == "cuda" else "cpu",
        machine=_machine(recipe.device),
        threads=resources.threads or 1,
        images=_images_of(receipts),
        failures=sum(receipt.failures for receipt in receipts),
        rounds=len(receipts),
        seconds_per_image=mean,
        fastest=mean * min(single) / usual,
        slowest=mean * max(single) / usual,
        shard_seconds=shard,
        merge_seconds=merging,
        decode_seconds=decode_seconds,
        start_seconds=max(0.0, of_first[0].seconds - shard - mean * _images_of(of_first)),
        bytes_per_image=_bytes_of_each([*of_first, *receipts]),
        cell_bytes=expected_bytes(recipe.spec, recipe.products),
        memory_bytes=1024 * getrusage(RUSAGE_SELF).ru_maxrss,
    )


def _rounds_of(images: int) -> tuple[list[int], list[int]]:
    """Cuts a sample into rounds.

    Args:
        images: How many there are.

    Returns:
        The images of each large round, and of each small one; no small ones of a small sample.
    """
    few = images // (SMALL_SHARE * (1 + SPEED_ROUNDS) + SMALL_ROUNDS)
    small = [few] * SMALL_ROUNDS if few else []
    rest = images - sum(small)
    each = max(1, rest // (1 + SPEED_ROUNDS))
    large = [each] * (rest // each)
    if small:
        large[-1] += rest % each  # instead of one more round
    elif rest % each:
        large.append(rest % each)
    return large, small


def _bytes_of_each(receipts: Sequence[ShardReceipt]) -> float:
    """Returns how many bytes an image has, on average; a shard may be named twice."""
    each_once = {receipt.index: receipt for receipt in receipts}.values()
    images = sum(receipt.images for receipt in each_once)
    return sum(receipt.counted_bytes for receipt in each_once) / max(1, images)


def _images_of(receipts: Sequence[ShardReceipt]) -> int:
    """Adds up how many images were read, or could not be."""
    return sum(receipt.images + receipt.failures for receipt in receipts)


def _seconds_of_each(
    large: tuple[Sequence[ShardReceipt], float], small: tuple[Sequence[ShardReceipt], float]
) -> tuple[float, float]:
    """Finds what an image takes, and what a shard takes beside its images.

    Args:
        large: The large rounds, and the seconds that they took together.
        small: The same of the small ones.

    Returns:
        Seconds for each image, and for each shard.
    """
    (receipts, seconds), (others, more) = large, small
    images = _images_of(receipts)
    share = _images_of(others) / images
    shard = max(0.0, (more - share * seconds) / (len(others) - share * len(receipts) or 1.0))
    shard = min(shard, seconds / len(receipts) / 2)  # a machine that is busy for a moment
    return (seconds - len(receipts) * shard) / images, shard


def _recipe(request: Request, resources: Resources, folder: str, progress: Listener) -> Recipe:
    """Returns what a worker loads, and writes the ranges to a catalogue."""
    device, micro_batch = device_kind(resources), resources.micro_batch
    network = describe(request.extractor, request.weights, request.taps)
    ranges, provenance = find_ranges(network, request.ranges, {})
    spec = make_spec(request, network, ranges.digest, device, micro_batch)
    products = products_of(request, network, None)
    uri = Catalogue(folder).ranges_uri(ranges.digest)
    storage.create(uri, encode_ranges(ranges, network, **provenance))
    backend = choose_backend(
        resources.backend,
        network,
        request.precision,
        device,
        say=lambda text: progress(Said(text)),
        micro_batch=micro_batch,
    ).backend
    return Recipe(spec, network, uri, resources, products, backend=backend)


def _require_done(receipt: ShardReceipt) -> None:
    if not receipt.error:
        return
    problem = f"the sample could not be counted: {receipt.error}"
    if receipt.unexpected:
        raise UnexpectedError(problem, receipt.details)
    raise SourceError(problem) if receipt.changed else TransientError(problem)


def _decode_seconds(shard: Shard, recipe: Recipe) -> float:
    """Returns what one core takes to decode an image, without the time to read it."""
    rule, some = recipe.spec.preprocess, shard.members[:DECODED]
    on_device, hashed = recipe.device == "cuda", IMAGE_HASHES in recipe.products
    reader = Members(some, rule.max_bytes, len(some))
    try:
        total = sum(_seconds_of(reader, entry, rule, on_device, hashed) for entry in some)
    finally:
        reader.close()
    return total / len(some)


def _seconds_of(
    reader: Members, entry: Entry, rule: Preprocess, on_device: bool, hashed: bool
) -> float:
    try:
        data = reader.fetch(entry)
        began = thread_time()
        images.load(data, rule, on_device, hashed)
    except BadImage:
        return 0.0
    return thread_time() - began


def _machine(device: str) -> str:
    """Returns what the device is called, or how many cores there are."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{available_cpus()} cores, {platform.machine()}"
