"""Activations -> ranges, and files of ranges.

    >>> embedded("efficientnet_lite0")[0].digest                # doctest: +SKIP

A range is measured (minimum and maximum of a neuron over a diverse set of images), then widened by
1.2 about its centre. The paper and its reference widen about zero, which clips data where the
minimum is above zero: (2, 5) becomes (2.4, 6).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import images, storage
from pipeline.dna import Floats, Ranges
from pipeline.errors import BadImage, CorruptFile, SpecMismatch, UsageError
from pipeline.extractor import Extractor, Network, describe, numerics
from pipeline.manifest import Entry
from pipeline.progress import Progress
from pipeline.source import list_source
from pipeline.spec import Preprocess, available_cpus

if TYPE_CHECKING:
    import torch

FORMAT = 1
WIDEN = 1.2
CHUNK = 64


def measure(extractor: Extractor, images: Iterable[NDArray[np.float32]]) -> tuple[Ranges, int]:
    """Minimum and maximum of every neuron over prepared images (height, width, 3); and how many.

    Raises `UsageError` on no images, or a neuron without a finite activation.
    """
    taps = extractor.network.taps
    low = [np.full(tap.neurons, np.inf, np.float32) for tap in taps]
    high = [np.full(tap.neurons, -np.inf, np.float32) for tap in taps]

    def visit(index: int, x: torch.Tensor) -> None:
        values = x.cpu().numpy()
        np.minimum(low[index], values.min(axis=(0, 1)), out=low[index])
        np.maximum(high[index], values.max(axis=(0, 1)), out=high[index])

    batch: list[NDArray[np.float32]] = []
    total = 0
    for image in images:
        batch.append(image)
        total += 1
        if len(batch) == extractor.micro_batch:
            extractor.observe(np.stack(batch), visit)
            batch.clear()
    if batch:
        extractor.observe(np.stack(batch), visit)
    if not total:
        raise UsageError("ranges need at least one image")
    shape = tuple((tap.name, tap.neurons) for tap in taps)
    return Ranges(
        shape, np.concatenate(low).astype(np.float64), np.concatenate(high).astype(np.float64)
    ), total


def calibrate(
    sources: Sequence[str], extractor: str, weights: str | None, progress: Progress
) -> tuple[bytes, str, int, int]:
    """Measure over all images of the sources, in this process, and widen.

    Returns a file of ranges, their digest, and how many images were measured and could not be.
    """
    network = describe(extractor, weights)
    rule = Preprocess(network.height, network.width, network.mean, network.std)
    listings = [list_source(source) for source in sources]
    entries = sorted({entry for listing in listings for entry in listing.entries})
    failed = 0

    def read(entry: Entry) -> NDArray[np.float32] | None:
        try:
            return images.load(storage.read(entry.uri, entry.identity), rule)
        except BadImage as bad:
            progress.say(f"{storage.readable(entry.uri)} not measured: {bad}")
            return None

    def prepared() -> Iterator[NDArray[np.float32]]:
        nonlocal failed
        with ThreadPoolExecutor(available_cpus()) as pool:
            for start in range(0, len(entries), CHUNK):
                chunk = entries[start : start + CHUNK]
                before = failed
                for image in pool.map(read, chunk):
                    if image is None:
                        failed += 1
                    else:
                        yield image
                progress.advance(len(chunk), failed - before)

    progress.start(images=len(entries), shards=-(-len(entries) // CHUNK), present=0)
    measured, total = measure(Extractor(network), prepared())
    progress.finish()
    wide = widen(measured)
    how = numerics(network, "cpu").to_json()
    data = encode(wide, network, images=total, widened=WIDEN, numerics=how)
    return data, wide.digest, total, failed


def widen(ranges: Ranges, factor: float = WIDEN) -> Ranges:
    """Each range `factor` times as wide, about its centre."""
    centre = (ranges.low + ranges.high) / 2
    half = (ranges.high - ranges.low) / 2 * factor
    return Ranges(ranges.taps, centre - half, centre + half)


def encode(ranges: Ranges, network: Network, **provenance: object) -> bytes:
    """Columns `layer`, `neuron`, `low`, `high`; where they come from in the metadata."""
    table = pa.table(
        {
            "layer": [layer for layer, neurons in ranges.taps for _ in range(neurons)],
            "neuron": pa.array([i for _, n in ranges.taps for i in range(n)], pa.int32()),
            "low": ranges.low,
            "high": ranges.high,
        }
    )
    metadata = {
        "format": FORMAT,
        "kind": "ranges",
        "digest": ranges.digest,
        "extractor": network.name,
        "weights_sha256": network.weights_sha256,
        **provenance,
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"vdna": json.dumps(metadata, sort_keys=True)})
    return cast(bytes, sink.getvalue().to_pybytes())


def decode(data: bytes, name: str) -> tuple[Ranges, dict[str, Any]]:
    """Raises `CorruptFile` where the rows are not those of the digest stated."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        table = file.read()
        metadata = json.loads(file.metadata.metadata[b"vdna"])
        if (metadata["kind"], metadata["format"]) != ("ranges", FORMAT):
            raise CorruptFile(
                f"{name}: {metadata['kind']!r} of format {metadata['format']}; this version of "
                f"vdna reads ranges of format {FORMAT}"
            )
        layers, neurons = table["layer"].to_pylist(), table["neuron"].to_pylist()
        low = table["low"].to_numpy().astype(np.float64)
        high = table["high"].to_numpy().astype(np.float64)
        stated = metadata["digest"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{name}: torn, or not a file of ranges: {error}") from error
    taps: dict[str, int] = {}
    for layer, neuron in zip(layers, neurons, strict=True):
        if neuron != taps.get(layer, 0):
            raise CorruptFile(f"{name}: neuron {neuron} of layer {layer} is out of place")
        taps[layer] = neuron + 1
    ranges = Ranges(tuple(taps.items()), cast(Floats, low), cast(Floats, high))
    if ranges.digest != stated:
        raise CorruptFile(f"{name}: states digest {stated}, its rows have {ranges.digest}")
    return ranges, metadata


def embedded(extractor: str) -> tuple[Ranges, dict[str, Any]]:
    """The ranges that come with this package. Raises `UsageError` where there are none."""
    resource = files("pipeline").joinpath("assets", f"{extractor}.ranges.parquet")
    if not resource.is_file():
        raise UsageError(f"no ranges come with {extractor}; measure some with `vdna calibrate`")
    return decode(resource.read_bytes(), resource.name)


def resolve(network: Network, source: str | None, known: Mapping[str, str]) -> Ranges:
    """Ranges by file, by digest (a key of `known`, to a uri), or the network's own.

    Raises `SpecMismatch` where they are of other weights or taps.
    """
    if source is None:
        name, (ranges, metadata) = f"of {network.name}", embedded(network.name)
    else:
        name = known.get(source) or storage.canonical(source)
        ranges, metadata = decode(storage.read(name), name)
    if metadata["weights_sha256"] != network.weights_sha256:
        raise SpecMismatch(
            f"ranges {name} are of {metadata['extractor']} with weights "
            f"{metadata['weights_sha256']}; this build uses {network.name} with "
            f"{network.weights_sha256}. Measure some with `vdna calibrate --weights …`, and give "
            "them by --ranges"
        )
    shape = tuple((tap.name, tap.neurons) for tap in network.taps)
    if ranges.taps != shape:
        raise SpecMismatch(f"ranges are of layers {ranges.taps}; {network.name} taps {shape}")
    return ranges
