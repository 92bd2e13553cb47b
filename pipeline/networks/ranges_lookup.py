"""Finds the ranges of a network: those of a file, of a digest, or its own.

>>> ranges, provenance = find_ranges(network, "activation_ranges.json", {})   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.dna import Ranges
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from pipeline.networks.network import Network
from pipeline.networks.ranges_file import decode_ranges, embedded_ranges, has_embedded_ranges
from pipeline.networks.reference_networks import REFERENCE_REPO
from pipeline.networks.reference_ranges import (
    REFERENCE_FILES,
    decode_reference,
    download_ranges,
    lacking_layers,
)
from pipeline.wording import option

ASSUMED = "assumed: "
"""What `weights_sha256` begins with if the weights are only known by the reference's name."""

MAX_RANGES_BYTES = 2**26
"""The largest file of ranges that is read. A million neurons take less than half of it."""

_OWN_FIELDS = frozenset({"digest", "extractor", "weights_sha256"})
"""Metadata that `encode_ranges` states itself; the rest is provenance."""


def find_ranges(
    network: Network, source: str | None, known: Mapping[str, str]
) -> tuple[Ranges, dict[str, Any]]:
    """Finds ranges for a network, with where they come from.

    Args:
        network: The network.
        source: A file or a digest. None takes the network's own ranges.
        known: Uris of ranges by their digests.

    Returns:
        The ranges of the layers that the network taps, of which a file may hold more; and their
        provenance for `encode_ranges` to state.

    Raises:
        SpecMismatch: If the ranges are of other weights, or lack a layer.
        CorruptFile: If the file is damaged.
        UsageError: If the network has no ranges of its own.
    """
    if source is None:
        name, (ranges, metadata) = f"that come with {network.name}", _own(network)
    else:
        name = known.get(source) or storage.canonical(source)
        data = storage.read(name, most=MAX_RANGES_BYTES)
        if _is_json(data):
            ranges, metadata = decode_reference(data, name, network)
        else:
            ranges, metadata = decode_ranges(data, name)
        if source in known and ranges.digest != source:
            raise CorruptFile(f"{name} should hold ranges {source}, but holds {ranges.digest}")
    if metadata["extractor"] == network.name and _names_no_weights(metadata):
        pass  # whoever gives them states that they are the network's
    elif metadata["weights_sha256"] != network.weights_sha256:
        raise SpecMismatch(
            f"the ranges {name} were measured on {metadata['extractor']} with weights "
            f"{metadata['weights_sha256']}; this build uses {network.name} with "
            f"{network.weights_sha256}. Measure some with `calibrate` and these "
            f"{option('weights')}, and give them by {option('ranges')}"
        )
    shape = tuple((tap.name, tap.neurons) for tap in network.taps)
    if not set(shape) <= set(ranges.taps):
        refusal = lacking_layers(f"the ranges {name}", network, dict(ranges.taps))
        raise refusal
    provenance = {key: value for key, value in metadata.items() if key not in _OWN_FIELDS}
    return ranges.select(shape), provenance


def _names_no_weights(metadata: Mapping[str, Any]) -> bool:
    return str(metadata["weights_sha256"]).startswith(ASSUMED)


def _own(network: Network) -> tuple[Ranges, dict[str, Any]]:
    """Returns the ranges that come with the package, or those that the reference publishes.

    Raises:
        UsageError: If the network has none of its own for these weights.
    """
    if network.name not in REFERENCE_FILES or has_embedded_ranges(network.name):
        return embedded_ranges(network.name)
    if network.weights_uri is not None:
        raise UsageError(
            f"the reference's ranges of {network.name} are of its own weights, not of "
            f"{storage.readable(network.weights_uri)}; measure some with `calibrate` and "
            f"these {option('weights')}, and give them by {option('ranges')}. If that file holds "
            "the reference's own "
            f"weights, its activation_ranges.json ({REFERENCE_FILES[network.name]} of "
            f"{REFERENCE_REPO}) may be given by {option('ranges')} instead"
        )
    path = REFERENCE_FILES[network.name]
    uri = storage.canonical(download_ranges(network.name, path))
    name = f"{REFERENCE_REPO}/{path}"
    ranges, metadata = decode_reference(storage.read(uri), name, network)
    return ranges, metadata | {"origin": f"huggingface.co/{name}"}


def _is_json(data: bytes) -> bool:
    return data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
