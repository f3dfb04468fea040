"""Local sensitivity: normalised indices of every outcome at one parameter set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from meningitis.analysis.outcomes import OUTCOMES, outcomes
from meningitis.model import Model
from meningitis.symbolic import elasticities

STEP = 0.01  # relative; the integrator's error of 1e-6 is then 1e-4 of the index
STEPPED = ("peak_week",)  # whole weeks have no derivative


@dataclass(frozen=True, kw_only=True)
class LocalSensitivity:
    """(dY/dx)(x/Y) by outcome and parameter; R0 exactly, the others by central differences of 1 %.

    An outcome that is zero has no relative change (NaN).
    """

    indices: dict[str, dict[str, float]]

    def ranked(self, outcome: str) -> list[str]:
        """Parameters by size of their index for one outcome, largest first."""
        column = self.indices[outcome]
        return sorted(column, key=lambda name: -abs(column[name]))

    def frame(self) -> pd.DataFrame:
        """Long table: outcome, parameter, index."""
        rows = [(o, name, index) for o, column in self.indices.items() for name, index in column.items()]
        return pd.DataFrame(rows, columns=["outcome", "parameter", "index"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"indices": self.indices}


def local_sensitivity(model: Model, values: Mapping[str, float], *, days: float = 365.0) -> LocalSensitivity:
    """Normalised sensitivity of R0, weekly peak, cases, deaths and total infected to every parameter at `values`."""
    names = model.parameter_names
    factors = np.ones((2 * len(names) + 1, len(names)))
    for k in range(len(names)):
        factors[2 * k, k], factors[2 * k + 1, k] = 1 + STEP, 1 - STEP
    found = outcomes(model, {name: values[name] * factors[:, k] for k, name in enumerate(names)}, days=days)
    indices = {"R0": elasticities(model).evaluate(values)}
    for outcome in OUTCOMES[1:]:
        if outcome not in STEPPED:
            y = found[outcome]
            differences = (y[0:-1:2] - y[1:-1:2]) / (2 * STEP)
            slopes = differences / y[-1] if y[-1] else np.full_like(differences, np.nan)
            indices[outcome] = dict(zip(names, slopes.tolist(), strict=True))
    return LocalSensitivity(indices=indices)
