"""Opens archives so that errors of storage and defects of the archive are told apart."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import IO

from pipeline import storage
from pipeline.errors import BadImage, SourceError, VdnaError
from pipeline.sources.entry import Entry

Contents = Generator[tuple[Entry, bytes | BadImage], None, None]
"""Members in the order in which they lie: each with its bytes, or why it cannot be read."""

CHUNK_BYTES = 2**20


class ArchiveFile:
    """A seekable file for the libraries that read archives.

    Libraries may hide or replace an error that reading raised, so it is kept here.

    Attributes:
        uri: The archive.
        size: Its size in bytes.
        error: What reading raised, or None.
    """

    mode = "rb"
    closed = False

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file = file
        self._at = 0
        self.uri = uri
        self.error: Exception | None = None
        self.size = file.seek(0, io.SEEK_END)

    def read(self, length: int | None = -1) -> bytes:
        """Reads from the position.

        Args:
            length: How many bytes; negative or None for all that is left.

        Returns:
            The bytes; fewer only at the end of the file.

        Raises:
            SourceError: The file became shorter.
        """
        left = max(0, self.size - self._at)
        length = left if length is None or length < 0 else min(length, left)
        try:
            self._file.seek(self._at)
            data = self._file.read(length)
            if len(data) < length:
                raise SourceError(f"{self.uri} became shorter while it was read; rerun")
        except Exception as error:
            # A library that nests too deeply runs out of depth anywhere: that is the archive's.
            self.error = None if isinstance(error, RecursionError) else error
            raise
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position, as `io.IOBase.seek` does.

        Args:
            offset: The new position, relative to `whence`.
            whence: `io.SEEK_SET`, `io.SEEK_CUR` or `io.SEEK_END`.

        Returns:
            The new position.

        Raises:
            OSError: It lies before the start of the file.
        """
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise OSError(f"position {at} of a file")
        self._at = at
        return at

    def tell(self) -> int:
        """Returns the position."""
        return self._at

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def readable(self) -> bool:
        """Returns True."""
        return True

    def close(self) -> None:
        """Does nothing: libraries close what they are given, but the file is the caller's."""


@contextmanager
def open_archive(uri: str, identity: str) -> Iterator[ArchiveFile]:
    """Opens an archive.

    Args:
        uri: The archive.
        identity: The identity that it had when it was listed.

    Yields:
        The open file.
    """
    with storage.open_random(uri, identity) as file:
        yield ArchiveFile(file, uri)


@contextmanager
def archive_defects(file: ArchiveFile) -> Iterator[None]:
    """Turns what a library raises into a defect of the archive, unless storage raised it.

    Args:
        file: The archive that the library reads.

    Yields:
        Nothing; the library is to be called in the block.

    Raises:
        BadImage: The archive is damaged or not supported.
        Exception: What storage raised, as it was.
    """
    try:
        yield
    except Exception as error:  # readers of archives raise nearly anything on hostile bytes
        if isinstance(error, MemoryError):  # says nothing of the archive
            raise
        if file.error is not None:
            raise file.error from None
        if isinstance(error, VdnaError):
            raise
        short = isinstance(error, EOFError) or "unexpected end of data" in str(error)
        unknown = isinstance(error, NotImplementedError)
        reason = "truncated" if short else "unsupported" if unknown else "corrupt"
        raise BadImage(reason, f"{type(error).__name__}: {error}") from error
    if file.error is not None:
        raise file.error
