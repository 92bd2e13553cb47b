"""libjpeg-turbo takes PIL's place for most JPEGs, and no pixel and no reason changes by it."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import BadImage
from pipeline.images import decode, decoding
from pipeline.images.turbo_jpeg import pixels_by_turbo
from pipeline.spec import Preprocess
from tests.support.builders import photo

RULE = Preprocess(4, 4, (0.5,) * 3, (0.5,) * 3)
ORIENTATION = 274
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def saved(image: Image.Image, **how: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", **how)  # type: ignore[arg-type]  # as PIL names them
    return sink.getvalue()


def outcome(data: bytes, rule: Preprocess = RULE) -> tuple[object, ...]:
    """The pixels, or why there are none."""
    try:
        pixels = decode(data, rule).pixels
    except BadImage as bad:
        return bad.reason, str(bad)
    return pixels.shape, pixels.tobytes()


def by_pil(data: bytes, rule: Preprocess = RULE) -> tuple[object, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "pixels_by_turbo", lambda data: None)
        return outcome(data, rule)


@st.composite
def jpegs(draw: st.DrawFn) -> bytes:
    """JPEGs of photographs and of noise, of all kinds that PIL writes."""
    width, height = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    if draw(st.booleans()):
        image = photo(draw(st.integers(0, 20))).resize((width, height))
    else:
        rng = np.random.default_rng(draw(st.integers(0, 9)))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    if draw(st.integers(0, 4)) == 0:
        image = image.convert("L")
    exif = Image.Exif()
    exif[ORIENTATION] = draw(st.integers(1, 8))
    colour = image.mode == "RGB"
    return saved(
        image,
        quality=draw(st.integers(1, 100)),
        progressive=draw(st.booleans()),
        optimize=draw(st.booleans()),
        restart_marker_blocks=draw(st.integers(0, 3)),
        exif=exif,
        **({"subsampling": draw(st.sampled_from(SUBSAMPLINGS))} if colour else {}),
    )


@given(jpegs(), st.sampled_from(["apply", "ignore"]), st.sampled_from(["full", "scaled"]))
def test_pixels_are_those_of_pil(data: bytes, exif: str, jpeg: str) -> None:
    rule = replace(RULE, exif=exif, jpeg=jpeg)
    assert pixels_by_turbo(data) is not None
    assert outcome(data, rule) == by_pil(data, rule)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 1])
def test_files_of_several_pieces_are_as_by_pil(progressive: bool, restarts: int) -> None:
    """PIL gives its decoder 64 KiB at a time. The file is also tried with each of 20 damages."""
    rng = np.random.default_rng(5)
    noise = Image.fromarray(rng.integers(0, 256, (500, 400, 3), np.uint8))
    data = saved(noise, quality=95, progressive=progressive, restart_marker_rows=restarts)
    assert len(data) > 2 * 2**16
    assert pixels_by_turbo(data) is not None
    assert outcome(data) == by_pil(data)
    for at in rng.integers(700, len(data), 20):
        damaged = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        assert outcome(damaged) == by_pil(damaged)


def test_a_file_that_is_cut_off_behind_what_looks_like_its_end_is_truncated() -> None:
    """A comment between scans has the bytes of an end marker, so only the decoder sees the cut."""
    data = saved(photo(1), progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    cut = data[:second] + b"\xff\xfe\x00\x04\xff\xd9" + data[second : len(data) - 9]
    assert outcome(cut) == by_pil(cut)
    assert outcome(cut)[0] == "truncated"


def test_arithmetic_codes_are_left_to_pil() -> None:
    """PIL refuses those that come in several pieces, and libjpeg-turbo would decode them."""
    tables = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    frame = b"\xff\xc9\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    filling = 2**16 - 2 - len(tables + frame + scan)
    comment = b"\xff\xfe" + (filling - 2).to_bytes(2, "big") + b" " * (filling - 4)
    data = b"\xff\xd8" + comment + tables + frame + scan + b"\xff\xd9"
    assert pixels_by_turbo(data) is not None
    assert outcome(data) == by_pil(data)
    assert outcome(data)[0] == "corrupt"


def test_much_work_for_few_bytes_is_not_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that claims many more pixels than there are bytes for; and very many scans."""
    small = saved(photo(1))
    at = small.index(b"\xff\xc0") + 5
    claims = small[:at] + (9000).to_bytes(2, "big") * 2 + small[at + 4 :]
    scans = saved(photo(1), progressive=True)
    first, end = scans.index(b"\xff\xda"), len(scans) - 2
    again = scans[:end] + scans[scans.index(b"\xff\xda", first + 2) : end] * 10 + scans[end:]
    expected = [by_pil(data) for data in (claims, again)]
    monkeypatch.setattr(decoding, "pixels_by_turbo", lambda data: pytest.fail("was asked"))
    assert [outcome(data) for data in (claims, again)] == expected


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_what_goes_wrong_in_libjpeg_turbo_is_left_to_pil(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error("could not create JPEG decoder")

    data = saved(photo(1))
    expected = by_pil(data)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", fails)
    assert outcome(data) == expected


@given(jpegs(), st.data())
def test_what_becomes_of_a_damaged_file_is_what_pil_makes_of_it(
    data: bytes, drawn: st.DataObject
) -> None:
    """Bytes are changed, cut out, or cut off."""
    start = drawn.draw(st.integers(0, len(data)))
    stop = drawn.draw(st.integers(start, min(len(data), start + 40)))
    instead = drawn.draw(st.binary(max_size=40))
    damaged = data[:start] + instead + data[stop:]
    assert outcome(damaged) == by_pil(damaged)
    assert outcome(data[:start]) == by_pil(data[:start])


@pytest.mark.parametrize("colours", ["422", "420", "440", "411", "444"])
def test_colours_of_every_resolution_are_those_of_pil(colours: str) -> None:
    """PIL writes three of these; cameras write all."""
    for width, height in ((37, 41), (64, 64), (1, 5), (200, 3)):
        pixels = np.asarray(photo(2, width, height))
        data = simplejpeg.encode_jpeg(pixels, colorsubsampling=colours)
        assert pixels_by_turbo(data) is not None
        assert outcome(data) == by_pil(data)


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_other_colour_spaces_are_left_to_pil(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG whose components are red, green and blue; and those of printers."""
    image = photo(1)
    data = saved(image.convert(mode), **({"keep_rgb": True} if mode == "RGB" else {}))
    monkeypatch.setattr(decoding, "pixels_by_turbo", lambda data: pytest.fail("was asked"))
    assert decode(data, RULE).pixels.shape == (*photo(1).size[::-1], 3)


def test_pil_is_asked_for_no_pixel_of_a_plain_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_load", lambda *_: pytest.fail("was asked"))
    assert decode(saved(photo(1)), RULE).pixels.shape == (*photo(1).size[::-1], 3)


def test_memory_running_out_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL says of such an image that it is damaged."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("Insufficient memory (case 4)")

    data = saved(photo(1))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    with pytest.raises(MemoryError, match="Insufficient memory"):
        decode(data, RULE)


def test_a_progressive_file_without_its_last_scans_has_the_pixels_that_it_has_by_pil() -> None:
    """The decoder guesses what is missing, and may do so without a warning."""
    data = saved(photo(1), progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", data)]
    assert len(scans) > 5
    for end in scans[1:]:
        cut = data[:end] + b"\xff\xd9"
        assert outcome(cut) == by_pil(cut)
