"""Sends metrics by Ray's own client; the agent of the node exports them with Ray's own.

>>> RayMetrics(METRICS).add("vdna_images_total", 12, dataset="a")           # doctest: +SKIP

Ray writes `ray_` before each name. It adds up what is sent by this process, and labels it with the
id of this worker, so that the numbers of several jobs on a cluster do not mix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.util import metrics as ray_metrics

from pipeline.engine.metric_kinds import Metric


class RayMetrics:
    """Ray's client. It is a `MetricsClient`, of a process that is a driver of a cluster."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Declares the metrics.

        Args:
            metrics: All that are sent.
        """
        self._metrics: dict[str, Any] = {metric.name: _declared(metric) for metric in metrics}

    def add(self, name: str, more: float, **labels: str) -> None:
        """Adds to a counter. Ray does not take 0, so that a counter is not known before."""
        if more > 0:
            self._metrics[name].inc(more, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._metrics[name].set(value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Puts a value into a histogram. Ray keeps the bucket, and not the value itself."""
        self._metrics[name].observe(value, labels)


def _declared(metric: Metric) -> ray_metrics.Metric:
    if metric.kind == "histogram":
        return ray_metrics.Histogram(metric.name, metric.help, list(metric.buckets), metric.labels)
    if metric.kind == "gauge":
        return ray_metrics.Gauge(metric.name, metric.help, metric.labels)
    return ray_metrics.Counter(metric.name, metric.help, metric.labels)
