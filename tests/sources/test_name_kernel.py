"""Tests that the kernels give the hashes of `zlib` and of DuckDB, on which plans rest."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.name_kernel import crc32_of, folder_starts, group_numbers, name_numbers
from pipeline.sources.pair_names import BY_STEM, IMAGE_SUFFIXES, Pairing, name_number

TEXTS = st.lists(st.text(max_size=200) | st.text("a", min_size=40, max_size=140), max_size=8)

ENDS = st.sampled_from(["", ".", ".0001", ".JPG", "jpg", ".jpg.", ".xjpg", ".jpg\n", ".jp\x12"])
ENDS |= st.sampled_from(IMAGE_SUFFIXES).map(lambda suffix: f".{suffix}")

PLACES = st.sampled_from(["", "s3://b", "s3://b/", "s3://b/p", "s3://b/p/", "s3://b/pq/", "/"])

URIS = st.builds("".join, st.tuples(PLACES, st.text("ab./é\0", max_size=70), ENDS))

PAIRINGS = st.builds(Pairing, PLACES, st.sampled_from([None, BY_STEM]))


@given(TEXTS, st.integers(0, 3))
def test_sums_are_those_of_zlib(texts: list[str], first: int) -> None:
    """`first` texts come before in the same buffer."""
    column = pa.array(texts, pa.string()).slice(first)
    assert crc32_of(column).tolist() == [zlib.crc32(text.encode()) for text in texts[first:]]
    chunks = pa.chunked_array([column, column], pa.string())
    assert crc32_of(chunks).tolist() == 2 * crc32_of(column).tolist()


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1, "preserve_insertion_order": True}) as database:
        yield database


@given(st.lists(URIS, max_size=8), st.integers(0, 3), PAIRINGS)
def test_numbers_of_names_are_those_of_duckdb(
    database: duckdb.DuckDBPyConnection, uris: list[str], first: int, way: Pairing
) -> None:
    column = pa.array(uris, pa.string()).slice(first)
    database.register("rows", pa.table({"uri": column, "member": [""] * len(column)}))
    rows = database.execute(f"select {name_number(way.name())} from rows").fetchall()
    assert name_numbers(column, way).tolist() == [number for (number,) in rows]


@given(st.lists(URIS, max_size=8), st.integers(0, 3), PAIRINGS)
def test_numbers_of_groups_are_those_of_duckdb(
    database: duckdb.DuckDBPyConnection, groups: list[str], first: int, way: Pairing
) -> None:
    """However images are paired, groups are named by their paths, with all suffixes."""
    column = pa.array([*groups, *groups], pa.string()).slice(first)
    database.register("rows", pa.table({"group": column}))
    number = name_number(way.below('"group"'))
    rows = database.execute(f"select {number} from rows").fetchall()
    for its in (column, pa.chunked_array([column.slice(0, 1), column.slice(1)], pa.string())):
        assert group_numbers(its, way).tolist() == [number for (number,) in rows]


FOLDERS = st.sampled_from(["", "/", "a/", "b/", "é/", "ab/", "a/b/", "b/b/"])


@given(st.lists(st.builds("".join, st.tuples(FOLDERS, st.text("ab.")))), st.integers(0, 3))
def test_a_folder_starts_where_the_one_before_ends(uris: list[str], first: int) -> None:
    """A folder is all up to the last slash. `first` uris come before in the same buffer."""
    column = pa.array(uris, pa.string()).slice(first)
    folders = [uri[: uri.rfind("/") + 1] for uri in uris[first:]]
    expected = [at == 0 or folders[at - 1] != folder for at, folder in enumerate(folders)]
    assert folder_starts(column).tolist() == expected


def test_names_of_every_length_are_hashed() -> None:
    """A block of MD5 has 64 bytes, of which 9 are at the end of the last one."""
    names = ["é" + "x" * length for length in range(200)]
    digests = [hashlib.md5(name.encode(), usedforsecurity=False).digest() for name in names]
    expected = [int.from_bytes(digest[8:], "little") for digest in digests]
    assert name_numbers(pa.array(names), Pairing()).tolist() == expected
