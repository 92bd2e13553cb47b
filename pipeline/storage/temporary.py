r"""Keeps large bytes in temporary files that are mapped, so that memory holds only what is in use.

>>> with sparse(10, [(7, b"end")]) as found:
...     found[:]
b'\x00\x00\x00\x00\x00\x00\x00end'
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap

from pipeline.errors import StorageError


def on_disk(data: bytes | mmap) -> bytes | mmap:
    """Moves bytes to a temporary file and maps it.

    Returns:
        The map. `data` itself if it is a map already, or empty.

    Raises:
        StorageError: The disk has no room.
    """
    return data if isinstance(data, mmap) else sparse(len(data), [(0, data)])


def sparse(size: int, pieces: Iterable[tuple[int, bytes]]) -> bytes | mmap:
    """Writes pieces to a temporary file and maps it.

    Args:
        size: The length of the file in bytes.
        pieces: Bytes, each with the position where it begins. Between them the file holds zeros,
            which take no room on the disk.

    Returns:
        The map of the file; plain bytes if `size` is 0, because an empty file cannot be mapped.

    Raises:
        StorageError: The disk has no room.
    """
    if not size:
        return b""
    with contextlib.ExitStack() as stack:
        with _room_for(size):
            file = stack.enter_context(tempfile.TemporaryFile())
            file.truncate(size)
        for start, piece in pieces:
            with _room_for(size):
                file.seek(start)
                file.write(piece)
        with _room_for(size):
            file.flush()
            return mmap(file.fileno(), 0, access=ACCESS_READ)


@contextlib.contextmanager
def _room_for(size: int) -> Iterator[None]:
    """Names the folder and the remedy if a write fails."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{size} bytes do not go to {tempfile.gettempdir()}: {error}; set TMPDIR to a disk "
            "with more room"
        ) from error
