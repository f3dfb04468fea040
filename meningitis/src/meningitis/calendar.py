"""Dates and epidemiological weeks for runs that are given a first day. Knows nothing of models."""

from __future__ import annotations

import datetime as dt
from typing import Literal

WeekSystem = Literal["iso", "cdc"]

DAY = dt.timedelta(days=1)


def parse_date(text: str) -> dt.date:
    """Read `YYYY-MM-DD`. Raises ValueError that names what was given and what is allowed."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"start date is '{text}', but must be a date such as 2026-11-30") from None


def date_of(day: float, start: dt.date) -> dt.date:
    """Calendar date on which `day` (days since the start, 0 being midnight of `start`) falls.

    Raises: ValueError beyond the year 9999, where the calendar ends.
    """
    try:
        return start + dt.timedelta(days=int(day // 1))
    except OverflowError:
        raise ValueError(f"day {day:g} after {start} is beyond {dt.date.max}, where the calendar ends") from None


def epi_week(date: dt.date, system: WeekSystem = "iso") -> tuple[int, int]:
    """Year and epidemiological week of a date.

    iso: weeks begin on Monday (ISO 8601, used by WHO's African region); cdc: on Sunday (MMWR weeks). In both, week 1 is
    the first with at least four of its days in the year.
    """
    if system == "cdc":
        # A week belongs to the year of its fourth day, here a Wednesday, the n-th of which is in week n.
        middle = date + DAY * (3 - date.isoweekday() % 7)
        return middle.year, (middle.timetuple().tm_yday - 1) // 7 + 1
    year, week, _ = date.isocalendar()
    return year, week


def week_label(date: dt.date | None, system: WeekSystem = "iso") -> str | None:
    """The epidemiological week of a date in words, such as `2027-W07`; None where there is no date."""
    return None if date is None else "{}-W{:02d}".format(*epi_week(date, system))


def begins_a_week(date: dt.date, system: WeekSystem = "iso") -> bool:
    """Whether an epidemiological week begins on that day."""
    return date.isoweekday() == (7 if system == "cdc" else 1)
