"""Partial rank correlation of outcomes with parameters over a Latin hypercube.

It tells of outcomes that rise or fall with a parameter throughout. The week of the peak does not where there may be no
outbreak (its first week has the most cases, whatever the parameter), so it is correlated over those draws alone whose
weekly peak lies within the run.

Source: Marino et al., J Theor Biol 254 (2008) 178-196.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, qmc, rankdata

from meningitis.analysis.outcomes import OUTCOMES, draw, outcomes, sampled, varies
from meningitis.analysis.runs import Array, filled, length
from meningitis.model import Model

LEVEL = 0.95
NOTHING = 1e-10
"""Share of a variance that counts as none."""


@dataclass(frozen=True, kw_only=True)
class PRCC:
    """Partial rank correlations with `level` intervals; arrays are (outcomes, parameters).

    growing: share of the draws in which the last whole week has the most cases, so that the run ends before the peak.
    peaked: share in which neither the first nor the last does: the draws that the week of the peak is correlated over.
    An outcome that does not vary by more than the solver errs has no correlation (NaN).
    """

    outcomes: tuple[str, ...]
    parameters: tuple[str, ...]
    coefficient: Array
    low: Array
    high: Array
    n: int
    seed: int
    growing: float
    peaked: float
    level: float = LEVEL

    def frame(self) -> pd.DataFrame:
        """Long table: outcome, parameter, prcc, low, high."""
        table = _pairs(self.outcomes, self.parameters)
        columns = {"prcc": self.coefficient, "low": self.low, "high": self.high}
        return pd.DataFrame(table | {name: array.ravel() for name, array in columns.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data: rows of the table, n, seed, growing, peaked and level."""
        facts = {"n": self.n, "seed": self.seed, "growing": self.growing, "peaked": self.peaked, "level": self.level}
        return {"rows": self.frame().to_dict("records"), **facts}


def partial_correlations(x: Array, y: Array) -> Array:
    """Partial correlation of each column of x (n, k) with y (n,), all other columns held; shape (k,).

    Ranks in, PRCC out. NaN where y or any column is constant or holds NaN, and where the other columns leave nothing
    of y or of the column itself to correlate.
    """
    joint = np.column_stack([x, y])
    found = np.full(x.shape[1], np.nan)
    if not np.all(np.ptp(joint, axis=0) > 0):
        return found
    correlation = np.asarray(np.corrcoef(joint, rowvar=False))
    for j in range(found.size):
        pair, others = [j, found.size], [i for i in range(found.size) if i != j]
        shared = correlation[np.ix_(pair, others)]
        inverse = np.linalg.pinv(correlation[np.ix_(others, others)], hermitian=True)
        left = correlation[np.ix_(pair, pair)] - shared @ inverse @ shared.T  # of both, once the others explain theirs
        if np.diag(left).min() > NOTHING:
            found[j] = np.clip(left[0, 1] / np.sqrt(left[0, 0] * left[1, 1]), -1.0, 1.0)
    return found


def fisher_interval(coefficient: Array, n: int, controls: int, level: float = LEVEL) -> tuple[Array, Array]:
    """Interval of a partial correlation from n rows with `controls` variables held, by Fisher's z.

    A correlation of exactly 1 or -1 has an interval of no width.
    """
    half = norm.ppf(0.5 + level / 2) / np.sqrt(n - controls - 3)
    with np.errstate(divide="ignore"):
        z = np.arctanh(coefficient)
    return np.tanh(z - half), np.tanh(z + half)


def fewest_rows(model: Model, pinned: Collection[str] = ()) -> int:
    """Rows that a partial correlation of each sampled parameter, and its interval, need. Raises: as `sampled` does."""
    return len(sampled(model, pinned)) + 5


def prcc(
    model: Model,
    outputs: Sequence[str] = OUTCOMES,
    *,
    n: int = 2000,
    seed: int = 0,
    values: Mapping[str, float] | None = None,
    scenario: str | None = None,
    days: float | None = None,
    pinned: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> PRCC:
    """PRCC of `outputs` with every sampled parameter; those of a single value or pinned stay at `values`.

    What `values` leave out, and the days, are those of the scenario (None: the default one).
    `peak_week` is correlated over the draws whose weekly peak lies within the run, NaN where these are too few.

    `progress` and `checkpoint` are those of `engine.reduce`.
    Raises: ValueError for an unknown output, nothing left to sample, or fewer rows than the partial correlation needs;
    RuntimeError where a trajectory fails.
    """
    strange = [name for name in outputs if name not in OUTCOMES]
    if strange:
        raise ValueError(f"unknown outcome {', '.join(strange)}; allowed are {', '.join(OUTCOMES)}")
    names, fewest = sampled(model, pinned), fewest_rows(model, pinned)
    if n < fewest:
        raise ValueError(f"n is {n}, but {len(names)} sampled parameters need at least {fewest}")
    uniform = qmc.LatinHypercube(d=len(names), rng=np.random.default_rng(seed)).random(n)
    samples = draw(model, names, uniform, filled(model, values, scenario))
    days = length(model, days, scenario)
    found = outcomes(model, samples, days=days, progress=progress, checkpoint=checkpoint)
    week, cases = found["peak_week"], found["peak_weekly_incidence"] > 0
    peaked = cases & (week > 1) & (week < days // 7)
    tables = [_ranked(uniform, found[o], peaked if o == "peak_week" else np.full(n, True)) for o in outputs]
    coefficient, low, high = np.stack(tables, axis=1)
    return PRCC(
        outcomes=tuple(outputs),
        parameters=names,
        coefficient=coefficient,
        low=low,
        high=high,
        n=n,
        seed=seed,
        growing=float(np.mean(cases & (week == days // 7))),
        peaked=float(np.mean(peaked)),
    )


def _ranked(uniform: Array, outcome: Array, of: NDArray[np.bool_]) -> Array:
    """PRCC, low and high (3, k) over the rows chosen by `of` (n,); NaN where these are too few or do not vary."""
    n, k = int(np.count_nonzero(of)), uniform.shape[1]
    if n < k + 5 or not varies(outcome[of]):  # ranks would blow the solver's error up to a whole outcome
        return np.full((3, k), np.nan)
    # A distribution function is monotone, so the ranks of the uniforms are the ranks of the parameters.
    found = partial_correlations(rankdata(uniform[of], axis=0), rankdata(outcome[of]))
    return np.stack([found, *fisher_interval(found, n, k - 1)])


def _pairs(rows: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    return {"outcome": np.repeat(np.array(rows), len(columns)), "parameter": np.tile(np.array(columns), len(rows))}
