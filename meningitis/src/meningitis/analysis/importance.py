"""Which parameters matter over their whole distributions: rank correlations and Sobol indices as tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from meningitis.analysis.prcc import prcc
from meningitis.analysis.sobol import sobol as sobol_indices
from meningitis.model import Model


def global_sensitivity(
    model: Model,
    values: Mapping[str, float],
    days: float,
    *,
    lhs: int,
    sobol: int,
    seed: int,
    pinned: Collection[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of PRCC and of Sobol indices with 95 % intervals, by outcome and parameter, with LaTeX symbols.

    `lhs` Latin hypercube samples and `sobol` base samples (a power of two); those pinned stay at `values`.
    Raises: as `prcc` and `sobol` do.
    """
    symbols = {p.name: p.symbol for p in model.parameters}
    ranks = prcc(model, n=lhs, seed=seed, values=values, days=days, pinned=pinned).frame()
    shares = sobol_indices(model, n=sobol, seed=seed, values=values, days=days, pinned=pinned).frame()
    for table in (ranks, shares):
        table.insert(2, "symbol", table["parameter"].map(symbols))
    return ranks, shares
