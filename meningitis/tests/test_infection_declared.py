"""What a declaration says of infection: who is infected and infects, which flows are infections, who is ill."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import solve_ivp
from textbook import SEIR as SEIR_WITH_BIRTHS
from textbook import build

from meningitis import analysis
from meningitis.engine import reduce
from meningitis.model import Model, ModelError
from meningitis.models import BASIC, GENERALISED
from meningitis.symbolic import case_and_carrier, equilibria, growth, next_generation, no_thresholds, r0, thresholds
from meningitis.symbolic.growth import ill_states

# Unsafe burials: of the ill (I) a proportion f dies, and the bodies (B) infect for a time 1/u.
BURIALS = """
name: burials
compartments: [{name: S}, {name: I, infected: true}, {name: B, infected: true, dead: true}, {name: R},
  {name: D, dead: true}]
parameters:
  - {name: b, default: 0.2}
  - {name: c, default: 0.4}
  - {name: f, default: 0.6, kind: proportion}
  - {name: g, default: 0.1}
  - {name: u, default: 0.5}
  - {name: N, default: 1000, kind: count}
  - {name: w, default: 0.01}
flows:
  - {name: infection, source: S, target: I, rate: S * (b * I + c * B) / N, new_infection: true, case: true}
  - {name: dying, source: I, target: B, rate: f * g * I, death: true}
  - {name: recovery, source: I, target: R, rate: (1 - f) * g * I}
  - {name: burial, source: B, target: D, rate: u * B}
  - {name: loss, source: R, target: S, rate: w * R}
  - {name: arrivals, target: S, rate: w * (N - S - I - R)}
initial: {S: N - 10, I: 9, B: 1}
"""


def test_bodies_that_infect_until_they_are_buried_are_in_the_next_generation() -> None:
    model = Model.from_yaml(BURIALS)
    v = model.values()
    assert next_generation(model).infected == ("I", "B")
    by_hand = sp.sympify("b/g + f*c/u", locals=dict(model.symbols))  # while ill, and as a body of those who die
    assert sp.simplify(r0(model) - by_hand) == 0
    # The roots of (r + g)(r + u) - b (r + u) - c f g, of growth with everyone susceptible.
    b, c, f, g, u = (v[name] for name in "bcfgu")
    roots = np.roots([1, g + u - b, g * u - b * u - c * f * g])
    assert growth(model, v, state={"S": 1e3, "R": 0.0, "D": 0.0}).rate == pytest.approx(roots.real.max())
    free, endemic = equilibria(model, v).points
    assert (free.kind, free.stable, endemic.kind, endemic.stable) == ("disease-free", False, "endemic", True)
    ill = endemic.state["I"]
    assert endemic.state["S"] == pytest.approx(v["N"] / (b / g + f * c / u))
    assert endemic.state["B"] == pytest.approx(f * g * ill / u)
    assert endemic.state["R"] == pytest.approx((1 - f) * g * ill / v["w"])
    found = reduce(model, v, days=60.0)
    assert found["ever_infected"] == pytest.approx(found["new_infections"] + 10)


SEIR = """
name: incubating
closed: true
compartments: [{name: S}, {name: E, infected: true}, {name: I, infected: true}, {name: R}]
parameters:
  - {name: b, default: 0.5}
  - {name: a, default: 0.25}
  - {name: g, default: 0.2}
  - {name: k, default: 0.5, kind: multiplier, unit: "1"}
  - {name: N, default: 1000, kind: count}
flows:
  - {name: infection, source: S, target: E, rate: b * S * I / N, new_infection: true}
  - {name: onset, source: E, target: I, rate: a * E, case: true}
  - {name: recovery, source: I, target: R, rate: g * I}
initial: {S: N - 1, E: 1}
"""


@pytest.mark.parametrize("force", ["b * S * I / N", "b * S * I / (S + E + I + R)", "b * (1 + sin(a * t)) * S * I / N"])
def test_those_who_incubate_are_no_carriers(force: str) -> None:
    model = Model.from_yaml(SEIR.replace("b * S * I / N", force))
    assert case_and_carrier(model) is None and ill_states(model) == ()
    assert "no single case compartment fed by a carrier compartment" in no_thresholds(model)
    assert analysis.events(model, model.values(), 100.0).attained == {}
    if "sin" not in force:
        assert growth(model, model.values()).early_ratio is None
    carried = Model.from_yaml(SEIR.replace("b * S * I / N", force.replace("* S * I", "* S * (I + k * E)")))
    assert case_and_carrier(carried) == ("I", "E")


# The newly infected incubate (E) or carry (C), the ill (I, J) die or carry on, infectious too; bodies (B) are buried.
CARRIED_ON = """
name: carried_on
compartments: [{name: S}, {name: E, infected: true}, {name: C, infected: true}, {name: I, infected: true},
  {name: J, infected: true}, {name: B, infected: true, dead: true}, {name: R}]
parameters: [{name: b, default: 0.4}, {name: g, default: 0.1}, {name: N, default: 1000, kind: count}]
flows:
  - {name: incubating, source: S, target: E, rate: b * S * (C + I + J + B) / N, new_infection: true}
  - {name: carrying, source: S, target: C, rate: b * S * (C + I + J + B) / N, new_infection: true}
  - {name: onset, source: E, target: I, rate: g * E, case: true}
  - {name: conversion, source: C, target: I, rate: g * C, case: true}
  - {name: worse, source: I, target: J, rate: g * I}
  - {name: dying, source: J, target: B, rate: g * J, death: true}
  - {name: shedding, source: J, target: C, rate: g * J}
  - {name: burial, source: B, target: R, rate: g * B}
  - {name: clearance, source: C, target: R, rate: g * C}
initial: {S: 0.98 * N, C: 0.01 * N, E: 0.01 * N}
"""


def test_the_ill_are_those_who_fell_ill_and_live() -> None:
    model = Model.from_yaml(CARRIED_ON)
    assert case_and_carrier(model) == ("I", "C")
    assert ill_states(model) == ("I", "J")  # neither E, who incubate, nor C again, nor the bodies
    assert (thresholds(model).case, thresholds(model).carrier) == ("I", "C")
    assert {ill_states(m) for m in (BASIC, GENERALISED)} == {("I1", "I2")}
    found = analysis.profiles(model, model.values(), days=56.0, step=7.0)

    def rates(_t: float, y: np.ndarray) -> list[float]:
        S, E, C, I, J, B = y
        new = 0.4 * S * (C + I + J + B) / 1e3
        return [-2 * new, new - 0.1 * E, new + 0.1 * J - 0.2 * C, 0.1 * (E + C - I), 0.1 * I - 0.2 * J, 0.1 * (J - B)]

    y = solve_ivp(rates, (0, 56), [980, 10, 10, 0, 0, 0], t_eval=found.times, rtol=1e-10, atol=1e-10).y
    assert found.prevalence[0] == pytest.approx(y[3] + y[4], rel=1e-4, abs=1e-6)


INFECTED_AND_CASES = """
name: forgotten
compartments: [{name: S}, {name: C, infected: true}, {name: I, infected: true}, {name: R}]
parameters: [{name: b, default: 0.4}, {name: g, default: 0.1}, {name: N, default: 1000, kind: count}]
flows:
  - {name: infection, source: S, target: C, rate: b * S * (C + I) / N, new_infection: true}
  - {name: at_once, source: S, target: I, rate: b * S * (C + I) / N, case: true}
  - {name: recovery, source: I, target: R, rate: g * I}
  - {name: clearance, source: C, target: R, rate: g * C}
initial: {S: N - 1, C: 1}
"""


def test_an_infection_that_is_not_declared_one_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        Model.from_yaml(INFECTED_AND_CASES)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("E015", "flow at_once")
    assert "from S to infected I at a rate that depends on C and I" in problem.message
    model = Model.from_yaml(INFECTED_AND_CASES.replace("case: true", "new_infection: true"))
    assert sp.simplify(r0(model) - sp.sympify("2*b/g", locals=dict(model.symbols))) == 0


def test_those_born_infected_are_remarked_on() -> None:
    flows = [(f.source, f.target, f.rate, f.new_infection) for f in SEIR_WITH_BIRTHS.flows]
    states, initial = "S E I R", dict(SEIR_WITH_BIRTHS.initial.values)
    born = build("born", states, "E I", SEIR_WITH_BIRTHS.values(), [*flows, (None, "E", "m*I", False)], initial)
    assert "R0 takes flow8 for no new infection" in next_generation(born).reason
    assert next_generation(SEIR_WITH_BIRTHS).reason == ""
