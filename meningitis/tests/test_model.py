"""Declarations: what is accepted, and that everything wrong is said at once, with a code and a place."""

import dataclasses

import numpy as np
import pytest
import sympy
from scipy import stats

from meningitis.engine import simulate
from meningitis.model import Compartment, Distribution, Flow, InitialState, Model, ModelError, Parameter, Scenario
from meningitis.models import BASIC, GENERALISED, get, names

SIR = """
name: sir
closed: true
compartments: [{name: S}, {name: I, infected: true}, {name: R}]
parameters:
  - {name: beta, default: 0.5}
  - {name: gamma, default: 70/year}
  - {name: N, default: 1000, kind: count}
flows:
  - {name: infection, source: S, target: I, rate: beta*S*I/N, new_infection: true, case: true}
  - {name: recovery, source: I, target: R, rate: gamma*I}
initial: {S: N - 1, I: 1}
"""


def codes(caught):
    return [problem.code for problem in caught.value.problems]


@pytest.mark.parametrize("model", [get(name) for name in names()], ids=names())
def test_shipped_models_conserve_and_round_trip(model):
    assert sympy.expand(sum(model.rhs().values())) == 0
    assert sympy.simplify(sum(model.initial_state().values()) - model.symbols["population"]) == 0
    assert Model.from_yaml(model.to_yaml()).hash == model.hash
    for scenario in model.scenarios:
        assert model.values(scenario.name)["transmission_rate"] == scenario.overrides["transmission_rate"]


def test_rates_are_those_of_the_spec():
    m = GENERALISED
    s = m.symbols
    beta, eps, eta, p = (
        s[n] for n in ("transmission_rate", "carrier_odds", "stage2_infectiousness", "direct_fraction")
    )
    phi, gc, g1, g2 = (
        s[n]
        for n in ("carrier_conversion_rate", "carrier_immunity_rate", "stage1_immunity_rate", "stage2_immunity_rate")
    )
    sigma, d1, d2 = (s[n] for n in ("stage_progression_rate", "stage1_death_rate", "stage2_death_rate"))
    S, C, I1, I2 = (s[n] for n in ("S", "C", "I1", "I2"))
    force = beta * (eps * C + I1 + eta * I2) / s["population"]
    wanted = {
        "S": -force * S,
        "C": (1 - p) * force * S - (phi + gc) * C,
        "I1": p * force * S + phi * C - (sigma + g1 + d1) * I1,
        "I2": sigma * I1 - (g2 + d2) * I2,
        "R": gc * C + g1 * I1 + g2 * I2,
        "D": d1 * I1 + d2 * I2,
    }
    for name, expression in m.rhs().items():
        assert sympy.expand(expression - wanted[name]) == 0, name
    for name, expression in BASIC.rhs().items():
        assert sympy.expand(expression - wanted[name].subs(p, 0)) == 0, name


def test_a_model_in_a_dozen_lines_of_yaml():
    model = Model.from_yaml(SIR)
    assert model.values()["gamma"] == pytest.approx(70 / 365)
    assert model.values(overrides={"gamma": "0.1/day"})["gamma"] == 0.1


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("rate: gamma*I", "rate: gama*I", "E001", "did you mean 'gamma'"),
        ("name: recovery", "name: infection", "E002", "declared twice"),
        *(
            ("name: beta", f"name: {name}", "E002", f"a parameter cannot be called '{name}'")
            for name in ("cases", "deaths", "new_infections", "set", "time")
        ),
        ("rate: gamma*I", "rate: gamma*", "E003", "expected"),
        ("rate: beta*S*I/N", "rate: beta*S*I", "E004", r"persons\^2/day"),
        ("rate: gamma*I", "rate: gamma*I + I", "E004", "different units"),
        ("I: 1}", "I: N*N}", "E004", "persons"),
        ("{name: beta, default: 0.5}", "{name: beta, default: 0.5, bounds: [1, 2]}", "E005", "outside"),
        ("{name: beta, default: 0.5}", "{name: q, kind: proportion, default: 1.5}", "E005", "outside 0 to 1"),
        ("source: I, target: R", "source: I", "E006", "mass is not conserved"),
        ("target: R, rate", "target: RR, rate", "E007", "did you mean 'R'"),
        ("default: 0.5}", "default: 0.5, unit: furlong}", "E008", "furlong"),
        ("name: sir", "name: sir\ncolour: red", "E010", "unknown entry 'colour'"),
        ("default: 0.5}", "default: quick}", "E010", "quick"),
        ("default: 0.5}", "default: 0.5, unit: day}", "E018", "a rate is per time, such as 1/day, but its unit is day"),
        ("default: 0.5}", "default: 0.5, unit: persons}", "E018", "a rate is per time"),
        ("default: 0.5}", "default: 0.5, kind: proportion, unit: persons}", "E018", "a proportion has the unit 1"),
        ("kind: count}", "kind: count, unit: 1/day}", "E018", "a count is in persons"),
        (", rate: gamma*I", "", "E010", r"flows\[1\]: 'rate' is missing"),
        ("rate: gamma*I", "rate: ", "E010", r"flows\[1\]: 'rate' is missing"),
        (
            "name: sir",
            "name: sir\nname: other",
            "E010",
            "'name' is given twice in one table, on lines",
        ),
        ("{name: beta,", "{name: beta, default: 0.4,", "E010", "'default' is given twice in one table"),
    ],
)
def test_each_mistake_has_its_code(old, new, code, message):
    assert old in SIR
    with pytest.raises(ModelError, match=message) as caught:
        Model.from_yaml(SIR.replace(old, new, 1))
    assert code in codes(caught)


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (r"\beta", r"\beta", True),
        (r"\gamma_c", r"\gamma_{\mathrm{c}}", True),  # written apart, shown alike
        (r"\beta", "β", True),
        (r"\phi", r"\varphi", False),
        (r"\beta_1", r"\beta_2", False),
    ],
)
def test_two_parameters_shown_alike_are_refused(first, second, refused):
    text = SIR.replace("{name: beta,", f"{{name: beta, symbol: '{first}',")
    text = text.replace("{name: gamma,", f"{{name: gamma, symbol: '{second}',")
    if not refused:
        assert [p.symbol for p in Model.from_yaml(text).parameters[:2]] == [first, second]
        return
    with pytest.raises(ModelError, match=r"parameter gamma: symbol .* is shown as that of beta") as caught:
        Model.from_yaml(text)
    assert codes(caught) == ["E002"]


def test_density_dependence_needs_another_unit():
    text = SIR.replace("beta*S*I/N", "beta*S*I").replace("default: 0.5}", "default: 0.001, unit: 1/(persons day)}")
    assert Model.from_yaml(text).parameter("beta").unit == "1/(persons day)"


def test_all_mistakes_are_said_at_once():
    bad = SIR.replace("gamma*I", "gama*I").replace("beta*S*I/N", "beta*S*I").replace("I: 1}", "J: 1}")
    with pytest.raises(ModelError) as caught:
        Model.from_yaml(bad)
    assert sorted(codes(caught)) == ["E001", "E004", "E007"]


def test_values_refuse_all_unknown_and_bad_ones_together():
    with pytest.raises(ModelError, match="did you mean 'carrier_odds'") as caught:
        BASIC.values(overrides={"carier_odds": 1, "population": "many", "initial_immune_fraction": 2})
    assert codes(caught) == ["E011", "E013", "E013"]
    with pytest.raises(ModelError, match="did you mean 'severe'"):
        BASIC.values("sever")


def test_sympy_rates_with_foreign_symbols_are_matched_by_name():
    x, k = sympy.symbols("x k")
    rate = Parameter(name="k", default=1, meaning="decay")
    model = Model(
        name="decay",
        compartments=(Compartment(name="x", meaning="stock"),),
        parameters=(rate,),
        flows=(Flow(name="loss", source="x", target=None, rate=k * x),),
        initial=InitialState(values={"x": 1.0}),
    )
    assert model.rhs()["x"] == -model.symbols["k"] * model.symbols["x"]
    with pytest.raises(ModelError, match="E001"):
        dataclasses.replace(model, flows=(Flow(name="loss", source="x", target=None, rate=sympy.Symbol("z") * x),))


@pytest.mark.parametrize(
    ("distribution", "oracle"),
    [
        (Distribution(kind="uniform", low=1, high=3), stats.uniform(1, 2)),
        (Distribution(kind="loguniform", low=0.1, high=10), stats.loguniform(0.1, 10)),
        (Distribution(kind="triangular", low=1, high=4, mode=2), stats.triang(1 / 3, 1, 3)),
    ],
)
def test_distributions_against_scipy(distribution, oracle):
    u = np.linspace(0, 1, 41)
    np.testing.assert_allclose(distribution.ppf(u), oracle.ppf(u), rtol=1e-12)


def sir(**changed):
    """SIR in Python, as short as the declaration allows."""
    declared = {
        "name": "sir",
        "closed": True,
        "compartments": (Compartment(name="S"), Compartment(name="I", infected=True), Compartment(name="R")),
        "parameters": (
            Parameter(name="beta", default=0.5),
            Parameter(name="gamma", default=70 / 365),
            Parameter(name="N", default=1000.0, kind="count"),
        ),
        "flows": (
            Flow(name="infection", source="S", target="I", rate="beta*S*I/N", new_infection=True, case=True),
            Flow(name="recovery", source="I", target="R", rate="gamma*I"),
        ),
        "initial": InitialState(values={"S": "N - 1", "I": 1.0}),
    }
    return Model(**{**declared, **changed})


def test_python_leaves_out_what_yaml_leaves_out():
    assert sir().hash == Model.from_yaml(SIR).hash == Model.from_yaml(sir().to_yaml()).hash
    beta, _, people = sir().parameters
    assert (beta.symbol, beta.unit, beta.kind, beta.bounds) == (r"\mathrm{beta}", "1/day", "rate", (0.0, 5.0))
    assert beta.distribution == Distribution(kind="fixed", low=0.5, high=0.5)
    assert (people.unit, people.bounds) == ("persons", (0.0, 10_000.0))
    share = Parameter(name="some_share", default=0.5, kind="proportion")
    assert (share.symbol, share.unit, share.bounds) == (r"\mathrm{some\_share}", "1", (0.0, 1.0))
    birth = Flow(name="birth", target="S", rate="N")
    assert (birth.source, Flow(name="death", source="S", rate="S").target) == (None, None)


def test_quantities_of_a_scenario_are_numbers_in_the_model():
    model = sir(scenarios=(Scenario(name="fast", overrides={"beta": "140/year"}, days=70),))
    assert dict(model.scenario("fast").overrides) == {"beta": 140 / 365}
    assert model.values("fast") == {"beta": 140 / 365, "gamma": 70 / 365, "N": 1000.0}
    same = simulate(model, parameters={"beta": 140 / 365}, days=70)["I"]
    assert np.array_equal(simulate(model, scenario="fast")["I"], same)
    with pytest.raises(ModelError, match="scenario slow, beta: '3 days' is in day, but must be in 1/day") as caught:
        sir(scenarios=(Scenario(name="slow", overrides={"beta": "3 days"}),))
    assert codes(caught) == ["E013"]


def test_quantities_are_read_in_sweeps_and_complete_sets():
    wanted = simulate(sir(), parameters={"beta": [60 / 365, 70 / 365, 0.4]}, days=70)["I"]
    complete = {"beta": ["60/year", "70/year", 0.4], "gamma": "70/year", "N": 1000}
    for given in ({"beta": ["60/year", "70/year", 0.4]}, complete):
        assert np.array_equal(simulate(sir(), parameters=given, days=70)["I"], wanted)
    with pytest.raises(ModelError, match=r"sir, beta: '9 persons' is in persons.*sir, gamma: 99 is outside") as caught:
        simulate(sir(), parameters={"beta": ["9 persons", "1/day"], "gamma": [99, 1]})
    assert codes(caught) == ["E013", "E013"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"default": "70/year"}, "default is '70/year', but must be a number"),
        ({"bounds": ("0", 1.0)}, "lower bound is '0', but must be a number"),
        ({"bounds": 5.0}, "bounds are 5.0, but must be a pair of numbers"),
        ({"distribution": Distribution(kind="uniform", low="10/year", high=0.6)}, "low is '10/year', but must be"),  # type: ignore[arg-type]
        ({"distribution": "uniform"}, "distribution is 'uniform', but must be a Distribution"),
    ],
)
def test_a_parameter_of_text_is_refused_with_the_others(wrong, says):
    others = sir().parameters[1:]
    with pytest.raises(ModelError, match=f"parameter beta: {says}") as caught:
        sir(parameters=(Parameter(**{"name": "beta", "default": 0.5, **wrong}), *others), max_step="2 days")
    assert codes(caught) == ["E005", "E005"] and "max_step is '2 days', but must be a number" in str(caught.value)
