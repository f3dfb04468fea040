"""Models that the package does not ship: seasons, and people who can be infected again."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sympy as sp
from scipy.integrate import solve_ivp

from meningitis import analysis, symbolic
from meningitis.chapters.course import course, ratios
from meningitis.chapters.importance import sensitivity
from meningitis.chapters.outcomes import control, infected
from meningitis.chapters.structure import thresholds
from meningitis.chapters.work import Work
from meningitis.cli import main
from meningitis.model import Model, ModelError
from meningitis.models import GENERALISED
from meningitis.report import Report, figures

WANING = """
name: waning
closed: true
compartments: [{name: S}, {name: I, infected: true}, {name: R}]
parameters:
  - {name: beta, default: 0.4}
  - {name: gamma, default: 0.2}
  - {name: loss, default: 0.01}
  - {name: depth, default: 0.3, kind: proportion, unit: "1", bounds: [0, 1]}
  - {name: people, default: 1000, kind: count}
flows:
  - {name: infection, source: S, target: I, rate: RATE, new_infection: true, case: true}
  - {name: recovery, source: I, target: R, rate: gamma * I}
  - {name: loss_of_immunity, source: R, target: S, rate: loss * R}
initial: {S: people - 10, I: 10}
"""


@pytest.fixture
def seasonal(tmp_path: Path) -> str:
    file = tmp_path / "seasonal.yaml"
    file.write_text(WANING.replace("RATE", "beta * (1 + depth * sin(gamma * t)) * S * I / people"))
    return str(file)


@pytest.fixture
def waning(tmp_path: Path) -> str:
    file = tmp_path / "waning.yaml"
    file.write_text(WANING.replace("RATE", "beta * S * I / people"))
    return str(file)


@pytest.mark.parametrize("verb", ["r0", "sensitivity"])
def test_facts_of_one_matrix_are_refused_where_rates_move(
    verb: str, seasonal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--model", seasonal]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "infection depends on time t" in said


def moved(t: float, y: np.ndarray, beta: float = 0.4) -> list[float]:
    """The seasonal model by hand: S, I, R and the cumulative cases."""
    new, recovered, lost = beta * (1 + 0.3 * np.sin(0.2 * t)) * y[0] * y[1] / 1000, 0.2 * y[1], 0.01 * y[2]
    return [lost - new, new - recovered, recovered - lost, new]


def test_a_study_goes_through_where_rates_move(seasonal: str, tmp_path: Path) -> None:
    """What needs one matrix is left out and said to be; the rest is there, with the right numbers."""
    file, out = Path(seasonal), tmp_path / "out"
    drawn = "{name: beta, default: 0.4, distribution: {kind: uniform, low: 0.3, high: 0.5}}"
    file.write_text(file.read_text().replace("{name: beta, default: 0.4}", drawn))
    words = ["study", "--model", seasonal, "--out", str(out), "--sobol-n", "64", "--lhs-n", "60", "--days", "70"]
    assert main(words) == 0
    page = (out / "report.html").read_text()
    assert "infection depends on time in the waning model: F, V, R₀, growth and thresholds" in page
    assert "infection depends on time: no value of a parameter is the one at which R₀ = 1" in page
    assert "R₀ = " not in page.replace("at which R₀ = 1", "") and ", and exactly at the end" not in page
    course = pd.read_csv(out / "tables" / "course.csv").iloc[0]
    weeks = solve_ivp(moved, (0, 70), [990.0, 10, 0, 0], t_eval=np.arange(0, 71, 7.0), rtol=1e-10, atol=1e-10).y[3]
    assert course["cases"] == pytest.approx(weeks[-1], rel=1e-4)
    assert course["weekly_peak_per_100000"] == pytest.approx(100 * np.diff(weeks).max(), rel=1e-4)
    compared = pd.read_csv(out / "tables" / "compare.csv").set_index("outcome")
    fewer = solve_ivp(moved, (0, 70), [990.0, 10, 0, 0], args=(0.32,), rtol=1e-10, atol=1e-10).y[3, -1]
    assert compared.loc["cases", "b"] == pytest.approx(fewer, rel=1e-4)  # beta a fifth lower
    assert compared.loc["R0", ["a", "b"]].isna().all()
    ranks = pd.read_csv(out / "tables" / "prcc-waning.csv").set_index("outcome")["prcc"]
    assert np.isnan(ranks["R0"]) and ranks["cases"] > 0.9
    assert (out / "figures" / "bands-waning.svg").exists()


def test_a_study_of_a_model_without_distributions_says_that_nothing_is_sampled(
    waning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model.from_yaml(Path(waning))
    work = Work(
        report=Report(out=tmp_path, title="", lead=""),
        models=(model,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso", days=70.0,
    )  # fmt: skip
    work.report.section("Sensitivity and control")
    sensitivity(work)
    control(work)
    page = work.report.write(work.results).read_text()
    assert page.count("No parameter of the waning model has a distribution to sample.") == 2
    assert main(["sensitivity", "--global", "--model", waning]) == 2
    assert "declares no distribution of a parameter" in capsys.readouterr().err


def test_a_season_is_simulated_and_its_surveillance_thresholds_are_told(
    seasonal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["thresholds", "--model", seasonal, "--days", "70"]) == 0
    assert "epidemic threshold" in capsys.readouterr().out
    assert main(["simulate", "--model", seasonal, "--days", "70", "--csv"]) == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out)).iloc[-1]
    exact = solve_ivp(moved, (0, 70), [990.0, 10.0, 0.0, 0.0], rtol=1e-10, atol=1e-10).y[:3, -1]
    columns = {name.split(" [")[0]: value for name, value in found.items()}
    assert [float(columns[name]) for name in ("S", "I", "R")] == pytest.approx(exact, rel=1e-4)


def test_two_sets_are_compared_where_rates_move_and_r0_is_unknown(
    seasonal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--model", seasonal, "--days", "70", "--with", "beta=0.3", "--csv"]) == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("outcome")
    assert rows.loc["R0", ["a", "b"]].isna().all() and rows.loc["cases", "a"] > rows.loc["cases", "b"] > 0
    model = Model.from_yaml(Path(seasonal))
    local = analysis.local_sensitivity(model, model.values(), days=70.0).indices
    assert np.isnan(list(local["R0"].values())).all() and local["cases"]["beta"] > 0


CARRIED = """
name: carried
closed: true
compartments: [{name: S}, {name: C, infected: true}, {name: I, infected: true}, {name: R}]
parameters:
  - {name: beta, default: 0.4, distribution: {kind: uniform, low: 0.3, high: 0.5}}
  - {name: gamma, default: 0.2}
  - {name: phi, default: 0.01}
  - {name: people, default: 1000, kind: count}
flows:
  - {name: infection, source: S, target: C, rate: beta * S * C / people, new_infection: true}
  - {name: illness, source: C, target: I, rate: phi * C, case: true}
  - {name: clearance, source: C, target: R, rate: gamma * C}
  - {name: recovery, source: I, target: R, rate: gamma * I}
initial: {S: people - 10, C: 10}
"""


def test_cases_that_do_not_infect_have_ratios_and_a_study_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the ill are isolated: carriers alone spread, so that q is 0."""
    model = Model.from_yaml(CARRIED)
    found = symbolic.thresholds(model)
    phi, gamma, beta = (model.symbols[name] for name in ("phi", "gamma", "beta"))
    assert found.q == 0 and sp.simplify(found.carriers_spread - (phi + gamma) / beta) == 0
    assert sp.simplify(found.critical_ratio - phi / gamma) == 0
    happened = analysis.events(model, model.values(), days=120.0)
    assert happened.day("critical ratio") == pytest.approx(happened.day("prevalence peak"), abs=1e-3)
    file = tmp_path / "carried.yaml"
    file.write_text(CARRIED)
    words = ["study", "--model", str(file), "--out", str(tmp_path / "out"), "--sobol-n", "16", "--lhs-n", "60"]
    assert main([*words, "--days", "120"]) == 0
    assert "Carriers spread while S/N is above" in (tmp_path / "out" / "report.html").read_text()


LIVING = (
    CARRIED.replace("{name: R}]", "{name: R}, {name: D, dead: true}]")
    .replace("rate: beta * S * C / people,", "rate: 0.9 * beta * S * C / (S + C + I + R),")
    .replace(
        "initial:",
        """  - {name: at_once, source: S, target: I, rate: 0.1 * beta * S * C / (S + C + I + R), case: true,
     new_infection: true}
  - {name: dying, source: I, target: D, rate: 2 * gamma * I, death: true}
initial:""",
    )
)


def test_thresholds_per_head_of_the_living_are_those_of_the_true_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model.from_yaml(LIVING)
    v = model.values()

    def rates(_t: float, y: np.ndarray) -> list[float]:
        S, C, I, R = y
        new = v["beta"] * S * C / (S + C + I + R)
        return [
            -new, 0.9 * new - (v["phi"] + v["gamma"]) * C, 0.1 * new + v["phi"] * C - 3 * v["gamma"] * I,
            v["gamma"] * (C + I),
        ]  # fmt: skip

    weeks = np.arange(0, 121, 7.0)
    begun = [v["people"] - 10, 10, 0, 0]
    y = solve_ivp(rates, (0, 120), begun, "DOP853", t_eval=weeks, rtol=1e-11, atol=1e-11).y
    states = {**dict(zip("SCIR", y, strict=True)), "D": v["people"] - y.sum(axis=0)}
    share = y[0] / y.sum(axis=0)
    assert states["D"][-1] > 0.05 * v["people"]  # so that a constant population would be told apart
    found = symbolic.thresholds(model).along(model, v, states)
    assert found["susceptible_share"] == pytest.approx(share)
    assert found["carriers_spread"] == pytest.approx(np.full(weeks.size, (v["phi"] + v["gamma"]) / (0.9 * v["beta"])))
    growing = np.array([rates(0, column)[1] > 0 for column in y.T])
    assert np.array_equal(share > found["carriers_spread"], growing) and growing.any() and not growing.all()
    file = tmp_path / "living.yaml"
    file.write_text(LIVING)
    assert main(["profile", "--model", str(file), "--days", "119", "--csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    column = next(name for name in table.columns if name.startswith("threshold"))
    assert table[column].to_numpy() == pytest.approx((v["phi"] + 0.1 * v["beta"] * share) / (3 * v["gamma"]), rel=1e-4)
    report = Report(out=tmp_path, title="Living", lead="")
    work = Work(report=report, models=(model,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso", days=119.0)
    report.section("Thresholds")
    thresholds(work)
    ratios(work)
    assert "N is the number of the living" in report.write(work.results).read_text()
    with pytest.raises(ValueError, match="infection depends on how many are alive"):
        symbolic.first_integral(model)


DIRECT = "  - {name: at_once, source: S, target: I, rate: beta * S * I / people, new_infection: true}"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("S * C / people", "S * C / (people + C)", "its infected do not follow linear rates"),
        ("phi * C", "phi * C * C / people", "its infected do not follow linear rates"),
        ("initial:", f"{DIRECT}\ninitial:", "who infects decides where the infected go"),
    ],
    ids=["saturating", "quadratic", "two kinds"],
)  # fmt: skip
def test_thresholds_are_refused_where_infection_is_not_linear(
    before: str, after: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CARRIED.replace(before, after)
    with pytest.raises(ValueError, match=f"no thresholds of carriage and illness: .*{says}"):
        symbolic.thresholds(Model.from_yaml(text))
    file = tmp_path / "refused.yaml"
    file.write_text(text)
    assert main(["profile", "--model", str(file)]) == 2
    assert says in capsys.readouterr().err


def test_thresholds_are_refused_where_infection_comes_from_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CARRIED.replace("S * C / people", "S")
    model = Model.from_yaml(text)
    with pytest.raises(ValueError, match="fed by a carrier compartment that infects"):
        symbolic.thresholds(model)
    with pytest.raises(ValueError, match="no exact final size: nobody who is infected infects"):
        symbolic.first_integral(model)
    file = tmp_path / "refused.yaml"
    file.write_text(text)
    assert main(["profile", "--model", str(file)]) == 2
    assert "a carrier compartment that infects" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cases", "deaths", "new_infections", "set", "time"])
def test_a_compartment_called_as_a_column_of_every_table_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"a compartment cannot be called '{name}'"):
        Model.from_yaml(CARRIED.replace("name: R}", f"name: {name}}}").replace("target: R", f"target: {name}"))


def test_equilibria_of_a_rate_that_counts_the_living() -> None:
    text = WANING.replace("RATE", "beta * S * I / (people - D)").replace(
        "{name: R}]", "{name: R}, {name: D, dead: true}]"
    )
    text = text.replace("initial:", "  - {name: dying, source: I, target: D, rate: loss * I, death: true}\ninitial:")
    model = Model.from_yaml(text)
    found = symbolic.equilibria(model, model.values(), starts=2)
    assert found.points[0].kind == "disease-free"


def test_the_lines_of_a_small_district_are_those_of_its_own_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], figures.incidence
    monkeypatch.setattr(figures, "incidence", lambda *given, **more: drawn.append(given) or draw(*given, **more))
    model = Model.from_yaml(WANING.replace("RATE", "beta * S * I / people"))
    report = Report(out=tmp_path, title="", lead="")
    report.section("Course")
    work = Work(report=report, models=(model,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso", days=14.0)
    course(work)
    ((_, alert, epidemic),) = drawn
    assert (alert, epidemic) == pytest.approx((2 / 1000 * 1e5, 5 / 1000 * 1e5))  # 2 and 5 cases of 1,000 people
    assert work.results["course"][0]["peak_week"] is None  # rising throughout
    assert "of 1,000 inhabitants" in report.write(work.results).read_text()


def test_infections_beyond_one_per_person_are_not_called_a_share(
    waning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["final-size", "--model", waning, "--days", "3000"]) == 0
    caught = capsys.readouterr()
    assert "infections per person, which can exceed 1" in caught.err
    assert "exactly at the end" not in caught.out


def test_equal_early_cases_are_found_where_cases_fall_with_the_rate_too() -> None:
    """Very infectious carriers: beyond a point, to fall ill sooner saves more infections than it makes cases."""
    values = GENERALISED.values(None, {"carrier_odds": 5.0, "carrier_conversion_rate": 0.5})
    found = analysis.adequacy(GENERALISED, values, (0.0, 0.1), early_days=28.0, days=28.0)
    assert np.isfinite(found.phi[1]) and found.phi[1] != found.phi[0]
    assert found.rescaled["cases"][1] == pytest.approx(found.equal["cases"][0], rel=1e-5)


def test_matrices_are_rows_in_plain_data() -> None:
    plain = symbolic.next_generation(GENERALISED).to_dict()
    assert len(plain["V"]) == 3 and all(len(row) == 3 for row in plain["V"])
    assert plain["V"][0][1] == "0"


def test_a_study_without_an_exact_relation_shows_the_integrator_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_of_it(*_: object, **__: object) -> None:
        raise ValueError("the model has no first integral")

    monkeypatch.setattr("meningitis.analysis.infected.final_size_exact", none_of_it)
    drawn: list[np.ndarray] = []
    plain = figures.ever_infected_map
    monkeypatch.setattr(figures, "ever_infected_map", lambda *found: (drawn.append(found[2]), plain(*found))[1])
    work = Work(
        report=Report(out=tmp_path, title="", lead=""),
        models=(GENERALISED,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso",
    )  # fmt: skip
    work.report.section("Infected")
    infected(work)
    assert np.isfinite(drawn[0]).all() and drawn[0].max() > 0.5
    told = work.report.write(work.results).read_text()
    assert "By the integrator alone: the model has no first integral." in told and ">nan<" not in told


def test_a_run_of_half_a_day_more_is_drawn(tmp_path: Path) -> None:
    work = Work(
        report=Report(out=tmp_path, title="", lead=""),
        models=(GENERALISED,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso", days=100.5,
    )  # fmt: skip
    work.report.section("Thresholds")
    thresholds(work)
    assert (tmp_path / "figures" / "spread-threshold.svg").exists()


def test_compartments_may_be_called_q_s_and_r(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same model with lower-case compartments, carriers q among them, has the same numbers by the same symbols."""
    renamed = CARRIED.replace("beta * S * C", "beta * s * q")
    for old, new in (("S", "s"), ("C", "q"), ("I", "i"), ("R", "r")):
        renamed = re.sub(rf"\b{old}\b", new, renamed)
    model, lower = Model.from_yaml(CARRIED), Model.from_yaml(renamed)
    states = {"S": [900.0, 500.0], "C": [10.0, 40.0], "I": [1.0, 3.0], "R": [89.0, 457.0]}
    along = [
        symbolic.thresholds(each).along(each, {}, dict(zip(each.state_names, states.values(), strict=True)))
        for each in (model, lower)
    ]
    assert {name: column.tolist() for name, column in along[0].items()} == {
        name: column.tolist() for name, column in along[1].items()
    }
    file = tmp_path / "lower.yaml"
    file.write_text(renamed)
    assert main(["profile", "--model", str(file), "--days", "14"]) == 0
    assert main(["thresholds", "--model", str(file), "--days", "14"]) == 0
    printed = capsys.readouterr().out
    assert "with q' = " in printed and "at rate r': " in printed
    assert symbolic.thresholds(lower).evaluate(lower, {}, r=0.1)["early_ratio"] == pytest.approx(0.01 / 0.3)
