"""Tests what explains a broken bound: the neurons and the images, and nothing of one that holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.catalogue import Catalogue, keep_lens
from pipeline.dna import Lens
from pipeline.errors import StorageError
from pipeline.explaining import explain
from pipeline.refreshing.bound_kinds import Bound, MoveBound
from pipeline.refreshing.break_reasons import BREAK_IMAGES, BREAK_NEURONS
from pipeline.refreshing.gate import judge
from pipeline.refreshing.verdict import Verdict
from pipeline.reporting import reason_lines
from tests.explaining.test_sensitivity import MOVED, SPEC, put
from tests.refreshing.test_gate import parted, refresh


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    catalogue = Catalogue(str(tmp_path_factory.mktemp("reasons")))
    for name, images, moved in (("a", 200, {}), ("b", 200, MOVED), ("a", 240, MOVED)):
        put(catalogue, name, images, moved)
    put(catalogue, "plain", 200, {})
    keep_lens(catalogue, Lens.from_rows("head", SPEC, [("head", 2, 1.0)]))
    return catalogue


def judged(place: Catalogue, bound: Bound | MoveBound) -> Verdict:
    (found,) = judge(place, [bound])
    assert isinstance(found, Verdict)
    return found


def pair(**more: Any) -> Bound:
    return Bound(**{"a": "plain", "b": "b", "max": 0.1, **more})


def test_a_broken_bound_names_the_neurons_that_explain_finds(place: Catalogue) -> None:
    found = judged(place, pair())
    told = explain(place, "plain", "b").neurons.slice(0, BREAK_NEURONS).to_pylist()
    assert [(of.layer, of.neuron) for of in found.reasons[:2]] == [("stem", 5), ("head", 2)]
    assert [(of.emd, of.q, of.share) for of in found.reasons] == [
        (row["emd"], row["q"], row["share"]) for row in told
    ]


def test_a_move_is_explained_by_its_two_versions(place: Catalogue) -> None:
    found = judged(place, MoveBound(dataset="a", against="@-1", max_move=0.1))
    assert found.row["sides"] == ["a@-1", "a"]
    assert [(of.layer, of.neuron) for of in found.reasons[:2]] == [("stem", 5), ("head", 2)]


def test_the_layer_and_the_lens_of_a_bound_choose_its_neurons(place: Catalogue) -> None:
    of_layer = judged(place, pair(layer="head"))
    assert {of.layer for of in of_layer.reasons} == {"head"}
    through = judged(place, pair(lens="head"))
    assert [(of.layer, of.neuron) for of in through.reasons] == [("head", 2)]


def test_nothing_is_explained_of_a_bound_that_holds_or_of_no_distance(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> object:
        raise AssertionError("explained")

    monkeypatch.setattr("pipeline.refreshing.break_reasons.explain", never)
    assert judged(place, pair(max=99)).reasons == ()
    undefined = judged(place, pair(lens="head", layer="stem"))  # its weights there are all 0
    assert (undefined.outcome, undefined.reasons, undefined.unexplained) == ("broken", (), "")


def test_a_bound_stays_broken_if_its_reasons_cannot_be_found(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> object:
        raise StorageError("the exemplars are gone")

    monkeypatch.setattr("pipeline.refreshing.break_reasons.explain", gone)
    found = judged(place, pair())
    assert (found.outcome, found.reasons) == ("broken", ())
    assert reason_lines(found.row) == ["  not explained: the exemplars are gone"]
    assert found.row["unexplained"] == "the exemplars are gone"


def test_json_has_the_images_that_the_neurons_react_to_most(tmp_path: Path) -> None:
    bounds = "{a: day/sun, b: day/rain, max: 0}", "{dataset: day, min_images: 1}"
    file = parted(tmp_path, {"day": 100}, *bounds)
    for path in (tmp_path / "day" / "rain").iterdir():
        Image.open(path).point(lambda value: value // 8).save(path)
    row, other = json.loads(refresh(file, "--json", exits=3).stdout)["gate"]
    assert (row["outcome"], "reasons" in other) == ("broken", False)
    told = explain(Catalogue(str(tmp_path / "c")), "day/sun", "day/rain", top=BREAK_NEURONS)
    for reason, sides in zip(row["reasons"], told.reactions, strict=True):
        for side, images in zip("ab", sides, strict=True):
            assert images is not None
            assert [of["uri"] for of in reason["exemplars"][side]] == [
                of.uri for of in images[:BREAK_IMAGES]
            ]
    assert {"layer", "neuron", "emd", "emd_corrected", "q", "share"} < row["reasons"][0].keys()
    first, of_a, of_b = reason_lines(row)[:3]
    assert first.startswith(f"  {row['reasons'][0]['layer']}[{row['reasons'][0]['neuron']}]: ")
    assert of_a.startswith(f"    in day/sun: {tmp_path}/day/sun/photo-00")
    assert of_b.startswith(f"    in day/rain: {tmp_path}/day/rain/photo-00")
    assert of_a.count(".jpg") == BREAK_IMAGES
