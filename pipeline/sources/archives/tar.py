"""sources.archives.tar: TODO-DOC"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
from typing import IO, Any, cast

from pipeline.errors import BadImage
from pipeline.sources.archives.file import CHUNK_BYTES, ArchiveFile, blaming_archive
from pipeline.sources.archives.index import IndexRows, broken_access, printable_member

# Tar


MAX_HEADER_BYTES = 2**20
"""Of one member: its long name, extended attributes and the map of a sparse file."""

_DIGITS = re.compile(rb"\d{256}")
"""No real number or file name; older versions of Python search such a run in quadratic time."""

_GNU_OTHER = (b"D", b"N", b"V")
"""A dumped directory, old long names, a volume's label: no files, though of no standard type."""

_MAX_RATIO = 1100
"""gzip's own limit; bzip2 and xz have none."""

_XZ_MEMORY = 256 * 2**20


def index_tar(file: ArchiveFile, rows: IndexRows) -> None:
    """Of a packed tar that is damaged anywhere, no member counts: all have one checksum."""
    packing = packing_of(file)
    try:
        with blaming_archive(file):
            _walk_tar(ForwardStream(file, packing), f"tar {packing}".rstrip(), rows)
    except BadImage as bad:
        if packing and bad.reason == "corrupt":
            rows.condemn(BadImage(bad.reason, f"the archive is damaged: {bad.detail}"))
        raise


def _walk_tar(stream: ForwardStream, access: str, rows: IndexRows) -> None:
    """Headers only, as `tarfile` reads them; it takes a defect for the end, which is told here."""
    tar = tarfile.TarFile(fileobj=cast(Any, stream), encoding="utf-8", errors="surrogateescape")
    while (info := tar.next()) is not None:
        cast(Any, tar).members.clear()  # it keeps every member
        kind = _tar_kind(info)
        name = printable_member(info.name.encode("utf-8", "surrogateescape"))
        if kind != "file":
            rows.ignored[kind] += 1
        elif info.issparse():
            sparse = BadImage("unsupported", "a sparse member")
            rows.add(name, 0, info.offset_data, broken_access(sparse))
        else:
            if info.size < 0 or not stream.skip(info.offset_data + info.size):
                reason = "corrupt" if info.size < 0 else "truncated"
                raise BadImage(reason, f"{name} states {info.size} bytes, which are not there")
            rows.add(name, info.size, info.offset_data, access)
        stream.allow()
    if stream.last != b"\0" * tarfile.BLOCKSIZE:
        raise BadImage(
            "corrupt" if len(stream.last) == tarfile.BLOCKSIZE else "truncated",
            f"the end marker is missing at byte {stream.tell()}",
        )
    while tail := stream.read_unchecked(CHUNK_BYTES):
        if tail.strip(b"\0"):
            raise BadImage(
                "unsupported",
                "after the end marker more follows, such as a second tar; it is not read",
            )


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "folder"
    if info.issym() or info.islnk():
        return "link"
    if info.isfifo():
        return "fifo"
    if info.isdev():
        return "device"
    return "other" if info.type in _GNU_OTHER else "file"


def packing_of(file: ArchiveFile) -> str:
    head = file.read(6)
    file.seek(0)
    magic = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
    return next((name for start, name in magic.items() if head.startswith(start)), "")


class ForwardStream:
    """A tar as a stream: only forwards, and between two members never much is read at once."""

    def __init__(self, file: ArchiveFile, packing: str) -> None:
        self._file = file
        self._stream = _unpacked(file, packing) if packing else None
        self._at = 0
        self._allowed = MAX_HEADER_BYTES
        self.last = b""
        """What was read last."""

    def allow(self) -> None:
        self._allowed = MAX_HEADER_BYTES

    def tell(self) -> int:
        return self._at

    def read(self, length: int) -> bytes:
        self._allowed -= length
        if length < 0 or self._allowed < 0:
            raise BadImage("corrupt", f"a header at byte {self._at} of over {MAX_HEADER_BYTES}")
        self.last = self.read_unchecked(length)
        if length > tarfile.BLOCKSIZE and _DIGITS.search(self.last):
            raise BadImage("corrupt", f"a header at byte {self._at} with a number of 256 digits")
        return self.last

    def read_unchecked(self, length: int) -> bytes:
        data = self._stream.read(length) if self._stream else self._file.read(length)
        self._at += len(data)
        return data

    def seek(self, position: int) -> None:
        if position < self._at:
            raise BadImage("corrupt", f"a member before byte {self._at} leads back to {position}")
        self.skip(position)

    def skip(self, position: int) -> bool:
        """Whether the stream reaches so far."""
        if self._stream is None:
            self._at = self._file.seek(min(position, self._file.size))
        while self._at < position and self.read_unchecked(min(CHUNK_BYTES, position - self._at)):
            pass
        return self._at == position


def _unpacked(file: ArchiveFile, packing: str) -> IO[bytes]:
    if packing == "gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=cast(Any, file), mode="rb"))
    return cast(IO[bytes], io.BufferedReader(_Unpacked(file, packing), CHUNK_BYTES))


class _Unpacked(io.RawIOBase):
    """bzip2 or xz, in bounded memory; the standard library's files set xz no limit."""

    def __init__(self, file: ArchiveFile, packing: str) -> None:
        self._file = file
        self._packing = packing
        self._decompressor = self._new()
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

    def _new(self) -> Any:
        if self._packing == "bz2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def _next(self, most: int) -> bytes:
        while True:
            packed = b""
            if self._decompressor.eof:
                packed = self._decompressor.unused_data or self._file.read(CHUNK_BYTES)
                if not packed.strip(b"\0"):
                    return b""
                self._decompressor = self._new()
            elif self._decompressor.needs_input:
                packed = self._file.read(CHUNK_BYTES)
                if not packed:
                    raise EOFError("the compressed stream ends early")
            data = cast(bytes, self._decompressor.decompress(packed, most))
            if data:
                return data
