"""Finds the images that an erasure has to read, and those that are not as they were listed.

>>> shards = images_to_read(catalogue, plan.names, plan.affected)              # doctest: +SKIP
>>> files = look_at(shards.values())                                           # doctest: +SKIP
>>> [changed_images(images, files) for images in shards.values()]              # doctest: +SKIP
[['/photos/b.jpg is gone']]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.building.erasure_plan import AffectedVersion
from pipeline.catalogue import Catalogue
from pipeline.counting import cells_uri
from pipeline.errors import SourceError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import map_in_order
from pipeline.sources import ImageNames, ShardHead


def cells_of(catalogue: Catalogue, each: AffectedVersion, head: ShardHead) -> str:
    """Returns where the sums of a shard's cells are kept, if they are.

    Args:
        catalogue: The catalogue.
        each: A version that has the shard. Others that were counted alike share the file.
        head: The shard, as it was.
    """
    version = each.kept.version
    work = catalogue.partials_uri(each.kept.name, version)
    return cells_uri(work, head.key(version.spec, version.products))


def images_to_read(
    catalogue: Catalogue, names: ImageNames, affected: Iterable[AffectedVersion]
) -> dict[str, pa.Table]:
    """Finds which images are read to count again what the shards have left.

    Args:
        catalogue: The catalogue.
        names: The images that are erased.
        affected: The versions that have them.

    Returns:
        For each shard that loses images, by `cells_of`, the candidates that are read, with the
        columns of an entries file: those of its cells that lose one, or all if no sums are kept.
    """
    found: dict[str, pa.Table] = {}
    for each in affected:
        for head in each.lost:
            cells = cells_of(catalogue, each, head)
            if cells not in found:
                rows = each.before.entries.read_shard(head)
                left = ~names.among(rows)
                kept = bool(head.cells) and storage.exists(cells)
                read = left & _in_lost_cells(head, left, kept=kept)
                found[cells] = rows.filter(pa.array(read))
    return found


def _in_lost_cells(head: ShardHead, left: NDArray[np.bool_], *, kept: bool) -> NDArray[np.bool_]:
    """Tells which members of a shard are in a cell that loses one; all, if no cells are kept."""
    if not kept:
        return np.ones(len(left), bool)
    cell = np.repeat(np.arange(len(head.cells)), head.cells)
    return np.isin(cell, cell[~left])


def look_at(tables: Iterable[pa.Table], progress: Listener = ignore) -> dict[str, str | None]:
    """Asks the source for the files of images, without reading them.

    Args:
        tables: Candidates, with the column `uri`.
        progress: Told of each file.

    Returns:
        What tells the content of each file now, by its uri; None if the file is gone.
    """
    uris = sorted({uri for table in tables for uri in table["uri"].to_pylist()})
    found: dict[str, str | None] = {}
    with stage(progress, Started(len(uris), len(uris), unit="files", step="files")):
        for uri, identity in zip(uris, map_in_order(_identity_of, uris), strict=True):
            found[uri] = identity
            progress(StepDone(1))
    return found


def _identity_of(uri: str) -> str | None:
    try:
        return storage.info(uri).identity
    except SourceError:
        return None


def changed_images(candidates: pa.Table, files: Mapping[str, str | None]) -> list[str]:
    """Tells which files of images are not as they were listed.

    Args:
        candidates: The images, with the columns `uri` and `identity`.
        files: What `look_at` has found.

    Returns:
        A text such as `/photos/b.jpg is gone` for each such file.
    """
    found: dict[str, str] = {}
    for row in candidates.select(["uri", "identity"]).to_pylist():
        uri, listed = row["uri"], row["identity"]
        if files[uri] is None:
            found[uri] = f"{storage.spelled(uri)} is gone"
        elif listed and files[uri] != listed:
            found[uri] = f"{storage.spelled(uri)} has changed since it was listed"
    return [found[uri] for uri in sorted(found)]
