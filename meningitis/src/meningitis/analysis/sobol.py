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
from scipy.stats import qmc, sobol_indices, t

from meningitis.analysis.outcomes import OUTCOMES, draw, outcomes, sampled, varies
from meningitis.analysis.runs import Array, filled, length
from meningitis.model import Model

LEVEL = 0.95
REPLICATES = 16
"""Scrambles that share the base samples, where these suffice for two each: each says on its own how far off it is."""


@dataclass(frozen=True, kw_only=True)
class Sobol:
    """First and total order with intervals of `level`; arrays are (outcomes, parameters).

    The n base samples are 16 independent scrambles of a Sobol sequence (fewer below n = 32, none to compare at n = 2).
    An index is estimated from all of them; its interval is Student's t over the scrambles, whose points depend on one
    another within each of them only. An outcome that does not vary by more than the solver errs has no indices (NaN).
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


def balanced(n: int, said: str = "n") -> None:
    """Raises: ValueError where n, which the caller's user calls `said`, is no power of two from 2 on."""
    if n < 2 or n & (n - 1):
        words = "a Sobol sequence is balanced only for powers of two, such as 1024 or 4096"
        raise ValueError(f"{said} is {n}, but {words}")


def sobol_of(
    function: Callable[[Array], Array], names: Sequence[str], outputs: Sequence[str], *, n: int, seed: int
) -> Sobol:
    """Indices of function: uniforms (rows, k) -> outcomes (rows, len(outputs)), from n base samples.

    The function is called once, on all n(k + 2) rows: A, B, then A with each column of B. Raises: ValueError where n is
    not a power of two.
    """
    balanced(n)
    k = len(names)
    replicates = min(REPLICATES, n // 2)
    base = np.concatenate(
        [
            qmc.Sobol(d=2 * k, scramble=True, rng=np.random.default_rng([seed, r])).random(n // replicates)
            for r in range(replicates)
        ]
    )
    A, B = base[:, :k], base[:, k:]
    mixed = np.repeat(A[None], k, axis=0)
    for j in range(k):
        mixed[j, :, j] = B[:, j]
    y = np.asarray(function(np.concatenate([A, B, mixed.reshape(k * n, k)]))).T  # (outputs, rows)
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
        first, total = (np.reshape(order, (2, k))[0] for order in (result.first_order, result.total_order))
        half = _half_widths(values, first, total, replicates)
        low, high = np.stack([first, total]) - half, np.stack([first, total]) + half
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


def _half_widths(y: Array, first: Array, total: Array, replicates: int) -> Array:
    """Half the length of the intervals of first and total order, (2, k), NaN where there is no second replicate.

    An index is a ratio of means over rows, by the estimators of scipy: what each replicate adds to it, to first order,
    is the mean of its rows' part - index x square, over the variance. These are independent.
    """
    k = first.size
    f_A, f_B, *mixed = (y - y[: y.size * 2 // (k + 2)].mean()).reshape(k + 2, replicates, -1)
    f_AB = np.stack(mixed)
    square = ((f_A**2 + f_B**2) / 2).mean(axis=-1)  # (replicates,)
    parts = np.stack([f_B * (f_AB - f_A), (f_A - f_AB) ** 2 / 2]).mean(axis=-1)  # (2, k, replicates)
    off = (parts - np.stack([first, total])[..., None] * square) / square.mean()
    if replicates < 2:
        return np.full((2, k), np.nan)
    error = off.std(axis=-1, ddof=1) / np.sqrt(replicates)
    return np.asarray(t.ppf((1 + LEVEL) / 2, replicates - 1) * error)


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
