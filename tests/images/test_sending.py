"""Tests what of an image travels to a GPU. What the GPU makes of it is tested in test_feed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import images
from pipeline.errors import UsageError
from pipeline.images import prepare, sending
from pipeline.images.resize import MAX_SHRINK, MAX_WIDTH, resize_matrix
from pipeline.images.sending import sent
from pipeline.spec import Preprocess
from tests.images.test_noted import noise, saved, with_alpha

LEVELS = Preprocess(20, 30, (0, 0, 0), (1 / 255,) * 3)
"""A rule whose normalised values are grey levels."""

FAST = replace(LEVELS, resize="fast")


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


def test_pixels_that_a_gpu_resizes_travel_as_they_are() -> None:
    image = pixels(40, 50)
    assert np.array_equal(sent(image, LEVELS), image)
    square = sent(image, replace(LEVELS, crop="center"))
    assert np.array_equal(square, image[:, 5:45])
    assert square.base is None  # the rest of the image is not kept with it


@pytest.mark.parametrize(("height", "width"), [(40, 50), (1024, 1025), (9, 11)])
def test_what_is_resized_with_rounding_travels_in_eight_bits(height: int, width: int) -> None:
    image = pixels(height, width)
    travels = sent(image, FAST)
    assert (travels.shape, travels.dtype) == ((20, 30, 3), np.uint8)
    assert np.array_equal(travels, prepare(image, FAST).round())


def test_images_of_extreme_size_are_resized_before_they_travel() -> None:
    rule = replace(LEVELS, height=40, width=50)
    assert sending.DEVICE_PIXELS == 1024 * 1024
    for height, width in ((1024, 1024), (40 * MAX_SHRINK, 2), (2, 50 * MAX_SHRINK)):
        assert sent(pixels(height, width), rule).shape == (height, width, 3)
    for height, width in ((1024, 1025), (40 * MAX_SHRINK + 1, 2), (2, 50 * MAX_SHRINK + 1)):
        image = pixels(height, width)
        travels = sent(image, rule)
        assert (travels.shape, travels.dtype) == ((40, 50, 3), np.float32)
        assert np.abs(travels - prepare(image, rule)).max() < 1e-4
    wide = replace(rule, width=2000)
    assert sent(pixels(1, MAX_WIDTH), wide).shape == (1, MAX_WIDTH, 3)
    assert sent(pixels(1, MAX_WIDTH + 1), wide).shape == (40, 2000, 3)


def test_an_image_takes_no_more_than_is_reckoned_with() -> None:
    most, larger = pixels(1024, 1024), pixels(1024, 1025)
    for rule in (
        replace(LEVELS, height=40, width=50),
        FAST,
        replace(LEVELS, height=700, width=800),
    ):
        for image in (most, larger):
            assert sent(image, rule).nbytes <= images.most_bytes(rule, True)
            assert prepare(image, rule).nbytes == images.most_bytes(rule, False)
        exact = rule.resize == "clean"
        largest = max(sent(image, rule).nbytes for image in (most, larger))
        assert (largest == images.most_bytes(rule, True)) == exact


def test_bad_pixels_are_not_sent() -> None:
    with pytest.raises(UsageError, match="pixels are float32"):
        sent(np.zeros((4, 4, 3), np.float32), LEVELS)  # type: ignore[arg-type]


def test_the_matrix_has_the_weights_of_the_kernel() -> None:
    flat = np.zeros((1, 7, 3), np.uint8)
    matrix = resize_matrix(7, 5)
    for column in range(7):
        flat[:] = 0
        flat[0, column] = 100
        found = prepare(flat, replace(LEVELS, height=1, width=5))[0, :, 0]
        assert np.allclose(found, (matrix[:, column] * 100).clip(0), atol=1e-4)
    assert np.array_equal(resize_matrix(9, 9), np.eye(9))


def test_what_is_noted_of_an_image_is_noted_on_either_way() -> None:
    for image in (noise(), with_alpha(noise(), 254), noise().resize((1, 1)).resize((20, 30))):
        data = saved(image)
        here = images.load(data, LEVELS)
        apart = images.load_isolated(data, LEVELS, 60, on_device=True)
        travels = images.load(data, LEVELS, on_device=True)
        assert np.array_equal(apart.values, travels.values)
        assert travels.values.dtype == np.uint8
        for one in (apart, travels):
            assert one.transparent == here.transparent
            assert one.single_colour == here.single_colour
