"""How many are ever infected: from the integrator and from the exact relation.

The relation is the end point of the first integral H of the model (see `meningitis.symbolic.finalsize`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sympy as sp
from numpy.typing import ArrayLike
from scipy.special import lambertw

from meningitis.analysis.runs import Array, all_solved, swept
from meningitis.engine import reduce
from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED
from meningitis.symbolic import first_integral as first_integral_of
from meningitis.symbolic.declared import refilled

Values = Mapping[str, ArrayLike]


def infection_potential(values: Values, model: Model | None = None) -> dict[str, Array]:
    """Infections that one person among susceptibles goes on to cause: from S (R0) and each infected compartment.

    `values` holds parameters by name, floats or arrays; `model` is the shipped one that has them where none is given.
    Raises: ValueError where the model has no first integral.
    """
    model = _shipped(values) if model is None else model
    return _evaluated(model, first_integral_of(model).potential, values)


def first_integral(values: Values, state: Values, model: Model | None = None) -> Array:
    """H = ln S - (sum over compartments of potential x persons)/N, constant along every run of the model.

    `state` holds persons in S and in the infected compartments, arrays of times or floats.
    """
    model = _shipped(values) if model is None else model
    derived = first_integral_of(model)
    potential = infection_potential(values, model)
    N = _evaluated(model, {"N": derived.population}, values)["N"]
    S = np.asarray(state[derived.susceptible], dtype=np.float64)
    return np.asarray(np.log(S) - sum(pot * np.asarray(state[x]) for x, pot in potential.items()) / N)


def final_susceptible(values: Values, state: Values, model: Model | None = None) -> Array:
    """Susceptibles left when the outbreak is over, persons, exact, by the principal branch of Lambert's W.

    Where nobody who infects is there at the start, all of them are left.
    """
    model = _shipped(values) if model is None else model
    derived = first_integral_of(model)
    potential = infection_potential(values, model)
    R0 = potential[derived.susceptible]
    N = _evaluated(model, {"N": derived.population}, values)["N"]
    H = first_integral(values, state, model)
    # ln S - R0 S/N = H  =>  S = -N/R0 W(-R0/N exp(H)); W0 (|W| < 1) is the root below the threshold N/R0.
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.real(-N / R0 * lambertw(-R0 / N * np.exp(H), 0))
    left = np.where(R0 > 0, left, np.exp(H))
    begun = sum(pot * np.asarray(state[x]) for x, pot in potential.items() if x != derived.susceptible)
    return np.asarray(np.where(begun > 0, left, state[derived.susceptible]))


def final_size_exact(values: Values, *, state: Values | None = None, model: Model | None = None) -> Array:
    """Share of the population ever infected, (S0 - S_inf + infected at the start)/N, exact when the outbreak is over.

    `state` overrides the initial condition that `values` describe. Raises: ValueError where the model has no first
    integral, so that only the integrator can tell.
    """
    model = _shipped(values) if model is None else model
    state = starting_state(values, model) if state is None else state
    derived = first_integral_of(model)
    N = _evaluated(model, {"N": derived.population}, values)["N"]
    begun = sum(np.asarray(state[x], dtype=np.float64) for x in derived.potential)
    return np.asarray((begun - final_susceptible(values, state, model)) / N)


def starting_state(values: Values, model: Model | None = None) -> dict[str, Array]:
    """Persons in each compartment at the start, as the model declares it."""
    model = _shipped(values) if model is None else model
    return _evaluated(model, model.initial_state(), values)


def _shipped(values: Values) -> Model:
    return GENERALISED if "direct_fraction" in values else BASIC


def _evaluated(model: Model, expressions: Mapping[str, sp.Expr], values: Values) -> dict[str, Array]:
    if not values.keys() >= set(model.parameter_names):
        values = {**model.values(), **values}
    arrays = [np.asarray(values[name], dtype=np.float64) for name in model.parameter_names]
    function = sp.lambdify([model.symbols[name] for name in model.parameter_names], list(expressions.values()), "numpy")
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    return {name: np.broadcast_to(found, shape) for name, found in zip(expressions, function(*arrays), strict=True)}


@dataclass(frozen=True, kw_only=True)
class FinalSizes:
    """Share of the population ever infected for each parameter set (n,).

    integrated: up to `days`; exact: when the outbreak is over, NaN with a `note` where the model has no exact relation.
    Where births or a return after infection refill the susceptibles, infections per person (`note` says so).
    """

    sweep: dict[str, Array]
    days: float
    integrated: Array
    exact: Array
    note: str = ""

    def frame(self) -> pd.DataFrame:
        """Table: the swept parameters, integrated, exact."""
        return pd.DataFrame({**self.sweep, "integrated": self.integrated, "exact": self.exact})

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"rows": self.frame().to_dict("records"), "days": self.days, "note": self.note}


def final_sizes(
    model: Model,
    values: Mapping[str, float],
    sweep: Mapping[str, Sequence[float]] | None = None,
    *,
    days: float = 365.0,
) -> FinalSizes:
    """Total ever infected for every combination of the swept values (none: `values` alone), of any declared model.

    Parameters that neither `values` nor the sweep gives are as in the default scenario.
    Raises: ValueError for an unknown parameter or one without values; RuntimeError where a trajectory fails.
    """
    samples = swept(model, values, sweep)
    found = reduce(model, samples, days=days)
    all_solved(found["status"], samples)
    N = sum(starting_state(samples, model).values())
    try:
        exact, note = final_size_exact(samples, model=model), ""
    except ValueError as error:
        exact, note = np.full_like(N, np.nan), str(error)
    if refilled(model):
        again = "people enter the compartments that new infections drain: infections per person, which can exceed 1"
        note = f"{note}; {again}" if note else again
    return FinalSizes(
        sweep={name: samples[name] for name in sweep or {}},
        days=days,
        integrated=np.asarray(found["ever_infected"]) / N,
        exact=np.asarray(exact),
        note=note,
    )


@dataclass(frozen=True, kw_only=True)
class EverInfected:
    """Share of the population ever infected, over the values of carrier_odds (rows) and direct_fraction (columns).

    integrated: up to `days`; exact: when the outbreak is over, NaN with a `note` where the model has no exact relation;
    both (len(epsilon), len(p)).
    """

    epsilon: Array
    p: Array
    days: float
    integrated: Array
    exact: Array
    note: str = ""

    def frame(self) -> pd.DataFrame:
        """Long table: carrier_odds, direct_fraction, integrated, exact."""
        epsilon, p = np.meshgrid(self.epsilon, self.p, indexing="ij")
        table = {"carrier_odds": epsilon, "direct_fraction": p, "integrated": self.integrated, "exact": self.exact}
        return pd.DataFrame({name: values.ravel() for name, values in table.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, lists of lists."""
        arrays = {name: getattr(self, name).tolist() for name in ("epsilon", "p", "integrated", "exact")}
        return arrays | {"days": self.days, "note": self.note}


def ever_infected(
    model: Model,
    values: Mapping[str, float],
    epsilon: Sequence[float],
    p: Sequence[float] = (0.0,),
    *,
    days: float = 365.0,
) -> EverInfected:
    """Total ever infected over carrier_odds and direct_fraction, by integrator and by the exact relation.

    A model without direct_fraction (basic) is swept over carrier_odds alone. Raises: ValueError where it is asked for
    other values of p than 0; RuntimeError where a trajectory fails.
    """
    odds, direct = np.asarray(epsilon, dtype=np.float64), np.asarray(p, dtype=np.float64)
    sweep: dict[str, Sequence[float]] = {"carrier_odds": list(odds)}
    if "direct_fraction" in model.parameter_names:
        sweep["direct_fraction"] = list(direct)
    elif np.any(direct != 0):
        raise ValueError(f"model {model.name!r} has no direct_fraction; use the generalised model for p other than 0")
    found = final_sizes(model, values, sweep, days=days)
    shape = (odds.size, direct.size)
    return EverInfected(
        epsilon=odds,
        p=direct,
        days=days,
        integrated=found.integrated.reshape(shape),
        exact=found.exact.reshape(shape),
        note=found.note,
    )
