"""The immune share that keeps infection away, where some are immune without it and where none are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from textbook import SEIAR, SIR, build

from meningitis.chapters.outcomes import control as chapter
from meningitis.chapters.work import Work
from meningitis.cli import main
from meningitis.model import Model
from meningitis.models import BASIC
from meningitis.report import Report
from meningitis.symbolic import control, growth, initial_state

INFECTION, RECOVERY = ("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False)
INITIAL = {"S": "0.99*N", "I": "0.01*N"}
# Vaccination at rate v against loss of immunity at rate w: a share w/(w + v) is susceptible without infection.
VACCINATED = build(
    "vaccinated", "S I R", "I", {"b": 0.4, "g": 0.1, "w": 0.02, "v": 0.03, "N": 1e3},
    [INFECTION, RECOVERY, ("R", "S", "w*R", False), ("S", "R", "v*S", False)], INITIAL,
)  # fmt: skip
PER_LIVING = build(
    "per_living", "S I R", "I", {"b": 0.4, "g": 0.1, "w": 0.02, "v": 0.03, "m": 0.01, "N": 1e3},
    [
        ("S", "I", "b*S*I/(S + I + R)", True), RECOVERY, ("R", "S", "w*R", False), ("S", "R", "v*S", False),
        (None, "S", "m*N", False), *((x, None, f"m*{x}", False) for x in "SIR"),
    ],
    INITIAL,
)  # fmt: skip


@pytest.mark.parametrize("model", [VACCINATED, PER_LIVING, SIR, SEIAR], ids=lambda m: m.name)
def test_growth_stops_at_the_immune_share_needed_and_no_sooner(model: Model) -> None:
    """By the eigenvalue of growth of few infected where that share of the people is immune, and a little less."""
    found, v = control(model, model.values()), model.values()
    assert found.herd_immunity is not None and found.reason == ""
    rates = []
    for immune in (found.herd_immunity - 1e-4, found.herd_immunity, found.herd_immunity + 1e-4):
        rates.append(growth(model, v, state={"S": 1e3 * (1 - immune), "R": 1e3 * immune}).rate)
    assert rates[0] > 0 > rates[2] and rates[1] == pytest.approx(0, abs=1e-12)


def test_those_immune_without_infection_are_counted() -> None:
    found = control(VACCINATED, VACCINATED.values(), efficacy=0.9)
    assert (found.r0, found.susceptible) == (pytest.approx(1.6), pytest.approx(0.4))
    assert found.herd_immunity == pytest.approx(0.75)  # 1 - g/b, as without vaccination
    assert found.coverage == pytest.approx(0.75 / 0.9)
    enough = control(VACCINATED, VACCINATED.values(overrides={"v": 0.08}))  # 80 % are immune already
    assert enough.r0 < 1 and enough.herd_immunity == pytest.approx(0.75) and enough.susceptible == pytest.approx(0.2)

    def rates(_t: float, y: np.ndarray) -> list[float]:  # an outbreak of its own among 74 and 76 % immune
        return [-0.4 * y[0] * y[1], 0.4 * y[0] * y[1] - 0.1 * y[1]]

    for immune, grows in ((0.74, True), (0.76, False)):
        course = solve_ivp(rates, (0, 20), [1 - immune - 1e-6, 1e-6], rtol=1e-10, atol=1e-14).y[1]
        assert (course[-1] > course[0]) == grows


@pytest.mark.parametrize(("scenario", "grows"), [("epidemic", True), ("hyperendemic", True), ("endemic", False)])
def test_the_coverage_at_the_start_stops_growth_among_those_not_immune(scenario: str, grows: bool) -> None:
    """By the eigenvalue of growth, that share of the susceptible being protected as the run begins."""
    values = BASIC.values(scenario)
    found, begun = control(BASIC, values, efficacy=0.9), initial_state(BASIC, values)
    assert found.coverage is not None and found.coverage_at_start is not None
    left = {**begun, "S": begun["S"] * (1 - 0.9 * found.coverage_at_start)}
    rate = growth(BASIC, values, state=left).rate
    assert rate == pytest.approx(0, abs=1e-12) if grows else rate < 0
    assert found.coverage > found.coverage_at_start
    weak = control(BASIC, values, efficacy=0.1)
    assert weak.coverage_at_start == (None if grows else 0.0)


def test_the_share_is_not_given_where_r_is_not_in_proportion_to_the_susceptibles() -> None:
    crowded = build(
        "crowded", "S I R", "I", {"b": 0.4, "g": 0.1, "N": 1e3}, [("S", "I", "b*S*S*I/N/N", True), RECOVERY], INITIAL
    )
    found = control(crowded, crowded.values())
    assert (found.susceptible, found.herd_immunity, found.coverage) == (None, None, None)
    assert "R is not in proportion to S" in found.reason
    strains = build(
        "strains", "S I J R", "I J", {"b": 0.4, "c": 0.3, "g": 0.1, "N": 1e3},
        [INFECTION, ("S", "J", "c*S*J/N", True), RECOVERY, ("J", "R", "g*J", False)], {"S": "0.9*N", "I": "0.1*N"},
    )  # fmt: skip
    assert control(strains, strains.values()).herd_immunity == pytest.approx(0.75)  # of the fitter one


def test_the_verb_and_the_chapter_say_how_many_are_immune_without_infection(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("control")
    file = folder / "vaccinated.yaml"
    file.write_text(VACCINATED.to_yaml())
    assert main(["r0", "--model", str(file)]) == 0
    rows = {line[:45].strip(): line[45:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["susceptible share s without infection"][0] == "0.4"
    assert rows["immune share needed, 1 - s/R_c"][0] == "0.75"
    report = Report(out=folder, title="", lead="")
    report.section("Control")
    work = Work(report=report, models=(VACCINATED,), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso", days=70.0)
    chapter(work)
    told = report.write(work.results).read_text()
    assert "R_c = 1.60 in the vaccinated model. This is the control reproduction number at the disease-free" in told
    assert "where 60% of the population are immune," in told and "R at the start is 3.96" in told
    assert "Infection cannot spread where 75% of the population are immune. A vaccine that keeps 90%" in told
    assert "from being infected" in told and "carriage" not in told and "illness alone" not in told
