"""Tests the changes that have a word: each does what the table says, and adds nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.altered_pictures import PICTURE_CHANGES, altered, hue_turned, rotated, scaled
from tests.support.builders import photo

STEPS = [(word, by) for word, change in PICTURE_CHANGES.items() for by in change.strengths]
NAME = "harbour.jpg"


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float64)


def test_the_documentation_lists_the_changes_and_their_strengths() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", text.split("#### Changes that")[1], re.M)
    listed = {word: (does, [float(by) for by in told.split(", ")]) for word, does, told in rows}
    assert listed == {word: (of.does, list(of.strengths)) for word, of in PICTURE_CHANGES.items()}


@settings(max_examples=30)
@given(
    step=st.sampled_from(STEPS),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_a_picture_of_any_size_has_copies(
    step: tuple[str, float], width: int, height: int, seed: int
) -> None:
    """They are of the same size, except for crops, and the same every time."""
    picture = photo(seed, width, height)
    copy = altered(picture, *step, NAME)
    assert copy.mode == "RGB"
    parts = [max(1, round(side * step[1])) for side in (width, height)]
    assert list(copy.size) == (parts if step[0] == "crop" else [width, height])
    assert copy.tobytes() == altered(picture.copy(), *step, NAME).tobytes()
    if step[0] not in ("brightness", "noise"):  # no black corner, no frame, no other colour
        plain = altered(Image.new("RGB", (width, height), (70, 70, 70)), *step, NAME)
        coarse = 6 if step[0] == "jpeg" else 1  # a JPEG's greys are up to ten levels apart
        assert np.abs(pixels(plain) - 70).max() <= coarse


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[0]} {step[1]:g}")
def test_every_step_changes_a_photograph(step: tuple[str, float]) -> None:
    picture = altered(photo(1, 224, 224), "noise", 8, "with edges")
    copy = altered(picture, *step, NAME)
    assert copy.size != picture.size or np.abs(pixels(copy) - pixels(picture)).mean() > 0.5


def test_what_is_left_to_chance_is_decided_by_the_name() -> None:
    picture = photo(1)
    for word in ("noise", "crop"):
        by = PICTURE_CHANGES[word].strengths[0]
        one, other = (altered(picture, word, by, name).tobytes() for name in ("a.jpg", "b.jpg"))
        assert one != other, word
    steps = PICTURE_CHANGES["crop"].strengths
    assert len({altered(photo(1), "crop", by, NAME).size for by in steps}) == len(steps)


def test_changes_do_what_their_words_say() -> None:
    picture = photo(3)
    values = pixels(picture)
    halved = pixels(altered(picture, "brightness", 0.5, NAME))
    assert np.abs(halved - values / 2).max() <= 1
    grey = pixels(altered(picture, "saturation", 0.0, NAME))
    assert (grey == grey[:, :, :1]).all()
    low = pixels(altered(picture, "contrast", 0.5, NAME))
    assert low.std() == pytest.approx(values.std() / 2, rel=0.1)
    middle = Image.new("RGB", (300, 200), (128, 128, 128))
    noise = pixels(altered(middle, "noise", 16, NAME)) - 128
    assert noise.std() == pytest.approx(16, rel=0.05)
    assert abs(noise.mean()) < 0.5
    assert hue_turned(Image.new("RGB", (2, 2), (200, 0, 0)), 120).getpixel((0, 0)) == (0, 200, 0)


def test_turning_and_scaling_keep_what_is_in_the_middle() -> None:
    picture = photo(5, 121, 81)
    dot = Image.new("RGB", (121, 81))
    dot.paste((255, 255, 255), (80, 39, 83, 42))  # right of the middle
    up = np.argwhere(pixels(rotated(dot, 90))[:, :, 0] > 128).mean(axis=0)
    assert up == pytest.approx([40 - 21, 60], abs=1)  # counter-clockwise: above it
    far = np.argwhere(pixels(scaled(dot, 1.5))[:, :, 0] > 128).mean(axis=0)
    middle = pixels(scaled(dot, 0.5))[20:-20, 30:-30, 0]  # without its mirror images
    near = np.argwhere(middle > 60).mean(axis=0)
    assert far == pytest.approx([40, 60 + 1.5 * 21], abs=1)
    assert near == pytest.approx([40 - 20, 60 + 0.5 * 21 - 30], abs=1.5)
    back = rotated(rotated(picture, 10), -10)
    inner = (slice(25, -25), slice(25, -25))
    assert np.abs(pixels(back)[inner] - pixels(picture)[inner]).mean() < 2


def test_a_strength_means_the_same_for_a_larger_picture() -> None:
    """Lengths are shares of the shorter side."""
    small = photo(7, 300, 260)
    large = small.resize((1200, 1040), Image.Resampling.BICUBIC)
    for word in ("blur", "rotation", "scale"):
        by = PICTURE_CHANGES[word].strengths[-1]
        one = altered(small, word, by, NAME)
        other = altered(large, word, by, NAME).resize(small.size, Image.Resampling.BOX)
        assert np.abs(pixels(one) - pixels(other)).mean() < 1.5, word
    deviations = [
        pixels(altered(of, "noise", 32, NAME).resize((224, 224), Image.Resampling.BOX)).std()
        for of in (Image.new("RGB", (side, side), (128, 128, 128)) for side in (224, 672))
    ]
    assert deviations[0] == pytest.approx(deviations[1], rel=0.05)
