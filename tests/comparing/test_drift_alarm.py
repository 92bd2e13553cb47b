"""The rule of alarms has the rate of false alarms that it states."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.comparing.drift_alarm import (
    FALSE_ALARM_RATE,
    LEAST_ALARMED,
    LEAST_STEPPED,
    RATED_VERSIONS,
    REFERENCE_LIMIT,
    STEP_LIMIT,
    alarms,
)


def test_the_limits_of_all_pairs_add_up_to_the_rate() -> None:
    pairs = RATED_VERSIONS - 1
    assert pairs * (STEP_LIMIT + REFERENCE_LIMIT) == pytest.approx(FALSE_ALARM_RATE)


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_histories_of_equal_distributions_have_no_more_alarms_than_the_rate(shared: float) -> None:
    """The tests may depend on each other: here all references have some of their noise in common.

    Whatever they depend on, p is uniform on the steps of a test of sixteen folds.
    """
    chance, shape = np.random.default_rng(1), (40_000, RATED_VERSIONS - 1)

    def p(of_all: float) -> np.ndarray:
        same = chance.random((shape[0], 1)) < of_all
        values = np.where(same, chance.random((shape[0], 1)), chance.random(shape))
        return np.ceil(values * 2**15) / 2**15

    found = alarms(p(0.0), p(shared))
    rate = float((found.step | found.reference).any(axis=1).mean())
    assert 0.8 * FALSE_ALARM_RATE - 0.003 < rate < FALSE_ALARM_RATE + 0.003


def test_what_is_not_tested_raises_no_alarm() -> None:
    found = alarms(np.array([np.nan, 0.0, 1.0]), np.array([0.0, np.nan, np.nan]))
    assert found.step.tolist() == [False, True, False]
    assert found.reference.tolist() == [True, False, False]


@pytest.mark.parametrize("folds", range(2, 17))
def test_folds_are_enough_if_their_smallest_p_raises_both_alarms(folds: int) -> None:
    least = np.array([2.0 ** -(folds - 1)])
    assert (folds >= LEAST_ALARMED) == all(raised[0] for raised in alarms(least, least))
    assert (folds >= LEAST_STEPPED) == alarms(least, least).step[0]
