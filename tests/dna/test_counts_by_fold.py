"""Tests the reading of the counts of folds alone: it gives what whole folds have, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dna import DNA, DnaFile, dna_metadata, encode_layers
from pipeline.dna.neuron_rows import to_table
from pipeline.errors import ConservationError, CorruptFile
from pipeline.spec import Tap
from tests.support.builders import NUMERICS, tiny_spec

NAME = "s3://bucket/folds.parquet"

FOLDS = 3


def folds_of(counts: np.ndarray) -> dict[int, DNA]:
    """Folds of these counts (folds, neurons, bins), with numbers of one digit and of two."""
    spec, ranges = tiny_spec(counts.shape[2], (Tap("x", counts.shape[1], 2),))
    empty, found = DNA.empty(spec, ranges), {}
    for k, part in enumerate(counts):
        sums = part.sum(axis=1)
        images = int(sums.max(initial=0)) // 2 + 1 + k
        rest = 2 * images - sums
        found[7 + 2 * k] = replace(
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
    found, expected = file.read_counts_by_fold("x"), file.read_folds("x")
    assert found is not None
    assert found.numbers == tuple(expected)
    assert found.images.tolist() == [part.images for part in expected.values()]
    for field in ("counts", "underflow", "overflow"):
        whole = np.stack([getattr(part, field) for part in expected.values()])
        assert np.array_equal(np.stack([*getattr(found, field)]), whole), field


@settings(max_examples=25)
@given(
    st.sampled_from([2, 3, 30, 127, 1000]),
    st.integers(0, 2**32),
    st.integers(0, 45),
    st.integers(1, 5),
)
def test_counts_are_those_of_whole_folds(bins: int, seed: int, bits: int, neurons: int) -> None:
    require_same(file_of(folds_of(some_counts(bins, seed, 2**bits, neurons))))


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
        (column("counts", move(100)), "fold 9: neuron x.1. .*some counts negative"),
        (
            column("counts", lambda of: of[5].__setitem__(0, of[5][0] + 1)),
            "fold 9: neuron x.1. hold",
        ),
        (column("counts", lambda of: of[5].append(0)), "rows without 70 bins"),
        (column("counts", lambda of: (of[5].append(0), of[6].pop())), "rows without 70 bins"),
        (column("counts", lambda of: of[5].__setitem__(0, None)), "nulls, or rows without"),
        (column("counts", put(5, None)), "nulls in counts"),
        (column("counts", put(5, [])), "rows without 70 bins"),
        (column("overflow", put(0, -1)), "fold 7: neuron x.0."),
        (
            lambda rows: column("overflow", put(0, -1))(
                column("nonfinite", put(0, rows["overflow"][0].as_py() + 1))(rows)
            ),
            "fold 7: neuron x.0. .*some counts negative",
        ),
        (column("mean", put(0, None)), "nulls in mean"),
        (column("neuron", put(0, 1, 0)), "neurons 0 to 3 in order"),
        (column("layer", put(0, "y")), "neurons 0 to 3 in order"),
        (column("fold", put(3, 9, 7)), "hold its folds in order"),
        (column("fold", put(3, None)), "hold its folds in order"),
        (lambda rows: rows.drop_columns("fold"), "hold its folds in order"),
        (lambda rows: rows.set_column(3, "counts", rows["underflow"]), "cannot be read"),
        (lambda rows: rows.slice(4), "hold its folds in order"),
        (lambda rows: pa.concat_tables([rows, rows.slice(8)]), "hold its folds in order"),
        (lambda rows: rows.slice(1), "in order|cannot be read"),
        (lambda rows: rows.drop_columns("counts"), "counts"),
    ],
)
def test_what_is_refused_of_whole_folds_is_not_read(
    change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    counts = some_counts()
    counts[:, :, -1] = 0
    folds = folds_of(counts)
    file = file_of(folds, change(rows_of(folds)))
    assert file.read_counts_by_fold("x") is None
    with pytest.raises((CorruptFile, ConservationError), match=message):
        file.read_folds("x")


def test_what_a_file_states_of_a_fold_is_checked() -> None:
    folds = folds_of(some_counts())
    folds[9] = replace(folds[9], numerics=((NUMERICS, 1),))
    for method in ("read_folds", "read_counts_by_fold"):
        with pytest.raises(ConservationError, match="fold 9: numerics account for 1 of"):
            getattr(file_of(folds), method)("x")
