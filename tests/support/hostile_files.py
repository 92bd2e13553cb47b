"""Makes hostile candidates, each with the outcome that it must have.

    python -m tests.support.hostile_files docs/hostile.md      # writes the table

`FILES` are single files, by content; `PLACES` need a file system; `LISTS` are lists of names;
`ARCHIVES` is for archives. The same tables drive the tests and the document.
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.images.decoding import FORMATS, ORIENTATION
from tests.support.builders import photo

COUNTED, IGNORED, UNSEEN, REFUSED = "counted", "ignored", "not a candidate", "refused"
"""Outcomes other than the reasons of a failure, `images.REASONS`."""


@dataclass(frozen=True)
class Kind:
    """A kind of candidate.

    Attributes:
        title: What it is.
        outcome: What must become of it.
        make: Returns the contents of its files, by their names.
        slow: Its limits take seconds to reach.
    """

    title: str
    outcome: str
    make: Callable[[], Mapping[str, bytes]]
    slow: bool = False


@dataclass(frozen=True)
class Place:
    """A kind of candidate that needs a file system.

    Attributes:
        title: What it is.
        outcome: What must become of it.
        make: Puts it into an empty folder. For a list, it also returns the list.
        counted: How many of its candidates count.
    """

    title: str
    outcome: str
    make: Callable[[Path], Path | None]
    counted: int = 0


# Parts


PHOTO = photo(7)
GREY = PHOTO.convert("L")
PALETTE = PHOTO.quantize(64)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Makes a chunk of a PNG."""
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(
    width: int,
    height: int,
    body: bytes | None = None,
    *,
    bits: int = 8,
    colour: int = 0,
    before: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Makes a PNG with such a header. `body` holds its compressed rows, black ones by default."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if body is None:
        body = deflated(height * (1 + -(-width * samples * bits // 8)))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + before
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def deflated(zeros: int) -> bytes:
    """Makes that many zero bytes, compressed, without ever holding them."""
    packer = zlib.compressobj(9)
    block = bytes(min(zeros, 1 << 20))
    parts = [packer.compress(block) for _ in range(zeros // len(block))] if block else []
    return b"".join([*parts, packer.compress(bytes(zeros % (len(block) or 1))), packer.flush()])


def after_header(data: bytes, extra: bytes) -> bytes:
    """Returns a PNG with chunks put in after its first one."""
    return data[:33] + extra + data[33:]


SHORT, LONG, RATIONAL, FLOAT = 3, 4, 5, 11
_LAYOUT = {SHORT: "H", LONG: "I", RATIONAL: "I", FLOAT: "f"}


def tiff(tags: Mapping[int, tuple[int, list[int]]], body: bytes, *, following: int = 0) -> bytes:
    """Makes a little-endian TIFF: header, `body` at byte 8, then its directory.

    `following` is the offset of the next directory.
    """
    body += b"\0" * (len(body) % 2)
    at = 8 + len(body)
    rows, spill = [], b""
    end = at + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}{_LAYOUT[kind]}", *values)
        count = len(values) // (2 if kind == RATIONAL else 1)
        if len(data) > 4:
            data, spill = struct.pack("<I", end + len(spill)), spill + data
        rows.append(struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0"))
    head = b"II*\0" + struct.pack("<I", at) + body + struct.pack("<H", len(tags))
    return head + b"".join(rows) + struct.pack("<I", following) + spill


def grey_tiff(width: int, height: int, body: bytes, **more: tuple[int, list[int]]) -> bytes:
    """Makes 8-bit grey in one strip, uncompressed; `more` are further tags."""
    tags: dict[int, tuple[int, list[int]]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8]),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        273: (LONG, [8]),
        277: (SHORT, [1]),
        278: (LONG, [height]),
        279: (LONG, [len(body)]),
    }
    tags |= {int(name[1:]): value for name, value in more.items()}
    return tiff({tag: value for tag, value in tags.items() if value[1]}, body)


def tiled_tiff(width: int, height: int, tile: int, body: bytes) -> bytes:
    none: tuple[int, list[int]] = (LONG, [])
    return grey_tiff(
        width,
        height,
        body,
        t259=(SHORT, [8]),  # deflate
        t273=none,
        t278=none,
        t279=none,
        t322=(LONG, [tile]),
        t323=(LONG, [tile]),
        t324=(LONG, [8]),
        t325=(LONG, [len(body)]),
    )


def segment(marker: int, content: bytes) -> bytes:
    """Makes a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def resized_jpeg(width: int, height: int) -> bytes:
    """Makes a JPEG whose frame header states another size."""
    data = bytearray(encoded(GREY, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans(side: int, scans: int) -> bytes:
    """Makes a progressive grey JPEG whose scans refine nothing, each over all blocks again."""
    blocks = (side // 8) ** 2
    frame = struct.pack(">BHHB3B", 8, side, side, 1, 1, 0x11, 0)
    # One code of one bit in each table: DC "no difference", AC "16384 + 14 bits blocks are ended".
    tables = segment(0xC4, b"\x00\x01" + bytes(15) + b"\x00") + segment(
        0xC4, b"\x10\x01" + bytes(15) + b"\xe0"
    )
    dc = segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + bytes(-(-blocks // 8))
    bits, left = "", blocks
    while left > 0:
        run = min(left, (1 << 15) - 1)
        bits += "0" + format(max(run - (1 << 14), 0), "014b")
        left -= max(run, 1 << 14)
    packed = bytes(int(bits[i : i + 8].ljust(8, "1"), 2) for i in range(0, len(bits), 8))
    ac = segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + packed.replace(b"\xff", b"\xff\x00")
    quantities = segment(0xDB, b"\x00" + b"\x01" * 64)
    return b"\xff\xd8" + quantities + segment(0xC2, frame) + tables + dc + ac * scans + b"\xff\xd9"


def exif_of(entries: int, size: int) -> bytes:
    """Makes EXIF whose entries all claim the same `size` bytes."""
    rows = b"".join(struct.pack("<HHII", 0x9000 + i % 0x6000, 7, size, 26) for i in range(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + rows + bytes(4) + bytes(size)


def gif(width: int, height: int, frame: tuple[int, int, int, int], codes: bytes) -> bytes:
    """Makes a GIF of two colours, with one frame at (left, top, width, height)."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    blocks = b"".join(
        bytes([len(codes[i : i + 255])]) + codes[i : i + 255] for i in range(0, len(codes), 255)
    )
    return head + b"," + struct.pack("<4HB", *frame, 0) + b"\x02" + blocks + b"\0;"


def bmp(width: int, height: int) -> bytes:
    """Makes a black BMP of 24 bits; if `height` is below zero, the first row is the top."""
    row = -(-width * 3 // 4) * 4
    body = bytes(row * abs(height))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + head + body


def ico(
    width: int, height: int, image: bytes, *, offset: int = 22, size: int | None = None
) -> bytes:
    head = struct.pack("<HHH", 0, 1, 1)
    size = len(image) if size is None else size
    return head + struct.pack("<BBBBHHII", width, height, 0, 0, 1, 32, size, offset) + image


def riff(kind: bytes, content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(content) + 4) + kind + content


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.png", encoded(PHOTO, "PNG"))
    return sink.getvalue()


# Single files


WHOLE: dict[str, bytes] = {
    kind: encoded(PHOTO, kind, **options)
    for kind, options in {
        **{kind: {} for kind in FORMATS},
        "ICO": {"sizes": [(96, 72)]},
        "WEBP": {"lossless": True},
        "AVIF": {"speed": 10},
    }.items()
}
EXTENSIONS = {kind: {"JPEG": "jpg", "JPEG2000": "jp2"}.get(kind, kind.lower()) for kind in FORMATS}


def _frames(kind: str, **options: Any) -> bytes:
    others = [photo(seed) for seed in (8, 9)]
    return encoded(PHOTO, kind, save_all=True, append_images=others, **options)


def _cut(share: float) -> Callable[[], dict[str, bytes]]:
    """Makes images that are cut where their headers are complete and their pixels are not."""
    return lambda: {
        f"cut-{share}.{EXTENSIONS[kind]}": data[: int(len(data) * share)]
        for kind, data in WHOLE.items()
    }


def _one(name: str, make: Callable[[], bytes]) -> Callable[[], dict[str, bytes]]:
    return lambda: {name: make()}


def _same(data: bytes, *names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, data)


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG")


def _fewer_rows(data: bytes) -> tuple[bytes, bytes]:
    """The chunks with the pixels of a PNG, and one with too few rows in their place."""
    start, end = data.index(b"IDAT") - 4, data.rindex(b"IDAT") - 4
    end += 12 + int.from_bytes(data[end : end + 4], "big")
    return data[start:end], chunk(b"IDAT", deflated(289 * 71))


def _without_adobe(data: bytes) -> bytes:
    """Removes the APP14 of a JPEG, which says how four channels are meant."""
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def _circular() -> bytes:
    data = grey_tiff(96, 72, bytes(96 * 72))
    return data[:-4] + data[4:8]  # the next directory is the first


def _pages(count: int) -> bytes:
    data = grey_tiff(1, 1, bytes(2))
    at = int.from_bytes(data[4:8], "little")
    page = data[at:-4]
    ends = [at + (i + 1) * (len(page) + 4) for i in range(count)]
    return data[:at] + b"".join(page + struct.pack("<I", end) for end in ends)


def _j2k_size(at: int, width: int, height: int) -> bytes:
    """Makes a JPEG 2000 whose codestream states a size, of its image (2) or of its tiles (18)."""
    data = WHOLE["JPEG2000"]
    at += data.index(b"\xff\x51") + 4
    return _patched(data, at, struct.pack(">II", width, height))


def _signed(data: bytes) -> bytes:
    """Makes bytes whose first one begins no format."""
    return b"\xee" + data[1:]


JPEG, PNG = WHOLE["JPEG"], WHOLE["PNG"]
HUGE_EXIF = exif_of(entries=20_000, size=1 << 20)
EXIF_SEGMENTS = [
    segment(0xE1, b"Exif\0\0" + HUGE_EXIF[i : i + 65_000]) for i in range(0, len(HUGE_EXIF), 65_000)
]
MARKUP = b"<?xml version='1.0'?>\n<!DOCTYPE svg [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]>\n"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='99999' height='99999'>&b;</svg>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9\n" % (b"ab" * 32)
FLOATS = struct.pack("<16f", *[float("nan"), float("inf"), -1e38, 0.5] * 4)
DEFLATE = (SHORT, [8])

FILES: tuple[Kind, ...] = (
    # Intact files with any names
    Kind(
        f"every format that is read, whole: {', '.join(FORMATS)}",
        COUNTED,
        lambda: {f"whole.{EXTENSIONS[kind]}": data for kind, data in WHOLE.items()},
    ),
    Kind(
        "a name without extension, in capitals, or of another format",
        COUNTED,
        lambda: {"plain": JPEG, "UPPER.JPG": JPEG, "png.jpg": PNG, "jpeg.png": JPEG, "gif": PNG},
    ),
    Kind(
        "an image whose name says that it is something else",
        IGNORED,
        lambda: _same(JPEG, "photo.txt", "photo.pdf", "photo.h5", "README", "._photo.jpg"),
    ),
    Kind(
        "an image whose name says that it is an archive",
        "corrupt",
        lambda: _same(JPEG, "photo.zip", "photo.tar", "photo.tgz", "photo.parquet", "photo.arrow"),
    ),
    Kind(
        "the first picture of an animation or of several pages: GIF, APNG, WebP, TIFF, AVIF, MPO",
        COUNTED,
        lambda: {
            "animated.gif": _frames("GIF"),
            "animated.png": _frames("PNG"),
            "animated.webp": _frames("WEBP", lossless=True),
            "animated.avif": _frames("AVIF", speed=10),
            "pages.tif": _frames("TIFF"),
            "two.mpo": _frames("MPO"),
        },
    ),
    Kind(
        "interlaced PNG and GIF, progressive and arithmetic JPEG",
        COUNTED,
        lambda: {
            "interlaced.png": png(9, 9, deflated(100), bits=1, interlaced=True),
            "interlaced.gif": encoded(PALETTE, "GIF", interlace=1),
            "progressive.jpg": encoded(PHOTO, "JPEG", progressive=True),
        },
    ),
    Kind(
        "16 bits a channel: grey, colour, with alpha",
        COUNTED,
        lambda: {
            "grey16.png": _sixteen_bits(),
            "rgb16.png": png(9, 9, colour=2, bits=16),
            "rgba16.png": png(9, 9, colour=6, bits=16),
        },
    ),
    Kind(
        "CMYK and YCCK, with Adobe's marker and without",
        COUNTED,
        lambda: {
            "cmyk.jpg": encoded(PHOTO.convert("CMYK"), "JPEG"),
            "bare.jpg": _without_adobe(encoded(PHOTO.convert("CMYK"), "JPEG")),
            "ycck.jpg": encoded(PHOTO.convert("CMYK"), "JPEG").replace(
                b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2"
            ),
            "cmyk.tif": encoded(PHOTO.convert("CMYK"), "TIFF"),
        },
    ),
    Kind(
        "palettes of 1, 2 and 4 bits; transparency longer than the palette; no palette; an index "
        "beyond it",
        COUNTED,
        lambda: {
            **{
                f"palette{bits}.png": png(
                    9, 9, bits=bits, colour=3, before=chunk(b"PLTE", bytes(range(6)))
                )
                for bits in (1, 2, 4)
            },
            "long.png": png(
                4, 4, colour=3, before=chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", bytes(999))
            ),
            "none.png": png(4, 4, colour=3),
            "beyond.png": png(
                4,
                4,
                zlib.compress(b"\0\xff\xff\xff\xff" * 4),
                colour=3,
                before=chunk(b"PLTE", bytes(6)),
            ),
        },
    ),
    # Cut and damaged
    Kind("each format cut at 20 % of its length", "truncated", _cut(0.2)),
    Kind("each format cut at 50 %", "truncated", _cut(0.5)),
    Kind("each format cut at 97 %", "truncated", _cut(0.97)),
    Kind(
        "signatures and little more",
        "corrupt",
        lambda: (
            {f"stub.{EXTENSIONS[kind]}": WHOLE[kind][:12] for kind in ("PNG", "GIF", "DDS")}
            | {"stub.tif": b"II*\0\4\0\0\0\0\0\0\0\0\0\0\0"}
        ),
    ),
    Kind(
        "each format with a wrong first byte",
        "not_an_image",
        lambda: {
            f"wrong.{EXTENSIONS[kind]}": _signed(WHOLE[kind])
            for kind in FORMATS
            if kind not in ("AVIF", "JPEG2000", "TGA")  # files that do not begin with it
        },
    ),
    Kind(
        "a PNG with a wrong checksum: of its header, its pixels, a text before or behind them",
        "corrupt",
        lambda: {
            "header.png": _patched(PNG, 29, b"????"),
            "stream.png": _patched(PNG, len(PNG) - 20, b"????"),
            "pixels.png": _patched(PNG, len(PNG) - 16, b"????"),
            "text.png": after_header(PNG, chunk(b"tEXt", b"a\0b")[:-1] + b"?"),
            "behind.png": PNG[:-12] + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + PNG[-12:],
            "icon.ico": ico(96, 72, _patched(PNG, len(PNG) - 16, b"????")),
        },
    ),
    Kind(
        "a PNG whose pixels end before its last row, or that ends before its own end",
        "truncated",
        lambda: {
            "rows.png": png(96, 72, deflated(71 * 97)),
            "interlaced.png": png(9, 9, deflated(41), bits=1, interlaced=True),
            "animated.png": _frames("PNG").replace(*_fewer_rows(_frames("PNG"))),
            "icon.ico": ico(96, 72, png(96, 72, deflated(71 * 97))),
            "end.png": PNG[:-12],
        },
    ),
    Kind(
        "a JPEG that ends early by its own marker, or whose pixels are damaged: it has no "
        "checksum, and libjpeg fills in grey",
        COUNTED,
        lambda: {
            "early.jpg": JPEG[: len(JPEG) // 2] + b"\xff\xd9",
            "taller.jpg": resized_jpeg(96, 720),
            "damaged.jpg": _patched(JPEG, len(JPEG) - 300, b"\x55" * 9),
        },
    ),
    Kind(
        "something after the end: garbage, zeros, a second JPEG, a zip",
        COUNTED,
        lambda: {
            "garbage.jpg": JPEG + bytes(range(256)) * 4,
            "zeros.png": PNG + bytes(999),
            "two.jpg": JPEG + encoded(photo(8), "JPEG"),
            "zip.png": PNG + zipped(),
        },
    ),
    Kind(
        "a corrupt colour profile",
        COUNTED,
        lambda: {
            "icc.png": after_header(PNG, chunk(b"iCCP", b"k\0\0junk")),
            "icc.jpg": with_segments(JPEG, segment(0xE2, b"ICC_PROFILE\0\1\2junk")),
            "icc.tif": encoded(PHOTO, "TIFF", icc_profile=b"junk" * 99),
        },
    ),
    Kind(
        "EXIF of a megabyte whose 20,000 entries all claim all of it",
        COUNTED,
        lambda: {
            "exif.png": after_header(PNG, chunk(b"eXIf", HUGE_EXIF)),
            "exif.jpg": with_segments(JPEG, *EXIF_SEGMENTS),
            "exif-only.jpg": with_segments(JPEG[:2] + JPEG[20:], *EXIF_SEGMENTS),
        },
    ),
    Kind(
        "EXIF that points to itself, past its end, or is cut",
        COUNTED,
        lambda: (
            {
                f"exif{i}.jpg": with_segments(
                    JPEG, segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + rows)
                )
                for i, rows in enumerate(
                    (
                        b"\1\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + b"\x08\0\0\0",
                        b"\1\0" + struct.pack("<HHII", ORIENTATION, 3, 1 << 30, 1 << 31),
                        b"\xff\xff" + struct.pack("<HHII", ORIENTATION, 3, 1, 77),
                    )
                )
            }
            | {
                "mpf.jpg": with_segments(
                    JPEG, segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + b"\1" * 99)
                )
            }
        ),
    ),
    # Bombs and absurd sizes
    Kind(
        "a header that claims 65,535 x 65,535 or more: PNG, JPEG, GIF, BMP, TGA, TIFF, WebP, "
        "JPEG 2000, PPM, DDS",
        "too_many_pixels",
        lambda: {
            "bomb.png": png(65_535, 65_535, b""),
            "bomb.jpg": resized_jpeg(65_500, 65_500),
            "canvas.gif": gif(65_535, 65_535, (0, 0, 1, 1), b"\x44\x01"),
            "frame.gif": gif(1, 1, (0, 0, 65_535, 65_535), b"\x44\x01"),
            "width.bmp": _patched(bmp(9, 7), 18, struct.pack("<i", -9)),
            "height.bmp": _patched(bmp(9, 7), 22, struct.pack("<i", -(2**31))),
            "bomb.tga": _patched(WHOLE["TGA"], 12, b"\xff\xff\xff\xff"),
            "bomb.tif": grey_tiff(60_000, 60_000, deflated(10**6), t259=DEFLATE),
            "bomb.webp": riff(
                b"WEBP",
                b"VP8X" + struct.pack("<IB3x", 10, 0) + b"\xff" * 6 + WHOLE["WEBP"][12:],
            ),
            "bomb.jp2": WHOLE["JPEG2000"].replace(
                struct.pack(">II", 72, 96), struct.pack(">II", 60_000, 60_000), 1
            ),
            "bomb.ppm": b"P6 60000 60000 255\n" + bytes(99),
            "bomb.dds": _patched(WHOLE["DDS"], 12, struct.pack("<II", 2**32 - 1, 2**32 - 1)),
            "half.png": png(2**31 - 1, 2**31 - 1, deflated(9)),
        },
    ),
    Kind(
        "rows that unpack to gigabytes: 90 million pixels are not unpacked",
        "too_many_pixels",
        lambda: {"rows.png": png(50_000, 50_000, deflated(10**7))},
    ),
    Kind(
        "a TIFF of few pixels in one tile of billions",
        "too_many_pixels",
        lambda: {
            f"tile{side}.tif": tiled_tiff(96, 72, side, deflated(10**6))
            for side in (40_000, 65_536, 2**31)
        },
    ),
    Kind(
        "an icon whose directory says 16 x 16 and whose image is of 90 million pixels",
        "too_many_pixels",
        lambda: {"lies.ico": ico(16, 16, png(9_500, 9_500))},
    ),
    Kind(
        "pixels that unpack to more than the image has: what is left over is not unpacked",
        COUNTED,
        lambda: {
            "more.png": png(96, 72, deflated(1 << 24)),
            "more.tif": grey_tiff(96, 72, deflated(1 << 24), t259=DEFLATE),
            "rows.tif": grey_tiff(
                96, 72, deflated(96 * 72), t259=DEFLATE, t278=(LONG, [2**32 - 1])
            ),
            "outside.gif": gif(8, 8, (6, 6, 8, 8), _lzw(64)),
        },
    ),
    Kind(
        "1 x 1,000,000 and 1,000,000 x 1",
        COUNTED,
        lambda: {"tall.png": png(1, 10**6), "wide.png": png(10**6, 1)},
    ),
    Kind(
        "89 million pixels in one row or one column",
        COUNTED,
        lambda: {"tall.png": png(1, 89_000_000), "wide.png": png(89_000_000, 1)},
        slow=True,
    ),
    Kind(
        "just below the limit, from a file of kilobytes: PNG with alpha, WebP, JPEG 2000",
        COUNTED,
        lambda: {
            "large.png": png(9_400, 9_500, colour=6),
            "large.webp": encoded(Image.new("RGB", (9_000, 9_000)), "WEBP", lossless=True),
            "large.jp2": encoded(Image.new("RGB", (9_000, 9_000)), "JPEG2000"),
        },
        slow=True,
    ),
    Kind(
        "a side of zero: PNG, JPEG, GIF, BMP",
        "corrupt",
        lambda: {
            "width.png": png(0, 9, deflated(9)),
            "height.png": png(9, 0, deflated(9)),
            "width.jpg": resized_jpeg(0, 9),
            "height.jpg": resized_jpeg(9, 0),
            "frame.gif": gif(1, 1, (0, 0, 0, 0), b"\x44\x01"),
        },
    ),
    Kind(
        "a BMP from the top down, its height below zero", COUNTED, lambda: {"down.bmp": bmp(9, -7)}
    ),
    Kind(
        "an icon whose directory lies about where its image is",
        "not_an_image",
        lambda: {"offset.ico": ico(16, 16, PNG, offset=10**9)},
    ),
    Kind(
        "an icon whose directory lies about the size, or repeats one image 65,535 times",
        COUNTED,
        lambda: {
            "sides.ico": ico(16, 16, PNG),
            "size.ico": ico(96, 72, PNG, size=5),
            "many.ico": struct.pack("<HHH", 0, 1, 65_535)
            + struct.pack("<BBBBHHII", 96, 72, 0, 0, 1, 32, len(PNG), 6 + 16 * 65_535) * 65_535
            + PNG,
        },
    ),
    Kind(
        "a TIFF whose directories are a circle, of 2,000 pages, of a million strips",
        COUNTED,
        lambda: {
            "circle.tif": _circular(),
            "pages.tif": _pages(2_000),
            "strips.tif": grey_tiff(
                96, 72, bytes(96 * 72), t273=(LONG, [8] * 10**6), t279=(LONG, [1] * 10**6)
            ),
        },
    ),
    Kind(
        "a TIFF of 65,535 samples a pixel",
        "corrupt",
        lambda: {"samples.tif": grey_tiff(96, 72, bytes(96 * 72), t277=(SHORT, [65_535]))},
    ),
    Kind(
        "floats, among them NaN and infinity; signed integers",
        "unsupported",
        lambda: {
            "floats.tif": grey_tiff(4, 4, FLOATS, t258=(SHORT, [32]), t339=(SHORT, [3])),
            "signed.tif": grey_tiff(4, 4, FLOATS, t258=(SHORT, [32]), t339=(SHORT, [2])),
        },
    ),
    Kind(
        "a PNG whose compressed text or profile unpacks to more than a megabyte",
        "unsupported",
        lambda: {
            "text.png": after_header(PNG, chunk(b"zTXt", b"k\0\0" + deflated(1 << 24))),
            "international.png": after_header(
                PNG, chunk(b"iTXt", b"k\0\1\0\0\0" + deflated(1 << 24))
            ),
            "profile.png": after_header(PNG, chunk(b"iCCP", b"k\0\0" + deflated(1 << 24))),
            "many.png": after_header(PNG, chunk(b"zTXt", b"k\0\0" + deflated(900 << 10)) * 100),
        },
    ),
    Kind(
        "a PNG with thousands of pieces: pixels byte by byte, empty ones, unknown ones",
        COUNTED,
        lambda: {
            "bytes.png": PNG[:33]
            + b"".join(chunk(b"IDAT", bytes([byte])) for byte in deflated(72 * 289))
            + PNG[-12:],
            "empty.png": after_header(PNG, chunk(b"IDAT", b"") * 9_999),
            "unknown.png": after_header(PNG, chunk(b"teSt", b"") * 9_999),
        },
    ),
    Kind(
        "tiles of one pixel: JPEG 2000",
        COUNTED,
        lambda: {"tiles.jp2": _j2k_size(18, 1, 1)},
    ),
    Kind(
        "two sizes in one file: JPEG 2000",
        "corrupt",
        lambda: {"sizes.jp2": _j2k_size(2, 9_000, 9_000)},
    ),
    Kind(
        "a JPEG of 12 bits, or one that states it is lossless and is not",
        "corrupt",
        lambda: {
            "twelve.jpg": JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
            "lossless.jpg": JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc3\0\x11\x08"),
        },
    ),
    Kind(
        "a progressive JPEG of 3,000 scans over 80 million pixels",
        "timeout",
        lambda: {"scans.jpg": many_scans(9_000, 3_000)},
        slow=True,
    ),
    Kind(
        "a JPEG with 97 MB of EXIF in 1,500 segments, which PIL joins one by one",
        "timeout",
        lambda: {
            "segments.jpg": with_segments(
                JPEG, *[segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 1_500
            )
        },
        slow=True,
    ),
    # Files that are no images
    Kind("no bytes", "empty", lambda: _same(b"", "empty.jpg", "empty")),
    Kind(
        "zeros, one byte, 0xff",
        "not_an_image",
        lambda: {"zeros.jpg": bytes(64), "one.jpg": b"\0", "ff.jpg": b"\xff" * 999},
    ),
    Kind(
        "text, an HTML page, XML, a Git LFS pointer, UTF-16",
        "not_an_image",
        lambda: {
            "text.jpg": b"this is no image, it only says so\n" * 9,
            "page.jpg": b"\xef\xbb\xbf<!doctype html><html>404 Not Found</html>",
            "comment.jpg": b"<!-- x -->\n<html>",
            "error.jpg": b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
            "pointer.jpg": LFS,
            "utf16.jpg": "an image".encode("utf-16"),
        },
    ),
    Kind(
        "SVG, with entities that multiply, huge sizes, or a byte-order mark",
        "unsupported",
        lambda: {"bomb.svg": MARKUP + SVG, "mark.svg": b"\xef\xbb\xbf" + SVG, "svg.png": SVG},
    ),
    Kind(
        "a bomb in SVG clothing",
        "too_many_pixels",
        lambda: {"bomb.svg.png": png(65_535, 65_535, b""), "other.svg": png(65_535, 65_535, b"")},
    ),
    Kind(
        "PDF, PostScript, Photoshop, HEIC in image clothing",
        "unsupported",
        lambda: {
            "pdf.jpg": b"%PDF-1.7\n" + bytes(99),
            "script.jpg": encoded(PHOTO, "EPS"),
            "document.jpg": b"8BPS\0\1" + bytes(99),
            "heic.jpg": b"\0\0\0\x18ftypheic" + bytes(99),
        },
    ),
    Kind(
        "a video or a sound in image clothing",
        "not_an_image",
        lambda: {
            "mp4.jpg": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(99),
            "mkv.jpg": b"\x1aE\xdf\xa3" + bytes(99),
            "avi.jpg": riff(b"AVI ", bytes(99)),
            "wave.jpg": riff(b"WAVE", bytes(99)),
        },
    ),
    Kind(
        "an archive in image clothing: zip, gzip, bzip2, 7z",
        "not_an_image",
        lambda: {
            "zip.jpg": zipped(),
            "gzip.jpg": gzip.compress(PNG, mtime=0),
            "bzip2.jpg": bz2.compress(PNG),
            "7z.jpg": b"7z\xbc\xaf\x27\x1c" + bytes(99),
        },
    ),
)


# Damage


@dataclass(frozen=True)
class Damage:
    """What the files of a format tell of their own damage.

    Attributes:
        formats: PIL's names of the formats.
        told: What is found, as the reason of a failure.
        untold: What is not found, and counts.
        make_told: Returns files with such damage, by the reason that each must have.
        make_untold: Returns files with damage that counts.
    """

    formats: tuple[str, ...]
    told: str
    untold: str
    make_told: Callable[[], Mapping[str, Iterable[bytes]]]
    make_untold: Callable[[], Iterable[bytes]]


def flipped(data: bytes, at: int) -> bytes:
    """The bytes with one bit changed; `at` may count from the end."""
    changed = bytearray(data)
    changed[at] ^= 4
    return bytes(changed)


def _rle_bmp(rows: int) -> bytes:
    """8 x 8 pixels in runs, of which so many rows are there, and then the mark of the end."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    body = b"".join(bytes([8, 100 + i, 0, 0]) for i in range(rows)) + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(body), 0, 0, 256, 0)
    size = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", size + len(body), 0, 0, size) + head + palette + body


def _packed_tiff(kind: str, *, share: float = 1.0) -> bytes:
    """A TIFF of one strip, of which the directory states only a share."""
    image = PHOTO.convert("1") if kind == "group4" else PHOTO
    data = encoded(image, "TIFF", compression=kind, strip_size=1 << 20)
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, _, count, value = struct.unpack_from("<HHII", data, at)
        if tag == 279:
            assert count == 1
            stated = int(value * share)
            data = _patched(data, at + 8, struct.pack("<I", stated))
    return data


def _short_webp(share: float, **options: Any) -> bytes:
    """A WebP whose lengths are right, and whose pixels end early."""
    data = encoded(PHOTO, "WEBP", **options)
    body = data[20 : 20 + int((len(data) - 20) * share) // 2 * 2]
    return riff(b"WEBP", data[12:16] + struct.pack("<I", len(body)) + body)


DAMAGE: tuple[Damage, ...] = (
    Damage(
        ("PNG",),
        "a wrong checksum of any chunk (CRC-32), so every changed bit; pixels that end before the "
        "last row; a file that ends before its end (IEND)",
        "what follows the end",
        lambda: {
            "corrupt": [flipped(PNG, at) for at in (20, 30, 100, len(PNG) // 2, -14, -18, -6)],
            "truncated": [png(96, 72, deflated(71 * 97)), PNG[:-12], PNG[:-1], PNG[:-14]],
        },
        lambda: [flipped(PNG + bytes(99), -9)],
    ),
    Damage(
        ("ICO",),
        "of a PNG in it, as of any PNG; a bitmap that ends early",
        "changed pixels of a bitmap in it; a wrong directory, if an image is where it says",
        lambda: {
            "corrupt": [
                *(flipped(WHOLE["ICO"], at) for at in (100, -14, -18)),
                ico(9, 7, bmp(9, 14)[14:-250]),
            ],
            "truncated": [
                WHOLE["ICO"][:-12],
                ico(96, 72, png(96, 72, deflated(71 * 97))),
            ],
        },
        lambda: [ico(9, 7, flipped(bmp(9, 14)[14:], 60)), ico(16, 16, PNG)],
    ),
    Damage(
        ("JPEG",),
        "a file without its end marker (EOI), such as one filled up with zeros; damaged headers "
        "and tables of codes",
        "changed pixels: there is no checksum, and libjpeg goes on after a wrong code; pixels that "
        "end early by a marker: libjpeg fills in grey, and Pillow does not pass on its warning. "
        "(Most JPEGs are decoded without Pillow, by libjpeg-turbo. What it refuses or warns of is "
        "decoded again by Pillow, so such a file counts as before)",
        lambda: {
            "truncated": [JPEG[:-2], JPEG[:-1], JPEG[: len(JPEG) // 2] + bytes(9999)],
            "corrupt": [_patched(JPEG, JPEG.index(b"\xff\xc4") + 5, b"\xff" * 16)],
        },
        lambda: [flipped(JPEG, -300), JPEG[: len(JPEG) // 2] + b"\xff\xd9"],
    ),
    Damage(
        ("WEBP",),
        "a file that is shorter than it states; pixels that end early, lossless or not",
        "changed pixels: there is no checksum",
        lambda: {
            "truncated": [WHOLE["WEBP"][:-1]],
            "corrupt": [
                _short_webp(share, **options)
                for share in (0.3, 0.9)
                for options in ({"lossless": True}, {"quality": 80})
            ],
        },
        lambda: [flipped(WHOLE["WEBP"], 5000)],
    ),
    Damage(
        ("GIF",),
        "pixels that end before the last row, by the end of the file or by a code",
        "changed pixels: there is no checksum; the last byte (the trailer) missing",
        lambda: {
            "truncated": [WHOLE["GIF"][:-9], gif(8, 8, (0, 0, 8, 8), _lzw(63))],
        },
        lambda: [flipped(WHOLE["GIF"], -300), WHOLE["GIF"][:-1]],
    ),
    Damage(
        ("TIFF",),
        "pixels beyond the end of the file; a wrong checksum of Deflate (Adler-32); pixels that "
        "end early, if they are packed by Deflate, LZW, PackBits or Zstandard",
        "changed pixels, unless packed by Deflate; lengths of strips that are not packed; pixels "
        "that end early if packed as JPEG, or as fax (Group 4)",
        lambda: {
            "truncated": [grey_tiff(96, 72, bytes(96 * 30))],
            "corrupt": [
                grey_tiff(96, 72, deflated(96 * 71), t259=DEFLATE),
                grey_tiff(96, 72, deflated(96 * 72)[:-4] + b"????", t259=DEFLATE),
                *(
                    _packed_tiff(kind, share=0.5)
                    for kind in ("tiff_adobe_deflate", "tiff_lzw", "packbits", "zstd")
                ),
            ],
        },
        lambda: [
            flipped(WHOLE["TIFF"], 5000),
            flipped(_packed_tiff("packbits"), 5000),
            grey_tiff(96, 72, bytes(96 * 72), t279=(LONG, [96])),
            _packed_tiff("jpeg", share=0.5),
            _packed_tiff("group4", share=0.5),
        ],
    ),
    Damage(
        ("AVIF",),
        "a file that is shorter than its boxes state",
        "changed pixels: there is no checksum",
        lambda: {"truncated": [WHOLE["AVIF"][:-1]]},
        lambda: [flipped(WHOLE["AVIF"], -700)],
    ),
    Damage(
        ("JPEG2000",),
        "a file without its end marker (EOC); pixels that end early",
        "changed pixels: there is no checksum",
        lambda: {
            "truncated": [WHOLE["JPEG2000"][:-1]],
            "corrupt": [WHOLE["JPEG2000"][:5000] + b"\xff\xd9"],
        },
        lambda: [flipped(WHOLE["JPEG2000"], -300)],
    ),
    Damage(
        ("BMP", "DIB"),
        "fewer bytes than the size asks for; runs (RLE) that end before the last row",
        "changed pixels: there is no checksum",
        lambda: {"truncated": [WHOLE["BMP"][:-1], WHOLE["DIB"][:-1], _rle_bmp(7)]},
        lambda: [flipped(WHOLE["BMP"], -300), flipped(WHOLE["DIB"], -300)],
    ),
    Damage(
        ("PPM",),
        "fewer values than the size asks for",
        "changed pixels: there is no checksum",
        lambda: {
            "truncated": [WHOLE["PPM"][:-1], b"P3 2 2 255 " + b"1 " * 11],
        },
        lambda: [flipped(WHOLE["PPM"], -300)],
    ),
    Damage(
        ("DDS", "SGI", "PCX"),
        "fewer bytes than the size asks for",
        "changed pixels: there is no checksum",
        lambda: {"truncated": [WHOLE[kind][:-1] for kind in ("DDS", "SGI", "PCX")]},
        lambda: [flipped(WHOLE[kind], -300) for kind in ("DDS", "SGI")],
    ),
    Damage(
        ("TGA",),
        "fewer bytes than the size asks for, packed (RLE) or not",
        "changed pixels: there is no checksum; its footer missing or cut, since older files have "
        "none",
        lambda: {
            "truncated": [
                WHOLE["TGA"][:-27],
                encoded(PHOTO, "TGA", compression="tga_rle")[:-27],
            ]
        },
        lambda: [flipped(WHOLE["TGA"], -300), WHOLE["TGA"][:-9]],
    ),
)
"""What can be known of damage, by format; `tests/images/test_damage.py` tests each cell."""


def _lzw(pixels: int) -> bytes:
    """Compresses that many zeros as GIF does, with codes of 3 bits and a clear before each."""
    bits = "".join(format(code, "03b")[::-1] for code in [4, 0] * pixels + [5])
    return bytes(int(bits[i : i + 8].ljust(8, "0")[::-1], 2) for i in range(0, len(bits), 8))


# Places


def _put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)


def _links(folder: Path) -> None:
    _put(folder, "a/photo.jpg")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "there").symlink_to("back")
    (folder / "back").symlink_to("there")


def _dangling(folder: Path) -> None:
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")


def _specials(folder: Path) -> None:
    os.mkfifo(folder / "fifo.jpg")
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may not be long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket.jpg")
    finally:
        os.chdir(here)


def _unreadable(folder: Path) -> None:
    _put(folder, "secret.jpg")
    (folder / "secret.jpg").chmod(0)


def _names(folder: Path) -> None:
    _put(
        folder,
        "new\nline.jpg",
        "tab\t'quote\"`.jpg",
        "a::b.jpg",
        "a%2Fb.jpg",
        "%00.jpg",
        "#?&*[x].jpg",
        " .jpg ",
        "..jpg",
        "...",
        "-rf",
        "\u202egpj.exe",
        "$(reboot).jpg",
        "x" * 251 + ".jpg",
        "s3:/bucket/key.jpg",
        "http:/host/a.jpg?X-Amz-Signature=1",
        os.fsdecode(b"latin-\xe9\xff.jpg"),
    )


def _deep(folder: Path) -> None:
    _put(folder, "/".join(["d" * 200] * 6) + "/deep.jpg")


def _hard_links(folder: Path) -> None:
    _put(folder, "one.jpg")
    os.link(folder / "one.jpg", folder / "two.jpg")
    (folder / "three.jpg").symlink_to("one.jpg")


def _listed(folder: Path, *lines: str | bytes) -> Path:
    """Makes a list of names, beside a folder `A` with `a.jpg`."""
    _put(folder, "A/a.jpg")
    path = folder / "list.txt"
    path.write_bytes(b"\n".join(os.fsencode(line) for line in lines))
    return path


def _spellings(folder: Path) -> Path:
    _put(folder, "A/a.jpg")
    path = folder / "A" / "a.jpg"
    os.link(path, folder / "A" / "hard.jpg")
    return _listed(
        folder,
        "A/a.jpg",
        "A//a.jpg",
        "./A/a.jpg",
        "A/../A/./a.jpg",
        "B/../A/a.jpg",
        str(path),
        path.as_uri(),
        f"file://{path}",
        f"  {path}\r",
        "# a comment",
        "",
        "A/hard.jpg",
    )


def _pipe_in_list(folder: Path) -> Path:
    _specials(folder)
    return _listed(folder, "A/a.jpg", "fifo.jpg", "socket.jpg", "/dev/zero")


def _pipe_as_list(folder: Path) -> Path:
    os.mkfifo(folder / "list.txt")
    return folder / "list.txt"


PLACES: tuple[Place, ...] = (
    Place("links that lead in circles, to a folder above, or to themselves", COUNTED, _links, 1),
    Place("a link to nothing", UNSEEN, _dangling),
    Place("a fifo, a socket", UNSEEN, _specials),
    Place("a folder named x.jpg", COUNTED, lambda folder: _put(folder, "x.jpg/photo.jpg"), 1),
    Place(
        "names with line breaks, quotes, tabs, `::`, `%2F`, bytes that are not UTF-8, of 255 "
        "bytes, or like a url",
        COUNTED,
        _names,
        16,
    ),
    Place("a path of 1,200 characters", COUNTED, _deep, 1),
    Place(
        "one file under three names: hard and symbolic links count each", COUNTED, _hard_links, 3
    ),
)

LISTS: tuple[Place, ...] = (
    Place(
        "one file by nine spellings, and a hard link to it: two candidates",
        COUNTED,
        _spellings,
        2,
    ),
    Place(
        "a presigned url",
        REFUSED,
        lambda folder: _listed(folder, "A/a.jpg", "https://b/a.jpg?X-Amz-Signature=c0ffee"),
    ),
    Place(
        "a url with a password",
        REFUSED,
        lambda folder: _listed(folder, "s3://key:secret@bucket/a.jpg"),
    ),
    Place("a name that is not there", REFUSED, lambda folder: _listed(folder, "A/a.jpg", "b.jpg")),
    Place("a folder", REFUSED, lambda folder: _listed(folder, "A")),
    Place("a named pipe, a socket, a device", REFUSED, _pipe_in_list),
    Place("a list that is a named pipe itself", REFUSED, _pipe_as_list),
    Place("a list that is not UTF-8", REFUSED, lambda folder: _listed(folder, b"A/\xe9.jpg")),
)

UNREADABLE = Place("a file or folder without permission to read", REFUSED, _unreadable)
"""Root can read it nevertheless."""

ARCHIVES: tuple[tuple[str, str], ...] = (
    (
        "an archive cut short: the whole members before the cut are counted, and beside them",
        "truncated",
    ),
    ("a file with an archive's name that is no archive", "corrupt, or truncated"),
    ("an archive of no bytes", "empty"),
    ("an archive in an archive: it is not opened", "not_an_image"),
    (
        "names that lead upwards, are absolute, or have 1,000 characters, line breaks or no text",
        "counted",
    ),
    ("members whose name occurs again in the archive, all but the last", "dropped as duplicates"),
    ("links, devices and named pipes in a tar; links in a zip", "ignored"),
    (
        "sparse members of a tar; encrypted members of a zip, or packed in unknown ways",
        "unsupported",
    ),
    (
        "a zip bomb: a member that states more than `max_bytes`; it is not unpacked",
        "too_many_bytes",
    ),
    ("a member that holds more than it states: nothing beyond that is unpacked", "corrupt"),
    ("a member of a zip that reaches into the next one", "corrupt"),
    ("a member whose checksum is wrong; all members of a packed tar with damage", "corrupt"),
    ("a tar whose headers state negative or absurd sizes: the tar, once", "truncated, or corrupt"),
    ("an xz that asks for gigabytes", "corrupt"),
    ("a bz2 or xz of more than 1,100 times its size: it is not unpacked further", "too_many_bytes"),
    ("a null in a column of images", "empty"),
    ("a damaged page of a table: the rest of its row group", "corrupt"),
    ("a record batch of more than 2 GiB", "too_many_bytes"),
    ("a Parquet or Arrow file without a column of bytes", "ignored"),
)
"""What becomes of archives and their members; `tests/sources/test_archives.py` tests it."""


def write_files(folder: Path, kinds: Iterable[Kind]) -> dict[Path, str]:
    """Writes all files of the kinds, a folder for each, and returns the outcome by path."""
    outcomes = {}
    for i, kind in enumerate(kinds):
        for name, data in kind.make().items():
            path = folder / f"{i:02d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            outcomes[path] = kind.outcome
    return outcomes


# The document

HEAD = """# What becomes of hostile files

Each kind is made by `tests/support/hostile_files.py`, and its outcome is tested. The command
`python -m tests.support.hostile_files docs/hostile.md` writes this table.

- **counted**: it is an image that can be read; its pixels count.
- **ignored**: by its name it is certainly something else. The number of such files is recorded.
- **not a candidate**: it is no regular file, and is passed over.
- **refused**: the build ends with the reason, and nothing is counted.
- Any other word is the reason of a failure, which is listed with the dataset. `timeout` means that
  decoding took longer than `Resources.decode_seconds` four times, the last three in a process of
  its own.

Decoding takes less than 2 GB beside the file itself, whatever the image: images of more than 4
million pixels wait for each other, so that the decoders of a process hold at most 100 million
pixels of them at a time. One that takes more than 30 seconds is no longer waited for.
"""


DAMAGE_HEAD = """## Damage that a file can tell

Each image is asked what its file can tell of its own damage before it counts. Changed pixels in a
file of the right length are another matter: most formats have no checksum of them.

The checksums of a PNG cost 1 to 2% of decoding it. Its rows are counted by unpacking them once
more, but only where the last row looks as if it was never written, in interlaced and animated
ones, and in images of up to 64 x 64.

| format | found: `corrupt` or `truncated` | not found for certain: counted |
|---|---|---|"""


def table() -> str:
    """Returns the document."""
    sections: tuple[tuple[str, Iterable[Kind | Place]], ...] = (
        ("Files", FILES),
        ("Folders and names", (*PLACES, UNREADABLE)),
        ("Lists of names", LISTS),
        ("Archives", ARCHIVES),
    )
    parts = [HEAD]
    for heading, kinds in sections:
        told = [k if isinstance(k, tuple) else (k.title, k.outcome) for k in kinds]
        rows = [f"| {title} | {outcome} |" for title, outcome in told]
        if rows:
            parts.append("\n".join([f"## {heading}\n", "| kind | outcome |", "|---|---|", *rows]))
    rows = [f"| {', '.join(d.formats)} | {d.told} | {d.untold} |" for d in DAMAGE]
    parts.append("\n".join([DAMAGE_HEAD, *rows]))
    return "\n".join(parts[:1] + [f"{part}\n" for part in parts[1:]])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table())
