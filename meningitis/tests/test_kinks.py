"""Rates that do something on few days: no run passes over them, and models without time take the steps they took."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from textbook import build

from meningitis.engine import reduce, simulate, solve_ode
from meningitis.engine.kinks import kinks
from meningitis.engine.system import of_model
from meningitis.model import Model
from meningitis.models import GENERALISED

DAYS = (20.0, 47.0, 81.5, 120.0, 163.0, 200.0, 260.0, 300.0)


def importing(pulse: str) -> Model:
    """An SIR model into which ten infected a day come while the pulse lasts."""
    return build(
        "importing", "S I R", "I", {"b": 0.4, "g": 0.2, "w": 1.0, "tau": 20.0, "births": 10.0, "N": 1e5},
        [("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False), (None, "I", f"births*{pulse}", True)],
        {"S": "N"},
    )  # fmt: skip


# Two days from day tau on, with flanks of a tenth of a day; for good, after two days of rise; and as a bell.
BOX = importing("max(0, min(1, 10*w*(t - tau), 1 - 10*(w*(t - tau) - 2)))")
STEPS = importing("(abs(w*(t - tau)) - abs(w*(t - tau) - 2) + 2)/4")
BELL = importing("exp(-(w*(t - tau))^2)")


def pulse(model: Model, t: float, d: float) -> float:
    if model is BELL:
        return float(np.exp(-((t - d) ** 2)))
    if model is BOX:
        return float(np.interp(t, [d, d + 0.1, d + 2, d + 2.1], [0, 1, 1, 0]))
    return float(np.interp(t, [d, d + 2], [0, 1]))


@pytest.mark.parametrize("model", [BOX, STEPS, BELL], ids=["box", "ramp", "bell"])
def test_no_pulse_is_passed_over(model: Model) -> None:
    """All start days at once, by scipy's DOP853 from corner to corner."""

    def by_hand(d: float) -> list[float]:
        def rates(t: float, y: np.ndarray) -> list[float]:
            new = 0.4 * y[0] * y[1] / 1e5
            come = 10 * pulse(model, t, d)
            return [-new, new + come - 0.2 * y[1], new + come]

        y = np.array([1e5, 0.0, 0.0])
        for ends in pairwise((0, d - 8, d, d + 0.1, d + 2, d + 2.1, d + 8, 365)):
            y = solve_ivp(rates, ends, y, "DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
        return y.tolist()

    found = simulate(model, parameters={"tau": DAYS}, days=365)
    assert not found.status.any()
    wanted = np.array([by_hand(d) for d in DAYS])
    assert found["new_infections"][:, -1] == pytest.approx(wanted[:, 2], rel=1e-4)
    assert found["S"][:, -1] == pytest.approx(wanted[:, 0], rel=1e-4)
    by_scipy = simulate(model, parameters={"tau": DAYS[:2]}, days=365, reference="DOP853")["new_infections"][:, -1]
    assert by_scipy == pytest.approx(wanted[:2, 2], rel=1e-4)
    swept = reduce(model, {"tau": np.array(DAYS)}, days=365)
    assert swept["new_infections"].tolist() == found["new_infections"][:, -1].tolist()


def test_corners_are_met_and_a_bound_is_set_only_where_time_is_elsewhere() -> None:
    assert not kinks(of_model(BOX)).bounded and kinks(of_model(BELL)).bounded
    assert kinks(of_model(BELL)).times == () and len(kinks(of_model(STEPS)).times) == 2
    assert kinks(of_model(importing("max(0, sin(w*t))"))).bounded
    few, more = (simulate(m, parameters={"births": 0.0}, days=365).steps[0] for m in (BOX, BELL))
    assert few < 60 < 365 <= more
    century = simulate(BELL, parameters={"births": 0.0}, days=36_500, times=[36_500.0])
    assert not century.status.any() and century.steps[0] >= 36_500


def test_a_step_that_jumps_is_integrated_to_its_corner_and_from_it() -> None:
    """The sign of time since a date is 0/0 on that date, where no step may end."""
    times = np.linspace(0, 100, 21)
    d = np.array([10.0, 50.0, 99.0])
    found = solve_ode(
        {"x": "(1 + abs(t - d)/(t - d))/2 - k*x"}, initial={"x": 0.0}, parameters={"d": d, "k": 0.1}, times=times
    )
    assert not found.status.any()
    after = np.maximum(0, times - d[:, None])
    assert found["x"] == pytest.approx(10 * (1 - np.exp(-0.1 * after)), abs=1e-5)
    brief = solve_ode(
        {"x": "max(0, 1 - abs(t - 200)/m)"}, initial={"x": 0.0}, parameters={"m": [1e-3, 1.0]}, times=[365]
    )
    area = [quad(lambda t, m=m: max(0, 1 - abs(t) / m), -m, m, points=[0])[0] for m in (1e-3, 1.0)]
    assert brief["x"][:, 0] == pytest.approx(area, rel=1e-4)


def test_a_model_without_time_has_no_corners() -> None:
    assert kinks(of_model(GENERALISED)).times == () and not kinks(of_model(GENERALISED)).bounded
