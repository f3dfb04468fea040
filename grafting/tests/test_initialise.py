"""Solving output projections from streamed moments, against torch.linalg.lstsq and plain sums."""

from __future__ import annotations

from types import SimpleNamespace

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


@pytest.mark.parametrize("bias", [True, False])
def test_the_ridge_is_a_share_of_the_features_variance(bias: bool) -> None:
    """numpy's ridge regression, whose bias is free; in other units of features and outputs it is the same map."""
    f, y = (part.double().numpy() for part in problem())
    moments, other = Moments(12, 5), Moments(12, 5)
    moments.add(torch.tensor(f), torch.tensor(y))
    other.add(torch.tensor(1000 * f), torch.tensor(0.1 * y))
    weight, offset = moments.solve(bias=bias, ridge=0.3)
    x, z = (f - f.mean(0), y - y.mean(0)) if bias else (f, y)
    gram = x.T @ x / len(x)
    wanted = np.linalg.solve(gram + 0.3 * np.trace(gram) / 12 * np.eye(12), x.T @ z / len(x))
    np.testing.assert_allclose(weight.T, wanted, rtol=1e-9, atol=1e-9)
    rescaled, moved = other.solve(bias=bias, ridge=0.3)
    torch.testing.assert_close(rescaled * 1000 / 0.1, weight, rtol=1e-9, atol=1e-9)
    if bias:
        np.testing.assert_allclose(offset, y.mean(0) - wanted.T @ f.mean(0), rtol=1e-9)
        torch.testing.assert_close(moved / 0.1, offset, rtol=1e-9, atol=1e-9)


def test_a_start_is_solved_on_latents_with_their_noise() -> None:
    """numpy's least squares over both passes, on what a hook sees at the site with the noise of the draws by hand."""
    from test_graft import batch, tiny

    from grafting.diffusion import Diffusion, draw
    from grafting.graft import graft
    from grafting.plan import Plan

    plan = Plan.explicit(site="attn", operator="hyena_x", blocks=[2])
    solved = graft(tiny(), plan, init="solve", seed=5, calibration=batch, calibration_batches=2)
    model, seen = tiny(), []
    model.transformer_blocks[2].attn1.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    with torch.no_grad():
        for index in (0, 1):
            z, y = batch(index)["z"], batch(index)["y"]
            noise, t = draw(z.shape, Diffusion(), 5, -1 - index)
            kept = torch.tensor(signal[t]).float()[:, None, None, None]
            model(kept.sqrt() * z + (1 - kept).sqrt() * noise, timestep=t, class_labels=y)
        ((site, operator),) = solved.operators().items()
        design = np.concatenate([operator.features(inputs).flatten(0, 1).double().numpy() for inputs, _ in seen])
    outputs = np.concatenate([output.flatten(0, 1).double().numpy() for _, output in seen])
    x, y = design - design.mean(0), outputs - outputs.mean(0)
    small = np.sqrt(1e-6 * (x**2).sum() / 32) * np.eye(32)  # the ridge, as rows of a regression
    wanted, *_ = np.linalg.lstsq(np.concatenate([x, small]), np.concatenate([y, np.zeros((32, 32))]))
    layer = operator.out_projection
    np.testing.assert_allclose(x @ layer.weight.detach().numpy().T, x @ wanted, atol=1e-5)
    offset = outputs.mean(0) - design.mean(0) @ wanted
    np.testing.assert_allclose(layer.bias.detach().numpy(), offset, atol=1e-3)
    assert solved.explained[site] == pytest.approx(1 - ((x @ wanted - y) ** 2).sum() / (y**2).sum(), abs=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_solved_start_is_judged_as_it_is_stored(dtype: torch.dtype) -> None:
    """Features far from zero beside their spread: in bfloat16 the rounding of the optimum is worse than the start."""
    torch.manual_seed(0)
    layer, f = nn.Linear(12, 5).to(dtype), torch.randn(200, 12) + 100
    weight, bias = layer.weight.detach().float(), layer.bias.detach().float()
    moments = Moments(12, 5)
    moments.add(f, f @ weight.T + bias + 0.1 * torch.randn(200, 5))
    before, rounded = moments.error(layer.weight, layer.bias), [part.to(dtype) for part in moments.solve()]
    share = solve_output(SimpleNamespace(out_projection=layer), moments)  # type: ignore[arg-type]
    after = moments.error(layer.weight, layer.bias)
    kept = (weight.to(dtype), bias.to(dtype)) if dtype == torch.bfloat16 else rounded
    assert torch.equal(layer.weight, kept[0]) and torch.equal(layer.bias, kept[1])
    assert after <= before and share == explained(after, moments.variance)
    assert (after < before) == (moments.error(*rounded) < before) == (dtype == torch.float32)


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
