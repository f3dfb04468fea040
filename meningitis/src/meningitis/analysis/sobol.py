"""Sobol indices of first and total order.

Source: Saltelli et al., Comput Phys Commun 181 (2010) 259-270, as scipy.stats.sobol_indices has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import qmc, sobol_indices

from meningitis.analysis.outcomes import OUTCOMES, draw, outcomes, sampled
from meningitis.analysis.runs import Array
from meningitis.model import Model

LEVEL, RESAMPLES = 0.95, 200


@dataclass(frozen=True, kw_only=True)
class Sobol:
    """First and total order with bootstrap intervals of `level`; arrays are (outcomes, parameters).

    An outcome that does not vary has no indices (NaN).
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
    columns = []
    for values in y:
        if np.ptp(values) == 0:
            columns.append(np.full((6, k), np.nan))
            continue
        f_AB = values[2 * n :].reshape(k, 1, n)
        # scipy takes f_A, f_B as (s, n) and f_AB as (k, s, n).
        result = sobol_indices(func={"f_A": values[None, :n], "f_B": values[None, n : 2 * n], "f_AB": f_AB}, n=n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a parameter without any effect: its index is 0 in every resample
            boot = result.bootstrap(confidence_level=LEVEL, n_resamples=RESAMPLES)
        first, total = boot.first_order.confidence_interval, boot.total_order.confidence_interval
        rows = (result.first_order, first.low, first.high, result.total_order, total.low, total.high)
        block = np.stack([np.ravel(row) for row in rows])
        point = block[[0, 0, 0, 3, 3, 3]]
        columns.append(np.where(np.isnan(block), point, block))
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


def sobol(
    model: Model, *, n: int = 4096, seed: int = 0, values: Mapping[str, float] | None = None, days: float = 365.0
) -> Sobol:
    """Sobol indices of R0, weekly peak, its week, cases, deaths and total infected for every sampled parameter.

    Runs n(k + 2) outbreaks for k sampled parameters; the others stay at `values` (default: defaults).
    Raises: ValueError where n is not a power of two; RuntimeError where a trajectory fails.
    """
    names = sampled(model)
    held = values or model.values()

    def run(uniform: Array) -> Array:
        found = outcomes(model, draw(model, names, uniform, held), days=days)
        return np.column_stack([found[name] for name in OUTCOMES])

    return sobol_of(run, names, OUTCOMES, n=n, seed=seed)
