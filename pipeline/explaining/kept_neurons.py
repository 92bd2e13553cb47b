"""Keeps the neurons that differ most in pairs, so that an unchanged page is not computed again.

>>> NearestPairs.decode(found.encode(), "kept") == found         # doctest: +SKIP
True
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.catalogue import canonical_json
from pipeline.errors import CorruptFile, SourceError, StorageError, TransientError
from pipeline.events import Listener, Said
from pipeline.spec import digest_of


@dataclass(frozen=True)
class PairNeuron:
    """A neuron of a pair, with its distance and both histograms.

    Attributes:
        layer: The neuron's layer.
        neuron: Its index in the layer.
        emd: Its distance, in bins.
        low: Where the histograms begin. They leave out next to nothing.
        high: Where they end.
        a: The first dataset's activations in equal intervals, 0 to 999 of the larger peak.
        b: The second dataset's.
        peak: The share of all activations that the larger peak stands for.
        weight: The weight that the lens gives the neuron.
        corrected: The corrected distance, and the ends of the 95% interval of the true one, if they
            are known.
        q: The neuron's q over all neurons of the pair, if it is known.
    """

    layer: str
    neuron: int
    emd: float
    low: float
    high: float
    a: tuple[int, ...]
    b: tuple[int, ...]
    peak: float
    weight: float = 1.0
    corrected: tuple[float, float, float] | None = None
    q: float | None = None


@dataclass(frozen=True)
class NearestPairs:
    """The nearest pairs of a matrix, with the neurons that differ most in each.

    Attributes:
        neurons: For each pair (i < j) of datasets, by their numbers in the matrix, its neurons.
        pairs: How many pairs of the matrix have a distance; these are the nearest of them.
    """

    neurons: Mapping[tuple[int, int], Sequence[PairNeuron]]
    pairs: int

    def encode(self) -> bytes:
        """Writes the pairs as JSON; the same pairs give the same bytes."""
        found = [[*pair, [asdict(of) for of in neurons]] for pair, neurons in self.neurons.items()]
        body = {"neurons": found, "pairs": self.pairs}
        return canonical_json(body | {"checksum": digest_of(body)})

    @classmethod
    def decode(cls, data: bytes, name: str) -> NearestPairs:
        """Reads what `encode` wrote.

        Args:
            data: The bytes.
            name: What errors call the file.

        Returns:
            The pairs.

        Raises:
            CorruptFile: The bytes are torn or changed.
        """
        try:
            body = json.loads(data)
            stated = body.pop("checksum")
            if stated != digest_of(body):
                raise CorruptFile(f"{name}: its content is not what was written")
            neurons = {
                (i, j): [_pair_neuron(of) for of in found] for i, j, found in body["neurons"]
            }
            return cls(neurons, body["pairs"])
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CorruptFile(f"{name}: no neurons of pairs: {error!r}") from error


def _pair_neuron(fields: Mapping[str, Any]) -> PairNeuron:
    corrected = fields["corrected"]
    return PairNeuron(
        **{
            **fields,
            "a": tuple(fields["a"]),
            "b": tuple(fields["b"]),
            "corrected": None if corrected is None else tuple(corrected),
        }
    )


def find_kept_neurons(uri: str, *, discard: bool) -> NearestPairs | None:
    """Reads the neurons of pairs that are kept.

    Args:
        uri: Where they are, named for all that decides them.
        discard: Whether those that are damaged are removed.

    Returns:
        The neurons; None if there are none, or what is there is damaged and must be found again.
    """
    try:
        return NearestPairs.decode(storage.read(uri), uri)
    except SourceError:
        return None
    except CorruptFile:
        if discard:
            storage.discard(uri)
        return None


def keep_neurons(uri: str, found: NearestPairs, progress: Listener) -> None:
    """Writes the neurons of pairs for the next time.

    Args:
        uri: Where they are kept.
        found: The neurons.
        progress: Is told if the catalogue cannot be written; the page is made all the same.

    Raises:
        TransientError: If the store does not answer for now.
    """
    try:
        storage.create(uri, found.encode())
    except TransientError:
        raise
    except StorageError as error:
        progress(Said(f"the neurons of pairs are not kept for the next time: {error}"))
