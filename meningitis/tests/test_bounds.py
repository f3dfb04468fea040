"""Grids of the study's and the command line's own stay within the bounds that a declaration gives."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from textbook import build

from meningitis import analysis
from meningitis.chapters.outcomes import _lever, adequacy, control, infected
from meningitis.chapters.work import Work
from meningitis.cli import main
from meningitis.model import Distribution, Model
from meningitis.models import GENERALISED
from meningitis.report import Report

SIR = """
name: sir
closed: true
compartments: [{name: S}, {name: I, infected: true}, {name: R}]
parameters:
  - {name: gamma, default: 0.2}
  - {name: beta, default: 0.4, bounds: [0.35, 0.5]}
  - {name: people, default: 1000, kind: count, bounds: [1000, 1000]}
flows:
  - {name: infection, source: S, target: I, rate: beta * S * I / people, new_infection: true, case: true}
  - {name: recovery, source: I, target: R, rate: gamma * I}
initial: {S: people - 10, I: 10}
"""


def bounded(**bounds: tuple[float, float]) -> Model:
    """The generalised model with other bounds, the parameters concerned being fixed within them."""
    parameters = []
    for p in GENERALISED.parameters:
        if p.name in bounds:
            x = float(np.clip(p.default, *bounds[p.name]))
            fixed = Distribution(kind="fixed", low=x, high=x)
            p = replace(p, default=x, bounds=bounds[p.name], distribution=fixed)
        parameters.append(p)
    return replace(GENERALISED, name="bounded", parameters=tuple(parameters))


def work_of(model: Model, out: Path) -> Work:
    work = Work(
        report=Report(out=out, title="", lead=""),
        models=(model,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso", days=70.0,
    )  # fmt: skip
    work.report.section("Section")
    return work


def test_ever_infected_is_swept_as_far_as_the_bounds_reach(tmp_path: Path) -> None:
    work = work_of(bounded(direct_fraction=(0.0, 0.2), carrier_odds=(0.5, 9.0)), tmp_path)
    infected(work)
    table = pd.read_csv(tmp_path / "tables" / "ever-infected.csv")
    assert (table["direct_fraction"].min(), table["direct_fraction"].max()) == (0.0, 0.2)
    assert (table["carrier_odds"].min(), table["carrier_odds"].max()) == (0.5, 2.0)
    last = GENERALISED.values(overrides={"direct_fraction": 0.2, "carrier_odds": 2.0})
    assert table["exact"].iloc[-1] == pytest.approx(float(analysis.final_size_exact(GENERALISED, last)))
    assert (tmp_path / "figures" / "ever-infected-map.svg").exists()


@pytest.mark.parametrize("held", ["direct_fraction", "carrier_odds"])
def test_a_parameter_held_by_its_bounds_leaves_the_map_out(held: str, tmp_path: Path) -> None:
    work = work_of(bounded(**{held: (0.0, 0.0) if held == "direct_fraction" else (3.0, 3.0)}), tmp_path)
    infected(work)
    assert pd.read_csv(tmp_path / "tables" / "ever-infected.csv")[held].nunique() == 1
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(("bounds", "last"), [((0.0, 0.015), 0.015), ((0.0, 1.0), 0.1)])
def test_adequacy_is_told_as_far_as_the_bounds_reach(bounds: tuple[float, float], last: float, tmp_path: Path) -> None:
    work = work_of(bounded(direct_fraction=bounds), tmp_path)
    adequacy(work)
    table = pd.read_csv(tmp_path / "tables" / "adequacy.csv")
    assert table["direct_fraction"].max() == last
    assert f"Going from p = 0 to p = {last:g}" in work.report.write(work.results).read_text()


def test_the_verdict_on_p_heeds_equal_early_cases_too(tmp_path: Path) -> None:
    """Against the table of the same chapter: its last row in which phi gives the early cases of p = 0."""
    work = work_of(GENERALISED, tmp_path)
    adequacy(work)
    table = pd.read_csv(tmp_path / "tables" / "adequacy.csv")
    rows = table[table["comparison"] == "equal early cases"].dropna()
    p, ratio = rows["direct_fraction"].iloc[-1], rows["cases"].iloc[-1] / rows["cases"].iloc[0]
    assert 0 < p < 0.1 and abs(ratio - 1) > 0.05
    (claim,) = work.report.claims
    assert f"Going to p = {p:g} with φ rescaled to equal early cases" in claim["condition"]
    assert claim["condition"].count("cases (") == 2 and f"cases ({ratio:.3g} times)" in claim["condition"]
    assert claim["condition"].endswith(f"Beyond p = {p:g} no φ within its bounds gives the early cases of p = 0.")
    assert work.results["claims"]["p = 0 adequate, equal early cases"]["cases"] == pytest.approx(ratio)


@pytest.mark.parametrize("bounds", [(0.005, 0.2), (0.0, 0.0)])
def test_adequacy_without_zero_or_without_anything_else_is_no_question(
    bounds: tuple[float, float], tmp_path: Path
) -> None:
    work = work_of(bounded(direct_fraction=bounds), tmp_path)
    adequacy(work)
    assert "compares direct_fraction with 0" in work.report.write(work.results).read_text()


def test_the_example_of_an_intervention_lowers_the_rate_of_infection_to_its_bound(tmp_path: Path) -> None:
    work = work_of(Model.from_yaml(SIR), tmp_path)
    control(work)
    found = work.results["compare"]
    assert (found["a"]["R0"], found["b"]["R0"]) == (pytest.approx(0.4 / 0.2), pytest.approx(0.35 / 0.2))
    assert found["cases_averted"] > 0
    assert "lowered to the end of its bounds, 0.35" in work.report.write(work.results).read_text()


def test_births_are_no_intervention_and_neither_is_a_rate_without_room() -> None:
    """R0 = b births/(m N (g + m)): births have the index of b, 1, and are declared first."""
    values = {"births": 20.0, "m": 0.02, "b": 0.4, "g": 0.1, "N": 1e3}
    flows: list[Any] = [
        (None, "S", "births", False), ("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False),
        *((x, None, f"m*{x}", False) for x in "SIR"),
    ]  # fmt: skip
    model = build("births", "S I R", "I", values, flows, {"S": "0.99*N", "I": "0.01*N"})
    assert _lever(model, model.values(), 70.0) == "b"
    stuck = tuple(replace(p, bounds=(p.default, p.default)) if p.name == "b" else p for p in model.parameters)
    assert _lever(replace(model, parameters=stuck), model.values(), 70.0) == "births"
    held = tuple(replace(p, bounds=(p.default, p.default)) for p in model.parameters)
    assert _lever(replace(model, parameters=held), model.values(), 70.0) is None


def test_an_index_without_room_for_a_step_is_not_known_and_the_others_are() -> None:
    model = Model.from_yaml(SIR)
    wide = Model.from_yaml(SIR.replace("bounds: [1000, 1000]", "bounds: [1, 100000]"))
    found, free = (analysis.local_sensitivity(m, m.values(), days=70.0) for m in (model, wide))
    for outcome in ("cases", "ever_infected", "peak_weekly_incidence"):
        assert np.isnan(found.indices[outcome]["people"]) and np.isfinite(free.indices[outcome]["people"])
        for name in ("beta", "gamma"):
            assert found.indices[outcome][name] == free.indices[outcome][name]
    assert found.ranked("cases")[-1] == "people"


def test_final_size_s_own_sweep_stays_within_the_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bounded.yaml"
    file.write_text(bounded(direct_fraction=(0.0, 0.2), carrier_odds=(0.9, 1.1)).to_yaml())
    assert main(["final-size", "--model", str(file), "--days", "70", "--csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert sorted(set(table["direct_fraction"])) == [0.0, 0.01, 0.1, 0.2]
    assert sorted(set(table["carrier_odds"])) == [0.9, 1.0, 1.1]
