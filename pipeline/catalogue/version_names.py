"""The names of versions: a dataset's name, `@`, and which of its versions is meant.

>>> VersionName.parse("photos/night@-1")
VersionName(dataset='photos/night', which=-1)
>>> VersionName.parse("photos@release").which, VersionName.parse("photos").which
('release', None)

No dataset's name has an `@`, so nothing else is ever named so.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Self

from pipeline.catalogue.day_windows import DayWindow, WrongWindowError
from pipeline.catalogue.names import VERSION_MARK, check_name
from pipeline.errors import UsageError, shortened

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_MONTH = re.compile(r"\d{4}-\d{2}")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[T ].+")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

KINDS = (
    "a commit's number (@7), how many versions back (@-1), a month, day or ISO time in UTC "
    "(@2026-10), a tag, which begins with a letter, or a window of days (@last:7d, "
    "@2026-11-01..2026-11-07)"
)
"""What may stand after the `@`, as errors say it."""


@dataclass(frozen=True)
class VersionName:
    """A dataset's name, and which version of it is meant.

    Attributes:
        dataset: The name of the dataset, or of a part of one.
        which: A number from 0 up is that of a commit: the version that the dataset had then. A
            number below 0 counts versions back from the current one. A time means the version that
            the dataset had then, and text is a tag. None means the current version. A window
            means the sum of the current version's shards of some days.
    """

    dataset: str
    which: int | datetime | str | DayWindow | None = None

    @property
    def follows(self) -> bool:
        """Whether the name means another version once a new one is committed."""
        back = isinstance(self.which, int) and self.which < 0
        return self.which is None or back or self.is_window

    @property
    def is_window(self) -> bool:
        """Whether the name means a window of days."""
        return isinstance(self.which, DayWindow)

    @classmethod
    def parse(cls, name: str) -> Self:
        """Reads the name of a version.

        Args:
            name: NAME, NAME@7, NAME@-1, NAME@2026-10, NAME@2026-10-05, NAME@2026-10-05T12:00,
                NAME@TAG, NAME@last:7d or NAME@2026-11-01..2026-11-07.

        Returns:
            What it means. Whether there is such a version is not looked up.

        Raises:
            UsageError: If what follows the `@` is none of these.
        """
        dataset, mark, text = name.partition(VERSION_MARK)
        if not mark:
            return cls(dataset)
        if _NUMBER.fullmatch(text):
            return cls(dataset, int(text))
        if _TAG.fullmatch(text):
            return cls(dataset, text)
        try:
            window = DayWindow.parse(text)
            return cls(dataset, window or last_moment(text))
        except WrongWindowError as error:
            raise UsageError(f"{name}: {error}") from error
        except ValueError as error:
            raise UsageError(
                f"{shortened(name)[1:-1]}: after the @ stands {shortened(text)}; give {KINDS}"
            ) from error


def dataset_of(name: str) -> str:
    """Returns the dataset that a name of a version is of.

    >>> dataset_of("photos@-1"), dataset_of("photos")
    ('photos', 'photos')
    """
    return name.partition(VERSION_MARK)[0]


def name_of_version(dataset: str, which: int | str) -> str:
    """Returns the name of a version of a dataset.

    >>> name_of_version("photos", -1), name_of_version("photos", "@release")
    ('photos@-1', 'photos@release')

    Args:
        dataset: The dataset, or a part of one.
        which: What stands after the `@`, as `VersionName.parse` takes it. It may begin with an `@`.

    Returns:
        The name.
    """
    return f"{dataset}{VERSION_MARK}{str(which).removeprefix(VERSION_MARK)}"


def require_no_window(name: str) -> str:
    """Checks that a name means a version that a commit holds, and no window of days.

    Args:
        name: The name of a dataset or of a version.

    Returns:
        The name.

    Raises:
        UsageError: If it means a window, or what follows the `@` names no version.
    """
    named = VersionName.parse(name)
    if not named.is_window:
        return name
    raise UsageError(
        f"{name} is a window of days, which is added up when it is named and has no history; name "
        f"{named.dataset} or a version of it"
    )


def check_version_name(name: str) -> str:
    """Checks a name as it may stand where a version is chosen.

    Args:
        name: The name of a dataset or of a version.

    Returns:
        The name.

    Raises:
        UsageError: If the dataset's name is not allowed, or what follows the `@` names no version.
    """
    check_name(VersionName.parse(name).dataset)
    return name


def check_tag(tag: str) -> str:
    """Checks a tag: a letter, then letters, digits, `.`, `_` and `-`.

    Args:
        tag: The tag.

    Returns:
        The tag.

    Raises:
        UsageError: If it has another character, or could be taken for a number or a time.
    """
    if _TAG.fullmatch(tag):
        return tag
    raise UsageError(
        f"the tag is {tag!r}; begin with a letter, so that it is no number and no time, and use "
        "letters, digits, '.', '_' and '-'"
    )


def is_commit_number(text: str) -> bool:
    """Tells whether a text is a number that a commit may have.

    >>> is_commit_number("12"), is_commit_number("-1"), is_commit_number("9" * 5000)
    (True, False, False)

    Args:
        text: The text.

    Returns:
        Whether it is one. Python makes no number of thousands of digits.
    """
    return bool(_NUMBER.fullmatch(text)) and not text.startswith("-")


def last_moment(text: str) -> datetime:
    """Finds the last moment of a month or a day, or reads a time.

    >>> str(last_moment("2026-02")), str(last_moment("2026-10-05T12:00"))
    ('2026-02-28 23:59:59.999999+00:00', '2026-10-05 12:00:00+00:00')

    Args:
        text: A month or a day in UTC, or an ISO time, in UTC unless it says otherwise.

    Returns:
        The moment.

    Raises:
        ValueError: If it is none of these.
    """
    if _MONTH.fullmatch(text):
        first = datetime.strptime(text, "%Y-%m").date()
        last = first.replace(day=monthrange(first.year, first.month)[1])
        return datetime.combine(last, time.max, UTC)
    if _DAY.fullmatch(text):
        return datetime.combine(datetime.strptime(text, "%Y-%m-%d").date(), time.max, UTC)
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is no month, day or ISO time")
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
