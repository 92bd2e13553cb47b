"""Tests the metrics of a job, and the rules and the dashboard that read them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import create_server
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command
from typer.testing import CliRunner

from jobs.app import app
from pipeline import api
from pipeline.building import Request
from pipeline.catalogue import Catalogue
from pipeline.engine import RayMetrics
from pipeline.errors import UsageError
from pipeline.events import (
    ClusterJoined,
    Event,
    Finished,
    Held,
    Listener,
    PoolChanged,
    PoolFilled,
    Retried,
    Said,
    ShardWork,
    Started,
    StepDone,
    StepFailed,
    TakenOver,
    Warned,
    fanned_out,
    topic_here,
)
from pipeline.reporting import job_metrics, metrics_text, push_metrics, served_metrics
from pipeline.reporting.job_metrics import JOB_METRICS, JobMetrics, PrometheusMetrics
from pipeline.sources import Entry, Members
from pipeline.storage import count_requests
from tests.refreshing.test_outputs import listening, outcome
from tests.support.builders import write_photos
from tests.support.ray_commands import Small, small

__all__ = ["small"]  # a fixture

MONITORING = Path(__file__).parents[2] / "infra" / "monitoring"

DOCS = Path(__file__).parents[2] / "docs"

Samples = dict[str, float]


def samples_of(text: str) -> Samples:
    """Returns the samples that are not 0, written as Prometheus does."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            if sample.value and not sample.name.endswith("_created"):
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


class Heard:
    """A listener with a registry of its own, and a clock that stands still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job_metrics, "time", lambda: 1700000000.0)
        self._registry = CollectorRegistry()
        self._listener = JobMetrics(PrometheusMetrics(self._registry))

    def tell(self, *events: Event) -> Samples:
        """Tells events; returns all samples, but for those of shards' times."""
        for event in events:
            self._listener(event)
        found = samples_of(generate_latest(self._registry).decode())
        return {name: value for name, value in found.items() if "_shard_seconds_" not in name}


WORK = ShardWork(
    7, {"corrupt": 2, "empty": 1}, 5, 8000, {"fetch": 0.5, "decode": 2.0, "network": 1}
)

DONE = StepDone(15, 3, 4.0, "shard 0", 0, "cats", 0, WORK)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


def test_a_shard_counts_once_however_often_it_is_tried(heard: Heard) -> None:
    count_requests(9)  # before the listener hears of anything, but of the same job
    found = heard.tell(
        Started(30, 2, present=8),
        StepFailed("shard 0", "TransientError: no answer", dataset="cats", shard=0, seconds=1.5),
        Retried(1, 2),
        DONE,
    )
    assert found == {
        "vdna_steps_left{step=shards}": 1,
        "vdna_units_left{unit=images}": 15,
        "vdna_progress_timestamp_seconds{step=shards}": 1700000000,
        "vdna_shard_errors_total{dataset=cats}": 1,
        "vdna_shard_retries_total": 1,
        "vdna_shards_total{dataset=cats}": 1,
        "vdna_images_total{dataset=cats}": 7,
        "vdna_images_reused_total{dataset=cats}": 5,
        "vdna_image_bytes_total{dataset=cats}": 8000,
        "vdna_image_failures_total{dataset=cats,reason=corrupt}": 2,
        "vdna_image_failures_total{dataset=cats,reason=empty}": 1,
        "vdna_worker_seconds_total{dataset=cats}": 5.5,
        "vdna_stage_seconds_total{dataset=cats,stage=fetch}": 0.5,
        "vdna_stage_seconds_total{dataset=cats,stage=decode}": 2,
        "vdna_stage_seconds_total{dataset=cats,stage=network}": 1,
        "vdna_storage_requests_total": 9,
    }


def test_what_others_store_is_no_work_of_this_job(heard: Heard) -> None:
    found = heard.tell(
        Started(30, 2),
        Held(2),
        TakenOver(1),
        StepDone(15, name="shard 1", dataset="cats", shard=1),
        StepDone(1),  # of a stage without shards
        Held(1),
        Warned("a node was lost"),
    )
    assert found == {
        "vdna_units_left{unit=images}": 14,
        "vdna_progress_timestamp_seconds{step=shards}": 1700000000,
        "vdna_shards_of_others_total{dataset=cats}": 1,
        "vdna_shards_taken_over_total": 1,
        "vdna_shards_held": 1,
        "vdna_warnings_total": 1,
    }


def test_a_pool_that_waits_for_a_node_says_so_and_a_stage_that_ends_leaves_nothing(
    heard: Heard,
) -> None:
    pool = {"vdna_workers", "vdna_workers_most", "vdna_capacity_waiting"}

    def told(*events: Event) -> Samples:
        return {name: value for name, value in heard.tell(*events).items() if name in pool}

    assert told(Started(30, 2), PoolFilled(8)) == {"vdna_workers": 8, "vdna_workers_most": 8}
    waits = {"vdna_workers_most": 8, "vdna_capacity_waiting": 1}
    assert told(PoolChanged(0, 8, "1 CPU", 3600)) == waits
    assert told(PoolChanged(3, 8, "1 CPU", 3600)) == {"vdna_workers": 3, "vdna_workers_most": 8}
    told(PoolChanged(0, 8, "1 CPU", 3600))
    found = heard.tell(Held(4), Finished(ok=False))
    assert found == {"vdna_progress_timestamp_seconds{step=shards}": 1700000000}


def test_a_client_that_fails_ends_no_job_and_is_told_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []

    class Broken:
        def set(self, name: str, value: float, **labels: str) -> None:
            told.append(name)

        def observe(self, name: str, value: float, **labels: str) -> None:
            told.append(name)

        def add(self, name: str, more: float, **labels: str) -> None:
            told.append(name)
            raise OSError("the agent at http://me:hunter2@host is gone")

    listener = JobMetrics(Broken())
    listener(Started(30, 2))
    listener(ClusterJoined())  # which would find another client
    assert told.pop() == "vdna_storage_requests_total"
    told.clear()
    for event in (DONE, Warned("a node was lost"), Finished()):
        listener(event)
    assert told == []
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "the metrics of this job end here, and the job goes on: "
        "OSError: the agent at http://…@host is gone"
    )


def test_a_build_in_this_process_is_served_while_it_runs(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By HTTP, with what its worker measured: two of its images cannot be read."""
    photos = tmp_path / "photos"
    write_photos(photos, 6)
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "broken.jpg").write_bytes(next(photos.glob("*.jpg")).read_bytes()[:200])
    words = iter(small.options)
    options: dict[str, Any] = {word[2:]: next(words) for word in words} | {"bins": 20}
    request = Request("cats", str(photos), max_failures=9, shard_images=4, **options)
    with closing(create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    refused = pytest.raises(UsageError, match=rf"cannot be served at 127.0.0.1:{port}: .*another")
    with served_metrics(str(port)), refused, served_metrics(str(port)):
        pass
    fetch, topics = Members.fetch, set()

    def noting(self: Members, entry: Entry) -> Any:
        topics.add(tuple(topic_here().items()))
        return fetch(self, entry)

    monkeypatch.setattr(Members, "fetch", noting)
    scraped: list[Samples] = []

    def scrape(event: Event) -> None:
        if isinstance(event, StepDone) and event.shard is not None:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                scraped.append(samples_of(answer.read().decode()))

    with served_metrics(str(port)) as listener:
        result = api.build(
            Catalogue(str(tmp_path / "c")), request, progress=fanned_out(listener, scrape)
        )
    assert (result.version.images, result.version.failed) == (6, 2)
    assert topics == {(("dataset", "cats"), ("shard", at)) for at in range(len(scraped))}
    first, last = scraped[0], scraped[-1]
    assert first.get("vdna_images_total{dataset=cats}", 0) < 6
    assert first["vdna_steps_left{step=shards}"] == len(scraped) - 1
    assert last["vdna_images_total{dataset=cats}"] == 6
    assert last["vdna_shards_total{dataset=cats}"] == len(scraped) > 1
    assert last["vdna_shard_seconds_count{dataset=cats}"] == len(scraped)
    assert last["vdna_image_failures_total{dataset=cats,reason=empty}"] == 1
    assert last["vdna_image_failures_total{dataset=cats,reason=truncated}"] == 1
    assert last["vdna_image_bytes_total{dataset=cats}"] == sum(
        path.stat().st_size for path in photos.iterdir()
    )
    for name in ("fetch", "decode", "network"):
        assert last[f"vdna_stage_seconds_total{{dataset=cats,stage={name}}}"] > 0
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


@pytest.mark.parametrize("place", ["0", "65536", "http", "127.0.0.1", "host:", "-1", ""])
def test_a_place_that_is_none_is_refused(place: str) -> None:
    refused = pytest.raises(UsageError, match=f"metrics_port is '{place}'; give a port")
    with refused, served_metrics(place):
        pass


def test_without_an_address_only_this_machine_can_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str]] = []

    def refuse(port: int, address: str, _: object) -> None:
        asked.append((port, address))
        raise OSError("in a test")

    monkeypatch.setattr("prometheus_client.start_http_server", refuse)
    for place in ("9464", "0.0.0.0:9464", "[::1]:9464"):
        with pytest.raises(UsageError, match="choose another port"), served_metrics(place):
            pass
    assert asked == [(9464, "127.0.0.1"), (9464, "0.0.0.0"), (9464, "::1")]


def test_metrics_go_to_ray_once_a_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own classes check each name and label; what they would send is noted instead."""
    sent: list[tuple[str, float, dict[str, str]]] = []

    class Sink:
        def __init__(self, name: str, *_: object) -> None:
            self._name = name

        def record(self, value: float, tags: dict[str, str]) -> None:
            sent.append((self._name, value, tags))

    for name in ("CythonCount", "CythonGauge", "CythonHistogram"):
        monkeypatch.setattr(f"ray.util.metrics.{name}", Sink)
    monkeypatch.setattr(job_metrics, "time", lambda: 1700000000.0)
    with served_metrics(None) as listener:
        listener(Started(30, 2))
        assert sent == []
        listener(ClusterJoined())  # the engine is opened when a stage has work for it
        assert ("vdna_steps_left", 2, {"step": "shards"}) in sent
        for event in (DONE, Retried(1, 2), Finished()):
            listener(event)
    assert ("vdna_images_total", 7, {"dataset": "cats"}) in sent
    failed = [value for name, value, _ in sent if name == "vdna_image_failures_total"]
    assert failed == [2, 1]
    assert ("vdna_shard_seconds", 4.0, {"dataset": "cats"}) in sent
    assert sent.count(("vdna_shard_retries_total", 1, {})) == 1
    assert sent[-1][1] >= 0
    known = {metric.name for metric in JOB_METRICS}
    assert {name for name, _, _ in sent} <= known
    assert RayMetrics(JOB_METRICS)._metrics.keys() == known


def test_commands_that_may_run_on_ray_have_a_port_and_tell_it_their_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group: Any = get_command(app)
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }
    having = {name for name, known in options.items() if "--metrics-port" in known}
    assert {"build", "calibrate", "compare", "rank", "refresh", "verify"} <= having
    both = {name for name, of in options.items() if {"--log-format", "--ray-address"} <= of}
    assert having == both - {"submit"}
    run = CliRunner().invoke(app, ["gc", "-c", str(tmp_path), "--metrics-port", "x"])
    assert (run.exit_code, "metrics_port is 'x'; give a port" in run.output) == (2, True)
    heard: list[Event] = []

    @contextmanager
    def noted(place: str | None) -> Iterator[Listener]:
        assert place == "0.0.0.0:9464"
        yield heard.append

    monkeypatch.setattr("pipeline.reporting.served_metrics", noted)
    monkeypatch.setenv("VDNA_METRICS_PORT", "0.0.0.0:9464")
    run = CliRunner().invoke(
        app, ["build", "a", str(tmp_path / "none"), "-c", str(tmp_path), "--workers", "0"]
    )
    assert run.exit_code == 1
    assert [event.message for event in heard if isinstance(event, Said)] == [
        f"a: listing {tmp_path / 'none'}"
    ]


def test_commands_that_measure_nothing_import_no_client_of_metrics_or_traces() -> None:
    code = (
        "import sys, jobs.ls, jobs.show, jobs.build, pipeline.reporting.job_metrics; "
        "import pipeline.reporting.job_traces; "
        "print(sorted({'prometheus_client', 'ray', 'opentelemetry'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# The rules, the dashboard and the pages


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names of all samples that the code exports, of jobs and of refreshes."""
    registry = CollectorRegistry()
    PrometheusMetrics(registry)
    names = set()
    for family in registry.collect():
        ending = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        names |= {family.name + end for end in ending.get(family.type, [""])}
    assert {metric.name for metric in JOB_METRICS} - names == {"vdna_shard_seconds"}
    text = metrics_text(outcome()).decode()
    return names | {family.name for family in text_string_to_metric_families(text)}


def expressions() -> Iterator[str]:
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    board = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["query"]["query"] for each in board["templating"]["list"] if "sort" in each)


def test_rules_and_dashboard_name_metrics_that_are_exported(exported: set[str]) -> None:
    found = {name for text in expressions() for name in re.findall(r"vdna_\w+", text)}
    assert found - exported == set()
    jobs = {name for name in exported if not re.match("vdna_(gate|dataset|refresh)_", name)}
    assert jobs - found == {"vdna_shard_seconds_sum", "vdna_shard_seconds_count"}


def test_the_page_has_each_metric_of_a_job() -> None:
    rows = re.findall(r"^\| `(vdna_\w+)` \| (.*?) \|", (DOCS / "monitoring.md").read_text(), re.M)
    told = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert told == {metric.name: set(metric.labels) for metric in JOB_METRICS}


def test_each_alert_has_its_entry_in_the_runbook() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    page = (DOCS / "runbook.md").read_text()
    assert re.findall("^## (.*)$", page, re.M) == [rule["alert"] for rule in rules]
    for rule, entry in zip(rules, page.split("\n## ")[1:], strict=True):
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        for heading in ("What it means", "What tells more", "What mends it"):
            assert f"**{heading}.**" in entry, rule["alert"]
        told, mends = entry.split("**What tells more.**")[1].split("**What mends it.**")
        assert re.search("^    vdna ", told, re.M), rule["alert"]
        assert re.search("^    vdna ", mends, re.M), rule["alert"]


def test_each_command_of_the_pages_is_one_that_the_command_line_takes() -> None:
    group: Any = get_command(app)
    pages = [(DOCS / name).read_text() for name in ("runbook.md", "monitoring.md")]
    commands = re.findall(r"^    (vdna .*)$", "\n".join(pages), re.M)
    for command in commands:
        _, name, *words = shlex.split(command)
        group.commands[name].make_context(name, words)
    assert len(commands) > 10


def test_the_tests_of_the_alerts_have_the_labels_that_a_refresh_writes() -> None:
    """Prometheus adds `job` and `instance`; a push gateway has the labels of the file, too."""
    written = text_string_to_metric_families(metrics_text(outcome()).decode())
    labels = {sample.name: set(sample.labels) for of in written for sample in of.samples}
    tests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    series = [one["series"] for test in tests for one in test["input_series"]]
    found = {
        (name, frozenset(re.findall(r"(\w+)=", own)) - {"job", "instance"})
        for name, own in (one.split("{", 1) for one in series)
        if name in labels
    }
    names = ("vdna_refresh_success", "vdna_refresh_finished_timestamp_seconds")
    assert found == {(name, frozenset(labels[name])) for name in names}


def test_the_runbook_deletes_the_group_that_a_refresh_pushes() -> None:
    page = (DOCS / "runbook.md").read_text()
    (encodes,) = re.findall(r"^    (b64\(\) .*)$", page, re.M)
    (url,) = re.findall(r"^    curl -X DELETE (.*)$", page, re.M)
    said = subprocess.run(
        ["bash", "-c", f"{encodes}; printf %s {url}"], capture_output=True, text=True, check=True
    )
    group = {"catalogue": "s3://bucket/dnas", "config": "/etc/vdna/datasets.yaml"}
    with listening() as (gateway, requests):
        push_metrics(outcome() | group, gateway)
    ((_, path, _, _),) = requests
    assert said.stdout == f"http://pushgateway:9091{path}"


def test_promtool_finds_that_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        reason = "promtool is not installed (Debian's package prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this: {reason}")
        pytest.skip(reason)

    def ran(*words: str) -> str:
        done = subprocess.run([promtool, *words], capture_output=True, text=True)
        return f"{done.returncode} {done.stdout} {done.stderr}"

    board = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [
        re.sub(r"\$__range", "1h", re.sub(r"\$(\w+_price|dataset)", "1", target["expr"]))
        for panel in board["panels"]
        for target in panel["targets"]
    ]
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]
    groups = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump(groups))
    files = str(MONITORING / "alerts.yaml"), str(tmp_path / "queries.yaml")
    assert ran("check", "rules", *files).startswith("0 ")
    assert ran("test", "rules", str(MONITORING / "alerts_test.yaml")).startswith("0 ")
