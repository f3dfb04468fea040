"""Epidemiological weeks against published calendars."""

import datetime as dt

import pytest

from meningitis.calendar import begins_a_week, date_of, epi_week, parse_date, week_label


@pytest.mark.parametrize(
    ("date", "iso", "cdc"),
    [
        # CDC's MMWR calendar: 2020 has 53 weeks, 2021 begins on 3 January; ISO 2020 has 53, 2021 begins on 4 January.
        ("2021-01-02", (2020, 53), (2020, 53)),
        ("2021-01-03", (2020, 53), (2021, 1)),
        ("2021-01-04", (2021, 1), (2021, 1)),
        ("2014-12-28", (2014, 52), (2014, 53)),
        ("2019-12-29", (2019, 52), (2020, 1)),
    ],
)
def test_weeks_of_both_systems(date: str, iso: tuple[int, int], cdc: tuple[int, int]) -> None:
    day = dt.date.fromisoformat(date)
    assert epi_week(day, "iso") == iso
    assert epi_week(day, "cdc") == cdc


def test_cdc_week_one_has_four_days_in_its_year() -> None:
    for year in range(1990, 2040):
        day = dt.date(year, 1, 4)  # always in week 1: the week holds at least 1 to 4 January
        assert epi_week(day, "cdc") == (year, 1)
        sunday = day - dt.timedelta(days=(day.weekday() + 1) % 7)
        assert epi_week(sunday, "cdc") == (year, 1)
        assert epi_week(sunday - dt.timedelta(days=1), "cdc")[0] == year - 1


def test_dates_and_labels() -> None:
    start = dt.date(2026, 11, 30)  # a Monday
    assert date_of(83.9, start) == (sunday := dt.date(2027, 2, 21))
    assert (week_label(sunday), week_label(sunday, "cdc"), week_label(None)) == ("2027-W07", "2027-W08", None)
    assert [begins_a_week(day, system) for day in (start, sunday) for system in ("iso", "cdc")] == [
        True, False, False, True,
    ]  # fmt: skip


def test_a_bad_date_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="start date is '30/11', but must be a date such as"):
        parse_date("30/11")
