"""Tests reports of S3 Inventory as a source: the same candidates as listing the bucket."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.errors import CorruptFile, SourceError
from pipeline.sources import Entry, Rules, list_source, plan
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import photo

ORDER = ("Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "ETag")
"""As a report with versions has them."""

NAMES = {
    "Bucket": "bucket",
    "Key": "key",
    "VersionId": "version_id",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "ETag": "e_tag",
}
"""The columns of Parquet and ORC."""

Rows = list[dict[str, Any]]


def rows_of(root: str) -> Rows:
    """Describes the objects below a prefix, as S3 Inventory does."""
    bucket = root.split("/")[2]
    return [
        {
            "bucket": bucket,
            "key": item.uri.removeprefix(f"s3://{bucket}/"),
            "version_id": None,
            "is_latest": True,
            "is_delete_marker": False,
            "size": item.size,
            "e_tag": item.identity,
        }
        for item in storage.walk(root)
    ]


def encoded(rows: Rows, layout: str, columns: tuple[str, ...]) -> bytes:
    names = [NAMES[column] for column in columns]
    kinds = {"size": pa.int64(), "is_latest": pa.bool_(), "is_delete_marker": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    if layout == "CSV":
        lines = []
        for row in rows:
            cells = {name: "" if row[name] is None else str(row[name]) for name in names}
            cells |= {"key": quote_plus(row["key"], safe="/")}
            cells |= {name: cells[name].lower() for name in cells.keys() & kinds.keys()}
            lines.append(",".join(f'"{cells[name]}"' for name in names))
        return gzip.compress("\n".join([*lines, ""]).encode())
    sink = io.BytesIO()
    write = pq.write_table if layout == "Parquet" else pyarrow.orc.write_table
    write(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()


def report(
    root: str,
    rows: Rows,
    layout: str = "Parquet",
    columns: tuple[str, ...] = ORDER,
    day: str = "2026-11-26T01-00Z",
    change: Callable[[dict[str, Any]], object] = lambda stated: None,
) -> str:
    """Stores a report of these rows in two files, and returns the url of its manifest."""
    bucket = root.split("/")[2]
    files = []
    for at, some in enumerate((rows[::2], rows[1::2])):
        data = encoded(some, layout, columns)
        uri = f"{root}-reports/data/{day}-{layout}-{at}"
        storage.create(uri, data)
        md5 = hashlib.md5(data).hexdigest()
        key = uri.removeprefix(f"s3://{bucket}/")
        files.append({"key": key, "size": len(data), "MD5checksum": md5})
    stated = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "version": "2016-11-30",
        "fileFormat": layout,
        "fileSchema": ", ".join(columns),
        "files": files,
    }
    change(stated)
    uri = f"{root}-reports/{day}/manifest.json"
    storage.create(uri, json.dumps(stated).encode())
    return uri


@pytest.fixture
def images(root: str) -> str:
    """Stores objects of all kinds below a prefix."""
    for name in ("a.jpg", "b/c d+é%2B.PNG", "b/._e.jpg", "b/.f.png", "b/readme.txt", "g"):
        storage.create(f"{root}/{name}", b"of " + name.encode())
    storage.create(f"{root}/b/folder/", b"")
    return root


def entries_of(source: str, **rules: Any) -> tuple[list[Entry], dict[str, int]]:
    found = list_source(source, Rules(**rules))
    return sorted(found.entries, key=lambda entry: entry.uri), dict(found.ignored)


@pytest.mark.parametrize("layout", ["Parquet", "ORC", "CSV"])
def test_a_report_lists_what_the_bucket_has(images: str, layout: str) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as packed:
        packed.addfile(tarfile.TarInfo("in.jpg"))
    storage.create(f"{images}/h.tar", sink.getvalue())
    uri = report(images, rows_of(images), layout)
    found = entries_of(uri)
    assert found == entries_of(images)
    names = [entry.uri.removeprefix(f"{images}/") + entry.member for entry in found[0]]
    assert names == ["a.jpg", "b/.f.png", "b/c d+é%2B.PNG", "g", "h.tarin.jpg"]
    assert found[1] == {".txt": 1, "._*": 1}
    bucket = images.split("/")[2]
    assert list_source(uri).source == f"s3://{bucket}"
    # Paths are below the bucket in a report, and folds go by paths.
    of_bucket = replace(list_source(images), pairing=list_source(uri).pairing)
    assert plan(list_source(uri)).digest == plan(of_bucket).digest


@pytest.mark.parametrize("layout", ["Parquet", "CSV"])
def test_only_the_newest_version_of_an_object_counts(images: str, layout: str) -> None:
    rows = rows_of(images)
    older = [row | {"is_latest": False, "e_tag": "old", "version_id": "1"} for row in rows]
    gone = {"key": "gone.jpg", "is_delete_marker": True, "size": None, "e_tag": None}
    uri = report(images, [*older, rows[0] | gone, *rows], layout)
    assert entries_of(uri) == entries_of(images)


def test_a_report_without_versions_and_with_other_fields_is_read(images: str) -> None:
    uri = report(images, rows_of(images), "CSV", ("Bucket", "Key", "Size", "ETag"))
    assert entries_of(uri) == entries_of(images)


def test_rules_go_by_the_path_in_the_bucket(images: str) -> None:
    prefix = images.split("/")[3]
    uri = report(images, rows_of(images))
    names = [entry.uri for entry in entries_of(uri, include=f"{prefix}/b/*")[0]]
    assert names == [f"{images}/b/.f.png", f"{images}/b/c d+é%2B.PNG"]
    grouped = entries_of(uri, include="*.jpg", group_by="1")[0]
    assert [entry.group for entry in grouped] == [images]


def test_the_newest_of_several_reports_is_taken(images: str) -> None:
    rows = rows_of(images)
    report(images, rows[:1], day="2026-11-25T01-00Z")
    report(images, rows, day="2026-11-26T01-00Z")
    assert entries_of(f"{images}-reports/*/manifest.json") == entries_of(images)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda s: s["files"][1].update(MD5checksum="0" * 32), r"states 0{32}; wait for the next"),
        (lambda s: s["files"][1].update(key="nowhere"), "nowhere"),
        (lambda s: s["files"][1].pop("key"), "manifest.json: not a whole manifest"),
        (lambda s: s.update(fileFormat="Avro"), "fileFormat is 'Avro'; it must be one of"),
        (lambda s: s.update(fileFormat="ORC"), "cannot be read as ORC"),
    ],
)
def test_a_wrong_report_is_refused_by_name(
    images: str, change: Callable[[dict[str, Any]], object], error: str
) -> None:
    uri = report(images, rows_of(images), change=change)
    with pytest.raises((SourceError, CorruptFile), match=error):
        list_source(uri)


@pytest.mark.parametrize(("left_out", "named"), [("ETag", "no ETag"), ("Size", "no Size")])
def test_a_report_without_a_needed_field_is_refused(images: str, left_out: str, named: str) -> None:
    columns = tuple(name for name in ORDER if name != left_out)
    with pytest.raises(SourceError, match=f"has {named}; add these fields"):
        list_source(report(images, rows_of(images), "CSV", columns))


@pytest.mark.parametrize("layout", ["Parquet", "ORC", "CSV"])
@pytest.mark.parametrize("field", ["e_tag", "size"])
def test_a_row_without_an_etag_or_a_size_is_refused(images: str, layout: str, field: str) -> None:
    rows = rows_of(images)
    rows[0][field] = None
    with pytest.raises(SourceError, match=re.escape(f"no ETag of {rows[0]['key']!r}")):
        list_source(report(images, rows, layout))


def test_results_that_lie_in_the_bucket_are_left_out(images: str) -> None:
    uri = report(images, rows_of(images))
    found = list_source(uri, outside=f"{images}/b")
    assert sorted(entry.uri for entry in found.entries) == [f"{images}/a.jpg", f"{images}/g"]
    assert found.filtered == 4


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_reports_of_every_partition_are_found(images: str, partition: str) -> None:
    def change(stated: dict[str, Any]) -> None:
        stated["destinationBucket"] = stated["destinationBucket"].replace("aws", partition, 1)

    assert entries_of(report(images, rows_of(images), change=change)) == entries_of(images)


def test_another_json_file_is_no_report(root: str) -> None:
    storage.create(f"{root}/x/manifest.json", b'{"images": [{"id": 1, "file_name": "a.jpg"}]}')
    storage.create(f"{root}/x/a.jpg", b"no image")
    assert [entry.uri for entry in list_source(f"{root}/x/manifest.json").entries] == [
        f"{root}/x/a.jpg"
    ]
    storage.create(f"{root}/y/manifest.json", b"[" * 100_000)
    with pytest.raises(SourceError, match="is not a table of images"):
        list_source(f"{root}/y/manifest.json")


def test_a_dataset_is_built_from_a_report_and_goes_on_with_the_next(
    root: str, tmp_path: Path
) -> None:
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    options = tiny.install(tmp_path).options

    def build(*numbers: int, day: str) -> tuple[int, int]:
        for number in numbers:
            sink = io.BytesIO()
            photo(number, 16, 16).save(sink, "PNG")
            storage.create(f"{root}/{number}.png", sink.getvalue())
        report(root, rows_of(root), day=day)
        request = Request("photos", f"{root}-reports/*/manifest.json", **options)  # type: ignore[arg-type]
        (built,) = build_datasets(
            catalogue, [request], InProcess(), Resources(workers=0, threads=1)
        )
        return built.version.images, built.counted_shards

    assert build(*range(8), day="2026-11-25T01-00Z") == (8, 8)
    assert build(8, 9, day="2026-11-26T01-00Z") == (10, 2)
    assert build(day="2026-11-27T01-00Z") == (10, 0)
