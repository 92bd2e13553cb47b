"""Reads archives that cannot be read in part, by one pass from the start."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from pipeline.errors import BadImage
from pipeline.sources.archives.access import access_kind
from pipeline.sources.archives.archive_file import ArchiveFile, Contents, open_archive
from pipeline.sources.archives.arrow import rows_of_arrow
from pipeline.sources.archives.parquet import rows_of_parquet
from pipeline.sources.archives.tar import members_of_packed_tar
from pipeline.sources.entry import Entry

ARCHIVE_READERS: dict[str, Callable[[ArchiveFile, Sequence[Entry]], Contents]] = {
    "tar gz": members_of_packed_tar,
    "tar bz2": members_of_packed_tar,
    "tar xz": members_of_packed_tar,
    "parquet": rows_of_parquet,
    "arrow": rows_of_arrow,
}
"""How to read the members, by the kind of their access."""


class OnePass:
    """Reads an archive once, from its start, for members asked for in about their order.

    Args:
        entries: The members of one archive, in order of position.
        keep: How many members are kept that were passed and not asked for yet.
        max_bytes: Members that turn out to be larger are not kept, and fail.
    """

    def __init__(self, entries: Sequence[Entry], keep: int, max_bytes: int) -> None:
        self._entries = entries
        self._keep = keep
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, str], bytes | BadImage] = OrderedDict()
        self._contents: Contents | None = None
        self._passed: tuple[str, int, str] | None = None

    def fetch(self, entry: Entry) -> bytes:
        """Returns the bytes of a member.

        Args:
            entry: One of the members. If it was passed and is no longer kept, a new pass begins.

        Raises:
            BadImage: The member or the archive is damaged.
        """
        with self._lock:
            if entry.sort_key not in self._kept:
                self._pass_until(entry)
            content = self._kept.pop(entry.sort_key)
        if isinstance(content, BadImage):
            raise content
        return content

    def close(self) -> None:
        """Closes the archive and drops what is kept."""
        with self._lock:
            if self._contents is not None:
                self._contents.close()
            self._kept.clear()

    def _pass_until(self, entry: Entry) -> None:
        if self._contents is None or self._passed is None or self._passed >= entry.sort_key:
            self._contents = self._begin()
        try:
            for found, content in self._contents:
                self._passed = found.sort_key
                self._kept[found.sort_key] = self._bounded(content)
                while len(self._kept) > self._keep:
                    self._kept.popitem(last=False)
                if found == entry:
                    return
        except BaseException:
            self._contents = None
            raise

    def _bounded(self, content: bytes | BadImage) -> bytes | BadImage:
        if isinstance(content, BadImage) or len(content) <= self._max_bytes:
            return content
        return BadImage("too_many_bytes", f"{len(content)} bytes; the limit is {self._max_bytes}")

    def _begin(self) -> Contents:
        first = self._entries[0]
        with open_archive(first.uri, first.identity) as file:
            yield from ARCHIVE_READERS[access_kind(first)](file, self._entries)
