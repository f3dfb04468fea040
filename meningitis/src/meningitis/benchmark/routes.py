"""The task, and the ways to solve it: the engine, scipy, and peers where they are installed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meningitis.benchmark.sbml import sbml
from meningitis.engine import Ensemble, simulate
from meningitis.engine.codegen import printed
from meningitis.engine.reference import functions
from meningitis.engine.system import System, of_model
from meningitis.models import GENERALISED

Array = NDArray[np.float64]
DAYS, RTOL, ATOL = 365.0, 1e-6, 1e-8


class Absent(Exception):
    """A peer that cannot run here, and why."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """`values` name -> (n,) parameters and `times` (53,) days."""

    values: Mapping[str, Array]
    times: Array

    @classmethod
    def drawn(cls, sets: int, seed: int) -> Task:
        """Draw sets from the sampling distributions of the generalised model."""
        rng = np.random.default_rng(seed)
        values = {p.name: np.asarray(p.distribution.ppf(rng.random(sets))) for p in GENERALISED.parameters}
        return cls(values=values, times=np.arange(53, dtype=np.float64) * 7.0)

    @cached_property
    def system(self) -> System:
        """The model as expressions."""
        return of_model(GENERALISED)

    @cached_property
    def table(self) -> Array:
        """Parameters (n, parameters) in the system's order."""
        return np.stack([self.values[name] for name in GENERALISED.parameter_names], axis=1)

    @cached_property
    def starts(self) -> Array:
        """States and integrals at time zero (n, components)."""
        _, start = functions(self.system)
        zeros = [0.0] * len(self.system.integrands)
        return np.array([[*start(row.tolist()), *zeros] for row in self.table])

    @property
    def components(self) -> int:
        """Number of states and integrals."""
        return len(self.system.rhs) + len(self.system.integrands)

    def few(self, most: int) -> int:
        """Sets that a slow route solves: `most`, or all if there are fewer."""
        return min(most, len(self.table))


@dataclass(frozen=True, kw_only=True)
class Route:
    """A way to solve the first `sets` of a task; `outputs` makes (sets, T, components) of what `solve` returns."""

    name: str
    threads: str | int
    sets: int
    solve: Callable[[], Any]
    outputs: Callable[[Any], Array] = np.asarray


def engine_route(task: Task, threads: int) -> Route:
    """The engine as a user calls it, checks and allocation included."""

    def solve() -> Ensemble:
        return simulate(
            GENERALISED, parameters=task.values, days=DAYS, times=task.times, rtol=RTOL, atol=ATOL, threads=threads
        )

    def outputs(run: Ensemble) -> Array:
        return np.concatenate([run.states, run.cumulative], axis=2)

    return Route(name="meningitis", threads=threads, sets=len(task.table), solve=solve, outputs=outputs)


def _scipy(method: str) -> Callable[[Task, bool], Route]:
    def build(task: Task, quick: bool) -> Route:
        from scipy.integrate import solve_ivp

        f, _ = functions(task.system)
        count, states = task.few(3 if quick else 30), len(task.system.rhs)
        starts = task.starts[:count]

        def solve() -> Array:
            out = np.empty((count, task.times.size, task.components))
            for i in range(count):
                p = task.table[i].tolist()
                out[i] = solve_ivp(
                    lambda t, y, p=p: f(t, y[:states].tolist(), p),
                    (0.0, DAYS),
                    starts[i],
                    method=method,
                    t_eval=task.times,
                    rtol=RTOL,
                    atol=ATOL,
                ).y.T
            return out

        return Route(name=f"scipy solve_ivp {method}", threads=1, sets=count, solve=solve)

    return build


def _odeint(task: Task, quick: bool) -> Route:
    from scipy.integrate import odeint

    f, _ = functions(task.system)
    count, states = task.few(3 if quick else 30), len(task.system.rhs)
    starts = task.starts[:count]

    def solve() -> Array:
        out = np.empty((count, task.times.size, task.components))
        for i in range(count):
            p = task.table[i].tolist()
            out[i] = odeint(
                lambda t, y, p=p: f(t, y[:states].tolist(), p),
                starts[i],
                task.times,
                tfirst=True,
                rtol=RTOL,
                atol=ATOL,
                mxstep=20_000,
            )
        return out

    return Route(name="scipy odeint (LSODA)", threads=1, sets=count, solve=solve)


def _roadrunner(task: Task, quick: bool) -> Route:
    roadrunner = _imported("roadrunner")
    runner = roadrunner.RoadRunner(sbml(task.system))
    runner.integrator.relative_tolerance, runner.integrator.absolute_tolerance = RTOL, ATOL
    count = task.few(10 if quick else 500)
    names = [f"y{m}" for m in range(task.components)]
    runner.timeCourseSelections = ["time", *names]

    def solve() -> Array:
        out = np.empty((count, task.times.size, task.components))
        for i in range(count):
            runner.reset()
            for name, value in zip(names, task.starts[i], strict=True):
                runner.setValue(name, float(value))
            for k, value in enumerate(task.table[i]):
                runner.setValue(f"p{k}", float(value))
            out[i] = np.asarray(runner.simulate(0, float(task.times[-1]), task.times.size))[:, 1:]
        return out

    return Route(name="roadrunner CVODE", threads=1, sets=count, solve=solve)


def _numbalsoda(method: str) -> Callable[[Task, bool], Route]:
    def build(task: Task, quick: bool) -> Route:
        peer = _imported("numbalsoda")
        from numba import cfunc, njit

        system, space = task.system, {"math": math}
        names = dict(zip(system.states, (f"u[{m}]" for m in range(len(system.states))), strict=True))
        names |= dict(zip(system.parameters, (f"p[{k}]" for k in range(len(system.parameters))), strict=True))
        lines = [f"    du[{m}] = {printed(e, names)}" for m, e in enumerate((*system.rhs, *system.integrands))]
        exec("def rhs(t, u, du, p):\n" + "\n".join(lines), space)
        address = cfunc(peer.lsoda_sig)(space["rhs"]).address
        solver = getattr(peer, method)
        count = task.few(50 if quick else 2_000)
        starts, table = task.starts[:count], task.table[:count]

        @njit
        def loop(starts: Array, table: Array, times: Array, out: Array) -> None:
            for i in range(len(table)):
                y, _ = solver(address, starts[i], times, table[i], RTOL, ATOL)
                out[i] = y

        def solve() -> Array:
            out = np.empty((count, task.times.size, task.components))
            loop(starts, table, task.times, out)
            return out

        return Route(name=f"numbalsoda {method}", threads=1, sets=count, solve=solve)

    return build


def _diffrax(task: Task, quick: bool) -> Route:
    diffrax = _imported("diffrax")
    jax = _imported("jax")
    jax.config.update("jax_enable_x64", True)
    f, _ = functions(task.system)
    states = len(task.system.rhs)
    count = task.few(100 if quick else 10_000)

    def one(start: Any, p: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, p: jax.numpy.stack(f(t, y[:states], p))),
            diffrax.Tsit5(),
            0.0,
            DAYS,
            None,
            start,
            args=p,
            saveat=diffrax.SaveAt(ts=jax.numpy.asarray(task.times)),
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        ).ys

    many = jax.jit(jax.vmap(one))
    starts, table = jax.numpy.asarray(task.starts[:count]), jax.numpy.asarray(task.table[:count])
    return Route(name="diffrax Tsit5, vmap", threads="XLA's", sets=count, solve=lambda: np.asarray(many(starts, table)))


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # numbalsoda has no wheels, and an extra that needs a Fortran compiler would cost people the other peers.
        how = (
            "pip builds it where there are CMake and Fortran"
            if name == "numbalsoda"
            else "the extra `bench` installs it"
        )
        raise Absent(f"{error}; {how}") from error


PEERS: Mapping[str, Callable[[Task, bool], Route]] = {
    "scipy solve_ivp LSODA": _scipy("LSODA"),
    "scipy solve_ivp RK45": _scipy("RK45"),
    "scipy odeint (LSODA)": _odeint,
    "roadrunner CVODE": _roadrunner,
    "numbalsoda lsoda": _numbalsoda("lsoda"),
    "numbalsoda dop853": _numbalsoda("dop853"),
    "diffrax Tsit5, vmap": _diffrax,
}
