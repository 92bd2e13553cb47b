"""Tests matrices against the plain distance, their table and file, and comparing in a catalogue."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot

from pipeline import storage
from pipeline.catalogue import MATRIX, Catalogue, Version
from pipeline.comparing import (
    ESTIMATES,
    Effort,
    Matrix,
    all_pairs,
    compare,
    comparison_job,
    cumulative,
    tile_files,
    tile_sums,
    tiles,
)
from pipeline.comparing.distance import emd, nfd
from pipeline.comparing.intervals import estimate, floor, splits
from pipeline.comparing.matrix import MATRIX_SCHEMA
from pipeline.comparing.significance import curve_difference_gram, flip_test, fold_shares
from pipeline.dna import DNA, SealedFile, encode_sealed
from pipeline.dna.dna_file import _concatenate
from pipeline.errors import (
    CorruptFile,
    NotFound,
    SourceError,
    SpecMismatch,
    StorageError,
    UsageError,
)
from pipeline.events import Event, Said
from pipeline.sources import plan
from pipeline.spec import Tap
from tests.comparing.test_emd_kernel import pairwise_emd
from tests.golden.handmade import (
    SPEC,
    catalogue_of,
    commit_dataset,
    contents,
    empty_catalogue,
    entries,
    hand_made,
    planned,
)
from tests.support.builders import NUMERICS, random_dna, tiny_spec
from tests.support.fold_noise import brute_noise

NAMED_COLUMNS = [
    "a", "b", "layer", "emd", "emd_range", "nfd", "fd", "emd_corrected", "se", "floor", "p", "q",
    "lens", "low", "high", "paired",
]  # fmt: skip


def put(catalogue: Catalogue, name: str, images: int, first: int = 0) -> Version:
    return commit_dataset(catalogue, name, *planned(name, images, first))


@functools.cache
def three_datasets() -> dict[str, bytes]:
    catalogue = empty_catalogue()
    for name, images in (("photos", 7), ("group/paintings", 4), ("single", 1)):
        put(catalogue, name, images)
    return contents(catalogue)


@pytest.fixture
def place() -> Catalogue:
    """Makes three datasets, of which `single` has one image."""
    return catalogue_of(three_datasets())


# The kernel.


def rounding(bins: int) -> float:
    """Returns how far off a distance may be: two values by 2^-27, in all bins but the last."""
    return (bins - 1) * 2.0**-26


@settings(max_examples=60)
@given(
    size=st.integers(1, 13),
    neurons=st.integers(1, 9),
    bins=st.integers(2, 70),
    positions=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_all_pairs_are_the_plain_distance(
    size: int, neurons: int, bins: int, positions: int, seed: int
) -> None:
    spec, ranges = tiny_spec(bins, (Tap("x", neurons, positions),))
    rng = np.random.default_rng(seed)
    dnas = [random_dna(spec, ranges, int(rng.integers(1, 60)), seed + i) for i in range(size)]
    found = pairwise_emd(dnas)
    expected = np.array([[emd(a, b, per_neuron=True).sum() for b in dnas] for a in dnas])
    assert found.shape == (size, size)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.allclose(found, expected, rtol=1e-12, atol=neurons * rounding(bins), equal_nan=True)
    assert np.array_equal(found, found.T, equal_nan=True)
    diagonal = np.diag(found)
    assert np.all((diagonal == 0) | np.isnan(diagonal))


def test_more_neurons_than_blocks_of_work() -> None:
    spec, ranges = tiny_spec(33, (Tap("x", 1000, 2),))
    dnas = [random_dna(spec, ranges, 9, seed) for seed in range(6)]
    expected = [[emd(a, b, per_neuron=True).sum() for b in dnas] for a in dnas]
    assert np.allclose(pairwise_emd(dnas), expected, rtol=1e-6, atol=0)


def of_counts(counts: np.ndarray, positions: int) -> DNA:
    spec, ranges = tiny_spec(counts.shape[1], (Tap("x", len(counts), positions),))
    images = int(counts.sum(axis=1)[0]) // positions
    dna = replace(
        DNA.empty(spec, ranges), images=images, counts=counts, numerics=((NUMERICS, images),)
    )
    dna.check()
    return dna


@pytest.mark.parametrize("images", [10**3, 10**6, 10**10])
def test_counts_near_each_other_are_told_apart(images: int) -> None:
    shape = np.exp(-(((np.arange(1000) - 500) / 100) ** 2))
    rngs = [np.random.default_rng(seed) for seed in range(3)]
    dnas = [
        of_counts(rng.multinomial(images, shape / shape.sum(), size=20).astype(np.int64), 1)
        for rng in rngs
    ]
    expected = np.array([[emd(a, b) for b in dnas] for a in dnas])
    found = pairwise_emd(dnas) / 20
    assert np.abs(found - expected).max() <= rounding(1000)
    assert np.abs(found - expected).max() <= 1e-6  # bins: roundings have both signs
    assert (found[~np.eye(3, dtype=bool)] > 0).all()


@pytest.mark.parametrize("shares", [(38, 77), (998, 999), (3, 4)])
def test_the_error_is_as_small_as_stated(shares: tuple[int, int]) -> None:
    a, b = (of_counts(np.array([[share, 1]], np.int64), 1) for share in shares)
    assert abs(pairwise_emd([a, b])[0, 1] - emd(a, b)) <= rounding(2)


@pytest.mark.parametrize("moved", [1, 10, 10**3, 10**5])
def test_the_error_for_near_identical_dnas_is_bounded_in_bins(moved: int) -> None:
    """They are nearer than a hundredth of a bin, where no relative error of 1e-6 is possible."""
    rng = np.random.default_rng(moved)
    counts = rng.integers(10**6, 10**7, (1, 1000))
    other = counts.copy()
    other[0, 100] -= moved
    other[0, 900] += moved
    counts[0, 0], other[0, 0] = (10**10 - row[0, 1:].sum() for row in (counts, other))
    a, b = of_counts(counts, 1), of_counts(other, 1)
    exact = emd(a, b)
    assert 0 < exact < 0.01
    error = abs(pairwise_emd([a, b])[0, 1] - exact)
    assert error <= rounding(1000)
    assert error > 1e-6 * exact  # otherwise the docstring promises too little


def test_counts_above_32_bits_do_not_overflow() -> None:
    huge = 2**40
    a = of_counts(np.array([[huge, 0, 0, 0]], np.int64), 1)
    b = of_counts(np.array([[0, 0, huge // 2, huge // 2]], np.int64), 1)
    assert pairwise_emd([a, b])[0, 1] == 2.5
    below = replace(a, counts=np.zeros((1, 4), np.int64), underflow=np.array([huge]))
    assert pairwise_emd([below, b])[0, 1] == 2.5


def test_a_neuron_without_a_finite_activation_makes_its_dna_s_pairs_nan() -> None:
    spec, ranges = tiny_spec()
    dnas = [random_dna(spec, ranges, 6, seed) for seed in range(4)]
    counts, ints = dnas[2].counts.copy(), {}
    counts[1] = 0
    for column in ("underflow", "overflow", "nonfinite"):
        ints[column] = getattr(dnas[2], column).copy()
        ints[column][1] = 6 * 4 if column == "nonfinite" else 0
    dnas[2] = replace(dnas[2], counts=counts, **ints)
    dnas[2].check()
    found = pairwise_emd(dnas)
    assert np.isnan(found[2]).all()
    assert np.isnan(found[:, 2]).all()
    rest = np.delete(np.delete(found, 2, 0), 2, 1)
    assert np.isfinite(rest).all()
    assert np.isfinite(pairwise_emd([dna.select(["head"]) for dna in dnas])).all()


# The table and its file.


def some_matrix(names: int = 3, layers: int = 2) -> Matrix:
    rng = np.random.default_rng(names)
    shape = (layers + 1, names, names)
    values = rng.random(shape)
    gaussians = rng.random(shape)
    gaussians[:, 0, :] = np.nan
    return Matrix(
        tuple(f"set/{i}" for i in range(names)),
        tuple(f"layer.{i}" for i in range(layers)),
        values,
        gaussians,
        gaussians * 2,
        50,
        {f"set/{i}": f"dna{i}" for i in range(names)},
        "spec",
    )


@given(st.integers(2, 5), st.integers(1, 4))
@settings(max_examples=15)
def test_the_file_gives_back_the_matrix(names: int, layers: int) -> None:
    matrix = some_matrix(names, layers)
    data = matrix.encode()
    assert data == matrix.encode()
    again = Matrix.decode(data, "m")
    assert np.array_equal(again.emd, matrix.emd)
    assert np.array_equal(again.nfd, matrix.nfd, equal_nan=True)
    for field in ("names", "layers", "bins", "members", "spec_digest", "lens"):
        assert getattr(again, field) == getattr(matrix, field)
    assert again.table.equals(matrix.table)


@settings(max_examples=40)
@given(st.data())
def test_a_torn_matrix_is_refused_with_its_name(data: st.DataObject) -> None:
    whole = some_matrix().encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptFile, match="some/matrix"):
        Matrix.decode(whole[:cut], "some/matrix")


def test_a_file_that_is_not_a_matrix_is_refused() -> None:
    with pytest.raises(CorruptFile, match="some/file: a 'manifest' file where a 'matrix' file"):
        Matrix.decode(plan(entries("x", 3)).data, "some/file")


def test_a_matrix_whose_rows_are_not_those_that_it_states_is_refused() -> None:
    file = SealedFile(some_matrix(3, 2).encode(), MATRIX, "m")
    planes = [file.parquet.read_row_group(plane) for plane in range(3)]
    turned = planes[0].select(["b", "a", *planes[0].column_names[2:]])
    unnamed = pa.array([None, *planes[0]["a"].to_pylist()[1:]], pa.string())
    wrong = {
        "has 4 planes; its layers are layer.0, layer.1": [*planes, planes[0]],
        "has 1 plane; ": planes[:1],
        "its rows are not those": planes[::-1],
        "rows are not those of the datasets": [
            turned.rename_columns(planes[0].column_names),
            *planes[1:],
        ],
        "not those of the datasets it states": [planes[0].slice(1), *planes[1:]],
        "its rows are not": [planes[0].set_column(1, "b", planes[0]["a"]), *planes[1:]],
        "rows are not those": [planes[0].set_column(0, "a", unnamed), *planes[1:]],
        "are not those of": [planes[0].set_column(12, "lens", planes[0]["layer"]), *planes[1:]],
        "column q is missing; it should be double": [of.drop_columns("q") for of in planes],
        "column lens is missing; it should be string": [of.drop_columns("lens") for of in planes],
        "column emd is int64; it should be double": [
            of.set_column(3, "emd", pa.array(range(9))) for of in planes
        ],
    }
    for why, tables in wrong.items():
        with pytest.raises(CorruptFile, match=f"some/matrix: .*{why}"):
            Matrix.decode(encode_sealed(MATRIX, file.metadata, tables), "some/matrix")
    again = Matrix.decode(encode_sealed(MATRIX, file.metadata, planes), "some/matrix")
    assert again.names == ("set/0", "set/1", "set/2")


def test_a_layer_of_a_matrix() -> None:
    matrix = some_matrix()
    assert np.array_equal(matrix.of("layer.1"), matrix.emd[1])
    assert np.array_equal(matrix.of(), matrix.emd[2])
    assert np.array_equal(matrix.of("all"), matrix.emd[2])
    with pytest.raises(UsageError, match="no layer 'x' in this matrix; it has layer"):
        matrix.of("x")


def test_the_table_has_the_named_columns_for_every_ordered_pair(place: Catalogue) -> None:
    matrix = compare(place)
    table = matrix.table
    assert table.column_names == NAMED_COLUMNS
    assert table.schema == MATRIX_SCHEMA
    rows = table.to_pylist()
    keys = {(row["a"], row["b"], row["layer"]) for row in rows}
    names = ["group/paintings", "photos", "single"]
    assert keys == {(a, b, la) for a in names for b in names for la in ("stem", "head", "all")}
    assert len(rows) == len(keys)
    dnas = {name: place.load(name) for name in names}
    for row in rows:
        a, b, layer = dnas[row["a"]], dnas[row["b"]], row["layer"]
        chosen = None if layer == "all" else layer
        expected = emd(a, b, layer=chosen)
        if math.isnan(expected):  # a neuron has no value
            assert row["emd"] is None
            assert row["emd_range"] is None
        else:
            assert row["emd"] == pytest.approx(expected, rel=1e-6)
            assert row["emd_range"] == pytest.approx(row["emd"] / SPEC.bins, rel=1e-15)
        if "single" in (row["a"], row["b"]):
            assert row["nfd"] is None
        else:
            assert row["nfd"] == pytest.approx(nfd(a, b, layer=chosen), rel=1e-12)
        assert row["lens"] == "uniform"
        if row["a"] == row["b"] or "single" in (row["a"], row["b"]):
            assert [row[column] for column in ESTIMATES] == [None] * len(ESTIMATES)


@functools.cache
def two_finite_datasets() -> dict[str, bytes]:
    catalogue = empty_catalogue()
    for name, images in (("photos", 40), ("group/paintings", 9)):
        put_finite(catalogue, name, name, images)
    return contents(catalogue)


@pytest.fixture
def finite() -> Catalogue:
    """Makes datasets of sixteen and of nine folds, whose activations are all finite."""
    return catalogue_of(two_finite_datasets())


def put_finite(catalogue: Catalogue, name: str, of: str, images: int) -> None:
    manifest, made = planned(of, images)
    partials = []
    for partial in made:
        dna = partial.dna
        high = dna.overflow + dna.nonfinite
        dna = replace(dna, overflow=high, nonfinite=np.zeros_like(high))
        partials.append(replace(partial, dna=dna))
    commit_dataset(catalogue, name, manifest, partials)


def test_estimates_are_those_of_the_folds_one_by_one(finite: Catalogue) -> None:
    """The truth is computed in float64, from the histograms of the folds."""
    place = finite
    matrix = compare(place, ["photos", "group/paintings"])
    whole, folds, images, numbers = {}, {}, {}, {}
    for name in matrix.names:
        whole[name] = place.load(name)
        file = place.open_file("folds", name, place.find(name))
        parts = [file.read_folds(layer) for layer in whole[name].layers]
        numbers[name] = sorted(parts[0])
        folds[name] = [_concatenate([part[fold] for part in parts]) for fold in numbers[name]]
        images[name] = np.array([fold.images for fold in folds[name]])
    (a, b), (n_a, n_b) = matrix.names, images.values()
    assert (len(n_a), len(n_b)) == (16, 9)
    for layer in matrix.planes:
        chosen = None if layer == "all" else layer
        sides = [
            [fold if chosen is None else fold.select([chosen]) for fold in folds[name]]
            for name in (a, b)
        ]
        neurons = len(sides[0][0].counts)
        added, changes = brute_noise(
            *(
                dict(zip(numbers[of], side, strict=True))
                for of, side in zip((a, b), sides, strict=True)
            ),
            np.full(neurons, 1 / neurons),
        )
        distance = np.asarray(emd(whole[a], whole[b], layer=chosen))
        found = estimate(distance, added, changes, 16, 9)
        expected = {
            "emd_corrected": found.emd_corrected,
            "se": found.se,
            "low": found.low,
            "high": found.high,
            "floor": floor(halved(folds[a], chosen), n_a, halved(folds[b], chosen), n_b),
        }
        curves = [
            np.array([cumulative(d if chosen is None else d.select([chosen])).ravel() for d in of])
            for of in (folds[a], folds[b])
        ]
        expected["p"] = flip_test(curve_difference_gram(*curves, *fold_shares(n_a, n_b)))
        for column, value in expected.items():
            mine = matrix.of(layer, column)[0, 1]
            assert mine == pytest.approx(float(value), rel=1e-4, abs=1e-4), (layer, column)
            assert matrix.of(layer, column)[1, 0] == mine
        assert matrix.of(layer, "q")[0, 1] == matrix.of(layer, "p")[0, 1]


def halved(folds: list[DNA], layer: str | None) -> np.ndarray:
    found = []
    for signs in splits(len(folds)):
        sides = [
            reduce(DNA.__add__, [f for f, sign in zip(folds, signs, strict=True) if sign == side])
            for side in (1, -1)
        ]
        found.append(emd(*sides, layer=layer))
    return np.array(found)


def test_without_error_bars_there_are_no_estimates(finite: Catalogue) -> None:
    place = finite
    plain = compare(place, ["photos", "group/paintings"], error_bars=False)
    full = compare(place, ["photos", "group/paintings"])
    assert plain.estimates == {}
    assert np.isfinite(full.of("all", "emd_corrected")[0, 1])
    assert np.array_equal(plain.emd, full.emd)
    assert compare(place, ["photos", "group/paintings"], error_bars=False).estimates == {}


def test_the_same_images_under_two_names_are_not_told_apart(finite: Catalogue) -> None:
    """Unlike the diagonal they are a pair, whether it is computed or taken from kept matrices."""
    alone = compare(finite)
    put_finite(finite, "twin", "photos", 40)
    assert finite.find("twin").dna == finite.find("photos").dna
    grown = compare(finite)
    for uri in stored(finite):
        storage.delete(uri)
    fresh = compare(finite)
    assert fresh.names == ("group/paintings", "photos", "twin")
    for column in ("emd", "nfd", *ESTIMATES):
        assert np.array_equal(grown.stacked(column), fresh.stacked(column), equal_nan=True), column
        assert (
            np.array_equal(
                grown.stacked(column)[:, 0, 1], alone.stacked(column)[:, 0, 1], equal_nan=True
            )
            or column == "q"
        )
    for plane in fresh.planes:
        assert (fresh.of(plane, "p")[1, 2], fresh.of(plane, "q")[1, 2]) == (1, 1)
        assert np.isnan(fresh.of(plane, "p")[1, 1])
        assert np.isfinite(fresh.of(plane, "high")[1, 2])
    kept = compare(finite, ["twin", "photos"])
    assert kept.of("all", "p")[0, 1] == 1


def test_all_is_the_mean_over_neurons_not_over_layers(place: Catalogue) -> None:
    matrix = compare(place, ["photos", "group/paintings"])
    assert matrix.of("all")[0, 1] == pytest.approx(
        (3 * matrix.of("stem")[0, 1] + 2 * matrix.of("head")[0, 1]) / 5, rel=1e-12
    )


def test_a_matrix_file_opens_in_duckdb_polars_and_pandas(place: Catalogue, tmp_path: Path) -> None:
    import duckdb
    import pandas as pd
    import polars as pl

    matrix = compare(place)
    path = tmp_path / "matrix.parquet"
    path.write_bytes(matrix.encode())
    expected = matrix.table.to_pylist()
    fetched = duckdb.sql(f"select a, b, layer, nfd from '{path}'").fetchall()
    assert fetched == [(r["a"], r["b"], r["layer"], r["nfd"]) for r in expected]
    (described,) = duckdb.sql(f"select count(*) from '{path}' where nfd is null").fetchall()
    assert described == (15,)
    assert pl.read_parquet(path).columns == NAMED_COLUMNS
    assert pl.read_parquet(path)["nfd"].to_list() == [row["nfd"] for row in expected]
    frame = pd.read_parquet(path)
    assert list(frame.columns) == NAMED_COLUMNS
    assert frame.pivot(index=["a", "layer"], columns="b", values="emd").shape == (9, 3)
    assert int(frame["nfd"].isna().sum()) == 15


# Over a catalogue.


def test_names_that_are_not_there_are_refused(place: Catalogue) -> None:
    with pytest.raises(NotFound, match=r"no dataset 'x'; it has: group/paintings, photos"):
        compare(place, ["photos", "x", "y"])
    with pytest.raises(NotFound, match=r"no dataset 'foto'; .*single\. Did you mean photos\?$"):
        place.load("foto")
    with pytest.raises(NotFound, match=r"single$"):
        place.load("x")
    with pytest.raises(UsageError, match="no layer 'tail' in tiny; it has stem, head"):
        compare(place, layers=["tail"])
    with pytest.raises(NotFound):
        compare(empty_catalogue())


@pytest.mark.parametrize("names", [["photos"], ["photos", "photos"]])
def test_fewer_than_two_are_refused(place: Catalogue, names: list[str]) -> None:
    with pytest.raises(
        UsageError,
        match=r"^compare needs two different .*, and only photos is named; without a name all 3",
    ):
        compare(place, names)


def test_the_error_counts_datasets_under_other_specs(place: Catalogue) -> None:
    other, ranges = tiny_spec(bins=8)
    for name in ("photos", "new"):
        manifest = plan(entries(name, 3))
        partials = [hand_made(shard, other, ranges) for shard in manifest.shards]
        commit_dataset(place, name, manifest, partials, other, ranges)
    with pytest.raises(UsageError, match="only new is named; without a name all 2 under its spec"):
        compare(place, ["new"])
    lone, ranges = tiny_spec(bins=9)
    manifest = plan(entries("lone", 3))
    partials = [hand_made(shard, lone, ranges) for shard in manifest.shards]
    commit_dataset(place, "lone", manifest, partials, lone, ranges)
    with pytest.raises(UsageError, match=f"only lone is under spec {lone.digest}; 4 are under ot"):
        compare(place, spec=lone.digest)
    with pytest.raises(UsageError, match="only lone is named; no other dataset is under its spec"):
        compare(place, ["lone"])
    single = empty_catalogue()
    commit_dataset(single, "lone", manifest, partials, lone, ranges)
    with pytest.raises(UsageError, match=r"and the catalogue has only lone$"):
        compare(single)


def test_the_order_of_the_names_is_kept(place: Catalogue) -> None:
    there = compare(place, ["photos", "group/paintings"])
    back = compare(place, ["group/paintings", "photos"])
    assert there.names == ("photos", "group/paintings")
    assert back.names == ("group/paintings", "photos")
    assert np.array_equal(there.emd, back.emd.transpose(0, 2, 1))
    assert compare(place, ["photos", "group/paintings", "photos"]).names == there.names


def test_a_matrix_of_one_layer_is_kept_separately(place: Catalogue) -> None:
    one = compare(place, layers=["head"])
    assert one.layers == ("head",)
    assert one.emd.shape == (1, 3, 3)
    assert set(one.table["layer"].to_pylist()) == {"head"}
    with pytest.raises(UsageError, match="no layer 'all'"):
        one.of("all")
    again = Matrix.decode(one.encode(), "one")
    assert np.array_equal(again.of("head"), one.of("head"), equal_nan=True)
    (kept,) = stored(place)
    whole = compare(place)
    assert whole.layers == ("stem", "head")
    assert np.array_equal(whole.of("head"), one.of("head"), equal_nan=True)
    assert len(stored(place)) == 2
    # A matrix of all layers must not be taken for one of a single layer, whatever its name says.
    storage.replace(kept, whole.encode())
    again = compare(place, layers=["head"])
    assert np.array_equal(again.emd, one.emd, equal_nan=True)
    assert again.layers == ("head",)


def stored(place: Catalogue) -> list[str]:
    try:
        return [item.uri for item in storage.walk(storage.join(place.root, "matrix"))]
    except SourceError:
        return []


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of pairs of every tile that is computed."""
    calls: list[int] = []
    real = tile_sums.compute

    def spy(tile: tiles.Tile, **how: bool) -> tile_sums.Block:
        calls.append(tile.pairs)
        return real(tile, **how)

    monkeypatch.setattr(tile_sums, "compute", spy)
    return calls


def test_a_matrix_is_computed_once_for_the_same_members(
    place: Catalogue, computed: list[int]
) -> None:
    first = compare(place)
    assert computed == [3]
    second = compare(place)
    assert computed == [3]
    assert np.array_equal(first.emd, second.emd, equal_nan=True)
    assert np.array_equal(first.nfd, second.nfd, equal_nan=True)
    assert second.members == {name: place.find(name).dna for name in place.names()}
    less = compare(place, ["photos", "single"])
    assert computed == [3]  # its pair is there already
    assert np.array_equal(less.emd, first.emd[:, 1:, 1:], equal_nan=True)


def test_read_only_access_gets_the_matrix_and_a_note_that_it_is_not_kept(
    place: Catalogue, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(uri: str, data: bytes) -> bool:
        raise StorageError(f"{uri}: access denied")

    told: list[Event] = []
    expected = compare(place)
    storage.delete_tree(storage.join(place.root, "matrix"))
    monkeypatch.setattr(storage, "create", deny)
    found = compare(place, effort=Effort(progress=told.append))
    assert np.array_equal(found.emd, expected.emd, equal_nan=True)
    assert computed == [3, 3]
    (event,) = told
    assert isinstance(event, Said)
    line = event.message
    assert line.startswith("the matrix is not kept for the next time: ")
    assert line.endswith(": access denied")


@pytest.mark.parametrize("bad", ["of-old", "torn"])
def test_read_only_access_compares_despite_an_unusable_kept_matrix(
    bad: str, place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(uri: str, *_: bytes) -> bool:
        raise StorageError(f"{uri}: access denied")

    expected = compare(place)
    if bad == "torn":
        (kept,) = (item.uri for item in storage.walk(storage.join(place.root, "matrix")))
        storage.replace(kept, storage.read(kept)[:-9])
    else:
        monkeypatch.setattr(comparison_job, "METHOD", "next")
    for name in ("create", "delete"):
        monkeypatch.setattr(storage, name, deny)
    found = compare(place)
    assert np.array_equal(found.emd, expected.emd, equal_nan=True)


def test_tiles_are_kept_if_the_matrix_cannot_be_written(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = storage.create

    def full(uri: str, data: bytes) -> bool:
        if "/matrix/" in uri:
            raise StorageError(f"{uri}: no space left")
        return created(uri, data)

    monkeypatch.setattr(all_pairs, "TILE_WORK", -1)
    monkeypatch.setattr(storage, "create", full)
    found = compare(place, effort=Effort(memory=1))
    assert tile_files.present(place.root)
    monkeypatch.setattr(storage, "create", created)
    again = compare(place, effort=Effort(memory=1))
    assert np.array_equal(found.emd, again.emd, equal_nan=True)
    assert not tile_files.present(place.root)


def test_a_changed_dataset_recomputes_only_its_own_pairs(
    place: Catalogue, computed: list[int]
) -> None:
    before = compare(place)
    old = place.head().number
    put(place, "photos", 9)
    after = compare(place)
    assert computed == [3, 0, 2]
    assert after.members != before.members
    assert not np.array_equal(after.of()[0, 1], before.of()[0, 1])
    assert np.array_equal(after.of()[0, 2], before.of()[0, 2], equal_nan=True)
    assert after.of()[0, 1] == pytest.approx(
        emd(place.load("group/paintings"), place.load("photos")), rel=1e-6
    )
    assert len(stored(place)) == 2
    then = compare(place, at=old)
    assert computed == [3, 0, 2]
    assert then.members == before.members


def test_a_kept_matrix_with_other_members_is_not_used(
    place: Catalogue, computed: list[int]
) -> None:
    right = compare(place)
    (uri,) = stored(place)
    wrong = replace(right, members={**right.members, "photos": "another"}, emd=right.emd + 1)
    storage.replace(uri, wrong.encode())
    assert np.array_equal(compare(place).emd, right.emd, equal_nan=True)


def test_a_corrupted_dna_is_refused_by_name(place: Catalogue) -> None:
    version = place.find("photos")
    uri = place.uri("dna", version.spec, "photos", version.dna)
    data = bytearray(storage.read(uri))
    data[len(data) // 2] ^= 1
    storage.replace(uri, bytes(data))
    with pytest.raises(CorruptFile, match=f"{version.dna}.*sha256"):
        compare(place)
    assert stored(place) == []
    assert compare(place, ["single", "group/paintings"]).names == ("single", "group/paintings")
    storage.delete(uri)
    with pytest.raises(SourceError, match=version.dna):
        compare(place)


def test_datasets_of_different_specs_are_compared_separately(place: Catalogue) -> None:
    other, ranges = tiny_spec(bins=8)
    for name in ("photos", "new"):
        manifest = plan(entries(name, 3))
        partials = [hand_made(shard, other, ranges) for shard in manifest.shards]
        commit_dataset(place, name, manifest, partials, other, ranges)
    assert compare(place).names == ("group/paintings", "photos", "single")
    fine = compare(place, spec=other.digest)
    assert (fine.names, fine.bins) == (("new", "photos"), 8)
    assert compare(place, ["photos", "new"]).spec_digest == other.digest  # which both have
    with pytest.raises(SpecMismatch, match=r"group/paintings .* and new .*: bins: 5 against 8"):
        compare(place, ["group/paintings", "new"])


def test_names_that_share_a_spec_are_compared_under_it(place: Catalogue) -> None:
    """Names that exist only under another spec than the default are compared under that one."""
    other_spec, other_ranges = tiny_spec(bins=7)
    for name in ("x", "y"):
        manifest = plan(entries(name, 3))
        partials = [hand_made(shard, other_spec, other_ranges) for shard in manifest.shards]
        commit_dataset(place, name, manifest, partials, other_spec, other_ranges)
    assert place.head().default_spec != other_spec.digest
    assert compare(place, ["x", "y"]).spec_digest == other_spec.digest
    with pytest.raises(NotFound, match=r"has no dataset 'z'; it has: .*x, y"):
        compare(place, ["x", "z"])


# Repr, table and plot.


def small_matrix(count: int = 2) -> Matrix:
    names = tuple(f"<{at}>" for at in range(count))
    values = np.arange(2.0 * count**2).reshape(2, count, count)
    unknown = np.full_like(values, np.nan)
    members = dict.fromkeys(names, "")
    return Matrix(names, ("stem",), values, unknown, unknown, 5, members, "")


def test_a_matrix_has_a_readable_repr_and_table() -> None:
    matrix = small_matrix()
    what = "2 datasets in 1 layer: distances of all neurons, in bins, not corrected for sample size"
    assert str(matrix).splitlines() == [
        f"<Matrix of {what}>",
        "       1  2",
        "1 <0>  4  5",
        "2 <1>  6  7",
    ]
    assert f"<caption>{what}</caption>" in matrix._repr_html_()
    assert "<td>&lt;1&gt;</td><td>6</td><td>7</td>" in matrix._repr_html_()
    assert "; 5 more not shown" in small_matrix(25)._repr_html_()
    assert "; 15 more not shown>" in repr(small_matrix(25))
    assert len(repr(small_matrix(25)).splitlines()) == 12
    table = matrix.to_pandas()
    assert table.query("layer == 'all'")["emd"].tolist() == [4, 5, 6, 7]


def test_a_matrix_is_plotted_with_its_numbers() -> None:
    axes = small_matrix().plot("stem")
    assert pyplot.gcf() is axes.figure  # so a notebook shows it
    pyplot.close()
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2", "3"]
    assert axes.get_title() == "emd, stem"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["<0>", "<1>"]
    assert small_matrix(25).plot(ax=axes) is axes
