"""Counts that are read from pages directly are what pyarrow reads, or are left to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dna import FileKind, Ints, encode_sealed
from pipeline.dna.count_pages import read_count_pages
from pipeline.dna.sealed import open_parquet

COUNTS: dict[str, Any] = {
    "use_dictionary": False,
    "column_encoding": {"counts.list.element": "DELTA_BINARY_PACKED"},
}


def written(rows: Any, **layout: Any) -> bytes:
    """Returns a file with a column of counts between two others."""
    lists = pa.array(list(rows), pa.list_(pa.int64()))
    table = pa.table({"neuron": range(len(lists)), "counts": lists, "low": [0.5] * len(lists)})
    return encode_sealed(FileKind("test"), {}, [table], **(COUNTS | layout))


def counts_in(data: bytes, bins: int) -> Ints | None:
    return read_count_pages(data, open_parquet(data, "test"), 0, "counts", bins)


@pytest.mark.parametrize("bins", [1, 7, 100, 1000])
@pytest.mark.parametrize("largest", [0, 1, 9, 2**20, 2**44])
@pytest.mark.parametrize("page", [100, 2**20])
def test_counts_of_any_size_are_read_from_one_page_or_many(
    bins: int, largest: int, page: int
) -> None:
    chance = np.random.default_rng(bins)
    rows = chance.integers(-largest // 3, largest, (21, bins), endpoint=True)
    rows[5:9] = 0
    data = written(rows, data_page_size=page, write_batch_size=30)
    assert np.array_equal(counts_in(data, bins), rows)


@pytest.mark.parametrize(
    ("rows", "layout"),
    [
        ([[1, 2], [3, 4, 5], [6]], {}),
        ([[1, 2], None, [3, 4]], {}),
        ([[1, 2], [None, 4], [5, 6]], {}),
        ([[1, 2, 3], [], [4, 5, 6]], {}),
        ([[0, 2**62], [-(2**62), 0]], {}),
        ([[1, 2], [3, 4]], {"compression": "snappy"}),
        ([[1, 2], [3, 4]], {"column_encoding": {"counts.list.element": "PLAIN"}}),
        ([[1, 2], [3, 4]], {"use_dictionary": True, "column_encoding": None}),
        ([[1, 2], [3, 4]], {"data_page_version": "2.0"}),
    ],
)
def test_other_lists_and_layouts_are_left_to_pyarrow(rows: Any, layout: dict[str, Any]) -> None:
    assert counts_in(written(rows, **layout), 2) is None


def test_one_list_is_not_taken_for_two() -> None:
    assert counts_in(written([[1] * 31, [1]]), 16) is None


def test_no_flipped_bit_of_a_page_changes_what_is_read() -> None:
    rows = np.random.default_rng(0).integers(0, 9, (4, 20))
    data = written(rows)
    parquet = open_parquet(data, "test")
    column = parquet.metadata.row_group(0).column(1)
    start = column.data_page_offset
    read = 0
    for bit in range(8 * column.total_compressed_size):
        broken = bytearray(data)
        broken[start + bit // 8] ^= 1 << bit % 8
        found = read_count_pages(broken, parquet, 0, "counts", 20)
        read += found is not None
        assert found is None or np.array_equal(found, rows)
    assert 0 < read < 4 * column.total_compressed_size  # statistics are not looked at
