"""Tests the names of the stages of a network."""

from __future__ import annotations

import pytest

from pipeline.explaining import stages_of
from pipeline.explaining.network_stages import STAGES


@pytest.mark.parametrize("count", range(4, 40))
def test_stages_follow_each_other_and_have_nearly_as_many_layers(count: int) -> None:
    names = stages_of([f"layer{k}" for k in range(count)])
    assert len(names) == count
    assert list(dict.fromkeys(names)) == list(STAGES)
    assert sorted(names, key=STAGES.index) == list(names)
    sizes = [names.count(stage) for stage in STAGES]
    assert max(sizes) - min(sizes) <= 1


def test_fewer_layers_than_stages_have_no_names() -> None:
    assert stages_of(["a", "b", "c"]) == ("", "", "")
    assert stages_of([]) == ()
