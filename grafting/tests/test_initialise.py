"""Solving output projections from streamed moments, against torch.linalg.lstsq and plain sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from grafting.initialise import Moments, explained, solve_output
from grafting.operators import build


def problem(rows: int = 200, features: int = 12, outputs: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    f = torch.randn(rows, features, generator=source) + 2
    y = f @ torch.randn(features, outputs, generator=source) + torch.randn(rows, outputs, generator=source) - 7
    return f, y


@pytest.mark.parametrize("bias", [True, False])
def test_equals_lstsq(bias: bool) -> None:
    f, y = problem()
    moments = Moments(12, 5)
    for part_f, part_y in zip(f.split(33), y.split(33), strict=True):
        moments.add(part_f, part_y)
    weight, offset = moments.solve(bias=bias, ridge=0.0)
    design = torch.cat([f, torch.ones(len(f), 1)], 1) if bias else f
    wanted = torch.linalg.lstsq(design.double(), y.double()).solution
    torch.testing.assert_close(weight, wanted[:12].T, rtol=1e-9, atol=1e-9)
    if bias:
        torch.testing.assert_close(offset, wanted[12], rtol=1e-9, atol=1e-9)
    else:
        assert offset is None


def test_streaming_does_not_depend_on_the_split() -> None:
    f, y = problem()
    whole, parts = Moments(12, 5), Moments(12, 5)
    whole.add(f, y)
    for i in range(0, 200, 7):
        parts.add(f[i : i + 7].unsqueeze(0), y[i : i + 7].unsqueeze(0))
    torch.testing.assert_close(whole.solve()[0], parts.solve()[0])
    assert whole.rows == parts.rows == 200


def test_error_and_variance_are_the_plain_sums() -> None:
    f, y = problem()
    moments = Moments(12, 5)
    moments.add(f, y)
    layer = nn.Linear(12, 5)
    wanted = (layer(f).double() - y.double()).square().sum().item()
    assert moments.error(layer.weight, layer.bias) == pytest.approx(wanted, rel=1e-5)
    assert moments.variance == pytest.approx((y.double() - y.double().mean(0)).square().sum().item(), rel=1e-9)
    assert explained(0.0, 2.0) == 1 and explained(2.0, 2.0) == 0


def test_no_rows_and_fewer_rows_than_features() -> None:
    moments = Moments(12, 5)
    with pytest.raises(ValueError, match="nothing to solve from"):
        moments.solve()
    f, y = problem(rows=4)
    moments.add(f, y)
    weight, bias = moments.solve()
    assert moments.error(weight, bias) < 1e-3 * moments.variance


def test_a_singular_system_without_ridge_has_the_solution_of_smallest_norm() -> None:
    """Equal columns of features: numpy's pseudoinverse shares the weight between them."""
    f, y = problem()
    f[:, 1] = f[:, 0]
    f[:, 2] = 0  # without variance: no Cholesky factor, whatever the rounding
    moments = Moments(12, 5)
    moments.add(f, y)
    weight, _ = moments.solve(ridge=0.0)
    centred = (f - f.mean(0)).double().numpy(), (y - y.mean(0)).double().numpy()
    torch.testing.assert_close(weight, torch.tensor(np.linalg.pinv(centred[0]) @ centred[1]).T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["hyena_x", "swa", "mlp"])
def test_solving_an_operator_reaches_its_optimum(name: str) -> None:
    """No gradient is left in the last layer: an optimum that autograd confirms."""
    torch.manual_seed(0)
    operator = build(name, width=16, heads=2, tokens=9)
    x, y = torch.randn(8, 9, 16), torch.randn(8, 9, 16)
    moments = Moments(operator.out_projection.in_features, 16)
    moments.add(operator.features(x), y)
    before = (operator(x) - y).square().sum().item()
    share = solve_output(operator, moments, ridge=1e-9)
    loss = (operator(x) - y).square().sum()
    assert loss.item() < before
    assert share == pytest.approx(1 - loss.item() / (y - y.mean((0, 1))).square().sum().item(), abs=1e-4)
    gradient = torch.autograd.grad(loss, operator.out_projection.weight)[0]
    assert gradient.abs().max() < 1e-2


def test_an_exact_start_is_left_bit_for_bit() -> None:
    torch.manual_seed(0)
    source, wider = build("mlp", width=16, ratio=4), build("mlp", width=16, ratio=6)
    assert wider.copy_from_mlp(
        (source.fc1.weight, source.fc1.bias),  # type: ignore[arg-type, union-attr]
        (source.fc2.weight, source.fc2.bias),  # type: ignore[arg-type, union-attr]
    )
    before = wider.out_projection.weight.clone()
    x = torch.randn(8, 9, 16)
    moments = Moments(wider.out_projection.in_features, 16)
    moments.add(wider.features(x), source(x))
    assert solve_output(wider, moments) > 1 - 1e-6
    assert torch.equal(wider.out_projection.weight, before)
