"""Turns the bytes of a file into pixels, or raises `BadImage` with its reason.

    >>> from pipeline.spec import Preprocess
    >>> rule = Preprocess(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> load(Path("cat.jpg").read_bytes(), rule).values.shape                # doctest: +SKIP
    (224, 224, 3)

The content tells the format, never the file's name. Every image becomes 8-bit RGB by one rule,
`spec.COLOUR_RULE` "rgb8-1":

- 8 bits and less, as PIL's `convert("RGB")`: grey is replicated, palettes are looked up, CMYK and
  YCCK (with Adobe's inversion) and YCbCr are computed. No ICC profile is applied.
- Alpha, and the transparency of a palette or a colour key, is dropped: the colour stored under it
  counts, as in the reference. Premultiplied alpha is divided out first. Or, if the rule's `alpha`
  says so, the image is laid upon white, black, or a checkered ground of 8-pixel squares in two
  greys; of each channel, (colour x alpha + ground x (255 - alpha)) / 255 is rounded to the nearest.
- 16-bit grey is scaled, round(v / 257), where PIL would clip it to white. 16-bit colour, and grey
  with alpha, keeps its high byte, as PIL reads it.
- Floats, 32-bit or signed integers, 12-bit or inverted 16-bit TIFF, and CIE Lab are "unsupported":
  nothing in the file says which value is white, or PIL does not heed it.
- The first picture of an animation, and the first of several pages, is the image.
- EXIF orientation is applied, unless the rule's `exif` is "ignore" as in the reference. A value
  that is unreadable or not in 1..8 changes nothing. PIL always applies a TIFF's, on loading.

If the rule's `jpeg` says so, a JPEG much larger than the network's input is decoded at 1/2, 1/4 or
1/8 of its size, from fewer coefficients of its cosine transform.

A decoder of the user's own (`pipeline.images.decoders`) may take the place of PIL and of this rule.
The built-in decoder `nvjpeg` takes PIL's place for most JPEGs, and keeps the rule. Otherwise
libjpeg-turbo takes that place for most JPEGs, and makes PIL's pixels.

Decoding and resizing (numba) release Python's lock, so that threads scale. Memory is bounded:
large images share `ROOM`, and are converted and resized in strips, without copies of the whole.
docs/hostile.md says what becomes of which hostile file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from time import monotonic
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    IcoImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    features,
)

from pipeline.errors import BadImage, TransientError, UsageError, VdnaError
from pipeline.images import file_damage
from pipeline.images.colours import (
    GROUNDS,
    check_mode,
    has_transparent_pixels,
    laid_upon,
    rgb_of,
    scale_colour_key,
    states_transparency,
)
from pipeline.images.decoders import Pixels, own_decoder
from pipeline.images.nvjpeg import is_nvjpeg, pixels_by_nvjpeg
from pipeline.images.signatures import blame
from pipeline.images.turbo_jpeg import is_plain, pixels_by_turbo, suits
from pipeline.spec import COLOUR_RULE, Alpha, Exif, Jpeg, Preprocess

NONDETERMINISTIC: tuple[str, ...] = ("decoder_crashed", "timeout")
"""Reasons for which the machine may be to blame instead of the image."""

REASONS: tuple[str, ...] = (
    "empty",
    "too_many_bytes",
    "too_many_pixels",
    "not_an_image",
    "unsupported",
    "truncated",
    "corrupt",
    *NONDETERMINISTIC,
)
"""Every `BadImage.reason`."""

FORMATS: tuple[str, ...] = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "AVIF",
    "JPEG2000",
    "PPM",
    "DDS",
    "ICO",
    "SGI",
    "PCX",
    "DIB",
    "TGA",
)
"""The formats by PIL's names, in the order in which they are tried. TGA is last, as it has no
signature. None of these runs another program."""

Floats32 = NDArray[np.float32]

CODECS: tuple[str, ...] = ("jpg", "jpg_2000", "zlib", "libtiff", "webp", "avif")
"""What Pillow is to be built with, by its own names. Its wheels have all of them."""

Image.init()  # registers the decoders now: at first use, threads would race for it

# Each AVIF would start a thread for each core, and one that cannot start would be the image's
# fault. Images are decoded side by side anyway.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr


@dataclass(frozen=True, eq=False)
class Decoded:
    """The pixels of an image, and what is noted of it.

    Attributes:
        pixels: RGB, uint8 (height, width, 3); maybe read-only.
        transparent: Whether any pixel of the file is less than opaque. What a decoder of the
            user's own returns is taken for opaque.
    """

    pixels: Pixels
    transparent: bool = False


def decode(data: bytes, rule: Preprocess) -> Decoded:
    """Decodes an image, upright unless the rule ignores EXIF.

    The limit on pixels is checked before any pixel is decoded. PIL's own limit of 178,956,970
    pixels holds in any case.

    Args:
        data: The bytes of the file.
        rule: Its limits, EXIF rule and decoder are used.

    Returns:
        RGB pixels, and whether any of them is transparent.

    Raises:
        BadImage: If the image cannot be decoded through its own fault.
        MemoryError: If memory runs out, which is not the image's fault.
        TransientError: If a GPU that decodes fails, which is not its fault either.
        UsageError: If a setting of the process would decide what counts, or a Pillow that lacks
            decoders; if the rule is not one of this version's; or if the decoder is unknown or
            returns no RGB pixels.
    """
    check_rule(rule)
    if not data:
        raise BadImage("empty", "the file has no bytes")
    if len(data) > rule.max_bytes:
        raise BadImage("too_many_bytes", f"{len(data)} bytes; the limit is {rule.max_bytes}")
    on_gpu = is_nvjpeg(rule.decoder)
    if rule.decoder is not None and not on_gpu:
        return Decoded(_decode_by_own(data, rule, rule.decoder))
    _quieten_pil()
    _check_process(rule)
    try:
        with contextlib.ExitStack() as held:
            icon = _icon_size(data)  # PIL decodes an ICO as it opens it
            if icon is not None:
                _require_within("", *icon, rule)
                held.enter_context(_room(icon[0] * icon[1]))
            image = held.enter_context(Image.open(io.BytesIO(data), formats=FORMATS))
            _check_size(image, rule)
            if icon is None:
                held.enter_context(_room(image.width * image.height))
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                pixels = _decode_plain(image, data, rule, on_gpu)
                if pixels is not None:
                    return Decoded(pixels)
            scale_colour_key(image, rule.alpha)
            _load(image, data)
            return pixels_of(image, rule.exif, rule.alpha)
    except (MemoryError, BadImage, TransientError, UsageError):
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on hostile bytes
        bad = blame(data, error)
        raise bad from error


def _icon_size(data: bytes) -> tuple[int, int] | None:
    """Returns the size of the image in an ICO that PIL takes, whatever the ICO's directory says.

    Returns:
        Its width and height; None for another file, or one that PIL cannot open.

    Raises:
        MemoryError: If memory runs out.
    """
    if not data.startswith(ICO_SIGNATURE):
        return None
    file = io.BytesIO(data)
    try:
        start = IcoImagePlugin.IcoFile(file).entry[0].offset  # the largest, which PIL takes
        file.seek(start)
        if data.startswith(file_damage.PNG_SIGNATURE, start):
            return PngImagePlugin.PngImageFile(file).size
        width, height = BmpImagePlugin.DibImageFile(file).size
    except MemoryError:
        raise
    except Exception:  # hostile bytes
        return None
    return width, height // 2  # its mask is the lower half


def _load(image: Image.Image, data: bytes) -> None:
    """Loads the pixels, and looks for damage that PIL passes over (see docs/hostile.md)."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        file_damage.load_png(image, data)
        return
    image.load()
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        file_damage.require_jpeg_end(data)
    elif isinstance(image, IcoImagePlugin.IcoImageFile):
        start = image.ico.entry[0].offset  # the largest, which PIL takes
        if data.startswith(file_damage.PNG_SIGNATURE, start):
            file_damage.require_png_checksums(data, start)
            file_damage.require_png_rows(data, start)


def _decode_plain(
    image: JpegImagePlugin.JpegImageFile, data: bytes, rule: Preprocess, on_gpu: bool
) -> Pixels | None:
    """Decodes a plain JPEG by nvJPEG, or else by libjpeg-turbo, without PIL.

    If PIL is to decode it at a smaller scale, `image` is set up for that.

    Returns:
        The pixels, upright; None for what PIL is to decode.
    """
    width, height = size = image.size
    can_be_whole = is_plain(image) and file_damage.has_jpeg_end(data)
    pixels = pixels_by_nvjpeg(data) if on_gpu and can_be_whole else None
    if pixels is None or pixels.shape != (height, width, 3):
        if rule.jpeg == "scaled":
            _scale_decoder(image, rule)
        can_be_quick = can_be_whole and image.size == size and suits(image, data)
        pixels = pixels_by_turbo(data) if can_be_quick else None
    if pixels is None or pixels.shape != (height, width, 3):
        return None
    orientation = _orientation(image) if rule.exif == "apply" else 1
    if orientation == 1:
        return pixels
    turned = orientation in TURNED
    upright = np.empty(pixels.transpose(1, 0, 2).shape if turned else pixels.shape, np.uint8)
    _as_stored(upright, orientation)[:] = pixels
    return upright


def _scale_decoder(image: JpegImagePlugin.JpegImageFile, rule: Preprocess) -> None:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8 of its size, if enough pixels are left for the resize.

    Both sides stay at least `SCALED_SIDE` times those of the network's input. All of the file is
    still read, so damage is found as before.
    """
    width, height = SCALED_SIDE * rule.width, SCALED_SIDE * rule.height
    if rule.crop == "center":
        width = height = max(width, height)
    if rule.exif == "apply" and _orientation(image) in TURNED:
        width, height = height, width
    image.draft(None, (width, height))


def _decode_by_own(data: bytes, rule: Preprocess, decoder: str) -> Pixels:
    function = own_decoder(decoder)
    try:
        pixels = function(data)
    except BadImage as bad:
        if bad.reason in REASONS and bad.reason not in NONDETERMINISTIC:
            raise
        raise BadImage("corrupt", f"{decoder}: {bad}") from bad
    except (MemoryError, VdnaError):
        raise
    except Exception as error:  # a decoder of the user's raises anything
        raise BadImage("corrupt", f"{decoder}: {type(error).__name__}: {error}") from error
    shape: tuple[int, ...] = getattr(pixels, "shape", ())
    kind = getattr(pixels, "dtype", type(pixels).__name__)
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise UsageError(
            f"the decoder {decoder} returned {kind} of shape {shape}; it must return an array of "
            "uint8 of shape (height, width, 3)"
        )
    _require_within("", shape[1], shape[0], rule)
    return pixels


def pixels_of(image: Image.Image, exif: Exif = "apply", alpha: Alpha = "drop") -> Decoded:
    """Returns the pixels of an image that PIL has opened, by the same rule.

    Args:
        image: The image; it is loaded.
        exif: Whether EXIF orientation turns it.
        alpha: What is put under transparent pixels.

    Returns:
        RGB pixels, and whether any of them is transparent.

    Raises:
        BadImage: If nothing says which of its values is white.
    """
    scale_colour_key(image, alpha)
    image.load()
    check_mode(image)
    stated = states_transparency(image)
    ground = GROUNDS[alpha] if alpha != "drop" and stated else None

    def converted(strip: Image.Image, top: int) -> Decoded:
        transparent = stated and has_transparent_pixels(strip)
        if ground is not None:
            return Decoded(laid_upon(ground, strip, top), transparent)
        if "transparency" in strip.info:
            # It would be dropped anyway, and converting it may fail or warn. A strip may be the
            # caller's own image, which still states it afterwards.
            strip = strip.copy()
            del strip.info["transparency"]
        return Decoded(rgb_of(strip), transparent)

    orientation = _orientation(image) if exif == "apply" else 1
    width, height = image.size
    pixels = STRIP if ground is None else STRIP // 4  # of the larger numbers that it takes
    if width * height <= pixels and orientation == 1:
        return converted(image, 0)
    turned = orientation in TURNED
    upright = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    stored = _as_stored(upright, orientation)
    rows = max(1, pixels // width)
    transparent = False
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = converted(image.crop((0, top, width, bottom)), top)
        stored[top:bottom] = strip.pixels
        transparent |= strip.transparent
    return Decoded(upright, transparent)


ICO_SIGNATURE = b"\0\0\1\0"

ORIENTATION, TILE_WIDTH, TILE_LENGTH = 274, 322, 323
"""Tags of TIFF and EXIF."""

TURNED = (5, 6, 7, 8)
"""The orientations whose rows are the columns of the upright image."""

SCALED_SIDE = 2
"""How many times the network's input the sides of a JPEG stay that its decoder scales down. The
resize after it then hides most of the decoder's coarser filter (docs/performance.md)."""

PIL_MODULES = r"PIL\."

PIL_PIXELS = 178_956_970
"""PIL's own limit of pixels, unless someone sets another."""

STRIP = 1 << 22
"""Pixels that are converted at a time."""

ROOM = 100_000_000
"""Pixels that all threads together may decode at a time; PIL holds 4 to 16 bytes for each."""

LEASE_SECONDS = 30.0
"""A decoder that takes longer may be stuck, so others no longer wait for it."""


def check_rule(rule: Preprocess) -> None:
    """Checks that this version knows the rules of colour, transparency and scaled decoding.

    Raises:
        UsageError: If it does not.
    """
    if rule.colour != COLOUR_RULE:
        raise UsageError(f"the colour rule is {rule.colour!r}; this version knows {COLOUR_RULE!r}")
    for name, allowed in (("alpha", Alpha), ("jpeg", Jpeg)):
        if (value := getattr(rule, name)) not in get_args(allowed):
            raise UsageError(f"{name} is {value!r}; choose {' or '.join(get_args(allowed))}")


def _quieten_pil() -> None:
    """Keeps PIL's warnings (odd EXIF, odd chunks) from being printed or raised.

    This is called before every image, as other code may reset the filters, and
    `warnings.catch_warnings` does not work among threads.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[0] != "ignore" or getattr(first[3], "pattern", "") != PIL_MODULES:
        warnings.filterwarnings("ignore", module=PIL_MODULES)


def _check_process(rule: Preprocess) -> None:
    """Checks that no setting of PIL, made elsewhere in the process, decides what counts.

    Raises:
        UsageError: If one does, or if this machine's Pillow lacks decoders that others have.
    """
    if lacking := _missing_codecs():
        raise UsageError(
            f"this machine's Pillow was built without {', '.join(lacking)}: images would fail here "
            "that count elsewhere. Install Pillow from its wheel: "
            "pip install --force-reinstall --only-binary :all: pillow"
        )
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process: truncated images would "
            "count as whole ones. Unset it"
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and 2 * limit < min(rule.max_pixels, PIL_PIXELS):
        raise UsageError(
            f"PIL.Image.MAX_IMAGE_PIXELS is {limit} in this process: images that the spec counts, "
            f"of up to {rule.max_pixels} pixels, would be refused. Leave it as it was"
        )


@cache
def _missing_codecs() -> tuple[str, ...]:
    return tuple(codec for codec in CODECS if not features.check(codec))


def _check_size(image: Image.Image, rule: Preprocess) -> None:
    _require_within("", image.width, image.height, rule)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = [image.tag_v2.get(tag, 0) for tag in (TILE_WIDTH, TILE_LENGTH)]
        if all(isinstance(side, int) for side in tile):  # libtiff refuses the others
            _require_within("a tile of ", tile[0], tile[1], rule)


def _require_within(what: str, width: int, height: int, rule: Preprocess) -> None:
    if width * height > rule.max_pixels:
        raise BadImage(
            "too_many_pixels",
            f"{what}{width} x {height} is {width * height} pixels; the limit is {rule.max_pixels}",
        )


_decoding: dict[object, tuple[float, int]] = {}
"""When each decoder under way began, and how many pixels it decodes."""

_room_queue: deque[object] = deque()
"""The decoders that wait for room. They get it in this order, so that none waits for ever."""

_room_changed = threading.Condition()

stopped_clock: ContextVar[Callable[[], contextlib.AbstractContextManager[None]]] = ContextVar(
    "stopped_clock", default=contextlib.nullcontext
)
"""Stops the time that an image has, while it waits for room: that it waits is not its fault."""


@contextlib.contextmanager
def _room(pixels: int) -> Iterator[None]:
    """Waits until so many pixels may be decoded beside the others. Small images never wait."""
    if pixels <= STRIP:
        yield
        return
    me = object()

    def free() -> bool:
        now = monotonic()
        held = sum(n for began, n in _decoding.values() if now - began < LEASE_SECONDS)
        return _room_queue[0] is me and (not held or held + pixels <= ROOM)

    with _room_changed:
        _room_queue.append(me)
        try:
            with stopped_clock.get()():
                while not free():
                    _room_changed.wait(1)
        finally:
            _room_queue.remove(me)
            _room_changed.notify_all()
        _decoding[me] = monotonic(), pixels
    try:
        yield
    finally:
        with _room_changed:
            del _decoding[me]
            _room_changed.notify_all()


def _orientation(image: Image.Image) -> object:
    if image.format == "TIFF":
        return 1  # PIL has applied it on loading
    try:
        return image.getexif().get(ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # hostile EXIF; the pixels are good
        return 1


def _as_stored(upright: Pixels, orientation: object) -> Pixels:
    """Returns the view of upright pixels that has the layout of the stored image."""
    stored = upright
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    if orientation in TURNED:
        stored = stored.transpose(1, 0, 2)
    return stored
