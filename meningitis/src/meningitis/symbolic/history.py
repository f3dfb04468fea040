"""The natural history of infection that the rates imply: how long each state lasts, how many fall ill and die."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from meningitis.model import Flow, Model
from meningitis.symbolic.declared import completed, infected_states
from meningitis.symbolic.force import linear_force
from meningitis.symbolic.growth import initial_state, numeric_matrices
from meningitis.symbolic.numbers import at_values, number, numbers


@dataclass(frozen=True, kw_only=True)
class NaturalHistory:
    """What becomes of the infected at one parameter set, few being infected.

    mean_stay: days that one stay in each infected compartment lasts on average, infinite where nobody leaves;
    cases_per_infection: the case-to-infection ratio; deaths_per_case: the case fatality ratio, of all deaths declared
    such among the infected. Both ratios are None where no flow is declared to be counted, where the force of infection
    is not linear in the infected, or where someone infected never leaves.
    """

    mean_stay: dict[str, float]
    cases_per_infection: float | None
    deaths_per_case: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def natural_history(model: Model, values: Mapping[str, float]) -> NaturalHistory:
    """Mean stays, cases per infection and deaths per case at `values`, uninfected people being as at the start.

    Parameters that `values` leave out are as in the default scenario. Raises: ValueError where F or V depends on time.
    """
    values = completed(model, values)
    _, V = numeric_matrices(model, values)
    stay = {
        name: float(1 / rate) if rate != 0 else math.inf
        for name, rate in zip(infected_states(model), V.diagonal(), strict=True)
    }
    cases, deaths = (_per_infection(model, values, V, flag) for flag in ("case", "death"))
    fatality = deaths / cases if cases and deaths is not None else None
    return NaturalHistory(mean_stay=stay, cases_per_infection=cases, deaths_per_case=fatality)


def _per_infection(model: Model, values: Mapping[str, float], V: NDArray[np.float64], flag: str) -> float | None:
    """How often one newly infected person goes along a flow of this flag; None where that is not known."""
    counted = [flow for flow in model.flows if getattr(flow, flag)]
    try:
        force = linear_force(model)
    except ValueError:
        return None
    if not counted or np.linalg.slogdet(V)[0] == 0:
        return None
    at = at_values(model, {**values, **initial_state(model, values)})
    # Days that one newly infected person spends in each compartment, over all stays.
    spent = np.linalg.solve(V, numbers(force.entry, at).ravel())
    rates = [_per_head(model, flow) for flow in counted if not flow.new_infection]
    later = sum(number(rate, at) * days for row in rates for rate, days in zip(row, spent, strict=True))
    gains = {flow: model.flow_rates()[flow.name] for flow in model.flows if flow.new_infection}
    at_once = sp.cancel(sum(gains[flow] for flow in counted if flow.new_infection) / sum(gains.values()))
    return float(later) + number(at_once, at)


def _per_head(model: Model, flow: Flow) -> list[sp.Expr]:
    """The flow's rate for each person in each infected compartment, 1/day, few being infected."""
    symbols = [model.symbols[name] for name in infected_states(model)]
    rate = model.flow_rates()[flow.name]
    return [sp.diff(rate, symbol).subs(dict.fromkeys(symbols, 0)) for symbol in symbols]
