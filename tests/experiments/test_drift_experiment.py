"""The experiment on drift draws what it says, and its alarms come as seldom as they should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from experiments import drift
from pipeline.comparing import alarms

SHARED = {"independent": (0, 0), "growing": (1, 1), "churn": (0.9, 0.9), "altered": (0.15, 0.92)}
"""Between which shares of the smaller version's images two versions in a row share."""


@pytest.mark.parametrize("kind", drift.KINDS)
def test_versions_share_the_images_that_they_should(kind: str) -> None:
    case = drift.Case(kind, 100)
    held = list(drift.versions(case, np.random.default_rng(1)))
    assert len(held) == drift.RATED_VERSIONS
    sizes = [int(of.images.sum()) for of in held]
    assert sizes == [100 + 10 * at * (kind == "growing") for at in range(drift.RATED_VERSIONS)]
    least, most = SHARED[kind]
    for one, other in itertools.pairwise(held):
        assert least <= one.pairs.shared(other.pairs).of_smaller <= most


@pytest.mark.parametrize("kind", drift.KINDS)
def test_a_large_shift_raises_an_alarm_when_it_comes_and_not_before(kind: str) -> None:
    found = alarms(*drift.tested(drift.Case(kind, 300, shift=2.0), np.random.default_rng(2)))
    either = found.step | found.reference
    at = drift.FIRST_SHIFTED - 1  # the first version is compared with none
    assert not either[:at].any()
    assert either[at] or either[at + 1]
    assert found.reference[-1]


@pytest.mark.soak  # five thousand versions
@pytest.mark.parametrize("kind", ["churn", "altered"])
def test_null_histories_have_no_more_alarms_than_stated(kind: str) -> None:
    """At 5%, more than 11 of 80 histories have an alarm less than once in a thousand times."""
    row = drift.measured(drift.Case(kind, 300), 80, seed=7)
    assert row["any"] <= 11 / 80
    assert row["any"] > 0


def test_it_is_counted_how_many_versions_late_a_shift_is_seen() -> None:
    case = drift.Case("independent", 150, shift=2.0)
    row = drift.measured(case, 2, seed=3)
    assert [row[name] for name in ("before", "at_once", "early", "seen", "late")] == [0, 1, 1, 1, 0]
    assert "seen at once 100%" in drift.line_of(case, row)
    tiny = drift.Case("independent", 150, shift=0.001)
    unseen = drift.measured(tiny, 2, seed=3)
    assert (unseen["seen"], unseen["late"]) == (0, drift.RATED_VERSIONS)
    assert "median never" in drift.line_of(tiny, unseen)
