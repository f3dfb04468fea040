"""The starts that benchmarks/mixing.py compares are what the page says of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from grafting.operators.hyena import HyenaX2D
from grafting.operators.linear import LocalMean
from grafting.study.table import TableRecipe

HOME = Path(__file__).resolve().parents[1] / "benchmarks"
WIDTH = 16


@pytest.fixture
def mixing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(HOME))
    import mixing

    yield mixing
    del sys.modules["mixing"]


@pytest.mark.parametrize(
    ("name", "one_gate", "gates_mix", "values_mix"),
    [
        ("Alike", True, False, False),
        ("GatesApart", False, False, False),
        ("AllMix", False, True, True),
        ("ValuesMix", False, False, True),
        ("AlikeMix", True, False, True),
    ],
)
def test_a_start_is_what_its_name_says(
    mixing: Any, name: str, one_gate: bool, gates_mix: bool, values_mix: bool
) -> None:
    torch.manual_seed(0)
    square, row = torch.randn(WIDTH, WIDTH, dtype=torch.float64), torch.randn(WIDTH, dtype=torch.float64)
    made: HyenaX2D = getattr(mixing, name)(width=WIDTH, heads=2, tokens=16).double()
    assert made.copy_from_attention((square, row) * 3, (square, row))
    gates, values = made.short_filter.weight[: 2 * WIDTH], made.short_filter.weight[2 * WIDTH :]
    for taps, mixes in ((gates, gates_mix), (values, values_mix)):
        off = taps.detach().clone()
        off[:, 0, 1, 1] = 0
        assert bool(off.any()) == mixes
    steps = torch.optim.Adam(made.parameters(), lr=1e-2)
    for step in range(5):
        x, y = torch.randn(2, 3, 16, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        steps.zero_grad()
        (made(x) - y).square().mean().backward()
        steps.step()
    q, k = made.in_proj.weight[:WIDTH], made.in_proj.weight[WIDTH : 2 * WIDTH]
    assert q.any() and torch.allclose(q, k) == one_gate


def test_the_plain_mean_is_linear_in_the_values(mixing: Any) -> None:
    x = torch.randn(1, 16, WIDTH)
    for kind, plain in ((mixing.PlainMean, True), (LocalMean, False)):
        made = kind(width=WIDTH, heads=2, tokens=16)
        local, mean = made.features(x).chunk(2, dim=-1)
        values = made.value(x)
        assert torch.allclose(local, values) == torch.allclose(mean, values.mean(1, keepdim=True)) == plain


def test_the_recipe_has_every_row_of_the_results(mixing: Any) -> None:
    recipe = TableRecipe.from_yaml((HOME / "mixing.yaml").read_text())
    named = {f"{group.name}-{share}" for group in recipe.rows for share in group.shares}
    assert named == set(json.loads((HOME / "results" / "mixing.json").read_text())["rows"])
    assert recipe.seed == 0
