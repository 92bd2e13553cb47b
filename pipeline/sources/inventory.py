"""Reads a report of S3 Inventory in place of listing a bucket: Parquet, ORC or CSV.

    >>> inventory = find_inventory("s3://reports/photos/daily/2026-11-26T01-00Z/manifest.json")
    >>> inventory.bucket, len(inventory.files)                        # doctest: +SKIP
    ('s3://photos', 120)

S3 writes such a report every day or week. It has one row an object, of the whole bucket or of a
prefix, in files that its `manifest.json` names.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.buffers import Data, Mapped, pieces
from pipeline.errors import CorruptFile, SourceError
from pipeline.sources.entries_file import OBJECTS_SCHEMA
from pipeline.spec import digest_of

INVENTORY_FORMATS = ("Parquet", "ORC", "CSV")

COLUMNS = {
    "bucket": "Bucket",
    "key": "Key",
    "size": "Size",
    "e_tag": "ETag",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
}
"""The columns that are read, by their names in Parquet and ORC, with those in CSV."""

NEEDED = ("bucket", "key", "size", "e_tag")

INVENTORY_ROWS = 65_536

ALONE_BYTES = 2**24
"""A report of at most so many bytes is read by one process: some 300,000 rows, in a second."""


@dataclass(frozen=True)
class InventoryFile:
    """One file of a report.

    Attributes:
        uri: Where it is.
        md5: The MD5 of its bytes, as the report states it.
        size: How many bytes it has, as the report states it. 0 if it does not.
    """

    uri: str
    md5: str
    size: int


@dataclass(frozen=True)
class Inventory:
    """A report of S3 Inventory.

    Attributes:
        uri: The report's `manifest.json`.
        bucket: The url of the bucket that it lists.
        format: One of `INVENTORY_FORMATS`.
        columns: The names of the columns of a CSV file, which has no header.
        files: The files of the report.
    """

    uri: str
    bucket: str
    format: str
    columns: tuple[str, ...]
    files: tuple[InventoryFile, ...]

    @property
    def digest(self) -> str:
        """A digest that only this report has."""
        return digest_of(asdict(self))

    @property
    def is_large(self) -> bool:
        """Whether tasks should read it."""
        return sum(file.size for file in self.files) > ALONE_BYTES

    def objects(self) -> Iterator[pa.Table]:
        """Reads the objects that the report lists.

        Of a bucket with versions, only the newest version of each object counts.

        Yields:
            Tables of `OBJECTS_SCHEMA`, in no order.

        Raises:
            CorruptFile: A file of the report is not the one that it names.
            SourceError: A file is missing, or lacks a column that is needed.
        """
        for file in self.files:
            data = storage.read_on_disk(file.uri)
            _require_md5(file, data)
            try:
                for batch in self._batches(data):
                    yield self._counted(batch, file)
            except (pa.ArrowException, EOFError, OSError, ValueError) as error:
                raise SourceError(
                    f"{file.uri} cannot be read as {self.format}, as {self.uri} states: {error}"
                ) from error

    def _batches(self, data: Data) -> Iterator[pa.RecordBatch]:
        if self.format == "Parquet":
            table = pq.ParquetFile(pa.BufferReader(data))
            names = [name for name in COLUMNS if name in table.schema_arrow.names]
            yield from table.iter_batches(INVENTORY_ROWS, columns=names)
        elif self.format == "ORC":
            stripes = pyarrow.orc.ORCFile(pa.BufferReader(data))
            names = [name for name in COLUMNS if name in stripes.schema.names]
            for number in range(stripes.nstripes):
                yield stripes.read_stripe(number, columns=names)
        else:
            with io.BufferedReader(Mapped(data)) as packed, gzip.open(packed) as rows:
                names = [name for name in COLUMNS.values() if name in self.columns]
                yield from pyarrow.csv.open_csv(
                    rows,
                    pyarrow.csv.ReadOptions(column_names=list(self.columns)),
                    convert_options=pyarrow.csv.ConvertOptions(
                        column_types=dict.fromkeys(self.columns, pa.string()),
                        include_columns=names,
                        null_values=[""],
                        strings_can_be_null=True,
                    ),
                )

    def _counted(self, batch: pa.RecordBatch, file: InventoryFile) -> pa.Table:
        """Returns the objects of a batch that are there now."""
        names = dict(zip(COLUMNS.values(), COLUMNS, strict=True)) if self.format == "CSV" else {}
        table = pa.Table.from_batches([batch])
        table = table.rename_columns([names.get(name, name) for name in table.column_names])
        if missing := [COLUMNS[name] for name in NEEDED if name not in table.column_names]:
            raise SourceError(
                f"{file.uri} has no {' and no '.join(missing)}; add these fields to the "
                "configuration of the inventory, or name the bucket itself to have it listed"
            )
        flags = {"is_latest": True, "is_delete_marker": False}
        for name, wanted in flags.items():
            if name in table.column_names:
                # Text in CSV; null for objects that are older than the bucket's versions.
                stated = pc.fill_null(table[name].cast(pa.bool_()), wanted)
                table = table.filter(pc.equal(stated, wanted))
        keys = table["key"].cast(pa.string())
        if self.format == "CSV":
            keys = pa.array([unquote_plus(key) for key in keys.to_pylist()], pa.string())
        lacking = pc.or_(pc.is_null(table["size"]), pc.is_null(table["e_tag"]))
        if unknown := keys.filter(lacking)[:1].to_pylist():
            raise SourceError(f"{file.uri} states no size or no ETag of {unknown[0]!r}")
        uris = pc.binary_join_element_wise(self.bucket, keys, "/")
        columns = zip((uris, table["size"], table["e_tag"]), OBJECTS_SCHEMA.types, strict=True)
        found = pa.table([column.cast(kind) for column, kind in columns], schema=OBJECTS_SCHEMA)
        folders = pc.and_(pc.equal(found["size"], 0), pc.ends_with(found["uri"], "/"))
        return found.filter(pc.invert(folders))


def find_inventory(uri: str) -> Inventory | None:
    """Reads the manifest of a report.

    Args:
        uri: An object that may be the `manifest.json` of a report; or one with `*` for the folder
            of each day, which stands for the newest of them.

    Returns:
        The report; None if it is something else.

    Raises:
        SourceError: It is one, and is not complete, or of a format that is not known.
    """
    if uri.endswith("/*/manifest.json"):
        uri = max((found.uri for found in storage.glob(uri)), default=uri)
    if not uri.endswith("/manifest.json") or not storage.exists(uri):
        return None
    try:
        stated = json.loads(storage.read(uri))
        bucket, layout = stated["sourceBucket"], stated["fileFormat"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if layout not in INVENTORY_FORMATS:
        raise SourceError(
            f"{uri}: its fileFormat is {layout!r}; it must be one of {INVENTORY_FORMATS}"
        )
    try:
        place = str(stated["destinationBucket"]).rpartition(":::")[2]  # of an ARN
        files = tuple(
            InventoryFile(
                f"s3://{place}/{file['key']}", str(file["MD5checksum"]), int(file.get("size") or 0)
            )
            for file in stated["files"]
        )
        columns = tuple(name.strip() for name in str(stated["fileSchema"]).split(","))
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise SourceError(f"{uri}: not a whole manifest of S3 Inventory: {error!r}") from error
    return Inventory(uri, f"s3://{bucket}", layout, columns, files)


def _require_md5(file: InventoryFile, data: Data) -> None:
    found = hashlib.md5(usedforsecurity=False)
    for piece in pieces(data):
        found.update(piece)
    if found.hexdigest() != file.md5:
        raise CorruptFile(
            f"{file.uri} has MD5 {found.hexdigest()}, and its report states {file.md5}; wait for "
            "the next report, or name the bucket itself to have it listed"
        )
