"""Makes altered copies of pictures: brighter, blurred, turned, compressed.

    >>> from PIL import Image
    >>> grey = Image.new("RGB", (9, 9), (80, 80, 80))
    >>> altered(grey, "brightness", 0.5, "grey.png").getpixel((0, 0))
    (40, 40, 40)

A change is a word with several strengths. Lengths in a picture are shares of its shorter side, so
that a strength means the same for a thumbnail and for a photograph of 12 megapixels. What is left
to chance, as the grain of noise, is decided by the picture's name.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Picture = Image.Image

GRAIN = 224
"""Grains of noise along the shorter side of a picture. Finer noise would vanish in the resize."""


def brightened(picture: Picture, times: float) -> Picture:
    """Multiplies every value, and clips it."""
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(picture).enhance(times)


def contrasted(picture: Picture, times: float) -> Picture:
    """Multiplies how far every value is from the picture's mean grey, and clips it."""
    from PIL import ImageEnhance

    return ImageEnhance.Contrast(picture).enhance(times)


def saturated(picture: Picture, times: float) -> Picture:
    """Multiplies how far every colour is from its grey; 0 leaves a grey picture."""
    from PIL import ImageEnhance

    return ImageEnhance.Color(picture).enhance(times)


def hue_turned(picture: Picture, degrees: float) -> Picture:
    """Turns every hue around the circle of colours."""
    from PIL import Image

    hue, saturation, value = picture.convert("HSV").split()
    steps = round(degrees * 256 / 360)
    turned = hue.point([(at + steps) % 256 for at in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def blurred(picture: Picture, radius: float) -> Picture:
    """Blurs by a Gaussian of a standard deviation of `radius` pixels."""
    from PIL import ImageFilter

    return picture.filter(ImageFilter.GaussianBlur(radius))


def noisy(picture: Picture, deviation: float, chance: np.random.Generator) -> Picture:
    """Adds Gaussian noise, of a standard deviation in levels of 255, to each channel."""
    import numpy as np
    from PIL import Image

    scale = max(1.0, min(picture.size) / GRAIN)
    width, height = (max(1, round(side / scale)) for side in picture.size)
    pixels = np.asarray(picture, np.float32)
    noise = chance.normal(0, deviation, (3, height, width)).astype(np.float32)
    grains = (Image.fromarray(one).resize(picture.size, Image.Resampling.NEAREST) for one in noise)
    added = np.stack([np.asarray(one) for one in grains], axis=2)
    return Image.fromarray(np.clip(np.rint(pixels + added), 0, 255).astype(np.uint8))


def compressed(picture: Picture, quality: float) -> Picture:
    """Saves as JPEG of a quality, and opens that again."""
    from PIL import Image

    held = io.BytesIO()
    picture.save(held, "JPEG", quality=round(quality))
    with Image.open(held) as opened:
        return opened.convert("RGB")


def rotated(picture: Picture, degrees: float) -> Picture:
    """Turns counter-clockwise about the middle; the corners are filled with a mirror image."""
    from PIL import Image

    angle = math.radians(degrees)
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    width, height = picture.size
    across = math.ceil(max(0.0, width * cosine + height * sine - width) / 2) + 1
    down = math.ceil(max(0.0, width * sine + height * cosine - height) / 2) + 1
    wide = _mirrored_around(picture, across, down)
    turned = wide.rotate(degrees, Image.Resampling.BICUBIC)
    return turned.crop((across, down, across + width, down + height))


def scaled(picture: Picture, times: float) -> Picture:
    """Shows everything larger, or smaller with a mirror image around; the size stays."""
    from PIL import Image

    width, height = picture.size
    if times < 1:
        across, down = (math.ceil(side * (1 / times - 1) / 2) for side in (width, height))
        picture = _mirrored_around(picture, across, down)
    seen = width / times, height / times
    left, top = (picture.width - seen[0]) / 2, (picture.height - seen[1]) / 2
    box = (left, top, left + seen[0], top + seen[1])
    return picture.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0)


def cut_out(picture: Picture, share: float, chance: np.random.Generator) -> Picture:
    """Cuts out a part of this share of each side, at a place that chance decides."""
    sides = [max(1, round(side * share)) for side in picture.size]
    left, top = (
        int(chance.integers(whole - part + 1))
        for whole, part in zip(picture.size, sides, strict=True)
    )
    return picture.crop((left, top, left + sides[0], top + sides[1]))


def _mirrored_around(picture: Picture, across: int, down: int) -> Picture:
    """Puts a margin around a picture that mirrors it."""
    import numpy as np
    from PIL import Image

    margins = ((down, down), (across, across), (0, 0))
    return Image.fromarray(np.pad(np.asarray(picture), margins, "symmetric"))


@dataclass(frozen=True)
class PictureChange:
    """What can be made of a picture, at several strengths.

    Attributes:
        does: What it does, in a few words, with what its strength is.
        strengths: The strengths, in order.
        alter: Makes a copy of a picture, with a strength and what is left to chance.
    """

    does: str
    strengths: tuple[float, ...]
    alter: Callable[[Picture, float, np.random.Generator], Picture]


def _shorter(picture: Picture) -> int:
    return min(picture.size)


PICTURE_CHANGES: dict[str, PictureChange] = {
    "brightness": PictureChange(
        "every value, times", (0.5, 0.7, 1.4, 2.0), lambda image, by, _: brightened(image, by)
    ),
    "contrast": PictureChange(
        "distance from the mean grey, times",
        (0.5, 0.7, 1.4, 2.0),
        lambda image, by, _: contrasted(image, by),
    ),
    "saturation": PictureChange(
        "distance of a colour from its grey, times",
        (0.0, 0.5, 1.5, 2.0),
        lambda image, by, _: saturated(image, by),
    ),
    "hue": PictureChange(
        "turned, degrees", (-60, -20, 20, 60), lambda image, by, _: hue_turned(image, by)
    ),
    "blur": PictureChange(
        "Gaussian of a deviation, share of the shorter side",
        (0.005, 0.01, 0.02),
        lambda image, by, _: blurred(image, by * _shorter(image)),
    ),
    "noise": PictureChange(
        f"Gaussian of a deviation, levels of 255, in grains of 1/{GRAIN} of the shorter side",
        (8, 16, 32),
        noisy,
    ),
    "jpeg": PictureChange(
        "saved as JPEG of a quality", (50, 25, 10), lambda image, by, _: compressed(image, by)
    ),
    "rotation": PictureChange(
        "turned counter-clockwise, degrees; mirrored at the edges",
        (-20, -10, 10, 20),
        lambda image, by, _: rotated(image, by),
    ),
    "scale": PictureChange(
        "larger or smaller about the middle, times; mirrored at the edges",
        (0.5, 0.7, 1.4, 2.0),
        lambda image, by, _: scaled(image, by),
    ),
    "crop": PictureChange("a part at any place, share of each side", (0.8, 0.6), cut_out),
}
"""Every change that has a word. A strength may be changed, but then a lens of one name is fitted to
something else: what a lens was fitted to stands in its file."""


def altered(picture: Picture, word: str, strength: float, name: str) -> Picture:
    """Makes an altered copy of a picture.

    Args:
        picture: The picture, in RGB.
        word: A word of `PICTURE_CHANGES`.
        strength: How strong the change is.
        name: The picture's name. With the word and the strength it decides what is left to chance.

    Returns:
        The copy, in RGB.
    """
    import numpy as np

    digest = blake2b(f"{word}\0{strength}\0{name}".encode(), digest_size=8).digest()
    chance = np.random.default_rng(int.from_bytes(digest, "big"))
    return PICTURE_CHANGES[word].alter(picture, strength, chance)
