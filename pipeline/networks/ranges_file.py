"""Writes and reads files of ranges, and has those that come with the package.

    >>> ranges, metadata = decode_ranges(data, "ranges.parquet")             # doctest: +SKIP

`vdna calibrate` measures a range, then widens it by 1.2 about its centre.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, cast

import pyarrow as pa

from pipeline.dna import FileKind, Floats, Ranges, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, UsageError
from pipeline.networks.network import Network

_RANGES = FileKind("ranges")

_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("neuron", pa.int32()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)

WIDENING = 1.2
"""How many times as wide a measured range becomes."""


def widen_ranges(ranges: Ranges, factor: float = WIDENING) -> Ranges:
    """Widens each range about its centre.

    Args:
        ranges: The ranges that were measured.
        factor: How many times as wide they become.

    Returns:
        The wider ranges.
    """
    centre = (ranges.low + ranges.high) / 2
    half = (ranges.high - ranges.low) / 2 * factor
    return Ranges(ranges.taps, centre - half, centre + half)


def encode_ranges(ranges: Ranges, network: Network, **provenance: object) -> bytes:
    """Encodes ranges as a Parquet file with the columns `layer`, `neuron`, `low` and `high`.

    Args:
        ranges: The ranges.
        network: The network that they are of.
        **provenance: Where they come from, for the metadata.

    Returns:
        The file.
    """
    table = pa.table(
        {
            "layer": [layer for layer, neurons in ranges.taps for _ in range(neurons)],
            "neuron": [i for _, n in ranges.taps for i in range(n)],
            "low": ranges.low,
            "high": ranges.high,
        },
        schema=_SCHEMA,
    )
    metadata = {
        "digest": ranges.digest,
        "extractor": network.name,
        "weights_sha256": network.weights_sha256,
        **provenance,
    }
    return encode_sealed(_RANGES, metadata, [table])


def decode_ranges(data: bytes, name: str) -> tuple[Ranges, dict[str, Any]]:
    """Decodes a file of ranges.

    Args:
        data: The file.
        name: Its name, for messages.

    Returns:
        The ranges, and the metadata.

    Raises:
        CorruptFile: If the file is torn, or its rows are not those of the digest that it states.
    """
    file = SealedFile(data, _RANGES, name)
    table, metadata = file.read(_SCHEMA), file.metadata
    layers, neurons = table["layer"].to_pylist(), table["neuron"].to_pylist()
    low, high = table["low"].to_numpy(), table["high"].to_numpy()
    with corrupt_if_unreadable(f"{name}: torn, or not a file of ranges"):
        stated = metadata["digest"]
    taps: dict[str, int] = {}
    for layer, neuron in zip(layers, neurons, strict=True):
        if neuron != taps.get(layer, 0):
            raise CorruptFile(f"{name}: neuron {neuron} of layer {layer} is out of place")
        taps[layer] = neuron + 1
    ranges = Ranges(tuple(taps.items()), cast(Floats, low), cast(Floats, high))
    if ranges.digest != stated:
        raise CorruptFile(f"{name}: states digest {stated}, its rows have {ranges.digest}")
    return ranges, metadata


def _asset(extractor: str) -> Traversable:
    return files("pipeline.networks").joinpath("assets", f"{extractor}.ranges.parquet")


def has_embedded_ranges(extractor: str) -> bool:
    """Tells whether ranges of a network come with this package."""
    return _asset(extractor).is_file()


def embedded_ranges(extractor: str) -> tuple[Ranges, dict[str, Any]]:
    """Returns the ranges that come with this package, and their metadata.

    Args:
        extractor: The name of the network.

    Returns:
        The ranges, and the metadata of their file.

    Raises:
        UsageError: If none come with this network.
    """
    resource = _asset(extractor)
    if not resource.is_file():
        raise UsageError(f"no ranges come with {extractor}; measure some with `vdna calibrate`")
    return decode_ranges(resource.read_bytes(), resource.name)
