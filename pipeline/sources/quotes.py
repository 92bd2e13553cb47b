"""Reads comma-separated values, and refuses quotes by which one value would take in other rows.

A quote that is never closed makes one value of all rows behind it, and Arrow says nothing of it.
"""

from __future__ import annotations

import re
from typing import IO

from pipeline.errors import SourceError

_INSIDE = rb'[^"]*+(?:""[^"]*+)*+'
"""What stands between the two quotes of a value. A quote in it is written twice."""

REMEDY = "close it, or write the value in quotes and each quote in it twice"


class CheckedQuotes:
    """A file whose quotes are looked at while Arrow reads it from its beginning to its end.

    Args:
        file: The file.
        uri: Its name, for the error.
        delimiter: The character between two values.
    """

    closed = False

    def __init__(self, file: IO[bytes], uri: str, delimiter: str) -> None:
        self._file = file
        self._uri = uri
        ends = re.escape(delimiter.encode()) + rb"\r\n"
        # Only a quote at the beginning of a value opens it, as in Arrow. A value is passed over if
        # what follows its closing quote is seen.
        self._outside = re.compile(rb'(?:[^"]++|(?<![%b])"|"%b"(?=[%b]))*+' % (ends, _INSIDE, ends))
        self._inside = re.compile(_INSIDE)
        self._ends = re.compile(rb"[%b]" % ends)
        self._begins = True
        self._is_open = False
        # Outside of quotes the byte before the next. Inside, a quote of which the next byte tells
        # whether it closes.
        self._kept = b"\n"
        self._line = 1  # of the next byte
        self._opened = 1  # the line in which the last quote opened

    def read(self, size: int = -1) -> bytes:
        """Reads bytes.

        Args:
            size: How many at most; all if negative.

        Returns:
            The bytes.

        Raises:
            SourceError: A quote is never closed, or text follows where one is closed.
        """
        data = self._file.read(size)
        if data:
            mark = b"\xef\xbb\xbf" if self._begins else b""  # Arrow passes over it, too
            self._begins = False
            self._look(data.removeprefix(mark))
        elif size and self._is_open and not self._kept:
            raise self._error("is never closed")
        return data

    def _look(self, data: bytes) -> None:
        """Follows the quotes in what was read."""
        start = len(self._kept)
        data = self._kept + data
        at = 0 if self._is_open else start
        while True:
            if not self._is_open:
                at = _end(self._outside, data, at)
                if at == len(data):
                    self._kept = data[-1:]
                    break
                self._is_open = True
                self._opened = self._line + data.count(b"\n", start, at)
                at += 1
            at = _end(self._inside, data, at)
            if at >= len(data) - 1:
                self._kept = data[at:]
                break
            at += 1
            if not self._ends.match(data, at):
                raise self._error("is closed in the middle of a value")
            self._is_open = False
        self._line += data.count(b"\n", start)

    def _error(self, problem: str) -> SourceError:
        return SourceError(
            f"{self._uri}: the quote that begins a value in line {self._opened} {problem}; {REMEDY}"
        )


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Returns the end of what a pattern, which may match nothing, matches from a place on."""
    found = pattern.match(data, at)
    return found.end() if found else at
