"""Tests the fast reading of folds: it gives what pyarrow reads, or leaves a file to pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dna import DNA, DnaFile, FileKind, dna_metadata, encode_layers, encode_sealed
from pipeline.dna.count_pages import _PADDING, _pages, _read
from pipeline.dna.neuron_rows import to_table
from pipeline.errors import ConservationError, CorruptFile
from pipeline.spec import Tap
from tests.support.builders import NUMERICS, tiny_spec

NAME = "s3://bucket/folds.parquet"

FOLDS = 3

DELTAS: Mapping[str, Any] = {
    "use_dictionary": False,
    "column_encoding": {"counts.list.element": "DELTA_BINARY_PACKED"},
}


def folds_of(counts: np.ndarray) -> dict[int, DNA]:
    """Folds of these counts (folds, neurons, bins), the numbers of which leave gaps."""
    spec, ranges = tiny_spec(counts.shape[2], (Tap("x", counts.shape[1], 1),))
    empty, found = DNA.empty(spec, ranges), {}
    for k, part in enumerate(counts):
        sums = part.sum(axis=1)
        images = int(sums.max(initial=0)) + k
        rest = images - sums
        found[1 + 2 * k] = replace(
            empty,
            images=images,
            counts=part,
            underflow=rest // 3,
            overflow=rest - rest // 3,
            numerics=((NUMERICS, images),),
        )
    return found


def metadata_of(folds: Mapping[int, DNA]) -> dict[str, Any]:
    fields = ("images", "failed", "numerics")
    heads = {str(n): {key: dna_metadata(part)[key] for key in fields} for n, part in folds.items()}
    return dna_metadata(next(iter(folds.values())), folds=heads)


def rows_of(folds: Mapping[int, DNA]) -> pa.Table:
    return pa.concat_tables(to_table(part, number) for number, part in folds.items())


def file_of(folds: Mapping[int, DNA], rows: pa.Table | None = None) -> DnaFile:
    metadata = metadata_of(folds)
    return DnaFile(encode_layers("folds", metadata, [rows or rows_of(folds)]), "folds", NAME)


def some_counts(bins: int = 70, seed: int = 0, below: int = 9, neurons: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, (FOLDS, neurons, bins))


def require_same(file: DnaFile) -> None:
    found, expected = file.read_narrow_folds("x"), file.read_folds("x")
    assert found is not None
    assert found.numbers == tuple(expected)
    assert found.images.tolist() == [part.images for part in expected.values()]
    assert found.counts.dtype == np.int32
    for field in ("counts", "underflow", "overflow"):
        whole = np.stack([getattr(part, field) for part in expected.values()])
        assert np.array_equal(getattr(found, field), whole), field


@settings(max_examples=25)
@given(
    st.one_of(st.integers(2, 4), st.integers(30, 34), st.sampled_from([127, 1000])),
    st.integers(0, 2**32),
    st.integers(0, 31),
    st.integers(1, 5),
)
def test_counts_are_those_that_pyarrow_reads(bins: int, seed: int, bits: int, neurons: int) -> None:
    counts = some_counts(bins, seed, 2**bits, neurons)
    counts[seed % FOLDS, seed % neurons] = 2**bits - 1
    counts[:, :, seed % bins] = 0
    require_same(file_of(folds_of(counts)))


def test_lists_are_read_across_pages() -> None:
    file = file_of(folds_of(some_counts(1000, below=2**31, neurons=500)))
    with file._sealed.chunk(0, 3) as chunk:
        values = [values for *_, values in _pages(chunk)]
    assert len(values) > 1
    require_same(file)


@pytest.mark.parametrize("largest", [2**31, 2**32 + 5, 2**45])
def test_larger_counts_are_left_to_pyarrow(largest: int) -> None:
    counts = some_counts()
    counts[1, 2, 3] = largest
    file = file_of(folds_of(counts))
    assert file.read_narrow_folds("x") is None
    assert file.read_folds("x")[3].counts[2, 3] == largest


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"use_dictionary": False},
        {**DELTAS, "data_page_version": "2.0"},
        {**DELTAS, "compression": "snappy"},
        {**DELTAS, "write_page_checksum": False},
    ],
)
def test_pages_that_are_written_otherwise_are_left_to_pyarrow(layout: dict[str, Any]) -> None:
    folds = folds_of(some_counts())
    kind, metadata = FileKind("folds"), metadata_of(folds)
    usual, other = (
        DnaFile(encode_sealed(kind, metadata, [rows_of(folds)], **of), "folds", NAME)
        for of in (DELTAS, layout)
    )
    require_same(usual)
    assert other.read_narrow_folds("x") is None
    for number, part in other.read_folds("x").items():
        assert part.identical(usual.read_folds("x")[number])


def column(name: str, change: Callable[[list[Any]], Any]) -> Callable[[pa.Table], pa.Table]:
    """Changes values of one column."""

    def changed(rows: pa.Table) -> pa.Table:
        values = rows[name].to_pylist()
        change(values)
        at = rows.column_names.index(name)
        return rows.set_column(at, name, pa.array(values, rows[name].type))

    return changed


def put(row: int, *values: Any) -> Callable[[list[Any]], None]:
    return lambda of: of.__setitem__(slice(row, row + len(values)), values)


def move(count: int) -> Callable[[list[Any]], None]:
    """Moves activations between bins of one neuron, so that the sum is right."""

    def moved(of: list[Any]) -> None:
        of[5][1] -= count
        of[5][0] += count

    return moved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (column("counts", move(100)), "fold 3: neuron x.1. .*some counts negative"),
        (
            column("counts", lambda of: of[5].__setitem__(0, of[5][0] + 1)),
            "fold 3: neuron x.1. hold",
        ),
        (column("counts", lambda of: of[5].append(0)), "rows without 70 bins"),
        (column("counts", lambda of: (of[5].append(0), of[6].pop())), "rows without 70 bins"),
        (column("counts", lambda of: of[5].__setitem__(0, None)), "nulls, or rows without"),
        (column("counts", put(5, None)), "nulls in counts"),
        (column("counts", put(5, [])), "rows without 70 bins"),
        (column("overflow", put(0, -1)), "fold 1: neuron x.0."),
        (
            lambda rows: column("overflow", put(0, -1))(
                column("nonfinite", put(0, rows["overflow"][0].as_py() + 1))(rows)
            ),
            "fold 1: neuron x.0. .*some counts negative",
        ),
        (column("mean", put(0, None)), "nulls in mean"),
        (column("neuron", put(0, 1, 0)), "neurons 0 to 3 in order"),
        (column("layer", put(0, "y")), "neurons 0 to 3 in order"),
        (column("fold", put(3, 3, 1)), "hold its folds in order"),
        (lambda rows: rows.slice(4), "hold its folds in order"),
        (lambda rows: pa.concat_tables([rows, rows.slice(8)]), "hold its folds in order"),
        (lambda rows: rows.slice(1), "in order|cannot be read"),
        (lambda rows: rows.drop_columns("counts"), "counts"),
    ],
)
def test_what_pyarrow_reads_and_refuses_is_not_read(
    change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    counts = some_counts()
    counts[:, :, -1] = 0
    folds = folds_of(counts)
    file = file_of(folds, change(rows_of(folds)))
    assert file.read_narrow_folds("x") is None
    with pytest.raises((CorruptFile, ConservationError), match=message):
        file.read_folds("x")


def test_what_a_file_states_of_a_fold_is_checked() -> None:
    folds = folds_of(some_counts())
    folds[3] = replace(folds[3], numerics=((NUMERICS, 1),))
    for method in ("read_folds", "read_narrow_folds"):
        with pytest.raises(ConservationError, match="fold 3: numerics account for 1 of"):
            getattr(file_of(folds), method)("x")


def levels_in(data: bytes, width: int, many: int) -> list[int] | None:
    """Decodes levels as the format describes them; None if they end too early."""
    found: list[int] = []
    at = 0
    while len(found) < many:
        head = shift = 0
        more = True
        while more:
            if at >= len(data):
                return None
            head |= (data[at] & 127) << shift
            more, shift, at = data[at] > 127, shift + 7, at + 1
        size = (head >> 1) * width if head & 1 else 1
        held, at = data[at : at + size], at + size
        if head & 1:
            bits = int.from_bytes(held, "little")
            found += [bits >> k * width & (1 << width) - 1 for k in range(8 * len(held) // width)]
        elif held:
            found += [held[0]] * min(head >> 1, many)
        if not held or head < 2:
            return None
    return found[:many]


@pytest.mark.parametrize("bins", [3, 12, 70])
def test_a_page_of_other_levels_is_not_read(bins: int) -> None:
    with file_of(folds_of(some_counts(bins)))._sealed.chunk(0, 3) as chunk:
        ((page, size, values),) = _pages(chunk)
    starts = [int(place % bins > 0) for place in range(values)]
    counts = np.zeros(values + 1, np.int32)
    at = 0
    for width, expected in ((1, starts), (2, [3] * values)):
        stop = at + 4 + int.from_bytes(page[at : at + 4].tobytes(), "little")
        at += 4
        read = 0
        for place in range(8 * at, 8 * stop):
            page[place // 8] ^= 1 << place % 8
            right = levels_in(page[at:stop].tobytes(), width, values) == expected
            assert _read(page, size, counts, 0, values, bins) == right, place - 8 * at
            read += right
            page[place // 8] ^= 1 << place % 8
        assert read < 8 * (stop - at)
        at = stop
    assert _read(page, size, counts, 0, values, bins)
    assert not _read(page, size, counts, 1, values, bins)
    page[at + 3] ^= 1  # the number of counts, after the size of a block and the number of its parts
    assert not _read(page, size, counts, 0, values, bins)


@settings(max_examples=300)
@given(st.data())
def test_damaged_bytes_are_refused_by_their_checksum_or_are_read_alone(data: st.DataObject) -> None:
    """Nothing that lies after a page in memory has a part in what is read of it."""
    bins = 33
    file = file_of(folds_of(some_counts(bins, below=data.draw(st.sampled_from([2, 300, 2**31])))))
    with file._sealed.chunk(0, 3) as chunk:
        whole = bytearray(chunk)
        ((page, size, values),) = _pages(chunk)
    at, bit = data.draw(st.integers(0, len(whole) - 1)), 1 << data.draw(st.integers(0, 7))
    whole[at] ^= bit
    try:
        ((again, *_),) = _pages(memoryview(whole))
    except (ValueError, LookupError, TypeError, OSError, pa.ArrowException):
        pass
    else:
        assert np.array_equal(page, again)  # a bit of the statistics
    start = data.draw(st.integers(0, size - 1))
    page[start] ^= bit
    stop = data.draw(st.integers(start, size))
    found = []
    for rest in (0, 255):
        held = np.full(len(page) + 512, rest, np.uint8)
        held[:stop] = page[:stop]
        counts = np.zeros(values, np.int32)
        read = _read(held[: len(page)], stop, counts, 0, values, bins)
        found.append(counts.tolist() if read else None)
    assert len(page) >= size + _PADDING
    assert found[0] == found[1]
    assert found[0] is None or min(found[0]) >= 0
