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
"""The bytes of a block of MD5: 16 words."""

_NAMES = 16
"""How many names are hashed at a time. A register of a processor holds as many words, or half."""

_SUM = 16 * _NAMES
"""Where the sums of the names begin, behind the words of a block of each."""

_START = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476], np.uint32)
"""The four words that a sum of MD5 begins with (RFC 1321, section 3.3)."""


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


def group_numbers(groups: pa.StringArray | pa.ChunkedArray, pairing: Pairing) -> NDArray[np.uint64]:
    """Returns the numbers that decide the folds of groups.

    Args:
        groups: The groups of N images.
        pairing: How images are named for pairing. A group is named by its path.

    Returns:
        (N,) uint64, the numbers of `pair_names.name_number`.
    """
    numbered = pa.chunked_array([groups]) if isinstance(groups, pa.Array) else groups
    numbered = numbered.combine_chunks().dictionary_encode()
    data, bounds = text_bytes(numbered.dictionary)
    root = np.frombuffer(f"{pairing.root.rstrip('/')}/".encode(), np.uint8)
    found = np.empty(len(numbered.dictionary), np.uint64)
    way = _BELOW_ROOT if pairing.root else _WHOLE
    _numbers(data, bounds, root, way, np.empty(0, np.int64), found)
    numbers: NDArray[np.uint64] = found[numbered.indices.to_numpy()]
    return numbers


def folder_starts(uris: pa.StringArray | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Finds the uris that are in another folder than the one before.

    Args:
        uris: N uris.

    Returns:
        (N,) bool. It is true of the first uri.
    """
    data, bounds = text_bytes(uris)
    found = np.empty(len(uris), np.bool_)
    _folder_starts(data, bounds, found)
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
    starts, stops = np.empty(len(found), np.int64), np.empty(len(found), np.int64)
    for row in range(len(found)):
        start, stop = int(bounds[row]), int(bounds[row + 1])
        if way == _BY_STEM:
            start = _file_start(data, start, stop)
        elif way == _BELOW_ROOT:
            start = _path_start(data, start, stop, root)
        starts[row], stops[row] = start, _stem_end(data, start, stop, suffixes)
    held = np.zeros(_SUM + 4 * _NAMES, np.uint32)
    for first in range(0, len(found), _NAMES):
        last = min(first + _NAMES, len(found))
        _md5(data, starts[first:last], stops[first:last], held, found[first:last])


@compiled
def _file_start(data: Bytes, start: int, stop: int) -> int:
    """Returns where the last part of a path begins."""
    at = stop
    while at > start and data[at - 1] != ord("/"):
        at -= 1
    return at


@compiled
def _folder_starts(data: Bytes, bounds: NDArray[np.int32], found: NDArray[np.bool_]) -> None:
    """Marks the texts up to whose last slash there is other text than in the one before."""
    before = data[:0]
    for row in range(len(found)):
        start, stop = int(bounds[row]), int(bounds[row + 1])
        folder = data[start : _file_start(data, start, stop)]
        is_new = row == 0 or len(folder) != len(before)
        if not is_new:
            for at in range(len(folder)):
                is_new |= folder[at] != before[at]
        found[row] = is_new
        before = folder


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
def _md5(
    data: Bytes,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    held: NDArray[Word],
    found: NDArray[np.uint64],
) -> None:
    """Gives the last eight bytes of an MD5 (RFC 1321) of some texts, the lowest of them first.

    Args:
        data: The bytes.
        starts: Where in them each text begins; (N,), at most `_NAMES`.
        stops: Where it ends.
        held: Memory that is overwritten: the words of a block of each text, the first ones of all
            before the second ones, and then the four words of each sum.
        found: (N,), which gets the numbers.
    """
    most = 0
    for number in range(4):
        for name in range(_NAMES):
            held[_SUM + number * _NAMES + name] = _START[number]
    for name in range(len(found)):
        most = max(most, _last_block(starts[name], stops[name]))
    for block in range(most + 1):
        for name in range(len(found)):
            _take_block(data, starts[name], stops[name], block, held, name)
        _add_block(held)
        for name in range(len(found)):
            if block == _last_block(starts[name], stops[name]):
                c, d = held[_SUM + 2 * _NAMES + name], held[_SUM + 3 * _NAMES + name]
                found[name] = np.uint64(c) | np.uint64(d) << np.uint64(32)


@compiled
def _last_block(start: int, stop: int) -> int:
    """Returns the number of the last block of a text: nine bytes stand behind the text in it."""
    return (stop - start + 8) // _BLOCK


@compiled
def _take_block(
    data: Bytes, start: int, stop: int, block: int, held: NDArray[Word], name: int
) -> None:
    """Puts the words of a block of a text into their places. Behind its last block are zeros."""
    first = start + block * _BLOCK
    for number in range(16):
        at = first + 4 * number
        left = stop - at
        word = np.uint32(0)
        if left >= 4:
            word = np.uint32(
                np.uint32(data[at])
                | np.uint32(data[at + 1]) << 8
                | np.uint32(data[at + 2]) << 16
                | np.uint32(data[at + 3]) << 24
            )
        elif left >= 0:
            word = np.uint32(0x80 << 8 * left)
            for behind in range(left):
                word |= np.uint32(np.uint32(data[at + behind]) << 8 * behind)
        held[number * _NAMES + name] = word
    if block == _last_block(start, stop):
        held[14 * _NAMES + name] = np.uint32((stop - start) << 3)
        held[15 * _NAMES + name] = np.uint32((stop - start) >> 29)


@compiled
def _add_block(held: NDArray[Word]) -> None:
    """Adds the block of each text to its sum.

    The steps of one text depend on each other. Those of several do not, so one instruction can do
    the same step of all. LLVM finds that out only if there is no loop inside this one.
    """
    for name in range(_NAMES):
        a0, b0 = held[_SUM + name], held[_SUM + _NAMES + name]
        c0, d0 = held[_SUM + 2 * _NAMES + name], held[_SUM + 3 * _NAMES + name]
        a, b, c, d = a0, b0, c0, d0
        a, b, c, d = _four_steps(0, a, b, c, d, held, name)
        a, b, c, d = _four_steps(4, a, b, c, d, held, name)
        a, b, c, d = _four_steps(8, a, b, c, d, held, name)
        a, b, c, d = _four_steps(12, a, b, c, d, held, name)
        a, b, c, d = _four_steps(16, a, b, c, d, held, name)
        a, b, c, d = _four_steps(20, a, b, c, d, held, name)
        a, b, c, d = _four_steps(24, a, b, c, d, held, name)
        a, b, c, d = _four_steps(28, a, b, c, d, held, name)
        a, b, c, d = _four_steps(32, a, b, c, d, held, name)
        a, b, c, d = _four_steps(36, a, b, c, d, held, name)
        a, b, c, d = _four_steps(40, a, b, c, d, held, name)
        a, b, c, d = _four_steps(44, a, b, c, d, held, name)
        a, b, c, d = _four_steps(48, a, b, c, d, held, name)
        a, b, c, d = _four_steps(52, a, b, c, d, held, name)
        a, b, c, d = _four_steps(56, a, b, c, d, held, name)
        a, b, c, d = _four_steps(60, a, b, c, d, held, name)
        held[_SUM + name], held[_SUM + _NAMES + name] = np.uint32(a0 + a), np.uint32(b0 + b)
        held[_SUM + 2 * _NAMES + name] = np.uint32(c0 + c)
        held[_SUM + 3 * _NAMES + name] = np.uint32(d0 + d)


@compiled
def _four_steps(
    i: int, a: Word, b: Word, c: Word, d: Word, held: NDArray[Word], name: int
) -> tuple[Word, Word, Word, Word]:
    """Takes four steps of MD5, from step `i`. Each changes one of the four words."""
    a = _step(i, a, b, c, d, held, name)
    d = _step(i + 1, d, a, b, c, held, name)
    c = _step(i + 2, c, d, a, b, held, name)
    b = _step(i + 3, b, c, d, a, held, name)
    return a, b, c, d


@compiled
def _step(i: int, a: Word, b: Word, c: Word, d: Word, held: NDArray[Word], name: int) -> Word:
    """Returns what step `i` of MD5, from 0, puts in the place of `a`."""
    if i < 16:
        mixed, word = b & c | ~b & d, i
    elif i < 32:
        mixed, word = d & b | ~d & c, 5 * i + 1 & 15
    elif i < 48:
        mixed, word = b ^ c ^ d, 3 * i + 5 & 15
    else:
        mixed, word = c ^ (b | ~d), 7 * i & 15
    x = np.uint32(a + mixed + _SINES[i] + held[word * _NAMES + name])
    shift = _SHIFTS[i >> 4, i & 3]
    return np.uint32(b + np.uint32(x << shift | x >> (32 - shift)))
