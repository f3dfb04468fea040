"""Models that the package does not ship: seasons, and people who can be infected again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sympy as sp
from scipy.integrate import solve_ivp

from meningitis import analysis, symbolic
from meningitis.cli import main
from meningitis.model import Model, ModelError
from meningitis.models import GENERALISED

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


@pytest.mark.parametrize("verb", [["r0"], ["sensitivity"], ["study", "--out", "OUT"]])
def test_facts_of_one_matrix_are_refused_where_rates_move(
    verb: list[str], seasonal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("OUT", str(tmp_path / "out")) for word in verb]
    assert main([*words, "--model", seasonal]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "infection depends on time t" in said


def test_a_season_is_simulated_and_its_surveillance_thresholds_are_told(
    seasonal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["thresholds", "--model", seasonal, "--days", "70"]) == 0
    assert "epidemic threshold" in capsys.readouterr().out
    assert main(["simulate", "--model", seasonal, "--days", "70", "--csv"]) == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out)).iloc[-1]

    def rates(t: float, y: np.ndarray) -> list[float]:
        new, recovered, lost = 0.4 * (1 + 0.3 * np.sin(0.2 * t)) * y[0] * y[1] / 1000, 0.2 * y[1], 0.01 * y[2]
        return [lost - new, new - recovered, recovered - lost]

    exact = solve_ivp(rates, (0, 70), [990.0, 10.0, 0.0], rtol=1e-10, atol=1e-10).y[:, -1]
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
