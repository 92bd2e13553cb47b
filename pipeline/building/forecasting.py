"""Forecasts what it takes to build a dataset: time, requests, machines and money.

    >>> forecast(ForecastRequest("s3://photos", gpus=8, measured="h100.json"))   # doctest: +SKIP

The source is listed and planned as a build would. How fast a worker is comes from a sample that is
counted here, or from a file that the same command wrote on another machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline import storage
from pipeline.building.forecast_request import ForecastRequest
from pipeline.building.reading_estimate import SHARD_REQUESTS, sampled_reading
from pipeline.building.request import Request
from pipeline.building.speed import Speed, measure_speed, way_digest
from pipeline.errors import SourceError, SpecMismatch, UsageError, wrong_fields
from pipeline.events import Listener, Said, ignore
from pipeline.options import shared_values
from pipeline.sources import ImageSeconds, list_source, plan
from pipeline.spec import Resources
from pipeline.wording import LOCAL, option, some_of

MOST_BYTES = 2**16
"""The largest file of prices or of a speed that is read."""


class Prices(BaseModel):
    """What a cluster and its store cost.

    Attributes:
        currency: What the prices are in.
        worker_hour: What an hour of a worker costs: its share of a node, with its GPU.
        thousand_requests: What a thousand requests to the store cost.
        gigabyte: What it costs to read 10^9 bytes from the store.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    currency: str = "USD"
    worker_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    thousand_requests: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    gigabyte: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


@dataclass(frozen=True)
class Likely:
    """A number that is not known exactly.

    Attributes:
        likely: What it will most likely be.
        low: What it is at the speed of the fastest round.
        high: What it is at the speed of the slowest round.
    """

    likely: float
    low: float
    high: float

    def times(self, factor: float, plus: float = 0.0) -> Likely:
        """Multiplies all three by a factor, and adds a number."""
        return Likely(*(factor * value + plus for value in (self.likely, self.low, self.high)))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a build will take.

    Attributes:
        source: The source.
        images: How many images it has.
        bytes: About how many bytes these have; None if that is not known.
        requests: About how many requests the store is sent; 0 if all images are in local files.
        shards: How many shards there are.
        shard_images: How many images the largest shard has.
        workers: How many workers count.
        gpus: How many GPUs they have together.
        seconds: How long it takes.
        worker_hours: For how many hours workers run, added up.
        gpu_hours: For how many hours GPUs are taken, added up.
        worker_cores: How many cores a worker needs for its network and for decoding.
        decode_cores: How many of them decode, on its node or as tasks on others.
        cost: What it costs; None without prices.
        currency: What the cost is in; empty without prices.
        speed: How fast a worker is.
    """

    source: str
    images: int
    bytes: int | None
    requests: int
    shards: int
    shard_images: int
    workers: int
    gpus: float
    seconds: Likely
    worker_hours: Likely
    gpu_hours: Likely
    worker_cores: int
    decode_cores: int
    cost: Likely | None
    currency: str
    speed: Speed


def forecast(
    request: ForecastRequest, resources: Resources | None = None, progress: Listener | None = None
) -> Forecast:
    """Forecasts what a first build of a source will take.

    Args:
        request: What is to be built, and by how many GPUs.
        resources: The workers: how many, and what each of them has.
        progress: Is told what is listed and counted.

    Returns:
        The forecast.

    Raises:
        UsageError: A file of prices or of a speed cannot be used, or workers are to have GPUs and
            nothing says how fast these are.
        SpecMismatch: The speed was measured with other options.
        VdnaError: The source cannot be listed, or its sample not be counted.
    """
    resources, progress = resources or Resources(), progress or ignore
    prices = _read_prices(request.price) if request.price else None
    known = _known_speed(request.measured) if request.measured else None
    asked = Request("forecast", **shared_values(request, Request))
    on_gpu = known.device == "cuda" if known else resources.gpus_per_worker > 0
    if request.gpus is not None and not on_gpu:
        what = (
            f"{request.measured} was measured on {known.machine}, which has none"
            if known
            else "the sample would be counted by CPUs"
        )
        raise UsageError(
            f"gpus is {request.gpus}, and {what}; run this command with "
            f"{option('gpus_per_worker', 1)} where there is a GPU, and give what it prints with "
            f"--json to {option('measured')} here"
        )
    share = resources.gpus_per_worker or 1.0
    if known is not None and not on_gpu and resources.gpus_per_worker:
        raise UsageError(
            f"the workers are to have GPUs, and {request.measured} was measured on "
            f"{known.machine}, which has none; give a speed that was measured on a GPU"
        )
    if known is not None and on_gpu and not resources.gpus_per_worker and request.gpus is None:
        raise UsageError(
            f"{request.measured} was measured on a GPU, {known.machine}, and the workers are to "
            f"have none; give {option('gpus_per_worker', 1)}, or give {option('gpus')}"
        )
    if request.gpus is not None and request.gpus < share:
        raise UsageError(
            f"gpus is {request.gpus}, and one worker is to have {share:g} of them; give more in "
            f"all, or fewer to a worker ({option('gpus_per_worker')})"
        )
    if known is not None:
        _require_same_speed(known, asked, str(request.measured))
        if unused := _set_for_a_sample(request, resources):
            verb = "changes" if len(unused) == 1 else "change"
            progress(
                Said(
                    f"{some_of(unused)} {verb} nothing here: the speed is that in "
                    f"{request.measured}, and no sample is counted"
                )
            )
    progress(Said(f"listing {request.source}"))
    listing = list_source(request.source, asked.rules, progress=progress)
    speed = known or measure_speed(asked, listing, resources, request.sample, progress)
    manifest = plan(
        listing,
        limit=request.limit,
        shard_images=request.shard_images,
        image_seconds=ImageSeconds(speed.seconds_per_image),
        cell_images=request.cell_images,
        cell_bytes=speed.cell_bytes,
    )
    heads = manifest.heads
    images, size, requests = sampled_reading(manifest, range(len(heads)))
    if not storage.canonical(request.source).startswith(LOCAL):
        requests += SHARD_REQUESTS * len(heads)
    workers = min(_workers(request, resources), len(heads))
    each = Likely(speed.seconds_per_image, speed.fastest, speed.slowest)
    alone = each.times(images, len(heads) * speed.shard_seconds)
    seconds = alone.times(1 / workers, speed.start_seconds + speed.merge_seconds)
    hours = seconds.times(workers / 3600)
    gpus = workers * share if on_gpu else 0.0
    decoding = ceil(speed.decode_seconds / speed.seconds_per_image)
    return Forecast(
        source=storage.readable(manifest.source or request.source),
        images=images,
        bytes=size,
        requests=requests,
        shards=len(heads),
        shard_images=max(head.candidates for head in heads),
        workers=workers,
        gpus=gpus,
        seconds=seconds,
        worker_hours=hours,
        gpu_hours=hours.times(gpus / workers),
        worker_cores=decoding + 1 if on_gpu else speed.threads,
        decode_cores=decoding,
        cost=_cost(prices, hours, requests, size) if prices else None,
        currency=prices.currency if prices else "",
        speed=speed,
    )


def _workers(request: ForecastRequest, resources: Resources) -> int:
    """Returns how many workers are asked for, and have a GPU if they are to have some."""
    if request.gpus is None:
        return max(1, resources.workers or 1)
    fit = int(request.gpus / (resources.gpus_per_worker or 1.0))
    return min(fit, resources.workers or fit)


def _read_prices(path: str) -> Prices:
    """Reads a file of prices; raises `UsageError` if a field is wrong."""
    fields = f"give a file of prices, with {some_of(list(Prices.model_fields))}"
    try:
        return Prices.model_validate(yaml.safe_load(_text(path, fields)))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML; {fields}") from error
    except ValidationError as error:
        raise UsageError(f"{path}: {wrong_fields(error)}; {fields}") from error


def _known_speed(path: str) -> Speed:
    """Reads the speed from what `vdna plan --json` printed."""
    what = "give what `vdna plan --json` printed"
    try:
        found = TypeAdapter(_Printed).validate_json(_text(path, what))
    except ValidationError as error:
        raise UsageError(f"{path}: {wrong_fields(error)}; {what}") from error
    return found.speed


class _Printed(BaseModel):
    """What is read of a forecast that was printed as JSON."""

    speed: Speed


def _text(path: str, what: str) -> bytes:
    """Reads a small file that an option names; `what` says which one to give if it is not there."""
    try:
        data = storage.read_range(storage.canonical(path), 0, MOST_BYTES + 1)
    except SourceError as error:
        raise UsageError(f"{error}; {what}") from error
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} is larger than {MOST_BYTES:,} bytes, so it is another file")
    return data


def _set_for_a_sample(request: ForecastRequest, resources: Resources) -> list[str]:
    """Names the options that were set and only say how the speed of a sample is measured."""
    of_resources = ("threads", "backend", "micro_batch", "cuda_graphs", "decode")
    given = [("sample", request)] + [(name, resources) for name in of_resources]
    return [
        option(name, getattr(of, name))
        for name, of in given
        if getattr(of, name) != getattr(type(of), name)
    ]


def _require_same_speed(known: Speed, asked: Request, path: str) -> None:
    """Checks that a speed was measured with the options of a request."""
    if way_digest(asked) != known.way:
        raise SpecMismatch(
            f"the speed in {path} was measured with other options than these; give those that it "
            "was measured with, or measure again"
        )


def _cost(prices: Prices, hours: Likely, requests: int, size: int | None) -> Likely:
    """Returns what workers cost, and what is asked of the store and read from it."""
    asked = requests / 1000 * prices.thousand_requests
    return hours.times(prices.worker_hour, asked + (size or 0) / 1e9 * prices.gigabyte)
