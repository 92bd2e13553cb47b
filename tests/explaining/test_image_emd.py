"""Tests that the distance of an image's activations is that of its histograms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.comparing.distance import emd
from pipeline.counting import OVERFLOW, UNDERFLOW, LayerCounts
from pipeline.counting.bin_vectors import NONFINITE
from pipeline.dna import DNA, Ranges
from pipeline.errors import UsageError
from pipeline.explaining import image_emd as nearness
from pipeline.explaining.image_emd import LayerEmd
from pipeline.spec import Spec, Tap
from tests.support.builders import NUMERICS, RULE

NEURONS = 5


def dna_of(x: np.ndarray, ranges: Ranges, spec: Spec) -> DNA:
    """Counts one image with the kernel that builds use."""
    counts = LayerCounts(ranges.low, ranges.high, spec.bins)
    counts.add(np.ascontiguousarray(x))
    table, bins = counts.table, spec.bins
    outside = {"underflow": UNDERFLOW, "overflow": OVERFLOW, "nonfinite": NONFINITE}
    return replace(
        DNA.empty(spec, ranges),
        images=len(x),
        counts=table[:, :bins],
        **{name: table[:, bins + at] for name, at in outside.items()},
        numerics=((NUMERICS, len(x)),),
    )


def near_to(ranges: Ranges, *dnas: DNA, seen: np.ndarray | None = None) -> LayerEmd:
    counts = np.stack([dna.counts for dna in dnas])
    counts[:, :, 0] += np.stack([dna.underflow for dna in dnas])
    counts[:, :, -1] += np.stack([dna.overflow for dna in dnas])
    return LayerEmd(ranges.low, ranges.high, counts, dnas[0].spec.taps[0].positions, seen)


def case(
    rng: np.random.Generator, bins: int, positions: int, images: int, bad: float
) -> tuple[Spec, Ranges, np.ndarray, np.ndarray]:
    """Draws ranges (one is a point), a dataset, and images with values outside or not finite."""
    low = np.array([-1.0, -0.5, 0.0, 0.25, -3.0])
    high = np.array([1.0, 0.5, 2.0, 0.25, 3.0])
    ranges = Ranges((("tap", NEURONS),), low, high)
    spec = Spec("tiny", "ab" * 32, (Tap("tap", NEURONS, positions),), RULE, ranges.digest, bins)

    def drawn(count: int, moved: float) -> np.ndarray:
        x = rng.normal(moved, 1, (count, positions, NEURONS)).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = 0.25  # on edges, and in the point
        spoilt = rng.random(x.shape) < bad
        x[spoilt] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32), spoilt.sum())
        return x

    return spec, ranges, drawn(images, 0), drawn(3, 0.5)


@settings(max_examples=80)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 3, 63, 64, 65, 128, 1000]),
    st.sampled_from([1, 2, 7, 49, 200]),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.0, 0.3]),
    st.booleans(),
)
def test_the_distance_of_an_image_is_that_of_its_own_dna(
    seed: int, bins: int, positions: int, images: int, bad: float, few: bool
) -> None:
    """Both algorithms are tested: steps, and the walk over bins; to two datasets at once."""
    spec, ranges, x, y = case(np.random.default_rng(seed), bins, positions, images, bad)
    datasets = [dna_of(x, ranges, spec), dna_of(np.concatenate([x[:1], y[:2]]), ranges, spec)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearness, "FEW", 0 if few else 10**9)
        near = near_to(ranges, *datasets)
        assert near._few == few
        found, by_torch = near.distances(y), near.distances_torch(torch.from_numpy(y))
    with np.errstate(invalid="ignore"):
        alone = [dna_of(one[None], ranges, spec) for one in y]
        truth = np.stack(
            [[emd(one, dataset, per_neuron=True) for dataset in datasets] for one in alone]
        )
    assert np.array_equal(np.isnan(found), np.isnan(truth))
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(by_torch, truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("few", [0, 10**9])
def test_the_only_image_of_a_dataset_has_distance_zero(
    monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(nearness, "FEW", few)
    spec, ranges, x, _ = case(np.random.default_rng(1), 1000, 49, 1, 0)
    assert (near_to(ranges, dna_of(x, ranges, spec)).distances(x) == 0).all()


@pytest.mark.parametrize("few", [0, 10**9])
def test_distances_of_an_image_do_not_depend_on_its_batch(
    monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """They are equal to the last bit, and no image affects the next one."""
    monkeypatch.setattr(nearness, "FEW", few)
    spec, ranges, x, y = case(np.random.default_rng(2), 100, 9, 5, 0.1)
    near = near_to(ranges, dna_of(x, ranges, spec))
    together = near.distances(y)
    alone = np.concatenate([near.distances(one[None]) for one in y[::-1]])[::-1]
    assert np.array_equal(together, alone, equal_nan=True)


@pytest.mark.parametrize("few", [0, 10**9])
def test_neurons_that_are_not_asked_for_are_left_out(
    monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(nearness, "FEW", few)
    spec, ranges, x, y = case(np.random.default_rng(3), 100, 9, 5, 0)
    dataset, seen = dna_of(x, ranges, spec), np.array([True, False, False, True, False])
    found = near_to(ranges, dataset, seen=seen).distances(y)
    whole = near_to(ranges, dataset).distances(y)
    assert np.array_equal(np.isnan(found), np.broadcast_to(~seen, found.shape))
    assert np.array_equal(found[:, :, seen], whole[:, :, seen])
    by_torch = near_to(ranges, dataset, seen=seen).distances_torch(torch.from_numpy(y))
    assert np.array_equal(np.isnan(by_torch), np.isnan(found))


def test_huge_counts_use_the_exact_walk_over_bins() -> None:
    low, high = np.zeros(1), np.ones(1)
    few = np.full((1, 1, 1000), 10**9)
    many = np.full((1, 1, 1000), 10**15)
    assert LayerEmd(low, high, few, 49)._few
    huge = LayerEmd(low, high, many, 49)
    assert not huge._few
    x = np.random.default_rng(0).random((2, 49, 1)).astype(np.float32)
    np.testing.assert_allclose(
        huge.distances(x), LayerEmd(low, high, few, 49).distances(x), rtol=1e-9
    )


def test_activations_of_another_shape_are_refused() -> None:
    near = LayerEmd(np.zeros(2), np.ones(2), np.ones((1, 2, 10), np.int64), 4)
    for wrong in (np.zeros((1, 4, 3), np.float32), np.zeros((1, 5, 2), np.float32)):
        with pytest.raises(UsageError, match="expected float32"):
            near.distances(wrong)
    with pytest.raises(UsageError, match="float64"):
        near.distances(np.zeros((1, 4, 2)))
