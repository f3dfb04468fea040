"""The engine against exact relations and independent solvers, and the invariances it promises."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import lambertw

from meningitis.engine import Status, crossings, reduce, simulate, solve_ode
from meningitis.model import ModelError
from meningitis.models import BASIC, GENERALISED

SAMPLED = {p.name: p.distribution for p in GENERALISED.parameters}


def sample(n, seed=1):
    rng = np.random.default_rng(seed)
    return {name: distribution.ppf(rng.random(n)) for name, distribution in SAMPLED.items()}


def weights(v):
    """Spec, section 3: beta, weight of C, I1 and I2 in H, and R0, all typed in by hand as an oracle."""
    a1 = v["stage_progression_rate"] + v["stage1_immunity_rate"] + v["stage1_death_rate"]
    a2 = v["stage2_immunity_rate"] + v["stage2_death_rate"]
    t = (1 + v["stage2_infectiousness"] * v["stage_progression_rate"] / a2) / a1
    c = (v["carrier_odds"] + v["carrier_conversion_rate"] * t) / (
        v["carrier_conversion_rate"] + v["carrier_immunity_rate"]
    )
    p = v["direct_fraction"]
    r0 = v["transmission_rate"] * ((1 - p) * c + p * t)
    return v["transmission_rate"] / v["population"], c, t, v["stage2_infectiousness"] / a2, r0


def first_integral(v, states):
    """H (n, T) over states (n, T, 6)."""
    scale, c, t, i2, r0 = (np.asarray(x)[..., None] for x in weights(v))
    s = np.moveaxis(states, -1, 0)
    n = np.asarray(v["population"])[..., None]
    return np.log(s[0]) - r0 * s[0] / n - scale * (c * s[1] + t * s[2] + i2 * s[3])


def test_first_integral_holds_at_every_output():
    v = sample(200)
    solved = simulate(GENERALISED, parameters=v, days=365, rtol=1e-11, atol=1e-9)
    assert not solved.status.any()
    h = first_integral(v, solved.states)
    assert np.abs(h - h[:, :1]).max() < 1e-11 * np.abs(h).max()


def test_final_size_is_the_exact_one():
    v = sample(300, seed=3)
    start = simulate(GENERALISED, parameters=v, times=[0.0], days=1).states[:, 0]
    scale, c, t, i2, r0 = weights(v)
    n = v["population"]
    far = np.abs(r0 * start[:, 0] / n - 1) > 0.05
    end = simulate(GENERALISED, parameters=v, times=[1500.0], days=1500, rtol=1e-11, atol=1e-9).states[:, 0]
    # The tail is closed by H: ln S_inf - R0 S_inf / N = H at the last output.
    h = np.log(end[:, 0]) - r0 * end[:, 0] / n - scale * (c * end[:, 1] + t * end[:, 2] + i2 * end[:, 3])
    closed = -n / r0 * lambertw(-r0 / n * np.exp(h)).real
    h0 = np.log(start[:, 0]) - r0 * start[:, 0] / n - scale * (c * start[:, 1] + t * start[:, 2] + i2 * start[:, 3])
    exact = -n / r0 * lambertw(-r0 / n * np.exp(h0)).real
    assert far.sum() > 200
    np.testing.assert_allclose(closed[far], exact[far], rtol=1e-11)


def test_persons_are_conserved_and_never_negative():
    v = sample(300, seed=5)
    solved = simulate(GENERALISED, parameters=v, days=365)
    np.testing.assert_allclose(
        solved.states.sum(axis=2), np.broadcast_to(v["population"][:, None], (300, 54)), rtol=1e-12
    )
    assert solved.states.min() >= -1e-7
    np.testing.assert_allclose(solved["new_infections"], solved["S"][:, :1] - solved["S"], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(solved["deaths"], solved["D"], rtol=1e-9, atol=1e-9)


def test_accuracy_is_within_the_promise():
    v = sample(40, seed=11)
    mine = simulate(GENERALISED, parameters=v, days=365)
    reference = simulate(GENERALISED, parameters=v, days=365, rtol=1e-11, atol=1e-11, reference="DOP853")
    for got, true in ((mine.states, reference.states), (mine.cumulative, reference.cumulative)):
        worst = np.abs(got - true).max(axis=1) / np.abs(true).max(axis=1)
        assert worst.max() < 1e-5
    assert np.abs(mine.peaks[:, 0, 1] - reference.peaks[:, 0, 1]).max() < 0.05


@pytest.mark.parametrize("count", [1, 8, 9, 129, 300])
def test_bits_do_not_depend_on_order_neighbours_threads_or_chunks(count):
    v = sample(300)  # three tasks
    whole = simulate(GENERALISED, parameters=v, days=200, threads=1)
    rng = np.random.default_rng(count)
    order = rng.permutation(300)[:count]
    part = simulate(GENERALISED, parameters={k: x[order] for k, x in v.items()}, days=200)
    np.testing.assert_array_equal(part.states, whole.states[order])
    np.testing.assert_array_equal(part.cumulative, whole.cumulative[order])
    np.testing.assert_array_equal(part.peaks, whole.peaks[order])
    np.testing.assert_array_equal(part.steps, whole.steps[order])
    small = reduce(GENERALISED, v, days=200, chunk=3 * count)
    large = reduce(GENERALISED, v, days=200)
    for name, values in large.items():
        np.testing.assert_array_equal(small[name], values, err_msg=name)


def test_a_kernel_is_compiled_once_and_found_again_by_another_process():
    simulate(GENERALISED)  # compiles it if this is the first time
    again = (
        "from meningitis.engine import simulate; from meningitis.engine.compile import kernel;"
        "from meningitis.engine.system import of_model; from meningitis.models import GENERALISED as model;"
        "simulate(model); found = kernel(of_model(model)).stats;"
        "print(sum(found.cache_hits.values()), sum(found.cache_misses.values()))"
    )
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_another_calling_convention_or_source_is_another_module(monkeypatch):
    from meningitis.engine import compile as compiling

    names, solve = [], SimpleNamespace(stats=SimpleNamespace(cache_path="."))
    monkeypatch.setattr(compiling, "_load", lambda name, path: names.append(name) or SimpleNamespace(solve=solve))
    monkeypatch.setattr(compiling, "write_atomically", lambda path, text: None)
    system = compiling.System(time=sympy.Symbol("t"), states=(), parameters=(), rhs=(), initial=())
    for source, convention in (("a", 1), ("a", 2), ("b", 2), ("b", 2)):
        monkeypatch.setattr(compiling, "generate", lambda system, lanes, parallel, source=source: source)
        monkeypatch.setattr(compiling, "FORMAT", convention)
        compiling.kernel.__wrapped__(system)
    assert len(set(names[:3])) == 3
    assert names[2] == names[3]


def test_a_step_is_vector_code_and_no_rounding_is_left_to_the_compiler():
    """The speed rests on vectors: a call or a branch in the loop over lanes would undo it silently. The bits rest on
    fused multiply-adds where the source says so and nowhere else."""
    from meningitis.engine.compile import kernel
    from meningitis.engine.system import of_model

    advance = sys.modules[kernel(of_model(GENERALISED)).__module__].advance
    advance.compile("void(float64[::1], float64, float64, float64, float64, float64)")
    (text,) = advance.inspect_llvm().values()
    fused, vectors = (
        len(re.findall(rf"= {what}", text)) for what in (r"(?:tail )?call <\d+ x double> @llvm.fma", "fmul <")
    )
    assert fused > 150
    assert vectors > 20
    scalar = len(re.findall(r"= fmul double|call double", text))
    assert scalar < 0.05 * (fused + vectors)  # what is the same for all lanes
    assert not re.search(r"= f(?:mul|add|sub|div) (?:fast|contract|reassoc|nnan|arcp)", text)


def test_the_page_on_the_engine_runs():
    page = (Path(__file__).parents[1] / "docs" / "engine.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "engine.md", "exec"), {})


def test_output_times_do_not_move_the_steps():
    coarse = simulate(BASIC, days=365)
    fine = simulate(BASIC, days=365, times=np.arange(0, 366.0))
    np.testing.assert_array_equal(fine.states[:, ::7], coarse.states[:, :-1])
    assert fine.steps[0] == coarse.steps[0]


def test_a_failing_lane_is_reported_and_spoils_nobody():
    v = sample(8)
    alone = simulate(GENERALISED, parameters=v)
    v["initial_immune_fraction"] = v["initial_immune_fraction"].copy()
    v["initial_immune_fraction"][3] = 1.0  # no room left for the carriers: S starts below zero
    mixed = simulate(GENERALISED, parameters=v)
    assert mixed.status.tolist() == [0, 0, 0, Status.NEGATIVE, 0, 0, 0, 0]
    assert np.isnan(mixed.states[3]).all() and np.isnan(mixed.peaks[3]).all()
    assert "initial_immune_fraction=1" in mixed.failures[0]
    others = np.arange(8) != 3
    np.testing.assert_array_equal(mixed.states[others], alone.states[others])
    assert np.isnan(reduce(GENERALISED, v)["cases"]).tolist() == (~others).tolist()


def test_stiff_sets_fall_back_and_say_so():
    times, k = np.linspace(0, 2, 41), np.array([1e3, 1e6, 1e8])
    stiff = {"x": "-k * (x - cos(t))"}
    solved = solve_ode(stiff, initial={"x": 0.0}, parameters={"k": k}, times=times, max_steps=500)
    assert solved.status.tolist() == [Status.FALLBACK] * 3
    assert "Radau" in solved.failures[0]
    k = k[:, None]  # the solution is the slow manifold, and from 0 a fall on it
    slow = (k**2 * np.cos(times) + k * np.sin(times)) / (k**2 + 1)
    exact = slow - k**2 / (k**2 + 1) * np.exp(-k * times)
    np.testing.assert_allclose(solved["x"], exact, atol=2e-6)  # 1e-5 is promised; Radau's own cubic errs by 1e-3


def test_a_pulse_is_not_stepped_over_where_the_longest_step_is_given():
    pulse = {"x": "exp(-((t - 85)/2)^2)"}
    for reference in (None, "DOP853", "Radau"):
        solved = solve_ode(pulse, initial={"x": 0.0}, times=[0, 85, 365], max_step=2.0, reference=reference)
        assert solved.steps[0] >= 365 / 2
        np.testing.assert_allclose(solved["x"][0], [0, np.sqrt(np.pi), 2 * np.sqrt(np.pi)], rtol=1e-5)


def test_too_many_steps_and_blow_up_are_statuses():
    solved = solve_ode({"x": "x^2"}, initial={"x": [1.0, 0.1]}, times=[0, 5.0])
    assert Status(int(solved.status[0])).failed
    assert solved.status[1] == Status.OK
    assert solved["x"][1, -1] == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("scenario", [scenario.name for scenario in BASIC.scenarios])
def test_crossing_of_the_critical_ratio_is_the_peak_of_stage_one(scenario):
    """At p = 0 stage I peaks where I1/C = phi/a1 (spec, section 3): DOP853 on hand-written equations says when."""
    v = {name: float(value) for name, value in BASIC.values(scenario).items()}
    force = v["transmission_rate"] / v["population"]
    out_of_carriage = v["carrier_conversion_rate"] + v["carrier_immunity_rate"]
    a1 = v["stage_progression_rate"] + v["stage1_immunity_rate"] + v["stage1_death_rate"]
    a2 = v["stage2_immunity_rate"] + v["stage2_death_rate"]

    def slopes(_t, y):
        s, c, i1, i2 = y
        new = force * s * (v["carrier_odds"] * c + i1 + v["stage2_infectiousness"] * i2)
        into = v["carrier_conversion_rate"] * c
        return [-new, new - out_of_carriage * c, into - a1 * i1, v["stage_progression_rate"] * i1 - a2 * i2]

    carriers = v["population"] * v["initial_carrier_fraction"]
    start = [v["population"] * (1 - v["initial_immune_fraction"]) - carriers, carriers, 0.0, 0.0]
    dense = solve_ivp(
        slopes, (0, 365), start, method="DOP853", rtol=1e-12, atol=1e-12, max_step=1.0, dense_output=True
    ).sol
    peak = brentq(lambda t: slopes(t, dense(t))[2], 10, 200, xtol=1e-9)
    expression = (
        "I1 / C - carrier_conversion_rate / (stage_progression_rate + stage1_immunity_rate + stage1_death_rate)"
    )
    (found,) = crossings(BASIC, expression, scenario=scenario)
    assert found.upwards
    assert found.time == pytest.approx(peak, abs=1e-5)
    # The way down is a matter of hundredths of a person where the season is over.
    for share in (0.9, 0.5, 0.2):
        level = float(share * dense(peak)[2])
        down = brentq(lambda t, level=level: dense(t)[2] - level, peak, 365, xtol=1e-11)
        (found,) = (c for c in crossings(BASIC, f"I1 - {level!r}", scenario=scenario) if not c.upwards)
        assert found.time == pytest.approx(down, abs=1e-5)
    # The peak that the kernel follows itself, at its default tolerances.
    assert simulate(BASIC, scenario=scenario).peaks[0, 1, 1] == pytest.approx(peak, abs=1e-2)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("(t - 100.3) * (t - 100.6)", [(100.3, False), (100.6, True)]),
        ("(t - 0.2) * (0.7 - t)", [(0.2, True), (0.7, False)]),
        ("(t - 100.3)^2 + 1e-9", []),
        ("(t - 100.3)^2", []),
        ("t * 0 + 1e-300", []),
    ],
)
def test_two_crossings_within_a_day_are_found_and_a_touch_is_none(expression, expected):
    found = crossings(BASIC, expression)
    assert [(round(c.time, 6), c.upwards) for c in found] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"grid": 0.0}, "grid must be above 0 days, not 0"),
        ({"precision": 0.0}, "precision must be at least 5.68.*e-14 days, the rounding of day 365, not 0"),
        ({"parameters": {"carrier_odds": [1, 2]}}, "one parameter set, not 2"),
    ],
)
def test_crossings_refuse_what_they_cannot_locate(words, message):
    with pytest.raises(ValueError, match=message):
        crossings(BASIC, "t - 1", days=365, **words)


def test_crossings_of_a_run_that_fails_are_refused():
    with pytest.raises(RuntimeError, match=r"1 of 1 trajectories failed: set 0: a state falls below .*_fraction=1\b"):
        crossings(BASIC, "t - 1", parameters={**BASIC.values(), "initial_immune_fraction": 1.0})


@pytest.mark.parametrize("precision", [1e-7, np.spacing(1.0)])
def test_a_short_run_has_its_pair_of_crossings_as_well(precision):
    found = crossings(BASIC, "(t - 0.1) * (t - 0.3)", days=1.0, grid=5.0, precision=precision)
    assert [c.upwards for c in found] == [False, True]
    assert [c.time for c in found] == pytest.approx([0.1, 0.3], abs=precision)


@pytest.mark.parametrize(
    ("scenario", "peak", "cases"),
    [("epidemic", 33, 342), ("hyperendemic", 4.3, 117), ("endemic", 0.02, 0.5), ("severe", 107, 1866)],
)
def test_scenarios_give_what_they_say(scenario, peak, cases):
    got = {name: float(values[0]) for name, values in reduce(BASIC, {}, scenario=scenario).items()}
    assert got["peak_weekly_incidence"] / 1.1154 == pytest.approx(peak, rel=0.15 if peak < 1 else 0.02)
    assert got["cases"] == pytest.approx(cases, rel=0.1 if cases < 1 else 0.005)
    if scenario == "epidemic":
        assert got["peak_week"] == 12
        assert got["deaths"] == pytest.approx(34, abs=0.5)
        assert got["ever_infected"] / 111_540 == pytest.approx(0.67, abs=0.005)


def test_sweeps_report_progress_and_resume(tmp_path):
    v = sample(30)
    path = tmp_path / "sweep.npz"
    whole = reduce(GENERALISED, v)

    def interrupt(done, n):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reduce(GENERALISED, v, chunk=10, checkpoint=path, progress=interrupt)
    seen = []
    resumed = reduce(GENERALISED, v, chunk=10, checkpoint=path, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(30, 30)]
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values)
    with pytest.raises(ValueError, match="another sweep"):
        reduce(GENERALISED, sample(30, seed=2), checkpoint=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameters": {"carier_odds": 1}}, "carrier_odds"),
        ({"parameters": {"direct_fraction": [0.1, 1.2]}}, "1.2 is outside 0 to 1"),
        ({"parameters": {"carrier_odds": [1, 2], "transmission_rate": [1, 2, 3]}}, "one length"),
        ({"times": [3, 2]}, "increasing"),
        ({"times": [0, 400], "days": 365}, "day 400"),
        ({"rtol": 0}, "rtol"),
        ({"max_step": 0}, "max_step must be above 0 and reach day 365 in 20000 steps, not 0 days"),
        ({"max_step": 0.01}, "20000 steps, not 0.01 days"),
        ({"threads": 99_999}, "threads"),
        ({"reference": "Euler"}, "Euler"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises((ModelError, ValueError), match=message):
        simulate(GENERALISED, **arguments)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-7, 1e-4))
def test_random_sets_agree_with_scipy(seed, rtol):
    v = sample(1, seed=seed)
    mine = simulate(GENERALISED, parameters=v, days=120, rtol=rtol, atol=1e-8)
    # Tight, for the reference's own output between its long steps is worse than its steps.
    reference = simulate(GENERALISED, parameters=v, days=120, rtol=1e-12, atol=1e-12, reference="DOP853")
    allowed = rtol * reference.states.max(axis=1) + 1e-8
    assert (np.abs(mine.states - reference.states).max(axis=1) / allowed).max() < 10


def test_single_values_are_read_and_checked_as_a_models_are() -> None:
    days = np.array([0.0, 7.0])
    said = simulate(BASIC, parameters={"transmission_rate": "70/year", "carrier_odds": [0.5, 1.0]}, times=days)
    plain = {"transmission_rate": 70 / 365, "carrier_odds": np.array([0.5, 1.0])}
    assert np.array_equal(said["cases"], simulate(BASIC, parameters=plain, times=days)["cases"])
    with pytest.raises(ModelError, match=r"S at the start is -\S+ persons, below zero"):
        simulate(BASIC, parameters={"initial_immune_fraction": 1.0}, times=days)
