"""The state without infection where births, vaccination and the like move people, in symbols and for many sets."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from textbook import build

from meningitis import analysis
from meningitis.symbolic import next_generation, nextgen, r0, r0_numeric
from meningitis.symbolic.diseasefree import settled_state

INFECTION, RECOVERY = ("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False)
DEATHS = tuple((x, None, f"m*{x}", False) for x in "SIR")
INITIAL = {"S": "0.99*N", "I": "0.01*N"}
# A population that births keep as it is, vaccinated at rate v.
KEPT = build(
    "kept", "S I R", "I", {"b": 0.4, "g": 0.1, "m": 0.005, "v": 0.01, "N": 1e3},
    [(None, "S", "m*(S + I + R)", False), INFECTION, RECOVERY, ("S", "R", "v*S", False), *DEATHS], INITIAL,
)  # fmt: skip
# Births that fall with the number of people: without infection N (1 - m/r) of them, or nobody.
LOGISTIC = build(
    "logistic", "S I R", "I", {"b": 0.4, "g": 0.1, "r": 0.02, "m": 0.005, "N": 1e3},
    [(None, "S", "r*(S + I + R)*(1 - (S + I + R)/N)", False), INFECTION, RECOVERY, *DEATHS], INITIAL,
)  # fmt: skip


def test_births_that_make_up_for_deaths_leave_one_state_in_symbols() -> None:
    by_hand = sp.sympify("b*m/((g + m)*(m + v))", locals=dict(KEPT.symbols))  # m/(m + v) of the people are susceptible
    assert sp.simplify(r0(KEPT) - by_hand) == 0 and next_generation(KEPT).reason == ""
    assert settled_state(KEPT, KEPT.values()) == pytest.approx({"S": 1e3 / 3, "I": 0, "R": 2e3 / 3})


def test_a_family_of_states_is_called_one() -> None:
    weighted = build(  # two of S for one of R: S + 2 R stays
        "weighted", "S I R", "I", {"b": 0.4, "g": 0.1, "m": 0.005, "v": 0.01, "N": 1e3},
        [
            INFECTION, RECOVERY, ("S", "R", "v*S", False), ("S", None, "v*S", False),
            (None, "S", "2*m*R", False), ("R", None, "m*R", False),
        ],
        INITIAL,
    )  # fmt: skip
    assert "a family of disease-free states, not a single one" in next_generation(weighted).reason
    # 1000 = S + 2 R and v S = m R, by hand.
    assert float(r0_numeric(weighted)(weighted.values())) == pytest.approx(0.4 / 0.1 * 0.2, rel=1e-6)
    assert "2 disease-free states" in next_generation(LOGISTIC).reason


def test_a_design_settles_each_population_once(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = []
    plain = nextgen.settled_state
    monkeypatch.setattr(nextgen, "settled_state", lambda *given: settled.append(given) or plain(*given))
    rng = np.random.default_rng(1)
    n = 400
    sets = {name: np.full(n, value) for name, value in LOGISTIC.values().items()}
    sets |= {"b": rng.uniform(0.2, 0.6, n), "g": rng.uniform(0.05, 0.2, n), "m": rng.choice([0.004, 0.005, 0.006], n)}
    found = analysis.outcomes(LOGISTIC, sets, days=14.0)["R0"]
    assert found == pytest.approx(sets["b"] * (1 - sets["m"] / 0.02) / (sets["g"] + sets["m"]), rel=1e-6)
    assert len(settled) == 3


def test_a_population_that_grows_without_end_is_refused_at_once() -> None:
    growing = build(
        "growing", "S I R", "I", {"b": 0.4, "g": 0.1, "r": 0.02, "N": 1e3},
        [(None, "S", "r*S", False), INFECTION, RECOVERY], INITIAL,
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not settle"):
        settled_state(growing, growing.values())
