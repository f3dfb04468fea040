"""The exact final size: its values are read and refused as everywhere, and where there is none it says so."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from textbook import SIR

from meningitis import analysis
from meningitis.cli import main
from meningitis.model import ModelError
from meningitis.models import BASIC, GENERALISED

ENDLESS = {"carrier_immunity_rate": 0.0, "carrier_conversion_rate": 0.0}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"beta": 0.4}, "there is no parameter 'beta'"),
        ({"transmision_rate": 0.4}, "did you mean 'transmission_rate'"),
        ({"transmission_rate": -3.0}, "-3 is outside"),
        ({"transmission_rate": np.array([0.1, -3.0])}, "-3 is outside"),
        ({"direct_fraction": 0.1}, "there is no parameter 'direct_fraction'"),
    ],
)
def test_values_that_the_model_does_not_have_are_refused(values: dict[str, float], says: str) -> None:
    for function in (analysis.final_size_exact, analysis.infection_potential, analysis.infected.starting_state):
        with pytest.raises(ModelError, match=says):
            function(BASIC, values)
    with pytest.raises(ModelError, match=says):
        analysis.first_integral_along(BASIC, values, {"S": 1.0, "C": 1.0, "I1": 0.0, "I2": 0.0})


def test_quantities_are_read_and_any_model_is_answered() -> None:
    by_year = analysis.final_size_exact(BASIC, {"transmission_rate": "100/year"})
    assert by_year == analysis.final_size_exact(BASIC, {"transmission_rate": 100 / 365}) and by_year.shape == ()
    rates = np.array([0.2, 0.4])
    left = 1 - analysis.final_size_exact(SIR, {"b": rates})  # of all: S0 is 99 %
    assert np.log(left / 0.99) == pytest.approx(-rates / 0.1 * (1 - left), rel=1e-9)


def test_where_r0_is_infinite_the_final_size_says_so_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(analysis.final_size_exact(GENERALISED, ENDLESS))
        found = analysis.final_sizes(GENERALISED, ENDLESS, days=70.0)
        words = "R0 is infinite, for someone infected never leaves: there is no exact final size"
        assert found.note == words and np.isnan(found.exact).all() and np.isfinite(found.integrated).all()
        swept = analysis.final_sizes(BASIC, ENDLESS, {"carrier_immunity_rate": [0.0, 0.1]}, days=70.0)
        assert swept.note.startswith("R0 is infinite in 1 of 2 parameter sets")
        assert np.isfinite(swept.exact).tolist() == [False, True]
    words = [word for name, value in ENDLESS.items() for word in ("--set", f"{name}={value}")]
    assert main(["final-size", *words, "--days", "70"]) == 0
    (told,) = capsys.readouterr().err.splitlines()  # those of p = 1 never carry
    assert told.startswith("meningitis: R0 is infinite in 20 of 25 parameter sets, for someone infected never leaves")


def test_infinite_and_unknown_are_told_apart_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for name, value in ENDLESS.items() for word in ("--set", f"{name}={value}")]
    assert main(["r0", "--json", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["R0"], told["growth"]["generation_time"]) == ("Infinity", "Infinity")
    assert told["control"]["critical"]["transmission_rate"] is None
    assert float(told["R0"]) == np.inf
