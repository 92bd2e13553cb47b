"""What a ranking may be asked for: every option once, as `pipeline.building.request` has a build's.

>>> RankRequest("photos/", "cityscapes", limit=100).top
10
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pipeline import storage
from pipeline.building import FailureOptions, SelectionOptions, ShardOptions, Weights
from pipeline.options import Option


@dataclass(frozen=True)
class RankRequest(SelectionOptions, FailureOptions, ShardOptions):
    """Images to order by their distance to a dataset.

    The fields that it inherits are the options of its bases, as keywords.

    Attributes:
        source: Where the images are.
        to: The dataset, or the name of a version of it.
        layers: Layers that get a distance of their own, in the column `emd:<layer>`.
        top: How many images of either end are reported.
        out: The Parquet file that all images are written to, or None.
        weights: Other weights than the network's own, if the dataset was built with others.

    Raises:
        UsageError: A value is not allowed; the message names the field and the value.
    """

    source: Annotated[str, Option("Folder, glob, list, table or archive of images.", argument=True)]
    to: Annotated[str, Option("Dataset that the distance is measured to.")]
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
