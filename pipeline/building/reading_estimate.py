"""Estimates what a build will read, before it begins.

>>> str(ReadingEstimate(images=23, of=141, bytes=4_100_000, requests=58, seconds=None))
'up to 23 images of 141 to read, about 4.1 MB, about 58 requests'

A new shard is read as a whole. Of one that has changed, the cells are left out whose sums an
earlier build has kept: of some such shards it is looked up which these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.building.shard_time import noted_seconds
from pipeline.catalogue import Catalogue
from pipeline.counting import ShardJob, device_kind, runs_to_count
from pipeline.mapper import map_in_order
from pipeline.sources import SPAN_BYTES, Manifest, Shard, ShardHead
from pipeline.wording import LOCAL, count_of, in_units

SAMPLED_SHARDS = 128
"""In so many new shards the images are looked up, and in so many that have changed."""

SHARD_REQUESTS = 6
"""What a shard asks of a catalogue in a store, as `python -m benchmarks.s3_requests` counts it.
A full one asks up to four times more: for its cells, for a footer, and to renew its lease."""


@dataclass(frozen=True)
class ReadingEstimate:
    """What a build will read.

    Attributes:
        images: How many images are in shards that are not counted, without those of which sums are
            kept.
        of: How many images the dataset has.
        bytes: About how many bytes these images have; None if their sizes are not known.
        requests: About how many requests stores are sent for these shards, with those that looked
            up their images just now; 0 if images and catalogue are in local files.
        seconds: About how long one worker will take, at the speed of the builds before; None if
            that is not known.
        at_most: Whether no more images can be read. More are if kept sums were relied on and turn
            out to be lost, or to be counted under other numerics; or if only some shards were
            looked at.
    """

    images: int
    of: int
    bytes: int | None
    requests: int
    seconds: float | None
    at_most: bool = True

    def __str__(self) -> str:
        about = "up to" if self.at_most else "about"
        words = [f"{about} {count_of(self.images, 'image')} of {self.of:,} to read"]
        words += [] if self.bytes is None else [f"about {in_units(self.bytes)}"]
        words += [f"about {count_of(self.requests, 'request')}"] if self.requests else []
        if self.seconds is not None:
            words.append(f"about {self.seconds:,.0f} s of one worker as of late")
        return ", ".join(words)


def estimate_reading(
    catalogue: Catalogue, manifest: Manifest, missing: Sequence[int], job: ShardJob
) -> ReadingEstimate:
    """Estimates what is to be read for shards.

    Args:
        catalogue: Where earlier builds have noted their speed.
        manifest: The plan.
        missing: The numbers of the shards; one at least.
        job: How they are counted, and where sums are kept.

    Returns:
        The estimate.
    """
    recipe = job.recipe
    spec = recipe.spec.digest

    def to_count(shard: Shard) -> list[Shard]:
        return runs_to_count(job.work_uri, shard, spec, recipe.products)

    images, size, asked = sampled_reading(manifest, missing, to_count)
    if not catalogue.root.startswith(LOCAL):
        asked += SHARD_REQUESTS * len(missing) + min(SAMPLED_SHARDS, len(missing))
    seconds = noted_seconds(catalogue, spec, device_kind(recipe.resources))
    return ReadingEstimate(
        images,
        manifest.candidates,
        size,
        asked,
        None if seconds is None else seconds.of((size or 0) / max(1, images)) * images,
        at_most=not any(manifest.heads[index].origins for index in missing),
    )


def sampled_reading(
    manifest: Manifest,
    missing: Sequence[int],
    to_count: Callable[[Shard], Iterable[Shard]] | None = None,
) -> tuple[int, int | None, int]:
    """Looks up in some shards what the images are that are read.

    Args:
        manifest: The plan.
        missing: The numbers of the shards; one at least.
        to_count: Gives the runs of a shard that has changed whose sums are not kept. None if no
            sums are kept.

    Returns:
        How many images are read; about how many bytes these have, or None if their sizes are not
        known; and about how many requests read them. All are those of `SAMPLED_SHARDS` new shards,
        times how many of these there are, and the same of shards that have changed. So the number
        of images in new shards is exact. The shards are drawn at random, as those of one part often
        come at equal distances; the same plan gives the same ones.
    """

    def whole(head: ShardHead) -> list[pa.Table]:
        return [manifest.entries.read_shard(head)]

    def runs(head: ShardHead) -> list[pa.Table]:
        found = to_count(manifest.entries.shard(head)) if to_count else ()
        return [_rows_of(run) for run in found]

    heads = [manifest.heads[index] for index in missing]
    changed = [head for head in heads if head.origins and to_count]
    new = [head for head in heads if not (head.origins and to_count)]
    images = size = asked = 0
    for some, read in ((new, whole), (changed, runs)):
        drawn = Random(manifest.digest).sample(range(len(some)), min(len(some), SAMPLED_SHARDS))
        sampled = [some[index] for index in sorted(drawn)]
        tables = [table for found in map_in_order(read, sampled) for table in found]
        share = _candidates(some) / max(1, _candidates(sampled))
        images += round(share * sum(table.num_rows for table in tables))
        size += round(share * sum(map(_bytes_of, tables)))
        asked += round(share * sum(map(_requests_of, tables)))
    return images, size or None, asked


def _candidates(heads: Iterable[ShardHead]) -> int:
    return sum(head.candidates for head in heads)


def _rows_of(members: Shard) -> pa.Table:
    """Returns what `_bytes_of` and `_requests_of` look at."""
    names = ("uri", "member", "size")
    return pa.table({name: [getattr(each, name) for each in members.members] for name in names})


def _bytes_of(members: pa.Table) -> int:
    return pc.sum(pc.max_element_wise(members["size"], 0)).as_py() or 0


def _requests_of(members: pa.Table) -> int:
    """Counts the requests that read a shard's images: one for each object or piece of archives."""
    stored = members.filter(pc.invert(pc.starts_with(members["uri"], LOCAL)))
    alone = pc.equal(stored["member"], "")
    inside = stored.filter(pc.invert(alone))
    return (pc.sum(alone).as_py() or 0) + -(-_bytes_of(inside) // SPAN_BYTES)
