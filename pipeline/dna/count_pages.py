"""Reads counts from the pages of a Parquet file, several times as fast as pyarrow does.

>>> read_count_pages(data, parquet, 0, "counts", 1000)           # doctest: +SKIP

Counts are lists of one length without nulls, compressed with zstd, and kept as differences
(`DELTA_BINARY_PACKED`). Most of pyarrow's time goes into finding where lists begin and which values
are null. Here that is only checked. What is not as expected is left to pyarrow.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.dna.arrays import Ints

PageBytes = NDArray[np.uint8]

_DATA_PAGE, _DELTA, _RLE = 0, 5, 3
"""Numbers in the header of a page: the kind of page, and encodings of values and levels."""

_INTS, _BYTES, _STRUCT, _FLAGS = (3, 4, 5, 6), 8, 12, (1, 2)
"""Types of the fields of a header, as Thrift's compact protocol numbers them."""

_WORD = 8
"""PageBytes that are loaded at a time. A page is padded by so many."""

_WIDEST = 56
"""The most bits of a difference that one word holds, wherever in its first byte they begin."""


_UNEXPECTED = (
    ArithmeticError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    pa.ArrowException,
)
"""What reading raises if the pages are damaged, or of another layout."""


def read_count_pages(
    data: Any, parquet: pq.ParquetFile, row_group: int, column: str, length: int
) -> Ints | None:
    """Reads one column of a row group.

    Args:
        data: The bytes of the file, or a memory map.
        parquet: The open file.
        row_group: The number of the row group.
        column: The column.
        length: How many counts a row has.

    Returns:
        (rows, length) int64, or None if the column is not written as expected, or is damaged.
    """
    found = parquet.metadata.row_group(row_group)
    columns = [found.column(index) for index in range(found.num_columns)]
    path = f"{column}.list.element"
    index = next((i for i, chunk in enumerate(columns) if chunk.path_in_schema == path), None)
    if index is None:
        return None
    chunk, levels = columns[index], parquet.schema.column(index)
    kind = (chunk.physical_type, chunk.compression, chunk.dictionary_page_offset)
    deep = (levels.max_repetition_level, levels.max_definition_level)
    if (kind, deep) != (("INT64", "ZSTD", None), (1, 3)):
        return None
    if not chunk.num_values == found.num_rows * length > 0:
        return None
    counts = np.empty((found.num_rows, length), np.int64)
    start = chunk.data_page_offset
    pages = memoryview(data)[start : start + chunk.total_compressed_size]
    try:
        plain = _read(pages, chunk.total_uncompressed_size, length, counts.reshape(-1))
    except _UNEXPECTED:
        return None
    return counts if plain else None


def _read(pages: memoryview, largest: int, bins: int, to: Ints) -> bool:
    """Fills counts from all pages of the column, and tells whether all were as expected."""
    at, done = 0, 0
    while done < len(to):
        header = _Header(pages, at)
        fields = header.struct()
        about, start, length, packed = fields[5], header.at, fields[2], fields[3]
        at = start + packed
        encodings = about[2], about[3], about[4]
        if fields[1] != _DATA_PAGE or encodings != (_DELTA, _RLE, _RLE):
            return False
        if not (0 <= length <= largest and start <= at <= len(pages)):
            return False
        body = pages[start:at]
        if zlib.crc32(body) != fields[4] & 0xFFFFFFFF:
            return False
        page = np.empty(length + _WORD, np.uint8)
        page[length:] = 0
        page[:length] = np.frombuffer(pa.decompress(body, length, "zstd"), np.uint8)
        here = to[done : done + about[1]]
        whole = 0 < about[1] == len(here) and len(here) % bins == 0  # pages hold whole rows
        if not whole or not _read_page(page, length, bins, here):
            return False
        done += len(here)
    return at == len(pages)


class _Header:
    """Reads the header of a page: a struct in Thrift's compact protocol.

    Attributes:
        at: Where in the data the next byte is.
    """

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at

    def struct(self) -> dict[int, Any]:
        """Returns the fields of a struct by their numbers."""
        fields: dict[int, Any] = {}
        number = 0
        while (first := self._byte()) != 0:
            kind, later = first & 15, first >> 4
            number = number + later if later else self._int()
            fields[number] = self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in _FLAGS:
            return kind == _FLAGS[0]
        if kind == _INTS[0]:
            return self._byte()
        if kind in _INTS:
            return self._int()
        if kind == _STRUCT:
            return self.struct()
        if kind != _BYTES:
            raise ValueError(f"a field of the type {kind}")
        length = self._unsigned()
        self.at += length
        return None

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _unsigned(self) -> int:
        value, shift, byte = 0, 0, 128
        while byte & 128:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
        return value

    def _int(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)


def _to_word(_: Any, page: Any, at: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array: Any = make_array
        held = array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(held.data, [arguments[1]])
        word = ir.IntType(64)
        return builder.load(builder.bitcast(place, word.as_pointer()), align=1)

    return types.int64(page, types.intp), code


_word_at: Any = intrinsic(_to_word)
"""Loads eight bytes of a page as one number, the first byte as the lowest."""


@compiled
def _varint(page: PageBytes, at: int, stop: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, and where it ends: past `stop` if it is cut off."""
    value, shift = 0, 0
    while at < stop and shift < 64:
        byte = int(page[at])
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    return 0, stop + 1


@compiled
def _signed(value: int) -> int:
    """Returns the number whose sign is in the last bit."""
    return ((value >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(value & 1)


@compiled
def _read_page(page: PageBytes, stop: int, bins: int, to: Ints) -> bool:
    """Fills counts from a page of version 1, and tells whether it was as expected."""
    # The page ends at `stop`, and is padded.
    at = 0
    for width, level, every in ((1, 1, bins), (2, 3, 0)):
        if at + 4 > stop:
            return False
        size = _word_at(page, at) & 0xFFFFFFFF
        at += 4
        if size > stop - at:
            return False
        if not _has_levels(page, at, at + size, width, level, every, len(to)):
            return False
        at += size
    return _read_differences(page, at, stop, to)


@compiled
def _has_levels(
    page: PageBytes, at: int, stop: int, width: int, level: int, every: int, size: int
) -> bool:
    """Tells whether the levels of all values are equal, but 0 where a list begins."""
    # Levels are in runs, or in groups of eight values of `width` bits. A list begins at every
    # `every`th value, or nowhere if that is 0.
    done = 0
    while done < size:
        header, at = _varint(page, at, stop)
        packed, length = header & 1, header >> 1
        if length <= 0 or length > 1 << 40:
            return False
        used = length * width if packed else 1
        if at + used > stop:
            return False
        if packed:
            length = min(8 * length, size - done)
            for i in range(length):
                bit = i * width
                found = page[at + (bit >> 3)] >> (bit & 7) & ((1 << width) - 1)
                begins = every > 0 and (done + i) % every == 0
                if found != (0 if begins else level):
                    return False
        else:
            length = min(length, size - done)
            found = page[at]
            begun = 0 if every == 0 else -(-(done + length) // every) - -(-done // every)
            if begun != (length if found == 0 else 0) or found not in (0, level):
                return False
        at += used
        done += length
    return True


@compiled
def _read_differences(page: PageBytes, at: int, stop: int, to: Ints) -> bool:
    """Fills counts from their differences, and tells whether these were as expected."""
    # Differences are in blocks of parts. All of a part have the same number of bits.
    block, at = _varint(page, at, stop)
    parts, at = _varint(page, at, stop)
    size, at = _varint(page, at, stop)
    first, at = _varint(page, at, stop)
    if at > stop or size != len(to) or parts <= 0 or parts > block or block > 1 << 20:
        return False
    length = block // parts
    if length * parts != block or length % 32 != 0:
        return False
    value = _signed(first)
    to[0] = value
    done = 1
    while done < size:
        least, at = _varint(page, at, stop)
        widths = at
        at += parts
        if at > stop:
            return False
        least = _signed(least)
        for part in range(parts):
            if done == size:
                break
            width = int(page[widths + part])
            if width > _WIDEST or at + length * width // 8 > stop:
                return False
            here = to[done : done + length]
            if width == 0:
                for i in range(len(here)):
                    value += least
                    here[i] = value
            else:
                mask = (1 << width) - 1
                for i in range(len(here)):
                    bit = i * width
                    value += least + (_word_at(page, at + (bit >> 3)) >> (bit & 7) & mask)
                    here[i] = value
            at += length * width // 8
            done += len(here)
    return True
