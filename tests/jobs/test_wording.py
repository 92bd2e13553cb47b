"""Tests how messages word a number of things, and how they name an option."""

from __future__ import annotations

import doctest

import pytest

from pipeline import wording
from pipeline.building.failure_gate import require_few_failures
from pipeline.errors import GateError
from pipeline.wording import count_of, option, options_as_flags, options_as_keys


def test_the_examples_of_the_docstring_hold() -> None:
    assert doctest.testmod(wording).failed == 0


def test_one_thing_is_in_the_singular_and_none_or_several_in_the_plural() -> None:
    assert [count_of(n, "image") for n in (0, 1, 2, 1000)] == [
        *("0 images", "1 image", "2 images", "1,000 images")
    ]
    assert count_of(2, "matrix", "matrices") == "2 matrices"


def test_an_option_is_named_as_the_caller_writes_it() -> None:
    assert (option("by", ""), option("error_bars", False)) == ("`by=''`", "`error_bars=False`")
    with options_as_flags():
        assert option("keep", ["a:b", "hue"]) == "--keep a:b --keep hue"
        assert (option("by", ""), option("layer_gaussian", True)) == ("--by ''", "--layer-gaussian")
        with options_as_keys("x.yaml", ["max_failures"]):
            assert option("max_failures") == "`max_failures` in x.yaml"
            assert option("relist", True) == "--relist"  # which the file would refuse
        assert option("max_failures") == "--max-failures"
    assert option("max_failures") == "`max_failures`"


@pytest.mark.parametrize(
    ("limit", "said"), [(0.01, "1% of the images"), (1, "1 image"), (0, "0 images")]
)
def test_the_limit_of_failures_is_said_in_words(limit: float, said: str) -> None:
    with pytest.raises(GateError, match=f"2 of 8 images could not be read; the limit is {said}"):
        require_few_failures("x", 2, 8, limit, ["a.jpg: truncated"])


def test_a_limit_that_python_gave_is_named_as_in_python() -> None:
    with pytest.raises(GateError, match="with a higher `max_failures`, which goes on"):
        require_few_failures("x", 2, 8, 1, ["a.jpg: truncated"])
