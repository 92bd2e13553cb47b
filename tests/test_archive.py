"""Members of archives: each is read as it was written, or listed with its reason; never lost."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import threading
import tracemalloc
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import archive, storage
from pipeline.archive import Index, Members, index, kind_of
from pipeline.errors import BadImage, SourceError, TransientError
from pipeline.extractor import Extractor
from pipeline.images import REASONS
from pipeline.manifest import Entry, Shard
from pipeline.shard import Counter
from pipeline.spec import Resources
from tests.helpers import photo
from tests.test_shard import NETWORK, RANGES, SPEC

Pairs = Sequence[tuple[str, bytes]]
MAX_BYTES = 1 << 20


def tarred(pairs: Pairs, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=form) as tar:
        for name, data in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zipped(pairs: Pairs, method: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as file:
        for name, data in pairs:
            file.writestr(name, data)
    return sink.getvalue()


def as_table(pairs: Pairs, *, struct_of_bytes: bool = False) -> pa.Table:
    """With a label in a dictionary, as tables of images have them."""
    column: pa.Array = pa.array([data for _, data in pairs], pa.binary())
    if struct_of_bytes:
        paths = pa.array([name for name, _ in pairs], pa.string())
        column = pa.StructArray.from_arrays([column, paths], ["bytes", "path"])
    labels = pa.array(["cat"] * len(pairs), pa.string()).dictionary_encode()
    return pa.table({"label": labels, "an image": column})


def parquet(pairs: Pairs, *, struct_of_bytes: bool = False) -> bytes:
    sink = io.BytesIO()
    pq.write_table(as_table(pairs, struct_of_bytes=struct_of_bytes), sink, row_group_size=3)
    return sink.getvalue()


def arrow(pairs: Pairs, *, stream: bool, struct_of_bytes: bool = False) -> bytes:
    sink = io.BytesIO()
    table = as_table(pairs, struct_of_bytes=struct_of_bytes)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def feather(pairs: Pairs) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(as_table(pairs), sink, compression="zstd", chunksize=2)
    return sink.getvalue()


Writer = Callable[[Pairs], bytes]
NAMED: dict[str, Writer] = {
    "pax.tar": tarred,
    "gnu.tar": lambda pairs: tarred(pairs, form=tarfile.GNU_FORMAT),
    "a.tar.gz": lambda pairs: tarred(pairs, "w:gz"),
    "a.tar.bz2": lambda pairs: tarred(pairs, "w:bz2"),
    "a.tar.xz": lambda pairs: tarred(pairs, "w:xz"),
    "stored.zip": zipped,
    "deflated.ZIP": lambda pairs: zipped(pairs, zipfile.ZIP_DEFLATED),
}
NUMBERED: dict[str, Writer] = {
    "plain.parquet": parquet,
    "struct.parquet": lambda pairs: parquet(pairs, struct_of_bytes=True),
    "file.arrow": lambda pairs: arrow(pairs, stream=False),
    "stream.arrow": lambda pairs: arrow(pairs, stream=True, struct_of_bytes=True),
    "zstd.feather": feather,
}
WRITERS = NAMED | NUMBERED
SOME = [(f"photos/{i}.jpg", bytes([65 + i]) * (700 * i + 1)) for i in range(8)]


def put(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.write_bytes(data)
    return path.as_uri()


def indexed(uri: str, image_column: str | None = None) -> Index:
    found = index(storage.info(uri), image_column)
    assert found is not None
    positions = found.members["position"].to_pylist()
    assert positions == sorted(positions)
    assert len(set(found.members["member"].to_pylist())) == len(positions)
    return found


def entries_of(uri: str, found: Index) -> list[Entry]:
    identity = storage.info(uri).identity
    return [
        Entry(uri, r["member"], r["size"], identity, "", r["position"], r["access"])
        for r in found.members.to_pylist()
    ]


def members(entries: Sequence[Entry], ahead: int = 64) -> closing[Members]:
    return closing(Members(entries, MAX_BYTES, ahead))


def outcome(read: Members, entry: Entry) -> bytes | str:
    """The bytes, or the reason why there are none."""
    try:
        return read.fetch(entry)
    except BadImage as bad:
        assert bad.reason in REASONS
        assert bad.detail
        return bad.reason


def contents(uri: str, image_column: str | None = None) -> list[tuple[str, bytes | str]]:
    entries = entries_of(uri, indexed(uri, image_column))
    with members(entries) as read:
        return [(entry.member, outcome(read, entry)) for entry in entries]


def expected(name: str, pairs: Pairs) -> list[tuple[str, bytes]]:
    if name in NUMBERED:
        return [(str(i), data) for i, (_, data) in enumerate(pairs)]
    return list(pairs)


# What was written is what is read.


def test_kinds_are_told_by_the_name() -> None:
    kinds = {name: kind_of(f"s3://bucket/{name}") for name in ("a.TAR", "a.tgz", "a.jpg", *WRITERS)}
    assert kinds["a.TAR"] == kinds["a.tgz"] == kinds["a.tar.xz"] == "tar"
    assert kinds["deflated.ZIP"] == "zip"
    assert kinds["struct.parquet"] == "parquet"
    assert kinds["zstd.feather"] == kinds["file.arrow"] == "arrow"
    assert kinds["a.jpg"] is None
    assert kind_of("s3://bucket/tar") is None


NAME = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300
).filter(lambda name: not name.endswith("/"))
PAIRS = st.lists(
    st.tuples(NAME, st.binary(max_size=2000)), max_size=12, unique_by=lambda pair: pair[0]
)


@pytest.mark.parametrize("name", WRITERS)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pairs=PAIRS)
def test_any_members_are_read_as_they_were_written(name: str, pairs: Pairs, tmp_path: Path) -> None:
    uri = put(tmp_path, name, WRITERS[name](pairs))
    found = contents(uri)
    assert [data for _, data in found] == [data for _, data in pairs]
    if name in NUMBERED:
        assert [member for member, _ in found] == [str(i) for i in range(len(pairs))]
    elif not any("\\x" in member for member, _ in pairs):
        assert [member for member, _ in found] == [member for member, _ in pairs]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    raw=st.lists(
        st.text("\\x41é\udcc3\udca9\udcff", min_size=1, max_size=6), min_size=1, unique=True
    )
)
def test_names_that_are_no_text_stay_apart(raw: list[str], tmp_path: Path) -> None:
    names = {name.encode("utf-8", "surrogateescape"): name for name in raw}
    pairs = [(name, key) for key, name in names.items()]
    uri = put(tmp_path, "a.tar", tarred(pairs, form=tarfile.GNU_FORMAT))
    found = contents(uri)
    assert [data for _, data in found] == list(names)
    for member, _ in found:
        member.encode()


def test_a_name_that_is_no_text_is_printed_by_its_bytes(tmp_path: Path) -> None:
    pairs = [("\udcff.jpg", b"1"), ("\\xff.jpg", b"2"), ("a\\b.jpg", b"3")]
    uri = put(tmp_path, "a.tar", tarred(pairs, form=tarfile.GNU_FORMAT))
    assert [member for member, _ in contents(uri)] == ["\\xff.jpg", "\\\\xff.jpg", "a\\b.jpg"]


@pytest.mark.parametrize("name", NAMED)
def test_the_last_of_a_name_counts(name: str, tmp_path: Path) -> None:
    pairs = [("a", b"old"), ("b", b"other"), ("a", b"new")]
    with pytest.warns(UserWarning, match="Duplicate") if "zip" in name.lower() else nothing():
        uri = put(tmp_path, name, WRITERS[name](pairs))
    assert contents(uri) == [("b", b"other"), ("a", b"new")]
    assert indexed(uri).duplicates == 1


@contextmanager
def nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("ahead", [1, 3])
def test_any_order_from_many_threads_reads_the_same(name: str, ahead: int, tmp_path: Path) -> None:
    uri = put(tmp_path, name, WRITERS[name](SOME))
    entries = entries_of(uri, indexed(uri))
    expected = [data for _, data in SOME]
    for order in (entries, entries[::-1], entries[1::2] + entries[::2]):
        with members(order, ahead) as read, ThreadPoolExecutor(4) as pool:
            found = dict(zip(order, pool.map(read.fetch, order), strict=True))
            assert [found[entry] for entry in entries] == expected
            assert [read.fetch(entry) for entry in order[::3]] == [found[e] for e in order[::3]]


@pytest.mark.parametrize("name", WRITERS)
def test_a_part_of_the_members_is_read_alone(name: str, tmp_path: Path) -> None:
    uri = put(tmp_path, name, WRITERS[name](SOME))
    entries = entries_of(uri, indexed(uri))[3:5]
    with members(entries) as read:
        assert [read.fetch(entry) for entry in entries] == [data for _, data in SOME[3:5]]
