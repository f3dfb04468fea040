"""What the command line's options mean: the model, its values, length and calendar of a run, sweeps, sample sizes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from meningitis.given import Refused, pairs, table_of

if TYPE_CHECKING:
    import datetime as dt

    from meningitis.calendar import WeekSystem
    from meningitis.model import Model

HORIZON = 36_500.0  # days: no run needs more than a century
SAMPLING = {"seed": 1, "sobol_n": 4096, "lhs_n": 2000}


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


def calendar_of(arguments: argparse.Namespace) -> tuple[dt.date | None, WeekSystem]:
    """The first day, where one is given, and the system of epidemiological weeks."""
    from meningitis.calendar import date_of, parse_date

    if arguments.weeks and arguments.start is None:
        raise Refused("--weeks says which epidemiological weeks to show, which needs --start DATE")
    if arguments.start is None:
        return None, "iso"
    start = parse_date(arguments.start)
    date_of(HORIZON, start)  # refuses a start from which the longest run would leave the calendar
    return start, arguments.weeks or "iso"


def sampling_of(arguments: argparse.Namespace, fewest: int) -> dict[str, int]:
    """Seed and sample sizes, where given or by default; at least `fewest` Latin hypercube samples."""
    from meningitis.analysis.importance import checked_samples

    given = {"lhs_n": arguments.lhs_n, "sobol_n": arguments.sobol_n, "seed": arguments.seed}
    sizes = {name: SAMPLING[name] if value is None else value for name, value in given.items()}
    checked_samples(*sizes.values(), fewest=fewest, said=("--lhs-n", "--sobol-n", "--seed"))
    return sizes


def sweep_of(model: Model, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Values of the swept parameters, each checked against its bounds."""
    sweep: dict[str, list[float]] = {}
    given, fixed = given_of(arguments), pairs(arguments.set, "--set")
    for name, text in pairs(arguments.sweep, "--sweep").items():
        if name in given:
            source = "--set" if name in fixed else "--params"
            raise Refused(f"{name} is given one value by {source} and several by --sweep: leave one of them out")
        sweep[model.parameter(name).name] = [
            model.values(arguments.scenario, {**given, name: part.strip()})[name] for part in text.split(",")
        ]
    return sweep
