"""One shard -> one committed object: its partial, or its ranks (see `pipeline.ranker`).

>>> Counter(extractor, spec, ranges).count(shard, key).dna.images        # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dna import DNA, Floats, Ints, Ranges
from pipeline.errors import (
    ConservationError,
    CorruptFile,
    SourceError,
    SpecMismatch,
    TransientError,
    VdnaError,
)
from pipeline.exemplars import Keep
from pipeline.extractor import Extractor
from pipeline.gaussian import Moments
from pipeline.histogram import NONFINITE, OVERFLOW, UNDERFLOW, LayerCounts, count_torch
from pipeline.manifest import Shard, read_shard
from pipeline.networks import Network
from pipeline.partial import Failure, Partial
from pipeline.ranges import decode as decode_ranges
from pipeline.ranker import Ranker, Target
from pipeline.reactions import Reactions
from pipeline.spec import LAYER_GAUSSIAN, PRODUCTS, Numerics, Resources, Spec
from pipeline.stream import Fetch, Made, Prepared, Stream

if TYPE_CHECKING:
    import torch

OVERLAP = 2
"""Shards a worker has under way: the second fills the network while the first one ends."""
ISOLATE_FROM_ATTEMPT = 3
"""A shard whose worker died twice is read with its images decoded in a process apart."""


class Counter:
    """An extractor, its ranges and its threads; several shards may be counted at a time."""

    def __init__(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        resources: Resources | None = None,
        products: Sequence[str] = PRODUCTS,
    ):
        self._extractor = extractor
        self._spec = spec
        self._ranges = ranges
        self._products = products
        self._stream = Stream(extractor, spec.preprocess, resources)

    def count(
        self, shard: Shard, key: str, fetch: Fetch | None = None, *, isolated: bool = False
    ) -> Partial:
        """The shard's partial, checked. `isolated`: images decoded in a process apart.

        Raises as `Stream.observed`.
        """
        tally = _Tally(self._spec, self._ranges, layerwise=LAYER_GAUSSIAN in self._products)
        names = [(entry.uri, entry.member) for entry in shard.members]
        keep = Keep.of(self._products)
        reactions = Reactions(keep, self._spec, _order(names)) if keep else None
        failures: list[Failure] = []

        def observe(pixels: Prepared) -> Floats:
            return self._observe(pixels, tally)

        with closing(self._stream.observed(shard, observe, fetch, isolated=isolated)) as observed:
            for found in observed:
                if isinstance(found, Failure):
                    failures.append(found)
                    continue
                images, means = found
                tally.moments.add(means)
                if reactions:
                    reactions.add(means, np.array(images))
        dna = tally.dna(self._extractor.numerics, len(failures))
        exemplars = reactions.named(keep, self._spec, names) if keep and reactions else None
        partial = Partial(dna, (key,), tuple(sorted(failures)), exemplars)
        partial.dna.check(f"shard {shard.index}")
        if partial.candidates != len(shard.members):
            raise ConservationError(
                f"shard {shard.index}: {partial.dna.images} counted and {len(failures)} failed of "
                f"{len(shard.members)} candidates"
            )
        return partial

    def make(self, shard: Shard, key: str, *, isolated: bool) -> Made:
        partial = self.count(shard, key, isolated=isolated)
        return Made(partial.encode(), partial.dna.images, len(partial.failures))

    def close(self) -> None:
        self._stream.close()

    def _observe(self, pixels: NDArray[np.float32], tally: _Tally) -> Floats:
        """(B, neurons) spatial means of a micro-batch, its activations counted on the way."""
        means = np.empty((len(pixels), self._spec.neurons))
        counts = tally.of_this_thread()

        def visit(index: int, x: torch.Tensor) -> None:
            means[:, tally.slices[index]] = counts[index].add(x)

        self._extractor.observe(pixels, visit)
        return means


def _order(names: Sequence[tuple[str, str]]) -> Ints:
    """Of each its place among all of them sorted."""
    order = np.empty(len(names), np.int64)
    order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return order


class _Tally:
    """What one shard has counted: integers by thread, means in the order of the images."""

    def __init__(self, spec: Spec, ranges: Ranges, *, layerwise: bool) -> None:
        self._spec = spec
        self._ranges = ranges
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[list[_LayerTally]] = []
        self.moments = Moments([tap.neurons for tap in spec.taps], layerwise=layerwise)
        self.slices = spec.slices

    def of_this_thread(self) -> list[_LayerTally]:
        mine: list[_LayerTally] | None = getattr(self._local, "counts", None)
        if mine is None:
            mine = self._local.counts = self._new()
            with self._lock:
                self._all.append(mine)
        return mine

    def _new(self) -> list[_LayerTally]:
        return [
            _LayerTally(self._ranges.low[s], self._ranges.high[s], self._spec.bins)
            for s in self.slices
        ]

    def dna(self, numerics: Numerics, failed: int) -> DNA:
        first, *others = self._all or [self._new()]
        for mine in others:
            for layer, other in zip(first, mine, strict=True):
                layer.counts.merge(other.counts)
        layers = [layer.counts for layer in first]
        table = np.concatenate([layer.table for layer in layers])
        bins = self._spec.bins
        outside = {"underflow": UNDERFLOW, "overflow": OVERFLOW, "nonfinite": NONFINITE}
        ints: dict[str, Any] = {name: table[:, bins + at].copy() for name, at in outside.items()}
        return replace(
            DNA.empty(self._spec, self._ranges),
            images=self.moments.images,
            failed=failed,
            counts=np.ascontiguousarray(table[:, :bins]),
            **ints,
            # Adding zero makes -0.0 into 0.0: which a minimum keeps is a matter of order.
            min=np.concatenate([layer.minimum for layer in layers]) + np.float32(0),
            max=np.concatenate([layer.maximum for layer in layers]) + np.float32(0),
            mean=self.moments.mean,
            m2=self.moments.m2,
            scatter=self.moments.scatter,
            numerics=((numerics, self.moments.images),) if self.moments.images else (),
        )


class _LayerTally:
    """One layer's counts of one thread, by the kernel of the device the activations are on."""

    def __init__(self, low: Floats, high: Floats, bins: int) -> None:
        self.counts = LayerCounts(low, high, bins)

    def add(self, x: torch.Tensor) -> Floats:
        if x.device.type == "cpu":
            return self.counts.add(x.numpy())
        table, low, high, means = count_torch(
            x, self.counts.low, self.counts.high, self.counts.bins
        )
        self.counts.add_counted(table.cpu().numpy(), low.cpu().numpy(), high.cpu().numpy())
        return means.cpu().numpy()


# One shard, as a worker is given it.


@dataclass(frozen=True)
class Recipe:
    """What a worker loads before it can count; or rank, where there is a `target`. No secrets.

    Jobs of equal recipes share it, wherever the ranges lie.
    """

    spec: Spec
    network: Network
    ranges_uri: str
    resources: Resources
    products: tuple[str, ...] = PRODUCTS
    target: Target | None = None

    @property
    def device(self) -> str:
        return device_kind(self.resources)


@dataclass(frozen=True)
class ShardJob:
    """Where a dataset's shards are listed, and where their partials go."""

    recipe: Recipe
    manifest_uri: str
    work_uri: str


def device_kind(resources: Resources) -> str:
    return "cuda" if resources.gpus_per_worker > 0 else "cpu"


@dataclass(frozen=True)
class Receipt:
    """What became of a shard. `error`: why it could not be counted this time, else empty.

    `transient`: whether the same command may succeed later. `changed`: the source did, since it was
    listed.
    """

    manifest_uri: str
    index: int
    images: int = 0
    failures: int = 0
    seconds: float = 0.0
    error: str = ""
    transient: bool = False
    changed: bool = False


def partial_uri(work_uri: str, key: str) -> str:
    return storage.join(work_uri, "partials", f"{key}.parquet")


class Worker:
    """Counts or ranks shards of any job, each extractor loaded once; several at a time if asked."""

    def __init__(self) -> None:
        self._makers: dict[Recipe, Counter | Ranker] = {}
        self._lock = threading.Lock()

    def run(self, job: ShardJob, index: int) -> Receipt:
        """Commit the shard's partial, or its ranks, unless that is done already.

        What only concerns this attempt (storage that does not answer, a source that changed) is
        returned in the receipt, so that other shards go on; a defect of ours raises.
        """
        started = monotonic()
        try:
            with storage.open_random(job.manifest_uri) as file:
                shard = read_shard(file, index, job.manifest_uri)
            key = shard.key(job.recipe.spec.digest, job.recipe.products)
            uri = partial_uri(job.work_uri, key)
            if storage.exists(uri):
                return Receipt(job.manifest_uri, index)
            attempt = _begin_attempt(job.work_uri, key)
            try:
                isolated = attempt >= ISOLATE_FROM_ATTEMPT
                made = self._maker(job.recipe).make(shard, key, isolated=isolated)
                storage.create(uri, made.data)
            finally:
                storage.delete(_note_uri(job.work_uri, key, attempt))
            for dead in range(1, attempt):
                storage.delete(_note_uri(job.work_uri, key, dead))
        except ConservationError:
            raise
        except VdnaError as error:
            message = f"{type(error).__name__}: {error}"
            return Receipt(
                job.manifest_uri,
                index,
                seconds=monotonic() - started,
                error=message,
                transient=isinstance(error, TransientError | SourceError),
                changed=isinstance(error, SourceError),
            )
        return Receipt(
            job.manifest_uri,
            index,
            made.images,
            made.failures,
            monotonic() - started,
        )

    def _maker(self, recipe: Recipe) -> Counter | Ranker:
        one = replace(recipe, ranges_uri="")  # wherever they lie, they are those of the spec
        with self._lock:
            if one not in self._makers:
                self._makers[one] = _load(recipe)
            return self._makers[one]

    def close(self) -> None:
        for maker in self._makers.values():
            maker.close()


def _load(recipe: Recipe) -> Counter | Ranker:
    spec = recipe.spec
    extractor = Extractor(recipe.network, spec.precision, recipe.device)
    if spec.bf16_numerics not in (None, extractor.numerics):
        raise SpecMismatch(
            f"in bf16 the numerics are part of the spec: it states {spec.bf16_numerics}, this "
            f"worker has {extractor.numerics}"
        )
    ranges, _ = decode_ranges(storage.read(recipe.ranges_uri), recipe.ranges_uri)
    if ranges.digest != spec.ranges_digest:
        raise CorruptFile(f"{recipe.ranges_uri} holds ranges {ranges.digest}")
    if recipe.target is not None:
        if recipe.target.numerics != extractor.numerics:
            raise SpecMismatch(
                f"images are ranked under {recipe.target.numerics}, as the driver has them; this "
                f"worker has {extractor.numerics}. Give both the same libraries"
            )
        return Ranker(extractor, spec, ranges, recipe.target, recipe.resources)
    return Counter(extractor, spec, ranges, recipe.resources, recipe.products)


def _begin_attempt(work_uri: str, key: str) -> int:
    """1 plus the workers that took the shard and neither finished nor gave it up; it is noted.

    A worker that dies leaves its note behind, and no other trace; without it, one that a bad image
    kills would be restarted for ever. The notes go when the shard is committed.
    """
    own = {"host": socket.gethostname(), "pid": os.getpid(), "nonce": secrets.token_hex(8)}
    text = json.dumps(own).encode()
    attempt = 1
    while not storage.create(_note_uri(work_uri, key, attempt), text):
        attempt += 1
    return attempt


def _note_uri(work_uri: str, key: str, attempt: int) -> str:
    return storage.join(work_uri, "attempts", f"{key}-{attempt}.json")
