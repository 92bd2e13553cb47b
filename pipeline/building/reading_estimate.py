"""Estimates what a build will read, before it begins.

>>> str(ReadingEstimate(images=23, of=141, bytes=4_100_000, seconds=5.2))
'up to 23 images of 141 to read, about 4.1 MB, about 5 s of one worker as of late'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline.building.shard_time import noted_seconds
from pipeline.catalogue import Catalogue
from pipeline.counting import device_kind
from pipeline.sources import Manifest
from pipeline.spec import Resources
from pipeline.wording import count_of, in_units

SAMPLED_SHARDS = 8
"""In so many shards the sizes of images are looked up."""


@dataclass(frozen=True)
class ReadingEstimate:
    """What a build will read.

    Attributes:
        images: How many images are in shards that are not counted. Fewer are read if sums of some
            of their cells are kept.
        of: How many images the dataset has.
        bytes: About how many bytes these images have; None if their sizes are not known.
        seconds: About how long one worker will take, at the speed of the builds before; None if
            that is not known.
    """

    images: int
    of: int
    bytes: int | None
    seconds: float | None

    def __str__(self) -> str:
        words = [f"up to {count_of(self.images, 'image')} of {self.of:,} to read"]
        words += [] if self.bytes is None else [f"about {in_units(self.bytes)}"]
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
        The estimate. The bytes are those of some shards, times how many there are.
    """
    images = sum(manifest.heads[index].candidates for index in missing)
    step = -(-len(missing) // SAMPLED_SHARDS)
    sampled = [manifest.heads[index] for index in missing[::step]]
    tables = [manifest.entries.read_shard(head) for head in sampled]
    sizes = [pc.sum(pc.max_element_wise(table["size"], 0)).as_py() or 0 for table in tables]
    share = images / sum(table.num_rows for table in tables)
    seconds = noted_seconds(catalogue, spec, device_kind(resources))
    return ReadingEstimate(
        images,
        manifest.candidates,
        round(share * sum(sizes)) or None,
        None if seconds is None else seconds * images,
    )
