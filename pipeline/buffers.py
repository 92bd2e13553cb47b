"""Seekable files over bytes that come in blocks, or that lie elsewhere in memory.

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
"""Bytes to write: in memory, or mapped from a file."""

FIRST_BLOCK = 64 * 2**10
"""Bytes of the first request: small objects come whole, and most headers with them."""

SHORTEST_BLOCK = 2**20

LONGEST_BLOCK = 8 * 2**20

BLOCKS_KEPT = 3
"""One at the head, one at the tail (where Parquet and zip have their tables), one between."""


def size_of(data: Data) -> int:
    """Returns the size of data in bytes."""
    with memoryview(data) as view:
        return view.nbytes


def pieces(data: Data) -> Iterator[memoryview]:
    """Yields the data a block at a time, and lets go of what was taken of a mapped file.

    Args:
        data: The data.

    Yields:
        The next block, 8 MiB or less.
    """
    with memoryview(data).cast("B") as view:
        for start in range(0, len(view), LONGEST_BLOCK):
            with view[start : start + LONGEST_BLOCK] as piece:
                yield piece
            let_go(data)


def sha256(data: Data) -> str:
    """Returns the sha256 of data, as hex."""
    found = hashlib.sha256()
    for piece in pieces(data):
        found.update(piece)
    return found.hexdigest()


def footer_start(data: Data) -> int:
    """Finds the footer of a Parquet file, which describes all that stands before it.

    Args:
        data: The bytes of the file, or of its end.

    Returns:
        Where in the data the footer begins.
    """
    with memoryview(data) as view:
        length = int.from_bytes(view[-8:-4], "little")
    return size_of(data) - len("....PAR1") - length


def let_go(data: Data) -> None:
    """Lets the system drop the pages of a mapped file; they are read again when they are needed.

    Otherwise they count as the process's own, and a file that is read through is all in memory.

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
        """Up to `length` bytes from there, at least one before the end."""
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
    """Bytes as a file, so that a client sends them in pieces and makes no copy."""

    def __init__(self, data: Data) -> None:
        super().__init__(size_of(data))
        self._data: Data = data
        self._taken = 0

    def _at(self, position: int, length: int) -> memoryview:
        self._taken += length
        if self._taken > LONGEST_BLOCK:
            let_go(self._data)
            self._taken = length
        with memoryview(self._data).cast("B") as view:
            return view[position : position + length]

    def close(self) -> None:
        """Lets go of the data; a mapping could not be closed otherwise."""
        self._data = b""
        super().close()


class BlockFile(_Seekable):
    """A file that lies elsewhere, read a block at a time.

    A block that closely follows the last one, as the headers of a tar do, is twice as long.
    Elsewhere reading begins again with a short block; near the end of the file, that block reaches
    back, so that more of it is used.
    """

    def __init__(self, size: int, first: bytes, fetch: Callable[[int, int], bytes]) -> None:
        """Opens a file.

        Args:
            size: The size of the file in bytes.
            first: The bytes that it begins with, as many as are at hand.
            fetch: Returns all bytes of (start, length).
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
        """Where the block that is to hold the position starts, and its length."""
        start, block = self._blocks[0]
        end = start + len(block)
        if end <= position <= end + len(block):
            return position, min(max(2 * len(block), SHORTEST_BLOCK, length), LONGEST_BLOCK)
        wanted = min(max(SHORTEST_BLOCK, length), LONGEST_BLOCK)
        return max(0, min(position, self._size - wanted)), wanted
