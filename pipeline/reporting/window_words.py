"""Says which days a window of a dataset is of."""

from __future__ import annotations

from pipeline.catalogue import BETWEEN, Version, days_between


def window_days(version: Version) -> str:
    """Says which days a window is of; nothing of a version that is no window of several parts."""
    days = days_between(version.value) if BETWEEN in version.value else None
    if days is None:
        return ""
    return f"the days from {days[0]} to {days[1]}" if days[0] != days[1] else f"the day {days[0]}"
