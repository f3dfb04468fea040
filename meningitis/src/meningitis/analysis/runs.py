"""Runs as the analyses need them: named columns, sweeps, and crossings located in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meningitis.engine import Ensemble, simulate
from meningitis.engine.status import Status
from meningitis.model import Model

Array = NDArray[np.float64]
Measure = Callable[[Mapping[str, Array]], Array]
RTOL, ATOL = 1e-10, 1e-10
COARSE, FINE = 0.25, 512  # days between the points that bracket an event; points within its bracket


def columns(run: Ensemble, model: Model, index: int = 0) -> dict[str, Array]:
    """Compartments and cumulative counts of one trajectory, persons at each output time (T,)."""
    found = {name: run.states[index, :, k] for k, name in enumerate(model.state_names)}
    return found | {name: run.cumulative[index, :, k] for k, name in enumerate(run.cumulative_names)}


def at_times(model: Model, values: Mapping[str, float], times: ArrayLike) -> dict[str, Array]:
    """One accurate trajectory at `times` (days, from 0). Raises: RuntimeError where it fails."""
    return columns(solved(simulate(model, parameters=dict(values), times=times, rtol=RTOL, atol=ATOL)), model)


def solved(run: Ensemble) -> Ensemble:
    """The run itself. Raises: RuntimeError, naming the first set that failed, where one did."""
    failed = np.flatnonzero(run.status > 0)
    if failed.size:
        at = int(failed[0])
        sentence = Status(int(run.status[at])).sentence
        raise RuntimeError(f"{failed.size} of {len(run)} trajectories failed, the first (set {at}) because {sentence}")
    return run


def first_crossing(
    model: Model, values: Mapping[str, float], days: float, measure: Measure, *, after: float = 0.0, rising: bool = True
) -> float | None:
    """First day after `after` on which measure(columns) goes through zero upwards (or downwards); None: never.

    Bracketed on a quarter-day grid, then refined within the bracket, so good to about 1e-4 day.
    """
    grid = np.linspace(0.0, days, round(days / COARSE) + 1)
    sign = 1.0 if rising else -1.0
    for points in (FINE, 2):
        level = sign * np.asarray(measure(at_times(model, values, grid)))
        hits = np.flatnonzero((level[:-1] < 0) & (level[1:] >= 0) & (grid[1:] > after))
        if hits.size == 0:
            return None
        k = int(hits[0])
        if points == 2:
            return float(grid[k] + (grid[k + 1] - grid[k]) * level[k] / (level[k] - level[k + 1]))
        # The solver starts from day 0 whatever the first output is, so the refined grid keeps it.
        grid = np.concatenate([[0.0] if grid[k] > 0 else [], np.linspace(grid[k], grid[k + 1], points)])
    return None


def grid_of(sweep: Mapping[str, Sequence[float]]) -> dict[str, Array]:
    """All combinations of the swept values, as one array (n,) for each parameter.

    Raises: ValueError for a parameter without values.
    """
    empty = [name for name, values in sweep.items() if len(values) == 0]
    if empty:
        raise ValueError(f"the sweep over {', '.join(empty)} has no values")
    rows = np.array(list(product(*sweep.values())), dtype=np.float64)
    return {name: rows[:, k] for k, name in enumerate(sweep)}


def checked(model: Model, names: Sequence[str]) -> None:
    """Raises: ValueError naming the parameters that the model does not have, and those it has."""
    unknown = [name for name in names if name not in model.parameter_names]
    if unknown:
        known = ", ".join(model.parameter_names)
        raise ValueError(f"model {model.name!r} has no parameter {', '.join(unknown)}; it has {known}")
