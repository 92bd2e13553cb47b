"""The explanation of a distance: what differs between two datasets, as tables and pictures.

>>> found.to_pandas().query("q < 0.05").head(20)                      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalogue import Version
from pipeline.comparing import ESTIMATES, FALSE_DISCOVERY_RATE
from pipeline.dna import UNIFORM, FileKind, Floats, encode_sealed
from pipeline.explaining.histogram_overlay import Overlay
from pipeline.explaining.neuron_groups import NeuronGroup
from pipeline.explaining.reactions import Reactions, UnlikeImage
from pipeline.notebook import arrow_data_frame, arrow_polars, bar_chart, html_table
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

_EXPLANATION = FileKind("explanation")

_MEASURES = [(name, pa.float64()) for name in ("emd", "emd_range", *ESTIMATES)]

LAYERS = pa.schema(
    [
        ("layer", pa.string()),
        ("neurons", pa.int64()),
        ("differing", pa.int64()),
        *_MEASURES,
        ("share", pa.float64()),
    ]
)

NEURONS = pa.schema(
    [
        ("layer", pa.string()),
        ("neuron", pa.int32()),
        *_MEASURES,
        ("shift", pa.float64()),
        ("weight", pa.float64()),
        ("share", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Look:
    """What a look at some images of two datasets has found.

    Attributes:
        images: How many images of each dataset the network has seen again.
        unlike: The images of each dataset that are most unlike the other one.
        notes: What was not seen, and why.
    """

    images: tuple[int, int]
    unlike: tuple[tuple[UnlikeImage, ...], tuple[UnlikeImage, ...]] = ((), ())
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Explanation:
    """What two datasets, a and b, differ in. Both tables begin with what is furthest apart.

    Unknown values are null.

    Attributes:
        versions: The version of each dataset.
        lens: Name of the lens; `uniform` without one.
        layers: A row per layer, and `all` first if they are all layers. Distances are as in a
            matrix, with `q` over the layers; `differing` is how many of its `neurons` differ at a
            false discovery rate of 5%.
        neurons: A row per neuron that has a weight, with `q` over all of them. `shift` is the mean
            of b less that of a, in bins. `share` is of the sum of distances, each times the size of
            its weight.
        shown: Histograms of the first neurons, in their order.
        reactions: The images that these neurons react to most in a and in b; None for a dataset
            that keeps none of them.
        stages: The stage of each layer that was compared; empty where it is not known.
        groups: Neurons that tell the same, each with the one that differs most, the deep stages
            first.
        look: What a look at images again has found; None if none was asked for.
    """

    versions: Mapping[str, Version]
    lens: str
    layers: pa.Table
    neurons: pa.Table
    shown: tuple[Overlay, ...]
    reactions: tuple[tuple[Reactions, Reactions], ...] = ()
    stages: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[NeuronGroup, ...] = ()
    look: Look | None = None

    def __repr__(self) -> str:
        a, b = self.versions
        through = "" if self.lens == UNIFORM else f" through {self.lens}"
        tested = f", {self.differing} of them differ" if self.differing else ""
        first = self.layers.slice(0, 1).to_pylist()
        is_known = first and first[0]["emd"] is not None
        far = f"; {first[0]['layer']}: {first[0]['emd']:.4g} bins" if is_known else ""
        neurons = count_of(self.neurons.num_rows, "neuron")
        return f"<Explanation of {a} and {b}{through}: {neurons}{tested}{far}>"

    def paired(self) -> dict[tuple[str, str], float]:
        """Finds whether images of both datasets are in pairs.

        Returns:
            The share of those that are, by the names of the two; nothing if it is not known.
        """
        a, b = self.versions
        shares = self.layers["paired"].drop_null().to_pylist()
        return {(a, b): shares[0]} if shares else {}

    def _repr_html_(self) -> str:
        columns = ("layer", "emd", "emd_corrected", "q", "differing", "neurons", "share")
        rows = [
            ["" if row[name] is None else _shown(row[name]) for name in columns]
            for row in self.layers.to_pylist()
        ]
        return html_table(" and ".join(self.versions), columns, rows)

    def to_pandas(self, table: Literal["neurons", "layers"] = "neurons") -> pd.DataFrame:
        """Copies a table to pandas.

        Args:
            table: Which of the two tables.

        Returns:
            The neurons or the layers, those that are furthest apart first.
        """
        return arrow_data_frame(getattr(self, table))

    def to_polars(self, table: Literal["neurons", "layers"] = "neurons") -> pl.DataFrame:
        """Copies a table to Polars.

        Args:
            table: Which of the two tables.

        Returns:
            The table of `to_pandas`.
        """
        return arrow_polars(getattr(self, table))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the distance of each layer, the largest first.

        Args:
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        values = self.layers["emd"].to_numpy().tolist()
        return bar_chart(self.layers["layer"].to_pylist(), values, "emd (bins)", ax)

    @cached_property
    def signed(self) -> bool:
        """Whether the lens has weights below zero, so that nothing is a distance."""
        return bool((floats(self.neurons, "weight") < 0).any())

    @cached_property
    def differing(self) -> int:
        """Number of neurons that differ at a false discovery rate of 5%."""
        return int((floats(self.neurons, "q") < FALSE_DISCOVERY_RATE).sum())

    def encode(self) -> bytes:
        """Encodes the neurons as Parquet, in their order, with what was compared.

        Returns:
            The bytes of the file.
        """
        metadata = {
            "members": {name: version.dna for name, version in self.versions.items()},
            "lens": self.lens,
        }
        return encode_sealed(_EXPLANATION, metadata, [self.neurons], NEURONS)

    def save(self, out: str) -> None:
        """Writes all neurons as Parquet, the most different first.

        Args:
            out: The path or url to write (.parquet).

        Raises:
            UsageError: The name does not end in .parquet.
        """
        storage.replace(storage.parquet_uri(out, "the neurons are"), self.encode())

    @cached_property
    def half(self) -> int:
        """Least number of neurons that make up half of the distance; 0 if there is none."""
        shares = np.sort(np.nan_to_num(floats(self.neurons, "share")))[::-1].cumsum()
        return int(np.searchsorted(shares, 0.5 - 1e-12) + 1) if (shares > 0).any() else 0


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def floats(table: pa.Table, column: str) -> Floats:
    """Takes a column of a table as floats; null becomes NaN."""
    return cast(Floats, table[column].to_numpy())
