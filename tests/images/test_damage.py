"""What a file can tell of its own damage, it is asked; docs/hostile.md states the rest."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import BadImage
from pipeline.images import decode, file_damage
from pipeline.images.decoding import FORMATS
from tests.images.test_images import RULE
from tests.support.hostile_files import (
    DAMAGE,
    JPEG,
    PNG,
    Damage,
    chunk,
    deflated,
    encoded,
    flipped,
    ico,
    png,
    segment,
    with_segments,
)


def outcome(data: bytes) -> str:
    try:
        decode(data, RULE)
    except BadImage as bad:
        return bad.reason
    return "counted"


def test_the_table_has_each_format_once() -> None:
    assert sorted(name for row in DAMAGE for name in row.formats) == sorted(FORMATS)


@pytest.mark.parametrize("row", DAMAGE, ids=lambda row: "-".join(row.formats))
def test_each_format_tells_what_the_table_says_and_no_more(row: Damage) -> None:
    for reason, files in row.make_told().items():
        found = [outcome(data) for data in files]
        assert found == [reason] * len(found)
    counted = [outcome(data) for data in row.make_untold()]
    assert counted == ["counted"] * len(counted)


def kinds_of_png() -> Iterator[tuple[int, int, int, bytes]]:
    """Bits, type of colour, bytes a row of 13 pixels, and what must come before the pixels."""
    for colour, samples in file_damage.PIXEL_SAMPLES.items():
        for bits in {0: (1, 2, 4, 8, 16), 3: (1, 2, 4, 8)}.get(colour, (8, 16)):
            before = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
            yield bits, colour, 1 + -(-13 * samples * bits // 8), before


@pytest.mark.parametrize("small", [True, False], ids=["counted", "marked"])
def test_a_png_of_any_kind_needs_all_its_rows(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr(file_damage, "FEW_PIXELS", 0)
    for bits, colour, row, before in kinds_of_png():
        marked = b"\0" + (bytes(file_damage.MARK) * row)[: row - 1]
        for rows in range(1, 8):
            for body in (bytes(row) * rows, marked * rows):
                data = png(13, 7, zlib.compress(body), bits=bits, colour=colour, before=before)
                wanted = "counted" if rows == 7 else "truncated"
                assert outcome(data) == wanted, (bits, colour, rows)
        if colour != 3:
            full = deflated(row * 7)
            assert outcome(ico(13, 7, png(13, 7, full, bits=bits, colour=colour))) == "counted"


def test_an_interlaced_png_needs_all_rows_of_all_its_passes() -> None:
    for width, height in ((1, 1), (2, 1), (1, 2), (4, 4), (5, 3), (9, 9), (16, 8)):
        needed = file_damage._row_bytes(png(width, height, b"", interlaced=True), 0)
        passes = encoded_passes(width, height)
        assert needed == passes
        for there in range(max(1, needed - 20), needed + 2):
            data = png(width, height, deflated(there), interlaced=True)
            assert outcome(data) == ("counted" if there >= needed else "truncated")


def encoded_passes(width: int, height: int) -> int:
    """The bytes of all passes of 8-bit grey, by looking at each pixel's pass."""
    adam7 = [
        [1, 6, 4, 6, 2, 6, 4, 6],
        [7] * 8,
        [5, 6] * 4,
        [7] * 8,
        [3, 6, 4, 6, 3, 6, 4, 6],
        [7] * 8,
        [5, 6] * 4,
        [7] * 8,
    ]
    rows = {(adam7[y % 8][x % 8], y) for y in range(height) for x in range(width)}
    return width * height + len(rows)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_whole_png_has_the_pixels_that_pil_reads(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture in the colour of the mark, too, and one whose last row alone has it."""
    monkeypatch.setattr(file_damage, "FEW_PIXELS", 0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    mark = file_damage.MARK[:bands] if bands > 1 else file_damage.MARK[0]
    plain, last = Image.new(mode, (300, 40), mark), Image.new(mode, (300, 40))
    last.paste(mark, (0, 39, 300, 40))
    for image in (plain, last, Image.new(mode, (300, 40)), Image.new(mode, (1, 1), mark)):
        data = encoded(image, "PNG")
        with Image.open(io.BytesIO(data)) as opened:
            truth = np.asarray(opened if mode == "I;16" else opened.convert("RGB"))
        if mode == "I;16":
            truth = np.repeat(((truth.astype(int) + 128) // 257)[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(decode(data, RULE).pixels, truth)


def test_not_one_flipped_bit_of_a_png_is_counted() -> None:
    data = encoded(Image.open(io.BytesIO(PNG)).resize((9, 9)), "PNG")
    for at in range(len(data)):
        for bit in range(8):
            damaged = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            assert outcome(damaged) != "counted", (at, bit)


def test_a_whole_png_is_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking is most of the cost, so rows are counted only where they may be missing."""

    def unpacked_again(*_: object) -> None:
        raise AssertionError("a whole picture is unpacked a second time")

    monkeypatch.setattr(file_damage, "require_png_rows", unpacked_again)
    assert outcome(PNG) == "counted"
    assert outcome(png(300, 40, colour=2)) == "counted"  # a black one, too


def test_the_end_of_a_thumbnail_is_not_the_end_of_a_jpeg() -> None:
    exif = segment(0xE1, b"Exif\0\0" + JPEG)
    whole = with_segments(JPEG, exif)
    filled = whole[:-700] + bytes(9999)
    assert [outcome(whole), outcome(filled)] == ["counted", "truncated"]
    for odd in (b"\xff\xff\xff\xfe\0\x04ab", segment(0xFE, b"")):
        assert outcome(with_segments(JPEG, exif, odd)) == "counted"
        assert outcome(with_segments(JPEG, exif, odd)[:-700] + bytes(9999)) == "truncated"


def test_a_flipped_bit_of_a_png_is_named_with_its_chunk() -> None:
    with pytest.raises(BadImage, match=r"the checksum of its chunk b'IDAT' at byte 41 is wrong"):
        decode(flipped(PNG, 100), RULE)
