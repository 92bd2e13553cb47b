"""Windows of days: which of a dataset's days a name such as `photos@last:7d` means.

>>> DayWindow.parse("last:2d").days_of([date(2026, 11, 23), date(2026, 11, 24)])
[datetime.date(2026, 11, 23), datetime.date(2026, 11, 24)]
>>> day_of("day=2026-11-24/hour=03"), day_of("year=2026/month=1/day=5"), day_of("rain")
(datetime.date(2026, 11, 24), datetime.date(2026, 1, 5), None)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Self

from pipeline.wording import some_of

BETWEEN = " … "
"""Stands in the value of a window between the values of its first and its last part."""

_LAST = re.compile(r"last:([1-9][0-9]{0,5})(d?)")
_RANGE = re.compile(r"(\d{4}-\d{2}-\d{2})\.\.(\d{4}-\d{2}-\d{2})")
_DATES = (
    re.compile(r"(?<!\d)(\d{4})(?:-|/|/month=)(\d{1,2})(?:-|/|/day=)(\d{1,2})(?!\d)"),
    re.compile(r"(?<!\d)(\d{4})(\d{2})(\d{2})(?!\d)"),
)


@dataclass(frozen=True)
class DayWindow:
    """Some days of a dataset.

    Attributes:
        text: The window as it is written: `last:7d`, `last:7`, `2026-11-01..2026-11-07`.
        first: The first day; None if it is counted back from the newest day of the dataset.
        last: The last day; None for the newest day of the dataset.
        length: How many days are counted back.
        calendar: Whether each day of the calendar counts. Else only days that have images do.
    """

    text: str
    first: date | None = None
    last: date | None = None
    length: int = 0
    calendar: bool = True

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads a window.

        Args:
            text: `last:7d` for the seven days that end with the newest one of the dataset, `last:7`
                for the newest seven that have images, or a first and a last day with `..` between.

        Returns:
            The window; None if the text is none.

        Raises:
            ValueError: A day is none of the calendar, or the last one is before the first one.
        """
        if back := _LAST.fullmatch(text):
            return cls(text, length=int(back[1]), calendar=bool(back[2]))
        if not (days := _RANGE.fullmatch(text)):
            return None
        first, last = map(date.fromisoformat, days.groups())
        if last < first:
            raise ValueError(f"{last} is before {first}")
        return cls(text, first, last)

    def days_of(self, there: Sequence[date]) -> list[date]:
        """Chooses the days of the window.

        Args:
            there: The days that have images, sorted, each once; one at least.

        Returns:
            The days, the first one first.

        Raises:
            ValueError: A day of the window has no images; the message names such days.
        """
        last = self.last or there[-1]
        if not self.calendar:
            if len(there) < self.length:
                raise ValueError(f"only {len(there)} of {self.length} days have images")
            return list(there[-self.length :])
        length = (last - self.first).days + 1 if self.first else self.length
        days = [last - timedelta(back) for back in reversed(range(length))]
        if absent := sorted(set(days) - set(there)):
            few = "" if len(absent) < len(days) else "no day of it has images: "
            raise ValueError(f"{few}there are none of {some_of([str(day) for day in absent])}")
        return days


def day_of(value: str) -> date | None:
    """Finds the day in the value of a label.

    Args:
        value: The value: a day, or folders that name one, with more beside it or without.

    Returns:
        The first day in it; None if there is none.
    """
    for pattern in _DATES:
        for found in pattern.finditer(value):
            year, month, day = map(int, found.groups())
            try:
                return date(year, month, day)
            except ValueError:
                continue
    return None


def days_between(value: str) -> tuple[date, date] | None:
    """Finds the first and the last day of the parts that a value is of.

    >>> days_between("day=2026-11-18 … day=2026-11-24")
    (datetime.date(2026, 11, 18), datetime.date(2026, 11, 24))

    Args:
        value: The value of a label, or of a window.

    Returns:
        The days; None if they are not known.
    """
    first, _, last = value.partition(BETWEEN)
    days = day_of(first), day_of(last or first)
    return (days[0], days[1]) if days[0] and days[1] else None
