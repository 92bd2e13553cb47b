"""Decodes JPEGs on a GPU: the built-in decoder `nvjpeg`, which is NVIDIA's, through TorchCodec.

    >>> stated_nvjpeg()                                                  # doctest: +SKIP
    'nvjpeg@0.17.0'

It takes the JPEGs that it surely reads as `decoding` does: of 8 bits, grey or of YCbCr. Every other
file, and every JPEG that it refuses, is decoded as ever. Orientation, limits and the search for
damage stay those of `decoding`, too. Only the pixels differ, by rounding, and so the spec states
the decoder with the version of TorchCodec, whose wheel brings nvJPEG along.
"""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SpecMismatch, TransientError, UsageError
from pipeline.images.file_damage import first_scan
from pipeline.spec import Preprocess
from pipeline.wording import option

NVJPEG = "nvjpeg"
"""The decoder's name."""

LIBRARY = "torchcodec"

_EXIF = re.compile(rb"\xff\xe1(?=..Exif)", re.DOTALL)

_UNKNOWN = b"\xff\xef"
"""A marker that nobody reads, of a segment that is passed over."""

_REFUSAL = re.compile(r"chroma subsampling|(?i:nvjpeg|image info|decode).*\b[34]\b")
"""What TorchCodec says of a file that nvJPEG does not take: its status is 3 for a bad JPEG, and 4
for one of a kind that it does not support."""

_of_thread = threading.local()


def is_nvjpeg(stated: str | None) -> bool:
    """Whether a spec's decoder, as `NAME@VERSION`, is this one."""
    return stated is not None and stated.partition("@")[0] == NVJPEG


def stated_nvjpeg() -> str:
    """Returns `NAME@VERSION`, as a spec states it.

    Raises:
        UsageError: If TorchCodec is not installed.
    """
    try:
        return f"{NVJPEG}@{version(LIBRARY)}"
    except PackageNotFoundError:
        raise UsageError(
            f"the decoder {NVJPEG} needs TorchCodec, which is not installed; "
            f"pip install 'vdna-pipeline[{NVJPEG}]', on the workers too"
        ) from None


@functools.cache
def require_nvjpeg(stated: str) -> None:
    """Checks that this process has the version that a spec states.

    Args:
        stated: `NAME@VERSION`.

    Raises:
        SpecMismatch: If it has another version.
        UsageError: If TorchCodec is not installed, or cannot be loaded.
    """
    try:
        from torchcodec import decoders  # noqa: F401  # to see that it can be
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"the decoder {NVJPEG} needs TorchCodec, which cannot be loaded here: {error}. Install "
            "the version that fits torch's CUDA build"
        ) from error
    if stated != stated_nvjpeg():
        raise SpecMismatch(
            f"the spec states the decoder {stated}, and {stated_nvjpeg()} is installed here; "
            f"pip install {LIBRARY}=={stated.partition('@')[2]}"
        )


def without_nvjpeg(rule: Preprocess) -> Preprocess:
    """Returns a rule that shows the same images where there may be no GPU."""
    return replace(rule, decoder=None) if is_nvjpeg(rule.decoder) else rule


def pixels_by_nvjpeg(data: bytes, device: str = "cuda") -> NDArray[np.uint8] | None:
    """Decodes a JPEG as it is stored, whatever its EXIF says of its orientation.

    Args:
        data: The bytes of the file.
        device: The kind of device that decodes. TorchCodec's `cpu` is not nvJPEG; it is for tests.

    Returns:
        RGB pixels, uint8 (height, width, 3), or None if it refuses the file.

    Raises:
        UsageError: If there is no such GPU.
        TransientError: If it fails for any other reason, which is not the image's fault. Another
            decoder's pixels would then stand under this one's name.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"the decoder {NVJPEG} decodes on a GPU, and torch finds none on this machine; give "
            f"workers one by {option('gpus_per_worker', 1)}"
        )
    from torchcodec.decoders import decode_jpeg

    start = first_scan(data)
    unturned = _EXIF.sub(_UNKNOWN, data[:start]) + data[start:]
    try:
        with _stream(device):
            found = decode_jpeg(unturned, mode="RGB", device=device)
            pixels: NDArray[np.uint8] = found.permute(1, 2, 0).contiguous().cpu().numpy()
    except RuntimeError as error:
        if _REFUSAL.search(str(error)):
            return None
        raise TransientError(f"nvJPEG failed, and not by the image's fault: {error}") from error
    return pixels


def _stream(device: str) -> Any:
    """Makes a stream of this thread's own the current one: it does not wait for the network."""
    import torch

    if device == "cuda" and not hasattr(_of_thread, "stream"):
        _of_thread.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no type
    return torch.cuda.stream(getattr(_of_thread, "stream", None))
