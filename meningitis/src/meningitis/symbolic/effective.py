"""R(t): infections that one newly infected person causes at the present state, as the next-generation matrix counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike, NDArray

from meningitis.model import Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import (
    completed,
    drained_states,
    infected_states,
    moving_rates,
    uninfected_states,
)
from meningitis.symbolic.diseasefree import everyone_susceptible, flows_without_infection, zeros_at
from meningitis.symbolic.force import linear_force
from meningitis.symbolic.nextgen import (
    SYMBOLIC_SECONDS,
    NumericR0,
    infection_jacobians,
    infection_matrices,
    next_generation,
    over_arrays,
)
from meningitis.symbolic.radius import radius_within
from meningitis.symbolic.zero import depends, vanishes


def effective_r(model: Model) -> sp.Expr:
    """R(t): the spectral radius with the compartments at their current values (symbols of the model).

    Where the force of infection is linear in the infected, per head of the living say, these count all who are there;
    elsewhere nobody is counted as infected, and R(t) holds while few are (see `only_while_few`).
    Raises: ValueError where only the numeric form exists.
    """
    radius, reason = _radius(model)
    if radius is None:
        raise ValueError(f"model {model.name!r}: {reason}; use effective_r_numeric")
    return radius


@by_model
def effective_r_numeric(model: Model, *, symbolic: bool = True) -> NumericR0:
    """Fast R(t) over arrays of parameters and of persons by compartment, as `r0_numeric`."""
    radius, reason = _radius(model)
    names = (*model.parameter_names, *model.state_names)
    return over_arrays(model, names, _matrices(model), radius if symbolic else None, reason)


def reproduction_along(
    model: Model, values: Mapping[str, float], states: Mapping[str, ArrayLike]
) -> NDArray[np.float64]:
    """R(t) at each state (T,), persons by compartment, by symbols or, where they fail, by eigenvalues."""
    return effective_r_numeric(model)({**completed(model, values), **states})


@by_model
def only_while_few(model: Model) -> bool:
    """Whether R(t) holds only while few are infected: how many there are changes what each of them does."""
    try:
        linear_force(model)
    except ValueError:
        people = {model.symbols[name] for name in infected_states(model)}
        return any(depends(rate, people) for matrix in infection_jacobians(model) for rate in matrix)
    return False


def reproduction_name(model: Model, values: Mapping[str, float] | None = None) -> str:
    """What R0 is called: "R_c" where flows without infection, such as vaccination, make people immune, else "R0".

    The disease-free state is then not everyone susceptible, and R0 the control reproduction number of that state.
    A flow whose rate is 0 at `values` (None: all parameters are positive) makes nobody immune.
    """
    return _name(model, zeros=() if values is None else zeros_at(model, values))


@by_model
def _name(model: Model, *, zeros: tuple[str, ...]) -> str:
    if moving_rates(model):
        return "R0"
    free, begun = next_generation(model, zeros=zeros).disease_free, everyone_susceptible(model, zeros)
    immune = [name for name in uninfected_states(model) if name not in drained_states(model) and vanishes(begun[name])]
    if free:
        return "R_c" if any(not vanishes(free[name]) for name in immune) else "R0"
    return "R_c" if any(flow.target in immune for flow in flows_without_infection(model, zeros)[0]) else "R0"


def _matrices(model: Model) -> tuple[sp.Matrix, sp.Matrix]:
    """F and V at any state: of a linear force per head of the living, and elsewhere without the infected."""
    try:
        force = linear_force(model)
    except ValueError:
        return infection_matrices(model)
    if not force.population.free_symbols & {model.symbols[name] for name in model.state_names}:
        return infection_matrices(model)  # whose F holds at any state
    share = model.symbols[force.susceptible] / force.population
    return force.entry * force.weights.T * share, force.V


@by_model
def _radius(model: Model) -> tuple[sp.Expr | None, str]:
    _, radius, reason = radius_within(*_matrices(model), SYMBOLIC_SECONDS)
    return radius, reason.replace("R0", "R(t)")
