"""Reads the counts of a layer from the pages of a Parquet file, faster than pyarrow does.

    >>> counts = counts_in_pages(file, index=0, bins=1000)                   # doctest: +SKIP

Our files hold a list of counts for each neuron. For every count, pyarrow reads two numbers that
say whether it begins a list and whether it is null. Here these are only compared with those that
lists of equal length without nulls have. The counts become int32, half of what pyarrow makes.

This reads what `LayersWriter` writes: pages of the first version with a checksum, compressed with
zstd, whose counts are `DELTA_BINARY_PACKED`. The formats are described at
https://parquet.apache.org/docs/file-format/data-pages/encodings.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.dna.sealed import SealedFile, corrupt_if_unreadable
from pipeline.errors import CorruptFile

Counts = NDArray[np.int32]

_PageBytes = NDArray[np.uint8]

_PageWords = NDArray[np.uint64]

_COLUMN = "counts.list.element"

_REPETITION, _DEFINITION = 1, 3
"""The level of repetition of a count that is not the first of its list, and the level of definition
of one that is not null."""

_DATA_PAGE, _DELTA_BINARY_PACKED, _RLE = 0, 5, 3
"""A kind of page, and encodings, as numbers of the format."""

_PADDING = 16
"""Bytes after a page, so that words may be read at its end."""


def counts_in_pages(file: SealedFile, index: int, bins: int) -> Counts | None:
    """Reads the counts of a row group.

    Args:
        file: The file, with a column of lists of counts.
        index: The number of the row group.
        bins: How many counts each list should have.

    Returns:
        (rows, bins) counts, none of them negative. None if one does not fit, if there are nulls or
        lists of other lengths, or if the pages are damaged or written otherwise.
    """
    rows, schema = file.row_groups[index].rows, file.parquet.schema
    paths = [schema.column(i).path for i in range(len(schema))]
    if _COLUMN not in paths:
        return None
    column = schema.column(paths.index(_COLUMN))
    levels = column.max_repetition_level, column.max_definition_level
    if levels != (_REPETITION, _DEFINITION) or column.physical_type != "INT64":
        return None
    counts = np.empty(rows * bins, np.int32)
    at = 0
    try:
        with corrupt_if_unreadable(file.name), file.chunk(index, paths.index(_COLUMN)) as chunk:
            for page, size, values in _pages(chunk):
                if values > len(counts) - at or not _read(page, size, counts, at, values, bins):
                    return None
                at += values
    except CorruptFile:
        return None
    return counts.reshape(rows, bins) if at == len(counts) else None


def _pages(chunk: memoryview) -> Iterator[tuple[_PageBytes, int, int]]:
    """Yields the pages of a column: each with bytes after it, its size, and how many values it has.

    Raises:
        ValueError: A page is damaged, or is not of the kind that we write. Wrong bytes may cause
            the other errors of `corrupt_if_unreadable`, too.
    """
    zstd, at = pa.Codec("zstd"), 0
    while at < len(chunk):
        header, start = _struct(chunk, at)
        kind, size, stored, checksum, data = (header[field] for field in range(1, 6))
        values, *encodings = (data[field] for field in range(1, 5))
        if kind != _DATA_PAGE or encodings != [_DELTA_BINARY_PACKED, _RLE, _RLE]:
            raise ValueError(f"a page of kind {kind} with encodings {encodings}")
        if min(size, stored, values) < 1 or size >= 2**31:
            raise ValueError(f"a page of {stored} bytes for {size}, with {values} values")
        at = start + stored
        with chunk[start:at] as body:
            if zlib.crc32(body) != checksum & 0xFFFFFFFF:
                raise ValueError("a page has another checksum")
            raw = np.frombuffer(zstd.decompress(body, size), np.uint8)
        page = np.zeros(-(-size // 8) * 8 + _PADDING, np.uint8)
        page[:size] = raw
        yield page, size, values


def _struct(data: memoryview, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Reads a struct of Thrift's compact protocol, as the header of a page is one.

    Returns:
        The fields that are integers or structs, by number, and the offset after the struct.

    Raises:
        ValueError: There are fields that no header of a page has.
    """
    found: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        if kind in (4, 5, 6):  # an integer
            found[field], at = _integer(data, at)
        elif kind == 8:  # bytes
            doubled, at = _integer(data, at, signed=False)
            at += doubled
        elif kind == 12 and depth < 2:
            found[field], at = _struct(data, at, depth + 1)
        elif kind not in (1, 2):  # true, false
            raise ValueError(f"a field of type {kind} in the header of a page")
    return found, at + 1


def _integer(data: memoryview, at: int, *, signed: bool = True) -> tuple[int, int]:
    """Reads a number, seven bits a byte.

    Returns:
        The number, and the offset after it.

    Raises:
        ValueError: It has more than 64 bits.
    """
    found = 0
    for shift in range(0, 70, 7):
        found |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return (found >> 1) ^ -(found & 1) if signed else found, at
    raise ValueError("a number of more than 64 bits")


# The kernels. None reads beyond the page and its padding, whatever the bytes are.


@compiled
def _read(page: _PageBytes, size: int, counts: Counts, first: int, values: int, bins: int) -> bool:
    """Reads a page into `counts` from `first` on, and returns whether it holds what it should."""
    at = 0
    for width, low, high in ((1, 0, _REPETITION), (2, _DEFINITION, _DEFINITION)):
        if size - at < 4:
            return False
        length: Any = np.int64(0)
        for byte in range(4):
            length |= np.int64(page[at + byte]) << 8 * byte
        at += 4
        if size - at < length:
            return False
        if not _has_levels(page[at : at + length], width, values, first, bins, low, high):
            return False
        at += length
    return _unpack(page, at, size, counts[first : first + values])


@compiled
def _has_levels(
    data: _PageBytes, width: int, values: int, first: int, bins: int, low: int, high: int
) -> bool:
    """Returns whether levels of `width` bits are `low` where a list starts, and `high` elsewhere.

    They are the levels of the values from number `first` on, as runs of one level or one by one.
    """
    at, place, stop = 0, first, first + values
    while place < stop:
        head, at = _varint(data, at, len(data))
        many = head >> 1
        if at >= len(data) or not 0 < many < 2**31:
            return False
        if head & 1:
            packed = many * width
            many = min(8 * many, stop - place)
            if many * width > 8 * (len(data) - at):
                return False
            for k in range(many):
                level = (data[at + (k * width >> 3)] >> (k * width & 7)) & ((1 << width) - 1)
                if level != (high if (place + k) % bins else low):
                    return False
            at += packed
        else:
            many = min(many, stop - place)
            lists = (place + many - 1) // bins - (place - 1) // bins
            if (lists > 0 and data[at] != low) or (lists < many and data[at] != high):
                return False
            at += 1
        place += many
    return True


@compiled
def _unpack(page: _PageBytes, at: int, size: int, counts: Counts) -> bool:
    """Decodes counts, and returns whether there are so many, and each fits and is not negative."""
    words = page.view(np.uint64)
    block, at = _varint(page, at, size)
    parts, at = _varint(page, at, size)
    total, at = _varint(page, at, size)
    first, at = _varint(page, at, size)
    if at > size or total != len(counts) or not (0 < parts <= 64 and 0 < block < 2**16):
        return False
    many = block // parts
    if many == 0 or block % parts or many % 8:
        return False
    count = _signed(first)
    counts[0] = count
    seen, place = count, 1
    while place < len(counts):
        least, at = _varint(page, at, size)
        widths, at = at, at + parts
        if at > size:
            return False
        for part in range(parts):
            if place >= len(counts):
                break
            width: Any = np.int64(page[widths + part])
            if width > 32 or many * width > 8 * (size - at):
                return False
            here = counts[place : place + many]
            count, some = _add_differences(words, 8 * at, width, _signed(least), count, here)
            seen |= some
            place, at = place + many, at + many * width // 8
    return bool(0 <= seen < 2**31)


@compiled
def _add_differences(
    words: _PageWords, start: int, width: int, least: Any, count: Any, counts: Counts
) -> tuple[Any, Any]:
    """Fills `counts` with the counts that follow a count.

    From bit `start` on, the words hold what a count has more than the one before and `least`.

    Returns:
        The last count, and the bits that are set in any.
    """
    seen: Any = np.int64(0)
    wide, bit = np.uint64(width), np.uint64(start)
    mask = (np.uint64(1) << wide) - np.uint64(1)
    together = len(counts) // 8 * 8 if width <= 8 else 0  # eight are in 64 bits
    for k in range(0, together, 8):
        bits = _bits_at(words, bit)
        for i in range(8):
            count += np.int64(bits & mask) + least
            counts[k + i] = count
            seen |= count
            bits >>= wide
        bit += wide << np.uint64(3)
    for k in range(together, len(counts)):
        count += np.int64(_bits_at(words, bit) & mask) + least
        counts[k] = count
        seen |= count
        bit += wide
    return count, seen


@compiled
def _bits_at(words: _PageWords, bit: Any) -> Any:
    """Returns the 64 bits from a bit on."""
    at, shift = bit >> np.uint64(6), bit & np.uint64(63)
    following = (words[at + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift)
    return (words[at] >> shift) | following


@compiled
def _varint(data: _PageBytes, at: int, stop: int) -> tuple[Any, int]:
    """Reads a number, seven bits a byte.

    Returns:
        The number, and the offset after it, which is beyond `stop` if the number is not whole.
    """
    found = np.int64(0)
    for shift in range(0, 64, 7):
        if at >= stop:
            break
        found |= np.int64(data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return found, at
    return 0, stop + 1


@compiled
def _signed(number: Any) -> Any:
    """Undoes the format's mapping of 0, -1, 1, -2 to 0, 1, 2, 3."""
    return np.int64(np.uint64(number) >> np.uint64(1)) ^ -(number & 1)
