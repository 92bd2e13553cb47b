"""Tests the merge laws of DNAs and partials, conservation, and their files."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dna import DNA, NOTED, DnaFile, Failure, HeldFolds, Partial, Ranges, encode_dna
from pipeline.dna.moments import merge_moments
from pipeline.errors import ConservationError, CorruptFile, OverlapError, SpecMismatch
from tests.support.builders import NUMERICS, OTHER_NUMERICS, decode_dna, random_dna, tiny_spec

SPEC, RANGES = tiny_spec()
INTEGER_LIKE = ("counts", "underflow", "overflow", "nonfinite", "min", "max", "low", "high")

dnas = st.builds(
    lambda images, seed, numerics: random_dna(SPEC, RANGES, images, seed, numerics),
    st.integers(0, 50),
    st.integers(0, 2**32 - 1),
    st.sampled_from([NUMERICS, OTHER_NUMERICS]),
)


def partial(name: str, dna: DNA, failures: int = 0) -> Partial:
    listed = tuple(Failure(f"file:///{name}-{i}", "", "truncated", "x") for i in range(failures))
    return Partial(replace(dna, failed=failures), (name,), listed)


def same_up_to_rounding(a: DNA, b: DNA) -> bool:
    return (
        (a.images, a.failed, a.numerics) == (b.images, b.failed, b.numerics)
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in INTEGER_LIKE)
        and np.allclose(a.mean, b.mean, rtol=1e-9, atol=1e-12)
        and np.allclose(a.m2, b.m2, rtol=1e-9, atol=1e-12)
    )


@given(dnas, dnas, dnas)
def test_addition_is_associative_and_commutative(a: DNA, b: DNA, c: DNA) -> None:
    assert same_up_to_rounding((a + b) + c, a + (b + c))
    assert same_up_to_rounding(a + b, b + a)


def folded(dna: DNA, fold: int) -> DNA:
    return replace(dna, folds=HeldFolds.of([(fold, dna)]))


@given(dnas, dnas, dnas, st.tuples(*[st.integers(0, 2)] * 3))
def test_folds_are_added_fold_by_fold(a: DNA, b: DNA, c: DNA, numbers: tuple[int, ...]) -> None:
    each = list(zip((a, b, c), numbers, strict=True))
    parts = [folded(dna, fold) for dna, fold in each]
    left, right = (parts[0] + parts[1]) + parts[2], parts[0] + (parts[1] + parts[2])
    for layer in SPEC.layers:
        assert left.folds is not None
        assert right.folds is not None
        found, again = left.folds.read(layer), right.folds.read(layer)
        assert list(found) == sorted({fold for dna, fold in each if dna.images})
        assert all(same_up_to_rounding(found[fold], again[fold]) for fold in found)
        for fold, dna in found.items():
            own = [p.select([layer]) for p, at in each if at == fold]
            assert np.array_equal(dna.counts, sum(part.counts for part in own))
            dna.check()


def test_folds_pack_every_count_and_take_little_memory() -> None:
    dna = random_dna(SPEC, RANGES, 50, 1)
    for count in (0, 255, 256, 2**16, 2**32, 2**62, -1):
        dna.counts[0, 0] = count
        (found,) = HeldFolds.of([(3, dna)]).read("stem").values()
        assert found.identical(dna.select(["stem"]))
    wide, ranges = tiny_spec(bins=1000)
    folds = HeldFolds.of((fold, random_dna(wide, ranges, 20, fold)) for fold in range(16))
    assert (
        sum(len(part.counts) for part in folds.parts) < random_dna(wide, ranges, 1, 1).counts.nbytes
    )


def test_a_sum_with_a_dna_that_lacks_folds_has_none() -> None:
    a, b = random_dna(SPEC, RANGES, 5, 1), random_dna(SPEC, RANGES, 4, 2)
    assert (folded(a, 0) + b).folds is None
    assert (a + folded(b, 0)).folds is None
    assert (folded(a, 0) + DNA.empty(SPEC, RANGES)).folds is not None
    assert (DNA.empty(SPEC, RANGES) + folded(a, 0)).folds is not None


@given(dnas)
def test_empty_is_neutral_to_the_last_bit(a: DNA) -> None:
    empty = DNA.empty(SPEC, RANGES)
    assert (a + empty).identical(a)
    assert (empty + a).identical(a)


@given(dnas, dnas)
def test_sums_conserve_counts_and_do_not_change_their_terms(a: DNA, b: DNA) -> None:
    before = a.counts.copy()
    total = a + b
    total.check()
    assert total.images == a.images + b.images
    assert np.array_equal(a.counts, before)


@given(dnas, dnas)
def test_noted_images_add_up_and_what_was_not_noted_stays_unknown(a: DNA, b: DNA) -> None:
    """A sum of which a part was not noted must not look like the number of all."""
    for field in NOTED:
        assert getattr(a + b, field) == getattr(a, field) + getattr(b, field)
        old = replace(b, **{field: None})
        assert getattr(a + old, field) is None
        assert getattr(old + a, field) is None
        data = encode_dna(old)
        assert decode_dna(data, "a")[0].identical(old)
        assert not old.identical(b)


@pytest.mark.parametrize("field", NOTED)
@pytest.mark.parametrize("number", [-1, 6])
def test_no_more_images_are_noted_than_there_are(field: str, number: int) -> None:
    dna = replace(random_dna(SPEC, RANGES, 5, 0), **{field: number})
    with pytest.raises(ConservationError, match=f"{field} is {number} of 5 images"):
        dna.check()


@given(st.lists(dnas, min_size=1, max_size=6))
def test_the_same_order_gives_the_same_floats(parts: list[DNA]) -> None:
    assert reduce(DNA.__add__, parts).identical(reduce(DNA.__add__, parts))


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), min_size=1, max_size=8))
def test_moments_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    n, mean, m2 = 0, np.zeros(1), np.zeros(1)
    for part in parts:
        x = np.array(part)
        m = np.array([x.mean()])
        n_part = len(x)
        mean, m2 = merge_moments(n, mean, m2, n_part, m, np.array([((x - m) ** 2).sum()]))
        n += n_part
    whole = np.concatenate([np.array(part) for part in parts])
    scale = max(1.0, float(np.abs(whole).max()))
    assert np.isclose(mean[0], whole.mean(), rtol=1e-9, atol=1e-9 * scale)
    assert np.isclose(m2[0], ((whole - whole.mean()) ** 2).sum(), rtol=1e-8, atol=1e-8 * scale**2)


def test_sums_of_squares_do_not_cancel_far_from_zero() -> None:
    x = 1e9 + np.array([0.0, 1.0, 2.0, 3.0])
    mean, m2 = merge_moments(
        2, np.array([x[:2].mean()]), np.array([0.5]), 2, np.array([x[2:].mean()]), np.array([0.5])
    )
    assert (mean[0], m2[0]) == (1e9 + 1.5, 5.0)


def test_counts_do_not_wrap_at_32_bits() -> None:
    a = random_dna(SPEC, RANGES, 3, 0)
    huge = replace(
        a,
        images=2**40,
        counts=np.repeat((2**40 * a.positions)[:, None], SPEC.bins, 1)
        * np.eye(1, SPEC.bins, dtype=int),
        **{name: np.zeros_like(a.underflow) for name in ("underflow", "overflow", "nonfinite")},
        numerics=((NUMERICS, 2**40),),
    )
    total = huge + huge
    total.check()
    assert total.counts.max() == 2**41 * 4
    decoded, _ = decode_dna(encode_dna(total), "huge")
    assert decoded.identical(total)


@given(dnas, dnas, st.integers(0, 3), st.integers(0, 3))
def test_partials_obey_the_same_laws(a: DNA, b: DNA, i: int, j: int) -> None:
    x, y = partial("x", a, i), partial("y", b, j)
    empty = Partial.empty(SPEC, RANGES)
    assert (x + empty).identical(x)
    assert (empty + x).identical(x)
    both, reverse = x + y, y + x
    assert both.shards == reverse.shards == ("x", "y")
    assert both.failures == reverse.failures
    assert same_up_to_rounding(both.dna, reverse.dna)
    assert both.candidates == x.candidates + y.candidates


def test_a_shard_is_never_added_twice() -> None:
    x, y = (partial(name, random_dna(SPEC, RANGES, 2, 1)) for name in "xy")
    with pytest.raises(OverlapError, match="1 shard would count twice: x"):
        (x + y) + x


def test_a_dna_is_shown_with_its_numbers() -> None:
    dna = random_dna(SPEC, RANGES, 1, 0)
    assert f"1 image, {len(dna.low)} neurons x {SPEC.bins} bins" in repr(dna)
    assert "2 images, " in repr(random_dna(SPEC, RANGES, 2, 0))


def test_failures_and_their_number_agree() -> None:
    with pytest.raises(ConservationError, match="counts 2 failures and lists 0"):
        Partial(replace(random_dna(SPEC, RANGES, 2, 1), failed=2), ("x",), ())


def test_dnas_of_different_specs_are_not_added() -> None:
    other, other_ranges = tiny_spec(bins=7)
    with pytest.raises(SpecMismatch, match="bins: 5 against 7"):
        DNA.empty(SPEC, RANGES) + DNA.empty(other, other_ranges)


def test_ranges_must_be_those_of_the_spec() -> None:
    moved = Ranges(RANGES.taps, RANGES.low - 1, RANGES.high)
    with pytest.raises(SpecMismatch, match=moved.digest):
        DNA.empty(SPEC, moved)


@pytest.mark.parametrize("column", ["counts", "underflow", "overflow", "nonfinite"])
def test_conservation_names_the_neuron(column: str) -> None:
    dna = random_dna(SPEC, RANGES, 4, 2)
    getattr(dna, column)[4] += 1
    with pytest.raises(ConservationError, match=r"head\[1\]"):
        dna.check()


def test_negative_counts_are_refused_even_if_the_sum_is_right() -> None:
    dna = random_dna(SPEC, RANGES, 4, 2)
    dna.counts[0, 0] -= 1000
    dna.counts[0, 1] += 1000
    with pytest.raises(ConservationError, match=r"stem\[0\].*negative"):
        dna.check()


@settings(max_examples=30)
@given(dnas, st.integers(0, 3))
def test_a_file_gives_back_the_dna(a: DNA, failures: int) -> None:
    x = partial("x", a, failures)
    data = x.encode()
    assert data == x.encode()
    y = Partial.decode(data, "x.parquet")
    assert y.identical(x)
    assert y.dna.numerics == x.dna.numerics


def test_one_layer_can_be_read_alone() -> None:
    dna = random_dna(SPEC, RANGES, 9, 3)
    head, _ = decode_dna(encode_dna(dna), "x", layers=["head"])
    assert head.identical(dna.select(["head"]))
    assert head.layers == ("head",)


@settings(max_examples=30)
@given(dnas, dnas, st.integers(0, 3))
def test_totals_are_those_of_the_layers_and_add_up_like_them(a: DNA, b: DNA, failed: int) -> None:
    fields = ("images", "failed", "numerics", *NOTED)
    files = [DnaFile(encode_dna(replace(x, failed=failed)), "dna", "x") for x in (a, b)]
    total = reduce(DNA.__add__, (file.totals for file in files))
    whole = reduce(DNA.__add__, (file.read() for file in files))
    assert total.layers == ()
    assert total.counts.shape == (0, SPEC.bins)
    assert [getattr(total, f) for f in fields] == [getattr(whole, f) for f in fields]


@settings(max_examples=40)
@given(st.data())
def test_a_torn_file_is_refused_with_its_name(data: st.DataObject) -> None:
    whole = encode_dna(random_dna(SPEC, RANGES, 9, 3))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptFile, match="some/dna"):
        decode_dna(whole[:cut], "some/dna")


@settings(max_examples=200)
@given(st.data())
def test_a_flipped_bit_is_never_a_different_dna(data: st.DataObject) -> None:
    """The bit is refused, or changes nothing that is read, or is left to the sha256 in the commit.

    The last is so for a sum that still holds. Here, nothing but our own errors may be raised.
    """
    whole = bytearray(encode_dna(random_dna(SPEC, RANGES, 9, 3)))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        dna, _ = decode_dna(bytes(whole), "some/dna")
    except (CorruptFile, ConservationError):
        return
    dna.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"spec_digest": "00"}, "spec digest 00"),
        (lambda m: m | {"images": 10}, "numerics account for|holds"),
    ],
)
def test_wrong_metadata_is_refused(change, message) -> None:
    from pipeline.dna import dna_metadata, encode_layers, to_table

    dna = random_dna(SPEC, RANGES, 9, 3)
    groups = [to_table(dna.select([layer])) for layer in dna.layers]
    data = encode_layers("dna", change(dna_metadata(dna)), groups)
    with pytest.raises((CorruptFile, ConservationError), match=message):
        decode_dna(data, "some/dna")


def test_a_missing_row_is_refused() -> None:
    from pipeline.dna import dna_metadata, encode_layers, to_table

    dna = random_dna(SPEC, RANGES, 9, 3)
    groups = [to_table(dna.select(["stem"])).slice(1), to_table(dna.select(["head"]))]
    with pytest.raises(CorruptFile, match="layer stem does not hold neurons 0 to 2"):
        decode_dna(encode_layers("dna", dna_metadata(dna), groups), "some/dna")
