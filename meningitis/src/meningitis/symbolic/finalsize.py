"""The first integral of an outbreak in a declared model, and with it the final size.

Source: Ma & Earn, Bull Math Biol 68 (2006) 679-702; Arino et al., Math Biosci Eng 4 (2007) 159-175.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from meningitis.model import Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.limits import TimeLimit, tidy, time_limit
from meningitis.symbolic.nextgen import SYMBOLIC_SECONDS, infected_states, infection_matrices, short_form


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

    It exists where everyone infected leaves a single compartment S, which nobody enters, by a force linear in the
    infected, and where what the infected do next depends on them alone. Raises: ValueError saying what is missing, or
    that symbols took too long.
    """
    try:
        with time_limit(SYMBOLIC_SECONDS):
            return _derived(model)
    except TimeLimit as stopped:
        message = f"model {model.name!r} has no exact final size: its symbols took longer than {SYMBOLIC_SECONDS:g} s"
        raise ValueError(message) from stopped


def _derived(model: Model) -> FirstIntegral:
    names = infected_states(model)
    new = [flow for flow in model.flows if flow.new_infection]
    sources = {flow.source for flow in new}
    if len(sources) != 1 or None in sources:
        raise ValueError(f"model {model.name!r} has no exact final size: infection has no single source")
    susceptible = str(sources.pop())
    if any(f.target == susceptible or (f.source == susceptible and not f.new_infection) for f in model.flows):
        raise ValueError(f"model {model.name!r} has no exact final size: {susceptible} has other flows than infection")
    F, V = infection_matrices(model)
    S = model.symbols[susceptible]
    people = sp.Matrix([model.symbols[name] for name in names])
    per_person = (F / S).applyfunc(tidy)
    # What holds near the disease-free state must hold everywhere.
    linear = (S * per_person - V) * people
    states = {model.symbols[name] for name in model.state_names}
    if (per_person.free_symbols | V.free_symbols) & states or not all(
        _same(model.rhs()[name], rate) for name, rate in zip(names, linear, strict=True)
    ):
        raise ValueError(f"model {model.name!r} has no exact final size: its infected do not follow linear rates")
    force = sp.Matrix([sum(per_person.col(j)) for j in range(len(names))])  # b in S' = -S b.x
    known = next(j for j, b in enumerate(force) if b != 0)
    entry = per_person.col(known) / force[known]
    if not all(_same(a, b) for a, b in zip(per_person, entry * force.T, strict=True)):
        raise ValueError(f"model {model.name!r} has no exact final size: who infects decides where the infected go")
    population = tidy(sum(model.initial_state().values(), sp.Integer(0)))
    later = (V.T.LUsolve(force.applyfunc(tidy)) * population).applyfunc(short_form)
    whole = short_form(sum((tidy(a) * b for a, b in zip(entry, later, strict=True)), sp.Integer(0)))
    return FirstIntegral(
        susceptible=susceptible,
        potential={susceptible: whole, **dict(zip(names, later, strict=True))},
        population=population,
    )


def _same(a: sp.Expr, b: sp.Expr) -> bool:
    return sp.expand(a - b) == 0 or sp.simplify(a - b) == 0
