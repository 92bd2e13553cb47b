"""Tests files read in blocks: every byte is right, and common formats need few requests."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.buffers import (
    BLOCKS_KEPT,
    FIRST_BLOCK,
    LONGEST_BLOCK,
    SHORTEST_BLOCK,
    BlockFile,
    Mapped,
)

MIB = 2**20


class Counted:
    """A block file over bytes, which records what was requested."""

    def __init__(self, data: bytes) -> None:
        self.asked: list[tuple[int, int]] = []

        def fetch(start: int, length: int) -> bytes:
            assert length > 0
            assert start + length <= len(data)
            self.asked.append((start, length))
            return data[start : start + length]

        self.file = io.BufferedReader(BlockFile(len(data), data[:FIRST_BLOCK], fetch))


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, FIRST_BLOCK, FIRST_BLOCK + 1, 3 * MIB, 20 * MIB + 7])
def test_reads_in_any_order_return_the_right_bytes(size: int) -> None:
    data = noise(size)
    counted, truth = Counted(data), io.BytesIO(data)
    chance = random.Random(1)
    for _ in range(300):
        where, whence = chance.choice([(chance.randint(0, size), 0), (0, 2), (0, 1)])
        assert counted.file.seek(where, whence) == truth.seek(where, whence)
        length = chance.choice([0, 1, 512, 8192, 100_000, 3 * MIB, 10 * MIB])
        assert counted.file.read(length) == truth.read(length)
        assert counted.file.tell() == truth.tell()
    assert counted.file.seek(0) == 0
    assert counted.file.read() == data
    assert counted.file.seek(size + 10) == size + 10
    assert counted.file.read(1) == b""
    with pytest.raises((ValueError, OSError)):
        counted.file.seek(-1)


def test_sequential_reads_fetch_longer_and_longer_blocks() -> None:
    counted = Counted(noise(40 * MIB))
    while counted.file.read(64 * 1024):
        pass
    lengths = [length for _, length in counted.asked]
    assert lengths[:4] == [SHORTEST_BLOCK, 2 * MIB, 4 * MIB, LONGEST_BLOCK]
    assert sum(lengths) == 40 * MIB - FIRST_BLOCK


def test_jumps_fetch_short_blocks() -> None:
    counted = Counted(noise(200 * MIB // 8))
    for at in (20 * MIB, 3 * MIB, 11 * MIB):
        counted.file.seek(at)
        counted.file.read(10)
    assert [length for _, length in counted.asked] == [SHORTEST_BLOCK] * 3


def test_no_more_than_a_few_blocks_are_kept() -> None:
    counted = Counted(noise(30 * MIB))
    raw = counted.file.raw
    assert isinstance(raw, BlockFile)
    counted.file.read()
    assert len(raw._blocks) <= BLOCKS_KEPT


def as_tar(members: int, size: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(members):
            member = tarfile.TarInfo(f"{i:05d}.jpg")
            member.size = size
            tar.addfile(member, io.BytesIO(noise(size, i)))
    return out.getvalue()


def hop_tar(file: io.BufferedReader) -> int:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        return len(tar.getmembers())


def as_zip(members: int, size: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(members):
            archive.writestr(f"{i:05d}.jpg", noise(size, i))
    return out.getvalue()


def open_zip(file: io.BufferedReader) -> int:
    with zipfile.ZipFile(file) as archive:
        assert archive.read("00003.jpg") == noise(20_000, 3)
        return len(archive.namelist())


def as_parquet(groups: int, size: int) -> bytes:
    out = io.BytesIO()
    schema = pa.schema([("image", pa.binary()), ("name", pa.string())])
    with pq.ParquetWriter(out, schema, compression="none") as writer:
        for i in range(groups):
            rows = [{"image": noise(size, 100 * i + j), "name": f"{i}-{j}"} for j in range(10)]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return out.getvalue()


def read_a_group(file: io.BufferedReader) -> int:
    parquet = pq.ParquetFile(file)
    table = parquet.read_row_group(7)
    assert table["image"][3].as_py() == noise(50_000, 703)
    return int(parquet.num_row_groups)


@pytest.mark.parametrize(
    ("data", "use", "expected", "requests"),
    [
        (lambda: as_tar(200, 100_000), hop_tar, 200, 6),  # 20 MB, of which 100 kB are headers
        (lambda: as_zip(1000, 20_000), open_zip, 1000, 2),  # the directory, and a member
        (lambda: as_parquet(40, 50_000), read_a_group, 40, 3),  # the footer, and two columns
    ],
    ids=["tar", "zip", "parquet"],
)
def test_formats_that_are_read_in_part_take_few_requests(
    data: Callable[[], bytes],
    use: Callable[[io.BufferedReader], int],
    expected: int,
    requests: int,
) -> None:
    counted = Counted(data())
    assert use(counted.file) == expected
    assert len(counted.asked) <= requests


def test_an_error_of_a_fetch_reaches_the_reader_unchanged() -> None:
    class OurError(Exception):
        pass

    def fetch(start: int, length: int) -> bytes:
        raise OurError

    data = as_parquet(30, 50_000)
    for use in (hop_tar, open_zip, read_a_group):
        file = io.BufferedReader(BlockFile(len(data), data[:FIRST_BLOCK], fetch))
        with pytest.raises(OurError):
            use(file) if use != hop_tar else file.read()


def test_mapped_bytes_are_read_in_pieces_and_released() -> None:
    data = bytearray(noise(3 * MIB))
    with io.BufferedReader(Mapped(memoryview(data))) as file:
        assert file.read(10) == data[:10]
        assert file.seek(0, 2) == len(data)
        file.seek(5)
        assert file.read() == data[5:]
    data.append(0)  # which a view that is still held would forbid
