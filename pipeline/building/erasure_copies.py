"""Finds the images whose files are equal to those of erased images, and that have other names.

>>> copies_of(catalogue, names, holders, every_version(catalogue, head))       # doctest: +SKIP
('/photos/b.jpg',)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.catalogue import Catalogue, KeptVersion
from pipeline.dna import READ, HashRows
from pipeline.errors import CorruptFile, SourceError
from pipeline.events import Listener, Said, ignore
from pipeline.sources import ImageNames, Manifest, ShardHead
from pipeline.spec import IMAGE_HASHES


def copies_of(
    catalogue: Catalogue,
    names: ImageNames,
    holders: Iterable[tuple[KeptVersion, Manifest, Sequence[ShardHead]]],
    kept: Iterable[KeptVersion],
    progress: Listener = ignore,
) -> tuple[str, ...]:
    """Finds copies by the image hashes of all versions that have some.

    Args:
        catalogue: The catalogue.
        names: The erased images.
        holders: The versions that have them, each with its manifest, and its shards that have them.
        kept: All versions, in which copies are looked for.
        progress: Told of hashes that cannot be read, in which no copies are found.

    Returns:
        The names of the copies, sorted.
    """
    wanted: set[int] = set()
    known: set[str] = set()
    for each, manifest, heads in holders:
        if {head.digest for head in heads} <= known:
            continue
        for head, its in _by_shard(manifest, _hashes(catalogue, each, progress)):
            if head in heads:
                known.add(head.digest)
                erased = names.among(manifest.entries.read_shard(head))
                wanted.update(its[erased & _read(its)]["content"].tolist())
    return tuple(sorted(_named(catalogue, names, wanted, kept, progress))) if wanted else ()


def _named(
    catalogue: Catalogue,
    names: ImageNames,
    wanted: set[int],
    kept: Iterable[KeptVersion],
    progress: Listener,
) -> set[str]:
    """Returns the names of other images that have one of the contents."""
    found: set[str] = set()
    looked_at: set[str] = set()
    contents = np.array(sorted(wanted), np.uint64)
    for each in kept:
        if IMAGE_HASHES not in each.version.products:
            continue
        try:
            manifest = catalogue.manifest(each.name, each.version)
        except SourceError:  # a collection of garbage has removed the version
            continue
        if {head.digest for head in manifest.heads} <= looked_at:
            continue
        for head, its in _by_shard(manifest, _hashes(catalogue, each, progress)):
            same = np.isin(its["content"], contents) & _read(its)
            if head.digest not in looked_at and same.any():
                rows = manifest.entries.read_shard(head)
                for at in np.flatnonzero(same & ~names.among(rows)).tolist():
                    row = rows.slice(at, 1).select(["uri", "member"]).to_pylist()[0]
                    found.add(storage.spelled(row["uri"], row["member"]))
            looked_at.add(head.digest)
    return found


def _read(rows: HashRows) -> NDArray[np.bool_]:
    read: NDArray[np.bool_] = (rows["flags"] & READ) > 0
    return read


def _hashes(catalogue: Catalogue, each: KeptVersion, progress: Listener) -> HashRows | None:
    """Reads the hashes of a version; None if it has none, or they are gone or damaged."""
    if IMAGE_HASHES not in each.version.products:
        return None
    try:
        return catalogue.image_hashes(each.name, each.version)
    except SourceError:
        return None
    except CorruptFile as error:
        progress(Said(f"copies of the images are not looked for in {each.numbered_name}: {error}"))
        return None


def _by_shard(manifest: Manifest, rows: HashRows | None) -> Iterator[tuple[ShardHead, HashRows]]:
    """Yields the hashes of each shard; nothing if there are none."""
    if rows is not None:
        ends = np.cumsum([head.candidates for head in manifest.heads])
        yield from zip(manifest.heads, np.split(rows, ends[:-1]), strict=True)
