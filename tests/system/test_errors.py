"""What the errors say of a field that pydantic refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline import errors
from pipeline.errors import shortened, wrong_fields


class Inner(BaseModel):
    model_config = ConfigDict(strict=True)

    count: int


@dataclass
class Point:
    """What a commit and a spec are made of."""

    x: int = 0

    __pydantic_config__ = ConfigDict(extra="forbid")


class Loose(BaseModel):
    """One of a file that takes `"3"` for a number."""

    point: Point = Point()
    whole: int = 0
    number: float = 0.0


class Fields(BaseModel):
    """One field of each kind that a file of ours has."""

    model_config = ConfigDict(strict=True, extra="forbid")

    flag: bool = True
    names: dict[str, int] = {}
    finite: float = Field(default=0.0, allow_inf_nan=False)
    above: float = Field(default=1.0, gt=0.5)
    at_least: int = Field(default=3, ge=3)
    whole: int = 0
    below: float = Field(default=0.0, lt=1)
    at_most: int = Field(default=0, le=7)
    items: list[int] = []
    kind: Literal["dog", "cat"] = "dog"
    inner: Inner = Inner(count=1)
    at: datetime = datetime(2026, 1, 1)
    text: str = ""
    even: int = 0
    some: Annotated[list[int], Field(min_length=2)] = [1, 2]
    name: Annotated[str, Field(min_length=1)] = "n"
    digest: Annotated[str, Field(pattern="^[0-9a-f]{4}$")] = "0f0f"
    pair: tuple[int, int] = (1, 2)
    several: Sequence[int] = ()
    loose: Loose = Loose()

    @field_validator("even")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("it must be even")
        return value


def refused(given: object) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Fields.model_validate(given)
    return caught.value


SAID: dict[str, tuple[dict[Any, Any], str]] = {
    "bool_type": ({"flag": 3}, "flag is 3: it must be true or false"),
    "dict_type": ({"names": 3}, "names is 3: it must have fields with names"),
    "extra_forbidden": ({"colour": "red"}, "colour is 'red': there is no such field"),
    "finite_number": ({"finite": math.inf}, "finite is inf: it must be finite"),
    "float_type": ({"above": "1"}, "above is '1': it must be a number"),
    "greater_than": ({"above": 0.5}, "above is 0.5: it must be more than 0.5"),
    "greater_than_equal": ({"at_least": 2}, "at_least is 2: it must be at least 3"),
    "int_type": ({"whole": "2"}, "whole is '2': it must be a whole number"),
    "less_than": ({"below": 1.0}, "below is 1.0: it must be less than 1"),
    "less_than_equal": ({"at_most": 8}, "at_most is 8: it must be at most 7"),
    "list_type": ({"items": 3}, "items is 3: it must be a list"),
    "literal_error": ({"kind": "cow"}, "kind is 'cow': it must be 'dog' or 'cat'"),
    "model_type": ({"inner": 3}, "inner is 3: it must have fields with names"),
    "string_type": ({"text": 3}, "text is 3: it must be text"),
    "dataclass_type": ({"loose": {"point": 3}}, "loose.point is 3: it must have fields with names"),
    "float_parsing": ({"loose": {"number": "x"}}, "loose.number is 'x': it must be a number"),
    "int_from_float": ({"loose": {"whole": 1.5}}, "loose.whole is 1.5: it must be a whole number"),
    "int_parsing": ({"loose": {"whole": "x"}}, "loose.whole is 'x': it must be a whole number"),
    "invalid_key": ({5: 1}, "5 is 5: a field's name must be text, and not a number or a date"),
    "is_instance_of": ({"several": 3}, "several is 3: it must be a list"),
    "string_pattern_mismatch": (
        {"digest": "0F"},
        "digest is '0F': it must be written as the pattern ^[0-9a-f]{4}$ says",
    ),
    "string_too_short": ({"name": ""}, "name is '': it must have characters, at least 1"),
    "too_short": ({"some": []}, "some is []: it must have entries, at least 2"),
    "tuple_type": ({"pair": 3}, "pair is 3: it must be a list"),
    "unexpected_keyword_argument": (
        {"loose": {"point": {"y": 1}}},
        "loose.point.y is 1: there is no such field",
    ),
}
"""Fields that are wrong, and what is said of them, by pydantic's name of what is wrong."""


@pytest.mark.parametrize("kind", SAID)
def test_a_wrong_field_is_named_with_its_value_and_what_it_must_be(kind: str) -> None:
    given, said = SAID[kind]
    error = refused(given)
    assert [one["type"] for one in error.errors()] == [kind]
    assert wrong_fields(error) == said


def test_a_text_that_is_not_json_is_said_to_be_none() -> None:
    with pytest.raises(ValidationError) as caught:
        Fields.model_validate_json("{")
    assert wrong_fields(caught.value) == "the whole is '{': it is not JSON"


def test_every_plain_word_has_its_test() -> None:
    assert {*SAID, "json_invalid"} == set(errors._WANTED)


def test_words_of_our_own_stand_as_they_are() -> None:
    assert wrong_fields(refused({"even": 3})) == "even is 3: it must be even"


def test_what_has_no_plain_words_here_has_those_of_pydantic() -> None:
    error = refused({"at": "noon"})
    assert wrong_fields(error) == f"at is 'noon': {error.errors()[0]['msg']}"


def test_a_missing_field_is_said_to_be_missing() -> None:
    assert wrong_fields(refused({"inner": {}})) == "inner.count is missing in {}"


def test_a_field_of_a_field_has_its_path() -> None:
    said = wrong_fields(refused({"inner": {"count": "x"}}))
    assert said == "inner.count is 'x': it must be a whole number"


@pytest.mark.parametrize(("most", "ends"), [({}, "and 2 more"), ({"most": 9}, "and 1 more")])
def test_only_the_first_fields_are_named(most: dict[str, int], ends: str) -> None:
    given = {field: value for wrong, _ in SAID.values() for field, value in wrong.items()}
    said = wrong_fields(refused(dict(list(given.items())[:10])), **most).split("; ")
    assert (len(said), said[-1]) == (most.get("most", 8) + 1, ends)


def test_as_many_fields_as_may_be_named_are() -> None:
    said = wrong_fields(refused({"flag": 3, "names": 3, "items": 3}), 3).split("; ")
    assert said == [SAID[kind][1] for kind in ("bool_type", "dict_type", "list_type")]


@pytest.mark.parametrize(("value", "shown"), [("a" * 8, "'aaaaaaaa'"), ("a" * 9, "'aaaaaaaaa…")])
def test_a_value_is_cut_where_it_is_too_long(value: str, shown: str) -> None:
    assert shortened(value, longest=10) == shown
    assert shortened(value * 100) == f"{(value * 100)!r}"[:200] + "…"
