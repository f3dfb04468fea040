"""Symbolic work that would not end is cut short; the numeric form answers and says why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy as sp
from scipy.optimize import fsolve
from textbook import SEIAR, SEIR, SIR, TWO_SEX, build

from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED
from meningitis.symbolic import (
    control,
    elasticities,
    equilibria,
    growth,
    limits,
    nextgen,
    no_thresholds,
    only_while_few,
    r0,
    r0_numeric,
    reproduction_along,
    reproduction_name,
    thresholds,
)
from meningitis.symbolic.limits import TimeLimit, tidy, time_limit
from meningitis.symbolic.zero import depends, vanishes, without

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


@contextmanager
def none_left(_seconds: float) -> Iterator[None]:
    raise TimeLimit("no time for what is only written shorter", None)
    yield


LIVING = build(
    "living", "S C I R D", "C I", {"b": 0.4, "f": 0.01, "g": 0.2, "d": 0.05, "N": 1e3},
    [
        ("S", "C", "b*S*(C + 2*I)/(S + C + I + R)", True), ("C", "I", "f*C", False), ("C", "R", "g*C", False),
        ("I", "R", "g*I", False), ("I", "D", "d*I", False),
    ],
    {"S": "0.99*N", "C": "0.01*N"},
)  # fmt: skip
CARRIED = replace(
    LIVING,
    compartments=tuple(replace(c, dead=c.name == "D") for c in LIVING.compartments),
    flows=tuple(replace(f, case=f.rate == "f*C", death=f.target == "D") for f in LIVING.flows),
)


@pytest.mark.parametrize("model", [BASIC, GENERALISED, CARRIED, SEIAR, SEIR, SIR, TWO_SEX], ids=lambda m: m.name)
def test_no_fact_hangs_on_the_time_that_simplifying_takes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def facts(name: str) -> dict[str, Any]:
        each = replace(model, name=name)  # of another hash: nothing is remembered
        values, state = each.values(), {name: 10.0 * k + 7 for k, name in enumerate(each.state_names)}
        along = {} if no_thresholds(each) else thresholds(each).along(each, values, {n: [x] for n, x in state.items()})
        found = control(each, values)
        return {
            "none": no_thresholds(each).replace(name, ""), "along": {n: x.tolist() for n, x in along.items()},
            "R0": found.r0, "immune": found.herd_immunity, "reason": found.reason, "few": only_while_few(each),
            "called": reproduction_name(each), "R": reproduction_along(each, values, state).tolist(),
        }  # fmt: skip

    before = facts("unhurried")
    monkeypatch.setattr(limits, "time_limit", none_left)
    after = facts("hurried")
    numbers = ("R0", "immune", "R", "along")
    assert {n: x for n, x in after.items() if n not in numbers} == {n: x for n, x in before.items() if n not in numbers}
    for name in numbers[:3]:
        assert after[name] is before[name] or after[name] == pytest.approx(before[name], rel=1e-9)
    assert after["along"].keys() == before["along"].keys()
    for name, column in after["along"].items():
        assert column == pytest.approx(before["along"][name], rel=1e-9)


def test_zero_is_told_from_what_is_zero_in_places() -> None:
    x, y, S = sp.symbols("x y S", positive=True)
    assert vanishes((x + y) ** 2 - x**2 - 2 * x * y - y**2) and vanishes(sp.sin(x) ** 2 + sp.cos(x) ** 2 - 1)
    assert vanishes(0.1 * x + 0.2 * x - 0.3 * x) and not vanishes(sp.Max(0, x - y)) and not vanishes(x - y)
    assert not depends((x * S + y * S) / S, {S}) and depends(x * S / (S + y), {S})
    assert without((x * S + y * S) / S, {S}).free_symbols == {x, y}
