"""A partial: the DNA of some shards, the keys of those shards, and the images that failed.

    >>> (a + b).shards == tuple(sorted(a.shards + b.shards))      # doctest: +SKIP

Partials that share a shard cannot be added, so no sum counts an image twice. The file of a partial
is the file of its DNA, with the shards and the failures in the metadata. If the build keeps
exemplars, each neuron's row has a cell with them. If it keeps image hashes, the first row has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.dna.dna_encoding import dna_metadata, encode_layers
from pipeline.dna.dna_file import DnaFile
from pipeline.dna.exemplars import EXEMPLAR_COLUMN, Exemplars
from pipeline.dna.failures import Failure
from pipeline.dna.image_hashes import ImageHashes
from pipeline.dna.neuron_rows import to_table
from pipeline.dna.ranges import Ranges
from pipeline.dna.value import DNA
from pipeline.errors import ConservationError, CorruptFile, OverlapError, SpecMismatch
from pipeline.spec import IMAGE_HASHES, Spec
from pipeline.wording import count_of

Product = TypeVar("Product", Exemplars, ImageHashes)
"""What a partial may have beside its DNA."""


@dataclass(frozen=True, eq=False)
class Partial:
    """Everything that was counted in some shards.

    Laws:

    - `empty` is neutral for `+` if the build keeps neither exemplars nor image hashes.
    - `+` is associative and commutative, with the same precision as that of `DNA`.
    - `+` refuses partials that share a shard, partials that were not made the same way, and a
      partial with exemplars or image hashes and one without.

    Attributes:
        dna: The counts and sums of the shards' images.
        shards: The keys of the shards, sorted, each once.
        failures: The images that could not be read, sorted.
        exemplars: The images that neurons react to most; None if the build keeps none.
        image_hashes: The hashes of each candidate; None if the build keeps none.
    """

    dna: DNA
    shards: tuple[str, ...]
    failures: tuple[Failure, ...]
    exemplars: Exemplars | None = None
    image_hashes: ImageHashes | None = None

    def __post_init__(self) -> None:
        if self.dna.failed != len(self.failures):
            raise ConservationError(
                f"a partial of {len(self.shards)} shards counts {self.dna.failed} failures and "
                f"lists {len(self.failures)}"
            )
        hashes = self.image_hashes
        if hashes is not None and (hashes.candidates, hashes.images) != (
            self.candidates,
            self.dna.images,
        ):
            raise ConservationError(
                f"a partial of {len(self.shards)} shards counts {self.dna.images} of "
                f"{count_of(self.candidates, 'candidate')}, and has hashes of {hashes.images} of "
                f"{hashes.candidates:,}"
            )

    @classmethod
    def empty(cls, spec: Spec, ranges: Ranges, *, layer_gaussian: bool = False) -> Partial:
        """Makes the partial of no shards.

        Args:
            spec: What will be counted.
            ranges: The ranges that the spec names.
            layer_gaussian: Whether to keep the scatter matrix of each layer.

        Returns:
            The neutral element of `+`.
        """
        return cls(DNA.empty(spec, ranges, layer_gaussian=layer_gaussian), (), ())

    @property
    def candidates(self) -> int:
        """How many images the shards list: those counted, and those that failed."""
        return self.dna.images + len(self.failures)

    def __add__(self, other: Partial) -> Partial:
        """Adds two partials.

        Args:
            other: A partial of other shards.

        Returns:
            The partial of the shards of both.

        Raises:
            OverlapError: Both hold a shard.
            SpecMismatch: They were not made the same way.
        """
        both = sorted(set(self.shards) & set(other.shards))
        if both:
            raise OverlapError(
                f"{count_of(len(both), 'shard')} would count twice: {', '.join(both[:5])}"
            )
        return Partial(
            self.dna + other.dna,
            tuple(sorted(self.shards + other.shards)),
            tuple(sorted(self.failures + other.failures)),
            add_kept("exemplars", self.exemplars, other.exemplars),
            add_kept("image hashes", self.image_hashes, other.image_hashes),
        )

    def as_shard(self, key: str) -> Partial:
        """Makes a shard of the cells that were added up, in that order.

        Args:
            key: The key of the shard.

        Returns:
            The partial of that shard.
        """
        hashes = self.image_hashes.joined(key) if self.image_hashes is not None else None
        return replace(self, shards=(key,), image_hashes=hashes)

    def identical(self, other: Partial) -> bool:
        """Compares two partials.

        Args:
            other: Another partial.

        Returns:
            Whether they are equal to the last bit, apart from the numerics.
        """
        return (self.shards, self.failures, self.exemplars, self.image_hashes) == (
            other.shards,
            other.failures,
            other.exemplars,
            other.image_hashes,
        ) and self.dna.identical(other.dna)

    def encode(self) -> bytes:
        """Makes the file of this partial in memory; the same partial gives the same bytes.

        Returns:
            The bytes of the file.
        """
        metadata = dna_metadata(
            self.dna,
            shards=list(self.shards),
            failures=[asdict(failure) for failure in self.failures],
            **({EXEMPLAR_COLUMN: self.exemplars.settings.product} if self.exemplars else {}),
            **({IMAGE_HASHES: self.image_hashes.sizes} if self.image_hashes else {}),
        )
        return encode_layers("partial", metadata, map(self._rows, self.dna.layers))

    def _rows(self, layer: str) -> pa.Table:
        table = to_table(self.dna.select([layer]))
        if self.exemplars:
            table = table.append_column(EXEMPLAR_COLUMN, self.exemplars.cells(layer))
        if self.image_hashes:
            first = layer == self.dna.layers[0]
            column = self.image_hashes.column(table.num_rows, first=first)
            table = table.append_column(IMAGE_HASHES, column)
        return table

    @classmethod
    def decode(cls, data: bytes, name: str, layers: Sequence[str] | None = None) -> Partial:
        """Reads the file of a partial.

        Args:
            data: The bytes of the file.
            name: The name of the file in errors.
            layers: The layers to read; all of them if None.

        Returns:
            The partial.

        Raises:
            CorruptFile: The file is torn, or not what was written.
            ConservationError: Its counts do not add up.
        """
        file = DnaFile(data, "partial", name)
        shards, failures = shards_and_failures(file.metadata, name)
        dna, exemplars = file.read(layers), Exemplars.from_partial(file)
        return cls(dna, shards, failures, exemplars, ImageHashes.from_partial(file))


def add_kept(what: str, a: Product | None, b: Product | None) -> Product | None:
    """Adds the exemplars, or the image hashes, of two partials.

    Args:
        what: Which of these, for errors.
        a: Those of the first, or None if it keeps none.
        b: Those of the second, or None if it keeps none.

    Returns:
        Those of both; None if neither keeps any.

    Raises:
        SpecMismatch: Only one keeps them.
    """
    if a is None or b is None:
        if a is not b:
            raise SpecMismatch(f"a partial with {what} cannot be added to one without")
        return None
    return a + b


def shards_and_failures(
    metadata: dict[str, Any], name: str
) -> tuple[tuple[str, ...], tuple[Failure, ...]]:
    """Reads which shards a partial holds, and which images failed in them.

    Args:
        metadata: The metadata of the partial's file.
        name: The name of the file in errors.

    Returns:
        The keys of the shards, sorted, and the failures.

    Raises:
        CorruptFile: They cannot be read, or the keys are not distinct and sorted.
    """
    try:
        shards = tuple(metadata["shards"])
        failures = tuple(Failure(**failure) for failure in metadata["failures"])
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{name}: no readable list of shards and failures: {error!r}") from error
    if list(shards) != sorted(set(shards)):
        raise CorruptFile(f"{name}: its shards are not distinct and sorted")
    return shards, failures
