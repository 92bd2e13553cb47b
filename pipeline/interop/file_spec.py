"""Finds the spec of a file of the reference package, which names neither weights nor ranges.

>>> assume_spec(read_file("old/cityscapes.npz")).spec.extractor      # doctest: +SKIP
'mugs_vit_base'

A spec is either assumed from the names in the file, or stated by the user and checked against the
file, or stated by the file itself if it was exported from here.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.dna import Ranges
from pipeline.errors import CorruptFile, UsageError
from pipeline.interop.network_shapes import NETWORKS, UNKNOWN_NETWORK, ReferenceNetwork
from pipeline.interop.reading import ReferenceFile
from pipeline.interop.reference_metadata import read_json
from pipeline.networks import ASSUMED, BUILT_IN
from pipeline.spec import COLOUR_RULE, DEFAULT_BINS, Preprocess, Spec, Tap
from pipeline.wording import option

MAX_ACTIVATIONS = 2**61
"""The most activations of a neuron; twice as many are still an int64."""

_DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class FileSpec:
    """The spec of a file.

    Attributes:
        spec: The spec.
        ranges: Its ranges; None if they are not known.
        notes: What a reader should know about it.
    """

    spec: Spec
    ranges: Ranges | None
    notes: tuple[str, ...] = ()

    @property
    def assumed(self) -> bool:
        """Whether weights and ranges are only assumed."""
        return _is_assumed(self.spec)


def _is_assumed(spec: Spec) -> bool:
    return spec.weights_sha256.startswith(ASSUMED)


def assume_spec(file: ReferenceFile, ranges: Ranges | None = None) -> FileSpec:
    """Assumes the spec that the names in a file stand for in that version of the reference.

    Args:
        file: The file.
        ranges: Its ranges, if the user knows them.

    Returns:
        The spec. Its weights, and ranges that are not known, are named for the network and not by
        digests, so that it compares with others of the same origin only.

    Raises:
        UsageError: If the positions of a layer are not known, the resize has no spec, or the ranges
            are of other neurons.
    """
    network = NETWORKS.get(file.extractor, UNKNOWN_NETWORK)
    notes = []
    if file.resize != "clean":
        raise UsageError(
            f"{file.name}: data_settings.resize_mode is {file.resize!r}; a spec can be assumed for "
            "'clean' only, which is what make_vdna uses"
        )
    if network is UNKNOWN_NETWORK:
        notes.append(
            f"{file.extractor} is not a network of the reference: its input's size and "
            "normalisation are not known, and its positions are read off the histograms"
        )
    if file.kind != "histogram":
        notes.append(f"the file has no histograms; its spec says {DEFAULT_BINS} bins")
    what = f"{ASSUMED}{file.extractor} of {file.software}"
    if file.crop == "random":
        what += ", random crops"
        notes.append("made with random crops, which are not repeatable")
    taps = tuple(
        Tap(layer, neurons, network.positions.get(layer) or _positions_in_file(file, layer))
        for layer, neurons in file.neurons.items()
    )
    spec = Spec(
        file.extractor,
        what,
        taps,
        _preprocess(network, file.crop),
        ranges_digest=what if ranges is None else ranges.digest,
        bins=file.bins or DEFAULT_BINS,
    )
    _require_ranges_fit(ranges, spec)
    return FileSpec(spec, ranges, tuple(notes))


def _preprocess(network: ReferenceNetwork, crop: str) -> Preprocess:
    """Returns the preprocessing of the reference, which ignores the orientation in EXIF."""
    rule: dict[str, Any] = {"exif": "ignore", "crop": "none" if crop == "random" else crop}
    return Preprocess(network.side, network.side, *network.rule, **rule)


def _row_positions(file: ReferenceFile, layer: str) -> int | None:
    """Returns a layer's positions by what most rows of its histogram hold; None if unclear."""
    if file.kind != "histogram":
        return None
    rows = file.arrays[layer]
    totals = rows.sum(axis=1, dtype=np.int64)[(rows >= 0).all(axis=1)]
    (total, count), *_ = [*Counter(totals.tolist()).most_common(1), (0, 0)]
    whole = total and 2 * count > len(rows) and total % file.images == 0
    return int(total // file.images) if whole else None


def _positions_in_file(file: ReferenceFile, layer: str) -> int:
    if (found := _row_positions(file, layer)) is not None:
        return found
    raise UsageError(
        f"{file.name}: {file.extractor} is not a network of the reference, and its {file.kind} "
        f"file does not tell how many positions layer {layer} has in an image; state its spec by "
        f"{option('spec')}"
    )


def require_stated_spec(file: ReferenceFile, spec: Spec, ranges: Ranges | None) -> FileSpec:
    """Checks the spec that the user states for a file against all that the file tells.

    Args:
        file: The file.
        spec: The stated spec.
        ranges: The spec's ranges, if they are known.

    Returns:
        The spec, with notes.

    Raises:
        UsageError: If the file cannot have been made by that spec.
        SpecMismatch: If the file was exported from here, where its own spec is another.
    """
    about = f"{file.name} and spec {spec.digest[:12]} do not agree on"
    neurons = {tap.name: tap.neurons for tap in spec.taps}
    if neurons != file.neurons:
        one = dict(file.neurons.items() - neurons.items())
        other = dict(neurons.items() - file.neurons.items())
        raise UsageError(f"{about} layers and neurons: {one} against {other}")
    _require_equal(about, "bins", file.bins or spec.bins, spec.bins)
    _require_equal(about, "resize", file.resize, spec.preprocess.resize)
    if file.crop != "random":
        _require_equal(about, "crop", file.crop, spec.preprocess.crop)
    for tap in spec.taps:
        if not 0 < tap.positions * file.images <= MAX_ACTIVATIONS:
            raise UsageError(
                f"spec {spec.digest[:12]}: layer {tap.name} has {tap.positions} positions in an "
                f"image, of which {file.name} has {file.images}"
            )
    notes = []
    own = own_spec(file)
    if own is None or (own.digest != spec.digest and _is_assumed(own)):
        notes += _require_made_by_the_reference(file, spec, about)
    else:
        own.require_same(spec, f"{file.name}, by its json,", "what the stated spec says")
    if file.crop == "random":
        notes.append("made with random crops, which are not repeatable")
    if ranges is None and not _is_assumed(spec):
        notes.append(f"its ranges {spec.ranges_digest} are not in this catalogue")
    _require_ranges_fit(ranges, spec)
    return FileSpec(spec, ranges, tuple(notes))


def _require_ranges_fit(ranges: Ranges | None, spec: Spec) -> None:
    """Checks that ranges, if they are known, are those of a spec.

    Raises:
        UsageError: If they are of other neurons, or others than the spec states.
    """
    if ranges is None:
        return
    if ranges.taps != spec.shape:
        raise UsageError(
            f"ranges {ranges.digest} have {dict(ranges.taps)} neurons, but the spec has "
            f"{dict(spec.shape)}"
        )
    if _DIGEST.fullmatch(spec.ranges_digest) and ranges.digest != spec.ranges_digest:
        raise UsageError(
            f"ranges {ranges.digest} are given, but the spec states {spec.ranges_digest}"
        )


def _require_made_by_the_reference(file: ReferenceFile, spec: Spec, about: str) -> list[str]:
    """Checks that the reference can have made a file by a spec.

    The reference ignores EXIF, drops transparency, decodes JPEGs in full, counts in float32, and
    takes Pillow's 8-bit RGB. Its networks are known; what a user's own network is, the user says.

    Args:
        file: The file.
        spec: The stated spec.
        about: How errors begin.

    Returns:
        Notes.

    Raises:
        UsageError: If it cannot, whatever its options.
    """
    rule, notes = spec.preprocess, []
    _require_equal(about, f"EXIF, which {file.software} ignores", "ignore", rule.exif)
    _require_equal(about, f"alpha, which {file.software} drops", "drop", rule.alpha)
    _require_equal(about, f"jpeg, which {file.software} decodes in full", "full", rule.jpeg)
    _require_equal(about, f"precision, as {file.software} has no bf16", "fp32", spec.precision)
    _require_equal(about, "colour", COLOUR_RULE, rule.colour)
    _require_equal(about, f"decoder, as {file.software} has none but Pillow", None, rule.decoder)
    if file.extractor != spec.extractor:
        known = NETWORKS.keys() | BUILT_IN.keys()
        if {file.extractor, spec.extractor} <= known:
            _require_equal(about, "extractor", file.extractor, spec.extractor)
        notes.append(f"the file calls its network {file.extractor}; the spec, {spec.extractor}")
    network = NETWORKS.get(file.extractor)
    if network is not None:
        _require_equal(about, "input", (network.side, network.side), (rule.height, rule.width))
        _require_equal(about, "mean and std", network.rule, (rule.mean, rule.std))
    for tap in spec.taps:
        for found in (network and network.positions.get(tap.name), _row_positions(file, tap.name)):
            what = f"positions of layer {tap.name}"
            _require_equal(about, what, found or tap.positions, tap.positions)
    if file.extractor.startswith("clip_im_"):
        notes.append(
            f"{file.software} runs CLIP in fp16, and the spec says fp32: a build would count most "
            "activations in another bin"
        )
    return notes


def _require_equal(about: str, what: str, found: object, said: object) -> None:
    if found != said:
        raise UsageError(f"{about} {what}: {found!r} against {said!r}")


def own_spec(file: ReferenceFile) -> Spec | None:
    """Reads the spec that a file exported from here states.

    Args:
        file: The file.

    Returns:
        The spec; None if the file states none.

    Raises:
        CorruptFile: If what it states is not a spec.
    """
    if file.stated_spec is None:
        return None
    return _spec_from_json(file.stated_spec, f"{file.name}: spec of its json")


def _spec_from_json(data: object, name: str) -> Spec:
    """Reads a spec from its JSON, or from the NAME.json of an export.

    Args:
        data: The decoded JSON.
        name: How errors name the file.

    Returns:
        The spec.

    Raises:
        CorruptFile: If it is not a spec. The message names the field that is wrong.
    """
    if isinstance(data, dict) and isinstance(data.get("spec"), dict):
        data = data["spec"]
    if not isinstance(data, dict):
        raise CorruptFile(
            f"{name}: holds JSON of type {type(data).__name__}, not the fields of a spec"
        )
    try:
        return Spec.from_json(data)
    except (CorruptFile, UsageError, ValueError) as error:
        raise CorruptFile(f"{name}: {error}") from error


def find_spec(catalogue: Catalogue, text: str) -> Spec:
    """Finds the spec that a user names.

    Args:
        catalogue: The catalogue.
        text: The path or url of a JSON file, or the beginning of the digest of a spec in the
            catalogue.

    Returns:
        The spec.

    Raises:
        NotFound: If the catalogue has no such spec, or several.
        CorruptFile: If the file does not hold a spec.
    """
    if text.endswith(".json"):
        uri = storage.canonical(text)
        return _spec_from_json(read_json(storage.read(uri), storage.readable(uri)), text)
    return catalogue.spec(catalogue.spec_digest(catalogue.head(), text))


def stored_ranges(catalogue: Catalogue, spec: Spec) -> Ranges | None:
    """Reads the ranges of a spec.

    Args:
        catalogue: The catalogue.
        spec: The spec.

    Returns:
        The ranges; None if the catalogue does not have them.

    Raises:
        CorruptFile: If the file holds other ranges.
    """
    uri = catalogue.ranges_uri(spec.ranges_digest)
    if not _DIGEST.fullmatch(spec.ranges_digest) or not storage.exists(uri):
        return None
    return catalogue.ranges(spec.ranges_digest)
