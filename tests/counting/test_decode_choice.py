"""Tests the choice of how much is decoded ahead, on models of workers and clusters."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.counting.decode_choice import (
    GAIN,
    LEAST_RUNS,
    LOST_RUNS,
    REST_REVIEWS,
    SETTLING_REVIEWS,
    DecodeChoice,
    Measured,
)

MOST = 32


@dataclass
class Model:
    """A worker and its cluster, in images a second.

    What is decoded faster than the network takes it waits, and then the network never does.
    """

    network: float
    here: float
    task: float
    cpus: int

    def supply(self, runs: int) -> float:
        return self.here + self.task * min(runs, self.cpus)

    def review(self, choice: DecodeChoice) -> float:
        """Lets the choice see what follows from it; returns the rate."""
        runs = choice.runs
        supply = self.supply(runs)
        rate = min(self.network, supply)
        away = max(1.0, runs / self.cpus) if self.cpus else 0.0
        waited = 10.0 if supply < self.network else 0.0
        measured = Measured(int(100 * rate), 10.0, waited, away, 1.0 if runs else 0.0)
        choice.review(measured, max(0, self.cpus - runs))
        return rate


rates = st.floats(10, 10_000)


@given(here=rates, task=rates, cpus=st.integers(0, 100), spare=st.floats(1, 100))
def test_nothing_is_given_away_while_the_worker_keeps_its_network_busy(
    here: float, task: float, cpus: int, spare: float
) -> None:
    choice, model = DecodeChoice(MOST), Model(here / spare, here, task, cpus)
    for _ in range(50):
        model.review(choice)
        assert (choice.runs, choice.here) == (0, True)


@given(network=rates, here=rates, task=rates, cpus=st.integers(0, LEAST_RUNS - 1))
def test_nothing_is_given_away_to_a_cluster_of_few_free_cpus(
    network: float, here: float, task: float, cpus: int
) -> None:
    choice, model = DecodeChoice(MOST), Model(network, here, task, cpus)
    for _ in range(50):
        model.review(choice)
        assert choice.runs == 0


@given(network=rates, here=rates, task=rates, cpus=st.integers(LEAST_RUNS, 100))
@example(network=50.0, here=10.0, task=10.0, cpus=4)  # the fewest runs are just enough
@example(network=1017.0, here=801.0, task=10.0, cpus=22)  # the first runs gain little
def test_a_hungry_network_is_fed_if_the_cluster_can(
    network: float, here: float, task: float, cpus: int
) -> None:
    choice, model = DecodeChoice(MOST), Model(network, here, task, cpus)
    best = min(network, model.supply(min(MOST, cpus)))
    for _ in range(30):
        model.review(choice)
    mean = sum(model.review(choice) for _ in range(100)) / 100
    if best > GAIN**2 * here:
        assert mean > 0.8 * best
    assert choice.runs <= MOST
    assert choice.here


def test_runs_are_given_away_as_soon_as_cpus_are_free() -> None:
    choice, model = DecodeChoice(MOST), Model(2_000, 500, 100, LEAST_RUNS - 1)
    for _ in range(3):
        model.review(choice)
        assert choice.runs == 0
    model.cpus = LEAST_RUNS
    model.review(choice)
    assert choice.runs == LEAST_RUNS


def fed() -> tuple[DecodeChoice, Model]:
    choice, model = DecodeChoice(MOST), Model(2_000, 500, 100, 64)
    for _ in range(10):
        model.review(choice)
    assert choice.runs >= 15
    return choice, model


def test_others_who_take_the_cpus_end_it_and_it_begins_again_when_they_have_gone() -> None:
    choice, model = fed()
    model.cpus = 2
    for _ in range(30):
        model.review(choice)
        if not choice.runs:
            break
    assert choice.runs == 0
    model.cpus = 64
    for _ in range(REST_REVIEWS):
        model.review(choice)
        assert choice.runs == 0
    model.review(choice)
    assert choice.runs >= LEAST_RUNS


def test_it_ends_when_it_gains_little_though_all_is_given_away() -> None:
    choice, model = DecodeChoice(MOST), Model(2_000, 500, 1, 64)
    seen = []
    for _ in range(3 * (SETTLING_REVIEWS + 1) + 1):
        model.review(choice)
        seen.append(choice.runs)
    stays = SETTLING_REVIEWS + 1
    assert seen == [*[8] * stays, *[16] * stays, *[32] * stays, 0]


def test_it_ends_at_once_when_it_loses() -> None:
    """Tasks, or Ray's stores, may be so slow that a worker is held up by them."""
    choice, model = DecodeChoice(MOST), Model(2_000, 500, 1, 64)
    model.review(choice)
    model.here = 490
    for _ in range(SETTLING_REVIEWS):
        model.review(choice)
        assert choice.runs == 2 * LEAST_RUNS
    model.review(choice)
    assert choice.runs == 0


def test_it_ends_step_by_step_when_the_network_has_enough_without_it() -> None:
    choice, model = fed()
    model.here = 3_000
    seen = []
    while choice.runs and len(seen) < 2 * MOST:
        model.review(choice)
        seen.append(choice.runs)
    steps = [*range(seen[0], LEAST_RUNS - 1, -1)]
    assert seen == [*steps, *[LEAST_RUNS] * (len(seen) - 1 - len(steps)), 0]
    assert len(seen) <= MOST
    model.here = 500
    model.review(choice)
    assert choice.runs  # it needs no rest: nothing went wrong


@pytest.mark.parametrize("always", [False, True])
def test_runs_that_are_late_or_lost_end_it_for_a_while(always: bool) -> None:
    for late in (True, False):
        if always:
            choice, model = DecodeChoice(MOST, always=True), Model(2_000, 500, 100, 64)
        else:
            choice, model = fed()
        before = choice.runs
        if late:
            choice.late()
        for _ in range(0 if late else LOST_RUNS - 1):
            choice.lost()
        if not late:
            assert choice.runs == before
            choice.came()
            for _ in range(LOST_RUNS - 1):
                choice.lost()
            assert choice.runs == before  # those that came between them show that it works
            choice.lost()
        assert (choice.runs, choice.here) == (0, True)
        for _ in range(REST_REVIEWS - 1):
            model.review(choice)
            assert (choice.runs, choice.here) == (0, True)
        for _ in range(2):
            model.review(choice)
        assert choice.runs == (MOST if always else 2 * LEAST_RUNS)
        assert choice.here is not always


@given(network=rates, here=rates, task=rates, cpus=st.integers(0, 100))
def test_what_was_asked_for_is_not_changed_by_what_is_measured(
    network: float, here: float, task: float, cpus: int
) -> None:
    choice, model = DecodeChoice(MOST, always=True), Model(network, here, task, cpus)
    for _ in range(50):
        model.review(choice)
        assert (choice.runs, choice.here) == (MOST, False)
