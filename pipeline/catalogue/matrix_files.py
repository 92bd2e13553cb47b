"""catalogue.matrix_files: TODO-DOC"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.errors import CorruptFile, SourceError
from pipeline.storage import Stored

MATRIX_FORMAT = 2

MATRIX_READS = (1, 2)
"""Format 1 had no estimates."""

READERS = 8


def matrix_metadata(file: IO[bytes]) -> dict[str, Any]:
    """What a matrix's file states, without its numbers."""
    try:
        found = json.loads(pq.ParquetFile(file).metadata.metadata[b"vdna"])
        if found["kind"] != "matrix" or not isinstance(found["members"], dict):
            raise CorruptFile("not a matrix")
        return cast(dict[str, Any], found)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"torn, or not a matrix: {error}") from error


def matrix_statement(uri: str) -> dict[str, Any] | None:
    """What a kept matrix states of itself; None where it is torn, or gone."""
    try:
        with storage.open_random(uri) as file:
            return matrix_metadata(file)
    except (CorruptFile, SourceError):
        return None


def needless_matrices(catalogue: Catalogue, kept: Set[tuple[str, str]]) -> Iterator[Stored]:
    """Kept matrices without a number that a pair of `kept` (spec, DNA digest) still needs.

    One with DNAs that are gone stays while no other of its kind has the pairs of those that are
    not: the next comparison takes them from it.
    """
    try:
        there = list(storage.walk(storage.join(catalogue.root, "matrix")))
    except SourceError:
        return
    there.sort(key=lambda item: (item.modified is None, item.modified), reverse=True)
    with ThreadPoolExecutor(READERS) as pool:
        stated = pool.map(matrix_statement, (item.uri for item in there))
    found = []
    for item, metadata in zip(there, stated, strict=True):
        if metadata is None:  # whoever compares these removes it
            continue
        spec, members = metadata["spec_digest"], set(metadata["members"].values())
        live = {dna for dna in members if (spec, dna) in kept}
        name = item.uri.rpartition("/")[2]
        kind = (spec, name, metadata["format"], metadata.get("method"))
        found.append((live != members, live, kind, item))
    staying: dict[tuple[object, ...], list[set[str]]] = {}
    for outdated, live, kind, item in sorted(found, key=lambda of: (of[0], -len(of[1]))):
        others = staying.setdefault(kind, [])
        if outdated and (len(live) < 2 or any(live <= other for other in others)):
            yield item
        else:
            others.append(live)
