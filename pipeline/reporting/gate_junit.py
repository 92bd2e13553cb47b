"""Writes what a refresh found as JUnit XML, which CI systems show as tests.

>>> junit_xml({"gate": [], "datasets": [], "failed": [], "error": None, "other_error": None})[:38]
b"<?xml version='1.0' encoding='utf-8'?>"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from pipeline.errors import as_one_line, printable
from pipeline.reporting.gate_words import reason_lines
from pipeline.reporting.night_words import untold_error


def junit_xml(outcome: Mapping[str, Any]) -> bytes:
    """Writes the outcome as JUnit XML.

    The suite `gate` has a case for each bound: a failure if it is broken, an error if it could not
    be judged, skipped if there is no earlier version yet. The suite `datasets` has a case for each
    dataset: an error if it could not be built. Whatever else went wrong is an error in the suite
    `refresh`.

    Args:
        outcome: What a refresh found, as `Refreshed.outcome` has it.

    Returns:
        The bytes of the file.
    """
    gate = [_gate_case(row) for row in outcome["gate"]]
    built = [_case("datasets", row["dataset"]) for row in outcome["datasets"]]
    built += [
        _case("datasets", row["name"], "error", row["message"], row["error"])
        for row in outcome["failed"]
    ]
    suites = [_suite("gate", gate), _suite("datasets", built)]
    if error := untold_error(outcome):
        suites.append(_suite("refresh", [_case("refresh", "refresh", "error", error)]))
    root = ElementTree.Element("testsuites", {"name": "vdna refresh"})
    for name in _COUNTED:
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in suites)))
    root.extend(suites)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data


_COUNTED = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
"""The numbers that a suite states, and the elements that they count."""


def _suite(name: str, cases: Sequence[ElementTree.Element]) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", {"name": name})
    suite.extend(cases)
    for number, element in _COUNTED.items():
        suite.set(number, str(len(list(suite.iter(element)))))
    return suite


def _gate_case(row: Mapping[str, Any]) -> ElementTree.Element:
    where, what = f"gate.{row['kind']}", row["name"]
    if row["outcome"] == "broken":
        return _case(where, what, "failure", row["text"], "broken", reason_lines(row))
    if row["outcome"] == "not judged":
        return _case(where, what, "error", row["error"], "not judged")
    if row["outcome"] == "no earlier version yet":
        return _case(where, what, "skipped", row["outcome"])
    return _case(where, what)


def _case(
    where: str,
    name: str,
    element: str = "",
    message: str = "",
    kind: str = "",
    more: Sequence[str] = (),
) -> ElementTree.Element:
    """Returns a test case, with the element that says how it ended badly, if it did."""
    case = ElementTree.Element("testcase", {"classname": where, "name": printable(name)})
    if element:
        told = {"message": as_one_line(message)} | ({"type": kind} if kind else {})
        text = "\n".join(map(printable, (*message.split("\n"), *more)))
        ElementTree.SubElement(case, element, told).text = text
    return case
