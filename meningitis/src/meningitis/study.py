"""The paper's study in one call: every table and figure for both models and the shipped scenarios, and the page."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from meningitis.analysis.importance import checked_samples
from meningitis.analysis.outcomes import distributed, sampled
from meningitis.analysis.surveillance import checked_fraction
from meningitis.calendar import WeekSystem, date_of
from meningitis.chapters import CHAPTERS, Work, fitting
from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED
from meningitis.report import Report

FEWEST = 50
"""Latin hypercube samples that percentile bands take at least."""


def study(
    out: Path,
    *,
    models: tuple[Model, ...] = (BASIC, GENERALISED),
    scenario: str | None = None,
    overrides: Mapping[str, float | str] | None = None,
    days: float | None = None,
    seed: int = 1,
    sobol_n: int = 4096,
    lhs_n: int = 2000,
    start: dt.date | None = None,
    weeks: WeekSystem = "iso",
    reporting_fraction: float = 1.0,
    progress: Callable[[str], None] | None = None,
    checkpoint: Path | None = None,
) -> Path:
    """Run the whole study and write figures/, tables/, results.json, report.html and, last, manifest.json under `out`.

    `models`: the fuller one last; chapters that need what a declaration lacks say so. `scenario`, `overrides` and
    `days` change what single runs start from, every scenario's values, and the length of every run. WHO's thresholds
    are held against `reporting_fraction` suspected cases for each case of the model.
    The files of an earlier study in `out` are removed, and no others; so are those of this one where it fails.
    `progress` hears in words how far the work is; `checkpoint` is a folder that keeps the finished runs of the global
    sensitivity, a file for each model and method, so that the same study after an interruption has these at once.
    Returns the page's path. Raises ModelError for unknown scenarios or values out of bounds, ValueError for unusable
    sample sizes, a seed below 0, runs beyond the year 9999, or where `out` has a manifest of something else, OSError
    where it cannot be written.
    """
    checked_samples(lhs_n, sobol_n, seed, fewest=FEWEST, said=("lhs_n", "sobol_n", "seed"))
    checked_fraction(reporting_fraction)
    began = time.perf_counter()
    shipped = models == (BASIC, GENERALISED)
    report = Report(
        out=out,
        title="A deterministic model for meningitis epidemics"
        if shipped
        else f"A study of the model {models[-1].name}",
        lead="Basic and generalised model with carriers and two stages of illness, after Yaga & Saporu (arXiv "
        "2304.00148). The structure is that of the paper's abstract; readings of our own and assumed values are marked "
        "as such. Parameters are not fitted to any place: nothing here is a forecast."
        if shipped
        else models[-1].title or models[-1].description,
    )
    work = Work(
        report=report,
        models=models,
        seed=seed,
        sobol_n=sobol_n,
        lhs_n=lhs_n,
        start=start,
        weeks=weeks,
        scenario=scenario,
        overrides=dict(overrides or {}),
        days=days,
        reporting_fraction=reporting_fraction,
        say=progress,
        checkpoint=checkpoint,
    )
    for model in models:
        if distributed(model):
            sampled(model, work.pinned(model))
    models[-1].values(scenario, work.overrides)  # what it refuses, it refuses before anything is written
    if start is not None:
        # The last date of all that any chapter asks for, before anything is written.
        date_of(max(work.length(model, name) for model in models for name in work.scenarios(model)) + 7, start)
    report.begin()
    try:
        chosen = fitting(work, CHAPTERS)
        for place, (title, chapter) in enumerate(chosen, start=1):
            if progress:
                progress(f"{place}/{len(chosen)} {title} ({time.perf_counter() - began:.1f} s)")
            report.section(title)
            chapter(work)
        page = report.write(work.results)
    except BaseException:  # interrupted as well
        report.discard()
        raise
    if progress:
        progress(f"done in {time.perf_counter() - began:.1f} s")
    return page
