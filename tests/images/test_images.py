"""Tests every kind of good and bad image, the resize against PIL's, and hostile bytes."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import AvifImagePlugin, IcoImagePlugin, Image, ImageOps, features

from pipeline import images
from pipeline.counting.decoder_threads import Decoders
from pipeline.errors import BadImage, UsageError, VdnaError
from pipeline.images import colours, decoding, isolated, load, load_isolated, prepare, resize
from pipeline.images.decoding import REASONS, decode
from pipeline.spec import Preprocess
from tests.support.hostile_files import bmp, deflated, grey_tiff, ico, tiled_tiff

RULE = Preprocess(32, 48, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GREY_LEVELS = Preprocess(8, 8, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))

Array = NDArray[Any]


def pixels(height: int = 40, width: int = 60, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def saved(image: Image.Image | Array, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes, rule: Preprocess = RULE) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, rule)
    assert caught.value.reason in REASONS
    assert " at 0x" not in caught.value.detail
    return caught.value.reason


def detail(data: bytes, rule: Preprocess = RULE) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, rule)
    return caught.value.detail


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """Makes a PNG of 8-bit grey whose header states the size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", body or zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


# Formats and colour


@pytest.mark.parametrize("kind", ["PNG", "BMP", "DIB", "TIFF", "PPM", "TGA", "SGI", "PCX", "DDS"])
def test_lossless_formats_are_decoded_exactly(kind: str) -> None:
    assert np.array_equal(decode(saved(pixels(), kind), RULE).pixels, pixels())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {}),
        ("ICO", {"sizes": [(60, 40)]}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TGA", {"compression": "tga_rle"}),
    ],
)
def test_lossless_options_are_decoded_exactly(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(decode(saved(pixels(), kind, **options), RULE).pixels, pixels())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_are_as_pil_decodes_them(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this PIL has no AVIF")
    data = saved(pixels(), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data, RULE).pixels, expected)


def test_the_first_picture_of_an_mpo_is_decoded() -> None:
    second = Image.fromarray(pixels(seed=1))
    data = saved(pixels(), "MPO", save_all=True, append_images=[second])
    assert np.array_equal(decode(data, RULE).pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP"])
def test_grey_is_copied_to_three_channels(kind: str) -> None:
    grey = pixels()[:, :, 0]
    options = {"lossless": True} if kind == "WEBP" else {}
    out = decode(saved(grey, kind, **options), RULE).pixels
    assert out.shape == (40, 60, 3)
    assert np.abs(out.astype(int) - grey[:, :, None]).max() <= (8 if kind == "JPEG" else 0)
    assert np.array_equal(out[:, :, 0], out[:, :, 2])


def test_one_bit_images_become_black_and_white() -> None:
    bits = pixels()[:, :, 0] > 127
    for kind in ("PNG", "TIFF", "BMP"):
        out = decode(saved(Image.fromarray(bits), kind), RULE).pixels
        assert np.array_equal(out, np.repeat(bits[:, :, None], 3, axis=2) * np.uint8(255))


def test_alpha_is_dropped_not_blended() -> None:
    alpha = np.arange(40 * 60, dtype=np.int64).reshape(40, 60, 1).astype(np.uint8)
    alpha[:8] = 0
    rgba = np.concatenate([pixels(), alpha], axis=2)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.array_equal(decode(saved(rgba, kind, **options), RULE).pixels, pixels())
    grey_alpha = Image.fromarray(np.concatenate([pixels()[:, :, :1], alpha], axis=2), "LA")
    out = decode(saved(grey_alpha), RULE).pixels
    assert np.array_equal(out, np.repeat(pixels()[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 200, 2))])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_are_looked_up_and_their_transparency_dropped(
    kind: str, transparency: int | bytes | None
) -> None:
    if kind == "GIF" and isinstance(transparency, bytes):
        pytest.skip("a GIF has one transparent colour")
    palette = Image.fromarray(pixels()).quantize(100)
    expected = np.asarray(palette.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(decode(saved(palette, kind, **options), RULE).pixels, expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_key_is_dropped(mode: str) -> None:
    image = Image.fromarray(pixels()).convert(mode)
    key = image.getpixel((5, 5))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(saved(image, transparency=key), RULE).pixels, expected)


def ground_of(alpha: str, height: int, width: int) -> Array:
    """Returns the greys (height, width, 1) that a transparent image is laid upon."""
    if alpha != "checker":
        return np.full((height, width, 1), 255 if alpha == "white" else 0)
    squares = np.add.outer(np.arange(height) // 8, np.arange(width) // 8) % 2
    return np.where(squares == 0, 204, 153)[:, :, None]


def laid_upon(alpha: str, colour: Array, opaque: Array) -> Array:
    """Blends with exact fractions, and rounds to the nearest."""
    under = ground_of(alpha, *colour.shape[:2])
    blended = colour.astype(int) * opaque + under * (255 - opaque.astype(int))
    return ((2 * blended + 255) // 510).astype(np.uint8)


GROUNDS = pytest.mark.parametrize("alpha", ["white", "black", "checker"])


@GROUNDS
def test_a_transparent_image_is_laid_upon_the_ground_of_the_rule(alpha: Any) -> None:
    opaque = np.arange(40 * 60).reshape(40, 60, 1).astype(np.uint8)
    opaque[:8] = 0
    rule = replace(RULE, alpha=alpha)
    rgba = np.concatenate([pixels(), opaque], axis=2)
    expected = laid_upon(alpha, pixels(), opaque)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.array_equal(decode(saved(rgba, kind, **options), rule).pixels, expected)
    grey = Image.fromarray(np.concatenate([pixels()[:, :, :1], opaque], axis=2), "LA")
    expected = laid_upon(alpha, np.repeat(pixels()[:, :, :1], 3, axis=2), opaque)
    assert np.array_equal(decode(saved(grey), rule).pixels, expected)


@GROUNDS
@pytest.mark.parametrize("transparency", [3, bytes(range(0, 200, 2))])
def test_a_transparent_palette_is_laid_upon_the_ground(
    alpha: Any, transparency: int | bytes
) -> None:
    palette = Image.fromarray(pixels()).quantize(100)
    index = np.asarray(palette)
    if isinstance(transparency, bytes):
        opaque = np.array([*transparency, *([255] * 156)], np.uint8)[index]
    else:
        opaque = np.where(index == transparency, 0, 255).astype(np.uint8)
    expected = laid_upon(alpha, np.asarray(palette.convert("RGB")), opaque[:, :, None])
    data = saved(palette, transparency=transparency)
    assert np.array_equal(decode(data, replace(RULE, alpha=alpha)).pixels, expected)


@GROUNDS
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_colour_key_is_transparent(alpha: Any, mode: str) -> None:
    image = Image.fromarray(pixels()).convert(mode if mode != "I;16" else "L")
    colour = np.asarray(image.convert("RGB"))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    key = image.getpixel((5, 5))
    where = np.asarray(image) == key
    where = where.all(axis=2) if where.ndim == 3 else where
    opaque = np.where(where, 0, 255).astype(np.uint8)[:, :, None]
    data = saved(image, transparency=key)
    expected = laid_upon(alpha, colour, opaque)
    assert np.array_equal(decode(data, replace(RULE, alpha=alpha)).pixels, expected)


def png_with_key(values: list[int], depth: int, key: int, *, colour: bool = False) -> bytes:
    """Makes a PNG of one row, by hand: PIL writes none of few bits, or of 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        whole = kind + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    samples = [value for value in values for _ in range(3 if colour else 1)]
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    bits += "0" * (-len(bits) % 8)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    kind = 2 if colour else 0
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, depth, kind, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">H", key) * (3 if colour else 1)),
            chunk(b"IDAT", zlib.compress(row)),
            chunk(b"IEND", b""),
        )
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_found_at_every_depth(depth: int) -> None:
    most = 2**depth - 1
    for key in {0, 1, most // 3, most}:
        values = sorted({0, 1, most // 3, most // 2, most})
        data = png_with_key(values, depth, key)
        plain = decode(data, RULE).pixels[0, :, 0].tolist()
        assert plain == [(2 * 255 * value + most) // (2 * most) for value in values]
        on_white = decode(data, replace(RULE, alpha="white")).pixels[0, :, 0].tolist()
        assert on_white == [
            255 if v == key else grey for v, grey in zip(values, plain, strict=True)
        ]


def test_a_transparent_colour_of_16_bits_is_refused_and_not_guessed() -> None:
    data = png_with_key([0x1234, 0x3400, 0x12FF], 16, 0x1234, colour=True)
    assert decode(data, RULE).pixels[0, :, 0].tolist() == [0x12, 0x34, 0x12]
    assert reason(data, replace(RULE, alpha="white")) == "unsupported"
    data = png_with_key([0x12, 0x34], 8, 0x12, colour=True)
    assert decode(data, replace(RULE, alpha="white")).pixels[0].tolist() == [[255] * 3, [0x34] * 3]


def test_an_unknown_ground_is_refused_where_images_are_decoded() -> None:
    unknown: Any = "grey"
    with pytest.raises(UsageError, match="alpha is 'grey'; choose drop or"):
        decode(saved(pixels()), replace(RULE, alpha=unknown))


@GROUNDS
@pytest.mark.parametrize("turned", [1, 6])
def test_large_transparent_images_are_laid_upon_one_ground(
    alpha: Any, turned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    rgba = np.concatenate([pixels(), np.full((40, 60, 1), 100, np.uint8)], axis=2)
    data = saved(rgba, exif=exif)
    rule = replace(RULE, alpha=alpha)
    whole = decode(data, rule).pixels
    monkeypatch.setattr(decoding, "STRIP", 4 * 60 * 3)  # three rows at a time
    assert np.array_equal(decode(data, rule).pixels, whole)
    expected = laid_upon(alpha, pixels(), rgba[:, :, 3:])
    assert np.array_equal(whole, np.rot90(expected, -1) if turned == 6 else expected)


@GROUNDS
def test_opaque_images_are_the_same_upon_any_ground(alpha: Any) -> None:
    for kind in ("PNG", "JPEG", "BMP"):
        data = saved(pixels(), kind)
        assert np.array_equal(
            decode(data, replace(RULE, alpha=alpha)).pixels, decode(data, RULE).pixels
        )


def test_a_process_apart_uses_the_same_ground() -> None:
    rgba = np.concatenate([pixels(), np.full((40, 60, 1), 50, np.uint8)], axis=2)
    rule = replace(RULE, alpha="checker")
    assert np.array_equal(
        load_isolated(saved(rgba), rule, 60).values, load(saved(rgba), rule).values
    )


def test_cmyk_is_computed_and_adobes_inversion_undone() -> None:
    cmyk = Image.fromarray(pixels()).convert("CMYK")
    for kind, slack in (("TIFF", 0), ("JPEG", 40)):
        out = decode(saved(cmyk, kind), RULE).pixels
        assert np.abs(out.astype(int) - pixels()).max() <= slack
    assert np.abs(out.astype(int) - pixels()).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    out = decode(saved(levels, kind), RULE).pixels
    assert np.array_equal(out, np.repeat((levels // 257).astype(np.uint8)[..., None], 3, axis=2))
    between = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], np.uint16)
    expected = [round(v / 257) for v in between[0].tolist()]
    assert decode(saved(between, kind), RULE).pixels[0, :, 1].tolist() == expected


def test_16_bit_big_endian_tiff_is_scaled() -> None:
    levels = np.arange(256, dtype=">u2").reshape(16, 16) * 257
    data = saved(Image.frombytes("I;16B", (16, 16), levels.astype(">u2").tobytes()), "TIFF")
    assert decode(data, RULE).pixels[..., 0].ravel().tolist() == list(range(256))


def test_a_portable_graymap_of_any_depth_is_scaled_to_its_maximum() -> None:
    assert decode(b"P2 3 1 1023 0 512 1023", RULE).pixels[0, :, 0].tolist() == [0, 128, 255]
    assert decode(b"P5 2 1 4095\n" + struct.pack(">HH", 0, 4095), RULE).pixels[
        0, :, 0
    ].tolist() == [
        0,
        255,
    ]


def tiff16(photometric: int, bits: int) -> bytes:
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: 4}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    rows = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + bytes(range(4))


def test_formats_that_do_not_define_white_are_unsupported() -> None:
    assert decode(tiff16(photometric=1, bits=16), RULE).pixels.shape == (1, 2, 3)
    for data in (
        saved(np.zeros((4, 4), np.float32), "TIFF"),
        saved(np.zeros((4, 4), np.int32), "TIFF"),
        saved(Image.new("LAB", (4, 4)), "TIFF"),
        tiff16(photometric=0, bits=16),
        tiff16(photometric=1, bits=12),
        b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5),
    ):
        assert reason(data) == "unsupported"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_or_page_is_decoded(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this PIL has no AVIF")
    colours = [(200, 30, 40), (10, 200, 30), (0, 0, 250)]
    frames = [Image.new("RGB", (30, 20), colour) for colour in colours]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 0) == 3
    error = np.abs(decode(data, RULE).pixels.astype(int) - colours[0])
    assert error.max() <= (4 if kind == "AVIF" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    data = saved(pixels(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    out = decode(data, RULE).pixels
    assert out.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    assert np.array_equal(out, np.asarray(expected))


def test_orientation_6_is_a_quarter_turn_clockwise() -> None:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    assert np.array_equal(decode(saved(pixels(), exif=exif), RULE).pixels, np.rot90(pixels(), -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_may_be_ignored(kind: str) -> None:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(pixels(), kind, exif=exif, **options)
    rule = replace(RULE, exif="ignore")
    as_stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data, rule).pixels, as_stored)
    assert np.array_equal(load(data, rule).values, prepare(as_stored, RULE))
    assert np.array_equal(load_isolated(data, rule, 60).values, load(data, rule).values)
    assert not np.array_equal(load(data, rule).values, load(data, RULE).values)
    image = Image.open(io.BytesIO(data))
    assert np.array_equal(images.pixels_of(image, "ignore").pixels, as_stored)
    assert np.array_equal(images.pixels_of(image).pixels, np.rot90(as_stored, -1))


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 40), (41, 60), (40, 40), (1, 9)])
@pytest.mark.parametrize("resize", ["clean", "fast"])
def test_the_crop_of_the_central_square_equals_the_references(
    height: int, width: int, resize: Any
) -> None:
    from vdna.utils.im import _make_np_img_square

    whole = pixels(height, width)
    square = _make_np_img_square(whole, "center")
    rule = replace(RULE, crop="center", resize=resize)
    assert np.array_equal(prepare(whole, rule), prepare(square, replace(rule, crop="none")))
    data = saved(whole)
    assert np.array_equal(load(data, rule).values, prepare(whole, rule))
    if (height, width) == (41, 60):
        assert np.array_equal(load_isolated(data, rule, 60).values, load(data, rule).values)
        assert not np.array_equal(
            load(data, rule).values, load(data, replace(rule, crop="none")).values
        )


def test_exif_orientation_is_applied_before_the_crop() -> None:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    upright = np.rot90(pixels(41, 60), -1)
    rule = replace(RULE, crop="center")
    assert np.array_equal(
        load(saved(pixels(41, 60), exif=exif), rule).values, prepare(upright, rule)
    )


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_unknown_orientation_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = value
    assert np.array_equal(decode(saved(pixels(), exif=exif), RULE).pixels, pixels())


def test_damaged_exif_does_not_fail_the_image() -> None:
    good = saved(pixels(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01")
    assert np.array_equal(decode(good, RULE).pixels, pixels())
    jpeg = saved(pixels(), "JPEG")
    for junk in (b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12" * 60):
        segment = b"\xff\xe1" + struct.pack(">H", len(junk) + 2) + junk
        assert np.array_equal(
            decode(jpeg[:2] + segment + jpeg[2:], RULE).pixels, decode(jpeg, RULE).pixels
        )


def test_pils_warnings_are_neither_raised_nor_printed(capfd: pytest.CaptureFixture[str]) -> None:
    image = Image.new("P", (4, 4))
    data = saved(image, transparency=b"\x10\x20")
    for action in ("error", "always"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            assert decode(data, RULE).pixels.shape == (4, 4, 3)
            # 90 million pixels: PIL warns from 89,478,486 on
            assert reason(png_of(10_000, 9_000)) == "too_many_pixels"
    assert capfd.readouterr() == ("", "")


# Bad images


def test_empty_data_fails_as_empty() -> None:
    assert reason(b"") == "empty"


@pytest.mark.parametrize(
    ("data", "expected", "kind"),
    [
        (b"hello, this is not an image\n" * 3, "not_an_image", "text"),
        ("Grüße aus München\n".encode(), "not_an_image", "text"),
        (b'{"a": 1}', "not_an_image", "text"),
        (b"PK\x03\x04" + bytes(200), "not_an_image", "a zip archive"),
        (b"\x1f\x8b\x08" + bytes(20), "not_an_image", "gzip"),
        (b"<!doctype html><html>404</html>", "not_an_image", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "not_an_image", "XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image", "not pulled"),
        (b"\0\0\0\x20ftypisom" + bytes(50), "not_an_image", "a video"),
        (bytes(500), "not_an_image", "zeros"),
        (b"\x01\x02\x03\x04\xff\xfe", "not_an_image", "starts with b'\\x01\\x02\\x03\\x04"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- x --><svg/>", "unsupported", "SVG"),
        (b"%PDF-1.7\n" + bytes(50), "unsupported", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported", "PostScript"),
        (b"8BPS\0\x01" + bytes(50), "unsupported", "Photoshop"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "unsupported", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported", "JPEG XL"),
        (b"\x89PNG\r\n\x1a\n\0\0", "corrupt", "PNG"),
        (b"GIF89a", "corrupt", "GIF"),
    ],
)
def test_data_that_is_no_supported_image_fails_with_its_reason(
    data: bytes, expected: str, kind: str
) -> None:
    assert reason(data) == expected
    assert kind in detail(data)


def test_eps_is_never_given_to_ghostscript() -> None:
    assert reason(saved(pixels(), "EPS")) == "unsupported"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("PPM", {}),
        ("TGA", {}),
        ("DDS", {}),
        ("SGI", {}),
    ],
)
def test_truncated_images_fail_as_truncated(kind: str, options: dict[str, Any]) -> None:
    data = saved(pixels(), kind, **options)
    for share in (0.5, 0.8, 0.97):
        assert reason(data[: int(len(data) * share)]) == "truncated"


def test_images_damaged_in_the_middle_fail() -> None:
    data = bytearray(saved(pixels()))
    data[len(data) // 2] ^= 0x55
    assert reason(bytes(data)) == "corrupt"


def test_an_image_of_too_many_bytes_fails() -> None:
    data = saved(pixels())
    rule = replace(RULE, max_bytes=len(data))
    decode(data, rule)
    assert reason(data + b"\0", rule) == "too_many_bytes"


def test_too_many_pixels_are_recognised_from_the_header() -> None:
    data = saved(pixels())
    decode(data, replace(RULE, max_pixels=2400))
    assert reason(data, replace(RULE, max_pixels=2399)) == "too_many_pixels"
    assert "60 x 40" in detail(data, replace(RULE, max_pixels=2399))
    # Nothing but the header is there: had pixels been decoded, it would be "corrupt".
    assert reason(png_of(9_500, 9_500)) == "too_many_pixels"


def test_a_decompression_bomb_is_not_unpacked() -> None:
    packer = zlib.compressobj(9)
    block = packer.compress(bytes(50_001 * 100)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = block + block[2:] * 499  # 2.5 GB of black, the stream's header once
    bomb = png_of(50_000, 50_000, body)
    assert len(bomb) < 4 << 20
    started = time.process_time()
    assert reason(bomb) == "too_many_pixels"
    assert reason(bomb, replace(RULE, max_pixels=2**60)) == "too_many_pixels"  # PIL's own limit
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", [*colours.MODES, "I;16"])
def test_converting_in_strips_gives_the_same_pixels(
    mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large images are converted in strips, directly into their upright places."""
    image = Image.fromarray(pixels())
    if mode == "P":
        image = image.quantize(77)
    elif mode == "PA":
        image = image.quantize(77).convert("PA")
    elif mode == "I;16":
        image = Image.fromarray(pixels()[:, :, 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    turned = Image.fromarray(images.pixels_of(image, "ignore").pixels)
    for each in (image, turned):
        each.getexif()[decoding.ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned))
    for strip in (1, 100, 1 << 22):
        monkeypatch.setattr(decoding, "STRIP", strip)
        assert np.array_equal(images.pixels_of(image).pixels, expected)


def test_large_images_share_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images that exceed it together take turns; small ones never wait for a stuck one."""
    monkeypatch.setattr(decoding, "STRIP", 100)
    monkeypatch.setattr(decoding, "ROOM", 4000)
    data, inside, most = saved(pixels()), [0], [0]
    whole = images.pixels_of

    def slowly(image: Image.Image, exif: Any, alpha: Any) -> NDArray[np.uint8]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return whole(image, exif)

    monkeypatch.setattr(decoding, "pixels_of", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: decode(data, RULE).pixels, range(8)))) == 8
    assert most == [1]
    with decoding._room(2400):
        decode(saved(pixels(8, 8)), RULE)
        monkeypatch.setattr(decoding, "LEASE_SECONDS", 0.1)
        decode(data, RULE)


def test_waiting_for_memory_is_not_the_time_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images get room in the order in which they wait, so small ones do not hold up a large one."""
    monkeypatch.setattr(decoding, "STRIP", 100)
    monkeypatch.setattr(decoding, "ROOM", 4000)
    decoders = Decoders(2)
    order: list[int] = []

    def take(room: int) -> int:
        with decoding._room(room):
            order.append(room)
        return room

    def asked(room: int) -> int:
        read: Future[int] = Future()
        read.set_result(room)
        return decoders.result(decoders.after(read, take, 5.0))

    with ThreadPoolExecutor(2) as pool:
        with decoding._room(2400):
            large = pool.submit(asked, 4000)
            until_waiting(1)
            small = pool.submit(asked, 1500)  # for which there would be room
            until_waiting(2)
            time.sleep(6)
        assert [large.result(20), small.result(20)] == order == [4000, 1500]
    decoders.close()


def until_waiting(number: int) -> None:
    deadline = time.monotonic() + 20
    while len(decoding._room_queue) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_icon_is_measured_before_pil_decodes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL decodes it as it opens it, whatever size its directory states."""
    good, picture = ico(16, 16, saved(pixels(72, 96))), ico(16, 16, bmp(96, 2 * 72)[14:])
    rooms: list[int] = []
    monkeypatch.setattr(decoding, "_room", lambda pixels: rooms.append(pixels) or nullcontext())
    for data in (good, picture):
        assert decode(data, RULE).pixels.shape == (72, 96, 3)
    assert rooms == [96 * 72] * 2
    monkeypatch.setattr(IcoImagePlugin.IcoFile, "getimage", lambda *_: pytest.fail("decoded"))
    for image in (png_of(9_500, 9_500), bmp(9_500, 19_000)[14:60]):
        assert reason(ico(16, 16, image)) == "too_many_pixels"


def test_an_avif_is_decoded_without_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of many cores may not be able to start one for each of them."""
    asked: list[int] = []
    data = saved(pixels(), "AVIF")
    real = AvifImagePlugin._avif

    def decoder(data: bytes, codec: str, threads: int) -> object:
        asked.append(threads)
        return real.AvifDecoder(data, codec, threads)

    monkeypatch.setattr(AvifImagePlugin, "_avif", SimpleNamespace(AvifDecoder=decoder))
    assert decode(data, RULE).pixels.shape == pixels().shape
    assert asked == [1]


def test_a_pillow_without_a_decoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else good images would fail on one machine, and count on the others."""
    monkeypatch.setattr(features, "check", lambda name: name not in ("webp", "avif"))
    decoding._missing_codecs.cache_clear()
    with pytest.raises(UsageError, match=r"Pillow was built without webp, avif: .*pip install"):
        decode(saved(pixels(8, 8)), RULE)
    monkeypatch.undo()
    decoding._missing_codecs.cache_clear()
    assert decode(saved(pixels(8, 8)), RULE).pixels.shape == (8, 8, 3)


def test_global_settings_of_pil_do_not_decide_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(png_of(9_500, 9_500)) == "too_many_pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match="MAX_IMAGE_PIXELS is 100"):
        decode(saved(pixels(8, 8)), RULE)


def test_the_limit_on_pixels_applies_to_tiles() -> None:
    assert "a tile of 40000 x 40000" in detail(tiled_tiff(96, 72, 40_000, deflated(10**6)))
    assert decode(tiled_tiff(96, 72, 96, deflated(96 * 96)), RULE).pixels.shape == (72, 96, 3)


def test_pil_logs_nothing_to_the_terminal() -> None:
    bad = grey_tiff(96, 72, bytes(96 * 72), t277=(3, [65_535]))
    script = (
        "import sys; from pipeline.images.decoding import *\n"
        "try: decode(sys.stdin.buffer.read(), Preprocess(8, 8, (0, 0, 0), (1, 1, 1)))\n"
        "except BadImage: print('bad')"
    )
    done = subprocess.run([sys.executable, "-c", script], input=bad, capture_output=True)
    assert (done.stdout, done.stderr) == (b"bad\n", b"")


def test_memory_running_out_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        MemoryError("no"),
        OSError("out of memory when reading image file"),
        RuntimeError("Failed to decode frame 0: Out of memory"),
    ):

        def fail(self: Image.Image, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        with pytest.raises(MemoryError):
            decode(saved(pixels()), RULE)


def test_another_colour_rule_is_refused() -> None:
    for read in (decode, lambda data, rule: load_isolated(data, rule, 9).values):
        with pytest.raises(UsageError, match="rgb16-9"):
            read(saved(pixels()), replace(RULE, colour="rgb16-9"))


def sample(kind: str, **options: Any) -> bytes:
    return saved(pixels(12, 20), kind, **options)


SAMPLES: list[bytes] = [
    sample("PNG"),
    saved(Image.fromarray(pixels(12, 20)).quantize(9), transparency=b"\1\2"),
    sample("JPEG"),
    sample("JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"),
    sample("GIF"),
    sample("WEBP"),
    sample("TIFF"),
    saved(np.zeros((5, 9), np.uint16), "TIFF"),
    sample("BMP"),
    sample("JPEG2000"),
    sample("ICO", sizes=[(20, 12)]),
    sample("TGA", compression="tga_rle"),
    sample("SGI"),
    sample("PCX"),
    sample("DDS"),
    sample("PPM"),
    b"P2 3 1 1023 0 512 1023",
]


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """Draws a small image with bytes changed, cut out, doubled or cut off, often in the header."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 4))):
        near = st.integers(0, min(60, len(data) - 1))
        at = draw(near | st.integers(0, len(data) - 1))
        size = draw(st.integers(1, 4))
        change = draw(st.sampled_from(["set", "set", "set", "cut", "double", "end"]))
        if change == "set":
            data[at : at + size] = draw(
                st.binary(min_size=size, max_size=size) | st.just(b"\xff" * size)
            )
        elif change == "cut":
            del data[at : at + size]
        elif change == "double":
            data[at:at] = data[at : at + 16]
        else:
            del data[at + 1 :]
        if not data:
            break
    return bytes(data)


@settings(max_examples=400)
@given(hostile() | st.binary(max_size=80))
def test_hostile_bytes_give_pixels_or_a_reason(data: bytes) -> None:
    rule = replace(RULE, max_pixels=10**6)
    outcome: Array | BadImage
    try:
        outcome = decode(data, rule).pixels
    except BadImage as bad:
        outcome = bad
    if isinstance(outcome, BadImage):
        assert outcome.reason in set(REASONS) - set(decoding.NONDETERMINISTIC)
        assert outcome.detail
    else:
        assert outcome.dtype == np.uint8
        assert outcome.ndim == 3
        assert outcome.shape[2] == 3
        assert 0 < outcome.size <= 3 * 10**6


# Resizing

SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 300),
    (300, 1),
    (3, 5),
    (7, 7),
    (8, 8),
    (9, 16),
    (31, 33),
    (32, 48),
    (48, 32),
    (64, 96),
    (65, 97),
    (100, 100),
    (224, 224),
    (223, 449),
    (333, 500),
    (500, 333),
    (17, 900),
    (900, 17),
    (40, 5000),
    (5000, 40),
    (1200, 1600),
    (10, 1536),  # 32 times as wide as 48: the kernel's limit
    (10, 1537),
    (1024, 10),
    (1025, 10),
    (2, 40_000),
    (1, 200_000),
    (200_000, 1),
    (40_000, 7),
]


def pils(array: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Resizes with Pillow, as clean-fid does."""
    channels = [
        Image.fromarray(array[:, :, c].astype(np.float32), mode=None).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(c) for c in channels], axis=2).clip(0, 255).astype(np.float64)


@pytest.mark.parametrize("size", SIZES)
def test_clean_resize_equals_pils(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    stark = ((noise > 127) * 255).astype(np.uint8)
    for height, width in ((32, 48), (13, 7), (224, 224), (1, 1)):
        rule = replace(GREY_LEVELS, height=height, width=width)
        for array in (noise, stark):
            out = prepare(array, rule)
            assert out.shape == (height, width, 3)
            assert out.dtype == np.float32
            assert out.flags.c_contiguous
            assert np.abs(out - pils(array, height, width)).max() < 1e-4


def test_a_kernel_wider_than_the_cache_is_not_used() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (2, resize.MAX_WIDTH + 1, 3), dtype=np.uint8)
    rule = replace(GREY_LEVELS, height=2, width=600)
    assert np.abs(prepare(wide, rule) - pils(wide, 2, 600)).max() < 1e-4
    assert np.abs(prepare(wide[:, :-1], rule) - pils(wide[:, :-1], 2, 600)).max() < 1e-4


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_clean_resize_equals_pils_at_any_size(h: int, w: int, height: int, width: int) -> None:
    array = np.random.default_rng(h * 91 + w).integers(0, 256, (h, w, 3), dtype=np.uint8)
    rule = replace(GREY_LEVELS, height=height, width=width)
    assert np.abs(prepare(array, rule) - pils(array, height, width)).max() < 1e-4


@pytest.mark.parametrize("value", [0, 1, 127, 128, 254, 255])
def test_a_flat_image_stays_flat(value: int) -> None:
    flat = np.full((256, 203, 3), value, np.uint8)
    assert np.abs(prepare(flat, GREY_LEVELS) - value).max() < 1e-4


@pytest.mark.parametrize("resize", ["clean", "fast"])
@pytest.mark.parametrize("size", [(32, 48), (200, 100), (9, 11), (4000, 3)])
def test_pixels_are_normalised_by_mean_and_deviation(resize: Any, size: tuple[int, int]) -> None:
    array = pixels(*size)
    rule = replace(RULE, resize=resize)
    levels = prepare(array, replace(rule, mean=(0, 0, 0), std=(1 / 255,) * 3))
    out = prepare(array, rule)
    assert out.shape == (32, 48, 3)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    expected = (levels.astype(np.float64) / 255 - rule.mean) / rule.std
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_fast_resize_of_huge_images_is_the_rounded_clean_resize() -> None:
    rule = replace(GREY_LEVELS, height=20, width=30)
    rng = np.random.default_rng(0)
    for shape in ((resize.MAX_FAST + 1, 2, 3), (2, resize.MAX_FAST + 1, 3)):
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        fast = prepare(array, replace(rule, resize="fast"))
        assert np.abs(fast - np.rint(prepare(array, rule))).max() < 1e-4


def test_fast_resize_is_near_clean() -> None:
    array = pixels(300, 400)
    rule = replace(GREY_LEVELS, height=224, width=224)
    fast = prepare(array, replace(rule, resize="fast"))
    assert np.array_equal(fast, np.rint(fast))
    assert np.abs(fast - prepare(array, rule)).mean() < 0.6


def test_pixels_of_any_memory_layout_are_read_and_not_changed() -> None:
    array = pixels(50, 60).copy()
    before = array.copy()
    expected = prepare(array, RULE)
    assert array.flags.writeable
    assert np.array_equal(array, before)
    padded = np.zeros((60, 70, 3), np.uint8)
    padded[5:55, 5:65] = array
    assert np.array_equal(prepare(padded[5:55, 5:65], RULE), expected)
    for way in ("clean", "fast"):
        rule = replace(RULE, resize=way)
        flipped = prepare(array[::-1, ::-1], rule)
        assert np.array_equal(flipped, prepare(array[::-1, ::-1].copy(), rule))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_bad_pixels_are_refused(array: Array) -> None:
    with pytest.raises(UsageError, match="pixels are"):
        prepare(array, RULE)


def test_many_threads_give_the_same_pixels_as_one() -> None:
    many = [saved(pixels(50 + i, 70 + 3 * i, i), "JPEG") for i in range(40)]
    alone = [load(data, RULE).values for data in many]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: load(data, RULE).values, many))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


# In a process of its own


def command(script: str) -> Callable[[], list[str]]:
    return lambda: [sys.executable, "-c", script]


@pytest.mark.parametrize("resize", ["clean", "fast"])
def test_isolated_decoding_gives_the_same_pixels(
    resize: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # another `pipeline` there must not be taken for ours
    (tmp_path / "pipeline.py").write_text("raise SystemExit(9)")
    rule = replace(RULE, resize=resize)
    data = saved(pixels(), "JPEG")
    assert np.array_equal(load_isolated(data, rule, 60).values, load(data, rule).values)


def test_isolated_decoding_gives_the_same_reason() -> None:
    data = saved(pixels(), "JPEG")[:-200]
    with pytest.raises(BadImage) as here:
        load(data, RULE)
    with pytest.raises(BadImage) as there:
        load_isolated(data, RULE, 60)
    assert there.value.args == here.value.args


def test_a_decoder_that_crashes_is_a_failure_of_the_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    log = tmp_path / "log"
    script = f"open({str(log)!r}, 'a').write('x'); import os, signal; os.kill(os.getpid(), 11)"
    monkeypatch.setattr(isolated, "_isolated_command", command(script))
    with pytest.raises(BadImage, match="killed by SIGSEGV, 3 times") as caught:
        load_isolated(saved(pixels()), RULE, 60)
    assert caught.value.reason == "decoder_crashed"
    assert log.read_text() == "xxx"


@pytest.mark.parametrize("script", ["print('odd')", "raise MemoryError('no room')", ""])
def test_a_decoder_that_answers_badly_is_a_failure_of_the_image(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_isolated_command", command(script))
    with pytest.raises(BadImage) as caught:
        load_isolated(saved(pixels()), RULE, 60, attempts=2)
    assert caught.value.reason == "decoder_crashed"
    assert "2 times" in caught.value.detail
    assert ("no room" in caught.value.detail) == ("no room" in script)


def test_a_decoder_that_stalls_is_a_failure_of_the_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    log = tmp_path / "log"
    script = f"import os, time; open({str(log)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(99)"
    monkeypatch.setattr(isolated, "_isolated_command", command(script))
    with pytest.raises(BadImage, match="2 times") as caught:
        load_isolated(saved(pixels()), RULE, 3.0, attempts=2)
    assert caught.value.reason == "timeout"
    pids = [int(pid) for pid in log.read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_crash_that_does_not_repeat_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    good, calls = isolated._isolated_command(), []

    def flaky() -> list[str]:
        calls.append(1)
        return command("import os; os.abort()")() if len(calls) < 3 else good

    monkeypatch.setattr(isolated, "_isolated_command", flaky)
    data = saved(pixels())
    assert np.array_equal(load_isolated(data, RULE, 60).values, load(data, RULE).values)
    assert len(calls) == 3


def test_one_process_decodes_many_images_until_it_dies(tmp_path: Any) -> None:
    """Starting it costs more than a hundred images; each of many threads has one."""
    seen, reasons = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", counting(seen))
        many = [saved(pixels(), "JPEG"), saved(pixels())[:-30], saved(pixels())] * 4
        for data in many:
            try:
                assert np.array_equal(load_isolated(data, RULE, 60).values, load(data, RULE).values)
            except BadImage as bad:
                reasons.append(bad.reason)
        assert reasons == ["truncated"] * 4
        assert len(seen) <= 1
        isolated._Decoder._at_rest[-1]._child.kill()
        assert np.array_equal(load_isolated(many[0], RULE, 60).values, load(many[0], RULE).values)
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda data: load_isolated(data, RULE, 60).values, [many[0]] * 12))
        assert all(np.array_equal(one, made[0]) for one in made)
        assert len(seen) <= 6


def test_decoder_processes_that_died_while_idle_are_replaced() -> None:
    data = saved(pixels(), "JPEG")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda data: load_isolated(data, RULE, 60).values, [data] * 4))
    for decoder in isolated._Decoder._at_rest:
        decoder._child.kill()
        decoder._child.wait()
    assert np.array_equal(load_isolated(data, RULE, 60).values, load(data, RULE).values)


def counting(seen: list[int]) -> type:
    class Counting(subprocess.Popen):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            seen.append(self.pid)

    return Counting


def test_a_broken_installation_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_isolated_command", command("import no_such_module_at_all"))
    with pytest.raises(VdnaError, match=r"cannot start.*no_such_module") as caught:
        load_isolated(saved(pixels()), RULE, 60)
    assert not isinstance(caught.value, BadImage)


def test_decoding_needs_no_torch() -> None:
    probe = "import sys, pipeline.images; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", probe]) == 0
