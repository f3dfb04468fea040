"""Reproduction numbers, growth, thresholds, indices, equilibria and control against formulas from elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad_vec, solve_ivp
from scipy.linalg import expm
from textbook import SEIAR, SEIR, SIR, TWO_SEX, VECTOR, build

from meningitis import analysis
from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED
from meningitis.printed import matrices_text, thresholds_text
from meningitis.symbolic import (
    control,
    effective_r,
    effective_r_numeric,
    elasticities,
    equilibria,
    first_integral,
    growth,
    initial_state,
    next_generation,
    r0,
    r0_numeric,
    reproduction_along,
    thresholds,
)
from meningitis.symbolic.growth import numeric_matrices
from meningitis.symbolic.limits import TimeLimit, time_limit

SEIR_R0 = "b*a*births/(m*N*(a + m)*(g + m))"
TEXTBOOK = [
    (SIR, "b/g"),
    (SEIR, SEIR_R0),
    (SEIAR, "b*(q/g + (1 - q)*k/h)"),
    (VECTOR, "sqrt(b*c*Nv/(N*g*m))"),
    (TWO_SEX, "sqrt(b*c*N/Nv*Nv/N/(g*h))"),
]


@pytest.mark.parametrize(("model", "formula"), TEXTBOOK, ids=[m.name for m, _ in TEXTBOOK])
def test_textbook_reproduction_numbers(model: Model, formula: str) -> None:
    expected = sp.sympify(formula, locals=dict(model.symbols))
    assert sp.simplify(r0(model) - expected) == 0
    values = model.values()
    assert r0_numeric(model, symbolic=False)(values) == pytest.approx(float(r0_numeric(model)(values)), rel=1e-12)


def two_groups(*extra: tuple[str, str, str, bool]) -> Model:
    """Susceptibles of two kinds, infected b and c times as easily, who share one I and R."""
    return build(
        "two_groups", "S T I R", "I", {"b": 0.5, "c": 0.2, "g": 0.1, "N": 1e3},
        [("S", "I", "b*S*I/N", True), ("T", "I", "c*T*I/N", True), ("I", "R", "g*I", False), *extra],
        {"S": "0.6*N", "T": "0.3*N", "I": "0.1*N"},
    )  # fmt: skip


def test_susceptible_groups_keep_their_initial_proportions_without_disease() -> None:
    found = next_generation(two_groups())
    # Two thirds of the population in S and one third in T, by hand.
    assert float(r0_numeric(two_groups())({"b": 0.5, "c": 0.2, "g": 0.1, "N": 1e3})) == pytest.approx(
        (0.5 * 2 / 3 + 0.2 / 3) / 0.1
    )
    assert found.reason == ""
    assert float(sp.simplify(sum(found.disease_free.values()) / two_groups().symbols["N"])) == pytest.approx(1)
    mixed = next_generation(two_groups(("S", "T", "g*S", False)))  # in the end everyone stands in T
    assert str(mixed.r0) == "c/g" and mixed.reason == "without infection nobody stays in S"


def settled(model: Model, values: dict[str, float]) -> dict[str, float]:
    """Where everyone in the first compartment is in the end without infection, by scipy on the declared rates."""
    at = {model.symbols[name]: values[name] for name in model.parameter_names}
    symbols = [model.symbols[name] for name in model.state_names]
    field = sp.lambdify([symbols], [rate.subs(at) for rate in model.rhs().values()])
    begun = [values["N"], *(0.0 for _ in symbols[1:])]
    run = solve_ivp(lambda _t, y: field(y), (0, 3e4), begun, "LSODA", rtol=1e-11, atol=1e-11)
    return dict(zip(model.state_names, run.y[:, -1].tolist(), strict=True))


VACCINATED = build(
    "vaccinated", "S I R", "I", {"b": 0.4, "g": 0.1, "w": 0.02, "v": 0.1, "N": 1e3},
    [
        ("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False), ("R", "S", "w*R", False), ("S", "R", "v*S", False),
    ],
    {"S": "0.99*N", "I": "0.01*N"},
)  # fmt: skip
# Uptake that falls with those vaccinated: two roots in symbols, so that it settles in numbers.
UPTAKE = build(
    "uptake", "S I R", "I", {"b": 0.4, "g": 0.1, "w": 0.02, "v": 0.1, "N": 1e3},
    [
        ("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False), ("R", "S", "w*R", False),
        ("S", "R", "v*S*(1 - R/N)", False),
    ],
    {"S": "0.99*N", "I": "0.01*N"},
)  # fmt: skip


@pytest.mark.parametrize("model", [VACCINATED, UPTAKE], ids=lambda m: m.name)
@pytest.mark.parametrize("v", [0.1, 0.03])
def test_r0_is_that_of_the_state_in_which_people_settle_without_infection(model: Model, v: float) -> None:
    values = model.values(overrides={"v": v})
    free = settled(model, values)
    assert float(r0_numeric(model)(values)) == pytest.approx(0.4 / 0.1 * free["S"] / 1e3, rel=1e-6)
    found = equilibria(model, values)
    assert found.points[0].state == pytest.approx(free, rel=1e-6, abs=1e-6)
    assert [(point.kind, point.stable) for point in found.points][:1] == [("disease-free", 4 * free["S"] < 1e3)]
    assert (len(found.points) > 1) == (4 * free["S"] > 1e3)
    if model is VACCINATED:
        assert free["S"] == pytest.approx(1e3 * 0.02 / (0.02 + v))


def test_flows_that_balance_without_infection_may_all_be_zero() -> None:
    values = VACCINATED.values(overrides={"v": 0.0, "w": 0.0})
    assert float(r0_numeric(VACCINATED)(values)) == pytest.approx(4)
    assert equilibria(VACCINATED, values).points[0].state == {"S": 1e3, "I": 0, "R": 0}


def test_a_population_that_does_not_stay_susceptible_is_said_so() -> None:
    infection, recovery = ("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False)
    initial = {"S": "0.99*N", "I": "0.01*N"}
    known = {"b": 0.4, "g": 0.1, "v": 0.1, "N": 1e3}
    emptied = build("emptied", "S I R", "I", known, [infection, recovery, ("S", "R", "v*S", False)], initial)
    assert r0(emptied) == 0 and next_generation(emptied).reason == "without infection nobody stays in S"
    assert matrices_text(emptied).count("nobody stays in S") == 1
    found = equilibria(emptied, emptied.values())
    assert found.points[0].state == {"S": 0, "I": 0, "R": 1e3} and "every state" not in found.note
    imported = build("imported", "S I R", "I", known, [("S", "I", "b*S*I/N + v*S", True), recovery], initial)
    assert sp.simplify(r0(imported) - r0(SIR).subs(SIR.symbols["b"], imported.symbols["b"])) == 0
    assert "R0 leaves out flow0" in next_generation(imported).reason
    found = equilibria(imported, imported.values())
    assert found.points == () and "no disease-free equilibrium: flow0 goes on" in found.note
    flows = [("S", "I", "b*S*I/(S + I + R)", True), recovery, *((x, None, f"v*{x}", False) for x in "SIR")]
    dying = build("dying", "S I R", "I", known, flows, initial)
    assert sp.simplify(r0(dying) - sp.sympify("b/(g + v)", locals=dict(dying.symbols))) == 0
    assert "nobody stays in S; rates divide by those who are gone" in next_generation(dying).reason
    assert "the population dies out" in equilibria(dying, dying.values()).note
    assert equilibria(dying, dying.values()).points == ()


def spec_r0(v: dict[str, Any]) -> Any:
    """The formula of the specification, written by hand."""
    p = v.get("direct_fraction", 0.0)
    a1 = v["stage_progression_rate"] + v["stage1_immunity_rate"] + v["stage1_death_rate"]
    a2 = v["stage2_immunity_rate"] + v["stage2_death_rate"]
    T = (1 + v["stage2_infectiousness"] * v["stage_progression_rate"] / a2) / a1
    phi, gc = v["carrier_conversion_rate"], v["carrier_immunity_rate"]
    return v["transmission_rate"] * ((1 - p) * (v["carrier_odds"] + phi * T) / (phi + gc) + p * T)


def draws(model: Model, n: int, seed: int = 1) -> dict[str, Any]:
    """Parameters drawn uniformly, wide enough that every term of R0 matters."""
    generator = np.random.default_rng(seed)
    drawn = {p.name: generator.uniform(0.02, 0.9, n) for p in model.parameters}
    fixed = {"population": 1e5, "initial_immune_fraction": 0.2, "initial_carrier_fraction": 0.001}
    fixed |= {"initial_stage1_fraction": 0.002, "initial_stage2_fraction": 0.0}
    return drawn | {name: np.full(n, value) for name, value in fixed.items()}


def test_the_explicit_threshold_is_the_sign_of_the_change_of_cases() -> None:
    """By the declared right-hand side at random states and rates, some of which make cases grow always."""
    found, generator = thresholds(GENERALISED), np.random.default_rng(3)
    always = []
    for _ in range(200):
        v = dict(zip(GENERALISED.parameter_names, generator.uniform(0.01, 1, 16), strict=True)) | {"population": 1e5}
        v |= {"direct_fraction": float(generator.uniform(0, 1)), "transmission_rate": float(generator.uniform(0, 20))}
        state = dict(zip(["S", "C", "I1", "I2", "R", "D"], 1e5 * generator.dirichlet(np.ones(6)), strict=True))
        at = {GENERALISED.symbols[name]: value for name, value in {**v, **state}.items()}
        at |= {found.letters["s"]: state["S"] / 1e5}
        grows = float(GENERALISED.rhs()["I1"].xreplace(at)) > 0
        always.append(bool(found.always.xreplace(at)))
        below = state["I1"] / state["C"] < float(found.stage1_explicit.xreplace(at))
        assert grows == (always[-1] or below)
    assert 5 < sum(always) < 195
    assert thresholds(BASIC).always.lhs == 0
    shown = thresholds_text(GENERALISED, GENERALISED.values())
    assert "I₁/C < (φ + β p s (ε + η I₂/C))/(a₁ − β p s); where β p s ≥ a₁ cases always spread" in shown
    assert "always" not in thresholds_text(BASIC, BASIC.values())


@pytest.mark.parametrize("model", [BASIC, GENERALISED], ids=lambda m: m.name)
def test_r0_is_the_formula_of_the_specification(model: Model) -> None:
    values = draws(model, 200)
    for symbolic in (True, False):
        assert np.allclose(r0_numeric(model, symbolic=symbolic)(values), spec_r0(values), rtol=1e-11)


@pytest.mark.parametrize("wrong", ["p dropped", "odds and stage II swapped"])
def test_a_wrong_formula_is_told_apart(wrong: str) -> None:
    values = draws(GENERALISED, 200)
    spoiled = dict(values)
    if wrong == "p dropped":
        spoiled["direct_fraction"] = np.zeros(200)
    else:
        odds, stage2 = "carrier_odds", "stage2_infectiousness"
        spoiled[odds], spoiled[stage2] = values[stage2], values[odds]
    assert np.median(np.abs(spec_r0(spoiled) / r0_numeric(GENERALISED)(values) - 1)) > 0.01


def test_the_sign_of_growth_is_the_sign_of_r0_minus_one() -> None:
    values = draws(GENERALISED, 60, seed=2)
    values["transmission_rate"] = values["transmission_rate"] / r0_numeric(GENERALISED)(values)
    values["transmission_rate"] *= np.random.default_rng(3).uniform(0.7, 1.3, 60)
    signs = set()
    for k in range(60):
        here = {name: float(column[k]) for name, column in values.items()}
        susceptible = {"S": here["population"], "R": 0.0}
        F, V = numeric_matrices(GENERALISED, here, susceptible)
        leading = np.linalg.eigvals(F - V).real.max()
        assert np.sign(leading) == np.sign(float(r0_numeric(GENERALISED)(here)) - 1)
        assert growth(GENERALISED, here, state=susceptible).rate == pytest.approx(leading, abs=1e-12)
        signs.add(np.sign(leading))
    assert signs == {1.0, -1.0}


def test_effective_r_scales_with_the_susceptibles() -> None:
    S, N = GENERALISED.symbols["S"], GENERALISED.symbols["population"]
    assert sp.simplify(effective_r(GENERALISED) - r0(GENERALISED) * S / N) == 0


def test_indices_against_finite_differences_and_beta_exactly_one() -> None:
    for seed in range(3):
        values = {name: float(column[0]) for name, column in draws(GENERALISED, 1, seed).items()}
        found = elasticities(GENERALISED).evaluate(values)
        assert elasticities(GENERALISED).expressions["transmission_rate"] == 1
        assert list(found.values()) == sorted(found.values(), key=lambda x: -abs(x))
        for name, index in found.items():
            h = 1e-6
            up, down = (spec_r0({**values, name: values[name] * (1 + s * h)}) for s in (1, -1))
            assert index == pytest.approx((up - down) / (2 * h) / spec_r0(values), abs=1e-8), name


def test_indices_of_parameters_in_an_exponent_against_finite_differences() -> None:
    model = build(
        "delayed", "S I R", "I", {"b": 0.4, "g": 0.1, "m": 0.05, "tau": 7.0, "q": 0.6, "k": 1.7, "N": 1e3},
        [("S", "I", "b*exp(-m*tau)*q**k*S*I/N", True), ("I", "R", "g*I", False)],
        {"S": "0.99*N", "I": "0.01*N"},
    )  # fmt: skip

    def by_hand(v: dict[str, float]) -> float:
        return float(v["b"] * np.exp(-v["m"] * v["tau"]) * v["q"] ** v["k"] / v["g"])

    values, h = model.values(), 1e-6
    found = elasticities(model).evaluate(values)
    for name in model.parameter_names:
        up, down = (by_hand({**values, name: values[name] * (1 + s * h)}) if name != "N" else 1.0 for s in (1, -1))
        assert found[name] == pytest.approx((up - down) / (2 * h) / by_hand(values), abs=1e-8), name
    assert found["m"] == found["tau"] == pytest.approx(-0.35)
    assert found["k"] == pytest.approx(1.7 * np.log(0.6))


def test_the_index_of_conversion_is_positive_only_if_conversion_pays() -> None:
    for odds in (0.2, 5.0):
        v = BASIC.values(overrides={"carrier_odds": odds})
        a2 = v["stage2_immunity_rate"] + v["stage2_death_rate"]
        T = (1 + v["stage_progression_rate"] / a2) / v["stage_progression_rate"]
        index = elasticities(BASIC).evaluate(v)["carrier_conversion_rate"]
        assert (index > 0) == (v["carrier_immunity_rate"] * T > odds)


def test_thresholds_are_those_of_the_specification() -> None:
    found, s = thresholds(GENERALISED), GENERALISED.symbols
    q, share, rate = sp.symbols("q s r")
    beta, odds, p = s["transmission_rate"], s["carrier_odds"], s["direct_fraction"]
    phi, gc = s["carrier_conversion_rate"], s["carrier_immunity_rate"]
    a1 = s["stage_progression_rate"] + s["stage1_immunity_rate"] + s["stage1_death_rate"]
    assert sp.simplify(found.carriers_spread - (phi + gc) / ((1 - p) * beta * (odds + q))) == 0
    assert sp.simplify(found.stage1_spreads - (phi + p * beta * share * (odds + q)) / a1) == 0
    assert sp.simplify(found.critical_ratio - phi / a1) == 0
    assert sp.simplify(found.early_ratio - (phi + p * beta * share * (odds + q)) / (rate + a1)) == 0
    assert sp.simplify(found.q - (s["I1"] + s["stage2_infectiousness"] * s["I2"]) / s["C"]) == 0


def test_thresholds_and_r_along_a_run_are_the_formulas() -> None:
    v = GENERALISED.values(overrides={"direct_fraction": 0.05, "stage2_infectiousness": 0.6, "carrier_odds": 0.8})
    state = {
        "S": np.array([9e4, 3e4]),
        "C": np.array([50.0, 800.0]),
        "I1": np.array([1.0, 9.0]),
        "I2": np.array([2, 5]),
    }
    state |= {"R": np.array([1e4, 7e4]), "D": np.zeros(2)}
    q = (state["I1"] + 0.6 * state["I2"]) / state["C"]
    share, force = state["S"] / v["population"], v["transmission_rate"] * (0.8 + q)
    phi, leaves = v["carrier_conversion_rate"], v["carrier_conversion_rate"] + v["carrier_immunity_rate"]
    found = thresholds(GENERALISED).along(GENERALISED, v, state)
    assert found["carriers_spread"] == pytest.approx(leaves / (0.95 * force))
    assert found["stage1_spreads"] == pytest.approx((phi + 0.05 * share * force) / v["stage_progression_rate"])
    basic = thresholds(BASIC).along(BASIC, v, state)
    assert basic["stage1_spreads"] == pytest.approx(np.full(2, phi / v["stage_progression_rate"]))
    assert reproduction_along(GENERALISED, v, state) == pytest.approx(spec_r0(v) * share)


def test_early_ratio_of_the_eigenvector_is_the_formula() -> None:
    values = BASIC.values()
    speed = growth(BASIC, values)
    assert speed.early_ratio == pytest.approx(thresholds(BASIC).evaluate(BASIC, values, r=speed.rate)["early_ratio"])
    s = BASIC.symbols
    plain = s["carrier_conversion_rate"] / (
        sp.Symbol("r") + s["stage_progression_rate"] + s["stage1_immunity_rate"] + s["stage1_death_rate"]
    )
    assert sp.simplify(thresholds(BASIC).early_ratio - plain) == 0
    # With direct infection, at the s of the start and the q of the eigenvector.
    values = GENERALISED.values()
    assert values["direct_fraction"] > 0
    direct, there = growth(GENERALISED, values), growth(GENERALISED, values).eigenvector
    q = (there["I1"] + values["stage2_infectiousness"] * there["I2"]) / there["C"]
    share = initial_state(GENERALISED, values)["S"] / values["population"]
    told = thresholds(GENERALISED).evaluate(GENERALISED, values, r=direct.rate, q=q, s=share)["early_ratio"]
    assert told == pytest.approx(direct.early_ratio)
    assert speed.doubling_time == pytest.approx(np.log(2) / speed.rate)


def test_growth_and_generation_time_of_seir() -> None:
    # Without deaths: (r + a)(r + g) = b a, and a generation lasts 1/a + 1/g on average.
    values = SEIR.values(overrides={"m": 1e-9, "births": 1e-6})
    speed = growth(SEIR, values, state={"S": 1e3, "R": 0.0})
    a, g, b = values["a"], values["g"], values["b"]
    assert (speed.rate + a) * (speed.rate + g) == pytest.approx(a * b, rel=1e-6)
    assert speed.generation_time == pytest.approx(1 / a + 1 / g, rel=1e-6)


@pytest.mark.parametrize("model", [GENERALISED, VECTOR], ids=lambda m: m.name)
def test_generation_time_is_the_mean_age_at_which_infections_are_caused(model: Model) -> None:
    """Of F exp(-V a), which says how many infections someone infected a days ago causes per day, by quadrature."""
    direct = {"direct_fraction": 0.3, "stage1_immunity_rate": 0.05} if model is GENERALISED else {}
    values = model.values(overrides=direct)
    F, V = numeric_matrices(model, values)
    assert F.any(axis=1).sum() == 2

    def moment(power: int) -> np.ndarray:
        return np.asarray(quad_vec(lambda a: a**power * F @ expm(-V * a), 0, 2000, epsrel=1e-10)[0])

    K, aged = moment(0), moment(1)
    right, left = (np.abs(vectors[:, np.argmax(roots.real)].real) for roots, vectors in map(np.linalg.eig, (K, K.T)))
    speed = growth(model, values)
    assert speed.generation_time == pytest.approx((left @ aged @ right) / (left @ K @ right), rel=1e-6)
    # Where everyone infects one other on average, growth begins at 1/T for each further infection.
    few = F / speed.reproduction
    r = [np.linalg.eigvals(few * (1 + h) - V).real.max() for h in (1e-4, -1e-4)]
    assert 2e-4 / (r[0] - r[1]) == pytest.approx(speed.generation_time, rel=1e-5)


@pytest.mark.parametrize("model", [SIR, SEIAR, GENERALISED], ids=lambda m: m.name)
def test_the_first_integral_holds_along_runs_of_any_model_that_has_one(model: Model) -> None:
    values = {name: float(column[0]) for name, column in draws(model, 1, seed=4).items()} | {
        "population": 1e3,
        "N": 1e3,
    }
    at = {model.symbols[name]: values[name] for name in model.parameter_names}
    symbols = [model.symbols[name] for name in model.state_names]
    field = sp.lambdify([symbols], [e.subs(at) for e in model.rhs().values()])
    begun = [float(e.subs(at)) for e in model.initial_state().values()]
    run = solve_ivp(
        lambda _t, y: field(y), (0, 60), begun, "DOP853", rtol=1e-11, atol=1e-11, t_eval=np.arange(0, 61, 5)
    )
    states = dict(zip(model.state_names, run.y, strict=True))
    known = {name: values[name] for name in model.parameter_names}
    H = analysis.first_integral_along(model, known, states)
    assert pytest.approx(np.full_like(H, H[0]), rel=1e-8) == H
    assert np.ptp(np.log(states["S"])) > 1e-3  # S itself is not constant
    potential = first_integral(model).potential["S"]
    assert sp.simplify(potential - r0(model)) == 0


@pytest.mark.parametrize(
    ("model", "says"),
    [(SEIR, "S has other flows than infection"), (VECTOR, "no single source")],
    ids=["seir", "vector"],
)
def test_a_model_without_an_exact_final_size_says_why(model: Model, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        first_integral(model)
    assert np.isnan(analysis.final_sizes(model, model.values(), days=100).exact).all()


def test_equilibria_with_births() -> None:
    values = SEIR.values()
    free, endemic = equilibria(SEIR, values).points
    assert (free.kind, free.stable, endemic.kind, endemic.stable) == ("disease-free", False, "endemic", True)
    reproduction = float(r0_numeric(SEIR)(values))
    assert endemic.state["S"] == pytest.approx(free.state["S"] / reproduction, rel=1e-8)
    subdued = equilibria(SEIR, SEIR.values(overrides={"b": 0.4 / reproduction * 0.8}))
    assert [point.stable for point in subdued.points] == [True]
    assert "no endemic" in subdued.note


def test_a_closed_population_has_no_endemic_equilibrium() -> None:
    found = equilibria(BASIC, BASIC.values())
    assert len(found.points) == 1
    assert "closed" in found.note


def test_control_values_bring_r0_to_one() -> None:
    values = GENERALISED.values(overrides={"carrier_conversion_rate": 0.01})
    found = control(GENERALISED, values, efficacy=0.9)
    assert found.herd_immunity == pytest.approx(1 - 1 / spec_r0(values))
    assert found.coverage == pytest.approx(found.herd_immunity / 0.9)
    reached = {name: x for name, x in found.critical.items() if x is not None}
    assert reached["transmission_rate"] == pytest.approx(values["transmission_rate"] / found.r0)
    for name, x in reached.items():
        assert spec_r0({**values, name: x}) == pytest.approx(1.0, abs=1e-9), name
    assert found.critical["population"] is None
    assert control(GENERALISED, values, efficacy=0.2).coverage is None


@pytest.mark.parametrize("model", [VECTOR, TWO_SEX], ids=lambda m: m.name)
def test_no_immune_share_is_given_where_infection_drains_several_compartments(model: Model) -> None:
    found = control(model, model.values())
    assert (found.herd_immunity, found.coverage) == (None, None)
    assert "new infections come from " in found.reason
    assert found.critical["b"] is not None
    # What 1 - 1/R0 would miss: with that share of hosts immune, R is still above 1.
    if model is VECTOR:
        states = {"S": [1e3 / found.r0, 1e3 / found.r0**2], "I": [0, 0], "R": [0, 0], "U": [4e3] * 2, "W": [0, 0]}
        assert reproduction_along(model, model.values(), states) == pytest.approx([found.r0**0.5, 1.0])
    single = control(SIR, SIR.values())
    assert (single.herd_immunity, single.reason) == (pytest.approx(0.75), "")


def test_the_numeric_form_answers_where_symbols_are_cut_short_and_says_why() -> None:
    found = next_generation(VECTOR, seconds=1e-4)
    assert found.r0 is None
    assert "longer than" in found.reason
    with pytest.raises(TimeLimit), time_limit(0.01):
        while True:
            pass


def test_where_nobody_leaves_an_infected_compartment_r0_is_infinite_in_that_row_alone() -> None:
    forever = {"stage2_immunity_rate": 0.0, "stage2_death_rate": 0.0}
    values = GENERALISED.values()
    rows = {**values, **{name: np.array([0.0, values[name]]) for name in forever}}
    for symbolic in (True, False):
        found = r0_numeric(GENERALISED, symbolic=symbolic)(rows)
        assert found[0] == np.inf
        assert found[1] == pytest.approx(spec_r0(values))
    speed = growth(GENERALISED, {**values, **forever})
    assert (speed.reproduction, speed.generation_time) == (np.inf, np.inf)
    facts = control(GENERALISED, {**values, **forever, "stage2_immunity_rate": 1e-6})
    assert np.isfinite(facts.r0)
    assert control(GENERALISED, {**values, **forever}).r0 == np.inf


def test_reproduction_along_a_run_is_numeric_where_symbols_fail_and_says_why() -> None:
    ring = build(
        "ring", "S T U I J K", "I J K", {"b": 0.3, "c": 0.2, "a": 0.4, "g": 0.1, "N": 1e3},
        [
            ("S", "I", "b*S*J/N", True), ("T", "J", "c*T*K/N", True), ("U", "K", "a*U*I/N", True),
            *((x, y, f"g*{x}", False) for x, y in ("IS", "JT", "KU")),
        ],
        {"S": "0.99*N", "I": "0.01*N", "T": "N", "U": "N"},
    )  # fmt: skip
    numeric = effective_r_numeric(ring)
    assert numeric.method == "numeric"
    assert "3 x 3" in numeric.reason
    with pytest.raises(ValueError, match="effective_r_numeric"):
        effective_r(ring)
    states = {"S": [900.0, 500.0], "T": [800.0, 0.0], "U": [700.0, 300.0], "I": [1.0, 1], "J": [0, 0], "K": [0, 0]}
    # Three infections in turn, each lasting 1/g: the cube root of their product.
    expected = [(0.3 * 0.9 * 0.2 * 0.8 * 0.4 * 0.7) ** (1 / 3) / 0.1, 0.0]
    assert reproduction_along(ring, ring.values(), states) == pytest.approx(expected)
    assert r0_numeric(ring)(ring.values()) == pytest.approx((0.3 * 0.2 * 0.4) ** (1 / 3) / 0.1)
    facts = control(ring, ring.values())
    assert facts.critical["b"] == pytest.approx(0.1**3 / (0.2 * 0.4), rel=1e-6)
    assert facts.critical["g"] == pytest.approx((0.3 * 0.2 * 0.4) ** (1 / 3), rel=1e-6)


def test_a_model_without_infection_is_refused() -> None:
    model = build("idle", "S R", "", {"g": 0.1, "N": 10.0}, [("S", "R", "g*S", False)], {"S": "N"})
    with pytest.raises(ValueError, match="no infected compartment"):
        next_generation(model)


def test_text_and_latex_show_the_matrices() -> None:
    found = next_generation(BASIC)
    assert set(found.latex()) == {"F", "V", "K", "R0"}
    assert r"\beta" in found.latex()["R0"]
    assert "R0 = " in found.text()
