"""Turns the events of a job into spans, and sends them by OpenTelemetry's exporter.

    >>> with exported_spans("build") as listener:                             # doctest: +SKIP
    ...     build_datasets(catalogue, requests, engine, progress=listener)

This module needs the extra `tracing`; `job_traces` imports it if a trace is asked for. All spans
are made in the process of the command, from what its workers' receipts say: a span of a shard ends
when its receipt comes, and begins as many seconds before as the worker had the shard.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from time import time_ns

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pipeline.errors import UsageError, printable, redact
from pipeline.events import (
    DatasetBegun,
    DatasetEnded,
    Event,
    Finished,
    Held,
    Listener,
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

logger = logging.getLogger(__name__)

SERVICE = "vdna"
"""The name of the service, if the environment gives none."""

FLUSH_SECONDS = 5.0
"""How long a command waits at its end for its last spans to be sent."""

GIVE_UP_SECONDS = 1.0
"""How long it waits then for the exporter to give up."""

MOST_WORDS = 500
"""How many characters of a message a span has."""

_PLACE = re.compile(r"\S*(?:[/\\]|::)(?:.*(: )|.*$)")
"""A path or url, and what follows up to the last colon, as a name may have blanks and colons."""

_FILE = re.compile(
    r"\S+\.(?:arrow|avif|bmp|gif|hei[cf]|jp2|jpe?g|npz|parquet|png|tar|tiff?|webp|zip)\b",
    re.IGNORECASE,
)

_TRIED_AGAIN = re.compile("Transient error (.*) encountered while exporting .*", re.DOTALL)
"""What the exporter says of a try that it repeats; the reason is enough if no other succeeds."""

_THEIR_LOGGER = logging.getLogger("opentelemetry")

_Attributes = Mapping[str, str | int | float | bool]


def without_places(message: str) -> str:
    """Takes out of a message what may name an image, and secrets.

    Args:
        message: A message, such as that of an error.

    Returns:
        Its first line, with `…` in place of each path, url and name of a file. What follows a path
        is kept from the last colon on.
    """
    line = message.partition("\n")[0]
    masked = _FILE.sub("…", _PLACE.sub(lambda found: f"…{found[1] or ''}", line))
    return printable(redact(masked))[:MOST_WORDS]


@dataclass
class _DatasetWork:
    """The span of a dataset, and what this job has counted of it so far."""

    span: Span
    images: int = 0
    failures: int = 0
    shards: int = 0

    @property
    def counted(self) -> _Attributes:
        return {
            "vdna.images_counted": self.images,
            "vdna.image_failures": self.failures,
            "vdna.shards": self.shards,
        }


class JobSpans:
    """A listener that makes spans of what happens.

    If OpenTelemetry raises an error, the log has one warning, and there are no more spans.

    Args:
        tracer: Makes the spans.
        command: The command that is the job.
        parent: The context of the span that the job belongs to, if there is one.
    """

    def __init__(self, tracer: Tracer, command: str, parent: Context | None = None) -> None:
        self._tracer = tracer
        self._root = tracer.start_span(
            f"vdna {command}", parent, attributes={"vdna.command": command}
        )
        self._stage: Span | None = None
        self._datasets: dict[str, _DatasetWork] = {}
        self._names: set[str] = set()
        self._failed_tries: dict[tuple[str, int], int] = {}
        self._has_failed = False
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Takes in an event.

        Args:
            event: What happened.
        """
        self._try(lambda: self._hear(event))

    def end(self, error: BaseException | None = None) -> None:
        """Ends all spans that are open.

        Args:
            error: What ended the job, if it did not run to its end.
        """
        self._try(lambda: self._end_all(error))

    def _try(self, step: Callable[[], None]) -> None:
        """Does a step, unless one has failed."""
        with self._lock:
            if self._has_failed:
                return
            try:
                step()
                return
            except Exception as raised:
                self._has_failed, error = True, raised
        # After the lock, as a handler of the log may tell its records to this listener.
        what = redact(f"{type(error).__name__}: {error}")
        logger.warning("the trace of this job ends here, and the job goes on: %s", what)

    def _end_all(self, error: BaseException | None) -> None:
        for work in self._datasets.values():
            work.span.set_attributes({"vdna.outcome": "unfinished", **work.counted})
            self._fail(work.span, "", "the job ended before the dataset was built")
            work.span.end()
        self._datasets.clear()
        kind, message = _told(error)
        self._end_stage(ok=not kind)
        if kind:
            self._fail(self._root, kind, message)
        self._root.end()

    def _hear(self, event: Event) -> None:
        match event:
            case Started(steps=steps) if steps:
                self._begin_stage(event)
            case StepDone(
                dataset=dataset, seconds=seconds, shard=int(shard), work=ShardWork() as work
            ):
                self._shard_counted(dataset, shard, seconds, work)
            case StepFailed():
                self._step_failed(event)
            case DatasetBegun(dataset):
                self._begin_dataset(dataset)
            case PhaseEnded(dataset, phase, seconds):
                self._begin_past(phase, seconds, dataset, {"vdna.dataset": dataset}).end()
            case DatasetEnded():
                self._end_dataset(event)
            case Retried(steps, attempt):
                self._note("shards retried", {"vdna.shards": steps, "vdna.attempt": attempt})
            case Held(steps) if steps:
                self._note("waiting for shards of another job", {"vdna.shards": steps})
            case TakenOver(steps):
                self._note("shards taken over", {"vdna.shards": steps})
            case PoolFilled(workers):
                self._note("workers changed", {"vdna.workers": workers})
            case PoolChanged(workers, most):
                name = "workers changed" if workers else "waiting for capacity"
                self._note(name, {"vdna.workers": workers, "vdna.workers_most": most})
            case Warned(message):
                self._note("warning", {"vdna.message": without_places(message)})
            case Finished(ok):
                self._end_stage(ok=ok)

    def _begin_stage(self, begun: Started) -> None:
        self._end_stage(ok=True)  # a listener knows one stage at a time
        self._stage = self._begin(
            f"stage {begun.step}",
            self._root,
            {
                "vdna.unit": begun.unit,
                "vdna.units": begun.total,
                "vdna.steps": begun.steps,
                "vdna.steps_present": begun.present,
            },
        )

    def _end_stage(self, *, ok: bool) -> None:
        if self._stage is not None:
            if not ok:
                self._stage.set_status(StatusCode.ERROR)
            self._stage.end()
            self._stage = None

    def _begin_dataset(self, name: str) -> None:
        if name not in self._datasets:  # else its source is listed again
            span = self._begin("dataset", self._root, {"vdna.dataset": name})
            self._datasets[name] = _DatasetWork(span)
            self._names.add(name)

    def _end_dataset(self, ended: DatasetEnded) -> None:
        self._begin_dataset(ended.dataset)
        work = self._datasets.pop(ended.dataset)
        work.span.set_attributes({"vdna.outcome": ended.outcome, **work.counted})
        if ended.outcome == "failed":
            self._fail(work.span, ended.error, ended.message)
        else:
            work.span.set_attributes({"vdna.images": ended.images, "vdna.failures": ended.failures})
        work.span.end()

    def _shard_counted(self, dataset: str, shard: int, seconds: float, work: ShardWork) -> None:
        failures = sum(work.reasons.values())
        if (of := self._datasets.get(dataset)) is not None:
            of.images += work.images
            of.failures += failures
            of.shards += 1
        tried = self._failed_tries.pop((dataset, shard), 0)
        attributes: _Attributes = {
            **_named_try(dataset, shard, tried + 1),
            "vdna.images_counted": work.images,
            "vdna.images_reused": work.reused,
            "vdna.image_failures": failures,
            "vdna.bytes": work.bytes,
            **{f"vdna.{stage}_seconds": spent for stage, spent in work.spent.items()},
        }
        self._begin_past("shard", seconds, dataset, attributes).end()

    def _step_failed(self, failed: StepFailed) -> None:
        dataset, shard = failed.dataset, failed.shard
        if shard is None:
            return
        tried = self._failed_tries[dataset, shard] = 1 + self._failed_tries.get((dataset, shard), 0)
        of = _named_try(dataset, shard, tried)
        named, _, message = failed.error.partition(": ")
        kind = without_places(named)
        span = self._begin_past("shard", failed.seconds, dataset, of)
        self._fail(span, kind, message)
        span.end()
        why: _Attributes = {"error.type": kind, "vdna.transient": failed.transient}
        work = self._datasets.get(dataset)
        self._note("shard failed", {**of, **why}, None if work is None else work.span)

    def _begin(self, name: str, parent: Span, attributes: _Attributes, at: int = 0) -> Span:
        around = set_span_in_context(parent, Context())
        return self._tracer.start_span(
            name, around, attributes=dict(attributes), start_time=at or None
        )

    def _begin_past(self, name: str, seconds: float, dataset: str, attributes: _Attributes) -> Span:
        """Begins a span of what ends now, as a child of the dataset's, or of the stage's."""
        work = self._datasets.get(dataset)
        parent = work.span if work is not None else self._stage or self._root
        return self._begin(name, parent, attributes, time_ns() - int(seconds * 1e9))

    def _note(self, name: str, attributes: _Attributes, span: Span | None = None) -> None:
        (span or self._stage or self._root).add_event(name, dict(attributes))

    def _fail(self, span: Span, kind: str, message: str) -> None:
        """Gives a span the status of an error, with what the message says of no image."""
        if kind:
            span.set_attribute("error.type", kind)
        before = next((of for of in self._names if message.startswith(f"{of}: ")), None)
        if before is not None:  # the name of a dataset may look like a path
            told = f"{printable(before)}: {without_places(message.removeprefix(f'{before}: '))}"
        else:
            told = without_places(message)
        span.set_status(StatusCode.ERROR, told)


def _named_try(dataset: str, shard: int, attempt: int) -> _Attributes:
    """Returns the attributes that tell a try of a shard from all others."""
    return {"vdna.dataset": dataset, "vdna.shard": shard, "vdna.attempt": attempt}


def _told(error: BaseException | None) -> tuple[str, str]:
    """Returns the kind of the error that ended a job, and its message; "" if it ended well.

    A command ends by an exception that has its exit code. Its cause is the error, if there is one.
    """
    if error is None:
        return "", ""
    code = getattr(error, "exit_code", None)
    cause = error.__cause__ if code is not None else error
    if isinstance(cause, KeyboardInterrupt):
        return "KeyboardInterrupt", "interrupted"
    if cause is not None:
        return type(cause).__name__, str(cause)
    return (f"exit code {code}", f"ended with exit code {code}") if code else ("", "")


class _Troubles(logging.Handler):
    """Takes all log records of OpenTelemetry, and tells the first trouble as one warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._is_told = False
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Notes a record of the exporter, which may succeed yet; tells any other."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text} {record.exc_info[1]}"
        if record.name.startswith("opentelemetry.exporter."):
            self._last = self._last or _TRIED_AGAIN.sub(r"\1", text)
        else:
            self.tell(text)

    def take_records(self) -> None:
        """Has records come here, and nowhere else."""
        _THEIR_LOGGER.addHandler(self)
        _THEIR_LOGGER.propagate = False

    def leave_records(self) -> None:
        """Lets records go where they went before, unless another job takes them."""
        _THEIR_LOGGER.removeHandler(self)
        others = any(isinstance(each, _Troubles) for each in _THEIR_LOGGER.handlers)
        _THEIR_LOGGER.propagate = not others

    def forget(self) -> None:
        """Forgets what went wrong before spans could be sent after all."""
        self._last = ""

    def lost(self, otherwise: str = "OpenTelemetry does not say why") -> None:
        """Tells that spans could not be sent, and why.

        Args:
            otherwise: The reason if the exporter has given none.
        """
        self.tell(self._last or otherwise)

    def tell(self, reason: str) -> None:
        """Tells a trouble, if none was told.

        Args:
            reason: What happened.
        """
        if not self._is_told:
            self._is_told = True
            why = printable(redact(reason))[:MOST_WORDS]
            logger.warning("the trace of this job may lack spans, and the job goes on: %s", why)


class _ToldExporter(SpanExporter):
    """An exporter that has it told if spans are lost."""

    def __init__(self, exporter: SpanExporter, troubles: _Troubles) -> None:
        self._exporter = exporter
        self._troubles = troubles

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._troubles.forget()
        else:
            self._troubles.lost()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


@contextmanager
def exported_spans(command: str) -> Iterator[Listener]:
    """Sends spans of a job while the block runs, and waits a little for the last ones.

    What is sent, where to, and how many spans wait for it, OpenTelemetry reads in the environment.

    Args:
        command: The command that is the job.

    Yields:
        The listener to hand to the job.

    Raises:
        UsageError: OpenTelemetry refuses what the environment says.
    """
    troubles = _Troubles()
    troubles.take_records()
    try:
        exporter = _ToldExporter(OTLPSpanExporter(), troubles)
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except (ValueError, OSError) as error:
        troubles.leave_records()
        raise UsageError(
            f"OpenTelemetry refuses what its OTEL_ variables say: {error}; correct them, or set "
            "OTEL_TRACES_EXPORTER=none to send no traces"
        ) from error
    tracer = provider.get_tracer("vdna-pipeline", version("vdna-pipeline"))
    spans = JobSpans(tracer, command, _callers_context())
    try:
        yield spans
    except BaseException as error:
        spans.end(error)
        raise
    else:
        spans.end()
    finally:
        _send_rest(provider, exporter, troubles)


def _resource() -> Resource:
    """Returns what the environment says of the service; its name is ours if it has none."""
    found = Resource.create()
    if str(found.attributes["service.name"]).startswith("unknown_service"):
        found = found.merge(Resource({"service.name": SERVICE}))
    return found.merge(Resource({"service.version": version("vdna-pipeline")}))


def _callers_context() -> Context:
    """Returns the context that the environment names, for a job that is a part of another trace."""
    variables = {"traceparent": "TRACEPARENT", "tracestate": "TRACESTATE"}
    carrier = {key: os.environ[name] for key, name in variables.items() if name in os.environ}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _send_rest(provider: TracerProvider, exporter: _ToldExporter, troubles: _Troubles) -> None:
    """Sends the spans that are left, and gives up after `FLUSH_SECONDS`."""
    sent = threading.Event()

    def send() -> None:
        provider.shutdown()
        troubles.leave_records()
        sent.set()

    threading.Thread(target=send, name="last spans", daemon=True).start()
    with suppress(KeyboardInterrupt):  # the job is over: only the wait is cut short
        sent.wait(FLUSH_SECONDS)
    if not sent.is_set():
        exporter.shutdown()  # which ends its pause before it tries again
        sent.wait(GIVE_UP_SECONDS)
        troubles.lost(f"not all was sent within {FLUSH_SECONDS:g} s of its end")
