"""What the rates mean: mean stays, cases per infection, deaths per case, and how many carry at most."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from textbook import SEIAR, SIR, VECTOR

from meningitis.chapters.course import course
from meningitis.chapters.structure import the_models
from meningitis.chapters.work import OUTCOME_WORDS, Work
from meningitis.cli import main
from meningitis.engine import simulate
from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED
from meningitis.report import Report
from meningitis.symbolic import natural_history


@pytest.mark.parametrize("model", [BASIC, GENERALISED], ids=lambda m: m.name)
def test_cases_and_deaths_of_a_whole_outbreak_are_those_of_its_infections(model: Model) -> None:
    """By the integrator over fifty years; those who carry at the start fall ill as other carriers do."""
    values = model.values(None, {"stage1_death_rate": 0.01, "stage1_immunity_rate": 0.02, "direct_fraction": 0.02}
                          if model is GENERALISED else {"stage1_death_rate": 0.01})  # fmt: skip
    found = natural_history(model, values)
    run = simulate(model, parameters=values, days=18_250.0, rtol=1e-10, atol=1e-10)
    new, cases, deaths = (float(run[name][0, -1]) for name in ("new_infections", "cases", "deaths"))
    out = values["carrier_conversion_rate"] + values["carrier_immunity_rate"]
    begun = values["carrier_conversion_rate"] / out * float(run["C"][0, 0])
    assert found.cases_per_infection is not None
    assert found.cases_per_infection * new + begun == pytest.approx(cases, rel=1e-6)
    assert found.deaths_per_case == pytest.approx(deaths / cases, rel=1e-6)
    assert found.mean_stay["C"] == pytest.approx(1 / out)


def test_what_a_model_does_not_say_is_not_known() -> None:
    sick = natural_history(SIR, {})
    assert (sick.mean_stay, sick.cases_per_infection, sick.deaths_per_case) == ({"I": 10.0}, None, None)
    assert natural_history(SIR, {"g": 0.0}).mean_stay == {"I": math.inf}
    assert natural_history(SEIAR, {}).mean_stay == pytest.approx({"E": 5, "I": 10, "A": 1 / 0.15})
    assert natural_history(VECTOR, {}).cases_per_infection is None


def test_r0_and_the_study_say_what_the_rates_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["r0", "--model", "basic", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["natural_history"]
    assert told == natural_history(BASIC, {}).to_dict()
    assert main(["r0", "--model", "basic"]) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("mean stay in C", "cases per infection", "deaths per case"))
    report = Report(out=tmp_path, title="", lead="")
    report.section("The models")
    the_models(Work(report=report, models=(BASIC,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso"))
    page = report.write({}).read_text()
    assert "a stay lasts 13.97 days in C, 3 days in I1, 4 days in I2 on average; one in 217.7 infections" in page


def test_the_course_tells_how_many_carry_at_most_and_when(tmp_path: Path) -> None:
    """By scipy: the highest C along a dense solution."""
    v = BASIC.values()
    out = v["carrier_conversion_rate"] + v["carrier_immunity_rate"]
    a2 = v["stage2_immunity_rate"] + v["stage2_death_rate"]

    def rates(_t: float, y: np.ndarray) -> list[float]:
        S, C, I1, I2 = y
        new = v["transmission_rate"] * (v["carrier_odds"] * C + I1 + v["stage2_infectiousness"] * I2) * S
        sigma = v["stage_progression_rate"]
        return [-new, new - out * C, v["carrier_conversion_rate"] * C - sigma * I1, sigma * I1 - a2 * I2]

    immune, carrying = v["initial_immune_fraction"], v["initial_carrier_fraction"]
    days = np.linspace(0, 365, 36_501)
    C = solve_ivp(
        rates, (0, 365), [1 - immune - carrying, carrying, 0, 0], "DOP853", t_eval=days, rtol=1e-11, atol=1e-14
    ).y[1]
    report = Report(out=tmp_path, title="", lead="")
    report.section("The course")
    work = Work(report=report, models=(BASIC,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso")
    course(work)
    row = next(row for row in work.results["course"] if row["scenario"] == "epidemic")
    assert row["peak_carriage_%"] == pytest.approx(100 * C.max(), rel=1e-5)
    assert row["peak_carriage_week"] == days[C.argmax()] // 7 + 1
    page = report.write(work.results).read_text()
    assert "highest carriage (%)" in page and "week of highest carriage" in page


def test_a_peak_says_of_what() -> None:
    assert [word for word in OUTCOME_WORDS.values() if "peak" in word] == [
        "peak weekly incidence", "week of peak incidence",
    ]  # fmt: skip
