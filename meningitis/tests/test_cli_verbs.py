"""Every verb run through the command line; its CSV or JSON is read back and compared with values found elsewhere."""

from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from meningitis import analysis
from meningitis.cli import main
from meningitis.models import BASIC

DOCS = Path(__file__).parents[1] / "docs"
N = 111_540.0


@pytest.fixture(scope="module")
def sir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The SIR model of the documentation in a file: beta 0.4, gamma 0.2 per day, 1 ill among 1000."""
    file = tmp_path_factory.mktemp("sir") / "sir.yaml"
    text = (DOCS / "declare-your-own-model.md").read_text(encoding="utf-8")
    file.write_text(text.split("```yaml\n")[1].split("```")[0])
    return str(file)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a verb that must succeed and give back what it printed."""

    def run(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    return run


def table(text: str) -> pd.DataFrame:
    """The printed CSV; a unit in brackets behind a column's name is left out."""
    frame = pd.read_csv(io.StringIO(text))
    return frame.rename(columns=lambda name: name.split(" [")[0])


def rates(_t: float, y: Any, v: dict[str, float]) -> list[float]:
    """The specification's equations by hand: S, C, I1, I2, D and the cumulative cases."""
    S, C, I1, I2, _D, _cases = y
    p = v.get("direct_fraction", 0.0)
    new = v["transmission_rate"] * (v["carrier_odds"] * C + I1 + v["stage2_infectiousness"] * I2) * S / N
    converted = v["carrier_conversion_rate"] * C
    progressed = v["stage_progression_rate"] * I1
    return [
        -new,
        (1 - p) * new - converted - v["carrier_immunity_rate"] * C,
        p * new + converted - progressed,
        progressed - (v["stage2_immunity_rate"] + v["stage2_death_rate"]) * I2,
        v["stage2_death_rate"] * I2,
        p * new + converted,
    ]


def by_hand(v: dict[str, float], times: Any) -> Any:
    begun = [N * (1 - v["initial_immune_fraction"] - v["initial_carrier_fraction"])]
    begun += [N * v["initial_carrier_fraction"], 0, 0, 0, 0]
    return solve_ivp(rates, (0, times[-1]), begun, "DOP853", t_eval=times, args=(v,), rtol=1e-10, atol=1e-10).y


def test_simulate_is_the_course_by_hand_with_dates(say: Any) -> None:
    words = ("simulate", "--model", "basic", "--set", "transmission_rate=65/year", "--days", "70")
    found = table(say(*words, "--start", "2026-11-30", "--csv"))
    v = {**BASIC.values(), "transmission_rate": 65 / 365}
    S, C, I1, I2, D, cases = by_hand(v, np.arange(0.0, 71.0, 7.0))
    for name, column in (("S", S), ("C", C), ("I1", I1), ("I2", I2), ("D", D)):
        assert np.allclose(found[name], column[1:], rtol=1e-5, atol=1e-6), name
    assert np.allclose(found["weekly_cases"], np.diff(cases), rtol=1e-5)
    assert np.allclose(found["weekly_cases_per_100000"], np.diff(cases) / v["population"] * 1e5, rtol=1e-5)
    assert list(found["begins"][:2]) == ["2026-11-30", "2026-12-07"]
    assert list(found["epi_week"].iloc[[0, 4, 5]]) == ["2026-W49", "2026-W53", "2027-W01"]
    assert json.loads(say(*words, "--json"))[-1]["I2"] == pytest.approx(I2[-1], rel=1e-5)


def test_simulate_shows_weeks_of_the_other_system(say: Any) -> None:
    words = ("simulate", "--model", "basic", "--days", "14", "--start", "2021-01-03", "--csv", "--weeks")
    assert list(table(say(*words, "cdc"))["epi_week"]) == ["2021-W01", "2021-W02"]
    assert list(table(say(*words, "iso"))["epi_week"]) == ["2021-W01", "2021-W02"]  # begun a day before the calendar's


@pytest.mark.parametrize("first", range(7))
def test_a_week_has_one_name_in_every_verb(say: Any, capsys: pytest.CaptureFixture[str], first: int) -> None:
    start = dt.date(2026, 11, 30) + dt.timedelta(days=first)
    words = ("--model", "basic", "--start", start.isoformat())
    assert main(["simulate", *words, "--csv"]) == 0
    printed = capsys.readouterr()
    weeks = table(printed.out)
    assert ("is no Monday, on which ISO weeks begin" in printed.err) == (first > 0)
    rows = {row["name"]: row for row in json.loads(say("thresholds", *words, "--json"))["events"]["events"]}
    alert, peak = rows["alert threshold"], rows["weekly incidence peak"]
    assert alert["epi_week"] == weeks["epi_week"][int(alert["day"]) // 7 - 1]
    assert peak["epi_week"] == weeks["epi_week"][weeks["weekly_cases"].idxmax()]
    for name, begins, length in zip(weeks["epi_week"], weeks["begins"], weeks["days"], strict=True):
        days = [dt.date.fromisoformat(begins) + dt.timedelta(days=k) for k in range(int(length))]
        if length < 4:  # the last day of 365
            assert pd.isna(name) and begins == weeks["begins"].iloc[-1]
            continue
        assert sum("{}-W{:02d}".format(*day.isocalendar()[:2]) == name for day in days) >= 4


def test_thresholds_report_formulas_and_events_in_order(say: Any) -> None:
    found = json.loads(say("thresholds", "--model", "basic", "--start", "2026-11-30", "--json"))
    events = {row["event" if "event" in row else "name"]: row for row in found["events"]["events"]}
    days = [row["day"] for row in found["events"]["events"] if row["day"] is not None]
    assert days == sorted(days)
    v = BASIC.values()
    weeks = np.diff(by_hand(v, np.arange(0.0, 365.0, 7.0))[5]) / N * 1e5
    assert events["alert threshold"]["day"] == 7 * (np.argmax(weeks >= 3) + 1)
    assert events["epidemic threshold"]["day"] == 7 * (np.argmax(weeks >= 10) + 1)
    assert found["events"]["duration_days"] == 7 * np.count_nonzero(weeks >= 3)
    assert events["below alert again"]["day"] == events["alert threshold"]["day"] + found["events"]["duration_days"]
    assert events["weekly incidence peak"]["value"] == pytest.approx(weeks.max() * N / 1e5, rel=1e-5)
    assert events["critical ratio"]["value"] == pytest.approx(v["carrier_conversion_rate"] * 3)
    assert events["alert threshold"]["date"] == "2027-01-10"  # the last day of the week that reached it
    said = say("thresholds", "--model", "basic")
    assert "early ratio: attained on day 10.9, 31 days before the alert threshold and 45 days before the epid" in said
    said = say("thresholds", "--model", "basic", "--scenario", "hyperendemic")
    assert "early ratio: attained on day 12.7, 120 days before the alert threshold, a false alarm" in said


def test_sensitivity_of_r0_for_any_model(say: Any, sir: str) -> None:
    found = table(say("sensitivity", "--model", sir, "--csv")).set_index("parameter")["index"]
    assert found.to_dict() == pytest.approx({"beta": 1, "gamma": -1, "population": 0})


def test_global_sensitivity_of_sir(say: Any, sir: str) -> None:
    words = ("sensitivity", "--global", "--model", sir, "--sobol-n", "512", "--lhs-n", "200", "--days", "70", "--csv")
    found = table(say(*words))
    r0 = found[found["outcome"] == "R0"].set_index("parameter")
    # R0 = beta/gamma with beta on (0.2, 0.6), gamma on (0.1, 0.3), independent: variances by moments.
    beta, square, inverse, inverse2 = 0.4, 0.16 + 0.4**2 / 12, np.log(3) / 0.2, (1 / 0.1 - 1 / 0.3) / 0.2
    variance = square * inverse2 - (beta * inverse) ** 2
    first = {"beta": (square - beta**2) * inverse**2, "gamma": (inverse2 - inverse**2) * beta**2}
    for name, part in first.items():
        assert r0.loc[name, "first"] == pytest.approx(part / variance, abs=0.03)
    assert r0.loc["beta", "prcc"] > 0.9 > -0.9 > r0.loc["gamma", "prcc"]
    assert found.equals(table(say(*words)))


def test_final_size_is_the_root_of_the_implicit_equation(say: Any) -> None:
    found = table(say("final-size", "--model", "basic", "--days", "2000", "--csv"))
    v = BASIC.values()
    T = 3 + 3 * (1 / 3) / 0.25
    leaves = v["carrier_conversion_rate"] + v["carrier_immunity_rate"]
    for _, row in found.iterrows():
        k = v["transmission_rate"] * (row["carrier_odds"] + v["carrier_conversion_rate"] * T) / leaves
        s0, c0 = 1 - 0.2 - 0.001, 0.001
        left = brentq(lambda s: np.log(s0 / s) - k * (s0 - s + c0), 1e-9, min(s0, 1 / k) - 1e-9)  # noqa: B023
        assert row["exact"] == pytest.approx(s0 - left + c0, rel=1e-8)
        if abs(k * s0 - 1) > 0.1:
            assert row["integrated"] == pytest.approx(row["exact"], rel=1e-4)
    assert len(found) == 5


def test_profile_with_and_without_a_sweep(say: Any) -> None:
    swept = table(say("profile", "--model", "basic", "--days", "70", "--sweep", "carrier_odds=0.5,1.2", "--csv"))
    single = table(say("profile", "--model", "basic", "--days", "70", "--set", "carrier_odds=1.2", "--csv"))
    _, C, I1, I2, _, _ = by_hand({**BASIC.values(), "carrier_odds": 1.2}, np.arange(0.0, 71.0, 7.0))
    for frame in (swept[swept["carrier_odds"] == 1.2], single):
        assert np.allclose(frame["stage1"], I1 / C, rtol=1e-4)
        assert np.allclose(frame["both"], (I1 + I2) / C, rtol=1e-4)
    assert len(swept) == 2 * len(single)
    assert json.loads(say("profile", "--model", "basic", "--days", "14", "--json"))["times"] == [0, 7, 14]


def test_a_profile_has_the_critical_and_the_early_ratio_of_each_set(say: Any) -> None:
    """phi/a1, and the leading eigenvector of the infected subsystem at the start, both by hand."""
    words = ("profile", "--model", "basic", "--days", "14", "--sweep", "carrier_conversion_rate=0.0001,0.0003")
    found = table(say(*words, "--csv"))
    v = BASIC.values()
    a1 = v["stage_progression_rate"] + v["stage1_immunity_rate"] + v["stage1_death_rate"]
    a2 = v["stage2_immunity_rate"] + v["stage2_death_rate"]
    b = v["transmission_rate"] * (1 - v["initial_immune_fraction"] - v["initial_carrier_fraction"])
    for phi, part in found.groupby("carrier_conversion_rate"):
        assert part["critical"].to_numpy() == pytest.approx(np.full(3, phi / a1))
        out = phi + v["carrier_immunity_rate"]
        growth = [
            [b * v["carrier_odds"] - out, b, b * v["stage2_infectiousness"]],
            [phi, -a1, 0],
            [0, v["stage_progression_rate"], -a2],
        ]
        rates, vectors = np.linalg.eig(np.array(growth))
        C, I1, _ = vectors[:, np.argmax(rates.real)].real
        assert part["early"].to_numpy() == pytest.approx(np.full(3, I1 / C))
    assert "critical" in say(*words).splitlines()[0] and "early" in say(*words).splitlines()[0]


def test_a_profile_may_be_daily(say: Any) -> None:
    found = table(say("profile", "--model", "basic", "--days", "14", "--step", "1", "--csv"))
    assert found["day"].tolist() == list(range(15))


def test_the_indices_of_all_outcomes_are_those_of_the_library(say: Any) -> None:
    words = ("sensitivity", "--model", "basic", "--outcomes", "--days", "70", "--set", "carrier_odds=0.9")
    rows = json.loads(say(*words, "--json"))
    found = analysis.local_sensitivity(BASIC, {"carrier_odds": 0.9}, days=70.0)
    told = {(row["outcome"], row["parameter"]): row["index"] for row in rows}
    assert {outcome for outcome, _ in told} == set(found.indices)
    for outcome, column in found.indices.items():
        for name, index in column.items():
            assert told[outcome, name] == pytest.approx(index, nan_ok=True)
    assert told["deaths", "carrier_conversion_rate"] == pytest.approx(1, abs=0.01)
    assert "β" in say(*words)


def test_bands_are_those_of_the_library_with_what_is_given_held(say: Any) -> None:
    words = ("simulate", "--model", "basic", "--bands", "40", "--days", "28", "--set", "transmission_rate=60/year")
    found = table(say(*words, "--start", "2026-11-30", "--csv"))
    band = analysis.bands(
        BASIC, n=40, seed=1, values={"transmission_rate": 60 / 365}, days=28.0, pinned=("transmission_rate",)
    ).frame()
    assert found["value"].to_numpy() == pytest.approx(band["value"].to_numpy())
    assert found["date"][:5].tolist() == ["2026-11-30", "2026-12-07", "2026-12-14", "2026-12-21", "2026-12-28"]


def test_compare_subtracts_two_runs(say: Any) -> None:
    found = json.loads(say("compare", "--model", "basic", "--with", "transmission_rate=60/year", "--json"))
    times = np.array([0.0, 365.0])
    a, b = BASIC.values(), {**BASIC.values(), "transmission_rate": 60 / 365}
    runs = [by_hand(v, times)[:, -1] for v in (a, b)]
    assert found["cases_averted"] == pytest.approx(runs[0][5] - runs[1][5], rel=1e-4)
    assert found["deaths_averted"] == pytest.approx(runs[0][4] - runs[1][4], rel=1e-4)
    rows = table(say("compare", "--model", "basic", "--with-scenario", "hyperendemic", "--csv")).set_index("outcome")
    assert rows.loc["cases", "b"] == pytest.approx(117, abs=0.5)


def test_compare_says_where_cases_are_postponed(capsys: pytest.CaptureFixture[str]) -> None:
    def compared(*more: str) -> tuple[Any, str]:
        assert main(["compare", "--model", "basic", "--with", "transmission_rate=36/year", "--json", *more]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out), printed.err

    early, said = compared()
    assert early["unfinished"] == ["b"] and "infection is not over in b after 365 days" in said
    late, said = compared("--days", "3650")
    assert late["unfinished"] == [] and not said
    assert late["cases_averted"] < 0.9 * early["cases_averted"]


def test_models_lists_scenarios(say: Any) -> None:
    rows = json.loads(say("models", "--json"))
    assert {(row["model"], row["scenario"]) for row in rows} >= {("basic", "severe"), ("generalised", "epidemic")}


def test_params_file_and_set_reach_the_run(say: Any, tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps({"transmission_rate": "40/year", "initial_immune_fraction": "40 %"}))
    words = ("simulate", "--model", "basic", "--days", "28", "--params", str(file), "--csv")
    v = {**BASIC.values(), "transmission_rate": 40 / 365, "initial_immune_fraction": 0.4}
    assert table(say(*words))["C"].iloc[-1] == pytest.approx(by_hand(v, [0.0, 28.0])[1, -1], rel=1e-5)
    v["initial_immune_fraction"] = 0.1
    changed = table(say(*words, "--set", "initial_immune_fraction=0.1"))
    assert changed["C"].iloc[-1] == pytest.approx(by_hand(v, [0.0, 28.0])[1, -1], rel=1e-5)


def test_sir_in_a_file_is_shown_simulated_and_compared(say: Any, sir: str) -> None:
    assert json.loads(say("show", "--model", sir, "--json"))["name"] == "sir"
    facts = json.loads(say("r0", "--model", sir, "--set", "beta=0.5", "--json"))
    assert facts["R0"] == pytest.approx(2.5)
    assert facts["control"]["critical"]["gamma"] == pytest.approx(0.5)
    run = solve_ivp(
        lambda _t, y: [-0.4 * y[0] * y[1] / 1e3, 0.4 * y[0] * y[1] / 1e3 - 0.2 * y[1]],
        (0, 70), [999.0, 1.0], rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    found = table(say("simulate", "--model", sir, "--days", "70", "--csv"))
    assert [found["S"].iloc[-1], found["I"].iloc[-1]] == pytest.approx(run.y[:, -1], rel=1e-5)
    rows = json.loads(say("compare", "--model", sir, "--days", "70", "--with", "beta=0.3", "--json"))
    assert rows["a"]["cases"] == pytest.approx(999 - run.y[0, -1], rel=1e-5)


def test_final_size_of_sir_is_the_classical_equation(say: Any, sir: str) -> None:
    found = table(say("final-size", "--model", sir, "--sweep", "beta=0.15,0.3,0.6", "--csv")).set_index("beta")
    for beta, row in found.iterrows():
        k = float(str(beta)) / 0.2
        left = brentq(lambda s: np.log(0.999 / s) - k * (1 - s), 1e-9, min(0.999, 1 / k) - 1e-12)  # noqa: B023
        assert row["exact"] == pytest.approx(1 - left, rel=1e-8)
        assert row["integrated"] == pytest.approx(row["exact"], rel=1e-4)


def test_thresholds_of_sir_are_those_of_r_and_of_surveillance(say: Any, sir: str) -> None:
    text = say("thresholds", "--model", sir)
    assert "infection spreads while R(t) = β S/(γ N) > 1" in text
    rows = json.loads(say("thresholds", "--model", sir, "--days", "70", "--json"))["events"]["events"]
    day = {row["name"]: row["day"] for row in rows}
    assert set(day) == {
        "alert threshold",
        "epidemic threshold",
        "weekly incidence peak",
        "prevalence peak",
        "below alert again",
    }
    peak = solve_ivp(
        lambda _t, y: [-0.4 * y[0] * y[1] / 1e3, 0.4 * y[0] * y[1] / 1e3 - 0.2 * y[1]],
        (0, 70), [999.0, 1.0], rtol=1e-11, atol=1e-11, events=lambda _t, y: y[0] - 500.0,
    )  # fmt: skip
    assert day["prevalence peak"] == pytest.approx(peak.t_events[0][0], abs=1e-3)  # I turns where S/N = 1/R0


def test_profile_of_a_model_without_carriers_says_so(capsys: pytest.CaptureFixture[str], sir: str) -> None:
    assert main(("profile", "--model", sir)) == 2
    caught = capsys.readouterr()
    assert caught.out == "" and "no single case compartment fed by a carrier compartment" in caught.err


def test_the_study_takes_a_model_of_ones_own(say: Any, sir: str, tmp_path: Path) -> None:
    words = ("study", "--model", sir, "--out", str(tmp_path), "--sobol-n", "16", "--lhs-n", "50")
    assert say(*words, "--set", "beta=0.5", "--days", "70").strip() == str(tmp_path / "report.html")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["reproduction"][0]["R0"] == pytest.approx(2.5)
    assert results["provenance"]["models"]["sir"]["scenarios"]["default"]["beta"] == 0.5
    page = (tmp_path / "report.html").read_text()
    assert "no ratio of cases to carriers" in page and "What the paper claims" not in page
    (share,) = results["ever_infected"]["sir"]["rows"]
    assert share["integrated"] == pytest.approx(share["exact"], rel=1e-5)
    assert {row["event"] for row in results["events"]} >= {"epidemic threshold", "prevalence peak"}


def test_the_study_refuses_before_it_writes(capsys: pytest.CaptureFixture[str], sir: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(("study", "--model", sir, "--out", str(out), "--set", "betta=0.5")) == 2
    assert "did you mean 'beta'?" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_that_ends_within_a_week_shows_the_part_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("simulate", "--model", "basic", "--days", "10", "--csv")) == 0
    caught = capsys.readouterr()
    found = table(caught.out)
    assert (list(found["day"]), list(found["days"])) == ([7, 10], [7, 3])
    _, C, _, _, _, cases = by_hand(BASIC.values(), [0.0, 7.0, 10.0])
    assert np.allclose(found["C"], C[1:], rtol=1e-5) and np.allclose(found["weekly_cases"], np.diff(cases), rtol=1e-5)
    assert "the last week has 3 of 7 days" in caught.err
    assert main(("profile", "--model", "basic", "--days", "10", "--csv")) == 0
    assert list(table(capsys.readouterr().out)["day"]) == [0, 7, 10]


def test_two_sweeps_give_every_combination(say: Any) -> None:
    words = ("--sweep", "carrier_odds=0.5,1", "--sweep", "direct_fraction=0,0.1,0.2", "--csv")
    found = table(say("final-size", *words))
    assert list(zip(found["carrier_odds"], found["direct_fraction"], strict=True)) == [
        (odds, p) for odds in (0.5, 1) for p in (0, 0.1, 0.2)
    ]
    held = table(say("final-size", *words[2:], "--set", "carrier_odds=0.5"))
    assert np.allclose(held["exact"], found["exact"][:3])
    assert set(table(say("profile", "--days", "7", *words))["carrier_odds"]) == {0.5, 1}


def test_final_size_does_not_sweep_over_what_is_given(say: Any) -> None:
    found = table(say("final-size", "--set", "carrier_odds=0.7", "--csv"))
    assert "carrier_odds" not in found and len(found) == 5


def test_thresholds_and_profiles_are_dated(say: Any) -> None:
    words = ("--model", "basic", "--start", "2021-01-03", "--weeks")
    for system, week in (("iso", "2020-W53"), ("cdc", "2021-W01")):
        found = table(say("profile", *words, system, "--days", "14", "--csv"))
        assert list(found["date"]) == ["2021-01-03", "2021-01-10", "2021-01-17"] and found["epi_week"][0] == week
    data = json.loads(say("profile", *words, "iso", "--days", "14", "--sweep", "carrier_odds=1,2", "--json"))
    assert data["epi_week"] == ["2020-W53", "2021-W01", "2021-W02"]
    rows = json.loads(say("thresholds", *words, "cdc", "--json"))["events"]["events"]
    alert = next(row for row in rows if row["name"] == "alert threshold")
    assert (alert["day"], alert["date"], alert["epi_week"]) == (42, "2021-02-13", "2021-W06")  # the week that crossed
