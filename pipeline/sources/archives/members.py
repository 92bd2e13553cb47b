"""Reads the images of a shard, wherever they lie.

>>> with closing(Members(shard.members, max_bytes, ahead=64)) as members:   # doctest: +SKIP
...     data = members.fetch(shard.members[0])
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby

from pipeline import storage
from pipeline.errors import BadImage, SourceError, TooManyBytes
from pipeline.sources.archives.access import access_kind, broken_reason
from pipeline.sources.archives.one_pass import ARCHIVE_READERS, OnePass
from pipeline.sources.archives.spans import SPAN_BYTES, spans_of
from pipeline.sources.entry import Entry

SPANS_AHEAD = 4
"""Spans that are read at a time, if they have no more than `SPAN_BYTES` on average."""


def is_read_alone(entry: Entry) -> bool:
    """Returns whether a member can be read without those before it in its archive."""
    return access_kind(entry) not in ARCHIVE_READERS


class Members:
    """Reads the members of one shard, from any thread, at best in about their order.

    Each entry may be asked for once at little cost; asked for again, it is read again.

    Args:
        entries: The members of the shard.
        max_bytes: What is larger is not read, whatever its size was said to be.
        ahead: How many members are kept that were passed and not asked for yet.
    """

    def __init__(self, entries: Sequence[Entry], max_bytes: int, ahead: int) -> None:
        wanted = [e for e in entries if e.access and e.size <= max_bytes]
        self._spans = spans_of([e for e in wanted if access_kind(e) in ("tar", "zip")])
        self._span_of = {e.sort_key: i for i, span in enumerate(self._spans) for e in span.entries}
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(SPANS_AHEAD, "span")
        self._pass_of: dict[str, OnePass] = {}
        in_passes = sorted(
            (e for e in wanted if access_kind(e) in ARCHIVE_READERS), key=lambda e: e.sort_key
        )
        for uri, of_archive in groupby(in_passes, lambda e: e.uri):
            self._pass_of[uri] = OnePass(tuple(of_archive), ahead, max_bytes)

    def fetch(self, entry: Entry) -> bytes:
        """Returns the bytes of a candidate, exactly those that were listed.

        Args:
            entry: A member of the shard: in an archive, or an object of its own.

        Raises:
            BadImage: The member or its archive is damaged, or the image is too large.
            SourceError: The object or the archive is not what was listed.
        """
        if entry.size > self._max_bytes:
            raise BadImage("too_many_bytes", f"{entry.size} bytes; the limit is {self._max_bytes}")
        if not entry.access:
            return self._object(entry)
        kind = access_kind(entry)
        if kind == "broken":
            bad = broken_reason(entry.access)
            raise bad
        if kind in ARCHIVE_READERS:
            return self._pass_of[entry.uri].fetch(entry)
        if kind not in ("tar", "zip"):
            raise SourceError(
                f"{entry.uri}::{entry.member} is to be read by {entry.access!r}, which this "
                "version of vdna does not know"
            )
        span = self._spans[self._span_of[entry.sort_key]]
        return span.take(entry, self._begin(entry))

    def _object(self, entry: Entry) -> bytes:
        """Reads an object of its own, and not much more of it than what was listed.

        Returns:
            Its bytes.

        Raises:
            BadImage: Its size is not known, and is beyond the limit.
            SourceError: It does not have the size that was listed.
        """
        most = entry.size or self._max_bytes
        try:
            data = storage.read(entry.uri, entry.identity, most)
        except TooManyBytes as error:
            if entry.size:
                refusal = _of_another_size(entry, "more")
                raise refusal from error
            raise BadImage("too_many_bytes", f"over {most} bytes, which is the limit") from error
        if len(data) < entry.size:
            refusal = _of_another_size(entry, str(len(data)))
            raise refusal
        return data

    def close(self) -> None:
        """Ends all reading."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for each in self._pass_of.values():
            each.close()

    def _begin(self, entry: Entry) -> Future[bytes]:
        """Returns the reading of the entry's span, and begins that of the next ones, too.

        Those that are begun ahead stay within a number of bytes: a large member is a span alone.
        """
        at = self._span_of[entry.sort_key]
        with self._lock:
            first, *others = self._spans[at : at + SPANS_AHEAD]
            reading = first.begin(self._pool)
            length = first.length
            for span in others:
                length += span.length
                if length > SPANS_AHEAD * SPAN_BYTES:
                    break
                if span.untouched:
                    span.begin(self._pool)
        return reading


def _of_another_size(entry: Entry, found: str) -> SourceError:
    """Returns the error that an object has the identity, and not the size, that was listed."""
    return SourceError(
        f"{entry.uri} was listed with {entry.size} bytes and has {found}, under the identity that "
        f"was listed ({entry.identity}); if a table states its size, correct it there"
    )
