"""Writes what a refresh found as metrics of Prometheus, and pushes them to a gateway.

>>> b"vdna_refresh_success 1.0" in metrics_text(outcome)                        # doctest: +SKIP
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.metrics_core import Metric

JOB = "vdna_refresh"
"""The job's name at a push gateway."""

_COSTS = {
    "images_read": "Number of images that were read.",
    "bytes_read": "Bytes of these images.",
    "requests": "Number of requests that storage was sent.",
    "seconds": "How long the refresh took.",
    "worker_seconds": "How long workers had shards, added up.",
}
"""What a refresh costs, and its words."""

_OUTCOMES = ("holds", "broken", "no earlier version yet", "not judged")


def metrics_text(outcome: Mapping[str, Any]) -> bytes:
    """Writes the outcome in Prometheus's text format, for its node exporter to collect.

    Args:
        outcome: What a refresh found, as `Refreshed.outcome` has it.

    Returns:
        The bytes of the file. Each series has the labels of `_group`, so that the files of several
        refreshes on one machine are told apart.
    """
    from prometheus_client import generate_latest

    return generate_latest(_Labelled(_registry(outcome), _group(outcome)))


def push_metrics(outcome: Mapping[str, Any], gateway: str) -> None:
    """Sends the outcome to a push gateway, where it replaces that of the refresh before.

    Args:
        outcome: What a refresh found, as `Refreshed.outcome` has it.
        gateway: The url of the gateway.
    """
    from prometheus_client import push_to_gateway

    # The gateway adds the labels of the group to each series.
    push_to_gateway(gateway, JOB, _registry(outcome), _group(outcome), handler=_sender)


def _group(outcome: Mapping[str, Any]) -> dict[str, str]:
    """Returns the labels that tell the series of one refresh from those of others."""
    return {"catalogue": outcome["catalogue"], "config": outcome["config"]}


@dataclass(frozen=True)
class _Labelled:
    """Adds the same labels to each series of a registry."""

    registry: CollectorRegistry
    labels: Mapping[str, str]

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, **self.labels})
                for sample in metric.samples
            ]
            yield metric


def _sender(
    url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
) -> Callable[[], None]:
    """Returns what sends a request of the library's, with the retries of all our requests."""
    return lambda: storage.deliver(url, data, lambda: dict(headers), "PUT")


def _registry(outcome: Mapping[str, Any]) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()

    def gauge(name: str, told: str, *labels: str) -> Gauge:
        return Gauge(f"vdna_{name}", told, labels, registry=registry)

    ok = outcome["error"] is None and outcome["undelivered"] is None
    gauge("refresh_success", "Whether nothing went wrong.").set(ok)
    gauge("refresh_finished_timestamp_seconds", "When it ended.").set_to_current_time()
    bounds = gauge("gate_bounds", "Number of bounds of the gate, by their outcome.", "outcome")
    for name in _OUTCOMES:
        bounds.labels(name).set(sum(row["outcome"] == name for row in outcome["gate"]))
    holds = gauge("gate_bound_holds", "Whether a bound that was judged holds.", "bound", "kind")
    value = gauge(
        "gate_bound_value",
        "What is judged: the lower end of a distance's 95% interval, or the plain distance if it "
        "has none; or a number of images.",
        "bound",
        "kind",
    )
    distance = gauge(
        "gate_bound_distance",
        "The corrected distance, as it is printed; nothing if it has no interval.",
        "bound",
        "kind",
    )
    limit = gauge("gate_bound_limit", "The limit that it is judged by.", "bound", "kind")
    for row in outcome["gate"]:
        labels = row["name"], row["kind"]
        if row["outcome"] in ("holds", "broken"):
            holds.labels(*labels).set(row["holds"])
        shown = row["emd_corrected"] if row.get("low") is not None else None
        numbers = (row["value"], row["limit"], shown)
        for metric, number in zip((value, limit, distance), numbers, strict=True):
            if number is not None:
                metric.labels(*labels).set(number)
    images = gauge("dataset_images", "Number of images that were counted.", "dataset")
    failed = gauge("dataset_failed_images", "Number of images that could not be read.", "dataset")
    built = gauge("dataset_built", "Whether a dataset is up to date.", "dataset")
    for row in outcome["datasets"]:
        images.labels(row["dataset"]).set(row["images"])
        failed.labels(row["dataset"]).set(row["failed"])
        built.labels(row["dataset"]).set(1)
    for row in outcome["failed"]:
        built.labels(row["name"]).set(0)
    _add_movements(outcome, gauge)
    _add_summary(outcome["summary"], gauge)
    return registry


def _add_movements(outcome: Mapping[str, Any], gauge: Callable[..., Gauge]) -> None:
    """Adds how far datasets have moved. Numbers that are not known are left out."""
    columns = {
        "emd_corrected": gauge("dataset_moved_bins", "How far a new version has moved.", "dataset"),
        "low": gauge("dataset_moved_low_bins", "Lower end of its 95% interval.", "dataset"),
        "high": gauge("dataset_moved_high_bins", "Upper end of its 95% interval.", "dataset"),
    }
    alarm = gauge("dataset_drift_alarm", "Whether a new version raises a drift alarm.", "dataset")
    for row in outcome["datasets"]:
        for name, metric in columns.items():
            if row["moved"] is not None and row["moved"][name] is not None:
                metric.labels(row["dataset"]).set(row["moved"][name])
        if row["alarm"] is not None:
            alarm.labels(row["dataset"]).set(row["alarm"])


def _add_summary(summary: Mapping[str, Any], gauge: Callable[..., Gauge]) -> None:
    """Adds the numbers of all datasets together."""
    datasets = gauge("refresh_datasets", "Number of datasets, by what became of them.", "state")
    for state, number in summary["datasets"].items():
        datasets.labels(state).set(number)
    images = gauge("refresh_images", "Number of images of new versions, by their change.", "change")
    for change in ("added", "removed", "changed"):
        images.labels(change).set(summary["images"][change])
    for name, told in _COSTS.items():
        gauge(f"refresh_{name}", told).set(summary["cost"][name])
