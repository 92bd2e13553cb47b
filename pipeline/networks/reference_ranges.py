"""Reads the ranges that the reference, vdna 0.1.1, publishes for its networks.

The paper and its reference widen ranges about zero, which clips data if the minimum is above zero:
(2, 5) becomes (2.4, 6). Their files hold what was measured:

    {"mins_per_neuron": {layer: {"0": minimum, …}}, "maxs_per_neuron": …}

They are widened about zero when they are read, so that a build with them counts as the reference
does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from pipeline.dna import Floats, Ranges
from pipeline.errors import CorruptFile, SpecMismatch, StorageError
from pipeline.networks.network import Network
from pipeline.networks.ranges_file import WIDENING
from pipeline.networks.reference_networks import REFERENCE_REPO
from pipeline.wording import option

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

REFERENCE_MARGIN = 1e-8
"""What the reference adds to half of a range, so that it is not zero."""

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


def download_ranges(name: str, path: str) -> str:
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
            f"by {option('ranges')}, or measure some with `calibrate`"
        ) from error


def decode_reference(data: bytes, name: str, network: Network) -> tuple[Ranges, dict[str, Any]]:
    """Reads an `activation_ranges.json` of vdna 0.1.1, and widens its ranges as the reference does.

    The file names no weights. Whoever gives it states that they are the network's, and the metadata
    says so.

    Args:
        data: The file.
        name: Its name, for messages.
        network: The network that it is taken for.

    Returns:
        The ranges, and what `decode_ranges` would return as metadata.

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
        raise CorruptFile(f"{name}: these layers have only minima, or only maxima: {odd}")
    neurons = {tap.name: tap.neurons for tap in network.taps}
    if not neurons.keys() <= lows.keys():
        held = {layer: neurons.get(layer, 0) for layer in lows}
        refusal = lacking_layers(f"the ranges {name}", network, held)
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
        "widened": WIDENING,
        "widened_about": "zero",
    }


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def _column(values: object, layer: str, what: str, name: str) -> list[float]:
    """Returns one layer's numbers in the order of its neurons; as texts, 10 comes before 2.

    Raises:
        CorruptFile: If one is missing, or is no number.
    """
    if not isinstance(values, dict):
        raise CorruptFile(f"{name}: layer {layer} does not state the {what} of each neuron")
    column = []
    for i in range(len(values)):
        if str(i) not in values:
            odd = next(key for key in values if key not in set(map(str, range(len(values)))))
            raise CorruptFile(
                f"{name}: layer {layer} has a neuron {odd!r}, but no {what} of neuron {i}"
            )
        value = values[str(i)]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _MAX_FLOAT32:
            raise CorruptFile(
                f"{name}: the {what} of neuron {layer}[{i}] is {value!r}; it must be a "
                "finite number"
            )
        column.append(float(value))
    return column


def lacking_layers(about: str, network: Network, held: Mapping[str, int]) -> SpecMismatch:
    """Returns the error that ranges lack layers: which ones, and how to get them."""
    wrong = [
        f"{tap.name} ({held[tap.name]} neurons there, {tap.neurons} tapped)"
        if tap.name in held
        else tap.name
        for tap in network.taps
        if held.get(tap.name) != tap.neurons
    ]
    weights = f", {option('weights')}" if network.weights_uri else ""
    return SpecMismatch(
        f"{about} lack {len(wrong)} of the {len(network.taps)} layers that are tapped of "
        f"{network.name}: {_some(wrong)}; they hold {_some(list(held)) or 'none'}. Measure some "
        f"with `calibrate`, with the same {option('extractor')}{weights} and {option('taps')} "
        f"as here, and give them by {option('ranges')}"
    )


def _some(names: list[str]) -> str:
    """Returns up to five names. The last is among them, since taps mostly are a sequence."""
    return ", ".join(names if len(names) <= 5 else [*names[:4], "…", names[-1]])


def widen_about_zero(extremes: Ranges, factor: float = WIDENING) -> Ranges:
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
