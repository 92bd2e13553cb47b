"""Tests what is noted of an image: whether it is transparent, and whether it is of one colour."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.building.memory_images import pixels_of_item
from pipeline.images import decoding, load, load_isolated, loading
from pipeline.images.decoding import Decoded, decode
from pipeline.images.loading import loaded
from pipeline.spec import Preprocess
from tests.images.test_images import png_with_key

RULE = Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3)
ALPHAS = pytest.mark.parametrize("alpha", ["drop", "white", "checker"])


def noise(seed: int = 0, height: int = 20, width: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def with_alpha(image: Image.Image, least: int) -> Image.Image:
    """Makes the last pixel alone as opaque as `least`."""
    alpha = Image.new("L", image.size, 255)
    alpha.putpixel((image.width - 1, image.height - 1), least)
    image = image.copy()
    image.putalpha(alpha)
    return image


def is_transparent(data: bytes, alpha: Any) -> bool:
    return decode(data, replace(RULE, alpha=alpha)).transparent


@ALPHAS
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_one_pixel_that_is_less_than_opaque_makes_an_image_transparent(
    alpha: Any, mode: str, kind: str
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    for least in (0, 254):
        image = with_alpha(noise().convert(mode.removesuffix("A").replace("LA", "L")), least)
        assert is_transparent(saved(image, kind, **options), alpha)
    opaque = with_alpha(noise(), 255).convert(mode)
    assert not is_transparent(saved(opaque, kind, **options), alpha)


@ALPHAS
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_counts_only_if_a_pixel_has_it(
    alpha: Any, kind: str
) -> None:
    palette = noise().quantize(100)
    index = np.asarray(palette).copy()
    index[index == 7] = 8
    unused = palette.copy()
    unused.putdata(index.ravel().tolist())
    assert is_transparent(saved(palette, kind, transparency=7), alpha)
    assert not is_transparent(saved(unused, kind, transparency=7), alpha)
    if kind == "PNG":
        key = bytes(254 if colour == 7 else 255 for colour in range(100))
        assert is_transparent(saved(palette, transparency=key), alpha)
        assert not is_transparent(saved(unused, transparency=key), alpha)
    assert not is_transparent(saved(palette, kind), alpha)


@ALPHAS
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_colour_key_counts_only_if_a_pixel_has_it(alpha: Any, depth: int, colour: bool) -> None:
    if colour and (depth < 8 or (depth == 16 and alpha != "drop")):
        return  # PNG has no such colours; or the ground cannot be laid under them
    most = 2**depth - 1
    for key in {0, most // 3, most}:
        values = sorted({0, most // 3, most})
        others = [value for value in values if value != key]
        assert is_transparent(png_with_key(values, depth, key, colour=colour), alpha)
        assert not is_transparent(png_with_key(others, depth, key, colour=colour), alpha)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
def test_files_without_transparency_are_opaque(kind: str) -> None:
    assert not is_transparent(saved(noise(), kind), "drop")


@ALPHAS
@pytest.mark.parametrize("row", [0, 10, 19])
def test_a_transparent_pixel_of_any_strip_is_noted(
    alpha: Any, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise().convert("RGBA")
    image.putpixel((3, row), (1, 2, 3, 4))
    monkeypatch.setattr(decoding, "STRIP", 4 * 30 * 3)
    assert is_transparent(saved(image), alpha)


@pytest.mark.parametrize("transparent", [True, False])
def test_a_process_apart_notes_the_same(transparent: bool) -> None:
    data = saved(with_alpha(Image.new("RGB", (9, 9)), 200 if transparent else 255))
    apart, here = load_isolated(data, RULE, 60), load(data, RULE)
    noted = (transparent, True)
    assert (apart.transparent, apart.single_colour) == noted
    assert (here.transparent, here.single_colour) == noted


def test_images_in_memory_are_noted_too() -> None:
    item = with_alpha(noise(), 0)
    assert pixels_of_item(item, 0, "apply", "drop", None).transparent
    assert not pixels_of_item(noise(), 0, "apply", "drop", None).transparent
    assert not pixels_of_item(np.asarray(noise()), 0, "apply", "drop", None).transparent


@ALPHAS
def test_the_images_of_a_caller_state_their_transparency_afterwards_too(alpha: Any) -> None:
    palette = noise().quantize(100)
    palette.info["transparency"] = 7
    first = pixels_of_item(palette, 0, "apply", alpha, None)
    again = pixels_of_item(palette, 0, "apply", alpha, None)
    assert first.transparent
    assert again.transparent
    assert np.array_equal(first.pixels, again.pixels)
    assert palette.info["transparency"] == 7


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    at=st.integers(0, 143),
    channel=st.integers(0, 2),
    step=st.sampled_from([0, 1, 225]),
)
def test_an_image_is_of_one_colour_if_no_pixel_differs_from_another(
    height: int, width: int, at: int, channel: int, step: int
) -> None:
    pixels = np.full((height, width, 3), (10, 20, 30), np.uint8)
    at %= height * width
    pixels[at // width, at % width, channel] += np.uint8(step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "PIXELS_AT_ONCE", 20)
        found = loaded(Decoded(pixels), RULE).single_colour
    assert found == (step == 0 or height * width == 1)


def test_the_colour_that_is_counted_decides_whether_an_image_is_of_one() -> None:
    """A shape cut out of black is one colour, unless it is laid upon a ground."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 4, 8, 8))
    assert load(saved(image), RULE).single_colour
    assert not load(saved(image), replace(RULE, alpha="white")).single_colour
    assert load(saved(image), replace(RULE, alpha="black")).single_colour
