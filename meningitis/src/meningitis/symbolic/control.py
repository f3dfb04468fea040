"""What would bring the epidemic under control: thresholds from R0 alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import sympy as sp
from numpy.typing import NDArray

from meningitis.model import Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import completed, drained_states, uninfected_states
from meningitis.symbolic.diseasefree import settling_parameters, zeros_at
from meningitis.symbolic.effective import reproduction_name
from meningitis.symbolic.growth import growth
from meningitis.symbolic.nextgen import (
    disease_free_at,
    infection_matrices,
    next_generation,
    nobody_left,
    r0_everyone_susceptible,
    r0_numeric,
)
from meningitis.symbolic.zero import depends

GRID = 200
ROOT = 1e-6
"""How far from 1 R0 may be at a root: where it jumps past 1, no value of the parameter gives 1."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Control:
    """Control thresholds.

    susceptible: share s of the living who are susceptible at the disease-free state, which is that of R0: below 1 where
    vaccination or the like keeps people immune; herd_immunity: 1 - s/R0, share of the living to be immune, those
    already immune included (0 where that is below 0); both None where R is not in proportion to a single susceptible
    compartment (`reason` says so); coverage: share to vaccinate at `efficacy` against infection, which here is to
    acquire carriage (a vaccine that prevents illness alone leaves R0 as it is), were nobody immune yet, None where even
    everyone would not do or herd_immunity is None; coverage_at_start: the same with those immune whom the initial state
    has so, (1 - 1/R)/efficacy with R at the start, 0 where that is at most 1: the share of all, or of the susceptible
    alone, to vaccinate as the run begins; r0_susceptible: R0 were everyone susceptible, where the disease-free
    state leaves nobody so (`r0` is then 0 and tells of no outbreak), elsewhere None; critical: by parameter, the value
    nearest to the present one at which R0 = 1 with all others fixed, in its own unit (rates per day), None where none
    lies within its bounds.
    """

    r0: float
    susceptible: float | None
    herd_immunity: float | None
    efficacy: float
    coverage: float | None
    coverage_at_start: float | None
    critical: dict[str, float | None]
    reason: str = ""
    r0_susceptible: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def frame(self) -> pd.DataFrame:
        """Table parameter, value at which R0 = 1 (missing: none within bounds)."""
        return pd.DataFrame(list(self.critical.items()), columns=["parameter", "critical_value"])


def control(model: Model, values: Mapping[str, float], *, efficacy: float = 1.0) -> Control:
    """Control thresholds at `values`, from the disease-free state; `coverage_at_start` alone counts the immune of then.

    efficacy: share of the vaccinated who are protected against infection, that is against acquiring carriage.

    Raises: ValueError where efficacy is outside (0, 1].
    """
    if not 0 < efficacy <= 1:
        raise ValueError(f"efficacy is {efficacy}, but must be above 0 and at most 1")
    values = completed(model, values)
    numeric = r0_numeric(model)
    reproduction = float(numeric(values))
    reason = "R0 is not known at these values" if np.isnan(reproduction) else _no_single_share(model)
    susceptible, needed, coverage, begun, everyone = None, None, None, None, None
    if not reason and bool(nobody_left(model, values)):
        everyone = r0_everyone_susceptible(model, values)
        reason = (
            f"no immune share is given, for {reproduction_name(model, values)} is 0 only because nobody stays "
            f"susceptible however slowly they leave: R0 with everyone susceptible is {everyone:.4g}"
        )
    if not reason:
        susceptible = _susceptible(model, values)
        needed = max(0.0, 1 - susceptible / reproduction) if reproduction > 0 else 0.0
        coverage = _coverage(needed, efficacy)
        at_start = growth(model, values).reproduction
        begun = _coverage(1 - 1 / at_start if at_start > 0 else 0.0, efficacy)
    solved = bool(next_generation(model, zeros=zeros_at(model, values)).disease_free)
    if not solved:  # each of some hundred trial values would need a disease-free state of its own
        words = "the values at which R0 = 1 are not sought where the disease-free state is numeric"
        reason = f"{reason}; {words}" if reason else words
    return Control(
        r0=reproduction,
        susceptible=susceptible,
        herd_immunity=needed,
        efficacy=efficacy,
        coverage=coverage,
        coverage_at_start=begun,
        critical={p.name: critical_value(model, values, p.name) if solved else None for p in model.parameters},
        reason=reason,
        r0_susceptible=everyone,
    )


def _coverage(needed: float, efficacy: float) -> float | None:
    """Share to vaccinate so that a share `needed` (none below 0) is protected; None: everyone would not do."""
    return max(0.0, needed) / efficacy if needed <= efficacy else None


@by_model
def _no_single_share(model: Model) -> str:
    """Why no single immune share keeps infection away; empty where R is in proportion to the susceptible share."""
    drained, none = drained_states(model), "no single immune share keeps infection away"
    if len(drained) != 1 or None in drained:
        # Immunising only the hosts of a vector, say, takes 1 - 1/R0^2 of them.
        sources = " and ".join(sorted(name or "outside" for name in drained))
        return f"{none}: new infections come from {sources}"
    susceptible = str(*drained)
    nobody = {model.symbols[c.name]: 0 for c in model.compartments if c.dead}
    F, V = (matrix.subs(nobody) for matrix in infection_matrices(model))
    states = {model.symbols[name] for name in model.state_names}
    living = sp.Add(*(model.symbols[name] for name in uninfected_states(model)))
    each = F / model.symbols[susceptible]
    per_head = (each * whole for whole in (sp.Integer(1), living))
    if any(depends(rate, states) for rate in V) or all(
        any(depends(gain, states) for gain in matrix) for matrix in per_head
    ):
        return f"{none}: R is not in proportion to {susceptible}"
    return ""


def _susceptible(model: Model, values: Mapping[str, float]) -> float:
    """Share of the living who are in the single susceptible compartment at the disease-free state."""
    (name,) = drained_states(model)
    free = disease_free_at(model, values)
    return free[str(name)] / sum(free[c.name] for c in model.compartments if not c.dead)


def critical_value(model: Model, values: Mapping[str, float], name: str) -> float | None:
    """The value of one parameter, within its bounds and nearest to the present one, at which R0 = 1; None if none."""
    numeric = r0_numeric(model)
    present = values[name]
    low, high = next(p.bounds for p in model.parameters if p.name == name)
    low = 0.0 if low is None or not np.isfinite(low) else float(low)
    high = max(1.0, 1e3 * abs(present)) if high is None or not np.isfinite(high) else float(high)
    linear = np.linspace(low, high, GRID)
    bottom = max(low, 1e-9 * high)
    grid = np.unique(np.concatenate([linear, np.geomspace(bottom, high, GRID), [present]]))
    if name in settling_parameters(model) and present > 0:
        grid = grid[grid > 0]  # where a flow stops, R0 has symbols of its own, which take a second
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = numeric({**values, name: grid}) - 1
    finite = np.isfinite(excess)
    if not finite.any():  # R0 is infinite whatever this parameter is
        return None
    grid, excess = grid[finite], excess[finite]

    def beyond(x: float | Floats) -> Floats:
        return numeric({**values, name: x}) - 1

    crossings = [
        _root(beyond, float(grid[k]), float(grid[k + 1]))
        for k in np.flatnonzero(np.sign(excess[:-1]) * np.sign(excess[1:]) < 0)
    ]
    crossings = [x for x in crossings if abs(float(beyond(x))) < ROOT]
    crossings += [float(x) for x in grid[(excess == 0) & (np.ptp(excess) > 0)]]
    return min(crossings, key=lambda x: abs(x - present), default=None)


def _root(function: Callable[[Floats], Floats], low: float, high: float) -> float:
    """The root between two ends of different sign, to rounding, by eight grids of 65 points, each inside the last.

    Written out because importing scipy.optimize takes a third of the time that `meningitis r0` has.
    """
    for _ in range(8):
        x = np.linspace(low, high, 65)
        signs = np.sign(function(x))
        k = int(np.flatnonzero(signs != signs[0])[0])
        low, high = float(x[k - 1]), float(x[k])
    return (low + high) / 2
