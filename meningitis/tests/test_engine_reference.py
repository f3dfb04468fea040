"""scipy's solvers in the place of the kernel: the same horizon, the same fate of a set that fails."""

from __future__ import annotations

import numpy as np
import pytest
from textbook import build

from meningitis.analysis import outcomes
from meningitis.analysis.runs import at_times
from meningitis.engine import crossings, reduce, simulate
from meningitis.engine.status import Status
from meningitis.model import Compartment, Distribution, Flow, InitialState, Model, ModelError, Parameter
from meningitis.models import BASIC


def test_the_reference_integrates_to_the_end_and_not_to_the_last_output() -> None:
    kernel = simulate(BASIC, days=365, times=[0, 10])
    reference = simulate(BASIC, days=365, times=[0, 10], reference="DOP853", rtol=1e-9, atol=1e-9)
    assert reference.peaks[0, :, 0] == pytest.approx(kernel.peaks[0, :, 0], rel=1e-4)
    assert np.all(reference.peaks[0, :, 1] > 50)  # the epidemic peaks long after day 10
    assert np.allclose(reference.states, kernel.states, rtol=1e-4, atol=1e-6)


def test_a_run_from_the_start_to_the_start_is_the_initial_state() -> None:
    times = [0.0]
    kernel, reference = (simulate(BASIC, days=0, times=times, reference=name) for name in (None, "DOP853"))
    assert np.array_equal(kernel.states, reference.states)


@pytest.mark.parametrize("reference", [None, "DOP853", "Radau"])
def test_a_negative_set_has_no_numbers_afterwards(reference: str | None) -> None:
    rate = Parameter(
        name="rate",
        symbol="r",
        unit="persons/day",
        default=3.0,
        bounds=(0.0, 10.0),
        distribution=Distribution(kind="fixed", low=3.0, high=3.0),
        kind="rate",
        meaning="persons who leave a day",
    )
    model = Model(
        name="drain",
        compartments=(Compartment(name="A", meaning="full", infected=True), Compartment(name="B", meaning="sink")),
        parameters=(rate,),
        flows=(Flow(name="leave", source="A", target="B", rate="rate"),),
        initial=InitialState(values={"A": 10.0}),
    )
    run = simulate(model, days=10, times=np.arange(11.0), reference=reference, rtol=1e-9, atol=1e-9)
    assert run.status[0] == Status.NEGATIVE
    finite = run.states[0][np.isfinite(run.states[0]).all(axis=1)]
    assert finite[0].tolist() == [10.0, 0.0] and finite.min() > -1e-7
    assert np.isnan(run.states[0, 4:]).all() and np.isnan(run.cumulative[0, 4:]).all()  # A is empty on day 10/3
    assert np.isnan(run.peaks).all()


SEASON = build(
    "season", "A", "A", {"a": 0.0, "b": 0.0, "c": 0.0, "w": 1.0, "tau": 85.0, "N": 1e3},
    [
        (None, "A", "b*A^2/N", True), (None, "A", "c*N*exp(-(w*(t - tau))^2)", True),
        (None, "A", "a*N*(1 + sin(w*t))", False), ("A", None, "a*A", False),
    ],
    {"A": "N"},
)  # fmt: skip
"""With b alone A = N / (1 - b t); with a alone, large, A follows N (1 + sin w t); c alone brings c N sqrt(pi)/w."""


@pytest.mark.parametrize("reference", [None, "DOP853"])
def test_a_set_that_radau_cannot_solve_either_has_no_peak(reference: str | None) -> None:
    run = simulate(SEASON, parameters={"b": 1.0}, days=3, times=[0.0, 0.5, 3.0], reference=reference)
    assert run.status[0] == Status.STEP_TOO_SMALL
    assert np.isnan(run.states[0, -1]).all() and np.isnan(run.peaks).all()


def test_the_peak_of_a_stiff_set_is_as_right_as_its_outputs() -> None:
    run = simulate(SEASON, parameters={"a": 1e6}, days=3, times=np.linspace(0, 3, 31), max_steps=500)
    assert run.status[0] == Status.FALLBACK
    assert run["A"][0] == pytest.approx(1e3 * (1 + np.sin(run.times)), rel=1e-5)
    assert run.peaks[0, 0] == pytest.approx([2e3, np.pi / 2], rel=1e-5)


def test_dated_importations_are_met_by_steps_no_longer_than_they_last() -> None:
    given, brought = {"c": 0.01, "w": 0.5}, 10 * np.sqrt(np.pi) / 0.5
    for reference in (None, "DOP853"):
        run = simulate(SEASON, parameters=given, days=365, times=[0.0, 365.0], max_step=2.0, reference=reference)
        assert run["new_infections"][0, -1] == pytest.approx(brought, rel=1e-5)
    swept = reduce(SEASON, {**given, "c": [0.01, 0.02]}, days=365, max_step=2.0)
    assert swept["new_infections"] == pytest.approx([brought, 2 * brought], rel=1e-5)
    (half,) = crossings(SEASON, f"new_infections - {brought / 2}", parameters=given, days=365, max_step=2.0)
    assert half.time == pytest.approx(85, abs=1e-5)


def test_a_declaration_says_how_long_what_it_has_lasts() -> None:
    """Every run heeds it: of one set, of a sweep, of a crossing, and those that analyses make of a file."""
    given, brought = {"c": 0.01, "w": 0.5}, 10 * np.sqrt(np.pi) / 0.5
    dated = Model.from_yaml(SEASON.to_yaml() + "max_step: 2 days\n")
    assert dated.max_step == 2.0 and Model.from_yaml(dated.to_yaml()).hash == dated.hash != SEASON.hash
    assert "max_step" not in SEASON.to_dict()
    unbounded = {"parameters": given, "days": 365, "times": [0.0, 365.0], "max_step": np.inf}
    passed = simulate(SEASON, **unbounded)["new_infections"][0, -1]
    assert passed < 1e-3 * brought
    for reference in (None, "DOP853"):
        run = simulate(dated, parameters=given, days=365, times=[0.0, 365.0], reference=reference)
        assert run["new_infections"][0, -1] == pytest.approx(brought, rel=1e-5)
    free = simulate(dated, **unbounded)
    assert free["new_infections"][0, -1] == passed
    swept = reduce(dated, {**given, "c": [0.01, 0.02]}, days=365)
    assert swept["new_infections"] == pytest.approx([brought, 2 * brought], rel=1e-5)
    analysed = at_times(dated, dated.values(overrides=given), [0.0, 365.0])
    assert analysed["new_infections"][-1] == pytest.approx(brought, rel=1e-5)
    (half,) = crossings(dated, f"new_infections - {brought / 2}", parameters=given, days=365)
    assert half.time == pytest.approx(85, abs=1e-5)
    for text, message in (("0", "must be above 0"), ("-1 day", "must be above 0"), ("2/day", "must be in day")):
        with pytest.raises(ModelError, match=message):
            Model.from_yaml(SEASON.to_yaml() + f"max_step: {text}\n")


def test_an_analysis_names_the_set_that_failed() -> None:
    samples = {name: np.full(3, value) for name, value in BASIC.values().items()}
    samples["initial_immune_fraction"][1] = 1.0  # no room left for the carriers
    with pytest.raises(RuntimeError, match=r"1 of 3 .* set 1 \(a state falls below .*initial_immune_fraction=1\b"):
        outcomes(BASIC, samples)
