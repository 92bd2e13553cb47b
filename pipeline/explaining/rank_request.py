"""What a ranking may be asked for: every option once, as `pipeline.building.request` has a build's.

>>> RankRequest("photos/", "cityscapes", limit=100).top
10
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline import storage
from pipeline.building import FailureOptions, SelectionOptions, ShardOptions, Weights
from pipeline.errors import UsageError
from pipeline.options import Option, shared_values
from pipeline.wording import option

RankedBy = Literal["score", "emd"]
"""By what images are ordered: their distance held against the background, or the distance alone."""


@dataclass(frozen=True, kw_only=True)
class _Chosen(SelectionOptions, ShardOptions):
    """The options that have no meaning for images that were listed before."""


@dataclass(frozen=True)
class RankRequest(SelectionOptions, FailureOptions, ShardOptions):
    """Images to order by their distance to a dataset.

    The fields that it inherits are the options of its bases, as keywords.

    Attributes:
        source: Where the images are; None for the images that the dataset was built of, of which
            the farthest are its outliers.
        to: The dataset, or the name of a version of it.
        against: Datasets, or names of versions, of the background that the distance is held
            against; none for all datasets of the catalogue that were counted in the same way.
        order: Whether images are ordered by that score, or by the distance alone.
        layers: Layers that get a distance of their own, in the column `emd:<layer>`.
        top: How many images of either end are reported.
        out: The Parquet file that all images are written to, or None.
        weights: Other weights than the network's own, if the dataset was built with others.

    Raises:
        UsageError: A value is not allowed; the message names the field and the value.
    """

    source: Annotated[
        str | None,
        Option(
            "Folder, glob, list, table or archive of images. Without it, the images that the "
            "dataset was built of: the farthest are its outliers.",
            argument=True,
        ),
    ]
    to: Annotated[str, Option("Dataset that the distance is measured to.")]
    against: Annotated[
        Sequence[str],
        Option(
            "Dataset to hold the distance against. Can be repeated (default: all of the catalogue)."
        ),
    ] = ()
    order: Annotated[
        RankedBy,
        Option(
            "By what images are ordered: score is the distance, less three quarters of the "
            "distance to the datasets of --against; emd is the distance alone."
        ),
    ] = "score"
    layers: Annotated[
        Sequence[str],
        Option("Also give the distance in this layer. Can be repeated.", flag="--layer"),
    ] = ()
    top: Annotated[int, Option("Number of nearest and of farthest images to show.", least=0)] = 10
    out: Annotated[
        str | None, Option("Where to write the result: all images, the nearest first (.parquet).")
    ] = None
    weights: Weights = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None:
            storage.parquet_uri(self.out, "the ranking is")
        if self.source is None:
            chosen = shared_values(self, _Chosen)
            given = [name for name, value in chosen.items() if value is not None]
            if given:
                raise UsageError(
                    f"{option(given[0], chosen[given[0]])} chooses images of a source, and none is "
                    "given, which means all images of the dataset; name a source, or leave it out"
                )
        if self.against and self.order == "emd":
            raise UsageError(
                f"{option('against', list(self.against))} has no part in the order by the distance "
                f"alone; leave it out, or {option('order', 'emd')}"
            )
