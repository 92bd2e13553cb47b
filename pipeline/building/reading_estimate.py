"""Estimates what a build will read, before it begins.

>>> str(ReadingEstimate(images=23, of=141, bytes=4_100_000, requests=58, seconds=None))
'up to 23 images of 141 to read, about 4.1 MB, about 58 requests'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.building.shard_time import noted_seconds
from pipeline.catalogue import Catalogue
from pipeline.counting import device_kind
from pipeline.sources import SPAN_BYTES, Manifest
from pipeline.spec import Resources
from pipeline.wording import count_of, in_units

SAMPLED_SHARDS = 8
"""In so many shards the images are looked up."""

SHARD_REQUESTS = 7
"""What a shard asks of a catalogue in a store, as `python -m benchmarks.s3_requests` counts it."""

LOCAL = "file://"
"""How the uris of local files begin, which are read without requests."""


@dataclass(frozen=True)
class ReadingEstimate:
    """What a build will read.

    Attributes:
        images: How many images are in shards that are not counted. Fewer are read if sums of some
            of their cells are kept.
        of: How many images the dataset has.
        bytes: About how many bytes these images have; None if their sizes are not known.
        requests: About how many requests stores are sent for these shards; 0 if images and
            catalogue are in local files.
        seconds: About how long one worker will take, at the speed of the builds before; None if
            that is not known.
    """

    images: int
    of: int
    bytes: int | None
    requests: int
    seconds: float | None

    def __str__(self) -> str:
        words = [f"up to {count_of(self.images, 'image')} of {self.of:,} to read"]
        words += [] if self.bytes is None else [f"about {in_units(self.bytes)}"]
        words += [f"about {count_of(self.requests, 'request')}"] if self.requests else []
        if self.seconds is not None:
            words.append(f"about {self.seconds:,.0f} s of one worker as of late")
        return ", ".join(words)


def estimate_reading(
    catalogue: Catalogue,
    manifest: Manifest,
    missing: Sequence[int],
    spec: str,
    resources: Resources,
) -> ReadingEstimate:
    """Estimates what is to be read for shards.

    Args:
        catalogue: Where earlier builds have noted their speed.
        manifest: The plan.
        missing: The numbers of the shards; one at least.
        spec: Digest of the spec.
        resources: What counts the shards.

    Returns:
        The estimate.
    """
    images, size, asked = sampled_reading(manifest, missing)
    if not catalogue.root.startswith(LOCAL):
        asked += SHARD_REQUESTS * len(missing)
    seconds = noted_seconds(catalogue, spec, device_kind(resources))
    return ReadingEstimate(
        images,
        manifest.candidates,
        size,
        asked,
        None if seconds is None else seconds * images,
    )


def sampled_reading(manifest: Manifest, missing: Sequence[int]) -> tuple[int, int | None, int]:
    """Looks up in some shards what the images of shards are.

    Args:
        manifest: The plan.
        missing: The numbers of the shards; one at least.

    Returns:
        How many images they have; about how many bytes these have, or None if their sizes are not
        known; and about how many requests read them. The last two are those of `SAMPLED_SHARDS`
        shards, times how many there are.
    """
    images = sum(manifest.heads[index].candidates for index in missing)
    step = -(-len(missing) // SAMPLED_SHARDS)
    sampled = [manifest.heads[index] for index in missing[::step]]
    tables = [manifest.entries.read_shard(head) for head in sampled]
    share = images / sum(table.num_rows for table in tables)
    size = round(share * sum(map(_bytes_of, tables))) or None
    return images, size, round(share * sum(map(_requests_of, tables)))


def _bytes_of(members: pa.Table) -> int:
    return pc.sum(pc.max_element_wise(members["size"], 0)).as_py() or 0


def _requests_of(members: pa.Table) -> int:
    """Counts the requests that read a shard's images: one for each object or piece of archives."""
    stored = members.filter(pc.invert(pc.starts_with(members["uri"], LOCAL)))
    alone = pc.equal(stored["member"], "")
    inside = stored.filter(pc.invert(alone))
    return (pc.sum(alone).as_py() or 0) + -(-_bytes_of(inside) // SPAN_BYTES)
