"""Image decoders of the user's own: from a file's bytes to RGB pixels, registered by name.

    >>> register_decoder("raw16", read_raw16, version="1")               # doctest: +SKIP
    >>> make_dna("scans/", decoder="raw16")                              # doctest: +SKIP

A spec states `NAME@VERSION`. Workers are sent `module:function`, and import it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SpecMismatch, UsageError
from pipeline.images.nvjpeg import (
    NVJPEG,
    is_nvjpeg,
    pixels_by_nvjpeg,
    require_nvjpeg,
    stated_nvjpeg,
)
from pipeline.plugins import PLUGIN_NAME, Registry, imported, reference_to

Pixels = NDArray[np.uint8]

Decode = Callable[[bytes], Pixels]


@dataclass(frozen=True)
class OwnDecoder:
    """A decoder as it was registered.

    Attributes:
        function: `module:function` that decodes.
        version: The version of what it computes.
    """

    function: str
    version: str


_OWN: Registry[OwnDecoder] = Registry("vdna.decoders", "decoder")

_sent: dict[str, str] = {}
"""`module:function` of decoders that another process has registered, by `NAME@VERSION`."""


def register_decoder(name: str, decode: Decode, *, version: str) -> None:
    """Makes an image decoder of your own known by a name, for `decoder=` and `--decoder`.

    It is known in this process, and in every worker of the builds that this process starts. For
    the commands, an installed package makes it known by an entry point of the group
    `vdna.decoders`: a function that calls this one (see docs/networks.md).

    Args:
        name: The name of the decoder. Letters, digits, `.`, `_` and `-`.
        decode: Turns the bytes of a file into RGB pixels, uint8 (height, width, 3), upright. It is
            called from several threads at once. A function at the top level of a module that every
            worker can import. What it raises makes the image a failure, with the reason "corrupt",
            or that of a `BadImage`. A `MemoryError` or `TransientError` blames no image: it is
            tried again.
        version: The version of what it computes. The spec states it with the name, so change it
            whenever the pixels of any file change. Letters, digits, `.`, `_` and `-`.

    Raises:
        UsageError: If another decoder has the name, or workers cannot import `decode`.
    """
    if name == NVJPEG:
        raise UsageError(f"the decoder {NVJPEG!r} is built in; register yours by another name")
    if not PLUGIN_NAME.fullmatch(version):
        raise UsageError(
            f"the version of the decoder {name!r} is {version!r}; use letters, digits, '.', '_' "
            "and '-', as in '1' or '2.0'"
        )
    reference = reference_to(decode, f"the decoder {name!r} is a function")
    _OWN.add(name, OwnDecoder(reference, version))


def stated_decoder(name: str) -> str:
    """Returns `NAME@VERSION` of a decoder, as a spec states it.

    Raises:
        UsageError: If no decoder has the name; the message lists those that there are.
    """
    if name == NVJPEG:
        return stated_nvjpeg()
    return f"{name}@{_found(name).version}"


def decoder_function(stated: str) -> str:
    """Returns `module:function` of the decoder that a spec states as `NAME@VERSION`.

    Raises:
        UsageError: If no decoder has the name.
        SpecMismatch: If the decoder has another version here.
    """
    if is_nvjpeg(stated):
        require_nvjpeg(stated)
        return reference_to(pixels_by_nvjpeg, NVJPEG)
    if stated in _sent:
        return _sent[stated]
    name = stated.partition("@")[0]
    found = _found(name)
    if stated != f"{name}@{found.version}":
        raise SpecMismatch(
            f"the spec states the decoder {stated}; the decoder {name!r} that is registered here "
            f"has version {found.version}"
        )
    return found.function


def use_decoder(stated: str, function: str) -> None:
    """Makes a decoder known that another process has registered.

    Args:
        stated: `NAME@VERSION`, as the spec states it.
        function: `module:function` that decodes.

    Raises:
        UsageError: If this process cannot import the function.
        SpecMismatch: If it is the built-in decoder, and has another version here.
    """
    if is_nvjpeg(stated):
        require_nvjpeg(stated)
        return
    imported(function)
    _sent[stated] = function


def own_decoder(stated: str) -> Decode:
    """Returns the function of the decoder that a spec states as `NAME@VERSION`.

    Raises:
        UsageError: If the decoder is unknown, or cannot be imported.
        SpecMismatch: If the decoder has another version here.
    """
    decode: Decode = imported(decoder_function(stated))
    return decode


def _found(name: str) -> OwnDecoder:
    found = _OWN.find(name)
    if found is None:
        raise UsageError(
            f"no decoder {name!r}; there are: {', '.join([NVJPEG, *_OWN.names()])}. Register "
            "your own with `register_decoder`"
        )
    return found
