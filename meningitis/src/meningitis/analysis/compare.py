"""Two parameter sets side by side, and percentile bands over many."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import qmc

from meningitis.analysis.outcomes import COMPARED, draw, outcomes, sampled, unknown
from meningitis.analysis.runs import Array, filled, length, solved
from meningitis.engine import simulate, weekly_times
from meningitis.model import Model

PERCENTILES = (2.5, 25.0, 50.0, 75.0, 97.5)
OVER = 0.01
"""Share of the most infected at once below which an outbreak counts as over."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Outcomes (`outcomes.COMPARED`) under a and under b within `days`; averted is a - b (negative: b is worse).

    unknown: why some outcomes are NaN, a sentence each.
    unfinished: which of the two outbreaks are not over by then, those infected being above 1 % of their peak: what is
    averted may be postponed.
    """

    a: dict[str, float]
    b: dict[str, float]
    cases_averted: float
    deaths_averted: float
    days: float
    unfinished: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """Table outcome, a, b, difference (a - b)."""
        rows = [(name, self.a[name], self.b[name], self.a[name] - self.b[name]) for name in self.a]
        return pd.DataFrame(rows, columns=["outcome", "a", "b", "difference"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        averted = {"cases_averted": self.cases_averted, "deaths_averted": self.deaths_averted}
        return {"a": self.a, "b": self.b, **averted, "days": self.days} | {
            "unfinished": list(self.unfinished),
            "unknown": list(self.unknown),
        }


def compare(
    model: Model,
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    scenario: str | None = None,
    days: float | None = None,
) -> Comparison:
    """Cases and deaths averted by going from parameter set `a` to `b`.

    Parameters that a set leaves out, and the days, are those of the scenario (None: the default one).
    Raises: ModelError for unknown names and bad values.
    """
    a, b, days = filled(model, a, scenario), filled(model, b, scenario), length(model, days, scenario)
    both = {name: np.array([a[name], b[name]]) for name in model.parameter_names}
    found = outcomes(model, both, days=days)
    run = simulate(model, parameters=both, times=weekly_times(days), days=days)
    infected = np.sum([run[c.name] for c in model.compartments if c.infected], axis=0)  # (2, T)
    left = infected[:, -1] > OVER * infected.max(axis=1)
    first, second = ({name: float(found[name][k]) for name in COMPARED} for k in range(2))
    return Comparison(
        a=first,
        b=second,
        cases_averted=first["cases"] - second["cases"],
        deaths_averted=first["deaths"] - second["deaths"],
        days=days,
        unknown=unknown(model, both),
        unfinished=tuple(name for name, more in zip("ab", left, strict=True) if more),
    )


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Percentiles over sampled parameters: `series` by quantity (len(percentiles), T), persons.

    Quantities: each compartment at `times` (days), and new_infections, cases, deaths per week, the week ending there
    (the first is 0 at day 0).
    """

    times: Array
    percentiles: tuple[float, ...]
    series: dict[str, Array]
    n: int
    seed: int

    def frame(self) -> pd.DataFrame:
        """Long table: quantity, percentile, day, value."""
        parts = [
            pd.DataFrame({"quantity": name, "percentile": q, "day": self.times, "value": band[k]})
            for name, band in self.series.items()
            for k, q in enumerate(self.percentiles)
        ]
        return pd.concat(parts, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        series = {name: band.tolist() for name, band in self.series.items()}
        return {
            "times": self.times.tolist(),
            "percentiles": list(self.percentiles),
            "series": series,
            "n": self.n,
            "seed": self.seed,
        }


def bands(
    model: Model,
    *,
    n: int = 1000,
    seed: int = 0,
    values: Mapping[str, float] | None = None,
    scenario: str | None = None,
    days: float | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    pinned: Collection[str] = (),
) -> Bands:
    """Percentile bands of weekly output over n parameter sets from the declared distributions (Latin hypercube).

    Parameters of a single value, and those pinned, stay at `values`, or as in the scenario (None: the default one),
    whose days are those of the run by default. Raises: ValueError for fewer than two draws or where nothing is left to
    sample, RuntimeError where a trajectory fails.
    """
    if n < 2:
        raise ValueError(f"n is {n}, but a band needs at least 2 draws")
    names, days = sampled(model, pinned), length(model, days, scenario)
    uniform = qmc.LatinHypercube(d=len(names), rng=np.random.default_rng(seed)).random(n)
    times = weekly_times(days, whole=True)
    samples = draw(model, names, uniform, filled(model, values, scenario))
    run = solved(simulate(model, parameters=samples, times=times, days=days))
    weekly = np.diff(run.cumulative, axis=1, prepend=0.0)
    columns = {name: run.states[:, :, k] for k, name in enumerate(model.state_names)}
    columns |= {f"weekly_{name}": weekly[:, :, k] for k, name in enumerate(run.cumulative_names)}
    return Bands(
        times=times,
        percentiles=tuple(percentiles),
        series={name: np.percentile(column, percentiles, axis=0) for name, column in columns.items()},
        n=n,
        seed=seed,
    )
