"""Input at the edge of what there is: refused at entry with one sentence, or answered."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from test_campaign import with_cure

from meningitis import analysis, symbolic
from meningitis.engine import crossings, reduce, simulate
from meningitis.models import BASIC, GENERALISED
from meningitis.symbolic import growth


@pytest.mark.parametrize("chunk", [0, -5])
def test_a_chunk_holds_a_set(chunk: int) -> None:
    with pytest.raises(ValueError, match=f"chunk must be at least 1 set, not {chunk}"):
        reduce(BASIC, BASIC.values(), chunk=chunk)


@pytest.mark.parametrize("run", [reduce, analysis.outcomes])
def test_no_sets_are_refused(run: Any) -> None:
    with pytest.raises(ValueError, match="there are no parameter sets to run"):
        run(BASIC, {"carrier_odds": []})


def test_an_empty_ensemble_is_an_empty_table() -> None:
    frame = simulate(BASIC, parameters={"carrier_odds": []}, days=14).frame()
    assert len(frame) == 0 and list(frame.columns[:3]) == ["set", "time", "S"]


@pytest.mark.parametrize("days", [math.nan, math.inf, -1.0])
def test_days_are_a_finite_number(days: float) -> None:
    for run in (
        lambda: simulate(BASIC, days=days),
        lambda: reduce(BASIC, BASIC.values(), days=days),
        lambda: crossings(BASIC, "I1 - 1", days=days),
    ):
        with pytest.raises(ValueError, match=f"days must be a finite number from 0 on, not {days:g}"):
            run()


def test_symbolic_facts_fill_a_partial_set() -> None:
    part: Any = {"carrier_odds": 0.7, "transmission_rate": "60/year"}
    whole = BASIC.values(None, part)
    assert symbolic.growth(BASIC, part) == growth(BASIC, whole)
    assert symbolic.control(BASIC, part).to_dict() == symbolic.control(BASIC, whole).to_dict()
    index = symbolic.elasticities(BASIC)
    assert index.evaluate(part) == index.evaluate(whole) and index.frame(part).equals(index.frame(whole))
    assert symbolic.equilibria(BASIC, part) == symbolic.equilibria(BASIC, whole)
    conditions = symbolic.thresholds(GENERALISED)
    assert conditions.evaluate(GENERALISED, {}) == conditions.evaluate(GENERALISED, GENERALISED.values())
    with pytest.raises(ValueError, match="did you mean 'carrier_odds'"):
        symbolic.growth(BASIC, {"carrier_ods": 1.0})


def test_a_refusal_names_the_model_once() -> None:
    cured = with_cure()
    for derive in (symbolic.first_integral, symbolic.thresholds):
        with pytest.raises(ValueError, match="has no") as caught:
            derive(cured)
        assert str(caught.value).count("model 'campaign'") == 1 and "cure depends on time" in str(caught.value)
    assert np.isnan(analysis.outcomes(cured, {}, days=7)["R_at_start"]).all()
