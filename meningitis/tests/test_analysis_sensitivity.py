"""Sensitivity measures against functions whose indices are known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import qmc, rankdata

from meningitis import analysis
from meningitis.analysis.outcomes import draw, sampled
from meningitis.analysis.prcc import fisher_interval, partial_correlations
from meningitis.analysis.sobol import Sobol, sobol_of
from meningitis.model import Model, ModelError
from meningitis.models import BASIC, GENERALISED

Array = np.ndarray


def check(found: Sobol, first: Array, total: Array) -> None:
    assert np.allclose(found.first[0], first, atol=0.02)
    assert np.allclose(found.total[0], total, atol=0.02)
    assert np.all(found.first_low[0] <= found.first[0] + 1e-12)
    assert np.all(found.total[0] <= found.total_high[0] + 1e-12)


def ishigami(u: Array) -> Array:
    x = np.pi * (2 * u - 1)
    return np.asarray((np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0]))[:, None])


V1, V2, V13 = 0.5 * (1 + 0.1 * np.pi**4 / 5) ** 2, 49 / 8, 8 * 0.01 * np.pi**8 / 225
FIRST, TOTAL = np.array([V1, V2, 0]) / (V1 + V2 + V13), np.array([V1 + V13, V2, V13]) / (V1 + V2 + V13)


def test_sobol_of_ishigami() -> None:
    check(sobol_of(ishigami, ("a", "b", "c"), ("y",), n=4096, seed=0), FIRST, TOTAL)


def test_sobol_of_the_g_function() -> None:
    a = np.array([0, 1, 4.5, 9.0])

    def g(u: Array) -> Array:
        return np.prod((np.abs(4 * u - 2) + a) / (1 + a), axis=1)[:, None]

    part = 1 / (3 * (1 + a) ** 2)
    whole = np.prod(1 + part) - 1
    found = sobol_of(g, tuple("abcd"), ("y",), n=4096, seed=1)
    check(found, part / whole, part * np.prod(1 + part) / (1 + part) / whole)


def test_sobol_indices_are_those_of_salib_on_the_same_design() -> None:
    analyze = pytest.importorskip("SALib.analyze.sobol").analyze
    n, rows = 1024, []

    def recorded(u: Array) -> Array:
        y = u[:, 0] ** 2 + u[:, 0] * u[:, 1] + 0.5 * np.sin(6 * u[:, 2])
        rows.append(y)
        return y[:, None]

    found = sobol_of(recorded, ("a", "b", "c"), ("y",), n=n, seed=3)
    A, B, *mixed = rows[0].reshape(5, n)
    # SALib wants, for each base point, A, then A with one column of B at a time, then B.
    ordered = np.stack([A, *mixed, B], axis=1).ravel()
    problem = {"num_vars": 3, "names": ["a", "b", "c"], "bounds": [[0, 1]] * 3}
    other = analyze(problem, ordered, calc_second_order=False, num_resamples=500, seed=1)
    assert found.total[0] == pytest.approx(other["ST"], rel=1e-9)
    # The first orders differ by how the two centre the outputs: by a mean over A and B, or over all rows.
    assert found.first[0] == pytest.approx(other["S1"], abs=2e-3)


def test_sobol_intervals_hold_the_true_indices_as_often_as_they_say() -> None:
    """On the design itself, 200 times: 95 % within four binomial errors, and on average within one and a half."""

    def y(u: Array) -> Array:
        x = np.pi * (2 * u - 1)
        return np.column_stack([ishigami(u)[:, 0], x[:, 0] + 0.5 * x[:, 1] + 0.1 * x[:, 2]])

    linear = np.array([1, 0.25, 0.01]) / 1.26
    first, total = np.stack([FIRST, linear]), np.stack([TOTAL, linear])
    held = []
    for seed in range(200):
        found = sobol_of(y, ("a", "b", "c"), ("y", "linear"), n=512, seed=seed)
        for low, true, high in (
            (found.first_low, first, found.first_high), (found.total_low, total, found.total_high)
        ):  # fmt: skip
            held.append(((low <= true) & (true <= high)).ravel())
    covered = np.stack(held).reshape(200, 2, -1).mean(axis=0)
    error = np.sqrt(0.95 * 0.05 / 200)
    assert np.abs(covered - 0.95).max() < 4 * error
    assert abs(covered.mean() - 0.95) < 1.5 * error


def test_an_interval_needs_two_scrambles() -> None:
    found = sobol_of(ishigami, ("a", "b", "c"), ("y",), n=2, seed=0)
    assert np.isfinite(found.total).all() and np.isnan([found.total_low, found.first_high]).all()


def test_sobol_wants_a_power_of_two_and_leaves_constants_alone() -> None:
    with pytest.raises(ValueError, match="powers of two"):
        sobol_of(lambda u: u, ("a",), ("y",), n=100, seed=0)
    found = sobol_of(lambda u: np.column_stack([u[:, 0], 0 * u[:, 0]]), ("a", "b"), ("y", "z"), n=64, seed=0)
    assert np.isnan(found.first[1]).all()
    assert (found.total[0, 1], found.total_low[0, 1], found.total_high[0, 1]) == (0, 0, 0)


def test_the_solver_s_own_error_is_no_outcome() -> None:
    """Nobody who is ill infects: how long they stay ill and how many die changes neither cases nor infections."""
    pinned = [name for name in BASIC.parameter_names if name not in ("stage2_death_rate", "stage2_immunity_rate")]
    values = BASIC.values(overrides={"stage2_infectiousness": 0.0})
    spread = analysis.outcomes(BASIC, {**values, "stage2_death_rate": np.array([0.0125, 0.02, 0.05])})["cases"]
    assert 0 < np.ptp(spread) < 1e-5 * spread.mean()  # not constant to the last bit
    shares = analysis.sobol(BASIC, n=16, values=values, pinned=pinned).frame().set_index(["outcome", "parameter"])
    ranks = analysis.prcc(BASIC, n=40, values=values, pinned=pinned).frame().set_index(["outcome", "parameter"])
    for outcome in ("cases", "ever_infected", "peak_weekly_incidence"):
        assert shares.loc[outcome].isna().all(axis=None) and ranks.loc[outcome].isna().all(axis=None), outcome
    # Deaths are a share d/(d + g) of all the ill.
    assert shares.loc["deaths", "total"].notna().all()
    assert ranks["prcc"]["deaths", "stage2_death_rate"] > 0.9 > -0.9 > ranks["prcc"]["deaths", "stage2_immunity_rate"]


def test_partial_rank_correlations_of_a_gaussian() -> None:
    # Pearson to Spearman is exact for Gaussians: 6/pi arcsin(rho/2); the partials follow from the inverse.
    n, noise = 40_000, 0.8
    generator = np.random.default_rng(5)
    mix = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    slope = np.array([1.0, -0.7, 0.0])
    x = generator.standard_normal((n, 3)) @ mix.T
    y = x @ slope + noise * generator.standard_normal(n)
    joint = np.zeros((4, 4))
    joint[:3, :3] = mix @ mix.T
    joint[3, :3] = joint[:3, 3] = joint[:3, :3] @ slope
    joint[3, 3] = slope @ joint[:3, :3] @ slope + noise**2
    scale = np.sqrt(np.diag(joint))
    precision = np.linalg.inv(6 / np.pi * np.arcsin(joint / np.outer(scale, scale) / 2))
    expected = -precision[:3, 3] / np.sqrt(np.diag(precision)[:3] * precision[3, 3])
    found = partial_correlations(rankdata(x, axis=0), rankdata(y))
    assert np.allclose(found, expected, atol=4 / np.sqrt(n))
    # In the raw variables the closed form is that of the linear model itself.
    alone = np.linalg.inv(joint[:3, :3])
    given = slope / np.sqrt(np.diag(alone))
    assert np.allclose(partial_correlations(x, y), given / np.hypot(given, noise), atol=4 / np.sqrt(n))


@pytest.mark.filterwarnings("error")
def test_partial_correlations_where_there_is_nothing_to_correlate() -> None:
    generator = np.random.default_rng(2)
    x = generator.standard_normal((9, 3))
    y = x[:, 0]
    found = partial_correlations(x, y)  # the first column is y itself: it leaves nothing of y to the others
    assert found[0] == 1.0 and np.isnan(found[1:]).all()
    assert partial_correlations(x[:, :1], -y) == pytest.approx([-1.0])
    low, high = fisher_interval(np.array([1.0, -1.0, np.nan]), 9, 2)
    assert low[:2].tolist() == high[:2].tolist() == [1.0, -1.0] and np.isnan([low[2], high[2]]).all()
    twins = np.column_stack([x, x[:, 1]])
    found = partial_correlations(twins, x @ np.ones(3) + generator.standard_normal(9))
    assert np.isnan(found[[1, 3]]).all() and np.isfinite(found[[0, 2]]).all()
    assert np.isnan(partial_correlations(x, np.ones(9))).all()


def test_fisher_intervals_cover_as_often_as_they_say() -> None:
    generator, hits, rho = np.random.default_rng(7), 0, 0.6
    for _ in range(2000):
        x = generator.standard_normal((60, 3))
        y = x[:, 0] * rho / np.sqrt(1 - rho**2) + generator.standard_normal(60)
        low, high = fisher_interval(partial_correlations(x, y)[:1], 60, 2)
        hits += bool(low[0] < rho < high[0])
    assert abs(hits / 2000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)  # 0.02, so that 0.90 would be told apart
    low, high = fisher_interval(np.array([0.3]), 60, 2)
    assert [low[0], high[0]] == pytest.approx(np.tanh(np.arctanh(0.3) + 1.959964 / np.sqrt(55) * np.array([-1, 1])))


def hypercube(model: Model, n: int, seed: int) -> Array:
    return qmc.LatinHypercube(d=len(sampled(model)), rng=np.random.default_rng(seed)).random(n)


def test_prcc_of_the_model_has_the_expected_signs() -> None:
    found = analysis.prcc(BASIC, n=300, seed=1)
    table = found.frame().set_index(["outcome", "parameter"])["prcc"]
    assert table["R0", "transmission_rate"] > 0.9
    assert table["R0", "carrier_immunity_rate"] < -0.9
    assert table["cases", "carrier_conversion_rate"] > 0.8
    assert np.all(found.low <= found.coefficient)
    assert np.all(found.coefficient <= found.high)
    assert np.array_equal(found.coefficient, analysis.prcc(BASIC, n=300, seed=1).coefficient)
    peaks = analysis.outcomes(BASIC, draw(BASIC, sampled(BASIC), hypercube(BASIC, 300, 1), BASIC.values()))
    assert found.growing == np.mean(peaks["peak_week"] == 52)  # of 52 whole weeks
    assert analysis.prcc(BASIC, ["cases"], n=300, seed=1, days=70.0).growing > 0.3 > found.growing
    # Faster spread peaks earlier, among outbreaks that peak within the run; without an outbreak the week is 1.
    inside = (peaks["peak_week"] > 1) & (peaks["peak_week"] < 52)
    assert found.peaked == np.mean(inside) and 0.5 < found.peaked < 1
    assert table["peak_week", "transmission_rate"] < -0.7 and table["peak_week", "initial_immune_fraction"] > 0.4
    row = found.outcomes.index("peak_week")
    ranks = rankdata(hypercube(BASIC, 300, 1)[inside], axis=0)
    by_hand = partial_correlations(ranks, rankdata(peaks["peak_week"][inside]))
    np.testing.assert_array_equal(found.coefficient[row], by_hand)
    width = np.diff(np.arctanh([found.low[row], found.high[row]]), axis=0) / 2
    assert width == pytest.approx(1.959964 / np.sqrt(inside.sum() - len(found.parameters) - 2), rel=1e-4)
    few = analysis.prcc(BASIC, ["peak_week", "cases"], n=40, seed=1, values=BASIC.values(), days=14.0)
    assert few.peaked == 0 and np.isnan(few.coefficient[0]).all() and np.isfinite(few.coefficient[1]).all()
    with pytest.raises(ValueError, match="unknown outcome"):
        analysis.prcc(BASIC, ["nonsense"], n=300)
    with pytest.raises(ValueError, match="at least"):
        analysis.prcc(BASIC, n=3)


def test_sobol_of_the_model() -> None:
    found = analysis.sobol(BASIC, n=256, seed=2)
    assert found.first.shape == (len(analysis.OUTCOMES), len(found.parameters))
    first = found.frame().set_index(["outcome", "parameter"])["total"]
    # R0 is the same for every initial state, and what conversion does to it is small.
    assert first["R0", "initial_immune_fraction"] == pytest.approx(0, abs=1e-12)
    assert first["cases", "carrier_conversion_rate"] > first["R0", "carrier_conversion_rate"]


def test_local_indices_say_what_matters_for_what() -> None:
    found = analysis.local_sensitivity(GENERALISED, GENERALISED.values(overrides={"direct_fraction": 0.0}))
    assert found.indices["R0"]["transmission_rate"] == 1.0
    assert found.ranked("R0")[0] == "transmission_rate"
    assert abs(found.indices["R0"]["carrier_conversion_rate"]) < 0.01
    assert found.indices["cases"]["carrier_conversion_rate"] == pytest.approx(1.0, abs=0.02)
    assert found.indices["deaths"]["stage2_death_rate"] == pytest.approx(0.9, abs=0.02)
    assert set(found.frame()["outcome"]) == {"R0", "peak_weekly_incidence", "cases", "deaths", "ever_infected"}


def test_a_local_step_stays_within_the_bounds_and_is_one_sided_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from meningitis.analysis import local

    seen = []

    def recorded(model: Any, samples: dict[str, Array], **options: float) -> dict[str, Array]:
        seen.append(samples["direct_fraction"])
        return analysis.outcomes(model, samples, **options)

    monkeypatch.setattr(local, "outcomes", recorded)
    values = GENERALISED.values(overrides={"direct_fraction": 1.0})
    found = analysis.local_sensitivity(GENERALISED, values, days=120)
    assert (seen[0].min(), seen[0].max()) == (pytest.approx(0.98), 1.0)
    # A backward difference a hundred times finer.
    near = analysis.outcomes(GENERALISED, {**values, "direct_fraction": np.array([1.0, 1 - 1e-4])}, days=120)
    for outcome in ("cases", "ever_infected"):
        index = (near[outcome][0] - near[outcome][1]) / 1e-4 / near[outcome][0]
        assert found.indices[outcome]["direct_fraction"] == pytest.approx(index, rel=0.02), outcome


def test_a_local_step_that_would_begin_below_zero_is_taken_on_the_other_side() -> None:
    # 0.1 % are carriers and 99.5 % immune: one step up, 100.5 % would be.
    values = BASIC.values(overrides={"initial_immune_fraction": 0.995})
    found = analysis.local_sensitivity(BASIC, values, days=70)
    immune = 0.995 * (1 - np.array([0.0, 1e-4]))
    near = analysis.outcomes(BASIC, {**values, "initial_immune_fraction": immune}, days=70)
    for outcome in ("cases", "ever_infected"):
        index = (near[outcome][0] - near[outcome][1]) / 1e-4 / near[outcome][0]
        assert found.indices[outcome]["initial_immune_fraction"] == pytest.approx(index, rel=0.05), outcome
    with pytest.raises(RuntimeError, match=r"leave out values such as those of the first, set 1 .*begins below zero"):
        analysis.outcomes(BASIC, {**values, "initial_immune_fraction": np.array([0.5, 1.0])})


@pytest.mark.parametrize(("x", "steps"), [(0.5, (1, -1)), (1.0, (-1, -2)), (0.25, (1, 2))])
def test_every_stencil_is_exact_for_a_parabola(x: float, steps: tuple[int, int]) -> None:
    from meningitis.analysis.local import STEP, _stencil

    taken, weights = _stencil(x, (0.25, 1.0))
    assert tuple(taken) == steps
    y = 3 * (x * (1 + STEP * taken)) ** 2 - 3 * x**2
    assert (weights * y).sum() / STEP == pytest.approx(6 * x**2)


def test_outcomes_of_some_parameters_are_those_with_the_scenarios_others() -> None:
    rates = [0.2, 0.4]
    some = analysis.outcomes(BASIC, {"transmission_rate": rates})
    whole = analysis.outcomes(
        BASIC, {name: [x] * 2 for name, x in BASIC.values().items()} | {"transmission_rate": rates}
    )
    assert some.keys() == whole.keys()
    assert all(np.array_equal(some[name], whole[name]) for name in whole)
    assert some["cases"][0] < some["cases"][1]
    with pytest.raises(ModelError, match="transmission_rat"):
        analysis.outcomes(BASIC, {"transmission_rat": rates})
