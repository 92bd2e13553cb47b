"""Measures what a worker spends on images and shards, and what the sums of partials take."""

from __future__ import annotations

import resource
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import measure

SHARDS = (1, 2, 4, 8, 8 + measure.part_of(56), 64 + measure.part_of(256))
"""Images of the shards that are counted."""

PASSES = 1 + measure.part_of(30)
"""How often the network sees a micro-batch of empty images."""

ROUNDS = 1 + measure.part_of(20)
"""How often a partial is added and encoded, and a small shard is counted."""

DRAWN = (4096, 2**16, 2**20, 2**25, 2**30)
"""Images of partials that are drawn from the distributions of the largest of these shards."""

SIDES = (500, 400)


def cpu() -> float:
    """Seconds of CPU time that this process has taken."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident() -> int:
    return measure._status()["VmRSS"]


def photographs(folder: Path, count: int) -> Path:
    """Writes JPEG files of 500 x 400, of the demo's photographs and their mirror images."""
    from PIL import Image, ImageOps

    from pipeline.sources import write_datasets

    originals = sorted(write_datasets(folder / "demo")["photos/original"].iterdir())
    made = folder / "photographs"
    made.mkdir()
    for number in range(count):
        image = Image.open(originals[number % len(originals)]).convert("RGB").resize(SIDES)
        turned = ImageOps.mirror(image) if number // len(originals) % 2 else image
        turned.save(made / f"{number:06d}.jpg", quality=90)
    return made


def counting(folder: str) -> dict[str, Any]:
    """Counts shards on one core, and adds up and composes what they make."""
    from benchmarks.gpu import decoding
    from pipeline import storage
    from pipeline.building import Request, make_spec
    from pipeline.building.counted_way import products_of
    from pipeline.counting import (
        Recipe,
        ShardJob,
        Worker,
        choose_backend,
        compose,
        partial_uri,
        plan_folds,
    )
    from pipeline.counting.micro_batch import MICRO_BATCH
    from pipeline.dna import EXEMPLAR_COLUMN, Partial
    from pipeline.networks import describe, encode_ranges, find_ranges
    from pipeline.sources import Entries, list_source, plan
    from pipeline.sources.entry import ShardHead
    from pipeline.sources.manifest import ManifestWriter
    from pipeline.spec import FOLDS, Resources

    with tempfile.TemporaryDirectory() as scratch:
        images = Path(folder) if folder else photographs(Path(scratch), sum(SHARDS))
        request = Request("x", str(images), limit=sum(SHARDS))
        network = describe("efficientnet_lite0")
        ranges, provenance = find_ranges(network, None, {})
        root = f"file://{scratch}"
        storage.create(f"{root}/ranges", encode_ranges(ranges, network, **provenance))
        spec = make_spec(request, network, ranges.digest, "cpu")
        products = products_of(request, network, None)
        resources = Resources(workers=0, threads=1)
        backend = choose_backend(resources.backend, network, "fp32", "cpu").backend
        recipe = Recipe(spec, network, f"{root}/ranges", resources, products, backend=backend)
        whole = plan(list_source(str(images)), shard_images=sum(SHARDS), limit=sum(SHARDS))
        every = pa.concat_tables(table for _, table in whole.tables())
        if every.num_rows < sum(SHARDS):
            raise ValueError(f"{images} has {every.num_rows} images; {sum(SHARDS)} are counted")
        with ManifestWriter(Entries(f"{root}/entries")) as writer:
            for fold, count in enumerate(SHARDS):
                writer.add(fold, every.slice(sum(SHARDS[:fold]), count))
        manifest = writer.manifest(sum(SHARDS))
        storage.create(f"{root}/manifest", manifest.data)
        job = ShardJob(recipe, f"{root}/manifest", f"{root}/work", f"{root}/entries")
        worker = Worker()
        worker.run(replace(job, work_uri=f"{root}/warm"), 0)  # loads the network

        def seconds(index: int, rounds: int) -> float:
            """What a shard takes, of which the least of some rounds counts."""
            places = iter([job.work_uri, *(f"{root}/again-{at}" for at in range(1, rounds))])

            def count() -> None:
                receipt = worker.run(replace(job, work_uri=next(places)), index)
                if receipt.error:
                    raise ValueError(receipt.error)

            return least(count, rounds)

        spent = [
            seconds(index, ROUNDS if number <= MICRO_BATCH["cpu"] else 1)
            for index, number in enumerate(SHARDS)
        ]
        worker.close()
        forward = forward_seconds(network, backend)
        files = [
            storage.read(partial_uri(job.work_uri, name))
            for name in manifest.keys(spec.digest, products)
        ]
        largest = Partial.decode(files[-1], "largest")
        partials = [Partial.decode(data, "partial") for data in files]
        partials += [drawn(largest, count) for count in DRAWN]
        result: dict[str, Any] = {
            "forward_seconds": forward,
            "partial_bytes": [(p.dna.images, size_of_file(p)) for p in partials],
            "dna_bytes": [(p.dna.images, size_of_file(p, exemplars=False)) for p in partials],
            **adding(largest),
        }
        each = (spent[-1] - spent[-2]) / (SHARDS[-1] - SHARDS[-2])
        decoded = decoding(measure.part_of(4), Path(scratch), hashed=True)
        for way, part in (("for_gpu", "decode_for_gpu"), ("resized", "decode_for_cpu")):
            result[part] = [
                (np.prod([*map(int, size.split("x"))]) / 1e6, 1 / rates[way])
                for size, rates in decoded.items()
            ]
        result["network_seconds"] = each - result["decode_for_cpu"][0][1]
        # Of shards that fill no more than a micro-batch, as their images take the least time.
        size = MICRO_BATCH["cpu"]
        few = [
            took - count * each - (size - count) * forward
            for took, count in zip(spent, SHARDS, strict=True)
            if count <= size
        ]
        result["shard_seconds"] = max(0.0, sum(few) / len(few))

        composed = []
        for each_fold in (1, 3):
            heads = [
                ShardHead(i, i % FOLDS, SHARDS[-1], secrets.token_hex(16))
                for i in range(each_fold * FOLDS)
            ]
            made = replace(whole, heads=tuple(heads), pairing=None)  # its images are nowhere
            for name in made.keys(spec.digest, products):
                one = largest.as_shard(name)
                storage.create(partial_uri(job.work_uri, name), one.encode())
            _, folds = plan_folds(made, job.work_uri, spec.digest, products)
            phase: dict[str, Any] = {}
            before, memory = cpu(), resident()
            with measure.phase(phase):
                made_of = compose(folds, made, products, "x")
            result["exemplar_bytes"] = len(made_of.files[EXEMPLAR_COLUMN])
            known = len(heads) * len(files[-1]) + sum(map(len, made_of.files.values()))
            composed.append((cpu() - before, phase["peak_mb"] * 1e6 - memory - known))
    more = (composed[1][0] - composed[0][0]) / (2 * FOLDS)
    result |= {
        "summand_seconds": more,
        "compose_seconds": composed[0][0] - FOLDS * more,
        "compose_bytes": max(0.0, *(extra for _, extra in composed)),
    }
    return result


def size_of_file(partial: Any, *, exemplars: bool = True) -> int:
    """Bytes of a partial without the image hashes, of which each image has as many."""
    kept = partial.exemplars if exemplars else None
    return len(replace(partial, exemplars=kept, image_hashes=None).encode())


def forward_seconds(network: Any, backend: Any) -> float:
    """What an empty image takes, as those that fill a micro-batch."""
    from pipeline.counting import Extractor

    extractor = Extractor(network, backend=backend)
    size = extractor.micro_batch
    pixels = np.zeros((size, network.height, network.width, 3), np.float32)

    def see() -> None:
        extractor.observe(pixels, lambda index, activations: None)

    return least(see, PASSES) / size


def adding(partial: Any) -> dict[str, float]:
    """Decodes, adds and encodes partials as large as those of a shard of 4,096 images."""
    from pipeline.dna import Partial

    one, other = (replace(drawn(partial, DRAWN[0]), shards=(name,)) for name in "ab")
    data = other.encode()
    total = one + other
    return {
        "add_seconds": least(lambda: one + Partial.decode(data, "other"), ROUNDS),
        "encode_seconds": least(total.encode, ROUNDS),
    }


def least(action: Callable[[], object], rounds: int) -> float:
    """The least CPU time of several rounds: other work on the same cores only adds to it."""
    spent = []
    for _ in range(rounds):
        before = cpu()
        action()
        spent.append(cpu() - before)
    return min(spent)


def drawn(partial: Any, images: int) -> Any:
    """A partial of more images, whose counts are drawn from the distributions of this one."""
    dna, rng = partial.dna, np.random.default_rng(0)
    near = np.pad(dna.counts, ((0, 0), (1, 1)))
    smooth = (near[:, :-2] + 2 * near[:, 1:-1] + near[:, 2:]).astype(float)
    outside = np.stack([dna.underflow, dna.overflow, dna.nonfinite], 1) * 4.0
    weights = np.concatenate([smooth, outside], 1)
    weights[weights.sum(1) == 0, 0] = 1.0
    table = rng.multinomial(images * dna.positions, weights / weights.sum(1, keepdims=True))
    more = {
        name: table[:, at] for name, at in (("underflow", -3), ("overflow", -2), ("nonfinite", -1))
    }
    scale = images / dna.images
    numerics = tuple((how, images) for how, _ in dna.numerics[:1])
    counts = np.ascontiguousarray(table[:, : dna.counts.shape[1]])
    made = replace(
        dna, images=images, counts=counts, m2=dna.m2 * scale, numerics=numerics, failed=0, **more
    )
    return replace(partial, dna=made, failures=(), image_hashes=None)
