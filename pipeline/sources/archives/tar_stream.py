"""Reads a tar, packed or not, as a stream that only goes forward, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
from typing import IO, Any, cast

from pipeline.errors import BadImage
from pipeline.sources.archives.archive_file import CHUNK_BYTES, ArchiveFile

MAX_HEADER_BYTES = 2**20
"""Limit for one member's headers: a long name, extended attributes, the map of a sparse file."""

_DIGITS = re.compile(rb"\d{256}")
"""A run that is no real number or file name. Old versions of Python search it in quadratic time."""

_MAX_RATIO = 1100
"""How many times its size an archive may unpack to: gzip's own limit; bzip2 and xz have none."""

_XZ_MEMORY = 256 * 2**20


def packing_of(file: ArchiveFile) -> str:
    """Returns how a tar is packed, by its content: "gz", "bz2", "xz", or "" if it is not."""
    head = file.read(6)
    file.seek(0)
    magic = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
    return next((name for start, name in magic.items() if head.startswith(start)), "")


class ForwardStream:
    """A tar as a stream for `tarfile`: it only goes forward, and limits what a header may take.

    Attributes:
        last: What `tarfile` read last.

    Args:
        file: The archive.
        packing: How it is packed (see `packing_of`).
    """

    def __init__(self, file: ArchiveFile, packing: str) -> None:
        self._file = file
        self._stream = _unpacked(file, packing) if packing else None
        self._at = 0
        self.last = b""
        self.begin_header()

    def begin_header(self) -> None:
        """Allows the headers of one more member."""
        self._header_bytes_left = MAX_HEADER_BYTES

    def tell(self) -> int:
        """Returns the position in the unpacked stream."""
        return self._at

    def read(self, length: int) -> bytes:
        """Returns the next piece of a header.

        Args:
            length: How many bytes.

        Raises:
            BadImage: The header is too long, or hostile.
        """
        self._header_bytes_left -= length
        if length < 0 or self._header_bytes_left < 0:
            raise BadImage(
                "corrupt", f"the header at byte {self._at} has over {MAX_HEADER_BYTES} bytes"
            )
        self.last = self.read_content(length)
        if length > tarfile.BLOCKSIZE and _DIGITS.search(self.last):
            raise BadImage("corrupt", f"the header at byte {self._at} has a number of 256 digits")
        return self.last

    def read_content(self, length: int) -> bytes:
        """Returns up to `length` bytes that are no header."""
        data = self._stream.read(length) if self._stream else self._file.read(length)
        self._at += len(data)
        return data

    def seek(self, position: int) -> None:
        """Moves forward.

        Args:
            position: Where to, in the unpacked stream.

        Raises:
            BadImage: The position lies behind.
        """
        if position < self._at:
            raise BadImage("corrupt", f"a member before byte {self._at} leads back to {position}")
        self.skip(position)

    def skip(self, position: int) -> bool:
        """Returns whether a position was reached, moving forward as far as there is content."""
        if self._stream is None:
            self._at = self._file.seek(min(position, self._file.size))
        while self._at < position and self.read_content(min(CHUNK_BYTES, position - self._at)):
            pass
        return self._at == position


def _unpacked(file: ArchiveFile, packing: str) -> IO[bytes]:
    if packing == "gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=cast(Any, file), mode="rb"))
    return cast(IO[bytes], io.BufferedReader(_Unpacker(file, packing), CHUNK_BYTES))


class _Unpacker(io.RawIOBase):
    """Unpacks bzip2 or xz in bounded memory; the standard library's files set xz no limit."""

    def __init__(self, file: ArchiveFile, packing: str) -> None:
        self._file = file
        self._packing = packing
        self._decompressor = self._new_decompressor()
        self._left = _MAX_RATIO * file.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise BadImage("too_many_bytes", f"it unpacks to over {_MAX_RATIO} times its size")
        buffer[: len(data)] = data
        return len(data)

    def _new_decompressor(self) -> Any:
        if self._packing == "bz2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def _next(self, most: int) -> bytes:
        while True:
            packed = b""
            if self._decompressor.eof:
                packed = self._decompressor.unused_data or self._file.read(CHUNK_BYTES)
                while packed and not (packed := packed.lstrip(b"\0")):
                    packed = self._file.read(CHUNK_BYTES)  # padding may stand between two streams
                if not packed:
                    return b""
                self._decompressor = self._new_decompressor()
            elif self._decompressor.needs_input:
                packed = self._file.read(CHUNK_BYTES)
                if not packed:
                    raise EOFError("the compressed stream ends early")
            data = cast(bytes, self._decompressor.decompress(packed, most))
            if data:
                return data
