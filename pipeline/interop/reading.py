"""interop.reading: TODO-DOC"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import CorruptFile, UsageError, redact
from pipeline.interop.reference_networks import OTHER_RESIZES
from pipeline.spec import LAYER_GAUSSIAN, MAX_BINS

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

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")

_TORN = (
    *(zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, KeyError),
    *(NotImplementedError, RuntimeError, MemoryError),
)
"""What a zip of arrays that is torn, encrypted or made up may raise."""


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
    uri = npz_uri(url)
    about = storage.readable(json_uri(uri))
    data = storage.read(uri)
    metadata = Metadata(storage.read(json_uri(uri)), about)
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
        _choice(settings, "resize_mode", ("clean", "fast", *OTHER_RESIZES), about),
        _batch(metadata.table("extraction_settings")),
        _images_from(settings.get("source")),
        metadata.data.get("spec"),
        _read_arrays(data, _expected(kind, neurons, bins), set(neurons), name),
    )


class Metadata:
    """Fields of NAME.json, each checked when it is asked for."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        try:
            self.data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{name}: torn, or not JSON: {error}") from error
        if not isinstance(self.data, dict):
            raise CorruptFile(f"{name}: not the metadata of a VDNA, but a {type_name(self.data)}")

    def kind(self) -> Kind:
        kind = self.text("type")
        if kind not in KINDS:
            raise self.wrong("type", kind, f"one of {', '.join(KINDS)}")
        return kind

    def bins(self) -> int:
        distribution = self.table("distribution")
        bins: Any = distribution.get("hist_nb_bins")
        if not is_count(bins) or not 2 <= bins <= MAX_BINS:
            raise self.wrong("distribution.hist_nb_bins", bins, f"a number from 2 to {MAX_BINS}")
        return int(bins)

    def neurons(self) -> dict[str, int]:
        neurons = self.table("neurons_list")
        for layer, count in neurons.items():
            if not is_text(layer) or not is_count(count) or not count:
                raise self.wrong(f"neurons_list.{layer}", count, "a positive number")
        if not neurons:
            raise self.wrong("neurons_list", neurons, "at least one layer")
        return neurons

    def text(self, field: str) -> str:
        value = self.data.get(field)
        if not is_text(value):
            raise self.wrong(field, value, "text")
        return cast(str, value)

    def number(self, field: str, most: int) -> int:
        value: Any = self.data.get(field)
        if not is_count(value) or not 1 <= value <= most:
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


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_text(value: object) -> bool:
    """Not empty, and no half of a character, which JSON can name and no file can hold."""
    return isinstance(value, str) and bool(value) and not _HALF_CHARACTER.search(value)


def type_name(value: object) -> str:
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
    return batch if is_count(batch) and batch else None


def _images_from(source: object) -> str:
    if isinstance(source, str):
        return redact(source)
    return f"{len(source)} files" if isinstance(source, list) else "not told"


def npz_uri(url: str) -> str:
    uri = storage.canonical(url)
    if not uri.endswith(".npz"):
        raise UsageError(f"{url}: the reference's files are NAME.npz and NAME.json; name the .npz")
    return uri


def json_uri(uri: str) -> str:
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
