"""A lens: neurons weighed by name, and its file.

    >>> lens = Lens.chosen(spec, ["blocks.3.1:4,17,20-30"])             # doctest: +SKIP
    >>> emd(a, b, lens=lens), compare(catalogue, lens=lens)             # doctest: +SKIP

A distance through a lens is sum w EMD / sum w over neurons: a weighted mean, in which neurons of
negative weight make up for what others tell against their will. A layer is weighed by its own
neurons' weights alone; one whose weights do not sum to more than zero has no distance. The file is
Parquet: a row per neuron with `layer`, `neuron` and `weight`; neurons that have no row weigh
nothing.
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
    Kind,
    SealedFile,
    corrupt_if_unreadable,
    encode_sealed,
    is_sealed,
    open_parquet,
)
from pipeline.errors import CorruptFile, UsageError
from pipeline.spec import Spec, digest_of

_LENS = Kind("lens")

UNIFORM = "uniform"
"""The name of all neurons alike, which is no lens."""

_CHOICE = re.compile(r"(?P<layer>.+):(?P<neurons>\d+(-\d+)?(,\d+(-\d+)?)*)")


@dataclass(frozen=True, eq=False)
class Lens:
    """Weights (N,) float64 of the neurons of `taps` (layer, neurons), one layer after the other.

    `provenance`: of one that was fitted, on what, and how it does on what it was not fitted on.

    Raises `UsageError` where a weight is not finite, where they do not sum to more than zero, and
    for the name of no lens.
    """

    name: str
    taps: tuple[tuple[str, int], ...]
    weights: Floats
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == UNIFORM:
            raise UsageError(f"a lens is named {UNIFORM}, which says that there is none; rename it")
        neurons = sum(count for _, count in self.taps)
        if self.weights.shape != (neurons,):
            raise UsageError(f"lens {self.name}: {len(self.weights)} weights, {neurons} neurons")
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

    @cached_property
    def digest(self) -> str:
        """Of what it weighs, whatever its name."""
        seen = np.flatnonzero(self.weights)
        weights = [float(weight).hex() for weight in self.weights[seen]]
        return digest_of("lens", self.taps, seen.tolist(), weights)

    @classmethod
    def of(cls, name: str, spec: Spec, rows: Iterable[tuple[str, int, float]]) -> Lens:
        """Of (layer, neuron, weight). Raises `UsageError` for what the spec lacks, and repeats."""
        taps = tuple((tap.name, tap.neurons) for tap in spec.taps)
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
                raise UsageError(f"lens {name}: two weights of neuron {layer}[{neuron}]")
            weights[at], seen[at] = weight, True
        return cls(name, taps, weights)

    @classmethod
    def chosen(cls, spec: Spec, choices: Sequence[str]) -> Lens:
        """The same weight for each neuron named: `layer:4,17,100-120`, ends included."""
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
        return cls.of(" ".join(choices), spec, ((*neuron, 1.0) for neuron in neurons))

    def of_layer(self, layer: str) -> Floats:
        """(C,) weights of a layer's neurons. Raises `UsageError` for one that it does not know."""
        start = 0
        for name, neurons in self.taps:
            if name == layer:
                return self.weights[start : start + neurons]
            start += neurons
        raise UsageError(f"lens {self.name} knows no layer {layer!r}")

    def weighs(self, layer: str) -> bool:
        """Whether a layer has a distance through it; all layers together always have one."""
        names = [name for name, _ in self.taps]
        return layer not in names or bool(self.of_layer(layer).sum() > 0)

    def of_layers(self, layers: Sequence[str]) -> Floats:
        """(N,) of the neurons of several, one layer after the other."""
        return np.concatenate([self.of_layer(layer) for layer in layers])

    def require_fit(self, spec: Spec) -> None:
        """Raises `UsageError` unless its neurons are those of the spec."""
        mine, theirs = dict(self.taps), {tap.name: tap.neurons for tap in spec.taps}
        for layer in [*theirs, *mine]:
            if mine.get(layer) != theirs.get(layer):
                raise UsageError(
                    f"lens {self.name} weighs {mine.get(layer, 0)} neurons in {layer}; "
                    f"{spec.extractor} has {theirs.get(layer, 0)}"
                )

    def encode(self, written: datetime | None = None) -> bytes:
        """The rows of neurons that weigh anything. `written`: to be kept, at this time."""
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
    def stated(data: bytes, name: str) -> dict[str, Any]:
        """Reads what the file of a lens says of itself, whatever the network.

        Args:
            data: The bytes of the file.
            name: The name of the file in errors.

        Returns:
            `neurons`: the number that it weighs; `provenance`: how it was fitted, or empty; where
            the file says so, the `taps` that they are of, and when it was `written`.

        Raises:
            CorruptFile: It is torn, or not a lens.
        """
        parquet = open_parquet(data, name)
        metadata = SealedFile(data, _LENS, name).metadata if is_sealed(parquet) else {}
        provenance = metadata.get("provenance", {})
        if not isinstance(provenance, dict):
            raise CorruptFile(f"{name}: its provenance is {provenance!r}")
        said = {"neurons": parquet.metadata.num_rows, "provenance": provenance}
        said |= {"taps": metadata["taps"]} if "taps" in metadata else {}
        if "written" in metadata:
            with corrupt_if_unreadable(f"{name}: the time that it was written is not one"):
                said["written"] = datetime.fromisoformat(metadata["written"])
        return said

    @classmethod
    def decode(cls, data: bytes, name: str, spec: Spec) -> Lens:
        """Reads a lens from its own file, or from any other Parquet file with its three columns.

        Args:
            data: The bytes of the file.
            name: The name of the file in errors; and of the lens, where the file states none.
            spec: The spec whose neurons it weighs.

        Returns:
            The lens.

        Raises:
            CorruptFile: The file is torn, or not what was written.
            UsageError: It weighs neurons of another network, or its weights are no lens.
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
        if metadata and own != tuple((tap.name, tap.neurons) for tap in spec.taps):
            raise UsageError(f"{name} is a lens on another network than {spec.extractor}")
        lens = cls.of(str(metadata.get("name", name)), spec, rows)
        lens = replace(lens, provenance=metadata.get("provenance", {}))
        if metadata and metadata.get("digest") != lens.digest:
            raise CorruptFile(f"{name}: its weights are not what was written")
        return lens
