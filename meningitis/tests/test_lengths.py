"""How long a run is where nobody says, and which weeks of a long one are weeks of alert."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from meningitis import analysis
from meningitis.chapters.course import course
from meningitis.chapters.work import Work
from meningitis.cli import main
from meningitis.engine import simulate, weekly_times
from meningitis.model import Model, Scenario
from meningitis.models import BASIC
from meningitis.report import Report

SHORT = replace(
    BASIC,
    scenarios=(
        Scenario(name="short", days=70),
        Scenario(name="shorter", days=35, overrides={"initial_immune_fraction": 0.4}),
    ),
)


@pytest.mark.parametrize(
    "analyse",
    [
        lambda **given: analysis.compare(SHORT, {}, {"transmission_rate": 0.15}, **given).to_dict(),
        lambda **given: analysis.events(SHORT, {}, **given).to_dict(),
        lambda **given: analysis.profiles(SHORT, {}, {"carrier_odds": [0.8, 1.0]}, step=7.0, **given).to_dict(),
        lambda **given: analysis.final_sizes(SHORT, {}, **given).to_dict(),
        lambda **given: analysis.ever_infected(SHORT, {}, [0.8, 1.0], **given).to_dict(),
        lambda **given: analysis.local_sensitivity(SHORT, {}, **given).to_dict(),
        lambda **given: analysis.bands(SHORT, n=4, **given).to_dict(),
        lambda **given: analysis.outcomes(SHORT, {}, **given),
        lambda **given: analysis.prcc(SHORT, ["cases"], n=24, **given).to_dict(),
        lambda **given: analysis.sobol(SHORT, n=16, **given).to_dict(),
    ],
    ids=["compare", "events", "profiles", "sizes", "ever", "local", "bands", "outcomes", "prcc", "sobol"],
)
def test_a_run_is_as_long_as_its_scenario(analyse: Any) -> None:
    """By default the first one, and the one that is named, with its values."""
    np.testing.assert_equal(analyse(), analyse(days=70.0))
    np.testing.assert_equal(analyse(scenario="shorter"), analyse(scenario="shorter", days=35.0))


def test_a_named_scenario_s_values_and_days_are_those_of_a_run() -> None:
    run = simulate(SHORT, scenario="shorter")
    assert run.times[-1] == 35
    found = analysis.outcomes(SHORT, {}, scenario="shorter")
    assert found["cases"][0] == pytest.approx(run["cases"][0, -1], rel=1e-9)
    assert analysis.final_sizes(SHORT, {}, scenario="shorter").days == 35
    assert float(analysis.final_size_exact(SHORT, {}, scenario="shorter")) == pytest.approx(
        float(analysis.final_size_exact(BASIC, {"initial_immune_fraction": 0.4}))
    )


SEASONAL = """
name: seasonal
compartments: [{name: S}, {name: I, infected: true}, {name: R}]
parameters:
  - {name: b, default: 0.3}
  - {name: a, default: 0.6, kind: proportion}
  - {name: g, default: 0.2}
  - {name: w, default: 0.004}
  - {name: year, default: 0.0172142}
  - {name: N, default: 50000, kind: count}
flows:
  - {name: infection, source: S, target: I, rate: b * (1 + a * cos(year * t)) * S * I / N, new_infection: true}
  - {name: onset, source: I, target: R, rate: g * I / 100, case: true}
  - {name: recovery, source: I, target: R, rate: 0.99 * g * I}
  - {name: waning, source: R, target: S, rate: w * R}
initial: {S: N - 50, I: 50}
scenarios: [{name: three_years, days: 1092}]
"""


def test_weeks_of_alert_are_counted_and_not_those_between_two_outbreaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model.from_yaml(SEASONAL)

    def rates(t: float, y: np.ndarray) -> list[float]:
        new = 0.3 * (1 + 0.6 * np.cos(0.0172142 * t)) * y[0] * y[1] / 5e4
        return [0.004 * y[2] - new, new - 0.2 * y[1], 0.2 * y[1] - 0.004 * y[2], 0.002 * y[1]]

    times = np.arange(0.0, 1093.0, 7.0)
    cases = solve_ivp(rates, (0, 1092), [49_950, 50, 0, 0], "DOP853", t_eval=times, rtol=1e-10, atol=1e-10).y[3]
    high = (np.flatnonzero(np.diff(cases) >= 2.0) + 1).tolist()  # 3 per 100,000, but at least two cases
    found = analysis.events(model, {})
    assert found.weeks == 156 and list(found.alert_weeks) == high
    assert len(found.episodes) > 1 and sum(last - first + 1 for first, last in found.episodes) == len(high) < 120
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(found.episodes))
    assert found.to_dict()["weeks_at_alert"] == len(high)
    work = Work(
        report=Report(out=tmp_path, title="", lead=""),
        models=(model,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso",
    )  # fmt: skip
    work.report.section("Course")
    course(work)
    (row,) = work.results["course"]
    assert row["weeks_above_alert"] == len(high)
    assert row["alert_episodes"].startswith(f"{found.episodes[0][0]}–{found.episodes[0][1]}, ")
    file = tmp_path / "seasonal.yaml"
    file.write_text(SEASONAL)
    assert main(["thresholds", "--model", str(file)]) == 0
    assert f"in {len(high)} of 156 weeks: {row['alert_episodes']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("days", "times", "whole"),
    [
        (14.0, [0, 7, 14], [0, 7, 14]),
        (10.0, [0, 7, 10], [0, 7]),
        (0.0, [0], [0]),
        (3.5, [0, 3.5], [0]),
    ],
)
def test_the_weeks_of_a_run(days: float, times: list[float], whole: list[float]) -> None:
    assert weekly_times(days).tolist() == times
    assert weekly_times(days, whole=True).tolist() == whole
