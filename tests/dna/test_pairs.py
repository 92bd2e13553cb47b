"""How many images of two datasets are in pairs: exact for small ones, estimated for large ones."""

from __future__ import annotations

import json
from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dna import Pairs
from pipeline.dna.pairs import LEAST_SAMPLED, NUMBERS, SAMPLED

folds = st.dictionaries(st.integers(0, NUMBERS - 1), st.integers(0, 15), min_size=1, max_size=60)


def sampled(numbers: np.ndarray, folds: np.ndarray) -> Pairs:
    """The sample of a dataset whose images have these numbers."""
    limit = Pairs.limit_of(len(numbers))
    fold_of = dict(zip(numbers.tolist(), folds.tolist(), strict=True))
    kept = {number: fold for number, fold in fold_of.items() if number < limit}
    return Pairs.of(kept, len(numbers))


@given(folds, folds)
def test_shares_of_small_datasets_are_exact_and_symmetric(
    one: dict[int, int], other: dict[int, int]
) -> None:
    a, b = Pairs.of(one, len(one)), Pairs.of(other, len(other))
    together = len(one.items() & other.items())
    small, large = sorted([len(one), len(other)])
    assert a.shared(b) == b.shared(a) == (together / small, together / large)
    assert a.shared(a) == (1, 1)


@given(folds)
def test_a_sample_survives_json(of: dict[int, int]) -> None:
    made = Pairs.of(of, 3 * SAMPLED)
    read = Pairs.from_json(json.loads(json.dumps(made.to_json())))
    assert read.numbers.tolist() == sorted(of)
    assert read.folds.tolist() == [of[number] for number in sorted(of)]
    assert read.limit == made.limit == NUMBERS // 3


def test_a_sample_that_is_cut_off_is_refused() -> None:
    cut = Pairs.of({1: 2}, 1).to_json() | {"folds": ""}
    with pytest.raises(ValueError, match="1 numbers of names, and 0 folds"):
        Pairs.from_json(cut)


@pytest.mark.parametrize("ratio", [1, 4, 30])
@pytest.mark.parametrize("share", [0, 0.1, 0.9, 1])
def test_the_share_of_large_datasets_is_estimated(ratio: int, share: float) -> None:
    chance = np.random.default_rng(3)
    small = 20_000
    numbers = chance.integers(0, NUMBERS, small * (ratio + 1), np.uint64)
    dealt = (numbers % np.uint64(16)).astype(np.int8)
    shared = round(share * small)
    at = slice(small - shared, small - shared + ratio * small)
    a, b = sampled(numbers[:small], dealt[:small]), sampled(numbers[at], dealt[at])
    found = a.shared(b).of_smaller
    error = (share * (1 - share) / (SAMPLED / ratio)) ** 0.5
    assert abs(found - share) <= 4 * error
    assert a.shared(b).of_larger == pytest.approx(found / ratio, rel=0.5)
    assert abs(len(a.numbers) - SAMPLED) < 5 * SAMPLED**0.5


def test_images_in_different_folds_are_no_pairs() -> None:
    one = {number: number % 16 for number in range(160)}
    moved = {number: (number + (number < 40)) % 16 for number in one}
    assert Pairs.of(one, 160).shared(Pairs.of(moved, 160)) == (0.75, 0.75)


def test_the_share_is_not_known_if_one_dataset_is_much_larger() -> None:
    chance = np.random.default_rng(1)
    few, many = 1000, 1000 * SAMPLED // 8
    assert few * SAMPLED / many < LEAST_SAMPLED
    a, b = (
        sampled(chance.integers(0, NUMBERS, n, np.uint64), np.zeros(n, int)) for n in (few, many)
    )
    assert all(map(isnan, a.shared(b)))
    assert all(map(isnan, Pairs.of({}, 5).shared(a)))
