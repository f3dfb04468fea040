"""Which parameters matter over their whole distributions: rank correlations and Sobol indices as tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from meningitis.analysis.prcc import PRCC, fewest_rows, prcc
from meningitis.analysis.sobol import balanced
from meningitis.analysis.sobol import sobol as sobol_indices
from meningitis.model import Model


def checked_samples(
    lhs: int, sobol: int, seed: int, *, fewest: int, said: Sequence[str] = ("lhs", "sobol", "seed")
) -> None:
    """Raises: ValueError where there are fewer than `fewest` Latin hypercube samples, where the Sobol base samples are
    no power of two, or where the seed is below 0; `said` is what the caller's user calls the three."""
    if lhs < fewest:
        raise ValueError(f"{said[0]} is {lhs}, but must be at least {fewest}")
    balanced(sobol, said[1])
    if seed < 0:
        raise ValueError(f"{said[2]} is {seed}, but must be 0 or more")


def global_sensitivity(
    model: Model,
    values: Mapping[str, float],
    days: float | None = None,
    *,
    scenario: str | None = None,
    lhs: int,
    sobol: int,
    seed: int,
    pinned: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, PRCC]:
    """Tables of PRCC and of Sobol indices with 95 % intervals (Fisher's z; Student's t over scrambles), by outcome
    and parameter, with LaTeX symbols.

    What `values` leave out, and the days, are those of the scenario (None: the default one).
    The outcomes are those of the first `days`; the third of what is returned says in what share of the Latin hypercube
    cases still rise then, so that outbreaks are cut short, and in what share they peak between the first and the last
    week.
    `lhs` Latin hypercube samples and `sobol` base samples (a power of two); those pinned stay at `values`.
    `progress(done, n)` hears of each sweep's chunks; `checkpoint` is a folder that keeps both sweeps' finished runs, so
    that the same call goes on after an interruption.
    Raises: as `checked_samples`, `prcc` and `sobol` do.
    """
    checked_samples(lhs, sobol, seed, fewest=fewest_rows(model, pinned))
    symbols = {p.name: p.symbol for p in model.parameters}
    ranked = checkpoint / "ranks.npz" if checkpoint else None
    shared = checkpoint / "shares.npz" if checkpoint else None
    both: dict[str, Any] = {"seed": seed, "values": values, "scenario": scenario, "days": days}
    both |= {"pinned": pinned, "progress": progress}
    correlated = prcc(model, n=lhs, checkpoint=ranked, **both)
    ranks = correlated.frame()
    shares = sobol_indices(model, n=sobol, checkpoint=shared, **both).frame()
    for table in (ranks, shares):
        table.insert(2, "symbol", table["parameter"].map(symbols))
    return ranks, shares, correlated
