"""A parameter that is given a value is not sampled, and a scenario that could change nothing is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from meningitis import analysis
from meningitis.cli import main
from meningitis.models import BASIC

SMALL = ("--model", "basic", "--sobol-n", "16", "--lhs-n", "60", "--days", "70")


def test_prcc_sobol_and_bands_hold_what_is_pinned() -> None:
    values = BASIC.values(None, {"transmission_rate": "50/year"})
    held = ("transmission_rate",)
    ranks = analysis.prcc(BASIC, n=60, values=values, days=70, pinned=held)
    shares = analysis.sobol(BASIC, n=16, values=values, days=70, pinned=held)
    assert ranks.parameters == shares.parameters == analysis.sampled(BASIC, held)
    assert set(analysis.sampled(BASIC)) - set(ranks.parameters) == {"transmission_rate"}
    everything = set(BASIC.parameter_names) - {"initial_immune_fraction"}
    immune = BASIC.values(None, {"initial_immune_fraction": 0.3})
    run = analysis.bands(BASIC, n=20, values=immune, days=14, pinned=tuple(everything | {"initial_carrier_fraction"}))
    S = run.series["S"][:, 0]  # sampled: only the immune share, uniform on 0.1 to 0.5
    expected = 111_540 * (1 - 0.001 - 0.1 - 0.4 * (1 - np.array(run.percentiles) / 100))
    assert np.allclose(S, expected, atol=111_540 * 0.4 / 20)
    with pytest.raises(ValueError, match="none is left to sample"):
        analysis.sampled(BASIC, BASIC.parameter_names)


def test_the_command_line_pins_set_and_params(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps({"carrier_odds": 0.7}))
    words = ("sensitivity", "--global", *SMALL, "--params", str(file), "--set", "transmission_rate=50/year", "--csv")
    assert main(words) == 0
    caught = capsys.readouterr()
    parameters = set(pd.read_csv(io.StringIO(caught.out))["parameter"])
    assert parameters == set(analysis.sampled(BASIC)) - {"transmission_rate", "carrier_odds"}
    assert "pinned by --set or --params: carrier_odds = 0.7, transmission_rate = 0.136986;" in caught.err
    assert "whatever the scenario says" in caught.err


def test_a_scenario_that_changes_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("sensitivity", "--global", *SMALL, "--scenario", "severe")) == 2
    caught = capsys.readouterr()
    assert caught.out == "" and len(caught.err.splitlines()) == 1
    assert "--scenario severe would change nothing with --global" in caught.err
