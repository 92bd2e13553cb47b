"""Hashes very many names, a million in a fraction of a second.

>>> crc32_of(pa.array(["s3://b/a.jpg"])) == zlib.crc32(b"s3://b/a.jpg")
array([ True])

`zlib`, `hashlib` and DuckDB take several times as long, most of it for the calls. These kernels
give the same numbers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.sources.pair_names import BY_STEM, IMAGE_SUFFIXES, Pairing
from pipeline.sources.text_columns import text_bytes

Bytes = NDArray[np.uint8]
Word = np.uint32

_POLYNOMIAL = 0xEDB88320
"""That of CRC-32, its bits in reverse, as in zlib."""


def _crc_tables() -> NDArray[Word]:
    """Returns (8, 256): what a byte adds to the sum, with 0 to 7 bytes behind it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    tables = [table]
    for _ in range(7):
        tables.append(tables[-1] >> 8 ^ table[tables[-1] & 255])
    return np.stack(tables)


_CRC_TABLES = _crc_tables()

_SINES = np.floor(2**32 * np.abs(np.sin(np.arange(1, 65)))).astype(np.uint32)
"""The constants of MD5 (RFC 1321, section 3.4)."""

_SHIFTS = np.array([[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]], np.uint32)
"""How far each step of MD5 rotates, by its round."""

_BLOCK = 64
"""The bytes of a block of MD5."""


def crc32_of(texts: pa.StringArray | pa.ChunkedArray) -> NDArray[np.uint32]:
    """Returns the CRC-32 of texts.

    Args:
        texts: N texts.

    Returns:
        (N,) uint32, the numbers of `zlib.crc32`.
    """
    data, bounds = text_bytes(texts)
    found = np.empty(len(texts), np.uint32)
    _crc32(data, bounds, _CRC_TABLES, found)
    return found


def name_numbers(uris: pa.StringArray | pa.ChunkedArray, pairing: Pairing) -> NDArray[np.uint64]:
    """Returns the numbers that decide the folds of single images.

    Args:
        uris: The uris of N images.
        pairing: How images are named for pairing; not by a label.

    Returns:
        (N,) uint64, the numbers of `pair_names.name_number`.
    """
    data, bounds = text_bytes(uris)
    root = np.frombuffer(f"{pairing.root.rstrip('/')}/".encode(), np.uint8)
    way = _BY_STEM if pairing.by == BY_STEM else _BELOW_ROOT if pairing.root else _WHOLE
    found = np.empty(len(uris), np.uint64)
    _numbers(data, bounds, root, way, _SUFFIXES, found)
    return found


_WHOLE, _BELOW_ROOT, _BY_STEM = range(3)
"""What a name is: the uri, its part below the root, or the name of the file."""


_SUFFIXES = np.array(
    [int.from_bytes(f".{suffix}".encode(), "big") for suffix in IMAGE_SUFFIXES], np.int64
)
"""Each suffix with its dot as one number."""

_LONGEST_SUFFIX = 1 + max(map(len, IMAGE_SUFFIXES))


@compiled
def _crc32(
    data: Bytes, bounds: NDArray[np.int32], tables: NDArray[Word], found: NDArray[Word]
) -> None:
    """Fills `found` with the CRC-32 of each text, eight bytes at a time."""
    for row in range(len(found)):
        at, stop = int(bounds[row]), int(bounds[row + 1])
        crc = np.uint32(0xFFFFFFFF)
        while at + 8 <= stop:
            crc ^= np.uint32(
                np.uint32(data[at])
                | np.uint32(data[at + 1]) << 8
                | np.uint32(data[at + 2]) << 16
                | np.uint32(data[at + 3]) << 24
            )
            crc = np.uint32(
                tables[7, crc & 255]
                ^ tables[6, crc >> 8 & 255]
                ^ tables[5, crc >> 16 & 255]
                ^ tables[4, crc >> 24]
                ^ tables[3, data[at + 4]]
                ^ tables[2, data[at + 5]]
                ^ tables[1, data[at + 6]]
                ^ tables[0, data[at + 7]]
            )
            at += 8
        while at < stop:
            crc = np.uint32(tables[0, (crc ^ data[at]) & 255] ^ crc >> 8)
            at += 1
        found[row] = ~crc


@compiled
def _numbers(
    data: Bytes,
    bounds: NDArray[np.int32],
    root: Bytes,
    way: int,
    suffixes: NDArray[np.int64],
    found: NDArray[np.uint64],
) -> None:
    """Fills `found` with the numbers of names. `root` ends with a slash."""
    block = np.zeros(_BLOCK, np.uint8)
    words = block.view(np.uint32)
    for row in range(len(found)):
        start, stop = int(bounds[row]), int(bounds[row + 1])
        if way == _BY_STEM:
            start = _file_start(data, start, stop)
        elif way == _BELOW_ROOT:
            start = _path_start(data, start, stop, root)
        stop = _stem_end(data, start, stop, suffixes)
        found[row] = _md5(data, start, stop, block, words)


@compiled
def _file_start(data: Bytes, start: int, stop: int) -> int:
    """Returns where the last part of a path begins."""
    at = stop
    while at > start and data[at - 1] != ord("/"):
        at -= 1
    return at


@compiled
def _path_start(data: Bytes, start: int, stop: int, root: Bytes) -> int:
    """Returns where the part of a uri below the root begins; `start` if it is elsewhere."""
    length = min(len(root), stop - start)
    if length < len(root) - 1:
        return start
    for at in range(length):
        if data[start + at] != root[at]:
            return start
    return start + length


@compiled
def _stem_end(data: Bytes, start: int, stop: int, suffixes: NDArray[np.int64]) -> int:
    """Returns where the suffix of an image begins, at its dot; `stop` if there is none."""
    suffix = 0
    for behind in range(min(_LONGEST_SUFFIX, stop - start)):
        character = int(data[stop - 1 - behind])
        if ord("A") <= character <= ord("Z"):
            character += ord("a") - ord("A")
        suffix |= character << 8 * behind
        if character == ord("."):
            for known in suffixes:
                if known == suffix:
                    return stop - 1 - behind
            return stop
    return stop


@compiled
def _md5(data: Bytes, start: int, stop: int, block: Bytes, words: NDArray[Word]) -> np.uint64:
    """Returns the last eight bytes of an MD5 (RFC 1321), the lowest of them first.

    Args:
        data: The bytes.
        start: Where in them the text begins.
        stop: Where it ends.
        block: (64,), which is overwritten.
        words: (16,), the same memory.
    """
    a0, b0 = np.uint32(0x67452301), np.uint32(0xEFCDAB89)
    c0, d0 = np.uint32(0x98BADCFE), np.uint32(0x10325476)
    length = stop - start
    for first in range(0, length + 9, _BLOCK):
        size = min(_BLOCK, max(0, length - first))
        for at in range(size):
            block[at] = data[start + first + at]
        for at in range(size, _BLOCK):
            block[at] = 0
        if 0 <= length - first < _BLOCK:
            block[length - first] = 0x80
        if length + 9 <= first + _BLOCK:
            words[14], words[15] = np.uint32(length << 3), np.uint32(length >> 29)
        a, b, c, d = a0, b0, c0, d0
        for i in range(16):
            step = _rotated(a, b & c | ~b & d, i, words[i], b)
            a, b, c, d = d, step, b, c
        for i in range(16, 32):
            step = _rotated(a, d & b | ~d & c, i, words[5 * i + 1 & 15], b)
            a, b, c, d = d, step, b, c
        for i in range(32, 48):
            step = _rotated(a, b ^ c ^ d, i, words[3 * i + 5 & 15], b)
            a, b, c, d = d, step, b, c
        for i in range(48, 64):
            step = _rotated(a, c ^ (b | ~d), i, words[7 * i & 15], b)
            a, b, c, d = d, step, b, c
        a0, b0 = np.uint32(a0 + a), np.uint32(b0 + b)
        c0, d0 = np.uint32(c0 + c), np.uint32(d0 + d)
    return np.uint64(c0) | np.uint64(d0) << np.uint64(32)


@compiled
def _rotated(a: Word, mixed: Word, step: int, word: Word, b: Word) -> Word:
    """Returns what a step of MD5, from 0, puts in the place of `a`."""
    x = np.uint32(a + mixed + _SINES[step] + word)
    shift = _SHIFTS[step >> 4, step & 3]
    return np.uint32(b + np.uint32(x << shift | x >> (32 - shift)))
