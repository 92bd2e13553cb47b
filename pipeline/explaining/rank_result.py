"""The result of a ranking: how many images there are, and those at either end.

>>> ranking.nearest[0].name                                      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.catalogue import Version
from pipeline.dna import UNIFORM
from pipeline.explaining.rank_shard import column_of
from pipeline.explaining.ranking_order import RankedImage, UnrankedImage
from pipeline.notebook import Cells, bar_chart, data_frame, html_table, polars_frame
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Ranking:
    """What became of a source: every candidate is ranked, failed or undefined.

    Attributes:
        name: The dataset that images are ranked against, or the name of a version of it.
        version: The version.
        source: Where the images are.
        commit: Number of the catalogue's commit.
        lens: Name of the lens; `uniform` without one.
        layers: Layers with a distance of their own.
        ranked: Number of images with a distance.
        failed: Number of images that could not be read.
        undefined: Number of images without a finite activation in some neuron.
        nearest: The images of the smallest score, the nearest first.
        farthest: The images of the largest score, the farthest first.
        unranked: The first few images without a distance.
        counted_shards: How many shards were ranked now.
        ignored: Number of files of other kinds, by suffix.
        duplicates: Number of images that were listed more than once.
        notes: What a reader should know, a sentence each.
        background: The datasets that distances are held against, each with the digest of its DNA;
            none if images are ordered by the distance alone.
    """

    name: str
    version: Version
    source: str
    commit: int
    lens: str
    layers: tuple[str, ...]
    ranked: int
    failed: int
    undefined: int
    nearest: tuple[RankedImage, ...]
    farthest: tuple[RankedImage, ...]
    unranked: tuple[UnrankedImage, ...]
    counted_shards: int
    ignored: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    notes: tuple[str, ...] = ()
    background: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        through = "" if self.lens == UNIFORM else f" through {self.lens}"
        ends = ""
        if self.nearest:
            ends = f", nearest {self.nearest[0].name} at {self._shown(self.nearest[0]):.4g} bins"
        return f"<Ranking of {count_of(self.ranked, 'image')} by {self.name}{through}{ends}>"

    def _repr_html_(self) -> str:
        rows = [
            (image.rank, f"{image.score:.4g}", f"{image.emd:.4g}", image.name)
            for image in self._ends
        ]
        return html_table(
            f"{count_of(self.ranked, 'image')} by {self._order} to {self.name}",
            ("rank", "score", "emd", "image"),
            rows,
        )

    @property
    def _order(self) -> str:
        return "score by distance" if self.background else "distance"

    def _shown(self, image: RankedImage) -> float:
        """Returns what an image is ordered by."""
        return image.score if self.background else image.emd

    @property
    def _ends(self) -> list[RankedImage]:
        """The images of both ends, each once, by rank."""
        images = {image.rank: image for image in (*self.nearest, *self.farthest)}
        return [images[rank] for rank in sorted(images)]

    def to_pandas(self) -> pd.DataFrame:
        """Returns the images of both ends, with the columns of the ranking's file.

        The file itself, `out`, has all images.
        """
        return data_frame(*self.cells)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return polars_frame(*self.cells)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws what images are ordered by, for each image of both ends, the nearest first.

        Args:
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        ends = self._ends
        # matplotlib takes what is between two dollars for a formula
        names = [image.name.rpartition("/")[2].replace("$", r"\$") for image in ends]
        labels = [f"{image.rank} {name}" for image, name in zip(ends, names, strict=True)]
        unit = f"{self._order} to {self.name} (bins)"
        return bar_chart(labels, [self._shown(image) for image in ends], unit, ax)

    @property
    def cells(self) -> Cells:
        """Columns and rows of the table of `to_pandas`."""
        names = ["uri", "member", "rank", "score", "emd", *map(column_of, self.layers)]
        rows = [
            (image.entry.uri, image.entry.member, image.rank, image.score, image.emd, *image.layers)
            for image in self._ends
        ]
        return names, rows
