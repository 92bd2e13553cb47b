"""Members of archives are read as they were written, or listed with the reason of their failure."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from random import Random
from typing import IO

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.counting import Counter, Extractor
from pipeline.dna import DNA
from pipeline.errors import BadImage, SourceError, TransientError
from pipeline.images.decoding import REASONS
from pipeline.sources import Entry, Members, Shard
from pipeline.sources.archives import archive_file, image_column, spans, tar_stream
from pipeline.sources.archives import arrow as arrow_files
from pipeline.sources.archives import index as archive_index
from pipeline.sources.archives.contents import archive_kind, index_archive
from pipeline.sources.archives.index import ArchiveIndex
from pipeline.spec import Resources
from tests.counting.test_shard import NETWORK, RANGES, SPEC
from tests.support.archives import (
    Pairs,
    arrow_bytes,
    feather_bytes,
    parquet_bytes,
    tar_bytes,
    zip_bytes,
)
from tests.support.builders import jpeg, photo

MAX_BYTES = 1 << 20

Writer = Callable[[Pairs], bytes]
NAMED: dict[str, Writer] = {
    "pax.tar": tar_bytes,
    "gnu.tar": lambda pairs: tar_bytes(pairs, form=tarfile.GNU_FORMAT),
    "a.tar.gz": lambda pairs: tar_bytes(pairs, "w:gz"),
    "a.tar.bz2": lambda pairs: tar_bytes(pairs, "w:bz2"),
    "a.tar.xz": lambda pairs: tar_bytes(pairs, "w:xz"),
    "stored.zip": zip_bytes,
    "deflated.ZIP": lambda pairs: zip_bytes(pairs, zipfile.ZIP_DEFLATED),
}
NUMBERED: dict[str, Writer] = {
    "plain.parquet": parquet_bytes,
    "struct.parquet": lambda pairs: parquet_bytes(pairs, struct_of_bytes=True),
    "file.arrow": lambda pairs: arrow_bytes(pairs, stream=False),
    "stream.arrow": lambda pairs: arrow_bytes(pairs, stream=True, struct_of_bytes=True),
    "zstd.feather": feather_bytes,
}
WRITERS = NAMED | NUMBERED
MEMBERS = [(f"photos/{i}.jpg", bytes([65 + i]) * (700 * i + 1)) for i in range(8)]


def put(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.write_bytes(data)
    return path.as_uri()


def indexed(uri: str, image_column: str | None = None) -> ArchiveIndex:
    found = index_archive(storage.info(uri), image_column)
    assert found is not None
    positions = found.members["position"].to_pylist()
    assert positions == sorted(positions)
    assert len(set(found.members["member"].to_pylist())) == len(positions)
    return found


def entries_of(uri: str, found: ArchiveIndex) -> list[Entry]:
    identity = storage.info(uri).identity
    return [
        Entry(uri, r["member"], r["size"], identity, "", r["position"], r["access"])
        for r in found.members.to_pylist()
    ]


def members(entries: Sequence[Entry], ahead: int = 64) -> closing[Members]:
    return closing(Members(entries, MAX_BYTES, ahead))


def outcome(read: Members, entry: Entry) -> bytes | str:
    """Returns the bytes, or the reason why there are none."""
    try:
        return read.fetch(entry)
    except BadImage as error:
        bad = error
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


# Members are read as they were written.


def test_an_archive_is_recognised_by_its_name() -> None:
    kinds = {
        name: archive_kind(f"s3://bucket/{name}") for name in ("a.TAR", "a.tgz", "a.jpg", *WRITERS)
    }
    assert kinds["a.TAR"] == kinds["a.tgz"] == kinds["a.tar.xz"] == "tar"
    assert kinds["deflated.ZIP"] == "zip"
    assert kinds["struct.parquet"] == "parquet"
    assert kinds["zstd.feather"] == kinds["file.arrow"] == "arrow"
    assert kinds["a.jpg"] is None
    assert archive_kind("s3://bucket/tar") is None


NAME = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300
).filter(lambda name: not name.endswith("/"))
PAIRS = st.lists(
    st.tuples(NAME, st.binary(max_size=2000)), max_size=12, unique_by=lambda pair: pair[0]
)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=PAIRS)
def test_any_members_are_read_as_they_were_written(name: str, pairs: Pairs, tmp_path: Path) -> None:
    uri = put(tmp_path, name, WRITERS[name](pairs))
    found = contents(uri)
    assert [data for _, data in found] == [data for _, data in pairs]
    if name in NUMBERED:
        assert [member for member, _ in found] == [str(i) for i in range(len(pairs))]
    elif not any("\\x" in member for member, _ in pairs):
        assert [member for member, _ in found] == [member for member, _ in pairs]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.lists(
        st.text("\\x41é\udcc3\udca9\udcff", min_size=1, max_size=6), min_size=1, unique=True
    )
)
def test_names_that_are_not_utf8_stay_different(raw: list[str], tmp_path: Path) -> None:
    names = {name.encode("utf-8", "surrogateescape"): name for name in raw}
    pairs = [(name, key) for key, name in names.items()]
    uri = put(tmp_path, "a.tar", tar_bytes(pairs, form=tarfile.GNU_FORMAT))
    found = contents(uri)
    assert [data for _, data in found] == list(names)
    for member, _ in found:
        member.encode()


def test_a_name_that_is_not_utf8_is_printed_with_escapes(tmp_path: Path) -> None:
    pairs = [("\udcff.jpg", b"1"), ("\\xff.jpg", b"2"), ("a\\b.jpg", b"3")]
    uri = put(tmp_path, "a.tar", tar_bytes(pairs, form=tarfile.GNU_FORMAT))
    assert [member for member, _ in contents(uri)] == ["\\xff.jpg", "\\\\xff.jpg", "a\\b.jpg"]


@pytest.mark.parametrize("name", NAMED)
def test_of_members_with_the_same_name_the_last_counts(name: str, tmp_path: Path) -> None:
    pairs = [("a", b"old"), ("b", b"other"), ("a", b"new")]
    with pytest.warns(UserWarning, match="Duplicate") if "zip" in name.lower() else nullcontext():
        uri = put(tmp_path, name, WRITERS[name](pairs))
    assert contents(uri) == [("b", b"other"), ("a", b"new")]
    assert indexed(uri).duplicates == 1


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("ahead", [1, 3])
def test_any_order_from_many_threads_reads_the_same(name: str, ahead: int, tmp_path: Path) -> None:
    uri = put(tmp_path, name, WRITERS[name](MEMBERS))
    entries = entries_of(uri, indexed(uri))
    expected = [data for _, data in MEMBERS]
    for order in (entries, entries[::-1], entries[1::2] + entries[::2]):
        with members(order, ahead) as read, ThreadPoolExecutor(4) as pool:
            found = dict(zip(order, pool.map(read.fetch, order), strict=True))
            assert [found[entry] for entry in entries] == expected
            assert [read.fetch(entry) for entry in order[::3]] == [found[e] for e in order[::3]]


@pytest.mark.parametrize("name", ["a.tar.gz", "plain.parquet", "stream.arrow"])
def test_skipped_members_are_kept_up_to_a_limit(name: str, tmp_path: Path) -> None:
    uri = put(tmp_path, name, WRITERS[name](MEMBERS))
    entries = entries_of(uri, indexed(uri))
    with members(entries, ahead=3) as read:
        assert read.fetch(entries[-1]) == MEMBERS[-1][1]
        assert len(read._pass_of[uri]._kept) <= 3
        assert [read.fetch(entry) for entry in entries] == [data for _, data in MEMBERS]


@pytest.mark.parametrize("name", WRITERS)
def test_some_members_can_be_read_without_the_others(name: str, tmp_path: Path) -> None:
    uri = put(tmp_path, name, WRITERS[name](MEMBERS))
    entries = entries_of(uri, indexed(uri))[3:5]
    with members(entries) as read:
        assert [read.fetch(entry) for entry in entries] == [data for _, data in MEMBERS[3:5]]


# Damaged archives, and files that are none.


def whole_before(name: str, data: bytes, cut: int) -> int:
    """Counts with another reader how many members of a tar are whole in its first `cut` bytes."""
    if not name.endswith(".tar"):
        return 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return sum(info.offset_data + info.size <= cut for info in tar)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_archive_gives_its_whole_members_and_a_failure(
    name: str, part: float, tmp_path: Path
) -> None:
    data = WRITERS[name](MEMBERS)
    cut = int(part * len(data))
    found = contents(put(tmp_path, name, data[:cut]))
    whole = dict(expected(name, MEMBERS))
    good = [(member, content) for member, content in found if content == whole.get(member)]
    assert good == found[: len(good)] == expected(name, MEMBERS)[: len(good)]
    assert len(good) >= whole_before(name, data, cut)
    bad = found[len(good) :]
    assert [member for member, _ in bad] == [""] or len(good) == len(MEMBERS)
    assert all(reason in ("empty", "truncated", "corrupt") for _, reason in bad)


def test_a_stream_without_its_end_marker_is_truncated(tmp_path: Path) -> None:
    """It is impossible to know whether rows are missing."""
    uri = put(tmp_path, "a.arrow", arrow_bytes(MEMBERS, stream=True)[:-8])
    assert contents(uri) == [*expected("stream.arrow", MEMBERS), ("", "truncated")]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_member_that_is_not_where_it_was_listed_fails(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    uri = put(tmp_path, "a.tgz", pack(GOOD + END)[:-20])
    identity = storage.info(uri).identity
    listed = [Entry(uri, f"{i}", 3, identity, "", i << 20, "tar gz") for i in (1, 2)]
    with members(listed) as read:
        assert [outcome(read, entry) for entry in listed] == ["truncated"] * 2


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_changed_byte_never_raises_another_error(
    name: str, at: float, value: int, tmp_path: Path
) -> None:
    data = bytearray(WRITERS[name](MEMBERS))
    data[int(at * len(data))] ^= value
    uri = put(tmp_path, name, bytes(data))
    found = index_archive(storage.info(uri))
    if found is None:  # the column's type, in a table
        assert name in NUMBERED
        return
    entries = entries_of(uri, found)
    with members(entries) as read:
        outcomes = [outcome(read, entry) for entry in entries if entry.size <= MAX_BYTES]
    if "zip" in name.lower():  # every counted member has its checksum
        assert {content for content in outcomes if isinstance(content, bytes)} <= {
            data for _, data in MEMBERS
        }


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("data", [b"", b"\0", b"no archive, only text" * 99, photo(1).tobytes()])
def test_a_file_that_is_no_archive_is_one_failure(name: str, data: bytes, tmp_path: Path) -> None:
    (failed,) = contents(put(tmp_path, name, data))
    assert failed in [("", "corrupt"), ("", "truncated"), ("", "empty")]
    assert (failed[1] == "empty") == (not data)


def test_an_empty_archive_has_no_members(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        assert contents(put(tmp_path, name, write([]))) == []


def broken_detail(uri: str) -> str:
    entry = entries_of(uri, indexed(uri))[-1]
    assert entry.member == ""
    with members([entry]) as read, pytest.raises(BadImage) as bad:
        read.fetch(entry)
    return bad.value.detail


# Hostile tars.


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


END = b"\0" * 1024
GOOD = header("good.jpg", 3) + padded(b"yes")
YES = ("good.jpg", b"yes")


def test_links_and_devices_are_ignored_and_counted_and_folders_are_no_files(tmp_path: Path) -> None:
    kinds = [
        (tarfile.DIRTYPE, "folder"),
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "fifo"),
        (b"V", "other"),
    ]
    data = b"".join(
        header(f"x{i}", kind=kind, link="/etc/passwd") for i, (kind, _) in enumerate(kinds)
    )
    uri = put(tmp_path, "a.tar", data + GOOD + END)
    assert contents(uri) == [YES]
    assert indexed(uri).ignored == {"link": 2, "device": 2, "fifo": 1, "other": 1}


@pytest.mark.parametrize("name", ["/etc/passwd", "../../up.jpg", "x" * 1000, "a//b/./c.jpg", " "])
def test_names_like_paths_are_kept_as_they_are(name: str, tmp_path: Path) -> None:
    for kind in NAMED:
        assert contents(put(tmp_path, kind, NAMED[kind]([(name, b"x")]))) == [(name, b"x")]


def bad_size(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Writes a size in base 256, which lets a tar state any number."""
    raw = bytearray(header("lies.jpg", kind=kind))
    raw[124:136] = (size % (1 << 96)).to_bytes(12, "big")
    raw[124] |= 0x80
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


CHAIN = b"".join(
    header("././@LongLink", 6, tarfile.GNUTYPE_LONGNAME) + padded(b"hello\0") for _ in range(3000)
)
PAX = b"9" * 400_000
HOSTILE_TARS = {
    "a negative size": (bad_size(-512), "which are not there"),
    "a size that leads to the start": (
        bad_size(-len(GOOD) - 512),
        "which are not there",
    ),
    "a label that leads back": (bad_size(-1024, b"V"), "leads back"),
    "a huge size": (bad_size(1 << 62), "which are not there"),
    "a size over 2**63": (bad_size(1 << 70), "which are not there"),
    "a long name of 8 GiB": (
        header("././@LongLink", 8**11 - 1, tarfile.GNUTYPE_LONGNAME),
        "has over",
    ),
    "names of names without end": (CHAIN, "has over|recursion"),
    "a pax header of digits": (
        header("pax", len(PAX), tarfile.XHDTYPE) + padded(PAX),
        "256 digits",
    ),
    "a pax header of rubbish": (header("pax", 9, tarfile.XHDTYPE) + padded(b"7 =\n\xff\n=1"), "."),
    "a sparse map of rubbish": (
        header("s", 9, tarfile.GNUTYPE_SPARSE)[:480] + b"\xff" * 32,
        "bad|checksum|end marker",
    ),
    "a header of rubbish": (b"rubbish " * 64, "end marker is missing"),
    "no end marker": (b"", "end marker is missing"),
    "half a header": (GOOD[:100], "end marker is missing"),
    "a second tar behind": (END + GOOD, "follows the end marker"),
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_a_hostile_tar_is_one_failure_behind_its_good_members(case: str, tmp_path: Path) -> None:
    bad, said = HOSTILE_TARS[case]
    end = b"" if case in ("no end marker", "half a header") else END
    for name in ("a.tar", "a.tgz"):
        data = GOOD + bad + end
        uri = put(tmp_path, name, gzip.compress(data) if name == "a.tgz" else data)
        found = contents(uri)
        reason = found[-1][1]
        assert found == [
            YES if name == "a.tar" or reason != "corrupt" else ("good.jpg", "corrupt"),
            ("", reason),
        ]
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(broken_detail(uri))


def test_a_sparse_member_is_unsupported_and_the_next_is_read(tmp_path: Path) -> None:
    raw = bytearray(header("holes.jpg", 512, tarfile.GNUTYPE_SPARSE))
    raw[386:398], raw[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    raw[483:495] = b"%011o\0" % (1 << 30)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    uri = put(tmp_path, "a.tar", bytes(raw) + b"x" * 512 + GOOD + END)
    assert contents(uri) == [("holes.jpg", "unsupported"), YES]


def test_a_packed_tar_is_recognised_by_its_content(tmp_path: Path) -> None:
    assert contents(put(tmp_path, "a.tar", gzip.compress(GOOD + END))) == [YES]
    assert contents(put(tmp_path, "a.tgz", GOOD + END)) == [YES]


def test_a_tar_packed_in_several_streams_is_one(tmp_path: Path) -> None:
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        data = pack(GOOD[:600]) + pack(GOOD[600:] + END)
        assert contents(put(tmp_path, "a.tgz", data)) == [YES]


def test_zeros_between_the_streams_of_an_xz_are_padding(tmp_path: Path) -> None:
    for zeros in (4, 8 << 20):
        data = lzma.compress(GOOD[:600]) + bytes(zeros) + lzma.compress(GOOD[600:] + END) + bytes(4)
        assert contents(put(tmp_path, "a.txz", data)) == [YES]


@pytest.mark.parametrize("at", [-8, -4])
def test_a_packed_tar_whose_checksum_is_wrong_counts_no_member(at: int, tmp_path: Path) -> None:
    """Any of them may be the damaged one."""
    data = bytearray(gzip.compress(GOOD + header("b.jpg", 1) + padded(b"b") + END))
    data[at] ^= 1
    uri = put(tmp_path, "a.tgz", bytes(data))
    assert contents(uri) == [("good.jpg", "corrupt"), ("b.jpg", "corrupt"), ("", "corrupt")]


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_unpacking_stops_at_the_ratio_limit(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    zeros = pack(b"\0" * (1 << 24))
    data = pack(GOOD + header("bomb.jpg", 1 << 32)) + zeros * (4 if pack is lzma.compress else 256)
    uri = put(tmp_path, "a.tgz", data)
    unpacked = 0
    read = tar_stream._Unpacker.readinto

    def count(self: tar_stream._Unpacker, buffer: bytearray) -> int:
        nonlocal unpacked
        got = read(self, buffer)
        unpacked += got
        return got

    tar_stream._Unpacker.readinto = count  # type: ignore[method-assign]  # counted in its place
    try:
        assert contents(uri) == [YES, ("", "too_many_bytes")]
    finally:
        tar_stream._Unpacker.readinto = read  # type: ignore[method-assign]  # as it was
    assert unpacked < 3 * 1200 * len(data)


def test_an_xz_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    data = lzma.compress(GOOD + END, filters=filters)
    assert contents(put(tmp_path, "a.tar.xz", data)) == [("", "corrupt")]


# Hostile zips.


def central(data: bytes, at: int, form: str, value: int, member: int = 0) -> bytes:
    """Returns the zip with one field of its directory changed."""
    changed = bytearray(data)
    place = -1
    for _ in range(member + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    struct.pack_into(form, changed, place + at, value)
    return bytes(changed)


TWO = zip_bytes([("a.jpg", b"a" * 5000), ("b.jpg", b"b" * 5000)], zipfile.ZIP_DEFLATED)
STORED = zip_bytes([("a.jpg", b"a" * 5000), ("b.jpg", b"b" * 5000)])
B = ("b.jpg", b"b" * 5000)
HOSTILE_ZIPS = {
    "encrypted": (central(TWO, 8, "<H", 1), "unsupported"),
    "deflate64": (central(TWO, 10, "<H", 9), "unsupported"),
    "a wrong checksum": (central(TWO, 16, "<I", 7), "corrupt"),
    "more bytes than stated": (central(TWO, 24, "<I", 100), "corrupt"),
    "fewer bytes than stated": (central(TWO, 24, "<I", 6000), "corrupt"),
    "stored in fewer bytes": (central(STORED, 20, "<I", 4000), "corrupt"),
    "cut short": (central(TWO, 20, "<I", 10), "corrupt"),
    "over its neighbour": (central(STORED, 20, "<I", 9000), "corrupt"),
    "in the directory": (central(STORED, 42, "<I", len(STORED) - 80), "corrupt"),
    "not where a header is": (central(TWO, 42, "<I", 1), "corrupt"),
}


@pytest.mark.parametrize("case", HOSTILE_ZIPS)
def test_a_hostile_member_of_a_zip_fails_and_the_other_counts(case: str, tmp_path: Path) -> None:
    data, reason = HOSTILE_ZIPS[case]
    found = contents(put(tmp_path, "a.zip", data))
    assert sorted(found, key=str) == sorted([("a.jpg", reason), B], key=str)


def test_members_that_share_their_bytes_count_once(tmp_path: Path) -> None:
    """In a zip bomb, all members share the same few bytes."""
    same = zip_bytes([("a.jpg", b"a" * 5000), ("b.jpg", b"a" * 5000)])
    data = central(same, 42, "<I", 0, member=1)
    found = contents(put(tmp_path, "a.zip", data))
    assert found == [("a.jpg", "corrupt"), ("b.jpg", b"a" * 5000)]


@pytest.mark.parametrize("name", ["pax.tar", "stored.zip"])
def test_a_member_of_too_many_bytes_is_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("a", b"a"), ("huge", b"\0" * (2 * MAX_BYTES)), ("b", b"b")]
    uri = put(tmp_path, name, WRITERS[name](pairs))
    small, huge, other = entries_of(uri, indexed(uri))
    assert huge.size == 2 * MAX_BYTES
    asked: list[int] = []
    read_range = storage.read_range

    def spy(uri: str, start: int, length: int, identity: str | None = None) -> bytes:
        asked.append(length)
        return read_range(uri, start, length, identity)

    monkeypatch.setattr(storage, "read_range", spy)
    with members([small, huge, other]) as read:
        assert [read.fetch(small), read.fetch(other)] == [b"a", b"b"]
    assert sum(asked) < MAX_BYTES


def test_a_member_that_is_larger_than_it_states_is_not_read(tmp_path: Path) -> None:
    """Otherwise a few bytes would make us read gigabytes."""
    for data in (
        central(STORED, 24, "<I", 10),
        central(zip_bytes([("a", b"x" * 9000)]), 24, "<I", 1),
    ):
        first, *_ = entries_of(uri := put(tmp_path, "a.zip", data), indexed(uri))
        assert first.access.startswith("broken corrupt ")


def test_inflating_stops_at_the_stated_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zip_bytes([("bomb.png", b"\0" * (1 << 26))], zipfile.ZIP_DEFLATED)
    lying = central(bomb, 24, "<I", 70_000)
    uri = put(tmp_path, "a.zip", lying)
    entries = entries_of(uri, indexed(uri))
    with members(entries) as read:
        tracemalloc.start()
        assert outcome(read, entries[0]) == "corrupt"
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 20


def test_links_in_a_zip_are_ignored_and_counted_and_folders_are_no_files(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.mkdir("folder")
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("good.jpg", b"yes")
    uri = put(tmp_path, "a.zip", sink.getvalue())
    assert contents(uri) == [YES]
    assert indexed(uri).ignored == {"link": 1}


@pytest.mark.parametrize(
    ("version", "of", "name"),
    [
        (1, b"\x84.jpg", "\u017c\u00e4.jpg"),
        (2, b"\x84.jpg", "\u00e4.jpg"),
        (1, b"b.jpg", "\u00e4.jpg"),
    ],
    ids=["as Info-ZIP writes it", "of another version", "of a name before it was changed"],
)
def test_a_zip_may_hold_a_name_in_unicode_beside_that_of_a_code_page(
    version: int, of: bytes, name: str, tmp_path: Path
) -> None:
    value = struct.pack("<BI", version, zlib.crc32(of)) + "\u017c\u00e4.jpg".encode()
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        member = zipfile.ZipInfo("_.jpg")
        times = struct.pack("<HHBI", 0x5455, 5, 1, 0)
        member.extra = times + struct.pack("<HH", 0x7075, len(value)) + value
        file.writestr(member, b"yes")
    data = sink.getvalue().replace(b"_.jpg", b"\x84.jpg")  # in code page 437
    assert contents(put(tmp_path, "a.zip", data)) == [(name, b"yes")]


def test_a_zip_behind_a_program_and_with_a_comment_is_read(tmp_path: Path) -> None:
    sink = io.BytesIO(b"#!/bin/sh\n" * 1000)
    with zipfile.ZipFile(sink, "a") as file:
        file.writestr("good.jpg", b"yes")
        file.comment = b"a comment"
    assert contents(put(tmp_path, "a.zip", sink.getvalue())) == [YES]


def test_a_local_header_longer_than_usual_is_read(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name in ("a.jpg", "b.jpg"):
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH", 0xCAFE, 20_000) + b"\0" * 20_000
            file.writestr(info, name.encode() * 99)
    assert contents(put(tmp_path, "a.zip", sink.getvalue())) == [
        (name, name.encode() * 99) for name in ("a.jpg", "b.jpg")
    ]


@pytest.mark.soak
def test_a_zip64_is_read(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        with file.open("good.jpg", "w", force_zip64=True) as member:
            member.write(b"yes")
        for i in range(70_000):
            file.writestr(f"{i}", b"")
    found = indexed(put(tmp_path, "a.zip", sink.getvalue()))
    assert len(found.members) == 70_001


def test_an_archive_in_an_archive_is_not_opened(tmp_path: Path) -> None:
    inner = zip_bytes([YES])
    for name in NAMED:
        assert contents(put(tmp_path, name, NAMED[name]([("a.zip", inner)]))) == [("a.zip", inner)]


# Tables.


def test_a_null_row_fails_as_empty(tmp_path: Path) -> None:
    plain = pa.table({"image": pa.array([b"1", None, b""], pa.binary())})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": b"1", "path": "x"}, None, {"bytes": None, "path": "/elsewhere.jpg"}]
    hugging = pa.table({"image": pa.array(rows, kind)})
    for table, third in ((plain, b""), (hugging, "empty")):
        pq.write_table(table, tmp_path / "a.parquet")
        pyarrow.feather.write_feather(table, tmp_path / "a.feather")
        for name in ("a.parquet", "a.feather"):
            found = contents((tmp_path / name).as_uri())
            assert found == [("0", b"1"), ("1", "empty"), ("2", third)]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary(3), pa.binary_view()], ids=str
)
def test_every_type_of_bytes_is_read(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"x.bytes": pa.array([b"abc", b"def"], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather", compression="uncompressed")
    for name in ("a.parquet", "a.feather"):
        assert contents((tmp_path / name).as_uri()) == [("0", b"abc"), ("1", b"def")]


def test_a_table_without_images_is_no_source(tmp_path: Path) -> None:
    table = pa.table({"name": ["a"], "box": [[1.0]]})
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    for name in ("a.parquet", "a.feather"):
        assert index_archive(storage.info((tmp_path / name).as_uri())) is None
        assert index_archive(storage.info((tmp_path / name).as_uri()), "image") is None


def test_the_image_column_is_named_where_there_are_several(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1"], "mask, small": [b"2"], "name": ["a"]})
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    for name in ("a.parquet", "a.feather"):
        uri = (tmp_path / name).as_uri()
        with pytest.raises(SourceError, match=r"image, mask, small; name one by `image_column`"):
            index_archive(storage.info(uri))
        with pytest.raises(SourceError, match="no column 'picture' of bytes"):
            index_archive(storage.info(uri), "picture")
        assert contents(uri, "mask, small") == [("0", b"2")]


def test_a_damaged_row_group_fails_and_the_others_count(tmp_path: Path) -> None:
    pairs = [(str(i), Random(i).randbytes(5000)) for i in range(9)]
    data = bytearray(parquet_bytes(pairs))
    at = data.index(pairs[4][1][:50])
    data[at - 3000 : at + 100] = b"\xff" * 3100
    found = contents(put(tmp_path, "a.parquet", bytes(data)))
    assert [content for _, content in found[:3] + found[6:]] == [
        data for _, data in pairs[:3] + pairs[6:]
    ]
    assert any(isinstance(content, str) for _, content in found[3:6])


def test_a_table_that_states_absurd_numbers_of_rows_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_column, "MAX_SPARE_ROWS", 2)
    for name in NUMBERED:
        nulls = pa.table({"image": pa.nulls(50_000, pa.binary())})
        if name.endswith("parquet"):
            pq.write_table(nulls, tmp_path / name)
        else:
            pyarrow.feather.write_feather(nulls, tmp_path / name)
        assert contents((tmp_path / name).as_uri())[-1] == ("", "corrupt")


def test_a_record_batch_of_gigabytes_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_files, "MAX_BATCH_BYTES", 100_000)
    data = feather_bytes([("a", b"\0" * 200_000), ("b", b"x"), ("c", b"y")])
    assert len(data) < 10_000
    found = contents(put(tmp_path, "a.feather", data))
    assert found == [("0", "too_many_bytes"), ("1", "too_many_bytes"), ("2", b"y")]


def test_offsets_that_lead_out_of_a_batch_are_not_followed(tmp_path: Path) -> None:
    data = arrow_bytes([("a", b"abcdefgh"), ("b", b"ijklmnop")], stream=True)
    lying = data.replace(struct.pack("<iii", 0, 8, 16), struct.pack("<iii", 0, 8, 1 << 30))
    assert lying != data
    assert [content for _, content in contents(put(tmp_path, "a.arrow", lying))] == ["corrupt"] * 2


# Storage.


class Failing(io.BytesIO):
    """A store that answers a number of reads, and then fails."""

    answers = 0

    def read(self, size: int | None = -1) -> bytes:
        if self.answers <= 0:
            raise ConnectionResetError("no answer")
        self.answers -= 1
        return super().read(size)


@contextmanager
def open_failing(uri: str, identity: str | None = None) -> Iterator[IO[bytes]]:
    yield Failing(Path(storage.local_path(uri)).read_bytes())


def read_nothing(uri: str, start: int, length: int, identity: str | None = None) -> bytes:
    raise TransientError("no answer")


def retry_until_no_error(
    action: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> tuple[object, int]:
    """Returns the result, and how many errors of storage came before it."""
    for answers in range(200):
        monkeypatch.setattr(Failing, "answers", answers)
        try:
            return action(), answers
        except ConnectionResetError:
            continue
    raise AssertionError("it never ends")


@pytest.mark.parametrize("name", WRITERS)
def test_an_error_of_storage_is_never_a_defect_of_the_archive(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put(tmp_path, name, WRITERS[name](MEMBERS))
    right = indexed(uri)
    entries = entries_of(uri, right)
    monkeypatch.setattr(storage, "open_random", open_failing)
    monkeypatch.setattr(storage, "read_range", read_nothing)
    found, errors = retry_until_no_error(lambda: index_archive(storage.info(uri)), monkeypatch)
    assert isinstance(found, ArchiveIndex)
    assert found.members.equals(right.members)
    assert errors > 0
    with members(entries) as read:
        if name.endswith(".tar") or "zip" in name.lower():
            with pytest.raises(TransientError):
                read.fetch(entries[0])
            return
        found, errors = retry_until_no_error(
            lambda: [read.fetch(entry) for entry in entries], monkeypatch
        )
    assert found == [data for _, data in MEMBERS]
    assert errors > 0


def test_an_error_of_storage_that_a_library_swallows_is_raised() -> None:
    file = archive_file.ArchiveFile(Failing(b"abc"), "s3://bucket/a.zip")
    with pytest.raises(ConnectionResetError), archive_file.archive_defects(file), suppress(OSError):
        file.read()


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_that_changed_on_s3_is_refused(name: str, bucket: str) -> None:
    uri = f"{bucket}/{uuid.uuid4().hex}/ä {name}"
    storage.create(uri, WRITERS[name](MEMBERS))
    assert contents(uri) == expected(name, MEMBERS)
    entries = entries_of(uri, indexed(uri))
    item = storage.info(uri)
    storage.replace(uri, WRITERS[name]([(n, d[::-1] + b"!") for n, d in MEMBERS]))
    with pytest.raises(SourceError, match="changed between listing and reading"):
        index_archive(item)
    with members(entries) as read:
        for entry in entries:
            with pytest.raises(SourceError, match=f"{name} changed between listing and reading"):
                read.fetch(entry)
    storage.delete(uri)
    with members(entries) as read, pytest.raises(SourceError, match="does not exist"):
        read.fetch(entries[0])


def test_an_unknown_access_is_refused(tmp_path: Path) -> None:
    entry = Entry(put(tmp_path, "a.tar", GOOD + END), "good.jpg", 3, "x", "", 512, "tar zst")
    with members([entry]) as read, pytest.raises(SourceError, match="'tar zst', which this"):
        read.fetch(entry)


def test_adjacent_members_are_read_by_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(f"{i}", bytes([i]) * 1000) for i in range(100)]
    far = [("hole.bin", b"\0" * 2 * spans.GAP_BYTES), ("far", b"x")]
    asked: list[int] = []
    read_range = storage.read_range

    def spy(uri: str, start: int, length: int, identity: str | None = None) -> bytes:
        asked.append(length)
        return read_range(uri, start, length, identity)

    monkeypatch.setattr(storage, "read_range", spy)
    for name in ("a.tar", "a.zip"):
        uri = put(tmp_path, name, (tar_bytes if name == "a.tar" else zip_bytes)([*pairs, *far]))
        entries = [e for e in entries_of(uri, indexed(uri)) if e.member != "hole.bin"]
        asked.clear()
        with members(entries) as read:
            assert [read.fetch(entry) for entry in entries] == [d for _, d in pairs] + [b"x"]
        assert len(asked) == 2
        assert max(asked) < 200_000
        monkeypatch.setattr(spans, "SPAN_BYTES", 20_000)
        asked.clear()
        with members(entries) as read:
            assert [read.fetch(entry) for entry in entries] == [d for _, d in pairs] + [b"x"]
        assert max(asked) <= 20_000
        monkeypatch.undo()
        monkeypatch.setattr(storage, "read_range", spy)


def test_large_members_are_read_ahead_within_the_bytes_of_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "SPAN_BYTES", 1000)
    monkeypatch.setattr("pipeline.sources.archives.members.SPAN_BYTES", 1000)
    uri = put(tmp_path, "a.tar", tar_bytes([(f"{i}", b"x" * i) for i in (900, 1500, 1700, 901)]))
    large = put(tmp_path, "b.tar", tar_bytes([(f"{i}", b"x" * i) for i in (5000, 902)]))
    asked: list[int] = []
    read_range = storage.read_range

    def spy(uri: str, start: int, length: int, identity: str | None = None) -> bytes:
        asked.append(length)
        return read_range(uri, start, length, identity)

    monkeypatch.setattr(storage, "read_range", spy)
    for place, first in ((uri, [900, 1500]), (large, [5000])):
        asked.clear()
        entries = entries_of(place, indexed(place))
        with members(entries) as read:
            read.fetch(entries[0])
            read._pool.shutdown()
        assert sorted(asked) == first


def test_spans_are_released_when_their_members_have_been_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "SPAN_BYTES", 1 << 20)
    pairs = [(f"{i}", bytes([i]) * 250_000) for i in range(80)]
    uri = put(tmp_path, "a.tar", tar_bytes(pairs))
    entries = entries_of(uri, indexed(uri))
    with members(entries) as read:
        tracemalloc.start()
        assert all(read.fetch(e) == d for e, (_, d) in zip(entries, pairs, strict=True))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 << 20  # four spans ahead, of 20 MB in all


@pytest.mark.soak
def test_a_tar_of_many_members_is_listed_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_index, "ROWS_AT_ONCE", 1000)
    path = tmp_path / "many.tar"
    with path.open("wb") as file:
        for i in range(50_000):
            file.write(header(f"shard/{i:08d}.jpg", 3) + padded(b"abc"))
        file.write(END)
    item = storage.info(path.as_uri())
    tracemalloc.start()
    found = index_archive(item)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert len(found.members) == 50_000
    assert peak < 6 << 20  # Python's objects of 1,000 members; those of all take 22 MB


# The same images count the same in any container.


@pytest.fixture(scope="module")
def counter() -> Iterator[Counter]:
    counter = Counter(Extractor(NETWORK), SPEC, RANGES, Resources(threads=1))
    yield counter
    counter.close()


@pytest.fixture(scope="module")
def pictures(counter: Counter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pairs, DNA]:
    """Makes photos, one of them truncated, and the counts of the same files."""
    pairs = [(f"{i}.jpg", jpeg(i)) for i in range(5)]
    pairs.insert(2, ("2-bad.jpg", pairs[2][1][:-300]))
    folder = tmp_path_factory.mktemp("pictures")
    files = [storage.info(put(folder, name, data)) for name, data in pairs]
    plain = Shard(0, 0, tuple(Entry(f.uri, "", f.size, f.identity) for f in files))
    dna = counter.count(plain, "key").dna
    assert (dna.images, dna.failed) == (5, 1)
    return pairs, dna


USUAL = {"pax.tar", "a.tar.gz", "deflated.ZIP", "struct.parquet", "stream.arrow"}


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.soak) for n in WRITERS]
)
def test_images_count_the_same_in_every_archive(
    counter: Counter, pictures: tuple[Pairs, DNA], name: str, tmp_path: Path
) -> None:
    pairs, truth = pictures
    uri = put(tmp_path, name, WRITERS[name](pairs))
    entries = entries_of(uri, indexed(uri))
    partial = counter.count(Shard(0, 0, tuple(entries)), "key")
    assert partial.dna.identical(truth)
    (failure,) = partial.failures
    assert str(failure).startswith(f"{storage.readable(uri)}::{entries[2].member}: truncated: ")


def test_a_torn_archive_is_listed_beside_what_it_held(counter: Counter, tmp_path: Path) -> None:
    uri = put(tmp_path, "a.tar", tar_bytes([("0.jpg", jpeg(0)), ("1.jpg", jpeg(1))])[:3500])
    bomb = Entry(uri, "bomb.jpg", SPEC.preprocess.max_bytes + 1, "", "", 1 << 40, "tar")
    entries = [*entries_of(uri, indexed(uri)), bomb]
    partial = counter.count(Shard(0, 0, tuple(entries)), "key")
    assert partial.dna.images == 1
    assert sorted((f.member, f.reason) for f in partial.failures) == [
        ("", "truncated"),
        ("bomb.jpg", "too_many_bytes"),
    ]


def test_a_recursion_error_of_a_library_is_a_defect_of_the_archive(tmp_path: Path) -> None:
    """The recursion limit may be reached anywhere, also while storage reads."""

    class Deep(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise RecursionError("maximum recursion depth exceeded")

    file = archive_file.ArchiveFile(Deep(b"0123456789"), "file:///a.tar")
    with pytest.raises(BadImage), archive_file.archive_defects(file):
        file.read(5)
    assert file.error is None
