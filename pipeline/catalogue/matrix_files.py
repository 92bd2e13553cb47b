"""What matrices kept in a catalogue state of themselves, and which of them are not needed any more.

The numbers in them are read and written by `pipeline.comparing`.
"""

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
"""How many matrices are looked into at once."""


def matrix_metadata(file: IO[bytes]) -> dict[str, Any]:
    """Reads the metadata of a matrix, without its numbers.

    Args:
        file: The Parquet file.

    Returns:
        The metadata.

    Raises:
        CorruptFile: If the file is torn, or not a matrix.
    """
    try:
        found = json.loads(pq.ParquetFile(file).metadata.metadata[b"vdna"])
        if found["kind"] != "matrix" or not isinstance(found["members"], dict):
            raise CorruptFile("not a matrix")
        return cast(dict[str, Any], found)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"torn, or not a matrix: {error}") from error


def matrix_statement(uri: str) -> dict[str, Any] | None:
    """Reads the metadata of a kept matrix.

    Args:
        uri: The url of its file.

    Returns:
        The metadata; None if the file is torn, or gone.
    """
    try:
        with storage.open_random(uri) as file:
            return matrix_metadata(file)
    except (CorruptFile, SourceError):
        return None


def needless_matrices(catalogue: Catalogue, kept: Set[tuple[str, str]]) -> Iterator[Stored]:
    """Finds the kept matrices that no comparison will take a number from any more.

    A matrix with DNAs that are gone stays as long as no other one of its kind has all pairs of
    its DNAs that are left, because the next comparison takes them from it.

    Args:
        catalogue: The catalogue.
        kept: The DNAs that stay, each as the digests of its spec and of itself.

    Yields:
        Each matrix to delete.
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
        if metadata is None:  # torn: the next comparison of these datasets replaces it
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
