"""Keeps the parts of a listing in storage, so that an interrupted listing can go on.

>>> checkpoint = ListingCheckpoint(folder, datetime.now(UTC))      # doctest: +SKIP
>>> listing = list_source(source, checkpoint=checkpoint)           # doctest: +SKIP
>>> checkpoint.remove()                                            # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
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


RESUMED = "resumed"
"""The name of the object that marks a folder of parts that another listing goes on with."""


class ListingCheckpoint:
    """The parts of a listing in storage, and how far its ranges of keys were read.

    Each part states the sha256 of the one before it, so that the parts of two listings at once are
    never taken for one. Parts that are older than `RESUME_WITHIN`, or damaged, are deleted, and the
    listing begins anew.

    Attributes:
        ranges: How far each range of keys was read, by its number (see `list_pages`).
        written: When the last part that was found was written. None if there was none.
        report: The digest of the report of S3 Inventory that is read. Empty for a listing.
        parts_folder: Where tasks put the parts that they list. A part here states which they are.
            Each listing has a folder of its own. One that goes on with another's marks its folder.

    Args:
        folder: Where the parts lie.
        now: The time by which the age of parts is judged.
        relist: Deletes the parts in any case. Those of tasks stay, as another job may read them.
        may_exist: Whether there may be parts. If not, they are not looked for.
    """

    def __init__(
        self, folder: str, now: datetime, *, relist: bool = False, may_exist: bool = True
    ) -> None:
        self._folder = folder
        self.parts_folder = f"{folder}-parts/{secrets.token_hex(8)}"
        self._now = now
        self._reset()
        self._owned = True
        items = sorted(_objects_in(folder) if may_exist else (), key=lambda item: item.uri)
        if items and (relist or not self._load(items)):
            self._begin_anew()
        self._next = len(self._parts)

    def _reset(self) -> None:
        self.ranges: dict[int, KeyRange] = {}
        self.written: datetime | None = None
        self.report = ""
        self._parts: deque[Path] = deque()
        self._last_sha256 = ""
        self._next = 0

    def _begin_anew(self) -> None:
        storage.delete_tree(self._folder)
        self._reset()

    def read_report(self, report: str) -> None:
        """Begins anew if the parts that were found are of another report, or of a listing.

        The same name may have stood for a report, and stand for a folder now.

        Args:
            report: The digest of the report; empty for a listing.
        """
        if self._parts and self.report != report:
            self._begin_anew()
        self.report = report

    def _load(self, items: Sequence[Stored]) -> bool:
        """Returns whether the parts are whole and recent, after reading them.

        Raises:
            StorageError: The disk for temporary files has no room.
        """
        theirs = set()
        self._found = storage.ScratchFolder("listed")
        for number, item in enumerate(items):
            try:
                data = storage.read(item.uri)
                file = SealedFile(data, PART, item.uri)
                file.check()
                with corrupt_if_unreadable(f"{item.uri}: its metadata cannot be read"):
                    notes = file.metadata
                    self.ranges = {
                        int(name): KeyRange(**of_range)
                        for name, of_range in notes["ranges"].items()
                    }
                    self.written = datetime.fromisoformat(notes["written"])
                    self.report = str(notes["report"])
                    if notes.get("stored"):
                        theirs.add(str(notes["parts_folder"]))
            except (CorruptFile, SourceError):  # the job that wrote it may have ended meanwhile
                return False
            if item.uri != self._uri(number) or notes.get("previous_sha256") != self._last_sha256:
                return False
            try:
                self._parts.append(Path(self._found.path, f"{number}.parquet"))
                self._parts[-1].write_bytes(data)
            except OSError as error:
                raise StorageError(
                    f"the parts of an interrupted listing cannot be written to {self._found.path}: "
                    f"{error}; set TMPDIR to a disk with more room"
                ) from error
            self._last_sha256 = hashlib.sha256(data).hexdigest()
        if self.written is None or abs(self._now - self.written) > RESUME_WITHIN:
            return False
        for folder in theirs:
            storage.create(storage.join(folder, RESUMED), b"")
        # Whose parts they are removes these first, and looks for the note after that. So if they
        # are still there now, the note is found.
        return not theirs or storage.exists(items[0].uri)

    def take_parts(self) -> Iterator[bytes]:
        """Yields the parts that were found, and frees each. They lie on the disk until then."""
        while self._parts:
            path = self._parts.popleft()
            yield path.read_bytes()
            path.unlink()

    def notes(self) -> dict[str, Any]:
        """Returns what the next part must state so that a listing can go on behind it."""
        return {
            "ranges": {str(name): asdict(of_range) for name, of_range in self.ranges.items()},
            "written": datetime.now(UTC).isoformat(),
            "report": self.report,
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
        """Deletes the parts once the listing has been planned.

        Parts of tasks stay if another listing has gone on with them, which may still read them. A
        garbage collection removes them.
        """
        if self._next:
            storage.delete_tree(self._folder)
            if not storage.exists(storage.join(self.parts_folder, RESUMED)):
                storage.delete_tree(self.parts_folder)

    def _uri(self, number: int) -> str:
        return storage.join(self._folder, f"{number:06d}.parquet")


def _objects_in(folder: str) -> Iterator[Stored]:
    try:
        yield from storage.walk(folder)
    except SourceError:  # there is no such folder
        return
