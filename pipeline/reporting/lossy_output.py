"""Drops what cannot be written, as messages may be lost, but no work.

>>> out = lossy(open("/dev/full", "w", encoding="utf-8"))                # doctest: +SKIP
>>> print("still at work", file=out, flush=True)                         # doctest: +SKIP
"""

from __future__ import annotations

from contextlib import suppress
from io import StringIO
from typing import Any, TextIO, cast


def lossy(out: TextIO | None) -> TextIO:
    """Makes a stream drop what nobody reads, or what its full disk does not take.

    Args:
        out: The stream. None, as Python has it for a closed stderr, drops all.

    Returns:
        The same, but its errors are not raised. Nothing more comes out of it if it is closed. What
        its encoding does not have is written as Python escapes it.
    """
    return cast(TextIO, _LossyOutput(_Nowhere() if out is None else out))


class _Nowhere(StringIO):
    def write(self, text: str) -> int:
        return len(text)


class _LossyOutput:
    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            try:
                self._out.write(text)
            except UnicodeEncodeError as error:
                self._out.write(text.encode(error.encoding, "backslashreplace").decode())
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._out.flush()
