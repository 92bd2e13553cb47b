"""Tests the order of candidates for training, and what is said of it."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.catalogue import Catalogue, Version, remove
from pipeline.comparing import Effort, compare, nearest
from pipeline.errors import NotFound, SpecMismatch, UsageError
from pipeline.explaining import Suggestion, suggest, suggestion
from pipeline.explaining.suggestion import MEASURED_LAYER, MEASURED_SPEC, _in_order
from pipeline.networks import describe, find_ranges
from pipeline.reporting import suggestion_json, suggestion_lines
from pipeline.reporting.suggestion_words import suggestion_notes
from pipeline.sources import plan
from pipeline.spec import Preprocess, Spec
from tests.comparing.test_nearest_search import SPEC, place, put
from tests.golden.handmade import commit_dataset, entries, hand_made

__all__ = ["place"]  # a fixture

EXPERIMENTS = Path(__file__).parents[2] / "docs" / "experiments.md"


@pytest.fixture(scope="module")
def found(place: Catalogue) -> Suggestion:
    return suggest(place, "set/4")


def test_candidates_are_in_the_order_of_corrected_distances(
    place: Catalogue, found: Suggestion
) -> None:
    assert (found.target, found.layer, found.is_measured) == ("set/4", SPEC.layers[-1], False)
    matrix = compare(place, effort=Effort(keep=False))
    row = matrix.names.index("set/4")
    corrected = matrix.corrected(found.layer)[row]
    distances = [one.distance for one in found.candidates]
    assert distances == sorted(distances)
    for one in found.candidates:
        at = matrix.names.index(one.name)
        assert one.distance == corrected[at]
        assert one.low == matrix.of(found.layer, "low")[row, at]
        assert one.unclear == (one.rank > 1 and one.low <= found.candidates[0].high)
        assert one.images == 8
    assert [one.rank for one in found.candidates] == list(range(1, 11))
    assert any(one.unclear for one in found.candidates)
    assert not all(one.unclear for one in found.candidates[1:])
    assert found.to_pandas()["name"].tolist() == [one.name for one in found.candidates]


def test_the_neuron_without_values_is_in_another_layer(place: Catalogue) -> None:
    whole = suggest(place, "set/4", ["lost", "set/1"], layer="all")
    assert ([one.name for one in whole.candidates], whole.undefined) == (["set/1"], ("lost",))
    assert "Without a distance" in suggestion_notes(whole)[-1]


@pytest.fixture(scope="module")
def mixed() -> Catalogue:
    """Makes a catalogue of two specs: three datasets have one of them, and one has the other."""
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    for name, at in {"one": 0.2, "two": 0.3, "three": 0.8}.items():
        put(catalogue, name, at)
    manifest = plan(entries("other", 8), shard_images=1)
    commit_dataset(catalogue, "other", manifest, [hand_made(each) for each in manifest.shards])
    return catalogue


def test_datasets_of_other_specs_are_said_to_be_left_out(mixed: Catalogue) -> None:
    found = suggest(mixed, "one")
    assert [one.name for one in found.candidates] == ["two", "three"]
    assert found.apart == ("other",)
    told = "Not compared, as built under other specs (`spec`): other."
    assert told in suggestion_json(found)["notes"]
    assert suggest(mixed, "one", ["two"]).apart == ()
    with pytest.raises(
        UsageError, match=r"there is no candidate: .* other .*under other specs: one"
    ):
        suggest(mixed, "other")
    with pytest.raises(SpecMismatch, match="bins"):
        suggest(mixed, "one", ["other"])


def test_the_target_may_be_a_version(mixed: Catalogue) -> None:
    names = [one.name for one in suggest(mixed, "one").candidates]
    assert [one.name for one in suggest(mixed, "one@1").candidates] == names


def test_a_suggestion_is_of_one_commit_whatever_is_removed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    for name, at in {"one": 0.2, "two": 0.3, "three": 0.8}.items():
        put(catalogue, name, at)

    def compared(*given: Any, **options: Any) -> Any:
        found = nearest(*given, **options)
        remove(catalogue, ["two"])
        return found

    monkeypatch.setattr("pipeline.explaining.suggestion.nearest", compared)
    assert [one.name for one in suggest(catalogue, "one").candidates] == ["two", "three"]


def test_a_candidate_that_is_the_target_is_noted(place: Catalogue) -> None:
    found = suggest(place, "set/3", ["set/1", "set/copy", "set/3@4"])
    assert found.same == ("set/copy", "set/3@4")
    assert "The same dataset as the target, or a version of it: set/copy and set/3@4." in (
        "\n".join(suggestion_notes(found))
    )


def test_a_wrong_question_is_refused(place: Catalogue) -> None:
    with pytest.raises(UsageError, match="set/4 is the target, and a candidate, too"):
        suggest(place, "set/4", ["set/1", "set/4"])
    with pytest.raises(NotFound, match="'x'"):
        suggest(place, "x")
    with pytest.raises(NotFound, match="'x'"):
        suggest(place, "set/4", ["x"])
    with pytest.raises(UsageError, match="nope"):
        suggest(place, "set/4", layer="nope")


def test_the_figures_are_those_of_the_experiment(found: Suggestion) -> None:
    text = " ".join(EXPERIMENTS.read_text().split())
    measured = suggestion_notes(found)[0]
    row = re.search(r"\| EMD, last layer \| ([\d.]+) \((.+?)\) \| ([\d.]+)%", text)
    chance = re.search(r"\| none, at random \| 0 \| ([\d.]+)% \|", text)
    assert row is not None
    assert chance is not None
    assert f"correlation of {row[1]} with accuracy (95% interval {row[2]})" in measured
    assert f"lost {row[3]} points of accuracy to the best one, and one at random {chance[1]}" in (
        measured
    )
    for there, here in {
        "means of 18 targets": "For 18 targets",
        "the 17 candidates are ordered": "the order of 17 candidates",
        "ahead of FD by 0.04 (0.01 to 0.08)": "Fréchet distance's by 0.04 (0.01 to 0.08)",
        "It is not told apart from cosine": "not told apart from that of the cosine",
    }.items():
        assert there in text
        assert here in measured
    assert "bad for every target" in text
    assert "bad for every target" in suggestion_notes(found)[1]
    assert "266 cut-out photographs" in text
    assert "266 cut-out photographs" in suggestion_notes(found)[1]


def test_the_spec_that_was_measured_is_the_default_of_the_embedded_network() -> None:
    network = describe("efficientnet_lite0")
    rule = Preprocess(network.height, network.width, network.mean, network.std)
    ranges, _ = find_ranges(network, None, {})
    spec = Spec(network.name, network.weights_sha256, network.taps, rule, ranges.digest)
    assert (spec.digest, spec.layers[-1]) == (MEASURED_SPEC, MEASURED_LAYER)


def test_figures_are_vouched_for_with_the_measured_spec_and_layer_only(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_measured(layer: str | None) -> bool:
        return suggest(place, "set/4", ["set/1"], layer=layer).is_measured

    monkeypatch.setattr(suggestion, "MEASURED_LAYER", SPEC.layers[-1])
    assert not is_measured(None)
    monkeypatch.setattr(suggestion, "MEASURED_SPEC", SPEC.digest)
    assert [is_measured(layer) for layer in (None, SPEC.layers[0], "all")] == [True, False, False]


def test_what_is_unlike_the_experiment_is_noted(found: Suggestion) -> None:
    def notes(of: Suggestion) -> str:
        return "\n".join(suggestion_notes(of))

    usual = replace(found, is_measured=True)
    assert "were not measured with this network, layer or preprocessing" in notes(found)
    assert "were not measured" not in notes(usual)
    assert "more images teach more" not in notes(usual)
    assert "more images teach more" in notes(replace(usual, images=16))
    near = replace(found.candidates[0], q=0.3)
    assert "Not told apart from the target: " in notes(replace(usual, candidates=(near,)))
    apart = replace(near, q=0.01)
    assert "Not told apart" not in notes(replace(usual, candidates=(apart,)))


def test_uncorrected_candidates_come_last_and_may_be_the_nearest(found: Suggestion) -> None:
    row = {"emd": 3.0, "emd_corrected": 2.0, "low": 1.9, "high": 2.1, "q": 0.0, "paired": 0.0}
    unknown = dict.fromkeys(("emd_corrected", "low", "high", "q", "paired"))
    rows = [
        {"b": "plain", "rank": 1, **row, "emd": 1.0, **unknown},
        {"b": "near", "rank": 2, **row},
        {"b": "far", "rank": 3, **row, "emd_corrected": 5.0, "low": 4.0, "high": 6.0},
    ]
    versions = {row["b"]: Version("", "", "", 8, 0, (), {}, "", "", "", ()) for row in rows}
    made = _in_order(rows, versions)
    assert [(one.name, one.rank, one.unclear) for one in made] == [
        ("near", 1, False),
        ("far", 2, False),
        ("plain", 3, True),
    ]
    notes = "\n".join(suggestion_notes(replace(found, candidates=made)))
    assert "Not corrected for the sizes of the samples: plain (" in notes
    assert [one.unclear for one in _in_order(rows[:1] * 2, versions)] == [False, True]


def test_lines_and_json_have_what_is_known(found: Suggestion) -> None:
    first, second = found.candidates[:2]
    plain = replace(second, emd_corrected=np.nan, low=np.nan, high=np.nan, q=np.nan, unclear=False)
    of = replace(found, candidates=(first, plain))
    lines = suggestion_lines(of)
    assert re.match(rf"    1\. {first.name}\s+[\d.]+ \[[\d.]+, [\d.]+\]\s+8 images$", lines[1])
    assert re.match(rf"    2\. {second.name}\s+[\d.]+ \(not corrected\)\s+8 images$", lines[2])
    assert lines[3].startswith("note: ")
    rows = json.loads(json.dumps(suggestion_json(of), allow_nan=False))["candidates"]
    assert [row["q"] is None for row in rows] == [False, True]
    assert "may be the nearest, too" in "\n".join(suggestion_lines(found))
