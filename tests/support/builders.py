"""Makes small specs, DNAs and images for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.catalogue import Version
from pipeline.catalogue.commit import FILES, Footer
from pipeline.dna import DNA, DnaFile, Ranges, SealedFile, encode_sealed
from pipeline.sources import MANIFEST, Manifest, Shard
from pipeline.sources.entries_file import entries_of
from pipeline.spec import Numerics, Preprocess, Spec, Tap, digest_of

NUMERICS = Numerics("cpu", False, True, 8, 1, (("numpy", "2"), ("torch", "2.6")))
OTHER_NUMERICS = Numerics("cpu", True, True, 8, 1, (("numpy", "2"), ("torch", "2.6")))
RULE = Preprocess(8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def tiny_ranges(taps: tuple[Tap, ...]) -> Ranges:
    neurons = sum(tap.neurons for tap in taps)
    shape = tuple((tap.name, tap.neurons) for tap in taps)
    return Ranges(shape, np.linspace(-2, -1, neurons), np.linspace(1, 3, neurons))


def tiny_spec(bins: int = 5, taps: tuple[Tap, ...] | None = None) -> tuple[Spec, Ranges]:
    taps = taps or (Tap("stem", 3, 4), Tap("head", 2, 1))
    ranges = tiny_ranges(taps)
    return Spec("tiny", "ab" * 32, taps, RULE, ranges.digest, bins), ranges


def decode_dna(
    data: bytes, name: str, layers: Sequence[str] | None = None
) -> tuple[DNA, dict[str, Any]]:
    """A DNA and its metadata, read from the bytes of its file."""
    file = DnaFile(data, "dna", name)
    return file.read(layers), file.metadata


def random_dna(
    spec: Spec, ranges: Ranges, images: int, seed: int, numerics: Numerics = NUMERICS
) -> DNA:
    """Makes a DNA that obeys conservation: every activation is in some bin, or outside."""
    rng = np.random.default_rng(seed)
    empty = DNA.empty(spec, ranges)
    if images == 0:
        return empty
    per_neuron = images * empty.positions
    table = np.stack(
        [
            np.bincount(rng.integers(0, spec.bins + 3, n), minlength=spec.bins + 3)
            for n in per_neuron
        ]
    ).astype(np.int64)
    low = rng.normal(-1, 1, len(table)).astype(np.float32)
    return DNA(
        spec,
        spec.layers,
        images=images,
        failed=0,
        counts=table[:, : spec.bins].copy(),
        underflow=table[:, -3].copy(),
        overflow=table[:, -2].copy(),
        nonfinite=table[:, -1].copy(),
        low=ranges.low,
        high=ranges.high,
        min=low,
        max=low + rng.random(len(table), np.float32),
        mean=rng.normal(0, 1, len(table)),
        m2=rng.random(len(table)) * images,
        numerics=((numerics, images),),
        transparent=images // 2,
        single_colour=images // 3,
    )


def peak_mb() -> float:
    """Returns this process's peak memory in MB; `getrusage` would include the parent's."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def all_shards(manifest: Manifest) -> list[Shard]:
    """The shards in their order; each file is opened once, not once for a shard."""
    read = {
        head.index: Shard(
            head.index, head.fold, tuple(entries_of(rows)), head.cells, head.origins, head.runs
        )
        for head, rows in manifest.tables()
    }
    return [read[head.index] for head in manifest.heads]


def sealed(body: dict[str, Any]) -> bytes:
    """Returns a commit's JSON, with the checksum of its present content."""
    body = {name: value for name, value in body.items() if name != "checksum"}
    return json.dumps(body | {"checksum": digest_of(body)}).encode()


def with_digest(manifest: Manifest, digest: str) -> bytes:
    """Returns the manifest's file, with a digest that is not its own."""
    file = SealedFile(manifest.data, MANIFEST, "a manifest")
    metadata = file.metadata | {"digest": digest}
    return encode_sealed(MANIFEST, metadata, [file.read()])


def with_row_groups(data: bytes, tables: Sequence[pa.Table]) -> bytes:
    """Returns the file with other row groups under unchanged metadata."""
    stated = pq.read_metadata(io.BytesIO(data)).metadata[b"vdna"]
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, tables[0].schema, store_schema=False) as writer:
        for table in tables:
            writer.write_table(table)
        writer.add_key_value_metadata({"vdna": stated})
    return sink.getvalue()


def version_without_files(dna: str, spec: str = "s1") -> Version:
    """Returns a version as a commit states it; none of its files is there."""
    return Version(
        dna=dna,
        manifest="m",
        spec=spec,
        images=3,
        failed=0,
        products=("histogram",),
        sha256=dict.fromkeys(FILES, "x"),
        footers=dict.fromkeys(("dna", "folds"), Footer(0, 1, "x")),
        source="src",
        built="2026-01-01T00:00:00+00:00",
        software="vdna",
        numerics=(),
    )


def same_counts(a: DNA, b: DNA) -> bool:
    """Compares the numbers of images and all counts and extremes."""
    names = ("counts", "underflow", "overflow", "nonfinite", "min", "max")
    return a.images == b.images and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


def same_counts_and_failures(a: DNA, b: DNA) -> bool:
    return a.failed == b.failed and same_counts(a, b)


def photo(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Makes smooth colour noise: different for every seed, cheap, and like a photo to a network."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed: int, width: int = 96, height: int = 72) -> bytes:
    data = io.BytesIO()
    photo(seed, width, height).save(data, "JPEG", quality=90)
    return data.getvalue()


def write_photos(folder: Path, count: int, first_seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(first_seed, first_seed + count):
        paths.append(folder / f"photo-{seed:04d}.jpg")
        photo(seed).save(paths[-1], quality=90)
    return paths
