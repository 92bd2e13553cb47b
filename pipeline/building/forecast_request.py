"""What a forecast may be asked for.

>>> ForecastRequest("s3://bucket/photos", gpus=8).sample
640
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pipeline.building.request import (
    CellOptions,
    HistogramOptions,
    NetworkOptions,
    PixelOptions,
    ProductOptions,
    SelectionOptions,
    ShardOptions,
)
from pipeline.options import Option


@dataclass(frozen=True)
class ForecastRequest(
    NetworkOptions,
    HistogramOptions,
    PixelOptions,
    SelectionOptions,
    ShardOptions,
    CellOptions,
    ProductOptions,
):
    """A build to forecast.

    The fields that it inherits are the options of a build, as keywords.

    Attributes:
        source: Where the images are.
        gpus: How many GPUs the cluster has; None for a cluster without.
        sample: How many images are counted here to measure the speed.
        measured: A file with the speed of another machine.
        price: A file of prices.

    Raises:
        UsageError: A value is not allowed; the message names the field and the value.
    """

    source: Annotated[str, Option("Folder, glob, list, table or archive of images.", argument=True)]
    gpus: Annotated[int | None, Option("GPUs of the cluster that will build.", least=1)] = None
    sample: Annotated[
        int, Option("Images that are counted here to measure the speed.", least=5, most=100_000)
    ] = 640
    measured: Annotated[
        str | None,
        Option(
            "What `vdna plan --json` printed on a machine of the cluster, to take the speed from "
            "(.json)."
        ),
    ] = None
    price: Annotated[
        str | None,
        Option("Prices of a worker's hour, of requests and of reading, to add up (.yaml)."),
    ] = None
