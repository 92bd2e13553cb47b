"""Tests JPEGs that their decoder scales down, by the rule's `jpeg`."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import make_dna
from pipeline.building import Request, make_spec
from pipeline.errors import BadImage, UsageError
from pipeline.images import load_isolated
from pipeline.images.decoding import decode
from pipeline.images.resize import prepare
from pipeline.spec import Preprocess, Spec
from tests.support import tiny_network as tiny

FULL = Preprocess(24, 16, (0.5,) * 3, (0.5,) * 3)
SCALED = replace(FULL, jpeg="scaled")
ORIENTATION = 0x0112


def soft(width: int, height: int, seed: int = 0) -> Image.Image:
    """Makes an image without fine detail, as photographs of high resolution are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return sink.getvalue()


def shape(data: bytes, rule: Preprocess = SCALED) -> tuple[int, int]:
    height, width, _ = decode(data, rule).pixels.shape
    return height, width


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from(["none", "center"]))
def test_as_much_is_left_out_as_the_resize_can_spare(width: int, height: int, crop: Any) -> None:
    rule = replace(SCALED, crop=crop)
    rows, columns = (48, 48) if crop == "center" else (48, 32)
    spare = [s for s in (2, 4, 8) if height >= s * rows and width >= s * columns]
    scale = max(spare, default=1)
    found = shape(saved(Image.new("RGB", (width, height))), rule)
    assert found == (-(-height // scale), -(-width // scale))


def test_what_is_left_is_nearly_the_same() -> None:
    for width, height in ((160, 200), (640, 400), (504, 1000)):  # without part of a pixel left
        data = saved(soft(width, height))
        full, scaled = (decode(data, rule).pixels for rule in (FULL, SCALED))
        assert scaled.size < full.size / 3
        apart = 127.5 * np.abs(prepare(full, FULL) - prepare(scaled, SCALED))
        assert apart.mean() < 0.5  # grey levels
        assert apart.max() < 3


def test_other_files_and_small_ones_are_decoded_in_full() -> None:
    for data in (
        saved(soft(63, 300)),
        saved(soft(300, 95)),
        saved(soft(640, 480), "PNG"),
        saved(soft(640, 480), "WEBP"),
    ):
        assert np.array_equal(decode(data, SCALED).pixels, decode(data, FULL).pixels)


def test_sides_are_those_of_the_upright_image() -> None:
    wide, tall = replace(SCALED, height=10, width=90), replace(SCALED, height=90, width=10)
    image = soft(200, 400)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored upright, shown lying
    turned = saved(image, exif=exif)
    assert shape(turned, wide) == (100, 200)
    assert shape(turned, replace(wide, exif="ignore")) == (400, 200)
    assert shape(turned, tall) == (200, 400)
    assert shape(turned, replace(tall, exif="ignore")) == (200, 100)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_every_kind_are_scaled(mode: str, progressive: bool) -> None:
    data = saved(soft(320, 480).convert(mode), progressive=progressive)
    assert shape(data) == (60, 40)


def test_a_file_that_ends_early_is_still_found() -> None:
    data = saved(soft(640, 960))
    assert shape(data) == (120, 80)
    with pytest.raises(BadImage) as caught:
        decode(data[: len(data) * 9 // 10], SCALED)
    assert caught.value.reason == "truncated"


def test_the_limit_counts_the_pixels_of_the_file() -> None:
    with pytest.raises(BadImage, match="307200 pixels; the limit is 300000"):
        decode(saved(soft(640, 480)), replace(SCALED, max_pixels=300_000))


def test_a_process_apart_scales_alike() -> None:
    data = saved(soft(640, 480))
    here = prepare(decode(data, SCALED).pixels, SCALED)
    assert np.array_equal(load_isolated(data, SCALED, 60).values, here)


def test_the_spec_states_scaled_jpegs_and_only_those(tmp_path: Path) -> None:
    network = tiny.install(tmp_path).network

    def spec(**options: Any) -> Spec:
        return make_spec(Request("x", "x", **options), network, "00", "cpu")

    plain, scaled = spec(), spec(jpeg="scaled")
    assert spec(jpeg="full").digest == plain.digest
    assert "jpeg" not in plain.to_json()["preprocess"]
    assert Spec.from_json(scaled.to_json()) == scaled
    assert scaled.differences(plain) == {"preprocess.jpeg": ("scaled", "full")}
    with pytest.raises(UsageError, match="jpeg is 'half'; choose full or scaled"):
        spec(jpeg="half")
    with pytest.raises(UsageError, match="jpeg is 'half'; choose full or scaled"):
        decode(saved(soft(9, 9)), replace(FULL, jpeg="half"))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(UsageError, match="jpeg is 'scaled', and the decoder raw@1"):
        replace(plain, preprocess=replace(SCALED, decoder="raw@1"))


def test_files_are_scaled_and_images_in_memory_refused(tmp_path: Path) -> None:
    place = tiny.install(tmp_path)
    options: dict[str, Any] = dict(place.options)
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.jpg").write_bytes(saved(soft(300, 200, seed)))
    full, scaled = (make_dna(folder, jpeg=jpeg, **options) for jpeg in ("full", "scaled"))
    assert (scaled.images, scaled.spec.preprocess.jpeg) == (3, "scaled")
    assert not np.array_equal(scaled.counts, full.counts)
    with pytest.raises(UsageError, match="jpeg is 'scaled'; images in memory are decoded already"):
        make_dna([soft(300, 200)], jpeg="scaled", **options)
