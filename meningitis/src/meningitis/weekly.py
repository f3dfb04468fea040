"""The weekly course of one run, and the names of its weeks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from meningitis.given import Refused

if TYPE_CHECKING:
    import datetime as dt

    import pandas as pd

    from meningitis.calendar import WeekSystem
    from meningitis.model import Model


def dated(days: Iterable[float | None], start: dt.date | None, weeks: WeekSystem) -> dict[str, list[str | None]]:
    """Columns `date` and `epi_week` for days since the start; none without a first day."""
    from meningitis.calendar import date_of, week_label

    if start is None:
        return {}
    dates = [None if day is None or day != day else date_of(float(day), start) for day in days]
    shown = [week_label(d, weeks) for d in dates]
    return {"date": [None if d is None else d.isoformat() for d in dates], "epi_week": shown}


def weekly_table(
    model: Model,
    values: Mapping[str, float],
    days: float,
    start: dt.date | None,
    weeks: WeekSystem,
    reporting_fraction: float = 1.0,
) -> pd.DataFrame:
    """Weekly course of one run: states at the end of each week and the week's new infections, cases and deaths.

    `days` of the last week are fewer than seven where the run ends within it. A week is named by the epidemiological
    week that its fourth day is in, with which it shares four days at least; one of fewer days has no name. Where
    suspected cases are not as many as cases, a column has them.
    """
    import numpy as np
    import pandas as pd

    from meningitis.engine import simulate, weekly_times
    from meningitis.symbolic.declared import uncounted_text

    times = weekly_times(days)
    run = simulate(model, parameters=dict(values), times=times, days=days)
    if run.status[0] > 0:
        raise Refused(f"the run failed: {run.failures[0]}")
    for note in run.failures:  # solved, but not by the kernel
        print(f"meningitis: {note}", file=sys.stderr)
    table: dict[str, Any] = {"week": np.arange(1, len(times)), "day": times[1:], "days": np.diff(times)}
    if table["days"][-1] < 7:
        print(
            f"meningitis: the last week has {table['days'][-1]:g} of 7 days, so its counts are lower", file=sys.stderr
        )
    if start is not None:
        told_of_weeks(start, weeks)
        table["begins"] = dated(times[:-1], start, weeks)["date"]
        fourth = np.where(table["days"] > 3, times[:-1] + 3, np.nan)
        table["epi_week"] = dated(fourth, start, weeks)["epi_week"]
    table |= {name: run.states[0, 1:, k] for k, name in enumerate(run.state_names)}
    table |= {f"weekly_{name}": np.diff(run.cumulative[0, :, k]) for k, name in enumerate(run.cumulative_names)}
    if model.uncounted:
        print(f"meningitis: {uncounted_text(model)}", file=sys.stderr)
        table |= {f"weekly_{name}": np.full(len(times) - 1, np.nan) for name in model.uncounted}
    if reporting_fraction != 1:
        table["weekly_suspected_cases"] = reporting_fraction * table["weekly_cases"]
    table["weekly_cases_per_100000"] = 1e5 * table["weekly_cases"] / run.states[0, 0].sum()
    return pd.DataFrame(table)


def told_of_weeks(start: dt.date, weeks: WeekSystem) -> None:
    """Say where the weeks of a run, which begin with its first day, are none of the calendar's."""
    from meningitis.calendar import begins_a_week

    if not begins_a_week(start, weeks):
        first = "Monday" if weeks == "iso" else "Sunday"
        words = f"{start.isoformat()} is no {first}, on which {weeks.upper()} weeks begin"
        print(f"meningitis: {words}: each week of the run is named by that of its fourth day", file=sys.stderr)
