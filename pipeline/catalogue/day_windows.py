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
from itertools import islice
from typing import Self

from pipeline.wording import NAMED, some_of

BETWEEN = " … "
"""Stands in the value of a window between the values of its first and its last part."""

_LAST = re.compile(r"last:([1-9][0-9]{0,5})(d?)")
_RANGE = re.compile(r"(\d{4}-\d{2}-\d{2})\.\.(\d{4}-\d{2}-\d{2})(?::([1-9][0-9]{0,5}))?")
_LAST_ANY = re.compile(r"last:\s*(-?\d+)?(.*)", re.DOTALL)
_DATES = (
    re.compile(r"(?<!\d)(\d{4})(?:-|/|/month=)(\d{1,2})(?:-|/|/day=)(\d{1,2})(?!\d)"),
    re.compile(r"(?<!\d)(\d{4})(\d{2})(\d{2})(?!\d)"),
)


class WrongWindowError(ValueError):
    """What is written as a window of days means none. The message says why, and what to write."""


@dataclass(frozen=True)
class DayWindow:
    """Some days of a dataset.

    Attributes:
        text: The window as it is written: `last:7d`, `last:7`, `2026-11-01..2026-11-07`, or
            `2026-11-01..2026-11-07:5`.
        first: The first day; None if it is counted back from the newest day of the dataset.
        last: The last day; None for the newest day of the dataset.
        length: How many days are counted back; or how many of a range have images, if that is
            stated.
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
                After these, `:5` says that five days of the range have images.

        Returns:
            The window; None if the text is none.

        Raises:
            WrongWindowError: A day is none of the calendar, the last one is before the first one,
                or what follows `last:` is no number of days.
        """
        if back := _LAST.fullmatch(text):
            return cls(text, length=int(back[1]), calendar=bool(back[2]))
        if wrong := _LAST_ANY.fullmatch(text):
            raise WrongWindowError(_wrong_length(wrong[1] or "", wrong[2]))
        if not (days := _RANGE.fullmatch(text)):
            return None
        first, last = map(_calendar_day, days.groups()[:2])
        if last < first:
            raise WrongWindowError(
                f"the window ends before it begins; put the first day first: @{last}..{first}"
            )
        return cls(text, first, last, int(days[3] or 0), calendar=not days[3])

    def days_of(self, there: Sequence[date]) -> list[date]:
        """Chooses the days of the window.

        Args:
            there: The days that have images, sorted, each once; one at least.

        Returns:
            The days, the first one first.

        Raises:
            ValueError: A day of the window has no images; the message names such days.
        """
        if not self.calendar and self.first is None:
            if len(there) < self.length:
                raise ValueError(f"only {len(there)} of {self.length} days have images")
            return list(there[-self.length :])
        first, last = self._ends(there)
        present = [day for day in there if first <= day <= last]
        if not self.calendar and len(present) != self.length:
            raise ValueError(f"{len(present)} of its days have images, not {self.length}")
        days = (last - first).days + 1
        if self.calendar and len(present) < days:
            few = "" if present else "no day of it has images: "
            known = set(present)
            each = (first + timedelta(number) for number in range(days))
            absent = (str(day) for day in each if day not in known)
            some = some_of([*islice(absent, NAMED + 1)], days - len(present))
            raise ValueError(f"{few}there are no images of {some}")
        return present

    def with_gaps(self, there: Sequence[date]) -> str:
        """Words the window of those of its days that have images.

        Args:
            there: As in `days_of`.

        Returns:
            The window; empty if there are none, or if it takes only days that have images.
        """
        if not self.calendar and self.first is None:
            return ""
        first, last = self._ends(there)
        present = sum(first <= day <= last for day in there)
        return f"{first}..{last}:{present}" if present else ""

    def with_earlier(self, there: Sequence[date]) -> list[DayWindow]:
        """Finds the windows that are as long as this one, end to end back from the newest day.

        Args:
            there: As in `days_of`.

        Returns:
            The windows, the first one first, each named by its own days. They have no day in
            common. Days before the first whole window are in none. Of a window of the calendar,
            some days may have no images, which `days_of` says.
        """
        if self.calendar:
            whole = (there[-1] - there[0]).days + 1
            backs = range(0, whole - self.length + 1, self.length)
            ends = [there[-1] - timedelta(back) for back in backs]
            texts = [f"{end - timedelta(self.length - 1)}..{end}" for end in ends]
        else:
            ends_at = range(len(there), self.length - 1, -self.length)
            texts = [_named(there[end - self.length : end]) for end in ends_at]
        found = [DayWindow.parse(text) for text in reversed(texts)]
        return [window for window in found if window is not None]

    def _ends(self, there: Sequence[date]) -> tuple[date, date]:
        """Returns the first and the last day. The calendar begins with the year 1."""
        last = self.last or there[-1]
        back = min(self.length, last.toordinal()) - 1
        return self.first or last - timedelta(back), last


def _wrong_length(number: str, rest: str) -> str:
    """Says what is wrong with what follows `last:`."""
    if number and int(number) < 1:
        return "a window has at least 1 day: @last:1d is the newest day"
    days = int(number) if number and len(number) < 7 else 7
    return (
        f"{number + rest!r} is no number of days; write 1 to 999999 with a d, such as "
        f"@last:{days}d, or without, @last:{days}, to count only days that have images"
    )


def _calendar_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise WrongWindowError(f"{text} is no day of the calendar") from error


def _named(days: Sequence[date]) -> str:
    """Words the window of all days that have images from the first of these to the last."""
    text = f"{days[0]}..{days[-1]}"
    return text if (days[-1] - days[0]).days + 1 == len(days) else f"{text}:{len(days)}"


def day_of(value: str) -> date | None:
    """Finds the day in the value of a label.

    Args:
        value: The value: a day, or folders that name one, with more beside it or without.

    Returns:
        The first day in it; None if there is none.
    """
    found = (match for pattern in _DATES for match in pattern.finditer(value))
    for match in sorted(found, key=re.Match.start):
        year, month, day = map(int, match.groups())
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
