"""sources.archives.file: TODO-DOC"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import IO

from pipeline import storage
from pipeline.errors import BadImage, SourceError, VdnaError
from pipeline.sources.manifest import Entry

Contents = Generator[tuple[Entry, bytes | BadImage], None, None]

CHUNK_BYTES = 2**20


# What archives are read through.


class ArchiveFile:
    """A seekable file that keeps in mind what storage raised, whatever a library makes of it."""

    mode = "rb"
    closed = False

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file = file
        self._uri = uri
        self._at = 0
        self.error: Exception | None = None
        self.size = file.seek(0, io.SEEK_END)

    def read(self, length: int | None = -1) -> bytes:
        left = max(0, self.size - self._at)
        length = left if length is None or length < 0 else min(length, left)
        try:
            self._file.seek(self._at)
            data = self._file.read(length)
            if len(data) < length:
                raise SourceError(f"{self._uri} became shorter while it was read; rerun")
        except Exception as error:
            self.error = error
            raise
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise OSError(f"position {at} of a file")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Libraries close what they are given; the file is closed by who opened it."""


@contextmanager
def open_archive(uri: str, identity: str) -> Iterator[ArchiveFile]:
    with storage.open_random(uri, identity) as file:
        yield ArchiveFile(file, uri)


@contextmanager
def blaming_archive(file: ArchiveFile) -> Iterator[None]:
    """What a library raises is the archive's fault, a `BadImage`, unless it was storage's."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # readers of archives raise nearly anything on hostile bytes
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
