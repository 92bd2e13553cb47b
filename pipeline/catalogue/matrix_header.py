"""Reads what a kept matrix states about itself, without its numbers.

The numbers are read and written by `pipeline.comparing`.
"""

from __future__ import annotations

from typing import IO, Any

from pipeline import storage
from pipeline.dna import FileKind, SealedFile, corrupt_if_unreadable
from pipeline.errors import CorruptFile, SourceError

MATRIX = FileKind("matrix")

_STATED = ("spec_digest", "layers", "lens_digest", "method")

MATRIX_READERS = 8
"""How many matrices are looked into at once."""


def matrix_metadata(file: IO[bytes], name: str) -> dict[str, Any]:
    """Reads the metadata of an open file.

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


def find_matrix_metadata(uri: str) -> dict[str, Any] | None:
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
