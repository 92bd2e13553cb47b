"""Windows of days: which days a name means, and which names of folders name a day."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalogue import VersionName
from pipeline.catalogue.day_windows import DayWindow, day_of
from pipeline.errors import UsageError

FIRST = date(2026, 10, 28)
DAYS = st.sets(st.integers(0, 40), min_size=1).map(
    lambda numbers: [FIRST + timedelta(number) for number in sorted(numbers)]
)


def window(text: str) -> DayWindow:
    found = VersionName.parse(f"cams@{text}").which
    assert isinstance(found, DayWindow)
    return found


@given(DAYS, st.integers(1, 12))
def test_days_that_are_counted_back_end_with_the_newest(there: list[date], length: int) -> None:
    """With a `d`, each of the calendar must be there; without it, only days that are count."""
    days = [there[-1] - timedelta(back) for back in range(length)][::-1]
    if set(days) <= set(there):
        assert window(f"last:{length}d").days_of(there) == days
    else:
        with pytest.raises(ValueError, match="there are no images of 2026-1"):
            window(f"last:{length}d").days_of(there)
    if len(there) < length:
        with pytest.raises(ValueError, match=f"only {len(there)} of {length} days have images"):
            window(f"last:{length}").days_of(there)
    else:
        assert window(f"last:{length}").days_of(there) == there[-length:]


@given(DAYS, st.integers(0, 40), st.integers(0, 6))
def test_a_range_has_both_its_ends_and_all_between(there: list[date], at: int, more: int) -> None:
    first = FIRST + timedelta(at)
    days = [first + timedelta(number) for number in range(more + 1)]
    asked = window(f"{days[0]}..{days[-1]}")
    if set(days) <= set(there):
        assert asked.days_of(there) == days
        return
    with pytest.raises(ValueError, match="there are no images of") as caught:
        asked.days_of(there)
    assert ("no day of it has images" in str(caught.value)) == (not set(days) & set(there))


@given(DAYS, st.integers(0, 40), st.integers(0, 6), st.integers(1, 7))
def test_a_range_may_state_how_many_of_its_days_have_images(
    there: list[date], at: int, more: int, count: int
) -> None:
    first, last = FIRST + timedelta(at), FIRST + timedelta(at + more)
    inside = [day for day in there if first <= day <= last]
    asked = window(f"{first}..{last}:{count}")
    if len(inside) == count:
        assert asked.days_of(there) == inside
        return
    with pytest.raises(ValueError, match=f"{len(inside)} of its days have images, not {count}"):
        asked.days_of(there)
    if inside:
        assert window(asked.with_gaps(there)).days_of(there) == inside
    else:
        assert asked.with_gaps(there) == ""


@pytest.mark.parametrize("text", ["last:800000d", "0001-01-01..9999-12-31"])
def test_a_window_may_be_as_long_as_the_calendar(text: str) -> None:
    there = [date(1, 1, 1) + timedelta(back) for back in range(0, 10**5, 2)]  # takes no minutes
    asked = window(text)
    with pytest.raises(ValueError, match=r"^there are no images of 0001-01-02, .* more$"):
        asked.days_of(there)
    assert window(asked.with_gaps(there)).days_of(there) == there
    assert window("last:800000d").with_earlier(there) == []


@given(DAYS, st.integers(1, 9), st.booleans())
def test_windows_end_to_end_have_every_day_at_most_once(
    there: list[date], length: int, calendar: bool
) -> None:
    found = window(f"last:{length}{'d' * calendar}").with_earlier(there)
    assert [window(of.text) for of in found] == found
    days: list[date] = []
    for of in found:
        assert of.first is not None
        assert of.last is not None
        assert there[0] <= of.first <= of.last <= there[-1]
        try:
            days += of.days_of(there)
        except ValueError:
            assert calendar
            if rest := of.with_gaps(there):
                days += window(rest).days_of(there)
    assert days == there[len(there) - len(days) :]
    if calendar:
        whole = (there[-1] - there[0]).days + 1
        assert len(found) == whole // length
    else:
        assert len(found) == len(there) // length


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("last:0d", "a window has at least 1 day: @last:1d is the newest day"),
        ("last:-1d", "a window has at least 1 day"),
        (
            "last:7days",
            "'7days' is no number of days; write 1 to .* such as @last:7d, or with",
        ),
        ("last:28w", "'28w' is no number of days; .* @last:28d, or without, @last:28, to count"),
        ("last:2000000d", "'2000000d' is no number of days; .*such as @last:7d"),
        ("last:", "'' is no number of days; .*such as @last:7d"),
        ("last:-", "'-' is no number of days; .*such as @last:7d"),
        ("2026-11-07..2026-11-01", "ends before it begins; .* first: @2026-11-01..2026-11-07$"),
        ("2026-11-07..2026-11-31", "2026-11-31 is no day of the calendar"),
        ("2026-11..2026-12", r"after the @ stands .*a window of days \(@last:7d"),
        ("2026-11-01..2026-11-07:0", r"after the @ stands .*a window of days \(@last:7d"),
    ],
)
def test_what_is_no_window_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"^cams@{text}: .*{why}"):
        VersionName.parse(f"cams@{text}")


@pytest.mark.parametrize("text", ["last", "last-7d", "2026-11-01", "2026-11", "7", "-7"])
def test_other_names_of_versions_mean_what_they_meant(text: str) -> None:
    assert not VersionName.parse(f"cams@{text}").is_window


@pytest.mark.parametrize(
    ("value", "day"),
    [
        ("day=2026-11-24", date(2026, 11, 24)),
        ("2026-11-24", date(2026, 11, 24)),
        ("2026-11-24T03:10", date(2026, 11, 24)),
        ("20261124", date(2026, 11, 24)),
        ("night/dt=20261124/hour=03", date(2026, 11, 24)),
        ("2026/11/24", date(2026, 11, 24)),
        ("year=2026/month=1/day=5", date(2026, 1, 5)),
        ("cam-99999999/2026-11-24", date(2026, 11, 24)),
        ("20261124/export=2026-12-01", date(2026, 11, 24)),
        ("2026-11-24/export=20261201", date(2026, 11, 24)),
        ("2026-13-24", None),
        ("120261124", None),
        ("2026-11", None),
        ("rain", None),
    ],
)
def test_a_day_is_found_in_the_names_of_folders(value: str, day: date | None) -> None:
    assert day_of(value) == day


def test_a_window_follows_its_dataset() -> None:
    assert VersionName.parse("cams@last:7d").follows
    assert VersionName.parse("cams@2026-11-01..2026-11-07").follows
    assert not VersionName.parse("cams@7").follows
