"""A lens: weights of neurons, which distances can be computed with, and its file.

    >>> lens = Lens.chosen(spec, ["blocks.3.1:4,17,20-30"])             # doctest: +SKIP
    >>> emd(a, b, lens=lens), compare(catalogue, lens=lens)             # doctest: +SKIP

A distance through a lens is the weighted mean sum(w * EMD) / sum(w) over neurons. Weights may be
negative: such neurons cancel what other neurons react to but should not. The distance of a layer
uses only the weights of its own neurons. A layer whose weights do not have a positive sum has no
distance.

The file is Parquet with a row per neuron and the columns `layer`, `neuron` and `weight`. Neurons
without a row have weight 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dna.arrays import Floats
from pipeline.dna.ranges import neuron_name
from pipeline.dna.sealed import (
    FileKind,
    SealedFile,
    corrupt_if_unreadable,
    encode_sealed,
    is_sealed,
    open_parquet,
)
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from pipeline.spec import Spec, digest_of

_LENS = FileKind("lens")

UNIFORM = "uniform"
"""The name of equal weights for all neurons. No lens may have this name."""

_CHOICE = re.compile(r"(?P<layer>.+):(?P<neurons>\d+(-\d+)?(,\d+(-\d+)?)*)")


@dataclass(frozen=True, eq=False)
class Lens:
    """Weights of the neurons of a network.

    A lens is refused with a `UsageError` if a weight is not finite, if the weights do not have a
    positive sum, or if its name is `uniform`. Lenses have no `+`: two lenses are never joined.

    Attributes:
        name: The name of the lens.
        taps: The layers, each with its number of neurons, in the order of the network's taps.
        weights: (N,) float64, the weights of all neurons, one layer after the other.
        provenance: For a fitted lens, what it was fitted on, and how well it does on data that it
            was not fitted on. Empty for other lenses.
    """

    name: str
    taps: tuple[tuple[str, int], ...]
    weights: Floats
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == UNIFORM:
            raise UsageError(
                f"lens name {UNIFORM!r} is reserved for comparing without a lens; rename it"
            )
        neurons = sum(count for _, count in self.taps)
        if self.weights.shape != (neurons,):
            raise UsageError(
                f"lens {self.name} has {len(self.weights)} weights for {neurons} neurons; give "
                "each neuron one"
            )
        bad = np.flatnonzero(~np.isfinite(self.weights))
        if len(bad):
            raise UsageError(
                f"lens {self.name}: the weight of {neuron_name(self.taps, int(bad[0]))} is "
                f"{self.weights[bad[0]]} ({len(bad)} are not finite)"
            )
        if not self.weights.any():
            raise UsageError(f"lens {self.name}: every weight is zero; there is nothing to see")
        if not self.weights.sum() > 0:
            raise UsageError(
                f"lens {self.name}: its weights sum to {self.weights.sum():g}; a distance is "
                "divided by their sum, which must be more than zero"
            )

    @property
    def fitted_on(self) -> dict[str, str]:
        """Digest of the DNA of each dataset whose images a fitted lens has seen; else empty."""
        sample = self.provenance.get("sample") or {}
        return {**(sample.get("members") or {}), **(self.provenance.get("members") or {})}

    @cached_property
    def digest(self) -> str:
        """A hash of the layers and the weights. The name of the lens is not part of it."""
        seen = np.flatnonzero(self.weights)
        weights = [float(weight).hex() for weight in self.weights[seen]]
        return digest_of("lens", self.taps, seen.tolist(), weights)

    @classmethod
    def from_rows(cls, name: str, spec: Spec, rows: Iterable[tuple[str, int, float]]) -> Lens:
        """Makes a lens from the weights of single neurons. All other neurons have weight 0.

        Args:
            name: The name of the lens.
            spec: The spec that has the neurons.
            rows: For each neuron its layer, its index in the layer, and its weight.

        Returns:
            The lens.

        Raises:
            UsageError: The spec has no such neuron, a neuron comes twice, or the weights are not
                those of a lens.
        """
        taps = spec.shape
        starts = dict(zip(spec.layers, np.cumsum([0, *(n for _, n in taps)]), strict=False))
        weights, seen = np.zeros(spec.neurons), np.zeros(spec.neurons, bool)
        for layer, neuron, weight in rows:
            if layer not in starts or not 0 <= neuron < spec.tap(layer).neurons:
                has = (
                    f"{spec.tap(layer).neurons} neurons, from 0 on"
                    if layer in starts
                    else f"no such layer; there are {', '.join(spec.layers)}"
                )
                raise UsageError(f"lens {name}: no neuron {layer}[{neuron}]; {layer} has {has}")
            at = starts[layer] + neuron
            if seen[at]:
                raise UsageError(
                    f"lens {name}: neuron {layer}[{neuron}] has two weights; give it one"
                )
            weights[at], seen[at] = weight, True
        return cls(name, taps, weights)

    @classmethod
    def chosen(cls, spec: Spec, choices: Sequence[str]) -> Lens:
        """Makes a lens with weight 1 for the chosen neurons and 0 for all others.

        Args:
            spec: The spec that has the neurons.
            choices: Neurons of a layer, as `layer:4,17,100-120`. Both ends of a range belong to it.

        Returns:
            The lens, named after the choices.

        Raises:
            UsageError: A choice is not written so, or the spec has no such neuron.
        """
        neurons: dict[tuple[str, int], None] = {}
        for choice in choices:
            match = _CHOICE.fullmatch(choice)
            if match is None:
                raise UsageError(f"neurons are {choice!r}; write them as layer:4,17,100-120")
            for part in match["neurons"].split(","):
                first, _, last = part.partition("-")
                layer = match["layer"]
                end = min(int(last or first), spec.tap(layer).neurons)  # one too many is refused
                if int(last or first) < int(first):
                    raise UsageError(f"neurons are {choice!r}: {part} ends before it begins")
                neurons |= dict.fromkeys((layer, n) for n in range(int(first), end + 1))
                if int(first) > end:
                    neurons[(layer, int(first))] = None
        return cls.from_rows(" ".join(choices), spec, ((*neuron, 1.0) for neuron in neurons))

    def weights_of(self, layer: str) -> Floats:
        """Returns the weights of a layer's neurons.

        Args:
            layer: The layer, with C neurons.

        Returns:
            (C,) float64.

        Raises:
            UsageError: The lens has no such layer.
        """
        start = 0
        for name, neurons in self.taps:
            if name == layer:
                return self.weights[start : start + neurons]
            start += neurons
        raise UsageError(f"lens {self.name} has no weights for layer {layer!r}")

    def has_positive_weight(self, layer: str) -> bool:
        """Tells whether a distance through this lens exists for a layer.

        Args:
            layer: A layer, or the name of all layers together, for which it always exists.

        Returns:
            Whether the weights of the layer have a positive sum.
        """
        names = [name for name, _ in self.taps]
        return layer not in names or bool(self.weights_of(layer).sum() > 0)

    def has_negative_weight(self, layers: Iterable[str]) -> bool:
        """Tells whether distances of these layers through this lens have no error bars.

        Args:
            layers: The layers that are compared.

        Returns:
            Whether a weight of one of them is below 0.
        """
        return any(bool((self.weights_of(layer) < 0).any()) for layer in layers)

    def weights_of_layers(self, layers: Sequence[str]) -> Floats:
        """Returns the weights of several layers' neurons.

        Args:
            layers: The layers, with N neurons together.

        Returns:
            (N,) float64, one layer after the other.
        """
        return np.concatenate([self.weights_of(layer) for layer in layers])

    def require_fit(self, spec: Spec) -> None:
        """Refuses a spec that has other neurons, or those of a network with other weights.

        Args:
            spec: The spec of the DNAs that are to be compared through this lens.

        Raises:
            UsageError: A layer has another number of neurons.
            SpecMismatch: The lens was fitted to a network with other weights.
        """
        mine, theirs = dict(self.taps), {tap.name: tap.neurons for tap in spec.taps}
        for layer in [*theirs, *mine]:
            if mine.get(layer) != theirs.get(layer):
                raise UsageError(
                    f"lens {self.name} has weights for {mine.get(layer, 0)} neurons in {layer}; "
                    f"{spec.extractor} has {theirs.get(layer, 0)}"
                )
        self.require_weights(spec.weights_sha256, f"{spec.extractor} (spec {spec.digest})")

    def require_weights(self, weights_sha256: str, network: str) -> None:
        """Refuses a network with other weights than the one that the lens was fitted to.

        A lens whose neurons were chosen by hand states no weights, and fits to any.

        Args:
            weights_sha256: The hash of the network's weights.
            network: The name of the network in errors.

        Raises:
            SpecMismatch: The lens was fitted to a network with other weights.
        """
        fitted = self.provenance.get("weights_sha256", weights_sha256)
        if fitted != weights_sha256:
            raise SpecMismatch(
                f"lens {self.name} was fitted to a network with the weights {fitted} (spec "
                f"{self.provenance.get('spec')}); {network} has the weights {weights_sha256}. "
                "Fit a lens to it"
            )

    def encode(self, written: datetime | None = None) -> bytes:
        """Makes the file of this lens in memory, with a row for each weight that is not 0.

        Args:
            written: The time that a catalogue records for a lens that it keeps. None writes none.

        Returns:
            The bytes of the file.
        """
        seen = np.flatnonzero(self.weights)
        layers = np.repeat([layer for layer, _ in self.taps], [count for _, count in self.taps])
        index = np.concatenate([np.arange(count) for _, count in self.taps])
        table = pa.table(
            {
                "layer": pa.array(layers[seen].tolist(), pa.string()),
                "neuron": pa.array(index[seen], pa.int32()),
                "weight": pa.array(self.weights[seen], pa.float64()),
            }
        )
        metadata = {
            "name": self.name,
            "taps": self.taps,
            "digest": self.digest,
            **({"provenance": dict(self.provenance)} if self.provenance else {}),
            **({"written": written.isoformat()} if written else {}),
        }
        return encode_sealed(_LENS, metadata, [table])

    @staticmethod
    def read_description(data: bytes, name: str) -> dict[str, Any]:
        """Reads the description in the file of a lens, without knowing the network.

        Args:
            data: The bytes of the file.
            name: The name of the file in errors.

        Returns:
            `neurons`, the number of rows; `provenance`, which is empty unless the lens was fitted;
            `taps`, the network's layers, and `written`, the time, if the file states them.

        Raises:
            CorruptFile: The file is torn, or not a lens.
        """
        parquet = open_parquet(data, name)
        metadata = SealedFile(data, _LENS, name).metadata if is_sealed(parquet) else {}
        provenance = metadata.get("provenance", {})
        if not isinstance(provenance, dict):
            raise CorruptFile(f"{name}: its provenance is {provenance!r:.80}, not a JSON object")
        said = {"neurons": parquet.metadata.num_rows, "provenance": provenance}
        said |= {"taps": metadata["taps"]} if "taps" in metadata else {}
        if "written" in metadata:
            with corrupt_if_unreadable(f"{name}: the time at which it was written cannot be read"):
                said["written"] = datetime.fromisoformat(metadata["written"])
        return said

    @classmethod
    def decode(cls, data: bytes, name: str, spec: Spec) -> Lens:
        """Reads a lens from its own file, or from any other Parquet file with its three columns.

        Args:
            data: The bytes of the file.
            name: The name of the file in errors. It names the lens if the file states no name.
            spec: The spec that has the neurons.

        Returns:
            The lens.

        Raises:
            CorruptFile: The file is torn, or not what was written.
            UsageError: It is a lens for another network, or its weights are not those of a lens.
        """
        parquet = open_parquet(data, name)
        metadata: dict[str, Any] = {}
        if is_sealed(parquet):
            sealed = SealedFile(data, _LENS, name)
            sealed.check()
            metadata = sealed.metadata
        with corrupt_if_unreadable(f"{name}: torn, or not a lens"):
            table = parquet.read(["layer", "neuron", "weight"])
            if len(table.column_names) != 3:
                raise CorruptFile(f"{name}: a lens has the columns layer, neuron and weight")
            columns = [table[column].to_pylist() for column in ("layer", "neuron", "weight")]
            rows = [
                (str(layer), int(neuron), float("nan") if weight is None else float(weight))
                for layer, neuron, weight in zip(*columns, strict=True)
            ]
            own = tuple((layer, count) for layer, count in metadata.get("taps", ()))
        if metadata and own != spec.shape:
            raise UsageError(f"{name} is a lens for another network than {spec.extractor}")
        lens = cls.from_rows(str(metadata.get("name", name)), spec, rows)
        lens = replace(lens, provenance=metadata.get("provenance", {}))
        if metadata and metadata.get("digest") != lens.digest:
            raise CorruptFile(f"{name}: its weights are not what was written")
        return lens
