"""Tables and datasets that carry their units, and formulas as the command line prints them."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pandas as pd
import pytest

from meningitis import analysis
from meningitis.engine import simulate
from meningitis.frames import OUTCOME_UNITS, to_xarray, units, with_units
from meningitis.models import BASIC, GENERALISED
from meningitis.printed import beside, equations_text, matrices_text, table_text, thresholds_text


def test_an_ensemble_becomes_a_dataset_with_dimensions_and_units() -> None:
    pytest.importorskip("xarray")
    run = simulate(BASIC, parameters={"carrier_odds": [0.8, 1.2]}, times=[0.0, 7.0, 14.0])
    data = to_xarray(run, BASIC)
    assert dict(data.sizes) == {"set": 2, "time": 3}
    chosen = data["C"].isel(set=int(np.argmax(data["carrier_odds"].values))).sel(time=14.0)
    assert float(chosen) == run["C"][1, 2]
    assert data["C"].attrs == {"units": "persons", "long_name": BASIC.compartments[1].meaning}
    assert data["time"].attrs["units"] == "days"
    assert data["transmission_rate"].attrs["units"] == "1/day"
    assert data.attrs == {"model": "basic", "model_hash": BASIC.hash}
    people = sum(data[name] for name in BASIC.state_names)
    assert np.allclose(people, BASIC.values()["population"])


def test_results_of_analyses_become_datasets() -> None:
    pytest.importorskip("xarray")
    v = GENERALISED.values()
    ratios = analysis.profiles(GENERALISED, v, {"direct_fraction": [0.0, 0.01]}, days=14)
    found = to_xarray(ratios, GENERALISED)
    assert dict(found.sizes) == {"set": 2, "time": 15}
    assert found["prevalence"].attrs["units"] == "persons" and found["stage1"].attrs["units"] == "1"
    assert float(found["stage1"].sel(time=7).isel(set=1)) == ratios.stage1[1, 7]
    share = analysis.ever_infected(GENERALISED, v, [0.8, 1.0], [0.0, 0.1, 0.2])
    assert float(to_xarray(share, GENERALISED)["exact"].sel(carrier_odds=1.0, direct_fraction=0.2)) == share.exact[1, 2]
    band = analysis.bands(BASIC, n=16, days=14)
    assert to_xarray(band, BASIC)["weekly_cases"].sel(percentile=50.0).attrs["units"] == "persons/week"


def test_xarray_is_imported_only_where_it_is_used() -> None:
    before = sys.modules.pop("xarray", None)
    try:
        importlib.reload(importlib.import_module("meningitis.frames"))
        assert "xarray" not in sys.modules
    finally:
        if before is not None:
            sys.modules["xarray"] = before


def test_columns_say_their_units() -> None:
    frame = pd.DataFrame({"week": [1], "day": [7.0], "I1": [2.0], "weekly_cases": [3.0], "carrier_odds": [1.0]})
    assert list(with_units(frame, BASIC).columns) == [
        "week", "day [days]", "I1 [persons]", "weekly_cases [persons/week]", "carrier_odds",
    ]  # fmt: skip
    assert units(BASIC)["stage_progression_rate"] == "1/day"
    assert set(OUTCOME_UNITS) == set(analysis.COMPARED) > set(analysis.OUTCOMES)


def test_formulas_on_the_terminal() -> None:
    assert equations_text(GENERALISED).splitlines()[2] == "dC/dt = (1 − p) λ S − (φ + γc) C"
    text = matrices_text(BASIC)
    assert "R₀ = β (ε + φ/a₁ + η φ σ/(a₁ a₂))/a_C" in text
    assert "a_C = φ + γc" in text and "carrier_conversion_rate  rate at which carriers" in text
    assert "carriers spread while S/N > a_C/((1 − p) β (ε + q))" in thresholds_text(GENERALISED, GENERALISED.values())
    assert beside("A = ", "x\ny\nz") == "    x\nA = y\n    z"


def test_tables_on_the_terminal_set_numbers_right_and_words_left() -> None:
    frame = pd.DataFrame({"what": ["a", "long one"], "value": [1234.567, 0.5], "none": [None, None]})
    assert table_text(frame) == "what      value\na         1,235\nlong one    0.5"
