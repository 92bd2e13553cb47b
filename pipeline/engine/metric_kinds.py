"""What a metric is, whatever client sends it.

>>> Metric("vdna_images_total", "counter", "Images that were counted.", ("dataset",)).labels
('dataset',)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Metric:
    """A metric as Prometheus knows it.

    Attributes:
        name: Its name; that of a counter ends in `_total`.
        kind: How its numbers are meant.
        help: What it is, in a sentence.
        labels: The names of its labels. Each has few values.
        buckets: The upper bounds of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class MetricsClient(Protocol):
    """What sends metrics. Each method names the metric, and gives a value for each label."""

    def add(self, name: str, more: float, **labels: str) -> None:
        """Adds to a counter; 0 makes it known."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Puts a value into a histogram."""
