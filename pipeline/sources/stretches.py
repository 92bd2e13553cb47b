"""Lists a stretch of a very large source as one task, and keeps it in storage, sorted.

A stretch is some ranges of the keys of an S3 prefix, or some files of a report of S3 Inventory.

>>> found = Stretch("s3://bucket/photos", Rules(), (KeyRange("a"),), folder).run()  # doctest: +SKIP
>>> found.parts[0].rows, found.left                                        # doctest: +SKIP
(100000, (KeyRange(after='b7', until=None, done=False),))
"""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.dna import SealedFile, SealedWriter, cut_rows
from pipeline.errors import ConservationError, CorruptFile, SourceError, TransientError
from pipeline.events import ignore
from pipeline.mapper import map_in_order
from pipeline.sources.blocks import block_ends
from pipeline.sources.entries_file import REPEATING, object_schema
from pipeline.sources.inventory import Inventory
from pipeline.sources.listing import PART_ENTRIES, StoredPart
from pipeline.sources.listing_checkpoint import PART
from pipeline.sources.parallel_listing import KeyRange
from pipeline.sources.rules import Rules
from pipeline.sources.sorted_rows import rows_up_to, sort_pages
from pipeline.sources.source_lister import SourceLister
from pipeline.storage import Stored
from pipeline.wording import option

Found = TypeVar("Found", covariant=True)
"""What a task returns."""

STRETCH_KEYS = 2**18
"""After how many files a task ends: some ten seconds of listing. It holds them in memory."""

LARGEST_STRETCH = 2**40
"""No task holds so many candidates: it writes nothing before it ends."""

REPORT_ENTRIES = 2**20
"""How many candidates of a report a task sorts at a time. They may have any names, so each block
reads some of every such sort. The larger the sorts, the fewer parts a block reads."""

REPORT_PART_ENTRIES = 2**13
"""Candidates in a part of a report. A block reads whole parts, and needs few candidates of each
sort. With parts of this size, blocks of 100 million images read 2.5 times what they need."""

PARTS_TOGETHER = 4
"""How many parts are written or read at a time. Small ones take longer to ask for than to send."""

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
        files: The numbers of the files of a report that it has read.
        groups: Groups of the candidates, `HASHED_GROUPS` at most.
    """

    parts: tuple[StoredPart, ...]
    left: tuple[KeyRange, ...]
    ignored: Mapping[str, int]
    filtered: int
    archives: tuple[Stored, ...]
    classes: tuple[str, ...] | None
    files: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass
class _Keeper:
    """Keeps what a task lists.

    Attributes:
        lister: What lists.
        folder: Where the candidates go.
        block_images: How many images a block has on average.
        parts: Where they are.
    """

    lister: SourceLister
    folder: str
    block_images: int
    parts: list[StoredPart] = field(default_factory=list)

    def store(self, cuts: Sequence[str] = (), part_entries: int = PART_ENTRIES) -> None:
        """Stores the candidates that are held in memory (see `store_sorted`)."""
        rows = self.lister.candidates.take_table()
        if self.lister.is_single:  # the other columns say nothing
            rows = rows.select(object_schema(grouped=self.lister.is_grouped).names)
        self.parts += store_sorted(rows, self.folder, self.block_images, cuts, part_entries)

    def found(self, left: Iterable[KeyRange] = (), files: tuple[int, ...] = ()) -> FoundStretch:
        """Returns what was listed.

        Raises:
            ConservationError: Another number of candidates is stored than were listed.
        """
        found, rows = self.lister.candidates, sum(part.rows for part in self.parts)
        if rows != found.total:
            raise ConservationError(
                f"{self.lister.source}: {found.total:,} candidates were listed by a task, and "
                f"{rows:,} were stored; nothing was committed. Please report this"
            )
        return FoundStretch(
            tuple(self.parts),
            tuple(left),
            dict(found.ignored),
            found.filtered,
            tuple(found.archives),
            self.lister.classes,
            files,
            tuple(found.groups),
        )


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
        left = [each for each in lister.ranges.values() if not each.done]
        cuts = [storage.join(lister.uri, key) for key in gap_ends(left, self.ranges)]
        keeper = _Keeper(lister, self.folder, self.block_images)
        keeper.store(cuts)
        return keeper.found(left)


@dataclass(frozen=True)
class ReportFiles:
    """Files of a report of S3 Inventory for one task.

    Attributes:
        source: The source as the user named it.
        rules: Which candidates count.
        report: The report, with these files alone.
        files: Their numbers in the whole report.
        outside: The folder of results, which does not count. None if there is none.
        folder: Where the candidates go.
        block_images: How many images a block has on average.
    """

    source: str
    rules: Rules
    report: Inventory
    files: tuple[int, ...]
    outside: str | None
    folder: str
    block_images: int

    def run(self) -> FoundStretch:
        """Reads the files."""
        lister = SourceLister(
            self.source, self.rules, None, ignore, None, LARGEST_STRETCH, inventory=self.report
        )
        keeper = _Keeper(lister, self.folder, self.block_images)
        for _ in lister.read_pages(self.outside):
            if lister.candidates.waiting >= REPORT_ENTRIES:
                keeper.store(part_entries=REPORT_PART_ENTRIES)
        keeper.store(part_entries=REPORT_PART_ENTRIES)
        return keeper.found(files=self.files)


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
    rows: pa.Table,
    folder: str,
    block_images: int,
    cuts: Sequence[str] = (),
    part_entries: int = PART_ENTRIES,
) -> Iterator[StoredPart]:
    """Stores candidates, sorted, as parts.

    Args:
        rows: The candidates.
        folder: The uri of the folder that the parts go to. A part is named by the sha256 of its
            bytes.
        block_images: How many images a block has on average.
        cuts: Uris at which gaps end, in their order (see `gap_ends`). A part has no gap, so that
            other parts have few names between its own.
        part_entries: How many candidates a part has at most.

    Yields:
        Each part.
    """
    rows = sort_pages(rows)
    places = [rows_up_to(cut, rows) for cut in cuts]
    bounds = [
        at
        for start, stop in pairwise([0, *places, rows.num_rows])
        for at in range(start, stop, part_entries)
    ]
    ends = block_ends(rows["uri"], block_images)

    def store(some: pa.Table) -> StoredPart:
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
        return StoredPart(uri, some.num_rows, first, last, its_ends)

    slices = pairwise([*bounds, rows.num_rows])
    pieces = (rows.slice(start, stop - start) for start, stop in slices)
    yield from map_in_order(store, pieces, PARTS_TOGETHER)


def parts_of_blocks(
    ends: Sequence[str], parts: Iterable[StoredPart]
) -> defaultdict[int, list[StoredPart]]:
    """Finds the parts from which each block has to be read.

    Args:
        ends: The uris that end blocks, in their order.
        parts: The parts.

    Returns:
        The parts that may have candidates of a block, by its number. The last block has the names
        above the last end.
    """
    its: defaultdict[int, list[StoredPart]] = defaultdict(list)
    for part in parts:
        for at in range(bisect_left(ends, part.first), bisect_left(ends, part.last) + 1):
            its[at].append(part)
    return its


def read_stored(parts: Iterable[StoredPart]) -> Iterator[bytes]:
    """Reads stored parts.

    Yields:
        The bytes of each.

    Raises:
        TransientError: A part was removed.
        CorruptFile: A part is damaged.
    """
    yield from map_in_order(_read_part, parts, PARTS_TOGETHER)


def _read_part(part: StoredPart) -> bytes:
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
    return data


class Task(Protocol[Found]):
    """Some work for a process of the engine."""

    def run(self) -> Found:
        """Does the work."""


def run_in_task(task: Task[Found]) -> Found:
    """Runs a task, whose Arrow takes its memory from glibc.

    In workers, glibc keeps what is freed. Arrow's own allocator keeps less of it, and asks the
    kernel for memory again for each block, which takes time.

    Args:
        task: The task.

    Returns:
        What the task returns.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        return task.run()
    finally:
        pa.set_memory_pool(before)
