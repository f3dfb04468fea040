"""The paper's study in one call: every table and figure for both models and the shipped scenarios, and the page."""

from __future__ import annotations

import datetime as dt
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from meningitis import analysis, models
from meningitis.calendar import WeekSystem
from meningitis.model import Model
from meningitis.report import Report

RTOL, ATOL = 1e-6, 1e-8
LIBRARIES = ("meningitis", "numpy", "scipy", "sympy", "numba", "pandas", "matplotlib")


@dataclass(kw_only=True)
class Work:
    """What every chapter needs: the page, the results so far and the settings."""

    report: Report
    seed: int
    sobol_n: int
    lhs_n: int
    start: dt.date | None
    weeks: WeekSystem
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> tuple[Model, Model]:
        """The basic and the generalised model."""
        return models.BASIC, models.GENERALISED


def study(
    out: Path,
    *,
    seed: int = 1,
    sobol_n: int = 4096,
    lhs_n: int = 2000,
    start: dt.date | None = None,
    weeks: WeekSystem = "iso",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Run the whole study and write figures/, tables/, results.json and, last, report.html under `out`.

    Returns the page's path. Raises ValueError for unusable sample sizes, OSError where `out` cannot be written.
    """
    if sobol_n < 2 or sobol_n & (sobol_n - 1):
        raise ValueError(f"sobol-n is {sobol_n}, but must be a power of two such as 4096")
    if lhs_n < 50:
        raise ValueError(f"lhs-n is {lhs_n}, but must be at least 50")
    from meningitis import chapters

    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    report = Report(
        out=out,
        title="A deterministic model for meningitis epidemics: the whole study",
        lead="Basic and generalised model with carriers and two stages of illness, after Yaga & Saporu (arXiv "
        "2304.00148). Structure from the paper's abstract; readings of our own and assumed values are marked as such.",
    )
    work = Work(report=report, seed=seed, sobol_n=sobol_n, lhs_n=lhs_n, start=start, weeks=weeks)
    for place, (title, chapter) in enumerate(chapters.CHAPTERS, start=1):
        if progress:
            progress(f"{place}/{len(chapters.CHAPTERS)} {title} ({time.perf_counter() - began:.1f} s)")
        report.section(title)
        chapter(work)
    page = report.write(work.results)
    if progress:
        progress(f"done in {time.perf_counter() - began:.1f} s")
    return page


def global_sensitivity(
    model: Model, values: Mapping[str, float], days: float, *, lhs: int, sobol: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of PRCC and of Sobol indices with 95 % intervals, by outcome and parameter, with LaTeX symbols."""
    symbols = {p.name: p.symbol for p in model.parameters}
    ranks = analysis.prcc(model, n=lhs, seed=seed, values=values, days=days).frame()
    shares = analysis.sobol(model, n=sobol, seed=seed, values=values, days=days).frame()
    for table in (ranks, shares):
        table.insert(2, "symbol", table["parameter"].map(symbols))
    return ranks, shares


def provenance(work: Work) -> dict[str, Any]:
    """What is needed to run the same study again: declarations, values, seed, sizes, tolerances, versions."""
    return {
        "models": {
            m.name: {"hash": m.hash, "scenarios": {s.name: m.values(s.name) for s in m.scenarios}} for m in work.models
        },
        "seed": work.seed,
        "sobol_n": work.sobol_n,
        "lhs_n": work.lhs_n,
        "tolerances": {"rtol": RTOL, "atol_persons": ATOL},
        "start": work.start,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}},
    }


__all__ = ["Work", "global_sensitivity", "provenance", "study"]
