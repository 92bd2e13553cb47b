"""Tests the points at which folds are counted: enough for error bars, and the same when kept."""

from __future__ import annotations

import functools
import uuid
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.catalogue import Catalogue, collect, remove
from pipeline.comparing import (
    Effort,
    FoldCurves,
    Matrix,
    all_pairs,
    compare,
    comparison_job,
    fold_sums,
    layer_cache,
)
from pipeline.comparing.dna_layer import DnaLayer
from pipeline.comparing.fold_points import (
    LAYER_POINTS,
    LEAST_POINTS,
    FoldPoints,
    finest_step,
    grid,
    points_of,
    step_for,
)
from pipeline.comparing.fold_statistics import estimates
from pipeline.comparing.intervals import splits
from pipeline.comparing.kept_points import Counting, find_points, keep_points, plain_step
from pipeline.dna import DNA, INT_COLUMNS, DnaFile, Lens
from pipeline.errors import StorageError
from pipeline.events import Event
from pipeline.sources import plan
from pipeline.spec import Tap
from tests.comparing.test_matrix import stored
from tests.comparing.test_tiles import SMALL, filled, put, same
from tests.dna.test_counts_by_fold import file_of, folds_of, some_counts
from tests.golden.handmade import SPEC, commit_dataset, entries, hand_made
from tests.support.builders import tiny_spec

BINS = 1000


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    monkeypatch.setattr(all_pairs, "TILE_WORK", -1)
    return filled(3)


def counting(place: Catalogue, name: str) -> Counting:
    return Counting(place.root, SPEC, name, place.find(name))


def kept(place: Catalogue) -> list[str]:
    folder = f"{place.root}/_work/_fold_points"
    return sorted(item.uri for item in storage.walk(folder)) if storage.is_folder(folder) else []


def fail(*_: object) -> None:
    raise AssertionError("a DNA or its folds are read")


def nothing(*_: object) -> None:
    return None


# Which points.


@given(bins=st.integers(2, 5000), neurons=st.floats(0, 1e5))
def test_a_layer_has_points_enough_and_no_more_than_it_needs(bins: int, neurons: float) -> None:
    step, finest = step_for(bins, neurons), finest_step(bins)
    assert points_of(bins, finest) <= 128
    if step > finest:
        assert points_of(bins, step) * neurons >= LAYER_POINTS
        assert points_of(bins, step) >= LEAST_POINTS
    assert points_of(bins, 2 * step) < LEAST_POINTS or points_of(bins, 2 * step) * neurons < (
        LAYER_POINTS
    )


@given(bins=st.integers(2, 300), step=st.integers(1, 40))
def test_neurons_together_look_at_all_bins_alike(bins: int, step: int) -> None:
    at = grid(bins, 64 * step, step)
    seen = np.bincount(at[at < bins - 1], minlength=bins - 1)
    assert len(set(seen.tolist())) == 1
    assert (np.diff(at, axis=1) == step).all()


@functools.cache
def layer_of(seed: int, shift: float, neurons: int = 1280) -> tuple[DNA, dict[int, DNA]]:
    """One layer, some of whose neurons fire rarely; images have what their neurons share."""
    spec, ranges = tiny_spec(BINS, (Tap("x", neurons, 1),))
    empty = DNA.empty(spec, ranges)
    fixed, chance = np.random.default_rng(1), np.random.default_rng(seed)
    centre = fixed.uniform(-200, 900, neurons) + shift * fixed.normal(0, 1, neurons)
    width = fixed.uniform(5, 200, neurons)
    mixing = fixed.normal(0, 0.5, (5, neurons))
    folds = {}
    for fold in range(16):
        values = chance.normal(0, 1, (12, 5)) @ mixing + chance.normal(0, 1, (12, neurons))
        bins = np.clip(centre + values * width, 0, BINS - 1).astype(int)
        counts = np.zeros((neurons, BINS), np.int64)
        np.add.at(counts, (np.arange(neurons), bins), 1)
        folds[fold] = replace(empty, images=12, counts=counts)
    whole = sum(part.counts for part in folds.values())
    return replace(empty, images=192, counts=np.asarray(whole)), folds


@functools.cache
def curves_of(seed: int, shift: float, step: int) -> FoldCurves:
    whole, folds = layer_of(seed, shift)
    return FoldCurves.of([whole], [folds], step=step)


@pytest.mark.parametrize("shift", [0.0, 4.0, 60.0])
def test_few_points_of_many_neurons_give_the_estimates_of_all(shift: float) -> None:
    """`se` is within 2%, and distances within a tenth of it, of those from every bin."""
    neurons, found = 1280, []
    for step in (step_for(BINS, neurons), 1):
        a, b = curves_of(2, 0, step), curves_of(3, shift, step)
        found.append(estimates(fold_sums(a, b, np.full(neurons, 1 / neurons))))
    few, exact = found
    assert few["se"] == pytest.approx(exact["se"], rel=0.02)
    for column in ("emd_corrected", "low", "high"):
        close = float(exact["se"].item()) / 10
        assert few[column] == pytest.approx(exact[column], abs=close), column
    assert (few["floor"] == exact["floor"]).all()
    assert few["p"] == pytest.approx(exact["p"], abs=0.05)


@pytest.mark.parametrize("scale", [1, 10, 30, 10**3, 10**6])
def test_a_copy_is_never_told_apart_however_little_its_folds_differ(scale: int) -> None:
    """Folds of very many images are nearly alike: what rounding leaves of them decides nothing."""
    _, folds = layer_of(2, 0)
    smooth = folds[0].counts * scale
    parts = {
        n: replace(part, counts=smooth + part.counts, images=part.images * (scale + 1))
        for n, part in folds.items()
    }
    whole = functools.reduce(DNA.__add__, parts.values())
    a, b = (FoldCurves.of([whole] * many, [parts] * many, step=32) for many in (3, 5))
    weights = np.full(1280, 1 / 1280)
    assert (estimates(fold_sums(a, b, weights))["p"] == 1).all()


@pytest.mark.parametrize("folds", [2, 3, 11, 16])
def test_halves_are_the_distances_between_halves_of_the_folds(folds: int) -> None:
    _, parts = layer_of(2, 0, 160)
    found = FoldPoints.of({n: parts[n] for n in range(folds)}, 8)
    counts = np.stack([parts[n].counts for n in range(folds)]).astype(float)
    for column, signs in enumerate(splits(folds)):
        one, other = (counts[signs == side].sum(axis=0).cumsum(axis=1) for side in (1, -1))
        apart = np.abs(one / one[:, -1:] - other / other[:, -1:]).sum(axis=1)
        assert found.halves[:, column] == pytest.approx(apart, abs=1e-9)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("without", [0, 1, 2, 3])
def test_points_of_a_file_are_those_of_its_folds_that_have_images(
    monkeypatch: pytest.MonkeyPatch, without: int, alone: bool
) -> None:
    folds = folds_of(some_counts())
    for number in list(folds)[:without]:
        empty = {name: getattr(folds[number], name) * 0 for name in ("counts", *INT_COLUMNS)}
        folds[number] = replace(folds[number], images=0, numerics=(), **empty)
    file = file_of(folds)
    expected = FoldPoints.of(file.read_folds("x"), 8)
    monkeypatch.setattr(
        DnaFile, *("read_folds", fail) if alone else ("read_counts_by_fold", nothing)
    )
    found = FoldPoints.read(file, "x", 8)
    assert found.numbers == expected.numbers == tuple(folds)[without:]
    for field in ("images", "below", "totals", "halves"):
        assert np.array_equal(getattr(found, field), getattr(expected, field)), field


@pytest.mark.parametrize("times", [1, 2**31, 2**45])
def test_sums_are_exact_whatever_is_counted(times: int) -> None:
    """Those of floats would not be: the odd ones here are above 2**53."""
    spec, ranges = tiny_spec(7, (Tap("x", 2, 1),))
    counts = np.random.default_rng(0).integers(0, 900, (4, 2, 7)) * times + 1
    dna = DNA.empty(spec, ranges)
    found = FoldPoints.of({n: replace(dna, images=1, counts=of) for n, of in enumerate(counts)}, 1)
    assert np.array_equal(found.below, counts.cumsum(axis=2)[:, :, :6])
    assert np.array_equal(found.totals, counts.sum(axis=2))
    assert counts.sum() > 2**53 or times < 2**45


# Kept ones.


@pytest.mark.parametrize("count", [3, 4])
def test_a_short_comparison_of_many_reads_no_folds_again(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(all_pairs, "REREAD", 4)
    place = filled(count)
    read: list[str] = []
    real = DnaFile.read_counts_by_fold
    monkeypatch.setattr(
        DnaFile, "read_counts_by_fold", lambda self, layer: read.append(layer) or real(self, layer)
    )
    monkeypatch.setattr(DnaFile, "read_folds", fail)  # it takes twice as long
    layers = len(SPEC.layers)
    compare(place)
    assert len(read) == count * layers
    put(place, "set/1", 7)
    read.clear()
    after = compare(place)
    many = count >= all_pairs.REREAD
    assert len(read) == (1 if many else count) * layers
    assert len(kept(place)) == (count + 1 if many else 0)
    same(after, compare(place, effort=Effort(keep=False)))


def test_kept_counts_are_those_of_the_folds(place: Catalogue) -> None:
    for name in ("set/0", "set/1", "set/2"):
        keep_points(counting(place, name))
        found = find_points(counting(place, name))
        assert found is not None
        file = place.open_file("folds", name, place.find(name))
        assert found.pairs is not None
        assert found.pairs.to_json() == file.pairs.to_json()
        whole = place.open_file("dna", name, place.find(name))
        for layer in SPEC.layers:
            step = plain_step(SPEC, layer)
            read, counted = found.read(layer, step), FoldPoints.of(file.read_folds(layer), step)
            assert read is not None
            assert read.points.numbers == counted.numbers
            for field in ("images", "below", "totals", "halves"):
                assert np.array_equal(getattr(read.points, field), getattr(counted, field)), field
            expected = DnaLayer.of(whole.read([layer]), counted)
            for field in DnaLayer.ARRAYS:
                mine, theirs = getattr(read, field), getattr(expected, field)
                assert mine.dtype == theirs.dtype, field
                assert np.array_equal(mine, theirs, equal_nan=True), field
            assert found.read(layer, step + 1) is None


@pytest.mark.parametrize("times", [1, 300, 70_000, 2**40])
def test_large_counts_are_kept_whole(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Counts are stored in the least room that the largest of them needs."""
    real = FoldPoints.read

    def many(file: DnaFile, layer: str, step: int) -> FoldPoints:
        found = real(file, layer, step)
        return replace(found, below=found.below * times, totals=found.totals * times)

    monkeypatch.setattr(FoldPoints, "read", many)
    keep_points(counting(place, "set/2"))
    found = find_points(counting(place, "set/2"))
    assert found is not None
    layer = SPEC.layers[-1]
    read = found.read(layer, plain_step(SPEC, layer))
    assert read is not None
    folds = place.open_file("folds", "set/2", place.find("set/2"))
    expected = many(folds, layer, plain_step(SPEC, layer))
    assert expected.below.max() >= times
    assert np.array_equal(read.points.below, expected.below)
    assert np.array_equal(read.points.totals, expected.totals)


def test_a_dataset_of_one_fold_has_counts_that_are_empty(place: Catalogue) -> None:
    put(place, "one", 1)
    expected = compare(place, effort=Effort(keep=False))
    same(compare(place, effort=SMALL), expected)
    found = find_points(counting(place, "one"))
    assert found is not None
    read = found.read(SPEC.layers[0], plain_step(SPEC, SPEC.layers[0]))
    assert read is not None
    assert (len(read.points.numbers), read.points.below.size) == (1, 0)


def test_a_comparison_keeps_counts_once_and_later_ones_do_not_read_folds(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = compare(place, effort=Effort(keep=False))
    assert kept(place) == []
    same(compare(place, effort=SMALL), plain)
    assert len(kept(place)) == 3
    for uri in stored(place):
        storage.delete(uri)

    for method in ("read", "read_folds", "read_counts_by_fold"):
        monkeypatch.setattr(f"pipeline.dna.DnaFile.{method}", fail)
    same(compare(place, effort=SMALL), plain)


def test_without_error_bars_no_folds_are_read(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("read_folds", "read_counts_by_fold"):
        monkeypatch.setattr(f"pipeline.dna.DnaFile.{method}", fail)
    assert compare(place, error_bars=False).emd.max() > 0


def test_a_lens_of_few_neurons_has_points_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fewer neurons count, points are closer; kept counts of other points do not serve."""
    monkeypatch.setattr(all_pairs, "TILE_WORK", -1)
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    spec, ranges = tiny_spec(BINS, (Tap("wide", 170, 4),))
    assert plain_step(spec, "wide") == 4 * finest_step(BINS)
    for n in range(3):
        manifest = plan(entries(f"set/{n}", 6), shard_images=1)
        partials = [hand_made(shard, spec, ranges) for shard in manifest.shards]
        commit_dataset(place, f"set/{n}", manifest, partials, spec, ranges)
    weights = np.zeros(170)
    weights[:3] = 1
    lens = Lens("first", (("wide", 170),), weights)
    plain, seen = (compare(place, lens=of, effort=Effort(keep=False)) for of in (None, lens))
    same_estimates(compare(place, effort=SMALL), plain)
    assert len(kept(place)) == 3
    same_estimates(compare(place, lens=lens, effort=SMALL), seen)
    for uri in stored(place):
        storage.delete(uri)
    same_estimates(compare(place, effort=SMALL), plain)  # from the kept counts


def same_estimates(a: Matrix, b: Matrix) -> None:
    """The sums of many neurons' Fréchet distances round otherwise in other tiles."""
    for column in ("emd", *a.estimates):
        assert np.array_equal(a.stacked(column), b.stacked(column), equal_nan=True), column


def test_what_is_loaded_for_one_choice_of_points_does_not_serve_another(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, members = layer_cache.TileCache(), (("set/0", place.find("set/0")),)
    job = comparison_job.Job(place.root, SPEC, SPEC.layers, whole=True)
    steps = []
    for step in (1, 2, 1):
        monkeypatch.setattr(comparison_job.Job, "step", lambda *_, step=step: step)
        folds = cache.layer_data(job, members, SPEC.layers[0]).folds
        assert folds is not None
        steps.append(folds.step)
    assert steps == [1, 2, 1]


@pytest.mark.parametrize("damage", ["flipped", "torn", "of another DNA"])
def test_damaged_counts_are_removed_and_the_folds_read(place: Catalogue, damage: str) -> None:
    expected = compare(place, effort=Effort(keep=False))
    for name in ("set/0", "set/1"):
        keep_points(counting(place, name))
    of = counting(place, "set/0")
    data = bytearray(storage.read(of.uri))
    if damage == "flipped":
        data[len(data) // 3] ^= 1
    elif damage == "torn":
        del data[-20:]
    else:
        data[:] = storage.read(counting(place, "set/1").uri)
    storage.replace(of.uri, bytes(data))
    same(compare(place, effort=Effort(memory=1, keep=False)), expected)
    assert storage.read(of.uri) == bytes(data)  # nothing is written, and nothing removed
    same(compare(place, effort=SMALL), expected)
    assert not storage.exists(of.uri)


def test_a_catalogue_that_cannot_be_written_is_compared_all_the_same(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = compare(place, effort=Effort(keep=False))

    def refuse(uri: str, *_: object) -> None:
        raise StorageError(f"{uri}: permission denied")

    monkeypatch.setattr(storage, "create", refuse)
    told: list[Event] = []
    same(compare(place, effort=Effort(memory=1, progress=told.append)), expected)
    assert "nothing is kept for the next time" in str(told)


def test_gc_keeps_the_counts_of_kept_versions_alone(place: Catalogue) -> None:
    compare(place, effort=SMALL)
    mine = counting(place, "set/1").uri
    remove(place, ["set/0", "set/2"])
    collect(place, keep=1, grace=timedelta(0))
    assert kept(place) == [mine]
