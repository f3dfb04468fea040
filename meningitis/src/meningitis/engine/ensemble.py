"""Ensembles: one call, any number of parameter sets. Shapes: n sets, T times, states and integrals last."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy
from numpy.typing import ArrayLike, NDArray

from meningitis.engine.compile import kernel
from meningitis.engine.kinks import kink_times, kinks
from meningitis.engine.reference import solve_scipy
from meningitis.engine.status import Status
from meningitis.engine.system import System, of_expressions, of_model
from meningitis.grammar import nearest, parse
from meningitis.model import CUMULATIVE, TIME, Model, ModelError, Problem, out_of_bounds
from meningitis.units import UnitError, quantity_in

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
RTOL, ATOL = 1e-6, 1e-8
"""Tolerances unless others are given; the absolute one is in persons."""
MAX_STEPS = 20_000
MOVING_STEP = 1.0
"""Days: the longest step of a model whose rates change with time, other than at corners, and that declares none; and
of scipy's methods where there are corners."""


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Solved trajectories.

    `times` (T,) days; `states` (n, T, states) and `cumulative` (n, T, integrals) persons; `peaks` (n, watched, 2)
    value and day of each watched state's maximum, NaN in a set that failed; `status` (n,) of `Status`; `steps` (n,)
    attempted steps; `parameters` name -> (n,).
    """

    times: Array
    states: Array
    cumulative: Array
    state_names: tuple[str, ...]
    cumulative_names: tuple[str, ...]
    peaks: Array
    peak_names: tuple[str, ...]
    status: NDArray[np.int64]
    steps: NDArray[np.int64]
    parameters: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.status)

    def __getitem__(self, name: str) -> Array:
        """Trajectories (n, T) of a state or integral by name."""
        if name in self.state_names:
            return self.states[:, :, self.state_names.index(name)]
        if name in self.cumulative_names:
            return self.cumulative[:, :, self.cumulative_names.index(name)]
        known = (*self.state_names, *self.cumulative_names)
        raise KeyError(f"there is no trajectory '{name}'{nearest(name, known)}")

    @property
    def failures(self) -> list[str]:
        """One sentence for each set that failed or fell back, with its number and parameters."""
        return [
            f"set {i}: {Status(int(self.status[i])).sentence}; "
            + ", ".join(f"{name}={values[i]:.6g}" for name, values in self.parameters.items())
            for i in np.flatnonzero(self.status)
        ]

    def frame(self) -> pd.DataFrame:
        """A pandas frame in long order: set, time (days), a column for each state and integral (persons)."""
        import pandas as pd

        n, count = self.states.shape[:2]
        both = np.concatenate([self.states, self.cumulative], axis=2)
        both = both.reshape(n * count, both.shape[2])
        frame = pd.DataFrame(both, columns=[*self.state_names, *self.cumulative_names])
        frame.insert(0, "time", np.tile(self.times, n))
        frame.insert(0, "set", np.repeat(np.arange(n), count))
        return frame


def simulate(
    model: Model,
    *,
    scenario: str | None = None,
    parameters: Mapping[str, ArrayLike] | None = None,
    days: float | None = None,
    times: ArrayLike | None = None,
    rtol: float = RTOL,
    atol: float = ATOL,
    reference: str | None = None,
    threads: int | None = None,
    max_steps: int = MAX_STEPS,
    max_step: float | None = None,
) -> Ensemble:
    """Run a model from day 0 to `days` (the scenario's by default) for one or many parameter sets.

    `parameters` are values or (n,) arrays on top of the scenario's; `times` are output days (weekly and the last day
    by default); `atol` is in persons; `reference` names a scipy method (DOP853, Radau, LSODA, ...) instead of the
    kernel; `max_step` (days; by default the declaration's or, where it has none, a day where rates depend on time)
    keeps steps from growing longer than a pulse while nothing happens. The kernel ends a step at each corner of min,
    max and abs of what is linear in time and else of parameters; where time is nowhere else, steps have no bound.
    A set's numbers do not depend on the other sets, their order or the threads.
    A start below zero is refused in single values of some of the parameters. In arrays, or where every parameter is
    given, its set alone fails, as any set may: NaN, status NEGATIVE, a sentence in `failures` and no warning.
    Raises ModelError for unknown or misshapen parameters, ValueError for unusable days, times, tolerances, steps or
    threads.
    """
    end = run_length(model, scenario, days)
    if times is None:
        times = weekly_times(end)
    values = table(model, scenario, parameters)
    if max_step is None:
        max_step = longest_step(model)
        if model.max_step is None and math.isfinite(max_step):  # nobody asked for these
            max_steps += math.ceil(end / max_step)
    return run(
        of_model(model),
        {name: values[name] for name in model.parameter_names},
        state_names=model.state_names,
        cumulative_names=CUMULATIVE,
        times=times,
        end=end if days is not None else max(end, float(np.max(times, initial=0.0))),
        rtol=rtol,
        atol=atol,
        reference=reference,
        threads=threads,
        max_steps=max_steps,
        max_step=max_step,
    )


def solve_ode(
    expressions: Mapping[str, str | sympy.Expr],
    *,
    initial: Mapping[str, ArrayLike],
    times: ArrayLike,
    parameters: Mapping[str, ArrayLike] | None = None,
    rtol: float = RTOL,
    atol: float = ATOL,
    reference: str | None = None,
    threads: int | None = None,
    max_steps: int = MAX_STEPS,
    max_step: float = math.inf,
) -> Ensemble:
    """Solve state' = expression from t = 0 for any system; text goes through the safe grammar, `t` is time.

    `initial` and `parameters` are values or (n,) arrays; `max_step` (t) as in `simulate`, but none by default.
    Raises ValueError (GrammarError for text), also for a name that would stand for two things.
    """
    parameters = dict(parameters or {})
    if set(initial) != set(expressions):
        raise ValueError(f"initial values are for {sorted(initial)}, but the states are {sorted(expressions)}")
    names = {name: sympy.Symbol(name, real=True) for name in (TIME, *expressions, *parameters)}
    parsed = {s: parse(e, names) if isinstance(e, str) else e for s, e in expressions.items()}
    system = of_expressions(parsed, tuple(parameters))
    given = {**parameters, **{f"initial_{name}": initial[name] for name in expressions}}
    return run(
        system,
        _broadcast(given, "system"),
        state_names=tuple(expressions),
        cumulative_names=(),
        times=times,
        end=float(np.max(times, initial=0.0)),
        rtol=rtol,
        atol=atol,
        reference=reference,
        threads=threads,
        max_steps=max_steps,
        max_step=max_step,
    )


def weekly_times(days: float, *, whole: bool = False) -> Array:
    """Day 0, the end of each whole week and, unless `whole`, the last day, where a week is cut short (T,), days."""
    times = np.arange(0.0, days + 1e-9, 7.0)
    return times if whole else np.unique(np.append(times[times < days], days))


def run_length(model: Model, scenario: str | None, days: float | None) -> float:
    """`days`, the scenario's where there are none. Raises ValueError where they are no finite number from 0 on."""
    end = float(model.scenario(scenario).days if days is None else days)
    if not 0 <= end < math.inf:
        raise ValueError(f"days must be a finite number from 0 on, not {end:g}")
    return end


def longest_step(model: Model) -> float:
    """The declaration's `max_step` in days; where it has none, a day if rates change with time, else infinite."""
    if model.max_step is not None:
        return model.max_step
    return MOVING_STEP if kinks(of_model(model)).bounded else math.inf


def table(model: Model, scenario: str | None, parameters: Mapping[str, ArrayLike] | None) -> dict[str, Array]:
    """Return every parameter as an (n,) array: the scenario's values with `parameters` on top, bounds checked.

    Quantities such as '70/year' are read. Single values of some of the parameters are checked as by
    :meth:`Model.values`, which refuses a start below zero.
    """
    given = dict(parameters or {})
    if given.keys() == set(model.parameter_names):  # nothing of the scenario is left, and its values take a millisecond
        model.scenario(scenario)
        base = dict.fromkeys(model.parameter_names, 0.0)
    else:
        single: dict[str, Any] = {name: value for name, value in given.items() if np.ndim(value) == 0}
        base = model.values(scenario, single | {n: 0.0 for n in given if n not in model.parameter_names})
        given = {name: value for name, value in given.items() if name not in single}
    problems = []
    for name, value in given.items():
        low, high = model.parameter(name).bounds
        try:
            given[name] = array = _numbers(model.parameter(name).unit, value)
        except UnitError as error:
            problems.append(Problem(code="E013", where=f"model {model.name}, {name}", message=str(error)))
            continue
        bad = array[~((array >= low) & (array <= high))]
        if bad.size:
            problems.append(out_of_bounds(model.parameter(name), bad.flat[0], where=f"model {model.name}"))
    if problems:
        raise ModelError(problems)
    return _broadcast({**base, **given}, f"model {model.name}")


def _numbers(unit: str, value: ArrayLike) -> Array:
    """A value or an array as numbers in a parameter's unit."""
    held = np.asarray(value)
    if held.dtype.kind in "biuf":
        return held.astype(float, copy=False)
    return np.array([quantity_in(unit, each) for each in held.ravel().tolist()], dtype=float).reshape(held.shape)


def _broadcast(given: Mapping[str, ArrayLike], where: str) -> dict[str, Array]:
    arrays = {name: np.asarray(value, dtype=float) for name, value in given.items()}
    sizes = {array.size for array in arrays.values() if array.ndim}
    if len(sizes) > 1 or any(array.ndim > 1 for array in arrays.values()):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items() if array.ndim)
        message = f"parameters must be numbers or arrays of one length, not {shapes}"
        raise ModelError([Problem(code="E013", where=where, message=message)])
    n = sizes.pop() if sizes else 1
    return {name: np.broadcast_to(array, (n,)) for name, array in arrays.items()}


def run(
    system: System,
    parameters: Mapping[str, Array],
    *,
    state_names: Sequence[str],
    cumulative_names: Sequence[str],
    times: ArrayLike,
    end: float,
    rtol: float,
    atol: float,
    reference: str | None,
    threads: int | None,
    max_steps: int,
    max_step: float,
) -> Ensemble:
    """Solve a system for (n,) parameters in the order of `system.parameters`; the floor under `simulate`."""
    at = np.ascontiguousarray(times, dtype=float)
    if at.ndim != 1 or not at.size or not np.all(np.isfinite(at)) or at[0] < 0 or np.any(np.diff(at) <= 0):
        raise ValueError("times must be a list of finite, increasing days from 0 on")
    if at[-1] > end:
        raise ValueError(f"times reach day {at[-1]:g}, but the run ends on day {end:g}")
    if not (0 < rtol < 1 and atol > 0):
        raise ValueError(f"rtol must be in (0, 1) and atol above 0, not {rtol:g} and {atol:g}")
    if not max_step > 0 or end > max_step * max_steps:
        raise ValueError(f"max_step must be above 0 and reach day {end:g} in {max_steps} steps, not {max_step:g} days")
    sets = np.ascontiguousarray(np.stack(list(parameters.values()), axis=1))
    n, components = len(sets), len(system.rhs) + len(system.integrands)
    out = np.empty((n, at.size, components))  # the kernel writes every number, NaN after a failure
    peaks = np.empty((n, len(system.watched), 2))
    status = np.zeros(n, dtype=np.int64)
    steps = np.zeros(n, dtype=np.int64)
    # scipy's methods know of no corners.
    bounded = min(max_step, MOVING_STEP) if kinks(system).times else max_step
    if reference is not None:
        out.fill(np.nan)
        peaks.fill(np.nan)
        solve_scipy(system, sets, at, end, reference, rtol, atol, out, peaks, status, steps, range(n), bounded)
    else:
        begun = np.hstack([sets, kink_times(system, sets, end)]) if kinks(system).times else sets
        given = (begun, at, end, rtol, atol, max_steps, float(max_step), out, peaks, status, steps)
        _on_threads(threads, system, given)
        stiff = np.flatnonzero((status == Status.TOO_MANY_STEPS) | (status == Status.STEP_TOO_SMALL))
        if stiff.size:
            kept = status[stiff].copy()
            solve_scipy(system, sets, at, end, "Radau", rtol, atol, out, peaks, status, steps, stiff, bounded)
            status[stiff] = np.where(status[stiff] == Status.OK, Status.FALLBACK, kept)
    states = len(system.rhs)
    return Ensemble(
        times=at,
        states=out[:, :, :states],
        cumulative=out[:, :, states:],
        state_names=tuple(state_names),
        cumulative_names=tuple(cumulative_names),
        peaks=peaks,
        peak_names=tuple(state_names[q] for q in system.watched),
        status=status,
        steps=steps,
        parameters=dict(parameters),
    )


_threaded: int | None = None
"""The process in which a kernel first started threads: one forked from it has none of them and may start no more."""


def _on_threads(threads: int | None, system: System, arguments: tuple[Any, ...]) -> None:
    import numba

    global _threaded
    most = numba.config.NUMBA_NUM_THREADS
    if threads is not None and not 1 <= threads <= most:
        raise ValueError(f"threads must be between 1 and {most}, not {threads}")
    forked = _threaded not in (None, os.getpid())
    if forked or (threads or most) == 1:
        kernel(system, parallel=False)(*arguments)
        return
    solve, before = kernel(system), numba.get_num_threads()
    _threaded = os.getpid()
    numba.set_num_threads(threads or before)
    try:
        solve(*arguments)
    finally:
        numba.set_num_threads(before)
