"""R0 and what follows from it where rates are 0: a flow that stops is not one that goes on ever so slowly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from textbook import build

from meningitis.cli import main
from meningitis.model import Flow, Model, Parameter
from meningitis.models import GENERALISED
from meningitis.printed import matrices_text
from meningitis.symbolic import (
    control,
    critical_value,
    elasticities,
    growth,
    next_generation,
    r0_numeric,
    reproduction_name,
    zeros_at,
)

INFECTION, RECOVERY = ("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False)
INITIAL = {"S": "0.99*N", "I": "0.01*N"}
VACCINATED = replace(
    GENERALISED,
    name="vaccinated",
    parameters=(*GENERALISED.parameters, Parameter(name="vaccination_rate", symbol="v", default=0.0)),
    flows=(*GENERALISED.flows, Flow(name="vaccination", source="S", target="R", rate="vaccination_rate * S")),
)
"""The shipped model with a vaccination that is not going on."""
BORN = build(
    "born", "S E I R", "E I", {"b": 0.42, "a": 0.2, "g": 0.1, "mu": 0.0, "v": 0.0, "N": 1e3},
    [
        (None, "S", "mu*N", False), ("S", "E", "b*S*I/N", True), ("E", "I", "a*E", False), RECOVERY,
        ("S", "R", "v*S", False), *((x, None, f"mu*{x}", False) for x in "SEIR"),
    ],
    INITIAL,
)  # fmt: skip


def sirs(waning: str) -> Model:
    """SIRS with vaccination, neither going on; `waning` is what the loss of immunity is called."""
    flows = [INFECTION, RECOVERY, ("S", "R", "vaccination*S", False), ("R", "S", f"{waning}*R", False)]
    return build("sirs", "S I R", "I", {"b": 0.5, "g": 0.1, "vaccination": 0.0, waning: 0.0, "N": 1e3}, flows, INITIAL)


def born_r0(mu: float, v: float = 0.0) -> float:
    """By hand: infected, 0.2/(0.2 + mu) get through E, 1/(0.1 + mu) days in I; mu/(mu + v) are susceptible."""
    share = mu / (mu + v) if mu + v > 0 else 1.0
    return 0.42 * 0.2 / (0.2 + mu) / (0.1 + mu) * share


def test_a_vaccination_at_rate_0_leaves_the_model_as_it_is() -> None:
    with_it, without = VACCINATED.values(), GENERALISED.values()
    found, plain = control(VACCINATED, with_it), control(GENERALISED, without)
    assert (found.r0, found.herd_immunity, found.coverage) == (plain.r0, plain.herd_immunity, plain.coverage)
    assert {**found.critical, "vaccination_rate": None} == {**plain.critical, "vaccination_rate": None}
    assert growth(VACCINATED, with_it).reproduction == growth(GENERALISED, without).reproduction
    indices = elasticities(VACCINATED).evaluate(with_it)
    assert np.isnan(indices.pop("vaccination_rate"))  # R0 falls to 0 at once
    assert indices == pytest.approx(elasticities(GENERALISED).evaluate(without))
    assert zeros_at(VACCINATED, with_it) == ("vaccination_rate",)
    assert "where vaccination_rate is 0" in matrices_text(VACCINATED, with_it)
    both = r0_numeric(VACCINATED)({**with_it, "vaccination_rate": [0.0, 1e-9, 0.0]})
    assert both.tolist() == [plain.r0, 0.0, plain.r0]


def test_r0_of_0_for_want_of_susceptibles_says_so(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never as an immune share of 0: with everyone susceptible R0 is that of the model without vaccination."""
    values = VACCINATED.values(overrides={"vaccination_rate": 1e-4})
    found, plain = control(VACCINATED, values), control(GENERALISED, GENERALISED.values())
    assert (found.r0, found.herd_immunity, found.coverage, found.susceptible) == (0.0, None, None, None)
    assert found.r0_susceptible == pytest.approx(plain.r0) and plain.r0_susceptible is None
    assert "nobody stays susceptible" in found.reason and f"{plain.r0:.4g}" in found.reason
    assert all(np.isnan(index) for index in elasticities(VACCINATED).evaluate(values).values())
    file = tmp_path_factory.mktemp("zeros") / "vaccinated.yaml"
    file.write_text(VACCINATED.to_yaml())
    assert main(["r0", "--model", str(file), "--set", "vaccination_rate=1e-4"]) == 0
    rows = {line[:45].strip(): line[45:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["R0 with everyone susceptible"][0] == "2.673"
    assert rows["immune share needed, 1 - 1/R0"][0] == "–"
    assert rows["R_c, control reproduction number"][0] == "0" and "R0" not in rows
    assert main(["compare", "--model", str(file), "--days", "70", "--with", "vaccination_rate=1e-4"]) == 0
    said = capsys.readouterr()
    assert "R_c is not given where it is 0" in said.err and "\nR_c " in said.out and "\nR0 " not in said.out
    assert (reproduction_name(VACCINATED, values), reproduction_name(VACCINATED, {})) == ("R_c", "R0")


@pytest.mark.parametrize("waning", ["waning", "loss"])
def test_r0_does_not_depend_on_what_parameters_are_called(waning: str) -> None:
    model = sirs(waning)
    assert float(r0_numeric(model)(model.values())) == pytest.approx(5, rel=1e-12)  # 0.5/0.1, everyone susceptible
    assert control(model, model.values()).herd_immunity == pytest.approx(0.8)
    rates = np.array([0.0, 0.0, 0.01, 0.01]), np.array([0.0, 0.03, 0.0, 0.03])
    found = r0_numeric(model)({**model.values(), "vaccination": rates[0], waning: rates[1]})
    assert found == pytest.approx([5, 5, 0, 3.75])


def test_births_and_vaccination_that_both_stop() -> None:
    values = BORN.values()
    found = r0_numeric(BORN)({**values, "mu": [0.0, 0.0, 0.01, 0.01], "v": [0.0, 0.01, 0.0, 0.03]})
    assert found == pytest.approx([born_r0(0), 0, born_r0(0.01), born_r0(0.01, 0.03)])
    indices = elasticities(BORN).evaluate(values)
    assert indices["mu"] == 0 and np.isnan(indices["v"])
    assert (indices["b"], indices["g"], indices["a"]) == pytest.approx((1, -1, 0))
    assert not next_generation(BORN, zeros=("mu", "v")).emptied and next_generation(BORN, zeros=("mu",)).emptied


def test_a_jump_past_1_is_not_a_root() -> None:
    by_hand = brentq(lambda mu: born_r0(mu) - 1, 1e-3, 1.0, xtol=1e-14)
    for present in (0.0, 0.01):
        values = BORN.values(overrides={"mu": present})
        assert critical_value(BORN, values, "mu") == pytest.approx(by_hand, rel=1e-9)
        assert critical_value(BORN, values, "v") == pytest.approx((born_r0(0.01) - 1) * 0.01 if present else None)
