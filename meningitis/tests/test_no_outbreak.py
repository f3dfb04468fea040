"""The study where no outbreak is to be told of: R below 1, or no carrier falls ill."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meningitis.chapters.course import ratios
from meningitis.chapters.outcomes import adequacy
from meningitis.chapters.work import Work
from meningitis.engine import simulate
from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED
from meningitis.report import Report, show


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("model", "scenario", "overrides"),
    [
        (BASIC, "endemic", {}),
        (GENERALISED, "endemic", {}),
        (BASIC, None, {"carrier_conversion_rate": 0.0}),
        (GENERALISED, None, {"carrier_conversion_rate": 0.0}),
    ],
    ids=["basic, R below 1", "generalised, R below 1", "basic, no conversion", "generalised, no conversion"],
)
def test_the_chapters_on_ratios_and_on_p_hold_where_there_is_no_growth_or_no_conversion(
    model: Model, scenario: str | None, overrides: dict[str, float | str], tmp_path: Path
) -> None:
    report = Report(out=tmp_path, title="", lead="")
    report.section("A chapter")
    work = Work(
        report=report, models=(model,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso", scenario=scenario,
        overrides=overrides, days=98.0,
    )  # fmt: skip
    ratios(work)
    if model is not GENERALISED:
        return
    adequacy(work)
    (claim,) = (claim for claim in report.claims if "p = 0" in claim["said"])
    assert not re.search(r"\b(inf|nan)\b", claim["condition"])
    if overrides:  # nobody falls ill at p = 0
        cases = simulate(GENERALISED, parameters={**overrides, "direct_fraction": 0.1}, days=98.0)["cases"][0, -1]
        assert f"cases (from none to {show(cases)})" in claim["condition"] and claim["mark"] != "yes"
