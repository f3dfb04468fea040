"""The engine's error against DOP853, for thousands of sets in a minute."""

from __future__ import annotations

import numpy as np
import sympy

from meningitis.benchmark.routes import ATOL, DAYS, RTOL, Array, Task
from meningitis.engine import simulate
from meningitis.models import GENERALISED

STACK = 100


def deviations(task: Task, sets: int) -> Array:
    """Max over states and integrals of max over time |y - ref| / max over time |ref|, for the first `sets` (sets,)."""
    found = []
    for first in range(0, sets, STACK):
        part = slice(first, min(first + STACK, sets))
        values = {name: array[part] for name, array in task.values.items()}
        run = simulate(GENERALISED, parameters=values, days=DAYS, times=task.times, rtol=RTOL, atol=ATOL)
        mine = np.concatenate([run.states, run.cumulative], axis=2)
        true = stacked_reference(task, part)
        found.append((np.abs(mine - true).max(axis=1) / np.abs(true).max(axis=1)).max(axis=1))
    return np.concatenate(found)


def stacked_reference(task: Task, part: slice, tolerance: float = 1e-11) -> Array:
    """scipy's DOP853 on many sets as one system, (n, T, components).

    Its error norm is a mean square over the stack, so one set's may be sqrt(n) times the stack's: the tolerance is
    divided by that, and every set is solved at least as strictly as alone.
    """
    from scipy.integrate import solve_ivp

    system, sets = task.system, task.table[part]
    expressions = [*system.rhs, *system.integrands]
    f = sympy.lambdify((system.time, system.states, system.parameters), expressions, modules="numpy", cse=True)
    n, count = len(sets), len(expressions)
    columns = tuple(sets.T)

    def slope(t: float, y: Array) -> Array:
        return np.stack(f(t, y.reshape(count, n)[: len(system.rhs)], columns)).ravel()

    strict = tolerance / n**0.5
    start = task.starts[part].T.ravel()
    found = solve_ivp(slope, (0.0, DAYS), start, method="DOP853", t_eval=task.times, rtol=strict, atol=strict)
    if not found.success:
        raise RuntimeError(f"DOP853 failed: {found.message}")
    return np.ascontiguousarray(found.y.reshape(count, n, -1).transpose(1, 2, 0))
