"""What each verb of the command line does: read the values, call the library, print a table or plain data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from meningitis.answers import called_as, put, resumable, sampled_text, settled_text
from meningitis.given import Refused, pairs
from meningitis.options import SAMPLING, calendar_of, days_of, given_of, model_of, sampling_of, sweep_of, values_of
from meningitis.progress import estimated
from meningitis.weekly import dated, told_of_weeks, weekly_table

if TYPE_CHECKING:
    import datetime as dt

    from meningitis.calendar import WeekSystem
    from meningitis.model import Model

SWEPT = {"carrier_odds": (0.5, 0.75, 1.0, 1.25, 1.5), "direct_fraction": (0.0, 0.01, 0.1, 0.5, 1.0)}
"""What final-size sweeps over, within its bounds, where a model has it, no value is given and no --sweep."""


def run(arguments: argparse.Namespace) -> None:
    """Do the verb of `arguments`. Raises Refused with one sentence for input that cannot be used."""
    from meningitis.model import ModelError

    try:
        WORK[arguments.verb](arguments)
    except ModelError as error:
        raise Refused("; ".join(str(problem) for problem in error.problems)) from error
    except BrokenPipeError:
        raise
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # NotImplementedError and RecursionError would be mistakes of ours
            raise
        raise Refused(" ".join(str(error).split())) from error
    except (ValueError, OSError) as error:
        raise Refused(" ".join(str(error).split())) from error


def _models(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from meningitis import models

    rows = [
        {"model": name, "scenario": s.name, "title": s.title, "days": s.days, "gives": s.gives}
        for name in models.names()
        for s in models.get(name).scenarios
    ]
    put(arguments, pd.DataFrame(rows))


def _show(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from meningitis.printed import equations_text

    model = model_of(arguments)
    values = values_of(model, arguments)
    words = f"{model.name}: {model.title}\nhash {model.hash[:16]}\n\n{equations_text(model)}"
    rows = [
        {
            "symbol": p.symbol,
            "parameter": p.name,
            "value": values[p.name],
            "unit": p.unit,
            "bounds": f"{p.bounds[0]:g} to {p.bounds[1]:g}",
            "meaning": p.meaning,
            "source": p.source,
        }
        for p in model.parameters
    ]
    data = {**model.to_dict(), "hash": model.hash, "values": values}
    put(arguments, pd.DataFrame(rows), data, words, model)


def _simulate(arguments: argparse.Namespace) -> None:
    from meningitis import analysis

    model = model_of(arguments)
    values, (start, weeks) = values_of(model, arguments), calendar_of(arguments)
    fraction = analysis.checked_fraction(arguments.reporting_fraction)
    if arguments.bands is not None:
        _bands(arguments, model, values, start, weeks)
        return
    put(arguments, weekly_table(model, values, days_of(model, arguments), start, weeks, fraction), model=model)


def _bands(
    arguments: argparse.Namespace, model: Model, values: dict[str, float], start: dt.date | None, weeks: WeekSystem
) -> None:
    """Percentiles of the weekly course over draws of all that is sampled and not given."""
    from meningitis import analysis

    if arguments.reporting_fraction != 1:
        raise Refused("--reporting-fraction would change nothing with --bands, which count cases of the model")
    if arguments.bands < 2:
        raise Refused(f"--bands is {arguments.bands}, but must be at least 2 draws")
    pinned = tuple(given_of(arguments))
    print(f"meningitis: {sampled_text(model, values, pinned)}", file=sys.stderr)
    band = analysis.bands(
        model, n=arguments.bands, seed=SAMPLING["seed"], values=values, days=days_of(model, arguments), pinned=pinned
    )
    frame = band.frame()
    for name, column in dated(frame["day"], start, weeks).items():
        frame.insert(list(frame.columns).index("value"), name, column)
    put(arguments, frame, band.to_dict(), f"percentiles over {band.n:,} draws, persons; weekly counts end on the day")


def _r0(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from meningitis import symbolic
    from meningitis.printed import matrices_text

    model = model_of(arguments)
    values = values_of(model, arguments)
    speed, history = symbolic.growth(model, values), symbolic.natural_history(model, values)
    control = symbolic.control(model, values, efficacy=arguments.efficacy)
    name, everyone = symbolic.reproduction_name(model, values), control.r0_susceptible
    partly = control.susceptible is not None and control.susceptible < 1
    rows: list[tuple[str, float | None, str]] = [
        (name if name == "R0" else f"{name}, control reproduction number", control.r0, "1"),
        *([("R0 with everyone susceptible", everyone, "1")] if everyone is not None else []),
        ("R at the start", speed.reproduction, "1"),
        ("growth rate", speed.rate, "1/day"),
        ("doubling time" if speed.rate > 0 else "halving time", abs(speed.doubling_time), "days"),
        ("generation time", speed.generation_time, "days"),
        *((f"mean stay in {state}", days, "days") for state, days in history.mean_stay.items()),
        ("cases per infection", history.cases_per_infection, "1"),
        ("deaths per case (case fatality)", history.deaths_per_case, "1"),
        ("early case-carrier ratio", speed.early_ratio if speed.rate > 0 else None, "1"),
        *([("susceptible share s without infection", control.susceptible, "1")] if partly else []),
        (f"immune share needed, {f'1 - s/{name}' if partly else '1 - 1/R0'}", control.herd_immunity, "1"),
        (f"coverage needed at efficacy {arguments.efficacy:g}, nobody immune yet", control.coverage, "1"),
        (f"coverage needed at efficacy {arguments.efficacy:g}, immune as at the start", control.coverage_at_start, "1"),
    ]
    rows += [
        (f"{parameter} at which {name} = 1", value, model.parameter(parameter).unit)
        for parameter, value in control.critical.items()
        if value is not None
    ]
    frame = pd.DataFrame(rows, columns=["quantity", "value", "unit"])
    matrices = symbolic.next_generation(model, zeros=symbolic.zeros_at(model, values))
    data = {"matrices": matrices.to_dict(), "growth": speed.to_dict(), "natural_history": history.to_dict()}
    data["control"] = control.to_dict()
    words = "" if arguments.json or arguments.csv else f"{matrices_text(model, values)}\n\n{control.reason}".strip()
    put(arguments, frame, {**data, "R0": control.r0, "values": values}, words)


def _thresholds(arguments: argparse.Namespace) -> None:
    from meningitis import analysis, symbolic
    from meningitis.calendar import week_label
    from meningitis.printed import alert_text, outlook_text, thresholds_text

    model = model_of(arguments)
    values, (start, weeks) = values_of(model, arguments), calendar_of(arguments)
    happened = analysis.events(
        model,
        values,
        days_of(model, arguments),
        start=start,
        reporting_fraction=arguments.reporting_fraction,
    )
    for warning in happened.warnings:
        print(f"meningitis: {warning}", file=sys.stderr)
    moving = symbolic.moving_rates(model)
    found = None if symbolic.no_thresholds(model) else symbolic.thresholds(model).to_dict()
    frame, told = happened.frame(), happened.to_dict()
    if start is not None:
        told_of_weeks(start, weeks)
        frame.insert(3, "epi_week", [week_label(event.week_day, weeks) for event in happened.events])
        told["events"] = [row | {"epi_week": week} for row, week in zip(told["events"], frame["epi_week"], strict=True)]
    in_words, text = not (arguments.json or arguments.csv), ""
    if in_words and moving:
        text = f"no threshold in symbols: {', '.join(moving)} depends on time"
    elif in_words:
        text = thresholds_text(model, values)
    put(arguments, frame, {"thresholds": found, "events": told, "values": values}, text, model)
    if in_words:
        print("".join(f"\n{sentence}" for sentence in (alert_text(happened), *outlook_text(happened))))


def _sensitivity(arguments: argparse.Namespace) -> None:
    import numpy as np

    from meningitis import analysis, symbolic
    from meningitis.analysis.prcc import fewest_rows

    model = model_of(arguments)
    values = values_of(model, arguments)
    if not arguments.worldwide:
        options = {
            "days": None if arguments.outcomes else arguments.days,
            "seed": arguments.seed,
            "sobol-n": arguments.sobol_n,
            "lhs-n": arguments.lhs_n,
            "checkpoint": arguments.checkpoint,
        }
        ignored = [f"--{name}" for name, value in options.items() if value is not None]
        if ignored:
            raise Refused(
                f"{' and '.join(ignored)} would change nothing without --global: the index of R0 is a formula"
            )
        if arguments.outcomes:
            _local(arguments, model, values)
            return
        words = f"normalised indices of {symbolic.reproduction_name(model, values)}"
        put(arguments, symbolic.elasticities(model).frame(values), None, words, model)
        return
    pinned, days = given_of(arguments), days_of(model, arguments)
    names, sizes = analysis.sampled(model, pinned), sampling_of(arguments, fewest_rows(model, pinned))
    if arguments.scenario is not None:
        plain = model.values(None, pinned)
        if all(values[n] == plain[n] for n in plain if n not in names) and days == (
            arguments.days or model.scenario(None).days
        ):
            raise Refused(
                f"--scenario {arguments.scenario} would change nothing with --global, which samples all that the "
                "scenario sets: pin values with --set or --params"
            )
    print(f"meningitis: {sampled_text(model, values, pinned)}", file=sys.stderr)
    middle = {name: float(model.parameter(name).distribution.ppf(np.array(0.5))) for name in names}
    called = called_as(arguments, symbolic.reproduction_name(model, {**values, **middle}))
    for sentence in analysis.unknown(model, {**values, **middle}):
        print(f"meningitis: {sentence.replace('R0', called)}", file=sys.stderr)
    folder = Path(arguments.checkpoint) if arguments.checkpoint else None
    with resumable(folder):
        ranks, shares, drawn = analysis.global_sensitivity(
            model,
            values,
            days,
            lhs=sizes["lhs_n"],
            sobol=sizes["sobol_n"],
            seed=sizes["seed"],
            pinned=tuple(pinned),
            progress=estimated(lambda words: print(f"meningitis: {words}", file=sys.stderr), "outbreaks"),
            checkpoint=folder,
        )
    words = (
        f"outcomes of {days:g} days; cases still rise at the end in {drawn.growing:.1%} of the draws; the rank "
        f"correlations of peak_week are over the {drawn.peaked:.1%} that peak in neither the first nor the last week"
    )
    print(f"meningitis: {words}", file=sys.stderr)
    both = ranks.merge(shares, on=["outcome", "parameter", "symbol"], how="outer", suffixes=("_prcc", "_sobol"))
    put(arguments, both.assign(outcome=both["outcome"].replace({"R0": called})), None, settled_text(called), model)


def _local(arguments: argparse.Namespace, model: Model, values: dict[str, float]) -> None:
    """Normalised indices of every outcome at one set of values."""
    from meningitis import analysis, symbolic

    called = called_as(arguments, symbolic.reproduction_name(model, values))
    for sentence in analysis.unknown(model, values):
        print(f"meningitis: {sentence.replace('R0', called)}", file=sys.stderr)
    frame = analysis.local_sensitivity(model, values, days=days_of(model, arguments)).frame()
    frame.insert(2, "symbol", frame["parameter"].map({p.name: p.symbol for p in model.parameters}))
    frame["outcome"] = frame["outcome"].replace({"R0": called})
    put(arguments, frame, None, "normalised indices: % change of an outcome for 1 % of the parameter", model)


def _final_size(arguments: argparse.Namespace) -> None:
    import numpy as np

    from meningitis import analysis
    from meningitis.analysis.runs import within

    model = model_of(arguments)
    sweep = sweep_of(model, arguments)
    if not sweep:
        free = [name for name in SWEPT if name in model.parameter_names and name not in given_of(arguments)]
        sweep = {name: within(model, name, SWEPT[name]) for name in free}
    found = analysis.final_sizes(model, values_of(model, arguments), sweep, days=days_of(model, arguments))
    if found.note:
        print(f"meningitis: {found.note}", file=sys.stderr)
    words = f"share of the population ever infected: by integrator over {found.days:g} days"
    words += ", and exactly at the end" if np.isfinite(found.exact).any() else ""
    put(arguments, found.frame(), found.to_dict(), words, model)


def _profile(arguments: argparse.Namespace) -> None:
    from meningitis import analysis

    model = model_of(arguments)
    sweep, values = sweep_of(model, arguments), values_of(model, arguments)
    start, weeks = calendar_of(arguments)
    found = analysis.profiles(model, values, sweep, days=days_of(model, arguments), step=arguments.step)
    frame, data = found.frame(), found.to_dict()
    for name, column in dated(frame["day"], start, weeks).items():
        frame.insert(list(frame.columns).index("stage1"), name, column)
        data[name] = column[: found.times.size]
    put(arguments, frame, data, model=model)


def _compare(arguments: argparse.Namespace) -> None:
    from meningitis import analysis, symbolic
    from meningitis.frames import OUTCOME_UNITS

    model = model_of(arguments)
    first = values_of(model, arguments)
    scenario = arguments.with_scenario or arguments.scenario
    changed = {**given_of(arguments), **pairs(arguments.other, "--with")}
    second = model.values(scenario, changed)
    if first == second:
        raise Refused("compare needs a second set that differs: give --with NAME=VALUE or --with-scenario NAME")
    found = analysis.compare(model, first, second, days=days_of(model, arguments))
    frame = found.frame()
    frame.insert(1, "unit", frame["outcome"].map(OUTCOME_UNITS))
    names = {symbolic.reproduction_name(model, values) for values in (first, second)}
    called = called_as(arguments, "R0" if names == {"R0"} else "R_c")
    for sentence in found.unknown:
        print(f"meningitis: {sentence.replace('R0', called)}", file=sys.stderr)
    for name in found.unfinished:
        words = f"infection is not over in {name} after {found.days:g} days: what is averted by then may be postponed"
        print(f"meningitis: {words}", file=sys.stderr)
    frame["outcome"] = frame["outcome"].replace({"R0": called})
    told = f"{settled_text(called)}; R_at_start that of the people as the run begins" if called == "R_c" else ""
    put(arguments, frame, found.to_dict(), told)


def _study(arguments: argparse.Namespace) -> None:
    from meningitis.models import BASIC, GENERALISED
    from meningitis.study import FEWEST, study

    chosen = (BASIC, GENERALISED) if arguments.model is None else (model_of(arguments),)
    start, weeks = calendar_of(arguments)
    if start is not None:
        told_of_weeks(start, weeks)
    folder = Path(arguments.checkpoint) if arguments.checkpoint else None
    with resumable(folder):
        page = study(
            Path(arguments.out),
            models=chosen,
            scenario=arguments.scenario,
            overrides=given_of(arguments),
            days=None if arguments.days is None else days_of(chosen[-1], arguments),
            start=start,
            weeks=weeks,
            reporting_fraction=arguments.reporting_fraction,
            **sampling_of(arguments, FEWEST),
            progress=lambda words: print(words, file=sys.stderr),
            checkpoint=folder,
        )
    print(page)


def _benchmark(arguments: argparse.Namespace) -> None:
    import importlib
    import json

    try:
        peers = importlib.import_module("meningitis.benchmark")
    except ModuleNotFoundError as error:
        raise Refused(f"the benchmark needs {error.name}, which is not installed") from error
    # With --json the table goes to standard error, so that standard output is JSON alone.
    figures = peers.run(
        quick=arguments.quick,
        path=arguments.out,
        seed=arguments.seed,
        say=lambda line: print(line, file=sys.stderr if arguments.json else sys.stdout),
    )
    if arguments.json:
        print(json.dumps(figures, indent=2))


WORK = {
    "models": _models,
    "show": _show,
    "simulate": _simulate,
    "r0": _r0,
    "thresholds": _thresholds,
    "sensitivity": _sensitivity,
    "final-size": _final_size,
    "profile": _profile,
    "compare": _compare,
    "study": _study,
    "benchmark": _benchmark,
}
