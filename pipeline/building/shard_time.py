"""Keeps what a worker takes for an image, as builds measure it, for the sizes of later shards.

    >>> in_parts(100, 50.0, 10**8, {"decode": 30.0, "network": 10.0}).of(2 * 10**6)
    0.875

How fast a network runs here is known from the builds before: each notes it for its spec and device,
and the next plan of any dataset under that spec reads it. That dataset may have images of another
size. So what an image takes is noted in two parts, of which one grows with its bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from pipeline import storage
from pipeline.catalogue import Catalogue, canonical_json
from pipeline.counting import FETCH_THREADS, OVERLAP
from pipeline.errors import SourceError
from pipeline.sources import ImageSeconds

MEASURED_IMAGES = 256
"""From fewer images nothing is noted: what they take is mostly the start of the workers."""


def in_parts(
    images: int, seconds: float, image_bytes: int, spent: Mapping[str, float]
) -> ImageSeconds:
    """Splits the time of a build into what goes by bytes and what goes by images.

    Threads work at the same time, so that the seconds of the stages do not add up to the time of
    the shards. They give its shares: one share is reading and decoding, the other is the network.
    While all threads waited for a GPU, that time goes by images. So at most the seconds that
    threads spent reading and decoding go by bytes, times the shards that a worker has at a time.

    Args:
        images: How many images were counted.
        seconds: How long workers had their shards, added up.
        image_bytes: The bytes of these images; 0 if they are not known.
        spent: The seconds that threads spent in each stage (see `stage_clock`).

    Returns:
        What a worker takes for an image. All of it goes by images if there are no bytes.
    """
    # So many threads read at a time. As their waits overlap, a shard waits for a share of them.
    reading = spent.get("fetch", 0.0) / FETCH_THREADS + spent.get("decode", 0.0)
    every = reading + spent.get("network", 0.0)
    if image_bytes <= 0 or reading <= 0:
        return ImageSeconds(seconds / images)
    by_bytes = min(seconds * (reading / every), OVERLAP * reading)
    usual = image_bytes / images
    return ImageSeconds((seconds - by_bytes) / images, by_bytes / image_bytes, usual)


def note_speed(
    catalogue: Catalogue,
    spec: str,
    device: str,
    images: int,
    seconds: float,
    image_bytes: int = 0,
    spent: Mapping[str, float] | None = None,
) -> None:
    """Notes how fast images were counted, unless there were too few to tell.

    Args:
        catalogue: Where to note it.
        spec: Digest of the spec.
        device: The kind of device that computed.
        images: How many images were counted.
        seconds: How long workers had their shards, added up.
        image_bytes: The bytes of these images; 0 if they are not known.
        spent: The seconds that threads spent in each stage.
    """
    if images >= MEASURED_IMAGES and seconds > 0:
        found = in_parts(images, seconds, image_bytes, spent or {})
        noted = {"images": images, "seconds_per_image": seconds / images}
        if found.per_byte:
            noted |= {"bytes_per_image": found.usual_bytes, "seconds_per_byte": found.per_byte}
        storage.replace(catalogue.speed_uri(spec, device), canonical_json(noted))


def noted_seconds(catalogue: Catalogue, spec: str, device: str) -> ImageSeconds | None:
    """Returns what a worker takes for an image, as a build noted it last.

    Args:
        catalogue: Where it is noted.
        spec: Digest of the spec.
        device: The kind of device that computes.

    Returns:
        The seconds. Builds of earlier versions have noted no bytes: then all of it goes by images.
        None if nothing is noted, or nothing sound.
    """
    try:
        noted = json.loads(storage.read(catalogue.speed_uri(spec, device)))
        seconds = float(noted["seconds_per_image"])
        usual = float(noted.get("bytes_per_image", 0.0))
        per_byte = float(noted.get("seconds_per_byte", 0.0))
    except (SourceError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if not all(math.isfinite(each) and each >= 0 for each in (seconds, usual, per_byte)):
        return None
    each = max(0.0, seconds - per_byte * usual)
    return ImageSeconds(each, per_byte, usual) if seconds > 0 else None
