"""What each verb of the command line does: read the values, call the library, print a table or plain data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meningitis.cli import Refused, pairs, table_of

if TYPE_CHECKING:
    import datetime as dt

    import pandas as pd

    from meningitis.model import Model

HORIZON = 36_500.0  # days: no run needs more than a century


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


def model_of(arguments: argparse.Namespace) -> Model:
    """The model named or declared in the file that --model gives."""
    from meningitis import models
    from meningitis.model import Model

    name: str = arguments.model or "generalised"
    if name in models.names():
        return models.get(name)
    if Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        if not Path(name).is_file():
            raise Refused(f"--model {name}: there is no such file")
        return Model.from_yaml(Path(name))
    return models.get(name)


def values_of(model: Model, arguments: argparse.Namespace) -> dict[str, float]:
    """Every parameter's value: defaults, scenario, --params, then --set."""
    return model.values(arguments.scenario, given_of(arguments))


def given_of(arguments: argparse.Namespace) -> dict[str, float | str]:
    """What --params and --set give, the latter on top."""
    given: dict[str, float | str] = table_of(arguments.params) if arguments.params else {}
    return {**given, **pairs(arguments.set, "--set")}


def days_of(model: Model, arguments: argparse.Namespace) -> float:
    """Length of the run in days: --days or the scenario's."""
    if arguments.days is None:
        return float(model.scenario(arguments.scenario).days)
    if not 7 <= arguments.days <= HORIZON:
        raise Refused(f"--days is {arguments.days:g}, but must be from 7 to {HORIZON:g}")
    return float(arguments.days)


def start_of(arguments: argparse.Namespace) -> dt.date | None:
    """The first day, where one is given."""
    from meningitis.calendar import parse_date

    return parse_date(arguments.start) if arguments.start else None


def put(
    arguments: argparse.Namespace, frame: pd.DataFrame, data: Any = None, words: str = "", model: Model | None = None
) -> None:
    """Print as JSON (`data`, or the table's rows), as CSV (with the model's units), or as words and a table."""
    from meningitis.report import to_json

    if arguments.json:
        sys.stdout.write(to_json(frame.to_dict("records") if data is None else data))
    elif arguments.csv:
        from meningitis.frames import with_units

        sys.stdout.write((frame if model is None else with_units(frame, model)).to_csv(index=False))
    else:
        from meningitis.printed import table_text

        print("\n\n".join(part for part in (words, table_text(frame, model) if len(frame) else "") if part))


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


def weekly_table(model: Model, values: Mapping[str, float], days: float, start: dt.date | None, weeks: str) -> Any:
    """Weekly course of one run: states at the end of each week and the week's new infections, cases and deaths."""
    import numpy as np
    import pandas as pd

    from meningitis.calendar import date_of, epi_week
    from meningitis.engine import simulate

    times = np.arange(0.0, days + 1e-9, 7.0)
    run = simulate(model, parameters=dict(values), times=times)
    if run.status[0] > 0:
        raise Refused(f"the run failed: {run.failures[0]}")
    for note in run.failures:  # solved, but not by the kernel
        print(f"meningitis: {note}", file=sys.stderr)
    table: dict[str, Any] = {"week": np.arange(1, len(times)), "day": times[1:]}
    if start is not None:
        begins = [date_of(float(t), start) for t in times[:-1]]
        table["begins"] = [d.isoformat() for d in begins]
        table["epi_week"] = ["{}-W{:02d}".format(*epi_week(d, "cdc" if weeks == "cdc" else "iso")) for d in begins]
    table |= {name: run.states[0, 1:, k] for k, name in enumerate(run.state_names)}
    table |= {f"weekly_{name}": np.diff(run.cumulative[0, :, k]) for k, name in enumerate(run.cumulative_names)}
    return pd.DataFrame(table)


def _simulate(arguments: argparse.Namespace) -> None:
    model = model_of(arguments)
    values, start = values_of(model, arguments), start_of(arguments)
    put(arguments, weekly_table(model, values, days_of(model, arguments), start, arguments.weeks), model=model)


def _r0(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from meningitis import symbolic
    from meningitis.printed import matrices_text

    model = model_of(arguments)
    values = values_of(model, arguments)
    speed = symbolic.growth(model, values)
    control = symbolic.control(model, values, efficacy=arguments.efficacy)
    rows: list[tuple[str, float | None, str]] = [
        ("R0", control.r0, "1"),
        ("R at the start", speed.reproduction, "1"),
        ("growth rate", speed.rate, "1/day"),
        ("doubling time", speed.doubling_time, "days"),
        ("generation time", speed.generation_time, "days"),
        ("early case-carrier ratio", speed.early_ratio, "1"),
        ("immune share needed, 1 - 1/R0", control.herd_immunity, "1"),
        (f"coverage needed at efficacy {arguments.efficacy:g}", control.coverage, "1"),
    ]
    rows += [
        (f"{name} at which R0 = 1", value, model.parameter(name).unit)
        for name, value in control.critical.items()
        if value is not None
    ]
    frame = pd.DataFrame(rows, columns=["quantity", "value", "unit"])
    matrices = symbolic.next_generation(model)
    data = {"matrices": matrices.to_dict(), "growth": speed.to_dict(), "control": control.to_dict()}
    words = "" if arguments.json or arguments.csv else matrices_text(model)
    put(arguments, frame, {**data, "R0": control.r0, "values": values}, words)


def _thresholds(arguments: argparse.Namespace) -> None:
    from meningitis import analysis, symbolic
    from meningitis.printed import thresholds_text

    model = model_of(arguments)
    values = values_of(model, arguments)
    happened = analysis.events(
        model,
        values,
        days_of(model, arguments),
        start=start_of(arguments),
        reporting_fraction=arguments.reporting_fraction,
    )
    for warning in happened.warnings:
        print(f"meningitis: {warning}", file=sys.stderr)
    found = None if symbolic.case_and_carrier(model) is None else symbolic.thresholds(model).to_dict()
    data = {"thresholds": found, "events": happened.to_dict(), "values": values}
    put(arguments, happened.frame(), data, thresholds_text(model), model)


def _sensitivity(arguments: argparse.Namespace) -> None:
    from meningitis import analysis, symbolic

    model = model_of(arguments)
    values = values_of(model, arguments)
    if not arguments.worldwide:
        put(arguments, symbolic.elasticities(model).frame(values), None, "normalised indices of R0", model)
        return
    pinned, days = given_of(arguments), days_of(model, arguments)
    names = analysis.sampled(model, pinned)
    if arguments.scenario is not None:
        plain = model.values(None, pinned)
        if all(values[n] == plain[n] for n in plain if n not in names) and days == (
            arguments.days or model.scenario(None).days
        ):
            raise Refused(
                f"--scenario {arguments.scenario} would change nothing with --global, which samples all that the "
                "scenario sets: pin values with --set or --params"
            )
    held = ", ".join(f"{name} = {values[name]:g}" for name in pinned) or "none"
    words = f"pinned by --set or --params: {held}; sampled, whatever the scenario says: {', '.join(names)}"
    print(f"meningitis: {words}", file=sys.stderr)
    ranks, shares = analysis.global_sensitivity(
        model, values, days, lhs=arguments.lhs_n, sobol=arguments.sobol_n, seed=arguments.seed, pinned=tuple(pinned)
    )
    both = ranks.merge(shares, on=["outcome", "parameter", "symbol"], how="outer", suffixes=("_prcc", "_sobol"))
    put(arguments, both, model=model)


def sweep_of(model: Model, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Values of the swept parameter, each checked against its bounds."""
    sweep: dict[str, list[float]] = {}
    for name, text in pairs([arguments.sweep] if arguments.sweep else [], "--sweep").items():
        sweep[model.parameter(name).name] = [
            model.values(arguments.scenario, {name: part.strip()})[name] for part in text.split(",")
        ]
    return sweep


def _final_size(arguments: argparse.Namespace) -> None:
    from meningitis import analysis

    model = model_of(arguments)
    sweep = sweep_of(model, arguments)
    if not sweep and "carrier_odds" in model.parameter_names:
        sweep = {"carrier_odds": [0.5, 0.75, 1.0, 1.25, 1.5]}
        if "direct_fraction" in model.parameter_names:
            sweep["direct_fraction"] = [0.0, 0.01, 0.1, 0.5, 1.0]
    found = analysis.final_sizes(model, values_of(model, arguments), sweep, days=days_of(model, arguments))
    if found.note:
        print(f"meningitis: {found.note}", file=sys.stderr)
    words = f"share of the population ever infected: by integrator over {found.days:g} days, and exactly at the end"
    put(arguments, found.frame(), found.to_dict(), words, model)


def _profile(arguments: argparse.Namespace) -> None:
    from meningitis import analysis

    model = model_of(arguments)
    sweep, values = sweep_of(model, arguments), values_of(model, arguments)
    found = analysis.profiles(model, values, sweep, days=days_of(model, arguments), step=7.0)
    put(arguments, found.frame(), found.to_dict(), model=model)


def _compare(arguments: argparse.Namespace) -> None:
    from meningitis import analysis
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
    put(arguments, frame, found.to_dict())


def _study(arguments: argparse.Namespace) -> None:
    from meningitis.models import BASIC, GENERALISED
    from meningitis.study import study

    chosen = (BASIC, GENERALISED) if arguments.model is None else (model_of(arguments),)
    page = study(
        Path(arguments.out),
        models=chosen,
        scenario=arguments.scenario,
        overrides=given_of(arguments),
        days=None if arguments.days is None else days_of(chosen[-1], arguments),
        seed=arguments.seed,
        sobol_n=arguments.sobol_n,
        lhs_n=arguments.lhs_n,
        start=start_of(arguments),
        weeks=arguments.weeks,
        progress=lambda words: print(words, file=sys.stderr),
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
