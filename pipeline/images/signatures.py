"""Says what a file is that PIL cannot decode, by the first bytes of its content."""

from __future__ import annotations

import re

from PIL import Image, UnidentifiedImageError

from pipeline.errors import BadImage

CUT = re.compile("truncat|not enough", re.IGNORECASE)
"""Words in PIL's messages about a file that ends too early."""

LONG_NOTES = re.compile("MAX_TEXT_CHUNK|MAX_TEXT_MEMORY")
"""Words in PIL's messages about a PNG with a text or profile that is too long for PIL."""

BOM, MARKUP = rb"(\xef\xbb\xbf)?\s*", rb"(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)?"
"""Patterns of the bytes that may precede a text, and an HTML page."""

OTHER_SIGNATURES: tuple[tuple[str, bytes, str], ...] = (
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
"""The kinds of files that PIL cannot open: the reason, a pattern of the first 512 bytes, and the
name of the kind. The first match is taken."""


def blame(data: bytes, error: Exception) -> Exception:
    """Returns the error that PIL's exception stands for.

    Args:
        data: The bytes of the file.
        error: What PIL raised when it opened or decoded them.

    Returns:
        A `BadImage`, or a `MemoryError` if memory ran out.
    """
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return BadImage("too_many_pixels", str(error))
    unidentified = isinstance(error, UnidentifiedImageError)
    if unidentified:
        reason, detail = _unidentified(data)
    else:
        reason, detail = "corrupt", f"{type(error).__name__}: {error}"
        if LONG_NOTES.search(detail):
            return BadImage("unsupported", f"its texts or its profile are too long: {error}")
    if "out of memory" in detail.lower():
        return MemoryError(detail)
    if reason == "corrupt" and (CUT.search(detail) or _ends_early(data)):
        reason = "truncated"
    return BadImage(reason, detail)


def _unidentified(data: bytes) -> tuple[str, str]:
    head = data[:512]
    start = f"starts with {head[:12]!r}"
    for reason, pattern, kind in OTHER_SIGNATURES:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return reason, f"{start}; looks like {kind}"
    return "not_an_image", start


def _ends_early(data: bytes) -> bool:
    """Returns whether the file states that it is longer than it is.

    WebP states its length, TIFF the place of its directory, AVIF the lengths of its boxes.
    JPEG 2000 ends with a marker.
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
    """Returns where the boxes of an ISO media file end, by the lengths that they state."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:  # of 64 bits, or to the end, or damaged
            break
        at += size
    return at
