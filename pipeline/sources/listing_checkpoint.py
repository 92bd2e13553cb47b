"""Keeps the parts of a listing in storage, so that an interrupted listing can go on.

>>> checkpoint = ListingCheckpoint(folder, datetime.now(UTC))      # doctest: +SKIP
>>> listing = list_source(source, checkpoint=checkpoint)           # doctest: +SKIP
>>> checkpoint.remove()                                            # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.dna import FileKind, SealedFile, corrupt_if_unreadable
from pipeline.errors import CorruptFile, SourceError, StorageError
from pipeline.sources.parallel_listing import KeyRange
from pipeline.storage import Stored

PART = FileKind("listing")

RESUME_WITHIN = timedelta(hours=1)
"""An interrupted listing that is older begins anew: the source may have changed meanwhile."""


class ListingCheckpoint:
    """The parts of a listing in storage, and how far its ranges of keys were read.

    Each part states the sha256 of the one before it, so that the parts of two listings at once are
    never taken for one. Parts that are older than `RESUME_WITHIN`, or damaged, are deleted, and the
    listing begins anew.

    Attributes:
        ranges: How far each range of keys was read, by its number (see `list_pages`).
        written: When the last part that was found was written. None if there was none.
        parts_folder: Where tasks put the parts that they list. A part here states which they are.
            Each listing has a folder of its own, and keeps it when it goes on.

    Args:
        folder: Where the parts lie.
        now: The time by which the age of parts is judged.
        relist: Deletes the parts in any case.
    """

    def __init__(self, folder: str, now: datetime, *, relist: bool = False) -> None:
        self._folder = folder
        self._all_parts = f"{folder}-parts"
        self.parts_folder = f"{self._all_parts}/{secrets.token_hex(8)}"
        self._now = now
        self._reset()
        self._owned = True
        items = sorted(_objects_in(folder), key=lambda item: item.uri)
        if items and (relist or not self._load(items)):
            storage.delete_tree(folder)
            storage.delete_tree(self._all_parts)
            self._reset()
        self._next = len(self._parts)

    def _reset(self) -> None:
        self.ranges: dict[int, KeyRange] = {}
        self.written: datetime | None = None
        self._parts: list[bytes] = []
        self._last_sha256 = ""

    def _load(self, items: Sequence[Stored]) -> bool:
        """Returns whether the parts are whole and recent, after reading them."""
        for number, item in enumerate(items):
            data = storage.read(item.uri)
            try:
                file = SealedFile(data, PART, item.uri)
                file.check()
                with corrupt_if_unreadable(f"{item.uri}: its metadata cannot be read"):
                    notes = file.metadata
                    self.ranges = {
                        int(name): KeyRange(**of_range)
                        for name, of_range in notes["ranges"].items()
                    }
                    self.written = datetime.fromisoformat(notes["written"])
                    self.parts_folder = str(notes.get("parts_folder", self.parts_folder))
            except CorruptFile:
                return False
            if item.uri != self._uri(number) or notes.get("previous_sha256") != self._last_sha256:
                return False
            self._parts.append(data)
            self._last_sha256 = hashlib.sha256(data).hexdigest()
        return self.written is not None and abs(self._now - self.written) <= RESUME_WITHIN

    def take_parts(self) -> Iterator[bytes]:
        """Yields the parts that were found, and frees each."""
        while self._parts:
            yield self._parts.pop(0)

    def notes(self) -> dict[str, Any]:
        """Returns what the next part must state so that a listing can go on behind it."""
        return {
            "ranges": {str(name): asdict(of_range) for name, of_range in self.ranges.items()},
            "written": datetime.now(UTC).isoformat(),
            "previous_sha256": self._last_sha256,
            "parts_folder": self.parts_folder,
        }

    def store(self, path: Path) -> None:
        """Stores the next part.

        If that fails, or another listing has stored a part of this number, nothing more is stored:
        an interruption then costs the whole listing, and nothing worse.

        Args:
            path: The file of the part.
        """
        if self._owned:
            data = path.read_bytes()
            try:
                self._owned = storage.create(self._uri(self._next), data)
            except StorageError:
                self._owned = False
            self._last_sha256 = hashlib.sha256(data).hexdigest()
            self._next += 1

    def remove(self) -> None:
        """Deletes the parts, those of tasks, too, once the listing has been planned."""
        if self._next:
            storage.delete_tree(self._folder)
            storage.delete_tree(self.parts_folder)

    def _uri(self, number: int) -> str:
        return storage.join(self._folder, f"{number:06d}.parquet")


def _objects_in(folder: str) -> Iterator[Stored]:
    try:
        yield from storage.walk(folder)
    except SourceError:  # there is no such folder
        return
