"""Keeps what comparisons need of a DNA and its folds, so that both are read once.

    >>> keep_points(Counting(root, spec, "cityscapes", version))               # doctest: +SKIP

Reading the folds of a DNA takes most of the time of a comparison with a thousand others. What sums
over folds look at is a twentieth of that. It is the same for every comparison that weighs neurons
alike, and is kept for as long as the DNA is. The counts of the whole DNA are kept beside it. A
layer is a few arrays of the smallest numbers that hold it, which takes less time to read than the
rows of the DNA's own file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.buffers import release_pages
from pipeline.catalogue import Catalogue, Version
from pipeline.comparing.dna_layer import DnaLayer
from pipeline.comparing.fold_points import FoldPoints, points_of, step_for
from pipeline.comparing.fold_statistics import METHOD
from pipeline.dna import FileKind, Pairs, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, SourceError
from pipeline.spec import Spec

POINTS = FileKind("fold_points")

_OF_FOLDS = ("below", "totals", "halves")

_SCHEMA = pa.schema({column: pa.binary() for column in (*DnaLayer.ARRAYS, *_OF_FOLDS)})
"""A row is a layer, and a cell an array of it."""

_LAYOUT: dict[str, Any] = {"use_dictionary": False, "write_statistics": False}


def plain_step(spec: Spec, layer: str) -> int:
    """Chooses the bins between points of a layer whose neurons all weigh the same.

    Args:
        spec: The spec.
        layer: Name of the layer.

    Returns:
        The number of bins.
    """
    return step_for(spec.bins, spec.tap(layer).neurons)


@dataclass(frozen=True)
class Counting:
    """One DNA of which something is counted, and kept for later comparisons.

    Attributes:
        root: Root of the catalogue.
        spec: Its spec.
        name: Name of the dataset.
        version: The version of it.
    """

    root: str
    spec: Spec
    name: str
    version: Version

    @property
    def uri(self) -> str:
        """Where the counts of its folds are kept."""
        return Catalogue(self.root).fold_points_uri(self.spec.digest, self.version.dna)

    @property
    def coarse_uri(self) -> str:
        """Where its coarse curves are kept."""
        return Catalogue(self.root).coarse_curves_uri(self.spec.digest, self.version.dna)


def keep_points(counting: Counting) -> None:
    """Counts the folds of a DNA and keeps the counts with the DNA's own, unless they are there.

    Args:
        counting: The DNA.
    """
    if storage.exists(counting.uri):
        return
    spec = counting.spec
    catalogue = Catalogue(counting.root)
    whole, folds = (
        catalogue.open_file(kind, counting.name, counting.version, on_disk=True)
        for kind in ("dna", "folds")
    )
    steps = {layer: plain_step(spec, layer) for layer in spec.layers}
    arrays = []
    for layer, step in steps.items():
        points = FoldPoints.read(folds, layer, step)
        arrays.append(_arrays(DnaLayer.of(whole.read([layer]), points)))
    metadata = {
        "spec": spec.digest,
        "dna": counting.version.dna,
        "method": METHOD,
        "steps": list(steps.values()),
        "types": [{name: array.dtype.str for name, array in of.items()} for of in arrays],
        "numbers": list(points.numbers),
        "images": points.images.tolist(),
        "pairs": folds.pairs.to_json() if folds.pairs is not None else None,
    }
    tables = (
        pa.table({name: [array.tobytes()] for name, array in of.items()}, schema=_SCHEMA)
        for of in arrays
    )
    storage.create(counting.uri, encode_sealed(POINTS, metadata, tables, _SCHEMA, **_LAYOUT))


def _arrays(layer: DnaLayer) -> dict[str, NDArray[Any]]:
    """Returns what is kept of a layer; whole numbers in the least room that holds the largest."""
    arrays = {name: getattr(layer, name) for name in DnaLayer.ARRAYS}
    arrays |= {name: getattr(layer.points, name) for name in _OF_FOLDS}
    arrays["below"] = arrays["below"].transpose(1, 2, 0)  # as `FoldCurves` needs them
    for name, array in arrays.items():
        if array.dtype == np.int64:
            least = np.min_scalar_type(int(array.max(initial=0)))
            arrays[name] = array.astype(least.newbyteorder("<"))
    return arrays


class KeptPoints:
    """The kept counts of a DNA and its folds, which lie on disk.

    Attributes:
        pairs: By which names the images of the DNA are paired with others'; None if not known.
    """

    def __init__(self, data: Any, counting: Counting) -> None:
        """Opens a file.

        Args:
            data: Its bytes, or a memory map.
            counting: Whose counts it should hold.

        Raises:
            CorruptFile: The file is torn, not what was written, or another DNA's.
        """
        self._data = data
        self._file = SealedFile(data, POINTS, counting.uri)
        self._file.check()
        self._spec = counting.spec
        with corrupt_if_unreadable(f"{counting.uri}: its metadata cannot be read"):
            stated = self._file.metadata
            found = tuple(stated[name] for name in ("spec", "dna", "method"))
            if found != (counting.spec.digest, counting.version.dna, METHOD):
                raise CorruptFile(f"{counting.uri} holds counts of {found}: spec, DNA and method")
            self._steps = dict(zip(counting.spec.layers, stated["steps"], strict=True))
            self._numbers = tuple(stated["numbers"])
            self._images = np.array(stated["images"], np.int64)
            self._types = stated["types"]
            pairs = stated["pairs"]
            self.pairs = None if pairs is None else Pairs.from_json(pairs)

    def read(self, layer: str, step: int) -> DnaLayer | None:
        """Reads one layer.

        Args:
            layer: The layer.
            step: Bins from one point to the next.

        Returns:
            The layer, or None if the counts that are kept are of other points.

        Raises:
            CorruptFile: The layer cannot be read.
        """
        if self._steps[layer] != step:
            return None
        index = self._spec.layers.index(layer)
        neurons, bins, folds = self._spec.tap(layer).neurons, self._spec.bins, len(self._numbers)
        with corrupt_if_unreadable(f"{self._file.name}: layer {layer} cannot be read"):
            row = self._file.parquet.read_row_group(index, use_threads=False)
            release_pages(self._data)  # many such files are open
            arrays: dict[str, Any] = {}
            for name, kind in self._types[index].items():
                cell = row[name].chunk(0)[0].as_buffer()
                array: NDArray[Any] = np.frombuffer(cell, np.dtype(kind))
                arrays[name] = array.astype(np.int64) if array.dtype.kind == "u" else array
            of_folds = [arrays.pop(name) for name in _OF_FOLDS]
            if folds < 2:
                points = FoldPoints.without_counts(self._numbers, self._images)
            else:
                below, totals, halves = of_folds
                below = below.reshape(neurons, points_of(bins, step), folds).transpose(2, 0, 1)
                points = FoldPoints(
                    self._numbers,
                    self._images,
                    below,
                    totals.reshape(folds, neurons),
                    halves.reshape(neurons, -1),
                )
            arrays["counts"] = arrays["counts"].reshape(neurons, bins)
            return DnaLayer(points=points, **arrays)


def find_points(counting: Counting, *, discard: bool = True) -> KeptPoints | None:
    """Finds the kept counts of a DNA and its folds.

    Args:
        counting: The DNA.
        discard: Whether counts that are damaged, or of another method, are removed.

    Returns:
        The counts, or None if there are none.
    """
    try:
        return KeptPoints(storage.read_on_disk(counting.uri), counting)
    except SourceError:
        return None
    except CorruptFile:
        if discard:
            storage.discard(counting.uri)
        return None


def without_points(root: str, spec: Spec, members: Iterable[tuple[str, Version]]) -> list[Counting]:
    """Finds the DNAs whose folds are not counted yet, each once, by one listing.

    Args:
        root: Root of the catalogue.
        spec: The spec of the DNAs.
        members: Names of datasets with their versions.

    Returns:
        Those that have folds, and no kept counts.
    """
    folder = Catalogue(root).fold_points_uri(spec.digest, "").rpartition("/")[0]
    try:
        there = {item.uri for item in storage.walk(folder)}
    except SourceError:
        there = set()
    found = {
        version.dna: Counting(root, spec, name, version)
        for name, version in members
        if "folds" in version.sha256
    }
    return [counting for counting in found.values() if counting.uri not in there]
