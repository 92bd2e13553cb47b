"""Turns the events of a job into metrics, for Prometheus to collect while the job runs.

    >>> with served_metrics("9464") as listener:                              # doctest: +SKIP
    ...     build_datasets(catalogue, requests, engine, progress=listener)

Without an address to serve them at, they go to Ray's own agent once the job has joined a cluster.
All are sent by the process of the command, from what its workers' receipts say. So as a rule a
shard counts once, however often it was tried; `docs/monitoring.md` has the exceptions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import time
from typing import TYPE_CHECKING, Any

from pipeline.engine import Metric, MetricsClient
from pipeline.errors import UsageError, redact
from pipeline.events import (
    ClusterJoined,
    Event,
    Finished,
    Held,
    Listener,
    PoolChanged,
    PoolFilled,
    Retried,
    Started,
    StepDone,
    StepFailed,
    TakenOver,
    Warned,
)
from pipeline.storage import RequestMeter

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

THIS_MACHINE = "127.0.0.1"
"""Where metrics are served if no address is named: they tell the names of datasets."""

SHARD_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""The upper bounds of the histogram of shards' times."""

JOB_METRICS = (
    Metric("vdna_images_total", "counter", "Images that were counted.", ("dataset",)),
    Metric(
        "vdna_image_failures_total",
        "counter",
        "Images that could not be read, by the reason.",
        ("dataset", "reason"),
    ),
    Metric(
        "vdna_images_reused_total",
        "counter",
        "Images that were not read, as their sums were kept.",
        ("dataset",),
    ),
    Metric("vdna_image_bytes_total", "counter", "Bytes of images that were read.", ("dataset",)),
    Metric("vdna_shards_total", "counter", "Shards that this job counted.", ("dataset",)),
    Metric(
        "vdna_shards_of_others_total",
        "counter",
        "Shards that another job stored meanwhile.",
        ("dataset",),
    ),
    Metric(
        "vdna_shard_seconds",
        "histogram",
        "How long a worker had a shard that it counted.",
        ("dataset",),
        SHARD_BUCKETS,
    ),
    Metric(
        "vdna_worker_seconds_total",
        "counter",
        "How long workers had shards, of which they have two at a time; those that failed, too.",
        ("dataset",),
    ),
    Metric(
        "vdna_stage_seconds_total",
        "counter",
        "How long threads of workers read (fetch), decoded, or ran the network.",
        ("dataset", "stage"),
    ),
    Metric(
        "vdna_shard_errors_total",
        "counter",
        "Tries of shards that ended in an error.",
        ("dataset",),
    ),
    Metric("vdna_shard_retries_total", "counter", "Shards that were tried again."),
    Metric("vdna_shards_held", "gauge", "Shards of other jobs' leases that are waited for."),
    Metric("vdna_shards_taken_over_total", "counter", "Shards taken over of jobs that died."),
    Metric("vdna_steps_left", "gauge", "Steps of the stage that are left.", ("step",)),
    Metric("vdna_units_left", "gauge", "What the steps that are left hold.", ("unit",)),
    Metric(
        "vdna_progress_timestamp_seconds",
        "gauge",
        "When the stage began, or a step of it ended, last.",
        ("step",),
    ),
    Metric("vdna_workers", "gauge", "Workers that run."),
    Metric("vdna_workers_most", "gauge", "Workers that may run, where there is room."),
    Metric("vdna_capacity_waiting", "gauge", "1 while no worker runs, as no node has room."),
    Metric("vdna_storage_requests_total", "counter", "Requests that stores were sent."),
    Metric("vdna_warnings_total", "counter", "Warnings that the job has told."),
)
"""All metrics of a job."""


class PrometheusMetrics:
    """Prometheus's own client. It is a `MetricsClient`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declares the metrics.

        Args:
            registry: What they are collected from.
        """
        import prometheus_client as client

        self._metrics: dict[str, Any] = {}
        for metric in JOB_METRICS:
            made: Any
            if metric.kind == "histogram":
                made = client.Histogram(
                    metric.name,
                    metric.help,
                    metric.labels,
                    buckets=metric.buckets,
                    registry=registry,
                )
            else:
                kind = client.Gauge if metric.kind == "gauge" else client.Counter
                made = kind(metric.name, metric.help, metric.labels, registry=registry)
            self._metrics[metric.name] = made

    def add(self, name: str, more: float, **labels: str) -> None:
        """Adds to a counter."""
        self._at(name, labels).inc(more)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._at(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Puts a value into a histogram."""
        self._at(name, labels).observe(value)

    def _at(self, name: str, labels: dict[str, str]) -> Any:
        metric = self._metrics[name]
        return metric.labels(**labels) if labels else metric


class JobMetrics:
    """A listener that tells a client what happens. It is given one, or takes Ray's.

    A client that raises an error ends no job: the log has one warning, and no client is told
    anything more.

    Args:
        client: The client. None for Ray's, once the job has joined a cluster.
    """

    def __init__(self, client: MetricsClient | None = None) -> None:
        self._client = client
        self._has_failed = False
        self._requests = RequestMeter()
        self._stage: Started | None = None
        self._steps = self._units = 0
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Takes in an event.

        Args:
            event: What happened.
        """
        with self._lock:
            if self._has_failed:
                return
            try:
                self._hear(event)
                return
            except Exception as raised:
                self._has_failed, error = True, raised
        # After the lock, as a handler of the log may tell its records to this listener.
        what = redact(f"{type(error).__name__}: {error}")
        logger.warning("the metrics of this job end here, and the job goes on: %s", what)

    def _hear(self, event: Event) -> None:
        """Tells the client of an event, if there is one."""
        if isinstance(event, Started):
            self._stage, self._steps, self._units = event, event.steps, event.total
        if isinstance(event, ClusterJoined) and self._client is None:
            self._client = self._joined()
        if self._client is not None:
            self._take(event, self._client)
            self._client.add("vdna_storage_requests_total", self._requests.read())

    def _joined(self) -> MetricsClient:
        """Returns Ray's client. A cluster is joined for a stage that has begun already."""
        from pipeline.engine import RayMetrics

        client = RayMetrics(JOB_METRICS)
        if self._stage is not None:
            self._tell_stage(self._stage, client)
        return client

    def _take(self, event: Event, client: MetricsClient) -> None:
        match event:
            case Started():
                self._tell_stage(event, client)
            case StepDone():
                self._tell_step(event, client)
            case StepFailed(dataset=dataset, seconds=seconds):
                client.add("vdna_shard_errors_total", 1, dataset=dataset)
                client.add("vdna_worker_seconds_total", seconds, dataset=dataset)
            case Retried(steps):
                client.add("vdna_shard_retries_total", steps)
            case Held(steps):
                client.set("vdna_shards_held", steps)
            case TakenOver(steps):
                client.add("vdna_shards_taken_over_total", steps)
            case PoolFilled(workers):
                self._tell_workers(workers, workers, client)
            case PoolChanged(workers, most):
                self._tell_workers(workers, most, client)
            case Warned():
                client.add("vdna_warnings_total", 1)
            case Finished():
                self._end_stage(client)

    def _tell_stage(self, stage: Started, client: MetricsClient) -> None:
        client.set("vdna_steps_left", self._steps, step=stage.step)
        client.set("vdna_units_left", self._units, unit=stage.unit)
        client.set("vdna_progress_timestamp_seconds", time(), step=stage.step)

    def _tell_step(self, done: StepDone, client: MetricsClient) -> None:
        if self._stage is not None:
            self._steps = max(0, self._steps - 1)
            self._units = max(0, self._units - done.units)
            self._tell_stage(self._stage, client)
        of, work = done.dataset, done.work
        if work is None:
            if done.shard is not None:
                client.add("vdna_shards_of_others_total", 1, dataset=of)
            return
        client.add("vdna_shards_total", 1, dataset=of)
        client.add("vdna_images_total", work.images, dataset=of)
        client.add("vdna_images_reused_total", work.reused, dataset=of)
        client.add("vdna_image_bytes_total", work.bytes, dataset=of)
        client.add("vdna_worker_seconds_total", done.seconds, dataset=of)
        client.observe("vdna_shard_seconds", done.seconds, dataset=of)
        for reason, number in work.reasons.items():
            client.add("vdna_image_failures_total", number, dataset=of, reason=reason)
        for name, seconds in work.spent.items():
            client.add("vdna_stage_seconds_total", seconds, dataset=of, stage=name)

    def _tell_workers(self, workers: int, most: int, client: MetricsClient) -> None:
        client.set("vdna_workers", workers)
        client.set("vdna_workers_most", most)
        client.set("vdna_capacity_waiting", int(most > workers == 0))

    def _end_stage(self, client: MetricsClient) -> None:
        """Leaves nothing that an alert could take for work that stands still."""
        if self._stage is not None:
            self._steps = self._units = 0
            self._tell_stage(self._stage, client)
            self._stage = None
        self._tell_workers(0, 0, client)
        client.set("vdna_shards_held", 0)


@contextmanager
def served_metrics(place: str | None) -> Iterator[Listener]:
    """Serves the metrics of a job until the block ends.

    Args:
        place: The port, or `ADDRESS:PORT`; without an address only this machine can ask. None to
            serve none, and to give them to Ray's agent if the job joins a cluster.

    Yields:
        The listener to hand to the job.

    Raises:
        UsageError: The place is none, or is in use.
    """
    if place is None:
        yield JobMetrics()
        return
    from prometheus_client import CollectorRegistry, start_http_server

    address, port = _place_of(place)
    registry = CollectorRegistry()
    listener = JobMetrics(PrometheusMetrics(registry))
    try:
        server, thread = start_http_server(port, address, registry)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"metrics cannot be served at {address}:{port}: {error}; choose another port"
        ) from error
    try:
        yield listener
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _place_of(place: str) -> tuple[str, int]:
    """Returns the address and the port that an option names."""
    address, _, port = place.rpartition(":")
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"metrics_port is {place!r}; give a port from 1 to 65535, or ADDRESS:PORT")
    return address.strip("[]") or THIS_MACHINE, int(port)
