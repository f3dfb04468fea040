"""Crossings of expressions along a run, located on the kernel's own dense output.

The kernel's steps do not depend on the times asked for, so a second call for other times reads the very same dense
output: a bracket found on a coarse grid is narrowed by such calls until it is shorter than the wanted precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import sympy
from numpy.typing import ArrayLike

from meningitis.engine.ensemble import Array, Ensemble, run_length, simulate
from meningitis.grammar import parse
from meningitis.model import CUMULATIVE, TIME, Model

POINTS = 34
"""Points of one closer look at an interval."""
ROUNDS = 8
"""Closer looks at a turn; each narrows it sixteen times."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A time, in days, at which an expression crosses zero, upwards or downwards."""

    time: float
    upwards: bool


def crossings(
    model: Model,
    expression: str | sympy.Expr,
    *,
    scenario: str | None = None,
    parameters: Mapping[str, ArrayLike] | None = None,
    days: float | None = None,
    grid: float = 1.0,
    precision: float = 1e-7,
    rtol: float = 1e-9,
    atol: float = 1e-10,
    max_step: float | None = None,
) -> list[Crossing]:
    """Find where `expression` (over states, integrals, parameters and t) crosses zero, for one parameter set.

    Looks every `grid` days, and closer wherever the values between may turn back through zero, so that two crossings
    within a day are found too; an expression that turns several times within one interval needs a finer grid. A touch
    that does not cross is none; a pole where the sign changes is one. `precision` (days) is the length of the bracket:
    the solver's own error comes on top, at these tolerances less than 1e-5 day in the basic model's scenarios.
    Raises as `simulate` does; ValueError for more than one set, or a grid or precision too small; RuntimeError where
    the trajectory fails.
    """
    symbols = {**model.symbols, **{name: sympy.Symbol(name, nonnegative=True) for name in CUMULATIVE}}
    parsed = parse(expression, symbols) if isinstance(expression, str) else sympy.sympify(expression)
    names = (TIME, *model.state_names, *CUMULATIVE, *model.parameter_names)
    named = {symbol: sympy.Symbol(symbol.name) for symbol in parsed.free_symbols}
    function = sympy.lambdify([sympy.Symbol(name) for name in names], parsed.xreplace(named), modules="numpy")
    end = run_length(model, scenario, days)
    if not grid > 0:
        raise ValueError(f"grid must be above 0 days, not {grid:g}")
    if not precision >= np.spacing(end):
        finest = f"{np.spacing(end)} days, the rounding of day {end:g}"
        raise ValueError(f"precision must be at least {finest}, not {precision:g}")

    def evaluate(times: Array) -> Array:
        solved = simulate(
            model,
            scenario=scenario,
            parameters=parameters,
            days=end,
            times=times,
            rtol=rtol,
            atol=atol,
            max_step=max_step,
        )
        if len(solved) != 1:
            raise ValueError(f"crossings are located for one parameter set, not {len(solved)}")
        if solved.status[0] > 0:
            raise RuntimeError(f"1 of 1 trajectories failed: {solved.failures[0]}")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.broadcast_to(function(*_arguments(solved)), times.shape)

    step = min(grid, 0.5 * end) or grid  # a turn shows in no less than three points
    times = np.unique(np.append(np.arange(0.0, end, step), end))
    values = evaluate(times)
    for _ in range(ROUNDS):
        closer = _turns(times, values, precision)
        if not closer.size:
            break
        times = np.union1d(times, closer)
        values = evaluate(times)
    found = []
    for at in np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0):
        low, high, upwards = float(times[at]), float(times[at + 1]), bool(values[at] < 0)
        while high - low > precision:
            inner = np.unique(np.linspace(low, high, POINTS))  # close to rounding, some are equal
            beyond = (evaluate(inner) > 0) == upwards
            first = max(int(np.argmax(beyond)), 1)
            low, high = float(inner[first - 1]), float(inner[first])
        found.append(Crossing(time=0.5 * (low + high), upwards=upwards))
    found += [
        Crossing(time=float(times[at]), upwards=bool(values[at - 1] < 0))
        for at in range(1, len(times) - 1)
        if values[at] == 0 and values[at - 1] * values[at + 1] < 0
    ]
    return sorted(found, key=lambda crossing: crossing.time)


def _turns(times: Array, values: Array, precision: float) -> Array:
    """Times between the points where |value| is least without a change of sign, if it might still reach zero there.

    Between three points a smooth curve passes below the lowest by about an eighth of the others' rise above it (a
    parabola's share); eight times that much room is looked into. Past either end a parabola goes on.
    """
    if len(values) < 3:
        return np.empty(0)
    with np.errstate(invalid="ignore"):  # a ratio may be infinite where its denominator is empty
        before = values[0] + 2 * (values[0] - values[1]) - (values[1] - values[2])
        after = values[-1] + 2 * (values[-1] - values[-2]) - (values[-2] - values[-3])
        sign, here = np.sign(values), np.abs(values)
        left = sign * np.concatenate([[before], values[:-1]])  # below zero where the sign changes
        right = sign * np.concatenate([values[1:], [after]])
        turns = (sign != 0) & (here <= left) & (here <= right) & (here < left + right - 2 * here)
    closer = []
    for at in np.flatnonzero(turns).tolist():
        low, high = times[max(at - 1, 0)], times[min(at + 1, len(times) - 1)]
        if high - low > precision:
            closer.append(np.linspace(low, high, POINTS))
    return np.concatenate(closer) if closer else np.empty(0)


def _arguments(solved: Ensemble) -> list[Array | float]:
    along = [solved[name][0] for name in (*solved.state_names, *solved.cumulative_names)]
    return [solved.times, *along, *(float(values[0]) for values in solved.parameters.values())]
