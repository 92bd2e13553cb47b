"""What matrices kept in a catalogue state of themselves, and which of them are not needed any more.

The numbers in them are read and written by `pipeline.comparing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.dna import Kind, SealedFile, corrupt_if_unreadable
from pipeline.errors import CorruptFile, SourceError
from pipeline.storage import Stored

MATRIX = Kind("matrix")

_STATED = ("spec_digest", "layers", "lens_digest", "method")

READERS = 8
"""How many matrices are looked into at once."""


def matrix_metadata(file: IO[bytes], name: str) -> dict[str, Any]:
    """Reads what the file of a matrix states, without its numbers.

    Args:
        file: The open file.
        name: The name of the file in errors.

    Returns:
        Its metadata; `members` maps datasets to the digests of their DNAs.

    Raises:
        CorruptFile: It is torn, or not a matrix.
    """
    found = SealedFile(file, MATRIX, name).metadata
    with corrupt_if_unreadable(f"{name}: its metadata cannot be read"):
        _ = [dict(found["members"]), *(found[key] for key in _STATED)]
    return found


def matrix_statement(uri: str) -> dict[str, Any] | None:
    """Reads the metadata of a kept matrix.

    Args:
        uri: The url of its file.

    Returns:
        The metadata; None if the file is torn, or gone.
    """
    try:
        with storage.open_random(uri) as file:
            return matrix_metadata(file, uri)
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
        kind = (spec, name, metadata["method"])
        found.append((live != members, live, kind, item))
    staying: dict[tuple[object, ...], list[set[str]]] = {}
    for outdated, live, kind, item in sorted(found, key=lambda of: (of[0], -len(of[1]))):
        others = staying.setdefault(kind, [])
        if outdated and (len(live) < 2 or any(live <= other for other in others)):
            yield item
        else:
            others.append(live)
