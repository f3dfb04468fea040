"""Symbolic work that would not end is cut short; the numeric form answers and says why."""

from __future__ import annotations

import time

import numpy as np
import pytest
import sympy as sp
from scipy.optimize import fsolve
from textbook import SIR, build

from meningitis.symbolic import control, elasticities, equilibria, growth, nextgen, r0, r0_numeric
from meningitis.symbolic.limits import TimeLimit, tidy, time_limit

# Births and a vaccination whose uptake depends on who is vaccinated already: no closed disease-free state.
NASTY = build(
    "nasty", "S U E I", "E I",
    {"b": 0.4, "a": 0.2, "g": 0.1, "m": 0.02, "v": 0.03, "w": 0.01, "births": 20.0, "N": 1e3},
    [
        (None, "S", "births", False), ("S", "E", "b*S*I/N", True), ("E", "I", "a*E", False),
        ("S", "U", "v*S*exp(-U/N)/(1 + (S/N)^3)", False), ("U", "S", "w*U*log(1 + S/N)", False),
        *((x, None, f"m*{x}", False) for x in ("S", "U", "E")), ("I", None, "g*I", False),
    ],
    {"S": "0.99*N", "I": "0.01*N"},
)  # fmt: skip


def forever(*_given: object, **_options: object) -> None:
    while True:
        pass


def by_hand() -> float:
    """R0 of NASTY from its disease-free state by scipy's root finder."""

    def rates(y: np.ndarray) -> list[float]:
        S, U = y
        moved = 0.03 * S * np.exp(-U / 1e3) / (1 + (S / 1e3) ** 3) - 0.01 * U * np.log(1 + S / 1e3)
        return [20 - moved - 0.02 * S, moved - 0.02 * U]

    S, _ = fsolve(rates, [500, 500], xtol=1e-13)
    return float(0.4 * S / 1e3 * 0.2 / 0.22 / 0.1)


@pytest.mark.parametrize("endless", [False, True])
def test_a_nasty_model_is_answered_in_numbers(endless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if endless:
        monkeypatch.setattr(sp, "solve", forever)
    monkeypatch.setattr(nextgen, "SYMBOLIC_SECONDS", 0.3)
    began = time.process_time()
    model = build(
        f"nasty{endless}", "S U E I", "E I", NASTY.values(),
        [(f.source, f.target, f.rate, f.new_infection) for f in NASTY.flows], dict(NASTY.initial.values),
    )  # fmt: skip
    numeric = r0_numeric(model)
    assert numeric.method == "numeric" and "the disease-free state" in numeric.reason
    assert float(numeric(model.values())) == pytest.approx(by_hand(), rel=1e-6)
    with pytest.raises(ValueError, match="use r0_numeric"):
        r0(model)
    facts = control(model, model.values())
    assert set(facts.critical.values()) == {None} and "not sought" in facts.reason
    assert elasticities(model).evaluate(model.values())["b"] == pytest.approx(1, abs=1e-4)
    assert growth(model, model.values()).rate > 0
    assert [p.kind for p in equilibria(model, model.values(), starts=2).points] == ["disease-free", "endemic"]
    assert time.process_time() - began < 30


def test_an_expression_that_takes_too_long_stays_as_it_is() -> None:
    x = SIR.symbols["S"]
    assert tidy(x + 1, forever, seconds=0.05) == x + 1
    assert tidy(x * x / x) == x


def test_an_outer_limit_is_heard_through_an_inner_one() -> None:
    for inner in (0.05, 5.0):
        with pytest.raises(TimeLimit) as stopped, time_limit(0.3) as outer:
            while True:
                tidy(SIR.symbols["S"], forever, seconds=inner)
        assert stopped.value.limit is outer


def test_a_limit_that_is_swallowed_is_raised_again() -> None:
    swallowed = 0
    with pytest.raises(TimeLimit), time_limit(0.05):
        while True:
            try:
                forever()
            except TimeLimit:
                swallowed += 1
                if swallowed == 2:
                    raise
    assert swallowed == 2
