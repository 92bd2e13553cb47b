"""Draws images of a dataset, by a hash of what identifies them.

>>> drawn_images(catalogue, "sunny", version, 100, set())            # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import blake2b
from heapq import nsmallest
from operator import itemgetter

from pipeline.catalogue import Catalogue, Version
from pipeline.sources import Entry

NEAR = 64 * 2**20
"""The most bytes of a compressed tar that are unpacked for a sample."""


def is_far(entry: Entry) -> bool:
    """Tells whether an image lies deep in a compressed tar, which must be read from its start."""
    return entry.access.startswith("tar ") and entry.position > NEAR


def drawn_images(
    catalogue: Catalogue, name: str, version: Version, count: int, failed: set[tuple[str, str]]
) -> list[Entry]:
    """Draws counted images as `drawn_members` does, and leaves their folds out."""
    return [entry for _, entry in drawn_members(catalogue, name, version, count, failed)]


def drawn_members(
    catalogue: Catalogue, name: str, version: Version, count: int, failed: set[tuple[str, str]]
) -> list[tuple[int, Entry]]:
    """Draws counted images by a hash of what identifies them.

    Shards are drawn by a hash too, because there may be too many images to read all names.

    Args:
        catalogue: Where the dataset is.
        name: Its name.
        version: Its version.
        count: The most images to draw.
        failed: The uri and member of each image that could not be counted.

    Returns:
        At most `count` images, each with its fold, the same ones every time. Those of another
        group, or of a name that begins otherwise, come before a second one of the same.
    """
    manifest = catalogue.manifest(name, version)
    found: list[tuple[bytes, int, Entry]] = []
    shards = len(manifest.shards)
    drawn = sorted(range(shards), key=lambda shard: _hash(version.manifest, str(shard)))
    each = -(-4 * count // max(1, min(shards, count)))
    for shard in drawn[: 2 * count]:
        if len(found) >= 4 * count:
            break
        fold = manifest.heads[shard].fold
        members = (
            (_hash(entry.identity, entry.uri, entry.member), fold, entry)
            for entry in manifest.shards[shard].members
            if (entry.uri, entry.member) not in failed and not is_far(entry)
        )
        found += nsmallest(each, members, key=itemgetter(0))
    turns: Counter[str] = Counter()
    order = []
    for key, fold, entry in sorted(found, key=itemgetter(0)):
        kind = origin_of(entry)
        order.append((turns[kind], key, fold, entry))
        turns[kind] += 1
    return [(fold, entry) for *_, fold, entry in sorted(order, key=itemgetter(0, 1))[:count]]


def _hash(*texts: str) -> bytes:
    return blake2b("\0".join(texts).encode(), digest_size=16).digest()


def origin_of(entry: Entry) -> str:
    """Returns what images of one origin have in common: a group, or the name before a number."""
    named = entry.member or entry.uri
    folder, _, file = named.rpartition("/")
    return entry.group or f"{folder}/{re.split('[0-9]', file, maxsplit=1)[0]}"
