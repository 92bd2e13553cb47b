"""Holds the folds of a DNA in memory, packed: they serve error bars, one layer at a time.

>>> dna.folds.read("blocks.3.1")[0].images                       # doctest: +SKIP
75

A fold has as many counts as the whole DNA, and most of them are zero. Packed, sixteen folds take
less memory than one DNA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.dna.pairs import Pairs
from pipeline.dna.value import DNA

CODEC = "zstd"


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """One layer of a fold.

    Attributes:
        fold: The number of the fold.
        rest: The DNA of the layer without its counts.
        counts: The counts, as compressed bytes of the type `kind`.
        kind: The narrowest type that holds all counts.
    """

    fold: int
    rest: DNA
    counts: bytes
    kind: str

    @classmethod
    def of(cls, fold: int, dna: DNA) -> PackedLayer:
        """Packs the DNA of one layer.

        Args:
            fold: The number of the fold.
            dna: Its DNA of that layer.

        Returns:
            The packed layer.
        """
        # A negative count is taken for one of 64 bits without a sign, and unpacked as it was.
        kind = np.min_scalar_type(int(dna.counts.view(np.uint64).max(initial=0)))
        data = pa.compress(dna.counts.astype(kind).tobytes(), codec=CODEC, asbytes=True)
        rest = replace(dna, counts=np.zeros((len(dna.counts), 0), np.int64), folds=None)
        return cls(fold, rest, data, kind.str)

    def unpack(self) -> DNA:
        """Returns the DNA of the layer."""
        shape, kind = (len(self.rest.counts), self.rest.spec.bins), np.dtype(self.kind)
        size = shape[0] * shape[1] * kind.itemsize
        data = pa.decompress(self.counts, decompressed_size=size, codec=CODEC, asbytes=True)
        counts = np.frombuffer(data, kind).astype(np.int64).reshape(shape)
        return replace(self.rest, counts=counts)


@dataclass(frozen=True, eq=False)
class HeldFolds:
    """The folds of a DNA. `+` is associative: folds of one number are added.

    Attributes:
        parts: The layers of all folds, of each layer and fold one or more.
        pairs: By which names the images are paired with others'. None if that is not known, as of a
            sum.
    """

    parts: tuple[PackedLayer, ...] = ()
    pairs: Pairs | None = None

    @classmethod
    def of(cls, folds: Iterable[tuple[int, DNA]]) -> HeldFolds:
        """Packs folds.

        Args:
            folds: The number of each fold with its DNA, of all layers or of some. A fold without
                images is left out.

        Returns:
            The folds.
        """
        return cls(
            tuple(
                PackedLayer.of(fold, dna.select([layer]))
                for fold, dna in folds
                if dna.images
                for layer in dna.layers
            )
        )

    def __add__(self, other: HeldFolds) -> HeldFolds:
        return HeldFolds(self.parts + other.parts)

    def read(self, layer: str) -> Mapping[int, DNA]:
        """Unpacks one layer.

        Args:
            layer: The layer.

        Returns:
            The DNA of that layer, of each fold that has images.
        """
        found: dict[int, DNA] = {}
        for part in self.parts:
            if part.rest.layers == (layer,):
                dna = part.unpack()
                found[part.fold] = found[part.fold] + dna if part.fold in found else dna
        return dict(sorted(found.items()))
