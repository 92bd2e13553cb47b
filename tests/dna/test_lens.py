"""Tests lenses: the choice of neurons, what is refused, the file, and distances through a lens."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.comparing.distance import emd
from pipeline.comparing.emd_kernel import pairwise_emd
from pipeline.dna import Lens
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from pipeline.spec import Spec, Tap
from tests.support.builders import random_dna, tiny_spec, with_row_groups

SPEC, RANGES = tiny_spec(9, (Tap("blocks.0", 6, 4), Tap("a:b", 3, 1)))
A, B = (random_dna(SPEC, RANGES, 20, seed) for seed in (1, 2))


def lens(weights: list[float], name: str = "some") -> Lens:
    return Lens(name, (("blocks.0", 6), ("a:b", 3)), np.array(weights, float))


def test_neurons_are_chosen_by_layer_and_number() -> None:
    chosen = Lens.chosen(SPEC, ["blocks.0:4,0,1-2", "a:b:2"])
    assert chosen.weights.tolist() == [1, 1, 1, 0, 1, 0, 0, 0, 1]
    assert chosen.name == "blocks.0:4,0,1-2 a:b:2"
    assert chosen.weights_of("a:b").tolist() == [0, 0, 1]
    assert Lens.chosen(SPEC, ["a:b:1", "a:b:1-1"]).weights.sum() == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("blocks.0:5-6", r"no neuron blocks.0\[6\]; blocks.0 has 6 neurons, from 0 on"),
        ("blocks.0:99999999999-99999999999", r"no neuron blocks.0\[99999999999\]"),
        ("tail:0", "no layer 'tail' in tiny; it has blocks.0, a:b"),
        ("blocks.0:3-2", "3-2 ends before it begins"),
        ("blocks.0", "write them as layer:4,17"),
        ("blocks.0:", "write them as"),
        ("blocks.0:1,,2", "write them as"),
        ("blocks.0:-1", "write them as"),
    ],
)
def test_neurons_that_the_network_lacks_are_refused_by_name(choice: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Lens.chosen(SPEC, [choice])


def test_invalid_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"lens some: the weight of a:b\[1\] is nan \(1 are"):
        lens([0, 0, 0, 0, 0, 0, 1, float("nan"), 1])
    with pytest.raises(UsageError, match=r"blocks.0\[2\] is inf"):
        lens([0, 0, float("inf"), 0, 0, 0, 1, 1, 1])
    with pytest.raises(UsageError, match="every weight is zero"):
        lens([0] * 9)
    with pytest.raises(UsageError, match=r"weights sum to -1; .* must be more than zero"):
        lens([1, -2, 0, 0, 0, 0, 0, 0, 0])
    with pytest.raises(UsageError, match="2 weights for 9 neurons"):
        lens([1, 1])
    with pytest.raises(
        UsageError, match="'uniform' is reserved for comparing without a lens; rename"
    ):
        lens([1] * 9, "uniform")
    with pytest.raises(UsageError, match=r"neuron a:b\[0\] has two weights"):
        Lens.from_rows("twice", SPEC, [("a:b", 0, 1.0), ("a:b", 0, 1.0)])


def test_the_digest_depends_on_the_weights_and_not_on_the_name() -> None:
    one = lens([1, 2, 0, 0, 0, 0, 0, 0, -1])
    assert one.digest == replace(one, name="other").digest
    assert one.digest != lens([1, 2, 0, 0, 0, 0, 0, 0, 1]).digest
    assert one.digest != replace(one, taps=(("blocks.0", 5), ("a:b", 4))).digest


@settings(max_examples=40)
@given(st.lists(st.floats(-9, 9), min_size=9, max_size=9).filter(lambda weights: sum(weights) > 0))
def test_the_file_gives_back_the_lens(weights: list[float]) -> None:
    one = lens(weights)
    again = Lens.decode(one.encode(), "file", SPEC)
    assert (again.name, again.digest, again.taps) == (one.name, one.digest, one.taps)
    assert np.array_equal(again.weights, one.weights)


def plain_file(rows: list[tuple[str, int, float | None]]) -> bytes:
    sink = io.BytesIO()
    columns = dict(
        zip(("layer", "neuron", "weight"), map(list, zip(*rows, strict=True)), strict=True)
    )
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_a_plain_parquet_file_is_read_as_a_lens() -> None:
    read = Lens.decode(plain_file([("a:b", 2, 0.5), ("blocks.0", 0, -0.25)]), "mine", SPEC)
    assert (read.name, read.weights.tolist()) == ("mine", [-0.25, 0, 0, 0, 0, 0, 0, 0, 0.5])
    with pytest.raises(UsageError, match=r"no neuron a:b\[3\]"):
        Lens.decode(plain_file([("a:b", 3, 1.0)]), "mine", SPEC)
    with pytest.raises(UsageError, match=r"weight of a:b\[1\] is nan"):
        Lens.decode(plain_file([("a:b", 1, None)]), "mine", SPEC)
    table = io.BytesIO()
    pq.write_table(pa.table({"layer": ["a:b"], "neuron": [1]}), table)
    with pytest.raises(CorruptFile, match=r"mine: .*weight"):
        Lens.decode(table.getvalue(), "mine", SPEC)


def test_torn_or_wrong_files_are_refused() -> None:
    data = lens([1, 2, 3, 4, 5, 6, 7, 8, 9]).encode()
    for cut in range(0, len(data), 50):
        with pytest.raises(CorruptFile, match="file"):
            Lens.decode(data[:cut], "file", SPEC)
    table = pq.read_table(io.BytesIO(data))
    table = table.set_column(2, "weight", pa.array(np.arange(9) + 7.0))
    with pytest.raises(CorruptFile, match=r"file: (row group 0 has sha256|its rows end at)"):
        Lens.decode(with_row_groups(data, [table]), "file", SPEC)
    other, _ = tiny_spec(9, (Tap("blocks.0", 7, 4), Tap("a:b", 3, 1)))
    with pytest.raises(UsageError, match="a lens for another network than tiny"):
        Lens.decode(data, "file", other)


# Distances through it.


def test_the_distance_is_the_weighted_mean() -> None:
    each = emd(A, B, per_neuron=True)
    one = lens([1, 2, 0, 0, 0, 3, 0, 4, 0])
    assert emd(A, B, lens=one) == pytest.approx(each @ one.weights / 10)
    assert emd(A, B, lens=one, layer="a:b") == pytest.approx(each[7])
    by_layer = emd(A, B, lens=one).layers
    assert by_layer["blocks.0"] == pytest.approx(each[:6] @ one.weights[:6] / 6)
    signed = lens([3, -2, 0, 0, 0, 0, 0, 1, -1])
    assert emd(A, B, lens=signed) == pytest.approx(3 * each[0] - 2 * each[1] + each[7] - each[8])
    assert np.isnan(emd(A, B, lens=signed, layer="a:b"))  # as its weights sum to 0
    assert emd(A, B, lens=lens([1] * 9)) == pytest.approx(emd(A, B))


def test_neurons_of_weight_zero_may_be_undefined() -> None:
    counts, flows = A.counts.copy(), A.nonfinite.copy()
    counts[2] = 0
    flows[2] = 80
    dead = replace(
        A,
        counts=counts,
        nonfinite=flows,
        underflow=np.where(np.arange(9) == 2, 0, A.underflow),
        overflow=np.where(np.arange(9) == 2, 0, A.overflow),
    )
    dead.check()
    assert np.isnan(emd(dead, B))
    assert np.isfinite(emd(dead, B, lens=lens([1, 1, 0, 1, 1, 1, 1, 1, 1])))


def test_a_lens_on_another_network_and_single_neurons_are_refused() -> None:
    other = Lens("other", (("blocks.0", 6),), np.ones(6))
    with pytest.raises(UsageError, match="lens other has weights for 0 neurons in a:b; tiny has 3"):
        emd(A, B, lens=other)
    with pytest.raises(UsageError, match="weighs neurons against each other"):
        emd(A, B, layer="a:b", per_neuron=True, lens=lens([1] * 9))
    spec: Spec = SPEC
    lens([1] * 9).require_fit(spec)


def test_a_lens_object_that_was_fitted_under_other_weights_is_refused() -> None:
    """A lens whose neurons were chosen by hand states no weights, and is taken."""
    fitted = replace(lens([1] * 9), provenance={"spec": "abc", "weights_sha256": "f" * 64})
    said = f"lens some was fitted .*{'f' * 64}.*spec abc.*tiny .*{SPEC.weights_sha256}"
    for look in (lambda: emd(A, B, lens=fitted), lambda: pairwise_emd([A, B], fitted)):
        with pytest.raises(SpecMismatch, match=said):
            look()
    same = replace(fitted, provenance={"weights_sha256": SPEC.weights_sha256})
    assert emd(A, B, lens=same) == emd(A, B, lens=lens([1] * 9))
