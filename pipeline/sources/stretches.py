"""Lists a stretch of a very large prefix of S3 as one task, and keeps it in storage, sorted.

>>> found = Stretch("s3://bucket/photos", Rules(), (KeyRange("a"),), folder).run()  # doctest: +SKIP
>>> found.parts[0].rows, found.left                                        # doctest: +SKIP
(100000, (KeyRange(after='b7', until=None, done=False),))
"""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.dna import SealedFile, SealedWriter, cut_rows
from pipeline.errors import CorruptFile, SourceError, TransientError
from pipeline.events import ignore
from pipeline.sources.blocks import block_ends
from pipeline.sources.entries_file import OBJECTS_SCHEMA, REPEATING
from pipeline.sources.listing import PART_ENTRIES, StoredPart
from pipeline.sources.listing_checkpoint import PART
from pipeline.sources.parallel_listing import KeyRange
from pipeline.sources.rules import Rules
from pipeline.sources.sorted_rows import rows_up_to, sort_pages
from pipeline.sources.source_lister import SourceLister
from pipeline.storage import Stored
from pipeline.wording import option

STRETCH_KEYS = 2**18
"""After how many files a task ends: some ten seconds of listing. It holds them in memory."""

LARGEST_STRETCH = 2**40
"""No task holds so many candidates: it writes nothing before it ends."""

PART_LAYOUT: dict[str, Any] = {
    "compression": "lz4",
    "write_statistics": False,
    "use_dictionary": REPEATING,
}
"""How a part is written. It is read once or twice and then removed, so it need not be small."""


@dataclass(frozen=True)
class FoundStretch:
    """What a task has listed.

    Attributes:
        parts: Where the candidates are.
        left: What it has not read of its ranges of keys.
        ignored: How many files were ignored, by kind.
        filtered: How many files the rules leave out.
        archives: Archives, which nobody has looked into.
        classes: The folders of the candidates, while they look like classes.
        is_single: Whether the candidates are single images without groups and labels.
    """

    parts: tuple[StoredPart, ...]
    left: tuple[KeyRange, ...]
    ignored: Mapping[str, int]
    filtered: int
    archives: tuple[Stored, ...]
    classes: tuple[str, ...] | None
    is_single: bool


@dataclass(frozen=True)
class Stretch:
    """Ranges of keys for one task.

    Attributes:
        source: The source as the user named it.
        rules: Which candidates count.
        ranges: The ranges of keys.
        folder: Where the candidates go.
        keys: After how many files the task ends.
        block_images: How many images a block has on average.
    """

    source: str
    rules: Rules
    ranges: tuple[KeyRange, ...]
    folder: str
    keys: int
    block_images: int

    def run(self) -> FoundStretch:
        """Lists the ranges until they are read or the task has enough."""
        ranges = dict(enumerate(self.ranges))
        lister = SourceLister(self.source, self.rules, None, ignore, ranges, LARGEST_STRETCH)
        lister.list_objects(None, self.keys)
        found = lister.candidates
        left = tuple(each for each in lister.ranges.values() if not each.done)
        cuts = [storage.join(lister.uri, key) for key in gap_ends(left, self.ranges)]
        rows = found.take_table()
        if lister.is_single:  # the other columns say nothing
            rows = rows.select(OBJECTS_SCHEMA.names)
        return FoundStretch(
            tuple(store_sorted(rows, self.folder, self.block_images, cuts)),
            left,
            dict(found.ignored),
            found.filtered,
            tuple(found.archives),
            lister.classes,
            lister.is_single,
        )


def gap_ends(left: Iterable[KeyRange], given: Iterable[KeyRange] = ()) -> list[str]:
    """Finds where keys that were not listed end, and keys that were listed begin again.

    Args:
        left: The ranges that were not read to their ends.
        given: The ranges that were to be read, without keys in common. Empty if all keys were.

    Returns:
        A key for each gap, in their order: keys above it were listed.
    """
    ends = {each.until for each in given}
    found = {each.after for each in given} - ends | {each.until for each in left}
    return sorted(end for end in found if end is not None)


def store_sorted(
    rows: pa.Table, folder: str, block_images: int, cuts: Sequence[str] = ()
) -> Iterator[StoredPart]:
    """Stores candidates, sorted, as parts of at most `PART_ENTRIES`.

    Args:
        rows: The candidates.
        folder: The uri of the folder that the parts go to. A part is named by the sha256 of its
            bytes.
        block_images: How many images a block has on average.
        cuts: Uris at which gaps end, in their order (see `gap_ends`). A part has no gap, so that
            other parts have few names between its own.

    Yields:
        Each part.
    """
    rows = sort_pages(rows)
    places = [rows_up_to(cut, rows) for cut in cuts]
    bounds = [
        at
        for start, stop in pairwise([0, *places, rows.num_rows])
        for at in range(start, stop, PART_ENTRIES)
    ]
    ends = block_ends(rows["uri"], block_images)
    for start, stop in pairwise([*bounds, rows.num_rows]):
        some = rows.slice(start, stop - start)
        sink = io.BytesIO()
        with SealedWriter(sink, PART, some.schema, **PART_LAYOUT) as writer:
            for piece in cut_rows(some):
                writer.write(piece)
            writer.seal({})
        data = sink.getvalue()
        uri = storage.join(folder, f"{sha256(data)}.parquet")
        storage.replace(uri, data)
        first, last = some["uri"][0].as_py(), some["uri"][-1].as_py()
        its_ends = tuple(ends[bisect_left(ends, first) : bisect_right(ends, last)])
        yield StoredPart(uri, some.num_rows, first, last, its_ends)


def read_stored(parts: Iterable[StoredPart]) -> Iterator[bytes]:
    """Reads stored parts.

    Yields:
        The bytes of each.

    Raises:
        TransientError: A part was removed.
        CorruptFile: A part is damaged.
    """
    for part in parts:
        try:
            data = storage.read(part.uri)
        except SourceError as error:
            raise TransientError(
                f"{part.uri} was removed while the source was listed; rerun the same command with "
                f"{option('relist', True)}"
            ) from error
        try:
            SealedFile(data, PART, part.uri).check()
        except CorruptFile as error:
            again = f"or rerun the same command with {option('relist', True)}"
            raise CorruptFile(f"{error}, {again}") from error
        yield data
