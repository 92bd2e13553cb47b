"""Chooses the size of new shards by the time that they take, as earlier builds have measured it.

    >>> images_in(SHARD_SECONDS, seconds=0.25)
    240

A shard that is lost with its node is counted again from its beginning. So a shard should not take
long, whatever the network. How fast a network runs here is known from the builds before: each notes
it for its spec and device, and the next plan of any dataset under that spec reads it.
"""

from __future__ import annotations

import json
import math

from pipeline import storage
from pipeline.catalogue import Catalogue, canonical_json
from pipeline.errors import SourceError
from pipeline.sources import MIN_SHARD_IMAGES, SHARD_MULTIPLE

SHARD_SECONDS = 60.0
"""How long a worker should have a shard."""

MEASURED_IMAGES = 256
"""From fewer images nothing is noted: what they take is mostly the start of the workers."""


def images_in(time: float, seconds: float) -> int:
    """Returns the size of shards that take a time, in whole micro-batches.

    Args:
        time: The time in seconds.
        seconds: What a worker takes for an image.
    """
    return max(MIN_SHARD_IMAGES, int(time / seconds) // SHARD_MULTIPLE * SHARD_MULTIPLE)


def most_shard_images(catalogue: Catalogue, spec: str, device: str) -> int | None:
    """Returns how large a new shard may be, as a worker takes a minute for it.

    Args:
        catalogue: Where earlier builds have noted their speed.
        spec: Digest of the spec.
        device: The kind of device that computes.

    Returns:
        The number of images; None if nothing is known.
    """
    seconds = noted_seconds(catalogue, spec, device)
    return None if seconds is None else images_in(SHARD_SECONDS, seconds)


def note_speed(catalogue: Catalogue, spec: str, device: str, images: int, seconds: float) -> None:
    """Notes how fast images were counted, unless there were too few to tell.

    Args:
        catalogue: Where to note it.
        spec: Digest of the spec.
        device: The kind of device that computed.
        images: How many images were counted.
        seconds: How long workers had their shards, added up.
    """
    if images >= MEASURED_IMAGES and seconds > 0:
        noted = {"images": images, "seconds_per_image": seconds / images}
        storage.replace(catalogue.speed_uri(spec, device), canonical_json(noted))


def noted_seconds(catalogue: Catalogue, spec: str, device: str) -> float | None:
    """Returns the seconds that a worker takes for an image, as a build noted them last.

    Args:
        catalogue: Where it is noted.
        spec: Digest of the spec.
        device: The kind of device that computes.

    Returns:
        The seconds; None if nothing is noted, or nothing sound.
    """
    try:
        seconds = float(
            json.loads(storage.read(catalogue.speed_uri(spec, device)))["seconds_per_image"]
        )
    except (SourceError, ValueError, TypeError, KeyError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
