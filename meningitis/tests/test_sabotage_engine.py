"""Sabotage: a model that is wrong in one place must break a relation that knows nothing of the engine.

The relations are the specification's first integral H and final size, and moments that tell the exits of a compartment
apart, all with formulas typed in by hand. Each wrong declaration runs on the scipy reference, which compiles nothing;
the kernel runs one declaration in which the mistakes are parameters.
"""

import numpy as np
import pytest
import yaml
from scipy.special import lambertw

from meningitis.engine import simulate
from meningitis.model import Model
from meningitis.models import GENERALISED

V = {
    "transmission_rate": 0.25,
    "carrier_odds": 0.7,
    "stage2_infectiousness": 1.6,
    "carrier_conversion_rate": 0.02,
    "direct_fraction": 0.15,
    "carrier_immunity_rate": 0.1,
    "stage1_immunity_rate": 0.05,
    "stage2_immunity_rate": 0.2,
    "stage_progression_rate": 0.3,
    "stage1_death_rate": 0.02,
    "stage2_death_rate": 0.04,
    "population": 50_000.0,
    "initial_immune_fraction": 0.25,
    "initial_carrier_fraction": 0.004,
}
"""One set in which every term is at work, and epsilon differs from eta."""


def h_weights(v):
    a1 = v["stage_progression_rate"] + v["stage1_immunity_rate"] + v["stage1_death_rate"]
    a2 = v["stage2_immunity_rate"] + v["stage2_death_rate"]
    t = (1 + v["stage2_infectiousness"] * v["stage_progression_rate"] / a2) / a1
    c = (v["carrier_odds"] + v["carrier_conversion_rate"] * t) / (
        v["carrier_conversion_rate"] + v["carrier_immunity_rate"]
    )
    r0 = v["transmission_rate"] * ((1 - v["direct_fraction"]) * c + v["direct_fraction"] * t)
    return r0, c, t, v["stage2_infectiousness"] / a2


def violations(model, branch=0):
    """Relative violations of each relation, zero for the right model."""
    return broken(simulate(model, parameters=V, days=3000, rtol=1e-11, atol=1e-9, reference="DOP853"), 0, branch)


def broken(run, at=0, branch=0):
    """The same for one trajectory of a run."""
    s, c, i1, i2, r, d = run.states[at].T
    n = V["population"]
    r0, wc, wt, w2 = h_weights(V)
    h = np.log(s) - r0 * s / n - V["transmission_rate"] / n * (wc * c + wt * i1 + w2 * i2)
    final = -n / r0 * lambertw(-r0 / n * np.exp(h[0]), branch).real
    # Each person-day in a compartment sends its rate to each of its exits. Person-days come from the balances at the
    # end of the outbreak: every carrier leaves carriage, every infective leaves its stage.
    a1 = V["stage_progression_rate"] + V["stage1_immunity_rate"] + V["stage1_death_rate"]
    a2 = V["stage2_immunity_rate"] + V["stage2_death_rate"]
    infected = s[0] - s[-1]
    carried = ((1 - V["direct_fraction"]) * infected + c[0]) / (
        V["carrier_conversion_rate"] + V["carrier_immunity_rate"]
    )
    ill = (V["direct_fraction"] * infected + V["carrier_conversion_rate"] * carried) / a1
    late = V["stage_progression_rate"] * ill / a2
    cases = V["direct_fraction"] * infected + V["carrier_conversion_rate"] * carried
    immune = r[0] + (
        V["carrier_immunity_rate"] * carried + V["stage1_immunity_rate"] * ill + V["stage2_immunity_rate"] * late
    )
    deaths = V["stage1_death_rate"] * ill + V["stage2_death_rate"] * late
    return {
        "first integral": np.abs(h - h[0]).max() / abs(h[0]),
        "final size": abs(s[-1] / final - 1),
        "cases": abs(run["cases"][at, -1] / cases - 1),
        "immune": abs(r[-1] / immune - 1),
        "deaths": abs(d[-1] / deaths - 1),
    }


def edited(change):
    declaration = GENERALISED.to_dict()
    for flow in declaration["flows"]:
        flow["rate"] = change(flow["name"], flow["rate"])
    return Model.from_yaml(yaml.safe_dump(declaration))


def swapped(_name, rate):
    return (
        rate.replace("carrier_odds", "@")
        .replace("stage2_infectiousness", "carrier_odds")
        .replace("@", "stage2_infectiousness")
    )


def test_the_right_model_keeps_every_relation():
    assert max(violations(GENERALISED).values()) < 1e-7
    assert max(violations(edited(lambda _name, rate: rate)).values()) < 1e-7


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize("flow", [flow.name for flow in GENERALISED.flows])
def test_a_flow_wrong_by_a_tenth(flow, factor):
    wrong = violations(edited(lambda name, rate: f"{factor} * ({rate})" if name == flow else rate))
    assert wrong["first integral"] > 1e-4
    assert wrong["immune"] > 1e-4 or wrong["deaths"] > 1e-2
    if flow.endswith("death"):
        assert wrong["deaths"] > 1e-2
    if flow in ("conversion", "direct_infection"):
        assert wrong["cases"] > 1e-2


def test_carrier_odds_and_stage_two_infectiousness_swapped():
    wrong = violations(edited(swapped))
    assert wrong["first integral"] > 1e-3
    assert wrong["final size"] > 1e-3


def test_direct_fraction_dropped():
    def dropped(name, rate):
        return "0 * S" if name == "direct_infection" else rate.replace("(1 - direct_fraction) *", "")

    wrong = violations(edited(dropped))
    assert wrong["first integral"] > 1e-3
    assert wrong["cases"] > 0.1


def test_the_wrong_branch_of_lambert():
    assert violations(GENERALISED, branch=-1)["final size"] > 0.1


def test_the_kernel_is_told_apart_as_well():
    """One compiled model: a factor for each flow, and parameters that swap epsilon with eta and drop p."""
    declaration = GENERALISED.to_dict()
    names = [flow.name for flow in GENERALISED.flows]
    for flow in declaration["flows"]:
        rate = swapped("", flow["rate"]).replace("stage2_infectiousness", "@").replace("carrier_odds", "#")
        rate = rate.replace("@", "(carrier_odds + swap * (stage2_infectiousness - carrier_odds))")
        rate = rate.replace("#", "(stage2_infectiousness + swap * (carrier_odds - stage2_infectiousness))")
        flow["rate"] = f"factor_{flow['name']} * ({rate.replace('direct_fraction', 'keep * direct_fraction')})"
    plain = {"unit": "1", "kind": "multiplier", "bounds": [0, 2]}
    extra = {**{f"factor_{name}": 1.0 for name in names}, "keep": 1.0, "swap": 0.0}
    declaration["parameters"] += [{"name": name, "default": value, **plain} for name, value in extra.items()]
    model = Model.from_yaml(yaml.safe_dump(declaration))
    mistakes = [{f"factor_{name}": factor} for name in names for factor in (0.9, 1.1)] + [{"swap": 1.0}, {"keep": 0.0}]
    rows = [{}, *mistakes]
    sets = {name: np.array([row.get(name, value) for row in rows]) for name, value in extra.items()}
    run = simulate(model, parameters={**V, **sets}, days=3000, rtol=1e-10, atol=1e-9)
    assert not run.status.any()
    assert max(broken(run, 0).values()) < 1e-6
    assert broken(run, 0, branch=-1)["final size"] > 0.1
    for at, mistake in enumerate(mistakes, start=1):
        assert broken(run, at)["first integral"] > 1e-4, mistake
