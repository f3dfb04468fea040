"""Who infects, and what becomes of the infected, where the force of infection is linear in the infected."""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from meningitis.model import Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import infected_states, new_infections
from meningitis.symbolic.limits import tidy
from meningitis.symbolic.nextgen import infection_matrices
from meningitis.symbolic.zero import depends, vanishes, without

LIVING = sp.Dummy("living", positive=True)


@dataclass(frozen=True, kw_only=True)
class LinearForce:
    """New infections are s (weights . x), with s = S/population and x the infected, in persons per day.

    weights: infections per day that one of each infected compartment causes while s is 1; entry: share of the newly
    infected that enters each; both as columns in the order of `infected_states`, free of states. V as in
    `infection_matrices`, free of states too. population: the initial one, over parameters, or the sum of the living
    compartments where the force divides by those.
    """

    susceptible: str
    weights: sp.Matrix
    entry: sp.Matrix
    V: sp.Matrix
    population: sp.Expr


@by_model
def linear_force(model: Model) -> LinearForce:
    """Derive it. Raises: ValueError, of the form that infection "has no single source", saying what is missing."""
    sources = {flow.source for flow in model.flows if flow.new_infection}
    if len(sources) != 1 or None in sources:
        raise ValueError("infection has no single source")
    susceptible = str(sources.pop())
    names, (F, V) = infected_states(model), infection_matrices(model)
    symbols = model.symbols
    people = sp.Matrix([symbols[name] for name in names])
    gains = sp.Matrix(new_infections(model))
    whole = sp.Matrix([sum(F.col(j)) for j in range(F.cols)])
    known = next((j for j in range(F.cols) if whole[j] != 0), None)
    if known is None:
        raise ValueError("nobody who is infected infects")
    relative, entry = (whole / whole[known]).applyfunc(tidy), (F.col(known) / whole[known]).applyfunc(tidy)
    population = tidy(sum(model.initial_state().values(), sp.Integer(0)))
    states = {symbols[name] for name in model.state_names}
    # Infections per day that one in the compartment `known` causes in each susceptible, near the disease-free state and
    # everywhere else.
    each = tidy(sum(gains) / (symbols[susceptible] * (relative.T * people)[0]), sp.cancel)
    if depends(each, states):  # not of people at the start, then: perhaps of those alive
        each = tidy(each.xreplace(_by_living(model, susceptible, population)) * LIVING, sp.cancel)
        population = sp.Add(*(symbols[c.name] for c in model.compartments if not c.dead))
        weights = (relative * each).applyfunc(tidy)
    else:
        weights = (relative * without(each, states) * population).applyfunc(tidy)
    changing = {LIVING} | states
    changes = gains - V * people
    if any(depends(rate, changing) for matrix in (weights, entry, V) for rate in matrix) or not all(
        same(model.rhs()[name], change) for name, change in zip(names, changes, strict=True)
    ):
        raise ValueError("its infected do not follow linear rates")
    if not all(same(gain, share * sum(gains)) for gain, share in zip(gains, entry, strict=True)):
        raise ValueError("who infects decides where the infected go")
    weights, entry, V = (matrix.applyfunc(lambda rate: without(rate, changing)) for matrix in (weights, entry, V))
    return LinearForce(susceptible=susceptible, weights=weights, entry=entry, V=V, population=population)


def without_name(model: Model, missing: ValueError) -> str:
    """What is missing, without the model's name before it: for a sentence that begins with that."""
    return str(missing).removeprefix(f"model {model.name!r}: ").removeprefix(f"model {model.name!r} ")


def _by_living(model: Model, susceptible: str, population: sp.Expr) -> dict[sp.Symbol, sp.Expr]:
    """S, and one of the dead where nobody comes or goes, by the number of the living."""
    symbols = model.symbols
    dead = [symbols[c.name] for c in model.compartments if c.dead]
    others = [symbols[c.name] for c in model.compartments if not c.dead and c.name != susceptible]
    swap = {symbols[susceptible]: LIVING - sp.Add(*others)}
    if dead and all(flow.source and flow.target for flow in model.flows):
        swap[dead[0]] = population - LIVING - sp.Add(*dead[1:])
    return swap


def same(a: sp.Expr, b: sp.Expr) -> bool:
    """Whether two expressions are equal whatever their symbols are."""
    return vanishes(a - b)
