"""R(t) along a run: at the true state, whatever infection is divided by, or said to be that while few are infected."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sympy as sp
from scipy.integrate import solve_ivp
from textbook import SIR, VECTOR

from meningitis.cli import main
from meningitis.model import Model
from meningitis.printed import thresholds_text
from meningitis.symbolic import effective_r, effective_r_numeric, only_while_few, reproduction_along

DEADLY = """
name: deadly
compartments: [{name: S}, {name: I, infected: true}, {name: R}, {name: D, dead: true}]
parameters: [{name: b, default: 0.5}, {name: g, default: 0.1}, {name: d, default: 0.05},
  {name: N, default: 1000, kind: count}]
flows:
  - {name: infection, source: S, target: I, rate: b * S * I / (S + I + R), new_infection: true, case: true}
  - {name: recovery, source: I, target: R, rate: g * I}
  - {name: dying, source: I, target: D, rate: d * I, death: true}
initial: {S: 0.9 * N, I: 0.01 * N, R: 0.09 * N}
"""


@pytest.mark.parametrize("symbolic", [True, False])
def test_r_is_one_where_prevalence_turns_though_infection_counts_the_living(symbolic: bool) -> None:
    """With one infected compartment I' has the sign of R(t) - 1, a third of the people being infected at the turn."""
    model = Model.from_yaml(DEADLY)
    v = model.values()

    def rates(_t: float, y: np.ndarray) -> list[float]:
        S, I, R = y
        new = 0.5 * S * I / (S + I + R)
        return [-new, new - 0.15 * I, 0.1 * I]

    def turn(t: float, y: np.ndarray) -> float:
        return rates(t, y)[1]

    run = solve_ivp(rates, (0, 80), [900, 10, 90], rtol=1e-11, atol=1e-11, events=turn, t_eval=np.arange(0, 81, 5.0))
    (peak,) = run.y_events[0]
    assert peak[1] > 0.25 * peak.sum()
    along = effective_r_numeric(model, symbolic=symbolic)
    S, I, R = np.column_stack([peak, run.y])
    found = along({**v, "S": S, "I": I, "R": R, "D": 1e3 - S - I - R})
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found == pytest.approx(0.5 / 0.15 * S / (S + I + R))
    assert not only_while_few(model)
    assert sp.simplify(effective_r(model) - sp.sympify("b*S/((g + d)*(S + I + R))", locals=dict(model.symbols))) == 0
    assert "while few" not in thresholds_text(model, v)


# Two groups that mix evenly, infected equally easily; new infections stay in their group.
GROUPS = """
name: groups
compartments: [{name: S}, {name: T}, {name: I, infected: true}, {name: J, infected: true}, {name: R}]
parameters: [{name: b, default: 0.5}, {name: g, default: 0.1}, {name: N, default: 1000, kind: count}]
flows:
  - {name: ones, source: S, target: I, rate: b * S * (I + J) / (S + T + I + J + R), new_infection: true, case: true}
  - {name: others, source: T, target: J, rate: b * T * (I + J) / (S + T + I + J + R), new_infection: true}
  - {name: recovery, source: I, target: R, rate: g * I}
  - {name: recovery_of_others, source: J, target: R, rate: g * J}
initial: {S: 0.5 * N, T: 0.49 * N, I: 0.01 * N}
"""


def test_elsewhere_it_is_said_to_be_that_while_few_are_infected() -> None:
    model = Model.from_yaml(GROUPS)
    assert only_while_few(model)
    assert "while few are infected" in thresholds_text(model, model.values())
    states = {"S": [500.0], "T": [300.0], "I": [0], "J": [0], "R": [200.0]}
    assert reproduction_along(model, model.values(), states) == pytest.approx([0.5 / 0.1 * 0.8])
    constant = Model.from_yaml(GROUPS.replace("(S + T + I + J + R)", "N"))
    assert not only_while_few(constant) and not only_while_few(VECTOR) and not only_while_few(SIR)


RING = """
name: ring
closed: true
compartments: [{name: S}, {name: T}, {name: U}, {name: I, infected: true}, {name: J, infected: true},
  {name: K, infected: true}]
parameters: [{name: b, default: 0.3}, {name: c, default: 0.2}, {name: a, default: 0.4}, {name: g, default: 0.1},
  {name: N, default: 1000, kind: count}]
flows:
  - {name: first, source: S, target: I, rate: b * S * J / N, new_infection: true, case: true}
  - {name: second, source: T, target: J, rate: c * T * K / N, new_infection: true}
  - {name: third, source: U, target: K, rate: a * U * I / N, new_infection: true}
  - {name: back_to_s, source: I, target: S, rate: g * I}
  - {name: back_to_t, source: J, target: T, rate: g * J}
  - {name: back_to_u, source: K, target: U, rate: g * K}
initial: {S: 0.9 * N, I: 0.1 * N, T: N, U: N}
"""


def test_surveillance_is_told_of_groups_whose_r_has_no_symbols(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ring.yaml"
    file.write_text(RING)
    words = ["thresholds", "--model", str(file), "--days", "70"]
    assert main(words) == 0
    told = capsys.readouterr().out
    begun = (0.3 * 0.9 * 0.2 * 0.4) ** (1 / 3) / 0.1  # three infections in turn, each lasting 1/g
    assert f"at the start R(t) = {begun:.4g}" in told and "3 x 3" in told and "epidemic threshold" in told
    assert "effective_r" not in told
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["thresholds"] is None
    assert main([*words, "--csv"]) == 0
    assert "prevalence peak" in set(pd.read_csv(io.StringIO(capsys.readouterr().out))["name"])
