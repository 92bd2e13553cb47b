"""Reads and writes files of ranges: ours, those that come with the package, and the reference's.

    >>> resolve(network, "activation_ranges.json", {}).digest               # doctest: +SKIP

`vdna calibrate` measures a range, then widens it by 1.2 about its centre. The paper and its
reference widen about zero, which clips data if the minimum is above zero: (2, 5) becomes (2.4, 6).
Their files hold what was measured. They are widened about zero when they are read, so that a build
with them counts as the reference does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.dna import FileKind, Floats, Ranges, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, SpecMismatch, StorageError, UsageError
from pipeline.networks.network import Network
from pipeline.networks.reference_networks import REFERENCE_REPO

_RANGES = FileKind("ranges")

_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("neuron", pa.int32()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)

MAX_RANGES_BYTES = 2**26
"""The largest file of ranges that is read. A million neurons take less than half of it."""

WIDEN = 1.2

REFERENCE_FILES = {
    "mugs_vit_base": "Mugs/mugs_vit_base/activation_ranges.json",
    "mugs_vit_large": "Mugs/mugs_vit_large/activation_ranges.json",
    "dino_vit_base": "DINO/dino_vit_base/activation_ranges.json",
    "dino_resnet50": "DINO/dino_resnet50/activation_ranges.json",
    "rand_resnet50": "Random/rand_resnet50/activation_ranges.json",
    "clip_im_vit_b16": "CLIP/clip_im_vit_b16/activation_ranges.json",
    "inception": "Inception/inception_v3/activation_ranges.json",
    "vgg16": "VGG/vgg16/activation_ranges.json",
}
"""Where vdna 0.1.1 gets the ranges of each of its networks, in its repository on the hub."""

ASSUMED = "assumed: "
"""What `weights_sha256` begins with if the weights are only known by the reference's name."""

REFERENCE_MARGIN = 1e-8
"""What the reference adds to half of a range, so that it is not zero."""

_MAX_FLOAT32 = float(np.finfo(np.float32).max)

_OWN_FIELDS = frozenset({"digest", "extractor", "weights_sha256"})
"""Metadata that `encode` states itself; the rest is provenance."""


def widen(ranges: Ranges, factor: float = WIDEN) -> Ranges:
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


def encode(ranges: Ranges, network: Network, **provenance: object) -> bytes:
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


def decode(data: bytes, name: str) -> tuple[Ranges, dict[str, Any]]:
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


def embedded(extractor: str) -> tuple[Ranges, dict[str, Any]]:
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
    return decode(resource.read_bytes(), resource.name)


def resolve(network: Network, source: str | None, known: Mapping[str, str]) -> Ranges:
    """Finds ranges for a network.

    Args:
        network: The network.
        source: A file or a digest. None takes the network's own ranges.
        known: Uris of ranges by their digests.

    Returns:
        The ranges of the layers that the network taps; a file may hold more.

    Raises:
        SpecMismatch: If the ranges are of other weights, or lack a layer.
        CorruptFile: If the file is damaged.
        UsageError: If the network has no ranges of its own.
    """
    return find(network, source, known)[0]


def find(
    network: Network, source: str | None, known: Mapping[str, str]
) -> tuple[Ranges, dict[str, Any]]:
    """Finds ranges for a network as `resolve` does, with where they come from.

    Args:
        network: The network.
        source: A file or a digest. None takes the network's own ranges.
        known: Uris of ranges by their digests.

    Returns:
        The ranges, and their provenance for `encode` to state.

    Raises:
        SpecMismatch: If the ranges are of other weights, or lack a layer.
        CorruptFile: If the file is damaged.
        UsageError: If the network has no ranges of its own.
    """
    if source is None:
        name, (ranges, metadata) = f"of {network.name}", _own(network)
    else:
        name = known.get(source) or storage.canonical(source)
        data = storage.read(name, most=MAX_RANGES_BYTES)
        read = decode_reference(data, name, network) if _is_json(data) else decode(data, name)
        ranges, metadata = read
        if source in known and ranges.digest != source:
            raise CorruptFile(f"{name} holds ranges {ranges.digest}")
    if metadata["extractor"] == network.name and _names_no_weights(metadata):
        pass  # whoever gives them states that they are the network's
    elif metadata["weights_sha256"] != network.weights_sha256:
        raise SpecMismatch(
            f"ranges {name} are of {metadata['extractor']} with weights "
            f"{metadata['weights_sha256']}; this build uses {network.name} with "
            f"{network.weights_sha256}. Measure some with `vdna calibrate --weights …`, and give "
            "them by --ranges"
        )
    shape = tuple((tap.name, tap.neurons) for tap in network.taps)
    if not set(shape) <= set(ranges.taps):
        refusal = _lacking(f"the ranges {name}", network, dict(ranges.taps))
        raise refusal
    provenance = {key: value for key, value in metadata.items() if key not in _OWN_FIELDS}
    return ranges.select(shape), provenance


def _lacking(about: str, network: Network, held: Mapping[str, int]) -> SpecMismatch:
    """Returns the error that ranges lack layers: which ones, and how to get them."""
    wrong = [
        f"{tap.name} ({held[tap.name]} neurons there, {tap.neurons} tapped)"
        if tap.name in held
        else tap.name
        for tap in network.taps
        if held.get(tap.name) != tap.neurons
    ]
    weights = "--weights … " if network.weights_uri else ""
    return SpecMismatch(
        f"{about} lack {len(wrong)} of the {len(network.taps)} layers that are tapped of "
        f"{network.name}: {_some(wrong)}; they hold {_some(list(held)) or 'none'}. Measure some "
        f"with `vdna calibrate --extractor {network.name} {weights}--taps …`, with the same taps "
        "as here, and give them by --ranges"
    )


def _some(names: list[str]) -> str:
    """Returns up to five names. The last is among them, since taps mostly are a sequence."""
    return ", ".join(names if len(names) <= 5 else [*names[:4], "…", names[-1]])


def _names_no_weights(metadata: Mapping[str, Any]) -> bool:
    return str(metadata["weights_sha256"]).startswith(ASSUMED)


def _own(network: Network) -> tuple[Ranges, dict[str, Any]]:
    """Returns the ranges that come with the package, or those that the reference publishes.

    Raises:
        UsageError: If the network has none of its own for these weights.
    """
    if network.name not in REFERENCE_FILES or _asset(network.name).is_file():
        return embedded(network.name)
    if network.weights_uri is not None:
        raise UsageError(
            f"the reference's ranges of {network.name} are of its own weights, not of "
            f"{storage.readable(network.weights_uri)}; measure some with `vdna calibrate "
            "--weights …`, and give them by --ranges. If that file holds the reference's own "
            f"weights, its activation_ranges.json ({REFERENCE_FILES[network.name]} of "
            f"{REFERENCE_REPO}) may be given by --ranges instead"
        )
    path = REFERENCE_FILES[network.name]
    uri = storage.canonical(_from_hub(network.name, path))
    name = f"{REFERENCE_REPO}/{path}"
    ranges, metadata = decode_reference(storage.read(uri), name, network)
    return ranges, metadata | {"origin": f"huggingface.co/{name}"}


def _from_hub(name: str, path: str) -> str:
    """Downloads a file of the reference's repository, by the hub's own cache and settings.

    Returns:
        The path of the local copy.

    Raises:
        StorageError: If it cannot be had.
    """
    import huggingface_hub

    try:
        return huggingface_hub.hf_hub_download(repo_id=REFERENCE_REPO, filename=path)
    except Exception as error:  # its client raises its HTTP library's errors as they are
        why = " ".join(str(error).split())[:300]
        raise StorageError(
            f"no ranges come with {name}, and the reference's ({path} of {REFERENCE_REPO}) "
            f"could not be had from the Hugging Face hub: {type(error).__name__}: {why}. Give some "
            "by --ranges FILE, or measure some with `vdna calibrate`"
        ) from error


# The reference's files: {"mins_per_neuron": {layer: {"0": minimum, …}}, "maxs_per_neuron": …}


def _is_json(data: bytes) -> bool:
    return data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def decode_reference(data: bytes, name: str, network: Network) -> tuple[Ranges, dict[str, Any]]:
    """Reads an `activation_ranges.json` of vdna 0.1.1, and widens its ranges as the reference does.

    The file names no weights. Whoever gives it states that they are the network's, and the metadata
    says so.

    Args:
        data: The file.
        name: Its name, for messages.
        network: The network that it is taken for.

    Returns:
        The ranges, and what `decode` would return as metadata.

    Raises:
        CorruptFile: If the file contradicts itself.
        SpecMismatch: If its layers and neurons are not those that the network taps.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_distinct)
        lows, highs = content["mins_per_neuron"], content["maxs_per_neuron"]
        same = lows.keys() == highs.keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFile(
            f"{name}: torn, or not the reference's JSON of minima and maxima: {error!r}"
        ) from error
    if not same:
        odd = ", ".join(sorted(lows.keys() ^ highs.keys()))
        raise CorruptFile(f"{name}: minima and maxima are not of the same layers: {odd}")
    neurons = {tap.name: tap.neurons for tap in network.taps}
    if not neurons.keys() <= lows.keys():
        held = {layer: neurons.get(layer, 0) for layer in lows}
        refusal = _lacking(f"the ranges {name}", network, held)
        raise refusal
    low, high = [], []
    for tap in network.taps:
        minima = _column(lows[tap.name], tap.name, "minimum", name)
        maxima = _column(highs[tap.name], tap.name, "maximum", name)
        if {len(minima), len(maxima)} != {tap.neurons}:
            raise SpecMismatch(
                f"{name}: layer {tap.name} has {len(minima)} minima and {len(maxima)} maxima; "
                f"{network.name} has {tap.neurons} neurons there"
            )
        for i, (least, most) in enumerate(zip(minima, maxima, strict=True)):
            if least > most:
                raise CorruptFile(f"{name}: neuron {tap.name}[{i}] ranges from {least} to {most}")
        low += minima
        high += maxima
    taps = tuple((tap.name, tap.neurons) for tap in network.taps)
    ranges = widen_about_zero(Ranges(taps, np.array(low), np.array(high)))
    return ranges, {
        "extractor": network.name,
        "weights_sha256": network.weights_sha256,
        "assumed_weights": True,
        "reference_file_sha256": hashlib.sha256(data).hexdigest(),
        "widened": WIDEN,
        "widened_about": "zero",
    }


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return found


def _column(values: object, layer: str, what: str, name: str) -> list[float]:
    """Returns one layer's numbers in the order of its neurons; as texts, 10 comes before 2.

    Raises:
        CorruptFile: If one is missing, or is no number.
    """
    if not isinstance(values, dict):
        raise CorruptFile(f"{name}: layer {layer} holds no {what} by neuron")
    column = []
    for i in range(len(values)):
        if str(i) not in values:
            odd = next(key for key in values if key not in set(map(str, range(len(values)))))
            raise CorruptFile(f"{name}: layer {layer} has a neuron {odd!r}, and no {what} of {i}")
        value = values[str(i)]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _MAX_FLOAT32:
            raise CorruptFile(f"{name}: the {what} of neuron {layer}[{i}] is {value!r}")
        column.append(float(value))
    return column


def widen_about_zero(extremes: Ranges, factor: float = WIDEN) -> Ranges:
    """Widens ranges as vdna 0.1.1 does: both ends times a factor, the half-width 1e-8 wider.

    Low and high are set such that the rule of `pipeline.counting.histogram` finds the reference's
    centre and half-width again: to the last bit if any two floats give it, else within one unit of
    it.

    Args:
        extremes: The least and greatest activations of each neuron.
        factor: What both ends are multiplied by.

    Returns:
        The wider ranges.
    """
    low, high = extremes.low * factor, extremes.high * factor
    centre, half = (low + high) / 2, (high - low) / 2 + REFERENCE_MARGIN
    # A point has that half-width by the rule itself.
    best_low = np.where(low == high, centre, centre - half)
    best_high = np.where(low == high, centre, centre + half)
    best = np.where(low == high, 0.0, np.inf)
    steps = sorted(product(range(-2, 3), repeat=2), key=lambda s: (abs(s[0]) + abs(s[1]), s))
    for down, up in steps:
        a, b = _ulps(centre - half, down), _ulps(centre + half, up)
        off = abs((a + b) / 2 - centre) + abs((b - a) / 2 - half)
        better = off < best
        best = np.where(better, off, best)
        best_low, best_high = np.where(better, a, best_low), np.where(better, b, best_high)
    return Ranges(extremes.taps, best_low, best_high)


def _ulps(values: Floats, steps: int) -> Floats:
    for _ in range(abs(steps)):
        values = np.nextafter(values, np.inf if steps > 0 else -np.inf)
    return values
