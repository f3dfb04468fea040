"""Where rates turn at a time that the declaration gives: the corners of min, max and abs over time and parameters.

Steps are chosen by the error, which is nothing while nothing happens: they grow, and pass over what lies between two
corners. So the integrator ends a step at each corner, and bounds its steps where time is anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import sympy
from numpy.typing import NDArray

from meningitis.engine.system import System

PAST = 1e-9
"""Part of a corner's time (days, below day 1) by which a step ends past it: a ratio such as abs(x)/x is 0/0 at it."""


@dataclass(frozen=True, kw_only=True)
class Kinks:
    """`times` of the corners, over the parameters; `bounded`: time is elsewhere too, so that steps need a bound."""

    times: tuple[sympy.Expr, ...]
    bounded: bool


@lru_cache(maxsize=64)
def kinks(system: System) -> Kinks:
    """The corners of a system's rates whose time can be said: those where linear functions of time meet."""
    turning = {f for e in (*system.rhs, *system.integrands) for f in e.atoms(sympy.Min, sympy.Max, sympy.Abs)}
    found: dict[sympy.Expr, None] = {}
    solved: dict[sympy.Expr, sympy.Expr] = {}
    for function in sorted(turning, key=sympy.default_sort_key):
        times, whole = _meetings(function, system)
        found |= dict.fromkeys(times)
        if whole:
            solved[function] = sympy.Dummy()
    left = (e.xreplace(solved).free_symbols for e in (*system.rhs, *system.integrands))
    return Kinks(times=tuple(found), bounded=any(system.time in symbols for symbols in left))


def kink_times(system: System, sets: NDArray[np.float64], end: float) -> NDArray[np.float64]:
    """Times just past the corners within a run, in order, for each set (n, corners + 1); infinite where no more are."""
    found = np.full((len(sets), len(kinks(system).times) + 1), np.inf)
    function = sympy.lambdify([system.parameters], list(kinks(system).times), "numpy")
    with np.errstate(all="ignore"):
        for k, times in enumerate(function(sets.T)):
            past = times + PAST * np.maximum(1.0, times)
            found[:, k] = np.where((times > 0) & (past < end), past, np.inf)  # False where NaN: the lines are parallel
    return np.sort(found, axis=1)


def _meetings(function: sympy.Expr, system: System) -> tuple[list[sympy.Expr], bool]:
    """Times at which two pieces of a function are equal, and whether these are all its corners."""
    known = {system.time, *system.parameters}
    times, whole = [], True
    for one, other in combinations(_pieces(function), 2):
        gap = one - other
        if system.time not in gap.free_symbols:
            continue
        slope = sympy.diff(gap, system.time)
        if not gap.free_symbols <= known or system.time in slope.free_symbols:
            whole = False
            continue
        times.append(-gap.xreplace({system.time: sympy.Integer(0)}) / slope)
    return times, whole


def _pieces(expression: sympy.Expr) -> list[sympy.Expr]:
    """What nested min, max and abs choose from."""
    if isinstance(expression, sympy.Abs):
        return [sign * piece for piece in _pieces(expression.args[0]) for sign in (1, -1)]
    if isinstance(expression, sympy.Min | sympy.Max):
        return [piece for argument in expression.args for piece in _pieces(argument)]
    return [expression]
