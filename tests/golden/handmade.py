"""Makes catalogues of hand-made DNAs: everything is real but the images and the network."""

from __future__ import annotations

import functools
import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import storage
from pipeline.building import Request, Result, build_datasets
from pipeline.catalogue import Catalogue, Version, canonical_json, footers_of
from pipeline.counting import (
    Composed,
    ShardJob,
    ShardReceipt,
    add_up,
    compose,
    partial_uri,
    plan_folds,
)
from pipeline.dna import DNA, Failure, Partial, Ranges, encode_failures
from pipeline.mapper import SerialMapper
from pipeline.networks import Network, encode_ranges
from pipeline.sources import Entries, Entry, Manifest, Shard, plan
from pipeline.spec import PRODUCTS, Spec
from tests.support.builders import RULE, random_dna, tiny_spec

SPEC, RANGES = tiny_spec()
NETWORK = Network("tiny", "ab" * 32, SPEC.taps, RULE.height, RULE.width, RULE.mean, RULE.std)
BUILT = "2026-01-01T00:00:00+00:00"


def entries(name: str, count: int, first: int = 0) -> list[Entry]:
    return [
        Entry(f"s3://bucket/{name}/{i:03d}.jpg", "", 1000 + i, f"etag-{i}")
        for i in range(first, first + count)
    ]


def hand_made(shard: Shard, spec: Spec = SPEC, ranges: Ranges = RANGES) -> Partial:
    """Makes random counts, the same for the same key; members called `bad…` are failures."""
    key = shard.key(spec.digest)
    failures = tuple(
        sorted(
            Failure(entry.uri, entry.member, "truncated", "made so")
            for entry in shard.members
            if entry.uri.rpartition("/")[2].startswith("bad")
        )
    )
    dna = random_dna(spec, ranges, len(shard.members) - len(failures), int(key[:8], 16))
    return with_failures(dna, (key,), failures)


def with_failures(dna: DNA, shards: tuple[str, ...], failures: tuple[Failure, ...]) -> Partial:
    return Partial(replace(dna, failed=len(failures)), shards, failures)


def put_partials(work: str, partials: Sequence[Partial]) -> None:
    for partial in partials:
        storage.create(partial_uri(work, partial.shards[0]), partial.encode())


def put_entries(manifest: Manifest, folder: str) -> None:
    """Stores the candidates of a manifest in a folder, as a build does."""
    for name in manifest.files:
        Entries(folder).store(name, bytes(manifest.entries.read(name)))


def read_shard(job: ShardJob, index: int) -> Shard:
    """Reads a shard as a worker does."""
    data = storage.read(job.manifest_uri)
    manifest = Manifest.decode(data, job.manifest_uri, Entries(job.entries_uri))
    return manifest.shards[index]


def reduce_all(manifest: Manifest, work: str, dataset: str, spec: Spec = SPEC) -> Composed:
    levels, folds = plan_folds(manifest, work, spec.digest, PRODUCTS)
    for level in levels:
        for node in level:
            add_up(node)
    return compose(folds, manifest, PRODUCTS, dataset)


def commit_dataset(
    catalogue: Catalogue,
    name: str,
    manifest: Manifest,
    partials: Sequence[Partial] = (),
    spec: Spec = SPEC,
    ranges: Ranges = RANGES,
) -> Version:
    """Stores a dataset version as a build does, from partials made by hand.

    Partials and sums that are stored already are taken as they are.
    """
    work = catalogue.work_uri(name, spec.digest)
    put_partials(work, partials)
    composed = reduce_all(manifest, work, name, spec)
    storage.create(catalogue.ranges_uri(ranges.digest), encode_ranges(ranges, NETWORK))
    storage.create(catalogue.spec_uri(spec.digest), canonical_json(spec.to_json()))
    files = {
        "dna": composed.files["dna"],
        "folds": composed.files["folds"],
        "failures": encode_failures(composed.failures),
        "manifests": manifest.data,
    }
    put_entries(manifest, catalogue.entries_uri)
    for kind, data in files.items():
        digest = manifest.digest if kind == "manifests" else composed.digest
        storage.create(catalogue.uri(kind, spec.digest, name, digest), data)
    version = Version(
        dna=composed.digest,
        manifest=manifest.digest,
        spec=spec.digest,
        images=composed.images,
        failed=len(composed.failures),
        products=PRODUCTS,
        sha256={kind: hashlib.sha256(data).hexdigest() for kind, data in files.items()},
        source="s3://bucket",
        built=BUILT,
        software="vdna-pipeline by hand",
        numerics=composed.numerics,
        footers=footers_of(files),
        transparent=composed.transparent,
        single_colour=composed.single_colour,
    )
    base = catalogue.head().datasets.get(name, {}).get(spec.digest)
    catalogue.put_version(name, version, base)
    return version


@functools.cache
def planned(
    name: str, count: int, first: int = 0, shard_images: int | None = None
) -> tuple[Manifest, tuple[Partial, ...]]:
    """Plans a dataset of `entries`, with its hand-made partials; the same ones are made once."""
    manifest = plan(entries(name, count, first), shard_images=shard_images)
    return manifest, tuple(hand_made(shard) for shard in manifest.shards)


def empty_catalogue() -> Catalogue:
    """Makes a catalogue in memory."""
    return Catalogue(f"memory://{uuid.uuid4().hex}")


def contents(catalogue: Catalogue) -> dict[str, bytes]:
    """Returns the objects of a catalogue, by their path in it."""
    root = catalogue.root
    return {item.uri.removeprefix(root): storage.read(item.uri) for item in storage.walk(root)}


def catalogue_of(objects: Mapping[str, bytes]) -> Catalogue:
    """Makes a catalogue in memory of `contents`: a copy that a test may change."""
    catalogue = empty_catalogue()
    for path, data in objects.items():
        storage.create(catalogue.root + path, data)
    return catalogue


class HandMade(SerialMapper):
    """An engine that makes partials by hand; it dies after `stop_after` shards, where given."""

    shard_workers = 1

    def __init__(self, stop_after: int | None = None) -> None:
        self._left = stop_after

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        for job, index in work:
            if self._left == 0:
                raise InterruptedError("the engine died")
            self._left = None if self._left is None else self._left - 1
            shard = read_shard(job, index)
            partial = hand_made(shard)
            put_partials(job.work_uri, [partial])
            read = partial.dna.images, len(partial.failures)
            size = sum(entry.size for entry in shard.members)
            yield ShardReceipt(job.manifest_uri, index, *read, read_bytes=size)


class Place:
    """A folder of files called photos, and a catalogue that the real `build` fills by hand.

    `pipeline.building.shared_lookups.describe` must give `NETWORK` meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.catalogue = Catalogue(str(folder / "catalogue"))
        (folder / "tiny.ranges.parquet").write_bytes(encode_ranges(RANGES, NETWORK))

    def photos(self, name: str, count: int, bad: int = 0) -> None:
        source = self.folder / name
        source.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            path = source / f"{'bad' if i < bad else 'photo'}-{i:03d}.jpg"
            if not path.exists():
                path.write_bytes(b"photo %d" % i)

    def build(
        self,
        name: str,
        engine: HandMade | None = None,
        shard_images: int = 64,
        by: str | None = None,
    ) -> Result:
        request = Request(
            name,
            str(self.folder / name),
            extractor=NETWORK.name,
            bins=SPEC.bins,
            by=by,
            ranges=str(self.folder / "tiny.ranges.parquet"),
            max_failures=100,
            shard_images=shard_images,
            exemplars=0,
            image_hashes=False,
        )
        (result,) = build_datasets(self.catalogue, [request], engine or HandMade())
        return result


class Original:
    """A place that is filled once, and that each test finds as it was then.

    The files stay at the same uris, for manifests name them.
    """

    def __init__(self, folder: Path, fill: Callable[[Place], object]) -> None:
        self._now, self._kept = folder / "now", folder / "kept"
        self._now.mkdir()
        fill(Place(self._now))
        shutil.copytree(self._now, self._kept)

    def again(self) -> Place:
        """Puts all files back, with their times, and returns the place."""
        shutil.rmtree(self._now)
        shutil.copytree(self._kept, self._now)
        return Place(self._now)
