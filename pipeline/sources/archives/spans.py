"""Reads adjacent members of a tar or a zip together, by one request.

>>> spans = spans_of(entries)                                     # doctest: +SKIP
>>> spans[0].take(entries[0], spans[0].begin(pool))               # doctest: +SKIP
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline import storage
from pipeline.errors import BadImage
from pipeline.sources.archives.access import access_kind, zip_details
from pipeline.sources.archives.tar import require_all_bytes
from pipeline.sources.archives.zip import LOCAL_EXTRA_BYTES, LOCAL_HEADER, unzip_member
from pipeline.sources.entry import Entry

SPAN_BYTES = 8 * 2**20
"""Adjacent members are read together, up to this many bytes a request. A larger one is read
alone."""

GAP_BYTES = 128 * 2**10
"""A gap between two members is read along if it is smaller: another request would cost more."""


class Span:
    """Adjacent members of one archive, which one request reads.

    The bytes are dropped when each member has been taken.

    Attributes:
        entries: The members, in order of position.

    Args:
        first: The first member.
    """

    def __init__(self, first: Entry) -> None:
        self.entries = [first]
        self._uri = first.uri
        self._identity = first.identity
        self._start, self._end = first.position, _end_of(first)
        self._lock = threading.Lock()
        self._left = {first.sort_key}
        self._reading: Future[bytes] | None = None

    def join(self, entry: Entry) -> bool:
        """Returns whether a member follows closely enough; if so, it was added."""
        end = _end_of(entry)
        if (
            entry.uri != self._uri
            or not self.entries[-1].position <= entry.position <= self._end + GAP_BYTES
            or end - self._start > SPAN_BYTES
        ):
            return False
        self.entries.append(entry)
        self._left.add(entry.sort_key)
        self._end = max(self._end, end)
        return True

    @property
    def length(self) -> int:
        """How many bytes its request asks for."""
        return self._end - self._start

    @property
    def untouched(self) -> bool:
        """Whether nothing was read yet."""
        return self._reading is None and len(self._left) == len(self.entries)

    def begin(self, pool: ThreadPoolExecutor) -> Future[bytes]:
        """Returns the bytes to come, which a thread of the pool reads once."""
        with self._lock:
            if self._reading is None:
                self._reading = pool.submit(
                    storage.read_range, self._uri, self._start, self.length, self._identity
                )
            return self._reading

    def take(self, entry: Entry, reading: Future[bytes]) -> bytes:
        """Returns the bytes of a member.

        Args:
            entry: The member.
            reading: The result of `begin`.

        Raises:
            BadImage: The member is damaged.
        """
        try:
            return self._member(entry, reading.result())
        finally:
            with self._lock:
                self._left.discard(entry.sort_key)
                if not self._left:
                    self._reading = None

    def _member(self, entry: Entry, data: bytes) -> bytes:
        view = memoryview(data)
        at = entry.position - self._start
        if access_kind(entry) == "tar":
            return bytes(_piece(view, at, entry.size))
        magic, name, extra = LOCAL_HEADER.unpack(_piece(view, at, LOCAL_HEADER.size))
        if magic != b"PK\x03\x04":
            raise BadImage("corrupt", "there is no header at the place that the directory states")
        packed, _, _ = zip_details(entry)
        at += LOCAL_HEADER.size + name + extra
        if at + packed > self.length:
            start = self._start + at
            view = memoryview(storage.read_range(self._uri, start, packed, self._identity))
            at = 0
        return unzip_member(entry, _piece(view, at, packed))


def spans_of(entries: Iterable[Entry]) -> list[Span]:
    """Returns members grouped into spans.

    Args:
        entries: Members of tars and zips, in the order of `Entry.sort_key`.
    """
    spans: list[Span] = []
    for entry in entries:
        if not spans or not spans[-1].join(entry):
            spans.append(Span(entry))
    return spans


def _piece(view: memoryview, start: int, size: int) -> memoryview:
    piece = view[start : start + size]
    require_all_bytes(len(piece), size)
    return piece


def _end_of(entry: Entry) -> int:
    """Returns where a member ends; for a zip's local header of unknown length, as a rule."""
    if access_kind(entry) == "tar":
        return entry.position + entry.size
    packed, _, _ = zip_details(entry)
    name = len(entry.member.encode())
    return entry.position + LOCAL_HEADER.size + name + LOCAL_EXTRA_BYTES + packed
