"""Keeps what error bars need of a DNA's folds, so that the folds are read once.

    >>> keep_points(Counting(root, spec, "cityscapes", version))               # doctest: +SKIP

Reading the folds of a DNA takes most of the time of a comparison with a thousand others. What sums
over folds look at is a twentieth of that. It is the same for every comparison that weighs neurons
alike, and is kept for as long as the DNA is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalogue import Catalogue, Version
from pipeline.comparing.fold_points import FoldPoints, points_of, step_for
from pipeline.comparing.fold_statistics import METHOD
from pipeline.dna import FileKind, Pairs, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, SourceError
from pipeline.spec import Spec

POINTS = FileKind("fold_points")

_SCHEMA = pa.schema(
    {
        "below": pa.list_(pa.int64()),
        "totals": pa.list_(pa.int64()),
        "halves": pa.list_(pa.float64()),
    }
)

_LAYOUT: dict[str, Any] = {
    "use_dictionary": False,
    "column_encoding": {
        "below.list.element": "DELTA_BINARY_PACKED",
        "totals.list.element": "DELTA_BINARY_PACKED",
    },
}


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
    """Counts the folds of a DNA and keeps the counts, unless they are there.

    Args:
        counting: The DNA.
    """
    if storage.exists(counting.uri):
        return
    spec = counting.spec
    catalogue = Catalogue(counting.root)
    file = catalogue.open_file("folds", counting.name, counting.version, on_disk=True)
    steps = {layer: plain_step(spec, layer) for layer in spec.layers}
    counted = [FoldPoints.of(file.read_folds(layer), step) for layer, step in steps.items()]
    metadata = {
        "spec": spec.digest,
        "dna": counting.version.dna,
        "method": METHOD,
        "steps": list(steps.values()),
        "numbers": list(counted[0].numbers),
        "images": counted[0].images.tolist(),
        "pairs": file.pairs.to_json() if file.pairs is not None else None,
    }
    tables = map(_table, counted)
    storage.create(counting.uri, encode_sealed(POINTS, metadata, tables, _SCHEMA, **_LAYOUT))


def _table(points: FoldPoints) -> pa.Table:
    below = points.below.transpose(1, 0, 2)
    flat = below.reshape(len(below), below.shape[1] * below.shape[2])
    columns = (flat, points.totals.T, points.halves)
    return pa.table([_lists(values) for values in columns], schema=_SCHEMA)


def _lists(values: Any) -> pa.Array:
    """Returns a list for each row of (N, M) values."""
    rows, length = values.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * length
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.ascontiguousarray(values).ravel())
    )


class KeptPoints:
    """The kept counts of a DNA's folds, which lie on disk.

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
            pairs = stated["pairs"]
            self.pairs = None if pairs is None else Pairs.from_json(pairs)

    def read(self, layer: str, step: int) -> FoldPoints | None:
        """Reads one layer.

        Args:
            layer: The layer.
            step: Bins from one point to the next.

        Returns:
            The counts, or None if those that are kept are of other points.

        Raises:
            CorruptFile: The layer cannot be read.
        """
        if self._steps[layer] != step:
            return None
        if len(self._numbers) < 2:
            return FoldPoints.without_counts(self._numbers, self._images)
        index = self._spec.layers.index(layer)
        neurons, folds = self._spec.tap(layer).neurons, len(self._numbers)
        with corrupt_if_unreadable(f"{self._file.name}: layer {layer} cannot be read"):
            rows = self._file.parquet.read_row_group(index, use_threads=False)
            below, totals, halves = (
                column.combine_chunks().values.to_numpy() for column in rows.columns
            )
            points = points_of(self._spec.bins, step)
            return FoldPoints(
                self._numbers,
                self._images,
                below.reshape(neurons, folds, points).transpose(1, 0, 2),
                np.ascontiguousarray(totals.reshape(neurons, folds).T),
                halves.reshape(neurons, -1),
            )


def find_points(counting: Counting, *, discard: bool = True) -> KeptPoints | None:
    """Finds the kept counts of a DNA's folds.

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
