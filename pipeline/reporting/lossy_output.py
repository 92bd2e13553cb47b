"""Drops what cannot be written, as messages may be lost, but no work.

>>> out = lossy(open("/dev/full", "w", encoding="utf-8"))                # doctest: +SKIP
>>> print("still at work", file=out, flush=True)                         # doctest: +SKIP
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TextIO, cast


def lossy(out: TextIO) -> TextIO:
    """Makes a stream drop what nobody reads, or what its full disk does not take.

    Args:
        out: The stream.

    Returns:
        The same, but its errors are not raised. Nothing more comes out of it if it is closed.
    """
    return cast(TextIO, _LossyOutput(out))


class _LossyOutput:
    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._out.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._out.flush()
