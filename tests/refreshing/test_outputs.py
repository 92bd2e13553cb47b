"""Tests what a refresh writes for other programs: JUnit, Markdown, metrics, and a push gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.building import Movement
from pipeline.catalogue import Catalogue, remove
from pipeline.refreshing.night_outcome import sum_up
from pipeline.reporting import (
    junit_xml,
    metrics_text,
    night_sentence,
    render_night,
    summary_markdown,
)
from tests.jobs.test_cli import refused, vdna
from tests.refreshing.test_gate import parted, refresh

Metrics = dict[tuple[str, str], float]


class Received(BaseHTTPRequestHandler):
    """Notes each request, and answers it with the next status."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.requests.append((self.command, self.path, dict(self.headers), body))
        status = server.statuses.pop(0) if server.statuses else 200
        self.send_response(status)
        if status in (301, 302, 307):
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = answer  # noqa: N815
    do_PUT = answer  # noqa: N815
    do_GET = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening(*statuses: int) -> Iterator[tuple[str, list[tuple[str, str, dict[str, str], bytes]]]]:
    """Opens a server that gives these answers, and then 200; yields its url and the requests."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Received)
    server.statuses, server.requests = list(statuses), []  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def verdict(outcome: str = "holds", **more: Any) -> dict[str, Any]:
    row = {
        "kind": "distance",
        "name": "a and b, all neurons: at most 3 bins",
        "outcome": outcome,
        "holds": outcome == "holds",
        "value": 2.5,
        "limit": 3.0,
        "false_alarm_rate": 0.025,
        "error": None,
        "text": f"a and b: {outcome}",
    }
    return row | more


MOVED = Movement(2.5, 1.9, 1.2, 2.6, 0.4, 0.5, 0.001, 0.9)

UNCHANGED = {
    "dataset": "u",
    "images": 7,
    "failed": 0,
    "changed": False,
    "dna": "d",
    "spec": "s",
    "is_new": False,
    "image_changes": None,
    "moved": None,
    "unmeasured": None,
    "alarm": None,
    "read": 0,
    "read_bytes": 0,
    "reused": 7,
    "worker_seconds": 0.0,
}

CHANGED = UNCHANGED | {
    "dataset": "a",
    "images": 1200,
    "failed": 3,
    "changed": True,
    "is_new": False,
    "image_changes": {"added": 21, "removed": 3, "changed": 2, "equal": 1177},
    "moved": {**asdict(MOVED), "from": "a@3"},
    "alarm": True,
    "read": 23,
    "read_bytes": 4_100_000,
    "worker_seconds": 5.5,
}


def outcome(*gate: dict[str, Any], **more: Any) -> dict[str, Any]:
    rows = [CHANGED, UNCHANGED]
    known = {
        "config": "x.yaml",
        "catalogue": "file:///c",
        "error": None,
        "other_error": None,
        "failed": [],
        "pruned": None,
        "undelivered": None,
    }
    found = {**known, "gate": list(gate), "datasets": rows, "unlisted": [], **more}
    cost = {"requests": 1234, "seconds": 60.5}
    return found | {"summary": sum_up(rows, found["failed"], found["unlisted"], cost)}


BROKEN = verdict(
    "broken",
    name="d@-1 and d, all neurons: at most 1 bin",
    sides=["d@-1", "d"],
    reasons=[
        {
            "layer": "stem",
            "neuron": 5,
            "emd": 6.25,
            "share": 0.5,
            "exemplars": {
                "a": [{"uri": "s3://b/old.jpg", "member": ""}],
                "b": [{"uri": "s3://b/x.tar", "member": "new.jpg"}],
            },
        }
    ],
)
FOUR = outcome(
    verdict(),
    BROKEN,
    verdict("not judged", name="c", error="c was not built", value=None, false_alarm_rate=None),
    verdict("no earlier version yet", name="e", holds=None, value=None, false_alarm_rate=None),
    error="c was not built",
    failed=[{"name": "c", "error": "SourceError", "message": "c does not exist"}],
)
HOSTILE = "a|b <script>*_`x`_* \x1b[31m & ]]> \ud800 \ufffe\nsecond"


# JUnit.


def test_junit_has_a_case_for_each_bound_and_each_dataset() -> None:
    root = ElementTree.fromstring(junit_xml(FOUR))
    gate, datasets = root
    found = [(case.get("name"), [child.tag for child in case]) for case in gate]
    assert found == [
        ("a and b, all neurons: at most 3 bins", []),
        ("d@-1 and d, all neurons: at most 1 bin", ["failure"]),
        ("c", ["error"]),
        ("e", ["skipped"]),
    ]
    assert [(case.get("name"), [child.tag for child in case]) for case in datasets] == [
        ("a", []),
        ("u", []),
        ("c", ["error"]),
    ]
    told = gate[1][0]
    assert told.get("message") == "a and b: broken"
    assert "stem[5]: 6.25 bins, 50.0% of the distance\n    in d@-1: s3://b/old.jpg" in str(
        told.text
    )
    for element in (root, gate, datasets):
        for number, tag in (
            *(("tests", "testcase"), ("failures", "failure")),
            *(("errors", "error"), ("skipped", "skipped")),
        ):
            assert element.get(number) == str(len(list(element.iter(tag)))), (element, number)


def test_an_error_of_no_bound_and_no_dataset_is_not_green() -> None:
    for gate in ((), (verdict(),), (verdict("no earlier version yet"),)):
        root = ElementTree.fromstring(junit_xml(outcome(*gate, error="no space left")))
        assert root.get("errors") == "1"
        assert [suite.get("name") for suite in root] == ["gate", "datasets", "refresh"]
    assert len(ElementTree.fromstring(junit_xml(outcome(verdict())))) == 2


def test_another_error_is_told_beside_bounds_and_datasets_that_went_wrong_too() -> None:
    """`error` joins them all, or leaves the bounds out: it cannot tell which of them are told."""
    failed = [{"name": "c", "error": "SourceError", "message": "c does not exist"}]
    for gate, more in (((BROKEN,), {}), ((), {"failed": failed}), ((BROKEN,), {"failed": failed})):
        found = outcome(*gate, error="…", other_error="the matrix is torn", **more)
        suites = ElementTree.fromstring(junit_xml(found))
        assert [child.get("message") for child in suites[-1][0]] == ["the matrix is torn"]
        text = summary_markdown(found).decode()
        assert text.splitlines()[0].endswith(", failed")
        assert text.endswith("\n\nthe matrix is torn\n")
        assert "<li>the matrix is torn</li>" in render_night(found).decode()


def test_no_text_makes_the_xml_invalid() -> None:
    made = junit_xml(
        outcome(
            verdict("broken", name=HOSTILE, text=HOSTILE, unexplained=HOSTILE),
            verdict("not judged", error=HOSTILE),
            failed=[{"name": HOSTILE, "error": "X", "message": HOSTILE}],
            error=HOSTILE,
        )
    )
    root = ElementTree.fromstring(made)
    assert root[0][0].get("name") == root[1][2].get("name")
    assert str(root[0][0].get("name")).startswith("a|b <script>*_`x`_* \\x1b[31m & ]]>")


# Markdown.


def test_the_summary_has_tables_and_the_reasons() -> None:
    text = summary_markdown(FOUR).decode()
    assert text.startswith("## Refresh: 1 broken, 1 not judged, 1 not built\n\n3 datasets: ")
    assert "\n| bound | measured |" in text
    assert "| a and b, all neurons: at most 3 bins | 2.5 bins | ✅ holds | at most 2.5% |" in text
    sure = summary_markdown(outcome(verdict(emd_corrected=2.71, low=2.5, high=3.1))).decode()
    assert "| 2.71 \\[2.5, 3.1\\] bins | ✅ holds | at most 2.5% |" in sure
    larger = outcome(verdict(emd_corrected=3.2, low=2.5, high=3.9))
    unsure = "holds, as it is not surely more"
    assert f"| 3.2 \\[2.5, 3.9\\] bins | ✅ {unsure} | at most 2.5% |" in (
        summary_markdown(larger).decode()
    )
    assert f">{unsure}<" in render_night(larger).decode()
    assert "| 1 bin | ✅ holds |" in summary_markdown(outcome(verdict(value=1.0))).decode()
    assert "| e | unknown | no earlier version yet | unknown |" in text
    assert "\n- stem\\[5\\]: 6.25 bins, 50.0% of the distance\n- in d@-1: s3://b/old.jpg\n" in text
    moved = "1.9 \\[1.2, 2.6\\], an alarm"
    assert f"\n| a | 1,200 | 3 | +21 -3 \\~2 | {moved} |\n" in text
    assert "\n| u | 7 | 0 | no |  |\n" in text
    assert "\n- **c** was not built: c does not exist\n" in text
    counted = verdict(kind="images", value=1200, limit=9, false_alarm_rate=0.0)
    assert "| 1,200 | ✅ holds | none |" in summary_markdown(outcome(counted)).decode()
    assert summary_markdown(outcome()).decode().startswith("## Refresh: all is well\n")
    assert "no space left" in summary_markdown(outcome(error="no space left")).decode()
    untold = outcome(error="no space left", undelivered="the webhook does not answer")
    text = summary_markdown(untold).decode()
    assert text.startswith("## Refresh: failed, not delivered\n")
    assert text.endswith("\nno space left\n")


def test_a_message_of_several_lines_is_told_in_one_where_there_is_room_for_no_more() -> None:
    message = "2 of 9 images could not be read. First:\n  file:///a.jpg: it is torn"
    told = outcome(failed=[{"name": "a", "error": "GateError", "message": message}])
    for text in (summary_markdown(told).decode(), render_night(told).decode()):
        assert "First: file:///a.jpg" in text
        assert "\\n" not in text
    (error,) = ElementTree.fromstring(junit_xml(told)).iter("error")
    assert error.get("message") == message.replace("\n  ", " ")
    assert error.text == message


def test_a_long_summary_lists_what_has_changed_alone() -> None:
    rows = [CHANGED, *(UNCHANGED | {"dataset": f"u{at}"} for at in range(100))]
    text = summary_markdown(outcome() | {"datasets": rows}).decode()
    assert "| a |" in text
    assert "| u7 |" not in text


def test_a_sentence_says_what_the_night_did_and_cost() -> None:
    told = night_sentence(outcome(unlisted=["old"]))
    assert told == (
        "2 datasets: 1 unchanged, 1 refreshed, 1 not in the file; images +21 -3 ~2; "
        "1 drift alarm: a; 23 images read (4.1 MB), 1,234 requests, 60.5 s, 5.5 s of workers"
    )
    pruned = night_sentence(outcome(unlisted=["old"], pruned=7))
    assert pruned == told.replace("1 not in the file", "1 taken out")
    several = outcome()
    several["summary"] |= {"alarms": list("abcdef"), "untested": 2}
    assert "; 6 drift alarms: a, b, c and 3 more (2 versions not tested); " in (
        night_sentence(several)
    )
    several["summary"] |= {"alarms": [], "untested": 0}
    assert "; 0 drift alarms; " in night_sentence(several)
    rows = [UNCHANGED]
    still = sum_up(rows, [], [], {"requests": 10, "seconds": 1.5})
    quiet = outcome(datasets=rows) | {"summary": still}
    assert night_sentence(quiet) == (
        "1 dataset: 1 unchanged; 0 images read, 10 requests, 1.5 s, 0.0 s of workers"
    )


def test_the_summary_in_json_keeps_its_form() -> None:
    assert FOUR["summary"] == {
        "datasets": {"asked": 3, "unchanged": 1, "refreshed": 1, "failed": 1, "dropped": 0},
        "images": {
            "counted": 1207,
            "failed": 3,
            "added": 21,
            "removed": 3,
            "changed": 2,
            "datasets_of_unknown_changes": 0,
        },
        "untested": 0,
        "moved": 1,
        "alarms": ["a"],
        "cost": {
            "images_read": 23,
            "bytes_read": 4_100_000,
            "images_reused": 14,
            "requests": 1234,
            "seconds": 60.5,
            "worker_seconds": 5.5,
        },
    }
    json.dumps(FOUR, allow_nan=False)


# The page.


def test_the_page_says_first_what_needs_a_reader() -> None:
    page = render_night(outcome(*FOUR["gate"], failed=FOUR["failed"], unlisted=["old"])).decode()
    assert "<title>Refresh: 1 broken, 1 not judged, 1 not built</title>" in page
    places = [
        page.index(text)
        for text in (
            "3 datasets: 1 unchanged, 1 refreshed, 1 failed, 1 not in the file",
            "a has drifted: 1.9 [1.2, 2.6], an alarm",
            "c does not exist",
            "d@-1 and d, all neurons: at most 1 bin",
            "stem[5]: 6.25 bins, 50.0% of the distance",
            "<td>+21 -3 ~2</td>",
            "<li>old</li>",
            "Unchanged: 1",
            "<li>u</li>",
        )
    ]
    assert places == sorted(places)
    assert ">In the catalogue, and not in the file<" in page
    pruned = render_night(outcome(unlisted=["old"], pruned=7)).decode()
    assert ">Taken out, as the file does not name them<" in pruned


def test_no_text_breaks_the_page() -> None:
    bad = outcome(
        verdict("broken", name=HOSTILE, text=HOSTILE, unexplained=HOSTILE),
        failed=[{"name": HOSTILE, "error": "X", "message": HOSTILE}],
        unlisted=[HOSTILE],
        error=HOSTILE,
    )
    page = render_night(bad | {"datasets": [CHANGED | {"dataset": HOSTILE}]}).decode()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_no_text_breaks_the_summary() -> None:
    made = summary_markdown(outcome(verdict(name=HOSTILE), error=None)).decode()
    (line,) = [line for line in made.splitlines() if "script" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 5
    assert not re.findall(r"(?<!\\)[<>*_`]", line)


# Metrics.


GROUP = ("catalogue", "config")


def parsed(text: str) -> Metrics:
    """Reads metrics by the library's own parser, by name and first label of their own."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = [value for name, value in sample.labels.items() if name not in GROUP]
            found[sample.name, next(iter(own), "")] = sample.value
    return found


def groups(text: str) -> set[tuple[str | None, ...]]:
    """Returns the labels of the group that series have."""
    return {
        tuple(map(sample.labels.get, GROUP))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_have_every_number_that_is_known() -> None:
    found = parsed(metrics_text(FOUR).decode())
    assert found["vdna_refresh_success", ""] == 0
    assert found["vdna_refresh_finished_timestamp_seconds", ""] > 1e9
    names = [name for name, _ in found]
    for state in ("holds", "broken", "no earlier version yet", "not judged"):
        assert found["vdna_gate_bounds", state] == 1
    first, second = FOUR["gate"][0]["name"], BROKEN["name"]
    assert (found["vdna_gate_bound_holds", first], found["vdna_gate_bound_holds", second]) == (1, 0)
    assert names.count("vdna_gate_bound_holds") == names.count("vdna_gate_bound_value") == 2
    assert found["vdna_gate_bound_value", first] == 2.5
    assert found["vdna_gate_bound_limit", "e"] == 3
    assert ("vdna_gate_bound_distance", first) not in found
    sure = verdict(emd_corrected=2.71, low=2.5, high=3.1)
    known = parsed(metrics_text(outcome(sure)).decode())
    assert known["vdna_gate_bound_value", first] == 2.5
    assert known["vdna_gate_bound_distance", first] == 2.71
    plain = verdict(emd_corrected=2.71, low=None, high=None)
    assert "vdna_gate_bound_distance{" not in metrics_text(outcome(plain)).decode()
    assert found["vdna_dataset_images", "a"] == 1200
    assert found["vdna_dataset_failed_images", "a"] == 3
    assert (found["vdna_dataset_built", "a"], found["vdna_dataset_built", "c"]) == (1, 0)
    assert found["vdna_dataset_moved_bins", "a"] == 1.9
    assert found["vdna_dataset_moved_low_bins", "a"] == 1.2
    assert found["vdna_dataset_moved_high_bins", "a"] == 2.6
    assert found["vdna_dataset_drift_alarm", "a"] == 1
    assert ("vdna_dataset_moved_bins", "u") not in found
    assert ("vdna_dataset_drift_alarm", "u") not in found
    assert found["vdna_refresh_datasets", "unchanged"] == 1
    assert found["vdna_refresh_images", "added"] == 21
    assert found["vdna_refresh_requests", ""] == 1234
    assert found["vdna_refresh_worker_seconds", ""] == 5.5
    assert parsed(metrics_text(outcome()).decode())["vdna_refresh_success", ""] == 1
    untold = outcome(undelivered="the webhook does not answer")
    assert parsed(metrics_text(untold).decode())["vdna_refresh_success", ""] == 0
    assert summary_markdown(untold).startswith(b"## Refresh: not delivered")


def test_no_name_breaks_the_metrics() -> None:
    name = 'a "quoted" \\ name\nof two lines'
    found = parsed(metrics_text(outcome(verdict(name=name))).decode())
    assert found["vdna_gate_bound_value", name] == 2.5


# The command.


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "3")


def test_the_command_writes_all_outputs_and_pushes_until_it_is_heard(tmp_path: Path) -> None:
    file = parted(tmp_path, {"day": 100}, "{dataset: day, min_images: 25}")
    outputs = [tmp_path / name for name in ("gate.xml", "gate.md", "gate.prom")]
    words = ("--junit", outputs[0], "--summary", outputs[1], "--metrics", outputs[2])
    with listening(503, 503) as (url, requests):
        told = json.loads(refresh(file, *words, "--pushgateway", url, "--json", exits=3).stdout)
    assert told["undelivered"] == []
    failures = ElementTree.parse(outputs[0]).getroot().findall(".//failure")
    assert [of.get("message") for of in failures] == ["day, images: 24, at least 25: fewer"]
    assert outputs[1].read_text().startswith("## Refresh: 1 broken\n")
    written = parsed(outputs[2].read_text())
    assert written["vdna_gate_bound_value", "day, images: at least 25"] == 24
    assert len(requests) == 3
    method, path, _, body = requests[-1]
    assert (method, path.startswith("/metrics/job/vdna_refresh/catalogue@base64/")) == ("PUT", True)
    assert parsed(body.decode()).keys() == written.keys()
    # The gateway adds the labels of the group by itself; the file has them in each series.
    assert groups(body.decode()) == {(None, None)}
    assert groups(outputs[2].read_text()) == {(Catalogue(str(tmp_path / "c")).root, str(file))}


def test_what_cannot_be_handed_over_is_told_and_exits_4(tmp_path: Path) -> None:
    held = parted(tmp_path, {"day": 100}, "{dataset: day, min_images: 1}")
    words = ("--junit", tmp_path / "datasets.yaml" / "x.xml", "--summary", tmp_path / "x.md")
    prom = tmp_path / "x.prom"
    with listening() as (url, requests):
        refresh(held, *words, "--metrics", prom, "--pushgateway", url, exits=4)
    for written in (prom.read_bytes(), requests[0][3]):  # they come last, and know what failed
        assert parsed(written.decode())["vdna_refresh_success", ""] == 0
    with listening(*[500] * 3, 404) as (url, requests):
        done = refresh(held, *words, "--pushgateway", url, exits=4)
        assert "gate: day, images: 24, at least 1: holds" in done.stdout
        assert done.stderr.count("error: the refresh is done, but was not told: ") == 2
        assert "no answer after 3 tries" in done.stderr
        assert "## Refresh: all is well" in (tmp_path / "x.md").read_text()  # not kept from it
        told = json.loads(refresh(held, "--json", "--pushgateway", url, exits=4).stdout)
    assert len(requests) == 4  # a refusal is not tried again
    assert "does not exist" in told["undelivered"][0]
    assert told["error"] is None
    broken = parted(tmp_path, {"day": 100}, "{dataset: day, min_images: 99}")
    done = refresh(broken, "--junit", tmp_path / "datasets.yaml" / "x.xml", exits=3)
    assert "says no" in done.stderr  # the gate's exit code comes first
    assert "was not told: " in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_what_happens_after_the_gate_takes_away_neither_its_error_nor_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    broken = parted(tmp_path, {"day": 100, "night": 100}, "{dataset: day, min_images: 99}")

    def taken_out_meanwhile(_: object) -> bytes:
        remove(Catalogue(str(tmp_path / "c")), ["night"])
        raise ValueError("a page of no one's making")

    monkeypatch.setattr("pipeline.reporting.junit_xml", taken_out_meanwhile)
    options = ("--json", "--log-format", "json") if as_json else ()
    done = refresh(broken, "--junit", tmp_path / "x.xml", *options, exits=3)
    told = done.stdout
    if as_json:
        told = "\n".join(json.loads(line)["message"] for line in done.stderr.splitlines())
    assert "note: the notes on these distances are not known: " in told
    assert "says no" in done.stderr
    assert "was not told: unexpected ValueError: a page of no one's making" in done.stderr


def test_an_error_names_as_a_key_of_the_file_only_what_the_file_takes(tmp_path: Path) -> None:
    file = parted(tmp_path, {"day": 100}, "{dataset: day, min_images: 1}")
    words = ("refresh", "--config", file, "--workers", 1, "-c", "memory://nowhere")
    assert "work in this process (--workers 0), or give" in vdna(*words, exits=2).stderr
    (tmp_path / "day" / "rain" / "bad.jpg").write_bytes(b"none")
    said = refresh(file, exits=3).stderr
    assert f"with a higher `max_failures` in {file}" in said


@pytest.mark.parametrize("url", ["ftp://host", "host:9091", "http://u:p@host", "http://host?x=y"])
def test_a_gateway_that_is_none_is_refused_before_a_build(tmp_path: Path, url: str) -> None:
    file = parted(tmp_path, {"day": 100})
    said = refresh(file, "--pushgateway", url, exits=2)
    refused(said, "host")
    assert "u:p" not in said.stderr
    assert not (tmp_path / "c").exists()
