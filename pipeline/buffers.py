"""Seekable files over bytes in memory, or over a remote file that is read in blocks.

>>> io.BufferedReader(Mapped(b"abc")).read(2)
b'ab'
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from mmap import MADV_DONTNEED, mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Data = bytes | mmap | memoryview
"""Bytes that are to be written; they are in memory or mapped from a file."""

FIRST_BLOCK = 64 * 2**10
"""The size of the first request. It fetches small objects whole, and most headers of large ones."""

SHORTEST_BLOCK = 2**20

LONGEST_BLOCK = 8 * 2**20

BLOCKS_KEPT = 3
"""How many blocks of a file are kept: its head, its tail (with the tables of Parquet and zip), and
one between."""


def size_of(data: Data) -> int:
    """Returns the size of data in bytes."""
    with memoryview(data) as view:
        return view.nbytes


def pieces(data: Data) -> Iterator[memoryview]:
    """Yields the data a block at a time, and releases the pages of a mapped file that were read.

    Args:
        data: The data.

    Yields:
        The next block, 8 MiB or less.
    """
    with memoryview(data).cast("B") as view:
        for start in range(0, len(view), LONGEST_BLOCK):
            with view[start : start + LONGEST_BLOCK] as piece:
                yield piece
            release_pages(data)


def sha256(data: Data) -> str:
    """Returns the sha256 of data, as hex."""
    found = hashlib.sha256()
    for piece in pieces(data):
        found.update(piece)
    return found.hexdigest()


def footer_start(data: Data) -> int:
    """Finds the footer of a Parquet file.

    Args:
        data: The bytes of the file, or of its end.

    Returns:
        The offset of the footer in the data.
    """
    with memoryview(data) as view:
        length = int.from_bytes(view[-8:-4], "little")
    return size_of(data) - len("....PAR1") - length


def release_pages(data: Data) -> None:
    """Lets the system drop the pages of a mapped file. They are read again when they are needed.

    Otherwise a file that is read to its end would count as memory of the process.

    Args:
        data: The data; nothing happens unless it is mapped.
    """
    if isinstance(data, mmap):
        data.madvise(MADV_DONTNEED)


class _Seekable(io.RawIOBase):
    """A read-only file on top of `_at`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def _at(self, position: int, length: int) -> memoryview:
        """Returns up to `length` bytes from a position before the end; at least one."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        with memoryview(buffer).cast("B") as view:
            length = min(len(view), self._size - self._position)
            if length <= 0:
                return 0
            with self._at(self._position, length) as data:
                view[: len(data)] = data
                count = len(data)
        self._position += count
        return count


class Mapped(_Seekable):
    """A seekable file over bytes in memory; a client sends it in pieces, without a copy."""

    def __init__(self, data: Data) -> None:
        super().__init__(size_of(data))
        self._data: Data = data
        self._taken = 0

    def _at(self, position: int, length: int) -> memoryview:
        self._taken += length
        if self._taken > LONGEST_BLOCK:
            release_pages(self._data)
            self._taken = length
        with memoryview(self._data).cast("B") as view:
            return view[position : position + length]

    def close(self) -> None:
        """Drops the data, since a mapping cannot be closed while it is in use."""
        self._data = b""
        super().close()


class BlockFile(_Seekable):
    """A remote file that is read a block at a time.

    A block that closely follows the last one is twice as long; the headers of a tar are read like
    this. Any other block is short. Near the end of the file it begins before the position that was
    asked for, so that it has its full length.
    """

    def __init__(self, size: int, first: bytes, fetch: Callable[[int, int], bytes]) -> None:
        """Opens a file.

        Args:
            size: The size of the file in bytes.
            first: Its first bytes, as many as the caller has.
            fetch: Takes an offset and a length, and returns exactly those bytes.
        """
        super().__init__(size)
        self._fetch = fetch
        self._blocks = [(0, first)]

    def _at(self, position: int, length: int) -> memoryview:
        for start, block in self._blocks:
            if start <= position < start + len(block):
                return memoryview(block)[position - start :][:length]
        start, wanted = self._next(position, length)
        block = self._fetch(start, min(wanted, self._size - start))
        self._blocks = [(start, block), *self._blocks[: BLOCKS_KEPT - 1]]
        return memoryview(block)[position - start :][:length]

    def _next(self, position: int, length: int) -> tuple[int, int]:
        """Returns the start and the length of the block to fetch for a position."""
        start, block = self._blocks[0]
        end = start + len(block)
        if end <= position <= end + len(block):
            return position, min(max(2 * len(block), SHORTEST_BLOCK, length), LONGEST_BLOCK)
        wanted = min(max(SHORTEST_BLOCK, length), LONGEST_BLOCK)
        return max(0, min(position, self._size - wanted)), wanted
