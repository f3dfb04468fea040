"""The analyses against scipy on equations written out by hand, closed forms and the specification's figures."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import lambertw
from scipy.stats import qmc

from meningitis import analysis
from meningitis.analysis import infected, runs
from meningitis.analysis.events import weekly_peak
from meningitis.analysis.outcomes import draw, sampled
from meningitis.engine import simulate
from meningitis.model import Model, ModelError
from meningitis.models import BASIC, GENERALISED
from meningitis.symbolic import growth, initial_state

N = 111_540.0


def rates(_t: float, y: Any, v: dict[str, float]) -> list[float]:
    """The specification's equations, written by hand: S, C, I1, I2."""
    S, C, I1, I2 = y
    p = v.get("direct_fraction", 0.0)
    force = v["transmission_rate"] * (v["carrier_odds"] * C + I1 + v["stage2_infectiousness"] * I2) / v["population"]
    a1 = v["stage_progression_rate"] + v["stage1_immunity_rate"] + v["stage1_death_rate"]
    return [
        -force * S,
        (1 - p) * force * S - (v["carrier_conversion_rate"] + v["carrier_immunity_rate"]) * C,
        p * force * S + v["carrier_conversion_rate"] * C - a1 * I1,
        v["stage_progression_rate"] * I1 - (v["stage2_immunity_rate"] + v["stage2_death_rate"]) * I2,
    ]


def by_hand(v: dict[str, float], days: float, **options: Any) -> Any:
    C, I1, I2 = (v["population"] * v[f"initial_{x}_fraction"] for x in ("carrier", "stage1", "stage2"))
    S = v["population"] * (1 - v["initial_immune_fraction"]) - C - I1 - I2
    return solve_ivp(rates, (0, days), [S, C, I1, I2], "DOP853", args=(v,), rtol=1e-12, atol=1e-12, **options)


def random_values(seed: int) -> dict[str, float]:
    """Parameters with every term at work and |R(0) - 1| well away from 0."""
    generator = np.random.default_rng(seed)
    v = {p.name: float(generator.uniform(0.05, 0.9)) for p in GENERALISED.parameters}
    v |= {"population": N, "initial_immune_fraction": 0.2, "initial_carrier_fraction": 0.001}
    v |= {"initial_stage1_fraction": 0.002, "initial_stage2_fraction": 0.003}
    wanted = (1.4, 0.7, 2.5, 1.1)[seed % 4]
    v["transmission_rate"] *= wanted / (0.8 * float(infected.infection_potential(GENERALISED, v)["S"]))
    return v


@pytest.mark.parametrize("seed", range(8))
def test_final_size_by_lambert_is_that_of_the_integrator(seed: int) -> None:
    v = random_values(seed)
    run = by_hand(v, 3000.0)
    begun = v["population"] * (1 - v["initial_immune_fraction"])
    assert analysis.final_size_exact(GENERALISED, v) == pytest.approx((begun - run.y[0, -1]) / N, rel=1e-8)
    H = analysis.first_integral_along(GENERALISED, v, dict(zip(("S", "C", "I1", "I2"), run.y, strict=True)))
    assert np.allclose(H, H[0], rtol=1e-11)


@pytest.mark.parametrize("wrong", ["branch", "p dropped", "odds and stage II swapped", "conversion + 10 %"])
def test_a_wrong_exact_relation_is_told_apart(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    v = random_values(0)
    run = by_hand(v, 3000.0)
    spoiled = dict(v)
    if wrong == "branch":
        monkeypatch.setattr(infected, "lambertw", lambda z, _branch: lambertw(z, -1))
    elif wrong == "p dropped":
        spoiled["direct_fraction"] = 0.0
    elif wrong == "conversion + 10 %":
        spoiled["carrier_conversion_rate"] *= 1.1
    else:
        spoiled["carrier_odds"], spoiled["stage2_infectiousness"] = v["stage2_infectiousness"], v["carrier_odds"]
    integrated = (N * (1 - v["initial_immune_fraction"]) - run.y[0, -1]) / N
    assert (
        abs(float(analysis.final_size_exact(GENERALISED, spoiled)) - integrated) > 1e-4
    )  # the right one is good to 1e-8


def test_infectives_at_the_start_are_swept_like_a_parameter() -> None:
    v = BASIC.values("hyperendemic")
    begun = [0.0, 1e-4, 1e-3]
    found = analysis.final_sizes(BASIC, v, {"initial_stage1_fraction": begun, "initial_stage2_fraction": begun})
    assert np.all(np.diff(found.integrated.reshape(3, 3), axis=0) > 0)
    assert np.all(np.diff(found.integrated.reshape(3, 3), axis=1) > 0)
    last = {**v, "initial_stage1_fraction": 1e-3, "initial_stage2_fraction": 1e-3}
    y = by_hand(last, 365.0).y
    assert found.integrated[-1] == pytest.approx((N / 2 - y[0, -1]) / N, rel=1e-5)
    held = analysis.profiles(BASIC, v, {"initial_stage2_fraction": begun}, days=7)
    assert held.prevalence[:, 0] == pytest.approx(N * np.array(begun))


def test_ever_infected_by_integrator_and_relation() -> None:
    found = analysis.ever_infected(GENERALISED, GENERALISED.values(), [0.8, 1.0, 1.5], [0.0, 0.1], days=3000)
    assert np.allclose(found.integrated, found.exact, rtol=1e-5)
    assert np.all(np.diff(found.exact, axis=0) > 0)
    assert len(found.frame()) == 6
    with pytest.raises(ValueError, match="direct_fraction"):
        analysis.ever_infected(BASIC, BASIC.values(), [1.0], [0.1])


@pytest.mark.parametrize(
    ("scenario", "reproduction", "peak", "cases"),
    [
        ("epidemic", 2.15, 33, 342),
        ("hyperendemic", None, 4.3, 117),
        ("endemic", 0.92, 0.02, None),
        ("severe", None, 107, 1866),
    ],
)
def test_figures_of_the_scenarios(scenario: str, reproduction: float | None, peak: float, cases: float | None) -> None:
    v = BASIC.values(scenario)
    found = analysis.outcomes(BASIC, v)
    assert found["peak_weekly_incidence"][0] / N * 1e5 == pytest.approx(peak, rel=0.02, abs=0.005)
    if reproduction is not None:
        susceptible = 1 - v["initial_immune_fraction"] - v["initial_carrier_fraction"]
        assert found["R0"][0] * susceptible == pytest.approx(reproduction, abs=0.005)
    if cases is not None:
        assert found["cases"][0] == pytest.approx(cases, abs=0.5)
    if scenario == "epidemic":
        assert found["peak_week"][0] == 12
        assert found["deaths"][0] == pytest.approx(34, abs=0.5)
        assert found["ever_infected"][0] / N == pytest.approx(0.67, abs=0.005)
    if scenario == "severe":
        assert cases is not None
        assert cases / N == pytest.approx(0.017, abs=0.0005)


@pytest.mark.parametrize("scenario", ["epidemic", "hyperendemic", "severe"])
def test_stage_one_peaks_as_the_ratio_crosses_the_critical_one(scenario: str) -> None:
    v = BASIC.values(scenario)

    def decline(t: float, y: Any, values: dict[str, float]) -> float:
        return rates(t, y, values)[2]

    decline.direction = -1  # type: ignore[attr-defined]
    run = by_hand(v, 200.0, events=decline)
    ((peak,),), ((_, C, I1, _),) = run.t_events, run.y_events[0]
    assert pytest.approx(v["carrier_conversion_rate"] / v["stage_progression_rate"], rel=1e-9) == I1 / C
    found = analysis.events(BASIC, v)
    assert found.day("critical ratio") == pytest.approx(peak, abs=1e-3)
    assert found.day("prevalence peak") == pytest.approx(peak, abs=1e-3)
    direct = analysis.events(GENERALISED, GENERALISED.values(scenario)).day("critical ratio")
    assert direct != pytest.approx(peak, abs=1.0)


def test_events_come_in_order_with_dates_and_the_claim() -> None:
    found = analysis.events(BASIC, BASIC.values(), start=dt.date(2026, 1, 1))
    names = [event.name for event in found.events]
    assert names[:3] == ["early ratio", "alert threshold", "epidemic threshold"]
    assert found.events[1].date == dt.date(2026, 1, 1) + dt.timedelta(days=41)  # the last of its week
    assert found.claim == {"early ratio": True, "critical ratio": False}
    assert any("split" in warning for warning in found.warnings)
    early = found.outlook().set_index("ratio").loc["early ratio"]
    assert (early["before_alert"], early["before_epidemic"]) == pytest.approx((42 - early["day"], 56 - early["day"]))
    lone = analysis.events(BASIC, BASIC.values("hyperendemic")).outlook()
    assert list(lone["verdict"]) == ["false alarm", "false alarm"] and lone["before_epidemic"].isna().all()
    quiet = analysis.events(BASIC, BASIC.values("endemic"))
    assert quiet.day("epidemic threshold") is None
    assert set(quiet.claim.values()) == {None}
    assert quiet.duration is None and found.duration is not None
    direct = analysis.events(GENERALISED, GENERALISED.values())
    assert direct.claim["implicit stage-I threshold"] is False
    assert any("at once" in warning for warning in direct.warnings)


def test_a_week_is_a_peak_only_where_fewer_cases_follow() -> None:
    assert [weekly_peak(np.array(x)) for x in ([1.0, 3, 2], [1.0, 2, 3], [0.0, 0, 0], [5.0])] == [1, None, None, None]
    v, names = BASIC.values(), ("weekly incidence peak", "prevalence peak")
    whole = analysis.events(BASIC, v).event(names[0])
    counts = np.diff(at_weeks := runs.at_times(BASIC, v, np.arange(0, 365, 7.0))["cases"])
    assert (whole.day, whole.value) == (7 * np.argmax(counts) + 3.5, pytest.approx(counts.max()))
    assert at_weeks.size > 40
    rising = analysis.events(BASIC, v, 63.0)  # 9 weeks of a rise that lasts 12
    assert [(rising.event(name).day, rising.event(name).value) for name in names] == [(None, None)] * 2
    nobody = analysis.events(BASIC, BASIC.values(overrides={"initial_carrier_fraction": 0.0}))
    assert nobody.day(names[0]) is None


def test_fewer_reports_raise_the_alarm_later() -> None:
    all_seen = analysis.events(BASIC, BASIC.values()).day("epidemic threshold")
    half = analysis.events(BASIC, BASIC.values(), reporting_fraction=0.5).day("epidemic threshold")
    assert all_seen is not None
    assert half is not None
    assert half > all_seen
    others = analysis.events(BASIC, BASIC.values(), reporting_fraction=2).day("epidemic threshold")
    assert others is not None and others < all_seen  # illness of other causes is suspected too
    with pytest.raises(ValueError, match="reporting_fraction"):
        analysis.events(BASIC, BASIC.values(), reporting_fraction=0)


@pytest.mark.parametrize("nothing", ["initial_carrier_fraction", "carrier_conversion_rate"])
def test_a_ratio_of_nothing_is_never_attained(nothing: str) -> None:
    """Without carriers it is 0/0; where no carrier falls ill it is 0 from the start, and warns of nothing."""
    found = analysis.events(BASIC, BASIC.values(overrides={nothing: 0.0}))
    assert found.attained == {"early ratio": None, "critical ratio": None}
    assert "false alarm" not in set(found.outlook()["verdict"])


@pytest.mark.parametrize("model", [BASIC, GENERALISED], ids=lambda m: m.name)
def test_the_early_ratio_is_neared_where_only_stage_two_begins(model: Model) -> None:
    """From below where everyone infected carries first, from above where some fall ill at once."""
    values = model.values(overrides={"initial_carrier_fraction": 0.0, "initial_stage2_fraction": 1e-4})
    found, early = analysis.events(model, values), growth(model, values).early_ratio
    day = found.day("early ratio")
    assert day is not None and early is not None and 1 < day < 40
    held = runs.at_times(model, values, [0.0, day / 2, day])
    before, at = held["I1"][1:] / held["C"][1:]
    assert at == pytest.approx((0.99 if model is BASIC else 1.01) * early, rel=1e-3)
    assert (before < at) == (model is BASIC)


def test_who_thresholds_by_size_of_the_district() -> None:
    middle = analysis.who_thresholds(50_000)
    assert (middle.alert, middle.epidemic, middle.doubling, middle.warning) == (2.0, 5.0, False, "")
    assert middle.alert_week(np.array([1.6, 1.9, 2.0])) == 2  # 3 per 100,000 are 1.5 cases, but two it takes
    assert analysis.who_thresholds(90_000).alert == pytest.approx(2.7)
    small = analysis.who_thresholds(20_000)
    assert (small.alert, small.epidemic) == (2.0, 5.0)
    assert small.epidemic_week(np.array([0.0, 1.0, 2.0, 4.0, 4.0])) == 3
    assert small.epidemic_week(np.array([0.1, 0.2, 0.4, 0.8])) is None
    assert small.epidemic_week(np.array([1.0, 1.0, 5.0])) == 2
    assert middle.epidemic_week(np.array([1.0, 2.0, 4.0])) is None
    assert middle.over_week(np.array([0.0, 2.0, 1.0, 2.0, 1.0, 0.0])) == 4
    assert middle.over_week(np.array([0.0, 2.0])) is None and middle.over_week(np.zeros(3)) is None
    assert "split" in analysis.who_thresholds(150_000).warning
    with pytest.raises(ValueError, match="population"):
        analysis.who_thresholds(0)


def test_profiles_against_equations_by_hand() -> None:
    v = GENERALISED.values()
    found = analysis.profiles(GENERALISED, v, {"direct_fraction": [0.0, 0.05]}, days=120)
    for k, p in enumerate((0.0, 0.05)):
        y = by_hand({**v, "direct_fraction": p}, 120.0, t_eval=found.times).y
        assert np.allclose(found.stage1[k], y[2] / y[1], rtol=1e-4)
        assert np.allclose(found.both[k], (y[2] + y[3]) / y[1], rtol=1e-4)
    assert found.critical == pytest.approx(v["carrier_conversion_rate"] / v["stage_progression_rate"])
    with pytest.raises(ValueError, match="no parameter"):
        analysis.profiles(GENERALISED, v, {"nonsense": [1.0]})
    with pytest.raises(ValueError, match="carrier_odds has no values"):
        analysis.profiles(GENERALISED, v, {"carrier_odds": []})


def test_a_profile_without_a_sweep_is_one_run_whose_peak_crosses_the_threshold() -> None:
    v = GENERALISED.values()
    found = analysis.profiles(GENERALISED, v, days=200)
    assert found.stage1.shape == (1, 201) and found.sweep == {}
    below = found.stage1[0, 5:] < found.threshold[0, 5:]
    crossed = float(found.times[5:][below].max())
    peak = analysis.events(GENERALISED, v).day("prevalence peak")
    assert peak is not None
    assert crossed <= peak <= crossed + 1


def test_crossings_are_found_in_their_direction() -> None:
    v = BASIC.values()
    I1 = BASIC.symbols["I1"]
    (rise,) = runs.crossing_days(BASIC, v, 365, I1 - 10)
    (fall,) = runs.crossing_days(BASIC, v, 365, I1 - 10, upwards=False)
    dense = by_hand(v, 365.0, dense_output=True).sol
    assert dense(rise)[2] == pytest.approx(10.0, abs=1e-6)
    assert dense(fall)[2] == pytest.approx(10.0, abs=1e-6)
    assert rise < fall
    assert runs.crossing_days(BASIC, v, 365, I1 - 1e6) == []


def test_adequacy_depends_on_the_outcome() -> None:
    v = GENERALISED.values()
    found = analysis.adequacy(GENERALISED, v, [0.0, 0.001, 0.1])
    assert found.equal["ever_infected"][-1] / N == pytest.approx(0.65, abs=0.01)
    assert found.equal["cases"][-1] / found.equal["cases"][0] == pytest.approx(20, rel=0.15)
    early = [
        runs.at_times(GENERALISED, {**v, "direct_fraction": p, "carrier_conversion_rate": phi}, [0, 28.0])["cases"][-1]
        for p, phi in zip(found.p[:2], found.phi[:2], strict=True)
    ]
    assert early[0] == pytest.approx(early[1], rel=1e-6)
    assert np.isnan(found.phi[-1])
    with pytest.raises(ValueError, match="direct_fraction"):
        analysis.adequacy(BASIC, BASIC.values())


@pytest.mark.parametrize(
    "analyse",
    [
        lambda model, v: analysis.compare(model, v, {**v, "transmission_rate": 0.15}, days=70.0).to_dict(),
        lambda model, v: analysis.events(model, v, 70.0).to_dict(),
        lambda model, v: analysis.profiles(model, v, {"carrier_odds": [0.8, 1.0]}, days=14.0).to_dict(),
        lambda model, v: analysis.profiles(model, v, days=14.0).to_dict(),
        lambda model, v: analysis.final_sizes(model, v, days=70.0).to_dict(),
        lambda model, v: analysis.adequacy(model, v, (0.0, 0.001), days=70.0).to_dict(),
        lambda model, v: analysis.local_sensitivity(model, v, days=70.0).to_dict(),
        lambda model, v: analysis.bands(model, n=4, values=v, days=14.0).to_dict(),
        lambda model, v: {"share": float(analysis.final_size_exact(model, v))},
    ],
    ids=[
        "compare", "events", "swept profiles", "profiles", "final_sizes", "adequacy", "local", "bands", "exact",
    ],
)  # fmt: skip
def test_every_analysis_fills_a_set_from_the_default_scenario(analyse: Any) -> None:
    some = {"direct_fraction": 0.0, "initial_immune_fraction": 0.3}
    complete = GENERALISED.values(overrides=some)
    np.testing.assert_equal(analyse(GENERALISED, some), analyse(GENERALISED, complete))


def test_every_analysis_reads_quantities_and_refuses_what_is_unknown() -> None:
    with_text = analysis.final_sizes(BASIC, {"carrier_odds": "50 %"}, {"transmission_rate": ["60/year", "70/year"]})
    plain = analysis.final_sizes(BASIC, {"carrier_odds": 0.5}, {"transmission_rate": [60 / 365, 70 / 365]})
    assert np.array_equal(with_text.integrated, plain.integrated) and np.array_equal(with_text.exact, plain.exact)
    assert with_text.sweep["transmission_rate"] == pytest.approx([60 / 365, 70 / 365])
    for analyse in (analysis.events, analysis.profiles, analysis.final_sizes, analysis.local_sensitivity):
        with pytest.raises(ModelError, match="did you mean 'carrier_odds'"):
            analyse(BASIC, {"carier_odds": 1.0})


def test_averted_by_comparison() -> None:
    a, b = BASIC.values(), BASIC.values(overrides={"initial_immune_fraction": 0.5})
    found = analysis.compare(BASIC, a, b)
    assert found.cases_averted == pytest.approx(342 - 117, abs=1)
    assert found.deaths_averted > 0
    same = analysis.compare(BASIC, a, a)
    assert (same.cases_averted, same.deaths_averted) == (0.0, 0.0)


def test_weekly_bands_are_percentiles_of_an_independent_solver_s_weeks() -> None:
    found = analysis.bands(BASIC, n=24, seed=5, days=70.0, percentiles=(25, 75))
    names = sampled(BASIC)
    uniform = qmc.LatinHypercube(d=len(names), rng=np.random.default_rng(5)).random(24)
    sets = draw(BASIC, names, uniform, BASIC.values())
    run = simulate(BASIC, parameters=sets, times=np.arange(0.0, 71.0, 7.0), days=70.0, reference="DOP853", rtol=1e-9)
    for name in ("cases", "deaths", "new_infections"):
        weeks = np.percentile(np.diff(run[name], axis=1), (25, 75), axis=0)
        np.testing.assert_allclose(found.series[f"weekly_{name}"][:, 1:], weeks, rtol=1e-3, atol=1e-6)
        assert not found.series[f"weekly_{name}"][:, 0].any()


def test_nobody_infected_infects_nobody() -> None:
    """The relation has a second root there, that of an outbreak which nobody begins."""
    values = BASIC.values(overrides={"initial_carrier_fraction": 0.0})
    state = analysis.infected.starting_state(BASIC, values)
    assert state["S"] == analysis.infected.final_susceptible(BASIC, values, state)
    found = analysis.final_sizes(BASIC, values, {"carrier_odds": [0.5, 1.5]})
    assert np.array_equal(found.exact, [0, 0]) and np.array_equal(found.integrated, [0, 0])


def test_the_early_ratio_is_neared_from_above_too() -> None:
    values = BASIC.values(overrides={"initial_stage1_fraction": 1e-5})
    found, early = analysis.events(BASIC, values), growth(BASIC, values).early_ratio
    begun = initial_state(BASIC, values)
    assert early is not None and begun["I1"] / begun["C"] > 2 * early
    day = found.attained["early ratio"]
    assert day is not None
    held = runs.at_times(BASIC, values, [0.0, day / 2, day])
    ratio = held["I1"] / held["C"]
    assert ratio[0] > ratio[1] > ratio[2] == pytest.approx(1.01 * early, rel=1e-4)


def test_less_than_a_week_is_refused() -> None:
    with pytest.raises(ValueError, match="days is 5, but weekly incidence needs at least 7"):
        analysis.compare(BASIC, BASIC.values(), BASIC.values(), days=5.0)


def test_bands_are_percentiles_of_the_runs() -> None:
    found = analysis.bands(BASIC, n=64, seed=3)
    assert np.all(np.diff(found.series["C"], axis=0) >= 0)
    again = analysis.bands(BASIC, n=64, seed=3)
    assert np.array_equal(found.series["weekly_cases"], again.series["weekly_cases"])
    everyone = analysis.bands(BASIC, n=64, seed=3, percentiles=(0, 100)).series["S"]
    assert everyone[0].min() > 0
    assert everyone[1].max() < N
    assert np.all(everyone[0] <= found.series["S"][0])
