"""How many are ever infected: from the integrator and from the exact relation.

The relation is the end point of the first integral H of the closed model (see `first_integral`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import lambertw

from meningitis.analysis.runs import Array, checked
from meningitis.engine import reduce
from meningitis.model import Model

Values = Mapping[str, ArrayLike]


def infection_potential(values: Values) -> dict[str, Array]:
    """Infections that one person, met by susceptibles only, goes on to cause: from S (R0), C, I1 and I2.

    `values` holds parameters by name, floats or arrays; the basic model's direct_fraction is 0.
    """
    v = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
    p = v.get("direct_fraction", np.asarray(0.0))
    beta, phi = v["transmission_rate"], v["carrier_conversion_rate"]
    leave1 = v["stage_progression_rate"] + v["stage1_immunity_rate"] + v["stage1_death_rate"]
    leave2 = v["stage2_immunity_rate"] + v["stage2_death_rate"]
    T = (1 + v["stage2_infectiousness"] * v["stage_progression_rate"] / leave2) / leave1
    carrier = (v["carrier_odds"] + phi * T) / (phi + v["carrier_immunity_rate"])
    return {
        "S": beta * ((1 - p) * carrier + p * T),
        "C": beta * carrier,
        "I1": beta * T,
        "I2": beta * v["stage2_infectiousness"] / leave2,
    }


def first_integral(values: Values, state: Values) -> Array:
    """H = ln S - (sum over compartments of potential x persons)/N, constant along every run of the closed models.

    `state` holds persons in S, C, I1 and I2, arrays of times or floats.
    """
    potential = infection_potential(values)
    N = np.asarray(values["population"], dtype=np.float64)
    S = np.asarray(state["S"], dtype=np.float64)
    return np.asarray(np.log(S) - sum(potential[x] * np.asarray(state[x]) for x in ("S", "C", "I1", "I2")) / N)


def final_susceptible(values: Values, state: Values) -> Array:
    """Susceptibles left when the outbreak is over, persons, exact, by the principal branch of Lambert's W."""
    R0 = infection_potential(values)["S"]
    N = np.asarray(values["population"], dtype=np.float64)
    H = first_integral(values, state)
    # ln S - R0 S/N = H  =>  S = -N/R0 W(-R0/N exp(H)); W0 (|W| < 1) is the root below the threshold N/R0.
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.real(-N / R0 * lambertw(-R0 / N * np.exp(H), 0))
    return np.asarray(np.where(R0 > 0, left, np.exp(H)))


def final_size_exact(values: Values, *, state: Values | None = None) -> Array:
    """Share of the population ever infected, (S0 - S_inf + C0 + I1(0) + I2(0))/N, exact for basic and generalised.

    `state` overrides the initial condition that `values` describe (immune and carrier fractions, nobody ill).
    """
    state = starting_state(values) if state is None else state
    begun = sum(np.asarray(state[x], dtype=np.float64) for x in ("S", "C", "I1", "I2"))
    return np.asarray((begun - final_susceptible(values, state)) / np.asarray(values["population"], dtype=np.float64))


def starting_state(values: Values) -> dict[str, Array]:
    """Persons in S, C, I1 and I2 at the start, as the shipped models declare it."""
    N, immune, carriers = (
        np.asarray(values[x], dtype=np.float64)
        for x in ("population", "initial_immune_fraction", "initial_carrier_fraction")
    )
    nobody = np.zeros_like(N)
    return {"S": N * (1 - immune - carriers), "C": N * carriers, "I1": nobody, "I2": nobody}


@dataclass(frozen=True, kw_only=True)
class EverInfected:
    """Share of the population ever infected, over the values of carrier_odds (rows) and direct_fraction (columns).

    integrated: up to `days`; exact: when the outbreak is over; both (len(epsilon), len(p)).
    """

    epsilon: Array
    p: Array
    days: float
    integrated: Array
    exact: Array

    def frame(self) -> pd.DataFrame:
        """Long table: carrier_odds, direct_fraction, integrated, exact."""
        epsilon, p = np.meshgrid(self.epsilon, self.p, indexing="ij")
        table = {"carrier_odds": epsilon, "direct_fraction": p, "integrated": self.integrated, "exact": self.exact}
        return pd.DataFrame({name: values.ravel() for name, values in table.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, lists of lists."""
        arrays = {name: getattr(self, name).tolist() for name in ("epsilon", "p", "integrated", "exact")}
        return arrays | {"days": self.days}


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
    other values of p than 0, or a trajectory fails.
    """
    odds, direct = np.asarray(epsilon, dtype=np.float64), np.asarray(p, dtype=np.float64)
    checked(model, ["carrier_odds"])
    grid = np.meshgrid(odds, direct, indexing="ij")
    sweep = {"carrier_odds": grid[0].ravel()}
    if "direct_fraction" in model.parameter_names:
        sweep["direct_fraction"] = grid[1].ravel()
    elif np.any(direct != 0):
        raise ValueError(f"model {model.name!r} has no direct_fraction; use the generalised model for p other than 0")
    samples = {name: np.full(grid[0].size, float(value)) for name, value in values.items()} | sweep
    shape = grid[0].shape
    return EverInfected(
        epsilon=odds,
        p=direct,
        days=days,
        integrated=np.asarray(reduce(model, samples, days=days)["ever_infected"]).reshape(shape) / values["population"],
        exact=final_size_exact(samples).reshape(shape),
    )
