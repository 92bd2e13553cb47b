"""Keeps the coarse curves of a DNA, so that a search for the nearest reads a hundredth of it.

>>> find_coarse(Counting(root, spec, "cityscapes", version)).read("blocks.3")  # doctest: +SKIP

They are the same for every search under a spec, whatever it weighs, and are kept for as long as the
DNA is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.comparing.coarse_curves import BLOCKS, MEAN_PARTS, CoarseLayer
from pipeline.comparing.emd_kernel import Curves
from pipeline.comparing.kept_points import Counting
from pipeline.dna import DnaFile, FileKind, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, SourceError, StorageError, TransientError

COARSE = FileKind("coarse_curves")

_SCHEMA = pa.schema({"means": pa.list_(pa.uint16()), "undefined": pa.bool_()})

_LAYOUT: dict[str, Any] = {
    "use_dictionary": False,
    "column_encoding": {"means.list.element": "DELTA_BINARY_PACKED"},
}


def encode_coarse(counting: Counting) -> bytes:
    """Makes the file of a DNA's coarse curves in memory, which reads all of the DNA.

    Args:
        counting: The DNA.

    Returns:
        The bytes of the file.
    """
    catalogue = Catalogue(counting.root)
    file = catalogue.open_file("dna", counting.name, counting.version, on_disk=True)
    metadata = _stated(counting)
    tables = (_table(_coarse(file, layer)) for layer in counting.spec.layers)
    return encode_sealed(COARSE, metadata, tables, _SCHEMA, **_LAYOUT)


def _stated(counting: Counting) -> dict[str, Any]:
    """Returns what a file of coarse curves must state to be read."""
    return {
        "spec": counting.spec.digest,
        "dna": counting.version.dna,
        "blocks": BLOCKS,
        "mean_parts": MEAN_PARTS,
    }


def _coarse(file: DnaFile, layer: str) -> CoarseLayer:
    dna = file.read([layer])
    neurons, bins = dna.counts.shape
    curves = Curves.empty(neurons, 1, bins)
    curves.fill(0, [dna.counts], [dna.underflow], [dna.overflow])
    return CoarseLayer.of(curves, bins)


def _table(layer: CoarseLayer) -> pa.Table:
    ends = np.arange(len(layer.means) + 1, dtype=np.int32) * BLOCKS
    means = pa.ListArray.from_arrays(pa.array(ends), pa.array(layer.means.ravel()))
    return pa.table([means, pa.array(layer.undefined)], schema=_SCHEMA)


class KeptCoarse:
    """The coarse curves of a DNA in a file."""

    def __init__(self, data: Any, counting: Counting) -> None:
        """Opens a file.

        Args:
            data: Its bytes.
            counting: Whose coarse curves it should hold.

        Raises:
            CorruptFile: The file is torn, not what was written, or another DNA's.
        """
        self._file = SealedFile(data, COARSE, counting.coarse_uri)
        self._file.check()
        self._layers: Sequence[str] = counting.spec.layers
        with corrupt_if_unreadable(f"{counting.coarse_uri}: its metadata cannot be read"):
            expected = _stated(counting)
            found = {name: self._file.metadata[name] for name in expected}
            if found != expected:
                raise CorruptFile(
                    f"{counting.coarse_uri} holds coarse curves of {found}, not of {expected}"
                )

    def read(self, layer: str) -> CoarseLayer:
        """Reads one layer.

        Args:
            layer: The layer.

        Returns:
            The coarse curves of its neurons.

        Raises:
            CorruptFile: The layer cannot be read.
        """
        with corrupt_if_unreadable(f"{self._file.name}: layer {layer} cannot be read"):
            rows = self._file.parquet.read_row_group(self._layers.index(layer), use_threads=False)
            means = rows["means"].combine_chunks().values.to_numpy()
            undefined = rows["undefined"].to_numpy()
            return CoarseLayer(means.reshape(len(undefined), BLOCKS), undefined)


def find_coarse(counting: Counting, *, discard: bool = True) -> KeptCoarse | None:
    """Finds the kept coarse curves of a DNA.

    Args:
        counting: The DNA.
        discard: Whether those that are damaged, or of other blocks, are removed.

    Returns:
        The coarse curves, or None if there are none that can be read.

    Raises:
        TransientError: Storage does not answer now.
    """
    try:
        return KeptCoarse(storage.read(counting.coarse_uri), counting)
    except TransientError:
        raise
    except (SourceError, StorageError):
        return None
    except CorruptFile:
        if discard:
            storage.discard(counting.coarse_uri)
        return None
