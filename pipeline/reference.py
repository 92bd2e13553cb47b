"""The files of the reference package (`vdna` 0.1.1), both ways.

    >>> import_file(Catalogue("dnas"), "old/cityscapes.npz", "cityscapes")     # doctest: +SKIP
    >>> export_file(Catalogue("dnas"), "cityscapes", "new/cityscapes.npz")     # doctest: +SKIP

A DNA is two files there: NAME.npz holds the arrays of one kind of distribution, NAME.json says what
they are of. They name neither the weights nor the ranges, so a spec is assumed for them, which
compares with others of the same origin only, unless the user states it. What a kind does not tell
is `DNA.unknown`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from datetime import UTC, datetime
from types import UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from pipeline import ranges as ranges_module
from pipeline import storage
from pipeline.catalogue import (
    Catalogue,
    Version,
    canonical_json,
    check_name,
    footers_of,
    software,
)
from pipeline.dna import (
    DNA,
    SCALAR_COLUMNS,
    Floats,
    Ints,
    Ranges,
    encode,
    encode_dna,
    header,
    neuron_name,
    to_gaussian_table,
)
from pipeline.errors import Conflict, CorruptFile, UsageError, redact
from pipeline.networks import CLIP_RULE, HALF_RULE, IMAGENET_RULE, NAMED, Network, Rule
from pipeline.ranges import ASSUMED
from pipeline.reduce import digest_of_dna
from pipeline.spec import COLOUR_RULE, LAYER_GAUSSIAN, MAX_BINS, Preprocess, Spec, Tap

Kind = Literal["histogram", "gaussian", "layer-gaussian", "activation-ranges"]
PRODUCTS_OF: dict[Kind, tuple[str, ...]] = {
    "histogram": ("histogram",),
    "gaussian": ("neuron_gaussian",),
    "layer-gaussian": ("neuron_gaussian", LAYER_GAUSSIAN),
    "activation-ranges": ("activation_ranges",),
}
KINDS = tuple(PRODUCTS_OF)
TELLS: dict[Kind, tuple[str, ...]] = {
    "histogram": ("counts",),
    "layer-gaussian": ("mean", "m2"),
    "gaussian": ("mean", "m2"),
    "activation-ranges": ("min", "max"),
}
"""The columns of a DNA that a file of each kind has; the scatter matrices are a file of ours."""

WRAP = 2**32
MAX_INT32 = 2**31 - 1
MAX_IMAGES = 10**12
MAX_ACTIVATIONS = 2**61
"""Of a neuron; twice as many are still an int64."""
DEFAULT_BINS = 1000

_DIGEST = re.compile(r"[0-9a-f]{32}")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_TORN = (
    *(zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, KeyError),
    *(NotImplementedError, RuntimeError, MemoryError),
)
"""What a zip of arrays that is torn, encrypted or made up may raise."""

# What the reference's networks are, so that no weights need to be there.


@dataclass(frozen=True)
class _Network:
    """The side of its square input, its normalisation, and positions an image by layer."""

    side: int
    rule: Rule
    positions: Mapping[str, int]


def _vit(
    depth: int, patch: int = 16, rule: Rule = IMAGENET_RULE, last: int | None = None
) -> _Network:
    tokens = (224 // patch) ** 2 + 1
    blocks = {f"block_{i}": tokens for i in range(depth)}
    return _Network(224, rule, {**blocks, "last_norm": last or tokens})


def _grids(side: int, rule: Rule, grids: Mapping[str, int]) -> _Network:
    return _Network(side, rule, {layer: grid * grid for layer, grid in grids.items()})


_RESNET50 = _grids(
    224,
    IMAGENET_RULE,
    {
        f"layer{stage}_{i}": 112 >> stage
        for stage, blocks in enumerate((3, 4, 6, 3), 1)
        for i in range(blocks)
    },
)
_VGG16 = _grids(
    224,
    IMAGENET_RULE,
    {
        f"relu_{stage}_{i}": 448 >> stage
        for stage, relus in enumerate((2, 2, 3, 3, 3), 1)
        for i in range(1, relus + 1)
    },
)
_CLIP_RN50 = _grids(
    224,
    CLIP_RULE,
    {
        **{f"block_{i}": 56 for i in range(0, 4)},
        **{f"block_{i}": 28 for i in range(4, 8)},
        **{f"block_{i}": 14 for i in range(8, 14)},
        **{f"block_{i}": 7 for i in range(14, 17)},
        "last_norm": 1,
    },
)
_INCEPTION = _grids(299, HALF_RULE, {"block_0": 73, "block_1": 35, "block_2": 17, "block_3": 1})
NETWORKS = {
    **dict.fromkeys(
        ("mugs_vit_small", "mugs_vit_base", "dino_vit_small", "dino_vit_base"), _vit(12)
    ),
    "mugs_vit_large": _vit(24),
    "clip_im_vit_b16": _vit(12, 16, CLIP_RULE, last=1),
    "clip_im_vit_b32": _vit(12, 32, CLIP_RULE, last=1),
    "clip_im_vit_l14": _vit(24, 14, CLIP_RULE, last=1),
    "clip_im_rn50": _CLIP_RN50,
    **dict.fromkeys(("dino_resnet50", "rand_resnet50"), _RESNET50),
    "vgg16": _VGG16,
    "inception": _INCEPTION,
}
_OTHER_RESIZES = ("legacy_tensorflow", "legacy_pytorch")
_UNKNOWN_NETWORK = _Network(0, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), {})
"""Of an extractor of the user's own: the reference's own defaults."""


# The two files.


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """What NAME.json and NAME.npz hold, checked against each other."""

    name: str
    kind: Kind
    version: str
    extractor: str
    images: int
    neurons: dict[str, int]
    bins: int | None
    crop: str
    resize: str
    batch: int | None
    source: str
    stated_spec: dict[str, Any] | None
    arrays: dict[str, NDArray[Any]]

    @property
    def software(self) -> str:
        return self.version if self.version.startswith("vdna") else f"vdna {self.version}"


def read_file(url: str) -> ReferenceFile:
    """NAME.npz and NAME.json beside it, from anywhere that storage reads.

    Raises `CorruptFile` naming the file and the field or array that is wrong; objects that would
    have to be unpickled are refused unread.
    """
    uri = _npz(url)
    about = storage.readable(_json_of(uri))
    data = storage.read(uri)
    metadata = _Metadata(storage.read(_json_of(uri)), about)
    kind = metadata.kind()
    settings = metadata.table("data_settings")
    bins = metadata.bins() if kind == "histogram" else None
    neurons = metadata.neurons()
    name = storage.readable(uri)
    return ReferenceFile(
        name,
        kind,
        metadata.text("vdna_version"),
        metadata.text("feature_extractor_name"),
        metadata.number("num_images", MAX_IMAGES),
        neurons,
        bins,
        _choice(settings, "crop_to_square_pre_resize", ("none", "center", "random"), about),
        _choice(settings, "resize_mode", ("clean", "fast", *_OTHER_RESIZES), about),
        _batch(metadata.table("extraction_settings")),
        _images_from(settings.get("source")),
        metadata.data.get("spec"),
        _read_arrays(data, _expected(kind, neurons, bins), set(neurons), name),
    )


class _Metadata:
    """Fields of NAME.json, each checked when it is asked for."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        try:
            self.data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{name}: torn, or not JSON: {error}") from error
        if not isinstance(self.data, dict):
            raise CorruptFile(f"{name}: not the metadata of a VDNA, but a {_type(self.data)}")

    def kind(self) -> Kind:
        kind = self.text("type")
        if kind not in KINDS:
            raise self.wrong("type", kind, f"one of {', '.join(KINDS)}")
        return kind

    def bins(self) -> int:
        distribution = self.table("distribution")
        bins: Any = distribution.get("hist_nb_bins")
        if not _is_count(bins) or not 2 <= bins <= MAX_BINS:
            raise self.wrong("distribution.hist_nb_bins", bins, f"a number from 2 to {MAX_BINS}")
        return int(bins)

    def neurons(self) -> dict[str, int]:
        neurons = self.table("neurons_list")
        for layer, count in neurons.items():
            if not _is_text(layer) or not _is_count(count) or not count:
                raise self.wrong(f"neurons_list.{layer}", count, "a positive number")
        if not neurons:
            raise self.wrong("neurons_list", neurons, "at least one layer")
        return neurons

    def text(self, field: str) -> str:
        value = self.data.get(field)
        if not _is_text(value):
            raise self.wrong(field, value, "text")
        return cast(str, value)

    def number(self, field: str, most: int) -> int:
        value: Any = self.data.get(field)
        if not _is_count(value) or not 1 <= value <= most:
            raise self.wrong(field, value, f"a number from 1 to {most}")
        return int(value)

    def table(self, field: str) -> dict[str, Any]:
        value = self.data.get(field)
        if not isinstance(value, dict):
            raise self.wrong(field, value, "an object")
        return value

    def wrong(self, field: str, value: object, wanted: str) -> CorruptFile:
        found = repr(value)[:80] if field.partition(".")[0] in self.data else "missing"
        return CorruptFile(f"{self.name}: {field} is {found}; it must be {wanted}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    """Not empty, and no half of a character, which JSON can name and no file can hold."""
    return isinstance(value, str) and bool(value) and not _HALF_CHARACTER.search(value)


def _type(value: object) -> str:
    return type(value).__name__


def _choice(settings: Mapping[str, Any], field: str, choices: Sequence[str], name: str) -> str:
    value = settings.get(field, choices[0])
    if value not in choices:
        raise CorruptFile(
            f"{name}: data_settings.{field} is {value!r}; it must be one of {', '.join(choices)}"
        )
    return cast(str, value)


def _batch(settings: Mapping[str, Any]) -> int | None:
    batch = settings.get("batch_size")
    return batch if _is_count(batch) and batch else None


def _images_from(source: object) -> str:
    if isinstance(source, str):
        return redact(source)
    return f"{len(source)} files" if isinstance(source, list) else "not told"


def _npz(url: str) -> str:
    uri = storage.canonical(url)
    if not uri.endswith(".npz"):
        raise UsageError(f"{url}: the reference's files are NAME.npz and NAME.json; name the .npz")
    return uri


def _json_of(uri: str) -> str:
    return f"{uri.removesuffix('.npz')}.json"


Expected = dict[str, tuple[tuple[int, ...], str]]
"""Name of an array -> its shape, and the kind of its type (`i` integers, `f` floats)."""


def _expected(kind: Kind, neurons: Mapping[str, int], bins: int | None) -> Expected:
    expected: Expected = {}
    for layer, n in neurons.items():
        if kind == "histogram":
            expected[layer] = ((n, bins or 0), "i")
        elif kind == "gaussian":
            expected |= {f"mu-{layer}": ((n,), "f"), f"var-{layer}": ((n,), "f")}
        elif kind == "layer-gaussian":
            expected |= {f"mu-{layer}": ((n,), "f"), f"sigma-{layer}": ((n, n), "f")}
        else:
            expected |= {f"min-{layer}": ((n,), "f"), f"max-{layer}": ((n,), "f")}
    return expected


def _read_arrays(
    data: bytes, expected: Expected, layers: set[str], name: str
) -> dict[str, NDArray[Any]]:
    """The arrays of an npz; their headers are checked before anything is made of them.

    Beside those of a Gaussian or of extremes the reference saves a pickled empty dict by the name
    of each layer, which it does not load either.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            present = {member.removesuffix(".npy") for member in archive.namelist()}
            if missing := sorted(expected.keys() - present):
                raise CorruptFile(f"{name}: no array {', '.join(missing[:5])}; its json names it")
            if odd := sorted(present - expected.keys() - layers):
                raise CorruptFile(f"{name}: holds {', '.join(odd[:5])}, which its json names not")
            for key, (shape, kind) in expected.items():
                with archive.open(f"{key}.npy") as stream:
                    _check_header(stream, shape, kind, f"{name}: array {key}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {
                key: _numbers(arrays[key], kind).reshape(shape)
                for key, (shape, kind) in expected.items()
            }
    except _TORN as error:
        raise CorruptFile(f"{name}: torn, or not a file of arrays: {error!r}") from error


def _numbers(array: NDArray[Any], kind: str) -> NDArray[Any]:
    return array.astype(np.dtype(f"{kind}{array.dtype.itemsize}"), copy=False)


def _check_header(stream: Any, shape: tuple[int, ...], kind: str, name: str) -> None:
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(stream)]
    found, _, dtype = read(stream)
    if dtype.hasobject:
        raise CorruptFile(f"{name} holds pickled Python objects, which are never loaded")
    if dtype.kind != kind or dtype.itemsize not in (4, 8):
        wanted = "int32 or int64" if kind == "i" else "float32 or float64"
        raise CorruptFile(f"{name} has type {dtype}; it must have {wanted}")
    squeezed = found == () and kind == "f" and set(shape) == {1}  # torch drops what is 1 long
    if found != shape and not squeezed:
        raise CorruptFile(f"{name} has shape {found}; by its json it must have {shape}")


# The spec that they are of.


@dataclass(frozen=True)
class _Stated:
    """A spec, its ranges where they are known, and what to note about it."""

    spec: Spec
    ranges: Ranges | None
    notes: tuple[str, ...] = ()

    @property
    def assumed(self) -> bool:
        return _is_assumed(self.spec)


def _is_assumed(spec: Spec) -> bool:
    return spec.weights_sha256.startswith(ASSUMED)


def assume(file: ReferenceFile) -> _Stated:
    """What the names in the file stand for in that version of the reference.

    Raises `UsageError` where the positions of a layer can neither be known nor be told.
    """
    network = NETWORKS.get(file.extractor, _UNKNOWN_NETWORK)
    notes = []
    if file.resize != "clean":
        raise UsageError(
            f"{file.name}: data_settings.resize_mode is {file.resize!r}; a spec is assumed for "
            "'clean' only, which is what make_vdna does"
        )
    if network is _UNKNOWN_NETWORK:
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
    return _Stated(spec, None, tuple(notes))


def _preprocess(network: _Network, crop: str) -> Preprocess:
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


def stated(file: ReferenceFile, spec: Spec, ranges: Ranges | None) -> _Stated:
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
    own = _own_spec(file)
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
    return _Stated(spec, ranges, tuple(notes))


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
        known = NETWORKS.keys() | NAMED.keys()
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


def _own_spec(file: ReferenceFile) -> Spec | None:
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
        raise CorruptFile(f"{name}: holds a {_type(data)}, not the fields of a spec")
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
        fits = _is_count(value) and value < 2**63
    else:
        fits = _is_text(value) if kind is str else isinstance(value, kind)
    if not fits:
        yield name, value


def _find_spec(catalogue: Catalogue, text: str) -> Spec:
    """By a file of JSON, or by the digest of a spec of this catalogue, or its beginning."""
    if text.endswith(".json"):
        uri = storage.canonical(text)
        return _spec_from_json(_Metadata(storage.read(uri), storage.readable(uri)).data, text)
    return catalogue.spec(catalogue.spec_digest(catalogue.head(), text))


def _find_ranges(catalogue: Catalogue, spec: Spec) -> Ranges | None:
    uri = catalogue.ranges_uri(spec.ranges_digest)
    if not _DIGEST.fullmatch(spec.ranges_digest) or not storage.exists(uri):
        return None
    ranges, _ = ranges_module.decode(storage.read(uri), uri)
    if ranges.digest != spec.ranges_digest:
        raise CorruptFile(f"{uri} holds ranges {ranges.digest}")
    return ranges


# The DNA that they hold.


def to_dna(file: ReferenceFile, by: _Stated) -> tuple[DNA, tuple[str, ...]]:
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


# Import.


@dataclass(frozen=True)
class Imported:
    """What was imported. `changed`: whether it was committed, or had been before.

    `ranges`: digest of the file of ranges that extremes make, for `vdna build --ranges`.
    """

    name: str
    version: Version
    changed: bool
    ranges: str | None = None


def read(url: str, spec: Spec | None = None, ranges: Ranges | None = None) -> DNA:
    """The DNA of NAME.npz, without a catalogue; of an assumed spec where none is stated."""
    file = read_file(url)
    return to_dna(file, stated(file, spec, ranges) if spec is not None else _by_itself(file))[0]


def _by_itself(file: ReferenceFile, catalogue: Catalogue | None = None) -> _Stated:
    """The spec that one of our exports states, else what the reference's names stand for."""
    spec = _own_spec(file)
    if spec is None:
        return assume(file)
    return stated(file, spec, _find_ranges(catalogue, spec) if catalogue else None)


def import_file(catalogue: Catalogue, url: str, name: str, spec: str | None = None) -> Imported:
    """NAME.npz -> a version of the dataset in the catalogue.

    `spec`: a digest of this catalogue, or a file of JSON, that says how the file was made. Raises
    `Conflict` where the dataset was built here under the same spec: what was counted is not given
    away for what is only said.
    """
    check_name(name)
    file = read_file(url)
    if spec is None:
        by = _by_itself(file, catalogue)
    else:
        chosen = _find_spec(catalogue, spec)
        by = stated(file, chosen, _find_ranges(catalogue, chosen))
    dna, notes = to_dna(file, by)
    digest = by.spec.digest
    base = catalogue.head().datasets.get(name, {}).get(digest)
    if base is not None and not base.imported:
        raise Conflict(
            f"{name} was built here under spec {digest[:12]}, which {file.name} is of, too; import "
            "it under another name. Nothing was changed"
        )
    products = PRODUCTS_OF[file.kind]
    content = digest_of_dna(dna, "", products)
    storage.require_exclusive(catalogue.root)
    storage.create(catalogue.spec_uri(digest), canonical_json(by.spec.to_json()))
    ranges = _store_ranges(catalogue, dna) if file.kind == "activation-ranges" else None
    hashes, files = {}, _files(dna, name, content, products)
    for kind, data in files.items():
        uri = catalogue.uri(kind, digest, name, content)
        if not storage.create(uri, data):
            storage.replace(uri, data)
        hashes[kind] = hashlib.sha256(data).hexdigest()
    version = Version(
        dna=content,
        manifest="",
        spec=digest,
        images=dna.images,
        failed=0,
        products=products,
        sha256=hashes,
        source=file.name,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software(),
        numerics=(),
        origin={
            "software": file.software,
            "assumed": by.assumed,
            "stated": spec is not None,
            "notes": [*by.notes, *notes],
            "kind": file.kind,
            "file": file.name,
            "images_from": file.source,
        },
        footers=footers_of(files),
    )
    commit = catalogue.put_version(name, version, base, action="import")
    kept = commit.datasets[name][digest]
    return Imported(name, kept, base is None or base.dna != kept.dna, ranges)


def _files(dna: DNA, name: str, digest: str, products: Sequence[str]) -> dict[str, bytes]:
    shared: dict[str, Any] = {
        "dataset": name,
        "digest": digest,
        "manifest": "",
        "products": list(products),
    }
    files = {"dna": encode_dna(replace(dna, scatter=None), **shared)}
    if dna.scatter is not None:
        files["layer_gaussians"] = encode(
            header(dna, "layer_gaussians", **shared),
            (to_gaussian_table(dna.select([layer])) for layer in dna.layers),
        )
    return files


def _store_ranges(catalogue: Catalogue, dna: DNA) -> str:
    """The extremes as a file of ranges, scaled as the reference scales them: about zero."""
    taps = tuple((tap.name, tap.neurons) for tap in dna.spec.taps)
    measured = Ranges(taps, dna.min.astype(np.float64), dna.max.astype(np.float64))
    ranges = ranges_module.widen_about_zero(measured)
    spec, rule = dna.spec, dna.spec.preprocess
    network = Network(
        spec.extractor,
        spec.weights_sha256,
        spec.taps,
        rule.height,
        rule.width,
        rule.mean,
        rule.std,
    )
    provenance = {
        "images": dna.images,
        "widened": ranges_module.WIDEN,
        "widened_about": "zero",
        "assumed_weights": spec.weights_sha256.startswith(ASSUMED),
    }
    data = ranges_module.encode(ranges, network, **provenance)
    storage.create(catalogue.ranges_uri(ranges.digest), data)
    return ranges.digest


# Export.


@dataclass(frozen=True)
class Exported:
    """The two files written, and what they do not say."""

    npz: str
    json: str
    kind: Kind
    images: int
    notes: tuple[str, ...]


def export_file(
    catalogue: Catalogue,
    name: str,
    url: str,
    kind: str | None = None,
    *,
    spec: str | None = None,
    at: int | str | None = None,
) -> Exported:
    """A dataset's DNA -> NAME.npz and NAME.json, as the reference reads them."""
    _npz(url)
    version = catalogue.find(name, at, spec)
    dna = catalogue.load_version(name, version)
    if LAYER_GAUSSIAN in version.products and (kind or "histogram") not in kinds_of(dna):
        dna = catalogue.load_version(name, version, layer_gaussian=True)
    return write(dna, url, kind, source=version.source, name=name)


def write(
    dna: DNA, url: str, kind: str | None = None, *, source: str = "", name: str = "this DNA"
) -> Exported:
    """Raises `UsageError` where the DNA has nothing of that kind (by default, what tells most)."""
    uri = _npz(url)
    has = kinds_of(dna)
    chosen = kind or has[0]
    if chosen not in KINDS:
        raise UsageError(f"as is {kind!r}; choose one of {', '.join(KINDS)}")
    if chosen not in has:
        raise UsageError(f"{name} has no {chosen}; it has {', '.join(has)}")
    arrays, notes = _WRITERS[chosen](dna)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(Any, arrays))
    storage.replace(uri, buffer.getvalue())
    about = _metadata(dna, chosen, source)
    storage.replace(_json_of(uri), json.dumps(about, indent=4).encode())
    paths = storage.readable(uri), storage.readable(_json_of(uri))
    return Exported(*paths, chosen, dna.images, tuple(notes))


def kinds_of(dna: DNA) -> list[Kind]:
    """What the DNA can be exported as; the one that tells most, first."""
    return [
        kind
        for kind, columns in TELLS.items()
        if not set(columns) & set(dna.unknown)
        and (kind != "layer-gaussian" or dna.scatter is not None)
    ]


Arrays = dict[str, NDArray[Any]]


def _write_histograms(dna: DNA) -> tuple[Arrays, list[str]]:
    """Clamped, as the reference's: what fell below is in the first bin, above, in the last."""
    counts = dna.counts.copy()
    counts[:, 0] += dna.underflow
    counts[:, -1] += dna.overflow
    fits = counts.max() <= MAX_INT32
    notes = [] if fits else ["counts are int64: int32, as the reference saves, would wrap"]
    if lost := int(dna.nonfinite.sum()):
        notes.append(f"{lost} activations that are not finite are left out")
    stored = counts.astype(np.int32) if fits else counts
    return {layer: stored[dna.slice_of(layer)] for layer in dna.layers}, notes


def _write_gaussians(dna: DNA) -> tuple[Arrays, list[str]]:
    arrays: Arrays = {}
    degrees = max(1, dna.images - 1)
    for layer in dna.layers:
        here = dna.slice_of(layer)
        with np.errstate(over="ignore"):
            arrays[f"mu-{layer}"] = dna.mean[here].astype(np.float32)
            arrays[f"var-{layer}"] = (dna.m2[here] / degrees).astype(np.float32)
    return arrays, _one_image(dna)


def _write_layer_gaussians(dna: DNA) -> tuple[Arrays, list[str]]:
    arrays: Arrays = {}
    degrees = max(1, dna.images - 1)
    for layer in dna.layers:
        arrays[f"mu-{layer}"] = dna.mean[dna.slice_of(layer)]
        arrays[f"sigma-{layer}"] = dna.scatter_of(layer) / degrees
    return arrays, _one_image(dna)


def _one_image(dna: DNA) -> list[str]:
    return ["the variance of one image is written as 0"] if dna.images == 1 else []


def _write_extremes(dna: DNA) -> tuple[Arrays, list[str]]:
    arrays: Arrays = {}
    for layer in dna.layers:
        here = dna.slice_of(layer)
        arrays |= {f"min-{layer}": dna.min[here], f"max-{layer}": dna.max[here]}
    none = int((dna.min > dna.max).sum())
    return arrays, [f"{none} neurons have no finite activation: inf to -inf"] if none else []


_WRITERS: dict[Kind, Callable[[DNA], tuple[Arrays, list[str]]]] = {
    "histogram": _write_histograms,
    "gaussian": _write_gaussians,
    "layer-gaussian": _write_layer_gaussians,
    "activation-ranges": _write_extremes,
}


def _metadata(dna: DNA, kind: Kind, source: str) -> dict[str, Any]:
    """NAME.json: the fields that the reference reads, and the spec, which it leaves alone."""
    spec, bins, histogram = dna.spec, dna.spec.bins, kind == "histogram"
    return {
        "time_of_compute": datetime.now(UTC).strftime("%I:%M%p on %B %d, %Y"),
        "vdna_version": software(),
        "distribution": {"hist_nb_bins": bins} if histogram else {},
        "type": kind,
        "name": f"histogram-{bins}" if histogram else kind,
        "data_settings": {
            "source": source or "not told",
            "crop_to_square_pre_resize": spec.preprocess.crop,
            "resize_mode": spec.preprocess.resize,
            "shuffle_files": False,
            "num_images": -1,
        },
        "extraction_settings": {
            "average_feats_spatially": kind in ("gaussian", "layer-gaussian"),
            "accumulate_spatial_feats_in_hist": histogram,
            "accumulate_sample_feats_in_hist": histogram,
            "keep_only_min_max": kind == "activation-ranges",
            "normalise_feats": histogram,
            "hist_nb_bins": bins if histogram else 0,
            "device": "cpu",
        },
        "num_images": dna.images,
        "feature_extractor_name": spec.extractor,
        "neurons_list": {layer: spec.tap(layer).neurons for layer in dna.layers},
        "spec": spec.to_json(),
        "spec_digest": spec.digest,
    }
