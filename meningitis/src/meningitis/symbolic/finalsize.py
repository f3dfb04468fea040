"""The first integral of an outbreak in a declared model, and with it the final size.

Source: Ma & Earn, Bull Math Biol 68 (2006) 679-702; Arino et al., Math Biosci Eng 4 (2007) 159-175.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from meningitis.model import Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import infected_states
from meningitis.symbolic.force import linear_force, without_name
from meningitis.symbolic.limits import TimeLimit, time_limit
from meningitis.symbolic.nextgen import SYMBOLIC_SECONDS
from meningitis.symbolic.radius import short_form


@dataclass(frozen=True, kw_only=True)
class FirstIntegral:
    """H = ln S - R0 S/N - sum over infected X of potential[X] X/N, constant along every run.

    potential: infections that one person in S (R0) or in an infected compartment goes on to cause among susceptibles
    only, as expressions of the parameters; population: N.
    """

    susceptible: str
    potential: dict[str, sp.Expr]
    population: sp.Expr


@by_model
def first_integral(model: Model) -> FirstIntegral:
    """Derive the first integral.

    It exists where everyone infected leaves a single compartment S, which nobody enters or leaves otherwise, for an
    infected one by a force linear in the infected, and where what the infected do next depends on them alone.
    Raises: ValueError saying what is missing, or that symbols took too long.
    """
    try:
        with time_limit(SYMBOLIC_SECONDS):
            return _derived(model)
    except TimeLimit as stopped:
        message = f"model {model.name!r} has no exact final size: its symbols took longer than {SYMBOLIC_SECONDS:g} s"
        raise ValueError(message) from stopped


def _derived(model: Model) -> FirstIntegral:
    without = f"model {model.name!r} has no exact final size"
    try:
        force = linear_force(model)
    except ValueError as missing:
        raise ValueError(f"{without}: {without_name(model, missing)}") from missing
    susceptible = force.susceptible
    if any(f.target == susceptible or (f.source == susceptible and not f.new_infection) for f in model.flows):
        raise ValueError(f"{without}: {susceptible} has other flows than infection")
    if force.population.free_symbols & {model.symbols[name] for name in model.state_names}:
        raise ValueError(f"{without}: infection depends on how many are alive")
    later = force.V.T.LUsolve(force.weights).applyfunc(short_form)
    whole = short_form(sum((a * b for a, b in zip(force.entry, later, strict=True)), sp.Integer(0)))
    return FirstIntegral(
        susceptible=susceptible,
        potential={susceptible: whole, **dict(zip(infected_states(model), later, strict=True))},
        population=force.population,
    )
