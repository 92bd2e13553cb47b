"""interop.converting: TODO-DOC"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.dna import DNA, SCALAR_COLUMNS, Floats, Ints, Ranges, neuron_name
from pipeline.errors import CorruptFile, UsageError
from pipeline.interop.reading import (
    MAX_ACTIVATIONS,
    WRAP,
    Metadata,
    ReferenceFile,
    is_count,
    is_text,
    type_name,
)
from pipeline.interop.reference_networks import NETWORKS, UNKNOWN_NETWORK, ReferenceNetwork
from pipeline.networks import ASSUMED, BUILT_IN
from pipeline.networks import ranges_file as ranges_module
from pipeline.spec import COLOUR_RULE, Preprocess, Spec, Tap

DEFAULT_BINS = 1000

DIGEST = re.compile(r"[0-9a-f]{32}")


# The spec that they are of.


@dataclass(frozen=True)
class StatedSpec:
    """A spec, its ranges where they are known, and what to note about it."""

    spec: Spec
    ranges: Ranges | None
    notes: tuple[str, ...] = ()

    @property
    def assumed(self) -> bool:
        return _is_assumed(self.spec)


def _is_assumed(spec: Spec) -> bool:
    return spec.weights_sha256.startswith(ASSUMED)


def assume(file: ReferenceFile) -> StatedSpec:
    """What the names in the file stand for in that version of the reference.

    Raises `UsageError` where the positions of a layer can neither be known nor be told.
    """
    network = NETWORKS.get(file.extractor, UNKNOWN_NETWORK)
    notes = []
    if file.resize != "clean":
        raise UsageError(
            f"{file.name}: data_settings.resize_mode is {file.resize!r}; a spec is assumed for "
            "'clean' only, which is what make_vdna does"
        )
    if network is UNKNOWN_NETWORK:
        notes.append(
            f"{file.extractor} is no network of the reference: its input's size and normalisation "
            "are not known, and its positions are what the histograms hold"
        )
    if file.kind != "histogram":
        notes.append(f"the file has no histograms; its spec says {DEFAULT_BINS} bins")
    what = f"{ASSUMED}{file.extractor} of {file.software}"
    if file.crop == "random":
        what += ", random crops"
        notes.append("made with random crops, which are not repeatable")
    taps = tuple(
        Tap(layer, neurons, network.positions.get(layer) or _told_positions(file, layer))
        for layer, neurons in file.neurons.items()
    )
    spec = Spec(
        file.extractor,
        what,
        taps,
        _preprocess(network, file.crop),
        ranges_digest=what,
        bins=file.bins or DEFAULT_BINS,
    )
    return StatedSpec(spec, None, tuple(notes))


def _preprocess(network: ReferenceNetwork, crop: str) -> Preprocess:
    """As the reference does it: any orientation that EXIF states is ignored."""
    rule: dict[str, Any] = {"exif": "ignore", "crop": "none" if crop == "random" else crop}
    return Preprocess(network.side, network.side, *network.rule, **rule)


def _row_positions(file: ReferenceFile, layer: str) -> int | None:
    """Activations an image, by what most rows of a histogram hold."""
    if file.kind != "histogram":
        return None
    rows = file.arrays[layer]
    totals = rows.sum(axis=1, dtype=np.int64)[(rows >= 0).all(axis=1)]
    (total, count), *_ = [*Counter(totals.tolist()).most_common(1), (0, 0)]
    whole = total and 2 * count > len(rows) and total % file.images == 0
    return int(total // file.images) if whole else None


def _told_positions(file: ReferenceFile, layer: str) -> int:
    if (found := _row_positions(file, layer)) is not None:
        return found
    raise UsageError(
        f"{file.name}: {file.extractor} is no network of the reference, and its {file.kind} file "
        f"does not tell how many positions layer {layer} has in an image; state it by --spec"
    )


def stated(file: ReferenceFile, spec: Spec, ranges: Ranges | None) -> StatedSpec:
    """The spec that the user says the file was made by. Raises `UsageError` where it was not.

    One of our exports has its spec beside it, and was made by no other.
    """
    about = f"{file.name} and spec {spec.digest[:12]} do not agree on"
    theirs = {tap.name: tap.neurons for tap in spec.taps}
    if theirs != file.neurons:
        one, other = (
            dict(file.neurons.items() - theirs.items()),
            dict(theirs.items() - file.neurons.items()),
        )
        raise UsageError(f"{about} layers and neurons: {one} against {other}")
    _agree(about, "bins", file.bins or spec.bins, spec.bins)
    _agree(about, "resize", file.resize, spec.preprocess.resize)
    if file.crop != "random":
        _agree(about, "crop", file.crop, spec.preprocess.crop)
    for tap in spec.taps:
        if not 0 < tap.positions * file.images <= MAX_ACTIVATIONS:
            raise UsageError(
                f"spec {spec.digest[:12]}: layer {tap.name} has {tap.positions} positions in an "
                f"image, of which {file.name} has {file.images}"
            )
    notes = []
    own = own_spec(file)
    if own is None or (own.digest != spec.digest and _is_assumed(own)):
        notes += _made_by_the_reference(file, spec, about)
    else:
        own.require_same(spec, f"{file.name}, by its json,", "what the stated spec says")
    if file.crop == "random":
        notes.append("made with random crops, which are not repeatable")
    if ranges is None and not _is_assumed(spec):
        notes.append(f"its ranges {spec.ranges_digest} are not in this catalogue")
    if ranges is not None and ranges.taps != tuple(theirs.items()):
        raise UsageError(
            f"ranges {ranges.digest} are of {dict(ranges.taps)}; the spec, of {theirs}"
        )
    return StatedSpec(spec, ranges, tuple(notes))


def _made_by_the_reference(file: ReferenceFile, spec: Spec, about: str) -> list[str]:
    """Notes. Raises `UsageError` where the reference makes no such file, whatever its options.

    It ignores EXIF, counts in float32, takes Pillow's 8-bit RGB, and its networks are those of
    `NETWORKS`. Of an extractor of the user's own, its name says nothing.
    """
    rule, notes = spec.preprocess, []
    _agree(about, f"EXIF, of which {file.software} takes no notice", "ignore", rule.exif)
    _agree(about, f"precision, as {file.software} has no bf16", "fp32", spec.precision)
    _agree(about, "colour", COLOUR_RULE, rule.colour)
    if file.extractor != spec.extractor:
        known = NETWORKS.keys() | BUILT_IN.keys()
        if {file.extractor, spec.extractor} <= known:
            _agree(about, "extractor", file.extractor, spec.extractor)
        notes.append(f"the file calls its network {file.extractor}; the spec, {spec.extractor}")
    network = NETWORKS.get(file.extractor)
    if network is not None:
        _agree(about, "input", (network.side, network.side), (rule.height, rule.width))
        _agree(about, "mean and std", network.rule, (rule.mean, rule.std))
    for tap in spec.taps:
        for found in (network and network.positions.get(tap.name), _row_positions(file, tap.name)):
            _agree(about, f"positions of layer {tap.name}", found or tap.positions, tap.positions)
    if file.extractor.startswith("clip_im_"):
        notes.append(
            f"{file.software} runs CLIP in fp16, where the spec says fp32: most activations of a "
            "build would lie in another bin"
        )
    return notes


def _agree(about: str, what: str, found: object, said: object) -> None:
    if found != said:
        raise UsageError(f"{about} {what}: {found!r} against {said!r}")


def own_spec(file: ReferenceFile) -> Spec | None:
    """Which an export of ours states."""
    if file.stated_spec is None:
        return None
    return _spec_from_json(file.stated_spec, f"{file.name}: spec of its json")


def _spec_from_json(data: object, name: str) -> Spec:
    """Of a file of spec JSON, or of the metadata of one of our exports.

    Raises `CorruptFile` naming the field whose value is of another type than it should be.
    """
    if isinstance(data, dict) and isinstance(data.get("spec"), dict):
        data = data["spec"]
    if not isinstance(data, dict):
        raise CorruptFile(f"{name}: holds a {type_name(data)}, not the fields of a spec")
    try:
        spec = Spec.from_json(data)
    except (CorruptFile, UsageError, ValueError) as error:
        raise CorruptFile(f"{name}: {error}") from error
    for field, value in _misfits(spec, Spec):
        raise CorruptFile(f"{name}: {field} is {value!r:.80}, which a spec cannot hold there")
    return spec


def _misfits(value: Any, kind: Any, name: str = "") -> Iterator[tuple[str, object]]:
    """The fields, dotted, whose values are not of the types that they are declared with."""
    parts = get_args(kind)
    if is_dataclass(kind):
        if isinstance(value, cast(type, kind)):
            for field, of in get_type_hints(kind).items():
                yield from _misfits(getattr(value, field), of, f"{name}.{field}".lstrip("."))
            return
        fits = False
    elif get_origin(kind) is UnionType:
        if value is not None:
            yield from _misfits(value, parts[0], name)
        return
    elif get_origin(kind) is tuple:
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        fits = len(value) == len(kinds)
        for i, (part, of) in enumerate(zip(value, kinds, strict=False)):
            yield from _misfits(part, of, f"{name}[{i}]")
    elif get_origin(kind) is Literal:
        fits = value in parts
    elif kind is float:
        fits = (
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < np.inf
        )
    elif kind is int:
        fits = is_count(value) and value < 2**63
    else:
        fits = is_text(value) if kind is str else isinstance(value, kind)
    if not fits:
        yield name, value


def find_spec(catalogue: Catalogue, text: str) -> Spec:
    """By a file of JSON, or by the digest of a spec of this catalogue, or its beginning."""
    if text.endswith(".json"):
        uri = storage.canonical(text)
        return _spec_from_json(Metadata(storage.read(uri), storage.readable(uri)).data, text)
    return catalogue.spec(catalogue.spec_digest(catalogue.head(), text))


def find_ranges(catalogue: Catalogue, spec: Spec) -> Ranges | None:
    uri = catalogue.ranges_uri(spec.ranges_digest)
    if not DIGEST.fullmatch(spec.ranges_digest) or not storage.exists(uri):
        return None
    ranges, _ = ranges_module.decode(storage.read(uri), uri)
    if ranges.digest != spec.ranges_digest:
        raise CorruptFile(f"{uri} holds ranges {ranges.digest}")
    return ranges


# The DNA that they hold.


def to_dna(file: ReferenceFile, by: StatedSpec) -> tuple[DNA, tuple[str, ...]]:
    """The DNA under a spec, and notes on what is odd about its numbers.

    Raises `CorruptFile` where the numbers cannot be what they are said to be.
    """
    notes: list[str] = []
    columns: dict[str, Any] = {}
    arrays = file.arrays
    layers = by.spec.layers
    if file.kind == "histogram":
        mended = [_counts(file, tap, notes) for tap in by.spec.taps]
        columns["counts"] = np.concatenate(mended)
    elif file.kind == "activation-ranges":
        for end in ("min", "max"):
            joined = np.concatenate([arrays[f"{end}-{layer}"] for layer in layers])
            columns[end] = joined.astype(np.float32)
        _check_extremes(columns["min"], columns["max"], by.spec, file.name)
    else:
        degrees = file.images - 1
        columns["mean"] = _joined(arrays, "mu", layers)
        if file.kind == "gaussian":
            columns["m2"] = _scaled(_joined(arrays, "var", layers), degrees)
        else:
            sigmas = [_covariance(file, layer) for layer in layers]
            columns["m2"] = _scaled(np.concatenate([np.diagonal(s) for s in sigmas]), degrees)
            upper = [sigma[np.triu_indices(len(sigma))] for sigma in sigmas]
            columns["scatter"] = _scaled(np.concatenate(upper), degrees)
        _check_variances(columns["m2"], by.spec, file.name)
        notes += _batch_means(file)
    if by.ranges is not None:
        columns |= {"low": by.ranges.low, "high": by.ranges.high}
    n = by.spec.neurons
    empty: dict[str, Any] = {
        "counts": np.zeros((n, by.spec.bins), np.int64),
        **{name: np.zeros(n, np.int64) for name in ("underflow", "overflow", "nonfinite")},
        **{name: np.zeros(n, np.float32) for name in ("min", "max")},
        **{name: np.zeros(n) for name in ("low", "high", "mean", "m2")},
    }
    unknown = {"counts", *SCALAR_COLUMNS, "numerics"} - columns.keys()
    dna = DNA(
        by.spec,
        layers,
        images=file.images,
        failed=0,
        **(empty | columns),
        unknown=tuple(sorted(unknown)),
    )
    dna.check(file.name)
    return dna, tuple(notes)


def _counts(file: ReferenceFile, tap: Tap, notes: list[str]) -> Ints:
    """A layer's counts, mended where they wrapped, with notes where they do not add up."""
    rows, expected = file.arrays[tap.name], file.images * tap.positions
    counts = rows.astype(np.int64)
    where = f"{file.name}: layer {tap.name}"
    product = f"{file.images} images x {tap.positions} positions = {expected}"
    if (counts > 2 * expected).any() or (counts.sum(axis=1) > 2 * expected).any():
        raise UsageError(
            f"{where} holds more than twice {product}; it has other positions, or is of more "
            "images: state its spec by --spec"
        )
    wrapped = mend(counts, expected) if rows.dtype.itemsize == 4 else np.zeros(len(rows), np.int64)
    bad = np.flatnonzero((wrapped < 0) | (counts < 0).any(axis=1))
    if len(bad):
        at = int(bad[0])
        raise CorruptFile(
            f"{where}, neuron {at}: {int((counts[at] < 0).sum())} counts are negative and they sum "
            f"to {counts[at].sum()}, where there were {product}. The reference's int32 has "
            f"wrapped, and the file does not tell where; it cannot be mended ({len(bad)} neurons)"
        )
    n, total = len(rows), counts.sum(axis=1)
    if times := int((wrapped > 0).sum()):
        notes.append(f"{tap.name}: counts of {times} of {n} neurons wrapped at int32, mended")
    if over := int((total > expected).sum()):
        notes.append(
            f"{tap.name}: {over} of {n} neurons hold up to {total.max() - expected} activations "
            f"more than {product}: the reference's small batches count a value on the edge of two "
            "bins twice"
        )
    if under := int((total < expected).sum()):
        notes.append(
            f"{tap.name}: {under} of {n} neurons hold up to {expected - total.min()} activations "
            f"fewer than {product}: the reference drops NaN, or the positions are others"
        )
    if total.min() != total.max():
        notes.append(
            f"{tap.name}: its neurons disagree, and hold {total.min()} to {total.max()} activations"
        )
    return counts


def mend(counts: Ints, expected: int) -> Ints:
    """Undo, in place, the wrapping of counts (neurons, bins) that were cut to int32.

    (neurons,): how many counts of each were mended; -1 where that cannot be done, and then the row
    is left as it is.

    A count c is stored as c - 2^32 m for the one m >= 0 that brings it into int32. So a row's sum
    falls short of the activations there were by 2^32 times the sum of its m, and a count that is
    stored negative has m >= 1. If that shortfall is 2^32 times the number of negative counts, all
    of them have m = 1 and no other count has wrapped. Otherwise some count wrapped to a value that
    may be anywhere in the row.
    """
    negative = (counts < 0).sum(axis=1)
    short = expected - counts.sum(axis=1)
    whole = (short > 0) & (short % WRAP == 0)
    once = whole & (short // WRAP == negative)
    counts[(counts < 0) & once[:, None]] += WRAP
    return np.where(once, negative, np.where(whole | (negative > 0), -1, 0))


def _joined(arrays: Mapping[str, NDArray[Any]], what: str, layers: Sequence[str]) -> Floats:
    return np.concatenate([arrays[f"{what}-{layer}"] for layer in layers]).astype(np.float64)


def _scaled(values: Floats, degrees: int) -> Floats:
    """(Co)variances -> sums of squares or products; zero for one image, whatever is stored."""
    with np.errstate(over="ignore"):
        return values * degrees if degrees else np.zeros_like(values)


def _covariance(file: ReferenceFile, layer: str) -> Floats:
    sigma: Floats = file.arrays[f"sigma-{layer}"].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        deviation = np.sqrt(np.abs(np.diagonal(sigma)))
        odd = np.abs(sigma - sigma.T) > 1e-6 * np.outer(deviation, deviation)
    if file.images > 1 and odd.any():
        i, j = (int(k) for k in np.argwhere(odd)[0])
        raise CorruptFile(
            f"{file.name}: array sigma-{layer} is not symmetric: {sigma[i, j]} at ({i}, {j}), "
            f"{sigma[j, i]} at ({j}, {i})"
        )
    return sigma


def _check_variances(m2: Floats, spec: Spec, name: str) -> None:
    bad = np.flatnonzero(m2 < 0)
    if len(bad):
        raise CorruptFile(f"{name}: neuron {_neuron(spec, bad[0])} has a negative variance")


def _check_extremes(
    low: NDArray[np.float32], high: NDArray[np.float32], spec: Spec, name: str
) -> None:
    bad = np.flatnonzero(~(low <= high))
    if len(bad):
        at = int(bad[0])
        raise CorruptFile(f"{name}: neuron {_neuron(spec, at)} ranges from {low[at]} to {high[at]}")


def _neuron(spec: Spec, at: int) -> str:
    return neuron_name([(tap.name, tap.neurons) for tap in spec.taps], int(at))


def _batch_means(file: ReferenceFile) -> list[str]:
    """The reference's CLIP transposes the output of its last norm, and so averages over a batch."""
    if not file.extractor.startswith("clip_im_vit") or "last_norm" not in file.neurons:
        return []
    if file.software != "vdna 0.1.1":
        return []
    batches = f"{-(-file.images // file.batch)} batches" if file.batch else "its batches"
    return [
        f"last_norm: the reference averages this layer over each batch, so that its Gaussian is of "
        f"the means of {batches}, not of {file.images} images"
    ]
