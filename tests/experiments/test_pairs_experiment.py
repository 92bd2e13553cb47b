"""The experiment on pairs deals folds as a plan does, and finds what it should."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import pairs
from pipeline.sources.fold_assignment import HASHED_GROUPS
from pipeline.spec import FOLDS


@pytest.mark.parametrize("images", [20, 100, HASHED_GROUPS])
def test_every_fold_has_its_share_of_a_small_dataset(images: int) -> None:
    numbers = np.random.default_rng(1).integers(0, 2**62, images).tolist()
    sizes = np.bincount(pairs.dealt(numbers), minlength=FOLDS)
    assert sizes.sum() == images
    if images < HASHED_GROUPS:
        assert sizes.min() >= images // FOLDS
    else:
        assert pairs.dealt(numbers).tolist() == [number % FOLDS for number in numbers]


def test_pairs_are_held_by_their_intervals_and_found_where_others_are_not() -> None:
    row = pairs.measured(pairs.Case("altered", 100, 0.5, "uniform"), 40, seed=1)
    assert row["paired_coverage"] >= 0.9
    assert row["paired_found"] == 1
    assert row["paired_length"] < row["independent_length"]
    null = pairs.measured(pairs.Case("altered", 100, 1.0, "none"), 5, seed=1)
    assert (null["paired_found"], null["paired_length"]) == (0, 0)
    said = pairs.summary([row, null])
    assert "(2 cases)" in said
    assert "false alarms 0.0% to 0.0%" in said
