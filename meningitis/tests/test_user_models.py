"""Models that the package does not ship: seasons, and people who can be infected again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp

from meningitis import analysis, symbolic
from meningitis.cli import main
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
