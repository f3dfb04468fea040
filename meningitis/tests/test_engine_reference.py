"""scipy's solvers in the place of the kernel: the same horizon, the same fate of a set that fails."""

from __future__ import annotations

import numpy as np
import pytest

from meningitis.analysis import outcomes
from meningitis.engine import simulate
from meningitis.engine.status import Status
from meningitis.model import Compartment, Distribution, Flow, InitialState, Model, Parameter
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
        kind="count",
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


def test_an_analysis_names_the_set_that_failed() -> None:
    samples = {name: np.full(3, value) for name, value in BASIC.values().items()}
    samples["initial_immune_fraction"][1] = 1.0  # no room left for the carriers
    with pytest.raises(RuntimeError, match=r"1 of 3 .* set 1: a state falls below .*initial_immune_fraction=1\b"):
        outcomes(BASIC, samples)
