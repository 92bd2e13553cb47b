"""Tests which nodes are left out because their devices fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.device_errors import MOST_ERRORS, DeviceErrors
from pipeline.engine.ray_nodes import without

STORIES = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60)


@given(STORIES)
def test_a_node_is_left_out_by_errors_in_a_row_while_another_node_counts(
    story: list[tuple[str, bool]],
) -> None:
    errors = DeviceErrors()
    out: list[str] = []
    for at, (node, good) in enumerate(story):
        if good:
            errors.counted(node)
            continue
        own = [ok for who, ok in story[: at + 1] if who == node]
        in_a_row = len(own) >= MOST_ERRORS and not any(own[-MOST_ERRORS:])
        others = any(ok and who != node and who not in out for who, ok in story[:at])
        expected = in_a_row and others and node not in out
        assert errors.failed(node) == expected
        out += [node] if expected else []
        assert errors.left_out == tuple(out)


def test_an_error_that_every_node_meets_leaves_out_none() -> None:
    errors = DeviceErrors()
    assert not any(errors.failed(node) for node in "ab" * 10)
    assert errors.left_out == ()


def test_a_selector_names_the_nodes_that_are_left_out() -> None:
    assert without(()) is None
    assert without(("a", "b")) == {"ray.io/node-id": "!in(a,b)"}
