"""Finds the damage that a file can tell of itself, and that PIL does not look for.

PIL takes the rows that the compressed stream of a PNG holds, and leaves the others black. It passes
over the checksums of the pixels, and of what follows them. And it takes whatever follows the pixels
of a JPEG that was cut short for more of them. docs/hostile.md says what each format can tell.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image, PngImagePlugin

from pipeline.errors import BadImage

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

JPEG_END = b"\xff\xd9"

JPEG_SCAN = 0xDA
"""The marker of a scan: pixels follow."""

PIXEL_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples a pixel, by the type of colour."""

ADAM7_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""The passes of an interlaced PNG: the first column and row of each, and the steps to the next."""

UNPACKED_BYTES = 2**18
"""How much of the rows is unpacked at a time, where they are counted."""

FEW_PIXELS = 2**12
"""Unpacking so few pixels once more costs less than a mark."""

MARK = (165, 90, 173, 82)
"""A colour that is put where the last row will be. If it stays, the row may be missing."""

MARKED_PIXELS = 256
"""How much of the last row is marked: a row is written whole, or not at all."""


def load_png(image: PngImagePlugin.PngImageFile, data: bytes) -> None:
    """Loads the pixels of a PNG that PIL has opened, and checks that it is undamaged.

    Unpacking takes most of the time of decoding, so rows are counted by unpacking them once more
    only where the last row looks as if it was never written.

    Args:
        image: The image; its pixels are not loaded yet.
        data: The bytes of the file.

    Raises:
        BadImage: A checksum is wrong, or the file or its pixels end early.
    """
    require_png_checksums(data)
    small = image.width * image.height <= FEW_PIXELS
    if small or image.info.get("interlace") or image.is_animated:
        image.load()
        require_png_rows(data)
        return
    bottom = (0, image.height - 1, min(image.width, MARKED_PIXELS), image.height)
    blank = Image.new(image.mode, image.size, None)
    blank.paste(MARK[: len(blank.getbands())] if len(blank.getbands()) > 1 else MARK[0], bottom)
    mark = blank.crop(bottom).tobytes()
    image.im = blank.im
    image.load()
    if image.crop(bottom).tobytes() == mark:
        require_png_rows(data)


def require_png_checksums(data: bytes, start: int = 0) -> None:
    """Checks the checksum of each chunk of a PNG, from its signature to its end.

    Args:
        data: The bytes of a file.
        start: Where in them the PNG begins.

    Raises:
        BadImage: A checksum is wrong, or the file ends before the PNG does.
    """
    for kind, begin, end in _chunks(data, start):
        with memoryview(data)[begin - 4 : end] as covered:
            found = zlib.crc32(covered)
        if found != int.from_bytes(data[end : end + 4], "big"):
            raise BadImage(
                "corrupt", f"the checksum of its chunk {kind!r} at byte {begin} is wrong"
            )


def require_png_rows(data: bytes, start: int = 0) -> None:
    """Checks that the compressed stream of a PNG holds all rows of the image.

    Args:
        data: The bytes of a file.
        start: Where in them the PNG begins.

    Raises:
        BadImage: The stream is damaged, or ends before the last row.
    """
    stated = _row_bytes(data, start)
    inflater, found = zlib.decompressobj(), 0
    try:
        for piece in _pixel_pieces(data, start):
            packed = bytes(piece)
            while found < stated and (some := inflater.decompress(packed, UNPACKED_BYTES)):
                found += len(some)
                packed = inflater.unconsumed_tail
    except zlib.error as error:
        raise BadImage("corrupt", f"its pixels cannot be unpacked: {error}") from error
    if found < stated:
        raise BadImage("truncated", f"its pixels end early: {found} of {stated} bytes are there")


def _chunks(data: bytes, start: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name of each chunk, and where its content begins and ends.

    Raises:
        BadImage: The file ends before the last chunk.
    """
    at, kind = start + len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        kind, begin = data[at + 4 : at + 8], at + 8
        end = begin + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            raise BadImage("truncated", f"the file ends in its chunk {kind!r} at byte {begin}")
        yield kind, begin, end
        at = end + 4


def _pixel_pieces(data: bytes, start: int) -> Iterator[memoryview]:
    """Yields the pieces of the compressed stream, which lie in consecutive chunks."""
    met = False
    for kind, begin, end in _chunks(data, start):
        if kind == b"IDAT":
            met = True
            yield memoryview(data)[begin:end]
        elif met:
            return


def _row_bytes(data: bytes, start: int) -> int:
    """Returns how many bytes the rows have, each with the byte that names its filter."""
    width, height, bits, colour, interlaced = struct.unpack_from(">IIBB2xB", data, start + 16)
    depth = PIXEL_SAMPLES[colour] * bits
    passes = ADAM7_PASSES if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, right, down in passes:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * depth // 8))
    return total


def require_jpeg_end(data: bytes) -> None:
    """Checks that a JPEG has its end marker. A file that was filled up with zeros has none.

    Args:
        data: The bytes of a file that PIL has decoded.

    Raises:
        BadImage: There is no end marker behind the start of the pixels.
    """
    if not has_jpeg_end(data):
        raise BadImage("truncated", "it has no end marker (EOI)")


def has_jpeg_end(data: bytes) -> bool:
    """Whether a JPEG has its end marker."""
    return data.rfind(JPEG_END, first_scan(data)) >= 0  # the last bytes of a whole file


def first_scan(data: bytes) -> int:
    """Returns where the pixels of a JPEG begin: what is before may hold another JPEG, whole."""
    return next((at for marker, at in jpeg_segments(data) if marker == JPEG_SCAN), len(data))


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields the marker and the place of each segment of a JPEG, up to the first scan."""
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            yield marker, at
            if marker == JPEG_SCAN:
                return
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
