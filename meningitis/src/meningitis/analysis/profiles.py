"""Case-carrier ratios over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from meningitis.analysis.runs import Array, columns, length, solved, swept
from meningitis.engine import simulate
from meningitis.model import Model
from meningitis.symbolic import growth, thresholds
from meningitis.symbolic.growth import ill_states


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Ratios for each parameter set (n) at each time (T).

    stage1: I1/C; both: all ill over carriers, (I1 + I2)/C; NaN where there are no carriers. For I1/C only: threshold
    (n, T), below which stage I spreads at that time; critical (n,), the same without direct infection; early (n,), NaN
    where the infection does not grow.
    """

    times: Array
    sweep: dict[str, Array]
    stage1: Array
    both: Array
    prevalence: Array
    threshold: Array
    critical: Array
    early: Array

    def frame(self) -> pd.DataFrame:
        """Long table: set, swept values, day, stage1, both, threshold, critical, early, prevalence.

        The critical and the early ratio are those of the set, on each of its days.
        """
        n, points = self.stage1.shape
        table: dict[str, Any] = {"set": np.repeat(np.arange(n), points)}
        table |= {name: np.repeat(values, points) for name, values in self.sweep.items()}
        table |= {"day": np.tile(self.times, n), "stage1": self.stage1.ravel(), "both": self.both.ravel()}
        table |= {"threshold": self.threshold.ravel()}
        table |= {"critical": np.repeat(self.critical, points), "early": np.repeat(self.early, points)}
        return pd.DataFrame(table | {"prevalence": self.prevalence.ravel()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, lists of lists."""
        names = ("times", "stage1", "both", "prevalence", "threshold", "critical", "early")
        arrays = {name: getattr(self, name).tolist() for name in names}
        return arrays | {"sweep": {name: values.tolist() for name, values in self.sweep.items()}}


def profiles(
    model: Model,
    values: Mapping[str, float],
    sweep: Mapping[str, Sequence[float]] | None = None,
    *,
    scenario: str | None = None,
    days: float | None = None,
    step: float = 1.0,
) -> Profiles:
    """Case-carrier ratios for every combination of the swept parameter values (none: `values` alone).

    Parameters that neither `values` nor the sweep gives, and the days, are those of the scenario (None: the default
    one).
    `step` is the days from one time to the next; the last day is one too.
    Raises: ValueError for a step that is not above 0, a swept parameter without values, or a declaration without
    thresholds (see `symbolic.thresholds`); ModelError for an unknown parameter; RuntimeError where a trajectory fails.
    """
    if not 0 < step < np.inf:
        raise ValueError(f"step is {step:g} days, but must be above 0 and finite")
    conditions = thresholds(model)
    case, carrier = conditions.case, conditions.carrier
    samples, days = swept(model, values, sweep, scenario), length(model, days, scenario)
    size = next(iter(samples.values())).size
    times = np.unique(np.append(np.arange(0.0, days, step), days))
    run = solved(simulate(model, parameters=samples, times=times, days=days))
    ill = ill_states(model)
    stage1, both, prevalence, threshold = (np.empty((size, times.size)) for _ in range(4))
    critical, early = np.empty(size), np.empty(size)
    for k in range(size):
        held = columns(run, model, k)
        carriers = np.where(held[carrier] > 0, held[carrier], np.nan)
        prevalence[k] = sum(held[name] for name in ill)
        stage1[k], both[k] = held[case] / carriers, prevalence[k] / carriers
        here = {name: float(column[k]) for name, column in samples.items()}
        threshold[k] = conditions.along(model, here, held)["stage1_spreads"]
        critical[k] = conditions.evaluate(model, here)["critical_ratio"]
        speed = growth(model, here)
        early[k] = speed.early_ratio if speed.rate > 0 and speed.early_ratio is not None else np.nan
    return Profiles(
        times=times,
        sweep={name: samples[name] for name in sweep or {}},
        stage1=stage1,
        both=both,
        prevalence=prevalence,
        threshold=threshold,
        critical=critical,
        early=early,
    )
