"""Tests explanations with planted differences: each neuron has the numbers of its own matrix."""

from __future__ import annotations

import io
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from jobs.app import app
from pipeline.catalogue import Catalogue
from pipeline.comparing import ALL, ESTIMATES, compare, cumulative
from pipeline.dna import DNA, Lens
from pipeline.errors import NotFound, UsageError
from pipeline.explaining import Explanation, explain
from pipeline.explaining.explanation import LAYERS, NEURONS
from pipeline.explaining.histogram_overlay import PARTS, overlaid
from pipeline.reporting import explanation_sentence, group_lines, print_explanation
from pipeline.sources import Shard, plan
from pipeline.spec import Tap
from tests.golden.handmade import commit_dataset, entries, hand_made
from tests.support.builders import tiny_spec

SPEC, RANGES = tiny_spec(40, (Tap("stem", 12, 4), Tap("head", 8, 1)))
MOVED = {5: 6, 14: -5}
"""By how many bins the activations of neurons of `b` are higher: stem[5] and head[2]."""


def partial_of(shard: Shard, moved: dict[int, int]) -> Any:
    """Makes normal activations of a shard's images, around a centre of each image's own."""
    made = hand_made(shard, SPEC, RANGES)
    rng = np.random.default_rng(int(shard.key(SPEC.digest)[:12], 16))
    counts = np.zeros_like(made.dna.counts)
    for neuron, positions in enumerate(made.dna.positions):
        chance = rng.standard_normal((made.dna.images, 1 + positions))
        middles = 20 + moved.get(neuron, 0) + 2 * chance[:, :1]
        at = np.clip((middles + 3 * chance[:, 1:]).round(), 0, SPEC.bins - 1)
        counts[neuron] = np.bincount(at.astype(int).ravel(), minlength=SPEC.bins)
    none = np.zeros_like(made.dna.underflow)
    dna = replace(made.dna, counts=counts, underflow=none, overflow=none, nonfinite=none)
    return replace(made, dna=dna)


def put(catalogue: Catalogue, name: str, images: int, moved: dict[int, int]) -> None:
    manifest = plan(entries(name, images))
    partials = [partial_of(shard, moved) for shard in manifest.shards]
    commit_dataset(catalogue, name, manifest, partials, SPEC, RANGES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    catalogue = Catalogue(str(tmp_path_factory.mktemp("explain")))
    for name, images, moved in (
        ("a", 320, {}),
        ("again", 200, {}),
        ("b", 240, MOVED),
        ("single", 1, {}),
    ):
        put(catalogue, name, images, moved)
    return catalogue


@pytest.fixture(scope="module")
def found(place: Catalogue) -> Explanation:
    return explain(place, "a", "b")


def test_changed_neurons_come_first_and_are_significant(found: Explanation) -> None:
    assert found.neurons.schema == NEURONS
    first, second = found.neurons.slice(0, 2).to_pylist()
    assert (first["layer"], first["neuron"]) == ("stem", 5)
    assert (second["layer"], second["neuron"]) == ("head", 2)
    assert first["low"] <= 6 <= first["high"]
    assert first["shift"] == pytest.approx(6, abs=0.7)
    assert second["low"] <= 5 <= second["high"]
    assert second["shift"] == pytest.approx(-5, abs=0.7)
    told = [row for row in found.neurons.to_pylist() if row["q"] < 0.05]
    assert told[:2] == [first, second]
    assert found.differing == len(told) <= 3
    assert found.half == 2


def test_nothing_differs_between_two_samples_of_one_distribution(place: Catalogue) -> None:
    same = explain(place, "a", "again")
    assert same.differing == 0
    assert same.neurons.num_rows == 20


def test_each_neuron_has_the_numbers_of_a_matrix_of_it_alone(
    place: Catalogue, found: Explanation
) -> None:
    for row in found.neurons.to_pylist():
        lens = Lens.from_rows("one", SPEC, [(row["layer"], row["neuron"], 1.0)])
        matrix = compare(place, ["a", "b"], layers=[row["layer"]], lens=lens)
        assert row["emd"] == pytest.approx(matrix.of(row["layer"])[0, 1], rel=1e-9)
        for column in ("emd_corrected", "se", "low", "high", "floor"):
            value = matrix.of(row["layer"], column)[0, 1]
            assert row[column] == pytest.approx(value, rel=1e-6, abs=1e-9), column
        # A few of 32,768 choices of signs give nearly the same sum, and may fall on either side.
        assert row["p"] == pytest.approx(matrix.of(row["layer"], "p")[0, 1], abs=1e-3)


def test_layers_are_those_of_the_matrix(place: Catalogue, found: Explanation) -> None:
    assert found.layers.schema == LAYERS
    matrix = compare(place, ["a", "b"])
    rows = {row["layer"]: row for row in found.layers.to_pylist()}
    assert next(iter(rows)) == ALL
    assert set(rows) == {"stem", "head", ALL}
    for layer, row in rows.items():
        for column in ("emd", *(c for c in ESTIMATES if c != "q")):
            assert row[column] == pytest.approx(matrix.of(layer, column)[0, 1], rel=1e-9), column
    # Of two tests, the greater p is its own q.
    p, q = ([rows[layer][column] for layer in ("stem", "head")] for column in ("p", "q"))
    assert max(q) == max(p)
    assert rows["stem"]["share"] + rows["head"]["share"] == pytest.approx(1)
    assert sum(found.neurons["share"].to_pylist()) == pytest.approx(1)
    assert rows[ALL]["differing"] == found.differing
    assert rows["stem"]["neurons"] == 12


def test_swapping_the_datasets_changes_only_the_sign_of_the_shift(
    place: Catalogue, found: Explanation
) -> None:
    back = explain(place, "b", "a")
    for one, other in zip(found.neurons.to_pylist(), back.neurons.to_pylist(), strict=True):
        assert other.pop("shift") == -one.pop("shift")
        assert {k: v for k, v in one.items() if not isinstance(v, float)} == {
            k: v for k, v in other.items() if not isinstance(v, float)
        }
        for column in ("emd", "emd_corrected", "low", "high", "p", "q", "share"):
            assert other[column] == pytest.approx(one[column], rel=1e-9)


def test_a_shift_is_at_most_the_distance_and_equals_it_where_all_moved(
    place: Catalogue, found: Explanation
) -> None:
    for row in found.neurons.to_pylist():
        assert abs(row["shift"]) <= row["emd"] + 1e-9
    a, b = (place.load(name) for name in ("a", "b"))
    means = [d.distributions() @ np.arange(SPEC.bins) for d in (a, b)]
    for row in found.neurons.to_pylist():
        at = row["neuron"] + (12 if row["layer"] == "head" else 0)
        assert row["shift"] == pytest.approx(means[1][at] - means[0][at], abs=1e-5)


def test_a_lens_leaves_out_neurons_of_weight_zero_and_ranks_by_weight(place: Catalogue) -> None:
    rows = [("stem", 5, 0.1), ("head", 2, 10.0), ("stem", 0, 1.0)]
    lens = Lens.from_rows("some", SPEC, rows)
    seen = explain(place, "a", "b", lens=lens)
    assert seen.lens == "some"
    named = [(row["layer"], row["neuron"]) for row in seen.neurons.to_pylist()]
    assert named[0] == ("head", 2)
    assert sorted(named) == sorted((layer, neuron) for layer, neuron, _ in rows)
    matrix = compare(place, ["a", "b"], lens=lens)
    top = seen.layers.to_pylist()[0]
    assert top["emd"] == pytest.approx(matrix.of()[0, 1])
    assert top["p"] == pytest.approx(matrix.of(ALL, "p")[0, 1])


def test_a_signed_lens_has_no_error_bars_for_layers_but_for_neurons(place: Catalogue) -> None:
    lens = Lens.from_rows("signed", SPEC, [("stem", 5, 2.0), ("head", 2, -1.0)])
    seen = explain(place, "a", "b", lens=lens)
    assert seen.layers["p"].null_count == seen.layers.num_rows
    assert seen.neurons["p"].null_count == 0
    of_layers = {row["layer"]: row["emd"] for row in seen.layers.to_pylist()}
    assert of_layers["head"] is None  # its weights sum to less than 0
    print_explanation(seen, Console(file=(out := io.StringIO()), width=200), 5)
    assert "Some weights are below 0: what neurons add cancels" in out.getvalue()
    assert explanation_sentence(seen).endswith("half of all that is added and taken away.")
    assert not explain(place, "a", "b").signed


def test_one_layer_only(place: Catalogue, found: Explanation) -> None:
    head = explain(place, "a", "b", layers=["head"], top=3)
    assert head.layers["layer"].to_pylist() == ["head"]
    assert head.neurons.num_rows == 8
    assert len(head.shown) == 3
    assert head.neurons["emd"][0] == found.neurons["emd"][1]


def test_a_layer_that_is_named_twice_counts_once(place: Catalogue) -> None:
    once, twice = (explain(place, "a", "b", layers=["head"] * times) for times in (1, 2))
    assert twice.neurons.equals(once.neurons)
    assert twice.layers.equals(once.layers)


def test_neurons_of_weight_zero_take_no_place_among_the_histograms() -> None:
    """This holds even for a neuron that is the same in both datasets."""
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    for name, moved in (("a", {}), ("b", MOVED)):
        manifest = plan(entries(name, 40))
        partials = []
        for shard in manifest.shards:
            made = partial_of(shard, moved)
            counts = made.dna.counts.copy()
            counts[11] = np.eye(1, SPEC.bins, dtype=counts.dtype) * counts[11].sum()
            partials.append(replace(made, dna=replace(made.dna, counts=counts)))
        commit_dataset(catalogue, name, manifest, partials, SPEC, RANGES)
    lens = Lens.from_rows("some", SPEC, [("stem", 5, 1.0), ("stem", 11, 1.0)])
    found = explain(catalogue, "a", "b", lens=lens, top=2)
    assert found.neurons["emd"].to_pylist()[1] == 0
    assert len(found.shown) == found.neurons.num_rows == 2


def test_without_folds_nothing_is_tested_and_a_note_says_so(place: Catalogue) -> None:
    bare = explain(place, "a", "single")
    assert bare.neurons["p"].null_count == bare.neurons.num_rows
    assert bare.neurons["emd"].null_count == 0
    assert explanation_sentence(bare).startswith("No neuron is tested: a test needs 6 folds")
    out = io.StringIO()
    print_explanation(bare, Console(file=out, width=100), 5)
    assert "stem" in out.getvalue()


def test_a_neuron_without_a_distance_is_not_said_to_lack_folds(found: Explanation) -> None:
    rows = found.neurons.slice(0, 1)
    for column in ("emd", "q"):
        at = rows.schema.get_field_index(column)
        rows = rows.set_column(at, column, pa.nulls(1, rows.schema.field(at).type))
    said = explanation_sentence(replace(found, neurons=rows))
    assert said.startswith("No neuron is tested: no distance is defined, because one of the")


def test_the_tables_say_what_their_columns_are(found: Explanation) -> None:
    out = io.StringIO()
    print_explanation(found, Console(file=out, width=120), 2)
    text = out.getvalue()
    assert "distance: mean over the layer's neurons, in bins." in text
    assert "shift: how far the values of b lie above (+) or below (-) those of a, in bins." in text
    assert "histograms of the neuron's values in each dataset" in text
    headings = [" ".join(line.split()) for line in text.splitlines() if "[95%]" in line]
    assert headings == [
        "layer distance corrected [95%] q neurons differ share",
        "neuron distance corrected [95%] q shift a b",
    ]


def test_the_histograms_of_the_first_neurons_are_shown(
    place: Catalogue, found: Explanation
) -> None:
    assert len(found.shown) == 20
    a, b = (place.load(name, layers=["stem"]) for name in ("a", "b"))
    sums = [cumulative(dna)[5] for dna in (a, b)]
    assert found.shown[0] == overlaid(*sums, float(a.low[5]), float(a.high[5]))
    assert max(max(found.shown[0].a), max(found.shown[0].b)) == 999
    assert len(found.shown[0].a) <= PARTS


def test_a_lens_and_layers_without_weight_are_named(place: Catalogue) -> None:
    lens = Lens.from_rows("one", SPEC, [("stem", 5, 1.0)])
    for layers in (None, ["head"]):
        seen = explain(place, "a", "b", lens=lens, layers=layers)
        print_explanation(seen, Console(file=(out := io.StringIO()), width=100), 5)
        text = out.getvalue()
        assert text.startswith("From a to b through lens one: layers\n")
        assert "\nThe lens gives no weight to head\n" in text
        assert "nan" not in text
        assert ("stem[5]" in text) == (layers is None)
        told = explanation_sentence(seen)
        if layers is None:
            assert told.startswith("1 of 1 neuron differs at a false")
            assert told.endswith("1 of 1 neuron makes up half of the distance.")
        else:
            assert told.startswith("The lens gives these layers no weight")
            assert seen.half == 0


def test_neurons_are_printed_by_stage_and_those_like_it_are_counted(found: Explanation) -> None:
    head, stem = (
        next(group for group in found.groups if group.layer == layer) for layer in ("head", "stem")
    )
    deep = replace(head, stage="objects", others=("head[6]", "head[7]"))
    staged = replace(found, groups=(deep, replace(stem, stage="texture")))
    print_explanation(staged, Console(file=(out := io.StringIO()), width=120), 5)
    lines = [line.split() for line in out.getvalue().partition("Neurons by stage")[2].splitlines()]
    (heading,) = (line for line in lines if line[:1] == ["neuron"])
    assert heading[:5] == ["neuron", "like", "it", "stage", "distance"]
    assert [line[:3] for line in lines[-2:]] == [
        ["head[2]", "+2", "objects"],
        ["stem[5]", "texture", lines[-1][2]],
    ]
    told = group_lines(staged)
    named = [line for line in told if not line.startswith(("  ", "No images"))]
    assert named[0].startswith("head[2] (objects) and 2 like it: ")
    assert named[1].startswith("stem[5] (texture): ")
    assert all("lie above" in line for line in named)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_the_printed_tables_keep_their_numbers_at_any_width(found: Explanation, width: int) -> None:
    out = io.StringIO()
    print_explanation(found, Console(file=out, width=width), 4)
    text = out.getvalue()
    assert "…" not in text
    assert "stem[5]" in text
    assert "head[2]" in text
    assert ("▁" in text) == (width >= 80)
    shown = {word for line in text.splitlines() if "distance " in line for word in line.split()}
    told = {word for word in ("q", "share", "shift") if f"{word}: " in text}
    assert told == shown & {"q", "share", "shift"}, "only the columns that are there are explained"
    sentence = explanation_sentence(found)
    assert sentence.startswith(f"{found.differing} of 20 neurons differ")


def test_the_explain_command(place: Catalogue, tmp_path: Path) -> None:
    out = tmp_path / "neurons.parquet"
    words = ["explain", "a", "b", "-c", place.root, "--top", "2"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "stem[5]" in done.output
    assert "From a to b" in done.output
    firsts = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert firsts[1:4] == ["distance:", "layer", "all"]
    assert set(firsts[4:6]) == {"stem", "head"}
    assert firsts[6:11] == ["Neurons,", "shift:", "neuron", "stem[5]", "head[2]"]
    assert pq.read_table(out).schema.names == NEURONS.names
    done = CliRunner().invoke(app, [*words, "--json"])
    told = json.loads(done.stdout)
    assert [row["neuron"] for row in told["neurons"]] == [5, 2]
    assert set(told["neurons"][0]["histograms"]) == {"low", "high", "a", "b", "peak"}
    assert [(row["layer"], row["neuron"]) for row in told["groups"]] == [("stem", 5), ("head", 2)]
    assert told["unlike"] == {"a": [], "b": []}
    assert told["notes"] == [
        f"No images are named for {name}, which keeps none: build it with --exemplars 8."
        for name in "ab"
    ]
    whole = CliRunner().invoke(app, [*words, "--layer", "all", "--json"])
    assert json.loads(whole.stdout) == told
    done = CliRunner().invoke(app, [*words[:-2], "--neurons", "stem:0-3", "--json"])
    assert len(json.loads(done.stdout)["neurons"]) == 4


def test_wrong_datasets_layers_and_lenses_are_refused(place: Catalogue) -> None:
    with pytest.raises(NotFound, match="no dataset 'c'"):
        explain(place, "a", "c")
    with pytest.raises(UsageError, match="takes two datasets, and 'a' is given twice"):
        explain(place, "a", "a")
    with pytest.raises(UsageError, match="tail"):
        explain(place, "a", "b", layers=["tail"])
    other = Lens("other", (("stem", 2),), np.ones(2))
    with pytest.raises(UsageError, match="lens other"):
        explain(place, "a", "b", lens=other)


def test_a_neuron_without_finite_activations_comes_last(place: Catalogue) -> None:
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    for name in ("a", "b"):
        manifest = plan(entries(name, 40))
        partials = []
        for shard in manifest.shards:
            partial = partial_of(shard, {})
            partials.append(replace(partial, dna=dead(partial.dna, 7)))
        commit_dataset(catalogue, name, manifest, partials, SPEC, RANGES)
    rows = explain(catalogue, "a", "b").neurons.to_pylist()
    assert (rows[-1]["layer"], rows[-1]["neuron"], rows[-1]["emd"]) == ("stem", 7, None)
    assert all(row["q"] is not None for row in rows[:-1])


def dead(dna: DNA, neuron: int) -> DNA:
    counts, nonfinite = dna.counts.copy(), dna.nonfinite.copy()
    nonfinite[neuron] += counts[neuron].sum()
    counts[neuron] = 0
    return replace(dna, counts=counts, nonfinite=nonfinite)


def test_an_explanation_has_a_readable_repr_table_and_plot(found: Explanation) -> None:
    differing, first = found.differing, found.layers.to_pylist()[0]
    assert repr(found) == (
        f"<Explanation of a and b: 20 neurons, {differing} of them differ; "
        f"all: {first['emd']:.4g} bins>"
    )
    unknown = found.layers.set_column(
        found.layers.schema.get_field_index("emd"), "emd", pa.nulls(found.layers.num_rows)
    )
    assert repr(replace(found, layers=unknown)) == (
        f"<Explanation of a and b: 20 neurons, {differing} of them differ>"
    )
    assert found._repr_html_().count("<tr>") == 4
    assert found.to_pandas()["neuron"].tolist()[:2] == [5, 2]
    assert found.to_pandas("layers")["layer"].tolist()[0] == ALL
    widths = [bar.get_width() for bar in found.plot().patches]
    assert widths == [row["emd"] for row in found.layers.to_pylist()]
