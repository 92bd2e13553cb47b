"""Bytes -> pixels, or `BadImage` with its reason.

    >>> from pipeline.spec import Preprocess
    >>> rule = Preprocess(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> load(Path("cat.jpg").read_bytes(), rule).shape                       # doctest: +SKIP
    (224, 224, 3)

The format is told by the content, never by a name. Every image becomes 8-bit RGB by one rule,
`spec.COLOUR_RULE` "rgb8-1":

- 8 bits and less, as PIL's `convert("RGB")`: grey is replicated, palettes are looked up, CMYK and
  YCCK (with Adobe's inversion) and YCbCr are computed. No ICC profile is applied.
- Alpha, and a palette's or a colour key's transparency, is dropped: the colour stored under it
  counts, as in the reference. Premultiplied alpha is divided out first.
- 16-bit grey is scaled, round(v / 257), where PIL would clip it to white. 16-bit colour, and grey
  with alpha, keeps its high byte, as PIL reads it.
- Floats, 32-bit or signed integers, 12-bit or inverted 16-bit TIFF, and CIE Lab are "unsupported":
  nothing in the file says which value is white, or PIL does not heed it.
- Of an animation or several pages, the first.
- EXIF orientation is applied, unless the rule's `exif` is "ignore" as in the reference; one that is
  unreadable or not in 1..8 is none. A TIFF's is always applied, by PIL, on loading.

Decoding (PIL) and resizing (numba) leave Python's lock, so that threads scale. Memory is bounded:
large images share `ROOM`, and are converted and resized in strips, without copies of the whole.
What becomes of which hostile file stands in docs/hostile.md.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import math
import os
import re
import selectors
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from signal import Signals
from time import monotonic
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from pipeline.errors import BadImage, UsageError, VdnaError
from pipeline.spec import COLOUR_RULE, Exif, Preprocess

NONDETERMINISTIC: tuple[str, ...] = ("decoder_crashed", "timeout")
"""Reasons that may be the machine's fault as well as the image's."""

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
"""PIL's names, in the order tried; TGA has no signature and comes last. None calls a program."""

Pixels = NDArray[np.uint8]
Floats32 = NDArray[np.float32]

Image.init()  # registers the decoders now: at first use, threads would race for it
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr


def decode(data: bytes, rule: Preprocess) -> Pixels:
    """The image as RGB (H, W, 3), upright unless EXIF is ignored; may be read-only.

    Raises `BadImage`.

    `rule.max_pixels` is checked before any pixel is decoded; PIL's own limit, 178,956,970, holds
    in any case. Running out of memory raises `MemoryError`: it is not the image's fault.
    """
    _check_rule(rule)
    if not data:
        raise BadImage("empty", "the file has no bytes")
    if len(data) > rule.max_bytes:
        raise BadImage("too_many_bytes", f"{len(data)} bytes; the limit is {rule.max_bytes}")
    _quieten_pil()
    _check_process(rule)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, rule)
            with _room(image.width * image.height):
                image.load()
                _check_size(image, rule)  # an ICO's directory may lie about the image in it
                return pixels_of(image, rule.exif)
    except (MemoryError, BadImage):
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on hostile bytes
        raise _blame(data, error) from error


def pixels_of(image: Image.Image, exif: Exif = "apply") -> Pixels:
    """(H, W, 3) of an image that PIL has opened, by the same rule. Raises `BadImage`."""
    image.load()
    _check_mode(image)
    # It would be dropped anyway, and converting it may fail or warn.
    image.info.pop("transparency", None)
    orientation = _orientation(image) if exif == "apply" else 1
    width, height = image.size
    if width * height <= STRIP and orientation == 1:
        return _rgb(image)
    turned = orientation in (5, 6, 7, 8)
    upright = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    stored = _as_stored(upright, orientation)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = _rgb(image.crop((0, top, width, bottom)))
    return upright


def prepare(pixels: Pixels, rule: Preprocess) -> Floats32:
    """RGB (H, W, 3) -> the network's input (rule.height, rule.width, 3), normalised.

    `crop` "center" takes the largest square in the middle first, as the reference's
    `crop_to_square_pre_resize`.
    `clean` is the resize of clean-fid, which the reference uses: PIL's antialiased bicubic on
    float channels to the target size, whatever the proportions, clipped to [0, 255]; equal to
    within 1e-4 grey levels. `fast` is torch's on uint8, which rounds in between; of an image longer
    than `MAX_FAST`, for which torch takes memory without bound, `clean` rounded.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(
            f"pixels are {pixels.dtype} of shape {pixels.shape}; expected uint8 (H, W, 3)"
        )
    pixels = np.ascontiguousarray(_square(pixels) if rule.crop == "center" else pixels)
    mean, std = np.array(rule.mean), np.array(rule.std)
    scale = (1 / (255 * std)).astype(np.float32)
    shift = (-mean / std).astype(np.float32)
    height, width, _ = pixels.shape
    if rule.resize == "fast":
        if max(height, width) > MAX_FAST:
            resized = np.rint(_resize_extreme(pixels, rule.height, rule.width))
        else:
            resized = _resize_fast(pixels, rule.height, rule.width)
        return _normalised(resized, scale, shift)
    if width > MAX_WIDTH or height > MAX_SHRINK * rule.height or width > MAX_SHRINK * rule.width:
        return _normalised(_resize_extreme(pixels, rule.height, rule.width), scale, shift)
    out = np.empty((rule.height, rule.width, 3), np.float32)
    flat = pixels.reshape(height, width * 3)
    flat.flags.writeable = False  # one compiled kernel for writable and read-only pixels
    _resize_clean(
        flat, *_weights(height, rule.height), *_weights(width, rule.width), out, scale, shift
    )
    return out


def _square(pixels: Pixels) -> Pixels:
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def load(data: bytes, rule: Preprocess) -> Floats32:
    """`prepare` of `decode`."""
    return prepare(decode(data, rule), rule)


def load_isolated(data: bytes, rule: Preprocess, seconds: float, attempts: int = 3) -> Floats32:
    """`load`, bit for bit, with the decoder in a process of its own; for images that kill or stall.

    The process answers for many images. One that crashes, or takes more than `seconds` (its start
    included), is followed by a new one, up to `attempts` in all; then raises `BadImage`
    "decoder_crashed" or "timeout". The resize stays here: only the decoder is foreign code that
    trusts the bytes.
    """
    _check_rule(rule)
    question = json.dumps(asdict(rule) | {"bytes": len(data)}).encode() + b"\n" + data
    failure = BadImage("decoder_crashed", f"{attempts} attempts allowed")
    for attempt in range(attempts):
        # What another image has spoilt must not count against this one.
        decoder = _Decoder.resting() if attempt == 0 else _Decoder.new()
        try:
            answer = decoder.ask(question, seconds)
        except TimeoutError:
            decoder.end()
            failure = BadImage("timeout", f"not decoded in {seconds:g} s, {attempts} times")
            continue
        except BaseException:
            decoder.end()
            raise
        if answer is not None:
            decoder.rest()
            return prepare(_answer(answer), rule)
        ending, last_words = decoder.end()
        if last_words.startswith(("ModuleNotFoundError", "ImportError")):
            raise VdnaError(f"the decoding process cannot start: {last_words}")
        failure = BadImage("decoder_crashed", f"{ending}, {attempts} times; {last_words}")
    raise failure


# Decoding


MODES: tuple[str, ...] = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "LA",
    "PA",
    "RGBX",
    "CMYK",
    "YCbCr",
)
"""Of 8 bits or less a channel; PIL converts them."""

MODES_16: tuple[str, ...] = ("I;16", "I;16L", "I;16B", "I;16N")

BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, TILE_WIDTH, TILE_LENGTH = 258, 262, 274, 322, 323
"""Tags of TIFF and EXIF."""

PIL_MODULES = r"PIL\."

PIL_PIXELS = 178_956_970
"""PIL's own limit, as it stands unless someone sets another."""

STRIP = 1 << 22
"""Pixels that are converted at a time."""

ROOM = 100_000_000
"""Pixels that may be in decoders at a time, in all threads; PIL holds 4 to 16 bytes for each."""

LEASE_SECONDS = 30.0
"""A decoder that takes longer no longer keeps others waiting: it may be stuck."""

CUT = re.compile("truncat|not enough", re.IGNORECASE)
"""In PIL's messages about a file that ends too early."""

LONG_NOTES = re.compile("MAX_TEXT_CHUNK|MAX_TEXT_MEMORY")
"""In its messages about a PNG whose texts or profile are longer than it reads."""

BOM, MARKUP = rb"(\xef\xbb\xbf)?\s*", rb"(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)?"
"""What may stand before a text, and before a page, begins."""

OTHER_KINDS: tuple[tuple[str, bytes, str], ...] = (
    ("unsupported", rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    ("unsupported", rb"%PDF", "PDF"),
    ("unsupported", rb"8BPS", "a Photoshop document"),
    ("unsupported", rb"....ftyp(hei|hev|mif1|msf1)", "HEIC"),
    ("unsupported", rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    ("unsupported", rb"\x76\x2f\x31\x01", "OpenEXR"),
    ("unsupported", rb"#\?RADIANCE", "Radiance HDR"),
    ("unsupported", rb"qoif", "QOI"),
    ("not_an_image", BOM + MARKUP + rb"<(!DOCTYPE html|html|head|body)", "an HTML page"),
    ("unsupported", BOM + rb"(<\?xml.*|<!--.*)?<(svg\b|!DOCTYPE svg)", "SVG"),
    ("not_an_image", BOM + rb"<\?xml", "XML"),
    ("not_an_image", rb"PK\x03\x04|PK\x05\x06", "a zip archive"),
    ("not_an_image", rb"\x1f\x8b", "gzip"),
    ("not_an_image", rb"\x28\xb5\x2f\xfd", "zstd"),
    ("not_an_image", rb"BZh[1-9]", "bzip2"),
    ("not_an_image", rb"\xfd7zXZ\0", "xz"),
    ("not_an_image", rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    ("not_an_image", rb"Rar!\x1a\x07", "a RAR archive"),
    ("not_an_image", rb".{257}ustar", "a tar archive"),
    ("not_an_image", rb"PAR1", "a Parquet file"),
    ("not_an_image", rb"\x93NUMPY", "a NumPy array"),
    ("not_an_image", rb"\x89HDF", "an HDF5 file"),
    ("not_an_image", rb"version https://git-lfs", "a Git LFS pointer: the image was not pulled"),
    ("corrupt", rb"....ftypavi[fs]", "an AVIF with a damaged header"),
    ("not_an_image", rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", "a video"),
    ("not_an_image", rb"RIFF....WAVE|ID3|OggS|fLaC", "sound"),
    ("corrupt", rb"\xff\xd8\xff", "a JPEG with a damaged header"),
    ("corrupt", rb"\x89PNG\r\n", "a PNG with a damaged header"),
    ("corrupt", rb"GIF8[79]a", "a GIF with a damaged header"),
    ("corrupt", rb"RIFF....WEBP", "a WebP with a damaged header"),
    ("corrupt", rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF with a damaged header"),
    ("corrupt", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 with a damaged header"),
    ("not_an_image", rb"\0{64}", "zeros, as a failed write leaves them"),
    ("not_an_image", rb"[\t\n\r -\x7e\x80-\xf4]{1,256}\Z", "text"),
)
"""(reason, pattern of the first 512 bytes, kind) of what PIL cannot open; the first match tells."""


def _check_rule(rule: Preprocess) -> None:
    if rule.colour != COLOUR_RULE:
        raise UsageError(f"the colour rule is {rule.colour!r}; this version knows {COLOUR_RULE!r}")


def _quieten_pil() -> None:
    """PIL's warnings (odd EXIF, odd chunks) are neither printed nor raised.

    Looked at before every image, as others reset the filters; `warnings.catch_warnings` is no help
    among threads.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[0] != "ignore" or getattr(first[3], "pattern", "") != PIL_MODULES:
        warnings.filterwarnings("ignore", module=PIL_MODULES)


def _check_process(rule: Preprocess) -> None:
    """PIL's switches are the process's: what one set elsewhere must not decide what counts."""
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
"""When each decoder under way began, and its pixels."""
_room_changed = threading.Condition()


@contextlib.contextmanager
def _room(pixels: int) -> Iterator[None]:
    """Waits until that many pixels more may be decoded beside the others; small ones never do."""
    if pixels <= STRIP:
        yield
        return
    me = object()

    def free() -> bool:
        now = monotonic()
        held = sum(n for began, n in _decoding.values() if now - began < LEASE_SECONDS)
        return not held or held + pixels <= ROOM

    with _room_changed:
        while not free():
            _room_changed.wait(1)
        _decoding[me] = monotonic(), pixels
    try:
        yield
    finally:
        with _room_changed:
            del _decoding[me]
            _room_changed.notify_all()


def _check_mode(image: Image.Image) -> None:
    if _is_16_bit(image):
        _check_plain_16_bit(image)
    elif image.mode not in MODES:
        raise BadImage(
            "unsupported", f"a {image.format} of mode {image.mode}: no value of it is white"
        )


def _is_16_bit(image: Image.Image) -> bool:
    # PIL has scaled a PPM's values to 16 bits, whatever its maximum.
    return image.mode in MODES_16 or (image.mode == "I" and image.format == "PPM")


def _rgb(image: Image.Image) -> Pixels:
    """Of a mode that has been checked; a strip has lost its format."""
    if image.mode in MODES_16 or image.mode == "I":
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_plain_16_bit(image: Image.Image) -> None:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    bits, photometric = image.tag_v2.get(BITS_PER_SAMPLE), image.tag_v2.get(PHOTOMETRIC)
    if bits != (16,) or photometric != 1:
        raise BadImage(
            "unsupported",
            f"a grey TIFF of {bits} bits, photometric {photometric}; "
            "only 16 bits with black at zero are scaled",
        )


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
    """The view of upright pixels in which the stored image's stand in their places.

    `orientation` as in EXIF: which edges of the stored image are the top and the left.
    """
    stored = upright
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    if orientation in (5, 6, 7, 8):
        stored = stored.transpose(1, 0, 2)
    return stored


def _blame(data: bytes, error: Exception) -> Exception:
    """What PIL's exception on opening or decoding `data` means."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return BadImage("too_many_pixels", str(error))
    unidentified = isinstance(error, UnidentifiedImageError)
    if unidentified:
        reason, detail = _unidentified(data)
    else:
        reason, detail = "corrupt", f"{type(error).__name__}: {error}"
        if LONG_NOTES.search(detail):
            return BadImage("unsupported", f"its texts or its profile are too long: {error}")
    if "out of memory" in detail:
        return MemoryError(detail)
    if reason == "corrupt" and (CUT.search(detail) or _ends_early(data)):
        reason = "truncated"
    return BadImage(reason, detail)


def _unidentified(data: bytes) -> tuple[str, str]:
    head = data[:512]
    start = f"starts with {head[:12]!r}"
    for reason, pattern, kind in OTHER_KINDS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return reason, f"{start}; looks like {kind}"
    return "not_an_image", start


def _ends_early(data: bytes) -> bool:
    """Whether a WebP's length or a TIFF's directory lies past the end, or a box of AVIF does.

    JPEG 2000 ends with its marker.
    """
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[:4] == b"II*\0":
        return int.from_bytes(data[4:8], "little") >= len(data)
    if data[:4] == b"MM\0*":
        return int.from_bytes(data[4:8], "big") >= len(data)
    if data.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return not data.endswith(b"\xff\xd9")
    if data[4:11] == b"ftypavi":
        return _boxes_end(data) > len(data)
    return False


def _boxes_end(data: bytes) -> int:
    """Where the boxes of ISO media end, by their own lengths."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:  # of 64 bits, or to the end, or damaged
            break
        at += size
    return at


# Resizing


MAX_SHRINK = 32
"""Beyond it float32 sums of so many weights drift: sums are in float64."""

MAX_WIDTH = 1 << 15
"""Of the input; beyond it the kernel's rows leave the cache."""

MAX_FAST = 1 << 17
"""Of the input's longer side."""

ROWS = 8
"""Output rows computed at a time: the lanes of a vector register."""


@lru_cache(maxsize=256)
def _weights(n_in: int, n_out: int) -> tuple[Floats32, NDArray[np.int32], NDArray[np.int32]]:
    """PIL's antialiased bicubic (Resample.c, a = -0.5): weights (n_out, k), first input, how many.

    Read-only, as they are shared.
    """
    step = n_in / n_out
    stretch = max(step, 1.0)
    centre = (np.arange(n_out) + 0.5) * step
    first = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), n_in) - first
    k = np.arange(count.max())
    x = np.abs((k + first[:, None] - centre[:, None] + 0.5) / stretch)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[k >= count[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    made = weights.astype(np.float32), first.astype(np.int32), count.astype(np.int32)
    for array in made:
        array.flags.writeable = False
    return made


# No reassociation: four products are added up before they meet the sum, which rounds less.
@njit(nogil=True, cache=True, fastmath={"contract", "nnan", "nsz"}, error_model="numpy")
def _resize_clean(
    flat: Pixels,
    down: Floats32,
    down_first: NDArray[np.int32],
    down_count: NDArray[np.int32],
    across: Floats32,
    across_first: NDArray[np.int32],
    across_count: NDArray[np.int32],
    out: Floats32,
    scale: Floats32,
    shift: Floats32,
) -> None:
    """flat (H, W*3) -> out (h, w, 3) = clip(resized, 0, 255) * scale + shift."""
    height, width, _ = out.shape
    length = flat.shape[1]
    rows = np.empty((ROWS, length), np.float32)
    columns = np.empty((length, ROWS), np.float32)
    sums = np.empty((3, ROWS), np.float32)
    # Sums about mid-grey stay small, and float32 rounds small ones more finely.
    grey = np.float32(128)
    black, white = np.float32(0) - grey, np.float32(255) - grey
    for top in range(0, height, ROWS):
        lanes = min(ROWS, height - top)
        for r in range(ROWS):
            i = min(top + r, height - 1)  # spare lanes repeat the last row
            row, first, count = rows[r], down_first[i], down_count[i]
            w0, in0 = down[i, 0], flat[first]
            for x in range(length):
                row[x] = w0 * (np.float32(in0[x]) - grey)
            t = 1
            while t + 3 < count:  # four rows a pass: fewer trips over `row`
                w0, w1, w2, w3 = down[i, t], down[i, t + 1], down[i, t + 2], down[i, t + 3]
                in0, in1 = flat[first + t], flat[first + t + 1]
                in2, in3 = flat[first + t + 2], flat[first + t + 3]
                for x in range(length):
                    row[x] += (
                        w0 * (np.float32(in0[x]) - grey)
                        + w1 * (np.float32(in1[x]) - grey)
                        + w2 * (np.float32(in2[x]) - grey)
                        + w3 * (np.float32(in3[x]) - grey)
                    )
                t += 4
            while t < count:
                w0, in0 = down[i, t], flat[first + t]
                for x in range(length):
                    row[x] += w0 * (np.float32(in0[x]) - grey)
                t += 1
        for x in range(length):
            for r in range(ROWS):
                columns[x, r] = rows[r, x]
        for j in range(width):
            for r in range(ROWS):
                sums[0, r] = 0
                sums[1, r] = 0
                sums[2, r] = 0
            x = across_first[j] * 3
            count = across_count[j]
            t = 0
            while t + 3 < count:
                w0, w1, w2, w3 = across[j, t], across[j, t + 1], across[j, t + 2], across[j, t + 3]
                for c in range(3):
                    for r in range(ROWS):
                        sums[c, r] += (
                            w0 * columns[x + c, r]
                            + w1 * columns[x + 3 + c, r]
                            + w2 * columns[x + 6 + c, r]
                            + w3 * columns[x + 9 + c, r]
                        )
                x += 12
                t += 4
            while t < count:
                w0 = across[j, t]
                for c in range(3):
                    for r in range(ROWS):
                        sums[c, r] += w0 * columns[x + c, r]
                x += 3
                t += 1
            for r in range(lanes):
                for c in range(3):
                    value = min(max(sums[c, r], black), white) + grey
                    out[top + r, j, c] = value * scale[c] + shift[c]


def _resize_extreme(pixels: Pixels, height: int, width: int) -> Floats32:
    """The definition of `clean`, as PIL computes it, for extreme sizes.

    PIL itself would take 32 bytes for each pixel of a side, and fail beyond 2 GB.
    """
    rows, columns, _ = pixels.shape
    if columns * height < rows * width:  # whatever leaves less for the second pass
        resized = _resized_rows(_resized_rows(pixels, height, 0), width, 1)
    else:
        resized = _resized_rows(_resized_rows(pixels, width, 1), height, 0)
    return resized.clip(0, 255)


def _resized_rows(image: NDArray[Any], length: int, axis: int) -> Floats32:
    """(H, W, 3) with one axis resized; the sums are float64, as PIL's."""
    shape = list(image.shape)
    if shape[axis] == length:
        return image.astype(np.float32)
    shape[axis] = length
    out = np.empty(shape, np.float32)
    image = image.view()
    image.flags.writeable = False  # one compiled kernel for writable and read-only pixels
    if axis == 0:
        _resize_axis(image.reshape(1, len(image), -1), out.reshape(1, length, -1))
    else:
        _resize_axis(image, out)
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def _resize_axis(image: NDArray[Any], out: Floats32) -> None:
    """(outer, n, inner) -> (outer, m, inner); weights as `_weights`, made as they are needed."""
    outer, n_out, inner = out.shape
    n_in = image.shape[1]
    step = n_in / n_out
    stretch = max(step, 1.0)
    weights = np.empty(min(n_in, int(4 * stretch) + 3))
    sums = np.empty(inner)
    for i in range(n_out):
        centre = (i + 0.5) * step
        first = max(int(centre - 2 * stretch + 0.5), 0)
        count = min(int(centre + 2 * stretch + 0.5), n_in) - first
        total = 0.0
        for t in range(count):
            x = abs((t + first - centre + 0.5) * (1.0 / stretch))
            weights[t] = 0.0
            if x < 1:
                weights[t] = (1.5 * x - 2.5) * x * x + 1
            elif x < 2:
                weights[t] = (((x - 5) * x + 8) * x - 4) * -0.5
            total += weights[t]
        for t in range(count):
            weights[t] /= total
        for o in range(outer):
            sums[:] = 0
            for t in range(count):
                w = weights[t]
                for k in range(inner):
                    sums[k] += image[o, first + t, k] * w
            for k in range(inner):
                out[o, i, k] = sums[k]


def _normalised(pixels: Floats32, scale: Floats32, shift: Floats32) -> Floats32:
    normalised: Floats32 = pixels * scale + shift
    return normalised


def _resize_fast(pixels: Pixels, height: int, width: int) -> Floats32:
    import torch
    from torch.nn.functional import interpolate

    planes = torch.tensor(pixels).permute(2, 0, 1)[None]
    resized = interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy().astype(np.float32, order="C")


# In a process of its own


PIPE_BYTES = 2**20
MAX_AT_REST = 8
"""Decoding processes that wait for another image."""


def _isolated_command() -> list[str]:
    return [sys.executable, "-P", "-m", "pipeline.images"]


def _isolated_environment() -> dict[str, str]:
    """Ours, with this package first on the path, from wherever it was imported."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


class _Decoder:
    """A process that decodes one image after the other, as it is asked."""

    _at_rest: ClassVar[list[_Decoder]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._made_by = command, environment
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process ends
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=environment,
        )
        pipes = (self._child.stdin, self._child.stdout)
        self._to, self._from = (pipe.fileno() for pipe in pipes if pipe is not None)
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)

    @classmethod
    def new(cls) -> _Decoder:
        return cls(_isolated_command(), _isolated_environment())

    @classmethod
    def resting(cls) -> _Decoder:
        """One that has ended well with another image, of the same making; a new one else."""
        made_by = _isolated_command(), _isolated_environment()
        while True:
            with cls._lock:
                found = next((d for d in cls._at_rest if d._made_by == made_by), None)
                if found is None:
                    return cls(*made_by)
                cls._at_rest.remove(found)
            if found._child.poll() is None:
                return found
            found.end()  # died at rest: where memory runs out, the system takes these first

    def rest(self) -> None:
        with self._lock:
            self._at_rest.append(self)
            oldest = self._at_rest.pop(0) if len(self._at_rest) > MAX_AT_REST else None
        if oldest is not None:
            oldest._child.kill()
            oldest.end()

    def ask(self, question: bytes, seconds: float) -> bytes | None:
        """The answer; None where the process ended, or answered otherwise than agreed.

        Raises `TimeoutError`.
        """
        deadline = monotonic() + seconds
        left, answer = memoryview(question), bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(self._from, selectors.EVENT_READ)
            ready.register(self._to, selectors.EVENT_WRITE)
            while (patience := deadline - monotonic()) > 0:
                for key, _ in ready.select(patience):
                    if key.fd == self._to:
                        try:
                            left = left[os.write(self._to, left[:PIPE_BYTES]) :]
                        except BrokenPipeError:
                            left = left[:0]
                        if not left:
                            ready.unregister(self._to)
                        continue
                    block = os.read(self._from, PIPE_BYTES)
                    answer += block
                    if not block or not answer.startswith(b"{"):
                        return None
                    end = answer.find(b"\n")
                    if end >= 0 and len(answer) >= end + 1 + _pixel_bytes(answer[:end]):
                        return bytes(answer)
        self._child.kill()
        raise TimeoutError

    def end(self) -> tuple[str, str]:
        """How it ended, if by itself, and the last line that it wrote to standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(1)
        ending = _ending(self._child.poll())
        self._child.kill()
        with self._child:  # waits, and closes its pipes
            pass
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip().rpartition("\n")[2]
        self._words.close()
        return ending, words

    @classmethod
    def end_all(cls) -> None:
        while cls._at_rest:
            decoder = cls._at_rest.pop()
            decoder._child.kill()
            decoder.end()


atexit.register(_Decoder.end_all)
os.register_at_fork(after_in_child=_Decoder._at_rest.clear)  # they answer to the parent


def _pixel_bytes(head: bytes | bytearray) -> int:
    """How much follows the first line of an answer."""
    return math.prod(json.loads(head).get("shape", (0,)))


def _answer(output: bytes) -> Pixels:
    """A line of JSON, then pixels; or `BadImage`, of which there is only the line."""
    end = output.index(b"\n")
    said = json.loads(output[:end])
    if "reason" in said:
        raise BadImage(**said)
    return np.frombuffer(output, np.uint8, offset=end + 1).reshape(said["shape"])


def _ending(status: int | None) -> str:
    if status is None:
        return "answered in no known way"
    try:
        return f"killed by {Signals(-status).name}" if status < 0 else f"exit status {status}"
    except ValueError:
        return f"killed by signal {-status}"


def _serve() -> None:
    """Answer questions of `load_isolated`: a rule and an image, with pixels or why not."""
    with contextlib.suppress(OSError):  # where memory runs out, let it end here
        Path("/proc/self/oom_score_adj").write_text("1000")
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a C library prints
    while question := sys.stdin.buffer.readline():
        fields = json.loads(question)
        data = sys.stdin.buffer.read(fields.pop("bytes"))
        rule = Preprocess(**fields | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        try:
            pixels = np.ascontiguousarray(decode(data, rule))
        except BadImage as bad:
            said = json.dumps({"reason": bad.reason, "detail": bad.detail})
            output.write(said.encode() + b"\n")
        else:
            output.write(json.dumps({"shape": pixels.shape}).encode() + b"\n")
            output.write(pixels.data)
        output.flush()


if __name__ == "__main__":
    _serve()
