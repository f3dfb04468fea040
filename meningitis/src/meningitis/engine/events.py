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

from meningitis.engine.ensemble import Array, Ensemble, simulate
from meningitis.grammar import parse
from meningitis.model import CUMULATIVE, TIME, Model


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
) -> list[Crossing]:
    """Find where `expression` (over states, integrals, parameters and t) crosses zero, for one parameter set.

    Two crossings within one `grid` interval (days) cancel and are not seen. Raises as `simulate` does, and ValueError
    for more than one set.
    """
    symbols = {**model.symbols, **{name: sympy.Symbol(name, nonnegative=True) for name in CUMULATIVE}}
    parsed = parse(expression, symbols) if isinstance(expression, str) else sympy.sympify(expression)
    names = (TIME, *model.state_names, *CUMULATIVE, *model.parameter_names)
    named = {symbol: sympy.Symbol(symbol.name) for symbol in parsed.free_symbols}
    function = sympy.lambdify([sympy.Symbol(name) for name in names], parsed.xreplace(named), modules="numpy")
    end = float(model.scenario(scenario).days if days is None else days)

    def evaluate(times: Array) -> Array:
        solved = simulate(model, scenario=scenario, parameters=parameters, days=end, times=times, rtol=rtol, atol=atol)
        if len(solved) != 1:
            raise ValueError(f"crossings are located for one parameter set, not {len(solved)}")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.broadcast_to(function(*_arguments(solved)), times.shape)

    times = np.unique(np.append(np.arange(0.0, end, grid), end))
    values = evaluate(times)
    found = []
    for at in np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0):
        low, high, upwards = float(times[at]), float(times[at + 1]), bool(values[at] < 0)
        while high - low > precision:
            inner = np.linspace(low, high, 34)
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


def _arguments(solved: Ensemble) -> list[Array | float]:
    along = [solved[name][0] for name in (*solved.state_names, *solved.cumulative_names)]
    return [solved.times, *along, *(float(values[0]) for values in solved.parameters.values())]
