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

from meningitis.analysis.runs import Array, all_solved, length, swept
from meningitis.engine import reduce
from meningitis.engine.ensemble import table
from meningitis.model import Model
from meningitis.symbolic import first_integral
from meningitis.symbolic.declared import refilled

Values = Mapping[str, ArrayLike]
quietly = np.errstate(divide="ignore", invalid="ignore")
"""For functions whose infinite and unknown results say themselves what numpy would warn of."""


def infection_potential(model: Model, values: Values, *, scenario: str | None = None) -> dict[str, Array]:
    """Infections that one person among susceptibles goes on to cause: from S (R0) and each infected compartment.

    `values` holds parameters by name, numbers, quantities or arrays (n,); what they leave out is as in the scenario
    (None: the default one), here and below. Infinite where someone infected never leaves.
    Raises: ValueError where the model has no first integral; ModelError for unknown names and bad values.
    """
    return _evaluated(model, first_integral(model).potential, _full(model, values, scenario))


@quietly
def first_integral_along(model: Model, values: Values, state: Values, *, scenario: str | None = None) -> Array:
    """H = ln S - (sum over compartments of potential x persons)/N, constant along every run of the model.

    `state` holds persons in S and in the infected compartments, arrays of times or floats.
    """
    derived, full = first_integral(model), _full(model, values, scenario)
    potential = infection_potential(model, full)
    N = _evaluated(model, {"N": derived.population}, full)["N"]
    S = np.asarray(state[derived.susceptible], dtype=np.float64)
    return np.asarray(np.log(S) - sum(pot * np.asarray(state[x]) for x, pot in potential.items()) / N)


@quietly
def final_susceptible(model: Model, values: Values, state: Values, *, scenario: str | None = None) -> Array:
    """Susceptibles left when the outbreak is over, persons, exact, by the principal branch of Lambert's W.

    Where nobody who infects is there at the start, all of them are left; NaN where R0 is infinite.
    """
    derived, full = first_integral(model), _full(model, values, scenario)
    potential = infection_potential(model, full)
    R0 = potential[derived.susceptible]
    N = _evaluated(model, {"N": derived.population}, full)["N"]
    H = first_integral_along(model, full, state)
    # ln S - R0 S/N = H  =>  S = -N/R0 W(-R0/N exp(H)); W0 (|W| < 1) is the root below the threshold N/R0.
    left = np.real(-N / R0 * lambertw(-R0 / N * np.exp(H), 0))
    left = np.where(R0 > 0, left, np.exp(H))
    begun = sum(pot * np.asarray(state[x]) for x, pot in potential.items() if x != derived.susceptible)
    return np.asarray(np.where(begun > 0, left, state[derived.susceptible]))


@quietly
def final_size_exact(
    model: Model, values: Values, *, state: Values | None = None, scenario: str | None = None
) -> Array:
    """Share of the population ever infected, (S0 - S_inf + infected at the start)/N, exact when the outbreak is over.

    `state` overrides the initial condition that `values` describe; NaN where R0 is infinite.
    Raises: ValueError where the model has no first integral, so that only the integrator can tell; ModelError for
    unknown names and bad values.
    """
    full = _full(model, values, scenario)
    state = starting_state(model, full) if state is None else state
    derived = first_integral(model)
    N = _evaluated(model, {"N": derived.population}, full)["N"]
    begun = sum(np.asarray(state[x], dtype=np.float64) for x in derived.potential)
    return np.asarray((begun - final_susceptible(model, full, state)) / N)


def starting_state(model: Model, values: Values, *, scenario: str | None = None) -> dict[str, Array]:
    """Persons in each compartment at the start, as the model declares it."""
    return _evaluated(model, model.initial_state(), _full(model, values, scenario))


def _full(model: Model, values: Values, scenario: str | None) -> dict[str, Array]:
    """Every parameter as an array (n,), filled, read and refused as everywhere; without axes where no value has any."""
    full = table(model, scenario, values)
    single = all(np.ndim(value) == 0 for value in values.values())
    return {name: full[name].reshape(()) if single else full[name] for name in model.parameter_names}


@quietly
def _evaluated(model: Model, expressions: Mapping[str, sp.Expr], full: Mapping[str, Array]) -> dict[str, Array]:
    function = sp.lambdify([model.symbols[name] for name in full], list(expressions.values()), "numpy")
    shape = np.broadcast_shapes(*(array.shape for array in full.values()))
    return {
        name: np.broadcast_to(found, shape) for name, found in zip(expressions, function(*full.values()), strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class FinalSizes:
    """Share of the population ever infected for each parameter set (n,).

    integrated: up to `days`; exact: when the outbreak is over, NaN with a `note` where the model has no exact relation
    or R0 is infinite. Where births or a return after infection refill the susceptibles, infections per person (`note`
    says so).
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
    scenario: str | None = None,
    days: float | None = None,
) -> FinalSizes:
    """Total ever infected for every combination of the swept values (none: `values` alone), of any declared model.

    Parameters that neither `values` nor the sweep gives, and the days, are those of the scenario (None: the default
    one).
    Raises: ValueError for an unknown parameter or one without values; RuntimeError where a trajectory fails.
    """
    samples, days = swept(model, values, sweep, scenario), length(model, days, scenario)
    found = reduce(model, samples, days=days)
    all_solved(found["status"], samples)
    N = sum(starting_state(model, samples).values())
    try:
        exact, note = final_size_exact(model, samples), _endless(model, samples)
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


def _endless(model: Model, samples: Mapping[str, Array]) -> str:
    """Where no exact final size is known, though the model has the relation; empty where all are."""
    R0 = infection_potential(model, samples)[first_integral(model).susceptible]
    endless, size = int(np.isinf(R0).sum()), R0.size
    if not endless:
        return ""
    where = "" if endless == size else f" in {endless} of {size} parameter sets"
    return f"R0 is infinite{where}, for someone infected never leaves: there is no exact final size"


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
    scenario: str | None = None,
    days: float | None = None,
) -> EverInfected:
    """Total ever infected over carrier_odds and direct_fraction, by integrator and by the exact relation.

    What `values` leave out, and the days, are those of the scenario (None: the default one).
    A model without direct_fraction (basic) is swept over carrier_odds alone. Raises: ValueError where it is asked for
    other values of p than 0; RuntimeError where a trajectory fails.
    """
    odds, direct = np.asarray(epsilon, dtype=np.float64), np.asarray(p, dtype=np.float64)
    sweep: dict[str, Sequence[float]] = {"carrier_odds": list(odds)}
    if "direct_fraction" in model.parameter_names:
        sweep["direct_fraction"] = list(direct)
    elif np.any(direct != 0):
        raise ValueError(f"model {model.name!r} has no direct_fraction; use the generalised model for p other than 0")
    found = final_sizes(model, values, sweep, scenario=scenario, days=days)
    shape = (odds.size, direct.size)
    return EverInfected(
        epsilon=odds,
        p=direct,
        days=found.days,
        integrated=found.integrated.reshape(shape),
        exact=found.exact.reshape(shape),
        note=found.note,
    )
