"""The engine's exam on plain systems: the non-stiff problems of Hull et al., SIAM J. Numer. Anal. 9 (1972) 603–637."""

import numpy as np
import pytest

from meningitis.engine import solve_ode
from meningitis.engine.tableau import ERROR, INTERPOLANT, A, C

ECCENTRICITY = 0.3
PROBLEMS = {
    "A3": ({"a3": "a3*cos(t)"}, {"a3": 1.0}),
    "A4": ({"a4": "a4/4*(1 - a4/20)"}, {"a4": 1.0}),
    "B1": ({"prey": "2*(prey - prey*foe)", "foe": "-(foe - prey*foe)"}, {"prey": 1.0, "foe": 3.0}),
    "B5": ({"e1": "e2*e3", "e2": "-e1*e3", "e3": "-0.51*e1*e2"}, {"e1": 0.0, "e2": 1.0, "e3": 1.0}),
    "D2": (
        {"x": "u", "y": "v", "u": "-x/(x^2 + y^2)^1.5", "v": "-y/(x^2 + y^2)^1.5"},
        {
            "x": 1 - ECCENTRICITY,
            "y": 0.0,
            "u": 0.0,
            "v": ((1 + ECCENTRICITY) / (1 - ECCENTRICITY)) ** 0.5,
        },
    ),
    "E2": ({"w": "z", "z": "(1 - w^2)*z - w"}, {"w": 2.0, "z": 0.0}),
}
# One system of them all, so that one kernel is compiled: uncoupled, each is as hard as alone.
EQUATIONS = {name: text for equations, _ in PROBLEMS.values() for name, text in equations.items()}
INITIAL = {name: value for _, initial in PROBLEMS.values() for name, value in initial.items()}
TIMES = np.linspace(0, 20, 41)


def solved(tolerance, times=TIMES, **options):
    run = solve_ode(EQUATIONS, initial=INITIAL, times=times, rtol=tolerance, atol=tolerance / 100, **options)
    assert run.status[0] == 0
    return run


@pytest.fixture(scope="module")
def reference():
    return solved(1e-13, reference="DOP853")


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_against_dop853(name, reference):
    mine = solved(1e-8)
    for state in PROBLEMS[name][0]:
        assert np.abs(mine[state] - reference[state]).max() < 2e-6 * np.abs(reference[state]).max(), state


def test_problems_with_a_formula():
    mine = solved(1e-9)
    np.testing.assert_allclose(mine["a3"][0], np.exp(np.sin(TIMES)), rtol=1e-7)
    np.testing.assert_allclose(mine["a4"][0], 20 / (1 + 19 * np.exp(-TIMES / 4)), rtol=1e-7)
    energy = (mine["u"] ** 2 + mine["v"] ** 2) / 2 - (mine["x"] ** 2 + mine["y"] ** 2) ** -0.5
    np.testing.assert_allclose(energy, -0.5, rtol=1e-6)


def test_errors_fall_with_the_tolerance_as_the_order_says(reference):
    """A fifth-order method whose steps go as tolerance^(1/5): error against steps has slope 5, against tolerance 1."""
    tolerances = 10.0 ** -np.arange(4, 10)
    runs = [solved(tolerance) for tolerance in tolerances]
    errors = np.array([np.abs(run.states[:, -1] - reference.states[:, -1]).max() for run in runs])
    steps = np.array([run.steps[0] for run in runs])
    assert 4.5 < -np.polyfit(np.log(steps), np.log(errors), 1)[0] < 6.5
    assert 0.8 < np.polyfit(np.log(tolerances), np.log(errors), 1)[0] < 1.3


def test_output_between_the_steps_is_of_fourth_order(reference):
    """Dense output must not be worse than the steps it lies between by more than an order."""
    times = np.linspace(0, 20, 41)
    errors = [np.abs(solved(t, times=times).states - reference.states).max() for t in (1e-5, 1e-7, 1e-9)]
    assert errors[0] / errors[1] > 30
    assert errors[1] / errors[2] > 30


MORE = {
    "A1": ({"a1": "-a1"}, {"a1": 1.0}),
    "A2": ({"a2": "-a2^3/2"}, {"a2": 1.0}),
    "A5": ({"a5": "(a5 - t)/(a5 + t)"}, {"a5": 4.0}),
    "B2": ({"p": "-p + q", "q": "p - 2*q + r", "r": "q - r"}, {"p": 2.0, "q": 0.0, "r": 1.0}),
    "B3": ({"f": "-f", "g": "f - g^2", "h": "g^2"}, {"f": 1.0, "g": 0.0, "h": 0.0}),
    "B4": (
        {"l": "-m - l*n/sqrt(l^2 + m^2)", "m": "l - m*n/sqrt(l^2 + m^2)", "n": "l/sqrt(l^2 + m^2)"},
        {"l": 3.0, "m": 0.0, "n": 0.0},
    ),
    "C1": (
        {"c0": "-c0", **{f"c{k}": f"c{k - 1} - c{k}" for k in range(1, 9)}, "c9": "c8"},
        {f"c{k}": float(k == 0) for k in range(10)},
    ),
    "D5": (
        {"x": "u", "y": "v", "u": "-x/(x^2 + y^2)^1.5", "v": "-y/(x^2 + y^2)^1.5"},
        {"x": 0.1, "y": 0.0, "u": 0.0, "v": 19.0**0.5},
    ),
    "E1": (
        {"j": "i", "i": "-(i/(t + 1) + (1 - 0.25/(t + 1)^2)*j)"},
        {"j": 0.671396707141803, "i": 0.09540051444747446},
    ),
    "E3": ({"o": "k", "k": "o^3/6 - o + 2*sin(2.78535*t)"}, {"o": 0.0, "k": 0.0}),
    "E4": ({"z": "w", "w": "0.032 - 0.4*w^2"}, {"z": 30.0, "w": 0.0}),
}
"""More of the set, one to three of each class; in one system of their own."""


def test_more_of_the_set_against_dop853():
    equations = {name: text for each, _ in MORE.values() for name, text in each.items()}
    initial = {name: value for _, each in MORE.values() for name, value in each.items()}
    assert len(equations) == len(initial) == sum(len(each) for each, _ in MORE.values())
    runs = [
        solve_ode(equations, initial=initial, times=TIMES, rtol=rtol, atol=rtol / 100, reference=reference)
        for rtol, reference in ((1e-8, None), (1e-13, "DOP853"))
    ]
    for name, (each, _) in MORE.items():
        for state in each:
            mine, other = (run[state][0] for run in runs)
            assert np.abs(mine - other).max() < 2e-6 * np.abs(other).max(), (name, state)
    # Closed forms: exponential decay, the inverse square root, Bessel's J of order a half from t + 1.
    np.testing.assert_allclose(runs[0]["a1"][0], np.exp(-TIMES), atol=1e-9)
    np.testing.assert_allclose(runs[0]["a2"][0], 1 / np.sqrt(1 + TIMES), rtol=1e-7)
    bessel = np.sqrt(2 / np.pi / (TIMES + 1)) * np.sin(TIMES + 1)
    np.testing.assert_allclose(runs[0]["j"][0], bessel, atol=1e-6)


@pytest.mark.parametrize(
    ("equations", "parameters", "name"),
    [
        ({"x": "-x"}, {"x": 2.0}, "x"),
        ({"x": "-x"}, {"initial_x": 5.0}, "initial_x"),
        ({"x": "-x", "initial_x": "x"}, {}, "initial_x"),
        ({"t": "-t"}, {}, "t"),
        ({"x": "-t*x"}, {"t": 1.0}, "t"),
    ],
)
def test_a_name_that_would_stand_for_two_things_is_refused(equations, parameters, name):
    with pytest.raises(ValueError, match=f"^{name} would stand for two things"):
        solve_ode(equations, initial=dict.fromkeys(equations, 1.0), parameters=parameters, times=TIMES)


def conditions(weights, matrix, nodes):
    """Left-hand sides and values of the 17 order conditions up to order 5, as (order, left, right).

    Hairer, Nørsett & Wanner I, II.2: one condition for each rooted tree.
    """
    b, a, c = np.asarray(weights), np.asarray(matrix), np.asarray(nodes)
    ac, ac2, aac = a @ c, a @ c**2, a @ (a @ c)
    yield from [(1, b.sum(), 1), (2, b @ c, 1 / 2), (3, b @ c**2, 1 / 3), (3, b @ ac, 1 / 6)]
    yield from [(4, b @ c**3, 1 / 4), (4, b @ (c * ac), 1 / 8), (4, b @ ac2, 1 / 12), (4, b @ aac, 1 / 24)]
    yield from [(5, b @ c**4, 1 / 5), (5, b @ (c**2 * ac), 1 / 10), (5, b @ (c * ac2), 1 / 15)]
    yield from [(5, b @ (c * aac), 1 / 30), (5, b @ ac**2, 1 / 20), (5, b @ (a @ c**3), 1 / 20)]
    yield from [(5, b @ (a @ (c * ac)), 1 / 40), (5, b @ (a @ ac2), 1 / 60), (5, b @ (a @ aac), 1 / 120)]


MATRIX = np.array([[*row, *[0.0] * (7 - len(row))] for row in A])


def test_tableau_meets_its_order_conditions():
    np.testing.assert_allclose(MATRIX.sum(axis=1), C, atol=1e-14)
    fifth = MATRIX[6]
    fourth = fifth + np.array(ERROR)
    for order, left, right in conditions(fifth, MATRIX, C):
        assert left == pytest.approx(right, abs=1e-13), order
    for order, left, right in conditions(fourth, MATRIX, C):
        if order <= 4:
            assert left == pytest.approx(right, abs=1e-13), order
    assert any(abs(left - right) > 1e-4 for order, left, right in conditions(fourth, MATRIX, C) if order == 5)


@pytest.mark.parametrize("theta", [0.1, 0.25, 0.6, 1.0])
def test_interpolant_is_of_fourth_order(theta):
    weights = np.array([sum(r * theta**k for k, r in enumerate(row, start=1)) for row in INTERPOLANT])
    for order, left, right in conditions(weights, MATRIX, C):
        if order <= 4:
            assert left == pytest.approx(right * theta**order, abs=1e-13), order
    if theta == 1.0:
        np.testing.assert_allclose(weights, MATRIX[6], atol=1e-13)
