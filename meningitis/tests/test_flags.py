"""Flags of a flow or compartment that were left out: refused where they make an outcome wrong, said where none is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from meningitis import analysis
from meningitis.cli import main
from meningitis.model import Model, ModelError
from meningitis.models import GENERALISED

PLAIN = """
name: plain
compartments: [{name: S}, {name: E, infected: true}, {name: I, infected: true}, {name: R}, {name: D, dead: true}]
parameters: [{name: b, default: 0.5}, {name: g, default: 0.2}, {name: N, default: 1000, kind: count}]
flows:
  - {name: infection, source: S, target: E, rate: b * S * I / N, new_infection: true}
  - {name: onset, source: E, target: I, rate: g * E, case: true}
  - {name: recovery, source: I, target: R, rate: g * I}
  - {name: dying, source: I, target: D, rate: g * I / 10, death: true}
  - {name: burial, source: D, rate: g * D}
initial: {S: N - 10, I: 10}
"""


@pytest.mark.parametrize(
    ("left_out", "code", "where", "says"),
    [
        (", death: true", "E017", "flow dying", "from infected I to D, which is dead: true"),
        ("{name: E, infected: true}", "E016", "flow infection", "leads to E, which is not marked infected"),
    ],
)
def test_a_flag_left_out_that_spoils_an_outcome_is_refused(left_out: str, code: str, where: str, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        Model.from_yaml(PLAIN.replace(left_out, "{name: E}" if "name" in left_out else ""))
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == (code, where) and says in problem.message


def test_a_new_infection_of_nobody_is_refused_and_a_burial_is_no_death() -> None:
    with pytest.raises(ModelError, match="E016 flow infection: it is declared a new infection, but leads to outside"):
        Model.from_yaml(PLAIN.replace("source: S, target: E,", "source: S,"))
    bodies = PLAIN.replace("{name: D, dead: true}]", "{name: D, dead: true, infected: true}, {name: G, dead: true}]")
    buried = Model.from_yaml(bodies.replace("burial, source: D", "burial, source: D, target: G"))
    assert buried.uncounted == () and GENERALISED.uncounted == ()


def test_what_no_flow_is_declared_to_be_is_not_counted_as_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PLAIN.replace(", case: true", "")
    model = Model.from_yaml(text)
    found = analysis.outcomes(model, model.values(), days=70.0)
    assert {name for name, column in found.items() if np.isnan(column).all()} == {
        "cases", "peak_weekly_incidence", "peak_week",
    }  # fmt: skip
    compared = analysis.compare(model, {}, {"b": 0.4}, days=70.0)
    assert np.isnan(compared.cases_averted) and compared.deaths_averted > 0
    assert compared.unknown == ("no flow of model 'plain' is declared a case: cases are not counted",)
    file = tmp_path / "plain.yaml"
    file.write_text(text)
    for words in (["simulate"], ["compare", "--with", "b=0.4"]):
        assert main([words[0], "--model", str(file), "--days", "70", *words[1:]]) == 0
        caught = capsys.readouterr()
        assert caught.err.count("declared a case: cases are not counted") == 1
        assert words[0] == "simulate" or caught.out.splitlines()[5].split()[:3] == ["cases", "persons", "–"]
    assert main(["study", "--model", str(file), "--days", "70", "--out", str(tmp_path / "out")]) == 0
    assert (
        "not known: no flow of model &#39;plain&#39; is declared a case" in (tmp_path / "out/report.html").read_text()
    )
    capsys.readouterr()
    assert main(["simulate", "--model", str(file), "--days", "70", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["weekly_cases"], row["weekly_cases_per_100000"]) for row in rows} == {(None, None)}
    assert all(row["weekly_deaths"] > 0 for row in rows)


def test_a_set_without_an_outbreak_to_speak_of_has_no_r0_in_a_comparison() -> None:
    """Vaccination of everyone sooner or later: R0 is 0 whatever the transmission, and says nothing."""
    flow = "  - {name: vaccination, source: S, target: R, rate: v * S}\ninitial:"
    model = Model.from_yaml(PLAIN.replace("initial:", flow).replace("{name: N,", "{name: v, default: 0}, {name: N,"))
    found = analysis.compare(model, {}, {"v": 0.01}, days=70.0)
    assert found.a["R0"] == pytest.approx(0.5 / 0.22) and np.isnan(found.b["R0"])
    assert found.unknown == ("R0 is not given where it is 0 only because nobody stays susceptible without infection",)
    assert found.b["cases"] < found.a["cases"]
