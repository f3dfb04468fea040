"""Streamed moments against scipy on the whole data."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from grafting.measure import activations
from grafting.measure.activations import Spread, merged


def check(spread: Spread, x: np.ndarray) -> None:
    assert spread.count == x.size and (spread.low, spread.high) == (x.min(), x.max())
    assert spread.mean == pytest.approx(x.mean(), rel=1e-12)
    assert spread.variance == pytest.approx(x.var(), rel=1e-9)
    assert spread.skewness == pytest.approx(stats.skew(x, axis=None), rel=1e-6, abs=1e-8)
    assert spread.kurtosis == pytest.approx(stats.kurtosis(x, axis=None), rel=1e-6, abs=1e-8)
    assert spread.extreme == pytest.approx(np.abs(x - x.mean()).max() / x.std(), rel=1e-9)


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("kind", ["normal", "laplace", "exponential"])
def test_a_stream_has_the_moments_of_the_whole(kind: str, mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = getattr(np.random.default_rng(0), kind)(size=(7, 11, 13)) + mean
    check(Spread.of(torch.from_numpy(x)), x)
    monkeypatch.setattr(activations, "CHUNK", 37)
    check(Spread.of(torch.from_numpy(x)), x)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), st.randoms(use_true_random=False))
def test_neither_order_nor_cuts_matter(values: list[float], source: object) -> None:
    x = np.array(values)
    shuffled = list(values)
    source.shuffle(shuffled)  # type: ignore[attr-defined]
    cuts = sorted({0, len(values), *(source.randrange(len(values)) for _ in range(4))})  # type: ignore[attr-defined]
    parts = [Spread.of(torch.tensor(shuffled[a:b], dtype=torch.float64)) for a, b in itertools.pairwise(cuts)]
    found, whole = merged(parts), Spread.of(torch.from_numpy(x))
    scale = max(1.0, float(np.abs(x).max()))
    for order, name in enumerate(("mean", "m2", "m3", "m4"), 1):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-7, abs=1e-9 * scale**order)
    assert (found.low, found.high, found.count) == (whole.low, whole.high, whole.count)


def test_half_precision_is_summed_in_double() -> None:
    x = torch.full((100_000,), 0.1, dtype=torch.bfloat16)
    x[0] = 100
    check(Spread.of(x), x.double().numpy())


def test_nothing_and_constants_and_infinities() -> None:
    assert Spread() + Spread.of(torch.ones(3)) == Spread.of(torch.ones(3)) == Spread.of(torch.ones(3)) + Spread()
    assert math.isnan(Spread.of(torch.ones(3)).kurtosis) and math.isnan(Spread().variance)
    with pytest.raises(ValueError, match="not finite"):
        Spread.of(torch.tensor([1.0, math.inf]))
