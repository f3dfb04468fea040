"""Mixed precision: rough products, exact attention, honest refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import nn

from grafting.measure.speed import peak_bytes
from grafting.precision import autocast


def test_attention_stays_in_float32_and_products_do_not() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8).bfloat16() for _ in range(3))
    mask = torch.randn(2, 1, 9, 9).bfloat16()
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask.float())
    a, b = torch.randn(16, 16), torch.randn(16, 16)
    with autocast("cpu", "bf16"):
        inside = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        product = a @ b
    assert inside.dtype == torch.float32 and torch.equal(inside, expected)
    assert product.dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert torch.equal(a @ b, torch.mm(a, b))


def test_model_and_gradients_are_near_float32() -> None:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        num_layers=2,
        sample_size=6,
        patch_size=2,
        num_embeds_ada_norm=4,
    ).eval()
    z, t, y = torch.randn(3, 3, 6, 6), torch.tensor([0, 500, 999]), torch.tensor([0, 4, 2])
    gradients = []
    for precision in ("fp32", "bf16"):
        model.zero_grad()
        with autocast("cpu", precision):
            out = model(z, timestep=t, class_labels=y).sample
        out.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    exact, rough = gradients
    assert not torch.equal(exact, rough)
    assert (exact - rough).norm() < 0.05 * exact.norm()


def test_no_copy_of_the_weights_outlives_its_product() -> None:
    """Of weights that learn autocast would keep one to the end, in passes without gradients too, and use it after a
    step has moved them."""
    layers = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8)))
    x, of_one = torch.randn(1, 256), 256 * 256 * 2
    with autocast("cpu", "bf16"), torch.no_grad():
        assert peak_bytes(lambda: layers(x)) < 2 * of_one
        before = layers[0](x)
        layers[0].weight *= 2
        assert torch.equal(layers[0](x), 2 * before)


def test_unknown_precision_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="precision 'fp8': fp32 or bf16"), autocast("cpu", "fp8"):
        pass
