"""scipy's solvers on the same expressions: the reference, and the fallback for stiff sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
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
) -> None:
    """Fill rows `which` of `out`, `peaks`, `status` and `steps` (scipy's steps), integrating to `end` like the kernel.

    After the last step with all states above -10 atol, outputs are NaN, and so are the set's peaks.
    Raises ValueError for an unknown method.
    """
    from scipy.integrate import solve_ivp

    if method not in METHODS:
        raise ValueError(f"reference '{method}' is not one of scipy's {', '.join(METHODS)}")
    f, start = functions(system)
    states = len(system.rhs)
    for i in which:
        p = sets[i].tolist()
        y0 = [*start(p), *[0.0] * len(system.integrands)]
        status[i] = Status.OK
        try:
            found = solve_ivp(
                lambda t, y, p=p: f(t, y[:states].tolist(), p),
                (0.0, end),
                y0,
                method=method,
                rtol=rtol,
                atol=atol,
                dense_output=True,
            )
        except (ArithmeticError, ValueError):
            status[i] = Status.NOT_FINITE
            continue
        steps[i] = found.t.size - 1
        if not found.success or not np.all(np.isfinite(found.y)):
            status[i] = Status.NOT_FINITE if found.success else Status.STEP_TOO_SMALL
            continue
        out[i] = found.sol(times).T if end > 0 else np.array(y0)
        if system.nonnegative:
            below = np.flatnonzero(found.y[:states].min(axis=0) < -10 * max(atol, 1e-12))
            if below.size:
                status[i] = Status.NEGATIVE
                out[i, times > (found.t[below[0] - 1] if below[0] else -1.0)] = np.nan
                peaks[i] = np.nan
                continue
        for q, state in enumerate(system.watched):
            peaks[i, q] = _maximum(found, state)


def _maximum(found: Any, state: int) -> tuple[float, float]:
    """Highest value of a state along a solution and its day: sixteen points a step, then a search about the highest."""
    from scipy.optimize import minimize_scalar

    if found.t.size < 2:
        return float(found.y[state, 0]), float(found.t[0])
    share = np.arange(16) / 16
    times = np.append((found.t[:-1, None] + np.diff(found.t)[:, None] * share).ravel(), found.t[-1])
    values = found.sol(times)[state]
    at = int(np.argmax(values))
    low, high = float(times[max(at - 1, 0)]), float(times[min(at + 1, times.size - 1)])
    near = minimize_scalar(
        lambda t: -float(found.sol(t)[state]), bounds=(low, high), method="bounded", options={"xatol": 1e-9}
    )
    if -near.fun > values[at]:
        return -float(near.fun), float(near.x)
    return float(values[at]), float(times[at])
