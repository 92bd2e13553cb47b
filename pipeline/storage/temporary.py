r"""Keeps large bytes in temporary files that are mapped, so that memory holds only what is in use.

Makes temporary folders, too, that a later process removes if this one is killed.

>>> with sparse(10, [(7, b"end")]) as found:
...     found[:]
b'\x00\x00\x00\x00\x00\x00\x00end'
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from mmap import ACCESS_READ, mmap
from typing import IO

from pipeline.errors import StorageError
from pipeline.storage.open_files import MORE_OPEN_FILES, allow_open_files, is_of_open_files

SCRATCH = "vdna-scratch-"
"""With this begin the names of the folders that are looked for."""

ABANDONED_SECONDS = 3600
"""Younger folders are left alone: their processes may be about to lock them."""


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
            return _mapped(file)


def written(size: int, write: Callable[[IO[bytes]], None]) -> mmap:
    """Has a temporary file written, and maps it.

    Args:
        size: About how many bytes it will have, for errors.
        write: Writes the file, at least one byte.

    Returns:
        The map of the file.

    Raises:
        StorageError: The disk has no room.
    """
    with _room_for(size), tempfile.TemporaryFile() as file:
        write(file)
        return _mapped(file)


def _mapped(file: IO[bytes]) -> mmap:
    file.flush()
    allow_open_files()
    return mmap(file.fileno(), 0, access=ACCESS_READ)


@contextlib.contextmanager
def _room_for(size: int) -> Iterator[None]:
    """Names the folder and the remedy if a write fails."""
    try:
        yield
    except OSError as error:
        if is_of_open_files(error):
            raise StorageError(
                f"{size} bytes do not go to a file in {tempfile.gettempdir()}: {error}; "
                f"{MORE_OPEN_FILES}"
            ) from error
        raise StorageError(
            f"{size} bytes do not go to {tempfile.gettempdir()}: {error}; set TMPDIR to a disk "
            "with more room"
        ) from error


class ScratchFolder:
    """A temporary folder that is deleted with this object, or at the end of its `with` block.

    Its process has locked it while it lives. A folder that is not locked, and not quite new, was
    left by a process that was killed. The next process that makes a folder removes such folders.

    Attributes:
        path: The path of the folder.

    Args:
        what: What it is for, as its name says.
    """

    def __init__(self, what: str) -> None:
        _remove_abandoned(tempfile.gettempdir())
        self.path = tempfile.mkdtemp(prefix=f"{SCRATCH}{what}-")
        self._remove = weakref.finalize(self, _removed, self.path, _locked(self.path))

    def __enter__(self) -> str:
        """Returns the path of the folder."""
        return self.path

    def __exit__(self, *_: object) -> None:
        self._remove()


def _locked(folder: str) -> int | None:
    """Locks a folder; returns its descriptor. None if another process has locked it."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def _removed(folder: str, held: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if held is not None:
        os.close(held)


@functools.cache
def _remove_abandoned(place: str) -> None:
    """Removes folders of this user that no process has locked; once in each process."""
    with contextlib.suppress(OSError), os.scandir(place) as found:
        for entry in found:
            if not entry.name.startswith(SCRATCH):
                continue
            with contextlib.suppress(OSError):  # others may remove it meanwhile
                seen = entry.stat(follow_symlinks=False)
                old = time.time() - seen.st_mtime > ABANDONED_SECONDS
                if old and seen.st_uid == os.getuid() and (held := _locked(entry.path)) is not None:
                    _removed(entry.path, held)
