"""Tests the traces of a job: what is sent, where to, and what happens if it cannot be."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from time import monotonic
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typer import Exit
from typer.testing import CliRunner, Result

import jobs
import pipeline
from jobs.app import app
from pipeline.errors import GateError, UsageError
from pipeline.events import (
    DatasetBegun,
    DatasetEnded,
    Event,
    Finished,
    Held,
    PhaseEnded,
    PoolChanged,
    PoolFilled,
    Retried,
    ShardWork,
    Started,
    StepDone,
    StepFailed,
    TakenOver,
    Warned,
)
from pipeline.reporting import job_spans, traced_job
from pipeline.reporting.job_spans import JobSpans, without_places
from tests.support.builders import write_photos
from tests.support.ray_commands import Small, small

__all__ = ["small"]  # a fixture

DOCS = Path(__file__).parents[2] / "docs"

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_") or name in {"TRACEPARENT", "TRACESTATE"}:
            monkeypatch.delenv(name)


class Collector:
    """A server that takes OTLP by HTTP, as OpenTelemetry's collector does."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []
        taken = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                message = ExportTraceServiceRequest.FromString(body)
                taken.append((self.path, dict(self.headers), message))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for _, _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resource(self) -> dict[str, Any]:
        [found, *_] = [each for _, _, r in self.requests for each in r.resource_spans]
        return attributes(found.resource)


def attributes(of: Any) -> dict[str, Any]:
    """Returns what a message of OTLP has as attributes."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


def by_name(spans: Sequence[Any]) -> dict[str, list[Any]]:
    found = defaultdict(list)
    for span in spans:
        found[span.name].append(span)
    return dict(found)


def vdna(*words: str, **env: str) -> Result:
    return CliRunner().invoke(app, list(words), env=env)


def build(small: Small, photos: Path, *words: str, **env: str) -> Result:
    """Builds a dataset in this process, by the command."""
    place = ["-c", str(photos.parent / "c"), "--workers", "0"]
    command = ["build", "cats/wild", str(photos), *place, "--shard-images", "4", *small.options]
    return vdna(*command, *words, **env)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images that can be read, and two that cannot."""
    folder = tmp_path_factory.mktemp("tracing") / "photos"
    write_photos(folder, 6)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "broken.jpg").write_bytes(next(folder.glob("photo-*.jpg")).read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def built(small: Small, photos: Path) -> Collector:
    """What a collector gets of a build that is refused, and of the same with a higher limit."""
    with Collector() as refused, Collector() as collector:
        run = build(small, photos, **{ENDPOINT: refused.url})
        assert run.exit_code == 3, run.output
        assert "broken.jpg" in run.stderr
        parent = {"TRACEPARENT": f"00-{TRACE}-{CALLER}-01", "OTEL_SERVICE_NAME": "night"}
        headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=hidden"}
        asked = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/traces", **headers}
        run = build(small, photos, "--max-failures", "2", **asked, **parent)
        assert run.exit_code == 0, run.output
    collector.refused = refused  # type: ignore[attr-defined]
    return collector


def test_a_failed_dataset_has_the_status_of_an_error_and_names_no_image(built: Any) -> None:
    """It was refused after its shards were counted, so the trace has them, too."""
    spans = by_name(built.refused.spans)
    assert built.refused.requests[0][0] == "/v1/traces"
    assert built.refused.resource["service.name"] == "vdna"
    [dataset], [root] = spans["dataset"], spans["vdna build"]
    told = attributes(dataset)
    counted = {
        "vdna.images_counted": 6,
        "vdna.image_failures": 2,
        "vdna.shards": len(spans["shard"]),
    }
    assert told == {
        "vdna.dataset": "cats/wild",
        "vdna.outcome": "failed",
        "error.type": "GateError",
        **counted,
    }
    for span in (dataset, root):
        assert span.status.code == 2
        assert span.status.message.startswith("cats/wild: 2 of 8 images could not be read; the ")
        assert attributes(span)["error.type"] == "GateError"
    assert set(spans) == {"vdna build", "dataset", "planning", "stage shards", "shard", "merging"}
    assert not re.search(rb"broken|empty\.jpg|photo-", message_bytes(built.refused))


def message_bytes(collector: Collector) -> bytes:
    return b"".join(request.SerializeToString() for _, _, request in collector.requests)


def test_a_build_is_told_as_a_part_of_the_trace_of_its_caller(built: Any) -> None:
    spans = by_name(built.spans)
    [root], [dataset] = spans["vdna build"], spans["dataset"]
    assert {span.trace_id.hex() for span in built.spans} == {TRACE}
    assert root.parent_span_id.hex() == CALLER
    assert (root.status.code, attributes(root)) == (0, {"vdna.command": "build"})
    path, headers, _ = built.requests[0]
    assert (path, headers["x-key"]) == ("/traces", "hidden")
    assert built.resource["service.name"] == "night"
    assert dataset.parent_span_id == root.span_id
    assert attributes(dataset) == {
        "vdna.dataset": "cats/wild",
        "vdna.outcome": "committed",
        "vdna.images": 6,
        "vdna.failures": 2,
        "vdna.images_counted": 0,
        "vdna.image_failures": 0,
        "vdna.shards": 0,
    }  # as the shards were kept
    for name in ("planning", "merging", "committing"):
        [phase] = spans[name]
        assert phase.parent_span_id == dataset.span_id
        inside = [dataset.start_time_unix_nano, phase.start_time_unix_nano]
        inside += [phase.end_time_unix_nano, dataset.end_time_unix_nano]
        assert inside == sorted(inside), name


def test_each_shard_of_a_build_is_a_span_with_what_its_worker_measured(built: Any) -> None:
    spans = by_name(built.refused.spans)
    [dataset], [stage], shards = spans["dataset"], spans["stage shards"], spans["shard"]
    told = [attributes(span) for span in shards]
    assert len(told) > 1
    assert sorted(each["vdna.shard"] for each in told) == list(range(len(told)))
    assert sum(each["vdna.images_counted"] for each in told) == 6
    assert sum(each["vdna.image_failures"] for each in told) == 2
    assert {each["vdna.attempt"] for each in told} == {1}
    for name in ("fetch", "decode", "network"):
        assert sum(each.get(f"vdna.{name}_seconds", 0) for each in told) > 0
    for span in shards:
        assert span.parent_span_id == dataset.span_id
        assert stage.start_time_unix_nano < span.start_time_unix_nano < span.end_time_unix_nano
        assert span.end_time_unix_nano <= stage.end_time_unix_nano
    assert attributes(stage) == {
        "vdna.unit": "images",
        "vdna.units": 8,
        "vdna.steps": len(told),
        "vdna.steps_present": 0,
    }


def test_a_command_that_compares_has_a_trace_even_if_it_is_refused(photos: Path) -> None:
    with Collector() as collector:
        run = vdna("compare", "-c", str(photos.parent / "none"), **{ENDPOINT: collector.url})
    assert run.exit_code == 1
    [root] = collector.spans
    assert (root.name, root.parent_span_id, root.status.code) == ("vdna compare", b"", 2)
    assert attributes(root) == {"vdna.command": "compare", "error.type": "NotFound"}
    assert "none" not in root.status.message


# What the events of a cluster tell


class Heard:
    """A job whose spans are kept in memory."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.spans = JobSpans(provider.get_tracer("test"), "refresh")

    def tell(self, *events: Event, error: BaseException | None = None) -> dict[str, list[Any]]:
        """Tells events, and the end of the job; returns all spans by their names."""
        for event in events:
            self.spans(event)
        self.spans.end(error)
        return by_name(self._kept.get_finished_spans())


def work(images: int) -> ShardWork:
    return ShardWork(images, {"corrupt": 2}, 5, 8000, {"fetch": 0.5, "decode": 2.0, "network": 1})


def told(of: Any) -> dict[str, Any]:
    return dict(of.attributes)


def test_faults_are_events_and_a_shard_that_is_tried_again_has_a_span_for_each_try() -> None:
    lost = "s3://bucket/a.jpg: no answer"
    spans = Heard().tell(
        DatasetBegun("cats"),
        DatasetBegun("cats"),  # as its source is listed again
        Started(30, 2, present=1),
        PoolFilled(4),
        StepFailed("shard 0", f"TransientError: {lost}", True, "cats", 0, 1.5),
        Retried(1, 2),
        PoolChanged(0, 4, "1 CPU", 3600),
        PoolChanged(3, 4, "1 CPU", 3600),
        Warned("the GPU 0 of s3://key:secret@host/a.jpg was left out: it failed"),
        Held(2),
        TakenOver(1),
        Held(0),
        StepDone(15, 2, 4.0, "shard 0", 0, "cats", 0, work(13)),
        StepDone(15, 0, 0, "shard 1", 0, "cats", 1),  # of another job
        Finished(),
        PhaseEnded("cats", "merging", 0.25),
        DatasetEnded("cats", "committed", 28, 2),
    )
    [root], [stage], [dataset] = spans["vdna refresh"], spans["stage shards"], spans["dataset"]
    failed, counted = spans["shard"]
    tried = {"vdna.dataset": "cats", "vdna.shard": 0}
    why = {"error.type": "TransientError"}
    assert told(failed) == {**tried, **why, "vdna.attempt": 1}
    assert (failed.status.is_ok, failed.status.description) == (False, "…: no answer")
    assert failed.end_time - failed.start_time == pytest.approx(1.5e9, rel=0.05)
    assert told(counted) == {
        **tried,
        "vdna.attempt": 2,
        "vdna.images_counted": 13,
        "vdna.images_reused": 5,
        "vdna.image_failures": 2,
        "vdna.bytes": 8000,
        "vdna.fetch_seconds": 0.5,
        "vdna.decode_seconds": 2.0,
        "vdna.network_seconds": 1,
    }
    assert counted.status.is_ok
    assert counted.end_time - counted.start_time == pytest.approx(4e9, rel=0.05)
    assert failed.parent.span_id == counted.parent.span_id == dataset.context.span_id
    [merging] = spans["merging"]
    assert merging.end_time - merging.start_time == pytest.approx(0.25e9, rel=0.1)
    assert [(event.name, told(event)) for event in stage.events] == [
        ("workers changed", {"vdna.workers": 4}),
        ("shards retried", {"vdna.shards": 1, "vdna.attempt": 2}),
        ("waiting for capacity", {"vdna.workers": 0, "vdna.workers_most": 4}),
        ("workers changed", {"vdna.workers": 3, "vdna.workers_most": 4}),
        ("warning", {"vdna.message": "the GPU 0 of …: it failed"}),
        ("waiting for shards of another job", {"vdna.shards": 2}),
        ("shards taken over", {"vdna.shards": 1}),
    ]
    [event] = dataset.events
    assert event.name == "shard failed"
    assert told(event) == {**tried, **why, "vdna.attempt": 1, "vdna.transient": True}
    assert told(dataset)["vdna.images"] == 28
    assert told(dataset)["vdna.images_counted"] == 13
    assert told(dataset)["vdna.shards"] == 1
    assert root.events == ()
    assert root.status.is_ok


def test_a_stage_without_datasets_is_a_span_of_the_job() -> None:
    """As those of a comparison; a stage that has nothing to do is none."""
    comparing = Started(30, 2, unit="pairs", step="tiles")
    spans = Heard().tell(Started(0, 0), Finished(), comparing, StepDone(15), Finished(ok=False))
    assert set(spans) == {"vdna refresh", "stage tiles"}
    [root], [stage] = spans["vdna refresh"], spans["stage tiles"]
    assert stage.parent.span_id == root.context.span_id
    assert (told(stage)["vdna.unit"], stage.status.is_ok) == ("pairs", False)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt", "interrupted"),
        (GateError("cats: 2 bounds are broken"), "GateError", "cats: 2 bounds are broken"),
        (None, "exit code 3", "ended with exit code 3"),
    ],
)
def test_what_ends_a_job_ends_its_spans(
    error: BaseException | None, kind: str, message: str
) -> None:
    left = Exit(3)
    left.__cause__ = error
    spans = Heard().tell(DatasetBegun("cats"), Started(30, 2), error=left)
    [root], [stage], [dataset] = spans["vdna refresh"], spans["stage shards"], spans["dataset"]
    assert (told(root)["error.type"], root.status.description) == (kind, message)
    assert not stage.status.is_ok
    assert told(dataset)["vdna.outcome"] == "unfinished"
    assert dataset.status.description == "the job ended before the dataset was built"
    assert Heard().tell(error=Exit(0))["vdna refresh"][0].status.is_ok


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("2 of 8 images. First:\n  /data/a b.jpg: corrupt", "2 of 8 images. First:"),
        ("s3://b/my cat: 1.jpg: truncated: bytes miss", "…: bytes miss"),
        ("cannot read /data/my cat.jpg", "cannot read …"),
        ("a.tar::my cat: no answer", "…: no answer"),
        ("cat.JPEG is damaged", "… is damaged"),
        ("the token is hf_abcdefghijklmnopqrstuvwxyz", "the token is hf_…"),
        ("no worker ran for 3.5 s\x1b[2J", "no worker ran for 3.5 s\\x1b[2J"),
        ("x" * 900, "x" * 500),
    ],
)
def test_a_message_names_no_image_and_no_secret(message: str, shown: str) -> None:
    assert without_places(message) == shown


def test_an_error_of_the_sdk_ends_the_trace_and_not_the_job(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()

    def broken(*_: object, **__: object) -> None:
        raise OSError("no more ids")

    monkeypatch.setattr(heard.spans._tracer, "start_span", broken)
    assert heard.tell(DatasetBegun("cats"), DatasetBegun("dogs")) == {}
    assert [record.getMessage() for record in caplog.records] == [
        "the trace of this job ends here, and the job goes on: OSError: no more ids"
    ]


# Where it is sent


def test_without_a_variable_what_needs_opentelemetry_is_not_imported(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of metrics shows that what is imported here has not imported it yet."""
    theirs = "pipeline.reporting.job_spans"
    users = [
        path.stem
        for room in (pipeline, jobs)
        for path in Path(room.__path__[0]).rglob("*.py")
        if re.search(r"^ *(import|from) opentelemetry", path.read_text(), re.M)
    ]
    assert users == ["job_spans"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "night")
    for value, imported in {"": False, "http://127.0.0.1:9": True}.items():
        monkeypatch.delitem(sys.modules, theirs, raising=False)
        monkeypatch.delattr(pipeline.reporting, "job_spans", raising=False)
        monkeypatch.setenv(ENDPOINT, value)
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        for words in (["gc"], ["ls"]):
            assert vdna(*words, "-c", str(photos.parent / "none")).exit_code == 1
            assert (theirs in sys.modules) == (imported and words == ["gc"]), words
            monkeypatch.delitem(sys.modules, theirs, raising=False)


def test_a_variable_without_the_extra_is_an_error_before_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.reporting.job_spans")
    monkeypatch.delattr(pipeline.reporting, "job_spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    run = vdna("build", "a", str(tmp_path / "none"), "-c", str(tmp_path), **{ENDPOINT: "http://x"})
    assert run.exit_code == 2
    assert f"{ENDPOINT} asks for traces" in run.stderr
    assert "pip install 'vdna-pipeline[tracing]'" in run.stderr
    assert "listing" not in run.stderr


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc', but"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "20"}, "OpenTelemetry refuses .*max_queue_size"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    env: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {ENDPOINT: "http://127.0.0.1:9", **env}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said), traced_job("build"):
        pass
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    with traced_job("build") as listener:
        listener(Started(30, 2))
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console, otlp")
    with pytest.raises(UsageError, match=said), traced_job("build"):
        pass


@pytest.mark.parametrize(
    "env", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_SAMPLER": "always_off"}]
)
def test_the_sdk_itself_obeys_its_variables(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector() as collector:
        for name, value in {ENDPOINT: collector.url, **env}.items():
            monkeypatch.setenv(name, value)
        with traced_job("build") as listener:
            listener(DatasetBegun("cats"))
            listener(DatasetEnded("cats", "failed", error="GateError", message="too many"))
    assert collector.requests == []


def wait_for_last_spans() -> None:
    """Waits for a request that was under way when a job ended: what it says is told nowhere."""
    for thread in threading.enumerate():
        if thread.name == "last spans":
            thread.join(15)
    assert logging.getLogger("opentelemetry").propagate


@contextmanager
def silent() -> Iterator[str]:
    """Serves an address that takes connections and never answers."""
    with closing(create_server(("127.0.0.1", 0))) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def down() -> Iterator[str]:
    with silent() as url:
        pass
    yield url


@contextmanager
def refusing() -> Iterator[str]:
    with Collector(status=403) as collector:
        yield collector.url


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (down, r'Connection refused"\)\)$'),
        (silent, "not all was sent within 0.2 s of its end$"),
        (refusing, "code: 403, reason: "),
    ],
)
def test_an_endpoint_that_takes_nothing_costs_a_job_a_warning_and_a_short_wait(
    where: Any, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_spans, "FLUSH_SECONDS", 0.2)
    monkeypatch.setattr(job_spans, "GIVE_UP_SECONDS", 0.1)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with where() as url:
        monkeypatch.setenv(ENDPOINT, url.replace("//", "//me:hidden@"))
        began = monotonic()
        with traced_job("build") as listener:
            for shard in range(50):
                listener(StepDone(15, 2, 4.0, f"shard {shard}", 0, "cats", shard, work(13)))
            sent = monotonic() - began
        ended = monotonic() - began
    wait_for_last_spans()
    assert monotonic() - began < 4, "it does not try again once the job is over"
    assert sent < 1, "the job waits for nothing"
    assert ended < 2
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    start = "the trace of this job may lack spans, and the job goes on: "
    assert message.startswith(start)
    assert re.search(why, message)
    assert "hidden" not in message


def test_spans_that_are_too_many_are_dropped_and_the_job_does_not_wait(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter holds the first spans back until the job has told all of its own."""
    going_on = threading.Event()
    sent: list[str] = []

    class Slow(SpanExporter):
        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            assert going_on.wait(10)
            sent.extend(span.name for span in spans)
            return SpanExportResult.SUCCESS

    monkeypatch.setattr(job_spans, "OTLPSpanExporter", Slow)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    with traced_job("build") as listener:
        for shard in range(500):
            listener(StepDone(15, 2, 4.0, f"shard {shard}", 0, "cats", shard, work(13)))
        going_on.set()
    assert 10 < len(sent) <= 40
    assert sent[-1] == "vdna build"
    [record] = caplog.records
    start = "the trace of this job may lack spans, and the job goes on: Queue "
    assert record.getMessage().startswith(start)


def test_an_exporter_that_raises_costs_a_warning_without_secrets(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(SpanExporter):
        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            raise OSError("https://me:hidden@host/?key=hidden does not answer")

    monkeypatch.setattr(job_spans, "OTLPSpanExporter", Broken)
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    with traced_job("build") as listener:
        listener(Started(30, 2))
    [record] = caplog.records
    assert record.getMessage().endswith("://…@host/?key=… does not answer")


def test_ctrl_c_ends_the_wait_for_the_last_spans(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout == job_spans.FLUSH_SECONDS:
                raise KeyboardInterrupt  # a signal could end the process of all tests
            return super().wait(timeout)

    monkeypatch.setattr(job_spans, "GIVE_UP_SECONDS", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with silent() as url:
        monkeypatch.setenv(ENDPOINT, url)
        began = monotonic()
        with monkeypatch.context() as patch, traced_job("build"):
            patch.setattr(job_spans.threading, "Event", Pressed)
        ended = monotonic() - began
    wait_for_last_spans()
    assert ended < 2
    assert len(caplog.records) == 1


def test_a_job_that_is_interrupted_sends_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        with traced_job("build") as listener:
            listener(DatasetBegun("cats"))
            raise KeyboardInterrupt

    with Collector() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    assert Counter(span.name for span in collector.spans) == {"dataset": 1, "vdna build": 1}
    assert {span.status.code for span in collector.spans} == {2}


def test_the_page_has_each_span_attribute_and_event(built: Any) -> None:
    page = (DOCS / "monitoring.md").read_text().split("\n## Traces\n")[1].split("\n## ")[0]
    source = (Path(job_spans.__file__)).read_text()
    made = set(re.findall(r'"(vdna\.\w+)"', source))
    made |= {f"vdna.{stage}_seconds" for stage in ("fetch", "decode", "network")}
    assert set(re.findall(r"`(vdna\.\w+)`", page)) == made
    spans = {name for name in by_name([*built.spans, *built.refused.spans])}
    named = set(re.findall(r"^\| `([^`]+)` \|", page, re.M))
    assert {"vdna COMMAND", "stage STEP", "dataset", "shard"} <= named
    assert spans - {"vdna build", "stage shards"} <= named
    events = set(re.findall(r'_note\("([\w ]+)"', source)) | {"waiting for capacity"}
    assert events <= named
