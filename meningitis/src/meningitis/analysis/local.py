"""Local sensitivity: normalised indices of every outcome at one parameter set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meningitis.analysis.outcomes import OUTCOMES, outcomes
from meningitis.analysis.runs import filled, length
from meningitis.model import Model
from meningitis.symbolic import elasticities, initial_state, moving_rates

STEP = 0.01  # relative; the integrator's error of 1e-6 is then 1e-4 of the index
STEPPED = ("peak_week",)  # whole weeks have no derivative


@dataclass(frozen=True, kw_only=True)
class LocalSensitivity:
    """(dY/dx)(x/Y) by outcome and parameter; R0 exactly, others by central differences of 1 %, one-sided at a bound
    or where a step would begin below zero.

    An outcome that is zero has no relative change (NaN), nor has R0 where rates depend on time, nor any outcome but R0
    with a parameter whose bounds leave no room for two steps.
    """

    indices: dict[str, dict[str, float]]

    def ranked(self, outcome: str) -> list[str]:
        """Parameters by size of their index for one outcome, largest first, those without one last."""
        column = self.indices[outcome]
        return sorted(column, key=lambda name: -np.nan_to_num(abs(column[name]), nan=-1.0))

    def frame(self) -> pd.DataFrame:
        """Long table: outcome, parameter, index."""
        rows = [(o, name, index) for o, column in self.indices.items() for name, index in column.items()]
        return pd.DataFrame(rows, columns=["outcome", "parameter", "index"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"indices": self.indices}


def local_sensitivity(
    model: Model, values: Mapping[str, float], *, scenario: str | None = None, days: float | None = None
) -> LocalSensitivity:
    """Normalised sensitivity of R0, weekly peak, cases, deaths and total infected to every parameter at `values`.

    Parameters that `values` leave out, and the days, are those of the scenario (None: the default one).
    Raises: ModelError for unknown names and bad values.
    """
    names, values = model.parameter_names, filled(model, values, scenario)

    def begins(name: str, x: float) -> bool:
        return min(initial_state(model, {**values, name: x}).values()) >= 0

    stencils = [_stencil(values[name], model.parameter(name).bounds, partial(begins, name)) for name in names]
    factors = np.ones((2 * len(names) + 1, len(names)))
    for k, (steps, _) in enumerate(stencils):
        factors[2 * k : 2 * k + 2, k] += STEP * steps
    found = outcomes(
        model, {name: values[name] * factors[:, k] for k, name in enumerate(names)}, days=length(model, days, scenario)
    )
    indices = {"R0": dict.fromkeys(names, np.nan) if moving_rates(model) else elasticities(model).evaluate(values)}
    weights = np.array([weights for _, weights in stencils])
    for outcome in OUTCOMES[1:]:
        if outcome not in STEPPED:
            y = found[outcome]
            # The weights of a derivative sum to zero with that of the point itself.
            differences = (weights * (y[:-1].reshape(-1, 2) - y[-1])).sum(axis=1) / STEP
            slopes = differences / y[-1] if y[-1] else np.full_like(differences, np.nan)
            indices[outcome] = dict(zip(names, slopes.tolist(), strict=True))
    return LocalSensitivity(indices=indices)


def _stencil(
    x: float, bounds: tuple[float, float], begins: Callable[[float], bool] = lambda _: True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two relative steps, in units of STEP, and their weights in the derivative, both of second order.

    Central, or one-sided where that leaves the bounds or nothing begins there (a compartment would be below zero);
    no steps, and weights that are not known (NaN), where no side has room for two.
    """
    low, high = bounds
    central = np.array([1.0, -1.0]), np.array([0.5, -0.5])
    backward = np.array([-1.0, -2.0]), np.array([-2.0, 0.5])
    forward = np.array([1.0, 2.0]), np.array([2.0, -0.5])
    for steps, weights in (central, backward, forward):
        taken = x * (1 + STEP * steps)
        if np.all((low <= taken) & (taken <= high)) and all(begins(float(point)) for point in taken):
            return steps, weights
    return np.zeros(2), np.full(2, np.nan)
