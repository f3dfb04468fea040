"""Random models by Hypothesis. The generated kernel runs as plain Python here, so that no example is compiled."""

import ctypes
import ctypes.util

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meningitis.engine import simulate
from meningitis.engine.codegen import generate
from meningitis.engine.system import System, of_model
from meningitis.model import Model
from meningitis.models import GENERALISED

FMA = ctypes.CDLL(ctypes.util.find_library("m")).fma
FMA.restype, FMA.argtypes = ctypes.c_double, [ctypes.c_double] * 3

NAMES = ("S", "E", "I", "R", "W")


def interpreted(system: System, lanes: int):
    """`solve` of the generated module, without numba and with the C library's fused multiply-add."""
    source = generate(system, lanes)
    plain = {
        "from numba import njit, prange": "def njit(f=None, **_):\n    return f or (lambda g: g)\nprange = range",
        "from meningitis.engine.intrinsics import bits, fma": "",
    }
    for compiled, text in plain.items():
        assert source.count(compiled) == 1
        source = source.replace(compiled, text)
    space = {"fma": FMA, "bits": lambda x: int(np.float64(x).view(np.int64))}
    exec(compile(source, "kernel", "exec"), space)
    return space["solve"]


def kernel_run(system, sets, times, rtol, atol, lanes=2):
    n, components = len(sets), len(system.rhs) + len(system.integrands)
    out, peaks = np.empty((n, len(times), components)), np.empty((n, len(system.watched), 2))
    status, steps = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    with np.errstate(all="ignore"):
        interpreted(system, lanes)(sets, times, times[-1], rtol, atol, 5000, np.inf, out, peaks, status, steps)
    return out, peaks, status


@st.composite
def models(draw):
    """A closed model of 2 to 5 compartments; every flow empties its source alone, by contact, or with the season."""
    names = NAMES[: draw(st.integers(2, 5))]
    pairs = [(a, b) for a in names for b in names if a != b]
    flows = []
    for k, (source, target) in enumerate(draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=6))):
        other = draw(st.sampled_from((None, *names)))
        contact = "" if other is None else f" * {other} / population"
        season = f" * (1 + cos(rate{k} * t))" if draw(st.booleans()) else ""
        flows.append(
            {"name": f"f{k}", "source": source, "target": target, "rate": f"rate{k} * {source}{contact}{season}"}
        )
    rates = [draw(st.floats(0.001, 1.5)) for _ in flows]
    return made(names, flows, rates, [draw(st.floats(0, 1)) for _ in names])


def made(names, flows, rates, shares):
    """The model of these flows, begun at these shares of the population.

    The first flow is a case; those into the first compartment, which is the infected one, are new infections.
    """
    total = sum(shares) or 1.0
    parameters = [{"name": "population", "default": 1000.0, "kind": "count"}]
    declared = {
        "name": "random",
        "closed": True,
        "compartments": [{"name": name, "infected": name == names[0]} for name in names],
        "parameters": parameters + [{"name": f"rate{k}", "default": r, "kind": "rate"} for k, r in enumerate(rates)],
        "flows": [flow | {"case": not k, "new_infection": flow["target"] == names[0]} for k, flow in enumerate(flows)],
        "initial": {name: f"population * {share / total:.17f}" for name, share in zip(names, shares, strict=True)},
    }
    return Model.from_yaml(yaml.safe_dump(declared))


FAST = ("S > E: S", "R > S: R", "S > E: S * I / population", "R > S: R", "S > E: S * I / population", "I > S: I")
EMPTIES_FAST = made(
    "SEIR",
    [
        {"name": f"f{k}", "source": text[0], "target": text[4], "rate": f"rate{k} * {text[7:]}"}
        for k, text in enumerate(FAST)
    ],
    [0.25, 1.5, 1.15625, 1.5, 1.0, 1.0],
    [0.0, 0.0, 0.0, 1.0],
)
"""R is gone within days, and leaves steps as long as the solver's stability allows."""


@settings(max_examples=25, deadline=None)
@given(models(), st.integers(0, 2**32 - 1))
@example(EMPTIES_FAST, 0)
def test_random_models_conserve_stay_positive_and_agree_with_dop853(model, seed):
    system = of_model(model)
    rng = np.random.default_rng(seed)
    defaults = np.array([p.default for p in model.parameters])
    sets = defaults * np.where(defaults < 100, rng.uniform(0.3, 1.0, (3, len(defaults))), 1.0)
    times = np.array([0.0, 0.3, 1.0, 6.0, 20.0])
    out, peaks, status = kernel_run(system, sets, times, rtol=1e-6, atol=1e-8)
    assert status.tolist() == [0, 0, 0]
    states = out[:, :, : len(model.state_names)]
    start = states[:, :1].sum(axis=2)
    np.testing.assert_allclose(states.sum(axis=2), np.broadcast_to(start, states.shape[:2]), rtol=1e-12)
    assert states.min() >= -1e-6
    assert np.all(np.diff(out[:, :, len(model.state_names) :], axis=1) >= -1e-6)
    exact = simulate(
        model,
        parameters=dict(zip(model.parameter_names, sets.T, strict=True)),
        days=20,
        times=times,
        rtol=1e-10,
        # Dense output and long steps may dip below zero by more than ten times the tolerance, and count as failed:
        # with 1e-10 the one does, and without a longest step the other, where a compartment empties fast.
        atol=1e-8,
        max_step=0.1,
        reference="DOP853",
    )
    assert np.abs(states - exact.states).max() < 1e-5 * 1000
    assert np.abs(peaks[:, 0, 0] - exact.peaks[:, 0, 0]).max() < 1e-4 * 1000
    alone, _, _ = kernel_run(system, sets[1:2], times, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(alone[0], out[1])


@pytest.mark.parametrize("lanes", [1, 3])
def test_compiled_and_interpreted_kernels_agree_to_the_last_bit_whatever_the_lanes(lanes):
    """IEEE arithmetic in the written order, fused where it says so, on vectors of eight or one number at a time."""
    rng = np.random.default_rng(2)
    sets = np.stack([p.distribution.ppf(rng.random(7)) for p in GENERALISED.parameters], axis=1)
    times = np.arange(0.0, 200.0, 7.0)
    out, peaks, status = kernel_run(of_model(GENERALISED), sets, times, rtol=1e-6, atol=1e-8, lanes=lanes)
    values = dict(zip(GENERALISED.parameter_names, sets.T, strict=True))
    compiled = simulate(GENERALISED, parameters=values, days=times[-1], times=times)
    np.testing.assert_array_equal(out, np.concatenate([compiled.states, compiled.cumulative], axis=2))
    np.testing.assert_array_equal(peaks, compiled.peaks)
    assert not status.any()


def test_the_text_of_a_kernel_is_the_same_every_time():
    system = of_model(GENERALISED)
    assert generate(system, 8) == generate(of_model(GENERALISED), 8)
    assert generate(system, 4) != generate(system, 8)
