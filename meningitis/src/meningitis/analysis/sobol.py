"""Sobol indices of first and total order.

Source: Saltelli et al., Comput Phys Commun 181 (2010) 259-270, as scipy.stats.sobol_indices has it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import qmc, sobol_indices

from meningitis.analysis.outcomes import OUTCOMES, draw, outcomes, sampled, varies
from meningitis.analysis.runs import Array, filled, length
from meningitis.model import Model

LEVEL, RESAMPLES = 0.95, 500


@dataclass(frozen=True, kw_only=True)
class Sobol:
    """First and total order with bootstrap intervals of `level`; arrays are (outcomes, parameters).

    An outcome that does not vary by more than the solver errs has no indices (NaN).
    """

    outcomes: tuple[str, ...]
    parameters: tuple[str, ...]
    first: Array
    first_low: Array
    first_high: Array
    total: Array
    total_low: Array
    total_high: Array
    n: int
    seed: int
    level: float = LEVEL

    def frame(self) -> pd.DataFrame:
        """Long table: outcome, parameter, first, first_low, first_high, total, total_low, total_high."""
        k = len(self.parameters)
        names = ("first", "first_low", "first_high", "total", "total_low", "total_high")
        table: dict[str, Any] = {"outcome": np.repeat(np.array(self.outcomes), k)}
        table["parameter"] = np.tile(np.array(self.parameters), len(self.outcomes))
        return pd.DataFrame(table | {name: getattr(self, name).ravel() for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Plain data: rows of the table, n, seed and level."""
        return {"rows": self.frame().to_dict("records"), "n": self.n, "seed": self.seed, "level": self.level}


def sobol_of(
    function: Callable[[Array], Array], names: Sequence[str], outputs: Sequence[str], *, n: int, seed: int
) -> Sobol:
    """Indices of function: uniforms (rows, k) -> outcomes (rows, len(outputs)), from n base samples.

    The function is called once, on all n(k + 2) rows. Raises: ValueError where n is not a power of two.
    """
    if n < 2 or n & (n - 1):
        raise ValueError(f"n is {n}, but a Sobol sequence is balanced only for powers of two, such as 1024 or 4096")
    k = len(names)
    base = qmc.Sobol(d=2 * k, scramble=True, rng=np.random.default_rng(seed)).random(n)
    A, B = base[:, :k], base[:, k:]
    mixed = np.repeat(A[None], k, axis=0)
    for j in range(k):
        mixed[j, :, j] = B[:, j]
    y = np.asarray(function(np.concatenate([A, B, mixed.reshape(k * n, k)]))).T  # (outputs, rows)
    generator = np.random.default_rng([seed, 1])
    columns = []
    for values in y:
        if not varies(values):
            columns.append(np.full((6, k), np.nan))
            continue
        # scipy takes f_A, f_B as (s, n) and f_AB as (k, s, n). Outputs are given twice, since it squeezes the indices
        # and cannot go on from the scalar that a single parameter's single output leaves.
        twice = np.stack([values, values])
        f_AB = twice[:, 2 * n :].reshape(2, k, n).transpose(1, 0, 2)
        result = sobol_indices(func={"f_A": twice[:, :n], "f_B": twice[:, n : 2 * n], "f_AB": f_AB}, n=n)
        low, high = _intervals(values, n, k, generator)
        first, total = (np.reshape(order, (2, k))[0] for order in (result.first_order, result.total_order))
        columns.append(np.stack([first, low[0], high[0], total, low[1], high[1]]))
    table = np.stack(columns, axis=1)  # (6, outputs, k)
    return Sobol(
        outcomes=tuple(outputs),
        parameters=tuple(names),
        first=table[0],
        first_low=table[1],
        first_high=table[2],
        total=table[3],
        total_low=table[4],
        total_high=table[5],
        n=n,
        seed=seed,
    )


def _intervals(y: Array, n: int, k: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Percentile bootstrap over base samples: bounds (2, k) of first and total order, by the estimators of scipy.

    The estimators are means over rows, so a resample is a vector of weights and all of them one matrix product; scipy's
    own bootstrap jackknifes every row, which takes longer than the outbreaks do.
    """
    centred = y - y[: 2 * n].mean()
    f_A, f_B, f_AB = centred[:n, None], centred[n : 2 * n, None], centred[2 * n :].reshape(k, n).T
    weights = generator.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n  # (resamples, n)
    both = np.hstack([f_A, f_B])
    mean, square = (weights @ both).mean(axis=1), (weights @ both**2).mean(axis=1)
    variance = (square - mean**2)[:, None]
    first = weights @ (f_B * (f_AB - f_A)) / variance
    total = weights @ ((f_A - f_AB) ** 2) / 2 / variance
    tail = 50 * (1 - LEVEL)
    bounds = np.percentile(np.stack([first, total]), [tail, 100 - tail], axis=1)
    return bounds[0], bounds[1]


def sobol(
    model: Model,
    *,
    n: int = 4096,
    seed: int = 0,
    values: Mapping[str, float] | None = None,
    scenario: str | None = None,
    days: float | None = None,
    pinned: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> Sobol:
    """Sobol indices of R0, weekly peak, its week, cases, deaths and total infected for every sampled parameter.

    Runs n(k + 2) outbreaks for k sampled parameters; the others, and those pinned, stay at `values` or, with the days,
    as in the scenario (None: the default one). `progress` and `checkpoint` are those of `engine.reduce`.
    Raises: ValueError where n is not a power of two or nothing is left to sample; RuntimeError where a run fails.
    """
    names = sampled(model, pinned)
    held, end = filled(model, values, scenario), length(model, days, scenario)

    def run(uniform: Array) -> Array:
        samples = draw(model, names, uniform, held)
        found = outcomes(model, samples, days=end, progress=progress, checkpoint=checkpoint)
        return np.column_stack([found[name] for name in OUTCOMES])

    return sobol_of(run, names, OUTCOMES, n=n, seed=seed)
