"""Tests the names of the stages of a network."""

from __future__ import annotations

import pytest

from pipeline.explaining import network_layers, stages_of
from pipeline.explaining.network_stages import STAGES


@pytest.mark.parametrize("count", range(4, 40))
def test_stages_follow_each_other_and_have_nearly_as_many_layers(count: int) -> None:
    layers = [f"layer{k}" for k in range(count)]
    names = stages_of(layers, layers)
    assert len(names) == count
    assert list(dict.fromkeys(names)) == list(STAGES)
    assert sorted(names, key=STAGES.index) == list(names)
    sizes = [names.count(stage) for stage in STAGES]
    assert max(sizes) - min(sizes) <= 1


def test_fewer_layers_than_stages_have_no_names() -> None:
    assert stages_of(["a", "b", "c"], ["a", "b", "c"]) == ("", "", "")
    assert stages_of([], []) == ()


def test_a_layer_has_the_stage_of_its_place_in_the_network_whatever_is_compared() -> None:
    network = [f"layer{k}" for k in range(8)]
    assert stages_of(network[-4:], network) == ("shape", "shape", "objects", "objects")
    assert stages_of(["layer7", "layer0"], network) == ("objects", "colour and edges")


def test_a_layer_whose_depth_is_not_known_has_no_stage() -> None:
    assert stages_of(["a", "own.conv"], ["a", "b", "c", "d"]) == ("colour and edges", "")
    assert stages_of(["a", "b", "c", "d"], []) == ("", "", "", "")


def test_stages_of_a_network_that_is_not_known_here_are_not_named() -> None:
    assert network_layers("nobodys") == ()
    assert len(network_layers("efficientnet_lite0")) > len(STAGES)
