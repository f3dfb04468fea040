"""Is the basic model (nobody goes straight to illness, p = 0) adequate? It depends on the outcome asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from meningitis.analysis.outcomes import outcomes
from meningitis.analysis.runs import Array, checked, filled, length, solved
from meningitis.engine import simulate
from meningitis.model import Model

MEASURES = ("ever_infected", "cases", "deaths", "peak_weekly_incidence")
PHI, P = "carrier_conversion_rate", "direct_fraction"
RTOL, ATOL = 1e-9, 1e-9  # of early cases, whose difference from those of p = 0 a root is sought of
SCAN = 65  # trial values of phi between its bounds


@dataclass(frozen=True, kw_only=True)
class Adequacy:
    """Outcomes over p (len(p),), persons: `equal` at the same phi, `rescaled` with phi such that early cases are equal.

    phi: the rescaled conversion rate, 1/day, the nearest to the present one, NaN where no value within its bounds gives
    the early cases of p = 0.
    early_days: the days over which early cases are counted.
    """

    p: Array
    phi: Array
    equal: dict[str, Array]
    rescaled: dict[str, Array]
    early_days: float

    def frame(self) -> pd.DataFrame:
        """Long table: comparison, direct_fraction, carrier_conversion_rate, the outcomes."""
        parts = [
            pd.DataFrame({"comparison": name, P: self.p, PHI: phi} | found)
            for name, phi, found in (
                ("equal conversion rate", np.full_like(self.phi, self.phi[0]), self.equal),
                ("equal early cases", self.phi, self.rescaled),
            )
        ]
        return pd.concat(parts, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"rows": self.frame().to_dict("records"), "early_days": self.early_days}


def adequacy(
    model: Model,
    values: Mapping[str, float],
    p_grid: Sequence[float] = (0.0, 0.001, 0.01, 0.05, 0.1),
    *,
    scenario: str | None = None,
    days: float | None = None,
    early_days: float = 28.0,
) -> Adequacy:
    """Total infected, cases, deaths and weekly peak by p, at equal phi and with phi rescaled to equal early cases.

    Parameters that `values` leave out, and the days, are those of the scenario (None: the default one).
    Raises: ValueError for a model without direct_fraction or a grid that does not begin at 0.
    """
    checked(model, [P, PHI])
    values, days = filled(model, values, scenario), length(model, days, scenario)
    p = np.asarray(p_grid, dtype=np.float64)
    if p.size == 0 or p[0] != 0:
        raise ValueError("p_grid must begin with 0, which every other value is compared with")
    target = float(_early_cases(model, values, 0.0, np.array([values[PHI]]), early_days)[0])
    phi = np.array([_phi_for(model, values, x, target, early_days) for x in p])

    def run(rates: Array) -> dict[str, Array]:
        known = np.isfinite(rates)
        samples = {name: np.full(p.size, float(value)) for name, value in values.items()}
        found = outcomes(model, samples | {P: p, PHI: np.where(known, rates, values[PHI])}, days=days)
        return {name: np.where(known, found[name], np.nan) for name in MEASURES}

    return Adequacy(p=p, phi=phi, equal=run(np.full(p.size, values[PHI])), rescaled=run(phi), early_days=early_days)


def _early_cases(model: Model, values: Mapping[str, float], p: float, phi: Array, days: float) -> Array:
    given = {name: np.full(phi.size, value) for name, value in {**values, P: p}.items()} | {PHI: phi}
    run = solved(simulate(model, parameters=given, times=[0.0, days], days=days, rtol=RTOL, atol=ATOL))
    return np.asarray(run.cumulative[:, -1, list(run.cumulative_names).index("cases")])


def _phi_for(model: Model, values: Mapping[str, float], p: float, target: float, days: float) -> float:
    """The value nearest to the present one that gives the target; cases need not grow with phi all the way."""

    def excess(phi: Array) -> Array:
        return _early_cases(model, values, p, phi, days) - target

    if p == 0:
        return values[PHI]
    low, high = model.parameter(PHI).bounds
    # Even steps, and as many steps of equal ratio, for phi spans orders of magnitude; the present value is one of both.
    ratios = values[PHI] * np.geomspace(1e-3, 1e3, SCAN)
    grid = np.unique(np.clip(np.concatenate([np.linspace(low, high, SCAN), ratios, [values[PHI]]]), low, high))
    found = excess(grid)
    turns = np.flatnonzero(np.signbit(found[:-1]) != np.signbit(found[1:]))
    if turns.size == 0:
        return float("nan")
    away = np.maximum(grid[turns] - values[PHI], values[PHI] - grid[turns + 1])
    k = int(turns[np.argmin(away)])
    return float(brentq(lambda phi: float(excess(np.array([phi]))[0]), grid[k], grid[k + 1], rtol=1e-9))
