"""Runs as the analyses need them: named columns, sweeps, and crossings located in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import sympy
from numpy.typing import ArrayLike, NDArray

from meningitis.engine import Ensemble, crossings, simulate
from meningitis.engine.ensemble import table
from meningitis.engine.status import Status
from meningitis.model import Model, ModelError, unknown_parameter

Array = NDArray[np.float64]
RTOL, ATOL = 1e-10, 1e-10
GRID = 0.25  # days between the points that bracket a crossing


def columns(run: Ensemble, model: Model, index: int = 0) -> dict[str, Array]:
    """Compartments and cumulative counts of one trajectory, persons at each output time (T,)."""
    found = {name: run.states[index, :, k] for k, name in enumerate(model.state_names)}
    return found | {name: run.cumulative[index, :, k] for k, name in enumerate(run.cumulative_names)}


def at_times(model: Model, values: Mapping[str, float], times: ArrayLike) -> dict[str, Array]:
    """One accurate trajectory at `times` (days, from 0). Raises: RuntimeError where it fails."""
    end = float(np.max(times))
    run = simulate(model, parameters=dict(values), times=times, days=end, rtol=RTOL, atol=ATOL)
    return columns(solved(run), model)


def solved(run: Ensemble) -> Ensemble:
    """The run itself. Raises: RuntimeError as `all_solved` does."""
    all_solved(run.status, run.parameters)
    return run


def all_solved(status: ArrayLike, samples: Mapping[str, Array]) -> None:
    """Raises: RuntimeError, naming how many sets failed and the first of them, where one did."""
    became = np.asarray(status, dtype=int)
    failed = np.flatnonzero(became > 0)
    if failed.size:
        first = int(failed[0])
        where = ", ".join(f"{name}={np.ravel(column)[first]:.6g}" for name, column in samples.items())
        raise RuntimeError(
            f"{failed.size} of {became.size} trajectories failed; leave out values such as those of the first, set "
            f"{first} ({Status(int(became[first])).sentence}): {where}"
        )


def crossing_days(
    model: Model, values: Mapping[str, float], days: float, expression: sympy.Expr, *, upwards: bool = True
) -> list[float]:
    """Days on which an expression of states and parameters goes through zero upwards (or downwards), in order.

    Located by root-finding on the kernel's dense output, to less than 1e-5 day.
    """
    found = crossings(model, expression, parameters=dict(values), days=days, grid=GRID, rtol=RTOL, atol=ATOL)
    return [crossing.time for crossing in found if crossing.upwards == upwards]


def length(model: Model, days: float | None, scenario: str | None = None) -> float:
    """Days of a run: those given, or the scenario's (None: the default one's)."""
    return float(model.scenario(scenario).days if days is None else days)


def swept(
    model: Model,
    values: Mapping[str, float],
    sweep: Mapping[str, Sequence[float]] | None = None,
    scenario: str | None = None,
) -> dict[str, Array]:
    """Every parameter as one array (n,): all combinations of the swept values, the others as in `values`.

    What neither gives is as in the scenario (None: the default one); quantities such as '70/year' are read.
    Raises: ValueError for a swept parameter without values; ModelError for an unknown one, and as `Model.values` does.
    """
    sweep = dict(sweep or {})
    checked(model, list(sweep))
    empty = [name for name, values in sweep.items() if len(values) == 0]
    if empty:
        raise ValueError(f"the sweep over {', '.join(empty)} has no values")
    rows = list(product(*sweep.values()))
    return table(model, scenario, {**values, **{name: [row[k] for row in rows] for k, name in enumerate(sweep)}})


def filled(model: Model, values: Mapping[str, float] | None, scenario: str | None = None) -> dict[str, float]:
    """Every parameter's value, filled, read and refused as in `swept`."""
    return {name: float(column.item()) for name, column in swept(model, values or {}, None, scenario).items()}


def within(model: Model, name: str, grid: ArrayLike) -> list[float]:
    """A grid's values in order, those beyond the parameter's bounds drawn in to them, each once."""
    return sorted({float(x) for x in np.clip(grid, *model.parameter(name).bounds)})


def checked(model: Model, names: Sequence[str]) -> None:
    """Raises: ModelError naming the parameters that the model does not have, and the nearest or all it has."""
    known, where = model.parameter_names, f"model {model.name}"
    problems = [unknown_parameter(name, known, where=where) for name in names if name not in known]
    if problems:
        raise ModelError(problems)
