"""sources.archives.members: TODO-DOC"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from urllib.parse import unquote

from pipeline import storage
from pipeline.errors import BadImage, SourceError
from pipeline.sources.archives.arrow import rows_of_arrow
from pipeline.sources.archives.file import ArchiveFile, Contents, blaming_archive, open_archive
from pipeline.sources.archives.index import access_kind
from pipeline.sources.archives.parquet import rows_of_parquet
from pipeline.sources.archives.spans import require_whole, spans_of
from pipeline.sources.archives.tar import ForwardStream, packing_of
from pipeline.sources.manifest import Entry

SPANS_AHEAD = 4


class Members:
    """Reads the members of one shard, from any thread, at best in about their order.

    Every entry may be asked for once at little cost; again, it is read again. At most `ahead`
    members that were come by and not asked for yet are kept.
    """

    def __init__(self, entries: Sequence[Entry], max_bytes: int, ahead: int) -> None:
        wanted = [e for e in entries if e.access and e.size <= max_bytes]
        self._spans = spans_of([e for e in wanted if access_kind(e) in ("tar", "zip")])
        self._span_of = {e.place: i for i, span in enumerate(self._spans) for e in span.entries}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(SPANS_AHEAD, "span")
        self._pass_of: dict[str, _Pass] = {}
        in_passes = [e for e in wanted if access_kind(e) in _PASSES]
        for uri, group in groupby(sorted(in_passes, key=lambda e: e.place), lambda e: e.uri):
            self._pass_of[uri] = _Pass(tuple(group), ahead)

    def fetch(self, entry: Entry) -> bytes:
        """The bytes of the candidate, exactly those that were listed; of a single object too.

        Raises `BadImage` for a defect of the member or its archive, `SourceError` where the archive
        is not what was listed.
        """
        if not entry.access:
            return storage.read(entry.uri, entry.identity)
        kind = access_kind(entry)
        if kind == "broken":
            _, reason, detail = entry.access.split(" ")
            raise BadImage(reason, unquote(detail))
        if kind in _PASSES:
            return self._pass_of[entry.uri].fetch(entry)
        if kind not in ("tar", "zip"):
            raise SourceError(
                f"{entry.uri}::{entry.member} is to be read by {entry.access!r}, which this "
                "version of vdna does not know"
            )
        span = self._spans[self._span_of[entry.place]]
        return span.take(entry, self._begin(entry))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for each in self._pass_of.values():
            each.close()

    def _begin(self, entry: Entry) -> Future[bytes]:
        """The reading of the entry's span; those of the next ones begin too."""
        at = self._span_of[entry.place]
        with self._lock:
            first, *others = self._spans[at : at + SPANS_AHEAD]
            reading = first.begin(self._pool)
            for span in others:
                if span.untouched:
                    span.begin(self._pool)
        return reading


# One pass over what cannot be read in part


def _packed_members(file: ArchiveFile, entries: Sequence[Entry]) -> Contents:
    """Listing passed all of it before: a defect here would be met again by a pass of its own."""
    stream = ForwardStream(file, packing_of(file))
    for entry in entries:
        with blaming_archive(file):
            stream.skip(entry.position)
            content = stream.read_unchecked(entry.size)
            require_whole(memoryview(content), entry.size)
        yield entry, content


_PASSES: dict[str, Callable[[ArchiveFile, Sequence[Entry]], Contents]] = {
    "tar gz": _packed_members,
    "tar bz2": _packed_members,
    "tar xz": _packed_members,
    "parquet": rows_of_parquet,
    "arrow": rows_of_arrow,
}


class _Pass:
    """Reads an archive once, from its start, for the members asked for in about their order."""

    def __init__(self, entries: Sequence[Entry], keep: int) -> None:
        self._entries = entries
        self._keep = keep
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, str], bytes | BadImage] = OrderedDict()
        self._contents: Contents | None = None
        self._passed: tuple[str, int, str] | None = None

    def fetch(self, entry: Entry) -> bytes:
        with self._lock:
            if entry.place not in self._kept:
                self._pass_until(entry)
            content = self._kept.pop(entry.place)
        if isinstance(content, BadImage):
            raise content
        return content

    def close(self) -> None:
        with self._lock:
            if self._contents is not None:
                self._contents.close()
            self._kept.clear()

    def _pass_until(self, entry: Entry) -> None:
        if self._contents is None or self._passed is None or self._passed >= entry.place:
            self._contents = self._begin()
        try:
            for found, content in self._contents:
                self._passed = found.place
                self._kept[found.place] = content
                while len(self._kept) > self._keep:
                    self._kept.popitem(last=False)
                if found == entry:
                    return
        except BaseException:
            self._contents = None
            raise

    def _begin(self) -> Contents:
        first = self._entries[0]
        with open_archive(first.uri, first.identity) as file:
            yield from _PASSES[access_kind(first)](file, self._entries)
