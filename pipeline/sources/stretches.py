"""Lists a stretch of a very large prefix of S3 as one task, and keeps it in storage, sorted.

>>> found = Stretch("s3://bucket/photos", Rules(), (KeyRange("a"),), folder).run()  # doctest: +SKIP
>>> found.parts[0].rows, found.left                                        # doctest: +SKIP
(100000, (KeyRange(after='b7', until=None, done=False),))
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.dna import SealedFile, SealedWriter, cut_rows
from pipeline.errors import SourceError, TransientError
from pipeline.events import ignore
from pipeline.sources.blocks import ends_block
from pipeline.sources.database import connect
from pipeline.sources.listing import PART_ENTRIES, StoredPart
from pipeline.sources.listing_checkpoint import PART
from pipeline.sources.parallel_listing import KeyRange
from pipeline.sources.rules import Rules
from pipeline.sources.source_lister import SourceLister
from pipeline.storage import Stored

STRETCH_KEYS = 2**18
"""After how many candidates a task ends: some ten seconds of listing. It holds them in memory."""


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
        keys: After how many candidates the task ends.
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
        lister = SourceLister(self.source, self.rules, None, ignore, dict(enumerate(self.ranges)))
        lister.list_objects(None, self.keys)
        found = lister.candidates
        return FoundStretch(
            tuple(store_sorted(found.paths, self.folder, self.block_images)),
            tuple(each for each in lister.ranges.values() if not each.done),
            dict(found.ignored),
            found.filtered,
            tuple(found.archives),
            lister.classes,
            lister.is_single,
        )


def store_sorted(paths: Sequence[str], folder: str, block_images: int) -> Iterator[StoredPart]:
    """Stores the candidates in files, sorted, as parts of at most `PART_ENTRIES`.

    Args:
        paths: The files.
        folder: The uri of the folder that the parts go to. A part is named by the sha256 of its
            bytes.
        block_images: How many images a block has on average.

    Yields:
        Each part.
    """
    if not paths:
        return
    rows = pa.concat_tables([pq.read_table(path) for path in paths]).sort_by("uri")
    for start in range(0, rows.num_rows, PART_ENTRIES):
        some = rows.slice(start, PART_ENTRIES)
        sink = io.BytesIO()
        with SealedWriter(sink, PART, some.schema, write_statistics=False) as writer:
            for piece in cut_rows(some):
                writer.write(piece)
            writer.seal({})
        data = sink.getvalue()
        uri = storage.join(folder, f"{sha256(data)}.parquet")
        storage.replace(uri, data)
        uris, ends = some["uri"], _ends(some, block_images)
        yield StoredPart(uri, some.num_rows, uris[0].as_py(), uris[-1].as_py(), ends)


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
                f"{part.uri} was removed while the source was listed; rerun the same command"
            ) from error
        SealedFile(data, PART, part.uri).check()
        yield data


def _ends(rows: pa.Table, block_images: int) -> tuple[str, ...]:
    """Returns the uris that end a block, in their order."""
    with tempfile.TemporaryDirectory(prefix="vdna-ends-") as folder, connect(folder) as database:
        database.register("listed", rows.select(["uri"]))
        ends = ends_block(block_images)
        found = database.execute(f"select uri from listed where {ends} order by uri").fetchall()
        return tuple(uri for (uri,) in found)
