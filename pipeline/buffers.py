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
"""Asked for at once: small objects come whole, and most headers with them."""

SHORTEST_BLOCK = 2**20

LONGEST_BLOCK = 8 * 2**20

BLOCKS_KEPT = 3
"""A head, a tail (where Parquet and zip have their tables), and what lies between."""


def size_of(data: Data) -> int:
    with memoryview(data) as view:
        return view.nbytes


def pieces(data: Data) -> Iterator[memoryview]:
    """All of it in turn, a block at a time. What was taken of a mapping is let go."""
    with memoryview(data).cast("B") as view:
        for start in range(0, len(view), LONGEST_BLOCK):
            with view[start : start + LONGEST_BLOCK] as piece:
                yield piece
            let_go(data)


def sha256(data: Data) -> str:
    found = hashlib.sha256()
    for piece in pieces(data):
        found.update(piece)
    return found.hexdigest()


def footer_start(data: Data) -> int:
    """Where in a Parquet file, or in its end, the footer begins: what describes all before it."""
    with memoryview(data) as view:
        length = int.from_bytes(view[-8:-4], "little")
    return size_of(data) - len("....PAR1") - length


def let_go(data: Data) -> None:
    """What was read of a mapped file need not stay in memory: it is read again when it is needed.

    Else such pages count as the process's own, and a file that is read through is all in memory.
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
    """Bytes as a file, so that a client sends them in pieces and not in a copy."""

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
        """Lets go of a mapping, which could not be closed otherwise."""
        self._data = b""
        super().close()


class BlockFile(_Seekable):
    """Read by `fetch(start, length)`, which gives all of these bytes, in blocks.

    `first`: the bytes that it begins with, as many as there are at hand. A block that follows the
    last one closely, as those of a tar's headers do, is twice as long. Elsewhere reading begins
    anew with a short one, which near the end reaches back so as to be of use.
    """

    def __init__(self, size: int, first: bytes, fetch: Callable[[int, int], bytes]) -> None:
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
