"""Tests the experiment on lenses that are fitted to other images: how it fits and scores."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import unpaired
from pipeline.altered_pictures import PICTURE_CHANGES
from pipeline.explaining import AttributeDistances
from pipeline.explaining.lens_problem import NeuronDistances
from pipeline.spec import Tap
from tests.support.builders import tiny_spec

SPEC, _ = tiny_spec(40, (Tap("stem", 40, 4), Tap("head", 40, 1)))


def seen(names: list[str], rows: np.ndarray, noise: float, seed: int) -> AttributeDistances:
    chance = np.random.default_rng(seed)

    def view(scale: float) -> NeuronDistances:
        told = rows + chance.normal(0, noise * scale, rows.shape)
        return NeuronDistances(told, np.full(rows.shape, (noise * scale) ** 2 + 1e-6))

    halves = tuple(view(2**0.5) for _ in range(4))
    return AttributeDistances(tuple(names), SPEC, {}, {}, view(1), halves, np.zeros(rows.shape))


def test_each_way_is_scored_on_the_attribute_that_it_ignores() -> None:
    """Noise costs suppression, and the word of a change gives most of it back."""
    chance = np.random.default_rng(0)
    rows = chance.gamma(1, size=(len(unpaired.ATTRIBUTES), SPEC.neurons))
    words = [
        (w, by) for w, of in unpaired.ATTRIBUTES.items() for by in PICTURE_CHANGES[w].strengths
    ]
    at = [list(unpaired.ATTRIBUTES).index(word) for word, _ in words]
    names = list(unpaired.ATTRIBUTES)
    told = unpaired.scores(
        {
            "same crops": seen(names, rows, 0.01, 1),
            "other crops": seen(names, rows, 1.0, 2),
            "twice as many": seen(names, rows, 0.7, 3),
            "not corrected": seen(names, rows + 1, 1.0, 4),
            "both corrected": seen(names, rows, 1.0, 2),
            "twice, both corrected": seen(names, rows, 0.7, 3),
            "words": seen([f"{w} {by:g}" for w, by in words], rows[at], 0.01, 5),
            "fresh": seen(names, rows, 0.0, 6),
        }
    )
    gone = {row["way"]: row["suppression"] for row in told}
    assert list(gone) == list(unpaired.WAYS)
    assert gone["same crops"] > 0.95
    assert gone["the word alone"] > 0.9
    assert gone["other crops"] < gone["twice as many"] < gone["same crops"]
    assert gone["with the word"] > gone["other crops"]
    for row in told:
        assert row["suppression"] == pytest.approx(np.mean(list(row["of_each"].values())), abs=1e-4)
        assert row["least"] == pytest.approx(min(row["of_each"].values()), abs=1e-4)
