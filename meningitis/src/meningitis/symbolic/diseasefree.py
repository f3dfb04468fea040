"""A population without infection: everyone susceptible, or what vaccination, births and the like make of that.

Infection absent, only flows between uninfected compartments, from outside and to outside or to the dead move people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike, NDArray

from meningitis.model import TIME, Flow, Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import completed, drained_states, uninfected_states
from meningitis.symbolic.limits import TimeLimit, tidy, time_limit
from meningitis.symbolic.zero import vanishes

SETTLED = 1e6  # days after which a population without disease has settled
BEYOND = 1e15  # persons that a population which settles never has
STILL = 1e-9
"""Persons per day, for each person there, that count as standing still."""


def disease_free_state(model: Model, *, seconds: float, zeros: tuple[str, ...] = ()) -> dict[str, sp.Expr]:
    """The disease-free state as expressions of the parameters, of which those named in `zeros` are 0.

    Symbols stand for positive numbers: where a flow stops, at a rate of 0, another state may be the one that lasts.
    Everyone susceptible, where that lasts or where what moves people without infection depends on time; where flows
    without infection move people, the state in which those flows balance, each set of compartments that they connect
    keeping its total unless people enter or leave it.
    Raises: ValueError where the solution is not single or takes longer than `seconds`; `settled_state` then answers.
    """
    begun, rates = everyone_susceptible(model, zeros), _rates(model, zeros)
    if any(model.symbols[TIME] in rate.free_symbols for rate in rates.values()):
        return begun  # a dated campaign, say: the state is that of the start
    at = {model.symbols[name]: value for name, value in begun.items()}
    if all(vanishes(rate.subs(at)) for rate in rates.values()):
        return begun
    equations = dict(rates)
    for members in _kept_together(model, zeros):
        # Their rates add up to nothing, so that their total takes the place of one.
        equations[members[0]] = sum((model.symbols[name] - begun[name] for name in members), sp.Integer(0))
    unknowns = [model.symbols[name] for name in rates]
    try:
        with time_limit(seconds):
            found = sp.solve(list(equations.values()), unknowns, dict=True)
    except TimeLimit as stopped:
        raise ValueError(f"the disease-free state took longer than {seconds:g} s in symbols") from stopped
    except NotImplementedError as stopped:
        raise ValueError("the disease-free state has no closed form") from stopped
    if len(found) == 1 and len(found[0]) == len(unknowns):
        return begun | {name: tidy(found[0][model.symbols[name]]) for name in rates}
    states = "a family of disease-free states" if len(found) == 1 else f"{len(found)} disease-free states"
    raise ValueError(f"symbols give {states}, not a single one")


def settled_state(model: Model, values: Mapping[str, float]) -> dict[str, float]:
    """Where the state with everyone susceptible settles without infection at `values`, persons.

    Raises: ValueError where it does not settle.
    """
    from scipy.integrate import solve_ivp

    course = _without_infection(model)
    given = [values[name] for name in course.parameters]
    begun = dict(zip(model.state_names, course.begun(given), strict=True))
    start = [begun[name] for name in course.moving]

    def room(_t: float, people: NDArray[np.float64]) -> float:
        return BEYOND - float(np.abs(people).max())

    room.terminal = True  # type: ignore[attr-defined]
    # With Radau, a settled state takes about a hundred times as long.
    run = solve_ivp(
        lambda _t, y: course.rates(y, given), (0, SETTLED), start, "LSODA", rtol=1e-10, atol=1e-10, events=room
    )
    settled = run.y[:, -1]
    if not still(course.rates(settled, given), settled):
        raise ValueError(f"model {model.name!r} does not settle in a disease-free state within {SETTLED:g} days")
    return {name: float(people) for name, people in {**begun, **dict(zip(course.moving, settled, strict=True))}.items()}


def settling_parameters(model: Model) -> tuple[str, ...]:
    """Names of the parameters that the settled state depends on, in declared order."""
    return _without_infection(model).parameters


def zeros_at(model: Model, values: Mapping[str, float]) -> tuple[str, ...]:
    """Names of the parameters that the settled state depends on and that are 0 at `values`, in declared order."""
    values = completed(model, values)
    return tuple(name for name in settling_parameters(model) if values[name] == 0)


def nil(model: Model, zeros: tuple[str, ...]) -> dict[sp.Symbol, sp.Expr]:
    """The parameters that are 0, to be replaced in an expression all at once (`xreplace`)."""
    return {model.symbols[name]: sp.Integer(0) for name in zeros}


@dataclass(frozen=True, kw_only=True)
class _Course:
    """Rates of the `moving` compartments without infection and the state to begin with, over `parameters`."""

    parameters: tuple[str, ...]
    moving: tuple[str, ...]
    rates: Callable[..., list[float]]
    begun: Callable[..., list[float]]


@by_model
def _without_infection(model: Model) -> _Course:
    rates, begun = _rates(model), everyone_susceptible(model)
    used = set().union(*(e.free_symbols for e in (*rates.values(), *begun.values())))
    names = tuple(name for name in model.parameter_names if model.symbols[name] in used)
    given, people = ([model.symbols[name] for name in some] for some in (names, rates))
    return _Course(
        parameters=names,
        moving=tuple(rates),
        rates=sp.lambdify([people, given], list(rates.values()), "numpy", cse=True),
        begun=sp.lambdify([given], list(begun.values()), "numpy", cse=True),
    )


def still(rates: ArrayLike, people: ArrayLike) -> bool:
    """Whether these rates of change (persons per day) count as none among so many people; False where any is NaN."""
    return bool(np.abs(rates).max() <= STILL * max(1.0, np.abs(people).max()))


def everyone_susceptible(model: Model, zeros: tuple[str, ...] = ()) -> dict[str, sp.Expr]:
    """Each set of compartments that flows connect with its total in those that new infections drain.

    There people stand in the proportions of the initial state (in the first where it leaves all of them empty). A set
    without any such compartment stands as at the start, less its infected and dead.
    """
    initial = {name: people.xreplace(nil(model, zeros)) for name, people in model.initial_state().items()}
    uninfected = uninfected_states(model)
    drained = drained_states(model)
    state: dict[str, sp.Expr] = dict.fromkeys(model.state_names, sp.Integer(0))
    for group in _connected(model.state_names, model.flows):
        sources = [name for name in model.state_names if name in group & drained]
        total = sum((initial[name] for name in group), sp.Integer(0))
        begun = tidy(sum((initial[name] for name in sources), sp.Integer(0)))
        if not sources:
            state |= {name: initial[name] for name in uninfected if name in group}
        elif len(sources) == 1 or vanishes(begun):
            state[sources[0]] = tidy(total)
        else:
            state |= {name: tidy(total * initial[name] / begun) for name in sources}
    return state


def flows_without_infection(
    model: Model, zeros: tuple[str, ...] = ()
) -> tuple[dict[Flow, sp.Expr], dict[Flow, sp.Expr]]:
    """The flows that go on where nobody is infected or dead, with their rates: those that leave it so, and the others.

    The others lead to or from infected compartments, so that no state stays without infection.
    """
    absent = {model.symbols[c.name]: 0 for c in model.compartments if c.infected or c.dead}
    infected = {c.name for c in model.compartments if c.infected}
    rates = {flow: model.flow_rates()[flow.name].xreplace(nil(model, zeros)).subs(absent) for flow in model.flows}
    going = {flow: rate for flow, rate in rates.items() if not rate.is_zero}
    moving = {flow: rate for flow, rate in going.items() if not {flow.source, flow.target} & infected}
    return moving, {flow: rate for flow, rate in going.items() if flow not in moving}


def _rates(model: Model, zeros: tuple[str, ...] = ()) -> dict[str, sp.Expr]:
    """Rate of change of each uninfected compartment without infection, persons per day."""
    found: dict[str, sp.Expr] = dict.fromkeys(uninfected_states(model), sp.Integer(0))
    for flow, rate in flows_without_infection(model, zeros)[0].items():
        for end, sign in ((flow.source, -1), (flow.target, 1)):
            if end in found:
                found[end] += sign * rate
    return found


def _kept_together(model: Model, zeros: tuple[str, ...]) -> list[list[str]]:
    """Sets of uninfected compartments that people without infection move between and that keep their total.

    That is where nobody enters or leaves, or births make up for deaths.
    """
    rates, moving = _rates(model, zeros), flows_without_infection(model, zeros)[0]
    groups = [[name for name in rates if name in group] for group in _connected(tuple(rates), moving)]
    return [group for group in groups if vanishes(sum((rates[name] for name in group), sp.Integer(0)))]


def _connected(names: Sequence[str], flows: Iterable[Flow]) -> list[set[str]]:
    groups = [{name} for name in names]
    for flow in flows:
        if _within(flow, names):
            joined = [g for g in groups if flow.source in g or flow.target in g]
            groups = [g for g in groups if g not in joined] + [set().union(*joined)]
    return groups


def _within(flow: Flow, names: Sequence[str]) -> bool:
    return flow.source in names and flow.target in names
