"""What happens along a run, in order, and whether the case-carrier ratio forewarns of an epidemic."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from meningitis.analysis.runs import at_times, crossing_days, filled, length
from meningitis.analysis.surveillance import checked_fraction, who_thresholds
from meningitis.calendar import DAY, date_of
from meningitis.engine import weekly_times
from meningitis.model import Model
from meningitis.symbolic import case_and_carrier, growth, initial_state
from meningitis.symbolic.declared import infected_states, moving_rates
from meningitis.symbolic.growth import numeric_matrices

NEAR = 0.01  # the early ratio is approached without end and counts as reached within 1 % of itself
CLAIM = "a critical ratio is attained before cases grow to an epidemic level"

OVER = "below alert again"
SURVEILLANCE = ("alert threshold", "epidemic threshold", OVER)
"""Known at the end of a week."""
IMPLICIT = "implicit stage-I threshold"
DIRECT = (
    "some of the newly infected fall ill at once, so the critical ratio of the model without direct infection is "
    "passed at the start and forewarns of nothing; the implicit threshold is crossed at the prevalence peak"
)


@dataclass(frozen=True, kw_only=True)
class Event:
    """name, day (days from the start; None: did not happen), date (where a start date is given), value and its unit.

    The day of a surveillance event is the end of its week, when it is known, and its date the last day of that week;
    the weekly peak is in the middle of its week, and none where the last week is the highest or nobody falls ill.
    """

    name: str
    day: float | None
    date: dt.date | None
    value: float | None
    unit: str

    @property
    def week_day(self) -> dt.date | None:
        """The day whose epidemiological week is the event's: its own, or the fourth of the week that it ends."""
        return self.date - 3 * DAY if self.date and self.name in SURVEILLANCE else self.date


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events in order of time (those that did not happen last), warnings, and the claim by ratio.

    attained: the day on which each ratio is; claim: True where that ratio is attained before the epidemic threshold,
    False where after or never, None where the epidemic threshold is never reached, so that the claim says nothing.
    weeks: how many whole weeks the run has; alert_weeks: numbers of those (from 1) at the alert threshold or above.
    """

    events: tuple[Event, ...]
    attained: dict[str, float | None]
    claim: dict[str, bool | None]
    warnings: tuple[str, ...]
    weeks: int
    alert_weeks: tuple[int, ...]

    @property
    def episodes(self) -> tuple[tuple[int, int], ...]:
        """First and last week of each unbroken row of weeks at the alert threshold or above."""
        held = set(self.alert_weeks)
        firsts = [week for week in self.alert_weeks if week - 1 not in held]
        lasts = [week for week in self.alert_weeks if week + 1 not in held]
        return tuple(zip(firsts, lasts, strict=True))

    def event(self, name: str) -> Event:
        """The named event. Raises: KeyError."""
        return {event.name: event for event in self.events}[name]

    def day(self, name: str) -> float | None:
        """Day of the named event. Raises: KeyError."""
        return self.event(name).day

    @property
    def duration(self) -> float | None:
        """Days from the first week at the alert threshold to the last one, with those between two episodes.

        None: no such week, or not over by the end.
        """
        first, over = self.day("alert threshold"), self.day(OVER)
        return None if first is None or over is None else over - first

    def outlook(self) -> pd.DataFrame:
        """What each ratio would have been worth as a warning: ratio, day, before_alert, before_epidemic, verdict.

        The lead times are in days, negative where the ratio comes later and missing where either never comes. A ratio
        that is attained although no epidemic follows is a false alarm.
        """
        alert, epidemic = self.day("alert threshold"), self.day("epidemic threshold")
        rows = []
        for ratio, day in self.attained.items():
            leads = [None if day is None or other is None else other - day for other in (alert, epidemic)]
            if epidemic is None:
                verdict = "no alarm" if day is None else "false alarm"
            else:
                verdict = "never" if day is None else "before" if day < epidemic else "after"
            rows.append((ratio, day, *leads, verdict))
        return pd.DataFrame(rows, columns=["ratio", "day", "before_alert", "before_epidemic", "verdict"])

    def frame(self) -> pd.DataFrame:
        """Table event, day, date, value, unit."""
        return pd.DataFrame([asdict(event) for event in self.events])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, dates in ISO form."""
        rows = [asdict(e) | {"date": e.date.isoformat() if e.date else None} for e in self.events]
        return {"events": rows, "claim": self.claim, "claim_text": CLAIM, "warnings": list(self.warnings)} | {
            "duration_days": self.duration,
            "weeks": self.weeks,
            "weeks_at_alert": len(self.alert_weeks),
            "alert_episodes": [list(episode) for episode in self.episodes],
            "outlook": self.outlook().replace({np.nan: None}).to_dict("records"),
        }


def weekly(model: Model, values: Mapping[str, float], days: float) -> np.ndarray:
    """New cases by whole week (W,), persons, as differences of the cumulative count."""
    times = weekly_times(days, whole=True)
    counts: np.ndarray = np.diff(at_times(model, values, times)[cumulative_cases(model)])
    return counts


def weekly_peak(counts: np.ndarray) -> int | None:
    """Index of the week with the most cases; None where that is the last one, so that more may follow, or all are 0."""
    top = int(np.argmax(counts))
    return top if top + 1 < len(counts) and counts[top] > 0 else None


def cumulative_cases(model: Model) -> str:
    """Name of the cumulative count of cases. Raises: ValueError where no flow is declared a case."""
    if not any(flow.case for flow in model.flows):
        raise ValueError(f"model {model.name!r} declares no flow as a case")
    return "cases"


def events(
    model: Model,
    values: Mapping[str, float],
    days: float | None = None,
    *,
    scenario: str | None = None,
    start: dt.date | None = None,
    reporting_fraction: float = 1.0,
) -> Events:
    """Early ratio, alert, epidemic, weekly peak, critical ratio, prevalence peak and the end of the outbreak, in order.

    The two ratios only where the declaration has a case compartment fed by a carrier compartment, the prevalence peak
    where it has a single case compartment. `reporting_fraction` is how many suspected cases are reported for each of
    the model's: below 1 where some are missed, above it where illness of other causes is suspected too.
    Parameters that `values` leave out, and the days, are those of the scenario (None: the default one).
    Raises: ValueError where it is not above 0 and finite, days are less than a week, or no flow is declared a case.
    """
    values, days = filled(model, values, scenario), length(model, days, scenario)
    checked_fraction(reporting_fraction)
    if days < 7:
        raise ValueError(f"days is {days:g}, but weekly incidence needs at least 7")
    suspected = reporting_fraction * weekly(model, values, days)
    who = who_thresholds(sum(initial_state(model, values).values()))
    alert, epidemic = who.alert_week(suspected), who.epidemic_week(suspected)
    peak = weekly_peak(suspected)
    middle, highest = (None, None) if peak is None else (7.0 * peak + 3.5, float(suspected[peak]))

    def ends(week: int | None) -> float | None:
        return None if week is None else 7.0 * (week + 1)

    listed: list[tuple[str, float | None, float | None, str]] = [
        ("alert threshold", ends(alert), who.alert, "suspected cases per week"),
        ("epidemic threshold", ends(epidemic), who.epidemic, "suspected cases per week"),
        ("weekly incidence peak", middle, highest, "suspected cases per week"),
        (OVER, ends(who.over_week(suspected)), who.alert, "suspected cases per week"),
    ]
    ratios = _ratios(model, values, days)
    listed += [(name, day, level, unit) for name, (day, level, unit) in ratios.items()]
    case = _case(model)
    if case is not None:
        listed.append(("prevalence peak", *_prevalence_peak(model, values, days, case), f"persons in {case}"))

    def date(name: str, day: float | None) -> dt.date | None:
        if start is None or day is None:
            return None
        return date_of(day - 1 if name in SURVEILLANCE else day, start)

    dated = [Event(name=n, day=d, date=date(n, d), value=v, unit=u) for n, d, v, u in listed]
    ordered = sorted(dated, key=lambda e: np.inf if e.day is None else e.day)
    crossed = {name: day for name, (day, _, _) in ratios.items()}
    warnings = [who.warning] if who.warning else []
    if ratios and numeric_matrices(model, values)[0][infected_states(model).index(str(case))].any():
        # Only I1' = 0 then marks the turn: the threshold contains the force of infection itself.
        crossed[IMPLICIT] = next(e.day for e in dated if e.name == "prevalence peak")
        warnings.append(DIRECT)
    epidemic_day = ends(epidemic)
    claim = {
        name: None if epidemic_day is None else day is not None and day < epidemic_day for name, day in crossed.items()
    }
    return Events(
        events=tuple(ordered),
        attained=crossed,
        claim=claim,
        warnings=tuple(warnings),
        weeks=len(suspected),
        alert_weeks=who.alert_weeks(suspected),
    )


def _ratios(
    model: Model, values: Mapping[str, float], days: float
) -> dict[str, tuple[float | None, float | None, str]]:
    """Day, level and unit of the early and of the critical ratio; empty without carriers or where rates move."""
    pair = case_and_carrier(model)
    if pair is None or moving_rates(model):
        return {}
    case, carrier = pair

    def reached(level: float, *, upwards: bool = True) -> float | None:
        along = model.symbols[case] - level * model.symbols[carrier]
        found = crossing_days(model, values, days, along, upwards=upwards)
        return found[0] if found else None

    def neared(level: float) -> float | None:
        begun = initial_state(model, values)
        cases, carriers = begun[case], begun[carrier]
        if level == 0 or not any(begun[name] for name in infected_states(model)):
            return None  # no carrier falls ill, or there are none: a ratio that says nothing
        if carriers > 0 and abs(cases - level * carriers) <= NEAR * level * carriers:
            return 0.0
        below = reached((1 - NEAR) * level) if cases <= level * carriers else None
        above = reached((1 + NEAR) * level, upwards=False) if cases >= level * carriers else None
        # 0/0, where only a later stage begins, leaves zero on the side that its first infections decide.
        return min((day for day in (below, above) if day is not None), default=None)

    speed = growth(model, values)
    early = speed.early_ratio if speed.rate > 0 else None
    _, V = numeric_matrices(model, values)
    i, c = (infected_states(model).index(name) for name in pair)
    critical = float(-V[i, c] / V[i, i]) + 0.0  # no -0
    unit = f"{case}/{carrier}"
    return {
        "early ratio": (None if early is None else neared(early), early, unit),
        "critical ratio": (reached(critical), critical, unit),
    }


def _case(model: Model) -> str | None:
    """The compartment that all flows declared a case enter, where there is a single one."""
    entered = {flow.target for flow in model.flows if flow.case}
    return entered.pop() if len(entered) == 1 else None


def _prevalence_peak(
    model: Model, values: Mapping[str, float], days: float, case: str
) -> tuple[float | None, float | None]:
    """Day and height of the highest prevalence in the case compartment; None where it is at an end of the run."""
    turns = crossing_days(model, values, days, model.rhs()[case], upwards=False)
    times = [0.0, *turns, days]
    held = at_times(model, values, times)[case]
    top = int(np.argmax(held))
    return (None, None) if top in (0, len(turns) + 1) else (times[top], float(held[top]))
