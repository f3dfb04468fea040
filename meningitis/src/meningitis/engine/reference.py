"""scipy's solvers on the same expressions: the reference, and the fallback for stiff sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import sympy
from numpy.typing import NDArray

from meningitis.engine.status import Status
from meningitis.engine.system import System

METHODS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


@lru_cache(maxsize=64)
def functions(system: System) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return Python functions f(t, y, p) -> derivatives and integrands, and start(p) -> initial states."""
    t = system.time
    f = sympy.lambdify(
        (t, system.states, system.parameters), [*system.rhs, *system.integrands], modules="math", cse=True
    )
    start = sympy.lambdify((system.parameters,), list(system.initial), modules="math")
    return f, start


def solve_scipy(
    system: System,
    sets: NDArray[np.float64],
    times: NDArray[np.float64],
    end: float,
    method: str,
    rtol: float,
    atol: float,
    out: NDArray[np.float64],
    peaks: NDArray[np.float64],
    status: NDArray[np.int64],
    steps: NDArray[np.int64],
    which: Iterable[int],
    max_step: float = math.inf,
) -> None:
    """Fill rows `which` of `out`, `peaks`, `status` and `steps` (scipy's steps), integrating to `end` like the kernel.

    After the last step with all states above -10 atol, outputs are NaN; the peaks of every set that fails are.
    `max_step` is in days. Raises ValueError for an unknown method.
    """
    from scipy.integrate import solve_ivp

    if method not in METHODS:
        raise ValueError(f"reference '{method}' is not one of scipy's {', '.join(METHODS)}")
    f, start = functions(system)
    states = len(system.rhs)

    def run(i: int) -> Status:
        p = sets[i].tolist()
        y0 = [*start(p), *[0.0] * len(system.integrands)]
        solve = partial(
            solve_ivp,
            lambda t, y: f(t, y[:states].tolist(), p),
            method=method,
            rtol=rtol,
            atol=atol,
            max_step=max_step,
        )
        found = solve((0.0, end), y0, dense_output=True)
        steps[i] = found.t.size - 1
        if not found.success or not np.all(np.isfinite(found.y)):
            return Status.NOT_FINITE if found.success else Status.STEP_TOO_SMALL
        along = partial(_stepped, solve, found) if method == "Radau" else found.sol
        out[i] = along(times).T if end > 0 else np.array(y0)
        if system.nonnegative:
            below = np.flatnonzero(found.y[:states].min(axis=0) < -10 * max(atol, 1e-12))
            if below.size:
                out[i, times > (found.t[below[0] - 1] if below[0] else -1.0)] = np.nan
                return Status.NEGATIVE
        for q, state in enumerate(system.watched):
            peaks[i, q] = _maximum(found, along, state)
        return Status.OK

    for i in which:
        try:
            status[i] = run(i)
        except (ArithmeticError, ValueError):  # a rate outside its domain
            status[i] = Status.NOT_FINITE
        if status[i] > Status.OK:
            peaks[i] = np.nan


def _stepped(solve: Callable[..., Any], found: Any, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Components (components, T) of a solution at `times`, each by a step of its own from the solver's last before it.

    Radau's steps in a stiff system are long, for only their ends need be right: its cubic between them is not.
    """
    columns = []
    for t in times.tolist():
        after = int(np.searchsorted(found.t, t))
        if found.t[after] == t:
            columns.append(found.y[:, after])
            continue
        before = float(found.t[after - 1])
        again = solve((before, t), found.y[:, after - 1], first_step=t - before)
        columns.append(again.y[:, -1] if again.success else found.sol(t))
    return np.stack(columns, axis=1)


def _maximum(found: Any, along: Callable[..., Any], state: int) -> tuple[float, float]:
    """Highest value of a state along a solution and its day: sixteen points a step, then a search about the highest."""
    from scipy.optimize import minimize_scalar

    if found.t.size < 2:
        return float(found.y[state, 0]), float(found.t[0])
    share = np.arange(16) / 16
    times = np.append((found.t[:-1, None] + np.diff(found.t)[:, None] * share).ravel(), found.t[-1])
    at = int(np.argmax(found.sol(times)[state]))

    def value(t: float) -> float:
        return float(along(np.array([t]))[state, 0])

    low, high = float(times[max(at - 1, 0)]), float(times[min(at + 1, times.size - 1)])
    near = minimize_scalar(lambda t: -value(t), bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    day = max((float(times[at]), float(near.x)), key=value)
    return value(day), day
