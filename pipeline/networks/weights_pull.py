"""Fetches networks' own weights before they are needed, into this machine's caches or a store.

>>> pull_weights("timm:resnet50.a1_in1k", "s3://bucket/weights").uri         # doctest: +SKIP
's3://bucket/weights/timm-resnet50.a1_in1k-1b5f0d4c9e2a7f38.safetensors'
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.networks.registry import architecture
from pipeline.networks.weights import fetch, read_weights


@dataclass(frozen=True)
class PulledWeights:
    """Weights that are at hand now.

    Attributes:
        network: The name of the network.
        uri: Where they are, as `--weights` takes it.
        sha256: Of the file's bytes, hex. A spec states it.
        bytes: The size of the file.
    """

    network: str
    uri: str
    sha256: str
    bytes: int


def pull_weights(network: str, to: str | None = None) -> PulledWeights:
    """Fetches a network's own weights.

    Args:
        network: The name of the network.
        to: A folder, or a prefix of a store, for a copy whose name holds the sha256. None leaves
            the file in the cache where builds on this machine look for it.

    Returns:
        Where the weights are.

    Raises:
        UsageError: The network is unknown, or has no weights of its own.
        StorageError: The weights are refused, or another file has the name of the copy.
        TransientError: The weights cannot be fetched now.
    """
    uri = fetch(architecture(network).source, network)
    data = read_weights(uri)
    sha256 = hashlib.sha256(data).hexdigest()
    if to is not None:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", network)
        name = f"{plain}-{sha256[:16]}{PurePosixPath(uri).suffix}"
        uri = storage.join(storage.canonical(to), name)
        if not storage.create(uri, data) and storage.read(uri) != data:
            raise StorageError(
                f"{storage.readable(uri)} has other bytes than the weights of {network}, whose "
                f"sha256 is {sha256}; remove it, and pull them again"
            )
    return PulledWeights(network, uri, sha256, len(data))
