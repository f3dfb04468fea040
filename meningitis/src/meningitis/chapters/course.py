"""Chapters on single runs: the course of a season, case-carrier ratios, the order of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from meningitis import analysis, symbolic
from meningitis.analysis.events import weekly_peak
from meningitis.calendar import week_label
from meningitis.chapters.work import KEY, NUMBERS, Work
from meningitis.engine import Ensemble, simulate, weekly_times
from meningitis.model import Model, Parameter
from meningitis.notation import Notation
from meningitis.printed import weeks_text
from meningitis.report import figures

FACTORS = {"transmission_rate": (0.7, 1.0, 1.3), "carrier_odds": (0.5, 1.0, 1.5)}
"""Multiples of a parameter's value that the ratio figures sweep over; a tenth to ten times for the others."""


def course(work: Work) -> None:
    """Weekly incidence and totals of every scenario."""
    rows = []
    for model in work.models:
        curves = {}
        for name in work.scenarios(model):
            scenario, values, days = model.scenario(name), work.values(model, name), work.length(model, name)
            found = {key: float(column[0]) for key, column in analysis.outcomes(model, values, days=days).items()}
            run = simulate(model, parameters=values, times=weekly_times(days, whole=True), days=days)
            N = sum(float(run[state][0, 0]) for state in model.state_names)
            weeks = np.diff(run["cases"][0])
            peak = weekly_peak(weeks)
            rows.append(
                {
                    "model": model.name,
                    "scenario": scenario.name,
                    "season": scenario.season,
                    "weekly_peak_per_100000": found["peak_weekly_incidence"] / N * 1e5,
                    "peak_week": None if peak is None else peak + 1,
                    **_carriage(model, run, N, days),
                    "cases": found["cases"],
                    "deaths": found["deaths"],
                    "ever_infected_%": 100 * found["ever_infected"] / N,
                    **_alert(work, model, name),
                }
            )
            curves[scenario.name] = weeks / N * 1e5
        N = sum(symbolic.initial_state(model, work.values(model)).values())
        who = analysis.who_thresholds(N)
        alert, epidemic = (line / work.reporting_fraction / N * 1e5 for line in (who.alert, who.epidemic))
        work.report.figure(
            f"incidence-{model.name}",
            figures.incidence(curves, alert, epidemic, start=work.start, system=work.weeks),
            f"Weekly incidence of illness in the {model.name} model, with WHO's operational thresholds for a district "
            f"of {N:,.0f} inhabitants{_reported(work)}. Weeks are differences of the cumulative count. Log scale.",
            pd.DataFrame(
                [
                    {"scenario": name, "week": week, "cases_per_100000": value}
                    for name, values in curves.items()
                    for week, value in enumerate(values.tolist(), start=1)
                ]
            ),
        )
    table = pd.DataFrame(rows)
    work.results["course"] = table.to_dict("records")
    heads = {
        "weekly_peak_per_100000": "highest week per 100,000", "peak_week": "week of peak incidence",
        "peak_carriage_%": "highest carriage (%)", "peak_carriage_week": "week of highest carriage",
        "ever_infected_%": "ever infected (%)", "weeks_above_alert": "weeks at or above alert",
        "alert_episodes": "which weeks",
    }  # fmt: skip
    work.report.table(
        "course",
        table,
        f"Totals by scenario, over its whole length. {_seasons(work)}A dash for the week of peak incidence: the last "
        "week is the highest, or nobody falls ill; of carriage: it is highest on the last day; for the weeks at or "
        "above alert: none. Weeks are numbered from 1; those between two episodes do not count.",
        table.rename(columns=heads),
    )
    for sentence in dict.fromkeys(words for model in work.models for words in _unknown(work, model)):
        work.report.text(f"A dash for what is not known: {sentence}.")


def _carriage(model: Model, run: Ensemble, N: float, days: float) -> dict[str, float | None]:
    """The highest prevalence of carriage, % of N, and the week of its day (from 1; None: highest at the end)."""
    pair = symbolic.case_and_carrier(model)
    if pair is None:
        return {}
    people, day = run.peaks[0, run.peak_names.index(pair[1])].tolist()
    week = None if day >= days else int(day // 7) + 1
    return {"peak_carriage_%": 100 * people / N, "peak_carriage_week": week}


def _unknown(work: Work, model: Model) -> list[str]:
    """Why some outcomes are not known, with R0 as the page calls it."""
    values = work.values(model)
    name = NUMBERS[symbolic.reproduction_name(model, values)]
    return [sentence.replace("R0", name) for sentence in analysis.unknown(model, values)]


def _reported(work: Work) -> str:
    """How many suspected cases WHO's thresholds count, where it is not one for each."""
    if work.reporting_fraction == 1:
        return ""
    return f", reached by {work.reporting_fraction:g} suspected cases for each case of the model"


def _seasons(work: Work) -> str:
    if not any(scenario.season for model in work.models for scenario in model.scenarios):
        return ""
    if any(symbolic.timed_rates(model) for model in work.models):
        return "The season is a label. "
    return "The season is a label: the model knows none, and holds its rates beyond the season's end. "


def _has_cases(model: Model) -> bool:
    return any(flow.case for flow in model.flows)


def _alert(work: Work, model: Model, scenario: str | None) -> dict[str, Any]:
    """How many weeks are at the alert threshold or above, and which, one episode after another."""
    if not _has_cases(model):
        return {"weeks_above_alert": None, "alert_episodes": None}
    found = work.events(model, scenario)
    if not found.alert_weeks:
        return {"weeks_above_alert": None, "alert_episodes": None}
    return {"weeks_above_alert": len(found.alert_weeks), "alert_episodes": weeks_text(found.episodes)}


def ratios(work: Work) -> None:
    """Case-carrier ratios, the events along each run, and the claim that a ratio forewarns of an epidemic."""
    kept = {
        (model.name, model.scenario(name).name): work.events(model, name)
        for model in work.models
        if _has_cases(model)
        for name in work.scenarios(model)
    }
    fitting = [model for model in work.models if not symbolic.no_thresholds(model)]
    if not fitting:
        work.report.text(f"There is no ratio of cases to carriers: {symbolic.no_thresholds(work.fullest)}.")
    if kept and work.reporting_fraction != 1:
        work.report.text(f"Alerts and epidemics are WHO's thresholds{_reported(work)} (--reporting-fraction).")
    for model in fitting:
        _figures(work, model, kept[model.name, model.scenario(work.scenario).name])
    if kept:
        _table(work, kept)
    if fitting:
        _claims(work, kept)
    for warning in dict.fromkeys(w for found in kept.values() for w in found.warnings):
        work.report.text(f"Note: {warning}.")


def _figures(work: Work, model: Model, happened: analysis.Events) -> None:
    values, days = work.values(model), work.length(model)
    run = analysis.profiles(model, values, days=days)
    case, carrier = (Notation(model).latex(model.symbols[x]) for x in symbolic.case_and_carrier(model) or ())
    work.report.figure(
        f"ratio-{model.name}",
        figures.ratio_and_events(
            run, f"{case}/{carrier}", [(e.name, e.day) for e in happened.events], start=work.start, system=work.weeks
        ),
        f"Cases to carriers along the {model.scenario(work.scenario).name} scenario, {model.name} model. The early "
        "ratio, the critical ratio and the threshold below which stage I spreads belong to the first curve only. "
        "Vertical lines are the events named above the panel.",
        run.frame(),
    )
    sweeps, parts = {}, []
    for p in model.parameters:
        if p.name in (*KEY, "direct_fraction") and values[p.name] > 0:
            grid = [values[p.name] * x for x in FACTORS.get(p.name, (0.1, 1.0, 10.0))]
            if p.bounds[0] <= min(grid) and max(grid) <= p.bounds[1]:
                part = analysis.profiles(model, values, {p.name: grid}, days=days)
                sweeps[f"${p.symbol}$: {p.meaning}"] = ([_value(p, x) for x in grid], part)
                swept = part.frame().rename(columns={p.name: "value"})
                swept.insert(0, "parameter", p.name)
                parts.append(swept)
    if sweeps:
        work.report.figure(
            f"ratio-sweeps-{model.name}",
            figures.ratio_sweeps(sweeps, f"{case}/{carrier}"),
            f"Cases in stage I per 1,000 carriers over time for swept parameters, {model.name} model; dash-dotted the "
            "critical ratio, dotted the early ratio, in each curve's colour (equal ones cover each other). The file "
            "has the ratio of all ill to carriers (both) too.",
            pd.concat(parts, ignore_index=True),
        )


def _value(p: Parameter, x: float) -> str:
    return f"${p.symbol}$ = {365 * x:.3g}/year" if p.unit == "1/day" else f"${p.symbol}$ = {x:.3g}"


def _table(work: Work, kept: dict[tuple[str, str], analysis.Events]) -> None:
    rows: list[dict[str, Any]] = []
    for (model, scenario), found in kept.items():
        rows += [
            {
                "model": model, "scenario": scenario, "event": e.name, "day": e.day, "date": e.date,
                "value": e.value, "of": e.unit,
            }
            for e in found.events
        ]  # fmt: skip
    table = pd.DataFrame(rows)
    names = list(dict.fromkeys(table["event"]))
    shown: list[dict[str, str | None]] = [
        {"run": f"{model}/{scenario}", **{name: _when(work, found.event(name)) for name in names}}
        for (model, scenario), found in kept.items()
    ]
    work.results["events"] = table.to_dict("records")
    form = "dates with epidemiological weeks" if work.start else "days since the start"
    work.report.table(
        "events",
        table,
        f"When each event happens, {form}; a dash: never. The day of a surveillance event is the end of its week, when "
        "it is known, its date the last of that week; the weekly incidence peak is in the middle of its week.",
        pd.DataFrame(shown),
    )


def _when(work: Work, event: analysis.Event) -> str | None:
    if event.day is None:
        return None
    if event.date is None:
        return f"{event.day:.1f}"
    date = event.date
    week = str(week_label(event.week_day, work.weeks)).partition("-")[2]
    return f"{date.day}\N{NO-BREAK SPACE}{date:%b}\N{NO-BREAK SPACE}{date:%Y} ({week})"


READINGS = {
    "early ratio": "the ratio of the exponential phase",
    "critical ratio": "stage-I prevalence peaks there in the basic model; with direct infection it is passed at once",
    analysis.IMPLICIT: "the true condition for stage I where some fall ill at once; crossed at the prevalence peak",
}
EMPTY = (
    " It marks the end of the first transient, in which the infectives catch up with the carriers: it comes whenever "
    "the infection grows, at about the same day, and tells a small outbreak from an epidemic no better than R > 1 does."
)


def _claims(work: Work, kept: dict[tuple[str, str], analysis.Events]) -> None:
    """The claim for each reading of the ratio, with its lead times and false alarms."""
    parts = []
    for (model, scenario), found in kept.items():
        part = found.outlook()
        part.insert(0, "run", f"{model}/{scenario}")
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    work.results["outlook"] = table.to_dict("records")
    words = {
        "before": "before the epidemic", "after": "after its threshold", "never": "never attained",
        "false alarm": "false alarm", "no alarm": "no epidemic, no alarm",
    }  # fmt: skip
    heads = ("run", "ratio", "attained (day)", "days before alert", "days before epidemic threshold", "as a warning")
    shown = table.assign(verdict=table["verdict"].map(words))
    for name in ("day", "before_alert", "before_epidemic"):
        shown[name] = [None if pd.isna(x) else f"{x:.1f}".replace("-", "−") for x in shown[name]]
    work.report.table(
        "outlook",
        table,
        "Each ratio as a warning: when it is attained, how long before the thresholds of surveillance (negative: after "
        "them), and whether an epidemic follows at all. A ratio that is attained without one is a false alarm.",
        shown.set_axis(list(heads), axis="columns"),
    )
    for ratio, part in table.groupby("ratio", sort=False):
        _claim(work, str(ratio), part)


def _claim(work: Work, ratio: str, part: pd.DataFrame) -> None:
    where = {verdict: list(rows["run"]) for verdict, rows in part.groupby("verdict")}
    yes, no = where.get("before", []), [*where.get("after", []), *where.get("never", [])]
    false = where.get("false alarm", [])
    told = {run: verdict == "before" for run, verdict in zip(part["run"], part["verdict"], strict=True)
            if verdict in ("before", "after", "never")}  # fmt: skip
    work.results.setdefault("claims", {})[f"{ratio} before epidemic threshold"] = told
    if not told:
        return
    verdict = "Holds" if not no else "Does not hold" if not yes else "Mixed"
    sentences = [f"Before the epidemic threshold in {_listed(yes)}; after it or never in {_listed(no)}."]
    leads = part.loc[part["verdict"] == "before", ["before_alert", "before_epidemic"]].agg(["min", "max"])
    if yes:
        (alert0, epidemic0), (alert1, epidemic1) = leads.to_numpy().tolist()
        ahead, days = part.loc[part["verdict"] == "before", "day"], part["day"].dropna()
        sentences.append(
            f"There it is attained between day {ahead.min():.1f} and day {ahead.max():.1f}, {epidemic0:.0f} to "
            f"{epidemic1:.0f} days before the epidemic threshold and {_lead(alert0)} to {_lead(alert1)} the alert "
            "threshold."
        )
        if len(days) > len(ahead):
            sentences.append(f"Over all runs that attain it: day {days.min():.1f} to day {days.max():.1f}.")
    if false:
        sentences.append(f"False alarm, since no epidemic follows, in {_listed(false)}.")
    work.report.claim(
        "A critical case–carrier ratio is attained before cases grow to an epidemic level"
        f" — read as the {ratio} ({READINGS[ratio]}).",
        holds=None if (yes and no) or (yes and false) else bool(yes),
        verdict=f"{verdict}, with false alarms" if yes and false and not no else verdict,
        condition=" ".join(sentences) + (EMPTY if ratio == "early ratio" else ""),
    )


def _lead(days: float) -> str:
    return f"{abs(days):.0f} days {'before' if days >= 0 else 'after'}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"
