"""sources.archives.spans: TODO-DOC"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline import storage
from pipeline.errors import BadImage
from pipeline.sources.archives.index import access_kind
from pipeline.sources.archives.zip import LOCAL_EXTRA_BYTES, LOCAL_HEADER, unzip_member
from pipeline.sources.manifest import Entry

SPAN_BYTES = 8 * 2**20
"""Adjacent members are read together, up to so many bytes a request."""

GAP_BYTES = 128 * 2**10
"""What lies between two members is read along, where it is less than another request costs."""


# Spans of a tar or a zip


class _Span:
    """Adjacent members, read by one request, and dropped when each was taken."""

    def __init__(self, first: Entry) -> None:
        self.entries = [first]
        self._uri = first.uri
        self._identity = first.identity
        self._start, self._end = first.position, _reach(first)
        self._lock = threading.Lock()
        self._left = {first.place}
        self._reading: Future[bytes] | None = None

    def join(self, entry: Entry) -> bool:
        """Whether the entry follows closely enough; if so, it is read along."""
        end = _reach(entry)
        if (
            entry.uri != self._uri
            or not self.entries[-1].position <= entry.position <= self._end + GAP_BYTES
            or end - self._start > SPAN_BYTES
        ):
            return False
        self.entries.append(entry)
        self._left.add(entry.place)
        self._end = max(self._end, end)
        return True

    @property
    def untouched(self) -> bool:
        return self._reading is None and len(self._left) == len(self.entries)

    def begin(self, pool: ThreadPoolExecutor) -> Future[bytes]:
        with self._lock:
            if self._reading is None:
                self._reading = pool.submit(
                    storage.read_range,
                    self._uri,
                    self._start,
                    self._end - self._start,
                    self._identity,
                )
            return self._reading

    def take(self, entry: Entry, reading: Future[bytes]) -> bytes:
        try:
            return self._member(entry, reading.result())
        finally:
            with self._lock:
                self._left.discard(entry.place)
                if not self._left:
                    self._reading = None

    def _member(self, entry: Entry, data: bytes) -> bytes:
        view = memoryview(data)
        at = entry.position - self._start
        if access_kind(entry) == "tar":
            return bytes(require_whole(view[at : at + entry.size], entry.size))
        header = require_whole(view[at : at + LOCAL_HEADER.size], LOCAL_HEADER.size)
        magic, name, extra = LOCAL_HEADER.unpack(header)
        if magic != b"PK\x03\x04":
            raise BadImage("corrupt", "there is no header where the directory says")
        packed = int(entry.access.split(" ")[1])
        at += LOCAL_HEADER.size + name + extra
        if at + packed > self._end - self._start:
            start = self._start + at
            view = memoryview(storage.read_range(self._uri, start, packed, self._identity))
            at = 0
        return unzip_member(entry, require_whole(view[at : at + packed], packed))


def require_whole(data: memoryview, size: int) -> memoryview:
    if len(data) < size:
        raise BadImage("truncated", f"{len(data)} of its {size} bytes are in the archive")
    return data


def _reach(entry: Entry) -> int:
    """Where the entry ends, at the latest as a rule."""
    if access_kind(entry) == "tar":
        return entry.position + entry.size
    name = len(entry.member.encode())
    packed = int(entry.access.split(" ")[1])
    return entry.position + LOCAL_HEADER.size + name + LOCAL_EXTRA_BYTES + packed


def spans_of(entries: Iterable[Entry]) -> list[_Span]:
    spans: list[_Span] = []
    for entry in entries:
        if not spans or not spans[-1].join(entry):
            spans.append(_Span(entry))
    return spans
