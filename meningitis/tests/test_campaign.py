"""A dated campaign among people without infection: run as declared, and no hindrance to what one matrix says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from meningitis import analysis, symbolic
from meningitis.cli import main
from meningitis.engine import simulate
from meningitis.model import Flow, Model, Parameter
from meningitis.models import GENERALISED

PAGE = (Path(__file__).parents[1] / "docs" / "declare-your-own-model.md").read_text(encoding="utf-8")
TEXT = next(part.split("```")[0] for part in PAGE.split("```yaml\n")[1:] if part.startswith("name: campaign"))
WINDOW = "(min(1, max(0, (t - first)/edge)) - min(1, max(0, (t - last)/edge)))"


def days(name: str, value: float) -> Parameter:
    return Parameter(name=name, default=value, kind="multiplier", unit="day", bounds=(0.0, 1e3))


def with_campaign(rate: str = f"speed*S*{WINDOW}") -> Model:
    return replace(
        GENERALISED,
        name="campaign",
        parameters=(
            *GENERALISED.parameters, Parameter(name="speed", default=0.05), days("first", 40), days("last", 50),
            days("edge", 1),
        ),
        flows=(*GENERALISED.flows, Flow(name="campaign", source="S", target="R", rate=rate)),
        max_step=1.0,
    )  # fmt: skip


def with_cure() -> Model:
    cure = Flow(name="cure", source="C", target="R", rate=f"speed*C*{WINDOW}")
    return replace(with_campaign(), flows=(*GENERALISED.flows, cure))


def test_facts_of_one_matrix_are_those_without_the_campaign() -> None:
    model = with_campaign()
    assert symbolic.timed_rates(model) == ("campaign",) and symbolic.moving_rates(model) == ()
    assert symbolic.r0(model) == symbolic.r0(GENERALISED)
    assert "campaign depends on time, so R0 takes everyone as susceptible" in symbolic.next_generation(model).reason
    assert symbolic.thresholds(model).to_dict() == symbolic.thresholds(GENERALISED).to_dict()
    assert symbolic.effective_r(model) == symbolic.effective_r(GENERALISED)
    v = model.values()
    assert symbolic.growth(model, v) == symbolic.growth(GENERALISED, GENERALISED.values())
    assert symbolic.control(model, v).herd_immunity == pytest.approx(1 - 1 / symbolic.control(model, v).r0)
    assert analysis.outcomes(model, v, days=28)["R0"][0] == symbolic.r0_numeric(GENERALISED)(v)
    assert {"early ratio", "critical ratio"} <= {event.name for event in analysis.events(model, v, 70).events}
    with pytest.raises(ValueError, match="campaign depends on time"):
        symbolic.equilibria(model, v)


def test_what_moves_the_infected_with_time_is_refused_as_before() -> None:
    model = with_campaign(f"speed*S*C/population*{WINDOW}")  # in neither F nor V
    assert symbolic.moving_rates(model) == ()
    treated = replace(
        model, flows=(*GENERALISED.flows, Flow(name="cure", source="C", target="R", rate=f"speed*C*{WINDOW}"))
    )
    assert symbolic.moving_rates(treated) == ("cure",)
    with pytest.raises(ValueError, match="cure depends on time t"):
        symbolic.r0(treated)


def test_the_campaign_of_the_page_reaches_the_share_that_it_says() -> None:
    model = Model.from_yaml(TEXT)
    alone = simulate(model, parameters={"beta": 0.0}, days=100)
    assert alone["V"][0, -1] == pytest.approx(0.6 * 999, rel=1e-4)  # at the integrator's tolerance, across four kinks
    assert np.all(alone["V"][0, alone.times <= 40] == 0)

    def rates(t: float, y: np.ndarray) -> list[float]:
        window = np.clip(t - 40, 0, 1) - np.clip(t - 50, 0, 1)
        new, vaccinated = 0.4 * y[0] * y[1] / 1000, -np.log(0.4) / 10 * y[0] * window
        return [-new - vaccinated, new - 0.2 * y[1], new]

    by_hand = solve_ivp(rates, (0, 200), [999.0, 1, 0], max_step=0.5, rtol=1e-10, atol=1e-10).y[2, -1]
    assert simulate(model, days=200)["cases"][0, -1] == pytest.approx(by_hand, rel=1e-4)


def test_the_verbs_answer_for_the_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(TEXT)
    assert main(["r0", "--model", str(file)]) == 0
    said = capsys.readouterr().out
    assert "vaccination depends on time, so R0 takes everyone as susceptible, as at the start" in said
    assert "R at the start" in said and "beta at which R0 = 1" in said
    assert main(["thresholds", "--model", str(file), "--days", "70"]) == 0
    assert "infection spreads while R(t) = " in capsys.readouterr().out
