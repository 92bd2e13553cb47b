"""Tests that a search for the nearest finds what comparing all pairs finds, and computes less."""

from __future__ import annotations

import doctest
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.catalogue import Catalogue, Version, collect, remove
from pipeline.comparing import (
    Curves,
    Effort,
    Matrix,
    Neighbours,
    compare,
    distances,
    kept_coarse,
    nearest,
    nearest_rows,
    nearest_search,
    pair_tiles,
)
from pipeline.comparing.coarse_curves import CoarseLayer, least_distances, together
from pipeline.comparing.comparison_job import Job
from pipeline.comparing.kept_coarse import encode_coarse, find_coarse
from pipeline.comparing.kept_points import Counting
from pipeline.comparing.nearest_rows import Edge, pair_of, search
from pipeline.comparing.nearest_search import _counted
from pipeline.comparing.neighbour_graph import NEIGHBOUR_SCHEMA
from pipeline.comparing.pair_tiles import LOAD_WORK, LOAD_WORK_BARRED, cut_pairs
from pipeline.comparing.significance import adjusted
from pipeline.dna import DNA, Floats, Lens
from pipeline.errors import NotFound, SpecMismatch, StorageError, TransientError, UsageError
from pipeline.events import Event
from pipeline.reporting import found_lines, found_sentences, neighbours_json
from pipeline.reporting.conclusions import ALIKE_TEXT
from pipeline.sources import Shard, plan
from pipeline.spec import Tap
from tests.golden.handmade import (
    catalogue_of,
    commit_dataset,
    contents,
    entries,
    hand_made,
    with_failures,
)
from tests.support.builders import random_dna, tiny_spec

SPEC, RANGES = tiny_spec(40, (Tap("stem", 3, 4), Tap("head", 2, 1)))


def test_the_example_of_the_docstring_holds() -> None:
    assert doctest.testmod(nearest_rows).failed == 0


# The bounds.


def curves_of(counts: Sequence[np.ndarray], flows: Sequence[np.ndarray]) -> Curves:
    neurons, bins = counts[0].shape
    curves = Curves.empty(neurons, len(counts), bins)
    curves.fill(0, counts, [flow[0] for flow in flows], [flow[1] for flow in flows])
    return curves


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    bins=st.sampled_from([2, 3, 16, 17, 18, 40, 255, 1000, 1009]),
    spread=st.sampled_from([1, 2, 30]),
    weighed=st.booleans(),
)
def test_no_distance_is_below_its_bound(seed: int, bins: int, spread: int, weighed: bool) -> None:
    """Few activations fall into few bins or many, outside of all, or there are none."""
    rng = np.random.default_rng(seed)
    neurons, size = 6, 5
    chance = rng.dirichlet(np.full(bins, 1 / spread), (size, neurons))
    total = rng.choice([0, 1, 3, 10**6], (size, neurons), p=[0.05, 0.2, 0.25, 0.5])
    counts = [rng.multinomial(total[at], chance[at]).astype(np.int64) for at in range(size)]
    flows = [rng.integers(0, 4, (2, neurons)) * rng.integers(0, 2) for _ in range(size)]
    counts[4], flows[4] = counts[3] + 0, flows[3] + 0  # two that are equal
    weights = rng.choice([0.0, 0.3, 2.0], neurons) if weighed else np.ones(neurons)
    every = curves_of(counts, flows)
    exact = distances(every, every, weights)
    layers = [
        CoarseLayer.of(curves_of([one], [flow]), bins)
        for one, flow in zip(counts, flows, strict=True)
    ]
    rows = together(layers)
    least = least_distances(rows, rows, weights, bins)
    assert (np.isnan(least) == np.isnan(exact)).all()
    known = ~np.isnan(exact)
    assert (least[known] <= exact[known]).all()
    assert (least[known] >= 0).all()
    one = least_distances(together(layers[1:2]), rows, weights, bins)
    assert np.array_equal(one, least[1:2], equal_nan=True)


def test_a_bound_is_close_to_the_distance_of_curves_that_do_not_cross() -> None:
    bins, at = 1000, np.arange(1000)
    counts = [(1e6 * np.exp(-(((at - m) / 100) ** 2))).astype(np.int64)[None] for m in (400, 500)]
    none = [np.zeros((2, 1), np.int64)] * 2
    every = curves_of(counts, none)
    exact = distances(every, every, np.ones(1))[0, 1]
    rows = together([CoarseLayer.of(curves_of([one], none[:1]), bins) for one in counts])
    assert 0.999 * exact < least_distances(rows, rows, np.ones(1), bins)[0, 1] <= exact


# The search.


def brute(apart: Floats, row: int, top: int) -> tuple[int, ...]:
    known = [j for j in range(len(apart)) if j != row and not np.isnan(apart[row, j])]
    return tuple(sorted(known, key=lambda j: (apart[row, j], j))[:top])


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 14),
    top=st.integers(1, 15),
    loose=st.sampled_from([0, 1, 3]),
    data=st.data(),
)
def test_the_search_finds_what_sorting_all_finds(
    seed: int, size: int, top: int, loose: int, data: st.DataObject
) -> None:
    """Distances are few numbers, so that many tie, and so do their bounds."""
    rng = np.random.default_rng(seed)
    apart = np.triu(rng.integers(0, 6, (size, size)).astype(float), 1)
    apart[np.triu(rng.random((size, size)) < 0.15, 1)] = np.nan
    apart = apart + apart.T
    least = np.maximum(apart - rng.integers(0, loose + 1, (size, size)), 0)
    told = rng.random((size, size)) < 0.5  # the others are found to have none when computed
    least = np.where(np.isnan(least) & ~told, 0.0, least)
    rows = data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True))
    asked: list[Edge] = []

    def compute(pairs: Sequence[Edge]) -> dict[Edge, float]:
        asked.extend(pairs)
        return {pair: float(apart[pair]) for pair in pairs}

    found = search(least[rows], rows, top, compute)
    assert found.nearest == tuple(brute(apart, row, top) for row in rows)
    assert len(asked) == len(set(asked)) == len(found.exact)
    for i, j in asked:  # nothing was computed without a reason
        assert i < j
        reasons = []
        for row, other in ((i, j), (j, i)):
            if row in rows:
                near = brute(apart, row, top)
                limit = apart[row, near[-1]] if len(near) == top else np.inf
                reasons.append(least[row, other] <= limit + 6)
        assert any(reasons)


def test_what_is_far_by_its_bound_is_not_computed() -> None:
    size = 1000
    at = np.arange(size, dtype=float)
    least = np.abs(at - 300)[None] * 0.9
    asked: list[Edge] = []

    def compute(pairs: Sequence[Edge]) -> dict[Edge, float]:
        asked.extend(pairs)
        return {(i, j): abs(i - j) for i, j in pairs}

    found = search(least, [300], 20, compute)
    assert set(found.nearest[0]) == set(range(290, 311)) - {300}
    assert len(asked) <= 20 + 2 + nearest_rows.AHEAD


# In a catalogue.


def shifted(shard: Shard, at: float) -> DNA:
    """Makes a DNA of values about a place."""
    dna = random_dna(SPEC, RANGES, len(shard.members), int(shard.key(SPEC.digest)[:8], 16))
    rng = np.random.default_rng(dna.counts.sum(axis=0).tolist())
    per_neuron = len(shard.members) * np.repeat([4, 1], [3, 2])
    counts = np.zeros_like(dna.counts)
    for neuron, many in enumerate(per_neuron):
        bins = np.clip(rng.normal(at * 38, 3, many), 0, 39).astype(int)
        np.add.at(counts, (neuron, bins), 1)
    none = np.zeros(len(counts), np.int64)
    return replace(dna, counts=counts, underflow=none, overflow=none, nonfinite=none)


def put(catalogue: Catalogue, name: str, at: float, *, of: str = "", lost: bool = False) -> None:
    """Commits a dataset: of the images of another name, or without a value of one neuron."""
    manifest = plan(entries(of or name, 8), shard_images=1)
    partials = []
    for shard in manifest.shards:
        dna = shifted(shard, at)
        if lost:
            counts, nonfinite = dna.counts.copy(), dna.nonfinite.copy()
            nonfinite[1], counts[1] = counts[1].sum(), 0
            dna = replace(dna, counts=counts, nonfinite=nonfinite)
        partials.append(with_failures(dna, (shard.key(SPEC.digest),), ()))
    commit_dataset(catalogue, name, manifest, partials, SPEC, RANGES)


def filled(count: int = 9) -> Catalogue:
    """Makes a catalogue on a line, with a copy of one dataset and one that lacks values."""
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    places = np.random.default_rng(5).permutation(np.linspace(0.05, 0.95, count))
    for n, at in enumerate(places):
        put(catalogue, f"set/{n}", float(at))
    put(catalogue, "set/copy", float(places[3]), of="set/3")
    put(catalogue, "lost", 0.5, lost=True)
    return catalogue


@pytest.fixture(scope="module")
def place() -> Catalogue:
    return filled()


@pytest.fixture(scope="module")
def stored_objects(place: Catalogue) -> dict[str, bytes]:
    """Returns the objects of a catalogue that nothing has searched yet, by their path in it."""
    searched = ("/_coarse_curves/", "/_fold_points/")
    return {
        path: data
        for path, data in contents(place).items()
        if not any(folder in path for folder in searched)
    }


@pytest.fixture
def fresh(stored_objects: dict[str, bytes]) -> Catalogue:
    return catalogue_of(stored_objects)


@pytest.fixture(scope="module")
def expected(place: Catalogue) -> Matrix:
    return compare(place, effort=Effort(keep=False))


def kept(place: Catalogue) -> list[str]:
    folder = f"{place.root}/_work/_coarse_curves"
    return sorted(item.uri for item in storage.walk(folder)) if storage.is_folder(folder) else []


def agrees(found: Neighbours, whole: Matrix, top: int) -> None:
    """Checks all that was found against a matrix of the same datasets and planes."""
    apart = whole.of(found.layer)
    assert found.names == whole.names
    edges = [(i, j) for i in map(whole.names.index, found.of) for j in brute(apart, i, top)]
    assert list(found.edges) == edges
    rows, columns = (np.array(side, int) for side in zip(*edges, strict=True))
    for name, values in found.columns.items():
        if name == "q":
            continue
        for plane, at in zip(found.planes, values, strict=True):
            theirs = whole.of(plane, name)[rows, columns]  # type: ignore[arg-type]
            # Sums of NFD, and those with other weights, round otherwise in other tiles.
            off = 1e-12 if name == "nfd" or whole.lens_digest else 0
            assert np.allclose(at, theirs, rtol=off, atol=0, equal_nan=True), name


@pytest.mark.parametrize("top", [1, 3, 10, None])
def test_the_nearest_of_one_are_those_of_the_matrix(
    place: Catalogue, expected: Matrix, top: int | None
) -> None:
    for name in ("set/3", "set/copy", "set/0"):
        found = nearest(place, near=name, top=top)
        agrees(found, expected, top or 99)
        assert (found.of, found.pairs, found.undefined) == ((name,), 10, 1)
    assert "lost" not in found.around("set/0").names


def test_a_dataset_without_distances_has_no_neighbours(place: Catalogue) -> None:
    found = nearest(place, near="lost", top=2)
    assert (found.edges, found.undefined, found.computed) == ((), 10, 0)
    assert found.table.num_rows == 0
    assert found.near_duplicates() == {}
    assert found.around("lost").names == ("lost",)


@pytest.mark.parametrize("bars", [False, True])
def test_the_graph_has_the_nearest_of_each(
    place: Catalogue, expected: Matrix, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_tiles, "LOAD_WORK", 1)  # else all of so few are computed at once
    found = nearest(place, top=2, error_bars=bars)
    agrees(found, expected, 2)
    assert found.of == found.names
    assert found.pairs == 55
    assert found.undefined == 10
    assert found.computed < 45
    assert ("q" in found.columns) == bars
    if bars:  # it is adjusted for the pairs that were found, each of them once
        at = {pair_of(*edge): number for number, edge in enumerate(found.edges)}
        once = [adjusted(p[list(at.values())]) for p in found.columns["p"]]
        rows = [list(at).index(pair_of(*edge)) for edge in found.edges]
        assert len(at) < len(found.edges)
        assert np.array_equal(found.columns["q"], np.array(once)[:, rows], equal_nan=True)
        assert np.isfinite(found.columns["q"]).any()


def test_one_layer_or_a_lens_decides_who_is_near(place: Catalogue) -> None:
    weights = np.array([0.0, 0.0, 1.0, 2.5, 0.0])
    lens = Lens("two", (("stem", 3), ("head", 2)), weights)
    for name, how in {
        "layer": {"layer": "head"},
        "lens": {"lens": lens},
        "both": {"lens": lens, "layer": "stem"},
        "signed": {"lens": replace(lens, weights=weights - [0, 0, 0, 0, 0.2])},
        "signed elsewhere": {
            "lens": replace(lens, weights=weights - [0, 0, 0, 0, 0.2]),
            "layer": "stem",
        },
    }.items():
        layers = [how["layer"]] if "layer" in how else None
        whole = compare(place, layers=layers, lens=how.get("lens"), effort=Effort(keep=False))  # type: ignore[arg-type]
        found = nearest(place, near="set/2", top=3, **how)  # type: ignore[arg-type]
        agrees(found, whole, 3)
        if name == "signed":  # there are no bounds
            assert found.computed == 10
        if name == "signed elsewhere":
            assert found.computed < 10
        if name == "lens":  # the neuron without values has no weight
            assert found.undefined == 0


def test_names_choose_among_whom_the_nearest_are_looked_for(place: Catalogue) -> None:
    names = ["set/5", "set/1", "set/copy", "set/3"]
    found = nearest(place, names, near="set/3", top=1)
    agrees(found, compare(place, names, effort=Effort(keep=False)), 1)
    assert found.around("set/3").names == ("set/3", "set/copy")


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        (
            {"near": "lost", "top": 2, "names": ["set/0", "set/1"]},
            "`near` is 'lost', which is not among those compared: set/0 and set/1; name it, too",
        ),
        ({}, "give `near`, .* or `top`"),
        ({"top": 0}, "top is 0; it must be at least 1"),
        ({"top": 1, "layer": "x"}, "no layer 'x' in tiny; it has stem, head"),
        (
            {"top": 1, "names": ["lost"]},
            "two different datasets or more, and only lost is named; without a name all 11",
        ),
    ],
)
def test_a_wrong_question_is_refused(
    place: Catalogue, how: dict[str, object], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        nearest(place, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [[], ["set/0", "set/1"]])
def test_the_neighbours_of_an_unknown_dataset_are_not_found(
    place: Catalogue, names: list[str]
) -> None:
    with pytest.raises(NotFound, match=r"has no dataset 'set/9x'; it has: lost.* Did you mean set"):
        nearest(place, names, near="set/9x", top=1)


def test_datasets_of_other_specs_are_refused_and_versions_are_found() -> None:
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    put(catalogue, "one", 0.2)
    put(catalogue, "two", 0.6)
    manifest = plan(entries("other", 2), shard_images=1)
    commit_dataset(catalogue, "other", manifest, [hand_made(each) for each in manifest.shards])
    with pytest.raises(SpecMismatch, match="bins"):
        nearest(catalogue, ["one", "two", "other"], near="one", top=1)
    found = nearest(catalogue, ["one@1", "two", "one"], near="one@1", top=1, error_bars=False)
    assert found.around("one@1").names == ("one@1", "one")
    assert nearest(catalogue, near="one", top=1, error_bars=False).names == ("one", "two")
    with pytest.raises(SpecMismatch, match="bins"):
        nearest(catalogue, near="other", top=1)
    put(catalogue, "one", 0.7, of="newer")
    before, now = (nearest(catalogue, near=name, top=2) for name in ("one@-1", "one"))
    assert now.names == ("one", "two")
    assert before.names == ("one", "two", "one@-1")
    agrees(before, compare(catalogue, before.names, effort=Effort(keep=False)), 2)
    assert before.around("one@-1").names == ("one@-1", "two", "one")
    with pytest.raises(NotFound, match="there is no one@-2"):
        nearest(catalogue, near="one@-2", top=1)


# What is kept.


def test_coarse_curves_are_kept_and_others_are_not_read(
    fresh: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fresh
    before = nearest(place, near="set/0", top=2, effort=Effort(keep=False))
    assert kept(place) == []
    nearest(place, near="set/0", top=2)
    assert len(kept(place)) == 10  # the copy is of the same DNA

    def fail(*_: object) -> None:
        raise AssertionError("a DNA is made coarse again")

    monkeypatch.setattr(nearest_search, "encode_coarse", fail)
    opened = set()
    real = Catalogue.open_file

    def spy(self: Catalogue, kind: str, name: str, *more: object, **how: object) -> object:
        opened.add(name)
        return real(self, kind, name, *more, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Catalogue, "open_file", spy)
    found = nearest(place, near="set/0", top=2)
    assert found.edges == before.edges
    assert len(opened) == found.computed + 1 < 8
    remove(place, ["set/0", "lost"])
    collect(place, keep=1, grace=timedelta(0))
    assert len(kept(place)) == 8


@pytest.mark.parametrize("damage", ["flipped", "torn", "of another DNA"])
def test_damaged_coarse_curves_are_made_again(fresh: Catalogue, damage: str) -> None:
    place = fresh
    before = nearest(place, near="set/0", top=1)
    one, other = (Counting(place.root, SPEC, name, place.find(name)) for name in ("set/1", "set/2"))
    data = bytearray(storage.read(one.coarse_uri))
    if damage == "flipped":
        data[len(data) // 3] ^= 1
    elif damage == "torn":
        del data[-20:]
    else:
        data[:] = storage.read(other.coarse_uri)
    storage.replace(one.coarse_uri, bytes(data))
    silent = nearest(place, near="set/0", top=1, effort=Effort(keep=False))
    assert storage.read(one.coarse_uri) == bytes(data)  # nothing is written, and nothing removed
    again = nearest(place, near="set/0", top=1)
    assert before.edges == silent.edges == again.edges
    assert storage.read(one.coarse_uri) == encode_coarse(one)
    assert find_coarse(one) is not None


@pytest.mark.parametrize("stale", ["MEAN_PARTS", "BLOCKS", "COARSE"])
def test_coarse_curves_that_were_made_otherwise_are_not_read(
    fresh: Catalogue, monkeypatch: pytest.MonkeyPatch, stale: str
) -> None:
    one = Counting(fresh.root, SPEC, "set/1", fresh.find("set/1"))
    storage.create(one.coarse_uri, encode_coarse(one))
    assert find_coarse(one, discard=False) is not None
    now = getattr(kept_coarse, stale)
    later = replace(now, format=now.format + 1) if stale == "COARSE" else now // 2
    monkeypatch.setattr(kept_coarse, stale, later)
    assert find_coarse(one, discard=False) is None
    assert storage.exists(one.coarse_uri)
    assert find_coarse(one) is None
    assert not storage.exists(one.coarse_uri)


def test_a_catalogue_that_cannot_be_written_is_searched_all_the_same(
    fresh: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fresh
    expected = nearest(place, top=1, effort=Effort(keep=False))

    def refuse(uri: str, *_: object) -> None:
        raise StorageError(f"{uri}: permission denied")

    monkeypatch.setattr(storage, "create", refuse)
    told: list[Event] = []
    found = nearest(place, top=1, effort=Effort(progress=told.append))
    assert found.edges == expected.edges
    assert str(told).count("coarse curves are not kept for the next time") == 1
    assert "what folds show is not kept for the next time" in str(told)


def test_kept_coarse_curves_that_cannot_be_read_are_made_again(
    fresh: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = nearest(fresh, near="set/0", top=1)
    error: Exception = StorageError("permission denied")
    real = storage.read

    def refuse(uri: str, **how: Any) -> bytes:
        if "/_coarse_curves/" in uri:
            raise error
        return real(uri, **how)

    monkeypatch.setattr(storage, "read", refuse)
    assert nearest(fresh, near="set/0", top=1).edges == before.edges
    assert len(kept(fresh)) == 10
    error = TransientError("no answer")
    with pytest.raises(TransientError, match="no answer"):
        nearest(fresh, near="set/0", top=1)


# The result.


def test_near_duplicates_are_named(place: Catalogue) -> None:
    found = nearest(place, top=1, error_bars=False)
    assert found.near_duplicates() == {("set/3", "set/copy"): 0.0}
    assert nearest(place, near="set/copy", top=2, error_bars=False).near_duplicates() == {
        ("set/3", "set/copy"): 0.0
    }


def test_near_duplicates_are_said_to_be_among_the_pairs_found(place: Catalogue) -> None:
    found = nearest(place, near="set/3", top=1, error_bars=False)
    said = "Near duplicates among the pairs found: set/3 and set/copy (at most 0.0 bins apart)."
    assert said in found_sentences(found)
    assert neighbours_json(found)["near_duplicates_among"] == "the pairs found"


def test_the_table_has_a_row_for_each_neighbour_and_plane(
    place: Catalogue, expected: Matrix, tmp_path: pytest.TempPathFactory
) -> None:
    found = nearest(place, near="set/3", top=3)
    out = f"{tmp_path}/near.parquet"
    found.save(out)
    table = pq.read_table(out)
    assert table.schema.names == NEIGHBOUR_SCHEMA.names
    assert table.equals(found.table)
    rows = table.to_pylist()
    assert [(row["a"], row["rank"]) for row in rows] == [("set/3", n) for n in (1, 2, 3)] * 3
    assert [row["layer"] for row in rows[::3]] == ["stem", "head", "all"]
    assert rows[6]["b"] == "set/copy"
    whole = expected.to_pandas().set_index(["a", "b", "layer"])
    for row in rows:
        assert row["emd"] == whole.loc[(row["a"], row["b"], row["layer"]), "emd"]
    with pytest.raises(UsageError, match="the table of neighbours is written as Parquet"):
        found.save("near.csv")
    assert "set/3  1. set/copy  0" in repr(found)
    assert "of 10 pairs computed" in found._repr_html_()


def test_lines_are_in_the_order_of_ranks_and_say_what_is_corrected(place: Catalogue) -> None:
    """A small sample's emd is large, so that its corrected distance may be the smaller one."""
    found = nearest(place, near="set/3", top=2, layer="head")
    unlike = {
        "emd": np.array([[3.0, 4.0]]),
        "emd_corrected": np.array([[2.5, 1.5]]),
        "low": np.array([[2.0, 1.0]]),
        "high": np.array([[3.0, 2.0]]),
        "q": np.array([[0.01, 0.3]]),
    }
    found = replace(found, columns=unlike)
    one, two = (found.names[b] for _, b in found.edges)
    behind = ". Then the distance corrected for the sizes of the samples [95% interval]:"
    assert found_lines(found) == [
        f"From set/3, the nearest, by the emd of head, in bins{behind}",
        f"    1. {one}  emd 3.0, corrected 2.5 [2.0, 3.0], q 0.01",
        f"  ~ 2. {two}  emd 4.0, corrected 1.5 [1.0, 2.0], q 0.3",
        f"~ {ALIKE_TEXT}",
    ]
    graph = replace(found, of=("set/3", "lost"), lens="two", lens_digest="00")
    assert found_lines(graph) == [
        f"The nearest of each, by the emd of head through lens two, in bins{behind}",
        f"  set/3  1. {one}  emd 3.0, corrected 2.5 [2.0, 3.0]; "
        f"~ 2. {two}  emd 4.0, corrected 1.5 [1.0, 2.0]",
        "  lost   no distance that is defined",
        f"~ {ALIKE_TEXT}",
    ]


def test_the_matrix_around_a_dataset_has_its_distances(place: Catalogue, expected: Matrix) -> None:
    around = nearest(place, top=2).around("set/4")
    assert around.names[0] == "set/4"
    at = [expected.names.index(name) for name in around.names]
    for column in ("emd", "low", "p"):
        mine = around.of("head", column)[0, 1:]
        assert (mine == expected.of("head", column)[at[0], at[1:]]).all()
    assert np.isnan(around.of()[1, 2])


@given(
    size=st.integers(2, 8), whole=st.booleans(), bounded=st.booleans(), seed=st.integers(0, 2**32)
)
def test_each_pair_is_computed_or_undefined_or_farther(
    size: int, whole: bool, bounded: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    lost = np.triu(rng.random((size, size)) < 0.3, 1)
    lost |= lost.T
    own = list(range(size)) if whole else [int(rng.integers(size))]
    least = np.where(lost & bounded, np.nan, 1.0)[own]
    pairs = list(combinations(range(size), 2))
    exact = {pair: np.nan if lost[pair] else 1.0 for pair in pairs if rng.random() < 0.5}
    mine = [pair for pair in pairs if set(own) & set(pair)]
    assert _counted(least, own, exact) == (
        sum(pair in exact and not lost[pair] for pair in mine),
        sum(bool(lost[pair]) and (bounded or pair in exact) for pair in mine),
    )


def test_a_pair_that_is_found_to_have_no_distance_is_not_computed_exactly(place: Catalogue) -> None:
    found = nearest(place, near="lost", error_bars=False)  # there are no bounds
    assert (found.pairs, found.computed, found.undefined) == (10, 0, 10)
    assert "0 of 10 pairs computed exactly. " in found_sentences(found)[0]


def test_what_is_found_holds_on_to_no_tile(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    real = nearest_search._Search._columns

    def spy(self: Any, edges: Any, known: Any) -> Any:
        kept.extend(value for block in known.values() for value in block.values())
        return real(self, edges, known)

    monkeypatch.setattr(nearest_search._Search, "_columns", spy)
    nearest(place, near="set/3", top=2, error_bars=False)
    assert kept
    assert all(value.base is None for value in kept)


def test_pairs_are_in_order() -> None:
    assert (pair_of(2, 1), pair_of(1, 2)) == ((1, 2), (1, 2))


# Tiles of few pairs.


@given(
    size=st.integers(2, 60),
    share=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
    bars=st.booleans(),
    memory=st.sampled_from([1, 10**5, 10**9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_pair_is_in_one_tile_and_little_else(
    size: int, share: float, bars: bool, memory: int, seed: int
) -> None:
    version = Version("", "", "", 1, 0, (), {}, "", "", "", ())
    members = [(f"{n}", replace(version, dna=f"{n}")) for n in range(size)]
    chosen = np.triu(np.random.default_rng(seed).random((size, size)) < share, 1)
    pairs = [(int(i), int(j)) for i, j in np.argwhere(chosen)]
    job = Job("memory://x", SPEC, SPEC.layers, True, error_bars=bars, memory=memory)
    made = cut_pairs(job, members, pairs)
    seen: list[Edge] = []
    for tile in made:
        assert max(len(tile.a), len(tile.b)) <= min(16 if bars else 128, job.side)
        for row, (a, _) in enumerate(tile.a):
            others = tile.b[row + 1 :] if tile.square else tile.b
            seen += [pair_of(int(a), int(b)) for b, _ in others]
    counted = Counter(seen)
    assert all(counted[pair] == 1 for pair in pairs)
    loads = sum(len(tile.a) + (0 if tile.square else len(tile.b)) for tile in made)
    load = LOAD_WORK_BARRED if bars else LOAD_WORK
    assert len(seen) + load * loads <= len(pairs) * (1 + 2 * load)


def test_pairs_of_near_ones_load_each_dna_once() -> None:
    version = Version("", "", "", 1, 0, (), {}, "", "", "", ())
    members = [(f"{n}", replace(version, dna=f"{n}")) for n in range(24)]
    groups = [range(start, 24, 3) for start in range(3)]  # of eight each, whose numbers mingle
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    made = cut_pairs(Job("memory://x", SPEC, SPEC.layers, True), members, pairs)
    assert sum(len(tile.a) for tile in made) == 24
    assert all(tile.square for tile in made)
