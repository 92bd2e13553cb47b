"""A mutant is its module with one fault, under a name that other code does not move."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.__main__ import EXPLAINED, explanations, outdated
from tests.mutants.making import mutants_of, mutated

FAULTS = {
    "if a != b:\n    raise ValueError": ["if a != b → if False"],
    "if a < b:\n    go()": ["if a < b → if not …", "a < b → a <= b", "drop: go()"],
    "x = a in b": ["a in b → a not in b"],
    "x = a and b": ["without a: a and b", "without b: a and b"],
    "x = not a": ["not a → a"],
    "x = f(a, keep=k)": ["without keep=k: f(a, keep=k)"],
    "return (a, b)": ["without a: (a, b)", "without b: (a, b)"],
    "x = {'a': b, **c}": ["without 'a': {'a': b, **c}", "without c: {'a': b, **c}"],
    "x = 3 + a": ["3 + a → 3 - a", "3 → 4"],
    "x = True": ["True → False"],
    "x = a if b else c": ["a if b else c → c if b else a"],
    "x += a": ["drop: x += a"],
    "try:\n    go()\nexcept E:\n    raise": ["drop: go()", "drop: raise"],
    # What is left alone: annotations, messages, docstrings, unpacking.
    "x: int | None = a": [],
    "raise ValueError(f'{1 + 2} is {a < b}')": [],
    "'it is 3'": [],
    "a, b = c, d": [],
    "x = isinstance(a, int | str)": [],
}


@pytest.mark.parametrize("code", FAULTS)
def test_each_kind_of_fault_is_made_once(code: str) -> None:
    source = "def f():\n    " + code.replace("\n", "\n    ")
    found = mutants_of(source, "m.py")
    assert [mutant.name for mutant in found] == [f"m.py f: {said}" for said in FAULTS[code]]
    whole = ast.unparse(ast.parse(source))
    changed = [ast.unparse(mutated(source, "m.py", mutant.number)) for mutant in found]
    assert len({whole, *changed}) == len(found) + 1
    assert ast.unparse(mutated(source, "m.py", None)) == whole


def test_names_do_not_depend_on_other_functions_and_tell_twins_apart() -> None:
    one = "def f(a):\n    return a < 1 or a < 1"
    alone = [mutant.name for mutant in mutants_of(one, "m.py")]
    beside = mutants_of(f"def g(a):\n    return a < 1\n{one}", "m.py")
    assert [mutant.name for mutant in beside if " f: " in mutant.name] == alone
    assert len(set(alone)) == len(alone)
    assert any(name.endswith(" #2") for name in alone)


def test_the_marks_of_a_pattern_are_dropped() -> None:
    found = mutants_of("P = r'[&;]x'", "m.py")
    assert [mutant.name for mutant in found] == ["m.py module: without &: [&;]",
                                                 "m.py module: without ;: [&;]"]  # fmt: skip
    assert ast.unparse(mutated("P = r'[&;]x'", "m.py", 1)) == "P = '[&]x'"


def test_an_explanation_names_a_mutant_and_says_why() -> None:
    page = "- `m.py f: a → b`: it is the same.\n- `m.py g: a → b`:\n  it is, too.\n"
    page += "- `m.py i: a → b`:\n`m.py h: a → b`: no item.\n"
    assert explanations(page) == {"m.py f: a → b", "m.py g: a → b"}


def test_each_mutant_that_the_page_explains_exists() -> None:
    known = explanations(EXPLAINED.read_text(encoding="utf-8"))
    assert known
    assert outdated(known) == []
    assert outdated({"errors.py module: another"}) == ["errors.py module: another"]
