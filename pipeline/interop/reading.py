"""Reads the two files of the reference package: NAME.npz with the arrays, NAME.json beside it.

>>> read_file("old/cityscapes.npz").arrays["block_0"].shape      # doctest: +SKIP
(768, 1000)

The sizes and types of arrays are checked before they are loaded, and nothing is unpickled.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.errors import CorruptFile, UsageError
from pipeline.interop.reference_metadata import ReferenceKind, read_metadata

_TORN = (
    *(zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, KeyError),
    *(NotImplementedError, RuntimeError, MemoryError),
)
"""What a zip of arrays that is torn, encrypted or made up may raise."""


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """What NAME.json and NAME.npz hold, checked against each other.

    Attributes:
        name: The path or url of NAME.npz.
        kind: The kind of the arrays.
        version: The version of the package that saved them.
        extractor: The reference's name of the network.
        images: The number of images.
        neurons: The number of neurons in each layer.
        bins: The number of bins; None for files without histograms.
        crop: `none`, `center` or `random`.
        resize: `clean`, `fast`, or a mode that only the reference has.
        batch: The number of images in a batch; None if it is not told.
        source: Where the images are from, for people.
        stated_spec: The spec, in a file that was exported from here.
        arrays: The arrays by name: of the layer, or of a quantity and the layer, such as
            `mu-block_0`.
    """

    name: str
    kind: ReferenceKind
    version: str
    extractor: str
    images: int
    neurons: dict[str, int]
    bins: int | None
    crop: str
    resize: str
    batch: int | None
    source: str
    stated_spec: Any
    arrays: dict[str, NDArray[Any]]

    @property
    def software(self) -> str:
        """Name and version of the package that saved the file."""
        return self.version if self.version.startswith("vdna") else f"vdna {self.version}"


def read_file(url: str) -> ReferenceFile:
    """Reads NAME.npz and NAME.json beside it, from anywhere that storage reads.

    Args:
        url: The path or url of NAME.npz.

    Returns:
        What the two files hold.

    Raises:
        CorruptFile: If a field or an array is wrong, or NAME.json states another NAME.npz. Objects
            that would have to be unpickled are refused unread.
        SourceError: If one of the files is missing.
        UsageError: If the url does not end in `.npz`.
    """
    uri = npz_uri(url)
    name, data = storage.readable(uri), storage.read(uri)
    metadata = read_metadata(storage.read(json_uri(uri)), storage.readable(json_uri(uri)))
    if metadata.npz_sha256 not in (None, sha256(data)):
        raise CorruptFile(
            f"{name}: its json is of another file, as it states the sha256 {metadata.npz_sha256}; "
            "an export that ended early leaves this. Export it again"
        )
    kind, neurons, settings = metadata.type, metadata.neurons_list, metadata.data_settings
    batch = metadata.extraction_settings.batch_size
    return ReferenceFile(
        name=name,
        kind=kind,
        version=metadata.vdna_version,
        extractor=metadata.feature_extractor_name,
        images=metadata.num_images,
        neurons=neurons,
        bins=metadata.bins,
        crop=settings.crop_to_square_pre_resize,
        resize=settings.resize_mode,
        batch=batch if type(batch) is int and batch > 0 else None,
        source=settings.images_from,
        stated_spec=metadata.spec,
        arrays=_read_arrays(data, _expected(kind, neurons, metadata.bins), set(neurons), name),
    )


def npz_uri(url: str) -> str:
    """Returns the canonical url of NAME.npz.

    Args:
        url: Its path or url.

    Returns:
        The url.

    Raises:
        UsageError: If it does not end in `.npz`.
    """
    uri = storage.canonical(url)
    if not uri.endswith(".npz"):
        raise UsageError(f"{url}: the reference's files are NAME.npz and NAME.json; name the .npz")
    return uri


def json_uri(uri: str) -> str:
    """Returns the url of NAME.json beside NAME.npz."""
    return f"{uri.removesuffix('.npz')}.json"


Expected = dict[str, tuple[tuple[int, ...], str]]
"""Each array's name with its shape and the kind of its type: `i` integers, `f` floats."""


def _expected(kind: ReferenceKind, neurons: Mapping[str, int], bins: int | None) -> Expected:
    """Tells which arrays a file of a kind must hold."""
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
    """Reads the arrays of an npz, after checking their headers.

    Beside the arrays of a Gaussian or of extremes, the reference saves a pickled empty dict named
    for each layer. It is passed over, as the reference does when it loads the file.

    Args:
        data: The npz.
        expected: The arrays that it must hold.
        layers: The layers, whose names such dicts have.
        name: How errors name the file.

    Returns:
        The expected arrays, by name.

    Raises:
        CorruptFile: If the file is torn, or holds other arrays than expected.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if raw := [each for each in archive.namelist() if not each.endswith(".npy")]:
                raise CorruptFile(
                    f"{name}: holds {', '.join(raw[:5])}, which is no array, as its name does not "
                    "end in .npy"
                )
            present = {member.removesuffix(".npy") for member in archive.namelist()}
            if missing := sorted(expected.keys() - present):
                raise CorruptFile(
                    f"{name}: has no array {', '.join(missing[:5])}, which its json names"
                )
            if odd := sorted(present - expected.keys() - layers):
                raise CorruptFile(
                    f"{name}: holds {', '.join(odd[:5])}, which its json does not name"
                )
            for key, (shape, kind) in expected.items():
                with archive.open(f"{key}.npy") as stream:
                    _check_header(stream, shape, kind, f"{name}: array {key}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {
                key: _native(arrays[f"{key}.npy"], kind).reshape(shape)
                for key, (shape, kind) in expected.items()
            }
    except _TORN as error:
        raise CorruptFile(f"{name}: torn, or not a file of arrays: {error!r}") from error


def _native(array: NDArray[Any], kind: str) -> NDArray[Any]:
    """Converts an array to this machine's byte order."""
    return array.astype(np.dtype(f"{kind}{array.dtype.itemsize}"), copy=False)


def _check_header(stream: Any, shape: tuple[int, ...], kind: str, name: str) -> None:
    """Refuses an array of another shape or type, and pickled objects, by the header alone."""
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
    # torch drops the dimension of an array with one element
    squeezed = found == () and kind == "f" and set(shape) == {1}
    if found != shape and not squeezed:
        raise CorruptFile(f"{name} has shape {found}; by its json it must have {shape}")
