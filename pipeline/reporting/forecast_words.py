"""Says in words and in JSON what a build will take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pipeline.building import Forecast, Likely
from pipeline.reporting.progress import duration
from pipeline.wording import count_of, in_units


def forecast_json(found: Forecast) -> dict[str, Any]:
    """Returns a forecast for `--json`. `vdna plan --measured` takes the speed from it.

    Args:
        found: The forecast.

    Returns:
        Its fields. Times are in seconds.
    """
    return asdict(found)


def forecast_lines(found: Forecast) -> list[str]:
    """Says what a build will take.

    Args:
        found: The forecast.

    Returns:
        One line each for the images, the speed, the shards, the time, the machines and the cost.
    """
    speed, on_gpu = found.speed, found.gpus > 0
    size = "" if found.bytes is None else f", about {in_units(found.bytes)}"
    asked = f", about {count_of(found.requests, 'request')}" if found.requests else ""
    rate = Likely(1 / speed.seconds_per_image, 1 / speed.slowest, 1 / speed.fastest)
    failed = f", {speed.failures:,} of them unreadable" if speed.failures else ""
    measured = (
        f"{count_of(speed.images, 'image')} in {count_of(speed.rounds, 'round')}{failed}; "
        f"{speed.machine}"
    )
    each = f"{count_of(found.worker_cores, 'core')} and {in_units(speed.memory_bytes)} of memory"
    decoding = f", {found.decode_cores:,} of them to decode" if on_gpu else ""
    gpu_hours = f", {hours_or_money(found.gpu_hours.likely)} GPU-hours" if on_gpu else ""
    lines = [
        f"{found.source}: {count_of(found.images, 'image')}{size}",
        f"speed: {_likely_words(rate, '{:,.1f}'.format, ' images/s')} a worker, by {measured}",
        f"shards: {found.shards:,} of up to {count_of(found.shard_images, 'image')}{asked}",
        f"time: {_likely_words(found.seconds, duration)} on {count_of(found.workers, 'worker')}",
        f"workers: {hours_or_money(found.worker_hours.likely)} hours together{gpu_hours}; "
        f"{each} each{decoding}",
    ]
    return lines if found.cost is None else [*lines, f"cost: {cost_words(found)}"]


def cost_words(found: Forecast) -> str:
    """Writes what a build costs.

    Args:
        found: The forecast.

    Returns:
        Text such as `about 61.20 USD (58.10 to 64.30)`.
    """
    if found.cost is None:
        return "an amount that is not known without prices"
    return _likely_words(found.cost, hours_or_money, f" {found.currency}")


def hours_or_money(value: float) -> str:
    """Writes hours or money.

    Args:
        value: The number.

    Returns:
        It with two decimals, or with two digits if it is less than one.
    """
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.2g}"


def _likely_words(of: Likely, written: Callable[[float], str], unit: str = "") -> str:
    likely, low, high = (written(value) for value in (of.likely, of.low, of.high))
    return f"about {likely}{unit} ({low} to {high})"
