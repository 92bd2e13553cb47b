"""Sorts the images of all shards by their scores, on disk, and writes the ranking."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.catalogue import FarImage
from pipeline.counting import ShardJob, partial_uri
from pipeline.dna import FileKind, SealedWriter
from pipeline.errors import CorruptFile, SourceError, StorageError, TransientError
from pipeline.explaining.rank_shard import UNDEFINED, Ranks, schema_of
from pipeline.sources import Entry, Manifest, Shard, connect

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

RANKING = FileKind("ranking")

NAMED_UNRANKED = 10
"""The most images without a distance that a result names. The file has all of them."""

GROUP_ROWS = 65_536
"""Rows of a row group of the file, and of what is loaded at a time."""

SHARD_READERS = 16
"""Shards that are read at a time."""

_FARTHEST = "score desc, uri desc, member desc"
"""The order in which the farthest image is first: that of the file, backwards."""


@dataclass(frozen=True)
class RankedImage:
    """An image and its distances, in bins.

    Attributes:
        rank: 1 for the nearest.
        score: What images are ordered by: the distance, less a share of that to the background.
        emd: Distance over all neurons.
        layers: Distance in each layer asked for.
        entry: Where the image is, to be read again.
    """

    rank: int
    score: float
    emd: float
    layers: tuple[float, ...]
    entry: Entry

    @property
    def name(self) -> str:
        """The image's uri, with its name inside an archive."""
        return storage.spelled(self.entry.uri, self.entry.member)


@dataclass(frozen=True)
class UnrankedImage:
    """An image without a distance.

    Attributes:
        uri: Where it is.
        member: Its name inside an archive, or empty.
        error: Why it has none.
    """

    uri: str
    member: str
    error: str

    def __str__(self) -> str:
        return f"{storage.spelled(self.uri, self.member)}: {self.error}"


class RankingOrder:
    """All images of a manifest, each once, in a database that sorts them on disk."""

    def __init__(self, manifest: Manifest, job: ShardJob, layers: Sequence[str]) -> None:
        """Opens an empty database in the temporary folder.

        Args:
            manifest: The images.
            job: The job that ranked the shards.
            layers: Layers with a distance of their own.
        """
        self._manifest = manifest
        self._job = job
        self._layers = layers
        self._distances = [f"d{i}" for i in range(len(self._layers))]
        self._keys = manifest.keys(job.recipe.spec.digest, job.recipe.products)
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(storage.ScratchFolder("rank"))
        self._db: DuckDBPyConnection = self._stack.enter_context(connect(folder))

    def __enter__(self) -> RankingOrder:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def load(self) -> None:
        """Loads what is committed of every shard.

        Raises:
            CorruptFile: If a shard's object is damaged; the message names it.
        """
        measured = ("score", "emd", *self._distances)
        columns = ["uri", "member", *measured, "error", "shard", "place"]
        self._columns = columns
        types = ["varchar", "varchar", *("double" for _ in measured)]
        types += ["varchar", "integer", "integer"]
        made = ", ".join(f"{name} {kind}" for name, kind in zip(columns, types, strict=True))
        with self._disk():
            self._db.execute(f"create table images ({made})")
        held: list[pa.Table] = []
        for table in self._tables():
            held.append(table.rename_columns(columns))
            if sum(part.num_rows for part in held) >= GROUP_ROWS:
                self._insert(held)
                held = []
        self._insert(held)

    def totals(self) -> tuple[int, int, int]:
        """Counts the images. Every candidate is in one of the three numbers.

        Returns:
            How many are ranked, failed and undefined.

        Raises:
            CorruptFile: If they are not as many as were listed.
        """
        counts = dict(
            self._rows(
                "select case when error is null then 'ranked' when "
                f"starts_with(error, '{UNDEFINED}: ') then 'undefined' else 'failed' end, "
                "count(*) from images group by 1"
            )
        )
        ranked, failed, undefined = (counts.get(k, 0) for k in ("ranked", "failed", "undefined"))
        if ranked + failed + undefined != self._manifest.candidates:
            raise CorruptFile(
                f"{self._job.work_uri} holds {sum(counts.values())} images; "
                f"{self._manifest.candidates} were listed"
            )
        return ranked, failed, undefined

    def nearest(self, count: int) -> tuple[RankedImage, ...]:
        """Finds the images of the smallest score.

        Args:
            count: How many.

        Returns:
            The images, the nearest first.
        """
        return tuple(self._ranked("score, uri, member", count, 1, 1))

    def farthest(self, count: int) -> tuple[RankedImage, ...]:
        """Finds the images of the largest score.

        Args:
            count: How many.

        Returns:
            The images, the farthest first.
        """
        ranked, _, _ = self.totals()
        return tuple(self._ranked(_FARTHEST, count, ranked, -1))

    def outliers(self, count: int) -> tuple[FarImage, ...]:
        """Finds the images of `farthest` by their names alone, so that no list is read for them.

        Args:
            count: How many.

        Returns:
            The images, the farthest first.
        """
        ranked, _, _ = self.totals()
        rows = self._rows(
            "select uri, member, score, emd from images where emd is not null "
            f"order by {_FARTHEST} limit {int(count)}"
        )
        return tuple(
            FarImage(uri, member, ranked - place, score, emd)
            for place, (uri, member, score, emd) in enumerate(rows)
        )

    def median(self) -> float:
        """Finds the distance that half of the images have at most, in bounded memory.

        Returns:
            The distance of one of them, in bins; NaN if none has a distance.
        """
        ranked, _, _ = self.totals()
        left = (ranked - 1) // 2
        with self._disk():
            query = "select emd from images where emd is not null order by emd"
            for batch in self._db.sql(query).to_arrow_reader(GROUP_ROWS):
                if left < batch.num_rows:
                    return float(batch.column(0)[left].as_py())
                left -= batch.num_rows
        return math.nan

    def unranked(self) -> tuple[UnrankedImage, ...]:
        """Finds the first images without a distance.

        Returns:
            Up to `NAMED_UNRANKED` images, by name.
        """
        rows = self._rows(
            "select uri, member, error from images where error is not null "
            f"order by uri, member limit {NAMED_UNRANKED}"
        )
        return tuple(UnrankedImage(*row) for row in rows)

    def write(self, file: IO[bytes], metadata: Mapping[str, Any]) -> None:
        """Writes the ranking as Parquet: the nearest first, those without a distance last.

        Args:
            file: Where to write.
            metadata: What the file states of itself.
        """
        known = schema_of(self._layers)
        at = known.get_field_index("score")
        schema = known.insert(at, pa.field("rank", pa.int64()))
        columns = ", ".join(name for name in self._columns if name not in ("shard", "place"))
        with (
            self._disk(),
            SealedWriter(file, RANKING, schema) as writer,
        ):
            query = f"select {columns} from images order by score nulls last, uri, member"
            first = 1
            for rows in _regrouped(self._db.sql(query).to_arrow_reader(GROUP_ROWS)):
                ranks = pa.array(range(first, first + rows.num_rows), pa.int64())
                known = pc.if_else(rows["error"].is_null(), ranks, None)
                table = rows.add_column(at, "rank", known).rename_columns(schema.names)
                writer.write(table.cast(schema))
                first += rows.num_rows
            writer.seal(metadata)
        file.flush()

    def _tables(self) -> Iterator[pa.Table]:
        """Yields the images of each shard, checked, with their position in the manifest."""
        with ThreadPoolExecutor(SHARD_READERS, "ranks") as pool:
            for start in range(0, len(self._keys), SHARD_READERS):
                keys = self._keys[start : start + SHARD_READERS]
                shards = self._manifest.shards[start : start + SHARD_READERS]
                yield from pool.map(self._read, shards, keys)

    def _read(self, shard: Shard, key: str) -> pa.Table:
        uri = partial_uri(self._job.work_uri, key)
        try:
            table = Ranks.decode(storage.read(uri), uri, self._layers, shard, key).table
        except CorruptFile as error:
            raise CorruptFile(
                f"{error}\nNothing was written. Delete that file, and rerun the same command: its "
                "images are ranked again"
            ) from error
        except SourceError as error:
            raise TransientError(f"{uri} is gone; rerun the same command: {error}") from error
        places = pa.array(range(table.num_rows), pa.int32())
        at = pa.array([shard.index] * table.num_rows, pa.int32())
        return table.append_column("shard", at).append_column("place", places)

    def _insert(self, held: Sequence[pa.Table]) -> None:
        if not held:
            return
        with self._disk():
            self._db.register("held", pa.concat_tables(held))
            self._db.execute("insert into images select * from held")
            self._db.unregister("held")

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._disk():
            return self._db.execute(query).fetchall()

    def _ranked(self, order: str, count: int, first: int, step: int) -> Iterator[RankedImage]:
        distances = "".join(f", {name}" for name in self._distances)
        rows = self._rows(
            f"select score, emd, shard, place{distances} from images where emd is not null "
            f"order by {order} limit {int(count)}"
        )
        for i, (score, emd, shard, place, *own) in enumerate(rows):
            entry = self._manifest.shards[shard].members[place]
            yield RankedImage(first + step * i, score, emd, tuple(own), entry)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise StorageError(
                f"the ranking cannot be sorted in {tempfile.gettempdir()}: {error}; set TMPDIR to "
                "a disk with more room"
            ) from error


def _regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yields the same rows in groups whose size depends on their number alone."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(part.num_rows for part in held) >= GROUP_ROWS:
            table = pa.Table.from_batches(held)
            yield table.slice(0, GROUP_ROWS).combine_chunks()
            held = table.slice(GROUP_ROWS).to_batches()
    if held:
        yield pa.Table.from_batches(held).combine_chunks()
