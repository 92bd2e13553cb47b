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
from pipeline.options import Option
from pipeline.wording import option

RankedBy = Literal["score", "emd"]
"""By what images are ordered: their distance held against the background, or the distance alone."""


@dataclass(frozen=True)
class RankRequest(SelectionOptions, FailureOptions, ShardOptions):
    """Images to order by their distance to a dataset.

    The fields that it inherits are the options of its bases, as keywords.

    Attributes:
        source: Where the images are.
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

    source: Annotated[str, Option("Folder, glob, list, table or archive of images.", argument=True)]
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
        if self.against and self.order == "emd":
            raise UsageError(
                f"{option('against', list(self.against))} has no part in the order by the distance "
                f"alone; leave it out, or {option('order', 'emd')}"
            )
